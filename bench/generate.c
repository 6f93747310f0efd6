/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/generate_inside.h"

enum { QUANTILES = LODE_QUANTILES, TOPICS = LODE_TOPICS, LONG_RUN = 32, SHORT_RUN = 4 };

/* Shares of a token's variance without its mean: they add up to 1. */
static const float topic_weight[2] = {0.35f, 0.55f}, run_weight[2] = {0.35f, 0.35f}, noise_weight[2] = {0.87f, 0.76f};

/* ------------------------------------------------------------------ numbers */

static void fill_normal(float *normal)
{
    /* Bisection on the distribution function: slow, exact enough, and done once. */
    for (int i = 0; i < QUANTILES / 2; i++) {
        double p = (i + 0.5) / QUANTILES, low = -6, high = 0;
        for (int step = 0; step < 50; step++) {
            double middle = (low + high) / 2;
            if (0.5 * erfc(-middle / sqrt(2)) < p)
                low = middle;
            else
                high = middle;
        }
        normal[i] = (float)low;
        normal[QUANTILES - 1 - i] = (float)-low;
    }
}

/* ------------------------------------------------------------------- create */

/* Points of a low-dimensional space, unit variance a channel. */
static void fill_topics(struct lode_generator *g, int side, uint32_t layer, uint32_t head, float *topics)
{
    uint32_t dim = g->params.geometry.head_dim, rank = (uint32_t)g->params.rank;
    float basis[LODE_MAX_DIM], weights[TOPICS];
    memset(topics, 0, (size_t)TOPICS * dim * sizeof *topics);
    for (uint32_t r = 0; r < rank; r++) {
        memset(basis, 0, dim * sizeof *basis);
        memset(weights, 0, sizeof weights);
        lode_generator_noise(g,
                             lode_generator_key(g, FOR_TOPIC, lode_generator_lane(layer, head), 2 * r, (uint64_t)side),
                             1, basis, dim);
        lode_generator_noise(
            g, lode_generator_key(g, FOR_TOPIC, lode_generator_lane(layer, head), 2 * r + 1, (uint64_t)side), 1,
            weights, TOPICS);
        for (uint32_t t = 0; t < TOPICS; t++)
            for (uint32_t i = 0; i < dim; i++)
                topics[(size_t)t * dim + i] += weights[t] * basis[i] / sqrtf((float)rank);
    }
}

/* The large channels stand among the last quarter of the pairs, which hardly rotate: there real models grow them. */
static void fill_mean(struct lode_generator *g, int side, uint32_t layer, uint32_t head, float *mean)
{
    uint32_t dim = g->params.geometry.head_dim, half = dim / 2;
    memset(mean, 0, dim * sizeof *mean);
    lode_generator_noise(g, lode_generator_key(g, FOR_MEAN, lode_generator_lane(layer, head), (uint64_t)side, 0),
                         side == 0 ? 0.5f : 0.3f, mean, dim);
    for (uint32_t i = 0; side == 0 && i < (uint32_t)g->params.outliers; i++) {
        uint64_t h = lode_generator_key(g, FOR_OUTLIER, lode_generator_lane(layer, head), i, 0);
        uint32_t channel = half - 1 - (uint32_t)(h % (half / 4)) + (h >> 40 & 1 ? half : 0);
        mean[channel] = (h >> 41 & 1 ? 1 : -1) * (6 + (float)(h >> 50) / 4096);
    }
}

static lode_status_t check_params(const lode_generator_params_t *p)
{
    const lode_geometry_t *g = &p->geometry;
    if (g->head_dim != 64 && g->head_dim != 128 && g->head_dim != 256)
        return lode_fail(LODE_ERR_GEOMETRY, "head_dim %u is not supported; it must be 64, 128 or 256", g->head_dim);
    if (!g->layers || !g->kv_heads || !g->query_heads || g->query_heads % g->kv_heads)
        return lode_fail(LODE_ERR_GEOMETRY,
                         "%u layers, %u query heads and %u KV heads do not fit: none may be 0, and query heads must be "
                         "a multiple of KV heads",
                         g->layers, g->query_heads, g->kv_heads);
    if (!p->blocks || p->facts > LODE_FACTS_MAX || p->rank > g->head_dim || p->outliers > g->head_dim / 8)
        return lode_fail(LODE_ERR_INVALID, "generator: %u blocks, %g facts, rank %g, %g outliers are out of range",
                         p->blocks, p->facts, p->rank, p->outliers);
    return LODE_OK;
}

static void fill(struct lode_generator *g)
{
    const lode_geometry_t *geometry = &g->params.geometry;
    size_t dim = geometry->head_dim;
    fill_normal(g->normal);
    for (int side = 0; side < 2; side++) {
        for (uint32_t layer = 0; layer < geometry->layers; layer++) {
            for (uint32_t head = 0; head < geometry->kv_heads; head++) {
                size_t row = (size_t)layer * geometry->kv_heads + head;
                if (side == 0 && g->params.kind == LODE_GENERATOR_MODEL) {
                    lode_model_mean(g, layer, head, g->mean[side] + row * dim);
                } else {
                    fill_mean(g, side, layer, head, g->mean[side] + row * dim);
                    fill_topics(g, side, layer, head, g->topics[side] + row * TOPICS * dim);
                }
            }
        }
    }
    if (g->params.kind == LODE_GENERATOR_MODEL)
        lode_model_fill(g);
}

lode_status_t lode_generator_create(const lode_generator_params_t *params, lode_generator_h *generator)
{
    LODE_TRY(check_params(params));
    struct lode_generator *g = calloc(1, sizeof *g);
    if (!g)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a generator");
    g->params = *params;
    if (!g->params.rank)
        g->params.rank = params->geometry.head_dim / 4;
    if (!g->params.facts)
        g->params.facts = params->geometry.head_dim / 32;
    size_t rows = (size_t)params->geometry.layers * params->geometry.kv_heads * params->geometry.head_dim;
    g->starts = malloc((params->blocks + 1) * sizeof *g->starts);
    for (int side = 0; side < 2; side++) {
        g->mean[side] = malloc(rows * sizeof(float));
        g->topics[side] = malloc(rows * TOPICS * sizeof(float));
    }
    g->signs = malloc(2 * rows * sizeof(float));
    g->scale = malloc(rows * sizeof(float));
    lode_status_t status = LODE_OK;
    if (!g->starts || !g->mean[0] || !g->mean[1] || !g->topics[0] || !g->topics[1] || !g->signs || !g->scale)
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for a generator of %u layers", params->geometry.layers);
    if (status == LODE_OK)
        status = lode_rope_frequencies(&params->geometry.rope, params->geometry.head_dim, g->freq);
    if (status != LODE_OK) {
        lode_generator_destroy(&g);
        return status;
    }
    memcpy(g->starts, params->starts, (params->blocks + 1) * sizeof *g->starts);
    g->params.starts = g->starts;
    fill(g);
    *generator = g;
    return LODE_OK;
}

void lode_generator_destroy(lode_generator_h *generator)
{
    struct lode_generator *g = *generator;
    if (!g)
        return;
    for (int side = 0; side < 2; side++) {
        free(g->mean[side]);
        free(g->topics[side]);
    }
    free(g->signs);
    free(g->scale);
    free(g->starts);
    free(g);
    *generator = NULL;
}

/* ------------------------------------------------------------------- tokens */

void lode_generator_angles(const struct lode_generator *g, int64_t position, float *cosine, float *sine)
{
    for (uint32_t i = 0; i < g->params.geometry.head_dim / 2; i++) {
        double s, c;
        sincos((double)position * g->freq[i], &s, &c);
        cosine[i] = (float)c;
        sine[i] = (float)s;
    }
}

void lode_generator_rotate(float *row, uint32_t dim, const float *cosine, const float *sine)
{
    uint32_t half = dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        float a = row[i], b = row[i + half];
        row[i] = a * cosine[i] - b * sine[i];
        row[i + half] = a * sine[i] + b * cosine[i];
    }
}

/* Everything of a token but the mean of its head, before rotation. side: 0 key, 1 value. */
static void make_row(const struct lode_generator *g, int side, uint32_t block, uint32_t layer, uint32_t head,
                     uint64_t token, float *row)
{
    uint32_t dim = g->params.geometry.head_dim;
    const float *topics = g->topics[side] + ((size_t)layer * g->params.geometry.kv_heads + head) * TOPICS * (size_t)dim;
    uint64_t run = lode_generator_key(g, FOR_RUN, block, lode_generator_lane(layer, head), token / LONG_RUN);
    const float *long_topic = topics + run % TOPICS * dim;
    const float *short_topic = topics + lode_mix(run, token / SHORT_RUN) % TOPICS * dim;
    for (uint32_t i = 0; i < dim; i++)
        row[i] = topic_weight[side] * long_topic[i] + run_weight[side] * short_topic[i];
    lode_generator_noise(
        g, lode_generator_key(g, FOR_NOISE, block, lode_generator_lane(layer, head), 2 * token + (uint64_t)side),
        noise_weight[side], row, dim);
}

void lode_generator_value(const struct lode_generator *g, uint32_t block, uint32_t layer, uint32_t head, uint64_t token,
                          float *row)
{
    make_row(g, 1, block, layer, head, token, row);
}

void lode_generator_tokens(lode_generator_h g, uint32_t block, uint32_t layer, uint64_t first, uint64_t n, float *k,
                           float *v)
{
    if (g->params.kind == LODE_GENERATOR_MODEL) {
        lode_model_tokens(g, block, layer, first, n, k, v);
        return;
    }
    uint32_t dim = g->params.geometry.head_dim, heads = g->params.geometry.kv_heads;
    float cosine[LODE_MAX_DIM / 2], sine[LODE_MAX_DIM / 2];
    float *rows[2] = {k, v};
    for (uint64_t t = 0; t < n; t++) {
        lode_generator_angles(g, (int64_t)(first + t), cosine, sine);
        for (uint32_t head = 0; head < heads; head++) {
            for (int side = 0; side < 2; side++) {
                float *row = rows[side] + (t * heads + head) * dim;
                const float *mean = g->mean[side] + ((size_t)layer * heads + head) * dim;
                make_row(g, side, block, layer, head, first + t, row);
                for (uint32_t i = 0; i < dim; i++)
                    row[i] += mean[i];
                if (side == 0)
                    lode_generator_rotate(row, dim, cosine, sine);
                for (uint32_t i = 0; i < dim; i++)
                    row[i] = lode_to_bf16(row[i]);
            }
        }
    }
}

/* ------------------------------------------------------------------ queries */

/* Spread evenly: number i is one of them where the running count of i·share steps up. */
static bool one_of(uint32_t i, double share)
{
    return floor((i + 1) * share + 1e-9) > floor(i * share + 1e-9);
}

bool lode_generator_sharp(lode_generator_h g, uint32_t kv_head)
{
    return one_of(kv_head, g->params.sharp_share);
}

lode_head_kind_t lode_generator_head_kind(lode_generator_h g, uint32_t kv_head)
{
    if (!lode_generator_sharp(g, kv_head))
        return LODE_HEAD_BROAD;
    uint32_t before = (uint32_t)floor(kv_head * g->params.sharp_share + 1e-9);
    return one_of(before, g->params.needles) ? LODE_HEAD_NEEDLE : LODE_HEAD_FACTS;
}

/* A fact of the model kind is a token that stands out, and no sink: those have no content to look up. */
static uint64_t model_fact(const struct lode_generator *g, uint32_t layer, uint64_t position)
{
    uint32_t block = lode_generator_block_at(g, position);
    uint64_t start = g->starts[block], end = g->starts[block + 1], sinks = (uint64_t)g->params.sinks;
    uint64_t token = lode_model_salient(g, block, layer, position - start);
    if (start + token >= end)
        token = position - start;
    return token < sinks && start + sinks < end ? start + sinks : start + token;
}

uint32_t lode_generator_facts(lode_generator_h g, uint32_t layer, uint64_t number, uint32_t query_head,
                              uint64_t *positions)
{
    uint32_t group = g->params.geometry.query_heads / g->params.geometry.kv_heads, hold = (uint32_t)g->params.hold;
    uint32_t facts =
        lode_generator_head_kind(g, query_head / group) == LODE_HEAD_NEEDLE ? 1 : (uint32_t)g->params.facts;
    uint64_t begin = g->starts[0], end = g->starts[g->params.blocks];
    for (uint32_t f = 0; f < facts; f++) {
        uint64_t since = (number + f * hold / facts) / hold; /* they change one after another */
        positions[f] =
            begin + lode_generator_key(g, FOR_FACT, since, lode_generator_lane(layer, query_head), f) % (end - begin);
        if (g->params.kind == LODE_GENERATOR_MODEL)
            positions[f] = model_fact(g, layer, positions[f]);
    }
    return facts;
}

uint32_t lode_generator_block_at(const struct lode_generator *g, uint64_t position)
{
    uint32_t block = 0;
    while (block + 1 < g->params.blocks && g->starts[block + 1] <= position)
        block++;
    return block;
}

static void add_facts(lode_generator_h g, uint32_t layer, uint64_t number, uint32_t head, float strength, float *q)
{
    const lode_geometry_t *geometry = &g->params.geometry;
    uint32_t dim = geometry->head_dim, kv_head = head / (geometry->query_heads / geometry->kv_heads);
    uint64_t positions[LODE_FACTS_MAX];
    uint32_t facts = lode_generator_facts(g, layer, number, head, positions);
    float row[LODE_MAX_DIM], cosine[LODE_MAX_DIM / 2], sine[LODE_MAX_DIM / 2];
    for (uint32_t f = 0; f < facts; f++) {
        uint32_t block = lode_generator_block_at(g, positions[f]);
        make_row(g, 0, block, layer, kv_head, positions[f] - g->starts[block], row);
        lode_generator_angles(g, (int64_t)positions[f], cosine, sine);
        lode_generator_rotate(row, dim, cosine, sine);
        for (uint32_t i = 0; i < dim; i++)
            q[i] += strength * row[i];
    }
}

void lode_generator_query(lode_generator_h g, uint32_t layer, uint64_t number, float *q)
{
    const lode_geometry_t *geometry = &g->params.geometry;
    uint32_t dim = geometry->head_dim, group = geometry->query_heads / geometry->kv_heads;
    if (g->params.kind == LODE_GENERATOR_MODEL) {
        lode_model_query(g, layer, number, q);
        return;
    }
    /* A fact's logit is strength·|k|²/√D = strength·√D: it must stand above the log of what it is one of. */
    double tokens = (double)(g->starts[g->params.blocks] - g->starts[0]);
    float strength = (float)((8 + log(tokens)) / sqrt(dim));
    memset(q, 0, (size_t)geometry->query_heads * dim * sizeof *q);
    for (uint32_t head = 0; head < geometry->query_heads; head++, q += dim) {
        uint32_t kv_head = head / group;
        const float *topics = g->topics[0] + ((size_t)layer * geometry->kv_heads + kv_head) * TOPICS * (size_t)dim;
        uint64_t key = lode_generator_key(g, FOR_QUERY, number, lode_generator_lane(layer, head), 0);
        if (lode_generator_sharp(g, kv_head)) {
            add_facts(g, layer, number, head, strength, q);
        } else {
            for (uint32_t i = 0; i < dim; i++)
                q[i] = 0.8f * topics[key % TOPICS * dim + i];
            lode_generator_noise(g, lode_mix(key, 1), 1.0f, q, dim);
        }
        lode_generator_noise(g, key, (float)g->params.query_noise, q, dim);
        for (uint32_t i = 0; i < dim; i++)
            q[i] = lode_to_bf16(q[i]);
    }
}
