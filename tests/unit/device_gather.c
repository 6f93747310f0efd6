/* SPDX-License-Identifier: Apache-2.0 */
/* Gathering records from pinned memory, in both ways, against a copy in plain C; and the choice between them. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "device_open.h"

enum { GUARD = 256 };

static const lode_device_ops_t *ops;
static lode_device_h device;
static int thread_before;
static lode_device_stream_t stream;
static uint64_t seed, state;

static void setup(void)
{
    seed = state = device_seed(lode_now_ns());
    device_open(&ops, &device, &thread_before, &stream);
}

static void teardown(void)
{
    device_close(ops, &device, thread_before, stream);
}

TestSuite(device_gather, .init = setup, .fini = teardown, .timeout = 200);

#define ok(call) \
    cr_assert_eq((call), LODE_OK, "%s: %s; LODEMARK_TEST_SEED=%llu", #call, ops->error(), (unsigned long long)seed)

static uint32_t below(uint32_t n)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((state >> 33) % n);
}

/* Records of a rank: in its pages, in a landing buffer, or nowhere; the first are often neighbours. */
typedef struct source {
    uint32_t records;
    size_t record_bytes, bytes;
    uint8_t *pages, *landing; /* pinned */
    const uint8_t **sources, **landed;
    uint32_t *missed;
    const uint8_t **device_sources;
} source_t;

static void *pinned(size_t bytes)
{
    void *memory;
    ok(ops->pinned_alloc(device, bytes + 8, &memory));
    return memory;
}

static source_t source_make(uint32_t records, size_t record_bytes)
{
    source_t s = {.records = records, .record_bytes = record_bytes, .bytes = (records + 1) * (record_bytes + 8)};
    s.pages = pinned(s.bytes);
    s.landing = pinned(s.bytes);
    s.sources = pinned(records * sizeof *s.sources);
    s.landed = pinned(records * sizeof *s.landed);
    s.missed = pinned(sizeof *s.missed);
    for (size_t i = 0; i < s.bytes; i++) {
        s.pages[i] = (uint8_t)below(256);
        s.landing[i] = (uint8_t)below(256);
    }
    size_t at = 0;
    for (uint32_t i = 0; i < records; i++) {
        uint32_t kind = below(8);
        s.sources[i] = kind < 5 ? s.pages + at : NULL;
        s.landed[i] = kind < 7 ? s.landing + below(records) * (record_bytes + 8) + 8 * below(2) : NULL;
        at = kind && at + 2 * record_bytes + 8 <= s.bytes ? at + record_bytes
                                                          : 8 * below((uint32_t)(s.bytes - record_bytes) / 8);
    }
    ok(ops->alloc(device, records * sizeof *s.sources + 8, (void **)&s.device_sources));
    ok(ops->copy(stream, s.device_sources, s.sources, records * sizeof *s.sources));
    return s;
}

static void source_free(source_t *s)
{
    ok(ops->stream_wait(stream));
    ops->pinned_free(device, s->pages);
    ops->pinned_free(device, s->landing);
    ops->pinned_free(device, s->sources);
    ops->pinned_free(device, s->landed);
    ops->pinned_free(device, s->missed);
    ops->free(device, s->device_sources);
}

/* Gather records begin … end−1 of those missed: all that was asked for is there, and nothing else was touched. */
static void check(lode_gather_way_t way, source_t *s, uint32_t missed, uint32_t begin, uint32_t end, size_t stride,
                  bool landed, size_t skew)
{
    size_t bytes = (size_t)(end - begin) * stride + 2 * GUARD;
    uint8_t *memory, *got = malloc(bytes);
    uint32_t until = end < missed ? end : missed;
    *s->missed = missed;
    ok(ops->alloc(device, bytes, (void **)&memory));
    ok(ops->fill(stream, memory, 0xa5, bytes));
    ok(ops->gather(stream, way, way == LODE_GATHER_COPIES ? s->sources : s->device_sources, landed ? s->landed : NULL,
                   s->missed, begin, end, s->record_bytes, memory + GUARD + skew, stride));
    ok(ops->copy(stream, got, memory, bytes));
    ok(ops->stream_wait(stream));
    for (size_t i = 0; i < bytes; i++) {
        size_t at = i - GUARD - skew, number = begin + at / stride;
        uint8_t right = 0xa5;
        if (i >= GUARD + skew && number < until && at % stride < s->record_bytes) {
            const uint8_t *from = s->sources[number] ? s->sources[number] : landed ? s->landed[number] : NULL;
            right = from ? from[at % stride] : 0;
        }
        cr_assert_eq(
            got[i], right,
            "way %d, records of %zu, %zu apart, %u to %u of %u: byte %zu is %x, not %x; LODEMARK_TEST_SEED=%llu", way,
            s->record_bytes, stride, begin, end, missed, i, got[i], right, (unsigned long long)seed);
    }
    ops->free(device, memory);
    free(got);
}

static void check_way(lode_gather_way_t way)
{
    const size_t sizes[] = {8, 72, 136, 264, 520, 1032, 16, 4096, 4104};
    for (uint32_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        uint32_t records = 1 + below(sizes[i] > 2000 ? 20 : sizes[i] > 500 ? 150 : 700);
        source_t s = source_make(records, sizes[i]);
        size_t padded = (sizes[i] + 15) / 16 * 16;
        uint32_t begin = below(records + 1);
        check(way, &s, records, 0, records, padded, true, 0);
        check(way, &s, records, 0, records, sizes[i], true, 8 * below(2));
        check(way, &s, below(records + 1), begin, begin + below(records + 1 - begin), padded + 16, below(2), 0);
        check(way, &s, 0, 0, records, padded, false, 0);
        check(way, &s, records, begin, begin, padded, true, 0);
        source_free(&s);
    }
}

Test(device_gather, kernel)
{
    check_way(LODE_GATHER_KERNEL);
}

Test(device_gather, copies)
{
    check_way(LODE_GATHER_COPIES);
}

/* What was not told before the kernel is enqueued is read when it runs. */
Test(device_gather, missed_late)
{
    source_t s = source_make(40, 136);
    uint8_t *memory, *got = malloc(40 * 144);
    uint32_t *late, *counted;
    late = pinned(sizeof *late);
    ok(ops->alloc(device, 256, (void **)&counted));
    ok(ops->alloc(device, 40 * 144, (void **)&memory));
    ok(ops->fill(stream, memory, 0xa5, 40 * 144));
    *late = 40;
    ok(ops->stream_wait(stream));
    ok(ops->fill(stream, late, 0, sizeof *late)); /* runs after this line, before the kernel */
    ok(ops->gather(stream, LODE_GATHER_KERNEL, s.device_sources, s.landed, late, 0, 40, 136, memory, 144));
    ok(ops->copy(stream, got, memory, 40 * 144));
    ok(ops->stream_wait(stream));
    for (size_t i = 0; i < 40 * 144; i++)
        cr_assert_eq(got[i], 0xa5, "byte %zu was written, though nothing was missed", i);
    ops->free(device, memory);
    ops->free(device, counted);
    ops->pinned_free(device, late);
    source_free(&s);
    free(got);
}

/* A kernel can be captured; copies cannot, and say so. */
Test(device_gather, captured)
{
    source_t s = source_make(33, 264);
    lode_device_graph_t graph;
    uint8_t *memory;
    *s.missed = 33;
    ok(ops->alloc(device, 33 * 272, (void **)&memory));
    ok(ops->stream_wait(stream));
    ok(ops->capture_begin(stream));
    ok(ops->gather(stream, LODE_GATHER_KERNEL, s.device_sources, s.landed, s.missed, 0, 33, 264, memory, 272));
    cr_assert_eq(ops->gather(stream, LODE_GATHER_COPIES, s.sources, s.landed, s.missed, 0, 33, 264, memory, 272),
                 LODE_ERR_UNSUPPORTED);
    cr_assert(strstr(ops->error(), "captured"), "%s", ops->error());
    ok(ops->capture_end(stream, &graph));
    for (int round = 0; round < 2; round++) {
        uint8_t got[33 * 272];
        ok(ops->fill(stream, memory, 0xa5, sizeof got));
        ok(ops->graph_launch(graph, stream));
        ok(ops->copy(stream, got, memory, sizeof got));
        ok(ops->stream_wait(stream));
        for (uint32_t i = 0; i < 33; i++) {
            const uint8_t *from = s.sources[i] ? s.sources[i] : s.landed[i];
            for (uint32_t j = 0; j < 264; j++)
                cr_assert_eq(got[272 * i + j], from ? from[j] : 0, "round %d, record %u, byte %u", round, i, j);
        }
    }
    ops->graph_destroy(graph);
    ops->free(device, memory);
    source_free(&s);
}

Test(device_gather, refused)
{
    source_t s = source_make(4, 136);
    *s.missed = 4;
    uint8_t *memory;
    ok(ops->alloc(device, 4096, (void **)&memory));
    const struct {
        size_t skew, bytes, stride;
    } wrong[] = {{0, 132, 144}, {0, 136, 140}, {4, 136, 144}, {0, 136, 128}, {0, 0, 16}};
    for (uint32_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        for (uint32_t way = 0; way < 2; way++) {
            cr_assert_eq(ops->gather(stream, (lode_gather_way_t)way, s.sources, NULL, s.missed, 0, 4, wrong[i].bytes,
                                     memory + wrong[i].skew, wrong[i].stride),
                         LODE_ERR_INVALID, "%u", i);
            cr_assert(strstr(ops->error(), "multiples of 8"), "%s", ops->error());
        }
    ops->free(device, memory);
    source_free(&s);
}

Test(device_gather, choice)
{
    const uint32_t counts[] = {16, 64, 256, 1024};
    const float kernel[] = {1, 2, 4, 8};
    const float never[] = {1, 2, 4, 8}, always[] = {0.5f, 1, 2, 4}, late[] = {5, 5, 3, 6}, once[] = {0.5f, 5, 3, 9},
                close[] = {5, 5, 3, 7.9f};
    cr_assert_eq(lode_gather_choose(counts, kernel, never, 4), UINT32_MAX);
    cr_assert_eq(lode_gather_choose(counts, kernel, always, 4), 16);
    cr_assert_eq(lode_gather_choose(counts, kernel, late, 4), 256);
    cr_assert_eq(lode_gather_choose(counts, kernel, once, 4), UINT32_MAX);
    cr_assert_eq(lode_gather_choose(counts, kernel, close, 4), UINT32_MAX);
    cr_assert_eq(lode_gather_choose(counts, kernel, late, 0), UINT32_MAX);
}

/* Measured on this machine: any answer may come, but one of those that can, and nothing is left behind. */
Test(device_gather, calibrate)
{
    uint32_t from = 7;
    ok(ops->gather_calibrate(device, stream, 264, &from));
    cr_assert(from == UINT32_MAX || from == 16 || from == 64 || from == 256 || from == 1024 || from == 4096, "%u",
              from);
    from = 7;
    cr_assert_eq(ops->gather_calibrate(device, stream, 64 << 20, &from), LODE_ERR_INVALID);
    cr_assert_eq(from, 7);
}
