/* SPDX-License-Identifier: Apache-2.0 */
/* A file of samples and one of predictions, line by line. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench/text2json_inside.h"

/* ------------------------------------------------------------------- lines */

typedef struct lines {
    const char *path;
    FILE *file;
    char *text;
    size_t room;
    uint64_t number; /* of the line in text, from 1 */
    json_t *value;   /* of that line */
} lines_t;

static lode_status_t lines_open(const char *path, lines_t *lines)
{
    *lines = (lines_t){.path = path, .file = fopen(path, "r")};
    return lines->file ? LODE_OK : lode_fail(LODE_ERR_IO, "%s cannot be opened: %s", path, strerror(errno));
}

static void lines_close(lines_t *lines)
{
    if (lines->file)
        fclose(lines->file);
    free(lines->text);
    json_decref(lines->value);
    *lines = (lines_t){0};
}

static bool is_blank(const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (!strchr(" \t\r\n", text[i]))
            return false;
    return true;
}

static lode_status_t wrong_line(const lines_t *lines, const char *what)
{
    return lode_fail(LODE_ERR_INVALID, "%s line %" PRIu64 ": %s", lines->path, lines->number, what);
}

/* The next line as JSON; @p end where nothing but blank lines is left. */
static lode_status_t lines_next(lines_t *lines, bool *end)
{
    json_error_t error;
    ssize_t bytes = 0;
    uint64_t blank = 0;
    json_decref(lines->value);
    lines->value = NULL;
    *end = false;
    while ((bytes = getline(&lines->text, &lines->room, lines->file)) >= 0 && is_blank(lines->text, (size_t)bytes))
        blank++;
    if (bytes < 0 && ferror(lines->file))
        return lode_fail(LODE_ERR_IO, "%s cannot be read: %s", lines->path, strerror(errno));
    *end = bytes < 0;
    if (*end)
        return LODE_OK;
    lines->number++;
    if (blank)
        return wrong_line(lines, "is empty; every sample has its line");
    lines->value = json_loadb(lines->text, (size_t)bytes, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (lines->value)
        return LODE_OK;
    char what[JSON_ERROR_TEXT_LENGTH + 64];
    snprintf(what, sizeof what, "is no JSON: %s (column %d)", error.text, error.column);
    return wrong_line(lines, what);
}

/* -------------------------------------------------------------------- gold */

/* A sample's answer: a text that holds it, or for Text2JSON the list itself. */
static lode_status_t read_gold(const lines_t *lines, lode_text2json_task_t task, json_t **gold)
{
    const json_t *answer = json_is_object(lines->value) ? json_object_get(lines->value, "answer") : NULL;
    if (!answer)
        return wrong_line(lines, "is no object with the key \"answer\"");
    if (task != LODE_TASK_TEXT2JSON) {
        if (!json_is_string(answer))
            return wrong_line(lines, "its answer is no text of tab-separated rows");
        *gold = json_incref((json_t *)(uintptr_t)answer);
        return LODE_OK;
    }
    json_t *list = json_is_string(answer) ? json_loads(json_string_value(answer), 0, NULL)
                                          : json_incref((json_t *)(uintptr_t)answer);
    if (lode_text2json_check_gold(list) == LODE_OK) {
        *gold = list;
        return LODE_OK;
    }
    json_decref(list);
    return lode_fail_within(LODE_ERR_INVALID, "%s line %" PRIu64 ": ", lines->path, lines->number);
}

/* ----------------------------------------------------------------- samples */

static lode_status_t take_line(const lines_t *lines, lode_task_line_t **list, uint64_t *count)
{
    const json_t *problem = json_is_object(lines->value) ? json_object_get(lines->value, "problem") : NULL;
    lode_task_line_t made = {.bytes = json_string_length(problem)};
    if (!json_is_string(problem))
        return wrong_line(lines, "is no object with a text \"problem\"");
    LODE_TRY(read_gold(lines, LODE_TASK_TEXT2JSON, &made.gold));
    lode_task_line_t *more = realloc(*list, (*count + 1) * sizeof *more);
    made.problem = malloc(made.bytes + 1);
    *list = more ? more : *list;
    if (!more || !made.problem) {
        free(made.problem);
        json_decref(made.gold);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the samples of %s", lines->path);
    }
    memcpy(made.problem, json_string_value(problem), made.bytes + 1);
    more[(*count)++] = made;
    return LODE_OK;
}

lode_status_t lode_task_lines_read(const char *path, uint64_t most, lode_task_line_t **out, uint64_t *out_count)
{
    lines_t lines;
    lode_task_line_t *list = NULL;
    uint64_t count = 0;
    bool end = false;
    LODE_TRY(lines_open(path, &lines));
    lode_status_t status = LODE_OK;
    while (status == LODE_OK && (!most || count < most)) {
        status = lines_next(&lines, &end);
        if (status != LODE_OK || end)
            break;
        status = take_line(&lines, &list, &count);
    }
    if (status == LODE_OK && !count)
        status = lode_fail(LODE_ERR_INVALID, "%s holds no samples", path);
    lines_close(&lines);
    if (status != LODE_OK) {
        lode_task_lines_free(list, count);
        return status;
    }
    *out = list;
    *out_count = count;
    return LODE_OK;
}

void lode_task_lines_free(lode_task_line_t *lines, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        free(lines[i].problem);
        json_decref(lines[i].gold);
    }
    free(lines);
}

/* ------------------------------------------------------------- predictions */

/* A text, {"prediction": text}, or the predicted list itself. */
static lode_status_t read_prediction(const lines_t *lines, const char **output, size_t *bytes)
{
    const json_t *value = json_is_object(lines->value) ? json_object_get(lines->value, "prediction") : lines->value;
    if (json_is_array(lines->value)) {
        *output = lines->text;
        *bytes = strlen(lines->text);
        return LODE_OK;
    }
    if (!json_is_string(value))
        return wrong_line(lines, json_is_object(lines->value)
                                     ? (value ? "its \"prediction\" is no string" : "has no key \"prediction\"")
                                     : "is neither a string nor an object with the key \"prediction\"");
    *output = json_string_value(value);
    *bytes = json_string_length(value);
    return LODE_OK;
}

/* ------------------------------------------------------------------ totals */

typedef struct totals {
    lode_text2json_task_t task;
    uint64_t samples, scored;
    double score, precision, recall, f1;
    json_int_t gold, matched, additions, missing, wrong, unread, predicted;
    json_t *left_out, *by_sample;
} totals_t;

static void add_objects(totals_t *t, const lode_text2json_score_t *s)
{
    json_int_t line = (json_int_t)t->samples;
    if (s->left_out) {
        json_array_append_new(t->left_out, json_pack("{s:I s:s}", "line", line, "name", s->twice));
        return;
    }
    t->scored++;
    t->score += s->score;
    t->gold += s->gold;
    t->matched += s->matched;
    t->additions += s->additions;
    t->missing += s->missing;
    t->wrong += s->wrong;
    t->unread += s->unread;
    json_array_append_new(t->by_sample,
                          json_pack("{s:I s:f s:b s:i s:i s:i s:i s:i}", "line", line, "score", 100 * s->score, "read",
                                    (int)!s->unread, "items", (int)s->gold, "matched", (int)s->matched, "additions",
                                    (int)s->additions, "missing_keys", (int)s->missing, "wrong_values", (int)s->wrong));
}

static void add_rows(totals_t *t, const lode_rows_score_t *s)
{
    t->scored++;
    t->precision += s->precision;
    t->recall += s->recall;
    t->f1 += s->f1;
    t->gold += s->gold;
    t->matched += s->matched;
    t->predicted += s->predicted;
    json_array_append_new(t->by_sample,
                          json_pack("{s:I s:f s:f s:f s:i s:i s:i}", "line", (json_int_t)t->samples, "precision",
                                    100 * s->precision, "recall", 100 * s->recall, "f1", 100 * s->f1, "rows",
                                    (int)s->gold, "predicted", (int)s->predicted, "matched", (int)s->matched));
}

static json_t *report_of(totals_t *t)
{
    static const char *const names[] = {"text2json", "multi-needle", "html-to-tsv"};
    double scale = 100.0 / (double)t->scored;
    json_t *report = json_pack("{s:s s:I s:I s:I s:I}", "task", names[t->task], "samples", (json_int_t)t->samples,
                               "scored", (json_int_t)t->scored, t->task == LODE_TASK_TEXT2JSON ? "items" : "rows",
                               t->gold, "matched", t->matched);
    json_t *more = t->task == LODE_TASK_TEXT2JSON
                       ? json_pack("{s:f s:I s:I s:I s:I s:O}", "score", scale * t->score, "additions", t->additions,
                                   "missing_keys", t->missing, "wrong_values", t->wrong, "unread", t->unread,
                                   "left_out", t->left_out)
                       : json_pack("{s:f s:f s:f s:f s:I}", "score", scale * t->f1, "precision", scale * t->precision,
                                   "recall", scale * t->recall, "f1", scale * t->f1, "predicted", t->predicted);
    json_object_update(report, more);
    json_object_set(report, "by_sample", t->by_sample);
    json_decref(more);
    return report;
}

/* ------------------------------------------------------------------- files */

static lode_status_t score_pair(totals_t *t, const lines_t *gold_lines, const lines_t *predictions)
{
    json_t *gold = NULL;
    const char *output = NULL;
    size_t bytes = 0;
    lode_text2json_score_t objects;
    lode_rows_score_t rows;
    LODE_TRY(read_prediction(predictions, &output, &bytes));
    LODE_TRY(read_gold(gold_lines, t->task, &gold));
    t->samples++;
    lode_status_t status = t->task == LODE_TASK_TEXT2JSON ? lode_text2json_score(gold, output, bytes, &objects)
                                                          : lode_rows_score(json_string_value(gold), output, &rows);
    if (status != LODE_OK)
        status = lode_fail_within(status, "%s line %" PRIu64 ": ", gold_lines->path, gold_lines->number);
    else if (t->task == LODE_TASK_TEXT2JSON)
        add_objects(t, &objects);
    else
        add_rows(t, &rows);
    json_decref(gold);
    return status;
}

/* Lines that are left, with the one that was just read. */
static uint64_t lines_left(lines_t *lines)
{
    uint64_t left = 1;
    ssize_t bytes;
    while ((bytes = getline(&lines->text, &lines->room, lines->file)) >= 0)
        left += !is_blank(lines->text, (size_t)bytes);
    return left;
}

static lode_status_t lengths_differ(lines_t *gold, lines_t *predictions, uint64_t common, bool gold_ended)
{
    uint64_t more = lines_left(gold_ended ? predictions : gold);
    return lode_fail(
        LODE_ERR_INVALID,
        "%s has %" PRIu64 " lines, %s has %" PRIu64 " samples: line n of one belongs to line n of the other%s",
        predictions->path, gold_ended ? common + more : common, gold->path, gold_ended ? common : common + more,
        gold_ended ? "" : ", an empty string where there is no output");
}

static lode_status_t score_lines(totals_t *t, lines_t *gold, lines_t *predictions)
{
    bool gold_ended, ended;
    for (;;) {
        LODE_TRY(lines_next(gold, &gold_ended));
        LODE_TRY(lines_next(predictions, &ended));
        if (gold_ended && ended)
            break;
        if (gold_ended != ended)
            return lengths_differ(gold, predictions, t->samples, gold_ended);
        LODE_TRY(score_pair(t, gold, predictions));
    }
    if (!t->samples)
        return lode_fail(LODE_ERR_INVALID, "%s holds no samples", gold->path);
    if (!t->scored)
        return lode_fail(LODE_ERR_INVALID, "%s: every sample's answer names an item twice, so none can be scored",
                         gold->path);
    return LODE_OK;
}

lode_status_t lode_task_score_files(lode_text2json_task_t task, const char *gold_path, const char *predictions_path,
                                    lode_task_result_t *result)
{
    totals_t totals = {.task = task, .left_out = json_array(), .by_sample = json_array()};
    lines_t gold = {0}, predictions = {0};
    lode_status_t status = lines_open(gold_path, &gold);
    if (status == LODE_OK)
        status = lines_open(predictions_path, &predictions);
    if (status == LODE_OK)
        status = score_lines(&totals, &gold, &predictions);
    if (status == LODE_OK)
        *result = (lode_task_result_t){report_of(&totals), totals.samples, totals.scored};
    lines_close(&gold);
    lines_close(&predictions);
    json_decref(totals.left_out);
    json_decref(totals.by_sample);
    return status;
}
