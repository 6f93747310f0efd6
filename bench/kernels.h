/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file kernels.h
 * @brief What the files of `bench kernels` share.
 *
 * Each subject (kernels_scan.c, kernels_attend.c, …) adds its rows, level by level. A row is first compared with
 * arithmetic in double, then measured in turns with its floor: a slice of the one, a slice of the other, the rate of
 * each by the processor time of its threads, medians of all slices. So a machine that also does other things
 * disturbs both alike.
 */
#ifndef LODE_BENCH_KERNELS_H
#define LODE_BENCH_KERNELS_H

#include "bench/job.h"
#include "bench/kernels_pool.h"
#include "bench/progress.h"
#include "kernels/kernels.h"

enum { LODE_KERNEL_ROWS = 1024 };

/** One row of the table. What was not measured is NAN. */
typedef struct lode_kernel_row {
    const char *kernel, *level, *unit;
    char format[24];
    uint32_t threads, group, head_dim;
    double figure, floor, ratio;
    double target; /**< NAN: none */
    bool at_most;  /**< the target is a greatest, not a least ratio */
    uint64_t wrong;
    char note[160]; /**< why it was skipped, or what to know of it; "" if nothing */
} lode_kernel_row_t;

typedef struct lode_kernels_bench {
    lode_options_t options;
    const lode_ops_t *scalar, *ops; /**< ops: of the level whose rows are made, NULL if this processor lacks it */
    const char *level;
    uint32_t slices, threads; /**< threads: of the rows that compare with one thread */
    bool quick, sweep;
    lode_pool_t pool;
    uint8_t *arena, *reply; /**< huge pages, random bytes at first */
    size_t arena_bytes, reply_bytes;
    uint64_t random;
    lode_progress_t progress;
    lode_kernel_row_t rows[LODE_KERNEL_ROWS];
    uint32_t count;
} lode_kernels_bench_t;

/* ----------------------------------------------------------------- measuring */

/** What is measured: part `part` of `parts` of a slice; slices are at other places from turn to turn. */
typedef struct lode_kernel_work {
    double (*slice)(void *context, uint32_t turn, uint32_t part, uint32_t parts); /**< @return units done */
    void *context;
    uint32_t threads;
} lode_kernel_work_t;

/** Rates in units a second of two works in turns, as medians. @p floor may be NULL. */
void lode_kernels_measure(lode_kernels_bench_t *bench, const lode_kernel_work_t *figure,
                          const lode_kernel_work_t *floor, double *rate, double *floor_rate);

/** A new row of the current level, one thread, nothing measured. */
lode_kernel_row_t *lode_kernels_row(lode_kernels_bench_t *bench, const char *kernel, const char *format, uint32_t group,
                                    uint32_t head_dim, const char *unit);
/** Measure a row whose figure and floor are rates: the unit is 10^9 of what slices count, the ratio figure / floor. */
void lode_kernels_rate_row(lode_kernels_bench_t *bench, lode_kernel_row_t *row, const lode_kernel_work_t *figure,
                           const lode_kernel_work_t *floor, double unit);
/** The target of the current level: the machine's limit, or for AVX2 what was measured when it was set. */
double lode_kernels_target(const lode_kernels_bench_t *bench, double widest, double avx2);
/** Say in the row why it falls short, if it does. */
void lode_kernels_explain(lode_kernel_row_t *row, const char *format, ...) __attribute__((format(printf, 2, 3)));
/** Add the row of more threads against one, if this machine has them. */
void lode_kernels_threads_row(lode_kernels_bench_t *bench, const char *kernel, const char *format, uint32_t group,
                              uint32_t head_dim, const lode_kernel_work_t *work, uint64_t wrong);

/** The floor of most rows: reading memory in order, in bytes. */
typedef struct lode_kernel_stretch {
    const uint8_t *at;
    size_t bytes, slice_bytes;
} lode_kernel_stretch_t;
double lode_kernels_read(void *stretch, uint32_t turn, uint32_t part, uint32_t parts);
/** Where a slice begins: stretches from one end to the other, so that none is cached when its turn comes again. */
size_t lode_kernels_place(uint32_t turn, size_t slice, size_t whole);
/** Keep a result that nobody else wants. */
void lode_kernels_keep(uint64_t value);

/* --------------------------------------------------------------------- inputs */

/** Inputs that a kernel is compared on before it is measured. */
typedef enum lode_kernel_input {
    LODE_INPUT_RANDOM,
    LODE_INPUT_LOW,
    LODE_INPUT_HIGH,
    LODE_INPUT_DENORMAL,
    LODE_INPUT_OUTLIER, /**< one channel a thousand times the others */
    LODE_INPUTS
} lode_kernel_input_t;

double lode_kernels_uniform(lode_kernels_bench_t *bench); /**< (0, 1) */
double lode_kernels_gaussian(lode_kernels_bench_t *bench);
void lode_kernels_fill(lode_kernels_bench_t *bench, lode_kernel_input_t input, uint32_t dim, float *x, size_t n);
/** Copy the first `bytes` over the rest of `whole`. */
void lode_kernels_repeat(uint8_t *at, size_t bytes, size_t whole);
/** Put pointers to n pieces of `bytes` from `base` on in random order. */
void lode_kernels_shuffle(lode_kernels_bench_t *bench, const uint8_t *base, size_t bytes, const uint8_t **at, size_t n);

/* ------------------------------------------------------------------- subjects */

typedef lode_status_t (*lode_kernel_subject_t)(lode_kernels_bench_t *bench);
lode_status_t lode_kernels_scan(lode_kernels_bench_t *bench);
lode_status_t lode_kernels_topk(lode_kernels_bench_t *bench);
lode_status_t lode_kernels_gather(lode_kernels_bench_t *bench);
lode_status_t lode_kernels_attend(lode_kernels_bench_t *bench);
lode_status_t lode_kernels_plain(lode_kernels_bench_t *bench);
/** Makes a cluster of this process alone; initialises MPI. */
lode_status_t lode_kernels_step(lode_kernels_bench_t *bench);

/** Row of only reading pieces of `bytes` from the arena in random order. @return its ratio, NAN if not measured. */
lode_status_t lode_kernels_random_read(lode_kernels_bench_t *bench, const char *kernel, const char *format,
                                       size_t bytes, double target, double *ratio);

/** Scan of 4-bit landmarks, group 4: the floor of top-k, counted in landmarks. Its context is made and freed here. */
lode_status_t lode_kernels_scan4_create(lode_kernels_bench_t *bench, lode_kernel_work_t *work);
void lode_kernels_scan4_free(lode_kernel_work_t *work);

lode_status_t lode_kernels_report(const lode_kernels_bench_t *bench, const char *json);

#endif
