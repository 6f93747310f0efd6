/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark ask`: documents in, answers out. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/options.h"
#include "bench/progress.h"
#include "launch/ask.h"
#include "launch/client.h"

/* Documents that are read in between two looks at whether to go on. */
enum { INGEST_DOCUMENTS = 64, LINE_MAX_BYTES = 1 << 20 };

/* ---------------------------------------------------------------------- corpus */

static void warn_first(const char *sentence)
{
    char plain[1024];
    if (lode_job_rank_hint() == 0)
        fprintf(stderr, "lodemark: left out: %s\n", lode_text_plain(sentence, plain, sizeof plain));
}

static lode_status_t load_corpus(lode_ask_t *ask)
{
    ask->corpus.warn = warn_first;
    for (int i = 0; i < ask->wish.path_count; i++)
        LODE_TRY(lode_ask_corpus_add(&ask->corpus, ask->wish.paths[i], ask->wish.split));
    ask->ranks_of = calloc(ask->corpus.count, sizeof *ask->ranks_of);
    if (!ask->ranks_of)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a list of %u documents", ask->corpus.count);
    return lode_ask_share(ask->corpus.documents, ask->corpus.count, ask->job.ranks, ask->ranks_of);
}

/* ---------------------------------------------------------------------- ingest */

typedef struct reading {
    lode_progress_t bar;
    uint64_t done, total; /* tokens; the total is guessed from bytes */
    uint64_t bytes, done_bytes;
    char what[40];
} reading_t;

static void show(void *self, uint64_t tokens)
{
    reading_t *reading = self;
    double seconds = (double)(lode_now_ns() - reading->bar.begin_ns) * 1e-9;
    snprintf(reading->what, sizeof reading->what, "reading %.0f tok/s",
             (double)(reading->done + tokens) / (seconds > 0 ? seconds : 1));
    lode_progress_at(&reading->bar, reading->done_bytes);
}

static lode_status_t read_batch(lode_ask_t *ask, const lode_document_t *documents, uint32_t count, reading_t *reading)
{
    lode_ingest_t results[INGEST_DOCUMENTS];
    LODE_TRY(lode_reader_ingest(ask->reader, documents, count, show, reading, results));
    for (uint32_t i = 0; i < count; i++) {
        ask->ingest.tokens += results[i].tokens;
        ask->ingest.pieces += results[i].pieces;
        ask->ingest.present += results[i].present;
        ask->ingest.split_documents += results[i].pieces > 1;
        if (results[i].present < results[i].pieces)
            ask->ingest.fresh_tokens +=
                results[i].tokens * (results[i].pieces - results[i].present) / results[i].pieces;
        reading->done += results[i].tokens;
        reading->done_bytes += documents[i].bytes;
    }
    show(reading, 0);
    return LODE_OK;
}

static lode_status_t read_share(lode_ask_t *ask)
{
    lode_document_t batch[INGEST_DOCUMENTS];
    reading_t reading = {0};
    uint32_t count = 0;
    lode_status_t status = LODE_OK;
    for (uint32_t i = 0; i < ask->corpus.count; i++)
        reading.bytes += ask->ranks_of[i] == ask->job.rank ? ask->corpus.documents[i].bytes : 0;
    lode_progress_begin(&reading.bar, reading.what, reading.bytes);
    for (uint32_t i = 0; i < ask->corpus.count && status == LODE_OK && !lode_client_caught(); i++) {
        if (ask->ranks_of[i] == ask->job.rank)
            batch[count++] = ask->corpus.documents[i];
        if (count == INGEST_DOCUMENTS || (count && i + 1 == ask->corpus.count)) {
            status = read_batch(ask, batch, count, &reading);
            count = 0;
        }
    }
    if (status == LODE_OK && count && !lode_client_caught())
        status = read_batch(ask, batch, count, &reading);
    lode_progress_end(&reading.bar);
    return status;
}

/* All ranks at once, each its share; then the first lists all of it. */
static lode_status_t ingest(lode_ask_t *ask)
{
    uint64_t begin = lode_now_ns();
    lode_ask_ingest_t *in = &ask->ingest;
    lode_status_t status = read_share(ask);
    uint64_t sums[] = {in->tokens, in->fresh_tokens, in->pieces, in->present, in->split_documents};
    LODE_TRY(lode_ask_meet(ask, status, sums, 5));
    *in = (lode_ask_ingest_t){sums[0], sums[1], sums[2], sums[3], sums[4]};
    in->seconds = (double)(lode_now_ns() - begin) * 1e-9;
    if (ask->job.rank || lode_client_caught())
        return LODE_OK;
    lode_ask_report_ingest(ask);
    return lode_reader_list(ask->reader, ask->corpus.documents, ask->corpus.count);
}

/* ------------------------------------------------------------------- questions */

static bool is_quiet(const lode_ask_t *ask)
{
    return ask->wish.json && strcmp(ask->wish.json, "-") == 0;
}

static void print_text(void *self, const char *text, size_t bytes)
{
    if (is_quiet(self))
        return;
    lode_ask_print_plain(stdout, text, bytes);
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
    lode_asking_t asking = ask->wish.asking;
    asking.policy.select = LODE_SELECT_DENSE;
    asking.sources = false;
    asking.focus = 0;
    asking.stop = is_caught;
    return lode_reader_ask(ask->reader, question, strlen(question), &asking, dense);
}

static lode_status_t answer_one(lode_ask_t *ask, const char *question)
{
    lode_answer_t answer, dense = {0};
    lode_asking_t asking = ask->wish.asking;
    asking.text = print_text;
    asking.stop = is_caught;
    asking.self = ask;
    LODE_TRY(lode_reader_ask(ask->reader, question, strlen(question), &asking, &answer));
    bool both = ask->wish.compare && !ask->wish.dense && !lode_client_caught();
    lode_status_t status = both ? ask_densely(ask, question, &dense) : LODE_OK;
    if (status == LODE_OK && !is_quiet(ask))
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
    if (echo && !is_quiet(ask)) {
        printf("> ");
        lode_ask_print_plain(stdout, question, strlen(question));
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

/* Lines of standard input, such that a signal ends the wait for one. */
typedef struct lines {
    char text[LINE_MAX_BYTES];
    size_t bytes, taken;
    bool ended;
} lines_t;

/* @return the next line, zero-terminated; NULL at the end, or at a signal */
static char *next_line(lines_t *lines)
{
    memmove(lines->text, lines->text + lines->taken, lines->bytes - lines->taken);
    lines->bytes -= lines->taken;
    lines->taken = 0;
    for (;;) {
        char *end = memchr(lines->text, '\n', lines->bytes);
        bool full = lines->bytes + 1 == sizeof lines->text;
        if (end || full || (lines->ended && lines->bytes)) {
            lines->taken = end ? (size_t)(end - lines->text) + 1 : lines->bytes;
            lines->text[end ? (size_t)(end - lines->text) : lines->bytes] = 0;
            return lines->text;
        }
        struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
        if (lines->ended || lode_client_caught())
            return NULL;
        if (poll(&input, 1, 500) <= 0) /* a signal may come before the call, so not for ever */
            continue;
        ssize_t got = read(STDIN_FILENO, lines->text + lines->bytes, sizeof lines->text - 1 - lines->bytes);
        lines->ended = got == 0 || (got < 0 && errno != EINTR);
        lines->bytes += got > 0 ? (size_t)got : 0;
    }
}

static lode_status_t ask_input(lode_ask_t *ask)
{
    bool terminal = isatty(STDIN_FILENO);
    lines_t *lines = calloc(1, sizeof *lines);
    lode_status_t status = lines ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for questions");
    char *line;
    while (status == LODE_OK) {
        if (terminal) {
            fprintf(stderr, "> ");
            fflush(stderr);
        }
        if (!(line = next_line(lines)))
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
    const char *question = lode_options_get(&ask->wish.options, "question");
    const char *file = lode_options_get(&ask->wish.options, "questions");
    return question ? ask_one(ask, question, true) : file ? ask_file(ask, file) : ask_input(ask);
}

/* ------------------------------------------------------------------------ main */

/* What can be refused before anything is loaded. */
static lode_status_t check_outputs(const lode_ask_t *ask)
{
    const char *file = lode_options_get(&ask->wish.options, "questions"), *question;
    if (file && access(file, R_OK) != 0)
        return lode_fail(LODE_ERR_IO, "%s cannot be read: %s", file, strerror(errno));
    question = lode_options_get(&ask->wish.options, "question");
    if (question && is_blank(question))
        return lode_fail(LODE_ERR_INVALID, "--question is empty");
    if (ask->wish.json && !is_quiet(ask) && ask->job.rank == 0)
        return lode_job_check_output(ask->wish.json);
    return LODE_OK;
}

static lode_status_t prepare(lode_ask_t *ask)
{
    LODE_TRY(check_outputs(ask));
    LODE_TRY(load_corpus(ask));
    return lode_reader_open(&ask->wish.reader, &ask->reader);
}

static lode_status_t run(lode_ask_t *ask)
{
    LODE_TRY(lode_job_agree(prepare(ask)));
    LODE_TRY(lode_ask_join(ask));
    lode_client_catch();
    LODE_TRY(ingest(ask));
    if (ask->job.rank > 0 || lode_client_caught())
        return LODE_OK;
    LODE_TRY(lode_ask_questions(ask));
    return lode_ask_write_json(ask);
}

static int exit_code(const lode_ask_t *ask, lode_status_t status)
{
    if (status != LODE_OK || ask->failed)
        return LODE_EXIT_FAILED;
    return lode_client_caught() && ask->job.rank == 0 ? LODE_EXIT_SIGNAL + lode_client_caught() : LODE_EXIT_OK;
}

static int finish(lode_ask_t *ask, lode_status_t status)
{
    bool said = ask->failed && status <= LODE_ERR_PAGE_LOST; /* with its question */
    char plain[1024];
    fflush(stdout);
    if (status != LODE_OK && ask->job.rank == 0 && !said)
        fprintf(stderr, "lodemark: %s\n", lode_text_plain(lode_error_message(), plain, sizeof plain));
    int code = exit_code(ask, status);
    if (ask->job.rank == 0 && (fflush(stdout) || ferror(stdout))) {
        fprintf(stderr, "lodemark: standard output cannot be written: %s\n", strerror(errno));
        code = LODE_EXIT_FAILED;
    }
    return lode_ask_leave(ask, code);
}

int lode_ask_main(int argc, char **argv)
{
    lode_ask_t ask = {.job = {.ranks = 1}};
    if (lode_bench_wants_help(argc, argv)) {
        if (lode_job_rank_hint() == 0)
            lode_ask_help(stdout);
        return LODE_EXIT_OK;
    }
    if (lode_ask_wish_read(argc, argv, &ask.wish) != LODE_OK) {
        int code = lode_job_refuse(LODE_EXIT_USAGE, "%s", lode_error_message());
        lode_ask_wish_free(&ask.wish);
        return code;
    }
    lode_status_t status = ask.wish.client ? LODE_OK : lode_job_begin(&ask.job);
    if (status == LODE_OK)
        status = run(&ask);
    return finish(&ask, status);
}
