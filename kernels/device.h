/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file device.h
 * @brief A GPU as the step sees it: memory that is apart, streams, and the operations of a step on arrays in it.
 *
 * One table of functions, as lode_ops_t is for processors; kernels/cuda/ fills it. What is named after an operation of
 * lode_ops_t means the same, and UNIFORM landmark codes, prepared queries and scores are the same to the bit.
 *
 * Memory. *Device* memory is read and written by the device alone. *Pinned* memory is the host's, and the device may
 * read and write it at the same address, over the bus. Pointers in the arguments of an operation are to device memory
 * unless they say otherwise; descriptors (the small structs below) are arrays there too, made on the host and copied.
 *
 * Order. Everything that takes a stream is only enqueued on it, and no host thread waits; it may be captured in a
 * graph. Nothing here allocates once a buffer is there, or is safe to call from two threads on one stream.
 *
 * Errors. A function that fails leaves a sentence in error(): the call that failed, the device's own words, what was
 * asked and what is free. Errors of kernels that were launched before come with the next call, as CUDA has it.
 */
#ifndef LODE_DEVICE_H
#define LODE_DEVICE_H

#include "kernels/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lode_device *lode_device_h;
typedef void *lode_device_stream_t; /**< a cudaStream_t */
typedef void *lode_device_event_t;  /**< a cudaEvent_t */
typedef void *lode_device_graph_t;  /**< a cudaGraphExec_t */

typedef struct lode_device_info {
    char name[64];
    char uuid[48]; /**< tells two devices of a cluster apart */
    char bus[16];  /**< PCI address "0000:17:00.0", as hwloc knows it */
    int ordinal;
    int major, minor; /**< compute capability */
    uint32_t processors;
    uint64_t memory_bytes, free_bytes, l2_bytes;
} lode_device_info_t;

/** What a pointer of a caller's is. */
typedef enum lode_memory {
    LODE_MEMORY_HOST,
    LODE_MEMORY_PINNED,
    LODE_MEMORY_DEVICE,
    LODE_MEMORY_OTHER_DEVICE /**< of another device than this one */
} lode_memory_t;

/** Records in device memory lie this far apart: lode_record_bytes() rounded up to 16, so that loads are whole. */
static inline size_t lode_device_record_bytes(lode_format_t format, uint32_t dim)
{
    return (lode_record_bytes(format, dim) + 15) & ~(size_t)15;
}

/* ------------------------------------------------------------------ scoring */

/** How one prepared query is made: rotated, summed up to the group's mean if it is one, transformed, quantised. */
typedef struct lode_device_query {
    uint32_t q;             /**< first row of q (rows, D) */
    uint32_t count;         /**< 1, or the mean of so many rows that follow (LODE_MERGE_MEAN) */
    uint32_t angles;        /**< index in the array of angles of D/2 cosines, then D/2 sines; UINT32_MAX: not rotated */
    const float *mean;      /**< (D) mean key, whose score is added; NULL: none */
    const float *transform; /**< (D, D) for queries (landmarks/transform.h); NULL: Hadamard (MEAN: none) */
} lode_device_query_t;

/** Landmarks of one head of one block, to be scored for some queries. */
typedef struct lode_device_scan {
    const uint8_t *tiles; /**< 128-byte aligned; the last may be part-filled */
    uint32_t landmarks;
    uint32_t query, rows; /**< prepared queries query … query+rows−1, rows ≤ LODE_MAX_GROUP */
    uint32_t first_tile;  /**< tiles of the launch's scans before this one; ceil(landmarks / LODE_TILE) each */
    float *scores;        /**< of row r and landmark i: scores[r·stride + i]; 16-byte aligned */
    uint64_t stride;      /**< a multiple of 4 */
} lode_device_scan_t;

/* ---------------------------------------------------------------- selecting */

/** A block as one choice sees it: as lode_piece_t, with what sinks and window leave to compete. */
typedef struct lode_device_piece {
    uint64_t first_token;       /**< view-token index of its token 0 */
    uint32_t tokens, landmarks; /**< seen */
    /** of it among all the choice's landmarks: a multiple of 4, for the alignment of scores; what lies between two
     * pieces is no landmark and may hold any bits */
    uint32_t first_landmark;
    uint32_t begin, end; /**< tokens of the block that compete; those outside are chosen anyway */
} lode_device_piece_t;

/** What one row and KV head chooses from: lode_choose(), with what the host knows worked out. */
typedef struct lode_device_choice {
    float *scores;      /**< (group, stride) raw logits of all pieces' landmarks; overwritten */
    uint64_t stride;    /**< a multiple of 4 */
    uint32_t landmarks; /**< places of all pieces' landmarks, with the gaps between pieces */
    uint32_t group;     /**< more than 1: the greatest softmax of the rows counts (LODE_MERGE_MAX) */
    uint32_t first_piece, piece_count;
    uint32_t chunk;
    uint32_t wanted; /**< tokens to pick among those that compete: fewer than compete */
    uint32_t count;  /**< tokens it comes to, forced ones included */
    uint64_t tokens; /**< where its tokens go in the array of chosen tokens */
    float *guess;    /**< a guess of the least score that is picked, replaced by the next step's; any will do */
} lode_device_choice_t;

/* ------------------------------------------------------- what is wanted, where it is */

/** A slot of a cache: what record is in it, and when it was last used, in steps. 8 of them are a cache line. */
typedef struct lode_device_slot {
    uint64_t block; /**< 0: empty */
    uint32_t token;
    uint32_t stamp;
} lode_device_slot_t;

/**
 * Slots for records, one cache a storage format: for each (layer, head), in this order, `sets` sets of LODE_DEVICE_WAYS
 * slots. The number of a slot is its place in the array, and in that of the records.
 */
enum { LODE_DEVICE_WAYS = 8 };
typedef struct lode_device_cache {
    lode_device_slot_t *slots; /**< NULL: there is no cache */
    uint8_t *records;          /**< lode_device_record_bytes() apart */
    uint32_t sets;             /**< of one (layer, head) */
} lode_device_cache_t;

/** A record that is wanted and was not in a cache. */
typedef struct lode_device_missed {
    uint64_t block;
    uint32_t token;
    uint16_t head;
    uint16_t format; /**< lode_format_t */
} lode_device_missed_t;

/** A block of the step. Its pages' masks follow one another: of page p and head h it is first_mask + p·heads + h. */
typedef struct lode_device_block {
    uint64_t id;
    uint32_t first_mask, pages;
    lode_format_t format;
    const uint8_t *const *held; /**< (pages) where this rank holds each page, in pinned memory; NULL: another does */
} lode_device_block_t;

/** Some records of one page and head: bit b of the mask is its token b. */
typedef struct lode_device_entry {
    uint64_t mask;
    uint32_t index; /**< of the mask among the step's */
    uint32_t first; /**< number among the missed of its first record; the others follow */
} lode_device_entry_t;

/** Written at the end of where(), in pinned memory. */
typedef struct lode_device_found {
    uint32_t records; /**< wanted, each once */
    uint32_t hits;    /**< of those, in the cache */
    uint32_t missed;  /**< the others: numbered 0 …, in the order of masks and bits */
    uint32_t held;    /**< of those missed, in this rank's own pages */
    uint32_t asked;   /**< entries of what must be fetched, in ascending order of index */
} lode_device_found_t;

#define LODE_DEVICE_STAGED 0x80000000u /**< a place: with the number of a missed record; else the number of a slot */

/** Tables of a step over its masks and records; device memory but for what says pinned. */
typedef struct lode_device_where {
    uint32_t layer, heads, dim;
    /** where() adds 1 to it first (and once more at 0): that is the stamp of the step, also of its keep(). In memory,
     * so that a captured step has a new one at each replay */
    uint32_t *clock;
    const lode_device_block_t *blocks;
    uint32_t block_count;
    uint32_t masks;
    uint64_t *wanted;             /**< (masks) */
    uint32_t *first;              /**< (masks) out: number of the first wanted record of each mask that has any */
    uint32_t *places;             /**< (records_max) out: slot, or LODE_DEVICE_STAGED | number among the missed */
    lode_device_missed_t *missed; /**< (records_max) out: by their number */
    const uint8_t **sources; /**< (records_max) out: of missed records: in held pages; NULL: to be fetched. Or pinned */
    uint32_t records_max;    /**< at least as many as can be wanted */
    lode_device_cache_t caches[LODE_FORMAT_HIGGS4 + 1];
    lode_device_entry_t *asked; /**< (masks) pinned, out */
    lode_device_found_t *found; /**< pinned, out */
    void *scratch;              /**< where_scratch(masks) bytes */
} lode_device_where_t;

/** One row (a new token) of a stream. */
typedef struct lode_device_row {
    uint32_t first_part, part_count;
} lode_device_row_t;

/** What a (row, KV head) chose. */
typedef struct lode_device_chosen {
    uint64_t tokens; /**< where its list begins in the array of chosen tokens, ascending; UINT64_MAX: all it sees */
    uint32_t count;
} lode_device_chosen_t;

/** A block as one row sees it. */
typedef struct lode_device_part {
    uint64_t first_token; /**< view-token index of its token 0 */
    uint32_t block;       /**< of the step's */
    uint32_t visible;     /**< tokens in pages that this row sees: the first ones */
    uint32_t angles;      /**< as in lode_device_query_t */
    uint32_t tail_tokens; /**< unsealed tokens that it sees */
    const uint8_t *tail;  /**< their bf16 records [token][head], lode_device_record_bytes() apart */
} lode_device_part_t;

/* ---------------------------------------------------------------- attending */

typedef struct lode_device_attend {
    lode_format_t format; /**< only parts of blocks of this format are attended over */
    uint32_t dim, group, heads;
    const float *q; /**< (rows, heads · group, D), scaled by 1/sqrt(D), at view positions */
    const float *angles;
    const lode_device_row_t *rows;
    uint32_t row_count;
    const lode_device_part_t *parts;
    const lode_device_block_t *blocks;
    const lode_device_chosen_t *chosen; /**< (rows, heads) */
    const uint32_t *tokens;             /**< what select() wrote */
    uint32_t most_tokens;               /**< the longest list, or what the row that sees most sees, if all are chosen */
    const uint64_t *wanted;             /**< these three as where() left them */
    const uint32_t *first;
    const uint32_t *places;
    const uint8_t *cached; /**< records of the cache of this format */
    const uint8_t *staged; /**< missed records staged_begin … staged_end−1, lode_device_record_bytes() apart */
    uint32_t staged_begin, staged_end;
    bool hits;       /**< records in the cache are among them this time */
    bool tails;      /**< instead of all that: the tails of parts (bf16) */
    uint32_t splits; /**< work of a (row, head) is cut in so many, attend_splits() of them */
    float *out;      /**< (row_count, heads, splits, group, D); nothing attended: any number */
    float *lse;      /**< (row_count, heads, splits, group); nothing attended: −INFINITY */
} lode_device_attend_t;

/** A set of parts to be merged: `splits` outputs a (row, head), as attend() wrote them. */
typedef struct lode_device_parts {
    const float *out, *lse;
    uint32_t splits;
} lode_device_parts_t;
enum { LODE_DEVICE_SETS = 8 };

/* --------------------------------------------------------------------- table */

typedef enum lode_gather_way {
    LODE_GATHER_KERNEL, /**< few blocks of threads read the records over the bus */
    LODE_GATHER_COPIES  /**< the copy engine, one descriptor a record */
} lode_gather_way_t;

/** The least of n counts, ascending, from which on copies were faster every time; UINT32_MAX: none. A tie is the
 * kernel's, which can be captured. */
static inline uint32_t lode_gather_choose(const uint32_t *counts, const float *kernel_ms, const float *copies_ms,
                                          uint32_t n)
{
    uint32_t from = UINT32_MAX;
    for (uint32_t i = n; i-- > 0 && copies_ms[i] < 0.95f * kernel_ms[i];)
        from = counts[i];
    return from;
}

typedef struct lode_device_ops {
    const char *name; /**< "cuda" */
    /** Why the last call of this thread failed; "" if none did. */
    const char *(*error)(void);

    /* devices: LODE_ERR_UNSUPPORTED (no driver, no device, too old: the sentence says which) */
    lode_status_t (*count)(uint32_t *devices);
    lode_status_t (*query)(uint32_t ordinal, lode_device_info_t *info);
    lode_status_t (*open)(uint32_t ordinal, lode_device_h *device);
    void (*close)(lode_device_h *device);
    /**
     * For a thread of our own that also calls libraries (NCCL): the device is this thread's current one from now on,
     * and what it asks of CUDA does not disturb other threads' captures.
     */
    lode_status_t (*use)(lode_device_h device);
    /**
     * Make it the calling thread's device: operations that run kernels want that of their stream. Calls that take a
     * device do it themselves.
     * @param[out] before  what leave() puts back: the thread is the caller's
     */
    lode_status_t (*enter)(lode_device_h device, int *before);
    void (*leave)(lode_device_h device, int before);

    /* memory; LODE_ERR_NO_MEMORY says what was asked and what is free */
    lode_status_t (*alloc)(lode_device_h device, size_t bytes, void **memory); /**< 256-byte aligned */
    void (*free)(lode_device_h device, void *memory);
    lode_status_t (*pinned_alloc)(lode_device_h device, size_t bytes, void **memory);
    void (*pinned_free)(lode_device_h device, void *memory);
    /** Pin memory that is there, such as the arena; the device sees it at the same address. */
    lode_status_t (*pin)(lode_device_h device, void *memory, size_t bytes);
    void (*unpin)(lode_device_h device, void *memory);
    lode_status_t (*memory_of)(lode_device_h device, const void *pointer, lode_memory_t *memory);
    lode_status_t (*copy)(lode_device_stream_t stream, void *to, const void *from, size_t bytes); /**< any kinds */
    lode_status_t (*fill)(lode_device_stream_t stream, void *to, uint8_t byte, size_t bytes);

    /* streams, events, graphs */
    lode_status_t (*stream_create)(lode_device_h device, lode_device_stream_t *stream);
    void (*stream_destroy)(lode_device_stream_t stream);
    lode_status_t (*stream_wait)(lode_device_stream_t stream); /**< the host waits */
    /** LODE_ERR_INVALID: a stream of another device. @param[out] capturing whether it is being captured in a graph */
    lode_status_t (*stream_check)(lode_device_h device, lode_device_stream_t stream, bool *capturing);
    lode_status_t (*event_create)(lode_device_h device, lode_device_event_t *event);
    void (*event_destroy)(lode_device_event_t event);
    lode_status_t (*event_record)(lode_device_event_t event, lode_device_stream_t stream);
    lode_status_t (*event_follow)(lode_device_stream_t stream, lode_device_event_t event); /**< the stream waits */
    lode_status_t (*event_wait)(lode_device_event_t event);                                /**< the host waits */
    lode_status_t (*event_done)(lode_device_event_t event, bool *done);
    /** Milliseconds between two events that have passed. */
    lode_status_t (*event_between)(lode_device_event_t from, lode_device_event_t to, float *ms);
    lode_status_t (*capture_begin)(lode_device_stream_t stream);
    lode_status_t (*capture_end)(lode_device_stream_t stream, lode_device_graph_t *graph);
    lode_status_t (*graph_launch)(lode_device_graph_t graph, lode_device_stream_t stream);
    void (*graph_destroy)(lode_device_graph_t graph);

    /* queries and landmarks */
    /** out[i] = scale · src[i], as floats. src may be pinned. */
    lode_status_t (*widen)(lode_device_stream_t stream, lode_dtype_t dtype, const void *src, size_t n, float scale,
                           float *out);
    /** Rotate row r of x (rows, dim) in place by the angles at angles[r·dim]: dim/2 cosines, dim/2 sines. */
    lode_status_t (*rotate)(lode_device_stream_t stream, float *x, uint32_t rows, uint32_t dim, const float *angles);
    /** As lode_ops_t.landmark_quantise. */
    lode_status_t (*landmark_quantise)(lode_device_stream_t stream, const lode_landmark_spec_t *spec, uint32_t dim,
                                       const float *x, size_t n, uint8_t *rows);
    /** Bytes of a prepared query; a multiple of 16. */
    size_t (*query_bytes)(const lode_landmark_spec_t *spec, uint32_t dim);
    lode_status_t (*query_prepare)(lode_device_stream_t stream, const lode_landmark_spec_t *spec, uint32_t dim,
                                   const float *q, const float *angles, const lode_device_query_t *queries, uint32_t n,
                                   void *prepared);
    /** @param most  landmarks of the longest scan  @param all  of all scans */
    lode_status_t (*score)(lode_device_stream_t stream, const lode_landmark_spec_t *spec, uint32_t dim,
                           const void *prepared, const lode_device_scan_t *scans, uint32_t n, uint32_t most,
                           uint64_t all);

    /* selecting. @param most  landmarks of the longest choice  @param[out] counts  (n) tokens written */
    size_t (*select_scratch)(uint32_t choices, uint32_t most); /**< bytes */
    lode_status_t (*select)(lode_device_stream_t stream, const lode_device_choice_t *choices, uint32_t n,
                            const lode_device_piece_t *pieces, uint32_t most, void *scratch, uint32_t *tokens,
                            uint32_t *counts);

    /* wanted records. want() sets bits in masks that are zero before */
    lode_status_t (*want)(lode_device_stream_t stream, const lode_device_row_t *rows, uint32_t row_count,
                          uint32_t heads, const lode_device_part_t *parts, const lode_device_block_t *blocks,
                          const lode_device_chosen_t *chosen, const uint32_t *tokens, uint32_t most_tokens,
                          uint64_t *wanted);
    size_t (*where_scratch)(uint32_t masks);
    lode_status_t (*where)(lode_device_stream_t stream, const lode_device_where_t *where);
    /**
     * Keep missed records begin … end−1, which were gathered to `staged`, in the cache, unless all slots that they
     * could take were used by this step. end may be more than were missed. Which of several that compete for a slot
     * gets it is open; what is found later is right or absent.
     */
    lode_status_t (*keep)(lode_device_stream_t stream, const lode_device_where_t *where, lode_format_t format,
                          const uint8_t *staged, size_t staged_stride, uint32_t begin, uint32_t end);

    /**
     * Copy records to dst, `stride` apart: number begin+i from sources[begin+i], or, where that is NULL, from
     * landed[begin+i] (pinned; may be NULL if no source is). i < min(end, *missed) − begin; missed is in pinned memory,
     * written before in stream order. A record whose source is NULL in both is filled with zeros.
     * @param way  LODE_GATHER_COPIES needs the pointers on the host: sources must be pinned too, and their records
     * there already
     */
    lode_status_t (*gather)(lode_device_stream_t stream, lode_gather_way_t way, const uint8_t *const *sources,
                            const uint8_t *const *landed, const uint32_t *missed, uint32_t begin, uint32_t end,
                            size_t record_bytes, uint8_t *dst, size_t stride);
    /**
     * Measure both ways on records of this size that lie in no order: for the start, it takes milliseconds, allocates
     * and waits. @param[out] copies_from  the least number of records from which copies win; UINT32_MAX: never
     */
    lode_status_t (*gather_calibrate)(lode_device_h device, lode_device_stream_t stream, size_t record_bytes,
                                      uint32_t *copies_from);

    /** Into how many pieces to cut the work of a (row, head) so that the device is busy. */
    uint32_t (*attend_splits)(lode_device_h device, uint32_t row_count, uint32_t heads, uint32_t most_tokens);
    lode_status_t (*attend)(lode_device_stream_t stream, const lode_device_attend_t *attend);
    /** out (rows, group, D), lse (rows, group): all parts of all sets, by log-sum-exp; rows = row_count · heads. The
     * array of sets is on the host, 1 to LODE_DEVICE_SETS of them. Nothing attended: zeros and −INFINITY. */
    lode_status_t (*merge)(lode_device_stream_t stream, const lode_device_parts_t *sets, uint32_t set_count,
                           uint32_t rows, uint32_t group, uint32_t dim, float *out, float *lse);
} lode_device_ops_t;

/** The backend of this name ("cuda"). @return ::LODE_ERR_UNSUPPORTED (not compiled in), ::LODE_ERR_INVALID (no such).
 */
lode_status_t lode_device_get(const char *name, const lode_device_ops_t **ops);

#ifdef __cplusplus
}
#endif
#endif
