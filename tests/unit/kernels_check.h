/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file kernels_check.h
 * @brief One harness for all kernel tests: every level, every kind of input, guarded buffers, a seed that is printed.
 *
 * LODEMARK_TEST_SEED=n repeats a failing run. A level that this processor lacks is a skipped test, not a passed one.
 */
#ifndef LODE_KERNELS_CHECK_H
#define LODE_KERNELS_CHECK_H

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/internal.h"
#include "tests/rounds.h"

typedef enum kind { RANDOM, ALL_LOW, ALL_HIGH, DENORMAL, OUTLIER, ZERO, CHANNEL, KINDS } kind_t;

extern const char *const kind_names[KINDS];
extern const uint32_t check_dims[3];
extern const uint32_t check_groups[7];

/** The state of the random numbers; a test begins from the seed. */
extern uint64_t check_state;
/** What this run was seeded with. */
uint64_t check_seed(void);
double check_uniform(void); /* (0, 1) */
double check_gaussian(void);
uint32_t check_below(uint32_t n);

/** Fill x (n) with numbers of one kind. */
void check_fill(kind_t kind, float *x, size_t n);

#define GUARD_BYTES 64
#define POISON 0xa5

/** A poisoned buffer with poison before it and, unless AddressSanitizer watches its exact end, behind it. */
typedef struct guarded {
    uint8_t *at;
    size_t bytes;
    uint8_t *allocation;
} guarded_t;

/** @param skew  bytes off a 16-byte boundary */
guarded_t guarded_make(size_t bytes, size_t skew);
/** Check the poison around the buffer and free it. */
void guarded_free(guarded_t *buffer);

/** The scalar table. */
const lode_ops_t *check_scalar(void);
/** Run a check on one level, or skip the test. */
void check_on(const char *level, void (*check)(const lode_ops_t *ops));

/**
 * Run a check on a level whose new instructions are replaced by plain C of what they are documented to do: the level
 * below, with the functions that the level brings, compiled for emulation. Needs AVX-512 itself.
 */
void check_emulated(const char *level, void (*check)(const lode_ops_t *ops));

/** Tests of the levels above avx512, on this processor if it has them and emulated, of a check that concerns them. */
#define TEST_NEWER_LEVELS(suite, check)                      \
    Test(suite, check##_avx512vnni, .timeout = 100)          \
    {                                                        \
        check_on("avx512vnni", check);                       \
    }                                                        \
    Test(suite, check##_avx512vbmi, .timeout = 100)          \
    {                                                        \
        check_on("avx512vbmi", check);                       \
    }                                                        \
    Test(suite, check##_amx, .timeout = 100)                 \
    {                                                        \
        check_on("amx", check);                              \
    }                                                        \
    Test(suite, check##_avx512vnni_emulated, .timeout = 100) \
    {                                                        \
        check_emulated("avx512vnni", check);                 \
    }                                                        \
    Test(suite, check##_avx512vbmi_emulated, .timeout = 100) \
    {                                                        \
        check_emulated("avx512vbmi", check);                 \
    }                                                        \
    Test(suite, check##_amx_emulated, .timeout = 100)        \
    {                                                        \
        check_emulated("amx", check);                        \
    }

/** Three tests of one check: one a level. */
#define TEST_LEVELS(suite, check)               \
    Test(suite, check##_scalar, .timeout = 100) \
    {                                           \
        check_on("scalar", check);              \
    }                                           \
    Test(suite, check##_avx2, .timeout = 100)   \
    {                                           \
        check_on("avx2", check);                \
    }                                           \
    Test(suite, check##_avx512, .timeout = 100) \
    {                                           \
        check_on("avx512", check);              \
    }

#define expect(condition, format, ...)                                                                         \
    cr_assert(condition, "%s; LODEMARK_TEST_SEED=%llu: " format, #condition, (unsigned long long)check_seed(), \
              __VA_ARGS__)

#endif
