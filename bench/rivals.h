/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file rivals.h
 * @brief What other methods keep of the keys instead of a landmark a token: to be compared with, never used in a step.
 *
 * Means, Quest's boxes and ArkVale's cuboids are chunk digests like others and stand with those (landmarks.h). Here is
 * what needs more: ShadowKV's low-rank keys and outlier chunks (arXiv 2410.21465), Twilight's budget (2502.02770), and
 * chance.
 */
#ifndef LODE_BENCH_RIVALS_H
#define LODE_BENCH_RIVALS_H

#include "base/base.h"
#include "kernels/kernels.h"

/* ---------------------------------------------------------------- ShadowKV */

typedef struct lode_shadow_params {
    uint32_t rank;     /**< of the keys of all heads together, before rotation */
    uint32_t chunk;    /**< tokens that share a landmark */
    uint32_t outliers; /**< chunks a head that stay resident, as their keys lie far from their mean */
    uint32_t local;    /**< chunks at the end that stay resident, beside the tokens of one that is not whole */
} lode_shadow_params_t;

/** As in the paper. */
extern const lode_shadow_params_t lode_shadow_published;

/** Where tokens stand, if they are not one text from position 0 on. Zeroed: they are. */
typedef struct lode_shadow_place {
    const int64_t *positions; /**< (tokens) that keys are rotated to; NULL: 0, 1, 2 … Copied. */
    const uint64_t *ends;     /**< (texts) of texts, one after another: none shares a chunk with the next, and what does
                                   not fill its last chunk is a shorter one; NULL: one text */
    uint32_t texts;
} lode_shadow_place_t;

/** One layer's keys as ShadowKV keeps them: bf16 means, and U and SV of a truncated SVD, rounded to bf16. */
typedef struct lode_shadow *lode_shadow_h;

/**
 * @param[in] keys   (tokens, kv_heads, dim) after rotation; not kept
 * @param[in] place  NULL: one text from position 0 on
 * @return LODE_ERR_INVALID if the rank exceeds kv_heads * dim or the tokens, or fewer chunks than outliers are left
 */
lode_status_t lode_shadow_create(const lode_shadow_params_t *params, const lode_ops_t *ops, const lode_rope_t *rope,
                                 uint32_t kv_heads, uint32_t dim, const float *keys, uint64_t tokens,
                                 const lode_shadow_place_t *place, lode_shadow_h *shadow);
void lode_shadow_destroy(lode_shadow_h *shadow);

/** Chunks before the local ones. */
uint64_t lode_shadow_chunks(const struct lode_shadow *shadow);
/** First token of a chunk; that of chunk lode_shadow_chunks() and all behind it are resident. */
uint64_t lode_shadow_begin(const struct lode_shadow *shadow, uint64_t chunk);
bool lode_shadow_is_outlier(const struct lode_shadow *shadow, uint32_t head, uint64_t chunk);
/** Logits of a query against the means of a head's chunks, unscaled; -INFINITY for outliers, which are not chosen. */
void lode_shadow_score(const struct lode_shadow *shadow, uint32_t head, const float *query, float *scores);
/** The keys that are attended over for chosen tokens, rebuilt and rotated. @param[out] out  (n, dim) */
void lode_shadow_rebuild(const struct lode_shadow *shadow, uint32_t head, const uint64_t *tokens, uint64_t n,
                         float *out);

/** Bytes of one layer. */
typedef struct lode_shadow_bytes {
    double means, low_rank, residents; /**< kept where attention runs, divided by tokens */
    uint64_t fetched;                  /**< a chosen token and head: its V; the key is rebuilt from what is resident */
} lode_shadow_bytes_t;
lode_shadow_bytes_t lode_shadow_count_bytes(const lode_shadow_params_t *params, uint32_t kv_heads, uint32_t dim,
                                            uint64_t tokens);

/* ---------------------------------------------------------------- budgets */

/**
 * Twilight's top-p: the fewest tokens whose softmax weights sum to @p share or more, best first, equals by position.
 * @param[in] scores  n logits, scaled
 * @param[out] chosen  room for n
 * @param[out] count   how many
 */
lode_status_t lode_top_p(const float *scores, uint64_t n, double share, uint64_t *chosen, uint64_t *count);

/** @p count of n tokens by chance, ascending, every set equally likely. count <= n. */
void lode_by_chance(uint64_t seed, uint64_t n, uint64_t count, uint64_t *chosen);

#endif
