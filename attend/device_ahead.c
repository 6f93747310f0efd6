/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the next layer will likely miss, fetched while this layer runs: the records that the next layer's last step over
 * the same blocks had of other ranks and that the cache did not keep. It is a guess, and lands in a buffer of its own;
 * the step takes from it what it misses indeed, and asks for the rest. Nothing here fails a step: a fetch that fails,
 * loses records or belongs to another step than comes is given up, and the step asks for all it misses.
 *
 * Records never change, so those that have landed and passed their check are as good as any. The fetch is under way
 * while its caller does other things, blocks may come and go: its callbacks know nothing but what the tile holds.
 *
 * Landing buffers. A step needs two, and one that stands in for one in quarantine. So it goes on with two tiles instead
 * of three while one is taken up here, and nothing is begun while a buffer is in quarantine.
 */
#include <stdlib.h>
#include <string.h>

#include "attend/device.h"

typedef struct likely {
    uint64_t mask;
    uint32_t page;
    uint16_t head, block; /**< block: of the step's */
} likely_t;

/* ----------------------------------------------------------------- remember */

lode_status_t lode_gpu_ahead_prepare(lode_gpu_t *gpu)
{
    if (!gpu->ahead.layers)
        gpu->ahead.layers = calloc(gpu->cluster->geometry.layers, sizeof *gpu->ahead.layers);
    return gpu->ahead.layers ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for what layers miss");
}

void lode_gpu_ahead_destroy(lode_gpu_t *gpu)
{
    for (uint32_t l = 0; gpu->ahead.layers && l < gpu->cluster->geometry.layers; l++) {
        lode_buffer_free(&gpu->ahead.layers[l].likely);
        lode_buffer_free(&gpu->ahead.layers[l].blocks);
    }
    free(gpu->ahead.layers);
    gpu->ahead.layers = NULL;
}

static lode_gpu_likely_t *likely_of(const lode_step_state_t *step)
{
    return &step->cluster->gpu->ahead.layers[step->layer];
}

void lode_gpu_ahead_forget(lode_step_state_t *step)
{
    likely_of(step)->count = 0;
}

/* Begin to remember what this step misses. */
static void begin_notes(lode_step_state_t *step)
{
    lode_gpu_likely_t *likely = likely_of(step);
    likely->count = likely->block_count = 0;
    likely->bytes = 0;
    if (!step->cluster->gpu->ahead.on ||
        lode_buffer_reserve(&likely->blocks, step->block_count * sizeof(uint64_t)) != LODE_OK)
        return;
    for (uint32_t b = 0; b < step->block_count; b++)
        ((uint64_t *)likely->blocks.data)[b] = lode_step_block_at(step, b)->block->info.id;
    likely->block_count = step->block_count;
}

void lode_gpu_ahead_note(lode_step_state_t *step, uint32_t block, uint32_t page, uint32_t head, uint64_t mask)
{
    lode_gpu_likely_t *likely = likely_of(step);
    const lode_block_info_t *info = &lode_step_block_at(step, block)->block->info;
    size_t room = lode_fabric_landing_bytes(step->cluster->fabric),
           record = lode_record_bytes(info->format, step->cluster->geometry.head_dim), most = room / record,
           bytes = (size_t)__builtin_popcountll(mask) * record;
    most = most < LODE_TILE_ITEMS ? most : LODE_TILE_ITEMS;
    if (!likely->block_count || (likely->count && likely->format != info->format) || likely->count == most ||
        likely->bytes + bytes > room ||
        (!likely->count && lode_buffer_reserve(&likely->likely, most * sizeof(likely_t)) != LODE_OK))
        return;
    ((likely_t *)likely->likely.data)[likely->count++] = (likely_t){mask, page, (uint16_t)head, (uint16_t)block};
    likely->format = info->format;
    likely->bytes += bytes;
}

/* Whether what a layer missed was missed by a step over this step's blocks. */
static bool same_blocks(const lode_step_state_t *step, const lode_gpu_likely_t *likely)
{
    const uint64_t *ids = likely->blocks.data;
    bool same = likely->block_count == step->block_count;
    for (uint32_t b = 0; same && b < step->block_count; b++)
        same = ids[b] == lode_step_block_at(step, b)->block->info.id;
    return same;
}

/* -------------------------------------------------------------------- begin */

static bool verify(void *context, const lode_fetch_item_t *item, const uint8_t *records)
{
    const lode_tile_t *tile = context;
    lode_cluster_h cluster = tile->step->cluster;
    for (uint64_t mask = item->mask; mask; mask &= mask - 1, records += tile->fetch.record_bytes) {
        uint32_t token = item->page * LODE_PAGE_TOKENS + (uint32_t)__builtin_ctzll(mask);
        uint32_t head = cluster->geometry.kv_head_begin + item->head; /* as of all blocks that a view takes */
        if (!cluster->ops->record_check(cluster->gpu->ahead.format, cluster->geometry.head_dim, records,
                                        lode_record_tag(item->block, tile->fetch.layer, head, token)))
            return false;
    }
    return true;
}

static lode_status_t fill_tile(lode_step_state_t *step, const lode_gpu_likely_t *likely, lode_tile_t *tile)
{
    const likely_t *all = likely->likely.data;
    LODE_TRY(lode_tile_open(step, tile));
    tile->fetch.record_bytes = (uint32_t)lode_record_bytes(likely->format, step->cluster->geometry.head_dim);
    tile->fetch.verify = verify;
    tile->fetch.lose = NULL;
    tile->fetch.ahead = true;
    for (uint32_t i = 0; i < likely->count; i++) {
        if (i == 0 || all[i].block != all[i - 1].block || all[i].page != all[i - 1].page)
            lode_tile_add_page(step, tile, all[i].block, all[i].page);
        lode_tile_add_item(step, tile, all[i].block, all[i].page, all[i].head, all[i].mask);
    }
    return LODE_OK;
}

void lode_gpu_ahead_begin(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_ahead_t *ahead = &gpu->ahead;
    lode_fabric_h fabric = step->cluster->fabric;
    uint32_t layer = step->layer, next = (layer + 1) % step->cluster->geometry.layers, late;
    const lode_gpu_likely_t *likely = &ahead->layers[next];
    lode_gpu_tile_t *tile = &ahead->tiles[ahead->turn ^ 1];
    if (gpu->plan.capturing || !likely->count || tile->busy || !same_blocks(step, likely) ||
        lode_fabric_landings_free(fabric, &late) == 0 || late)
        return;
    ahead->format = likely->format;
    ahead->layer = next;
    ahead->epoch = lode_fabric_epoch(fabric);
    step->layer = next; /* whose owners are looked up */
    lode_status_t status = fill_tile(step, likely, &tile->tile);
    step->layer = layer;
    if (status == LODE_OK)
        status = lode_tile_fetch(step, &tile->tile);
    tile->fetching = status == LODE_OK;
    if (status == LODE_OK)
        ahead->turn ^= 1;
    else
        lode_debug("nothing is fetched ahead: %s", lode_error_message());
}

/* --------------------------------------------------------------------- take */

void lode_gpu_ahead_drop(lode_gpu_t *gpu)
{
    lode_gpu_tile_t *tile = &gpu->ahead.tiles[gpu->ahead.turn];
    if (!tile->fetching)
        return;
    lode_fabric_fetch_release(gpu->cluster->fabric, &tile->tile.fetch);
    tile->tile.fetch.count = 0;
    tile->fetching = false;
}

/* Where an entry or item comes in the device's order. */
static uint64_t order_of(const lode_step_state_t *step, uint32_t block, uint32_t page, uint32_t head)
{
    const uint32_t *places = (const uint32_t *)step->cluster->gpu->plan.order.data + step->block_count;
    return (uint64_t)places[block] << 48 | (uint64_t)page << 16 | head;
}

const lode_fetch_item_t *lode_gpu_ahead_find(const lode_step_state_t *step, const lode_gpu_tile_t *tile, uint32_t *from,
                                             uint32_t block, uint32_t page, uint32_t head)
{
    const lode_fetch_item_t *items = tile->tile.items.data;
    uint64_t order = order_of(step, block, page, head);
    while (*from < tile->tile.fetch.count &&
           order_of(step, items[*from].user, items[*from].page, items[*from].head) < order)
        ++*from;
    if (*from == tile->tile.fetch.count ||
        order_of(step, items[*from].user, items[*from].page, items[*from].head) != order)
        return NULL;
    return &items[*from];
}

/* Whether the step misses anything of what is fetched. */
static bool is_missed(lode_step_state_t *step, const lode_gpu_tile_t *tile)
{
    const lode_gpu_ahead_t *ahead = &step->cluster->gpu->ahead;
    const lode_gpu_set_t *set = &step->cluster->gpu->plan.sets[ahead->format];
    uint32_t from = 0, block, page, head;
    if (ahead->layer != step->layer || ahead->epoch != lode_fabric_epoch(step->cluster->fabric) ||
        !same_blocks(step, likely_of(step)) || !set->masks)
        return false;
    for (uint32_t i = 0; i < set->where.found->asked; i++) {
        lode_gpu_resolve(step, set, &set->where.asked[i], &block, &page, &head);
        const lode_fetch_item_t *item = lode_gpu_ahead_find(step, tile, &from, block, page, head);
        if (item && (item->mask & set->where.asked[i].mask))
            return true;
    }
    return false;
}

/* Wait for what is under way. @return whether it has landed, and leaves the step the landing buffers that it needs. */
static bool land(lode_step_state_t *step, lode_gpu_tile_t *tile)
{
    lode_fabric_h fabric = step->cluster->fabric;
    lode_fetch_t *fetch = &tile->tile.fetch;
    uint32_t late;
    tile->fetching = false;
    if (lode_fabric_fetch_wait(fabric, fetch) != LODE_OK) {
        lode_debug("what was fetched ahead is dropped: %s", lode_error_message());
        fetch->count = 0; /* its landing is released already */
        return false;
    }
    if (lode_fabric_landings_free(fabric, &late) < LODE_GPU_TILES) {
        lode_fabric_fetch_release(fabric, fetch);
        fetch->count = 0;
        return false;
    }
    step->stats.bytes_fetched += fetch->bytes;
    step->stats.requests += fetch->requests;
    step->stats.retries += fetch->retries;
    step->owners |= fetch->owners;
    return true;
}

lode_status_t lode_gpu_ahead_take(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_ahead_t *ahead = &gpu->ahead;
    lode_gpu_tile_t *tile = &ahead->tiles[ahead->turn];
    uint32_t late;
    for (int i = 0; i < LODE_GPU_TILES; i++) /* what reads them has run: the host has waited for this step's choice */
        LODE_TRY(lode_gpu_tile_release(gpu, &gpu->tiles[i]));
    for (int i = 0; i < 2; i++)
        LODE_TRY(lode_gpu_tile_release(gpu, &ahead->tiles[i]));
    ahead->use = NULL;
    if (tile->fetching && !is_missed(step, tile))
        lode_gpu_ahead_drop(gpu);
    if (tile->fetching && land(step, tile))
        ahead->use = tile;
    gpu->tile = 0;
    gpu->tile_count =
        lode_fabric_landings_free(step->cluster->fabric, &late) > LODE_GPU_TILES ? LODE_GPU_TILES : LODE_GPU_TILES - 1;
    begin_notes(step);
    return LODE_OK;
}

lode_status_t lode_gpu_ahead_end(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_tile_t *tile = gpu->ahead.use;
    if (!tile)
        return LODE_OK;
    LODE_GPU_TRY(gpu, "gathering records", gpu->ops->event_record(tile->gathered, gpu->plan.stream));
    tile->busy = true;
    gpu->ahead.use = NULL;
    return LODE_OK;
}
