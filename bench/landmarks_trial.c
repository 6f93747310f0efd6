/* SPDX-License-Identifier: Apache-2.0 */
/* One KV head: keys quantised in many ways, and the softmax mass that each finds. */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/balance.h"
#include "bench/landmarks.h"

enum { FIT_KEYS = 8192, PAGE = 32, MIXED_MOST = 6 };

const double lode_landmark_budgets[LODE_BUDGETS] = {0.01, 0.03125};

const lode_contestant_t lode_contestants[] = {
    {"exact keys", LODE_FORM_EXACT, 0, 0, 32, 1, 0, 0},
    {"HIGGS 2 bit, uncentred (paper)", LODE_FORM_HIGGS, LODE_CENTRE_NONE, LODE_TURN_HADAMARD, 2, 1, 0, 0},
    {"HIGGS 2 bit, centred", LODE_FORM_HIGGS, LODE_CENTRE_BLOCK, LODE_TURN_HADAMARD, 2, 1, 0, 0},
    {"2 bit, Hadamard", LODE_FORM_UNIFORM, LODE_CENTRE_BLOCK, LODE_TURN_HADAMARD, 2, 1, 0, 0},
    {"1 bit, Hadamard", LODE_FORM_UNIFORM, LODE_CENTRE_BLOCK, LODE_TURN_HADAMARD, 1, 1, 0, 0},
    {"4 bit, Hadamard", LODE_FORM_UNIFORM, LODE_CENTRE_BLOCK, LODE_TURN_HADAMARD, 4, 1, 0, 0},
    {"2 bit, channel scale, no Hadamard", LODE_FORM_UNIFORM, LODE_CENTRE_BLOCK, LODE_TURN_SCALE, 2, 1, 0, 0},
    {"2 bit, diagonal balance", LODE_FORM_UNIFORM, LODE_CENTRE_BLOCK, LODE_TURN_DIAGONAL, 2, 1, 0, 0},
    {"2 bit, balance", LODE_FORM_UNIFORM, LODE_CENTRE_BLOCK, LODE_TURN_BALANCE, 2, 1, 0, 0},
    {"1 bit, balance", LODE_FORM_UNIFORM, LODE_CENTRE_BLOCK, LODE_TURN_BALANCE, 1, 1, 0, 0},
    {"4 bit, balance", LODE_FORM_UNIFORM, LODE_CENTRE_BLOCK, LODE_TURN_BALANCE, 4, 1, 0, 0},
    {"HIGGS 2 bit, balance", LODE_FORM_HIGGS, LODE_CENTRE_BLOCK, LODE_TURN_BALANCE, 2, 1, 0, 0},
    {"1 bit, then 2 bit over 2 budgets", LODE_FORM_RERANK, LODE_CENTRE_BLOCK, LODE_TURN_BALANCE, 1, 1, 2, 2},
    {"1 bit, then 4 bit over 2 budgets", LODE_FORM_RERANK, LODE_CENTRE_BLOCK, LODE_TURN_BALANCE, 1, 1, 4, 2},
    {"2 bit, then 4 bit over 2 budgets", LODE_FORM_RERANK, LODE_CENTRE_BLOCK, LODE_TURN_BALANCE, 2, 1, 4, 2},
    {"1.5 bit: means of 4 and rest, balance", LODE_FORM_RESIDUAL, LODE_CENTRE_BLOCK, LODE_TURN_BALANCE, 1, 1, 2, 0},
    {"2 bit as 4 of half the axes", LODE_FORM_HALF, LODE_CENTRE_BLOCK, LODE_TURN_PRINCIPAL, 2, 1, 0, 0},
    {"1 bit as 2 of half the axes", LODE_FORM_HALF, LODE_CENTRE_BLOCK, LODE_TURN_PRINCIPAL, 1, 1, 0, 0},
    {"2 bit by axis, balance", LODE_FORM_MIXED, LODE_CENTRE_BLOCK, LODE_TURN_PRINCIPAL, 2, 1, 0, 0},
    {"1 bit by axis, balance", LODE_FORM_MIXED, LODE_CENTRE_BLOCK, LODE_TURN_PRINCIPAL, 1, 1, 0, 0},
    {"2 bit, centred before rotation", LODE_FORM_UNIFORM, LODE_CENTRE_ROTARY, LODE_TURN_HADAMARD, 2, 1, 0, 0},
    {"2 bit, the same, balance", LODE_FORM_UNIFORM, LODE_CENTRE_ROTARY, LODE_TURN_BALANCE, 2, 1, 0, 0},
    {"means of 8 (ShadowKV)", LODE_FORM_MEANS, 0, 0, 16, 8, 0, 0},
    {"min and max of 16 (Quest)", LODE_FORM_BOX, 0, 0, 16, 16, 0, 0},
    {"min and max of 32 (Quest)", LODE_FORM_BOX, 0, 0, 16, 32, 0, 0},
    {"cuboid of 32 (ArkVale)", LODE_FORM_CUBOID, 0, 0, 16, 32, 0, 0},
    {"means of 32", LODE_FORM_MEANS, 0, 0, 16, 32, 0, 0},
    {NULL},
};

static bool turned(const lode_contestant_t *c)
{
    return c->form == LODE_FORM_UNIFORM || c->form == LODE_FORM_HIGGS || c->form == LODE_FORM_MIXED ||
           c->form == LODE_FORM_RERANK || c->form == LODE_FORM_HALF || c->form == LODE_FORM_RESIDUAL;
}

double lode_contestant_bytes(const lode_contestant_t *c, uint32_t dim)
{
    switch (c->form) {
    case LODE_FORM_EXACT:
        return 4.0 * dim;
    case LODE_FORM_MEANS:
        return 2.0 * dim / c->chunk;
    case LODE_FORM_BOX:
    case LODE_FORM_CUBOID:
        return 4.0 * dim / c->chunk;
    case LODE_FORM_RESIDUAL:
        return c->bits * dim / 8.0 + 2 + (c->second * dim / 8.0 + 2) / LODE_RESIDUAL_TOKENS;
    default:
        return (c->bits + c->second) * dim / 8.0 + (c->second ? 4 : 2);
    }
}

/* ------------------------------------------------------------------ a bench */

/** Working memory of one trial, and what was made last. */
typedef struct lode_judge {
    const lode_trial_t *t;
    lode_centre_t centre;
    lode_turn_t turn;
    bool made;
    float *centred, *projected; /* (tokens, dim) */
    float *mean, *moved;        /* (dim); (tokens, dim): the rotated mean of each token */
    float *turn_keys, *turn_queries, *diagonal;
    double axis[LODE_MAX_DIM]; /* PRINCIPAL: size of an axis, of keys and queries alike */
    double *p, *q, *a, *b, *work;
    uint8_t *rows, *tiles[2];
    float *exact, *weight; /* (queries, group, tokens); (queries, tokens): mean softmax over the group */
    float *scores, *second, *row, *chosen_row;
    float *scratch;
    uint32_t *picks, *tokens;
    uint8_t *best;        /* (tokens) marks of the few best */
    uint32_t *best_pages; /* (queries, group) */
} bench_t;

static void bench_free(bench_t *b)
{
    void *const all[] = {b->centred,  b->projected, b->mean,   b->moved,     b->turn_keys,  b->turn_queries,
                         b->diagonal, b->p,         b->rows,   b->tiles[0],  b->tiles[1],   b->exact,
                         b->weight,   b->scores,    b->second, b->row,       b->chosen_row, b->scratch,
                         b->picks,    b->tokens,    b->best,   b->best_pages};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void *room(size_t bytes)
{
    return aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
}

static lode_status_t bench_create(const lode_trial_t *t, bench_t *b)
{
    const lode_landmark_spec_t widest = {LODE_LANDMARK_UNIFORM, 8, 1, 1}, table = {LODE_LANDMARK_HIGGS, 4, 1, 1};
    size_t n = t->tokens, dim = t->dim, keys = n * dim * sizeof(float), square = dim * dim;
    size_t row = n * sizeof(float), tiles = (n / LODE_TILE + 1) * lode_landmark_tile_bytes(&widest, t->dim);
    *b = (bench_t){.t = t};
    void **const all[] = {
        (void **)&b->centred,    (void **)&b->projected,    (void **)&b->mean,     (void **)&b->moved,
        (void **)&b->turn_keys,  (void **)&b->turn_queries, (void **)&b->diagonal, (void **)&b->p,
        (void **)&b->rows,       (void **)&b->tiles[0],     (void **)&b->tiles[1], (void **)&b->exact,
        (void **)&b->weight,     (void **)&b->scores,       (void **)&b->second,   (void **)&b->row,
        (void **)&b->chosen_row, (void **)&b->scratch,      (void **)&b->picks,    (void **)&b->tokens,
        (void **)&b->best,       (void **)&b->best_pages};
    const size_t bytes[] = {keys,
                            keys,
                            dim * sizeof(float),
                            keys,
                            square * sizeof(float),
                            square * sizeof(float),
                            dim * sizeof(float),
                            8 * square * sizeof(double),
                            tiles,
                            tiles,
                            tiles,
                            t->queries * t->group * row,
                            t->queries * row,
                            t->group * row,
                            t->group * row,
                            row,
                            row,
                            lode_score_scratch_floats(&table, t->dim, t->group) * sizeof(float),
                            row,
                            row + (t->sinks + t->window + PAGE) * sizeof(uint32_t),
                            n,
                            (size_t)t->queries * t->group * sizeof(uint32_t)};
    bool enough = true;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        *all[i] = room(bytes[i]);
        enough = enough && *all[i];
    }
    b->q = b->p + square;
    b->a = b->p + 2 * square;
    b->b = b->p + 3 * square;
    b->work = b->p + 4 * square;
    if (enough)
        return LODE_OK;
    bench_free(b);
    return lode_fail(LODE_ERR_NO_MEMORY, "no memory to judge landmarks of %llu tokens", (unsigned long long)t->tokens);
}

static const float *query_at(const lode_trial_t *t, uint32_t query, uint32_t g)
{
    return t->judged_queries + ((size_t)query * t->group + g) * t->dim;
}

/* ------------------------------------------------------------------ centres */

static void mean_of(const lode_trial_t *t, const float *keys, float *mean)
{
    double sum[LODE_MAX_DIM] = {0};
    for (uint64_t i = 0; i < t->tokens; i++)
        for (uint32_t j = 0; j < t->dim; j++)
            sum[j] += keys[i * t->dim + j];
    for (uint32_t j = 0; j < t->dim; j++)
        mean[j] = (float)(sum[j] / (double)t->tokens);
}

/* The mean before rotation is the mean of keys turned back; moved holds it turned to each token. */
static lode_status_t move_mean(bench_t *b)
{
    const lode_trial_t *t = b->t;
    double freq[LODE_MAX_DIM / 2];
    float cosine[LODE_MAX_DIM / 2], sine[LODE_MAX_DIM / 2];
    LODE_TRY(lode_rope_frequencies(&t->rope, t->dim, freq));
    memcpy(b->moved, t->keys, t->tokens * t->dim * sizeof(float));
    for (uint64_t i = 0; i < t->tokens; i++) {
        lode_rope_angles(freq, t->dim, -(t->positions ? t->positions[i] : (int64_t)i), cosine, sine);
        t->ops->rotate(b->moved + i * t->dim, 1, t->dim, cosine, sine);
    }
    mean_of(t, b->moved, b->mean);
    for (uint64_t i = 0; i < t->tokens; i++) {
        memcpy(b->moved + i * t->dim, b->mean, t->dim * sizeof(float));
        lode_rope_angles(freq, t->dim, t->positions ? t->positions[i] : (int64_t)i, cosine, sine);
        t->ops->rotate(b->moved + i * t->dim, 1, t->dim, cosine, sine);
    }
    return LODE_OK;
}

static lode_status_t make_centre(bench_t *b, lode_centre_t centre)
{
    const lode_trial_t *t = b->t;
    memcpy(b->centred, t->keys, t->tokens * t->dim * sizeof(float));
    memset(b->mean, 0, t->dim * sizeof(float));
    if (centre == LODE_CENTRE_ROTARY)
        LODE_TRY(move_mean(b));
    else if (centre == LODE_CENTRE_BLOCK)
        mean_of(t, t->keys, b->mean);
    for (uint64_t i = 0; i < t->tokens; i++) {
        const float *off = centre == LODE_CENTRE_ROTARY ? b->moved + i * t->dim : b->mean;
        for (uint32_t j = 0; j < t->dim; j++)
            b->centred[i * t->dim + j] -= off[j];
    }
    return LODE_OK;
}

/* -------------------------------------------------------------------- turns */

/* Lower triangles of sums to covariances of keys and second moments of queries. */
static void covariances(bench_t *b)
{
    const lode_trial_t *t = b->t;
    size_t square = (size_t)t->dim * t->dim;
    uint64_t n = t->tokens < FIT_KEYS ? t->tokens : FIT_KEYS;
    memset(b->work, 0, 2 * square * sizeof *b->work);
    for (uint64_t i = 0; i < n; i++)
        lode_outer_add(b->work, b->centred + i * t->tokens / n * t->dim, t->dim);
    for (uint64_t i = 0; i < t->fitted; i++)
        lode_outer_add(b->work + square, t->fit_queries + i * t->dim, t->dim);
    lode_covariance(b->work, n, t->dim, b->p);
    lode_covariance(b->work + square, t->fitted, t->dim, b->q);
    lode_shrink(b->q, t->dim);
}

static lode_status_t make_matrices(bench_t *b, lode_turn_t turn)
{
    const lode_trial_t *t = b->t;
    size_t square = (size_t)t->dim * t->dim;
    LODE_TRY(lode_balance(b->p, b->q, t->dim, b->work, b->a));
    memcpy(b->b, b->a, square * sizeof *b->b);
    LODE_TRY(lode_matrix_power(b->b, t->dim, -1));
    if (turn == LODE_TURN_PRINCIPAL) {
        double *moment = b->work, *half = b->work + square;
        lode_balance_product(b->a, b->p, t->dim, half);
        lode_balance_product(half, b->a, t->dim, moment);
        LODE_TRY(lode_matrix_vectors(moment, t->dim, b->axis));
        lode_balance_product(b->a, moment, t->dim, half);
        memcpy(b->a, half, square * sizeof *half);
        lode_balance_product(b->b, moment, t->dim, half);
        memcpy(b->b, half, square * sizeof *half);
    }
    for (size_t i = 0; i < square; i++) {
        b->turn_keys[i] = (float)b->a[i];
        b->turn_queries[i] = (float)b->b[i];
    }
    if (turn == LODE_TURN_BALANCE) {
        t->ops->hadamard(b->turn_keys, t->dim, t->dim);
        t->ops->hadamard(b->turn_queries, t->dim, t->dim);
    }
    return LODE_OK;
}

/* What keys are multiplied with, a channel; queries are divided by it. */
static void make_diagonal(bench_t *b, lode_turn_t turn)
{
    uint32_t dim = b->t->dim;
    for (uint32_t i = 0; i < dim; i++) {
        double keys = b->p[(size_t)i * dim + i], queries = b->q[(size_t)i * dim + i];
        b->diagonal[i] = (float)(turn == LODE_TURN_SCALE ? 1 / sqrt(keys) : sqrt(sqrt(queries / keys)));
    }
}

static void turn_rows(const bench_t *b, bool queries, float *x, uint64_t n)
{
    const lode_ops_t *ops = b->t->ops;
    uint32_t dim = b->t->dim;
    for (uint64_t i = 0; i < n && (b->turn == LODE_TURN_SCALE || b->turn == LODE_TURN_DIAGONAL); i++)
        for (uint32_t j = 0; j < dim; j++)
            x[i * dim + j] *= queries ? 1 / b->diagonal[j] : b->diagonal[j];
    for (uint64_t i = 0; i < n; i += LODE_PAGE_TOKENS) {
        uint32_t some = n - i < LODE_PAGE_TOKENS ? (uint32_t)(n - i) : LODE_PAGE_TOKENS;
        if (b->turn == LODE_TURN_HADAMARD || b->turn == LODE_TURN_DIAGONAL)
            ops->hadamard(x + i * dim, some, dim);
        else if (b->turn != LODE_TURN_SCALE)
            ops->project(queries ? b->turn_queries : b->turn_keys, dim, x + i * dim, some);
    }
}

/* Keys centred and turned as asked, unless they are already. */
static lode_status_t prepare(bench_t *b, lode_centre_t centre, lode_turn_t turn)
{
    const lode_trial_t *t = b->t;
    if (b->made && b->centre == centre && b->turn == turn)
        return LODE_OK;
    if (!b->made || b->centre != centre) {
        LODE_TRY(make_centre(b, centre));
        covariances(b);
    }
    b->made = true;
    b->centre = centre;
    b->turn = turn;
    if (turn == LODE_TURN_BALANCE || turn == LODE_TURN_PRINCIPAL)
        LODE_TRY(make_matrices(b, turn));
    else
        make_diagonal(b, turn);
    memcpy(b->projected, b->centred, t->tokens * t->dim * sizeof(float));
    turn_rows(b, false, b->projected, t->tokens);
    return LODE_OK;
}

/* -------------------------------------------------------------------- forms */

/* Scores of one query: (group, tokens). The mean's share is added here. */
static void add_centre(const bench_t *b, uint32_t query, float *scores)
{
    const lode_trial_t *t = b->t;
    for (uint32_t g = 0; g < t->group && b->centre == LODE_CENTRE_ROTARY; g++) {
        t->ops->dot_rows(query_at(t, query, g), b->moved, (uint32_t)t->tokens, t->dim, b->row);
        for (uint64_t i = 0; i < t->tokens; i++)
            scores[g * t->tokens + i] += b->row[i];
    }
}

static lode_landmark_spec_t spec_of(const lode_contestant_t *c, uint32_t bits)
{
    bits *= c->form == LODE_FORM_HALF ? 2 : 1;
    return (lode_landmark_spec_t){c->form == LODE_FORM_HIGGS ? LODE_LANDMARK_HIGGS : LODE_LANDMARK_UNIFORM, bits, 1,
                                  c->centre == LODE_CENTRE_BLOCK};
}

static void encode(bench_t *b, const lode_landmark_spec_t *spec, const float *x, uint64_t n, uint8_t *tiles)
{
    const lode_trial_t *t = b->t;
    memset(tiles, 0, (n / LODE_TILE + 1) * lode_landmark_tile_bytes(spec, t->dim));
    t->ops->landmark_quantise(spec, t->dim, x, n, b->rows);
    t->ops->landmark_place(spec, t->dim, b->rows, n, tiles, 0);
}

static uint64_t residual_groups(const lode_trial_t *t)
{
    return (t->tokens + LODE_RESIDUAL_TOKENS - 1) / LODE_RESIDUAL_TOKENS;
}

/* Means go to tiles[1], what their codes leave of each key to tiles[0]. */
static void encode_residual(bench_t *b, const lode_landmark_spec_t *rest, const lode_landmark_spec_t *mean)
{
    const lode_trial_t *t = b->t;
    uint64_t groups = residual_groups(t);
    float *means = b->centred;
    memset(means, 0, groups * t->dim * sizeof *means);
    for (uint64_t i = 0; i < t->tokens; i++) {
        uint64_t group = i / LODE_RESIDUAL_TOKENS, left = t->tokens - group * LODE_RESIDUAL_TOKENS;
        float share = 1 / (float)(left < LODE_RESIDUAL_TOKENS ? left : LODE_RESIDUAL_TOKENS);
        for (uint32_t j = 0; j < t->dim; j++)
            means[group * t->dim + j] += share * b->projected[i * t->dim + j];
    }
    encode(b, mean, means, groups, b->tiles[1]);
    for (uint64_t i = 0; i < groups; i++)
        lode_landmark_decode(mean, t->dim, b->rows + i * lode_landmark_row_bytes(mean, t->dim), means + i * t->dim);
    for (uint64_t i = 0; i < t->tokens; i++)
        for (uint32_t j = 0; j < t->dim; j++)
            b->projected[i * t->dim + j] -= means[i / LODE_RESIDUAL_TOKENS * t->dim + j];
    encode(b, rest, b->projected, t->tokens, b->tiles[0]);
    b->made = false; /* they are no keys any more */
}

/* Of n codes of turned keys, or of their means. */
static void score_codes(bench_t *b, const lode_landmark_spec_t *spec, const uint8_t *tiles, uint64_t n, bool centred,
                        uint32_t query, float *scores)
{
    const lode_trial_t *t = b->t;
    lode_landmark_query_t prepared[LODE_MAX_GROUP];
    _Alignas(64) float x[LODE_MAX_DIM];
    for (uint32_t g = 0; g < t->group; g++) {
        float bias = 0;
        const float *q = query_at(t, query, g);
        memcpy(x, q, t->dim * sizeof *x);
        if (centred && b->centre == LODE_CENTRE_BLOCK)
            t->ops->dot_rows(b->mean, q, 1, t->dim, &bias);
        turn_rows(b, true, x, 1);
        t->ops->query_prepare(spec, t->dim, x, bias, &prepared[g]);
    }
    t->ops->landmark_score(spec, t->dim, tiles, n, prepared, t->group, scores, t->tokens, b->scratch);
    if (centred)
        add_centre(b, query, scores);
}

static void score_residual(bench_t *b, const lode_landmark_spec_t *rest, const lode_landmark_spec_t *mean,
                           uint32_t query, float *scores)
{
    const lode_trial_t *t = b->t;
    score_codes(b, rest, b->tiles[0], t->tokens, true, query, scores);
    score_codes(b, mean, b->tiles[1], residual_groups(t), false, query, b->second);
    for (uint32_t g = 0; g < t->group; g++)
        for (uint64_t i = 0; i < t->tokens; i++)
            scores[g * t->tokens + i] += b->second[g * t->tokens + i / LODE_RESIDUAL_TOKENS];
}

/* The larger half of the axes of n rows, Hadamard-transformed, as rows of half the length. */
static void take_half(const bench_t *b, const float *x, uint64_t n, float *out)
{
    uint32_t dim = b->t->dim, half = dim / 2;
    for (uint64_t i = 0; i < n; i++) {
        memcpy(out + i * half, x + i * dim + half, half * sizeof *out);
        b->t->ops->hadamard(out + i * half, 1, half);
    }
}

static void encode_half(bench_t *b, const lode_landmark_spec_t *spec)
{
    const lode_trial_t *t = b->t;
    take_half(b, b->projected, t->tokens, b->moved);
    memset(b->tiles[0], 0, (t->tokens / LODE_TILE + 1) * lode_landmark_tile_bytes(spec, t->dim / 2));
    t->ops->landmark_quantise(spec, t->dim / 2, b->moved, t->tokens, b->rows);
    t->ops->landmark_place(spec, t->dim / 2, b->rows, t->tokens, b->tiles[0], 0);
}

static void score_half(bench_t *b, const lode_landmark_spec_t *spec, uint32_t query, float *scores)
{
    const lode_trial_t *t = b->t;
    lode_landmark_query_t prepared[LODE_MAX_GROUP];
    _Alignas(64) float x[LODE_MAX_DIM], taken[LODE_MAX_DIM];
    for (uint32_t g = 0; g < t->group; g++) {
        float bias = 0;
        memcpy(x, query_at(t, query, g), t->dim * sizeof *x);
        t->ops->dot_rows(b->mean, x, 1, t->dim, &bias);
        turn_rows(b, true, x, 1);
        take_half(b, x, 1, taken);
        t->ops->query_prepare(spec, t->dim / 2, taken, bias, &prepared[g]);
    }
    t->ops->landmark_score(spec, t->dim / 2, b->tiles[0], t->tokens, prepared, t->group, scores, t->tokens, b->scratch);
}

/* Bits of each axis, `average` on average: the next bit goes where it takes most of the scores' error away. An axis's
 * share of the error is its size squared, since queries are of the same size, times what its bits leave over. */
static void allot(const bench_t *b, uint32_t average, uint32_t *bits)
{
    static const double left[MIXED_MOST + 1] = {1, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.00104};
    uint32_t dim = b->t->dim;
    memset(bits, 0, dim * sizeof *bits);
    for (uint32_t given = 0; given < average * dim; given++) {
        uint32_t best = 0;
        double most = -1;
        for (uint32_t i = 0; i < dim; i++) {
            double gain = bits[i] < MIXED_MOST ? b->axis[i] * b->axis[i] * (left[bits[i]] - left[bits[i] + 1]) : -1;
            if (gain > most) {
                most = gain;
                best = i;
            }
        }
        bits[best]++;
    }
}

/* b->projected becomes what its codes say; a row's scale makes its product with the key exact, as in the library. */
static void quantise_mixed(bench_t *b, uint32_t average)
{
    static const double step[MIXED_MOST + 1] = {0, 1.596, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041};
    const lode_trial_t *t = b->t;
    uint32_t bits[LODE_MAX_DIM];
    allot(b, average, bits);
    for (uint64_t i = 0; i < t->tokens; i++) {
        float *x = b->projected + i * t->dim, coded[LODE_MAX_DIM];
        double own = 0, with = 0;
        for (uint32_t j = 0; j < t->dim; j++) {
            double width = step[bits[j]] * sqrt(b->axis[j]), most = (1u << bits[j]) / 2.0;
            double code = bits[j] ? fmin(fmax(floor(x[j] / width), -most), most - 1) + 0.5 : 0;
            coded[j] = (float)(code * width);
            own += bits[j] ? x[j] * x[j] : 0;
            with += x[j] * coded[j];
        }
        for (uint32_t j = 0; j < t->dim; j++)
            x[j] = with > 0 ? (float)(coded[j] * own / with) : 0;
    }
    b->made = false; /* they are no keys any more */
}

static void score_floats(bench_t *b, uint32_t query, float *scores)
{
    const lode_trial_t *t = b->t;
    float x[LODE_MAX_DIM], bias = 0;
    for (uint32_t g = 0; g < t->group; g++) {
        const float *q = query_at(t, query, g);
        float *out = scores + g * t->tokens;
        memcpy(x, q, t->dim * sizeof *x);
        turn_rows(b, true, x, 1);
        t->ops->dot_rows(x, b->projected, (uint32_t)t->tokens, t->dim, out);
        t->ops->dot_rows(b->mean, q, 1, t->dim, &bias);
        for (uint64_t i = 0; i < t->tokens && b->centre == LODE_CENTRE_BLOCK; i++)
            out[i] += bias;
    }
}

/* Centre and half width of one chunk's channel: b->centred, b->projected. */
static void digest_channel(const float *keys, uint32_t dim, uint32_t n, lode_form_t form, float *middle, float *half)
{
    float low = keys[0], high = keys[0], sum = 0, apart = 0;
    for (uint32_t i = 0; i < n; i++) {
        float x = keys[(size_t)i * dim];
        low = fminf(low, x);
        high = fmaxf(high, x);
        sum += x;
    }
    float centre = (low + high) / 2;
    for (uint32_t i = 0; i < n; i++)
        apart += fabsf(keys[(size_t)i * dim] - centre) / (float)n;
    if (form == LODE_FORM_CUBOID) {
        low = centre - apart;
        high = centre + apart;
    }
    *middle = form == LODE_FORM_MEANS ? lode_to_bf16(sum / (float)n) : (lode_to_bf16(low) + lode_to_bf16(high)) / 2;
    *half = form == LODE_FORM_MEANS ? 0 : (lode_to_bf16(high) - lode_to_bf16(low)) / 2;
}

static void digest(bench_t *b, const lode_contestant_t *c)
{
    const lode_trial_t *t = b->t;
    for (uint64_t first = 0, i = 0; first < t->tokens; first += c->chunk, i++) {
        uint32_t n = t->tokens - first < c->chunk ? (uint32_t)(t->tokens - first) : c->chunk;
        for (uint32_t j = 0; j < t->dim; j++)
            digest_channel(t->keys + first * t->dim + j, t->dim, n, c->form, b->centred + i * t->dim + j,
                           b->projected + i * t->dim + j);
    }
    b->made = false;
}

static void score_digests(bench_t *b, const lode_contestant_t *c, uint32_t query, float *scores)
{
    const lode_trial_t *t = b->t;
    uint32_t chunks = (uint32_t)((t->tokens + c->chunk - 1) / c->chunk);
    float x[LODE_MAX_DIM];
    for (uint32_t g = 0; g < t->group; g++) {
        const float *q = query_at(t, query, g);
        float *out = scores + g * t->tokens;
        for (uint32_t j = 0; j < t->dim; j++)
            x[j] = fabsf(q[j]);
        t->ops->dot_rows(q, b->centred, chunks, t->dim, out);
        t->ops->dot_rows(x, b->projected, chunks, t->dim, b->row);
        for (uint32_t i = 0; i < chunks && c->form != LODE_FORM_MEANS; i++)
            out[i] += b->row[i];
    }
}

static lode_status_t make(bench_t *b, const lode_contestant_t *c)
{
    if (turned(c))
        LODE_TRY(prepare(b, c->centre, c->turn));
    lode_landmark_spec_t first = spec_of(c, c->bits), second = spec_of(c, c->second);
    if (c->form == LODE_FORM_UNIFORM || c->form == LODE_FORM_HIGGS || c->form == LODE_FORM_RERANK)
        encode(b, &first, b->projected, b->t->tokens, b->tiles[0]);
    if (c->form == LODE_FORM_RERANK)
        encode(b, &second, b->projected, b->t->tokens, b->tiles[1]);
    if (c->form == LODE_FORM_RESIDUAL)
        encode_residual(b, &first, &second);
    if (c->form == LODE_FORM_HALF)
        encode_half(b, &first);
    if (c->form == LODE_FORM_MIXED)
        quantise_mixed(b, c->bits);
    if (c->form == LODE_FORM_MEANS || c->form == LODE_FORM_BOX || c->form == LODE_FORM_CUBOID)
        digest(b, c);
    return LODE_OK;
}

static void score(bench_t *b, const lode_contestant_t *c, uint32_t query, float *scores, float *again)
{
    const lode_trial_t *t = b->t;
    lode_landmark_spec_t first = spec_of(c, c->bits), second = spec_of(c, c->second);
    if (c->form == LODE_FORM_EXACT)
        memcpy(scores, b->exact + (size_t)query * t->group * t->tokens, t->group * t->tokens * sizeof *scores);
    else if (c->form == LODE_FORM_MIXED)
        score_floats(b, query, scores);
    else if (c->form == LODE_FORM_HALF)
        score_half(b, &first, query, scores);
    else if (c->form == LODE_FORM_RESIDUAL)
        score_residual(b, &first, &second, query, scores);
    else if (turned(c))
        score_codes(b, &first, b->tiles[0], t->tokens, true, query, scores);
    else
        score_digests(b, c, query, scores);
    if (c->form == LODE_FORM_RERANK)
        score_codes(b, &second, b->tiles[1], t->tokens, true, query, again);
}

lode_status_t lode_judge_create(const lode_trial_t *trial, lode_judge_h *judge)
{
    assert(trial->group <= LODE_MAX_GROUP);
    bench_t *made = malloc(sizeof *made);
    lode_status_t status = made ? bench_create(trial, made) : lode_fail(LODE_ERR_NO_MEMORY, "no memory to judge");
    if (status == LODE_OK)
        *judge = made;
    else
        free(made);
    return status;
}

void lode_judge_destroy(lode_judge_h *judge)
{
    if (*judge)
        bench_free(*judge);
    free(*judge);
    *judge = NULL;
}

lode_status_t lode_judge_make(lode_judge_h judge, const lode_contestant_t *contestant)
{
    assert(contestant->form != LODE_FORM_EXACT && contestant->form != LODE_FORM_RERANK);
    return make(judge, contestant);
}

void lode_judge_score(lode_judge_h judge, const lode_contestant_t *contestant, uint32_t query, float *scores)
{
    score(judge, contestant, query, scores, NULL);
}

/* ------------------------------------------------------------------ judging */

static uint64_t chunks_of(uint64_t tokens, uint32_t chunk)
{
    return (tokens + chunk - 1) / chunk;
}

/* Choose `budget` tokens by a row of scores, which stays. @return how many were chosen, in b->tokens. */
static uint64_t choose(bench_t *b, const lode_contestant_t *c, uint64_t visible, const float *row, uint64_t budget,
                       bool forced)
{
    const lode_trial_t *t = b->t;
    lode_piece_t piece = {visible, chunks_of(visible, c->chunk), 0};
    lode_choice_t choice = {.pieces = &piece,
                            .piece_count = 1,
                            .chunk = c->chunk,
                            .group = 1,
                            .merge = LODE_MERGE_MAX,
                            .budget = budget,
                            .sinks = forced ? t->sinks : 0,
                            .window_begin = forced && visible > t->window ? visible - t->window : visible};
    memcpy(b->chosen_row, row, piece.landmarks * sizeof *row);
    return lode_choose(t->ops, &choice, b->chosen_row, t->tokens, b->picks, b->tokens);
}

/* Row 0 of scores becomes the group's; shifts come from other scores if those are given. */
static void combine(const bench_t *b, float *scores, uint64_t n, float *shift, bool given)
{
    const lode_trial_t *t = b->t;
    for (uint32_t g = 0; g < t->group && !given; g++)
        shift[g] = t->ops->logsumexp(scores + g * t->tokens, n);
    t->ops->group_max(scores, t->tokens, shift, t->group, scores, n);
}

/* Of a re-rank only the best of the first scores compete, by the second. */
static const float *compete(bench_t *b, const lode_contestant_t *c, uint64_t n, uint64_t budget)
{
    if (c->form != LODE_FORM_RERANK)
        return b->scores;
    size_t kept = b->t->ops->topk(b->scores, n, budget * c->widen, b->picks);
    for (uint64_t i = 0; i < n; i++)
        b->row[i] = -INFINITY;
    for (size_t i = 0; i < kept; i++)
        b->row[b->picks[i]] = b->second[b->picks[i]];
    return b->row;
}

/* The page of the greatest score but the first page, which has the sinks. */
static uint32_t best_page(const float *scores, uint64_t visible, uint32_t chunk)
{
    uint64_t n = chunks_of(visible, chunk), best = PAGE / chunk;
    for (uint64_t i = best; i < n; i++)
        best = scores[i] > scores[best] ? i : best;
    return (uint32_t)(best * chunk / PAGE);
}

static void judge_query(bench_t *b, const lode_contestant_t *c, uint32_t query, lode_found_t *found)
{
    const lode_trial_t *t = b->t;
    uint64_t visible = t->visible[query], n = chunks_of(visible, c->chunk), chosen;
    float shift[LODE_MAX_GROUP];
    score(b, c, query, b->scores, b->second);
    for (uint32_t g = 0; g < t->group; g++)
        found->top_page +=
            (best_page(b->scores + g * t->tokens, visible, c->chunk) == b->best_pages[query * t->group + g]) /
            (double)t->group;
    combine(b, b->scores, n, shift, false);
    if (c->form == LODE_FORM_RERANK)
        combine(b, b->second, n, shift, true);
    for (int i = 0; i < LODE_BUDGETS; i++) {
        uint64_t budget = (uint64_t)(lode_landmark_budgets[i] * (double)visible);
        double mass = 0;
        chosen = choose(b, c, visible, compete(b, c, n, budget), budget, true);
        for (uint64_t j = 0; j < chosen; j++)
            mass += b->weight[query * t->tokens + b->tokens[j]];
        found->mass[i] += mass;
    }
    uint32_t hits = 0;
    chosen = choose(b, c, visible, compete(b, c, n, t->few), t->few, false);
    for (uint64_t j = 0; j < chosen; j++)
        hits += b->best[b->tokens[j]] >> query % 8 & 1;
    found->recall += (double)hits / t->few;
    found->count++;
}

/* Exact logits, softmax, the few best tokens and the best pages of each query. */
static void find_truth(bench_t *b)
{
    const lode_trial_t *t = b->t;
    memset(b->best, 0, t->tokens);
    memset(b->weight, 0, t->queries * t->tokens * sizeof *b->weight);
    for (uint32_t query = 0; query < t->queries; query++) {
        uint64_t visible = t->visible[query];
        float shift[LODE_MAX_GROUP];
        for (uint32_t g = 0; g < t->group; g++) {
            float *logits = b->exact + ((size_t)query * t->group + g) * t->tokens;
            t->ops->dot_rows(query_at(t, query, g), t->keys, (uint32_t)t->tokens, t->dim, logits);
            shift[g] = t->ops->logsumexp(logits, visible);
            for (uint64_t i = 0; i < visible; i++)
                b->weight[query * t->tokens + i] += expf(logits[i] - shift[g]) / (float)t->group;
            b->best_pages[query * t->group + g] = best_page(logits, visible, 1);
        }
        memcpy(b->scores, b->exact + (size_t)query * t->group * t->tokens, t->group * t->tokens * sizeof(float));
        combine(b, b->scores, visible, shift, true);
        size_t count = t->ops->topk(b->scores, visible, t->few, b->picks);
        for (size_t i = 0; i < count; i++)
            b->best[b->picks[i]] |= (uint8_t)(1u << query % 8);
    }
}

lode_status_t lode_trial_run(const lode_trial_t *trial, lode_found_t *found)
{
    bench_t b;
    assert(trial->queries <= 8 && trial->group <= LODE_MAX_GROUP);
    LODE_TRY(bench_create(trial, &b));
    lode_status_t status = LODE_OK;
    find_truth(&b);
    for (const lode_contestant_t *c = lode_contestants; c->name && status == LODE_OK; c++) {
        if (!(trial->wanted >> (c - lode_contestants) & 1) || (c->form == LODE_FORM_HALF && trial->dim < 128))
            continue;
        status = make(&b, c);
        for (uint32_t query = 0; query < trial->queries && status == LODE_OK; query++)
            judge_query(&b, c, query, &found[c - lode_contestants]);
    }
    bench_free(&b);
    return status;
}
