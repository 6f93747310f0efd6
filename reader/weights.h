/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file weights.h
 * @brief The tensors of a model's folder: model.safetensors, or the files that model.safetensors.index.json lists.
 */
#ifndef LODE_READER_WEIGHTS_H
#define LODE_READER_WEIGHTS_H

#include "base/base.h"

typedef struct lode_weights *lode_weights_h;

/** Map the files. @return ::LODE_ERR_IO, ::LODE_ERR_FORMAT (file and cause), ::LODE_ERR_NO_MEMORY. */
lode_status_t lode_weights_open(const char *folder, lode_weights_h *weights);
void lode_weights_close(lode_weights_h *weights);

/**
 * A tensor of a shape (rows, columns), or (rows) if @p columns is 0.
 * @param[out] data   borrowed until close
 * @param[out] dtype  bf16, fp16 or fp32
 * @return ::LODE_ERR_FORMAT (missing, another shape), ::LODE_ERR_UNSUPPORTED (another type).
 */
lode_status_t lode_weights_find(lode_weights_h weights, const char *name, uint32_t rows, uint32_t columns,
                                const void **data, lode_dtype_t *dtype);
/** A hash of all tensors found so far, in the order they were asked for. */
uint64_t lode_weights_digest(lode_weights_h weights);
/** Refuse tensors that nobody asked for: the model would not be the one that was trained. @param[in] tied: its head is
 * the embedding, whatever the file holds as one. */
lode_status_t lode_weights_all_used(lode_weights_h weights, bool tied);

#endif
