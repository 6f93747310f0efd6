/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file lodemark.h
 * @brief Attention over contexts whose KV cache lies in the host memory of a whole cluster.
 *
 * The life of a program: read a configuration, join the cluster, create blocks and append keys and
 * values to them, list blocks in views, and call lode_step() once per layer and decoding step.
 * docs/examples/attend.c is a complete program in under 80 lines.
 *
 * Conventions. Every function returns a ::lode_status_t; outputs are written only on ::LODE_OK, and
 * lode_error_message() then holds a sentence that says what, where and what to do. Handles are
 * opaque; the destroying call nulls the caller's handle. Shapes are written slowest index first,
 * "q: (T, Hq, D)"; all arrays are dense and in host memory, but for those of steps on a rank with a GPU (option
 * "device"), which may also be in the memory of that GPU. Hq and Hkv count the heads of this rank's
 * range (lode_geometry_t.kv_head_begin to kv_head_end), not of the whole model.
 *
 * Threads. One thread at a time may use a cluster handle and all blocks and views made from it.
 * "Collective" means that every rank of the job must make the call; nothing else is collective.
 *
 * Two kinds of user. A *rank* joins the cluster by lode_cluster_join() under MPI and holds a part of the pages.
 * A *client* connects to a running service (lodemarkd) by lode_cluster_connect(), without MPI; the rank that it is
 * connected to computes for it. Everything below is the same for both but where it says otherwise.
 */
#ifndef LODEMARK_H
#define LODEMARK_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define LODE_VERSION_MAJOR 0
#define LODE_VERSION_MINOR 1
#define LODE_VERSION_PATCH 0

#if defined(__GNUC__)
#define LODE_API __attribute__((visibility("default")))
#else
#define LODE_API
#endif

/** Tokens in a page: the unit of placement, replication and checksum. */
#define LODE_PAGE_TOKENS 64
/** Longest name of a block, in bytes, without the terminating zero. */
#define LODE_NAME_MAX 63
/** Most owners a page may have. */
#define LODE_REPLICAS_MAX 4

/** What became of a call: 0 is success, everything else is negative. Grouped by what is lost. */
typedef enum lode_status {
    LODE_OK = 0,
    /* the call: the caller can mend it */
    LODE_ERR_INVALID = -1,     /**< an argument is out of range or contradicts another */
    LODE_ERR_UNSUPPORTED = -2, /**< a valid wish that this build or machine cannot fulfil */
    LODE_ERR_GEOMETRY = -3,    /**< shapes do not fit the model's geometry */
    LODE_ERR_NONFINITE = -4,   /**< NaN or infinity in a key, value or query */
    LODE_ERR_NAME_IN_USE = -5, /**< a live block has this name already */
    LODE_ERR_NOT_FOUND = -6,   /**< no block of this name */
    LODE_ERR_SEALED = -7,      /**< the block takes no more tokens */
    LODE_ERR_DROPPED = -8,     /**< the block was dropped */
    LODE_ERR_FULL = -9,        /**< an arena or table has no room left */
    LODE_ERR_FORMAT = -10,     /**< a file or message is torn or not what it claims to be */
    LODE_ERR_IO = -11,         /**< the operating system refused to read or write a file */
    /* a peer: other ranks may still serve */
    LODE_ERR_PAGE_LOST = -20, /**< no owner of a page could give it */
    LODE_ERR_PEER_LOST = -21, /**< a rank that the call needs is dead */
    LODE_ERR_TIMEOUT = -22,   /**< a rank did not answer before the deadline */
    LODE_ERR_REFUSED =
        -23, /**< a service refused: no token, a wrong one, another version, too many clients, shutting down */
    /* the job: this rank cannot go on */
    LODE_ERR_NO_MEMORY = -30, /**< the operating system gave no memory */
    LODE_ERR_MPI = -31,       /**< an MPI call failed */
    LODE_ERR_UCX = -32,       /**< a UCX call failed */
    LODE_ERR_INTERNAL = -33,  /**< a defect of Lodemark */
    LODE_ERR_DEVICE = -34     /**< a CUDA call failed */
} lode_status_t;

/** A short constant text for a status, never NULL. */
LODE_API const char *lode_status_string(lode_status_t status);
/** What the last failed call of this thread says about its cause; "" if none. Borrowed until the thread's next call. */
LODE_API const char *lode_error_message(void);
/** "0.1.0". */
LODE_API const char *lode_version(void);

/** Element type of the caller's tensors. */
typedef enum lode_dtype { LODE_BF16, LODE_FP16, LODE_FP32 } lode_dtype_t;

/** How records are stored: 2·D·2, 2·D or D bytes of payload for the K and V of one token and head. */
typedef enum lode_format { LODE_FORMAT_BF16, LODE_FORMAT_FP8, LODE_FORMAT_HIGGS4 } lode_format_t;

/** "bf16", "fp8" or "higgs4" to a format. @return ::LODE_ERR_INVALID for any other text. */
LODE_API lode_status_t lode_format_parse(const char *text, lode_format_t *format);
LODE_API const char *lode_format_name(lode_format_t format);

/* ---------------------------------------------------------------- geometry */

typedef enum lode_rope_scaling {
    LODE_ROPE_PLAIN,
    LODE_ROPE_LINEAR, /**< every frequency divided by factor */
    LODE_ROPE_LLAMA3, /**< Llama 3.1: low frequencies divided, a smooth ramp between */
    LODE_ROPE_YARN    /**< YaRN: ramp between beta_fast and beta_slow (arXiv 2309.00071) */
} lode_rope_scaling_t;

/** Rotary embedding of the model. Pairs are (i, i + D/2), as in the Hugging Face layout. */
typedef struct lode_rope {
    double theta; /**< base, e.g. 500000 */
    lode_rope_scaling_t scaling;
    double factor;           /**< linear, llama3, yarn */
    double low_freq_factor;  /**< llama3 */
    double high_freq_factor; /**< llama3 */
    double beta_fast;        /**< yarn */
    double beta_slow;        /**< yarn */
    double original_context; /**< llama3, yarn: tokens of the pre-training context */
} lode_rope_t;

/** Shape of the model, the same on every rank but for the KV-head range. */
typedef struct lode_geometry {
    uint32_t layers;
    uint32_t query_heads;                /**< of the whole model; a multiple of kv_heads */
    uint32_t kv_heads;                   /**< of the whole model */
    uint32_t head_dim;                   /**< 64, 128 or 256 */
    uint32_t kv_head_begin, kv_head_end; /**< this rank's KV heads, [begin, end); 0, 0 means all */
    lode_rope_t rope;
} lode_geometry_t;

/* ----------------------------------------------------------- configuration */

typedef struct lode_config *lode_config_h;

/**
 * Make a configuration of the defaults overlaid by LODEMARK_* variables.
 * An unknown LODEMARK_ variable is warned about, with the nearest known name.
 * @return ::LODE_ERR_INVALID if a variable holds a value that its option cannot take.
 */
LODE_API lode_status_t lode_config_create(lode_config_h *config);
/** Set option @p name ("arena", "replicas", …; see `lodemark info --config`) from its text form. */
LODE_API lode_status_t lode_config_set(lode_config_h config, const char *name, const char *value);
/** The text form of option @p name, or NULL if there is none. Borrowed until the next set. */
LODE_API const char *lode_config_get(lode_config_h config, const char *name);
/** Print every option: name, value, variable, and what it does. */
LODE_API void lode_config_print(lode_config_h config, FILE *out);
LODE_API void lode_config_destroy(lode_config_h *config);

/* ----------------------------------------------------------------- cluster */

typedef struct lode_cluster *lode_cluster_h;

/**
 * Join the cluster: register this rank's arena, exchange addresses, agree on the first epoch. Collective.
 *
 * Uses MPI_COMM_WORLD and initialises MPI (MPI_THREAD_FUNNELED) unless the caller did.
 * If one rank's parameters are refused, every rank returns an error; none is left waiting.
 *
 * @param[in]  config    borrowed for the call
 * @param[in]  geometry  borrowed for the call; NULL: said later by lode_cluster_shape()
 * @param[out] cluster   owned by the caller; give it back by lode_cluster_leave()
 * @return ::LODE_ERR_GEOMETRY (does not fit, or differs between ranks), ::LODE_ERR_INVALID (more
 *         replicas than ranks), ::LODE_ERR_NO_MEMORY, ::LODE_ERR_MPI, ::LODE_ERR_UCX.
 */
LODE_API lode_status_t lode_cluster_join(lode_config_h config, const lode_geometry_t *geometry,
                                         lode_cluster_h *cluster);
/**
 * Connect to a running service as a client. Not collective, no MPI.
 *
 * Asks the ranks of the contact file one after another until one takes the client. When that one dies later, the
 * call that notices goes on with another: blocks that are sealed and views over them stay valid, a step that wrote
 * nothing is asked again; what the client had not sealed is lost (::LODE_ERR_PEER_LOST).
 *
 * @param[in]  config      borrowed for the call; options of clients are those that `lodemark ls --help` names
 * @param[in]  contact     path of the contact file that lodemarkd wrote; NULL: LODEMARK_CLUSTER
 * @param[in]  token_file  path of the file that holds the service's token; NULL: LODEMARK_TOKEN_FILE, or the token
 *                         itself in LODEMARK_TOKEN
 * @param[out] cluster     owned by the caller; give it back by lode_cluster_leave()
 * @return ::LODE_ERR_IO, ::LODE_ERR_FORMAT (contact file), ::LODE_ERR_REFUSED, ::LODE_ERR_PEER_LOST (no rank of the
 *         contact file answers: the service is gone), ::LODE_ERR_TIMEOUT, ::LODE_ERR_UCX.
 */
LODE_API lode_status_t lode_cluster_connect(lode_config_h config, const char *contact, const char *token_file,
                                            lode_cluster_h *cluster);
/**
 * Say the model's geometry in a cluster that has none yet: then every rank has it. Where it has one, compare.
 * Not collective. A service gets its geometry from its first client that puts something.
 * @return ::LODE_ERR_GEOMETRY (unfit, or the cluster has another: the message says which).
 */
LODE_API lode_status_t lode_cluster_shape(lode_cluster_h cluster, const lode_geometry_t *geometry);
/** The cluster's geometry. @return ::LODE_ERR_NOT_FOUND if it has none yet. */
LODE_API lode_status_t lode_cluster_geometry(lode_cluster_h cluster, lode_geometry_t *geometry);
/**
 * Leave the cluster. Collective among the living ranks; a client disconnects, and what it has not sealed is dropped.
 * Blocks and views made from it must be closed before.
 * Finalises MPI if lode_cluster_join() initialised it and no rank has died; where one has, MPI cannot
 * be finalised (it would wait for the dead) and the program should end by _exit().
 */
LODE_API lode_status_t lode_cluster_leave(lode_cluster_h *cluster);

typedef struct lode_cluster_info {
    uint32_t rank, ranks, alive;            /**< alive as this rank knows it, itself included */
    uint32_t nodes;                         /**< distinct failure domains */
    uint32_t epoch;                         /**< number of the current membership, from 1 */
    uint64_t arena_bytes, arena_used_bytes; /**< this rank's shard */
    uint64_t landmark_bytes;                /**< of this node, all blocks */
    const char *kernels;                    /**< "scalar", "avx2", "avx512" */
    const char *device;                     /**< name of the GPU that steps run on; "": the CPU */
    uint64_t device_landmark_bytes;         /**< in its memory, of blocks that steps have used */
    uint64_t device_cache_bytes;            /**< its cache of records */
    uint64_t device_looked, device_hits;    /**< records that steps wanted, and of those, found in that cache */
    const char *path;                       /**< "one-sided", "batched" or "mixed" */
    const char *path_reason;                /**< why, one sentence */
} lode_cluster_info_t;

/** About this rank, or a client's. Texts are borrowed until lode_cluster_leave(). */
LODE_API lode_status_t lode_cluster_query(lode_cluster_h cluster, lode_cluster_info_t *info);
/** Wait for an answer of the rank that a client is connected to. @param[out] round_trip_ns 0 on a rank */
LODE_API lode_status_t lode_cluster_ping(lode_cluster_h cluster, uint64_t *round_trip_ns);

/** What one rank says of itself. Totals count from its start. */
typedef struct lode_rank_stats {
    uint32_t rank;
    uint32_t alive;       /**< 0: lost; then only rank and host are set */
    uint32_t incarnation; /**< how many processes have had this rank number, this one included */
    uint32_t epoch;       /**< of the membership it lives in */
    uint32_t fenced;      /**< 1: cut off from the others, takes no changes */
    uint32_t filling;     /**< 1: joined lately, landmarks still come in */
    char host[64];
    uint64_t uptime_ns;
    uint64_t arena_bytes, arena_used_bytes, pages; /**< of its shard */
    uint64_t landmark_bytes;                       /**< of its node */
    uint64_t blocks;                               /**< live, as it knows them */
    uint64_t under_replicated_pages;               /**< of all, with fewer living owners than asked for */
    uint64_t lost_pages;                           /**< of all, without a living owner */
    uint64_t repaired_bytes;                       /**< copied by it to restore or to move replicas */
    uint64_t clients;                              /**< connected to it */
    uint64_t steps, failed_steps;
    double steps_per_second;                                     /**< over the last seconds */
    uint64_t step_p50_ns, step_p90_ns, step_p99_ns, step_max_ns; /**< of the latest steps; 0 before the first */
    uint64_t fetched_bytes, served_bytes;                        /**< records in from, out to other ranks */
    double fetched_bytes_per_second, served_bytes_per_second;    /**< over the last seconds */
    uint32_t device;                                             /**< 1: its steps run on a GPU; then: */
    uint64_t device_landmark_bytes, device_cache_bytes;          /**< in the GPU's memory */
    uint64_t device_looked, device_hits; /**< records that steps wanted, and of those, found in the GPU's cache */
} lode_rank_stats_t;

/** Ask a rank for its statistics. @return ::LODE_ERR_INVALID (no such rank), ::LODE_ERR_TIMEOUT. */
LODE_API lode_status_t lode_cluster_rank_stats(lode_cluster_h cluster, uint32_t rank, lode_rank_stats_t *stats);
/**
 * Do a little of the work that keeps k owners a page: copy pages of lost ranks, fill ranks that joined. lodemarkd
 * calls it when it is idle; a program that ranks run themselves may. Nothing to do for a client.
 * @param[in]  budget_us  about how long
 * @param[out] more       whether there is more to do now; may be NULL
 */
LODE_API lode_status_t lode_cluster_tend(lode_cluster_h cluster, uint64_t budget_us, int *more);

/* ------------------------------------------------------------------ blocks */

typedef enum lode_landmark_codec {
    LODE_LANDMARK_MEAN,    /**< bf16 mean of the chunk (bits = 16) */
    LODE_LANDMARK_UNIFORM, /**< Hadamard, uniform grid, inner-product rescale (bits = 8, 4, 2, 1) */
    LODE_LANDMARK_HIGGS    /**< Hadamard, Gaussian vector grid as in arXiv 2604.08426 (bits = 4, 2) */
} lode_landmark_codec_t;

/** Whether a block's landmarks have an index, so that a step over very many of them looks at some alone. */
typedef enum lode_landmark_index {
    LODE_INDEX_AUTO, /**< kept by blocks that are announced as long, used where it pays */
    LODE_INDEX_ON,   /**< kept, and used wherever there is something to skip */
    LODE_INDEX_OFF
} lode_landmark_index_t;

/** The quantised representative of each chunk of keys. */
typedef struct lode_landmark_spec {
    lode_landmark_codec_t codec;
    uint32_t bits;   /**< a coordinate: 16, 8, 4, 2, 1 */
    uint32_t chunk;  /**< tokens a landmark: 1, 2, 4, 8, 16 */
    uint32_t centre; /**< 1: the block's mean key is subtracted before quantising, its score added back */
    lode_landmark_index_t index;
} lode_landmark_spec_t;

/** "landmark2", "landmark4:c8", "landmark2:higgs:nocentre" … to a spec. */
LODE_API lode_status_t lode_landmark_parse(const char *text, lode_landmark_spec_t *spec);

typedef struct lode_block *lode_block_h;

typedef struct lode_block_params {
    /** 1 to ::LODE_NAME_MAX bytes of printable UTF-8; unique among live blocks of one KV-head range */
    const char *name;
    lode_format_t format; /**< of its records */
    uint32_t replicas;    /**< owners a page; 0: the configuration's */
    lode_landmark_spec_t landmark;
    uint64_t expected_tokens; /**< a hint that sizes the first extent; 0 if unknown */
    /**
     * 1: a draft. Its tokens stay with the writer and are attended to in full until it is sealed, so that all of them
     * can be taken back; on other ranks it is empty till then. For probes and paragraphs, not for documents.
     */
    uint32_t draft;
} lode_block_params_t;

/**
 * Create an empty block; this rank becomes its writer. Not collective.
 * @return ::LODE_ERR_NAME_IN_USE, ::LODE_ERR_INVALID, ::LODE_ERR_FULL (block table), ::LODE_ERR_TIMEOUT.
 */
LODE_API lode_status_t lode_block_create(lode_cluster_h cluster, const lode_block_params_t *params,
                                         lode_block_h *block);
/** Open a block that some rank created, to read it. @return ::LODE_ERR_NOT_FOUND if this node does not know it yet. */
LODE_API lode_status_t lode_block_open(lode_cluster_h cluster, const char *name, lode_block_h *block);

/**
 * Append tokens to one layer of a block. Not collective; returns when all full pages are with their
 * owners and their landmarks on every node. All or nothing: on an error the layer is as before.
 *
 * @param[in] block   made by lode_block_create() on this rank
 * @param[in] layer   0 … L−1
 * @param[in] tokens  n, how many
 * @param[in] dtype   of k and v
 * @param[in] k       (n, Hkv, D), rotated (post-RoPE) to block-relative positions; copied
 * @param[in] v       (n, Hkv, D); copied
 * @return ::LODE_ERR_NONFINITE (message names layer, head and token), ::LODE_ERR_SEALED,
 *         ::LODE_ERR_DROPPED, ::LODE_ERR_FULL (an owner's arena), ::LODE_ERR_PEER_LOST, ::LODE_ERR_TIMEOUT.
 */
LODE_API lode_status_t lode_block_append(lode_block_h block, uint32_t layer, uint64_t tokens, lode_dtype_t dtype,
                                         const void *k, const void *v);
/** Close a block to new tokens: its unfinished page goes to its owners. All layers must be equally long. */
LODE_API lode_status_t lode_block_seal(lode_block_h block);
/**
 * Keep the first @p tokens of every layer, and forget those behind them; 0 clears the block. Not collective. Views that
 * list the block move what stands behind it, as when it grows.
 *
 * Tokens that have left as pages cannot be taken back: of a block that is no draft that may be all but the last page.
 *
 * @return ::LODE_ERR_INVALID (a layer has fewer tokens; another rank's block), ::LODE_ERR_SEALED (it is sealed, or
 *         tokens behind the @p tokens have left as pages: the message says how many can be kept at least); nothing is
 *         forgotten then.
 */
LODE_API lode_status_t lode_block_crop(lode_block_h block, uint64_t tokens);
/**
 * Move the tokens from @p first on to the end of another block: a finished paragraph into a shared one. Not collective.
 * Their keys are turned to their positions there, which rounds them to bf16 once more; @p from keeps what was before.
 * All or nothing.
 * @return as lode_block_crop() about @p from, as lode_block_append() about @p to; ::LODE_ERR_INVALID if they are one.
 */
LODE_API lode_status_t lode_block_move(lode_block_h from, uint64_t first, lode_block_h to);
/** Free the block everywhere and close the handle. Views that list it return ::LODE_ERR_DROPPED from then on. */
LODE_API lode_status_t lode_block_drop(lode_block_h *block);
/** Close the handle; the block stays. A block that is closed unsealed by its writer loses its unfinished page, a draft
 * all of it. */
LODE_API lode_status_t lode_block_close(lode_block_h *block);
/** Tokens of one layer that this rank can attend to: the committed pages, and on the writer the tail as well. */
LODE_API lode_status_t lode_block_tokens(lode_block_h block, uint32_t layer, uint64_t *tokens);

/** A live block, as listings show it. */
typedef struct lode_block_entry {
    char name[LODE_NAME_MAX + 1];
    uint64_t id;
    uint64_t tokens; /**< in pages, of its shortest layer */
    lode_format_t format;
    uint32_t replicas;
    uint32_t sealed;
    uint32_t writer; /**< rank */
    uint32_t kv_head_begin, kv_head_end;
    lode_landmark_spec_t landmark;
} lode_block_entry_t;

/**
 * All live blocks that this rank (a client's rank) knows, in no order.
 * @param[out] entries   (capacity); may be NULL if capacity is 0
 * @param[out] count     how many there are, which may be more than capacity
 */
LODE_API lode_status_t lode_cluster_blocks(lode_cluster_h cluster, lode_block_entry_t *entries, uint32_t capacity,
                                           uint32_t *count);

/* ------------------------------------------------------------------- views */

typedef enum lode_select { LODE_SELECT_LANDMARK, LODE_SELECT_DENSE } lode_select_t;
/** How the query heads of a group agree on one score for a token. */
typedef enum lode_group_merge {
    LODE_MERGE_MAX, /**< maximum over the group of each head's softmax (arXiv 2604.08426) */
    LODE_MERGE_MEAN /**< the mean query's logit */
} lode_group_merge_t;

/** What a step does about tokens that it chose and no owner can give any more. */
typedef enum lode_lost {
    LODE_LOST_FAIL, /**< it returns ::LODE_ERR_PAGE_LOST */
    LODE_LOST_SKIP  /**< it goes on without them and says how many: lode_stream_t.lost_share */
} lode_lost_t;

typedef struct lode_policy {
    lode_select_t select;
    lode_group_merge_t merge;
    double budget_share;    /**< (0, 1]: of the visible tokens in pages; used if budget_tokens is 0 */
    uint64_t budget_tokens; /**< tokens a KV head and query token; 0: use budget_share */
    uint32_t sinks;         /**< first tokens of the view, always in; counted in the budget */
    uint32_t window;        /**< last tokens before the query, always in; counted in the budget */
    lode_lost_t lost;
} lode_policy_t;

typedef struct lode_view *lode_view_h;

/** Offset of a block that begins where the one before it ends; it moves as that one grows. */
#define LODE_OFFSET_AFTER INT64_MIN

typedef struct lode_view_params {
    const lode_block_h *blocks; /**< (n) in order; the view keeps what it needs, handles may be closed */
    const int64_t *offsets;     /**< (n) view position of each block's token 0, or NULL: one after another */
    uint32_t count;             /**< n ≥ 1 */
    int32_t write_block;        /**< index of the block that new tokens go to, −1: none */
    uint32_t shared_positions;  /**< 1: blocks may stand at overlapping positions */
    lode_policy_t policy;
} lode_view_params_t;

/**
 * @return ::LODE_ERR_INVALID (offsets overlap, budget not in (0, 1], a block twice, chunk sizes differ,
 *         write block sealed or not this rank's), ::LODE_ERR_DROPPED, ::LODE_ERR_GEOMETRY.
 */
LODE_API lode_status_t lode_view_create(lode_cluster_h cluster, const lode_view_params_t *params, lode_view_h *view);
LODE_API lode_status_t lode_view_destroy(lode_view_h *view);

/* -------------------------------------------------------------------- step */

/** View position of a stream's first new token: right after the end of the view. */
#define LODE_POSITION_END INT64_MIN

typedef struct lode_stream {
    lode_view_h view;
    uint32_t tokens; /**< T ≥ 1 */
    /** view position P of the first new token, or ::LODE_POSITION_END; with k it must be the write block's end */
    int64_t position;
    lode_dtype_t dtype; /**< of q, k, v */
    const void *q;      /**< (T, Hq, D), rotated to view positions P … P+T−1 */
    const void *k;      /**< (T, Hkv, D), rotated to positions of the write block, or NULL: nothing is written */
    const void *v;      /**< (T, Hkv, D), NULL iff k is */
    float *out;         /**< (T, Hq, D) */
    float *lse;         /**< (T, Hq) natural log of the sum of exp(logit) over the attended tokens, or NULL */
    float *lost_share;  /**< (T) share of the chosen tokens that were lost, of the worst KV head, or NULL; 0 if none */
} lode_stream_t;

typedef enum lode_stage {
    LODE_STAGE_ROTATE,
    LODE_STAGE_SCORE,
    LODE_STAGE_SELECT,
    LODE_STAGE_FETCH,
    LODE_STAGE_ATTEND,
    LODE_STAGE_MERGE,
    LODE_STAGE_COUNT
} lode_stage_t;

/** What one step did, all streams together. A record is counted once however many streams want it. */
typedef struct lode_step_stats {
    uint64_t visible_tokens;     /**< in pages, the longest stream's last token */
    uint64_t budget_tokens;      /**< tokens a KV head that token could choose */
    uint64_t records_wanted;     /**< chosen, without the tail */
    uint64_t records_local;      /**< of those, in this rank's own shard */
    uint64_t records_hit;        /**< of those, in the hot cache, or on a GPU in its cache */
    uint64_t records_fetched;    /**< of those, from other ranks */
    uint64_t records_prefetched; /**< of those, from other ranks, asked for before the step */
    uint64_t records_lost;       /**< of those wanted, that no owner could give (::LODE_LOST_SKIP) */
    uint64_t bytes_fetched;      /**< payload that landed, of a fetch ahead with the step that takes from it */
    uint64_t requests;           /**< messages or one-sided reads */
    uint32_t owners_asked;
    uint32_t retries;         /**< requests sent again to another owner */
    uint64_t selected_digest; /**< hash of the chosen sets, the same on every rank for the same inputs; 0 on a GPU */
    /**
     * Time that passed in each stage. Where several threads are at several stages at once, the time that passed is
     * divided by how long they were at each: so the stages add up to no more than step_ns, whatever the threads.
     */
    uint64_t stage_ns[LODE_STAGE_COUNT];
    uint64_t step_ns;
} lode_step_stats_t;

/**
 * One layer of one decoding step for one or more streams: write the new tokens' K and V, choose, fetch, attend.
 *
 * The T tokens of a stream are causal among themselves; each chooses its own set. All streams' new
 * tokens are written before any stream attends. Not collective: no other rank has to step.
 *
 * On a rank with a GPU, q, k, v, out and lse may each be in host, pinned or that GPU's memory, ready when the call is
 * made; outputs are there when it returns. Whether a q in device memory is finite is not looked at.
 *
 * @param[in]  layer    0 … L−1
 * @param[in]  streams  (count); tensors are borrowed for the call
 * @param[out] stats    may be NULL
 * @return ::LODE_ERR_NONFINITE, ::LODE_ERR_DROPPED, ::LODE_ERR_PAGE_LOST (message names block, layer and
 *         page), ::LODE_ERR_TIMEOUT, ::LODE_ERR_INVALID. On an error no output may be used, and tokens
 *         that the step had written are taken back.
 *
 * Source: arXiv 2604.08426 (choice by per-token landmarks), arXiv 2512.10931 (rotating q per block).
 */
LODE_API lode_status_t lode_step(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count,
                                 lode_step_stats_t *stats);

/**
 * A step of a rank with a GPU, enqueued on a CUDA stream: it reads its tensors, and its outputs are there, in stream
 * order.
 *
 * The call returns when all is enqueued. It waits for the GPU once, in the middle, if something may have to be fetched
 * from other ranks or does not fit the option gpu-staging; for k and v that are not in plain host memory, which it
 * copies; and until the end if an output is in plain host memory. Tensors in device or pinned memory stay the step's
 * until the stream has come past it; plain host memory is read before the call returns. Steps follow one another on the
 * GPU even if their streams differ.
 *
 * Graphs. While @p cuda_stream is being captured, the step becomes part of the graph, if it reads only (no k), all
 * pages of its blocks are in this rank's own arena and its tensors in device or pinned memory; and if the same step has
 * run before, since a captured one takes no memory and brings nothing up to date. The graph holds: the views' blocks,
 * as long as they are then, and where their pages lie; positions, policies and the number of streams and tokens; the
 * tensors' addresses. Each replay reads the q that is there then, chooses anew, and goes on using the cache. A replay
 * must not run beside other steps of the cluster, nor after a block of its views was dropped or its pages have moved (a
 * rank was lost or joined, and replicas followed), nor after lode_cluster_leave().
 *
 * @param[in]  cuda_stream  a cudaStream_t of this rank's GPU; NULL: the default stream
 * @param[out] stats        may be NULL. What only the GPU knows by then (records_wanted, _hit, _local) is 0 unless the
 *                          call waited; selected_digest is 0.
 * @return as lode_step(); ::LODE_ERR_UNSUPPORTED (no GPU, a client, or a step that cannot be captured: the message says
 *         why), ::LODE_ERR_INVALID (a stream or tensor of another GPU), ::LODE_ERR_DEVICE, ::LODE_ERR_NO_MEMORY (what
 *         was asked of the GPU and what is free). After an error in a capture, end the capture and drop its graph.
 */
LODE_API lode_status_t lode_step_enqueue(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams,
                                         uint32_t count, void *cuda_stream, lode_step_stats_t *stats);

/**
 * The tokens that the last step chose for one stream, query token and KV head.
 * @param[out] tokens  ascending indices into the view's tokens in pages, block after block; NULL if all
 *                     (a dense policy or a full budget). Borrowed until the next step.
 * @param[out] count   how many
 */
LODE_API lode_status_t lode_step_selection(lode_cluster_h cluster, uint32_t stream, uint32_t token, uint32_t kv_head,
                                           const uint32_t **tokens, uint64_t *count);

#ifdef __cplusplus
}
#endif
#endif
