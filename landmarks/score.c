/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <string.h>

#include "landmarks/inside.h"

/* The block mean's score comes from the queries as they are; the codes are of transformed keys, so want transformed
 * ones. */
void lode_queries_prepare(const lode_ops_t *ops, const lode_landmark_spec_t *spec, uint32_t dim, const float *mean,
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

void lode_scorer_prepare(lode_scorer_t *scorer, lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head,
                         const float *q, uint32_t group, const float *transform)
{
    assert(group <= LODE_MAX_GROUP);
    scorer->store = store;
    scorer->slot = slot;
    scorer->layer = layer;
    scorer->head = head;
    scorer->group = group;
    lode_queries_prepare(lode_store_ops(store), &lode_store_info(store, slot)->landmark, lode_store_dim(store),
                         lode_store_mean(store, slot, layer, head), transform, q, group, scorer->queries);
}

void lode_queries_score(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head, uint64_t begin, uint64_t end,
                        const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride, float *scratch)
{
    const lode_landmark_spec_t *spec = &lode_store_info(store, slot)->landmark;
    uint64_t count;
    const uint8_t *tiles;
    for (uint64_t first = begin; first < end; first += count) {
        count = lode_store_span(store, slot, layer, head, first, end, &tiles);
        if (count == 0)
            return;
        lode_store_ops(store)->landmark_score(spec, lode_store_dim(store), tiles, count, queries, group,
                                              out + (first - begin), stride, scratch);
    }
}

void lode_scorer_score(const lode_scorer_t *scorer, uint64_t begin, uint64_t end, float *out, size_t stride,
                       float *scratch)
{
    lode_queries_score(scorer->store, scorer->slot, scorer->layer, scorer->head, begin, end, scorer->queries,
                       scorer->group, out, stride, scratch);
}

void lode_store_score(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head, uint64_t tokens, const float *q,
                      uint32_t group, const float *transform, float *out, size_t stride, float *scratch)
{
    lode_scorer_t scorer;
    uint64_t landmarks = lode_landmarks_of(&lode_store_info(store, slot)->landmark, tokens);
    if (landmarks == 0)
        return;
    lode_scorer_prepare(&scorer, store, slot, layer, head, q, group, transform);
    lode_scorer_score(&scorer, 0, landmarks, out, stride, scratch);
}
