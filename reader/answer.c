/* SPDX-License-Identifier: Apache-2.0 */
/* A question of the listed documents: prefilled against them, answered token by token, and where the answer is from. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "reader/reader_inside.h"

/*
 * Sources are found by steps beside the answer's own, which write nothing and choose few tokens: those that matter
 * most. Each of an answer's first tokens asks, then one of four, and no more in the end.
 */
enum { SOURCE_TOKENS = 16, SOURCE_DENSE_STEPS = 8, SOURCE_EVERY = 4, SOURCE_STEPS = 40 };

typedef struct ask {
    lode_reader_h reader;
    const lode_asking_t *asking;
    lode_block_h block; /* of question and answer */
    lode_view_h view, sources_view;
    bool holds;       /* the view holds on to the question, see hold_question() */
    int64_t position; /* in the view, of the question's first token */
    uint32_t done;    /* tokens of question and answer that the model has seen */
    lode_tokens_t question;
    float *logits;
    lode_scribe_t scribe;
    uint64_t random;
    uint64_t *begins; /* (piece_count) of the pieces' tokens, in the view's order */
    uint64_t *votes;  /* (document_count) */
    uint64_t vote_count;
    float *out; /* of a step for sources */
    bool sums, looks;
    lode_answer_t answer;
} ask_t;

/* -------------------------------------------------------------------- sources */

static uint32_t piece_of(const ask_t *ask, uint64_t token)
{
    uint32_t low = 0, high = ask->reader->piece_count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (ask->begins[middle] <= token)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* Tokens of the template are looked at by every question: they tell nothing. */
static void vote(ask_t *ask, uint64_t token)
{
    const struct lode_reader *reader = ask->reader;
    uint32_t i = piece_of(ask, token);
    const lode_reader_piece_t *piece = &reader->pieces[i];
    uint64_t at = token - ask->begins[i];
    if (at < reader->template_tokens[0] || at + reader->template_tokens[1] >= piece->tokens)
        return;
    ask->votes[piece->document]++;
    ask->vote_count++;
}

/* The last token's queries once more, of the documents alone and with a small budget. */
static lode_status_t look_for_sources(ask_t *ask, uint32_t layer, const lode_stream_t *stream)
{
    const lode_geometry_t *g = &lode_model_info(ask->reader->model)->geometry;
    uint64_t begin = lode_now_ns();
    lode_stream_t last = {.view = ask->sources_view,
                          .tokens = 1,
                          .position = ask->position + ask->done + stream->tokens - 1,
                          .dtype = stream->dtype,
                          .q = (const float *)stream->q + (size_t)(stream->tokens - 1) * g->query_heads * g->head_dim,
                          .out = ask->out};
    LODE_TRY(lode_step(ask->reader->cluster, layer, &last, 1, NULL));
    for (uint32_t head = 0; head < g->kv_heads; head++) {
        const uint32_t *tokens;
        uint64_t count;
        LODE_TRY(lode_step_selection(ask->reader->cluster, 0, 0, head, &tokens, &count));
        for (uint64_t i = 0; i < count; i++)
            vote(ask, tokens ? tokens[i] : i);
    }
    ask->answer.sources_ns += lode_now_ns() - begin;
    return LODE_OK;
}

/* Documents by their votes, most first; of equals the first. */
static void rank_sources(ask_t *ask)
{
    lode_answer_t *answer = &ask->answer;
    while (answer->source_count < LODE_SOURCES_MAX && ask->vote_count) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < ask->reader->document_count; i++)
            if (ask->votes[i] > ask->votes[best])
                best = i;
        if (!ask->votes[best])
            return;
        answer->sources[answer->source_count++] =
            (lode_source_t){best, (double)ask->votes[best] / (double)ask->vote_count};
        ask->votes[best] = 0;
    }
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
    return ask->looks ? look_for_sources(ask, layer, streams) : LODE_OK;
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
    const struct lode_reader *reader = ask->reader;
    char name[LODE_NAME_MAX + 1];
    uint64_t random[2];
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return lode_fail(LODE_ERR_IO, "the operating system gave no random bytes for a block's name");
    snprintf(name, sizeof name, "question:%016" PRIx64 "%016" PRIx64, random[0], random[1]);
    lode_block_params_t params = {.name = name,
                                  .format = reader->format,
                                  .replicas = reader->replicas,
                                  .landmark = reader->landmark,
                                  .expected_tokens = expected};
    return lode_block_create(reader->cluster, &params, &ask->block);
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
    uint32_t first = question_first, own = question_first ? 0 : reader->piece_count;
    int64_t end = 0;
    for (uint32_t i = 0; i < reader->piece_count; i++) {
        const lode_reader_piece_t *piece = &reader->pieces[i];
        layout->blocks[first + i] = piece->block;
        layout->offsets[first + i] =
            reader->manner.shared_positions ? (int64_t)reader->manner.range - piece->tokens : end;
        ask->begins[i] = (uint64_t)end;
        end += piece->tokens;
    }
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
                                 .count = reader->piece_count + 1,
                                 .write_block = question_first ? 0 : (int32_t)reader->piece_count,
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
    uint32_t count = ask->reader->piece_count + 1;
    layout_t layout = {malloc(count * sizeof *layout.blocks), malloc(count * sizeof *layout.offsets)};
    lode_status_t status = layout.blocks && layout.offsets
                               ? create_view(ask, &layout, question_first, policy, view)
                               : lode_fail(LODE_ERR_NO_MEMORY, "no memory for a view of %u blocks", count);
    free(layout.blocks);
    free(layout.offsets);
    return status;
}

static lode_status_t create_views(ask_t *ask)
{
    lode_policy_t sources = {.select = LODE_SELECT_LANDMARK,
                             .merge = ask->asking->policy.merge,
                             .budget_tokens = SOURCE_TOKENS,
                             .lost = LODE_LOST_SKIP};
    LODE_TRY(make_view(ask, false, &ask->asking->policy, &ask->view));
    if (!ask->asking->sources || ask->asking->attention)
        return LODE_OK;
    return make_view(ask, false, &sources, &ask->sources_view);
}

/*
 * Question and answer are attended to in full while they are in their block's tail. Once a page of them has left it,
 * their tokens are chosen among the documents' by landmarks. The question's are kept all the same: as the first tokens
 * of a view, or, where positions do not allow that, as the last ones.
 */
static lode_status_t hold_question(ask_t *ask)
{
    lode_view_h view;
    lode_policy_t policy = ask->asking->policy;
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
    if (!ask->asking->most_tokens)
        return lode_fail(LODE_ERR_INVALID, "an answer of no tokens at all was asked for");
    if (!answer_room(ask))
        return lode_fail(LODE_ERR_INVALID,
                         "documents and question together have %" PRIu64 " tokens, and the model's context is %u: ask "
                         "of fewer, or let them share positions (reader.json)",
                         (uint64_t)ask->position + ask->question.count, info->context);
    ask->logits = malloc(info->vocabulary * sizeof *ask->logits);
    ask->begins = malloc(reader->piece_count * sizeof *ask->begins);
    ask->votes = calloc(reader->document_count, sizeof *ask->votes);
    ask->out = malloc((size_t)info->geometry.query_heads * info->geometry.head_dim * sizeof *ask->out);
    return ask->logits && ask->begins && ask->votes && ask->out ? LODE_OK
                                                                : lode_fail(LODE_ERR_NO_MEMORY, "no memory to answer");
}

static lode_status_t prepare(ask_t *ask, const char *question, size_t bytes)
{
    const struct lode_reader *reader = ask->reader;
    if (!reader->piece_count)
        return lode_fail(LODE_ERR_INVALID, "no documents are listed to ask a question of");
    LODE_TRY(lode_manner_question(&reader->manner, reader->tokenizer, question, bytes, &ask->question));
    ask->position = reader->manner.shared_positions ? (int64_t)reader->manner.range : (int64_t)reader->listed_tokens;
    LODE_TRY(take_room(ask));
    LODE_TRY(create_block(ask, ask->question.count + answer_room(ask)));
    return create_views(ask);
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
static bool is_looked(const ask_t *ask, uint32_t i)
{
    return ask->sources_view && (i < SOURCE_DENSE_STEPS || i % SOURCE_EVERY == 0) &&
           i < SOURCE_DENSE_STEPS + SOURCE_STEPS * SOURCE_EVERY;
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
    ask->answer.question_tokens = (uint32_t)ask->question.count;
    ask->answer.visible_tokens = ask->reader->listed_tokens;
    ask->looks = is_looked(ask, 0);
    LODE_TRY(run(ask, ask->question.ids, (uint32_t)ask->question.count));
    ask->answer.question_ns = lode_now_ns() - begin - ask->answer.sources_ns;
    LODE_TRY(decode(ask));
    rank_sources(ask);
    return LODE_OK;
}

static void tidy(ask_t *ask)
{
    if (ask->sources_view)
        lode_view_destroy(&ask->sources_view);
    if (ask->view)
        lode_view_destroy(&ask->view);
    if (ask->block && lode_block_drop(&ask->block) != LODE_OK && ask->block)
        lode_block_close(&ask->block);
    lode_tokens_free(&ask->question);
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
