/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of `lodemark bench text2json` as a table and as JSON. */
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "bench/print.h"
#include "bench/reader_score.h"

static double per(double sum, uint64_t count)
{
    return count ? sum / (double)count : NAN;
}

static double score_of(const lode_score_bench_t *b, const lode_reading_row_t *row)
{
    double sum = 0;
    for (uint64_t i = 0; i < b->samples; i++)
        sum += isnan(row->scores[i]) ? 0 : row->scores[i];
    return 100 * per(sum, row->scored);
}

static const lode_reading_row_t *dense_row(const lode_score_bench_t *b)
{
    for (uint32_t i = 0; i < b->row_count; i++)
        if (b->rows[i].reading->kind == LODE_READING_DENSE)
            return &b->rows[i];
    return NULL;
}

/* Share of questions to which the answer is dense attention's, letter by letter. NAN: no dense row. */
static double same_as_dense(const lode_score_bench_t *b, const lode_reading_row_t *row)
{
    if (row->reading->kind == LODE_READING_DENSE)
        return 1;
    return dense_row(b) ? per((double)row->same, row->asked) : NAN;
}

/* A rival is played in plain memory by plain code: what that takes says nothing about it. */
static double ms_per_token(const lode_reading_row_t *row)
{
    return row->reading->kind == LODE_READING_SHADOW ? NAN : per((double)row->answer_ns / 1e6, row->steps);
}

static double ms_of_question(const lode_reading_row_t *row)
{
    return row->reading->kind == LODE_READING_SHADOW ? NAN : per((double)row->question_ns / 1e6, row->asked);
}

/* Mean over samples of what a row has more than dense, and the standard error of that mean. NAN: no dense row. */
static double difference_of(const lode_score_bench_t *b, const lode_reading_row_t *row, double *error)
{
    const lode_reading_row_t *dense = dense_row(b);
    double sum = 0, squares = 0, n = (double)row->scored;
    *error = NAN;
    for (uint64_t i = 0; dense && i < b->samples; i++) {
        double d = isnan(row->scores[i]) ? 0 : 100 * (row->scores[i] - dense->scores[i]);
        sum += d;
        squares += d * d;
    }
    if (dense && n > 1)
        *error = sqrt(fmax(squares - sum * sum / n, 0) / (n - 1) / n);
    return dense ? sum / n : NAN;
}

static void print_row(const lode_score_bench_t *b, const lode_reading_row_t *r)
{
    char found[48];
    double error, difference = difference_of(b, r, &error);
    snprintf(found, sizeof found, "%llu/%llu", (unsigned long long)r->matched, (unsigned long long)r->gold);
    printf("%-18s %5.4g %% ", r->reading->name, 100 * r->budget);
    lode_print_number(6, "%.2f", score_of(b, r));
    lode_print_number(8, "%+.2f", difference);
    lode_print_number(6, "%.2f", error);
    lode_print_number(6, "%.3f", same_as_dense(b, r));
    printf("  %11s %5llu %5llu %6llu ", found, (unsigned long long)r->additions,
           (unsigned long long)(r->wrong + r->missing), (unsigned long long)r->unread);
    lode_print_number(10, "%.0f", per(r->moved, r->steps));
    lode_print_number(9, "%.1f", r->landmarks);
    lode_print_number(9, "%.1f", r->residents);
    printf(" ");
    lode_print_number(8, "%.2f", ms_per_token(r));
    lode_print_number(9, "%.1f", ms_of_question(r));
    printf("\n");
}

static double tokens_of(const lode_score_bench_t *b)
{
    return per((double)b->rows[0].visible, b->rows[0].asked);
}

void lode_score_print(const lode_score_bench_t *b)
{
    const lode_model_info_t *info = lode_model_info(lode_reader_model(b->stores.readers[0]));
    printf("%s: %s, %.1f M parameters, %u layers, %u KV heads of %u\n%llu samples, %.0f documents and %.0f tokens a "
           "sample, %u rank%s, %s records\n\n",
           b->model, info->family, (double)info->parameters / 1e6, info->geometry.layers, info->geometry.kv_heads,
           info->geometry.head_dim, (unsigned long long)b->samples, per((double)b->documents, b->samples), tokens_of(b),
           b->job.ranks, b->job.ranks == 1 ? "" : "s", lode_format_name(b->format));
    printf("%-18s %7s  %6s %8s %6s %6s  %11s %5s %5s %6s  %10s %9s %9s  %8s %9s\n", "policy", "budget", "score",
           "- dense", "+-", "same", "found/items", "added", "wrong", "unread", "B/token", "landmarks", "resident",
           "ms/token", "ms asking");
    for (uint32_t i = 0; i < b->row_count; i++) {
        const lode_reading_row_t *r = &b->rows[i];
        print_row(b, r);
        if (r->rank)
            printf("%-18s rank %u of %u, %u outlier chunks a head, the question and the answer stay\n", "", r->rank,
                   info->geometry.kv_heads * info->geometry.head_dim, r->outliers);
        if (r->left_out)
            printf("%-18s %llu samples left out: their gold names an item twice\n", "",
                   (unsigned long long)r->left_out);
    }
    fflush(stdout);
}

static json_t *samples_json(const lode_score_bench_t *b, const lode_reading_row_t *row)
{
    json_t *list = json_array();
    for (uint64_t i = 0; i < b->samples; i++)
        json_array_append_new(list, lode_job_number(100 * row->scores[i]));
    return list;
}

static void set_costs(json_t *row, const lode_reading_row_t *r)
{
    lode_job_set_number(row, "bytes_per_token", per(r->moved, r->steps));
    lode_job_set_number(row, "fetched_bytes_per_token", per((double)r->fetched, r->steps));
    lode_job_set_number(row, "landmark_bytes_per_token", r->landmarks);
    lode_job_set_number(row, "resident_bytes_per_token", r->residents);
    lode_job_set_number(row, "ms_per_token", ms_per_token(r));
    lode_job_set_number(row, "question_ms", ms_of_question(r));
    lode_job_set_number(row, "question_tokens", per((double)r->question_tokens, r->asked));
    lode_job_set_count(row, "answer_tokens", r->answer_tokens);
    lode_job_set_number(row, "stopped", per((double)r->stopped, r->asked));
    lode_job_set_number(row, "visible_tokens", per((double)r->visible, r->asked));
}

static void set_counts(json_t *row, const lode_reading_row_t *r)
{
    lode_job_set_count(row, "items", r->gold);
    lode_job_set_count(row, "matched", r->matched);
    lode_job_set_count(row, "additions", r->additions);
    lode_job_set_count(row, "missing_keys", r->missing);
    lode_job_set_count(row, "wrong_values", r->wrong);
    lode_job_set_count(row, "unread", r->unread);
    lode_job_set_count(row, "left_out", r->left_out);
}

static json_t *row_json(const lode_score_bench_t *b, const lode_reading_row_t *r)
{
    const lode_geometry_t *g = &lode_model_info(lode_reader_model(b->stores.readers[0]))->geometry;
    double error, difference = difference_of(b, r, &error);
    json_t *row = json_object();
    lode_job_set_text(row, "policy", r->reading->name);
    lode_job_set_number(row, "budget", 100 * r->budget);
    lode_job_set_number(row, "score", score_of(b, r));
    lode_job_set_count(row, "samples", r->samples);
    lode_job_set_count(row, "scored", r->scored);
    lode_job_set_number(row, "difference", difference);
    lode_job_set_number(row, "difference_error", error);
    lode_job_set_count(row, "asked", r->asked);
    lode_job_set_number(row, "same_as_dense", same_as_dense(b, r));
    set_costs(row, r);
    set_counts(row, r);
    json_object_set_new(row, "by_sample", samples_json(b, r));
    if (r->rank)
        json_object_set_new(row, "shadowkv",
                            json_pack("{s:i s:i s:i}", "rank", (int)r->rank, "full_rank",
                                      (int)(g->kv_heads * g->head_dim), "outliers", (int)r->outliers));
    return row;
}

json_t *lode_score_json(const lode_score_bench_t *b)
{
    const char *transform = lode_config_get(b->config, "transform");
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    json_t *report = json_object(), *rows = json_array();
    for (uint32_t i = 0; i < b->row_count; i++)
        json_array_append_new(rows, row_json(b, &b->rows[i]));
    lode_job_set_text(report, "task", b->look_ups ? "look-ups" : "text2json");
    lode_job_set_text(report, "host", host);
    lode_job_set_count(report, "ranks", b->job.ranks);
    json_object_set_new(report, "model", lode_stores_json(&b->stores, b->model));
    lode_job_set_text(report, "samples_file", b->samples_path);
    lode_job_set_count(report, "samples", b->samples);
    lode_job_set_number(report, "documents_per_sample", per((double)b->documents, b->samples));
    lode_job_set_number(report, "tokens_per_sample", tokens_of(b));
    lode_job_set_number(report, "prefill_seconds", (double)b->prefill_ns / 1e9);
    lode_job_set_text(report, "transform", transform && *transform ? transform : NULL);
    lode_job_set_text(report, "format", lode_format_name(b->format));
    lode_job_set_count(report, "max_tokens", b->most_tokens);
    lode_job_set_count(report, "sinks", b->sinks);
    lode_job_set_count(report, "window", b->window);
    json_object_set_new(report, "rows", rows);
    return report;
}
