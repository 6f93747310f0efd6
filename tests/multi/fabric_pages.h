/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file fabric_pages.h
 * @brief Pages whose every byte is known, for tests of the fabric: a page of the same block has the same
 * bytes on every rank that holds it, at another place of the arena.
 */
#ifndef LODE_TESTS_FABRIC_PAGES_H
#define LODE_TESTS_FABRIC_PAGES_H

#include <stdlib.h>
#include <string.h>

#include "cluster/fabric_inside.h"

#define PAGES_BLOCKS 3u
#define PAGES_PER_BLOCK 16u
#define PAGES_HEADS 2u
#define PAGES_RECORD 264u
#define PAGES_BYTES ((size_t)PAGES_HEADS * LODE_PAGE_TOKENS * PAGES_RECORD)
#define PAGES_ARENA (PAGES_BLOCKS * PAGES_PER_BLOCK * PAGES_BYTES)
#define PAGES_LAYER 5u

/** A check of a program that has `pages`, and `right`: whether all held on this rank. */
#define CHECK(condition, ...)                                                            \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            right = false;                                                               \
            fprintf(stderr, "rank %u, line %d: %s; ", pages.rank, __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                                                \
            fprintf(stderr, "; last error: %s\n", lode_error_message());                 \
        }                                                                                \
    } while (0)

typedef struct pages {
    lode_fabric_h fabric;
    uint8_t *arena;
    uint32_t rank, ranks;
    _Atomic uint32_t owners;      /**< of each page */
    uint32_t refusals;            /**< how often the refusing verify still says no */
    uint32_t wrong_hint;          /**< 1: hints point at other pages, 2: outside of the arena */
    _Atomic uint32_t absent_rank; /**< is named as an owner but holds nothing; UINT32_MAX: none */
    _Atomic uint32_t served;      /**< pages this rank was asked for */
    _Atomic uint32_t die_after;   /**< of those; then on_reached runs; 0: never */
    void (*on_reached)(struct pages *);
    uint32_t checked, failed; /**< by verify */
} pages_t;

static inline uint64_t pages_block_id(uint32_t index)
{
    return lode_mix(0xb10c, index);
}

static inline uint32_t pages_block_index(uint64_t block)
{
    for (uint32_t b = 0; b < PAGES_BLOCKS; b++) {
        if (pages_block_id(b) == block)
            return b;
    }
    return UINT32_MAX;
}

/** Rank of the n-th owner of a page. */
static inline uint32_t pages_owner(const pages_t *pages, uint64_t block, uint32_t page, uint32_t n)
{
    return (pages_block_index(block) + page + n) % pages->ranks;
}

/** Where a rank keeps a page: another order on every rank. */
static inline uint64_t pages_offset(uint64_t block, uint32_t page, uint32_t rank)
{
    uint32_t slot = pages_block_index(block) * PAGES_PER_BLOCK + page;
    return (uint64_t)((slot + 7 * rank) % (PAGES_BLOCKS * PAGES_PER_BLOCK)) * PAGES_BYTES;
}

static inline void pages_record(uint64_t block, uint32_t page, uint32_t head, uint32_t token, uint8_t *record)
{
    uint64_t word = lode_mix(block, ((uint64_t)page << 32) | head << 16 | token);
    for (uint32_t i = 0; i < PAGES_RECORD; i += 8) {
        word = lode_mix(word, i);
        memcpy(record + i, &word, 8);
    }
}

static inline void pages_fill(pages_t *pages)
{
    for (uint32_t b = 0; b < PAGES_BLOCKS; b++) {
        for (uint32_t p = 0; p < PAGES_PER_BLOCK; p++) {
            uint8_t *page = pages->arena + pages_offset(pages_block_id(b), p, pages->rank);
            for (uint32_t r = 0; r < PAGES_HEADS * LODE_PAGE_TOKENS; r++)
                pages_record(pages_block_id(b), p, r / LODE_PAGE_TOKENS, r % LODE_PAGE_TOKENS,
                             page + (size_t)r * PAGES_RECORD);
        }
    }
}

static inline const uint8_t *pages_page(void *context, uint64_t block, uint32_t layer, uint32_t page, size_t end)
{
    pages_t *pages = context;
    uint32_t served = atomic_fetch_add(&pages->served, 1) + 1;
    if (served == atomic_load(&pages->die_after))
        pages->on_reached(pages);
    if (layer != PAGES_LAYER || pages_block_index(block) == UINT32_MAX || page >= PAGES_PER_BLOCK ||
        end > PAGES_BYTES || pages->rank == pages->absent_rank)
        return NULL;
    for (uint32_t n = 0; n < pages->owners; n++) {
        if (pages_owner(pages, block, page, n) == pages->rank)
            return pages->arena + pages_offset(block, page, pages->rank);
    }
    return NULL;
}

/** Sum of a payload, or an error with the payload as its message where the call is a Publish of layer 99. */
static inline lode_status_t pages_serve(void *context, uint32_t from, const Lodemark__Call *call, const void *payload,
                                        size_t bytes, Lodemark__Reply *reply)
{
    (void)context;
    if (call->body_case != LODEMARK__CALL__BODY_PUBLISH)
        return lode_fail(LODE_ERR_UNSUPPORTED, "only Publish is served here");
    if (call->publish->layer == 99)
        return lode_fail(LODE_ERR_FULL, "no room for %.*s", (int)bytes, (const char *)payload);
    uint64_t sum = call->publish->tokens + from;
    for (size_t i = 0; i < bytes; i++)
        sum = sum * 31 + ((const uint8_t *)payload)[i];
    reply->offset = sum;
    reply->size = (uint32_t)bytes;
    return LODE_OK;
}

static inline void pages_gather(uint8_t *to, const uint8_t *const *from, size_t count, size_t bytes)
{
    for (size_t i = 0; i < count; i++)
        memcpy(to + i * bytes, from[i], bytes);
}

static inline bool pages_source(void *context, const lode_fetch_item_t *item, uint32_t attempt,
                                lode_fetch_source_t *source)
{
    const pages_t *pages = context;
    if (attempt >= pages->owners)
        return false;
    source->rank = pages_owner(pages, item->block, item->page, attempt);
    source->has_offset = item->user % 4 != 3;
    source->published = true;
    source->offset = pages_offset(item->block, item->page, source->rank);
    if (pages->wrong_hint == 1)
        source->offset = (source->offset + PAGES_BYTES) % PAGES_ARENA;
    if (pages->wrong_hint == 2)
        source->offset = UINT64_MAX - 100;
    return true;
}

static inline bool pages_verify(void *context, const lode_fetch_item_t *item, const uint8_t *records)
{
    pages_t *pages = context;
    uint8_t expected[PAGES_RECORD];
    pages->checked++;
    for (uint64_t left = item->mask; left; left &= left - 1, records += PAGES_RECORD) {
        pages_record(item->block, item->page, item->head, (uint32_t)__builtin_ctzll(left), expected);
        if (memcmp(expected, records, PAGES_RECORD) != 0) {
            pages->failed++;
            return false;
        }
    }
    return true;
}

/** Items with random masks, dense to sparse, one after another in the landing buffer as long as it has room. */
static inline uint32_t pages_items(lode_fetch_item_t *items, uint32_t count, size_t room, uint64_t seed)
{
    size_t landing = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t random = lode_mix(seed, i), mask = lode_mix(random, 1);
        for (uint32_t thin = (uint32_t)(random >> 40) % 6; thin > 0; thin--)
            mask &= lode_mix(random, 10 + thin);
        mask |= count > 1000 ? 0 : UINT64_C(1) << (random & 63);
        if (count > 1000)
            mask &= UINT64_C(3) << (random % 63);
        if (mask == 0)
            mask = UINT64_C(1) << (random & 63);
        size_t bytes = (size_t)__builtin_popcountll(mask) * PAGES_RECORD;
        if (landing + bytes > room)
            return i;
        items[i] = (lode_fetch_item_t){.mask = mask,
                                       .block = pages_block_id((uint32_t)(random >> 8) % PAGES_BLOCKS),
                                       .page = (uint32_t)(random >> 16) % PAGES_PER_BLOCK,
                                       .head = (uint16_t)((random >> 24) % PAGES_HEADS),
                                       .user = (uint16_t)i,
                                       .landing = (uint32_t)landing};
        landing += bytes;
    }
    return count;
}

static inline lode_fetch_t pages_fetch(pages_t *pages, const lode_fetch_item_t *items, uint32_t count)
{
    return (lode_fetch_t){.items = items,
                          .count = count,
                          .layer = PAGES_LAYER,
                          .record_bytes = PAGES_RECORD,
                          .source = pages_source,
                          .verify = pages_verify,
                          .context = pages};
}

/** Compare everything that landed, after the fetch: nothing may have written to it since its check. */
static inline bool pages_landed(pages_t *pages, const lode_fetch_t *fetch)
{
    for (uint32_t i = 0; i < fetch->count; i++) {
        if (!pages_verify(pages, &fetch->items[i], fetch->landing + fetch->items[i].landing))
            return false;
    }
    return true;
}

static inline lode_fabric_params_t pages_params(pages_t *pages)
{
    return (lode_fabric_params_t){.node = "",
                                  .arena_bytes = PAGES_ARENA,
                                  .path = LODE_PATH_AUTO,
                                  .landing_bytes = (size_t)8 << 20,
                                  .reply_bytes = 65536,
                                  .credit_bytes = (size_t)1 << 20,
                                  .fetch_deadline_ms = 20000,
                                  .call_deadline_ms = 20000,
                                  .spin_us = 20,
                                  .handlers = {.serve = pages_serve, .page = pages_page, .gather = pages_gather},
                                  .context = pages};
}

/** Create, fill, start. On an error the message says why. */
static inline lode_status_t pages_open(pages_t *pages, const lode_fabric_params_t *params)
{
    LODE_TRY(lode_fabric_create(params, LODE_OK, &pages->fabric));
    pages->rank = lode_fabric_rank(pages->fabric);
    pages->ranks = lode_fabric_ranks(pages->fabric);
    pages->owners = pages->ranks < 2 ? 1 : 2;
    pages->arena = lode_fabric_arena(pages->fabric);
    pages->absent_rank = UINT32_MAX;
    pages_fill(pages);
    return lode_fabric_start(pages->fabric);
}

#endif
