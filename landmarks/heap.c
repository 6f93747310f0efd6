/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "landmarks/heap.h"

static uint32_t class_of(uint64_t bytes)
{
    uint32_t class = 0;
    while ((LODE_HEAP_UNIT << class) < bytes)
        class ++;
    return class;
}

uint64_t lode_heap_link_bytes(uint64_t bytes)
{
    return (bytes / LODE_HEAP_UNIT + 1) * sizeof(uint64_t);
}

uint64_t lode_heap_extent_bytes(uint64_t bytes)
{
    return LODE_HEAP_UNIT << class_of(bytes);
}

static uint64_t link_offset(const lode_heap_t *heap, uint64_t extent)
{
    return heap->state->links + (extent - heap->state->begin) / LODE_HEAP_UNIT * sizeof(uint64_t);
}

static _Atomic uint64_t *link_of(const lode_heap_t *heap, uint64_t extent)
{
    return (_Atomic uint64_t *)(heap->base + link_offset(heap, extent));
}

static void push(const lode_heap_t *heap, uint64_t extent, uint32_t class)
{
    if (lode_heap_reserve(heap, link_offset(heap, extent), sizeof(uint64_t)) != LODE_OK) {
        lode_warn("landmark store: an extent of %" PRIu64 " bytes cannot be listed as free: %s",
                  LODE_HEAP_UNIT << class, lode_error_message());
        return;
    }
    _Atomic uint64_t *first = &heap->state->free[class];
    atomic_store_explicit(link_of(heap, extent), atomic_load_explicit(first, memory_order_relaxed),
                          memory_order_release);
    atomic_store_explicit(first, extent, memory_order_release);
}

/* The smallest free extent that is large enough; what is left of it goes back in halves. */
static uint64_t reuse(const lode_heap_t *heap, uint32_t class)
{
    for (uint32_t found = class; found < LODE_HEAP_CLASSES; found++) {
        _Atomic uint64_t *first = &heap->state->free[found];
        uint64_t extent = atomic_load_explicit(first, memory_order_relaxed);
        if (extent == 0)
            continue;
        atomic_store_explicit(first, atomic_load_explicit(link_of(heap, extent), memory_order_relaxed),
                              memory_order_release);
        while (found > class) {
            found--;
            push(heap, extent + (LODE_HEAP_UNIT << found), found);
        }
        return extent;
    }
    return 0;
}

uint64_t lode_heap_take(const lode_heap_t *heap, uint64_t bytes)
{
    lode_heap_state_t *state = heap->state;
    uint64_t bump = atomic_load_explicit(&state->bump, memory_order_relaxed);
    if (bytes > state->end - state->begin)
        return 0;
    uint32_t class = class_of(bytes);
    uint64_t extent = reuse(heap, class);
    if (extent)
        return extent;
    if ((LODE_HEAP_UNIT << class) > state->end - bump)
        return 0;
    atomic_store_explicit(&state->bump, bump + (LODE_HEAP_UNIT << class), memory_order_release);
    return bump;
}

void lode_heap_give(const lode_heap_t *heap, uint64_t offset, uint64_t bytes)
{
    push(heap, offset, class_of(bytes));
}

uint64_t lode_heap_bytes(const lode_heap_t *heap, uint64_t *fresh)
{
    const lode_heap_state_t *state = heap->state;
    *fresh = state->end - atomic_load_explicit(&state->bump, memory_order_relaxed);
    return state->end - state->begin;
}

lode_status_t lode_heap_reserve(const lode_heap_t *heap, uint64_t offset, uint64_t bytes)
{
    int result;
    if (heap->fd < 0 || bytes == 0)
        return LODE_OK;
    do {
        result = fallocate(heap->fd, 0, (off_t)offset, (off_t)bytes);
    } while (result != 0 && errno == EINTR);
    if (result == 0)
        return LODE_OK;
    if (errno == ENOSPC || errno == ENOMEM)
        return lode_fail(LODE_ERR_FULL,
                         "the node's landmark store is full: %" PRIu64 " more bytes of shared memory were asked for "
                         "and the system has no room; drop blocks or enlarge /dev/shm",
                         bytes);
    return lode_fail(LODE_ERR_IO, "landmark store: reserving %" PRIu64 " bytes of shared memory: %s", bytes,
                     strerror(errno));
}

bool lode_heap_punch(const lode_heap_t *heap, uint64_t offset, uint64_t bytes)
{
    return heap->fd >= 0 &&
           fallocate(heap->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes) == 0;
}
