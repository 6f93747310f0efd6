/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens of a tail are taken back, or moved to the tail of another block. All layers are looked at before one changes.
 */
#include <stdlib.h>

#include "attend/inside.h"

/* --------------------------------------------------------------------- crop */

/* Tokens up to which some layer's have left as pages, or another node may believe so. */
static uint64_t least_kept(const struct lode_block *block)
{
    uint64_t least = 0;
    for (uint32_t layer = 0; layer < block->cluster->geometry.layers; layer++) {
        const lode_tail_t *tail = &block->tails[layer];
        uint64_t left = tail->told > tail->first ? tail->told : tail->first;
        least = left > least ? left : least;
    }
    return least;
}

static lode_status_t check_crop(lode_block_h block, uint64_t tokens)
{
    LODE_TRY(lode_block_check_append(block));
    for (uint32_t layer = 0; layer < block->cluster->geometry.layers; layer++) {
        uint64_t length = block->tails[layer].first + block->tails[layer].tokens;
        if (tokens > length)
            return lode_fail(LODE_ERR_INVALID, "block \"%s\" cannot keep %llu tokens: layer %u has %llu",
                             block->info.name, (unsigned long long)tokens, layer, (unsigned long long)length);
    }
    uint64_t least = least_kept(block);
    if (tokens < least)
        return lode_fail(LODE_ERR_SEALED,
                         "block \"%s\" cannot be cut to %llu tokens: the first %llu have left as pages, so keep at "
                         "least %llu; of a draft all can be taken back",
                         block->info.name, (unsigned long long)tokens, (unsigned long long)least,
                         (unsigned long long)least);
    return LODE_OK;
}

/* The mean key is of tokens that may be gone; while none has left, what comes next makes another. */
static void forget_mean(lode_tail_t *tail)
{
    if (tail->first || tail->told)
        return;
    free(tail->mean);
    tail->mean = NULL;
    tail->mean_sent = false;
}

static void cut(lode_block_h block, uint64_t tokens)
{
    for (uint32_t layer = 0; layer < block->cluster->geometry.layers; layer++) {
        lode_tail_t *tail = &block->tails[layer];
        if (tokens < tail->first + tail->tokens)
            forget_mean(tail);
        tail->tokens = tokens - tail->first;
        tail->mirrored = tail->mirrored < tokens ? tail->mirrored : tokens;
    }
}

lode_status_t lode_local_block_crop(lode_block_h block, uint64_t tokens)
{
    LODE_TRY(check_crop(block, tokens));
    cut(block, tokens);
    return LODE_OK;
}

/* --------------------------------------------------------------------- move */

/* Tokens that are turned at a time. */
enum { MOVE_TOKENS = 2 * LODE_PAGE_TOKENS };

typedef struct moving {
    lode_block_h from, to;
    uint64_t first, tokens;
    float cosine[LODE_MAX_DIM / 2], sine[LODE_MAX_DIM / 2]; /* of the way from their positions to the new ones */
    float *k, *v;                                           /* (MOVE_TOKENS, heads, D) */
    uint64_t *lengths;                                      /* (layers) of the tails that they go to, before */
    lode_mark_t *marks;                                     /* (layers) of the same tails, with what was moved */
} moving_t;

static lode_status_t check_move(lode_block_h from, uint64_t first, lode_block_h to)
{
    if (from->info.id == to->info.id)
        return lode_fail(LODE_ERR_INVALID, "block \"%s\" cannot be moved into itself", from->info.name);
    LODE_TRY(lode_block_check_append(to));
    LODE_TRY(check_crop(from, first));
    LODE_TRY(lode_block_check_equal(from, "moved from"));
    LODE_TRY(lode_block_check_equal(to, "moved to"));
    if (from->info.kv_head_begin != to->info.kv_head_begin || from->heads != to->heads)
        return lode_fail(LODE_ERR_GEOMETRY, "block \"%s\" holds KV heads %u to %u, block \"%s\" %u to %u",
                         from->info.name, from->info.kv_head_begin, from->info.kv_head_end, to->info.name,
                         to->info.kv_head_begin, to->info.kv_head_end);
    return LODE_OK;
}

/* Write a layer's tokens behind the other block's tail. */
static lode_status_t move_layer(moving_t *m, uint32_t layer)
{
    lode_cluster_h cluster = m->from->cluster;
    uint32_t heads = m->from->heads, dim = cluster->geometry.head_dim;
    for (uint64_t done = 0, piece; done < m->tokens; done += piece) {
        piece = m->tokens - done < MOVE_TOKENS ? m->tokens - done : MOVE_TOKENS;
        lode_tail_read(m->from, layer, m->first + done, piece, m->k, m->v);
        cluster->ops->rotate(m->k, (uint32_t)piece * heads, dim, m->cosine, m->sine);
        LODE_TRY(lode_check_finite(cluster, "turned key", layer, piece, heads, LODE_FP32, m->k));
        LODE_TRY(lode_tail_write(m->to, layer, piece, LODE_FP32, m->k, m->v));
    }
    return LODE_OK;
}

static void take_back(moving_t *m)
{
    for (uint32_t layer = 0; layer < m->from->cluster->geometry.layers; layer++) {
        forget_mean(&m->to->tails[layer]);
        m->to->tails[layer].tokens = m->lengths[layer];
    }
}

static lode_status_t move_layers(moving_t *m)
{
    lode_status_t status = LODE_OK;
    for (uint32_t layer = 0; layer < m->from->cluster->geometry.layers && status == LODE_OK; layer++)
        status = move_layer(m, layer);
    if (status != LODE_OK)
        take_back(m);
    return status;
}

/*
 * Full pages of all layers leave, unseen by anyone; if one cannot, none has. Then they are shown; a layer where that
 * fails keeps its tokens in the tail and shows them with its next step or append: they are moved all the same.
 */
static lode_status_t spread_moved(moving_t *m)
{
    uint32_t layers = m->to->cluster->geometry.layers, done = 0;
    lode_status_t status = LODE_OK;
    for (; done < layers && status == LODE_OK; done++) {
        status = lode_block_mark(m->to, done, true, &m->marks[done]);
        if (status == LODE_OK)
            status = lode_tail_mean_here(m->to, done);
        if (status == LODE_OK)
            status = lode_spread_tail(m->to, done, false);
    }
    bool gone = status == LODE_OK;
    for (uint32_t layer = 0; layer < done; layer++) {
        lode_mark_t *mark = &m->marks[layer];
        bool left = m->to->tails[layer].first > mark->first;
        if (mark->records && (!gone || (left && lode_spread_publish(m->to, layer) != LODE_OK)))
            lode_block_return(m->to, layer, mark);
        free(mark->records);
    }
    if (status != LODE_OK)
        take_back(m);
    return status;
}

static lode_status_t move(moving_t *m)
{
    uint32_t layers = m->from->cluster->geometry.layers;
    for (uint32_t layer = 0; layer < layers; layer++) {
        LODE_TRY(lode_block_settle(m->to, layer));
        m->lengths[layer] = m->to->tails[layer].tokens;
    }
    uint32_t dim = m->from->cluster->geometry.head_dim;
    int64_t delta = (int64_t)(m->to->tails[0].first + m->lengths[0]) - (int64_t)m->first;
    lode_rope_angles(m->from->cluster->freq, dim, delta, m->cosine, m->sine);
    LODE_TRY(move_layers(m));
    if (!m->to->draft)
        LODE_TRY(spread_moved(m));
    cut(m->from, m->first);
    return LODE_OK;
}

lode_status_t lode_local_block_move(lode_block_h from, uint64_t first, lode_block_h to)
{
    LODE_TRY(check_move(from, first, to));
    uint32_t layers = from->cluster->geometry.layers;
    uint64_t tokens = from->tails[0].first + from->tails[0].tokens - first;
    size_t width = (size_t)MOVE_TOKENS * from->heads * from->cluster->geometry.head_dim;
    if (tokens == 0)
        return LODE_OK;
    moving_t m = {.from = from,
                  .to = to,
                  .first = first,
                  .tokens = tokens,
                  .k = malloc(2 * width * sizeof *m.k),
                  .lengths = calloc(layers, sizeof *m.lengths),
                  .marks = calloc(layers, sizeof *m.marks)};
    lode_status_t status = LODE_ERR_NO_MEMORY;
    if (m.k && m.lengths && m.marks) {
        m.v = m.k + width;
        status = move(&m);
    } else {
        lode_fail(status, "no memory to move tokens of block \"%s\"", from->info.name);
    }
    free(m.k);
    free(m.lengths);
    free(m.marks);
    return status == LODE_OK
               ? LODE_OK
               : lode_fail_within(status, "moving from block \"%s\" to block \"%s\": ", from->info.name, to->info.name);
}
