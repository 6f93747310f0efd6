/* SPDX-License-Identifier: Apache-2.0 */
/* The model's shape, and what a rank can only set up once it knows it. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"

lode_status_t lode_geometry_check(const lode_geometry_t *g)
{
    if (g->layers == 0 || g->layers > 1024)
        return lode_fail(LODE_ERR_GEOMETRY, "%u layers: 1 to 1024 are supported", g->layers);
    if (g->kv_heads == 0 || g->kv_heads > 256 || g->query_heads == 0 || g->query_heads % g->kv_heads)
        return lode_fail(LODE_ERR_GEOMETRY, "%u query heads do not share %u KV heads evenly", g->query_heads,
                         g->kv_heads);
    if (g->query_heads / g->kv_heads > LODE_MAX_GROUP)
        return lode_fail(LODE_ERR_GEOMETRY, "%u query heads a KV head: at most %d are supported",
                         g->query_heads / g->kv_heads, LODE_MAX_GROUP);
    if (g->head_dim != 64 && g->head_dim != 128 && g->head_dim != 256)
        return lode_fail(LODE_ERR_GEOMETRY, "head dim %u: 64, 128 and 256 are supported", g->head_dim);
    if (g->kv_head_end > g->kv_heads || (g->kv_head_end && g->kv_head_begin >= g->kv_head_end) ||
        (!g->kv_head_end && g->kv_head_begin))
        return lode_fail(LODE_ERR_GEOMETRY, "KV heads %u to %u of %u: the range is empty or too long", g->kv_head_begin,
                         g->kv_head_end, g->kv_heads);
    return LODE_OK;
}

lode_status_t lode_check_shaped(lode_cluster_h cluster)
{
    if (!lode_shaped(cluster))
        return lode_fail(LODE_ERR_GEOMETRY,
                         "the cluster has no geometry yet: the first document that is put brings it");
    return LODE_OK;
}

static lode_geometry_t whole_range(const lode_geometry_t *geometry)
{
    lode_geometry_t whole = *geometry;
    if (!whole.kv_head_end)
        whole.kv_head_end = whole.kv_heads;
    return whole;
}

/* --------------------------------------------------------------------- here */

static lode_status_t set_numbers(lode_cluster_h cluster, const lode_geometry_t *geometry)
{
    cluster->geometry = whole_range(geometry);
    cluster->heads = cluster->geometry.kv_head_end - cluster->geometry.kv_head_begin;
    cluster->group = geometry->query_heads / geometry->kv_heads;
    cluster->query_heads = cluster->heads * cluster->group;
    cluster->freq = malloc(geometry->head_dim / 2 * sizeof *cluster->freq);
    if (!cluster->freq)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the rotary frequencies");
    lode_status_t status = lode_rope_frequencies(&geometry->rope, geometry->head_dim, cluster->freq);
    if (status != LODE_OK)
        return lode_fail(status, "rotary embedding: theta %g with scaling %d and factor %g makes no sense",
                         geometry->rope.theta, (int)geometry->rope.scaling, geometry->rope.factor);
    return LODE_OK;
}

static lode_status_t set_transform(lode_cluster_h cluster)
{
    const lode_geometry_t *g = &cluster->geometry;
    if (!*cluster->transform_path)
        return LODE_OK;
    lode_transform_t *transform;
    LODE_TRY(lode_transform_read(cluster->transform_path, cluster->ops, &transform));
    if (transform->layers == g->layers && transform->heads == g->kv_heads && transform->dim == g->head_dim) {
        cluster->transform = transform;
        return LODE_OK;
    }
    lode_status_t status =
        lode_fail(LODE_ERR_GEOMETRY, "transform %s is of %u layers and %u KV heads of %u; the model has %u, %u and %u",
                  cluster->transform_path, transform->layers, transform->heads, transform->dim, g->layers, g->kv_heads,
                  g->head_dim);
    lode_transform_destroy(&transform);
    return status;
}

static lode_status_t set_store(lode_cluster_h cluster, bool first)
{
    lode_store_params_t params = {.base = cluster->store_base,
                                  .fd = cluster->store_fd,
                                  .bytes = cluster->store_bytes,
                                  .layers = cluster->geometry.layers,
                                  .dim = cluster->geometry.head_dim,
                                  .max_blocks = cluster->store_blocks,
                                  .ops = cluster->ops};
    return first ? lode_store_create(&params, &cluster->store) : lode_store_attach(&params, &cluster->store);
}

static bool same_geometry(const lode_geometry_t *a, const lode_geometry_t *b)
{
    const lode_rope_t *ra = &a->rope, *rb = &b->rope;
    return a->layers == b->layers && a->query_heads == b->query_heads && a->kv_heads == b->kv_heads &&
           a->head_dim == b->head_dim && a->kv_head_begin == b->kv_head_begin && a->kv_head_end == b->kv_head_end &&
           ra->theta == rb->theta && ra->scaling == rb->scaling && ra->factor == rb->factor &&
           ra->low_freq_factor == rb->low_freq_factor && ra->high_freq_factor == rb->high_freq_factor &&
           ra->beta_fast == rb->beta_fast && ra->beta_slow == rb->beta_slow &&
           ra->original_context == rb->original_context;
}

static lode_status_t compare(lode_cluster_h cluster, const lode_geometry_t *geometry)
{
    const lode_geometry_t asked = whole_range(geometry), *has = &cluster->geometry;
    if (same_geometry(has, &asked))
        return LODE_OK;
    return lode_fail(LODE_ERR_GEOMETRY,
                     "%u layers, %u query and %u KV heads of %u, rotary base %g were asked for; the cluster has %u "
                     "layers, %u query and %u KV heads of %u, rotary base %g",
                     asked.layers, asked.query_heads, asked.kv_heads, asked.head_dim, asked.rope.theta, has->layers,
                     has->query_heads, has->kv_heads, has->head_dim, has->rope.theta);
}

lode_status_t lode_shape_here(lode_cluster_h cluster, const lode_geometry_t *geometry, bool first)
{
    if (lode_shaped(cluster))
        return compare(cluster, geometry);
    LODE_TRY(lode_geometry_check(geometry));
    lode_status_t status = set_numbers(cluster, geometry);
    if (status == LODE_OK)
        status = lode_step_state_create(cluster, &cluster->step);
    if (status == LODE_OK)
        status = set_transform(cluster);
    if (status == LODE_OK)
        status = set_store(cluster, first);
    if (status == LODE_OK) {
        atomic_store_explicit(&cluster->shaped, true, memory_order_release);
        return LODE_OK;
    }
    lode_step_state_destroy(&cluster->step);
    lode_transform_destroy(&cluster->transform);
    free(cluster->freq);
    cluster->freq = NULL;
    return status;
}

/* --------------------------------------------------------------- everywhere */

lode_status_t lode_serve_geometry(lode_cluster_h cluster, const Lodemark__GeometrySet *message)
{
    lode_geometry_t geometry;
    uint32_t rank = lode_fabric_rank(cluster->fabric);
    LODE_TRY(lode_geometry_unpack(message, &geometry));
    return lode_shape_here(cluster, &geometry, lode_fabric_keeper(cluster->fabric, rank) == rank);
}

/* The leader decides between two that say different shapes at once; keepers lay stores out before others attach. */
lode_status_t lode_local_shape(lode_cluster_h cluster, const lode_geometry_t *geometry)
{
    LODE_TRY(lode_geometry_check(geometry));
    if (lode_shaped(cluster))
        return compare(cluster, geometry);
    lode_fabric_h fabric = cluster->fabric;
    const lode_geometry_t whole = whole_range(geometry);
    double rope[7];
    Lodemark__GeometrySet message;
    lode_telling_t telling = {.call = LODEMARK__CALL__INIT};
    lode_geometry_pack(&whole, rope, &message);
    telling.call.body_case = LODEMARK__CALL__BODY_GEOMETRY_SET;
    telling.call.geometry_set = &message;
    LODE_TRY(lode_fabric_call_wait(fabric, lode_fabric_leader(fabric), &telling.call, NULL, 0, NULL, NULL));
    LODE_TRY(lode_tell_keepers(cluster, &telling, 1));
    for (uint32_t rank = 0; rank < lode_fabric_ranks(fabric); rank++) {
        if (!lode_fabric_alive(fabric, rank) || lode_fabric_keeper(fabric, rank) == rank)
            continue;
        lode_status_t status = lode_fabric_call_wait(fabric, rank, &telling.call, NULL, 0, NULL, NULL);
        if (status != LODE_OK && status != LODE_ERR_PEER_LOST)
            return status;
    }
    return LODE_OK;
}

lode_status_t lode_local_geometry(lode_cluster_h cluster, lode_geometry_t *geometry)
{
    if (!lode_shaped(cluster))
        return lode_fail(LODE_ERR_NOT_FOUND, "the cluster has no geometry yet");
    *geometry = cluster->geometry;
    return LODE_OK;
}
