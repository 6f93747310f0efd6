/* SPDX-License-Identifier: Apache-2.0 */
/* From a source to heads: keys and values of a layer, queries, and which rank judges which heads. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/frontier.h"

enum { PIECE = 256, FIT_MOST = 4096, CAPTURE_PERIOD = 4, APART = 64 };

typedef struct run {
    const lode_frontier_params_t *p;
    const lode_ops_t *ops;
    uint32_t layer, heads, group, dim, queries;
    uint32_t first, last; /* heads of this rank */
    uint64_t tokens, fitted;
    uint64_t *numbers, *visible; /* (queries) */
    float *all_keys;             /* (tokens, all heads, dim): ShadowKV's low rank is over all heads */
    float *fit, *judge; /* of this rank's heads: (heads, fitted · group, dim); (heads, queries, group, dim), scaled */
    float *head_keys, *head_values; /* (heads, tokens, dim) of this rank */
    lode_frontier_trial_t *trials;
    lode_frontier_head_h *ready;
    lode_shadow_h shadow;
    double *sums; /* (heads, budgets, numbers) of one policy */
    lode_progress_t progress;
    uint64_t done;
} run_t;

static uint64_t count_held(const lode_frontier_params_t *p)
{
    return p->source->capture.queries / CAPTURE_PERIOD;
}

/* Of a capture the last quarter is judged, its runs spread evenly; generated ones come after those to fit by. */
static uint64_t number_of(const lode_frontier_params_t *p, uint32_t run, uint32_t step)
{
    if (!p->source->captured)
        return p->fit + (uint64_t)APART * (run + 1) + step;
    uint64_t held = count_held(p), spare = held - p->steps;
    return p->source->capture.queries - held + (p->runs > 1 ? spare * run / (p->runs - 1) : 0) + step;
}

static uint64_t visible_to(const lode_frontier_params_t *p, uint64_t number)
{
    uint64_t tokens = p->source->starts[1];
    int64_t position = lode_source_position(p->source, number);
    return position == LODE_POSITION_END || position + 1 >= (int64_t)tokens ? tokens : (uint64_t)(position + 1);
}

static bool wants_shadow(const lode_frontier_params_t *p)
{
    for (uint32_t i = 0; i < p->policy_count; i++)
        if (p->policies[i].kind == LODE_CHOOSER_SHADOW)
            return true;
    return false;
}

static lode_status_t check_shadow(const lode_frontier_params_t *p)
{
    const lode_geometry_t *g = &p->source->geometry;
    const lode_shadow_params_t *s = &p->shadow;
    uint64_t tokens = p->source->starts[1], width = (uint64_t)g->kv_heads * g->head_dim;
    if (s->rank > width || s->rank > tokens)
        return lode_fail(LODE_ERR_INVALID, "keys of %llu tokens and %llu coordinates have no rank of %u: --rank less",
                         (unsigned long long)tokens, (unsigned long long)width, s->rank);
    if (tokens / s->chunk < (uint64_t)s->outliers + s->local + 1)
        return lode_fail(LODE_ERR_INVALID,
                         "%llu tokens have no chunk beside %u outliers and %u local ones: --outliers less",
                         (unsigned long long)tokens, s->outliers, s->local);
    return LODE_OK;
}

lode_status_t lode_frontier_check(const lode_frontier_params_t *p)
{
    const lode_source_t *source = p->source;
    uint64_t least = (uint64_t)p->sinks + p->window + 64, queries = source->captured ? source->capture.queries : 0;
    if (source->geometry.query_heads / source->geometry.kv_heads > LODE_MAX_GROUP)
        return lode_fail(LODE_ERR_GEOMETRY, "%u query heads a KV head are too many; the most is %d",
                         source->geometry.query_heads / source->geometry.kv_heads, LODE_MAX_GROUP);
    if (source->captured && count_held(p) < p->steps)
        return lode_fail(LODE_ERR_INVALID,
                         "the capture has %llu queries; a run of %u needs %u: three quarters make the transforms, the "
                         "last is judged",
                         (unsigned long long)queries, p->steps, p->steps * CAPTURE_PERIOD);
    for (uint32_t i = 0; i < p->runs * p->steps; i++) {
        uint64_t number = number_of(p, i / p->steps, i % p->steps);
        if (visible_to(p, number) < least)
            return lode_fail(LODE_ERR_INVALID,
                             "query %llu sees %llu tokens; with these sinks and window the least is "
                             "%llu",
                             (unsigned long long)number, (unsigned long long)visible_to(p, number),
                             (unsigned long long)least);
    }
    return wants_shadow(p) ? check_shadow(p) : LODE_OK;
}

/* ------------------------------------------------------------------ loading */

/* This rank's heads of n tokens, each head's by themselves. */
static void split_heads(const run_t *r, const float *from, uint64_t first, uint64_t n, float *heads)
{
    for (uint64_t t = 0; t < n; t++)
        for (uint32_t head = r->first; head < r->last; head++)
            memcpy(heads + ((head - r->first) * r->tokens + first + t) * r->dim, from + (t * r->heads + head) * r->dim,
                   r->dim * sizeof *from);
}

static lode_status_t load_tokens(run_t *r)
{
    size_t width = (size_t)r->heads * r->dim;
    float *k = malloc(PIECE * width * sizeof *k), *v = malloc(PIECE * width * sizeof *v);
    for (uint64_t first = 0; k && v && first < r->tokens; first += PIECE) {
        uint64_t n = r->tokens - first < PIECE ? r->tokens - first : PIECE;
        lode_source_tokens(r->p->source, 0, r->layer, first, n, k, v);
        split_heads(r, k, first, n, r->head_keys);
        split_heads(r, v, first, n, r->head_values);
        if (r->all_keys)
            memcpy(r->all_keys + first * width, k, n * width * sizeof *k);
    }
    bool room = k && v;
    free(k);
    free(v);
    return room ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for keys");
}

static lode_status_t load_shadow(run_t *r)
{
    r->all_keys = malloc(r->tokens * r->heads * r->dim * sizeof *r->all_keys);
    const lode_source_t *source = r->p->source;
    lode_shadow_place_t place = {.positions = source->captured ? source->capture.key_positions : NULL};
    lode_status_t status = r->all_keys ? load_tokens(r)
                                       : lode_fail(LODE_ERR_NO_MEMORY, "no memory for %llu tokens of %u heads",
                                                   (unsigned long long)r->tokens, r->heads);
    if (status == LODE_OK)
        status = lode_shadow_create(&r->p->shadow, r->ops, &source->geometry.rope, r->heads, r->dim, r->all_keys,
                                    r->tokens, &place, &r->shadow);
    free(r->all_keys);
    r->all_keys = NULL;
    return status;
}

static lode_status_t load_queries(run_t *r)
{
    float scale = 1 / sqrtf((float)r->dim), *q = malloc((size_t)r->heads * r->group * r->dim * sizeof *q);
    if (!q)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for queries");
    uint32_t begin = r->first * r->group, end = r->last * r->group;
    for (uint64_t i = 0; i < r->fitted; i++) {
        lode_source_query(r->p->source, r->layer, i, q);
        for (uint32_t h = begin; h < end; h++)
            memcpy(r->fit + (((h / r->group - r->first) * r->fitted + i) * r->group + h % r->group) * r->dim,
                   q + (size_t)h * r->dim, r->dim * sizeof *q);
    }
    for (uint32_t i = 0; i < r->queries; i++) {
        lode_source_query(r->p->source, r->layer, r->numbers[i], q);
        for (uint32_t h = begin; h < end; h++)
            for (uint32_t j = 0; j < r->dim; j++)
                r->judge[(((size_t)(h / r->group - r->first) * r->queries + i) * r->group + h % r->group) * r->dim +
                         j] = q[(size_t)h * r->dim + j] * scale;
    }
    free(q);
    return LODE_OK;
}

static lode_status_t ready_head(run_t *r, uint32_t head)
{
    uint32_t i = head - r->first;
    r->trials[i] = (lode_frontier_trial_t){.params = r->p,
                                           .ops = r->ops,
                                           .layer = r->layer,
                                           .head = head,
                                           .dim = r->dim,
                                           .group = r->group,
                                           .queries = r->queries,
                                           .tokens = r->tokens,
                                           .keys = r->head_keys + i * r->tokens * r->dim,
                                           .values = r->head_values + i * r->tokens * r->dim,
                                           .fitted = r->fitted * r->group,
                                           .fit_queries = r->fit + (size_t)i * r->fitted * r->group * r->dim,
                                           .judged_queries = r->judge + (size_t)i * r->queries * r->group * r->dim,
                                           .visible = r->visible,
                                           .numbers = r->numbers,
                                           .shadow = r->shadow};
    lode_progress_at(&r->progress, ++r->done);
    return lode_frontier_head_create(&r->trials[i], &r->ready[i]);
}

static lode_status_t load_layer(run_t *r, bool shadow)
{
    if (r->first == r->last)
        return LODE_OK;
    LODE_TRY(load_queries(r));
    LODE_TRY(shadow ? load_shadow(r) : load_tokens(r));
    for (uint32_t head = r->first; head < r->last; head++)
        LODE_TRY(ready_head(r, head));
    return LODE_OK;
}

static void drop_layer(run_t *r)
{
    for (uint32_t i = 0; i < r->last - r->first; i++)
        lode_frontier_head_destroy(&r->ready[i]);
    lode_shadow_destroy(&r->shadow);
}

/* ------------------------------------------------------------------ judging */

/* This rank's heads under one policy, to their places in the sums. */
static lode_status_t judge_own(run_t *r, const lode_chooser_t *policy)
{
    size_t row = (size_t)r->p->budget_count * LODE_OUTCOME_NUMBERS;
    memset(r->sums, 0, r->heads * row * sizeof *r->sums);
    for (uint32_t head = r->first; head < r->last; head++) {
        lode_outcome_t found[LODE_BUDGETS_MAX] = {{0}};
        LODE_TRY(lode_frontier_head_judge(r->ready[head - r->first], policy, found));
        memcpy(r->sums + head * row, found, row * sizeof *r->sums);
        lode_progress_at(&r->progress, ++r->done);
    }
    return LODE_OK;
}

/* Heads are added one after another, so that the sum does not depend on who judged them. */
static void add_up(const run_t *r, lode_frontier_found_t *found)
{
    const lode_source_t *source = r->p->source;
    for (uint32_t head = 0; head < r->heads; head++) {
        uint32_t kind = source->captured ? 0 : lode_generator_head_kind(source->generator, head);
        for (uint32_t b = 0; b < r->p->budget_count; b++) {
            const double *from = r->sums + ((size_t)head * r->p->budget_count + b) * LODE_OUTCOME_NUMBERS;
            double to[LODE_OUTCOME_NUMBERS];
            memcpy(to, &found->sum[b][kind], sizeof to);
            for (uint32_t i = 0; i < LODE_OUTCOME_NUMBERS; i++)
                to[i] += from[i];
            memcpy(&found->sum[b][kind], to, sizeof to);
        }
    }
    found->layers++;
}

static lode_status_t judge_layer(run_t *r, lode_frontier_found_t *found, lode_frontier_keep_fn keep, void *context)
{
    const lode_frontier_params_t *p = r->p;
    bool any = false, shadow = false;
    for (uint32_t i = 0; i < p->policy_count; i++) {
        any = any || found[i].layers <= r->layer;
        shadow = shadow || (found[i].layers <= r->layer && p->policies[i].kind == LODE_CHOOSER_SHADOW);
    }
    if (!any)
        return LODE_OK;
    lode_status_t status = lode_job_agree(load_layer(r, shadow));
    for (uint32_t i = 0; i < p->policy_count && status == LODE_OK; i++) {
        if (found[i].layers > r->layer)
            continue;
        status = lode_job_agree(judge_own(r, &p->policies[i]));
        if (status != LODE_OK)
            break;
        lode_job_sum(&p->job, r->sums, (size_t)r->heads * p->budget_count * LODE_OUTCOME_NUMBERS);
        add_up(r, &found[i]);
        if (keep)
            status = lode_job_agree(p->job.rank == 0 ? keep(context) : LODE_OK);
    }
    drop_layer(r);
    return status;
}

static lode_status_t take_room(run_t *r)
{
    size_t own = r->last - r->first, row = r->dim * sizeof(float);
    r->numbers = malloc(r->queries * sizeof *r->numbers);
    r->visible = malloc(r->queries * sizeof *r->visible);
    r->fit = malloc(own * r->fitted * r->group * row + 1);
    r->judge = malloc(own * r->queries * r->group * row + 1);
    r->head_keys = malloc(own * r->tokens * row + 1);
    r->head_values = malloc(own * r->tokens * row + 1);
    r->trials = calloc(own + 1, sizeof *r->trials);
    r->ready = calloc(own + 1, sizeof *r->ready);
    r->sums = malloc((size_t)r->heads * r->p->budget_count * sizeof(lode_outcome_t));
    if (!r->numbers || !r->visible || !r->fit || !r->judge || !r->head_keys || !r->head_values || !r->trials ||
        !r->ready || !r->sums)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %llu tokens of %zu heads", (unsigned long long)r->tokens,
                         own);
    for (uint32_t i = 0; i < r->queries; i++) {
        r->numbers[i] = number_of(r->p, i / r->p->steps, i % r->p->steps);
        r->visible[i] = visible_to(r->p, r->numbers[i]);
    }
    return LODE_OK;
}

static void give_room(run_t *r)
{
    void *const all[] = {r->numbers,     r->visible, r->fit,   r->judge, r->head_keys,
                         r->head_values, r->trials,  r->ready, r->sums};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

/* What this rank has to do, for the time left. */
static uint64_t count_work(const run_t *r, const lode_frontier_found_t *found)
{
    uint64_t work = 0;
    for (uint32_t layer = 0; layer < r->p->source->geometry.layers; layer++) {
        uint64_t left = 0;
        for (uint32_t i = 0; i < r->p->policy_count; i++)
            left += found[i].layers <= layer;
        work += left ? left + 1 : 0;
    }
    return work * (r->last - r->first);
}

lode_status_t lode_frontier_run(const lode_frontier_params_t *p, lode_frontier_found_t *found,
                                lode_frontier_keep_fn keep, void *context)
{
    const lode_geometry_t *g = &p->source->geometry;
    run_t r = {.p = p,
               .heads = g->kv_heads,
               .group = g->query_heads / g->kv_heads,
               .dim = g->head_dim,
               .queries = p->runs * p->steps,
               .first = (uint32_t)((uint64_t)g->kv_heads * p->job.rank / p->job.ranks),
               .last = (uint32_t)((uint64_t)g->kv_heads * (p->job.rank + 1) / p->job.ranks),
               .tokens = p->source->starts[1]};
    lode_status_t status = lode_frontier_check(p);
    if (status == LODE_OK)
        status = lode_ops_get(p->level, &r.ops);
    LODE_TRY(lode_job_agree(status));
    r.fitted = p->fit < FIT_MOST ? p->fit : FIT_MOST;
    if (p->source->captured) {
        uint64_t others = p->source->capture.queries - count_held(p);
        r.fitted = others < FIT_MOST ? others : FIT_MOST;
    }
    status = lode_job_agree(take_room(&r));
    lode_progress_begin(&r.progress, "judge policies", count_work(&r, found));
    for (; r.layer < g->layers && status == LODE_OK; r.layer++)
        status = judge_layer(&r, found, keep, context);
    lode_progress_end(&r.progress);
    give_room(&r);
    return status;
}
