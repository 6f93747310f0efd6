/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file reference.h
 * @brief Dense attention in double, and how much of its softmax mass a choice of tokens holds.
 *
 * The documents are cut into pieces of 64 tokens that the ranks take in turns; each rank makes the keys
 * and values of its pieces again, and MPI merges (one rank alone needs none). So no rank ever holds a document, and no
 * result depends on what Lodemark stored.
 *
 * The oracle chooses as the step does (same merge over the group, same sinks, window and number of tokens),
 * but from exact logits of single tokens.
 */
#ifndef LODE_BENCH_REFERENCE_H
#define LODE_BENCH_REFERENCE_H

#include "bench/job.h"
#include "bench/source.h"

/** One query token of one step and layer that is compared. */
typedef struct lode_check {
    /* what was asked */
    uint32_t layer;
    uint32_t writer;  /**< the block that the stream writes, as a number of lode_source_tokens() */
    int64_t position; /**< view position of the query */
    uint64_t written; /**< tokens of that block that the query sees, itself included */
    const float *q;   /**< (Hq, D), rotated to view positions */
    /* what was chosen */
    uint64_t paged; /**< visible tokens in pages: the rest of the written ones was in the tail, which is always read */
    uint32_t **chosen;      /**< (Hkv) ascending view tokens; NULL: all */
    uint64_t *chosen_count; /**< (Hkv) */
    /* what comes out */
    double *docs_out;       /**< (Hq, D) over the documents alone */
    double *out;            /**< (Hq, D) with the written tokens */
    double *found, *oracle; /**< (Hq) shares of the softmax mass, 0 … 1 */
} lode_check_t;

typedef struct lode_reference_params {
    lode_job_t job;
    const lode_source_t *source;
    lode_group_merge_t merge;
    uint32_t sinks, window;
    size_t memory; /**< most bytes of logits to keep on a rank; checks are done in turns if they need more */
} lode_reference_params_t;

/** Take the memory of a check's results and choices. @return ::LODE_ERR_NO_MEMORY. */
lode_status_t lode_check_create(const lode_geometry_t *geometry, lode_check_t *check);
void lode_check_free(const lode_geometry_t *geometry, lode_check_t *check);

/** Fill what comes out of n checks, the same on every rank. Collective, checks alike on every rank. */
lode_status_t lode_reference_run(const lode_reference_params_t *params, lode_check_t *checks, size_t n);

#endif
