/* SPDX-License-Identifier: Apache-2.0 */
/* The public functions: refuse what no user may pass, and go to the table of the handle. */
#include "attend/calls.h"
#include "base/base.h"

static const lode_calls_t *calls_of(lode_cluster_h cluster)
{
    return ((const lode_cluster_head_t *)cluster)->calls;
}

static const lode_calls_t *calls_of_handle(const void *block_or_view)
{
    return calls_of(lode_cluster_of(block_or_view));
}

#define REFUSE_NULL(...)                                                                          \
    do {                                                                                          \
        const void *given_[] = {__VA_ARGS__};                                                     \
        for (size_t i_ = 0; i_ < sizeof given_ / sizeof *given_; i_++)                            \
            if (!given_[i_])                                                                      \
                return lode_fail(LODE_ERR_INVALID, "%s: argument %zu is NULL", __func__, i_ + 1); \
    } while (0)

/* ----------------------------------------------------------------- clusters */

lode_status_t lode_cluster_leave(lode_cluster_h *cluster)
{
    REFUSE_NULL(cluster);
    REFUSE_NULL(*cluster);
    return calls_of(*cluster)->leave(cluster);
}

lode_status_t lode_cluster_shape(lode_cluster_h cluster, const lode_geometry_t *geometry)
{
    REFUSE_NULL(cluster, geometry);
    return calls_of(cluster)->shape(cluster, geometry);
}

lode_status_t lode_cluster_geometry(lode_cluster_h cluster, lode_geometry_t *geometry)
{
    REFUSE_NULL(cluster, geometry);
    return calls_of(cluster)->geometry(cluster, geometry);
}

lode_status_t lode_cluster_query(lode_cluster_h cluster, lode_cluster_info_t *info)
{
    REFUSE_NULL(cluster, info);
    return calls_of(cluster)->query(cluster, info);
}

lode_status_t lode_cluster_ping(lode_cluster_h cluster, uint64_t *round_trip_ns)
{
    REFUSE_NULL(cluster, round_trip_ns);
    return calls_of(cluster)->ping(cluster, round_trip_ns);
}

lode_status_t lode_cluster_rank_stats(lode_cluster_h cluster, uint32_t rank, lode_rank_stats_t *stats)
{
    REFUSE_NULL(cluster, stats);
    return calls_of(cluster)->rank_stats(cluster, rank, stats);
}

lode_status_t lode_cluster_tend(lode_cluster_h cluster, uint64_t budget_us, int *more)
{
    int ignored;
    REFUSE_NULL(cluster);
    return calls_of(cluster)->tend(cluster, budget_us, more ? more : &ignored);
}

lode_status_t lode_cluster_blocks(lode_cluster_h cluster, lode_block_entry_t *entries, uint32_t capacity,
                                  uint32_t *count)
{
    REFUSE_NULL(cluster, count);
    if (capacity && !entries)
        return lode_fail(LODE_ERR_INVALID, "%s: no place for %u entries", __func__, capacity);
    return calls_of(cluster)->blocks(cluster, entries, capacity, count);
}

/* ------------------------------------------------------------------- blocks */

lode_status_t lode_block_create(lode_cluster_h cluster, const lode_block_params_t *params, lode_block_h *block)
{
    REFUSE_NULL(cluster, params, block);
    return calls_of(cluster)->block_create(cluster, params, block);
}

lode_status_t lode_block_open(lode_cluster_h cluster, const char *name, lode_block_h *block)
{
    REFUSE_NULL(cluster, name, block);
    return calls_of(cluster)->block_open(cluster, name, block);
}

lode_status_t lode_block_append(lode_block_h block, uint32_t layer, uint64_t tokens, lode_dtype_t dtype, const void *k,
                                const void *v)
{
    REFUSE_NULL(block);
    if (dtype > LODE_FP32 || (tokens && (!k || !v)))
        return lode_fail(LODE_ERR_INVALID, "%s: a NULL tensor or an unknown dtype", __func__);
    lode_find_cuda();
    LODE_TRY(lode_check_host("k", k));
    LODE_TRY(lode_check_host("v", v));
    return calls_of_handle(block)->block_append(block, layer, tokens, dtype, k, v);
}

lode_status_t lode_block_seal(lode_block_h block)
{
    REFUSE_NULL(block);
    return calls_of_handle(block)->block_seal(block);
}

lode_status_t lode_block_crop(lode_block_h block, uint64_t tokens)
{
    REFUSE_NULL(block);
    return calls_of_handle(block)->block_crop(block, tokens);
}

lode_status_t lode_block_move(lode_block_h from, uint64_t first, lode_block_h to)
{
    REFUSE_NULL(from, to);
    if (lode_cluster_of(from) != lode_cluster_of(to))
        return lode_fail(LODE_ERR_INVALID, "%s: the blocks are of two clusters", __func__);
    return calls_of_handle(from)->block_move(from, first, to);
}

lode_status_t lode_block_drop(lode_block_h *block)
{
    REFUSE_NULL(block);
    REFUSE_NULL(*block);
    return calls_of_handle(*block)->block_drop(block);
}

lode_status_t lode_block_close(lode_block_h *block)
{
    REFUSE_NULL(block);
    REFUSE_NULL(*block);
    return calls_of_handle(*block)->block_close(block);
}

lode_status_t lode_block_tokens(lode_block_h block, uint32_t layer, uint64_t *tokens)
{
    REFUSE_NULL(block, tokens);
    return calls_of_handle(block)->block_tokens(block, layer, tokens);
}

/* -------------------------------------------------------------------- views */

lode_status_t lode_view_create(lode_cluster_h cluster, const lode_view_params_t *params, lode_view_h *view)
{
    REFUSE_NULL(cluster, params, view, params->blocks);
    if (params->count == 0)
        return lode_fail(LODE_ERR_INVALID, "%s: a view of no blocks", __func__);
    for (uint32_t i = 0; i < params->count; i++)
        if (!params->blocks[i] || lode_cluster_of(params->blocks[i]) != cluster)
            return lode_fail(LODE_ERR_INVALID, "a view's block %u is NULL or of another cluster", i);
    lode_find_cuda();
    return calls_of(cluster)->view_create(cluster, params, view);
}

lode_status_t lode_view_destroy(lode_view_h *view)
{
    REFUSE_NULL(view);
    REFUSE_NULL(*view);
    return calls_of_handle(*view)->view_destroy(view);
}

/* -------------------------------------------------------------------- steps */

static lode_status_t check_stream(lode_cluster_h cluster, const lode_stream_t *in, uint32_t i)
{
    if (!in->view || lode_cluster_of(in->view) != cluster || in->tokens == 0 || in->dtype > LODE_FP32 || !in->q ||
        !in->out || !in->k != !in->v)
        return lode_fail(LODE_ERR_INVALID,
                         "stream %u: no view of this cluster, no tokens, no query or output, or k without v", i);
    return LODE_OK;
}

static lode_status_t check_streams(const char *call, lode_cluster_h cluster, const lode_stream_t *streams,
                                   uint32_t count)
{
    if (count == 0)
        return lode_fail(LODE_ERR_INVALID, "%s: no streams", call);
    for (uint32_t i = 0; i < count; i++)
        LODE_TRY(check_stream(cluster, &streams[i], i));
    return LODE_OK;
}

lode_status_t lode_step(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count,
                        lode_step_stats_t *stats)
{
    lode_step_stats_t ignored;
    REFUSE_NULL(cluster, streams);
    LODE_TRY(check_streams(__func__, cluster, streams, count));
    return calls_of(cluster)->step(cluster, layer, streams, count, stats ? stats : &ignored);
}

lode_status_t lode_step_enqueue(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count,
                                void *cuda_stream, lode_step_stats_t *stats)
{
    lode_step_stats_t ignored;
    REFUSE_NULL(cluster, streams);
    LODE_TRY(check_streams(__func__, cluster, streams, count));
    return calls_of(cluster)->step_enqueue(cluster, layer, streams, count, cuda_stream, stats ? stats : &ignored);
}

lode_status_t lode_step_selection(lode_cluster_h cluster, uint32_t stream, uint32_t token, uint32_t kv_head,
                                  const uint32_t **tokens, uint64_t *count)
{
    REFUSE_NULL(cluster, tokens, count);
    return calls_of(cluster)->step_selection(cluster, stream, token, kv_head, tokens, count);
}
