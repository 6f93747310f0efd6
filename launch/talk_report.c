/* SPDX-License-Identifier: Apache-2.0 */
/* What a talk took: for people, and as JSON. */
#include <inttypes.h>
#include <string.h>

#include "launch/client.h"
#include "launch/talk.h"

static const char *const state_names[] = {
    [LODE_TALK_LISTENING] = "listening", [LODE_TALK_THINKING] = "thinking", [LODE_TALK_BOTH] = "both",
    [LODE_TALK_WRITING] = "writing",     [LODE_TALK_ENDED] = "ended",
};

/* --------------------------------------------------------------------- account */

void lode_talk_account_begin(lode_talk_account_t *account)
{
    *account = (lode_talk_account_t){
        .begin_ns = lode_now_ns(),
        .state = LODE_TALK_LISTENING,
        .heard = json_array(),
        .states = json_array(),
        .probes = json_array(),
    };
}

void lode_talk_account_heard(lode_talk_account_t *account, const char *text, bool more)
{
    size_t bytes = strlen(text);
    account->heard_end = bytes ? text[bytes - 1] : account->heard_end;
    json_array_append_new(account->heard,
                          json_pack("{s:i s:s s:b}", "steps", (int)account->steps, "text", text, "more", (int)more));
}

void lode_talk_account_step(lode_talk_account_t *account, const lode_talk_step_t *step)
{
    bool passed = false;
    for (int i = 0; i < LODE_TALK_STREAMS; i++) {
        account->tokens[i] += step->tokens[i];
        account->said[i] += step->said[i];
        passed = passed || step->tokens[i];
    }
    account->steps += passed;
    account->records_wanted += step->records_wanted;
    account->records_fetched += step->records_fetched;
    account->bytes_fetched += step->bytes_fetched;
    account->attend_ns += step->attend_ns;
    account->step_ns += step->step_ns;
    if (step->said[LODE_TALK_WRITER] && !account->first_step) {
        account->first_step = account->steps;
        account->first_ns = lode_now_ns() - account->begin_ns;
    }
    if (step->probed)
        json_array_append_new(
            account->probes, json_pack("{s:i s:f s:f}", "step", (int)account->steps, "yes", step->yes, "no", step->no));
    if (step->state != account->state)
        json_array_append_new(account->states,
                              json_pack("{s:i s:s}", "step", (int)account->steps, "state", state_names[step->state]));
    account->state = step->state;
}

void lode_talk_account_free(lode_talk_account_t *account)
{
    json_decref(account->heard);
    json_decref(account->states);
    json_decref(account->probes);
    *account = (lode_talk_account_t){0};
}

/* ---------------------------------------------------------------------- report */

static double per_step(const lode_talk_account_t *account, uint64_t sum)
{
    return account->steps ? (double)sum / account->steps : 0;
}

void lode_talk_report(const lode_talk_account_t *account, const char *end, char *text, size_t room)
{
    char first[LODE_TEXT_MAX], step[LODE_TEXT_MAX], fetched[LODE_TEXT_MAX], word[128] = "no word";
    if (account->first_step)
        snprintf(word, sizeof word, "first word by step %u, after %s", account->first_step,
                 lode_text_time((double)account->first_ns, first));
    snprintf(text, room,
             "  %s; %" PRIu64 " tokens thought and %" PRIu64 " said in %u steps of %s, fetching %s a step%s", word,
             account->said[LODE_TALK_THINKER], account->said[LODE_TALK_WRITER], account->steps,
             lode_text_time(per_step(account, account->step_ns), step),
             lode_text_bytes(per_step(account, account->bytes_fetched), fetched), end);
}

static json_t *stream_text(lode_talker_t *talker, lode_talk_stream_t stream)
{
    size_t bytes = 0;
    const char *text = talker->talk ? lode_talk_text(talker->talk, stream, &bytes) : NULL;
    return json_stringn(text ? text : "", bytes);
}

static json_t *tokens_json(const uint64_t *tokens)
{
    return json_pack("{s:I s:I s:I s:I}", "input", (json_int_t)tokens[LODE_TALK_INPUT], "thoughts",
                     (json_int_t)tokens[LODE_TALK_THINKER], "words", (json_int_t)tokens[LODE_TALK_WRITER], "control",
                     (json_int_t)tokens[LODE_TALK_CONTROL]);
}

static json_t *first_json(const lode_talk_account_t *account)
{
    return account->first_step
               ? json_pack("{s:i s:f}", "step", (int)account->first_step, "ms", (double)account->first_ns * 1e-6)
               : json_null();
}

json_t *lode_talk_json(lode_talker_t *talker, const char *end, const char *error)
{
    const lode_talk_account_t *a = &talker->account;
    json_t *object = json_pack(
        "{s:s s:O s:o s:o s:o s:o s:i s:I s:I s:o s:f s:f s:f s:f s:f s:O s:O}", "end", end, "heard", a->heard, "input",
        stream_text(talker, LODE_TALK_INPUT), "thoughts", stream_text(talker, LODE_TALK_THINKER), "words",
        stream_text(talker, LODE_TALK_WRITER), "first_word", first_json(a), "steps", (int)a->steps, "thought_tokens",
        (json_int_t)a->said[LODE_TALK_THINKER], "word_tokens", (json_int_t)a->said[LODE_TALK_WRITER], "tokens",
        tokens_json(a->tokens), "ms_per_step", per_step(a, a->step_ns) * 1e-6, "attend_ms_per_step",
        per_step(a, a->attend_ns) * 1e-6, "records_wanted_per_step", per_step(a, a->records_wanted),
        "records_fetched_per_step", per_step(a, a->records_fetched), "bytes_fetched_per_step",
        per_step(a, a->bytes_fetched), "states", a->states, "probes", a->probes);
    if (object && error)
        json_object_set_new(object, "error", json_string(error));
    return object;
}
