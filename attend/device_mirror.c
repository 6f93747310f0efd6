/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the device keeps of blocks: copies of their landmarks and mean keys, grown as the node's store grows; the
 * addresses of pages that this rank holds; the tails. Brought up to date when a step is laid out, with what is new.
 */
#include <stdlib.h>
#include <string.h>

#include "attend/device.h"
#include "attend/replicate.h"

/* ------------------------------------------------------------------- blocks */

static lode_status_t free_layer(lode_gpu_t *gpu, lode_gpu_layer_t *layer)
{
    atomic_fetch_sub(&gpu->mirror_bytes, layer->tiles.bytes);
    LODE_TRY(lode_gpu_free(gpu, &layer->tiles));
    LODE_TRY(lode_gpu_free(gpu, &layer->mean));
    LODE_TRY(lode_gpu_free(gpu, &layer->held));
    LODE_TRY(lode_gpu_free(gpu, &layer->tail));
    lode_buffer_free(&layer->held_here);
    return LODE_OK;
}

static lode_status_t free_block(lode_gpu_t *gpu, lode_gpu_block_t *block)
{
    lode_gpu_layer_t *layers = block->layers;
    lode_status_t status = LODE_OK;
    block->id = 0;
    block->layers = NULL;
    for (uint32_t l = 0; layers && l < gpu->cluster->geometry.layers && status == LODE_OK; l++)
        status = free_layer(gpu, &layers[l]);
    free(layers);
    return status;
}

/* Blocks that are gone leave the device with the next step. */
static lode_status_t free_dropped(lode_gpu_t *gpu)
{
    for (uint32_t slot = 0; slot < gpu->block_room; slot++) {
        lode_gpu_block_t *block = &gpu->blocks[slot];
        if (block->id && lode_store_state(gpu->cluster->store, slot, block->id) == LODE_BLOCK_DROPPED)
            LODE_TRY(free_block(gpu, block));
    }
    return LODE_OK;
}

lode_status_t lode_gpu_make_room(lode_gpu_t *gpu)
{
    uint64_t serial = gpu->cluster->step->serial;
    for (uint32_t slot = 0; slot < gpu->block_room; slot++)
        if (gpu->blocks[slot].id && gpu->blocks[slot].serial != serial)
            LODE_TRY(free_block(gpu, &gpu->blocks[slot]));
    return LODE_OK;
}

void lode_gpu_mirrors_free(lode_gpu_t *gpu)
{
    gpu->captured = false; /* nothing runs any more */
    for (uint32_t slot = 0; slot < gpu->block_room; slot++)
        if (free_block(gpu, &gpu->blocks[slot]) != LODE_OK)
            lode_debug("%s", lode_error_message());
    free(gpu->blocks);
    gpu->blocks = NULL;
    gpu->block_room = 0;
    for (uint32_t l = 0; gpu->transforms && l < gpu->cluster->geometry.layers; l++)
        gpu->ops->free(gpu->device, gpu->transforms[l]);
    free(gpu->transforms);
    gpu->transforms = NULL;
}

static lode_status_t room_for_slot(lode_gpu_t *gpu, uint32_t slot)
{
    if (slot < gpu->block_room)
        return LODE_OK;
    uint32_t room = gpu->block_room ? gpu->block_room : 64;
    while (room <= slot)
        room *= 2;
    lode_gpu_block_t *blocks = realloc(gpu->blocks, room * sizeof *blocks);
    if (!blocks)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a table of %u blocks", room);
    memset(blocks + gpu->block_room, 0, (room - gpu->block_room) * sizeof *blocks);
    gpu->blocks = blocks;
    gpu->block_room = room;
    return LODE_OK;
}

static lode_status_t find_layer(lode_step_state_t *step, const struct lode_block *block, lode_gpu_layer_t **layer)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    LODE_TRY(room_for_slot(gpu, block->slot));
    lode_gpu_block_t *at = &gpu->blocks[block->slot];
    if (at->id && at->id != block->info.id)
        LODE_TRY(free_block(gpu, at));
    if (!at->id) {
        at->layers = calloc(step->cluster->geometry.layers, sizeof *at->layers);
        if (!at->layers)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for what the device has of a block");
        at->id = block->info.id;
    }
    at->serial = step->serial;
    *layer = &at->layers[step->layer];
    return LODE_OK;
}

lode_gpu_layer_t *lode_gpu_layer_of(const lode_step_state_t *step, const struct lode_block *block)
{
    return &step->cluster->gpu->blocks[block->slot].layers[step->layer];
}

/* ---------------------------------------------------------------- landmarks */

/* Room for so many tiles a head: heads' tiles move apart, so each is copied by itself. */
static lode_status_t grow_tiles(lode_step_state_t *step, const lode_block_info_t *info, lode_gpu_layer_t *layer,
                                uint64_t tiles, size_t tile_bytes)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    uint64_t room = layer->head_bytes ? layer->head_bytes / tile_bytes : 8;
    while (room < tiles)
        room *= 2;
    size_t head_bytes = (room * tile_bytes + 255) & ~(size_t)255;
    if (head_bytes <= layer->head_bytes)
        return LODE_OK;
    lode_gpu_room_t grown = {0}, old = layer->tiles;
    lode_status_t status = lode_gpu_reserve(gpu, "landmarks", &grown, head_bytes * step->cluster->heads, 0);
    if (status != LODE_OK)
        return lode_fail_within(status, "block \"%s\": ", info->name);
    size_t used = (layer->landmarks + LODE_TILE - 1) / LODE_TILE * tile_bytes;
    for (uint32_t h = 0; h < step->cluster->heads && used; h++)
        LODE_GPU_TRY(gpu, "moving landmarks",
                     gpu->ops->copy(gpu->plan.stream, (uint8_t *)grown.data + h * head_bytes,
                                    (uint8_t *)old.data + h * layer->head_bytes, used));
    atomic_fetch_add(&gpu->mirror_bytes, grown.bytes - old.bytes);
    layer->tiles = grown;
    layer->head_bytes = head_bytes;
    return lode_gpu_free(gpu, &old);
}

/* The tiles of one head from the first that is new, or was part-filled. */
static lode_status_t send_tiles(lode_step_state_t *step, const struct lode_block *block, lode_gpu_layer_t *layer,
                                uint32_t head, uint64_t landmarks, size_t tile_bytes)
{
    uint64_t first = layer->landmarks / LODE_TILE * LODE_TILE, count;
    for (; first < landmarks; first += count) {
        const uint8_t *tiles;
        count = lode_store_span(step->cluster->store, block->slot, step->layer, head, first, landmarks, &tiles);
        if (count == 0)
            return lode_fail(LODE_ERR_DROPPED, "block \"%s\" was dropped", block->info.name);
        LODE_TRY(
            lode_gpu_upload(step->cluster->gpu,
                            (uint8_t *)layer->tiles.data + head * layer->head_bytes + first / LODE_TILE * tile_bytes,
                            tiles, (count + LODE_TILE - 1) / LODE_TILE * tile_bytes));
    }
    return LODE_OK;
}

static lode_status_t send_mean(lode_step_state_t *step, const struct lode_block *block, lode_gpu_layer_t *layer)
{
    size_t bytes = step->cluster->geometry.head_dim * sizeof(float);
    const float *mean = lode_store_mean(step->cluster->store, block->slot, step->layer, 0);
    if (layer->landmarks || !mean) /* it came with the first ones */
        return LODE_OK;
    LODE_TRY(lode_gpu_reserve(step->cluster->gpu, "mean keys", &layer->mean, bytes * step->cluster->heads, 0));
    for (uint32_t h = 0; h < step->cluster->heads; h++)
        LODE_TRY(lode_gpu_upload(step->cluster->gpu, (uint8_t *)layer->mean.data + h * bytes,
                                 lode_store_mean(step->cluster->store, block->slot, step->layer, h), bytes));
    return LODE_OK;
}

static lode_status_t bring_landmarks(lode_step_state_t *step, const lode_step_block_t *at, lode_gpu_layer_t *layer)
{
    const struct lode_block *block = at->block;
    uint64_t landmarks = lode_landmarks_of(&block->info.landmark, at->tokens);
    size_t tile_bytes = lode_landmark_tile_bytes(&block->info.landmark, step->cluster->geometry.head_dim);
    if (landmarks <= layer->landmarks)
        return LODE_OK;
    LODE_TRY(grow_tiles(step, &block->info, layer, (landmarks + LODE_TILE - 1) / LODE_TILE, tile_bytes));
    for (uint32_t head = 0; head < step->cluster->heads; head++)
        LODE_TRY(send_tiles(step, block, layer, head, landmarks, tile_bytes));
    LODE_TRY(send_mean(step, block, layer));
    layer->landmarks = landmarks;
    return LODE_OK;
}

/*
 * What other GPUs have broadcast spares the bus here: a piece that goes on where the mirror ends is appended to it. The
 * first landmarks of a block come from the store, with its mean keys. @p taken: the stream reads the piece.
 */
static lode_status_t take_piece(lode_step_state_t *step, const lode_replica_piece_t *piece, bool *taken)
{
    lode_cluster_h cluster = step->cluster;
    lode_gpu_t *gpu = cluster->gpu;
    for (uint32_t slot = 0; slot < gpu->block_room; slot++) {
        if (gpu->blocks[slot].id != piece->block || piece->heads != cluster->heads)
            continue;
        lode_block_info_t info;
        if (!lode_store_live(cluster->store, slot, &info, NULL) || info.id != piece->block)
            return LODE_OK;
        size_t tile_bytes = lode_landmark_tile_bytes(&info.landmark, cluster->geometry.head_dim);
        lode_gpu_layer_t *layer = &gpu->blocks[slot].layers[piece->layer];
        uint64_t first = piece->first / LODE_TILE, tiles = (piece->end - piece->first) / LODE_TILE;
        if (layer->landmarks == 0 || layer->landmarks != piece->first)
            return LODE_OK;
        LODE_TRY(grow_tiles(step, &info, layer, first + tiles, tile_bytes));
        *taken = true;
        for (uint32_t head = 0; head < cluster->heads; head++)
            LODE_GPU_TRY(gpu, "landmarks of a broadcast",
                         gpu->ops->copy(gpu->plan.stream,
                                        (uint8_t *)layer->tiles.data + head * layer->head_bytes + first * tile_bytes,
                                        piece->tiles + head * piece->head_stride, tiles * tile_bytes));
        layer->landmarks = piece->end;
        return LODE_OK;
    }
    return LODE_OK;
}

static lode_status_t take_pieces(lode_step_state_t *step)
{
    lode_replica_h replica = step->cluster->replica;
    lode_replica_piece_t piece;
    lode_status_t status = LODE_OK;
    while (status == LODE_OK && lode_replica_next(replica, &piece)) {
        bool taken = false;
        status = take_piece(step, &piece, &taken);
        if (taken && status != LODE_OK) /* the copies that were enqueued read it */
            LODE_GPU_TRY(step->cluster->gpu, "landmarks of a broadcast",
                         step->cluster->gpu->ops->stream_wait(step->cluster->gpu->plan.stream));
        lode_replica_give_back(replica, &piece, taken ? step->cluster->gpu->plan.stream : NULL);
    }
    return status;
}

/* ------------------------------------------------------------------- pages */

/* Addresses of the pages held here; those that have changed are sent. */
static lode_status_t bring_pages(lode_step_state_t *step, const lode_step_block_t *at, lode_gpu_layer_t *layer)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    uint64_t id = at->block->info.id, change = lode_shard_changes(step->cluster->shard, id);
    if (at->pages == layer->held_pages && change == layer->held_change && layer->held.data)
        return LODE_OK;
    size_t bytes = at->pages * sizeof(uint8_t *), keep = layer->held_pages * sizeof(uint8_t *);
    LODE_TRY(lode_buffer_extend(&layer->held_here, bytes, keep));
    LODE_TRY(lode_gpu_reserve(gpu, "addresses of pages", &layer->held, bytes, keep));
    const uint8_t **held = layer->held_here.data;
    uint32_t begin = at->pages, end = 0;
    layer->all_held = true;
    for (uint32_t page = 0; page < at->pages; page++) {
        lode_page_ref_t ref;
        bool here =
            gpu->arena_pinned && lode_shard_find(step->cluster->shard, (lode_page_id_t){id, step->layer, page}, &ref);
        const uint8_t *now = here ? ref.bytes : NULL;
        layer->all_held &= here;
        if (page < layer->held_pages && held[page] == now)
            continue;
        held[page] = now;
        begin = page < begin ? page : begin;
        end = page + 1;
    }
    layer->held_pages = 0; /* until they are there */
    if (begin < end)
        LODE_TRY(lode_gpu_upload(gpu, (const uint8_t **)layer->held.data + begin, held + begin,
                                 (end - begin) * sizeof *held));
    layer->held_pages = at->pages;
    layer->held_change = change;
    return LODE_OK;
}

/* -------------------------------------------------------------------- tails */

/* Records lie further apart on the device than here. */
static lode_status_t send_tail(lode_step_state_t *step, const struct lode_block *block, lode_gpu_layer_t *layer,
                               uint64_t first, uint64_t end)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    uint32_t dim = step->cluster->geometry.head_dim, heads = step->cluster->heads;
    size_t stride = lode_device_record_bytes(LODE_FORMAT_BF16, dim), record = lode_record_bytes(LODE_FORMAT_BF16, dim);
    uint64_t most = LODE_GPU_UPLOAD / (stride * heads);
    for (uint64_t count; first < end; first += count) {
        uint8_t *room = NULL;
        count = end - first < most ? end - first : most;
        LODE_TRY(lode_gpu_upload_room(gpu, count * heads * stride, (void **)&room));
        for (uint64_t i = 0; i < count * heads; i++)
            memcpy(room + i * stride, lode_tail_record(block, step->layer, first + i / heads, (uint32_t)(i % heads)),
                   record);
        LODE_GPU_TRY(gpu, "sending a tail",
                     gpu->ops->copy(gpu->plan.stream,
                                    (uint8_t *)layer->tail.data + (first - layer->tail_first) * heads * stride, room,
                                    count * heads * stride));
    }
    return LODE_OK;
}

static lode_status_t bring_tail(lode_step_state_t *step, const struct lode_block *block, lode_gpu_layer_t *layer)
{
    if (!block->tails || block->tails[step->layer].tokens == 0)
        return LODE_OK;
    lode_tail_t *tail = &block->tails[step->layer];
    size_t token = lode_device_record_bytes(LODE_FORMAT_BF16, step->cluster->geometry.head_dim) * step->cluster->heads;
    uint64_t end = tail->first + tail->tokens, room = tail->tokens > LODE_PAGE_TOKENS ? tail->tokens : LODE_PAGE_TOKENS;
    if (layer->tail_first != tail->first || room * token > layer->tail.bytes) /* the little there is is sent anew */
        tail->mirrored = tail->first;
    LODE_TRY(lode_gpu_reserve(step->cluster->gpu, "tails", &layer->tail, room * token, 0));
    layer->tail_first = tail->first;
    if (tail->mirrored < tail->first)
        tail->mirrored = tail->first;
    if (tail->mirrored < end)
        LODE_TRY(send_tail(step, block, layer, tail->mirrored, end));
    tail->mirrored = end;
    return LODE_OK;
}

/* --------------------------------------------------------------------- all */

const float *lode_gpu_transform_of(const lode_step_state_t *step, const struct lode_block *block, uint32_t head)
{
    size_t dim = step->cluster->geometry.head_dim;
    return block->info.transform ? step->cluster->gpu->transforms[step->layer] + head * dim * dim : NULL;
}

static lode_status_t bring_transforms(lode_step_state_t *step)
{
    lode_cluster_h cluster = step->cluster;
    lode_gpu_t *gpu = cluster->gpu;
    size_t bytes = (size_t)cluster->geometry.head_dim * cluster->geometry.head_dim * sizeof(float);
    if (!cluster->transform || (gpu->transforms && gpu->transforms[step->layer]))
        return LODE_OK;
    if (!gpu->transforms && !(gpu->transforms = calloc(cluster->geometry.layers, sizeof *gpu->transforms)))
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a table of transforms");
    lode_gpu_room_t room = {0};
    LODE_TRY(lode_gpu_reserve(gpu, "transforms", &room, bytes * cluster->heads, 0));
    lode_status_t status = LODE_OK;
    for (uint32_t h = 0; h < cluster->heads && status == LODE_OK; h++)
        status = lode_gpu_upload(
            gpu, (uint8_t *)room.data + h * bytes,
            lode_transform_queries(cluster->transform, step->layer, cluster->geometry.kv_head_begin + h), bytes);
    if (status == LODE_OK)
        gpu->transforms[step->layer] = room.data;
    else if (lode_gpu_free(gpu, &room) != LODE_OK)
        lode_debug("%s", lode_error_message());
    return status;
}

lode_status_t lode_gpu_bring(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    if (!gpu->plan.capturing) {
        LODE_TRY(free_dropped(gpu));
        LODE_TRY(take_pieces(step));
    }
    LODE_TRY(bring_transforms(step));
    gpu->plan.all_held = true;
    for (uint32_t b = 0; b < step->block_count; b++) {
        const lode_step_block_t *at = lode_step_block_at(step, b);
        lode_gpu_layer_t *layer = NULL;
        LODE_TRY(find_layer(step, at->block, &layer));
        LODE_TRY(bring_landmarks(step, at, layer));
        LODE_TRY(bring_pages(step, at, layer));
        LODE_TRY(bring_tail(step, at->block, layer));
        gpu->plan.all_held &= layer->all_held;
    }
    return LODE_OK;
}

void lode_gpu_forget_guesses(lode_gpu_t *gpu, float *guesses)
{
    lode_gpu_room_t room = {guesses, 0};
    if (guesses && gpu && lode_gpu_free(gpu, &room) != LODE_OK)
        lode_debug("%s", lode_error_message());
}
