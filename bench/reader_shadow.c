/* SPDX-License-Identifier: Apache-2.0 */
/* ShadowKV (arXiv 2410.21465) over a live run: what each new token chooses, and attention over rebuilt keys. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/reader_bench.h"

enum { LLAMA_WIDTH = 1024 }; /* 8 KV heads of 128, whose keys the published rank is of */

/** Buffers of one choice. */
struct lode_plain_choice {
    float *scores, *combined; /* (group, chunks), (chunks) */
    uint32_t *picks;          /* (chunks) */
    uint64_t *tokens;         /* (documents' tokens): rebuilt ones */
    float *keys;              /* (documents' tokens, D) */
};

static void free_choice(struct lode_plain_choice **choice)
{
    if (!*choice)
        return;
    free((*choice)->scores);
    free((*choice)->combined);
    free((*choice)->picks);
    free((*choice)->tokens);
    free((*choice)->keys);
    free(*choice);
    *choice = NULL;
}

uint32_t lode_shadow_rank(uint32_t width)
{
    uint32_t published = lode_shadow_published.rank;
    return width > published ? published : (width * published + LLAMA_WIDTH / 2) / LLAMA_WIDTH;
}

static uint64_t count_chunks(const lode_plain_t *p)
{
    uint64_t chunks = 0, chunk = lode_shadow_published.chunk;
    for (uint32_t i = 0; i < p->piece_count; i++)
        chunks += (p->pieces[i].count + chunk - 1) / chunk;
    return chunks;
}

static lode_status_t make_choice(lode_plain_t *p, uint64_t chunks)
{
    struct lode_plain_choice *c = calloc(1, sizeof *c);
    uint32_t group = p->geometry.query_heads / p->geometry.kv_heads;
    p->choice = c;
    if (c) {
        c->scores = malloc((group * chunks + 1) * sizeof *c->scores);
        c->combined = malloc((chunks + 1) * sizeof *c->combined);
        c->picks = malloc((chunks + 64) * sizeof *c->picks);
        c->tokens = malloc((p->documents_end + 1) * sizeof *c->tokens);
        c->keys = malloc((p->documents_end + 1) * p->geometry.head_dim * sizeof *c->keys);
    }
    bool room = c && c->scores && c->combined && c->picks && c->tokens && c->keys;
    return room ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory to choose among %" PRIu64 " chunks", chunks);
}

/* Keys of a layer, heads together again. */
static void join_heads(const lode_plain_t *p, uint32_t layer, float *keys)
{
    uint32_t heads = p->geometry.kv_heads, dim = p->geometry.head_dim;
    for (uint32_t head = 0; head < heads; head++)
        for (uint64_t t = 0; t < p->documents_end; t++)
            memcpy(keys + (t * heads + head) * dim, p->k[lode_plain_lane(p, layer, head)] + t * dim,
                   dim * sizeof *keys);
}

static lode_status_t make_shadows(lode_plain_t *p)
{
    const lode_geometry_t *g = &p->geometry;
    lode_shadow_place_t place = {.positions = p->positions, .ends = p->ends, .texts = p->piece_count};
    float *keys = malloc(p->documents_end * g->kv_heads * g->head_dim * sizeof *keys);
    p->shadows = calloc(g->layers, sizeof(lode_shadow_h));
    lode_status_t status = keys && p->shadows ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for low-rank keys");
    for (uint32_t layer = 0; layer < g->layers && status == LODE_OK; layer++) {
        join_heads(p, layer, keys);
        status = lode_shadow_create(&p->shadow_params, p->ops, &g->rope, g->kv_heads, g->head_dim, keys,
                                    p->documents_end, &place, &p->shadows[layer]);
    }
    free(keys);
    return status;
}

lode_status_t lode_plain_shadow(lode_plain_t *p, uint32_t rank, uint32_t outliers, double budget)
{
    uint32_t width = p->geometry.kv_heads * p->geometry.head_dim;
    uint64_t chunks = count_chunks(p);
    lode_plain_unshadow(p);
    if (!p->documents_end)
        return lode_fail(LODE_ERR_INVALID, "shadowkv: there are no documents");
    /* The question comes after the documents and stays, and is longer than the published local chunks. */
    p->shadow_params = (lode_shadow_params_t){.rank = rank ? rank : lode_shadow_rank(width),
                                              .chunk = lode_shadow_published.chunk,
                                              .outliers = outliers,
                                              .local = 0};
    if (p->shadow_params.outliers > chunks)
        p->shadow_params.outliers = (uint32_t)chunks;
    p->budget = budget;
    lode_status_t status = make_choice(p, chunks);
    if (status == LODE_OK)
        status = make_shadows(p);
    if (status != LODE_OK)
        lode_plain_unshadow(p);
    return status;
}

void lode_plain_unshadow(lode_plain_t *p)
{
    for (uint32_t i = 0; p->shadows && i < p->geometry.layers; i++)
        lode_shadow_destroy(&p->shadows[i]);
    free(p->shadows);
    p->shadows = NULL;
    free_choice(&p->choice);
}

void lode_plain_shadow_bytes(const lode_plain_t *p, double *landmarks, double *residents)
{
    enum { BF16 = 2, K_AND_V = 2 };
    const lode_shadow_params_t *s = &p->shadow_params;
    const lode_shadow_h shadow = p->shadows[0];
    uint64_t outliers = 0, chunks = lode_shadow_chunks(shadow);
    double width = (double)p->geometry.kv_heads * p->geometry.head_dim, tokens = (double)p->documents_end;
    for (uint32_t head = 0; head < p->geometry.kv_heads; head++)
        for (uint64_t c = 0; c < chunks; c++)
            if (lode_shadow_is_outlier(shadow, head, c))
                outliers += lode_shadow_begin(shadow, c + 1) - lode_shadow_begin(shadow, c);
    *landmarks = (double)(chunks - s->outliers) * width * BF16 / tokens;
    *residents = s->rank * (double)BF16 * (1 + width / tokens) +
                 (double)outliers * p->geometry.head_dim * BF16 * K_AND_V / tokens;
}

/* ----------------------------------------------------------------- choosing */

/* By the softmax over chunks of each query of the group, the maximum over them. */
static void score_chunks(const lode_plain_t *p, const struct lode_shadow *shadow, uint32_t head, const float *q)
{
    const float lowest = -1e9f; /* finite: sums of exponentials take nothing else */
    struct lode_plain_choice *c = p->choice;
    uint32_t group = p->geometry.query_heads / p->geometry.kv_heads;
    uint64_t chunks = lode_shadow_chunks(shadow);
    float shift[LODE_MAX_GROUP];
    for (uint32_t g = 0; g < group; g++) {
        float *row = c->scores + g * chunks;
        lode_shadow_score(shadow, head, q + (size_t)g * p->geometry.head_dim, row);
        for (uint64_t i = 0; i < chunks; i++)
            row[i] = fmaxf(row[i], lowest);
        shift[g] = p->ops->logsumexp(row, chunks);
    }
    p->ops->group_max(c->scores, chunks, shift, group, c->combined, chunks);
    for (uint64_t i = 0; i < chunks; i++)
        if (lode_shadow_is_outlier(shadow, head, i))
            c->combined[i] = -INFINITY;
}

/* Whole chunks while the budget lasts, one at least. @return tokens chosen */
static uint64_t choose(const lode_plain_t *p, const struct lode_shadow *shadow, uint32_t head)
{
    struct lode_plain_choice *c = p->choice;
    uint64_t chunks = lode_shadow_chunks(shadow), n = 0;
    uint64_t budget = (uint64_t)ceil(p->budget * (double)p->documents_end);
    uint64_t wanted = (budget + p->shadow_params.chunk - 1) / p->shadow_params.chunk;
    if (p->budget >= 1)
        wanted = chunks;
    size_t kept = p->ops->topk(c->combined, chunks, wanted < chunks ? wanted : chunks, c->picks);
    for (size_t i = 0; i < kept; i++) {
        uint32_t chunk = c->picks[i];
        if (lode_shadow_is_outlier(shadow, head, chunk))
            continue;
        for (uint64_t t = lode_shadow_begin(shadow, chunk); t < lode_shadow_begin(shadow, chunk + 1); t++)
            c->tokens[n++] = t;
    }
    return n;
}

/* ---------------------------------------------------------------- attending */

/** Attention that grows by runs of rows: a part and its log-sum-exp, merged. */
typedef struct part {
    const lode_plain_t *p;
    float *out, lse;
} part_t;

static void merge_part(part_t *part, const float *out, float lse)
{
    part->p->ops->merge(part->out, &part->lse, out, &lse, 1, part->p->geometry.head_dim);
}

static void add_rows(part_t *part, const float *k, const float *v, uint64_t n, const float *q)
{
    float out[LODE_MAX_DIM];
    if (!n)
        return;
    lode_plain_attend_rows(part->p, k, v, n, q, part->p->logits, out);
    merge_part(part, out, part->p->ops->logsumexp(part->p->logits, n));
}

static void add_rebuilt(part_t *part, const float *v, uint64_t n, const float *q)
{
    const struct lode_plain_choice *c = part->p->choice;
    uint32_t dim = part->p->geometry.head_dim;
    float out[LODE_MAX_DIM] = {0}, *logits = part->p->logits;
    if (!n)
        return;
    part->p->ops->dot_rows(q, c->keys, (uint32_t)n, dim, logits);
    float lse = part->p->ops->logsumexp(logits, n);
    for (uint64_t i = 0; i < n; i++) {
        float weight = expf(logits[i] - lse);
        for (uint32_t j = 0; j < dim; j++)
            out[j] += weight * v[c->tokens[i] * dim + j];
    }
    merge_part(part, out, lse);
}

/* One KV head: chunks of the budget by rebuilt keys and exact values, outliers and what came later as they are. */
static void attend_head(lode_plain_t *p, uint32_t layer, uint32_t head, const float *q, float *out)
{
    uint32_t dim = p->geometry.head_dim, group = p->geometry.query_heads / p->geometry.kv_heads;
    const struct lode_shadow *shadow = p->shadows[layer];
    const float *k = p->k[lode_plain_lane(p, layer, head)], *v = p->v[lode_plain_lane(p, layer, head)];
    score_chunks(p, shadow, head, q);
    uint64_t n = choose(p, shadow, head);
    lode_shadow_rebuild(shadow, head, p->choice->tokens, n, p->choice->keys);
    p->fetched += n;
    for (uint32_t g = 0; g < group; g++) {
        part_t part = {p, out + (size_t)g * dim, -INFINITY};
        const float *asks = q + (size_t)g * dim;
        memset(part.out, 0, dim * sizeof *out);
        add_rebuilt(&part, v, n, asks);
        for (uint64_t c = 0; c < lode_shadow_chunks(shadow); c++) {
            uint64_t begin = lode_shadow_begin(shadow, c), end = lode_shadow_begin(shadow, c + 1);
            if (lode_shadow_is_outlier(shadow, head, c))
                add_rows(&part, k + begin * dim, v + begin * dim, end - begin, asks);
        }
        uint64_t behind = p->documents_end;
        add_rows(&part, k + behind * dim, v + behind * dim, p->tokens + 1 - behind, asks);
    }
}

lode_status_t lode_plain_shadow_attend(lode_plain_t *p, uint32_t layer, const float *q, float *out)
{
    uint32_t dim = p->geometry.head_dim, group = p->geometry.query_heads / p->geometry.kv_heads;
    float asks[LODE_MAX_GROUP * LODE_MAX_DIM], scale = 1 / sqrtf((float)dim);
    for (uint32_t head = 0; head < p->geometry.kv_heads; head++) {
        size_t first = (size_t)head * group * dim;
        for (uint32_t j = 0; j < group * dim; j++)
            asks[j] = q[first + j] * scale;
        attend_head(p, layer, head, asks, out + first);
    }
    p->asked += layer == 0;
    return LODE_OK;
}
