/* SPDX-License-Identifier: Apache-2.0 */
/* A team does each item once, shares out work that is worth it, keeps to the cores it may use, and ends. */
#include <sched.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/team.h"
#include "tests/threads/threads.h"

enum { ITEMS = 1000, JOBS = 300 };

typedef struct job {
    uint32_t done[ITEMS]; /* not atomic: an item is one thread's, and the caller reads it when the job is over */
    uint32_t threads;
    uint64_t seed;
    uint64_t result[ITEMS];
} job_t;

static void do_item(void *context, uint32_t item, uint32_t thread)
{
    job_t *job = context;
    CHECK(thread < job->threads, "thread %u of %u", thread, job->threads);
    job->done[item]++;
    job->result[item] = lode_mix(job->seed, item);
}

static lode_team_h start(uint32_t threads, uint32_t spin_us)
{
    lode_team_h team = NULL;
    lode_team_params_t params = {.threads = threads, .sharers = 1, .spin_us = spin_us};
    CHECK(lode_team_create(&params, &team) == LODE_OK, "%s", lode_error_message());
    return team;
}

/* Jobs one right after another, and with pauses in which the others fall asleep. */
static void check_each_once(uint32_t threads, uint32_t spin_us)
{
    static job_t job;
    lode_team_h team = start(threads, spin_us);
    CHECK(lode_team_threads(team) == threads, "%u", lode_team_threads(team));
    for (uint32_t i = 0; i < JOBS; i++) {
        uint32_t items = i % 7 == 0 ? i % 3 : 1 + i * 37 % ITEMS;
        memset(&job, 0, sizeof job);
        job.threads = threads;
        job.seed = i;
        lode_team_run(team, items, do_item, &job);
        for (uint32_t item = 0; item < ITEMS; item++)
            CHECK(job.done[item] == (item < items) && job.result[item] == (item < items ? lode_mix(job.seed, item) : 0),
                  "job %u of %u items: item %u done %u times", i, items, item, job.done[item]);
        if (i % 50 == 0)
            usleep(300);
    }
    lode_team_destroy(&team);
    CHECK(!team, "destroyed");
}

/* Two items that wait for one another are done by two threads; one thread alone would never end. */
static void meet(void *context, uint32_t item, uint32_t thread)
{
    atomic_uint *there = context;
    (void)item;
    (void)thread;
    atomic_fetch_add(there, 1);
    while (atomic_load(there) < 2)
        sched_yield();
}

static void check_at_once(void)
{
    lode_team_h team = start(2, 50);
    for (int i = 0; i < 50; i++) {
        atomic_uint there = 0;
        lode_team_run(team, 2, meet, &there);
        CHECK(there == 2, "%u", there);
    }
    lode_team_destroy(&team);
}

typedef struct places {
    cpu_set_t sets[LODE_TEAM_THREADS];
    atomic_uint there;
    uint32_t count;
} places_t;

static void take_place(void *context, uint32_t item, uint32_t thread)
{
    places_t *places = context;
    (void)item;
    CHECK(sched_getaffinity(0, sizeof places->sets[0], &places->sets[thread]) == 0, "thread %u", thread);
    atomic_fetch_add(&places->there, 1);
    while (atomic_load(&places->there) < places->count) /* so that each thread takes one item */
        sched_yield();
}

/* Threads of one sharer: inside the allowed set; bound ones apart from one another. */
static void look_at_places(const lode_team_params_t *params, const cpu_set_t *allowed, cpu_set_t *taken)
{
    static places_t places;
    lode_team_h team = NULL;
    CHECK(lode_team_create(params, &team) == LODE_OK, "%s", lode_error_message());
    memset(&places, 0, sizeof places);
    places.count = lode_team_threads(team);
    lode_team_run(team, places.count, take_place, &places);
    for (uint32_t thread = 1; thread < places.count; thread++) {
        cpu_set_t both;
        CPU_AND(&both, &places.sets[thread], allowed);
        CHECK(CPU_EQUAL(&both, &places.sets[thread]), "thread %u left the allowed set", thread);
        CPU_AND(&both, &places.sets[thread], taken);
        CHECK(!lode_team_bound(team) || CPU_COUNT(&both) == 0, "thread %u is on a core of another", thread);
        CHECK(lode_team_bound(team) || CPU_EQUAL(&places.sets[thread], allowed), "thread %u is bound", thread);
        if (lode_team_bound(team))
            CPU_OR(taken, taken, &places.sets[thread]);
    }
    lode_team_destroy(&team);
}

static void check_cores(void)
{
    cpu_set_t allowed, taken;
    CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0, "affinity");
    uint32_t cores = (uint32_t)CPU_COUNT(&allowed);
    CPU_ZERO(&taken);
    for (uint32_t share = 0; share < 2; share++) /* two ranks that share the cores and take half of them each */
        look_at_places(&(lode_team_params_t){.sharers = 2, .share = share}, &allowed, &taken);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) { /* kept to one core, which is all that such a rank counts */
        char one[64], name[256], all[256];
        if (!CPU_ISSET(cpu, &allowed) || cpu >= 32)
            continue;
        snprintf(one, sizeof one, "0x%08x", 1u << cpu);
        lode_team_binding(one, name);
        CHECK(strcmp(name, one) == 0, "%s within %s", name, one);
        lode_team_binding(NULL, all);
        lode_team_binding("0x80000000,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,", name);
        CHECK(strcmp(name, all) == 0, "cores that are not there: %s instead of %s", name, all);
        lode_team_binding("no set", name);
        CHECK(strcmp(name, all) == 0, "no set of cores: %s instead of %s", name, all);
        CPU_ZERO(&taken);
        look_at_places(&(lode_team_params_t){.within = one}, &allowed, &taken);
        CHECK(CPU_COUNT(&taken) == 0, "one core is the caller's");
    }
    CPU_ZERO(&taken); /* more threads than cores: none is bound */
    look_at_places(&(lode_team_params_t){.threads = cores + 1 > 64 ? 64 : cores + 1, .sharers = 2}, &allowed, &taken);
}

/* As a program that was started on one core. */
static int check_one_core(const char *all)
{
    char bound[256];
    bool fewer = lode_team_binding(NULL, bound);
    lode_team_h team = start(0, 50);
    CHECK(lode_team_threads(team) == 1, "%u threads on one core", lode_team_threads(team));
    CHECK(fewer || strcmp(bound, all) == 0, "on %s of %s", bound, all);
    lode_team_destroy(&team);
    return 0;
}

/* Bind a thread to one core of execution, and all threads of the program that follows it here. */
static void check_binding(char **argv)
{
    cpu_set_t allowed, one;
    char all[256];
    int status;
    lode_team_binding(NULL, all);
    CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0, "affinity");
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && !CPU_COUNT(&one); cpu++)
        if (CPU_ISSET(cpu, &allowed))
            CPU_SET(cpu, &one);
    pid_t child = fork();
    CHECK(child >= 0, "fork");
    if (child == 0) {
        if (sched_setaffinity(0, sizeof one, &one) == 0)
            execv("/proc/self/exe", (char *[]){argv[0], all, NULL});
        _exit(1);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0, "on one core");
}

/* Ends at once whatever the threads are at: polling, falling asleep, asleep. */
static void check_ending(void)
{
    for (int i = 0; i < 60; i++) {
        atomic_uint there = 0;
        lode_team_h team = start(3, i % 2 ? 0 : 100);
        if (i % 3 == 0)
            lode_team_run(team, 2, meet, &there);
        if (i % 5 == 0)
            usleep(200);
        lode_team_destroy(&team);
    }
    lode_team_h none = NULL;
    lode_team_destroy(&none);
    CHECK(lode_team_threads(none) == 1, "no team is the caller alone");
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return check_one_core(argv[1]);
    alarm(100); /* a job that never ends ends the test */
    for (uint32_t threads = 1; threads <= 8; threads += threads < 3 ? 1 : 5)
        for (uint32_t spin_us = 0; spin_us <= 50; spin_us += 50)
            check_each_once(threads, spin_us);
    check_at_once();
    check_cores();
    check_binding(argv);
    check_ending();
    return 0;
}
