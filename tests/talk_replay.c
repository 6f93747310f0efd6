/* SPDX-License-Identifier: Apache-2.0 */
#include "talk_replay.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "reader/model.h"

enum { OWN = 5 };

static void *some_room(size_t n, size_t element)
{
    void *room = calloc(n ? n : 1, element);
    if (!room)
        abort();
    return room;
}

void replay_open(replay_t *replay, lode_model_h model, uint32_t documents, uint32_t room)
{
    const lode_geometry_t *g = &lode_model_info(model)->geometry;
    *replay =
        (replay_t){.model = model, .geometry = *g, .room = room, .documents = documents, .count = documents + OWN};
    replay->logits = some_room(lode_model_info(model)->vocabulary, sizeof *replay->logits);
    replay->blocks = some_room(replay->count, sizeof *replay->blocks);
    for (uint32_t i = 0; i < replay->count; i++) {
        replay_block_t *block = &replay->blocks[i];
        block->tokens = some_room(g->layers, sizeof *block->tokens);
        block->keys = some_room(g->layers, sizeof *block->keys);
        block->values = some_room(g->layers, sizeof *block->values);
        for (uint32_t layer = 0; layer < g->layers; layer++) {
            block->keys[layer] = some_room((size_t)room * g->kv_heads * g->head_dim, sizeof(float));
            block->values[layer] = some_room((size_t)room * g->kv_heads * g->head_dim, sizeof(float));
        }
    }
}

void replay_close(replay_t *replay)
{
    for (uint32_t i = 0; i < replay->count; i++) {
        for (uint32_t layer = 0; layer < replay->geometry.layers; layer++) {
            free(replay->blocks[i].keys[layer]);
            free(replay->blocks[i].values[layer]);
        }
        free(replay->blocks[i].keys);
        free(replay->blocks[i].values);
        free(replay->blocks[i].tokens);
    }
    free(replay->blocks);
    free(replay->logits);
}

/* View position of a block's first token, as long as the blocks before it are in a layer. */
static int64_t offset_of(const replay_t *replay, uint32_t block, uint32_t layer)
{
    int64_t offset = replay->base;
    if (block < replay->documents)
        return replay->blocks[block].offset;
    for (uint32_t i = replay->documents; i < block; i++)
        offset += replay->blocks[i].tokens[layer];
    return offset;
}

/* Keys of a block so far, turned from their places in the block to the view's. */
static double *turned_keys(const replay_t *replay, uint32_t layer, const replay_block_t *block, int64_t offset)
{
    const lode_geometry_t *g = &replay->geometry;
    uint32_t dim = g->head_dim, pairs = dim / 2;
    double *turned = some_room((size_t)block->tokens[layer] * g->kv_heads * dim, sizeof *turned), *to = turned;
    const float *key = block->keys[layer];
    for (uint32_t i = 0; i < pairs; i++) {
        double c = cos((double)offset * replay->model->freq[i]), s = sin((double)offset * replay->model->freq[i]);
        for (size_t t = 0; t < (size_t)block->tokens[layer] * g->kv_heads; t++) {
            to[t * dim + i] = key[t * dim + i] * c - key[t * dim + i + pairs] * s;
            to[t * dim + i + pairs] = key[t * dim + i + pairs] * c + key[t * dim + i] * s;
        }
    }
    return turned;
}

/* Sums over one block for one query head at a view position: of weights, and in (dim) of weighted values. */
static double attend_block(const replay_t *replay, uint32_t layer, uint32_t head, const float *q, const double *keys,
                           const replay_block_t *block, uint32_t seen, double *sums)
{
    const lode_geometry_t *g = &replay->geometry;
    uint32_t dim = g->head_dim, kv = head / (g->query_heads / g->kv_heads);
    double whole = 0;
    for (uint32_t t = 0; t < seen; t++) {
        size_t at = ((size_t)t * g->kv_heads + kv) * dim;
        double parts[4] = {0}; /* four sums at once are quicker than one; head dims are multiples of 64 */
        for (uint32_t i = 0; i < dim; i++)
            parts[i % 4] += q[i] * keys[at + i];
        double weight = exp((parts[0] + parts[1] + parts[2] + parts[3]) / sqrt(dim));
        whole += weight;
        for (uint32_t i = 0; i < dim; i++)
            sums[i] += weight * block->values[layer][at + i];
    }
    return whole;
}

/* All blocks before the current one, and of that what is not behind the query. A document sees itself alone. */
static void attend_rows(const replay_t *replay, uint32_t layer, const lode_stream_t *stream)
{
    const lode_geometry_t *g = &replay->geometry;
    uint32_t rows = stream->tokens * g->query_heads, dim = g->head_dim;
    double *sums = some_room((size_t)rows * dim, sizeof *sums), *wholes = some_room(rows, sizeof *wholes);
    bool alone = replay->current < replay->documents;
    for (uint32_t b = alone ? replay->current : 0; b <= replay->current; b++) {
        const replay_block_t *block = &replay->blocks[b];
        int64_t offset = alone ? 0 : offset_of(replay, b, layer);
        double *keys = turned_keys(replay, layer, block, offset);
        for (uint32_t r = 0; r < rows; r++) {
            int64_t left = stream->position + r / g->query_heads - offset + 1; /* tokens that are not behind it */
            uint32_t seen = b < replay->current || left > block->tokens[layer] ? block->tokens[layer] : (uint32_t)left;
            wholes[r] += attend_block(replay, layer, r % g->query_heads, (const float *)stream->q + (size_t)r * dim,
                                      keys, block, seen, sums + (size_t)r * dim);
        }
        free(keys);
    }
    for (size_t i = 0; i < (size_t)rows * dim; i++)
        stream->out[i] = (float)(sums[i] / wholes[i / dim]);
    free(sums);
    free(wholes);
}

static lode_status_t attend(void *self, uint32_t layer, const lode_stream_t *stream, uint32_t count)
{
    replay_t *replay = self;
    const lode_geometry_t *g = &replay->geometry;
    replay_block_t *block = &replay->blocks[replay->current];
    size_t width = (size_t)g->kv_heads * g->head_dim;
    uint32_t before = block->tokens[layer];
    if (count != 1 || before + stream->tokens > replay->room)
        abort();
    if (replay->writes) {
        memcpy(block->keys[layer] + before * width, stream->k, stream->tokens * width * sizeof(float));
        memcpy(block->values[layer] + before * width, stream->v, stream->tokens * width * sizeof(float));
        block->tokens[layer] += stream->tokens;
    }
    attend_rows(replay, layer, stream);
    return LODE_OK;
}

static const float *run(replay_t *replay, uint32_t block, const uint32_t *tokens, uint32_t count, bool writes)
{
    const lode_attention_t attention = {replay, attend};
    int64_t before = replay->blocks[block].tokens[0] - (writes ? 0 : count);
    bool alone = block < replay->documents;
    const lode_passage_t passage = {.tokens = tokens,
                                    .count = count,
                                    .position = (alone ? 0 : offset_of(replay, block, 0)) + before,
                                    .block_position = before,
                                    .logits = replay->logits,
                                    .logit_rows = 1};
    replay->current = block;
    replay->writes = writes;
    if (lode_model_run(replay->model, &attention, &passage, 1) != LODE_OK)
        abort();
    return replay->logits;
}

void replay_document(replay_t *replay, uint32_t i, const uint32_t *tokens, uint32_t count, int64_t offset)
{
    run(replay, i, tokens, count, true);
    replay->blocks[i].offset = offset;
}

const float *replay_run(replay_t *replay, uint32_t block, const uint32_t *tokens, uint32_t count)
{
    return run(replay, replay->documents + block, tokens, count, true);
}

const float *replay_again(replay_t *replay, uint32_t block, uint32_t token)
{
    return run(replay, replay->documents + block, &token, 1, false);
}

void replay_clear(replay_t *replay, uint32_t block)
{
    for (uint32_t layer = 0; layer < replay->geometry.layers; layer++)
        replay->blocks[replay->documents + block].tokens[layer] = 0;
}

uint32_t replay_tokens(const replay_t *replay, uint32_t block)
{
    return replay->blocks[replay->documents + block].tokens[0];
}
