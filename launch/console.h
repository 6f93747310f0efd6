/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file console.h
 * @brief Where a talk is heard and seen: a terminal, or streams.
 *
 * On a terminal that can move its cursor the last rows are drawn anew with each refresh: the row of words that is not
 * whole yet, the last thoughts dimmed, and what is being typed; whole rows of words scroll by above them. So what is
 * typed and what is said do not tear each other apart. Elsewhere words go out as they come, and nothing else.
 */
#ifndef LODE_LAUNCH_CONSOLE_H
#define LODE_LAUNCH_CONSOLE_H

#include <stdio.h>
#include <termios.h>

#include "base/base.h"
#include "launch/flow.h"
#include "launch/lines.h"

typedef enum lode_console_thoughts {
    LODE_THOUGHTS_HIDDEN,
    LODE_THOUGHTS_PANE, /**< the last rows, on a terminal that can draw them; else hidden */
    LODE_THOUGHTS_LINES /**< all of them, whole rows among the words, each behind "| " */
} lode_console_thoughts_t;

enum { LODE_PANE_ROWS = 4 };

typedef struct lode_console {
    int out;     /**< −1: words are not shown */
    bool draws;  /**< to a terminal that can */
    bool dims;   /**< and may */
    bool types;  /**< keys are read one by one, and shown by us */
    bool broken; /**< nobody reads what is written any more, or it cannot be written: then error is why, as in errno */
    int error;
    lode_console_thoughts_t thoughts;
    unsigned width, height;
    lode_flow_t words, thinking;
    char pane[LODE_PANE_ROWS][LODE_ROW_MAX]; /**< oldest first */
    size_t pane_bytes[LODE_PANE_ROWS];
    unsigned pane_rows;
    bool dirty, prompting;
    unsigned drawn; /**< live rows on the terminal, the cursor at the last one's end */
    char last;      /**< character of words shown where nothing is drawn; 0: none since the talk began */
    FILE *memory;   /**< gathers what the next refresh writes */
    char *gathered;
    size_t gathered_bytes;
    lode_lines_t lines; /**< of input; typed keys are edited in its text */
    size_t typed;       /**< bytes of the line that is being typed, where keys are read */
    int escape;         /**< within a key's sequence of several bytes */
    struct termios before;
} lode_console_t;

/**
 * @param[in] in        −1: nothing is heard
 * @param[in] out       −1: nothing is shown
 * @return ::LODE_ERR_NO_MEMORY. Then, and until close, nothing of the terminal is changed if it cannot draw.
 */
lode_status_t lode_console_open(int in, int out, lode_console_thoughts_t thoughts, lode_console_t *console);
/** Gives the terminal back as it was. Also for a console that is zeroed. */
void lode_console_close(lode_console_t *console);

/** Words and thoughts, (bytes) whole characters; shown by the next take or refresh. */
void lode_console_words(lode_console_t *console, const char *text, size_t bytes);
void lode_console_thoughts(lode_console_t *console, const char *text, size_t bytes);
/** A line to stderr, with nothing torn. */
void lode_console_note(lode_console_t *console, const char *format, ...) __attribute__((format(printf, 2, 3)));
/** The talk has ended: its rows are whole, its pane goes. */
void lode_console_finish(lode_console_t *console);

void lode_console_refresh(lode_console_t *console);
/**
 * Refresh, and take a line that was typed or came in, as lode_lines_next(). On a terminal that draws, the line is shown
 * among the words.
 * @param[in] prompt  where a terminal does not draw: whether to say that a line is waited for
 */
char *lode_console_take(lode_console_t *console, int wait_ms, bool prompt);
/** Whether no more lines will come. */
bool lode_console_ended(const lode_console_t *console);

#endif
