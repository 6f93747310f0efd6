/* SPDX-License-Identifier: Apache-2.0 */
/* Memory, inputs, graphs of calls in turns, rows. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/gpu.h"

/* ------------------------------------------------------------------- memory */

lode_status_t lode_gpubench_alloc(lode_gpubench_t *b, lode_memory_t kind, size_t bytes, void **at)
{
    void *memory = NULL;
    if (b->memory_count == LODE_GPU_MEMORIES)
        return lode_fail(LODE_ERR_INTERNAL, "bench gpu: more than %d pieces of memory in one subject",
                         LODE_GPU_MEMORIES);
    if (kind == LODE_MEMORY_DEVICE)
        LODE_GPU(b, b->ops->alloc(b->device, bytes, &memory));
    else if (kind == LODE_MEMORY_PINNED)
        LODE_GPU(b, b->ops->pinned_alloc(b->device, bytes, &memory));
    else if (!(memory = calloc(1, bytes ? bytes : 1)))
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu bytes", bytes);
    b->memories[b->memory_count++] = (lode_gpubench_memory_t){kind, memory};
    *at = memory;
    return LODE_OK;
}

void lode_gpubench_free_last(lode_gpubench_t *b)
{
    lode_gpubench_memory_t memory = b->memories[--b->memory_count];
    if (memory.kind == LODE_MEMORY_DEVICE)
        b->ops->free(b->device, memory.at);
    else if (memory.kind == LODE_MEMORY_PINNED)
        b->ops->pinned_free(b->device, memory.at);
    else
        free(memory.at);
}

void lode_gpubench_free_all(lode_gpubench_t *b)
{
    while (b->memory_count)
        lode_gpubench_free_last(b);
}

lode_status_t lode_gpubench_copy(lode_gpubench_t *b, void *to, const void *from, size_t bytes)
{
    LODE_GPU(b, b->ops->copy(b->stream, to, from, bytes));
    LODE_GPU(b, b->ops->stream_wait(b->stream));
    return LODE_OK;
}

lode_status_t lode_gpubench_put(lode_gpubench_t *b, const void *from, size_t bytes, void **at)
{
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, bytes, at));
    return lode_gpubench_copy(b, *at, from, bytes);
}

lode_status_t lode_gpubench_spread(lode_gpubench_t *b, uint8_t *to, const void *from, size_t sample, size_t bytes)
{
    size_t done = sample < bytes ? sample : bytes;
    LODE_TRY(lode_gpubench_copy(b, to, from, done));
    while (done < bytes) { /* the sample is repeated whole: what is there is always a multiple of it */
        size_t more = done < bytes - done ? done : bytes - done;
        LODE_GPU(b, b->ops->copy(b->stream, to + done, to, more));
        done += more;
    }
    LODE_GPU(b, b->ops->stream_wait(b->stream));
    return LODE_OK;
}

lode_status_t lode_gpubench_poison(lode_gpubench_t *b, void *at, size_t bytes)
{
    LODE_GPU(b, b->ops->fill(b->stream, at, 0xa5, bytes));
    LODE_GPU(b, b->ops->stream_wait(b->stream));
    return LODE_OK;
}

/* ------------------------------------------------------------------- inputs */

uint64_t lode_gpubench_random(lode_gpubench_t *b)
{
    uint64_t number = ++b->random;
    return lode_mix(number, b->seed);
}

uint32_t lode_gpubench_below(lode_gpubench_t *b, uint32_t n)
{
    return (uint32_t)((lode_gpubench_random(b) >> 32) * n >> 32);
}

double lode_gpubench_uniform(lode_gpubench_t *b)
{
    return ((double)(lode_gpubench_random(b) >> 11) + 0.5) * 0x1p-53;
}

void lode_gpubench_gaussian(lode_gpubench_t *b, float scale, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        double radius = sqrt(-2 * log(lode_gpubench_uniform(b)));
        x[i] = scale * (float)(radius * cos(2 * M_PI * lode_gpubench_uniform(b)));
    }
}

void lode_gpubench_shuffle(lode_gpubench_t *b, uint32_t *numbers, size_t n)
{
    for (size_t i = 0; i < n; i++)
        numbers[i] = (uint32_t)i;
    for (size_t i = n; i > 1; i--) {
        uint32_t j = lode_gpubench_below(b, (uint32_t)i), other = numbers[j];
        numbers[j] = numbers[i - 1];
        numbers[i - 1] = other;
    }
}

/* ----------------------------------------------------------------- in turns */

enum { MOST_CALLS = 64 };
#define SLICE_SECONDS 1e-3 /* well over what an event resolves */

/** A work as it is measured: a graph of so many calls. */
typedef struct slice {
    const lode_gpubench_work_t *work;
    uint32_t calls;
    lode_device_graph_t graph; /* NULL: enqueued one by one */
} slice_t;

static lode_status_t enqueue_calls(lode_gpubench_t *b, const slice_t *s)
{
    for (uint32_t i = 0; i < s->calls; i++)
        LODE_TRY(s->work->enqueue(b, s->work->context, i));
    return LODE_OK;
}

static lode_status_t run_slice(lode_gpubench_t *b, const slice_t *s, double *seconds)
{
    float ms;
    LODE_GPU(b, b->ops->event_record(b->begin, b->stream));
    if (s->graph)
        LODE_GPU(b, b->ops->graph_launch(s->graph, b->stream));
    else
        LODE_TRY(enqueue_calls(b, s));
    LODE_GPU(b, b->ops->event_record(b->end, b->stream));
    LODE_GPU(b, b->ops->event_wait(b->end));
    LODE_GPU(b, b->ops->event_between(b->begin, b->end, &ms));
    *seconds = 1e-3 * (double)ms / s->calls;
    return LODE_OK;
}

static lode_status_t capture(lode_gpubench_t *b, slice_t *s)
{
    LODE_GPU(b, b->ops->capture_begin(b->stream));
    lode_status_t status = enqueue_calls(b, s);
    lode_device_graph_t graph = NULL;
    lode_status_t ended = b->ops->capture_end(b->stream, &graph); /* in any case: the stream must not stay captured */
    if (status == LODE_OK && ended != LODE_OK)
        status = lode_fail(ended, "capture_end: %s", b->ops->error());
    if (status != LODE_OK && graph)
        b->ops->graph_destroy(graph);
    else
        s->graph = graph;
    return status;
}

/* So many calls that a slice takes SLICE_SECONDS and all sets have their turn. */
static lode_status_t begin_slices(lode_gpubench_t *b, const lode_gpubench_work_t *work, slice_t *s)
{
    double seconds;
    *s = (slice_t){.work = work, .calls = 1};
    LODE_TRY(run_slice(b, s, &seconds)); /* the first brings code in */
    if (!b->small)
        LODE_TRY(run_slice(b, s, &seconds));
    double calls = b->small ? 1 : seconds > 0 ? SLICE_SECONDS / seconds : MOST_CALLS;
    s->calls = calls < 1 ? 1 : calls > MOST_CALLS ? MOST_CALLS : (uint32_t)calls;
    if (s->calls < work->sets)
        s->calls = work->sets;
    return work->plain ? LODE_OK : capture(b, s);
}

lode_status_t lode_gpubench_measure(lode_gpubench_t *b, const lode_gpubench_work_t *figure,
                                    const lode_gpubench_work_t *floor, double *seconds, double *floor_seconds)
{
    double times[2][1024], warm;
    slice_t slices[2] = {{0}};
    lode_status_t status = begin_slices(b, figure, &slices[0]);
    if (status == LODE_OK && floor)
        status = begin_slices(b, floor, &slices[1]);
    for (uint32_t i = 0; i < (floor ? 2u : 1u) && status == LODE_OK && !b->small; i++)
        status = run_slice(b, &slices[i], &warm);
    for (uint32_t i = 0; i < b->slices && status == LODE_OK; i++) {
        status = run_slice(b, &slices[0], &times[0][i]);
        if (status == LODE_OK && floor)
            status = run_slice(b, &slices[1], &times[1][i]);
    }
    for (int i = 0; i < 2; i++)
        if (slices[i].graph)
            b->ops->graph_destroy(slices[i].graph);
    LODE_TRY(status);
    *seconds = lode_median(times[0], b->slices);
    *floor_seconds = floor ? lode_median(times[1], b->slices) : NAN;
    return LODE_OK;
}

/* --------------------------------------------------------------------- rows */

bool lode_gpubench_wanted(const lode_gpubench_t *b, const char *kernel, const char *format)
{
    char name[96];
    snprintf(name, sizeof name, "%s/%s", kernel, format);
    return !b->filter || strstr(name, b->filter);
}

lode_gpubench_row_t *lode_gpubench_row(lode_gpubench_t *b, const char *kernel, const char *format, uint32_t group,
                                       uint32_t head_dim)
{
    lode_gpubench_row_t *row = &b->rows[b->count < LODE_GPU_ROWS ? b->count++ : LODE_GPU_ROWS - 1];
    *row = (lode_gpubench_row_t){.kernel = kernel,
                                 .unit = "",
                                 .beside = "",
                                 .group = group,
                                 .head_dim = head_dim,
                                 .figure = NAN,
                                 .floor = NAN,
                                 .ratio = NAN,
                                 .us = NAN,
                                 .target = NAN,
                                 .hit_rate = NAN,
                                 .timed = !b->small && !b->emulated};
    snprintf(row->format, sizeof row->format, "%s", format);
    return row;
}

lode_status_t lode_gpubench_rate(lode_gpubench_t *b, lode_gpubench_row_t *row, const lode_gpubench_work_t *figure,
                                 double bytes, const lode_gpubench_work_t *floor, double floor_bytes)
{
    double seconds, floor_seconds;
    LODE_TRY(lode_gpubench_measure(b, figure, floor, &seconds, &floor_seconds));
    row->unit = "GB/s";
    row->us = 1e6 * seconds;
    row->figure = bytes / seconds / 1e9;
    row->floor = floor_bytes / floor_seconds / 1e9;
    row->ratio = row->figure / row->floor;
    return LODE_OK;
}

lode_status_t lode_gpubench_time(lode_gpubench_t *b, lode_gpubench_row_t *row, const lode_gpubench_work_t *figure,
                                 const lode_gpubench_work_t *floor)
{
    double seconds, floor_seconds;
    LODE_TRY(lode_gpubench_measure(b, figure, floor, &seconds, &floor_seconds));
    row->unit = "us";
    row->us = row->figure = 1e6 * seconds;
    row->floor = 1e6 * floor_seconds;
    row->ratio = row->figure / row->floor;
    return LODE_OK;
}

lode_status_t lode_gpubench_extra(lode_gpubench_t *b, lode_gpubench_row_t *row, const lode_gpubench_work_t *figure,
                                  const lode_gpubench_work_t *without, const lode_gpubench_work_t *floor)
{
    double with_it, without_it, floor_seconds = NAN, unused;
    LODE_TRY(lode_gpubench_measure(b, figure, without, &with_it, &without_it));
    if (floor)
        LODE_TRY(lode_gpubench_measure(b, floor, NULL, &floor_seconds, &unused));
    row->unit = "us";
    row->us = row->figure = 1e6 * (with_it - without_it);
    row->floor = 1e6 * floor_seconds;
    row->ratio = row->figure / row->floor;
    return LODE_OK;
}

/* ------------------------------------------------------------------- floors */

#ifdef LODE_HAVE_CUDA
lode_status_t lode_gpubench_read_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    const lode_gpubench_stretch_t *s = context;
    LODE_GPU(b, lode_gpubench_floor_read(b->stream, s->from + turn % s->sets * s->bytes, s->bytes, b->info.processors,
                                         (uint32_t *)(void *)s->to));
    return LODE_OK;
}
#else
lode_status_t lode_gpubench_read_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    (void)b, (void)context, (void)turn;
    return lode_fail(LODE_ERR_UNSUPPORTED, "this build has no CUDA"); /* no device was opened either */
}
#endif

lode_status_t lode_gpubench_copy_enqueue(lode_gpubench_t *b, void *context, uint32_t turn)
{
    const lode_gpubench_stretch_t *s = context;
    LODE_GPU(b,
             b->ops->copy(b->stream, s->to + turn % s->sets * s->bytes, s->from + turn % s->sets * s->bytes, s->bytes));
    return LODE_OK;
}

uint32_t lode_gpubench_sets(const lode_gpubench_t *b, size_t bytes)
{
    size_t apart = b->small ? 0 : 4 * (b->info.l2_bytes > 64u << 20 ? b->info.l2_bytes : 64u << 20);
    size_t sets = bytes ? (apart + bytes - 1) / bytes + 1 : 1;
    return sets > 32 ? 32 : (uint32_t)sets;
}

lode_status_t lode_gpubench_read_floor(lode_gpubench_t *b, size_t bytes, lode_gpubench_stretch_t *stretch,
                                       lode_gpubench_work_t *work)
{
    size_t sample = lode_gpubench_size(b, 1 << 20, 4096);
    uint64_t *random = NULL;
    void *from, *sink;
    *stretch = (lode_gpubench_stretch_t){.bytes = (bytes + 255) / 256 * 256};
    stretch->sets = lode_gpubench_sets(b, stretch->bytes);
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sample, (void **)&random));
    for (size_t i = 0; i < sample / 8; i++)
        random[i] = lode_gpubench_random(b);
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, stretch->sets * stretch->bytes, &from));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_DEVICE, 256, &sink));
    LODE_TRY(lode_gpubench_spread(b, from, random, sample, stretch->sets * stretch->bytes));
    stretch->from = from;
    stretch->to = sink;
    *work = (lode_gpubench_work_t){.enqueue = lode_gpubench_read_enqueue, .context = stretch, .sets = stretch->sets};
    return LODE_OK;
}
