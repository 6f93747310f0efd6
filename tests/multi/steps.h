/* SPDX-License-Identifier: Apache-2.0 */
/** What plain MPI programs that take steps share. */
#ifndef LODE_TESTS_STEPS_H
#define LODE_TESTS_STEPS_H

#include <mpi.h>
#include <stdio.h>

#include "base/base.h"

#define MUST(call)                                                                                     \
    do {                                                                                               \
        lode_status_t status_ = (call);                                                                \
        if (status_ != LODE_OK) {                                                                      \
            fprintf(stderr, "%s: %s: %s\n", #call, lode_status_string(status_), lode_error_message()); \
            MPI_Abort(MPI_COMM_WORLD, 1);                                                              \
        }                                                                                              \
    } while (0)

static inline float value_at(uint64_t seed, uint64_t i)
{
    return (float)((int64_t)(lode_mix(seed, i) >> 40) - (1 << 23)) * (2.0f / (1 << 23));
}

#endif
