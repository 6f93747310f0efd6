/* SPDX-License-Identifier: Apache-2.0 */
/* Rotary frequencies and angles. */
#include "kernels_check.h"

static const lode_rope_t plain = {.theta = 500000, .scaling = LODE_ROPE_PLAIN};
static const lode_rope_t llama3 = {.theta = 500000,
                                   .scaling = LODE_ROPE_LLAMA3,
                                   .factor = 8,
                                   .low_freq_factor = 1,
                                   .high_freq_factor = 4,
                                   .original_context = 8192};
static const lode_rope_t yarn = {.theta = 1000000,
                                 .scaling = LODE_ROPE_YARN,
                                 .factor = 4,
                                 .beta_fast = 32,
                                 .beta_slow = 1,
                                 .original_context = 32768};

static void close_to(double got, double right, uint32_t i)
{
    cr_assert(fabs(got - right) <= 1e-12 * right, "pair %u: %.17g, not %.17g", i, got, right);
}

Test(rope, plain_and_linear, .timeout = 20)
{
    double freq[128];
    lode_rope_t linear = {.theta = 10000, .scaling = LODE_ROPE_LINEAR, .factor = 4};
    for (int d = 0; d < 3; d++) {
        uint32_t dim = check_dims[d];
        cr_assert(lode_rope_frequencies(&plain, dim, freq) == LODE_OK);
        for (uint32_t i = 0; i < dim / 2; i++)
            close_to(freq[i], (double)expl(-2.0L * i / dim * logl(500000)), i);
        cr_assert(lode_rope_frequencies(&linear, dim, freq) == LODE_OK);
        for (uint32_t i = 0; i < dim / 2; i++)
            close_to(freq[i], (double)(expl(-2.0L * i / dim * logl(10000)) / 4), i);
    }
}

/* Llama 3.1, D = 128: pairs 0 to 28 keep their frequency, 29 to 34 lie on the ramp, 35 and up are divided by 8.
 * The numbers on the ramp were worked out apart from this code, with 50 digits. */
Test(rope, llama3, .timeout = 20)
{
    double freq[64], kept[64];
    cr_assert(lode_rope_frequencies(&llama3, 128, freq) == LODE_OK);
    cr_assert(lode_rope_frequencies(&plain, 128, kept) == LODE_OK);
    for (uint32_t i = 0; i < 64; i++) {
        long double waves = 8192 / (2 * 3.14159265358979323846264338327950288L) * (long double)kept[i];
        if (waves > 4)
            close_to(freq[i], kept[i], i);
        else if (waves < 1)
            close_to(freq[i], kept[i] / 8, i);
    }
    static const struct {
        uint32_t pair;
        double freq;
    } known[] = {{0, 1.00000000000000000e+00},  {28, 3.21144599475259090e-03}, {29, 2.16657076350335867e-03},
                 {30, 1.37189356776113813e-03}, {31, 8.56751412919632077e-04}, {32, 5.24846160992954681e-04},
                 {33, 3.12693750384065116e-04}, {34, 1.78507812767996410e-04}, {35, 9.55621235396468327e-05},
                 {63, 3.06892598891451108e-07}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        close_to(freq[known[i].pair], known[i].freq, known[i].pair);
}

/* Qwen 3's published setting, D = 128. */
Test(rope, yarn, .timeout = 20)
{
    double freq[64];
    cr_assert(lode_rope_frequencies(&yarn, 128, freq) == LODE_OK);
    static const struct {
        uint32_t pair;
        double freq;
    } known[] = {{0, 1.00000000000000000e+00},  {22, 8.65964323360065430e-03}, {23, 6.97830584859866331e-03},
                 {24, 5.37532149079010188e-03}, {28, 1.84827656470687831e-03}, {32, 6.02941176470588210e-04},
                 {36, 1.79841155873954208e-04}, {39, 6.49039432083702928e-05}, {40, 4.44569852509730674e-05},
                 {41, 3.58253142559240685e-05}, {63, 3.10234440187929882e-07}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        close_to(freq[known[i].pair], known[i].freq, known[i].pair);
}

Test(rope, bad_parameters, .timeout = 20)
{
    double freq[128];
    lode_rope_t bad = plain;
    bad.theta = 0;
    cr_assert(lode_rope_frequencies(&bad, 128, freq) == LODE_ERR_INVALID);
    bad.theta = NAN;
    cr_assert(lode_rope_frequencies(&bad, 128, freq) == LODE_ERR_INVALID);
    cr_assert(lode_rope_frequencies(&plain, 127, freq) == LODE_ERR_INVALID);
    cr_assert(lode_rope_frequencies(&plain, 0, freq) == LODE_ERR_INVALID);
    bad = llama3;
    bad.factor = 0;
    cr_assert(lode_rope_frequencies(&bad, 128, freq) == LODE_ERR_INVALID);
    bad = llama3;
    bad.high_freq_factor = bad.low_freq_factor;
    cr_assert(lode_rope_frequencies(&bad, 128, freq) == LODE_ERR_INVALID);
    bad = yarn;
    bad.original_context = 0;
    cr_assert(lode_rope_frequencies(&bad, 128, freq) == LODE_ERR_INVALID);
    bad.scaling = (lode_rope_scaling_t)9;
    cr_assert(lode_rope_frequencies(&bad, 128, freq) == LODE_ERR_INVALID);
}

/* Positions up to four million, against long double. */
Test(rope, angles, .timeout = 60)
{
    double freq[128];
    float cosine[128], sine[128];
    check_state = check_seed();
    for (int d = 0; d < 3; d++)
        for (int i = 0; i < 400; i++) {
            uint32_t dim = check_dims[d];
            int64_t delta = i == 0 ? 0 : i == 1 ? 4194304 : i == 2 ? -4194304 : (int64_t)check_below(8388608) - 4194304;
            cr_assert(lode_rope_frequencies(&plain, dim, freq) == LODE_OK);
            lode_rope_angles(freq, dim, delta, cosine, sine);
            for (uint32_t j = 0; j < dim / 2; j++) {
                long double angle = (long double)delta * (long double)freq[j];
                expect(fabsl(cosine[j] - cosl(angle)) < 1e-7L && fabsl(sine[j] - sinl(angle)) < 1e-7L,
                       "dim %u delta %lld pair %u", dim, (long long)delta, j);
            }
        }
}
