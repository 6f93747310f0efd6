/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file calls.h
 * @brief The public calls as a table: one for ranks (attend/), one for clients of a service (service/).
 *
 * api.c sends each public function to the table of its handle. So every struct lode_cluster begins with a pointer
 * to its table, and every struct lode_block and lode_view with its cluster, whichever room it belongs to. api.c
 * has refused NULL handles, NULL outputs and blocks of another cluster when a function of a table runs.
 */
#ifndef LODE_ATTEND_CALLS_H
#define LODE_ATTEND_CALLS_H

#include "lodemark.h"

typedef struct lode_calls {
    lode_status_t (*leave)(lode_cluster_h *cluster);
    lode_status_t (*shape)(lode_cluster_h cluster, const lode_geometry_t *geometry);
    lode_status_t (*geometry)(lode_cluster_h cluster, lode_geometry_t *geometry);
    lode_status_t (*query)(lode_cluster_h cluster, lode_cluster_info_t *info);
    lode_status_t (*ping)(lode_cluster_h cluster, uint64_t *round_trip_ns);
    lode_status_t (*rank_stats)(lode_cluster_h cluster, uint32_t rank, lode_rank_stats_t *stats);
    lode_status_t (*tend)(lode_cluster_h cluster, uint64_t budget_us, int *more);
    lode_status_t (*blocks)(lode_cluster_h cluster, lode_block_entry_t *entries, uint32_t capacity, uint32_t *count);
    lode_status_t (*block_create)(lode_cluster_h cluster, const lode_block_params_t *params, lode_block_h *block);
    lode_status_t (*block_open)(lode_cluster_h cluster, const char *name, lode_block_h *block);
    lode_status_t (*block_append)(lode_block_h block, uint32_t layer, uint64_t tokens, lode_dtype_t dtype,
                                  const void *k, const void *v);
    lode_status_t (*block_seal)(lode_block_h block);
    lode_status_t (*block_crop)(lode_block_h block, uint64_t tokens);
    lode_status_t (*block_move)(lode_block_h from, uint64_t first, lode_block_h to);
    lode_status_t (*block_drop)(lode_block_h *block);
    lode_status_t (*block_close)(lode_block_h *block);
    lode_status_t (*block_tokens)(lode_block_h block, uint32_t layer, uint64_t *tokens);
    lode_status_t (*view_create)(lode_cluster_h cluster, const lode_view_params_t *params, lode_view_h *view);
    lode_status_t (*view_destroy)(lode_view_h *view);
    lode_status_t (*step)(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count,
                          lode_step_stats_t *stats);
    lode_status_t (*step_enqueue)(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count,
                                  void *cuda_stream, lode_step_stats_t *stats);
    lode_status_t (*step_selection)(lode_cluster_h cluster, uint32_t stream, uint32_t token, uint32_t kv_head,
                                    const uint32_t **tokens, uint64_t *count);
} lode_calls_t;

/** The table of ranks: what attend/ does itself. */
extern const lode_calls_t lode_local_calls;

/** What a cluster, and a block or a view, begins with. */
typedef struct lode_cluster_head {
    const lode_calls_t *calls;
} lode_cluster_head_t;
typedef struct lode_handle_head {
    lode_cluster_h cluster;
} lode_handle_head_t;

static inline lode_cluster_h lode_cluster_of(const void *block_or_view)
{
    return ((const lode_handle_head_t *)block_or_view)->cluster;
}

#endif
