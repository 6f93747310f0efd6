/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file shard.h
 * @brief The pages that one rank holds, and which ranks should hold a page.
 *
 * The arena is memory that the caller mapped and registered once. It is cut into slabs; a slab
 * serves pages of one size. Sealed pages are immutable, so reading one needs no lock: readers (the
 * step, the service thread packing a reply) look a page up while others are put or dropped.
 * A dropped page's memory is not reused before every reader that could have seen it is done
 * (lode_shard_collect()).
 */
#ifndef LODE_SHARD_H
#define LODE_SHARD_H

#include <stdbool.h>

#include "base/base.h"
#include "kernels/kernels.h"

/**
 * How long a dropped page's memory is kept before put may reuse it when the arena is full: longer than the default
 * deadline of a fetch over all of its owners, so whoever found the page before it was dropped is done with it. What
 * is fetched later still is caught by the records' own checks.
 */
#define LODE_SHARD_QUARANTINE_NS UINT64_C(2000000000)

/** Identity of a page in the job. */
typedef struct lode_page_id {
    uint64_t block;
    uint32_t layer;
    uint32_t page; /**< token / LODE_PAGE_TOKENS */
} lode_page_id_t;

/* ------------------------------------------------------------- page layout */

/** A page: records [head][token], all of the block's KV heads; unused tokens of a block's last page are zero. */
size_t lode_page_bytes(lode_format_t format, uint32_t dim, uint32_t heads);

/** Byte offset of a record in its page. */
static inline size_t lode_page_record(size_t record_bytes, uint32_t head, uint32_t token)
{
    return ((size_t)head * LODE_PAGE_TOKENS + token) * record_bytes;
}

/**
 * Encode a page from k, v (tokens, heads, dim) floats, tokens ≤ 64. A record's tag is
 * lode_record_tag(id.block, id.layer, head_begin + head, id.page · 64 + token).
 * @param head_begin  number of the first head in the model: tags carry model-wide head numbers
 * @param[out] crc    CRC32C of the whole page
 */
void lode_page_encode(const lode_ops_t *ops, lode_format_t format, uint32_t dim, uint32_t heads, uint32_t head_begin,
                      lode_page_id_t id, uint32_t tokens, const float *k, const float *v, uint8_t *page, uint32_t *crc);

/* -------------------------------------------------------------------- shard */

typedef struct lode_shard *lode_shard_h;

/** What the table knows of one held page. */
typedef struct lode_page_ref {
    const uint8_t *bytes; /**< borrowed until the page is dropped and collected */
    uint64_t offset;      /**< of bytes in the arena: what a one-sided reader adds to the arena's remote base */
    uint32_t size;
    uint32_t crc;
} lode_page_ref_t;

/**
 * Manage @p bytes of arena at @p base (borrowed, 64-byte aligned). Put and drop may come from any thread (they lock);
 * find never locks or waits.
 */
lode_status_t lode_shard_create(void *base, size_t bytes, lode_shard_h *shard);
void lode_shard_destroy(lode_shard_h *shard);

/**
 * Copy a page in, after checking that @p crc is its CRC32C.
 * Putting a page that is held already with the same crc is a success (a retry), with another a defect:
 * LODE_ERR_INVALID.
 * @return LODE_ERR_FULL (message: asked, used, total), LODE_ERR_FORMAT (the bytes do not have this crc).
 */
lode_status_t lode_shard_put(lode_shard_h shard, const lode_ops_t *ops, lode_page_id_t id, const void *page,
                             uint32_t size, uint32_t crc, lode_page_ref_t *ref);
/** Lock-free. @return false if this shard does not hold the page. */
bool lode_shard_find(lode_shard_h shard, lode_page_id_t id, lode_page_ref_t *ref);
/**
 * A number that has moved on whenever a page of the block was put or dropped; changes of a few other blocks move it
 * too. Read before pages are looked up, it tells later whether they must be looked up again.
 */
uint64_t lode_shard_changes(lode_shard_h shard, uint64_t block);
/** Forget one page (an append that is taken back). Forgetting what is not held is fine. */
void lode_shard_drop_page(lode_shard_h shard, lode_page_id_t id);
/** Forget all pages of a block. */
void lode_shard_drop_block(lode_shard_h shard, uint64_t block);
/** Give memory of pages dropped before @p older_than_ns (lode_now_ns() clock) back to the arena. */
void lode_shard_collect(lode_shard_h shard, uint64_t older_than_ns);
/** Recompute the checksum of every held page. @return how many do not match. */
uint64_t lode_shard_scrub(lode_shard_h shard, const lode_ops_t *ops);

/** used_bytes, pages: of held pages; dropped ones that wait to be collected are not among them. */
typedef struct lode_shard_usage {
    uint64_t bytes, used_bytes, pages;
} lode_shard_usage_t;
lode_shard_usage_t lode_shard_usage(lode_shard_h shard);

/* ---------------------------------------------------------------- placement */

/** What placement knows of a rank. Node ids are stable over restarts. */
typedef struct lode_place {
    uint64_t node;   /**< failure domain */
    uint64_t weight; /**< arena bytes; 0: holds no pages */
} lode_place_t;

/**
 * Owners of a page, best first: rendezvous hashing over nodes weighted by their ranks' memory, then over
 * the ranks of each node. The first k are on k different nodes while there are k nodes with memory; when
 * nodes run out, ranks not yet named follow in the order of their own hashes.
 * So the list of k is the start of the list of k+1, and a rank that leaves (it keeps its place, with
 * weight 0) moves only its own pages. Every rank of every machine computes the same list.
 *
 * @param places  (ranks); @param ranks ≤ 4096 @param[out] owners (k) rank numbers
 * @return how many were written: min(k, ranks with weight > 0)
 */
uint32_t lode_placement(const lode_place_t *places, uint32_t ranks, lode_page_id_t id, uint32_t k, uint32_t *owners);

#endif
