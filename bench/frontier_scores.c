/* SPDX-License-Identifier: Apache-2.0 */
/* Scores of a model under policies (`lodemark bench text2json --json`) beside what the policies keep of attention. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/frontier.h"
#include "bench/options.h"
#include "bench/page.h"

static lode_status_t wrong(const char *path, const char *what)
{
    return lode_fail(LODE_ERR_FORMAT, "--scores %s: %s; lodemark bench text2json --json writes such files", path, what);
}

static lode_status_t check_report(const char *path, const json_t *report)
{
    const json_t *rows = json_object_get(report, "rows"), *row;
    size_t i;
    if (!json_is_string(json_object_get(report, "task")) || !json_is_array(rows))
        return wrong(path, "has no \"task\" and \"rows\"");
    json_array_foreach(rows, i, row)
    {
        const json_t *score = json_object_get(row, "score");
        if (!json_is_string(json_object_get(row, "policy")) || !json_is_number(json_object_get(row, "budget")) ||
            (!json_is_number(score) && !json_is_null(score)))
            return wrong(path, "has a row without policy, budget and score");
    }
    return LODE_OK;
}

/* Scores of single samples stay in their own file. */
static void drop_samples(json_t *report)
{
    json_t *rows = json_object_get(report, "rows"), *row;
    size_t i;
    json_array_foreach(rows, i, row) json_object_del(row, "by_sample");
}

static lode_status_t read_report(const char *path, json_t *reports)
{
    json_error_t error;
    json_t *report = json_load_file(path, 0, &error);
    if (!report)
        return lode_fail(error.line < 0 ? LODE_ERR_IO : LODE_ERR_FORMAT, "--scores %s: %s", path, error.text);
    lode_status_t status = check_report(path, report);
    if (status == LODE_OK) {
        drop_samples(report);
        json_array_append(reports, report);
    }
    json_decref(report);
    return status;
}

lode_status_t lode_frontier_scores_read(const char *paths, json_t **reports)
{
    json_t *made = json_array();
    lode_status_t status = made ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for scores");
    for (const char *at = paths; at && status == LODE_OK;) {
        char path[4096];
        at = lode_bench_next_word(at, path, sizeof path);
        status = read_report(path, made);
    }
    if (status == LODE_OK)
        *reports = made;
    else
        json_decref(made);
    return status;
}

/*
 * Whether a row of scores is of this policy. The reader's landmarks are behind a balance if its ranks were given a
 * transform, those of this report if they are not ":plain"; names of HIGGS codes mean centred ones there.
 */
static bool same_policy(const lode_chooser_t *policy, const char *name, bool transform)
{
    lode_landmark_spec_t spec;
    if (policy->kind == LODE_CHOOSER_DENSE || policy->kind == LODE_CHOOSER_SHADOW)
        return strcmp(policy->name, name) == 0;
    if (policy->kind != LODE_CHOOSER_LANDMARK || policy->landmark.form == LODE_FORM_RESIDUAL ||
        strncmp(name, "landmark", 8) != 0 || lode_landmark_parse(name, &spec) != LODE_OK)
        return false;
    bool balanced = policy->landmark.turn == LODE_TURN_BALANCE, means = spec.codec == LODE_LANDMARK_MEAN;
    return spec.codec == policy->spec.codec && spec.bits == policy->spec.bits && spec.chunk == policy->spec.chunk &&
           (means || (spec.centre == policy->spec.centre && balanced == transform));
}

double lode_frontier_score(const json_t *reports, const lode_chooser_t *policy, double budget)
{
    const json_t *report, *row;
    size_t i, j;
    json_array_foreach(reports, i, report)
    {
        bool transform = json_is_string(json_object_get(report, "transform"));
        json_array_foreach(json_object_get(report, "rows"), j, row)
        {
            double at = json_number_value(json_object_get(row, "budget")) / 100;
            const json_t *score = json_object_get(row, "score");
            if (fabs(at - budget) <= 1e-6 * budget && json_is_number(score) &&
                same_policy(policy, json_string_value(json_object_get(row, "policy")), transform))
                return json_number_value(score);
        }
    }
    return NAN;
}

static void write_number(FILE *out, const json_t *row, const char *key, int digits)
{
    const json_t *value = json_object_get(row, key);
    if (json_is_number(value))
        fprintf(out, "<td>%.*f</td>", digits, json_number_value(value));
    else
        fputs("<td>–</td>", out);
}

static void write_report(FILE *out, const json_t *report)
{
    const json_t *row, *model = json_object_get(json_object_get(report, "model"), "folder");
    const char *transform = json_string_value(json_object_get(report, "transform"));
    size_t i;
    fputs("<p>", out);
    lode_page_escape(out, json_string_value(json_object_get(report, "task")));
    fprintf(out, ", %.0f samples of %.0f tokens, model ", json_number_value(json_object_get(report, "samples")),
            json_number_value(json_object_get(report, "tokens_per_sample")));
    lode_page_escape(out, json_is_string(model) ? json_string_value(model) : "unknown");
    if (transform) {
        fputs(", landmarks behind the transform ", out);
        lode_page_escape(out, transform);
    }
    fputs("</p>\n<table class=\"scores\"><thead><tr><th>policy</th><th>budget&nbsp;%</th><th>score</th><th>less than "
          "dense</th><th>its error</th><th>bytes an answer's token</th><th>landmark bytes a token</th><th>resident "
          "bytes a token</th><th>ms a token</th></tr></thead>\n<tbody>\n",
          out);
    json_array_foreach(json_object_get(report, "rows"), i, row)
    {
        fputs("<tr><td>", out);
        lode_page_escape(out, json_string_value(json_object_get(row, "policy")));
        fputs("</td>", out);
        write_number(out, row, "budget", 3);
        write_number(out, row, "score", 2);
        write_number(out, row, "difference", 2);
        write_number(out, row, "difference_error", 2);
        write_number(out, row, "bytes_per_token", 0);
        write_number(out, row, "landmark_bytes_per_token", 1);
        write_number(out, row, "resident_bytes_per_token", 1);
        write_number(out, row, "ms_per_token", 2);
        fputs("</tr>\n", out);
    }
    fputs("</tbody></table>\n", out);
}

void lode_frontier_scores_write(FILE *out, const json_t *reports)
{
    const json_t *report;
    size_t i;
    fputs("<h2>Scores of a model that answers</h2>\n", out);
    json_array_foreach(reports, i, report) write_report(out, report);
}
