/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "launch/client.h"
#include "launch/console.h"
#include "launch/console_keys.h"

/* Narrower ones are left alone; a stream with thoughts among the words has rows of this width. */
enum { WIDTH_LEAST = 20, STREAM_WIDTH = 100 };
#define DIM "\x1b[2m"
#define PLAIN "\x1b[0m"

/* --------------------------------------------------------------------- writing */

/*
 * All of it, or the console is broken. A reader that stands still does not keep a signal from being heeded: pipes that
 * poll() calls writable take so much at once.
 */
static void write_all(lode_console_t *console, const char *text, size_t bytes)
{
    while (bytes && !console->broken && console->out >= 0) {
        struct pollfd room = {.fd = console->out, .events = POLLOUT};
        bool ready = poll(&room, 1, 500) > 0;
        if (!ready && lode_client_caught())
            return;
        ssize_t put = ready ? write(console->out, text, bytes < PIPE_BUF ? bytes : PIPE_BUF) : 0;
        if (put < 0 && errno != EINTR && errno != EAGAIN) {
            console->broken = true;
            console->error = errno;
        }
        text += put > 0 ? put : 0;
        bytes -= put > 0 ? (size_t)put : 0;
    }
}

/* What was gathered goes out in one piece: nothing flickers. */
static void flush_memory(lode_console_t *console)
{
    if (!console->memory || fflush(console->memory) != 0)
        return;
    write_all(console, console->gathered, console->gathered_bytes);
    rewind(console->memory);
}

static void look_for_reader(lode_console_t *console)
{
    struct pollfd out = {.fd = console->out};
    if (console->broken || console->out < 0 || poll(&out, 1, 0) <= 0)
        return;
    if (out.revents & (POLLERR | POLLHUP)) {
        console->broken = true;
        console->error = EPIPE;
    }
}

/* -------------------------------------------------------------------- live rows */

static void wipe(lode_console_t *console)
{
    if (console->drawn > 1)
        fprintf(console->memory, "\x1b[%uA", console->drawn - 1);
    if (console->drawn)
        fputs("\r\x1b[J", console->memory);
    console->drawn = 0;
}

static void draw_row(lode_console_t *console, const char *mark, const char *text, size_t bytes, bool dim)
{
    fputs(console->drawn ? "\n" : "", console->memory);
    fputs(dim && console->dims ? DIM : "", console->memory);
    fputs(mark, console->memory);
    fwrite(text, 1, bytes, console->memory);
    fputs(dim && console->dims ? PLAIN : "", console->memory);
    console->drawn++;
}

static void draw_pane(lode_console_t *console)
{
    unsigned quarter = console->height / 4 ? console->height / 4 : 1;
    unsigned most = quarter < LODE_PANE_ROWS ? quarter : LODE_PANE_ROWS;
    bool open = console->thinking.bytes > 0; /* a row that is not whole */
    unsigned rows = console->pane_rows + open < most ? console->pane_rows : most - open;
    for (unsigned i = console->pane_rows - rows; i < console->pane_rows; i++)
        draw_row(console, "| ", console->pane[i], console->pane_bytes[i], true);
    if (open)
        draw_row(console, "| ", console->thinking.text, console->thinking.bytes, true);
}

static void draw(lode_console_t *console)
{
    if (console->words.bytes)
        draw_row(console, "", console->words.text, console->words.bytes, false);
    draw_pane(console);
    if (console->types) {
        size_t from = lode_flow_tail(console->lines.text, console->typed, console->width - 3);
        draw_row(console, "> ", console->lines.text + from, console->typed - from, false);
    }
}

static void measure(lode_console_t *console)
{
    struct winsize size;
    if (ioctl(console->out, TIOCGWINSZ, &size) == 0 && size.ws_col >= WIDTH_LEAST) {
        console->width = size.ws_col;
        console->height = size.ws_row;
    }
    console->words.width = console->width - 1; /* terminals differ in what the last column does */
    console->thinking.width = console->width - 3;
    lode_flow_fit(&console->words);
    lode_flow_fit(&console->thinking);
}

void lode_console_refresh(lode_console_t *console)
{
    look_for_reader(console);
    if (!console->memory)
        return;
    if (console->draws && console->dirty) {
        draw(console);
        console->dirty = false;
    }
    flush_memory(console);
}

void lode_console_redraw(lode_console_t *console)
{
    if (console->draws) {
        wipe(console);
        measure(console);
    }
    console->dirty = true;
}

/* ------------------------------------------------------------------------ rows */

static void word_row(void *self, const char *text, size_t bytes)
{
    lode_console_t *console = self;
    fwrite(text, 1, bytes, console->memory);
    fputc('\n', console->memory);
}

static void to_pane(lode_console_t *console, const char *text, size_t bytes)
{
    if (!bytes)
        return; /* four rows are too few for empty ones */
    if (console->pane_rows == LODE_PANE_ROWS) {
        memmove(console->pane[0], console->pane[1], sizeof console->pane - sizeof console->pane[0]);
        memmove(&console->pane_bytes[0], &console->pane_bytes[1], sizeof console->pane_bytes - sizeof(size_t));
        console->pane_rows--;
    }
    memcpy(console->pane[console->pane_rows], text, bytes);
    console->pane_bytes[console->pane_rows++] = bytes;
}

static void thought_row(void *self, const char *text, size_t bytes)
{
    lode_console_t *console = self;
    if (console->thoughts == LODE_THOUGHTS_PANE) {
        to_pane(console, text, bytes);
        return;
    }
    fprintf(console->memory, "%s| ", console->dims ? DIM : "");
    fwrite(text, 1, bytes, console->memory);
    fprintf(console->memory, "%s\n", console->dims ? PLAIN : "");
}

/* Whether words come row by row. */
static bool has_rows(const lode_console_t *console)
{
    return console->draws || console->thoughts == LODE_THOUGHTS_LINES;
}

void lode_console_words(lode_console_t *console, const char *text, size_t bytes)
{
    if (!bytes || console->out < 0)
        return;
    console->last = text[bytes - 1];
    if (has_rows(console)) {
        lode_console_redraw(console);
        lode_flow_write(&console->words, text, bytes);
    } else {
        lode_text_print(console->memory, text, bytes);
    }
}

void lode_console_thoughts(lode_console_t *console, const char *text, size_t bytes)
{
    if (!bytes || console->out < 0 || console->thoughts == LODE_THOUGHTS_HIDDEN)
        return;
    lode_console_redraw(console);
    lode_flow_write(&console->thinking, text, bytes);
}

void lode_console_finish(lode_console_t *console)
{
    if (!console->memory)
        return;
    lode_console_redraw(console);
    if (console->thoughts == LODE_THOUGHTS_LINES)
        lode_flow_finish(&console->thinking);
    if (has_rows(console))
        lode_flow_finish(&console->words);
    else if (console->last && console->last != '\n')
        fputc('\n', console->memory);
    console->thinking.bytes = console->thinking.columns = 0;
    console->pane_rows = 0;
    console->last = 0;
    lode_console_refresh(console);
}

void lode_console_note(lode_console_t *console, const char *format, ...)
{
    va_list arguments;
    if (console->memory) {
        lode_console_redraw(console);
        flush_memory(console);
    }
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    fflush(stderr);
    lode_console_refresh(console);
}

/* ------------------------------------------------------------------------ input */

/* The line that was typed, above the row of words that is not whole. */
static void show_typed(lode_console_t *console, const char *line)
{
    lode_console_redraw(console);
    fputs("> ", console->memory);
    lode_text_print(console->memory, line, strlen(line));
    fputc('\n', console->memory);
}

char *lode_console_take(lode_console_t *console, int wait_ms, bool prompt)
{
    char *line;
    lode_console_refresh(console);
    if (console->types) {
        line = lode_console_type(console, wait_ms);
        if (line)
            show_typed(console, line);
        lode_console_refresh(console);
        return line;
    }
    if (prompt && !console->prompting && !console->lines.ended && isatty(console->lines.fd)) {
        fputs("> ", stderr);
        fflush(stderr);
        console->prompting = true;
    }
    line = lode_lines_next(&console->lines, wait_ms);
    console->prompting = console->prompting && !line;
    return line;
}

bool lode_console_ended(const lode_console_t *console)
{
    return console->lines.ended && (console->types || console->lines.bytes == console->lines.taken);
}

/* ---------------------------------------------------------------- open and close */

static bool can_draw(int out)
{
    const char *kind = getenv("TERM");
    struct winsize size;
    return out >= 0 && isatty(out) && kind && *kind && strcmp(kind, "dumb") != 0 &&
           ioctl(out, TIOCGWINSZ, &size) == 0 && size.ws_col >= WIDTH_LEAST;
}

lode_status_t lode_console_open(int in, int out, lode_console_thoughts_t thoughts, lode_console_t *console)
{
    const char *plain = getenv("NO_COLOR");
    *console = (lode_console_t){.out = out, .thoughts = thoughts, .width = STREAM_WIDTH + 1, .dirty = true};
    console->memory = open_memstream(&console->gathered, &console->gathered_bytes);
    if (!console->memory)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for what is shown");
    console->draws = can_draw(out);
    console->dims = console->draws && (!plain || !*plain);
    if (!console->draws && thoughts == LODE_THOUGHTS_PANE)
        console->thoughts = LODE_THOUGHTS_HIDDEN;
    console->words = (lode_flow_t){.width = console->width - 1, .row = word_row, .self = console};
    console->thinking = (lode_flow_t){.width = console->width - 3, .row = thought_row, .self = console};
    console->lines.fd = in;
    console->lines.ended = in < 0;
    lode_console_keys_begin(console);
    if (console->draws)
        measure(console);
    return LODE_OK;
}

void lode_console_close(lode_console_t *console)
{
    if (!console->memory)
        return;
    console->typed = 0;
    lode_console_finish(console);
    if (console->draws) {
        wipe(console);
        flush_memory(console);
    }
    if (console->prompting)
        fputc('\n', stderr);
    lode_console_keys_end(console);
    fclose(console->memory);
    free(console->gathered);
    console->memory = NULL;
    console->gathered = NULL;
}
