/* SPDX-License-Identifier: Apache-2.0 */
/* A run of a model in plain memory: documents by themselves, then a question over all of them. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/reader_bench.h"

enum { BATCH_TOKENS = 2048, BATCH_PIECES = 64 };

static lode_status_t no_memory(uint64_t tokens)
{
    return lode_fail(LODE_ERR_NO_MEMORY, "no memory for keys and values of %" PRIu64 " tokens", tokens);
}

static size_t lanes(const lode_plain_t *p)
{
    return (size_t)p->geometry.layers * p->geometry.kv_heads;
}

static uint32_t group_of(const lode_plain_t *p)
{
    return p->geometry.query_heads / p->geometry.kv_heads;
}

/* --------------------------------------------------------------------- room */

static lode_status_t grow(float **rows, uint64_t floats)
{
    float *larger = realloc(*rows, floats * sizeof **rows);
    if (!larger)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %" PRIu64 " floats", floats);
    *rows = larger;
    return LODE_OK;
}

static lode_status_t make_room(lode_plain_t *p, uint64_t tokens)
{
    if (tokens <= p->room)
        return LODE_OK;
    uint64_t room = tokens + tokens / 2 + 64;
    for (size_t i = 0; i < lanes(p); i++) {
        LODE_TRY(grow(&p->k[i], room * p->geometry.head_dim));
        LODE_TRY(grow(&p->v[i], room * p->geometry.head_dim));
    }
    LODE_TRY(grow(&p->logits, room * group_of(p)));
    int64_t *positions = realloc(p->positions, room * sizeof *positions);
    if (!positions)
        return no_memory(room);
    p->positions = positions;
    p->room = room;
    return LODE_OK;
}

static lode_status_t make_query_room(lode_plain_t *p, uint64_t tokens)
{
    if (!p->record || tokens <= p->q_room)
        return LODE_OK;
    uint64_t room = tokens + tokens / 2 + 64, row = (uint64_t)p->geometry.query_heads * p->geometry.head_dim;
    for (uint32_t layer = 0; layer < p->geometry.layers; layer++)
        LODE_TRY(grow(&p->q[layer], room * row));
    p->q_room = room;
    return LODE_OK;
}

lode_status_t lode_plain_open(lode_model_h model, lode_tokenizer_h tokenizer, const lode_manner_t *manner,
                              lode_plain_t *plain)
{
    lode_plain_t made = {
        .model = model, .tokenizer = tokenizer, .manner = manner, .geometry = lode_model_info(model)->geometry};
    if (made.geometry.query_heads / made.geometry.kv_heads > LODE_MAX_GROUP)
        return lode_fail(LODE_ERR_GEOMETRY, "%u query heads a KV head are too many; the most is %d",
                         made.geometry.query_heads / made.geometry.kv_heads, LODE_MAX_GROUP);
    LODE_TRY(lode_ops_get("auto", &made.ops));
    LODE_TRY(lode_rope_frequencies(&made.geometry.rope, made.geometry.head_dim, made.frequencies));
    made.k = calloc(lanes(&made), sizeof *made.k);
    made.v = calloc(lanes(&made), sizeof *made.v);
    made.q = calloc(made.geometry.layers, sizeof *made.q);
    if (!made.k || !made.v || !made.q) {
        lode_plain_close(&made);
        return no_memory(0);
    }
    *plain = made;
    return LODE_OK;
}

void lode_plain_close(lode_plain_t *p)
{
    lode_plain_unshadow(p);
    for (size_t i = 0; p->k && p->v && i < lanes(p); i++) {
        free(p->k[i]);
        free(p->v[i]);
    }
    for (uint32_t i = 0; p->q && i < p->geometry.layers; i++)
        free(p->q[i]);
    free(p->k);
    free(p->v);
    free(p->q);
    free(p->positions);
    free(p->pieces);
    free(p->ends);
    free(p->logits);
    *p = (lode_plain_t){0};
}

/* ---------------------------------------------------------------- attention */

void lode_plain_attend_rows(const lode_plain_t *p, const float *k, const float *v, uint64_t n, const float *q,
                            float *logits, float *out)
{
    uint32_t dim = p->geometry.head_dim;
    p->ops->dot_rows(q, k, (uint32_t)n, dim, logits);
    float lse = p->ops->logsumexp(logits, n);
    memset(out, 0, dim * sizeof *out);
    for (uint64_t i = 0; i < n; i++) {
        float weight = expf(logits[i] - lse);
        for (uint32_t j = 0; j < dim && weight > 0; j++)
            out[j] += weight * v[i * dim + j];
    }
}

/* Keys and values of new tokens to their places, head by head. */
static void put_rows(lode_plain_t *p, uint32_t layer, const lode_stream_t *stream, uint64_t first)
{
    uint32_t heads = p->geometry.kv_heads, dim = p->geometry.head_dim;
    const float *k = stream->k, *v = stream->v;
    for (uint32_t head = 0; head < heads; head++)
        for (uint32_t t = 0; t < stream->tokens; t++) {
            size_t from = ((size_t)t * heads + head) * dim, to = (first + t) * dim,
                   lane = lode_plain_lane(p, layer, head);
            memcpy(p->k[lane] + to, k + from, dim * sizeof *k);
            memcpy(p->v[lane] + to, v + from, dim * sizeof *v);
        }
}

/* Each token of a stream over the rows from `begin` to itself. */
static void attend_dense(lode_plain_t *p, uint32_t layer, const lode_stream_t *stream, uint64_t begin, uint64_t first)
{
    uint32_t heads = p->geometry.query_heads, dim = p->geometry.head_dim, group = group_of(p);
    float q[LODE_MAX_DIM], scale = 1 / sqrtf((float)dim);
    for (uint32_t t = 0; t < stream->tokens; t++)
        for (uint32_t h = 0; h < heads; h++) {
            size_t row = ((size_t)t * heads + h) * dim, lane = lode_plain_lane(p, layer, h / group);
            for (uint32_t j = 0; j < dim; j++)
                q[j] = ((const float *)stream->q)[row + j] * scale;
            lode_plain_attend_rows(p, p->k[lane] + begin * dim, p->v[lane] + begin * dim, first + t + 1 - begin, q,
                                   p->logits, stream->out + row);
        }
}

/* A document's piece: its keys come rotated to places in it, and are turned to the view's when they have been used. */
static void attend_piece(lode_plain_t *p, uint32_t layer, const lode_stream_t *stream, const lode_plain_piece_t *piece)
{
    float cosine[LODE_MAX_DIM / 2], sine[LODE_MAX_DIM / 2];
    uint32_t dim = p->geometry.head_dim;
    put_rows(p, layer, stream, piece->begin);
    attend_dense(p, layer, stream, piece->begin, piece->begin);
    lode_rope_angles(p->frequencies, dim, piece->offset, cosine, sine);
    for (uint32_t head = 0; head < p->geometry.kv_heads; head++)
        p->ops->rotate(p->k[lode_plain_lane(p, layer, head)] + piece->begin * dim, stream->tokens, dim, cosine, sine);
}

/* Tokens behind the documents: theirs are the rows from p->tokens on. */
static lode_status_t attend_behind(lode_plain_t *p, uint32_t layer, const lode_stream_t *stream)
{
    size_t row = (size_t)p->geometry.query_heads * p->geometry.head_dim;
    put_rows(p, layer, stream, p->tokens);
    if (p->record)
        memcpy(p->q[layer] + (p->tokens - p->documents_end) * row, stream->q, stream->tokens * row * sizeof(float));
    if (p->shadows && stream->tokens == 1)
        return lode_plain_shadow_attend(p, layer, stream->q, stream->out);
    attend_dense(p, layer, stream, 0, p->tokens);
    return LODE_OK;
}

/* A stream's view is the piece that it is of; those without are of question or answer. */
static lode_status_t attend(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count)
{
    lode_plain_t *p = self;
    for (uint32_t i = 0; i < count; i++) {
        const lode_plain_piece_t *piece = (const void *)streams[i].view;
        if (piece)
            attend_piece(p, layer, &streams[i], piece);
        else
            LODE_TRY(attend_behind(p, layer, &streams[i]));
    }
    return LODE_OK;
}

/* ---------------------------------------------------------------- documents */

static lode_status_t add_piece(lode_plain_t *p, uint64_t count)
{
    if (p->piece_count == p->piece_room) {
        uint32_t room = 2 * p->piece_room + 64;
        lode_plain_piece_t *pieces = realloc(p->pieces, room * sizeof *pieces);
        uint64_t *ends = pieces ? realloc(p->ends, room * sizeof *ends) : NULL;
        p->pieces = pieces ? pieces : p->pieces;
        p->ends = ends ? ends : p->ends;
        if (!ends)
            return no_memory(p->documents_end);
        p->piece_room = room;
    }
    LODE_TRY(make_room(p, p->documents_end + count));
    int64_t begin = (int64_t)p->documents_end;
    int64_t offset = p->manner->shared_positions ? (int64_t)p->manner->range - (int64_t)count : begin;
    p->pieces[p->piece_count] = (lode_plain_piece_t){p->documents_end, count, offset};
    for (uint64_t i = 0; i < count; i++)
        p->positions[p->documents_end + i] = offset + (int64_t)i;
    p->documents_end += count;
    p->ends[p->piece_count++] = p->documents_end;
    return LODE_OK;
}

static lode_status_t lay_out(lode_plain_t *p, const lode_document_t *documents, uint32_t count, lode_tokens_t *tokens)
{
    for (uint32_t i = 0; i < count; i++) {
        size_t *ends = NULL, pieces = 0, begin = tokens->count;
        lode_status_t status = lode_manner_document(p->manner, p->tokenizer, documents[i].text, documents[i].bytes,
                                                    tokens, &ends, &pieces);
        for (size_t j = 0; j < pieces && status == LODE_OK; begin = ends[j++])
            status = add_piece(p, ends[j] - begin);
        free(ends);
        if (status != LODE_OK)
            return lode_fail_within(status, "document \"%s\": ", documents[i].name);
    }
    return LODE_OK;
}

/* As many pieces as suit one pass of the model. @return how many were run */
static lode_status_t run_batch(lode_plain_t *p, uint32_t first, const uint32_t *tokens, uint32_t *ran)
{
    lode_passage_t passages[BATCH_PIECES] = {{NULL}};
    uint64_t sum = 0;
    uint32_t n = 0;
    while (first + n < p->piece_count && n < BATCH_PIECES && (!n || sum + p->pieces[first + n].count <= BATCH_TOKENS)) {
        lode_plain_piece_t *piece = &p->pieces[first + n];
        passages[n++] = (lode_passage_t){
            .view = (lode_view_h)(void *)piece, .tokens = tokens + piece->begin, .count = (uint32_t)piece->count};
        sum += piece->count;
    }
    lode_attention_t attention = {p, attend};
    *ran = n;
    return lode_model_run(p->model, &attention, passages, n);
}

lode_status_t lode_plain_read(lode_plain_t *p, const lode_document_t *documents, uint32_t count,
                              void (*progress)(void *self, uint64_t tokens), void *self)
{
    lode_tokens_t tokens = {0};
    lode_plain_unshadow(p);
    p->documents_end = p->tokens = p->piece_count = 0;
    lode_status_t status = lay_out(p, documents, count, &tokens);
    for (uint32_t first = 0, ran = 0; first < p->piece_count && status == LODE_OK; first += ran) {
        status = run_batch(p, first, tokens.ids, &ran);
        if (status == LODE_OK && progress)
            progress(self, p->ends[first + ran - 1]);
    }
    lode_tokens_free(&tokens);
    p->documents_end = status == LODE_OK ? p->documents_end : 0;
    p->tokens = p->documents_end;
    return status;
}

/* -------------------------------------------------------------------- asking */

static int64_t next_position(const lode_plain_t *p)
{
    int64_t first = p->manner->shared_positions ? (int64_t)p->manner->range : (int64_t)p->documents_end;
    return first + (int64_t)(p->tokens - p->documents_end);
}

static lode_status_t run_behind(lode_plain_t *p, const uint32_t *tokens, uint32_t count, float *logits)
{
    int64_t position = next_position(p);
    lode_attention_t attention = {p, attend};
    lode_passage_t passage = {.tokens = tokens,
                              .count = count,
                              .position = position,
                              .block_position = position,
                              .logits = logits,
                              .logit_rows = 1};
    LODE_TRY(make_room(p, p->tokens + count));
    LODE_TRY(make_query_room(p, p->tokens - p->documents_end + count));
    for (uint32_t i = 0; i < count; i++)
        p->positions[p->tokens + i] = position + i;
    LODE_TRY(lode_model_run(p->model, &attention, &passage, 1));
    p->tokens += count;
    return LODE_OK;
}

/* Tokens of the longest answer that positions are left for. */
static uint32_t answer_room(const lode_plain_t *p, size_t question, uint32_t most_tokens)
{
    int64_t room = (int64_t)lode_model_info(p->model)->context - next_position(p) - (int64_t)question;
    return room < 0 ? 0 : room < (int64_t)most_tokens ? (uint32_t)room : most_tokens;
}

static lode_status_t write_answer(lode_plain_t *p, const lode_tokens_t *question, uint32_t most_tokens, float *logits,
                                  lode_scribe_t *scribe, lode_answer_t *answer)
{
    static const lode_sampling_t greedy = {.top_p = 1};
    uint32_t vocabulary = lode_model_info(p->model)->vocabulary;
    uint64_t begin = lode_now_ns(), state = 0;
    uint32_t room = answer_room(p, question->count, most_tokens);
    if (!room)
        return lode_fail(LODE_ERR_INVALID,
                         "documents and question fill the model's context: there is no room to answer");
    LODE_TRY(run_behind(p, question->ids, (uint32_t)question->count, logits));
    answer->question_ns = lode_now_ns() - begin;
    begin = lode_now_ns();
    for (;;) {
        size_t bytes;
        uint32_t token = lode_sample(&greedy, logits, vocabulary, &state);
        const char *text = lode_tokenizer_bytes(p->tokenizer, token, &bytes);
        if (text)
            LODE_TRY(lode_scribe_write(scribe, text, bytes));
        if (++answer->answer_tokens == room || scribe->stopped)
            break;
        LODE_TRY(run_behind(p, &token, 1, logits));
    }
    answer->answer_ns = lode_now_ns() - begin;
    return lode_scribe_finish(scribe);
}

lode_status_t lode_plain_ask(lode_plain_t *p, const char *question, size_t bytes, uint32_t most_tokens,
                             lode_answer_t *answer)
{
    lode_answer_t made = {.visible_tokens = p->documents_end};
    lode_scribe_t scribe = {.manner = p->manner};
    lode_tokens_t tokens = {0};
    float *logits = malloc(lode_model_info(p->model)->vocabulary * sizeof *logits);
    lode_status_t status = logits ? lode_manner_question(p->manner, p->tokenizer, question, bytes, &tokens)
                                  : lode_fail(LODE_ERR_NO_MEMORY, "no memory for logits");
    p->tokens = p->documents_end;
    p->fetched = p->asked = 0;
    made.question_tokens = (uint32_t)tokens.count;
    if (status == LODE_OK)
        status = write_answer(p, &tokens, most_tokens, logits, &scribe, &made);
    lode_tokens_free(&tokens);
    free(logits);
    if (status != LODE_OK) {
        lode_scribe_free(&scribe);
        return status;
    }
    made.text = scribe.text;
    made.bytes = scribe.bytes;
    made.stopped = scribe.stopped;
    scribe.text = NULL;
    lode_scribe_free(&scribe);
    *answer = made;
    return LODE_OK;
}
