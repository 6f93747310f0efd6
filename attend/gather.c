/* SPDX-License-Identifier: Apache-2.0 */
/* Exact attention of every row over the records of a tile, or of the tails, merged into the outputs. */
#include <string.h>

#include "attend/step.h"

/* Attend over n records of one block and merge into the row's output. */
static void attend_records(lode_step_state_t *step, const lode_step_stream_t *stream, const lode_seen_block_t *seen,
                           lode_format_t format, uint32_t row, uint32_t head, size_t n)
{
    lode_cluster_h cluster = step->cluster;
    uint32_t dim = cluster->geometry.head_dim, group = cluster->group;
    float q[LODE_MAX_GROUP * LODE_MAX_DIM], part[LODE_MAX_GROUP * LODE_MAX_DIM], part_lse[LODE_MAX_GROUP];
    size_t at = (size_t)row * cluster->query_heads + (size_t)head * group;
    uint64_t begin = lode_now_ns();
    lode_rotate_queries(step, stream, seen, row, head, q);
    uint64_t rotated = lode_now_ns();
    cluster->ops->attend(format, dim, group, step->pointers.data, n, q, part, part_lse);
    uint64_t attended = lode_now_ns();
    cluster->ops->merge(stream->in->out + at * dim, stream->lse + at, part, part_lse, group, dim);
    step->stats.stage_ns[LODE_STAGE_ROTATE] += rotated - begin;
    step->stats.stage_ns[LODE_STAGE_ATTEND] += attended - rotated;
    step->stats.stage_ns[LODE_STAGE_MERGE] += lode_now_ns() - attended;
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

static const uint8_t *record_of(const lode_step_state_t *step, const lode_tile_t *tile, size_t mask, uint32_t bit)
{
    const uint64_t *wanted = step->wanted.data;
    const uint32_t *first_record = step->first_record.data;
    uint32_t before = (uint32_t)__builtin_popcountll(wanted[mask] & (((uint64_t)1 << bit) - 1));
    return ((const uint8_t **)tile->records.data)[first_record[mask] + before];
}

/* Pointers to what one row and head attends to in a run of pages. */
static size_t collect_chosen(lode_step_state_t *step, const lode_tile_t *tile, const lode_run_t *run,
                             const lode_seen_block_t *seen, const lode_chosen_t *chosen, uint32_t head)
{
    const lode_step_block_t *block = lode_step_block_at(step, run->block);
    const uint32_t *tokens = (const uint32_t *)step->tokens.data + chosen->start, *end = tokens + chosen->count;
    uint64_t last = (uint64_t)run->page_end * LODE_PAGE_TOKENS;
    const uint8_t **pointers = step->pointers.data;
    size_t n = 0;
    last = seen->first_token + (last < block->tokens ? last : block->tokens);
    tokens = lode_lower_bound(tokens, end, seen->first_token + (uint64_t)run->page_begin * LODE_PAGE_TOKENS);
    for (; tokens < end && *tokens < last; tokens++) {
        uint64_t token = *tokens - seen->first_token;
        size_t mask = lode_mask_at(step, block, (uint32_t)(token / LODE_PAGE_TOKENS), head);
        pointers[n++] = record_of(step, tile, mask, token % LODE_PAGE_TOKENS);
    }
    return n;
}

/* All of a row's visible tokens are wanted, so their records follow one another page by page. */
static size_t collect_all(lode_step_state_t *step, const lode_tile_t *tile, const lode_run_t *run, uint64_t visible,
                          uint32_t head)
{
    const lode_step_block_t *block = lode_step_block_at(step, run->block);
    const uint32_t *first_record = step->first_record.data;
    const uint8_t **pointers = step->pointers.data;
    size_t n = 0;
    for (uint32_t page = run->page_begin; page < run->page_end; page++) {
        uint64_t first = (uint64_t)page * LODE_PAGE_TOKENS;
        if (first >= visible)
            break;
        size_t count = visible - first < LODE_PAGE_TOKENS ? visible - first : LODE_PAGE_TOKENS;
        memcpy(pointers + n, (const uint8_t **)tile->records.data + first_record[lode_mask_at(step, block, page, head)],
               count * sizeof *pointers);
        n += count;
    }
    return n;
}

static void attend_run(lode_step_state_t *step, const lode_tile_t *tile, const lode_run_t *run, uint32_t s)
{
    const lode_step_stream_t *stream = lode_stream_at(step, s);
    uint32_t at = ((const uint32_t *)step->seen_at.data)[(size_t)s * step->block_count + run->block];
    if (at == UINT32_MAX)
        return;
    const lode_seen_block_t *seen = (const lode_seen_block_t *)step->seen.data + at;
    const lode_step_block_t *block = lode_step_block_at(step, run->block);
    for (uint32_t row = 0; row < stream->in->tokens; row++)
        for (uint32_t head = 0; head < step->cluster->heads; head++) {
            const lode_chosen_t *chosen = lode_chosen_at(step, stream->first_row + row, head);
            uint64_t begin = lode_now_ns();
            size_t n = chosen->all ? collect_all(step, tile, run,
                                                 lode_visible(seen, block->tokens, stream->position + row), head)
                                   : collect_chosen(step, tile, run, seen, chosen, head);
            if (tile->lost)
                n = lode_leave_out_lost(step, stream->first_row + row, head, n);
            step->stats.stage_ns[LODE_STAGE_ATTEND] += lode_now_ns() - begin;
            if (n)
                attend_records(step, stream, seen, block->block->info.format, row, head, n);
        }
}

lode_status_t lode_tile_attend(lode_step_state_t *step, const lode_tile_t *tile)
{
    const lode_run_t *runs = tile->runs.data;
    LODE_TRY(lode_buffer_reserve(&step->pointers, tile->record_count * sizeof(const uint8_t *)));
    for (uint32_t i = 0; i < tile->run_count; i++)
        for (uint32_t s = 0; s < step->stream_count; s++)
            attend_run(step, tile, &runs[i], s);
    return LODE_OK;
}

static lode_status_t tail_attend(lode_step_state_t *step, const lode_step_stream_t *stream,
                                 const lode_seen_block_t *seen)
{
    const struct lode_block *block = lode_step_block_at(step, seen->index)->block;
    const lode_tail_t *tail = &block->tails[step->layer];
    LODE_TRY(lode_buffer_reserve(&step->pointers, tail->tokens * sizeof(const uint8_t *)));
    const uint8_t **pointers = step->pointers.data;
    for (uint32_t head = 0; head < step->cluster->heads; head++) {
        for (uint64_t i = 0; i < tail->tokens; i++)
            pointers[i] = lode_tail_record(block, step->layer, tail->first + i, head);
        for (uint32_t row = 0; row < stream->in->tokens; row++) {
            uint64_t end = lode_visible(seen, tail->first + tail->tokens, stream->position + row);
            if (end > tail->first)
                attend_records(step, stream, seen, LODE_FORMAT_BF16, row, head, end - tail->first);
        }
    }
    return LODE_OK;
}

lode_status_t lode_tails_attend(lode_step_state_t *step)
{
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        for (uint32_t i = 0; i < stream->in->view->count; i++) {
            const lode_seen_block_t *seen = lode_seen_at(step, stream, i);
            const struct lode_block *block = lode_step_block_at(step, seen->index)->block;
            if (block->tails && block->tails[step->layer].tokens)
                LODE_TRY(tail_attend(step, stream, seen));
        }
    }
    return LODE_OK;
}
