/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/text2json_inside.h"

TestSuite(score, .timeout = 60);
TestSuite(rows, .timeout = 60);
TestSuite(files, .timeout = 60);
TestSuite(made, .timeout = 60);

/* ------------------------------------------------------------ clauses of the score */

#define ONE "{\"name\": \"Ann's\", \"price\": \"12\", \"city\": \"Elmford\"}"
#define TWO "{\"name\": \"Bob\", \"price\": \"30\", \"city\": \"Oakham\"}"
#define GOLD "[" ONE ", " TWO "]"

static lode_text2json_score_t score_of(const char *gold_text, const char *output)
{
    lode_text2json_score_t score;
    json_t *gold = json_loads(gold_text, 0, NULL);
    cr_assert(lode_text2json_check_gold(gold) == LODE_OK, "%s", lode_error_message());
    cr_assert(lode_text2json_score(gold, output, strlen(output), &score) == LODE_OK);
    json_decref(gold);
    return score;
}

/* All of these are sums of quarters over whole numbers. */
static void expect_points(const char *output, double points)
{
    lode_text2json_score_t score = score_of(GOLD, output);
    cr_assert(fabs(score.score - points) < 1e-12, "%g, not %g: %s", score.score, points, output);
}

Test(score, all_right_is_one_in_any_order_with_text_around_it)
{
    expect_points(GOLD, 1);
    expect_points("[" TWO "," ONE "]", 1);
    expect_points("Here it is:\n```json\n" GOLD "\n```\nThat is all.", 1);
}

Test(score, exactly_one_list_in_order)
{
    expect_points("", 0);
    expect_points(ONE, 0);
    expect_points("[" GOLD "]", 0);
    expect_points(GOLD " [", 0);
    expect_points(GOLD "]", 0);
    expect_points("] " ONE " [", 0);
    expect_points("see [1]: " GOLD, 0);
    expect_points("[{\"name\": \"[Bob\", \"price\": \"30\", \"city\": \"Oakham\"}]", 0);
    cr_assert(score_of(GOLD, "[" GOLD "]").unread);
    cr_assert(score_of(GOLD, "[]").unread == false);
}

Test(score, a_span_that_does_not_parse_is_nothing)
{
    expect_points("[" ONE ", " TWO ",]", 0);
    expect_points("[" ONE " " TWO "]", 0);
    expect_points("[{'name': 'Bob'}]", 0);
    expect_points("[" ONE ", {\"name\": \"Bo]", 0);
    cr_assert(score_of(GOLD, "[" ONE " " TWO "]").unread);
}

Test(score, items_not_given_are_points_lost)
{
    expect_points("[" ONE "]", 0.5);
    expect_points("[]", 0);
}

Test(score, an_item_that_nobody_asked_for_widens_the_union)
{
    expect_points("[" ONE ", " TWO ", {\"name\": \"Carl\", \"price\": \"12\", \"city\": \"Elmford\"}]", 2.0 / 3);
    expect_points("[{\"name\": \"Carl\"}, {\"name\": \"Dora\"}]", 0);
    expect_points("[" ONE ", {\"name\": \"bob\", \"price\": \"30\", \"city\": \"Oakham\"}]", 1.0 / 3);
    expect_points("[" ONE ", {\"name\": \"Bob \", \"price\": \"30\", \"city\": \"Oakham\"}]", 1.0 / 3);
}

Test(score, an_item_without_a_name_widens_the_union)
{
    expect_points("[" ONE ", {\"price\": \"30\", \"city\": \"Oakham\"}]", 1.0 / 3);
    expect_points("[" ONE ", {\"name\": 5, \"price\": \"30\", \"city\": \"Oakham\"}]", 1.0 / 3);
    expect_points("[" ONE ", {\"name\": null}]", 1.0 / 3);
    expect_points("[" ONE ", " TWO ", \"Bob\", 7, null]", 2.0 / 5);
}

Test(score, a_typographic_apostrophe_is_a_plain_one)
{
    expect_points("[{\"name\": \"Ann’s\", \"price\": \"12\", \"city\": \"Elmford\"}, " TWO "]", 1);
    expect_points("[{\"name\": \"Ann\\u2019s\", \"price\": \"12\", \"city\": \"Elmford\"}, " TWO "]", 1);
    expect_points("[{\"name\": \"Ann‘s\", \"price\": \"12\", \"city\": \"Elmford\"}, " TWO "]", 1.0 / 3);
    cr_assert(score_of("[{\"name\": \"Ann’s\", \"a\": \"x’y\", \"b\": \"\"}]",
                       "[{\"name\": \"Ann's\", \"a\": \"x'y\", \"b\": \"\"}]")
                  .score == 1);
}

Test(score, a_missing_key_costs_a_half)
{
    expect_points("[" ONE ", {\"name\": \"Bob\", \"price\": \"30\"}]", 1.5 / 2);
    expect_points("[" ONE ", {\"name\": \"Bob\", \"price\": \"30\", \"city\": null}]", 1.5 / 2);
    expect_points("[" ONE ", {\"name\": \"Bob\"}]", 1.0 / 2);
    expect_points("[" ONE ", {\"name\": \"Bob\", \"Price\": \"30\", \"city\": \"Oakham\"}]", 1.5 / 2);
}

Test(score, a_wrong_value_costs_a_quarter)
{
    expect_points("[" ONE ", {\"name\": \"Bob\", \"price\": \"31\", \"city\": \"Oakham\"}]", 1.75 / 2);
    expect_points("[" ONE ", {\"name\": \"Bob\", \"price\": \"\", \"city\": \"oakham\"}]", 1.5 / 2);
    expect_points("[" ONE ", {\"name\": \"Bob\", \"price\": \"31\"}]", 1.25 / 2);
}

Test(score, an_integer_is_compared_as_its_string)
{
    expect_points("[" ONE ", {\"name\": \"Bob\", \"price\": 30, \"city\": \"Oakham\"}]", 1);
    expect_points("[" ONE ", {\"name\": \"Bob\", \"price\": 31, \"city\": \"Oakham\"}]", 1.75 / 2);
    const char *others[] = {"30.0", "true", "{\"a\": 1}", "3e1"};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        char output[256];
        snprintf(output, sizeof output, "[" ONE ", {\"name\": \"Bob\", \"price\": %s, \"city\": \"Oakham\"}]",
                 others[i]);
        expect_points(output, 1.75 / 2);
    }
}

Test(score, integers_of_any_length_are_read)
{
    const char *gold = "[{\"name\": \"Bob\", \"a\": \"123456789012345678901234567890\", \"b\": \"-5\"}]";
    cr_assert(score_of(gold, "[{\"name\": \"Bob\", \"a\": 123456789012345678901234567890, \"b\": -5}]").score == 1);
    cr_assert(score_of(gold, "[{\"name\": \"Bob\", \"a\": 123456789012345678901234567891, \"b\": -5}]").score == 0.75);
    /* digits in a string, behind an escaped quote, are left alone */
    cr_assert(score_of(gold, "[{\"name\": \"Bob\", \"a\": \"\\\" 1234567890123456789012\", \"b\": -5}]").score == 0.75);
    cr_assert(score_of(gold, "[{\"name\": \"Bob\", \"a\": 0123456789012345678901, \"b\": -5}]").unread);
}

Test(score, a_gold_name_is_used_up)
{
    expect_points("[" ONE ", " TWO ", " TWO "]", 2.0 / 3);
    expect_points("[{\"name\": \"Bob\"}, " TWO ", " ONE "]", 1.0 / 3); /* the first of them counts, for nothing */
}

Test(score, keys_that_nobody_asked_for_do_no_harm)
{
    expect_points("[" ONE ", {\"name\": \"Bob\", \"price\": \"30\", \"city\": \"Oakham\", \"more\": \"x\"}]", 1);
}

Test(score, a_gold_that_names_one_twice_is_left_out)
{
    lode_text2json_score_t score = score_of("[" ONE ", {\"name\": \"Ann’s\", \"a\": \"1\", \"b\": \"2\"}]", GOLD);
    cr_assert(score.left_out && strcmp(score.twice, "Ann’s") == 0);
}

Test(score, gold_of_another_form_is_refused)
{
    const char *wrong[] = {"[]",
                           "{}",
                           "[5]",
                           "[{\"name\": \"a\", \"b\": \"c\"}]",
                           "[{\"nom\": \"a\", \"b\": \"c\", \"d\": \"e\"}]",
                           "[{\"name\": \"a\", \"b\": 5, \"d\": \"e\"}]",
                           "[" ONE ", {\"name\": \"a\", \"b\": \"c\", \"d\": null}]"};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        json_t *gold = json_loads(wrong[i], 0, NULL);
        cr_assert(lode_text2json_check_gold(gold) == LODE_ERR_INVALID, "%s", wrong[i]);
        json_decref(gold);
    }
}

/* -------------------------------------------------------------------- rows */

static void expect_rows(const char *gold, const char *output, double precision, double recall)
{
    lode_rows_score_t s;
    double sum = precision + recall, f1 = sum > 0 ? 2 * precision * recall / sum : 0;
    cr_assert(lode_rows_score(gold, output, &s) == LODE_OK, "%s", lode_error_message());
    cr_assert(fabs(s.precision - precision) < 1e-12 && fabs(s.recall - recall) < 1e-12 && fabs(s.f1 - f1) < 1e-12,
              "precision %g, recall %g, F1 %g: %s", s.precision, s.recall, s.f1, output);
}

#define ROWS "name\tprice\nThe Red Fox\t$12.50\nBob\tN/A\n"

Test(rows, precision_recall_and_their_mean)
{
    expect_rows(ROWS, ROWS, 1, 1);
    expect_rows(ROWS, "name\tprice\nBob\tN/A\nThe Red Fox\t$12.50", 1, 1);
    expect_rows(ROWS, "name\tprice\nBob\tN/A", 1, 0.5);
    expect_rows(ROWS, ROWS "Carl\t1\nDora\t2\n", 0.5, 1);
    expect_rows(ROWS, "name\tprice\nBob\t7\n", 0, 0);
    expect_rows(ROWS, "", 0, 0);
    expect_rows(ROWS, "name\tprice\n", 0, 0);
}

Test(rows, cells_are_compared_in_plain_form)
{
    expect_rows(ROWS, "name\tprice\r\nred fox\t 12.50\r\nBOB\tn/a\r\n", 1, 1);
    expect_rows("h\nthe then\n", "h\nThen\n", 1, 1); /* an article is a whole word */
    expect_rows("h\nthen\n", "h\nn\n", 0, 0);
    expect_rows(ROWS, "name\tprice\nThe Red Fox\t$1.250\nBob\tN/A", 1, 1); /* after LongProc: no punctuation */
}

Test(rows, a_gold_row_is_matched_once)
{
    expect_rows(ROWS, "name\tprice\nBob\tN/A\nBob\tN/A\n", 0.5, 0.5);
}

Test(rows, a_fence_holds_what_counts)
{
    expect_rows(ROWS, "Here are the rows:\n```tsv\n" ROWS "```\nAnything else?", 1, 1);
    expect_rows(ROWS, "```tsv\n" ROWS, 1, 1);
}

Test(rows, rows_of_another_width_are_wrong_unless_they_end_it)
{
    expect_rows(ROWS, ROWS "That is all.", 1, 1);
    expect_rows(ROWS, "name\tprice\nBob\nThe Red Fox\t$12.50\n", 0.5, 0.5);
    expect_rows(ROWS, "name\tprice\nBob\tN/A\textra\nThe Red Fox\t$12.50\n", 0.5, 0.5);
    lode_rows_score_t s;
    cr_assert(lode_rows_score("only a header\n", ROWS, &s) == LODE_ERR_INVALID);
}

/* ------------------------------------------------------------------- files */

static const char *write_file(const char *name, const char *text)
{
    static char path[2][64];
    static int turn;
    turn = !turn;
    snprintf(path[turn], sizeof path[turn], "/tmp/lode-text2json-%d-%s", (int)getpid(), name);
    FILE *file = fopen(path[turn], "w");
    cr_assert(file && fputs(text, file) >= 0 && fclose(file) == 0);
    return path[turn];
}

static lode_status_t score_files(const char *gold, const char *predictions, json_t **report)
{
    const char *gold_path = write_file("gold", gold), *predictions_path = write_file("predictions", predictions);
    lode_task_result_t result = {0};
    lode_status_t status = lode_task_score_files(LODE_TASK_TEXT2JSON, gold_path, predictions_path, &result);
    *report = result.report;
    unlink(gold_path);
    unlink(predictions_path);
    return status;
}

#define LIST "[{\"name\": \"Bob\", \"a\": \"1\", \"b\": \"2\"}]"
#define STRING "\"[{\\\"name\\\": \\\"Bob\\\", \\\"a\\\": \\\"1\\\", \\\"b\\\": \\\"2\\\"}]\""
#define SAMPLE "{\"problem\": \"p\", \"answer\": " STRING "}\n"
#define TWICE                                                                                           \
    "{\"answer\": [{\"name\": \"Bob\", \"a\": \"1\", \"b\": \"2\"}, {\"name\": \"Bob\", \"a\": \"1\", " \
    "\"b\": \"2\"}]}\n"

Test(files, the_mean_leaves_out_what_cannot_be_scored)
{
    json_t *report;
    /* every form of an answer and of a prediction; 1, left out, 0.5, 0 */
    cr_assert(score_files(SAMPLE TWICE "{\"answer\": " LIST "}\n" SAMPLE,
                          "{\"prediction\": " STRING "}\n" STRING "\n[{\"name\": \"Bob\", \"a\": \"1\"}]\n\"\"\n\n",
                          &report) == LODE_OK,
              "%s", lode_error_message());
    cr_assert(fabs(json_real_value(json_object_get(report, "score")) - 50) < 1e-12);
    cr_assert(json_integer_value(json_object_get(report, "samples")) == 4);
    cr_assert(json_integer_value(json_object_get(report, "scored")) == 3);
    json_t *left_out = json_array_get(json_object_get(report, "left_out"), 0);
    cr_assert(json_integer_value(json_object_get(left_out, "line")) == 2);
    cr_assert(json_array_size(json_object_get(report, "by_sample")) == 3);
    json_decref(report);
}

static void expect_refused(const char *gold, const char *predictions, const char *word, const char *second)
{
    json_t *report;
    cr_assert(score_files(gold, predictions, &report) == LODE_ERR_INVALID, "accepted: %s", predictions);
    cr_assert(strstr(lode_error_message(), word) && strstr(lode_error_message(), second), "%s", lode_error_message());
}

Test(files, what_is_wrong_is_told_with_its_line)
{
    expect_refused(SAMPLE SAMPLE SAMPLE, "\"\"\n", "predictions has 1 lines", "3 samples");
    expect_refused(SAMPLE, "\"\"\n\"\"\n\"\"\n", "predictions has 3 lines", "1 samples");
    expect_refused(SAMPLE SAMPLE, "\"\"\nnonsense\n", "predictions line 2", "is no JSON");
    expect_refused(SAMPLE SAMPLE, "\"\"\n{\"text\": \"\"}\n", "predictions line 2", "no key \"prediction\"");
    expect_refused(SAMPLE SAMPLE, "\"\"\n{\"prediction\": 5}\n", "predictions line 2", "is no string");
    expect_refused(SAMPLE SAMPLE, "\"\"\n7\n", "predictions line 2", "neither");
    expect_refused(SAMPLE SAMPLE, "\"\"\n\n\"\"\n", "predictions line 2", "is empty");
    expect_refused(SAMPLE "{\"problem\": \"p\"}\n", "\"\"\n\"\"\n", "gold line 2", "\"answer\"");
    expect_refused(SAMPLE "{\"answer\": \"text\"}\n", "\"\"\n\"\"\n", "gold line 2", "no list");
    expect_refused(SAMPLE "\xff\n", "\"\"\n\"\"\n", "gold line 2", "is no JSON");
    expect_refused("", "", "gold", "no samples");
    expect_refused(TWICE, "\"\"\n", "gold", "none can be scored");
}

/* ------------------------------------------------------------------ making */

static lode_text2json_params_t params_of(lode_text2json_task_t task, uint32_t domain)
{
    return (lode_text2json_params_t){.task = task,
                                     .seed = 11,
                                     .split = LODE_TEXT2JSON_TEST,
                                     .domains = 1u << domain,
                                     .tokens_min = 2000,
                                     .tokens_max = 4000,
                                     .items_min = 3,
                                     .items_max = 8};
}

static lode_text2json_sample_t make_sample(const lode_text2json_params_t *p, uint64_t index)
{
    lode_text2json_sample_t sample;
    cr_assert(lode_text2json_make(p, index, &sample) == LODE_OK, "%s", lode_error_message());
    return sample;
}

static uint32_t check_list(const lode_text2json_sample_t *s)
{
    json_t *list = json_loads(s->answer, JSON_REJECT_DUPLICATES, NULL), *value;
    lode_text2json_score_t score;
    const char *key;
    cr_assert(lode_text2json_check_gold(list) == LODE_OK, "%s", lode_error_message());
    cr_assert(lode_text2json_score(list, s->answer, strlen(s->answer), &score) == LODE_OK);
    cr_assert(score.left_out == false && score.score == 1, "a name twice, or a bracket in a value: %s", s->answer);
    for (size_t i = 0; i < json_array_size(list); i++)
        json_object_foreach(json_array_get(list, i), key, value)
            cr_assert(strstr(s->problem, json_string_value(value)) != NULL, "\"%s\" is not in the text",
                      json_string_value(value));
    uint32_t items = (uint32_t)json_array_size(list);
    json_decref(list);
    return items;
}

static uint32_t check_rows(const lode_text2json_sample_t *s)
{
    lode_rows_score_t score;
    char *rows = strdup(s->answer), *kept;
    cr_assert(lode_rows_score(s->answer, s->answer, &score) == LODE_OK && score.f1 == 1);
    for (char *cell = strtok_r(rows, "\t\n", &kept); cell; cell = strtok_r(NULL, "\t\n", &kept))
        cr_assert(strstr(s->problem, cell) != NULL || strcmp(cell, "N/A") == 0, "\"%s\" is not in the text", cell);
    free(rows);
    return score.gold;
}

Test(made, facts_are_in_the_text_and_sizes_are_kept)
{
    for (int task = 0; task < 3; task++)
        for (uint32_t domain = 0; domain < LODE_TEXT2JSON_DOMAINS; domain++)
            for (uint64_t i = 0; i < 60; i++) {
                lode_text2json_params_t p = params_of((lode_text2json_task_t)task, domain);
                p.split = i % 2 ? LODE_TEXT2JSON_TRAIN : LODE_TEXT2JSON_TEST;
                p.style = (lode_text2json_style_t)(i % 3);
                lode_text2json_sample_t s = make_sample(&p, i);
                uint32_t items = task == LODE_TASK_TEXT2JSON ? check_list(&s) : check_rows(&s);
                cr_assert(items == s.items && items >= 3 && items <= 8, "%u items", items);
                cr_assert(s.tokens == lode_text2json_tokens(s.problem));
                cr_assert(s.tokens >= 2000 && s.tokens <= 4000, "task %d, %s: %u tokens", task, s.domain, s.tokens);
                cr_assert(s.documents > items || task == LODE_TASK_MULTI_NEEDLE);
                cr_assert(strcmp(s.domain, lode_domains[domain].name) == 0);
                lode_text2json_sample_free(&s);
            }
}

/* What check() lets pass can be made, whatever is drawn. */
Test(made, the_least_room_is_enough)
{
    for (int task = 0; task < 3; task++)
        for (uint32_t domain = 0; domain < LODE_TEXT2JSON_DOMAINS; domain++)
            for (uint32_t items = 1; items <= 3; items++) {
                lode_text2json_params_t p = params_of((lode_text2json_task_t)task, domain);
                p.items_min = items;
                p.tokens_min = p.tokens_max = 1;
                while (lode_text2json_check(&p) != LODE_OK)
                    p.tokens_max++;
                cr_assert(p.tokens_max > 100);
                for (uint64_t i = 0; i < 100; i++) {
                    lode_text2json_sample_t s = make_sample(&p, i);
                    cr_assert(s.tokens <= p.tokens_max && s.items >= items, "task %d, %s: %u of %u tokens", task,
                              s.domain, s.tokens, p.tokens_max);
                    lode_text2json_sample_free(&s);
                }
            }
}

Test(made, a_seed_and_an_index_give_one_text)
{
    lode_text2json_params_t p = params_of(LODE_TASK_TEXT2JSON, 0), other = p;
    p.domains = other.domains = 15;
    lode_text2json_sample_t a = make_sample(&p, 3), b = make_sample(&p, 3), c = make_sample(&p, 4);
    other.seed++;
    lode_text2json_sample_t d = make_sample(&other, 3);
    cr_assert(strcmp(a.problem, b.problem) == 0 && strcmp(a.answer, b.answer) == 0);
    cr_assert(strcmp(a.problem, c.problem) != 0 && strcmp(a.problem, d.problem) != 0);
    lode_text2json_sample_free(&a);
    lode_text2json_sample_free(&b);
    lode_text2json_sample_free(&c);
    lode_text2json_sample_free(&d);
}

/* The same bytes on every machine; they change when a word or a template does, and then this number does. */
Test(made, the_bytes_are_those_that_they_were)
{
    uint64_t digest = 0;
    for (int task = 0; task < 3; task++)
        for (uint32_t domain = 0; domain < LODE_TEXT2JSON_DOMAINS; domain++) {
            lode_text2json_params_t p = params_of((lode_text2json_task_t)task, domain);
            lode_text2json_sample_t s = make_sample(&p, domain);
            digest = lode_mix(digest, lode_mix(lode_hash_text(s.problem), lode_hash_text(s.answer)));
            lode_text2json_sample_free(&s);
        }
    cr_assert(digest == 0x8639ad9865c893b4u, "%016llx", (unsigned long long)digest);
}

Test(made, default_sizes_are_those_of_the_paper)
{
    enum { SAMPLES = 400 };
    uint64_t sum = 0;
    lode_text2json_params_t p = params_of(LODE_TASK_TEXT2JSON, 0);
    p.tokens_min = 10000;
    p.tokens_max = 63500;
    p.items_max = 20;
    for (uint64_t i = 0; i < SAMPLES; i++) {
        lode_making_t making;
        lode_making_begin(&p, i, &making); /* draws the size; making 400 of them would take seconds */
        cr_assert(making.tokens >= 10000 && making.tokens <= 63500);
        cr_assert(making.item_count >= 3 && making.item_count <= 20);
        sum += making.tokens;
        lode_making_end(&making);
    }
    cr_assert(sum / SAMPLES > 19000 && sum / SAMPLES < 22500, "mean %llu", (unsigned long long)(sum / SAMPLES));
    lode_text2json_sample_t s = make_sample(&p, 0);
    cr_assert(s.tokens >= 10000 && s.tokens <= 63500 && check_list(&s) == s.items);
    lode_text2json_sample_free(&s);
}

/* -------------------------------------------------- the answer, found again from the text */

typedef struct found {
    char name[96], kind[64], values[LODE_ATTRIBUTES][64];
} found_t;

static bool take_line(const char *line, const char *label, char *value, size_t room)
{
    size_t length = strlen(label);
    if (strncmp(line, label, length) || strncmp(line + length, ": ", 2))
        return false;
    snprintf(value, room, "%.*s", (int)strcspn(line + length + 2, "\n"), line + length + 2);
    return true;
}

static uint32_t read_cards(const char *text, const lode_domain_t *domain, found_t *found, uint32_t room)
{
    uint32_t count = 0;
    found_t *at = NULL;
    for (const char *line = text; *line; line += strcspn(line, "\n"), line += *line == '\n') {
        char name[96];
        if (take_line(line, "Name", name, sizeof name)) {
            for (at = found; at < found + count && strcmp(at->name, name);)
                at++;
            cr_assert(at < found + room);
            if (at == found + count)
                snprintf(found[count++].name, sizeof name, "%s", name);
        }
        if (!at || take_line(line, domain->kind_label, at->kind, sizeof at->kind))
            continue;
        for (uint32_t i = 0; i < LODE_ATTRIBUTES; i++)
            take_line(line, domain->attributes[i].label, at->values[i], sizeof at->values[i]);
    }
    return count;
}

/* "list every KIND that" or "list every KIND made in PLACE that" */
static void read_request(const char *text, const lode_domain_t *domain, char *kind, char *place)
{
    const char *every = strstr(text, "Request: list every ") + strlen("Request: list every ");
    const char *end = strstr(every, " that the documents"), *split = strstr(every, domain->request_place);
    *place = 0;
    if (split && split < end)
        snprintf(place, 64, "%.*s", (int)(end - split - 1 - (long)strlen(domain->request_place)),
                 split + strlen(domain->request_place) + 1);
    else
        split = end + 1;
    snprintf(kind, 64, "%.*s", (int)(split - 1 - every), every);
}

static json_t *item_named(const json_t *list, const char *name)
{
    for (size_t i = 0; i < json_array_size(list); i++)
        if (strcmp(json_string_value(json_object_get(json_array_get(list, i), "name")), name) == 0)
            return json_array_get(list, i);
    return NULL;
}

static void check_answer(const lode_text2json_sample_t *s, const lode_domain_t *domain, uint32_t *same_kind,
                         uint32_t *with_place)
{
    enum { ROOM = 400 };
    char kind[64], place[64];
    found_t *found = calloc(ROOM, sizeof *found);
    uint32_t n = read_cards(s->problem, domain, found, ROOM), right = 0;
    read_request(s->problem, domain, kind, place);
    json_t *list = json_loads(s->answer, 0, NULL);
    for (uint32_t i = 0; i < n; i++) {
        if (strcmp(found[i].kind, kind))
            continue;
        *same_kind += *place && strcmp(found[i].values[0], place) != 0;
        if (*place && strcmp(found[i].values[0], place) != 0)
            continue;
        json_t *item = item_named(list, found[i].name);
        right++;
        cr_assert(item != NULL, "%s is not in the answer", found[i].name);
        for (uint32_t a = 0; a < LODE_ATTRIBUTES; a++) {
            const char *value = json_string_value(json_object_get(item, domain->attributes[a].key));
            cr_assert(value == NULL || strcmp(value, found[i].values[a]) == 0, "%s: %s", found[i].name, value);
        }
    }
    *with_place += *place != 0;
    cr_assert(right == s->items, "%u of %u fit \"%s\" \"%s\"", right, s->items, kind, place);
    json_decref(list);
    free(found);
}

/* Nobody else fits what is asked for, and all who fit are in the answer. */
Test(made, the_answer_is_what_the_text_says)
{
    uint32_t same_kind = 0, with_place = 0;
    for (uint32_t domain = 0; domain < LODE_TEXT2JSON_DOMAINS; domain++)
        for (uint64_t i = 0; i < 40; i++) {
            lode_text2json_params_t p = params_of(LODE_TASK_TEXT2JSON, domain);
            p.style = LODE_TEXT2JSON_CARDS;
            p.tokens_max = 6000;
            lode_text2json_sample_t s = make_sample(&p, i);
            check_answer(&s, &lode_domains[domain], &same_kind, &with_place);
            lode_text2json_sample_free(&s);
        }
    cr_assert(with_place > 40 && with_place < 120, "%u requests name a place", with_place);
    cr_assert(same_kind > with_place, "%u of the kind are elsewhere", same_kind);
}

/* ------------------------------------------------------------------ splits */

static void expect_apart(const lode_words_t *words, const lode_words_t *endings)
{
    uint32_t train = lode_words_count(words, LODE_TEXT2JSON_TRAIN), test = lode_words_count(words, LODE_TEXT2JSON_TEST);
    uint32_t ends = endings ? endings->count : 1;
    cr_assert(train + test == words->count && test * 4 == words->count);
    for (uint32_t i = 0; i < train * ends; i++)
        for (uint32_t j = 0; j < test * ends; j++) {
            char a[64], b[64];
            snprintf(a, sizeof a, "%s%s", lode_words_at(words, LODE_TEXT2JSON_TRAIN, i / ends),
                     endings ? endings->list[i % ends] : "");
            snprintf(b, sizeof b, "%s%s", lode_words_at(words, LODE_TEXT2JSON_TEST, j / ends),
                     endings ? endings->list[j % ends] : "");
            cr_assert(strcmp(a, b) != 0, "\"%s\" is in both splits", a);
        }
}

Test(made, splits_share_no_name_and_no_word)
{
    const lode_words_t *lists[] = {&lode_words_first_name,   &lode_words_product,   &lode_words_speciality,
                                   &lode_words_organisation, &lode_words_genre,     &lode_words_country,
                                   &lode_words_colour,       &lode_words_material,  &lode_words_language,
                                   &lode_words_film_noun,    &lode_words_adjective, &lode_words_key_word};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        expect_apart(lists[i], NULL);
    expect_apart(&lode_words_brand, &lode_words_brand_end);
    expect_apart(&lode_words_surname, &lode_words_surname_end);
    expect_apart(&lode_words_place, &lode_words_place_end);
}

/* A word of one split in the other's texts would be seen here, whatever way it took. */
Test(made, texts_of_a_split_name_nothing_of_the_other)
{
    for (uint32_t domain = 0; domain < LODE_TEXT2JSON_DOMAINS; domain++)
        for (uint64_t i = 0; i < 10; i++) {
            lode_text2json_params_t p = params_of(LODE_TASK_TEXT2JSON, domain);
            const lode_words_t *kinds = lode_domains[domain].kinds;
            lode_text2json_sample_t s = make_sample(&p, i);
            for (uint32_t k = 0; k < lode_words_count(kinds, LODE_TEXT2JSON_TRAIN); k++)
                cr_assert(strstr(s.problem, lode_words_at(kinds, LODE_TEXT2JSON_TRAIN, k)) == NULL, "%s",
                          lode_words_at(kinds, LODE_TEXT2JSON_TRAIN, k));
            for (uint32_t k = 0; k < lode_words_count(&lode_words_country, LODE_TEXT2JSON_TRAIN); k++)
                cr_assert(strstr(s.problem, lode_words_at(&lode_words_country, LODE_TEXT2JSON_TRAIN, k)) == NULL);
            lode_text2json_sample_free(&s);
        }
}

Test(made, limits_that_do_not_fit_are_refused)
{
    lode_text2json_params_t p = params_of(LODE_TASK_TEXT2JSON, 0);
    p.tokens_min = p.tokens_max = 100;
    cr_assert(lode_text2json_check(&p) == LODE_ERR_INVALID && strstr(lode_error_message(), "no room for 3 items"));
    lode_text2json_sample_t s;
    cr_assert(lode_text2json_make(&p, 0, &s) == LODE_ERR_INVALID);
    p = params_of(LODE_TASK_TEXT2JSON, 0);
    p.domains = 0;
    cr_assert(lode_text2json_check(&p) == LODE_ERR_INVALID);
    p.domains = 1u << LODE_TEXT2JSON_DOMAINS;
    cr_assert(lode_text2json_check(&p) == LODE_ERR_INVALID);
}

Test(made, tokens_are_counted_as_documented)
{
    cr_assert(lode_text2json_tokens("") == 0);
    cr_assert(lode_text2json_tokens("a lamp") == 2);
    cr_assert(lode_text2json_tokens("kettle kettles kettlesxxxxx kettlesxxxxxx") == 1 + 2 + 2 + 3);
    cr_assert(lode_text2json_tokens("123 1234 $12.50\n") == 1 + 2 + 4 + 1);
    cr_assert(lode_text2json_tokens("ö") == 2); /* two bytes */
}
