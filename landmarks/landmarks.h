/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file landmarks.h
 * @brief Building, keeping, scoring landmarks, and choosing tokens by them.
 *
 * The store is one mapping a node, shared by its ranks: the block table and every block's landmarks.
 * One rank of the node, the keeper, writes it; all read it without locks. What a reader may use is what
 * was published: lode_store_tokens() is released after the landmarks below it are in place.
 */
#ifndef LODE_LANDMARKS_H
#define LODE_LANDMARKS_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/base.h"
#include "kernels/kernels.h"

/* ----------------------------------------------------------------- building */

/** Landmarks in a page: 64 / chunk. */
static inline uint32_t lode_landmarks_per_page(const lode_landmark_spec_t *spec)
{
    return LODE_PAGE_TOKENS / spec->chunk;
}
/** Landmarks of the first n tokens of a block; the last may stand for fewer tokens. */
static inline uint64_t lode_landmarks_of(const lode_landmark_spec_t *spec, uint64_t tokens)
{
    return (tokens + spec->chunk - 1) / spec->chunk;
}

/** Mean key of each head: keys (tokens, heads, dim) to mean (heads, dim). */
void lode_landmark_mean(uint32_t heads, uint32_t dim, const float *keys, uint64_t tokens, float *mean);

/**
 * Rows of the landmarks of one page: per chunk the mean of its keys, minus the block's mean, transformed
 * (not for the MEAN codec), quantised.
 *
 * @param keys  (tokens, heads, dim), tokens ≤ 64, at block-relative positions
 * @param mean  (heads, dim), or NULL: not centred
 * @param transform  lode_transform_keys() of the first head, the others' following; NULL: Hadamard
 * @param[out] rows  [head][landmark] rows; lode_landmarks_of(tokens) a head
 */
void lode_landmark_build(const lode_ops_t *ops, const lode_landmark_spec_t *spec, uint32_t heads, uint32_t dim,
                         const float *keys, uint32_t tokens, const float *mean, const float *transform, uint8_t *rows);

/* -------------------------------------------------------------------- store */

typedef struct lode_store *lode_store_h;

/** What every rank must know of a block. */
typedef struct lode_block_info {
    uint64_t id; /**< never 0, never used twice in a job */
    char name[LODE_NAME_MAX + 1];
    lode_format_t format;
    uint32_t replicas;
    uint32_t kv_head_begin, kv_head_end;
    lode_landmark_spec_t landmark;
    uint64_t expected_tokens;
    uint64_t transform; /**< id of what its keys went through (transform.h); 0: Hadamard, or nothing for means */
    uint32_t writer;    /**< rank */
} lode_block_info_t;

typedef enum lode_block_state {
    LODE_BLOCK_FREE,
    LODE_BLOCK_OPEN,
    LODE_BLOCK_SEALED,
    LODE_BLOCK_DROPPED
} lode_block_state_t;

typedef struct lode_store_params {
    void *base;   /**< the node's shared mapping, zero-filled when new; sparse: only touched pages cost memory */
    int fd;       /**< of the mapping (its offset 0 is base), to reserve and punch holes; −1: plain memory (tests) */
    size_t bytes; /**< of addresses: extents are powers of two, so allow twice the memory that landmarks may take */
    uint32_t layers, dim;
    uint32_t max_blocks;
    const lode_ops_t *ops;
} lode_store_params_t;

/** Lay out a new store in zero-filled memory; the keeper calls it once, before the others attach. */
lode_status_t lode_store_create(const lode_store_params_t *params, lode_store_h *store);
/** Read (or, as a successor of the keeper, write) a store that another process created. */
lode_status_t lode_store_attach(const lode_store_params_t *params, lode_store_h *store);
/** Release the handle, not the memory. */
void lode_store_destroy(lode_store_h *store);

/* The keeper's calls: one thread of one process of a node at a time. */

/** @return LODE_ERR_NAME_IN_USE (a live block of the same KV-head range has the name), LODE_ERR_FULL. Adding the same
 * id again is a success. */
lode_status_t lode_store_add(lode_store_h store, const lode_block_info_t *info, uint32_t *slot);
/**
 * Put the landmark rows of one page and its owners' arena offsets in place; not visible until published. A page
 * that is visible already never changes: putting it again is a success without effect (a retry). Until then the
 * last put counts.
 * @param mean   (heads, dim), with the first page of a (block, layer) that is centred; else NULL
 * @param hints  (hint_count ≤ LODE_REPLICAS_MAX) where owners hold the page; may be NULL
 * @return LODE_ERR_FULL (the node's store is full: asked, used, limit), LODE_ERR_NOT_FOUND, LODE_ERR_SEALED,
 *         LODE_ERR_INVALID (layer, tokens, or a centred block's first page without mean).
 */
typedef struct lode_page_hint {
    uint32_t rank;
    uint32_t size;
    uint64_t offset;
} lode_page_hint_t;
lode_status_t lode_store_put(lode_store_h store, uint64_t block, uint32_t layer, uint32_t page, uint32_t tokens,
                             const uint8_t *rows, const float *mean, const lode_page_hint_t *hints,
                             uint32_t hint_count);
/** Replace a page's hints; the page was put. @return LODE_ERR_NOT_FOUND, LODE_ERR_INVALID (no such page). */
lode_status_t lode_store_owners(lode_store_h store, uint64_t block, uint32_t layer, uint32_t page,
                                const lode_page_hint_t *hints, uint32_t count);
/** Take a rank, which is lost with all it held, out of the hints of all pages. */
void lode_store_forget_rank(lode_store_h store, uint32_t rank);
/**
 * Make the first `tokens` tokens of a layer visible; never fewer than before (then it is a success without effect).
 * @return LODE_ERR_INVALID if a page of them was not put, LODE_ERR_NOT_FOUND.
 */
lode_status_t lode_store_publish(lode_store_h store, uint64_t block, uint32_t layer, uint64_t tokens);
/**
 * No more tokens come. A block that is sealed while tokens are missing would refuse them for good, so it must have
 * @p tokens in every layer.
 * @return LODE_ERR_INVALID if a layer is shorter, LODE_ERR_NOT_FOUND.
 */
lode_status_t lode_store_seal(lode_store_h store, uint64_t block, uint64_t tokens);
/** Mark dropped; its memory is reused after lode_store_collect(). Dropping what is not there is a success. */
lode_status_t lode_store_drop(lode_store_h store, uint64_t block);
void lode_store_collect(lode_store_h store, uint64_t older_than_ns);

/* Everybody's calls. Slots are indices of the block table; a slot is valid while its id is the one expected. */

/** Live blocks only. @return LODE_ERR_NOT_FOUND. */
lode_status_t lode_store_find(lode_store_h store, const char *name, uint32_t kv_head_begin, uint32_t kv_head_end,
                              uint32_t *slot);
lode_status_t lode_store_find_id(lode_store_h store, uint64_t block, uint32_t *slot);
/** Of a block that is known to be live: the keeper writes another's where one was dropped. */
const lode_block_info_t *lode_store_info(lode_store_h store, uint32_t slot);
/**
 * A copy of what a slot's block is, all of one block whatever the keeper does meanwhile: for a slot of which nothing
 * is known.
 * @param[out] info  set if the block is live  @param[out] state  open or sealed then; NULL: not asked for
 * @return whether the slot holds a live block
 */
bool lode_store_live(lode_store_h store, uint32_t slot, lode_block_info_t *info, lode_block_state_t *state);
/** LODE_BLOCK_DROPPED also if the slot now holds another block than @p block. */
lode_block_state_t lode_store_state(lode_store_h store, uint32_t slot, uint64_t block);
/** Published tokens (acquire). */
uint64_t lode_store_tokens(lode_store_h store, uint32_t slot, uint32_t layer);
/**
 * A run of landmarks of one head that lies in one piece: from landmark @p first, on to at most @p limit.
 * @param first  a multiple of LODE_TILE  @param[out] tiles  64-byte aligned  @return landmarks in the run, 0 at the end
 */
uint64_t lode_store_span(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head, uint64_t first,
                         uint64_t limit, const uint8_t **tiles);
/**
 * The same of the block's index (landmarks/index.h): from group @p first of LODE_INDEX_GROUP landmarks, on to at most
 * @p limit, complete groups alone.
 * @param first  0, or where a run ended  @return groups in the run; 0: at the end, or the block has no index
 */
uint64_t lode_store_index(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head, uint64_t first,
                          uint64_t limit, const uint8_t **tiles);
/** (dim) mean key of a head, NULL if the block is not centred. */
const float *lode_store_mean(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head);
/**
 * Where owners hold a page, as far as this node knows. While the keeper replaces them, a mixture of old and new may be
 * seen, as when they are out of date: what is read there must be checked, as records are.
 * @param[out] hints  (LODE_REPLICAS_MAX)  @return false before the page was put
 */
bool lode_store_hints(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t page, lode_page_hint_t *hints,
                      uint32_t *count);
/**
 * The landmark rows of a published page, as they were put.
 * @param[out] rows  (heads, landmarks of the page's tokens) rows  @return tokens of the page; 0: it was not put
 */
uint32_t lode_store_rows(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t page, uint8_t *rows);
/** Slots ever used: iterate 0 … n−1 and ask each one's state. */
uint32_t lode_store_slots(lode_store_h store);
/** Bytes of memory in use. */
uint64_t lode_store_used(lode_store_h store);

/* ------------------------------------------------------------------ scoring */

/**
 * Logits of one head of one block: queries q (group, dim) in the block's frame, scaled by 1/sqrt(D),
 * not yet transformed, to out[g·stride + i] for the landmarks i of the first `tokens` tokens.
 * A transform in front of the quantiser is applied to the queries here; the block mean's score is added.
 * @param transform  lode_transform_queries() of the head if the block has a transform, else NULL
 * @param scratch  lode_score_scratch_floats() of the block's spec, 64-byte aligned, or NULL
 */
void lode_store_score(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head, uint64_t tokens, const float *q,
                      uint32_t group, const float *transform, float *out, size_t stride, float *scratch);

/** Queries of one head of one block, made ready for scoring any of its landmarks. */
typedef struct lode_scorer {
    lode_store_h store;
    uint32_t slot, layer, head, group;
    lode_landmark_query_t queries[LODE_MAX_GROUP];
} lode_scorer_t;

/** The queries, as lode_store_score() takes them. */
void lode_scorer_prepare(lode_scorer_t *scorer, lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head,
                         const float *q, uint32_t group, const float *transform);
/**
 * Logits of landmarks begin … end−1, to out[g·stride + i − begin].
 * @param begin  a multiple of LODE_TILE  @param scratch  as for lode_store_score()
 */
void lode_scorer_score(const lode_scorer_t *scorer, uint64_t begin, uint64_t end, float *out, size_t stride,
                       float *scratch);

/* ----------------------------------------------------------------- choosing */

/** A piece of the view as selection sees it: landmarks of one block, in view order. */
typedef struct lode_piece {
    uint64_t tokens;      /**< visible ones, the first of the block */
    uint64_t landmarks;   /**< lode_landmarks_of(tokens) */
    uint64_t first_token; /**< index of its token 0 in the view's tokens in pages */
} lode_piece_t;

typedef struct lode_choice {
    const lode_piece_t *pieces;
    uint32_t piece_count;
    uint32_t chunk;           /**< the same in all pieces */
    uint32_t group;           /**< score rows; 1 when the query was the group's mean */
    lode_group_merge_t merge; /**< LODE_MERGE_MAX if there is more than one row */
    uint64_t budget;          /**< tokens, forced ones included; fewer than the forced: only those */
    uint64_t sinks;           /**< first tokens of the view, forced */
    uint64_t window_begin;    /**< tokens from this view-token index on are forced; total tokens: none */
    const float *shift;       /**< (group) log-sum-exp of each score row, or NULL: not computed yet */
    /**
     * NULL, or memory in which scores over notes->bound are noted while they are combined, for a choice without another
     * look at all of them; the choice is the same whatever the bound is. notes->next is a bound for the next step.
     */
    lode_notes_t *notes;
} lode_choice_t;

/** What sinks and window leave of a piece to compete for, as tokens of its block: [begin, end). */
typedef struct lode_contest {
    uint64_t begin, end;
} lode_contest_t;
lode_contest_t lode_contest_of(const lode_choice_t *choice, const lode_piece_t *piece);

/** Log-sum-exp of a whole from those of n parts, in this order: sums[i·stride]. */
float lode_sums_join(const float *sums, size_t stride, size_t n);

/**
 * Choose tokens of one KV head.
 * @param scores   (group, stride) raw logits of all pieces' landmarks, one piece after another; overwritten
 * @param scratch  one uint32_t a landmark
 * @param[out] tokens  ascending view-token indices; room for budget + sinks + window + chunk
 * @return how many. Never more than max(budget, forced). A chunk cut by the budget gives its first tokens.
 */
uint64_t lode_choose(const lode_ops_t *ops, const lode_choice_t *choice, float *scores, size_t stride,
                     uint32_t *scratch, uint32_t *tokens);

#endif
