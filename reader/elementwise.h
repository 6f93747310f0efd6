/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file elementwise.h
 * @brief What a transformer does between products of matrices, row by row. Every set of instructions gives the same
 * bits.
 */
#ifndef LODE_READER_ELEMENTWISE_H
#define LODE_READER_ELEMENTWISE_H

#include "base/base.h"

/** Convert n numbers; fp32 to bf16 rounds to the nearest, ties to even. @p to is ::LODE_FP32 or ::LODE_BF16. */
void lode_convert(lode_dtype_t from, const void *x, lode_dtype_t to, void *out, size_t n);

typedef struct lode_elementwise {
    const char *name;
    /** out[i] = x[i] · weight[i] / sqrt(mean of squares + eps) */
    void (*norm)(const float *x, const float *weight, float eps, uint32_t n, float *out);
    /** out[i] = gate[i] · sigmoid(gate[i]) · up[i] */
    void (*swiglu)(const float *gate, const float *up, uint32_t n, float *out);
    /** x[i] += y[i] */
    void (*add)(float *x, const float *y, uint32_t n);
    /**
     * Turn pairs (i, i + half): out[i] = x[i]·cosine[i] − x[i+half]·sine[i], out[i+half] = x[i+half]·cosine[i] +
     * x[i]·sine[i].
     */
    void (*turn)(const float *x, const float *cosine, const float *sine, uint32_t half, float *out);
    void (*to_bf16)(const float *x, uint16_t *out, size_t n);
} lode_elementwise_t;

/** The best that this processor has. */
const lode_elementwise_t *lode_elementwise(void);
/** The i-th of those that this processor has, plain first; NULL past the last. */
const lode_elementwise_t *lode_elementwise_level(uint32_t i);

#endif
