/* SPDX-License-Identifier: Apache-2.0 */
/* Queries made ready, and landmarks scored: against reading device memory. */
#include <math.h>
#include <string.h>

#include "bench/gpu.h"

enum { HEADS = 8, SAMPLE = 2048, SMALL_SAMPLE = 96 };

typedef struct scan {
    lode_landmark_spec_t spec;
    uint32_t dim, group, heads, landmarks, sample, sets;
    size_t tile_bytes, head_bytes; /* of a tile; of one head's codes, 128-byte aligned */
    uint64_t stride;
    uint8_t *sampled; /* tiles of the sample on the host, which all heads repeat */
    uint8_t *tiles;   /* (sets, heads, head_bytes) */
    float *q, *keys;
    void *prepared;
    float *scores;             /* (heads, group, stride), of all sets */
    lode_device_scan_t *scans; /* (sets, heads) */
    lode_device_query_t *queries;
    float *device_q;
    uint32_t query_count;
} scan_t;

static lode_status_t sample_tiles(lode_gpubench_t *b, scan_t *s)
{
    uint8_t *rows;
    size_t row_bytes = lode_landmark_row_bytes(&s->spec, s->dim);
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *s->keys * s->sample * s->dim, (void **)&s->keys));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, s->sample * row_bytes, (void **)&rows));
    LODE_TRY(
        lode_gpubench_alloc(b, LODE_MEMORY_HOST, s->sample / LODE_TILE * s->tile_bytes + 64, (void **)&s->sampled));
    s->sampled = (uint8_t *)(((uintptr_t)s->sampled + 63) / 64 * 64);
    lode_gpubench_gaussian(b, 1, s->keys, (size_t)s->sample * s->dim);
    b->scalar->landmark_quantise(&s->spec, s->dim, s->keys, s->sample, rows);
    b->scalar->landmark_place(&s->spec, s->dim, rows, s->sample, s->sampled, 0);
    return LODE_OK;
}

static lode_status_t put_tiles(lode_gpubench_t *b, scan_t *s)
{
    size_t used = (s->landmarks + LODE_TILE - 1) / LODE_TILE * s->tile_bytes;
    s->head_bytes = (used + 127) / 128 * 128;
    s->sets = lode_gpubench_sets(b, s->heads * s->head_bytes);
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, s->sets * s->heads * s->head_bytes, (void **)&s->tiles));
    for (uint32_t i = 0; i < s->sets * s->heads; i++)
        LODE_TRY(lode_gpubench_spread(b, s->tiles + i * s->head_bytes, s->sampled,
                                      s->sample / LODE_TILE * s->tile_bytes, used));
    return LODE_OK;
}

static lode_status_t put_queries(lode_gpubench_t *b, scan_t *s)
{
    lode_device_query_t *queries;
    s->query_count = s->heads * s->group;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *s->q * s->query_count * s->dim, (void **)&s->q));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *queries * s->query_count, (void **)&queries));
    lode_gpubench_gaussian(b, 1 / sqrtf((float)s->dim), s->q, (size_t)s->query_count * s->dim);
    for (uint32_t i = 0; i < s->query_count; i++)
        queries[i] = (lode_device_query_t){.q = i, .count = 1, .angles = UINT32_MAX};
    LODE_TRY(lode_gpubench_put(b, s->q, sizeof *s->q * s->query_count * s->dim, (void **)&s->device_q));
    LODE_TRY(lode_gpubench_put(b, queries, sizeof *queries * s->query_count, (void **)&s->queries));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, s->query_count * b->ops->query_bytes(&s->spec, s->dim),
                                 &s->prepared));
    LODE_GPU(b, b->ops->query_prepare(b->stream, &s->spec, s->dim, s->device_q, NULL, s->queries, s->query_count,
                                      s->prepared));
    return LODE_OK;
}

static lode_status_t put_scans(lode_gpubench_t *b, scan_t *s)
{
    lode_device_scan_t *scans;
    s->stride = (s->landmarks + 3) / 4 * 4;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof(float) * s->heads * s->group * s->stride,
                                 (void **)&s->scores));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *scans * s->sets * s->heads, (void **)&scans));
    for (uint32_t i = 0; i < s->sets * s->heads; i++)
        scans[i] = (lode_device_scan_t){.tiles = s->tiles + i * s->head_bytes,
                                        .landmarks = s->landmarks,
                                        .query = i % s->heads * s->group,
                                        .rows = s->group,
                                        .first_tile = i % s->heads * ((s->landmarks + LODE_TILE - 1) / LODE_TILE),
                                        .scores = s->scores + i % s->heads * s->group * s->stride,
                                        .stride = s->stride};
    return lode_gpubench_put(b, scans, sizeof *scans * s->sets * s->heads, (void **)&s->scans);
}

static lode_status_t scan_create(lode_gpubench_t *b, uint32_t bits, uint32_t dim, uint32_t group, uint32_t heads,
                                 uint32_t landmarks, scan_t *s)
{
    *s = (scan_t){.spec = {.codec = LODE_LANDMARK_UNIFORM, .bits = bits, .chunk = 1},
                  .dim = dim,
                  .group = group,
                  .heads = heads,
                  .landmarks = landmarks,
                  .sample = b->small ? SMALL_SAMPLE : SAMPLE};
    s->tile_bytes = lode_landmark_tile_bytes(&s->spec, dim);
    LODE_TRY(sample_tiles(b, s));
    LODE_TRY(put_tiles(b, s));
    LODE_TRY(put_queries(b, s));
    return put_scans(b, s);
}

static lode_status_t score_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    const scan_t *s = context;
    LODE_GPU(b, b->ops->score(b->stream, &s->spec, s->dim, s->prepared, s->scans + (size_t)(turn % s->sets) * s->heads,
                              s->heads, s->landmarks, (uint64_t)s->heads * s->landmarks));
    return LODE_OK;
}

static lode_status_t prepare_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    const scan_t *s = context;
    (void)turn;
    LODE_GPU(b, b->ops->query_prepare(b->stream, &s->spec, s->dim, s->device_q, NULL, s->queries, s->query_count,
                                      s->prepared));
    return LODE_OK;
}

/* -------------------------------------------------------------- correctness */

/* The scalar table's scores of the sample for one head's queries: (group, sample). */
static void reference_scores(lode_gpubench_t *b, const scan_t *s, uint32_t head, float *scores)
{
    lode_landmark_query_t queries[LODE_MAX_GROUP];
    float q[LODE_MAX_DIM];
    for (uint32_t g = 0; g < s->group; g++) {
        memcpy(q, s->q + ((size_t)head * s->group + g) * s->dim, sizeof *q * s->dim);
        b->scalar->hadamard(q, 1, s->dim);
        b->scalar->query_prepare(&s->spec, s->dim, q, 0, &queries[g]);
    }
    b->scalar->landmark_score(&s->spec, s->dim, s->sampled, s->sample, queries, s->group, scores, s->sample, NULL);
}

/* Scores that are not, to the bit, those of the scalar table. */
static lode_status_t wrong_scores(lode_gpubench_t *b, scan_t *s, uint64_t *wrong)
{
    float *got, *right;
    size_t floats = (size_t)s->group * s->stride;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *got * floats, (void **)&got));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *right * s->group * s->sample, (void **)&right));
    LODE_TRY(lode_gpubench_poison(b, s->scores, sizeof(float) * s->heads * floats));
    LODE_TRY(score_enqueue(b, s, lode_gpubench_below(b, s->sets)));
    for (uint32_t head = 0; head < s->heads; head++) {
        reference_scores(b, s, head, right);
        LODE_TRY(lode_gpubench_copy(b, got, s->scores + head * floats, sizeof *got * floats));
        for (uint32_t g = 0; g < s->group; g++)
            for (uint32_t i = 0; i < s->landmarks; i++)
                *wrong += memcmp(&got[g * s->stride + i], &right[g * s->sample + i % s->sample], sizeof *got) != 0;
    }
    return LODE_OK;
}

/* --------------------------------------------------------------------- rows */

/*
 * Codes alone are counted as moved, so with a group the scores that are written cost what is not counted: at two bits
 * and a group of four, half as many bytes as are read. Rows named scan_moved count them too.
 */
static lode_status_t scan_row(lode_gpubench_t *b, const char *name, const char *format, scan_t *s, double target)
{
    bool moved = strcmp(name, "scan_moved") == 0;
    double codes = (double)s->heads * s->landmarks * (double)lode_landmark_row_bytes(&s->spec, s->dim);
    double scores = moved ? 4.0 * s->heads * s->group * s->landmarks : 0;
    lode_gpubench_stretch_t stretch;
    lode_gpubench_work_t figure = {.enqueue = score_enqueue, .context = s, .sets = s->sets}, floor;
    if (!lode_gpubench_wanted(b, name, format))
        return LODE_OK;
    lode_gpubench_row_t *row = lode_gpubench_row(b, name, format, s->group, s->dim);
    row->target = target;
    row->beside = "device_read";
    LODE_TRY(wrong_scores(b, s, &row->wrong));
    LODE_TRY(lode_gpubench_read_floor(b, (size_t)(codes + scores), &stretch, &floor));
    LODE_TRY(lode_gpubench_rate(b, row, &figure, codes + scores, &floor, (double)stretch.bytes));
    snprintf(row->note, sizeof row->note, "%.4g landmarks a second; %u heads of %u%s",
             (double)s->heads * s->landmarks / row->us * 1e6, s->heads, s->landmarks,
             moved ? "; scores written counted" : "");
    lode_gpubench_row_end(row);
    return LODE_OK;
}

static lode_status_t scan_rows(lode_gpubench_t *b, const char *format, uint32_t bits, uint32_t dim, uint32_t group,
                               uint32_t landmarks, double target)
{
    scan_t s;
    if (!lode_gpubench_wanted(b, "scan", format) && !lode_gpubench_wanted(b, "scan_moved", format))
        return LODE_OK;
    LODE_TRY(scan_create(b, bits, dim, group, (uint32_t)lode_gpubench_size(b, HEADS, 2), landmarks, &s));
    LODE_TRY(scan_row(b, "scan", format, &s, group == 1 ? target : NAN));
    if (group > 1)
        LODE_TRY(scan_row(b, "scan_moved", format, &s, target));
    lode_gpubench_free_all(b);
    return LODE_OK;
}

/* Landmarks a head, so that all heads' codes are 64 MB and a few more; no whole number of tiles. */
static uint32_t enough(const lode_gpubench_t *b, uint32_t bits, uint32_t dim)
{
    lode_landmark_spec_t spec = {.codec = LODE_LANDMARK_UNIFORM, .bits = bits, .chunk = 1};
    return (uint32_t)lode_gpubench_size(b, (72u << 20) / HEADS / lode_landmark_row_bytes(&spec, dim) + 13, 109);
}

lode_status_t lode_gpubench_scan(lode_gpubench_t *b)
{
    static const struct {
        uint32_t bits;
        double target;
        const char *format;
    } codecs[] = {{8, 0.88, "uniform8"}, {4, 0.80, "uniform4"}, {2, 0.70, "uniform2"}, {1, NAN, "uniform1"}};
    for (int i = 0; i < 4; i++) {
        LODE_TRY(
            scan_rows(b, codecs[i].format, codecs[i].bits, 128, 1, enough(b, codecs[i].bits, 128), codecs[i].target));
        LODE_TRY(
            scan_rows(b, codecs[i].format, codecs[i].bits, 128, 4, enough(b, codecs[i].bits, 128), codecs[i].target));
    }
    if (b->small)
        return LODE_OK;
    LODE_TRY(scan_rows(b, "uniform2", 2, 64, 4, enough(b, 2, 64), NAN));
    LODE_TRY(scan_rows(b, "uniform2", 2, 256, 4, enough(b, 2, 256), NAN));
    /* One layer of a million tokens. */
    return scan_rows(b, "uniform2 8x1M", 2, 128, 4, 1 << 20, NAN);
}

/* 8 heads, group 4, and as many frames of view as a stream over 16 blocks has. */
lode_status_t lode_gpubench_prepare(lode_gpubench_t *b)
{
    enum { BLOCKS = 16, DIM = 128, GROUP = 4 };
    static const uint32_t bits[] = {8, 4, 2, 1};
    for (int i = 0; i < 4; i++) {
        char format[32];
        scan_t s;
        snprintf(format, sizeof format, "uniform%u", bits[i]);
        if (!lode_gpubench_wanted(b, "query_prepare", format))
            continue;
        LODE_TRY(scan_create(b, bits[i], DIM, GROUP, (uint32_t)lode_gpubench_size(b, HEADS * BLOCKS, 2), 70, &s));
        lode_gpubench_row_t *row = lode_gpubench_row(b, "query_prepare", format, GROUP, DIM);
        LODE_TRY(wrong_scores(b, &s, &row->wrong)); /* what is prepared is known by the scores that come of it */
        lode_gpubench_work_t work = {.enqueue = prepare_enqueue, .context = &s};
        LODE_TRY(lode_gpubench_time(b, row, &work, NULL));
        snprintf(row->note, sizeof row->note, "%u queries, Hadamard", s.query_count);
        lode_gpubench_row_end(row);
        lode_gpubench_free_all(b);
    }
    return LODE_OK;
}
