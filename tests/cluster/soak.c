/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Steps in a loop against a service, each compared bit by bit with what one rank alone computed before.
 *
 *   soak reference FILE             compute it, in this process, without a service
 *   soak put REPLICAS               put the blocks into the service of LODEMARK_CLUSTER
 *   soak run FILE SECONDS JSON      steps until SECONDS are over or SIGTERM comes; the result to JSON
 *   soak fill REPLICAS              put a block as long as there is room; must end in LODE_ERR_FULL, nothing kept
 */
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

enum {
    LAYERS = 2,
    QUERY_HEADS = 8,
    KV_HEADS = 2,
    DIM = 64,
    BLOCKS = 3,
    RECIPES = 24,
    TOKENS_MAX = 3,
    STALL_MS = 20,
    STALLS_MAX = 1 << 14,
    NAP_MS = 5
};

static const uint64_t lengths[BLOCKS] = {3000, 5000, 1234};
static const char *const names[BLOCKS] = {"soak one", "soak two", "soak three"};

#define MUST(call)                                                                                           \
    do {                                                                                                     \
        lode_status_t status_ = (call);                                                                      \
        if (status_ != LODE_OK) {                                                                            \
            fprintf(stderr, "soak: %s: %s: %s\n", #call, lode_status_string(status_), lode_error_message()); \
            _exit(1);                                                                                        \
        }                                                                                                    \
    } while (0)

/* --------------------------------------------------------------- what is asked */

static float value_at(uint64_t seed, uint64_t i)
{
    int64_t sum = 0; /* of uniform deviates: near enough to normal */
    for (uint64_t j = 0; j < 4; j++)
        sum += (int64_t)(lode_mix(seed, 4 * i + j) >> 40) - (1 << 23);
    return (float)sum * (1.0f / (1 << 23));
}

static float *tensor(uint64_t seed, size_t n)
{
    float *x = malloc((n + 1) * sizeof *x);
    for (size_t i = 0; x && i < n; i++)
        x[i] = value_at(seed, i);
    return x;
}

/** One step: over which blocks, with which budget and queries. */
typedef struct recipe {
    uint32_t layer, tokens, count;
    uint32_t blocks[BLOCKS];
    lode_policy_t policy;
    float *q;
    lode_view_h view;
} recipe_t;

static recipe_t recipe_of(uint32_t i)
{
    uint64_t dice = lode_mix(77, i);
    recipe_t r = {.layer = i % LAYERS, .tokens = 1 + (uint32_t)(dice >> 8) % TOKENS_MAX};
    uint32_t first = (uint32_t)(dice >> 16) % BLOCKS;
    r.count = 1 + (uint32_t)(dice >> 24) % BLOCKS;
    for (uint32_t b = 0; b < r.count; b++)
        r.blocks[b] = (first + b) % BLOCKS;
    r.policy = (lode_policy_t){.budget_share = 0.02 + 0.01 * (double)((dice >> 32) % 20), .sinks = 4, .window = 32};
    if (i % 8 == 7)
        r.policy = (lode_policy_t){.select = LODE_SELECT_DENSE};
    r.q = tensor(1000 + i, (size_t)r.tokens * QUERY_HEADS * DIM);
    return r;
}

static const lode_geometry_t geometry = {
    .layers = LAYERS, .query_heads = QUERY_HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .rope = {.theta = 10000}};

static void put_block(lode_cluster_h cluster, const char *name, uint64_t seed, uint64_t tokens, uint32_t replicas)
{
    size_t n = (size_t)tokens * KV_HEADS * DIM;
    lode_block_params_t params = {.name = name, .format = LODE_FORMAT_FP8, .replicas = replicas};
    lode_block_h block;
    MUST(lode_landmark_parse("landmark2", &params.landmark));
    MUST(lode_block_create(cluster, &params, &block));
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        float *k = tensor(seed + 10 * layer, n), *v = tensor(seed + 10 * layer + 1, n);
        MUST(lode_block_append(block, layer, tokens, LODE_FP32, k, v));
        free(k);
        free(v);
    }
    MUST(lode_block_seal(block));
    MUST(lode_block_close(&block));
}

static void put_all(lode_cluster_h cluster, uint32_t replicas)
{
    MUST(lode_cluster_shape(cluster, &geometry));
    for (uint32_t b = 0; b < BLOCKS; b++)
        put_block(cluster, names[b], 100 * (b + 1), lengths[b], replicas);
}

static void open_views(lode_cluster_h cluster, recipe_t *recipes)
{
    lode_block_h blocks[BLOCKS];
    for (uint32_t b = 0; b < BLOCKS; b++)
        MUST(lode_block_open(cluster, names[b], &blocks[b]));
    for (uint32_t i = 0; i < RECIPES; i++) {
        recipes[i] = recipe_of(i);
        lode_block_h seen[BLOCKS];
        for (uint32_t b = 0; b < recipes[i].count; b++)
            seen[b] = blocks[recipes[i].blocks[b]];
        lode_view_params_t params = {seen, NULL, recipes[i].count, -1, 0, recipes[i].policy};
        MUST(lode_view_create(cluster, &params, &recipes[i].view));
    }
    for (uint32_t b = 0; b < BLOCKS; b++)
        MUST(lode_block_close(&blocks[b]));
}

static lode_status_t step(lode_cluster_h cluster, const recipe_t *r, float *out)
{
    lode_stream_t stream = {
        .view = r->view, .tokens = r->tokens, .position = LODE_POSITION_END, .dtype = LODE_FP32, .q = r->q, .out = out};
    return lode_step(cluster, r->layer, &stream, 1, NULL);
}

static void close_views(recipe_t *recipes)
{
    for (uint32_t i = 0; i < RECIPES; i++) {
        MUST(lode_view_destroy(&recipes[i].view));
        free(recipes[i].q);
    }
}

enum { OUT_FLOATS = TOKENS_MAX * QUERY_HEADS * DIM };

static size_t out_bytes(const recipe_t *r)
{
    return (size_t)r->tokens * QUERY_HEADS * DIM * sizeof(float);
}

/* ------------------------------------------------------------------ commands */

static int reference(const char *path)
{
    lode_config_h config;
    lode_cluster_h cluster;
    recipe_t recipes[RECIPES];
    static float out[RECIPES][OUT_FLOATS];
    MUST(lode_config_create(&config));
    MUST(lode_cluster_join(config, &geometry, &cluster));
    put_all(cluster, 1);
    open_views(cluster, recipes);
    for (uint32_t i = 0; i < RECIPES; i++)
        MUST(step(cluster, &recipes[i], out[i]));
    close_views(recipes);
    MUST(lode_cluster_leave(&cluster));
    lode_config_destroy(&config);
    FILE *file = fopen(path, "wb");
    bool good = file && fwrite(out, sizeof out, 1, file) == 1;
    good = file && fclose(file) == 0 && good;
    return good ? 0 : 1;
}

static volatile sig_atomic_t stop;

static void on_signal(int signal)
{
    (void)signal;
    stop = 1;
}

typedef struct result {
    uint64_t steps, failed, wrong;
    char first_failure[512];
    double longest_ms;
    json_t *stalls; /* those over STALL_MS */
} result_t;

/** What the machine alone does to a thread that only sleeps: no stall shorter than that is anybody's doing. */
typedef struct watch {
    pthread_t thread;
    atomic_bool stop;
    json_t *pauses; /* naps that took STALL_MS too long */
} watch_t;

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static void *watch_main(void *context)
{
    watch_t *watch = context;
    double before = now_ms(), now;
    for (; !atomic_load(&watch->stop); before = now) {
        nanosleep(&(struct timespec){.tv_nsec = NAP_MS * 1000000}, NULL);
        now = now_ms();
        if (now - before > STALL_MS + NAP_MS && json_array_size(watch->pauses) < STALLS_MAX)
            json_array_append_new(watch->pauses, json_pack("{s:f s:f}", "at_ms", before, "ms", now - before - NAP_MS));
    }
    return NULL;
}

static void watch_begin(watch_t *watch)
{
    watch->pauses = json_array();
    if (pthread_create(&watch->thread, NULL, watch_main, watch) != 0)
        _exit(1);
}

static json_t *watch_end(watch_t *watch)
{
    atomic_store(&watch->stop, true);
    pthread_join(watch->thread, NULL);
    return watch->pauses;
}

static void judge(result_t *result, lode_status_t status, const recipe_t *r, const float *out, const float *expected,
                  double begin_ms)
{
    double ms = now_ms() - begin_ms;
    result->steps++;
    result->longest_ms = ms > result->longest_ms ? ms : result->longest_ms;
    if (ms > STALL_MS && json_array_size(result->stalls) < STALLS_MAX)
        json_array_append_new(result->stalls, json_pack("{s:f s:f}", "at_ms", begin_ms, "ms", ms));
    if (status != LODE_OK) {
        if (result->failed++ == 0)
            snprintf(result->first_failure, sizeof result->first_failure, "%s: %s", lode_status_string(status),
                     lode_error_message());
        fprintf(stderr, "soak: %.3f: a step failed: %s\n", begin_ms * 1e-3, lode_error_message());
        usleep(10000);
    } else if (memcmp(out, expected, out_bytes(r)) != 0) {
        result->wrong++;
    }
}

static void loop(lode_cluster_h cluster, const recipe_t *recipes, float (*expected)[OUT_FLOATS], double seconds,
                 result_t *result)
{
    float out[OUT_FLOATS];
    double end = now_ms() + seconds * 1e3, begin;
    for (uint32_t i = 0; !stop && (begin = now_ms()) < end; i = (i + 1) % RECIPES) {
        memset(out, 0xff, sizeof out);
        lode_status_t status = step(cluster, &recipes[i], out);
        judge(result, status, &recipes[i], out, expected[i], begin);
    }
}

static int run(const char *path, double seconds, const char *json)
{
    static float expected[RECIPES][OUT_FLOATS];
    lode_config_h config;
    lode_cluster_h cluster;
    recipe_t recipes[RECIPES];
    result_t result = {.stalls = json_array()};
    watch_t watch = {0};
    FILE *file = fopen(path, "rb");
    if (!file || fread(expected, sizeof expected, 1, file) != 1) {
        fprintf(stderr, "soak: %s cannot be read\n", path);
        return 1;
    }
    fclose(file);
    signal(SIGTERM, on_signal);
    MUST(lode_config_create(&config));
    MUST(lode_cluster_connect(config, NULL, NULL, &cluster));
    open_views(cluster, recipes);
    printf("soak: steps begin\n");
    fflush(stdout);
    watch_begin(&watch);
    loop(cluster, recipes, expected, seconds, &result);
    json_t *object = json_pack("{s:I s:I s:I s:s s:f s:o s:o}", "steps", (json_int_t)result.steps, "failed_steps",
                               (json_int_t)result.failed, "wrong_steps", (json_int_t)result.wrong, "first_failure",
                               result.first_failure, "longest_ms", result.longest_ms, "stalls", result.stalls, "pauses",
                               watch_end(&watch));
    int bad = json_dump_file(object, json, JSON_INDENT(2)) || result.failed || result.wrong;
    json_decref(object);
    close_views(recipes);
    MUST(lode_cluster_leave(&cluster));
    lode_config_destroy(&config);
    return bad ? 1 : 0;
}

static int put(uint32_t replicas)
{
    lode_config_h config;
    lode_cluster_h cluster;
    MUST(lode_config_create(&config));
    MUST(lode_cluster_connect(config, NULL, NULL, &cluster));
    put_all(cluster, replicas);
    MUST(lode_cluster_leave(&cluster));
    lode_config_destroy(&config);
    return 0;
}

static int fill(uint32_t replicas)
{
    enum { PIECE = 4096 };
    lode_config_h config;
    lode_cluster_h cluster;
    lode_block_h block;
    lode_block_params_t params = {.name = "soak fill", .format = LODE_FORMAT_BF16, .replicas = replicas};
    float *x = tensor(5, (size_t)PIECE * KV_HEADS * DIM);
    lode_status_t status = LODE_OK;
    MUST(lode_landmark_parse("landmark2", &params.landmark));
    MUST(lode_config_create(&config));
    MUST(lode_cluster_connect(config, NULL, NULL, &cluster));
    MUST(lode_block_create(cluster, &params, &block));
    for (uint32_t i = 0; i < 10000 && status == LODE_OK; i++)
        status = lode_block_append(block, 0, PIECE, LODE_FP32, x, x);
    fprintf(stderr, "soak: filled until: %s\n", lode_error_message());
    MUST(lode_block_drop(&block));
    MUST(lode_cluster_leave(&cluster));
    lode_config_destroy(&config);
    free(x);
    return status == LODE_ERR_FULL ? 0 : 1;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "reference") == 0)
        return reference(argv[2]);
    if (argc == 3 && strcmp(argv[1], "put") == 0)
        return put((uint32_t)atoi(argv[2]));
    if (argc == 3 && strcmp(argv[1], "fill") == 0)
        return fill((uint32_t)atoi(argv[2]));
    if (argc == 5 && strcmp(argv[1], "run") == 0)
        return run(argv[2], atof(argv[3]), argv[4]);
    fprintf(stderr, "soak reference FILE | put REPLICAS | fill REPLICAS | run FILE SECONDS JSON\n");
    return 2;
}
