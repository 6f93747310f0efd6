/* SPDX-License-Identifier: Apache-2.0 */
/* The score of one output: a list of objects against the list that was asked for (PAPERS.md's rules, one by one). */
#include <stdlib.h>
#include <string.h>

#include "bench/text2json_inside.h"

/* ------------------------------------------------------------------- text */

/* The next byte, with the typographic apostrophe read as the plain one. */
static char next_byte(const char **at, const char *end)
{
    static const char apostrophe[] = "\xe2\x80\x99";
    bool typographic = end - *at >= 3 && memcmp(*at, apostrophe, 3) == 0;
    char byte = typographic ? '\'' : **at;
    *at += typographic ? 3 : 1;
    return byte;
}

static bool same_strings(const json_t *a, const json_t *b)
{
    const char *x = json_string_value(a), *y = json_string_value(b);
    const char *x_end = x + json_string_length(a), *y_end = y + json_string_length(b);
    while (x < x_end && y < y_end)
        if (next_byte(&x, x_end) != next_byte(&y, y_end))
            return false;
    return x == x_end && y == y_end;
}

/* ------------------------------------------------------------------- gold */

static lode_status_t check_gold_item(const json_t *item, size_t which)
{
    const char *key;
    json_t *value;
    if (!json_is_object(item) || json_object_size(item) != 3 || !json_is_string(json_object_get(item, "name")))
        return lode_fail(LODE_ERR_INVALID, "item %zu of its answer is no object of three keys, one of them \"name\"",
                         which + 1);
    json_object_foreach((json_t *)(uintptr_t)item, key, value) if (!json_is_string(value)) return lode_fail(
        LODE_ERR_INVALID, "\"%.60s\" in item %zu of its answer is no string", key, which + 1);
    return LODE_OK;
}

lode_status_t lode_text2json_check_gold(const json_t *gold)
{
    if (!json_is_array(gold) || json_array_size(gold) == 0)
        return lode_fail(LODE_ERR_INVALID, "its answer is no list of at least one object");
    for (size_t i = 0; i < json_array_size(gold); i++)
        LODE_TRY(check_gold_item(json_array_get(gold, i), i));
    return LODE_OK;
}

/* The first item whose name was there before, or NULL. */
static const json_t *named_twice(const json_t *gold)
{
    for (size_t i = 0; i < json_array_size(gold); i++)
        for (size_t j = 0; j < i; j++) {
            const json_t *name = json_object_get(json_array_get(gold, i), "name");
            if (same_strings(name, json_object_get(json_array_get(gold, j), "name")))
                return name;
        }
    return NULL;
}

/* ----------------------------------------------------------------- output */

/* The largest whole number that jansson reads has 19 digits; a longer one is quoted, as it is compared as a string. */
static void quote_long_numbers(const char *text, size_t bytes, lode_prose_t *out)
{
    enum { LONGEST = 18 };
    bool string = false;
    for (size_t i = 0; i < bytes;) {
        size_t run = text[i] == '-', whole;
        while (i + run < bytes && text[i + run] >= '0' && text[i + run] <= '9')
            run++;
        char next = i + run < bytes ? text[i + run] : 0, first = text[i] == '-' && run > 1 ? text[i + 1] : text[i];
        whole = !string && run > LONGEST && first != '0' && !strchr(".eE", next);
        if (run == 0)
            run = text[i] == '\\' && string && i + 1 < bytes ? 2 : 1;
        string = string != (run == 1 && text[i] == '"');
        lode_prose_add(out, whole ? "\"" : "");
        lode_prose_bytes(out, text + i, run);
        lode_prose_add(out, whole ? "\"" : "");
        i += run;
    }
}

/* The list in an output with exactly one [ and one ], in order; none otherwise. */
static lode_status_t read_list(const char *output, size_t bytes, json_t **list)
{
    const char *open = memchr(output, '[', bytes), *close = memchr(output, ']', bytes), *end = output + bytes;
    if (!open || !close || close < open || memchr(open + 1, '[', (size_t)(end - open - 1)) ||
        memchr(close + 1, ']', (size_t)(end - close - 1)))
        return LODE_OK;
    lode_prose_t span = {0};
    bool failed;
    quote_long_numbers(open, (size_t)(close - open + 1), &span);
    *list = span.failed ? NULL : json_loadb(span.text, span.bytes, JSON_ALLOW_NUL, NULL);
    failed = span.failed;
    lode_prose_free(&span);
    return failed ? lode_fail(LODE_ERR_NO_MEMORY, "no memory for a prediction") : LODE_OK;
}

/* ------------------------------------------------------------------ items */

static bool same_value(const json_t *gold, const json_t *value)
{
    if (json_is_string(value))
        return same_strings(gold, value);
    if (!json_is_integer(value))
        return false;
    char digits[32];
    snprintf(digits, sizeof digits, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    return json_string_length(gold) == strlen(digits) && strcmp(json_string_value(gold), digits) == 0;
}

/* 1, less 1/2 for each key that is missing or null, less 1/4 for each value that is wrong. */
static double score_item(const json_t *gold, const json_t *item, lode_text2json_score_t *score)
{
    double points = 1;
    const char *key;
    json_t *right;
    json_object_foreach((json_t *)(uintptr_t)gold, key, right)
    {
        const json_t *value = json_object_get(item, key);
        if (strcmp(key, "name") == 0)
            continue;
        if (!value || json_is_null(value)) {
            points -= 0.5;
            score->missing++;
        } else if (!same_value(right, value)) {
            points -= 0.25;
            score->wrong++;
        }
    }
    return points;
}

static size_t find_item(const json_t *gold, const bool *used, const json_t *name)
{
    size_t i, n = json_array_size(gold);
    for (i = 0; i < n; i++)
        if (!used[i] && same_strings(json_object_get(json_array_get(gold, i), "name"), name))
            break;
    return i;
}

static void score_list(const json_t *gold, const json_t *list, bool *used, lode_text2json_score_t *score)
{
    double points = 0;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *item = json_array_get(list, i), *name = json_object_get(item, "name");
        size_t match = json_is_string(name) ? find_item(gold, used, name) : score->gold;
        if (match == score->gold) {
            score->additions++;
            continue;
        }
        used[match] = true;
        score->matched++;
        points += score_item(json_array_get(gold, match), item, score);
    }
    score->score = points / (score->gold + score->additions);
}

lode_status_t lode_text2json_score(const json_t *gold, const char *output, size_t bytes, lode_text2json_score_t *score)
{
    lode_text2json_score_t made = {.gold = (uint32_t)json_array_size(gold)};
    const json_t *twice = named_twice(gold);
    json_t *list = NULL;
    if (twice) {
        made.left_out = true;
        snprintf(made.twice, sizeof made.twice, "%.90s", json_string_value(twice));
        *score = made;
        return LODE_OK;
    }
    LODE_TRY(read_list(output, bytes, &list));
    bool *used = calloc(made.gold, sizeof *used);
    made.unread = !list;
    if (list && used)
        score_list(gold, list, used, &made);
    json_decref(list);
    if (!used)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a prediction");
    free(used);
    *score = made;
    return LODE_OK;
}
