/* SPDX-License-Identifier: Apache-2.0 */
/* Parts of a tokenizer.json from a stranger, put into a small file that is fine, and a text through what they make. */
#include <stdlib.h>

#include "tokenizer_parts.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

enum { TEXT_MAX = 256 }; /* a pattern may take long for each byte */

static json_t *changed_file(json_t *parts)
{
    json_t *file = fuzz_tokenizer_file(), *model = json_object_get(parts, "model");
    if (json_is_object(model)) {
        json_object_update(json_object_get(file, "model"), model);
        json_object_del(parts, "model");
    }
    json_object_update(file, parts);
    return file;
}

/* Tokens say the text again if nothing composes or removes some of it. */
static void check_tokens(lode_tokenizer_h tokenizer, const char *text, size_t bytes, const lode_tokens_t *tokens)
{
    size_t at = 0, part_bytes;
    bool same = tokenizer->composes == false;
    for (uint32_t i = 0; i < tokenizer->splitter.count; i++)
        same = same && tokenizer->splitter.stages[i].removes == false;
    for (size_t i = 0; i < tokens->count; i++) {
        const char *part = lode_tokenizer_bytes(tokenizer, tokens->ids[i], &part_bytes);
        if (!part || (same && (at + part_bytes > bytes || memcmp(text + at, part, part_bytes) != 0)))
            abort();
        at += part_bytes;
    }
    if (same && at != bytes)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    const char *text;
    size_t text_bytes;
    json_t *parts = fuzz_file_and_text(data, bytes, &text, &text_bytes);
    lode_tokenizer_h tokenizer = NULL;
    json_t *file = changed_file(parts);
    if (lode_tokenizer_read(file, &tokenizer) == LODE_OK) {
        text_bytes = text_bytes < TEXT_MAX ? text_bytes : TEXT_MAX;
        lode_tokens_t tokens = {0};
        for (int special = 0; special < 2; special++) {
            tokens.count = 0;
            if (lode_tokenizer_encode(tokenizer, text, text_bytes, special, &tokens) == LODE_OK)
                check_tokens(tokenizer, text, text_bytes, &tokens);
            else if (tokens.count)
                abort();
        }
        lode_tokens_free(&tokens);
    }
    lode_tokenizer_close(&tokenizer);
    json_decref(file);
    json_decref(parts);
    return 0;
}
