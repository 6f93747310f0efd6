/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file step.h
 * @brief The working state of a step, shared by step.c, angles.c, team.c, choose.c, plan.c and gather.c.
 *
 * A *row* is one new token of one stream. What rows want is gathered in `wanted`: one 64-bit mask a
 * (block, page, head), a bit a token, so a record wanted by many rows is fetched once.
 */
#ifndef LODE_ATTEND_STEP_H
#define LODE_ATTEND_STEP_H

#include <math.h>

#include "attend/angles.h"
#include "attend/inside.h"
#include "landmarks/index.h"
#include "landmarks/place.h"

/** A block of the step, however many streams see it. */
typedef struct lode_step_block {
    lode_block_h block;
    uint64_t tokens; /**< in pages, when the step began */
    uint32_t pages;
    size_t first_mask;             /**< of page 0, head 0 in wanted and first_record */
    lode_landmark_place_t place;   /**< not on a GPU */
    lode_landmark_spec_t landmark; /**< its kind */
    bool written;                  /**< by a stream of this step */
} lode_step_block_t;

/** A block as one stream sees it. */
typedef struct lode_seen_block {
    uint32_t index;       /**< in the step's blocks */
    int64_t offset;       /**< view position of its token 0 */
    uint64_t first_token; /**< view-token index of its token 0 (tokens in pages only) */
    uint32_t angles;      /**< in the step's angles: of a rotation by −offset; UINT32_MAX: none */
} lode_seen_block_t;

typedef struct lode_step_stream {
    const lode_stream_t *in; /**< the caller's; not valid after the step */
    uint32_t rows;
    int64_t position;  /**< of its first row */
    const void *k, *v; /**< the caller's, or copies of what is in device memory */
    uint64_t tokens;   /**< in the pages of its view */
    size_t first_seen; /**< of its blocks in `seen` */
    size_t first_row;
    float *q;                             /**< (T, Hq, D) scaled by 1/sqrt(D) */
    float *lse;                           /**< (T, Hq) */
    int q_memory, out_memory, lse_memory; /**< on a device: lode_memory_t of the caller's tensors */
    bool written;
} lode_step_stream_t;

/** What one row chose for one KV head. */
typedef struct lode_chosen {
    size_t start; /**< in `tokens` */
    uint64_t count;
    uint64_t digest; /**< of the tokens */
    bool all;        /**< everything visible */
} lode_chosen_t;

/** Rows that see the same tokens in pages and choose among them by landmarks: they are scored in one scan. */
typedef struct lode_span {
    const lode_step_stream_t *stream;
    uint32_t first, count; /**< rows of the stream */
    uint32_t group;        /**< score rows a row */
    size_t first_piece;    /**< in `pieces`: one a block of the view */
    uint64_t tokens;       /**< seen, in pages */
    uint64_t landmarks;    /**< of all pieces */
    size_t stride;         /**< floats between score rows */
    uint32_t score_row;    /**< its first among those of its bundle */
    bool indexed;          /**< it goes by the index of its landmarks; then it is one row */
    lode_index_plan_t plan;
} lode_span_t;

/**
 * Spans of one step whose views begin with the same tokens: one scan of those scores them for the rows of all, so that
 * they are read and unpacked once. What follows is each span's own.
 */
typedef struct lode_bundle {
    uint32_t first, count;  /**< spans */
    uint32_t rows;          /**< score rows of all: as many as one pass of a scan takes, or one span's */
    uint32_t shared;        /**< pieces that all begin with */
    uint64_t landmarks;     /**< of those */
    uint32_t shared_slices; /**< of those */
} lode_bundle_t;

/** Landmarks of a piece that are scored at once. Fixed, so that sums over slices never depend on who does them. */
typedef struct lode_slice {
    uint32_t item;   /**< among the (bundle, head) that are cut */
    uint32_t span;   /**< that it is of; LODE_SLICE_SHARED: all of the bundle */
    uint32_t piece;  /**< of the span */
    uint64_t begin;  /**< landmark of the piece, a multiple of LODE_SLICE */
    uint64_t place;  /**< of the piece's first landmark in a row of scores */
    uint32_t number; /**< among the slices of its span */
} lode_slice_t;
enum { LODE_SLICE = 8192 };
/** Slices that a thread scores at once, if they are of short blocks: no more landmarks than one slice may have. */
enum { LODE_TOGETHER = 16 };
#define LODE_SLICE_SHARED UINT32_MAX

/** Records that are attended over at once, and blocks that they are of at most; fixed for the same reason. */
enum { LODE_PORTION = 2048, LODE_PORTION_BLOCKS = 128 };

/** What one thread of a step works with. */
typedef struct lode_lane {
    _Alignas(64) lode_buffer_t scores; /**< float (score rows, stride) */
    lode_buffer_t sums;                /**< float (slices, score rows): log-sum-exp of each slice */
    float shifts[LODE_MAX_GROUP];      /**< (score rows) log-sum-exp of the whole; 0 if it is not finite */
    lode_buffer_t tables;              /**< what scoring wants as scratch */
    lode_buffer_t picks;               /**< uint32_t a landmark */
    lode_buffer_t notes;               /**< of scores: see lode_notes_t */
    size_t notes_room;
    lode_buffer_t index_parts, index_queries, index_work; /**< lode_index_part_t a block of a view, its queries */
    const uint8_t *pointers[LODE_PORTION];                /**< of a portion */
    uint16_t turns[LODE_PORTION];                         /**< of each record: which of the portion's blocks it is of */
    const lode_seen_block_t *seen[LODE_PORTION_BLOCKS];
    lode_buffer_t turned;   /**< float (blocks of a portion, G, D): queries as each meets them */
    lode_buffer_t prepared; /**< lode_landmark_query_t (LODE_TOGETHER, score rows) */
    uint32_t prepared_item, prepared_span, prepared_piece; /**< what the first of them are ready for */
    uint64_t stage_ns[LODE_STAGE_COUNT];
} lode_lane_t;

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
    uint32_t landing; /**< bytes of the landing buffer that items have taken */
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
        seen_at;          /**< seen_at: uint32_t (streams, blocks), index in seen, UINT32_MAX: none */
    lode_angles_t angles; /**< of this step's offsets, and of others */
    lode_buffer_t queries, lse;
    lode_lane_t *lanes; /**< (threads) */
    uint32_t lane_count;
    lode_buffer_t spans, pieces, bundles; /**< of this step */
    lode_buffer_t slices;                 /**< of a few (bundle, head) that threads share */
    lode_buffer_t choices;                /**< lode_choice_t (rows), without pieces, of rows in spans */
    uint32_t span_count, bundle_count;
    lode_buffer_t parts;          /**< what threads make of a (row, head) that they share, before it is merged */
    lode_buffer_t chosen, tokens; /**< lode_chosen_t (rows, heads); uint32_t */
    lode_buffer_t lost;           /**< uint64_t (rows, heads): of the chosen, what no owner could give */
    size_t token_count;
    lode_buffer_t wanted, first_record; /**< uint64_t, uint32_t a (block, page, head) */
    size_t masks;
    uint64_t owners;                /**< ranks asked, a bit each, modulo 64 */
    uint32_t plan_block, plan_page; /**< where the next tile begins */
    lode_tile_t tiles[2];
    bool on_device; /**< it runs on cluster->gpu (device.h) */
    lode_step_stats_t stats;
};

/* team.c */
/** A part of a stage: item @p item, on the lane's thread. It books its time in the lane. */
typedef void (*lode_step_work_t)(lode_step_state_t *step, void *context, uint32_t item, lode_lane_t *lane);
/**
 * Do items 0 … items−1 on the step's threads, or all on the caller's if they read fewer than @p bytes are worth waking
 * others for. Time that passed is booked on the stages as the lanes spent theirs.
 */
void lode_step_share(lode_step_state_t *step, uint32_t items, uint64_t bytes, lode_step_work_t work, void *context);
lode_status_t lode_lanes_create(lode_step_state_t *step);
void lode_lanes_destroy(lode_step_state_t *step);
/**
 * Of n items of about equal weight, how many are done as a whole, each by one thread; the rest, fewer than there are
 * threads, is better cut.
 */
uint32_t lode_step_whole_items(const lode_step_state_t *step, uint32_t n);

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
/** Lay out what rows choose from: the step's spans and pieces, and what takes everything it sees. */
lode_status_t lode_step_lay_out_spans(lode_step_state_t *step);
/** Have what the last step chose in the host's tables, if it is not. LODE_OK at once for steps on the CPU. */
lode_status_t lode_step_bring_selection(lode_step_state_t *step);
/** LODE_ERR_NONFINITE for a stream's new keys and values, wherever a readable copy of them is. */
lode_status_t lode_check_new(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *in, const void *k,
                             const void *v);
/** What a row of a span chooses from, and how much of it. */
lode_choice_t lode_span_choice(const lode_step_state_t *step, const lode_span_t *span, uint32_t row);

/* lost.c */
#define LODE_NOWHERE UINT32_MAX
/** lode_fetch_t.lose of a tile. */
void lode_item_lose(void *context, const lode_fetch_item_t *item);
/** After a tile's fetch: LODE_ERR_PAGE_LOST, naming pages, if something is lost that a stream cannot do without. */
lode_status_t lode_tile_check_lost(lode_step_state_t *step, lode_tile_t *tile);
/** Count an item that is lost among what rows have lost; as on the CPU, where attention counts. */
void lode_item_count_lost(lode_step_state_t *step, const lode_fetch_item_t *item);
/** Close the gaps that lost records leave among n, and in what goes with each. @return how many are left */
size_t lode_leave_out_lost(const uint8_t **records, uint16_t *turns, size_t n);
/** Tell a stream its lost_share. */
void lode_lost_shares(const lode_step_state_t *step, const lode_step_stream_t *stream);
/** First of some ascending tokens that is not below @p token. (gather.c) */
const uint32_t *lode_lower_bound(const uint32_t *tokens, const uint32_t *end, uint64_t token);

/** Make a tile empty; add pages, each with its items behind it; begin its fetch. At most LODE_TILE_ITEMS of both. */
enum { LODE_TILE_ITEMS = 1 << 16 };
lode_status_t lode_tile_open(lode_step_state_t *step, lode_tile_t *tile);
void lode_tile_add_page(lode_step_state_t *step, lode_tile_t *tile, uint32_t block_index, uint32_t page);
void lode_tile_add_item(lode_step_state_t *step, lode_tile_t *tile, uint32_t block_index, uint32_t page, uint32_t head,
                        uint64_t mask);
lode_status_t lode_tile_fetch(lode_step_state_t *step, lode_tile_t *tile);
/** Wait for its fetch; what cannot be done without fails it. Nothing is under way, and nothing held, after an error. */
lode_status_t lode_tile_land(lode_step_state_t *step, lode_tile_t *tile);

/** Plan the next tile and begin its fetch. @p any is false when the step's pages are exhausted. (plan.c) */
lode_status_t lode_tile_begin(lode_step_state_t *step, lode_tile_t *tile, bool *any);
lode_status_t lode_tile_wait(lode_step_state_t *step, lode_tile_t *tile);
/** Give the landing back; with @p keep, records go to the hot cache first. */
void lode_tile_end(lode_step_state_t *step, lode_tile_t *tile, bool keep);

/** Attend over a tile; over the tails. (gather.c) */
lode_status_t lode_tile_attend(lode_step_state_t *step, const lode_tile_t *tile);
void lode_tails_attend(lode_step_state_t *step);

#endif
