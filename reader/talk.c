/* SPDX-License-Identifier: Apache-2.0 */
/* A talk's handle, and its step: one pass of the model with all that have something to say. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "reader/talk_inside.h"
#include "reader/tokenizer_inside.h"

/* --------------------------------------------------------------------- pass */

/* Passages that go through the model together. */
typedef struct pass {
    lode_passage_t passages[LODE_TALK_STREAMS];
    lode_talk_stream_t streams[LODE_TALK_STREAMS]; /* whose each is */
    uint32_t count;
    uint32_t writes[LODE_TALK_STREAMS]; /* tokens of each stream that go into its block */
    lode_tokens_t probe;
    bool probes; /* one of the passages is the control's */
} pass_t;

static lode_status_t attend(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count)
{
    struct lode_talk *talk = self;
    const lode_attention_t *other = talk->talking.attention;
    lode_stream_t own[LODE_TALK_STREAMS];
    lode_step_stats_t stats;
    for (uint32_t i = 0; i < count; i++) {
        own[i] = streams[i];
        if (talk->reads[i])
            own[i].k = own[i].v = NULL;
    }
    if (other)
        return other->attend(other->self, layer, own, count);
    LODE_TRY(lode_step(talk->reader->cluster, layer, own, count, &stats));
    talk->step->records_wanted += stats.records_wanted;
    talk->step->records_fetched += stats.records_fetched;
    talk->step->bytes_fetched += stats.bytes_fetched;
    talk->step->attend_ns += stats.step_ns;
    return LODE_OK;
}

/* Tokens that a stream's passage writes. */
static void add_passage(struct lode_talk *talk, pass_t *pass, lode_talk_stream_t stream, const uint32_t *tokens,
                        uint32_t count)
{
    talk->reads[pass->count] = false;
    pass->streams[pass->count] = stream;
    pass->writes[stream] = count;
    pass->passages[pass->count++] =
        (lode_passage_t){.tokens = tokens, .count = count, .logits = talk->logits[stream], .logit_rows = 1};
}

/* The last token in a stream's block is asked once more. @param[in] listener  whose logits they will be */
static void add_last(struct lode_talk *talk, pass_t *pass, lode_talk_stream_t stream, lode_talk_stream_t listener)
{
    talk->reads[pass->count] = true;
    pass->streams[pass->count] = stream;
    pass->passages[pass->count++] =
        (lode_passage_t){.tokens = &talk->last[stream], .count = 1, .logits = talk->logits[listener], .logit_rows = 1};
}

static void add_voice(struct lode_talk *talk, pass_t *pass, lode_talk_stream_t stream, bool again)
{
    const lode_tokens_t *pending = &talk->pending[stream];
    if (again) {
        lode_voice_go_on(talk, stream);
        add_last(talk, pass, stream, stream);
    } else {
        add_passage(talk, pass, stream, pending->ids, (uint32_t)pending->count);
    }
}

/*
 * Words that wait and the question behind them go into the draft. Where there is neither, the writer's last token tells
 * what it would say next. Without room in the context nobody is asked, and the answer is no.
 */
static lode_status_t add_probe(struct lode_talk *talk, pass_t *pass)
{
    uint64_t context = lode_model_info(talk->reader->model)->context;
    const lode_tokens_t *words = &talk->pending[LODE_TALK_WRITER], *question = &talk->question;
    if (lode_talk_used(talk) + question->count > context)
        return LODE_OK;
    pass->probes = true;
    if (words->count)
        LODE_TRY(lode_tokens_append(&pass->probe, words->ids, words->count));
    if (question->count)
        LODE_TRY(lode_tokens_append(&pass->probe, question->ids, question->count));
    if (pass->probe.count)
        add_passage(talk, pass, LODE_TALK_CONTROL, pass->probe.ids, (uint32_t)pass->probe.count);
    else
        add_last(talk, pass, LODE_TALK_WRITER, LODE_TALK_CONTROL);
    return LODE_OK;
}

/* Where each passage stands, once all have written: a stream's last token is the last of its view. */
static lode_status_t lay_out(struct lode_talk *talk, pass_t *pass)
{
    for (int s = LODE_TALK_INPUT; s < LODE_TALK_STREAMS; s++)
        if (pass->writes[s] && s != LODE_TALK_CONTROL) { /* pages leave before a block is written again */
            lode_talk_block_t *block = &talk->blocks[lode_talk_block_of((lode_talk_stream_t)s)];
            block->paged = block->tokens / LODE_PAGE_TOKENS * LODE_PAGE_TOKENS;
        }
    for (uint32_t i = 0; i < pass->count; i++) {
        lode_passage_t *passage = &pass->passages[i];
        uint32_t block = lode_talk_block_of(pass->streams[i]);
        int64_t end = lode_talk_end_of(talk, block), in_block = talk->blocks[block].tokens;
        for (int s = LODE_TALK_INPUT; s <= (int)pass->streams[i]; s++)
            end += pass->writes[s];
        in_block += talk->reads[i] ? 0 : passage->count;
        passage->position = end - passage->count;
        passage->block_position = in_block - passage->count;
        LODE_TRY(lode_talk_view(talk, block, &passage->view));
    }
    return LODE_OK;
}

/* What went through is in the blocks, but for the draft's, which is forgotten. */
static lode_status_t commit(struct lode_talk *talk, const pass_t *pass)
{
    for (uint32_t i = 0; i < pass->count; i++) {
        const lode_passage_t *passage = &pass->passages[i];
        lode_talk_stream_t stream = pass->streams[i];
        bool control = passage->logits && passage->logits == talk->logits[LODE_TALK_CONTROL];
        talk->step->tokens[control ? LODE_TALK_CONTROL : stream] += passage->count;
        if (talk->reads[i] || control)
            continue;
        talk->last[stream] = passage->tokens[passage->count - 1];
        talk->blocks[lode_talk_block_of(stream)].tokens += passage->count;
    }
    lode_block_h draft = talk->blocks[lode_talk_block_of(LODE_TALK_CONTROL)].block;
    return pass->writes[LODE_TALK_CONTROL] ? lode_block_crop(draft, 0) : LODE_OK;
}

static lode_status_t run_pass(struct lode_talk *talk, pass_t *pass)
{
    const lode_attention_t attention = {talk, attend};
    LODE_TRY(lay_out(talk, pass));
    LODE_TRY(lode_model_run(talk->reader->model, &attention, pass->passages, pass->count));
    return commit(talk, pass);
}

/* Tokens go into a block in passes of their own, all but the last @p keep. */
static lode_status_t run_alone(struct lode_talk *talk, lode_talk_stream_t stream, lode_tokens_t *tokens, size_t keep)
{
    while (tokens->count > keep) {
        pass_t pass = {0};
        size_t count = tokens->count - keep;
        count = count < LODE_READER_PASS_TOKENS ? count : LODE_READER_PASS_TOKENS;
        add_passage(talk, &pass, stream, tokens->ids, (uint32_t)count);
        pass.passages[0].logits = NULL;
        pass.passages[0].logit_rows = 0;
        LODE_TRY(run_pass(talk, &pass));
        tokens->count -= count;
        memmove(tokens->ids, tokens->ids + count, tokens->count * sizeof *tokens->ids);
    }
    return LODE_OK;
}

/* --------------------------------------------------------------------- step */

static void take_in_text(struct lode_talk *talk)
{
    memcpy(talk->heard + talk->heard_bytes, talk->waiting, talk->waiting_bytes + 1); /* hear() made room */
    talk->heard_bytes += talk->waiting_bytes;
    talk->waiting_bytes = 0;
}

static lode_status_t add_passages(struct lode_talk *talk, const lode_talk_plan_t *plan, pass_t *pass)
{
    lode_tokens_t *input = &talk->pending[LODE_TALK_INPUT];
    if (plan->input && input->count > LODE_READER_PASS_TOKENS)
        LODE_TRY(run_alone(talk, LODE_TALK_INPUT, input, LODE_READER_PASS_TOKENS));
    if (plan->input) {
        add_passage(talk, pass, LODE_TALK_INPUT, input->ids, (uint32_t)input->count);
        pass->passages[0].logits = NULL;
        pass->passages[0].logit_rows = 0;
    }
    if (plan->thinker)
        add_voice(talk, pass, LODE_TALK_THINKER, plan->thinker_again);
    if (plan->writer)
        add_voice(talk, pass, LODE_TALK_WRITER, plan->writer_again);
    return plan->control ? add_probe(talk, pass) : LODE_OK;
}

/* Draw what the pass's logits say. */
static lode_status_t learn(struct lode_talk *talk, const lode_talk_plan_t *plan, const pass_t *pass)
{
    uint32_t vocabulary = lode_model_info(talk->reader->model)->vocabulary;
    lode_talk_learnt_t learnt = {0};
    for (uint32_t i = 0; i < pass->count; i++)
        if (pass->writes[pass->streams[i]] && pass->streams[i] != LODE_TALK_CONTROL)
            talk->pending[pass->streams[i]].count = 0;
    if (plan->input)
        take_in_text(talk);
    if (plan->thinker)
        LODE_TRY(lode_voice_draw(talk, LODE_TALK_THINKER, &learnt.thinker));
    if (plan->writer)
        LODE_TRY(lode_voice_draw(talk, LODE_TALK_WRITER, &learnt.writer));
    if (pass->probes) {
        talk->step->probed = true;
        talk->step->yes = lode_answers_share(&talk->yes, talk->logits[LODE_TALK_CONTROL], vocabulary);
        talk->step->no = lode_answers_share(&talk->no, talk->logits[LODE_TALK_CONTROL], vocabulary);
        learnt.yes = talk->step->yes > talk->step->no;
    }
    lode_course_learn(&talk->course, plan, &learnt);
    if (talk->course.thinker == LODE_PART_DONE || talk->course.state == LODE_TALK_ENDED)
        LODE_TRY(lode_voice_finish(talk, LODE_TALK_THINKER));
    return talk->course.state == LODE_TALK_ENDED ? lode_voice_finish(talk, LODE_TALK_WRITER) : LODE_OK;
}

static lode_status_t do_step(struct lode_talk *talk)
{
    lode_talk_plan_t plan = lode_course_plan(&talk->course);
    pass_t pass = {0};
    if (lode_plan_is_empty(&plan))
        return LODE_OK;
    lode_status_t status = add_passages(talk, &plan, &pass);
    if (status == LODE_OK && pass.count)
        status = run_pass(talk, &pass);
    if (status == LODE_OK)
        status = learn(talk, &plan, &pass);
    lode_tokens_free(&pass.probe);
    return status;
}

lode_status_t lode_talk_step(lode_talk_h talk, lode_talk_step_t *step)
{
    lode_talk_step_t done = {0};
    uint64_t begin = lode_now_ns();
    if (talk->failed)
        return lode_fail(LODE_ERR_INVALID, "a step of this talk has failed: it can only be ended");
    talk->step = &done;
    lode_status_t status = do_step(talk);
    talk->step = NULL;
    if (status != LODE_OK) {
        talk->failed = true;
        return status;
    }
    done.state = talk->course.state;
    done.step_ns = lode_now_ns() - begin;
    *step = done;
    return LODE_OK;
}

/* --------------------------------------------------------------------- hear */

static lode_status_t encode_input(const struct lode_talk *talk, const char *text, size_t bytes, lode_tokens_t *tokens)
{
    const lode_prompts_t *prompts = talk->prompts;
    lode_tokenizer_h tokenizer = talk->reader->tokenizer;
    const char *before = talk->course.heard ? prompts->input_next : prompts->input_first;
    LODE_TRY(lode_tokenizer_encode(tokenizer, before, strlen(before), true, tokens));
    LODE_TRY(lode_tokenizer_encode(tokenizer, text, bytes, false, tokens));
    return lode_tokenizer_encode(tokenizer, prompts->input_end, strlen(prompts->input_end), true, tokens);
}

static lode_status_t check_input(const struct lode_talk *talk, const lode_tokens_t *tokens)
{
    uint64_t context = lode_model_info(talk->reader->model)->context;
    uint64_t kept = lode_talk_used(talk) + lode_talk_words_room(talk) + 1;
    uint64_t room = kept < context ? context - kept : 0;
    if (tokens->count <= room)
        return LODE_OK;
    return lode_fail(LODE_ERR_INVALID,
                     "an input of %zu tokens: the model's context of %" PRIu64 " has room for %" PRIu64 " more",
                     tokens->count, context, room);
}

/* Room for what waits, here and later among what was heard; so that a step need not ask for any. */
static lode_status_t keep_text(struct lode_talk *talk, const char *text, size_t bytes)
{
    size_t waiting = talk->waiting_bytes + bytes + 1;
    char *longer = realloc(talk->waiting, waiting);
    if (longer)
        talk->waiting = longer;
    char *heard = longer ? realloc(talk->heard, talk->heard_bytes + waiting) : NULL;
    if (!heard)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for an input of %zu bytes", bytes);
    talk->heard = heard;
    talk->heard[talk->heard_bytes] = 0;
    memcpy(talk->waiting + talk->waiting_bytes, text, bytes);
    talk->waiting[waiting - 1] = 0;
    return LODE_OK;
}

static lode_status_t take_input(struct lode_talk *talk, const char *text, size_t bytes)
{
    lode_tokens_t tokens = {0};
    lode_status_t status = encode_input(talk, text, bytes, &tokens);
    if (status == LODE_OK)
        status = check_input(talk, &tokens);
    if (status == LODE_OK)
        status = keep_text(talk, text, bytes);
    if (status == LODE_OK)
        status = lode_tokens_append(&talk->pending[LODE_TALK_INPUT], tokens.ids, tokens.count);
    lode_tokens_free(&tokens);
    if (status == LODE_OK)
        talk->waiting_bytes += bytes;
    return status;
}

lode_status_t lode_talk_hear(lode_talk_h talk, const char *text, size_t bytes, bool more)
{
    if (talk->failed)
        return lode_fail(LODE_ERR_INVALID, "a step of this talk has failed: it can only be ended");
    if (!lode_course_may_hear(&talk->course))
        return lode_fail(LODE_ERR_INVALID, talk->course.state == LODE_TALK_ENDED
                                               ? "the talk has ended: what comes now is for another one"
                                               : "no more input was promised, and the thoughts about it have ended");
    if (!bytes && !more && !talk->course.heard)
        return lode_fail(LODE_ERR_INVALID, "nothing was said to the model, and no more is to come");
    if (bytes)
        LODE_TRY(take_input(talk, text, bytes));
    lode_course_hear(&talk->course, bytes != 0, more);
    return LODE_OK;
}

/* -------------------------------------------------------------------- begin */

static lode_status_t check(const struct lode_talk *talk)
{
    const lode_talking_t *talking = &talk->talking;
    if (!talk->reader->cluster)
        return lode_fail(LODE_ERR_INVALID, "the reader has no cluster yet: attach one before a talk");
    if ((unsigned)talking->mode > LODE_TALK_NO_THOUGHT)
        return lode_fail(LODE_ERR_INVALID, "a talk of an unknown mode, %d", (int)talking->mode);
    const lode_policy_t *policy = &talking->policy;
    bool shares = policy->select != LODE_SELECT_DENSE && !policy->budget_tokens;
    if (shares && !(policy->budget_share > 0 && policy->budget_share <= 1))
        return lode_fail(LODE_ERR_INVALID, "a budget of %g %% of the documents: it must be over 0 and at most 100 %%",
                         policy->budget_share * 100);
    if (!talking->most_words || (!talking->most_thoughts && talking->mode != LODE_TALK_NO_THOUGHT))
        return lode_fail(LODE_ERR_INVALID, "a talk of no %s at all was asked for",
                         talking->most_words ? "thoughts" : "words");
    return LODE_OK;
}

/* Of a tokenizer with a token that begins every text, documents have it; without any it is the prompt's. */
static lode_status_t encode_prompt(const struct lode_talk *talk, lode_tokens_t *tokens)
{
    const char *prompt = talk->prompts->prompt;
    int64_t begin = talk->reader->piece_count ? -1 : lode_tokenizer_begin(talk->reader->tokenizer);
    size_t bytes = 0;
    const char *first = begin < 0 ? "" : lode_tokenizer_bytes(talk->reader->tokenizer, (uint32_t)begin, &bytes);
    if (begin >= 0 && strncmp(prompt, first, bytes) != 0)
        LODE_TRY(lode_tokens_append(tokens, &(uint32_t){(uint32_t)begin}, 1));
    return lode_tokenizer_encode(talk->reader->tokenizer, prompt, strlen(prompt), true, tokens);
}

static lode_status_t create_blocks(struct lode_talk *talk, bool prompt)
{
    static const char *const names[] = {"prompt", "input", "thoughts", "words", "probe"};
    lode_talk_mode_t mode = talk->talking.mode;
    for (uint32_t b = 0; b < LODE_TALK_BLOCKS; b++) {
        bool draft = b == lode_talk_block_of(LODE_TALK_CONTROL);
        bool thoughts = b == lode_talk_block_of(LODE_TALK_THINKER);
        if ((b == LODE_TALK_PROMPT && !prompt) || (thoughts && mode == LODE_TALK_NO_THOUGHT) ||
            (draft && mode != LODE_TALK_AT_ONCE))
            continue;
        LODE_TRY(lode_reader_own_block(talk->reader, names[b], 0, draft, &talk->blocks[b].block));
    }
    return LODE_OK;
}

static lode_status_t put_prompt(struct lode_talk *talk, lode_tokens_t *tokens)
{
    const lode_attention_t attention = {talk, attend};
    lode_talk_block_t *block = &talk->blocks[LODE_TALK_PROMPT];
    lode_talk_step_t nobody_asks = {0};
    talk->step = &nobody_asks;
    talk->reads[0] = false;
    while (block->tokens < tokens->count) {
        size_t left = tokens->count - block->tokens;
        block->paged = block->tokens / LODE_PAGE_TOKENS * LODE_PAGE_TOKENS;
        lode_passage_t passage = {.tokens = tokens->ids + block->tokens,
                                  .count = (uint32_t)(left < LODE_READER_PASS_TOKENS ? left : LODE_READER_PASS_TOKENS),
                                  .position = talk->base + block->tokens,
                                  .block_position = block->tokens};
        LODE_TRY(lode_talk_view(talk, LODE_TALK_PROMPT, &passage.view));
        LODE_TRY(lode_model_run(talk->reader->model, &attention, &passage, 1));
        block->tokens += passage.count;
    }
    talk->step = NULL;
    return LODE_OK;
}

static lode_status_t encode_texts(struct lode_talk *talk)
{
    const lode_prompts_t *prompts = talk->prompts;
    lode_tokenizer_h tokenizer = talk->reader->tokenizer;
    const char *question = prompts->control_question;
    LODE_TRY(lode_voice_begin(talk, LODE_TALK_WRITER));
    if (talk->talking.mode != LODE_TALK_NO_THOUGHT)
        LODE_TRY(lode_voice_begin(talk, LODE_TALK_THINKER));
    if (talk->talking.mode != LODE_TALK_AT_ONCE)
        return LODE_OK;
    LODE_TRY(lode_tokenizer_encode(tokenizer, question, strlen(question), true, &talk->question));
    LODE_TRY(lode_answers_of(tokenizer, &prompts->yes, &talk->yes));
    return lode_answers_of(tokenizer, &prompts->no, &talk->no);
}

static lode_status_t take_room(struct lode_talk *talk, size_t prompt_tokens)
{
    const lode_model_info_t *info = lode_model_info(talk->reader->model);
    if (lode_talk_used(talk) + prompt_tokens >= info->context)
        return lode_fail(LODE_ERR_INVALID,
                         "documents and prompts together have %" PRIu64 " tokens, and the model's context is %u: talk "
                         "about fewer, or let them share positions (reader.json)",
                         lode_talk_used(talk) + prompt_tokens, info->context);
    for (int s = LODE_TALK_THINKER; s < LODE_TALK_STREAMS; s++) {
        talk->logits[s] = malloc(info->vocabulary * sizeof *talk->logits[s]);
        if (!talk->logits[s])
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the logits of a talk");
    }
    return LODE_OK;
}

static lode_status_t begin(struct lode_talk *talk, lode_tokens_t *prompt)
{
    const lode_talking_t *talking = &talk->talking;
    LODE_TRY(check(talk));
    talk->base = lode_reader_position_after(talk->reader, talk->reader->listed_tokens);
    lode_course_begin(&talk->course, talking->mode, talking->hear_at_once,
                      talking->probe_every ? talking->probe_every : talk->prompts->probe_every);
    LODE_TRY(encode_prompt(talk, prompt));
    LODE_TRY(encode_texts(talk));
    LODE_TRY(take_room(talk, prompt->count));
    LODE_TRY(create_blocks(talk, prompt->count != 0));
    return put_prompt(talk, prompt);
}

lode_status_t lode_talk_begin(lode_reader_h reader, const lode_prompts_t *prompts, const lode_talking_t *talking,
                              lode_talk_h *out)
{
    lode_kept_failure_t kept;
    lode_tokens_t prompt = {0};
    lode_talk_h talk = calloc(1, sizeof *talk);
    if (!talk)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a talk");
    talk->reader = reader;
    talk->prompts = prompts;
    talk->talking = *talking;
    lode_keep_failure(begin(talk, &prompt), &kept);
    lode_tokens_free(&prompt);
    if (kept.status != LODE_OK)
        lode_talk_end(&talk);
    else
        *out = talk;
    return lode_give_failure(&kept);
}

/* ---------------------------------------------------------------- text, end */

const char *lode_talk_text(lode_talk_h talk, lode_talk_stream_t stream, size_t *bytes)
{
    bool input = stream == LODE_TALK_INPUT;
    const lode_scribe_t *scribe = &talk->voices[stream].scribe;
    const char *text = input ? talk->heard : scribe->text;
    *bytes = !text ? 0 : input ? talk->heard_bytes : scribe->bytes;
    return text ? text : "";
}

void lode_talk_end(lode_talk_h *handle)
{
    lode_talk_h talk = *handle;
    if (!talk)
        return;
    lode_talk_drop_blocks(talk);
    for (int s = 0; s < LODE_TALK_STREAMS; s++) {
        lode_tokens_free(&talk->pending[s]);
        lode_scribe_free(&talk->voices[s].scribe);
        free(talk->logits[s]);
    }
    lode_tokens_free(&talk->question);
    lode_tokens_free(&talk->yes);
    lode_tokens_free(&talk->no);
    free(talk->heard);
    free(talk->waiting);
    free(talk);
    *handle = NULL;
}
