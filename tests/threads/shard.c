/* SPDX-License-Identifier: Apache-2.0 */
/* Pages are put and dropped by two threads while two others find and read them without a lock. */
#include <stdatomic.h>
#include <string.h>

#include "shard/shard.h"
#include "tests/threads/threads.h"

enum { BLOCKS = 32, PAGES = 64, SIZE = 2048, ROUNDS = 2 };

static lode_shard_h shard;
static const lode_ops_t *ops;
static atomic_uint writers = 2;
static atomic_ulong found;

/* Every byte of a page follows from what it is a page of: a torn or foreign one is seen at once. */
static void fill(lode_page_id_t id, uint8_t *page)
{
    memset(page, (int)(lode_mix(id.block, id.page) & 0xff), SIZE);
    memcpy(page, &id.block, sizeof id.block);
    memcpy(page + 8, &id.page, sizeof id.page);
}

/* Writer i owns the blocks whose number is i modulo 2; memory is enough for all, so nothing is used again. */
static void *write_pages(void *argument)
{
    uint8_t page[SIZE];
    for (uint64_t round = 0; round < ROUNDS; round++) {
        for (uint64_t block = 1 + (uintptr_t)argument; block <= BLOCKS; block += 2) {
            for (uint32_t i = 0; i < PAGES; i++) {
                lode_page_id_t id = {.block = block, .page = i};
                lode_page_ref_t ref;
                fill(id, page);
                lode_status_t status = lode_shard_put(shard, ops, id, page, SIZE, ops->crc32c(0, page, SIZE), &ref);
                CHECK(status == LODE_OK, "put: %s", lode_error_message());
            }
            if (block % 4 < 2)
                lode_shard_drop_page(shard, (lode_page_id_t){.block = block, .page = 7});
            if (round + 1 < ROUNDS)
                lode_shard_drop_block(shard, block);
        }
    }
    writers--;
    return NULL;
}

static void *read_pages(void *argument)
{
    uint64_t seed = 1 + (uintptr_t)argument;
    uint8_t wanted[SIZE];
    while (writers) {
        seed = lode_mix(seed, 7);
        lode_page_id_t id = {.block = 1 + seed % BLOCKS, .page = (uint32_t)(seed >> 32) % PAGES};
        lode_page_ref_t ref;
        if (!lode_shard_find(shard, id, &ref))
            continue;
        fill(id, wanted);
        CHECK(ref.size == SIZE, "%u", ref.size);
        CHECK(memcmp(ref.bytes, wanted, SIZE) == 0, "block %lu page %u is torn", (unsigned long)id.block, id.page);
        found++;
    }
    return NULL;
}

int main(void)
{
    static void *(*const bodies[])(void *) = {write_pages, write_pages, read_pages, read_pages};
    size_t bytes = 64u << 20;
    void *arena = aligned_alloc(4096, bytes);
    CHECK(arena && lode_ops_get("auto", &ops) == LODE_OK, "%s", lode_error_message());
    CHECK(lode_shard_create(arena, bytes, &shard) == LODE_OK, "%s", lode_error_message());
    at_once(bodies, 4);
    uint64_t dropped = 0, held = lode_shard_usage(shard).pages;
    for (uint64_t block = 1; block <= BLOCKS; block++)
        dropped += block % 4 < 2;
    CHECK(held == BLOCKS * PAGES - dropped, "%lu pages are held, %lu were dropped", (unsigned long)held,
          (unsigned long)dropped);
    CHECK(lode_shard_scrub(shard, ops) == 0, "a held page does not match its checksum");
    CHECK(found > 0, "the readers never met a page");
    lode_shard_destroy(&shard);
    free(arena);
    return 0;
}
