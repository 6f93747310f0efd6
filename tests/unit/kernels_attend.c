/* SPDX-License-Identifier: Apache-2.0 */
/* Attention over records, and merging of parts. */
#include "kernels_check.h"

static const lode_format_t formats[] = {LODE_FORMAT_BF16, LODE_FORMAT_FP8, LODE_FORMAT_HIGGS4};

/* Records in places of their own, in no order, at odd addresses. */
typedef struct records {
    uint8_t *memory;
    const uint8_t **at;
    double *k, *v; /* (n, dim), as they are read back */
} records_t;

static records_t records_make(lode_format_t format, uint32_t dim, size_t n, kind_t key_kind, kind_t value_kind)
{
    size_t bytes = lode_record_bytes(format, dim);
    records_t records = {malloc((n + 1) * (bytes + 8)), calloc(n + 1, sizeof(uint8_t *)), calloc(n * dim + 1, 8),
                         calloc(n * dim + 1, 8)};
    for (size_t i = 0; i < n; i++) {
        float k[LODE_MAX_DIM], v[LODE_MAX_DIM];
        uint8_t *record = records.memory + (n - 1 - i) * (bytes + 8) + (i % 2 ? 8 : 0);
        check_fill(key_kind, k, dim);
        check_fill(value_kind, v, dim);
        check_scalar()->record_encode(format, dim, k, v, 0, record);
        check_scalar()->record_decode(format, dim, record, k, v);
        records.at[i] = record;
        for (uint32_t j = 0; j < dim; j++) {
            records.k[i * dim + j] = k[j];
            records.v[i * dim + j] = v[j];
        }
    }
    return records;
}

static void records_free(records_t *records)
{
    free(records->memory);
    free(records->at);
    free(records->k);
    free(records->v);
}

/*
 * One query in double, or, with @p of, one of each record's own, `stride` floats apart: out (dim), the log-sum-exp
 * returned, the greatest |logit| and |v| noted for tolerances.
 */
static double reference_each(const records_t *records, uint32_t dim, size_t n, const float *queries, const uint16_t *of,
                             size_t stride, double *out, double *reach)
{
    double most = -INFINITY, sum = 0, *logit = calloc(n + 1, sizeof *logit);
    *reach = 0;
    for (size_t i = 0; i < n; i++) {
        double size = 0;
        const float *q = queries + (of ? of[i] * stride : 0);
        for (uint32_t j = 0; j < dim; j++) {
            logit[i] += q[j] * records->k[i * dim + j];
            size += fabs(q[j] * records->k[i * dim + j]);
        }
        *reach = fmax(*reach, size);
        most = fmax(most, logit[i]);
    }
    memset(out, 0, dim * sizeof *out);
    for (size_t i = 0; i < n; i++)
        sum += exp(logit[i] - most);
    for (size_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < dim; j++)
            out[j] += exp(logit[i] - most) / sum * records->v[i * dim + j];
    free(logit);
    return n ? most + log(sum) : -INFINITY;
}

static double reference(const records_t *records, uint32_t dim, size_t n, const float *q, double *out, double *reach)
{
    return reference_each(records, dim, n, q, NULL, 0, out, reach);
}

/* Queries of records in runs of all lengths, some of them met again; @p count: of queries. */
static uint16_t *deal_queries(size_t n, uint32_t count)
{
    uint16_t *of = malloc((n + 1) * sizeof *of);
    for (size_t i = 0; i < n; i++)
        of[i] = i && check_below(6) ? of[i - 1] : (uint16_t)check_below(count);
    return of;
}

/* @p count: queries a query head, which records are dealt to; 0: all meet the same one, by attend. */
static void attend_case(const lode_ops_t *ops, lode_format_t format, uint32_t dim, uint32_t group, size_t n,
                        kind_t key_kind, kind_t value_kind, uint32_t count)
{
    records_t records = records_make(format, dim, n, key_kind, value_kind);
    uint32_t rows = group * (count ? count : 1);
    uint16_t *of = count ? deal_queries(n, count) : NULL;
    guarded_t q = guarded_make(4 * rows * dim, 4), out = guarded_make(4 * group * dim, 4),
              lse = guarded_make(4 * group, 4);
    float *query = malloc(4 * rows * dim);
    check_fill(RANDOM, query, rows * dim);
    for (uint32_t i = 0; i < rows * dim; i++)
        query[i] /= sqrtf((float)dim);
    memcpy(q.at, query, 4 * rows * dim);
    if (count)
        ops->attend_each(format, dim, group, records.at, of, n, (float *)q.at, count, (float *)out.at, (float *)lse.at);
    else
        ops->attend(format, dim, group, records.at, n, (float *)q.at, (float *)out.at, (float *)lse.at);
    double greatest = 0;
    for (size_t i = 0; i < n * dim; i++)
        greatest = fmax(greatest, fabs(records.v[i]));
    for (uint32_t g = 0; g < group; g++) {
        double right[LODE_MAX_DIM], reach;
        double right_lse = reference_each(&records, dim, n, query + g * dim, of, (size_t)group * dim, right, &reach);
        double slack = 1e-6 * reach; /* what fp32 loses in a logit; a weight changes by as much of itself */
        float got_lse = ((float *)lse.at)[g];
        expect(n ? fabs(got_lse - right_lse) <= slack + 2e-6 * (1 + fabs(right_lse)) : got_lse == -INFINITY,
               "format %d dim %u group %u n %zu of %u %s: lse[%u] %.9g, not %.9g", format, dim, group, n, count,
               kind_names[key_kind], g, got_lse, right_lse);
        for (uint32_t j = 0; j < dim; j++) {
            float got = ((float *)out.at)[g * dim + j];
            double error = fabs(got - right[j]), bound = (4e-6 + 2 * expm1(fmin(slack, 1))) * greatest;
            expect(n ? error <= bound : got == 0,
                   "format %d dim %u group %u n %zu of %u %s: out[%u][%u] %.9g, not %.9g", format, dim, group, n, count,
                   kind_names[key_kind], g, j, got, right[j]);
        }
    }
    free(of);
    free(query);
    guarded_free(&q);
    guarded_free(&out);
    guarded_free(&lse);
    records_free(&records);
}

static void attend(const lode_ops_t *ops)
{
    static const size_t counts[] = {0, 1, 2, 15, 16, 17, 31, 32, 33, 100};
    for (int f = 0; f < 3; f++)
        for (int d = 0; d < 3; d++) {
            for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
                attend_case(ops, formats[f], check_dims[d], check_groups[c % 7], counts[c], RANDOM, RANDOM, 0);
            for (int g = 0; g < 7; g++)
                attend_case(ops, formats[f], check_dims[d], check_groups[g], 37, RANDOM, RANDOM, 0);
            for (int kind = 0; kind < KINDS; kind++) {
                attend_case(ops, formats[f], check_dims[d], 2, 33, (kind_t)kind, RANDOM, 0);
                attend_case(ops, formats[f], check_dims[d], 2, 33, RANDOM, (kind_t)kind, 0);
            }
        }
}
TEST_LEVELS(attention, attend)

static void attend_many(const lode_ops_t *ops)
{
    for (int f = 0; f < 3; f++)
        attend_case(ops, formats[f], 128, 4, 3001, RANDOM, RANDOM, 0);
}
TEST_LEVELS(attention, attend_many)

/* Records of many short runs, each under queries of its own. */
static void attend_each(const lode_ops_t *ops)
{
    static const size_t counts[] = {0, 1, 2, 15, 16, 17, 32, 33, 100};
    for (int f = 0; f < 3; f++) {
        for (int d = 0; d < 3; d++) {
            for (size_t c = 0; c < sizeof counts / sizeof *counts; c++)
                attend_case(ops, formats[f], check_dims[d], check_groups[c % 7], counts[c], RANDOM, RANDOM, 1 + c);
            for (int g = 0; g < 7; g++)
                attend_case(ops, formats[f], check_dims[d], check_groups[g], 37, RANDOM, RANDOM, 7);
            for (int kind = 0; kind < KINDS; kind++)
                attend_case(ops, formats[f], check_dims[d], 2, 33, (kind_t)kind, RANDOM, 5);
        }
        attend_case(ops, formats[f], 128, 4, 2001, RANDOM, RANDOM, 300);
    }
}
TEST_LEVELS(attention, attend_each)

/* Logits in the thousands: one record has all the weight, first or last, and nothing overflows. */
static void sharp(const lode_ops_t *ops)
{
    enum { N = 40, D = 64 };
    for (int f = 0; f < 3; f++)
        for (int winner = 0; winner < N; winner += 13) {
            uint8_t memory[N][264];
            const uint8_t *at[N];
            float q[D], out[D], lse, k[D], v[D], winner_v[D];
            check_fill(RANDOM, q, D);
            for (int i = 0; i < N; i++) {
                for (int j = 0; j < D; j++) {
                    k[j] = q[j] * (i == winner ? 500.0f : -500.0f);
                    v[j] = (float)check_gaussian();
                }
                ops->record_encode(formats[f], D, k, v, 0, memory[i]);
                ops->record_decode(formats[f], D, memory[i], k, v);
                if (i == winner)
                    memcpy(winner_v, v, sizeof v);
                at[i] = memory[i];
            }
            ops->attend(formats[f], D, 1, at, N, q, out, &lse);
            for (int j = 0; j < D; j++)
                expect(fabsf(out[j] - winner_v[j]) < 2e-6f * 8, "format %d winner %d: out[%d] %g, not %g", f, winner, j,
                       out[j], winner_v[j]);
            expect(isfinite(lse) && lse > 1000, "format %d: lse %g", f, lse);
        }
}
TEST_LEVELS(attention, sharp)

/* Parts of any cut, merged in any order, are the whole; empty parts change nothing. */
static void merge(const lode_ops_t *ops)
{
    for (int d = 0; d < 3; d++)
        for (int round = 0; round < 10; round++) {
            enum { N = 50, G = 3 };
            uint32_t dim = check_dims[d];
            records_t records = records_make(LODE_FORMAT_BF16, dim, N, RANDOM, RANDOM);
            float q[G * LODE_MAX_DIM], lse[G], part_lse[G];
            guarded_t out = guarded_make(4 * G * dim, 4), part = guarded_make(4 * G * dim, 4);
            check_fill(RANDOM, q, G * dim);
            for (uint32_t i = 0; i < G * dim; i++)
                q[i] /= 4;
            size_t cuts[] = {0, 0, check_below(N), N};
            if (round % 3 == 1) /* an empty part in the middle */
                cuts[1] = cuts[2];
            ops->attend(LODE_FORMAT_BF16, dim, G, records.at, cuts[1], q, (float *)out.at, lse);
            for (int p = 1; p < 3; p++) {
                ops->attend(LODE_FORMAT_BF16, dim, G, records.at + cuts[p], cuts[p + 1] - cuts[p], q, (float *)part.at,
                            part_lse);
                ops->merge((float *)out.at, lse, (float *)part.at, part_lse, G, dim);
            }
            for (uint32_t g = 0; g < G; g++) {
                double right[LODE_MAX_DIM], reach, right_lse = reference(&records, dim, N, q + g * dim, right, &reach);
                expect(fabs(lse[g] - right_lse) < 1e-5 * (1 + reach), "dim %u: lse %g, not %g", dim, lse[g], right_lse);
                for (uint32_t j = 0; j < dim; j++)
                    expect(fabs(((float *)out.at)[g * dim + j] - right[j]) < 1e-4, "dim %u [%u][%u]: %g, not %g", dim,
                           g, j, ((float *)out.at)[g * dim + j], right[j]);
            }
            guarded_free(&out);
            guarded_free(&part);
            records_free(&records);
        }
}
TEST_LEVELS(attention, merge)

/* Parts of every kind, and log-sum-exps near, far and at the ends of what there is, against double. */
static void merge_kinds(const lode_ops_t *ops)
{
    static const float sums[] = {0, 1, -1, 3, 50, -50, 87, -87, 3e4f, -3e4f, 1e-40f, 3e38f, -3e38f};
    enum { SUMS = sizeof sums / sizeof *sums };
    for (int d = 0; d < 3; d++)
        for (int kind = 0; kind < KINDS; kind++)
            for (int other = 0; other < KINDS; other++) {
                uint32_t dim = check_dims[d];
                guarded_t out = guarded_make(4 * SUMS * dim, 4), part = guarded_make(4 * SUMS * dim, 12);
                float *x = (float *)out.at, *y = (float *)part.at, lse[SUMS], part_lse[SUMS];
                float *before = malloc(4 * SUMS * dim);
                check_fill((kind_t)kind, x, SUMS * dim);
                check_fill((kind_t)other, y, SUMS * dim);
                memcpy(before, x, 4 * SUMS * dim);
                for (int i = 0; i < SUMS; i++) {
                    lse[i] = sums[i];
                    part_lse[i] = sums[check_below(SUMS)];
                }
                ops->merge(x, lse, y, part_lse, SUMS, dim);
                for (int i = 0; i < SUMS; i++) {
                    double most = fmax(sums[i], part_lse[i]), a = exp(sums[i] - most), b = exp(part_lse[i] - most);
                    double right = most + log(a + b);
                    expect(fabs(lse[i] - right) <= 2e-6 + 1e-6 * fabs(right), "%g and %g: %.9g, not %.9g", sums[i],
                           part_lse[i], lse[i], right);
                    for (uint32_t j = i * dim; j < (i + 1) * dim; j++) {
                        double value = (a * before[j] + b * y[j]) / (a + b);
                        expect(fabs(x[j] - value) <= 1e-6 * (fabs(before[j]) + fabs(y[j])) + 3e-45,
                               "dim %u %s and %s: %.9g, not %.9g", dim, kind_names[kind], kind_names[other], x[j],
                               value);
                    }
                }
                free(before);
                guarded_free(&out);
                guarded_free(&part);
            }
}
TEST_LEVELS(attention, merge_kinds)

static void merge_empty(const lode_ops_t *ops)
{
    float out[64], lse = -INFINITY, part[64], part_lse = -INFINITY;
    for (int i = 0; i < 64; i++) { /* what lies in an empty side must not matter */
        out[i] = NAN;
        part[i] = (float)i;
    }
    ops->merge(out, &lse, part, &part_lse, 0, 64);
    expect(isnan(out[0]), "no rows, yet written: %g", out[0]);
    ops->merge(out, &lse, part, &part_lse, 1, 64);
    expect(lse == -INFINITY, "two empty parts gave %g", lse);
    part_lse = 3;
    ops->merge(out, &lse, part, &part_lse, 1, 64);
    for (int i = 0; i < 64; i++)
        expect(out[i] == (float)i, "[%d] %g", i, out[i]);
    expect(lse == 3, "lse %g", lse);
    float rest[64];
    memset(rest, 0xff, sizeof rest); /* NaN */
    part_lse = -INFINITY;
    ops->merge(out, &lse, rest, &part_lse, 1, 64);
    for (int i = 0; i < 64; i++)
        expect(out[i] == (float)i, "[%d] %g after an empty part", i, out[i]);
    expect(lse == 3, "lse %g", lse);
}
TEST_LEVELS(attention, merge_empty)
