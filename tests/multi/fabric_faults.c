/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fabric_faults CASE PATH: the fabric when ranks die, stop, or leave. Needs three ranks or more; rank 1 is
 * the one it happens to. A rank that saw what it should prints "rank N: right"; mpirun's exit status says
 * nothing once a rank was killed.
 */
#include <inttypes.h>
#include <signal.h>
#include <unistd.h>

#include "tests/multi/fabric_pages.h"

#define VICTIM 1u
#define ITEMS 400

static pages_t pages;
static lode_fabric_params_t params;
static bool right = true;
static pid_t victim_pid;

static void kill_self(pages_t *p)
{
    (void)p;
    raise(SIGKILL);
}

static void stop_self(pages_t *p)
{
    (void)p;
    kill(getpid(), SIGSTOP);
    usleep(200000); /* until all threads have stopped; none of them may be writing to a queue of UCX's shared memory */
}

static void tarry(pages_t *p)
{
    (void)p;
    sleep(4);
}

static double seconds_since(uint64_t begin)
{
    return (double)(lode_now_ns() - begin) * 1e-9;
}

/** One fetch of random items; whatever comes of it, it comes soon, and what lands is right. */
static lode_status_t fetch_some(uint64_t seed, double limit)
{
    static lode_fetch_item_t items[ITEMS];
    uint32_t count = pages_items(items, ITEMS, params.landing_bytes, lode_mix(seed, pages.rank));
    lode_fetch_t fetch = pages_fetch(&pages, items, count);
    uint64_t begin = lode_now_ns();
    lode_status_t status = lode_fabric_fetch(pages.fabric, &fetch);
    if (status == LODE_OK)
        status = lode_fabric_fetch_wait(pages.fabric, &fetch);
    CHECK(seconds_since(begin) < limit, "a fetch took %.2f s", seconds_since(begin));
    if (status == LODE_OK)
        CHECK(pages_landed(&pages, &fetch), "landed records are not what they should be");
    lode_fabric_fetch_release(pages.fabric, &fetch);
    return status;
}

static lode_status_t call_some(uint32_t to, size_t bytes)
{
    static uint8_t payload[4 << 20];
    Lodemark__Publish publish = LODEMARK__PUBLISH__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    call.body_case = LODEMARK__CALL__BODY_PUBLISH;
    call.publish = &publish;
    return lode_fabric_call_wait(pages.fabric, to, &call, payload, bytes, NULL, NULL);
}

/** Fetch until the victim is known to be lost, for at most ten seconds; each must come to @p allowed or LODE_OK. */
static void fetch_until_lost(lode_status_t allowed)
{
    uint64_t begin = lode_now_ns(), round = 0;
    while (lode_fabric_alive(pages.fabric, VICTIM) && seconds_since(begin) < 10) {
        lode_status_t status = fetch_some(round++, 5);
        CHECK(status == LODE_OK || status == allowed, "%s", lode_status_string(status));
    }
    CHECK(!lode_fabric_alive(pages.fabric, VICTIM), "nobody noticed after %.1f s", seconds_since(begin));
    CHECK(lode_fabric_alive_count(pages.fabric) == pages.ranks - 1, "%u", lode_fabric_alive_count(pages.fabric));
    begin = lode_now_ns(); /* the number is agreed on among the others, which takes a moment */
    while (lode_fabric_epoch(pages.fabric) != 2 && seconds_since(begin) < 10)
        usleep(1000);
    CHECK(lode_fabric_epoch(pages.fabric) == 2, "%u", lode_fabric_epoch(pages.fabric));
}

static bool quarantined(void)
{
    for (uint32_t i = 0; i < LODE_LANDINGS; i++) {
        if (pages.fabric->landings[i].state == LANDING_QUARANTINED)
            return true;
    }
    return false;
}

static void progress_until_clean(double least, double most)
{
    uint64_t begin = lode_now_ns();
    while (seconds_since(begin) < least || (quarantined() && seconds_since(begin) < most)) {
        lode_fabric_progress(pages.fabric);
        usleep(1000);
    }
    CHECK(!quarantined(), "a landing buffer is still in quarantine");
}

/* Two owners a page: no fetch fails, before, while and after one of them dies. */
static void killed(void)
{
    if (pages.rank == VICTIM) {
        pause();
        return;
    }
    fetch_until_lost(LODE_OK);
    for (uint64_t round = 100; round < 110; round++)
        CHECK(fetch_some(round, 1) == LODE_OK, "after the loss");
    progress_until_clean(0, 5);
    CHECK(call_some(VICTIM, 10) == LODE_ERR_PEER_LOST, "call to the dead");
    CHECK(call_some(pages.ranks - 1 - pages.rank, 10) == LODE_OK || pages.ranks != 3, "call to the living");
}

static void *shoot(void *argument)
{
    (void)argument;
    usleep(20000 + (useconds_t)(lode_now_ns() / 1000 % 50000));
    kill(victim_pid, SIGKILL);
    return NULL;
}

/* As killed, but from outside and at any moment: also while it writes a message. */
static void shot(void)
{
    pthread_t gun;
    if (pages.rank == 0)
        pthread_create(&gun, NULL, shoot, NULL);
    killed();
    if (pages.rank == 0)
        pthread_join(gun, NULL);
}

/* One owner a page: a fetch that needs the dead says so, soon, with the name of the page. */
static void alone(void)
{
    pages.owners = 1;
    if (pages.rank == VICTIM) {
        pause();
        return;
    }
    fetch_until_lost(LODE_ERR_PAGE_LOST);
    CHECK(fetch_some(100, 1) == LODE_ERR_PAGE_LOST, "after the loss");
    CHECK(strstr(lode_error_message(), "rank 1: lost") && strstr(lode_error_message(), "page "), "no reason");
}

/* A rank dies with calls to it under way, one of them large. */
static void called(void)
{
    if (pages.rank == VICTIM) {
        sleep(1);
        raise(SIGKILL);
    }
    uint64_t begin = lode_now_ns();
    lode_status_t status = LODE_OK;
    while (status == LODE_OK && seconds_since(begin) < 10)
        status = call_some(VICTIM, pages.rank == 0 ? 4 << 20 : 100);
    CHECK(status == LODE_ERR_PEER_LOST, "%s after %.1f s", lode_status_string(status), seconds_since(begin));
    CHECK(call_some(pages.ranks - 1 - pages.rank, 10) == LODE_OK || pages.ranks != 3, "call to the living");
}

/* A stopped rank misses deadlines; it is not dead, and what it says when it goes on harms nothing. */
static void stopped(void)
{
    if (pages.rank != VICTIM) {
        uint64_t begin = lode_now_ns();
        for (uint64_t round = 0; round < 30; round++)
            CHECK(fetch_some(round, 8) == LODE_OK, "while it is stopped");
        CHECK(seconds_since(begin) < 20, "30 fetches took %.1f s: an owner that misses deadlines is asked too often",
              seconds_since(begin));
        CHECK(pages.fabric->counters.deadlines > 0, "no deadline was missed");
        /* Rank 0 lets it go on, and does not wait for ranks that are slower. */
        lode_status_t calm = pages.rank == 0 ? LODE_ERR_TIMEOUT : LODE_OK, little = call_some(VICTIM, 10);
        CHECK(little == LODE_ERR_TIMEOUT || little == calm, "small call to the stopped: %s",
              lode_status_string(little));
        lode_status_t large = call_some(VICTIM, 4 << 20);
        CHECK(large == LODE_ERR_TIMEOUT || large == calm, "large call to the stopped: %s", lode_status_string(large));
        sleep(1);
        if (pages.rank == 0)
            kill(victim_pid, SIGCONT);
        progress_until_clean(3, 10);
        CHECK(pages.fabric->counters.late_replies + pages.fabric->counters.quarantines > 0, "nothing came late");
        CHECK(lode_fabric_alive(pages.fabric, VICTIM), "held for dead");
        /* It is asked again and answers in time; a busy machine may need a few tries. */
        uint64_t seed = 50, missed = 0, good = 0;
        for (begin = lode_now_ns(); good < 10 && seconds_since(begin) < 15;) {
            missed = pages.fabric->counters.deadlines;
            CHECK(fetch_some(seed++, 8) == LODE_OK, "after it went on");
            good = pages.fabric->counters.deadlines == missed ? good + 1 : 0;
        }
        CHECK(good == 10, "deadlines are still missed after it went on");
        lode_status_t status = call_some(VICTIM, 4 << 20);
        while (status == LODE_ERR_TIMEOUT && seconds_since(begin) < 15)
            status = call_some(VICTIM, 4 << 20);
        CHECK(status == LODE_OK, "call after it went on");
    }
}

/* An owner says nothing for four seconds: others are asked long before the deadline, and it is left alone. */
static void slow(void)
{
    if (pages.rank == VICTIM)
        return;
    for (uint64_t round = 0; round < 40; round++)
        CHECK(fetch_some(round, 3) == LODE_OK, "while an owner is slow");
    CHECK(pages.fabric->counters.hedged > 0, "no request was hedged");
    /* a fetch has some twenty requests for it: asked in each of 40 rounds, and not once a second, it were 800 */
    CHECK(pages.fabric->counters.hedged < 200, "%" PRIu64 " requests were hedged: it is asked too often",
          pages.fabric->counters.hedged);
    CHECK(pages.fabric->counters.deadlines == 0, "a deadline was missed");
    CHECK(lode_fabric_alive(pages.fabric, VICTIM), "held for dead");
    sleep(4);
    for (uint64_t round = 40; round < 50; round++)
        CHECK(fetch_some(round, 3) == LODE_OK, "after it went on");
}

/* A rank asks for a lot and stops before it has read the answers: its owners go on serving the others. */
static void deaf(void)
{
    static lode_fetch_item_t items[2][20000];
    if (pages.rank == VICTIM) {
        lode_fetch_t fetch[2];
        for (uint32_t f = 0; f < 2; f++) {
            uint32_t count = pages_items(items[f], 900, params.landing_bytes, f);
            fetch[f] = pages_fetch(&pages, items[f], count);
            CHECK(lode_fabric_fetch(pages.fabric, &fetch[f]) == LODE_OK, "the stopped rank's fetch");
        }
        stop_self(&pages);
        for (uint32_t f = 0; f < 2; f++) {
            CHECK(lode_fabric_fetch_wait(pages.fabric, &fetch[f]) == LODE_OK, "after it went on");
            CHECK(pages_landed(&pages, &fetch[f]), "landed records are not what they should be");
            lode_fabric_fetch_release(pages.fabric, &fetch[f]);
        }
        return;
    }
    usleep(500000);
    for (uint64_t round = 0; round < 30; round++)
        CHECK(fetch_some(round, 4) == LODE_OK, "while a rank does not listen");
    sleep(1);
    if (pages.rank == 0)
        kill(victim_pid, SIGCONT);
}

/* Ranks leave one after another, without a fault. */
static void leaving(void)
{
    CHECK(fetch_some(1, 5) == LODE_OK, "a fetch");
    usleep(300000 * pages.rank);
}

static const struct {
    const char *name;
    void (*run)(void);
    void (*victim)(pages_t *); /**< what happens to it in the midst of serving */
    int signal;                /**< and where it is not asked: reads are one-sided */
    bool dies;
} cases[] = {{"killed", killed, kill_self, SIGKILL, true},
             {"shot", shot, NULL, 0, true},
             {"alone", alone, kill_self, SIGKILL, true},
             {"called", called, NULL, 0, true},
             {"stopped", stopped, stop_self, SIGSTOP, false},
             {"slow", slow, tarry, 0, false},
             {"deaf", deaf, NULL, 0, false},
             {"leaving", leaving, NULL, 0, false}};

static void run(size_t which)
{
    int64_t pid = getpid(), *pids = calloc(pages.ranks, sizeof *pids);
    const char *reason;
    bool served = strcmp(lode_fabric_path(pages.fabric, &reason), "batched") == 0;
    MPI_Allgather(&pid, 1, MPI_INT64_T, pids, 1, MPI_INT64_T, MPI_COMM_WORLD);
    victim_pid = (pid_t)pids[VICTIM];
    free(pids);
    if (pages.rank == VICTIM && served && cases[which].victim) {
        pages.on_reached = cases[which].victim; /* before the service thread can look for it */
        pages.die_after = 300;
    }
    MPI_Barrier(MPI_COMM_WORLD);
    if (!served && cases[which].signal && pages.rank == 0)
        kill(victim_pid, cases[which].signal);
    cases[which].run();
}

int main(int argc, char **argv)
{
    int provided, rank;
    size_t which = 0;
    if (argc != 3)
        return 2;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    lode_log_rank(rank);
    alarm(90); /* a hang ends here */
    while (which < sizeof cases / sizeof *cases && strcmp(cases[which].name, argv[1]) != 0)
        which++;
    if (which == sizeof cases / sizeof *cases)
        return 2;
    params = pages_params(&pages);
    params.path = strcmp(argv[2], "batched") == 0     ? LODE_PATH_BATCHED
                  : strcmp(argv[2], "one-sided") == 0 ? LODE_PATH_ONE_SIDED
                                                      : LODE_PATH_AUTO;
    params.reply_bytes = 16384;
    params.fetch_deadline_ms = strcmp(argv[1], "stopped") == 0 ? 300 : 5000;
    params.call_deadline_ms =
        strcmp(argv[1], "stopped") == 0 ? 4000 : 10000; /* fetches try as long, on a busy machine */
    params.hedge_ms = strcmp(argv[1], "slow") == 0 ? 20 : 0;
    if (strcmp(argv[1], "deaf") == 0) {
        params.fetch_deadline_ms = 1000;
        params.credit_bytes = (size_t)32 << 20; /* more than sockets hold */
    }
    if (pages_open(&pages, &params) != LODE_OK) {
        fprintf(stderr, "rank %d: %s\n", rank, lode_error_message());
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    run(which);
    uint64_t begin = lode_now_ns();
    lode_fabric_destroy(&pages.fabric);
    CHECK(seconds_since(begin) < 40, "leaving, which waits for all others, took %.1f s", seconds_since(begin));
    if (right)
        printf("rank %u: right\n", pages.rank);
    fflush(stdout);
    if (!cases[which].dies)
        MPI_Finalize();
    _exit(!right);
}
