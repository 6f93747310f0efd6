/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file kernels_pool.h
 * @brief Threads for measuring, one a core, each bound to its own.
 */
#ifndef LODE_BENCH_KERNELS_POOL_H
#define LODE_BENCH_KERNELS_POOL_H

#include <hwloc.h>
#include <pthread.h>

#include "base/base.h"

enum { LODE_POOL_THREADS = 64 };

typedef void (*lode_pool_job_t)(void *context, uint32_t part, uint32_t parts);

typedef struct lode_pool_thread {
    struct lode_pool *pool;
    uint32_t number;
    pthread_t id;
    uint64_t spent_ns; /**< processor time of the last job */
} lode_pool_thread_t;

typedef struct lode_pool {
    hwloc_topology_t topology;
    pthread_barrier_t begin, end;
    lode_pool_thread_t threads[LODE_POOL_THREADS];
    uint32_t count, parts;
    lode_pool_job_t job; /**< NULL: leave */
    void *context;
} lode_pool_t;

/** Cores that this process may use, at most LODE_POOL_THREADS. */
uint32_t lode_pool_cores(void);
lode_status_t lode_pool_create(uint32_t threads, lode_pool_t *pool);
void lode_pool_destroy(lode_pool_t *pool);
/** Run a job on the first `parts` threads and wait for it. @return the longest processor time of one of them, ns. */
uint64_t lode_pool_run(lode_pool_t *pool, lode_pool_job_t job, void *context, uint32_t parts);

#endif
