/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole steps on a GPU, of one rank that holds all pages itself: with all that is wanted in the cache, with a cache
 * that is too small, and without one. Beside the longer of two times: of the bytes that must come over the bus, as one
 * copy, and of those that must come from device memory, as one read. A step is captured in a graph, as it may be when
 * all pages are here.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/gpu.h"

enum { DIM = 128, GROUP = 4, HEADS = 8, VALUES = 1 << 16, PUT_TOKENS = 4096, SINKS = 4, WINDOW = 64 };
#define BUDGET 0.01

typedef struct step_case {
    const char *name;
    const char *cache; /* the option gpu-cache */
    double noise;      /* of the queries of one turn after the other, beside what they have in common */
} step_case_t;

typedef struct step {
    const step_case_t *which;
    uint32_t heads;
    uint32_t query_sets; /* in rotation */
    uint64_t tokens;
    double budget;
    lode_config_h config;
    lode_cluster_h cluster;
    lode_block_h block;
    lode_view_h view;
    float *values;                  /* what keys and values are taken from */
    float *host_q;                  /* (query_sets, heads · GROUP, DIM) */
    float *queries, *q, *out, *lse; /* of all turns, of one */
    lode_device_graph_t graph;
    uint64_t wanted; /* records of one step */
} step_t;

/* Keys and values repeat only after VALUES tokens, each from another place of a table. */
static const float *vector_of(const step_t *s, uint64_t token, uint32_t head, uint32_t which)
{
    return s->values + lode_mix(token, head * 2 + which) % (VALUES - DIM);
}

static size_t query_floats(const step_t *s)
{
    return (size_t)s->heads * GROUP * DIM;
}

/* -------------------------------------------------------------------- set up */

static lode_status_t put_tokens(lode_gpubench_t *b, step_t *s)
{
    lode_block_params_t params = {.name = "pages", .format = LODE_FORMAT_FP8, .expected_tokens = s->tokens};
    size_t row = (size_t)s->heads * DIM;
    float *k, *v;
    LODE_TRY(lode_landmark_parse("landmark2", &params.landmark));
    LODE_TRY(lode_block_create(s->cluster, &params, &s->block));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, PUT_TOKENS * row * sizeof *k, (void **)&k));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, PUT_TOKENS * row * sizeof *v, (void **)&v));
    for (uint64_t first = 0; first < s->tokens; first += PUT_TOKENS) {
        uint64_t n = s->tokens - first < PUT_TOKENS ? s->tokens - first : PUT_TOKENS;
        for (uint64_t i = 0; i < n * s->heads; i++) {
            uint64_t token = first + i / s->heads;
            uint32_t head = (uint32_t)(i % s->heads);
            memcpy(k + i * DIM, vector_of(s, token, head, 0), DIM * sizeof *k);
            memcpy(v + i * DIM, vector_of(s, token, head, 1), DIM * sizeof *v);
        }
        LODE_TRY(lode_block_append(s->block, 0, n, LODE_FP32, k, v));
    }
    return lode_block_seal(s->block);
}

static lode_status_t configure(lode_gpubench_t *b, step_t *s)
{
    char text[32];
    uint64_t pages = (s->tokens + LODE_PAGE_TOKENS - 1) / LODE_PAGE_TOKENS + 1;
    uint64_t page = LODE_PAGE_TOKENS * s->heads * lode_record_bytes(LODE_FORMAT_FP8, DIM) + 4096;
    LODE_TRY(lode_config_create(&s->config));
    snprintf(text, sizeof text, "%llu", (unsigned long long)(pages * page * 9 / 8 + (16u << 20)));
    LODE_TRY(lode_config_set(s->config, "arena", text));
    LODE_TRY(lode_config_set(s->config, "hot-cache", "0"));
    LODE_TRY(lode_config_set(s->config, "device", "cuda"));
    snprintf(text, sizeof text, "%d", b->info.ordinal);
    LODE_TRY(lode_config_set(s->config, "device-ordinal", text));
    return lode_config_set(s->config, "gpu-cache", s->which->cache);
}

/* Queries of a turn have most in common with those of the last, as those of one token after the other have. */
static lode_status_t put_queries(lode_gpubench_t *b, step_t *s)
{
    size_t n = query_floats(s);
    float *same;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *same * n, (void **)&same));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *same * n * s->query_sets, (void **)&s->host_q));
    lode_gpubench_gaussian(b, 1, same, n);
    lode_gpubench_gaussian(b, (float)s->which->noise, s->host_q, n * s->query_sets);
    for (size_t i = 0; i < n * s->query_sets; i++)
        s->host_q[i] += same[i % n];
    LODE_TRY(lode_gpubench_put(b, s->host_q, sizeof *same * n * s->query_sets, (void **)&s->queries));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof *same * n, (void **)&s->q));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof *same * n, (void **)&s->out));
    return lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof *same * n / DIM, (void **)&s->lse);
}

static lode_status_t step_create(lode_gpubench_t *b, const step_case_t *which, step_t *s)
{
    *s = (step_t){.which = which,
                  .heads = (uint32_t)lode_gpubench_size(b, HEADS, 2),
                  .query_sets = b->small ? 2 : 8,
                  .tokens = lode_gpubench_size(b, 256 << 10, 320),
                  .budget = b->small ? 0.2 : BUDGET};
    lode_geometry_t geometry = {
        .layers = 1, .query_heads = s->heads * GROUP, .kv_heads = s->heads, .head_dim = DIM, .rope = {.theta = 500000}};
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, VALUES * sizeof *s->values, (void **)&s->values));
    lode_gpubench_gaussian(b, 1, s->values, VALUES);
    LODE_TRY(configure(b, s));
    LODE_TRY(lode_cluster_join(s->config, &geometry, &s->cluster));
    LODE_TRY(put_tokens(b, s));
    lode_view_params_t params = {
        .blocks = &s->block,
        .count = 1,
        .write_block = -1,
        .policy = {.select = LODE_SELECT_LANDMARK, .budget_share = s->budget, .sinks = SINKS, .window = WINDOW}};
    LODE_TRY(lode_view_create(s->cluster, &params, &s->view));
    return put_queries(b, s);
}

static void step_destroy(lode_gpubench_t *b, step_t *s)
{
    if (s->graph)
        b->ops->graph_destroy(s->graph);
    if (s->view)
        lode_view_destroy(&s->view);
    if (s->block)
        lode_block_close(&s->block);
    if (s->cluster)
        lode_cluster_leave(&s->cluster);
    if (s->config)
        lode_config_destroy(&s->config);
}

/* A step over the queries that are in `q` then. */
static lode_status_t step_once(lode_gpubench_t *b, const step_t *s)
{
    lode_stream_t stream = {.view = s->view,
                            .tokens = 1,
                            .position = LODE_POSITION_END,
                            .dtype = LODE_FP32,
                            .q = s->q,
                            .out = s->out,
                            .lse = s->lse};
    return lode_step_enqueue(s->cluster, 0, &stream, 1, b->stream, NULL);
}

/* One step, as a decoder would capture it: what is captured must have run before. */
static lode_status_t step_capture(lode_gpubench_t *b, step_t *s)
{
    LODE_GPU(b, b->ops->copy(b->stream, s->q, s->queries, sizeof(float) * query_floats(s)));
    for (int i = 0; i < 2; i++)
        LODE_TRY(step_once(b, s));
    LODE_GPU(b, b->ops->stream_wait(b->stream));
    LODE_GPU(b, b->ops->capture_begin(b->stream));
    lode_status_t status = step_once(b, s);
    lode_status_t ended = b->ops->capture_end(b->stream, &s->graph); /* in any case: the stream must not stay so */
    if (status == LODE_OK && ended != LODE_OK)
        status = lode_fail(ended, "capture_end: %s", b->ops->error());
    return status;
}

/* The next queries into their place, and the step. */
static lode_status_t step_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    const step_t *s = context;
    size_t n = query_floats(s);
    LODE_GPU(b, b->ops->copy(b->stream, s->q, s->queries + turn % s->query_sets * n, sizeof *s->q * n));
    LODE_GPU(b, b->ops->graph_launch(s->graph, b->stream));
    return LODE_OK;
}

/* -------------------------------------------------------------- correctness */

/* Whether one query head's output is not attention in double over the tokens that the step chose. */
static lode_status_t head_is_wrong(const step_t *s, uint32_t query_head, const float *q, const float *out, bool *wrong)
{
    const uint32_t *tokens;
    uint64_t count;
    double total = 0, sum[DIM] = {0}, off = 0, norm = 0;
    uint32_t head = query_head / GROUP;
    LODE_TRY(lode_step_selection(s->cluster, 0, 0, head, &tokens, &count));
    for (uint64_t i = 0; i < count; i++) {
        uint64_t token = tokens ? tokens[i] : i;
        const float *k = vector_of(s, token, head, 0), *v = vector_of(s, token, head, 1);
        double logit = 0;
        for (int j = 0; j < DIM; j++)
            logit += (double)q[query_head * DIM + j] * k[j] / sqrt(DIM);
        double weight = exp(logit); /* of a few units: no need to take the greatest off */
        total += weight;
        for (int j = 0; j < DIM; j++)
            sum[j] += weight * v[j];
    }
    for (int j = 0; j < DIM; j++) {
        double right = sum[j] / total, difference = out[query_head * DIM + j] - right;
        off += difference * difference;
        norm += right * right;
    }
    *wrong = count < (uint64_t)(s->budget * (double)s->tokens) || !(sqrt(off) <= 0.1 * sqrt(norm)); /* fp8: 3 % */
    return LODE_OK;
}

/* Outputs of two steps: the second finds what the first kept. */
static lode_status_t wrong_heads(lode_gpubench_t *b, step_t *s, uint64_t *wrong)
{
    float *out;
    lode_step_stats_t stats;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *out * query_floats(s), (void **)&out));
    for (int turn = 0; turn < 2; turn++) {
        const float *q = s->host_q + (s->query_sets - 1) * query_floats(s);
        memset(out, 0xa5, sizeof *out * query_floats(s));
        lode_stream_t stream = {
            .view = s->view, .tokens = 1, .position = LODE_POSITION_END, .dtype = LODE_FP32, .q = q, .out = out};
        LODE_TRY(lode_step(s->cluster, 0, &stream, 1, &stats));
        s->wanted = stats.records_wanted;
        for (uint32_t head = 0; head < s->heads * GROUP; head++) {
            bool bad;
            LODE_TRY(head_is_wrong(s, head, q, out, &bad));
            *wrong += bad;
        }
    }
    return LODE_OK;
}

/* --------------------------------------------------------------------- rows */

/* Seconds that the misses of a step take over the bus as one copy; 0 for none. */
static lode_status_t bus_time(lode_gpubench_t *b, size_t bytes, double *seconds)
{
    lode_gpubench_stretch_t s = {.bytes = bytes / 256 * 256, .sets = 1};
    lode_gpubench_work_t work = {.enqueue = lode_gpubench_copy_enqueue, .context = &s};
    double unused;
    *seconds = 0;
    if (!s.bytes)
        return LODE_OK;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_PINNED, s.bytes, (void **)&s.from));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, s.bytes, (void **)&s.to));
    memset(s.from, 0x5a, s.bytes);
    return lode_gpubench_measure(b, &work, NULL, seconds, &unused);
}

/* A replay counts nothing on the host: the same queries in the same order, step by step, once the cache has settled. */
static lode_status_t hit_rate(const step_t *s, float *out, double *rate)
{
    uint64_t hits = 0, wanted = 0;
    for (uint32_t turn = 0; turn < 2 * s->query_sets; turn++) {
        lode_step_stats_t stats;
        lode_stream_t stream = {.view = s->view,
                                .tokens = 1,
                                .position = LODE_POSITION_END,
                                .dtype = LODE_FP32,
                                .q = s->host_q + turn % s->query_sets * query_floats(s),
                                .out = out};
        LODE_TRY(lode_step(s->cluster, 0, &stream, 1, &stats));
        hits += turn < s->query_sets ? 0 : stats.records_hit;
        wanted += turn < s->query_sets ? 0 : stats.records_wanted;
    }
    *rate = wanted ? (double)hits / (double)wanted : 0;
    return LODE_OK;
}

static lode_status_t measure_step(lode_gpubench_t *b, step_t *s, lode_gpubench_row_t *row)
{
    lode_landmark_spec_t spec = {.codec = LODE_LANDMARK_UNIFORM, .bits = 2, .chunk = 1};
    lode_gpubench_work_t figure = {.enqueue = step_enqueue, .context = s, .sets = s->query_sets, .plain = true}, floor;
    lode_gpubench_stretch_t stretch;
    float *out;
    double step, memory, bus;
    /* From device memory: all codes, and what is chosen, once. */
    size_t record = lode_device_record_bytes(LODE_FORMAT_FP8, DIM);
    size_t bytes = s->heads * s->tokens * lode_landmark_row_bytes(&spec, DIM) + s->wanted * record;
    LODE_TRY(lode_gpubench_read_floor(b, bytes, &stretch, &floor));
    LODE_TRY(step_capture(b, s));
    for (uint32_t turn = 0; turn < s->query_sets; turn++)
        LODE_TRY(step_enqueue(b, s, turn));
    LODE_GPU(b, b->ops->stream_wait(b->stream));
    LODE_TRY(lode_gpubench_measure(b, &figure, &floor, &step, &memory));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *out * query_floats(s), (void **)&out));
    LODE_TRY(hit_rate(s, out, &row->hit_rate));
    LODE_TRY(
        bus_time(b, (size_t)((1 - row->hit_rate) * (double)s->wanted) * lode_record_bytes(LODE_FORMAT_FP8, DIM), &bus));
    row->unit = "us";
    row->us = row->figure = 1e6 * step;
    row->floor = 1e6 * fmax(memory, bus);
    row->ratio = row->figure / row->floor;
    snprintf(row->note, sizeof row->note, "hit rate %.3f of %llu records; device memory %.1f us, bus %.1f us",
             row->hit_rate, (unsigned long long)s->wanted, 1e6 * memory, 1e6 * bus);
    return LODE_OK;
}

static lode_status_t step_row(lode_gpubench_t *b, const step_case_t *which)
{
    step_t s;
    if (!lode_gpubench_wanted(b, "step", which->name))
        return LODE_OK;
    lode_gpubench_row_t *row = lode_gpubench_row(b, "step", which->name, GROUP, DIM);
    row->target = 1.15;
    row->at_most = true;
    row->beside = "max(bus, device_read)";
    lode_status_t status = step_create(b, which, &s);
    if (status == LODE_OK)
        status = wrong_heads(b, &s, &row->wrong);
    if (status == LODE_OK)
        status = measure_step(b, &s, row);
    step_destroy(b, &s);
    if (status == LODE_OK)
        lode_gpubench_row_end(row);
    lode_gpubench_free_all(b);
    return status;
}

/* 8 KV heads over 256K tokens choose 21 thousand records of 272 bytes, 5.7 MB, each turn. */
lode_status_t lode_gpubench_step(lode_gpubench_t *b)
{
    const step_case_t cases[] = {{"8x256K cached", b->small ? "2MiB" : "256MiB", 0},
                                 {"8x256K mixed", b->small ? "60KiB" : "6MiB", 0.2},
                                 {"8x256K no cache", "0", 0.2}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        LODE_TRY(step_row(b, &cases[i]));
    return LODE_OK;
}
