/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file landmarks.h
 * @brief `lodemark bench landmarks`: kinds of landmarks side by side, by the softmax mass that they find.
 *
 * Everything is judged one KV head at a time, by the rule of the step (softmax of each query head, maximum over the
 * group, top-k, sinks and window forced), on queries that no transform was made from.
 */
#ifndef LODE_BENCH_LANDMARKS_H
#define LODE_BENCH_LANDMARKS_H

#include "bench/source.h"
#include "landmarks/landmarks.h"

/** What comes off the keys before they are transformed; its score is added to each query's. */
typedef enum lode_centre {
    LODE_CENTRE_NONE,
    LODE_CENTRE_BLOCK, /**< the block's mean key */
    LODE_CENTRE_ROTARY /**< the mean of keys before their rotation, rotated to each token */
} lode_centre_t;

/** What keys and queries go through before keys are quantised. */
typedef enum lode_turn {
    LODE_TURN_HADAMARD,
    LODE_TURN_SCALE,    /**< channels of keys to unit size, and no Hadamard */
    LODE_TURN_DIAGONAL, /**< w² = rms(q)/rms(k) a channel, then Hadamard */
    LODE_TURN_BALANCE,  /**< the balance of the covariances, then Hadamard: what `lodemark calibrate` writes */
    LODE_TURN_PRINCIPAL /**< the balance, then its principal axes, largest last */
} lode_turn_t;

typedef enum lode_form {
    LODE_FORM_EXACT,
    LODE_FORM_UNIFORM, /**< by the library's own kernels, as HIGGS */
    LODE_FORM_HIGGS,
    LODE_FORM_MIXED,   /**< uniform, bits allotted by axis, `bits` on average; computed in floats: there is no kernel */
    LODE_FORM_HALF,    /**< uniform with twice the bits, of the larger half of the axes alone; head dims from 128 on */
    LODE_FORM_MEANS,   /**< bf16 mean of a chunk */
    LODE_FORM_BOX,     /**< bf16 least and greatest of a chunk, a channel: an upper bound (Quest) */
    LODE_FORM_CUBOID,  /**< the same about the box's centre with the mean distance from it (ArkVale's cuboid-mean) */
    LODE_FORM_RERANK,  /**< uniform with `bits`, then the best `widen` budgets of tokens again with `second` bits */
    LODE_FORM_RESIDUAL /**< uniform: the mean of LODE_RESIDUAL_TOKENS keys with `second` bits, what is left with `bits`
                        */
} lode_form_t;

enum { LODE_RESIDUAL_TOKENS = 4 };

typedef struct lode_contestant {
    const char *name;
    lode_form_t form;
    lode_centre_t centre;
    lode_turn_t turn;
    uint32_t bits, chunk, second, widen;
} lode_contestant_t;

/** Contestants of equal centre and turn stand together. Ends with a NULL name; the first is exact keys. */
extern const lode_contestant_t lode_contestants[];
enum { LODE_CONTESTANTS_MAX = 32, LODE_BUDGETS = 2 };
extern const double lode_landmark_budgets[LODE_BUDGETS];

/** Bytes of landmarks a token and KV head. */
double lode_contestant_bytes(const lode_contestant_t *contestant, uint32_t dim);

/** What one contestant has found: sums over `count` pairs of a query and a KV head. */
typedef struct lode_found {
    double mass[LODE_BUDGETS];
    double recall;   /**< of the `few` best tokens in its own `few` */
    double top_page; /**< query heads whose best page of 32 it knew, a share */
    double count;
} lode_found_t;

/** One KV head. All borrowed. */
typedef struct lode_trial {
    const lode_ops_t *ops;
    lode_rope_t rope;
    const int64_t *positions; /**< (tokens) that keys are rotated to; NULL: 0, 1, 2 … */
    uint32_t dim, group;
    uint64_t tokens;
    const float *keys; /**< (tokens, dim), after rotation */
    uint64_t fitted;
    const float *fit_queries; /**< (fitted, dim): what transforms are made from */
    uint32_t queries;
    const float *judged_queries; /**< (queries, group, dim) */
    const uint64_t *visible;     /**< (queries) tokens that a query may see */
    uint32_t few, sinks, window;
    uint64_t wanted; /**< bit i: contestant i takes part */
} lode_trial_t;

/** Add what each contestant finds to found[contestant]. Threads may run different trials at once. */
lode_status_t lode_trial_run(const lode_trial_t *trial, lode_found_t *found);

/** Landmarks of one KV head, of one kind at a time, and what they score: what lode_trial_run() judges by. */
typedef struct lode_judge *lode_judge_h;
/** @param[in] trial  borrowed until lode_judge_destroy(); what is judged (visible, few, sinks, window) is not used */
lode_status_t lode_judge_create(const lode_trial_t *trial, lode_judge_h *judge);
void lode_judge_destroy(lode_judge_h *judge);
/** Make a contestant's landmarks, neither exact keys nor a re-rank; those made before are gone. */
lode_status_t lode_judge_make(lode_judge_h judge, const lode_contestant_t *contestant);
/** Logits of the landmarks made last: row g of (group, tokens) has one a chunk. */
void lode_judge_score(lode_judge_h judge, const lode_contestant_t *contestant, uint32_t query, float *scores);

/** A whole table: found[contestant][kind of head]; captures have no kinds, theirs is the first. */
typedef struct lode_landmark_table {
    lode_found_t found[LODE_CONTESTANTS_MAX][LODE_HEAD_KINDS];
} lode_landmark_table_t;

typedef struct lode_landmark_params {
    const lode_source_t *source; /**< of one block */
    uint32_t fit, queries, few, sinks, window, threads;
    const char *level; /**< of kernels */
    const char *only;  /**< words of names, separated by commas; NULL: all. Exact keys always take part. */
} lode_landmark_params_t;

lode_status_t lode_landmark_judge(const lode_landmark_params_t *params, lode_landmark_table_t *table);

#endif
