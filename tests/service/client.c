/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client of a running service (LODEMARK_CLUSTER, LODEMARK_TOKEN_FILE), as several tests need one:
 *
 *   same              every kind of call gives the same bits as a rank that runs alone, in this process
 *   latency N         N steps; what a client pays above the rank's own step
 *   steps N PAUSE_MS  a step again and again: all alike, none failed; ends by an interrupt; says its rank first, at the
 *                     end the longest stall
 *   beside RANK PID   stops that process, which is that rank; steps go on while another client waits for its numbers
 *   many K N          K processes at once, N steps each: all alike
 *   writer            says its rank, waits for a line of input; its rank is dead then, and what it had not sealed lost
 *   dies WHEN         leaves without a word: "put" amid an append, "step" amid a step, "open" with an unsealed block
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/base.h"

enum { LAYERS = 2, TOKENS = 3000, HEADS = 8, KV_HEADS = 2, DIM = 64, ROWS = 3 };

static const lode_geometry_t geometry = {
    .layers = LAYERS, .query_heads = HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .rope = {.theta = 500000}};

#define TRY(call)                                                                                              \
    do {                                                                                                       \
        lode_status_t status_ = (call);                                                                        \
        if (status_ != LODE_OK) {                                                                              \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, lode_status_string(status_), lode_error_message()); \
            _exit(1);                                                                                          \
        }                                                                                                      \
    } while (0)
#define CHECK(condition)                                                                               \
    do {                                                                                               \
        if (!(condition)) {                                                                            \
            fprintf(stderr, "line %d: not so: %s (%s)\n", __LINE__, #condition, lode_error_message()); \
            _exit(1);                                                                                  \
        }                                                                                              \
    } while (0)

static float *noise(size_t n, unsigned seed)
{
    float *x = malloc(n * sizeof *x);
    CHECK(x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)rand_r(&seed) / (float)RAND_MAX * 4 - 2;
    return x;
}

static lode_cluster_h connect_client(void)
{
    lode_config_h config;
    lode_cluster_h cluster;
    TRY(lode_config_create(&config));
    TRY(lode_cluster_connect(config, NULL, NULL, &cluster));
    lode_config_destroy(&config);
    return cluster;
}

static lode_block_h create_block(lode_cluster_h cluster, const char *name, lode_format_t format)
{
    lode_block_params_t params = {.name = name, .format = format};
    lode_block_h block;
    TRY(lode_landmark_parse("landmark2", &params.landmark));
    TRY(lode_block_create(cluster, &params, &block));
    return block;
}

/* Uneven appends: one as a whole, one that ends amid a page. */
static void fill(lode_block_h block, unsigned seed)
{
    size_t row = KV_HEADS * DIM;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        float *k = noise(TOKENS * row, seed + layer), *v = noise(TOKENS * row, seed + 100 + layer);
        TRY(lode_block_append(block, layer, 2000, LODE_FP32, k, v));
        TRY(lode_block_append(block, layer, TOKENS - 2000, LODE_FP32, k + 2000 * row, v + 2000 * row));
        free(k);
        free(v);
    }
}

static lode_view_h view_of(lode_cluster_h cluster, lode_block_h *blocks, uint32_t count, int32_t write_block)
{
    lode_policy_t policy = {.select = LODE_SELECT_LANDMARK, .budget_share = 0.05, .sinks = 4, .window = 16};
    lode_view_params_t params = {.blocks = blocks, .count = count, .write_block = write_block, .policy = policy};
    lode_view_h view;
    TRY(lode_view_create(cluster, &params, &view));
    return view;
}

static void say_rank(lode_cluster_h cluster)
{
    lode_cluster_info_t info;
    TRY(lode_cluster_query(cluster, &info));
    printf("rank %u\n", info.rank);
    fflush(stdout);
}

/* The document that several clients use: whoever comes first puts it. */
static lode_view_h open_document(lode_cluster_h cluster)
{
    lode_block_h block;
    TRY(lode_cluster_shape(cluster, &geometry));
    if (lode_block_open(cluster, "shared", &block) != LODE_OK) {
        block = create_block(cluster, "shared", LODE_FORMAT_FP8);
        fill(block, 7);
        TRY(lode_block_seal(block));
    }
    lode_view_h view = view_of(cluster, &block, 1, -1);
    TRY(lode_block_close(&block));
    return view;
}

/* ---------------------------------------------------------------------- same */

/* All that a scenario has put out. */
typedef struct results {
    uint8_t bytes[1 << 20];
    size_t used;
} results_t;

static void keep(results_t *results, const void *data, size_t bytes)
{
    CHECK(bytes <= sizeof results->bytes - results->used);
    memcpy(results->bytes + results->used, data, bytes);
    results->used += bytes;
}

static void keep_selection(lode_cluster_h cluster, uint32_t stream, uint32_t rows, results_t *results)
{
    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t head = 0; head < KV_HEADS; head++) {
            const uint32_t *tokens;
            uint64_t count;
            TRY(lode_step_selection(cluster, stream, row, head, &tokens, &count));
            keep(results, &count, sizeof count);
            if (tokens)
                keep(results, tokens, count * sizeof *tokens);
        }
}

/* Two streams of one step: one reads, of several rows, one writes; both layers; three steps. */
static void run_steps(lode_cluster_h cluster, lode_view_h reads, lode_view_h writes, results_t *results)
{
    static float out[2][ROWS * HEADS * DIM], lse[2][ROWS * HEADS], lost[2][ROWS];
    for (unsigned step = 0; step < 6; step++) {
        float *q = noise(2 * ROWS * HEADS * DIM, 50 + step), *k = noise(KV_HEADS * DIM * 2, 60 + step);
        float *v = noise(KV_HEADS * DIM * 2, 70 + step);
        lode_stream_t streams[2] = {{.view = reads, .tokens = ROWS, .position = TOKENS - ROWS - (int64_t)step, .q = q},
                                    {.view = writes, .tokens = 2, .position = LODE_POSITION_END, .k = k, .v = v}};
        streams[1].q = q + ROWS * HEADS * DIM;
        for (int i = 0; i < 2; i++) {
            streams[i].dtype = LODE_FP32;
            streams[i].out = out[i];
            streams[i].lse = lse[i];
            streams[i].lost_share = i ? NULL : lost[i];
        }
        lode_step_stats_t stats;
        TRY(lode_step(cluster, step % LAYERS, streams, 2, &stats));
        keep(results, out[0], sizeof out[0]);
        keep(results, lse[0], sizeof lse[0]);
        keep(results, lost[0], sizeof lost[0]);
        keep(results, out[1], 2 * HEADS * DIM * sizeof(float));
        keep(results, lse[1], 2 * HEADS * sizeof(float));
        keep(results, &stats.selected_digest, sizeof stats.selected_digest);
        keep(results, &stats.records_wanted, sizeof stats.records_wanted);
        keep_selection(cluster, 0, ROWS, results);
        keep_selection(cluster, 1, 2, results);
        free(q);
        free(k);
        free(v);
    }
}

/* One append that a client cuts into several messages: the block must not see that. */
static void large_append(lode_cluster_h cluster, const char *name, results_t *results)
{
    enum { LARGE = 40000 };
    size_t n = (size_t)LARGE * KV_HEADS * DIM;
    float *k = noise(n, 21), *v = noise(n, 22), *q = noise(HEADS * DIM, 23), out[HEADS * DIM];
    lode_block_h block = create_block(cluster, name, LODE_FORMAT_HIGGS4);
    TRY(lode_block_append(block, 0, LARGE, LODE_FP32, k, v));
    lode_view_h view = view_of(cluster, &block, 1, -1);
    lode_stream_t stream = {.view = view, .tokens = 1, .position = LODE_POSITION_END, .dtype = LODE_FP32, .q = q};
    stream.out = out;
    TRY(lode_step(cluster, 0, &stream, 1, NULL));
    keep(results, out, sizeof out);
    keep_selection(cluster, 0, 1, results);
    k[n - 1] = __builtin_nanf("");
    CHECK(lode_block_append(block, 0, LARGE, LODE_FP32, k, v) == LODE_ERR_NONFINITE);
    uint64_t tokens;
    TRY(lode_block_tokens(block, 0, &tokens));
    CHECK(tokens == LARGE);
    TRY(lode_view_destroy(&view));
    TRY(lode_block_drop(&block));
    free(k);
    free(v);
    free(q);
}

/* A draft is written by steps, cut, moved in part into the dialogue, sealed and dropped. */
static void drafts(lode_cluster_h cluster, const char *name, lode_block_h dialogue, results_t *results)
{
    lode_block_params_t params = {.name = name, .draft = 1};
    lode_block_h draft;
    TRY(lode_landmark_parse("landmark2", &params.landmark));
    TRY(lode_block_create(cluster, &params, &draft));
    lode_view_h writes = view_of(cluster, (lode_block_h[]){dialogue, draft}, 2, 1), reads;
    reads = view_of(cluster, (lode_block_h[]){draft, dialogue}, 2, -1);
    run_steps(cluster, reads, writes, results); /* leaves 6 tokens a layer */
    CHECK(lode_block_crop(draft, 7) == LODE_ERR_INVALID && strstr(lode_error_message(), "layer 0 has 6"));
    TRY(lode_block_crop(draft, 5));
    CHECK(lode_block_crop(dialogue, 10) == LODE_ERR_SEALED && strstr(lode_error_message(), "at least 2944"));
    CHECK(lode_block_move(draft, 2, draft) == LODE_ERR_INVALID && strstr(lode_error_message(), "into itself"));
    TRY(lode_block_move(draft, 2, dialogue));
    run_steps(cluster, reads, writes, results);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint64_t tokens[2];
        TRY(lode_block_tokens(draft, layer, &tokens[0]));
        TRY(lode_block_tokens(dialogue, layer, &tokens[1]));
        CHECK(tokens[0] == 2 + 6 && tokens[1] == TOKENS + 6 + 3);
    }
    TRY(lode_block_seal(draft));
    CHECK(lode_block_crop(draft, 0) == LODE_ERR_SEALED && strstr(lode_error_message(), "is sealed"));
    TRY(lode_view_destroy(&writes));
    TRY(lode_view_destroy(&reads));
    TRY(lode_block_drop(&draft));
}

static void scenario(lode_cluster_h cluster, const char *prefix, results_t *results)
{
    char name[LODE_NAME_MAX + 1];
    lode_geometry_t said;
    lode_block_h blocks[2];
    TRY(lode_cluster_shape(cluster, &geometry));
    TRY(lode_cluster_geometry(cluster, &said));
    CHECK(said.layers == LAYERS && said.head_dim == DIM && said.rope.theta == 500000 && said.kv_head_end == KV_HEADS);
    snprintf(name, sizeof name, "%s-document", prefix);
    blocks[0] = create_block(cluster, name, LODE_FORMAT_FP8);
    CHECK(lode_block_create(cluster, &(lode_block_params_t){.name = name, .landmark = {LODE_LANDMARK_UNIFORM, 2, 1, 1}},
                            &blocks[1]) == LODE_ERR_NAME_IN_USE);
    fill(blocks[0], 1);
    TRY(lode_block_seal(blocks[0]));
    CHECK(lode_block_append(blocks[0], 0, 1, LODE_FP32, results->bytes, results->bytes) == LODE_ERR_SEALED);
    snprintf(name, sizeof name, "%s-dialogue", prefix);
    blocks[1] = create_block(cluster, name, LODE_FORMAT_BF16);
    fill(blocks[1], 2);
    lode_view_h reads = view_of(cluster, blocks, 1, -1), writes = view_of(cluster, blocks, 2, 1);
    run_steps(cluster, reads, writes, results);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint64_t tokens;
        TRY(lode_block_tokens(blocks[1], layer, &tokens));
        keep(results, &tokens, sizeof tokens);
    }
    snprintf(name, sizeof name, "%s-draft", prefix);
    drafts(cluster, name, blocks[1], results);
    snprintf(name, sizeof name, "%s-large", prefix);
    large_append(cluster, name, results);
    /* what is refused, is refused alike */
    float nan[KV_HEADS * DIM];
    for (int i = 0; i < KV_HEADS * DIM; i++)
        nan[i] = __builtin_nanf("");
    CHECK(lode_block_append(blocks[1], 1, 1, LODE_FP32, nan, nan) == LODE_ERR_NONFINITE);
    CHECK(strstr(lode_error_message(), "layer 1"));
    CHECK(lode_block_append(blocks[1], LAYERS, 1, LODE_FP32, nan, nan) == LODE_ERR_INVALID);
    TRY(lode_view_destroy(&reads));
    lode_block_h again = NULL;
    CHECK(lode_block_open(cluster, "none", &again) == LODE_ERR_NOT_FOUND && !again);
    TRY(lode_block_drop(&blocks[1]));
    CHECK(!blocks[1]);
    lode_stream_t stream = {.view = writes, .tokens = 1, .position = LODE_POSITION_END, .q = results->bytes};
    float out[HEADS * DIM];
    stream.out = out;
    stream.dtype = LODE_FP32;
    CHECK(lode_step(cluster, 0, &stream, 1, NULL) == LODE_ERR_DROPPED);
    TRY(lode_view_destroy(&writes));
    TRY(lode_block_drop(&blocks[0]));
}

static int same(void)
{
    static results_t here, there;
    lode_config_h config;
    lode_cluster_h alone, cluster = connect_client();
    TRY(lode_config_create(&config));
    TRY(lode_cluster_join(config, NULL, &alone));
    scenario(alone, "same", &here);
    scenario(cluster, "same", &there);
    CHECK(here.used == there.used && memcmp(here.bytes, there.bytes, here.used) == 0);
    printf("%zu bytes alike\n", here.used);
    TRY(lode_cluster_leave(&cluster));
    TRY(lode_cluster_leave(&alone));
    lode_config_destroy(&config);
    return 0;
}

/* --------------------------------------------------------------------- steps */

typedef struct loop {
    lode_cluster_h cluster;
    lode_stream_t stream;
    float *q, out[HEADS * DIM], first[HEADS * DIM];
} loop_t;

static void loop_begin(loop_t *loop)
{
    *loop = (loop_t){.cluster = connect_client(), .q = noise(HEADS * DIM, 5)};
    loop->stream = (lode_stream_t){.view = open_document(loop->cluster),
                                   .tokens = 1,
                                   .position = LODE_POSITION_END,
                                   .dtype = LODE_FP32,
                                   .q = loop->q,
                                   .out = loop->out};
    TRY(lode_step(loop->cluster, 0, &loop->stream, 1, NULL));
    memcpy(loop->first, loop->out, sizeof loop->first);
}

static void loop_end(loop_t *loop)
{
    TRY(lode_view_destroy(&loop->stream.view));
    TRY(lode_cluster_leave(&loop->cluster));
    free(loop->q);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* A step's own time is measured by the rank, so that the machine's other load weighs on both alike. */
static int latency(int steps)
{
    loop_t loop;
    double *above = calloc((size_t)steps, sizeof *above);
    CHECK(above && steps > 10);
    loop_begin(&loop);
    for (int i = 0; i < steps; i++) {
        lode_step_stats_t stats;
        uint64_t begin = lode_now_ns();
        TRY(lode_step(loop.cluster, 0, &loop.stream, 1, &stats));
        above[i] = (double)(lode_now_ns() - begin - stats.step_ns) / 1e3;
    }
    qsort(above, (size_t)steps, sizeof *above, ascending);
    printf("a client's step takes %.1f us more than the rank's (median of %d; 10th percentile %.1f, 90th %.1f)\n",
           above[steps / 2], steps, above[steps / 10], above[steps * 9 / 10]);
    CHECK(above[steps / 10] < 5000); /* the aim is 30; whatever else the machine does, it must not be sleeps */
    loop_end(&loop);
    free(above);
    return 0;
}

static volatile sig_atomic_t enough;

static void on_interrupt(int number)
{
    enough = number;
}

/* Until an interrupt, or count. */
static int steps(int count, int pause_ms)
{
    int done = 0;
    loop_t loop;
    uint64_t longest = 0;
    uint64_t wrong = 0, failed = 0;
    loop_begin(&loop);
    say_rank(loop.cluster);
    uint64_t first = lode_now_ns();
    signal(SIGINT, on_interrupt);
    for (int i = 0; i < count && !enough; i++, done++) {
        uint64_t begin = lode_now_ns();
        memset(loop.out, 0xff, sizeof loop.out);
        if (lode_step(loop.cluster, 0, &loop.stream, 1, NULL) != LODE_OK) {
            fprintf(stderr, "step %d: %s\n", i, lode_error_message());
            failed++;
        } else if (memcmp(loop.out, loop.first, sizeof loop.out) != 0) {
            wrong++;
        }
        uint64_t took = lode_now_ns() - begin;
        longest = took > longest ? took : longest;
        if (took > 50000000)
            fprintf(stderr, "step %d took %.0f ms, %.3f s after the first\n", i, (double)took / 1e6,
                    (double)(begin - first) / 1e9);
        nanosleep(&(struct timespec){.tv_nsec = pause_ms * 1000000L}, NULL);
    }
    printf("{\"steps\": %d, \"failed\": %llu, \"wrong\": %llu, \"longest_ms\": %.1f}\n", done,
           (unsigned long long)failed, (unsigned long long)wrong, (double)longest / 1e6);
    loop_end(&loop);
    return failed || wrong;
}

/* -------------------------------------------------------------------- beside */

typedef struct asker {
    lode_cluster_h cluster;
    uint32_t rank;
    lode_status_t status;
    atomic_bool done;
} asker_t;

static void *ask_rank(void *context)
{
    asker_t *asker = context;
    lode_rank_stats_t stats;
    asker->status = lode_cluster_rank_stats(asker->cluster, asker->rank, &stats);
    atomic_store(&asker->done, true);
    return NULL;
}

/* SIGSTOP takes effect when it pleases the kernel. */
static void stop_process(pid_t pid)
{
    char path[64], state = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    CHECK(kill(pid, SIGSTOP) == 0);
    for (int i = 0; i < 1000 && state != 'T'; i++) {
        FILE *file = fopen(path, "r");
        CHECK(file && fscanf(file, "%*d (%*[^)]) %c", &state) == 1);
        fclose(file);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL); /* and its threads, which may be a little behind */
    }
}

/* One client asks for numbers of a rank that is stopped, which takes until that is held for lost; another steps. */
static int beside(uint32_t rank, pid_t pid)
{
    loop_t loop;
    asker_t asker = {.cluster = connect_client(), .rank = rank};
    pthread_t thread;
    int done = 0, wrong = 0;
    loop_begin(&loop);
    stop_process(pid);
    uint64_t begin = lode_now_ns();
    CHECK(pthread_create(&thread, NULL, ask_rank, &asker) == 0);
    for (; !atomic_load(&asker.done); done++) {
        TRY(lode_step(loop.cluster, 0, &loop.stream, 1, NULL));
        wrong += memcmp(loop.out, loop.first, sizeof loop.out) != 0;
    }
    printf("{\"steps\": %d, \"wrong\": %d, \"waited_ms\": %.0f}\n", done, wrong, (double)(lode_now_ns() - begin) / 1e6);
    pthread_join(thread, NULL);
    TRY(asker.status);
    TRY(lode_cluster_leave(&asker.cluster));
    loop_end(&loop);
    return wrong > 0;
}

/* ---------------------------------------------------------------------- many */

/* What the processes share. */
typedef struct crowd {
    _Atomic int ready, go;
    _Atomic uint64_t step_ns; /* of all steps, as the ranks say */
} crowd_t;

static int crowd_member(crowd_t *crowd, const float *expected, int count)
{
    loop_t own;
    lode_step_stats_t stats;
    loop_begin(&own);
    atomic_fetch_add(&crowd->ready, 1);
    while (!atomic_load(&crowd->go))
        usleep(500);
    for (int step = 0; step < count; step++) {
        TRY(lode_step(own.cluster, 0, &own.stream, 1, &stats));
        CHECK(memcmp(own.out, expected, sizeof own.out) == 0);
        atomic_fetch_add(&crowd->step_ns, stats.step_ns);
    }
    loop_end(&own);
    return 0;
}

static int many(int clients, int count)
{
    loop_t loop;
    lode_cluster_info_t info;
    crowd_t *crowd = mmap(NULL, sizeof *crowd, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(crowd != MAP_FAILED);
    loop_begin(&loop); /* the document is there */
    TRY(lode_cluster_query(loop.cluster, &info));
    fflush(stdout);
    for (int i = 0; i < clients; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0)
            _exit(crowd_member(crowd, loop.first, count));
    }
    uint64_t end = lode_now_ns() + UINT64_C(120000000000);
    while (atomic_load(&crowd->ready) < clients)
        CHECK(lode_now_ns() < end && usleep(1000) == 0);
    uint64_t begin = lode_now_ns();
    atomic_store(&crowd->go, 1);
    int bad = 0, status;
    for (int i = 0; i < clients; i++)
        bad += wait(&status) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    double took = (double)(lode_now_ns() - begin);
    printf("%d clients, %d steps each: %.0f steps/s together; the %u ranks were in steps %.2f of the time; %d clients "
           "failed\n",
           clients, count, clients * (double)count * 1e9 / took, info.alive,
           (double)atomic_load(&crowd->step_ns) / took / info.alive, bad);
    loop_end(&loop);
    return bad != 0;
}

/* -------------------------------------------------------------------- writer */

static bool is_listed(lode_cluster_h cluster, const char *name)
{
    lode_block_entry_t entries[16];
    uint32_t count;
    TRY(lode_cluster_blocks(cluster, entries, 16, &count));
    CHECK(count <= 16);
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(entries[i].name, name) == 0)
            return true;
    return false;
}

static int writer(void)
{
    lode_cluster_h cluster = connect_client();
    float *x = noise(KV_HEADS * DIM, 1), *q = noise(HEADS * DIM, 2), out[HEADS * DIM];
    TRY(lode_cluster_shape(cluster, &geometry));
    lode_block_h sealed = create_block(cluster, "sealed", LODE_FORMAT_FP8);
    fill(sealed, 1);
    TRY(lode_block_seal(sealed));
    lode_block_h block = create_block(cluster, "unsealed", LODE_FORMAT_FP8);
    fill(block, 2);
    lode_view_h both = view_of(cluster, (lode_block_h[]){sealed, block}, 2, 1), one = view_of(cluster, &sealed, 1, -1);
    say_rank(cluster);
    getchar();
    lode_stream_t stream = {.view = both, .tokens = 1, .position = LODE_POSITION_END, .dtype = LODE_FP32};
    stream.q = q;
    stream.k = stream.v = x;
    stream.out = out;
    CHECK(lode_step(cluster, 0, &stream, 1, NULL) == LODE_ERR_PEER_LOST);
    CHECK(lode_block_append(block, 0, 1, LODE_FP32, x, x) == LODE_ERR_PEER_LOST);
    stream = (lode_stream_t){.view = one, .tokens = 1, .position = LODE_POSITION_END, .dtype = LODE_FP32, .q = q};
    stream.out = out;
    TRY(lode_step(cluster, 0, &stream, 1, NULL));
    uint64_t end = lode_now_ns() + UINT64_C(20000000000);
    while (is_listed(cluster, "unsealed")) /* nobody can finish it: it is dropped, and its name free again */
        CHECK(lode_now_ns() < end && usleep(20000) == 0);
    CHECK(is_listed(cluster, "sealed"));
    TRY(lode_view_destroy(&both));
    TRY(lode_view_destroy(&one));
    TRY(lode_block_close(&block));
    block = create_block(cluster, "unsealed", LODE_FORMAT_FP8);
    fill(block, 2);
    TRY(lode_block_seal(block));
    TRY(lode_block_drop(&block));
    TRY(lode_block_drop(&sealed));
    TRY(lode_cluster_leave(&cluster));
    free(x);
    free(q);
    return 0;
}

/* ---------------------------------------------------------------------- dies */

static void *kill_soon(void *unused)
{
    (void)unused;
    nanosleep(&(struct timespec){.tv_nsec = 30000000}, NULL);
    kill(getpid(), SIGKILL);
    return NULL;
}

static int dies(const char *when)
{
    pthread_t killer;
    lode_cluster_h cluster = connect_client();
    TRY(lode_cluster_shape(cluster, &geometry));
    lode_block_h block = create_block(cluster, "unsealed", LODE_FORMAT_FP8);
    fill(block, 3);
    if (strcmp(when, "open") == 0)
        kill(getpid(), SIGKILL);
    lode_view_h view = view_of(cluster, &block, 1, 0);
    CHECK(pthread_create(&killer, NULL, kill_soon, NULL) == 0);
    float *x = noise((size_t)TOKENS * KV_HEADS * DIM, 4), out[HEADS * DIM];
    lode_stream_t stream = {.view = view, .tokens = 1, .position = LODE_POSITION_END, .dtype = LODE_FP32};
    stream.q = stream.k = stream.v = x;
    stream.out = out;
    for (int i = 0;; i++)
        if (strcmp(when, "put") != 0)
            TRY(lode_step(cluster, 0, &stream, 1, NULL));
        else if (i < 20) /* the arenas hold as many, should the end come late */
            TRY(lode_block_append(block, 0, TOKENS, LODE_FP32, x, x));
        else
            pause();
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (strcmp(mode, "same") == 0)
        return same();
    if (strcmp(mode, "latency") == 0 && argc == 3)
        return latency(atoi(argv[2]));
    if (strcmp(mode, "steps") == 0 && argc == 4)
        return steps(atoi(argv[2]), atoi(argv[3]));
    if (strcmp(mode, "many") == 0 && argc == 4)
        return many(atoi(argv[2]), atoi(argv[3]));
    if (strcmp(mode, "beside") == 0 && argc == 4)
        return beside((uint32_t)atoi(argv[2]), atoi(argv[3]));
    if (strcmp(mode, "writer") == 0)
        return writer();
    if (strcmp(mode, "dies") == 0 && argc == 3)
        return dies(argv[2]);
    fprintf(stderr,
            "client same | latency N | steps N PAUSE_MS | beside RANK PID | many K N | writer | dies put|step|open\n");
    return 2;
}
