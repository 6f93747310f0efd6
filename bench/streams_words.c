/* SPDX-License-Identifier: Apache-2.0 */
/* Names of modes and arrivals, and requests cut in two. */
#include <inttypes.h>
#include <string.h>

#include "bench/options.h"
#include "bench/streams.h"

/* -------------------------------------------------------------------- names */

static const char *const mode_names[LODE_TALK_MODES] = {
    [LODE_TALK_AT_ONCE] = "at-once", [LODE_TALK_THINK_FIRST] = "think-first", [LODE_TALK_NO_THOUGHT] = "no-thought"};

const char *lode_talk_mode_name(lode_talk_mode_t mode)
{
    return mode_names[mode];
}

static lode_status_t find_mode(const char *word, lode_talk_mode_t *mode)
{
    static const lode_option_t names[] = {{"at-once"}, {"think-first"}, {"no-thought"}, {NULL}};
    for (uint32_t i = 0; i < LODE_TALK_MODES; i++)
        if (strcmp(word, mode_names[i]) == 0) {
            *mode = (lode_talk_mode_t)i;
            return LODE_OK;
        }
    const char *nearest = lode_options_nearest(names, word);
    if (nearest)
        return lode_fail(LODE_ERR_INVALID, "--modes: no mode is called \"%s\"; did you mean \"%s\"?", word, nearest);
    return lode_fail(LODE_ERR_INVALID, "--modes: no mode is called \"%s\"; there are at-once, think-first, no-thought",
                     word);
}

lode_status_t lode_talk_modes_parse(const char *text, lode_talk_mode_t modes[LODE_TALK_MODES], uint32_t *count)
{
    uint32_t n = 0;
    for (const char *at = text; at; n++) {
        char word[32];
        lode_talk_mode_t mode = LODE_TALK_AT_ONCE;
        at = lode_bench_next_word(at, word, sizeof word);
        LODE_TRY(find_mode(word, &mode));
        for (uint32_t i = 0; i < n; i++)
            if (modes[i] == mode)
                return lode_fail(LODE_ERR_INVALID, "--modes: \"%s\" is named twice", word);
        modes[n] = mode;
    }
    *count = n;
    return LODE_OK;
}

static lode_status_t read_arrival(const char *word, lode_arrival_t *arrival)
{
    enum { STEPS_MAX = 1 << 16 };
    uint64_t steps;
    *arrival = (lode_arrival_t){.kind = LODE_ARRIVAL_NEVER};
    if (strcmp(word, "half") == 0) {
        arrival->kind = LODE_ARRIVAL_HALF;
    } else if (strcmp(word, "never") != 0) {
        if (lode_parse_count(word, &steps) != LODE_OK || steps > STEPS_MAX)
            return lode_fail(LODE_ERR_INVALID,
                             "--arrivals: \"%s\" is neither never nor half nor a whole number of steps up to %d", word,
                             STEPS_MAX);
        arrival->kind = LODE_ARRIVAL_AFTER;
        arrival->steps = (uint32_t)steps;
        snprintf(arrival->name, sizeof arrival->name, "%" PRIu64, steps);
        return LODE_OK;
    }
    snprintf(arrival->name, sizeof arrival->name, "%.8s", word);
    return LODE_OK;
}

lode_status_t lode_arrivals_parse(const char *text, lode_arrival_t arrivals[LODE_ARRIVALS_MAX], uint32_t *count)
{
    uint32_t n = 0;
    for (const char *at = text; at; n++) {
        char word[32];
        at = lode_bench_next_word(at, word, sizeof word);
        if (n == LODE_ARRIVALS_MAX)
            return lode_fail(LODE_ERR_INVALID, "--arrivals: more than %d", LODE_ARRIVALS_MAX);
        LODE_TRY(read_arrival(word, &arrivals[n]));
        for (uint32_t i = 0; i < n; i++)
            if (strcmp(arrivals[i].name, arrivals[n].name) == 0)
                return lode_fail(LODE_ERR_INVALID, "--arrivals: \"%s\" is named twice", word);
    }
    *count = n;
    return LODE_OK;
}

/* ------------------------------------------------------------------- halves */

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c & 0x80);
}

/* Shorter words with a point are abbreviations more often than ends: "St. Gallen". */
static bool ends_sentence(const char *text, size_t bytes, size_t at)
{
    enum { WORD = 4 };
    bool mark = text[at] == '.' || text[at] == '!' || text[at] == '?';
    if (!mark || at < WORD || at + 1 >= bytes || (text[at + 1] != ' ' && text[at + 1] != '\n'))
        return false;
    for (size_t i = 1; i <= WORD; i++)
        if (!is_letter(text[at - i]))
            return false;
    return true;
}

lode_status_t lode_request_halves(const char *request, size_t bytes, size_t *second)
{
    for (size_t i = 0; i < bytes; i++)
        if (ends_sentence(request, bytes, i)) {
            *second = i + 1;
            return LODE_OK;
        }
    return lode_fail(LODE_ERR_FORMAT, "the request has no second sentence, so it cannot be heard in two halves");
}
