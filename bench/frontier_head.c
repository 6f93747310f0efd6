/* SPDX-License-Identifier: Apache-2.0 */
/* One KV head: what each policy chooses, query by query, held against dense attention. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/frontier.h"

struct lode_frontier_head {
    const lode_frontier_trial_t *t;
    uint32_t rows;         /* of scores: the group, or 1 if its mean query asks */
    float *asked;          /* (queries, rows, dim) */
    float *exact;          /* (queries, group, tokens) logits */
    float *lse;            /* (queries, group) */
    float *weight;         /* (queries, tokens) softmax, mean over the group */
    double *dense;         /* (queries, group, dim) */
    float *means;          /* (chunks, dim): keys of the chunks that were averaged last */
    float *scores;         /* (rows, tokens) */
    float *combined, *row; /* (tokens) */
    float *logits;         /* (group, tokens) of chosen ones */
    float *rebuilt;        /* keys of chosen ones, grown */
    uint64_t rebuilt_room;
    uint64_t *wide;           /* (tokens) */
    uint32_t *picks, *chosen; /* (tokens + 64) */
    uint32_t *before;         /* (budgets, tokens): what the query before fetched */
    uint64_t before_count[LODE_BUDGETS_MAX];
    uint8_t *marked; /* (tokens) */
};

/** What is chosen whatever the scores are: tokens before `begin`, and from `end` on. */
typedef struct forced {
    uint64_t begin, end, visible;
} forced_t;

static forced_t forced_of(const struct lode_frontier_head *h, uint32_t query)
{
    const lode_frontier_params_t *p = h->t->params;
    uint64_t visible = h->t->visible[query];
    uint64_t begin = p->sinks < visible ? p->sinks : visible, end = visible > p->window ? visible - p->window : 0;
    return (forced_t){begin, end > begin ? end : begin, visible};
}

/* -------------------------------------------------------------------- truth */

static const float *query_at(const lode_frontier_trial_t *t, uint32_t query, uint32_t g)
{
    return t->judged_queries + ((size_t)query * t->group + g) * t->dim;
}

/*
 * Attention over n tokens by their logits, rows of `stride`. tokens NULL: the first n.
 * @param[out] out  (group, dim)
 */
static void attend(const lode_frontier_trial_t *t, const float *logits, uint64_t stride, const uint32_t *tokens,
                   uint64_t n, double *out)
{
    double most[LODE_MAX_GROUP], sum[LODE_MAX_GROUP] = {0};
    memset(out, 0, (size_t)t->group * t->dim * sizeof *out);
    for (uint32_t g = 0; g < t->group; g++) {
        most[g] = -INFINITY;
        for (uint64_t i = 0; i < n; i++)
            most[g] = fmax(most[g], logits[g * stride + i]);
    }
    for (uint64_t i = 0; i < n; i++) {
        const float *value = t->values + (tokens ? tokens[i] : i) * t->dim;
        for (uint32_t g = 0; g < t->group; g++) {
            double weight = exp(logits[g * stride + i] - most[g]), *row = out + (size_t)g * t->dim;
            sum[g] += weight;
            for (uint32_t j = 0; j < t->dim && weight > 1e-12; j++)
                row[j] += weight * value[j];
        }
    }
    for (uint32_t g = 0; g < t->group; g++)
        for (uint32_t j = 0; j < t->dim && sum[g] > 0; j++)
            out[(size_t)g * t->dim + j] /= sum[g];
}

static void find_truth(struct lode_frontier_head *h)
{
    const lode_frontier_trial_t *t = h->t;
    memset(h->weight, 0, t->queries * t->tokens * sizeof *h->weight);
    for (uint32_t query = 0; query < t->queries; query++) {
        float *first = h->exact + (size_t)query * t->group * t->tokens, *weight = h->weight + query * t->tokens;
        for (uint32_t g = 0; g < t->group; g++) {
            float *logits = first + g * t->tokens, *lse = &h->lse[query * t->group + g];
            t->ops->dot_rows(query_at(t, query, g), t->keys, (uint32_t)t->tokens, t->dim, logits);
            *lse = t->ops->logsumexp(logits, t->visible[query]);
            for (uint64_t i = 0; i < t->visible[query]; i++)
                weight[i] += expf(logits[i] - *lse) / (float)t->group;
        }
        attend(t, first, t->tokens, NULL, t->visible[query], h->dense + (size_t)query * t->group * t->dim);
    }
}

static void ask(struct lode_frontier_head *h)
{
    const lode_frontier_trial_t *t = h->t;
    memset(h->asked, 0, (size_t)t->queries * h->rows * t->dim * sizeof *h->asked);
    for (uint32_t query = 0; query < t->queries; query++)
        for (uint32_t g = 0; g < t->group; g++) {
            float *to = h->asked + ((size_t)query * h->rows + (h->rows > 1 ? g : 0)) * t->dim;
            for (uint32_t j = 0; j < t->dim; j++)
                to[j] += query_at(t, query, g)[j] / (float)(h->rows > 1 ? 1 : t->group);
        }
}

/* ----------------------------------------------------------------- choosing */

/* One score a chunk, from rows of them. */
static void combine(const struct lode_frontier_head *h, const float *scores, uint64_t stride, uint64_t n, float *out)
{
    float shift[LODE_MAX_GROUP];
    for (uint32_t g = 0; g < h->rows; g++)
        shift[g] = h->t->ops->logsumexp(scores + g * stride, n);
    h->t->ops->group_max(scores, stride, shift, h->rows, out, n);
}

/* By h->combined, which stays. */
static uint64_t choose_scored(struct lode_frontier_head *h, const forced_t *forced, uint32_t chunk, uint64_t budget)
{
    lode_piece_t piece = {forced->visible, (forced->visible + chunk - 1) / chunk, 0};
    lode_choice_t choice = {.pieces = &piece,
                            .piece_count = 1,
                            .chunk = chunk,
                            .group = 1,
                            .merge = LODE_MERGE_MAX,
                            .budget = budget,
                            .sinks = forced->begin,
                            .window_begin = forced->end};
    memcpy(h->row, h->combined, piece.landmarks * sizeof *h->row);
    return lode_choose(h->t->ops, &choice, h->row, h->t->tokens, h->picks, h->chosen);
}

static uint64_t choose_all(struct lode_frontier_head *h, uint64_t visible)
{
    for (uint64_t i = 0; i < visible; i++)
        h->chosen[i] = (uint32_t)i;
    return visible;
}

static uint64_t choose_by_chance(struct lode_frontier_head *h, const forced_t *forced, uint32_t query, uint64_t budget)
{
    const lode_frontier_trial_t *t = h->t;
    uint64_t free = forced->end - forced->begin, always = forced->visible - free, n = 0;
    uint64_t wanted = budget > always ? budget - always : 0;
    wanted = wanted < free ? wanted : free;
    uint64_t seed = lode_mix(lode_mix(t->params->seed, t->numbers[query]), (uint64_t)t->layer << 32 | t->head);
    lode_by_chance(seed, free, wanted, h->wide);
    for (uint64_t i = 0; i < forced->begin; i++)
        h->chosen[n++] = (uint32_t)i;
    for (uint64_t i = 0; i < wanted; i++)
        h->chosen[n++] = (uint32_t)(forced->begin + h->wide[i]);
    for (uint64_t i = forced->end; i < forced->visible; i++)
        h->chosen[n++] = (uint32_t)i;
    return n;
}

/* What is left of n chosen tokens if each row of scores keeps only the fewest that hold the share. */
static lode_status_t keep_top_p(struct lode_frontier_head *h, const forced_t *forced, uint64_t *n)
{
    const lode_frontier_trial_t *t = h->t;
    uint64_t kept = 0, count;
    for (uint64_t i = 0; i < *n; i++)
        h->marked[i] = h->chosen[i] < forced->begin || h->chosen[i] >= forced->end;
    for (uint32_t g = 0; g < h->rows; g++) {
        for (uint64_t i = 0; i < *n; i++)
            h->row[i] = h->scores[g * t->tokens + h->chosen[i]];
        LODE_TRY(lode_top_p(h->row, *n, t->params->share, h->wide, &count));
        for (uint64_t i = 0; i < count; i++)
            h->marked[h->wide[i]] = 1;
    }
    for (uint64_t i = 0; i < *n; i++)
        if (h->marked[i])
            h->chosen[kept++] = h->chosen[i];
    *n = kept;
    return LODE_OK;
}

/* ----------------------------------------------------------------- ShadowKV */

/* Whole chunks that the query sees and that are not local to it. */
static uint64_t shadow_chunks(const struct lode_frontier_head *h, uint64_t visible)
{
    const lode_shadow_params_t *p = &h->t->params->shadow;
    uint64_t whole = visible / p->chunk, chunks = whole > p->local ? whole - p->local : 0;
    return chunks < lode_shadow_chunks(h->t->shadow) ? chunks : lode_shadow_chunks(h->t->shadow);
}

static void shadow_score(struct lode_frontier_head *h, uint32_t query)
{
    const lode_frontier_trial_t *t = h->t;
    const float lowest = -1e9f; /* finite: sums of exponentials take nothing else */
    uint64_t n = shadow_chunks(h, t->visible[query]);
    for (uint32_t g = 0; g < h->rows; g++) {
        float *row = h->scores + g * t->tokens;
        lode_shadow_score(t->shadow, t->head, h->asked + ((size_t)query * h->rows + g) * t->dim, row);
        for (uint64_t c = 0; c < n; c++)
            row[c] = fmaxf(row[c], lowest);
    }
    if (n > 0)
        combine(h, h->scores, t->tokens, n, h->combined);
    for (uint64_t c = 0; c < n; c++)
        if (lode_shadow_is_outlier(t->shadow, t->head, c))
            h->combined[c] = -INFINITY;
}

/* The chunks of the budget, and beside it what is resident: outliers, and all from the local chunks on. */
static uint64_t shadow_choose(struct lode_frontier_head *h, uint64_t visible, uint64_t budget)
{
    const lode_frontier_trial_t *t = h->t;
    uint32_t chunk = t->params->shadow.chunk;
    uint64_t chunks = shadow_chunks(h, visible), outliers = 0, n = 0;
    memset(h->marked, 0, chunks);
    for (uint64_t c = 0; c < chunks; c++) {
        h->marked[c] = lode_shadow_is_outlier(t->shadow, t->head, c);
        outliers += h->marked[c];
    }
    uint64_t wanted = (budget + chunk - 1) / chunk;
    wanted = wanted < chunks - outliers ? wanted : chunks - outliers;
    size_t kept = wanted ? t->ops->topk(h->combined, chunks, wanted, h->picks) : 0;
    for (size_t i = 0; i < kept; i++)
        h->marked[h->picks[i]] = 1;
    for (uint64_t c = 0; c < chunks; c++)
        for (uint64_t i = 0; i < chunk && h->marked[c]; i++)
            h->chosen[n++] = (uint32_t)(c * chunk + i);
    for (uint64_t i = chunks * chunk; i < visible; i++)
        h->chosen[n++] = (uint32_t)i;
    return n;
}

static bool shadow_resident(const struct lode_frontier_head *h, uint64_t visible, uint32_t token)
{
    uint64_t chunk = token / h->t->params->shadow.chunk;
    return chunk >= shadow_chunks(h, visible) || lode_shadow_is_outlier(h->t->shadow, h->t->head, chunk);
}

/* Logits of n chosen tokens, gathered; those of ShadowKV's missing ones come from keys of low rank. */
static lode_status_t gather_logits(struct lode_frontier_head *h, bool low_rank, uint32_t query, uint64_t n)
{
    const lode_frontier_trial_t *t = h->t;
    const float *exact = h->exact + (size_t)query * t->group * t->tokens;
    for (uint32_t g = 0; g < t->group; g++)
        for (uint64_t i = 0; i < n; i++)
            h->logits[g * t->tokens + i] = exact[g * t->tokens + h->chosen[i]];
    if (!low_rank)
        return LODE_OK;
    if (n > h->rebuilt_room) {
        free(h->rebuilt);
        h->rebuilt_room = 0;
        h->rebuilt = malloc(n * t->dim * sizeof *h->rebuilt);
        if (!h->rebuilt)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %llu rebuilt keys", (unsigned long long)n);
        h->rebuilt_room = n;
    }
    for (uint64_t i = 0; i < n; i++)
        h->wide[i] = h->chosen[i];
    lode_shadow_rebuild(t->shadow, t->head, h->wide, n, h->rebuilt);
    for (uint32_t g = 0; g < t->group; g++) {
        t->ops->dot_rows(query_at(t, query, g), h->rebuilt, (uint32_t)n, t->dim, h->row);
        for (uint64_t i = 0; i < n; i++)
            if (!shadow_resident(h, t->visible[query], h->chosen[i]))
                h->logits[g * t->tokens + i] = h->row[i];
    }
    return LODE_OK;
}

/* ------------------------------------------------------------------ judging */

static bool is_chosen(const struct lode_frontier_head *h, uint64_t n, uint64_t token)
{
    uint64_t low = 0, high = n;
    while (low < high) {
        uint64_t middle = (low + high) / 2;
        if (h->chosen[middle] < token)
            low = middle + 1;
        else
            high = middle;
    }
    return low < n && h->chosen[low] == token;
}

static void count_facts(const struct lode_frontier_head *h, uint32_t query, uint64_t n, lode_outcome_t *found)
{
    const lode_frontier_trial_t *t = h->t;
    const lode_source_t *source = t->params->source;
    uint64_t positions[LODE_FACTS_MAX];
    if (source->captured || lode_generator_head_kind(source->generator, t->head) != LODE_HEAD_FACTS)
        return;
    for (uint32_t g = 0; g < t->group; g++) {
        uint32_t facts =
            lode_generator_facts(source->generator, t->layer, t->numbers[query], t->head * t->group + g, positions);
        for (uint32_t i = 0; i < facts; i++)
            found->facts_found += is_chosen(h, n, positions[i]);
        found->facts += facts;
    }
}

/* Of n tokens the ones that have to be fetched become `before`, and those that were in it are counted. */
static void count_fetched(struct lode_frontier_head *h, const forced_t *forced, bool shadow, uint32_t budget,
                          bool follows, uint64_t n, lode_outcome_t *found)
{
    uint32_t *before = h->before + budget * h->t->tokens, *fetched = h->picks;
    uint64_t count = 0, old = follows ? h->before_count[budget] : 0, at = 0, again = 0;
    for (uint64_t i = 0; i < n; i++) {
        uint32_t token = h->chosen[i];
        if (shadow ? !shadow_resident(h, forced->visible, token) : token >= forced->begin && token < forced->end)
            fetched[count++] = token;
    }
    for (uint64_t i = 0; i < count; i++) {
        while (at < old && before[at] < fetched[i])
            at++;
        again += at < old && before[at] == fetched[i];
    }
    found->fetched += (double)count;
    found->again += follows ? (double)again : 0;
    found->again_of += follows ? (double)count : 0;
    memcpy(before, fetched, count * sizeof *before);
    h->before_count[budget] = count;
}

static void count_error(const struct lode_frontier_head *h, uint32_t query, uint64_t n, lode_outcome_t *found)
{
    const lode_frontier_trial_t *t = h->t;
    double out[LODE_MAX_GROUP * LODE_MAX_DIM];
    const double *dense = h->dense + (size_t)query * t->group * t->dim;
    attend(t, h->logits, t->tokens, h->chosen, n, out);
    for (uint32_t g = 0; g < t->group; g++) {
        double wrong = 0, size = 0;
        for (uint32_t j = g * t->dim; j < (g + 1) * t->dim; j++) {
            wrong += (out[j] - dense[j]) * (out[j] - dense[j]);
            size += dense[j] * dense[j];
        }
        found->error += size > 0 ? sqrt(wrong / size) / t->group : 0;
    }
}

static lode_status_t choose(struct lode_frontier_head *h, const lode_chooser_t *policy, uint32_t query, uint64_t budget,
                            uint64_t *n)
{
    forced_t forced = forced_of(h, query);
    switch (policy->kind) {
    case LODE_CHOOSER_DENSE:
        *n = choose_all(h, forced.visible);
        return LODE_OK;
    case LODE_CHOOSER_RANDOM:
        *n = choose_by_chance(h, &forced, query, budget);
        return LODE_OK;
    case LODE_CHOOSER_SHADOW:
        *n = shadow_choose(h, forced.visible, budget);
        return LODE_OK;
    default:
        *n = choose_scored(h, &forced, policy->chunk, budget);
        return policy->kind == LODE_CHOOSER_TOP_P ? keep_top_p(h, &forced, n) : LODE_OK;
    }
}

static lode_status_t judge_choice(struct lode_frontier_head *h, const lode_chooser_t *policy, uint32_t query,
                                  uint32_t budget, bool follows, lode_outcome_t *found)
{
    const lode_frontier_trial_t *t = h->t;
    bool shadow = policy->kind == LODE_CHOOSER_SHADOW;
    forced_t forced = forced_of(h, query);
    uint64_t tokens = (uint64_t)(t->params->budgets[budget] * (double)forced.visible), n;
    LODE_TRY(choose(h, policy, query, tokens, &n));
    for (uint64_t i = 0; i < n; i++)
        found->mass += h->weight[query * t->tokens + h->chosen[i]];
    LODE_TRY(gather_logits(h, shadow, query, n));
    count_error(h, query, n, found);
    count_facts(h, query, n, found);
    count_fetched(h, &forced, shadow, budget, follows, n, found);
    found->count++;
    return LODE_OK;
}

/* Mean cosine of a query's heads to those of the one before. */
static double kinship(const struct lode_frontier_head *h, uint32_t query)
{
    const lode_frontier_trial_t *t = h->t;
    double sum = 0;
    for (uint32_t g = 0; g < t->group; g++) {
        const float *a = query_at(t, query, g), *b = query_at(t, query - 1, g);
        double ab = 0, aa = 0, bb = 0;
        for (uint32_t j = 0; j < t->dim; j++) {
            ab += (double)a[j] * b[j];
            aa += (double)a[j] * a[j];
            bb += (double)b[j] * b[j];
        }
        sum += ab / sqrt(aa * bb + 1e-300) / t->group;
    }
    return sum;
}

static void score(struct lode_frontier_head *h, lode_judge_h judge, const lode_chooser_t *policy, uint64_t stride,
                  uint32_t query, bool follows)
{
    const lode_frontier_trial_t *t = h->t;
    uint64_t visible = t->visible[query], n = (visible + policy->chunk - 1) / policy->chunk;
    if (policy->kind == LODE_CHOOSER_SHADOW) {
        shadow_score(h, query);
    } else if (policy->kind == LODE_CHOOSER_ORACLE) {
        for (uint32_t g = 0; g < h->rows; g++)
            t->ops->dot_rows(h->asked + ((size_t)query * h->rows + g) * t->dim, t->keys, (uint32_t)visible, t->dim,
                             h->scores + g * t->tokens);
        combine(h, h->scores, t->tokens, n, h->combined);
    } else if (judge) {
        bool old = policy->kind == LODE_CHOOSER_BEFORE && follows && kinship(h, query) >= t->params->kinship;
        lode_judge_score(judge, &policy->landmark, old ? query - 1 : query, h->scores);
        combine(h, h->scores, stride, n, h->combined);
    }
}

/* Keys of chunks: the mean of each. The last chunk may be short. */
static void average(struct lode_frontier_head *h, uint32_t chunk)
{
    const lode_frontier_trial_t *t = h->t;
    for (uint64_t first = 0, c = 0; first < t->tokens; first += chunk, c++) {
        uint64_t n = t->tokens - first < chunk ? t->tokens - first : chunk;
        float *mean = h->means + c * t->dim;
        memset(mean, 0, t->dim * sizeof *mean);
        for (uint64_t i = 0; i < n; i++)
            for (uint32_t j = 0; j < t->dim; j++)
                mean[j] += t->keys[(first + i) * t->dim + j] / (float)n;
    }
}

/* Landmarks of a policy that has some. Codes of chunks are codes of their means. @param[out] made  what judge borrows
 */
static lode_status_t make_judge(struct lode_frontier_head *h, const lode_chooser_t *policy, lode_trial_t *made,
                                lode_judge_h *judge)
{
    const lode_frontier_trial_t *t = h->t;
    bool means = policy->chunk > 1 && policy->landmark.chunk == 1;
    if (means)
        average(h, policy->chunk);
    *made = (lode_trial_t){.ops = t->ops,
                           .rope = t->params->source->geometry.rope,
                           .dim = t->dim,
                           .group = h->rows,
                           .tokens = means ? (t->tokens + policy->chunk - 1) / policy->chunk : t->tokens,
                           .keys = means ? h->means : t->keys,
                           .fitted = t->fitted,
                           .fit_queries = t->fit_queries,
                           .queries = t->queries,
                           .judged_queries = h->asked};
    LODE_TRY(lode_judge_create(made, judge));
    lode_status_t status = lode_judge_make(*judge, &policy->landmark);
    if (status != LODE_OK)
        lode_judge_destroy(judge);
    return status;
}

lode_status_t lode_frontier_head_judge(lode_frontier_head_h h, const lode_chooser_t *policy, lode_outcome_t *found)
{
    const lode_frontier_trial_t *t = h->t;
    lode_judge_h judge = NULL;
    lode_trial_t trial = {.tokens = t->tokens};
    lode_status_t status = LODE_OK;
    if (policy->kind == LODE_CHOOSER_LANDMARK || policy->kind == LODE_CHOOSER_DIGEST ||
        policy->kind == LODE_CHOOSER_BEFORE || policy->kind == LODE_CHOOSER_TOP_P)
        LODE_TRY(make_judge(h, policy, &trial, &judge));
    for (uint32_t query = 0; query < t->queries && status == LODE_OK; query++) {
        bool follows = query % t->params->steps > 0;
        score(h, judge, policy, trial.tokens, query, follows);
        for (uint32_t b = 0; b < lode_chooser_budgets(policy, t->params->budget_count) && status == LODE_OK; b++)
            status = judge_choice(h, policy, query, b, follows, &found[b]);
    }
    lode_judge_destroy(&judge);
    return status;
}

/* ------------------------------------------------------------------- a head */

void lode_frontier_head_destroy(lode_frontier_head_h *head)
{
    struct lode_frontier_head *h = *head;
    if (!h)
        return;
    void *const all[] = {h->asked, h->exact, h->lse,    h->weight,  h->dense, h->means,  h->scores, h->combined,
                         h->row,   h->wide,  h->logits, h->rebuilt, h->picks, h->chosen, h->before, h->marked};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(h);
    *head = NULL;
}

lode_status_t lode_frontier_head_create(const lode_frontier_trial_t *t, lode_frontier_head_h *head)
{
    struct lode_frontier_head *h = calloc(1, sizeof *h);
    if (!h)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a head");
    size_t n = t->tokens + 64, rows = (size_t)t->queries * t->group;
    h->t = t;
    h->rows = t->params->merge == LODE_MERGE_MAX ? t->group : 1;
    h->asked = malloc((size_t)t->queries * h->rows * t->dim * sizeof *h->asked);
    h->exact = malloc(rows * t->tokens * sizeof *h->exact);
    h->lse = malloc(rows * sizeof *h->lse);
    h->weight = malloc(t->queries * t->tokens * sizeof *h->weight);
    h->dense = malloc(rows * t->dim * sizeof *h->dense);
    h->means = malloc((t->tokens / 2 + 1) * t->dim * sizeof *h->means);
    h->scores = malloc(t->group * n * sizeof *h->scores);
    h->combined = malloc(n * sizeof *h->combined);
    h->row = malloc(n * sizeof *h->row);
    h->logits = malloc(t->group * n * sizeof *h->logits);
    h->wide = malloc(n * sizeof *h->wide);
    h->picks = malloc(n * sizeof *h->picks);
    h->chosen = malloc(n * sizeof *h->chosen);
    h->before = malloc(t->params->budget_count * n * sizeof *h->before);
    h->marked = malloc(n);
    if (!h->asked || !h->exact || !h->lse || !h->weight || !h->dense || !h->means || !h->scores || !h->combined ||
        !h->row || !h->logits || !h->wide || !h->picks || !h->chosen || !h->before || !h->marked) {
        lode_frontier_head_destroy(&h);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a head of %llu tokens", (unsigned long long)t->tokens);
    }
    ask(h);
    find_truth(h);
    *head = h;
    return LODE_OK;
}
