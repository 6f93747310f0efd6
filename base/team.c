/* SPDX-License-Identifier: Apache-2.0 */
#include <hwloc.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/team.h"

/* The gate of a job: open while items may be left, and how many threads are inside. */
enum { GATE_OPEN = 1u << 16 };

typedef struct member {
    struct lode_team *team;
    uint32_t number;
    pthread_t id;
    hwloc_cpuset_t core; /* NULL: not bound */
} member_t;

struct lode_team {
    _Alignas(64) _Atomic uint32_t bell; /* counts jobs; a futex */
    _Atomic uint32_t sleepers;
    atomic_bool leaving;
    _Alignas(64) _Atomic uint32_t gate; /* a futex */
    _Atomic uint32_t caller_sleeps;
    _Alignas(64) _Atomic uint32_t next;
    /* the job: written while nobody is inside, read inside */
    _Alignas(64) uint32_t items;
    lode_team_work_t work;
    void *context;
    /* constant */
    uint64_t spin_ns;
    uint32_t threads, started, bound;
    hwloc_topology_t topology;
    member_t members[LODE_TEAM_THREADS];
};

/* --------------------------------------------------------------------- waiting */

static void futex_wait(_Atomic uint32_t *word, uint32_t seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int count)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0);
}

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Poll until a word is not (or, with @p until, is) a value, or the team's patience ends. @return the word, last. */
static uint32_t poll_word(const lode_team_h team, _Atomic uint32_t *word, uint32_t value, bool until)
{
    uint64_t end = 0;
    uint32_t now;
    while (now = atomic_load_explicit(word, memory_order_acquire), (now == value) != until) {
        uint64_t time = team->spin_ns ? lode_now_ns() : 1;
        end = end ? end : time + team->spin_ns;
        if (time >= end)
            break;
        for (int i = 0; i < 16; i++)
            pause_briefly();
    }
    return now;
}

/* Until there is a job after the one whose number was seen. */
static uint32_t await_bell(lode_team_h team, uint32_t seen)
{
    uint32_t now = poll_word(team, &team->bell, seen, false);
    while (now == seen) {
        atomic_fetch_add(&team->sleepers, 1);
        futex_wait(&team->bell, seen); /* returns at once if it rang meanwhile */
        atomic_fetch_sub(&team->sleepers, 1);
        now = atomic_load(&team->bell);
    }
    return now;
}

/* --------------------------------------------------------------------- working */

/* A thread that comes when the gate is shut has missed a job that others have done. */
static bool enter(lode_team_h team)
{
    uint32_t gate = atomic_load_explicit(&team->gate, memory_order_relaxed);
    while (gate & GATE_OPEN)
        if (atomic_compare_exchange_weak(&team->gate, &gate, gate + 1))
            return true;
    return false;
}

static void leave(lode_team_h team)
{
    if (atomic_fetch_sub(&team->gate, 1) == 1 && atomic_load(&team->caller_sleeps))
        futex_wake(&team->gate, 1);
}

static void take_items(lode_team_h team, uint32_t thread)
{
    for (;;) {
        uint32_t item = atomic_fetch_add_explicit(&team->next, 1, memory_order_relaxed);
        if (item >= team->items)
            return;
        team->work(team->context, item, thread);
    }
}

static void *member_main(void *argument)
{
    member_t *member = argument;
    lode_team_h team = member->team;
    uint32_t seen = 0;
    pthread_setname_np(pthread_self(), LODE_TEAM_NAME);
    if (member->core)
        hwloc_set_cpubind(team->topology, member->core, HWLOC_CPUBIND_THREAD);
    for (;;) {
        seen = await_bell(team, seen);
        if (atomic_load(&team->leaving))
            return NULL;
        if (!enter(team))
            continue;
        take_items(team, member->number);
        leave(team);
    }
}

static void ring(lode_team_h team, int threads)
{
    atomic_fetch_add(&team->bell, 1);
    if (atomic_load(&team->sleepers))
        futex_wake(&team->bell, threads);
}

/* Those inside are at their last item. */
static void shut_gate(lode_team_h team)
{
    atomic_fetch_and(&team->gate, ~(uint32_t)GATE_OPEN);
    if (poll_word(team, &team->gate, 0, true) == 0)
        return;
    atomic_store(&team->caller_sleeps, 1);
    for (uint32_t gate; (gate = atomic_load(&team->gate)) != 0;)
        futex_wait(&team->gate, gate);
    atomic_store(&team->caller_sleeps, 0);
}

void lode_team_run(lode_team_h team, uint32_t items, lode_team_work_t work, void *context)
{
    if (!team || team->threads == 1 || items < 2) {
        for (uint32_t item = 0; item < items; item++)
            work(context, item, 0);
        return;
    }
    team->items = items;
    team->work = work;
    team->context = context;
    atomic_store_explicit(&team->next, 0, memory_order_relaxed);
    atomic_store(&team->gate, GATE_OPEN);
    ring(team, (int)(items - 1));
    take_items(team, 0);
    shut_gate(team);
}

/* --------------------------------------------------------------------- cores */

typedef struct cores {
    hwloc_topology_t topology;
    hwloc_cpuset_t allowed; /* of this process */
    uint32_t count, of_machine;
} cores_t;

static void cores_free(cores_t *cores)
{
    hwloc_bitmap_free(cores->allowed);
    if (cores->topology)
        hwloc_topology_destroy(cores->topology);
}

/* Cores of which at least one thread of execution may be used. */
static hwloc_obj_t next_core(const cores_t *cores, hwloc_obj_t core)
{
    do {
        core = hwloc_get_next_obj_by_type(cores->topology, HWLOC_OBJ_CORE, core);
    } while (core && !hwloc_bitmap_intersects(core->cpuset, cores->allowed));
    return core;
}

/* Of the cores that may be used, those within a set; all of them if there are none in it. */
static void keep_within(cores_t *cores, const char *within)
{
    hwloc_bitmap_t set = hwloc_bitmap_alloc();
    if (set && within && *within && hwloc_bitmap_sscanf(set, within) == 0 &&
        hwloc_bitmap_intersects(set, cores->allowed))
        hwloc_bitmap_and(cores->allowed, cores->allowed, set);
    hwloc_bitmap_free(set);
}

/* A machine that hwloc cannot read counts as one core. */
static void cores_find(cores_t *cores, const char *within)
{
    *cores = (cores_t){.count = 1, .of_machine = 1, .allowed = hwloc_bitmap_alloc()};
    if (!cores->allowed || hwloc_topology_init(&cores->topology) < 0) {
        cores->topology = NULL;
        return;
    }
    if (hwloc_topology_load(cores->topology) < 0 ||
        hwloc_get_cpubind(cores->topology, cores->allowed, HWLOC_CPUBIND_PROCESS) < 0)
        return;
    keep_within(cores, within);
    int all = hwloc_get_nbobjs_by_type(cores->topology, HWLOC_OBJ_CORE);
    uint32_t count = 0;
    for (hwloc_obj_t core = next_core(cores, NULL); core; core = next_core(cores, core))
        count++;
    cores->count = count ? count : 1;
    cores->of_machine = all > 0 ? (uint32_t)all : 1;
}

bool lode_team_binding(const char *within, char name[256])
{
    cores_t cores;
    cores_find(&cores, within);
    memset(name, 0, 256);
    if (cores.allowed)
        hwloc_bitmap_snprintf(name, 256, cores.allowed);
    bool fewer = cores.count < cores.of_machine;
    cores_free(&cores);
    return fewer;
}

/* The i-th of the cores that this process may use, without what it may not use of it. */
static hwloc_cpuset_t core_at(const cores_t *cores, uint32_t i)
{
    hwloc_obj_t core = next_core(cores, NULL);
    while (core && i--)
        core = next_core(cores, core);
    hwloc_cpuset_t set = core ? hwloc_bitmap_dup(core->cpuset) : NULL;
    if (set)
        hwloc_bitmap_and(set, set, cores->allowed);
    return set;
}

/* ------------------------------------------------------------------ life cycle */

static lode_status_t start_members(lode_team_h team)
{
    sigset_t all, old;
    int error = 0;
    sigfillset(&all); /* signals stay with the program's own threads */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (uint32_t i = 1; i < team->threads && !error; i++) {
        error = pthread_create(&team->members[i].id, NULL, member_main, &team->members[i]);
        team->started += !error;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return error ? lode_fail(LODE_ERR_NO_MEMORY, "thread %u of %u could not be started: %s; ask for fewer threads",
                             team->started + 2, team->threads, strerror(error))
                 : LODE_OK;
}

static void assign(lode_team_h team, const cores_t *cores, const lode_team_params_t *params)
{
    uint32_t sharers = params->sharers ? params->sharers : 1;
    bool fits = cores->topology && (uint64_t)team->threads * sharers <= cores->count;
    team->spin_ns = fits ? params->spin_us * UINT64_C(1000) : 0;
    for (uint32_t i = 0; i < team->threads; i++) {
        team->members[i] = (member_t){.team = team, .number = i};
        if (i && fits)
            team->members[i].core = core_at(cores, params->share % sharers * team->threads + i);
        team->bound += team->members[i].core != NULL;
    }
}

lode_status_t lode_team_create(const lode_team_params_t *params, lode_team_h *out)
{
    cores_t cores;
    lode_team_h team = aligned_alloc(64, sizeof *team);
    if (!team)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a team of threads");
    memset(team, 0, sizeof *team);
    cores_find(&cores, params->within);
    uint32_t sharers = params->sharers ? params->sharers : 1;
    uint32_t threads = params->threads ? params->threads : cores.count / sharers;
    team->threads = threads < 1 ? 1 : threads < LODE_TEAM_THREADS ? threads : LODE_TEAM_THREADS;
    assign(team, &cores, params);
    team->topology = cores.topology;
    cores.topology = NULL;
    cores_free(&cores);
    lode_status_t status = start_members(team);
    if (status != LODE_OK)
        lode_team_destroy(&team);
    else
        *out = team;
    return status;
}

void lode_team_destroy(lode_team_h *handle)
{
    lode_team_h team = *handle;
    if (!team)
        return;
    atomic_store(&team->leaving, true);
    ring(team, INT32_MAX);
    for (uint32_t i = 1; i <= team->started; i++)
        pthread_join(team->members[i].id, NULL);
    for (uint32_t i = 0; i < team->threads; i++)
        hwloc_bitmap_free(team->members[i].core);
    if (team->topology)
        hwloc_topology_destroy(team->topology);
    free(team);
    *handle = NULL;
}

uint32_t lode_team_threads(lode_team_h team)
{
    return team ? team->threads : 1;
}

uint32_t lode_team_bound(lode_team_h team)
{
    return team ? team->bound : 0;
}
