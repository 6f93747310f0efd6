/* SPDX-License-Identifier: Apache-2.0 */
/* Streams that look for much the same, beside one stream alone: what another stream costs. */
#include <math.h>

#include "bench/step.h"

void lode_step_make_query(lode_step_bench_t *b, uint32_t layer, uint32_t step, uint32_t stream, uint32_t token,
                          float *q)
{
    uint32_t floats = b->source.geometry.query_heads * b->source.geometry.head_dim;
    lode_source_query(&b->source, layer, lode_step_query(b, step, stream, token), q);
    if (b->wish.alike < 0 || stream == 0)
        return;
    float like = (float)b->wish.alike, unlike = sqrtf(1 - like * like);
    lode_source_query(&b->source, layer, lode_step_query(b, step, 0, token), b->first);
    for (uint32_t i = 0; i < floats; i++)
        q[i] = like * b->first[i] + unlike * q[i];
}

/* Queries that no other step asks, so that neither finds what the other has cached. Cropping needs whole steps. */
lode_status_t lode_step_run_lone(lode_step_bench_t *b, lode_step_run_t *run, uint32_t step)
{
    uint32_t layers = b->source.geometry.layers, asked = b->wish.steps + b->wish.warmup + step;
    uint64_t before;
    if (b->wish.write)
        LODE_TRY(lode_block_tokens(run->writes[0], 0, &before));
    for (uint32_t layer = 0; layer < layers; layer++) {
        lode_step_fill(b, run, step, asked, layer, 1);
        LODE_TRY(lode_step(b->cluster, layer, b->streams, 1, &run->lone[(size_t)step * layers + layer]));
    }
    return b->wish.write ? lode_block_crop(run->writes[0], before) : LODE_OK;
}
