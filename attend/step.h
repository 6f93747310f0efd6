/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file step.h
 * @brief The working state of a step, shared by step.c, choose.c, plan.c and gather.c.
 *
 * A *row* is one new token of one stream. What rows want is gathered in `wanted`: one 64-bit mask a
 * (block, page, head), a bit a token, so a record wanted by many rows is fetched once.
 */
#ifndef LODE_ATTEND_STEP_H
#define LODE_ATTEND_STEP_H

#include <math.h>

#include "attend/inside.h"

/** A block of the step, however many streams see it. */
typedef struct lode_step_block {
    lode_block_h block;
    uint64_t tokens; /**< in pages, when the step began */
    uint32_t pages;
    size_t first_mask; /**< of page 0, head 0 in wanted and first_record */
    bool written;      /**< by a stream of this step */
} lode_step_block_t;

/** A block as one stream sees it. */
typedef struct lode_seen_block {
    uint32_t index;       /**< in the step's blocks */
    int64_t offset;       /**< view position of its token 0 */
    uint64_t first_token; /**< view-token index of its token 0 (tokens in pages only) */
    size_t angles;        /**< cosines and sines (D/2 each) of a rotation by −offset; SIZE_MAX: none */
} lode_seen_block_t;

typedef struct lode_step_stream {
    const lode_stream_t *in; /**< the caller's; not valid after the step */
    uint32_t rows;
    int64_t position;  /**< of its first row */
    uint64_t tokens;   /**< in the pages of its view */
    size_t first_seen; /**< of its blocks in `seen` */
    size_t first_row;
    float *q;   /**< (T, Hq, D) scaled by 1/sqrt(D) */
    float *lse; /**< (T, Hq) */
    bool written;
} lode_step_stream_t;

/** What one row chose for one KV head. */
typedef struct lode_chosen {
    size_t start; /**< in `tokens` */
    uint64_t count;
    bool all; /**< everything visible */
} lode_chosen_t;

typedef struct lode_run {
    uint32_t block, page_begin, page_end;
} lode_run_t;

/** Owners of a page, as they were when its fetch began: they may change while it runs. */
typedef struct lode_owners {
    lode_page_hint_t hints[LODE_REPLICAS_MAX];
    uint32_t count;
} lode_owners_t;

/** A piece of the step that is fetched and attended over at once: some pages, all heads. */
typedef struct lode_tile {
    lode_step_state_t *step;
    lode_buffer_t runs, items, records; /**< lode_run_t, lode_fetch_item_t, const uint8_t * */
    lode_buffer_t owners, owners_at;    /**< lode_owners_t; uint32_t an item: its place there */
    uint32_t owners_count;
    uint32_t run_count;
    size_t record_count;
    bool lost; /**< some items could not be had: their `landing` is LODE_NOWHERE, their records are NULL */
    lode_fetch_t fetch;
} lode_tile_t;

struct lode_step_state {
    lode_cluster_h cluster;
    uint64_t serial;
    uint32_t layer;
    uint32_t stream_count, block_count;
    size_t rows;
    bool keep_hot; /**< what is fetched fits the hot cache */
    lode_buffer_t streams, blocks, seen,
        seen_at; /**< seen_at: uint32_t (streams, blocks), index in seen, UINT32_MAX: none */
    lode_buffer_t angles, queries, lse;
    lode_buffer_t scores, score_scratch, choose_scratch, pieces;
    lode_buffer_t chosen, tokens; /**< lode_chosen_t (rows, heads); uint32_t */
    lode_buffer_t lost;           /**< uint64_t (rows, heads): of the chosen, what no owner could give */
    size_t token_count;
    lode_buffer_t wanted, first_record; /**< uint64_t, uint32_t a (block, page, head) */
    lode_buffer_t pointers;             /**< records of one attend call */
    size_t masks;
    uint64_t owners;                /**< ranks asked, a bit each, modulo 64 */
    uint32_t plan_block, plan_page; /**< where the next tile begins */
    lode_tile_t tiles[2];
    lode_step_stats_t stats;
};

static inline lode_step_stream_t *lode_stream_at(const lode_step_state_t *step, uint32_t i)
{
    return (lode_step_stream_t *)step->streams.data + i;
}
static inline lode_step_block_t *lode_step_block_at(const lode_step_state_t *step, uint32_t i)
{
    return (lode_step_block_t *)step->blocks.data + i;
}
static inline lode_seen_block_t *lode_seen_at(const lode_step_state_t *step, const lode_step_stream_t *stream,
                                              uint32_t i)
{
    return (lode_seen_block_t *)step->seen.data + stream->first_seen + i;
}
static inline lode_chosen_t *lode_chosen_at(const lode_step_state_t *step, size_t row, uint32_t head)
{
    return (lode_chosen_t *)step->chosen.data + row * step->cluster->heads + head;
}
static inline size_t lode_mask_at(const lode_step_state_t *step, const lode_step_block_t *block, uint32_t page,
                                  uint32_t head)
{
    return block->first_mask + (size_t)page * step->cluster->heads + head;
}
/** Tokens of a block in pages that a row at view position @p position may see. */
static inline uint64_t lode_visible(const lode_seen_block_t *seen, uint64_t tokens, int64_t position)
{
    int64_t last = position - seen->offset;
    return last < 0 ? 0 : (uint64_t)last + 1 < tokens ? (uint64_t)last + 1 : tokens;
}
/** Queries of one row's heads head·G … in the frame of a block: (G, D). */
void lode_rotate_queries(const lode_step_state_t *step, const lode_step_stream_t *stream, const lode_seen_block_t *seen,
                         uint32_t row, uint32_t head, float *q);

/** Score and select for every row and head, and gather what is wanted. (choose.c) */
lode_status_t lode_step_choose(lode_step_state_t *step);

/* lost.c */
#define LODE_NOWHERE UINT32_MAX
/** lode_fetch_t.lose of a tile. */
void lode_item_lose(void *context, const lode_fetch_item_t *item);
/** After a tile's fetch: LODE_ERR_PAGE_LOST, naming pages, if something is lost that a stream cannot do without. */
lode_status_t lode_tile_check_lost(lode_step_state_t *step, lode_tile_t *tile);
/** Close the gaps that lost records leave in the first n of step->pointers, and count them. @return how many are left
 */
size_t lode_leave_out_lost(lode_step_state_t *step, size_t row, uint32_t head, size_t n);
/** Tell a stream its lost_share. */
void lode_lost_shares(const lode_step_state_t *step, const lode_step_stream_t *stream);
/** First of some ascending tokens that is not below @p token. (gather.c) */
const uint32_t *lode_lower_bound(const uint32_t *tokens, const uint32_t *end, uint64_t token);

/** Plan the next tile and begin its fetch. @p any is false when the step's pages are exhausted. (plan.c) */
lode_status_t lode_tile_begin(lode_step_state_t *step, lode_tile_t *tile, bool *any);
lode_status_t lode_tile_wait(lode_step_state_t *step, lode_tile_t *tile);
/** Give the landing back; with @p keep, records go to the hot cache first. */
void lode_tile_end(lode_step_state_t *step, lode_tile_t *tile, bool keep);

/** Attend over a tile; over the tails. (gather.c) */
lode_status_t lode_tile_attend(lode_step_state_t *step, const lode_tile_t *tile);
lode_status_t lode_tails_attend(lode_step_state_t *step);

#endif
