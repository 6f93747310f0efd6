/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whole local steps: beside their stages alone, beside dense steps on the same pages, and on more threads beside one.
 * One rank, which holds all pages itself; how threads share a step is not for its caller to say, so this looks inside.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attend/step.h"
#include "bench/kernels.h"

enum { DIM = 128, GROUP = 4, MOST_HEADS = 8, VALUES = 1 << 16, PUT_TOKENS = 4096 };
#define BUDGET 0.01

typedef struct shape {
    const char *name;
    uint32_t heads;
    uint64_t tokens, quick_tokens;
    lode_format_t format;
    bool beside_dense;
} shape_t;

typedef struct step_bench {
    lode_kernels_bench_t *bench;
    const shape_t *shape;
    uint64_t tokens;
    lode_config_h config;
    lode_cluster_h cluster;
    lode_block_h block;
    lode_view_h sparse, dense;
    float *values; /* what keys, values and queries are taken from */
    float q[MOST_HEADS * GROUP * DIM], out[MOST_HEADS * GROUP * DIM], lse[MOST_HEADS * GROUP];
    const uint8_t **records; /* (heads, budget) chosen ones */
    uint64_t chosen[MOST_HEADS];
    float guess[MOST_HEADS]; /**< of top-k's threshold, from one time that the stage runs alone to the next */
    lode_stream_t stream;
    lode_team_h team; /* the cluster's, while it steps alone */
    uint32_t lanes;
    uint64_t failed;
    lode_step_stats_t stats; /**< of the last sparse step */
} step_bench_t;

/* Keys and values repeat only after VALUES tokens, each from another place of a table. */
static const float *vector_of(const step_bench_t *s, uint64_t token, uint32_t head, uint32_t which)
{
    return s->values + lode_mix(token, head * 2 + which) % (VALUES - DIM);
}

/* -------------------------------------------------------------------- set up */

static lode_status_t put_tokens(step_bench_t *s)
{
    lode_block_params_t params = {.name = "pages", .format = s->shape->format, .expected_tokens = s->tokens};
    LODE_TRY(lode_landmark_parse("landmark2", &params.landmark));
    LODE_TRY(lode_block_create(s->cluster, &params, &s->block));
    size_t row = (size_t)s->shape->heads * DIM;
    float *k = malloc(2 * PUT_TOKENS * row * sizeof *k), *v = k + PUT_TOKENS * row;
    lode_status_t status = k ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for tokens to put");
    for (uint64_t first = 0; first < s->tokens && status == LODE_OK; first += PUT_TOKENS) {
        uint64_t n = s->tokens - first < PUT_TOKENS ? s->tokens - first : PUT_TOKENS;
        for (uint64_t i = 0; i < n * s->shape->heads; i++) {
            uint64_t token = first + i / s->shape->heads;
            uint32_t head = (uint32_t)(i % s->shape->heads);
            memcpy(k + i * DIM, vector_of(s, token, head, 0), DIM * sizeof *k);
            memcpy(v + i * DIM, vector_of(s, token, head, 1), DIM * sizeof *v);
        }
        status = lode_block_append(s->block, 0, n, LODE_FP32, k, v);
    }
    free(k);
    return status == LODE_OK ? lode_block_seal(s->block) : status;
}

static lode_status_t make_view(step_bench_t *s, lode_select_t select, lode_view_h *view)
{
    lode_view_params_t params = {.blocks = &s->block,
                                 .count = 1,
                                 .write_block = -1,
                                 .policy = {.select = select, .budget_share = BUDGET, .sinks = 4, .window = 64}};
    return lode_view_create(s->cluster, &params, view);
}

static lode_status_t set_up(step_bench_t *s)
{
    char text[32];
    lode_geometry_t geometry = {.layers = 1,
                                .query_heads = s->shape->heads * GROUP,
                                .kv_heads = s->shape->heads,
                                .head_dim = DIM,
                                .rope = {.theta = 500000}};
    uint64_t pages = (s->tokens + LODE_PAGE_TOKENS - 1) / LODE_PAGE_TOKENS + 1;
    LODE_TRY(lode_config_create(&s->config));
    snprintf(text, sizeof text, "%llu",
             (unsigned long long)(pages * (lode_page_bytes(s->shape->format, DIM, s->shape->heads) + 4096) * 9 / 8));
    LODE_TRY(lode_config_set(s->config, "arena", text));
    LODE_TRY(lode_config_set(s->config, "kernels", s->bench->level));
    LODE_TRY(lode_config_set(s->config, "hot-cache", "0"));
    snprintf(text, sizeof text, "%u", s->bench->threads);
    LODE_TRY(lode_config_set(s->config, "threads", text));
    s->values = malloc(VALUES * sizeof *s->values);
    if (!s->values)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for values");
    lode_kernels_fill(s->bench, LODE_INPUT_RANDOM, DIM, s->values, VALUES / DIM);
    LODE_TRY(lode_cluster_join(s->config, &geometry, &s->cluster));
    LODE_TRY(put_tokens(s));
    LODE_TRY(make_view(s, LODE_SELECT_LANDMARK, &s->sparse));
    LODE_TRY(make_view(s, LODE_SELECT_DENSE, &s->dense));
    lode_kernels_fill(s->bench, LODE_INPUT_RANDOM, DIM, s->q, s->shape->heads * GROUP);
    s->stream = (lode_stream_t){
        .tokens = 1, .position = LODE_POSITION_END, .dtype = LODE_FP32, .q = s->q, .out = s->out, .lse = s->lse};
    return LODE_OK;
}

static void take_down(step_bench_t *s)
{
    if (s->sparse)
        lode_view_destroy(&s->sparse);
    if (s->dense)
        lode_view_destroy(&s->dense);
    if (s->block)
        lode_block_close(&s->block);
    if (s->cluster)
        lode_cluster_leave(&s->cluster);
    lode_config_destroy(&s->config);
    free(s->values);
    free(s->records);
}

/* Steps have one thread until step_together(). */
static void step_alone(step_bench_t *s)
{
    s->team = s->cluster->team;
    s->lanes = s->cluster->step->lane_count;
    s->cluster->team = NULL;
    s->cluster->step->lane_count = 1;
}

static void step_together(step_bench_t *s)
{
    s->cluster->team = s->team;
    s->cluster->step->lane_count = s->lanes;
}

static void step(step_bench_t *s, lode_view_h view)
{
    lode_step_stats_t stats;
    s->stream.view = view;
    s->failed += lode_step(s->cluster, 0, &s->stream, 1, &stats) != LODE_OK;
    if (view == s->sparse)
        s->stats = stats;
}

/* ------------------------------------------------------------------ comparing */

/* Attention in double over the tokens of one head that the last step chose, against what it gave. */
static bool head_is_wrong(const step_bench_t *s, uint32_t query_head)
{
    const uint32_t *tokens;
    uint64_t count;
    double total = 0, most = -INFINITY, sum[DIM] = {0}, difference = 0, norm = 0;
    uint32_t head = query_head / GROUP;
    if (lode_step_selection(s->cluster, 0, 0, head, &tokens, &count) != LODE_OK || !tokens || !count)
        return true;
    double *logits = malloc(count * sizeof *logits);
    for (uint64_t i = 0; logits && i < count; i++) {
        const float *k = vector_of(s, tokens[i], head, 0), *q = s->q + query_head * DIM;
        logits[i] = 0;
        for (int j = 0; j < DIM; j++)
            logits[i] += (double)q[j] * k[j] / sqrt(DIM);
        most = fmax(most, logits[i]);
    }
    for (uint64_t i = 0; logits && i < count; i++) {
        const float *v = vector_of(s, tokens[i], head, 1);
        double weight = exp(logits[i] - most);
        total += weight;
        for (int j = 0; j < DIM; j++)
            sum[j] += weight * v[j];
    }
    for (int j = 0; j < DIM; j++) {
        double right = sum[j] / total, off = s->out[query_head * DIM + j] - right;
        difference += off * off;
        norm += right * right;
    }
    bool wrong = !logits || !(sqrt(difference) <= 0.1 * sqrt(norm)); /* 3 % are usual for fp8 */
    free(logits);
    return wrong;
}

/* Heads that are not what double says, and numbers that are not the same on more threads. */
static uint64_t wrong_outputs(step_bench_t *s)
{
    uint64_t wrong = 0;
    float together[MOST_HEADS * GROUP * DIM];
    size_t floats = (size_t)s->shape->heads * GROUP * DIM;
    step(s, s->sparse);
    memcpy(together, s->out, floats * sizeof *together);
    step_alone(s);
    step(s, s->sparse);
    for (size_t i = 0; i < floats; i++)
        wrong += memcmp(&together[i], &s->out[i], sizeof together[i]) != 0;
    for (uint32_t head = 0; head < s->shape->heads * GROUP; head++)
        wrong += head_is_wrong(s, head);
    step_together(s);
    return wrong + s->failed;
}

/* ------------------------------------------------------------- stages on their own */

/* Where the records lie that the last step chose. */
static lode_status_t find_records(step_bench_t *s)
{
    const uint32_t *tokens;
    size_t room = (size_t)(BUDGET * (double)s->tokens) + 128, bytes = lode_record_bytes(s->shape->format, DIM);
    s->records = malloc(room * s->shape->heads * sizeof *s->records);
    if (!s->records)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the addresses of records");
    const uint8_t **record = s->records;
    for (uint32_t head = 0; head < s->shape->heads; head++) {
        LODE_TRY(lode_step_selection(s->cluster, 0, 0, head, &tokens, &s->chosen[head]));
        for (uint64_t i = 0; i < s->chosen[head]; i++) {
            lode_page_ref_t ref;
            lode_page_id_t id = {s->block->info.id, 0, tokens[i] / LODE_PAGE_TOKENS};
            if (tokens[i] >= s->block->info.expected_tokens || !lode_shard_find(s->cluster->shard, id, &ref))
                return lode_fail(LODE_ERR_INTERNAL, "token %u is not in the own shard", tokens[i]);
            *record++ = ref.bytes + lode_page_record(bytes, head, tokens[i] % LODE_PAGE_TOKENS);
        }
    }
    return LODE_OK;
}

/* Rotate, transform and quantise the queries, and scan the landmarks. */
static void score_stage(step_bench_t *s, const lode_span_t *span)
{
    const lode_step_state_t *state = s->cluster->step;
    lode_lane_t *lane = &s->cluster->step->lanes[0];
    static lode_scorer_t scorer;
    float q[GROUP * DIM];
    for (uint32_t head = 0; head < s->shape->heads; head++) {
        lode_rotate_queries(state, span->stream, lode_seen_at(state, span->stream, 0), 0, head, q);
        lode_scorer_prepare(&scorer, s->cluster->store, s->block->slot, 0, head, q, GROUP, NULL);
        for (uint64_t begin = 0; begin < span->landmarks; begin += LODE_SLICE) {
            uint64_t end = span->landmarks - begin < LODE_SLICE ? span->landmarks : begin + LODE_SLICE;
            lode_scorer_score(&scorer, begin, end, (float *)lane->scores.data + begin, span->stride, lane->tables.data);
        }
    }
}

/* Over the scores that the last head's scan left: the values are not each head's own, the work is. */
static void select_stage(step_bench_t *s, const lode_span_t *span)
{
    const lode_step_state_t *state = s->cluster->step;
    lode_lane_t *lane = &s->cluster->step->lanes[0];
    lode_notes_t notes = {.room = lane->notes_room, .score = lane->notes.data};
    float *scores = lane->scores.data, shift[GROUP];
    lode_choice_t choice = {.pieces = state->pieces.data,
                            .piece_count = 1,
                            .chunk = 1,
                            .group = GROUP,
                            .merge = LODE_MERGE_MAX,
                            .budget = state->stats.budget_tokens,
                            .sinks = 4,
                            .window_begin = span->tokens - 64,
                            .shift = shift,
                            .notes = &notes};
    notes.index = (uint32_t *)(notes.score + notes.room + LODE_NOTES_SLACK);
    for (uint32_t head = 0; head < s->shape->heads; head++) {
        for (uint32_t g = 0; g < GROUP; g++)
            shift[g] = s->cluster->ops->logsumexp(scores + g * span->stride, span->landmarks);
        notes.bound = notes.next = s->guess[head];
        lode_kernels_keep(lode_choose(s->cluster->ops, &choice, scores, span->stride, lane->picks.data,
                                      (uint32_t *)state->tokens.data + lode_chosen_at(state, 0, head)->start));
        s->guess[head] = notes.next;
    }
}

static void attend_stage(step_bench_t *s)
{
    const uint8_t **record = s->records;
    float part[GROUP * DIM], part_lse[GROUP];
    for (uint32_t head = 0; head < s->shape->heads; head++) {
        for (uint64_t at = 0; at < s->chosen[head]; at += LODE_PORTION) {
            uint64_t n = s->chosen[head] - at < LODE_PORTION ? s->chosen[head] - at : LODE_PORTION;
            s->cluster->ops->attend(s->shape->format, DIM, GROUP, record + at, n, s->q + head * GROUP * DIM, part,
                                    part_lse);
            s->cluster->ops->merge(s->out + head * GROUP * DIM, s->lse + head * GROUP, part, part_lse, GROUP, DIM);
        }
        record += s->chosen[head];
    }
}

static double stages_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    step_bench_t *s = context;
    const lode_span_t *span = s->cluster->step->spans.data;
    (void)turn, (void)part, (void)parts;
    score_stage(s, span);
    select_stage(s, span);
    attend_stage(s);
    return 1;
}

static double sparse_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    step_bench_t *s = context;
    (void)turn, (void)part, (void)parts;
    step(s, s->sparse);
    return 1;
}

static double dense_slice(void *context, uint32_t turn, uint32_t part, uint32_t parts)
{
    step_bench_t *s = context;
    (void)turn, (void)part, (void)parts;
    step(s, s->dense);
    return 1;
}

/* ---------------------------------------------------------------------- rows */

/* Stages by the clock are shares of the last step; the same shares of a step's processor time say what it is made of.
 */
static void explain_by_stages(const step_bench_t *s, lode_kernel_row_t *row, double step_ms)
{
    double share[LODE_STAGE_COUNT];
    for (int i = 0; i < LODE_STAGE_COUNT; i++)
        share[i] = step_ms * (double)s->stats.stage_ns[i] / (double)(s->stats.step_ns + 1);
    lode_kernels_explain(row, "of %.2f ms a sparse step: score %.2f, select %.2f, find %.2f, attend %.2f", step_ms,
                         share[LODE_STAGE_SCORE], share[LODE_STAGE_SELECT], share[LODE_STAGE_FETCH],
                         share[LODE_STAGE_ATTEND]);
}

static lode_status_t whole_row(step_bench_t *s, lode_kernel_row_t *row)
{
    lode_kernel_work_t figure = {sparse_slice, s, 1}, floor = {stages_slice, s, 1};
    step_alone(s);
    step(s, s->sparse);
    for (int head = 0; head < MOST_HEADS; head++)
        s->guess[head] = NAN; /* none */
    lode_status_t status = find_records(s);
    if (status == LODE_OK)
        lode_kernels_rate_row(s->bench, row, &figure, &floor, 1);
    row->figure = 1e3 / row->figure;
    row->floor = 1e3 / row->floor;
    row->ratio = row->figure / row->floor;
    step_together(s);
    explain_by_stages(s, row, row->figure);
    return status;
}

static void dense_row(step_bench_t *s, lode_kernel_row_t *row)
{
    lode_kernel_work_t figure = {sparse_slice, s, 1}, floor = {dense_slice, s, 1};
    step_alone(s);
    lode_kernels_rate_row(s->bench, row, &figure, &floor, 1);
    step_together(s);
    explain_by_stages(s, row, 1e3 / row->figure);
}

typedef struct spent {
    double clock, caller,
        others; /* seconds; of the processor for the calling thread, and for the rest of the process */
} spent_t;

static spent_t now(void)
{
    struct timespec t[3];
    double seconds[3];
    clock_gettime(CLOCK_MONOTONIC, &t[0]);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t[1]);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t[2]);
    for (int i = 0; i < 3; i++)
        seconds[i] = (double)t[i].tv_sec + (double)t[i].tv_nsec * 1e-9;
    return (spent_t){seconds[0], seconds[1], seconds[2] - seconds[1]};
}

/*
 * Like other rows by the processor time of the thread that has most of it, the caller's with what only it does and its
 * waiting. The note tells what passed by the clock.
 */
static void threads_row(step_bench_t *s, lode_kernel_row_t *row)
{
    double rates[2][1024], clock[2][1024];
    uint32_t slices = s->bench->slices < 1024 ? s->bench->slices : 1024;
    for (uint32_t i = 0; i < 2 * slices; i++) {
        bool alone = i % 2;
        if (alone)
            step_alone(s);
        spent_t begin = now();
        step(s, s->sparse);
        spent_t end = now();
        double others = (end.others - begin.others) / (s->bench->threads > 2 ? s->bench->threads - 1 : 1);
        rates[alone][i / 2] = 1 / fmax(fmax(end.caller - begin.caller, others), 1e-9);
        clock[alone][i / 2] = end.clock - begin.clock;
        if (alone)
            step_together(s);
    }
    row->figure = lode_median(rates[0], slices);
    row->floor = lode_median(rates[1], slices);
    row->ratio = row->figure / row->floor;
    double together = lode_median(clock[0], slices), one = lode_median(clock[1], slices);
    snprintf(row->note, sizeof row->note, "by the clock, other work included: %.2f", one / together);
}

static lode_status_t measure(lode_kernels_bench_t *b, const shape_t *shape, lode_kernel_row_t *const rows[3])
{
    step_bench_t s = {.bench = b, .shape = shape, .tokens = b->quick ? shape->quick_tokens : shape->tokens};
    lode_status_t status = set_up(&s);
    if (status == LODE_OK) {
        uint64_t wrong = wrong_outputs(&s);
        status = whole_row(&s, rows[0]);
        if (status == LODE_OK && b->threads > 1)
            threads_row(&s, rows[1]);
        if (status == LODE_OK && rows[2])
            dense_row(&s, rows[2]);
        for (int i = 0; i < 3; i++)
            if (rows[i])
                rows[i]->wrong = wrong + s.failed;
    }
    take_down(&s);
    return status;
}

lode_status_t lode_kernels_step(lode_kernels_bench_t *b)
{
    static const shape_t shapes[] = {{"1x1M fp8", 1, 1 << 20, 20000, LODE_FORMAT_FP8, true},
                                     {"1x1M bf16", 1, 1 << 20, 20000, LODE_FORMAT_BF16, true},
                                     {"8x128K fp8", 8, 1 << 17, 6000, LODE_FORMAT_FP8, false}};
    lode_job_t job;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        lode_kernel_row_t *rows[] = {
            lode_kernels_row(b, "step_whole", shapes[i].name, GROUP, DIM, "ms"),
            lode_kernels_row(b, "step", shapes[i].name, GROUP, DIM, "1/s"),
            shapes[i].beside_dense ? lode_kernels_row(b, "step_dense", shapes[i].name, GROUP, DIM, "1/s") : NULL};
        rows[0]->target = 1.15;
        rows[0]->at_most = true;
        rows[1]->threads = b->threads > 1 ? b->threads : 2;
        rows[1]->target = 0.8 * rows[1]->threads;
        if (rows[2])
            rows[2]->target = 10;
        if (!b->ops)
            continue;
        if (b->threads < 2)
            snprintf(rows[1]->note, sizeof rows[1]->note, "skipped: one core or --threads 1");
        LODE_TRY(lode_job_begin(&job));
        LODE_TRY(measure(b, &shapes[i], rows));
    }
    return LODE_OK;
}
