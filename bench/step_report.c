/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "bench/step.h"

static const char *const stage_names[LODE_STAGE_COUNT] = {"rotate", "score", "select", "fetch", "attend", "merge"};

/* The steps of all ranks that take part in the report, as one number each. */
typedef struct summary {
    uint32_t ranks;
    size_t cells; /* steps times layers that succeeded, over all those ranks */
    double step_ms, stage_ms[LODE_STAGE_COUNT];
    double bytes, records, ahead, local, wanted, hits, requests;
    uint64_t retries, visible, budget;
    uint32_t owners, failed_steps;
    uint64_t peak_rss, arena_used, arena, landmarks;
    double dense_ms;
    double lone_ms, lone_bytes, lone_wanted; /* of a stream alone, beside the streams; bytes, records: of all steps */
} summary_t;

static uint64_t peak_rss(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_maxrss << 10;
}

/* A cell without time is a step that failed, or was never reached. */
static size_t column(const lode_step_stats_t *stats, size_t n, int stage, double *values)
{
    size_t used = 0;
    for (size_t i = 0; i < n; i++)
        if (stats[i].step_ns)
            values[used++] = (double)(stage < 0 ? stats[i].step_ns : stats[i].stage_ns[stage]) * 1e-6;
    return used;
}

static lode_status_t summarise(const lode_step_stats_t *stats, size_t n, summary_t *s)
{
    double *values = malloc((n + 1) * sizeof *values);
    if (!values)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a report");
    s->cells = column(stats, n, -1, values);
    s->step_ms = lode_median(values, s->cells);
    for (int stage = 0; stage < LODE_STAGE_COUNT; stage++)
        s->stage_ms[stage] = lode_median(values, column(stats, n, stage, values));
    free(values);
    for (size_t i = 0; i < n; i++) {
        s->bytes += (double)stats[i].bytes_fetched;
        s->records += (double)(stats[i].records_fetched + stats[i].records_prefetched);
        s->ahead += (double)stats[i].records_prefetched;
        s->local += (double)stats[i].records_local;
        s->wanted += (double)stats[i].records_wanted;
        s->hits += (double)stats[i].records_hit;
        s->requests += (double)stats[i].requests;
        s->retries += stats[i].retries;
        s->owners = stats[i].owners_asked > s->owners ? stats[i].owners_asked : s->owners;
        s->visible = stats[i].visible_tokens > s->visible ? stats[i].visible_tokens : s->visible;
        s->budget = stats[i].budget_tokens > s->budget ? stats[i].budget_tokens : s->budget;
    }
    return LODE_OK;
}

static lode_status_t summarise_lone(const lode_step_stats_t *stats, size_t n, summary_t *s)
{
    double *values = malloc((n + 1) * sizeof *values);
    if (!values)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a report");
    s->lone_ms = lode_median(values, column(stats, n, -1, values));
    free(values);
    for (size_t i = 0; i < n; i++) {
        s->lone_bytes += (double)stats[i].bytes_fetched;
        s->lone_wanted += (double)stats[i].records_wanted;
    }
    return LODE_OK;
}

/* Totals over ranks; medians of medians would hide a slow rank, so the steps themselves travel. */
static lode_status_t gather(lode_step_bench_t *b, const lode_step_run_t *run, summary_t *s)
{
    size_t cells = (size_t)b->wish.steps * b->source.geometry.layers, bytes = cells * sizeof(lode_step_stats_t);
    uint64_t sums[] = {run->failed_steps, peak_rss(), b->info.arena_used_bytes, b->info.arena_bytes};
    uint64_t totals[4] = {0};
    lode_step_stats_t *all = NULL;
    double dense = lode_median(b->dense_ms, b->dense_count);
    lode_status_t status = LODE_OK;
    if (b->job.rank == 0 && !(all = malloc(bytes * b->job.ranks)))
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for a report");
    LODE_TRY(lode_job_agree(status));
    MPI_Gather(run->stats, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD);
    MPI_Reduce(sums, totals, 4, MPI_UINT64_T, MPI_SUM, 0, MPI_COMM_WORLD);
    MPI_Reduce(&dense, &s->dense_ms, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
    if (all)
        status = summarise(all, cells * b->job.ranks, s);
    if (run->lone) {
        MPI_Gather(run->lone, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD);
        if (all && status == LODE_OK)
            status = summarise_lone(all, cells * b->job.ranks, s);
    }
    free(all);
    s->ranks = b->job.ranks;
    s->failed_steps = (uint32_t)totals[0];
    s->peak_rss = totals[1];
    s->arena_used = totals[2];
    s->arena = totals[3];
    return lode_job_agree(status);
}

static lode_status_t gather_alone(lode_step_bench_t *b, const lode_step_run_t *run, summary_t *s)
{
    s->ranks = 1;
    s->failed_steps = run->failed_steps;
    s->peak_rss = peak_rss();
    s->arena_used = b->info.arena_used_bytes;
    s->arena = b->info.arena_bytes;
    s->dense_ms = lode_median(b->dense_ms, b->dense_count);
    return summarise(run->stats, (size_t)b->wish.steps * b->source.geometry.layers, s);
}

/* --------------------------------------------------------------------- JSON */

static json_t *number_or_null(bool there, double value)
{
    return there ? json_real(value) : json_null();
}

static json_t *asked_json(const lode_step_bench_t *b)
{
    const lode_geometry_t *g = &b->source.geometry;
    const lode_step_wish_t *w = &b->wish;
    return json_pack("{s:i s:I s:i s:i s:i s:i s:i s:f s:s s:s s:s s:i s:i s:i s:i s:i s:b s:I s:s? s:f}", "ranks",
                     (int)b->job.ranks, "tokens", (json_int_t)lode_source_total(&b->source), "layers", (int)g->layers,
                     "heads", (int)g->query_heads, "kv_heads", (int)g->kv_heads, "head_dim", (int)g->head_dim,
                     "documents", (int)b->source.blocks, "rope_theta", g->rope.theta, "policy", w->policy, "format",
                     lode_format_name(w->format), "merge", w->merge == LODE_MERGE_MAX ? "max" : "mean", "sinks",
                     (int)w->sinks, "window", (int)w->window, "streams", (int)w->streams, "new_tokens",
                     (int)w->new_tokens, "steps", (int)w->steps, "writes", (int)w->write, "seed", (json_int_t)w->seed,
                     "capture", w->capture, "budget", w->budget);
}

static json_t *accuracy_json(const lode_step_bench_t *b)
{
    bool checked = b->check_count > 0, dense = checked && b->dense_rel_error > 0;
    json_t *object = json_object();
    json_object_set_new(object, "checked_queries", json_integer((json_int_t)b->check_count));
    json_object_set_new(object, "rel_error", number_or_null(checked, b->rel_error));
    json_object_set_new(object, "dense_rel_error", number_or_null(dense, b->dense_rel_error));
    json_object_set_new(object, "found_mass", number_or_null(checked, b->found_mass));
    json_object_set_new(object, "oracle_mass", number_or_null(checked, b->oracle_mass));
    for (int kind = 0; kind < 2 && checked && !b->source.captured; kind++) {
        json_object_set_new(object, kind ? "found_mass_sharp" : "found_mass_broad",
                            json_real(b->mass_of_kind[kind].found));
        json_object_set_new(object, kind ? "oracle_mass_sharp" : "oracle_mass_broad",
                            json_real(b->mass_of_kind[kind].oracle));
    }
    return object;
}

static double hit_rate(const summary_t *s)
{
    return s->hits + s->records > 0 ? s->hits / (s->hits + s->records) : 0;
}

static json_t *traffic_json(const lode_step_bench_t *b, const summary_t *s)
{
    double steps = s->cells ? (double)s->cells : 1;
    return json_pack("{s:s s:s s:I s:I s:f s:f s:f s:f s:f s:f s:f s:i s:I}", "path", b->info.path, "path_reason",
                     b->info.path_reason, "visible_tokens", (json_int_t)s->visible, "budget_tokens",
                     (json_int_t)s->budget, "bytes_fetched_per_step", s->bytes / steps, "records_fetched_per_step",
                     (s->records - s->ahead) / steps, "records_prefetched_per_step", s->ahead / steps,
                     "records_wanted_per_step", s->wanted / steps, "records_local_per_step", s->local / steps,
                     "requests_per_step", s->requests / steps, "hit_rate", hit_rate(s), "owners_asked", (int)s->owners,
                     "retries", (json_int_t)s->retries);
}

static json_t *time_json(const lode_step_bench_t *b, const summary_t *s)
{
    json_t *object = json_object(), *stages = json_object();
    bool dense = s->dense_ms > 0 && s->step_ms > 0;
    json_object_set_new(object, "step_ms_median", json_real(s->step_ms));
    json_object_set_new(object, "dense_ms_median", number_or_null(s->dense_ms > 0, s->dense_ms));
    json_object_set_new(object, "speedup", number_or_null(dense, dense ? s->dense_ms / s->step_ms : 0));
    for (int stage = 0; stage < LODE_STAGE_COUNT; stage++)
        json_object_set_new(stages, stage_names[stage], json_real(s->stage_ms[stage]));
    json_object_set_new(object, "stage_ms", stages);
    json_object_set_new(object, "ingest_tokens_per_s", json_real(b->ingest_rate));
    return object;
}

static double over(double a, double b)
{
    return b > 0 ? a / b : 0;
}

/* What the streams cost over what one costs. */
static json_t *alike_json(const lode_step_bench_t *b, const summary_t *s)
{
    if (b->wish.alike < 0)
        return json_object();
    return json_pack("{s:f s:f s:f s:o s:f}", "alike", b->wish.alike, "lone_step_ms_median", s->lone_ms, "time_ratio",
                     over(s->step_ms, s->lone_ms), "bytes_ratio",
                     number_or_null(s->lone_bytes > 0, over(s->bytes, s->lone_bytes)), "records_ratio",
                     over(s->wanted, s->lone_wanted));
}

static json_t *state_json(const lode_step_bench_t *b, const summary_t *s)
{
    char digest[32];
    snprintf(digest, sizeof digest, "%016" PRIx64, b->selected_digest);
    return json_pack("{s:s s:s s:I s:i s:i s:i s:I s:I s:I s:I s:o}", "selected_digest", digest, "kernels",
                     b->info.kernels, "failed_steps", (json_int_t)s->failed_steps, "wrong_steps", (int)b->wrong_steps,
                     "reporting_ranks", (int)s->ranks, "alive", (int)b->info.alive, "arena_bytes", (json_int_t)s->arena,
                     "arena_used_bytes", (json_int_t)s->arena_used, "landmark_bytes_of_node",
                     (json_int_t)b->info.landmark_bytes, "peak_rss_bytes", (json_int_t)s->peak_rss, "killed_rank",
                     b->wish.kill_rank < 0 ? json_null() : json_integer((json_int_t)b->wish.kill_rank));
}

static lode_status_t write_json(const lode_step_bench_t *b, const summary_t *s)
{
    json_t *parts[] = {asked_json(b),   accuracy_json(b), traffic_json(b, s),
                       time_json(b, s), alike_json(b, s), state_json(b, s)};
    json_t *whole = json_object();
    bool complete = whole;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        complete = complete && parts[i] && json_object_update(whole, parts[i]) == 0;
        json_decref(parts[i]);
    }
    lode_status_t status = complete ? lode_job_write_json(b->wish.json, whole)
                                    : lode_fail(LODE_ERR_INTERNAL, "the results could not be put into JSON");
    json_decref(whole);
    return status;
}

/* -------------------------------------------------------------------- table */

static void print_bytes(const char *what, double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    for (; bytes >= 1024 && unit < 4; unit++)
        bytes /= 1024;
    printf("  %-22s %10.*f %s", what, unit ? 2 : 0, bytes, units[unit]);
}

static void print_accuracy(const lode_step_bench_t *b)
{
    if (!b->check_count)
        return;
    printf("accuracy against dense attention in double (%zu queries of %u heads)\n", b->check_count,
           b->source.geometry.query_heads);
    printf("  %-22s %10.4f     oracle %.4f, ratio %.4f\n", "softmax mass found", b->found_mass, b->oracle_mass,
           b->oracle_mass > 0 ? b->found_mass / b->oracle_mass : 0);
    for (int kind = 1; kind >= 0 && !b->source.captured; kind--)
        if (b->mass_of_kind[kind].oracle > 0)
            printf("    %-20s %10.4f     oracle %.4f, ratio %.4f\n", kind ? "heads that look up" : "broad heads",
                   b->mass_of_kind[kind].found, b->mass_of_kind[kind].oracle,
                   b->mass_of_kind[kind].found / b->mass_of_kind[kind].oracle);
    printf("  %-22s %10.2e", "relative error", b->rel_error);
    if (b->dense_rel_error > 0)
        printf("     all tokens in %s: %.2e", lode_format_name(b->wish.format), b->dense_rel_error);
    printf("\n");
}

static void print_times(const lode_step_bench_t *b, const summary_t *s)
{
    printf("time of a step (median of %zu, one layer, all ranks at once)\n", s->cells);
    printf("  %-22s %10.3f ms", "sparse", s->step_ms);
    if (s->dense_ms > 0)
        printf("  dense %.3f ms, %.1f times faster", s->dense_ms, s->step_ms > 0 ? s->dense_ms / s->step_ms : 0);
    printf("\n");
    for (int stage = 0; stage < LODE_STAGE_COUNT; stage++)
        printf("    %-20s %10.3f ms\n", stage_names[stage], s->stage_ms[stage]);
    printf("  %-22s %10.3g tokens/s\n", "ingest", b->ingest_rate);
}

static void print_alike(const lode_step_bench_t *b, const summary_t *s)
{
    if (b->wish.alike < 0)
        return;
    printf("%u streams whose queries are alike by %.4g %%, over one stream beside them\n", b->wish.streams,
           100 * b->wish.alike);
    printf("  %-22s %10.2f     one alone %.3f ms\n", "time", over(s->step_ms, s->lone_ms), s->lone_ms);
    printf("  %-22s %10.2f     one alone %.0f a step\n", "records read", over(s->wanted, s->lone_wanted),
           s->lone_wanted / (s->cells ? (double)s->cells : 1));
    if (s->lone_bytes > 0)
        printf("  %-22s %10.2f\n", "bytes fetched", over(s->bytes, s->lone_bytes));
}

static void print_table(const lode_step_bench_t *b, const summary_t *s)
{
    const lode_geometry_t *g = &b->source.geometry;
    double steps = s->cells ? (double)s->cells : 1;
    printf("%" PRIu64 " tokens in %u document%s, %u layer%s, %u query and %u KV heads of %u, %u rank%s, %s records\n",
           lode_source_total(&b->source), b->source.blocks, b->source.blocks > 1 ? "s" : "", g->layers,
           g->layers > 1 ? "s" : "", g->query_heads, g->kv_heads, g->head_dim, b->job.ranks,
           b->job.ranks > 1 ? "s" : "", lode_format_name(b->wish.format));
    printf("policy %s, %" PRIu64 " of %" PRIu64 " tokens a KV head (%.4g %%), path %s: %s\n", b->wish.policy, s->budget,
           s->visible, s->visible ? 100.0 * (double)s->budget / (double)s->visible : 0, b->info.path,
           b->info.path_reason);
    print_accuracy(b);
    printf("moved in a step, to each rank\n");
    print_bytes("fetched", s->bytes / steps);
    printf(" in %.0f records and %.1f requests\n", s->records / steps, s->requests / steps);
    printf("  %-22s %10.1f %%   of %.0f records not in the own shard\n", "hot cache", 100 * hit_rate(s),
           (s->records + s->hits) / steps);
    print_times(b, s);
    print_alike(b, s);
    printf("memory of all ranks\n");
    print_bytes("pages", (double)s->arena_used);
    printf(" of %.2f GiB arena\n", (double)s->arena / 0x1p30);
    print_bytes("landmarks", (double)b->info.landmark_bytes);
    printf(" on a node\n");
    printf("chosen sets %016" PRIx64 ", the same on every rank\n", b->selected_digest);
    if (b->wish.kill_rank >= 0)
        printf("rank %" PRIi64 " killed before step %u: %u of %u steps failed, %u wrong, %" PRIu64
               " requests repeated\n",
               b->wish.kill_rank, b->wish.kill_step, s->failed_steps, b->wish.steps, b->wrong_steps, s->retries);
    else if (s->failed_steps)
        printf("%u steps failed\n", s->failed_steps);
}

lode_status_t lode_step_report(lode_step_bench_t *b, const lode_step_run_t *run, bool together)
{
    summary_t s = {0};
    LODE_TRY(lode_cluster_query(b->cluster, &b->info));
    LODE_TRY(together ? gather(b, run, &s) : gather_alone(b, run, &s));
    uint32_t speaker = b->wish.kill_rank == 0 && !together ? 1 : 0;
    if (b->job.rank != speaker)
        return LODE_OK;
    print_table(b, &s);
    fflush(stdout);
    return write_json(b, &s);
}
