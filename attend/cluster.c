/* SPDX-License-Identifier: Apache-2.0 */
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"
#include "base/config.h"

/* ----------------------------------------------------------------- geometry */

static lode_status_t check_geometry(const lode_geometry_t *g)
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

static lode_status_t prepare_geometry(lode_cluster_h cluster, const lode_geometry_t *geometry)
{
    LODE_TRY(check_geometry(geometry));
    cluster->geometry = *geometry;
    if (!geometry->kv_head_end)
        cluster->geometry.kv_head_end = geometry->kv_heads;
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

/* All ranks must mean the same model; their KV-head ranges may differ. */
static lode_status_t agree_on_geometry(lode_cluster_h cluster)
{
    const lode_geometry_t *g = &cluster->geometry;
    double shape[] = {g->layers,     g->query_heads,  g->kv_heads,   g->head_dim,
                      g->rope.theta, g->rope.scaling, g->rope.factor};
    bool same;
    uint32_t rank;
    LODE_TRY(lode_fabric_agree(cluster->fabric, shape, sizeof shape, &same, &rank));
    if (!same)
        return lode_fail(LODE_ERR_GEOMETRY, "rank %u has another model geometry than rank 0", rank);
    return LODE_OK;
}

/* --------------------------------------------------------------- membership */

static uint32_t count_domains(const lode_place_t *places, uint32_t ranks)
{
    uint32_t domains = 0;
    for (uint32_t i = 0; i < ranks; i++) {
        uint32_t j = 0;
        while (j < i && places[j].node != places[i].node)
            j++;
        domains += j == i;
    }
    return domains;
}

static lode_status_t prepare_places(lode_cluster_h cluster, const char *domain)
{
    uint32_t ranks = lode_fabric_ranks(cluster->fabric);
    const lode_member_t *members = lode_fabric_members(cluster->fabric);
    if (cluster->replicas > ranks)
        return lode_fail(LODE_ERR_INVALID, "%u replicas need as many ranks, the job has %u", cluster->replicas, ranks);
    cluster->places = malloc(ranks * sizeof *cluster->places);
    if (!cluster->places)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u ranks", ranks);
    for (uint32_t i = 0; i < ranks; i++)
        cluster->places[i] = (lode_place_t){members[i].node, members[i].arena_bytes};
    cluster->domains = count_domains(cluster->places, ranks);
    bool split = strcmp(domain, "rank") == 0 || (strcmp(domain, "auto") == 0 && cluster->domains < cluster->replicas);
    if (!split)
        return LODE_OK;
    if (strcmp(domain, "auto") == 0 && lode_fabric_rank(cluster->fabric) == 0)
        lode_info("%u replicas on %u nodes: owners of a page are different ranks, not different nodes",
                  cluster->replicas, cluster->domains);
    for (uint32_t i = 0; i < ranks; i++)
        cluster->places[i].node = lode_mix(members[i].node, i + 1);
    cluster->domains = count_domains(cluster->places, ranks);
    return LODE_OK;
}

/* -------------------------------------------------------------------- parts */

static lode_status_t create_fabric(lode_cluster_h cluster, const lode_options_t *options, lode_status_t local)
{
    const char *path = lode_options_get(options, "path");
    lode_fabric_params_t params = {
        .node = lode_options_get(options, "node"),
        .arena_bytes = lode_options_count(options, "arena"),
        .path = strcmp(path, "one-sided") == 0 ? LODE_PATH_ONE_SIDED
                : strcmp(path, "batched") == 0 ? LODE_PATH_BATCHED
                                               : LODE_PATH_AUTO,
        .landing_bytes = lode_options_count(options, "landing"),
        .reply_bytes = lode_options_count(options, "reply"),
        .credit_bytes = lode_options_count(options, "credit"),
        .fetch_deadline_ms = (uint32_t)lode_options_count(options, "fetch-deadline"),
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
    };
    return lode_fabric_create(&params, local, &cluster->fabric);
}

static lode_status_t open_store(lode_cluster_h cluster, const lode_options_t *options)
{
    lode_store_params_t params = {.bytes = lode_options_count(options, "landmarks"),
                                  .layers = cluster->geometry.layers,
                                  .dim = cluster->geometry.head_dim,
                                  .max_blocks = (uint32_t)lode_options_count(options, "blocks"),
                                  .ops = cluster->ops};
    LODE_TRY(lode_fabric_shared(cluster->fabric, params.bytes, &params.base, &params.fd));
    bool first = lode_fabric_members(cluster->fabric)[lode_fabric_rank(cluster->fabric)].local_rank == 0;
    lode_status_t status = first ? lode_store_create(&params, &cluster->store) : LODE_OK;
    LODE_TRY(lode_fabric_worst(cluster->fabric, status));
    status = first ? LODE_OK : lode_store_attach(&params, &cluster->store);
    return lode_fabric_worst(cluster->fabric, status);
}

/* What needs nobody else, and may be refused before MPI and UCX are asked. */
static lode_status_t prepare_locally(lode_cluster_h cluster, const lode_options_t *options,
                                     const lode_geometry_t *geometry)
{
    const char *level = lode_options_get(options, "kernels");
    LODE_TRY(prepare_geometry(cluster, geometry));
    lode_status_t status = lode_ops_get(level, &cluster->ops);
    if (status != LODE_OK)
        return lode_fail(status, "kernels \"%s\" are not compiled in or not usable on this CPU; see lodemark info",
                         level);
    cluster->replicas = (uint32_t)lode_options_count(options, "replicas");
    cluster->hot_bytes = lode_options_count(options, "hot-cache");
    return LODE_OK;
}

/* Each part ends with all ranks knowing whether all succeeded. */
static lode_status_t join(lode_cluster_h cluster, const lode_options_t *options, lode_status_t local)
{
    LODE_TRY(create_fabric(cluster, options, local));
    lode_log_rank((int)lode_fabric_rank(cluster->fabric));
    LODE_TRY(agree_on_geometry(cluster));
    lode_status_t status = prepare_places(cluster, lode_options_get(options, "failure-domain"));
    if (status == LODE_OK)
        status = lode_shard_create(lode_fabric_arena(cluster->fabric), lode_options_count(options, "arena"),
                                   &cluster->shard);
    if (status == LODE_OK)
        status = lode_step_state_create(cluster, &cluster->step);
    LODE_TRY(lode_fabric_worst(cluster->fabric, status));
    LODE_TRY(open_store(cluster, options));
    return lode_fabric_start(cluster->fabric);
}

static void free_parts(lode_cluster_h cluster)
{
    lode_fabric_h fabric = cluster->fabric; /* handlers may run, and ask for it, until this has returned */
    if (fabric)
        lode_fabric_destroy(&fabric);
    lode_step_state_destroy(&cluster->step);
    if (cluster->store)
        lode_store_destroy(&cluster->store);
    if (cluster->shard)
        lode_shard_destroy(&cluster->shard);
    for (size_t i = 0; i < sizeof cluster->hot / sizeof *cluster->hot; i++)
        lode_hot_destroy(&cluster->hot[i]);
    free(cluster->places);
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
    if (!config || !geometry || !out)
        return lode_fail(LODE_ERR_INVALID, "lode_cluster_join: a NULL argument");
    lode_cluster_h cluster = calloc(1, sizeof *cluster);
    if (!cluster)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a cluster's handle");
    const lode_options_t *options = lode_config_options(config);
    lode_status_t status = start_mpi(&cluster->owns_mpi);
    if (status == LODE_OK)
        status = join(cluster, options, prepare_locally(cluster, options, geometry));
    if (status != LODE_OK) {
        bool owns_mpi = cluster->owns_mpi;
        free_parts(cluster);
        if (owns_mpi)
            MPI_Finalize();
        return status;
    }
    const char *reason, *path = lode_fabric_path(cluster->fabric, &reason);
    if (lode_fabric_rank(cluster->fabric) == 0)
        lode_info("fetch path %s: %s", path, reason);
    *out = cluster;
    return LODE_OK;
}

lode_status_t lode_cluster_leave(lode_cluster_h *handle)
{
    if (!handle || !*handle)
        return lode_fail(LODE_ERR_INVALID, "lode_cluster_leave: a NULL argument");
    lode_cluster_h cluster = *handle;
    bool finalise = cluster->owns_mpi && lode_fabric_intact(cluster->fabric);
    free_parts(cluster);
    if (finalise)
        MPI_Finalize();
    *handle = NULL;
    return LODE_OK;
}

lode_status_t lode_cluster_query(lode_cluster_h cluster, lode_cluster_info_t *info)
{
    if (!cluster || !info)
        return lode_fail(LODE_ERR_INVALID, "lode_cluster_query: a NULL argument");
    lode_shard_usage_t usage = lode_shard_usage(cluster->shard);
    *info = (lode_cluster_info_t){
        .rank = lode_fabric_rank(cluster->fabric),
        .ranks = lode_fabric_ranks(cluster->fabric),
        .alive = lode_fabric_alive_count(cluster->fabric),
        .nodes = cluster->domains,
        .epoch = lode_fabric_epoch(cluster->fabric),
        .arena_bytes = usage.bytes,
        .arena_used_bytes = usage.used_bytes,
        .landmark_bytes = lode_store_used(cluster->store),
        .kernels = cluster->ops->level,
    };
    info->path = lode_fabric_path(cluster->fabric, &info->path_reason);
    return LODE_OK;
}
