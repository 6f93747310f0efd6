/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file inside.h
 * @brief What the files of landmarks/ know of each other.
 */
#ifndef LODE_LANDMARKS_INSIDE_H
#define LODE_LANDMARKS_INSIDE_H

#include "landmarks/place.h"

static inline uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

const lode_ops_t *lode_store_ops(lode_store_h store);
uint32_t lode_store_dim(lode_store_h store);

#endif
