/* SPDX-License-Identifier: Apache-2.0 */
/* Random reads: whole pages by themselves, records and pages into a reply, both against memory in order. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/kernels.h"

enum { PAGE = 4096 };

typedef struct gather {
    const lode_ops_t *ops;
    const uint8_t **at; /* pieces in random order */
    size_t count, bytes, slice;
    uint8_t *reply;
    size_t reply_bytes, call_bytes; /* whole reply memory of a thread; of one call */
    const uint8_t *arena;
    size_t arena_bytes;
} gather_t;

/* ---------------------------------------------------------------- page reads */

/* Sum a piece while a later one is on its way: the least that anything that reads them must do. */
static double read_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    const gather_t *g = context;
    size_t n = g->slice / parts, first = lode_kernels_place(turn, g->slice, g->count) + part * n;
    size_t ahead = g->bytes >= 2048 ? 2 : 8, words = g->bytes / 8;
    uint64_t sum[8] = {0};
    for (size_t i = 0; i < n; i++) {
        const uint64_t *word = (const uint64_t *)(const void *)g->at[first + i];
        const uint8_t *later = g->at[i + ahead < n ? first + i + ahead : first + i];
        size_t at = 0;
        for (; at + 8 <= words; at += 8) {
            __builtin_prefetch(later + 8 * at, 0, 3);
            for (size_t j = 0; j < 8; j++)
                sum[j] += word[at + j];
        }
        __builtin_prefetch(later + g->bytes - 1, 0, 3);
        for (; at < words; at++)
            sum[at % 8] += word[at];
    }
    lode_kernels_keep(sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7]);
    return (double)(n * g->bytes);
}

/* -------------------------------------------------------------------- gather */

static double gather_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    const gather_t *g = context;
    size_t n = g->slice / parts, first = lode_kernels_place(turn, g->slice, g->count) + part * n;
    size_t call = g->call_bytes / g->bytes, replies = g->reply_bytes / g->call_bytes;
    uint8_t *reply = g->reply + part * g->reply_bytes;
    for (size_t i = 0, r = turn; i < n; i += call, r++)
        g->ops->gather(reply + r % replies * g->call_bytes, g->at + first + i, n - i < call ? n - i : call, g->bytes);
    return (double)(n * g->bytes);
}

/* The same replies by memcpy, from memory in order. */
static double copy_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    const gather_t *g = context;
    size_t whole = g->slice * g->bytes, bytes = whole / parts, replies = g->reply_bytes / g->call_bytes;
    const uint8_t *from = g->arena + lode_kernels_place(turn, whole, g->arena_bytes) + part * bytes;
    uint8_t *reply = g->reply + part * g->reply_bytes;
    for (size_t i = 0, r = turn; i < bytes; i += g->call_bytes, r++)
        memcpy(reply + r % replies * g->call_bytes, from + i, bytes - i < g->call_bytes ? bytes - i : g->call_bytes);
    return (double)bytes;
}

/* Pieces of every size from 1 on, at odd places: bytes that are not those of the pieces, or written beyond them. */
static uint64_t wrong_bytes(lode_kernels_bench_t *b, size_t piece)
{
    const size_t sizes[] = {1, 7, 63, 64, 65, 136, piece};
    uint8_t *reply = b->reply;
    uint64_t wrong = 0;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t count = 0; count < 40; count += 13)
            for (size_t skew = 0; skew < 2; skew++) {
                const uint8_t *at[40];
                size_t bytes = sizes[s];
                for (size_t i = 0; i < count; i++)
                    at[i] = b->arena + (size_t)(lode_kernels_uniform(b) * (double)(b->arena_bytes - PAGE));
                memset(reply, 0x5a, skew + count * bytes + 64);
                b->ops->gather(reply + skew, at, count, bytes);
                for (size_t i = 0; i < count * bytes; i++)
                    wrong += reply[skew + i] != at[i / bytes][i % bytes];
                wrong += skew && reply[0] != 0x5a;
                for (size_t i = 0; i < 64; i++)
                    wrong += reply[skew + count * bytes + i] != 0x5a;
            }
    return wrong;
}

/* ---------------------------------------------------------------------- rows */

static lode_status_t gather_create(lode_kernels_bench_t *b, size_t bytes, size_t call_bytes, bool hot, gather_t *g)
{
    *g = (gather_t){.ops = b->ops,
                    .count = b->arena_bytes / bytes,
                    .bytes = bytes,
                    .reply = b->reply,
                    .call_bytes = call_bytes / bytes * bytes,
                    .arena = b->arena,
                    .arena_bytes = b->arena_bytes};
    g->slice = g->count / 16;
    g->reply_bytes = hot ? g->call_bytes : b->reply_bytes / b->pool.count / 64 * 64;
    g->at = malloc(g->count * sizeof *g->at);
    if (!g->at)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu places", g->count);
    lode_kernels_shuffle(b, b->arena, bytes, g->at, g->count);
    return LODE_OK;
}

lode_status_t lode_kernels_random_read(lode_kernels_bench_t *b, const char *kernel, const char *format, size_t bytes,
                                       double target, double *ratio)
{
    lode_kernel_row_t *row = lode_kernels_row(b, kernel, format, 0, bytes == PAGE ? 0 : 128, "GB/s");
    gather_t g;
    row->target = target;
    *ratio = NAN;
    if (!b->ops)
        return LODE_OK;
    LODE_TRY(gather_create(b, bytes, bytes, true, &g));
    lode_kernel_stretch_t stretch = {b->arena, b->arena_bytes, b->arena_bytes / 16};
    lode_kernel_work_t figure = {read_slice, &g, 1}, floor = {lode_kernels_read, &stretch, 1};
    lode_kernels_rate_row(b, row, &figure, &floor, 1e9);
    *ratio = row->ratio;
    free(g.at);
    return LODE_OK;
}

static lode_status_t gather_row(lode_kernels_bench_t *b, const char *kernel, const char *format, size_t bytes,
                                size_t call_bytes, bool hot)
{
    lode_kernel_row_t *row = lode_kernels_row(b, kernel, format, 0, bytes == PAGE ? 0 : 128, "GB/s");
    gather_t g = {0};
    row->target = 0.95;
    if (b->ops) {
        LODE_TRY(gather_create(b, bytes, call_bytes, hot, &g));
        row->wrong = wrong_bytes(b, bytes);
        lode_kernel_work_t figure = {gather_slice, &g, 1}, floor = {copy_slice, &g, 1};
        lode_kernels_rate_row(b, row, &figure, &floor, 1e9);
        if (bytes != PAGE)
            lode_kernels_explain(row, "random lines come slower than lines in order: see record_read");
    }
    if (!hot && bytes == 264) {
        lode_kernel_work_t work = {gather_slice, &g, 1};
        lode_kernels_threads_row(b, kernel, format, 0, 128, &work, row->wrong);
    }
    free(g.at);
    return LODE_OK;
}

lode_status_t lode_kernels_gather(lode_kernels_bench_t *b)
{
    double unused;
    LODE_TRY(lode_kernels_random_read(b, "page_read", "4KiB", PAGE, 0.75, &unused));
    /* Replies of 1 MiB that nothing has cached, then one of 64 KiB that is used again and again. */
    LODE_TRY(gather_row(b, "gather", "bf16", 520, 1 << 20, false));
    LODE_TRY(gather_row(b, "gather", "fp8", 264, 1 << 20, false));
    LODE_TRY(gather_row(b, "gather", "higgs4", 136, 1 << 20, false));
    LODE_TRY(gather_row(b, "gather", "4KiB", PAGE, 1 << 20, false));
    LODE_TRY(gather_row(b, "gather_hot", "fp8", 264, 64 << 10, true));
    return gather_row(b, "gather_hot", "4KiB", PAGE, 64 << 10, true);
}
