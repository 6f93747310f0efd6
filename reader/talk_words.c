/* SPDX-License-Identifier: Apache-2.0 */
/* What thinker and writer say: tokens drawn, texts given out, ends of paragraphs seen; and what a probe answers. */
#include <math.h>
#include <string.h>

#include "reader/talk_inside.h"
#include "reader/tokenizer_inside.h"

/* --------------------------------------------------------------- paragraphs */

static bool begins(const char *bytes, size_t count, const char *text)
{
    size_t length = strlen(text);
    return length <= count && memcmp(bytes, text, length) == 0;
}

/* Whether (before, next) ends with the text and next has a part in that. */
static bool ends(const lode_talk_tail_t *tail, const char *next, size_t bytes, const char *text)
{
    size_t length = strlen(text);
    if (length <= bytes)
        return memcmp(next + bytes - length, text, length) == 0;
    size_t before = length - bytes;
    return before <= tail->count && memcmp(tail->bytes + tail->count - before, text, before) == 0 &&
           memcmp(next, text + before, bytes) == 0;
}

bool lode_tail_ends(const lode_talk_tail_t *tail, const lode_texts_t *texts, const char *next, size_t bytes)
{
    for (uint32_t i = 0; bytes && i < texts->count; i++)
        if (ends(tail, next, bytes, texts->texts[i]) || (tail->count && begins(next, bytes, texts->texts[i])))
            return true;
    return false;
}

void lode_tail_add(lode_talk_tail_t *tail, const char *next, size_t bytes)
{
    size_t room = sizeof tail->bytes;
    if (bytes > room) {
        next += bytes - room;
        bytes = room;
    }
    size_t kept = tail->count < room - bytes ? tail->count : room - bytes;
    memmove(tail->bytes, tail->bytes + tail->count - kept, kept);
    memcpy(tail->bytes + kept, next, bytes);
    tail->count = kept + bytes;
}

/* ------------------------------------------------------------------- voices */

lode_status_t lode_voice_begin(struct lode_talk *talk, lode_talk_stream_t stream)
{
    static const lode_texts_t none = {0};
    const lode_prompts_t *prompts = talk->prompts;
    bool thinker = stream == LODE_TALK_THINKER, alone = talk->talking.mode == LODE_TALK_NO_THOUGHT;
    const char *begin = thinker ? prompts->thinker_begin : alone ? prompts->writer_alone : prompts->writer_begin;
    const lode_texts_t *stops = thinker ? &prompts->thinker_stops : &prompts->writer_stops;
    lode_talk_voice_t *voice = &talk->voices[stream];
    voice->stops = (lode_manner_t){.stops = stops->texts, .stop_count = stops->count};
    voice->scribe.manner = &voice->stops;
    voice->paragraphs = thinker ? &prompts->thinker_paragraphs : &prompts->writer_paragraphs;
    voice->sentences = thinker ? &prompts->sentences : &none;
    voice->most = thinker ? talk->talking.most_thoughts : talk->talking.most_words;
    voice->random = thinker ? lode_mix(talk->talking.sampling.seed, 1) : talk->talking.sampling.seed;
    LODE_TRY(lode_tokenizer_encode(talk->reader->tokenizer, begin, strlen(begin), true, &talk->pending[stream]));
    return talk->pending[stream].count ? LODE_OK
                                       : lode_fail(LODE_ERR_INVALID, "the prompts' text that %s begin with is empty",
                                                   thinker ? "thoughts" : "words");
}

static void give_out(const struct lode_talk *talk, lode_talk_stream_t stream, size_t before)
{
    const lode_scribe_t *scribe = &talk->voices[stream].scribe;
    if (talk->talking.text && scribe->bytes > before)
        talk->talking.text(talk->talking.self, stream, scribe->text + before, scribe->bytes - before);
}

/* Whether a stream may draw one more token: its own limit, and the model's context. */
static bool has_room(const struct lode_talk *talk, lode_talk_stream_t stream)
{
    const lode_talk_voice_t *voice = &talk->voices[stream];
    uint64_t kept = stream == LODE_TALK_THINKER ? lode_talk_words_room(talk) : 0;
    return voice->said < voice->most &&
           lode_talk_used(talk) + 1 + kept <= lode_model_info(talk->reader->model)->context;
}

/* Thoughts must all be in their block, so theirs end one pass after the last; the last word need not be. */
static lode_talk_drawn_t at_limit(void)
{
    return (lode_talk_drawn_t){.stopped = true, .full = true, .paragraph = true, .sentence = true};
}

lode_status_t lode_voice_draw(struct lode_talk *talk, lode_talk_stream_t stream, lode_talk_drawn_t *drawn)
{
    lode_talk_voice_t *voice = &talk->voices[stream];
    size_t bytes = 0, before = voice->scribe.bytes;
    talk->pending[stream].count = 0;
    *drawn = at_limit();
    if (!has_room(talk, stream))
        return LODE_OK;
    uint32_t vocabulary = lode_model_info(talk->reader->model)->vocabulary;
    uint32_t token = lode_sample(&talk->talking.sampling, talk->logits[stream], vocabulary, &voice->random);
    const char *text = lode_tokenizer_bytes(talk->reader->tokenizer, token, &bytes);
    if (!text)
        text = "";
    LODE_TRY(lode_scribe_write(&voice->scribe, text, bytes));
    give_out(talk, stream, before);
    *drawn = (lode_talk_drawn_t){.stopped = true, .paragraph = true, .sentence = true};
    if (voice->scribe.stopped)
        return LODE_OK;
    *drawn = (lode_talk_drawn_t){.paragraph = lode_tail_ends(&voice->tail, voice->paragraphs, text, bytes),
                                 .sentence = lode_tail_ends(&voice->tail, voice->sentences, text, bytes)};
    lode_tail_add(&voice->tail, text, bytes);
    voice->said++;
    talk->step->said[stream]++;
    if (stream == LODE_TALK_WRITER && !has_room(talk, stream))
        *drawn = at_limit();
    return lode_tokens_append(&talk->pending[stream], &token, 1);
}

void lode_voice_go_on(struct lode_talk *talk, lode_talk_stream_t stream)
{
    talk->voices[stream].scribe.stopped = false;
}

lode_status_t lode_voice_finish(struct lode_talk *talk, lode_talk_stream_t stream)
{
    lode_talk_voice_t *voice = &talk->voices[stream];
    size_t before = voice->scribe.bytes;
    if (!voice->scribe.manner) /* this mode has none */
        return LODE_OK;
    LODE_TRY(lode_scribe_finish(&voice->scribe));
    give_out(talk, stream, before);
    return LODE_OK;
}

/* ------------------------------------------------------------------- probes */

static lode_status_t add_answer(lode_tokenizer_h tokenizer, const char *text, lode_talk_answers_t *answers)
{
    lode_tokens_t tokens = {0};
    lode_status_t status = lode_tokenizer_encode(tokenizer, text, strlen(text), true, &tokens);
    bool is_new = status == LODE_OK && tokens.count;
    for (size_t i = 0; is_new && i < answers->count; i++)
        is_new = answers->ids[i] != tokens.ids[0];
    if (is_new)
        status = lode_tokens_append(answers, tokens.ids, 1);
    lode_tokens_free(&tokens);
    return status;
}

lode_status_t lode_answers_of(lode_tokenizer_h tokenizer, const lode_texts_t *texts, lode_talk_answers_t *answers)
{
    for (uint32_t i = 0; i < texts->count; i++)
        LODE_TRY(add_answer(tokenizer, texts->texts[i], answers));
    return LODE_OK;
}

double lode_answers_share(const lode_talk_answers_t *answers, const float *logits, uint32_t vocabulary)
{
    double most = -INFINITY, whole = 0, sum = 0;
    for (uint32_t i = 0; i < vocabulary; i++)
        most = fmax(most, logits[i]);
    for (uint32_t i = 0; i < vocabulary; i++)
        whole += exp(logits[i] - most);
    for (size_t i = 0; i < answers->count; i++)
        sum += exp(logits[answers->ids[i]] - most);
    return sum / whole;
}
