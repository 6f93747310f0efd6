/* SPDX-License-Identifier: Apache-2.0 */
/* The device of a rank: which one, what is pinned for it, its caches of records, and its end. */
#include <stdlib.h>
#include <string.h>

#include "attend/device.h"

/* Caches smaller than this are not worth their look-ups. */
enum { CACHE_SETS_LEAST = 1 };

/* ------------------------------------------------------------------ options */

static lode_status_t parse_cache(const char *text, uint64_t free_bytes, uint64_t *bytes)
{
    double share;
    if (strchr(text, '%')) {
        LODE_TRY(lode_parse_share(text, &share));
        *bytes = (uint64_t)(share * (double)free_bytes);
        return LODE_OK;
    }
    return lode_parse_bytes(text, bytes);
}

lode_status_t lode_gpu_check_options(const lode_options_t *options)
{
    uint64_t ignored;
    const char *ordinal = lode_options_get(options, "device-ordinal"), *cache = lode_options_get(options, "gpu-cache");
    if (*ordinal && lode_parse_count(ordinal, &ignored) != LODE_OK)
        return lode_fail(LODE_ERR_INVALID, "device-ordinal \"%s\": it is the number of a GPU, from 0", ordinal);
    if (parse_cache(cache, 0, &ignored) != LODE_OK)
        return lode_fail(LODE_ERR_INVALID, "gpu-cache \"%s\": it takes bytes (8GiB) or a share of free memory (25%%)",
                         cache);
    return LODE_OK;
}

lode_status_t lode_gpu_fail(const lode_gpu_t *gpu, lode_status_t status, const char *what)
{
    return lode_fail(status, "%s: %s: %s", gpu->info.name, what, gpu->ops->error());
}

/* --------------------------------------------------------------------- open */

lode_status_t lode_gpu_choose(const lode_device_ops_t *ops, const char *text, uint32_t local, uint32_t *ordinal)
{
    uint32_t devices;
    uint64_t asked = 0;
    lode_status_t status = ops->count(&devices);
    if (status != LODE_OK || devices == 0)
        return lode_fail(status != LODE_OK ? status : LODE_ERR_UNSUPPORTED, "%s: %s", ops->name,
                         status != LODE_OK ? ops->error() : "there is no device");
    if (*text)
        LODE_TRY(lode_parse_count(text, &asked));
    if (*text && asked >= devices)
        return lode_fail(LODE_ERR_INVALID, "device-ordinal %s: this rank sees %u device%s, numbered from 0", text,
                         devices, devices == 1 ? "" : "s");
    *ordinal = *text ? (uint32_t)asked : local % devices;
    return LODE_OK;
}

bool lode_gpu_locate(const lode_options_t *options, uint32_t local_rank, char address[16])
{
    const lode_device_ops_t *ops;
    lode_device_info_t info;
    uint32_t ordinal;
    if (strcmp(lode_options_get(options, "device"), "none") == 0 || lode_device_get("cuda", &ops) != LODE_OK ||
        lode_gpu_choose(ops, lode_options_get(options, "device-ordinal"), local_rank, &ordinal) != LODE_OK ||
        ops->query(ordinal, &info) != LODE_OK)
        return false;
    memcpy(address, info.bus, sizeof info.bus);
    return true;
}

/* Records that land are read by the device where they are; pages of the own arena, too, if it can be pinned. */
static lode_status_t pin_memory(lode_gpu_t *gpu)
{
    size_t bytes;
    void *landings = lode_fabric_landings(gpu->cluster->fabric, &bytes);
    LODE_GPU_TRY(gpu, "pinning the landing buffers", gpu->ops->pin(gpu->device, landings, bytes));
    gpu->landing_pinned = true;
    bytes = (size_t)lode_shard_usage(gpu->cluster->shard).bytes;
    gpu->arena_pinned = gpu->ops->pin(gpu->device, lode_fabric_arena(gpu->cluster->fabric), bytes) == LODE_OK;
    if (!gpu->arena_pinned)
        lode_warn("%s: the arena of %zu bytes could not be pinned, so its records go through another buffer: %s",
                  gpu->info.name, bytes, gpu->ops->error());
    return LODE_OK;
}

static lode_status_t make_events(lode_gpu_t *gpu)
{
    lode_device_event_t *events[3 + LODE_GPU_TICKETS + LODE_GPU_TILES + 2 + LODE_GPU_TIMES];
    size_t n = 0;
    events[n++] = &gpu->busy;
    for (int i = 0; i < 2; i++)
        events[n++] = &gpu->uploaded[i];
    for (int i = 0; i < LODE_GPU_TICKETS; i++)
        events[n++] = &gpu->tickets[i].done;
    for (int i = 0; i < LODE_GPU_TILES; i++)
        events[n++] = &gpu->tiles[i].gathered;
    for (int i = 0; i < 2; i++)
        events[n++] = &gpu->ahead.tiles[i].gathered;
    for (int i = 0; i < LODE_GPU_TIMES; i++)
        events[n++] = &gpu->times[i];
    for (size_t i = 0; i < n; i++)
        LODE_GPU_TRY(gpu, "an event", gpu->ops->event_create(gpu->device, events[i]));
    return LODE_OK;
}

static lode_status_t open_device(lode_gpu_t *gpu, const lode_options_t *options)
{
    uint32_t ordinal = 0;
    uint32_t local = lode_fabric_members(gpu->cluster->fabric)[lode_fabric_rank(gpu->cluster->fabric)].local_rank;
    LODE_TRY(lode_gpu_choose(gpu->ops, lode_options_get(options, "device-ordinal"), local, &ordinal));
    snprintf(gpu->info.name, sizeof gpu->info.name, "%s device %u", gpu->ops->name, ordinal);
    LODE_GPU_TRY(gpu, "opening it", gpu->ops->open(ordinal, &gpu->device));
    LODE_GPU_TRY(gpu, "asking what it is", gpu->ops->query(ordinal, &gpu->info));
    snprintf(gpu->cache_text, sizeof gpu->cache_text, "%s", lode_options_get(options, "gpu-cache"));
    gpu->staging_bytes = lode_options_count(options, "gpu-staging");
    for (int f = 0; f < LODE_GPU_FORMATS; f++)
        gpu->copies_from[f] = UINT32_MAX;
    LODE_GPU_TRY(gpu, "a stream", gpu->ops->stream_create(gpu->device, &gpu->stream));
    LODE_TRY(make_events(gpu));
    gpu->ahead.on = strcmp(lode_options_get(options, "gpu-prefetch"), "yes") == 0;
    return pin_memory(gpu);
}

static lode_status_t try_device(lode_cluster_h cluster, const lode_options_t *options)
{
    const lode_device_ops_t *ops;
    if (lode_device_get("cuda", &ops) != LODE_OK)
        return lode_fail(LODE_ERR_UNSUPPORTED, "this build of Lodemark has no CUDA: it needs nvcc (LODEMARK_CUDA=yes)");
    lode_gpu_t *gpu = calloc(1, sizeof *gpu);
    if (!gpu)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a device's handle");
    gpu->ops = ops;
    gpu->cluster = cluster;
    cluster->gpu = gpu;
    lode_status_t status = open_device(gpu, options);
    if (status == LODE_OK)
        return LODE_OK;
    char message[512]; /* parting may fail too, in its own words */
    snprintf(message, sizeof message, "%s", lode_error_message());
    lode_gpu_part(cluster);
    lode_gpu_close(cluster);
    return lode_fail(status, "%s", message);
}

lode_status_t lode_gpu_open(lode_cluster_h cluster, const lode_options_t *options)
{
    const char *wish = lode_options_get(options, "device");
    if (strcmp(wish, "none") == 0)
        return LODE_OK;
    lode_status_t status = try_device(cluster, options);
    if (status == LODE_OK) {
        const lode_device_info_t *info = &cluster->gpu->info;
        lode_info("steps run on %s (device %d, %s, %.1f of %.1f GiB free)", info->name, info->ordinal, info->bus,
                  (double)info->free_bytes / (1 << 30), (double)info->memory_bytes / (1 << 30));
        return LODE_OK;
    }
    if (strcmp(wish, "auto") != 0)
        return lode_fail_within(status, "--device %s: ", wish);
    lode_info("steps run on the CPU: %s", lode_error_message());
    return LODE_OK;
}

/* Steps that nobody waited for may have run since. */
static void harvest_all(lode_gpu_t *gpu)
{
    bool done;
    for (int i = 0; i < LODE_GPU_TICKETS; i++)
        if (gpu->tickets[i].busy && gpu->ops->event_done(gpu->tickets[i].done, &done) == LODE_OK && done &&
            lode_gpu_ticket_done(gpu, &gpu->tickets[i]) != LODE_OK)
            lode_debug("%s", lode_error_message());
}

void lode_gpu_query(lode_cluster_h cluster, lode_cluster_info_t *info)
{
    lode_gpu_t *gpu = cluster->gpu;
    info->device = gpu ? gpu->info.name : "";
    if (!gpu)
        return;
    harvest_all(gpu);
    info->device_landmark_bytes = atomic_load(&gpu->mirror_bytes);
    info->device_cache_bytes = atomic_load(&gpu->cache_bytes);
    info->device_looked = atomic_load(&gpu->looked);
    info->device_hits = atomic_load(&gpu->hits);
}

void lode_gpu_rank_stats(lode_cluster_h cluster, Lodemark__RankStats *message)
{
    lode_gpu_t *gpu = cluster->gpu; /* as long as the fabric that asks */
    message->device = gpu != NULL;
    if (!gpu)
        return;
    message->device_landmark_bytes = atomic_load(&gpu->mirror_bytes);
    message->device_cache_bytes = atomic_load(&gpu->cache_bytes);
    message->device_looked = atomic_load(&gpu->looked);
    message->device_hits = atomic_load(&gpu->hits);
}

/* -------------------------------------------------------------------- close */

static void free_working_memory(lode_gpu_t *gpu)
{
    lode_gpu_room_t *device[] = {&gpu->tables,         &gpu->queries, &gpu->prepared, &gpu->scores,
                                 &gpu->select_scratch, &gpu->tokens,  &gpu->counts,   &gpu->wanted,
                                 &gpu->first,          &gpu->places,  &gpu->missed,   &gpu->sources,
                                 &gpu->where_scratch,  &gpu->staged,  &gpu->out,      &gpu->lse};
    lode_gpu_room_t *pinned[] = {&gpu->capture,      &gpu->upload,  &gpu->asked, &gpu->landed,
                                 &gpu->sources_here, &gpu->results, &gpu->aside, &gpu->tensors};
    for (size_t i = 0; i < sizeof device / sizeof *device; i++)
        gpu->ops->free(gpu->device, device[i]->data);
    for (size_t i = 0; i < sizeof pinned / sizeof *pinned; i++)
        gpu->ops->pinned_free(gpu->device, pinned[i]->data);
    for (int i = 0; i < LODE_DEVICE_SETS; i++) {
        gpu->ops->free(gpu->device, gpu->parts_out[i].data);
        gpu->ops->free(gpu->device, gpu->parts_lse[i].data);
    }
    for (int i = 0; i < 2; i++) {
        gpu->ops->free(gpu->device, gpu->folded_out[i].data);
        gpu->ops->free(gpu->device, gpu->folded_lse[i].data);
        if (gpu->uploaded[i])
            gpu->ops->event_destroy(gpu->uploaded[i]);
    }
    for (uint32_t i = 0; i < gpu->retired_count; i++)
        gpu->retired[i].release(gpu->device, gpu->retired[i].memory);
    free(gpu->retired);
}

static void free_tile(lode_gpu_t *gpu, lode_gpu_tile_t *tile)
{
    lode_buffer_free(&tile->tile.items);
    lode_buffer_free(&tile->tile.owners);
    lode_buffer_free(&tile->tile.owners_at);
    lode_buffer_free(&tile->entries);
    gpu->ops->pinned_free(gpu->device, tile->bounce.data);
    if (tile->gathered)
        gpu->ops->event_destroy(tile->gathered);
}

static void free_tickets_and_tiles(lode_gpu_t *gpu)
{
    for (int i = 0; i < LODE_GPU_TICKETS; i++) {
        gpu->ops->pinned_free(gpu->device, gpu->tickets[i].room.data);
        if (gpu->tickets[i].done)
            gpu->ops->event_destroy(gpu->tickets[i].done);
    }
    for (int i = 0; i < LODE_GPU_TILES; i++)
        free_tile(gpu, &gpu->tiles[i]);
    for (int i = 0; i < 2; i++)
        free_tile(gpu, &gpu->ahead.tiles[i]);
    for (int i = 0; i < LODE_GPU_TIMES; i++)
        if (gpu->times[i])
            gpu->ops->event_destroy(gpu->times[i]);
    lode_buffer_free(&gpu->plan.kinds);
    lode_buffer_free(&gpu->plan.order);
    lode_buffer_free(&gpu->plan.batches);
    lode_buffer_free(&gpu->plan.scans);
}

static void free_caches(lode_gpu_t *gpu)
{
    for (int f = 0; f < LODE_GPU_FORMATS; f++) {
        gpu->ops->free(gpu->device, gpu->caches[f].slots);
        gpu->ops->free(gpu->device, gpu->caches[f].records);
    }
    gpu->ops->free(gpu->device, gpu->clocks);
}

static void unpin_memory(lode_gpu_t *gpu)
{
    size_t bytes;
    if (gpu->landing_pinned)
        gpu->ops->unpin(gpu->device, lode_fabric_landings(gpu->cluster->fabric, &bytes));
    if (gpu->arena_pinned)
        gpu->ops->unpin(gpu->device, lode_fabric_arena(gpu->cluster->fabric));
}

void lode_gpu_part(lode_cluster_h cluster)
{
    lode_gpu_t *gpu = cluster->gpu;
    if (!gpu || !gpu->device)
        return;
    lode_gpu_ahead_drop(gpu);
    if (lode_gpu_enter(gpu) == LODE_OK) {
        lode_gpu_settle(gpu);
        lode_gpu_mirrors_free(gpu);
        free_working_memory(gpu);
        free_tickets_and_tiles(gpu);
        free_caches(gpu);
        unpin_memory(gpu);
        if (gpu->busy)
            gpu->ops->event_destroy(gpu->busy);
        if (gpu->stream)
            gpu->ops->stream_destroy(gpu->stream);
        lode_gpu_leave(gpu);
    }
}

void lode_gpu_close(lode_cluster_h cluster)
{
    lode_gpu_t *gpu = cluster->gpu;
    if (gpu && gpu->device)
        gpu->ops->close(&gpu->device);
    if (gpu)
        lode_gpu_ahead_destroy(gpu);
    free(gpu);
    cluster->gpu = NULL;
}

lode_status_t lode_gpu_settle(lode_gpu_t *gpu)
{
    if (gpu->in_step)
        LODE_GPU_TRY(gpu, "waiting for a step", gpu->ops->stream_wait(gpu->plan.stream));
    if (gpu->stepped)
        LODE_GPU_TRY(gpu, "waiting for a step", gpu->ops->event_wait(gpu->busy));
    lode_gpu_ahead_drop(gpu);
    for (int i = 0; i < LODE_GPU_TILES; i++)
        LODE_TRY(lode_gpu_tile_release(gpu, &gpu->tiles[i]));
    for (int i = 0; i < 2; i++)
        LODE_TRY(lode_gpu_tile_release(gpu, &gpu->ahead.tiles[i]));
    return LODE_OK;
}

/* ------------------------------------------------------------------- caches */

static lode_status_t take_cache(lode_gpu_t *gpu, lode_format_t format, uint32_t sets, lode_device_cache_t *cache)
{
    size_t slots = (size_t)gpu->cluster->geometry.layers * gpu->cluster->heads * sets * LODE_DEVICE_WAYS;
    size_t record_bytes = lode_device_record_bytes(format, gpu->cluster->geometry.head_dim);
    void *at, *records;
    LODE_TRY(gpu->ops->alloc(gpu->device, slots * sizeof(lode_device_slot_t), &at));
    lode_status_t status = gpu->ops->alloc(gpu->device, slots * record_bytes, &records);
    if (status != LODE_OK) {
        gpu->ops->free(gpu->device, at);
        return status;
    }
    *cache = (lode_device_cache_t){at, records, sets};
    atomic_fetch_add(&gpu->cache_bytes, slots * (sizeof(lode_device_slot_t) + record_bytes));
    return LODE_OK;
}

static lode_status_t clear_cache(lode_gpu_t *gpu, const lode_device_cache_t *cache)
{
    size_t slots = (size_t)gpu->cluster->geometry.layers * gpu->cluster->heads * cache->sets * LODE_DEVICE_WAYS;
    LODE_GPU_TRY(gpu, "clearing the cache",
                 gpu->ops->fill(gpu->stream, cache->slots, 0, slots * sizeof(lode_device_slot_t)));
    LODE_GPU_TRY(gpu, "clearing the cache", gpu->ops->stream_wait(gpu->stream));
    return LODE_OK;
}

static lode_status_t make_clocks(lode_gpu_t *gpu)
{
    void *clocks;
    if (gpu->clocks)
        return LODE_OK;
    LODE_GPU_TRY(gpu, "clocks", gpu->ops->alloc(gpu->device, LODE_GPU_FORMATS * sizeof(uint32_t), &clocks));
    gpu->clocks = clocks;
    LODE_GPU_TRY(gpu, "clocks", gpu->ops->fill(gpu->stream, clocks, 0, LODE_GPU_FORMATS * sizeof(uint32_t)));
    LODE_GPU_TRY(gpu, "clocks", gpu->ops->stream_wait(gpu->stream));
    return LODE_OK;
}

static lode_status_t prepare_format(lode_gpu_t *gpu, lode_format_t format)
{
    lode_device_info_t now;
    uint64_t bytes, asked;
    LODE_TRY(make_clocks(gpu));
    if (gpu->cache_made[format])
        return LODE_OK;
    LODE_GPU_TRY(gpu, "calibrating the gather of records",
                 gpu->ops->gather_calibrate(gpu->device, gpu->stream,
                                            lode_record_bytes(format, gpu->cluster->geometry.head_dim),
                                            &gpu->copies_from[format]));
    gpu->copies |= gpu->copies_from[format] != UINT32_MAX;
    LODE_GPU_TRY(gpu, "asking for its free memory", gpu->ops->query((uint32_t)gpu->info.ordinal, &now));
    LODE_TRY(parse_cache(gpu->cache_text, now.free_bytes, &bytes));
    uint64_t set_bytes =
        (uint64_t)gpu->cluster->geometry.layers * gpu->cluster->heads * LODE_DEVICE_WAYS *
        (sizeof(lode_device_slot_t) + lode_device_record_bytes(format, gpu->cluster->geometry.head_dim));
    uint64_t sets = bytes / set_bytes;
    uint64_t most = (LODE_DEVICE_STAGED - 1) / LODE_DEVICE_WAYS / gpu->cluster->geometry.layers / gpu->cluster->heads;
    asked = sets = sets < most ? sets : most; /* the number of a slot has 31 bits */
    lode_status_t status = LODE_OK;
    for (; sets >= CACHE_SETS_LEAST; sets /= 2) {
        status = take_cache(gpu, format, (uint32_t)sets, &gpu->caches[format]);
        if (status != LODE_ERR_NO_MEMORY)
            break;
        lode_warn("%s: no room for a cache of %llu bytes of %s records, half of it is tried: %s", gpu->info.name,
                  (unsigned long long)(sets * set_bytes), lode_format_name(format), gpu->ops->error());
    }
    if (status != LODE_OK && status != LODE_ERR_NO_MEMORY)
        return lode_gpu_fail(gpu, status, "the cache of records");
    gpu->cache_made[format] = true;
    if (asked && !sets)
        lode_warn("%s: steps go on without a cache of %s records", gpu->info.name, lode_format_name(format));
    return gpu->caches[format].slots ? clear_cache(gpu, &gpu->caches[format]) : LODE_OK;
}

lode_status_t lode_gpu_prepare_format(lode_gpu_t *gpu, lode_format_t format)
{
    LODE_TRY(lode_gpu_enter(gpu));
    lode_status_t status = prepare_format(gpu, format);
    lode_gpu_leave(gpu);
    return status;
}
