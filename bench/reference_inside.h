/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file reference_inside.h
 * @brief What reference.c (dense attention) and mass.c (shares of its mass) have in common.
 */
#ifndef LODE_BENCH_REFERENCE_INSIDE_H
#define LODE_BENCH_REFERENCE_INSIDE_H

#include "bench/progress.h"
#include "bench/reference.h"

/** Tokens of a document that one rank takes at once; piece number p is rank p mod ranks's. */
#define LODE_PIECE 64
/** Most query heads of a geometry that is benchmarked. */
#define LODE_MASS_HEADS_MAX 1024

/** The state of one turn: some checks, and this rank's pieces. */
typedef struct lode_reference_work {
    const lode_reference_params_t *params;
    uint32_t *first_piece; /**< (blocks + 1) number of each document's first piece */
    uint64_t pieces;       /**< of all documents */
    size_t local;   /**< places for logits of this rank's tokens: its pieces one after another, each of LODE_PIECE */
    double *freq;   /**< (D/2) */
    double *turned; /**< (checks, Hq, D) queries in the frame of the current block */
    double *logits; /**< (checks, Hq, local) */
    double *extra;  /**< (checks, Hq, extra_stride) logits of the written tokens */
    size_t extra_stride;
    double *maximum, *sum; /**< (checks, Hq) running softmax */
    double *docs_lse;      /**< (checks, Hq) over the documents */
    double *lse;           /**< (checks, Hq) over everything */
    double *scores;        /**< (Hkv, local + extra) of one check, for the oracle */
    float *k, *v;          /**< one piece */
    double *rows;          /**< keys and values of one head of a piece */
    lode_progress_t progress;
    uint64_t done;
} lode_reference_work_t;

/** Fill check c's share of mass in the tokens it chose. Collective. */
void lode_mass_found(lode_reference_work_t *work, lode_check_t *check, size_t c);
/** Fill check c's share of mass in as many tokens chosen by exact logits. Collective. */
void lode_mass_oracle(lode_reference_work_t *work, lode_check_t *check, size_t c);

#endif
