/* SPDX-License-Identifier: Apache-2.0 */
#include "landmarks/index.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#include "landmarks/inside.h"

/* Where it pays (docs/index.md). */
#define LEAST_LANDMARKS 1048576
#define VISIT_SHARE 10 /* one group in so many is looked into, and as many more as landmarks are wanted */
#define MOST_SHARE 8   /* one in so many at most, or there is too little to skip */

#define BATCH_TILES 16
#define BATCH_GROUPS (BATCH_TILES * LODE_TILE / LODE_INDEX_GROUP)
#define AHEAD 4      /* groups asked for before they are copied */
#define NEVER -1e30f /* the score of what has none: finite, and e to it is 0 */

bool lode_index_kept(const lode_block_info_t *info)
{
    return info->landmark.index == LODE_INDEX_ON ||
           (info->landmark.index == LODE_INDEX_AUTO && info->expected_tokens / info->landmark.chunk >= LODE_INDEX_KEEP);
}

lode_landmark_spec_t lode_index_spec(const lode_landmark_spec_t *spec)
{
    lode_landmark_spec_t kept = *spec;
    if (spec->codec != LODE_LANDMARK_MEAN) {
        kept.codec = LODE_LANDMARK_UNIFORM;
        kept.bits = 4;
    }
    return kept;
}

/* ----------------------------------------------------------------- building */

void lode_index_build(const lode_ops_t *ops, const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles,
                      uint64_t from, uint64_t to, uint8_t *index)
{
    uint8_t rows[LODE_INDEX_GROUP * 2 * LODE_MAX_DIM], kept_row[2 * LODE_MAX_DIM];
    _Alignas(64) float mean[LODE_MAX_DIM], x[LODE_MAX_DIM];
    const lode_landmark_spec_t kept = lode_index_spec(spec);
    size_t row_bytes = lode_landmark_row_bytes(spec, dim);
    assert(row_bytes <= 2 * LODE_MAX_DIM);
    for (uint64_t group = from; group < to; group++) {
        ops->landmark_take(spec, dim, tiles, group * LODE_INDEX_GROUP, LODE_INDEX_GROUP, rows);
        memset(mean, 0, sizeof mean);
        for (uint32_t i = 0; i < LODE_INDEX_GROUP; i++) {
            lode_landmark_decode(spec, dim, rows + i * row_bytes, x);
            for (uint32_t j = 0; j < dim; j++)
                mean[j] += x[j];
        }
        for (uint32_t j = 0; j < dim; j++) /* finite, whatever overflowed */
            mean[j] = fminf(fmaxf(mean[j] / LODE_INDEX_GROUP, -0x1p125f), 0x1p125f);
        ops->landmark_quantise(&kept, dim, mean, 1, kept_row);
        ops->landmark_place(&kept, dim, kept_row, 1, index, group);
    }
}

/* --------------------------------------------------------------------- plan */

static uint64_t groups_of(const lode_piece_t *piece)
{
    return piece->landmarks / LODE_INDEX_GROUP;
}

/* Complete groups of a piece that are looked into whatever they score: [0, begin) and [end, groups). */
static void forced_of(const lode_choice_t *choice, const lode_piece_t *piece, bool kept, uint64_t *begin, uint64_t *end)
{
    uint64_t tokens = (uint64_t)choice->chunk * LODE_INDEX_GROUP, groups = groups_of(piece), first = piece->first_token;
    uint64_t sinks = choice->sinks > first ? choice->sinks - first : 0;
    uint64_t window = choice->window_begin > first ? choice->window_begin - first : 0;
    *begin = kept ? least((least(sinks, piece->tokens) + tokens - 1) / tokens, groups) : groups;
    *end = least(window / tokens, groups);
    if (*end < *begin)
        *end = *begin;
}

static size_t round_up(size_t n, size_t unit)
{
    return (n + unit - 1) / unit * unit;
}

/* Where things lie in the caller's memory. */
typedef struct work {
    float *means; /* (group, means_stride): scores of the representatives */
    size_t means_stride;
    uint32_t *visited; /* groups, counted over the view, ascending */
    lode_piece_t *runs;
    float *scores; /* (group, stride): of the landmarks looked at */
    size_t stride;
    uint32_t *scratch;
    uint8_t *batch;
    float *score_scratch;
} work_t;

/* @return bytes of it all. */
static size_t work_lay_out(const lode_index_plan_t *plan, const lode_choice_t *choice, uintptr_t base, work_t *work)
{
    size_t at = 0;
    work->means_stride = round_up(plan->groups, 16);
    work->stride = round_up(plan->most, 16);
    work->means = (float *)(base + at);
    at += choice->group * work->means_stride * sizeof(float);
    work->scores = (float *)(base + at);
    at += choice->group * work->stride * sizeof(float) + 64;
    work->batch = (uint8_t *)(base + round_up(at, 64));
    at = round_up(at, 64) + BATCH_TILES * LODE_TILE * 2 * LODE_MAX_DIM;
    work->score_scratch = (float *)(base + at);
    at += (size_t)choice->group * LODE_MAX_DIM / 2 * 256 * sizeof(float);
    work->runs = (lode_piece_t *)(base + at);
    at += (plan->visited + choice->piece_count) * sizeof(lode_piece_t);
    work->visited = (uint32_t *)(base + at);
    at += round_up(plan->visited * sizeof(uint32_t), 64);
    work->scratch = (uint32_t *)(base + at);
    return at + round_up(plan->most * sizeof(uint32_t), 64);
}

bool lode_index_worth(const lode_choice_t *choice, const lode_index_plan_t *plan)
{
    return plan->landmarks >= LEAST_LANDMARKS && choice->group > 1 && plan->visited <= plan->groups / MOST_SHARE;
}

bool lode_index_pays(lode_store_h store, const lode_choice_t *choice, const lode_index_part_t *parts,
                     lode_index_plan_t *plan)
{
    uint64_t begin, end;
    bool told = false;
    *plan = (lode_index_plan_t){0};
    for (uint32_t p = 0; p < choice->piece_count; p++) {
        const lode_block_info_t *info = lode_store_info(store, parts[p].slot);
        forced_of(choice, &choice->pieces[p], lode_index_kept(info), &begin, &end);
        plan->groups += groups_of(&choice->pieces[p]);
        plan->forced += begin + groups_of(&choice->pieces[p]) - end;
        plan->landmarks += choice->pieces[p].landmarks;
        told |= info->landmark.index == LODE_INDEX_ON;
    }
    uint64_t wanted = (choice->budget + choice->chunk - 1) / choice->chunk;
    plan->visited = plan->forced + plan->groups / VISIT_SHARE + wanted;
    plan->most = (plan->visited + choice->piece_count) * LODE_INDEX_GROUP;
    if (plan->visited >= plan->groups)
        return false;
    if (!told && !lode_index_worth(choice, plan))
        return false;
    work_t unused;
    plan->work_bytes = work_lay_out(plan, choice, 0, &unused);
    return true;
}

/* ---------------------------------------------------------- representatives */

/* Scores of one piece's groups, from `at` on in each row. */
static void means_score(lode_store_h store, uint32_t layer, uint32_t head, const lode_choice_t *choice,
                        const lode_piece_t *piece, const lode_index_part_t *part, const work_t *work, float *at)
{
    lode_landmark_query_t queries[LODE_MAX_GROUP];
    const lode_block_info_t *info = lode_store_info(store, part->slot);
    const lode_landmark_spec_t kept = lode_index_spec(&info->landmark);
    uint64_t groups = groups_of(piece), first = 0, count;
    uint32_t dim = lode_store_dim(store);
    const uint8_t *tiles;
    if (groups && lode_index_kept(info)) {
        lode_queries_prepare(lode_store_ops(store), &kept, dim, lode_store_mean(store, part->slot, layer, head),
                             part->transform, part->q, choice->group, queries);
        for (; first < groups; first += count) {
            count = lode_store_index(store, part->slot, layer, head, first, groups, &tiles);
            if (count == 0)
                break; /* dropped and collected meanwhile */
            lode_store_ops(store)->landmark_score(&kept, dim, tiles, count, queries, choice->group, at + first,
                                                  work->means_stride, NULL);
        }
    }
    for (uint32_t g = 0; g < choice->group; g++)
        for (uint64_t i = first; i < groups; i++)
            at[g * work->means_stride + i] = NEVER;
}

/* A log-sum-exp from those of parts, in the order in which they come. */
typedef struct sum {
    float most;
    double total; /* over e to most */
} sum_t;

static void sum_add(sum_t *sum, float part)
{
    if (part == -INFINITY)
        return;
    if (sum->total == 0) {
        *sum = (sum_t){part, 1};
    } else if (part > sum->most) {
        *sum = (sum_t){part, sum->total * exp((double)sum->most - (double)part) + 1};
    } else {
        sum->total += exp((double)part - (double)sum->most);
    }
}

static float sum_get(const sum_t *sum)
{
    return sum->total > 0 ? sum->most + (float)log(sum->total) : -INFINITY;
}

/* Means are too much alike for one of them to decide their sum: an eighth of them will do. */
static float logsumexp_about(const lode_ops_t *ops, const float *x, uint64_t n)
{
    const uint64_t stretch = 256, every = 8;
    sum_t sum = {0};
    for (uint64_t i = 0; i < n; i += every * stretch)
        sum_add(&sum, ops->logsumexp(x + i, least(stretch, n - i)));
    return sum_get(&sum);
}

/* The groups to look into, ascending. @return how many: plan->visited. */
static size_t visited_choose(lode_store_h store, uint32_t layer, uint32_t head, const lode_choice_t *choice,
                             const lode_index_part_t *parts, const lode_index_plan_t *plan, const work_t *work)
{
    const lode_ops_t *ops = lode_store_ops(store);
    float *at = work->means;
    for (uint32_t p = 0; p < choice->piece_count; at += groups_of(&choice->pieces[p++]))
        means_score(store, layer, head, choice, &choice->pieces[p], &parts[p], work, at);
    if (choice->group > 1) {
        float shift[LODE_MAX_GROUP];
        for (uint32_t g = 0; g < choice->group; g++)
            shift[g] = logsumexp_about(ops, work->means + g * work->means_stride, plan->groups);
        ops->group_max(work->means, work->means_stride, shift, choice->group, work->means, plan->groups);
    }
    at = work->means;
    for (uint32_t p = 0; p < choice->piece_count; at += groups_of(&choice->pieces[p++])) {
        uint64_t begin, end, groups = groups_of(&choice->pieces[p]);
        forced_of(choice, &choice->pieces[p], lode_index_kept(lode_store_info(store, parts[p].slot)), &begin, &end);
        for (uint64_t i = 0; i < begin; i++)
            at[i] = INFINITY;
        for (uint64_t i = end; i < groups; i++)
            at[i] = INFINITY;
    }
    return ops->topk(work->means, plan->groups, plan->visited, work->visited);
}

/* ---------------------------------------------------------------- landmarks */

/* A walk over groups of one head of a block, ascending: the stretch of tiles it stands in. */
typedef struct source {
    lode_store_h store;
    uint32_t slot, layer, head;
    uint64_t begin, end; /* landmarks */
    const uint8_t *tiles;
    size_t code_bytes, tile_bytes;
} source_t;

/* Words of 4 landmarks from landmark `first` on; the next word's are 64 bytes further. NULL: dropped meanwhile. */
static const uint8_t *group_at(const source_t *source, uint64_t first)
{
    uint64_t at = first - source->begin;
    return source->tiles + at / LODE_TILE * source->tile_bytes + at % LODE_TILE / 16 * 16 * source->code_bytes +
           at % 16 * 4;
}

static bool source_reach(source_t *source, uint64_t first)
{
    if (first >= source->begin && first < source->end)
        return true;
    source->begin = first / LODE_TILE * LODE_TILE;
    source->end = source->begin + lode_store_span(source->store, source->slot, source->layer, source->head,
                                                  source->begin, UINT64_MAX, &source->tiles);
    return first < source->end;
}

static void group_ask(const source_t *source, uint64_t first)
{
    if (first < source->begin || first >= source->end)
        return;
    const uint8_t *words = group_at(source, first);
    for (size_t i = 0; i < source->code_bytes / 4; i++)
        __builtin_prefetch(words + 64 * i);
}

/* Copy `count` ≤ LODE_INDEX_GROUP landmarks from `first` on to place `to` of tiles that lie in the cache. */
static void group_copy(source_t *source, const lode_landmark_spec_t *spec, uint64_t first, uint32_t count,
                       uint8_t *tiles, uint64_t to)
{
    if (!source_reach(source, first))
        return; /* its scores are of what lay there before: the step finds that the block is gone */
    uint8_t *tile = tiles + to / LODE_TILE * source->tile_bytes;
    uint8_t *words = tile + to % LODE_TILE / 16 * 16 * source->code_bytes + to % 16 * 4;
    const uint8_t *from = group_at(source, first);
    uint64_t at = first - source->begin;
    const uint8_t *scales = source->tiles + at / LODE_TILE * source->tile_bytes + LODE_TILE * source->code_bytes +
                            at % LODE_TILE * sizeof(uint16_t);
    uint8_t *scales_to = tile + LODE_TILE * source->code_bytes + to % LODE_TILE * sizeof(uint16_t);
    bool scaled = spec->codec != LODE_LANDMARK_MEAN;
    if (count == LODE_INDEX_GROUP) { /* sizes that the compiler knows */
        for (size_t i = 0; i < source->code_bytes / 4; i++)
            memcpy(words + 64 * i, from + 64 * i, 4 * LODE_INDEX_GROUP);
        if (scaled)
            memcpy(scales_to, scales, LODE_INDEX_GROUP * sizeof(uint16_t));
    } else {
        for (size_t i = 0; i < source->code_bytes / 4; i++)
            memcpy(words + 64 * i, from + 64 * i, 4 * count);
        if (scaled)
            memcpy(scales_to, scales, count * sizeof(uint16_t));
    }
}

/* What has been looked at so far. */
typedef struct looked {
    size_t runs;
    uint64_t landmarks;
    sum_t sums[LODE_MAX_GROUP]; /* of each score row */
} looked_t;

/* A run of tokens for lode_choose(): neighbours of the one before join it. */
static void run_add(const lode_choice_t *choice, const lode_piece_t *piece, uint64_t first, uint32_t count,
                    const work_t *work, looked_t *looked, uint64_t base_runs)
{
    uint64_t begin = piece->first_token + first * choice->chunk;
    uint64_t tokens = least(piece->tokens - first * choice->chunk, (uint64_t)count * choice->chunk);
    lode_piece_t *last = looked->runs > base_runs ? &work->runs[looked->runs - 1] : NULL;
    if (last && last->first_token + last->tokens == begin) {
        last->tokens += tokens;
        last->landmarks += count;
    } else {
        work->runs[looked->runs++] = (lode_piece_t){tokens, count, begin};
    }
}

/* Score the landmarks of some groups of a piece, in batches that are copied together. */
static void piece_look(lode_store_h store, uint32_t layer, uint32_t head, const lode_choice_t *choice,
                       const lode_piece_t *piece, const lode_index_part_t *part, const uint32_t *groups, size_t n,
                       uint32_t base, const work_t *work, looked_t *looked)
{
    lode_landmark_query_t queries[LODE_MAX_GROUP];
    const lode_ops_t *ops = lode_store_ops(store);
    const lode_landmark_spec_t *spec = &lode_store_info(store, part->slot)->landmark;
    uint32_t dim = lode_store_dim(store), rest = (uint32_t)(piece->landmarks % LODE_INDEX_GROUP);
    size_t all = n + (rest > 0), first_run = looked->runs;
    source_t source = {.store = store, .slot = part->slot, .layer = layer, .head = head};
    source.code_bytes = lode_landmark_code_bytes(spec, dim);
    source.tile_bytes = lode_landmark_tile_bytes(spec, dim);
    if (all == 0)
        return;
    lode_queries_prepare(ops, spec, dim, lode_store_mean(store, part->slot, layer, head), part->transform, part->q,
                         choice->group, queries);
    for (size_t i = 0; i < all;) {
        uint32_t filled = 0;
        for (; i < all && filled < BATCH_GROUPS * LODE_INDEX_GROUP; i++) {
            uint64_t first = (i < n ? groups[i] - base : groups_of(piece)) * (uint64_t)LODE_INDEX_GROUP;
            uint32_t count = i < n ? LODE_INDEX_GROUP : rest;
            if (i + AHEAD < n)
                group_ask(&source, (groups[i + AHEAD] - base) * (uint64_t)LODE_INDEX_GROUP);
            group_copy(&source, spec, first, count, work->batch, filled);
            run_add(choice, piece, first, count, work, looked, first_run);
            filled += count;
        }
        ops->landmark_score(spec, dim, work->batch, filled, queries, choice->group, work->scores + looked->landmarks,
                            work->stride, work->score_scratch);
        for (uint32_t g = 0; choice->group > 1 && g < choice->group; g++) /* while they are cached */
            sum_add(&looked->sums[g], ops->logsumexp(work->scores + looked->landmarks + g * work->stride, filled));
        looked->landmarks += filled;
    }
}

uint64_t lode_index_choose(lode_store_h store, uint32_t layer, uint32_t head, const lode_choice_t *choice,
                           const lode_index_part_t *parts, const lode_index_plan_t *plan, void *memory,
                           uint32_t *tokens)
{
    work_t work;
    looked_t looked = {0};
    work_lay_out(plan, choice, (uintptr_t)memory, &work);
    size_t count = visited_choose(store, layer, head, choice, parts, plan, &work), next = 0;
    uint32_t base = 0;
    for (uint32_t p = 0; p < choice->piece_count; p++) {
        const lode_piece_t *piece = &choice->pieces[p];
        uint32_t end = base + (uint32_t)groups_of(piece);
        size_t first = next;
        while (next < count && work.visited[next] < end)
            next++;
        piece_look(store, layer, head, choice, piece, &parts[p], work.visited + first, next - first, base, &work,
                   &looked);
        base = end;
    }
    float shift[LODE_MAX_GROUP];
    for (uint32_t g = 0; g < choice->group; g++)
        shift[g] = sum_get(&looked.sums[g]);
    lode_choice_t narrowed = *choice;
    narrowed.shift = shift;
    narrowed.pieces = work.runs;
    narrowed.piece_count = (uint32_t)looked.runs;
    return lode_choose(lode_store_ops(store), &narrowed, work.scores, work.stride, work.scratch, tokens);
}
