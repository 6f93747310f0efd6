/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"

static size_t tail_token_bytes(const struct lode_block *block)
{
    return block->heads * lode_record_bytes(LODE_FORMAT_BF16, block->cluster->geometry.head_dim);
}

const uint8_t *lode_tail_record(const struct lode_block *block, uint32_t layer, uint64_t token, uint32_t head)
{
    const lode_tail_t *tail = &block->tails[layer];
    size_t record_bytes = lode_record_bytes(LODE_FORMAT_BF16, block->cluster->geometry.head_dim);
    return (const uint8_t *)tail->records.data + (token - tail->first) * tail_token_bytes(block) + head * record_bytes;
}

void lode_tail_read(const struct lode_block *block, uint32_t layer, uint64_t first, uint64_t tokens, float *k, float *v)
{
    uint32_t dim = block->cluster->geometry.head_dim;
    for (uint64_t t = 0; t < tokens; t++)
        for (uint32_t h = 0; h < block->heads; h++) {
            size_t at = ((size_t)t * block->heads + h) * dim;
            block->cluster->ops->record_decode(LODE_FORMAT_BF16, dim, lode_tail_record(block, layer, first + t, h),
                                               k + at, v + at);
        }
}

/* Tokens on their way into the tail, and how many at once are a thread's. */
enum { WRITE_TOKENS = 64 };
typedef struct writing {
    lode_block_h block;
    uint64_t tokens;
    lode_dtype_t dtype;
    const uint8_t *k, *v;
    uint8_t *records;
} writing_t;

static void write_some(void *context, uint32_t item, uint32_t thread)
{
    const writing_t *w = context;
    const lode_ops_t *ops = w->block->cluster->ops;
    uint32_t dim = w->block->cluster->geometry.head_dim;
    size_t record_bytes = lode_record_bytes(LODE_FORMAT_BF16, dim), vector = dim * lode_dtype_bytes(w->dtype);
    uint64_t first = (uint64_t)item * WRITE_TOKENS, left = w->tokens - first;
    uint64_t end = (first + (left < WRITE_TOKENS ? left : WRITE_TOKENS)) * w->block->heads;
    float key[LODE_MAX_DIM], value[LODE_MAX_DIM];
    (void)thread;
    for (uint64_t i = first * w->block->heads; i < end; i++) {
        ops->widen(w->dtype, w->k + i * vector, key, dim);
        ops->widen(w->dtype, w->v + i * vector, value, dim);
        ops->record_encode(LODE_FORMAT_BF16, dim, key, value, 0, w->records + i * record_bytes);
    }
}

lode_status_t lode_tail_write(lode_block_h block, uint32_t layer, uint64_t tokens, lode_dtype_t dtype, const void *k,
                              const void *v)
{
    lode_tail_t *tail = &block->tails[layer];
    size_t old = tail->tokens * tail_token_bytes(block);
    uint64_t end = tail->first + tail->tokens;
    tail->mirrored = tail->mirrored < end ? tail->mirrored : end; /* what was written there before was taken back */
    uint64_t room = tail->tokens + tokens; /* a page at once, so that steps that write do not allocate */
    room = room > LODE_PAGE_TOKENS ? room : LODE_PAGE_TOKENS;
    LODE_TRY(lode_buffer_extend(&tail->records, room * tail_token_bytes(block), old));
    writing_t writing = {block, tokens, dtype, k, v, (uint8_t *)tail->records.data + old};
    lode_team_run(block->cluster->team, (uint32_t)((tokens + WRITE_TOKENS - 1) / WRITE_TOKENS), write_some, &writing);
    tail->tokens += tokens;
    return LODE_OK;
}

/* Rotary pairs that turn by less than a radian over this many tokens have a mean worth subtracting even
 * when it was taken over few tokens; the mean of the faster ones tends to zero as the block grows. */
enum { MEAN_HORIZON_TOKENS = 1024 };

static void keep_slow_pairs(lode_cluster_h cluster, uint32_t heads, float *mean)
{
    uint32_t dim = cluster->geometry.head_dim;
    for (uint32_t i = 0; i < dim / 2; i++) {
        if (cluster->freq[i] * MEAN_HORIZON_TOKENS < 1)
            continue;
        for (uint32_t h = 0; h < heads; h++)
            mean[h * dim + i] = mean[h * dim + i + dim / 2] = 0;
    }
}

lode_status_t lode_tail_mean(lode_block_h block, uint32_t layer, uint64_t tokens, lode_dtype_t dtype, const void *k)
{
    lode_tail_t *tail = &block->tails[layer];
    if (tail->mean || !block->info.landmark.centre || tokens == 0)
        return LODE_OK;
    lode_cluster_h cluster = block->cluster;
    uint32_t dim = cluster->geometry.head_dim;
    size_t width = (size_t)block->heads * dim;
    double *sum = calloc(width, sizeof *sum);
    float *mean = malloc(width * sizeof *mean);
    if (!sum || !mean) {
        free(sum);
        free(mean);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the mean key of a block");
    }
    for (uint64_t t = 0; t < tokens; t++) {
        cluster->ops->widen(dtype, (const uint8_t *)k + t * width * lode_dtype_bytes(dtype), mean, width);
        for (size_t i = 0; i < width; i++)
            sum[i] += mean[i];
    }
    for (size_t i = 0; i < width; i++)
        mean[i] = (float)(sum[i] / (double)tokens);
    free(sum);
    if (tokens < MEAN_HORIZON_TOKENS)
        keep_slow_pairs(cluster, block->heads, mean);
    tail->mean = mean;
    return LODE_OK;
}

lode_status_t lode_tail_mean_here(lode_block_h block, uint32_t layer)
{
    const lode_tail_t *tail = &block->tails[layer];
    size_t width = (size_t)block->heads * block->cluster->geometry.head_dim;
    if (tail->mean || !block->info.landmark.centre || tail->tokens == 0)
        return LODE_OK;
    float *k = malloc(2 * tail->tokens * width * sizeof *k);
    if (!k)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the mean key of a block");
    lode_tail_read(block, layer, tail->first, tail->tokens, k, k + tail->tokens * width);
    lode_status_t status = lode_tail_mean(block, layer, tail->tokens, LODE_FP32, k);
    free(k);
    return status;
}

lode_status_t lode_check_finite(lode_cluster_h cluster, const char *what, uint32_t layer, uint64_t tokens,
                                uint32_t heads, lode_dtype_t dtype, const void *x)
{
    uint32_t dim = cluster->geometry.head_dim;
    uint32_t first_head = cluster->geometry.kv_head_begin * (heads / cluster->heads);
    float row[LODE_MAX_DIM];
    for (uint64_t i = 0; i < tokens * heads; i++) {
        cluster->ops->widen(dtype, (const uint8_t *)x + i * dim * lode_dtype_bytes(dtype), row, dim);
        size_t bad = cluster->ops->first_nonfinite(row, dim);
        if (bad < dim)
            return lode_fail(LODE_ERR_NONFINITE, "%s of layer %u, head %llu, token %llu: coordinate %zu is not finite",
                             what, layer, (unsigned long long)(first_head + i % heads), (unsigned long long)(i / heads),
                             bad);
    }
    return LODE_OK;
}
