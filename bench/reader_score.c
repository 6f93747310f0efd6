/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark bench text2json`: held-out samples through the reader, policy by policy. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/progress.h"
#include "bench/reader_score.h"

static const lode_option_t score_options[] = {
    {"model", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "folder of the model: config.json, model.safetensors, tokenizer.json"},
    {"samples", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "file of samples, as lodemark text2json make writes them"},
    {"policies", "dense,landmark2", LODE_OPTION_TEXT, NULL, 0, 0, "names separated by commas, see below"},
    {"budgets", "3.125%", LODE_OPTION_TEXT, NULL, 0, 0, "shares of the tokens, ascending; dense has none"},
    {"format", "bf16", LODE_OPTION_CHOICE, "bf16|fp8|higgs4", 0, 0, "how keys and values are stored"},
    {"limit", "0", LODE_OPTION_COUNT, NULL, 0, 0, "take the first so many samples; 0: all"},
    {"documents", "0", LODE_OPTION_COUNT, NULL, 0, UINT32_MAX,
     "of each sample, those that hold what is asked for and then others by chance; 0: all"},
    {"look-ups", "no", LODE_OPTION_FLAG, NULL, 0, 0, "ask for each value of the answer by itself"},
    {"max-tokens", "8192", LODE_OPTION_COUNT, NULL, 1, 1 << 20, "of an answer"},
    {"sinks", "0", LODE_OPTION_COUNT, NULL, 0, 1 << 16, "first tokens that are always chosen"},
    {"window", "0", LODE_OPTION_COUNT, NULL, 0, 1 << 16, "last tokens that are always chosen; the question always is"},
    {"outliers", "48", LODE_OPTION_COUNT, NULL, 0, 65536, "shadowkv: chunks a head that stay; all if there are fewer"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write the rows to this file"},
    {"predictions", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "write the answers to this file, for lodemark text2json score; with several rows to one file each, beside it"},
    {"help", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print this"},
    {NULL},
};

/* -------------------------------------------------------------------- wishes */

static lode_status_t read_wishes(lode_score_bench_t *b)
{
    const lode_options_t *o = &b->options;
    b->model = lode_options_get(o, "model");
    b->samples_path = lode_options_get(o, "samples");
    if (!b->model || !b->samples_path)
        return lode_fail(LODE_ERR_INVALID, "bench text2json needs --model DIR and --samples FILE");
    LODE_TRY(lode_readings_parse(lode_options_get(o, "policies"), b->readings, &b->reading_count, &b->stores.count));
    LODE_TRY(lode_budgets_parse(lode_options_get(o, "budgets"), b->budgets, &b->budget_count));
    LODE_TRY(lode_format_parse(lode_options_get(o, "format"), &b->format));
    b->most_documents = (uint32_t)lode_options_count(o, "documents");
    b->outliers = (uint32_t)lode_options_count(o, "outliers");
    b->look_ups = lode_options_flag(o, "look-ups");
    b->most_tokens = (uint32_t)lode_options_count(o, "max-tokens");
    b->sinks = (uint32_t)lode_options_count(o, "sinks");
    b->window = (uint32_t)lode_options_count(o, "window");
    return lode_bench_config(o, &b->config);
}

static lode_status_t make_rows(lode_score_bench_t *b)
{
    b->rows = calloc((size_t)b->reading_count * b->budget_count, sizeof *b->rows);
    if (!b->rows)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for rows");
    for (uint32_t i = 0; i < b->reading_count; i++) {
        bool dense = b->readings[i].kind == LODE_READING_DENSE;
        b->wants_plain = b->wants_plain || b->readings[i].kind == LODE_READING_SHADOW;
        for (uint32_t j = 0; j < (dense ? 1 : b->budget_count); j++) {
            lode_reading_row_t *row = &b->rows[b->row_count++];
            *row = (lode_reading_row_t){.reading = &b->readings[i], .budget = dense ? 1 : b->budgets[j]};
            row->scores = calloc(b->samples, sizeof *row->scores);
            if (!row->scores)
                return lode_fail(LODE_ERR_NO_MEMORY, "no memory for scores");
        }
    }
    return LODE_OK;
}

/* "p.jsonl" is "p-landmark2-3.125.jsonl" for one row of several. */
static lode_status_t open_predictions(const lode_score_bench_t *b, lode_reading_row_t *row)
{
    const char *path = lode_options_get(&b->options, "predictions"), *dot = path ? strrchr(path, '.') : NULL;
    if (!path)
        return LODE_OK;
    size_t stem = dot && !strchr(dot, '/') ? (size_t)(dot - path) : strlen(path);
    char budget[32] = "";
    if (row->reading->kind != LODE_READING_DENSE)
        snprintf(budget, sizeof budget, "-%.6g", 100 * row->budget);
    int n = b->row_count == 1 ? snprintf(row->path, sizeof row->path, "%s", path)
                              : snprintf(row->path, sizeof row->path, "%.*s-%s%s%s", (int)stem, path,
                                         row->reading->name, budget, path + stem);
    if (n >= (int)sizeof row->path)
        return lode_fail(LODE_ERR_INVALID, "--predictions %.40s…: the path is too long", path);
    row->predictions = fopen(row->path, "w");
    return row->predictions ? LODE_OK : lode_fail(LODE_ERR_IO, "%s cannot be written: %s", row->path, strerror(errno));
}

/* Whatever can be wrong is found here, before the long run. Each rank reads the samples, rank 0 writes. */
static lode_status_t prepare(lode_score_bench_t *b)
{
    const char *json = lode_options_get(&b->options, "json");
    LODE_TRY(lode_task_lines_read(b->samples_path, lode_options_count(&b->options, "limit"), &b->lines, &b->samples));
    for (uint64_t i = 0; i < b->samples; i++) {
        lode_problem_t problem;
        if (lode_problem_split(b->lines[i].problem, b->lines[i].bytes, &problem) != LODE_OK)
            return lode_fail_within(LODE_ERR_FORMAT, "%s line %" PRIu64 ": ", b->samples_path, i + 1);
        lode_problem_free(&problem);
    }
    LODE_TRY(make_rows(b));
    if (b->job.rank == 0 && json)
        LODE_TRY(lode_job_check_output(json));
    for (uint32_t i = 0; b->job.rank == 0 && i < b->row_count; i++)
        LODE_TRY(open_predictions(b, &b->rows[i]));
    return LODE_OK;
}

static lode_status_t open_model(lode_score_bench_t *b)
{
    lode_stores_t *stores = &b->stores;
    LODE_TRY(lode_stores_open(b->model, b->format, b->readings, b->reading_count, stores->count, stores));
    if (!b->wants_plain || b->job.rank > 0)
        return LODE_OK;
    return lode_plain_open(lode_reader_model(stores->readers[0]), lode_reader_tokenizer(stores->readers[0]),
                           lode_reader_manner(stores->readers[0]), &b->plain);
}

/* Ranks share the documents; rank 0 asks, and meanwhile the others sleep and serve. */
static lode_status_t run_sample(lode_score_bench_t *b, uint64_t sample, lode_progress_t *progress)
{
    lode_problem_t problem;
    const lode_task_line_t *line = &b->lines[sample];
    LODE_TRY(lode_job_agree(lode_problem_split(line->problem, line->bytes, &problem)));
    lode_problem_keep(&problem, line->gold, b->most_documents, sample);
    uint64_t begin = lode_now_ns();
    lode_status_t status = lode_job_agree(lode_stores_ingest(&b->stores, &b->job, &problem));
    b->prefill_ns += lode_now_ns() - begin;
    if (status == LODE_OK) {
        status = b->job.rank == 0 ? lode_score_ask(b, sample, &problem, progress) : LODE_OK;
        lode_job_wait(&b->job);
        status = lode_job_agree(status);
    }
    lode_problem_free(&problem);
    if (status == LODE_OK)
        status = lode_job_agree(b->job.rank == 0 ? lode_stores_forget(&b->stores) : LODE_OK);
    return status;
}

static lode_status_t report(lode_score_bench_t *b)
{
    json_t *json = lode_score_json(b);
    if (!json)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the report");
    lode_status_t status = lode_job_write_json(lode_options_get(&b->options, "json"), json);
    json_decref(json);
    if (status == LODE_OK)
        lode_score_print(b);
    return status;
}

static lode_status_t run(lode_score_bench_t *b)
{
    lode_progress_t progress;
    LODE_TRY(lode_job_begin(&b->job));
    LODE_TRY(lode_job_agree(prepare(b)));
    LODE_TRY(lode_job_agree(open_model(b)));
    LODE_TRY(lode_stores_join(&b->stores, b->config));
    lode_status_t status = LODE_OK;
    lode_progress_begin(&progress, "answers", b->samples * b->row_count);
    for (uint64_t i = 0; i < b->samples && status == LODE_OK; i++)
        status = run_sample(b, i, &progress);
    lode_progress_end(&progress);
    LODE_TRY(status);
    return lode_job_agree(b->job.rank == 0 ? report(b) : LODE_OK);
}

/* ------------------------------------------------------------------- command */

static void free_bench(lode_score_bench_t *b)
{
    lode_plain_close(&b->plain);
    lode_stores_close(&b->stores);
    for (uint32_t i = 0; i < b->row_count; i++) {
        free(b->rows[i].scores);
        if (b->rows[i].predictions)
            fclose(b->rows[i].predictions);
    }
    free(b->rows);
    lode_task_lines_free(b->lines, b->samples);
    lode_config_destroy(&b->config);
    lode_bench_options_free(&b->options);
}

static void print_help(void)
{
    printf("lodemark bench text2json --model DIR --samples FILE [OPTIONS]\n\nSamples of Text2JSON through a model that "
           "reads documents as blocks (docs/reader-scores.md): its score, and what an\nanswer's token moves, by policy "
           "and budget. Under mpirun the ranks share the documents; rank 0 asks.\n\n");
    lode_options_help(score_options, stdout);
    printf("\nPolicies\n"
           "  dense             all tokens\n"
           "  landmark1 … 16    the library's, from blocks with such landmarks; :cN, :higgs, :nocentre\n"
           "  shadowkv          means of 8, keys of low rank, 48 outlier chunks (arXiv 2410.21465); :rN another rank\n"
           "\nOptions of the library (lodemark info --config) are taken too, like --arena.\n");
}

int lode_bench_text2json(int argc, char **argv)
{
    static lode_score_bench_t b;
    if (lode_bench_wants_help(argc, argv)) {
        if (lode_job_rank_hint() == 0)
            print_help();
        return LODE_EXIT_OK;
    }
    if (lode_bench_options("bench text2json", score_options, argc, argv, &b.options) != LODE_OK)
        return lode_job_refuse(LODE_EXIT_USAGE, "%s", lode_error_message());
    lode_status_t status = read_wishes(&b);
    bool usage = status != LODE_OK;
    if (status == LODE_OK)
        status = run(&b);
    char sentence[512];
    snprintf(sentence, sizeof sentence, "%s", lode_error_message());
    free_bench(&b);
    if (status != LODE_OK)
        return lode_job_refuse(usage ? LODE_EXIT_USAGE : LODE_EXIT_FAILED, "%s", sentence);
    lode_job_end();
    return LODE_EXIT_OK;
}
