/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole steps on an emulated GPU beside the same steps on the CPU, by ranks that share the device: formats, landmarks,
 * policies, tails, caches, rounds, growth, drops, lost pages, graphs, and what is refused. One program, since joining
 * is what takes longest.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attend/device.h"
#include "attend/replicate.h"
#include "tests/emulator/emulator.h"
#include "tests/multi/steps.h"

enum { LAYERS = 2, QUERY_HEADS = 4, KV_HEADS = 2, GROUP = 2, DIM = 64, ROWS_MOST = 8, BLOCKS_MOST = 4 };
enum { Q = QUERY_HEADS * DIM, KV = KV_HEADS * DIM };

static int failures, rank, ranks;
static uint64_t seed = 1;

#define REFUSED(call, status, words)                                                                               \
    do {                                                                                                           \
        lode_status_t got_ = (call);                                                                               \
        CHECK(got_ == (status) && strstr(lode_error_message(), words), "%s, not \"%s\"", lode_status_string(got_), \
              words);                                                                                              \
    } while (0)

static const lode_geometry_t geometry = {
    .layers = LAYERS, .query_heads = QUERY_HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .rope = {.theta = 10000}};

static lode_status_t try_join(const char *const *settings, lode_cluster_h *cluster)
{
    static const char *const small[] = {"arena",  "16MiB", "landing", "128KiB", "landmarks", "64MiB",
                                        "blocks", "64",    "threads", "1",      NULL};
    return join_by(&geometry, small, settings, cluster);
}

static lode_cluster_h join(const char *const *settings)
{
    lode_cluster_h cluster;
    MUST(try_join(settings, &cluster));
    return cluster;
}

static void fill(float *x, size_t n)
{
    seed++;
    for (size_t i = 0; i < n; i++)
        x[i] = value_at(seed, i);
}

/* ------------------------------------------------------------------- blocks */

static void append(lode_block_h block, uint64_t tokens)
{
    float *k = malloc(tokens * KV * sizeof *k), *v = malloc(tokens * KV * sizeof *v);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        fill(k, tokens * KV);
        fill(v, tokens * KV);
        MUST(lode_block_append(block, layer, tokens, LODE_FP32, k, v));
    }
    free(k);
    free(v);
}

static lode_block_h make_block(lode_cluster_h cluster, lode_format_t format, const char *landmark, uint64_t tokens)
{
    static int number;
    char name[32];
    lode_block_h block;
    snprintf(name, sizeof name, "block %d.%d", rank, number++);
    lode_block_params_t params = {.name = name, .format = format};
    MUST(lode_landmark_parse(landmark, &params.landmark));
    MUST(lode_block_create(cluster, &params, &block));
    append(block, tokens);
    return block;
}

static lode_view_h make_view(lode_cluster_h cluster, const lode_block_h *blocks, uint32_t count, const int64_t *offsets,
                             int32_t write_block, lode_policy_t policy)
{
    lode_view_params_t params = {.blocks = blocks,
                                 .offsets = offsets,
                                 .count = count,
                                 .write_block = write_block,
                                 .shared_positions = offsets != NULL,
                                 .policy = policy};
    lode_view_h view;
    MUST(lode_view_create(cluster, &params, &view));
    return view;
}

/* ------------------------------------------------------------------- parity */

typedef struct result {
    float out[ROWS_MOST * Q], lse[ROWS_MOST * QUERY_HEADS], share[ROWS_MOST];
    uint32_t tokens[ROWS_MOST * KV_HEADS][2048];
    uint64_t counts[ROWS_MOST * KV_HEADS];
    lode_step_stats_t stats;
} result_t;

static void keep_selection(lode_cluster_h cluster, uint32_t stream, uint32_t row, uint32_t rows, result_t *result)
{
    for (uint32_t i = 0; i < rows * KV_HEADS; i++) {
        const uint32_t *tokens;
        uint64_t *count = &result->counts[row * KV_HEADS + i];
        MUST(lode_step_selection(cluster, stream, i / KV_HEADS, i % KV_HEADS, &tokens, count));
        for (uint64_t t = 0; t < *count && t < 2048; t++)
            result->tokens[row * KV_HEADS + i][t] = tokens ? tokens[t] : (uint32_t)t;
    }
}

static void take_step(lode_cluster_h cluster, uint32_t layer, lode_stream_t *streams, uint32_t count, result_t *result)
{
    uint32_t row = 0;
    memset(result, 0, sizeof *result);
    for (uint32_t s = 0; s < count; row += streams[s++].tokens) {
        streams[s].out = result->out + row * Q;
        streams[s].lse = result->lse + row * QUERY_HEADS;
        streams[s].lost_share = result->share + row;
    }
    MUST(lode_step(cluster, layer, streams, count, &result->stats));
    row = 0;
    for (uint32_t s = 0; s < count; row += streams[s++].tokens)
        keep_selection(cluster, s, row, streams[s].tokens, result);
}

/* The same step on the CPU. */
static void take_step_on_cpu(lode_cluster_h cluster, uint32_t layer, lode_stream_t *streams, uint32_t count,
                             result_t *result)
{
    struct lode_gpu *gpu = cluster->gpu;
    MUST(lode_gpu_settle(gpu)); /* landing buffers that it may hold */
    cluster->gpu = NULL;
    take_step(cluster, layer, streams, count, result);
    cluster->gpu = gpu;
}

static double difference(const float *a, const float *b, size_t n)
{
    double most = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        if (isinf(a[i]) && a[i] == b[i])
            continue;
        double d = fabs((double)a[i] - (double)b[i]);
        most = d > most || isnan(d) ? (isnan(d) ? INFINITY : d) : most;
        norm = fabs((double)b[i]) > norm ? fabs((double)b[i]) : norm;
    }
    return norm > 0 ? most / norm : most;
}

/* Tokens of one choice that the other lacks. */
static uint64_t strangers(const uint32_t *a, uint64_t n, const uint32_t *b, uint64_t m)
{
    uint64_t count = 0;
    for (uint64_t i = 0, j = 0; i < n; i++) {
        while (j < m && b[j] < a[i])
            j++;
        count += j == m || b[j] != a[i];
    }
    return count;
}

/* With merge=max two near-equal scores may change places, and their outputs with them. */
static void compare(const result_t *a, const result_t *b, uint32_t rows, bool exact, const char *what)
{
    uint64_t chosen = 0, strange = 0;
    for (uint32_t i = 0; i < rows * KV_HEADS; i++) {
        CHECK(a->counts[i] == b->counts[i], "%s: row and head %u chose %llu, not %llu", what, i,
              (unsigned long long)a->counts[i], (unsigned long long)b->counts[i]);
        chosen += a->counts[i];
        strange += strangers(a->tokens[i], a->counts[i], b->tokens[i], b->counts[i]);
    }
    CHECK(strange <= (exact ? 0 : chosen / 50), "%s: %llu of %llu chosen tokens differ", what,
          (unsigned long long)strange, (unsigned long long)chosen);
    double limit = strange ? 1e-1 : 1e-2, out = difference(a->out, b->out, rows * Q),
           lse = difference(a->lse, b->lse, rows * QUERY_HEADS);
    CHECK(out <= limit && lse <= limit, "%s: outputs differ by %g, lse by %g", what, out, lse);
    for (uint32_t r = 0; r < rows; r++)
        CHECK(a->share[r] == b->share[r], "%s: row %u lost %g, not %g", what, r, a->share[r], b->share[r]);
    if (!strange) {
        CHECK(a->stats.records_wanted == b->stats.records_wanted, "%s", what);
        CHECK(a->stats.records_lost == b->stats.records_lost, "%s", what);
    }
    CHECK(a->stats.records_hit + a->stats.records_local + a->stats.records_fetched + a->stats.records_prefetched +
                  a->stats.records_lost ==
              a->stats.records_wanted,
          "%s: %llu hit, %llu local, %llu fetched, %llu ahead, %llu lost of %llu", what,
          (unsigned long long)a->stats.records_hit, (unsigned long long)a->stats.records_local,
          (unsigned long long)a->stats.records_fetched, (unsigned long long)a->stats.records_prefetched,
          (unsigned long long)a->stats.records_lost, (unsigned long long)a->stats.records_wanted);
    CHECK(a->stats.budget_tokens == b->stats.budget_tokens && a->stats.visible_tokens == b->stats.visible_tokens, "%s",
          what);
}

static result_t on_device, on_cpu;

static void both(lode_cluster_h cluster, uint32_t layer, lode_stream_t *streams, uint32_t count, bool exact,
                 const char *what)
{
    uint32_t rows = 0;
    for (uint32_t s = 0; s < count; s++)
        rows += streams[s].tokens;
    take_step(cluster, layer, streams, count, &on_device);
    take_step_on_cpu(cluster, layer, streams, count, &on_cpu);
    compare(&on_device, &on_cpu, rows, exact, what);
}

/* One stream over one view, T tokens, at the view's end or before it. */
static void one(lode_cluster_h cluster, lode_view_h view, uint32_t tokens, int64_t position, bool exact,
                const char *what)
{
    float q[ROWS_MOST * Q];
    fill(q, tokens * Q);
    lode_stream_t stream = {view, tokens, position, LODE_FP32, q};
    both(cluster, 1, &stream, 1, exact, what);
}

/* -------------------------------------------------------------------- cases */

static const lode_policy_t dense = {.select = LODE_SELECT_DENSE};

static void formats_and_landmarks(lode_cluster_h cluster)
{
    static const struct {
        lode_format_t format;
        const char *landmark;
        lode_group_merge_t merge;
        uint64_t budget;
        uint32_t sinks, window;
    } cases[] = {{LODE_FORMAT_BF16, "landmark2", LODE_MERGE_MEAN, 60, 0, 0},
                 {LODE_FORMAT_FP8, "landmark8:c4", LODE_MERGE_MAX, 77, 5, 9},
                 {LODE_FORMAT_HIGGS4, "landmark4:nocentre", LODE_MERGE_MEAN, 33, 4, 70},
                 {LODE_FORMAT_BF16, "landmark1", LODE_MERGE_MAX, 64, 3, 3},
                 {LODE_FORMAT_FP8, "landmark4:higgs", LODE_MERGE_MEAN, 50, 0, 8},
                 {LODE_FORMAT_HIGGS4, "landmark16:c8", LODE_MERGE_MEAN, 40, 2, 0},
                 {LODE_FORMAT_BF16, "landmark2", LODE_MERGE_MAX, 2, 10, 20}}; /* less than what is forced */
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char what[64];
        snprintf(what, sizeof what, "case %zu (%s)", i, cases[i].landmark);
        lode_block_h block = make_block(cluster, cases[i].format, cases[i].landmark, 3 * 64 + 17);
        lode_view_h view = make_view(cluster, &block, 1, NULL, -1,
                                     (lode_policy_t){.merge = cases[i].merge,
                                                     .budget_tokens = cases[i].budget,
                                                     .sinks = cases[i].sinks,
                                                     .window = cases[i].window});
        one(cluster, view, 1, LODE_POSITION_END, cases[i].merge == LODE_MERGE_MEAN, what);
        one(cluster, view, 2, 100, cases[i].merge == LODE_MERGE_MEAN, what); /* each row sees less than all */
        MUST(lode_view_destroy(&view));
        MUST(lode_block_drop(&block));
    }
}

/* Blocks of several formats and lengths at offsets, tails, and streams of their own views and dtypes. */
static void views_and_streams(lode_cluster_h cluster)
{
    lode_block_h blocks[] = {make_block(cluster, LODE_FORMAT_FP8, "landmark2", 150),
                             make_block(cluster, LODE_FORMAT_BF16, "landmark4", 64),
                             make_block(cluster, LODE_FORMAT_HIGGS4, "landmark2", 261),
                             make_block(cluster, LODE_FORMAT_BF16, "landmark2", 20)}; /* a tail alone */
    MUST(lode_block_seal(blocks[0]));
    const int64_t offsets[] = {0, 40, 300, 561};
    const lode_policy_t policies[] = {{.budget_share = 0.2, .sinks = 2, .window = 30, .merge = LODE_MERGE_MEAN},
                                      {.budget_tokens = 50, .merge = LODE_MERGE_MAX},
                                      dense};
    lode_view_h views[] = {make_view(cluster, blocks, 4, NULL, -1, policies[0]),
                           make_view(cluster, blocks, 4, offsets, -1, policies[1]),
                           make_view(cluster, blocks + 2, 2, NULL, -1, policies[2])};
    static float q[3][ROWS_MOST * Q];
    static uint16_t half[ROWS_MOST * Q];
    for (int s = 0; s < 3; s++)
        fill(q[s], ROWS_MOST * Q);
    cluster->ops->narrow(LODE_BF16, q[2], half, ROWS_MOST * Q);
    lode_stream_t streams[] = {{views[0], 2, LODE_POSITION_END, LODE_FP32, q[0]},
                               {views[1], 1, 580, LODE_FP32, q[1]},
                               {views[2], 2, LODE_POSITION_END, LODE_BF16, half}};
    both(cluster, 0, streams, 1, true, "blocks one after another");
    both(cluster, 0, streams, 3, false, "three streams");
    both(cluster, 0, streams, 3, false, "three streams again");
    streams[1].position = 61; /* sees next to nothing of its later blocks */
    both(cluster, 1, streams + 1, 2, false, "an early position");
    streams[1].position = -5; /* and nothing at all */
    both(cluster, 1, streams + 1, 1, false, "nothing to see");
    for (int i = 0; i < 3; i++)
        MUST(lode_view_destroy(&views[i]));
    for (int i = 0; i < 4; i++)
        MUST(lode_block_drop(&blocks[i]));
}

/* New tokens: from host and device memory, taken back by a step that fails, over the ends of pages. */
static void writes_and_growth(lode_cluster_h cluster)
{
    enum { START = 117, T = 5, STEPS = 4 }; /* the third step's tokens are beyond a page */
    lode_gpu_t *gpu = cluster->gpu;
    lode_block_h block = make_block(cluster, LODE_FORMAT_BF16, "landmark2", START);
    lode_policy_t policy = {.merge = LODE_MERGE_MEAN, .budget_tokens = 40, .window = 8};
    lode_view_h view = make_view(cluster, &block, 1, NULL, 0, policy),
                reads = make_view(cluster, &block, 1, NULL, -1, policy);
    static float q[T * Q], k[T * KV], v[T * KV];
    void *there;
    MUST(gpu->ops->alloc(gpu->device, sizeof k, &there));
    for (int step = 0; step < STEPS; step++) {
        int64_t position = START + step * T;
        fill(q, T * Q);
        fill(k, T * KV);
        fill(v, T * KV);
        lode_stream_t stream = {view, T, LODE_POSITION_END, LODE_FP32, q, k, v};
        if (step % 3 == 1) {
            MUST(gpu->ops->copy(gpu->stream, there, k, sizeof k));
            MUST(gpu->ops->stream_wait(gpu->stream));
            stream.k = there;
        }
        if (step == STEPS - 1) { /* tokens of a failed step are written over */
            float out[T * Q];
            lode_stream_t wrong[] = {stream, stream};
            wrong[0].out = wrong[1].out = out;
            CHECK(lode_step(cluster, 1, wrong, 2, NULL) == LODE_ERR_INVALID);
            uint64_t tokens;
            MUST(lode_block_tokens(block, 1, &tokens));
            CHECK(tokens == START + STEPS * T - T, "%llu tokens", (unsigned long long)tokens);
            fill(k, T * KV);
        }
        take_step(cluster, 1, &stream, 1, &on_device);
        lode_stream_t again = {reads, T, position, LODE_FP32, q};
        take_step_on_cpu(cluster, 1, &again, 1, &on_cpu);
        compare(&on_device, &on_cpu, T, true, "new tokens");
    }
    gpu->ops->free(gpu->device, there);
    append(block, 100);
    one(cluster, reads, 2, LODE_POSITION_END, true, "a block that has grown");
    MUST(lode_view_destroy(&view));
    MUST(lode_view_destroy(&reads));
    MUST(lode_block_drop(&block));
}

/* What is taken back on the device is written anew, and what is moved is attended to where it went. */
static void drafts_crops_and_moves(lode_cluster_h cluster)
{
    lode_block_params_t params = {.name = "draft", .draft = 1};
    lode_block_h blocks[] = {make_block(cluster, LODE_FORMAT_FP8, "landmark2", 150), NULL};
    MUST(lode_landmark_parse("landmark2", &params.landmark));
    MUST(lode_block_create(cluster, &params, &blocks[1]));
    append(blocks[1], 140); /* more than a page stays */
    lode_view_h view = make_view(cluster, blocks, 2, NULL, -1, dense);
    one(cluster, view, 2, LODE_POSITION_END, true, "a draft");
    MUST(lode_block_crop(blocks[1], 100));
    one(cluster, view, 2, LODE_POSITION_END, true, "a draft that was cut");
    append(blocks[1], 30); /* where others were */
    one(cluster, view, 2, LODE_POSITION_END, true, "a draft written over what was cut");
    MUST(lode_block_crop(blocks[1], 90));
    append(blocks[1], 20);
    one(cluster, view, 2, LODE_POSITION_END, true, "a draft cut and written between steps");
    MUST(lode_block_move(blocks[1], 40, blocks[0])); /* 70 tokens behind 150: a page and a tail */
    one(cluster, view, 2, LODE_POSITION_END, true, "a draft that was moved in part");
    MUST(lode_block_crop(blocks[1], 0));
    one(cluster, view, 2, LODE_POSITION_END, true, "a draft that was cleared");
    append(blocks[1], 33);
    MUST(lode_block_crop(blocks[0], 200));
    one(cluster, view, 2, LODE_POSITION_END, true, "a tail that was cut");
    MUST(lode_block_seal(blocks[1]));
    one(cluster, view, 2, LODE_POSITION_END, true, "a draft that was sealed");
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&blocks[0]));
    MUST(lode_block_drop(&blocks[1]));
}

/* Staging room for few records: rounds, on records here and elsewhere. */
static void rounds(lode_cluster_h cluster)
{
    lode_gpu_t *gpu = cluster->gpu;
    size_t before = gpu->staging_bytes;
    lode_block_h block = make_block(cluster, LODE_FORMAT_FP8, "landmark2", 64 * 5 + 9);
    lode_view_h view = make_view(cluster, &block, 1, NULL, -1, dense);
    gpu->staging_bytes = 37 * lode_device_record_bytes(LODE_FORMAT_FP8, DIM);
    one(cluster, view, 1, LODE_POSITION_END, true, "rounds");
    one(cluster, view, 2, 200, true, "rounds, with hits");
    gpu->staging_bytes = before;
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&block));
}

static void hits(lode_cluster_h cluster)
{
    lode_block_h block = make_block(cluster, LODE_FORMAT_FP8, "landmark2", 64 * 6);
    lode_policy_t policy = {.merge = LODE_MERGE_MEAN, .budget_tokens = 48};
    lode_view_h view = make_view(cluster, &block, 1, NULL, -1, policy);
    float q[Q];
    fill(q, Q);
    lode_stream_t stream = {view, 1, LODE_POSITION_END, LODE_FP32, q};
    lode_cluster_info_t before, after;
    MUST(lode_cluster_query(cluster, &before));
    both(cluster, 0, &stream, 1, true, "first look");
    CHECK(on_device.stats.records_hit == 0);
    both(cluster, 0, &stream, 1, true, "second look");
    CHECK(on_device.stats.records_hit > on_device.stats.records_wanted / 2, "%llu hits of %llu",
          (unsigned long long)on_device.stats.records_hit, (unsigned long long)on_device.stats.records_wanted);
    MUST(lode_cluster_query(cluster, &after));
    CHECK(after.device_looked - before.device_looked == 2 * on_device.stats.records_wanted);
    CHECK(after.device_hits - before.device_hits == on_device.stats.records_hit);
    CHECK(*after.device && after.device_cache_bytes && after.device_landmark_bytes);
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&block));
}

/* After a few steps of one size, none asks for device or pinned memory, also where new tokens come in. */
static void steps_take_nothing(lode_cluster_h cluster)
{
    lode_block_h block = make_block(cluster, LODE_FORMAT_HIGGS4, "landmark2", 64 * 3);
    lode_view_h view = make_view(cluster, &block, 1, NULL, 0, (lode_policy_t){.budget_tokens = 40});
    float q[Q], k[KV], v[KV], out[Q];
    lode_emulator_counts_t warm, after;
    for (int step = 0; step < 8; step++) {
        if (step == 4)
            lode_emulator_count(&warm);
        fill(q, Q);
        fill(k, KV);
        fill(v, KV);
        lode_stream_t stream = {view, 1, LODE_POSITION_END, LODE_FP32, q, k, v, out};
        MUST(lode_step(cluster, 0, &stream, 1, NULL));
    }
    lode_emulator_count(&after);
    CHECK(after.allocs == warm.allocs && after.live == warm.live, "%llu more allocations",
          (unsigned long long)(after.allocs - warm.allocs));
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&block));
}

/* ----------------------------------------------------- landmarks that come by broadcast */

/* One piece in place of those of attend/replicate.c, and how often it was taken. */
static lode_replica_piece_t offered;
static int offers, given_back, read_by_stream;

bool __wrap_lode_replica_next(lode_replica_h replica, lode_replica_piece_t *piece);
void __wrap_lode_replica_give_back(lode_replica_h replica, const lode_replica_piece_t *piece,
                                   lode_device_stream_t stream);

bool __wrap_lode_replica_next(lode_replica_h replica, lode_replica_piece_t *piece)
{
    (void)replica;
    *piece = offered;
    return offers-- > 0;
}

void __wrap_lode_replica_give_back(lode_replica_h replica, const lode_replica_piece_t *piece,
                                   lode_device_stream_t stream)
{
    (void)replica;
    given_back += piece->block == offered.block;
    read_by_stream += stream != NULL;
}

static void broadcasts(lode_cluster_h cluster)
{
    enum { BEFORE = 64 * 2, AFTER = 64 * 5 };
    lode_gpu_t *gpu = cluster->gpu;
    lode_block_h block = make_block(cluster, LODE_FORMAT_BF16, "landmark2", BEFORE);
    lode_view_h view =
        make_view(cluster, &block, 1, NULL, -1, (lode_policy_t){.merge = LODE_MERGE_MEAN, .budget_tokens = 30});
    size_t tile = lode_landmark_tile_bytes(&block->info.landmark, DIM), bytes = (AFTER - BEFORE) / LODE_TILE * tile;
    one(cluster, view, 1, LODE_POSITION_END, true, "before a broadcast");
    append(block, AFTER - BEFORE);
    uint8_t *here = malloc(KV_HEADS * bytes);
    for (uint32_t h = 0; h < KV_HEADS; h++)
        for (uint64_t first = BEFORE, count; first < AFTER; first += count) {
            const uint8_t *tiles;
            count = lode_store_span(cluster->store, block->slot, 1, h, first, AFTER, &tiles);
            memcpy(here + h * bytes + (first - BEFORE) / LODE_TILE * tile, tiles, count / LODE_TILE * tile);
        }
    void *there;
    MUST(gpu->ops->alloc(gpu->device, KV_HEADS * bytes, &there));
    MUST(gpu->ops->copy(gpu->stream, there, here, KV_HEADS * bytes));
    MUST(gpu->ops->stream_wait(gpu->stream));
    offered = (lode_replica_piece_t){block->info.id, 1, KV_HEADS, BEFORE, AFTER, there, bytes, 0};
    offers = 2; /* the second is what the mirror has by then */
    given_back = read_by_stream = 0;
    one(cluster, view, 1, LODE_POSITION_END, true, "after a broadcast");
    CHECK(given_back == 2 && read_by_stream == 1, "%d given back, %d taken", given_back, read_by_stream);
    offers = 0;
    gpu->ops->free(gpu->device, there);
    free(here);
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&block));
}

/* --------------------------------------------------------- streams and graphs */

/* A tensor in device memory. */
static void *place(lode_gpu_t *gpu, const void *from, size_t bytes)
{
    void *there;
    MUST(gpu->ops->alloc(gpu->device, bytes, &there));
    if (from) {
        MUST(gpu->ops->copy(gpu->stream, there, from, bytes));
        MUST(gpu->ops->stream_wait(gpu->stream));
    }
    return there;
}

static void compare_out(lode_gpu_t *gpu, lode_device_stream_t stream, const float *out, const char *what)
{
    float here[Q];
    MUST(gpu->ops->copy(stream, here, out, sizeof here));
    MUST(gpu->ops->stream_wait(stream));
    double d = difference(here, on_cpu.out, Q);
    CHECK(d <= 1e-2, "%s: outputs differ by %g", what, d);
}

static void refuse_captures(lode_cluster_h cluster, lode_stream_t stream, lode_device_stream_t on, lode_view_h writes)
{
    lode_gpu_t *gpu = cluster->gpu;
    lode_device_graph_t graph = NULL;
    float host[Q] = {0};
    lode_stream_t wrong = stream;
    MUST(gpu->ops->capture_begin(on));
    wrong.q = host;
    REFUSED(lode_step_enqueue(cluster, 0, &wrong, 1, on, NULL), LODE_ERR_INVALID, "pinned");
    wrong = stream;
    wrong.view = writes;
    wrong.k = wrong.v = stream.q;
    REFUSED(lode_step_enqueue(cluster, 0, &wrong, 1, on, NULL), LODE_ERR_UNSUPPORTED, "new keys");
    REFUSED(lode_step_enqueue(cluster, 1, &stream, 1, on, NULL), LODE_ERR_UNSUPPORTED, "before it is captured");
    if (gpu->ops->capture_end(on, &graph) == LODE_OK)
        gpu->ops->graph_destroy(graph);
}

static void enqueue_and_replay(lode_cluster_h cluster)
{
    lode_gpu_t *gpu = cluster->gpu;
    lode_block_h block = make_block(cluster, LODE_FORMAT_BF16, "landmark2", 64 * 5 + 3);
    lode_policy_t policy = {.merge = LODE_MERGE_MEAN, .budget_tokens = 48};
    lode_view_h view = make_view(cluster, &block, 1, NULL, -1, policy);
    lode_view_h writes = make_view(cluster, &block, 1, NULL, 0, policy);
    lode_device_stream_t on;
    MUST(gpu->ops->stream_create(gpu->device, &on));
    float q[Q], host[Q];
    fill(q, Q);
    void *q_there = place(gpu, q, sizeof q), *out = place(gpu, NULL, sizeof q);
    lode_stream_t cpu = {view, 1, LODE_POSITION_END, LODE_FP32, q};
    lode_stream_t stream = {view, 1, LODE_POSITION_END, LODE_FP32, q_there, .out = out};
    take_step_on_cpu(cluster, 0, &cpu, 1, &on_cpu);
    lode_step_stats_t stats;
    lode_status_t first = lode_step_enqueue(cluster, 0, &stream, 1, on, &stats);
    CHECK(first == LODE_OK);
    compare_out(gpu, on, out, "enqueued");
    lode_stream_t to_host = {view, 1, LODE_POSITION_END, LODE_FP32, q, .out = host};
    MUST(lode_step_enqueue(cluster, 0, &to_host, 1, on, &stats));
    CHECK(difference(host, on_cpu.out, Q) <= 1e-2 && stats.records_wanted == on_cpu.stats.records_wanted);
    refuse_captures(cluster, stream, on, writes);
    lode_device_graph_t graph;
    MUST(gpu->ops->capture_begin(on));
    lode_status_t captured = lode_step_enqueue(cluster, 0, &stream, 1, on, &stats);
    CHECK(captured == (ranks == 1 ? LODE_OK : LODE_ERR_UNSUPPORTED));
    lode_status_t ended = gpu->ops->capture_end(on, &graph);
    CHECK(ranks > 1 || ended == LODE_OK);
    for (int turn = 0; captured == LODE_OK && turn < 3; turn++) {
        fill(q, Q);
        take_step_on_cpu(cluster, 0, &cpu, 1, &on_cpu);
        MUST(gpu->ops->copy(on, q_there, q, sizeof q));
        MUST(gpu->ops->graph_launch(graph, on));
        compare_out(gpu, on, out, "replayed");
        if (turn == 0) /* steps in between, with tables of their own */
            one(cluster, view, 4, LODE_POSITION_END, true, "between replays");
    }
    if (ended == LODE_OK)
        gpu->ops->graph_destroy(graph);
    gpu->ops->stream_destroy(on);
    gpu->ops->free(gpu->device, q_there);
    gpu->ops->free(gpu->device, out);
    MUST(lode_view_destroy(&writes));
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&block));
}

/* ---------------------------------------------------------------- bad input */

static void bad_pointers(lode_cluster_h cluster)
{
    lode_gpu_t *gpu = cluster->gpu;
    lode_device_h other;
    lode_device_stream_t stranger;
    void *away;
    MUST(gpu->ops->open(1, &other));
    MUST(gpu->ops->stream_create(other, &stranger));
    MUST(gpu->ops->alloc(other, sizeof(float) * Q, &away));
    lode_block_h block = make_block(cluster, LODE_FORMAT_BF16, "landmark2", 70);
    lode_view_h view = make_view(cluster, &block, 1, NULL, -1, dense);
    float q[Q], out[Q];
    fill(q, Q);
    lode_stream_t stream = {view, 1, LODE_POSITION_END, LODE_FP32, q, .out = out};
    CHECK(lode_step_enqueue(cluster, 0, &stream, 1, stranger, NULL) == LODE_ERR_INVALID, "a stream of another device");
    stream.q = away;
    REFUSED(lode_step(cluster, 0, &stream, 1, NULL), LODE_ERR_INVALID, "another device");
    stream.q = q;
    stream.out = away;
    REFUSED(lode_step(cluster, 0, &stream, 1, NULL), LODE_ERR_INVALID, "another device");
    stream.out = out;
    void *share = place(gpu, NULL, 64);
    stream.lost_share = share;
    REFUSED(lode_step(cluster, 0, &stream, 1, NULL), LODE_ERR_INVALID, "lost_share");
    stream.lost_share = NULL;
    q[3] = NAN;
    CHECK(lode_step(cluster, 0, &stream, 1, NULL) == LODE_ERR_NONFINITE);
    q[3] = 0;
    one(cluster, view, 1, LODE_POSITION_END, true, "after what was refused");
    struct lode_gpu *hidden = cluster->gpu;
    cluster->gpu = NULL;
    REFUSED(lode_step_enqueue(cluster, 0, &stream, 1, NULL, NULL), LODE_ERR_UNSUPPORTED, "--device");
    cluster->gpu = hidden;
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&block));
    gpu->ops->free(gpu->device, share);
    gpu->ops->free(other, away);
    gpu->ops->stream_destroy(stranger);
    gpu->ops->close(&other);
}

/* -------------------------------------------------------------- other ranks */

/* Every rank steps over what rank 0 wrote. */
static void shared_blocks(lode_cluster_h cluster)
{
    const char *names[] = {"shared a", "shared b"};
    lode_block_h blocks[2];
    for (int b = 0; b < 2; b++) {
        lode_block_params_t params = {.name = names[b], .format = b ? LODE_FORMAT_HIGGS4 : LODE_FORMAT_BF16};
        MUST(lode_landmark_parse("landmark2", &params.landmark));
        if (rank == 0) {
            MUST(lode_block_create(cluster, &params, &blocks[b]));
            append(blocks[b], 64 * 7);
        }
        MPI_Barrier(MPI_COMM_WORLD);
        if (rank > 0)
            MUST(lode_block_open(cluster, names[b], &blocks[b]));
    }
    lode_view_h few = make_view(cluster, blocks, 2, NULL, -1,
                                (lode_policy_t){.merge = LODE_MERGE_MEAN, .budget_tokens = 90, .sinks = 3});
    lode_view_h all = make_view(cluster, blocks, 2, NULL, -1, dense);
    for (int turn = 0; turn < 2; turn++) {
        one(cluster, few, 2, LODE_POSITION_END, true, "shared blocks");
        one(cluster, all, 1, LODE_POSITION_END, true, "all of shared blocks"); /* several tiles */
        CHECK(ranks == 1 || on_cpu.stats.records_fetched > 0);
    }
    MUST(lode_view_destroy(&few));
    MUST(lode_view_destroy(&all));
    MPI_Barrier(MPI_COMM_WORLD);
    for (int b = 0; b < 2; b++)
        MUST(rank ? lode_block_close(&blocks[b]) : lode_block_drop(&blocks[b]));
}

/* Pages that nobody has any more: by policy an error, or left out. */
static void lost_pages(lode_cluster_h cluster)
{
    lode_block_params_t params = {.name = "gone", .format = LODE_FORMAT_FP8};
    MUST(lode_landmark_parse("landmark2", &params.landmark));
    lode_block_h block;
    if (rank == 0) {
        MUST(lode_block_create(cluster, &params, &block));
        append(block, 64 * 6);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank > 0)
        MUST(lode_block_open(cluster, "gone", &block));
    lode_policy_t skips = {.select = LODE_SELECT_DENSE, .lost = LODE_LOST_SKIP};
    lode_policy_t few = {.merge = LODE_MERGE_MEAN, .budget_tokens = 100, .lost = LODE_LOST_SKIP};
    lode_view_h views[] = {make_view(cluster, &block, 1, NULL, -1, skips), make_view(cluster, &block, 1, NULL, -1, few),
                           make_view(cluster, &block, 1, NULL, -1, dense)};
    MPI_Barrier(MPI_COMM_WORLD);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        for (uint32_t page = 1; page < 5; page += 3)
            lode_shard_drop_page(cluster->shard, (lode_page_id_t){block->info.id, layer, page});
    MPI_Barrier(MPI_COMM_WORLD);
    static float q[2 * Q];
    fill(q, 2 * Q);
    lode_stream_t streams[] = {{views[0], 2, LODE_POSITION_END, LODE_FP32, q},
                               {views[1], 2, LODE_POSITION_END, LODE_FP32, q}};
    for (int turn = 0; turn < 2; turn++) {
        both(cluster, 0, streams, 2, true, "lost pages");
        CHECK(on_device.stats.records_lost == 2 * 64 * KV_HEADS && on_device.share[0] > 0, "%llu lost, %g",
              (unsigned long long)on_device.stats.records_lost, on_device.share[0]);
    }
    float out[2 * Q];
    lode_stream_t stream = {views[2], 2, LODE_POSITION_END, LODE_FP32, q, .out = out};
    REFUSED(lode_step(cluster, 1, &stream, 1, NULL), LODE_ERR_PAGE_LOST, "page");
    one(cluster, views[0], 1, LODE_POSITION_END, true, "after lost pages");
    for (int i = 0; i < 3; i++)
        MUST(lode_view_destroy(&views[i]));
    MPI_Barrier(MPI_COMM_WORLD);
    MUST(rank ? lode_block_close(&block) : lode_block_drop(&block));
}

/* ------------------------------------------------------------- fetched ahead */

static bool under_way(const lode_cluster_h cluster)
{
    const lode_gpu_ahead_t *ahead = &cluster->gpu->ahead;
    return ahead->tiles[ahead->turn].fetching;
}

/* A block of rank 0's that the others open. */
static lode_block_h share(lode_cluster_h cluster, const char *name, uint64_t tokens)
{
    lode_block_params_t params = {.name = name, .format = LODE_FORMAT_FP8};
    lode_block_h block;
    MUST(lode_landmark_parse("landmark2", &params.landmark));
    if (rank == 0) {
        MUST(lode_block_create(cluster, &params, &block));
        append(block, tokens);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank > 0)
        MUST(lode_block_open(cluster, name, &block));
    return block;
}

static void stop_sharing(lode_block_h *block)
{
    MPI_Barrier(MPI_COMM_WORLD);
    MUST(rank ? lode_block_close(block) : lode_block_drop(block));
}

/* A step of one token, in device memory alone: what is fetched ahead is left under way. */
static const lode_step_stats_t *ahead_step(lode_cluster_h cluster, lode_view_h view, uint32_t layer, const float *q)
{
    lode_stream_t stream = {view, 1, LODE_POSITION_END, LODE_FP32, q};
    take_step(cluster, layer, &stream, 1, &on_device);
    return &on_device.stats;
}

/* The same beside the CPU, whose step takes the landing buffers: nothing is under way then. */
static void ahead_check(lode_cluster_h cluster, lode_view_h view, uint32_t layer, const float *q, const char *what)
{
    lode_stream_t stream = {view, 1, LODE_POSITION_END, LODE_FP32, q};
    take_step_on_cpu(cluster, layer, &stream, 1, &on_cpu);
    compare(&on_device, &on_cpu, 1, true, what);
}

static void guesses(lode_cluster_h cluster, lode_view_h view, lode_view_h other)
{
    lode_gpu_ahead_t *ahead = &cluster->gpu->ahead;
    float q[Q], elsewhere[Q];
    uint64_t remote[LAYERS], payload[LAYERS];
    fill(q, Q);
    fill(elsewhere, Q);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        const lode_step_stats_t *stats = ahead_step(cluster, view, layer, q);
        CHECK(stats->records_prefetched == 0 && stats->records_fetched > 0 && stats->records_hit == 0);
        remote[layer] = stats->records_fetched;
        payload[layer] = stats->bytes_fetched;
    }
    for (uint32_t layer = 0; layer < LAYERS; layer++) { /* all that is remote was asked for already */
        CHECK(under_way(cluster) && ahead->layer == layer);
        const lode_step_stats_t *stats = ahead_step(cluster, view, layer, q);
        CHECK(stats->records_prefetched == remote[layer] && stats->records_fetched == 0, "%llu of %llu",
              (unsigned long long)stats->records_prefetched, (unsigned long long)remote[layer]);
        CHECK(stats->bytes_fetched == payload[layer]);
    }
    ahead_check(cluster, view, LAYERS - 1, q, "fetched ahead");
    ahead_step(cluster, view, 0, q);
    ahead_step(cluster, view, 1, elsewhere); /* another choice: some of it, or nothing, was guessed */
    CHECK(on_device.stats.records_prefetched < remote[1] && on_device.stats.records_fetched > 0);
    ahead_check(cluster, view, 1, elsewhere, "a wrong guess");
    ahead_step(cluster, view, 1, q); /* nothing is under way, after the CPU's step */
    CHECK(on_device.stats.records_prefetched == 0 && under_way(cluster));
    ahead_step(cluster, view, 1, q); /* another layer than was guessed */
    CHECK(on_device.stats.records_prefetched == 0 && under_way(cluster));
    ahead_step(cluster, other, 0, q); /* another view, of other blocks */
    CHECK(on_device.stats.records_prefetched == 0 && !under_way(cluster));
    ahead_check(cluster, other, 0, q, "another view than was guessed");
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        ahead_step(cluster, view, layer, q);
    CHECK(under_way(cluster));
    ahead->epoch++; /* as if the members had changed since */
    ahead_step(cluster, view, 0, q);
    CHECK(on_device.stats.records_prefetched == 0 && on_device.stats.records_fetched == remote[0]);
    ahead->on = false;
    ahead_step(cluster, view, 1, q); /* of the last fetch */
    ahead_step(cluster, view, 0, q);
    ahead_step(cluster, view, 1, q);
    CHECK(on_device.stats.records_prefetched == 0 && !under_way(cluster));
    ahead->on = true;
}

/* Two steps a layer without waiting: gathers of one fetch, and the next fetch under way. */
static void guesses_enqueued(lode_cluster_h cluster, lode_view_h view)
{
    lode_gpu_t *gpu = cluster->gpu;
    lode_device_stream_t on;
    lode_step_stats_t stats;
    lode_emulator_counts_t warm, after;
    float q[Q];
    fill(q, Q);
    MUST(gpu->ops->stream_create(gpu->device, &on));
    void *q_there = place(gpu, q, sizeof q), *out = place(gpu, NULL, sizeof q);
    lode_stream_t stream = {view, 1, LODE_POSITION_END, LODE_FP32, q_there, .out = out};
    for (uint32_t i = 0; i < 4 * LAYERS; i++) {
        if (i == 3 * LAYERS)
            lode_emulator_count(&warm);
        MUST(lode_step_enqueue(cluster, i % LAYERS, &stream, 1, on, &stats));
        CHECK(i < LAYERS || (stats.records_prefetched > 0 && stats.records_fetched == 0), "step %u", i);
    }
    lode_emulator_count(&after);
    CHECK(after.allocs == warm.allocs && after.live == warm.live);
    lode_stream_t cpu = {view, 1, LODE_POSITION_END, LODE_FP32, q};
    take_step_on_cpu(cluster, LAYERS - 1, &cpu, 1, &on_cpu);
    compare_out(gpu, on, out, "enqueued, fetched ahead");
    gpu->ops->stream_destroy(on);
    gpu->ops->free(gpu->device, q_there);
    gpu->ops->free(gpu->device, out);
}

/* What was to come is lost, while it is fetched and before: an error of the step that wants it, or left out. */
static void guesses_lost(lode_cluster_h cluster, lode_block_h block)
{
    lode_view_h fails = make_view(cluster, &block, 1, NULL, -1, dense);
    lode_view_h skips =
        make_view(cluster, &block, 1, NULL, -1, (lode_policy_t){.select = LODE_SELECT_DENSE, .lost = LODE_LOST_SKIP});
    float q[Q], out[Q];
    fill(q, Q);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        ahead_step(cluster, skips, layer, q);
    MUST(lode_gpu_settle(cluster->gpu));
    MPI_Barrier(MPI_COMM_WORLD);
    for (uint32_t page = 0; page < 2; page++)
        lode_shard_drop_page(cluster->shard, (lode_page_id_t){block->info.id, 1, page});
    MPI_Barrier(MPI_COMM_WORLD);
    ahead_step(cluster, skips, 0, q); /* begins what cannot be had */
    CHECK(under_way(cluster));
    lode_stream_t stream = {fails, 1, LODE_POSITION_END, LODE_FP32, q, .out = out};
    REFUSED(lode_step(cluster, 1, &stream, 1, NULL), LODE_ERR_PAGE_LOST, "page");
    CHECK(!under_way(cluster));
    for (int turn = 0; turn < 2; turn++) {
        ahead_step(cluster, skips, 0, q);
        CHECK(!under_way(cluster)); /* what layer 1 lacks is not asked for again */
        ahead_step(cluster, skips, 1, q);
        CHECK(on_device.stats.records_lost == 2 * 64 * KV_HEADS && on_device.stats.records_prefetched == 0);
    }
    ahead_check(cluster, skips, 1, q, "lost pages, fetched ahead");
    MUST(lode_view_destroy(&fails));
    MUST(lode_view_destroy(&skips));
}

static void fetched_ahead(const char *path)
{
    lode_cluster_h cluster = join((const char *[]){"device", "cuda", "gpu-cache", "0", "path", path, NULL});
    lode_policy_t policy = {.merge = LODE_MERGE_MEAN, .budget_tokens = 40};
    lode_block_h blocks[] = {share(cluster, "ahead a", 64 * 6), share(cluster, "ahead b", 64 * 6),
                             share(cluster, "ahead c", 64 * 6)};
    lode_view_h view = make_view(cluster, blocks, 2, NULL, -1, policy),
                other = make_view(cluster, blocks + 1, 1, NULL, -1, policy);
    bool batched = strcmp(path, "batched") == 0;
    if (batched)
        guesses(cluster, view, other);
    guesses_enqueued(cluster, view);
    if (batched) /* a one-sided read finds the bytes of a page that was dropped */
        guesses_lost(cluster, blocks[2]);
    float q[Q], out[Q];
    fill(q, Q);
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        ahead_step(cluster, other, layer, q);
    ahead_step(cluster, other, 0, q);
    CHECK(under_way(cluster));
    stop_sharing(&blocks[2]);
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 0)
        MUST(lode_block_drop(&blocks[1])); /* while it is fetched */
    MPI_Barrier(MPI_COMM_WORLD);
    lode_stream_t stream = {other, 1, LODE_POSITION_END, LODE_FP32, q, .out = out};
    CHECK(lode_step(cluster, 1, &stream, 1, NULL) == LODE_ERR_DROPPED);
    if (rank > 0)
        MUST(lode_block_close(&blocks[1]));
    MUST(lode_view_destroy(&view));
    MUST(lode_view_destroy(&other));
    view = make_view(cluster, blocks, 1, NULL, -1, policy); /* with what was fetched still there */
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        ahead_step(cluster, view, layer, q);
    ahead_check(cluster, view, LAYERS - 1, q, "after a block was dropped");
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        ahead_step(cluster, view, layer, q);
    CHECK(under_way(cluster));
    cluster->gpu->captured = true; /* as after a captured step: then a view that goes waits for nothing */
    MUST(lode_view_destroy(&view));
    stop_sharing(&blocks[0]);
    CHECK(under_way(cluster)); /* or has landed or failed, and nobody has looked */
    MPI_Barrier(MPI_COMM_WORLD);
    MUST(lode_cluster_leave(&cluster));
}

/* ------------------------------------------------------------ little memory */

/* Mirrors go with their blocks, and give way to others' when memory is short. */
static void drops_give_back(lode_cluster_h cluster)
{
    lode_cluster_info_t before, with, after;
    MUST(lode_cluster_query(cluster, &before));
    lode_block_h block = make_block(cluster, LODE_FORMAT_BF16, "landmark8", 600);
    lode_view_h view = make_view(cluster, &block, 1, NULL, -1, (lode_policy_t){.budget_tokens = 20});
    one(cluster, view, 1, LODE_POSITION_END, false, "before a drop");
    MUST(lode_cluster_query(cluster, &with));
    CHECK(with.device_landmark_bytes > before.device_landmark_bytes);
    MUST(lode_block_drop(&block));
    float q[Q], out[Q];
    fill(q, Q);
    lode_stream_t stream = {view, 1, LODE_POSITION_END, LODE_FP32, q, .out = out};
    CHECK(lode_step(cluster, 0, &stream, 1, NULL) == LODE_ERR_DROPPED);
    MUST(lode_view_destroy(&view));
    block = make_block(cluster, LODE_FORMAT_BF16, "landmark1", 70);
    view = make_view(cluster, &block, 1, NULL, -1, (lode_policy_t){.budget_tokens = 20});
    one(cluster, view, 1, LODE_POSITION_END, false, "after a drop");
    MUST(lode_cluster_query(cluster, &after));
    CHECK(after.device_landmark_bytes < with.device_landmark_bytes);
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&block));
}

static void fail_alloc(uint64_t number)
{
    lode_emulator_t settings;
    lode_emulator_get(&settings);
    settings.fail_alloc = number;
    lode_emulator_set(&settings);
}

/* An allocation that fails has mirrors of other blocks given up, and is made again. */
static void memory_that_is_short_for_a_moment(lode_cluster_h cluster)
{
    lode_policy_t policy = {.merge = LODE_MERGE_MEAN, .budget_tokens = 20};
    lode_block_h old = make_block(cluster, LODE_FORMAT_FP8, "landmark2", 100);
    lode_view_h before = make_view(cluster, &old, 1, NULL, -1, policy);
    for (uint64_t number = 1; number <= 4; number++) {
        one(cluster, before, 1, LODE_POSITION_END, true, "a mirror that may go");
        lode_block_h block = make_block(cluster, LODE_FORMAT_FP8, "landmark2", 70);
        lode_view_h view = make_view(cluster, &block, 1, NULL, -1, policy);
        fail_alloc(number);
        one(cluster, view, 1, LODE_POSITION_END, true, "an allocation that fails once");
        fail_alloc(0);
        MUST(lode_view_destroy(&view));
        MUST(lode_block_drop(&block));
    }
    MUST(lode_view_destroy(&before));
    MUST(lode_block_drop(&old));
}

/* What cannot be pinned: the landing buffers are needed, the arena is not. */
static void memory_that_cannot_be_pinned(void)
{
    bool refused = false, without = false;
    for (uint64_t number = 1; number <= 3; number++) {
        lode_cluster_h cluster;
        fail_alloc(number);
        lode_status_t status = try_join((const char *[]){"device", "cuda", NULL}, &cluster);
        fail_alloc(0);
        refused |= status == LODE_ERR_NO_MEMORY && strstr(lode_error_message(), "landing");
        without |= status == LODE_OK && !cluster->gpu->arena_pinned;
        if (status == LODE_OK)
            MUST(lode_cluster_leave(&cluster));
    }
    CHECK(refused && without, "refused: %d, without the arena: %d", refused, without);
}

static void short_memory(void)
{
    lode_emulator_t saved, settings;
    lode_emulator_get(&saved);
    settings = saved;
    settings.memory_bytes = 2 << 20;
    lode_emulator_set(&settings);
    lode_cluster_h cluster = join((const char *[]){"device", "cuda", "gpu-cache", "16MiB", "gpu-prefetch", "no", NULL});
    CHECK(!cluster->gpu->ahead.on);
    lode_block_h block = make_block(cluster, LODE_FORMAT_HIGGS4, "landmark2", 200);
    lode_view_h view = make_view(cluster, &block, 1, NULL, -1, (lode_policy_t){.budget_tokens = 20});
    lode_cluster_info_t info;
    MUST(lode_cluster_query(cluster, &info));
    CHECK(info.device_cache_bytes > 0 && info.device_cache_bytes <= 2 << 20, "a cache of %llu bytes",
          (unsigned long long)info.device_cache_bytes);
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&block));
    MUST(lode_cluster_leave(&cluster));
    settings.memory_bytes = 600 << 10;
    lode_emulator_set(&settings);
    cluster = join((const char *[]){"device", "cuda", "gpu-cache", "0", NULL});
    block = make_block(cluster, LODE_FORMAT_HIGGS4, "landmark8", 9000);
    view = make_view(cluster, &block, 1, NULL, -1, (lode_policy_t){.budget_tokens = 20});
    float q[Q], out[Q];
    fill(q, Q);
    lode_stream_t stream = {view, 1, LODE_POSITION_END, LODE_FP32, q, .out = out};
    REFUSED(lode_step(cluster, 0, &stream, 1, NULL), LODE_ERR_NO_MEMORY, "landmarks");
    CHECK(strstr(lode_error_message(), "free"));
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&block));
    MUST(lode_cluster_leave(&cluster));
    lode_emulator_set(&saved);
}

static void devices_that_are_not(void)
{
    lode_emulator_t saved, settings;
    lode_cluster_h cluster;
    lode_emulator_get(&saved);
    REFUSED(try_join((const char *[]){"device", "cuda", "device-ordinal", "7", NULL}, &cluster), LODE_ERR_INVALID,
            "device-ordinal 7");
    REFUSED(try_join((const char *[]){"device-ordinal", "x", NULL}, &cluster), LODE_ERR_INVALID, "device-ordinal");
    REFUSED(try_join((const char *[]){"gpu-cache", "many", NULL}, &cluster), LODE_ERR_INVALID, "gpu-cache");
    settings = saved;
    settings.driver = false;
    lode_emulator_set(&settings);
    REFUSED(try_join((const char *[]){"device", "cuda", NULL}, &cluster), LODE_ERR_UNSUPPORTED, "--device cuda");
    cluster = join((const char *[]){"device", "auto", NULL});
    CHECK(!cluster->gpu);
    MUST(lode_cluster_leave(&cluster));
    lode_emulator_set(&saved);
    cluster = join(NULL);
    CHECK(!cluster->gpu);
    MUST(lode_cluster_leave(&cluster));
}

/* An arena that cannot be pinned: own pages go through another buffer. */
static void unpinned_arena(void)
{
    lode_cluster_h cluster = join((const char *[]){"device", "cuda", "gpu-cache", "64KiB", NULL});
    lode_gpu_t *gpu = cluster->gpu;
    gpu->ops->unpin(gpu->device, lode_fabric_arena(cluster->fabric));
    gpu->arena_pinned = false;
    lode_block_h block = make_block(cluster, LODE_FORMAT_BF16, "landmark2", 64 * 5);
    lode_view_h view = make_view(cluster, &block, 1, NULL, -1, dense);
    one(cluster, view, 1, LODE_POSITION_END, true, "an arena that is not pinned");
    one(cluster, view, 1, LODE_POSITION_END, true, "an arena that is not pinned, again");
    MUST(lode_view_destroy(&view));
    MUST(lode_block_drop(&block));
    MPI_Barrier(MPI_COMM_WORLD);
    MUST(lode_cluster_leave(&cluster));
}

static void two_devices(void)
{
    lode_emulator_t settings;
    lode_emulator_get(&settings);
    settings.devices = 2;
    lode_emulator_set(&settings);
}

int main(int argc, char **argv)
{
    lode_emulator_counts_t after;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    seed = 1000u * (unsigned)rank + 1;
    two_devices();
    lode_cluster_h cluster =
        join((const char *[]){"device", "cuda", "gpu-cache", "1MiB", "device-ordinal", "0", "path", "batched", NULL});
    CHECK(cluster->gpu && cluster->gpu->ahead.on);
    if (ranks == 1) { /* what other ranks have no part in */
        formats_and_landmarks(cluster);
        writes_and_growth(cluster);
        drafts_crops_and_moves(cluster);
        steps_take_nothing(cluster);
        broadcasts(cluster);
        drops_give_back(cluster);
    }
    if (ranks == 1 && lode_emulator_here()) { /* memory that fails, and two devices */
        memory_that_is_short_for_a_moment(cluster);
        bad_pointers(cluster);
    }
    views_and_streams(cluster);
    rounds(cluster);
    hits(cluster);
    shared_blocks(cluster);
    lost_pages(cluster);
    enqueue_and_replay(cluster);
    hits(cluster); /* with graphs about, memory is retired and not freed */
    MPI_Barrier(MPI_COMM_WORLD);
    MUST(lode_cluster_leave(&cluster));
    unpinned_arena();
    if (ranks > 1) {
        fetched_ahead("batched");
        fetched_ahead("one-sided");
    }
    if (ranks == 1 && lode_emulator_here()) {
        memory_that_cannot_be_pinned();
        short_memory();
        devices_that_are_not();
    }
    lode_emulator_count(&after);
    CHECK(after.live == 0 && after.bytes_in_use == 0, "%llu things of the device are left, %llu bytes",
          (unsigned long long)after.live, (unsigned long long)after.bytes_in_use);
    int all;
    MPI_Allreduce(&failures, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Finalize();
    return all > 0;
}
