/* SPDX-License-Identifier: Apache-2.0 */
/* The keeper adds, fills and publishes blocks while readers of the same node use what is published. */
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#include "landmarks/landmarks.h"
#include "tests/threads/threads.h"

enum { BLOCKS = 24, PAGES = 40, DIM = 64, HEADS = 2 };

static lode_store_h store;
static const lode_ops_t *ops;
static atomic_bool done;
static atomic_ulong scored;

static const lode_landmark_spec_t spec = {.codec = LODE_LANDMARK_UNIFORM, .bits = 8, .chunk = 1};

static lode_block_info_t info_of(uint64_t number)
{
    lode_block_info_t info = {.id = 1000 + number, .replicas = 1, .kv_head_end = HEADS, .landmark = spec};
    snprintf(info.name, sizeof info.name, "document %u", (unsigned)number);
    return info;
}

static void *keep(void *argument)
{
    float keys[LODE_PAGE_TOKENS * HEADS * DIM];
    uint8_t rows[LODE_PAGE_TOKENS * HEADS * DIM * 2];
    (void)argument;
    for (uint64_t i = 0; i < BLOCKS; i++) {
        lode_block_info_t info = info_of(i);
        uint32_t slot;
        CHECK(lode_store_add(store, &info, &slot) == LODE_OK, "%s", lode_error_message());
        for (size_t j = 0; j < sizeof keys / sizeof *keys; j++)
            keys[j] = 1; /* every landmark scores alike, so that a reader knows what to expect */
        lode_landmark_build(ops, &spec, HEADS, DIM, keys, LODE_PAGE_TOKENS, NULL, NULL, rows);
        for (uint32_t page = 0; page < PAGES; page++) {
            lode_page_hint_t hint = {.rank = 1, .size = 4096, .offset = 4096 * (page + 1)};
            lode_status_t status = lode_store_put(store, info.id, 0, page, LODE_PAGE_TOKENS, rows, NULL, &hint, 1);
            CHECK(status == LODE_OK, "%s", lode_error_message());
            status = lode_store_publish(store, info.id, 0, (page + 1) * (uint64_t)LODE_PAGE_TOKENS);
            CHECK(status == LODE_OK, "%s", lode_error_message());
        }
        for (uint32_t page = 0; page < PAGES; page++) {
            lode_page_hint_t hints[] = {{.rank = 2, .size = 4096, .offset = 4096 * (page + 1) + 1},
                                        {.rank = 1, .size = 4096, .offset = 4096 * (page + 1)}};
            CHECK(lode_store_owners(store, info.id, 0, page, hints, 2) == LODE_OK, "%s", lode_error_message());
        }
        lode_store_forget_rank(store, 1);
        CHECK(lode_store_seal(store, info.id, PAGES * (uint64_t)LODE_PAGE_TOKENS) == LODE_OK, "%s",
              lode_error_message());
        if (i % 3 == 0)
            CHECK(lode_store_drop(store, info.id) == LODE_OK, "%s", lode_error_message());
    }
    done = true;
    return NULL;
}

/* All published tokens of one slot must score alike, and have their hints. */
static void use(uint32_t slot, uint64_t tokens, float *logits, float *q)
{
    float *scratch = NULL;
    lode_store_score(store, slot, 0, HEADS - 1, tokens, q, 1, NULL, logits, PAGES * LODE_PAGE_TOKENS, scratch);
    for (uint64_t t = 0; t < tokens; t++)
        CHECK(logits[t] == logits[0] && logits[t] > 0, "token %lu of %lu: %g, first %g", (unsigned long)t,
              (unsigned long)tokens, logits[t], logits[0]);
    lode_page_hint_t hints[LODE_REPLICAS_MAX];
    uint32_t count;
    CHECK(lode_store_hints(store, slot, 0, (uint32_t)(tokens - 1) / LODE_PAGE_TOKENS, hints, &count), "last page");
    for (uint32_t i = 0; i < count; i++) /* the keeper replaces them meanwhile, and may be seen at it */
        CHECK((hints[i].rank == 1 || hints[i].rank == 2) && hints[i].size == 4096 &&
                  (hints[i].offset == 64 * tokens || hints[i].offset == 64 * tokens + 1),
              "hint of the last page");
    scored++;
}

static void *read_blocks(void *argument)
{
    static _Alignas(64) float space[4][PAGES * LODE_PAGE_TOKENS];
    float *logits = space[(uintptr_t)argument], q[DIM] = {0};
    q[0] = 1;
    while (!done) {
        for (uint32_t slot = 0, n = lode_store_slots(store); slot < n; slot++) {
            uint64_t tokens = lode_store_tokens(store, slot, 0);
            lode_block_info_t info = info_of(slot);
            if (tokens && lode_store_state(store, slot, info.id) != LODE_BLOCK_DROPPED)
                use(slot, tokens, logits, q);
        }
    }
    return NULL;
}

int main(void)
{
    static void *(*const bodies[])(void *) = {keep, read_blocks, read_blocks};
    size_t bytes = 256u << 20;
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(base != MAP_FAILED && lode_ops_get("auto", &ops) == LODE_OK, "%s", lode_error_message());
    lode_store_params_t params = {
        .base = base, .fd = -1, .bytes = bytes, .layers = 1, .dim = DIM, .max_blocks = 64, .ops = ops};
    CHECK(lode_store_create(&params, &store) == LODE_OK, "%s", lode_error_message());
    at_once(bodies, 3);
    CHECK(scored > 0, "the readers never met a published token");
    lode_store_destroy(&store);
    munmap(base, bytes);
    return 0;
}
