/* SPDX-License-Identifier: Apache-2.0 */
/* What the machine does at best: device memory read and copied, the bus both ways. Then records gathered over the bus.
 */
#include <math.h>
#include <string.h>

#include "bench/gpu.h"

/* ------------------------------------------------------------------- copies */

/* Words of a copy that did not arrive. */
static lode_status_t wrong_words(lode_gpubench_t *b, const lode_gpubench_stretch_t *s, uint64_t *wrong)
{
    uint64_t *from, *to;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, s->bytes, (void **)&from));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, s->bytes, (void **)&to));
    LODE_TRY(lode_gpubench_poison(b, s->to, s->bytes));
    LODE_TRY(lode_gpubench_copy_enqueue(b, (void *)(uintptr_t)s, 0));
    LODE_TRY(lode_gpubench_copy(b, to, s->to, s->bytes));
    LODE_TRY(lode_gpubench_copy(b, from, s->from, s->bytes));
    for (size_t i = 0; i < s->bytes / 8; i++)
        *wrong += from[i] != to[i];
    return LODE_OK;
}

static lode_status_t copy_row(lode_gpubench_t *b, const char *name, lode_memory_t from, lode_memory_t to)
{
    size_t bytes = lode_gpubench_size(b, 256u << 20, 1 << 16), sample = lode_gpubench_size(b, 1 << 20, 4096);
    lode_gpubench_stretch_t s = {.bytes = bytes, .sets = 1}; /* over the second-level cache by itself */
    lode_gpubench_work_t work = {.enqueue = lode_gpubench_copy_enqueue, .context = &s};
    uint64_t *random = NULL;
    if (!lode_gpubench_wanted(b, name, ""))
        return LODE_OK;
    lode_gpubench_row_t *row = lode_gpubench_row(b, name, "", 0, 0);
    LODE_TRY(lode_gpubench_alloc(b, from, bytes, (void **)&s.from));
    LODE_TRY(lode_gpubench_alloc(b, to, bytes, (void **)&s.to));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sample, (void **)&random));
    for (size_t i = 0; i < sample / 8; i++)
        random[i] = lode_gpubench_random(b);
    LODE_TRY(lode_gpubench_spread(b, s.from, random, sample, bytes));
    LODE_TRY(wrong_words(b, &s, &row->wrong));
    bool both = from == LODE_MEMORY_DEVICE && to == LODE_MEMORY_DEVICE;
    LODE_TRY(lode_gpubench_rate(b, row, &work, (double)bytes * (both ? 2 : 1), NULL, NAN));
    snprintf(row->note, sizeof row->note, both ? "bytes read and written" : "over the bus");
    lode_gpubench_row_end(row);
    lode_gpubench_free_all(b);
    return LODE_OK;
}

static lode_status_t read_row(lode_gpubench_t *b)
{
    size_t bytes = lode_gpubench_size(b, 256u << 20, 1 << 16);
    lode_gpubench_stretch_t s;
    lode_gpubench_work_t work;
    if (!lode_gpubench_wanted(b, "device_read", ""))
        return LODE_OK;
    lode_gpubench_row_t *row = lode_gpubench_row(b, "device_read", "", 0, 0);
    LODE_TRY(lode_gpubench_read_floor(b, bytes, &s, &work));
    LODE_TRY(lode_gpubench_rate(b, row, &work, (double)bytes, NULL, NAN));
    lode_gpubench_row_end(row);
    lode_gpubench_free_all(b);
    return LODE_OK;
}

lode_status_t lode_gpubench_copies(lode_gpubench_t *b)
{
    LODE_TRY(read_row(b));
    LODE_TRY(copy_row(b, "device_copy", LODE_MEMORY_DEVICE, LODE_MEMORY_DEVICE));
    LODE_TRY(copy_row(b, "host_to_device", LODE_MEMORY_PINNED, LODE_MEMORY_DEVICE));
    return copy_row(b, "device_to_host", LODE_MEMORY_DEVICE, LODE_MEMORY_PINNED);
}

/* ------------------------------------------------------------------- gather */

typedef struct gather {
    lode_gather_way_t way;
    size_t record, stride;
    uint32_t count, sets;    /* records of a call */
    const uint8_t **sources; /* (sets, count) in pinned memory, as both ways may read it */
    uint32_t *missed;
    uint8_t *from, *to;
} gather_t;

static lode_status_t gather_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    const gather_t *g = context;
    LODE_GPU(b, b->ops->gather(b->stream, g->way, g->sources + (size_t)(turn % g->sets) * g->count, NULL, g->missed, 0,
                               g->count, g->record, g->to, g->stride));
    return LODE_OK;
}

static lode_status_t gather_create(lode_gpubench_t *b, size_t record, gather_t *g)
{
    size_t whole = lode_gpubench_size(b, 256u << 20, 64 << 10), call = lode_gpubench_size(b, 16 << 20, 16 << 10);
    uint32_t *order;
    *g = (gather_t){.record = record, .stride = (record + 15) / 16 * 16};
    uint32_t all = (uint32_t)(whole / record);
    g->count = (uint32_t)(call / record);
    g->sets = all / g->count;
    all = g->sets * g->count;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_PINNED, all * record, (void **)&g->from));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, g->count * g->stride, (void **)&g->to));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_PINNED, all * sizeof *g->sources, (void **)&g->sources));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_PINNED, sizeof *g->missed, (void **)&g->missed));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, all * sizeof *order, (void **)&order));
    lode_gpubench_shuffle(b, order, all);
    for (uint32_t i = 0; i < all; i++)
        g->sources[i] = g->from + order[i] * record;
    for (size_t i = 0; i + 8 <= all * record; i += 8) {
        uint64_t random = lode_mix(i, b->seed);
        memcpy(g->from + i, &random, sizeof random);
    }
    *g->missed = g->count;
    return LODE_OK;
}

/* Records that are not what their source is. */
static lode_status_t wrong_records(lode_gpubench_t *b, gather_t *g, uint64_t *wrong)
{
    uint8_t *got;
    uint32_t turn = lode_gpubench_below(b, g->sets);
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, g->count * g->stride, (void **)&got));
    LODE_TRY(lode_gpubench_poison(b, g->to, g->count * g->stride));
    LODE_TRY(gather_enqueue(b, g, turn));
    LODE_TRY(lode_gpubench_copy(b, got, g->to, g->count * g->stride));
    for (uint32_t i = 0; i < g->count; i++)
        *wrong += memcmp(got + i * g->stride, g->sources[turn * g->count + i], g->record) != 0;
    return LODE_OK;
}

/*
 * The floor is one copy over the bus of as many bytes in one piece. The rows of the copy engine with a descriptor a
 * record say what the calibration at start chooses between; they go without a graph, as a step would enqueue them.
 */
static lode_status_t gather_row(lode_gpubench_t *b, lode_gather_way_t way, const char *format, size_t record,
                                uint32_t dim, double target)
{
    const char *name = way == LODE_GATHER_KERNEL ? "gather" : "gather_copies";
    gather_t g;
    if (!lode_gpubench_wanted(b, name, format))
        return LODE_OK;
    lode_gpubench_row_t *row = lode_gpubench_row(b, name, format, 0, dim);
    LODE_TRY(gather_create(b, record, &g));
    g.way = way;
    LODE_TRY(wrong_records(b, &g, &row->wrong));
    size_t bytes = g.count * record;
    lode_gpubench_stretch_t s = {.from = g.from, .bytes = bytes, .sets = 1};
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, bytes, (void **)&s.to));
    lode_gpubench_work_t figure = {.enqueue = gather_enqueue, .context = &g, .sets = g.sets, .plain = way};
    lode_gpubench_work_t floor = {.enqueue = lode_gpubench_copy_enqueue, .context = &s};
    row->beside = "host_to_device";
    row->target = target;
    LODE_TRY(lode_gpubench_rate(b, row, &figure, (double)bytes, &floor, (double)bytes));
    lode_gpubench_row_end(row);
    lode_gpubench_free_all(b);
    return LODE_OK;
}

lode_status_t lode_gpubench_gather(lode_gpubench_t *b)
{
    static const lode_format_t formats[] = {LODE_FORMAT_HIGGS4, LODE_FORMAT_FP8, LODE_FORMAT_BF16};
    for (int way = LODE_GATHER_KERNEL; way <= LODE_GATHER_COPIES; way++) {
        bool kernel = way == LODE_GATHER_KERNEL;
        LODE_TRY(gather_row(b, (lode_gather_way_t)way, "4KiB", 4096, 0, kernel ? 0.85 : NAN));
        LODE_TRY(gather_row(b, (lode_gather_way_t)way, "16KiB", 16384, 0, kernel ? 0.92 : NAN));
        for (int i = 0; i < 3; i++)
            LODE_TRY(gather_row(b, (lode_gather_way_t)way, lode_gpubench_format_name(formats[i]),
                                lode_record_bytes(formats[i], 128), 128, NAN));
    }
    return LODE_OK;
}
