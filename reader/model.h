/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file model.h
 * @brief What a loaded model holds: model.c fills it, model_run.c runs it.
 */
#ifndef LODE_READER_MODEL_H
#define LODE_READER_MODEL_H

#include "reader/elementwise.h"
#include "reader/model_config.h"
#include "reader/products.h"
#include "reader/reader.h"

typedef struct lode_layer {
    float *attention_norm, *mlp_norm;   /**< (hidden) */
    float *query_norm, *key_norm;       /**< (head_dim), NULL without */
    float *bias;                        /**< (query, key, value widths), NULL without */
    lode_matrix_h qkv, out, gate, down; /**< qkv: three above each other; gate: gate, then up */
} lode_layer_t;

/** Memory that grows to the largest run and is kept. */
typedef struct lode_room {
    void *bytes;
    size_t size;
} lode_room_t;

/** Rows are tokens of a run; those of `mixed` and `wide` are BLOCK_ROWS of them at a time. */
typedef struct lode_run_rooms {
    lode_room_t x;            /**< (rows, hidden) what the layers add to */
    lode_room_t input;        /**< (block, widest input) what a product reads, of its type */
    lode_room_t wide;         /**< (block, widest output) */
    lode_room_t q, k, v, out; /**< (rows, heads, dim) */
    lode_room_t angles;       /**< four (rows, dim / 2): cosines, sines of queries, of keys */
    lode_room_t logits;       /**< (asked rows, vocabulary) */
    lode_room_t streams;      /**< (passages) */
    lode_room_t asked;        /**< (asked rows) which rows */
} lode_run_rooms_t;

enum { LODE_ANGLE_POSITIONS = 2048 };

struct lode_model {
    lode_model_config_t config;
    lode_model_info_t info;
    lode_team_h team;
    lode_products_h products;
    const lode_elementwise_t *ops;
    void *embedding; /**< (vocabulary, hidden) as in the file */
    lode_dtype_t embedding_type;
    lode_layer_t *layers;
    float *norm; /**< (hidden) */
    lode_matrix_h head;
    double *freq;         /**< (dim / 2) */
    float *cosine, *sine; /**< (LODE_ANGLE_POSITIONS, dim / 2) of positions from 0 */
    lode_run_rooms_t rooms;
};

#endif
