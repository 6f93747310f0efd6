/* SPDX-License-Identifier: Apache-2.0 */
/* Scoring landmarks: against reading them, and against 8 bits. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/kernels.h"

/* Landmarks a call: their scores stay in the cache until somebody chooses from them. */
enum { CALL = 8192, SAMPLE = 4096 };

typedef struct scan {
    const lode_ops_t *ops;
    lode_landmark_spec_t spec;
    uint32_t dim, group;
    size_t tile_bytes, tiles, slice_tiles;
    const uint8_t *at;
    lode_landmark_query_t *queries;
    float *out, *scratch; /* of each thread */
    size_t scratch_floats;
    bool landmarks; /* count these, not bytes */
} scan_t;

static double scan_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    const scan_t *s = context;
    size_t tiles = s->slice_tiles / parts, call_tiles = CALL / LODE_TILE;
    size_t first = lode_kernels_place(turn, s->slice_tiles, s->tiles) + part * tiles;
    float *out = s->out + (size_t)part * LODE_MAX_GROUP * CALL, *scratch = s->scratch + part * s->scratch_floats;
    for (size_t i = 0; i < tiles; i += call_tiles) {
        size_t count = tiles - i < call_tiles ? tiles - i : call_tiles;
        s->ops->landmark_score(&s->spec, s->dim, s->at + (first + i) * s->tile_bytes, count * LODE_TILE, s->queries,
                               s->group, out, CALL, scratch);
    }
    return s->landmarks ? (double)(tiles * LODE_TILE) : (double)(tiles * s->tile_bytes);
}

/* --------------------------------------------------------------- correctness */

/* What a row stands for, by the layout that kernels.h gives. */
static void row_values(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *row, double *x)
{
    uint32_t bits = spec->bits, fields = 8 / (bits < 8 ? bits : 8), mask = (1u << bits) - 1;
    uint16_t half;
    float scale = 1;
    if (spec->codec != LODE_LANDMARK_MEAN) {
        uint32_t wide;
        memcpy(&half, row + dim * bits / 8, 2);
        wide = (uint32_t)half << 16;
        memcpy(&scale, &wide, 4);
    }
    for (uint32_t i = 0; i < dim; i++) {
        uint32_t word = i / (4 * fields), m = i / 4 % fields, byte = row[4 * word + i % 4];
        if (spec->codec == LODE_LANDMARK_HIGGS) {
            x[i] = bits == 4 ? lode_higgs_grid2[row[i / 2]][i % 2] : lode_higgs_grid4[row[i / 4]][i % 4];
        } else if (spec->codec == LODE_LANDMARK_MEAN) {
            float y;
            memcpy(&half, row + 2 * i, 2);
            uint32_t wide = (uint32_t)half << 16;
            memcpy(&y, &wide, 4);
            x[i] = y;
        } else {
            x[i] = bits == 8 ? (int8_t)byte : (int)(byte >> bits * m & mask) - mask / 2.0;
        }
        x[i] *= scale;
    }
}

/* A score may be off by what the query's own rounding to 8 (16) bits and fp32 sums can do, no more. */
static uint64_t wrong_scores(const scan_t *s, const uint8_t *rows, size_t n, const float *q, const float *bias,
                             const float *out)
{
    size_t bytes = lode_landmark_row_bytes(&s->spec, s->dim);
    double x[LODE_MAX_DIM];
    uint64_t wrong = 0;
    for (size_t i = 0; i < n; i++) {
        row_values(&s->spec, s->dim, rows + i * bytes, x);
        for (uint32_t g = 0; g < s->group; g++) {
            double score = bias[g], size = fabs(score), most = 0, total = 0;
            for (uint32_t j = 0; j < s->dim; j++) {
                score += x[j] * q[g * s->dim + j];
                size += fabs(x[j] * q[g * s->dim + j]);
                total += fabs(x[j]);
                most = fmax(most, fabs(q[g * s->dim + j]));
            }
            double step = s->spec.codec != LODE_LANDMARK_UNIFORM ? 0
                                                                 : most / (s->spec.bits == 8   ? 32767
                                                                           : s->spec.bits == 1 ? 15
                                                                                               : 127);
            double bound = 0.5001 * step * total + 2e-5 * size + 1e-37;
            wrong += !(fabs(out[g * CALL + i] - score) <= bound);
        }
    }
    return wrong;
}

static uint64_t check_input(lode_kernels_bench_t *b, scan_t *s, lode_kernel_input_t input, float *x, uint8_t *rows,
                            uint8_t *plain, uint8_t *tiles)
{
    enum { N = 4 * LODE_TILE + 7 }; /* not a multiple of anything */
    size_t bytes = lode_landmark_row_bytes(&s->spec, s->dim);
    float q[LODE_MAX_GROUP * LODE_MAX_DIM], bias[LODE_MAX_GROUP];
    uint64_t wrong = 0;
    lode_kernels_fill(b, input, s->dim, x, N);
    lode_kernels_fill(b, input == LODE_INPUT_DENORMAL ? LODE_INPUT_RANDOM : input, s->dim, q, s->group);
    s->ops->landmark_quantise(&s->spec, s->dim, x, N, rows);
    b->scalar->landmark_quantise(&s->spec, s->dim, x, N, plain);
    for (size_t i = 0; i < N * bytes; i++)
        wrong += rows[i] != plain[i];
    b->scalar->landmark_place(&s->spec, s->dim, rows, N, tiles, 0);
    for (uint32_t g = 0; g < s->group; g++) {
        bias[g] = (float)lode_kernels_gaussian(b);
        s->ops->query_prepare(&s->spec, s->dim, q + g * s->dim, bias[g], &s->queries[g]);
    }
    s->ops->landmark_score(&s->spec, s->dim, tiles, N, s->queries, s->group, s->out, CALL, s->scratch);
    return wrong + wrong_scores(s, rows, N, q, bias, s->out);
}

/* ------------------------------------------------------------------ making it */

static void scan_free(scan_t *s)
{
    free(s->queries);
    free(s->out);
    free(s->scratch);
    memset(s, 0, sizeof *s);
}

/* Compare with double on every kind of input, then fill the arena with random landmarks. */
static lode_status_t scan_create(lode_kernels_bench_t *b, const lode_landmark_spec_t *spec, uint32_t dim,
                                 uint32_t group, scan_t *s, uint64_t *wrong)
{
    size_t tile_bytes = lode_landmark_tile_bytes(spec, dim), slice = b->arena_bytes / 16;
    size_t row_bytes = lode_landmark_row_bytes(spec, dim);
    float *x = malloc(sizeof *x * SAMPLE * dim);
    uint8_t *rows = malloc(2 * SAMPLE * row_bytes);
    *s = (scan_t){.ops = b->ops, .spec = *spec, .dim = dim, .group = group, .tile_bytes = tile_bytes, .at = b->arena};
    s->slice_tiles = slice / tile_bytes;
    s->tiles = b->arena_bytes / tile_bytes;
    s->scratch_floats = (lode_score_scratch_floats(spec, dim, group) + 15) / 16 * 16;
    s->queries = aligned_alloc(64, sizeof *s->queries * LODE_MAX_GROUP);
    s->out = aligned_alloc(64, sizeof(float) * LODE_MAX_GROUP * CALL * b->pool.count);
    s->scratch = aligned_alloc(64, sizeof(float) * (s->scratch_floats + 16) * b->pool.count);
    lode_status_t status = LODE_OK;
    if (!x || !rows || !s->queries || !s->out || !s->scratch) {
        scan_free(s);
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for landmarks to measure");
    } else {
        *wrong = 0;
        for (int input = LODE_INPUTS - 1; input >= 0; input--) /* random last: its queries stay */
            *wrong += check_input(b, s, (lode_kernel_input_t)input, x, rows, rows + SAMPLE * row_bytes, b->arena);
        lode_kernels_fill(b, LODE_INPUT_RANDOM, dim, x, SAMPLE);
        b->ops->landmark_quantise(spec, dim, x, SAMPLE, rows);
        b->ops->landmark_place(spec, dim, rows, SAMPLE, b->arena, 0);
        lode_kernels_repeat(b->arena, SAMPLE / LODE_TILE * tile_bytes, b->arena_bytes);
    }
    free(x);
    free(rows);
    return status;
}

lode_status_t lode_kernels_scan4_create(lode_kernels_bench_t *b, lode_kernel_work_t *work)
{
    static const lode_landmark_spec_t spec = {LODE_LANDMARK_UNIFORM, 4, 1, 1};
    uint64_t wrong;
    scan_t *s = malloc(sizeof *s);
    if (!s)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for landmarks to measure");
    lode_status_t status = scan_create(b, &spec, 128, 4, s, &wrong);
    if (status != LODE_OK) {
        free(s);
        return status;
    }
    s->landmarks = true;
    *work = (lode_kernel_work_t){scan_slice, s, 1};
    return LODE_OK;
}

void lode_kernels_scan4_free(lode_kernel_work_t *work)
{
    scan_free(work->context);
    free(work->context);
    work->context = NULL;
}

/* ---------------------------------------------------------------------- rows */

static const struct {
    const char *name;
    lode_landmark_spec_t spec;
    double target[2], faster[2]; /* of reading; landmarks a second against 8 bits: AVX-512, AVX2 */
} formats[] = {
    {"uniform8", {LODE_LANDMARK_UNIFORM, 8, 1, 1}, {0.85, 0.50}, {NAN, NAN}},
    {"uniform4", {LODE_LANDMARK_UNIFORM, 4, 1, 1}, {0.80, 0.45}, {1.7, 1.6}},
    {"uniform2", {LODE_LANDMARK_UNIFORM, 2, 1, 1}, {0.65, 0.27}, {2.2, 1.8}},
    {"uniform1", {LODE_LANDMARK_UNIFORM, 1, 1, 1}, {0.60, 0.22}, {4, 3.0}},
    {"mean16", {LODE_LANDMARK_MEAN, 16, 1, 1}, {NAN, NAN}, {NAN, NAN}},
    {"higgs4", {LODE_LANDMARK_HIGGS, 4, 1, 1}, {NAN, NAN}, {NAN, NAN}},
    {"higgs2", {LODE_LANDMARK_HIGGS, 2, 1, 1}, {NAN, NAN}, {NAN, NAN}},
};
enum { FORMATS = sizeof formats / sizeof *formats };

static lode_status_t scan_row(lode_kernels_bench_t *b, uint32_t f, uint32_t dim, uint32_t group, double *landmarks)
{
    scan_t s;
    uint64_t wrong = 0;
    lode_kernel_row_t *row = lode_kernels_row(b, "scan", formats[f].name, group, dim, "GB/s");
    row->target = dim == 128 && !b->sweep ? lode_kernels_target(b, formats[f].target[0], formats[f].target[1]) : NAN;
    if (b->ops) {
        LODE_TRY(scan_create(b, &formats[f].spec, dim, group, &s, &wrong));
        lode_kernel_stretch_t stretch = {b->arena, b->arena_bytes, b->arena_bytes / 16};
        lode_kernel_work_t figure = {scan_slice, &s, 1}, floor = {lode_kernels_read, &stretch, 1};
        row->wrong = wrong;
        lode_kernels_rate_row(b, row, &figure, &floor, 1e9);
        lode_kernels_explain(row, "arithmetic: %.3g ns a landmark, cached or not",
                             (double)s.tile_bytes / LODE_TILE / row->figure);
        *landmarks = row->figure * 1e9 / (double)s.tile_bytes * LODE_TILE;
    }
    if (group == 4 && dim == 128 && (f == 1 || f == 2) && !b->sweep) { /* the landmarks of the default policies */
        lode_kernel_work_t work = {scan_slice, &s, 1};
        lode_kernels_threads_row(b, "scan", formats[f].name, group, dim, &work, wrong);
    }
    if (b->ops)
        scan_free(&s);
    return LODE_OK;
}

static void against_eight(lode_kernels_bench_t *b, uint32_t f, uint32_t group, double landmarks, double eight)
{
    lode_kernel_row_t *row = lode_kernels_row(b, "landmarks", formats[f].name, group, 128, "G/s");
    row->target = lode_kernels_target(b, formats[f].faster[0], formats[f].faster[1]);
    if (!b->ops)
        return;
    row->figure = landmarks * 1e-9;
    row->floor = eight * 1e-9;
    row->ratio = row->figure / row->floor;
}

static lode_status_t sweep(lode_kernels_bench_t *b)
{
    static const uint32_t dims[] = {64, 128, 256}, groups[] = {1, 2, 4, 8, 16};
    double unused;
    for (uint32_t f = 0; f < FORMATS; f++)
        for (uint32_t d = 0; d < 3; d++)
            for (uint32_t g = 0; g < 5; g++)
                LODE_TRY(scan_row(b, f, dims[d], groups[g], &unused));
    return LODE_OK;
}

lode_status_t lode_kernels_scan(lode_kernels_bench_t *b)
{
    static const uint32_t groups[] = {1, 4};
    if (b->sweep)
        return sweep(b);
    for (uint32_t i = 0; i < 2; i++) {
        double landmarks[FORMATS] = {0};
        for (uint32_t f = 0; f < FORMATS; f++)
            LODE_TRY(scan_row(b, f, 128, groups[i], &landmarks[f]));
        for (uint32_t f = 1; f < 4; f++)
            against_eight(b, f, groups[i], landmarks[f], landmarks[0]);
    }
    double unused;
    LODE_TRY(scan_row(b, 2, 64, 4, &unused));
    return scan_row(b, 2, 256, 4, &unused);
}
