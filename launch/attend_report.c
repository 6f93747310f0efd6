/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launch/attend.h"

/* ------------------------------------------------------------------ compare */

static int by_layer(const void *a, const void *b)
{
    const lode_check_t *x = *(lode_check_t *const *)a, *y = *(lode_check_t *const *)b;
    return x->layer != y->layer ? (x->layer > y->layer) - (x->layer < y->layer) : (x > y) - (x < y);
}

static void compare(lode_attend_t *a, size_t call, const lode_check_t *check, double *difference, double *reference)
{
    const float *out = a->out + call * lode_attend_row(a);
    double own = 0, norm = 0;
    for (size_t i = 0; i < lode_attend_row(a); i++) {
        double d = out[i] - check->out[i];
        own += d * d;
        norm += check->out[i] * check->out[i];
    }
    *difference += own;
    *reference += norm;
    double error = norm > 0 ? sqrt(own / norm) : 0;
    a->worst_error = error > a->worst_error ? error : a->worst_error;
    for (uint32_t h = 0; h < a->source.geometry.query_heads; h++) {
        a->found_mass += check->found[h];
        a->oracle_mass += check->oracle[h];
    }
}

/* The calls to compare, evenly spread over those that have an output. */
static void choose(lode_attend_t *a, lode_check_t **order)
{
    size_t there = 0, passed = 0;
    for (size_t call = 0; call < a->calls; call++)
        there += a->kept[call] != LODE_KEPT_NOTHING;
    size_t wanted = a->check_steps < there ? (size_t)a->check_steps : there;
    for (size_t call = 0; call < a->calls && a->checked < wanted; call++)
        if (a->kept[call] != LODE_KEPT_NOTHING && passed++ * wanted >= a->checked * there)
            order[a->checked++] = &a->checks[call];
}

/* The reference takes a layer's keys once for all checks of it that stand together, so they are sorted. */
static lode_status_t run_sorted(lode_attend_t *a, lode_check_t **order, lode_check_t *sorted)
{
    lode_reference_params_t params = {.job = {0, 1},
                                      .source = &a->source,
                                      .merge = a->policy.merge,
                                      .sinks = a->policy.sinks,
                                      .window = a->policy.window,
                                      .memory = (size_t)1 << 28};
    double difference = 0, reference = 0;
    choose(a, order);
    qsort(order, a->checked, sizeof *order, by_layer);
    for (size_t i = 0; i < a->checked; i++)
        sorted[i] = *order[i];
    LODE_TRY(lode_reference_run(&params, sorted, a->checked));
    for (size_t i = 0; i < a->checked; i++)
        compare(a, (size_t)(order[i] - a->checks), &sorted[i], &difference, &reference);
    if (!a->checked)
        return LODE_OK;
    double heads = (double)a->checked * a->source.geometry.query_heads;
    a->rel_error = reference > 0 ? sqrt(difference / reference) : 0;
    a->found_mass /= heads;
    a->oracle_mass /= heads;
    return LODE_OK;
}

lode_status_t lode_attend_check(lode_attend_t *a)
{
    lode_check_t **order = calloc(a->calls, sizeof *order), *sorted = calloc(a->calls, sizeof *sorted);
    lode_status_t status = order && sorted ? run_sorted(a, order, sorted)
                                           : lode_fail(LODE_ERR_NO_MEMORY, "no memory to check %zu steps", a->calls);
    free(order);
    free(sorted);
    return status;
}

/* ------------------------------------------------------------------- report */

/* Over the bits of all outputs in order; a call without an output leaves its place in it. */
static uint64_t digest(const lode_attend_t *a)
{
    size_t row = lode_attend_row(a);
    uint64_t hash = 0;
    for (size_t call = 0; call < a->calls; call++) {
        hash = lode_mix(hash, (uint64_t)a->kept[call]);
        for (size_t i = 0; i < row && a->kept[call] != LODE_KEPT_NOTHING; i++) {
            uint32_t bits;
            memcpy(&bits, &a->out[call * row + i], sizeof bits);
            hash = lode_mix(hash, bits);
        }
    }
    return hash;
}

typedef struct times {
    double p50, p90, p99, most; /* ns */
} times_t;

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static times_t times_of(uint64_t *ns, uint64_t n)
{
    n = n < LODE_ATTEND_TIMES ? n : LODE_ATTEND_TIMES;
    if (!n)
        return (times_t){0};
    qsort(ns, n, sizeof *ns, by_value);
    return (times_t){(double)ns[(n - 1) * 50 / 100], (double)ns[(n - 1) * 90 / 100], (double)ns[(n - 1) * 99 / 100],
                     (double)ns[n - 1]};
}

/* What the way to the rank and back costs, of each step, so before the times are sorted. */
static double median_of_way(const lode_attend_t *a, uint64_t n)
{
    n = n < LODE_ATTEND_TIMES ? n : LODE_ATTEND_TIMES;
    uint64_t *way = calloc(n + 1, sizeof *way);
    if (!way)
        return 0;
    for (uint64_t i = 0; i < n; i++)
        way[i] = a->client_ns[i] > a->rank_ns[i] ? a->client_ns[i] - a->rank_ns[i] : 0;
    qsort(way, n, sizeof *way, by_value);
    double median = n ? (double)way[(n - 1) / 2] : 0;
    free(way);
    return median;
}

static json_t *times_json(times_t times)
{
    return json_pack("{s:f s:f s:f s:f}", "p50", times.p50 * 1e-3, "p90", times.p90 * 1e-3, "p99", times.p99 * 1e-3,
                     "max", times.most * 1e-3);
}

static json_t *number_or_null(bool known, double number)
{
    return known ? json_real(number) : json_null();
}

static json_t *asked_json(const lode_attend_t *a)
{
    return json_pack("{s:s s:s s:s s:s s:f s:I s:I s:i s:i s:I s:i}", "capture", a->capture, "block", a->name, "policy",
                     a->policy_text, "merge", a->policy.merge == LODE_MERGE_MAX ? "max" : "mean", "budget_share",
                     a->policy.budget_share, "budget_tokens", (json_int_t)a->budget_tokens, "visible_tokens",
                     (json_int_t)a->visible_tokens, "sinks", (int)a->policy.sinks, "window", (int)a->policy.window,
                     "queries", (json_int_t)a->source.capture.queries, "layers", (int)a->source.geometry.layers);
}

static json_t *outcome_json(const lode_attend_t *a)
{
    char hash[20];
    snprintf(hash, sizeof hash, "%016" PRIx64, digest(a));
    return json_pack("{s:I s:I s:I s:I s:I s:o s:f s:b s:b s:I s:o s:o s:o s:o s:s}", "steps", (json_int_t)a->steps,
                     "failed_steps", (json_int_t)a->failed_steps, "wrong_steps", (json_int_t)a->wrong_steps,
                     "lossy_steps", (json_int_t)a->lossy_steps, "passes", (json_int_t)a->finished_passes,
                     "first_failure", a->failed_steps ? json_string(a->first_failure) : json_null(), "lost_share_max",
                     a->lost_share, "gave_up", (int)a->gave_up, "interrupted", lode_client_caught() != 0,
                     "checked_steps", (json_int_t)a->checked, "rel_error", number_or_null(a->checked, a->rel_error),
                     "rel_error_worst_step", number_or_null(a->checked, a->worst_error), "found_mass",
                     number_or_null(a->checked, a->found_mass), "oracle_mass",
                     number_or_null(a->checked, a->oracle_mass), "output_digest", hash);
}

static json_t *cost_json(const lode_attend_t *a, times_t client, times_t rank, double way)
{
    double done = (double)(a->steps - a->failed_steps), each = done > 0 ? 1 / done : 0;
    return json_pack(
        "{s:f s:f s:o s:o s:f s:f s:f s:f s:f s:f s:f s:f s:f s:i s:i s:i s:i}", "seconds", (double)a->run_ns * 1e-9,
        "steps_per_second", a->run_ns ? done / ((double)a->run_ns * 1e-9) : 0, "step_us", times_json(client),
        "rank_step_us", times_json(rank), "way_us_median", way * 1e-3, "longest_stall_ms", (double)a->longest_ns * 1e-6,
        "longest_stall_at_seconds", (double)a->longest_at_ns * 1e-9, "bytes_fetched_per_step", a->bytes_fetched * each,
        "records_fetched_per_step", a->records_fetched * each, "records_prefetched_per_step",
        a->records_prefetched * each, "records_wanted_per_step", a->records_wanted * each, "records_hit_per_step",
        a->records_hit * each, "retries", a->retries, "epoch_before", (int)a->before.epoch, "epoch_after",
        (int)a->after.epoch, "ranks", (int)a->after.ranks, "alive", (int)a->after.alive);
}

static lode_status_t write_json(const lode_attend_t *a, times_t client, times_t rank, double way)
{
    json_t *parts[] = {asked_json(a), outcome_json(a), cost_json(a, client, rank, way)};
    json_t *whole = json_object();
    bool complete = whole;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        complete = complete && parts[i] && json_object_update(whole, parts[i]) == 0;
        json_decref(parts[i]);
    }
    if (!complete) {
        json_decref(whole);
        whole = NULL;
    }
    return lode_client_json(a->json, whole);
}

static void print_accuracy(const lode_attend_t *a)
{
    if (!a->checked)
        return;
    printf("accuracy against dense attention in double (%zu steps of %u heads)\n", a->checked,
           a->source.geometry.query_heads);
    printf("  softmax mass found     %10.4f     oracle %.4f, ratio %.4f\n", a->found_mass, a->oracle_mass,
           a->oracle_mass > 0 ? a->found_mass / a->oracle_mass : 0);
    printf("  relative error         %10.2e     worst step %.2e\n", a->rel_error, a->worst_error);
}

static void print_times(const lode_attend_t *a, times_t client, double way)
{
    char text[6][LODE_TEXT_MAX];
    printf("time of a step: p50 %s, p90 %s, p99 %s, max %s, of it on the way to the rank and back %s\n",
           lode_text_time(client.p50, text[0]), lode_text_time(client.p90, text[1]),
           lode_text_time(client.p99, text[2]), lode_text_time(client.most, text[3]), lode_text_time(way, text[4]));
    printf("longest stall %s, %.1f s after the start\n", lode_text_time((double)a->longest_ns, text[5]),
           (double)a->longest_at_ns * 1e-9);
}

static void print_text(const lode_attend_t *a, times_t client, double way)
{
    char bytes[LODE_TEXT_MAX];
    double done = (double)(a->steps - a->failed_steps), each = done > 0 ? 1 / done : 0;
    printf("%s: %" PRIu64 " tokens, policy %s, %" PRIu64 " of them a KV head (%.4g %%)\n", a->name,
           lode_source_total(&a->source), a->policy_text, a->budget_tokens,
           a->visible_tokens ? 100 * (double)a->budget_tokens / (double)a->visible_tokens : 0);
    printf("%" PRIu64 " steps in %.2f s, %" PRIu64 " failed, %" PRIu64 " wrong, %" PRIu64
           " had to do without lost tokens\n",
           a->steps, (double)a->run_ns * 1e-9, a->failed_steps, a->wrong_steps, a->lossy_steps);
    print_accuracy(a);
    print_times(a, client, way);
    printf("fetched a step: %s in %.0f records of %.0f wanted (%.0f ahead of it), %.0f in the hot cache; %.0f requests "
           "repeated\n",
           lode_text_bytes(a->bytes_fetched * each, bytes), (a->records_fetched + a->records_prefetched) * each,
           a->records_wanted * each, a->records_prefetched * each, a->records_hit * each, a->retries);
    printf("epoch %u before, %u after; %u of %u ranks alive\n", a->before.epoch, a->after.epoch, a->after.alive,
           a->after.ranks);
    printf("digest of the outputs %016" PRIx64 "\n", digest(a));
}

lode_status_t lode_attend_report(lode_attend_t *a)
{
    uint64_t done = a->steps - a->failed_steps;
    double way = median_of_way(a, done);
    times_t client = times_of(a->client_ns, done), rank = times_of(a->rank_ns, done);
    if (!a->json || strcmp(a->json, "-") != 0)
        print_text(a, client, way);
    return a->json ? write_json(a, client, rank, way) : LODE_OK;
}
