/* SPDX-License-Identifier: Apache-2.0 */
/* Queries and landmarks on a device: the same bits as the scalar level's. */
#include "device_check.h"
#include "kernels/cuda/prepared.h"

static const uint64_t seeds[] = {20261122, 7, 990017};
#define SEEDS (sizeof seeds / sizeof *seeds)

/* ------------------------------------------------------------ widen and rotate */

static void widen_case(check_t *c, lode_dtype_t dtype, size_t n, bool pinned)
{
    size_t size = dtype == LODE_FP32 ? 4 : 2;
    float scale = check_gaussian(c), *right = malloc(n * sizeof *right + 1);
    uint8_t *src = malloc(n * size + 1);
    for (size_t i = 0; i < n * size; i++)
        src[i] = (uint8_t)check_below(c, 256);
    array_t from = array_make(c, src, n * size), to = array_make(c, NULL, n * sizeof(float));
    void *memory = NULL;
    if (pinned) {
        DEVICE(c, pinned_alloc(c->device, n * size + 1, &memory));
        memcpy(memory, src, n * size);
    }
    DEVICE(c, widen(c->stream, dtype, pinned ? memory : from.at, n, scale, (float *)to.at));
    c->scalar->widen(dtype, src, right, n);
    const float *got = array_take(c, &to);
    for (size_t i = 0; i < n; i++) {
        float want = scale * right[i];
        expect(c, isnan(want) ? isnan(got[i]) : memcmp(&want, &got[i], 4) == 0, "dtype %d [%zu] of %zu: %a, not %a",
               (int)dtype, i, n, got[i], want);
    }
    if (pinned)
        c->ops->pinned_free(c->device, memory);
    array_free(c, &from);
    free(to.host);
    free(right);
    free(src);
}

Test(device_query, widen, .timeout = 60)
{
    static const lode_dtype_t types[] = {LODE_BF16, LODE_FP16, LODE_FP32};
    static const size_t lengths[] = {0, 1, 127, 128, 129, 2050};
    for (size_t s = 0; s < SEEDS; s++) {
        check_t c = check_open(seeds[s]);
        for (int t = 0; t < 3; t++)
            for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
                widen_case(&c, types[t], lengths[i], i % 2);
        check_close(&c);
    }
}

/* All of fp16, infinities, NaN and denormals among it. */
Test(device_query, widen_all_halves, .timeout = 60)
{
    check_t c = check_open(seeds[0]);
    uint16_t *halves = malloc(65536 * sizeof *halves);
    for (uint32_t i = 0; i < 65536; i++)
        halves[i] = (uint16_t)i;
    array_t from = array_make(&c, halves, 65536 * sizeof *halves), to = array_make(&c, NULL, 65536 * sizeof(float));
    DEVICE(&c, widen(c.stream, LODE_FP16, from.at, 65536, 1, (float *)to.at));
    const float *got = array_take(&c, &to);
    for (uint32_t i = 0; i < 65536; i++) {
        float right = lode_fp16_widen((uint16_t)i);
        expect(&c, isnan(right) ? isnan(got[i]) : right == got[i], "fp16 %x: %a, not %a", i, got[i], right);
    }
    array_free(&c, &from);
    free(to.host);
    free(halves);
    check_close(&c);
}

static void fill_angles(check_t *c, float *angles, uint32_t rows, uint32_t dim)
{
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t i = 0; i < dim / 2; i++) {
            double angle = check_uniform(c) * 1000;
            angles[r * dim + i] = (float)cos(angle);
            angles[r * dim + dim / 2 + i] = (float)sin(angle);
        }
}

Test(device_query, rotate, .timeout = 60)
{
    for (size_t s = 0; s < SEEDS; s++) {
        check_t c = check_open(seeds[s]);
        for (uint32_t rows = 0; rows < 6; rows++) {
            uint32_t dim = check_dims[rows % 3];
            float x[5 * LODE_MAX_DIM], angles[5 * LODE_MAX_DIM];
            check_fill(&c, RANDOM, x, rows * dim);
            fill_angles(&c, angles, rows, dim);
            array_t a = array_make(&c, x, rows * dim * sizeof *x), b = array_make(&c, angles, rows * dim * sizeof *x);
            DEVICE(&c, rotate(c.stream, (float *)a.at, rows, dim, (const float *)b.at));
            for (uint32_t r = 0; r < rows; r++)
                c.scalar->rotate(x + r * dim, 1, dim, angles + r * dim, angles + r * dim + dim / 2);
            expect(&c, memcmp(array_take(&c, &a), x, rows * dim * sizeof *x) == 0, "%u rows of %u", rows, dim);
            free(a.host);
            array_free(&c, &b);
        }
        check_close(&c);
    }
}

/* ------------------------------------------------------------------- quantise */

static void quantise_case(check_t *c, const lode_landmark_spec_t *spec, uint32_t dim, size_t n, kind_t kind)
{
    size_t bytes = n * lode_landmark_row_bytes(spec, dim);
    float *x = malloc(n * dim * sizeof *x + 1);
    uint8_t *right = malloc(bytes + 1);
    check_fill(c, kind, x, n * dim);
    array_t from = array_make(c, x, n * dim * sizeof *x), rows = array_make(c, NULL, bytes);
    DEVICE(c, landmark_quantise(c->stream, spec, dim, (const float *)from.at, n, rows.at));
    c->scalar->landmark_quantise(spec, dim, x, n, right);
    const uint8_t *got = array_take(c, &rows);
    for (size_t i = 0; i < bytes; i++)
        expect(c, got[i] == right[i], "codec %d bits %u dim %u n %zu kind %d: byte %zu of %zu is %02x, not %02x",
               (int)spec->codec, spec->bits, dim, n, (int)kind, i, bytes, got[i], right[i]);
    array_free(c, &from);
    free(rows.host);
    free(right);
    free(x);
}

Test(device_query, quantise, .timeout = 60)
{
    for (size_t s = 0; s < SEEDS; s++) {
        check_t c = check_open(seeds[s]);
        for (int i = 0; i < CHECK_SPECS; i++)
            for (int d = 0; d < 3; d++) {
                quantise_case(&c, &check_specs[i], check_dims[d], check_below(&c, 20), RANDOM);
                if (s == 0)
                    for (int kind = 0; kind < KINDS; kind++)
                        quantise_case(&c, &check_specs[i], check_dims[d], 3, (kind_t)kind);
            }
        check_close(&c);
    }
}

/* -------------------------------------------------------------------- prepare */

#define QUERIES 5
#define GROUP 4

/* What the scalar level makes of a query, by the operations that attend/choose.c and landmarks/score.c use. */
static void reference(check_t *c, const lode_landmark_spec_t *spec, uint32_t dim, const float *q, const float *angles,
                      const lode_device_query_t *query, const float *mean, const float *transform,
                      lode_landmark_query_t *out)
{
    float rows[GROUP * LODE_MAX_DIM], x[LODE_MAX_DIM], bias = 0;
    memcpy(rows, q + query->q * dim, query->count * dim * sizeof *rows);
    if (query->angles != UINT32_MAX)
        c->scalar->rotate(rows, query->count, dim, angles + query->angles * dim,
                          angles + query->angles * dim + dim / 2);
    memcpy(x, rows, dim * sizeof *x);
    for (uint32_t i = 0; query->count > 1 && i < dim; i++) {
        float sum = 0;
        for (uint32_t g = 0; g < query->count; g++)
            sum += rows[g * dim + i];
        x[i] = sum / (float)query->count;
    }
    if (query->mean)
        c->scalar->dot_rows(mean, x, 1, dim, &bias);
    if (spec->codec != LODE_LANDMARK_MEAN && query->transform)
        c->scalar->project(transform, dim, x, 1);
    else if (spec->codec != LODE_LANDMARK_MEAN)
        c->scalar->hadamard(x, 1, dim);
    c->scalar->query_prepare(spec, dim, x, bias, out);
}

static float bf16_at(const uint8_t *at)
{
    return lode_bf16_widen(lode_load16(at));
}

/* The number of a coordinate, put together again from both columns. */
static void check_coordinate(check_t *c, const lode_landmark_spec_t *spec, uint32_t dim, uint32_t i,
                             const uint8_t *even, const uint8_t *odd, const lode_landmark_query_t *right)
{
    const int8_t *e = (const int8_t *)even, *o = (const int8_t *)odd;
    uint32_t field = spec->bits < 8 ? i % (32 / spec->bits) / 4 : 0;
    if (spec->codec != LODE_LANDMARK_UNIFORM) {
        float got = bf16_at(even) + bf16_at(odd), want = right->q32[i];
        expect(c, fabsf(got - want) <= 0x1p-16f * fabsf(want) + 1e-40f, "q[%u] is %g, not %g", i, got, want);
    } else if (spec->bits == 8) {
        expect(c, 256 * (e[0] + e[dim / 4]) + o[0] + o[dim / 4] == right->q16[i], "q16[%u] is not %d", i,
               right->q16[i]);
    } else if (spec->bits == 1) {
        int code = right->q8[i] * (8 >> field % 4);
        expect(c, *(field < 4 ? e : o) == code && *(field < 4 ? o : e) == 0, "8·q8[%u] is not %d", i, code);
    } else {
        expect(c, *(field % 2 ? o : e) == right->q8[i] && *(field % 2 ? e : o) == 0, "q8[%u] is not %d", i,
               right->q8[i]);
    }
}

static void prepare_case(check_t *c, const lode_landmark_spec_t *spec, uint32_t dim, kind_t kind)
{
    float q[(QUERIES + GROUP) * LODE_MAX_DIM], angles[2 * LODE_MAX_DIM], mean[LODE_MAX_DIM];
    float *transform = malloc(dim * dim * sizeof *transform);
    check_fill(c, kind, q, (QUERIES + GROUP) * dim);
    check_fill(c, RANDOM, mean, dim);
    check_fill(c, RANDOM, transform, dim * dim);
    fill_angles(c, angles, 2, dim);
    array_t da = array_make(c, angles, 2 * dim * sizeof *angles), dm = array_make(c, mean, dim * sizeof *mean);
    array_t dt = array_make(c, transform, dim * dim * sizeof *transform);
    array_t dq = array_make(c, q, (QUERIES + GROUP) * dim * sizeof *q);
    lode_device_query_t queries[QUERIES];
    uint32_t transforms = check_below(c, 3); /* none of them, all, or some */
    for (uint32_t i = 0; i < QUERIES; i++)
        queries[i] = (lode_device_query_t){
            .q = check_below(c, QUERIES),
            .count = i % 2 ? 1 + check_below(c, GROUP) : 1,
            .angles = i % 3 == 0   ? UINT32_MAX
                      : i % 3 == 1 ? 1
                                   : 0,
            .mean = i == 3 ? NULL : (const float *)dm.at,
            .transform = transforms == 0 || (transforms == 2 && i % 2) ? NULL : (const float *)dt.at};
    array_t dd = array_make(c, queries, sizeof queries);
    size_t bytes = c->ops->query_bytes(spec, dim), part = lode_prepared_part_bytes(spec->codec, spec->bits, dim);
    expect(c, bytes % 16 == 0 && bytes == sizeof(lode_prepared_t) + 2 * part, "%zu bytes", bytes);
    array_t to = array_make(c, NULL, QUERIES * bytes);
    DEVICE(c, query_prepare(c->stream, spec, dim, (const float *)dq.at, (const float *)da.at,
                            (const lode_device_query_t *)dd.at, QUERIES, to.at));
    const uint8_t *got = array_take(c, &to);
    for (uint32_t i = 0; i < QUERIES; i++, got += bytes) {
        lode_landmark_query_t right;
        reference(c, spec, dim, q, angles, &queries[i], mean, transform, &right);
        lode_prepared_t head;
        memcpy(&head, got, sizeof head);
        expect(c, head.bias == right.bias, "codec %d bits %u dim %u kind %d query %u: bias %a, not %a",
               (int)spec->codec, spec->bits, dim, (int)kind, i, head.bias, right.bias);
        expect(c, spec->codec != LODE_LANDMARK_UNIFORM || head.scale == right.scale, "scale %a, not %a", head.scale,
               right.scale);
        for (uint32_t j = 0; j < dim; j++) {
            const uint8_t *at = got + sizeof head + lode_prepared_place(spec->codec, spec->bits, dim, j);
            check_coordinate(c, spec, dim, j, at, at + part, &right);
        }
    }
    array_free(c, &da);
    array_free(c, &dm);
    array_free(c, &dt);
    array_free(c, &dq);
    array_free(c, &dd);
    free(to.host);
    free(transform);
}

Test(device_query, prepare, .timeout = 60)
{
    for (size_t s = 0; s < SEEDS; s++) {
        check_t c = check_open(seeds[s]);
        for (int i = 0; i < CHECK_SPECS; i++)
            for (int d = 0; d < 3; d++)
                for (int kind = 0; kind < (s ? 1 : KINDS); kind++)
                    prepare_case(&c, &check_specs[i], check_dims[d], (kind_t)kind);
        check_close(&c);
    }
}

Test(device_query, refuses_what_is_no_codec, .timeout = 60)
{
    check_t c = check_open(seeds[0]);
    lode_landmark_spec_t three = {.codec = LODE_LANDMARK_UNIFORM, .bits = 3, .chunk = 1};
    cr_assert(c.ops->landmark_quantise(c.stream, &three, 128, NULL, 1, NULL) == LODE_ERR_INVALID);
    cr_assert(strstr(c.ops->error(), "3 bits"), "%s", c.ops->error());
    cr_assert(c.ops->query_prepare(c.stream, &check_specs[0], 96, NULL, NULL, NULL, 1, NULL) == LODE_ERR_INVALID);
    cr_assert(strstr(c.ops->error(), "96"), "%s", c.ops->error());
    check_close(&c);
}
