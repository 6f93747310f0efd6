/* SPDX-License-Identifier: Apache-2.0 */
/* The ranks of `lodemark ask`: join with room for the corpus, meet, serve, leave. None waits for a rank that died. */
#include <inttypes.h>
#include <math.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attend/inside.h"
#include "bench/options.h"
#include "launch/ask.h"
#include "launch/client.h"

/*
 * Nobody watches ranks that wait for the first: one that hangs must be noticed. But reading in keeps all cores busy for
 * long, maybe beside other work, and a rank that is merely slow must not be given up.
 */
enum { HEARTBEAT_MS = 250, SUSPECT_MS = 15000 };
/* How long ranks that end wait for each other. */
#define TOGETHER_NS UINT64_C(10000000000)
enum { SLAB_BYTES = 4 << 20, MEET_SUMS = 8, SPARE_BLOCKS = 64, LEAST_BLOCKS = 4096 };

/* ------------------------------------------------------------------------ room */

typedef struct demand {
    uint64_t pages, blocks; /* pages of one layer */
} demand_t;

/* Of this rank's documents. Blocks of the same text are counted twice: too much room is no harm. */
static lode_status_t count_demand(const lode_ask_t *ask, demand_t *demand)
{
    for (uint32_t i = 0; i < ask->corpus.count; i++) {
        const lode_document_t *document = &ask->corpus.documents[i];
        lode_tokens_t tokens = {0};
        size_t *ends = NULL, pieces = 0, begin = 0;
        if (ask->ranks_of[i] != ask->job.rank)
            continue;
        lode_status_t status = lode_manner_document(lode_reader_manner(ask->reader), lode_reader_tokenizer(ask->reader),
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

/* A rank's share of all pages with six deviations of the hashing, slabs that are begun, and questions. */
static uint64_t wanted_arena(const lode_ask_t *ask, const demand_t *all)
{
    const lode_geometry_t *g = &lode_model_info(lode_reader_model(ask->reader))->geometry;
    double replicas = (double)strtoull(lode_config_get(ask->config, "replicas"), NULL, 10);
    double question = (lode_reader_manner(ask->reader)->range + ask->wish.asking.most_tokens) / LODE_PAGE_TOKENS + 2;
    double pages = ((double)all->pages + question) * g->layers * replicas / ask->job.ranks;
    pages += 6 * sqrt(pages) + 4;
    size_t page = lode_page_bytes(ask->wish.reader.format, g->head_dim, g->kv_heads);
    uint64_t a_slab = page < SLAB_BYTES ? SLAB_BYTES / page : 1, slabs = (uint64_t)pages / a_slab + 2;
    return (slabs * (page < SLAB_BYTES ? SLAB_BYTES : page) + (16u << 20)) & ~(uint64_t)((2 << 20) - 1);
}

static lode_status_t set_count(lode_ask_t *ask, const char *name, const char *variable, uint64_t value)
{
    char text[32];
    if (lode_bench_given(&ask->wish.options, name, variable))
        return LODE_OK;
    snprintf(text, sizeof text, "%" PRIu64, value);
    return lode_config_set(ask->config, name, text);
}

/* Where the user did not say otherwise, the cluster is as large as the corpus wants it. */
static lode_status_t configure(lode_ask_t *ask, const demand_t *all)
{
    uint64_t blocks = all->blocks + SPARE_BLOCKS;
    LODE_TRY(set_count(ask, "blocks", "LODEMARK_BLOCKS", blocks < LEAST_BLOCKS ? LEAST_BLOCKS : blocks));
    LODE_TRY(set_count(ask, "arena", "LODEMARK_ARENA", wanted_arena(ask, all)));
    if (ask->job.ranks == 1)
        return LODE_OK;
    LODE_TRY(set_count(ask, "heartbeat", "LODEMARK_HEARTBEAT", HEARTBEAT_MS));
    LODE_TRY(set_count(ask, "suspect", "LODEMARK_SUSPECT", SUSPECT_MS));
    return set_count(ask, "lease", "LODEMARK_LEASE", SUSPECT_MS);
}

/* All ranks must mean the same documents, or the first would ask of some that nobody has read in. */
static lode_status_t compare_corpora(const lode_ask_t *ask)
{
    uint64_t mine = lode_ask_corpus_digest(&ask->corpus), first = mine;
    if (ask->job.ranks > 1)
        MPI_Bcast(&first, 1, MPI_UINT64_T, 0, MPI_COMM_WORLD);
    if (first != mine)
        return lode_fail(LODE_ERR_INVALID,
                         "rank %u finds other documents than rank 0: all hosts must see the same files", ask->job.rank);
    return LODE_OK;
}

/* ------------------------------------------------------------------------ join */

static lode_status_t join_job(lode_ask_t *ask)
{
    demand_t demand = {0};
    lode_status_t status = compare_corpora(ask);
    if (status == LODE_OK)
        status = count_demand(ask, &demand);
    LODE_TRY(lode_job_agree(status));
    lode_job_sum_counts(&ask->job, &demand.pages, 1);
    lode_job_sum_counts(&ask->job, &demand.blocks, 1);
    status = lode_bench_config(&ask->wish.options, &ask->config);
    if (status == LODE_OK)
        status = configure(ask, &demand);
    LODE_TRY(lode_job_agree(status));
    return lode_job_agree(
        lode_cluster_join(ask->config, &lode_model_info(lode_reader_model(ask->reader))->geometry, &ask->cluster));
}

static lode_status_t join_service(lode_ask_t *ask)
{
    LODE_TRY(lode_bench_config(&ask->wish.options, &ask->config));
    return lode_cluster_connect(ask->config, lode_options_get(&ask->wish.options, "cluster"),
                                lode_options_get(&ask->wish.options, "token-file"), &ask->cluster);
}

lode_status_t lode_ask_join(lode_ask_t *ask)
{
    LODE_TRY(ask->wish.client ? join_service(ask) : join_job(ask));
    return lode_ask_meet(ask, lode_reader_attach(ask->reader, ask->cluster), NULL, 0);
}

/* ------------------------------------------------------------------------ meet */

typedef struct report {
    int status;
    char sentence[512];
    uint64_t sums[MEET_SUMS];
} report_t;

static bool intact(const lode_ask_t *ask)
{
    return lode_fabric_intact(ask->cluster->fabric);
}

/* @return false if a rank died first: then MPI may still write to what was handed to it */
static bool complete(const lode_ask_t *ask, MPI_Request *request)
{
    int there = 0;
    for (;;) {
        MPI_Test(request, &there, MPI_STATUS_IGNORE);
        if (there || !intact(ask))
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

lode_status_t lode_ask_meet(lode_ask_t *ask, lode_status_t status, uint64_t *sums, uint32_t n)
{
    MPI_Request request;
    if (ask->job.ranks < 2)
        return status;
    if (status == LODE_ERR_MPI || !intact(ask))
        return status == LODE_OK ? lode_fail(LODE_ERR_PEER_LOST, "a rank of this job has died") : status;
    report_t *reports = calloc(ask->job.ranks + 1, sizeof *reports), *mine = reports + ask->job.ranks;
    if (!reports)
        abort(); /* a few kilobytes: nothing would work after this, and the other ranks are in the meeting */
    mine->status = status;
    snprintf(mine->sentence, sizeof mine->sentence, "%s", status == LODE_OK ? "" : lode_error_message());
    for (uint32_t i = 0; i < n; i++)
        mine->sums[i] = sums[i];
    MPI_Iallgather(mine, sizeof *mine, MPI_BYTE, reports, sizeof *reports, MPI_BYTE, MPI_COMM_WORLD, &request);
    if (!complete(ask, &request)) /* their memory is MPI's for ever */
        return lode_fail(LODE_ERR_PEER_LOST, "a rank of this job has died");
    status = take_reports(reports, ask->job.ranks, sums, n);
    free(reports);
    return status;
}

/* --------------------------------------------------------------- serve, leave */

/* Whether all ranks have come to their end. @p follow: for as long as the first one lives, else not for long */
static bool all_end(lode_ask_t *ask, bool follow)
{
    MPI_Request barrier;
    int there = 0, more = 0;
    bool whole = intact(ask) && MPI_Ibarrier(MPI_COMM_WORLD, &barrier) == MPI_SUCCESS;
    uint64_t end = lode_now_ns() + TOGETHER_NS;
    while (!there && lode_fabric_alive(ask->cluster->fabric, 0) && (follow || (lode_now_ns() < end && intact(ask)))) {
        if (whole && intact(ask))
            MPI_Test(&barrier, &there, MPI_STATUS_IGNORE);
        else
            whole = false;
        if (follow && lode_client_caught())
            follow = false; /* the first one was told as well */
        if (follow && !there)
            lode_cluster_tend(ask->cluster, 500, &more);
        nanosleep(&(struct timespec){.tv_nsec = there || more ? 1 : 1000000}, NULL);
    }
    return there;
}

static void free_all(lode_ask_t *ask)
{
    lode_reader_close(&ask->reader);
    lode_config_destroy(&ask->config);
    lode_ask_corpus_free(&ask->corpus);
    free(ask->ranks_of);
    json_decref(ask->answers);
    lode_ask_wish_free(&ask->wish);
}

int lode_ask_leave(lode_ask_t *ask, int code)
{
    bool together = true;
    lode_reader_close(&ask->reader); /* its handles are the cluster's */
    if (ask->cluster && ask->job.ranks > 1) {
        together = all_end(ask, ask->job.rank > 0);
        if (!together) {
            fflush(NULL);
            _exit(code); /* MPI would wait for the dead */
        }
    }
    if (ask->cluster)
        lode_cluster_leave(&ask->cluster);
    free_all(ask);
    if (!ask->wish.client)
        lode_job_end();
    return code;
}
