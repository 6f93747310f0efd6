/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/progress.h"
#include "bench/reference.h"
#include "bench/reference_inside.h"

/* ------------------------------------------------------------------- checks */

lode_status_t lode_check_create(const lode_geometry_t *geometry, lode_check_t *check)
{
    size_t heads = geometry->query_heads, elements = heads * geometry->head_dim;
    lode_check_t made = *check;
    made.chosen = calloc(geometry->kv_heads, sizeof *made.chosen);
    made.chosen_count = calloc(geometry->kv_heads, sizeof *made.chosen_count);
    made.docs_out = calloc(elements, sizeof(double));
    made.out = calloc(elements, sizeof(double));
    made.found = calloc(heads, sizeof(double));
    made.oracle = calloc(heads, sizeof(double));
    *check = made;
    if (made.chosen && made.chosen_count && made.docs_out && made.out && made.found && made.oracle)
        return LODE_OK;
    lode_check_free(geometry, check);
    return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the reference of a step");
}

void lode_check_free(const lode_geometry_t *geometry, lode_check_t *check)
{
    for (uint32_t head = 0; check->chosen && head < geometry->kv_heads; head++)
        free(check->chosen[head]);
    free(check->chosen);
    free(check->chosen_count);
    free(check->docs_out);
    free(check->out);
    free(check->found);
    free(check->oracle);
    memset(check, 0, sizeof *check);
}

/* ------------------------------------------------------------------- memory */

static void free_work(lode_reference_work_t *w)
{
    free(w->first_piece);
    free(w->freq);
    free(w->turned);
    free(w->logits);
    free(w->extra);
    free(w->maximum);
    free(w->sum);
    free(w->docs_lse);
    free(w->lse);
    free(w->scores);
    free(w->k);
    free(w->v);
    free(w->rows);
}

static uint64_t count_pieces(const lode_source_t *source, uint32_t *first_piece)
{
    uint64_t pieces = 0;
    for (uint32_t b = 0; b < source->blocks; b++) {
        first_piece[b] = (uint32_t)pieces;
        pieces += (source->starts[b + 1] - source->starts[b] + LODE_PIECE - 1) / LODE_PIECE;
    }
    first_piece[source->blocks] = (uint32_t)pieces;
    return pieces;
}

/* Memory for a turn of at most `limit` checks, each with at most `extra` written tokens. */
static lode_status_t take_work(const lode_reference_params_t *params, size_t limit, uint64_t extra,
                               lode_reference_work_t *w)
{
    const lode_geometry_t *g = &params->source->geometry;
    size_t heads = g->query_heads, dim = g->head_dim, piece = (size_t)LODE_PIECE * g->kv_heads * dim;
    w->extra_stride = extra;
    w->turned = malloc(limit * heads * dim * sizeof(double));
    w->logits = calloc(limit * heads * w->local + 1, sizeof(double)); /* a piece may be short: its holes are zero */
    w->extra = malloc(limit * heads * extra * sizeof(double) + 8);
    w->maximum = malloc(limit * heads * sizeof(double));
    w->sum = malloc(limit * heads * sizeof(double));
    w->docs_lse = malloc(limit * heads * sizeof(double));
    w->lse = malloc(limit * heads * sizeof(double));
    w->scores = malloc(g->kv_heads * (w->local + extra) * sizeof(double) + 8);
    w->k = malloc(piece * sizeof(float));
    w->v = malloc(piece * sizeof(float));
    w->rows = malloc(2 * LODE_PIECE * dim * sizeof(double));
    w->freq = malloc(dim / 2 * sizeof(double));
    if (!w->turned || !w->logits || !w->extra || !w->maximum || !w->sum || !w->docs_lse || !w->lse || !w->scores ||
        !w->k || !w->v || !w->rows || !w->freq)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu MiB of reference logits",
                         limit * heads * w->local * sizeof(double) >> 20);
    return lode_rope_frequencies(&g->rope, g->head_dim, w->freq);
}

/* -------------------------------------------------------------------- dense */

/* Eight sums, so that the compiler may use vectors without changing the order of any of them. */
static double dot(const double *a, const double *b, uint32_t n)
{
    double sum[8] = {0};
    for (uint32_t i = 0; i < n; i += 8)
        for (int j = 0; j < 8; j++)
            sum[j] += a[i + j] * b[i + j];
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

/* All query heads of a check, turned to the frame of a block at `offset` and scaled by 1/√D. */
static void turn_query(const lode_reference_work_t *w, const lode_check_t *check, uint64_t offset, double *turned)
{
    const lode_geometry_t *g = &w->params->source->geometry;
    uint32_t dim = g->head_dim, half = dim / 2;
    double scale = 1 / sqrt(dim);
    for (uint32_t i = 0; i < half; i++) {
        double c = cos((double)offset * w->freq[i]) * scale, s = -sin((double)offset * w->freq[i]) * scale;
        for (uint32_t head = 0; head < g->query_heads; head++) {
            double a = check->q[head * dim + i], b = check->q[head * dim + i + half];
            turned[head * dim + i] = a * c - b * s;
            turned[head * dim + i + half] = a * s + b * c;
        }
    }
}

/* Attend one query head over n tokens with logits given, into the running (maximum, sum, out). */
static void absorb(const double *logits, const double *values, uint64_t n, uint32_t dim, double *maximum, double *sum,
                   double *out)
{
    double top = *maximum;
    for (uint64_t t = 0; t < n; t++)
        top = logits[t] > top ? logits[t] : top;
    if (top == -INFINITY)
        return;
    double keep = exp(*maximum - top);
    *maximum = top;
    *sum *= keep;
    for (uint32_t i = 0; i < dim; i++)
        out[i] *= keep;
    for (uint64_t t = 0; t < n; t++) {
        double p = exp(logits[t] - top);
        *sum += p;
        for (uint32_t i = 0; i < dim; i++)
            out[i] += p * values[t * dim + i];
    }
}

/* The rows of one head of a piece as doubles: keys, then values. */
static void take_head(const lode_reference_work_t *w, uint32_t head, uint64_t n)
{
    const lode_geometry_t *g = &w->params->source->geometry;
    uint32_t dim = g->head_dim;
    double *keys = w->rows, *values = w->rows + (size_t)LODE_PIECE * dim;
    for (uint64_t t = 0; t < n; t++) {
        for (uint32_t i = 0; i < dim; i++) {
            keys[t * dim + i] = w->k[(t * g->kv_heads + head) * dim + i];
            values[t * dim + i] = w->v[(t * g->kv_heads + head) * dim + i];
        }
    }
}

/* Attend all checks of a layer over one piece; logits of check c, head h go to rows + (c·Hq + h)·stride. */
static void attend_piece(lode_reference_work_t *w, lode_check_t *checks, size_t n, uint32_t layer, uint64_t tokens,
                         uint64_t view_first, double *rows, size_t stride)
{
    const lode_geometry_t *g = &w->params->source->geometry;
    uint32_t dim = g->head_dim, group = g->query_heads / g->kv_heads;
    const double *keys = w->rows, *values = w->rows + (size_t)LODE_PIECE * dim;
    for (uint32_t head = 0; head < g->query_heads; head++) {
        if (head % group == 0)
            take_head(w, head / group, tokens);
        for (size_t c = 0; c < n; c++) {
            if (checks[c].layer != layer)
                continue;
            size_t at = c * g->query_heads + head;
            const double *q = w->turned + at * dim;
            double *logits = rows + at * stride;
            for (uint64_t t = 0; t < tokens; t++)
                logits[t] = (int64_t)(view_first + t) <= checks[c].position ? dot(q, keys + t * dim, dim) : -INFINITY;
            absorb(logits, values, tokens, dim, &w->maximum[at], &w->sum[at], checks[c].docs_out + head * dim);
        }
    }
}

static bool has_layer(const lode_check_t *checks, size_t n, uint32_t layer)
{
    for (size_t c = 0; c < n; c++)
        if (checks[c].layer == layer)
            return true;
    return false;
}

/* This rank's pieces of one layer. */
static void attend_layer(lode_reference_work_t *w, lode_check_t *checks, size_t n, uint32_t layer)
{
    const lode_source_t *source = w->params->source;
    const lode_geometry_t *g = &source->geometry;
    uint32_t block = UINT32_MAX, ranks = w->params->job.ranks;
    for (uint64_t piece = w->params->job.rank; piece < w->pieces; piece += ranks) {
        uint32_t b = block == UINT32_MAX ? 0 : block;
        while (piece >= w->first_piece[b + 1])
            b++;
        if (b != block) {
            block = b;
            for (size_t c = 0; c < n; c++)
                turn_query(w, &checks[c], source->starts[b], w->turned + c * g->query_heads * g->head_dim);
        }
        uint64_t first = (piece - w->first_piece[b]) * LODE_PIECE;
        uint64_t left = source->starts[b + 1] - source->starts[b] - first,
                 tokens = left < LODE_PIECE ? left : LODE_PIECE;
        lode_source_tokens(source, b, layer, first, tokens, w->k, w->v);
        attend_piece(w, checks, n, layer, tokens, source->starts[b] + first, w->logits + piece / ranks * LODE_PIECE,
                     w->local);
        lode_progress_at(&w->progress, w->done++);
    }
}

/* Ranks' parts to one: the same on every rank. */
static void merge_ranks(lode_reference_work_t *w, lode_check_t *checks, size_t n)
{
    const lode_geometry_t *g = &w->params->source->geometry;
    uint32_t dim = g->head_dim;
    for (size_t c = 0; c < n; c++) {
        double *maximum = w->maximum + c * g->query_heads, *sum = w->sum + c * g->query_heads;
        double *top = w->docs_lse + c * g->query_heads;
        lode_job_max(&w->params->job, maximum, top, g->query_heads);
        for (uint32_t h = 0; h < g->query_heads; h++) {
            double keep = exp(maximum[h] - top[h]);
            sum[h] *= keep;
            for (uint32_t i = 0; i < dim; i++)
                checks[c].docs_out[h * dim + i] *= keep;
        }
        lode_job_sum(&w->params->job, sum, g->query_heads);
        lode_job_sum(&w->params->job, checks[c].docs_out, (size_t)g->query_heads * dim);
        for (uint32_t h = 0; h < g->query_heads; h++) {
            for (uint32_t i = 0; i < dim; i++)
                checks[c].docs_out[h * dim + i] /= sum[h];
            top[h] += log(sum[h]);
        }
    }
}

/* The tokens that the stream has written itself, behind the documents: few, so every rank does them all. */
static void add_written(lode_reference_work_t *w, lode_check_t *check, size_t c)
{
    const lode_source_t *source = w->params->source;
    const lode_geometry_t *g = &source->geometry;
    uint32_t dim = g->head_dim, group = g->query_heads / g->kv_heads;
    uint64_t total = lode_source_total(source);
    memcpy(check->out, check->docs_out, (size_t)g->query_heads * dim * sizeof(double));
    double *lse = w->lse + c * g->query_heads, *turned = w->turned;
    memcpy(lse, w->docs_lse + c * g->query_heads, g->query_heads * sizeof(double));
    turn_query(w, check, total, turned);
    for (uint64_t first = 0; first < check->written; first += LODE_PIECE) {
        uint64_t left = check->written - first, tokens = left < LODE_PIECE ? left : LODE_PIECE;
        lode_source_tokens(source, check->writer, check->layer, first, tokens, w->k, w->v);
        for (uint32_t h = 0; h < g->query_heads; h++) {
            if (h % group == 0)
                take_head(w, h / group, tokens);
            double *logits = w->extra + (c * g->query_heads + h) * w->extra_stride + first, sum = 1;
            for (uint64_t t = 0; t < tokens; t++)
                logits[t] = dot(turned + h * dim, w->rows + t * dim, dim);
            absorb(logits, w->rows + (size_t)LODE_PIECE * dim, tokens, dim, &lse[h], &sum, check->out + h * dim);
            for (uint32_t i = 0; i < dim; i++)
                check->out[h * dim + i] /= sum;
            lse[h] += log(sum);
        }
    }
}

static void run_turn(lode_reference_work_t *w, lode_check_t *checks, size_t n)
{
    const lode_geometry_t *g = &w->params->source->geometry;
    for (size_t i = 0; i < n * g->query_heads; i++) {
        w->maximum[i] = -INFINITY;
        w->sum[i] = 0;
    }
    for (uint32_t layer = 0; layer < g->layers; layer++)
        if (has_layer(checks, n, layer))
            attend_layer(w, checks, n, layer);
    merge_ranks(w, checks, n);
    for (size_t c = 0; c < n; c++) {
        add_written(w, &checks[c], c);
        lode_mass_found(w, &checks[c], c);
        lode_mass_oracle(w, &checks[c], c);
    }
}

lode_status_t lode_reference_run(const lode_reference_params_t *params, lode_check_t *checks, size_t n)
{
    const lode_source_t *source = params->source;
    if (!n)
        return LODE_OK;
    lode_reference_work_t w = {.params = params};
    w.first_piece = malloc((source->blocks + 1) * sizeof *w.first_piece);
    lode_status_t status = LODE_OK;
    size_t limit = n;
    if (!w.first_piece) {
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u blocks", source->blocks);
    } else {
        w.pieces = count_pieces(source, w.first_piece);
        w.local = (w.pieces + params->job.ranks - 1) / params->job.ranks * LODE_PIECE;
        size_t each = source->geometry.query_heads * w.local * sizeof(double);
        limit = params->memory / each < 1 ? 1 : params->memory / each;
        limit = limit < n ? limit : n;
        uint64_t extra = 0;
        for (size_t c = 0; c < n; c++)
            extra = checks[c].written > extra ? checks[c].written : extra;
        status = take_work(params, limit, extra, &w);
    }
    status = lode_job_agree(status);
    if (status == LODE_OK) {
        size_t turns = (n + limit - 1) / limit;
        lode_progress_begin(&w.progress, "reference in double", turns * w.local / LODE_PIECE);
        for (size_t begin = 0; begin < n; begin += limit)
            run_turn(&w, checks + begin, n - begin < limit ? n - begin : limit);
        lode_progress_end(&w.progress);
    }
    free_work(&w);
    return status;
}
