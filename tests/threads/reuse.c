/* SPDX-License-Identifier: Apache-2.0 */
/* Readers without locks beside a writer whose drops are collected: entries, slots and memory serve again and again. */
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "landmarks/landmarks.h"
#include "shard/shard.h"
#include "tests/threads/threads.h"

enum { READERS = 2, PAGES = 48, SIZE = 5000 };

static const lode_ops_t *ops;
static _Atomic bool stop;
static _Atomic uint64_t looks[READERS], hits;

/* What a reader thread is given. */
typedef struct reader {
    void *context;
    _Atomic uint64_t *looks; /* counted up, with release, when nothing found before is used any more */
} reader_t;

/*
 * A time such that no reader still uses what was dropped before it: what the callers of collect must know. By
 * counting looks instead of waiting a while, so that ThreadSanitizer knows it, too.
 */
static uint64_t settled_ns(void)
{
    static uint64_t settled, candidate, seen[READERS];
    for (int i = 0; i < READERS; i++) {
        if (atomic_load_explicit(&looks[i], memory_order_acquire) < seen[i] + 2)
            return settled;
    }
    settled = candidate;
    candidate = lode_now_ns();
    for (int i = 0; i < READERS; i++)
        seen[i] = atomic_load_explicit(&looks[i], memory_order_relaxed);
    return settled;
}

/* Two readers beside this thread's work; longer on a machine that is busy. */
static void race(void *(*read)(void *), void (*write)(void *, uint64_t *), void *context)
{
    pthread_t threads[READERS];
    reader_t readers[READERS];
    uint64_t seed = 1, begin = lode_now_ns(), rounds = 0, elapsed_ms = 0;
    atomic_store(&stop, false);
    atomic_store(&hits, 0);
    for (int i = 0; i < READERS; i++) {
        readers[i] = (reader_t){context, &looks[i]};
        CHECK(pthread_create(&threads[i], NULL, read, &readers[i]) == 0, "pthread_create");
    }
    for (; elapsed_ms < 1500 || (atomic_load(&hits) <= 100 && elapsed_ms < 40000); rounds++) {
        write(context, &seed);
        elapsed_ms = (lode_now_ns() - begin) / 1000000;
    }
    atomic_store(&stop, true);
    for (int i = 0; i < READERS; i++)
        pthread_join(threads[i], NULL);
    printf("%lu writes, %lu finds\n", (unsigned long)rounds, (unsigned long)atomic_load(&hits));
    CHECK(atomic_load(&hits) > 100, "the readers hardly found anything: the race was none");
}

/* -------------------------------------------------------------------- shard */

/* Different pages have different bytes, and so different checksums, always of this size. */
static void page_fill(lode_page_id_t id, uint8_t *page)
{
    memset(page, (int)(id.block * 16 + id.page), SIZE);
    memcpy(page, &id, sizeof id);
}

static lode_page_id_t some_page(uint64_t *seed)
{
    *seed = lode_mix(*seed, 7);
    return (lode_page_id_t){.block = 1 + *seed % 3, .layer = *seed >> 8 & 1, .page = (uint32_t)(*seed >> 16) % PAGES};
}

static void *shard_read(void *context)
{
    reader_t *reader = context;
    lode_shard_h shard = reader->context;
    uint64_t seed = (uint64_t)(uintptr_t)reader;
    for (; !atomic_load(&stop); atomic_fetch_add_explicit(reader->looks, 1, memory_order_release)) {
        uint8_t wanted[SIZE];
        lode_page_ref_t ref;
        lode_page_id_t id = some_page(&seed);
        if (!lode_shard_find(shard, id, &ref))
            continue;
        page_fill(id, wanted);
        CHECK(ref.size == SIZE && ref.crc == ops->crc32c(0, wanted, SIZE), "fields of two pages were mixed");
        CHECK(memcmp(ref.bytes, wanted, SIZE) == 0, "a page that was found has other bytes");
        atomic_fetch_add(&hits, 1);
    }
    return NULL;
}

static void shard_write(void *context, uint64_t *seed)
{
    lode_shard_h shard = context;
    uint8_t page[SIZE];
    lode_page_ref_t ref;
    lode_page_id_t id = some_page(seed);
    if ((*seed >> 40 & 3) == 0) {
        lode_shard_drop_page(shard, id);
    } else if ((*seed >> 40 & 255) == 1) {
        lode_shard_drop_block(shard, id.block);
    } else {
        page_fill(id, page);
        lode_status_t status = lode_shard_put(shard, ops, id, page, SIZE, ops->crc32c(0, page, SIZE), &ref);
        CHECK(status == LODE_OK || status == LODE_ERR_FULL, "put: %s", lode_error_message());
    }
    lode_shard_collect(shard, settled_ns());
}

/* --------------------------------------------------------- landmark store */

enum { HEADS = 2, DIM = 64, NAMES = 3 };

static void rows_fill(const lode_block_info_t *info, uint32_t page, uint8_t *rows)
{
    size_t bytes = HEADS * LODE_PAGE_TOKENS * lode_landmark_row_bytes(&info->landmark, DIM);
    memset(rows, (int)(info->id * 31 + page), bytes);
}

static uint32_t writer_of(uint64_t id)
{
    return (uint32_t)lode_mix(id, 5);
}

static void name_of(uint64_t seed, char *name)
{
    snprintf(name, 16, "doc %u", (uint32_t)(seed % NAMES));
}

/* All landmarks that show are those that were put. */
static bool block_holds(lode_store_h store, uint32_t slot, const lode_block_info_t *info)
{
    uint64_t tokens = lode_store_tokens(store, slot, 0), count;
    const uint8_t *tiles;
    for (uint64_t first = 0; first < tokens; first += count) {
        count = lode_store_span(store, slot, 0, 1, first, tokens, &tiles);
        if (count == 0)
            return false;
        for (uint64_t i = 0; i < count; i += LODE_TILE) {
            uint8_t wanted = (uint8_t)(info->id * 31 + (first + i) / LODE_PAGE_TOKENS);
            if (tiles[i / LODE_TILE * lode_landmark_tile_bytes(&info->landmark, DIM)] != wanted)
                return false;
        }
        atomic_fetch_add(&hits, 1);
    }
    for (uint32_t page = 0; (uint64_t)page * LODE_PAGE_TOKENS < tokens; page++) {
        lode_page_hint_t hints[LODE_REPLICAS_MAX];
        uint32_t owners;
        if (!lode_store_hints(store, slot, 0, page, hints, &owners) || !owners ||
            hints[0].offset != info->id * 1000 + page)
            return false;
    }
    return true;
}

/* A slot of which nothing is known, as by who lists or repairs blocks: it may come to be another's just now. */
static void look_at_any(lode_store_h store, uint64_t seed)
{
    uint32_t slots = lode_store_slots(store);
    lode_block_info_t info;
    lode_block_state_t state;
    if (!slots || !lode_store_live(store, (uint32_t)(seed % slots), &info, &state))
        return;
    CHECK(info.id && info.transform == ~info.id && info.writer == writer_of(info.id), "two blocks were mixed");
    CHECK(state == LODE_BLOCK_OPEN, "a block that nobody seals or has dropped is %d", (int)state);
}

static void *store_read(void *context)
{
    reader_t *reader = context;
    lode_store_h store = reader->context;
    uint64_t seed = (uint64_t)(uintptr_t)reader;
    for (; !atomic_load(&stop); atomic_fetch_add_explicit(reader->looks, 1, memory_order_release)) {
        char name[16];
        uint32_t slot;
        lode_block_info_t info;
        seed = lode_mix(seed, 9);
        look_at_any(store, seed >> 8);
        name_of(seed, name);
        if (lode_store_find(store, name, 0, HEADS, &slot) != LODE_OK)
            continue;
        if (!lode_store_live(store, slot, &info, NULL) || block_holds(store, slot, &info))
            continue;
        CHECK(lode_store_state(store, slot, info.id) == LODE_BLOCK_DROPPED, "a live block shows what was never put");
    }
    return NULL;
}

static void store_write(void *context, uint64_t *seed)
{
    static uint64_t next = 1;
    static uint8_t rows[HEADS * LODE_PAGE_TOKENS * 64];
    static float mean[HEADS * DIM];
    lode_store_h store = context;
    char name[16];
    uint32_t slot = 0;
    *seed = lode_mix(*seed, 11);
    name_of(*seed, name);
    if (lode_store_find(store, name, 0, HEADS, &slot) != LODE_OK) {
        lode_block_info_t info = {.id = next, .transform = ~next, .writer = writer_of(next)};
        info.kv_head_end = HEADS;
        info.expected_tokens = *seed >> 20 & 4095;
        next++;
        CHECK(lode_landmark_parse("landmark2", &info.landmark) == LODE_OK, "spec: %s", lode_error_message());
        strcpy(info.name, name);
        lode_status_t status = lode_store_add(store, &info, &slot);
        CHECK(status == LODE_OK || status == LODE_ERR_FULL, "add: %s", lode_error_message());
    } else {
        lode_block_info_t info = *lode_store_info(store, slot);
        uint32_t page = (uint32_t)(lode_store_tokens(store, slot, 0) / LODE_PAGE_TOKENS);
        lode_page_hint_t hint = {.size = 1, .offset = info.id * 1000 + page};
        rows_fill(&info, page, rows);
        CHECK(lode_store_put(store, info.id, 0, page, LODE_PAGE_TOKENS, rows, mean, &hint, 1) == LODE_OK, "put: %s",
              lode_error_message());
        CHECK(lode_store_publish(store, info.id, 0, (page + 1) * LODE_PAGE_TOKENS) == LODE_OK, "publish: %s",
              lode_error_message());
        if (page >= 60)
            CHECK(lode_store_drop(store, info.id) == LODE_OK, "drop: %s", lode_error_message());
    }
    lode_store_collect(store, settled_ns());
}

int main(void)
{
    size_t arena_bytes = (size_t)2 << 20, store_bytes = (size_t)256 << 20;
    lode_shard_h shard = NULL;
    lode_store_h store = NULL;
    void *arena = aligned_alloc(64, arena_bytes);
    void *mapping = mmap(NULL, store_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(lode_ops_get("auto", &ops) == LODE_OK && arena && mapping != MAP_FAILED, "setting up: %s",
          lode_error_message());
    CHECK(lode_shard_create(arena, arena_bytes, &shard) == LODE_OK, "lode_shard_create: %s", lode_error_message());
    race(shard_read, shard_write, shard);
    CHECK(lode_shard_scrub(shard, ops) == 0, "a page lost its bytes");
    lode_shard_destroy(&shard);
    lode_store_params_t params = {
        .base = mapping, .fd = -1, .bytes = store_bytes, .layers = 1, .dim = DIM, .max_blocks = 64, .ops = ops};
    CHECK(lode_store_create(&params, &store) == LODE_OK, "lode_store_create: %s", lode_error_message());
    race(store_read, store_write, store);
    lode_store_destroy(&store);
    munmap(mapping, store_bytes);
    free(arena);
    return 0;
}
