/* SPDX-License-Identifier: Apache-2.0 */
/* Attention over records where they lie: at random in memory, and hot in the second-level cache. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/kernels.h"

enum { CALL = 1024, SAMPLE = 4096, HOT_BYTES = 256 << 10 };

typedef struct attend {
    const lode_ops_t *ops;
    lode_format_t format;
    uint32_t dim, group;
    size_t bytes, count, slice; /* of a record; records in all, and of a slice */
    const uint8_t **at;
    float *q;
} attend_t;

static double attend_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    const attend_t *a = context;
    float out[LODE_MAX_GROUP * LODE_MAX_DIM], lse[LODE_MAX_GROUP], sum = 0;
    size_t n = a->slice / parts, first = lode_kernels_place(turn, a->slice, a->count) + part * n;
    for (size_t i = 0; i < n; i += CALL) {
        a->ops->attend(a->format, a->dim, a->group, a->at + first + i, n - i < CALL ? n - i : CALL, a->q, out, lse);
        sum += lse[0];
    }
    lode_kernels_keep((uint64_t)fabsf(sum));
    return (double)(n * a->bytes);
}

/* The hot records again and again, as often as makes a slice. */
static double hot_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    const attend_t *a = context;
    float out[LODE_MAX_GROUP * LODE_MAX_DIM], lse[LODE_MAX_GROUP];
    size_t rounds = a->slice / a->count;
    (void)turn, (void)part, (void)parts;
    for (size_t i = 0; i < rounds; i++)
        a->ops->attend(a->format, a->dim, a->group, a->at, a->count, a->q, out, lse);
    lode_kernels_keep((uint64_t)fabsf(lse[0]));
    return (double)(rounds * a->count * a->bytes);
}

/* --------------------------------------------------------------- correctness */

/* One query in double; the greatest |q|·|k| says how far an fp32 logit may be off, in whatever frame it is summed. */
static double reference(uint32_t dim, size_t n, const float *k, const float *v, const float *q, double *out,
                        double *logit, double *reach)
{
    double most = -INFINITY, sum = 0;
    *reach = 0;
    for (size_t i = 0; i < n; i++) {
        double kk = 0, qq = 0, size = logit[i] = 0;
        for (uint32_t j = 0; j < dim; j++) {
            logit[i] += (double)q[j] * k[i * dim + j];
            size += fabs((double)q[j] * k[i * dim + j]);
            kk += (double)k[i * dim + j] * k[i * dim + j];
            qq += (double)q[j] * q[j];
        }
        *reach = fmax(*reach, fmax(size, sqrt(kk * qq)));
        most = fmax(most, logit[i]);
    }
    memset(out, 0, dim * sizeof *out);
    for (size_t i = 0; i < n; i++)
        sum += exp(logit[i] - most);
    for (size_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < dim; j++)
            out[j] += exp(logit[i] - most) / sum * v[i * dim + j];
    return most + log(sum);
}

static uint64_t wrong_outputs(lode_kernels_bench_t *b, const attend_t *a, lode_kernel_input_t input)
{
    enum { N = 75 }; /* no whole number of any level's blocks */
    static float k[N * LODE_MAX_DIM], v[N * LODE_MAX_DIM];
    static uint8_t records[N][1032];
    const uint8_t *at[N];
    float q[LODE_MAX_GROUP * LODE_MAX_DIM], out[LODE_MAX_GROUP * LODE_MAX_DIM], lse[LODE_MAX_GROUP];
    double right[LODE_MAX_DIM], logit[N], reach, greatest = 0;
    uint64_t wrong = 0;
    lode_kernels_fill(b, input, a->dim, k, N);
    lode_kernels_fill(b, input, a->dim, v, N);
    lode_kernels_fill(b, LODE_INPUT_RANDOM, a->dim, q, a->group);
    for (uint32_t i = 0; i < a->group * a->dim; i++)
        q[i] /= sqrtf((float)a->dim);
    for (size_t i = 0; i < N; i++) {
        at[i] = records[i];
        b->scalar->record_encode(a->format, a->dim, k + i * a->dim, v + i * a->dim, 0, records[i]);
        b->scalar->record_decode(a->format, a->dim, records[i], k + i * a->dim, v + i * a->dim);
    }
    for (size_t i = 0; i < N * a->dim; i++)
        greatest = fmax(greatest, fabs(v[i]));
    a->ops->attend(a->format, a->dim, a->group, at, N, q, out, lse);
    for (uint32_t g = 0; g < a->group; g++) {
        double right_lse = reference(a->dim, N, k, v, q + g * a->dim, right, logit, &reach), slack = 1e-6 * reach;
        double bound = (4e-6 + 2 * expm1(fmin(slack, 1))) * greatest + 5e-44; /* a few of the least numbers there are */
        wrong += !(fabs(lse[g] - right_lse) <= slack + 2e-6 * (1 + fabs(right_lse)));
        for (uint32_t j = 0; j < a->dim; j++)
            wrong += !(fabs(out[g * a->dim + j] - right[j]) <= bound);
    }
    return wrong;
}

/* ---------------------------------------------------------------------- rows */

static void attend_free(attend_t *a)
{
    free(a->at);
    free(a->q);
}

static lode_status_t attend_create(lode_kernels_bench_t *b, lode_format_t format, uint32_t dim, uint32_t group,
                                   bool hot, attend_t *a)
{
    size_t bytes = lode_record_bytes(format, dim), whole = b->arena_bytes / bytes;
    *a = (attend_t){.ops = b->ops, .format = format, .dim = dim, .group = group, .bytes = bytes};
    a->count = hot ? HOT_BYTES / bytes : whole;
    a->slice = hot ? b->arena_bytes / 32 / bytes : whole / 32;
    a->at = malloc(whole * sizeof *a->at);
    a->q = malloc(sizeof(float) * group * dim);
    float *kv = malloc(sizeof *kv * 2 * dim);
    if (!a->at || !a->q || !kv) {
        free(kv);
        attend_free(a);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu records", whole);
    }
    lode_kernels_fill(b, LODE_INPUT_RANDOM, dim, a->q, group);
    for (uint32_t i = 0; i < group * dim; i++)
        a->q[i] /= sqrtf((float)dim);
    for (size_t i = 0; i < SAMPLE; i++) {
        lode_kernels_fill(b, LODE_INPUT_RANDOM, dim, kv, 2);
        b->ops->record_encode(format, dim, kv, kv + dim, 0, b->arena + i * bytes);
    }
    lode_kernels_repeat(b->arena, SAMPLE * bytes, b->arena_bytes);
    lode_kernels_shuffle(b, b->arena, bytes, a->at, a->count);
    free(kv);
    return LODE_OK;
}

static const lode_format_t formats[] = {LODE_FORMAT_BF16, LODE_FORMAT_FP8, LODE_FORMAT_HIGGS4};

static lode_status_t attend_row(lode_kernels_bench_t *b, lode_format_t format, uint32_t dim, uint32_t group, bool hot,
                                double alone)
{
    lode_kernel_row_t *row =
        lode_kernels_row(b, hot ? "attend_hot" : "attend_random", lode_format_name(format), group, dim, "GB/s");
    /* bf16, fp8, HIGGS: at random, hot */
    static const double avx2[][2] = {{0.30, 0.70}, {0.17, 0.30}, {0.07, 0.10}};
    attend_t a = {0};
    if (dim == 128 && group == 4 && !b->sweep)
        row->target = lode_kernels_target(b, hot ? 1.7 : 0.5, avx2[format][hot]);
    if (b->ops) {
        LODE_TRY(attend_create(b, format, dim, group, hot, &a));
        for (int input = 0; input < LODE_INPUTS; input++)
            row->wrong += wrong_outputs(b, &a, (lode_kernel_input_t)input);
        lode_kernel_stretch_t stretch = {b->arena, b->arena_bytes, b->arena_bytes / 32};
        lode_kernel_work_t figure = {hot ? hot_slice : attend_slice, &a, 1}, floor = {lode_kernels_read, &stretch, 1};
        lode_kernels_rate_row(b, row, &figure, &floor, 1e9);
        if (hot)
            lode_kernels_explain(row, "arithmetic: %.3g ns a record", (double)a.bytes / row->figure);
        else
            lode_kernels_explain(row, "reading these records and nothing else: %.2f", alone);
    }
    if (!hot && dim == 128 && group == 4 && !b->sweep) {
        lode_kernel_work_t work = {attend_slice, &a, 1};
        lode_kernels_threads_row(b, "attend_random", lode_format_name(format), group, dim, &work, row->wrong);
    }
    attend_free(&a);
    return LODE_OK;
}

/* A group of 16 is also four new tokens of a group of 4 that attend over the same records. */
static lode_status_t sweep(lode_kernels_bench_t *b)
{
    static const uint32_t dims[] = {64, 128, 256}, groups[] = {1, 2, 4, 8, 16};
    for (int f = 0; f < 3; f++)
        for (uint32_t d = 0; d < 3; d++)
            for (uint32_t g = 0; g < 5; g++)
                LODE_TRY(attend_row(b, formats[f], dims[d], groups[g], false, NAN));
    return LODE_OK;
}

lode_status_t lode_kernels_attend(lode_kernels_bench_t *b)
{
    if (b->sweep)
        return sweep(b);
    for (int f = 0; f < 3; f++) {
        double alone;
        LODE_TRY(lode_kernels_random_read(b, "record_read", lode_format_name(formats[f]),
                                          lode_record_bytes(formats[f], 128), NAN, &alone));
        LODE_TRY(attend_row(b, formats[f], 128, 4, false, alone));
        LODE_TRY(attend_row(b, formats[f], 128, 4, true, NAN));
    }
    for (int f = 0; f < 2; f++) {
        LODE_TRY(attend_row(b, formats[f], 128, 1, false, NAN));
        LODE_TRY(attend_row(b, formats[f], 128, 8, false, NAN));
    }
    LODE_TRY(attend_row(b, LODE_FORMAT_BF16, 128, 16, false, NAN)); /* and as for T = 4 tokens of a group of 4 */
    LODE_TRY(attend_row(b, LODE_FORMAT_BF16, 64, 4, false, NAN));
    return attend_row(b, LODE_FORMAT_BF16, 256, 4, false, NAN);
}
