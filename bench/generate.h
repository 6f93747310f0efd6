/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file generate.h
 * @brief Keys, values and queries made from a seed, with the traits that make selection hard.
 *
 * Every element depends on (seed, block, layer, head, token) alone: any rank can make any piece of any
 * block again, in any order, and gets the same bits. Values are rounded to bf16 and given as float.
 *
 * A key before rotation is
 *     mean of its head, with a few large channels among those that rotate slowly
 *   + the topic of its run of 32 tokens + the topic of its run of 4 tokens (neighbours are alike)
 *   + Gaussian noise,
 * where the topics of a head are 64 points in a space of `rank` dimensions. Without the mean it has unit
 * variance in every channel on average. It is then rotated to its position in the block. A value is
 * built alike and not rotated.
 *
 * Query heads come in two kinds, by KV head. A sharp one looks up `facts` tokens scattered over all
 * documents: it is the sum of their rotated keys (without the mean), so strong that those tokens hold most
 * of the softmax mass. A broad one asks for a topic and spreads its mass over many tokens.
 * Which share of the KV heads is sharp, and how noisy queries are, can be set.
 *
 * This is a stand-in for a model, not a model: real keys have traits that these lack. Captures
 * (docs/captures.md) are the better judge.
 */
#ifndef LODE_BENCH_GENERATE_H
#define LODE_BENCH_GENERATE_H

#include "base/base.h"
#include "kernels/kernels.h"

typedef struct lode_generator *lode_generator_h;

typedef struct lode_generator_params {
    uint64_t seed;
    lode_geometry_t geometry; /**< all KV heads, whatever its range says */
    uint32_t blocks;          /**< documents */
    const uint64_t *starts; /**< (blocks + 1) view position of each document's token 0; the last: their end. Copied. */
    uint32_t rank;          /**< dimensions of a head's topics; 0: D/4 */
    uint32_t facts;         /**< tokens that a sharp query head looks up; 0: D/32 */
    double sharp_share;     /**< of the KV heads, 0 … 1 */
    double query_noise;     /**< standard deviation of a query channel's noise */
    uint32_t outliers;      /**< large channels of a head's mean key */
} lode_generator_params_t;

/** Everything but seed, geometry, blocks and starts at its usual value. */
void lode_generator_defaults(lode_generator_params_t *params);
lode_status_t lode_generator_create(const lode_generator_params_t *params, lode_generator_h *generator);
void lode_generator_destroy(lode_generator_h *generator);

/**
 * Keys and values of tokens first … first+n−1 of one block and layer.
 * @param block  0 … blocks−1 for documents; higher numbers are blocks that streams write
 * @param[out] k, v  (n, Hkv, D)
 */
void lode_generator_tokens(lode_generator_h generator, uint32_t block, uint32_t layer, uint64_t first, uint64_t n,
                           float *k, float *v);
/** Query @p number of a layer, rotated to view positions, as q: (Hq, D). */
void lode_generator_query(lode_generator_h generator, uint32_t layer, uint64_t number, float *q);

/** Whether a KV head's queries look up facts. */
bool lode_generator_sharp(lode_generator_h generator, uint32_t kv_head);
/** View positions of the facts that query @p number looks up in one query head: (facts). @return how many. */
uint32_t lode_generator_facts(lode_generator_h generator, uint32_t layer, uint64_t number, uint32_t query_head,
                              uint64_t *positions);

/** Most facts a query head may look up. */
#define LODE_FACTS_MAX 64

#endif
