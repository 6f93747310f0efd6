/* SPDX-License-Identifier: Apache-2.0 */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <unistd.h>

#include "landmarks/landmarks.h"

#define MIB ((size_t)1 << 20)

static const lode_ops_t *ops;

static void setup(void)
{
    cr_assert(lode_ops_get("auto", &ops) == LODE_OK);
}

TestSuite(spec, .timeout = 60);
TestSuite(build, .init = setup, .timeout = 60);
TestSuite(store, .init = setup, .timeout = 60);
TestSuite(score, .init = setup, .timeout = 60);
TestSuite(choose, .init = setup, .timeout = 60);

static double uniform(uint64_t *seed)
{
    *seed = lode_mix(*seed, 17);
    return ((double)(*seed >> 11) + 0.5) * 0x1p-53;
}

static float gauss(uint64_t *seed)
{
    double radius = sqrt(-2 * log(uniform(seed)));
    return (float)(radius * cos(6.283185307179586 * uniform(seed)));
}

static lode_landmark_spec_t spec_of(const char *text)
{
    lode_landmark_spec_t spec = {0};
    cr_assert(lode_landmark_parse(text, &spec) == LODE_OK, "%s", lode_error_message());
    return spec;
}

/* --------------------------------------------------------------------- spec */

Test(spec, parse)
{
    static const struct {
        const char *text;
        lode_landmark_spec_t spec;
    } rows[] = {
        {"landmark16", {LODE_LANDMARK_MEAN, 16, 1, 0}},
        {"landmark16:c8", {LODE_LANDMARK_MEAN, 16, 8, 0}},
        {"landmark16:c16:centre", {LODE_LANDMARK_MEAN, 16, 16, 1}},
        {"landmark8", {LODE_LANDMARK_UNIFORM, 8, 1, 1}},
        {"landmark4:c2", {LODE_LANDMARK_UNIFORM, 4, 2, 1}},
        {"landmark4:nocentre:c4", {LODE_LANDMARK_UNIFORM, 4, 4, 0}},
        {"landmark2", {LODE_LANDMARK_UNIFORM, 2, 1, 1}},
        {"landmark1", {LODE_LANDMARK_UNIFORM, 1, 1, 1}},
        {"landmark2:higgs:nocentre", {LODE_LANDMARK_HIGGS, 2, 1, 0}},
        {"landmark4:c1:higgs", {LODE_LANDMARK_HIGGS, 4, 1, 1}},
        {"landmark2:index", {LODE_LANDMARK_UNIFORM, 2, 1, 1, LODE_INDEX_ON}},
        {"landmark16:noindex:c4", {LODE_LANDMARK_MEAN, 16, 4, 0, LODE_INDEX_OFF}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        lode_landmark_spec_t spec = spec_of(rows[i].text);
        cr_assert(memcmp(&spec, &rows[i].spec, sizeof spec) == 0, "%s", rows[i].text);
        cr_assert(lode_landmark_spec_valid(&spec, 128));
    }
}

Test(spec, refuses)
{
    static const char *const texts[] = {"",
                                        "landmark",
                                        "landmark3",
                                        "landmark22",
                                        "Landmark2",
                                        "landmark2:",
                                        "landmark2:c3",
                                        "landmark2:c",
                                        "landmark2:c32",
                                        "landmark2:c4:c4",
                                        "landmark2:c4:c8",
                                        "landmark2:centre:nocentre",
                                        "landmark2:higgs:higgs",
                                        "landmark2:index:noindex",
                                        "landmark2:index:c2:index",
                                        "landmark8:higgs",
                                        "landmark16:higgs",
                                        "landmark2 :c4",
                                        "landmark2::c4",
                                        "landmark2:HIGGS",
                                        "dense"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        lode_landmark_spec_t spec = {LODE_LANDMARK_MEAN, 77, 77, 77};
        cr_assert(lode_landmark_parse(texts[i], &spec) == LODE_ERR_INVALID, "%s", texts[i]);
        cr_assert(eq(u32, spec.bits, 77), "output written for %s", texts[i]);
        cr_assert(strstr(lode_error_message(), texts[i]) != NULL);
    }
    lode_landmark_spec_t spec;
    lode_landmark_parse("landmark2:c3", &spec);
    cr_assert(strstr(lode_error_message(), "\":c3\"") && strstr(lode_error_message(), ":c16"), "%s",
              lode_error_message());
}

/* -------------------------------------------------------------------- build */

/* The row that a chunk's mean, computed in double, is quantised to. */
static void reference_row(const lode_landmark_spec_t *spec, uint32_t heads, uint32_t dim, const float *keys,
                          uint32_t tokens, const float *mean, uint32_t head, uint32_t landmark, float *out)
{
    uint32_t begin = landmark * spec->chunk, end = begin + spec->chunk < tokens ? begin + spec->chunk : tokens;
    double centred[LODE_MAX_DIM];
    for (uint32_t i = 0; i < dim; i++) {
        double sum = 0;
        for (uint32_t t = begin; t < end; t++)
            sum += keys[((size_t)t * heads + head) * dim + i];
        centred[i] = sum / (end - begin) - (mean ? mean[head * dim + i] : 0);
    }
    for (uint32_t i = 0; i < dim; i++) {
        double sum = 0; /* row i of the Hadamard matrix, by the parity of common bits */
        for (uint32_t j = 0; j < dim; j++)
            sum += __builtin_parity(i & j) ? -centred[j] : centred[j];
        out[i] = (float)(spec->codec == LODE_LANDMARK_MEAN ? centred[i] : sum / sqrt(dim));
    }
}

/* What a row stands for, by scoring unit queries against it. */
static void row_decode(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *row, float *out)
{
    _Alignas(64) static uint8_t tile[LODE_TILE * (2 * LODE_MAX_DIM + 2)];
    _Alignas(64) static float scratch[LODE_MAX_DIM * 128];
    ops->landmark_place(spec, dim, row, 1, tile, 0);
    for (uint32_t i = 0; i < dim; i++) {
        float unit[LODE_MAX_DIM] = {0};
        lode_landmark_query_t query;
        unit[i] = 1;
        ops->query_prepare(spec, dim, unit, 0, &query);
        ops->landmark_score(spec, dim, tile, 1, &query, 1, out + i, 1, scratch);
    }
}

static void check_build(const char *text, uint32_t dim, uint32_t tokens, double tolerance)
{
    enum { HEADS = 3 };
    lode_landmark_spec_t spec = spec_of(text);
    float keys[LODE_PAGE_TOKENS * HEADS * LODE_MAX_DIM], mean[HEADS * LODE_MAX_DIM];
    uint64_t seed = dim + tokens;
    for (size_t i = 0; i < (size_t)tokens * HEADS * dim; i++)
        keys[i] = gauss(&seed) + 3;
    lode_landmark_mean(HEADS, dim, keys, tokens, mean);
    uint32_t landmarks = (uint32_t)lode_landmarks_of(&spec, tokens);
    size_t row_bytes = lode_landmark_row_bytes(&spec, dim);
    uint8_t *rows = malloc(HEADS * landmarks * row_bytes);
    lode_landmark_build(ops, &spec, HEADS, dim, keys, tokens, spec.centre ? mean : NULL, NULL, rows);
    for (uint32_t head = 0; head < HEADS; head++) {
        for (uint32_t i = 0; i < landmarks; i++) {
            float wanted[LODE_MAX_DIM], found[LODE_MAX_DIM];
            double error = 0, whole = 0;
            reference_row(&spec, HEADS, dim, keys, tokens, spec.centre ? mean : NULL, head, i, wanted);
            row_decode(&spec, dim, rows + (head * landmarks + i) * row_bytes, found);
            for (uint32_t j = 0; j < dim; j++) {
                error += ((double)wanted[j] - found[j]) * ((double)wanted[j] - found[j]);
                whole += (double)wanted[j] * wanted[j];
            }
            cr_assert(le(dbl, sqrt(error / (whole + 1e-9)), tolerance), "%s head %u landmark %u", text, head, i);
        }
    }
    free(rows);
}

Test(build, against_double)
{
    static const uint32_t dims[] = {64, 128, 256};
    for (int i = 0; i < 3; i++) {
        check_build("landmark16", dims[i], 17, 0.005);
        check_build("landmark16:c16:centre", dims[i], 63, 0.005);
        check_build("landmark8:c4", dims[i], 64, 0.02);
        check_build("landmark8:c8:nocentre", dims[i], 13, 0.05);
        check_build("landmark4:c2", dims[i], 31, 0.25);
        check_build("landmark2", dims[i], 20, 0.75);
        check_build("landmark2:higgs", dims[i], 3, 0.55);
        check_build("landmark4:higgs:c16", dims[i], 33, 0.2);
    }
    check_build("landmark2", 64, 64, 0.75);
}

Test(build, mean_of_keys)
{
    float keys[5 * 2 * 64], mean[2 * 64];
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        keys[i] = gauss(&seed);
    lode_landmark_mean(2, 64, keys, 5, mean);
    for (uint32_t h = 0; h < 2; h++) {
        for (uint32_t i = 0; i < 64; i++) {
            double sum = 0;
            for (uint32_t t = 0; t < 5; t++)
                sum += keys[(t * 2 + h) * 64 + i];
            cr_assert(epsilon_eq(dbl, mean[h * 64 + i], sum / 5, 1e-6));
        }
    }
    lode_landmark_mean(2, 64, keys, 0, mean);
    cr_assert(eq(flt, mean[0], 0));
}

/* -------------------------------------------------------------------- store */

typedef struct world {
    lode_store_params_t params;
    lode_store_h store;
} world_t;

static world_t world_map(size_t bytes, bool shared, uint32_t layers, uint32_t dim, uint32_t blocks)
{
    world_t w = {.params = {.fd = -1, .bytes = bytes, .layers = layers, .dim = dim, .max_blocks = blocks, .ops = ops}};
    if (shared) {
        w.params.fd = memfd_create("landmarks", 0);
        cr_assert(w.params.fd >= 0 && ftruncate(w.params.fd, (off_t)bytes) == 0);
    }
    w.params.base =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, w.params.fd, 0);
    cr_assert(w.params.base != MAP_FAILED);
    return w;
}

static world_t world_create(size_t bytes, bool shared, uint32_t layers, uint32_t dim, uint32_t blocks)
{
    world_t w = world_map(bytes, shared, layers, dim, blocks);
    cr_assert(lode_store_create(&w.params, &w.store) == LODE_OK, "%s", lode_error_message());
    return w;
}

static void world_destroy(world_t *w)
{
    lode_store_destroy(&w->store);
    cr_assert(w->store == NULL);
    munmap(w->params.base, w->params.bytes);
    if (w->params.fd >= 0)
        close(w->params.fd);
}

static lode_block_info_t info_of(uint64_t id, const char *name, const char *spec, uint32_t heads, uint64_t expected)
{
    lode_block_info_t info = {
        .id = id, .replicas = 1, .kv_head_end = heads, .landmark = spec_of(spec), .expected_tokens = expected};
    snprintf(info.name, sizeof info.name, "%s", name);
    return info;
}

/* Byte i of a landmark's row that only this landmark has. */
static uint8_t row_byte(uint64_t block, uint32_t layer, uint32_t head, uint64_t landmark, size_t i)
{
    return (uint8_t)lode_mix(lode_mix(block, layer), lode_mix(landmark * 64 + head, i));
}

static float mean_value(uint64_t block, uint32_t layer, uint32_t head, uint32_t i)
{
    return (float)(int32_t)lode_mix(block * 977 + layer, head * 1000 + i);
}

static lode_page_hint_t hint_of(uint64_t block, uint32_t layer, uint32_t page)
{
    return (lode_page_hint_t){.rank = page % 7, .size = 1 + page, .offset = lode_mix(block, page) + layer};
}

/* Put a page of made-up rows. */
static lode_status_t page_put(lode_store_h store, uint32_t dim, const lode_block_info_t *info, uint32_t layer,
                              uint32_t page, uint32_t tokens)
{
    static uint8_t rows[8 * LODE_PAGE_TOKENS * (2 * LODE_MAX_DIM + 2)];
    static float mean[8 * LODE_MAX_DIM];
    uint32_t heads = info->kv_head_end - info->kv_head_begin;
    size_t count = lode_landmarks_of(&info->landmark, tokens), bytes = lode_landmark_row_bytes(&info->landmark, dim);
    uint64_t first = (uint64_t)page * lode_landmarks_per_page(&info->landmark);
    uint8_t *at = rows;
    for (uint32_t head = 0; head < heads; head++) {
        for (size_t n = 0; n < count; n++) {
            for (size_t i = 0; i < bytes; i++)
                *at++ = row_byte(info->id, layer, head, first + n, i);
        }
        for (uint32_t i = 0; i < dim; i++)
            mean[head * dim + i] = mean_value(info->id, layer, head, i);
    }
    lode_page_hint_t hints[2] = {hint_of(info->id, layer, page), hint_of(info->id, layer + 100, page)};
    return lode_store_put(store, info->id, layer, page, tokens, rows, page == 0 ? mean : NULL, hints, 2);
}

/* For what also runs in processes of the test's own, where Criterion's assertions reach nobody. */
static void must(bool condition)
{
    if (!condition) {
        fprintf(stderr, "%s\n", lode_error_message());
        abort();
    }
}

static void append(lode_store_h store, uint32_t dim, const lode_block_info_t *info, uint32_t layer, uint32_t begin,
                   uint32_t end)
{
    for (uint32_t page = begin; page < end; page++) {
        must(page_put(store, dim, info, layer, page, LODE_PAGE_TOKENS) == LODE_OK);
        must(lode_store_publish(store, info->id, layer, (uint64_t)(page + 1) * LODE_PAGE_TOKENS) == LODE_OK);
    }
}

/* Whether a landmark's row is in place in its tile. */
static bool row_in_place(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, uint64_t landmark,
                         const lode_block_info_t *info, uint32_t layer, uint32_t head, uint64_t number)
{
    size_t row_bytes = lode_landmark_row_bytes(spec, dim),
           code_bytes = spec->codec == LODE_LANDMARK_MEAN ? row_bytes : row_bytes - 2;
    const uint8_t *tile = tiles + landmark / LODE_TILE * lode_landmark_tile_bytes(spec, dim);
    size_t place = landmark % LODE_TILE;
    for (size_t i = 0; i < row_bytes; i++) {
        size_t at = place / 16 * 16 * code_bytes + i / 4 * 64 + place % 16 * 4 + i % 4;
        if (i >= code_bytes)
            at = LODE_TILE * code_bytes + 2 * place + i - code_bytes;
        if (tile[at] != row_byte(info->id, layer, head, number, i))
            return false;
    }
    return true;
}

/* Spans of one head follow each other without gap, each landmark is the one put; every `stride`-th is looked at. */
static bool spans_hold(lode_store_h store, uint32_t dim, const lode_block_info_t *info, uint32_t slot, uint32_t layer,
                       uint32_t head, uint64_t tokens, uint32_t stride)
{
    uint64_t limit = lode_landmarks_of(&info->landmark, tokens), first = 0, count;
    const uint8_t *tiles;
    while ((count = lode_store_span(store, slot, layer, head, first, limit, &tiles)) > 0) {
        if ((uintptr_t)tiles % 64 != 0 || first + count > limit)
            return false;
        for (uint64_t i = 0; i < count; i += stride) {
            if (!row_in_place(&info->landmark, dim, tiles, i, info, layer, head, first + i))
                return false;
        }
        first += count;
    }
    return first == limit;
}

static bool layer_holds(lode_store_h store, uint32_t dim, const lode_block_info_t *info, uint32_t slot, uint32_t layer,
                        uint32_t stride)
{
    uint64_t tokens = lode_store_tokens(store, slot, layer);
    for (uint32_t head = 0; head < info->kv_head_end - info->kv_head_begin; head++) {
        const float *mean = lode_store_mean(store, slot, layer, head);
        if (!spans_hold(store, dim, info, slot, layer, head, tokens, stride))
            return false;
        if (tokens > 0 && info->landmark.centre) {
            for (uint32_t i = 0; i < dim; i++) {
                if (mean == NULL || mean[i] != mean_value(info->id, layer, head, i))
                    return false;
            }
        }
    }
    for (uint32_t page = 0; (uint64_t)page * LODE_PAGE_TOKENS < tokens; page++) {
        lode_page_hint_t hints[LODE_REPLICAS_MAX], wanted = hint_of(info->id, layer, page);
        uint32_t count;
        if (!lode_store_hints(store, slot, layer, page, hints, &count) || count != 2 ||
            memcmp(&hints[0], &wanted, sizeof wanted) != 0)
            return false;
    }
    return true;
}

static bool has_page(lode_store_h store, uint32_t slot, uint32_t layer, uint32_t page)
{
    lode_page_hint_t hints[LODE_REPLICAS_MAX];
    uint32_t count;
    return lode_store_hints(store, slot, layer, page, hints, &count);
}

static void check_growth(const char *text, uint32_t dim, uint32_t heads, uint64_t expected, uint32_t pages)
{
    world_t w = world_create(512 * MIB, true, 2, dim, 8);
    lode_block_info_t info = info_of(5, "doc", text, heads, expected);
    uint32_t slot;
    cr_assert(lode_store_add(w.store, &info, &slot) == LODE_OK);
    append(w.store, dim, &info, 1, 0, pages);
    append(w.store, dim, &info, 0, 0, 1);
    uint32_t rest = 17;
    cr_assert(page_put(w.store, dim, &info, 1, pages, rest) == LODE_OK);
    cr_assert(lode_store_publish(w.store, 5, 1, (uint64_t)pages * LODE_PAGE_TOKENS + rest) == LODE_OK);
    cr_assert(eq(u64, lode_store_tokens(w.store, slot, 1), (uint64_t)pages * LODE_PAGE_TOKENS + rest));
    cr_assert(layer_holds(w.store, dim, &info, slot, 0, 1), "%s", text);
    cr_assert(layer_holds(w.store, dim, &info, slot, 1, 1), "%s", text);
    bool has_mean = lode_store_mean(w.store, slot, 1, 0) != NULL;
    cr_assert(has_mean == (info.landmark.centre != 0));
    cr_assert(has_page(w.store, slot, 1, pages + 1) == false);
    cr_assert(has_page(w.store, slot, 0, 1) == false);
    world_destroy(&w);
}

/* What a new node is sent: the rows of a page as they came, whatever tiles they lie in. */
static void check_rows(const char *text, uint32_t dim)
{
    static uint8_t rows[3 * LODE_PAGE_TOKENS * (2 * LODE_MAX_DIM + 2)];
    enum { HEADS = 3, PAGES = 20 };
    world_t w = world_create(512 * MIB, true, 2, dim, 8);
    lode_block_info_t info = info_of(5, "doc", text, HEADS, 0);
    uint32_t slot, tokens = LODE_PAGE_TOKENS;
    cr_assert(lode_store_add(w.store, &info, &slot) == LODE_OK);
    append(w.store, dim, &info, 1, 0, PAGES);
    cr_assert(page_put(w.store, dim, &info, 1, PAGES, 21) == LODE_OK);
    size_t bytes = lode_landmark_row_bytes(&info.landmark, dim);
    for (uint32_t page = 0; page <= PAGES; page++) {
        tokens = page < PAGES ? LODE_PAGE_TOKENS : 21;
        cr_assert(eq(u32, lode_store_rows(w.store, slot, 1, page, rows), tokens));
        const uint8_t *at = rows;
        uint64_t first = (uint64_t)page * lode_landmarks_per_page(&info.landmark);
        for (uint32_t head = 0; head < HEADS; head++)
            for (size_t n = 0; n < lode_landmarks_of(&info.landmark, tokens); n++)
                for (size_t i = 0; i < bytes; i++, at++)
                    cr_assert(at[0] == row_byte(5, 1, head, first + n, i), "%s page %u head %u row %zu byte %zu", text,
                              page, head, n, i);
    }
    cr_assert(eq(u32, lode_store_rows(w.store, slot, 1, PAGES + 1, rows), 0));
    cr_assert(eq(u32, lode_store_rows(w.store, slot, 0, 0, rows), 0));
    world_destroy(&w);
}

Test(store, rows_come_back_as_they_went_in)
{
    check_rows("landmark2", 128);
    check_rows("landmark8:c4", 64);
    check_rows("landmark16:c8", 64);
    check_rows("landmark4:c16:higgs", 256);
    check_rows("landmark2:higgs:nocentre", 64);
}

static uint32_t owners_of(lode_store_h store, uint32_t slot, uint32_t page, lode_page_hint_t *hints)
{
    uint32_t count;
    cr_assert(lode_store_hints(store, slot, 0, page, hints, &count));
    return count;
}

/* Hints of a page are replaced while it is visible; a lost rank leaves those of all pages. */
Test(store, owners_change)
{
    world_t w = world_create(128 * MIB, true, 1, 64, 8);
    lode_block_info_t info = info_of(5, "doc", "landmark2", 2, 0), other = info_of(6, "gone", "landmark2", 2, 0);
    const lode_page_hint_t one = {.rank = 1, .size = 10, .offset = 100}, two = {2, 20, 200}, zero = {0, 5, 50};
    lode_page_hint_t hints[LODE_REPLICAS_MAX];
    uint32_t slot;
    cr_assert(lode_store_add(w.store, &info, &slot) == LODE_OK);
    append(w.store, 64, &info, 0, 0, 30);
    for (uint32_t page = 0; page < 30; page++)
        cr_assert(lode_store_owners(w.store, 5, 0, page, (lode_page_hint_t[]){one, two, zero}, 3) == LODE_OK);
    cr_assert(eq(u32, owners_of(w.store, slot, 17, hints), 3));
    cr_assert(memcmp(&hints[1], &two, sizeof two) == 0 && memcmp(&hints[2], &zero, sizeof zero) == 0);
    cr_assert(lode_store_owners(w.store, 5, 0, 17, &two, 1) == LODE_OK);
    lode_store_forget_rank(w.store, 2);
    cr_assert(eq(u32, owners_of(w.store, slot, 17, hints), 0));
    for (uint32_t page = 0; page < 30; page++) {
        uint32_t count = owners_of(w.store, slot, page, hints);
        cr_assert(page == 17 || (count == 2 && memcmp(&hints[0], &one, sizeof one) == 0 &&
                                 memcmp(&hints[1], &zero, sizeof zero) == 0));
    }
    cr_assert(lode_store_owners(w.store, 5, 0, 30, &two, 1) == LODE_ERR_INVALID, "it was never put");
    cr_assert(lode_store_owners(w.store, 5, 1, 0, &two, 1) == LODE_ERR_INVALID, "no such layer");
    cr_assert(lode_store_owners(w.store, 6, 0, 0, &two, 1) == LODE_ERR_NOT_FOUND);
    cr_assert(lode_store_add(w.store, &other, &slot) == LODE_OK);
    append(w.store, 64, &other, 0, 0, 3);
    cr_assert(lode_store_drop(w.store, 6) == LODE_OK);
    lode_store_forget_rank(w.store, 0); /* a dropped block is left alone */
    cr_assert(lode_store_owners(w.store, 6, 0, 0, &two, 1) == LODE_ERR_NOT_FOUND);
    world_destroy(&w);
}

Test(store, growth_over_extents)
{
    check_growth("landmark2", 128, 3, 0, 70);
    check_growth("landmark2:c16", 64, 2, 0, 300);
    check_growth("landmark4:c4:nocentre", 128, 1, 1000, 140);
    check_growth("landmark8:c8", 256, 2, 0, 57);
    check_growth("landmark16:c2", 64, 1, 0, 24);
    check_growth("landmark4:higgs", 64, 8, 100000, 40);
}

Test(store, many_blocks)
{
    enum { BLOCKS = 200 };
    world_t w = world_create(1024 * MIB, true, 3, 64, BLOCKS);
    static const char *const specs[] = {"landmark2", "landmark16:c8", "landmark4:higgs:c4"};
    for (uint32_t b = 0; b < BLOCKS; b++) {
        char name[32];
        uint32_t slot = 999;
        snprintf(name, sizeof name, "block %u", b);
        lode_block_info_t info = info_of(1000 + b, name, specs[b % 3], 1 + b % 4, 0);
        cr_assert(lode_store_add(w.store, &info, &slot) == LODE_OK);
        cr_assert(eq(u32, slot, b));
        append(w.store, 64, &info, b % 3, 0, b % 11);
    }
    cr_assert(eq(u32, lode_store_slots(w.store), BLOCKS));
    for (uint32_t b = 0; b < BLOCKS; b++) {
        char name[32];
        uint32_t slot = 999, by_id = 999;
        snprintf(name, sizeof name, "block %u", b);
        cr_assert(lode_store_find(w.store, name, 0, 1 + b % 4, &slot) == LODE_OK);
        cr_assert(lode_store_find_id(w.store, 1000 + b, &by_id) == LODE_OK);
        cr_assert(eq(u32, slot, by_id));
        lode_block_info_t info = *lode_store_info(w.store, slot);
        cr_assert(eq(u64, info.id, 1000 + b));
        cr_assert(eq(str, info.name, name));
        cr_assert(eq(u64, lode_store_tokens(w.store, slot, b % 3), b % 11 * 64));
        cr_assert(layer_holds(w.store, 64, &info, slot, b % 3, 1));
    }
    lode_block_info_t more = info_of(7, "one more", "landmark2", 1, 0);
    uint32_t slot;
    cr_assert(lode_store_add(w.store, &more, &slot) == LODE_ERR_FULL);
    cr_assert(strstr(lode_error_message(), "200 blocks") != NULL, "%s", lode_error_message());
    world_destroy(&w);
}

Test(store, names_and_states)
{
    world_t w = world_create(64 * MIB, true, 1, 64, 8);
    lode_block_info_t a = info_of(1, "doc", "landmark2", 2, 0), b = info_of(2, "doc", "landmark2", 2, 0);
    uint32_t slot, other;
    cr_assert(lode_store_add(w.store, &a, &slot) == LODE_OK);
    cr_assert(lode_store_add(w.store, &a, &other) == LODE_OK && other == slot, "the same id again is a retry");
    cr_assert(lode_store_add(w.store, &b, &other) == LODE_ERR_NAME_IN_USE);
    cr_assert(strstr(lode_error_message(), "\"doc\"") != NULL);
    b.kv_head_begin = 2, b.kv_head_end = 4; /* another range of heads is another block */
    cr_assert(lode_store_add(w.store, &b, &other) == LODE_OK && other != slot);
    cr_assert(lode_store_find(w.store, "doc", 2, 4, &other) == LODE_OK);
    cr_assert(eq(u64, lode_store_info(w.store, other)->id, 2));
    cr_assert(lode_store_find(w.store, "doc", 1, 4, &other) == LODE_ERR_NOT_FOUND);
    cr_assert(lode_store_find(w.store, "do", 0, 2, &other) == LODE_ERR_NOT_FOUND);
    cr_assert(eq(int, lode_store_state(w.store, slot, 1), LODE_BLOCK_OPEN));
    cr_assert(eq(int, lode_store_state(w.store, slot, 2), LODE_BLOCK_DROPPED));
    append(w.store, 64, &a, 0, 0, 2);
    uint64_t tokens = lode_store_tokens(w.store, slot, 0);
    cr_assert(lode_store_seal(w.store, 1, tokens + 1) == LODE_ERR_INVALID, "sealed with a token missing");
    cr_assert(eq(int, lode_store_state(w.store, slot, 1), LODE_BLOCK_OPEN));
    cr_assert(lode_store_seal(w.store, 1, tokens) == LODE_OK && lode_store_seal(w.store, 1, tokens) == LODE_OK);
    cr_assert(eq(int, lode_store_state(w.store, slot, 1), LODE_BLOCK_SEALED));
    cr_assert(page_put(w.store, 64, &a, 0, 1, 64) == LODE_OK, "a retry of a visible page");
    cr_assert(page_put(w.store, 64, &a, 0, 2, 64) == LODE_ERR_SEALED);
    cr_assert(lode_store_drop(w.store, 1) == LODE_OK && lode_store_drop(w.store, 1) == LODE_OK);
    cr_assert(lode_store_drop(w.store, 12345) == LODE_OK);
    cr_assert(eq(int, lode_store_state(w.store, slot, 1), LODE_BLOCK_DROPPED));
    cr_assert(lode_store_find_id(w.store, 1, &other) == LODE_ERR_NOT_FOUND);
    cr_assert(lode_store_find(w.store, "doc", 0, 2, &other) == LODE_ERR_NOT_FOUND);
    cr_assert(page_put(w.store, 64, &a, 0, 2, 64) == LODE_ERR_NOT_FOUND);
    cr_assert(lode_store_add(w.store, &a, &other) == LODE_ERR_DROPPED);
    lode_block_info_t again = info_of(3, "doc", "landmark2", 2, 0);
    cr_assert(lode_store_add(w.store, &again, &other) == LODE_OK && other != slot, "the name is free, the slot is not");
    lode_store_collect(w.store, lode_now_ns() + 1);
    lode_block_info_t last = info_of(4, "last", "landmark2", 2, 0);
    cr_assert(lode_store_add(w.store, &last, &other) == LODE_OK && other == slot, "now it is");
    cr_assert(eq(u64, lode_store_tokens(w.store, slot, 0), 0));
    cr_assert(lode_store_mean(w.store, slot, 0, 0) == NULL);
    world_destroy(&w);
}

Test(store, refuses_what_cannot_be)
{
    world_t w = world_create(64 * MIB, true, 2, 64, 4);
    lode_block_info_t info = info_of(1, "doc", "landmark2", 2, 0), wrong;
    uint32_t slot;
    static uint8_t rows[2 * 64 * 32];
    static float mean[128];
    wrong = info, wrong.id = 0;
    cr_assert(lode_store_add(w.store, &wrong, &slot) == LODE_ERR_INVALID);
    wrong = info, wrong.name[0] = 0;
    cr_assert(lode_store_add(w.store, &wrong, &slot) == LODE_ERR_INVALID);
    wrong = info, memset(wrong.name, 'x', sizeof wrong.name);
    cr_assert(lode_store_add(w.store, &wrong, &slot) == LODE_ERR_INVALID);
    wrong = info, wrong.landmark.bits = 3;
    cr_assert(lode_store_add(w.store, &wrong, &slot) == LODE_ERR_INVALID);
    wrong = info, wrong.kv_head_end = 0;
    cr_assert(lode_store_add(w.store, &wrong, &slot) == LODE_ERR_INVALID);
    cr_assert(lode_store_add(w.store, &info, &slot) == LODE_OK);
    cr_assert(lode_store_put(w.store, 1, 0, 0, 0, rows, mean, NULL, 0) == LODE_ERR_INVALID);
    cr_assert(lode_store_put(w.store, 1, 0, 0, 65, rows, mean, NULL, 0) == LODE_ERR_INVALID);
    cr_assert(lode_store_put(w.store, 1, 2, 0, 64, rows, mean, NULL, 0) == LODE_ERR_INVALID);
    cr_assert(lode_store_put(w.store, 1, 0, 0, 64, rows, NULL, NULL, 0) == LODE_ERR_INVALID, "no mean");
    cr_assert(lode_store_put(w.store, 9, 0, 0, 64, rows, mean, NULL, 0) == LODE_ERR_NOT_FOUND);
    cr_assert(lode_store_put(w.store, 1, 0, UINT32_MAX, 64, rows, mean, NULL, 0) == LODE_ERR_FULL);
    cr_assert(lode_store_put(w.store, 1, 0, 0, 64, rows, mean, NULL, 0) == LODE_OK);
    cr_assert(has_page(w.store, slot, 0, 0));
    cr_assert(lode_store_publish(w.store, 1, 0, 65) == LODE_ERR_INVALID, "page 1 was never put");
    cr_assert(eq(u64, lode_store_tokens(w.store, slot, 0), 0));
    cr_assert(lode_store_publish(w.store, 1, 0, 64) == LODE_OK);
    cr_assert(lode_store_publish(w.store, 1, 0, 10) == LODE_OK, "an older message that comes late");
    cr_assert(eq(u64, lode_store_tokens(w.store, slot, 0), 64));
    cr_assert(lode_store_put(w.store, 1, 0, 1, 9, rows, NULL, NULL, 0) == LODE_OK);
    cr_assert(lode_store_publish(w.store, 1, 0, 74) == LODE_ERR_INVALID, "only 9 tokens of page 1 were put");
    cr_assert(lode_store_publish(w.store, 1, 0, 73) == LODE_OK);
    world_destroy(&w);
}

Test(store, attach_checks)
{
    world_t w = world_map(64 * MIB, true, 2, 64, 4), other = w;
    cr_assert(lode_store_attach(&w.params, &other.store) == LODE_ERR_FORMAT);
    cr_assert(lode_store_create(&w.params, &w.store) == LODE_OK);
    other.params.layers = 3;
    cr_assert(lode_store_attach(&other.params, &other.store) == LODE_ERR_INVALID);
    other.params.layers = 2;
    cr_assert(lode_store_attach(&other.params, &other.store) == LODE_OK);
    lode_store_destroy(&other.store);
    world_t small = world_map(4096, false, 64, 64, 1000);
    cr_assert(lode_store_create(&small.params, &small.store) == LODE_ERR_INVALID);
    cr_assert(strstr(lode_error_message(), "4096 bytes") != NULL);
    world_destroy(&w);
}

/* An append that failed half-way is taken back and done again with other tokens before anything was published. */
Test(store, unpublished_pages_are_rewritten)
{
    world_t w = world_create(64 * MIB, false, 1, 64, 4);
    lode_block_info_t info = info_of(1, "doc", "landmark2", 2, 0);
    uint32_t slot;
    static uint8_t rows[2 * 64 * 32];
    static float mean[128] = {7};
    memset(rows, 0xaa, sizeof rows);
    cr_assert(lode_store_add(w.store, &info, &slot) == LODE_OK);
    cr_assert(lode_store_put(w.store, 1, 0, 0, 64, rows, mean, NULL, 0) == LODE_OK);
    cr_assert(lode_store_put(w.store, 1, 0, 1, 64, rows, NULL, NULL, 0) == LODE_OK);
    append(w.store, 64, &info, 0, 0, 2);
    cr_assert(layer_holds(w.store, 64, &info, slot, 0, 1));
    world_destroy(&w);
}

static void check_reuse(bool shared)
{
    world_t w = world_create(128 * MIB, shared, 2, 64, 4);
    const uint8_t *tiles;
    uint64_t used = 0, empty = lode_store_used(w.store);
    for (uint32_t round = 0; round < 30; round++) {
        lode_block_info_t info = info_of(10 + round, "doc", "landmark4:c16", 2, round % 3 * 4000);
        uint32_t slot;
        cr_assert(lode_store_add(w.store, &info, &slot) == LODE_OK, "%s", lode_error_message());
        cr_assert(lode_store_put(w.store, info.id, 0, 0, 1, (uint8_t[2 * 34]){0}, (float[128]){0}, NULL, 0) == LODE_OK);
        cr_assert(lode_store_publish(w.store, info.id, 0, 1) == LODE_OK);
        cr_assert(eq(u64, lode_store_span(w.store, slot, 0, 0, 0, 1, &tiles), 1));
        for (size_t i = 0; i < lode_landmark_tile_bytes(&info.landmark, 64); i++)
            cr_assert(eq(u8, tiles[i], 0), "round %u: reused memory is not zero", round);
        cr_assert(has_page(w.store, slot, 0, 1) == false);
        append(w.store, 64, &info, 1, 0, 100);
        cr_assert(layer_holds(w.store, 64, &info, slot, 1, 1));
        used = lode_store_used(w.store) > used ? lode_store_used(w.store) : used;
        cr_assert(lode_store_drop(w.store, info.id) == LODE_OK);
        lode_store_collect(w.store, 1);
        cr_assert(gt(u64, lode_store_used(w.store), empty + 20000), "not collected before its time");
        lode_store_collect(w.store, lode_now_ns() + 1);
        cr_assert(le(u64, lode_store_used(w.store), empty + 4096), "round %u", round);
    }
    cr_assert(lt(u64, used, 2 * MIB));
    world_destroy(&w);
}

Test(store, reuse_is_zero_filled)
{
    check_reuse(true);
    check_reuse(false);
}

Test(store, full_of_addresses)
{
    world_t w = world_create(2 * MIB, false, 1, 64, 4);
    lode_block_info_t info = info_of(1, "doc", "landmark2", 4, 0);
    uint32_t slot, page = 0;
    lode_status_t status = LODE_OK;
    cr_assert(lode_store_add(w.store, &info, &slot) == LODE_OK);
    for (; status == LODE_OK; page++) {
        status = page_put(w.store, 64, &info, 0, page, 64);
        if (status == LODE_OK)
            cr_assert(lode_store_publish(w.store, 1, 0, (page + 1) * 64) == LODE_OK);
    }
    cr_assert(eq(int, status, LODE_ERR_FULL));
    cr_assert(gt(u32, page, 50));
    cr_assert(strstr(lode_error_message(), "store is full") != NULL, "%s", lode_error_message());
    cr_assert(layer_holds(w.store, 64, &info, slot, 0, 1), "what was there stays");
    lode_store_drop(w.store, 1);
    lode_store_collect(w.store, lode_now_ns() + 1);
    lode_block_info_t next = info_of(2, "doc", "landmark2", 4, 0);
    cr_assert(lode_store_add(w.store, &next, &slot) == LODE_OK);
    append(w.store, 64, &next, 0, 0, page - 1);
    world_destroy(&w);
}

/* A file system that runs out of memory must be an error, not SIGBUS. */
Test(store, full_of_memory)
{
    if ((unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) ||
        mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 || mount("tmpfs", "/tmp", "tmpfs", 0, "size=1m") != 0)
        cr_skip_test("no right to mount a small tmpfs");
    world_t w = {.params = {.bytes = 256 * MIB, .layers = 2, .dim = 64, .max_blocks = 4, .ops = ops}};
    w.params.fd = open("/tmp/landmarks", O_RDWR | O_CREAT, 0600);
    cr_assert(w.params.fd >= 0 && ftruncate(w.params.fd, 256 * MIB) == 0);
    w.params.base = mmap(NULL, w.params.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, w.params.fd, 0);
    cr_assert(w.params.base != MAP_FAILED);
    cr_assert(lode_store_create(&w.params, &w.store) == LODE_OK);
    for (uint64_t id = 1; id < 4; id++) {
        lode_block_info_t info = info_of(id, "doc", "landmark8", 2, 100000);
        uint32_t slot, page = 0;
        cr_assert(lode_store_add(w.store, &info, &slot) == LODE_OK, "%s", lode_error_message());
        lode_status_t status = LODE_OK;
        for (; status == LODE_OK; page += status == LODE_OK) {
            status = page_put(w.store, 64, &info, 0, page, 64);
            if (status == LODE_OK)
                cr_assert(lode_store_publish(w.store, id, 0, (page + 1) * 64) == LODE_OK);
        }
        cr_assert(eq(int, status, LODE_ERR_FULL), "%s", lode_error_message());
        cr_assert(strstr(lode_error_message(), "/dev/shm") != NULL, "%s", lode_error_message());
        cr_assert(gt(u32, page, 50));
        cr_assert(layer_holds(w.store, 64, &info, slot, 0, 1));
        cr_assert(lode_store_drop(w.store, id) == LODE_OK);
        lode_store_collect(w.store, lode_now_ns() + 1);
    }
    world_destroy(&w);
}

static void check_cost(const char *text, uint64_t most)
{
    world_t w = world_create(4096 * MIB, true, 1, 128, 4);
    struct stat before, after;
    lode_block_info_t info = info_of(1, "doc", text, 8, 1 << 20);
    uint32_t slot;
    cr_assert(lode_store_add(w.store, &info, &slot) == LODE_OK);
    cr_assert(fstat(w.params.fd, &before) == 0);
    append(w.store, 128, &info, 0, 0, 3);
    cr_assert(fstat(w.params.fd, &after) == 0);
    cr_assert(le(u64, (uint64_t)(after.st_blocks - before.st_blocks) * 512, most), "%s", text);
    cr_assert(le(u64, lode_store_used(w.store), most), "%s", text);
    lode_store_drop(w.store, 1);
    lode_store_collect(w.store, lode_now_ns() + 1);
    cr_assert(fstat(w.params.fd, &after) == 0);
    cr_assert(le(u64, (uint64_t)(after.st_blocks - before.st_blocks) * 512, 8192), "memory was not given back");
    world_destroy(&w);
}

/* A long first extent must not cost its whole size for a short document. */
Test(store, short_documents_cost_little)
{
    check_cost("landmark2:noindex", 640 << 10);
    check_cost("landmark2:index", 896 << 10);
}

/* ------------------------------------------------- store: several processes */

enum { NAMES = 5, CHURN_LAYERS = 2, CHURN_DIM = 64, CHURN_PAGES = 40 };

/* What a keeper does all day; ids count up from *next. Only blocks dropped a while ago are collected. */
static void keeper_round(lode_store_h store, uint64_t *next, uint64_t *seed, uint64_t kept_ns)
{
    static const char *const specs[] = {"landmark2", "landmark4:c16", "landmark16:c8"};
    char name[16];
    uint32_t slot;
    *seed = lode_mix(*seed, 99);
    snprintf(name, sizeof name, "doc %u", (uint32_t)(*seed % NAMES));
    if (lode_store_find(store, name, 0, 2, &slot) != LODE_OK) {
        lode_block_info_t info = info_of(*next, name, specs[*next % 3], 2, *seed >> 32 & 2047);
        ++*next;
        lode_status_t status = lode_store_add(store, &info, &slot);
        must(status == LODE_OK || status == LODE_ERR_FULL); /* full of dropped blocks whose time has not come */
        lode_store_collect(store, lode_now_ns() - kept_ns);
        return;
    }
    lode_block_info_t info = *lode_store_info(store, slot);
    uint32_t layer = *seed >> 16 & 1;
    uint32_t page = (uint32_t)(lode_store_tokens(store, slot, layer) / LODE_PAGE_TOKENS);
    if (page < CHURN_PAGES)
        append(store, CHURN_DIM, &info, layer, page, page + 1 + (*seed >> 20 & 3));
    else
        must(lode_store_drop(store, info.id) == LODE_OK);
    lode_store_collect(store, lode_now_ns() - kept_ns);
}

/* One look at one block. @return false if it shows what was never put, although it lived all the while. */
static bool reader_look(lode_store_h store, uint64_t *seed)
{
    char name[16];
    uint32_t slot;
    *seed = lode_mix(*seed, 98);
    snprintf(name, sizeof name, "doc %u", (uint32_t)(*seed % NAMES));
    if (lode_store_find(store, name, 0, 2, &slot) != LODE_OK)
        return true;
    lode_block_info_t info = *lode_store_info(store, slot);
    if (lode_store_state(store, slot, info.id) == LODE_BLOCK_DROPPED)
        return true;
    uint32_t layer = *seed >> 16 & 1;
    if (layer_holds(store, CHURN_DIM, &info, slot, layer, 7))
        return true;
    return lode_store_state(store, slot, info.id) == LODE_BLOCK_DROPPED;
}

Test(store, reader_in_another_process)
{
    world_t w = world_create(256 * MIB, true, CHURN_LAYERS, CHURN_DIM, 16);
    pid_t keeper = fork();
    if (keeper == 0) {
        uint64_t next = 1, seed = 4;
        for (;;)
            keeper_round(w.store, &next, &seed, 200000000);
    }
    world_t reader = {.params = w.params};
    cr_assert(lode_store_attach(&reader.params, &reader.store) == LODE_OK);
    uint64_t seed = 5, end = lode_now_ns() + 1500000000, looks = 0;
    for (; lode_now_ns() < end; looks++) {
        if (!reader_look(reader.store, &seed)) {
            kill(keeper, SIGKILL);
            cr_assert(false, "look %lu saw what was not put", (unsigned long)looks);
        }
    }
    kill(keeper, SIGKILL);
    int status;
    waitpid(keeper, &status, 0);
    bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    cr_assert(killed, "the keeper failed");
    cr_assert(gt(u64, looks, 100));
    lode_store_destroy(&reader.store);
    world_destroy(&w);
}

/* All that shows is right, and everything can be given back but for what a kill may have lost. */
static void check_all(lode_store_h store)
{
    for (uint32_t i = 0; i < NAMES; i++) {
        char name[16];
        uint32_t slot;
        snprintf(name, sizeof name, "doc %u", i);
        if (lode_store_find(store, name, 0, 2, &slot) != LODE_OK)
            continue;
        lode_block_info_t info = *lode_store_info(store, slot);
        for (uint32_t layer = 0; layer < CHURN_LAYERS; layer++)
            cr_assert(layer_holds(store, CHURN_DIM, &info, slot, layer, 1), "%s layer %u", name, layer);
    }
}

Test(store, successor_of_a_killed_keeper)
{
    world_t w = world_create(1024 * MIB, true, CHURN_LAYERS, CHURN_DIM, 16);
    uint64_t next = 1, seed = 1;
    for (int round = 0; round < 25; round++) {
        pid_t keeper = fork();
        if (keeper == 0) {
            uint64_t mine = (uint64_t)(round + 1) << 32;
            for (;;)
                keeper_round(w.store, &mine, &seed, 0);
        }
        usleep(4000 + round * 1300);
        kill(keeper, SIGKILL);
        int status;
        waitpid(keeper, &status, 0);
        bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        cr_assert(killed, "the keeper failed");
        lode_store_h successor;
        cr_assert(lode_store_attach(&w.params, &successor) == LODE_OK);
        check_all(successor);
        seed += (uint64_t)round;
        for (int i = 0; i < 40; i++)
            keeper_round(successor, &next, &seed, 0);
        check_all(successor);
        lode_store_destroy(&successor);
    }
    world_destroy(&w);
}

/* -------------------------------------------------------------------- score */

typedef struct keys {
    enum { KEY_DIM = 128, KEY_TOKENS = 2048 } unused;
    float key[KEY_TOKENS][KEY_DIM];
    float q[KEY_DIM];
    float exact[KEY_TOKENS];
} keys_t;

/* Keys around a common mean, some channels much wider than others, and a query that likes some of them. */
static keys_t *keys_create(float common, uint64_t seed)
{
    keys_t *keys = malloc(sizeof *keys);
    float mean[KEY_DIM], width[KEY_DIM];
    for (int i = 0; i < KEY_DIM; i++) {
        mean[i] = common * gauss(&seed);
        width[i] = expf(0.5f * gauss(&seed));
    }
    for (int t = 0; t < KEY_TOKENS; t++) {
        for (int i = 0; i < KEY_DIM; i++)
            keys->key[t][i] = mean[i] + width[i] * gauss(&seed);
    }
    for (int i = 0; i < KEY_DIM; i++)
        keys->q[i] = gauss(&seed) / sqrtf(KEY_DIM);
    for (int t = 0; t < KEY_TOKENS; t++) {
        double sum = 0;
        for (int i = 0; i < KEY_DIM; i++)
            sum += (double)keys->q[i] * keys->key[t][i];
        keys->exact[t] = (float)sum;
    }
    return keys;
}

/* Build, store and score, as an append and a step would. */
static void keys_score(const keys_t *keys, const char *text, float *scores)
{
    world_t w = world_create(64 * MIB, false, 1, KEY_DIM, 1);
    lode_block_info_t info = info_of(1, "doc", text, 1, 0);
    uint32_t slot;
    float mean[KEY_DIM];
    static uint8_t rows[LODE_PAGE_TOKENS * (2 * KEY_DIM + 2)];
    _Alignas(64) static float scratch[4 * KEY_DIM * 128];
    lode_landmark_mean(1, KEY_DIM, keys->key[0], KEY_TOKENS, mean);
    cr_assert(lode_store_add(w.store, &info, &slot) == LODE_OK);
    for (uint32_t page = 0; page < KEY_TOKENS / LODE_PAGE_TOKENS; page++) {
        lode_landmark_build(ops, &info.landmark, 1, KEY_DIM, keys->key[page * LODE_PAGE_TOKENS], LODE_PAGE_TOKENS,
                            info.landmark.centre ? mean : NULL, NULL, rows);
        cr_assert(lode_store_put(w.store, 1, 0, page, LODE_PAGE_TOKENS, rows,
                                 info.landmark.centre && page == 0 ? mean : NULL, NULL, 0) == LODE_OK);
    }
    cr_assert(lode_store_publish(w.store, 1, 0, KEY_TOKENS) == LODE_OK);
    lode_store_score(w.store, slot, 0, 0, KEY_TOKENS, keys->q, 1, NULL, scores, KEY_TOKENS, scratch);
    world_destroy(&w);
}

static double rms_error(const keys_t *keys, const float *scores)
{
    double sum = 0;
    for (int t = 0; t < KEY_TOKENS; t++)
        sum += ((double)scores[t] - keys->exact[t]) * ((double)scores[t] - keys->exact[t]);
    return sqrt(sum / KEY_TOKENS);
}

/* The share of the true top 1 % that the scores' top 1 % holds. */
static double overlap(const keys_t *keys, const float *scores)
{
    enum { TOP = KEY_TOKENS / 100 };
    uint32_t a[TOP], b[TOP], common = 0;
    ops->topk(keys->exact, KEY_TOKENS, TOP, a);
    ops->topk(scores, KEY_TOKENS, TOP, b);
    for (int i = 0; i < TOP; i++) {
        for (int j = 0; j < TOP; j++)
            common += a[i] == b[j];
    }
    return (double)common / TOP;
}

Test(score, error_falls_with_bits)
{
    static const char *const texts[] = {"landmark16", "landmark8", "landmark4", "landmark2"};
    static const double most[] = {0.01, 0.02, 0.3, 1.0}, least[] = {0.95, 0.95, 0.75, 0.4};
    double error[4] = {0}, found[4] = {0};
    float scores[KEY_TOKENS];
    enum { TRIALS = 10 };
    for (int trial = 0; trial < TRIALS; trial++) {
        keys_t *keys = keys_create(0.5f, 100 + (uint64_t)trial);
        for (int i = 0; i < 4; i++) {
            keys_score(keys, texts[i], scores);
            error[i] += rms_error(keys, scores) / TRIALS;
            found[i] += overlap(keys, scores) / TRIALS;
        }
        free(keys);
    }
    for (int i = 0; i < 4; i++) {
        cr_assert(le(dbl, error[i], most[i]), "%s", texts[i]);
        cr_assert(ge(dbl, found[i], least[i]), "%s", texts[i]);
        cr_assert(i < 2 || error[i] > error[i - 1], "%s", texts[i]);
        cr_assert(i < 2 || found[i] < found[i - 1], "%s", texts[i]);
    }
}

Test(score, eight_bits_are_close_to_exact)
{
    keys_t *keys = keys_create(2, 3);
    float scores[KEY_TOKENS];
    keys_score(keys, "landmark8", scores);
    for (int t = 0; t < KEY_TOKENS; t++)
        cr_assert(epsilon_eq(flt, scores[t], keys->exact[t], 0.06f), "token %d", t);
    free(keys);
}

Test(score, centring_helps_keys_with_a_common_mean)
{
    static const char *const pairs[][2] = {{"landmark2", "landmark2:nocentre"},
                                           {"landmark4", "landmark4:nocentre"},
                                           {"landmark2:higgs", "landmark2:higgs:nocentre"},
                                           {"landmark4:higgs", "landmark4:higgs:nocentre"}};
    keys_t *keys = keys_create(6, 11);
    float scores[KEY_TOKENS];
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        keys_score(keys, pairs[i][0], scores);
        double centred = rms_error(keys, scores), found = overlap(keys, scores);
        keys_score(keys, pairs[i][1], scores);
        cr_assert(lt(dbl, centred, 0.6 * rms_error(keys, scores)), "%s", pairs[i][0]);
        cr_assert(gt(dbl, found, overlap(keys, scores)), "%s", pairs[i][0]);
    }
    free(keys);
}

/* A group of queries over several extents, against the rows scored one by one; and no token of the block beyond. */
Test(score, group_over_extents)
{
    enum { GROUP = 5, TOKENS = 2000, STRIDE = 2100, DIM = 64, HEADS = 2 };
    static const char *const texts[] = {"landmark2", "landmark8:c4", "landmark16:c16:centre", "landmark4:higgs:c2"};
    static float keys[TOKENS + 64][HEADS][DIM], mean[HEADS * DIM], out[GROUP * STRIDE], one[STRIDE], q[GROUP][DIM];
    static uint8_t rows[HEADS * LODE_PAGE_TOKENS * (2 * DIM + 2)];
    _Alignas(64) static float scratch[GROUP * DIM * 128];
    uint64_t seed = 8;
    for (size_t i = 0; i < sizeof keys / sizeof(float); i++)
        keys[i / DIM / HEADS][i / DIM % HEADS][i % DIM] = gauss(&seed) + 1;
    for (size_t i = 0; i < GROUP * DIM; i++)
        q[i / DIM][i % DIM] = gauss(&seed);
    lode_landmark_mean(HEADS, DIM, keys[0][0], TOKENS, mean);
    for (size_t s = 0; s < sizeof texts / sizeof *texts; s++) {
        world_t w = world_create(64 * MIB, false, 1, DIM, 1);
        lode_block_info_t info = info_of(1, "doc", texts[s], HEADS, 0);
        uint32_t slot;
        cr_assert(lode_store_add(w.store, &info, &slot) == LODE_OK);
        for (uint32_t page = 0; page <= TOKENS / LODE_PAGE_TOKENS; page++) {
            uint32_t left = TOKENS + 20 - page * LODE_PAGE_TOKENS, tokens = left < 64 ? left : 64;
            lode_landmark_build(ops, &info.landmark, HEADS, DIM, keys[page * 64][0], tokens, mean, NULL, rows);
            cr_assert(lode_store_put(w.store, 1, 0, page, tokens, rows, mean, NULL, 0) == LODE_OK);
        }
        cr_assert(lode_store_publish(w.store, 1, 0, TOKENS + 20) == LODE_OK);
        uint64_t landmarks = lode_landmarks_of(&info.landmark, TOKENS);
        for (size_t i = 0; i < GROUP * STRIDE; i++)
            out[i] = -777;
        lode_store_score(w.store, slot, 0, 1, TOKENS, q[0], GROUP, NULL, out, STRIDE, scratch);
        for (uint32_t g = 0; g < GROUP; g++) {
            lode_store_score(w.store, slot, 0, 1, TOKENS, q[g], 1, NULL, one, STRIDE, scratch);
            double error = 0, whole = 0;
            for (uint64_t i = 0; i < landmarks; i++) {
                cr_assert(epsilon_eq(flt, out[g * STRIDE + i], one[i], 1e-4f), "%s", texts[s]);
                uint64_t begin = i * info.landmark.chunk, end = begin + info.landmark.chunk;
                double exact = 0;
                for (uint64_t t = begin; t < end && t < TOKENS + 20; t++) {
                    for (uint32_t d = 0; d < DIM; d++)
                        exact += (double)keys[t][1][d] * q[g][d] / info.landmark.chunk;
                }
                error += (one[i] - exact) * (one[i] - exact);
                whole += exact * exact;
            }
            cr_assert(lt(dbl, sqrt(error / whole), 0.45), "%s", texts[s]);
            for (uint64_t i = landmarks; i < STRIDE; i++)
                cr_assert(eq(flt, out[g * STRIDE + i], -777), "%s: a score beyond the end", texts[s]);
        }
        lode_store_score(w.store, slot, 0, 1, 0, q[0], GROUP, NULL, out, STRIDE, scratch);
        world_destroy(&w);
    }
}

/* ------------------------------------------------------------------- choose */

enum { MOST = 3000 };

typedef struct ranked {
    float score;
    uint32_t order;      /* landmark in view order */
    uint32_t begin, end; /* its competing view tokens */
} ranked_t;

static int by_rank(const void *a, const void *b)
{
    const ranked_t *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    return x->order < y->order ? -1 : 1;
}

/* Mark the chosen tokens, one by one from the best landmark down. @return how many. */
static uint64_t reference_choose(const lode_choice_t *choice, const float *scores, size_t stride, bool *chosen)
{
    ranked_t *ranked = malloc(MOST * sizeof *ranked);
    float shift[LODE_MAX_GROUP];
    uint64_t landmarks = 0, count = 0;
    uint32_t candidates = 0, landmark = 0;
    for (uint32_t p = 0; p < choice->piece_count; p++)
        landmarks += choice->pieces[p].landmarks;
    for (uint32_t g = 0; g < choice->group; g++)
        shift[g] = choice->group > 1 ? ops->logsumexp(scores + g * stride, landmarks) : 0;
    memset(chosen, 0, 2 * MOST * sizeof *chosen);
    for (uint32_t p = 0; p < choice->piece_count; p++) {
        const lode_piece_t *piece = &choice->pieces[p];
        for (uint64_t i = 0; i < piece->landmarks; i++, landmark++) {
            ranked_t r = {.score = -INFINITY, .order = landmark};
            for (uint32_t g = 0; g < choice->group; g++)
                r.score = fmaxf(r.score, scores[g * stride + landmark] - shift[g]);
            for (uint64_t t = i * choice->chunk; t < (i + 1) * choice->chunk && t < piece->tokens; t++) {
                uint32_t token = (uint32_t)(piece->first_token + t);
                if (token < choice->sinks || token >= choice->window_begin) {
                    chosen[token] = true;
                    count++;
                } else {
                    r.begin = r.end ? r.begin : token;
                    r.end = token + 1;
                }
            }
            if (r.end > 0)
                ranked[candidates++] = r;
        }
    }
    qsort(ranked, candidates, sizeof *ranked, by_rank);
    for (uint32_t i = 0; i < candidates; i++) {
        for (uint32_t token = ranked[i].begin; token < ranked[i].end && count < choice->budget; token++, count++)
            chosen[token] = true;
    }
    free(ranked);
    return count;
}

static void check_choose(const lode_choice_t *choice, const float *scores, size_t stride)
{
    static float work[4 * MOST];
    static uint32_t scratch[MOST], tokens[3 * MOST];
    static bool chosen[2 * MOST];
    uint64_t wanted = reference_choose(choice, scores, stride, chosen);
    memcpy(work, scores, choice->group * stride * sizeof *scores);
    uint64_t found = lode_choose(ops, choice, work, stride, scratch, tokens);
    cr_assert(eq(u64, found, wanted), "budget %lu sinks %lu window from %lu chunk %u", (unsigned long)choice->budget,
              (unsigned long)choice->sinks, (unsigned long)choice->window_begin, choice->chunk);
    for (uint64_t i = 0; i < found; i++) {
        cr_assert(i == 0 || tokens[i] > tokens[i - 1], "not ascending at %lu", (unsigned long)i);
        cr_assert(chosen[tokens[i]], "token %u", tokens[i]);
    }
}

Test(choose, against_brute_force)
{
    static const uint32_t chunks[] = {1, 2, 4, 8, 16};
    static float scores[4 * MOST];
    uint64_t seed = 77;
    for (int trial = 0; trial < 1500; trial++) {
        lode_piece_t pieces[6];
        lode_choice_t choice = {.pieces = pieces, .chunk = chunks[trial % 5], .merge = LODE_MERGE_MAX};
        uint64_t visible = 0, end = 0, landmarks = 0;
        choice.piece_count = 1 + (uint32_t)(uniform(&seed) * 6);
        choice.group = trial % 3 == 0 ? 4 : 1;
        for (uint32_t p = 0; p < choice.piece_count; p++) {
            uint64_t tokens = uniform(&seed) < 0.1 ? 0 : (uint64_t)(uniform(&seed) * (trial % 2 ? 60 : 450));
            pieces[p] = (lode_piece_t){
                .tokens = tokens, .landmarks = (tokens + choice.chunk - 1) / choice.chunk, .first_token = end};
            visible += tokens;
            landmarks += pieces[p].landmarks;
            end += tokens + (uniform(&seed) < 0.2 ? 64 : 0); /* tokens that a causal query does not see */
        }
        size_t stride = landmarks + 3;
        bool ties = trial % 7 == 0;
        for (size_t i = 0; i < choice.group * stride; i++)
            scores[i] = ties ? (float)(lode_mix(i, seed) % 4) : 3 * gauss(&seed);
        choice.sinks = uniform(&seed) < 0.3 ? 0 : (uint64_t)(uniform(&seed) * 40);
        choice.window_begin = uniform(&seed) < 0.3 ? end : end - (uint64_t)(uniform(&seed) * (double)end / 3);
        choice.budget = (uint64_t)(uniform(&seed) * 1.1 * (double)visible);
        check_choose(&choice, scores, stride);
        choice.budget = visible;
        check_choose(&choice, scores, stride);
        choice.budget = visible > 0 ? visible - 1 : 0;
        check_choose(&choice, scores, stride);
        choice.budget = 0;
        check_choose(&choice, scores, stride);
    }
}

Test(choose, ties_go_to_the_lowest)
{
    const lode_piece_t pieces[] = {{10, 10, 0}, {10, 10, 10}};
    const lode_choice_t choice = {
        .pieces = pieces, .piece_count = 2, .chunk = 1, .group = 1, .budget = 5, .sinks = 1, .window_begin = 19};
    float scores[20] = {0};
    uint32_t scratch[20], tokens[32];
    const uint32_t wanted[] = {0, 1, 2, 3, 19};
    cr_assert(eq(u64, lode_choose(ops, &choice, scores, 20, scratch, tokens), 5));
    cr_assert(memcmp(tokens, wanted, sizeof wanted) == 0);
}

Test(choose, a_cut_chunk_gives_its_first_tokens)
{
    const lode_piece_t pieces[] = {{32, 4, 100}};
    const lode_choice_t choice = {
        .pieces = pieces, .piece_count = 1, .chunk = 8, .group = 1, .budget = 11, .window_begin = 132};
    float scores[4] = {1, 3, 0, 2};
    uint32_t scratch[4], tokens[32];
    const uint32_t wanted[] = {108, 109, 110, 111, 112, 113, 114, 115, 124, 125, 126};
    cr_assert(eq(u64, lode_choose(ops, &choice, scores, 4, scratch, tokens), 11));
    cr_assert(memcmp(tokens, wanted, sizeof wanted) == 0);
}

/* Step after step with scores that drift, from the step before or from a wild guess: the choice without one. */
Test(choose, a_guess_changes_nothing)
{
    enum { N = 3000, GROUP = 4, STEPS = 12 };
    static const float wild[] = {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 0};
    static float base[GROUP * N], scores[GROUP * N], note_scores[N + LODE_NOTES_SLACK];
    static uint32_t scratch[N], plain[17 * N], guessed[17 * N], note_index[N + LODE_NOTES_SLACK];
    uint64_t seed = 9;
    uint32_t served = 0;
    for (int trial = 0; trial < 60; trial++) {
        uint32_t chunk = 1u << trial % 5;
        const lode_piece_t pieces[] = {{1000 * chunk - 3 % chunk, 1000, 0}, {2000 * chunk, 2000, 1000 * chunk}};
        float guess = NAN;
        for (int step = 0; step < STEPS; step++) {
            for (size_t i = 0; i < GROUP * N; i++)
                base[i] = step ? base[i] + 0.1f * gauss(&seed) : trial % 6 == 5 ? roundf(gauss(&seed)) : gauss(&seed);
            lode_notes_t notes = {.room = trial % 4 ? N / 10 : 20 + (size_t)(uniform(&seed) * N),
                                  .index = note_index,
                                  .score = note_scores,
                                  .bound = uniform(&seed) < 0.2 ? wild[(int)(uniform(&seed) * 6)] : guess};
            lode_choice_t choice = {.pieces = pieces,
                                    .piece_count = 2,
                                    .chunk = chunk,
                                    .group = trial % 2 ? GROUP : 1,
                                    .merge = LODE_MERGE_MAX,
                                    .budget = 70 + 80 * chunk,
                                    .sinks = 5,
                                    .window_begin = 3000 * chunk - 64};
            memcpy(scores, base, sizeof base);
            uint64_t count = lode_choose(ops, &choice, scores, N, scratch, plain);
            choice.notes = &notes;
            memcpy(scores, base, sizeof base);
            uint64_t again = lode_choose(ops, &choice, scores, N, scratch, guessed);
            cr_assert(eq(u64, again, count));
            cr_assert(memcmp(plain, guessed, count * sizeof *plain) == 0, "trial %d step %d", trial, step);
            served += notes.count <= notes.room;
            guess = notes.next;
        }
    }
    cr_assert(served > 60 * STEPS / 3, "only %u of %d choices were made from notes", served, 60 * STEPS);
}

/* A query's row overflows in a group: others still decide, nothing is out of bounds. */
Test(choose, a_row_that_overflowed)
{
    static float scores[2 * 5000];
    static uint32_t scratch[5000], tokens[5000];
    const lode_piece_t piece = {5000, 5000, 0};
    uint64_t seed = 6;
    for (int trial = 0; trial < 40; trial++) {
        const lode_choice_t choice = {
            .pieces = &piece, .piece_count = 1, .chunk = 1, .group = 2, .budget = 50, .window_begin = 5000};
        for (int i = 0; i < 5000; i++) {
            scores[i] = trial % 4 == 0 ? -INFINITY : trial % 4 == 1 && i % 100 == 0 ? NAN : gauss(&seed);
            scores[5000 + i] = trial % 2 && i % 7 == 0 ? INFINITY : trial % 3 ? gauss(&seed) : -INFINITY;
        }
        uint64_t count = lode_choose(ops, &choice, scores, 5000, scratch, tokens);
        cr_assert(le(u64, count, 50));
        for (uint64_t i = 0; i < count; i++)
            cr_assert(tokens[i] < 5000 && (i == 0 || tokens[i] > tokens[i - 1]), "trial %d", trial);
    }
}

/* Huge keys and queries overflow to infinity: a poor choice, but never one out of bounds. */
Test(choose, infinite_scores_stay_in_bounds)
{
    uint64_t seed = 5;
    for (int trial = 0; trial < 300; trial++) {
        const lode_piece_t pieces[] = {{90, 23, 0}, {31, 8, 90}};
        const lode_choice_t choice = {.pieces = pieces,
                                      .piece_count = 2,
                                      .chunk = 4,
                                      .group = 1,
                                      .budget = (uint64_t)(uniform(&seed) * 121),
                                      .sinks = 21,
                                      .window_begin = 80};
        float scores[31];
        uint32_t scratch[31], tokens[200];
        for (int i = 0; i < 31; i++)
            scores[i] = uniform(&seed) < 0.8 ? -INFINITY : INFINITY;
        uint64_t count = lode_choose(ops, &choice, scores, 31, scratch, tokens), forced = 21 + 41;
        cr_assert(ge(u64, count, forced));
        cr_assert(le(u64, count, choice.budget > forced ? choice.budget : forced));
        for (uint64_t i = 0; i < count; i++)
            cr_assert(tokens[i] < 121 && (i == 0 || tokens[i] > tokens[i - 1]));
    }
}
