/* SPDX-License-Identifier: Apache-2.0 */
/* Records that no owner could give: a step fails by them, or goes on without, as each stream's policy says. */
#include <string.h>

#include "attend/step.h"

/* Pages that an error names. */
enum { PAGES_NAMED = 8 };

void lode_item_lose(void *context, const lode_fetch_item_t *item)
{
    (void)context;
    ((lode_fetch_item_t *)(uintptr_t)item)->landing = LODE_NOWHERE; /* the tile's, who lent it to the fetch */
}

/* How many of an item's tokens a row wants. */
static uint32_t row_wants(const lode_step_state_t *step, const lode_seen_block_t *seen, const lode_chosen_t *chosen,
                          const lode_fetch_item_t *item, uint64_t visible)
{
    uint64_t first = (uint64_t)item->page * LODE_PAGE_TOKENS, left = visible > first ? visible - first : 0;
    uint32_t wanted = 0;
    if (chosen->all)
        return (uint32_t)__builtin_popcountll(left < 64 ? item->mask & (((uint64_t)1 << left) - 1) : item->mask);
    const uint32_t *tokens = (const uint32_t *)step->tokens.data + chosen->start, *end = tokens + chosen->count;
    first += seen->first_token;
    for (tokens = lode_lower_bound(tokens, end, first); tokens < end && *tokens < first + LODE_PAGE_TOKENS; tokens++)
        wanted += item->mask >> (*tokens - first) & 1;
    return wanted;
}

static bool stream_wants(const lode_step_state_t *step, uint32_t s, const lode_fetch_item_t *item)
{
    const lode_step_stream_t *stream = lode_stream_at(step, s);
    uint32_t at = ((const uint32_t *)step->seen_at.data)[(size_t)s * step->block_count + item->user];
    if (at == UINT32_MAX)
        return false;
    const lode_seen_block_t *seen = (const lode_seen_block_t *)step->seen.data + at;
    uint64_t tokens = lode_step_block_at(step, item->user)->tokens;
    for (uint32_t row = 0; row < stream->in->tokens; row++)
        if (row_wants(step, seen, lode_chosen_at(step, stream->first_row + row, item->head), item,
                      lode_visible(seen, tokens, stream->position + row)))
            return true;
    return false;
}

/* Whether a stream that cannot do without it wants a lost item. */
static bool is_needed(const lode_step_state_t *step, const lode_fetch_item_t *item)
{
    for (uint32_t s = 0; s < step->stream_count; s++)
        if (lode_stream_at(step, s)->in->view->policy.lost == LODE_LOST_FAIL && stream_wants(step, s, item))
            return true;
    return false;
}

/* Items of a tile are sorted by block and page: the first block with a needed page is named, and its pages. */
static lode_status_t fail_by(const lode_step_state_t *step, const lode_tile_t *tile, uint32_t first)
{
    const lode_fetch_item_t *items = tile->items.data, *named = &items[first];
    char pages[128] = "";
    uint32_t count = 0, last = UINT32_MAX;
    for (uint32_t i = first; i < tile->fetch.count && items[i].user == named->user; i++) {
        if (items[i].landing != LODE_NOWHERE || items[i].page == last || !is_needed(step, &items[i]))
            continue;
        last = items[i].page;
        size_t used = strlen(pages);
        if (count++ < PAGES_NAMED)
            snprintf(pages + used, sizeof pages - used, "%s%u", used ? ", " : "", last);
    }
    if (count > PAGES_NAMED)
        snprintf(pages + strlen(pages), sizeof pages - strlen(pages), " … (%u in all)", count);
    return lode_fail(LODE_ERR_PAGE_LOST, "block \"%s\" (%016llx), layer %u, page%s %s: no owner could give %s (%s)",
                     lode_step_block_at(step, named->user)->block->info.name, (unsigned long long)named->block,
                     step->layer, count > 1 ? "s" : "", pages, count > 1 ? "them" : "it", tile->fetch.why);
}

lode_status_t lode_tile_check_lost(lode_step_state_t *step, lode_tile_t *tile)
{
    const lode_fetch_item_t *items = tile->items.data;
    tile->lost = tile->fetch.lost != NULL;
    if (tile->lost)
        LODE_TRY(lode_step_bring_selection(step));
    for (uint32_t i = 0; tile->lost && i < tile->fetch.count; i++) {
        if (items[i].landing != LODE_NOWHERE)
            continue;
        if (is_needed(step, &items[i]))
            return fail_by(step, tile, i);
        uint32_t records = (uint32_t)__builtin_popcountll(items[i].mask);
        step->stats.records_lost += records;
        step->stats.records_fetched -= records;
    }
    return LODE_OK;
}

size_t lode_leave_out_lost(const uint8_t **records, uint16_t *turns, size_t n)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++)
        if (records[i]) {
            turns[kept] = turns[i];
            records[kept++] = records[i];
        }
    return kept;
}

void lode_item_count_lost(lode_step_state_t *step, const lode_fetch_item_t *item)
{
    uint64_t tokens = lode_step_block_at(step, item->user)->tokens;
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        uint32_t at = ((const uint32_t *)step->seen_at.data)[(size_t)s * step->block_count + item->user];
        if (at == UINT32_MAX)
            continue;
        const lode_seen_block_t *seen = (const lode_seen_block_t *)step->seen.data + at;
        for (uint32_t row = 0; row < stream->rows; row++) {
            size_t of = (stream->first_row + row) * step->cluster->heads + item->head;
            ((uint64_t *)step->lost.data)[of] +=
                row_wants(step, seen, lode_chosen_at(step, stream->first_row + row, item->head), item,
                          lode_visible(seen, tokens, stream->position + row));
        }
    }
}

void lode_lost_shares(const lode_step_state_t *step, const lode_step_stream_t *stream)
{
    for (uint32_t row = 0; stream->in->lost_share && row < stream->rows; row++) {
        double worst = 0;
        for (uint32_t head = 0; head < step->cluster->heads; head++) {
            size_t at = (stream->first_row + row) * step->cluster->heads + head;
            uint64_t lost = ((const uint64_t *)step->lost.data)[at];
            if (lost)
                worst = fmax(worst, (double)lost / (double)lode_chosen_at(step, stream->first_row + row, head)->count);
        }
        stream->in->lost_share[row] = (float)worst;
    }
}
