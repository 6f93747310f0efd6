/* SPDX-License-Identifier: Apache-2.0 */
/* Slices in turns, the floor that reads memory, inputs. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "bench/kernels.h"

/* ------------------------------------------------------------------ in turns */

typedef struct slice {
    const lode_kernel_work_t *work;
    uint32_t turn;
    double done[LODE_POOL_THREADS];
} slice_t;

static void run_part(void *context, uint32_t part, uint32_t parts)
{
    slice_t *slice = context;
    slice->done[part] = slice->work->slice(slice->work->context, slice->turn, part, parts);
}

static double rate_of_slice(lode_pool_t *pool, const lode_kernel_work_t *work, uint32_t turn)
{
    slice_t slice = {.work = work, .turn = turn};
    uint64_t spent = lode_pool_run(pool, run_part, &slice, work->threads);
    double done = 0;
    for (uint32_t i = 0; i < work->threads; i++)
        done += slice.done[i];
    return spent ? done / ((double)spent * 1e-9) : 0;
}

void lode_kernels_measure(lode_kernels_bench_t *b, const lode_kernel_work_t *figure, const lode_kernel_work_t *floor,
                          double *rate, double *floor_rate)
{
    double rates[2][1024];
    uint32_t slices = b->slices < 1024 ? b->slices : 1024;
    for (uint32_t i = 0; i <= slices; i++) { /* the first brings pages and tables in and does not count */
        uint32_t at = i ? i - 1 : 0;
        rates[0][at] = rate_of_slice(&b->pool, figure, 2 * i);
        rates[1][at] = floor ? rate_of_slice(&b->pool, floor, 2 * i + 1) : NAN;
        lode_progress_at(&b->progress, i);
    }
    *rate = lode_median(rates[0], slices);
    *floor_rate = floor ? lode_median(rates[1], slices) : NAN;
}

/* ---------------------------------------------------------------------- rows */

lode_kernel_row_t *lode_kernels_row(lode_kernels_bench_t *b, const char *kernel, const char *format, uint32_t group,
                                    uint32_t head_dim, const char *unit)
{
    lode_kernel_row_t *row = &b->rows[b->count < LODE_KERNEL_ROWS ? b->count++ : LODE_KERNEL_ROWS - 1];
    *row = (lode_kernel_row_t){.kernel = kernel,
                               .level = b->level,
                               .unit = unit,
                               .threads = 1,
                               .group = group,
                               .head_dim = head_dim,
                               .figure = NAN,
                               .floor = NAN,
                               .ratio = NAN,
                               .target = NAN};
    snprintf(row->format, sizeof row->format, "%s", format);
    if (!b->ops)
        snprintf(row->note, sizeof row->note, "skipped: this processor or build lacks %s", b->level);
    return row;
}

static void name_progress(lode_kernels_bench_t *b, const lode_kernel_row_t *row)
{
    lode_progress_end(&b->progress);
    lode_progress_begin(&b->progress, row->kernel, b->slices);
}

void lode_kernels_rate_row(lode_kernels_bench_t *b, lode_kernel_row_t *row, const lode_kernel_work_t *figure,
                           const lode_kernel_work_t *floor, double unit)
{
    name_progress(b, row);
    lode_kernels_measure(b, figure, floor, &row->figure, &row->floor);
    row->figure /= unit;
    row->floor /= unit;
    row->ratio = row->figure / row->floor;
}

double lode_kernels_target(const lode_kernels_bench_t *b, double widest, double avx2)
{
    return strcmp(b->level, "avx2") == 0 ? avx2 : widest;
}

void lode_kernels_explain(lode_kernel_row_t *row, const char *format, ...)
{
    va_list arguments;
    if (!isfinite(row->ratio) || !isfinite(row->target) ||
        (row->at_most ? row->ratio <= row->target : row->ratio >= row->target))
        return;
    va_start(arguments, format);
    vsnprintf(row->note, sizeof row->note, format, arguments);
    va_end(arguments);
}

void lode_kernels_threads_row(lode_kernels_bench_t *b, const char *kernel, const char *format, uint32_t group,
                              uint32_t head_dim, const lode_kernel_work_t *work, uint64_t wrong)
{
    lode_kernel_row_t *row = lode_kernels_row(b, kernel, format, group, head_dim, "GB/s");
    row->threads = b->threads > 1 ? b->threads : 2;
    row->target = 0.8 * row->threads; /* 1.6 for two */
    row->wrong = wrong;
    if (!b->ops)
        return;
    if (b->threads < 2) {
        snprintf(row->note, sizeof row->note, "skipped: one core or --threads 1");
        return;
    }
    lode_kernel_work_t many = *work, one = *work;
    many.threads = b->threads;
    one.threads = 1;
    lode_kernels_rate_row(b, row, &many, &one, 1e9);
}

/* --------------------------------------------------------------------- floor */

static uint64_t kept; /* written by threads in turns, read by none */

void lode_kernels_keep(uint64_t value)
{
    __atomic_store_n(&kept, value, __ATOMIC_RELAXED);
}

size_t lode_kernels_place(uint32_t turn, size_t slice, size_t whole)
{
    size_t slices = whole / slice;
    return slices > 1 ? turn % slices * slice : 0;
}

typedef uint64_t words_t __attribute__((vector_size(64), aligned(64)));

/* Four sums, so that additions never wait for each other; the compiler cuts the vectors to what it may use. */
#define SUM_LINES                                            \
    words_t sum[4] = {{0}};                                  \
    const words_t *line = (const words_t *)(const void *)at; \
    for (size_t i = 0; i + 4 <= bytes / 64; i += 4)          \
        for (size_t j = 0; j < 4; j++)                       \
            sum[j] += line[i + j];                           \
    words_t all = sum[0] + sum[1] + sum[2] + sum[3];         \
    return all[0] + all[1] + all[2] + all[3] + all[4] + all[5] + all[6] + all[7]

#if defined(__x86_64__)
static __attribute__((target("avx512f"))) uint64_t sum_avx512(const uint8_t *at, size_t bytes)
{
    SUM_LINES;
}
static __attribute__((target("avx2"))) uint64_t sum_avx2(const uint8_t *at, size_t bytes)
{
    SUM_LINES;
}
#endif
static uint64_t sum_plain(const uint8_t *at, size_t bytes)
{
    SUM_LINES;
}

/* The floor is the same for every level: the widest loads there are. */
static uint64_t sum_lines(const uint8_t *at, size_t bytes)
{
#if defined(__x86_64__)
    const lode_ops_t *ops;
    if (lode_ops_get("avx512", &ops) == LODE_OK)
        return sum_avx512(at, bytes);
    if (lode_ops_get("avx2", &ops) == LODE_OK)
        return sum_avx2(at, bytes);
#endif
    return sum_plain(at, bytes);
}

double lode_kernels_read(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    const lode_kernel_stretch_t *stretch = context;
    size_t bytes = stretch->slice_bytes / parts / 256 * 256;
    const uint8_t *at = stretch->at + lode_kernels_place(turn, stretch->slice_bytes, stretch->bytes) + part * bytes;
    lode_kernels_keep(sum_lines(at, bytes));
    return (double)bytes;
}

/* -------------------------------------------------------------------- inputs */

static uint64_t next_random(lode_kernels_bench_t *b)
{
    uint64_t number = ++b->random;
    return lode_mix(number, number);
}

double lode_kernels_uniform(lode_kernels_bench_t *b)
{
    return ((double)(next_random(b) >> 11) + 0.5) * 0x1p-53;
}

double lode_kernels_gaussian(lode_kernels_bench_t *b)
{
    double radius = sqrt(-2 * log(lode_kernels_uniform(b)));
    return radius * cos(2 * M_PI * lode_kernels_uniform(b));
}

void lode_kernels_fill(lode_kernels_bench_t *b, lode_kernel_input_t input, uint32_t dim, float *x, size_t n)
{
    for (size_t i = 0; i < n * dim; i++) {
        float y = (float)lode_kernels_gaussian(b);
        switch (input) {
        case LODE_INPUT_LOW:
            y = -3e4f;
            break;
        case LODE_INPUT_HIGH:
            y = 3e4f;
            break;
        case LODE_INPUT_DENORMAL:
            y *= 1e-40f;
            break;
        case LODE_INPUT_OUTLIER:
            y *= i % dim == 5 ? 1000 : 1;
            break;
        default:
            break;
        }
        x[i] = y;
    }
}

void lode_kernels_repeat(uint8_t *at, size_t bytes, size_t whole)
{
    for (size_t i = bytes; i < whole; i += bytes)
        memcpy(at + i, at, whole - i < bytes ? whole - i : bytes);
}

void lode_kernels_shuffle(lode_kernels_bench_t *b, const uint8_t *base, size_t bytes, const uint8_t **at, size_t n)
{
    for (size_t i = 0; i < n; i++)
        at[i] = base + i * bytes;
    for (size_t i = n; i > 1; i--) {
        size_t j = (size_t)(lode_kernels_uniform(b) * (double)i);
        const uint8_t *other = at[j];
        at[j] = at[i - 1];
        at[i - 1] = other;
    }
}
