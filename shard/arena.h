/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file arena.h
 * @brief Which bytes of an arena are taken, kept outside of it: the arena itself is never read or written here.
 *
 * The arena is cut into slabs; a slab, or a run of them where one would waste too much, serves pages of one
 * size while it has any. Not thread-safe: the shard's lock covers it.
 */
#ifndef LODE_ARENA_H
#define LODE_ARENA_H

#include "base/base.h"

/** Pages are placed at multiples of this. */
#define LODE_ARENA_ALIGN 64
/** A smaller page takes this much; so an arena of n bytes never holds more than n / 4096 pages. */
#define LODE_ARENA_SMALLEST 4096

typedef struct lode_slab {
    uint64_t stride;     /**< bytes from one of its pages to the next; 0: the slab is free */
    uint32_t first;      /**< first slab of the run; only that one's fields below count */
    uint32_t run;        /**< slabs in the run */
    uint32_t room;       /**< pages that fit */
    uint32_t used;       /**< pages taken */
    uint32_t fresh;      /**< pages from this one on were never taken */
    uint32_t given_back; /**< list of others that are free: number + 1 */
    uint32_t next, prev; /**< list of runs that have room: slab + 1 */
} lode_slab_t;

#define LODE_ARENA_LISTS 64

typedef struct lode_arena {
    size_t slab_bytes;
    uint32_t slab_count;
    uint32_t first_free; /**< no slab below it is free */
    lode_slab_t *slabs;
    uint32_t *next_free;              /**< a link for each LODE_ARENA_SMALLEST bytes */
    uint32_t roomy[LODE_ARENA_LISTS]; /**< runs with room, by hash of their stride: slab + 1 */
} lode_arena_t;

lode_status_t lode_arena_create(lode_arena_t *arena, size_t bytes);
void lode_arena_destroy(lode_arena_t *arena);
/** @return false if no place of that size is free. */
bool lode_arena_take(lode_arena_t *arena, uint32_t bytes, uint64_t *offset);
/** Give back what take returned. */
void lode_arena_give(lode_arena_t *arena, uint64_t offset);
/** Bytes that a page of this size occupies. */
uint64_t lode_arena_stride(uint32_t bytes);

#endif
