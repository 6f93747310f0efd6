/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file place.h
 * @brief Scoring many short blocks: what is found once a block, and queries that are prepared apart from it.
 */
#ifndef LODE_LANDMARKS_PLACE_H
#define LODE_LANDMARKS_PLACE_H

#include "landmarks/landmarks.h"

/** Where a layer of a block lies, found once for all its heads. */
typedef struct lode_landmark_place {
    const uint8_t *tiles; /**< of head 0; NULL: there are none */
    size_t head_bytes;    /**< from one head's tiles to the next one's */
    uint64_t landmarks;   /**< that lie there in one piece, from the first on, published or not */
    const float *mean;    /**< (heads, dim); NULL if the block is not centred */
} lode_landmark_place_t;
lode_landmark_place_t lode_store_place(lode_store_h store, uint32_t slot, uint32_t layer);

/**
 * Queries q (group, dim), as of lode_store_score(), made ready for landmarks of @p spec.
 * @param mean  (dim) of the head, or NULL
 */
void lode_queries_prepare(const lode_ops_t *ops, const lode_landmark_spec_t *spec, uint32_t dim, const float *mean,
                          const float *transform, const float *q, uint32_t group, lode_landmark_query_t *queries);
/** Logits of landmarks begin … end−1 of one head for queries that are ready, to out[g·stride + i − begin]. */
void lode_queries_score(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head, uint64_t begin, uint64_t end,
                        const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                        float *scratch);

#endif
