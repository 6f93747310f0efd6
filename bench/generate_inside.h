/* SPDX-License-Identifier: Apache-2.0 */
/* What the generator's two kinds share. */
#ifndef LODE_BENCH_GENERATE_INSIDE_H
#define LODE_BENCH_GENERATE_INSIDE_H

#include "bench/generate.h"

enum { LODE_QUANTILES = 4096, LODE_TOPICS = 64 };

/** What a hash is for; keeps the streams of random numbers apart. */
enum {
    FOR_MEAN = 1,
    FOR_TOPIC,
    FOR_RUN,
    FOR_NOISE,
    FOR_FACT,
    FOR_QUERY,
    FOR_OUTLIER,
    FOR_SIGN,
    FOR_SCALE,
    FOR_LATENT,
    FOR_WEIGHT,
    FOR_DRIFT,
    FOR_SALIENT
};

struct lode_generator {
    lode_generator_params_t params;
    uint64_t *starts;
    double freq[LODE_MAX_DIM / 2];
    float normal[LODE_QUANTILES]; /**< quantiles of the normal distribution: a uniform index makes a Gaussian */
    float *mean[2];               /**< keys, values: (L, Hkv, D) */
    float *topics[2];             /**< keys (not in a model), values: (L, Hkv, LODE_TOPICS, D) */
    float *signs;                 /**< model: (L, Hkv, 2, D) ±1: with Hadamard transforms the head's rotation */
    float *scale;                 /**< model: (L, Hkv, D) standard deviation of a channel of keys */
    float spectrum[LODE_MAX_DIM]; /**< model: standard deviations of latent coordinates */
    float trend[LODE_MAX_DIM];    /**< model: what slow rotary pairs have more than fast ones, keys and queries alike */
};

static inline uint64_t lode_generator_key(const struct lode_generator *g, int what, uint64_t a, uint64_t b, uint64_t c)
{
    return lode_mix(lode_mix(lode_mix(lode_mix(g->params.seed, (uint64_t)what), a), b), c);
}

static inline uint64_t lode_generator_lane(uint32_t layer, uint32_t head)
{
    return (uint64_t)layer << 32 | head;
}

/** row[i] += weight · Gaussian(key, i); four numbers a hash, and n is a multiple of 4. */
static inline void lode_generator_noise(const struct lode_generator *g, uint64_t key, float weight, float *row,
                                        uint32_t n)
{
    const float *normal = g->normal;
    for (uint32_t i = 0; i < n; i += 4) {
        uint64_t h = lode_mix(key, i);
        row[i] += weight * normal[h % LODE_QUANTILES];
        row[i + 1] += weight * normal[(h >> 16) % LODE_QUANTILES];
        row[i + 2] += weight * normal[(h >> 32) % LODE_QUANTILES];
        row[i + 3] += weight * normal[(h >> 48) % LODE_QUANTILES];
    }
}

void lode_generator_angles(const struct lode_generator *g, int64_t position, float *cosine, float *sine);
void lode_generator_rotate(float *row, uint32_t dim, const float *cosine, const float *sine);
/** Document that holds a view position. */
uint32_t lode_generator_block_at(const struct lode_generator *g, uint64_t position);
/** A value without its head's mean. */
void lode_generator_value(const struct lode_generator *g, uint32_t block, uint32_t layer, uint32_t head, uint64_t token,
                          float *row);

/* The model kind (generate_model.c). */

/** Sign vectors, scales and spectra. */
void lode_model_fill(struct lode_generator *g);
/** Mean key of a head, before rotation. */
void lode_model_mean(const struct lode_generator *g, uint32_t layer, uint32_t head, float *mean);
/** The token that stands out in the run that a token of a block is of, or the token itself where none does. */
uint64_t lode_model_salient(const struct lode_generator *g, uint32_t block, uint32_t layer, uint64_t token);
void lode_model_tokens(const struct lode_generator *g, uint32_t block, uint32_t layer, uint64_t first, uint64_t n,
                       float *k, float *v);
void lode_model_query(lode_generator_h g, uint32_t layer, uint64_t number, float *q);

#endif
