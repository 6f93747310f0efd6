/* SPDX-License-Identifier: Apache-2.0 */
/** @file tokenizer_parts.h @brief A small tokenizer.json for fuzzers to change, and their inputs: a file, a 0, a text.
 */
#ifndef LODE_FUZZ_TOKENIZER_PARTS_H
#define LODE_FUZZ_TOKENIZER_PARTS_H

#include <string.h>

#include "reader/tokenizer_inside.h"

/** All bytes, "th", "the" and "it". */
static inline json_t *fuzz_tokenizer_file(void)
{
    json_t *vocab = json_object();
    for (int byte = 0, other = 256; byte < 256; byte++) {
        bool prints = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
        int c = prints ? byte : other++;
        char text[3] = {(char)c};
        if (c >= 0x80) {
            text[0] = (char)(0xc0 | c >> 6);
            text[1] = (char)(0x80 | (c & 0x3f));
        }
        json_object_set_new(vocab, text, json_integer(byte));
    }
    json_object_update_new(vocab, json_pack("{si si si}", "th", 256, "the", 257, "it", 258));
    json_t *file =
        json_loads("{\"pre_tokenizer\": {\"type\": \"ByteLevel\"}, \"model\": {\"merges\": [\"t h\", \"th e\", "
                   "\"i t\"]}, \"added_tokens\": [{\"id\": 299, \"content\": \"<|end|>\"}]}",
                   0, NULL);
    json_object_set_new(json_object_get(file, "model"), "vocab", vocab);
    return file;
}

/** What of the input is a file, NULL if it is no JSON; the rest is a text. */
static inline json_t *fuzz_file_and_text(const uint8_t *data, size_t bytes, const char **text, size_t *text_bytes)
{
    const uint8_t *end = bytes ? memchr(data, 0, bytes) : NULL;
    size_t length = end ? (size_t)(end - data) : bytes;
    *text = end ? (const char *)end + 1 : "";
    *text_bytes = end ? bytes - length - 1 : 0;
    return json_loadb((const char *)data, length, JSON_REJECT_DUPLICATES, NULL);
}

#endif
