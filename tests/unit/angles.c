/* SPDX-License-Identifier: Apache-2.0 */
/* Angles that are kept from step to step are those of the offset that is asked for. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "attend/angles.h"

static void check_angles(lode_angles_t *angles, const double *freq, uint32_t dim, int64_t offset)
{
    float right[LODE_MAX_DIM];
    uint32_t at = lode_angles_of(angles, freq, dim, offset);
    lode_rope_angles(freq, dim, -offset, right, right + dim / 2);
    cr_assert(at < angles->count);
    cr_assert(memcmp((float *)angles->table.data + (size_t)at * dim, right, dim * sizeof *right) == 0, "offset %lld",
              (long long)offset);
}

Test(angles, kept_ones_are_of_their_offset, .timeout = 100)
{
    lode_rope_t rope = {.theta = 10000};
    for (uint32_t dim = 64; dim <= 256; dim *= 2) {
        double freq[LODE_MAX_DIM / 2];
        lode_angles_t angles = {0};
        rope.theta *= 7; /* another rope has a table of its own */
        cr_assert(lode_rope_frequencies(&rope, dim, freq) == LODE_OK);
        for (uint64_t step = 0; step < 60; step++) {
            uint64_t more = 1 + lode_mix(step, dim) % 100;
            cr_assert(lode_angles_begin(&angles, dim, more, 500) == LODE_OK);
            for (uint64_t i = 0; i < more; i++) /* some again, of either sign and far apart */
                check_angles(&angles, freq, dim,
                             ((int64_t)(lode_mix(i, step % 7) % 4001) - 2000) * (INT64_C(1) << step % 20));
        }
        cr_assert(angles.count <= 600, "%u are kept", angles.count);
        lode_angles_free(&angles);
    }
}

/* The entries that a step has asked for stay where they are while it asks for more. */
Test(angles, indices_hold_through_a_step, .timeout = 100)
{
    enum { N = 3000, DIM = 64 };
    double freq[DIM / 2];
    lode_rope_t rope = {.theta = 10000};
    lode_angles_t angles = {0};
    cr_assert(lode_rope_frequencies(&rope, DIM, freq) == LODE_OK);
    for (int step = 0; step < 3; step++) {
        uint32_t *at = malloc(N * sizeof *at);
        cr_assert(lode_angles_begin(&angles, DIM, N, SIZE_MAX) == LODE_OK);
        for (uint32_t i = 0; i < N; i++)
            at[i] = lode_angles_of(&angles, freq, DIM, i % 1000 * 64 + step);
        for (uint32_t i = 0; i < N; i++)
            cr_assert_eq(lode_angles_of(&angles, freq, DIM, i % 1000 * 64 + step), at[i]);
        cr_assert_eq(angles.count, 1000 * (uint32_t)(step + 1));
        free(at);
    }
    lode_angles_free(&angles);
}
