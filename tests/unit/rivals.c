/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/rivals.h"

TestSuite(shadow, .timeout = 60);
TestSuite(budget, .timeout = 60);

enum { TOKENS = 203, HEADS = 2, DIM = 64, WIDTH = HEADS * DIM };

static const lode_rope_t rope = {.theta = 10000};
static float rows[TOKENS * WIDTH], keys[TOKENS * WIDTH]; /* before and after rotation */

static float gaussian(uint64_t seed, uint64_t i)
{
    double u = ((double)(lode_mix(seed, 2 * i) >> 11) + 0.5) * 0x1p-53;
    double v = (double)(lode_mix(seed, 2 * i + 1) >> 11) * 0x1p-53;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}

/* The rotation in double, from its definition: pairs (i, i + D/2) by position · theta^(-2i/D). */
static void turn(float *row, int64_t position)
{
    for (uint32_t head = 0; head < HEADS; head++)
        for (uint32_t i = 0; i < DIM / 2; i++) {
            double angle = (double)position * pow(rope.theta, -2.0 * i / DIM);
            float *x = row + head * DIM + i, *y = x + DIM / 2;
            double a = *x * cos(angle) - *y * sin(angle), b = *x * sin(angle) + *y * cos(angle);
            *x = (float)a;
            *y = (float)b;
        }
}

/* Rows of a rank, with a little noise if there is some. */
static void make_keys(uint32_t rank, double noise, uint64_t seed)
{
    memset(rows, 0, sizeof rows);
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t i = 0; i < WIDTH; i++) {
            for (uint32_t r = 0; r < rank; r++)
                rows[t * WIDTH + i] += gaussian(seed, t * rank + r) * gaussian(seed + 1, r * WIDTH + i);
            rows[t * WIDTH + i] += (float)noise * gaussian(seed + 2, t * WIDTH + i);
        }
    memcpy(keys, rows, sizeof keys);
    for (uint32_t t = 0; t < TOKENS; t++)
        turn(keys + t * WIDTH, t);
}

static lode_shadow_h make_shadow(uint32_t rank, uint32_t outliers)
{
    lode_shadow_params_t params = {rank, 8, outliers, 4};
    const lode_ops_t *ops;
    lode_shadow_h shadow;
    cr_assert(lode_ops_get("auto", &ops) == LODE_OK);
    cr_assert(lode_shadow_create(&params, ops, &rope, HEADS, DIM, keys, TOKENS, NULL, &shadow) == LODE_OK, "%s",
              lode_error_message());
    return shadow;
}

/* Of all keys as they are attended over, beside those that they stand for: relative, in the Frobenius norm. */
static double rebuild_error(const struct lode_shadow *shadow)
{
    double wrong = 0, all = 0;
    float key[DIM];
    for (uint64_t t = 0; t < TOKENS; t++)
        for (uint32_t head = 0; head < HEADS; head++) {
            const float *right = keys + t * WIDTH + head * DIM;
            lode_shadow_rebuild(shadow, head, &t, 1, key);
            for (uint32_t i = 0; i < DIM; i++) {
                wrong += ((double)key[i] - right[i]) * ((double)key[i] - right[i]);
                all += (double)right[i] * right[i];
            }
        }
    return sqrt(wrong / all);
}

/* No matrix of a rank comes nearer than the singular values that are left out (Eckart and Young). */
static double least_error(uint32_t rank)
{
    static double copy[TOKENS * WIDTH], values[WIDTH], work[WIDTH];
    double out = 0, all = 0;
    for (size_t i = 0; i < TOKENS * WIDTH; i++)
        copy[i] = rows[i];
    cr_assert(LAPACKE_dgesvd(LAPACK_ROW_MAJOR, 'N', 'N', TOKENS, WIDTH, copy, WIDTH, values, NULL, 1, NULL, 1, work) ==
              0);
    for (uint32_t i = 0; i < WIDTH; i++) {
        out += i >= rank ? values[i] * values[i] : 0;
        all += values[i] * values[i];
    }
    return sqrt(out / all);
}

Test(shadow, keys_of_the_rank_come_back)
{
    make_keys(20, 0, 3);
    lode_shadow_h shadow = make_shadow(20, 3);
    double error = rebuild_error(shadow);
    cr_assert(error > 2.1e-3 && error < 2.8e-3, "%g",
              error); /* two roundings to bf16; of one of them 1.6e-3 to 1.9e-3 */
    lode_shadow_destroy(&shadow);
    cr_assert(shadow == NULL);
    shadow = make_shadow(WIDTH, 3); /* and with all axes any keys do */
    cr_assert(rebuild_error(shadow) < 6e-3);
    lode_shadow_destroy(&shadow);
}

Test(shadow, no_other_basis_is_nearer)
{
    make_keys(40, 0.5, 5);
    for (uint32_t rank = 10; rank <= 70; rank += 20) {
        lode_shadow_h shadow = make_shadow(rank, 0);
        double error = rebuild_error(shadow), least = least_error(rank);
        cr_assert(least > 0.02 && error > 0.999 * least && error < 1.01 * least + 1e-3, "rank %u: %g, at best %g", rank,
                  error, least);
        lode_shadow_destroy(&shadow);
    }
}

static double cosine_of(const float *a, const double *b)
{
    double ab = 0, aa = 0, bb = 0;
    for (uint32_t i = 0; i < DIM; i++) {
        ab += a[i] * b[i];
        aa += (double)a[i] * a[i];
        bb += b[i] * b[i];
    }
    return ab / sqrt(aa * bb);
}

/* The mean and the least cosine of a chunk, from their definition. */
static double least_cosine(uint32_t head, uint64_t chunk, double *mean)
{
    double least = 2;
    memset(mean, 0, DIM * sizeof *mean);
    for (uint32_t t = 0; t < 8; t++)
        for (uint32_t i = 0; i < DIM; i++)
            mean[i] += keys[(chunk * 8 + t) * WIDTH + head * DIM + i] / 8.0;
    for (uint32_t t = 0; t < 8; t++)
        least = fmin(least, cosine_of(keys + (chunk * 8 + t) * WIDTH + head * DIM, mean));
    return least;
}

Test(shadow, chunks_whose_keys_disagree_stay)
{
    enum { OUTLIERS = 5 };
    make_keys(6, 0.2, 9);
    lode_shadow_h shadow = make_shadow(16, OUTLIERS);
    cr_assert(lode_shadow_chunks(shadow) == TOKENS / 8 - 4);
    for (uint32_t head = 0; head < HEADS; head++) {
        double least_kept = 2, largest_out = -2, mean[DIM];
        uint32_t out = 0;
        for (uint64_t c = 0; c < lode_shadow_chunks(shadow); c++) {
            double cosine = least_cosine(head, c, mean);
            if (lode_shadow_is_outlier(shadow, head, c)) {
                largest_out = fmax(largest_out, cosine);
                out++;
            } else {
                least_kept = fmin(least_kept, cosine);
            }
        }
        cr_assert(out == OUTLIERS && largest_out < least_kept, "head %u: %u, %g, %g", head, out, largest_out,
                  least_kept);
    }
    lode_shadow_destroy(&shadow);
}

Test(shadow, one_turned_key_makes_an_outlier_of_its_head_alone)
{
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t i = 0; i < WIDTH; i++)
            keys[t * WIDTH + i] = 1 + 0.1f * gaussian(1, t * WIDTH + i);
    for (uint32_t i = 0; i < DIM; i++)
        keys[61 * WIDTH + DIM + i] *= -1;
    lode_shadow_h shadow = make_shadow(16, 1);
    cr_assert(lode_shadow_is_outlier(shadow, 1, 61 / 8));
    cr_assert(lode_shadow_is_outlier(shadow, 0, 61 / 8) == false);
    lode_shadow_destroy(&shadow);
}

Test(shadow, scores_are_products_with_the_means)
{
    float scores[TOKENS], query[DIM];
    double mean[DIM];
    make_keys(6, 0.2, 9);
    lode_shadow_h shadow = make_shadow(16, 4);
    for (uint32_t i = 0; i < DIM; i++)
        query[i] = gaussian(77, i);
    for (uint32_t head = 0; head < HEADS; head++) {
        lode_shadow_score(shadow, head, query, scores);
        for (uint64_t c = 0; c < lode_shadow_chunks(shadow); c++) {
            double right = 0, size = 0;
            least_cosine(head, c, mean);
            for (uint32_t i = 0; i < DIM; i++) {
                right += query[i] * mean[i];
                size += fabs(query[i] * mean[i]);
            }
            bool outlier = lode_shadow_is_outlier(shadow, head, c);
            cr_assert(outlier ? scores[c] == -INFINITY : fabs(scores[c] - right) <= size * 0x1p-8, "%g, not %g",
                      scores[c], right);
        }
    }
    lode_shadow_destroy(&shadow);
}

Test(shadow, bytes_are_those_of_the_paper)
{
    /* Llama 3.1 8B at 128K: 320 bytes of U a token, 16 a head of means; a chosen token fetches its V */
    lode_shadow_bytes_t b = lode_shadow_count_bytes(&lode_shadow_published, 8, 128, 131072);
    cr_assert(fabs(b.means - 256) < 2 && fabs(b.low_rank - 322.5) < 0.1 && b.fetched == 256);
    cr_assert(fabs(b.residents - (48 + 4) * 8 * 4096.0 / 131072) < 1e-9);
}

Test(shadow, what_does_not_fit_is_refused)
{
    const lode_ops_t *ops;
    lode_shadow_h shadow = NULL;
    lode_ops_get("auto", &ops);
    const lode_shadow_params_t wrong[] = {
        {0, 8, 1, 4}, {WIDTH + 1, 8, 1, 4}, {8, 0, 1, 4}, {8, 8, 22, 4}, {8, 8, 1, 25}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        cr_assert(lode_shadow_create(&wrong[i], ops, &rope, HEADS, DIM, keys, TOKENS, NULL, &shadow) ==
                      LODE_ERR_INVALID &&
                  shadow == NULL);
}

/* ----------------------------------------------------------------- budgets */

Test(budget, top_p_is_the_fewest_that_suffice)
{
    enum { N = 500 };
    float scores[N];
    uint64_t chosen[N], count;
    double weights = 0, before = 0;
    for (uint32_t i = 0; i < N; i++)
        weights += exp(scores[i] = 2 * gaussian(4, i));
    for (double share = 0.1; share < 1; share += 0.2) {
        double sum = 0;
        cr_assert(lode_top_p(scores, N, share, chosen, &count) == LODE_OK);
        for (uint64_t i = 0; i < count; i++) {
            cr_assert(i == 0 || scores[chosen[i]] <= scores[chosen[i - 1]]);
            before = sum;
            sum += exp(scores[chosen[i]]);
        }
        cr_assert(sum >= (1 - 1e-12) * share * weights && before < share * weights, "%g: %llu", share,
                  (unsigned long long)count);
    }
    cr_assert(lode_top_p(scores, N, 1, chosen, &count) == LODE_OK && count >= N - 1);
}

Test(budget, top_p_of_equals_goes_by_position)
{
    float scores[] = {1, -INFINITY, 1, 1};
    uint64_t chosen[4], count;
    cr_assert(lode_top_p(scores, 4, 0.5, chosen, &count) == LODE_OK);
    cr_assert(count == 2 && chosen[0] == 0 && chosen[1] == 2);
}

Test(budget, chance_favours_nobody)
{
    enum { N = 10, COUNT = 3, DRAWS = 20000 };
    uint64_t chosen[N], seen[N] = {0};
    for (uint64_t draw = 0; draw < DRAWS; draw++) {
        lode_by_chance(draw, N, COUNT, chosen);
        for (uint32_t i = 0; i < COUNT; i++) {
            cr_assert(chosen[i] < N && (i == 0 || chosen[i] > chosen[i - 1]));
            seen[chosen[i]]++;
        }
    }
    for (uint32_t i = 0; i < N; i++) /* 6000, give or take 65 */
        cr_assert(seen[i] > 5600 && seen[i] < 6400, "%u: %llu", i, (unsigned long long)seen[i]);
    lode_by_chance(1, N, N, chosen);
    for (uint32_t i = 0; i < N; i++)
        cr_assert(chosen[i] == i);
}

/* ------------------------------------------------------------------- places */

/* Three texts, each from position 100 on; keys of a low rank before rotation, whatever they are rotated to. */
Test(shadow, texts_at_the_same_positions_share_no_chunk)
{
    const uint64_t ends[] = {61, 130, TOKENS};
    const lode_shadow_params_t params = {12, 8, 2, 0};
    const lode_ops_t *ops;
    int64_t positions[TOKENS];
    lode_shadow_h shadow;
    make_keys(12, 0, 7);
    memcpy(keys, rows, sizeof keys);
    for (uint32_t t = 0; t < TOKENS; t++) {
        positions[t] = 100 + (int64_t)t - (t < 61 ? 0 : t < 130 ? 61 : 130);
        turn(keys + t * WIDTH, positions[t]);
    }
    lode_shadow_place_t place = {positions, ends, 3};
    cr_assert(lode_ops_get("auto", &ops) == LODE_OK);
    cr_assert(lode_shadow_create(&params, ops, &rope, HEADS, DIM, keys, TOKENS, &place, &shadow) == LODE_OK, "%s",
              lode_error_message());
    cr_assert(lode_shadow_chunks(shadow) == 8 + 9 + 10);
    cr_expect(lode_shadow_begin(shadow, 7) == 56 && lode_shadow_begin(shadow, 8) == 61);
    cr_expect(lode_shadow_begin(shadow, 17) == 130 && lode_shadow_begin(shadow, 27) == TOKENS);

    uint64_t all[TOKENS];
    static float rebuilt[TOKENS * DIM];
    double wrong = 0, size = 0;
    for (uint32_t t = 0; t < TOKENS; t++)
        all[t] = t;
    lode_shadow_rebuild(shadow, 1, all, TOKENS, rebuilt);
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t i = 0; i < DIM; i++) {
            double key = keys[t * WIDTH + DIM + i];
            wrong += (rebuilt[t * DIM + i] - key) * (rebuilt[t * DIM + i] - key);
            size += key * key;
        }
    cr_expect(sqrt(wrong / size) < 0.02, "%g: keys of this rank come back", sqrt(wrong / size));

    /* the last chunk of the first text is of five tokens alone */
    float query[DIM], scores[27];
    double mean = 0;
    for (uint32_t i = 0; i < DIM; i++) {
        query[i] = 1;
        for (uint32_t t = 56; t < 61; t++)
            mean += keys[t * WIDTH + i] / 5;
    }
    lode_shadow_score(shadow, 0, query, scores);
    cr_expect(lode_shadow_is_outlier(shadow, 0, 7) || fabs(scores[7] - mean) < 0.05 * (1 + fabs(mean)), "%g %g",
              scores[7], mean);
    lode_shadow_destroy(&shadow);
    lode_shadow_place_t lying = {positions, ends, 2};
    cr_expect(lode_shadow_create(&params, ops, &rope, HEADS, DIM, keys, TOKENS, &lying, &shadow) == LODE_ERR_INVALID);
}
