/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file progress.h
 * @brief A bar for long work, on stderr if that is a terminal, by rank 0 alone: what, how far, time left.
 */
#ifndef LODE_BENCH_PROGRESS_H
#define LODE_BENCH_PROGRESS_H

#include "base/base.h"

typedef struct lode_progress {
    const char *what;
    uint64_t total, begin_ns, shown_ns;
    bool shown; /**< whether there is anybody to show it to */
} lode_progress_t;

void lode_progress_begin(lode_progress_t *progress, const char *what, uint64_t total);
/** Redraws at most ten times a second. */
void lode_progress_at(lode_progress_t *progress, uint64_t done);
/** Wipes the bar. */
void lode_progress_end(lode_progress_t *progress);

#endif
