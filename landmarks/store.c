/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The mapping: header | directory, 32 bytes a block | free-list links | block records | heap of extents.
 *
 * A (block, layer) is a list of extents; extent e holds pages [P·(2^e − 1), P·(2^(e+1) − 1)), so a place is found
 * without a search and nothing ever moves. In an extent each head's tiles lie in one piece, so that scanning a
 * head is one sequential read; behind them the tiles of their index if the block has one, a note a page, and in the
 * first extent the mean keys.
 * An extent's memory is reserved as pages arrive, not when it is taken.
 *
 * Order is what keeps readers and a keeper's successor safe: a block shows by its directory stamp, an extent by
 * its offset, a page by its note, tokens by the layer's count, each stored with release after what it stands for.
 */
#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "landmarks/heap.h"
#include "landmarks/index.h"
#include "landmarks/inside.h"

#define MAGIC UINT64_C(0x31306b72616d6c6f) /* "olmark01" in memory */
#define EXTENTS 24
#define FIRST_PAGES_LEAST 8 /* makes the landmarks of an extent a multiple of LODE_TILE at any chunk */
#define FIRST_PAGES_MOST 4096
#define RESERVE_BYTES 65536 /* of each head at a time: few system calls, little lost on short blocks */
#define INFO_WORDS (sizeof(lode_block_info_t) / 8)

_Static_assert(sizeof(lode_block_info_t) % 8 == 0, "block info is copied by words");
_Static_assert(FIRST_PAGES_LEAST *(LODE_PAGE_TOKENS / 16) % LODE_TILE == 0, "extents begin at a tile");

/* Stamp: version << 2 | state; it moves with every change of the state. */
typedef struct directory_entry {
    _Atomic uint64_t stamp;
    _Atomic uint64_t id;
    _Atomic uint64_t name_hash;
    _Atomic uint64_t dropped_ns;
} directory_entry_t;

typedef struct layer_record {
    _Atomic uint64_t tokens;            /* published */
    _Atomic uint64_t has_mean;          /* 1: the mean keys are in place */
    _Atomic uint64_t extents[EXTENTS];  /* offsets in the mapping; 0: not taken yet */
    _Atomic uint64_t reserved[EXTENTS]; /* pages of the extent that have memory behind them */
} layer_record_t;

typedef struct block_record {
    union {
        lode_block_info_t info;
        _Atomic uint64_t words[INFO_WORDS];
    };
    layer_record_t layers[];
} block_record_t;

typedef struct page_note {
    _Atomic uint64_t tokens; /* 0: the page was not put */
    /* Replaced in place, when pages move: rank | size << 32, then the offset. A reader may see a half of each. */
    _Atomic uint64_t hints[LODE_REPLICAS_MAX][2];
} page_note_t;

typedef struct store_header {
    _Atomic uint64_t magic; /* stored last */
    uint64_t bytes;
    uint32_t layers, dim, max_blocks;
    _Atomic uint32_t slots;
    uint64_t directory, records, record_bytes;
    lode_heap_state_t heap;
} store_header_t;

struct lode_store {
    lode_store_params_t params;
    uint8_t *base;
    store_header_t *header;
    lode_heap_t heap;
};

/* ------------------------------------------------------------------- create */

static uint64_t round_up(uint64_t n, uint64_t unit)
{
    return (n + unit - 1) / unit * unit;
}

static lode_status_t handle_create(const lode_store_params_t *params, lode_store_h *store)
{
    struct lode_store *s = calloc(1, sizeof *s);
    if (!s)
        return lode_fail(LODE_ERR_NO_MEMORY, "landmark store: no memory for its handle");
    s->params = *params;
    s->base = params->base;
    s->header = params->base;
    s->heap = (lode_heap_t){.base = params->base, .fd = params->fd, .state = &s->header->heap};
    *store = s;
    return LODE_OK;
}

lode_status_t lode_store_create(const lode_store_params_t *params, lode_store_h *store)
{
    uint64_t directory = round_up(sizeof(store_header_t), 64);
    uint64_t links = directory + (uint64_t)params->max_blocks * sizeof(directory_entry_t);
    uint64_t records = round_up(links + lode_heap_link_bytes(params->bytes), 4096);
    uint64_t record_bytes = round_up(sizeof(block_record_t) + params->layers * sizeof(layer_record_t), 64);
    uint64_t begin = round_up(records + params->max_blocks * record_bytes, LODE_HEAP_UNIT);
    uint64_t end = params->bytes / LODE_HEAP_UNIT * LODE_HEAP_UNIT;
    if ((uintptr_t)params->base % 64 != 0)
        return lode_fail(LODE_ERR_INVALID, "landmark store: the mapping at %p is not 64-byte aligned", params->base);
    if (begin >= end)
        return lode_fail(LODE_ERR_INVALID,
                         "landmark store of %zu bytes: a table of %" PRIu32 " blocks of %" PRIu32
                         " layers alone takes %" PRIu64 "; make it larger",
                         params->bytes, params->max_blocks, params->layers, begin);
    lode_heap_t whole = {.base = params->base, .fd = params->fd};
    LODE_TRY(lode_heap_reserve(&whole, 0, links));
    LODE_TRY(handle_create(params, store));
    store_header_t *header = (*store)->header;
    header->bytes = params->bytes;
    header->layers = params->layers;
    header->dim = params->dim;
    header->max_blocks = params->max_blocks;
    header->directory = directory;
    header->records = records;
    header->record_bytes = record_bytes;
    header->heap.begin = begin;
    header->heap.end = end;
    header->heap.links = links;
    atomic_store_explicit(&header->heap.bump, begin, memory_order_relaxed);
    atomic_store_explicit(&header->magic, MAGIC, memory_order_release);
    return LODE_OK;
}

lode_status_t lode_store_attach(const lode_store_params_t *params, lode_store_h *store)
{
    store_header_t *header = params->base;
    if (params->bytes < sizeof *header || atomic_load_explicit(&header->magic, memory_order_acquire) != MAGIC)
        return lode_fail(LODE_ERR_FORMAT, "landmark store: the mapping at %p holds no store of this version",
                         params->base);
    if (header->layers != params->layers || header->dim != params->dim || header->bytes > params->bytes)
        return lode_fail(LODE_ERR_INVALID,
                         "landmark store: made for %" PRIu32 " layers of dim %" PRIu32 " in %" PRIu64
                         " bytes, attached to as %" PRIu32 " layers of dim %" PRIu32 " in %zu",
                         header->layers, header->dim, header->bytes, params->layers, params->dim, params->bytes);
    return handle_create(params, store);
}

void lode_store_destroy(lode_store_h *store)
{
    free(*store);
    *store = NULL;
}

const lode_ops_t *lode_store_ops(lode_store_h store)
{
    return store->params.ops;
}

uint32_t lode_store_dim(lode_store_h store)
{
    return store->params.dim;
}

/* ---------------------------------------------------------------- directory */

static directory_entry_t *entry_at(lode_store_h store, uint32_t slot)
{
    return (directory_entry_t *)(store->base + store->header->directory) + slot;
}

static uint64_t record_offset(lode_store_h store, uint32_t slot)
{
    return store->header->records + slot * store->header->record_bytes;
}

static block_record_t *record_at(lode_store_h store, uint32_t slot)
{
    return (block_record_t *)(store->base + record_offset(store, slot));
}

static lode_block_state_t state_of(uint64_t stamp)
{
    return (lode_block_state_t)(stamp & 3);
}

static bool is_live(lode_block_state_t state)
{
    return state == LODE_BLOCK_OPEN || state == LODE_BLOCK_SEALED;
}

/* State and id of a slot as they stood together. */
static lode_block_state_t entry_read(const directory_entry_t *entry, uint64_t *id)
{
    uint64_t stamp;
    do {
        stamp = atomic_load_explicit(&entry->stamp, memory_order_acquire);
        *id = atomic_load_explicit(&entry->id, memory_order_acquire);
    } while (atomic_load_explicit(&entry->stamp, memory_order_relaxed) != stamp);
    return state_of(stamp);
}

static void entry_state_set(directory_entry_t *entry, lode_block_state_t state)
{
    uint64_t stamp = atomic_load_explicit(&entry->stamp, memory_order_relaxed);
    atomic_store_explicit(&entry->stamp, ((stamp >> 2) + 1) << 2 | state, memory_order_release);
}

static uint64_t name_hash(const char *name, uint32_t kv_head_begin, uint32_t kv_head_end)
{
    return lode_mix(lode_hash_text(name), (uint64_t)kv_head_begin << 32 | kv_head_end);
}

bool lode_store_live(lode_store_h store, uint32_t slot, lode_block_info_t *info, lode_block_state_t *state)
{
    const directory_entry_t *entry = entry_at(store, slot);
    const block_record_t *record = record_at(store, slot);
    block_record_t copy;
    uint64_t stamp;
    do {
        stamp = atomic_load_explicit(&entry->stamp, memory_order_acquire);
        if (!is_live(state_of(stamp)))
            return false;
        for (size_t i = 0; i < INFO_WORDS; i++)
            copy.words[i] = atomic_load_explicit(&record->words[i], memory_order_acquire);
    } while (atomic_load_explicit(&entry->stamp, memory_order_relaxed) != stamp);
    *info = copy.info;
    if (state)
        *state = state_of(stamp);
    return true;
}

/* The hash spares the copy of most of the others. */
static bool slot_has_name(lode_store_h store, uint32_t slot, const char *name, uint32_t kv_head_begin,
                          uint32_t kv_head_end, uint64_t hash)
{
    lode_block_info_t info;
    return atomic_load_explicit(&entry_at(store, slot)->name_hash, memory_order_acquire) == hash &&
           lode_store_live(store, slot, &info, NULL) && info.kv_head_begin == kv_head_begin &&
           info.kv_head_end == kv_head_end && strncmp(info.name, name, sizeof info.name) == 0;
}

static bool name_find(lode_store_h store, const char *name, uint32_t kv_head_begin, uint32_t kv_head_end,
                      uint32_t *slot)
{
    uint64_t hash = name_hash(name, kv_head_begin, kv_head_end);
    uint32_t slots = lode_store_slots(store);
    for (uint32_t i = 0; i < slots; i++) {
        if (slot_has_name(store, i, name, kv_head_begin, kv_head_end, hash)) {
            *slot = i;
            return true;
        }
    }
    return false;
}

static bool id_find(lode_store_h store, uint64_t block, uint32_t *slot, lode_block_state_t *state)
{
    uint32_t slots = lode_store_slots(store);
    for (uint32_t i = 0; i < slots; i++) {
        uint64_t id;
        *state = entry_read(entry_at(store, i), &id);
        if (id == block && *state != LODE_BLOCK_FREE) {
            *slot = i;
            return true;
        }
    }
    return false;
}

lode_status_t lode_store_find(lode_store_h store, const char *name, uint32_t kv_head_begin, uint32_t kv_head_end,
                              uint32_t *slot)
{
    if (name_find(store, name, kv_head_begin, kv_head_end, slot))
        return LODE_OK;
    return lode_fail(LODE_ERR_NOT_FOUND,
                     "block \"%s\": this node knows no live block of this name and KV heads %" PRIu32 " to %" PRIu32,
                     name, kv_head_begin, kv_head_end);
}

lode_status_t lode_store_find_id(lode_store_h store, uint64_t block, uint32_t *slot)
{
    uint32_t found;
    lode_block_state_t state;
    if (!id_find(store, block, &found, &state) || !is_live(state))
        return lode_fail(LODE_ERR_NOT_FOUND, "block %016" PRIx64 ": this node knows no live block of this id", block);
    *slot = found;
    return LODE_OK;
}

const lode_block_info_t *lode_store_info(lode_store_h store, uint32_t slot)
{
    return &record_at(store, slot)->info;
}

lode_block_state_t lode_store_state(lode_store_h store, uint32_t slot, uint64_t block)
{
    uint64_t id;
    lode_block_state_t state = entry_read(entry_at(store, slot), &id);
    return id == block ? state : LODE_BLOCK_DROPPED;
}

uint32_t lode_store_slots(lode_store_h store)
{
    return atomic_load_explicit(&store->header->slots, memory_order_acquire);
}

/* ------------------------------------------------------------------ extents */

/* Where things lie in extent e of a layer. */
typedef struct extent_shape {
    uint64_t first_page, pages;
    uint32_t heads;
    uint32_t page_landmarks;
    uint64_t tile_bytes;
    uint64_t head_bytes;                                /* from one head's tiles to the next's */
    uint64_t index, index_tile_bytes, index_head_bytes; /* the same of the index; no bytes without one */
    uint64_t notes;
    uint64_t mean, mean_bytes; /* none but in the first */
    uint64_t bytes;
} extent_shape_t;

static uint64_t first_pages(const lode_block_info_t *info)
{
    uint64_t expected = info->expected_tokens / LODE_PAGE_TOKENS, pages = FIRST_PAGES_LEAST;
    while (pages < expected && pages < FIRST_PAGES_MOST)
        pages *= 2;
    return pages;
}

static uint32_t extent_of(const lode_block_info_t *info, uint64_t page)
{
    return 63 - (uint32_t)__builtin_clzll(page / first_pages(info) + 1);
}

/* Bytes of one head's tiles for the first pages of an extent. */
static uint64_t tiles_bytes(const extent_shape_t *shape, uint64_t pages)
{
    return (pages * shape->page_landmarks + LODE_TILE - 1) / LODE_TILE * shape->tile_bytes;
}

/* Bytes of one head's index tiles for the first pages of an extent. */
static uint64_t index_bytes(const extent_shape_t *shape, uint64_t pages)
{
    return (pages * shape->page_landmarks / LODE_INDEX_GROUP + LODE_TILE - 1) / LODE_TILE * shape->index_tile_bytes;
}

static extent_shape_t extent_shape(const lode_block_info_t *info, uint32_t dim, uint32_t e)
{
    uint64_t first = first_pages(info);
    extent_shape_t shape = {
        .first_page = first * ((UINT64_C(1) << e) - 1),
        .pages = first << e,
        .heads = info->kv_head_end - info->kv_head_begin,
        .page_landmarks = lode_landmarks_per_page(&info->landmark),
        .tile_bytes = lode_landmark_tile_bytes(&info->landmark, dim),
    };
    shape.head_bytes = tiles_bytes(&shape, shape.pages);
    shape.index = shape.heads * shape.head_bytes;
    if (lode_index_kept(info)) {
        lode_landmark_spec_t kept = lode_index_spec(&info->landmark);
        shape.index_tile_bytes = lode_landmark_tile_bytes(&kept, dim);
    }
    shape.index_head_bytes = index_bytes(&shape, shape.pages);
    shape.notes = shape.index + shape.heads * shape.index_head_bytes;
    shape.mean = round_up(shape.notes + shape.pages * sizeof(page_note_t), 64);
    shape.mean_bytes = e == 0 && info->landmark.centre ? (uint64_t)shape.heads * dim * sizeof(float) : 0;
    shape.bytes = shape.mean + shape.mean_bytes;
    return shape;
}

/* The n-th stretch of an extent that pages [from, to) lie in: each head's tiles and index, the notes, the mean. */
static bool stretch(const extent_shape_t *shape, uint32_t n, uint64_t from, uint64_t to, uint64_t *begin,
                    uint64_t *bytes)
{
    if (n < shape->heads) {
        *begin = n * shape->head_bytes + tiles_bytes(shape, from);
        *bytes = tiles_bytes(shape, to) - tiles_bytes(shape, from);
    } else if (n < 2 * shape->heads) {
        *begin = shape->index + (n - shape->heads) * shape->index_head_bytes + index_bytes(shape, from);
        *bytes = index_bytes(shape, to) - index_bytes(shape, from);
    } else if (n == 2 * shape->heads) {
        *begin = shape->notes + from * sizeof(page_note_t);
        *bytes = (to - from) * sizeof(page_note_t);
    } else {
        *begin = shape->mean;
        *bytes = from == 0 && to > 0 ? shape->mean_bytes : 0;
    }
    return n <= 2 * shape->heads + 1;
}

static page_note_t *note_at(lode_store_h store, const extent_shape_t *shape, uint64_t extent, uint64_t page)
{
    return (page_note_t *)(store->base + extent + shape->notes) + (page - shape->first_page);
}

/* The note of a page, NULL if it has no memory yet. */
static page_note_t *note_find(lode_store_h store, block_record_t *record, uint32_t layer, uint64_t page)
{
    uint32_t e = extent_of(&record->info, page);
    if (e >= EXTENTS)
        return NULL;
    layer_record_t *l = &record->layers[layer];
    extent_shape_t shape = extent_shape(&record->info, store->params.dim, e);
    uint64_t extent = atomic_load_explicit(&l->extents[e], memory_order_acquire);
    if (extent == 0 || page - shape.first_page >= atomic_load_explicit(&l->reserved[e], memory_order_acquire))
        return NULL;
    return note_at(store, &shape, extent, page);
}

static lode_status_t extent_take(lode_store_h store, const extent_shape_t *shape, uint64_t *extent)
{
    *extent = lode_heap_take(&store->heap, shape->bytes);
    if (*extent)
        return LODE_OK;
    uint64_t fresh, limit = lode_heap_bytes(&store->heap, &fresh);
    return lode_fail(LODE_ERR_FULL,
                     "the node's landmark store is full: an extent of %" PRIu64 " bytes was asked for, %" PRIu64
                     " of %" PRIu64 " bytes are taken; drop blocks or raise the landmark store's size",
                     lode_heap_extent_bytes(shape->bytes), limit - fresh, limit);
}

/* Put memory behind the pages of an extent up to the one that is coming, and somewhat beyond. */
static lode_status_t extent_reserve(lode_store_h store, layer_record_t *layer, uint32_t e, const extent_shape_t *shape,
                                    uint64_t extent, uint64_t page)
{
    uint64_t from = atomic_load_explicit(&layer->reserved[e], memory_order_relaxed);
    uint64_t wanted = page - shape->first_page + 1, begin, bytes;
    if (wanted <= from)
        return LODE_OK;
    uint64_t pages = RESERVE_BYTES / (tiles_bytes(shape, FIRST_PAGES_LEAST) / FIRST_PAGES_LEAST);
    uint64_t to = round_up(wanted, round_up(pages ? pages : 1, FIRST_PAGES_LEAST));
    to = to < shape->pages ? to : shape->pages;
    for (uint32_t n = 0; stretch(shape, n, from, to, &begin, &bytes); n++)
        LODE_TRY(lode_heap_reserve(&store->heap, extent + begin, bytes));
    atomic_store_explicit(&layer->reserved[e], to, memory_order_release);
    return LODE_OK;
}

/* Make room for one page. */
static lode_status_t page_room(lode_store_h store, block_record_t *record, uint32_t layer, uint64_t page,
                               extent_shape_t *shape, uint64_t *extent)
{
    layer_record_t *l = &record->layers[layer];
    uint32_t e = extent_of(&record->info, page);
    if (e >= EXTENTS)
        return lode_fail(LODE_ERR_FULL, "block \"%s\": page %" PRIu64 " is beyond the longest block that there can be",
                         record->info.name, page);
    *shape = extent_shape(&record->info, store->params.dim, e);
    *extent = atomic_load_explicit(&l->extents[e], memory_order_relaxed);
    if (*extent == 0) {
        LODE_TRY(extent_take(store, shape, extent));
        atomic_store_explicit(&l->extents[e], *extent, memory_order_release);
    }
    return extent_reserve(store, l, e, shape, *extent, page);
}

/*
 * Give one extent back. Cleared while it is still linked, then unlinked, then listed as free: a successor that finds
 * it linked clears it again, and one that does not has lost it, but never sees it twice.
 */
static void extent_give(lode_store_h store, layer_record_t *layer, uint32_t e, const extent_shape_t *shape)
{
    uint64_t extent = atomic_load_explicit(&layer->extents[e], memory_order_relaxed);
    uint64_t reserved = atomic_load_explicit(&layer->reserved[e], memory_order_relaxed), begin, bytes;
    if (extent == 0)
        return;
    if (!lode_heap_punch(&store->heap, extent, lode_heap_extent_bytes(shape->bytes))) {
        for (uint32_t n = 0; stretch(shape, n, 0, reserved, &begin, &bytes); n++)
            memset(store->base + extent + begin, 0, bytes);
    }
    atomic_store_explicit(&layer->reserved[e], 0, memory_order_release);
    atomic_store_explicit(&layer->extents[e], 0, memory_order_release);
    lode_heap_give(&store->heap, extent, shape->bytes);
}

/* ----------------------------------------------------------- keeper: blocks */

static lode_status_t info_check(lode_store_h store, const lode_block_info_t *info)
{
    size_t length = strnlen(info->name, sizeof info->name);
    if (info->id == 0 || length == 0 || length > LODE_NAME_MAX)
        return lode_fail(LODE_ERR_INVALID, "block %016" PRIx64 ": its id must not be 0, its name 1 to %d bytes",
                         info->id, LODE_NAME_MAX);
    if (info->kv_head_end <= info->kv_head_begin)
        return lode_fail(LODE_ERR_INVALID, "block \"%s\": KV heads %" PRIu32 " to %" PRIu32 " are none", info->name,
                         info->kv_head_begin, info->kv_head_end);
    if (!lode_landmark_spec_valid(&info->landmark, store->params.dim))
        return lode_fail(LODE_ERR_INVALID,
                         "block \"%s\": no landmarks of %" PRIu32 " bits and chunk %" PRIu32 " at head dim %" PRIu32,
                         info->name, info->landmark.bits, info->landmark.chunk, store->params.dim);
    return LODE_OK;
}

/* A slot that was given back, or one never used. */
static lode_status_t slot_take(lode_store_h store, uint32_t *slot)
{
    uint32_t slots = lode_store_slots(store);
    uint64_t id;
    for (*slot = 0; *slot < slots; ++*slot) {
        if (entry_read(entry_at(store, *slot), &id) == LODE_BLOCK_FREE)
            return LODE_OK;
    }
    if (slots == store->header->max_blocks)
        return lode_fail(LODE_ERR_FULL, "the block table is full: it has room for %" PRIu32 " blocks; drop some",
                         store->header->max_blocks);
    return lode_heap_reserve(&store->heap, record_offset(store, slots), store->header->record_bytes);
}

lode_status_t lode_store_add(lode_store_h store, const lode_block_info_t *info, uint32_t *slot)
{
    uint32_t found;
    lode_block_state_t state;
    LODE_TRY(info_check(store, info));
    if (id_find(store, info->id, &found, &state)) {
        if (state == LODE_BLOCK_DROPPED)
            return lode_fail(LODE_ERR_DROPPED, "block \"%s\": its id %016" PRIx64 " was dropped", info->name, info->id);
        *slot = found;
        return LODE_OK;
    }
    if (name_find(store, info->name, info->kv_head_begin, info->kv_head_end, &found))
        return lode_fail(LODE_ERR_NAME_IN_USE,
                         "block \"%s\": a live block of KV heads %" PRIu32 " to %" PRIu32
                         " has this name; drop it or take another name",
                         info->name, info->kv_head_begin, info->kv_head_end);
    LODE_TRY(slot_take(store, &found));
    directory_entry_t *entry = entry_at(store, found);
    block_record_t *record = record_at(store, found), copy = {.info = *info};
    for (size_t i = 0; i < INFO_WORDS; i++)
        atomic_store_explicit(&record->words[i], copy.words[i], memory_order_release);
    atomic_store_explicit(&entry->name_hash, name_hash(info->name, info->kv_head_begin, info->kv_head_end),
                          memory_order_release);
    atomic_store_explicit(&entry->id, info->id, memory_order_release);
    if (found == lode_store_slots(store))
        atomic_store_explicit(&store->header->slots, found + 1, memory_order_release);
    entry_state_set(entry, LODE_BLOCK_OPEN);
    *slot = found;
    return LODE_OK;
}

lode_status_t lode_store_seal(lode_store_h store, uint64_t block, uint64_t tokens)
{
    uint32_t slot = 0;
    LODE_TRY(lode_store_find_id(store, block, &slot));
    for (uint32_t layer = 0; layer < store->params.layers; layer++) {
        uint64_t visible = lode_store_tokens(store, slot, layer);
        if (visible < tokens)
            return lode_fail(LODE_ERR_INVALID,
                             "block \"%s\" layer %" PRIu32 ": %" PRIu64 " tokens, cannot be sealed at %" PRIu64,
                             lode_store_info(store, slot)->name, layer, visible, tokens);
    }
    if (lode_store_state(store, slot, block) == LODE_BLOCK_OPEN)
        entry_state_set(entry_at(store, slot), LODE_BLOCK_SEALED);
    return LODE_OK;
}

lode_status_t lode_store_drop(lode_store_h store, uint64_t block)
{
    uint32_t slot = 0;
    lode_block_state_t state;
    if (!id_find(store, block, &slot, &state) || !is_live(state))
        return LODE_OK;
    directory_entry_t *entry = entry_at(store, slot);
    atomic_store_explicit(&entry->dropped_ns, lode_now_ns(), memory_order_release);
    entry_state_set(entry, LODE_BLOCK_DROPPED);
    return LODE_OK;
}

/* May be cut short by a kill at any point and done again by a successor: the slot is free only when all is. */
static void slot_clear(lode_store_h store, uint32_t slot)
{
    block_record_t *record = record_at(store, slot);
    for (uint32_t e = 0; e < EXTENTS; e++) {
        extent_shape_t shape = extent_shape(&record->info, store->params.dim, e);
        for (uint32_t layer = 0; layer < store->params.layers; layer++)
            extent_give(store, &record->layers[layer], e, &shape);
    }
    for (uint32_t layer = 0; layer < store->params.layers; layer++) {
        atomic_store_explicit(&record->layers[layer].tokens, 0, memory_order_release);
        atomic_store_explicit(&record->layers[layer].has_mean, 0, memory_order_release);
    }
    entry_state_set(entry_at(store, slot), LODE_BLOCK_FREE);
}

void lode_store_collect(lode_store_h store, uint64_t older_than_ns)
{
    uint32_t slots = lode_store_slots(store);
    for (uint32_t slot = 0; slot < slots; slot++) {
        directory_entry_t *entry = entry_at(store, slot);
        uint64_t id;
        if (entry_read(entry, &id) == LODE_BLOCK_DROPPED &&
            atomic_load_explicit(&entry->dropped_ns, memory_order_relaxed) < older_than_ns)
            slot_clear(store, slot);
    }
}

/* -------------------------------------------------------- keeper: landmarks */

static lode_status_t layer_find(lode_store_h store, uint64_t block, uint32_t layer, uint32_t *slot)
{
    LODE_TRY(lode_store_find_id(store, block, slot));
    if (layer < store->params.layers)
        return LODE_OK;
    return lode_fail(LODE_ERR_INVALID, "block \"%s\": layer %" PRIu32 " of a model of %" PRIu32 " layers",
                     lode_store_info(store, *slot)->name, layer, store->params.layers);
}

/* The mean comes with the first page; a page that is put anew before anything is published brings it anew. */
static lode_status_t mean_put(lode_store_h store, block_record_t *record, uint32_t layer, const float *mean)
{
    layer_record_t *l = &record->layers[layer];
    if (!record->info.landmark.centre || atomic_load_explicit(&l->tokens, memory_order_relaxed) > 0)
        return LODE_OK;
    if (!mean) {
        if (atomic_load_explicit(&l->has_mean, memory_order_relaxed))
            return LODE_OK;
        return lode_fail(LODE_ERR_INVALID, "block \"%s\" layer %" PRIu32 ": the first page came without the mean keys",
                         record->info.name, layer);
    }
    extent_shape_t shape;
    uint64_t extent;
    LODE_TRY(page_room(store, record, layer, 0, &shape, &extent));
    memcpy(store->base + extent + shape.mean, mean, shape.mean_bytes);
    atomic_store_explicit(&l->has_mean, 1, memory_order_release);
    return LODE_OK;
}

static void rows_place(lode_store_h store, const block_record_t *record, const extent_shape_t *shape, uint64_t extent,
                       uint64_t page, uint32_t tokens, const uint8_t *rows)
{
    const lode_landmark_spec_t *spec = &record->info.landmark;
    uint32_t dim = store->params.dim;
    size_t count = lode_landmarks_of(spec, tokens), head_rows = count * lode_landmark_row_bytes(spec, dim);
    uint64_t first = (page - shape->first_page) * shape->page_landmarks;
    for (uint32_t head = 0; head < shape->heads; head++)
        store->params.ops->landmark_place(spec, dim, rows + head * head_rows, count,
                                          store->base + extent + head * shape->head_bytes, first);
}

static void hints_write(page_note_t *note, const lode_page_hint_t *hints, uint32_t count)
{
    for (uint32_t i = 0; i < LODE_REPLICAS_MAX; i++) {
        lode_page_hint_t hint = i < count ? hints[i] : (lode_page_hint_t){0};
        atomic_store_explicit(&note->hints[i][1], hint.offset, memory_order_relaxed);
        atomic_store_explicit(&note->hints[i][0], (uint64_t)hint.size << 32 | hint.rank, memory_order_relaxed);
    }
}

static uint32_t hints_read(const page_note_t *note, lode_page_hint_t *hints)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < LODE_REPLICAS_MAX; i++) {
        uint64_t word = atomic_load_explicit(&note->hints[i][0], memory_order_relaxed);
        uint64_t offset = atomic_load_explicit(&note->hints[i][1], memory_order_relaxed);
        if (word >> 32)
            hints[count++] = (lode_page_hint_t){(uint32_t)word, (uint32_t)(word >> 32), offset};
    }
    return count;
}

lode_status_t lode_store_put(lode_store_h store, uint64_t block, uint32_t layer, uint32_t page, uint32_t tokens,
                             const uint8_t *rows, const float *mean, const lode_page_hint_t *hints, uint32_t hint_count)
{
    uint32_t slot = 0;
    LODE_TRY(layer_find(store, block, layer, &slot));
    block_record_t *record = record_at(store, slot);
    if (tokens == 0 || tokens > LODE_PAGE_TOKENS || hint_count > LODE_REPLICAS_MAX)
        return lode_fail(LODE_ERR_INVALID, "block \"%s\": a page of %" PRIu32 " tokens with %" PRIu32 " owners",
                         record->info.name, tokens, hint_count);
    if (lode_store_tokens(store, slot, layer) > (uint64_t)page * LODE_PAGE_TOKENS)
        return LODE_OK; /* a retry of what is visible already, and never changes */
    if (lode_store_state(store, slot, block) == LODE_BLOCK_SEALED)
        return lode_fail(LODE_ERR_SEALED, "block \"%s\": page %" PRIu32 " comes after it was sealed", record->info.name,
                         page);
    extent_shape_t shape;
    uint64_t extent;
    LODE_TRY(page_room(store, record, layer, page, &shape, &extent));
    LODE_TRY(mean_put(store, record, layer, mean));
    page_note_t *note = note_at(store, &shape, extent, page);
    atomic_store_explicit(&note->tokens, 0, memory_order_release);
    rows_place(store, record, &shape, extent, page, tokens, rows);
    hints_write(note, hints, hints ? hint_count : 0);
    atomic_store_explicit(&note->tokens, tokens, memory_order_release);
    return LODE_OK;
}

lode_status_t lode_store_owners(lode_store_h store, uint64_t block, uint32_t layer, uint32_t page,
                                const lode_page_hint_t *hints, uint32_t count)
{
    uint32_t slot = 0;
    LODE_TRY(layer_find(store, block, layer, &slot));
    page_note_t *note = note_find(store, record_at(store, slot), layer, page);
    if (!note || !atomic_load_explicit(&note->tokens, memory_order_relaxed) || count > LODE_REPLICAS_MAX)
        return lode_fail(LODE_ERR_INVALID,
                         "block \"%s\" layer %" PRIu32 ": no page %" PRIu32 " that %" PRIu32 " ranks could own",
                         lode_store_info(store, slot)->name, layer, page, count);
    hints_write(note, hints, count);
    return LODE_OK;
}

/* Pages of one layer of a block that have been put, as far as they follow one another. */
static void forget_in_layer(lode_store_h store, block_record_t *record, uint32_t layer, uint32_t rank)
{
    lode_page_hint_t hints[LODE_REPLICAS_MAX];
    page_note_t *note;
    for (uint64_t page = 0; (note = note_find(store, record, layer, page)); page++) {
        uint32_t count = hints_read(note, hints), kept = 0;
        for (uint32_t i = 0; i < count; i++)
            if (hints[i].rank != rank)
                hints[kept++] = hints[i];
        if (kept < count)
            hints_write(note, hints, kept);
    }
}

void lode_store_forget_rank(lode_store_h store, uint32_t rank)
{
    uint32_t slots = lode_store_slots(store);
    for (uint32_t slot = 0; slot < slots; slot++) {
        uint64_t id;
        if (!is_live(entry_read(entry_at(store, slot), &id)))
            continue;
        for (uint32_t layer = 0; layer < store->params.layers; layer++)
            forget_in_layer(store, record_at(store, slot), layer, rank);
    }
}

/* Make the index of the groups that landmarks [from, to) complete; nobody reads it before they are published. */
static void index_make(lode_store_h store, const block_record_t *record, uint32_t layer, uint64_t from, uint64_t to)
{
    uint32_t page_landmarks = lode_landmarks_per_page(&record->info.landmark);
    for (uint64_t first = from / LODE_INDEX_GROUP * LODE_INDEX_GROUP, end; first < to; first = end) {
        uint32_t e = extent_of(&record->info, first / page_landmarks);
        extent_shape_t shape = extent_shape(&record->info, store->params.dim, e);
        uint8_t *extent = store->base + atomic_load_explicit(&record->layers[layer].extents[e], memory_order_relaxed);
        uint64_t begin = shape.first_page * page_landmarks, limit = begin + shape.pages * page_landmarks;
        end = to < limit ? to : limit;
        for (uint32_t head = 0; head < shape.heads; head++)
            lode_index_build(store->params.ops, &record->info.landmark, store->params.dim,
                             extent + head * shape.head_bytes, (first - begin) / LODE_INDEX_GROUP,
                             (end - begin) / LODE_INDEX_GROUP, extent + shape.index + head * shape.index_head_bytes);
    }
}

lode_status_t lode_store_publish(lode_store_h store, uint64_t block, uint32_t layer, uint64_t tokens)
{
    uint32_t slot = 0;
    LODE_TRY(layer_find(store, block, layer, &slot));
    block_record_t *record = record_at(store, slot);
    uint64_t visible = lode_store_tokens(store, slot, layer);
    if (tokens <= visible)
        return LODE_OK;
    for (uint64_t page = visible / LODE_PAGE_TOKENS; page * LODE_PAGE_TOKENS < tokens; page++) {
        uint64_t left = tokens - page * LODE_PAGE_TOKENS, wanted = left < LODE_PAGE_TOKENS ? left : LODE_PAGE_TOKENS;
        page_note_t *note = note_find(store, record, layer, page);
        if (!note || atomic_load_explicit(&note->tokens, memory_order_relaxed) < wanted)
            return lode_fail(LODE_ERR_INVALID,
                             "block \"%s\" layer %" PRIu32 ": %" PRIu64 " tokens cannot be shown, the landmarks of "
                             "page %" PRIu64 " are not here",
                             record->info.name, layer, tokens, page);
    }
    if (lode_index_kept(&record->info))
        index_make(store, record, layer, lode_landmarks_of(&record->info.landmark, visible),
                   lode_landmarks_of(&record->info.landmark, tokens));
    atomic_store_explicit(&record->layers[layer].tokens, tokens, memory_order_release);
    return LODE_OK;
}

/* ------------------------------------------------------------------ readers */

uint64_t lode_store_tokens(lode_store_h store, uint32_t slot, uint32_t layer)
{
    return atomic_load_explicit(&record_at(store, slot)->layers[layer].tokens, memory_order_acquire);
}

uint64_t lode_store_span(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head, uint64_t first,
                         uint64_t limit, const uint8_t **tiles)
{
    block_record_t *record = record_at(store, slot);
    uint64_t published = lode_landmarks_of(&record->info.landmark, lode_store_tokens(store, slot, layer));
    uint32_t page_landmarks = lode_landmarks_per_page(&record->info.landmark);
    limit = limit < published ? limit : published;
    if (first >= limit)
        return 0;
    assert(first % LODE_TILE == 0);
    uint32_t e = extent_of(&record->info, first / page_landmarks);
    extent_shape_t shape = extent_shape(&record->info, store->params.dim, e);
    uint64_t extent = atomic_load_explicit(&record->layers[layer].extents[e], memory_order_acquire);
    uint64_t begin = shape.first_page * page_landmarks, end = begin + shape.pages * page_landmarks;
    if (extent == 0)
        return 0; /* the block was dropped and collected */
    *tiles = store->base + extent + head * shape.head_bytes + (first - begin) / LODE_TILE * shape.tile_bytes;
    return (end < limit ? end : limit) - first;
}

uint64_t lode_store_index(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head, uint64_t first,
                          uint64_t limit, const uint8_t **tiles)
{
    block_record_t *record = record_at(store, slot);
    uint64_t published = lode_landmarks_of(&record->info.landmark, lode_store_tokens(store, slot, layer));
    uint32_t page_landmarks = lode_landmarks_per_page(&record->info.landmark);
    limit = limit < published / LODE_INDEX_GROUP ? limit : published / LODE_INDEX_GROUP;
    if (first >= limit || !lode_index_kept(&record->info))
        return 0;
    uint32_t e = extent_of(&record->info, first * LODE_INDEX_GROUP / page_landmarks);
    extent_shape_t shape = extent_shape(&record->info, store->params.dim, e);
    uint64_t extent = atomic_load_explicit(&record->layers[layer].extents[e], memory_order_acquire);
    uint64_t begin = shape.first_page * page_landmarks / LODE_INDEX_GROUP;
    uint64_t end = begin + shape.pages * page_landmarks / LODE_INDEX_GROUP;
    if (extent == 0)
        return 0; /* the block was dropped and collected */
    assert((first - begin) % LODE_TILE == 0);
    *tiles = store->base + extent + shape.index + head * shape.index_head_bytes +
             (first - begin) / LODE_TILE * shape.index_tile_bytes;
    return (end < limit ? end : limit) - first;
}

lode_landmark_place_t lode_store_place(lode_store_h store, uint32_t slot, uint32_t layer)
{
    block_record_t *record = record_at(store, slot);
    layer_record_t *l = &record->layers[layer];
    uint64_t extent = atomic_load_explicit(&l->extents[0], memory_order_acquire);
    if (extent == 0)
        return (lode_landmark_place_t){0};
    extent_shape_t shape = extent_shape(&record->info, store->params.dim, 0);
    bool mean = atomic_load_explicit(&l->has_mean, memory_order_acquire);
    return (lode_landmark_place_t){.tiles = store->base + extent,
                                   .head_bytes = shape.head_bytes,
                                   .landmarks = shape.pages * shape.page_landmarks,
                                   .mean = mean ? (const float *)(store->base + extent + shape.mean) : NULL};
}

const float *lode_store_mean(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t head)
{
    block_record_t *record = record_at(store, slot);
    layer_record_t *l = &record->layers[layer];
    if (!atomic_load_explicit(&l->has_mean, memory_order_acquire))
        return NULL;
    extent_shape_t shape = extent_shape(&record->info, store->params.dim, 0);
    uint64_t extent = atomic_load_explicit(&l->extents[0], memory_order_acquire);
    return extent ? (const float *)(store->base + extent + shape.mean) + (size_t)head * store->params.dim : NULL;
}

bool lode_store_hints(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t page, lode_page_hint_t *hints,
                      uint32_t *count)
{
    page_note_t *note = note_find(store, record_at(store, slot), layer, page);
    *count = 0;
    if (!note || !atomic_load_explicit(&note->tokens, memory_order_acquire))
        return false;
    *count = hints_read(note, hints);
    return true;
}

uint32_t lode_store_rows(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t page, uint8_t *rows)
{
    block_record_t *record = record_at(store, slot);
    const lode_landmark_spec_t *spec = &record->info.landmark;
    page_note_t *note = note_find(store, record, layer, page);
    uint32_t tokens = note ? (uint32_t)atomic_load_explicit(&note->tokens, memory_order_acquire) : 0;
    if (tokens == 0 || tokens > LODE_PAGE_TOKENS)
        return 0;
    extent_shape_t shape = extent_shape(&record->info, store->params.dim, extent_of(&record->info, page));
    uint64_t extent =
        (uint64_t)((uint8_t *)note - store->base) - shape.notes - (page - shape.first_page) * sizeof(page_note_t);
    size_t count = lode_landmarks_of(spec, tokens);
    size_t head_rows = count * lode_landmark_row_bytes(spec, store->params.dim);
    for (uint32_t head = 0; head < shape.heads; head++)
        store->params.ops->landmark_take(spec, store->params.dim, store->base + extent + head * shape.head_bytes,
                                         (page - shape.first_page) * shape.page_landmarks, count,
                                         rows + head * head_rows);
    return tokens;
}

uint64_t lode_store_used(lode_store_h store)
{
    uint32_t slots = lode_store_slots(store);
    uint64_t used = store->header->heap.links + slots * store->header->record_bytes, begin, bytes, id;
    for (uint32_t slot = 0; slot < slots; slot++) {
        if (entry_read(entry_at(store, slot), &id) == LODE_BLOCK_FREE)
            continue;
        block_record_t *record = record_at(store, slot);
        for (uint32_t e = 0; e < EXTENTS; e++) {
            extent_shape_t shape = extent_shape(&record->info, store->params.dim, e);
            for (uint32_t layer = 0; layer < store->params.layers; layer++) {
                uint64_t pages = atomic_load_explicit(&record->layers[layer].reserved[e], memory_order_relaxed);
                for (uint32_t n = 0; pages > 0 && stretch(&shape, n, 0, pages, &begin, &bytes); n++)
                    used += bytes;
            }
        }
    }
    return used;
}
