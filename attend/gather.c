/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact attention of every row over the records of a tile, or of the tails, merged into the outputs. What a row and
 * head attends to is always cut into the same portions and merged in the same order, whichever threads take them.
 */
#include <string.h>

#include "attend/step.h"

/* Attend over n records of one block, in the lane's pointers. part: (G, D), part_lse: (G) */
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

/* What one row and KV head attends to in a run of pages, and how far it has been cut into portions. */
typedef struct cutting {
    const lode_tile_t *tile;
    const lode_step_stream_t *stream;
    const lode_seen_block_t *seen;
    const lode_step_block_t *block;
    const lode_chosen_t *chosen;
    uint32_t row, head;
    const uint32_t *tokens, *tokens_end; /* chosen ones that are left */
    uint64_t token, token_end;           /* if all are: of the block, from the first that is left; whole pages before */
} cutting_t;

static const lode_step_stream_t *stream_of_row(const lode_step_state_t *step, uint32_t row)
{
    uint32_t s = 0;
    while (s + 1 < step->stream_count && lode_stream_at(step, s + 1)->first_row <= row)
        s++;
    return lode_stream_at(step, s);
}

/* @p item: the step's rows by its heads. */
static cutting_t cutting_of(const lode_step_state_t *step, const lode_tile_t *tile, uint32_t item)
{
    uint32_t row = item / step->cluster->heads, head = item % step->cluster->heads;
    const lode_step_stream_t *stream = stream_of_row(step, row);
    return (cutting_t){.tile = tile,
                       .stream = stream,
                       .chosen = lode_chosen_at(step, row, head),
                       .row = row - (uint32_t)stream->first_row,
                       .head = head};
}

/* Begin with a run. @return whether the stream sees its block. */
static bool begin_run(const lode_step_state_t *step, const lode_run_t *run, cutting_t *c)
{
    size_t s = (size_t)(c->stream - lode_stream_at(step, 0));
    uint32_t at = ((const uint32_t *)step->seen_at.data)[s * step->block_count + run->block];
    if (at == UINT32_MAX)
        return false;
    c->seen = (const lode_seen_block_t *)step->seen.data + at;
    c->block = lode_step_block_at(step, run->block);
    uint64_t begin = (uint64_t)run->page_begin * LODE_PAGE_TOKENS, end = (uint64_t)run->page_end * LODE_PAGE_TOKENS;
    uint64_t tokens =
        c->chosen->all ? lode_visible(c->seen, c->block->tokens, c->stream->position + c->row) : c->block->tokens;
    c->token = begin;
    c->token_end = end < tokens ? end : tokens;
    if (!c->chosen->all) {
        const uint32_t *chosen = (const uint32_t *)step->tokens.data + c->chosen->start;
        c->tokens_end = chosen + c->chosen->count;
        c->tokens = lode_lower_bound(chosen, c->tokens_end, c->seen->first_token + begin);
        c->tokens_end = lode_lower_bound(c->tokens, c->tokens_end, c->seen->first_token + c->token_end);
    }
    return true;
}

/* Whether anything is left. */
static bool any_left(const cutting_t *c)
{
    return c->chosen->all ? c->token < c->token_end : c->tokens < c->tokens_end;
}

/* Leave the next portion behind. */
static void skip_portion(cutting_t *c)
{
    c->token += LODE_PORTION;
    if (!c->chosen->all)
        c->tokens += c->tokens_end - c->tokens < LODE_PORTION ? c->tokens_end - c->tokens : LODE_PORTION;
}

static const uint8_t *record_of(const lode_step_state_t *step, const lode_tile_t *tile, size_t mask, uint32_t bit)
{
    const uint64_t *wanted = step->wanted.data;
    const uint32_t *first_record = step->first_record.data;
    uint32_t before = (uint32_t)__builtin_popcountll(wanted[mask] & (((uint64_t)1 << bit) - 1));
    return ((const uint8_t **)tile->records.data)[first_record[mask] + before];
}

/* Pointers to the records of the next portion. */
static size_t collect_chosen(const lode_step_state_t *step, const cutting_t *c, const uint8_t **pointers)
{
    size_t n = 0;
    for (const uint32_t *at = c->tokens; at < c->tokens_end && n < LODE_PORTION; at++) {
        uint64_t token = *at - c->seen->first_token;
        size_t mask = lode_mask_at(step, c->block, (uint32_t)(token / LODE_PAGE_TOKENS), c->head);
        pointers[n++] = record_of(step, c->tile, mask, token % LODE_PAGE_TOKENS);
    }
    return n;
}

/* All of a row's visible tokens are wanted, so their records follow one another page by page. */
static size_t collect_all(const lode_step_state_t *step, const cutting_t *c, const uint8_t **pointers)
{
    const uint32_t *first_record = step->first_record.data;
    size_t n = 0;
    for (uint64_t token = c->token; token < c->token_end && n < LODE_PORTION; token += LODE_PAGE_TOKENS) {
        size_t count = c->token_end - token < LODE_PAGE_TOKENS ? c->token_end - token : LODE_PAGE_TOKENS;
        size_t mask = lode_mask_at(step, c->block, (uint32_t)(token / LODE_PAGE_TOKENS), c->head);
        memcpy(pointers + n, (const uint8_t **)c->tile->records.data + first_record[mask], count * sizeof *pointers);
        n += count;
    }
    return n;
}

/* Attend over the next portion. @return records attended over; 0 leaves the part as it is. */
static size_t attend_portion(const lode_step_state_t *step, const cutting_t *c, lode_lane_t *lane, float *part,
                             float *part_lse, uint64_t *lost)
{
    uint64_t begin = lode_now_ns();
    size_t n = c->chosen->all ? collect_all(step, c, lane->pointers) : collect_chosen(step, c, lane->pointers),
           kept = n;
    if (c->tile->lost)
        kept = lode_leave_out_lost(lane->pointers, n);
    *lost += n - kept;
    lane->stage_ns[LODE_STAGE_ATTEND] += lode_now_ns() - begin;
    if (kept)
        attend_records(step, c->stream, c->seen, c->block->block->info.format, c->row, c->head, lane->pointers, kept,
                       lane, part, part_lse);
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
    const lode_tile_t *tile = context;
    const lode_run_t *runs = tile->runs.data;
    float part[LODE_MAX_GROUP * LODE_MAX_DIM], part_lse[LODE_MAX_GROUP];
    cutting_t c = cutting_of(step, tile, item);
    for (uint32_t r = 0; r < tile->run_count; r++) {
        if (!begin_run(step, &runs[r], &c))
            continue;
        for (; any_left(&c); skip_portion(&c))
            if (attend_portion(step, &c, lane, part, part_lse, lost_of(step, item)))
                merge_part(step, c.stream, c.row, c.head, part, part_lse, lane);
    }
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
    const lode_run_t *runs = tile->runs.data;
    cutting_t c = cutting_of(step, tile, item);
    for (uint32_t r = 0; r < tile->run_count; r++) {
        if (!begin_run(step, &runs[r], &c))
            continue;
        for (; any_left(&c); skip_portion(&c)) {
            LODE_TRY(lode_buffer_extend(&step->parts, (*count + 1) * sizeof(part_t), *count * sizeof(part_t)));
            part_t *part = (part_t *)step->parts.data + (*count)++;
            part->at = c;
            part->item = item;
            part->lost = 0;
        }
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
