/* SPDX-License-Identifier: Apache-2.0 */
/* A command line from a stranger, a word a line; every word is also tried as each kind of value. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "landmarks/landmarks.h"

enum { WORDS = 32 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void parse_word(const char *word)
{
    uint64_t number;
    double share;
    lode_format_t format;
    lode_landmark_spec_t spec;
    lode_parse_count(word, &number);
    lode_parse_bytes(word, &number);
    if (lode_parse_share(word, &share) == LODE_OK && !(isfinite(share) && share > 0 && share <= 1))
        abort();
    lode_format_parse(word, &format);
    lode_landmark_parse(word, &spec);
    lode_options_nearest(lode_library_options, word);
}

/* A value that was accepted must be accepted again, or a typed read would have nothing to return. */
static void check_values(const lode_options_t *options)
{
    lode_options_t again;
    if (lode_options_create(lode_library_options, &again) != LODE_OK)
        abort();
    for (size_t i = 0; options->table[i].name; i++)
        if (options->values[i] && lode_options_set(&again, options->table[i].name, options->values[i]) != LODE_OK)
            abort();
    lode_options_destroy(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    char *text = malloc(bytes + 1), *words[WORDS], *next = text;
    int count = 0, rest = 0;
    if (!text)
        return 0;
    memcpy(text, data, bytes);
    text[bytes] = 0;
    for (char *word; count < WORDS && (word = strsep(&next, "\n"));)
        words[count++] = word;
    for (int i = 0; i < count; i++)
        parse_word(words[i]);
    lode_options_t options;
    if (lode_options_create(lode_library_options, &options) != LODE_OK)
        abort();
    if (lode_options_parse(&options, count, words, &rest) == LODE_OK && (rest < 0 || rest > count))
        abort();
    check_values(&options);
    lode_options_destroy(&options);
    free(text);
    return 0;
}
