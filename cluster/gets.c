/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One-sided reads: runs of neighbouring records straight from the owner's arena into the landing buffer.
 * The landing buffer counts the reads that may still write to it; released before they end, it is in
 * quarantine.
 */
#include <string.h>

#include "cluster/fetch_inside.h"

/** How far ahead of the copying. */
#define PREFETCH_ITEMS 6

static void landing_let_go(lode_fabric_h fabric, fabric_landing_t *landing)
{
    (void)fabric;
    landing->writers--;
    if (landing->writers == 0 && landing->state == LANDING_QUARANTINED)
        landing->state = LANDING_FREE;
}

static bool all_started(const fabric_request_t *request)
{
    return request->reading == request->count && request->left == 0;
}

/* An item that fails its check here is asked for again by message: the owner may have moved its page. */
static void finish(fabric_request_t *request)
{
    fabric_fetching_t *fetching = request->fetching;
    lode_fetch_t *fetch = fetching->fetch;
    if (request->failed) {
        request_end(request, FETCH_LOST);
        return;
    }
    for (uint32_t i = 0; i < request->count; i++) {
        uint32_t index = request->items[i];
        const lode_fetch_item_t *item = &fetch->items[index];
        if (fetch->verify(fetch->context, item, fetch->landing + item->landing)) {
            fetch_item_landed(fetching, index, request->rank);
        } else {
            fetching->ways[index].flags |= ITEM_BATCHED;
            fetch_item_again(fetching, index);
        }
    }
    request_end(request, FETCH_NO_CAUSE);
}

static void on_read(void *ucx, ucs_status_t status, void *user)
{
    fabric_request_t *request = user;
    request->operations--;
    request->fabric->peers[request->rank].gets--;
    landing_let_go(request->fabric, request->landing);
    if (status != UCS_OK)
        request->failed = true;
    if (request->fetching && request->operations == 0 && (all_started(request) || request->failed))
        finish(request);
    else
        request_recycle(request);
    ucp_request_free(ucx);
}

/** Read count records from record first of the current item on. */
static ucs_status_t read_run(fabric_request_t *request, unsigned first, unsigned count)
{
    lode_fabric_h fabric = request->fabric;
    const lode_fetch_t *fetch = request->fetching->fetch;
    uint32_t index = request->items[request->reading];
    const lode_fetch_item_t *item = &fetch->items[index];
    fabric_peer_t *peer = &fabric->peers[request->rank];
    uint64_t offset =
        request->fetching->ways[index].offset + ((uint64_t)item->head * LODE_PAGE_TOKENS + first) * fetch->record_bytes;
    unsigned before = message_tokens(item->mask & ((UINT64_C(1) << first) - 1));
    uint8_t *to = fetch->landing + item->landing + (size_t)before * fetch->record_bytes;
    size_t bytes = (size_t)count * fetch->record_bytes;
    if (peer->mapped) {
        memcpy(to, peer->mapped + offset, bytes);
        return UCS_OK;
    }
    if (!peer->asks.ep)
        return UCS_ERR_NOT_CONNECTED;
    ucp_request_param_t param = fabric_send_param(on_read, request, 0);
    ucs_status_ptr_t ucx =
        ucp_get_nbx(peer->asks.ep, to, bytes, fabric->cards[request->rank].arena_base + offset, peer->rkey, &param);
    if (!UCS_PTR_IS_PTR(ucx))
        return UCS_PTR_STATUS(ucx);
    request->operations++;
    request->landing->writers++;
    peer->gets++;
    return UCS_OK;
}

/** Ask the processor for the first record of an item that is copied soon: a far page costs it most of the time. */
static void prefetch(const fabric_request_t *request, uint32_t i)
{
    const lode_fetch_t *fetch = request->fetching->fetch;
    const lode_fetch_item_t *item = &fetch->items[request->items[i]];
    const uint8_t *record =
        request->fabric->peers[request->rank].mapped + request->fetching->ways[request->items[i]].offset +
        ((size_t)item->head * LODE_PAGE_TOKENS + (size_t)__builtin_ctzll(item->mask)) * fetch->record_bytes;
    for (uint32_t at = 0; at < fetch->record_bytes; at += 64)
        __builtin_prefetch(record + at);
}

bool gets_post(fabric_request_t *request)
{
    const lode_fetch_t *fetch = request->fetching->fetch;
    const fabric_peer_t *peer = &request->fabric->peers[request->rank];
    bool any = false;
    while (!all_started(request) && !request->failed && peer->gets < FABRIC_GETS_MAX) {
        if (request->left == 0) {
            request->left = fetch->items[request->items[request->reading]].mask;
            if (peer->mapped && request->reading + PREFETCH_ITEMS < request->count)
                prefetch(request, request->reading + PREFETCH_ITEMS);
        }
        unsigned first = (unsigned)__builtin_ctzll(request->left);
        uint64_t rest = ~(request->left >> first);
        unsigned count = rest ? (unsigned)__builtin_ctzll(rest) : 64 - first;
        request->failed = read_run(request, first, count) != UCS_OK;
        request->left &= first + count == 64 ? (UINT64_C(1) << first) - 1 : ~(((UINT64_C(1) << count) - 1) << first);
        if (request->left == 0)
            request->reading++;
        request->fetching->fetch->requests++;
        any = true;
    }
    if (request->operations == 0 && (all_started(request) || request->failed))
        finish(request);
    return any;
}
