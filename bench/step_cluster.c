/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/options.h"
#include "bench/progress.h"
#include "bench/step.h"
#include "landmarks/landmarks.h"
#include "shard/shard.h"

enum { PIECE = 512, SAMPLE_PAGES = 4096, SLAB_BYTES = 4 << 20 };

/* ------------------------------------------------------------ arena, memory */

/* Pages of all blocks, one copy, with what the streams of all ranks may write. */
static uint64_t count_pages(const lode_step_bench_t *b)
{
    const lode_source_t *s = &b->source;
    uint64_t pages = 0;
    for (uint32_t i = 0; i < s->blocks; i++)
        pages += (s->starts[i + 1] - s->starts[i] + LODE_PAGE_TOKENS - 1) / LODE_PAGE_TOKENS;
    if (b->wish.write) {
        uint64_t tokens = (uint64_t)b->wish.steps * b->wish.new_tokens;
        pages += (tokens / LODE_PAGE_TOKENS + 1) * b->wish.streams * b->job.ranks;
    }
    return pages * s->geometry.layers;
}

/* Node of every rank, as the cluster will see it. */
static void gather_places(const lode_step_bench_t *b, lode_place_t *places)
{
    char host[256] = {0};
    const char *node = lode_config_get(b->config, "node"), *domain = lode_config_get(b->config, "failure-domain");
    gethostname(host, sizeof host - 1);
    uint64_t mine = lode_hash_text(node && *node ? node : host), *all = calloc(b->job.ranks, sizeof *all);
    uint32_t nodes = 0;
    if (!all)
        abort(); /* a few bytes: nothing would work after this, and the other ranks are in the collective */
    MPI_Allgather(&mine, 1, MPI_UINT64_T, all, 1, MPI_UINT64_T, MPI_COMM_WORLD);
    for (uint32_t i = 0; i < b->job.ranks; i++) {
        uint32_t j = 0;
        while (j < i && all[j] != all[i])
            j++;
        nodes += i == j;
    }
    uint64_t replicas = strtoull(lode_config_get(b->config, "replicas"), NULL, 10);
    bool split = strcmp(domain, "rank") == 0 || (strcmp(domain, "auto") == 0 && nodes < replicas);
    for (uint32_t i = 0; i < b->job.ranks; i++)
        places[i] = (lode_place_t){.node = split ? i : all[i], .weight = 1};
    free(all);
}

/* Largest share of all pages that one rank will own, by trying placement on a sample. */
static double largest_share(const lode_step_bench_t *b, const lode_place_t *places)
{
    uint32_t replicas = (uint32_t)strtoull(lode_config_get(b->config, "replicas"), NULL, 10);
    uint64_t *owned = calloc(b->job.ranks, sizeof *owned), most = 0;
    for (uint32_t page = 0; owned && page < SAMPLE_PAGES; page++) {
        uint32_t owners[LODE_REPLICAS_MAX];
        uint32_t n = lode_placement(places, b->job.ranks, (lode_page_id_t){1, 0, page}, replicas, owners);
        for (uint32_t i = 0; i < n; i++)
            owned[owners[i]]++;
    }
    for (uint32_t i = 0; owned && i < b->job.ranks; i++)
        most = owned[i] > most ? owned[i] : most;
    free(owned);
    return owned ? (double)most / SAMPLE_PAGES : 1;
}

/* What this rank's pages need: its share, six deviations of the hashing, and slabs that are begun. */
static uint64_t wanted_arena(const lode_step_bench_t *b)
{
    const lode_geometry_t *g = &b->source.geometry;
    lode_place_t *places = calloc(b->job.ranks, sizeof *places);
    if (!places)
        abort();
    gather_places(b, places);
    double pages = (double)count_pages(b) * largest_share(b, places);
    free(places);
    pages += 6 * __builtin_sqrt(pages) + 4;
    size_t page = lode_page_bytes(b->wish.format, g->head_dim, g->kv_heads);
    uint64_t a_slab = page < SLAB_BYTES ? SLAB_BYTES / page : 1;
    uint64_t slabs = (uint64_t)pages / a_slab + 2;
    return (slabs * (page < SLAB_BYTES ? SLAB_BYTES : page) + (16u << 20)) & ~(uint64_t)((2 << 20) - 1);
}

static uint64_t memory_available(void)
{
    char line[256];
    uint64_t kib = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
            break;
    if (file)
        fclose(file);
    return kib << 10;
}

static uint64_t landmark_bytes(const lode_step_bench_t *b)
{
    const lode_geometry_t *g = &b->source.geometry;
    return lode_landmark_row_bytes(&b->wish.landmark, g->head_dim) * g->layers * g->kv_heads *
           (lode_source_total(&b->source) / b->wish.landmark.chunk);
}

/* Ranks that share this node's memory. Collective. */
static int ranks_here(void)
{
    MPI_Comm node;
    int local = 1;
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    MPI_Comm_size(node, &local);
    MPI_Comm_free(&node);
    return local;
}

/* Better a sentence now than the kernel's killer in the middle of the ingest. */
static lode_status_t check_memory(const lode_step_bench_t *b, uint64_t arena, int local)
{
    uint64_t available = memory_available(), buffers = (uint64_t)local * (256u << 20);
    uint64_t need = arena * (uint64_t)local + landmark_bytes(b) + buffers;
    if (!available || need <= available)
        return LODE_OK;
    return lode_fail(LODE_ERR_NO_MEMORY,
                     "%.1f GiB are needed on this node (%d ranks with arenas of %.1f GiB, landmarks %.1f GiB, buffers "
                     "%.1f GiB), but only %.1f GiB are available; take fewer tokens, a smaller format, or more nodes",
                     (double)need / 0x1p30, local, (double)arena / 0x1p30, (double)landmark_bytes(b) / 0x1p30,
                     (double)buffers / 0x1p30, (double)available / 0x1p30);
}

static lode_status_t configure(lode_step_bench_t *b)
{
    LODE_TRY(lode_bench_config(&b->wish.options, &b->config));
    /* Steps before the kill would leave the cache full of what the dead rank can no longer give. */
    if (b->wish.kill_rank >= 0 && !lode_bench_given(&b->wish.options, "hot-cache", "LODEMARK_HOT_CACHE"))
        return lode_config_set(b->config, "hot-cache", "0");
    return LODE_OK;
}

lode_status_t lode_step_join(lode_step_bench_t *b)
{
    LODE_TRY(lode_job_agree(configure(b)));
    uint64_t replicas = strtoull(lode_config_get(b->config, "replicas"), NULL, 10), arena = wanted_arena(b);
    bool given = lode_bench_given(&b->wish.options, "arena", "LODEMARK_ARENA");
    int local = ranks_here();
    lode_status_t status = LODE_OK;
    if (replicas <= b->job.ranks && !given) { /* the join refuses too many replicas better than a size could */
        char text[32];
        snprintf(text, sizeof text, "%" PRIu64, arena);
        status = check_memory(b, arena, local);
        if (status == LODE_OK)
            status = lode_config_set(b->config, "arena", text);
    }
    LODE_TRY(lode_job_agree(status));
    LODE_TRY(lode_job_agree(lode_cluster_join(b->config, &b->source.geometry, &b->cluster)));
    return lode_cluster_query(b->cluster, &b->info);
}

/* ------------------------------------------------------------------- ingest */

static void document_name(uint32_t i, char name[LODE_NAME_MAX + 1])
{
    snprintf(name, LODE_NAME_MAX + 1, "document-%u", i);
}

static lode_block_params_t block_params(const lode_step_bench_t *b, const char *name, uint64_t tokens)
{
    return (lode_block_params_t){
        .name = name, .format = b->wish.format, .landmark = b->wish.landmark, .expected_tokens = tokens};
}

static lode_status_t append_layer(lode_step_bench_t *b, uint32_t i, uint32_t layer, float *k, float *v,
                                  lode_progress_t *progress, uint64_t *done)
{
    uint64_t tokens = b->source.starts[i + 1] - b->source.starts[i];
    for (uint64_t first = 0; first < tokens; first += PIECE) {
        uint64_t n = tokens - first < PIECE ? tokens - first : PIECE;
        lode_source_tokens(&b->source, i, layer, first, n, k, v);
        uint64_t begin = lode_now_ns();
        LODE_TRY(lode_block_append(b->documents[i], layer, n, LODE_FP32, k, v));
        b->ingest_seconds += (double)(lode_now_ns() - begin) * 1e-9;
        *done += n;
        lode_progress_at(progress, *done);
    }
    return LODE_OK;
}

/* Ranks take the documents in turns, so the context does not depend on how many there are. */
static lode_status_t write_documents(lode_step_bench_t *b, float *k, float *v)
{
    lode_progress_t progress;
    uint64_t mine = 0, done = 0;
    for (uint32_t i = b->job.rank; i < b->source.blocks; i += b->job.ranks)
        mine += (b->source.starts[i + 1] - b->source.starts[i]) * b->source.geometry.layers;
    lode_progress_begin(&progress, "ingest", mine);
    for (uint32_t i = b->job.rank; i < b->source.blocks; i += b->job.ranks) {
        char name[LODE_NAME_MAX + 1];
        document_name(i, name);
        lode_block_params_t params = block_params(b, name, b->source.starts[i + 1] - b->source.starts[i]);
        LODE_TRY(lode_block_create(b->cluster, &params, &b->documents[i]));
        for (uint32_t layer = 0; layer < b->source.geometry.layers; layer++)
            LODE_TRY(append_layer(b, i, layer, k, v, &progress, &done));
        uint64_t begin = lode_now_ns();
        LODE_TRY(lode_block_seal(b->documents[i]));
        b->ingest_seconds += (double)(lode_now_ns() - begin) * 1e-9;
    }
    lode_progress_end(&progress);
    return LODE_OK;
}

static lode_status_t open_documents(lode_step_bench_t *b)
{
    for (uint32_t i = 0; i < b->source.blocks; i++) {
        char name[LODE_NAME_MAX + 1];
        document_name(i, name);
        if (!b->documents[i])
            LODE_TRY(lode_block_open(b->cluster, name, &b->documents[i]));
    }
    lode_view_params_t params = {.blocks = b->documents,
                                 .count = b->source.blocks,
                                 .write_block = -1,
                                 .policy = {.select = LODE_SELECT_DENSE, .budget_share = 1}};
    return lode_view_create(b->cluster, &params, &b->dense_view);
}

lode_status_t lode_step_ingest(lode_step_bench_t *b)
{
    size_t piece = (size_t)PIECE * b->source.geometry.kv_heads * b->source.geometry.head_dim;
    float *k = malloc(piece * sizeof *k), *v = malloc(piece * sizeof *v);
    b->documents = calloc(b->source.blocks, sizeof *b->documents);
    lode_status_t status = LODE_OK;
    if (!k || !v || !b->documents)
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory to ingest with");
    if (status == LODE_OK)
        status = write_documents(b, k, v);
    free(k);
    free(v);
    LODE_TRY(lode_job_agree(status));
    LODE_TRY(lode_job_agree(open_documents(b)));
    MPI_Allreduce(MPI_IN_PLACE, &b->ingest_seconds, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    b->ingest_rate = (double)(lode_source_total(&b->source) * b->source.geometry.layers) / b->ingest_seconds;
    return LODE_OK;
}

/* --------------------------------------------------------------------- runs */

static lode_status_t create_stream(lode_step_bench_t *b, const char *name, uint32_t stream, lode_step_run_t *run)
{
    lode_block_h *blocks = calloc(b->source.blocks + 1, sizeof *blocks);
    if (!blocks)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a view");
    memcpy(blocks, b->documents, b->source.blocks * sizeof *blocks);
    lode_view_params_t view = {.blocks = blocks, .count = b->source.blocks, .write_block = -1};
    view.policy = (lode_policy_t){.select = b->wish.dense ? LODE_SELECT_DENSE : LODE_SELECT_LANDMARK,
                                  .merge = b->wish.merge,
                                  .budget_share = b->wish.budget,
                                  .sinks = b->wish.sinks,
                                  .window = b->wish.window};
    lode_status_t status = LODE_OK;
    if (b->wish.write) {
        char full[LODE_NAME_MAX + 1];
        snprintf(full, sizeof full, "%s-%u-%u", name, b->job.rank, stream);
        lode_block_params_t params = block_params(b, full, (uint64_t)b->wish.steps * b->wish.new_tokens);
        status = lode_block_create(b->cluster, &params, &run->writes[stream]);
        view.write_block = (int32_t)b->source.blocks;
        view.count++;
        blocks[b->source.blocks] = run->writes[stream];
    }
    if (status == LODE_OK)
        status = lode_view_create(b->cluster, &view, &run->views[stream]);
    free(blocks);
    return status;
}

lode_status_t lode_step_run_create(lode_step_bench_t *b, const char *name, lode_step_run_t *run)
{
    size_t cells = (size_t)b->wish.steps * b->source.geometry.layers;
    run->writes = calloc(b->wish.streams, sizeof *run->writes);
    run->views = calloc(b->wish.streams, sizeof *run->views);
    run->digests = calloc(cells, sizeof *run->digests);
    run->stats = calloc(cells, sizeof *run->stats);
    run->lone = b->wish.alike < 0 ? NULL : calloc(cells, sizeof *run->lone);
    run->failed = calloc(b->wish.steps, sizeof *run->failed);
    run->out = calloc((size_t)b->kept_count * b->source.geometry.layers * lode_step_floats(b) + 1, sizeof *run->out);
    if (!run->writes || !run->views || !run->digests || !run->stats || !run->failed || !run->out ||
        (b->wish.alike >= 0 && !run->lone))
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the results of %u steps", b->wish.steps);
    for (uint32_t s = 0; s < b->wish.streams; s++)
        LODE_TRY(create_stream(b, name, s, run));
    return LODE_OK;
}

void lode_step_run_close(lode_step_bench_t *b, lode_step_run_t *run)
{
    for (uint32_t s = 0; run->views && s < b->wish.streams; s++)
        if (run->views[s])
            lode_view_destroy(&run->views[s]);
    for (uint32_t s = 0; run->writes && s < b->wish.streams; s++)
        if (run->writes[s])
            lode_block_close(&run->writes[s]);
}

void lode_step_run_free(lode_step_run_t *run)
{
    free(run->writes);
    free(run->views);
    free(run->digests);
    free(run->stats);
    free(run->lone);
    free(run->failed);
    free(run->out);
    memset(run, 0, sizeof *run);
}

void lode_step_leave(lode_step_bench_t *b)
{
    lode_step_run_close(b, &b->calm);
    lode_step_run_close(b, &b->killed);
    if (b->dense_view)
        lode_view_destroy(&b->dense_view);
    for (uint32_t i = 0; b->documents && i < b->source.blocks; i++)
        if (b->documents[i])
            lode_block_close(&b->documents[i]);
    free(b->documents);
    b->documents = NULL;
    if (b->cluster)
        lode_cluster_leave(&b->cluster);
    lode_config_destroy(&b->config);
}
