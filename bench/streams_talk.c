/* SPDX-License-Identifier: Apache-2.0 */
/* One sample: a talk about it in every way that was asked for, noted down and scored. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/streams.h"

typedef struct session {
    lode_streams_bench_t *b;
    lode_streams_row_t *row;
    uint64_t sample;
    const char *request;
    size_t bytes, second; /* where its second half begins */
    lode_talking_t talking;
    lode_talk_h talk;
    lode_track_t track;
} session_t;

/* ------------------------------------------------------------------ talking */

static lode_status_t begin_talk(session_t *s)
{
    const lode_streams_bench_t *b = s->b;
    s->talking = (lode_talking_t){.mode = s->row->mode,
                                  .policy = lode_reading_policy(s->row->reading, s->row->budget, b->sinks, b->window),
                                  .sampling = {.top_p = 1},
                                  .most_thoughts = b->most_thoughts,
                                  .most_words = b->most_words,
                                  .probe_every = b->probe_every,
                                  .hear_at_once = b->hear_at_once};
    return lode_talk_begin(b->stores.readers[s->row->reading->store], &b->prompts, &s->talking, &s->talk);
}

static lode_status_t hear_first(session_t *s)
{
    switch (s->row->arrival->kind) {
    case LODE_ARRIVAL_NEVER:
        return lode_talk_hear(s->talk, s->request, s->bytes, false);
    case LODE_ARRIVAL_HALF:
        return lode_talk_hear(s->talk, s->request, s->second, false);
    case LODE_ARRIVAL_AFTER:
        break;
    }
    return lode_talk_hear(s->talk, s->request, s->second, true);
}

static bool is_due(const session_t *s)
{
    return s->row->arrival->kind == LODE_ARRIVAL_AFTER && s->track.count == s->row->arrival->steps;
}

/* A talk thinks or speaks in every step, but while it listens: what is longer than this would not end at all. */
static uint64_t most_steps(const session_t *s)
{
    return 2 * ((uint64_t)s->b->most_thoughts + s->b->most_words) + s->row->arrival->steps + 64;
}

static lode_status_t hold_talk(session_t *s)
{
    lode_talk_step_t step = {0};
    LODE_TRY(hear_first(s));
    do {
        if (is_due(s))
            LODE_TRY(lode_talk_hear(s->talk, s->request + s->second, s->bytes - s->second, false));
        LODE_TRY(lode_talk_step(s->talk, &step));
        LODE_TRY(lode_track_add(&s->track, &step));
        if (s->track.count > most_steps(s))
            return lode_fail(LODE_ERR_INTERNAL, "the talk has not ended after %u steps", s->track.count);
    } while (step.state != LODE_TALK_ENDED);
    return LODE_OK;
}

/* ------------------------------------------------------------------ scoring */

/* What the words' block holds: what it was made to begin with, and the words. */
static char *text_of(const session_t *s, size_t *bytes)
{
    const lode_prompts_t *p = &s->b->prompts;
    const char *begin = s->row->mode == LODE_TALK_NO_THOUGHT ? p->writer_alone : p->writer_begin;
    size_t words_bytes, begin_bytes = strlen(begin);
    const char *words = lode_talk_text(s->talk, LODE_TALK_WRITER, &words_bytes);
    char *text = malloc(begin_bytes + words_bytes + 1);
    if (!text)
        return NULL;
    memcpy(text, begin, begin_bytes);
    memcpy(text + begin_bytes, words, words_bytes);
    *bytes = begin_bytes + words_bytes;
    text[*bytes] = 0;
    return text;
}

static lode_status_t score_text(session_t *s, const char *text, size_t bytes)
{
    lode_text2json_score_t score;
    LODE_TRY(lode_text2json_score(s->b->lines[s->sample].gold, text, bytes, &score));
    s->row->values[LODE_STREAMS_SCORE][s->sample] = score.left_out ? NAN : 100 * score.score;
    s->row->left_out += score.left_out;
    s->row->matched += score.matched;
    s->row->gold += score.gold;
    return LODE_OK;
}

static lode_status_t write_said(const session_t *s, const char *text, size_t bytes)
{
    const lode_streams_row_t *row = s->row;
    size_t thoughts_bytes, words_bytes;
    const char *thoughts = lode_talk_text(s->talk, LODE_TALK_THINKER, &thoughts_bytes);
    const char *words = lode_talk_text(s->talk, LODE_TALK_WRITER, &words_bytes);
    if (!s->b->said)
        return LODE_OK;
    json_t *line =
        json_pack("{s:I s:s s:s s:s s:f s:s% s:s% s:s% s:f}", "sample", (json_int_t)s->sample + 1, "mode",
                  lode_talk_mode_name(row->mode), "arrival", row->arrival->name, "policy", row->reading->name, "budget",
                  100 * row->budget, "thoughts", thoughts, thoughts_bytes, "words", words, words_bytes, "scored", text,
                  bytes, "steps", row->values[LODE_STREAMS_STEPS][s->sample]);
    if (line)
        json_object_set_new(line, "score", lode_job_number(row->values[LODE_STREAMS_SCORE][s->sample]));
    bool wrong = !line || json_dumpf(line, s->b->said, JSON_COMPACT) != 0 || fputc('\n', s->b->said) == EOF ||
                 fflush(s->b->said) != 0;
    json_decref(line);
    return wrong ? lode_fail(LODE_ERR_IO, "%s cannot be written: %s", lode_options_get(&s->b->options, "said"),
                             strerror(errno))
                 : LODE_OK;
}

static lode_status_t measure(session_t *s)
{
    double values[LODE_STREAMS_MEASURES];
    uint32_t dim = lode_model_info(lode_reader_model(s->b->stores.readers[0]))->geometry.head_dim;
    LODE_TRY(lode_track_measure(&s->track, s->b->step_ms, &s->b->speech, (double)lode_record_bytes(s->b->format, dim),
                                values));
    for (int m = LODE_STREAMS_SCORE + 1; m < LODE_STREAMS_MEASURES; m++)
        s->row->values[m][s->sample] = values[m];
    s->row->silent += values[LODE_STREAMS_WORDS] == 0;
    s->row->cut += values[LODE_STREAMS_WORDS] >= s->b->most_words;
    return LODE_OK;
}

static lode_status_t judge(session_t *s)
{
    size_t bytes = 0;
    LODE_TRY(measure(s));
    char *text = text_of(s, &bytes);
    lode_status_t status = text ? score_text(s, text, bytes) : lode_fail(LODE_ERR_NO_MEMORY, "no memory for an answer");
    if (status == LODE_OK)
        status = write_said(s, text, bytes);
    free(text);
    return status;
}

/* The first talk of all takes what only a first one takes: it is held, and forgotten. */
static lode_status_t talk_once(session_t *s, bool counts)
{
    LODE_TRY(begin_talk(s));
    lode_status_t status = hold_talk(s);
    if (status == LODE_OK && counts)
        status = judge(s);
    lode_talk_end(&s->talk);
    lode_track_free(&s->track);
    return status;
}

lode_status_t lode_streams_talks(lode_streams_bench_t *b, uint64_t sample, const lode_problem_t *problem,
                                 lode_progress_t *progress)
{
    session_t s = {.b = b, .sample = sample, .request = problem->request, .bytes = problem->request_bytes};
    LODE_TRY(lode_request_halves(s.request, s.bytes, &s.second));
    for (uint32_t i = 0; i < b->row_count; i++) {
        s.row = &b->rows[i];
        lode_status_t status = sample == 0 && i == 0 ? talk_once(&s, false) : LODE_OK;
        if (status == LODE_OK)
            status = talk_once(&s, true);
        if (status != LODE_OK)
            return lode_fail_within(status, "sample %" PRIu64 ", %s, second half %s, policy %s: ", sample + 1,
                                    lode_talk_mode_name(s.row->mode), s.row->arrival->name, s.row->reading->name);
        lode_progress_at(progress, sample * b->row_count + i + 1);
    }
    return LODE_OK;
}
