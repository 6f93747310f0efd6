/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file capture.h
 * @brief Keys, values and queries recorded from a model, in a safetensors file. docs/captures.md is its format.
 *
 * Nothing in the file is believed: lengths, offsets, shapes and types are checked against each other and
 * against the bytes that are there, before any of them is used.
 */
#ifndef LODE_BENCH_CAPTURE_H
#define LODE_BENCH_CAPTURE_H

#include "base/base.h"
#include "kernels/kernels.h"

/** A tensor of the capture, in place. */
typedef struct lode_capture_tensor {
    const uint8_t *data; /**< not aligned */
    lode_dtype_t dtype;
} lode_capture_tensor_t;

typedef struct lode_capture_layer {
    lode_capture_tensor_t k, v; /**< (tokens, Hkv, D) */
    lode_capture_tensor_t q;    /**< (queries, Hq, D) */
} lode_capture_layer_t;

typedef struct lode_capture {
    uint32_t layers, query_heads, kv_heads, head_dim;
    uint64_t tokens, queries;
    double rope_theta;
    lode_capture_layer_t *layer; /**< (layers) owned */
    int64_t *positions;          /**< (queries) owned: view position of each query */
    int64_t *key_positions;      /**< (tokens) owned: what each key is rotated to; NULL: its number */
    void *map;                   /**< the file, if it was opened; NULL after parse */
    size_t map_bytes;
} lode_capture_t;

/** Longest header that is read, as in the safetensors library. */
#define LODE_CAPTURE_HEADER_MAX 100000000u

/**
 * Read a capture that lies in memory. @p data is borrowed until lode_capture_close().
 * @return ::LODE_ERR_FORMAT, with what is wrong and where; ::LODE_ERR_NO_MEMORY.
 */
lode_status_t lode_capture_parse(const void *data, size_t bytes, lode_capture_t *capture);
/** Map a file and parse it. @return ::LODE_ERR_IO besides; every message names the file. */
lode_status_t lode_capture_open(const char *path, lode_capture_t *capture);
/** @return ::LODE_ERR_NONFINITE; the message names the tensor, and layer, token and head of the first such value. */
lode_status_t lode_capture_check_finite(const lode_capture_t *capture);
/** Free what parse or open took. A closed or zeroed capture may be closed again. */
void lode_capture_close(lode_capture_t *capture);

/** Elements begin … begin+n−1 of a tensor as float. */
void lode_capture_read(const lode_capture_tensor_t *tensor, uint64_t begin, uint64_t n, float *out);

#endif
