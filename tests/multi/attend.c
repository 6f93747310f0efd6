/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks, views and steps over 1 to 4 ranks, against attention in double over freshly rotated copies.
 * A check that fails on one rank is noted and agreed on at the end: an assertion there would leave the others waiting.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"
#include "kernels/kernels.h"
#include "lodemark.h"
#include "tests/multi/cases.h"
#include "tests/multi/steps.h"

enum { TAKEN_MAX = 1024 };

static int failures;
static int rank, ranks;
static void *taken[TAKEN_MAX];
static int taken_count;

/* Memory of a test, given back at its end. */
static void *keep(size_t bytes)
{
    if (taken_count == TAKEN_MAX || !(taken[taken_count] = malloc(bytes)))
        MPI_Abort(MPI_COMM_WORLD, 1);
    return taken[taken_count++];
}

static void tear_down(void)
{
    while (taken_count)
        free(taken[--taken_count]);
}

static void agree(void)
{
    EVERYWHERE(failures == 0);
}

/* ------------------------------------------------------------------ a model */

enum { QUERY_HEADS = 4, KV_HEADS = 2, GROUP = QUERY_HEADS / KV_HEADS };

static lode_geometry_t geometry_of(uint32_t layers, uint32_t dim)
{
    return (lode_geometry_t){
        .layers = layers, .query_heads = QUERY_HEADS, .kv_heads = KV_HEADS, .head_dim = dim, .rope = {.theta = 10000}};
}

static lode_cluster_h join(const lode_geometry_t *geometry, const char *const *settings)
{
    static const char *const small[] = {"arena", "32MiB", "landing", "1MiB", NULL};
    lode_cluster_h cluster;
    MUST(join_by(geometry, small, settings, &cluster));
    return cluster;
}

/* A normal deviate of a place in a tensor, rounded to bf16, so that bf16 records hold it exactly. */
static float normal_at(uint64_t seed, uint64_t i)
{
    double u = ((double)(lode_mix(seed, 2 * i) >> 11) + 0.5) * 0x1p-53;
    double w = ((double)(lode_mix(seed, 2 * i + 1) >> 11) + 0.5) * 0x1p-53;
    float x = (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * w));
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &bits, 4);
    return x;
}

static float *tensor(uint64_t seed, size_t n)
{
    float *x = keep((n + 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = normal_at(seed, i);
    return x;
}

/* One block as the reference holds it: K and V (tokens, KV_HEADS, D) at an offset. */
typedef struct model_block {
    const float *k, *v;
    uint64_t tokens;
    int64_t offset;
} model_block_t;

static void rotate_double(const double *freq, uint32_t dim, double delta, const float *in, double *out)
{
    for (uint32_t i = 0; i < dim / 2; i++) {
        double c = cos(freq[i] * delta), s = sin(freq[i] * delta);
        out[i] = in[i] * c - in[i + dim / 2] * s;
        out[i + dim / 2] = in[i] * s + in[i + dim / 2] * c;
    }
}

/* Dense attention of one query token, every key freshly rotated to its view position. */
static void reference(const model_block_t *blocks, uint32_t count, uint32_t dim, int64_t position, const float *q,
                      double *out, double *lse)
{
    double freq[LODE_MAX_DIM], key[LODE_MAX_DIM];
    lode_rope_t rope = {.theta = 10000};
    lode_rope_frequencies(&rope, dim, freq);
    for (uint32_t h = 0; h < QUERY_HEADS; h++) {
        double most = -INFINITY, sum = 0, *o = out + h * dim;
        memset(o, 0, dim * sizeof *o);
        for (uint32_t b = 0; b < count; b++)
            for (uint64_t t = 0; t < blocks[b].tokens && blocks[b].offset + (int64_t)t <= position; t++) {
                size_t at = (t * KV_HEADS + h / GROUP) * dim;
                double logit = 0;
                rotate_double(freq, dim, (double)blocks[b].offset, blocks[b].k + at, key);
                for (uint32_t i = 0; i < dim; i++)
                    logit += key[i] * q[h * dim + i];
                logit /= sqrt(dim);
                double grown = logit > most ? logit : most, keep = exp(most - grown), weight = exp(logit - grown);
                sum = sum * keep + weight;
                for (uint32_t i = 0; i < dim; i++)
                    o[i] = o[i] * keep + weight * blocks[b].v[at + i];
                most = grown;
            }
        for (uint32_t i = 0; i < dim; i++)
            o[i] /= sum;
        lse[h] = most + log(sum);
    }
}

static double relative_error(const float *out, const double *expected, size_t n)
{
    double error = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        error += (out[i] - expected[i]) * (out[i] - expected[i]);
        norm += expected[i] * expected[i];
    }
    return sqrt(error / norm);
}

static lode_block_h make_block(lode_cluster_h cluster, const char *name, lode_format_t format, const char *landmark)
{
    lode_block_params_t params = {.name = name, .format = format};
    lode_block_h block;
    MUST(lode_landmark_parse(landmark, &params.landmark));
    MUST(lode_block_create(cluster, &params, &block));
    return block;
}

/* Documents d0, d1 …, written by the ranks in turn, the same whatever their number; opened by all. */
static void make_documents(lode_cluster_h cluster, uint32_t count, const uint64_t *tokens, uint32_t dim,
                           lode_format_t format, const char *landmark, lode_block_h *blocks, model_block_t *models)
{
    for (uint32_t b = 0; b < count; b++) {
        size_t n = tokens[b] * KV_HEADS * dim;
        char name[32];
        snprintf(name, sizeof name, "d%u", b);
        models[b] = (model_block_t){tensor(100 + b, n), tensor(200 + b, n), tokens[b], 0};
        if ((int)b % ranks == rank) {
            blocks[b] = make_block(cluster, name, format, landmark);
            uint64_t half = tokens[b] / 3;
            MUST(lode_block_append(blocks[b], 0, half, LODE_FP32, models[b].k, models[b].v));
            MUST(lode_block_append(blocks[b], 0, tokens[b] - half, LODE_FP32, models[b].k + half * KV_HEADS * dim,
                                   models[b].v + half * KV_HEADS * dim));
            MUST(lode_block_seal(blocks[b]));
        }
    }
    MPI_Barrier(MPI_COMM_WORLD);
    for (uint32_t b = 0; b < count; b++) {
        char name[32];
        snprintf(name, sizeof name, "d%u", b);
        if ((int)b % ranks != rank)
            MUST(lode_block_open(cluster, name, &blocks[b]));
    }
}

static void close_blocks(lode_block_h *blocks, uint32_t count)
{
    for (uint32_t b = 0; b < count; b++)
        MUST(lode_block_close(&blocks[b]));
}

static lode_view_h make_view(lode_cluster_h cluster, const lode_block_h *blocks, const int64_t *offsets, uint32_t count,
                             int32_t write_block, lode_policy_t policy)
{
    lode_view_params_t params = {blocks, offsets, count, write_block, 0, policy};
    lode_view_h view;
    MUST(lode_view_create(cluster, &params, &view));
    return view;
}

static const lode_policy_t DENSE = {.select = LODE_SELECT_DENSE};

static void check_token(const model_block_t *models, uint32_t count, uint32_t dim, int64_t position, const float *q,
                        const float *out, const float *lse, double tolerance)
{
    double expected[QUERY_HEADS * LODE_MAX_DIM], expected_lse[QUERY_HEADS];
    reference(models, count, dim, position, q, expected, expected_lse);
    double error = relative_error(out, expected, QUERY_HEADS * dim);
    CHECK(error <= tolerance, "relative error %g", error);
    for (uint32_t h = 0; h < QUERY_HEADS; h++)
        CHECK(fabs(lse[h] - expected_lse[h]) <= tolerance * 3, "head %u: log-sum-exp %g, not %g", h, lse[h],
              expected_lse[h]);
}

/* -------------------------------------------------------------------- cases */

static void dense_case(uint32_t dim, lode_format_t format, double tolerance, const char *const *settings)
{
    lode_geometry_t geometry = geometry_of(1, dim);
    lode_cluster_h cluster = join(&geometry, settings);
    const uint64_t tokens[] = {700, 64, 1, 250};
    const int64_t offsets[] = {0, 700, 1000, 1001};
    lode_block_h blocks[4];
    model_block_t models[4];
    make_documents(cluster, 4, tokens, dim, format, "landmark2", blocks, models);
    for (int b = 0; b < 4; b++)
        models[b].offset = offsets[b];
    lode_view_h view = make_view(cluster, blocks, offsets, 4, -1, DENSE);
    const int64_t positions[] = {1251, 1000, 730, 3000000};
    for (int i = 0; i < 4; i++) {
        float *q = tensor(300 + i, QUERY_HEADS * dim), out[QUERY_HEADS * LODE_MAX_DIM], lse[QUERY_HEADS];
        lode_stream_t stream = {
            .view = view, .tokens = 1, .position = positions[i], .dtype = LODE_FP32, .q = q, .out = out, .lse = lse};
        lode_step_stats_t stats;
        MUST(lode_step(cluster, 0, &stream, 1, &stats));
        check_token(models, 4, dim, positions[i], q, out, lse, tolerance);
        CHECK(stats.records_local + stats.records_hit + stats.records_fetched == stats.records_wanted);
        CHECK((ranks > 1) == (stats.records_fetched + stats.records_hit > 0));
    }
    MUST(lode_view_destroy(&view));
    close_blocks(blocks, 4);
    MUST(lode_cluster_leave(&cluster));
    agree();
}

static void dense_is_exact_bf16(void)
{
    dense_case(128, LODE_FORMAT_BF16, 2e-5, NULL);
}

static void dense_is_exact_dim64_one_sided(void)
{
    dense_case(64, LODE_FORMAT_BF16, 2e-5, (const char *[]){"path", "one-sided", "hot-cache", "0", NULL});
}

static void dense_is_exact_dim256_batched(void)
{
    dense_case(256, LODE_FORMAT_BF16, 2e-5,
               (const char *[]){"path", "batched", "reply", "4KiB", "credit", "64KiB", NULL});
}

static void dense_is_near_fp8(void)
{
    dense_case(128, LODE_FORMAT_FP8, 4e-2, NULL);
}

static void dense_is_near_higgs4(void)
{
    dense_case(128, LODE_FORMAT_HIGGS4, 0.15, NULL);
}

/* What a head's chosen tokens alone would give it. @p tokens: ascending view-token indices, all in pages. */
static void check_chosen(const model_block_t *models, uint32_t count, uint32_t dim, uint32_t head, const float *q,
                         const float *out, const uint32_t *tokens, uint64_t chosen)
{
    model_block_t left[256];
    double expected[QUERY_HEADS * LODE_MAX_DIM], expected_lse[QUERY_HEADS];
    size_t row = (size_t)KV_HEADS * dim;
    float *k = keep((chosen + 1) * row * sizeof *k), *v = keep((chosen + 1) * row * sizeof *v);
    uint64_t next = 0, first = 0;
    for (uint32_t b = 0; b < count; first += models[b++].tokens) {
        left[b] = (model_block_t){k + next * row, v + next * row, 0, models[b].offset};
        for (; next < chosen && tokens[next] < first + models[b].tokens; next++, left[b].tokens++) {
            memcpy(k + next * row, models[b].k + (tokens[next] - first) * row, row * sizeof *k);
            memcpy(v + next * row, models[b].v + (tokens[next] - first) * row, row * sizeof *v);
        }
    }
    reference(left, count, dim, INT64_MAX / 2, q, expected, expected_lse);
    double error = relative_error(out + head * GROUP * dim, expected + head * GROUP * dim, GROUP * dim);
    CHECK(next == chosen && error <= 2e-5, "relative error %g over %llu tokens", error, (unsigned long long)chosen);
}

/*
 * Many short blocks, more than are attended over at once: at offsets that some share, one after another, and shuffled;
 * two views in a step, which stands elsewhere from step to step.
 */
static void short_blocks_stand_anywhere(void)
{
    enum { COUNT = 140, RANGE = 110, STEPS = 4, DIM = 64 };
    static const uint32_t strides[3] = {1, 17, 139}; /* orders of the views */
    lode_geometry_t geometry = geometry_of(1, DIM);
    lode_cluster_h cluster = join(&geometry, NULL);
    uint64_t lengths[COUNT];
    lode_block_h blocks[COUNT], ordered[COUNT];
    model_block_t models[COUNT], seen[3][COUNT];
    lode_view_h views[3][2];
    for (uint32_t b = 0; b < COUNT; b++)
        lengths[b] = b % 20 ? 3 + lode_mix(7, b) % 12 * 3 : 100;
    make_documents(cluster, COUNT, lengths, DIM, LODE_FORMAT_BF16, "landmark2", blocks, models);
    for (int i = 0; i < 3; i++) {
        int64_t offsets[COUNT], end = 0;
        for (uint32_t b = 0; b < COUNT; b++) {
            uint32_t at = b * strides[i] % COUNT;
            offsets[b] = i == 1 ? end : RANGE - (int64_t)lengths[at]; /* shared: all end right before the question */
            end += (int64_t)lengths[at];
            ordered[b] = blocks[at];
            seen[i][b] = models[at];
            seen[i][b].offset = offsets[b];
        }
        lode_view_params_t params = {ordered, offsets, COUNT, -1, i != 1, DENSE};
        MUST(lode_view_create(cluster, &params, &views[i][0]));
        params.policy = (lode_policy_t){.budget_share = 0.2, .sinks = 4, .window = 20};
        MUST(lode_view_create(cluster, &params, &views[i][1]));
    }
    for (int step = 0; step < STEPS; step++)
        for (int sparse = 0; sparse < 2; sparse++) {
            float out[2][QUERY_HEADS * DIM], lse[2][QUERY_HEADS];
            lode_stream_t streams[2];
            for (int s = 0; s < 2; s++)
                streams[s] = (lode_stream_t){.view = views[(step + s) % 3][sparse],
                                             .tokens = 1,
                                             .position = 10000 + step,
                                             .dtype = LODE_FP32,
                                             .q = tensor(2000 + 2 * step + s, (size_t)QUERY_HEADS * DIM),
                                             .out = out[s],
                                             .lse = lse[s]};
            MUST(lode_step(cluster, 0, streams, 2, NULL));
            for (int s = 0; s < 2; s++) {
                const model_block_t *view = seen[(step + s) % 3];
                if (!sparse)
                    check_token(view, COUNT, DIM, 10000 + step, streams[s].q, out[s], lse[s], 2e-5);
                for (uint32_t h = 0; sparse && h < KV_HEADS; h++) {
                    const uint32_t *chosen;
                    uint64_t count;
                    MUST(lode_step_selection(cluster, s, 0, h, &chosen, &count));
                    check_chosen(view, COUNT, DIM, h, streams[s].q, out[s], chosen, count);
                }
            }
        }
    for (int i = 0; i < 3; i++)
        for (int sparse = 0; sparse < 2; sparse++)
            MUST(lode_view_destroy(&views[i][sparse]));
    close_blocks(blocks, COUNT);
    MUST(lode_cluster_leave(&cluster));
    agree();
}

/* The same block at other offsets: what a copy rotated there would give. */
static void offsets_rotate_queries_only(void)
{
    enum { DIM = 128 };
    lode_geometry_t geometry = geometry_of(1, DIM);
    lode_cluster_h cluster = join(&geometry, NULL);
    const uint64_t tokens[] = {300, 200};
    lode_block_h blocks[2];
    model_block_t models[2];
    make_documents(cluster, 2, tokens, DIM, LODE_FORMAT_BF16, "landmark2", blocks, models);
    const int64_t offsets[][2] = {{0, 300}, {-50, 1000}, {5000, 900000}};
    for (int i = 0; i < 3; i++) {
        lode_view_h view = make_view(cluster, blocks, offsets[i], 2, -1, DENSE);
        float *q = tensor(400 + i, QUERY_HEADS * DIM), out[QUERY_HEADS * DIM], lse[QUERY_HEADS];
        lode_stream_t stream = {.view = view,
                                .tokens = 1,
                                .position = LODE_POSITION_END,
                                .dtype = LODE_FP32,
                                .q = q,
                                .out = out,
                                .lse = lse};
        MUST(lode_step(cluster, 0, &stream, 1, NULL));
        models[0].offset = offsets[i][0];
        models[1].offset = offsets[i][1];
        check_token(models, 2, DIM, offsets[i][1] + 200, q, out, lse, 2e-4); /* angles of 900,000 positions in fp32 */
        MUST(lode_view_destroy(&view));
    }
    close_blocks(blocks, 2);
    MUST(lode_cluster_leave(&cluster));
    agree();
}

/* Tokens written by steps are seen at once, leave for their owners page by page, and none is lost. */
static void generated_tokens_are_attended(void)
{
    enum { DIM = 64, LAYERS = 2, STEPS = 70, T = 3 };
    lode_geometry_t geometry = geometry_of(LAYERS, DIM);
    lode_cluster_h cluster = join(&geometry, NULL);
    char name[32];
    snprintf(name, sizeof name, "stream %d", rank);
    lode_block_h block = make_block(cluster, name, LODE_FORMAT_BF16, "landmark2");
    size_t n = (size_t)STEPS * T * KV_HEADS * DIM;
    float *k[LAYERS], *v[LAYERS];
    for (int l = 0; l < LAYERS; l++) {
        k[l] = tensor(500 + 10 * rank + l, n);
        v[l] = tensor(600 + 10 * rank + l, n);
    }
    lode_view_h view = make_view(cluster, &block, NULL, 1, 0, DENSE);
    for (int s = 0; s < STEPS; s++)
        for (int l = 0; l < LAYERS; l++) {
            size_t at = (size_t)s * T * KV_HEADS * DIM;
            float *q = tensor(700 + 2 * s + l, T * QUERY_HEADS * DIM), out[T * QUERY_HEADS * DIM], lse[T * QUERY_HEADS];
            lode_stream_t stream = {view, T, LODE_POSITION_END, LODE_FP32, q, k[l] + at, v[l] + at, out, lse};
            MUST(lode_step(cluster, l, &stream, 1, NULL));
            for (int t = 0; t < T && s % 7 == 0; t++) {
                model_block_t model = {k[l], v[l], (uint64_t)(s + 1) * T, 0};
                check_token(&model, 1, DIM, s * T + t, q + t * QUERY_HEADS * DIM, out + t * QUERY_HEADS * DIM,
                            lse + t * QUERY_HEADS, 2e-5);
            }
        }
    MUST(lode_block_seal(block));
    MPI_Barrier(MPI_COMM_WORLD);
    /* Every rank reads what its neighbour generated. */
    int other = (rank + 1) % ranks;
    snprintf(name, sizeof name, "stream %d", other);
    lode_block_h theirs;
    MUST(lode_block_open(cluster, name, &theirs));
    uint64_t tokens;
    MUST(lode_block_tokens(theirs, 1, &tokens));
    CHECK(tokens == STEPS * T, "%llu tokens", (unsigned long long)tokens);
    lode_view_h foreign = make_view(cluster, &theirs, NULL, 1, -1, DENSE);
    float *q = tensor(800, QUERY_HEADS * DIM), out[QUERY_HEADS * DIM], lse[QUERY_HEADS];
    lode_stream_t stream = {.view = foreign,
                            .tokens = 1,
                            .position = LODE_POSITION_END,
                            .dtype = LODE_FP32,
                            .q = q,
                            .out = out,
                            .lse = lse};
    MUST(lode_step(cluster, 1, &stream, 1, NULL));
    model_block_t model = {tensor(500 + 10 * other + 1, n), tensor(600 + 10 * other + 1, n), STEPS * T, 0};
    check_token(&model, 1, DIM, STEPS * T, q, out, lse, 2e-5);
    MUST(lode_view_destroy(&foreign));
    MUST(lode_view_destroy(&view));
    MUST(lode_block_close(&theirs));
    MUST(lode_block_close(&block));
    MUST(lode_cluster_leave(&cluster));
    agree();
}

static void sparse_case(const char *landmark, lode_group_merge_t merge)
{
    enum { DIM = 128, T = 5 };
    lode_geometry_t geometry = geometry_of(1, DIM);
    lode_cluster_h cluster = join(&geometry, NULL);
    const uint64_t tokens[] = {2000, 1111, 64};
    lode_block_h blocks[3];
    model_block_t models[3];
    make_documents(cluster, 3, tokens, DIM, LODE_FORMAT_FP8, landmark, blocks, models);
    lode_policy_t policy = {.merge = merge, .budget_share = 0.05, .sinks = 4, .window = 64};
    lode_view_h view = make_view(cluster, blocks, NULL, 3, -1, policy);
    float *q = tensor(900, T * QUERY_HEADS * DIM), out[T * QUERY_HEADS * DIM], lse[T * QUERY_HEADS];
    lode_stream_t stream = {
        .view = view, .tokens = T, .position = 3175, .dtype = LODE_FP32, .q = q, .out = out, .lse = lse};
    lode_step_stats_t together;
    MUST(lode_step(cluster, 0, &stream, 1, &together));
    CHECK(together.visible_tokens == 3175 && together.budget_tokens == 159, "%llu of %llu",
          (unsigned long long)together.budget_tokens, (unsigned long long)together.visible_tokens);
    /* The same on every rank. */
    uint64_t lowest, highest;
    MPI_Allreduce(&together.selected_digest, &lowest, 1, MPI_UINT64_T, MPI_MIN, MPI_COMM_WORLD);
    MPI_Allreduce(&together.selected_digest, &highest, 1, MPI_UINT64_T, MPI_MAX, MPI_COMM_WORLD);
    CHECK(lowest == highest);
    /* Each token by itself: the same choice and the same output. */
    for (int t = 0; t < T; t++) {
        const uint32_t *chosen, *again;
        uint64_t count, count_again;
        uint32_t kept[KV_HEADS][256];
        for (uint32_t h = 0; h < KV_HEADS; h++) {
            MUST(lode_step(cluster, 0, &stream, 1, NULL));
            MUST(lode_step_selection(cluster, 0, t, h, &chosen, &count));
            CHECK(count == 159 && chosen, "%llu chosen", (unsigned long long)count);
            for (uint64_t i = 0; i < count; i++)
                CHECK((i == 0 || chosen[i] > chosen[i - 1]) && chosen[i] < 3175);
            for (uint32_t i = 0; i < 4; i++)
                CHECK(chosen[i] == i, "sink %u", i);
            for (uint32_t i = 0; i < 64; i++)
                CHECK(chosen[count - 64 + i] == 3175 - 64 + i, "window %u", i);
            memcpy(kept[h], chosen, count * sizeof *chosen);
        }
        float alone[QUERY_HEADS * DIM], alone_lse[QUERY_HEADS];
        lode_stream_t single = {.view = view,
                                .tokens = 1,
                                .position = 3175 + t,
                                .dtype = LODE_FP32,
                                .q = q + t * QUERY_HEADS * DIM,
                                .out = alone,
                                .lse = alone_lse};
        MUST(lode_step(cluster, 0, &single, 1, NULL));
        for (uint32_t h = 0; h < KV_HEADS; h++) {
            MUST(lode_step_selection(cluster, 0, 0, h, &again, &count_again));
            CHECK(count_again == 159 && memcmp(again, kept[h], 159 * sizeof *again) == 0);
        }
        double error = 0;
        for (int i = 0; i < QUERY_HEADS * DIM; i++)
            error = fmax(error, fabs((double)alone[i] - out[t * QUERY_HEADS * DIM + i]));
        CHECK(error < 1e-5, "differs by %g", error);
    }
    /* Queries drift: the view that knows where the last step's choice ended chooses as one that knows nothing. */
    const float *drift = tensor(901, T * QUERY_HEADS * DIM);
    for (int t = 0; t < 4; t++) {
        for (int i = 0; i < T * QUERY_HEADS * DIM; i++)
            q[i] += 0.1f * drift[(i + 37 * t) % (T * QUERY_HEADS * DIM)];
        lode_step_stats_t knows, fresh;
        MUST(lode_step(cluster, 0, &stream, 1, &knows));
        lode_view_h unknowing = make_view(cluster, blocks, NULL, 3, -1, policy);
        lode_stream_t same = stream;
        same.view = unknowing;
        MUST(lode_step(cluster, 0, &same, 1, &fresh));
        CHECK(knows.selected_digest == fresh.selected_digest, "another choice after %d steps", t);
        MUST(lode_view_destroy(&unknowing));
    }
    MUST(lode_view_destroy(&view));
    close_blocks(blocks, 3);
    MUST(lode_cluster_leave(&cluster));
    agree();
}

static void sparse_tokens_together_as_alone(void)
{
    sparse_case("landmark2", LODE_MERGE_MAX);
}

static void sparse_chunks_and_mean_query(void)
{
    sparse_case("landmark4:c8:higgs", LODE_MERGE_MEAN);
}

/* A budget of everything equals dense, and two streams in a step equal each alone. */
static void streams_share_a_step(void)
{
    enum { DIM = 128 };
    lode_geometry_t geometry = geometry_of(1, DIM);
    lode_cluster_h cluster = join(&geometry, NULL);
    const uint64_t tokens[] = {500, 800};
    lode_block_h blocks[2], reversed[2];
    model_block_t models[2], models_reversed[2];
    make_documents(cluster, 2, tokens, DIM, LODE_FORMAT_BF16, "landmark8", blocks, models);
    reversed[0] = blocks[1];
    reversed[1] = blocks[0];
    lode_policy_t full = {.budget_share = 1};
    lode_view_h views[2] = {make_view(cluster, blocks, NULL, 2, -1, full),
                            make_view(cluster, reversed, NULL, 2, -1, full)};
    float out[2][QUERY_HEADS * DIM], lse[2][QUERY_HEADS];
    lode_stream_t streams[2];
    for (int s = 0; s < 2; s++)
        streams[s] = (lode_stream_t){.view = views[s],
                                     .tokens = 1,
                                     .position = LODE_POSITION_END,
                                     .dtype = LODE_FP32,
                                     .q = tensor(1000 + s, QUERY_HEADS * DIM),
                                     .out = out[s],
                                     .lse = lse[s]};
    lode_step_stats_t stats;
    MUST(lode_step(cluster, 0, streams, 2, &stats));
    CHECK(stats.records_wanted == 1300 * KV_HEADS, "each record once");
    models[0].offset = 0;
    models[1].offset = 500;
    models_reversed[0] = models[1];
    models_reversed[1] = models[0];
    models_reversed[0].offset = 0;
    models_reversed[1].offset = 800;
    check_token(models, 2, DIM, 1300, streams[0].q, out[0], lse[0], 2e-5);
    check_token(models_reversed, 2, DIM, 1300, streams[1].q, out[1], lse[1], 2e-5);
    for (int s = 0; s < 2; s++)
        MUST(lode_view_destroy(&views[s]));
    close_blocks(blocks, 2);
    MUST(lode_cluster_leave(&cluster));
    agree();
}

/* Records in the own shard, in the hot cache or fetched: the output is the same bit by bit. */
static void places_case(lode_policy_t policy)
{
    enum { DIM = 64, T = 3, OUT = T * QUERY_HEADS * DIM };
    lode_geometry_t geometry = geometry_of(1, DIM);
    lode_cluster_h cluster = join(&geometry, (const char *[]){"landing", "128KiB", "hot-cache", "256KiB", NULL});
    const uint64_t tokens[] = {1500, 64, 900};
    lode_block_h blocks[3];
    model_block_t models[3];
    make_documents(cluster, 3, tokens, DIM, LODE_FORMAT_BF16, "landmark2", blocks, models);
    lode_view_h view = make_view(cluster, blocks, NULL, 3, -1, policy);
    float *q = tensor(950, OUT), out[OUT], lse[T * QUERY_HEADS], theirs[OUT], their_lse[T * QUERY_HEADS];
    for (int turn = 0; turn < 3; turn++) { /* the second finds records in the hot cache */
        lode_stream_t stream = {
            .view = view, .tokens = T, .position = 2464, .dtype = LODE_FP32, .q = q, .out = out, .lse = lse};
        MUST(lode_step(cluster, 0, &stream, 1, NULL));
        if (rank == 0 && turn == 0) {
            memcpy(theirs, out, sizeof out);
            memcpy(their_lse, lse, sizeof lse);
        }
        MPI_Bcast(theirs, OUT, MPI_FLOAT, 0, MPI_COMM_WORLD);
        MPI_Bcast(their_lse, T * QUERY_HEADS, MPI_FLOAT, 0, MPI_COMM_WORLD);
        CHECK(memcmp(theirs, out, sizeof out) == 0 && memcmp(their_lse, lse, sizeof lse) == 0, "turn %d", turn);
    }
    MUST(lode_view_destroy(&view));
    close_blocks(blocks, 3);
    MUST(lode_cluster_leave(&cluster));
    agree();
}

static void dense_is_the_same_wherever_records_are(void)
{
    places_case(DENSE);
}

static void sparse_is_the_same_wherever_records_are(void)
{
    places_case((lode_policy_t){.budget_share = 0.3, .sinks = 4, .window = 64});
}

/* Pages that no rank has any more: a stream fails and names them, or goes on without, as its policy says. */
static void lost_pages_fail_or_are_skipped(void)
{
    enum { DIM = 64, T = 2, OUT = T * QUERY_HEADS * DIM };
    lode_geometry_t geometry = geometry_of(1, DIM);
    lode_cluster_h cluster = join(&geometry, (const char *[]){"path", "batched", "hot-cache", "0", NULL});
    const uint64_t tokens[] = {700, 300};
    lode_block_h blocks[2];
    model_block_t models[2];
    make_documents(cluster, 2, tokens, DIM, LODE_FORMAT_BF16, "landmark2", blocks, models);
    MPI_Barrier(MPI_COMM_WORLD);
    const uint32_t gone[] = {3, 7, 9};
    for (int i = 0; i < 3; i++)
        lode_shard_drop_page(cluster->shard, (lode_page_id_t){blocks[0]->info.id, 0, gone[i]});
    MPI_Barrier(MPI_COMM_WORLD);
    lode_policy_t skip = {.select = LODE_SELECT_DENSE, .lost = LODE_LOST_SKIP};
    lode_policy_t sparse = {.budget_tokens = 400, .window = 4, .lost = LODE_LOST_SKIP};
    lode_view_h fails = make_view(cluster, blocks, NULL, 1, -1, DENSE);
    lode_view_h whole = make_view(cluster, blocks + 1, NULL, 1, -1, DENSE);
    lode_view_h skips = make_view(cluster, blocks, NULL, 1, -1, skip);
    lode_view_h chooses = make_view(cluster, blocks, NULL, 1, -1, sparse);
    float *q = tensor(960, OUT), out[3][OUT], lse[3][T * QUERY_HEADS], share[3][T];
    lode_view_h views[] = {skips, whole, chooses};
    lode_stream_t streams[3];
    for (int s = 0; s < 3; s++)
        streams[s] = (lode_stream_t){views[s], T, 700, LODE_FP32, q, NULL, NULL, out[s], lse[s], share[s]};
    lode_step_stats_t stats;
    MUST(lode_step(cluster, 0, streams, 3, &stats));
    CHECK(stats.records_lost == 3 * 64 * KV_HEADS, "%llu records", (unsigned long long)stats.records_lost);
    CHECK(stats.records_local + stats.records_fetched + stats.records_lost == stats.records_wanted);
    const model_block_t left[] = {{models[0].k, models[0].v, 192, 0},
                                  {models[0].k + 256 * KV_HEADS * DIM, models[0].v + 256 * KV_HEADS * DIM, 192, 0},
                                  {models[0].k + 512 * KV_HEADS * DIM, models[0].v + 512 * KV_HEADS * DIM, 64, 0},
                                  {models[0].k + 640 * KV_HEADS * DIM, models[0].v + 640 * KV_HEADS * DIM, 60, 0}};
    for (int t = 0; t < T; t++) {
        check_token(left, 4, DIM, 700 + t, q + t * QUERY_HEADS * DIM, out[0] + t * QUERY_HEADS * DIM,
                    lse[0] + t * QUERY_HEADS, 2e-5);
        check_token(models + 1, 1, DIM, 700 + t, q + t * QUERY_HEADS * DIM, out[1] + t * QUERY_HEADS * DIM,
                    lse[1] + t * QUERY_HEADS, 2e-5);
        CHECK(share[0][t] == (float)(192. / 700) && share[1][t] == 0, "%g and %g", share[0][t], share[1][t]);
        uint64_t worst = 0;
        for (uint32_t h = 0; h < KV_HEADS; h++) {
            const uint32_t *chosen;
            uint64_t count, lost = 0;
            MUST(lode_step_selection(cluster, 2, t, h, &chosen, &count));
            for (uint64_t i = 0; i < count; i++)
                lost += chosen[i] / 64 == 3 || chosen[i] / 64 == 7 || chosen[i] / 64 == 9;
            worst = lost > worst ? lost : worst;
        }
        CHECK(worst > 0 && share[2][t] == (float)((double)worst / 400), "%g", share[2][t]);
    }
    streams[1].view = fails; /* beside one that skips the same pages */
    CHECK(lode_step(cluster, 0, streams, 3, &stats) == LODE_ERR_PAGE_LOST);
    CHECK(strstr(lode_error_message(), "\"d0\"") && strstr(lode_error_message(), "layer 0, pages 3, 7, 9: no owner"));
    streams[1].view = whole; /* nothing of the failed step is left behind */
    for (int i = 0; i < 6; i++)
        MUST(lode_step(cluster, 0, streams, 3, &stats));
    for (int i = 0; i < 3; i++)
        MUST(lode_view_destroy(&views[i]));
    MUST(lode_view_destroy(&fails));
    close_blocks(blocks, 2);
    MUST(lode_cluster_leave(&cluster));
    agree();
}

/* Tensor parallelism: ranks that own other KV heads keep blocks of one name apart. */
static void kv_head_ranges(void)
{
    enum { DIM = 64, TOKENS = 333 };
    lode_geometry_t geometry = geometry_of(1, DIM);
    uint32_t head = (uint32_t)rank % KV_HEADS;
    geometry.kv_head_begin = head;
    geometry.kv_head_end = head + 1;
    lode_cluster_h cluster = join(&geometry, NULL);
    size_t n = (size_t)TOKENS * KV_HEADS * DIM;
    model_block_t model = {tensor(1, n), tensor(2, n), TOKENS, 0};
    float *k = keep(n * sizeof *k), *v = keep(n * sizeof *v);
    for (size_t t = 0; t < TOKENS; t++) {
        memcpy(k + t * DIM, model.k + (t * KV_HEADS + head) * DIM, DIM * sizeof *k);
        memcpy(v + t * DIM, model.v + (t * KV_HEADS + head) * DIM, DIM * sizeof *v);
    }
    lode_block_h block;
    if (rank < KV_HEADS) {
        block = make_block(cluster, "document", LODE_FORMAT_BF16, "landmark2");
        MUST(lode_block_append(block, 0, TOKENS, LODE_FP32, k, v));
        MUST(lode_block_seal(block));
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank >= KV_HEADS)
        MUST(lode_block_open(cluster, "document", &block));
    lode_view_h view = make_view(cluster, &block, NULL, 1, -1, DENSE);
    float *q = tensor(3, QUERY_HEADS * DIM), out[GROUP * DIM], lse[GROUP];
    double expected[QUERY_HEADS * DIM], expected_lse[QUERY_HEADS];
    lode_stream_t stream = {.view = view,
                            .tokens = 1,
                            .position = TOKENS,
                            .dtype = LODE_FP32,
                            .q = q + head * GROUP * DIM,
                            .out = out,
                            .lse = lse};
    MUST(lode_step(cluster, 0, &stream, 1, NULL));
    reference(&model, 1, DIM, TOKENS, q, expected, expected_lse);
    double error = relative_error(out, expected + head * GROUP * DIM, GROUP * DIM);
    CHECK(error < 2e-5, "relative error %g", error);
    MUST(lode_view_destroy(&view));
    MUST(lode_block_close(&block));
    MUST(lode_cluster_leave(&cluster));
    agree();
}

/* ---------------------------------------------------------------- bad input */

#define REFUSED(call, expected)                                                                          \
    do {                                                                                                 \
        lode_status_t got_ = (call);                                                                     \
        CHECK(got_ == (expected), "%s, not %s", lode_status_string(got_), lode_status_string(expected)); \
        CHECK(*lode_error_message() != 0, "no sentence");                                                \
    } while (0)

static void bad_calls_are_refused(void)
{
    enum { DIM = 64 };
    lode_geometry_t geometry = geometry_of(2, DIM);
    lode_cluster_h cluster = join(&geometry, NULL);
    lode_block_params_t params = {.name = "one", .format = LODE_FORMAT_BF16};
    MUST(lode_landmark_parse("landmark2", &params.landmark));
    lode_block_h block, other;
    if (rank == 0)
        MUST(lode_block_create(cluster, &params, &block));
    MPI_Barrier(MPI_COMM_WORLD);
    REFUSED(lode_block_create(cluster, &params, &other), LODE_ERR_NAME_IN_USE);
    REFUSED(lode_block_open(cluster, "none", &other), LODE_ERR_NOT_FOUND);
    params.name = "new\nline";
    REFUSED(lode_block_create(cluster, &params, &other), LODE_ERR_INVALID);
    if (rank == 0) {
        size_t n = 200 * KV_HEADS * DIM;
        float *k = tensor(1, n), *v = tensor(2, n);
        k[(77 * KV_HEADS + 1) * DIM + 5] = NAN;
        REFUSED(lode_block_append(block, 1, 200, LODE_FP32, k, v), LODE_ERR_NONFINITE);
        CHECK(strstr(lode_error_message(), "layer 1, head 1, token 77"), "does not say where");
        uint64_t tokens = 1;
        MUST(lode_block_tokens(block, 1, &tokens));
        CHECK(tokens == 0, "a part of it was kept");
        k[(77 * KV_HEADS + 1) * DIM + 5] = 0;
        MUST(lode_block_append(block, 1, 200, LODE_FP32, k, v));
        REFUSED(lode_block_append(block, 2, 200, LODE_FP32, k, v), LODE_ERR_INVALID);
        REFUSED(lode_block_seal(block), LODE_ERR_INVALID); /* layer 0 is shorter */
        MUST(lode_block_append(block, 0, 200, LODE_FP32, k, v));
        MUST(lode_block_seal(block));
        REFUSED(lode_block_append(block, 0, 1, LODE_FP32, k, v), LODE_ERR_SEALED);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank != 0)
        MUST(lode_block_open(cluster, "one", &block));
    float zero[64] = {0};
    if (rank != 0)
        REFUSED(lode_block_append(block, 0, 1, LODE_FP32, zero, zero), LODE_ERR_INVALID);

    lode_policy_t policy = {.budget_share = 0};
    lode_view_params_t view_params = {&block, NULL, 1, -1, 0, policy};
    lode_view_h view;
    REFUSED(lode_view_create(cluster, &view_params, &view), LODE_ERR_INVALID);
    view_params.policy.budget_share = 1.01;
    REFUSED(lode_view_create(cluster, &view_params, &view), LODE_ERR_INVALID);
    view_params.policy.budget_share = 0.5;
    lode_block_h twice[] = {block, block};
    view_params.blocks = twice;
    view_params.count = 2;
    REFUSED(lode_view_create(cluster, &view_params, &view), LODE_ERR_INVALID);
    char name[32];
    snprintf(name, sizeof name, "mine %d", rank);
    lode_block_h mine = make_block(cluster, name, LODE_FORMAT_BF16, "landmark2:c4");
    twice[1] = mine;
    REFUSED(lode_view_create(cluster, &view_params, &view), LODE_ERR_INVALID); /* other chunks */
    MUST(lode_block_drop(&mine));
    mine = make_block(cluster, name, LODE_FORMAT_BF16, "landmark2"); /* a dropped name is free again */
    twice[1] = mine;
    const int64_t overlap[] = {0, 199};
    view_params.offsets = overlap;
    REFUSED(lode_view_create(cluster, &view_params, &view), LODE_ERR_INVALID);
    CHECK(strstr(lode_error_message(), "overlaps"), "does not say why");
    view_params.write_block = 0;
    view_params.offsets = NULL;
    REFUSED(lode_view_create(cluster, &view_params, &view), rank == 0 ? LODE_ERR_SEALED : LODE_ERR_INVALID);
    view_params.write_block = 1;
    MUST(lode_view_create(cluster, &view_params, &view));

    float q[QUERY_HEADS * DIM] = {0}, out[QUERY_HEADS * DIM];
    lode_stream_t stream = {
        .view = view, .tokens = 1, .position = LODE_POSITION_END, .dtype = LODE_FP32, .q = q, .out = out};
    MUST(lode_step(cluster, 0, &stream, 1, NULL));
    q[3 * DIM + 1] = INFINITY;
    REFUSED(lode_step(cluster, 0, &stream, 1, NULL), LODE_ERR_NONFINITE);
    q[3 * DIM + 1] = NAN;
    out[5] = -7;
    REFUSED(lode_step(cluster, 0, &stream, 1, NULL), LODE_ERR_NONFINITE);
    CHECK(out[5] == -7, "a refused step wrote its output");
    q[3 * DIM + 1] = 0;
    REFUSED(lode_step(cluster, 2, &stream, 1, NULL), LODE_ERR_INVALID);
    lode_stream_t both[] = {stream, stream};
    float new_token[KV_HEADS * DIM] = {0};
    both[0].k = both[0].v = both[1].k = both[1].v = new_token;
    REFUSED(lode_step(cluster, 0, both, 2, NULL), LODE_ERR_INVALID); /* one block, two writers */
    uint64_t tokens = 1;
    MUST(lode_block_tokens(mine, 0, &tokens));
    CHECK(tokens == 0, "a refused step left its token");
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0)
        MUST(lode_block_drop(&block));
    MPI_Barrier(MPI_COMM_WORLD);
    REFUSED(lode_step(cluster, 0, &stream, 1, NULL), LODE_ERR_DROPPED);
    MUST(lode_view_destroy(&view));
    MUST(lode_block_close(&mine));
    if (rank != 0)
        MUST(lode_block_close(&block));
    MUST(lode_cluster_leave(&cluster));
    agree();
}

/* An append that does not fit leaves the block as it was, and what is freed can be used. */
static void full_arena_loses_nothing(void)
{
    enum { DIM = 128, CHUNK = 2048 };
    lode_geometry_t geometry = geometry_of(1, DIM);
    lode_cluster_h cluster = join(&geometry, (const char *[]){"arena", "8MiB", NULL});
    if (rank == 0) {
        size_t n = (size_t)CHUNK * KV_HEADS * DIM;
        float *k = tensor(1, n), *v = tensor(2, n);
        lode_block_h block = make_block(cluster, "large", LODE_FORMAT_BF16, "landmark2");
        lode_status_t status;
        uint64_t kept = 0, tokens = 0;
        while ((status = lode_block_append(block, 0, CHUNK, LODE_FP32, k, v)) == LODE_OK)
            kept += CHUNK;
        CHECK(status == LODE_ERR_FULL, "%s", lode_status_string(status));
        MUST(lode_block_tokens(block, 0, &tokens));
        CHECK(tokens == kept && kept > 0, "%llu tokens instead of %llu", (unsigned long long)tokens,
              (unsigned long long)kept);
        lode_view_h view = make_view(cluster, &block, NULL, 1, -1, DENSE);
        float *q = tensor(3, QUERY_HEADS * DIM), out[QUERY_HEADS * DIM], lse[QUERY_HEADS];
        lode_stream_t stream = {.view = view,
                                .tokens = 1,
                                .position = LODE_POSITION_END,
                                .dtype = LODE_FP32,
                                .q = q,
                                .out = out,
                                .lse = lse};
        MUST(lode_step(cluster, 0, &stream, 1, NULL));
        float *all_k = keep(kept / CHUNK * n * sizeof *all_k), *all_v = keep(kept / CHUNK * n * sizeof *all_v);
        for (uint64_t i = 0; i < kept / CHUNK; i++) {
            memcpy(all_k + i * n, k, n * sizeof *k);
            memcpy(all_v + i * n, v, n * sizeof *v);
        }
        model_block_t model = {all_k, all_v, kept, 0};
        check_token(&model, 1, DIM, (int64_t)kept, q, out, lse, 2e-5);
        MUST(lode_view_destroy(&view));
        MUST(lode_block_close(&block));
    }
    MPI_Barrier(MPI_COMM_WORLD);
    MUST(lode_cluster_leave(&cluster));
    agree();
}

static void wrong_geometries_do_not_join(void)
{
    lode_config_h config;
    lode_cluster_h cluster = NULL;
    MUST(lode_config_create(&config));
    MUST(lode_config_set(config, "arena", "8MiB"));
    lode_geometry_t geometry = geometry_of(1, 96);
    REFUSED(lode_cluster_join(config, &geometry, &cluster), LODE_ERR_GEOMETRY);
    geometry = geometry_of(1, 128);
    geometry.query_heads = 5;
    REFUSED(lode_cluster_join(config, &geometry, &cluster), LODE_ERR_GEOMETRY);
    geometry = geometry_of(1, 128);
    geometry.layers = rank == ranks - 1 ? 2 : 1; /* the last rank runs another model */
    if (ranks > 1)
        REFUSED(lode_cluster_join(config, &geometry, &cluster), LODE_ERR_GEOMETRY);
    geometry.layers = 1;
    if (ranks < 4) {
        MUST(lode_config_set(config, "replicas", "4"));
        REFUSED(lode_cluster_join(config, &geometry, &cluster), LODE_ERR_INVALID);
        MUST(lode_config_set(config, "replicas", "1"));
    }
    CHECK(cluster == NULL);
    MUST(lode_cluster_join(config, &geometry, &cluster)); /* and a good one still does */
    MUST(lode_cluster_leave(&cluster));
    lode_config_destroy(&config);
    agree();
}

/* A cluster without a geometry takes the first that is said, on all ranks, and no other. */
static void geometry_comes_later(void)
{
    enum { DIM = 64, TOKENS = 150 };
    lode_geometry_t geometry = geometry_of(2, DIM), got, wrong = geometry_of(3, DIM);
    lode_cluster_h cluster = join(NULL, NULL);
    lode_block_params_t params = {.name = "early", .format = LODE_FORMAT_BF16};
    lode_block_h block;
    uint32_t count = 1;
    MUST(lode_landmark_parse("landmark2", &params.landmark));
    REFUSED(lode_block_create(cluster, &params, &block), LODE_ERR_GEOMETRY);
    REFUSED(lode_cluster_geometry(cluster, &got), LODE_ERR_NOT_FOUND);
    MUST(lode_cluster_blocks(cluster, NULL, 0, &count));
    CHECK(count == 0);
    MPI_Barrier(MPI_COMM_WORLD);
    MUST(lode_cluster_shape(cluster, &geometry)); /* all at once, and again */
    MUST(lode_cluster_shape(cluster, &geometry));
    REFUSED(lode_cluster_shape(cluster, &wrong), LODE_ERR_GEOMETRY);
    MUST(lode_cluster_geometry(cluster, &got));
    CHECK(got.layers == 2 && got.kv_head_end == KV_HEADS && got.rope.theta == 10000);
    if (rank == ranks - 1) {
        block = make_block(cluster, "late", LODE_FORMAT_BF16, "landmark4:c2");
        size_t n = (size_t)TOKENS * KV_HEADS * DIM;
        const float *k = tensor(1, n), *v = tensor(2, n);
        for (uint32_t layer = 0; layer < 2; layer++)
            MUST(lode_block_append(block, layer, TOKENS, LODE_FP32, k, v));
        MUST(lode_block_seal(block));
        MUST(lode_block_close(&block));
    }
    MPI_Barrier(MPI_COMM_WORLD);
    lode_block_entry_t entry = {0};
    MUST(lode_cluster_blocks(cluster, &entry, 1, &count));
    CHECK(count == 1 && strcmp(entry.name, "late") == 0 && entry.tokens == TOKENS && entry.sealed);
    CHECK(entry.landmark.bits == 4 && entry.landmark.chunk == 2 && entry.writer == (uint32_t)ranks - 1);
    uint64_t pages = 0;
    for (uint32_t r = 0; r < (uint32_t)ranks; r++) {
        lode_rank_stats_t stats;
        MUST(lode_cluster_rank_stats(cluster, r, &stats));
        CHECK(stats.rank == r && stats.alive && stats.epoch == 1 && stats.blocks == 1 && *stats.host);
        pages += stats.pages;
    }
    CHECK(pages == 2 * 3, "%llu pages", (unsigned long long)pages);
    lode_rank_stats_t none;
    REFUSED(lode_cluster_rank_stats(cluster, (uint32_t)ranks, &none), LODE_ERR_INVALID);
    MPI_Barrier(MPI_COMM_WORLD);
    MUST(lode_cluster_leave(&cluster));
    agree();
}

static void set_up(void)
{
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
}

int main(int argc, char **argv)
{
    static const case_t cases[] = {
        CASE(dense_is_exact_bf16),
        CASE(dense_is_exact_dim64_one_sided),
        CASE(dense_is_exact_dim256_batched),
        CASE(dense_is_near_fp8),
        CASE(dense_is_near_higgs4),
        CASE(offsets_rotate_queries_only),
        CASE(short_blocks_stand_anywhere),
        CASE(generated_tokens_are_attended),
        CASE(sparse_tokens_together_as_alone),
        CASE(sparse_chunks_and_mean_query),
        CASE(streams_share_a_step),
        CASE(dense_is_the_same_wherever_records_are),
        CASE(sparse_is_the_same_wherever_records_are),
        CASE(lost_pages_fail_or_are_skipped),
        CASE(kv_head_ranges),
        CASE(bad_calls_are_refused),
        CASE(full_arena_loses_nothing),
        CASE(wrong_geometries_do_not_join),
        CASE(geometry_comes_later),
    };
    return run_cases(cases, sizeof cases / sizeof *cases, set_up, tear_down, argc, argv);
}
