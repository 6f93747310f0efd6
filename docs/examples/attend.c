/* SPDX-License-Identifier: Apache-2.0 */
/* A document written by rank 0, attended to by every rank: mpirun -n 4 ./attend
 * Build: cc attend.c $(pkg-config --cflags --libs lodemark) $(mpicc --showme:compile --showme:link) -lm */
#include <lodemark.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 10000, HEADS = 8, KV_HEADS = 2, DIM = 128 };

#define TRY(call)                                                                                     \
    do {                                                                                              \
        lode_status_t status = (call);                                                                \
        if (status != LODE_OK) {                                                                      \
            fprintf(stderr, "%s: %s: %s\n", #call, lode_status_string(status), lode_error_message()); \
            MPI_Abort(MPI_COMM_WORLD, 1);                                                             \
        }                                                                                             \
    } while (0)

static float *noise(size_t n, unsigned seed) /* where an engine would have keys, values and queries */
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; x && i < n; i++)
        x[i] = (float)rand_r(&seed) / (float)RAND_MAX * 4 - 2;
    return x;
}

int main(int argc, char **argv)
{
    lode_config_h config;
    lode_cluster_h cluster;
    lode_block_h document;
    lode_view_h view;
    lode_cluster_info_t info;
    lode_step_stats_t stats;
    lode_geometry_t geometry = {
        .layers = 1, .query_heads = HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .rope = {.theta = 500000}};
    MPI_Init(&argc, &argv);
    TRY(lode_config_create(&config)); /* defaults and LODEMARK_* variables */
    TRY(lode_cluster_join(config, &geometry, &cluster));
    TRY(lode_cluster_query(cluster, &info));

    if (info.rank == 0) { /* one writer; its pages spread over all ranks */
        lode_block_params_t params = {.name = "document", .format = LODE_FORMAT_FP8};
        float *k = noise((size_t)TOKENS * KV_HEADS * DIM, 1), *v = noise((size_t)TOKENS * KV_HEADS * DIM, 2);
        TRY(lode_landmark_parse("landmark2", &params.landmark));
        TRY(lode_block_create(cluster, &params, &document));
        TRY(lode_block_append(document, 0, TOKENS, LODE_FP32, k, v));
        TRY(lode_block_seal(document));
        free(k);
        free(v);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (info.rank != 0)
        TRY(lode_block_open(cluster, "document", &document));

    lode_policy_t policy = {.select = LODE_SELECT_LANDMARK, .budget_share = 0.03125, .sinks = 4, .window = 64};
    TRY(lode_view_create(cluster, &(lode_view_params_t){&document, NULL, 1, -1, 0, policy}, &view));
    float *q = noise(HEADS * DIM, 3 + info.rank), *out = malloc(HEADS * DIM * sizeof *out), lse[HEADS];
    lode_stream_t stream = {
        .view = view, .tokens = 1, .position = LODE_POSITION_END, .dtype = LODE_FP32, .q = q, .out = out, .lse = lse};
    TRY(lode_step(cluster, 0, &stream, 1, &stats));
    printf(
        "rank %u chose %llu of %llu tokens a head, fetched %llu bytes from %u owners, log-sum-exp of head 0 is %.3f\n",
        info.rank, (unsigned long long)stats.budget_tokens, (unsigned long long)stats.visible_tokens,
        (unsigned long long)stats.bytes_fetched, stats.owners_asked, lse[0]);

    free(q);
    free(out);
    TRY(lode_view_destroy(&view));
    TRY(lode_block_close(&document));
    TRY(lode_cluster_leave(&cluster));
    lode_config_destroy(&config);
    MPI_Finalize();
    return 0;
}
