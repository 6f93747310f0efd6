/* SPDX-License-Identifier: Apache-2.0 */
/* The rest, without targets: what storing, rotating, checking and merging cost beside reading. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/kernels.h"

enum { DIM = 128, ROWS = 64 };

typedef enum plain_kind { ENCODE, QUANTISE, CHECK, ROTATE, MERGE, KINDS } plain_kind_t;

typedef struct plain {
    const lode_ops_t *ops;
    plain_kind_t kind;
    lode_format_t format;
    lode_landmark_spec_t spec;
    size_t slice;
    float x[2 * ROWS * DIM], lse[ROWS], part_lse[ROWS], cosine[DIM / 2], sine[DIM / 2];
    uint8_t out[ROWS * 1040];
} plain_t;

/* ROWS vectors (records: half as many), hot in the cache; units are bytes of floats in. */
static double plain_round(plain_t *p)
{
    size_t bytes = lode_record_bytes(p->format, DIM);
    switch (p->kind) {
    case ENCODE:
        for (uint32_t i = 0; i < ROWS; i++)
            p->ops->record_encode(p->format, DIM, p->x + 2 * i * DIM, p->x + (2 * i + 1) * DIM, i, p->out + i * bytes);
        return 2.0 * ROWS * DIM * sizeof(float);
    case QUANTISE:
        p->ops->landmark_quantise(&p->spec, DIM, p->x, ROWS, p->out);
        break;
    case CHECK:
        for (uint32_t i = 0; i < ROWS; i++)
            lode_kernels_keep(p->ops->record_check(p->format, DIM, p->out + i * bytes, i));
        return (double)(ROWS * bytes);
    case ROTATE:
        p->ops->rotate(p->x, ROWS, DIM, p->cosine, p->sine);
        break;
    default:
        p->ops->merge(p->x, p->lse, p->x + ROWS * DIM, p->part_lse, ROWS, DIM);
    }
    return (double)(ROWS * DIM) * sizeof(float);
}

static double plain_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    plain_t *p = context;
    double done = 0;
    (void)turn, (void)part, (void)parts;
    while (done < (double)p->slice)
        done += plain_round(p);
    return done;
}

/* --------------------------------------------------------------- correctness */

/* What is stored must be the scalar reference's to the bit. */
static uint64_t wrong_stored(lode_kernels_bench_t *b, plain_t *p)
{
    static uint8_t plain[sizeof p->out];
    size_t bytes = p->kind == QUANTISE ? lode_landmark_row_bytes(&p->spec, DIM) : lode_record_bytes(p->format, DIM);
    uint64_t wrong = 0;
    memset(plain, 0, sizeof plain);
    memset(p->out, 0, sizeof p->out);
    plain_round(p);
    for (uint32_t i = 0; i < ROWS; i++)
        if (p->kind == QUANTISE)
            b->scalar->landmark_quantise(&p->spec, DIM, p->x + i * DIM, 1, plain + i * bytes);
        else
            b->scalar->record_encode(p->format, DIM, p->x + 2 * i * DIM, p->x + (2 * i + 1) * DIM, i,
                                     plain + i * bytes);
    for (size_t i = 0; i < ROWS * bytes; i++)
        wrong += p->out[i] != plain[i];
    return wrong;
}

static uint64_t wrong_checks(lode_kernels_bench_t *b, plain_t *p)
{
    size_t bytes = lode_record_bytes(p->format, DIM);
    uint64_t wrong = 0;
    for (uint32_t i = 0; i < ROWS; i++) {
        uint8_t *record = p->out + i * bytes;
        b->scalar->record_encode(p->format, DIM, p->x + 2 * i * DIM, p->x + (2 * i + 1) * DIM, i, record);
        wrong += !p->ops->record_check(p->format, DIM, record, i) + p->ops->record_check(p->format, DIM, record, i + 1);
        record[i] ^= 1;
        wrong += p->ops->record_check(p->format, DIM, record, i);
        record[i] ^= 1;
    }
    return wrong;
}

static uint64_t wrong_rotation(plain_t *p)
{
    static float before[ROWS * DIM];
    uint64_t wrong = 0;
    memcpy(before, p->x, sizeof before);
    plain_round(p);
    for (uint32_t i = 0; i < ROWS * DIM; i++) {
        uint32_t row = i / DIM * DIM, at = i % (DIM / 2);
        double a = before[row + at], c = before[row + at + DIM / 2];
        double right = i % DIM < DIM / 2 ? a * p->cosine[at] - c * p->sine[at] : c * p->cosine[at] + a * p->sine[at];
        wrong += !(fabs(p->x[i] - right) <= 3e-7 * (fabs(a) + fabs(c)) + 1e-44);
    }
    return wrong;
}

static uint64_t wrong_merge(plain_t *p)
{
    static float before[2 * ROWS * DIM], lse[ROWS];
    uint64_t wrong = 0;
    memcpy(before, p->x, sizeof before);
    memcpy(lse, p->lse, sizeof lse);
    plain_round(p);
    for (uint32_t row = 0; row < ROWS; row++) {
        double most = fmax(lse[row], p->part_lse[row]);
        double mine = exp(lse[row] - most), theirs = exp(p->part_lse[row] - most);
        wrong += !(fabs(p->lse[row] - (most + log(mine + theirs))) <= 1e-6 * (1 + fabs(most)));
        for (uint32_t i = row * DIM; i < (row + 1) * DIM; i++) {
            double a = before[i], c = before[i + ROWS * DIM];
            double right = (mine * a + theirs * c) / (mine + theirs);
            wrong += !(fabs(p->x[i] - right) <= 1e-6 * (fabs(a) + fabs(c)) + 1e-44);
        }
    }
    return wrong;
}

static uint64_t wrong_values(lode_kernels_bench_t *b, plain_t *p, lode_kernel_input_t input)
{
    lode_kernels_fill(b, input, DIM, p->x, 2 * ROWS);
    for (uint32_t i = 0; i < ROWS; i++) {
        p->lse[i] = (float)lode_kernels_gaussian(b) * 3;
        p->part_lse[i] = (float)lode_kernels_gaussian(b) * 3;
    }
    for (uint32_t i = 0; i < DIM / 2; i++) {
        double angle = 6.28 * lode_kernels_uniform(b);
        p->cosine[i] = (float)cos(angle);
        p->sine[i] = (float)sin(angle);
    }
    switch (p->kind) {
    case ENCODE:
    case QUANTISE:
        return wrong_stored(b, p);
    case CHECK:
        return wrong_checks(b, p);
    case ROTATE:
        return wrong_rotation(p);
    default:
        return wrong_merge(p);
    }
}

/* ---------------------------------------------------------------------- rows */

static lode_status_t plain_row(lode_kernels_bench_t *b, plain_kind_t kind, const char *format, plain_t *p)
{
    static const char *const names[KINDS] = {"encode", "quantise", "check", "rotate", "merge"};
    lode_kernel_row_t *row = lode_kernels_row(b, names[kind], format, 0, DIM, "GB/s");
    if (!b->ops)
        return LODE_OK;
    p->ops = b->ops;
    p->kind = kind;
    p->slice = b->arena_bytes / 128;
    for (int input = LODE_INPUTS - 1; input >= 0; input--)
        row->wrong += wrong_values(b, p, (lode_kernel_input_t)input);
    lode_kernel_stretch_t stretch = {b->arena, b->arena_bytes, b->arena_bytes / 32};
    lode_kernel_work_t figure = {plain_slice, p, 1}, floor = {lode_kernels_read, &stretch, 1};
    lode_kernels_rate_row(b, row, &figure, &floor, 1e9);
    return LODE_OK;
}

lode_status_t lode_kernels_plain(lode_kernels_bench_t *b)
{
    static const lode_format_t formats[] = {LODE_FORMAT_BF16, LODE_FORMAT_FP8, LODE_FORMAT_HIGGS4};
    static plain_t p;
    for (int f = 0; f < 3; f++) {
        p.format = formats[f];
        LODE_TRY(plain_row(b, ENCODE, lode_format_name(formats[f]), &p));
    }
    p.format = LODE_FORMAT_FP8;
    LODE_TRY(plain_row(b, CHECK, "fp8", &p));
    p.spec = (lode_landmark_spec_t){LODE_LANDMARK_UNIFORM, 2, 1, 1};
    LODE_TRY(plain_row(b, QUANTISE, "uniform2", &p));
    p.spec = (lode_landmark_spec_t){LODE_LANDMARK_HIGGS, 2, 1, 1};
    LODE_TRY(plain_row(b, QUANTISE, "higgs2", &p));
    LODE_TRY(plain_row(b, ROTATE, "fp32", &p));
    return plain_row(b, MERGE, "fp32", &p);
}
