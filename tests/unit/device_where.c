/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/where.cu against a plain model: what is wanted, what of it is in the cache, what is missed, what is
 * kept. Which set of slots a record may be in is the device's own affair: the model only looks whether it is in its
 * table. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device_open.h"
#include "shard/shard.h"

enum { FORMATS = LODE_FORMAT_HIGGS4 + 1, MOST_BLOCKS = 12, ROWS = 3, PAGE = LODE_PAGE_TOKENS, LAYERS = 2 };

static const lode_device_ops_t *gpu;
static lode_device_h device;
static int thread_before;
static lode_device_stream_t stream;
static uint64_t seed;

static void setup(void)
{
    seed = device_seed(lode_now_ns());
    fprintf(stderr, "LODEMARK_TEST_SEED=%llu\n", (unsigned long long)seed);
    device_open(&gpu, &device, &thread_before, &stream);
}

static void teardown(void)
{
    device_close(gpu, &device, thread_before, stream);
}

TestSuite(device_where, .init = setup, .fini = teardown, .timeout = 120);

static uint64_t below(uint64_t n)
{
    seed = lode_mix(seed, 31);
    return seed % n;
}

static void ok(lode_status_t status)
{
    cr_assert(status == LODE_OK, "%s", gpu->error());
}

static void *device_new(size_t bytes, uint8_t fill)
{
    void *memory;
    ok(gpu->alloc(device, bytes ? bytes : 1, &memory));
    ok(gpu->fill(stream, memory, fill, bytes ? bytes : 1));
    return memory;
}

static void *pinned_new(size_t bytes)
{
    void *memory;
    ok(gpu->pinned_alloc(device, bytes ? bytes : 1, &memory));
    memset(memory, 0xa5, bytes ? bytes : 1);
    return memory;
}

static void to_device(void *to, const void *from, size_t bytes)
{
    if (bytes)
        ok(gpu->copy(stream, to, from, bytes));
    ok(gpu->stream_wait(stream));
}

static void *to_host(const void *from, size_t bytes)
{
    void *to = malloc(bytes ? bytes : 1);
    if (bytes)
        ok(gpu->copy(stream, to, from, bytes));
    ok(gpu->stream_wait(stream));
    return to;
}

/* -------------------------------------------------------------------- world */

/* Blocks, a cache a format, and the tables of a step. */
typedef struct world {
    uint32_t heads, dim, block_count, masks, records_max, sets, rows, most_tokens;
    lode_device_block_t blocks[MOST_BLOCKS];
    uint32_t visible[MOST_BLOCKS];
    uint8_t *pages[MOST_BLOCKS]; /* pinned: all pages of a block, though only some are said to be held */
    const uint8_t **held[MOST_BLOCKS];
    uint8_t *records[FORMATS];
    lode_device_where_t where;
    lode_device_block_t *device_blocks;
    uint32_t clock;
} world_t;

/* Byte i of a record: so that none is like another. */
static void record_fill(uint8_t *record, size_t bytes, uint64_t block, uint32_t layer, uint32_t head, uint32_t token)
{
    uint64_t x = lode_mix(lode_mix(block, layer), (uint64_t)head << 32 | token);
    for (size_t i = 0; i < bytes; i += 8) {
        x = lode_mix(x, i);
        memcpy(record + i, &x, 8);
    }
}

static size_t slots_of(const world_t *world)
{
    return (size_t)LAYERS * world->heads * world->sets * LODE_DEVICE_WAYS;
}

static void block_make(world_t *world, uint32_t b, uint32_t pages)
{
    lode_device_block_t *block = &world->blocks[b];
    *block = (lode_device_block_t){.id = 1 + b + ((uint64_t)below(1000) << 33),
                                   .first_mask = world->masks,
                                   .pages = pages,
                                   .format = (lode_format_t)below(FORMATS)};
    world->held[b] = pinned_new(pages * sizeof(uint8_t *));
    block->held = pages || below(2) ? world->held[b] : NULL;
    world->masks += pages * world->heads;
    world->visible[b] = pages ? pages * PAGE - (uint32_t)below(PAGE) : 0;
}

/* Pages of one layer: the records are other ones in each. */
static void pages_make(world_t *world, uint32_t layer)
{
    world->where.layer = layer;
    for (uint32_t b = 0; b < world->block_count; b++) {
        lode_device_block_t *block = &world->blocks[b];
        size_t record = lode_record_bytes(block->format, world->dim), page = record * PAGE * world->heads;
        if (!world->pages[b])
            world->pages[b] = pinned_new(page * block->pages);
        for (uint32_t p = 0; p < block->pages; p++) {
            world->held[b][p] = below(3) ? world->pages[b] + p * page : NULL;
            for (uint32_t h = 0; world->held[b][p] && h < world->heads; h++)
                for (uint32_t t = 0; t < PAGE; t++)
                    record_fill(world->pages[b] + p * page + lode_page_record(record, h, t), record, block->id, layer,
                                h, p * PAGE + t);
        }
    }
}

/* @param sets  of a (layer, head); UINT32_MAX: there are no slots */
static world_t world_make(uint32_t heads, uint32_t dim, uint32_t block_count, uint32_t most_pages, uint32_t sets)
{
    world_t world = {.heads = heads, .dim = dim, .block_count = block_count, .sets = sets == UINT32_MAX ? 0 : sets};
    for (uint32_t b = 0; b < block_count; b++)
        block_make(&world, b, b == 0 || below(6) ? 1 + (uint32_t)below(most_pages) : 0);
    world.records_max = world.masks * PAGE;
    lode_device_where_t *where = &world.where;
    *where = (lode_device_where_t){.heads = heads,
                                   .dim = dim,
                                   .clock = device_new(sizeof(uint32_t), 0),
                                   .block_count = block_count,
                                   .masks = world.masks,
                                   .wanted = device_new(world.masks * sizeof(uint64_t), 0),
                                   .first = device_new(world.masks * sizeof(uint32_t), 0xa5),
                                   .places = device_new(world.records_max * sizeof(uint32_t), 0xa5),
                                   .missed = device_new(world.records_max * sizeof(lode_device_missed_t), 0xa5),
                                   .sources = device_new(world.records_max * sizeof(uint8_t *), 0xa5),
                                   .records_max = world.records_max,
                                   .asked = pinned_new(world.masks * sizeof(lode_device_entry_t)),
                                   .found = pinned_new(sizeof(lode_device_found_t)),
                                   .scratch = device_new(gpu->where_scratch(world.masks), 0xa5)};
    for (uint32_t f = 0; f < FORMATS && sets != UINT32_MAX; f++) {
        where->caches[f].sets = sets;
        where->caches[f].slots = device_new(slots_of(&world) * sizeof(lode_device_slot_t), 0);
        world.records[f] = where->caches[f].records =
            device_new(slots_of(&world) * lode_device_record_bytes((lode_format_t)f, dim), 0xa5);
    }
    world.device_blocks = device_new(sizeof world.blocks, 0);
    where->blocks = world.device_blocks;
    to_device(world.device_blocks, world.blocks, sizeof world.blocks);
    return world;
}

static void world_free(world_t *world)
{
    lode_device_where_t *where = &world->where;
    void *arrays[] = {where->clock,  where->wanted,          where->first,   where->places,
                      where->missed, (void *)where->sources, where->scratch, world->device_blocks};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++)
        gpu->free(device, arrays[i]);
    for (uint32_t f = 0; f < FORMATS; f++) {
        gpu->free(device, where->caches[f].slots);
        gpu->free(device, world->records[f]);
    }
    gpu->pinned_free(device, where->asked);
    gpu->pinned_free(device, where->found);
    for (uint32_t b = 0; b < world->block_count; b++) {
        gpu->pinned_free(device, world->pages[b]);
        gpu->pinned_free(device, world->held[b]);
    }
}

/* --------------------------------------------------------------------- want */

/* What rows choose, on both sides. */
typedef struct wish {
    lode_device_row_t rows[ROWS];
    lode_device_part_t parts[ROWS * MOST_BLOCKS];
    lode_device_chosen_t *chosen; /* (ROWS, heads) */
    uint32_t *tokens;
    uint64_t token_count, room;
    uint32_t part_count, most;
    uint64_t *masks; /* the model's */
} wish_t;

static void wish_bit(const world_t *world, wish_t *wish, uint32_t block, uint32_t head, uint32_t token)
{
    wish->masks[world->blocks[block].first_mask + token / PAGE * world->heads + head] |= (uint64_t)1 << token % PAGE;
}

/* A row's list for a head: each token with a chance of one in `share`, or all (share 0). */
static void wish_head(const world_t *world, wish_t *wish, uint32_t row, uint32_t head, uint32_t share)
{
    const lode_device_row_t *parts = &wish->rows[row];
    lode_device_chosen_t *chosen = &wish->chosen[row * world->heads + head];
    *chosen = (lode_device_chosen_t){.tokens = share ? wish->token_count : UINT64_MAX};
    for (uint32_t p = parts->first_part; p < parts->first_part + parts->part_count; p++) {
        const lode_device_part_t *part = &wish->parts[p];
        for (uint32_t t = 0; t < part->visible; t++) {
            if (share && below(share))
                continue;
            wish_bit(world, wish, part->block, head, t);
            if (wish->token_count + 1 > wish->room) {
                wish->room = 2 * wish->room + 1024;
                wish->tokens = realloc(wish->tokens, wish->room * sizeof(uint32_t));
            }
            if (share)
                wish->tokens[wish->token_count++] = (uint32_t)(part->first_token + t);
            chosen->count++;
        }
    }
    wish->most = chosen->count > wish->most ? chosen->count : wish->most;
}

static wish_t wish_make(const world_t *world, uint32_t share)
{
    wish_t wish = {.chosen = calloc(ROWS * world->heads, sizeof(lode_device_chosen_t)),
                   .masks = calloc(world->masks + 1, sizeof(uint64_t))};
    for (uint32_t r = 0; r < ROWS; r++) {
        uint64_t first = below(50);
        wish.rows[r].first_part = wish.part_count;
        for (uint32_t b = (uint32_t)below(2); b < world->block_count; b += 1 + (uint32_t)below(2)) {
            uint32_t seen = below(3) ? world->visible[b] : (uint32_t)below(world->visible[b] + 1);
            wish.parts[wish.part_count++] =
                (lode_device_part_t){.first_token = first, .block = b, .visible = seen, .angles = UINT32_MAX};
            first += world->blocks[b].pages * PAGE + below(3);
        }
        wish.rows[r].part_count = wish.part_count - wish.rows[r].first_part;
        for (uint32_t h = 0; h < world->heads; h++)
            wish_head(world, &wish, r, h, share > 100 || (share && below(20)) ? share : 0);
    }
    return wish;
}

static void wish_free(wish_t *wish)
{
    free(wish->chosen);
    free(wish->tokens);
    free(wish->masks);
}

/* want() on the device, from masks that are zero, and compare. */
static void want_and_compare(const world_t *world, const wish_t *wish)
{
    void *rows = device_new(sizeof wish->rows, 0), *parts = device_new(sizeof wish->parts, 0);
    void *chosen = device_new(ROWS * world->heads * sizeof *wish->chosen, 0);
    uint32_t *tokens = device_new(wish->token_count * sizeof *tokens, 0);
    to_device(rows, wish->rows, sizeof wish->rows);
    to_device(parts, wish->parts, sizeof wish->parts);
    to_device(chosen, wish->chosen, ROWS * world->heads * sizeof *wish->chosen);
    to_device(tokens, wish->tokens, wish->token_count * sizeof *tokens);
    if (world->masks)
        ok(gpu->fill(stream, world->where.wanted, 0, world->masks * sizeof(uint64_t)));
    ok(gpu->want(stream, rows, ROWS, world->heads, parts, world->device_blocks, chosen, tokens, wish->most,
                 world->where.wanted));
    uint64_t *masks = to_host(world->where.wanted, world->masks * sizeof *masks);
    for (uint32_t i = 0; i < world->masks; i++)
        cr_assert(masks[i] == wish->masks[i], "mask %u is %lx, not %lx", i, (unsigned long)masks[i],
                  (unsigned long)wish->masks[i]);
    free(masks);
    void *arrays[] = {rows, parts, chosen, tokens};
    for (size_t i = 0; i < 4; i++)
        gpu->free(device, arrays[i]);
}

/* -------------------------------------------------------------------- where */

typedef struct found {
    lode_device_found_t totals;
    lode_device_missed_t *missed;
    lode_device_slot_t *slots[FORMATS]; /* as they are after */
} found_t;

/* The slot of a table that holds a record; UINT32_MAX: none. */
static uint32_t slot_of(const world_t *world, const lode_device_slot_t *slots, uint32_t head, uint64_t block,
                        uint32_t token)
{
    uint32_t each = world->sets * LODE_DEVICE_WAYS, first = (world->where.layer * world->heads + head) * each;
    for (uint32_t i = first; i < first + each; i++)
        if (slots[i].block == block && slots[i].token == token)
            return i;
    return UINT32_MAX;
}

static void slots_read(const world_t *world, lode_device_slot_t *slots[FORMATS])
{
    for (uint32_t f = 0; f < FORMATS; f++)
        slots[f] =
            to_host(world->where.caches[f].slots, world->where.caches[f].slots ? slots_of(world) * sizeof **slots : 0);
}

static void slots_free(lode_device_slot_t *slots[FORMATS])
{
    for (uint32_t f = 0; f < FORMATS; f++)
        free(slots[f]);
}

/* The arrays that where() wrote, against masks and slots from before. Stamps what is hit. */
typedef struct reader {
    uint32_t *first, *places;
    const uint8_t **sources;
    uint32_t records, asked, held;
} reader_t;

static void record_compare(const world_t *world, uint32_t index, uint32_t bit,
                           lode_device_slot_t *const before[FORMATS], reader_t *reader, found_t *found)
{
    uint32_t b = world->block_count - 1;
    while (world->blocks[b].first_mask > index || world->blocks[b].pages == 0)
        b--;
    const lode_device_block_t *block = &world->blocks[b];
    uint32_t page = (index - block->first_mask) / world->heads, head = (index - block->first_mask) % world->heads;
    uint32_t token = page * PAGE + bit, place = reader->places[reader->records++], n = found->totals.missed;
    uint32_t slot = world->sets ? slot_of(world, before[block->format], head, block->id, token) : UINT32_MAX;
    if (slot != UINT32_MAX) {
        cr_assert(place == slot, "place %x, not slot %x", place, slot);
        before[block->format][slot].stamp = world->clock;
        found->totals.hits++;
        return;
    }
    cr_assert(place == (LODE_DEVICE_STAGED | n), "place %x, not number %u of the missed", place, n);
    const lode_device_missed_t *missed = &found->missed[n];
    cr_assert(missed->block == block->id && missed->token == token && missed->head == head &&
              missed->format == block->format);
    const uint8_t *source = block->held && block->held[page] ? block->held[page] : NULL;
    if (source)
        source += lode_page_record(lode_record_bytes(block->format, world->dim), head, bit);
    cr_assert(reader->sources[n] == source, "source %u is %p, not %p", n, (const void *)reader->sources[n],
              (const void *)source);
    reader->held += source != NULL;
    if (!source) {
        uint64_t before_bit = world->where.asked[reader->asked].mask & (((uint64_t)1 << bit) - 1);
        const lode_device_entry_t *entry = &world->where.asked[reader->asked];
        cr_assert(entry->index == index && entry->mask >> bit & 1, "asked %u is not mask %u", reader->asked, index);
        cr_assert(entry->first + (uint32_t)__builtin_popcountll(before_bit) == n);
        reader->asked += entry->mask >> bit == 1; /* its last */
    }
    found->totals.missed++;
}

/* where() on the device, compared with the masks and what the cache held before. */
static found_t where_and_compare(world_t *world, const wish_t *wish)
{
    found_t found = {0};
    lode_device_slot_t *before[FORMATS];
    slots_read(world, before);
    ok(gpu->where(stream, &world->where));
    ok(gpu->stream_wait(stream));
    world->clock++;
    uint32_t *clock = to_host(world->where.clock, sizeof *clock);
    cr_assert(*clock == world->clock, "clock %u, not %u", *clock, world->clock);
    reader_t reader = {.first = to_host(world->where.first, world->masks * sizeof(uint32_t)),
                       .places = to_host(world->where.places, world->records_max * sizeof(uint32_t)),
                       .sources = to_host(world->where.sources, world->records_max * sizeof(uint8_t *))};
    found.missed = to_host(world->where.missed, world->records_max * sizeof *found.missed);
    for (uint32_t i = 0; i < world->masks; i++) {
        cr_assert(!wish->masks[i] || reader.first[i] == reader.records, "first[%u] %u, not %u", i, reader.first[i],
                  reader.records);
        for (uint32_t bit = 0; bit < PAGE; bit++)
            if (wish->masks[i] >> bit & 1)
                record_compare(world, i, bit, before, &reader, &found);
    }
    const lode_device_found_t *got = world->where.found;
    cr_assert(got->records == reader.records && got->hits == found.totals.hits && got->missed == found.totals.missed &&
                  got->held == reader.held && got->asked == reader.asked,
              "%u records, %u hits, %u missed, %u held, %u asked", got->records, got->hits, got->missed, got->held,
              got->asked);
    slots_read(world, found.slots);
    for (uint32_t f = 0; f < FORMATS; f++) {
        if (world->sets)
            cr_assert(memcmp(found.slots[f], before[f], slots_of(world) * sizeof **before) == 0, "slots of format %u",
                      f);
        free(before[f]);
    }
    free(clock);
    free(reader.first);
    free(reader.places);
    free((void *)reader.sources);
    return found;
}

/* --------------------------------------------------------------------- keep */

/* Missed records begin … end−1 as gather() leaves them: those of other formats are there, too, but shorter or longer.
 */
static uint8_t *stage(const world_t *world, const found_t *found, lode_format_t format, size_t stride, uint32_t begin,
                      uint32_t end)
{
    uint8_t *staged = calloc(end - begin + 1, stride);
    for (uint32_t n = begin; n < end; n++) {
        const lode_device_missed_t *missed = &found->missed[n];
        if (missed->format == format)
            record_fill(staged + (n - begin) * stride, lode_record_bytes(format, world->dim), missed->block,
                        world->where.layer, missed->head, missed->token);
    }
    return staged;
}

static void keep_some(const world_t *world, const found_t *found, lode_format_t format, uint32_t begin, uint32_t end)
{
    uint32_t last = end < found->totals.missed ? end : found->totals.missed;
    size_t stride = below(2) ? lode_device_record_bytes(format, world->dim) : lode_record_bytes(format, world->dim);
    uint8_t *staged = stage(world, found, format, stride, begin, last > begin ? last : begin);
    uint8_t *there = device_new((last > begin ? last - begin : 0) * stride, 0xa5);
    to_device(there, staged, (last > begin ? last - begin : 0) * stride);
    ok(gpu->keep(stream, &world->where, format, there, stride, begin, end));
    ok(gpu->stream_wait(stream));
    gpu->free(device, there);
    free(staged);
}

static bool was_missed(const found_t *found, const lode_device_slot_t *slot, uint32_t head, uint32_t format)
{
    for (uint32_t n = 0; n < found->totals.missed; n++) {
        const lode_device_missed_t *missed = &found->missed[n];
        if (missed->block == slot->block && missed->token == slot->token && missed->head == head &&
            missed->format == format)
            return true;
    }
    return false;
}

/* One set, before and after: what was used in this step stays, and of the others the oldest went. @return new ones */
static uint32_t set_compare(const world_t *world, const found_t *found, uint32_t format, uint32_t first,
                            const lode_device_slot_t *before, const lode_device_slot_t *after)
{
    uint32_t table = first / (world->sets * LODE_DEVICE_WAYS), head = table % world->heads, kept = 0;
    uint32_t newest = 0, oldest = UINT32_MAX;
    for (uint32_t i = first; i < first + LODE_DEVICE_WAYS; i++) {
        if (memcmp(&before[i], &after[i], sizeof *before) == 0) {
            if (before[i].stamp != world->clock && before[i].stamp < oldest)
                oldest = before[i].stamp;
            continue;
        }
        cr_assert(before[i].stamp != world->clock, "a slot of this step was given away");
        cr_assert(after[i].stamp == world->clock && table / world->heads == world->where.layer);
        cr_assert(was_missed(found, &after[i], head, format));
        newest = before[i].stamp > newest ? before[i].stamp : newest;
        kept++;
    }
    cr_assert(kept == 0 || newest <= oldest, "stamp %u was given away, and %u stayed", newest, oldest);
    return kept;
}

/* Every slot of the cache has the record that it says; no record has two slots. */
static void records_compare(const world_t *world, uint32_t format, const lode_device_slot_t *slots)
{
    size_t record = lode_record_bytes((lode_format_t)format, world->dim),
           apart = lode_device_record_bytes((lode_format_t)format, world->dim);
    uint8_t *records = to_host(world->records[format], slots_of(world) * apart), right[4 * LODE_MAX_DIM + 16];
    for (uint32_t i = 0; i < slots_of(world); i++) {
        uint32_t table = i / (world->sets * LODE_DEVICE_WAYS), first = table * world->sets * LODE_DEVICE_WAYS;
        if (!slots[i].block)
            continue;
        record_fill(right, record, slots[i].block, table / world->heads, table % world->heads, slots[i].token);
        cr_assert(memcmp(records + i * apart, right, record) == 0, "slot %u has another record", i);
        for (uint32_t j = first; j < i; j++)
            cr_assert(slots[j].block != slots[i].block || slots[j].token != slots[i].token, "slots %u and %u", j, i);
    }
    free(records);
}

/* keep() all that was missed, in a few parts, and compare. @return how many were kept */
static uint32_t keep_and_compare(const world_t *world, found_t *found)
{
    lode_device_slot_t *after[FORMATS];
    uint32_t missed = found->totals.missed, kept = 0;
    for (uint32_t f = 0; f < FORMATS; f++) {
        uint32_t middle = (uint32_t)below(missed + 1);
        keep_some(world, found, (lode_format_t)f, 0, middle);
        keep_some(world, found, (lode_format_t)f, middle, below(2) ? missed : missed + 77);
    }
    slots_read(world, after);
    for (uint32_t f = 0; f < FORMATS && world->sets; f++) {
        for (uint32_t i = 0; i < slots_of(world); i += LODE_DEVICE_WAYS)
            kept += set_compare(world, found, f, i, found->slots[f], after[f]);
        records_compare(world, f, after[f]);
    }
    slots_free(after);
    slots_free(found->slots);
    free(found->missed);
    return kept;
}

/* A whole step of a layer. */
static lode_device_found_t step(world_t *world, uint32_t layer, const wish_t *wish, uint32_t *kept)
{
    if (world->where.layer != layer || !world->pages[0])
        pages_make(world, layer);
    want_and_compare(world, wish);
    found_t found = where_and_compare(world, wish);
    uint32_t count = keep_and_compare(world, &found);
    if (kept)
        *kept = count;
    return found.totals;
}

/* -------------------------------------------------------------------- tests */

/* Random steps over blocks of all formats; the cache is too small for what they want. */
Test(device_where, steps)
{
    world_t world = world_make(3, 64, 7, 4, 5);
    for (uint32_t i = 0; i < 6; i++) {
        wish_t wish = wish_make(&world, i == 3 ? 0 : 2 + (uint32_t)below(60));
        step(&world, i % LAYERS, &wish, NULL);
        wish_free(&wish);
    }
    world_free(&world);
}

/* More masks than a tile has, few of them wanted. */
Test(device_where, tiles)
{
    world_t world = world_make(8, 32, 9, 90, 16);
    for (uint32_t i = 0; i < 2; i++) {
        wish_t wish = wish_make(&world, 300);
        step(&world, 0, &wish, NULL);
        wish_free(&wish);
    }
    world_free(&world);
}

/* Room for all that is wanted many times over: the same step again finds all. */
Test(device_where, all_hits)
{
    world_t world = world_make(2, 64, 6, 3, 200);
    wish_t wish = wish_make(&world, 6);
    uint32_t kept;
    lode_device_found_t found = step(&world, 1, &wish, &kept);
    cr_assert(found.hits == 0 && kept == found.missed, "%u of %u kept", kept, found.missed);
    found = step(&world, 1, &wish, &kept);
    cr_assert(found.missed == 0 && kept == 0, "%u missed the second time", found.missed);
    wish_free(&wish);
    world_free(&world);
}

/* One set a table: all compete for eight slots, none of which is given away twice in a step. */
Test(device_where, one_set)
{
    world_t world = world_make(2, 128, 3, 3, 1);
    for (uint32_t i = 0; i < 5; i++) {
        wish_t wish = wish_make(&world, i == 2 ? 2 : 40);
        uint32_t kept;
        lode_device_found_t found = step(&world, 0, &wish, &kept);
        cr_assert(kept <= found.missed && (found.missed == 0 || i || kept > 0));
        wish_free(&wish);
    }
    world_free(&world);
}

/* No slots, or none a table: all is missed, and nothing is kept. */
Test(device_where, no_cache)
{
    for (int without = 0; without < 2; without++) {
        world_t world = world_make(2, 64, 4, 3, without ? UINT32_MAX : 0);
        wish_t wish = wish_make(&world, 5);
        for (int i = 0; i < 2; i++)
            cr_assert(step(&world, 0, &wish, NULL).hits == 0);
        wish_free(&wish);
        world_free(&world);
    }
}

/* Nothing is wanted of blocks, or no block has a page. */
Test(device_where, nothing)
{
    world_t world = world_make(2, 64, 3, 2, 4);
    wish_t wish = wish_make(&world, 1000000);
    for (uint32_t i = 0; i < ROWS * world.heads; i++)
        wish.chosen[i] = (lode_device_chosen_t){0, 0};
    memset(wish.masks, 0, world.masks * sizeof(uint64_t));
    cr_assert(step(&world, 0, &wish, NULL).missed == 0);
    wish_free(&wish);
    world_free(&world);
    world = world_make(2, 64, 1, 1, 4);
    world.blocks[0].pages = world.masks = world.where.masks = world.visible[0] = 0;
    to_device(world.device_blocks, world.blocks, sizeof world.blocks);
    wish = wish_make(&world, 3);
    cr_assert(step(&world, 0, &wish, NULL).missed == 0 && world.where.found->records == 0);
    wish_free(&wish);
    world_free(&world);
}

/* The stamp is never 0. */
Test(device_where, clock)
{
    world_t world = world_make(1, 64, 2, 2, 4);
    wish_t wish = wish_make(&world, 9);
    uint32_t end = UINT32_MAX;
    to_device(world.where.clock, &end, sizeof end);
    pages_make(&world, 0);
    want_and_compare(&world, &wish);
    ok(gpu->where(stream, &world.where));
    uint32_t *clock = to_host(world.where.clock, sizeof *clock);
    cr_assert(*clock == 1, "%u", *clock);
    free(clock);
    wish_free(&wish);
    world_free(&world);
}

/* All of it in a graph: each replay is a step of its own, and the second finds what the first kept. */
Test(device_where, graph)
{
    world_t world = world_make(2, 64, 1, 1, 64);
    lode_device_graph_t graph;
    lode_format_t format = world.blocks[0].format;
    uint64_t mask = 0x8000f00100010003;
    pages_make(&world, 0);
    void *staged = device_new(PAGE * lode_device_record_bytes(format, world.dim), 0);
    ok(gpu->stream_wait(stream));
    ok(gpu->capture_begin(stream));
    ok(gpu->where(stream, &world.where));
    ok(gpu->keep(stream, &world.where, format, staged, lode_device_record_bytes(format, world.dim), 0, PAGE));
    ok(gpu->capture_end(stream, &graph));
    to_device(world.where.wanted, &mask, sizeof mask);
    for (int replay = 0; replay < 2; replay++) {
        ok(gpu->graph_launch(graph, stream));
        ok(gpu->stream_wait(stream));
        uint32_t hits = replay ? (uint32_t)__builtin_popcountll(mask) : 0;
        cr_assert(world.where.found->hits == hits, "%u hits", world.where.found->hits);
    }
    gpu->graph_destroy(graph);
    gpu->free(device, staged);
    world_free(&world);
}

Test(device_where, refuses)
{
    world_t world = world_make(1, 64, 2, 2, 4);
    void *staged = device_new(64, 0);
    world.where.records_max += 10;
    cr_assert(gpu->keep(stream, &world.where, LODE_FORMAT_BF16, staged, 8, 0, 1) == LODE_ERR_INVALID);
    cr_assert(strstr(gpu->error(), "apart"), "%s", gpu->error());
    cr_assert(gpu->want(stream, NULL, UINT32_MAX, 64, NULL, NULL, NULL, NULL, 1, NULL) == LODE_ERR_INVALID);
    gpu->free(device, staged);
    world_free(&world);
}
