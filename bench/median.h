/* SPDX-License-Identifier: Apache-2.0 */
#ifndef LODE_BENCH_MEDIAN_H
#define LODE_BENCH_MEDIAN_H

#include <stddef.h>

/** Median of n numbers, which are reordered; 0 for n = 0. */
double lode_median(double *values, size_t n);

#endif
