/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact attention of every row over the records of a tile, or of the tails, merged into the outputs. What a row and
 * head attends to is always cut into the same portions and merged in the same order, whichever threads take them.
 */
#include <string.h>

#include "attend/step.h"

/* Attend over n records of one block. part: (G, D), part_lse: (G) */
static void attend_records(const lode_step_state_t *step, const lode_step_stream_t *stream,
                           const lode_seen_block_t *seen, lode_format_t format, uint32_t row, uint32_t head,
                           const uint8_t *const *records, size_t n, lode_lane_t *lane, float *part, float *part_lse)
{
    lode_cluster_h cluster = step->cluster;
    float q[LODE_MAX_GROUP * LODE_MAX_DIM];
    uint64_t begin = lode_now_ns();
    lode_rotate_queries(step, stream, seen, row, head, q);
    uint64_t rotated = lode_now_ns();
    cluster->ops->attend(format, cluster->geometry.head_dim, cluster->group, records, n, q, part, part_lse);
    lane->stage_ns[LODE_STAGE_ROTATE] += rotated - begin;
    lane->stage_ns[LODE_STAGE_ATTEND] += lode_now_ns() - rotated;
}

static void merge_part(const lode_step_state_t *step, const lode_step_stream_t *stream, uint32_t row, uint32_t head,
                       const float *part, const float *part_lse, lode_lane_t *lane)
{
    lode_cluster_h cluster = step->cluster;
    uint32_t dim = cluster->geometry.head_dim, group = cluster->group;
    size_t at = (size_t)row * cluster->query_heads + (size_t)head * group;
    uint64_t begin = lode_now_ns();
    cluster->ops->merge(stream->in->out + at * dim, stream->lse + at, part, part_lse, group, dim);
    lane->stage_ns[LODE_STAGE_MERGE] += lode_now_ns() - begin;
}

const uint32_t *lode_lower_bound(const uint32_t *tokens, const uint32_t *end, uint64_t token)
{
    while (tokens < end) {
        const uint32_t *middle = tokens + (end - tokens) / 2;
        if (*middle < token)
            tokens = middle + 1;
        else
            end = middle;
    }
    return tokens;
}

/* ----------------------------------------------------------------- portions */

/* What one row and KV head attends to in a tile: how far its runs of pages have been cut into portions. */
typedef struct cutting {
    const lode_tile_t *tile;
    const lode_step_stream_t *stream;
    const lode_chosen_t *chosen;
    uint32_t row, head;
    uint32_t run; /* it stands in: something of it is left, or there are no more runs */
    const lode_seen_block_t *seen;
    const lode_step_block_t *block;
    const uint32_t *tokens, *tokens_end; /* chosen ones that are left */
    uint64_t token, token_end;           /* if all are: of the block, from the first that is left */
} cutting_t;

static const lode_step_stream_t *stream_of_row(const lode_step_state_t *step, uint32_t row)
{
    uint32_t s = 0;
    while (s + 1 < step->stream_count && lode_stream_at(step, s + 1)->first_row <= row)
        s++;
    return lode_stream_at(step, s);
}

/* lode_lower_bound() in a row's chosen tokens, for one that is likely to be near @p near. */
static const uint32_t *find_near(const uint32_t *first, const uint32_t *near, const uint32_t *end, uint64_t token)
{
    size_t reach = 1;
    if (near > first && near[-1] >= token)
        return lode_lower_bound(first, near, token);
    while (reach < (size_t)(end - near) && near[reach] < token)
        reach *= 2;
    return lode_lower_bound(near, reach < (size_t)(end - near) ? near + reach : end, token);
}

/* What the row has chosen of the run that it stands in. */
static void find_chosen(const lode_step_state_t *step, cutting_t *c)
{
    const uint32_t *chosen = (const uint32_t *)step->tokens.data + c->chosen->start, *end = chosen + c->chosen->count;
    const uint32_t *near = c->tokens_end ? c->tokens_end : chosen;
    c->tokens = find_near(chosen, near, end, c->seen->first_token + c->token);
    c->tokens_end = find_near(chosen, c->tokens, end, c->seen->first_token + c->token_end);
}

/* @return whether anything is left of the run */
static bool begin_run(const lode_step_state_t *step, cutting_t *c)
{
    const lode_run_t *run = (const lode_run_t *)c->tile->runs.data + c->run;
    size_t s = (size_t)(c->stream - lode_stream_at(step, 0));
    uint32_t at = ((const uint32_t *)step->seen_at.data)[s * step->block_count + run->block];
    if (at == UINT32_MAX)
        return false;
    c->seen = (const lode_seen_block_t *)step->seen.data + at;
    c->block = lode_step_block_at(step, run->block);
    uint64_t end = (uint64_t)run->page_end * LODE_PAGE_TOKENS;
    uint64_t tokens =
        c->chosen->all ? lode_visible(c->seen, c->block->tokens, c->stream->position + c->row) : c->block->tokens;
    c->token = (uint64_t)run->page_begin * LODE_PAGE_TOKENS;
    c->token_end = end < tokens ? end : tokens;
    if (c->chosen->all)
        return c->token < c->token_end;
    find_chosen(step, c);
    return c->tokens < c->tokens_end;
}

static void reach_run(const lode_step_state_t *step, cutting_t *c)
{
    while (c->run < c->tile->run_count && !begin_run(step, c))
        c->run++;
}

/* @p item: the step's rows by its heads. */
static cutting_t cutting_of(const lode_step_state_t *step, const lode_tile_t *tile, uint32_t item)
{
    uint32_t row = item / step->cluster->heads, head = item % step->cluster->heads;
    const lode_step_stream_t *stream = stream_of_row(step, row);
    cutting_t c = {.tile = tile,
                   .stream = stream,
                   .chosen = lode_chosen_at(step, row, head),
                   .row = row - (uint32_t)stream->first_row,
                   .head = head};
    reach_run(step, &c);
    return c;
}

/* Whether anything is left. */
static bool any_left(const cutting_t *c)
{
    return c->run < c->tile->run_count;
}

/* Pointers to the records of n chosen tokens. Where no other row wants more of a page, they follow one another. */
static void collect_chosen(const lode_step_state_t *step, const cutting_t *c, size_t n, const uint8_t **pointers)
{
    const uint64_t *wanted = step->wanted.data;
    for (const uint32_t *at = c->tokens, *end = at + n; at < end;) {
        uint64_t mine = 0, page = (*at - c->seen->first_token) / LODE_PAGE_TOKENS;
        uint64_t first = c->seen->first_token + page * LODE_PAGE_TOKENS;
        for (; at < end && *at < first + LODE_PAGE_TOKENS; at++)
            mine |= (uint64_t)1 << (*at - first);
        size_t mask = lode_mask_at(step, c->block, (uint32_t)page, c->head);
        const uint8_t **record = (const uint8_t **)c->tile->records.data + ((uint32_t *)step->first_record.data)[mask];
        for (uint64_t all = wanted[mask]; mine; all &= all - 1, record++)
            if (mine & all & -all) {
                *pointers++ = *record;
                mine &= mine - 1;
            }
    }
}

/* All of a row's visible tokens are wanted, so their records follow one another page by page. */
static void collect_all(const lode_step_state_t *step, const cutting_t *c, size_t n, const uint8_t **pointers)
{
    const uint32_t *first_record = step->first_record.data;
    for (uint64_t token = c->token, end = token + n; token < end;) {
        uint64_t before = token % LODE_PAGE_TOKENS, left = LODE_PAGE_TOKENS - before;
        size_t count = end - token < left ? end - token : left;
        size_t mask = lode_mask_at(step, c->block, (uint32_t)(token / LODE_PAGE_TOKENS), c->head);
        memcpy(pointers, (const uint8_t **)c->tile->records.data + first_record[mask] + before,
               count * sizeof *pointers);
        pointers += count;
        token += count;
    }
}

/* Take at most `room` records from the run; those of its block are number `turn` in the lane. NULL: leave them behind.
 */
static size_t take_of_run(const lode_step_state_t *step, cutting_t *c, size_t room, uint16_t turn, size_t at,
                          lode_lane_t *lane)
{
    bool all = c->chosen->all;
    size_t left = all ? c->token_end - c->token : (size_t)(c->tokens_end - c->tokens), n = left < room ? left : room;
    if (lane) {
        if (all)
            collect_all(step, c, n, lane->pointers + at);
        else
            collect_chosen(step, c, n, lane->pointers + at);
        for (size_t i = at; i < at + n; i++)
            lane->turns[i] = turn;
        lane->seen[turn] = c->seen;
    }
    if (all)
        c->token += n;
    else
        c->tokens += n;
    if (n < left)
        return n;
    c->run++;
    reach_run(step, c);
    return n;
}

/* The next portion's records go to the lane, or, without one, are left behind. @return how many, of how many blocks */
static size_t next_portion(const lode_step_state_t *step, cutting_t *c, lode_lane_t *lane, uint32_t *blocks)
{
    size_t n = 0;
    for (*blocks = 0; any_left(c) && n < LODE_PORTION && *blocks < LODE_PORTION_BLOCKS; ++*blocks)
        n += take_of_run(step, c, LODE_PORTION - n, (uint16_t)*blocks, n, lane);
    return n;
}

/* Attend over the next portion. @return records attended over; 0 leaves the part as it is. */
static size_t attend_portion(const lode_step_state_t *step, cutting_t *c, lode_lane_t *lane, float *part,
                             float *part_lse, uint64_t *lost)
{
    lode_cluster_h cluster = step->cluster;
    uint64_t begin = lode_now_ns();
    uint32_t blocks, dim = cluster->geometry.head_dim;
    lode_format_t format = c->block->block->info.format; /* a tile has records of one format */
    size_t n = next_portion(step, c, lane, &blocks), kept = n;
    if (c->tile->lost)
        kept = lode_leave_out_lost(lane->pointers, lane->turns, n);
    *lost += n - kept;
    uint64_t collected = lode_now_ns(), rotated = collected;
    if (kept) {
        float *q = lane->turned.data;
        for (uint32_t i = 0; i < blocks; i++)
            lode_rotate_queries(step, c->stream, lane->seen[i], c->row, c->head, q + (size_t)i * cluster->group * dim);
        rotated = lode_now_ns();
        cluster->ops->attend_each(format, dim, cluster->group, lane->pointers, blocks > 1 ? lane->turns : NULL, kept, q,
                                  blocks, part, part_lse);
    }
    lane->stage_ns[LODE_STAGE_ROTATE] += rotated - collected;
    lane->stage_ns[LODE_STAGE_ATTEND] += collected - begin + lode_now_ns() - rotated;
    return kept;
}

/* ------------------------------------------------------------- whole and cut */

static uint64_t *lost_of(const lode_step_state_t *step, uint32_t item)
{
    return (uint64_t *)step->lost.data + item;
}

/* One thread attends over all that a row and head wants of the tile. */
static void attend_whole(lode_step_state_t *step, void *context, uint32_t item, lode_lane_t *lane)
{
    float part[LODE_MAX_GROUP * LODE_MAX_DIM], part_lse[LODE_MAX_GROUP];
    cutting_t c = cutting_of(step, context, item);
    while (any_left(&c))
        if (attend_portion(step, &c, lane, part, part_lse, lost_of(step, item)))
            merge_part(step, c.stream, c.row, c.head, part, part_lse, lane);
}

/* A portion of a row and head that threads share, before it is merged. */
typedef struct part {
    cutting_t at;
    uint32_t item;
    size_t kept;
    uint64_t lost;
    float lse[LODE_MAX_GROUP];
    float out[LODE_MAX_GROUP * LODE_MAX_DIM];
} part_t;

static lode_status_t cut_item(lode_step_state_t *step, const lode_tile_t *tile, uint32_t item, uint32_t *count)
{
    cutting_t c = cutting_of(step, tile, item);
    uint32_t blocks;
    while (any_left(&c)) {
        LODE_TRY(lode_buffer_extend(&step->parts, (*count + 1) * sizeof(part_t), *count * sizeof(part_t)));
        part_t *part = (part_t *)step->parts.data + (*count)++;
        part->at = c;
        part->item = item;
        part->lost = 0;
        next_portion(step, &c, NULL, &blocks);
    }
    return LODE_OK;
}

static void attend_part(lode_step_state_t *step, void *context, uint32_t item, lode_lane_t *lane)
{
    part_t *part = (part_t *)step->parts.data + item;
    (void)context;
    part->kept = attend_portion(step, &part->at, lane, part->out, part->lse, &part->lost);
}

/* In the order in which one thread would have merged them. */
static void merge_parts(lode_step_state_t *step, void *context, uint32_t item, lode_lane_t *lane)
{
    const uint32_t *count = context;
    (void)item;
    for (uint32_t i = 0; i < *count; i++) {
        const part_t *part = (const part_t *)step->parts.data + i;
        *lost_of(step, part->item) += part->lost;
        if (part->kept)
            merge_part(step, part->at.stream, part->at.row, part->at.head, part->out, part->lse, lane);
    }
}

lode_status_t lode_tile_attend(lode_step_state_t *step, const lode_tile_t *tile)
{
    uint32_t items = (uint32_t)step->rows * step->cluster->heads, whole = lode_step_whole_items(step, items), parts = 0;
    uint64_t bytes = tile->record_count * tile->fetch.record_bytes;
    uint32_t blocks = tile->run_count < LODE_PORTION_BLOCKS ? tile->run_count : LODE_PORTION_BLOCKS;
    for (uint32_t i = 0; i < step->lane_count; i++)
        LODE_TRY(lode_buffer_reserve(&step->lanes[i].turned, (size_t)blocks * step->cluster->group *
                                                                 step->cluster->geometry.head_dim * sizeof(float)));
    for (uint32_t item = whole; item < items; item++)
        LODE_TRY(cut_item(step, tile, item, &parts));
    lode_step_share(step, whole, bytes, attend_whole, (void *)(uintptr_t)tile);
    lode_step_share(step, parts, bytes, attend_part, NULL);
    lode_step_share(step, 1, 0, merge_parts, &parts);
    return LODE_OK;
}

/* -------------------------------------------------------------------- tails */

/* All rows of a stream and head over the tail of one block. */
static void tail_attend(lode_step_state_t *step, const lode_step_stream_t *stream, const lode_seen_block_t *seen,
                        uint32_t head, lode_lane_t *lane)
{
    const struct lode_block *block = lode_step_block_at(step, seen->index)->block;
    const lode_tail_t *tail = &block->tails[step->layer];
    float part[LODE_MAX_GROUP * LODE_MAX_DIM], part_lse[LODE_MAX_GROUP];
    for (uint64_t first = 0; first < tail->tokens; first += LODE_PORTION) {
        uint64_t most = tail->tokens - first < LODE_PORTION ? tail->tokens - first : LODE_PORTION;
        for (uint64_t i = 0; i < most; i++)
            lane->pointers[i] = lode_tail_record(block, step->layer, tail->first + first + i, head);
        for (uint32_t row = 0; row < stream->in->tokens; row++) {
            uint64_t end = lode_visible(seen, tail->first + tail->tokens, stream->position + row);
            if (end <= tail->first + first)
                continue;
            uint64_t n = end - tail->first - first < most ? end - tail->first - first : most;
            attend_records(step, stream, seen, LODE_FORMAT_BF16, row, head, lane->pointers, n, lane, part, part_lse);
            merge_part(step, stream, row, head, part, part_lse, lane);
        }
    }
}

static uint64_t tail_tokens(const lode_step_state_t *step, const lode_seen_block_t *seen)
{
    const struct lode_block *block = lode_step_block_at(step, seen->index)->block;
    return block->tails ? block->tails[step->layer].tokens : 0;
}

static void tails_of_head(lode_step_state_t *step, void *context, uint32_t item, lode_lane_t *lane)
{
    const lode_step_stream_t *stream = lode_stream_at(step, item / step->cluster->heads);
    (void)context;
    for (uint32_t i = 0; i < stream->in->view->count; i++) {
        const lode_seen_block_t *seen = lode_seen_at(step, stream, i);
        if (tail_tokens(step, seen))
            tail_attend(step, stream, seen, item % step->cluster->heads, lane);
    }
}

void lode_tails_attend(lode_step_state_t *step)
{
    uint32_t heads = step->cluster->heads;
    uint64_t records = 0;
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        for (uint32_t i = 0; i < stream->in->view->count; i++)
            records += tail_tokens(step, lode_seen_at(step, stream, i)) * stream->in->tokens * heads;
    }
    if (records)
        lode_step_share(step, step->stream_count * heads,
                        records * lode_record_bytes(LODE_FORMAT_BF16, step->cluster->geometry.head_dim), tails_of_head,
                        NULL);
}
