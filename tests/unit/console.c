/* SPDX-License-Identifier: Apache-2.0 */
/* Where a talk is heard and seen: rows of text, lines of input, a pseudo-terminal whose screen is drawn by a small
 * model of a terminal; what a line promises. No cluster, no model. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <errno.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launch/client.h"
#include "launch/talk.h"

enum { PATIENCE_MS = 20000 };

static lode_console_t console;

/* ------------------------------------------------------------------------- rows */

static char rows[4096];

static void add_row(void *self, const char *text, size_t bytes)
{
    (void)self;
    size_t used = strlen(rows);
    snprintf(rows + used, sizeof rows - used, "%.*s/", (int)bytes, text);
}

static const char *flow(unsigned width, const char *text, size_t piece)
{
    static lode_flow_t made;
    made = (lode_flow_t){.width = width, .row = add_row};
    rows[0] = 0;
    for (size_t at = 0, bytes = strlen(text); at < bytes; at += piece)
        lode_flow_write(&made, text + at, bytes - at < piece ? bytes - at : piece);
    lode_flow_finish(&made);
    return rows;
}

Test(console, text_is_broken_at_blanks_and_elsewhere_only_where_it_must_be)
{
    static const struct {
        unsigned width;
        const char *text, *rows;
    } cases[] = {
        {10, "", ""},
        {10, "one", "one/"},
        {10, "one two three four", "one two/three four/"},
        {10, "one two thr", "one two/thr/"},
        {10, "exactly 10 more", "exactly 10/more/"},
        {10, "abcdefghijklmno p", "abcdefghij/klmno p/"},
        {10, "a\nb\n\nc\n", "a/b//c/"},
        {10, "exactly 10\nmore", "exactly 10/more/"},
        {10, "exactly 10  more", "exactly 10/more/"},
        {10, "  deep\n  deep", "  deep/  deep/"},
        {10, "a\tb\x1b[2Jc\x7f", "a b?[2Jc?/"},
        {10, "\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e",
         "\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e\xe6\x97\xa5\xe6\x9c\xac/\xe8\xaa\x9e/"},
        {1, "\xe6\x97\xa5x", "\xe6\x97\xa5/x/"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *got = flow(cases[i].width, cases[i].text, 100);
        cr_assert(strcmp(got, cases[i].rows) == 0, "\"%s\" gives %s", cases[i].text, got);
        if (cases[i].text[0] > 0) /* ASCII: may be cut anywhere */
            cr_assert(strcmp(flow(cases[i].width, cases[i].text, 1), cases[i].rows) == 0, "\"%s\"", cases[i].text);
    }
}

static size_t letters_in, letters_out;

static void check_row(void *self, const char *text, size_t bytes)
{
    unsigned columns = lode_flow_columns(text, bytes), width = ((lode_flow_t *)self)->width;
    cr_assert(columns <= width || (width < 2 && columns == 2), "%u columns of %u", columns, width);
    for (size_t i = 0; i < bytes; i++)
        letters_out += text[i] != ' ';
}

Test(console, no_row_is_too_wide_and_no_letter_is_lost)
{
    static const char *const pieces[] = {"a",  " ",        "word", "\n", "\xc3\xa9", "\xe6\x97\xa5", "\xf0\x9f\x98\x80",
                                         "  ", "e\xcc\x81"};
    static lode_flow_t made;
    uint64_t state = 7;
    made = (lode_flow_t){.width = 12, .row = check_row, .self = &made};
    for (int i = 0; i < 200000; i++) {
        const char *piece = pieces[(state = lode_mix(state, 1)) % (sizeof pieces / sizeof *pieces)];
        if (state % 1000 == 999) {
            lode_flow_finish(&made);
            made.width = 1 + (unsigned)(state >> 32) % 20;
        }
        for (const char *c = piece; *c; c++)
            letters_in += *c != ' ' && *c != '\n';
        lode_flow_write(&made, piece, strlen(piece));
    }
    lode_flow_finish(&made);
    cr_assert(letters_in == letters_out && letters_in > 100000, "%zu of %zu", letters_out, letters_in);
}

Test(console, columns_are_those_of_a_terminal)
{
    static const char text[] = "ab\xc3\xa9\xe6\x97\xa5\xf0\x9f\x98\x80" /* a b é 日 😀 */
                               "e\xcc\x81";                             /* e and an accent of its own */
    cr_assert(lode_flow_columns(text, sizeof text - 1) == 8, "%u", lode_flow_columns(text, sizeof text - 1));
    cr_assert(lode_flow_tail(text, sizeof text - 1, 100) == 0);
    cr_assert(lode_flow_tail(text, sizeof text - 1, 4) == 7);
    cr_assert(lode_flow_tail(text, sizeof text - 1, 3) == 7);
    cr_assert(lode_flow_tail(text, sizeof text - 1, 2) == 11);
    cr_assert(lode_flow_tail(text, sizeof text - 1, 0) >= 12);
}

/* ------------------------------------------------------------------------ lines */

Test(console, lines_come_whole_and_without_waiting)
{
    static lode_lines_t lines;
    int ends[2];
    cr_assert(pipe(ends) == 0);
    lines.fd = ends[0];
    cr_assert(lode_lines_next(&lines, 0) == NULL && !lines.ended);
    cr_assert(write(ends[1], "hal", 3) == 3);
    cr_assert(lode_lines_next(&lines, 0) == NULL);
    cr_assert(write(ends[1], "f\r\n\nnext\nrest", 13) == 13);
    cr_assert(strcmp(lode_lines_next(&lines, 0), "half") == 0);
    cr_assert(strcmp(lode_lines_next(&lines, 0), "") == 0);
    cr_assert(strcmp(lode_lines_next(&lines, 0), "next") == 0);
    cr_assert(lode_lines_next(&lines, 0) == NULL && !lines.ended);
    close(ends[1]);
    cr_assert(strcmp(lode_lines_next(&lines, PATIENCE_MS), "rest") == 0);
    cr_assert(lode_lines_next(&lines, PATIENCE_MS) == NULL && lines.ended);
    close(ends[0]);
}

Test(console, a_line_too_long_comes_in_parts)
{
    static lode_lines_t lines;
    FILE *file = tmpfile();
    size_t got = 0, parts = 0;
    for (size_t i = 0; i < (size_t)LODE_LINE_MAX * 5 / 2; i++)
        cr_assert(fputc('x', file) != EOF);
    cr_assert(fflush(file) == 0 && lseek(fileno(file), 0, SEEK_SET) == 0);
    lines.fd = fileno(file);
    for (const char *line; (line = lode_lines_next(&lines, PATIENCE_MS)) != NULL; parts++)
        got += strlen(line);
    cr_assert(got == (size_t)LODE_LINE_MAX * 5 / 2 && parts == 3, "%zu in %zu", got, parts);
    fclose(file);
}

Test(console, a_line_promises_more_by_its_end)
{
    static const struct {
        const char *line, *heard;
        bool more;
    } cases[] = {
        {"", "", false},
        {"\\", "", true},
        {"one \\", "one ", true},
        {"one \\\\", "one \\", true},
        {"one\xe2\x80\xa6", "one", true},
        {"\xe2\x80\xa6 one", "\xe2\x80\xa6 one", false},
        {"one...", "one...", false},
        {"\x80\xa6", "\x80\xa6", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char line[32];
        snprintf(line, sizeof line, "%s", cases[i].line);
        cr_assert(lode_talk_promises(line) == cases[i].more, "\"%s\"", cases[i].line);
        cr_assert(strcmp(line, cases[i].heard) == 0, "\"%s\"", line);
    }
}

/* ----------------------------------------------------------------------- options */

static lode_talker_t talker;

static lode_status_t read_options(const char *const *words)
{
    int count = 0;
    while (words[count])
        count++;
    lode_reading_free(&talker.reading);
    talker = (lode_talker_t){0};
    return lode_talk_options(count, (char **)(uintptr_t)words, &talker);
}
#define READ(...) read_options((const char *const[]){__VA_ARGS__, NULL})

Test(console, options_say_how_to_talk)
{
    unsetenv("LODEMARK_CLUSTER");
    cr_assert(READ("--max-words", "7") == LODE_OK, "%s", lode_error_message());
    cr_assert(talker.talking.mode == LODE_TALK_AT_ONCE && talker.talking.hear_at_once);
    cr_assert(talker.talking.most_words == 7 && talker.talking.most_thoughts == 1024);
    cr_assert(talker.talking.policy.select == LODE_SELECT_LANDMARK && talker.talking.policy.budget_share == 0.03125);
    cr_assert(talker.reading.paths.count == 0 && talker.request == NULL && talker.reading.client == false);
    cr_assert(READ("--mode", "think-first", "--hear=sentence", "--docs", "a", "b", "--policy", "dense", "--temperature",
                   "0.5", "--seed", "9", "--docs=c", "--cluster", "contact", "--request", "r", "--thoughts",
                   "-") == LODE_OK,
              "%s", lode_error_message());
    cr_assert(talker.talking.mode == LODE_TALK_THINK_FIRST && talker.talking.hear_at_once == false);
    cr_assert(talker.reading.paths.count == 3 && talker.reading.client && strcmp(talker.thoughts_path, "-") == 0);
    cr_assert(talker.talking.policy.select == LODE_SELECT_DENSE && talker.talking.sampling.seed == 9);
    cr_assert(talker.talking.sampling.temperature == 0.5 && strcmp(talker.request, "r") == 0);
    cr_assert(READ("--mode", "no-thought", "--json", "-") == LODE_OK && talker.talking.mode == LODE_TALK_NO_THOUGHT);
    lode_reading_free(&talker.reading);
}

Test(console, options_that_mean_nothing_are_refused)
{
    unsetenv("LODEMARK_CLUSTER");
    static const struct {
        const char *words[5], *says;
    } cases[] = {
        {{"--mode", "sometimes"}, "think-first"},
        {{"--hear", "never"}, "sentence"},
        {{"--request", " \t"}, "--request is empty"},
        {{"--thoughts", "x", "--mode", "no-thought"}, "there are none"},
        {{"--json", "-", "--thoughts", "-"}, "only one of them"},
        {{"--max-words", "0"}, "max-words"},
        {{"--temperature", "hot"}, "0 to 100"},
        {{"--thought", "x"}, "thoughts"},
        {{"--policy", "landmrk2"}, "landmark2"},
        {{"word"}, "lodemark talk --help"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cr_assert(read_options(cases[i].words) == LODE_ERR_INVALID, "%s", cases[i].words[0]);
        cr_assert(strstr(lode_error_message(), cases[i].says) != NULL, "%s", lode_error_message());
    }
    setenv("OMPI_COMM_WORLD_SIZE", "2", 1);
    cr_assert(READ("--cluster", "contact") == LODE_ERR_INVALID && strstr(lode_error_message(), "without mpirun"));
    lode_reading_free(&talker.reading);
}

/* ----------------------------------------------------------------------- streams */

static const char *drain(int fd)
{
    static char text[65536];
    size_t used = 0;
    struct pollfd in = {.fd = fd, .events = POLLIN};
    while (used + 1 < sizeof text && poll(&in, 1, 0) > 0) {
        ssize_t got = read(fd, text + used, sizeof text - 1 - used);
        if (got <= 0)
            break;
        used += (size_t)got;
    }
    text[used] = 0;
    return text;
}

static void say(lode_console_t *to, const char *words, const char *thoughts)
{
    lode_console_words(to, words, strlen(words));
    lode_console_thoughts(to, thoughts, strlen(thoughts));
    lode_console_refresh(to);
}

Test(console, a_pipe_gets_the_words_alone_and_at_once)
{
    int ends[2];
    setenv("TERM", "xterm", 1);
    cr_assert(pipe(ends) == 0);
    cr_assert(lode_console_open(-1, ends[1], LODE_THOUGHTS_PANE, &console) == LODE_OK);
    say(&console, "Hel", "hm, ");
    cr_assert(strcmp(drain(ends[0]), "Hel") == 0);
    say(&console, "lo\x1b there", "so");
    cr_assert(strcmp(drain(ends[0]), "lo? there") == 0);
    lode_console_finish(&console);
    cr_assert(strcmp(drain(ends[0]), "\n") == 0);
    say(&console, "one line\n", "");
    lode_console_finish(&console);
    lode_console_finish(&console);
    lode_console_close(&console);
    cr_assert(strcmp(drain(ends[0]), "one line\n") == 0);
    cr_assert(lode_console_ended(&console));
    close(ends[0]), close(ends[1]);
}

Test(console, thoughts_among_the_words_are_rows_of_their_own)
{
    int ends[2];
    cr_assert(pipe(ends) == 0);
    cr_assert(lode_console_open(-1, ends[1], LODE_THOUGHTS_LINES, &console) == LODE_OK);
    say(&console, "Well, ", "first ");
    say(&console, "I say\nthat ", "this\nthen ");
    cr_assert(strcmp(drain(ends[0]), "Well, I say\n| first this\n") == 0);
    say(&console, "it is so.", "that");
    cr_assert(strcmp(drain(ends[0]), "") == 0);
    lode_console_finish(&console);
    cr_assert(strcmp(drain(ends[0]), "| then that\nthat it is so.\n") == 0);
    lode_console_close(&console);
    close(ends[0]), close(ends[1]);
}

Test(console, a_reader_that_goes_is_noticed_even_if_nothing_is_said, .init = lode_client_catch)
{
    int ends[2];
    signal(SIGPIPE, SIG_IGN);
    cr_assert(pipe(ends) == 0);
    cr_assert(lode_console_open(-1, ends[1], LODE_THOUGHTS_HIDDEN, &console) == LODE_OK);
    lode_console_refresh(&console);
    cr_assert(console.broken == false);
    close(ends[0]);
    lode_console_refresh(&console);
    cr_assert(console.broken && console.error == EPIPE);
    lode_console_close(&console);
    close(ends[1]);
}

Test(console, a_full_device_says_why)
{
    FILE *full = fopen("/dev/full", "w");
    cr_assert(full && lode_console_open(-1, fileno(full), LODE_THOUGHTS_HIDDEN, &console) == LODE_OK);
    say(&console, "word", "");
    cr_assert(console.broken && console.error == ENOSPC, "%d", console.error);
    lode_console_close(&console);
    fclose(full);
}

/* ---------------------------------------------------------------------- terminal */

enum { SCREEN_ROWS = 40, SCREEN_COLUMNS = 30 };

/* What a terminal shows of what it is sent: as much of one as the console uses. */
typedef struct screen {
    char cells[SCREEN_ROWS][SCREEN_COLUMNS + 1], dim[SCREEN_ROWS][SCREEN_COLUMNS + 1];
    int row, column, worst; /* worst: rightmost column written to */
    bool dims;
} screen_t;

static int master, slave;
static screen_t screen;

static void clear_below(screen_t *s)
{
    for (int r = s->row; r < SCREEN_ROWS; r++) {
        int from = r == s->row ? s->column : 0;
        memset(s->cells[r] + from, ' ', (size_t)(SCREEN_COLUMNS - from));
        memset(s->dim[r] + from, ' ', (size_t)(SCREEN_COLUMNS - from));
    }
}

static const char *obey(screen_t *s, const char *sequence)
{
    char *end;
    long number = strtol(sequence + 2, &end, 10);
    cr_assert(sequence[1] == '[', "ESC %c", sequence[1]);
    if (*end == 'A')
        s->row -= (int)(number ? number : 1);
    else if (*end == 'J')
        clear_below(s);
    else if (*end == 'm')
        s->dims = number == 2;
    else
        cr_assert(false, "ESC [ %ld %c", number, *end);
    cr_assert(s->row >= 0);
    return end + 1;
}

static void receive(void)
{
    const char *at = drain(master);
    while (*at) {
        if (*at == '\x1b') {
            at = obey(&screen, at);
            continue;
        }
        if (*at == '\r') {
            screen.column = 0;
        } else if (*at == '\n') {
            screen.row++;
        } else {
            cr_assert(screen.row < SCREEN_ROWS && screen.column < SCREEN_COLUMNS, "beyond the edge");
            screen.cells[screen.row][screen.column] = *at;
            screen.dim[screen.row][screen.column] = screen.dims ? '2' : ' ';
            screen.column++;
            screen.worst = screen.column > screen.worst ? screen.column : screen.worst;
        }
        at++;
    }
}

/* Rows up to the last that is not blank, without blanks at their ends, each behind "~" where it is dimmed. */
static const char *shown(void)
{
    static char text[4096];
    size_t used = 0;
    int last = SCREEN_ROWS - 1;
    receive();
    while (last >= 0 && strspn(screen.cells[last], " ") == SCREEN_COLUMNS)
        last--;
    text[0] = 0;
    for (int r = 0; r <= last; r++) {
        int length = SCREEN_COLUMNS;
        while (length && screen.cells[r][length - 1] == ' ')
            length--;
        used += (size_t)snprintf(text + used, sizeof text - used, "%s%.*s\n", screen.dim[r][0] == '2' ? "~" : "",
                                 length, screen.cells[r]);
    }
    return text;
}

static void begin_terminal(void)
{
    struct winsize size = {.ws_row = 24, .ws_col = SCREEN_COLUMNS};
    setenv("TERM", "xterm", 1);
    unsetenv("NO_COLOR");
    cr_assert(openpty(&master, &slave, NULL, NULL, &size) == 0);
    screen = (screen_t){0};
    for (int r = 0; r < SCREEN_ROWS; r++) {
        screen.row = r;
        clear_below(&screen);
    }
    screen.row = 0;
}

static void end_terminal(void)
{
    lode_console_close(&console);
    close(master), close(slave);
}

TestSuite(terminal, .init = begin_terminal, .fini = end_terminal);

static void open_terminal(lode_console_thoughts_t thoughts)
{
    cr_assert(lode_console_open(slave, slave, thoughts, &console) == LODE_OK);
    lode_console_refresh(&console);
}

#define SHOWS(text)                                                            \
    do {                                                                       \
        const char *is = shown();                                              \
        cr_assert(strcmp(is, text) == 0, "shown:\n%swanted:\n%s", is, text);   \
        cr_assert(screen.worst < SCREEN_COLUMNS, "writes to the last column"); \
    } while (0)

/* Keys as somebody types them. */
static char *type(const char *keys)
{
    cr_assert(write(master, keys, strlen(keys)) == (ssize_t)strlen(keys));
    return lode_console_take(&console, 0, false);
}

Test(terminal, words_scroll_by_above_dimmed_thoughts_and_what_is_typed)
{
    open_terminal(LODE_THOUGHTS_PANE);
    SHOWS(">\n");
    say(&console, "The weight", "Look it up");
    SHOWS("The weight\n~| Look it up\n>\n");
    cr_assert(type("and the pri") == NULL);
    SHOWS("The weight\n~| Look it up\n> and the pri\n");
    say(&console, " of it is 37 g, and", " in the second document, then");
    SHOWS("The weight of it is 37 g, and\n~| Look it up in the second\n~| document, then\n> and the pri\n");
    say(&console, " no more.", "");
    SHOWS("The weight of it is 37 g, and\nno more.\n~| Look it up in the second\n~| document, then\n> and the pri\n");
    cr_assert(strcmp(type("ce?\n"), "and the price?") == 0);
    SHOWS("The weight of it is 37 g, and\n> and the price?\nno more.\n~| Look it up in the second\n~| document, "
          "then\n>\n");
    lode_console_finish(&console);
    SHOWS("The weight of it is 37 g, and\n> and the price?\nno more.\n>\n");
    lode_console_close(&console);
    SHOWS("The weight of it is 37 g, and\n> and the price?\nno more.\n");
}

Test(terminal, the_pane_keeps_the_last_rows_of_the_thoughts)
{
    open_terminal(LODE_THOUGHTS_PANE);
    say(&console, "", "1\n2\n\n3\n4\n5\n6");
    SHOWS("~| 3\n~| 4\n~| 5\n~| 6\n>\n");
    say(&console, "", "\n");
    SHOWS("~| 3\n~| 4\n~| 5\n~| 6\n>\n");
    cr_assert(ioctl(slave, TIOCSWINSZ, &(struct winsize){.ws_row = 5, .ws_col = SCREEN_COLUMNS}) == 0);
    say(&console, "", "7");
    SHOWS("~| 7\n>\n");
}

Test(terminal, thoughts_may_stay_as_rows)
{
    open_terminal(LODE_THOUGHTS_LINES);
    say(&console, "word ", "a\nb\nc");
    SHOWS("~| a\n~| b\nword\n~| c\n>\n");
    lode_console_finish(&console);
    SHOWS("~| a\n~| b\n~| c\nword\n>\n");
}

Test(terminal, keys_edit_the_line)
{
    static const struct {
        const char *keys, *line;
    } cases[] = {
        {"ab\x7f"
         "c\n",
         "ac"},
        {"one two\x17three\r", "one three"},
        {"gone\x15here\n", "here"},
        {"\x1b[A\x1b[1;5Dx\x1bOPy\x1bqz\n", "xyz"},
        {"na\xc3\xaf\x7fi\n", "nai"},
        {"\x7f\x08\x17\n", ""},
        {"a\tb\x01\x0c\n", "a b"},
        {"x\x04y\n", "xy"}, /* an end is one where nothing was typed */
    };
    open_terminal(LODE_THOUGHTS_PANE);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *line = type(cases[i].keys);
        cr_assert(line && strcmp(line, cases[i].line) == 0, "case %zu: %s", i, line ? line : "none");
    }
    cr_assert(strcmp(type("one\ntwo\nth"), "one") == 0);
    cr_assert(strcmp(type(""), "two") == 0);
    cr_assert(type("") == NULL && !lode_console_ended(&console));
    receive();
    cr_assert(strcmp(type("ree\n"), "three") == 0);
    cr_assert(type("\x04") == NULL && lode_console_ended(&console));
}

Test(terminal, a_long_line_shows_its_end)
{
    open_terminal(LODE_THOUGHTS_PANE);
    cr_assert(type("abcdefghijklmnopqrstuvwxyz0123456789") == NULL);
    SHOWS("> jklmnopqrstuvwxyz0123456789\n");
}

Test(terminal, a_smaller_window_is_heeded)
{
    open_terminal(LODE_THOUGHTS_PANE);
    say(&console, "seven words are in this row", "");
    cr_assert(ioctl(slave, TIOCSWINSZ, &(struct winsize){.ws_row = 24, .ws_col = 20}) == 0);
    say(&console, " and some in the next", "and it is thought about a lot");
    receive();
    screen.worst = 0;
    say(&console, " one", " more");
    SHOWS("seven words are in this row\nand some in the\nnext one\n~| and it is thought\n~| about a lot more\n>\n");
    cr_assert(screen.worst < 20, "%d columns", screen.worst);
}

Test(terminal, notes_do_not_tear_what_is_there)
{
    char line[64] = "";
    int ends[2], before = dup(STDERR_FILENO);
    open_terminal(LODE_THOUGHTS_PANE);
    say(&console, "half a ro", "hm");
    cr_assert(pipe(ends) == 0 && dup2(slave, STDERR_FILENO) == STDERR_FILENO);
    lode_console_note(&console, "a note of %d words", 5);
    dup2(before, STDERR_FILENO);
    say(&console, "w", "");
    SHOWS("a note of 5 words\nhalf a row\n~| hm\n>\n");
    cr_assert(line[0] == 0);
    close(ends[0]), close(ends[1]), close(before);
}

Test(terminal, without_colour_nothing_is_dimmed)
{
    setenv("NO_COLOR", "1", 1);
    open_terminal(LODE_THOUGHTS_PANE);
    say(&console, "word", "thought");
    SHOWS("word\n| thought\n>\n");
}

Test(terminal, a_dumb_one_gets_words_alone)
{
    setenv("TERM", "dumb", 1);
    open_terminal(LODE_THOUGHTS_PANE);
    say(&console, "word", "thought");
    cr_assert(strcmp(drain(master), "word") == 0);
    cr_assert(console.types == false);
    cr_assert(write(master, "typed\n", 6) == 6);
    cr_assert(strcmp(lode_console_take(&console, PATIENCE_MS, false), "typed") == 0);
}

Test(terminal, one_without_a_width_gets_words_alone)
{
    cr_assert(ioctl(slave, TIOCSWINSZ, &(struct winsize){0}) == 0); /* as mpirun's */
    open_terminal(LODE_THOUGHTS_PANE);
    say(&console, "word", "thought");
    cr_assert(strcmp(drain(master), "word") == 0);
}

static bool is_same(const struct termios *a, const struct termios *b)
{
    return a->c_iflag == b->c_iflag && a->c_oflag == b->c_oflag && a->c_cflag == b->c_cflag &&
           a->c_lflag == b->c_lflag && memcmp(a->c_cc, b->c_cc, sizeof a->c_cc) == 0;
}

Test(terminal, it_is_given_back_as_it_was)
{
    struct termios before, during, after;
    cr_assert(tcgetattr(slave, &before) == 0);
    open_terminal(LODE_THOUGHTS_PANE);
    cr_assert(tcgetattr(slave, &during) == 0);
    cr_assert(before.c_lflag & ICANON && before.c_lflag & ECHO);
    cr_assert(during.c_lflag == (before.c_lflag & ~(tcflag_t)(ICANON | ECHO | IEXTEN)));
    lode_console_close(&console);
    cr_assert(tcgetattr(slave, &after) == 0 && is_same(&before, &after));
    shown();
    cr_assert(screen.column == 0);
}

/* ------------------------------------------------------------------------ signals */

/* A process that has the terminal to itself: takes lines until it is told to end. */
static void be_a_child(void)
{
    lode_client_catch();
    if (lode_console_open(STDIN_FILENO, STDOUT_FILENO, LODE_THOUGHTS_PANE, &console) != LODE_OK)
        _exit(99);
    say(&console, "ready", "");
    while (!lode_client_caught() && !lode_console_ended(&console)) {
        const char *line = lode_console_take(&console, 500, true);
        while (line && strcmp(line, "spin") == 0)
            pause(); /* does not look for signals */
    }
    lode_console_close(&console);
    _exit(lode_client_caught());
}

static pid_t begin_child(struct termios *before)
{
    struct winsize size = {.ws_row = 24, .ws_col = SCREEN_COLUMNS};
    int end = 0;
    pid_t child = forkpty(&master, NULL, NULL, &size);
    if (child == 0)
        be_a_child();
    cr_assert(child > 0);
    cr_assert(tcgetattr(master, before) == 0);
    for (struct pollfd in = {.fd = master, .events = POLLIN}; !strstr(shown(), ">") && end < PATIENCE_MS; end += 100)
        poll(&in, 1, 100);
    return child;
}

static bool keys_are_read(void)
{
    struct termios now;
    cr_assert(tcgetattr(master, &now) == 0);
    return !(now.c_lflag & ICANON);
}

static int wait_for(pid_t child, int options)
{
    int status = 0;
    for (int i = 0; i < PATIENCE_MS / 10; i++) {
        if (waitpid(child, &status, WNOHANG | options) == child)
            return status;
        usleep(10000);
    }
    kill(child, SIGKILL);
    cr_assert(false, "it does not end");
    return status;
}

static bool exited(int status, int code)
{
    return WIFEXITED(status) && WEXITSTATUS(status) == code;
}

static bool was_killed(int status, int number)
{
    return WIFSIGNALED(status) && WTERMSIG(status) == number;
}

static bool is_stopped(int status)
{
    return WIFSTOPPED(status);
}

static void press(const char *keys)
{
    cr_assert(write(master, keys, strlen(keys)) == (ssize_t)strlen(keys));
}

Test(terminal, ctrl_c_gives_it_back)
{
    struct termios before, after;
    pid_t child = begin_child(&before);
    press("half a li\x03");
    int status = wait_for(child, 0);
    cr_assert(exited(status, SIGINT), "%x", (unsigned)status);
    cr_assert(tcgetattr(master, &after) == 0);
    cr_assert(is_same(&before, &after));
}

Test(terminal, a_second_ctrl_c_ends_what_does_not_listen_and_gives_it_back)
{
    struct termios before, after;
    pid_t child = begin_child(&before);
    press("spin\n");
    usleep(100000);
    press("\x03");
    usleep(100000); /* apart: two that wait to be delivered are one */
    press("\x03");
    int status = wait_for(child, 0);
    cr_assert(was_killed(status, SIGINT), "%x", (unsigned)status);
    cr_assert(tcgetattr(master, &after) == 0);
    cr_assert(is_same(&before, &after));
}

Test(terminal, ctrl_z_gives_it_back_until_it_goes_on)
{
    struct termios before;
    pid_t child = begin_child(&before);
    cr_assert(keys_are_read());
    press("\x1a");
    int status = wait_for(child, WUNTRACED);
    cr_assert(is_stopped(status), "%x", (unsigned)status);
    cr_assert(keys_are_read() == false);
    kill(child, SIGCONT);
    for (int i = 0; i < PATIENCE_MS / 10 && !keys_are_read(); i++)
        usleep(10000);
    cr_assert(keys_are_read());
    press("\x04");
    status = wait_for(child, 0);
    cr_assert(exited(status, 0), "%x", (unsigned)status);
}
