/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file index.h
 * @brief A second level over landmarks, so that a step over very many of them looks at some alone.
 *
 * Every LODE_INDEX_GROUP landmarks in a row have a representative: the mean of what they stand for, quantised to more
 * bits than they are. A step scores the representatives, takes the best tenth of the groups and the forced ones, scores
 * the landmarks in those, and chooses among them as it would among all. What it gives is what a scan of all landmarks
 * gives as far as the groups hold it: a group whose mean hides a fact is not looked into. docs/index.md has the recall
 * and the speed.
 *
 * A landmark's score is the same to the bit whether it was reached by a scan or by the index, and which groups are
 * looked into depends on the block and the query alone, so that all ranks choose the same.
 *
 * Representatives are made by the keeper when tokens are published, from the landmarks in the store, and never change.
 */
#ifndef LODE_LANDMARKS_INDEX_H
#define LODE_LANDMARKS_INDEX_H

#include "landmarks/landmarks.h"

/** Landmarks a representative. It divides 16, so that a group lies in one half of a tile. */
#define LODE_INDEX_GROUP 4

/** Announced landmarks from which on a block keeps an index without being told to. */
#define LODE_INDEX_KEEP 1048576

/** Whether a block has an index. */
bool lode_index_kept(const lode_block_info_t *info);
/** How representatives are quantised. They are as their landmarks are: centred, transformed. */
lode_landmark_spec_t lode_index_spec(const lode_landmark_spec_t *spec);

/**
 * Make the representatives of groups [from, to) of one head.
 * @param tiles  the landmarks, group 0's first in place 0  @param index  tiles of the representatives
 */
void lode_index_build(const lode_ops_t *ops, const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles,
                      uint64_t from, uint64_t to, uint8_t *index);

/* ----------------------------------------------------------------- choosing */

/** One block of a view, as one KV head of one row asks it. */
typedef struct lode_index_part {
    uint32_t slot;
    const float *q;         /**< (group, dim) as lode_store_score() takes them */
    const float *transform; /**< the same */
} lode_index_part_t;

/** What a choice by the index will look at. */
typedef struct lode_index_plan {
    uint64_t groups;    /**< complete groups of all pieces */
    uint64_t forced;    /**< those that are looked into whatever their score: sinks, window, blocks without index */
    uint64_t visited;   /**< those that are looked into, forced ones included */
    uint64_t most;      /**< landmarks that are scored at most */
    uint64_t landmarks; /**< of all pieces */
    size_t work_bytes;  /**< what lode_index_choose() works in */
} lode_index_plan_t;

/**
 * Decide whether a choice goes by the index: where a block of the view says so (LODE_INDEX_ON), or where it pays.
 * The same on every rank.
 * @param parts  those of choice->pieces; q and transform are not looked at
 * @return false: score all landmarks and lode_choose()
 */
bool lode_index_pays(lode_store_h store, const lode_choice_t *choice, const lode_index_part_t *parts,
                     lode_index_plan_t *plan);

/** Whether a plan pays where no block says so: very many landmarks, few of them looked at. */
bool lode_index_worth(const lode_choice_t *choice, const lode_index_plan_t *plan);

/**
 * Choose tokens of one KV head by the index: what lode_choose() would from the landmarks that are looked at.
 * @param work  plan->work_bytes, 64-byte aligned
 * @param[out] tokens  as of lode_choose()
 */
uint64_t lode_index_choose(lode_store_h store, uint32_t layer, uint32_t head, const lode_choice_t *choice,
                           const lode_index_part_t *parts, const lode_index_plan_t *plan, void *work, uint32_t *tokens);

#endif
