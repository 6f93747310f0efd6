/* SPDX-License-Identifier: Apache-2.0 */
/* The ranks of what reads documents: join with room for the corpus, meet, serve, leave. None waits for a rank that
 * died. */
#include <inttypes.h>
#include <math.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attend/inside.h"
#include "bench/options.h"
#include "launch/reading.h"
#include "launch/client.h"

/*
 * Nobody watches ranks that wait for the first: one that hangs must be noticed. But reading in keeps all cores busy for
 * long, maybe beside other work, and a rank that is merely slow must not be given up.
 */
enum { HEARTBEAT_MS = 250, SUSPECT_MS = 15000 };
/* How long ranks that end wait for each other. */
#define TOGETHER_NS UINT64_C(10000000000)
enum { SLAB_BYTES = 4 << 20, MEET_SUMS = 8, SPARE_BLOCKS = 64, LEAST_BLOCKS = 4096 };
enum { HOT_LEAST = 64 << 20, HOT_MOST = 1 << 30 };

/* ------------------------------------------------------------------------ room */

typedef struct demand {
    uint64_t pages, blocks; /* pages of one layer */
} demand_t;

/* Of this rank's documents. Blocks of the same text are counted twice: too much room is no harm. */
static lode_status_t count_demand(const lode_reading_t *reading, demand_t *demand)
{
    for (uint32_t i = 0; i < reading->corpus.count; i++) {
        const lode_document_t *document = &reading->corpus.documents[i];
        lode_tokens_t tokens = {0};
        size_t *ends = NULL, pieces = 0, begin = 0;
        if (reading->ranks_of[i] != reading->job.rank)
            continue;
        lode_status_t status =
            lode_manner_document(lode_reader_manner(reading->reader), lode_reader_tokenizer(reading->reader),
                                 document->text, document->bytes, &tokens, &ends, &pieces);
        for (size_t j = 0; status == LODE_OK && j < pieces; j++) {
            demand->pages += (ends[j] - begin + LODE_PAGE_TOKENS - 1) / LODE_PAGE_TOKENS;
            begin = ends[j];
        }
        demand->blocks += pieces;
        free(ends);
        lode_tokens_free(&tokens);
        if (status != LODE_OK)
            return lode_fail_within(status, "document \"%s\": ", document->name);
    }
    return LODE_OK;
}

/* A rank's share of all pages with six deviations of the hashing, slabs that are begun, and what is written. */
static uint64_t wanted_arena(const lode_reading_t *reading, const demand_t *all)
{
    const lode_geometry_t *g = &lode_model_info(lode_reader_model(reading->reader))->geometry;
    double replicas = (double)strtoull(lode_config_get(reading->config, "replicas"), NULL, 10);
    double own = (double)(reading->own_tokens / LODE_PAGE_TOKENS + 2);
    double pages = ((double)all->pages + own) * g->layers * replicas / reading->job.ranks;
    pages += 6 * sqrt(pages) + 4;
    size_t page = lode_page_bytes(reading->params.format, g->head_dim, g->kv_heads);
    uint64_t a_slab = page < SLAB_BYTES ? SLAB_BYTES / page : 1, slabs = (uint64_t)pages / a_slab + 2;
    return (slabs * (page < SLAB_BYTES ? SLAB_BYTES : page) + (16u << 20)) & ~(uint64_t)((2 << 20) - 1);
}

/* What a token of an answer wants of other ranks, four times: half of it may be lost to sets of a power of two. */
static uint64_t wanted_hot(const lode_reading_t *reading, const demand_t *all)
{
    const lode_geometry_t *g = &lode_model_info(lode_reader_model(reading->reader))->geometry;
    double share = reading->dense ? 0 : reading->policy.budget_share;
    double records = share * (double)all->pages * LODE_PAGE_TOKENS * g->layers * g->kv_heads;
    double others = (reading->job.ranks - 1.0) / reading->job.ranks;
    uint64_t bytes = (uint64_t)(4 * records * others) * lode_record_bytes(reading->params.format, g->head_dim);
    return bytes < HOT_LEAST ? HOT_LEAST : bytes > HOT_MOST ? HOT_MOST : bytes;
}

static lode_status_t set_count(lode_reading_t *reading, const char *name, const char *variable, uint64_t value)
{
    char text[32];
    if (lode_bench_given(&reading->options, name, variable))
        return LODE_OK;
    snprintf(text, sizeof text, "%" PRIu64, value);
    return lode_config_set(reading->config, name, text);
}

/* Where the user did not say otherwise, the cluster is as large as the corpus wants it. */
static lode_status_t configure(lode_reading_t *reading, const demand_t *all)
{
    uint64_t blocks = all->blocks + SPARE_BLOCKS;
    LODE_TRY(set_count(reading, "blocks", "LODEMARK_BLOCKS", blocks < LEAST_BLOCKS ? LEAST_BLOCKS : blocks));
    LODE_TRY(set_count(reading, "arena", "LODEMARK_ARENA", wanted_arena(reading, all)));
    if (reading->job.ranks == 1)
        return LODE_OK;
    LODE_TRY(set_count(reading, "hot-cache", "LODEMARK_HOT_CACHE", wanted_hot(reading, all)));
    LODE_TRY(set_count(reading, "heartbeat", "LODEMARK_HEARTBEAT", HEARTBEAT_MS));
    LODE_TRY(set_count(reading, "suspect", "LODEMARK_SUSPECT", SUSPECT_MS));
    return set_count(reading, "lease", "LODEMARK_LEASE", SUSPECT_MS);
}

/* All ranks must mean the same documents, or the first would ask of some that nobody has read in. */
static lode_status_t compare_corpora(const lode_reading_t *reading)
{
    uint64_t mine = lode_corpus_digest(&reading->corpus), first = mine;
    if (reading->job.ranks > 1)
        MPI_Bcast(&first, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    if (first != mine)
        return lode_fail(LODE_ERR_INVALID,
                         "rank %u finds other documents than rank 0: all hosts must see the same files",
                         reading->job.rank);
    return LODE_OK;
}

/* ------------------------------------------------------------------------ join */

static lode_status_t join_job(lode_reading_t *reading)
{
    demand_t demand = {0};
    lode_status_t status = compare_corpora(reading);
    if (status == LODE_OK)
        status = count_demand(reading, &demand);
    LODE_TRY(lode_job_agree(status));
    lode_job_sum_counts(&reading->job, &demand.pages, 1);
    lode_job_sum_counts(&reading->job, &demand.blocks, 1);
    status = lode_bench_config(&reading->options, &reading->config);
    if (status == LODE_OK)
        status = configure(reading, &demand);
    LODE_TRY(lode_job_agree(status));
    return lode_job_agree(lode_cluster_join(
        reading->config, &lode_model_info(lode_reader_model(reading->reader))->geometry, &reading->cluster));
}

static lode_status_t join_service(lode_reading_t *reading)
{
    LODE_TRY(lode_bench_config(&reading->options, &reading->config));
    return lode_cluster_connect(reading->config, lode_options_get(&reading->options, "cluster"),
                                lode_options_get(&reading->options, "token-file"), &reading->cluster);
}

lode_status_t lode_reading_join(lode_reading_t *reading)
{
    LODE_TRY(reading->client ? join_service(reading) : join_job(reading));
    return lode_reading_meet(reading, lode_reader_attach(reading->reader, reading->cluster), NULL, 0);
}

/* ------------------------------------------------------------------------ meet */

typedef struct report {
    int status;
    char sentence[512];
    uint64_t sums[MEET_SUMS];
} report_t;

static bool intact(const lode_reading_t *reading)
{
    return lode_fabric_intact(reading->cluster->fabric);
}

/* @return false if a rank died first: then MPI may still write to what was handed to it */
static bool complete(const lode_reading_t *reading, MPI_Request *request)
{
    int there = 0;
    for (;;) {
        MPI_Test(request, &there, MPI_STATUS_IGNORE);
        if (there || !intact(reading))
            return there;
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
}

static lode_status_t take_reports(const report_t *reports, uint32_t ranks, uint64_t *sums, uint32_t n)
{
    for (uint32_t r = 0; r < ranks; r++)
        if (reports[r].status != LODE_OK)
            return lode_fail((lode_status_t)reports[r].status, "%s", reports[r].sentence);
    for (uint32_t i = 0; i < n; i++) {
        sums[i] = 0;
        for (uint32_t r = 0; r < ranks; r++)
            sums[i] += reports[r].sums[i];
    }
    return LODE_OK;
}

lode_status_t lode_reading_meet(lode_reading_t *reading, lode_status_t status, uint64_t *sums, uint32_t n)
{
    MPI_Request request;
    if (reading->job.ranks < 2)
        return status;
    if (status == LODE_ERR_MPI || !intact(reading))
        return status == LODE_OK ? lode_fail(LODE_ERR_PEER_LOST, "a rank of this job has died") : status;
    report_t *reports = calloc(reading->job.ranks + 1, sizeof *reports), *mine = reports + reading->job.ranks;
    if (!reports)
        abort(); /* a few kilobytes: nothing would work after this, and the other ranks are in the meeting */
    mine->status = status;
    snprintf(mine->sentence, sizeof mine->sentence, "%s", status == LODE_OK ? "" : lode_error_message());
    for (uint32_t i = 0; i < n; i++)
        mine->sums[i] = sums[i];
    MPI_Iallgather(mine, sizeof *mine, MPI_BYTE, reports, sizeof *reports, MPI_BYTE, MPI_COMM_WORLD, &request);
    if (!complete(reading, &request)) /* their memory is MPI's for ever */
        return lode_fail(LODE_ERR_PEER_LOST, "a rank of this job has died");
    status = take_reports(reports, reading->job.ranks, sums, n);
    free(reports);
    return status;
}

/* --------------------------------------------------------------- serve, leave */

/*
 * Whether all ranks have come to their end; then they have one exit code, the highest.
 * @param follow  for as long as the first one lives, else not for long
 */
static bool all_end(lode_reading_t *reading, bool follow, int *code)
{
    MPI_Request meeting;
    int there = 0, more = 0, mine = *code, highest = mine;
    bool whole = intact(reading) &&
                 MPI_Iallreduce(&mine, &highest, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD, &meeting) == MPI_SUCCESS;
    uint64_t end = lode_now_ns() + TOGETHER_NS;
    while (!there && lode_fabric_alive(reading->cluster->fabric, 0) &&
           (follow || (lode_now_ns() < end && intact(reading)))) {
        if (whole && intact(reading))
            MPI_Test(&meeting, &there, MPI_STATUS_IGNORE);
        else
            whole = false;
        if (follow && lode_client_caught())
            follow = false; /* the first one was told as well */
        if (follow && !there)
            lode_cluster_tend(reading->cluster, 500, &more);
        nanosleep(&(struct timespec){.tv_nsec = there || more ? 1 : 1000000}, NULL);
    }
    if (there)
        *code = highest;
    return there;
}

void lode_reading_free(lode_reading_t *reading)
{
    lode_reader_close(&reading->reader);
    lode_config_destroy(&reading->config);
    lode_corpus_free(&reading->corpus);
    free(reading->ranks_of);
    free(reading->paths.at);
    if (reading->options.values)
        lode_bench_options_free(&reading->options);
    *reading = (lode_reading_t){.client = reading->client};
}

int lode_reading_leave(lode_reading_t *reading, int code)
{
    lode_reader_close(&reading->reader); /* its handles are the cluster's */
    if (reading->cluster && reading->job.ranks > 1 && !all_end(reading, reading->job.rank > 0, &code)) {
        fflush(NULL);
        _exit(code); /* MPI would wait for the dead */
    }
    if (reading->cluster)
        lode_cluster_leave(&reading->cluster);
    lode_reading_free(reading);
    if (!reading->client)
        lode_job_end();
    return code;
}
