/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file reader_score.h
 * @brief `lodemark bench text2json`: a model's score under policies of choosing tokens.
 */
#ifndef LODE_BENCH_READER_SCORE_H
#define LODE_BENCH_READER_SCORE_H

#include "bench/options.h"
#include "bench/progress.h"
#include "bench/readings.h"
#include "bench/text2json.h"

/** What one policy at one budget did: sums over samples. */
typedef struct lode_reading_row {
    const lode_reading_t *reading;
    double budget; /**< share */
    uint64_t samples, scored, left_out, unread, gold, matched, additions, missing, wrong;
    uint64_t asked, same; /**< questions; of those, answered letter by letter as dense attention answers */
    double *scores;       /**< (samples of the file) 0 to 1; NAN: left out */
    uint64_t answer_tokens, question_tokens, stopped, visible, answer_ns, question_ns;
    uint64_t steps;              /**< of answers: the first token of one comes with its question */
    double moved;                /**< bytes of records, or of values, that answer tokens chose, whoever held them */
    uint64_t fetched;            /**< bytes that came from other ranks */
    double landmarks, residents; /**< of the last sample: bytes a token, layer, over all KV heads */
    uint32_t rank, outliers;     /**< SHADOW: of the last sample */
    FILE *predictions;
    char path[4096];
} lode_reading_row_t;

typedef struct lode_score_bench {
    lode_options_t options;
    lode_config_h config;
    lode_job_t job;
    const char *model, *samples_path;
    lode_task_line_t *lines;
    uint64_t samples;
    lode_reading_t readings[LODE_READINGS_MAX];
    uint32_t reading_count;
    double budgets[LODE_BUDGETS_MAX];
    uint32_t budget_count;
    lode_reading_row_t *rows; /**< (row_count) */
    uint32_t row_count;
    lode_stores_t stores;
    lode_plain_t plain;
    bool wants_plain;
    lode_format_t format;
    uint32_t most_tokens, most_documents, sinks, window, outliers;
    bool look_ups;
    uint64_t documents; /**< of all samples */
    uint64_t prefill_ns;
} lode_score_bench_t;

/** Ask and score a sample under every policy. */
lode_status_t lode_score_ask(lode_score_bench_t *bench, uint64_t sample, const lode_problem_t *problem,
                             lode_progress_t *progress);

/** The table, and with `--json F` the rows. By rank 0. */
void lode_score_print(const lode_score_bench_t *bench);
json_t *lode_score_json(const lode_score_bench_t *bench);

#endif
