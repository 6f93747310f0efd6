/* SPDX-License-Identifier: Apache-2.0 */
#include "cluster/fabric_inside.h"

uint32_t lode_fabric_rank(lode_fabric_h fabric)
{
    return fabric->rank;
}

uint32_t lode_fabric_ranks(lode_fabric_h fabric)
{
    return fabric->ranks;
}

uint32_t lode_fabric_capacity(lode_fabric_h fabric)
{
    return fabric->ranks;
}

uint32_t lode_fabric_incarnation(lode_fabric_h fabric, uint32_t rank)
{
    return rank < fabric->ranks;
}

bool lode_fabric_fenced(lode_fabric_h fabric)
{
    (void)fabric; /* without heartbeats nobody is */
    return false;
}

bool lode_fabric_expelled(lode_fabric_h fabric)
{
    (void)fabric;
    return false;
}

const lode_member_t *lode_fabric_members(lode_fabric_h fabric)
{
    return fabric->members;
}

bool lode_fabric_alive(lode_fabric_h fabric, uint32_t rank)
{
    return rank < fabric->ranks && atomic_load_explicit(&fabric->alive[rank], memory_order_acquire);
}

uint32_t lode_fabric_alive_count(lode_fabric_h fabric)
{
    return fabric->ranks - atomic_load(&fabric->lost);
}

bool lode_fabric_intact(lode_fabric_h fabric)
{
    return atomic_load(&fabric->lost) == 0;
}

void lode_fabric_link_stats(lode_fabric_h fabric, uint32_t rank, lode_link_stats_t *stats)
{
    *stats = (lode_link_stats_t){0};
    if (rank >= fabric->ranks || rank == fabric->rank)
        return;
    stats->bytes_in = atomic_load_explicit(&fabric->peers[rank].bytes_in, memory_order_relaxed);
    stats->calls = atomic_load_explicit(&fabric->peers[rank].calls, memory_order_relaxed);
}

uint32_t lode_fabric_epoch(lode_fabric_h fabric)
{
    return atomic_load(&fabric->epoch);
}

uint32_t lode_fabric_leader(lode_fabric_h fabric)
{
    for (uint32_t r = 0; r < fabric->rank; r++) {
        if (lode_fabric_alive(fabric, r))
            return r;
    }
    return fabric->rank;
}

uint32_t lode_fabric_keeper(lode_fabric_h fabric, uint32_t rank)
{
    uint32_t share = fabric->cards[rank].share;
    for (uint32_t r = share; r < fabric->ranks; r++) {
        if (fabric->cards[r].share == share && lode_fabric_alive(fabric, r))
            return r;
    }
    return rank; /* all of them are lost; asking any says so */
}

const char *lode_fabric_path(lode_fabric_h fabric, const char **reason)
{
    if (reason)
        *reason = fabric->path_reason;
    return fabric->path;
}

void *lode_fabric_arena(lode_fabric_h fabric)
{
    return fabric->arena.base;
}

size_t lode_fabric_landing_bytes(lode_fabric_h fabric)
{
    return fabric->landing.bytes / LODE_LANDINGS;
}

/* The epoch moves before the count: who sees the count move sees the epoch that goes with it. */
void fabric_member_lost(lode_fabric_h fabric, uint32_t rank, const char *cause)
{
    if (!atomic_exchange(&fabric->alive[rank], false))
        return;
    uint32_t epoch = atomic_fetch_add(&fabric->epoch, 1) + 1;
    uint32_t left = fabric->ranks - atomic_fetch_add(&fabric->lost, 1) - 1;
    if (atomic_load(&fabric->leaving) || atomic_load(&fabric->goodbye[rank]))
        lode_debug("rank %u (%s) has left: %s", rank, fabric->members[rank].host, cause);
    else
        lode_warn("rank %u (%s) is lost: %s; epoch %u, %u of %u ranks left", rank, fabric->members[rank].host, cause,
                  epoch, left, fabric->ranks);
}
