/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <string.h>

#include "landmarks/landmarks.h"

void lode_landmark_mean(uint32_t heads, uint32_t dim, const float *keys, uint64_t tokens, float *mean)
{
    for (uint32_t head = 0; head < heads; head++) {
        double sum[LODE_MAX_DIM] = {0};
        for (uint64_t token = 0; token < tokens; token++) {
            const float *key = keys + (token * heads + head) * dim;
            for (uint32_t i = 0; i < dim; i++)
                sum[i] += key[i];
        }
        for (uint32_t i = 0; i < dim; i++)
            mean[(size_t)head * dim + i] = tokens ? (float)(sum[i] / (double)tokens) : 0;
    }
}

/* Mean of count keys that lie stride floats apart, minus the block's mean. */
static void chunk_mean(uint32_t dim, const float *keys, size_t stride, uint32_t count, const float *mean, float *out)
{
    memcpy(out, keys, dim * sizeof *out);
    for (uint32_t token = 1; token < count; token++) {
        for (uint32_t i = 0; i < dim; i++)
            out[i] += keys[token * stride + i];
    }
    for (uint32_t i = 0; i < dim; i++)
        out[i] = out[i] / (float)count - (mean ? mean[i] : 0);
}

void lode_landmark_build(const lode_ops_t *ops, const lode_landmark_spec_t *spec, uint32_t heads, uint32_t dim,
                         const float *keys, uint32_t tokens, const float *mean, const float *transform, uint8_t *rows)
{
    _Alignas(64) float chunks[LODE_PAGE_TOKENS * LODE_MAX_DIM];
    assert(tokens <= LODE_PAGE_TOKENS && dim <= LODE_MAX_DIM);
    uint32_t landmarks = (uint32_t)lode_landmarks_of(spec, tokens);
    size_t stride = (size_t)heads * dim, row_bytes = lode_landmark_row_bytes(spec, dim);
    for (uint32_t head = 0; head < heads; head++) {
        const float *head_keys = keys + (size_t)head * dim, *head_mean = mean ? mean + (size_t)head * dim : NULL;
        for (uint32_t i = 0; i < landmarks; i++) {
            uint32_t first = i * spec->chunk, left = tokens - first;
            chunk_mean(dim, head_keys + first * stride, stride, left < spec->chunk ? left : spec->chunk, head_mean,
                       chunks + (size_t)i * dim);
        }
        if (transform)
            ops->project(transform + (size_t)head * 2 * dim * dim, dim, chunks, landmarks);
        else if (spec->codec != LODE_LANDMARK_MEAN)
            ops->hadamard(chunks, landmarks, dim);
        ops->landmark_quantise(spec, dim, chunks, landmarks, rows + head * landmarks * row_bytes);
    }
}
