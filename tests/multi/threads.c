/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What steps choose and compute is the same bit by bit for 1, 2 and 3 threads: whole heads, slices of a head that
 * threads share, rows that see alike and rows that do not, tails, many short blocks.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "attend/step.h"
#include "tests/multi/steps.h"

enum { LAYERS = 1, QUERY_HEADS = 12, KV_HEADS = 3, DIM = 64, TOKENS = 9000, MOST_ROWS = 6, CASES = 10, SHORT = 150 };
static const uint32_t thread_counts[] = {1, 2, 3};

/* What a case's step gave. */
typedef struct result {
    lode_step_stats_t stats;
    float out[2][MOST_ROWS][QUERY_HEADS * DIM], lse[2][MOST_ROWS][QUERY_HEADS];
} result_t;

static lode_block_h put_block(lode_cluster_h cluster, const char *name, uint64_t tokens, const char *landmark)
{
    lode_block_params_t params = {.name = name, .format = LODE_FORMAT_FP8};
    lode_block_h block;
    size_t n = tokens * KV_HEADS * DIM;
    float *k = malloc(n * sizeof *k), *v = malloc(n * sizeof *v);
    for (size_t i = 0; k && v && i < n; i++) {
        k[i] = value_at(1, i);
        v[i] = value_at(2, i);
    }
    MUST(lode_landmark_parse(landmark, &params.landmark));
    MUST(lode_block_create(cluster, &params, &block));
    MUST(lode_block_append(block, 0, tokens, LODE_FP32, k, v));
    free(k);
    free(v);
    return block;
}

/* One stream of a single row over the blocks, or before it one of several. */
static void step(lode_cluster_h cluster, lode_block_h *blocks, uint32_t count, const lode_policy_t *policy,
                 int64_t position, uint32_t first, result_t *result)
{
    static float q[2][MOST_ROWS][QUERY_HEADS * DIM];
    lode_view_params_t params = {blocks, NULL, count, -1, 0, *policy};
    lode_stream_t streams[2] = {{.tokens = MOST_ROWS, .position = position}, {.tokens = 1, .position = position}};
    for (size_t i = 0; i < sizeof q / sizeof(float); i++)
        (&q[0][0][0])[i] = 3 * value_at(3, i);
    for (int s = 0; s < 2; s++) {
        MUST(lode_view_create(cluster, &params, &streams[s].view));
        streams[s].dtype = LODE_FP32;
        streams[s].q = q[s];
        streams[s].out = result->out[s][0];
        streams[s].lse = result->lse[s][0];
    }
    MUST(lode_step(cluster, 0, streams + first, 2 - first, &result->stats));
    if (result->stats.records_wanted == 0)
        MUST(lode_fail(LODE_ERR_INTERNAL, "a step that chose nothing compares nothing"));
    for (int s = 0; s < 2; s++)
        MUST(lode_view_destroy(&streams[s].view));
}

static void run_cases(lode_cluster_h cluster, lode_block_h *blocks, lode_block_h coarse, lode_block_h *brief,
                      result_t results[CASES])
{
    lode_policy_t policy = {.budget_share = 0.2, .sinks = 4, .window = 100, .lost = LODE_LOST_FAIL};
    lode_policy_t dense = {.select = LODE_SELECT_DENSE, .budget_share = 1}, mean = policy;
    mean.merge = LODE_MERGE_MEAN;
    int64_t inside = TOKENS - MOST_ROWS / 2; /* some rows see all, some do not */
    memset(results, 0, CASES * sizeof *results);
    step(cluster, blocks, 2, &policy, LODE_POSITION_END, 0, &results[0]);
    step(cluster, blocks, 2, &mean, LODE_POSITION_END, 0, &results[1]);
    step(cluster, blocks, 1, &policy, inside, 0, &results[2]);
    step(cluster, blocks, 1, &dense, inside, 0, &results[3]);
    step(cluster, &coarse, 1, &policy, LODE_POSITION_END, 0, &results[4]);
    policy.budget_share = 0.9; /* several portions a head */
    step(cluster, blocks, 2, &policy, LODE_POSITION_END, 0, &results[5]);
    /* three heads of one row: two threads share the third */
    step(cluster, blocks, 2, &policy, LODE_POSITION_END, 1, &results[6]);
    step(cluster, blocks, 2, &dense, LODE_POSITION_END, 1, &results[7]);
    step(cluster, brief, SHORT, &policy, LODE_POSITION_END, 0, &results[8]);
    step(cluster, brief, SHORT, &policy, LODE_POSITION_END, 1, &results[9]);
}

static int differ(const result_t *a, const result_t *b)
{
    return a->stats.selected_digest != b->stats.selected_digest || a->stats.records_wanted != b->stats.records_wanted ||
           memcmp(a->out, b->out, sizeof a->out) != 0 || memcmp(a->lse, b->lse, sizeof a->lse) != 0;
}

/* The stages' times are shares of the step's, also where threads were at several stages at once. */
static int overlong(const lode_step_stats_t *stats)
{
    uint64_t sum = 0;
    for (int i = 0; i < LODE_STAGE_COUNT; i++)
        sum += stats->stage_ns[i];
    return sum == 0 || sum > stats->step_ns;
}

static void set_threads(lode_cluster_h cluster, uint32_t threads)
{
    lode_team_params_t params = {.threads = threads, .spin_us = 20};
    uint64_t serial = cluster->step->serial; /* blocks remember it */
    lode_step_state_destroy(&cluster->step);
    lode_team_destroy(&cluster->team);
    MUST(lode_team_create(&params, &cluster->team));
    MUST(lode_step_state_create(cluster, &cluster->step));
    cluster->step->serial = serial;
}

int main(int argc, char **argv)
{
    static result_t results[CASES], first[CASES];
    int rank, bad = 0;
    lode_config_h config;
    lode_cluster_h cluster;
    const lode_geometry_t geometry = {
        .layers = LAYERS, .query_heads = QUERY_HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .rope = {.theta = 10000}};
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &(int){0});
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MUST(lode_config_create(&config));
    MUST(lode_config_set(config, "arena", "64MiB"));
    MUST(lode_config_set(config, "hot-cache", "0"));
    MUST(lode_cluster_join(config, &geometry, &cluster));
    char name[3][32];
    for (int i = 0; i < 3; i++)
        snprintf(name[i], sizeof name[i], "document %d of %d", i, rank);
    lode_block_h blocks[] = {put_block(cluster, name[0], TOKENS, "landmark2"), /* and with a tail */
                             put_block(cluster, name[1], 4000, "landmark2")};
    lode_block_h coarse = put_block(cluster, name[2], TOKENS, "landmark8:c2"), brief[SHORT];
    for (uint32_t i = 0; i < SHORT; i++) {
        snprintf(name[0], sizeof name[0], "short %u of %d", i, rank);
        brief[i] = put_block(cluster, name[0], 64 + i % 5 * 64, "landmark2");
    }
    for (size_t i = 0; i < sizeof thread_counts / sizeof *thread_counts; i++) {
        set_threads(cluster, thread_counts[i]);
        run_cases(cluster, blocks, coarse, brief, i ? results : first);
        for (int c = 0; c < CASES; c++) {
            if ((i && differ(&results[c], &first[c])) || overlong(i ? &results[c].stats : &first[c].stats)) {
                fprintf(stderr, "rank %d, case %d: %u threads gave something else than one, or too long stages\n", rank,
                        c, thread_counts[i]);
                bad = 1;
            }
        }
    }
    MPI_Barrier(MPI_COMM_WORLD);
    for (int i = 0; i < 2; i++)
        MUST(lode_block_close(&blocks[i]));
    MUST(lode_block_close(&coarse));
    for (uint32_t i = 0; i < SHORT; i++)
        MUST(lode_block_close(&brief[i]));
    MUST(lode_cluster_leave(&cluster));
    lode_config_destroy(&config);
    MPI_Finalize();
    return bad;
}
