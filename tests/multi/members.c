/* SPDX-License-Identifier: Apache-2.0 */
/*
 * members CASE BEAT_MS: who is a member when ranks die, stop, come back and join. A rank that saw what it should
 * prints "rank N: epoch E, members …", the same on every rank that is left; mpirun's exit status says nothing once a
 * rank was killed. With --join FD it is the process that joins, outside of MPI.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/multi/fabric_pages.h"

#define SECONDS 20.0
#define ITEMS 400

static pages_t pages;
static lode_fabric_params_t params;
static bool right = true;
static pid_t pids[64];
static const char *self_path;
static uint32_t beat_ms;

/** Progress until a condition holds, for a bounded time. */
#define WAIT(condition)                                                                           \
    do {                                                                                          \
        uint64_t wait_begin_ = lode_now_ns();                                                     \
        while (!(condition) && (double)(lode_now_ns() - wait_begin_) * 1e-9 < SECONDS) {          \
            lode_fabric_progress(pages.fabric);                                                   \
            usleep(1000);                                                                         \
        }                                                                                         \
        CHECK(condition, "not after %.0f s; epoch %u", SECONDS, lode_fabric_epoch(pages.fabric)); \
    } while (0)

static lode_status_t fetch_some(uint64_t seed)
{
    static lode_fetch_item_t items[ITEMS];
    uint32_t count = pages_items(items, ITEMS, params.landing_bytes, lode_mix(seed, pages.rank));
    lode_fetch_t fetch = pages_fetch(&pages, items, count);
    lode_status_t status = lode_fabric_fetch(pages.fabric, &fetch);
    if (status == LODE_OK)
        status = lode_fabric_fetch_wait(pages.fabric, &fetch);
    if (status == LODE_OK)
        CHECK(pages_landed(&pages, &fetch), "landed records are not what they should be");
    lode_fabric_fetch_release(pages.fabric, &fetch);
    return status;
}

static lode_status_t call_some(uint32_t to)
{
    uint8_t payload[1000] = {7};
    Lodemark__Publish publish = LODEMARK__PUBLISH__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    call.body_case = LODEMARK__CALL__BODY_PUBLISH;
    call.publish = &publish;
    return lode_fabric_call_wait(pages.fabric, to, &call, payload, sizeof payload, NULL, NULL);
}

/** Calls to and fetches from all that live: nobody fails. One owner a page, so that each must give its own. */
static void use_all(void)
{
    pages.owners = 1;
    for (uint32_t r = 0; r < lode_fabric_ranks(pages.fabric); r++) {
        if (lode_fabric_alive(pages.fabric, r))
            CHECK(call_some(r) == LODE_OK, "call to rank %u", r);
    }
    for (uint64_t round = 0; round < 5; round++)
        CHECK(fetch_some(round) == LODE_OK, "fetch");
}

static void say(void)
{
    char set[80] = "";
    for (uint32_t r = 0, used = 0; r < lode_fabric_ranks(pages.fabric) && used < 70; r++) {
        uint32_t incarnation = lode_fabric_alive(pages.fabric, r) ? lode_fabric_incarnation(pages.fabric, r) : 0;
        used += (uint32_t)snprintf(set + used, sizeof set - used, " %u", incarnation);
    }
    if (right)
        printf("rank %u: epoch %u, members%s\n", pages.rank, lode_fabric_epoch(pages.fabric), set);
    fflush(stdout);
}

/* ------------------------------------------------------------------- joining */

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
    if (read(from, &size, sizeof size) != sizeof size || size > 1 << 24)
        return NULL;
    uint8_t *data = malloc(size);
    for (size_t at = 0; data && at < size;) {
        ssize_t got = read(from, data + at, size - at);
        if (got <= 0) {
            free(data);
            return NULL;
        }
        at += (size_t)got;
    }
    *bytes = size;
    return data;
}

/* The process that joins: what it is used for, its channel says. */
static int joiner(int channel)
{
    void *card, *invitation;
    size_t card_bytes, bytes = 0;
    char last;
    alarm(60);
    CHECK(lode_fabric_prepare(&params, &pages.fabric, &card, &card_bytes) == LODE_OK, "prepare");
    if (!right)
        return 1;
    send_bytes(channel, card, card_bytes);
    free(card);
    invitation = receive_bytes(channel, &bytes);
    CHECK(invitation, "no invitation came");
    if (!invitation)
        return 1;
    CHECK(lode_fabric_enter(pages.fabric, "nonsense", 8) == LODE_ERR_FORMAT, "an invitation that is none");
    CHECK(lode_fabric_enter(pages.fabric, invitation, bytes) == LODE_OK, "enter");
    free(invitation);
    pages.rank = lode_fabric_rank(pages.fabric);
    pages.ranks = lode_fabric_ranks(pages.fabric);
    pages.owners = 1;
    pages.absent_rank = UINT32_MAX;
    pages.arena = lode_fabric_arena(pages.fabric);
    pages_fill(&pages);
    lode_log_rank((int)pages.rank);
    void *shared;
    int fd;
    bool same = false;
    uint32_t which;
    CHECK(lode_fabric_shared(pages.fabric, 4096, &shared, &fd) == LODE_OK, "shared memory of its own");
    CHECK(lode_fabric_agree(pages.fabric, &bytes, sizeof bytes, &same, &which) == LODE_OK && same, "agree");
    CHECK(lode_fabric_worst(pages.fabric, LODE_ERR_IO) == LODE_ERR_IO, "worst");
    CHECK(lode_fabric_start(pages.fabric) == LODE_OK, "start");
    CHECK(lode_fabric_alive_count(pages.fabric) == pages.ranks && !lode_fabric_intact(pages.fabric), "%u",
          lode_fabric_alive_count(pages.fabric));
    use_all();
    send_bytes(channel, "used", 4);
    fcntl(channel, F_SETFL, O_NONBLOCK);
    while (read(channel, &last, 1) != 0) { /* until it is closed */
        lode_fabric_progress(pages.fabric);
        usleep(1000);
    }
    say();
    lode_fabric_destroy(&pages.fabric);
    return !right;
}

/** Start a process, let it in, wait until it has used all others. @return its channel; close it to end the process. */
static int let_in(pid_t *pid)
{
    int ends[2];
    char number[16], beat[16];
    size_t card_bytes = 0, invitation_bytes = 0, used = 0;
    void *invitation = NULL;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    snprintf(number, sizeof number, "%d", ends[1]);
    snprintf(beat, sizeof beat, "%u", beat_ms);
    char *arguments[] = {(char *)self_path, "--join", number, beat, NULL};
    CHECK(posix_spawn(pid, self_path, NULL, NULL, arguments, environ) == 0, "spawn");
    close(ends[1]);
    CHECK(lode_fabric_admit(pages.fabric, "nonsense", 8, &invitation, &invitation_bytes) == LODE_ERR_FORMAT, "a card");
    void *card = receive_bytes(ends[0], &card_bytes);
    CHECK(card, "no card came");
    if (!card)
        return ends[0];
    lode_status_t status = lode_fabric_admit(pages.fabric, card, card_bytes, &invitation, &invitation_bytes);
    CHECK(status == LODE_OK, "admit");
    if (status == LODE_OK)
        send_bytes(ends[0], invitation, invitation_bytes);
    free(card);
    free(invitation);
    void *said = receive_bytes(ends[0], &used);
    CHECK(said && used == 4, "the process that joined ended");
    free(said);
    return ends[0];
}

/** All wait for a process in @p slot, use it, and go on when all have. */
static void with_newcomer(uint32_t host, uint32_t slot, uint32_t incarnation)
{
    pid_t pid = 0;
    int channel = -1, status = 0;
    if (pages.rank == host)
        channel = let_in(&pid);
    WAIT(lode_fabric_alive(pages.fabric, slot) && lode_fabric_incarnation(pages.fabric, slot) == incarnation);
    use_all();
    sleep(3); /* the others use it too; no collective can be called any more */
    say();
    if (pages.rank != host)
        return;
    close(channel);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the process that joined ended with %x", status);
}

/* --------------------------------------------------------------------- cases */

static bool dies(uint32_t mask)
{
    if (mask >> pages.rank & 1)
        raise(SIGKILL);
    return false;
}

static bool all_stand_still(pid_t pid)
{
    char path[600], line[400];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    bool still = tasks;
    for (struct dirent *task; tasks && (task = readdir(tasks));) {
        snprintf(path, sizeof path, "/proc/%d/task/%s/stat", pid, task->d_name);
        FILE *file = task->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (!file)
            continue;
        const char *name_end = fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
        still &= name_end && strncmp(name_end, ") T", 3) == 0;
        fclose(file);
    }
    if (tasks)
        closedir(tasks);
    return still;
}

/** The signal is sent at once; a thread that runs on another core answers a little longer. */
static void stop(pid_t pid)
{
    kill(pid, SIGSTOP);
    WAIT(all_stand_still(pid));
}

/** Those in the mask die at once; the others agree, and go on. */
static void killed(uint32_t mask)
{
    uint32_t left = pages.ranks - (uint32_t)__builtin_popcount(mask);
    usleep(300000);
    dies(mask);
    WAIT(lode_fabric_alive_count(pages.fabric) == left);
    WAIT(lode_fabric_epoch(pages.fabric) >= 2);
    sleep(2); /* two that die at once may be one epoch or two */
    CHECK(!lode_fabric_fenced(pages.fabric) && !lode_fabric_expelled(pages.fabric), "fenced");
    for (uint32_t r = 0; r < pages.ranks; r++) {
        if (!(mask >> r & 1))
            CHECK(call_some(r) == LODE_OK, "call to rank %u", r);
    }
    CHECK(lode_fabric_leader(pages.fabric) == (uint32_t)__builtin_ctz(~mask), "leader");
    say();
}

static void stopped(uint32_t victim)
{
    uint32_t host = victim == 0 ? 1 : 0;
    if (pages.rank == victim) {
        WAIT(lode_fabric_expelled(pages.fabric));
        CHECK(call_some(host) == LODE_ERR_PEER_LOST, "a call of one that is out");
        printf("rank %u: expelled\n", pages.rank);
        return;
    }
    sleep(3); /* past the grace of the start */
    if (pages.rank == host)
        stop(pids[victim]);
    WAIT(!lode_fabric_alive(pages.fabric, victim));
    WAIT(lode_fabric_epoch(pages.fabric) == 2);
    CHECK(!lode_fabric_fenced(pages.fabric), "fenced");
    sleep(1);
    if (pages.rank == host)
        kill(pids[victim], SIGCONT);
    sleep(2);
    CHECK(lode_fabric_epoch(pages.fabric) == 2, "%u", lode_fabric_epoch(pages.fabric));
    say();
}

static void case_killed(void)
{
    killed(2);
}
static void case_decider(void)
{
    killed(1);
}
static void case_two(void)
{
    killed(3);
}
static void case_stopped(void)
{
    stopped(1);
}
static void case_stopped_decider(void)
{
    stopped(0);
}

static void case_rejoin(void)
{
    usleep(300000);
    dies(2);
    WAIT(lode_fabric_epoch(pages.fabric) == 2);
    with_newcomer(0, 1, 2);
}

static void case_grow(void)
{
    with_newcomer(pages.ranks - 2, pages.ranks - 1, 1); /* pages.ranks counts it already */
}

/* No slot is left; what was prepared can be destroyed without having entered. */
static void case_full(void)
{
    if (pages.rank == 1) {
        lode_fabric_h other = NULL;
        void *card = NULL, *invitation = NULL;
        size_t card_bytes = 0, bytes = 0;
        CHECK(lode_fabric_prepare(&params, &other, &card, &card_bytes) == LODE_OK, "prepare");
        lode_status_t status = lode_fabric_admit(pages.fabric, card, card_bytes, &invitation, &bytes);
        CHECK(status == LODE_ERR_FULL && !invitation, "%s", lode_status_string(status));
        CHECK(strstr(lode_error_message(), "max-ranks"), "no reason");
        free(card);
        lode_fabric_destroy(&other);
    }
    MPI_Barrier(MPI_COMM_WORLD);
    CHECK(lode_fabric_epoch(pages.fabric) == 1, "%u", lode_fabric_epoch(pages.fabric));
    say();
}

/* Process after process takes a slot and is killed. */
static void case_churn(void)
{
    for (uint32_t incarnation = 1; incarnation <= 6; incarnation++) {
        uint32_t slot = pages.ranks - 1; /* which pages.ranks counts already */
        pid_t pid = 0;
        int channel = -1;
        if (pages.rank == 0)
            channel = let_in(&pid);
        WAIT(lode_fabric_incarnation(pages.fabric, slot) == incarnation);
        while (pages.rank != 0 && lode_fabric_incarnation(pages.fabric, slot) == incarnation &&
               lode_fabric_alive(pages.fabric, slot)) {
            call_some(slot); /* as it is killed: whatever comes of it comes, and what lands is right */
            fetch_some(incarnation);
        }
        if (pages.rank == 0) {
            usleep(300000);
            kill(pid, SIGKILL);
            waitpid(pid, NULL, 0);
            close(channel);
        }
        WAIT(!lode_fabric_alive(pages.fabric, slot) || lode_fabric_incarnation(pages.fabric, slot) > incarnation);
        WAIT(lode_fabric_epoch(pages.fabric) >= 2 * incarnation + 1);
    }
    for (uint32_t r = 0; r + 1 < pages.ranks; r++)
        CHECK(call_some(r) == LODE_OK, "call to rank %u", r);
    sleep(1);
    CHECK(lode_fabric_epoch(pages.fabric) == 13, "%u", lode_fabric_epoch(pages.fabric));
    say();
}

/* One is stopped, another takes its slot, the first goes on: nothing it says counts. */
static void case_stale(void)
{
    if (pages.rank == 1) {
        WAIT(lode_fabric_expelled(pages.fabric));
        CHECK(call_some(0) == LODE_ERR_PEER_LOST, "a call of one that is out");
        return;
    }
    sleep(3);
    if (pages.rank == 0) {
        stop(pids[1]);
        /* what it is asked now it answers when it goes on */
        CHECK(call_some(1) != LODE_OK, "a call to one that is stopped");
    }
    WAIT(lode_fabric_epoch(pages.fabric) == 2);
    pid_t pid = 0;
    int channel = -1, status = 0;
    if (pages.rank == 0)
        channel = let_in(&pid);
    WAIT(lode_fabric_alive(pages.fabric, 1) && lode_fabric_incarnation(pages.fabric, 1) == 2);
    if (pages.rank == 0)
        kill(pids[1], SIGCONT);
    for (uint32_t round = 0; round < 20; round++) {
        use_all();
        usleep(100000);
    }
    sleep(2);
    say();
    if (pages.rank != 0)
        return;
    close(channel);
    CHECK(waitpid(pid, &status, 0) == pid && status == 0, "the process that joined ended with %x", status);
}

/* The last rank's host is cut off and mended from outside, see tests/cluster/members. */
static void case_cut(void)
{
    uint32_t victim = pages.ranks - 1;
    sleep(3);
    if (pages.rank == 0) {
        printf("ready\n");
        fflush(stdout);
    }
    if (pages.rank == victim) {
        WAIT(lode_fabric_fenced(pages.fabric));
        CHECK(call_some(pages.rank) == LODE_ERR_PEER_LOST, "a fenced rank serves");
        WAIT(lode_fabric_expelled(pages.fabric));
        return;
    }
    WAIT(!lode_fabric_alive(pages.fabric, victim));
    WAIT(lode_fabric_epoch(pages.fabric) == 2);
    CHECK(!lode_fabric_fenced(pages.fabric), "fenced");
    for (uint32_t r = 0; r < victim; r++)
        CHECK(call_some(r) == LODE_OK, "call to rank %u", r);
    sleep(5);
    CHECK(lode_fabric_epoch(pages.fabric) == 2, "%u", lode_fabric_epoch(pages.fabric));
    say();
}

static const struct {
    const char *name;
    void (*run)(void);
    uint32_t more; /**< slots that join */
} cases[] = {{"killed", case_killed, 0},
             {"decider", case_decider, 0},
             {"two", case_two, 0},
             {"stopped", case_stopped, 0},
             {"stopped-decider", case_stopped_decider, 0},
             {"rejoin", case_rejoin, 0},
             {"grow", case_grow, 1},
             {"stale", case_stale, 0},
             {"full", case_full, 0},
             {"cut", case_cut, 0},
             {"churn", case_churn, 1}};

static lode_status_t open_all(uint32_t more)
{
    LODE_TRY(lode_fabric_create(&params, LODE_OK, &pages.fabric));
    pages.rank = lode_fabric_rank(pages.fabric);
    pages.ranks = lode_fabric_ranks(pages.fabric) + more;
    pages.owners = 1;
    pages.arena = lode_fabric_arena(pages.fabric);
    pages.absent_rank = UINT32_MAX;
    pages_fill(&pages);
    return lode_fabric_start(pages.fabric);
}

int main(int argc, char **argv)
{
    int provided, rank;
    size_t which = 0;
    char path[4096];
    self_path = realpath("/proc/self/exe", path);
    params = pages_params(&pages);
    params.reply_bytes = 16384;
    params.fetch_deadline_ms = 5000;
    params.call_deadline_ms = 4000;
    params.suspect_ms = params.lease_ms = 1000;
    params.beat_ms = beat_ms = argc > 2 ? (uint32_t)atoi(argv[argc - 1]) : 0;
    if (argc == 4 && strcmp(argv[1], "--join") == 0)
        return joiner(atoi(argv[2]));
    while (which < sizeof cases / sizeof *cases && argc == 3 && strcmp(cases[which].name, argv[1]) != 0)
        which++;
    if (argc != 3 || which == sizeof cases / sizeof *cases)
        return 2;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    lode_log_rank(rank);
    alarm(90); /* a hang ends here */
    int64_t pid = getpid(), all[64];
    MPI_Allgather(&pid, 1, MPI_INT64_T, all, 1, MPI_INT64_T, MPI_COMM_WORLD);
    if (strcmp(argv[1], "full") == 0)
        params.max_ranks = 1; /* the job's are the least */
    if (open_all(cases[which].more) != LODE_OK) {
        fprintf(stderr, "rank %d: %s\n", rank, lode_error_message());
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    for (uint32_t r = 0; r < pages.ranks && r < 64; r++)
        pids[r] = (pid_t)all[r];
    MPI_Barrier(MPI_COMM_WORLD);
    cases[which].run();
    lode_fabric_destroy(&pages.fabric);
    if (right)
        printf("rank %d: right\n", rank);
    fflush(stdout);
    _exit(!right);
}
