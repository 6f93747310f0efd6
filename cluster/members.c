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
    return fabric->capacity;
}

uint32_t lode_fabric_incarnation(lode_fabric_h fabric, uint32_t rank)
{
    return rank < fabric->ranks ? atomic_load_explicit(&fabric->incarnations[rank], memory_order_acquire) : 0;
}

bool lode_fabric_lives_since(lode_fabric_h fabric, uint32_t rank, uint32_t epoch)
{
    if (rank >= fabric->ranks || !lode_fabric_alive(fabric, rank))
        return false;
    pthread_mutex_lock(&fabric->slots_lock);
    bool since = fabric->slots[rank].joined <= epoch;
    pthread_mutex_unlock(&fabric->slots_lock);
    return since;
}

bool fabric_is_current(lode_fabric_h fabric, uint32_t rank, uint32_t incarnation)
{
    return lode_fabric_incarnation(fabric, rank) == (incarnation ? incarnation : 1);
}

bool lode_fabric_fenced(lode_fabric_h fabric)
{
    return fabric->params.beat_ms > 0 && lode_now_ns() > atomic_load(&fabric->lease_until_ns);
}

bool lode_fabric_expelled(lode_fabric_h fabric)
{
    return atomic_load(&fabric->expelled);
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
    uint32_t count = 0;
    for (uint32_t r = 0; r < fabric->ranks; r++)
        count += lode_fabric_alive(fabric, r);
    return count;
}

bool lode_fabric_intact(lode_fabric_h fabric)
{
    return fabric->born > 0 && atomic_load(&fabric->lost) == 0 && !lode_fabric_expelled(fabric);
}

void lode_fabric_link_stats(lode_fabric_h fabric, uint32_t rank, lode_link_stats_t *stats)
{
    *stats = (lode_link_stats_t){0};
    if (rank >= fabric->ranks || rank == fabric->rank)
        return;
    uint64_t heard = atomic_load_explicit(&fabric->heard_ns[rank], memory_order_relaxed), now = lode_now_ns();
    stats->bytes_in = atomic_load_explicit(&fabric->peers[rank].bytes_in, memory_order_relaxed);
    stats->calls = atomic_load_explicit(&fabric->peers[rank].calls, memory_order_relaxed);
    if (heard > 0 && fabric->params.beat_ms > 0)
        stats->heard_ms = now > heard ? (uint32_t)((now - heard) / 1000000u) : 0;
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
    uint64_t share = atomic_load(&fabric->share[rank]);
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        if (atomic_load(&fabric->share[r]) == share && lode_fabric_alive(fabric, r))
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

void *lode_fabric_landings(lode_fabric_h fabric, size_t *bytes)
{
    *bytes = fabric->landing.bytes;
    return fabric->landing.base;
}

size_t lode_fabric_landing_bytes(lode_fabric_h fabric)
{
    return fabric->landing.bytes / LODE_LANDINGS;
}

/* What is reported last counts, but a certain end stays one. */
static void report(lode_fabric_h fabric, uint32_t rank, uint32_t incarnation, bool certain)
{
    uint64_t kind = certain ? 2 : 1, old = atomic_load(&fabric->reports[rank]);
    do {
        if (old == ((uint64_t)incarnation << 2 | 2))
            return;
    } while (!atomic_compare_exchange_weak(&fabric->reports[rank], &old, (uint64_t)incarnation << 2 | kind));
    atomic_store(&fabric->stirred, true);
    if (fabric->service_worker)
        ucp_worker_signal(fabric->service_worker);
}

void fabric_member_lost(lode_fabric_h fabric, uint32_t rank, uint32_t incarnation, bool certain, const char *cause)
{
    if (incarnation != lode_fabric_incarnation(fabric, rank))
        return; /* a connection to the process before */
    bool left = atomic_load(&fabric->goodbye[rank]) == incarnation;
    report(fabric, rank, incarnation, certain || left);
    if (!atomic_exchange(&fabric->alive[rank], false))
        return;
    atomic_fetch_add(&fabric->lost, 1);
    atomic_fetch_add(&fabric->changes, 1);
    if (atomic_load(&fabric->leaving) || left)
        lode_debug("rank %u (%s) has left: %s", rank, fabric->members[rank].host, cause);
    else
        lode_warn("rank %u (%s) is lost: %s; %u ranks left", rank, fabric->members[rank].host, cause,
                  lode_fabric_alive_count(fabric));
}
