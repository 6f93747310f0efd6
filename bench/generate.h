/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file generate.h
 * @brief Keys, values and queries made from a seed, with the traits that make selection hard.
 *
 * Every element depends on (seed, block, layer, head, token) alone: any rank can make any piece of any
 * block again, in any order, and gets the same bits. Values are rounded to bf16 and given as float.
 *
 * There are two kinds. *Plain*: a key before rotation is
 *     mean of its head, with a few large channels among those that rotate slowly
 *   + the topic of its run of 32 tokens + the topic of its run of 4 tokens (neighbours are alike)
 *   + Gaussian noise,
 * where the topics of a head are 64 points in a space of `rank` dimensions. Without the mean it has unit
 * variance in every channel on average. It is then rotated to its position in the block. A value is
 * built alike and not rotated.
 *
 * Query heads come in kinds, by KV head. A sharp one looks up `facts` tokens scattered over all
 * documents: it is the sum of their rotated keys (without the mean), so strong that those tokens hold most
 * of the softmax mass. A broad one asks for a topic and spreads its mass over many tokens.
 * Which share of the KV heads is sharp, and how noisy queries are, can be set.
 *
 * *Model* has the traits that are published of real models besides: a latent of low rank that the heads of a layer
 * share, uneven channels, massive slow rotary pairs, sinks, queries with a mean and a metric of their own, drift.
 * docs/generator.md has every knob with its source.
 *
 * Both are stand-ins for a model. Captures (docs/captures.md) are the better judge.
 */
#ifndef LODE_BENCH_GENERATE_H
#define LODE_BENCH_GENERATE_H

#include <string.h>

#include "base/base.h"
#include "kernels/kernels.h"

/** The nearest of the values that bf16 has, which are those of captures and of what is generated. */
static inline float lode_to_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

typedef struct lode_generator *lode_generator_h;

typedef enum lode_generator_kind { LODE_GENERATOR_PLAIN, LODE_GENERATOR_MODEL } lode_generator_kind_t;

/** What a KV head's queries do. */
typedef enum lode_head_kind { LODE_HEAD_BROAD, LODE_HEAD_FACTS, LODE_HEAD_NEEDLE } lode_head_kind_t;
enum { LODE_HEAD_KINDS = 3 };
extern const char *const lode_head_kind_names[LODE_HEAD_KINDS];

/** Set by lode_generator_defaults() or lode_generator_parse(), then changed where wanted. */
typedef struct lode_generator_params {
    uint64_t seed;
    lode_geometry_t geometry; /**< all KV heads, whatever its range says */
    uint32_t blocks;          /**< documents */
    const uint64_t *starts; /**< (blocks + 1) view position of each document's token 0; the last: their end. Copied. */
    lode_generator_kind_t kind;
    double sharp_share; /**< of the KV heads, 0 … 1 */
    /* The knobs of docs/generator.md; whole numbers where they are counts. */
    double facts;       /**< tokens that a query of a facts head looks up; 0: D/32 */
    double needles;     /**< share of the sharp heads that look up one token */
    double query_noise; /**< standard deviation of a query channel's noise */
    double outliers;    /**< large channels of a head's mean key */
    double rank;        /**< plain: dimensions of a head's topics; 0: D/4 */
    double neighbour;   /**< share of the content's variance that a run of neighbours has in common */
    double residual;    /**< share of a key's variance outside the latent that heads share */
    double decay;       /**< variances of latent coordinates fall as i^−decay */
    double uneven;      /**< spread of the logarithm of channels' standard deviations */
    double slow;        /**< logarithm of what the slowest rotary pair has over the fastest */
    double rings;       /**< rotary pairs of middling speed with a mean of their own */
    double match;       /**< metric of queries: 1 that of keys, 0 flat, −1 whitening */
    double query_mean;  /**< standard deviation over channels of a query head's mean */
    double salient;     /**< one token in so many stands out from its neighbours, and facts are such tokens; 0: none */
    double spikes;      /**< share of a salient token's content that lies in a sixteenth of its channels */
    double sinks;       /**< tokens at the start of each block that are sinks */
    double sink_share;  /**< of a broad head's mass that the first one takes */
    double tail;        /**< standard deviation of a broad head's logits */
    double drift;       /**< how far queries, and keys written while decoding, wander from their mean */
    double hold;        /**< queries in a row that look up the same fact */
} lode_generator_params_t;

/** The plain kind: everything but seed, geometry, blocks and starts at its usual value. */
void lode_generator_defaults(lode_generator_params_t *params);
/**
 * What --generator says: "plain" or "model", then any of ",knob=value". Sets what lode_generator_defaults() sets.
 * @return LODE_ERR_INVALID with the nearest name, or the range.
 */
lode_status_t lode_generator_parse(const char *text, lode_generator_params_t *params);
/** One line a knob, for --help. */
void lode_generator_help(FILE *out);
/** The row of an option table. */
#define LODE_GENERATOR_OPTION(standard)                                        \
    {                                                                          \
        "generator", standard, LODE_OPTION_TEXT, NULL, 0, 0,                   \
            "plain or model, then ,knob=value …; knobs in docs/generator.md" \
    }

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

lode_head_kind_t lode_generator_head_kind(lode_generator_h generator, uint32_t kv_head);
/** Whether a KV head's queries look up facts, or one. */
bool lode_generator_sharp(lode_generator_h generator, uint32_t kv_head);
/** View positions of the facts that query @p number looks up in one query head: (facts). @return how many. */
uint32_t lode_generator_facts(lode_generator_h generator, uint32_t layer, uint64_t number, uint32_t query_head,
                              uint64_t *positions);

/** Most facts a query head may look up. */
#define LODE_FACTS_MAX 64

#endif
