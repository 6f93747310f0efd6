/* SPDX-License-Identifier: Apache-2.0 */
/* What a rank says of itself: totals, rates over the last seconds, percentiles of the latest steps. */
#include <stdlib.h>
#include <string.h>

#include "attend/device.h"

#define SECOND_NS UINT64_C(1000000000)

/* -------------------------------------------------------------------- meter */

static void count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static uint64_t look(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

/* The place of the running second, emptied of what it held a round ago. One thread writes. */
static lode_meter_second_t *this_second(lode_meter_t *meter, uint64_t second)
{
    lode_meter_second_t *at = &meter->seconds[second % LODE_METER_SECONDS];
    if (look(&at->second) != second) {
        atomic_store_explicit(&at->steps, 0, memory_order_relaxed);
        atomic_store_explicit(&at->fetched_bytes, 0, memory_order_relaxed);
        atomic_store_explicit(&at->second, second, memory_order_relaxed);
    }
    return at;
}

void lode_meter_step(lode_meter_t *meter, const lode_step_stats_t *stats)
{
    if (!stats) {
        count(&meter->failed_steps, 1);
        return;
    }
    lode_meter_second_t *second = this_second(meter, lode_now_ns() / SECOND_NS);
    count(&second->steps, 1);
    count(&second->fetched_bytes, stats->bytes_fetched);
    count(&meter->fetched_bytes, stats->bytes_fetched);
    uint64_t step = look(&meter->steps);
    atomic_store_explicit(&meter->latest_ns[step % LODE_METER_STEPS], stats->step_ns, memory_order_relaxed);
    count(&meter->steps, 1);
}

/* Over the full seconds that are over. */
static void rates(const lode_meter_t *meter, double *steps, double *fetched)
{
    uint64_t now = lode_now_ns() / SECOND_NS, all_steps = 0, all_bytes = 0;
    for (size_t i = 0; i < LODE_METER_SECONDS; i++) {
        uint64_t second = look(&meter->seconds[i].second);
        if (second >= now || second + LODE_METER_SECONDS <= now)
            continue;
        all_steps += look(&meter->seconds[i].steps);
        all_bytes += look(&meter->seconds[i].fetched_bytes);
    }
    *steps = (double)all_steps / (LODE_METER_SECONDS - 1);
    *fetched = (double)all_bytes / (LODE_METER_SECONDS - 1);
}

static int ascending(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof x);
    memcpy(&y, b, sizeof y);
    return x < y ? -1 : x > y;
}

static void percentiles(const lode_meter_t *meter, Lodemark__RankStats *message)
{
    uint64_t sorted[LODE_METER_STEPS], steps = look(&meter->steps);
    size_t n = steps < LODE_METER_STEPS ? (size_t)steps : LODE_METER_STEPS;
    if (n == 0)
        return;
    for (size_t i = 0; i < n; i++)
        sorted[i] = look(&meter->latest_ns[i]);
    qsort(sorted, n, sizeof *sorted, ascending);
    message->step_p50_ns = sorted[(n - 1) * 50 / 100];
    message->step_p90_ns = sorted[(n - 1) * 90 / 100];
    message->step_p99_ns = sorted[(n - 1) * 99 / 100];
    message->step_max_ns = sorted[n - 1];
}

/* ------------------------------------------------------------------ message */

void lode_serve_rank_stats(lode_cluster_h cluster, Lodemark__RankStats *message)
{
    lode_fabric_h fabric = cluster->fabric;
    lode_shard_usage_t usage = lode_shard_usage(cluster->shard);
    uint32_t blocks = 0;
    lodemark__rank_stats__init(message);
    lode_local_blocks(cluster, NULL, 0, &blocks);
    message->incarnation = lode_fabric_incarnation(fabric, lode_fabric_rank(fabric));
    message->epoch = lode_fabric_epoch(fabric);
    message->fenced = lode_fabric_fenced(fabric);
    message->uptime_ns = lode_now_ns() - cluster->started_ns;
    message->arena_bytes = usage.bytes;
    message->arena_used_bytes = usage.used_bytes;
    message->pages = usage.pages;
    message->landmark_bytes = lode_shaped(cluster) ? lode_store_used(cluster->store) : 0;
    message->blocks = blocks;
    lode_repair_stats_t repair;
    lode_repair_stats(cluster, &repair);
    message->filling = repair.filling;
    message->under_replicated_pages = repair.under_replicated;
    message->lost_pages = repair.lost;
    message->repaired_bytes = repair.copied_bytes;
    message->clients = look(&cluster->clients);
    message->steps = look(&cluster->meter.steps);
    message->failed_steps = look(&cluster->meter.failed_steps);
    message->fetched_bytes = look(&cluster->meter.fetched_bytes);
    rates(&cluster->meter, &message->steps_per_second, &message->fetched_bytes_per_second);
    lode_fabric_served(fabric, &message->served_bytes, &message->served_bytes_per_second);
    percentiles(&cluster->meter, message);
    lode_gpu_rank_stats(cluster, message);
}

static void stats_of(const Lodemark__RankStats *message, lode_rank_stats_t *stats)
{
    stats->alive = 1;
    lode_rank_numbers_unpack(message, stats);
}

void lode_rank_stats_here(lode_cluster_h cluster, lode_rank_stats_t *stats)
{
    Lodemark__RankStats message;
    uint32_t rank = lode_fabric_rank(cluster->fabric);
    lode_serve_rank_stats(cluster, &message);
    *stats = (lode_rank_stats_t){.rank = rank};
    memcpy(stats->host, lode_fabric_members(cluster->fabric)[rank].host, sizeof stats->host);
    stats_of(&message, stats);
}

/* --------------------------------------------------------------------- call */

typedef struct asked {
    bool done;
    lode_status_t status;
    char message[256];
    lode_rank_stats_t *stats;
} asked_t;

static void answered(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply)
{
    asked_t *asked = context;
    (void)from;
    asked->done = true;
    asked->status = status;
    if (status == LODE_OK && reply->rank_stats)
        stats_of(reply->rank_stats, asked->stats);
    else
        snprintf(asked->message, sizeof asked->message, "%s", lode_error_message());
}

lode_status_t lode_local_rank_stats(lode_cluster_h cluster, uint32_t rank, lode_rank_stats_t *stats)
{
    lode_fabric_h fabric = cluster->fabric;
    if (rank >= lode_fabric_ranks(fabric))
        return lode_fail(LODE_ERR_INVALID, "rank %u of %u", rank, lode_fabric_ranks(fabric));
    lode_rank_stats_t made = {.rank = rank};
    memcpy(made.host, lode_fabric_members(fabric)[rank].host, sizeof made.host);
    asked_t asked = {.stats = &made};
    Lodemark__RankStatsAsk ask = LODEMARK__RANK_STATS_ASK__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    call.body_case = LODEMARK__CALL__BODY_RANK_STATS;
    call.rank_stats = &ask;
    lode_status_t status = lode_fabric_alive(fabric, rank)
                               ? lode_fabric_call(fabric, rank, &call, NULL, 0, answered, &asked)
                               : LODE_ERR_PEER_LOST;
    if (status == LODE_OK) {
        lode_fabric_calls_wait(fabric);
        status = asked.status;
    }
    if (status != LODE_OK && status != LODE_ERR_PEER_LOST) /* a lost rank is an answer too */
        return asked.done ? lode_fail(status, "%s", asked.message) : status;
    *stats = made;
    return LODE_OK;
}
