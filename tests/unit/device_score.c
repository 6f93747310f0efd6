/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scan of landmarks on a device: for UNIFORM the scalar level's scores to the bit, for the others to rounding. A
 * launch has many scans, of any lengths, rows and codes; what lies beyond a scan's landmarks is left as it was.
 */
#include "device_check.h"

static const uint64_t seeds[] = {20261122, 11, 730021};
#define MOST_SCANS 1100
#define QUERIES (LODE_MAX_GROUP + 3) /* scans share them */

/* A launch: its scans on both sides, and the scores that the scalar level gives. */
typedef struct launch {
    const lode_landmark_spec_t *spec;
    uint32_t dim, n, most, queries;
    uint64_t all;
    lode_device_scan_t scans[MOST_SCANS];
    size_t tiles_at[MOST_SCANS], scores_at[MOST_SCANS]; /* bytes, floats */
    size_t tile_bytes, floats;
    uint8_t *tiles;
    lode_landmark_query_t *prepared;
    float *right;
} launch_t;

static size_t rounded(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* Place the scans; poison lies between their scores. Tiles of one scan begin where the next 128 bytes do. */
static void lay_out(check_t *c, launch_t *l, const uint32_t *landmarks, const uint32_t *rows)
{
    uint32_t tile = 0;
    for (uint32_t i = 0; i < l->n; i++) {
        uint32_t stride = (landmarks[i] + 3) / 4 * 4 + 4 * check_below(c, 3);
        l->scans[i] = (lode_device_scan_t){.landmarks = landmarks[i],
                                           .query = check_below(c, l->queries + 1 - rows[i]),
                                           .rows = rows[i],
                                           .first_tile = tile,
                                           .stride = stride};
        l->tiles_at[i] = l->tile_bytes;
        l->scores_at[i] = l->floats;
        l->floats += (size_t)rows[i] * stride;
        uint32_t tiles = (landmarks[i] + LODE_TILE - 1) / LODE_TILE;
        l->tile_bytes += rounded(tiles * lode_landmark_tile_bytes(l->spec, l->dim), 128);
        tile += tiles;
        l->all += landmarks[i];
        l->most = landmarks[i] > l->most ? landmarks[i] : l->most;
    }
}

/* Random landmarks in tiles whose unused places are poison, all with bits that would be NaN as numbers. */
static void fill_tiles(check_t *c, launch_t *l, kind_t kind)
{
    l->tiles = aligned_alloc(128, rounded(l->tile_bytes + 1, 128));
    memset(l->tiles, 0xff, l->tile_bytes);
    float x[LODE_TILE * LODE_MAX_DIM];
    uint8_t rows[LODE_TILE * (2 * LODE_MAX_DIM + 2)];
    for (uint32_t i = 0; i < l->n; i++)
        for (uint32_t first = 0; first < l->scans[i].landmarks; first += LODE_TILE) {
            uint32_t left = l->scans[i].landmarks - first, n = left < LODE_TILE ? left : LODE_TILE;
            check_fill(c, kind, x, n * l->dim);
            c->scalar->landmark_quantise(l->spec, l->dim, x, n, rows);
            c->scalar->landmark_place(l->spec, l->dim, rows, n, l->tiles + l->tiles_at[i], first);
        }
}

/* The queries on the device, and the scalar level's; the bias is what the mean key's score would be. */
static array_t prepare(check_t *c, launch_t *l, kind_t kind)
{
    uint32_t n = l->queries, dim = l->dim;
    size_t bytes = c->ops->query_bytes(l->spec, dim);
    float *q = malloc(n * dim * sizeof *q + 1), mean[LODE_MAX_DIM], x[LODE_MAX_DIM];
    lode_device_query_t *queries = malloc(n * sizeof *queries + 1);
    check_fill(c, kind, q, n * dim);
    check_fill(c, RANDOM, mean, dim);
    array_t dq = array_make(c, q, n * dim * sizeof *q), dm = array_make(c, mean, dim * sizeof *mean);
    l->prepared = aligned_alloc(64, rounded((n + 1) * sizeof *l->prepared, 64));
    for (uint32_t i = 0; i < n; i++) {
        float bias;
        queries[i] = (lode_device_query_t){
            .q = i, .count = 1, .angles = UINT32_MAX, .mean = (const float *)dm.at, .transform = NULL};
        memcpy(x, q + i * dim, dim * sizeof *x);
        c->scalar->dot_rows(mean, x, 1, dim, &bias);
        if (l->spec->codec != LODE_LANDMARK_MEAN)
            c->scalar->hadamard(x, 1, dim);
        c->scalar->query_prepare(l->spec, dim, x, bias, &l->prepared[i]);
    }
    array_t dd = array_make(c, queries, n * sizeof *queries), to = array_make(c, NULL, n * bytes);
    DEVICE(c, query_prepare(c->stream, l->spec, dim, (const float *)dq.at, NULL, (const lode_device_query_t *)dd.at, n,
                            to.at));
    DEVICE(c, stream_wait(c->stream));
    array_free(c, &dq);
    array_free(c, &dm);
    array_free(c, &dd);
    free(queries);
    free(q);
    return to;
}

static void score_on_host(check_t *c, launch_t *l)
{
    size_t table = lode_score_scratch_floats(l->spec, l->dim, LODE_MAX_GROUP);
    float *scratch = table ? aligned_alloc(64, table * sizeof *scratch) : NULL;
    l->right = malloc(l->floats * sizeof *l->right + 1);
    memset(l->right, POISON, l->floats * sizeof *l->right);
    for (uint32_t i = 0; i < l->n; i++)
        c->scalar->landmark_score(l->spec, l->dim, l->tiles + l->tiles_at[i], l->scans[i].landmarks,
                                  l->prepared + l->scans[i].query, l->scans[i].rows, l->right + l->scores_at[i],
                                  l->scans[i].stride, scratch);
    free(scratch);
}

/* What a score's terms may come to, for the tolerance of those that are not exact: |q| · |landmark| + |bias|. */
static double size_of(check_t *c, const launch_t *l, uint32_t scan, uint32_t row, uint32_t landmark)
{
    const lode_landmark_query_t *query = &l->prepared[l->scans[scan].query + row];
    uint8_t bytes[2 * LODE_MAX_DIM + 2];
    double sum = fabs(query->bias);
    c->scalar->landmark_take(l->spec, l->dim, l->tiles + l->tiles_at[scan], landmark, 1, bytes);
    double scale = l->spec->codec == LODE_LANDMARK_MEAN
                       ? 1
                       : lode_bf16_widen(lode_load16(bytes + lode_landmark_code_bytes(l->spec, l->dim)));
    for (uint32_t i = 0; i < l->dim; i++) {
        double x = l->spec->codec == LODE_LANDMARK_MEAN ? lode_bf16_widen(lode_load16(bytes + 2 * i))
                   : l->spec->bits == 4                 ? lode_higgs_grid2[bytes[i / 2]][i % 2]
                                                        : lode_higgs_grid4[bytes[i / 4]][i % 4];
        sum += fabs(scale * x * query->q32[i]);
    }
    return sum;
}

static void compare(check_t *c, const launch_t *l, const float *got, kind_t kind)
{
    for (uint32_t i = 0; i < l->n; i++)
        for (uint32_t r = 0; r < l->scans[i].rows; r++)
            for (uint32_t j = 0; j < l->scans[i].stride; j++) {
                size_t at = l->scores_at[i] + r * l->scans[i].stride + j;
                bool same = memcmp(&got[at], &l->right[at], sizeof *got) == 0;
                if (!same && l->spec->codec != LODE_LANDMARK_UNIFORM && j < l->scans[i].landmarks)
                    same = fabs((double)got[at] - l->right[at]) <=
                           1e-5 * size_of(c, l, i, r, j) + 1e-30; /* denormals lose bits */
                expect(c, same,
                       "codec %d bits %u dim %u kind %d: scan %u of %u, row %u of %u, %u of %u: %.9g, not %.9g",
                       (int)l->spec->codec, l->spec->bits, l->dim, (int)kind, i, l->n, r, l->scans[i].rows, j,
                       l->scans[i].landmarks, got[at], l->right[at]);
            }
}

static void score_case(check_t *c, const lode_landmark_spec_t *spec, uint32_t dim, uint32_t n,
                       const uint32_t *landmarks, const uint32_t *rows, kind_t kind, kind_t query_kind)
{
    launch_t l = {.spec = spec, .dim = dim, .n = n, .queries = n == 1 ? rows[0] : QUERIES};
    lay_out(c, &l, landmarks, rows);
    fill_tiles(c, &l, kind);
    array_t queries = prepare(c, &l, query_kind);
    score_on_host(c, &l);
    array_t tiles = array_make(c, l.tiles, l.tile_bytes), scores = array_make(c, NULL, l.floats * sizeof(float));
    for (uint32_t i = 0; i < n; i++) {
        l.scans[i].tiles = tiles.at + l.tiles_at[i];
        l.scans[i].scores = (float *)scores.at + l.scores_at[i];
    }
    array_t scans = array_make(c, l.scans, n * sizeof *l.scans);
    DEVICE(c, score(c->stream, spec, dim, queries.at, (const lode_device_scan_t *)scans.at, n, l.most, l.all));
    compare(c, &l, array_take(c, &scores), kind);
    array_free(c, &queries);
    array_free(c, &tiles);
    array_free(c, &scans);
    free(scores.host);
    free(l.tiles);
    free(l.prepared);
    free(l.right);
}

/* Every number of rows, lengths around a tile's and a batch's. */
Test(device_score, one_scan, .timeout = 100)
{
    static const uint32_t lengths[] = {1, 4, 31, 33, 100, 290};
    check_t c = check_open(seeds[0]);
    uint32_t rows = 0;
    for (int s = 0; s < CHECK_SPECS; s++)
        for (int d = 0; d < 3; d++)
            for (size_t i = rows % 2; i < sizeof lengths / sizeof *lengths; i += 2, rows += 3)
                score_case(&c, &check_specs[s], check_dims[d], 1, &lengths[i],
                           (const uint32_t[]){1 + rows % LODE_MAX_GROUP}, RANDOM, RANDOM);
    check_close(&c);
}

/* Numbers at the ends of their ranges, where narrow sums would overflow. */
Test(device_score, extremes, .timeout = 100)
{
    check_t c = check_open(seeds[1]);
    for (int s = 0; s < CHECK_SPECS; s++)
        for (int d = 0; d < 3; d++)
            for (int kind = (s + d) % 2; kind < KINDS; kind += 2) {
                static const kind_t others[] = {ALL_LOW, ALL_HIGH, SIGNS};
                kind_t other = others[(kind + s) % 3];
                uint32_t landmarks = 5, rows = 2;
                score_case(&c, &check_specs[s], check_dims[d], 1, &landmarks, &rows, (kind_t)kind, other);
                score_case(&c, &check_specs[s], check_dims[d], 1, &landmarks, &rows, other, (kind_t)kind);
            }
    check_close(&c);
}

/* Many scans of a launch: some of nothing, some short, one long, each with rows of its own. */
Test(device_score, many_scans, .timeout = 100)
{
    for (int d = 0; d < 3; d++) {
        check_t c = check_open(seeds[d]);
        for (int s = 0; s < CHECK_SPECS; s++) {
            uint32_t n = 1 + check_below(&c, 40), landmarks[40], rows[40];
            for (uint32_t i = 0; i < n; i++) {
                rows[i] = 1 + check_below(&c, check_below(&c, 4) ? 4 : LODE_MAX_GROUP);
                landmarks[i] = check_below(&c, 3) ? check_below(&c, 50) : 0;
            }
            landmarks[check_below(&c, n)] = 300 + check_below(&c, 100);
            score_case(&c, &check_specs[s], check_dims[d], n, landmarks, rows, RANDOM, RANDOM);
        }
        check_close(&c);
    }
}

/* More scans than a warp can look at in one go, or in two. */
Test(device_score, a_thousand_scans, .timeout = 100)
{
    check_t c = check_open(seeds[1]);
    static uint32_t landmarks[MOST_SCANS], rows[MOST_SCANS];
    for (int s = 0; s < 3; s++) {
        for (uint32_t i = 0; i < MOST_SCANS; i++) {
            rows[i] = 1 + check_below(&c, 2);
            landmarks[i] = check_below(&c, 5) ? 1 + check_below(&c, 5) : check_below(&c, 2) * 40;
        }
        score_case(&c, &check_specs[s], 64, s < 2 ? MOST_SCANS : 32 + s, landmarks, rows, RANDOM, RANDOM);
    }
    check_close(&c);
}

/* More warps than tiles, and scans of nothing alone. */
Test(device_score, nothing, .timeout = 60)
{
    check_t c = check_open(seeds[2]);
    static const uint32_t none[4] = {0}, rows[4] = {4, 1, 16, 2};
    for (int s = 0; s < CHECK_SPECS; s++) {
        score_case(&c, &check_specs[s], 128, 0, none, rows, RANDOM, RANDOM);
        score_case(&c, &check_specs[s], 128, 4, none, rows, RANDOM, RANDOM);
    }
    lode_landmark_spec_t three = {.codec = LODE_LANDMARK_UNIFORM, .bits = 3, .chunk = 1};
    cr_assert(c.ops->score(c.stream, &three, 128, NULL, NULL, 1, 1, 1) == LODE_ERR_INVALID);
    cr_assert(strstr(c.ops->error(), "3 bits"), "%s", c.ops->error());
    check_close(&c);
}
