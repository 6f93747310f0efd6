/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon: a rank that holds pages and serves clients until it is told to stop. */
#include <mpi.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attend/inside.h"
#include "base/config.h"
#include "bench/job.h"
#include "bench/options.h"
#include "launch/metrics.h"
#include "service/service.h"

/* How long a rank that was told to stop waits for the others to have been told as well; then for them to be gone. */
#define TOGETHER_NS UINT64_C(2000000000)
#define LAST_NS UINT64_C(600000000)
/** A service's default of --heartbeat. */
#define HEARTBEAT_MS "100"

static const lode_option_t daemon_options[] = {
    {"contact", "lodemark.contact", LODE_OPTION_TEXT, NULL, 0, 0,
     "file to write for clients: where the ranks listen; removed at the end"},
    {"token-file", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "file with the token that clients must show; made if it is not there [LODEMARK_TOKEN_FILE, LODEMARK_TOKEN]"},
    {"bind", "127.0.0.1", LODE_OPTION_TEXT, NULL, 0, 0,
     "where to take clients: ADDRESS[:PORT], or a network like 10.0.0.0/8 that this host has an address in"},
    {"clients", "256", LODE_OPTION_COUNT, NULL, 1, 65536, "most clients of one rank"},
    {"staging", "1GiB", LODE_OPTION_BYTES, NULL, 64 << 20, 0, "most memory of a rank for requests that are coming in"},
    {"join", NULL, LODE_OPTION_TEXT, NULL, 0, 0,
     "contact file of a service that runs: become one more rank of it, or a lost one anew; started without mpirun"},
    LODE_METRICS_OPTION,
    {NULL},
};

typedef struct daemon_state {
    lode_options_t options;
    lode_config_h config;
    lode_cluster_h cluster;
    lode_job_t job;
    service_h service;
    lode_metrics_h metrics;
    service_token_t token;
    bool joined; /* later, and without MPI */
} daemon_state_t;

/* ------------------------------------------------------------------ signals */

static _Atomic(service_h) stoppable;
static _Atomic bool stop_wanted;

static void on_signal(int number)
{
    (void)number;
    service_h service = atomic_load(&stoppable);
    atomic_store(&stop_wanted, true);
    if (service)
        service_stop(service);
}

static void watch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

/* -------------------------------------------------------------------- start */

/* One rank reads the token, or makes it; the others are told. */
static lode_status_t share_token(daemon_state_t *d)
{
    lode_status_t status = LODE_OK;
    if (d->job.rank == 0)
        status = service_token_get(lode_options_get(&d->options, "token-file"), true, &d->token);
    LODE_TRY(lode_job_agree(status));
    MPI_Bcast(&d->token, sizeof d->token, MPI_BYTE, 0, MPI_COMM_WORLD);
    return LODE_OK;
}

static lode_status_t create_service(daemon_state_t *d)
{
    service_params_t params = {
        .cluster = d->cluster,
        .bind = lode_options_get(&d->options, "bind"),
        .clients = (uint32_t)lode_options_count(&d->options, "clients"),
        .staging_bytes = lode_options_count(&d->options, "staging"),
        .spin_us = (uint32_t)lode_options_count(lode_config_options(d->config), "spin"),
        .token = d->token,
    };
    return service_create(&params, &d->service);
}

/* Clients come once all ranks take them and the file is there. */
static lode_status_t open_service(daemon_state_t *d)
{
    service_contact_t mine, *all = calloc(d->job.ranks, sizeof *all);
    lode_status_t status = all ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u ranks", d->job.ranks);
    LODE_TRY(lode_job_agree(status));
    service_contact(d->service, &mine);
    MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all, sizeof mine, MPI_BYTE, MPI_COMM_WORLD);
    status = lode_job_agree(service_open(d->service, all, d->job.ranks));
    if (status == LODE_OK && d->job.rank == 0)
        status = service_contacts_write(lode_options_get(&d->options, "contact"), all, d->job.ranks);
    free(all);
    return lode_job_agree(status);
}

static void stats_for_metrics(void *context, lode_rank_stats_t *stats)
{
    lode_rank_stats_here(context, stats);
}

static lode_status_t start_metrics(daemon_state_t *d)
{
    return lode_metrics_start(lode_metrics_port(lode_options_count(&d->options, "metrics-port")), stats_for_metrics,
                              d->cluster, &d->metrics);
}

static lode_status_t start(daemon_state_t *d)
{
    LODE_TRY(lode_job_begin(&d->job));
    LODE_TRY(lode_cluster_join(d->config, NULL, &d->cluster));
    LODE_TRY(share_token(d));
    LODE_TRY(lode_job_agree(create_service(d)));
    watch_signals();
    LODE_TRY(open_service(d));
    LODE_TRY(lode_job_agree(start_metrics(d)));
    if (d->job.rank == 0)
        printf("lodemarkd: %u ranks serve, contact file %s\n", d->job.ranks, lode_options_get(&d->options, "contact"));
    fflush(stdout);
    return LODE_OK;
}

/* --------------------------------------------------------------------- join */

/* This rank's entry in place of the one of its number, or behind all. Takes the list, which is of malloc. */
static lode_status_t enter_contact(daemon_state_t *d, const char *path, service_contact_t *ranks, uint32_t count)
{
    service_contact_t mine, *all = realloc(ranks, (count + 1) * sizeof *ranks);
    uint32_t at = 0;
    if (!all) {
        free(ranks);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u ranks", count + 1);
    }
    service_contact(d->service, &mine);
    while (at < count && all[at].rank != mine.rank)
        at++;
    all[at] = mine;
    count += at == count;
    lode_status_t status = service_open(d->service, all, count);
    if (status == LODE_OK) {
        service_announce(all, count, &d->token, &mine);
        status = service_contacts_write(path, all, count);
    }
    free(all);
    return status;
}

/* From the admission on the others wait for this process, and soon give up on it. */
static lode_status_t become_rank(daemon_state_t *d, const char *path)
{
    lode_cluster_h client;
    void *card, *invitation;
    size_t card_bytes, invitation_bytes;
    LODE_TRY(lode_cluster_connect(d->config, path, lode_options_get(&d->options, "token-file"), &client));
    lode_status_t status = lode_cluster_prepare(d->config, &d->cluster, &card, &card_bytes);
    if (status == LODE_OK) {
        status = service_admit(client, card, card_bytes, &invitation, &invitation_bytes);
        free(card);
    }
    if (status == LODE_OK) {
        status = lode_cluster_enter(d->cluster, d->config, invitation, invitation_bytes);
        free(invitation);
    }
    lode_cluster_leave(&client);
    return status;
}

/* The service goes on if this fails: it loses a rank that it hardly had. */
static lode_status_t start_joined(daemon_state_t *d, const char *path)
{
    service_contact_t *ranks;
    uint32_t count;
    d->joined = true;
    LODE_TRY(service_token_get(lode_options_get(&d->options, "token-file"), false, &d->token));
    LODE_TRY(become_rank(d, path));
    d->job.rank = lode_fabric_rank(d->cluster->fabric);
    LODE_TRY(create_service(d));
    watch_signals();
    LODE_TRY(service_contacts_read(path, &ranks, &count));
    LODE_TRY(enter_contact(d, path, ranks, count));
    LODE_TRY(start_metrics(d));
    printf("lodemarkd: joined as rank %u, contact file %s\n", d->job.rank, path);
    fflush(stdout);
    return LODE_OK;
}

/* ---------------------------------------------------------------------- end */

/* Whether all ranks are about to leave: a rank that is stopped alone must not wait for the others in MPI. */
static bool all_leave(daemon_state_t *d)
{
    MPI_Request barrier;
    int there = 0;
    uint64_t end = lode_now_ns() + TOGETHER_NS;
    if (d->joined || !lode_fabric_intact(d->cluster->fabric) || MPI_Ibarrier(MPI_COMM_WORLD, &barrier) != MPI_SUCCESS)
        return false;
    while (!there && lode_now_ns() < end && lode_fabric_intact(d->cluster->fabric)) {
        MPI_Test(&barrier, &there, MPI_STATUS_IGNORE);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return there;
}

/* A rank that leaves alone leaves the contact file to the others; the last one takes it along. */
static bool was_last(daemon_state_t *d)
{
    lode_fabric_h fabric = d->cluster->fabric;
    uint64_t end = lode_now_ns() + LAST_NS;
    while (lode_fabric_leader(fabric) == lode_fabric_rank(fabric) && lode_now_ns() < end) {
        if (lode_fabric_alive_count(fabric) == 1)
            return true;
        lode_fabric_progress(fabric);
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return false;
}

static int finish(daemon_state_t *d, lode_status_t status)
{
    int code = status == LODE_OK ? LODE_EXIT_OK : LODE_EXIT_FAILED;
    const char *contact = lode_options_get(&d->options, d->joined ? "join" : "contact");
    if (status != LODE_OK)
        fprintf(stderr, "lodemarkd: rank %u: %s\n", d->job.rank, lode_error_message());
    atomic_store(&stoppable, NULL);
    lode_metrics_stop(&d->metrics);
    service_destroy(&d->service);
    bool together = all_leave(d);
    if (together ? d->job.rank == 0 : was_last(d))
        unlink(contact);
    if (!together) {
        fflush(stdout);
        _exit(code); /* the others see this rank go, as after a death */
    }
    lode_cluster_leave(&d->cluster);
    lode_config_destroy(&d->config);
    lode_bench_options_free(&d->options);
    MPI_Finalize();
    return code;
}

/* ------------------------------------------------------------------ come back */

/*
 * The others went on without this rank: it was stopped, or cut off. What it held is theirs to restore, and what it
 * thinks of the cluster is worth nothing, so it begins anew as a process that joins, in place. @return if that failed
 */
static void come_back(daemon_state_t *d, int argc, char **argv)
{
    char path[4096] = {0}; /* by its own path, so that it keeps its name in listings of processes */
    char **words = calloc((size_t)argc + 3, sizeof *words);
    if (!words || readlink("/proc/self/exe", path, sizeof path - 1) <= 0) {
        free(words);
        return;
    }
    memcpy(words, argv, (size_t)argc * sizeof *words);
    if (!d->joined) {
        words[argc] = "--join";
        words[argc + 1] = (char *)lode_options_get(&d->options, "contact");
    }
    fprintf(stderr, "lodemarkd: rank %u was held for lost and joins anew\n", d->job.rank);
    lode_metrics_stop(&d->metrics);
    service_destroy(&d->service);
    fflush(stdout);
    close_range(3, ~0u, CLOSE_RANGE_CLOEXEC); /* connections of the life before must not look alive */
    execv(path, words);
    free(words);
}

/* --------------------------------------------------------------------- main */

static void print_help(void)
{
    printf(
        "lodemarkd [OPTIONS]\n\nHolds KV caches in the memory of all ranks and lets clients attend over them. Started "
        "by mpirun or srun,\none process a rank; ends by SIGTERM.\n\n");
    lode_options_help(daemon_options, stdout);
    printf("\nof the library (a service's heartbeat is " HEARTBEAT_MS " ms unless it is set):\n");
    lode_options_help(lode_library_options, stdout);
}

/* A service that nobody watches must notice a rank that hangs: heartbeats are on unless somebody says otherwise. */
static lode_status_t read_options(int argc, char **argv, daemon_state_t *d)
{
    LODE_TRY(lode_bench_options("lodemarkd", daemon_options, argc, argv, &d->options));
    LODE_TRY(lode_bench_config(&d->options, &d->config));
    if (lode_bench_given(&d->options, "heartbeat", "LODEMARK_HEARTBEAT"))
        return LODE_OK;
    return lode_config_set(d->config, "heartbeat", HEARTBEAT_MS);
}

static int run(int argc, char **argv)
{
    daemon_state_t d = {0};
    if (read_options(argc - 1, argv + 1, &d) != LODE_OK)
        return lode_job_refuse(LODE_EXIT_USAGE, "%s", lode_error_message());
    const char *join = lode_options_get(&d.options, "join");
    lode_status_t status = join ? start_joined(&d, join) : start(&d);
    if (status != LODE_OK) {
        if (join || lode_job_rank_hint() == 0)
            fprintf(stderr, "lodemarkd: %s\n", lode_error_message());
        fflush(stderr);
        lode_job_end();
        _exit(LODE_EXIT_FAILED);
    }
    atomic_store(&stoppable, d.service);
    if (atomic_load(&stop_wanted))
        service_stop(d.service);
    status = service_run(d.service);
    if (status != LODE_OK && !atomic_load(&stop_wanted) && lode_fabric_expelled(d.cluster->fabric))
        come_back(&d, argc, argv);
    return finish(&d, status);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        if (lode_job_rank_hint() == 0)
            printf("lodemarkd %s\n", lode_version());
        return LODE_EXIT_OK;
    }
    if (lode_bench_wants_help(argc - 1, argv + 1)) {
        if (lode_job_rank_hint() == 0)
            print_help();
        return LODE_EXIT_OK;
    }
    return run(argc, argv);
}
