/* SPDX-License-Identifier: Apache-2.0 */
/* Rows of `lodemark bench text2json` as a table and as JSON. */
#include <math.h>
#include <string.h>
#include <unistd.h>

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

/* A rival is played in plain memory by plain code: what that takes says nothing about it. */
static double ms_per_token(const lode_reading_row_t *row)
{
    return row->reading->kind == LODE_READING_SHADOW ? NAN : per((double)row->answer_ns / 1e6, row->answer_tokens);
}

static double ms_of_question(const lode_reading_row_t *row)
{
    return row->reading->kind == LODE_READING_SHADOW ? NAN : per((double)row->question_ns / 1e6, row->samples);
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

void lode_score_print(const lode_score_bench_t *b)
{
    const lode_model_info_t *info = lode_model_info(lode_reader_model(b->readers[0]));
    printf("%s: %s, %.1f M parameters, %u layers, %u KV heads of %u\n%llu samples, %.0f documents and %.0f tokens a "
           "sample, %u rank%s, %s records\n\n",
           b->model, info->family, (double)info->parameters / 1e6, info->geometry.layers, info->geometry.kv_heads,
           info->geometry.head_dim, (unsigned long long)b->samples, per((double)b->documents, b->samples),
           per((double)b->document_tokens, b->samples), b->job.ranks, b->job.ranks == 1 ? "" : "s",
           lode_format_name(b->format));
    printf("%-18s %7s  %6s %7s %6s  %5s/%-5s %5s %5s %6s  %10s %9s %9s  %8s %9s\n", "policy", "budget", "score",
           "- dense", "+-", "found", "items", "added", "wrong", "unread", "B/token", "landmarks", "resident",
           "ms/token", "ms asking");
    for (uint32_t i = 0; i < b->row_count; i++) {
        const lode_reading_row_t *r = &b->rows[i];
        double error, difference = difference_of(b, r, &error);
        printf("%-18s %5.4g %%  %6.2f %7.2f %6.2f  %5llu/%-5llu %5llu %5llu %6llu  %10.0f %9.1f %9.1f  %8.2f %9.1f\n",
               r->reading->name, 100 * r->budget, score_of(b, r), difference, error, (unsigned long long)r->matched,
               (unsigned long long)r->gold, (unsigned long long)r->additions,
               (unsigned long long)(r->wrong + r->missing), (unsigned long long)r->unread,
               per(r->moved, r->answer_tokens), per(r->landmarks, r->samples), per(r->residents, r->samples),
               ms_per_token(r), ms_of_question(r));
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

static json_t *row_json(const lode_score_bench_t *b, const lode_reading_row_t *r)
{
    const lode_geometry_t *g = &lode_model_info(lode_reader_model(b->readers[0]))->geometry;
    double error, difference = difference_of(b, r, &error), tokens = (double)r->answer_tokens;
    json_t *row =
        json_pack("{s:s s:f s:o s:I s:I s:o s:o}", "policy", r->reading->name, "budget", 100 * r->budget, "score",
                  lode_job_number(score_of(b, r)), "samples", (json_int_t)r->samples, "scored", (json_int_t)r->scored,
                  "difference", lode_job_number(difference), "difference_error", lode_job_number(error));
    json_t *more = json_pack(
        "{s:f s:f s:f s:f s:o s:o s:f s:I s:f s:f}", "bytes_per_token", r->moved / tokens, "fetched_bytes_per_token",
        (double)r->fetched / tokens, "landmark_bytes_per_token", per(r->landmarks, r->samples),
        "resident_bytes_per_token", per(r->residents, r->samples), "ms_per_token", (double)r->answer_ns / 1e6 / tokens,
        "question_ms", per((double)r->question_ns / 1e6, r->samples), "question_tokens",
        per((double)r->question_tokens, r->samples), "answer_tokens", (json_int_t)r->answer_tokens, "stopped",
        per((double)r->stopped, r->samples), "visible_tokens", per((double)r->visible, r->samples));
    json_t *counts =
        json_pack("{s:I s:I s:I s:I s:I s:I s:I s:o}", "items", (json_int_t)r->gold, "matched", (json_int_t)r->matched,
                  "additions", (json_int_t)r->additions, "missing_keys", (json_int_t)r->missing, "wrong_values",
                  (json_int_t)r->wrong, "unread", (json_int_t)r->unread, "left_out", (json_int_t)r->left_out,
                  "by_sample", samples_json(b, r));
    json_object_update(row, more);
    json_object_update(row, counts);
    json_decref(more);
    json_decref(counts);
    if (r->rank)
        json_object_set_new(row, "shadowkv",
                            json_pack("{s:i s:i s:i}", "rank", (int)r->rank, "full_rank",
                                      (int)(g->kv_heads * g->head_dim), "outliers", (int)r->outliers));
    return row;
}

json_t *lode_score_json(const lode_score_bench_t *b)
{
    const lode_model_info_t *info = lode_model_info(lode_reader_model(b->readers[0]));
    const lode_geometry_t *g = &info->geometry;
    char host[256] = "";
    gethostname(host, sizeof host - 1);
    json_t *rows = json_array();
    for (uint32_t i = 0; i < b->row_count; i++)
        json_array_append_new(rows, row_json(b, &b->rows[i]));
    const char *transform = b->config ? lode_config_get(b->config, "transform") : NULL;
    return json_pack("{s:s s:s s:s? s:i s:{s:s s:s s:I s:i s:i s:i s:i s:s} s:s s:I s:f s:f s:f s:s s:i s:i s:i s:o}",
                     "task", "text2json", "host", host, "transform", transform && *transform ? transform : NULL,
                     "ranks", (int)b->job.ranks, "model", "folder", b->model, "family", info->family, "parameters",
                     (json_int_t)info->parameters, "layers", (int)g->layers, "heads", (int)g->query_heads, "kv_heads",
                     (int)g->kv_heads, "head_dim", (int)g->head_dim, "products", info->products, "samples_file",
                     b->samples_path, "samples", (json_int_t)b->samples, "documents_per_sample",
                     per((double)b->documents, b->samples), "tokens_per_sample",
                     per((double)b->document_tokens, b->samples), "prefill_seconds", (double)b->prefill_ns / 1e9,
                     "format", lode_format_name(b->format), "max_tokens", (int)b->most_tokens, "sinks", (int)b->sinks,
                     "window", (int)b->window, "rows", rows);
}
