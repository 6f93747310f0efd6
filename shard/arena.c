/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdlib.h>

#include "shard/arena.h"

#define SLAB_LARGEST ((size_t)4 << 20) /* a huge page or two: a slab's pages lie near each other */
#define SLABS_LEAST 16                 /* so that several page sizes find room in a small arena */

lode_status_t lode_arena_create(lode_arena_t *arena, size_t bytes)
{
    size_t slab_bytes = SLAB_LARGEST;
    while (slab_bytes > LODE_ARENA_SMALLEST && bytes / slab_bytes < SLABS_LEAST)
        slab_bytes /= 2;
    size_t places = bytes / LODE_ARENA_SMALLEST;
    if (places == 0 || places >= INT32_MAX)
        return lode_fail(LODE_ERR_INVALID, "arena of %zu bytes: give it 4096 bytes to 8 TiB", bytes);
    *arena = (lode_arena_t){.slab_bytes = slab_bytes, .slab_count = (uint32_t)(bytes / slab_bytes)};
    arena->slabs = calloc(arena->slab_count, sizeof *arena->slabs);
    arena->next_free = calloc(places, sizeof *arena->next_free);
    if (!arena->slabs || !arena->next_free) {
        lode_arena_destroy(arena);
        return lode_fail(LODE_ERR_NO_MEMORY, "arena of %zu bytes: no memory for its %zu places", bytes, places);
    }
    return LODE_OK;
}

void lode_arena_destroy(lode_arena_t *arena)
{
    free(arena->slabs);
    free(arena->next_free);
    arena->slabs = NULL;
    arena->next_free = NULL;
}

uint64_t lode_arena_stride(uint32_t bytes)
{
    uint64_t least = bytes > LODE_ARENA_SMALLEST ? bytes : LODE_ARENA_SMALLEST;
    return (least + LODE_ARENA_ALIGN - 1) / LODE_ARENA_ALIGN * LODE_ARENA_ALIGN;
}

static uint32_t *roomy_list(lode_arena_t *arena, uint64_t stride)
{
    return &arena->roomy[lode_mix(stride, 1) % LODE_ARENA_LISTS];
}

static void roomy_add(lode_arena_t *arena, uint32_t slab)
{
    uint32_t *list = roomy_list(arena, arena->slabs[slab].stride);
    arena->slabs[slab].prev = 0;
    arena->slabs[slab].next = *list;
    if (*list)
        arena->slabs[*list - 1].prev = slab + 1;
    *list = slab + 1;
}

static void roomy_remove(lode_arena_t *arena, uint32_t slab)
{
    lode_slab_t *s = &arena->slabs[slab];
    if (s->next)
        arena->slabs[s->next - 1].prev = s->prev;
    if (s->prev)
        arena->slabs[s->prev - 1].next = s->next;
    else
        *roomy_list(arena, s->stride) = s->next;
}

/* The lowest run of free slabs; slab_count if there is none. */
static uint32_t run_find(const lode_arena_t *arena, uint32_t run)
{
    uint32_t length = 0;
    for (uint32_t i = arena->first_free; i < arena->slab_count; i++) {
        length = arena->slabs[i].stride ? 0 : length + 1;
        if (length == run)
            return i + 1 - run;
    }
    return arena->slab_count;
}

/* The shortest run that loses at most an eighth behind its last page. */
static uint32_t run_best(const lode_arena_t *arena, uint64_t stride)
{
    uint64_t run = (stride + arena->slab_bytes - 1) / arena->slab_bytes;
    while (run * arena->slab_bytes % stride * 8 > run * arena->slab_bytes)
        run++;
    return (uint32_t)(run < arena->slab_count ? run : arena->slab_count);
}

/* Bind free slabs to a page size; where the best run is not to be had, a shorter one still serves. */
static bool run_bind(lode_arena_t *arena, uint64_t stride, uint32_t *slab)
{
    for (uint32_t run = run_best(arena, stride); run > 0 && run * arena->slab_bytes >= stride; run--) {
        uint32_t first = run_find(arena, run);
        if (first == arena->slab_count)
            continue;
        for (uint32_t i = first; i < first + run; i++)
            arena->slabs[i] = (lode_slab_t){.stride = stride, .first = first};
        arena->slabs[first].run = run;
        arena->slabs[first].room = (uint32_t)(run * arena->slab_bytes / stride);
        if (first == arena->first_free)
            arena->first_free = first + run;
        roomy_add(arena, first);
        *slab = first;
        return true;
    }
    return false;
}

static void run_release(lode_arena_t *arena, uint32_t first)
{
    uint32_t run = arena->slabs[first].run;
    roomy_remove(arena, first);
    for (uint32_t i = first; i < first + run; i++)
        arena->slabs[i] = (lode_slab_t){0};
    if (first < arena->first_free)
        arena->first_free = first;
}

bool lode_arena_take(lode_arena_t *arena, uint32_t bytes, uint64_t *offset)
{
    uint64_t stride = lode_arena_stride(bytes);
    uint32_t link = *roomy_list(arena, stride), slab;
    while (link && arena->slabs[link - 1].stride != stride)
        link = arena->slabs[link - 1].next;
    if (link)
        slab = link - 1;
    else if (!run_bind(arena, stride, &slab))
        return false;
    lode_slab_t *s = &arena->slabs[slab];
    uint64_t begin = slab * arena->slab_bytes;
    uint32_t number = s->given_back ? s->given_back - 1 : s->fresh++;
    *offset = begin + number * stride;
    if (s->given_back)
        s->given_back = arena->next_free[*offset / LODE_ARENA_SMALLEST];
    if (++s->used == s->room)
        roomy_remove(arena, slab);
    return true;
}

void lode_arena_give(lode_arena_t *arena, uint64_t offset)
{
    uint32_t slab = arena->slabs[offset / arena->slab_bytes].first;
    lode_slab_t *s = &arena->slabs[slab];
    if (s->used == s->room)
        roomy_add(arena, slab);
    arena->next_free[offset / LODE_ARENA_SMALLEST] = s->given_back;
    s->given_back = (uint32_t)((offset - slab * arena->slab_bytes) / s->stride) + 1;
    if (--s->used == 0)
        run_release(arena, slab);
}
