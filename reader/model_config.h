/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file model_config.h
 * @brief What config.json says of a model.
 */
#ifndef LODE_READER_MODEL_CONFIG_H
#define LODE_READER_MODEL_CONFIG_H

#include "base/base.h"

typedef struct lode_model_config {
    const char *family; /**< "llama", "qwen2", "qwen3"; constant text */
    lode_geometry_t geometry;
    uint32_t hidden, intermediate, vocabulary, context;
    double eps;
    double rope_scale; /**< YaRN's attention factor: cosines and sines are multiplied by it; else 1 */
    bool tied;         /**< the head is the embedding */
    bool head_norms;   /**< queries and keys of each head are normed (Qwen 3) */
    bool biases;       /**< of queries, keys and values (Qwen 2) */
} lode_model_config_t;

/**
 * Read config.json of a folder. What it says that we do not know is refused by name.
 * @return ::LODE_ERR_IO, ::LODE_ERR_FORMAT, ::LODE_ERR_UNSUPPORTED.
 */
lode_status_t lode_model_config_read(const char *folder, lode_model_config_t *config);

#endif
