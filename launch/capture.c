/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark capture`: keys, values and queries of a model that reads documents and answers, as a capture file. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/job.h"
#include "bench/options.h"
#include "bench/progress.h"
#include "bench/reader_bench.h"
#include "bench/text2json.h"
#include "launch/capture.h"
#include "launch/client.h"
#include "launch/corpus.h"

static const lode_option_t capture_options[] = {
    {"model", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "folder of the model: config.json, model.safetensors, tokenizer.json"},
    {"docs", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "files and folders of text to read; more may follow, and the option may be given again"},
    {"split", "file", LODE_OPTION_CHOICE, "file|paragraph|line", 0, 0,
     "what a document is: a file, text between empty lines, or a line"},
    {"question", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "what to ask of them"},
    {"samples", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "take documents and question of this file's sample instead"},
    {"sample", "1", LODE_OPTION_COUNT, NULL, 1, 0, "which of its lines"},
    {"out", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write the capture to this file, which must not be there yet"},
    {"dtype", "bf16", LODE_OPTION_CHOICE, "bf16|f32", 0, 0, "type of what is written; f32 is what the model computed"},
    {"max-tokens", "512", LODE_OPTION_COUNT, NULL, 1, 1 << 20, "of the answer"},
    {"threads", "0", LODE_OPTION_COUNT, NULL, 0, 1024, "for products of matrices; 0: the machine's cores"},
    {"help", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print this"},
    {NULL},
};

typedef struct taking {
    lode_options_t options;
    lode_paths_t paths;
    lode_corpus_t corpus;
    lode_task_line_t *lines;
    uint64_t line_count;
    lode_problem_t problem;
    const lode_document_t *documents;
    uint32_t count;
    const char *question;
    size_t question_bytes;
    lode_model_h model;
    lode_tokenizer_h tokenizer;
    lode_manner_t manner;
    lode_plain_t plain;
    lode_progress_t progress;
} taking_t;

/* -------------------------------------------------------------------- wishes */

static lode_status_t check_wishes(const taking_t *t)
{
    const lode_options_t *o = &t->options;
    bool docs = t->paths.count > 0, question = lode_options_get(o, "question"),
         samples = lode_options_get(o, "samples");
    if (!lode_options_get(o, "model") || !lode_options_get(o, "out"))
        return lode_fail(LODE_ERR_INVALID, "capture needs --model DIR and --out FILE; see lodemark capture --help");
    if (samples && (docs || question))
        return lode_fail(LODE_ERR_INVALID, "--samples brings documents and question along: without --docs, --question");
    if (!samples && (!docs || !question))
        return lode_fail(LODE_ERR_INVALID, "capture needs --docs PATH... and --question TEXT, or --samples FILE");
    return LODE_OK;
}

static lode_status_t read_wishes(int argc, char **argv, taking_t *t)
{
    int count = 0, rest = 0;
    char **words = calloc((size_t)argc + 1, sizeof *words);
    lode_status_t status = words ? lode_options_create(capture_options, &t->options)
                                 : lode_fail(LODE_ERR_NO_MEMORY, "no memory for options");
    if (status == LODE_OK)
        status = lode_corpus_words("capture", argc, argv, &t->paths, words, &count);
    if (status == LODE_OK)
        status = lode_options_parse(&t->options, count, words, &rest);
    if (status == LODE_OK && rest < count)
        status = lode_fail(LODE_ERR_INVALID, "\"%s\": capture takes options only, each beginning with --", words[rest]);
    if (status == LODE_OK && !lode_options_flag(&t->options, "help"))
        status = check_wishes(t);
    free(words);
    return status;
}

/* --------------------------------------------------------------------- texts */

static void warn(const char *sentence)
{
    fprintf(stderr, "lodemark: %s\n", sentence);
}

static lode_status_t read_files(taking_t *t)
{
    lode_split_t split = lode_split_of(lode_options_get(&t->options, "split"));
    t->corpus.warn = warn;
    for (int i = 0; i < t->paths.count; i++)
        LODE_TRY(lode_corpus_add(&t->corpus, t->paths.at[i], split));
    t->documents = t->corpus.documents;
    t->count = t->corpus.count;
    t->question = lode_options_get(&t->options, "question");
    t->question_bytes = strlen(t->question);
    return t->count ? LODE_OK : lode_fail(LODE_ERR_INVALID, "--docs: there is no text in what they name");
}

static lode_status_t read_sample(taking_t *t)
{
    const char *path = lode_options_get(&t->options, "samples");
    uint64_t number = lode_options_count(&t->options, "sample");
    LODE_TRY(lode_task_lines_read(path, number, &t->lines, &t->line_count));
    if (t->line_count < number)
        return lode_fail(LODE_ERR_INVALID, "%s has %" PRIu64 " samples, and no number %" PRIu64, path, t->line_count,
                         number);
    const lode_task_line_t *line = &t->lines[number - 1];
    if (lode_problem_split(line->problem, line->bytes, &t->problem) != LODE_OK)
        return lode_fail_within(LODE_ERR_FORMAT, "%s line %" PRIu64 ": ", path, number);
    t->documents = t->problem.documents;
    t->count = t->problem.count;
    t->question = t->problem.request;
    t->question_bytes = t->problem.request_bytes;
    return LODE_OK;
}

/* --------------------------------------------------------------------- model */

static lode_status_t open_model(taking_t *t)
{
    const char *folder = lode_options_get(&t->options, "model");
    LODE_TRY(lode_model_open(folder, (uint32_t)lode_options_count(&t->options, "threads"), NULL, &t->model));
    LODE_TRY(lode_tokenizer_open(folder, &t->tokenizer));
    const lode_model_info_t *info = lode_model_info(t->model);
    if (lode_tokenizer_size(t->tokenizer) > info->vocabulary)
        return lode_fail(LODE_ERR_FORMAT, "%s: its tokenizer has %u tokens, but its model %u", folder,
                         lode_tokenizer_size(t->tokenizer), info->vocabulary);
    LODE_TRY(lode_manner_open(folder, t->tokenizer, info->context, &t->manner));
    LODE_TRY(lode_plain_open(t->model, t->tokenizer, &t->manner, &t->plain));
    t->plain.record = true;
    return LODE_OK;
}

static void show(void *self, uint64_t tokens)
{
    lode_progress_at(self, tokens);
}

static uint64_t bytes_of(const taking_t *t)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < t->count; i++)
        bytes += t->documents[i].bytes;
    return bytes;
}

/* Before anything is computed: what is there is not written over. */
static lode_status_t check_out(const char *path)
{
    if (access(path, F_OK) == 0)
        return lode_fail(LODE_ERR_IO, "%s is there already: remove it, or name another file", path);
    return lode_job_check_output(path);
}

static void report(const taking_t *t, const lode_answer_t *answer, uint64_t bytes)
{
    const lode_model_info_t *info = lode_model_info(t->model);
    printf("%s: %" PRIu64 " tokens of %u documents, %u of the question, %" PRIu64 " of the answer; %u layers, %" PRIu64
           " queries a layer, %.1f MiB\n",
           lode_options_get(&t->options, "out"), t->plain.documents_end, t->count, answer->question_tokens,
           t->plain.tokens - t->plain.documents_end - answer->question_tokens, info->geometry.layers,
           t->plain.tokens - t->plain.documents_end, (double)bytes / (1 << 20));
    if (info->geometry.rope.scaling != LODE_ROPE_PLAIN)
        printf(
            "The model scales its rotary frequencies, which a capture does not say: shadowkv and rotary means, which "
            "turn\nkeys back, do not hold on it.\n");
    printf("answer: ");
    lode_text_print(stdout, answer->text, answer->bytes);
    printf("\n");
}

static lode_status_t capture(taking_t *t)
{
    const lode_options_t *o = &t->options;
    const char *out = lode_options_get(o, "out");
    lode_answer_t answer = {0};
    uint64_t bytes;
    LODE_TRY(check_out(out));
    LODE_TRY(lode_options_get(o, "samples") ? read_sample(t) : read_files(t));
    LODE_TRY(open_model(t));
    lode_progress_begin(&t->progress, "read documents", bytes_of(t) / 4); /* tokens, about */
    lode_status_t status = lode_plain_read(&t->plain, t->documents, t->count, show, &t->progress);
    lode_progress_end(&t->progress);
    if (status == LODE_OK)
        status = lode_plain_ask(&t->plain, t->question, t->question_bytes,
                                (uint32_t)lode_options_count(o, "max-tokens"), &answer);
    if (status == LODE_OK)
        status = lode_plain_write_capture(&t->plain, out, *lode_options_get(o, "dtype") == 'b' ? LODE_BF16 : LODE_FP32,
                                          &bytes);
    if (status == LODE_OK)
        report(t, &answer, bytes);
    lode_answer_free(&answer);
    return status;
}

/* ------------------------------------------------------------------- command */

static void free_taking(taking_t *t)
{
    lode_plain_close(&t->plain);
    lode_manner_free(&t->manner);
    if (t->tokenizer)
        lode_tokenizer_close(&t->tokenizer);
    if (t->model)
        lode_model_close(&t->model);
    lode_problem_free(&t->problem);
    lode_task_lines_free(t->lines, t->line_count);
    lode_corpus_free(&t->corpus);
    free(t->paths.at);
    if (t->options.values)
        lode_options_destroy(&t->options);
}

int lode_capture_main(int argc, char **argv)
{
    taking_t t = {0};
    int code = LODE_EXIT_OK;
    if (read_wishes(argc, argv, &t) != LODE_OK) {
        code = lode_job_refuse(LODE_EXIT_USAGE, "%s", lode_error_message());
    } else if (lode_options_flag(&t.options, "help")) {
        printf("lodemark capture --model DIR --docs PATH... --question TEXT --out FILE [OPTIONS]\n\n"
               "Let a model read documents and answer a question, and write its keys, values and queries to FILE as a "
               "capture\n(docs/captures.md), for bench frontier, bench landmarks and calibrate. One process, without "
               "mpirun.\n\n");
        lode_options_help(capture_options, stdout);
    } else if (capture(&t) != LODE_OK) {
        code = lode_job_refuse(LODE_EXIT_FAILED, "%s", lode_error_message());
    }
    free_taking(&t);
    return code;
}
