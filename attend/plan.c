/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who has what is wanted: own shard, hot cache, or an owner that is asked; in tiles that fit a landing buffer. A step
 * on a GPU finds out by itself what is missing (device_fetch.c), and its tiles are begun and landed here too.
 */
#include <string.h>

#include "attend/step.h"

/*
 * Bounds of a tile: what its tables hold, and what the landing buffer would have to hold if nothing were here already.
 * So tiles are cut alike wherever the records are, and outputs, which are sums over tiles, are the same bit by bit.
 * A page of 256 heads always fits.
 */
enum { TILE_RECORDS = 1 << 18 };

/* ---------------------------------------------------------------- who to ask */

static bool in_hints(const lode_page_hint_t *hints, uint32_t count, uint32_t rank)
{
    for (uint32_t i = 0; i < count; i++)
        if (hints[i].rank == rank)
            return true;
    return false;
}

/* Published owners first, starting with another for each page and rank so that replicas share the load;
 * then, for pages that have moved since, the order of placement. */
static bool source_of(void *context, const lode_fetch_item_t *item, uint32_t attempt, lode_fetch_source_t *source)
{
    const lode_tile_t *tile = context;
    lode_cluster_h cluster = tile->step->cluster;
    uint32_t at = ((const uint32_t *)tile->owners_at.data)[item - tile->fetch.items];
    const lode_owners_t *owners = (const lode_owners_t *)tile->owners.data + at;
    const lode_page_hint_t *hints = owners->hints;
    uint32_t ranks = cluster->place_count, self = lode_fabric_rank(cluster->fabric), count = owners->count;
    if (attempt < count) {
        const lode_page_hint_t *hint = &hints[(item->page + self + attempt) % count];
        *source = (lode_fetch_source_t){hint->rank, true, hint->offset, true};
        return true;
    }
    uint32_t candidates[ranks], left = attempt - count;
    lode_page_id_t id = {item->block, tile->fetch.layer, item->page};
    uint32_t found = lode_placement(cluster->places, ranks, id, ranks, candidates);
    for (uint32_t i = 0; i < found; i++) {
        if (candidates[i] == self || in_hints(hints, count, candidates[i]) || left--)
            continue;
        *source = (lode_fetch_source_t){.rank = candidates[i]};
        return true;
    }
    return false;
}

static bool verify(void *context, const lode_fetch_item_t *item, const uint8_t *records)
{
    const lode_step_state_t *step = ((const lode_tile_t *)context)->step;
    const struct lode_block *block = lode_step_block_at(step, item->user)->block;
    uint32_t dim = step->cluster->geometry.head_dim;
    for (uint64_t mask = item->mask; mask; mask &= mask - 1, records += block->record_bytes) {
        uint32_t token = item->page * LODE_PAGE_TOKENS + (uint32_t)__builtin_ctzll(mask);
        uint32_t tag = lode_record_tag(item->block, step->layer, block->info.kv_head_begin + item->head, token);
        if (!step->cluster->ops->record_check(block->info.format, dim, records, tag))
            return false;
    }
    return true;
}

/* --------------------------------------------------------------------- plan */

static uint32_t wanted_in_page(const lode_step_state_t *step, const lode_step_block_t *block, uint32_t page)
{
    const uint64_t *wanted = (const uint64_t *)step->wanted.data + lode_mask_at(step, block, page, 0);
    uint32_t records = 0;
    for (uint32_t head = 0; head < step->cluster->heads; head++)
        records += (uint32_t)__builtin_popcountll(wanted[head]);
    return records;
}

static void add_local(lode_step_state_t *step, lode_tile_t *tile, const struct lode_block *block, uint32_t head,
                      uint64_t wanted, const uint8_t *page)
{
    const uint8_t **records = (const uint8_t **)tile->records.data + tile->record_count;
    page += lode_page_record(block->record_bytes, head, 0);
    for (; wanted; wanted &= wanted - 1)
        *records++ = page + (size_t)__builtin_ctzll(wanted) * block->record_bytes;
    tile->record_count = (size_t)(records - (const uint8_t **)tile->records.data);
    (void)step;
}

void lode_tile_add_page(lode_step_state_t *step, lode_tile_t *tile, uint32_t block_index, uint32_t page)
{
    const struct lode_block *block = lode_step_block_at(step, block_index)->block;
    lode_owners_t *owners = (lode_owners_t *)tile->owners.data + tile->owners_count++;
    owners->count = 0;
    lode_store_hints(step->cluster->store, block->slot, step->layer, page, owners->hints, &owners->count);
}

void lode_tile_add_item(lode_step_state_t *step, lode_tile_t *tile, uint32_t block_index, uint32_t page, uint32_t head,
                        uint64_t mask)
{
    const struct lode_block *block = lode_step_block_at(step, block_index)->block;
    lode_fetch_item_t *items = tile->items.data;
    uint32_t records = (uint32_t)__builtin_popcountll(mask);
    ((uint32_t *)tile->owners_at.data)[tile->fetch.count] = tile->owners_count - 1;
    items[tile->fetch.count++] = (lode_fetch_item_t){.mask = mask,
                                                     .block = block->info.id,
                                                     .page = page,
                                                     .head = (uint16_t)head,
                                                     .user = (uint16_t)block_index,
                                                     .landing = tile->landing};
    tile->landing += records * (uint32_t)block->record_bytes;
}

/* What the hot cache lacks becomes an item; its places in `records` are filled when the landing is known. */
static void add_remote(lode_step_state_t *step, lode_tile_t *tile, uint32_t block_index, uint32_t page, uint32_t head,
                       uint64_t wanted)
{
    const struct lode_block *block = lode_step_block_at(step, block_index)->block;
    lode_hot_t *hot = step->cluster->hot[block->info.format];
    const uint8_t **records = tile->records.data;
    uint64_t missing = 0;
    for (uint64_t mask = wanted; mask; mask &= mask - 1) {
        uint32_t bit = (uint32_t)__builtin_ctzll(mask);
        uint64_t key = lode_hot_key(step->layer, head, (uint64_t)page * LODE_PAGE_TOKENS + bit);
        const uint8_t *record = hot ? lode_hot_find(hot, block->info.id, key, step->serial) : NULL;
        records[tile->record_count++] = record;
        missing |= record ? 0 : (uint64_t)1 << bit;
    }
    step->stats.records_hit += (uint32_t)__builtin_popcountll(wanted & ~missing);
    step->stats.records_fetched += (uint32_t)__builtin_popcountll(missing);
    if (missing)
        lode_tile_add_item(step, tile, block_index, page, head, missing);
}

static void add_page(lode_step_state_t *step, lode_tile_t *tile, uint32_t block_index, uint32_t page)
{
    const lode_step_block_t *at = lode_step_block_at(step, block_index);
    const uint64_t *wanted = step->wanted.data;
    uint32_t *first_record = step->first_record.data;
    lode_page_ref_t ref;
    bool local = lode_shard_find(step->cluster->shard, (lode_page_id_t){at->block->info.id, step->layer, page}, &ref);
    if (!local)
        lode_tile_add_page(step, tile, block_index, page);
    for (uint32_t head = 0; head < step->cluster->heads; head++) {
        size_t mask = lode_mask_at(step, at, page, head);
        if (!wanted[mask])
            continue;
        first_record[mask] = (uint32_t)tile->record_count;
        if (!local) {
            add_remote(step, tile, block_index, page, head, wanted[mask]);
            continue;
        }
        add_local(step, tile, at->block, head, wanted[mask], ref.bytes);
        step->stats.records_local += (uint32_t)__builtin_popcountll(wanted[mask]);
    }
}

static void add_run(lode_tile_t *tile, uint32_t block, uint32_t page)
{
    lode_run_t *runs = tile->runs.data;
    if (tile->run_count && runs[tile->run_count - 1].block == block)
        runs[tile->run_count - 1].page_end = page + 1;
    else
        runs[tile->run_count++] = (lode_run_t){block, page, page + 1};
}

/* Fill a tile from where the last one ended, as far as its landing buffer and tables go. */
static void plan(lode_step_state_t *step, lode_tile_t *tile)
{
    uint32_t items = 0, heads = step->cluster->heads;
    size_t bytes = 0, room = lode_fabric_landing_bytes(step->cluster->fabric);
    for (; step->plan_block < step->block_count; step->plan_block++, step->plan_page = 0) {
        const lode_step_block_t *at = lode_step_block_at(step, step->plan_block);
        if (tile->record_count && at->block->record_bytes != tile->fetch.record_bytes)
            return; /* a fetch has records of one size */
        tile->fetch.record_bytes = (uint32_t)at->block->record_bytes;
        for (; step->plan_page < at->pages; step->plan_page++) {
            uint32_t wanted = wanted_in_page(step, at, step->plan_page);
            if (!wanted)
                continue;
            if (tile->record_count + wanted > TILE_RECORDS || items + heads > LODE_TILE_ITEMS ||
                bytes + wanted * at->block->record_bytes > room)
                return;
            items += heads;
            bytes += wanted * at->block->record_bytes;
            add_page(step, tile, step->plan_block, step->plan_page);
            add_run(tile, step->plan_block, step->plan_page);
        }
    }
}

/* ---------------------------------------------------------------- life cycle */

static void point_to_landing(lode_step_state_t *step, lode_tile_t *tile)
{
    const lode_fetch_item_t *items = tile->items.data;
    const uint64_t *wanted = step->wanted.data;
    const uint32_t *first_record = step->first_record.data;
    for (uint32_t i = 0; i < tile->fetch.count; i++) {
        const lode_step_block_t *at = lode_step_block_at(step, items[i].user);
        size_t mask = lode_mask_at(step, at, items[i].page, items[i].head);
        const uint8_t **record = (const uint8_t **)tile->records.data + first_record[mask];
        bool lost = items[i].landing == LODE_NOWHERE;
        const uint8_t *landed = lost ? NULL : tile->fetch.landing + items[i].landing;
        for (uint64_t all = wanted[mask], left = items[i].mask; left; all &= all - 1, record++) {
            if ((all & -all) != (left & -left))
                continue;
            *record = landed;
            landed += lost ? 0 : at->block->record_bytes;
            left &= left - 1;
        }
    }
}

lode_status_t lode_tile_open(lode_step_state_t *step, lode_tile_t *tile)
{
    LODE_TRY(lode_buffer_reserve(&tile->items, LODE_TILE_ITEMS * sizeof(lode_fetch_item_t)));
    LODE_TRY(lode_buffer_reserve(&tile->owners, LODE_TILE_ITEMS * sizeof(lode_owners_t)));
    LODE_TRY(lode_buffer_reserve(&tile->owners_at, LODE_TILE_ITEMS * sizeof(uint32_t)));
    tile->step = step;
    tile->fetch = (lode_fetch_t){.layer = step->layer,
                                 .items = tile->items.data,
                                 .source = source_of,
                                 .verify = verify,
                                 .lose = lode_item_lose,
                                 .context = tile};
    tile->lost = false;
    tile->run_count = tile->owners_count = tile->landing = 0;
    tile->record_count = 0;
    return LODE_OK;
}

lode_status_t lode_tile_fetch(lode_step_state_t *step, lode_tile_t *tile)
{
    lode_status_t status = tile->fetch.count ? lode_fabric_fetch(step->cluster->fabric, &tile->fetch) : LODE_OK;
    if (status != LODE_OK)
        tile->fetch.count = 0;
    return status;
}

lode_status_t lode_tile_begin(lode_step_state_t *step, lode_tile_t *tile, bool *any)
{
    uint64_t begin = lode_now_ns();
    LODE_TRY(lode_buffer_reserve(&tile->runs, step->block_count * sizeof(lode_run_t)));
    LODE_TRY(lode_buffer_reserve(&tile->records, TILE_RECORDS * sizeof(const uint8_t *)));
    LODE_TRY(lode_tile_open(step, tile));
    plan(step, tile);
    *any = tile->record_count > 0;
    LODE_TRY(lode_tile_fetch(step, tile));
    step->stats.stage_ns[LODE_STAGE_FETCH] += lode_now_ns() - begin;
    return LODE_OK;
}

lode_status_t lode_tile_land(lode_step_state_t *step, lode_tile_t *tile)
{
    if (!tile->fetch.count)
        return LODE_OK;
    uint64_t begin = lode_now_ns();
    lode_status_t status = lode_fabric_fetch_wait(step->cluster->fabric, &tile->fetch);
    step->stats.bytes_fetched += tile->fetch.bytes;
    step->stats.requests += tile->fetch.requests;
    step->stats.retries += tile->fetch.retries;
    step->owners |= tile->fetch.owners;
    step->stats.stage_ns[LODE_STAGE_FETCH] += lode_now_ns() - begin;
    if (status == LODE_OK) {
        status = lode_tile_check_lost(step, tile);
        if (status != LODE_OK)
            lode_fabric_fetch_release(step->cluster->fabric, &tile->fetch);
    }
    if (status != LODE_OK)
        tile->fetch.count = 0; /* its landing is released already */
    return status;
}

lode_status_t lode_tile_wait(lode_step_state_t *step, lode_tile_t *tile)
{
    LODE_TRY(lode_tile_land(step, tile));
    point_to_landing(step, tile); /* a late one-sided read may have moved the fetch to another buffer */
    return LODE_OK;
}

static void keep_hot(lode_step_state_t *step, const lode_tile_t *tile)
{
    const lode_fetch_item_t *items = tile->items.data;
    for (uint32_t i = 0; i < tile->fetch.count; i++) {
        const struct lode_block *block = lode_step_block_at(step, items[i].user)->block;
        const uint8_t *record = tile->fetch.landing + items[i].landing;
        if (items[i].landing == LODE_NOWHERE)
            continue;
        for (uint64_t mask = items[i].mask; mask; mask &= mask - 1, record += block->record_bytes) {
            uint64_t token = (uint64_t)items[i].page * LODE_PAGE_TOKENS + (uint32_t)__builtin_ctzll(mask);
            lode_hot_insert(step->cluster->hot[block->info.format], block->info.id,
                            lode_hot_key(step->layer, items[i].head, token), step->serial, record);
        }
    }
}

void lode_tile_end(lode_step_state_t *step, lode_tile_t *tile, bool keep)
{
    if (!tile->fetch.count)
        return;
    uint64_t begin = lode_now_ns();
    if (keep)
        keep_hot(step, tile);
    lode_fabric_fetch_release(step->cluster->fabric, &tile->fetch);
    tile->fetch.count = 0;
    step->stats.stage_ns[LODE_STAGE_FETCH] += lode_now_ns() - begin;
}
