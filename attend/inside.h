/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file inside.h
 * @brief What the files of attend/ share: the structs behind the public handles.
 *
 * cluster.c joins and leaves; serve.c answers other ranks; spread.c sends pages and landmarks out;
 * tail.c keeps the unsealed tokens; block.c and view.c are the handles, crop.c takes tokens back and moves them; hot.c
 * is the cache of fetched records; step.c runs a step with choose.c (score, select), plan.c (who has what, in tiles),
 * gather.c (attend over a tile) and lost.c (what nobody could give), on the threads of team.c; places.c follows the
 * members, repair.c keeps k owners a page, fill.c brings landmarks to ranks that joined.
 */
#ifndef LODE_ATTEND_INSIDE_H
#define LODE_ATTEND_INSIDE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "attend/calls.h"
#include "attend/replicate.h"
#include "base/base.h"
#include "base/team.h"
#include "cluster/cluster.h"
#include "kernels/kernels.h"
#include "landmarks/landmarks.h"
#include "landmarks/transform.h"
#include "proto/translate.h"
#include "shard/shard.h"

/** A growing buffer: keeps what it allocated, so that steps of one size allocate once. 64-byte aligned. */
typedef struct lode_buffer {
    void *data;
    size_t bytes;
} lode_buffer_t;

/** Make room for @p bytes; the old contents are lost if it has to grow. */
lode_status_t lode_buffer_reserve(lode_buffer_t *buffer, size_t bytes);
/** The same, keeping the first @p keep bytes. */
lode_status_t lode_buffer_extend(lode_buffer_t *buffer, size_t bytes, size_t keep);
void lode_buffer_free(lode_buffer_t *buffer);

typedef struct lode_step_state lode_step_state_t;
typedef struct lode_hot lode_hot_t;
typedef struct lode_repair lode_repair_t;

/** What a rank keeps of its latest steps. Written by the thread that steps, read by the service thread as well. */
enum { LODE_METER_STEPS = 1024, LODE_METER_SECONDS = 8 };
typedef struct lode_meter_second {
    _Atomic uint64_t second; /**< of the clock */
    _Atomic uint64_t steps, fetched_bytes;
} lode_meter_second_t;
typedef struct lode_meter {
    _Atomic uint64_t steps, failed_steps, fetched_bytes;
    _Atomic uint64_t latest_ns[LODE_METER_STEPS];
    lode_meter_second_t seconds[LODE_METER_SECONDS];
} lode_meter_t;

struct lode_cluster {
    const lode_calls_t *calls; /**< first, see calls.h */
    _Atomic bool shaped;       /**< from here to the step's state all is set */
    lode_geometry_t geometry;
    uint32_t heads;       /**< KV heads of this rank's range */
    uint32_t group;       /**< query heads a KV head */
    uint32_t query_heads; /**< of this rank: heads · group */
    double *freq;         /**< (D/2) radians a position */
    const lode_ops_t *ops;
    lode_team_h team; /**< of the thread that steps and appends */
    lode_fabric_h fabric;
    lode_shard_h shard;
    lode_store_h store;
    lode_place_t *places;   /**< (capacity) as of the latest change of members that lode_places_refresh() saw */
    uint32_t place_count;   /**< slots in use then */
    uint32_t *incarnations; /**< (capacity) of then; 0: not alive */
    bool *newcomers;        /**< (capacity) joined later, and not known to have all landmarks yet */
    bool *unasked;          /**< (capacity) was here before this rank joined, and may be filling still */
    bool *changed;          /**< (capacity) went or came, and lode_local_tend() has not seen to it */
    _Atomic bool split;     /**< every rank is a failure domain of its own; who joins is told */
    bool places_split;      /**< as places have it */
    uint32_t domains;       /**< distinct failure domains */
    _Atomic bool filling;   /**< this process joined later; landmarks still come in */
    uint64_t missed_ns;     /**< filling: when a message could not be used yet, last; the service's */
    uint64_t fill_began_ns; /**< filling: when the running pass began; the service's */
    uint64_t call_deadline_ns;
    lode_repair_t *repair;
    lode_replica_h replica; /**< of landmarks among GPUs; NULL before it is made */
    uint32_t replicas;
    uint64_t blocks_made; /**< by this rank: part of their ids */
    uint64_t hot_bytes;
    void *store_base; /**< the node's mapping for landmarks, laid out when there is a geometry */
    int store_fd;
    uint64_t store_bytes;
    uint32_t store_blocks;
    char *transform_path;          /**< "": none */
    lode_transform_t *transform;   /**< NULL: none */
    const lode_options_t *options; /**< while it joins */
    uint64_t started_ns;
    lode_meter_t meter;
    _Atomic uint64_t clients;                /**< of a service: connected to this rank */
    lode_hot_t *hot[LODE_FORMAT_HIGGS4 + 1]; /**< one a storage format, made with the first view that needs it */
    lode_step_state_t *step;
    struct lode_gpu *gpu; /**< what steps run on (device.h); NULL: the CPU */
    bool owns_mpi;
};

/** Unsealed tokens of one layer, as bf16 records [token][head]. */
typedef struct lode_tail {
    uint64_t first;    /**< block position of the first token in the tail: a multiple of the page */
    uint64_t tokens;   /**< in the tail; may exceed a page between steps */
    uint64_t mirrored; /**< block position up to which a GPU has what the tail holds */
    lode_buffer_t records;
    float *mean; /**< (heads, D) once fixed, NULL before or if not centred */
    bool mean_sent;
    uint64_t told;    /**< block position up to which some node may know that tokens are complete */
    uint64_t shown;   /**< up to which all do */
    uint64_t offered; /**< landmarks that went to others' GPUs, or were left to their hosts: whole tiles */
} lode_tail_t;

struct lode_block {
    lode_cluster_h cluster;
    lode_block_info_t info;
    uint32_t slot;
    uint32_t heads;
    size_t record_bytes;
    uint32_t references; /**< the caller's handle and every view */
    bool draft;          /**< its tokens stay in the tail until it is sealed; known to the writer alone */
    bool dropped;        /**< by this rank */
    bool sealing;        /**< a seal has begun */
    bool sealed;         /**< by this rank, the writer */
    lode_tail_t *tails;  /**< (layers) on the writer, NULL on others */
    /* where the running step put it */
    uint64_t step_serial;
    uint32_t step_index;
};

struct lode_view {
    lode_cluster_h cluster;
    lode_block_h *blocks;
    int64_t *offsets;
    uint32_t count;
    int32_t write_block;
    bool shared_positions;
    lode_policy_t policy;
    uint32_t chunk;
    float *gpu_guesses; /**< the same in device memory, made when first needed */
    float *guesses;     /**< (layers, heads): where the last choice's least score was, for the next one to begin at */
};

/* ---------------------------------------------------------------- cluster.c */

/*
 * How a process that MPI did not start becomes a rank: prepare, give the card to lode_fabric_admit() on a rank, enter
 * by the invitation that comes back. It begins without geometry and blocks; tending by all ranks brings them, and
 * until then it is filling. If entering fails, lode_cluster_leave().
 */
lode_status_t lode_cluster_prepare(lode_config_h config, lode_cluster_h *cluster, void **card, size_t *card_bytes);
lode_status_t lode_cluster_enter(lode_cluster_h cluster, lode_config_h config, const void *invitation, size_t bytes);

/* ------------------------------------------------------------------ shape.c */

lode_status_t lode_geometry_check(const lode_geometry_t *geometry);
/**
 * Give this rank its geometry and what depends on it. @p first: lay the node's store out, else take what another
 * rank has laid out. The same geometry again is a success. On an error the cluster is as before.
 */
lode_status_t lode_shape_here(lode_cluster_h cluster, const lode_geometry_t *geometry, bool first);
static inline bool lode_shaped(lode_cluster_h cluster)
{
    return atomic_load_explicit(&cluster->shaped, memory_order_acquire);
}
/** LODE_ERR_GEOMETRY if the cluster has none yet. */
lode_status_t lode_check_shaped(lode_cluster_h cluster);
lode_status_t lode_serve_geometry(lode_cluster_h cluster, const Lodemark__GeometrySet *message);
lode_status_t lode_local_shape(lode_cluster_h cluster, const lode_geometry_t *geometry);
lode_status_t lode_local_geometry(lode_cluster_h cluster, lode_geometry_t *geometry);

/* ----------------------------------------------------------------- places.c */

/** Take what placement must know from the members of now. @p domain: the option's text. */
lode_status_t lode_places_create(lode_cluster_h cluster, const char *domain);
void lode_places_destroy(lode_cluster_h cluster);
/** Follow changes of members: a lost rank weighs nothing, one that came has its own node and arena. */
void lode_places_refresh(lode_cluster_h cluster);
/** Lowest living rank that knows all blocks: it decides who gets a name, and fills those that joined. */
uint32_t lode_leader(lode_cluster_h cluster);

/* --------------------------------------------------------- repair.c, fill.c */

lode_status_t lode_repair_create(lode_cluster_h cluster, uint64_t bytes_per_second);
void lode_repair_destroy(lode_cluster_h cluster);
typedef struct lode_repair_stats {
    /** published pages of live blocks with fewer living owners than asked for; after a change 1 until counted */
    uint64_t under_replicated;
    uint64_t lost;         /**< of those, without any */
    uint64_t misplaced;    /**< fully replicated, but not where placement wants them */
    uint64_t copied_bytes; /**< by this rank */
    uint64_t refused;      /**< copies that an owner had no room for */
    bool filling;
} lode_repair_stats_t;
/** As of the last look at all pages. Any thread. */
void lode_repair_stats(lode_cluster_h cluster, lode_repair_stats_t *stats);
/** How much more may be copied now; take what was. */
bool lode_repair_may_copy(lode_cluster_h cluster);
void lode_repair_copied(lode_cluster_h cluster, size_t bytes);

/** Reply.offset of a newcomer: it is filled; it could not use a message yet. */
enum { LODE_FILL_ACCEPTED = 1, LODE_FILL_MISSED = 2 };
typedef struct lode_fill lode_fill_t;
lode_status_t lode_fill_create(lode_cluster_h cluster, lode_fill_t **fill);
void lode_fill_destroy(lode_fill_t **fill);
/** As leader, send newcomers what they lack, until about @p end_ns. @return whether more can be done at once. */
bool lode_fill_some(lode_cluster_h cluster, lode_fill_t *fill, uint64_t end_ns);

/* ------------------------------------------------------------------ stats.c */

/** Count a step; @p stats is NULL for one that failed. */
void lode_meter_step(lode_meter_t *meter, const lode_step_stats_t *stats);
/** Fill a message about this rank; any thread. */
void lode_serve_rank_stats(lode_cluster_h cluster, Lodemark__RankStats *message);
/** What lode_cluster_rank_stats() would say of the own rank; any thread. */
void lode_rank_stats_here(lode_cluster_h cluster, lode_rank_stats_t *stats);
lode_status_t lode_local_rank_stats(lode_cluster_h cluster, uint32_t rank, lode_rank_stats_t *stats);

/* ------------------------------------------------------------------ serve.c */

lode_status_t lode_serve(void *context, uint32_t from, const Lodemark__Call *call, const void *payload, size_t bytes,
                         Lodemark__Reply *reply);
const uint8_t *lode_serve_page(void *context, uint64_t block, uint32_t layer, uint32_t page, size_t record_end);

/* ----------------------------------------------------------------- spread.c */

/** A call and its payload, to be sent to every keeper. */
typedef struct lode_telling {
    Lodemark__Call call;
    const void *payload;
    size_t bytes;
} lode_telling_t;

/** Send n calls to the keeper of every node and wait; a keeper that dies is followed by its successor. */
lode_status_t lode_tell_keepers(lode_cluster_h cluster, lode_telling_t *tellings, uint32_t n);
/** A message of a block; it borrows @p info. */
void lode_block_message(const lode_block_info_t *info, Lodemark__BlockInfo *message);
/** A message of hints: list and messages have LODE_REPLICAS_MAX places. */
void lode_hint_messages(const lode_page_hint_t *hints, uint32_t count, Lodemark__PageHint *messages,
                        Lodemark__PageHint **list);
/** Enter a block in the block tables of all nodes, the leader's first. */
lode_status_t lode_spread_block(lode_cluster_h cluster, const lode_block_info_t *info);
/**
 * Send all full pages of a layer's tail (with @p flush, a part-filled last one too) to owners and keepers, and
 * shorten the tail. Nobody sees them before lode_spread_publish(). On an error the tail is as it was.
 */
lode_status_t lode_spread_tail(lode_block_h block, uint32_t layer, bool flush);
/** Make all tokens that have left the tail visible on every node. */
lode_status_t lode_spread_publish(lode_block_h block, uint32_t layer);
/** Have owners forget the pages of tokens [first, end), which were never published. */
void lode_spread_take_back(lode_block_h block, uint32_t layer, uint64_t first, uint64_t end);
/** Tell every living rank that a block is dropped. */
lode_status_t lode_spread_drop(lode_cluster_h cluster, uint64_t block);

/* ------------------------------------------------------------------- tail.c */

/** Write tokens (checked finite) behind the tail. k, v: (tokens, heads, D). */
lode_status_t lode_tail_write(lode_block_h block, uint32_t layer, uint64_t tokens, lode_dtype_t dtype, const void *k,
                              const void *v);
/** Record of a token of the tail. */
const uint8_t *lode_tail_record(const struct lode_block *block, uint32_t layer, uint64_t token, uint32_t head);
/** Fix the mean key of a layer, if the block is centred and has none yet, from its first @p tokens keys. */
lode_status_t lode_tail_mean(lode_block_h block, uint32_t layer, uint64_t tokens, lode_dtype_t dtype, const void *k);
/** The same from what the tail holds, all of it: of a draft, whose first tokens may have been taken back since. */
lode_status_t lode_tail_mean_here(lode_block_h block, uint32_t layer);
/** Keys and values of some tokens of the tail: (tokens, heads, D). */
void lode_tail_read(const struct lode_block *block, uint32_t layer, uint64_t first, uint64_t tokens, float *k,
                    float *v);
/** LODE_ERR_NONFINITE names layer, head and token of the first bad element of x (tokens, heads, D). */
lode_status_t lode_check_finite(lode_cluster_h cluster, const char *what, uint32_t layer, uint64_t tokens,
                                uint32_t heads, lode_dtype_t dtype, const void *x);
static inline size_t lode_dtype_bytes(lode_dtype_t dtype)
{
    return dtype == LODE_FP32 ? 4 : 2;
}

/* ---------------------------------------------- the calls of calls.h that other files here need or name in the table
 */

lode_status_t lode_local_tend(lode_cluster_h cluster, uint64_t budget_us, int *more);
lode_status_t lode_local_blocks(lode_cluster_h cluster, lode_block_entry_t *entries, uint32_t capacity,
                                uint32_t *count);
lode_status_t lode_local_block_create(lode_cluster_h cluster, const lode_block_params_t *params, lode_block_h *block);
lode_status_t lode_local_block_open(lode_cluster_h cluster, const char *name, lode_block_h *block);
lode_status_t lode_local_block_append(lode_block_h block, uint32_t layer, uint64_t tokens, lode_dtype_t dtype,
                                      const void *k, const void *v);
lode_status_t lode_local_block_seal(lode_block_h block);
lode_status_t lode_local_block_crop(lode_block_h block, uint64_t tokens);
lode_status_t lode_local_block_move(lode_block_h from, uint64_t first, lode_block_h to);
lode_status_t lode_local_block_drop(lode_block_h *block);
lode_status_t lode_local_block_close(lode_block_h *block);
lode_status_t lode_local_block_tokens(lode_block_h block, uint32_t layer, uint64_t *tokens);
lode_status_t lode_local_view_create(lode_cluster_h cluster, const lode_view_params_t *params, lode_view_h *view);
lode_status_t lode_local_view_destroy(lode_view_h *view);
lode_status_t lode_local_step(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count,
                              lode_step_stats_t *stats);
lode_status_t lode_local_step_enqueue(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams,
                                      uint32_t count, void *cuda_stream, lode_step_stats_t *stats);
lode_status_t lode_local_step_selection(lode_cluster_h cluster, uint32_t stream, uint32_t token, uint32_t kv_head,
                                        const uint32_t **tokens, uint64_t *count);

/* ------------------------------------------------------------------ block.c */

void lode_block_release(lode_block_h block);
/** LODE_ERR_DROPPED if the block is gone, here or by another rank. */
lode_status_t lode_block_check(const struct lode_block *block);
/** Whether this rank may append now. */
lode_status_t lode_block_check_append(lode_block_h block);
/** Send the full pages that steps have left in a layer's tail on their way, but a draft's; on an error nothing has
 * changed. */
lode_status_t lode_block_settle(lode_block_h block, uint32_t layer);
/** A layer's tail as it was, to go back to. */
typedef struct lode_mark {
    uint64_t first, tokens;
    bool mean_sent;
    uint8_t *records; /**< a copy; NULL: what has left since is still in its place, as after a flush */
} lode_mark_t;
/** @p copy: what leaves may be followed by what stays. Then free mark->records. */
lode_status_t lode_block_mark(const struct lode_block *block, uint32_t layer, bool copy, lode_mark_t *mark);
/** Have owners forget what has left since, which was not published, and put it back. The error message stays. */
void lode_block_return(lode_block_h block, uint32_t layer, const lode_mark_t *mark);
/** LODE_ERR_INVALID if layers differ in length: the block cannot be @p what ("sealed"). */
lode_status_t lode_block_check_equal(lode_block_h block, const char *what);
/** Tokens in pages that this rank may read. */
uint64_t lode_block_committed(const struct lode_block *block, uint32_t layer);

/* -------------------------------------------------------------------- hot.c */

lode_status_t lode_hot_create(size_t bytes, size_t record_bytes, lode_hot_t **hot);
void lode_hot_destroy(lode_hot_t **hot);
uint64_t lode_hot_capacity(const lode_hot_t *hot);
/** The cached record, touched as of @p step; NULL if absent. Stays in place while the step runs. */
const uint8_t *lode_hot_find(lode_hot_t *hot, uint64_t block, uint64_t key, uint64_t step);
/** Keep a copy, unless all places it could take are in use by this step. */
void lode_hot_insert(lode_hot_t *hot, uint64_t block, uint64_t key, uint64_t step, const uint8_t *record);
static inline uint64_t lode_hot_key(uint32_t layer, uint32_t head, uint64_t token)
{
    return (uint64_t)layer << 52 | (uint64_t)head << 40 | token;
}

/* ------------------------------------------------------------------- step.c */

lode_status_t lode_step_state_create(lode_cluster_h cluster, lode_step_state_t **state);
void lode_step_state_destroy(lode_step_state_t **state);

#endif
