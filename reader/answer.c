/* SPDX-License-Identifier: Apache-2.0 */
/* A question of the listed documents: prefilled against them, answered token by token, and where the answer is from. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "reader/reader_inside.h"

/*
 * Sources are found by steps beside the answer's own, which write nothing and choose few tokens: those that matter
 * most. Each of an answer's first tokens asks, then one of four, and no more in the end.
 */
enum { SOURCE_TOKENS = 16, SOURCE_DENSE_STEPS = 8, SOURCE_EVERY = 4, SOURCE_STEPS = 40 };

/* Which of a stream's tokens are asked where they look. */
typedef enum looks { LOOKS_NOT, LOOKS_LAST, LOOKS_ALL } looks_t;

typedef struct ask {
    lode_reader_h reader;
    lode_reader_piece_t *pieces; /* (piece_count) that are asked; blocks are the reader's */
    uint32_t piece_count, document_count;
    uint64_t piece_tokens;
    const lode_asking_t *asking;
    lode_policy_t policy; /* of the answer */
    lode_block_h block;   /* of question and answer */
    lode_view_h view, sources_view;
    bool holds;       /* the view holds on to the question, see hold_question() */
    int64_t position; /* in the view, of the question's first token */
    uint32_t done;    /* tokens of question and answer that the model has seen */
    lode_tokens_t question;
    float *logits;
    lode_scribe_t scribe;
    uint64_t random;
    uint64_t *begins; /* (piece_count) of the pieces' tokens, in the view's order */
    double *votes;    /* (document_count) */
    double vote_sum;
    float *out; /* of a step for sources */
    bool sums;
    looks_t looks;
    lode_answer_t answer;
} ask_t;

/* -------------------------------------------------------------------- sources */

static uint32_t piece_of(const ask_t *ask, uint64_t token)
{
    uint32_t low = 0, high = ask->piece_count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (ask->begins[middle] <= token)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* The document of a chosen token; −1 for the template's, which every question looks at: they tell nothing. */
static int64_t document_of(const ask_t *ask, uint64_t token)
{
    const struct lode_reader *reader = ask->reader;
    uint32_t i = piece_of(ask, token);
    const lode_reader_piece_t *piece = &ask->pieces[i];
    uint64_t at = token - ask->begins[i];
    bool of_text = at >= reader->template_tokens[0] && at + reader->template_tokens[1] < piece->tokens;
    return of_text ? (int64_t)piece->document : -1;
}

/*
 * A head's vote: the square of the share that a document has of its tokens. So heads that look at one document count,
 * and those that look everywhere hardly do.
 */
static void vote(ask_t *ask, const uint32_t *tokens, uint64_t count)
{
    int64_t documents[SOURCE_TOKENS];
    count = count < SOURCE_TOKENS ? count : SOURCE_TOKENS;
    for (uint64_t i = 0; i < count; i++)
        documents[i] = document_of(ask, tokens ? tokens[i] : i);
    for (uint64_t i = 0; i < count; i++) {
        uint32_t same = 0;
        for (uint64_t j = 0; j < count; j++)
            same += documents[j] == documents[i];
        if (documents[i] < 0)
            continue;
        double part = same / (double)(count * count); /* of the square, as each of its tokens adds one */
        ask->votes[documents[i]] += part;
        ask->vote_sum += part;
    }
}

static bool is_heard(const ask_t *ask, uint32_t layer, uint32_t head)
{
    const lode_manner_t *manner = &ask->reader->manner;
    for (uint32_t i = 0; i < manner->head_count; i++)
        if (manner->heads[i][0] == layer && (head == UINT32_MAX || manner->heads[i][1] == head))
            return true;
    return manner->head_count == 0;
}

/* The queries of the last tokens once more, of the documents alone and with a small budget. */
static lode_status_t look_for_sources(ask_t *ask, uint32_t layer, const lode_stream_t *stream)
{
    const lode_geometry_t *g = &lode_model_info(ask->reader->model)->geometry;
    uint64_t begin = lode_now_ns();
    uint32_t rows = ask->looks == LOOKS_ALL ? stream->tokens : 1, first = stream->tokens - rows;
    lode_stream_t last = {.view = ask->sources_view,
                          .tokens = rows,
                          .position = ask->position + ask->done + first,
                          .dtype = stream->dtype,
                          .q = (const float *)stream->q + (size_t)first * g->query_heads * g->head_dim,
                          .out = ask->out};
    LODE_TRY(lode_step(ask->reader->cluster, layer, &last, 1, NULL));
    for (uint32_t i = 0; i < rows * g->kv_heads; i++) {
        const uint32_t *tokens;
        uint64_t count;
        if (!is_heard(ask, layer, i % g->kv_heads))
            continue;
        LODE_TRY(lode_step_selection(ask->reader->cluster, 0, i / g->kv_heads, i % g->kv_heads, &tokens, &count));
        vote(ask, tokens, count);
    }
    ask->answer.sources_ns += lode_now_ns() - begin;
    return LODE_OK;
}

/* The document with most votes, of equals the first; and its votes are taken. @return false if nobody voted */
static bool take_best(ask_t *ask, uint32_t *document, double *votes)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < ask->reader->document_count; i++)
        if (ask->votes[i] > ask->votes[best])
            best = i;
    *document = best;
    *votes = ask->votes[best];
    ask->votes[best] = 0;
    return *votes > 0;
}

static void rank_sources(ask_t *ask)
{
    lode_answer_t *answer = &ask->answer;
    uint32_t document;
    double votes;
    while (answer->source_count < LODE_SOURCES_MAX && take_best(ask, &document, &votes))
        answer->sources[answer->source_count++] = (lode_source_t){document, votes / ask->vote_sum};
}

/* ----------------------------------------------------------------------- step */

static void add_stats(lode_answer_t *answer, const lode_step_stats_t *stats)
{
    answer->records_wanted += stats->records_wanted;
    answer->records_local += stats->records_local;
    answer->records_hit += stats->records_hit;
    answer->records_fetched += stats->records_fetched;
    answer->bytes_fetched += stats->bytes_fetched;
    answer->attend_ns += stats->step_ns;
}

static lode_status_t attend(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count)
{
    ask_t *ask = self;
    lode_step_stats_t stats;
    LODE_TRY(lode_step(ask->reader->cluster, layer, streams, count, &stats));
    if (ask->sums)
        add_stats(&ask->answer, &stats);
    return ask->looks && is_heard(ask, layer, UINT32_MAX) ? look_for_sources(ask, layer, streams) : LODE_OK;
}

/* The next tokens through the model; logits of the last. */
static lode_status_t run(ask_t *ask, const uint32_t *tokens, uint32_t count)
{
    lode_attention_t own = {ask, attend};
    lode_passage_t passage = {.view = ask->view,
                              .tokens = tokens,
                              .count = count,
                              .position = ask->position + ask->done,
                              .block_position = ask->done,
                              .logits = ask->logits,
                              .logit_rows = 1};
    LODE_TRY(lode_model_run(ask->reader->model, ask->asking->attention ? ask->asking->attention : &own, &passage, 1));
    ask->done += count;
    return LODE_OK;
}

/* ---------------------------------------------------------------------- views */

static lode_status_t create_block(ask_t *ask, uint64_t expected)
{
    return lode_reader_own_block(ask->reader, "question", expected, false, &ask->block);
}

/* Room for the blocks of a view: documents, and question and answer. */
typedef struct layout {
    lode_block_h *blocks;
    int64_t *offsets;
} layout_t;

/* Documents first, each right before the question or one after another; or, where order means nothing, behind it. */
static void lay_out(ask_t *ask, const layout_t *layout, bool question_first)
{
    const struct lode_reader *reader = ask->reader;
    uint32_t first = question_first, own = question_first ? 0 : ask->piece_count;
    lode_reader_lay_out(reader, ask->pieces, ask->piece_count, layout->blocks + first, layout->offsets + first,
                        ask->begins);
    layout->blocks[own] = ask->block;
    layout->offsets[own] = ask->position;
}

static lode_status_t create_view(ask_t *ask, const layout_t *layout, bool question_first, const lode_policy_t *policy,
                                 lode_view_h *view)
{
    const struct lode_reader *reader = ask->reader;
    lay_out(ask, layout, question_first);
    lode_view_params_t params = {.blocks = layout->blocks,
                                 .offsets = layout->offsets,
                                 .count = ask->piece_count + 1,
                                 .write_block = question_first ? 0 : (int32_t)ask->piece_count,
                                 .shared_positions = reader->manner.shared_positions,
                                 .policy = *policy};
    if (view == &ask->sources_view) { /* of the documents alone */
        params.count--;
        params.write_block = -1;
    }
    return lode_view_create(reader->cluster, &params, view);
}

static lode_status_t make_view(ask_t *ask, bool question_first, const lode_policy_t *policy, lode_view_h *view)
{
    uint32_t count = ask->piece_count + 1;
    layout_t layout = {malloc(count * sizeof *layout.blocks), malloc(count * sizeof *layout.offsets)};
    lode_status_t status = layout.blocks && layout.offsets
                               ? create_view(ask, &layout, question_first, policy, view)
                               : lode_fail(LODE_ERR_NO_MEMORY, "no memory for a view of %u blocks", count);
    free(layout.blocks);
    free(layout.offsets);
    return status;
}

/* @p policy: of the answer */
static lode_status_t create_views(ask_t *ask, const lode_policy_t *policy, bool sources)
{
    lode_policy_t few = {
        .select = LODE_SELECT_LANDMARK, .merge = policy->merge, .budget_tokens = SOURCE_TOKENS, .lost = LODE_LOST_SKIP};
    LODE_TRY(make_view(ask, false, policy, &ask->view));
    return sources && !ask->asking->attention ? make_view(ask, false, &few, &ask->sources_view) : LODE_OK;
}

static void close_views(ask_t *ask)
{
    if (ask->sources_view)
        lode_view_destroy(&ask->sources_view);
    if (ask->view)
        lode_view_destroy(&ask->view);
    if (ask->block && lode_block_drop(&ask->block) != LODE_OK && ask->block)
        lode_block_close(&ask->block);
}

/*
 * Question and answer are attended to in full while they are in their block's tail. Once a page of them has left it,
 * their tokens are chosen among the documents' by landmarks. The question's are kept all the same: as the first tokens
 * of a view, or, where positions do not allow that, as the last ones.
 */
static lode_status_t hold_question(ask_t *ask)
{
    lode_view_h view;
    lode_policy_t policy = ask->policy;
    bool first = ask->reader->manner.shared_positions;
    if (ask->holds || ask->done < LODE_PAGE_TOKENS || policy.select == LODE_SELECT_DENSE)
        return LODE_OK;
    if (first)
        policy.sinks += (uint32_t)ask->question.count;
    else if (policy.window < ask->question.count)
        policy.window = (uint32_t)ask->question.count;
    LODE_TRY(make_view(ask, first, &policy, &view));
    lode_status_t status = lode_view_destroy(&ask->view);
    ask->view = view;
    ask->holds = true;
    return status;
}

/* ----------------------------------------------------------------------- room */

/* The positions that the question and its answer may take. @return tokens of the longest answer, 0: none fits */
static uint32_t answer_room(const ask_t *ask)
{
    const struct lode_reader *reader = ask->reader;
    uint64_t context = lode_model_info(reader->model)->context, begin = (uint64_t)ask->position + ask->question.count;
    uint64_t room = begin < context ? context - begin : 0;
    return room < ask->asking->most_tokens ? (uint32_t)room : ask->asking->most_tokens;
}

static lode_status_t take_room(ask_t *ask)
{
    const struct lode_reader *reader = ask->reader;
    const lode_model_info_t *info = lode_model_info(reader->model);
    ask->logits = malloc(info->vocabulary * sizeof *ask->logits);
    ask->begins = malloc(ask->piece_count * sizeof *ask->begins);
    ask->votes = calloc(reader->document_count, sizeof *ask->votes);
    ask->out = malloc((ask->asking->focus ? ask->question.count : 1) * info->geometry.query_heads *
                      info->geometry.head_dim * sizeof *ask->out);
    return ask->logits && ask->begins && ask->votes && ask->out ? LODE_OK
                                                                : lode_fail(LODE_ERR_NO_MEMORY, "no memory to answer");
}

static lode_status_t set_position(ask_t *ask)
{
    ask->position = lode_reader_position_after(ask->reader, ask->piece_tokens);
    if (!ask->asking->most_tokens)
        return lode_fail(LODE_ERR_INVALID, "an answer of no tokens at all was asked for");
    if (answer_room(ask))
        return LODE_OK;
    return lode_fail(LODE_ERR_INVALID,
                     "documents and question together have %" PRIu64 " tokens, and the model's context is %u: ask of "
                     "fewer, or let them share positions (reader.json)",
                     (uint64_t)ask->position + ask->question.count, lode_model_info(ask->reader->model)->context);
}

static lode_status_t prepare(ask_t *ask, const char *question, size_t bytes)
{
    const struct lode_reader *reader = ask->reader;
    if (!reader->piece_count)
        return lode_fail(LODE_ERR_INVALID, "no documents are listed to ask a question of");
    LODE_TRY(lode_manner_question(&reader->manner, reader->tokenizer, question, bytes, &ask->question));
    ask->pieces = malloc(reader->piece_count * sizeof *ask->pieces);
    if (!ask->pieces)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a list of %u blocks", reader->piece_count);
    memcpy(ask->pieces, reader->pieces, reader->piece_count * sizeof *ask->pieces);
    ask->piece_count = reader->piece_count;
    ask->document_count = reader->document_count;
    ask->piece_tokens = reader->listed_tokens;
    ask->answer.question_tokens = (uint32_t)ask->question.count;
    LODE_TRY(take_room(ask));
    return set_position(ask);
}

/* ---------------------------------------------------------------------- focus */

/* Keep the pieces of documents that are marked. */
static void keep_marked(ask_t *ask, const bool *marked)
{
    uint32_t kept = 0;
    ask->piece_tokens = 0;
    for (uint32_t i = 0; i < ask->piece_count; i++) {
        if (!marked[ask->pieces[i].document])
            continue;
        ask->pieces[kept] = ask->pieces[i];
        ask->piece_tokens += ask->pieces[kept++].tokens;
    }
    ask->piece_count = kept;
}

static lode_status_t keep_best(ask_t *ask)
{
    bool *marked = calloc(ask->reader->document_count, sizeof *marked);
    uint32_t document, kept = 0;
    double votes;
    if (!marked)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a list of %u documents", ask->reader->document_count);
    while (kept < ask->asking->focus && take_best(ask, &document, &votes)) {
        marked[document] = true;
        kept++;
    }
    if (kept) { /* else nobody told them apart: all stay */
        keep_marked(ask, marked);
        ask->document_count = kept;
    }
    free(marked);
    memset(ask->votes, 0, ask->reader->document_count * sizeof *ask->votes);
    ask->vote_sum = 0;
    return LODE_OK;
}

/* Each of the question's tokens says which documents it would look at; the question begins anew with those. */
static lode_status_t focus(ask_t *ask)
{
    LODE_TRY(create_block(ask, ask->question.count));
    LODE_TRY(create_views(ask, &ask->asking->policy, true));
    ask->looks = LOOKS_ALL;
    LODE_TRY(run(ask, ask->question.ids, (uint32_t)ask->question.count));
    close_views(ask);
    ask->done = 0;
    ask->policy.select = LODE_SELECT_DENSE;
    LODE_TRY(keep_best(ask));
    return set_position(ask);
}

/* --------------------------------------------------------------------- answer */

/* @param[out] more  whether the answer goes on */
static lode_status_t write_down(ask_t *ask, uint32_t token, bool *more)
{
    size_t bytes, before = ask->scribe.bytes;
    const char *text = lode_tokenizer_bytes(ask->reader->tokenizer, token, &bytes);
    ask->answer.answer_tokens++;
    if (text)
        LODE_TRY(lode_scribe_write(&ask->scribe, text, bytes));
    if (ask->asking->text && ask->scribe.bytes > before)
        ask->asking->text(ask->asking->self, ask->scribe.text + before, ask->scribe.bytes - before);
    *more = !ask->scribe.stopped;
    return LODE_OK;
}

static lode_status_t finish_text(ask_t *ask)
{
    size_t before = ask->scribe.bytes;
    LODE_TRY(lode_scribe_finish(&ask->scribe));
    if (ask->asking->text && ask->scribe.bytes > before)
        ask->asking->text(ask->asking->self, ask->scribe.text + before, ask->scribe.bytes - before);
    ask->answer.stopped = ask->scribe.stopped;
    return LODE_OK;
}

/* Whether the step that says the answer's token number @p i is also asked where it is from. */
static looks_t is_looked(const ask_t *ask, uint32_t i)
{
    bool looked = ask->sources_view && (i < SOURCE_DENSE_STEPS || i % SOURCE_EVERY == 0) &&
                  i < SOURCE_DENSE_STEPS + SOURCE_STEPS * SOURCE_EVERY;
    return looked ? LOOKS_LAST : LOOKS_NOT;
}

static bool is_stopped(const ask_t *ask)
{
    return ask->asking->stop && ask->asking->stop(ask->asking->self);
}

static lode_status_t decode(ask_t *ask)
{
    const lode_model_info_t *info = lode_model_info(ask->reader->model);
    uint32_t room = answer_room(ask);
    uint64_t begin = lode_now_ns(), sources = ask->answer.sources_ns;
    bool more = true;
    ask->sums = true;
    while (more && !is_stopped(ask)) {
        uint32_t token = lode_sample(&ask->asking->sampling, ask->logits, info->vocabulary, &ask->random);
        LODE_TRY(write_down(ask, token, &more));
        if (!more || ask->answer.answer_tokens == room)
            break;
        ask->looks = is_looked(ask, ask->answer.answer_tokens);
        LODE_TRY(hold_question(ask));
        LODE_TRY(run(ask, &token, 1));
    }
    ask->answer.answer_ns = lode_now_ns() - begin - (ask->answer.sources_ns - sources);
    return finish_text(ask);
}

static lode_status_t ask_and_answer(ask_t *ask, const char *question, size_t bytes)
{
    uint64_t begin = lode_now_ns();
    LODE_TRY(prepare(ask, question, bytes));
    if (ask->asking->focus && ask->asking->focus < ask->document_count && !ask->asking->attention)
        LODE_TRY(focus(ask));
    LODE_TRY(create_block(ask, ask->question.count + answer_room(ask)));
    LODE_TRY(create_views(ask, &ask->policy, ask->asking->sources));
    ask->answer.visible_tokens = ask->piece_tokens;
    ask->answer.document_count = ask->document_count;
    ask->looks = is_looked(ask, 0);
    LODE_TRY(run(ask, ask->question.ids, (uint32_t)ask->question.count));
    ask->answer.question_ns = lode_now_ns() - begin - ask->answer.sources_ns;
    LODE_TRY(decode(ask));
    rank_sources(ask);
    return LODE_OK;
}

static void tidy(ask_t *ask)
{
    close_views(ask);
    lode_tokens_free(&ask->question);
    free(ask->pieces);
    free(ask->logits);
    free(ask->begins);
    free(ask->votes);
    free(ask->out);
}

lode_status_t lode_reader_ask(lode_reader_h reader, const char *question, size_t bytes, const lode_asking_t *asking,
                              lode_answer_t *answer)
{
    lode_kept_failure_t kept;
    ask_t ask = {.reader = reader, .asking = asking, .random = asking->sampling.seed};
    ask.policy = asking->policy;
    ask.scribe.manner = &reader->manner;
    lode_keep_failure(ask_and_answer(&ask, question, bytes), &kept);
    tidy(&ask);
    if (kept.status == LODE_OK) {
        ask.answer.text = ask.scribe.text;
        ask.answer.bytes = ask.scribe.bytes;
        *answer = ask.answer;
        ask.scribe.text = NULL; /* handed over */
    }
    lode_scribe_free(&ask.scribe);
    return lode_give_failure(&kept);
}

void lode_answer_free(lode_answer_t *answer)
{
    free(answer->text);
    answer->text = NULL;
}
