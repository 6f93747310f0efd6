/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file safetensors.h
 * @brief The container alone: an 8-byte length, a JSON header, the tensors' bytes.
 */
#ifndef LODE_BASE_SAFETENSORS_H
#define LODE_BASE_SAFETENSORS_H

#include <jansson.h>

#include "base/base.h"

#define LODE_TENSOR_RANK_MAX 8

typedef struct lode_tensor {
    const char *name;  /**< borrowed from the container */
    const char *dtype; /**< "BF16", "F32", "I64" … */
    uint32_t element;  /**< bytes */
    uint32_t rank;
    uint64_t shape[LODE_TENSOR_RANK_MAX];
    uint64_t begin, end; /**< in the data */
    const uint8_t *data;
} lode_tensor_t;

typedef struct lode_safetensors {
    json_t *header;
    lode_tensor_t *tensors; /**< (count), by their place in the file */
    size_t count;
} lode_safetensors_t;

/**
 * Check and index a container that lies in memory; @p data is borrowed until free. The tensors must fill the
 * data: no overlap, no hole, nothing behind them.
 * @return ::LODE_ERR_FORMAT, ::LODE_ERR_NO_MEMORY.
 */
lode_status_t lode_safetensors_parse(const void *data, size_t bytes, size_t header_max, lode_safetensors_t *file);
void lode_safetensors_free(lode_safetensors_t *file);
/**
 * What stands before the tensors' bytes of a container: the header's length and its text, filled up with spaces so that
 * they begin at a multiple of 8.
 * @param[out] prefix  (bytes) owned by the caller, free()
 * @return ::LODE_ERR_NO_MEMORY, also if @p header is NULL.
 */
lode_status_t lode_safetensors_prefix(const json_t *header, char **prefix, size_t *bytes);
/** NULL if there is none of this name. */
const lode_tensor_t *lode_safetensors_find(const lode_safetensors_t *file, const char *name);
/** A text of __metadata__, NULL if there is none. */
const char *lode_safetensors_metadata(const lode_safetensors_t *file, const char *key);

#endif
