/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark text2json`, `multi-needle` and `html-to-tsv`: each has make and score. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/job.h"
#include "bench/options.h"
#include "bench/progress.h"
#include "bench/text2json_inside.h"

/** What differs between the three. */
typedef struct task {
    lode_text2json_task_t task;
    const char *name, *make_doc, *score_doc;
    lode_option_t make_options[10];
} task_t;

/* clang-format off */
#define MAKE_OPTIONS(items) { \
    {"out", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write the samples to this file, one JSON object a line; - for stdout"}, \
    {"count", "500", LODE_OPTION_COUNT, NULL, 1, 100000000, "samples"}, \
    {"seed", "1", LODE_OPTION_COUNT, NULL, 0, 0, "of all that is drawn; the same seed gives the same bytes anywhere"}, \
    {"split", "test", LODE_OPTION_CHOICE, "train|test", 0, 0, "whose names and values; the two share none but numbers"}, \
    {"tokens", "10000:63500", LODE_OPTION_TEXT, NULL, 0, 0, "of a problem, MIN:MAX, by an estimate; most are short"}, \
    {"items", items, LODE_OPTION_TEXT, NULL, 0, 0, "of an answer, MIN:MAX"}, \
    {"domains", "products,doctors,organisations,films", LODE_OPTION_TEXT, NULL, 0, 0, "what the texts are about"}, \
    {"text", "prose", LODE_OPTION_CHOICE, "prose|cards|mixed", 0, 0, "sentences, \"label: value\" lines, or both"}, \
    {"help", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print this"}, \
    {NULL}}
/* clang-format on */

static const task_t tasks[] = {
    {LODE_TASK_TEXT2JSON, "text2json",
     "Make samples of Text2JSON (arXiv 2604.08426): documents of which every entity of one kind is to be listed as a "
     "JSON "
     "object\nof its name and two facts. A line is {\"problem\": text, \"answer\": text that holds the list}.",
     "Score outputs against samples as Text2JSON does: 100 times the mean over samples of the points of items, over "
     "items\n"
     "asked for and items that nobody asked for.",
     MAKE_OPTIONS("3:20")},
    {LODE_TASK_MULTI_NEEDLE, "multi-needle",
     "Make samples in which sentences that have nothing to do with their documents are to be found, all of one kind, "
     "and\n"
     "given back as rows. A line is {\"problem\": text, \"answer\": tab-separated rows}.",
     "Score rows: precision, recall and F1 of each sample, and their means times 100.", MAKE_OPTIONS("3:20")},
    {LODE_TASK_HTML_TO_TSV, "html-to-tsv",
     "Make samples in which some of the items of a web page are to be given back as rows (after LongProc). A line is\n"
     "{\"problem\": text, \"answer\": tab-separated rows}. --text has no effect on pages.",
     "Score rows: precision, recall and F1 of each sample, and their means times 100.", MAKE_OPTIONS("10:60")},
};

static const lode_option_t score_options[] = {
    {"gold", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "samples, as make writes them"},
    {"predictions", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "outputs, line n for sample n: {\"prediction\": text}, or the text as a JSON string, or the list itself"},
    {"json", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print one JSON object, with the score of every sample"},
    {"help", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print this"},
    {NULL},
};

/* ------------------------------------------------------------------ options */

/* "3:20", or "5" for 5:5. */
static lode_status_t read_range(const lode_options_t *options, const char *name, uint32_t most, uint32_t *min,
                                uint32_t *max)
{
    const char *text = lode_options_get(options, name), *colon = strchr(text, ':');
    char first[24];
    uint64_t least, largest;
    snprintf(first, sizeof first, "%.*s", (int)(colon ? colon - text : (ptrdiff_t)strlen(text)), text);
    if (lode_parse_count(first, &least) != LODE_OK || lode_parse_count(colon ? colon + 1 : first, &largest) != LODE_OK)
        return lode_fail(LODE_ERR_INVALID, "--%s %s: takes two whole numbers, like 3:20", name, text);
    if (!least || least > largest || largest > most)
        return lode_fail(LODE_ERR_INVALID, "--%s %s: takes MIN:MAX, from 1 up to at most %u", name, text, most);
    *min = (uint32_t)least;
    *max = (uint32_t)largest;
    return LODE_OK;
}

static lode_status_t add_domain(const char *name, uint32_t *domains)
{
    lode_option_t names[LODE_TEXT2JSON_DOMAINS + 1] = {{NULL}};
    for (uint32_t i = 0; i < LODE_TEXT2JSON_DOMAINS; i++) {
        names[i].name = lode_domains[i].name;
        if (strcmp(name, names[i].name) == 0) {
            *domains |= 1u << i;
            return LODE_OK;
        }
    }
    const char *nearest = lode_options_nearest(names, name);
    if (nearest)
        return lode_fail(LODE_ERR_INVALID, "--domains: no domain is called \"%s\"; did you mean \"%s\"?", name,
                         nearest);
    return lode_fail(LODE_ERR_INVALID,
                     "--domains: no domain is called \"%s\"; there are products, doctors, organisations and films",
                     name);
}

static lode_status_t read_domains(const char *text, uint32_t *domains)
{
    *domains = 0;
    for (const char *at = text; at;) {
        char name[32];
        at = lode_bench_next_word(at, name, sizeof name);
        LODE_TRY(add_domain(name, domains));
    }
    return LODE_OK;
}

static lode_status_t read_params(const task_t *task, const lode_options_t *o, lode_text2json_params_t *p)
{
    const char *text = lode_options_get(o, "text");
    *p = (lode_text2json_params_t){.task = task->task, .seed = lode_options_count(o, "seed")};
    p->split = strcmp(lode_options_get(o, "split"), "train") == 0 ? LODE_TEXT2JSON_TRAIN : LODE_TEXT2JSON_TEST;
    p->style = strcmp(text, "prose") == 0   ? LODE_TEXT2JSON_PROSE
               : strcmp(text, "cards") == 0 ? LODE_TEXT2JSON_CARDS
                                            : LODE_TEXT2JSON_MIXED;
    LODE_TRY(read_range(o, "tokens", 4u << 20, &p->tokens_min, &p->tokens_max));
    LODE_TRY(read_range(o, "items", 1000, &p->items_min, &p->items_max));
    LODE_TRY(read_domains(lode_options_get(o, "domains"), &p->domains));
    return lode_text2json_check(p);
}

/* --------------------------------------------------------------------- make */

/** What was made, for the line at the end. */
typedef struct made {
    uint64_t samples, tokens, bytes;
    uint32_t tokens_min, tokens_max, items_min, items_max;
} made_t;

static void count_sample(made_t *made, const lode_text2json_sample_t *s, size_t bytes)
{
    bool first = made->samples++ == 0;
    made->tokens += s->tokens;
    made->bytes += bytes;
    made->tokens_min = first || s->tokens < made->tokens_min ? s->tokens : made->tokens_min;
    made->tokens_max = s->tokens > made->tokens_max ? s->tokens : made->tokens_max;
    made->items_min = first || s->items < made->items_min ? s->items : made->items_min;
    made->items_max = s->items > made->items_max ? s->items : made->items_max;
}

static lode_status_t write_sample(const lode_text2json_params_t *p, uint64_t index, FILE *file, const char *path,
                                  made_t *made)
{
    lode_text2json_sample_t sample;
    LODE_TRY(lode_text2json_make(p, index, &sample));
    json_t *object = json_pack("{s:s s:s}", "problem", sample.problem, "answer", sample.answer);
    char *line = object ? json_dumps(object, JSON_COMPACT) : NULL;
    lode_status_t status = LODE_OK;
    if (!line)
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory to write a sample");
    else if (fputs(line, file) == EOF || fputc('\n', file) == EOF)
        status = lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
    else
        count_sample(made, &sample, strlen(line) + 1);
    free(line);
    json_decref(object);
    lode_text2json_sample_free(&sample);
    return status;
}

static lode_status_t write_samples(const task_t *task, const lode_text2json_params_t *p, uint64_t count, FILE *file,
                                   const char *path, made_t *made)
{
    lode_progress_t progress;
    lode_status_t status = LODE_OK;
    lode_progress_begin(&progress, task->name, count);
    for (uint64_t i = 0; i < count && status == LODE_OK; i++) {
        status = write_sample(p, i, file, path, made);
        lode_progress_at(&progress, i + 1);
    }
    lode_progress_end(&progress);
    if (status == LODE_OK && fflush(file))
        status = lode_fail(LODE_ERR_IO, "%s cannot be written: %s", path, strerror(errno));
    return status;
}

static void print_made(const char *path, const made_t *made, FILE *out)
{
    fprintf(out,
            "%s: %" PRIu64 " sample%s of %u to %u tokens (mean %" PRIu64 ", estimated), %u to %u items, %.1f MiB\n",
            path, made->samples, made->samples == 1 ? "" : "s", made->tokens_min, made->tokens_max,
            made->tokens / made->samples, made->items_min, made->items_max, (double)made->bytes / (1024 * 1024));
}

/* A file gets its name when it is whole; a device or a pipe is written to as it is. */
static lode_status_t make_file(const task_t *task, const lode_text2json_params_t *p, uint64_t count, const char *path)
{
    char part[4096];
    made_t made = {0};
    struct stat there;
    bool whole = stat(path, &there) != 0 || S_ISREG(there.st_mode);
    if (snprintf(part, sizeof part, "%s%s", path, whole ? ".part" : "") >= (int)sizeof part)
        return lode_fail(LODE_ERR_INVALID, "the path is too long");
    LODE_TRY(lode_job_check_output(path));
    FILE *file = fopen(part, "w");
    if (!file)
        return lode_fail(LODE_ERR_IO, "%s cannot be written: %s", part, strerror(errno));
    lode_status_t status = write_samples(task, p, count, file, part, &made);
    if (fclose(file) && status == LODE_OK)
        status = lode_fail(LODE_ERR_IO, "%s cannot be written: %s", part, strerror(errno));
    if (status == LODE_OK && whole && rename(part, path))
        status = lode_fail(LODE_ERR_IO, "%s cannot be named %s: %s", part, path, strerror(errno));
    if (status == LODE_OK)
        print_made(path, &made, stdout);
    else if (whole)
        unlink(part);
    return status;
}

static lode_status_t make(const task_t *task, const lode_options_t *options)
{
    lode_text2json_params_t params;
    made_t made = {0};
    const char *path = lode_options_get(options, "out");
    uint64_t count = lode_options_count(options, "count");
    if (!path)
        return lode_fail(LODE_ERR_INVALID, "%s make needs --out FILE; see lodemark %s make --help", task->name,
                         task->name);
    LODE_TRY(read_params(task, options, &params));
    if (strcmp(path, "-") != 0)
        return make_file(task, &params, count, path);
    LODE_TRY(write_samples(task, &params, count, stdout, "stdout", &made));
    print_made("stdout", &made, stderr);
    return LODE_OK;
}

/* -------------------------------------------------------------------- score */

static json_int_t number(const json_t *report, const char *key)
{
    return json_integer_value(json_object_get(report, key));
}

static void print_objects(const json_t *report)
{
    json_t *left_out = json_object_get(report, "left_out"), *one;
    size_t i;
    printf("Text2JSON score %.2f over %lld sample%s\n", json_real_value(json_object_get(report, "score")),
           number(report, "scored"), number(report, "scored") == 1 ? "" : "s");
    printf("  items named      %lld of %lld\n", number(report, "matched"), number(report, "items"));
    printf("  additions        %lld\n", number(report, "additions"));
    printf("  keys missing     %lld\n", number(report, "missing_keys"));
    printf("  values wrong     %lld\n", number(report, "wrong_values"));
    printf("  outputs without one list of JSON  %lld\n", number(report, "unread"));
    json_array_foreach(left_out, i, one) printf("  line %lld is left out of the mean: its answer names \"%s\" twice\n",
                                                number(one, "line"), json_string_value(json_object_get(one, "name")));
}

static void print_rows(const task_t *task, const json_t *report)
{
    printf("%s F1 %.2f, precision %.2f, recall %.2f over %lld sample%s\n", task->name,
           json_real_value(json_object_get(report, "f1")), json_real_value(json_object_get(report, "precision")),
           json_real_value(json_object_get(report, "recall")), number(report, "scored"),
           number(report, "scored") == 1 ? "" : "s");
    printf("  rows right       %lld of %lld asked for, %lld given\n", number(report, "matched"), number(report, "rows"),
           number(report, "predicted"));
}

static lode_status_t score(const task_t *task, const lode_options_t *options)
{
    lode_task_result_t result;
    const char *gold = lode_options_get(options, "gold"), *predictions = lode_options_get(options, "predictions");
    if (!gold || !predictions)
        return lode_fail(LODE_ERR_INVALID,
                         "%s score needs --gold FILE and --predictions FILE; see lodemark %s score --help", task->name,
                         task->name);
    LODE_TRY(lode_task_score_files(task->task, gold, predictions, &result));
    lode_status_t status = LODE_OK;
    if (lode_options_flag(options, "json"))
        status = json_dumpf(result.report, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) || printf("\n") < 0
                     ? lode_fail(LODE_ERR_IO, "the result cannot be printed")
                     : LODE_OK;
    else if (task->task == LODE_TASK_TEXT2JSON)
        print_objects(result.report);
    else
        print_rows(task, result.report);
    json_decref(result.report);
    return status;
}

/* ----------------------------------------------------------------- commands */

static int run(const task_t *task, bool makes, int argc, char **argv)
{
    const lode_option_t *table = makes ? task->make_options : score_options;
    const char *verb = makes ? "make" : "score";
    lode_options_t options;
    int rest, code = LODE_EXIT_OK;
    if (lode_options_create(table, &options) != LODE_OK)
        return lode_job_refuse(LODE_EXIT_FAILED, "%s", lode_error_message());
    if (lode_options_parse(&options, argc, argv, &rest) != LODE_OK) {
        code = lode_job_refuse(LODE_EXIT_USAGE, "%s", lode_error_message());
    } else if (lode_options_flag(&options, "help")) {
        printf("lodemark %s %s %s [OPTIONS]\n\n%s\nFormats and rules: docs/text2json.md. Needs no mpirun.\n\n",
               task->name, verb, makes ? "--out FILE" : "--gold FILE --predictions FILE",
               makes ? task->make_doc : task->score_doc);
        lode_options_help(table, stdout);
    } else if (rest < argc) {
        code = lode_job_refuse(LODE_EXIT_USAGE, "\"%s\": %s %s takes options only, each beginning with --", argv[rest],
                               task->name, verb);
    } else {
        lode_status_t status = makes ? make(task, &options) : score(task, &options);
        bool usage = status == LODE_ERR_INVALID &&
                     (makes || !lode_options_get(&options, "gold") || !lode_options_get(&options, "predictions"));
        if (status != LODE_OK)
            code = lode_job_refuse(usage ? LODE_EXIT_USAGE : LODE_EXIT_FAILED, "%s", lode_error_message());
    }
    lode_options_destroy(&options);
    return code;
}

int lode_text2json_make_main(int argc, char **argv)
{
    return run(&tasks[0], true, argc, argv);
}

int lode_text2json_score_main(int argc, char **argv)
{
    return run(&tasks[0], false, argc, argv);
}

int lode_multi_needle_make_main(int argc, char **argv)
{
    return run(&tasks[1], true, argc, argv);
}

int lode_multi_needle_score_main(int argc, char **argv)
{
    return run(&tasks[1], false, argc, argv);
}

int lode_html_to_tsv_make_main(int argc, char **argv)
{
    return run(&tasks[2], true, argc, argv);
}

int lode_html_to_tsv_score_main(int argc, char **argv)
{
    return run(&tasks[2], false, argc, argv);
}
