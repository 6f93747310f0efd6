/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/translate.h"

#include <string.h>

/* The formatter does not come to rest on this. */
/* clang-format off */
#define RANK_FIELDS(F) \
    F(incarnation) F(epoch) F(fenced) F(filling) F(uptime_ns) \
    F(arena_bytes) F(arena_used_bytes) F(pages) F(landmark_bytes) F(blocks) \
    F(under_replicated_pages) F(lost_pages) F(repaired_bytes) F(clients) F(steps) \
    F(failed_steps) F(steps_per_second) F(step_p50_ns) F(step_p90_ns) F(step_p99_ns) \
    F(step_max_ns) F(fetched_bytes) F(served_bytes) F(fetched_bytes_per_second) F(served_bytes_per_second) \
    F(device) F(device_landmark_bytes) F(device_cache_bytes) F(device_looked) F(device_hits)
/* clang-format on */

void lode_rank_numbers_pack(const lode_rank_stats_t *stats, Lodemark__RankStats *message)
{
    lodemark__rank_stats__init(message);
#define COPY(field) message->field = stats->field;
    RANK_FIELDS(COPY)
#undef COPY
}

void lode_rank_numbers_unpack(const Lodemark__RankStats *message, lode_rank_stats_t *stats)
{
#define COPY(field) stats->field = message->field;
    RANK_FIELDS(COPY)
#undef COPY
}

void lode_geometry_pack(const lode_geometry_t *geometry, double rope[7], Lodemark__GeometrySet *message)
{
    const lode_rope_t *r = &geometry->rope;
    const double numbers[7] = {r->theta,     r->factor,    r->low_freq_factor, r->high_freq_factor,
                               r->beta_fast, r->beta_slow, r->original_context};
    memcpy(rope, numbers, sizeof numbers);
    lodemark__geometry_set__init(message);
    message->layers = geometry->layers;
    message->query_heads = geometry->query_heads;
    message->kv_heads = geometry->kv_heads;
    message->head_dim = geometry->head_dim;
    message->kv_head_begin = geometry->kv_head_begin;
    message->kv_head_end = geometry->kv_head_end;
    message->rope_scaling = r->scaling;
    message->rope = rope;
    message->n_rope = 7;
}

lode_status_t lode_geometry_unpack(const Lodemark__GeometrySet *message, lode_geometry_t *geometry)
{
    if (!message || message->n_rope != 7 || message->rope_scaling > LODE_ROPE_YARN)
        return lode_fail(LODE_ERR_FORMAT, "a message with a geometry is malformed");
    const double *r = message->rope;
    *geometry = (lode_geometry_t){
        .layers = message->layers,
        .query_heads = message->query_heads,
        .kv_heads = message->kv_heads,
        .head_dim = message->head_dim,
        .kv_head_begin = message->kv_head_begin,
        .kv_head_end = message->kv_head_end,
        .rope = {r[0], (lode_rope_scaling_t)message->rope_scaling, r[1], r[2], r[3], r[4], r[5], r[6]}};
    return LODE_OK;
}
