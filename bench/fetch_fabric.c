/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "bench/fetch.h"

enum { OWNER = 1 };

/* ---------------------------------------------------------------- the owner */

static lode_status_t serve_nothing(void *context, uint32_t from, const Lodemark__Call *call, const void *payload,
                                   size_t bytes, Lodemark__Reply *reply)
{
    (void)context, (void)from, (void)call, (void)payload, (void)bytes, (void)reply;
    return lode_fail(LODE_ERR_UNSUPPORTED, "a fetch benchmark answers no calls");
}

static const uint8_t *page_of(void *context, uint64_t block, uint32_t layer, uint32_t page, size_t record_end)
{
    const lode_fetch_lane_t *lane = context;
    if (block != 1 || layer != 0 || page >= lane->bench->pages || record_end > lode_fetch_page_bytes(lane->bench))
        return NULL;
    return (const uint8_t *)lode_fabric_arena(lane->fabric) + page * lode_fetch_page_bytes(lane->bench);
}

static void fill_arena(lode_fetch_lane_t *lane)
{
    uint64_t *words = lode_fabric_arena(lane->fabric);
    uint64_t bytes = lane->bench->pages * (uint64_t)lode_fetch_page_bytes(lane->bench);
    for (uint64_t i = 0; i < bytes / 8; i++)
        words[i] = lode_fetch_word(i * 8);
}

/* ------------------------------------------------------------ the requester */

static bool source_of(void *context, const lode_fetch_item_t *item, uint32_t attempt, lode_fetch_source_t *source)
{
    const lode_fetch_lane_t *lane = context;
    *source = (lode_fetch_source_t){OWNER, true, item->page * (uint64_t)lode_fetch_page_bytes(lane->bench)};
    return attempt == 0;
}

/* Values are compared after the time is taken; a step's check of each record is not part of fetching. */
static bool accept(void *context, const lode_fetch_item_t *item, const uint8_t *records)
{
    (void)context, (void)item, (void)records;
    return true;
}

static uint32_t whole_pages(lode_fetch_lane_t *lane, lode_fetch_item_t *items)
{
    const lode_fetch_bench_t *b = lane->bench;
    uint32_t count = 0, first = (uint32_t)(lode_mix(1, lane->turn++) % b->pages);
    for (uint32_t p = 0; p < b->batch_pages; p++)
        for (uint16_t head = 0; head < LODE_FETCH_HEADS; head++, count++)
            items[count] = (lode_fetch_item_t){.mask = ~UINT64_C(0),
                                               .block = 1,
                                               .page = (first + p) % b->pages,
                                               .head = head,
                                               .landing = count * LODE_FETCH_PAGE_TOKENS * b->record_bytes};
    return count;
}

static int by_place(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Single records, in the order of their places as a step asks for them; no two are neighbours by design, few by chance.
 */
static uint32_t scattered_records(lode_fetch_lane_t *lane, lode_fetch_item_t *items, uint64_t *places)
{
    const lode_fetch_bench_t *b = lane->bench;
    uint64_t all = (uint64_t)b->pages * LODE_FETCH_HEADS * LODE_FETCH_PAGE_TOKENS;
    for (uint32_t i = 0; i < b->records; i++)
        places[i] = lode_mix(lode_mix(2, lane->turn), i) % all;
    lane->turn++;
    qsort(places, b->records, sizeof *places, by_place);
    uint32_t count = 0, landing = 0;
    for (uint32_t i = 0; i < b->records; i++) {
        uint64_t token = places[i] % LODE_FETCH_PAGE_TOKENS, rest = places[i] / LODE_FETCH_PAGE_TOKENS;
        uint16_t head = (uint16_t)(rest % LODE_FETCH_HEADS);
        uint32_t page = (uint32_t)(rest / LODE_FETCH_HEADS);
        lode_fetch_item_t *last = count ? &items[count - 1] : NULL;
        if (last && last->page == page && last->head == head) {
            if (last->mask >> token & 1)
                continue;
            last->mask |= UINT64_C(1) << token;
        } else {
            items[count++] = (lode_fetch_item_t){
                .mask = UINT64_C(1) << token, .block = 1, .page = page, .head = head, .landing = landing};
        }
        landing += b->record_bytes;
    }
    return count;
}

static uint64_t count_wrong(const lode_fetch_lane_t *lane, const lode_fetch_t *fetch)
{
    const lode_fetch_bench_t *b = lane->bench;
    uint64_t wrong = 0;
    for (uint32_t i = 0; i < fetch->count; i++) {
        const lode_fetch_item_t *item = &fetch->items[i];
        const uint8_t *landed = fetch->landing + item->landing;
        for (uint32_t token = 0; token < LODE_FETCH_PAGE_TOKENS; token++) {
            if (!(item->mask >> token & 1))
                continue;
            uint64_t offset = item->page * (uint64_t)lode_fetch_page_bytes(b) +
                              ((uint64_t)item->head * LODE_FETCH_PAGE_TOKENS + token) * b->record_bytes;
            for (uint32_t at = 0; at < b->record_bytes; at += 8, landed += 8) {
                uint64_t word;
                memcpy(&word, landed, 8);
                wrong += word != lode_fetch_word(offset + at);
            }
        }
    }
    return wrong;
}

static lode_status_t begin(lode_fetch_lane_t *lane, bool scattered, int which, uint64_t *places, lode_fetch_t *fetch)
{
    *fetch = (lode_fetch_t){.items = lane->items[which],
                            .record_bytes = lane->bench->record_bytes,
                            .source = source_of,
                            .verify = accept,
                            .context = lane};
    fetch->count =
        scattered ? scattered_records(lane, lane->items[which], places) : whole_pages(lane, lane->items[which]);
    return lode_fabric_fetch(lane->fabric, fetch);
}

/* Two fetches are under way, as in a step: while one is being used, the next lands. */
lode_status_t lode_fetch_lane_slice(lode_fetch_lane_t *lane, bool scattered, lode_slices_t *slices)
{
    lode_fetch_t fetches[2];
    uint64_t *places = malloc(lane->bench->records * sizeof *places), bytes = 0, wrong = 0;
    if (!places)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u places", lane->bench->records);
    uint64_t start = lode_now_ns(), end = start + lane->bench->slice_ms * UINT64_C(1000000), now = start;
    lode_status_t status = begin(lane, scattered, 0, places, &fetches[0]);
    for (int which = 0; status == LODE_OK; which ^= 1) {
        bool last = now >= end;
        if (!last)
            status = begin(lane, scattered, which ^ 1, places, &fetches[which ^ 1]);
        lode_status_t waited = lode_fabric_fetch_wait(lane->fabric, &fetches[which]);
        status = status == LODE_OK ? waited : status;
        if (status != LODE_OK)
            break;
        now = lode_now_ns();
        bytes += fetches[which].bytes;
        if (last)
            wrong = count_wrong(lane, &fetches[which]);
        lode_fabric_fetch_release(lane->fabric, &fetches[which]);
        if (last)
            break;
    }
    free(places);
    if (status != LODE_OK)
        return status;
    slices->rate[slices->count++] = (double)bytes * 1e3 / (double)(now - start);
    slices->wrong += wrong;
    return LODE_OK;
}

/* --------------------------------------------------------------------- lane */

static uint64_t config_number(const lode_fetch_bench_t *b, const char *name)
{
    uint64_t number = 0;
    (void)lode_parse_bytes(lode_config_get(b->config, name), &number); /* the table has checked it */
    return number;
}

lode_status_t lode_fetch_lane_create(lode_fetch_bench_t *b, lode_path_t path, lode_fetch_lane_t *lane)
{
    *lane = (lode_fetch_lane_t){.bench = b};
    lode_fabric_params_t params = {.node = lode_config_get(b->config, "node"),
                                   .arena_bytes = b->job.rank == OWNER ? b->arena_bytes : 2u << 20,
                                   .path = path,
                                   .landing_bytes = config_number(b, "landing"),
                                   .reply_bytes = config_number(b, "reply"),
                                   .credit_bytes = config_number(b, "credit"),
                                   .fetch_deadline_ms = 20000, /* a slow link is measured, not given up */
                                   .call_deadline_ms = (uint32_t)config_number(b, "call-deadline"),
                                   .spin_us = (uint32_t)config_number(b, "spin"),
                                   .handlers = {serve_nothing, page_of, b->ops->gather, b->ops->crc32c},
                                   .context = lane};
    uint32_t items = b->batch_pages * LODE_FETCH_HEADS;
    items = items > b->records ? items : b->records;
    lode_status_t status = LODE_OK;
    for (int i = 0; i < 2; i++)
        if (!(lane->items[i] = calloc(items, sizeof *lane->items[i])))
            status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u items", items);
    status = lode_fabric_create(&params, status, &lane->fabric);
    if (status == LODE_OK && b->job.rank == OWNER)
        fill_arena(lane);
    if (status == LODE_OK)
        status = lode_fabric_start(lane->fabric);
    if (status != LODE_OK)
        lode_fetch_lane_destroy(lane);
    return status;
}

void lode_fetch_lane_destroy(lode_fetch_lane_t *lane)
{
    if (lane->fabric)
        lode_fabric_destroy(&lane->fabric);
    free(lane->items[0]);
    free(lane->items[1]);
    memset(lane, 0, sizeof *lane);
}
