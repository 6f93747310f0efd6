/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file flow.h
 * @brief Text that comes bit by bit, broken into rows of a width.
 */
#ifndef LODE_LAUNCH_FLOW_H
#define LODE_LAUNCH_FLOW_H

#include <stdbool.h>
#include <stddef.h>

/** Bytes of a row; a wide terminal with letters of many bytes. */
enum { LODE_ROW_MAX = 4096 };

/** Zeroed but for width, row and self is empty. */
typedef struct lode_flow {
    unsigned width;                                          /**< columns; may be changed at any time */
    void (*row)(void *self, const char *text, size_t bytes); /**< a row is whole; without an end of line */
    void *self;
    char text[LODE_ROW_MAX]; /**< (bytes) of the row that is not */
    size_t bytes;
    unsigned columns;
    bool broken; /**< the row before was ended for its width: a blank at this one's begin is left out */
} lode_flow_t;

/** @param[in] text  (bytes) whole characters of UTF-8; control characters become "?", tabs a blank */
void lode_flow_write(lode_flow_t *flow, const char *text, size_t bytes);
/** After the width was changed: a row that is too long by now is whole. */
void lode_flow_fit(lode_flow_t *flow);
/** The row that is not whole yet is. Does nothing if there is none. */
void lode_flow_finish(lode_flow_t *flow);

/** Columns that a text takes on a terminal. */
unsigned lode_flow_columns(const char *text, size_t bytes);
/** Offset of the last part of a text that takes no more than so many columns. */
size_t lode_flow_tail(const char *text, size_t bytes, unsigned columns);

#endif
