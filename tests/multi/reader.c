/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Models whose attention is lode_step(), beside their references: in one block; and with the prompt in a sealed block
 * of another rank, the tokens after it in one of this rank's own. Arguments: folders of models.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reader_dense.h"
#include "steps.h"

typedef struct job {
    lode_cluster_h cluster;
    lode_model_h model;
    const char *folder;
    int rank, ranks;
} job_t;

static lode_status_t step(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count)
{
    return lode_step(self, layer, streams, count, NULL);
}

static lode_block_h new_block(const job_t *job, const char *what, int rank)
{
    char name[64];
    lode_block_h block;
    lode_block_params_t params = {.name = name, .format = LODE_FORMAT_BF16};
    snprintf(name, sizeof name, "%s of %d", what, rank);
    MUST(lode_landmark_parse("landmark2", &params.landmark));
    MUST(lode_block_create(job->cluster, &params, &block));
    return block;
}

static lode_view_h view_of(const job_t *job, const lode_block_h *blocks, uint32_t count)
{
    lode_view_h view;
    const lode_view_params_t params = {.blocks = blocks,
                                       .count = count,
                                       .write_block = (int32_t)count - 1,
                                       .policy = {.select = LODE_SELECT_DENSE, .budget_share = 1}};
    MUST(lode_view_create(job->cluster, &params, &view));
    return view;
}

static int judge(const job_t *job, const parity_t *parity)
{
    printf("%s, %d ranks: logits within %.5f, %u of %u tokens differ\n", job->folder, job->ranks, parity->error,
           parity->different, parity->tokens);
    return !(parity->error < PARITY_TOLERANCE) || parity->different || parity->tokens != 200;
}

static int one_block(const job_t *job)
{
    const lode_attention_t attention = {job->cluster, step};
    parity_t parity;
    lode_block_h block = new_block(job, "all", job->rank);
    lode_view_h view = view_of(job, &block, 1);
    parity_open(&parity, job->folder, job->model, true);
    MUST(parity_prompt(&parity, &attention, view));
    MUST(parity_greedy(&parity, &attention, view));
    int bad = judge(job, &parity);
    parity_close(&parity);
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&block));
    return bad;
}

/* The first rank goes on where the last one's block ends. */
static int go_on(const job_t *job, parity_t *parity)
{
    const lode_attention_t attention = {job->cluster, step};
    char name[64];
    lode_block_h blocks[2];
    snprintf(name, sizeof name, "prompt of %d", job->ranks - 1);
    MUST(lode_block_open(job->cluster, name, &blocks[0]));
    blocks[1] = new_block(job, "answer", job->rank);
    lode_view_h view = view_of(job, blocks, 2);
    parity->base = parity->prompt_count;
    MUST(parity_greedy(parity, &attention, view));
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&blocks[1]));
    MUST(lode_block_close(&blocks[0]));
    return judge(job, parity);
}

static int two_blocks(const job_t *job)
{
    const lode_attention_t attention = {job->cluster, step};
    int bad = 0;
    parity_t parity;
    lode_block_h prompt = new_block(job, "prompt", job->rank);
    lode_view_h view = view_of(job, &prompt, 1);
    parity_open(&parity, job->folder, job->model, true);
    MUST(parity_prompt(&parity, &attention, view));
    MUST(lode_view_destroy(&view));
    MUST(lode_block_seal(prompt));
    MPI_Barrier(MPI_COMM_WORLD);
    if (job->rank == 0)
        bad = go_on(job, &parity);
    parity_close(&parity);
    MPI_Barrier(MPI_COMM_WORLD);
    MUST(lode_block_drop(&prompt));
    return bad;
}

static int check(lode_config_h config, job_t *job)
{
    MUST(lode_model_open(job->folder, 1, NULL, &job->model));
    MUST(lode_cluster_join(config, &lode_model_info(job->model)->geometry, &job->cluster));
    int bad = job->ranks == 1 ? one_block(job) : two_blocks(job);
    MPI_Barrier(MPI_COMM_WORLD);
    MUST(lode_cluster_leave(&job->cluster));
    lode_model_close(&job->model);
    return bad;
}

int main(int argc, char **argv)
{
    lode_config_h config;
    job_t job = {0};
    int bad = argc < 2;
    static char shipped[4096];
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &(int){0});
    MPI_Comm_rank(MPI_COMM_WORLD, &job.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &job.ranks);
    MUST(lode_config_create(&config));
    MUST(lode_config_set(config, "arena", "64MiB"));
    for (int i = 1; i < argc; i++) {
        snprintf(shipped, sizeof shipped, "%s/model.safetensors", argv[i]);
        job.folder = argv[i];
        if (strstr(argv[i], "reader/model") && access(shipped, R_OK) != 0)
            continue; /* none yet */
        bad |= check(config, &job);
    }
    lode_config_destroy(&config);
    MPI_Finalize();
    return bad;
}
