/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file rounds.h
 * @brief How often tests repeat themselves. A sanitizer makes each round many times as slow and looks at addresses,
 * which hardly depend on numbers: there, chances and mixtures of values are left to the other builds.
 */
#ifndef LODE_TESTS_ROUNDS_H
#define LODE_TESTS_ROUNDS_H

#ifdef LODE_SANITIZED
#define ROUNDS(n) (((n) + 9) / 10)    /**< so often, or a tenth of it */
#define ONE_OF(n, i) ((i) % (n) == 0) /**< whether to try case i: all of them, or each n-th */
#else
#define ROUNDS(n) (n)
#define ONE_OF(n, i) ((void)(i), (n) > 0)
#endif

#endif
