/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <stdlib.h>

#include "reader/reader.h"

TestSuite(sample, .timeout = 60);

/* weights 8 : 4 : 2 : 1 : 0 at temperature 1, in another order */
static const float logits[] = {0.6931472f, 2.0794415f, -INFINITY, 0, 1.3862944f};
enum { TOKENS = 5 };

static uint32_t first(const lode_sampling_t *sampling)
{
    uint64_t state = sampling->seed;
    return lode_sample(sampling, logits, TOKENS, &state);
}

Test(sample, greedy_takes_the_likeliest_and_of_equals_the_first)
{
    static const float equals[] = {-1, 3, 2, 3, 3};
    uint64_t state = 9;
    cr_assert(lode_sample(&(lode_sampling_t){.top_p = 1}, equals, 5, &state) == 1);
    cr_assert(state == 9);
    cr_assert(first(&(lode_sampling_t){.top_p = 1}) == 1);
}

Test(sample, one_choice_left_is_the_likeliest)
{
    for (uint64_t seed = 0; seed < 200; seed++) {
        cr_assert(first(&(lode_sampling_t){.temperature = 2, .top_p = 1, .top_k = 1, .seed = seed}) == 1);
        cr_assert(first(&(lode_sampling_t){.temperature = 1, .top_p = 0.5, .seed = seed}) == 1);
        cr_assert(first(&(lode_sampling_t){.temperature = 1e-6, .top_p = 1, .seed = seed}) == 1);
    }
}

static void count(const lode_sampling_t *sampling, int draws, int counts[TOKENS])
{
    uint64_t state = sampling->seed;
    for (int i = 0; i < TOKENS; i++)
        counts[i] = 0;
    for (int i = 0; i < draws; i++) {
        uint32_t token = lode_sample(sampling, logits, TOKENS, &state);
        cr_assert(token < TOKENS);
        counts[token]++;
    }
}

/* Six standard deviations. */
static void expect_share(int drawn, int draws, double share)
{
    double deviation = sqrt(draws * share * (1 - share));
    cr_expect(fabs(drawn - draws * share) <= 6 * deviation, "%d of %d, not %g", drawn, draws, share);
}

Test(sample, tokens_come_as_often_as_their_weights_say)
{
    enum { DRAWS = 20000 };
    int counts[TOKENS];
    count(&(lode_sampling_t){.temperature = 1, .top_p = 1, .seed = 3}, DRAWS, counts);
    expect_share(counts[1], DRAWS, 8 / 15.);
    expect_share(counts[4], DRAWS, 4 / 15.);
    expect_share(counts[0], DRAWS, 2 / 15.);
    expect_share(counts[3], DRAWS, 1 / 15.);
    cr_expect(counts[2] == 0);
    count(&(lode_sampling_t){.temperature = 0.5, .top_p = 1, .top_k = 2, .seed = 4}, DRAWS, counts);
    expect_share(counts[1], DRAWS, 64 / 80.);
    expect_share(counts[4], DRAWS, 16 / 80.);
    cr_expect(counts[0] + counts[2] + counts[3] == 0);
    count(&(lode_sampling_t){.temperature = 1, .top_p = 0.7, .seed = 5}, DRAWS, counts); /* 8 + 4 of 15 */
    expect_share(counts[1], DRAWS, 8 / 12.);
    expect_share(counts[4], DRAWS, 4 / 12.);
    cr_expect(counts[0] + counts[2] + counts[3] == 0);
}

/* A draw from many: as a walk down all of them, sorted, finds it. */
static int descending(const void *a, const void *b)
{
    const float *x = a, *y = b;
    return (*x < *y) - (*x > *y);
}

static uint32_t place_of(const float *many, uint32_t n, float value)
{
    uint32_t place = 0;
    for (uint32_t i = 0; i < n; i++)
        place += many[i] > value;
    return place;
}

Test(sample, of_many_the_likeliest_are_kept)
{
    enum { MANY = 5000 };
    static float many[MANY], sorted[MANY];
    for (uint32_t round = 0; round < 20; round++) {
        for (uint32_t i = 0; i < MANY; i++)
            many[i] = sorted[i] =
                (float)(lode_mix(round, i) >> 40) / (1 << 20); /* 0 to 16; two are hardly ever equal */
        qsort(sorted, MANY, sizeof *sorted, descending);
        double whole = 0, sum = 0;
        for (uint32_t i = 0; i < MANY; i++)
            whole += exp((double)(sorted[i] - sorted[0]));
        uint32_t kept = 0;
        while (sum < 0.6 * whole)
            sum += exp((double)(sorted[kept++] - sorted[0]));
        uint32_t most = 0, beyond = 0;
        uint64_t state = round;
        for (int i = 0; i < 300; i++) {
            uint32_t token = lode_sample(&(lode_sampling_t){.temperature = 1, .top_p = 0.6}, many, MANY, &state);
            uint32_t place = place_of(many, MANY, many[token]);
            most = place > most ? place : most;
            token = lode_sample(&(lode_sampling_t){.temperature = 1, .top_p = 1, .top_k = 7}, many, MANY, &state);
            beyond += place_of(many, MANY, many[token]) >= 7;
        }
        cr_expect(most < kept && most > kept / 4, "place %u, of %u kept", most, kept);
        cr_expect(beyond == 0);
    }
}

Test(sample, a_seed_repeats_its_tokens)
{
    lode_sampling_t sampling = {.temperature = 1, .top_p = 1};
    uint64_t a = 17, b = 17, c = 18;
    int differing = 0;
    for (int i = 0; i < 100; i++) {
        uint32_t token = lode_sample(&sampling, logits, TOKENS, &a);
        cr_assert(lode_sample(&sampling, logits, TOKENS, &b) == token);
        differing += lode_sample(&sampling, logits, TOKENS, &c) != token;
    }
    cr_assert(differing > 10);
}
