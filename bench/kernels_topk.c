/* SPDX-License-Identifier: Apache-2.0 */
/* Exact top-k: against the 4-bit scan that made the scores. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/kernels.h"

enum { HEADS = 8, SHARE = 100 }; /* one in a hundred is chosen */

typedef struct topk {
    const lode_ops_t *ops;
    const float *scores; /* (HEADS, n) */
    size_t n;
    uint32_t *out; /* of each thread */
} topk_t;

/* Scores are as they would be left by a scan: somewhere in memory. Units are heads. */
static double topk_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    const topk_t *t = context;
    uint32_t heads = t->n > 500000 ? 1 : 4, *out = t->out + part * t->n;
    (void)parts;
    for (uint32_t i = 0; i < heads; i++)
        lode_kernels_keep(
            t->ops->topk(t->scores + (turn / 2 * heads + i + part) % HEADS * t->n, t->n, t->n / SHARE, out));
    return heads;
}

/* --------------------------------------------------------------- correctness */

typedef struct ranked {
    float score;
    uint32_t index;
} ranked_t;

static int by_rank(const void *a, const void *b)
{
    const ranked_t *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

/* Indices that a full sort does not choose, or in another order. */
static uint64_t wrong_choice(const lode_ops_t *ops, const float *scores, size_t n, size_t k)
{
    ranked_t *ranked = malloc((n + 1) * sizeof *ranked);
    uint32_t *out = malloc((n + 1) * sizeof *out);
    uint8_t *chosen = calloc(n + 1, 1);
    size_t wanted = k < n ? k : n, got = 0, last = 0;
    uint64_t wrong = !ranked || !out || !chosen;
    if (!wrong) {
        for (size_t i = 0; i < n; i++)
            ranked[i] = (ranked_t){scores[i], (uint32_t)i};
        qsort(ranked, n, sizeof *ranked, by_rank);
        for (size_t i = 0; i < wanted; i++)
            chosen[ranked[i].index] = 1;
        got = ops->topk(scores, n, k, out);
        for (size_t i = 0; i < got && i < wanted; last = out[i++])
            wrong += out[i] >= n || !chosen[out[i]] || (i && out[i] <= last);
    }
    free(ranked);
    free(out);
    free(chosen);
    return wrong + (got != wanted);
}

static uint64_t wrong_choices(lode_kernels_bench_t *b, float *scores, size_t room)
{
    const size_t sizes[] = {0, 1, 15, 1000, 40001, 70000};
    uint64_t wrong = 0;
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t n = sizes[s] < room ? sizes[s] : room;
        for (int input = 0; input <= LODE_INPUTS; input++) {
            if (input < LODE_INPUTS)
                lode_kernels_fill(b, (lode_kernel_input_t)input, 1, scores, n);
            for (size_t i = 0; input == LODE_INPUTS && i < n; i++) /* many ties */
                scores[i] = (float)(int)(lode_kernels_uniform(b) * 9) - 4;
            wrong += wrong_choice(b->ops, scores, n, n / SHARE + 1);
            wrong += wrong_choice(b->ops, scores, n, n / 2);
            wrong += wrong_choice(b->ops, scores, n, n + 3);
        }
    }
    return wrong;
}

/* ---------------------------------------------------------------------- rows */

/* Both in milliseconds for all heads at n scores each. */
static void topk_row(lode_kernels_bench_t *b, lode_kernel_row_t *row, topk_t *t, const lode_kernel_work_t *scan)
{
    double heads_a_second, landmarks_a_second;
    lode_kernel_work_t figure = {topk_slice, t, 1};
    lode_progress_end(&b->progress);
    lode_progress_begin(&b->progress, row->kernel, b->slices);
    lode_kernels_measure(b, &figure, scan, &heads_a_second, &landmarks_a_second);
    row->figure = HEADS / heads_a_second * 1e3;
    row->floor = (double)HEADS * (double)t->n / landmarks_a_second * 1e3;
    row->ratio = row->figure / row->floor;
}

static lode_status_t topk_size(lode_kernels_bench_t *b, size_t n, const char *format, const lode_kernel_work_t *scan)
{
    lode_kernel_row_t *row = lode_kernels_row(b, "topk", format, 4, 128, "ms");
    row->target = 0.15;
    row->at_most = true;
    if (!b->ops)
        return LODE_OK;
    float *scores = malloc(HEADS * n * sizeof *scores);
    topk_t t = {b->ops, scores, n, malloc(n * sizeof(uint32_t) * b->pool.count)};
    lode_status_t status = LODE_OK;
    if (scores && t.out) {
        row->wrong = wrong_choices(b, scores, n);
        size_t sample = n < 65536 ? n : 65536;
        lode_kernels_fill(b, LODE_INPUT_RANDOM, 1, scores, sample);
        for (size_t i = sample; i < HEADS * n; i++) /* cheaper than a logarithm each, and never the same twice */
            scores[i] = scores[i % sample] + scores[i / sample % sample] * 0.1f;
        topk_row(b, row, &t, scan);
    } else {
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu scores", HEADS * n);
    }
    free(scores);
    free(t.out);
    return status;
}

lode_status_t lode_kernels_topk(lode_kernels_bench_t *b)
{
    lode_kernel_work_t scan = {0};
    if (b->ops)
        LODE_TRY(lode_kernels_scan4_create(b, &scan));
    lode_status_t status = topk_size(b, 128 << 10, "128K", &scan);
    if (status == LODE_OK)
        status = topk_size(b, 1 << 20, "1M", &scan);
    if (b->ops)
        lode_kernels_scan4_free(&scan);
    return status;
}
