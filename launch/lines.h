/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file lines.h
 * @brief Lines as somebody types or writes them, taken without waiting longer than one likes.
 */
#ifndef LODE_LAUNCH_LINES_H
#define LODE_LAUNCH_LINES_H

#include <stdbool.h>
#include <stddef.h>

enum { LODE_LINE_MAX = 1 << 20 };

/** Zeroed but for its fd is empty. */
typedef struct lode_lines {
    int fd;
    bool ended; /**< nothing more can be read; lines that were may still be there */
    size_t bytes, taken;
    char text[LODE_LINE_MAX];
} lode_lines_t;

/**
 * @param[in] wait_ms  how long to wait if there is no whole line yet; a signal ends it as well
 * @return the next line, zero-terminated and without its end, valid until the next call; a line longer than there is
 *         room for comes in parts. NULL: none yet, or none any more.
 */
char *lode_lines_next(lode_lines_t *lines, int wait_ms);

#endif
