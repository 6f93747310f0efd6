/* SPDX-License-Identifier: Apache-2.0 */
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/rivals.h"

enum { PIECE = 512 }; /* tokens turned back and multiplied at once */

const lode_shadow_params_t lode_shadow_published = {.rank = 160, .chunk = 8, .outliers = 48, .local = 4};

struct lode_shadow {
    lode_shadow_params_t params;
    const lode_ops_t *ops;
    double frequencies[LODE_MAX_DIM / 2];
    uint32_t kv_heads, dim, width; /* width = kv_heads * dim */
    uint64_t tokens, chunks;
    int64_t *positions; /* (tokens) */
    uint64_t *begins;   /* (chunks + 1) */
    float *means;       /* (kv_heads, chunks, dim) */
    bool *outlier;      /* (kv_heads, chunks) */
    float *basis;       /* (rank, width) */
    float *low_rank;    /* (tokens, rank) */
};

static lode_status_t no_memory(void)
{
    return lode_fail(LODE_ERR_NO_MEMORY, "no memory for low-rank keys");
}

/* To the values that bf16 has. */
static void round_all(const struct lode_shadow *s, float *x, size_t n)
{
    uint16_t halves[PIECE];
    for (size_t first = 0; first < n; first += PIECE) {
        size_t count = n - first < PIECE ? n - first : PIECE;
        s->ops->narrow(LODE_BF16, x + first, halves, count);
        s->ops->widen(LODE_BF16, halves, x + first, count);
    }
}

/* -------------------------------------------------------------- turned back */

static void turn(const struct lode_shadow *s, float *rows, uint32_t n, int64_t by)
{
    float cosine[LODE_MAX_DIM / 2], sine[LODE_MAX_DIM / 2];
    lode_rope_angles(s->frequencies, s->dim, by, cosine, sine);
    s->ops->rotate(rows, n, s->dim, cosine, sine);
}

/* Rows of all heads before rotation. */
static void turn_back(const struct lode_shadow *s, const float *keys, uint64_t first, uint64_t n, float *rows)
{
    memcpy(rows, keys + first * s->width, n * s->width * sizeof *rows);
    for (uint64_t i = 0; i < n; i++)
        turn(s, rows + i * s->width, s->kv_heads, -s->positions[first + i]);
}

/* ------------------------------------------------------------------- basis */

/*
 * The sum of the rows' outer products, row-major. LAPACK's symmetric update into packed form is the one that LAPACKE
 * offers without a second interface for BLAS.
 */
static lode_status_t add_products(const struct lode_shadow *s, const float *keys, float *rows, double *sum)
{
    lapack_int width = (lapack_int)s->width;
    size_t packed = (size_t)s->width * (s->width + 1) / 2;
    double *exact = malloc(PIECE * (size_t)s->width * sizeof *exact), *triangle = calloc(packed, sizeof *triangle);
    lapack_int wrong = exact && triangle ? 0 : LAPACK_WORK_MEMORY_ERROR;
    for (uint64_t first = 0; first < s->tokens && !wrong; first += PIECE) {
        uint64_t n = s->tokens - first < PIECE ? s->tokens - first : PIECE;
        turn_back(s, keys, first, n, rows);
        for (size_t i = 0; i < n * s->width; i++)
            exact[i] = rows[i];
        /* in column order the piece is (width, n), and each column a token */
        wrong = LAPACKE_dsfrk(LAPACK_COL_MAJOR, 'N', 'L', 'N', width, (lapack_int)n, 1, exact, width, 1, triangle);
    }
    if (!wrong)
        wrong = LAPACKE_dtfttr(LAPACK_COL_MAJOR, 'N', 'L', width, triangle, sum, width);
    free(exact);
    free(triangle);
    return wrong ? lode_fail(LODE_ERR_INTERNAL, "the products of keys were not summed: LAPACK says %d", (int)wrong)
                 : LODE_OK;
}

/* The right singular vectors of the largest singular values are the eigenvectors of the products. */
static lode_status_t find_basis(struct lode_shadow *s, const float *keys, float *rows)
{
    lapack_int width = (lapack_int)s->width, rank = (lapack_int)s->params.rank, found;
    double *sum = calloc((size_t)s->width * s->width, sizeof *sum), *values = malloc(s->width * sizeof *values);
    double *vectors = malloc((size_t)s->width * s->params.rank * sizeof *vectors);
    lapack_int *support = malloc(2 * (size_t)s->width * sizeof *support);
    lode_status_t status = sum && values && vectors && support ? add_products(s, keys, rows, sum) : no_memory();
    if (status == LODE_OK && LAPACKE_dsyevr(LAPACK_COL_MAJOR, 'V', 'I', 'L', width, sum, width, 0, 0, width - rank + 1,
                                            width, 0, &found, values, vectors, width, support) != 0)
        status = lode_fail(LODE_ERR_INTERNAL, "the singular vectors of keys were not found");
    for (size_t i = 0; status == LODE_OK && i < (size_t)s->params.rank * s->width; i++)
        s->basis[i] = (float)vectors[i];
    if (status == LODE_OK)
        round_all(s, s->basis, (size_t)s->params.rank * s->width);
    free(sum);
    free(values);
    free(vectors);
    free(support);
    return status;
}

static void project(const struct lode_shadow *s, const float *row, float *out)
{
    for (uint32_t r = 0; r < s->params.rank; r++) {
        const float *axis = s->basis + (size_t)r * s->width;
        float sums[8] = {0};
        for (uint32_t i = 0; i < s->width; i += 8) /* a multiple of 64 */
            for (uint32_t j = 0; j < 8; j++)
                sums[j] += row[i + j] * axis[i + j];
        double sum = 0;
        for (uint32_t j = 0; j < 8; j++)
            sum += sums[j];
        out[r] = (float)sum;
    }
}

static lode_status_t make_low_rank(struct lode_shadow *s, const float *keys)
{
    float *rows = malloc(PIECE * (size_t)s->width * sizeof *rows);
    lode_status_t status = rows ? find_basis(s, keys, rows) : no_memory();
    for (uint64_t first = 0; first < s->tokens && status == LODE_OK; first += PIECE) {
        uint64_t n = s->tokens - first < PIECE ? s->tokens - first : PIECE;
        turn_back(s, keys, first, n, rows);
        for (uint64_t i = 0; i < n; i++)
            project(s, rows + i * s->width, s->low_rank + (first + i) * s->params.rank);
    }
    if (status == LODE_OK)
        round_all(s, s->low_rank, s->tokens * s->params.rank);
    free(rows);
    return status;
}

/* ------------------------------------------------------------------ chunks */

static double dot(const float *a, const double *b, uint32_t n)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += a[i] * b[i];
    return sum;
}

/* The mean of a chunk's keys, and the least cosine of one of them to it. */
static double look_at_chunk(const struct lode_shadow *s, const float *keys, uint64_t tokens, double *mean)
{
    double least = 1, length = 0;
    for (uint32_t i = 0; i < s->dim; i++) {
        mean[i] = 0;
        for (uint64_t t = 0; t < tokens; t++)
            mean[i] += keys[t * (size_t)s->width + i];
        mean[i] /= (double)tokens;
        length += mean[i] * mean[i];
    }
    for (uint64_t t = 0; t < tokens; t++) {
        const float *key = keys + t * (size_t)s->width;
        double own = 0;
        for (uint32_t i = 0; i < s->dim; i++)
            own += (double)key[i] * key[i];
        double scale = sqrt(own * length), cosine = scale > 0 ? dot(key, mean, s->dim) / scale : 0;
        least = cosine < least ? cosine : least;
    }
    return least;
}

/* The chunks with the least cosines; of equals the first. */
static void mark_outliers(const struct lode_shadow *s, double *cosines, bool *outlier)
{
    for (uint32_t n = 0; n < s->params.outliers; n++) {
        uint64_t least = 0;
        for (uint64_t c = 1; c < s->chunks; c++)
            least = cosines[c] < cosines[least] ? c : least;
        outlier[least] = true;
        cosines[least] = INFINITY;
    }
}

static lode_status_t make_chunks(struct lode_shadow *s, const float *keys)
{
    double mean[LODE_MAX_DIM], *cosines = malloc((s->chunks + 1) * sizeof *cosines);
    if (!cosines)
        return no_memory();
    for (uint32_t head = 0; head < s->kv_heads; head++) {
        for (uint64_t c = 0; c < s->chunks; c++) {
            float *out = s->means + (head * s->chunks + c) * s->dim;
            const float *first = keys + s->begins[c] * s->width + (size_t)head * s->dim;
            cosines[c] = look_at_chunk(s, first, s->begins[c + 1] - s->begins[c], mean);
            for (uint32_t i = 0; i < s->dim; i++)
                out[i] = (float)mean[i];
        }
        mark_outliers(s, cosines, s->outlier + head * s->chunks);
    }
    round_all(s, s->means, s->kv_heads * s->chunks * s->dim);
    free(cosines);
    return LODE_OK;
}

/* ------------------------------------------------------------------ shadow */

static uint64_t chunks_of(const lode_shadow_params_t *params, uint64_t tokens)
{
    uint64_t whole = tokens / params->chunk;
    return whole > params->local ? whole - params->local : 0;
}

/* The same for texts, whose last chunks may be shorter. */
static uint64_t chunks_in(const lode_shadow_params_t *params, const lode_shadow_place_t *place)
{
    uint64_t all = 0, begin = 0;
    for (uint32_t i = 0; i < place->texts; begin = place->ends[i++])
        all += (place->ends[i] - begin + params->chunk - 1) / params->chunk;
    return all > params->local ? all - params->local : 0;
}

static void lay_out(struct lode_shadow *s, const lode_shadow_place_t *place)
{
    uint64_t chunk = 0, at = 0;
    for (uint64_t t = 0; t < s->tokens; t++)
        s->positions[t] = place->positions ? place->positions[t] : (int64_t)t;
    for (uint32_t i = 0; place->ends && i < place->texts; at = place->ends[i++])
        for (uint64_t t = at; t < place->ends[i] && chunk <= s->chunks; t += s->params.chunk)
            s->begins[chunk++] = t;
    for (; chunk <= s->chunks; chunk++)
        s->begins[chunk] = place->ends ? s->tokens : chunk * s->params.chunk;
}

static lode_status_t check(const lode_shadow_params_t *p, uint32_t width, uint64_t tokens,
                           const lode_shadow_place_t *place)
{
    if (!p->rank || p->rank > width || p->rank > tokens)
        return lode_fail(LODE_ERR_INVALID, "keys of %llu tokens and %u coordinates have no rank of %u",
                         (unsigned long long)tokens, width, p->rank);
    if (place->ends && (!place->texts || place->ends[place->texts - 1] != tokens))
        return lode_fail(LODE_ERR_INVALID, "texts that end elsewhere than their %llu tokens",
                         (unsigned long long)tokens);
    if (!p->chunk || (place->ends ? chunks_in(p, place) : chunks_of(p, tokens)) < p->outliers)
        return lode_fail(LODE_ERR_INVALID, "%llu tokens have fewer than %u chunks of %u before the last %u",
                         (unsigned long long)tokens, p->outliers, p->chunk, p->local);
    return LODE_OK;
}

lode_status_t lode_shadow_create(const lode_shadow_params_t *params, const lode_ops_t *ops, const lode_rope_t *rope,
                                 uint32_t kv_heads, uint32_t dim, const float *keys, uint64_t tokens,
                                 const lode_shadow_place_t *place, lode_shadow_h *shadow)
{
    static const lode_shadow_place_t one = {NULL};
    place = place ? place : &one;
    LODE_TRY(check(params, kv_heads * dim, tokens, place));
    lode_shadow_h s = calloc(1, sizeof *s);
    if (!s)
        return no_memory();
    *s = (struct lode_shadow){.params = *params, .ops = ops, .kv_heads = kv_heads, .dim = dim, .tokens = tokens};
    s->width = kv_heads * dim;
    s->chunks = place->ends ? chunks_in(params, place) : chunks_of(params, tokens);
    s->positions = malloc(tokens * sizeof *s->positions);
    s->begins = malloc((s->chunks + 1) * sizeof *s->begins);
    s->means = malloc((s->chunks + 1) * s->width * sizeof *s->means);
    s->outlier = calloc((s->chunks + 1) * kv_heads, sizeof *s->outlier);
    s->basis = malloc((size_t)params->rank * s->width * sizeof *s->basis);
    s->low_rank = malloc(tokens * params->rank * sizeof *s->low_rank);
    bool room = s->positions && s->begins && s->means && s->outlier && s->basis && s->low_rank;
    if (room)
        lay_out(s, place);
    lode_status_t status = room ? lode_rope_frequencies(rope, dim, s->frequencies) : no_memory();
    if (status == LODE_OK)
        status = make_chunks(s, keys);
    if (status == LODE_OK)
        status = make_low_rank(s, keys);
    if (status == LODE_OK)
        *shadow = s;
    else
        lode_shadow_destroy(&s);
    return status;
}

void lode_shadow_destroy(lode_shadow_h *shadow)
{
    if (!*shadow)
        return;
    free((*shadow)->positions);
    free((*shadow)->begins);
    free((*shadow)->means);
    free((*shadow)->outlier);
    free((*shadow)->basis);
    free((*shadow)->low_rank);
    free(*shadow);
    *shadow = NULL;
}

uint64_t lode_shadow_chunks(const struct lode_shadow *s)
{
    return s->chunks;
}

uint64_t lode_shadow_begin(const struct lode_shadow *s, uint64_t chunk)
{
    return s->begins[chunk];
}

bool lode_shadow_is_outlier(const struct lode_shadow *s, uint32_t head, uint64_t chunk)
{
    return s->outlier[head * s->chunks + chunk];
}

void lode_shadow_score(const struct lode_shadow *s, uint32_t head, const float *query, float *scores)
{
    for (uint64_t c = 0; c < s->chunks; c++) {
        const float *mean = s->means + (head * s->chunks + c) * s->dim;
        double sum = 0;
        for (uint32_t i = 0; i < s->dim; i++)
            sum += (double)query[i] * mean[i];
        scores[c] = s->outlier[head * s->chunks + c] ? -INFINITY : (float)sum;
    }
}

void lode_shadow_rebuild(const struct lode_shadow *s, uint32_t head, const uint64_t *tokens, uint64_t n, float *out)
{
    memset(out, 0, n * s->dim * sizeof *out);
    for (uint64_t t = 0; t < n; t++) {
        const float *weights = s->low_rank + tokens[t] * s->params.rank;
        float *key = out + t * s->dim;
        for (uint32_t r = 0; r < s->params.rank; r++)
            for (uint32_t i = 0; i < s->dim; i++)
                key[i] += weights[r] * s->basis[(size_t)r * s->width + (size_t)head * s->dim + i];
        turn(s, key, 1, s->positions[tokens[t]]);
    }
}

lode_shadow_bytes_t lode_shadow_count_bytes(const lode_shadow_params_t *p, uint32_t kv_heads, uint32_t dim,
                                            uint64_t tokens)
{
    enum { BF16 = 2, K_AND_V = 2 };
    double width = (double)kv_heads * dim, n = (double)tokens, chunks = (double)chunks_of(p, tokens);
    double landmarks = chunks - p->outliers, resident = n - landmarks * p->chunk;
    return (lode_shadow_bytes_t){.means = landmarks * width * BF16 / n,
                                 .low_rank = p->rank * (double)BF16 * (1 + width / n),
                                 .residents = resident * width * BF16 * K_AND_V / n,
                                 .fetched = (uint64_t)dim * BF16};
}

/* ----------------------------------------------------------------- budgets */

typedef struct weighed {
    double weight;
    uint64_t token;
} weighed_t;

static int heaviest_first(const void *a, const void *b)
{
    const weighed_t *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight < y->weight ? 1 : -1;
    return (x->token > y->token) - (x->token < y->token);
}

lode_status_t lode_top_p(const float *scores, uint64_t n, double share, uint64_t *chosen, uint64_t *count)
{
    weighed_t *weighed = malloc((n + 1) * sizeof *weighed);
    double largest = -INFINITY, total = 0, sum = 0;
    if (!weighed)
        return no_memory();
    for (uint64_t i = 0; i < n; i++)
        largest = scores[i] > largest ? scores[i] : largest;
    for (uint64_t i = 0; i < n; i++) {
        weighed[i] = (weighed_t){scores[i] > -INFINITY ? exp(scores[i] - largest) : 0, i};
        total += weighed[i].weight;
    }
    qsort(weighed, n, sizeof *weighed, heaviest_first);
    *count = 0;
    while (*count < n && sum < share * total) {
        sum += weighed[*count].weight;
        chosen[*count] = weighed[*count].token;
        ++*count;
    }
    free(weighed);
    return LODE_OK;
}

/* Each token is taken with the chance that is left over the tokens that are left. */
void lode_by_chance(uint64_t seed, uint64_t n, uint64_t count, uint64_t *chosen)
{
    uint64_t taken = 0;
    for (uint64_t i = 0; i < n && taken < count; i++) {
        unsigned __int128 draw = (unsigned __int128)lode_mix(seed, i) * (n - i);
        if ((uint64_t)(draw >> 64) < count - taken)
            chosen[taken++] = i;
    }
}
