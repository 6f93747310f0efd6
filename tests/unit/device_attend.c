/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention and merges on a device, against the scalar kernels: a step's tables are made up at random (blocks, rows
 * that see them, choices, a cache, staged records), and each (row, head)'s records are found anew in plain C.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "device_open.h"

enum { MOST_BLOCKS = 6, MOST_PAGES = 4, MOST_ROWS = 3, MOST_HEADS = 3, MOST_SPLITS = 3, GUARD = 256, TURNS = 4 };

static const lode_device_ops_t *ops;
static const lode_ops_t *scalar;
static lode_device_h device;
static int thread_before;
static lode_device_stream_t stream;
static uint64_t seed, state;

static void setup(void)
{
    seed = state = device_seed(lode_now_ns());
    cr_assert_eq(lode_ops_get("scalar", &scalar), LODE_OK);
    device_open(&ops, &device, &thread_before, &stream);
}

static void teardown(void)
{
    device_close(ops, &device, thread_before, stream);
}

TestSuite(device_attend, .init = setup, .fini = teardown, .timeout = 200);

#define ok(call) \
    cr_assert_eq((call), LODE_OK, "%s: %s; LODEMARK_TEST_SEED=%llu", #call, ops->error(), (unsigned long long)seed)
#define expect(condition, format, ...) \
    cr_assert(condition, "%s; LODEMARK_TEST_SEED=%llu: " format, #condition, (unsigned long long)seed, __VA_ARGS__)

static uint32_t below(uint32_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % n);
}

static float gaussian(void)
{
    double x = 0;
    for (uint32_t i = 0; i < 6; i++)
        x += (below(1 << 24) + 0.5) / (1 << 24);
    return (float)((x - 3) * sqrt(2.0));
}

/* ----------------------------------------------------- memory of the device */

/* Poisoned memory with a guard on both sides. */
static void *device_make(size_t bytes)
{
    void *memory;
    ok(ops->alloc(device, bytes + 2 * GUARD, &memory));
    ok(ops->fill(stream, memory, 0xa5, bytes + 2 * GUARD));
    return (uint8_t *)memory + GUARD;
}

static void *device_copy(const void *from, size_t bytes)
{
    void *memory = device_make(bytes);
    if (bytes)
        ok(ops->copy(stream, memory, from, bytes));
    ok(ops->stream_wait(stream));
    return memory;
}

/* What is in it, if `to` is not NULL; its guards are looked at, and it is freed. */
static void device_take(void *memory, void *to, size_t bytes)
{
    uint8_t *all = malloc(bytes + 2 * GUARD);
    ok(ops->copy(stream, all, (uint8_t *)memory - GUARD, bytes + 2 * GUARD));
    ok(ops->stream_wait(stream));
    for (size_t i = 0; i < GUARD; i++)
        expect(all[i] == 0xa5 && all[GUARD + bytes + i] == 0xa5, "a guard of %zu bytes, at %zu", bytes, i);
    if (to)
        memcpy(to, all + GUARD, bytes);
    free(all);
    ops->free(device, (uint8_t *)memory - GUARD);
}

/* ------------------------------------------------------------------- a step */

/* How a world is made. */
typedef struct plan {
    lode_format_t format;
    uint32_t dim, group, rows, heads, blocks;
    uint32_t chosen;      /* tokens that a row chooses at most; 0: all it sees */
    bool rotated, others; /* others: some blocks are of other formats */
    float sharpness;
} plan_t;

/* A step's tables on the host; records by their number. */
typedef struct world {
    plan_t plan;
    lode_device_block_t blocks[MOST_BLOCKS];
    lode_device_row_t rows[MOST_ROWS];
    lode_device_part_t parts[MOST_ROWS * MOST_BLOCKS];
    lode_device_chosen_t chosen[MOST_ROWS * MOST_HEADS];
    uint32_t *tokens, token_count, part_count, masks, records, missed, slots, most_tokens;
    uint64_t *wanted;
    uint32_t *first, *places;
    uint8_t *cached, *staged, *tails;
    size_t stride, tail_stride, tail_bytes;
    float *q, *angles;
} world_t;

static uint8_t *tail_of(const world_t *w, const lode_device_part_t *part, uint32_t token, uint32_t head)
{
    return w->tails + ((size_t)part->tail + token * w->plan.heads + head) * w->tail_stride; /* tail is still a number */
}

static void make_record(lode_format_t format, uint32_t dim, uint8_t *record)
{
    float k[LODE_MAX_DIM], v[LODE_MAX_DIM];
    float key = 0.5f + (float)below(100) / 50, value = 0.5f + (float)below(100) / 50;
    for (uint32_t i = 0; i < dim; i++) {
        k[i] = key * gaussian();
        v[i] = value * gaussian();
    }
    scalar->record_encode(format, dim, k, v, below(1000), record);
}

static void make_blocks(world_t *w)
{
    for (uint32_t b = 0; b < w->plan.blocks; b++) {
        w->masks += below(3); /* places between blocks that are nobody's */
        bool other = w->plan.others && b % 2 == 1;
        w->blocks[b] = (lode_device_block_t){.id = 77 + b,
                                             .first_mask = w->masks,
                                             .pages = 1 + below(MOST_PAGES),
                                             .format = other ? (w->plan.format + 1) % 3 : w->plan.format};
        w->masks += w->blocks[b].pages * w->plan.heads;
    }
}

/* Rows see prefixes of some blocks, in the same order each, and tails. */
static void make_parts(world_t *w)
{
    uint32_t tails = 0;
    for (uint32_t r = 0; r < w->plan.rows; r++) {
        uint64_t token = 0;
        w->rows[r].first_part = w->part_count;
        for (uint32_t b = 0; b < w->plan.blocks; b++) {
            if (w->plan.blocks > 1 && below(8) == 0)
                continue;
            lode_device_part_t part = {.first_token = token,
                                       .block = b,
                                       .visible = below(10) ? 1 + below(64 * w->blocks[b].pages) : 0,
                                       .angles = w->plan.rotated && below(5) ? below(TURNS) : UINT32_MAX,
                                       .tail_tokens = below(3) ? 0 : 1 + below(70),
                                       .tail = (const uint8_t *)(uintptr_t)tails};
            tails += part.tail_tokens * w->plan.heads;
            token += part.visible + part.tail_tokens;
            w->parts[w->part_count++] = part;
        }
        w->rows[r].part_count = w->part_count - w->rows[r].first_part;
    }
    w->tail_stride = lode_device_record_bytes(LODE_FORMAT_BF16, w->plan.dim);
    w->tail_bytes = tails * w->tail_stride;
    w->tails = malloc(w->tail_bytes + 1);
    memset(w->tails, 0xff, w->tail_bytes); /* what lies between records is NaN */
    for (uint32_t i = 0; i < tails; i++)
        make_record(LODE_FORMAT_BF16, w->plan.dim, w->tails + i * w->tail_stride);
}

static uint32_t mask_of(const world_t *w, const lode_device_part_t *part, uint32_t token, uint32_t head)
{
    return w->blocks[part->block].first_mask + token / 64 * w->plan.heads + head;
}

/* Each (row, head) chooses some of what it sees, or all. */
static void make_choices(world_t *w)
{
    w->tokens = malloc(4 * MOST_ROWS * MOST_HEADS * MOST_BLOCKS * MOST_PAGES * 64 + 4);
    for (uint32_t i = 0; i < w->plan.rows * w->plan.heads; i++) {
        const lode_device_row_t *row = &w->rows[i / w->plan.heads];
        uint32_t seen = 0;
        w->chosen[i] = (lode_device_chosen_t){.tokens = w->plan.chosen ? w->token_count : UINT64_MAX};
        for (uint32_t p = row->first_part; p < row->first_part + row->part_count; p++)
            seen += w->parts[p].visible;
        for (uint32_t p = row->first_part; p < row->first_part + row->part_count; p++)
            for (uint32_t t = 0; t < w->parts[p].visible; t++) {
                if (w->plan.chosen && below(seen) >= w->plan.chosen)
                    continue;
                if (w->plan.chosen)
                    w->tokens[w->token_count++] = (uint32_t)w->parts[p].first_token + t;
                w->chosen[i].count++;
                w->wanted[mask_of(w, &w->parts[p], t, i % w->plan.heads)] |= 1ull << t % 64;
            }
        if (w->chosen[i].count > w->most_tokens)
            w->most_tokens = w->chosen[i].count;
    }
}

static lode_format_t format_of_mask(const world_t *w, uint32_t mask)
{
    uint32_t b = w->plan.blocks - 1;
    while (b > 0 && w->blocks[b].first_mask > mask)
        b--;
    return w->blocks[b].format;
}

/* Number the records; some are in the cache, at random slots, the others staged in their order. */
static void make_records(world_t *w)
{
    uint32_t records = 0;
    for (uint32_t m = 0; m < w->masks; m++) {
        w->first[m] = w->wanted[m] ? records : 0xdeadbeef;
        records += (uint32_t)__builtin_popcountll(w->wanted[m]);
    }
    w->records = records;
    w->slots = records + 8;
    w->stride = lode_device_record_bytes(w->plan.format, w->plan.dim);
    w->places = malloc(4 * records + 4);
    w->cached = malloc(w->slots * w->stride);
    w->staged = malloc(records * w->stride + 1);
    memset(w->cached, 0xff, w->slots * w->stride);
    memset(w->staged, 0xff, records * w->stride);
    uint32_t *slots = malloc(4 * w->slots);
    for (uint32_t i = 0; i < w->slots; i++) {
        uint32_t j = below(i + 1);
        slots[i] = slots[j];
        slots[j] = i;
    }
    uint32_t hit = below(4), number = 0;
    for (uint32_t m = 0; m < w->masks; m++)
        for (uint64_t left = w->wanted[m]; left; left &= left - 1, number++) {
            bool cached = below(3) < hit;
            w->places[number] = cached ? slots[number] : LODE_DEVICE_STAGED | w->missed++;
            uint8_t *record = cached ? w->cached + slots[number] * w->stride : w->staged + (w->missed - 1) * w->stride;
            if (format_of_mask(w, m) == w->plan.format)
                make_record(w->plan.format, w->plan.dim, record);
        }
    free(slots);
}

static world_t world_make(plan_t plan)
{
    world_t w = {.plan = plan};
    make_blocks(&w);
    w.wanted = calloc(w.masks + 1, 8);
    w.first = calloc(w.masks + 1, 4);
    make_parts(&w);
    make_choices(&w);
    make_records(&w);
    size_t numbers = (size_t)plan.rows * plan.heads * plan.group * plan.dim;
    w.q = malloc(4 * numbers);
    w.angles = malloc(4 * TURNS * plan.dim);
    for (size_t i = 0; i < numbers; i++)
        w.q[i] = plan.sharpness * gaussian() / sqrtf((float)plan.dim);
    for (uint32_t i = 0; i < TURNS * plan.dim; i++) {
        double angle = i % plan.dim < plan.dim / 2 ? 0.1 * (double)i : 0.1 * (double)(i - plan.dim / 2);
        w.angles[i] = (float)(i % plan.dim < plan.dim / 2 ? cos(angle) : sin(angle));
    }
    return w;
}

static void world_free(world_t *w)
{
    free(w->tokens);
    free(w->wanted);
    free(w->first);
    free(w->places);
    free(w->cached);
    free(w->staged);
    free(w->tails);
    free(w->q);
    free(w->angles);
}

/* ---------------------------------------------------------------- reference */

/* What one launch is over. */
typedef struct share {
    bool tails, hits;
    uint32_t begin, end; /* staged */
} share_t;

/* Records of a part that a (row, head) attends over in a launch. */
static size_t part_records(const world_t *w, uint32_t row_head, const lode_device_part_t *part, const share_t *share,
                           const uint8_t **records)
{
    const lode_device_chosen_t *chosen = &w->chosen[row_head];
    uint32_t head = row_head % w->plan.heads, at = 0;
    size_t n = 0;
    for (uint32_t t = 0; share->tails && t < part->tail_tokens; t++)
        records[n++] = tail_of(w, part, t, head);
    if (share->tails || w->blocks[part->block].format != w->plan.format)
        return n;
    for (uint32_t t = 0; t < part->visible; t++) {
        uint32_t mask = mask_of(w, part, t, head);
        while (chosen->tokens != UINT64_MAX && at < chosen->count &&
               w->tokens[chosen->tokens + at] < part->first_token + t)
            at++;
        if (chosen->tokens != UINT64_MAX &&
            (at == chosen->count || w->tokens[chosen->tokens + at] != part->first_token + t))
            continue;
        uint64_t lower = w->wanted[mask] & ((1ull << t % 64) - 1);
        uint32_t place = w->places[w->first[mask] + (uint32_t)__builtin_popcountll(lower)];
        uint32_t number = place & ~LODE_DEVICE_STAGED;
        if (!(place & LODE_DEVICE_STAGED) && share->hits)
            records[n++] = w->cached + number * w->stride;
        else if (place & LODE_DEVICE_STAGED && number >= share->begin && number < share->end)
            records[n++] = w->staged + number * w->stride;
    }
    return n;
}

/* One (row, head): each part with its own rotation, merged. @return records */
static size_t reference(const world_t *w, uint32_t row_head, const share_t *share, float *out, float *lse)
{
    static const uint8_t *records[64 * MOST_PAGES + 128];
    const plan_t *plan = &w->plan;
    const lode_device_row_t *row = &w->rows[row_head / plan->heads];
    float q[LODE_MAX_GROUP * LODE_MAX_DIM], part_out[LODE_MAX_GROUP * LODE_MAX_DIM], part_lse[LODE_MAX_GROUP];
    size_t all = 0;
    for (uint32_t i = 0; i < plan->group * plan->dim; i++)
        out[i] = 0;
    for (uint32_t g = 0; g < plan->group; g++)
        lse[g] = -INFINITY;
    for (uint32_t p = row->first_part; p < row->first_part + row->part_count; p++) {
        const lode_device_part_t *part = &w->parts[p];
        size_t n = part_records(w, row_head, part, share, records);
        const float *turn = w->angles + (part->angles == UINT32_MAX ? 0 : part->angles) * plan->dim;
        memcpy(q, w->q + (size_t)row_head * plan->group * plan->dim, 4 * plan->group * plan->dim);
        if (part->angles != UINT32_MAX)
            scalar->rotate(q, plan->group, plan->dim, turn, turn + plan->dim / 2);
        scalar->attend(share->tails ? LODE_FORMAT_BF16 : plan->format, plan->dim, plan->group, records, n, q, part_out,
                       part_lse);
        scalar->merge(out, lse, part_out, part_lse, plan->group, plan->dim);
        all += n;
    }
    return all;
}

/* ------------------------------------------------------------------- device */

/* The world as the device has it, and its outputs for one launch. */
typedef struct there {
    lode_device_attend_t attend;
    void *tails;
} there_t;

static there_t there_make(const world_t *w)
{
    const plan_t *plan = &w->plan;
    there_t t = {.tails = device_copy(w->tails, w->tail_bytes)};
    lode_device_part_t parts[MOST_ROWS * MOST_BLOCKS];
    for (uint32_t i = 0; i < w->part_count; i++) {
        parts[i] = w->parts[i];
        parts[i].tail = (const uint8_t *)t.tails + (size_t)w->parts[i].tail * w->tail_stride;
    }
    t.attend = (lode_device_attend_t){
        .format = plan->format,
        .dim = plan->dim,
        .group = plan->group,
        .heads = plan->heads,
        .q = device_copy(w->q, 4ul * plan->rows * plan->heads * plan->group * plan->dim),
        .angles = device_copy(w->angles, 4ul * TURNS * plan->dim),
        .rows = device_copy(w->rows, sizeof *w->rows * plan->rows),
        .row_count = plan->rows,
        .parts = device_copy(parts, sizeof *parts * w->part_count),
        .blocks = device_copy(w->blocks, sizeof *w->blocks * plan->blocks),
        .chosen = device_copy(w->chosen, sizeof *w->chosen * plan->rows * plan->heads),
        .tokens = device_copy(w->tokens, 4ul * w->token_count),
        .most_tokens = w->most_tokens,
        .wanted = device_copy(w->wanted, 8ul * w->masks),
        .first = device_copy(w->first, 4ul * w->masks),
        .places = device_copy(w->places, 4ul * w->records),
        .cached = device_copy(w->cached, w->slots * w->stride),
    };
    return t;
}

static void there_free(const world_t *w, there_t *t)
{
    const plan_t *plan = &w->plan;
    device_take((void *)t->attend.q, NULL, 4ul * plan->rows * plan->heads * plan->group * plan->dim);
    device_take((void *)t->attend.angles, NULL, 4ul * TURNS * plan->dim);
    device_take((void *)t->attend.rows, NULL, sizeof *w->rows * plan->rows);
    device_take((void *)t->attend.parts, NULL, sizeof *w->parts * w->part_count);
    device_take((void *)t->attend.blocks, NULL, sizeof *w->blocks * plan->blocks);
    device_take((void *)t->attend.chosen, NULL, sizeof *w->chosen * plan->rows * plan->heads);
    device_take((void *)t->attend.tokens, NULL, 4ul * w->token_count);
    device_take((void *)t->attend.wanted, NULL, 8ul * w->masks);
    device_take((void *)t->attend.first, NULL, 4ul * w->masks);
    device_take((void *)t->attend.places, NULL, 4ul * w->records);
    device_take((void *)t->attend.cached, NULL, w->slots * w->stride);
    device_take(t->tails, NULL, w->tail_bytes);
}

/* Attend over one share in so many splits; the outputs stay on the device. */
static lode_device_parts_t there_attend(const world_t *w, there_t *t, const share_t *share, uint32_t splits)
{
    size_t queries = (size_t)w->plan.rows * w->plan.heads * splits * w->plan.group;
    lode_device_attend_t *a = &t->attend;
    void *staged = device_copy(w->staged + share->begin * w->stride, (share->end - share->begin) * w->stride);
    a->staged = staged;
    a->staged_begin = share->begin;
    a->staged_end = share->end;
    a->hits = share->hits;
    a->tails = share->tails;
    a->splits = splits;
    a->out = device_make(4 * queries * w->plan.dim);
    a->lse = device_make(4 * queries);
    ok(ops->attend(stream, a));
    device_take(staged, NULL, (share->end - share->begin) * w->stride);
    return (lode_device_parts_t){a->out, a->lse, splits};
}

static void parts_free(const world_t *w, lode_device_parts_t *set)
{
    size_t queries = (size_t)w->plan.rows * w->plan.heads * set->splits * w->plan.group;
    device_take((void *)set->out, NULL, 4 * queries * w->plan.dim);
    device_take((void *)set->lse, NULL, 4 * queries);
}

/* What a logit loses grows with logits; of HIGGS the grid is rounded to fp16 besides. */
static double tolerance(const plan_t *plan)
{
    return plan->format == LODE_FORMAT_HIGGS4 ? 2e-3 * fmax(1, plan->sharpness) : 3e-4 * fmax(1, plan->sharpness / 2);
}

static void compare(const world_t *w, const share_t *shares, uint32_t count, const float *out, const float *lse)
{
    const plan_t *plan = &w->plan;
    float right[LODE_MAX_GROUP * LODE_MAX_DIM], right_lse[LODE_MAX_GROUP];
    float more[LODE_MAX_GROUP * LODE_MAX_DIM], more_lse[LODE_MAX_GROUP];
    for (uint32_t i = 0; i < plan->rows * plan->heads; i++) {
        size_t n = reference(w, i, &shares[0], right, right_lse);
        for (uint32_t s = 1; s < count; s++) {
            n += reference(w, i, &shares[s], more, more_lse);
            scalar->merge(right, right_lse, more, more_lse, plan->group, plan->dim);
        }
        double slack = tolerance(plan);
        for (uint32_t g = 0; g < plan->group; g++) {
            double error = 0, size = 0;
            const float *mine = out + ((size_t)i * plan->group + g) * plan->dim;
            float mine_lse = lse[(size_t)i * plan->group + g];
            for (uint32_t j = 0; j < plan->dim; j++) {
                error += pow(mine[j] - right[g * plan->dim + j], 2);
                size += pow(right[g * plan->dim + j], 2);
            }
            expect(sqrt(error) <= slack * sqrt(size),
                   "format %d, D %u, group %u, row·head %u, query %u, %zu records: %g of %g", plan->format, plan->dim,
                   plan->group, i, g, n, sqrt(error), sqrt(size));
            expect(n ? fabs((double)mine_lse - right_lse[g]) <= slack : mine_lse == -INFINITY,
                   "format %d, D %u, group %u, row·head %u, query %u, %zu records: lse %g, not %g", plan->format,
                   plan->dim, plan->group, i, g, n, (double)mine_lse, (double)right_lse[g]);
        }
    }
}

/* Merge sets on the device and compare with the same shares of the reference. */
static void merge_and_compare(const world_t *w, const lode_device_parts_t *sets, const share_t *shares, uint32_t count)
{
    const plan_t *plan = &w->plan;
    size_t queries = (size_t)plan->rows * plan->heads * plan->group;
    float *out = device_make(4 * queries * plan->dim), *lse = device_make(4 * queries);
    float *host_out = malloc(4 * queries * plan->dim), *host_lse = malloc(4 * queries);
    ok(ops->merge(stream, sets, count, plan->rows * plan->heads, plan->group, plan->dim, out, lse));
    device_take(out, host_out, 4 * queries * plan->dim);
    device_take(lse, host_lse, 4 * queries);
    compare(w, shares, count, host_out, host_lse);
    free(host_out);
    free(host_lse);
}

/* Cached records with the first staged ones, the other staged ones, and the tails: each alone, then all. */
static void check(plan_t plan)
{
    world_t w = world_make(plan);
    there_t there = there_make(&w);
    uint32_t cut = below(w.missed + 1);
    share_t shares[3] = {{.hits = true, .begin = 0, .end = cut}, {.begin = cut, .end = w.missed}, {.tails = true}};
    lode_device_parts_t sets[3];
    for (uint32_t i = 0; i < 3; i++) {
        sets[i] = there_attend(&w, &there, &shares[i], 1 + below(MOST_SPLITS));
        merge_and_compare(&w, &sets[i], &shares[i], 1);
    }
    merge_and_compare(&w, sets, shares, 3);
    for (uint32_t i = 0; i < 3; i++)
        parts_free(&w, &sets[i]);
    there_free(&w, &there);
    world_free(&w);
}

/* ------------------------------------------------------------------- tests */

static const uint32_t dims[] = {64, 128, 256}, groups[] = {1, 2, 3, 4, 5, 8, 12, 16};

/* One block that a row sees from its own place, a choice of an odd number of tokens. */
static void check_format(lode_format_t format)
{
    for (uint32_t d = 0; d < 3; d++)
        for (uint32_t g = 0; g < 8; g++)
            check((plan_t){.format = format,
                           .dim = dims[d],
                           .group = groups[g],
                           .rows = 1,
                           .heads = 1 + (g == 3),
                           .blocks = 1,
                           .chosen = 1 + below(50),
                           .rotated = below(2),
                           .sharpness = 1});
}

Test(device_attend, bf16)
{
    check_format(LODE_FORMAT_BF16);
}

Test(device_attend, fp8)
{
    check_format(LODE_FORMAT_FP8);
}

Test(device_attend, higgs4)
{
    check_format(LODE_FORMAT_HIGGS4);
}

/* Rows of several blocks under rotations of their own, some of another format. */
Test(device_attend, parts)
{
    for (uint32_t i = 0; i < 6; i++)
        check((plan_t){.format = (lode_format_t)(i % 3),
                       .dim = dims[below(2)],
                       .group = groups[below(8)],
                       .rows = i % 2 ? 3 : 1,
                       .heads = 1 + below(MOST_HEADS),
                       .blocks = 2 + below(MOST_BLOCKS - 1),
                       .chosen = 1 + below(200),
                       .rotated = true,
                       .others = i % 2,
                       .sharpness = 1});
}

/* All that a row sees. */
Test(device_attend, all)
{
    for (uint32_t i = 0; i < 4; i++)
        check((plan_t){.format = (lode_format_t)(i % 3),
                       .dim = 64,
                       .group = groups[below(8)],
                       .rows = 1 + below(3),
                       .heads = 1 + below(2),
                       .blocks = 1 + below(4),
                       .rotated = i % 2,
                       .others = i >= 2,
                       .sharpness = 1});
}

/* Logits far apart: nearly all the weight is on one token. */
Test(device_attend, sharp)
{
    for (uint32_t i = 0; i < 3; i++)
        check((plan_t){.format = (lode_format_t)i,
                       .dim = 128,
                       .group = 4 + 8 * below(2),
                       .rows = 1,
                       .heads = 1,
                       .blocks = 2,
                       .chosen = 100,
                       .rotated = true,
                       .sharpness = 12});
}

/* Sets as attend() leaves them, some parts empty with anything for an output; then all empty. */
static void check_merge(uint32_t count, uint32_t rows, uint32_t group, uint32_t dim, bool empty)
{
    lode_device_parts_t sets[LODE_DEVICE_SETS];
    float *right = calloc((size_t)rows * group * dim, 4), *right_lse = malloc(4ul * rows * group);
    for (uint32_t i = 0; i < rows * group; i++)
        right_lse[i] = -INFINITY;
    for (uint32_t s = 0; s < count; s++) {
        uint32_t splits = 1 + below(s == 0 ? 90 : 3), parts = rows * splits * group;
        float *out = malloc(4ul * parts * dim), *lse = malloc(4ul * parts);
        for (uint32_t i = 0; i < parts; i++) {
            bool none = empty || below(3) == 0;
            lse[i] = none ? -INFINITY : 30 * gaussian();
            for (uint32_t j = 0; j < dim; j++)
                out[(size_t)i * dim + j] = none ? NAN : gaussian();
            uint32_t row = i / (splits * group) * group + i % group;
            if (!none)
                scalar->merge(right + (size_t)row * dim, right_lse + row, out + (size_t)i * dim, lse + i, 1, dim);
        }
        sets[s] = (lode_device_parts_t){device_copy(out, 4ul * parts * dim), device_copy(lse, 4ul * parts), splits};
        free(out);
        free(lse);
    }
    size_t queries = (size_t)rows * group;
    float *there = device_make(4 * queries * dim), *there_lse = device_make(4 * queries);
    float *out = malloc(4 * queries * dim), *lse = malloc(4 * queries);
    ok(ops->merge(stream, sets, count, rows, group, dim, there, there_lse));
    device_take(there, out, 4 * queries * dim);
    device_take(there_lse, lse, 4 * queries);
    for (size_t i = 0; i < queries; i++)
        expect(lse[i] == right_lse[i] || fabsf(lse[i] - right_lse[i]) < 1e-4f, "%u sets, query %zu: lse %g, not %g",
               count, i, (double)lse[i], (double)right_lse[i]);
    for (size_t i = 0; i < queries * dim; i++)
        expect(fabsf(out[i] - right[i]) < 1e-4f, "%u sets, number %zu: %g, not %g", count, i, (double)out[i],
               (double)right[i]);
    for (uint32_t s = 0; s < count; s++) {
        size_t parts = (size_t)rows * sets[s].splits * group;
        device_take((void *)sets[s].out, NULL, 4 * parts * dim);
        device_take((void *)sets[s].lse, NULL, 4 * parts);
    }
    free(right);
    free(right_lse);
    free(out);
    free(lse);
}

Test(device_attend, merge)
{
    for (uint32_t d = 0; d < 3; d++)
        for (uint32_t count = 1; count <= LODE_DEVICE_SETS; count += 1 + below(4))
            check_merge(count, 1 + below(3), groups[below(5)], dims[d], false);
    check_merge(1, 2, 3, 64, true);
    check_merge(3, 1, 4, 128, true);
}

Test(device_attend, refused)
{
    lode_device_attend_t a = {.dim = 64, .group = 1, .heads = 1, .row_count = 1, .splits = 1}, b = a;
    lode_device_parts_t set = {NULL, NULL, 1};
    b.dim = 96;
    cr_assert_eq(ops->attend(stream, &b), LODE_ERR_INVALID);
    cr_assert(strstr(ops->error(), "dimension 96"), "%s", ops->error());
    b = a;
    b.group = LODE_MAX_GROUP + 1;
    cr_assert_eq(ops->attend(stream, &b), LODE_ERR_INVALID);
    b = a;
    b.splits = 0;
    cr_assert_eq(ops->attend(stream, &b), LODE_ERR_INVALID);
    b = a;
    b.format = (lode_format_t)9;
    cr_assert_eq(ops->attend(stream, &b), LODE_ERR_INVALID);
    b = a;
    b.row_count = 0;
    ok(ops->attend(stream, &b));
    ok(ops->merge(stream, &set, 1, 0, 1, 64, NULL, NULL));
    cr_assert_eq(ops->merge(stream, &set, 1, 1, 1, 32, NULL, NULL), LODE_ERR_INVALID);
    cr_assert_eq(ops->merge(stream, &set, LODE_DEVICE_SETS + 1, 1, 1, 64, NULL, NULL), LODE_ERR_INVALID);
}

/* Enough blocks for the device, never more than there is work for. */
Test(device_attend, splits)
{
    lode_device_info_t info;
    ok(ops->query(0, &info));
    cr_assert_eq(ops->attend_splits(device, 1, 8, 0), 1);
    cr_assert_eq(ops->attend_splits(device, 1, 8, 63), 1);
    cr_assert_eq(ops->attend_splits(device, 100000, 8, 1000000), 1);
    uint32_t many = ops->attend_splits(device, 1, 2, 1000000), few = ops->attend_splits(device, 1, 2, 300);
    cr_assert(many >= info.processors / 2 && many <= 4 * info.processors, "%u splits on %u", many, info.processors);
    cr_assert(few >= 1 && few <= 6, "%u", few);
}
