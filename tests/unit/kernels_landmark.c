/* SPDX-License-Identifier: Apache-2.0 */
/* Landmarks: rows, tiles, scores. */
#include "kernels_check.h"

static const lode_landmark_spec_t specs[] = {
    {LODE_LANDMARK_UNIFORM, 2, 1, 1}, {LODE_LANDMARK_UNIFORM, 4, 1, 1}, {LODE_LANDMARK_UNIFORM, 8, 1, 1},
    {LODE_LANDMARK_HIGGS, 2, 1, 0},   {LODE_LANDMARK_HIGGS, 4, 1, 0},   {LODE_LANDMARK_MEAN, 16, 8, 0},
    {LODE_LANDMARK_UNIFORM, 1, 1, 1},
};
#define SPECS 7

Test(landmark, specs, .timeout = 20)
{
    for (int s = 0; s < SPECS; s++)
        for (int d = 0; d < 3; d++) {
            cr_assert(lode_landmark_spec_valid(&specs[s], check_dims[d]));
            cr_assert(!lode_landmark_spec_valid(&specs[s], check_dims[d] + 1));
            cr_assert(lode_landmark_tile_bytes(&specs[s], check_dims[d]) % 64 == 0);
        }
    static const lode_landmark_spec_t bad[] = {
        {LODE_LANDMARK_UNIFORM, 3, 1, 0},  {LODE_LANDMARK_UNIFORM, 16, 1, 0},   {LODE_LANDMARK_HIGGS, 8, 1, 0},
        {LODE_LANDMARK_MEAN, 8, 1, 0},     {LODE_LANDMARK_UNIFORM, 2, 0, 0},    {LODE_LANDMARK_UNIFORM, 2, 3, 0},
        {LODE_LANDMARK_UNIFORM, 2, 32, 0}, {(lode_landmark_codec_t)7, 2, 1, 0},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_assert(!lode_landmark_spec_valid(&bad[i], 128), "spec %zu", i);
    cr_assert(lode_landmark_row_bytes(&specs[0], 128) == 34);
    cr_assert(lode_landmark_row_bytes(&specs[1], 128) == 66);
    cr_assert(lode_landmark_row_bytes(&specs[2], 128) == 130);
    cr_assert(lode_landmark_row_bytes(&specs[3], 128) == 34);
    cr_assert(lode_landmark_row_bytes(&specs[4], 128) == 66);
    cr_assert(lode_landmark_row_bytes(&specs[5], 128) == 256);
    cr_assert(lode_landmark_tile_bytes(&specs[0], 128) == 1088);
    cr_assert(lode_score_scratch_floats(&specs[0], 128, 4) == 0);
    cr_assert(lode_score_scratch_floats(&specs[3], 128, 4) == 4 * 32 * 256);
    cr_assert(lode_score_scratch_floats(&specs[4], 128, 1) == 64 * 256);
}

static uint32_t uniform_field(const lode_landmark_spec_t *spec, const uint8_t *row, uint32_t coordinate)
{
    uint32_t a_word = 32 / spec->bits, word = coordinate / a_word, m = coordinate % a_word / 4, j = coordinate % 4;
    return row[4 * word + j] >> spec->bits * m & ((1u << spec->bits) - 1);
}

/* What a row stands for, in double, straight from the description in kernels.h. */
static void row_values(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *row, double *x)
{
    size_t codes = (size_t)dim * spec->bits / 8;
    double scale = spec->codec == LODE_LANDMARK_MEAN ? 1 : lode_bf16_widen(lode_load16(row + codes));
    for (uint32_t i = 0; i < dim; i++) {
        if (spec->codec == LODE_LANDMARK_MEAN)
            x[i] = lode_bf16_widen(lode_load16(row + 2 * i));
        else if (spec->codec == LODE_LANDMARK_HIGGS && spec->bits == 4)
            x[i] = scale * lode_higgs_grid2[row[i / 2]][i % 2];
        else if (spec->codec == LODE_LANDMARK_HIGGS)
            x[i] = scale * lode_higgs_grid4[row[i / 4]][i % 4];
        else if (spec->bits == 8)
            x[i] = scale * (int8_t)row[i];
        else
            x[i] = scale * (uniform_field(spec, row, i) - ((1 << spec->bits) - 1) / 2.0);
    }
}

static void same_rows(const lode_ops_t *ops)
{
    for (int s = 0; s < SPECS; s++)
        for (int d = 0; d < 3; d++)
            for (int kind = 0; kind < KINDS; kind++) {
                uint32_t dim = check_dims[d], n = 9;
                size_t bytes = lode_landmark_row_bytes(&specs[s], dim);
                guarded_t x = guarded_make(4 * n * dim, 4), rows = guarded_make(n * bytes, 2),
                          plain = guarded_make(n * bytes, 0);
                check_fill((kind_t)kind, (float *)x.at, n * dim);
                ops->landmark_quantise(&specs[s], dim, (float *)x.at, n, rows.at);
                check_scalar()->landmark_quantise(&specs[s], dim, (float *)x.at, n, plain.at);
                expect(memcmp(rows.at, plain.at, n * bytes) == 0, "codec %d bits %u dim %u %s", specs[s].codec,
                       specs[s].bits, dim, kind_names[kind]);
                guarded_free(&x);
                guarded_free(&rows);
                guarded_free(&plain);
            }
}
TEST_LEVELS(landmark, same_rows)

static double dot(const double *a, const float *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

static double norm2(const float *x, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    return sum;
}

/* The row of UNIFORM keeps <row, x> = <x, x>; all codecs are as near to x as their rate allows. */
static void rows_stand_for_keys(const lode_ops_t *ops)
{
    static const double error[SPECS] = {0.16, 0.016, 0.0003, 0.115, 0.0095, 0.00001, 0.65};
    for (int s = 0; s < SPECS; s++)
        for (int d = 0; d < 3; d++)
            for (int kind = 0; kind < KINDS; kind++) {
                uint32_t dim = check_dims[d];
                float x[256];
                uint8_t row[512];
                double got[256], total = 0, size = 0;
                for (int round = 0; round < 50; round++) {
                    check_fill((kind_t)kind, x, dim);
                    ops->landmark_quantise(&specs[s], dim, x, 1, row);
                    row_values(&specs[s], dim, row, got);
                    double xx = norm2(x, dim);
                    if (specs[s].codec == LODE_LANDMARK_UNIFORM && kind != DENORMAL)
                        expect(fabs(dot(got, x, dim) - xx) <= 0.004 * xx, "bits %u dim %u %s: %g, not %g",
                               specs[s].bits, dim, kind_names[kind], dot(got, x, dim), xx);
                    for (uint32_t i = 0; i < dim; i++)
                        total += (got[i] - x[i]) * (got[i] - x[i]);
                    size += xx;
                }
                if (kind == RANDOM)
                    expect(total <= error[s] * size, "codec %d bits %u dim %u: error %g of the norm", specs[s].codec,
                           specs[s].bits, dim, total / size);
                if (kind == ZERO)
                    expect(total == 0, "codec %d bits %u: zero became %g", specs[s].codec, specs[s].bits, total);
            }
}
TEST_LEVELS(landmark, rows_stand_for_keys)

/* Word w of landmark i of a tile lies at [i / 16][w][i % 16]; the scales follow; other landmarks are left alone. */
static void place(const lode_ops_t *ops)
{
    static const struct {
        size_t first, n;
    } runs[] = {{0, 1}, {0, 32}, {5, 1}, {31, 2}, {7, 90}, {33, 0}, {64, 31}};
    for (int s = 0; s < SPECS; s++)
        for (int d = 0; d < 3; d++)
            for (size_t r = 0; r < sizeof runs / sizeof *runs; r++) {
                uint32_t dim = check_dims[d];
                size_t row_bytes = lode_landmark_row_bytes(&specs[s], dim),
                       tile_bytes = lode_landmark_tile_bytes(&specs[s], dim);
                size_t codes = (size_t)dim * specs[s].bits / 8, first = runs[r].first, n = runs[r].n, tiles = 4;
                guarded_t rows = guarded_make(n * row_bytes, 1), to = guarded_make(tiles * tile_bytes, 0);
                for (size_t i = 0; i < n * row_bytes; i++)
                    rows.at[i] = (uint8_t)check_below(256);
                ops->landmark_place(&specs[s], dim, rows.at, n, to.at, first);
                for (size_t i = 0; i < tiles * LODE_TILE; i++) {
                    const uint8_t *tile = to.at + i / 32 * tile_bytes, *row = rows.at + (i - first) * row_bytes;
                    bool mine = i >= first && i < first + n;
                    for (size_t b = 0; b < row_bytes; b++) {
                        size_t at = b < codes ? ((i % 32 / 16 * (codes / 4) + b / 4) * 16 + i % 16) * 4 + b % 4
                                              : 32 * codes + 2 * (i % 32) + b - codes;
                        uint8_t right = mine ? row[b] : POISON;
                        expect(tile[at] == right, "codec %d bits %u dim %u: landmark %zu byte %zu", specs[s].codec,
                               specs[s].bits, dim, i, b);
                    }
                }
                guarded_free(&rows);
                guarded_free(&to);
            }
}
TEST_LEVELS(landmark, place)

/* Tiles of n random landmarks; x (n, dim) and rows come back too. */
typedef struct sample {
    float *x;
    uint8_t *rows, *tiles;
} sample_t;

static sample_t sample_make(const lode_landmark_spec_t *spec, uint32_t dim, size_t n, kind_t kind)
{
    size_t tiles = (n + LODE_TILE - 1) / LODE_TILE;
    sample_t sample = {calloc(n * dim + 1, sizeof(float)), calloc(n + 1, lode_landmark_row_bytes(spec, dim)),
                       aligned_alloc(64, (tiles + 1) * lode_landmark_tile_bytes(spec, dim))};
    memset(sample.tiles, POISON, (tiles + 1) * lode_landmark_tile_bytes(spec, dim));
    check_fill(kind, sample.x, n * dim);
    check_scalar()->landmark_quantise(spec, dim, sample.x, n, sample.rows);
    check_scalar()->landmark_place(spec, dim, sample.rows, n, sample.tiles, 0);
    return sample;
}

static void sample_free(sample_t *sample)
{
    free(sample->x);
    free(sample->rows);
    free(sample->tiles);
}

static lode_landmark_query_t *queries_make(const lode_ops_t *ops, const lode_landmark_spec_t *spec, uint32_t dim,
                                           uint32_t group, kind_t kind, float *q)
{
    lode_landmark_query_t *queries = aligned_alloc(64, sizeof *queries * group);
    for (uint32_t g = 0; g < group; g++) {
        check_fill(kind, q + g * dim, dim);
        ops->query_prepare(spec, dim, q + g * dim, (float)check_gaussian(), &queries[g]);
    }
    return queries;
}

/* The query as it was quantised. */
static void query_values(const lode_landmark_spec_t *spec, uint32_t dim, const lode_landmark_query_t *query, float *q)
{
    for (uint32_t i = 0; i < dim; i++)
        q[i] = spec->codec != LODE_LANDMARK_UNIFORM ? query->q32[i]
               : spec->bits == 8                    ? query->scale * query->q16[i]
                                                    : 2 * query->scale * query->q8[i];
}

static const size_t counts[] = {0, 1, 15, 16, 17, 31, 32, 33, 100};

/* Scores against rows and queries in double; every length and group; the same to the bit as scalar for UNIFORM. */
static void score_case(const lode_ops_t *ops, const lode_landmark_spec_t *spec, uint32_t dim, size_t n, uint32_t group,
                       kind_t kind, kind_t query_kind)
{
    sample_t sample = sample_make(spec, dim, n, kind);
    float q[LODE_MAX_GROUP * LODE_MAX_DIM], quantised[LODE_MAX_GROUP * LODE_MAX_DIM];
    double row[LODE_MAX_DIM];
    lode_landmark_query_t *queries = queries_make(ops, spec, dim, group, query_kind, q);
    size_t stride = n + 3, floats = lode_score_scratch_floats(spec, dim, group);
    float *scratch = floats ? aligned_alloc(64, floats * sizeof *scratch) : NULL;
    guarded_t out = guarded_make(4 * stride * group, 4), plain = guarded_make(4 * stride * group, 0);
    ops->landmark_score(spec, dim, sample.tiles, n, queries, group, (float *)out.at, stride, scratch);
    check_scalar()->landmark_score(spec, dim, sample.tiles, n, queries, group, (float *)plain.at, stride, scratch);
    if (spec->codec == LODE_LANDMARK_UNIFORM)
        expect(memcmp(out.at, plain.at, 4 * stride * group) == 0, "bits %u dim %u n %zu group %u %s: not as scalar",
               spec->bits, dim, n, group, kind_names[kind]);
    for (uint32_t g = 0; g < group; g++)
        query_values(spec, dim, &queries[g], quantised + g * dim);
    for (size_t i = 0; i < n; i++) {
        row_values(spec, dim, sample.rows + i * lode_landmark_row_bytes(spec, dim), row);
        for (uint32_t g = 0; g < group; g++) {
            const float *query = quantised + g * dim;
            double right = queries[g].bias, size = fabs(queries[g].bias);
            for (uint32_t j = 0; j < dim; j++) {
                double term = row[j] * query[j];
                right += term;
                size += fabs(term);
            }
            float got = ((float *)out.at)[g * stride + i];
            expect(fabs(got - right) <= 1e-5 * size,
                   "codec %d bits %u dim %u n %zu group %u %s: [%u][%zu] is %.9g, not %.9g", spec->codec, spec->bits,
                   dim, n, group, kind_names[kind], g, i, got, right);
        }
    }
    for (uint32_t g = 0; g < group; g++)
        for (size_t i = 4 * (g * stride + n); i < 4 * (g + 1) * stride; i++)
            expect(out.at[i] == POISON, "codec %d bits %u dim %u n %zu: wrote past a row of scores", spec->codec,
                   spec->bits, dim, n);
    guarded_free(&out);
    guarded_free(&plain);
    free(scratch);
    free(queries);
    sample_free(&sample);
}

static void score(const lode_ops_t *ops)
{
    for (int s = 0; s < SPECS; s++)
        for (int d = 0; d < 3; d++) {
            for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
                score_case(ops, &specs[s], check_dims[d], counts[c], check_groups[c % 7], RANDOM, RANDOM);
            for (int g = 0; g < 7; g++)
                score_case(ops, &specs[s], check_dims[d], 40, check_groups[g], OUTLIER, RANDOM);
            for (int kind = 0; kind < KINDS; kind++) { /* all low and all high are where narrow sums would overflow */
                if (!ONE_OF(3, kind + d))
                    continue;
                score_case(ops, &specs[s], check_dims[d], 33, 2, (kind_t)kind, ALL_HIGH);
                score_case(ops, &specs[s], check_dims[d], 33, 2, (kind_t)kind, ALL_LOW);
                score_case(ops, &specs[s], check_dims[d], 33, 2, (kind_t)kind, ZERO);
                score_case(ops, &specs[s], check_dims[d], 33, 2, ALL_LOW, (kind_t)kind);
            }
        }
}
TEST_LEVELS(landmark, score)
TEST_NEWER_LEVELS(landmark, score)

/* Scores stretch over more than one run of tiles. */
static void score_long(const lode_ops_t *ops)
{
    for (int s = 0; s < SPECS; s++)
        score_case(ops, &specs[s], 64, 8200 + 7 * (size_t)s, 3, RANDOM, RANDOM);
}
TEST_LEVELS(landmark, score_long)
TEST_NEWER_LEVELS(landmark, score_long)

/* The worst case for narrow sums, written by hand: every code at its end, every q8 at its greatest. */
static void extreme_codes(const lode_ops_t *ops)
{
    for (int s = 0; s < SPECS; s++)
        for (int d = 0; d < 3; d++)
            for (int sign = -1; sign <= 1; sign += 2) {
                const lode_landmark_spec_t *spec = &specs[s];
                if (spec->codec != LODE_LANDMARK_UNIFORM)
                    continue;
                uint32_t dim = check_dims[d];
                size_t bytes = lode_landmark_row_bytes(spec, dim), codes = bytes - 2;
                uint8_t rows[2][300];
                memset(rows[0], spec->bits == 8 ? 0x81 : 0xff, codes);
                memset(rows[1], spec->bits == 8 ? 0x7f : 0x00, codes);
                for (int i = 0; i < 2; i++)
                    lode_store16(rows[i] + codes, lode_bf16_narrow(1));
                uint8_t *tile = aligned_alloc(64, lode_landmark_tile_bytes(spec, dim));
                memset(tile, 0, lode_landmark_tile_bytes(spec, dim));
                ops->landmark_place(spec, dim, rows[0], 1, tile, 0);
                ops->landmark_place(spec, dim, rows[1], 1, tile, 1);
                lode_landmark_query_t query;
                float q[256], out[2];
                for (uint32_t i = 0; i < dim; i++)
                    q[i] = (float)sign;
                ops->query_prepare(spec, dim, q, 0, &query);
                ops->landmark_score(spec, dim, tile, 2, &query, 1, out, 2, NULL);
                double end = spec->bits == 8 ? -127 : ((1 << spec->bits) - 1) / 2.0, right = sign * end * dim;
                expect(fabs(out[0] - right) < 1e-4 * dim * fabs(end) && fabs(out[1] + right) < 1e-4 * dim * fabs(end),
                       "bits %u dim %u: %g and %g, not ±%g", spec->bits, dim, out[0], out[1], right);
                free(tile);
            }
}
TEST_LEVELS(landmark, extreme_codes)
TEST_NEWER_LEVELS(landmark, extreme_codes)

/* Scores of Gaussian keys and queries against true dot products; a key scores itself as its squared norm. */
static void score_near_truth(const lode_ops_t *ops)
{
    static const double most[SPECS] = {0.47, 0.14, 0.014, 0.40, 0.115, 0.005, 0.95};
    enum { N = 256 };
    for (int s = 0; s < SPECS; s++)
        for (int d = 0; d < 3; d++) {
            uint32_t dim = check_dims[d];
            sample_t sample = sample_make(&specs[s], dim, N, RANDOM);
            float q[2 * LODE_MAX_DIM], out[2 * N];
            lode_landmark_query_t *queries = queries_make(ops, &specs[s], dim, 2, RANDOM, q);
            memcpy(q + dim, sample.x + 5 * dim, dim * sizeof *q);
            ops->query_prepare(&specs[s], dim, q, 0, &queries[0]);
            ops->query_prepare(&specs[s], dim, q + dim, 0, &queries[1]);
            float *scratch = aligned_alloc(64, 4 * 2 * 64 * 2 * 256 * 2);
            ops->landmark_score(&specs[s], dim, sample.tiles, N, queries, 2, out, N, scratch);
            double error = 0, size = 0;
            for (size_t i = 0; i < N; i++) {
                double truth = 0;
                for (uint32_t j = 0; j < dim; j++)
                    truth += (double)q[j] * sample.x[i * dim + j];
                error += (out[i] - truth) * (out[i] - truth);
                size += truth * truth;
            }
            expect(sqrt(error / size) < most[s], "codec %d bits %u dim %u: relative error %g", specs[s].codec,
                   specs[s].bits, dim, sqrt(error / size));
            double own = norm2(sample.x + 5 * dim, dim);
            if (specs[s].codec == LODE_LANDMARK_UNIFORM)
                expect(fabs(out[N + 5] - own) < 0.015 * own, "bits %u dim %u: own score %g, not %g", specs[s].bits, dim,
                       out[N + 5], own);
            free(scratch);
            free(queries);
            sample_free(&sample);
        }
}
TEST_LEVELS(landmark, score_near_truth)
TEST_NEWER_LEVELS(landmark, score_near_truth)

static void query_extremes(const lode_ops_t *ops)
{
    for (int s = 0; s < SPECS; s++) {
        float q[128];
        lode_landmark_query_t query;
        check_fill(ZERO, q, 128);
        ops->query_prepare(&specs[s], 128, q, 2.5f, &query);
        expect(query.bias == 2.5f && query.scale == 0 && query.sum == 0, "codec %d", specs[s].codec);
        check_fill(OUTLIER, q, 128);
        ops->query_prepare(&specs[s], 128, q, 0, &query);
        int32_t sum = 0;
        for (int i = 0; i < 128; i++)
            sum += query.q8[i];
        if (specs[s].codec == LODE_LANDMARK_UNIFORM && specs[s].bits < 8)
            expect(query.sum == sum, "bits %u: sum %d, not %d", specs[s].bits, query.sum, sum);
    }
}
TEST_LEVELS(landmark, query_extremes)
