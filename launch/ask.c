/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark ask`: documents in, answers out. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/options.h"
#include "launch/ask.h"
#include "launch/client.h"
#include "launch/lines.h"

/* ------------------------------------------------------------------- questions */

static void print_text(void *self, const char *text, size_t bytes)
{
    if (lode_reading_quiet(&((lode_ask_t *)self)->reading))
        return;
    lode_text_print(stdout, text, bytes);
    fflush(stdout);
}

static bool is_caught(void *self)
{
    (void)self;
    return lode_client_caught() != 0;
}

static void complain(const char *question)
{
    char plain[1024], short_question[64];
    fflush(stdout);
    fprintf(stderr, "lodemark: \"%s\": %s\n", lode_text_plain(question, short_question, sizeof short_question),
            lode_text_plain(lode_error_message(), plain, sizeof plain));
}

static lode_status_t add_answer(lode_ask_t *ask, json_t *object)
{
    if (!ask->answers)
        ask->answers = json_array();
    if (!object || json_array_append_new(ask->answers, object) != 0)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the answers");
    return LODE_OK;
}

/* The question again, with full attention and unseen. */
static lode_status_t ask_densely(lode_ask_t *ask, const char *question, lode_answer_t *dense)
{
    lode_asking_t asking = ask->asking;
    asking.policy.select = LODE_SELECT_DENSE;
    asking.sources = false;
    asking.focus = 0;
    asking.stop = is_caught;
    return lode_reader_ask(ask->reading.reader, question, strlen(question), &asking, dense);
}

static lode_status_t answer_one(lode_ask_t *ask, const char *question)
{
    lode_answer_t answer, dense = {0};
    lode_asking_t asking = ask->asking;
    asking.text = print_text;
    asking.stop = is_caught;
    asking.self = ask;
    LODE_TRY(lode_reader_ask(ask->reading.reader, question, strlen(question), &asking, &answer));
    bool both = ask->compare && !ask->reading.dense && !lode_client_caught();
    lode_status_t status = both ? ask_densely(ask, question, &dense) : LODE_OK;
    if (status == LODE_OK && !lode_reading_quiet(&ask->reading))
        lode_ask_report_answer(ask, &answer, both ? &dense : NULL);
    if (status == LODE_OK)
        status = add_answer(ask, lode_ask_answer_json(ask, question, &answer, both ? &dense : NULL));
    lode_answer_free(&answer);
    lode_answer_free(&dense);
    return status;
}

/* A question that cannot be asked does not keep others from it; a cluster that cannot answer does. */
static lode_status_t ask_one(lode_ask_t *ask, const char *question, bool echo)
{
    if (echo && !lode_reading_quiet(&ask->reading)) {
        printf("> ");
        lode_text_print(stdout, question, strlen(question));
        printf("\n");
    }
    ask->asked++;
    lode_status_t status = answer_one(ask, question);
    if (status == LODE_OK)
        return LODE_OK;
    complain(question);
    ask->failed++;
    json_t *failed = json_pack("{s:s s:s}", "question", question, "error", lode_error_message());
    LODE_TRY(add_answer(ask, failed ? failed : json_object()));
    return status <= LODE_ERR_PAGE_LOST ? status : LODE_OK;
}

static bool is_blank(const char *line)
{
    return line[strspn(line, " \t\r\n")] == 0;
}

static lode_status_t ask_line(lode_ask_t *ask, char *line, bool echo)
{
    line[strcspn(line, "\r\n")] = 0;
    return is_blank(line) ? LODE_OK : ask_one(ask, line, echo);
}

static lode_status_t ask_file(lode_ask_t *ask, const char *path)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t got;
    lode_status_t status = LODE_OK;
    FILE *file = fopen(path, "r");
    if (!file)
        return lode_fail(LODE_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
    while (status == LODE_OK && !lode_client_caught() && (got = getline(&line, &room, file)) >= 0) {
        if (strlen(line) < (size_t)got)
            status = lode_fail(LODE_ERR_FORMAT, "%s holds a zero byte: it is no file of questions", path);
        else
            status = ask_line(ask, line, true);
    }
    if (status == LODE_OK && ferror(file))
        status = lode_fail(LODE_ERR_IO, "%s cannot be read: %s", path, strerror(errno));
    free(line);
    fclose(file);
    return status;
}

/* @return the next line of standard input; NULL at the end, or at a signal */
static char *wait_for_line(lode_lines_t *lines)
{
    char *line = NULL;
    while (!lode_client_caught() && !(line = lode_lines_next(lines, 500)) && !lines->ended)
        ; /* a signal may come before the call, so not for ever */
    return line;
}

static lode_status_t ask_input(lode_ask_t *ask)
{
    bool terminal = isatty(STDIN_FILENO);
    lode_lines_t *lines = calloc(1, sizeof *lines);
    lode_status_t status = lines ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for questions");
    char *line;
    while (status == LODE_OK) {
        if (terminal) {
            fprintf(stderr, "> ");
            fflush(stderr);
        }
        if (!(line = wait_for_line(lines)))
            break;
        status = ask_line(ask, line, !terminal);
    }
    if (terminal)
        fputc('\n', stderr);
    if (status == LODE_OK && !ask->asked && !lode_client_caught())
        fprintf(stderr, "lodemark: no question was asked\n");
    free(lines);
    return status;
}

lode_status_t lode_ask_questions(lode_ask_t *ask)
{
    const char *question = lode_options_get(&ask->reading.options, "question");
    const char *file = lode_options_get(&ask->reading.options, "questions");
    return question ? ask_one(ask, question, true) : file ? ask_file(ask, file) : ask_input(ask);
}

/* ------------------------------------------------------------------------ main */

/* What can be refused before anything is loaded. */
static lode_status_t check_outputs(const lode_ask_t *ask)
{
    const char *file = lode_options_get(&ask->reading.options, "questions"), *question;
    if (file && access(file, R_OK) != 0)
        return lode_fail(LODE_ERR_IO, "%s cannot be read: %s", file, strerror(errno));
    question = lode_options_get(&ask->reading.options, "question");
    if (question && is_blank(question))
        return lode_fail(LODE_ERR_INVALID, "--question is empty");
    return lode_reading_check_json(&ask->reading);
}

static lode_status_t prepare(lode_ask_t *ask)
{
    LODE_TRY(check_outputs(ask));
    LODE_TRY(lode_reading_load(&ask->reading));
    ask->reading.own_tokens = lode_reader_manner(ask->reading.reader)->range + ask->asking.most_tokens;
    return LODE_OK;
}

static lode_status_t run(lode_ask_t *ask)
{
    LODE_TRY(lode_job_agree(prepare(ask)));
    LODE_TRY(lode_reading_join(&ask->reading));
    lode_client_catch();
    LODE_TRY(lode_reading_ingest(&ask->reading));
    if (ask->reading.job.rank > 0 || lode_client_caught())
        return LODE_OK;
    lode_reading_report_ingest(&ask->reading, lode_reading_quiet(&ask->reading) ? stderr : stdout);
    LODE_TRY(lode_ask_questions(ask));
    return lode_ask_write_json(ask);
}

static int exit_code(const lode_ask_t *ask, lode_status_t status)
{
    if (status != LODE_OK || ask->failed)
        return LODE_EXIT_FAILED;
    return lode_client_caught() && ask->reading.job.rank == 0 ? LODE_EXIT_SIGNAL + lode_client_caught() : LODE_EXIT_OK;
}

static int finish(lode_ask_t *ask, lode_status_t status)
{
    bool said = ask->failed && status <= LODE_ERR_PAGE_LOST; /* with its question */
    char plain[1024];
    fflush(stdout);
    if (status != LODE_OK && ask->reading.job.rank == 0 && !said)
        fprintf(stderr, "lodemark: %s\n", lode_text_plain(lode_error_message(), plain, sizeof plain));
    int code = exit_code(ask, status);
    if (ask->reading.job.rank == 0 && (fflush(stdout) || ferror(stdout))) {
        fprintf(stderr, "lodemark: standard output cannot be written: %s\n", strerror(errno));
        code = LODE_EXIT_FAILED;
    }
    json_decref(ask->answers);
    return lode_reading_leave(&ask->reading, code);
}

int lode_ask_main(int argc, char **argv)
{
    lode_ask_t ask = {0};
    if (lode_bench_wants_help(argc, argv)) {
        if (lode_job_rank_hint() == 0)
            lode_ask_help(stdout);
        return LODE_EXIT_OK;
    }
    if (lode_ask_options(argc, argv, &ask) != LODE_OK) {
        int code = lode_job_refuse(LODE_EXIT_USAGE, "%s", lode_error_message());
        lode_reading_free(&ask.reading);
        return code;
    }
    lode_status_t status = ask.reading.client ? LODE_OK : lode_job_begin(&ask.reading.job);
    if (status == LODE_OK)
        status = run(&ask);
    return finish(&ask, status);
}
