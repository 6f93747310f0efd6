/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file kernels.h
 * @brief Pure arithmetic on the caller's buffers: one table of operations, filled by instruction set.
 *
 * scalar/ fills the whole table and is the reference; avx2/, then avx512/ and those above overwrite what they do
 * better. Nothing here allocates, locks, logs or knows of blocks and ranks. Input pointers need no
 * alignment beyond their element's unless a function says so; n = 0 is always legal.
 *
 * Landmark codes and their scores are the same to the bit on every level for the integer codecs
 * (LODE_LANDMARK_UNIFORM); so are records and checksums. Everything else agrees to rounding.
 */
#ifndef LODE_KERNELS_H
#define LODE_KERNELS_H

#include <stdalign.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "lodemark.h"

/** Landmarks a tile: their codes are interleaved so that one vector load serves 16 landmarks × 4 coordinates. */
#define LODE_TILE 32
#define LODE_MAX_DIM 256
#define LODE_MAX_GROUP 16

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------ records
 * K codes | V codes | bf16 scale of K | bf16 scale of V | u32 check. The bf16 format leaves the scales
 * zero. check = CRC32C of everything before it, seeded by the record's tag, so that a record that is
 * torn, stale or somebody else's does not pass. 520, 264 and 136 bytes at D = 128. */

/** Bytes of one record; a multiple of 8. */
size_t lode_record_bytes(lode_format_t format, uint32_t dim);

/** Identity of a record, mixed to 32 bits to seed its check. */
uint32_t lode_record_tag(uint64_t block, uint32_t layer, uint32_t head, uint32_t token);

/* ---------------------------------------------------------------- landmarks
 * Quantising writes one *row* a landmark: codes of D coordinates, then a bf16 scale (none for MEAN).
 * A row is what travels. Scanning reads *tiles*: the rows of LODE_TILE landmarks interleaved,
 * then their LODE_TILE bf16 scales (none for MEAN). Tile bytes are a multiple of 64.
 *
 *   UNIFORM 8 bit  row: D int8                       tile: [2][D/4][16][4] int8
 *   UNIFORM 4 bit  row: D/2 bytes                    tile: [2][D/8][16][4] bytes
 *   UNIFORM 2 bit  row: D/4 bytes                    tile: [2][D/16][16][4] bytes
 *   UNIFORM 1 bit  row: D/8 bytes                    tile: [2][D/32][16][4] bytes
 *   HIGGS 4 bit    row: D/2 codes of coordinate pairs   tile: [2][D/2/4][16][4]
 *   HIGGS 2 bit    row: D/4 codes of coordinate fours   tile: [2][D/4/4][16][4]
 *   MEAN           row: D bf16                       tile: [2][D/2][16][2] bf16
 *
 * So every tile is its rows cut in 4-byte words, word-major. Within a UNIFORM row of b bits, word w
 * holds coordinates w·(32/b) …; field m of byte j (bits m·b …) is coordinate w·(32/b) + 4·m + j. */

/** Bytes of a landmark row's codes, without its scale. */
static inline size_t lode_landmark_code_bytes(const lode_landmark_spec_t *spec, uint32_t dim)
{
    return (size_t)dim * spec->bits / 8;
}
size_t lode_landmark_row_bytes(const lode_landmark_spec_t *spec, uint32_t dim);
size_t lode_landmark_tile_bytes(const lode_landmark_spec_t *spec, uint32_t dim);
/** What a row stands for: x (dim), centred and transformed as its keys were. */
void lode_landmark_decode(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *row, float *x);
/** Whether codec and bits are a pair that exists and dim and chunk are supported. */
bool lode_landmark_spec_valid(const lode_landmark_spec_t *spec, uint32_t dim);

/** A query made ready to be scored against landmarks of one codec. Filled by query_prepare. */
typedef struct lode_landmark_query {
    float scale;                         /**< UNIFORM: of the quantised query */
    float bias;                          /**< added to every score: query · mean */
    int32_t sum;                         /**< UNIFORM 4, 2, 1 bit: sum of coordinates of the quantised query */
    alignas(64) int8_t q8[LODE_MAX_DIM]; /**< UNIFORM 4, 2, 1 bit */
    /** UNIFORM 1 bit: for half a byte (low, high) of word w, [byte of the word][its 16 values]: its share of the sum */
    alignas(64) uint8_t signs[LODE_MAX_DIM / 32][2][64];
    alignas(64) int16_t q16[LODE_MAX_DIM]; /**< UNIFORM 8 bit */
    alignas(64) float q32[LODE_MAX_DIM];   /**< MEAN; HIGGS (the table is made from it) */
} lode_landmark_query_t;

/** Floats of scratch that score needs for a HIGGS codec: group · D/d · 256; 0 for the others. */
size_t lode_score_scratch_floats(const lode_landmark_spec_t *spec, uint32_t dim, uint32_t group);

/**
 * What passes over scores noted of those ≥ bound, in their order: lode_ops_t.note, .group_max_note. The caller lends
 * index and score with LODE_NOTES_SLACK more than `room` entries each, and begins with count = 0.
 */
typedef struct lode_notes {
    float bound, next;
    size_t room, count; /**< count > room: not all are there */
    uint32_t *index;
    float *score;
} lode_notes_t;
#define LODE_NOTES_SLACK 16 /* whole vectors are stored */

typedef struct lode_ops {
    const char *level;   /**< "scalar", "avx2", "avx512", … */
    uint32_t scan_group; /**< queries that landmark_score takes at once: more cost as much as calls of their own */

    /** Convert n elements of dtype to float, and back (round to nearest even). */
    void (*widen)(lode_dtype_t dtype, const void *src, float *dst, size_t n);
    void (*narrow)(lode_dtype_t dtype, const float *src, void *dst, size_t n);
    /** Index of the first element that is NaN or infinite, n if none. */
    size_t (*first_nonfinite)(const float *x, size_t n);
    /** Rotate rows of x (rows, dim) in place by angles given as cosines and sines (dim/2); pairs (i, i + dim/2). */
    void (*rotate)(float *x, uint32_t rows, uint32_t dim, const float *cosine, const float *sine);
    /** Orthonormal Walsh-Hadamard transform of each row of x (rows, dim), in place; dim a power of two. */
    void (*hadamard)(float *x, uint32_t rows, uint32_t dim);
    /**
     * Each row of x (rows, dim) becomes the sum over i of x[i]·matrix[i·dim …]: row i of the matrix is what unit vector
     * i becomes. Products are added in the order of i, unfused, so that all levels agree to the bit.
     */
    void (*project)(const float *matrix, uint32_t dim, float *x, uint32_t rows);
    /** y[i] = sum over j of a[j]·x[i·dim + j], i < rows: plain dot products in fp32. */
    void (*dot_rows)(const float *a, const float *x, uint32_t rows, uint32_t dim, float *y);

    uint32_t (*crc32c)(uint32_t seed, const void *data, size_t bytes);

    /** Encode one record from k, v (dim) floats, with its check. */
    void (*record_encode)(lode_format_t format, uint32_t dim, const float *k, const float *v, uint32_t tag,
                          uint8_t *record);
    /** Decode one record; does not look at the check. k, v: (dim). */
    void (*record_decode)(lode_format_t format, uint32_t dim, const uint8_t *record, float *k, float *v);
    /** Whether the check of a record is that of its bytes and tag. */
    bool (*record_check)(lode_format_t format, uint32_t dim, const uint8_t *record, uint32_t tag);

    /** Quantise x (n, dim), transformed and centred already, to n rows. */
    void (*landmark_quantise)(const lode_landmark_spec_t *spec, uint32_t dim, const float *x, size_t n, uint8_t *rows);
    /** Put n rows into tiles at landmark indices first …; other landmarks of the tiles are left alone. */
    void (*landmark_place)(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *rows, size_t n,
                           uint8_t *tiles, size_t first);
    /** The rows that were put at landmark indices first …, as they were. */
    void (*landmark_take)(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t first, size_t n,
                          uint8_t *rows);
    /** Prepare q (dim floats, transformed alike, scaled by 1/sqrt(D) already) and its bias. */
    void (*query_prepare)(const lode_landmark_spec_t *spec, uint32_t dim, const float *q, float bias,
                          lode_landmark_query_t *query);
    /**
     * Scores of n landmarks for group queries: out[g·stride + i], g < group ≤ LODE_MAX_GROUP.
     * tiles: 64-byte aligned, holding at least ceil(n / LODE_TILE) tiles, the first landmark in place 0.
     * scratch: lode_score_scratch_floats() floats, 64-byte aligned, or NULL if that is 0.
     */
    void (*landmark_score)(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                           const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                           float *scratch);

    /** log(sum(exp(x))) over n finite floats; -INFINITY for n = 0. */
    float (*logsumexp)(const float *x, size_t n);
    /** out[i] = max over g of (x[g·stride + i] − shift[g]). out may be x. */
    void (*group_max)(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n);
    /**
     * Indices of the k greatest of n scores, ascending; equal scores are taken lowest index first.
     * k ≥ n gives all. Otherwise a NaN is never among them, even if there are fewer than k others. Returns how many. No
     * scratch beyond the stack.
     */
    size_t (*topk)(const float *scores, size_t n, size_t k, uint32_t *out);
    /** Note those of n scores that are ≥ notes->bound, with indices from `first` on, behind what is noted already. */
    void (*note)(const float *scores, size_t n, uint32_t first, lode_notes_t *notes);
    /** group_max, noting what it writes in the same pass. */
    void (*group_max_note)(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n,
                           uint32_t first, lode_notes_t *notes);
    /**
     * topk, with the same result whatever the notes' bound was (NaN and infinities too), provided that all scores ≥ it
     * are noted. With at least k of them and no more than fit, only they are looked at; otherwise all scores are, and
     * the notes serve no more. notes->next becomes a guess for scores like these: a little below the k-th.
     */
    size_t (*topk_noted)(const float *scores, size_t n, size_t k, lode_notes_t *notes, uint32_t *out);

    /** Copy count pieces of bytes each from src[i] to dst + i·bytes. */
    void (*gather)(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes);

    /**
     * Exact attention of group queries over n records anywhere in memory.
     * q: (group, dim), scaled by 1/sqrt(D). out: (group, dim), lse: (group). n = 0 gives 0 and -INFINITY.
     */
    void (*attend)(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records, size_t n,
                   const float *q, float *out, float *lse);
    /**
     * The same where each record is met by group queries of its own: record i by those at q + of[i]·group·dim. So
     * records of many short runs, each under a rotation of its own, are attended over at once.
     * q: (count, group, dim), overwritten. of: (n), below count; NULL if count is 1.
     */
    void (*attend_each)(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records,
                        const uint16_t *of, size_t n, float *q, uint32_t count, float *out, float *lse);
    /** Merge a part into out (rows, dim), lse (rows) by log-sum-exp. -INFINITY is an empty part. */
    void (*merge)(float *out, float *lse, const float *part, const float *part_lse, uint32_t rows, uint32_t dim);
} lode_ops_t;

/**
 * The table for this machine, filled once. @p level: "auto", "scalar", "avx2", "avx512", "avx512vnni", "avx512vbmi" or
 * "amx".
 * @return ::LODE_ERR_INVALID (unknown level), ::LODE_ERR_UNSUPPORTED (not compiled in, or not on this CPU).
 */
lode_status_t lode_ops_get(const char *level, const lode_ops_t **ops);

/**
 * Exact top-k from a guess of the k-th score, such as the last step's: note and topk_noted. *guess becomes the next
 * one.
 * @p notes lends memory alone.
 */
static inline size_t lode_topk_seeded(const lode_ops_t *ops, const float *scores, size_t n, size_t k, float *guess,
                                      lode_notes_t *notes, uint32_t *out)
{
    notes->bound = *guess;
    notes->count = 0;
    ops->note(scores, n, 0, notes);
    size_t kept = ops->topk_noted(scores, n, k, notes, out);
    *guess = notes->next;
    return kept;
}

/** One backend for `lodemark info`. */
typedef struct lode_backend {
    const char *name;
    bool compiled, usable;
} lode_backend_t;
/** The i-th backend: scalar, those of the processor family, least first, cuda; false past the last. */
bool lode_backend_query(uint32_t i, lode_backend_t *backend);

/** Inverse frequencies of the rotary embedding: freq (head_dim/2), radians a position. */
lode_status_t lode_rope_frequencies(const lode_rope_t *rope, uint32_t head_dim, double *freq);
/** cosine, sine (head_dim/2) of a rotation by `delta` positions. */
void lode_rope_angles(const double *freq, uint32_t head_dim, int64_t delta, float *cosine, float *sine);

/* HIGGS grids: MSE-optimal for a standard Gaussian, made by tools/higgs_grid.c. */
extern const float lode_higgs_grid2[256][2]; /**< 4 bits a coordinate */
extern const float lode_higgs_grid4[256][4]; /**< 2 bits a coordinate */

#ifdef __cplusplus
}
#endif
#endif
