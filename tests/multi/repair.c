/* SPDX-License-Identifier: Apache-2.0 */
/*
 * repair CASE DIRECTORY: k owners a page are restored after ranks have died, and pages are in the right places again.
 * Needs four ranks. Ranks that saw what they should print "rank N: right". They wait for one another by files in
 * the directory, because MPI's collectives would wait for the dead as well. With --join FD DIRECTORY it is a process
 * that takes a dead rank's place, outside of MPI.
 */
#include <dirent.h>
#include <fcntl.h>
#include <math.h>
#include <mpi.h>
#include <signal.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attend/inside.h"

enum { LAYERS = 2, HEADS = 4, KV_HEADS = 2, DIM = 64, BLOCKS = 3, TOKENS = 1000, OUT = HEADS * DIM };
enum { PAGES = (TOKENS + LODE_PAGE_TOKENS - 1) / LODE_PAGE_TOKENS };

static lode_cluster_h cluster;
static lode_block_h blocks[BLOCKS];
static lode_view_h view;
static const char *directory;
static int rank, ranks;
static bool right = true, dead[8];
static pid_t pids[8];
static const char *beat = "0", *replicas = "2", *rate = "100MiB";
static float expected[LAYERS][OUT];

#define CHECK(condition, ...)                                                      \
    do {                                                                           \
        if (!(condition)) {                                                        \
            right = false;                                                         \
            fprintf(stderr, "rank %d, line %d: %s; ", rank, __LINE__, #condition); \
            fprintf(stderr, "" __VA_ARGS__);                                       \
            fprintf(stderr, "; last error: %s\n", lode_error_message());           \
        }                                                                          \
    } while (0)
#define MUST(call)                                                                           \
    do {                                                                                     \
        if ((call) != LODE_OK) {                                                             \
            fprintf(stderr, "rank %d, line %d: %s\n", rank, __LINE__, lode_error_message()); \
            _exit(1);                                                                        \
        }                                                                                    \
    } while (0)

static double seconds_since(uint64_t begin)
{
    return (double)(lode_now_ns() - begin) * 1e-9;
}

static void tend(void)
{
    int more;
    CHECK(lode_cluster_tend(cluster, 2000, &more) == LODE_OK, "tend");
    if (!more)
        usleep(1000);
}

/* All living ranks come here; meanwhile they tend. */
static void meet(const char *where)
{
    char path[512];
    uint64_t begin = lode_now_ns();
    snprintf(path, sizeof path, "%s/%s-%d", directory, where, rank);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    for (int r = 0; r < ranks; r++) {
        snprintf(path, sizeof path, "%s/%s-%d", directory, where, r);
        while (!dead[r] && access(path, F_OK) != 0) {
            if (seconds_since(begin) > 40) {
                fprintf(stderr, "rank %d waits at \"%s\" for rank %d in vain\n", rank, where, r);
                _exit(1);
            }
            tend();
        }
    }
}

static float value_at(uint64_t seed, uint64_t i)
{
    return (float)((double)(lode_mix(seed, i) >> 40) / (1 << 23) - 1);
}

static float *tensor(uint64_t seed, size_t n)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; x && i < n; i++)
        x[i] = value_at(seed, i);
    return x;
}

static void step(uint32_t layer, float *out)
{
    float *q = tensor(7 + layer, OUT);
    lode_stream_t stream = {.view = view, .tokens = 1, .position = LODE_POSITION_END, .q = q, .out = out};
    stream.dtype = LODE_FP32;
    CHECK(lode_step(cluster, layer, &stream, 1, NULL) == LODE_OK, "a step");
    free(q);
}

static void steps_are_right(const char *when)
{
    float out[OUT];
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        step(layer, out);
        CHECK(memcmp(out, expected[layer], sizeof out) == 0, "%s: another output", when);
    }
}

static void put_block(uint32_t b)
{
    char name[16];
    snprintf(name, sizeof name, "document %u", b);
    if ((int)b % ranks == rank) {
        lode_block_params_t params = {.name = name, .format = LODE_FORMAT_BF16};
        MUST(lode_landmark_parse("landmark2", &params.landmark));
        MUST(lode_block_create(cluster, &params, &blocks[b]));
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            float *k = tensor(100 * b + layer, TOKENS * KV_HEADS * DIM),
                  *v = tensor(100 * b + 50 + layer, TOKENS * KV_HEADS * DIM);
            MUST(lode_block_append(blocks[b], layer, TOKENS, LODE_FP32, k, v));
            free(k);
            free(v);
        }
        MUST(lode_block_seal(blocks[b]));
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if ((int)b % ranks != rank)
        MUST(lode_block_open(cluster, name, &blocks[b]));
}

static void make_view(void)
{
    lode_view_params_t params = {blocks, NULL, BLOCKS, -1, 0, {.select = LODE_SELECT_DENSE}};
    MUST(lode_view_create(cluster, &params, &view));
}

static lode_config_h configure(const char *arena)
{
    lode_config_h config;
    MUST(lode_config_create(&config));
    MUST(lode_config_set(config, "arena", arena));
    MUST(lode_config_set(config, "landing", "1MiB"));
    MUST(lode_config_set(config, "hot-cache", "0"));
    MUST(lode_config_set(config, "path", "batched"));
    MUST(lode_config_set(config, "replicas", replicas));
    MUST(lode_config_set(config, "repair-rate", rate));
    MUST(lode_config_set(config, "heartbeat", beat)); /* where nobody hangs, a busy machine must not look like it */
    MUST(lode_config_set(config, "fetch-deadline", "5000"));
    return config;
}

static void set_up(const char *small_rank)
{
    pid_t pid = getpid();
    MPI_Allgather(&pid, sizeof pid, MPI_BYTE, pids, sizeof pid, MPI_BYTE, MPI_COMM_WORLD);
    lode_geometry_t geometry = {
        .layers = LAYERS, .query_heads = HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .rope = {.theta = 10000}};
    lode_config_h config = configure(small_rank && atoi(small_rank) == rank ? "256KiB" : "16MiB");
    MUST(lode_cluster_join(config, &geometry, &cluster));
    lode_config_destroy(&config);
    for (uint32_t b = 0; b < BLOCKS; b++)
        put_block(b);
    make_view();
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        step(layer, expected[layer]);
    MPI_Barrier(MPI_COMM_WORLD);
}

static void lose_rank(int victim, int signal)
{
    if (rank == victim)
        raise(signal);
    dead[victim] = true;
    uint64_t begin = lode_now_ns(), longest = 0;
    while (lode_fabric_alive(cluster->fabric, (uint32_t)victim) && seconds_since(begin) < 20) {
        float out[OUT];
        uint64_t now = lode_now_ns();
        step(0, out);
        longest = lode_now_ns() - now > longest ? lode_now_ns() - now : longest;
        CHECK(memcmp(out, expected[0], sizeof out) == 0, "another output meanwhile");
        lode_fabric_progress(cluster->fabric);
    }
    CHECK(longest < 3000000000u, "a step took %.2f s, with a deadline of 5", (double)longest * 1e-9);
    CHECK(!lode_fabric_alive(cluster->fabric, (uint32_t)victim), "rank %d is not found lost", victim);
}

static void kill_rank(int victim)
{
    lose_rank(victim, SIGKILL);
}

static lode_repair_stats_t stats(void)
{
    lode_repair_stats_t now;
    lode_repair_stats(cluster, &now);
    return now;
}

static void tend_until_restored(bool misplaced_too)
{
    uint64_t begin = lode_now_ns();
    do
        tend();
    while ((stats().under_replicated > 0 || (misplaced_too && stats().misplaced > 0)) && seconds_since(begin) < 30);
    CHECK(stats().under_replicated == 0, "%llu pages", (unsigned long long)stats().under_replicated);
    CHECK(stats().lost == 0, "%llu pages", (unsigned long long)stats().lost);
}

/* Every page has as many owners as it should, they hold it, and nobody holds more. */
static bool owners_fit(uint64_t owners)
{
    uint64_t named = 0;
    for (uint32_t b = 0; b < BLOCKS; b++)
        for (uint32_t layer = 0; layer < LAYERS; layer++)
            for (uint32_t page = 0; page < PAGES; page++) {
                lode_page_hint_t hints[LODE_REPLICAS_MAX];
                uint32_t count;
                lode_page_ref_t ref;
                lode_page_id_t id = {blocks[b]->info.id, layer, page};
                lode_store_hints(cluster->store, blocks[b]->slot, layer, page, hints, &count);
                if (count != owners)
                    return false;
                for (uint32_t i = 0; i < count; i++) {
                    bool mine = hints[i].rank == (uint32_t)rank;
                    named += mine;
                    if (dead[hints[i].rank] ||
                        (mine && (!lode_shard_find(cluster->shard, id, &ref) || ref.offset != hints[i].offset)))
                        return false;
                }
            }
    return lode_shard_usage(cluster->shard).pages == named;
}

static void owners_are_right(uint64_t owners)
{
    uint64_t begin = lode_now_ns();
    while (!owners_fit(owners) && seconds_since(begin) < 20)
        tend();
    CHECK(owners_fit(owners), "owners of pages are not %llu, or not those that hold them", (unsigned long long)owners);
}

/* One rank dies, then another: no step fails, because k was restored in between. */
static void killed(void)
{
    kill_rank(1);
    steps_are_right("after the first death");
    tend_until_restored(true);
    CHECK(stats().copied_bytes > 0 || rank != 0, "nothing was copied");
    meet("restored");
    owners_are_right(2);
    meet("looked");
    kill_rank(2);
    steps_are_right("after the second death");
    tend_until_restored(true);
    meet("restored again");
    owners_are_right(2);
    steps_are_right("in the end");
    meet("done");
}

/* The leader and keeper of the node is the one that dies. */
static void leader(void)
{
    kill_rank(0);
    steps_are_right("after the leader's death");
    tend_until_restored(true);
    meet("restored");
    owners_are_right(2);
    steps_are_right("in the end");
    if (rank == 1) {
        lode_block_params_t params = {.name = "new", .format = LODE_FORMAT_BF16};
        lode_block_h block;
        MUST(lode_landmark_parse("landmark2", &params.landmark));
        MUST(lode_block_create(cluster, &params, &block)); /* by its successor */
        MUST(lode_block_drop(&block));
    }
    meet("done");
}

/* A rank hangs: its owners' competition answers, it is held for lost, and its pages are copied. */
static void stopped(void)
{
    lose_rank(1, SIGSTOP);
    steps_are_right("after it was held for lost");
    tend_until_restored(true);
    meet("restored");
    owners_are_right(2);
    steps_are_right("in the end");
    meet("done");
    if (rank == 0)
        kill(pids[1], SIGKILL);
}

/* Nobody has room: it is said and counted, and goes on with fewer owners. */
static void full(void)
{
    kill_rank(1);
    tend_until_restored(false);
    meet("restored");
    kill_rank(2);
    uint64_t begin = lode_now_ns();
    while (seconds_since(begin) < 2)
        tend();
    meet("tried");
    CHECK(stats().under_replicated > 0 && stats().lost == 0, "%llu pages",
          (unsigned long long)stats().under_replicated);
    CHECK(rank != 0 || (stats().refused > 0 && stats().refused < 20), "refused %llu times",
          (unsigned long long)stats().refused);
    steps_are_right("with too little room");
    meet("done");
}

/* Copies vanish, and keepers forget a rank that lives, without anybody having died. */
static void healed(void)
{
    for (uint32_t page = 0; page < PAGES && rank == 2; page++) {
        lode_page_id_t id = {blocks[0]->info.id, 1, page};
        lode_page_ref_t ref;
        if (lode_shard_find(cluster->shard, id, &ref))
            lode_shard_drop_page(cluster->shard, id);
    }
    meet("lost");
    steps_are_right("with copies lost");
    cluster->changed[3] = true; /* looks now, and not when the idle look is due */
    tend_until_restored(true);
    meet("told");
    tend_until_restored(true);
    meet("restored");
    owners_are_right(2);
    steps_are_right("restored");
    meet("done");
}

/* ------------------------------------------------------------- who joins later */

static void send_bytes(int to, const void *data, size_t bytes)
{
    uint64_t size = bytes;
    CHECK(write(to, &size, sizeof size) == sizeof size, "write");
    for (size_t at = 0; at < bytes;) {
        ssize_t wrote = write(to, (const uint8_t *)data + at, bytes - at);
        if (wrote <= 0)
            break;
        at += (size_t)wrote;
    }
}

static void *receive_bytes(int from, size_t *bytes)
{
    uint64_t size = 0;
    uint8_t *data = NULL;
    if (read(from, &size, sizeof size) != sizeof size || size > 1 << 24 || !(data = malloc(size)))
        _exit(1);
    for (size_t at = 0; at < size;) {
        ssize_t got = read(from, data + at, size - at);
        if (got <= 0)
            _exit(1);
        at += (size_t)got;
    }
    *bytes = size;
    return data;
}

static const char *self_path;

static pid_t let_in(const char *how)
{
    int ends[2];
    pid_t pid;
    char number[16];
    size_t card_bytes, bytes;
    void *invitation;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    snprintf(number, sizeof number, "%d", ends[1]);
    char *arguments[] = {(char *)self_path, (char *)how, number, (char *)directory, NULL};
    CHECK(posix_spawn(&pid, self_path, NULL, NULL, arguments, environ) == 0, "spawn");
    close(ends[1]);
    void *card = receive_bytes(ends[0], &card_bytes);
    MUST(lode_fabric_admit(cluster->fabric, card, card_bytes, &invitation, &bytes));
    send_bytes(ends[0], invitation, bytes);
    send_bytes(ends[0], expected, sizeof expected);
    free(card);
    free(invitation);
    close(ends[0]);
    return pid;
}

static void restored_with_newcomer(void)
{
    tend_until_restored(true);
    meet("filled");
    owners_are_right(2);
    steps_are_right("with all four again");
    meet("looked");
    kill_rank(2);
    steps_are_right("after the second death");
    tend_until_restored(true);
    meet("restored");
    owners_are_right(2);
    steps_are_right("in the end");
    meet("done");
}

/* A rank dies; a process that knows nothing takes its place, is filled, and takes part like all others. */
static void joined(void)
{
    enum { NEW = 1 };
    pid_t pid = 0;
    int status = 0;
    kill_rank(NEW);
    tend_until_restored(true);
    meet("alone");
    if (rank == 0)
        pid = let_in("--join");
    uint64_t begin = lode_now_ns();
    while (!lode_fabric_alive(cluster->fabric, NEW) && seconds_since(begin) < 20)
        tend();
    CHECK(lode_fabric_incarnation(cluster->fabric, NEW) == 2, "nobody joined");
    dead[NEW] = false;
    if (rank == 2) { /* while it is filled */
        lode_block_params_t params = {.name = "late", .format = LODE_FORMAT_BF16};
        lode_block_h late;
        float *k = tensor(1, TOKENS * KV_HEADS * DIM);
        MUST(lode_landmark_parse("landmark2", &params.landmark));
        MUST(lode_block_create(cluster, &params, &late));
        for (uint32_t layer = 0; layer < LAYERS; layer++)
            MUST(lode_block_append(late, layer, TOKENS, LODE_FP32, k, k));
        MUST(lode_block_seal(late));
        free(k);
        meet("written");
        meet("late");
        MUST(lode_block_drop(&late));
    } else {
        meet("written");
        meet("late");
    }
    meet("dropped");
    restored_with_newcomer();
    if (rank == 0)
        CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the process that joined ended with %x", status);
}

static void enter(int channel)
{
    void *card;
    size_t bytes, expected_bytes;
    uint64_t begin = lode_now_ns();
    lode_config_h config = configure("16MiB");
    MUST(lode_cluster_prepare(config, &cluster, &card, &bytes));
    send_bytes(channel, card, bytes);
    free(card);
    void *invitation = receive_bytes(channel, &bytes), *outputs = receive_bytes(channel, &expected_bytes);
    MUST(lode_cluster_enter(cluster, config, invitation, bytes));
    memcpy(expected, outputs, sizeof expected);
    free(invitation);
    free(outputs);
    lode_config_destroy(&config);
    rank = (int)lode_fabric_rank(cluster->fabric);
    ranks = (int)lode_fabric_ranks(cluster->fabric);
    while (atomic_load(&cluster->filling) && seconds_since(begin) < 30)
        tend();
    CHECK(!atomic_load(&cluster->filling), "not filled");
}

static void open_all(void)
{
    char name[16];
    for (uint32_t b = 0; b < BLOCKS; b++) {
        snprintf(name, sizeof name, "document %u", b);
        MUST(lode_block_open(cluster, name, &blocks[b]));
    }
    make_view();
    steps_are_right("with nothing of its own");
}

static int newcomer(int channel)
{
    uint64_t tokens;
    lode_block_h late;
    enter(channel);
    meet("written");
    MUST(lode_block_open(cluster, "late", &late));
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        MUST(lode_block_tokens(late, layer, &tokens));
        CHECK(tokens == TOKENS, "%llu tokens of what was written meanwhile", (unsigned long long)tokens);
    }
    MUST(lode_block_close(&late));
    meet("late");
    meet("dropped");
    CHECK(lode_block_open(cluster, "late", &late) == LODE_ERR_NOT_FOUND, "dropped, and here still");
    open_all();
    restored_with_newcomer();
    return !right;
}

/* The leader dies while it fills a newcomer; its heir begins anew. */
static void heir(void)
{
    enum { NEW = 1, HOST = 2 };
    pid_t pid = 0;
    int status = 0;
    kill_rank(NEW);
    meet("alone");
    if (rank == HOST)
        pid = let_in("--heir");
    uint64_t begin = lode_now_ns();
    while (!lode_fabric_alive(cluster->fabric, NEW) && seconds_since(begin) < 20)
        tend();
    begin = lode_now_ns();
    while (seconds_since(begin) < 1.5)
        tend();
    CHECK(cluster->newcomers[NEW], "filled before its time");
    meet("filling");
    kill_rank(0);
    dead[NEW] = false;
    steps_are_right("with two left");
    meet("done");
    if (rank == HOST)
        CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the process that joined ended with %x", status);
}

static int heirs_newcomer(int channel)
{
    enter(channel);
    dead[0] = true;
    open_all();
    meet("done");
    return !right;
}

/* ---------------------------------------------------------------------------- */

static const struct {
    const char *name;
    void (*run)(void);
    const char *small; /* rank with a small arena */
    bool dies;
} cases[] = {{"killed", killed, NULL, true}, {"leader", leader, NULL, true}, {"stopped", stopped, NULL, true},
             {"full", full, "3", true},      {"joined", joined, NULL, true}, {"heir", heir, NULL, true},
             {"healed", healed, NULL, false}};

int main(int argc, char **argv)
{
    int provided;
    size_t which = 0;
    self_path = argv[0];
    if (argc == 4) {
        bool join = strcmp(argv[1], "--join") == 0;
        alarm(90);
        directory = argv[3];
        _exit(join ? newcomer(atoi(argv[2])) : heirs_newcomer(atoi(argv[2])));
    }
    if (argc != 3)
        return 2;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    directory = argv[2];
    alarm(90); /* a hang ends here */
    while (which < sizeof cases / sizeof *cases && strcmp(cases[which].name, argv[1]) != 0)
        which++;
    if (which == sizeof cases / sizeof *cases || ranks != 4)
        return 2;
    if (cases[which].run == stopped)
        beat = "100";
    if (cases[which].run == heir) {
        replicas = "3";
        rate = "64KiB"; /* slow enough for it to die in the midst */
    }
    set_up(cases[which].small);
    cases[which].run();
    if (right)
        printf("rank %d: right\n", rank);
    fflush(stdout);
    MUST(lode_view_destroy(&view));
    for (uint32_t b = 0; b < BLOCKS; b++)
        MUST(lode_block_close(&blocks[b]));
    MUST(lode_cluster_leave(&cluster));
    if (!cases[which].dies)
        MPI_Finalize();
    _exit(!right);
}
