/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file index.h
 * @brief What the files of `bench index` share.
 */
#ifndef LODE_BENCH_INDEX_H
#define LODE_BENCH_INDEX_H

#include "bench/generate.h"
#include "bench/job.h"
#include "bench/kernels_pool.h"
#include "bench/progress.h"
#include "landmarks/index.h"

enum {
    LODE_INDEX_DOCUMENT = 65536, /**< tokens a block, or all if they are fewer */
    LODE_INDEX_HEADS = 2,        /**< KV heads: one of each kind */
    LODE_INDEX_QUERIES = 4,      /**< query heads a KV head */
    LODE_INDEX_DIM = 128,
    LODE_INDEX_ROWS = 128
};

/** One row of the table. What was not measured is NAN. */
typedef struct lode_index_row {
    const char *kind, *what; /**< of the head: sharp, broad; index, or a rival's name */
    char budget[16];
    uint64_t landmarks, wanted;
    double figure_ms, linear_ms; /**< scoring and choosing, one KV head */
    double visited;              /**< share of the landmarks that were looked at */
    double recall, mass;         /**< of the linear scan's choice: tokens; softmax mass against its mass */
    bool automatic;              /**< whether LODE_INDEX_AUTO would take the index here */
    uint64_t wrong;
    char note[160];
} lode_index_row_t;

/** Landmarks of one size, in a store of their own. */
typedef struct lode_index_data {
    uint64_t landmarks;
    uint32_t documents;
    uint64_t document_tokens;
    lode_generator_h generator;
    lode_store_h store;
    void *memory;
    size_t bytes;
    float *keys; /**< (landmarks, D) of the sharp head, at view positions, as a rival wants them; or NULL */
    double freq[LODE_INDEX_DIM / 2];
} lode_index_data_t;

typedef struct lode_index_bench {
    lode_options_t options;
    const lode_ops_t *ops;
    lode_landmark_spec_t spec;
    uint64_t most, seed;
    uint32_t slices;
    bool quick;
    lode_pool_t pool;
    lode_progress_t progress;
    lode_index_row_t rows[LODE_INDEX_ROWS];
    uint32_t count;
} lode_index_bench_t;

lode_index_row_t *lode_index_row(lode_index_bench_t *bench, const lode_index_data_t *data, const char *what,
                                 const char *kind, const char *budget);
/** Generate landmarks and put them into a store. */
lode_status_t lode_index_data_create(lode_index_bench_t *bench, uint64_t landmarks, bool keep_keys,
                                     lode_index_data_t *data);
void lode_index_data_destroy(lode_index_data_t *data);
/** Query @p number of one KV head, scaled by 1/√D, in the frame of each document: (documents, group, D). */
void lode_index_query(const lode_index_bench_t *bench, const lode_index_data_t *data, uint64_t number, uint32_t head,
                      float *q);
/** Processor time of this thread, ns. */
uint64_t lode_index_spent_ns(void);
/**
 * Rows of other libraries: faiss over the keys that @p data keeps, and OpenBLAS for the dense step.
 * @param linear_ms  what our scan of all takes for the same
 */
lode_status_t lode_index_rivals(lode_index_bench_t *bench, const lode_index_data_t *data, double linear_ms);
lode_status_t lode_index_report(const lode_index_bench_t *bench, const char *path);

#endif
