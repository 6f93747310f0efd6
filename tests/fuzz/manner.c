/* SPDX-License-Identifier: Apache-2.0 */
/* A reader.json from a stranger, a document cut by what it says, and the same bytes as an answer; or a talk.json, and
 * the bytes as thoughts. */
#include <stdlib.h>

#include "tokenizer_parts.h"
#include "reader/manner_inside.h"
#include "reader/talk_inside.h"
#include "reader/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void cut(const lode_manner_t *manner, lode_tokenizer_h tokenizer, const char *text, size_t bytes)
{
    lode_tokens_t tokens = {0};
    size_t *ends = NULL, pieces = 0, before = 0;
    if (lode_manner_document(manner, tokenizer, text, bytes, &tokens, &ends, &pieces) == LODE_OK) {
        for (size_t i = 0; i < pieces; before = ends[i++])
            if (ends[i] < before || ends[i] - before > manner->range)
                abort();
        if (pieces == 0 || before != tokens.count)
            abort();
    }
    free(ends);
    if (lode_manner_question(manner, tokenizer, text, bytes, &tokens) != LODE_OK && tokens.count != before)
        abort();
    lode_tokens_free(&tokens);
}

static void write_down(const lode_manner_t *manner, const char *text, size_t bytes)
{
    lode_scribe_t scribe = {.manner = manner};
    for (size_t at = 0; at < bytes; at += 3)
        if (lode_scribe_write(&scribe, text + at, bytes - at < 3 ? bytes - at : 3) != LODE_OK)
            abort();
    if (lode_scribe_finish(&scribe) != LODE_OK || lode_utf8_valid(scribe.text, scribe.bytes) != scribe.bytes)
        abort();
    bool whole = lode_utf8_valid(text, bytes) == bytes; /* else what is marked may look like a stop */
    for (uint32_t i = 0; i < manner->stop_count && whole; i++)
        if (memmem(scribe.text, scribe.bytes, manner->stops[i], strlen(manner->stops[i])))
            abort();
    lode_scribe_free(&scribe);
}

static void think(const lode_prompts_t *prompts, const char *text, size_t bytes)
{
    lode_talk_tail_t tail = {0};
    for (size_t at = 0, width; at < bytes; at += width) {
        width = bytes - at < 1 + at % 5 ? bytes - at : 1 + at % 5;
        bool ends = lode_tail_ends(&tail, &prompts->thinker_paragraphs, text + at, width);
        if (ends && !prompts->thinker_paragraphs.count)
            abort();
        lode_tail_add(&tail, text + at, width);
        if (tail.count > sizeof tail.bytes || memcmp(tail.bytes + tail.count - width, text + at, width) != 0)
            abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static lode_tokenizer_h tokenizer;
    const char *text;
    size_t text_bytes;
    json_t *file = fuzz_file_and_text(data, bytes, &text, &text_bytes);
    lode_manner_t manner = {0};
    if (!tokenizer) {
        json_t *parts = fuzz_tokenizer_file();
        if (lode_tokenizer_read(parts, &tokenizer) != LODE_OK)
            abort();
        json_decref(parts);
    }
    if (file && lode_manner_read(file, "/nowhere", tokenizer, 4096, &manner) == LODE_OK) {
        cut(&manner, tokenizer, text, text_bytes);
        write_down(&manner, text, text_bytes);
    }
    lode_manner_free(&manner);
    lode_prompts_t prompts = {0};
    if (file && lode_prompts_read(file, tokenizer, &prompts) == LODE_OK) {
        if (!prompts.probe_every || !prompts.yes.count || !prompts.no.count || !prompts.writer_stops.count)
            abort();
        think(&prompts, text, text_bytes);
    }
    lode_prompts_free(&prompts);
    json_decref(file);
    return 0;
}
