/* SPDX-License-Identifier: Apache-2.0 */
/* A client of a running service: puts a document, attends to it, and drops it. No MPI.
 *   LODEMARK_CLUSTER=lode.contact LODEMARK_TOKEN_FILE=lode.token ./client
 * Build: cc client.c $(pkg-config --cflags --libs lodemark) */
#include <lodemark.h>
#include <stdio.h>
#include <stdlib.h>

enum { TOKENS = 5000, HEADS = 8, KV_HEADS = 2, DIM = 64 };

#define TRY(call)                                                                                     \
    do {                                                                                              \
        lode_status_t status = (call);                                                                \
        if (status != LODE_OK) {                                                                      \
            fprintf(stderr, "%s: %s: %s\n", #call, lode_status_string(status), lode_error_message()); \
            exit(1);                                                                                  \
        }                                                                                             \
    } while (0)

static float *noise(size_t n, unsigned seed) /* where an engine would have keys, values and queries */
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; x && i < n; i++)
        x[i] = (float)rand_r(&seed) / (float)RAND_MAX * 4 - 2;
    return x;
}

int main(void)
{
    lode_config_h config;
    lode_cluster_h cluster;
    lode_block_h document;
    lode_view_h view;
    lode_step_stats_t stats;
    lode_geometry_t geometry = {
        .layers = 1, .query_heads = HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .rope = {.theta = 10000}};
    TRY(lode_config_create(&config));
    TRY(lode_cluster_connect(config, NULL, NULL, &cluster)); /* where, and the token: from the environment */
    TRY(lode_cluster_shape(cluster, &geometry)); /* the first client says the model; later ones must agree */

    lode_block_params_t params = {.name = "note", .format = LODE_FORMAT_FP8};
    float *k = noise((size_t)TOKENS * KV_HEADS * DIM, 1), *v = noise((size_t)TOKENS * KV_HEADS * DIM, 2);
    TRY(lode_landmark_parse("landmark2", &params.landmark));
    TRY(lode_block_create(cluster, &params, &document));
    TRY(lode_block_append(document, 0, TOKENS, LODE_FP32, k, v));
    TRY(lode_block_seal(document)); /* from here on it outlives this client */

    lode_policy_t policy = {.select = LODE_SELECT_LANDMARK, .budget_share = 0.05, .sinks = 4, .window = 64};
    TRY(lode_view_create(cluster, &(lode_view_params_t){&document, NULL, 1, -1, 0, policy}, &view));
    float *q = noise(HEADS * DIM, 3), *out = malloc(HEADS * DIM * sizeof *out), lse[HEADS];
    lode_stream_t stream = {
        .view = view, .tokens = 1, .position = LODE_POSITION_END, .dtype = LODE_FP32, .q = q, .out = out, .lse = lse};
    TRY(lode_step(cluster, 0, &stream, 1, &stats));
    printf("%llu of %llu tokens a head, log-sum-exp of head 0 is %.3f\n", (unsigned long long)stats.budget_tokens,
           (unsigned long long)stats.visible_tokens, lse[0]);

    free(k);
    free(v);
    free(q);
    free(out);
    TRY(lode_view_destroy(&view));
    TRY(lode_block_drop(&document));
    TRY(lode_cluster_leave(&cluster));
    lode_config_destroy(&config);
    return 0;
}
