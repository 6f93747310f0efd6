/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file console_keys.h
 * @brief Keys of a terminal, one by one.
 */
#ifndef LODE_LAUNCH_CONSOLE_KEYS_H
#define LODE_LAUNCH_CONSOLE_KEYS_H

#include "launch/console.h"

/** If the input is the terminal that is drawn to, and this process has it: keys come one by one, unseen. */
void lode_console_keys_begin(lode_console_t *console);
void lode_console_keys_end(lode_console_t *console);
/** The live rows are wiped; the next refresh draws them anew, below what is written meanwhile. */
void lode_console_redraw(lode_console_t *console);
/** @return the line that Enter has ended, valid until the next call; NULL: none yet */
char *lode_console_type(lode_console_t *console, int wait_ms);

#endif
