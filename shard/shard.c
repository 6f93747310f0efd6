/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page table is an index of 4-byte links, open addressing with linear probing, into entries that are taken
 * one after another: so memory is touched by the pages held, not by the most that the arena could hold.
 *
 * Readers take no lock. An entry's version is odd while it stands for a held page; a reader notes it, reads the
 * fields, and believes them if the version is still the same. Fields are stored with release and loaded with
 * acquire, so whoever sees a field of the entry's next page also sees that the version moved on. An entry is
 * complete before the index names it.
 */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "shard/arena.h"
#include "shard/shard.h"

#define BLOCK_LISTS 4096
#define INDEX_EMPTY 0u
#define INDEX_GONE UINT32_MAX /* was taken: a probe goes on */

typedef struct page_entry {
    _Atomic uint64_t version;
    _Atomic uint64_t block;
    _Atomic uint64_t place;  /* layer << 32 | page */
    _Atomic uint64_t offset; /* in the arena */
    _Atomic uint64_t sum;    /* size << 32 | crc */
    uint64_t dropped_ns;     /* this and next belong to the lock */
    uint32_t next;           /* in one list: of its block's, of dropped, or of free entries; number + 1 */
} page_entry_t;

struct lode_shard {
    uint8_t *base;
    size_t bytes;
    lode_arena_t arena;
    _Atomic uint32_t *index; /* entry + 1 */
    uint64_t index_mask;
    page_entry_t *entries;
    _Atomic uint32_t entries_used; /* those from here on were never taken */
    uint32_t entries_free;
    uint32_t dropped_first, dropped_last; /* oldest first */
    uint64_t dropped_bytes;
    uint32_t blocks[BLOCK_LISTS];          /* entries of held pages by hash of the block, newest first */
    _Atomic uint64_t changes[BLOCK_LISTS]; /* of those lists */
    _Atomic uint64_t used_bytes, pages;
    pthread_mutex_t lock;
};

/* ------------------------------------------------------------------- create */

lode_status_t lode_shard_create(void *base, size_t bytes, lode_shard_h *shard)
{
    if ((uintptr_t)base % LODE_ARENA_ALIGN != 0)
        return lode_fail(LODE_ERR_INVALID, "shard: the arena at %p is not 64-byte aligned", base);
    struct lode_shard *s = calloc(1, sizeof *s);
    if (!s)
        return lode_fail(LODE_ERR_NO_MEMORY, "shard: no memory for its handle");
    lode_status_t status = lode_arena_create(&s->arena, bytes);
    if (status != LODE_OK)
        goto free_shard;
    size_t pages_max = bytes / LODE_ARENA_SMALLEST, index_size = 16;
    while (index_size < 2 * pages_max)
        index_size *= 2;
    s->index = calloc(index_size, sizeof *s->index);
    s->entries = calloc(pages_max, sizeof *s->entries);
    if (!s->index || !s->entries) {
        status = lode_fail(LODE_ERR_NO_MEMORY, "shard: no memory for a table of %zu pages", pages_max);
        goto free_tables;
    }
    s->base = base;
    s->bytes = bytes;
    s->index_mask = index_size - 1;
    pthread_mutex_init(&s->lock, NULL);
    *shard = s;
    return LODE_OK;

free_tables:
    free(s->entries);
    free((void *)s->index);
    lode_arena_destroy(&s->arena);
free_shard:
    free(s);
    return status;
}

void lode_shard_destroy(lode_shard_h *shard)
{
    struct lode_shard *s = *shard;
    if (!s)
        return;
    pthread_mutex_destroy(&s->lock);
    lode_arena_destroy(&s->arena);
    free(s->entries);
    free((void *)s->index);
    free(s);
    *shard = NULL;
}

/* --------------------------------------------------------------------- find */

static uint64_t place_of(lode_page_id_t id)
{
    return (uint64_t)id.layer << 32 | id.page;
}

/* A consistent copy of an entry. @return its version, 0 if it stands for no page. */
static uint64_t entry_read(const struct lode_shard *shard, const page_entry_t *entry, lode_page_id_t *id,
                           lode_page_ref_t *ref)
{
    uint64_t version;
    do {
        version = atomic_load_explicit(&entry->version, memory_order_acquire);
        if (version % 2 == 0)
            return 0;
        uint64_t place = atomic_load_explicit(&entry->place, memory_order_acquire);
        uint64_t sum = atomic_load_explicit(&entry->sum, memory_order_acquire);
        id->block = atomic_load_explicit(&entry->block, memory_order_acquire);
        id->layer = (uint32_t)(place >> 32);
        id->page = (uint32_t)place;
        ref->offset = atomic_load_explicit(&entry->offset, memory_order_acquire);
        ref->size = (uint32_t)(sum >> 32);
        ref->crc = (uint32_t)sum;
    } while (atomic_load_explicit(&entry->version, memory_order_relaxed) != version);
    ref->bytes = shard->base + ref->offset;
    return version;
}

/* Where the index names a page. @return false if it does not; a full turn ends the search in any case. */
static bool index_find(const struct lode_shard *shard, lode_page_id_t id, uint64_t *slot, lode_page_ref_t *ref)
{
    uint64_t start = lode_mix(id.block, place_of(id));
    for (uint64_t i = 0; i <= shard->index_mask; i++) {
        uint64_t at = (start + i) & shard->index_mask;
        uint32_t link = atomic_load_explicit(&shard->index[at], memory_order_acquire);
        lode_page_id_t held;
        if (link == INDEX_EMPTY)
            return false;
        if (link == INDEX_GONE || !entry_read(shard, &shard->entries[link - 1], &held, ref))
            continue;
        if (held.block == id.block && place_of(held) == place_of(id)) {
            *slot = at;
            return true;
        }
    }
    return false;
}

bool lode_shard_find(lode_shard_h shard, lode_page_id_t id, lode_page_ref_t *ref)
{
    uint64_t slot;
    lode_page_ref_t found;
    if (!index_find(shard, id, &slot, &found))
        return false;
    *ref = found;
    return true;
}

/* ---------------------------------------------------------------------- put */

/* The lock's holder only; the page is not in the index. */
static void index_insert(struct lode_shard *shard, lode_page_id_t id, uint32_t entry)
{
    uint64_t at = lode_mix(id.block, place_of(id)) & shard->index_mask;
    for (;; at = (at + 1) & shard->index_mask) {
        uint32_t link = atomic_load_explicit(&shard->index[at], memory_order_relaxed);
        if (link == INDEX_EMPTY || link == INDEX_GONE)
            break;
    }
    atomic_store_explicit(&shard->index[at], entry + 1, memory_order_release);
}

/* Marks that end before an empty slot hold up no probe: clear them, so that they do not pile up. */
static void index_remove(struct lode_shard *shard, uint64_t slot)
{
    atomic_store_explicit(&shard->index[slot], INDEX_GONE, memory_order_release);
    uint64_t after = (slot + 1) & shard->index_mask;
    if (atomic_load_explicit(&shard->index[after], memory_order_relaxed) != INDEX_EMPTY)
        return;
    while (atomic_load_explicit(&shard->index[slot], memory_order_relaxed) == INDEX_GONE) {
        atomic_store_explicit(&shard->index[slot], INDEX_EMPTY, memory_order_release);
        slot = (slot - 1) & shard->index_mask;
    }
}

/* There is an entry for every page that fits in the arena. */
static uint32_t entry_take(struct lode_shard *shard)
{
    uint32_t link = shard->entries_free;
    if (!link)
        return atomic_fetch_add_explicit(&shard->entries_used, 1, memory_order_release);
    shard->entries_free = shard->entries[link - 1].next;
    return link - 1;
}

static void entry_fill(page_entry_t *entry, lode_page_id_t id, uint64_t offset, uint32_t size, uint32_t crc)
{
    atomic_store_explicit(&entry->block, id.block, memory_order_release);
    atomic_store_explicit(&entry->place, place_of(id), memory_order_release);
    atomic_store_explicit(&entry->offset, offset, memory_order_release);
    atomic_store_explicit(&entry->sum, (uint64_t)size << 32 | crc, memory_order_release);
    atomic_fetch_add_explicit(&entry->version, 1, memory_order_release);
}

static uint32_t *block_list(struct lode_shard *shard, uint64_t block)
{
    return &shard->blocks[lode_mix(block, 0) % BLOCK_LISTS];
}

static void count_change(struct lode_shard *shard, uint64_t block)
{
    atomic_fetch_add_explicit(&shard->changes[lode_mix(block, 0) % BLOCK_LISTS], 1, memory_order_release);
}

uint64_t lode_shard_changes(lode_shard_h shard, uint64_t block)
{
    return atomic_load_explicit(&shard->changes[lode_mix(block, 0) % BLOCK_LISTS], memory_order_acquire);
}

static void collect(struct lode_shard *shard, uint64_t older_than_ns)
{
    while (shard->dropped_first) {
        uint32_t link = shard->dropped_first;
        page_entry_t *entry = &shard->entries[link - 1];
        if (entry->dropped_ns >= older_than_ns)
            return;
        shard->dropped_first = entry->next;
        uint64_t sum = atomic_load_explicit(&entry->sum, memory_order_relaxed);
        shard->dropped_bytes -= lode_arena_stride((uint32_t)(sum >> 32));
        lode_arena_give(&shard->arena, atomic_load_explicit(&entry->offset, memory_order_relaxed));
        entry->next = shard->entries_free;
        shard->entries_free = link;
    }
}

static lode_status_t room_take(struct lode_shard *shard, uint32_t size, uint64_t *offset)
{
    if (lode_arena_take(&shard->arena, size, offset))
        return LODE_OK;
    uint64_t now = lode_now_ns();
    collect(shard, now > LODE_SHARD_QUARANTINE_NS ? now - LODE_SHARD_QUARANTINE_NS : 0);
    if (lode_arena_take(&shard->arena, size, offset))
        return LODE_OK;
    return lode_fail(LODE_ERR_FULL,
                     "arena full: a page of %" PRIu32 " bytes was asked for, %" PRIu64 " of %zu bytes hold pages and "
                     "%" PRIu64 " more were dropped too recently to be reused; drop blocks or raise the arena size",
                     size, atomic_load_explicit(&shard->used_bytes, memory_order_relaxed), shard->bytes,
                     shard->dropped_bytes);
}

static lode_status_t put(struct lode_shard *shard, lode_page_id_t id, const void *page, uint32_t size, uint32_t crc,
                         lode_page_ref_t *ref)
{
    uint64_t offset;
    lode_page_ref_t held;
    if (index_find(shard, id, &offset, &held)) {
        if (held.size != size || held.crc != crc)
            return lode_fail(LODE_ERR_INVALID,
                             "block %016" PRIx64 " layer %" PRIu32 " page %" PRIu32 ": put again with other bytes",
                             id.block, id.layer, id.page);
        *ref = held;
        return LODE_OK;
    }
    LODE_TRY(room_take(shard, size, &offset));
    memcpy(shard->base + offset, page, size);
    uint32_t number = entry_take(shard);
    page_entry_t *entry = &shard->entries[number];
    entry_fill(entry, id, offset, size, crc);
    uint32_t *list = block_list(shard, id.block);
    entry->next = *list;
    *list = number + 1;
    index_insert(shard, id, number);
    count_change(shard, id.block);
    atomic_fetch_add_explicit(&shard->used_bytes, lode_arena_stride(size), memory_order_relaxed);
    atomic_fetch_add_explicit(&shard->pages, 1, memory_order_relaxed);
    *ref = (lode_page_ref_t){.bytes = shard->base + offset, .offset = offset, .size = size, .crc = crc};
    return LODE_OK;
}

lode_status_t lode_shard_put(lode_shard_h shard, const lode_ops_t *ops, lode_page_id_t id, const void *page,
                             uint32_t size, uint32_t crc, lode_page_ref_t *ref)
{
    if (size == 0)
        return lode_fail(LODE_ERR_INVALID, "block %016" PRIx64 ": a page of 0 bytes", id.block);
    uint32_t found = ops->crc32c(0, page, size);
    if (found != crc)
        return lode_fail(LODE_ERR_FORMAT,
                         "block %016" PRIx64 " layer %" PRIu32 " page %" PRIu32 ": its %" PRIu32
                         " bytes have CRC32C %08" PRIx32 ", not %08" PRIx32 "; it was damaged on its way",
                         id.block, id.layer, id.page, size, found, crc);
    pthread_mutex_lock(&shard->lock);
    lode_status_t status = put(shard, id, page, size, crc, ref);
    pthread_mutex_unlock(&shard->lock);
    return status;
}

/* --------------------------------------------------------------------- drop */

/* Take the entry that *link names out of its block's list and queue it for collection. */
static void drop(struct lode_shard *shard, uint32_t *link, uint64_t now_ns)
{
    uint32_t number = *link;
    page_entry_t *entry = &shard->entries[number - 1];
    lode_page_id_t id;
    lode_page_ref_t ref;
    uint64_t slot;
    entry_read(shard, entry, &id, &ref);
    if (index_find(shard, id, &slot, &ref))
        index_remove(shard, slot);
    atomic_fetch_add_explicit(&entry->version, 1, memory_order_release);
    count_change(shard, id.block);
    *link = entry->next;
    entry->next = 0;
    entry->dropped_ns = now_ns;
    if (shard->dropped_first)
        shard->entries[shard->dropped_last - 1].next = number;
    else
        shard->dropped_first = number;
    shard->dropped_last = number;
    shard->dropped_bytes += lode_arena_stride(ref.size);
    atomic_fetch_sub_explicit(&shard->used_bytes, lode_arena_stride(ref.size), memory_order_relaxed);
    atomic_fetch_sub_explicit(&shard->pages, 1, memory_order_relaxed);
}

/* Drop the pages of a block, or the one at place if only is set. */
static void drop_matching(struct lode_shard *shard, uint64_t block, bool only, uint64_t place)
{
    pthread_mutex_lock(&shard->lock);
    uint64_t now_ns = lode_now_ns();
    uint32_t *link = block_list(shard, block);
    while (*link) {
        page_entry_t *entry = &shard->entries[*link - 1];
        bool match = atomic_load_explicit(&entry->block, memory_order_relaxed) == block &&
                     (!only || atomic_load_explicit(&entry->place, memory_order_relaxed) == place);
        if (!match) {
            link = &entry->next;
            continue;
        }
        drop(shard, link, now_ns);
        if (only)
            break;
    }
    pthread_mutex_unlock(&shard->lock);
}

void lode_shard_drop_page(lode_shard_h shard, lode_page_id_t id)
{
    drop_matching(shard, id.block, true, place_of(id));
}

void lode_shard_drop_block(lode_shard_h shard, uint64_t block)
{
    drop_matching(shard, block, false, 0);
}

void lode_shard_collect(lode_shard_h shard, uint64_t older_than_ns)
{
    pthread_mutex_lock(&shard->lock);
    collect(shard, older_than_ns);
    pthread_mutex_unlock(&shard->lock);
}

/* ------------------------------------------------------------------ inquire */

uint64_t lode_shard_scrub(lode_shard_h shard, const lode_ops_t *ops)
{
    uint64_t damaged = 0;
    uint32_t used = atomic_load_explicit(&shard->entries_used, memory_order_acquire);
    for (uint32_t i = 0; i < used; i++) {
        page_entry_t *entry = &shard->entries[i];
        lode_page_id_t id;
        lode_page_ref_t ref;
        uint64_t version = entry_read(shard, entry, &id, &ref);
        if (version == 0 || ops->crc32c(0, ref.bytes, ref.size) == ref.crc)
            continue;
        if (atomic_load_explicit(&entry->version, memory_order_acquire) != version)
            continue; /* dropped meanwhile */
        lode_warn("block %016" PRIx64 " layer %" PRIu32 " page %" PRIu32 ": its bytes no longer have their checksum",
                  id.block, id.layer, id.page);
        damaged++;
    }
    return damaged;
}

lode_shard_usage_t lode_shard_usage(lode_shard_h shard)
{
    return (lode_shard_usage_t){
        .bytes = shard->bytes,
        .used_bytes = atomic_load_explicit(&shard->used_bytes, memory_order_relaxed),
        .pages = atomic_load_explicit(&shard->pages, memory_order_relaxed),
    };
}
