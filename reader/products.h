/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file products.h
 * @brief Products of matrices: weights that are packed once, times rows of activations. By oneDNN on the processor, by
 * cuBLAS on a GPU.
 *
 * oneDNN computes each piece of a product on one thread; the pieces (columns of the weights, 64 rows) are shared out by
 * the base room's team. They are always the same, so the bits do not depend on the number of threads, and no threads
 * but ours run: those that oneDNN would start by OpenMP poll on cores that a step of attention wants.
 */
#ifndef LODE_READER_PRODUCTS_H
#define LODE_READER_PRODUCTS_H

#include "base/base.h"
#include "base/team.h"
#include "kernels/device.h"

typedef struct lode_products *lode_products_h;
typedef struct lode_matrix *lode_matrix_h;

/**
 * @param[in] team  borrowed until destroy; NULL: the caller alone
 * @param[in] type  of activations and weights: ::LODE_FP32 or ::LODE_BF16; sums are fp32
 * @return ::LODE_ERR_UNSUPPORTED (this machine's oneDNN has no such products), ::LODE_ERR_NO_MEMORY.
 */
lode_status_t lode_products_create(lode_team_h team, lode_dtype_t type, lode_products_h *products);
/**
 * Products on a GPU: weights in its memory, activations and results in the host's.
 * @param[in] ops  of kernels/device.h
 * @return ::LODE_ERR_UNSUPPORTED (no such GPU; cuBLAS cannot be loaded: the message says why), ::LODE_ERR_NO_MEMORY,
 *         ::LODE_ERR_DEVICE.
 */
lode_status_t lode_products_create_gpu(const lode_device_ops_t *ops, uint32_t ordinal, lode_dtype_t type,
                                       lode_products_h *products);
/** Its matrices must be gone. */
void lode_products_destroy(lode_products_h *products);
lode_dtype_t lode_products_type(lode_products_h products);
/** "oneDNN 2.6.3, fp32", "cuBLAS 12.4, bf16, GPU 0"; borrowed. */
const char *lode_products_name(lode_products_h products);
/** ::LODE_BF16 where the processor multiplies it in hardware, else ::LODE_FP32. */
lode_dtype_t lode_products_native(void);
/** "2.6.3, AVX-512": version and what oneDNN makes of this processor. */
void lode_products_describe(char text[96]);

/** Rows of weights as they lie in a file: (rows, ins) of a type. */
typedef struct lode_matrix_part {
    const void *data;
    lode_dtype_t dtype;
    uint32_t rows;
} lode_matrix_part_t;

/** Pack parts one above the other. Borrowed for the call. */
lode_status_t lode_matrix_create(lode_products_h products, const lode_matrix_part_t *parts, uint32_t count,
                                 uint32_t ins, lode_matrix_h *matrix);
void lode_matrix_destroy(lode_matrix_h *matrix);
uint32_t lode_matrix_outs(lode_matrix_h matrix);

/**
 * out = x · weightsᵀ, or out += it.
 * @param[in]     x    (rows, ins) of the products' type
 * @param[in,out] out  (rows, outs) fp32
 */
lode_status_t lode_matrix_multiply(lode_matrix_h matrix, uint32_t rows, const void *x, bool add, float *out);

#endif
