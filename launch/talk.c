/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark talk`: lines in, words and thoughts out, one talk after another. */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/options.h"
#include "launch/client.h"
#include "launch/talk.h"

/* How long to wait for input before signals and readers are looked for again. */
enum { WAIT_MS = 500 };
/* Room for prompt and input, where the model's context leaves that open. */
enum { HEARD_TOKENS = 8192 };

/* ------------------------------------------------------------------------ end */

/*
 * Whether the talk that runs, if one does, is not to go on. In a terminal the first Ctrl-C ends the talk alone; all
 * else ends the command.
 */
static bool is_over(lode_talker_t *talker)
{
    int number = lode_client_caught();
    if (talker->console->broken)
        talker->leaving = true;
    if (!number || talker->leaving)
        return talker->leaving;
    if (number == SIGINT && talker->talk && talker->console->types && !lode_console_ended(talker->console))
        lode_client_catch(); /* the next one is a first one again */
    else
        talker->leaving = true;
    return true;
}

/* ----------------------------------------------------------------------- input */

static bool is_blank(const char *line)
{
    return line[strspn(line, " \t\r\n")] == 0;
}

static void complain(lode_talker_t *talker, const char *what)
{
    char plain[1024], short_what[64];
    lode_console_note(talker->console, "lodemark: \"%s\": %s", lode_text_plain(what, short_what, sizeof short_what),
                      lode_text_plain(lode_error_message(), plain, sizeof plain));
}

/* Where the prompts put nothing between two pieces of input, a blank keeps their words apart. */
static lode_status_t hear(lode_talker_t *talker, char *line)
{
    bool more = lode_talk_promises(line);
    bool apart = talker->account.heard_end && talker->account.heard_end != ' ' && !*talker->prompts.input_next;
    char *text = NULL;
    int bytes = asprintf(&text, "%s%s", apart ? " " : "", line);
    if (bytes < 0)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a line of input");
    lode_status_t status = lode_talk_hear(talker->talk, text, (size_t)bytes, more);
    if (status == LODE_OK) {
        talker->more = more;
        talker->idle = false;
        lode_talk_account_heard(&talker->account, text, more);
    }
    free(text);
    return status;
}

/* The talk was promised more, and it does not come. */
static lode_status_t deny_more(lode_talker_t *talker)
{
    talker->more = talker->idle = false;
    return lode_talk_hear(talker->talk, "", 0, false);
}

/* A line that cannot be heard is no reason to end the talk. */
static void take_line(lode_talker_t *talker, char *line)
{
    bool late = talker->apart || (talker->account.state == LODE_TALK_WRITING && !talker->more);
    lode_status_t status = LODE_OK;
    if (is_blank(line)) {
        talker->apart = !talker->console->types;
        status = talker->more ? deny_more(talker) : LODE_OK;
    } else if (late) {
        talker->pending = strdup(line);
        if (!talker->pending)
            status = lode_fail(LODE_ERR_NO_MEMORY, "no memory to keep it for the next talk");
    } else {
        status = hear(talker, line);
    }
    if (status != LODE_OK)
        complain(talker, line);
}

/* What came while the talk was busy; if it listens, what comes within a while. */
static lode_status_t take_input(lode_talker_t *talker)
{
    char *line;
    if (talker->pending) {
        lode_console_refresh(talker->console);
        return LODE_OK;
    }
    for (int wait = talker->idle ? WAIT_MS : 0; (line = lode_console_take(talker->console, wait, false)) != NULL;
         wait = 0) {
        take_line(talker, line);
        if (talker->pending)
            return LODE_OK;
    }
    return talker->more && lode_console_ended(talker->console) ? deny_more(talker) : LODE_OK;
}

/* @return the line that the next talk begins with, owned by the caller; NULL: there is none */
static char *next_request(lode_talker_t *talker)
{
    char *line = talker->pending;
    talker->pending = NULL;
    talker->apart = false;
    while (!line && !is_over(talker)) {
        const char *typed = lode_console_take(talker->console, WAIT_MS, true);
        if (typed && !is_blank(typed) && !(line = strdup(typed)))
            complain(talker, typed); /* no memory */
        if (!typed && lode_console_ended(talker->console))
            break;
    }
    return line;
}

/* ------------------------------------------------------------------------ talk */

static void show(void *self, lode_talk_stream_t stream, const char *text, size_t bytes)
{
    lode_talker_t *talker = self;
    if (stream == LODE_TALK_WRITER)
        lode_console_words(talker->console, text, bytes);
    if (stream != LODE_TALK_THINKER)
        return;
    lode_console_thoughts(talker->console, text, bytes);
    if (talker->thoughts) {
        fwrite(text, 1, bytes, talker->thoughts);
        fflush(talker->thoughts);
    }
}

/* Until it has ended, or is told to. @p over: it was told */
static lode_status_t run_steps(lode_talker_t *talker, bool *over)
{
    lode_talk_step_t step;
    do {
        LODE_TRY(take_input(talker));
        if ((*over = is_over(talker)))
            return LODE_OK;
        LODE_TRY(lode_talk_step(talker->talk, &step));
        lode_talk_account_step(&talker->account, &step);
        talker->idle = step.state == LODE_TALK_LISTENING;
    } while (step.state != LODE_TALK_ENDED);
    return LODE_OK;
}

static lode_status_t keep(lode_talker_t *talker, const char *end, const char *error)
{
    json_t *object = lode_talk_json(talker, end, error);
    if (!object || json_array_append_new(talker->talks, object) != 0)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for what the talk took");
    return LODE_OK;
}

/* @return what makes another talk vain; a talk that failed by itself is none of that */
static lode_status_t conclude(lode_talker_t *talker, const char *request, lode_status_t status, bool over)
{
    char line[512];
    lode_console_finish(talker->console);
    if (talker->thoughts)
        fputs("\n\n", talker->thoughts);
    if (status != LODE_OK) {
        talker->failed++;
        complain(talker, request);
        LODE_TRY(keep(talker, "failed", lode_error_message()));
        return status <= LODE_ERR_PAGE_LOST ? status : LODE_OK;
    }
    lode_talk_report(&talker->account, over ? " (interrupted)" : "", line, sizeof line);
    lode_console_note(talker->console, "%s", line);
    return keep(talker, over ? "interrupted" : "ended", NULL);
}

static lode_status_t talk_once(lode_talker_t *talker, char *request)
{
    lode_talking_t talking = talker->talking;
    bool over = false;
    talking.text = show;
    talking.self = talker;
    talker->talked++;
    talker->more = talker->idle = false;
    lode_talk_account_begin(&talker->account);
    lode_status_t status = lode_talk_begin(talker->reading.reader, &talker->prompts, &talking, &talker->talk);
    if (status == LODE_OK)
        status = hear(talker, request);
    if (status == LODE_OK)
        status = run_steps(talker, &over);
    status = conclude(talker, request, status, over);
    if (talker->talk)
        lode_talk_end(&talker->talk);
    lode_talk_account_free(&talker->account);
    return status;
}

static lode_status_t talk_all(lode_talker_t *talker)
{
    char *request = talker->request ? strdup(talker->request) : next_request(talker);
    lode_status_t status = LODE_OK;
    while (request && status == LODE_OK) {
        status = talk_once(talker, request);
        free(request);
        request = status == LODE_OK ? next_request(talker) : NULL;
    }
    if (!talker->talked && !talker->leaving)
        lode_console_note(talker->console, "lodemark: nothing was said to the model");
    return status;
}

/* ------------------------------------------------------------------------ main */

static lode_status_t open_thoughts(lode_talker_t *talker)
{
    if (!talker->thoughts_path || strcmp(talker->thoughts_path, "-") == 0 || talker->reading.job.rank > 0)
        return LODE_OK;
    talker->thoughts = fopen(talker->thoughts_path, "w");
    return talker->thoughts
               ? LODE_OK
               : lode_fail(LODE_ERR_IO, "%s cannot be written: %s", talker->thoughts_path, strerror(errno));
}

/* Of one talk: no more are there at a time. */
static uint64_t own_tokens(const lode_talker_t *talker)
{
    uint64_t context = lode_model_info(lode_reader_model(talker->reading.reader))->context;
    uint64_t most = (uint64_t)talker->talking.most_thoughts + talker->talking.most_words + HEARD_TOKENS;
    return most < context ? most : context;
}

static lode_status_t prepare(lode_talker_t *talker)
{
    lode_reading_t *reading = &talker->reading;
    LODE_TRY(lode_reading_check_json(reading));
    LODE_TRY(open_thoughts(talker));
    LODE_TRY(lode_reading_load(reading));
    LODE_TRY(lode_prompts_open(talker->prompts_path ? talker->prompts_path : reading->model,
                               lode_reader_tokenizer(reading->reader), &talker->prompts));
    talker->prompted = true;
    reading->own_tokens = own_tokens(talker);
    return LODE_OK;
}

static lode_status_t open_console(lode_talker_t *talker)
{
    bool quiet = lode_reading_quiet(&talker->reading), file = talker->thoughts != NULL;
    talker->console = calloc(1, sizeof *talker->console);
    talker->talks = json_array();
    if (!talker->console || !talker->talks)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a console");
    signal(SIGPIPE, SIG_IGN); /* who reads the words may go; the talk's blocks must, too */
    return lode_console_open(STDIN_FILENO, quiet ? -1 : STDOUT_FILENO,
                             file                    ? LODE_THOUGHTS_HIDDEN
                             : talker->thoughts_path ? LODE_THOUGHTS_LINES
                                                     : LODE_THOUGHTS_PANE,
                             talker->console);
}

static lode_status_t write_json(lode_talker_t *talker)
{
    if (!talker->reading.json)
        return LODE_OK;
    json_t *object = lode_reading_json(&talker->reading);
    if (object)
        json_object_set(object, "talks", talker->talks);
    return lode_client_json(talker->reading.json, object);
}

static lode_status_t close_thoughts(lode_talker_t *talker)
{
    if (!talker->thoughts)
        return LODE_OK;
    bool failed = ferror(talker->thoughts) != 0;
    failed = fclose(talker->thoughts) != 0 || failed;
    talker->thoughts = NULL;
    return failed ? lode_fail(LODE_ERR_IO, "%s cannot be written: %s", talker->thoughts_path, strerror(errno))
                  : LODE_OK;
}

static lode_status_t talk(lode_talker_t *talker)
{
    lode_reading_report_ingest(&talker->reading, stderr);
    LODE_TRY(open_console(talker));
    lode_status_t status = talk_all(talker);
    lode_console_close(talker->console);
    LODE_TRY(status);
    LODE_TRY(close_thoughts(talker));
    if (talker->console->broken && talker->console->error != EPIPE && !lode_client_caught())
        return lode_fail(LODE_ERR_IO, "standard output cannot be written: %s", strerror(talker->console->error));
    return write_json(talker);
}

static lode_status_t run(lode_talker_t *talker)
{
    LODE_TRY(lode_job_agree(prepare(talker)));
    LODE_TRY(lode_reading_join(&talker->reading));
    lode_client_catch();
    LODE_TRY(lode_reading_ingest(&talker->reading));
    return talker->reading.job.rank > 0 || lode_client_caught() ? LODE_OK : talk(talker);
}

static int exit_code(const lode_talker_t *talker, lode_status_t status)
{
    bool closed = talker->console && talker->console->broken && talker->console->error == EPIPE;
    if (status != LODE_OK || talker->failed)
        return LODE_EXIT_FAILED;
    if (talker->reading.job.rank > 0)
        return LODE_EXIT_OK; /* until the first one says otherwise */
    return lode_client_caught() ? LODE_EXIT_SIGNAL + lode_client_caught()
           : closed             ? LODE_EXIT_SIGNAL + SIGPIPE
                                : LODE_EXIT_OK;
}

static int finish(lode_talker_t *talker, lode_status_t status)
{
    bool said = talker->failed && status <= LODE_ERR_PAGE_LOST; /* with its request */
    char plain[1024];
    if (status != LODE_OK && talker->reading.job.rank == 0 && !said)
        fprintf(stderr, "lodemark: %s\n", lode_text_plain(lode_error_message(), plain, sizeof plain));
    int code = exit_code(talker, status);
    if (talker->thoughts)
        fclose(talker->thoughts);
    if (talker->prompted)
        lode_prompts_free(&talker->prompts);
    free(talker->pending);
    free(talker->console);
    json_decref(talker->talks);
    return lode_reading_leave(&talker->reading, code);
}

int lode_talk_main(int argc, char **argv)
{
    lode_talker_t talker = {0};
    if (lode_bench_wants_help(argc, argv)) {
        if (lode_job_rank_hint() == 0)
            lode_talk_help(stdout);
        return LODE_EXIT_OK;
    }
    if (lode_talk_options(argc, argv, &talker) != LODE_OK) {
        int code = lode_job_refuse(LODE_EXIT_USAGE, "%s", lode_error_message());
        lode_reading_free(&talker.reading);
        return code;
    }
    lode_status_t status = talker.reading.client ? LODE_OK : lode_job_begin(&talker.reading.job);
    if (status == LODE_OK)
        status = run(&talker);
    return finish(&talker, status);
}
