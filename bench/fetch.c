/* SPDX-License-Identifier: Apache-2.0 */
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/fetch.h"
#include "bench/options.h"
#include "bench/progress.h"

static const lode_option_t fetch_options[] = {
    {"slices", "20", LODE_OPTION_COUNT, NULL, 1, 10000,
     "slices of each measurement, in turns; 60 for a figure to keep"},
    {"slice", "100", LODE_OPTION_COUNT, NULL, 1, 60000, "ms of a slice"},
    {"batch", "4MiB", LODE_OPTION_BYTES, NULL, 65536, UINT64_C(1) << 30, "size of a fetch of whole pages"},
    {"records", "4096", LODE_OPTION_COUNT, NULL, 1, 1 << 20, "records of a fetch of scattered ones"},
    {"record-bytes", "264", LODE_OPTION_COUNT, NULL, 8, 4096, "bytes of a record, a multiple of 8"},
    {"pages", "256MiB", LODE_OPTION_BYTES, NULL, 1 << 20, 0, "memory of the owner that is fetched from"},
    {"transports", "both", LODE_OPTION_CHOICE, "both|tcp|shm", 0, 0, "what to measure over"},
    {"floor", "ucp_am_bw", LODE_OPTION_CHOICE, "ucp_am_bw|tag_bw|stream_bw|none", 0, 0,
     "test of ucx_perftest to compare with; while it runs it listens on all interfaces of the owner's host"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write the results to this file as one JSON object"},
    {NULL},
};

static void print_help(void)
{
    printf("mpirun -n 2 lodemark bench fetch [OPTIONS]\n\n"
           "Fetch pages and scattered records from one owner over TCP and over shared memory, in turns with\n"
           "ucx_perftest over the same transport, with one read a record, and with MGET of Redis where that is\n"
           "installed. Every slice ends with a comparison of all values that its last fetch brought.\n\nOptions\n");
    lode_options_help(fetch_options, stdout);
    printf("\nOptions of the cluster (also as variables); of these landing, reply, credit, spin and log matter here\n");
    lode_options_help(lode_library_options, stdout);
}

/* ------------------------------------------------------------------ slices */

lode_status_t lode_slices_create(uint32_t room, lode_slices_t *slices)
{
    *slices = (lode_slices_t){.rate = calloc(room, sizeof *slices->rate)};
    return slices->rate ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u slices", room);
}

void lode_slices_free(lode_slices_t *slices)
{
    free(slices->rate);
    memset(slices, 0, sizeof *slices);
}

double lode_slices_median(const lode_slices_t *slices)
{
    double *copy = malloc((slices->count + 1) * sizeof *copy);
    if (!copy)
        return 0;
    memcpy(copy, slices->rate, slices->count * sizeof *copy);
    double median = lode_median(copy, slices->count);
    free(copy);
    return median;
}

void lode_fetch_quiet_barrier(void)
{
    MPI_Request request;
    int done = 0;
    MPI_Ibarrier(MPI_COMM_WORLD, &request);
    while (MPI_Test(&request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && !done)
        usleep(1000);
}

/* -------------------------------------------------------------- a transport */

/* Everything that is measured over one transport. */
typedef struct transport {
    const char *name, *tls;
    lode_fetch_lane_t batched, reads; /**< fetch paths: one message an owner, one read a record */
    lode_fetch_redis_t redis;
    lode_slices_t floor, pages, records, direct_pages, single_reads, mget;
    uint32_t iterations;
    bool wanted;
} transport_t;

static lode_status_t create_slices(const lode_fetch_bench_t *b, transport_t *t)
{
    lode_slices_t *all[] = {&t->floor, &t->pages, &t->records, &t->direct_pages, &t->single_reads, &t->mget};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        LODE_TRY(lode_slices_create(b->slices, all[i]));
    return LODE_OK;
}

static void free_transport(transport_t *t)
{
    lode_slices_t *all[] = {&t->floor, &t->pages, &t->records, &t->direct_pages, &t->single_reads, &t->mget};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        lode_slices_free(all[i]);
}

/* UCX reads its variables when a context is made, so one process can have both transports, one after the other. */
static lode_status_t open_lanes(lode_fetch_bench_t *b, transport_t *t)
{
    setenv("UCX_TLS", t->tls, 1);
    if (b->one_host)
        setenv("UCX_NET_DEVICES", "lo", 1);
    LODE_TRY(lode_fetch_lane_create(b, LODE_PATH_BATCHED, &t->batched));
    return lode_fetch_lane_create(b, LODE_PATH_ONE_SIDED, &t->reads);
}

static lode_status_t run_slice(lode_fetch_bench_t *b, transport_t *t)
{
    lode_status_t status = LODE_OK;
    if (b->job.rank == 0) {
        status = lode_fetch_lane_slice(&t->batched, false, &t->pages);
        if (status == LODE_OK)
            status = lode_fetch_lane_slice(&t->batched, true, &t->records);
        if (status == LODE_OK)
            status = lode_fetch_lane_slice(&t->reads, true, &t->single_reads);
        if (status == LODE_OK)
            status = lode_fetch_lane_slice(&t->reads, false, &t->direct_pages);
        if (status == LODE_OK && !t->mget.skipped[0])
            status = lode_fetch_redis_slice(b, &t->redis, &t->mget);
    }
    lode_fetch_quiet_barrier();
    LODE_TRY(lode_job_agree(status));
    lode_fetch_floor_slice(b, lode_options_get(&b->options, "floor"), &t->iterations, &t->floor);
    lode_fetch_quiet_barrier();
    return LODE_OK;
}

/* One unmeasured round first: it makes memory and connections, and finds the floor's number of iterations. */
static lode_status_t measure(lode_fetch_bench_t *b, transport_t *t)
{
    lode_progress_t progress;
    lode_progress_begin(&progress, t->name, b->slices + 1);
    for (uint32_t i = 0; i <= b->slices; i++) {
        LODE_TRY(run_slice(b, t));
        if (i == 0)
            t->pages.count = t->records.count = t->direct_pages.count = t->single_reads.count = t->mget.count = 0;
        lode_progress_at(&progress, i + 1);
    }
    lode_progress_end(&progress);
    return LODE_OK;
}

static lode_status_t run_transport(lode_fetch_bench_t *b, transport_t *t, bool with_redis)
{
    LODE_TRY(lode_job_agree(create_slices(b, t)));
    if (strcmp(lode_options_get(&b->options, "floor"), "none") == 0)
        snprintf(t->floor.skipped, sizeof t->floor.skipped, "--floor none");
    if (with_redis)
        lode_fetch_redis_create(b, &t->redis, &t->mget);
    else
        snprintf(t->mget.skipped, sizeof t->mget.skipped, "compared over TCP");
    lode_status_t status = lode_job_agree(open_lanes(b, t));
    if (status == LODE_OK)
        status = measure(b, t);
    lode_fetch_lane_destroy(&t->reads);
    lode_fetch_lane_destroy(&t->batched);
    if (with_redis)
        lode_fetch_redis_destroy(&t->redis);
    return status;
}

/* --------------------------------------------------------------------- main */

static lode_status_t report(const lode_fetch_bench_t *b, const transport_t *tcp, const transport_t *shm)
{
    char perftest[64], records[64];
    const char *test = lode_options_get(&b->options, "floor");
    snprintf(perftest, sizeof perftest, "ucx_perftest%s%s", strcmp(test, "none") ? " " : "",
             strcmp(test, "none") ? test : "");
    snprintf(records, sizeof records, "%u records of %u B", b->records, b->record_bytes);
    lode_fetch_row_t rows[10];
    size_t n = 0;
    for (int i = 0; i < 2; i++) {
        const transport_t *t = i ? shm : tcp;
        if (!t->wanted)
            continue;
        rows[n++] = (lode_fetch_row_t){"whole pages, batched", t->name, perftest, &t->pages, &t->floor, 0.80};
        rows[n++] = (lode_fetch_row_t){records, t->name, perftest, &t->records, &t->floor, 0.50};
        rows[n++] =
            (lode_fetch_row_t){records, t->name, "one read a record", &t->records, &t->single_reads, t == tcp ? 10 : 0};
        rows[n++] = (lode_fetch_row_t){"whole pages, one-sided", t->name, perftest, &t->direct_pages, &t->floor, 0};
        if (t == tcp)
            rows[n++] = (lode_fetch_row_t){"whole pages, batched", t->name, "Redis MGET", &t->pages, &t->mget, 2};
    }
    return b->job.rank == 0 ? lode_fetch_report(b, rows, n) : LODE_OK;
}

static lode_status_t check_job(lode_fetch_bench_t *b)
{
    char host[256] = {0};
    uint64_t hosts[2] = {0};
    if (b->job.ranks < 2)
        return lode_fail(LODE_ERR_INVALID, "bench fetch needs two ranks: mpirun -n 2 lodemark bench fetch");
    gethostname(host, sizeof host - 1);
    if (b->job.rank < 2)
        hosts[b->job.rank] = lode_hash_text(host);
    MPI_Allreduce(MPI_IN_PLACE, hosts, 2, MPI_UINT64_T, MPI_BOR, MPI_COMM_WORLD);
    b->one_host = hosts[0] == hosts[1];
    LODE_TRY(lode_ops_get(lode_config_get(b->config, "kernels"), &b->ops));
    return b->json && b->job.rank == 0 ? lode_job_check_output(b->json) : LODE_OK;
}

static lode_status_t read_options(lode_fetch_bench_t *b)
{
    const lode_options_t *o = &b->options;
    b->slices = (uint32_t)lode_options_count(o, "slices");
    b->slice_ms = (uint32_t)lode_options_count(o, "slice");
    b->records = (uint32_t)lode_options_count(o, "records");
    b->record_bytes = (uint32_t)lode_options_count(o, "record-bytes");
    b->batch_bytes = lode_options_count(o, "batch");
    b->json = lode_options_get(o, "json");
    if (b->record_bytes % 8)
        return lode_fail(LODE_ERR_INVALID, "--record-bytes %u is not a multiple of 8", b->record_bytes);
    uint64_t page = lode_fetch_page_bytes(b), landing;
    b->arena_bytes = lode_options_count(o, "pages");
    b->pages = (uint32_t)(b->arena_bytes / page);
    b->batch_pages = (uint32_t)(b->batch_bytes / page < 1 ? 1 : b->batch_bytes / page);
    LODE_TRY(lode_parse_bytes(lode_config_get(b->config, "landing"), &landing));
    if (b->batch_pages > b->pages || b->batch_pages * page > landing ||
        b->records * (uint64_t)b->record_bytes > landing)
        return lode_fail(
            LODE_ERR_INVALID,
            "a fetch of %llu or %llu bytes does not fit --landing or --pages: make it smaller or those larger",
            (unsigned long long)(b->batch_pages * page), (unsigned long long)(b->records * (uint64_t)b->record_bytes));
    return LODE_OK;
}

static lode_status_t run(lode_fetch_bench_t *b)
{
    transport_t tcp = {.name = "tcp", .tls = "tcp,self"}, shm = {.name = "shm", .tls = "posix,sysv,self,tcp"};
    const char *transports = lode_options_get(&b->options, "transports");
    LODE_TRY(lode_job_begin(&b->job));
    LODE_TRY(lode_job_agree(check_job(b)));
    tcp.wanted = strcmp(transports, "shm") != 0;
    shm.wanted = strcmp(transports, "tcp") != 0 && b->one_host;
    lode_status_t status = LODE_OK;
    if (tcp.wanted)
        status = run_transport(b, &tcp, true);
    if (status == LODE_OK && shm.wanted)
        status = run_transport(b, &shm, false);
    if (status == LODE_OK)
        status = lode_job_agree(report(b, &tcp, &shm));
    free_transport(&tcp);
    free_transport(&shm);
    return status;
}

int lode_bench_fetch(int argc, char **argv)
{
    lode_fetch_bench_t b = {0};
    if (lode_bench_wants_help(argc, argv)) {
        if (lode_job_rank_hint() == 0)
            print_help();
        return LODE_EXIT_OK;
    }
    lode_status_t status = lode_bench_options("bench fetch", fetch_options, argc, argv, &b.options);
    if (status == LODE_OK)
        status = lode_bench_config(&b.options, &b.config);
    if (status == LODE_OK)
        status = read_options(&b);
    int code = LODE_EXIT_OK;
    if (status != LODE_OK)
        code = lode_job_refuse(LODE_EXIT_USAGE, "%s", lode_error_message());
    else if (run(&b) != LODE_OK)
        code = lode_job_refuse(LODE_EXIT_FAILED, "%s", lode_error_message());
    else
        lode_job_end();
    lode_config_destroy(&b.config);
    lode_bench_options_free(&b.options);
    return code;
}
