/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark bench streams`: talks about samples, at once or one thing after another, and what comes of them. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench.h"
#include "bench/streams.h"

static const lode_option_t streams_options[] = {
    {"model", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "folder of the model: config.json, model.safetensors, tokenizer.json; talk.json if it has one"},
    {"samples", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "file of samples, as lodemark text2json make writes them; without, some are made"},
    {"limit", "0", LODE_OPTION_COUNT, NULL, 0, 0, "take the first so many samples of the file; 0: all"},
    {"count", "4", LODE_OPTION_COUNT, NULL, 1, 100000, "made samples, of cards, with names that are held out"},
    {"items", "2", LODE_OPTION_COUNT, NULL, 1, 100, "that a made sample asks for"},
    {"seed", "1", LODE_OPTION_COUNT, NULL, 0, 0, "of made samples"},
    {"documents", "0", LODE_OPTION_COUNT, NULL, 0, UINT32_MAX,
     "of each sample, those that hold what is asked for and then others by chance; 0: all"},
    {"prompts", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "file like talk.json; without, the model's, or what suits most checkpoints"},
    {"modes", "at-once,think-first,no-thought", LODE_OPTION_TEXT, NULL, 0, 0, "names separated by commas, see below"},
    {"arrivals", "never,0,4,16,64", LODE_OPTION_TEXT, NULL, 0, 0,
     "when the second half of the request comes, separated by commas, see below"},
    {"policies", "dense,landmark2", LODE_OPTION_TEXT, NULL, 0, 0, "dense, or names of landmarks, separated by commas"},
    {"budgets", "3.125%", LODE_OPTION_TEXT, NULL, 0, 0, "shares of the tokens, ascending; dense has none"},
    {"format", "bf16", LODE_OPTION_CHOICE, "bf16|fp8|higgs4", 0, 0, "how keys and values are stored"},
    {"max-thoughts", "256", LODE_OPTION_COUNT, NULL, 1, 1 << 20, "tokens"},
    {"max-words", "512", LODE_OPTION_COUNT, NULL, 1, 1 << 20, "tokens"},
    {"probe-every", "0", LODE_OPTION_COUNT, NULL, 0, 1 << 20, "steps; 0: as the prompts say"},
    {"hear-at-once", "no", LODE_OPTION_FLAG, NULL, 0, 0,
     "take the second half in by the next step, not when the thinker has ended a sentence"},
    {"speech-rate", "3.3", LODE_OPTION_TEXT, NULL, 0, 0, "of the total delay: tokens spoken in a second"},
    {"synthesis-ms", "0", LODE_OPTION_TEXT, NULL, 0, 0, "of the total delay: from a chunk's last token to its sound"},
    {"step-ms", "0", LODE_OPTION_TEXT, NULL, 0, 0, "what a step takes, for all times but ms a step; 0: as measured"},
    {"sinks", "0", LODE_OPTION_COUNT, NULL, 0, 1 << 16, "first tokens that are always chosen"},
    {"window", "0", LODE_OPTION_COUNT, NULL, 0, 1 << 16, "last tokens that are always chosen"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write the rows to this file"},
    {"html", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write a page of tables and a chart to this file"},
    {"said", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write thoughts and words to this file, a line of JSON for each talk"},
    {"help", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print this"},
    {NULL},
};

/* -------------------------------------------------------------------- wishes */

static lode_status_t read_real(const lode_options_t *o, const char *name, bool positive, double *value)
{
    const char *text = lode_options_get(o, name);
    char *end;
    double x = strtod(text, &end);
    if (end == text || *end || !isfinite(x) || x < 0 || (positive && x == 0) || x > 1e6)
        return lode_fail(LODE_ERR_INVALID, "--%s \"%s\": takes a number %s 0, up to a million", name, text,
                         positive ? "above" : "from");
    *value = x;
    return LODE_OK;
}

static lode_status_t read_speech(const lode_options_t *o, lode_streams_bench_t *b)
{
    enum { CHUNK = 5 }; /* the paper's */
    double synthesis_ms = 0;
    LODE_TRY(read_real(o, "speech-rate", true, &b->speech.rate));
    LODE_TRY(read_real(o, "synthesis-ms", false, &synthesis_ms));
    LODE_TRY(read_real(o, "step-ms", false, &b->step_ms));
    b->speech.synthesis_s = synthesis_ms / 1e3;
    b->speech.chunk = CHUNK;
    return LODE_OK;
}

static lode_status_t read_policies(const lode_options_t *o, lode_streams_bench_t *b)
{
    LODE_TRY(lode_readings_parse(lode_options_get(o, "policies"), b->readings, &b->reading_count, &b->stores.count));
    for (uint32_t i = 0; i < b->reading_count; i++)
        if (b->readings[i].kind == LODE_READING_SHADOW)
            return lode_fail(LODE_ERR_INVALID,
                             "--policies: %s is played for bench text2json alone; talks know dense and landmarks",
                             b->readings[i].name);
    return lode_budgets_parse(lode_options_get(o, "budgets"), b->budgets, &b->budget_count);
}

static lode_status_t read_wishes(lode_streams_bench_t *b)
{
    const lode_options_t *o = &b->options;
    b->model = lode_options_get(o, "model");
    b->samples_path = lode_options_get(o, "samples");
    if (!b->model)
        return lode_fail(LODE_ERR_INVALID, "bench streams needs --model DIR");
    LODE_TRY(lode_talk_modes_parse(lode_options_get(o, "modes"), b->modes, &b->mode_count));
    LODE_TRY(lode_arrivals_parse(lode_options_get(o, "arrivals"), b->arrivals, &b->arrival_count));
    LODE_TRY(read_policies(o, b));
    LODE_TRY(read_speech(o, b));
    LODE_TRY(lode_format_parse(lode_options_get(o, "format"), &b->format));
    b->most_documents = (uint32_t)lode_options_count(o, "documents");
    b->most_thoughts = (uint32_t)lode_options_count(o, "max-thoughts");
    b->most_words = (uint32_t)lode_options_count(o, "max-words");
    b->probe_every = (uint32_t)lode_options_count(o, "probe-every");
    b->hear_at_once = lode_options_flag(o, "hear-at-once");
    b->sinks = (uint32_t)lode_options_count(o, "sinks");
    b->window = (uint32_t)lode_options_count(o, "window");
    LODE_TRY(lode_bench_config(o, &b->config));
    /* or what a row fetches would depend on what those before it have fetched of the same documents */
    return lode_bench_given(o, "hot-cache", "LODEMARK_HOT_CACHE") ? LODE_OK
                                                                  : lode_config_set(b->config, "hot-cache", "0");
}

/* ------------------------------------------------------------------- samples */

static lode_status_t make_line(const lode_text2json_params_t *params, uint64_t index, lode_task_line_t *line)
{
    lode_text2json_sample_t sample;
    LODE_TRY(lode_text2json_make(params, index, &sample));
    json_t *gold = json_loads(sample.answer, 0, NULL);
    lode_status_t status = lode_text2json_check_gold(gold);
    if (status == LODE_OK) {
        *line = (lode_task_line_t){.problem = sample.problem, .bytes = strlen(sample.problem), .gold = gold};
        sample.problem = NULL;
    } else {
        json_decref(gold);
    }
    lode_text2json_sample_free(&sample);
    return status;
}

/* Small ones that a small model has a chance with. */
static lode_status_t make_samples(lode_streams_bench_t *b)
{
    uint32_t items = (uint32_t)lode_options_count(&b->options, "items"), least = 130 * (items + 1);
    lode_text2json_params_t params = {.task = LODE_TASK_TEXT2JSON,
                                      .seed = lode_options_count(&b->options, "seed"),
                                      .split = LODE_TEXT2JSON_TEST,
                                      .style = LODE_TEXT2JSON_CARDS,
                                      .domains = (1u << LODE_TEXT2JSON_DOMAINS) - 1,
                                      .tokens_min = least,
                                      .tokens_max = least + 300,
                                      .items_min = items,
                                      .items_max = items};
    uint64_t count = lode_options_count(&b->options, "count");
    b->lines = calloc(count, sizeof *b->lines);
    if (!b->lines)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %" PRIu64 " samples", count);
    for (; b->samples < count; b->samples++)
        LODE_TRY(make_line(&params, b->samples, &b->lines[b->samples]));
    return LODE_OK;
}

static const char *samples_name(const lode_streams_bench_t *b)
{
    return b->samples_path ? b->samples_path : "made samples";
}

static lode_status_t split_line(const lode_streams_bench_t *b, uint64_t sample, lode_problem_t *problem)
{
    const lode_task_line_t *line = &b->lines[sample];
    size_t second;
    LODE_TRY(lode_problem_split(line->problem, line->bytes, problem));
    lode_status_t status = lode_request_halves(problem->request, problem->request_bytes, &second);
    if (status != LODE_OK)
        lode_problem_free(problem);
    else
        lode_problem_keep(problem, line->gold, b->most_documents, sample);
    return status;
}

static lode_status_t read_samples(lode_streams_bench_t *b)
{
    uint64_t limit = lode_options_count(&b->options, "limit");
    LODE_TRY(b->samples_path ? lode_task_lines_read(b->samples_path, limit, &b->lines, &b->samples) : make_samples(b));
    for (uint64_t i = 0; i < b->samples; i++) {
        lode_problem_t problem;
        if (split_line(b, i, &problem) != LODE_OK)
            return lode_fail_within(LODE_ERR_FORMAT, "%s line %" PRIu64 ": ", samples_name(b), i + 1);
        lode_problem_free(&problem);
    }
    return LODE_OK;
}

/* ---------------------------------------------------------------------- rows */

static lode_status_t add_row(lode_streams_bench_t *b, const lode_streams_row_t *as)
{
    lode_streams_row_t *row = &b->rows[b->row_count++];
    *row = *as;
    for (int m = 0; m < LODE_STREAMS_MEASURES; m++) {
        row->values[m] = malloc(b->samples * sizeof *row->values[m]);
        if (!row->values[m])
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the rows' measures");
        for (uint64_t i = 0; i < b->samples; i++)
            row->values[m][i] = NAN;
    }
    return LODE_OK;
}

static lode_status_t add_reading(lode_streams_bench_t *b, const lode_reading_t *reading, double budget)
{
    for (uint32_t a = 0; a < b->arrival_count; a++)
        for (uint32_t m = 0; m < b->mode_count; m++) {
            lode_streams_row_t row = {
                .mode = b->modes[m], .arrival = &b->arrivals[a], .reading = reading, .budget = budget};
            LODE_TRY(add_row(b, &row));
        }
    return LODE_OK;
}

static lode_status_t make_rows(lode_streams_bench_t *b)
{
    b->rows = calloc((size_t)b->reading_count * b->budget_count * b->arrival_count * b->mode_count, sizeof *b->rows);
    if (!b->rows)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for rows");
    for (uint32_t i = 0; i < b->reading_count; i++) {
        bool dense = b->readings[i].kind == LODE_READING_DENSE;
        for (uint32_t j = 0; j < (dense ? 1 : b->budget_count); j++)
            LODE_TRY(add_reading(b, &b->readings[i], dense ? 1 : b->budgets[j]));
    }
    return LODE_OK;
}

const lode_streams_row_t *lode_streams_partner(const lode_streams_bench_t *b, const lode_streams_row_t *row)
{
    for (uint32_t i = 0; i < b->row_count; i++) {
        const lode_streams_row_t *other = &b->rows[i];
        if (other->mode == LODE_TALK_THINK_FIRST && other->arrival == row->arrival && other->reading == row->reading &&
            other->budget == row->budget)
            return row->mode == LODE_TALK_AT_ONCE ? other : NULL;
    }
    return NULL;
}

/* ----------------------------------------------------------------------- run */

static lode_status_t open_said(lode_streams_bench_t *b)
{
    const char *path = lode_options_get(&b->options, "said");
    if (!path)
        return LODE_OK;
    b->said = fopen(path, "w");
    return b->said ? LODE_OK : lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
}

/* Whatever can be wrong is found here, before the long run. Each rank reads the samples, rank 0 writes. */
static lode_status_t prepare(lode_streams_bench_t *b)
{
    static const char *const outputs[] = {"json", "html"};
    LODE_TRY(read_samples(b));
    LODE_TRY(make_rows(b));
    for (size_t i = 0; b->job.rank == 0 && i < sizeof outputs / sizeof *outputs; i++) {
        const char *path = lode_options_get(&b->options, outputs[i]);
        if (path)
            LODE_TRY(lode_job_check_output(path));
    }
    return b->job.rank == 0 ? open_said(b) : LODE_OK;
}

static lode_status_t open_model(lode_streams_bench_t *b)
{
    const char *prompts = lode_options_get(&b->options, "prompts");
    LODE_TRY(lode_stores_open(b->model, b->format, b->readings, b->reading_count, b->stores.count, &b->stores));
    return lode_prompts_open(prompts ? prompts : b->model, lode_reader_tokenizer(b->stores.readers[0]), &b->prompts);
}

static lode_status_t talk(lode_streams_bench_t *b, uint64_t sample, const lode_problem_t *problem,
                          lode_progress_t *progress)
{
    LODE_TRY(lode_stores_list(&b->stores, problem));
    b->documents += problem->count;
    return lode_streams_talks(b, sample, problem, progress);
}

/* Ranks share the documents; rank 0 talks, and meanwhile the others sleep and serve. */
static lode_status_t run_sample(lode_streams_bench_t *b, uint64_t sample, lode_progress_t *progress)
{
    lode_problem_t problem;
    LODE_TRY(lode_job_agree(split_line(b, sample, &problem)));
    lode_status_t status = lode_job_agree(lode_stores_ingest(&b->stores, &b->job, &problem));
    if (status == LODE_OK) {
        status = b->job.rank == 0 ? talk(b, sample, &problem, progress) : LODE_OK;
        lode_job_wait(&b->job);
        status = lode_job_agree(status);
    }
    lode_problem_free(&problem);
    if (status == LODE_OK)
        status = lode_job_agree(b->job.rank == 0 ? lode_stores_forget(&b->stores) : LODE_OK);
    return status;
}

static lode_status_t report(const lode_streams_bench_t *b)
{
    const char *page = lode_options_get(&b->options, "html");
    json_t *json = lode_streams_json(b);
    if (!json)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the report");
    lode_status_t status = lode_job_write_json(lode_options_get(&b->options, "json"), json);
    if (status == LODE_OK && page)
        status = lode_streams_page(page, b, json);
    json_decref(json);
    if (status == LODE_OK)
        lode_streams_print(b);
    return status;
}

static lode_status_t run(lode_streams_bench_t *b)
{
    lode_progress_t progress;
    LODE_TRY(lode_job_begin(&b->job));
    LODE_TRY(lode_job_agree(prepare(b)));
    LODE_TRY(lode_job_agree(open_model(b)));
    LODE_TRY(lode_stores_join(&b->stores, b->config));
    lode_status_t status = LODE_OK;
    lode_progress_begin(&progress, "talks", b->samples * b->row_count);
    for (uint64_t i = 0; i < b->samples && status == LODE_OK; i++)
        status = run_sample(b, i, &progress);
    lode_progress_end(&progress);
    LODE_TRY(status);
    return lode_job_agree(b->job.rank == 0 ? report(b) : LODE_OK);
}

/* ------------------------------------------------------------------- command */

static void free_bench(lode_streams_bench_t *b)
{
    lode_stores_close(&b->stores);
    lode_prompts_free(&b->prompts);
    for (uint32_t i = 0; i < b->row_count; i++)
        for (int m = 0; m < LODE_STREAMS_MEASURES; m++)
            free(b->rows[i].values[m]);
    free(b->rows);
    if (b->said)
        fclose(b->said);
    lode_task_lines_free(b->lines, b->samples);
    lode_config_destroy(&b->config);
    lode_bench_options_free(&b->options);
}

static void print_help(void)
{
    printf("lodemark bench streams --model DIR [OPTIONS]\n\nRequests about documents that are blocks in the memory of "
           "the ranks, heard in two halves, thought about and answered\n(docs/streams.md): how soon the first word "
           "comes, how long a listener waits, what the answer is worth, what moves.\nUnder mpirun the ranks share the "
           "documents; rank 0 talks.\n\n");
    lode_options_help(streams_options, stdout);
    printf("\nModes\n"
           "  at-once      thoughts and words side by side; a probe decides when to speak\n"
           "  think-first  the words begin when the thoughts have ended\n"
           "  no-thought   words alone; they begin when the whole request was heard\n"
           "\nArrivals of the second half, which is all but the first sentence\n"
           "  never        nothing comes later: the whole request at the start, as one text\n"
           "  0            at the start, as a text of its own\n"
           "  N            after N steps; until then the talk knows that more is to come\n"
           "  half         not at all: the first half is all that is heard\n"
           "\nOptions of the library (lodemark info --config) are taken too, like --arena; --hot-cache is 0 here if "
           "it is not given.\n");
}

int lode_bench_streams(int argc, char **argv)
{
    static lode_streams_bench_t b;
    if (lode_bench_wants_help(argc, argv)) {
        if (lode_job_rank_hint() == 0)
            print_help();
        return LODE_EXIT_OK;
    }
    if (lode_bench_options("bench streams", streams_options, argc, argv, &b.options) != LODE_OK)
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
