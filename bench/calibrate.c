/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `lodemark calibrate`: the transform in front of the quantiser, from what a model really asked and stored.
 *
 * A landmark's rounding error is spread evenly over the coordinates of the transformed key. A query meets that error
 * weighted by the transformed query. With keys through A and queries through A⁻ᵀ products stay exact, and the error is
 * least where A P Aᵀ = A⁻ᵀ Q A⁻¹: transformed keys and queries vary alike (P, Q: covariance of keys about their mean,
 * second moment of queries). AᵀA = P⁻¹ # Q, the geometric mean of the two, solves it. A Hadamard transform behind it
 * evens out what is left between coordinates; both are stored as one matrix.
 *
 * For each head what is kept is judged on queries that the matrices were not made from: by the error of the scores of
 * quantised keys. Hadamard alone, the balance of the diagonals and the full balance compete.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/balance.h"
#include "bench/bench.h"
#include "bench/job.h"
#include "bench/progress.h"
#include "bench/source.h"
#include "landmarks/landmarks.h"
#include "landmarks/transform.h"

/** Keys of a capture that covariances are taken over, evenly spread; and keys that the judgement scores. */
enum { KEYS_MOST = 16384, JUDGED_KEYS = 2048, JUDGED_QUERIES = 64 };

static const lode_option_t calibrate_options[] = {
    {"out", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "file to write; wanted"},
    {"bits", "2", LODE_OPTION_CHOICE, "8|4|2|1", 0, 0, "bits of the landmarks that heads are judged by"},
    {"json", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print the result of each head as one JSON object"},
    {"help", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print this"},
    {NULL},
};

/** What captures have shown of one head. */
typedef struct seen {
    double *keys, *queries; /**< sums of outer products (D, D) */
    uint64_t key_count, query_count;
    float *kept_keys, *kept_queries; /**< (n, D) to judge by: keys minus their mean; queries left out of the sums */
    uint32_t kept_key_count, kept_query_count;
} seen_t;

typedef struct calibration {
    const lode_ops_t *ops;
    lode_landmark_spec_t spec;
    uint32_t layers, heads, group, dim;
    double theta;
    seen_t *seen; /**< (layers, heads) */
    lode_transform_t *transform;
    json_t *report;
    uint32_t balanced;
    double error_before, error_after; /**< mean over heads */
} calibration_t;

static seen_t *seen_at(const calibration_t *c, uint32_t layer, uint32_t head)
{
    return &c->seen[(size_t)layer * c->heads + head];
}

/* ------------------------------------------------------------------ looking */

static lode_status_t calibration_create(const lode_source_t *source, calibration_t *c)
{
    const lode_geometry_t *g = &source->geometry;
    c->layers = g->layers;
    c->heads = g->kv_heads;
    c->group = g->query_heads / g->kv_heads;
    c->dim = g->head_dim;
    c->theta = g->rope.theta;
    c->seen = calloc((size_t)c->layers * c->heads, sizeof *c->seen);
    bool enough = c->seen;
    for (size_t i = 0; enough && i < (size_t)c->layers * c->heads; i++) {
        seen_t *s = &c->seen[i];
        s->keys = calloc((size_t)c->dim * c->dim, sizeof *s->keys);
        s->queries = calloc((size_t)c->dim * c->dim, sizeof *s->queries);
        s->kept_keys = malloc((size_t)JUDGED_KEYS * c->dim * sizeof(float));
        s->kept_queries = malloc((size_t)JUDGED_QUERIES * c->dim * sizeof(float));
        enough = s->keys && s->queries && s->kept_keys && s->kept_queries;
    }
    if (!enough)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for covariances of %u layers", c->layers);
    return lode_transform_create(c->layers, c->heads, c->dim, &c->transform);
}

static void calibration_free(calibration_t *c)
{
    for (size_t i = 0; c->seen && i < (size_t)c->layers * c->heads; i++) {
        free(c->seen[i].keys);
        free(c->seen[i].queries);
        free(c->seen[i].kept_keys);
        free(c->seen[i].kept_queries);
    }
    free(c->seen);
    lode_transform_destroy(&c->transform);
    json_decref(c->report);
}

static lode_status_t check_same_model(const calibration_t *c, const lode_source_t *source)
{
    const lode_geometry_t *g = &source->geometry;
    if (g->layers == c->layers && g->kv_heads == c->heads && g->head_dim == c->dim &&
        g->query_heads == c->heads * c->group && g->rope.theta == c->theta)
        return LODE_OK;
    return lode_fail(LODE_ERR_GEOMETRY,
                     "it is of another model than the first capture: %u layers, %u and %u heads of %u", g->layers,
                     g->query_heads, g->kv_heads, g->head_dim);
}

/* Keys of a layer, evenly spread, (n, heads, dim); the mean that a block would subtract comes off. */
static void look_at_keys(calibration_t *c, const lode_source_t *source, uint32_t layer, float *k, float *v)
{
    uint64_t tokens = source->starts[1], n = tokens < KEYS_MOST ? tokens : KEYS_MOST;
    size_t width = (size_t)c->heads * c->dim;
    for (uint64_t i = 0; i < n; i++)
        lode_source_tokens(source, 0, layer, i * tokens / n, 1, k + i * width, v);
    float mean[LODE_MAX_DIM], x[LODE_MAX_DIM];
    for (uint32_t head = 0; head < c->heads; head++) {
        seen_t *s = seen_at(c, layer, head);
        double sum[LODE_MAX_DIM] = {0};
        for (uint64_t i = 0; i < n; i++)
            for (uint32_t j = 0; j < c->dim; j++)
                sum[j] += k[i * width + head * c->dim + j];
        for (uint32_t j = 0; j < c->dim; j++)
            mean[j] = (float)(sum[j] / (double)n);
        for (uint64_t i = 0; i < n; i++) {
            for (uint32_t j = 0; j < c->dim; j++)
                x[j] = k[i * width + head * c->dim + j] - mean[j];
            lode_outer_add(s->keys, x, c->dim);
            if (i % (n / JUDGED_KEYS + 1) == 0 && s->kept_key_count < JUDGED_KEYS)
                memcpy(s->kept_keys + (size_t)c->dim * s->kept_key_count++, x, c->dim * sizeof *x);
        }
        s->key_count += n;
    }
}

/* The last quarter of the queries is left out of the sums, to judge by: neighbours resemble each other too much. */
static void look_at_queries(calibration_t *c, const lode_source_t *source, uint32_t layer, float *q)
{
    uint64_t every = source->capture.queries / 4 * c->group / JUDGED_QUERIES + 1;
    for (uint64_t number = 0; number < source->capture.queries; number++) {
        lode_source_query(source, layer, number, q);
        for (uint32_t h = 0; h < c->heads * c->group; h++) {
            seen_t *s = seen_at(c, layer, h / c->group);
            const float *x = q + (size_t)h * c->dim;
            if (number < source->capture.queries - source->capture.queries / 4) {
                lode_outer_add(s->queries, x, c->dim);
                s->query_count++;
            } else if (s->kept_query_count < JUDGED_QUERIES && number % every == 0) {
                memcpy(s->kept_queries + (size_t)c->dim * s->kept_query_count++, x, c->dim * sizeof *x);
            }
        }
    }
}

static lode_status_t look(calibration_t *c, const char *path)
{
    lode_source_t source;
    LODE_TRY(lode_source_capture(path, &source));
    lode_status_t status = c->seen ? check_same_model(c, &source) : calibration_create(&source, c);
    size_t width = (size_t)source.geometry.kv_heads * source.geometry.head_dim;
    uint64_t n = source.starts[1] < KEYS_MOST ? source.starts[1] : KEYS_MOST;
    float *k = malloc(n * width * sizeof *k), *v = malloc(width * sizeof *v);
    float *q = malloc((size_t)source.geometry.query_heads * source.geometry.head_dim * sizeof *q);
    if (status == LODE_OK && source.capture.queries < 4)
        status = lode_fail(LODE_ERR_INVALID, "it has %" PRIu64 " queries; the least is 4, some hundreds are better",
                           source.capture.queries);
    if (status == LODE_OK && !(k && v && q))
        status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for keys and queries");
    lode_progress_t progress;
    lode_progress_begin(&progress, "look at keys", source.geometry.layers);
    for (uint32_t layer = 0; layer < source.geometry.layers && status == LODE_OK; layer++) {
        look_at_keys(c, &source, layer, k, v);
        look_at_queries(c, &source, layer, q);
        lode_progress_at(&progress, layer + 1);
    }
    lode_progress_end(&progress);
    free(k);
    free(v);
    free(q);
    lode_source_close(&source);
    return status == LODE_OK ? LODE_OK : lode_fail_within(status, "capture %s: ", path);
}

/* ---------------------------------------------------------------- judgement */

/* Matrix rows are images of unit vectors: a symmetric matrix's rows, Hadamard-transformed. */
static void store_with_hadamard(const calibration_t *c, const double *matrix, float *out)
{
    for (size_t i = 0; i < (size_t)c->dim * c->dim; i++)
        out[i] = (float)matrix[i];
    c->ops->hadamard(out, c->dim, c->dim);
}

static void identity(uint32_t n, double *out)
{
    memset(out, 0, (size_t)n * n * sizeof *out);
    for (uint32_t i = 0; i < n; i++)
        out[(size_t)i * n + i] = 1;
}

/**
 * How far scores of quantised keys are from exact ones, on queries left out: the mean over queries of the scores' mean
 * squared error over their variance. work: as many floats as kept keys and queries have, twice the keys.
 */
static double judge(const calibration_t *c, const seen_t *s, const float *keys_matrix, const float *queries_matrix,
                    float *work, uint8_t *rows)
{
    uint32_t dim = c->dim, n = s->kept_key_count, page = LODE_PAGE_TOKENS;
    size_t row_bytes = lode_landmark_row_bytes(&c->spec, dim), tile_bytes = lode_landmark_tile_bytes(&c->spec, dim);
    float *keys = work, *scores = work + (size_t)n * dim, query[LODE_MAX_DIM];
    uint8_t *tiles = rows + (n * row_bytes + 63) / 64 * 64;
    memcpy(keys, s->kept_keys, (size_t)n * dim * sizeof *keys);
    for (uint32_t i = 0; i < n; i += page)
        c->ops->project(keys_matrix, dim, keys + (size_t)i * dim, n - i < page ? n - i : page);
    memset(tiles, 0, (n / LODE_TILE + 1) * tile_bytes);
    c->ops->landmark_quantise(&c->spec, dim, keys, n, rows);
    c->ops->landmark_place(&c->spec, dim, rows, n, tiles, 0);
    double total = 0;
    for (uint32_t i = 0; i < s->kept_query_count; i++) {
        lode_landmark_query_t prepared;
        const float *q = s->kept_queries + (size_t)i * dim;
        memcpy(query, q, dim * sizeof *query);
        c->ops->project(queries_matrix, dim, query, 1);
        c->ops->query_prepare(&c->spec, dim, query, 0, &prepared);
        c->ops->landmark_score(&c->spec, dim, tiles, n, &prepared, 1, scores, n, NULL);
        double error = 0, sum = 0, squares = 0;
        for (uint32_t t = 0; t < n; t++) {
            double right = 0;
            for (uint32_t j = 0; j < dim; j++)
                right += (double)q[j] * s->kept_keys[(size_t)t * dim + j];
            error += (scores[t] - right) * (scores[t] - right);
            sum += right;
            squares += right * right;
        }
        double variance = squares - sum * sum / n;
        total += variance > 0 ? error / variance : 0;
    }
    return s->kept_query_count ? total / s->kept_query_count : 0;
}

typedef struct room {
    double *p, *q, *a, *b, *work;
    float *tried, *floats; /* tried: matrices of keys and of queries */
    uint8_t *rows;
} room_t;

static lode_status_t room_create(const calibration_t *c, room_t *room)
{
    size_t square = (size_t)c->dim * c->dim;
    *room = (room_t){
        .p = malloc(7 * square * sizeof(double)),
        .tried = malloc(2 * square * sizeof(float)),
        .floats = malloc((size_t)JUDGED_KEYS * (c->dim + 1) * sizeof(float)),
        .rows = aligned_alloc(64, 2 * (JUDGED_KEYS / LODE_TILE + 1) * lode_landmark_tile_bytes(&c->spec, c->dim))};
    if (!room->p || !room->tried || !room->floats || !room->rows)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory to calibrate");
    room->q = room->p + square;
    room->a = room->p + 2 * square;
    room->b = room->p + 3 * square;
    room->work = room->p + 4 * square;
    return LODE_OK;
}

static void room_free(room_t *room)
{
    free(room->p);
    free(room->tried);
    free(room->floats);
    free(room->rows);
}

/* w² = rms(q)/rms(k) a channel: the balance of the diagonals alone. */
static void diagonal_balance(const room_t *room, uint32_t dim, double *keys, double *queries)
{
    memset(keys, 0, (size_t)dim * dim * sizeof *keys);
    memset(queries, 0, (size_t)dim * dim * sizeof *queries);
    for (size_t i = 0; i < (size_t)dim * dim; i += dim + 1) {
        keys[i] = pow(room->q[i] / room->p[i], 0.25);
        queries[i] = 1 / keys[i];
    }
}

/* Keep the pair of matrices in room->a and room->b if scores have less error with it than with what is kept. */
static bool try_pair(calibration_t *c, uint32_t layer, uint32_t head, room_t *room, double *least, double *error)
{
    size_t square = (size_t)c->dim * c->dim;
    float *tried = room->tried;
    store_with_hadamard(c, room->a, tried);
    store_with_hadamard(c, room->b, tried + square);
    *error = judge(c, seen_at(c, layer, head), tried, tried + square, room->floats, room->rows);
    if (*error >= *least)
        return false;
    *least = *error;
    memcpy(lode_transform_keys(c->transform, layer, head), tried, square * sizeof *tried);
    memcpy(lode_transform_queries(c->transform, layer, head), tried + square, square * sizeof *tried);
    return true;
}

static lode_status_t calibrate_head(calibration_t *c, uint32_t layer, uint32_t head, room_t *room)
{
    const seen_t *s = seen_at(c, layer, head);
    uint32_t dim = c->dim;
    size_t square = (size_t)dim * dim;
    double least = INFINITY, before, diagonal, after;
    const char *kept = "hadamard";
    lode_covariance(s->keys, s->key_count, dim, room->p);
    lode_covariance(s->queries, s->query_count, dim, room->q);
    lode_shrink(room->q, dim);
    identity(dim, room->a);
    identity(dim, room->b);
    try_pair(c, layer, head, room, &least, &before);
    diagonal_balance(room, dim, room->a, room->b);
    if (try_pair(c, layer, head, room, &least, &diagonal))
        kept = "diagonal";
    LODE_TRY(lode_balance(room->p, room->q, dim, room->work, room->a));
    memcpy(room->b, room->a, square * sizeof *room->b);
    LODE_TRY(lode_matrix_power(room->b, dim, -1));
    if (try_pair(c, layer, head, room, &least, &after))
        kept = "balance";
    c->balanced += strcmp(kept, "hadamard") != 0;
    c->error_before += before / (c->layers * c->heads);
    c->error_after += least / (c->layers * c->heads);
    json_array_append_new(c->report, json_pack("{s:i s:i s:f s:f s:f s:s}", "layer", (int)layer, "kv_head", (int)head,
                                               "error_hadamard", before, "error_diagonal", diagonal, "error_balance",
                                               after, "kept", kept));
    return LODE_OK;
}

static lode_status_t calibrate_heads(calibration_t *c)
{
    room_t room = {0};
    lode_status_t status = room_create(c, &room);
    lode_progress_t progress;
    c->report = json_array();
    lode_progress_begin(&progress, "calibrate", (uint64_t)c->layers * c->heads);
    for (uint32_t layer = 0; layer < c->layers; layer++)
        for (uint32_t head = 0; head < c->heads && status == LODE_OK; head++) {
            status = calibrate_head(c, layer, head, &room);
            lode_progress_at(&progress, (uint64_t)layer * c->heads + head + 1);
        }
    lode_progress_end(&progress);
    room_free(&room);
    return status;
}

/* ------------------------------------------------------------------ command */

static lode_status_t report(const calibration_t *c, const lode_options_t *options, const char *out)
{
    if (!lode_options_flag(options, "json")) {
        printf(
            "%s: %u of %u heads balanced; error of scores, over their variance, %.4f with Hadamard alone, %.4f now\n",
            out, c->balanced, c->layers * c->heads, c->error_before, c->error_after);
        return LODE_OK;
    }
    json_t *object =
        json_pack("{s:s s:i s:i s:f s:f s:O}", "file", out, "heads", (int)(c->layers * c->heads), "balanced",
                  (int)c->balanced, "error_hadamard", c->error_before, "error", c->error_after, "by_head", c->report);
    if (!object)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the report");
    json_dumpf(object, stdout, JSON_INDENT(2));
    printf("\n");
    json_decref(object);
    return LODE_OK;
}

static lode_status_t calibrate(const lode_options_t *options, char **paths, int count)
{
    calibration_t c = {.spec = {LODE_LANDMARK_UNIFORM, 2, 1, 1}};
    const char *out = lode_options_get(options, "out");
    c.spec.bits = (uint32_t)strtoul(lode_options_get(options, "bits"), NULL, 10);
    LODE_TRY(lode_ops_get("auto", &c.ops));
    LODE_TRY(lode_job_check_output(out));
    lode_status_t status = LODE_OK;
    for (int i = 0; i < count && status == LODE_OK; i++)
        status = look(&c, paths[i]);
    if (status == LODE_OK)
        status = calibrate_heads(&c);
    if (status == LODE_OK)
        status = lode_transform_write(c.transform, c.ops, out);
    if (status == LODE_OK)
        status = report(&c, options, out);
    calibration_free(&c);
    return status;
}

static void print_help(void)
{
    printf(
        "lodemark calibrate CAPTURE… --out FILE [OPTIONS]\n\nMake the transform in front of the landmarks' "
        "quantiser from keys and queries of a model (docs/captures.md;\nsome hundred queries a layer). Ranks load it "
        "by --transform FILE. Needs no mpirun.\n\n");
    lode_options_help(calibrate_options, stdout);
}

int lode_calibrate(int argc, char **argv)
{
    lode_options_t options;
    int rest, files = 0, code = LODE_EXIT_OK;
    if (lode_options_create(calibrate_options, &options) != LODE_OK)
        return lode_job_refuse(LODE_EXIT_FAILED, "%s", lode_error_message());
    while (files < argc && argv[files][0] != '-')
        files++;
    if (lode_options_parse(&options, argc - files, argv + files, &rest) != LODE_OK) {
        code = lode_job_refuse(LODE_EXIT_USAGE, "%s", lode_error_message());
    } else if (lode_options_flag(&options, "help")) {
        print_help();
    } else if (files == 0 || rest < argc - files || !lode_options_get(&options, "out")) {
        code = lode_job_refuse(LODE_EXIT_USAGE,
                               "calibrate takes captures, then --out FILE; see lodemark calibrate --help");
    } else if (calibrate(&options, argv, files) != LODE_OK) {
        code = lode_job_refuse(LODE_EXIT_FAILED, "%s", lode_error_message());
    }
    lode_options_destroy(&options);
    return code;
}
