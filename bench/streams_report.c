/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of `lodemark bench streams` as tables and as JSON. */
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "bench/print.h"
#include "bench/streams.h"

static lode_mean_t mean_of(const lode_streams_bench_t *b, const lode_streams_row_t *row, lode_streams_measure_t measure)
{
    return lode_mean(row->values[measure], b->samples);
}

/* How many times as much thinking first takes as talking at once. */
static lode_mean_t ratio_of(const lode_streams_bench_t *b, const lode_streams_row_t *row,
                            lode_streams_measure_t measure)
{
    return lode_mean_ratio(lode_streams_partner(b, row)->values[measure], row->values[measure], b->samples);
}

static lode_mean_t score_difference(const lode_streams_bench_t *b, const lode_streams_row_t *row)
{
    return lode_mean_difference(row->values[LODE_STREAMS_SCORE],
                                lode_streams_partner(b, row)->values[LODE_STREAMS_SCORE], b->samples);
}

/* -------------------------------------------------------------------- tables */

static void print_names(const lode_streams_row_t *row, bool mode)
{
    printf("%-12s %5.4g %% %7s  ", row->reading->name, 100 * row->budget, row->arrival->name);
    if (mode)
        printf("%-11s", lode_talk_mode_name(row->mode));
}

static void print_mean(lode_mean_t mean, int width, int digits)
{
    char format[8];
    snprintf(format, sizeof format, "%%.%df", digits);
    lode_print_number(width, format, mean.mean);
    snprintf(format, sizeof format, "%%.%df", digits);
    lode_print_number(width - 2, format, mean.error);
}

static void print_row(const lode_streams_bench_t *b, const lode_streams_row_t *row)
{
    static const lode_streams_measure_t with_error[] = {LODE_STREAMS_SCORE, LODE_STREAMS_FIRST_STEPS,
                                                        LODE_STREAMS_FIRST_MS, LODE_STREAMS_DELAY};
    print_names(row, true);
    for (size_t i = 0; i < sizeof with_error / sizeof *with_error; i++)
        print_mean(mean_of(b, row, with_error[i]), 7, with_error[i] == LODE_STREAMS_DELAY ? 3 : 1);
    lode_print_number(6, "%.1f", mean_of(b, row, LODE_STREAMS_STEPS).mean);
    lode_print_number(8, "%.1f", mean_of(b, row, LODE_STREAMS_THOUGHTS).mean);
    lode_print_number(6, "%.1f", mean_of(b, row, LODE_STREAMS_WORDS).mean);
    lode_print_number(7, "%.2f", mean_of(b, row, LODE_STREAMS_STEP_MS).mean);
    lode_print_number(9, "%.0f", mean_of(b, row, LODE_STREAMS_CHOSEN).mean);
    lode_print_number(9, "%.0f", mean_of(b, row, LODE_STREAMS_FETCHED).mean);
    lode_print_number(6, "%.1f", mean_of(b, row, LODE_STREAMS_PROBES).mean);
    lode_print_number(5, "%.1f", mean_of(b, row, LODE_STREAMS_YES).mean);
    printf("%s\n", row->silent ? "  silent" : "");
}

static void print_ratios(const lode_streams_bench_t *b)
{
    bool begun = false;
    for (uint32_t i = 0; i < b->row_count; i++) {
        const lode_streams_row_t *row = &b->rows[i];
        if (!lode_streams_partner(b, row))
            continue;
        if (!begun)
            printf("\nThinking first over at once, sample by sample: times as long until the first word, times the "
                   "delay, and points that at once has more\n\n%-31s %15s %14s %14s %14s\n",
                   "policy, budget, second half", "first, steps +-", "first, ms +-", "delay +-", "score +-");
        begun = true;
        print_names(row, false);
        printf("  ");
        print_mean(ratio_of(b, row, LODE_STREAMS_FIRST_STEPS), 8, 2);
        print_mean(ratio_of(b, row, LODE_STREAMS_FIRST_MS), 8, 2);
        print_mean(ratio_of(b, row, LODE_STREAMS_DELAY), 8, 2);
        print_mean(score_difference(b, row), 8, 1);
        printf("\n");
    }
}

void lode_streams_print(const lode_streams_bench_t *b)
{
    const lode_model_info_t *info = lode_model_info(lode_reader_model(b->stores.readers[0]));
    printf("%s: %s, %.1f M parameters, %u layers, %u KV heads of %u\n%llu samples of %.1f documents, %u rank%s, %s "
           "records; chunks of %u tokens spoken at %.4g a second\n\n",
           b->model, info->family, (double)info->parameters / 1e6, info->geometry.layers, info->geometry.kv_heads,
           info->geometry.head_dim, (unsigned long long)b->samples, (double)b->documents / (double)b->samples,
           b->job.ranks, b->job.ranks == 1 ? "" : "s", lode_format_name(b->format), b->speech.chunk, b->speech.rate);
    if (b->step_ms > 0)
        printf("Times are those of steps of %.4g ms; ms/step is as measured.\n\n", b->step_ms);
    printf("%-12s %7s %7s  %-11s %7s %5s %7s %5s %7s %5s %7s %5s %6s %8s %6s %7s %9s %9s %6s %5s\n", "policy", "budget",
           "half 2", "mode", "score", "+-", "first", "+-", "ms", "+-", "delay s", "+-", "steps", "thoughts", "words",
           "ms/step", "B/step", "fetched", "probes", "yes");
    for (uint32_t i = 0; i < b->row_count; i++)
        print_row(b, &b->rows[i]);
    print_ratios(b);
    fflush(stdout);
}

/* ---------------------------------------------------------------------- JSON */

static json_t *mean_json(lode_mean_t mean)
{
    json_t *object = json_object();
    lode_job_set_number(object, "mean", mean.mean);
    lode_job_set_number(object, "error", mean.error);
    lode_job_set_count(object, "count", mean.count);
    return object;
}

static json_t *measure_json(const lode_streams_bench_t *b, const double *values)
{
    json_t *object = mean_json(lode_mean(values, b->samples)), *list = json_array();
    for (uint64_t i = 0; i < b->samples; i++)
        json_array_append_new(list, lode_job_number(values[i]));
    json_object_set_new(object, "by_sample", list);
    return object;
}

static json_t *against_json(const lode_streams_bench_t *b, const lode_streams_row_t *row)
{
    static const lode_streams_measure_t measures[] = {LODE_STREAMS_FIRST_STEPS, LODE_STREAMS_FIRST_MS,
                                                      LODE_STREAMS_DELAY, LODE_STREAMS_STEPS};
    if (!lode_streams_partner(b, row))
        return json_null();
    json_t *object = json_object();
    for (size_t i = 0; i < sizeof measures / sizeof *measures; i++)
        json_object_set_new(object, lode_streams_measures[measures[i]].key, mean_json(ratio_of(b, row, measures[i])));
    json_object_set_new(object, "score_difference", mean_json(score_difference(b, row)));
    return object;
}

static json_t *row_json(const lode_streams_bench_t *b, const lode_streams_row_t *row)
{
    json_t *object = json_object();
    lode_job_set_text(object, "mode", lode_talk_mode_name(row->mode));
    lode_job_set_text(object, "arrival", row->arrival->name);
    lode_job_set_text(object, "policy", row->reading->name);
    lode_job_set_number(object, "budget", 100 * row->budget);
    lode_job_set_count(object, "talks", b->samples);
    lode_job_set_count(object, "silent", row->silent);
    lode_job_set_count(object, "cut", row->cut);
    lode_job_set_count(object, "left_out", row->left_out);
    lode_job_set_count(object, "items", row->gold);
    lode_job_set_count(object, "matched", row->matched);
    for (int m = 0; m < LODE_STREAMS_MEASURES; m++)
        json_object_set_new(object, lode_streams_measures[m].key, measure_json(b, row->values[m]));
    json_object_set_new(object, "think_first_over_at_once", against_json(b, row));
    return object;
}

json_t *lode_streams_json(const lode_streams_bench_t *b)
{
    const char *transform = lode_config_get(b->config, "transform");
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    json_t *report = json_object(), *rows = json_array();
    for (uint32_t i = 0; i < b->row_count; i++)
        json_array_append_new(rows, row_json(b, &b->rows[i]));
    lode_job_set_text(report, "task", "streams");
    lode_job_set_text(report, "host", host);
    lode_job_set_count(report, "ranks", b->job.ranks);
    json_object_set_new(report, "model", lode_stores_json(&b->stores, b->model));
    lode_job_set_text(report, "samples_file", b->samples_path);
    lode_job_set_count(report, "samples", b->samples);
    lode_job_set_number(report, "documents_per_sample", (double)b->documents / (double)b->samples);
    lode_job_set_text(report, "transform", transform && *transform ? transform : NULL);
    lode_job_set_text(report, "hot_cache", lode_config_get(b->config, "hot-cache"));
    lode_job_set_text(report, "format", lode_format_name(b->format));
    lode_job_set_number(report, "speech_rate", b->speech.rate);
    lode_job_set_number(report, "synthesis_ms", 1e3 * b->speech.synthesis_s);
    lode_job_set_count(report, "chunk", b->speech.chunk);
    lode_job_set_number(report, "step_ms", b->step_ms);
    lode_job_set_count(report, "max_thoughts", b->most_thoughts);
    lode_job_set_count(report, "max_words", b->most_words);
    lode_job_set_count(report, "probe_every", b->probe_every ? b->probe_every : b->prompts.probe_every);
    json_object_set_new(report, "hear_at_once", json_boolean(b->hear_at_once));
    lode_job_set_count(report, "sinks", b->sinks);
    lode_job_set_count(report, "window", b->window);
    json_object_set_new(report, "rows", rows);
    return report;
}
