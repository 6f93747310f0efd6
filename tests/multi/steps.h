/* SPDX-License-Identifier: Apache-2.0 */
/** What plain MPI programs that take steps share. */
#ifndef LODE_TESTS_STEPS_H
#define LODE_TESTS_STEPS_H

#include <mpi.h>
#include <stdio.h>

#include "base/base.h"

static inline int rank_here(void)
{
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

/** Without this the test cannot go on. */
#define MUST(call)                                                                          \
    do {                                                                                    \
        lode_status_t status_ = (call);                                                     \
        if (status_ != LODE_OK) {                                                           \
            fprintf(stderr, "rank %d, line %d: %s: %s: %s\n", rank_here(), __LINE__, #call, \
                    lode_status_string(status_), lode_error_message());                     \
            MPI_Abort(MPI_COMM_WORLD, 1);                                                   \
        }                                                                                   \
    } while (0)

/** What does not hold is counted in the program's `failures`, which ranks agree on at the end: a rank that stopped here
 * would leave the others waiting. After the condition: a format and its values, if there is more to say. */
#define CHECK(condition, ...)                                                             \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            failures++;                                                                   \
            fprintf(stderr, "rank %d, line %d: %s: ", rank_here(), __LINE__, #condition); \
            fprintf(stderr, "" __VA_ARGS__);                                              \
            fprintf(stderr, "; last error: %s\n", lode_error_message());                  \
        }                                                                                 \
    } while (0)

/** Options of a cluster, each followed by its value, NULL at the end; none if that is NULL. */
static inline void config_take(lode_config_h config, const char *const *settings)
{
    for (; settings && *settings; settings += 2)
        MUST(lode_config_set(config, settings[0], settings[1]));
}

/** Join with some settings, and then others. Collective. */
static inline lode_status_t join_by(const lode_geometry_t *geometry, const char *const *first,
                                    const char *const *others, lode_cluster_h *cluster)
{
    lode_config_h config;
    MUST(lode_config_create(&config));
    config_take(config, first);
    config_take(config, others);
    lode_status_t status = lode_cluster_join(config, geometry, cluster);
    lode_config_destroy(&config);
    return status;
}

static inline float value_at(uint64_t seed, uint64_t i)
{
    return (float)((int64_t)(lode_mix(seed, i) >> 40) - (1 << 23)) * (2.0f / (1 << 23));
}

#endif
