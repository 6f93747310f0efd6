/* SPDX-License-Identifier: Apache-2.0 */
/* The run in plain memory that policies are held against, over the model that comes along. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/capture.h"
#include "bench/reader_bench.h"

TestSuite(plain, .timeout = 240);

enum { HQ_MAX = 32, TOKENS_MAX = 1024 };

static lode_model_h model;
static lode_tokenizer_h tokenizer;
static lode_manner_t manner;
static lode_plain_t plain;

#define TEXT(name, text)                \
    {                                   \
        name, text, sizeof(text "") - 1 \
    }
static const lode_document_t documents[] = {
    TEXT("one", "Document 1\nKeldik Z290 is a drill made in Norway. Its weight is 5110 g and its body is of bamboo."),
    TEXT("two", "Document 2\nThe Nexbust G725 is a lamp from Georgia. The lamp weighs 2690 g."),
    TEXT("three", "Document 3\nName: Tool 37\nWeight: 350 g\nMaterial: steel and wood.\n"),
};
static const char question[] = "What is the weight of the drill?";

static void open_all(void)
{
    cr_assert(lode_model_open(LODE_TEST_MODEL, 1, NULL, &model) == LODE_OK, "%s", lode_error_message());
    cr_assert(lode_tokenizer_open(LODE_TEST_MODEL, &tokenizer) == LODE_OK, "%s", lode_error_message());
    cr_assert(lode_manner_open(LODE_TEST_MODEL, tokenizer, lode_model_info(model)->context, &manner) == LODE_OK);
    cr_assert(lode_plain_open(model, tokenizer, &manner, &plain) == LODE_OK, "%s", lode_error_message());
    plain.record = true;
}

static void close_all(void)
{
    lode_plain_close(&plain);
    lode_manner_free(&manner);
    lode_tokenizer_close(&tokenizer);
    lode_model_close(&model);
}

static void read_documents(uint32_t first, uint32_t count)
{
    cr_assert(lode_plain_read(&plain, documents + first, count, NULL, NULL) == LODE_OK, "%s", lode_error_message());
}

static void ask(uint32_t most_tokens, lode_answer_t *answer)
{
    cr_assert(lode_plain_ask(&plain, question, sizeof question - 1, most_tokens, answer) == LODE_OK, "%s",
              lode_error_message());
}

static double difference(const float *a, const float *b, size_t n)
{
    double wrong = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        wrong += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    return sqrt(wrong / (size + 1e-30));
}

/* ------------------------------------------------------- one text, from its definition */

/** Keys, values and queries of one sequence, attended to in double. */
typedef struct sequence {
    uint32_t kv_heads, query_heads, dim, layer_of_q;
    float *q; /* (tokens, Hq, D) of layer_of_q */
} sequence_t;

static lode_status_t attend_in_double(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count)
{
    sequence_t *s = self;
    const float *q = streams->q, *k = streams->k, *v = streams->v;
    static double weights[TOKENS_MAX];
    uint32_t group = s->query_heads / s->kv_heads;
    cr_assert(count == 1 && streams->tokens <= TOKENS_MAX);
    if (layer == s->layer_of_q)
        memcpy(s->q, q, (size_t)streams->tokens * s->query_heads * s->dim * sizeof *q);
    for (uint32_t t = 0; t < streams->tokens; t++)
        for (uint32_t h = 0; h < s->query_heads; h++) {
            size_t row = ((size_t)t * s->query_heads + h) * s->dim;
            double sum = 0, most = -INFINITY, out[LODE_MAX_DIM] = {0};
            for (uint32_t i = 0; i <= t; i++) {
                weights[i] = 0;
                for (uint32_t j = 0; j < s->dim; j++)
                    weights[i] += (double)q[row + j] * k[((size_t)i * s->kv_heads + h / group) * s->dim + j];
                weights[i] /= sqrt(s->dim);
                most = fmax(most, weights[i]);
            }
            for (uint32_t i = 0; i <= t; i++) {
                double weight = exp(weights[i] - most);
                sum += weight;
                for (uint32_t j = 0; j < s->dim; j++)
                    out[j] += weight * v[((size_t)i * s->kv_heads + h / group) * s->dim + j];
            }
            for (uint32_t j = 0; j < s->dim; j++)
                streams->out[row + j] = (float)(out[j] / sum);
        }
    return LODE_OK;
}

/* A document that stands right before its question is one text with it, to whatever positions that is rotated. */
Test(plain, a_question_of_one_document_is_one_text, .init = open_all, .fini = close_all)
{
    const lode_geometry_t *g = &plain.geometry;
    lode_tokens_t tokens = {0};
    lode_answer_t answer;
    size_t *ends, pieces;
    read_documents(0, 1);
    ask(1, &answer);
    cr_assert(answer.visible_tokens == plain.documents_end && answer.answer_tokens == 1);

    cr_assert(lode_manner_document(&manner, tokenizer, documents[0].text, documents[0].bytes, &tokens, &ends,
                                   &pieces) == LODE_OK);
    uint64_t first = tokens.count;
    cr_assert(pieces == 1 && first == plain.documents_end);
    cr_assert(lode_manner_question(&manner, tokenizer, question, sizeof question - 1, &tokens) == LODE_OK);
    cr_assert(tokens.count - first == answer.question_tokens);
    int64_t begin = plain.positions[0];
    sequence_t s = {.kv_heads = g->kv_heads, .query_heads = g->query_heads, .dim = g->head_dim};
    size_t row = (size_t)g->query_heads * g->head_dim;
    s.q = malloc(tokens.count * row * sizeof *s.q);
    lode_attention_t attention = {&s, attend_in_double};
    lode_passage_t passage = {
        .tokens = tokens.ids, .count = (uint32_t)tokens.count, .position = begin, .block_position = begin};
    for (s.layer_of_q = 0; s.layer_of_q < g->layers; s.layer_of_q++) {
        cr_assert(lode_model_run(model, &attention, &passage, 1) == LODE_OK);
        double apart = difference(plain.q[s.layer_of_q], s.q + first * row, answer.question_tokens * row);
        cr_expect(apart < 1e-3, "layer %u: %g", s.layer_of_q, apart);
    }
    free(s.q);
    free(ends);
    lode_tokens_free(&tokens);
    lode_answer_free(&answer);
}

Test(plain, documents_do_not_see_one_another, .init = open_all, .fini = close_all)
{
    size_t dim = plain.geometry.head_dim, last = (size_t)plain.geometry.layers * plain.geometry.kv_heads - 1;
    read_documents(1, 1);
    uint64_t count = plain.documents_end;
    float *alone = malloc(count * dim * sizeof *alone);
    memcpy(alone, plain.v[last], count * dim * sizeof *alone);
    read_documents(0, 3);
    cr_assert(plain.piece_count == 3 && plain.pieces[1].count == count);
    cr_expect(difference(plain.v[last] + plain.pieces[1].begin * dim, alone, count * dim) < 1e-3);
    if (manner.shared_positions)
        for (uint32_t i = 0; i < 3; i++)
            cr_expect(plain.positions[plain.ends[i] - 1] == (int64_t)manner.range - 1, "they end before the question");
    free(alone);
}

/* ------------------------------------------------------------------ ShadowKV */

/* The rank of keys cannot be above their number: a text of its own is long enough for every rank. */
static void read_long(uint32_t copies)
{
    static char texts[24][96];
    lode_document_t many[24];
    for (uint32_t i = 0; i < copies; i++) {
        int bytes = snprintf(texts[i], sizeof texts[i], "Document %u\nTool %u weighs %u g and stands in room %u.",
                             i + 1, i * 37 + 5, 911 * i % 5000, i * 7 % 90);
        many[i] = (lode_document_t){"many", texts[i], (size_t)bytes};
    }
    cr_assert(lode_plain_read(&plain, many, copies, NULL, NULL) == LODE_OK, "%s", lode_error_message());
}

Test(plain, shadowkv_of_full_rank_and_budget_is_dense, .init = open_all, .fini = close_all)
{
    const lode_geometry_t *g = &plain.geometry;
    uint32_t width = g->kv_heads * g->head_dim;
    size_t row = (size_t)g->query_heads * g->head_dim;
    lode_answer_t answer, again;
    read_long(24);
    ask(2, &answer);
    uint64_t first = answer.question_tokens; /* the first answer token's query */
    float *dense = malloc(row * sizeof *dense);
    memcpy(dense, plain.q[g->layers - 1] + first * row, row * sizeof *dense);
    cr_assert(lode_plain_shadow(&plain, width, 48, 1) == LODE_OK, "%s", lode_error_message());
    ask(2, &again);
    double full = difference(plain.q[g->layers - 1] + first * row, dense, row);
    cr_expect(full < 3e-2, "%g: bf16 is all that separates them", full);
    cr_assert(lode_plain_shadow(&plain, 1, 8, 1) == LODE_OK, "%s", lode_error_message());
    lode_answer_free(&again);
    ask(2, &again);
    double least = difference(plain.q[g->layers - 1] + first * row, dense, row);
    cr_expect(least > 2 * full, "%g: keys of rank 1 are others", least);
    free(dense);
    lode_answer_free(&answer);
    lode_answer_free(&again);
}

Test(plain, shadowkv_fetches_what_its_budget_says, .init = open_all, .fini = close_all)
{
    const lode_geometry_t *g = &plain.geometry;
    lode_answer_t answer;
    double landmarks, residents;
    read_long(24);
    cr_assert(lode_plain_shadow(&plain, 0, 6, 0.05) == LODE_OK, "%s", lode_error_message());
    cr_expect(plain.shadow_params.rank == lode_shadow_rank(g->kv_heads * g->head_dim));
    ask(3, &answer);
    uint64_t heads = (uint64_t)g->layers * g->kv_heads, steps = answer.answer_tokens - 1;
    uint64_t chunks = ((uint64_t)ceil(0.05 * (double)plain.documents_end) + 7) / 8;
    cr_expect(plain.asked == steps);
    cr_expect(plain.fetched <= heads * steps * chunks * 8 && plain.fetched > heads * steps * (chunks - 1) * 4, "%lu",
              plain.fetched);
    lode_plain_shadow_bytes(&plain, &landmarks, &residents);
    double width = g->kv_heads * g->head_dim, low_rank = plain.shadow_params.rank * 2.0;
    cr_expect(landmarks > 0 && landmarks < width * 2 / 4 && residents > low_rank, "%g %g", landmarks, residents);
    lode_answer_free(&answer);
    read_documents(0, 1);
    cr_expect(plain.shadows == NULL, "other documents are dense again");
}

/* ------------------------------------------------------------------- captures */

static void expect_rows(const lode_capture_tensor_t *tensor, uint64_t at, const float *row, uint32_t dim, float slack)
{
    float read[LODE_MAX_DIM];
    lode_capture_read(tensor, at * dim, dim, read);
    for (uint32_t j = 0; j < dim; j++)
        cr_assert(fabsf(read[j] - row[j]) <= slack * fabsf(row[j]), "%g is not %g", read[j], row[j]);
}

static void expect_capture(lode_dtype_t dtype, float slack)
{
    const lode_geometry_t *g = &plain.geometry;
    char path[] = "/tmp/lodemark-capture-XXXXXX";
    lode_capture_t c;
    uint64_t bytes;
    close(mkstemp(path));
    cr_assert(lode_plain_write_capture(&plain, path, dtype, &bytes) == LODE_OK, "%s", lode_error_message());
    cr_assert(lode_capture_open(path, &c) == LODE_OK, "%s", lode_error_message());
    unlink(path);
    cr_assert(c.tokens == plain.tokens && c.queries == plain.tokens - plain.documents_end && c.layers == g->layers);
    cr_expect(c.rope_theta == g->rope.theta && c.kv_heads == g->kv_heads && c.map_bytes == bytes);
    for (uint64_t i = 0; i < c.queries; i++)
        cr_expect(c.positions[i] == (int64_t)(plain.documents_end + i), "a query sees what is up to its own token");
    cr_assert(manner.shared_positions == (c.key_positions != NULL));
    for (uint64_t t = 0; c.key_positions && t < c.tokens; t++)
        cr_assert(c.key_positions[t] == plain.positions[t]);
    for (uint32_t layer = 0; layer < g->layers; layer++) {
        for (uint64_t t = 0; t < c.tokens; t += 7)
            for (uint32_t h = 0; h < g->kv_heads; h++) {
                size_t lane = lode_plain_lane(&plain, layer, h), row = t * g->head_dim;
                expect_rows(&c.layer[layer].k, t * g->kv_heads + h, plain.k[lane] + row, g->head_dim, slack);
                expect_rows(&c.layer[layer].v, t * g->kv_heads + h, plain.v[lane] + row, g->head_dim, slack);
            }
        for (uint64_t i = 0; i < c.queries * g->query_heads; i++)
            expect_rows(&c.layer[layer].q, i, plain.q[layer] + i * g->head_dim, g->head_dim, slack);
    }
    lode_capture_close(&c);
}

Test(plain, a_capture_holds_what_the_run_attended_with, .init = open_all, .fini = close_all)
{
    lode_answer_t answer;
    uint64_t bytes;
    read_documents(0, 3);
    cr_assert(lode_plain_write_capture(&plain, "/tmp/none", LODE_BF16, &bytes) == LODE_ERR_INVALID,
              "nothing was asked");
    ask(4, &answer);
    expect_capture(LODE_FP32, 0);
    expect_capture(LODE_BF16, 0x1p-8f);
    cr_expect(lode_plain_write_capture(&plain, "/nonexistent/c", LODE_BF16, &bytes) == LODE_ERR_IO);
    lode_answer_free(&answer);
}

/* -------------------------------------------------------------------- refused */

Test(plain, what_is_too_long_or_no_text_is_told, .init = open_all, .fini = close_all)
{
    static char longest[8192];
    lode_answer_t answer;
    memset(longest, 'x', sizeof longest);
    for (size_t i = 5; i < sizeof longest; i += 6)
        longest[i] = ' ';
    read_documents(0, 1);
    cr_expect(lode_plain_ask(&plain, longest, sizeof longest, 4, &answer) == LODE_ERR_INVALID);
    const lode_document_t latin = {"latin", "na\357ve", 5}, text = {"long", longest, sizeof longest};
    cr_expect(lode_plain_read(&plain, &latin, 1, NULL, NULL) == LODE_ERR_FORMAT &&
              strstr(lode_error_message(), "\"latin\""));
    cr_expect(plain.documents_end == 0 && plain.tokens == 0);
    cr_assert(lode_plain_read(&plain, &text, 1, NULL, NULL) == LODE_OK, "%s", lode_error_message());
    cr_expect(plain.piece_count > 1, "a document longer than the range is cut");
    for (uint32_t i = 0; i < plain.piece_count; i++)
        cr_expect(plain.pieces[i].count <= manner.range);
}
