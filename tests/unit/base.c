/* SPDX-License-Identifier: Apache-2.0 */
/* Options, configuration, errors and log lines: what a user meets first when something is misspelt. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/config.h"

static const lode_option_t table[] = {
    {"tokens", "1024", LODE_OPTION_COUNT, NULL, 1, 1 << 20, "how many"},
    {"arena", "64KiB", LODE_OPTION_BYTES, NULL, 4096, 1 << 30, "how much"},
    {"budget", "3.125%", LODE_OPTION_SHARE, NULL, 0, 0, "how large a share"},
    {"path", "auto", LODE_OPTION_CHOICE, "auto|one-sided|batched", 0, 0, "which way"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "where to"},
    {"verbose", NULL, LODE_OPTION_FLAG, NULL, 0, 0, "say more"},
    {NULL},
};

static lode_options_t made(void)
{
    lode_options_t options;
    cr_assert(eq(int, lode_options_create(table, &options), LODE_OK), "%s", lode_error_message());
    return options;
}

/* The thread's sentence must hold a word: a status alone does not tell a user what to mend. */
static void says(const char *word)
{
    cr_assert(strstr(lode_error_message(), word) != NULL, "message \"%s\" lacks \"%s\"", lode_error_message(), word);
}

/* ------------------------------------------------------------------ numbers */

Test(parse, bytes, .timeout = 10)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {
        {"0", 0},          {"4096", 4096},       {"4096B", 4096},
        {"64KiB", 65536},  {"64KB", 65536},      {"64k", 65536},
        {"64 KiB", 65536}, {"16MiB", 16u << 20}, {"1.5GiB", 3ull << 29},
        {"0.5K", 512},     {"2T", 2ull << 40},   {"18446744073709551615", UINT64_MAX},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        uint64_t bytes = 77;
        cr_assert(eq(int, lode_parse_bytes(good[i].text, &bytes), LODE_OK), "%s", good[i].text);
        cr_assert(eq(u64, bytes, good[i].bytes), "%s", good[i].text);
    }
}

Test(parse, bytes_refused, .timeout = 10)
{
    static const char *const bad[] = {"",
                                      "K",
                                      "-1",
                                      "4 096",
                                      "1.5",
                                      "1..5K",
                                      "4Q",
                                      "4KiBs",
                                      "0x10K",
                                      "nan",
                                      "18446744073709551616",
                                      "16777216TiB",
                                      " 4K",
                                      "1e3",
                                      "4KK",
                                      "4iB",
                                      "1,5GiB"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint64_t bytes = 77;
        cr_assert(eq(int, lode_parse_bytes(bad[i], &bytes), LODE_ERR_INVALID), "\"%s\"", bad[i]);
        cr_assert(eq(u64, bytes, 77), "an output was set by \"%s\"", bad[i]);
    }
}

Test(parse, shares, .timeout = 10)
{
    double share = 0, same = 0;
    cr_assert(eq(int, lode_parse_share("3.125%", &share), LODE_OK));
    cr_assert(eq(dbl, share, 0.03125));
    cr_assert(eq(int, lode_parse_share("0.03125", &same), LODE_OK));
    cr_assert(eq(dbl, share, same), "both forms are the same number");
    cr_assert(eq(int, lode_parse_share("100%", &share), LODE_OK));
    cr_assert(eq(dbl, share, 1.0));
    cr_assert(eq(int, lode_parse_share(".1%", &share), LODE_OK));
    cr_assert(eq(dbl, share, 0.001));
    cr_assert(eq(int, lode_parse_share("1", &share), LODE_OK));
    cr_assert(eq(dbl, share, 1.0));
}

Test(parse, shares_refused, .timeout = 10)
{
    static const char *const bad[] = {"0",   "0%",   "0.0",     "100.001%", "101%", "1.01", "-1%",
                                      "nan", "inf%", "3.125%%", "3 %",      "%",    "",     "half"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        double share = 7;
        cr_assert(eq(int, lode_parse_share(bad[i], &share), LODE_ERR_INVALID), "\"%s\"", bad[i]);
        cr_assert(eq(dbl, share, 7.0), "an output was set by \"%s\"", bad[i]);
    }
    double share;
    cr_assert(eq(int, lode_parse_share("3.125", &share), LODE_ERR_INVALID));
    says("% sign");
}

Test(parse, counts, .timeout = 10)
{
    static const char *const bad[] = {"", "-1", "+1", "1.0", "1.", "1k", "0x1", "99999999999999999999", " 1", "1 "};
    uint64_t count = 7;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_assert(eq(int, lode_parse_count(bad[i], &count), LODE_ERR_INVALID), "\"%s\"", bad[i]);
    cr_assert(eq(u64, count, 7));
    cr_assert(eq(int, lode_parse_count("1048576", &count), LODE_OK));
    cr_assert(eq(u64, count, 1048576));
}

/* ------------------------------------------------------------------- tables */

Test(options, defaults, .timeout = 10)
{
    lode_options_t options = made();
    cr_assert(eq(u64, lode_options_count(&options, "tokens"), 1024));
    cr_assert(eq(u64, lode_options_count(&options, "arena"), 65536));
    cr_assert(eq(dbl, lode_options_share(&options, "budget"), 0.03125));
    cr_assert(eq(str, (char *)lode_options_get(&options, "path"), "auto"));
    cr_assert(lode_options_get(&options, "json") == NULL);
    cr_assert(not(lode_options_flag(&options, "verbose")));
    lode_options_destroy(&options);
    lode_options_destroy(&options); /* twice is harmless */
}

Test(options, command_line, .timeout = 10)
{
    char *words[] = {"--tokens",   "64",     "--budget=1%", "--verbose", "--json",
                     "--odd name", "--path", "batched",     "file",      "--x"};
    lode_options_t options = made();
    int rest = -1;
    cr_assert(eq(int, lode_options_parse(&options, 10, words, &rest), LODE_OK), "%s", lode_error_message());
    cr_assert(eq(int, rest, 8));
    cr_assert(eq(u64, lode_options_count(&options, "tokens"), 64));
    cr_assert(eq(dbl, lode_options_share(&options, "budget"), 0.01));
    cr_assert(lode_options_flag(&options, "verbose"));
    cr_assert(eq(str, (char *)lode_options_get(&options, "json"), "--odd name"));
    char *end[] = {"--verbose=no", "--", "--tokens", "1"};
    cr_assert(eq(int, lode_options_parse(&options, 4, end, &rest), LODE_OK));
    cr_assert(eq(int, rest, 2));
    cr_assert(not(lode_options_flag(&options, "verbose")));
    cr_assert(eq(int, lode_options_parse(&options, 0, NULL, &rest), LODE_OK));
    cr_assert(eq(int, rest, 0));
    lode_options_destroy(&options);
}

/* word, value (NULL: none): refused with a message that holds the needle, and nothing changes. */
static void refused(char *word, char *value, const char *needle)
{
    char *words[] = {word, value};
    lode_options_t options = made();
    int rest = -1;
    cr_assert(eq(int, lode_options_parse(&options, value ? 2 : 1, words, &rest), LODE_ERR_INVALID), "%s", word);
    says(needle);
    cr_assert(eq(int, rest, -1));
    cr_assert(eq(u64, lode_options_count(&options, "tokens"), 1024));
    cr_assert(eq(dbl, lode_options_share(&options, "budget"), 0.03125));
    lode_options_destroy(&options);
}

Test(options, refusals_say_what_and_where, .timeout = 10)
{
    refused("--token", "5", "did you mean \"tokens\"");
    refused("--budgte=1%", NULL, "did you mean \"budget\"");
    refused("--elephants", "5", "no option is called \"elephants\"");
}

Test(options, budgets_out_of_range, .timeout = 10)
{
    refused("--budget", "0", "option \"budget\"");
    refused("--budget", "0%", "above 0");
    refused("--budget=100.5%", NULL, "100%");
    refused("--budget=", NULL, "not a share");
}

Test(options, bounds, .timeout = 10)
{
    refused("--tokens", "0", "too small; the least is 1");
    refused("--tokens", "1048577", "too large; the most is 1048576");
    refused("--arena", "1KiB", "the least is 4KiB");
    refused("--arena", "2GiB", "the most is 1GiB");
    refused("--path", "two-sided", "auto|one-sided|batched");
    refused("--path", "one", "none of");
    refused("--path", "", "none of");
    refused("--verbose=maybe", NULL, "neither yes nor no");
    refused("--tokens", NULL, "wants a value");
    static char endless[4096];
    memset(endless, 'x', sizeof endless - 1);
    memcpy(endless, "--", 2);
    refused(endless, "1", "no option");
}

Test(options, nearest, .timeout = 10)
{
    cr_assert(eq(str, (char *)lode_options_nearest(table, "tokns"), "tokens"));
    cr_assert(eq(str, (char *)lode_options_nearest(table, "BUDGET"), "budget"));
    cr_assert(lode_options_nearest(table, "xylophone") == NULL);
}

Test(options, environment, .timeout = 10)
{
    lode_options_t options = made();
    setenv("LODEMARK_TOKENS", "77", 1);
    setenv("LODEMARK_PATH", "", 1); /* empty counts as not set */
    cr_assert(eq(int, lode_options_environment(&options), LODE_OK), "%s", lode_error_message());
    cr_assert(eq(u64, lode_options_count(&options, "tokens"), 77));
    cr_assert(eq(str, (char *)lode_options_get(&options, "path"), "auto"));
    setenv("LODEMARK_BUDGET", "400%", 1);
    cr_assert(eq(int, lode_options_environment(&options), LODE_ERR_INVALID));
    says("LODEMARK_BUDGET");
    lode_options_destroy(&options);
}

Test(options, a_wrong_default_is_found_at_once, .timeout = 10)
{
    static const lode_option_t wrong[] = {{"n", "many", LODE_OPTION_COUNT, NULL, 0, 0, ""}, {NULL}};
    lode_options_t options = {0};
    cr_assert(ne(int, lode_options_create(wrong, &options), LODE_OK));
    cr_assert(options.values == NULL);
}

/* Run fn with a FILE that fills text. */
static void printed(void (*print)(FILE *), char *text, size_t room)
{
    FILE *out = tmpfile();
    cr_assert(out != NULL);
    print(out);
    rewind(out);
    text[fread(text, 1, room - 1, out)] = 0;
    fclose(out);
}

static void print_help(FILE *out)
{
    lode_options_help(table, out);
}

Test(options, help_names_every_row_and_default, .timeout = 10)
{
    char text[4096];
    printed(print_help, text, sizeof text);
    for (const lode_option_t *row = table; row->name; row++) {
        cr_assert(strstr(text, row->name) != NULL, "%s", row->name);
        cr_assert(strstr(text, row->doc) != NULL, "%s", row->name);
        cr_assert(row->value == NULL || strstr(text, row->value) != NULL, "%s", row->name);
    }
    cr_assert(strstr(text, "auto|one-sided|batched") != NULL);
}

/* ------------------------------------------------------------ configuration */

static lode_config_h config;

static void print_config(FILE *out)
{
    lode_config_print(config, out);
}

Test(config, defaults_and_print, .timeout = 10)
{
    cr_assert(eq(int, lode_config_create(&config), LODE_OK), "%s", lode_error_message());
    cr_assert(eq(u64, lode_options_count(lode_config_options(config), "arena"), 1ull << 30));
    cr_assert(eq(str, (char *)lode_config_get(config, "replicas"), "1"));
    char text[8192];
    printed(print_config, text, sizeof text);
    for (const lode_option_t *row = lode_library_options; row->name; row++) {
        char variable[LODE_VARIABLE_MAX];
        lode_option_variable(row->name, variable);
        cr_assert(strstr(text, variable) != NULL, "%s", variable);
        cr_assert(strstr(text, row->doc) != NULL, "%s", row->name);
    }
    lode_config_destroy(&config);
    cr_assert(config == NULL);
    lode_config_destroy(&config);
}

Test(config, set_and_get, .timeout = 10)
{
    cr_assert(eq(int, lode_config_create(&config), LODE_OK));
    cr_assert(eq(int, lode_config_set(config, "hot-cache", "0"), LODE_OK));
    cr_assert(eq(u64, lode_options_count(lode_config_options(config), "hot-cache"), 0));
    cr_assert(eq(int, lode_config_set(config, "replicas", "5"), LODE_ERR_INVALID));
    says("the most is 4");
    cr_assert(eq(str, (char *)lode_config_get(config, "replicas"), "1"));
    cr_assert(eq(int, lode_config_set(config, "replica", "2"), LODE_ERR_INVALID));
    says("replicas");
    cr_assert(eq(int, lode_config_set(config, "arena", NULL), LODE_ERR_INVALID));
    cr_assert(eq(int, lode_config_set(NULL, "arena", "1GiB"), LODE_ERR_INVALID));
    cr_assert(lode_config_get(config, "elephants") == NULL);
    cr_assert(eq(int, lode_config_set(config, "log", "debug"), LODE_OK));
    cr_assert(eq(int, atomic_load(&lode_log_threshold), LODE_LOG_DEBUG));
    lode_config_destroy(&config);
}

Test(config, a_bad_variable_is_refused_by_name, .timeout = 10)
{
    setenv("LODEMARK_FETCH_DEADLINE", "soon", 1);
    cr_assert(eq(int, lode_config_create(&config), LODE_ERR_INVALID));
    says("LODEMARK_FETCH_DEADLINE");
    says("soon");
    cr_assert(config == NULL);
}

/* What lode_config_create says on stderr. */
static void created_with_stderr(char *text, size_t room)
{
    FILE *log = tmpfile();
    cr_assert(log != NULL);
    int saved = dup(STDERR_FILENO);
    dup2(fileno(log), STDERR_FILENO);
    lode_status_t status = lode_config_create(&config);
    dup2(saved, STDERR_FILENO);
    close(saved);
    cr_assert(eq(int, status, LODE_OK), "%s", lode_error_message());
    rewind(log);
    text[fread(text, 1, room - 1, log)] = 0;
    fclose(log);
    lode_config_destroy(&config);
}

Test(config, an_unknown_variable_is_warned_about_with_the_nearest, .timeout = 10)
{
    char text[4096];
    setenv("LODEMARK_AREMA", "2GiB", 1);
    setenv("LODEMARK_HOT_CACHE", "1MiB", 1);
    setenv("LODEMARK_TEST_SEED", "7", 1);
    setenv("LODEMARK_XYLOPHONE", "1", 1);
    created_with_stderr(text, sizeof text);
    cr_assert(strstr(text, "LODEMARK_AREMA") && strstr(text, "did you mean LODEMARK_ARENA?"), "%s", text);
    cr_assert(strstr(text, "LODEMARK_XYLOPHONE") != NULL, "%s", text);
    cr_assert(strstr(text, "HOT_CACHE") == NULL, "a known variable was warned about: %s", text);
    cr_assert(strstr(text, "TEST_SEED") == NULL, "a test's variable was warned about: %s", text);
}

Test(config, silence_when_nothing_is_wrong, .timeout = 10)
{
    char text[4096];
    created_with_stderr(text, sizeof text);
    cr_assert(eq(str, text, ""));
}

Test(config, log_off_says_nothing, .timeout = 10)
{
    char text[4096];
    setenv("LODEMARK_AREMA", "2GiB", 1);
    setenv("LODEMARK_LOG", "off", 1);
    created_with_stderr(text, sizeof text);
    cr_assert(eq(str, text, ""));
}

/* ------------------------------------------------------------------- errors */

Test(errors, every_status_has_its_own_text, .timeout = 10)
{
    static const lode_status_t all[] = {
        LODE_OK,
        LODE_ERR_INVALID,
        LODE_ERR_UNSUPPORTED,
        LODE_ERR_GEOMETRY,
        LODE_ERR_NONFINITE,
        LODE_ERR_NAME_IN_USE,
        LODE_ERR_NOT_FOUND,
        LODE_ERR_SEALED,
        LODE_ERR_DROPPED,
        LODE_ERR_FULL,
        LODE_ERR_FORMAT,
        LODE_ERR_IO,
        LODE_ERR_PAGE_LOST,
        LODE_ERR_PEER_LOST,
        LODE_ERR_TIMEOUT,
        LODE_ERR_REFUSED,
        LODE_ERR_NO_MEMORY,
        LODE_ERR_MPI,
        LODE_ERR_UCX,
        LODE_ERR_INTERNAL,
        LODE_ERR_DEVICE,
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (size_t j = 0; j < i; j++)
            cr_assert(strcmp(lode_status_string(all[i]), lode_status_string(all[j])) != 0, "%d, %d", all[i], all[j]);
    cr_assert(eq(str, (char *)lode_status_string((lode_status_t)-999), "unknown status"));
}

Test(errors, prefixes_stand_before_the_sentence, .timeout = 10)
{
    cr_assert(eq(int, lode_fail(LODE_ERR_FULL, "page %d does not fit", 7), LODE_ERR_FULL));
    cr_assert(eq(int, lode_fail_within(LODE_ERR_FULL, "block \"%s\": ", "doc"), LODE_ERR_FULL));
    cr_assert(eq(str, (char *)lode_error_message(), "block \"doc\": page 7 does not fit"));
    static char endless[4096];
    memset(endless, 'x', sizeof endless - 1);
    lode_fail(LODE_ERR_INVALID, "%s", endless);
    lode_fail_within(LODE_ERR_INVALID, "%s", endless); /* cut, not written past */
    cr_assert(strlen(lode_error_message()) < sizeof endless);
}

Test(errors, an_endless_log_line_is_cut, .timeout = 10)
{
    static char endless[4096];
    memset(endless, 'x', sizeof endless - 1);
    int sides[2];
    cr_assert(eq(int, pipe(sides), 0));
    int saved = dup(STDERR_FILENO);
    dup2(sides[1], STDERR_FILENO);
    lode_error("%s", endless);
    dup2(saved, STDERR_FILENO);
    char line[4096];
    ssize_t length = read(sides[0], line, sizeof line);
    cr_assert(length > 0 && length <= 1024, "%zd", length);
    cr_assert(eq(int, line[length - 1], '\n'));
}

Test(errors, version_matches_the_header, .timeout = 10)
{
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", LODE_VERSION_MAJOR, LODE_VERSION_MINOR, LODE_VERSION_PATCH);
    cr_assert(eq(str, (char *)lode_version(), text));
}
