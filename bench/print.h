/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LODE_BENCH_PRINT_H
#define LODE_BENCH_PRINT_H

#include <math.h>
#include <stdio.h>

/** A number in a column of a table, behind a space; "-" where there is none. */
static inline void lode_print_number(int width, const char *format, double value)
{
    char text[32] = "-";
    if (isfinite(value))
        snprintf(text, sizeof text, format, value);
    printf(" %*s", width, text);
}

#endif
