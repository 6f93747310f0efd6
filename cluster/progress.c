/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>

#include "cluster/fabric_inside.h"

/** How often deadlines are looked at. */
#define SWEEP_NS 500000u
/** An idle thread polls for this long; then it polls and offers its core to others, who may be what it waits for. */
#define EAGER_NS 2000u
/** Longest sleep of a waiting caller: what the service thread learns is seen by then. */
#define SLEEP_NS 10000000u
#define SLOT_BITS 20

uint32_t fabric_table_add(fabric_table_t *table, void *object)
{
    if (table->count == table->capacity) {
        uint32_t capacity = table->capacity ? table->capacity * 2 : 64;
        void **objects = capacity > 1u << SLOT_BITS ? NULL : realloc(table->objects, capacity * sizeof *objects);
        if (!objects)
            return FABRIC_NONE;
        table->objects = objects;
        table->capacity = capacity;
    }
    table->objects[table->count] = object;
    return table->count++;
}

uint64_t fabric_id(lode_fabric_h fabric, uint32_t slot)
{
    return ++fabric->sequence << SLOT_BITS | slot;
}

void *fabric_table_find(const fabric_table_t *table, uint64_t id)
{
    uint64_t slot = id & ((1u << SLOT_BITS) - 1);
    return slot < table->count ? table->objects[slot] : NULL;
}

void fabric_pause(uint64_t idle_ns)
{
    if (idle_ns > EAGER_NS)
        sched_yield();
}

void fabric_sleep(ucp_worker_h worker, uint64_t timeout_ns, _Atomic uint64_t *sleeps)
{
    int fd;
    if (ucp_worker_get_efd(worker, &fd) != UCS_OK || ucp_worker_arm(worker) != UCS_OK) {
        sched_yield(); /* events came in meanwhile, or sends wait for a reader that may need this core */
        return;
    }
    atomic_fetch_add_explicit(sleeps, 1, memory_order_relaxed);
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000u),
                               .tv_nsec = (long)(timeout_ns % 1000000000u)};
    ppoll(&wait, 1, &timeout, NULL); /* an interruption is as good as an event */
}

bool fabric_round(lode_fabric_h fabric)
{
    bool moved = false;
    for (int i = 0; i < 16 && ucp_worker_progress(fabric->client) > 0; i++)
        moved = true;
    uint32_t changes = atomic_load(&fabric->changes);
    uint64_t now = lode_now_ns();
    if (changes != fabric->changes_seen || now - fabric->swept_ns > SWEEP_NS) {
        bool news = changes != fabric->changes_seen;
        fabric->swept_ns = now;
        fabric_fetches_sweep(fabric, now, news);
        fabric_calls_sweep(fabric, now, news);
        if (news && fabric_slots_follow(fabric))
            fabric->changes_seen = changes;
    }
    moved |= fabric_fetches_pump(fabric);
    moved |= fabric_calls_finish(fabric);
    if (moved)
        fabric->moved_ns = now;
    return moved;
}

void fabric_wait(lode_fabric_h fabric, uint64_t until_ns)
{
    if (fabric_round(fabric))
        return;
    uint64_t now = lode_now_ns(), idle = now - fabric->moved_ns;
    if (idle < (uint64_t)fabric->params.spin_us * 1000) {
        fabric_pause(idle);
    } else if (until_ns > now) {
        uint64_t left = until_ns - now;
        fabric_sleep(fabric->client, left < SLEEP_NS ? left : SLEEP_NS, &fabric->counters.sleeps);
    }
}

void lode_fabric_progress(lode_fabric_h fabric)
{
    fabric_round(fabric);
}
