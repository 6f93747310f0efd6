/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "launch/stat.h"

/* An arena this full may refuse the next page; hashing is uneven. */
static const double nearly_full = 0.95;

/* ------------------------------------------------------------------ totals */

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static bool first_of_host(const lode_stat_t *stat, uint32_t rank)
{
    for (uint32_t i = 0; i < rank; i++)
        if (stat->rank[i].alive && strcmp(stat->rank[i].host, stat->rank[rank].host) == 0)
            return false;
    return true;
}

static void add_rank(lode_stat_t *stat, uint32_t rank)
{
    const lode_rank_stats_t *r = &stat->rank[rank];
    lode_rank_stats_t *t = &stat->total;
    t->arena_bytes += r->arena_bytes;
    t->arena_used_bytes += r->arena_used_bytes;
    t->pages += r->pages;
    t->landmark_bytes += first_of_host(stat, rank) ? r->landmark_bytes : 0;
    t->repaired_bytes += r->repaired_bytes;
    t->clients += r->clients;
    t->steps += r->steps;
    t->failed_steps += r->failed_steps;
    t->steps_per_second += r->steps_per_second;
    t->fetched_bytes += r->fetched_bytes;
    t->served_bytes += r->served_bytes;
    t->device |= r->device;
    t->device_landmark_bytes += r->device_landmark_bytes;
    t->device_cache_bytes += r->device_cache_bytes;
    t->device_looked += r->device_looked;
    t->device_hits += r->device_hits;
    t->fetched_bytes_per_second += r->fetched_bytes_per_second;
    t->served_bytes_per_second += r->served_bytes_per_second;
    t->blocks = larger(t->blocks, r->blocks);
    t->under_replicated_pages = larger(t->under_replicated_pages, r->under_replicated_pages);
    t->lost_pages = larger(t->lost_pages, r->lost_pages);
    t->step_p50_ns = larger(t->step_p50_ns, r->step_p50_ns);
    t->step_p90_ns = larger(t->step_p90_ns, r->step_p90_ns);
    t->step_p99_ns = larger(t->step_p99_ns, r->step_p99_ns);
    t->step_max_ns = larger(t->step_max_ns, r->step_max_ns);
}

/* ---------------------------------------------------------------- judgement */

/* Append a sentence, behind a semicolon if it is not the first. */
static void say(char *text, size_t room, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void say(char *text, size_t room, const char *format, ...)
{
    size_t used = strlen(text);
    if (used && used + 3 < room)
        used += (size_t)snprintf(text + used, room - used, "; ");
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, room - used, format, arguments);
    va_end(arguments);
}

static void judge_rank(lode_stat_t *stat, uint32_t rank)
{
    const lode_rank_stats_t *r = &stat->rank[rank];
    if (stat->mute[rank])
        say(stat->trouble, sizeof stat->trouble,
            "rank %u does not answer: it hangs or is cut off, and is given up when it stays silent", rank);
    else if (r->fenced)
        say(stat->trouble, sizeof stat->trouble,
            "rank %u on %s is cut off from the others and takes no changes: look at its network", rank, r->host);
    else if (r->filling)
        say(stat->note, sizeof stat->note, "rank %u joined lately and is being filled", rank);
    if (r->alive && r->arena_bytes && (double)r->arena_used_bytes > nearly_full * (double)r->arena_bytes)
        say(stat->note, sizeof stat->note,
            "the arena of rank %u is %.0f %% full: remove blocks, or start with a larger --arena", rank,
            100 * (double)r->arena_used_bytes / (double)r->arena_bytes);
}

static void judge_lost(lode_stat_t *stat)
{
    char list[128] = "";
    uint32_t lost = 0;
    for (uint32_t rank = 0; rank < stat->ranks; rank++) {
        const lode_rank_stats_t *r = &stat->rank[rank];
        size_t used = strlen(list);
        if (r->alive || stat->mute[rank])
            continue;
        snprintf(list + used, sizeof list - used, "%s%u%s%s", lost++ ? ", " : "", rank, *r->host ? " on " : "",
                 r->host);
    }
    if (lost)
        say(stat->trouble, sizeof stat->trouble,
            "rank%s %s %s lost: put %s in %s place by lodemarkd --join, or go on without", lost > 1 ? "s" : "", list,
            lost > 1 ? "are" : "is", lost > 1 ? "processes" : "a process", lost > 1 ? "their" : "its");
    if (lost && !stat->total.lost_pages && !stat->total.under_replicated_pages)
        say(stat->trouble, sizeof stat->trouble, "every page has its owners");
}

static void judge(lode_stat_t *stat)
{
    judge_lost(stat);
    for (uint32_t rank = 0; rank < stat->ranks; rank++)
        judge_rank(stat, rank);
    if (stat->total.lost_pages)
        say(stat->trouble, sizeof stat->trouble,
            "%" PRIu64 " pages have no living owner: put their blocks again, with more --replicas",
            stat->total.lost_pages);
    else if (stat->total.under_replicated_pages)
        say(stat->trouble, sizeof stat->trouble,
            "%" PRIu64 " pages have fewer owners than asked for: copying goes on while the service is idle",
            stat->total.under_replicated_pages);
}

/* --------------------------------------------------------------------- take */

static lode_status_t ask(lode_client_t *client, lode_stat_t *stat)
{
    for (uint32_t rank = 0; rank < stat->ranks; rank++) {
        lode_status_t status = lode_cluster_rank_stats(client->cluster, rank, &stat->rank[rank]);
        stat->rank[rank].rank = rank;
        stat->mute[rank] = status == LODE_ERR_TIMEOUT;
        if (status != LODE_OK && status != LODE_ERR_TIMEOUT)
            return lode_fail_within(status, "statistics of rank %u: ", rank);
        if (!stat->rank[rank].alive)
            continue;
        stat->alive++;
        stat->epoch = stat->rank[rank].epoch > stat->epoch ? stat->rank[rank].epoch : stat->epoch;
    }
    for (uint32_t rank = 0; rank < stat->ranks; rank++)
        if (stat->rank[rank].alive)
            add_rank(stat, rank);
    stat->total.epoch = stat->epoch;
    return LODE_OK;
}

lode_status_t lode_stat_take(lode_client_t *client, lode_stat_t *stat)
{
    lode_cluster_info_t info;
    LODE_TRY(lode_cluster_query(client->cluster, &info));
    lode_stat_t made = {.ranks = info.ranks, .epoch = info.epoch};
    made.rank = calloc(info.ranks, sizeof *made.rank);
    made.mute = calloc(info.ranks, sizeof *made.mute);
    lode_status_t status = LODE_OK;
    if (!made.rank || !made.mute)
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for the statistics of %u ranks", info.ranks);
    if (status == LODE_OK)
        status = ask(client, &made);
    if (status != LODE_OK) {
        lode_stat_free(&made);
        return status;
    }
    judge(&made);
    *stat = made;
    return LODE_OK;
}

void lode_stat_free(lode_stat_t *stat)
{
    free(stat->rank);
    free(stat->mute);
    memset(stat, 0, sizeof *stat);
}
