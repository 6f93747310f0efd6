/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A step of a size seen before allocates nothing: every call of an allocator from our own code, by the threads that
 * step, is counted (the linker sends them here; libraries keep theirs).
 */
#include <mpi.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "base/team.h"
#include "tests/multi/steps.h"

static _Atomic uint64_t allocations;
static _Thread_local enum { KIND_UNKNOWN, KIND_STEPS, KIND_OTHER } thread_kind;

/* The main thread and those of the team, not the fabric's. */
static void count_call(void)
{
    char name[16] = "";
    if (thread_kind == KIND_UNKNOWN)
        thread_kind = pthread_getname_np(pthread_self(), name, sizeof name) == 0 && strcmp(name, LODE_TEAM_NAME) == 0
                          ? KIND_STEPS
                          : KIND_OTHER;
    if (thread_kind == KIND_STEPS)
        allocations++;
}

void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t bytes);
void *__real_realloc(void *memory, size_t bytes);
void *__real_aligned_alloc(size_t alignment, size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t bytes);
void *__wrap_realloc(void *memory, size_t bytes);
void *__wrap_aligned_alloc(size_t alignment, size_t bytes);

void *__wrap_malloc(size_t bytes)
{
    count_call();
    return __real_malloc(bytes);
}

void *__wrap_calloc(size_t count, size_t bytes)
{
    count_call();
    return __real_calloc(count, bytes);
}

void *__wrap_realloc(void *memory, size_t bytes)
{
    count_call();
    return __real_realloc(memory, bytes);
}

void *__wrap_aligned_alloc(size_t alignment, size_t bytes)
{
    count_call();
    return __real_aligned_alloc(alignment, bytes);
}

enum { LAYERS = 2, QUERY_HEADS = 8, KV_HEADS = 2, DIM = 64, TOKENS = 6000, STEPS = 24, WARM = 6 };

static float *tensor(uint64_t seed, size_t n)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; x && i < n; i++)
        x[i] = value_at(seed, i);
    return x;
}

static lode_block_h put_block(lode_cluster_h cluster, const char *name, uint64_t tokens)
{
    lode_block_params_t params = {.name = name, .format = LODE_FORMAT_FP8};
    lode_block_h block;
    MUST(lode_landmark_parse("landmark2", &params.landmark));
    MUST(lode_block_create(cluster, &params, &block));
    float *k = tensor(1, tokens * KV_HEADS * DIM + 1), *v = tensor(2, tokens * KV_HEADS * DIM + 1);
    for (uint32_t layer = 0; layer < LAYERS && tokens; layer++)
        MUST(lode_block_append(block, layer, tokens, LODE_FP32, k, v));
    free(k);
    free(v);
    return block;
}

static lode_view_h make_view(lode_cluster_h cluster, lode_block_h *blocks, uint32_t count, int32_t write)
{
    lode_view_params_t params = {
        blocks, NULL, count, write, 0, {.budget_share = 0.05, .sinks = 4, .window = 32, .lost = LODE_LOST_FAIL}};
    lode_view_h view;
    MUST(lode_view_create(cluster, &params, &view));
    return view;
}

/* Two streams, of which one writes; its tail stays shorter than a page, since a full page is sent away. */
static uint64_t steps(lode_cluster_h cluster, lode_view_h reads, lode_view_h writes)
{
    static float q[STEPS][2][QUERY_HEADS * DIM], k[KV_HEADS * DIM], out[2][QUERY_HEADS * DIM], lse[2][QUERY_HEADS];
    uint64_t counted = 0;
    for (size_t i = 0; i < sizeof q / sizeof(float); i++)
        (&q[0][0][0])[i] = value_at(3, i);
    for (size_t i = 0; i < sizeof k / sizeof *k; i++)
        k[i] = value_at(4, i);
    for (uint32_t i = 0; i < STEPS; i++) {
        lode_stream_t streams[] = {
            {.view = reads, .tokens = 1, .position = LODE_POSITION_END, .q = q[i][0], .out = out[0], .lse = lse[0]},
            {.view = writes, .tokens = 1, .position = LODE_POSITION_END, .q = q[i][1], .k = k, .v = k, .out = out[1]}};
        streams[0].dtype = streams[1].dtype = LODE_FP32;
        uint64_t before = allocations;
        for (uint32_t layer = 0; layer < LAYERS; layer++)
            MUST(lode_step(cluster, layer, streams, 2, NULL));
        if (i >= WARM)
            counted += allocations - before;
    }
    return counted;
}

int main(int argc, char **argv)
{
    int rank;
    lode_config_h config;
    lode_cluster_h cluster;
    const lode_geometry_t geometry = {
        .layers = LAYERS, .query_heads = QUERY_HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .rope = {.theta = 10000}};
    thread_kind = KIND_STEPS;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &(int){0});
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MUST(lode_config_create(&config));
    MUST(lode_config_set(config, "arena", "32MiB"));
    MUST(lode_config_set(config, "hot-cache", "256KiB"));
    MUST(lode_cluster_join(config, &geometry, &cluster));
    char name[2][32];
    snprintf(name[0], sizeof name[0], "document %d", rank);
    snprintf(name[1], sizeof name[1], "answer %d", rank);
    lode_block_h blocks[] = {put_block(cluster, name[0], TOKENS), put_block(cluster, name[1], 0)};
    uint64_t joined = allocations;
    lode_view_h reads = make_view(cluster, blocks, 1, -1), writes = make_view(cluster, blocks, 2, 1);
    uint64_t counted = steps(cluster, reads, writes);
    int bad = counted > 0 || joined == 0; /* none at all would mean that they are not counted */
    if (bad)
        fprintf(stderr, "rank %d: %llu allocations in steps, %llu before\n", rank, (unsigned long long)counted,
                (unsigned long long)joined);
    MPI_Barrier(MPI_COMM_WORLD);
    MUST(lode_view_destroy(&reads));
    MUST(lode_view_destroy(&writes));
    for (int i = 0; i < 2; i++)
        MUST(lode_block_close(&blocks[i]));
    MUST(lode_cluster_leave(&cluster));
    lode_config_destroy(&config);
    MPI_Finalize();
    return bad;
}
