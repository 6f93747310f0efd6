/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "bench/kernels_pool.h"

static uint64_t spent_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A thread that may not be bound is measured where it is. */
static void bind_to_core(const lode_pool_thread_t *thread)
{
    hwloc_topology_t topology = thread->pool->topology;
    int cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
    hwloc_obj_t core =
        cores > 0 ? hwloc_get_obj_by_type(topology, HWLOC_OBJ_CORE, thread->number % (unsigned)cores) : NULL;
    if (core)
        hwloc_set_cpubind(topology, core->cpuset, HWLOC_CPUBIND_THREAD);
}

static void *serve(void *argument)
{
    lode_pool_thread_t *thread = argument;
    lode_pool_t *pool = thread->pool;
    bind_to_core(thread);
    for (;;) {
        pthread_barrier_wait(&pool->begin);
        if (!pool->job)
            return NULL;
        thread->spent_ns = 0;
        if (thread->number < pool->parts) {
            uint64_t begin = spent_ns();
            pool->job(pool->context, thread->number, pool->parts);
            thread->spent_ns = spent_ns() - begin;
        }
        pthread_barrier_wait(&pool->end);
    }
}

static lode_status_t load_topology(hwloc_topology_t *topology)
{
    if (hwloc_topology_init(topology))
        return lode_fail(LODE_ERR_INTERNAL, "hwloc could not be started");
    if (hwloc_topology_load(*topology)) {
        hwloc_topology_destroy(*topology);
        return lode_fail(LODE_ERR_INTERNAL, "hwloc could not read this machine's topology");
    }
    return LODE_OK;
}

uint32_t lode_pool_cores(void)
{
    hwloc_topology_t topology;
    if (load_topology(&topology) != LODE_OK)
        return 1;
    int cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
    hwloc_topology_destroy(topology);
    return cores < 1 ? 1 : cores > LODE_POOL_THREADS ? LODE_POOL_THREADS : (uint32_t)cores;
}

lode_status_t lode_pool_create(uint32_t threads, lode_pool_t *pool)
{
    memset(pool, 0, sizeof *pool);
    LODE_TRY(load_topology(&pool->topology));
    pthread_barrier_init(&pool->begin, NULL, threads + 1);
    pthread_barrier_init(&pool->end, NULL, threads + 1);
    for (uint32_t i = 0; i < threads; i++) {
        pool->threads[i] = (lode_pool_thread_t){.pool = pool, .number = i};
        if (pthread_create(&pool->threads[i].id, NULL, serve, &pool->threads[i])) /* those that wait end with us */
            return lode_fail(LODE_ERR_NO_MEMORY, "thread %u of %u could not be started", i + 1, threads);
        pool->count++;
    }
    return LODE_OK;
}

void lode_pool_destroy(lode_pool_t *pool)
{
    if (!pool->count)
        return;
    pool->job = NULL;
    pthread_barrier_wait(&pool->begin);
    for (uint32_t i = 0; i < pool->count; i++)
        pthread_join(pool->threads[i].id, NULL);
    pthread_barrier_destroy(&pool->begin);
    pthread_barrier_destroy(&pool->end);
    hwloc_topology_destroy(pool->topology);
    pool->count = 0;
}

uint64_t lode_pool_run(lode_pool_t *pool, lode_pool_job_t job, void *context, uint32_t parts)
{
    uint64_t longest = 0;
    pool->job = job;
    pool->context = context;
    pool->parts = parts;
    pthread_barrier_wait(&pool->begin);
    pthread_barrier_wait(&pool->end);
    for (uint32_t i = 0; i < parts; i++)
        longest = pool->threads[i].spent_ns > longest ? pool->threads[i].spent_ns : longest;
    return longest;
}
