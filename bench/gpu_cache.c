/* SPDX-License-Identifier: Apache-2.0 */
/* What is wanted, where it is, and keeping what was missed: the tables of a step of one stream. */
#include <math.h>
#include <string.h>

#include "bench/gpu.h"

enum { HEADS = 8, BLOCKS = 4, DIM = 128, GROUP = 4, CHOICES = 2, LAYER = 3 };
#define FORMAT LODE_FORMAT_FP8

/* Two choices of one view, which take turns in a cache. */
typedef struct cache {
    lode_gpubench_pages_t pages[CHOICES];
    uint32_t tokens, heads, records, sets; /* sets: of the cache, a (layer, head) */
    size_t stride, page_bytes, slot_count;
    uint8_t *page; /* pinned: all pages that are held */
    lode_device_slot_t *slots;
    uint8_t *staged, *host_staged;
    lode_device_where_t where;
    uint64_t *masks; /* of want() */
    uint32_t step;   /* stamp of the last one */
} cache_t;

static lode_status_t want_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    const cache_t *c = context;
    const lode_gpubench_pages_t *p = &c->pages[turn % CHOICES];
    LODE_GPU(b, b->ops->fill(b->stream, c->masks, 0, sizeof *c->masks * p->masks));
    LODE_GPU(b, b->ops->want(b->stream, p->rows, 1, p->heads, p->parts, p->device_blocks, p->chosen, p->device_tokens,
                             p->per_head, c->masks));
    return LODE_OK;
}

static lode_status_t clear_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    const cache_t *c = context;
    (void)turn;
    LODE_GPU(b, b->ops->fill(b->stream, c->masks, 0, sizeof *c->masks * c->pages[0].masks));
    return LODE_OK;
}

static lode_device_where_t where_of(const cache_t *c, uint32_t choice)
{
    lode_device_where_t where = c->where;
    const lode_gpubench_pages_t *p = &c->pages[choice];
    where.blocks = p->device_blocks;
    where.wanted = p->device_wanted;
    return where;
}

/* One choice again and again: all of its records are in the cache, or as many as its sets take. */
static lode_status_t where_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    lode_device_where_t where = where_of(context, 0);
    (void)turn;
    LODE_GPU(b, b->ops->where(b->stream, &where));
    return LODE_OK;
}

/* Each choice turns the other out of the cache, which holds but one. */
static lode_status_t turn_enqueue(lode_gpubench_t *b, const cache_t *c, uint32_t turn, bool keep)
{
    lode_device_where_t where = where_of(c, turn % CHOICES);
    LODE_GPU(b, b->ops->where(b->stream, &where));
    if (keep)
        LODE_GPU(b, b->ops->keep(b->stream, &where, FORMAT, c->staged, c->stride, 0, c->records));
    return LODE_OK;
}
static lode_status_t keep_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    return turn_enqueue(b, context, turn, true);
}
static lode_status_t no_keep_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    return turn_enqueue(b, context, turn, false);
}

/* -------------------------------------------------------------------- set up */

static lode_status_t put_where(lode_gpubench_t *b, cache_t *c)
{
    lode_device_where_t *w = &c->where;
    lode_device_cache_t *cache = &w->caches[FORMAT];
    uint32_t masks = c->pages[0].masks;
    size_t per_head = (size_t)c->sets * LODE_DEVICE_WAYS;
    c->slot_count = (LAYER + 1) * c->heads * per_head;
    *w = (lode_device_where_t){.layer = LAYER,
                               .heads = c->heads,
                               .dim = DIM,
                               .block_count = BLOCKS,
                               .masks = masks,
                               .records_max = c->records};
    *cache = (lode_device_cache_t){.sets = c->sets};
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof *c->slots * c->slot_count, (void **)&c->slots));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, c->stride * c->slot_count, (void **)&cache->records));
    cache->slots = c->slots;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof *w->clock, (void **)&w->clock));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof *w->first * masks, (void **)&w->first));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof *w->places * c->records, (void **)&w->places));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof *w->missed * c->records, (void **)&w->missed));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof *w->sources * c->records, (void **)&w->sources));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_PINNED, sizeof *w->asked * masks, (void **)&w->asked));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_PINNED, sizeof *w->found, (void **)&w->found));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, b->ops->where_scratch(masks), &w->scratch));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, sizeof *c->masks * masks, (void **)&c->masks));
    LODE_GPU(b, b->ops->fill(b->stream, c->slots, 0, sizeof *c->slots * c->slot_count));
    LODE_GPU(b, b->ops->fill(b->stream, w->clock, 0, sizeof *w->clock));
    return LODE_OK;
}

static lode_status_t cache_create(lode_gpubench_t *b, cache_t *c)
{
    *c = (cache_t){.heads = (uint32_t)lode_gpubench_size(b, HEADS, 2),
                   .tokens = (uint32_t)lode_gpubench_size(b, 1 << 20, 1500)};
    uint32_t per_head = c->tokens / (b->small ? 10 : 100);
    c->stride = lode_device_record_bytes(FORMAT, DIM);
    c->page_bytes = LODE_PAGE_TOKENS * c->heads * lode_record_bytes(FORMAT, DIM) + 4096;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_PINNED, c->page_bytes, (void **)&c->page));
    for (int i = 0; i < CHOICES; i++)
        LODE_TRY(lode_gpubench_pages_create(b, FORMAT, DIM, GROUP, c->heads, c->tokens, BLOCKS, per_head, c->page,
                                            &c->pages[i]));
    c->records = c->pages[0].records;
    c->sets = per_head * 5 / 4 / LODE_DEVICE_WAYS + 1;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, c->records * c->stride, (void **)&c->host_staged));
    for (size_t i = 0; i + 8 <= c->records * c->stride; i += 8) {
        uint64_t random = lode_mix(i, b->seed);
        memcpy(c->host_staged + i, &random, sizeof random);
    }
    LODE_TRY(lode_gpubench_put(b, c->host_staged, c->records * c->stride, (void **)&c->staged));
    return put_where(b, c);
}

/* -------------------------------------------------------------- correctness */

static lode_status_t wrong_masks(lode_gpubench_t *b, cache_t *c, uint64_t *wrong)
{
    uint64_t *got;
    const lode_gpubench_pages_t *p = &c->pages[1];
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *got * p->masks, (void **)&got));
    LODE_TRY(want_enqueue(b, c, 1));
    LODE_TRY(lode_gpubench_copy(b, got, c->masks, sizeof *got * p->masks));
    for (uint32_t i = 0; i < p->masks; i++)
        *wrong += got[i] != p->wanted[i];
    return LODE_OK;
}

/* Where the records of choice 0 are, copied to the host after a step. */
typedef struct tables {
    uint32_t *places;
    lode_device_missed_t *missed;
    const uint8_t **sources;
    lode_device_slot_t *slots;
    uint8_t *record;
} tables_t;

static lode_status_t tables_create(lode_gpubench_t *b, const cache_t *c, tables_t *t)
{
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *t->places * c->records, (void **)&t->places));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *t->missed * c->records, (void **)&t->missed));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *t->sources * c->records, (void **)&t->sources));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *t->slots * c->slot_count, (void **)&t->slots));
    return lode_gpubench_alloc(b, LODE_MEMORY_HOST, c->slot_count * c->stride, (void **)&t->record);
}

static lode_status_t step_and_fetch(lode_gpubench_t *b, cache_t *c, bool keep, tables_t *t)
{
    LODE_TRY(lode_gpubench_poison(b, c->where.places, sizeof *t->places * c->records));
    LODE_TRY(lode_gpubench_poison(b, c->where.missed, sizeof *t->missed * c->records));
    LODE_TRY(turn_enqueue(b, c, 0, keep));
    LODE_TRY(lode_gpubench_copy(b, t->places, c->where.places, sizeof *t->places * c->records));
    LODE_TRY(lode_gpubench_copy(b, t->missed, c->where.missed, sizeof *t->missed * c->records));
    LODE_TRY(lode_gpubench_copy(b, t->sources, c->where.sources, sizeof *t->sources * c->records));
    LODE_TRY(lode_gpubench_copy(b, &c->step, c->where.clock, sizeof c->step));
    LODE_TRY(lode_gpubench_copy(b, t->slots, c->slots, sizeof *t->slots * c->slot_count));
    return lode_gpubench_copy(b, t->record, c->where.caches[FORMAT].records, c->slot_count * c->stride);
}

/* One mask's records: each in its slot, or missed with its own number, its source in a page that is held or nowhere. */
static uint64_t wrong_mask(const cache_t *c, const tables_t *t, uint32_t block, uint32_t page, uint32_t head,
                           uint32_t *record, uint32_t *missed)
{
    const lode_gpubench_pages_t *p = &c->pages[0];
    const lode_device_block_t *at = &p->host_blocks[block];
    uint64_t wrong = 0, wanted = p->wanted[at->first_mask + page * p->heads + head];
    for (; wanted; wanted &= wanted - 1, (*record)++) {
        uint32_t place = t->places[*record], token = page * LODE_PAGE_TOKENS + (uint32_t)__builtin_ctzll(wanted);
        if (place & LODE_DEVICE_STAGED) {
            const lode_device_missed_t *m = &t->missed[*missed];
            const uint8_t *source = t->sources[*missed];
            bool inside = source >= c->page && source < c->page + c->page_bytes;
            wrong += (place & ~LODE_DEVICE_STAGED) != *missed || m->block != at->id || m->token != token ||
                     m->head != head || m->format != FORMAT || (page % 2 ? !inside : source != NULL);
            (*missed)++;
        } else {
            wrong += place >= c->slot_count || t->slots[place].block != at->id || t->slots[place].token != token ||
                     t->slots[place].stamp != c->step ||
                     place / ((size_t)c->sets * LODE_DEVICE_WAYS) != LAYER * c->heads + head;
        }
    }
    return wrong;
}

static uint64_t wrong_tables(const cache_t *c, const tables_t *t)
{
    const lode_gpubench_pages_t *p = &c->pages[0];
    uint32_t record = 0, missed = 0;
    uint64_t wrong = 0;
    for (uint32_t block = 0; block < p->blocks; block++)
        for (uint32_t page = 0; page < p->host_blocks[block].pages; page++)
            for (uint32_t head = 0; head < p->heads; head++)
                wrong += wrong_mask(c, t, block, page, head, &record, &missed);
    const lode_device_found_t *found = c->where.found;
    return wrong + (found->records != record) + (found->missed != missed) + (found->hits != record - missed);
}

/* All miss at first; then what was kept is found, with the bytes that were staged under its number. */
static lode_status_t wrong_steps(lode_gpubench_t *b, cache_t *c, uint64_t *wrong)
{
    tables_t t;
    uint32_t *numbers;
    LODE_TRY(tables_create(b, c, &t));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *numbers * c->records, (void **)&numbers));
    LODE_TRY(step_and_fetch(b, c, true, &t));
    for (uint32_t i = 0; i < c->records; i++)
        *wrong += t.places[i] != (LODE_DEVICE_STAGED | i);
    *wrong += wrong_tables(c, &t);
    LODE_TRY(step_and_fetch(b, c, false, &t));
    *wrong += wrong_tables(c, &t) + (c->where.found->hits == 0);
    for (uint32_t i = 0; i < c->records; i++)
        if (!(t.places[i] & LODE_DEVICE_STAGED) && t.places[i] < c->slot_count)
            *wrong += memcmp(t.record + t.places[i] * c->stride, c->host_staged + i * c->stride,
                             lode_record_bytes(FORMAT, DIM)) != 0;
    return LODE_OK;
}

/* --------------------------------------------------------------------- rows */

static void note_per_record(lode_gpubench_row_t *row, const cache_t *c, const char *what)
{
    snprintf(row->note, sizeof row->note, "%u records, %.3g ns each; %s", c->records, 1e3 * row->us / c->records, what);
}

static lode_status_t want_row(lode_gpubench_t *b, cache_t *c, const char *format)
{
    lode_gpubench_work_t figure = {.enqueue = want_enqueue, .context = c, .sets = CHOICES};
    lode_gpubench_work_t without = {.enqueue = clear_enqueue, .context = c, .sets = CHOICES};
    if (!lode_gpubench_wanted(b, "want", format))
        return LODE_OK;
    lode_gpubench_row_t *row = lode_gpubench_row(b, "want", format, GROUP, DIM);
    LODE_TRY(wrong_masks(b, c, &row->wrong));
    LODE_TRY(lode_gpubench_extra(b, row, &figure, &without, NULL));
    note_per_record(row, c, "one row");
    lode_gpubench_row_end(row);
    return LODE_OK;
}

static lode_status_t where_row(lode_gpubench_t *b, cache_t *c, const char *format)
{
    lode_gpubench_work_t figure = {.enqueue = where_enqueue, .context = c}, floor;
    lode_gpubench_stretch_t stretch;
    if (!lode_gpubench_wanted(b, "where", format))
        return LODE_OK;
    lode_gpubench_row_t *row = lode_gpubench_row(b, "where", format, GROUP, DIM);
    LODE_TRY(wrong_steps(b, c, &row->wrong));
    /* What it must touch: all masks, and for each record its set of slots and its place. */
    size_t bytes = 8 * (size_t)c->pages[0].masks + c->records * (LODE_DEVICE_WAYS * sizeof(lode_device_slot_t) + 4);
    LODE_TRY(lode_gpubench_read_floor(b, bytes, &stretch, &floor));
    row->beside = "device_read";
    LODE_TRY(lode_gpubench_time(b, row, &figure, &floor));
    row->hit_rate = (double)c->where.found->hits / c->where.found->records;
    note_per_record(row, c, "lookup");
    lode_gpubench_row_end(row);
    return LODE_OK;
}

static lode_status_t keep_row(lode_gpubench_t *b, cache_t *c, const char *format)
{
    lode_gpubench_work_t figure = {.enqueue = keep_enqueue, .context = c, .sets = CHOICES};
    lode_gpubench_work_t without = {.enqueue = no_keep_enqueue, .context = c, .sets = CHOICES}, floor;
    lode_gpubench_stretch_t stretch;
    if (!lode_gpubench_wanted(b, "keep", format))
        return LODE_OK;
    lode_gpubench_row_t *row = lode_gpubench_row(b, "keep", format, GROUP, DIM);
    LODE_TRY(wrong_steps(b, c, &row->wrong));
    LODE_TRY(lode_gpubench_read_floor(b, c->records * c->stride, &stretch, &floor));
    row->beside = "device_read";
    LODE_TRY(lode_gpubench_extra(b, row, &figure, &without, &floor));
    note_per_record(row, c, "what keep() adds to a lookup");
    lode_gpubench_row_end(row);
    return LODE_OK;
}

static lode_status_t with_cache(lode_gpubench_t *b, lode_status_t (*row)(lode_gpubench_t *, cache_t *, const char *))
{
    cache_t c;
    LODE_TRY(cache_create(b, &c));
    LODE_TRY(row(b, &c, "1M 1%"));
    lode_gpubench_free_all(b);
    return LODE_OK;
}

lode_status_t lode_gpubench_cache(lode_gpubench_t *b)
{
    if (lode_gpubench_wanted(b, "want", "1M 1%"))
        LODE_TRY(with_cache(b, want_row));
    if (lode_gpubench_wanted(b, "where", "1M 1%"))
        LODE_TRY(with_cache(b, where_row));
    return lode_gpubench_wanted(b, "keep", "1M 1%") ? with_cache(b, keep_row) : LODE_OK;
}
