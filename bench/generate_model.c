/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys and queries with the traits of a model's; docs/generator.md has the formulas and their sources.
 *
 * A head's key is scale ∘ (√(1−residual) · U (spectrum ∘ z) + √residual · ξ) + mean, then rotated: z is a latent that
 * the heads of a layer share, U the head's own rotation (signs and Hadamard transforms, so that any number of heads
 * costs little), ξ the head's own. A query for a token is made of the same z and ξ, but in a metric of its own.
 */
#include <math.h>
#include <string.h>

#include "bench/generate_inside.h"

enum { LONG_RUN = 32, SHORT_RUN = 4, WRITTEN_RUN = 256, TOPIC_RUN = 64 };

/** A fact's logit stands so far above the log of the number of tokens; as in the plain kind. */
#define FACT_LEAD 8
/** Means of rotary pairs from here on are the massive ones, which queries answer with a mean of opposite sign. */
#define MASSIVE_LEAST 5
#define SINK_STEP 0.15f

static size_t row_of(const struct lode_generator *g, uint32_t layer, uint32_t head)
{
    return (size_t)layer * g->params.geometry.kv_heads + head;
}

/* ------------------------------------------------------------------- create */

static void normalise(float *x, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)x[i] * x[i];
    float factor = (float)sqrt(n / sum);
    for (uint32_t i = 0; i < n; i++)
        x[i] *= factor;
}

static void fill_scale(struct lode_generator *g, uint32_t layer, uint32_t head, float *scale)
{
    uint32_t dim = g->params.geometry.head_dim, half = dim / 2;
    float own[LODE_MAX_DIM] = {0}, pair[LODE_MAX_DIM] = {0};
    uint64_t key = lode_generator_key(g, FOR_SCALE, lode_generator_lane(layer, head), 0, 0);
    lode_generator_noise(g, key, 0.6f, own, dim);
    lode_generator_noise(g, lode_mix(key, 1), 0.8f, pair, half);
    for (uint32_t i = 0; i < dim; i++)
        scale[i] = g->trend[i] * expf((float)g->params.uneven * (own[i] + pair[i % half]));
    normalise(scale, dim);
}

void lode_model_fill(struct lode_generator *g)
{
    const lode_geometry_t *geometry = &g->params.geometry;
    uint32_t dim = geometry->head_dim, half = dim / 2;
    for (uint32_t i = 0; i < dim; i++) {
        g->spectrum[i] = powf((float)(i + 1), (float)(-g->params.decay / 2));
        g->trend[i] = expf((float)(g->params.slow * ((double)(i % half) / (half - 1) - 0.5)));
    }
    normalise(g->spectrum, dim);
    normalise(g->trend, dim);
    for (uint32_t layer = 0; layer < geometry->layers; layer++)
        for (uint32_t head = 0; head < geometry->kv_heads; head++) {
            float *signs = g->signs + row_of(g, layer, head) * 2 * dim;
            for (uint32_t i = 0; i < 2 * dim; i++)
                signs[i] = lode_generator_key(g, FOR_SIGN, lode_generator_lane(layer, head), i, 0) >> 63 ? 1 : -1;
            fill_scale(g, layer, head, g->scale + row_of(g, layer, head) * dim);
        }
}

/* A mean of the given length in the plane of a rotary pair, at an angle by hash. */
static void add_pair(const struct lode_generator *g, uint32_t pair, float length, uint64_t hash, float *mean)
{
    float angle = (float)(hash >> 40) * (6.2831853f / (1 << 24));
    mean[pair] += length * cosf(angle);
    mean[pair + g->params.geometry.head_dim / 2] += length * sinf(angle);
}

/* Massive channels stand in the pairs that hardly turn in the context that a model is trained for, the slowest
 * twentieth; rings in those that turn many times in it. */
void lode_model_mean(const struct lode_generator *g, uint32_t layer, uint32_t head, float *mean)
{
    uint32_t dim = g->params.geometry.head_dim, half = dim / 2, slowest = half / 20 > 2 ? half / 20 : 2;
    uint64_t lane = lode_generator_lane(layer, head);
    memset(mean, 0, dim * sizeof *mean);
    lode_generator_noise(g, lode_generator_key(g, FOR_MEAN, lane, 0, 0), 0.3f, mean, dim);
    for (uint32_t i = 0; i < (uint32_t)g->params.outliers && i < 2 * slowest; i++) {
        uint64_t h = lode_generator_key(g, FOR_OUTLIER, lane, i, 0);
        mean[half - 1 - i / 2 + i % 2 * half] = (h >> 41 & 1 ? 1.0f : -1.0f) * (6 + (float)(h >> 50) / 4096);
    }
    for (uint32_t i = 0; i < (uint32_t)g->params.rings; i++) {
        uint64_t h = lode_generator_key(g, FOR_OUTLIER, lane, i, 1);
        add_pair(g, half / 4 + (uint32_t)(h % (half / 2)), 2 + (float)(h >> 16 & 0xffff) / 32768, lode_mix(h, 1), mean);
    }
}

/* ------------------------------------------------------------------ content */

static void hadamard(float *x, uint32_t n)
{
    for (uint32_t h = 1; h < n; h *= 2)
        for (uint32_t i = 0; i < n; i += 2 * h)
            for (uint32_t j = i; j < i + h; j++) {
                float a = x[j], b = x[j + h];
                x[j] = a + b;
                x[j + h] = a - b;
            }
}

static void flip(const float *signs, float factor, float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] *= factor * signs[i];
}

/* x = U x, or its inverse. */
static void turn(const struct lode_generator *g, uint32_t layer, uint32_t head, bool back, float *x)
{
    uint32_t dim = g->params.geometry.head_dim;
    const float *signs = g->signs + row_of(g, layer, head) * 2 * dim;
    float factor = 1 / (float)dim;
    if (!back)
        flip(signs, 1, x, dim);
    hadamard(x, dim);
    flip(signs + dim, factor, x, dim);
    hadamard(x, dim);
    if (back)
        flip(signs, 1, x, dim);
}

/* What the tokens of a run have in common, unit variance a coordinate. */
static void run_latent(const struct lode_generator *g, uint32_t block, uint32_t layer, uint64_t token, float weight,
                       float *z)
{
    lode_generator_noise(g, lode_generator_key(g, FOR_RUN, block, layer, token / LONG_RUN), weight, z,
                         g->params.geometry.head_dim);
}

/* The latent of a token, unit variance a coordinate: shares of the runs that it stands in, and its own. */
static void latent(const struct lode_generator *g, uint32_t block, uint32_t layer, uint64_t token, float *z)
{
    uint32_t dim = g->params.geometry.head_dim;
    uint64_t run = lode_generator_key(g, FOR_RUN, block, layer, token / LONG_RUN);
    float shared = (float)sqrt(g->params.neighbour / 2);
    memset(z, 0, dim * sizeof *z);
    lode_generator_noise(g, lode_generator_key(g, FOR_LATENT, block, layer, token),
                         (float)sqrt(1 - g->params.neighbour), z, dim);
    run_latent(g, block, layer, token, shared, z);
    lode_generator_noise(g, lode_mix(run, 1 + token / SHORT_RUN), shared, z, dim);
}

/* From one point to the next over `run` numbers, of unit variance everywhere. */
static void wander(const struct lode_generator *g, uint64_t key, uint64_t at, uint64_t run, float weight, float *x)
{
    double angle = 1.57079632679 * (double)(at % run) / (double)run;
    uint32_t dim = g->params.geometry.head_dim;
    lode_generator_noise(g, lode_mix(key, at / run), weight * (float)cos(angle), x, dim);
    lode_generator_noise(g, lode_mix(key, at / run + 1), weight * (float)sin(angle), x, dim);
}

uint64_t lode_model_salient(const struct lode_generator *g, uint32_t block, uint32_t layer, uint64_t token)
{
    uint64_t period = (uint64_t)g->params.salient;
    if (period == 0)
        return token;
    return token / period * period + lode_generator_key(g, FOR_SALIENT, block, layer, token / period) % period;
}

/* Part of a content, unit variance a channel, goes to a few channels. */
static void add_spikes(const struct lode_generator *g, uint64_t key, float *row)
{
    uint32_t dim = g->params.geometry.head_dim, count = dim / 16;
    float rest = (float)sqrt(1 - g->params.spikes), size = (float)sqrt(g->params.spikes * 16);
    for (uint32_t i = 0; i < dim; i++)
        row[i] *= rest;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t h = lode_mix(key, i);
        row[h % dim] += h >> 63 ? size : -size;
    }
}

/* The latent and what is the head's own, put together in a metric: `power` 1 is that of keys, the spread of channels
 * and of the spectrum raised to it; the trend over rotary pairs stays. */
static void compose(const struct lode_generator *g, uint32_t layer, uint32_t head, const float *z, uint64_t own,
                    bool salient, float power, float *row)
{
    uint32_t dim = g->params.geometry.head_dim;
    const float *scale = g->scale + row_of(g, layer, head) * dim;
    bool keys = power == 1;
    for (uint32_t i = 0; i < dim; i++)
        row[i] = z[i] * (keys ? g->spectrum[i] : powf(g->spectrum[i], power));
    turn(g, layer, head, false, row);
    float low = (float)sqrt(1 - g->params.residual);
    for (uint32_t i = 0; i < dim; i++)
        row[i] *= low;
    lode_generator_noise(g, own, (float)sqrt(g->params.residual), row, dim);
    if (salient)
        add_spikes(g, lode_mix(own, 1), row);
    for (uint32_t i = 0; i < dim; i++)
        row[i] *= keys ? scale[i] : g->trend[i] * powf(scale[i] / g->trend[i], power);
}

static uint64_t own_key(const struct lode_generator *g, uint32_t block, uint32_t layer, uint32_t head, uint64_t token)
{
    return lode_generator_key(g, FOR_NOISE, block, lode_generator_lane(layer, head), 2 * token);
}

/* ------------------------------------------------------------------- tokens */

/* A sink lacks the head's massive mean, so it escapes what queries answer that with; its value is small. */
static void make_sink(const float *mean, uint32_t dim, uint64_t token, float *k, float *v)
{
    float lacks = 1 - SINK_STEP * (float)token;
    for (uint32_t i = 0; i < dim; i++) {
        k[i] = 0.3f * k[i] + (fabsf(mean[i]) >= MASSIVE_LEAST ? 1 - lacks : 0.3f) * mean[i];
        v[i] *= 0.1f;
    }
}

static void make_token(const struct lode_generator *g, uint32_t block, uint32_t layer, uint32_t head, uint64_t token,
                       const float *z, bool salient, float *k, float *v)
{
    uint32_t dim = g->params.geometry.head_dim;
    size_t row = row_of(g, layer, head) * dim;
    compose(g, layer, head, z, own_key(g, block, layer, head, token), salient, 1, k);
    lode_generator_value(g, block, layer, head, token, v);
    for (uint32_t i = 0; i < dim; i++)
        v[i] += g->mean[1][row + i];
    if (token < (uint64_t)g->params.sinks)
        make_sink(g->mean[0] + row, dim, token, k, v);
    else
        for (uint32_t i = 0; i < dim; i++)
            k[i] += g->mean[0][row + i];
}

void lode_model_tokens(const struct lode_generator *g, uint32_t block, uint32_t layer, uint64_t first, uint64_t n,
                       float *k, float *v)
{
    uint32_t dim = g->params.geometry.head_dim, heads = g->params.geometry.kv_heads;
    float cosine[LODE_MAX_DIM / 2], sine[LODE_MAX_DIM / 2], z[LODE_MAX_DIM];
    uint64_t drift = lode_generator_key(g, FOR_DRIFT, block, layer, 0);
    for (uint64_t t = 0; t < n; t++) {
        lode_generator_angles(g, (int64_t)(first + t), cosine, sine);
        latent(g, block, layer, first + t, z);
        if (block >= g->params.blocks)
            wander(g, drift, first + t, WRITTEN_RUN, (float)g->params.drift, z);
        bool salient = g->params.salient > 0 && lode_model_salient(g, block, layer, first + t) == first + t;
        for (uint32_t head = 0; head < heads; head++, k += dim, v += dim) {
            make_token(g, block, layer, head, first + t, z, salient, k, v);
            lode_generator_rotate(k, dim, cosine, sine);
            for (uint32_t i = 0; i < dim; i++) {
                k[i] = lode_to_bf16(k[i]);
                v[i] = lode_to_bf16(v[i]);
            }
        }
    }
}

/* ------------------------------------------------------------------ queries */

/** What the parts of a query head's queries need. */
typedef struct asker {
    lode_generator_h g;
    uint32_t layer, head, kv_head, dim;
    uint64_t number;
    double log_tokens;
    float weight[LODE_MAX_DIM]; /* the query head's own, over rotary pairs */
} asker_t;

static double dot(const float *a, const float *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

/* q += row, in the query head's own metric, rotated to a position and of such strength that content, times a share, has
 * the logit FACT_LEAD + log of the tokens. */
static void ask_content(const asker_t *a, uint64_t position, const float *content, double share, float *row, float *q)
{
    float cosine[LODE_MAX_DIM / 2], sine[LODE_MAX_DIM / 2];
    for (uint32_t i = 0; i < a->dim; i++)
        row[i] *= a->weight[i];
    double factor = (FACT_LEAD + a->log_tokens) * sqrt(a->dim) / (share * dot(row, content, a->dim));
    lode_generator_angles(a->g, (int64_t)position, cosine, sine);
    lode_generator_rotate(row, a->dim, cosine, sine);
    for (uint32_t i = 0; i < a->dim; i++)
        q[i] += (float)factor * row[i];
}

/* A passage: what the tokens of a long run have in common, so that on average they have a fact's logit. */
static void ask_passage(const asker_t *a, uint64_t position, float *q)
{
    const struct lode_generator *g = a->g;
    const float *scale = g->scale + row_of(g, a->layer, a->kv_head) * a->dim;
    float z[LODE_MAX_DIM] = {0}, content[LODE_MAX_DIM], row[LODE_MAX_DIM];
    uint32_t block = lode_generator_block_at(g, position);
    run_latent(g, block, a->layer, position - g->starts[block], 1, z);
    for (uint32_t i = 0; i < a->dim; i++) {
        content[i] = z[i] * g->spectrum[i];
        row[i] = z[i] * powf(g->spectrum[i], (float)g->params.match);
    }
    turn(g, a->layer, a->kv_head, false, content);
    turn(g, a->layer, a->kv_head, false, row);
    for (uint32_t i = 0; i < a->dim; i++) {
        content[i] *= scale[i];
        row[i] *= g->trend[i] * powf(scale[i] / g->trend[i], (float)g->params.match);
    }
    ask_content(a, position, content, sqrt((1 - g->params.residual) * g->params.neighbour / 2), row, q);
}

/* A token's content. */
static void ask_fact(const asker_t *a, uint64_t position, float *q)
{
    const struct lode_generator *g = a->g;
    float z[LODE_MAX_DIM], content[LODE_MAX_DIM], row[LODE_MAX_DIM];
    uint32_t block = lode_generator_block_at(g, position);
    uint64_t token = position - g->starts[block], own = own_key(g, block, a->layer, a->kv_head, token);
    latent(g, block, a->layer, token, z);
    bool salient = g->params.salient > 0 && lode_model_salient(g, block, a->layer, token) == token;
    compose(g, a->layer, a->kv_head, z, own, salient, 1, content);
    compose(g, a->layer, a->kv_head, z, own, salient, (float)g->params.match, row);
    ask_content(a, position, content, 1, row, q);
}

/* Standard deviation of the logits that q gives to contents of keys. */
static double logit_deviation(const asker_t *a, const float *q)
{
    const struct lode_generator *g = a->g;
    const float *scale = g->scale + row_of(g, a->layer, a->kv_head) * a->dim;
    float x[LODE_MAX_DIM];
    for (uint32_t i = 0; i < a->dim; i++)
        x[i] = scale[i] * q[i];
    double own = g->params.residual * dot(x, x, a->dim);
    turn(g, a->layer, a->kv_head, true, x);
    for (uint32_t i = 0; i < a->dim; i++)
        x[i] *= g->spectrum[i];
    return sqrt((own + (1 - g->params.residual) * dot(x, x, a->dim)) / a->dim);
}

/* q += a topic that wanders, with logits as spread as the head's tail is long: some heads more, some less. */
static void ask_topic(const asker_t *a, float *q)
{
    const struct lode_generator *g = a->g;
    uint64_t key = lode_generator_key(g, FOR_TOPIC, lode_generator_lane(a->layer, a->head), 0, 0);
    float z[LODE_MAX_DIM] = {0}, row[LODE_MAX_DIM];
    wander(g, key, a->number, TOPIC_RUN, 1, z);
    lode_generator_noise(g, lode_mix(lode_mix(key, 1), a->number), 0.5f, z, a->dim);
    compose(g, a->layer, a->kv_head, z, lode_mix(lode_mix(key, 2), a->number), false, (float)g->params.match, row);
    for (uint32_t i = 0; i < a->dim; i++)
        row[i] *= a->weight[i];
    double longer = exp(0.25 * g->normal[lode_mix(key, 3) % LODE_QUANTILES]);
    float factor = (float)(g->params.tail * longer / logit_deviation(a, row));
    for (uint32_t i = 0; i < a->dim; i++)
        q[i] += factor * row[i];
}

/* q += the head's mean: a direction of its own, drifting, and against the massive channels of the head's keys so much
 * that the first sink, which lacks them, has its share. */
static void add_mean(const asker_t *a, float *q)
{
    const struct lode_generator *g = a->g;
    const float *mean = g->mean[0] + row_of(g, a->layer, a->kv_head) * a->dim;
    uint64_t key = lode_generator_key(g, FOR_MEAN, lode_generator_lane(a->layer, a->head), 2, 0);
    float row[LODE_MAX_DIM] = {0}, cosine[LODE_MAX_DIM / 2], sine[LODE_MAX_DIM / 2];
    double massive = 0, share = g->params.sink_share;
    lode_generator_noise(g, key, (float)g->params.query_mean, row, a->dim);
    wander(g, lode_mix(key, 1), a->number, TOPIC_RUN, (float)g->params.drift, row);
    for (uint32_t i = 0; i < a->dim; i++) {
        row[i] *= g->trend[i];
        massive += fabsf(mean[i]) >= MASSIVE_LEAST ? (double)mean[i] * mean[i] : 0;
    }
    double logit = a->log_tokens + g->params.tail * g->params.tail / 2 + log(share / (1 - share));
    float against = massive > 0 && g->params.sinks > 0 ? (float)(logit * sqrt(a->dim) / massive) : 0;
    for (uint32_t i = 0; i < a->dim; i++)
        if (fabsf(mean[i]) >= MASSIVE_LEAST)
            row[i] = -against * mean[i];
    lode_generator_angles(g, (int64_t)(g->starts[g->params.blocks] + a->number), cosine, sine);
    lode_generator_rotate(row, a->dim, cosine, sine);
    for (uint32_t i = 0; i < a->dim; i++)
        q[i] += row[i];
}

static void ask(const asker_t *a, float *q)
{
    lode_generator_h g = a->g;
    uint64_t positions[LODE_FACTS_MAX];
    memset(q, 0, a->dim * sizeof *q);
    if (lode_generator_sharp(g, a->kv_head)) {
        uint32_t facts = lode_generator_facts(g, a->layer, a->number, a->head, positions);
        bool passage = lode_generator_head_kind(g, a->kv_head) == LODE_HEAD_NEEDLE && g->params.neighbour > 0 &&
                       g->params.residual < 1;
        for (uint32_t f = 0; f < facts; f++)
            (passage ? ask_passage : ask_fact)(a, positions[f], q);
    } else {
        ask_topic(a, q);
    }
    add_mean(a, q);
    lode_generator_noise(g, lode_generator_key(g, FOR_QUERY, a->number, lode_generator_lane(a->layer, a->head), 0),
                         (float)g->params.query_noise, q, a->dim);
    for (uint32_t i = 0; i < a->dim; i++)
        q[i] = lode_to_bf16(q[i]);
}

void lode_model_query(lode_generator_h g, uint32_t layer, uint64_t number, float *q)
{
    const lode_geometry_t *geometry = &g->params.geometry;
    uint32_t dim = geometry->head_dim, half = dim / 2;
    for (uint32_t head = 0; head < geometry->query_heads; head++, q += dim) {
        asker_t a = {.g = g, .layer = layer, .head = head, .dim = dim, .number = number};
        a.kv_head = head / (geometry->query_heads / geometry->kv_heads);
        a.log_tokens = log((double)(g->starts[g->params.blocks] - g->starts[0]));
        uint64_t key = lode_generator_key(g, FOR_WEIGHT, lode_generator_lane(layer, head), 0, 0);
        lode_generator_noise(g, key, (float)g->params.uneven / 2, a.weight, half);
        for (uint32_t i = 0; i < half; i++)
            a.weight[i] = a.weight[i + half] = expf(a.weight[i]);
        ask(&a, q);
    }
}
