/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <string.h>

#include "landmarks/inside.h"

/* The block mean's score comes from the queries as they are; the codes are of transformed keys, so want transformed
 * ones. */
static void queries_prepare(const lode_ops_t *ops, const lode_landmark_spec_t *spec, uint32_t dim, const float *mean,
                            const float *transform, const float *q, uint32_t group, lode_landmark_query_t *queries)
{
    _Alignas(64) float transformed[LODE_MAX_GROUP * LODE_MAX_DIM];
    float bias[LODE_MAX_GROUP] = {0};
    if (mean)
        ops->dot_rows(mean, q, group, dim, bias);
    if (spec->codec != LODE_LANDMARK_MEAN) {
        memcpy(transformed, q, (size_t)group * dim * sizeof *q);
        if (transform)
            ops->project(transform, dim, transformed, group);
        else
            ops->hadamard(transformed, group, dim);
        q = transformed;
    }
    for (uint32_t g = 0; g < group; g++)
        ops->query_prepare(spec, dim, q + (size_t)g * dim, bias[g], &queries[g]);
}

void lode_store_score(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head, uint64_t tokens, const float *q,
                      uint32_t group, const float *transform, float *out, size_t stride, float *scratch)
{
    lode_landmark_query_t queries[LODE_MAX_GROUP];
    assert(group <= LODE_MAX_GROUP);
    const lode_landmark_spec_t *spec = &lode_store_info(store, slot)->landmark;
    const lode_ops_t *ops = lode_store_ops(store);
    uint32_t dim = lode_store_dim(store);
    uint64_t limit = lode_landmarks_of(spec, tokens), count;
    const uint8_t *tiles;
    if (limit == 0)
        return;
    queries_prepare(ops, spec, dim, lode_store_mean(store, slot, layer, head), transform, q, group, queries);
    for (uint64_t first = 0; first < limit; first += count) {
        count = lode_store_span(store, slot, layer, head, first, limit, &tiles);
        if (count == 0)
            return;
        ops->landmark_score(spec, dim, tiles, count, queries, group, out + first, stride, scratch);
    }
}
