/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file device.h
 * @brief Steps on a GPU: what a rank keeps in its memory, and the files that run a step there.
 *
 * device.c opens the device, its caches of records and the pinning of what it reads over the bus; device_memory.c is
 * memory that grows and uploads; device_mirror.c keeps copies of landmarks, addresses of held pages and tails on the
 * device; device_tables.c turns a step's layout into the arrays that kernels read; device_fetch.c brings what neither
 * cache nor own pages have, device_ahead.c some of it before it is asked for; device_step.c enqueues it all. The
 * operations themselves are of kernels/device.h.
 *
 * Order. All steps follow one another on the device, whatever streams they are on. Working memory is shared by them;
 * pinned memory that the host writes for a step is a *ticket*'s, and is written again when that step has run.
 *
 * Graphs. A captured step keeps its ticket for good, and what it may read (working memory, mirrors) is not freed before
 * the device is closed, though it may be replaced.
 */
#ifndef LODE_ATTEND_DEVICE_H
#define LODE_ATTEND_DEVICE_H

#include "attend/step.h"
#include "kernels/device.h"

enum { LODE_GPU_FORMATS = LODE_FORMAT_HIGGS4 + 1, LODE_GPU_TICKETS = 4, LODE_GPU_TILES = 3, LODE_GPU_TIMES = 7 };

/** Device or pinned memory that grows by doubling. */
typedef struct lode_gpu_room {
    void *data;
    size_t bytes;
} lode_gpu_room_t;

/** One layer of one block. Pointers are to device memory but for held_here. */
typedef struct lode_gpu_layer {
    lode_gpu_room_t tiles; /**< [head][tile] */
    size_t head_bytes;     /**< from one head's tiles to the next's */
    uint64_t landmarks;    /**< that are there */
    lode_gpu_room_t mean;  /**< (heads, D) floats; none: not centred, or no landmark yet */
    lode_gpu_room_t held;  /**< an address a page, NULL: another rank's */
    lode_buffer_t held_here;
    uint32_t held_pages;
    uint64_t held_change; /**< of the shard, when they were looked up */
    bool all_held;
    lode_gpu_room_t tail; /**< bf16 records [token][head], at the device's stride */
    uint64_t tail_first;  /**< block position of the first one */
} lode_gpu_layer_t;

typedef struct lode_gpu_block {
    uint64_t id;     /**< 0: none */
    uint64_t serial; /**< step that used it last */
    lode_gpu_layer_t *layers;
} lode_gpu_block_t;

/** Pinned memory of one step. */
typedef struct lode_gpu_ticket {
    lode_gpu_room_t room;
    uint8_t *data;
    size_t used, bytes;
    lode_device_found_t *found; /**< (formats), at its beginning */
    lode_device_event_t done;
    bool busy;
} lode_gpu_ticket_t;

/** A piece of what is fetched, on its way from a landing buffer to the device. */
typedef struct lode_gpu_tile {
    lode_tile_t tile;
    lode_buffer_t entries; /**< uint32_t an item: what of `asked` it is of */
    uint32_t end;          /**< missed records before it can be gathered once it has landed */
    lode_gpu_room_t bounce;
    size_t bounced;
    lode_device_event_t gathered;
    bool fetching; /**< its fetch is under way */
    bool busy;     /**< its landing and bounce buffers may be read until then */
} lode_gpu_tile_t;

/** What the last step of a layer had of other ranks and did not keep: of one format, no more than lands at once. */
typedef struct lode_gpu_likely {
    lode_buffer_t likely; /**< in the device's order */
    uint32_t count;
    size_t bytes; /**< of the records */
    lode_format_t format;
    lode_buffer_t blocks; /**< uint64_t (step's blocks) ids */
    uint32_t block_count;
} lode_gpu_likely_t;

/** A fetch of likely misses: under way (the tile's `fetching`) from the end of a step to the next one's misses. */
typedef struct lode_gpu_ahead {
    bool on;
    lode_gpu_likely_t *layers;
    lode_gpu_tile_t tiles[2]; /**< by turns: one may still be gathered from */
    uint32_t turn;            /**< of the last fetch */
    uint32_t layer, epoch;    /**< of it */
    lode_format_t format;
    lode_gpu_tile_t *use; /**< landed, and the running step takes from it; NULL: nothing has */
} lode_gpu_ahead_t;

/** What a step's blocks of one storage format are on the device: masks and records are numbered among themselves. */
typedef struct lode_gpu_set {
    uint32_t first_block, blocks; /**< of the step's, in the device's order */
    uint32_t first_mask, masks;   /**< of the step's */
    uint32_t records_max, first_record;
    const lode_device_block_t *table; /**< (all blocks) masks counted from the set's first */
    lode_device_where_t where;
} lode_gpu_set_t;

/** Landmarks of one spec that are scored in one launch. */
typedef struct lode_gpu_scans {
    lode_landmark_spec_t spec;
    const lode_device_query_t *queries;
    const lode_device_scan_t *scans;
    uint32_t query_count, scan_count, most;
    uint64_t all;
} lode_gpu_scans_t;

/** Spans whose scores fit the room for scores. */
typedef struct lode_gpu_batch {
    uint32_t first_span, spans;
    uint32_t first_scans, scans; /**< lode_gpu_scans_t */
    const lode_device_choice_t *choices;
    uint32_t first_choice, choice_count, most;
} lode_gpu_batch_t;

/** A step as the device sees it. */
typedef struct lode_gpu_plan {
    lode_device_stream_t stream;
    bool capturing;
    bool waits;          /**< the host waits for the step's end: some output is in plain host memory */
    bool timed;          /**< it is lode_step()'s: tensors are ready when it begins, and stages are timed */
    lode_buffer_t kinds; /**< int, twice a stream: whose memory k and v are in */
    lode_gpu_ticket_t *ticket;
    size_t table_bytes; /**< of the ticket, from table_begin on: copied to the device */
    size_t table_begin;
    lode_buffer_t order;          /**< uint32_t: the step's blocks in the device's order, then the place of each */
    lode_buffer_t batches, scans; /**< lode_gpu_batch_t, lode_gpu_scans_t */
    uint32_t batch_count, scans_count;
    lode_gpu_set_t sets[LODE_GPU_FORMATS];
    const float *angles;
    const lode_device_row_t *rows;
    const lode_device_part_t *parts;
    const lode_device_block_t *blocks;
    const lode_device_chosen_t *chosen;
    const lode_device_piece_t *pieces;
    uint32_t most_tokens, most_tail;
    uint64_t records_max; /**< of all sets */
    bool all_held;
    /* what has been attended over, to be merged */
    lode_device_parts_t parts_done[LODE_DEVICE_SETS];
    uint32_t parts_count, folds;
} lode_gpu_plan_t;

typedef struct lode_gpu_retired {
    void *memory;
    void (*release)(lode_device_h device, void *memory);
} lode_gpu_retired_t;

typedef struct lode_gpu {
    const lode_device_ops_t *ops;
    lode_device_h device;
    lode_device_info_t info;
    lode_cluster_h cluster;
    lode_device_stream_t stream; /**< of lode_step() */
    lode_device_event_t busy;    /**< passed when the latest step has run */
    bool in_step, stepped, captured;
    int device_before; /**< the caller's, while a step runs */
    bool arena_pinned, landing_pinned;
    uint32_t copies_from[LODE_GPU_FORMATS]; /**< records from which on the copy engine gathers; UINT32_MAX: never */
    bool copies;                            /**< it does for some format: then addresses are in pinned memory */

    char cache_text[32];
    size_t staging_bytes;
    lode_device_cache_t caches[LODE_GPU_FORMATS];
    uint32_t *clocks; /**< (formats) */
    bool cache_made[LODE_GPU_FORMATS];

    lode_gpu_block_t *blocks; /**< by slot of the node's store */
    uint32_t block_room;
    float **transforms; /**< (layers) of this rank's heads; NULL: not there yet */

    lode_gpu_ticket_t tickets[LODE_GPU_TICKETS];
    uint32_t ticket;
    lode_gpu_room_t capture; /**< pinned, tickets of captured steps are cut from it */
    size_t capture_used;
    lode_gpu_room_t upload; /**< pinned: two halves */
    size_t upload_used;
    uint32_t upload_half;
    lode_device_event_t uploaded[2];
    bool uploading[2];
    lode_gpu_ticket_t captured_ticket; /**< of the step that is being captured */
    lode_gpu_retired_t *retired;       /**< what captured steps may still use */
    uint32_t retired_count, retired_room;

    /* working memory of a step */
    lode_gpu_room_t tables, queries, prepared, scores, select_scratch, tokens, counts;
    lode_gpu_room_t wanted, first, places, missed, sources, where_scratch, staged;
    lode_gpu_room_t parts_out[LODE_DEVICE_SETS], parts_lse[LODE_DEVICE_SETS], folded_out[2], folded_lse[2];
    lode_gpu_room_t out, lse;
    lode_gpu_room_t asked, landed, sources_here, results, aside, tensors; /**< pinned */
    lode_gpu_plan_t plan;
    lode_gpu_tile_t tiles[LODE_GPU_TILES];
    uint32_t tile;       /**< number of the next one */
    uint32_t tile_count; /**< of them that the running step uses */
    lode_gpu_ahead_t ahead;
    uint64_t selection; /**< serial of the step whose choice is on the host; see lode_gpu_bring_selection() */
    lode_device_event_t times[LODE_GPU_TIMES];

    _Atomic uint64_t looked, hits; /**< records that steps wanted, and found in the cache, as far as known */
    _Atomic uint64_t cache_bytes, mirror_bytes;
} lode_gpu_t;

/* ----------------------------------------------------------------- device.c */

/** What was said on the command line, checked as far as it can be without a device. */
lode_status_t lode_gpu_check_options(const lode_options_t *options);
/**
 * Which device: the one asked for, or by turns among the ranks of a node.
 * @param[in] text  option "device-ordinal"
 * @return ::LODE_ERR_UNSUPPORTED (there is none), ::LODE_ERR_INVALID (no such number).
 */
lode_status_t lode_gpu_choose(const lode_device_ops_t *ops, const char *text, uint32_t local_rank, uint32_t *ordinal);
/** PCI address of the device that lode_gpu_open() will open, before there is a fabric. @return false: there is none */
bool lode_gpu_locate(const lode_options_t *options, uint32_t local_rank, char address[16]);
/**
 * Open the device that the options name; cluster->gpu stays NULL with "none", and with "auto" where there is none.
 * After the fabric and the shard.
 */
lode_status_t lode_gpu_open(lode_cluster_h cluster, const lode_options_t *options);
/** The same of a message about this rank; any thread. */
void lode_gpu_rank_stats(lode_cluster_h cluster, Lodemark__RankStats *message);
/** Fill in what is said of the device; "" without one. */
void lode_gpu_query(lode_cluster_h cluster, lode_cluster_info_t *info);
/** Before the fabric goes, whose memory is pinned here: all but the device itself. */
void lode_gpu_part(lode_cluster_h cluster);
/** After all that borrowed the device. */
void lode_gpu_close(lode_cluster_h cluster);
/** Make the cache of a format, as large as there is room for. */
lode_status_t lode_gpu_prepare_format(lode_gpu_t *gpu, lode_format_t format);
/** Record a sentence about a failed operation of the device. */
lode_status_t lode_gpu_fail(const lode_gpu_t *gpu, lode_status_t status, const char *what);
#define LODE_GPU_TRY(gpu, what, call)                         \
    do {                                                      \
        lode_status_t gpu_status_ = (call);                   \
        if (gpu_status_ != LODE_OK)                           \
            return lode_gpu_fail((gpu), gpu_status_, (what)); \
    } while (0)
/** Wait until all steps have run, and give landing buffers back. */
lode_status_t lode_gpu_settle(lode_gpu_t *gpu);

/* ---------------------------------------------------------- device_memory.c */

/** Make room on the device, keeping the first @p keep bytes; the copy is in stream order. */
lode_status_t lode_gpu_reserve(lode_gpu_t *gpu, const char *what, lode_gpu_room_t *room, size_t bytes, size_t keep);
/** The same in pinned memory; nothing is kept. */
lode_status_t lode_gpu_reserve_pinned(lode_gpu_t *gpu, const char *what, lode_gpu_room_t *room, size_t bytes);
/** Free device room, when nothing uses it. */
lode_status_t lode_gpu_free(lode_gpu_t *gpu, lode_gpu_room_t *room);
/** A ticket of that many bytes for the running step. */
lode_status_t lode_gpu_take_ticket(lode_gpu_t *gpu, size_t bytes, lode_gpu_ticket_t **ticket);
/** Count what a step found, which has run. */
void lode_gpu_harvest(lode_gpu_t *gpu, const lode_gpu_ticket_t *ticket);
/** Wait until its step has run, and count what it found. */
lode_status_t lode_gpu_ticket_done(lode_gpu_t *gpu, lode_gpu_ticket_t *ticket);
/** The next piece of a ticket. */
void *lode_gpu_ticket_take(lode_gpu_ticket_t *ticket, size_t bytes);
/** Most bytes that lode_gpu_upload_room() gives at once. */
enum { LODE_GPU_UPLOAD = 1 << 20 };
/** Pinned memory to fill, and then to copy from on the step's stream before asking again. */
lode_status_t lode_gpu_upload_room(lode_gpu_t *gpu, size_t bytes, void **room);
/** Copy host memory to the device in stream order; it is free when this returns. */
lode_status_t lode_gpu_upload(lode_gpu_t *gpu, void *to, const void *from, size_t bytes);

/* ---------------------------------------------------------- device_mirror.c */

/** Bring landmarks, held pages and tails of the step's blocks up to date on the device. */
lode_status_t lode_gpu_bring(lode_step_state_t *step);
/** Of a block that was brought. */
lode_gpu_layer_t *lode_gpu_layer_of(const lode_step_state_t *step, const struct lode_block *block);
/** (D, D) for queries of a head, NULL: Hadamard. */
const float *lode_gpu_transform_of(const lode_step_state_t *step, const struct lode_block *block, uint32_t head);
/** Free the mirrors of blocks that the running step does not use, for an allocation that failed. */
lode_status_t lode_gpu_make_room(lode_gpu_t *gpu);
void lode_gpu_mirrors_free(lode_gpu_t *gpu);
/** Guesses of a view that goes; gpu and guesses may be NULL. */
void lode_gpu_forget_guesses(lode_gpu_t *gpu, float *guesses);

/* ---------------------------------------------------------- device_tables.c */

/** Fill the plan and a ticket for a step that is laid out. Makes room for all that the device will write. */
lode_status_t lode_gpu_plan_make(lode_step_state_t *step);
/** Whether a step that wants so many records of a set keeps them. */
bool lode_gpu_keeps(const lode_step_state_t *step, const lode_gpu_set_t *set, uint64_t records);
/** A step's block by its place in the device's order. */
static inline lode_step_block_t *lode_gpu_block_at(const lode_step_state_t *step, const lode_gpu_plan_t *plan,
                                                   uint32_t i)
{
    return lode_step_block_at(step, ((const uint32_t *)plan->order.data)[i]);
}

/* ----------------------------------------------------------- device_fetch.c */

/**
 * Stage what a set misses and attend over it, in rounds if the staging room asks for it. @p found: as the host has seen
 * it; NULL: all is held here and fits one round.
 */
lode_status_t lode_gpu_stage(lode_step_state_t *step, lode_gpu_set_t *set, const lode_device_found_t *found);
/** What an entry of `asked` means: a page and head of a block of the set. */
void lode_gpu_resolve(const lode_step_state_t *step, const lode_gpu_set_t *set, const lode_device_entry_t *entry,
                      uint32_t *block, uint32_t *page, uint32_t *head);
/** Give a tile's landing buffer back, waiting for what reads it. */
lode_status_t lode_gpu_tile_release(lode_gpu_t *gpu, lode_gpu_tile_t *tile);
/** After an error: nothing is under way any more, all landing buffers are given back. */
void lode_gpu_fetch_abandon(lode_step_state_t *step);

/* ----------------------------------------------------------- device_ahead.c */

/** Before the first step: at the start the model's shape need not be known. */
lode_status_t lode_gpu_ahead_prepare(lode_gpu_t *gpu);
void lode_gpu_ahead_destroy(lode_gpu_t *gpu);
/** Before a step stages, its misses known: have ahead.use, if anything missed was fetched ahead; give back the landing
 * buffers of earlier steps. */
lode_status_t lode_gpu_ahead_take(lode_step_state_t *step);
/** Of what was fetched ahead, in ascending order: a page and head, or NULL. @p from: 0 at first */
const lode_fetch_item_t *lode_gpu_ahead_find(const lode_step_state_t *step, const lode_gpu_tile_t *tile, uint32_t *from,
                                             uint32_t block, uint32_t page, uint32_t head);
/** Remember what another rank has to give and will not be kept; in ascending order. */
void lode_gpu_ahead_note(lode_step_state_t *step, uint32_t block, uint32_t page, uint32_t head, uint64_t mask);
/** The layer misses nothing that is worth fetching ahead. */
void lode_gpu_ahead_forget(lode_step_state_t *step);
/** All is gathered that the step takes of ahead.use. */
lode_status_t lode_gpu_ahead_end(lode_step_state_t *step);
/** Fetch for the next layer, if it is known what; whatever comes of it. */
void lode_gpu_ahead_begin(lode_step_state_t *step);
/** Give up what is under way. */
void lode_gpu_ahead_drop(lode_gpu_t *gpu);

/* ------------------------------------------------------------ device_step.c */

/** Be the thread's device from here to lode_gpu_leave(): what runs kernels or copies on the device's own stream. */
lode_status_t lode_gpu_enter(lode_gpu_t *gpu);
void lode_gpu_leave(lode_gpu_t *gpu);
/** Begin a step on @p cuda_stream, or with @p wait on the device's own. */
lode_status_t lode_gpu_begin(lode_step_state_t *step, void *cuda_stream, bool wait);
/** Whose memory the streams' tensors are; refuses what the step cannot take, and makes k and v readable here. */
lode_status_t lode_gpu_check_streams(lode_step_state_t *step);
/** A step has failed: wait for what was enqueued, and give back what it holds. */
void lode_gpu_abandon(lode_step_state_t *step);
/** Run or enqueue a step that is laid out. */
lode_status_t lode_gpu_run(lode_step_state_t *step);
/** Attend with the plan's tables, into parts to be merged. */
lode_status_t lode_gpu_attend_over(lode_step_state_t *step, lode_device_attend_t *attend, uint32_t most_tokens);
/** Bring what the last step chose to the host, once. */
lode_status_t lode_gpu_bring_selection(lode_step_state_t *step);

#endif
