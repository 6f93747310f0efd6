/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file fetch.h
 * @brief What the files of `bench fetch` share.
 *
 * Rank 0 asks, rank 1 owns; other ranks only take part in creating the fabric. fetch_fabric.c fetches,
 * fetch_floor.c runs ucx_perftest, fetch_redis.c runs Redis, fetch_report.c prints, fetch.c puts the
 * slices of all of them in turns.
 */
#ifndef LODE_BENCH_FETCH_H
#define LODE_BENCH_FETCH_H

#include <sys/types.h>

#include "bench/job.h"
#include "cluster/cluster.h"
#include "kernels/kernels.h"

enum { LODE_FETCH_HEADS = 8, LODE_FETCH_PAGE_TOKENS = 64 };

typedef struct lode_fetch_bench {
    lode_options_t options;
    lode_job_t job;
    lode_config_h config;
    const lode_ops_t *ops;
    bool one_host;
    uint32_t slices, slice_ms, records, record_bytes;
    uint64_t batch_bytes, arena_bytes;
    uint32_t pages;       /**< in the owner's arena */
    uint32_t batch_pages; /**< in a fetch of whole pages */
    const char *json;
} lode_fetch_bench_t;

static inline size_t lode_fetch_page_bytes(const lode_fetch_bench_t *b)
{
    return (size_t)LODE_FETCH_HEADS * LODE_FETCH_PAGE_TOKENS * b->record_bytes;
}

/* ------------------------------------------------------------------ slices */

/** Slices of one thing: MB/s each, values that were wrong in what they brought. */
typedef struct lode_slices {
    double *rate;
    uint32_t count;
    uint64_t wrong;
    char skipped[192]; /**< why there are none, "" otherwise */
} lode_slices_t;

lode_status_t lode_slices_create(uint32_t room, lode_slices_t *slices);
void lode_slices_free(lode_slices_t *slices);
/** Median MB/s (10^6 bytes), 0 without slices. */
double lode_slices_median(const lode_slices_t *slices);

/** Wait for all ranks without taking the processor from those that measure. Collective. */
void lode_fetch_quiet_barrier(void);

/* ---------------------------------------------------------- fetch_fabric.c */

/** A fabric over one transport with one fetch path, and a requester's items. */
typedef struct lode_fetch_lane {
    lode_fetch_bench_t *bench;
    lode_fabric_h fabric;
    lode_fetch_item_t *items[2]; /**< of the two fetches under way */
    uint64_t turn;               /**< changes what is asked */
} lode_fetch_lane_t;

lode_status_t lode_fetch_lane_create(lode_fetch_bench_t *bench, lode_path_t path, lode_fetch_lane_t *lane);
void lode_fetch_lane_destroy(lode_fetch_lane_t *lane);
/** Rank 0: fetch whole pages, or scattered records, for one slice. */
lode_status_t lode_fetch_lane_slice(lode_fetch_lane_t *lane, bool scattered, lode_slices_t *slices);

/** The 64-bit word that stands at a byte offset (a multiple of 8) of the owner's arena. */
static inline uint64_t lode_fetch_word(uint64_t offset)
{
    return lode_mix(0x70616765, offset);
}

/* ----------------------------------------------------------- fetch_floor.c */

/**
 * One slice of `ucx_perftest -t test` between ranks 0 and 1, with messages of the reply size; nothing on others.
 * The first of a series only finds out how many @p iterations fill a slice.
 */
void lode_fetch_floor_slice(const lode_fetch_bench_t *bench, const char *test, uint32_t *iterations,
                            lode_slices_t *slices);

/* ----------------------------------------------------------------- children */

/** A TCP port of the loopback device that is free now. */
uint16_t lode_fetch_free_port(void);
/** Start a program, its output to @p out (−1: nowhere). @return its id, or −1. */
pid_t lode_fetch_spawn(char *const argv[], int out);
/** Wait until @p port listens, or the child ends, or 5 s are over. */
bool lode_fetch_listens(uint16_t port, pid_t child);
/** Wait for a child for at most @p ms, then end it. @return whether it ended by itself with 0. */
bool lode_fetch_reap(pid_t child, int ms);

/* ----------------------------------------------------------- fetch_redis.c */

typedef struct lode_fetch_redis {
    void *connection; /**< rank 0 */
    pid_t server;     /**< rank 1 */
    uint64_t turn;
} lode_fetch_redis_t;

/** On every rank: start it and store the pages. Says in slices->skipped why there is none. */
void lode_fetch_redis_create(const lode_fetch_bench_t *bench, lode_fetch_redis_t *redis, lode_slices_t *slices);
void lode_fetch_redis_destroy(lode_fetch_redis_t *redis);
/** Rank 0: one slice of MGET. */
lode_status_t lode_fetch_redis_slice(const lode_fetch_bench_t *bench, lode_fetch_redis_t *redis, lode_slices_t *slices);

/* ---------------------------------------------------------- fetch_report.c */

typedef struct lode_fetch_row {
    const char *what, *transport, *rival;
    const lode_slices_t *figure, *floor;
    double target; /**< least ratio; 0: none */
} lode_fetch_row_t;

/** Rank 0: print and write. */
lode_status_t lode_fetch_report(const lode_fetch_bench_t *bench, const lode_fetch_row_t *rows, size_t n);

#endif
