/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "shard/shard.h"

#define PAGE 20000u /* bytes: not a multiple of anything */

static const lode_ops_t *ops;

static void setup(void)
{
    cr_assert(lode_ops_get("auto", &ops) == LODE_OK);
}

TestSuite(page, .init = setup, .timeout = 60);
TestSuite(shard, .init = setup, .timeout = 60);
TestSuite(placement, .timeout = 60);

static float uniform(uint64_t *seed)
{
    *seed = lode_mix(*seed, 17);
    return (float)(int64_t)*seed * 0x1p-63f;
}

/* --------------------------------------------------------------------- page */

Test(page, format_names)
{
    lode_format_t format;
    const char *const names[] = {"bf16", "fp8", "higgs4"};
    for (int i = 0; i < 3; i++) {
        cr_assert(lode_format_parse(names[i], &format) == LODE_OK);
        cr_assert(eq(int, format, i));
        cr_assert(eq(str, (char *)lode_format_name(format), (char *)names[i]));
    }
    cr_assert(lode_format_parse("fp16", &format) == LODE_ERR_INVALID);
    cr_assert(strstr(lode_error_message(), "higgs4") != NULL);
    cr_assert(lode_format_parse("", &format) == LODE_ERR_INVALID);
}

static double distance(const float *a, const float *b, uint32_t n)
{
    double difference = 0, whole = 0;
    for (uint32_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        whole += (double)a[i] * a[i];
    }
    return sqrt(difference / whole);
}

static void check_encoding(lode_format_t format, uint32_t dim, uint32_t heads, uint32_t tokens, double tolerance)
{
    size_t floats = (size_t)tokens * heads * dim, record_bytes = lode_record_bytes(format, dim);
    size_t bytes = lode_page_bytes(format, dim, heads);
    float *k = malloc(floats * sizeof *k), *v = malloc(floats * sizeof *v), k2[LODE_MAX_DIM], v2[LODE_MAX_DIM];
    uint8_t *page = malloc(bytes);
    uint64_t seed = dim + heads + tokens;
    uint32_t crc = 0, head_begin = 3;
    lode_page_id_t id = {.block = 0xfeedfacecafebeef, .layer = 5, .page = 7};
    for (size_t i = 0; i < floats; i++) {
        k[i] = 8 * uniform(&seed);
        v[i] = uniform(&seed) / 8;
    }
    memset(page, 0xee, bytes);
    lode_page_encode(ops, format, dim, heads, head_begin, id, tokens, k, v, page, &crc);
    cr_assert(eq(u32, crc, ops->crc32c(0, page, bytes)));
    for (uint32_t h = 0; h < heads; h++) {
        for (uint32_t t = 0; t < LODE_PAGE_TOKENS; t++) {
            const uint8_t *record = page + lode_page_record(record_bytes, h, t);
            size_t at = ((size_t)t * heads + h) * dim;
            if (t >= tokens) {
                for (size_t i = 0; i < record_bytes; i++)
                    cr_assert(eq(u8, record[i], 0), "token %u is unused but not zero", t);
                continue;
            }
            uint32_t tag = lode_record_tag(id.block, id.layer, head_begin + h, 7 * LODE_PAGE_TOKENS + t);
            cr_assert(ops->record_check(format, dim, record, tag), "head %u token %u", h, t);
            cr_assert(not(ops->record_check(format, dim, record, tag + 1)));
            ops->record_decode(format, dim, record, k2, v2);
            cr_assert(le(dbl, distance(k + at, k2, dim), tolerance), "K of head %u token %u", h, t);
            cr_assert(le(dbl, distance(v + at, v2, dim), tolerance), "V of head %u token %u", h, t);
        }
    }
    free(k);
    free(v);
    free(page);
}

Test(page, every_record_checks_and_decodes)
{
    static const uint32_t dims[] = {64, 128, 256};
    for (int i = 0; i < 3; i++) {
        check_encoding(LODE_FORMAT_BF16, dims[i], 3, 64, 0.004);
        check_encoding(LODE_FORMAT_FP8, dims[i], 2, 37, 0.05);
        check_encoding(LODE_FORMAT_HIGGS4, dims[i], 2, 1, 0.2);
    }
}

/* -------------------------------------------------------------------- shard */

typedef struct fixture {
    uint8_t *base;
    lode_shard_h shard;
    uint8_t page[PAGE * 16];
} fixture_t;

static fixture_t *fixture_create(size_t bytes)
{
    fixture_t *f = calloc(1, sizeof *f);
    f->base = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    cr_assert(lode_shard_create(f->base, bytes, &f->shard) == LODE_OK, "%s", lode_error_message());
    return f;
}

static void fixture_destroy(fixture_t *f)
{
    lode_shard_destroy(&f->shard);
    cr_assert(f->shard == NULL);
    free(f->base);
    free(f);
}

/* Bytes that only this page has. */
static void page_fill(uint8_t *page, uint32_t size, lode_page_id_t id)
{
    uint64_t seed = lode_mix(id.block, (uint64_t)id.layer << 32 | id.page);
    for (uint32_t i = 0; i < size; i += 8) {
        seed = lode_mix(seed, i);
        memcpy(page + i, &seed, size - i < 8 ? size - i : 8);
    }
}

static lode_status_t page_put(fixture_t *f, lode_page_id_t id, uint32_t size, lode_page_ref_t *ref)
{
    page_fill(f->page, size, id);
    return lode_shard_put(f->shard, ops, id, f->page, size, ops->crc32c(0, f->page, size), ref);
}

static bool page_is_whole(fixture_t *f, lode_page_id_t id, uint32_t size)
{
    lode_page_ref_t ref;
    if (!lode_shard_find(f->shard, id, &ref))
        return false;
    page_fill(f->page, size, id);
    cr_assert(eq(u32, ref.size, size));
    cr_assert(eq(u64, ref.offset % 64, 0));
    cr_assert(eq(ptr, (void *)ref.bytes, f->base + ref.offset));
    cr_assert(eq(u32, ref.crc, ops->crc32c(0, f->page, size)));
    return memcmp(ref.bytes, f->page, size) == 0;
}

Test(shard, put_find_drop)
{
    fixture_t *f = fixture_create(1 << 20);
    lode_page_ref_t ref, other;
    lode_page_id_t a = {1, 0, 0}, b = {1, 0, 1}, c = {2, 0, 0}, d = {1, 1, 0};
    cr_assert(not(lode_shard_find(f->shard, a, &ref)));
    cr_assert(page_put(f, a, PAGE, &ref) == LODE_OK);
    cr_assert(page_put(f, b, PAGE, &other) == LODE_OK);
    cr_assert(ref.offset != other.offset);
    cr_assert(page_put(f, c, 3 * PAGE, &ref) == LODE_OK);
    cr_assert(page_put(f, d, 100, &ref) == LODE_OK);
    cr_assert(page_is_whole(f, a, PAGE) && page_is_whole(f, b, PAGE) && page_is_whole(f, c, 3 * PAGE) &&
              page_is_whole(f, d, 100));
    cr_assert(eq(u64, lode_shard_usage(f->shard).pages, 4));
    lode_shard_drop_page(f->shard, b);
    lode_shard_drop_page(f->shard, b);
    cr_assert(not(lode_shard_find(f->shard, b, &ref)));
    cr_assert(page_is_whole(f, a, PAGE) && page_is_whole(f, d, 100));
    lode_shard_drop_block(f->shard, 1);
    lode_shard_drop_block(f->shard, 77);
    cr_assert(not(lode_shard_find(f->shard, a, &ref)));
    cr_assert(not(lode_shard_find(f->shard, d, &ref)));
    cr_assert(page_is_whole(f, c, 3 * PAGE));
    lode_shard_drop_block(f->shard, 2);
    lode_shard_usage_t usage = lode_shard_usage(f->shard);
    cr_assert(eq(u64, usage.pages, 0));
    cr_assert(eq(u64, usage.used_bytes, 0));
    cr_assert(eq(u64, usage.bytes, 1 << 20));
    fixture_destroy(f);
}

Test(shard, create_refuses)
{
    lode_shard_h shard = NULL;
    _Alignas(64) static uint8_t arena[8192];
    cr_assert(lode_shard_create(arena + 8, 4096, &shard) == LODE_ERR_INVALID);
    cr_assert(lode_shard_create(arena, 100, &shard) == LODE_ERR_INVALID);
    cr_assert(shard == NULL);
    lode_shard_destroy(&shard);
}

Test(shard, same_page_again)
{
    fixture_t *f = fixture_create(1 << 20);
    lode_page_ref_t first, again;
    lode_page_id_t id = {9, 3, 4};
    cr_assert(page_put(f, id, PAGE, &first) == LODE_OK);
    cr_assert(page_put(f, id, PAGE, &again) == LODE_OK);
    cr_assert(eq(u64, first.offset, again.offset));
    cr_assert(eq(u64, lode_shard_usage(f->shard).pages, 1));
    page_fill(f->page, PAGE, (lode_page_id_t){9, 3, 5});
    uint32_t crc = ops->crc32c(0, f->page, PAGE);
    cr_assert(lode_shard_put(f->shard, ops, id, f->page, PAGE, crc, &again) == LODE_ERR_INVALID);
    cr_assert(page_is_whole(f, id, PAGE));
    fixture_destroy(f);
}

Test(shard, wrong_crc_refused)
{
    fixture_t *f = fixture_create(1 << 20);
    lode_page_ref_t ref;
    lode_page_id_t id = {9, 3, 4};
    page_fill(f->page, PAGE, id);
    uint32_t crc = ops->crc32c(0, f->page, PAGE);
    f->page[PAGE / 2] ^= 0x10;
    cr_assert(lode_shard_put(f->shard, ops, id, f->page, PAGE, crc, &ref) == LODE_ERR_FORMAT);
    cr_assert(strstr(lode_error_message(), "layer 3 page 4") != NULL, "%s", lode_error_message());
    cr_assert(lode_shard_put(f->shard, ops, id, f->page, 0, 0, &ref) == LODE_ERR_INVALID);
    cr_assert(not(lode_shard_find(f->shard, id, &ref)));
    cr_assert(eq(u64, lode_shard_usage(f->shard).used_bytes, 0));
    fixture_destroy(f);
}

/* Put pages until none fits. */
static uint32_t fill(fixture_t *f, uint64_t block, uint32_t size)
{
    lode_page_ref_t ref;
    uint32_t count = 0;
    while (page_put(f, (lode_page_id_t){block, 0, count}, size, &ref) == LODE_OK) {
        cr_assert(le(u64, ref.offset + size, lode_shard_usage(f->shard).bytes));
        count++;
    }
    return count;
}

Test(shard, full_arena_loses_nothing)
{
    fixture_t *f = fixture_create(1 << 20);
    uint32_t count = fill(f, 1, PAGE);
    cr_assert(ge(u32, count, (1 << 20) / PAGE * 7 / 8), "%u pages", count);
    cr_assert(strstr(lode_error_message(), "arena full: a page of 20000 bytes") != NULL, "%s", lode_error_message());
    cr_assert(strstr(lode_error_message(), "1048576 bytes") != NULL, "%s", lode_error_message());
    for (uint32_t i = 0; i < count; i++)
        cr_assert(page_is_whole(f, (lode_page_id_t){1, 0, i}, PAGE));
    cr_assert(eq(u64, lode_shard_usage(f->shard).pages, count));
    lode_page_ref_t ref;
    lode_status_t status = page_put(f, (lode_page_id_t){2, 0, 0}, 16 * PAGE, &ref);
    cr_assert(eq(int, status, LODE_ERR_FULL));
    fixture_destroy(f);
}

Test(shard, dropped_memory_waits_for_collection)
{
    fixture_t *f = fixture_create(1 << 20);
    uint32_t count = fill(f, 1, PAGE);
    lode_page_ref_t before, after;
    cr_assert(lode_shard_find(f->shard, (lode_page_id_t){1, 0, 3}, &before));
    lode_shard_drop_page(f->shard, (lode_page_id_t){1, 0, 3});
    lode_status_t status = page_put(f, (lode_page_id_t){2, 0, 0}, PAGE, &after);
    cr_assert(eq(int, status, LODE_ERR_FULL), "memory of a page just dropped was given away");
    page_fill(f->page, PAGE, (lode_page_id_t){1, 0, 3});
    cr_assert(memcmp(before.bytes, f->page, PAGE) == 0);
    lode_shard_collect(f->shard, lode_now_ns() + 1);
    cr_assert(page_put(f, (lode_page_id_t){2, 0, 0}, PAGE, &after) == LODE_OK);
    cr_assert(eq(u64, after.offset, before.offset));
    cr_assert(page_is_whole(f, (lode_page_id_t){2, 0, 0}, PAGE));
    cr_assert(eq(u64, lode_shard_usage(f->shard).pages, count));
    fixture_destroy(f);
}

Test(shard, put_collects_when_full)
{
    fixture_t *f = fixture_create(1 << 20);
    lode_page_ref_t ref;
    fill(f, 1, PAGE);
    lode_shard_drop_block(f->shard, 1);
    cr_assert(page_put(f, (lode_page_id_t){2, 0, 0}, PAGE, &ref) == LODE_ERR_FULL);
    usleep(LODE_SHARD_QUARANTINE_NS / 1000 + 100000);
    cr_assert(page_put(f, (lode_page_id_t){2, 0, 0}, PAGE, &ref) == LODE_OK);
    fixture_destroy(f);
}

Test(shard, slabs_serve_other_sizes_after)
{
    fixture_t *f = fixture_create(3 << 20);
    static const uint32_t sizes[] = {PAGE, 100, 15 * PAGE, 64, 4097, 7 * PAGE};
    uint64_t block = 1;
    for (int round = 0; round < 2; round++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++, block++) {
            uint32_t count = fill(f, block, sizes[i]), size = sizes[i] < 4096 ? 4096 : sizes[i];
            cr_assert(ge(u32, count, (3u << 20) / size * 3 / 4), "%u pages of %u bytes", count, size);
            for (uint32_t page = 0; page < count; page++)
                cr_assert(page_is_whole(f, (lode_page_id_t){block, 0, page}, sizes[i]));
            lode_shard_drop_block(f->shard, block);
            lode_shard_collect(f->shard, lode_now_ns() + 1);
        }
    }
    fixture_destroy(f);
}

/* Random puts and drops beside a plain list of what should be held. */
Test(shard, agrees_with_a_plain_list)
{
    enum { IDS = 600 };
    fixture_t *f = fixture_create(4 << 20);
    uint32_t held[IDS] = {0}; /* size, 0: not held */
    uint64_t seed = 42, refused = 0;
    for (int step = 0; step < 20000; step++) {
        seed = lode_mix(seed, 5);
        uint32_t i = (uint32_t)(seed % IDS);
        lode_page_id_t id = {1 + i % 7, i / 7 % 3, i};
        lode_page_ref_t ref;
        switch (seed >> 32 & 7) {
        case 0:
            lode_shard_drop_page(f->shard, id);
            held[i] = 0;
            break;
        case 1:
            lode_shard_collect(f->shard, lode_now_ns() + 1);
            break;
        case 2:
            if ((seed >> 40 & 31) != 0)
                break;
            lode_shard_drop_block(f->shard, id.block);
            for (uint32_t j = id.block - 1; j < IDS; j += 7)
                held[j] = 0;
            break;
        default: {
            uint32_t size = held[i] ? held[i] : 1000 + (uint32_t)(seed >> 48) % 3 * 9000;
            lode_status_t status = page_put(f, id, size, &ref);
            cr_assert(status == LODE_OK || status == LODE_ERR_FULL, "%s", lode_error_message());
            refused += status == LODE_ERR_FULL;
            held[i] = status == LODE_OK ? size : held[i];
        }
        }
        cr_assert(page_is_whole(f, id, held[i]) == (held[i] != 0));
    }
    uint64_t pages = 0;
    for (uint32_t i = 0; i < IDS; i++) {
        cr_assert(page_is_whole(f, (lode_page_id_t){1 + i % 7, i / 7 % 3, i}, held[i]) == (held[i] != 0), "%u", i);
        pages += held[i] != 0;
    }
    cr_assert(eq(u64, lode_shard_usage(f->shard).pages, pages));
    cr_assert(gt(u64, refused, 0), "the arena never was full: the test is too easy");
    fixture_destroy(f);
}

Test(shard, scrub_finds_a_flipped_bit)
{
    fixture_t *f = fixture_create(1 << 20);
    lode_page_ref_t ref;
    for (uint32_t i = 0; i < 20; i++)
        cr_assert(page_put(f, (lode_page_id_t){1, 0, i}, PAGE, &ref) == LODE_OK);
    cr_assert(eq(u64, lode_shard_scrub(f->shard, ops), 0));
    f->base[ref.offset + PAGE - 1] ^= 1;
    cr_assert(eq(u64, lode_shard_scrub(f->shard, ops), 1));
    lode_shard_drop_page(f->shard, (lode_page_id_t){1, 0, 19});
    cr_assert(eq(u64, lode_shard_scrub(f->shard, ops), 0));
    fixture_destroy(f);
}

/* ---------------------------------------------------------------- placement */

enum { PAGES = 20000 };

static lode_page_id_t some_page(uint32_t i)
{
    return (lode_page_id_t){.block = 1000 + i / 997, .layer = i % 5, .page = i};
}

static void check_shares(const lode_place_t *places, uint32_t ranks, double tolerance)
{
    uint32_t *count = calloc(ranks, sizeof *count);
    double total = 0;
    for (uint32_t r = 0; r < ranks; r++)
        total += (double)places[r].weight;
    for (uint32_t i = 0; i < PAGES; i++) {
        uint32_t owner = ranks;
        cr_assert(eq(u32, lode_placement(places, ranks, some_page(i), 1, &owner), 1));
        count[owner]++;
    }
    for (uint32_t r = 0; r < ranks; r++) {
        double wanted = PAGES * (double)places[r].weight / total;
        cr_assert(le(dbl, fabs(count[r] - wanted), tolerance * wanted), "rank %u: %u pages, %.0f wanted", r, count[r],
                  wanted);
    }
    free(count);
}

Test(placement, shares_follow_memory)
{
    const lode_place_t equal[] = {{11, 1 << 30}, {22, 1 << 30}, {33, 1 << 30}, {44, 1 << 30}};
    const lode_place_t uneven[] = {{11, 1 << 20}, {22, 2 << 20}, {11, 3 << 20}, {33, 4 << 20}, {22, 0}, {11, 2 << 20}};
    check_shares(equal, 4, 0.04);
    check_shares(uneven, 6, 0.06);
}

Test(placement, owners_on_different_nodes)
{
    enum { RANKS = 12 };
    lode_place_t places[RANKS];
    for (uint32_t r = 0; r < RANKS; r++)
        places[r] = (lode_place_t){.node = 100 + r % 4, .weight = 1 + r};
    for (uint32_t i = 0; i < PAGES; i++) {
        uint32_t all[RANKS], owners[RANKS], seen = 0;
        cr_assert(eq(u32, lode_placement(places, RANKS, some_page(i), RANKS, all), RANKS));
        for (uint32_t r = 0; r < RANKS; r++)
            seen |= 1u << all[r];
        cr_assert(eq(u32, seen, (1u << RANKS) - 1), "each rank once");
        for (uint32_t k = 1; k < RANKS; k++) {
            cr_assert(eq(u32, lode_placement(places, RANKS, some_page(i), k, owners), k));
            cr_assert(memcmp(owners, all, k * sizeof *owners) == 0, "k of them begin the list of all");
        }
        for (uint32_t a = 0; a < 4; a++) {
            for (uint32_t b = 0; b < a; b++)
                cr_assert(places[all[a]].node != places[all[b]].node);
        }
    }
}

Test(placement, leaving_moves_only_own_pages)
{
    enum { RANKS = 9 };
    lode_place_t places[RANKS];
    for (uint32_t r = 0; r < RANKS; r++)
        places[r] = (lode_place_t){.node = 7 + r / 2, .weight = 1 + r % 3};
    uint64_t weight = places[4].weight;
    uint32_t moved = 0;
    for (uint32_t i = 0; i < PAGES; i++) {
        uint32_t before[2], after[2];
        places[4].weight = weight;
        lode_placement(places, RANKS, some_page(i), 2, before);
        places[4].weight = 0;
        lode_placement(places, RANKS, some_page(i), 2, after);
        bool was_owner = before[0] == 4 || before[1] == 4;
        cr_assert(after[0] != 4 && after[1] != 4);
        if (!was_owner)
            cr_assert(before[0] == after[0] && before[1] == after[1]);
        moved += was_owner;
    }
    cr_assert(gt(u32, moved, PAGES / 20));
}

Test(placement, fewer_nodes_than_owners)
{
    const lode_place_t places[] = {{5, 10}, {5, 10}, {5, 0}, {6, 10}};
    uint32_t owners[4] = {9, 9, 9, 9};
    for (uint32_t i = 0; i < 1000; i++) {
        cr_assert(eq(u32, lode_placement(places, 4, some_page(i), 4, owners), 3));
        cr_assert(places[owners[0]].node != places[owners[1]].node);
        cr_assert(places[owners[2]].node == 5);
    }
    cr_assert(eq(u32, owners[3], 9));
    cr_assert(eq(u32, lode_placement(places, 0, some_page(0), 2, owners), 0));
    cr_assert(eq(u32, lode_placement(places, 4, some_page(0), 0, owners), 0));
}

/* Every rank of every machine must agree, and pages stored by an older build must be found. */
Test(placement, is_pinned)
{
    enum { RANKS = 16 };
    lode_place_t places[RANKS];
    uint64_t digest = 0;
    for (uint32_t r = 0; r < RANKS; r++)
        places[r] = (lode_place_t){.node = lode_mix(r / 2, 3), .weight = (1 + r % 3) * (UINT64_C(1) << 30)};
    for (uint32_t i = 0; i < PAGES; i++) {
        uint32_t owners[4];
        lode_placement(places, RANKS, some_page(i), 4, owners);
        for (int k = 0; k < 4; k++)
            digest = lode_mix(digest, owners[k]);
    }
    cr_assert(eq(u64, digest, UINT64_C(0x76db36b7d6ea82d7)));
}
