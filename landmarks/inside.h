/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file inside.h
 * @brief What the files of landmarks/ know of each other.
 */
#ifndef LODE_LANDMARKS_INSIDE_H
#define LODE_LANDMARKS_INSIDE_H

#include "landmarks/landmarks.h"

static inline uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

const lode_ops_t *lode_store_ops(lode_store_h store);
uint32_t lode_store_dim(lode_store_h store);
/** Make q (group, dim) as of lode_store_score() ready for landmarks of @p spec; mean: (dim) of the block, or NULL. */
void lode_queries_prepare(const lode_ops_t *ops, const lode_landmark_spec_t *spec, uint32_t dim, const float *mean,
                          const float *transform, const float *q, uint32_t group, lode_landmark_query_t *queries);

#endif
