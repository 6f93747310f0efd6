/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "launch/client.h"
#include "launch/console_keys.h"

/* ----------------------------------------------------------------- the terminal */

/* Of the one console that reads keys, for handlers of signals. */
static struct {
    volatile sig_atomic_t on, stop, again;
    int fd;
    struct termios before, during;
    struct sigaction stop_before, again_before, size_before, output_before;
} terminal;

/* Safe in a signal's handler. */
static void give_back(void)
{
    if (terminal.on)
        tcsetattr(terminal.fd, TCSANOW, &terminal.before);
}

static void note_stop(int number)
{
    (void)number;
    terminal.stop = 1;
}

/* Whoever had the terminal meanwhile may have set it otherwise. */
static void note_again(int number)
{
    (void)number;
    terminal.again = 1;
}

void lode_console_keys_begin(lode_console_t *console)
{
    int in = console->lines.fd;
    if (in < 0 || !isatty(in))
        return;
    pid_t owner = tcgetpgrp(in);
    if (owner > 0 && owner != getpgrp()) { /* in the background: reading would stop it */
        console->lines.ended = true;
        return;
    }
    if (!console->draws || terminal.on || tcgetattr(in, &terminal.before) != 0)
        return;
    terminal.fd = in;
    terminal.stop = terminal.again = 0;
    terminal.during = terminal.before;
    terminal.during.c_lflag &= ~(tcflag_t)(ICANON | ECHO | IEXTEN);
    terminal.during.c_cc[VMIN] = 1;
    terminal.during.c_cc[VTIME] = 0;
    lode_client_handle(SIGTSTP, note_stop, 0, &terminal.stop_before);
    lode_client_handle(SIGCONT, note_again, 0, &terminal.again_before);
    lode_client_handle(SIGWINCH, note_again, 0, &terminal.size_before);
    lode_client_handle(SIGTTOU, SIG_IGN, 0, &terminal.output_before); /* it is given back even from the background */
    lode_client_tidy(give_back);
    terminal.on = 1;
    tcsetattr(in, TCSANOW, &terminal.during);
    console->types = true;
}

void lode_console_keys_end(lode_console_t *console)
{
    if (!console->types)
        return;
    give_back();
    terminal.on = 0;
    lode_client_tidy(NULL);
    sigaction(SIGTSTP, &terminal.stop_before, NULL);
    sigaction(SIGCONT, &terminal.again_before, NULL);
    sigaction(SIGWINCH, &terminal.size_before, NULL);
    sigaction(SIGTTOU, &terminal.output_before, NULL);
    console->types = false;
}

/* Ctrl-Z, and back. */
static void obey_signals(lode_console_t *console)
{
    if (terminal.stop) {
        terminal.stop = 0;
        give_back();
        raise(SIGSTOP);
        terminal.again = 1;
    }
    if (terminal.again) {
        terminal.again = 0;
        tcsetattr(terminal.fd, TCSANOW, &terminal.during);
        lode_console_redraw(console);
    }
}

/* ------------------------------------------------------------------------- keys */

enum { KEY_END = 4, KEY_RUB = 8, KEY_REDRAW = 12, KEY_CLEAR = 21, KEY_WORD = 23, KEY_ESCAPE = 27, KEY_DELETE = 127 };

static void rub_character(lode_console_t *console)
{
    const char *text = console->lines.text;
    while (console->typed && ((unsigned char)text[console->typed - 1] & 0xc0) == 0x80)
        console->typed--;
    console->typed -= console->typed > 0;
}

static void rub_word(lode_console_t *console)
{
    const char *text = console->lines.text;
    while (console->typed && text[console->typed - 1] == ' ')
        console->typed--;
    while (console->typed && text[console->typed - 1] != ' ')
        console->typed--;
}

/* Arrows and the like are passed over: ESC [ … letter, ESC O letter, or ESC and one byte. */
static bool is_escape(lode_console_t *console, unsigned char key)
{
    if (console->escape == 0 && key == KEY_ESCAPE)
        console->escape = 1;
    else if (console->escape == 1)
        console->escape = key == '[' ? 2 : key == 'O' ? 3 : 4;
    else if (console->escape == 2)
        console->escape = key >= 0x40 && key < 0x7f ? 4 : 2;
    else if (console->escape == 3)
        console->escape = 4;
    else
        return false;
    if (console->escape == 4)
        console->escape = 0;
    return true;
}

/* @return whether the key ends the line */
static bool edit(lode_console_t *console, unsigned char key)
{
    if (is_escape(console, key))
        return false;
    if (key == '\n' || key == '\r')
        return true;
    if (key == KEY_RUB || key == KEY_DELETE)
        rub_character(console);
    else if (key == KEY_CLEAR)
        console->typed = 0;
    else if (key == KEY_WORD)
        rub_word(console);
    else if (key == KEY_END && !console->typed)
        console->lines.ended = true;
    else if (key == '\t')
        key = ' ';
    if (key >= 0x20 && key != KEY_DELETE && console->typed + 1 < sizeof console->lines.text)
        console->lines.text[console->typed++] = (char)key;
    return false;
}

/* One at a time: those behind an Enter stay with the terminal until the next call. */
static int read_key(lode_console_t *console, int wait_ms)
{
    unsigned char key;
    struct pollfd input = {.fd = console->lines.fd, .events = POLLIN};
    if (console->lines.ended || poll(&input, 1, wait_ms) <= 0)
        return -1;
    ssize_t got = read(console->lines.fd, &key, 1);
    if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN))
        console->lines.ended = true;
    return got == 1 ? key : -1;
}

char *lode_console_type(lode_console_t *console, int wait_ms)
{
    obey_signals(console);
    for (int key; (key = read_key(console, wait_ms)) >= 0; wait_ms = 0) {
        if (edit(console, (unsigned char)key)) {
            console->lines.text[console->typed] = 0;
            console->typed = 0;
            return console->lines.text;
        }
        lode_console_redraw(console);
    }
    obey_signals(console);
    return NULL;
}
