/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Landmarks from GPU to GPU: rounds of several writers over a device without kernels and a stand-in for NCCL that can
 * fail (tests/emulator/nccl.c). Every piece that comes is compared with the host's store.
 *
 * replicate: all cases among living ranks. replicate killed: the last rank dies in a round.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attend/inside.h"
#include "tests/multi/plain_device.h"
#include "tests/multi/steps.h"

enum { LAYERS = 2, KV_HEADS = 2, DIM = 64, TILE_ROW = KV_HEADS * LODE_TILE * 18 }; /* 2 bits a coordinate, a scale */
enum { SLOT_TILES = 20, SLOT_BYTES = 256 + SLOT_TILES * TILE_ROW };
#define SECOND UINT64_C(1000000000)
#define PATIENCE (30 * SECOND)

static int rank, ranks;
static uint64_t seed;
static lode_cluster_h cluster;

#define MUST_HOLD(condition)                                                                              \
    do {                                                                                                  \
        if (!(condition)) {                                                                               \
            fprintf(stderr, "rank %d, line %d: not so: %s; last error: %s\n", rank, __LINE__, #condition, \
                    lode_error_message());                                                                \
            MPI_Abort(MPI_COMM_WORLD, 1);                                                                 \
        }                                                                                                 \
    } while (0)

static void join(void)
{
    lode_config_h config;
    lode_geometry_t geometry = {
        .layers = LAYERS, .query_heads = KV_HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .rope = {.theta = 10000}};
    MUST(lode_config_create(&config));
    MUST(lode_config_set(config, "arena", "32MiB"));
    MUST(lode_config_set(config, "landing", "1MiB"));
    MUST(lode_cluster_join(config, &geometry, &cluster));
    lode_config_destroy(&config);
}

/* In place of the cluster's own, which has no GPU. A call of this rank to itself is as good as a lock to its service.
 */
static void stop_replicating(void)
{
    MPI_Barrier(MPI_COMM_WORLD); /* nobody leaves before all have what they wait for */
    lode_replica_close(cluster->replica);
    MPI_Barrier(MPI_COMM_WORLD);
    lode_replica_destroy(&cluster->replica);
}

/* In place of the cluster's own, which has no GPU. A call of this rank to itself is as good as a lock to its service.
 */
static lode_status_t replicate(const lode_replica_params_t *params)
{
    lode_rank_stats_t stats;
    if (cluster->replica)
        stop_replicating();
    lode_status_t status = lode_replica_create(cluster, params, &cluster->replica);
    MUST(lode_cluster_rank_stats(cluster, (uint32_t)rank, &stats));
    MPI_Barrier(MPI_COMM_WORLD);
    return status;
}

static lode_replica_params_t own_device(char uuid[48])
{
    snprintf(uuid, 48, "GPU-%d", rank);
    return (lode_replica_params_t){.wish = LODE_REPLICATE_NCCL,
                                   .ops = &plain_device,
                                   .device = plain_device_handle,
                                   .uuid = uuid,
                                   .slots = 3,
                                   .slot_bytes = SLOT_BYTES,
                                   .least_bytes = 2 * TILE_ROW,
                                   .deadline_ms = 20000,
                                   .connect_ms = 20000};
}

static void fail_by(const char *fault)
{
    if (fault)
        setenv("LODEMARK_TEST_NCCL", fault, 1);
    else
        unsetenv("LODEMARK_TEST_NCCL");
}

static lode_replica_stats_t stats_now(void)
{
    lode_replica_stats_t stats;
    lode_replica_stats(cluster->replica, &stats);
    return stats;
}

/* --------------------------------------------------------------------- writing */

static lode_block_h create_block(const char *name)
{
    static int made;
    char text[64];
    lode_block_h block;
    snprintf(text, sizeof text, "%s-%d-%d", name, rank, made++);
    lode_block_params_t params = {.name = text, .format = LODE_FORMAT_FP8};
    MUST(lode_landmark_parse("landmark2", &params.landmark));
    MUST(lode_block_create(cluster, &params, &block));
    return block;
}

static void append(lode_block_h block, uint32_t layer, uint64_t tokens)
{
    size_t n = tokens * KV_HEADS * DIM;
    float *x = malloc(n * sizeof *x);
    MUST_HOLD(x);
    seed++;
    for (size_t i = 0; i < n; i++)
        x[i] = value_at(seed, i);
    MUST(lode_block_append(block, layer, tokens, LODE_FP32, x, x));
    free(x);
}

/* --------------------------------------------------------------------- taking */

/* Copies that were enqueued: what they must give is known only later, when their slots may have been used again. */
typedef struct taken {
    lode_replica_piece_t piece;
    uint8_t *copy;
    size_t head_bytes;
} taken_t;
enum { TAKEN_MAX = 64 };
static taken_t taken[TAKEN_MAX];
static int taken_count;

static void compare(const taken_t *t)
{
    uint32_t slot;
    MUST(lode_store_find_id(cluster->store, t->piece.block, &slot));
    for (uint32_t h = 0; h < t->piece.heads; h++)
        for (uint64_t at = t->piece.first, run; at < t->piece.end; at += run) {
            const uint8_t *tiles;
            run = lode_store_span(cluster->store, slot, t->piece.layer, h, at, t->piece.end, &tiles);
            MUST_HOLD(run > 0);
            MUST_HOLD(memcmp(t->copy + h * t->head_bytes + (at - t->piece.first) * 18, tiles, run * 18) == 0);
        }
}

static void settle(lode_device_stream_t stream)
{
    MUST(plain_device.stream_wait(stream));
    for (; taken_count; taken_count--) {
        compare(&taken[taken_count - 1]);
        free(taken[taken_count - 1].copy);
    }
}

/* What a mirror does: copies out of the piece on a stream of its own, given back before they are done. */
static void take(lode_device_stream_t stream, const lode_replica_piece_t *piece)
{
    if (taken_count == TAKEN_MAX)
        settle(stream);
    taken_t *t = &taken[taken_count++];
    size_t bytes = (piece->end - piece->first) * 18;
    *t = (taken_t){*piece, malloc(piece->heads * bytes), bytes};
    MUST_HOLD(t->copy && piece->heads == KV_HEADS && piece->head_stride >= bytes);
    for (uint32_t h = 0; h < piece->heads; h++)
        MUST(plain_device.copy(stream, t->copy + h * bytes, piece->tiles + h * piece->head_stride, bytes));
    lode_replica_give_back(cluster->replica, piece, stream);
}

/* Until this rank has had `rounds` of them; takes what comes if there is a stream. */
static void await_rounds(lode_device_stream_t stream, uint64_t rounds)
{
    uint64_t until = lode_now_ns() + PATIENCE;
    lode_replica_piece_t piece;
    lode_replica_stats_t stats;
    for (;;) {
        while (stream && lode_replica_next(cluster->replica, &piece))
            take(stream, &piece);
        stats = stats_now();
        if (stats.arrived >= rounds && (!stream || stats.taken + stats.overwrote == stats.arrived))
            break;
        MUST_HOLD(lode_now_ns() < until);
        usleep(100);
    }
    MUST_HOLD(stats.arrived == rounds);
}

static uint64_t sum(uint64_t mine)
{
    uint64_t all;
    MPI_Allreduce(&mine, &all, 1, MPI_UINT64_T, MPI_SUM, MPI_COMM_WORLD);
    return all;
}

/* --------------------------------------------------------------------- cases */

/* All ranks write at once, blocks and layers of several sizes, in several appends, over borders of extents. */
static void test_many_writers(void)
{
    char uuid[48];
    lode_replica_params_t params = own_device(uuid);
    lode_device_stream_t stream;
    lode_block_h blocks[2] = {create_block("a"), create_block("b")};
    uint64_t rounds = 0;
    MUST(replicate(&params));
    MUST_HOLD(stats_now().nccl && strstr(stats_now().reason, "GPU of its own"));
    MUST(plain_device.stream_create(plain_device_handle, &stream));
    for (int i = 0; i < 4; i++) {
        uint64_t tokens = 64 * (2 + lode_mix(seed, (uint64_t)i + 7) % 40); /* whole tiles: a landmark a token */
        append(blocks[i % 2], (uint32_t)(i / 2 % LAYERS), tokens);
        rounds += (tokens / LODE_TILE + SLOT_TILES - 1) / SLOT_TILES;
        lode_replica_piece_t piece;
        while (lode_replica_next(cluster->replica, &piece))
            take(stream, &piece);
    }
    append(blocks[0], 0, 64 + 63); /* one page, two tiles: as much as is worth a round */
    MUST_HOLD(stats_now().reason[0]);
    await_rounds(stream, sum(rounds + 1));
    settle(stream);
    MUST_HOLD(sum(stats_now().sent) == sum(rounds + 1));
    MUST_HOLD(stats_now().bytes > 0);
    stop_replicating();
    plain_device.stream_destroy(stream);
    for (int i = 0; i < 2; i++)
        MUST(lode_block_close(&blocks[i]));
}

/* Rounds that nobody takes make room for later ones, and what is left is theirs. */
static void test_nobody_takes(void)
{
    char uuid[48];
    lode_replica_params_t params = own_device(uuid);
    lode_replica_piece_t piece;
    lode_device_stream_t stream;
    lode_block_h block = create_block("c");
    uint64_t last = 0;
    MUST(replicate(&params));
    MUST(plain_device.stream_create(plain_device_handle, &stream));
    if (rank == 0)
        append(block, 0, 7 * SLOT_TILES * LODE_TILE); /* a landmark a token */
    await_rounds(NULL, 7);
    MUST_HOLD(stats_now().overwrote == 4 && stats_now().taken == 0);
    for (int i = 0; i < 3; i++) {
        MUST_HOLD(lode_replica_next(cluster->replica, &piece));
        MUST_HOLD(piece.first == (uint64_t)(4 + i) * SLOT_TILES * LODE_TILE && piece.first > last);
        take(stream, &piece);
    }
    MUST_HOLD(!lode_replica_next(cluster->replica, &piece));
    MPI_Barrier(MPI_COMM_WORLD); /* all have looked, and have what they want */
    if (rank == 0)               /* into the same slots, before the copies out of them were done */
        append(block, 1, 3 * SLOT_TILES * LODE_TILE);
    await_rounds(NULL, 10);
    settle(stream);
    stop_replicating();
    plain_device.stream_destroy(stream);
    MUST(lode_block_close(&block));
}

/* What is too little, and what is not a whole tile, goes by the hosts alone. */
static void test_not_worth_it(void)
{
    char uuid[48];
    lode_replica_params_t params = own_device(uuid);
    lode_block_h block = create_block("d");
    params.least_bytes = 100 * TILE_ROW;
    MUST(replicate(&params));
    for (int i = 0; i < 3; i++)
        append(block, 1, 64 + (uint64_t)i);
    MPI_Barrier(MPI_COMM_WORLD);
    MUST_HOLD(stats_now().arrived == 0 && stats_now().sent == 0 && stats_now().nccl);
    stop_replicating();
    MUST(lode_block_close(&block));
}

/* The rank at fault and the others end, soon; appends go on, and nothing wrong has come. */
static void test_fault(const char *fault, uint32_t deadline_ms, const char *word)
{
    char uuid[48];
    lode_replica_params_t params = own_device(uuid);
    lode_device_stream_t stream;
    lode_replica_piece_t piece;
    lode_block_h block = create_block("e");
    uint64_t until = lode_now_ns() + PATIENCE;
    params.deadline_ms = deadline_ms;
    fail_by(rank == ranks - 1 ? fault : NULL);
    MUST(replicate(&params));
    fail_by(NULL);
    MUST(plain_device.stream_create(plain_device_handle, &stream));
    for (int i = 0; stats_now().nccl; i++) {
        MUST_HOLD(lode_now_ns() < until);
        append(block, (uint32_t)i % LAYERS, 64 * 4);
        while (lode_replica_next(cluster->replica, &piece))
            take(stream, &piece);
        usleep(5000);
    }
    bool said = strstr(stats_now().reason, word) != NULL;
    MUST_HOLD(sum(said) > 0); /* one that saw it; others may have it of that rank, in its words */
    MUST_HOLD(strstr(stats_now().reason, "broadcasts ended: "));
    append(block, 0, 64 * 8); /* and it is tried no more */
    uint64_t sent = stats_now().sent;
    append(block, 1, 64 * 8);
    MUST_HOLD(stats_now().sent == sent);
    while (lode_replica_next(cluster->replica, &piece)) /* what had come stays good */
        take(stream, &piece);
    settle(stream);
    stop_replicating();
    plain_device.stream_destroy(stream);
    MUST(lode_block_close(&block));
}

/* All ranks come to the same where one of them does not get connected. */
static void test_not_connected(void)
{
    char uuid[48];
    lode_replica_params_t params = own_device(uuid);
    params.connect_ms = 50;
    fail_by(rank == ranks - 1 ? "init" : NULL);
    MUST_HOLD(replicate(&params) == LODE_ERR_TIMEOUT && !cluster->replica);
    params.wish = LODE_REPLICATE_AUTO;
    lode_log_set("error");
    MUST(replicate(&params));
    lode_log_set("warn");
    fail_by(NULL);
    MUST_HOLD(!stats_now().nccl && (ranks == 1 || strstr(stats_now().reason, "did not connect")));
}

static void test_refused(void)
{
    char uuid[48];
    lode_replica_params_t params = own_device(uuid);
    params.uuid = "GPU-shared";
    lode_status_t status = replicate(&params);
    MUST_HOLD(ranks == 1 ? status == LODE_OK
                         : status == LODE_ERR_INVALID && strstr(lode_error_message(), "GPU-shared"));
    params.wish = LODE_REPLICATE_AUTO;
    MUST(replicate(&params));
    MUST_HOLD(!stats_now().nccl && strstr(stats_now().reason, ranks == 1 ? "one rank" : "ranks 0 and 1 share"));
    params = own_device(uuid);
    plain_device_room(rank == ranks - 1 ? 2 : UINT32_MAX); /* memory for headings and one slot of three */
    MUST_HOLD(replicate(&params) == LODE_ERR_NO_MEMORY && strstr(lode_error_message(), "no room"));
    plain_device_room(UINT32_MAX);
    params = (lode_replica_params_t){.wish = LODE_REPLICATE_NCCL, .why_not = "no driver"};
    MUST_HOLD(replicate(&params) == LODE_ERR_UNSUPPORTED && strstr(lode_error_message(), "no driver"));
    params.wish = LODE_REPLICATE_AUTO;
    MUST(replicate(&params));
    MUST_HOLD(!stats_now().nccl && strstr(stats_now().reason, "no GPU"));
}

/* Leaving right after a large append, whose rounds are under way or to come: nobody hangs. */
static void test_leave_at_once(void)
{
    char uuid[48];
    lode_replica_params_t params = own_device(uuid);
    lode_block_h block = create_block("f");
    MUST(replicate(&params));
    MUST_HOLD(stats_now().nccl);
    append(block, 0, 5 * SLOT_TILES * LODE_TILE);
    MUST(lode_block_close(&block));
}

/* ----------------------------------------------------------------------- a death */

/* The last rank dies in its third round: the others see it, end, and write on. */
static void test_killed(void)
{
    char uuid[48];
    lode_replica_params_t params = own_device(uuid);
    lode_replica_piece_t piece;
    lode_device_stream_t stream;
    uint64_t until = lode_now_ns() + PATIENCE;
    lode_block_h block = create_block("g");
    fail_by(rank == ranks - 1 ? "kill:2" : NULL);
    MUST(replicate(&params));
    MUST(plain_device.stream_create(plain_device_handle, &stream));
    while (stats_now().nccl) {
        MUST_HOLD(lode_now_ns() < until);
        append(block, 0, 64 * 4);
        while (lode_replica_next(cluster->replica, &piece))
            take(stream, &piece);
    }
    lode_replica_stats_t stats = stats_now();
    MUST_HOLD(strstr(stats.reason, "lost") || strstr(stats.reason, "takes no part") || strstr(stats.reason, "epoch"));
    append(block, 1, 64 * 8);
    uint64_t tokens;
    MUST(lode_block_tokens(block, 1, &tokens));
    MUST_HOLD(tokens == 64 * 8);
    settle(stream);
    plain_device.stream_destroy(stream);
    fprintf(stderr, "rank %d: right\n", rank);
    fflush(NULL);
    MUST(lode_block_close(&block));
    lode_cluster_leave(&cluster);
    _exit(0);
}

int main(int argc, char **argv)
{
    int provided;
    uint32_t version = 0;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    seed = lode_now_ns();
    fprintf(stderr, "rank %d: seed %llu\n", rank, (unsigned long long)seed);
    join();
    MUST(lode_broadcast_library(&version));
    MUST_HOLD(version == 22899); /* the stand-in, and not a real one */
    if (argc > 1 && strcmp(argv[1], "killed") == 0)
        test_killed();
    test_many_writers();
    test_nobody_takes();
    test_not_worth_it();
    lode_log_set("error"); /* it warns of each end */
    test_fault("silent:1", 300, "did not end within 300 ms");
    test_fault("error:2", 20000, "remote process exited");
    lode_log_set("warn");
    test_not_connected();
    test_refused();
    test_leave_at_once();
    MUST(lode_cluster_leave(&cluster));
    MUST_HOLD(plain_device_left() == 0);
    MPI_Finalize();
    return 0;
}
