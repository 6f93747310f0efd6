/* SPDX-License-Identifier: Apache-2.0 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

/* ------------------------------------------------------------------ numbers */

/*
 * Digits with at most one point, as a count of units and a power of ten. No strtod: that accepts
 * "nan", hexadecimal and the decimal comma of the caller's locale. @return the rest of the text,
 * NULL where it does not begin with such a number or the number has too many digits.
 */
static const char *parse_decimal(const char *text, uint64_t *units, uint64_t *ten_power)
{
    uint64_t value = 0, power = 1;
    bool digits = false, point = false;
    for (;; text++) {
        if (*text == '.' && !point) {
            point = true;
        } else if (isdigit((unsigned char)*text)) {
            if (__builtin_mul_overflow(value, 10u, &value) ||
                __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value) ||
                (point && __builtin_mul_overflow(power, 10u, &power)))
                return NULL;
            digits = true;
        } else {
            break;
        }
    }
    if (!digits)
        return NULL;
    *units = value;
    *ten_power = power;
    return text;
}

lode_status_t lode_parse_count(const char *text, uint64_t *count)
{
    uint64_t units, power;
    const char *rest = parse_decimal(text, &units, &power);
    if (!rest || *rest || strchr(text, '.'))
        return lode_fail(LODE_ERR_INVALID, "\"%s\" is not a whole number; write digits only, like 64", text);
    *count = units;
    return LODE_OK;
}

/* K, KB and KiB are all 1024: memory is what is measured here, and nobody means 1000 bytes of it. */
static bool parse_unit(const char *unit, uint64_t *factor)
{
    static const struct {
        char letter;
        uint64_t factor;
    } units[] = {{'K', 1024u}, {'M', 1024u * 1024u}, {'G', 1ull << 30}, {'T', 1ull << 40}};
    if (!*unit || strcasecmp(unit, "B") == 0) {
        *factor = 1;
        return true;
    }
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        const char *rest = unit + 1;
        if (toupper((unsigned char)*unit) == units[i].letter &&
            (!*rest || strcasecmp(rest, "B") == 0 || strcasecmp(rest, "iB") == 0)) {
            *factor = units[i].factor;
            return true;
        }
    }
    return false;
}

lode_status_t lode_parse_bytes(const char *text, uint64_t *bytes)
{
    uint64_t units, power, factor;
    const char *unit = parse_decimal(text, &units, &power);
    if (unit && *unit == ' ')
        unit++;
    if (!unit || !parse_unit(unit, &factor))
        return lode_fail(LODE_ERR_INVALID, "\"%s\" is not a size; write 4096, 64KiB, 16MiB or 1.5GiB", text);
    unsigned __int128 product = (unsigned __int128)units * factor;
    if (product / power > UINT64_MAX || (factor == 1 && product % power != 0))
        return lode_fail(LODE_ERR_INVALID, "\"%s\" is not a size: %s", text,
                         factor == 1 ? "bytes come whole" : "it is beyond 16 EiB");
    *bytes = (uint64_t)(product / power);
    return LODE_OK;
}

lode_status_t lode_parse_share(const char *text, double *share)
{
    uint64_t units, power;
    const char *rest = parse_decimal(text, &units, &power);
    bool percent = rest && *rest == '%';
    if (!rest || rest[percent ? 1 : 0])
        return lode_fail(LODE_ERR_INVALID, "\"%s\" is not a share; write 3.125%% or 0.03125", text);
    /* one correctly rounded division: 3.125% and 0.03125 are the same number */
    double value = (double)((long double)units / ((long double)power * (percent ? 100 : 1)));
    if (!(value > 0 && value <= 1))
        return lode_fail(LODE_ERR_INVALID, "share \"%s\" is not above 0 and at most 100%%%s", text,
                         !percent && value > 1 && value <= 100 ? "; with a % sign it would be" : "");
    *share = value;
    return LODE_OK;
}

static lode_status_t parse_flag(const char *text, bool *flag)
{
    static const char *const yes[] = {"yes", "true", "on", "1"}, *const no[] = {"no", "false", "off", "0"};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        bool is_yes = strcasecmp(text, yes[i]) == 0;
        if (is_yes || strcasecmp(text, no[i]) == 0) {
            *flag = is_yes;
            return LODE_OK;
        }
    }
    return lode_fail(LODE_ERR_INVALID, "\"%s\" is neither yes nor no", text);
}

/* ------------------------------------------------------------------ nearest */

enum { NAME_MAX_LENGTH = 63 };

/* Names and variables meet here: case, '-' and '_' make no difference. */
static char fold(char letter)
{
    return letter == '_' ? '-' : (char)tolower((unsigned char)letter);
}

/* Levenshtein distance over the first NAME_MAX_LENGTH letters. */
static size_t distance(const char *a, const char *b)
{
    size_t row[NAME_MAX_LENGTH + 1];
    size_t width = strnlen(b, NAME_MAX_LENGTH), height = strnlen(a, NAME_MAX_LENGTH);
    for (size_t j = 0; j <= width; j++)
        row[j] = j;
    for (size_t i = 1; i <= height; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= width; j++) {
            size_t change = diagonal + (fold(a[i - 1]) != fold(b[j - 1]));
            size_t gap = (row[j] < row[j - 1] ? row[j] : row[j - 1]) + 1;
            diagonal = row[j];
            row[j] = change < gap ? change : gap;
        }
    }
    return row[width];
}

const char *lode_options_nearest(const lode_option_t *table, const char *name)
{
    const char *nearest = NULL;
    size_t best = strlen(name) / 3 + 2; /* further than that is another word, not a slip */
    for (; table->name; table++) {
        size_t d = distance(name, table->name);
        if (d < best) {
            best = d;
            nearest = table->name;
        }
    }
    return nearest;
}

/* ------------------------------------------------------------------- checks */

static lode_status_t check_choice(const char *choices, const char *value)
{
    size_t length = strlen(value);
    for (const char *choice = choices; choice; choice = strchr(choice, '|') ? strchr(choice, '|') + 1 : NULL)
        if (length && strncmp(choice, value, length) == 0 && (choice[length] == '|' || !choice[length]))
            return LODE_OK;
    return lode_fail(LODE_ERR_INVALID, "\"%s\" is none of %s", value, choices);
}

static void print_bytes(char *text, size_t room, uint64_t bytes)
{
    static const char *const units[] = {"", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    for (; unit + 1 < sizeof units / sizeof *units && bytes && bytes % 1024 == 0; unit++)
        bytes /= 1024;
    snprintf(text, room, "%llu%s", (unsigned long long)bytes, units[unit]);
}

static lode_status_t check_range(const lode_option_t *row, const char *text, uint64_t value)
{
    if (value >= row->min && (!row->max || value <= row->max))
        return LODE_OK;
    char bound[32];
    uint64_t limit = value < row->min ? row->min : row->max;
    if (row->type == LODE_OPTION_BYTES)
        print_bytes(bound, sizeof bound, limit);
    else
        snprintf(bound, sizeof bound, "%llu", (unsigned long long)limit);
    return lode_fail(LODE_ERR_INVALID, "%s is %s; %s is %s", text, value < row->min ? "too small" : "too large",
                     value < row->min ? "the least" : "the most", bound);
}

static lode_status_t check(const lode_option_t *row, const char *value)
{
    uint64_t number = 0;
    double share;
    bool flag;
    switch (row->type) {
    case LODE_OPTION_TEXT:
        return LODE_OK;
    case LODE_OPTION_CHOICE:
        return check_choice(row->choices, value);
    case LODE_OPTION_COUNT:
        LODE_TRY(lode_parse_count(value, &number));
        return check_range(row, value, number);
    case LODE_OPTION_BYTES:
        LODE_TRY(lode_parse_bytes(value, &number));
        return check_range(row, value, number);
    case LODE_OPTION_SHARE:
        return lode_parse_share(value, &share);
    case LODE_OPTION_FLAG:
        return parse_flag(value, &flag);
    }
    return lode_fail(LODE_ERR_INTERNAL, "option \"%s\" has a type that nothing reads", row->name);
}

/* ------------------------------------------------------------------- tables */

static lode_status_t find(const lode_options_t *options, const char *name, size_t *index)
{
    for (size_t i = 0; options->table[i].name; i++) {
        if (strcmp(options->table[i].name, name) == 0) {
            *index = i;
            return LODE_OK;
        }
    }
    const char *nearest = lode_options_nearest(options->table, name);
    return lode_fail(LODE_ERR_INVALID, "no option is called \"%s\"%s%s%s", name, nearest ? "; did you mean \"" : "",
                     nearest ? nearest : "", nearest ? "\"?" : "");
}

lode_status_t lode_options_create(const lode_option_t *table, lode_options_t *options)
{
    size_t count = 0;
    while (table[count].name)
        count++;
    lode_options_t made = {.table = table, .values = calloc(count + 1, sizeof *made.values)};
    if (!made.values)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu options", count);
    for (size_t i = 0; i < count; i++) {
        lode_status_t status = table[i].value ? lode_options_set(&made, table[i].name, table[i].value) : LODE_OK;
        if (status != LODE_OK) {
            lode_options_destroy(&made);
            return status;
        }
    }
    *options = made;
    return LODE_OK;
}

void lode_options_destroy(lode_options_t *options)
{
    if (!options->values)
        return;
    for (size_t i = 0; options->table[i].name; i++)
        free(options->values[i]);
    free(options->values);
    options->values = NULL;
}

lode_status_t lode_options_set(lode_options_t *options, const char *name, const char *value)
{
    size_t i;
    LODE_TRY(find(options, name, &i));
    lode_status_t status = check(&options->table[i], value);
    if (status != LODE_OK)
        return lode_fail_within(status, "option \"%s\": ", name);
    char *copy = strdup(value);
    if (!copy)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the value of option \"%s\"", name);
    free(options->values[i]);
    options->values[i] = copy;
    return LODE_OK;
}

const char *lode_options_get(const lode_options_t *options, const char *name)
{
    size_t i;
    return find(options, name, &i) == LODE_OK ? options->values[i] : NULL;
}

uint64_t lode_options_count_or(const lode_options_t *options, const char *name, uint64_t otherwise)
{
    return lode_options_get(options, name) ? lode_options_count(options, name) : otherwise;
}

uint64_t lode_options_count(const lode_options_t *options, const char *name)
{
    uint64_t number = 0;
    size_t i;
    if (find(options, name, &i) != LODE_OK || !options->values[i])
        return 0;
    lode_status_t status = options->table[i].type == LODE_OPTION_BYTES ? lode_parse_bytes(options->values[i], &number)
                                                                       : lode_parse_count(options->values[i], &number);
    return status == LODE_OK ? number : 0;
}

double lode_options_share(const lode_options_t *options, const char *name)
{
    double share = 0;
    const char *value = lode_options_get(options, name);
    return value && lode_parse_share(value, &share) == LODE_OK ? share : 0;
}

bool lode_options_flag(const lode_options_t *options, const char *name)
{
    bool flag = false;
    const char *value = lode_options_get(options, name);
    return value && parse_flag(value, &flag) == LODE_OK && flag;
}

/* ------------------------------------------------- command line, environment */

/* Take the option at argv[*at] and its value, and move *at behind them. */
static lode_status_t parse_one(lode_options_t *options, int argc, char **argv, int *at)
{
    char name[NAME_MAX_LENGTH + 1];
    const char *word = argv[*at] + 2, *equals = strchr(word, '=');
    size_t length = equals ? (size_t)(equals - word) : strlen(word), i;
    if (length >= sizeof name)
        return lode_fail(LODE_ERR_INVALID, "no option is called \"%.*s…\"", NAME_MAX_LENGTH, word);
    memcpy(name, word, length);
    name[length] = 0;
    LODE_TRY(find(options, name, &i));
    bool flag = options->table[i].type == LODE_OPTION_FLAG;
    if (!equals && !flag && *at + 1 >= argc)
        return lode_fail(LODE_ERR_INVALID, "option \"%s\" wants a value", name);
    const char *value = equals ? equals + 1 : flag ? "yes" : argv[*at + 1];
    LODE_TRY(lode_options_set(options, name, value));
    *at += equals || flag ? 1 : 2;
    return LODE_OK;
}

lode_status_t lode_options_parse(lode_options_t *options, int argc, char **argv, int *rest)
{
    int at = 0;
    while (at < argc && strncmp(argv[at], "--", 2) == 0) {
        if (!argv[at][2]) {
            at++;
            break;
        }
        LODE_TRY(parse_one(options, argc, argv, &at));
    }
    *rest = at;
    return LODE_OK;
}

void lode_option_variable(const char *name, char variable[LODE_VARIABLE_MAX])
{
    size_t used = (size_t)snprintf(variable, LODE_VARIABLE_MAX, "LODEMARK_");
    for (; *name && used + 1 < LODE_VARIABLE_MAX; name++)
        variable[used++] = *name == '-' ? '_' : (char)toupper((unsigned char)*name);
    variable[used] = 0;
}

lode_status_t lode_options_environment(lode_options_t *options)
{
    for (const lode_option_t *row = options->table; row->name; row++) {
        char variable[LODE_VARIABLE_MAX];
        lode_option_variable(row->name, variable);
        const char *value = getenv(variable);
        if (!value || !*value)
            continue;
        lode_status_t status = lode_options_set(options, row->name, value);
        if (status != LODE_OK)
            return lode_fail_within(status, "%s in the environment: ", variable);
    }
    return LODE_OK;
}

/* What stands for the value in --help. */
static const char *placeholder(const lode_option_t *row)
{
    static const char *const words[] = {
        [LODE_OPTION_TEXT] = " TEXT",   [LODE_OPTION_COUNT] = " N", [LODE_OPTION_BYTES] = " BYTES",
        [LODE_OPTION_SHARE] = " SHARE", [LODE_OPTION_FLAG] = "",
    };
    return row->type == LODE_OPTION_CHOICE ? "" : words[row->type];
}

void lode_options_help(const lode_option_t *table, FILE *out)
{
    for (; table->name; table++) {
        char left[128];
        snprintf(left, sizeof left, "--%s%s%s%s", table->name, table->type == LODE_OPTION_CHOICE ? " " : "",
                 table->type == LODE_OPTION_CHOICE ? table->choices : "", placeholder(table));
        if (strlen(left) > 26)
            fprintf(out, "  %s\n  %-26s  %s", left, "", table->doc);
        else
            fprintf(out, "  %-26s  %s", left, table->doc);
        if (table->value && *table->value)
            fprintf(out, " [%s]", table->value);
        fputc('\n', out);
    }
}
