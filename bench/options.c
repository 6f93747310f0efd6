/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "bench/options.h"

bool lode_bench_wants_help(int argc, char **argv)
{
    for (int i = 0; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
            return true;
    return false;
}

static lode_option_t *join_tables(const lode_option_t *own)
{
    size_t first = 0, library = 0;
    while (own[first].name)
        first++;
    while (lode_library_options[library].name)
        library++;
    lode_option_t *table = calloc(first + library + 1, sizeof *table);
    if (!table)
        return NULL;
    memcpy(table, own, first * sizeof *table);
    memcpy(table + first, lode_library_options, library * sizeof *table);
    for (size_t i = 0; i < library; i++)
        table[first + i].value = NULL;
    return table;
}

lode_status_t lode_bench_own_options(const char *command, const lode_option_t *own, int argc, char **argv,
                                     lode_options_t *options)
{
    int rest = argc;
    lode_options_t made = {0};
    LODE_TRY(lode_options_create(own, &made));
    lode_status_t status = lode_options_parse(&made, argc, argv, &rest);
    if (status == LODE_OK && rest < argc)
        status =
            lode_fail(LODE_ERR_INVALID, "\"%s\": %s takes options only, each beginning with --", argv[rest], command);
    if (status == LODE_OK)
        *options = made;
    else
        lode_options_destroy(&made);
    return status;
}

lode_status_t lode_bench_options(const char *command, const lode_option_t *own, int argc, char **argv,
                                 lode_options_t *options)
{
    lode_option_t *table = join_tables(own);
    if (!table)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for options");
    lode_status_t status = lode_bench_own_options(command, table, argc, argv, options);
    if (status != LODE_OK)
        free(table);
    return status;
}

void lode_bench_options_free(lode_options_t *options)
{
    const lode_option_t *table = options->table;
    lode_options_destroy(options);
    free((void *)(uintptr_t)table); /* made by join_tables() */
    options->table = NULL;
}

lode_status_t lode_bench_config(const lode_options_t *options, lode_config_h *config)
{
    lode_config_h made;
    LODE_TRY(lode_config_create(&made));
    for (const lode_option_t *row = lode_library_options; row->name; row++) {
        const char *value = lode_options_get(options, row->name);
        lode_status_t status = value ? lode_config_set(made, row->name, value) : LODE_OK;
        if (status != LODE_OK) {
            lode_config_destroy(&made);
            return status;
        }
    }
    *config = made;
    return LODE_OK;
}

bool lode_bench_given(const lode_options_t *options, const char *name, const char *variable)
{
    const char *value = getenv(variable);
    return lode_options_get(options, name) || (value && *value);
}

lode_status_t lode_bench_policy(const char *text, bool *dense, lode_landmark_spec_t *landmark)
{
    static const lode_option_t policies[] = {{"dense"},     {"landmark1"},  {"landmark2"}, {"landmark4"},
                                             {"landmark8"}, {"landmark16"}, {NULL}};
    bool is_dense = strcmp(text, "dense") == 0;
    lode_status_t status = lode_landmark_parse(is_dense ? "landmark2" : text, landmark);
    if (status == LODE_OK) {
        *dense = is_dense;
        return LODE_OK;
    }
    char word[64];
    snprintf(word, sizeof word, "%.*s", (int)strcspn(text, ":"), text);
    const char *nearest = lode_options_nearest(policies, word);
    if (!nearest || strcmp(nearest, word) == 0)
        return status;
    return lode_fail(LODE_ERR_INVALID, "no policy is called \"%s\"; did you mean \"%s\"?", word, nearest);
}

const char *lode_bench_next_word(const char *at, char *word, size_t room)
{
    size_t length = strcspn(at, ",");
    snprintf(word, room, "%.*s", (int)length, at);
    return at[length] ? at + length + 1 : NULL;
}

lode_status_t lode_budgets_parse(const char *text, double budgets[LODE_BUDGETS_MAX], uint32_t *count)
{
    uint32_t n = 0;
    for (const char *at = text; at; n++) {
        char word[64];
        at = lode_bench_next_word(at, word, sizeof word);
        if (n == LODE_BUDGETS_MAX)
            return lode_fail(LODE_ERR_INVALID, "--budgets: more than %d", LODE_BUDGETS_MAX);
        if (lode_parse_share(word, &budgets[n]) != LODE_OK)
            return lode_fail_within(LODE_ERR_INVALID, "--budgets \"%s\": ", text);
        if (n && budgets[n] <= budgets[n - 1])
            return lode_fail(LODE_ERR_INVALID, "--budgets \"%s\": \"%s\" is not above the one before it", text, word);
    }
    *count = n;
    return LODE_OK;
}
