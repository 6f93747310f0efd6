/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file transform.h
 * @brief What stands in front of the quantiser instead of the Hadamard transform: matrices calibrated for a model.
 *
 * A pair of matrices a (layer, KV head): keys go through one, queries through the other, and the transpose of the one
 * is the inverse of the other, so that exact products stay what they were. What changes is where the quantiser's error
 * falls: a calibrated pair puts it where the model's queries hardly look (`lodemark calibrate`, bench/calibrate.c).
 */
#ifndef LODE_LANDMARKS_TRANSFORM_H
#define LODE_LANDMARKS_TRANSFORM_H

#include "base/base.h"
#include "kernels/kernels.h"

typedef struct lode_transform {
    uint64_t id; /**< of shape and contents, never 0; blocks record it, since their codes mean nothing without it */
    uint32_t layers, heads, dim; /**< heads: KV heads of the whole model */
    uint32_t crc;
    float *matrices; /**< (layers, heads, 2, dim, dim), as lode_ops_t.project takes them: of keys, of queries */
} lode_transform_t;

static inline float *lode_transform_keys(const lode_transform_t *t, uint32_t layer, uint32_t head)
{
    return t->matrices + ((size_t)layer * t->heads + head) * 2 * t->dim * t->dim;
}
static inline float *lode_transform_queries(const lode_transform_t *t, uint32_t layer, uint32_t head)
{
    return lode_transform_keys(t, layer, head) + (size_t)t->dim * t->dim;
}

/** Room for a transform; its matrices are the caller's to fill. @return LODE_ERR_FORMAT (shape), LODE_ERR_NO_MEMORY. */
lode_status_t lode_transform_create(uint32_t layers, uint32_t heads, uint32_t dim, lode_transform_t **transform);
void lode_transform_destroy(lode_transform_t **transform);
lode_status_t lode_transform_write(lode_transform_t *transform, const lode_ops_t *ops, const char *path);
/** @return LODE_ERR_IO, LODE_ERR_FORMAT (torn, or something else), LODE_ERR_NO_MEMORY. */
lode_status_t lode_transform_read(const char *path, const lode_ops_t *ops, lode_transform_t **transform);

#endif
