/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <mpi.h>
#include <stdlib.h>
#include <string.h>

#include "bench/step.h"

/* About this many logits in double are cheap: some seconds on one core. */
#define CHEAP_LOGITS (UINT64_C(1) << 26)
enum { CHEAP_STEPS = 4 };

/* Of each stream's new tokens, the first and the last are compared. */
static uint32_t checked_tokens(const lode_step_bench_t *b)
{
    return b->wish.new_tokens > 1 ? 2 : 1;
}

static uint32_t checked_steps(const lode_step_bench_t *b)
{
    const lode_geometry_t *g = &b->source.geometry;
    uint64_t asked = b->wish.steps;
    if (b->wish.check_steps >= 0) {
        asked = (uint64_t)b->wish.check_steps;
    } else {
        uint64_t one = lode_source_total(&b->source) * g->query_heads * g->layers * b->wish.streams * checked_tokens(b);
        uint64_t cheap = CHEAP_LOGITS / one;
        asked = cheap < 1 ? 1 : cheap < CHEAP_STEPS ? cheap : CHEAP_STEPS;
    }
    return asked < b->wish.steps ? (uint32_t)asked : b->wish.steps;
}

static lode_status_t add_checks(lode_step_bench_t *b, uint32_t step)
{
    const lode_geometry_t *g = &b->source.geometry;
    size_t row = (size_t)g->query_heads * g->head_dim;
    for (uint32_t layer = 0; layer < g->layers; layer++) {
        for (uint32_t s = 0; s < b->wish.streams; s++) {
            for (uint32_t i = 0; i < checked_tokens(b); i++) {
                uint32_t token = i ? b->wish.new_tokens - 1 : 0;
                lode_check_t *check = &b->checks[b->check_count];
                *check = (lode_check_t){.layer = layer, .writer = b->source.blocks + s};
                LODE_TRY(lode_check_create(g, check));
                float *q = b->check_q + b->check_count * row;
                lode_step_make_query(b, layer, step, s, token, q);
                check->q = q;
                b->check_at[b->check_count++] = (lode_check_at_t){step, s, token};
            }
        }
    }
    return LODE_OK;
}

lode_status_t lode_step_check_plan(lode_step_bench_t *b)
{
    const lode_geometry_t *g = &b->source.geometry;
    uint32_t steps = checked_steps(b);
    size_t checks = (size_t)steps * g->layers * b->wish.streams * checked_tokens(b);
    b->kept = malloc(b->wish.steps * sizeof *b->kept);
    b->checks = calloc(checks + 1, sizeof *b->checks);
    b->check_at = calloc(checks + 1, sizeof *b->check_at);
    b->check_q = malloc((checks + 1) * g->query_heads * g->head_dim * sizeof *b->check_q);
    b->first = malloc((size_t)g->query_heads * g->head_dim * sizeof *b->first);
    if (!b->kept || !b->checks || !b->check_at || !b->check_q || !b->first)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory to check %u steps", steps);
    bool keep_all = b->wish.kill_rank >= 0;
    for (uint32_t step = 0; step < b->wish.steps; step++)
        b->kept[step] = keep_all ? (int32_t)step : -1;
    b->kept_count = keep_all ? b->wish.steps : steps;
    for (uint32_t i = 0; i < steps; i++) { /* spread over the run, so that grown blocks are checked too */
        uint32_t step = steps > 1 ? (uint32_t)((uint64_t)i * (b->wish.steps - 1) / (steps - 1)) : b->wish.steps - 1;
        if (!keep_all)
            b->kept[step] = (int32_t)i;
        LODE_TRY(add_checks(b, step));
    }
    return LODE_OK;
}

static lode_status_t take_choice(lode_step_bench_t *b, const lode_check_at_t *at, lode_check_t *check)
{
    for (uint32_t head = 0; head < b->source.geometry.kv_heads; head++) {
        const uint32_t *tokens;
        uint64_t count;
        LODE_TRY(lode_step_selection(b->cluster, at->stream, at->token, head, &tokens, &count));
        check->chosen_count[head] = count;
        if (!tokens)
            continue;
        check->chosen[head] = malloc((count + 1) * sizeof **check->chosen);
        if (!check->chosen[head])
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a choice of tokens");
        memcpy(check->chosen[head], tokens, count * sizeof *tokens);
    }
    return LODE_OK;
}

lode_status_t lode_step_check_take(lode_step_bench_t *b, uint32_t step, uint32_t layer, const lode_step_stats_t *stats)
{
    uint64_t total = lode_source_total(&b->source);
    for (size_t i = 0; i < b->check_count; i++) {
        lode_check_t *check = &b->checks[i];
        const lode_check_at_t *at = &b->check_at[i];
        if (at->step != step || check->layer != layer)
            continue;
        int64_t position = lode_source_position(&b->source, lode_step_query(b, step, at->stream, at->token));
        uint64_t before = b->wish.write ? (uint64_t)step * b->wish.new_tokens : 0;
        if (position == LODE_POSITION_END)
            position = (int64_t)(total + before + at->token);
        check->position = position;
        check->written = b->wish.write ? before + at->token + 1 : 0;
        check->paged = stats->visible_tokens;
        if (b->source.captured)
            check->paged = (uint64_t)position + 1 < total ? (uint64_t)position + 1 : total;
        LODE_TRY(take_choice(b, at, check));
    }
    return LODE_OK;
}

/* All ranks ran the same queries: they must have chosen the same tokens. */
static lode_status_t compare_digests(const lode_step_bench_t *b)
{
    size_t cells = (size_t)b->wish.steps * b->source.geometry.layers;
    uint64_t *low = malloc(cells * sizeof *low), *high = malloc(cells * sizeof *high);
    lode_status_t status = LODE_OK;
    if (!low || !high)
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory to compare digests");
    status = lode_job_agree(status);
    if (status == LODE_OK) {
        MPI_Allreduce(b->calm.digests, low, (int)cells, MPI_UINT64_T, MPI_MIN, MPI_COMM_WORLD);
        MPI_Allreduce(b->calm.digests, high, (int)cells, MPI_UINT64_T, MPI_MAX, MPI_COMM_WORLD);
        for (size_t i = 0; i < cells && status == LODE_OK; i++)
            if (low[i] != high[i])
                status = lode_fail(LODE_ERR_INTERNAL, "step %zu, layer %zu: ranks have chosen different tokens",
                                   i / b->source.geometry.layers, i % b->source.geometry.layers);
    }
    free(low);
    free(high);
    return status;
}

typedef struct squares {
    double difference, reference;
} squares_t;

static void add_squares(const float *out, const double *reference, size_t n, squares_t *squares)
{
    for (size_t i = 0; i < n; i++) {
        double d = out[i] - reference[i];
        squares->difference += d * d;
        squares->reference += reference[i] * reference[i];
    }
}

static double worst_ratio(squares_t squares)
{
    double ratio = squares.reference > 0 ? sqrt(squares.difference / squares.reference) : 0;
    MPI_Allreduce(MPI_IN_PLACE, &ratio, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return ratio;
}

/* Errors of this rank's outputs; the worst rank's count. */
static void compare_outputs(lode_step_bench_t *b)
{
    const lode_geometry_t *g = &b->source.geometry;
    size_t row = (size_t)g->query_heads * g->head_dim;
    squares_t sparse = {0}, dense = {0};
    for (size_t i = 0; i < b->check_count; i++) {
        const lode_check_at_t *at = &b->check_at[i];
        size_t cell = (size_t)b->kept[at->step] * g->layers + b->checks[i].layer;
        size_t place = (cell * lode_step_rows(b) + at->stream * b->wish.new_tokens + at->token) * row;
        add_squares(b->calm.out + place, b->checks[i].out, row, &sparse);
        if (b->dense_kept[cell])
            add_squares(b->dense_out + place, b->checks[i].docs_out, row, &dense);
    }
    b->rel_error = worst_ratio(sparse);
    b->dense_rel_error = worst_ratio(dense);
}

static void average_mass(lode_step_bench_t *b)
{
    const lode_geometry_t *g = &b->source.geometry;
    double found[2] = {0}, oracle[2] = {0}, heads[2] = {0};
    for (size_t i = 0; i < b->check_count; i++) {
        for (uint32_t h = 0; h < g->query_heads; h++) {
            bool sharp =
                !b->source.captured && lode_generator_sharp(b->source.generator, h / (g->query_heads / g->kv_heads));
            found[sharp] += b->checks[i].found[h];
            oracle[sharp] += b->checks[i].oracle[h];
            heads[sharp]++;
        }
    }
    double all = heads[0] + heads[1];
    b->found_mass = (found[0] + found[1]) / all;
    b->oracle_mass = (oracle[0] + oracle[1]) / all;
    for (int kind = 0; kind < 2; kind++) {
        b->mass_of_kind[kind].found = heads[kind] > 0 ? found[kind] / heads[kind] : 0;
        b->mass_of_kind[kind].oracle = heads[kind] > 0 ? oracle[kind] / heads[kind] : 0;
    }
}

lode_status_t lode_step_check_run(lode_step_bench_t *b)
{
    lode_reference_params_t params = {.job = b->job,
                                      .source = &b->source,
                                      .merge = b->wish.merge,
                                      .sinks = b->wish.sinks,
                                      .window = b->wish.window,
                                      .memory = (size_t)1 << 28};
    LODE_TRY(compare_digests(b));
    if (!b->check_count)
        return LODE_OK;
    LODE_TRY(lode_reference_run(&params, b->checks, b->check_count));
    compare_outputs(b);
    average_mass(b);
    return LODE_OK;
}

void lode_step_check_free(lode_step_bench_t *b)
{
    for (size_t i = 0; i < b->check_count; i++)
        lode_check_free(&b->source.geometry, &b->checks[i]);
    free(b->checks);
    free(b->check_at);
    free(b->check_q);
    free(b->kept);
    b->check_count = 0;
}
