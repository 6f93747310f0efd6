/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/reference_inside.h"

enum { NOT_MINE = -1 };

/* Place of a view token's logits on this rank: documents first, then the written tokens (rank 0 counts those). */
typedef struct place {
    bool extra;
    int64_t index;
} place_t;

static place_t place_of(const lode_reference_work_t *w, uint64_t token)
{
    const lode_source_t *source = w->params->source;
    uint32_t ranks = w->params->job.ranks, rank = w->params->job.rank, block = 0;
    if (token >= lode_source_total(source))
        return (place_t){true, rank == 0 ? (int64_t)(token - lode_source_total(source)) : NOT_MINE};
    while (source->starts[block + 1] <= token)
        block++;
    uint64_t at = token - source->starts[block], piece = w->first_piece[block] + at / LODE_PIECE;
    if (piece % ranks != rank)
        return (place_t){false, NOT_MINE};
    return (place_t){false, (int64_t)(piece / ranks * LODE_PIECE + at % LODE_PIECE)};
}

static const double *logits_of(const lode_reference_work_t *w, size_t c, uint32_t head)
{
    return w->logits + (c * w->params->source->geometry.query_heads + head) * w->local;
}

static const double *extra_of(const lode_reference_work_t *w, size_t c, uint32_t head)
{
    return w->extra + (c * w->params->source->geometry.query_heads + head) * w->extra_stride;
}

static uint64_t written_in_pages(const lode_reference_work_t *w, const lode_check_t *check)
{
    uint64_t total = lode_source_total(w->params->source);
    return check->paged > total ? check->paged - total : 0;
}

/* The written tokens that were in the tail: read whatever was chosen. */
static double tail_mass(const lode_reference_work_t *w, const lode_check_t *check, size_t c, uint32_t head, double lse)
{
    const double *extra = extra_of(w, c, head);
    double mass = 0;
    for (uint64_t t = written_in_pages(w, check); t < check->written; t++)
        mass += exp(extra[t] - lse);
    return mass;
}

void lode_mass_found(lode_reference_work_t *w, lode_check_t *check, size_t c)
{
    const lode_geometry_t *g = &w->params->source->geometry;
    uint32_t group = g->query_heads / g->kv_heads;
    const double *lse = w->lse + c * g->query_heads;
    for (uint32_t h = 0; h < g->query_heads; h++) {
        const uint32_t *chosen = check->chosen[h / group];
        const double *logits = logits_of(w, c, h), *extra = extra_of(w, c, h);
        check->found[h] = w->params->job.rank == 0 ? tail_mass(w, check, c, h, lse[h]) : 0;
        for (uint64_t i = 0; chosen && i < check->chosen_count[h / group]; i++) {
            place_t place = place_of(w, chosen[i]);
            if (place.index != NOT_MINE)
                check->found[h] += exp((place.extra ? extra : logits)[place.index] - lse[h]);
        }
    }
    lode_job_sum(&w->params->job, check->found, g->query_heads);
    for (uint32_t h = 0; h < g->query_heads; h++)
        if (!check->chosen[h / group])
            check->found[h] = 1;
}

/* ------------------------------------------------------------------- oracle */

/* What competes in the oracle's choice for one KV head: this rank's tokens, in the order of their places. */
typedef struct contest {
    lode_reference_work_t *work;
    const lode_check_t *check;
    size_t c;
    size_t own; /* places of documents, then those of written tokens in pages */
    size_t count;
} contest_t;

/* Doubles to integers of the same order, so that a threshold can be found bit by bit. */
static uint64_t ordered(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >> 63 ? ~bits : bits | UINT64_C(1) << 63;
}

/* Merge the group's logits as the step does, over what is in pages. */
static void merge_group(const contest_t *contest, uint32_t kv_head, const double *page_lse, double *scores)
{
    const lode_reference_work_t *w = contest->work;
    const lode_geometry_t *g = &w->params->source->geometry;
    uint32_t group = g->query_heads / g->kv_heads;
    bool mean = w->params->merge == LODE_MERGE_MEAN;
    for (uint32_t j = 0; j < group; j++) {
        uint32_t head = kv_head * group + j;
        const double *logits = logits_of(w, contest->c, head), *extra = extra_of(w, contest->c, head);
        for (size_t i = 0; i < contest->count; i++) {
            double logit = i < contest->own ? logits[i] : extra[i - contest->own];
            if (mean)
                scores[i] = (j ? scores[i] : 0) + logit / group;
            else if (!j || logit - page_lse[head] > scores[i])
                scores[i] = logit - page_lse[head];
        }
    }
}

static void force(const contest_t *contest, uint64_t begin, uint64_t end, double *scores)
{
    for (uint64_t token = begin; token < end; token++) {
        place_t place = place_of(contest->work, token);
        if (place.index != NOT_MINE)
            scores[(place.extra ? contest->own : 0) + (size_t)place.index] = INFINITY;
    }
}

/* Sinks and window are always in; of the window, the tail holds the last tokens already. */
static void force_ends(const contest_t *contest, double *scores)
{
    const lode_reference_params_t *p = contest->work->params;
    uint64_t paged = contest->check->paged;
    uint64_t in_tail = contest->check->written - written_in_pages(contest->work, contest->check);
    uint64_t window = p->window > in_tail ? p->window - in_tail : 0;
    force(contest, 0, p->sinks < paged ? p->sinks : paged, scores);
    force(contest, window < paged ? paged - window : 0, paged, scores);
}

/* Places without a token: a document's last piece may be short, and the ranks' pieces need not come out even. */
static void mark_holes(const contest_t *contest, double *scores)
{
    const lode_reference_work_t *w = contest->work;
    const lode_source_t *source = w->params->source;
    uint32_t block = 0;
    for (size_t place = 0; place < contest->own; place += LODE_PIECE) {
        uint64_t piece = place / LODE_PIECE * w->params->job.ranks + w->params->job.rank, tokens = 0;
        if (piece < w->pieces) {
            while (piece >= w->first_piece[block + 1])
                block++;
            uint64_t left =
                source->starts[block + 1] - source->starts[block] - (piece - w->first_piece[block]) * LODE_PIECE;
            tokens = left < LODE_PIECE ? left : LODE_PIECE;
        }
        for (uint64_t t = tokens; t < LODE_PIECE; t++)
            scores[place + t] = -INFINITY;
    }
}

static void page_lses(const contest_t *contest, double *page_lse)
{
    const lode_reference_work_t *w = contest->work;
    uint32_t heads = w->params->source->geometry.query_heads;
    uint64_t paged = written_in_pages(w, contest->check);
    for (uint32_t h = 0; h < heads; h++) {
        double docs = w->docs_lse[contest->c * heads + h], sum = 1;
        const double *extra = extra_of(w, contest->c, h);
        for (uint64_t t = 0; t < paged; t++)
            sum += exp(extra[t] - docs);
        page_lse[h] = docs + log(sum);
    }
}

/* How many of all ranks' scores are at least the threshold, for each KV head. */
static void count_from(const contest_t *contest, const uint64_t *threshold, uint64_t *count)
{
    const lode_reference_work_t *w = contest->work;
    uint32_t heads = w->params->source->geometry.kv_heads;
    for (uint32_t h = 0; h < heads; h++) {
        const double *scores = w->scores + h * contest->count;
        count[h] = 0;
        for (size_t i = 0; i < contest->count; i++)
            count[h] += ordered(scores[i]) >= threshold[h];
    }
    lode_job_sum_counts(&w->params->job, count, heads);
}

/*
 * The greatest threshold that at least chosen_count scores reach: that many are the oracle's, but for exact
 * ties of doubles, which may add a token and happen only where keys are copies of each other.
 */
static void find_thresholds(const contest_t *contest, uint64_t *threshold)
{
    uint32_t heads = contest->work->params->source->geometry.kv_heads;
    uint64_t tried[LODE_MASS_HEADS_MAX], count[LODE_MASS_HEADS_MAX];
    memset(threshold, 0, heads * sizeof *threshold);
    for (int bit = 63; bit >= 0; bit--) {
        for (uint32_t h = 0; h < heads; h++)
            tried[h] = threshold[h] | UINT64_C(1) << bit;
        count_from(contest, tried, count);
        for (uint32_t h = 0; h < heads; h++)
            if (count[h] >= contest->check->chosen_count[h])
                threshold[h] = tried[h];
    }
}

static double mass_from(const contest_t *contest, uint32_t head, uint64_t threshold)
{
    const lode_reference_work_t *w = contest->work;
    const lode_geometry_t *g = &w->params->source->geometry;
    const double *scores = w->scores + head / (g->query_heads / g->kv_heads) * contest->count;
    const double *logits = logits_of(w, contest->c, head), *extra = extra_of(w, contest->c, head);
    double lse = w->lse[contest->c * g->query_heads + head], mass = 0;
    if (w->params->job.rank == 0)
        mass = tail_mass(w, contest->check, contest->c, head, lse);
    for (size_t i = 0; i < contest->count; i++)
        if (scores[i] > -INFINITY && ordered(scores[i]) >= threshold)
            mass += exp((i < contest->own ? logits[i] : extra[i - contest->own]) - lse);
    return mass;
}

void lode_mass_oracle(lode_reference_work_t *w, lode_check_t *check, size_t c)
{
    const lode_geometry_t *g = &w->params->source->geometry;
    uint32_t group = g->query_heads / g->kv_heads;
    double page_lse[LODE_MASS_HEADS_MAX];
    uint64_t threshold[LODE_MASS_HEADS_MAX];
    contest_t contest = {.work = w, .check = check, .c = c, .own = w->local};
    contest.count = w->local + (w->params->job.rank == 0 ? written_in_pages(w, check) : 0);
    page_lses(&contest, page_lse);
    for (uint32_t h = 0; h < g->kv_heads; h++) {
        double *scores = w->scores + h * contest.count;
        merge_group(&contest, h, page_lse, scores);
        mark_holes(&contest, scores);
        force_ends(&contest, scores);
    }
    find_thresholds(&contest, threshold);
    for (uint32_t h = 0; h < g->query_heads; h++)
        check->oracle[h] = mass_from(&contest, h, threshold[h / group]);
    lode_job_sum(&w->params->job, check->oracle, g->query_heads);
    for (uint32_t h = 0; h < g->query_heads; h++)
        if (!check->chosen[h / group])
            check->oracle[h] = 1;
}
