/* SPDX-License-Identifier: Apache-2.0 */
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

#include "attend/device.h"
#include "base/config.h"

/* ----------------------------------------------------------------- geometry */

/* All ranks must mean the same model; their KV-head ranges may differ. */
static lode_status_t agree_on_geometry(lode_cluster_h cluster, const lode_geometry_t *geometry)
{
    const lode_geometry_t none = {0}, *g = geometry ? geometry : &none;
    double shape[] = {g->layers,     g->query_heads,  g->kv_heads,   g->head_dim,
                      g->rope.theta, g->rope.scaling, g->rope.factor};
    bool same;
    uint32_t rank;
    LODE_TRY(lode_fabric_agree(cluster->fabric, shape, sizeof shape, &same, &rank));
    if (!same)
        return lode_fail(LODE_ERR_GEOMETRY, "rank %u has another model geometry than rank 0", rank);
    return LODE_OK;
}

/* -------------------------------------------------------------------- parts */

/* Of this host's ranks, those that share this one's cores: bound to the same, or bound to none of their own. */
static void count_sharers(lode_cluster_h cluster, const char (*bindings)[256], bool own, lode_team_params_t *params)
{
    uint32_t rank = lode_fabric_rank(cluster->fabric);
    const lode_member_t *members = lode_fabric_members(cluster->fabric);
    for (uint32_t i = 0; i < lode_fabric_born(cluster->fabric); i++) {
        bool here = lode_fabric_alive(cluster->fabric, i) && strcmp(members[i].host, members[rank].host) == 0 &&
                    (!own || strcmp(bindings[i], bindings[rank]) == 0);
        params->sharers += here;
        params->share += here && i < rank;
    }
}

/* A rank that joined later cannot ask the others: it takes it that all of its host share their cores. */
static void count_neighbours(lode_cluster_h cluster, lode_team_params_t *params)
{
    uint32_t rank = lode_fabric_rank(cluster->fabric);
    const lode_member_t *members = lode_fabric_members(cluster->fabric);
    for (uint32_t i = 0; i < lode_fabric_ranks(cluster->fabric); i++) {
        bool here = lode_fabric_alive(cluster->fabric, i) && strcmp(members[i].host, members[rank].host) == 0;
        params->sharers += here;
        params->share += here && i < rank;
    }
}

/* Ranks that MPI started on this node share its cores unless each was bound to some of its own. */
static lode_status_t start_team(lode_cluster_h cluster, const lode_options_t *options)
{
    uint32_t born = lode_fabric_born(cluster->fabric);
    char binding[256], (*bindings)[256] = calloc(born ? born : 1, sizeof *bindings);
    lode_team_params_t params = {.threads = (uint32_t)lode_options_count(options, "threads"),
                                 .spin_us = (uint32_t)lode_options_count(options, "spin"),
                                 .within = lode_fabric_near(cluster->fabric)->cores};
    lode_status_t status = lode_fabric_worst(
        cluster->fabric, bindings ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u bindings", born));
    bool own = lode_team_binding(params.within, binding);
    if (status == LODE_OK)
        status = lode_fabric_gather(cluster->fabric, binding, sizeof binding, bindings);
    if (status == LODE_OK && born)
        count_sharers(cluster, (const char(*)[256])bindings, own, &params);
    else if (status == LODE_OK)
        count_neighbours(cluster, &params);
    free(bindings);
    LODE_TRY(status);
    status = lode_team_create(&params, &cluster->team);
    if (status == LODE_OK)
        lode_debug("%u threads for steps, %u of them bound to cores", lode_team_threads(cluster->team),
                   lode_team_bound(cluster->team));
    return lode_fabric_worst(cluster->fabric, status);
}

static bool gpu_address(void *context, uint32_t local_rank, char address[16])
{
    return lode_gpu_locate(((lode_cluster_h)context)->options, local_rank, address);
}

/* @p local: what came of preparing, which params need. Texts are borrowed from the options. */
static lode_fabric_params_t fabric_params(lode_cluster_h cluster, const lode_options_t *options, lode_status_t local)
{
    const char *path = lode_options_get(options, "path"), *affinity = lode_options_get(options, "affinity");
    return (lode_fabric_params_t){
        .node = lode_options_get(options, "node"),
        .arena_bytes = lode_options_count(options, "arena"),
        .path = strcmp(path, "one-sided") == 0 ? LODE_PATH_ONE_SIDED
                : strcmp(path, "batched") == 0 ? LODE_PATH_BATCHED
                                               : LODE_PATH_AUTO,
        .landing_bytes = lode_options_count(options, "landing"),
        .reply_bytes = lode_options_count(options, "reply"),
        .credit_bytes = lode_options_count(options, "credit"),
        .fetch_deadline_ms = (uint32_t)lode_options_count(options, "fetch-deadline"),
        .hedge_ms = (uint32_t)lode_options_count(options, "hedge"),
        .call_deadline_ms = (uint32_t)lode_options_count(options, "call-deadline"),
        .spin_us = (uint32_t)lode_options_count(options, "spin"),
        .max_ranks = (uint32_t)lode_options_count(options, "max-ranks"),
        .beat_ms = (uint32_t)lode_options_count(options, "heartbeat"),
        .suspect_ms = (uint32_t)lode_options_count(options, "suspect"),
        .lease_ms = (uint32_t)lode_options_count(options, "lease"),
        .handlers = {.serve = lode_serve,
                     .page = lode_serve_page,
                     .gather = local == LODE_OK ? cluster->ops->gather : NULL,
                     .crc32c = local == LODE_OK ? cluster->ops->crc32c : NULL},
        .context = cluster,
        .gpu = strcmp(affinity, "no") == 0 ? NULL : gpu_address,
        .near_or_fail = strcmp(affinity, "yes") == 0,
    };
}

/* The mapping is made now, while all ranks of the node can be waited for; its layout follows the geometry. */
static lode_status_t map_store(lode_cluster_h cluster, const lode_options_t *options)
{
    cluster->store_bytes = lode_options_count(options, "landmarks");
    cluster->store_blocks = (uint32_t)lode_options_count(options, "blocks");
    return lode_fabric_shared(cluster->fabric, cluster->store_bytes, &cluster->store_base, &cluster->store_fd);
}

/* One rank of a node lays the store out before the others look at it. */
static lode_status_t shape_together(lode_cluster_h cluster, const lode_geometry_t *geometry)
{
    bool first = lode_fabric_members(cluster->fabric)[lode_fabric_rank(cluster->fabric)].local_rank == 0;
    LODE_TRY(lode_fabric_worst(cluster->fabric, first ? lode_shape_here(cluster, geometry, true) : LODE_OK));
    return lode_fabric_worst(cluster->fabric, first ? LODE_OK : lode_shape_here(cluster, geometry, false));
}

/* What needs nobody else, and may be refused before MPI and UCX are asked. */
static lode_status_t prepare_locally(lode_cluster_h cluster, const lode_options_t *options,
                                     const lode_geometry_t *geometry)
{
    const char *level = lode_options_get(options, "kernels");
    if (geometry)
        LODE_TRY(lode_geometry_check(geometry));
    lode_status_t status = lode_ops_get(level, &cluster->ops);
    if (status != LODE_OK)
        return lode_fail(status, "kernels \"%s\" are not compiled in or not usable on this CPU; see lodemark info",
                         level);
    cluster->replicas = (uint32_t)lode_options_count(options, "replicas");
    cluster->hot_bytes = lode_options_count(options, "hot-cache");
    cluster->transform_path = strdup(lode_options_get(options, "transform"));
    if (!cluster->transform_path)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a path");
    cluster->call_deadline_ns = lode_options_count(options, "call-deadline") * 1000000u;
    return lode_gpu_check_options(options);
}

/* What needs the fabric. */
static lode_status_t create_parts(lode_cluster_h cluster, const lode_options_t *options)
{
    lode_log_rank((int)lode_fabric_rank(cluster->fabric));
    lode_status_t status = lode_places_create(cluster, lode_options_get(options, "failure-domain"));
    if (status == LODE_OK)
        status = lode_repair_create(cluster, lode_options_count(options, "repair-rate"));
    if (status == LODE_OK)
        status = lode_shard_create(lode_fabric_arena(cluster->fabric), lode_options_count(options, "arena"),
                                   &cluster->shard);
    if (status == LODE_OK)
        status = lode_gpu_open(cluster, options);
    LODE_TRY(lode_fabric_worst(cluster->fabric, status));
    LODE_TRY(start_team(cluster, options));
    LODE_TRY(map_store(cluster, options));
    lode_replica_params_t replica = {.wish = lode_replication_of(lode_options_get(options, "replication"))};
    lode_gpu_t *gpu = cluster->gpu;
    if (gpu) {
        replica.ops = gpu->ops;
        replica.device = gpu->device;
        replica.uuid = gpu->info.uuid;
    }
    return lode_replica_create(cluster, &replica, &cluster->replica);
}

/* Each part ends with all ranks knowing whether all succeeded. */
static lode_status_t join(lode_cluster_h cluster, const lode_options_t *options, const lode_geometry_t *geometry)
{
    lode_status_t local = prepare_locally(cluster, options, geometry);
    lode_fabric_params_t params = fabric_params(cluster, options, local);
    cluster->options = options;
    lode_status_t status = lode_fabric_create(&params, local, &cluster->fabric);
    cluster->options = NULL;
    LODE_TRY(status);
    LODE_TRY(agree_on_geometry(cluster, geometry));
    LODE_TRY(create_parts(cluster, options));
    if (geometry)
        LODE_TRY(shape_together(cluster, geometry));
    return lode_fabric_start(cluster->fabric);
}

static void free_parts(lode_cluster_h cluster)
{
    lode_fabric_h fabric = cluster->fabric; /* handlers may run, and ask for it, until this has returned */
    lode_replica_close(cluster->replica);
    lode_gpu_part(cluster);
    if (fabric)
        lode_fabric_destroy(&fabric);
    lode_replica_destroy(&cluster->replica);
    lode_gpu_close(cluster);
    lode_step_state_destroy(&cluster->step);
    lode_team_destroy(&cluster->team);
    if (cluster->store)
        lode_store_destroy(&cluster->store);
    if (cluster->shard)
        lode_shard_destroy(&cluster->shard);
    for (size_t i = 0; i < sizeof cluster->hot / sizeof *cluster->hot; i++)
        lode_hot_destroy(&cluster->hot[i]);
    lode_transform_destroy(&cluster->transform);
    free(cluster->transform_path);
    lode_repair_destroy(cluster);
    lode_places_destroy(cluster);
    free(cluster->freq);
    free(cluster);
}

static lode_status_t start_mpi(bool *owns)
{
    int initialised, provided;
    *owns = false;
    MPI_Initialized(&initialised);
    if (initialised)
        return LODE_OK;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS)
        return lode_fail(LODE_ERR_MPI, "MPI_Init_thread failed");
    *owns = true;
    return LODE_OK;
}

/* ------------------------------------------------------------------- public */

lode_status_t lode_cluster_join(lode_config_h config, const lode_geometry_t *geometry, lode_cluster_h *out)
{
    if (!config || !out)
        return lode_fail(LODE_ERR_INVALID, "lode_cluster_join: a NULL argument");
    lode_cluster_h cluster = calloc(1, sizeof *cluster);
    if (!cluster)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a cluster's handle");
    cluster->calls = &lode_local_calls;
    cluster->started_ns = lode_now_ns();
    const lode_options_t *options = lode_config_options(config);
    lode_status_t status = start_mpi(&cluster->owns_mpi);
    if (status == LODE_OK)
        status = join(cluster, options, geometry);
    if (status != LODE_OK) {
        bool owns_mpi = cluster->owns_mpi;
        free_parts(cluster);
        if (owns_mpi)
            MPI_Finalize();
        return status;
    }
    const char *reason, *path = lode_fabric_path(cluster->fabric, &reason);
    lode_replica_stats_t replication;
    lode_replica_stats(cluster->replica, &replication);
    if (lode_fabric_rank(cluster->fabric) == 0) {
        lode_info("fetch path %s: %s", path, reason);
        lode_info("landmarks to GPUs by %s: %s", replication.nccl ? "nccl" : "the hosts", replication.reason);
    }
    *out = cluster;
    return LODE_OK;
}

lode_status_t lode_cluster_prepare(lode_config_h config, lode_cluster_h *out, void **card, size_t *card_bytes)
{
    lode_cluster_h cluster = calloc(1, sizeof *cluster);
    if (!cluster)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a cluster's handle");
    cluster->calls = &lode_local_calls;
    cluster->started_ns = lode_now_ns();
    const lode_options_t *options = lode_config_options(config);
    lode_status_t status = prepare_locally(cluster, options, NULL);
    lode_fabric_params_t params = fabric_params(cluster, options, status);
    if (status == LODE_OK)
        status = lode_fabric_prepare(&params, &cluster->fabric, card, card_bytes);
    if (status != LODE_OK) {
        free_parts(cluster);
        return status;
    }
    *out = cluster;
    return LODE_OK;
}

lode_status_t lode_cluster_enter(lode_cluster_h cluster, lode_config_h config, const void *invitation, size_t bytes)
{
    const lode_options_t *options = lode_config_options(config);
    LODE_TRY(lode_fabric_enter(cluster->fabric, invitation, bytes));
    atomic_store(&cluster->filling, true);
    LODE_TRY(create_parts(cluster, options));
    return lode_fabric_start(cluster->fabric);
}

static lode_status_t local_leave(lode_cluster_h *handle)
{
    lode_cluster_h cluster = *handle;
    bool finalise = cluster->owns_mpi && lode_fabric_intact(cluster->fabric);
    free_parts(cluster);
    if (finalise)
        MPI_Finalize();
    *handle = NULL;
    return LODE_OK;
}

static lode_status_t local_query(lode_cluster_h cluster, lode_cluster_info_t *info)
{
    lode_shard_usage_t usage = lode_shard_usage(cluster->shard);
    *info = (lode_cluster_info_t){
        .rank = lode_fabric_rank(cluster->fabric),
        .ranks = lode_fabric_ranks(cluster->fabric),
        .alive = lode_fabric_alive_count(cluster->fabric),
        .nodes = cluster->domains,
        .epoch = lode_fabric_epoch(cluster->fabric),
        .arena_bytes = usage.bytes,
        .arena_used_bytes = usage.used_bytes,
        .landmark_bytes = lode_shaped(cluster) ? lode_store_used(cluster->store) : 0,
        .kernels = cluster->ops->level,
    };
    info->path = lode_fabric_path(cluster->fabric, &info->path_reason);
    lode_gpu_query(cluster, info);
    return LODE_OK;
}

static lode_status_t local_ping(lode_cluster_h cluster, uint64_t *round_trip_ns)
{
    (void)cluster;
    *round_trip_ns = 0;
    return LODE_OK;
}

const lode_calls_t lode_local_calls = {
    .leave = local_leave,
    .shape = lode_local_shape,
    .geometry = lode_local_geometry,
    .query = local_query,
    .ping = local_ping,
    .rank_stats = lode_local_rank_stats,
    .tend = lode_local_tend,
    .blocks = lode_local_blocks,
    .block_create = lode_local_block_create,
    .block_open = lode_local_block_open,
    .block_append = lode_local_block_append,
    .block_seal = lode_local_block_seal,
    .block_crop = lode_local_block_crop,
    .block_move = lode_local_block_move,
    .block_drop = lode_local_block_drop,
    .block_close = lode_local_block_close,
    .block_tokens = lode_local_block_tokens,
    .view_create = lode_local_view_create,
    .view_destroy = lode_local_view_destroy,
    .step = lode_local_step,
    .step_enqueue = lode_local_step_enqueue,
    .step_selection = lode_local_step_selection,
};
