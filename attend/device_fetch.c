/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a step misses in the device's cache, on its way there. Records of own pages are read over the bus where they
 * lie. The others are asked of their owners as on the CPU, tile by tile, and read from the landing buffer; a tile's
 * landing buffer is given back when the gather that reads it has run, which the host only waits for when it needs the
 * tile again. Missed records are staged in the order of their numbers; when the staging room is full, what is staged is
 * attended over and the next round begins.
 */
#include <assert.h>
#include <string.h>

#include "attend/device.h"

typedef struct staging {
    lode_step_state_t *step;
    lode_gpu_t *gpu;
    lode_gpu_set_t *set;
    const lode_device_found_t *found; /**< NULL: the host has not looked */
    lode_format_t format;
    size_t record_bytes, stride;
    const uint8_t **landed;     /**< by number of the missed record; NULL: all are held here */
    uint32_t room;              /**< records */
    uint32_t round_begin, end;  /**< of the running round, as far as it is staged */
    uint32_t entry, next_begin; /**< first entry of the next tile, and its first missed record */
    bool keep, hits, tables_here, lost;
    const lode_gpu_tile_t *ahead; /**< what was fetched ahead; NULL: nothing of this set */
    uint32_t ahead_from;          /**< first item of it that a later entry may be */
} staging_t;

/* ------------------------------------------------------------------- rounds */

static lode_status_t attend_round(staging_t *s)
{
    lode_gpu_t *gpu = s->gpu;
    lode_device_attend_t attend = {.format = s->format,
                                   .blocks = s->set->table,
                                   .wanted = s->set->where.wanted,
                                   .first = s->set->where.first,
                                   .places = s->set->where.places,
                                   .cached = gpu->caches[s->format].records,
                                   .staged = gpu->staged.data,
                                   .staged_begin = s->round_begin,
                                   .staged_end = s->end,
                                   .hits = s->hits};
    LODE_TRY(lode_gpu_attend_over(s->step, &attend, gpu->plan.most_tokens));
    s->hits = false;
    s->round_begin = s->end;
    return LODE_OK;
}

/* Stage missed records up to @p end. With @p lost among them, none is kept: what is staged for those is zeros. */
static lode_status_t gather(staging_t *s, uint32_t end, bool lost)
{
    lode_gpu_t *gpu = s->gpu;
    while (s->end < end) {
        if (s->end == s->round_begin + s->room)
            LODE_TRY(attend_round(s));
        uint32_t stop = end - s->round_begin < s->room ? end : s->round_begin + s->room;
        uint8_t *to = (uint8_t *)gpu->staged.data + (s->end - s->round_begin) * s->stride;
        const lode_device_where_t *where = &s->set->where;
        bool copies = s->found && stop - s->end >= gpu->copies_from[s->format]; /* it reads addresses on the host */
        LODE_GPU_TRY(gpu, "gathering records",
                     gpu->ops->gather(gpu->plan.stream, copies ? LODE_GATHER_COPIES : LODE_GATHER_KERNEL,
                                      (const uint8_t *const *)where->sources, s->landed, &where->found->missed, s->end,
                                      stop, s->record_bytes, to, s->stride));
        if (s->keep && !lost)
            LODE_GPU_TRY(gpu, "keeping records",
                         gpu->ops->keep(gpu->plan.stream, where, s->format, to, s->stride, s->end, stop));
        s->end = stop;
    }
    return LODE_OK;
}

/* -------------------------------------------------------------------- tiles */

lode_status_t lode_gpu_tile_release(lode_gpu_t *gpu, lode_gpu_tile_t *tile)
{
    if (!tile->busy)
        return LODE_OK;
    LODE_GPU_TRY(gpu, "waiting for a gather", gpu->ops->event_wait(tile->gathered));
    tile->busy = false;
    if (tile->tile.fetch.count)
        lode_fabric_fetch_release(gpu->cluster->fabric, &tile->tile.fetch);
    tile->tile.fetch.count = 0;
    return LODE_OK;
}

void lode_gpu_resolve(const lode_step_state_t *step, const lode_gpu_set_t *set, const lode_device_entry_t *entry,
                      uint32_t *block, uint32_t *page, uint32_t *head)
{
    const lode_gpu_plan_t *plan = &step->cluster->gpu->plan;
    uint32_t heads = step->cluster->heads, mask = entry->index;
    uint32_t first = 0, b = set->first_block;
    for (;; b++) {
        uint32_t masks = lode_gpu_block_at(step, plan, b)->pages * heads;
        if (mask - first < masks)
            break;
        first += masks;
    }
    *block = ((const uint32_t *)plan->order.data)[b];
    *page = (mask - first) / heads;
    *head = (mask - first) % heads;
}

/* A page that came here since the addresses were looked up, or one of an arena that is not pinned. @return false: there
 * is no room for it in this tile. */
static bool take_local(staging_t *s, lode_gpu_tile_t *tile, const lode_device_entry_t *entry, const uint8_t *records)
{
    uint32_t number = entry->first, count = (uint32_t)__builtin_popcountll(entry->mask);
    size_t room = lode_fabric_landing_bytes(s->step->cluster->fabric);
    if (!s->gpu->arena_pinned && tile->bounced + count * s->record_bytes > room)
        return false;
    for (uint64_t mask = entry->mask; mask; mask &= mask - 1) {
        const uint8_t *record = records + (uint32_t)__builtin_ctzll(mask) * s->record_bytes;
        if (!s->gpu->arena_pinned) {
            uint8_t *copy = (uint8_t *)tile->bounce.data + tile->bounced;
            memcpy(copy, record, s->record_bytes);
            tile->bounced += s->record_bytes;
            record = copy;
        }
        s->landed[number++] = record;
    }
    s->step->stats.records_local += count;
    return true;
}

/* Where some of an entry's records have landed, one after another; NULL: lost. */
static void point_to(staging_t *s, const lode_device_entry_t *entry, uint64_t mask, const uint8_t *records)
{
    for (; mask; mask &= mask - 1) {
        uint64_t below = (mask & -mask) - 1;
        s->landed[entry->first + (uint32_t)__builtin_popcountll(entry->mask & below)] = records;
        records = records ? records + s->record_bytes : NULL;
    }
}

/* The records of an entry that were fetched ahead. */
static void take_ahead(staging_t *s, const lode_device_entry_t *entry, const lode_fetch_item_t *item)
{
    uint64_t mask = entry->mask & item->mask;
    const uint8_t *records = s->ahead->tile.fetch.landing + item->landing;
    for (uint64_t left = mask; left; left &= left - 1) {
        uint64_t bit = left & -left;
        point_to(s, entry, bit, records + (uint32_t)__builtin_popcountll(item->mask & (bit - 1)) * s->record_bytes);
    }
    s->step->stats.records_prefetched += (uint32_t)__builtin_popcountll(mask);
}

static bool fits_tile(const staging_t *s, const lode_gpu_tile_t *tile, uint64_t mask)
{
    size_t bytes = (size_t)__builtin_popcountll(mask) * s->record_bytes;
    return tile->tile.fetch.count < LODE_TILE_ITEMS &&
           tile->tile.landing + bytes <= lode_fabric_landing_bytes(s->step->cluster->fabric);
}

/* Fill a tile from the entries that are left. */
static void plan_tile(staging_t *s, lode_gpu_tile_t *tile)
{
    lode_step_state_t *step = s->step;
    uint32_t block, page, head, last_block = UINT32_MAX, last_page = 0;
    for (; s->entry < s->found->asked; s->entry++) {
        const lode_device_entry_t *entry = &s->set->where.asked[s->entry];
        lode_page_ref_t ref;
        lode_gpu_resolve(step, s->set, entry, &block, &page, &head);
        uint64_t id = lode_step_block_at(step, block)->block->info.id;
        if (lode_shard_find(step->cluster->shard, (lode_page_id_t){id, step->layer, page}, &ref)) {
            if (!take_local(s, tile, entry, ref.bytes + lode_page_record(s->record_bytes, head, 0)))
                break;
            continue;
        }
        const lode_fetch_item_t *ahead =
            s->ahead ? lode_gpu_ahead_find(step, s->ahead, &s->ahead_from, block, page, head) : NULL;
        uint64_t rest = ahead ? entry->mask & ~ahead->mask : entry->mask;
        if (rest && !fits_tile(s, tile, rest))
            break;
        if (ahead)
            take_ahead(s, entry, ahead);
        if (!s->keep)
            lode_gpu_ahead_note(step, block, page, head, entry->mask);
        if (!rest)
            continue;
        if (block != last_block || page != last_page)
            lode_tile_add_page(step, &tile->tile, block, page);
        last_block = block;
        last_page = page;
        ((uint32_t *)tile->entries.data)[tile->tile.fetch.count] = s->entry;
        lode_tile_add_item(step, &tile->tile, block, page, head, rest);
        step->stats.records_fetched += (uint32_t)__builtin_popcountll(rest);
    }
    tile->end = s->entry < s->found->asked ? s->set->where.asked[s->entry].first : s->found->missed;
}

static lode_status_t begin_tile(staging_t *s, lode_gpu_tile_t **out)
{
    lode_gpu_t *gpu = s->gpu;
    *out = NULL;
    if (s->entry == s->found->asked && s->next_begin == s->found->missed)
        return LODE_OK;
    lode_gpu_tile_t *tile = &gpu->tiles[gpu->tile++ % gpu->tile_count];
    LODE_TRY(lode_gpu_tile_release(gpu, tile));
    LODE_TRY(lode_buffer_reserve(&tile->entries, LODE_TILE_ITEMS * sizeof(uint32_t)));
    if (!gpu->arena_pinned)
        LODE_TRY(lode_gpu_reserve_pinned(gpu, "copies of own pages", &tile->bounce,
                                         lode_fabric_landing_bytes(s->step->cluster->fabric)));
    LODE_TRY(lode_tile_open(s->step, &tile->tile));
    tile->tile.fetch.record_bytes = (uint32_t)s->record_bytes;
    tile->bounced = 0;
    plan_tile(s, tile);
    s->next_begin = tile->end;
    LODE_TRY(lode_tile_fetch(s->step, &tile->tile));
    tile->fetching = tile->tile.fetch.count > 0;
    *out = tile;
    return LODE_OK;
}

/* ------------------------------------------------------------------- losses */

/* Masks and numbers of the set's records, on the host: seldom needed. */
static lode_status_t bring_tables(staging_t *s)
{
    lode_gpu_t *gpu = s->gpu;
    size_t masks = s->set->masks;
    if (s->tables_here)
        return LODE_OK;
    LODE_TRY(lode_gpu_reserve_pinned(gpu, "tables of lost records", &gpu->aside, masks * 12 + 64));
    LODE_GPU_TRY(gpu, "looking at tables",
                 gpu->ops->copy(gpu->plan.stream, gpu->aside.data, s->set->where.wanted, masks * 8));
    LODE_GPU_TRY(
        gpu, "looking at tables",
        gpu->ops->copy(gpu->plan.stream, (uint8_t *)gpu->aside.data + masks * 8, s->set->where.first, masks * 4));
    LODE_GPU_TRY(gpu, "looking at tables", gpu->ops->stream_wait(gpu->plan.stream));
    s->tables_here = true;
    return LODE_OK;
}

/* A lost record gets a place that no round stages, so that nobody attends to it. */
static lode_status_t lose(staging_t *s, const lode_fetch_item_t *item)
{
    lode_gpu_t *gpu = s->gpu;
    LODE_TRY(bring_tables(s));
    const uint64_t *wanted = gpu->aside.data;
    const uint32_t *first = (const uint32_t *)(wanted + s->set->masks);
    uint32_t *nowhere = (uint32_t *)((uint8_t *)gpu->aside.data + s->set->masks * 12);
    uint32_t mask = 0, b = s->set->first_block;
    for (; ((const uint32_t *)gpu->plan.order.data)[b] != item->user; b++)
        mask += lode_gpu_block_at(s->step, &gpu->plan, b)->pages * s->step->cluster->heads;
    mask += item->page * s->step->cluster->heads + item->head;
    *nowhere = UINT32_MAX;
    for (uint64_t left = item->mask; left; left &= left - 1) {
        uint64_t below = (left & -left) - 1;
        uint32_t record = first[mask] + (uint32_t)__builtin_popcountll(wanted[mask] & below);
        LODE_GPU_TRY(gpu, "leaving out lost records",
                     gpu->ops->copy(gpu->plan.stream, s->set->where.places + record, nowhere, sizeof *nowhere));
    }
    lode_item_count_lost(s->step, item);
    return LODE_OK;
}

/* Where the records of a tile have landed. */
static lode_status_t land_tile(staging_t *s, lode_gpu_tile_t *tile)
{
    tile->fetching = false;
    LODE_TRY(lode_tile_land(s->step, &tile->tile));
    const lode_fetch_item_t *items = tile->tile.items.data;
    const uint32_t *entries = tile->entries.data;
    for (uint32_t i = 0; i < tile->tile.fetch.count; i++) {
        bool lost = items[i].landing == LODE_NOWHERE;
        point_to(s, &s->set->where.asked[entries[i]], items[i].mask,
                 lost ? NULL : tile->tile.fetch.landing + items[i].landing);
        if (lost)
            LODE_TRY(lose(s, &items[i]));
    }
    return LODE_OK;
}

/* While one tile is gathered, the next is fetched. */
static lode_status_t stage_tiles(staging_t *s)
{
    lode_gpu_t *gpu = s->gpu;
    lode_gpu_tile_t *now, *next;
    LODE_TRY(begin_tile(s, &next));
    while ((now = next)) {
        LODE_TRY(begin_tile(s, &next));
        LODE_TRY(land_tile(s, now));
        LODE_TRY(gather(s, now->end, now->tile.lost));
        s->lost |= now->tile.lost;
        LODE_GPU_TRY(gpu, "gathering records", gpu->ops->event_record(now->gathered, gpu->plan.stream));
        now->busy = true;
    }
    if (s->lost) /* a fetch of these would be in vain */
        lode_gpu_ahead_forget(s->step);
    return LODE_OK;
}

void lode_gpu_fetch_abandon(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_ahead_drop(gpu);
    lode_gpu_ahead_forget(step);
    gpu->ahead.use = NULL;
    for (int i = 0; i < LODE_GPU_TILES + 2; i++) {
        lode_gpu_tile_t *tile = i < LODE_GPU_TILES ? &gpu->tiles[i] : &gpu->ahead.tiles[i - LODE_GPU_TILES];
        lode_fetch_t *fetch = &tile->tile.fetch;
        if (fetch->count && (!tile->fetching || lode_fabric_fetch_wait(step->cluster->fabric, fetch) == LODE_OK))
            lode_fabric_fetch_release(step->cluster->fabric, fetch);
        fetch->count = 0;
        tile->fetching = tile->busy = false;
    }
}

/* -------------------------------------------------------------------- stage */

lode_status_t lode_gpu_stage(lode_step_state_t *step, lode_gpu_set_t *set, const lode_device_found_t *found)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_format_t format = (lode_format_t)(set - gpu->plan.sets);
    uint32_t dim = step->cluster->geometry.head_dim;
    staging_t s = {.step = step,
                   .gpu = gpu,
                   .set = set,
                   .found = found,
                   .format = format,
                   .record_bytes = lode_record_bytes(format, dim),
                   .stride = lode_device_record_bytes(format, dim),
                   .hits = true};
    size_t room = (gpu->staged.bytes < gpu->staging_bytes ? gpu->staged.bytes : gpu->staging_bytes) / s.stride;
    s.room = room < UINT32_MAX / 2 ? (uint32_t)room : UINT32_MAX / 2;
    s.keep = lode_gpu_keeps(step, set, found ? found->records : set->records_max);
    if (gpu->ahead.use && gpu->ahead.format == format)
        s.ahead = gpu->ahead.use;
    if (!gpu->plan.all_held)
        s.landed = (const uint8_t **)gpu->landed.data + set->first_record;
    if (!found)
        LODE_TRY(gather(&s, set->records_max, false));
    else if (found->asked == 0)
        LODE_TRY(gather(&s, found->missed, false));
    else
        LODE_TRY(stage_tiles(&s));
    return attend_round(&s);
}
