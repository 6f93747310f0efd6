/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A request: items asked of one owner, by message here, by one-sided reads in gets.c.
 *
 * Replies come eagerly, whole, and are copied to where their items land: quicker than a rendezvous with an owner
 * that may be asleep, and what comes late has nothing to spoil.
 *
 * A request that is given up lives on while UCX holds its memory; its peer's bound counts it until then.
 */
#include <stdlib.h>
#include <string.h>

#include "cluster/fetch_inside.h"

/** Replies that a fetch from one owner is cut into, as long as they are not small. */
#define REPLIES_FETCH 16
#define REPLY_BYTES_MIN ((size_t)32768)

fabric_request_t *request_take(lode_fabric_h fabric, fabric_fetching_t *fetching, uint32_t rank, bool one_sided)
{
    fabric_request_t *request = fabric->requests_free;
    if (request) {
        fabric->requests_free = request->next;
    } else {
        request = calloc(1, sizeof *request);
        if (!request || (request->slot = fabric_table_add(&fabric->requests, request)) == FABRIC_NONE) {
            free(request);
            return NULL;
        }
        request->fabric = fabric;
    }
    request->id = fabric_id(fabric, request->slot);
    request->fetching = fetching;
    request->landing = one_sided ? fetching->landing : NULL;
    request->rank = rank;
    request->one_sided = one_sided;
    request->answered = request->failed = false;
    request->hedged_ns = 0;
    request->bytes = 0;
    request->count = request->operations = request->reading = 0;
    request->left = 0;
    request->asked_ns = lode_now_ns();
    request->deadline_ns =
        request->asked_ns + (uint64_t)fabric->params.fetch_deadline_ms * 1000000u * fetching->patience;
    request->before = NULL;
    request->next = fetching->active;
    if (request->next)
        request->next->before = request;
    fetching->active = request;
    fabric->peers[rank].requests++;
    fabric->peers[rank].asked++;
    return request;
}

static size_t item_bytes(const fabric_request_t *request, uint32_t item)
{
    return request->fetching->ways[item].bytes;
}

bool request_has_room(const fabric_request_t *request, uint32_t item)
{
    lode_fabric_h fabric = request->fabric;
    if (request->count == 0)
        return true;
    /* Several replies even of a small fetch: one is packed while another travels and a third is unpacked. */
    size_t share = request->fetching->queues[request->rank].bytes / REPLIES_FETCH;
    size_t aim = share > REPLY_BYTES_MIN ? share : REPLY_BYTES_MIN;
    if (aim > fabric->params.reply_bytes)
        aim = fabric->params.reply_bytes;
    if (aim > fabric->cards[request->rank].reply_capacity)
        aim = fabric->cards[request->rank].reply_capacity;
    return request->count < MESSAGE_ITEMS_MAX && request->bytes + item_bytes(request, item) <= aim;
}

void request_add(fabric_request_t *request, uint32_t item)
{
    request->bytes += item_bytes(request, item);
    request->items[request->count++] = item;
}

void request_recycle(fabric_request_t *request)
{
    lode_fabric_h fabric = request->fabric;
    if (request->fetching || request->operations > 0)
        return;
    fabric->peers[request->rank].requests--;
    request->id = 0;
    request->next = fabric->requests_free;
    fabric->requests_free = request;
}

void request_end(fabric_request_t *request, fetch_cause_t cause)
{
    fabric_fetching_t *fetching = request->fetching;
    fabric_peer_t *peer = &request->fabric->peers[request->rank];
    *(request->before ? &request->before->next : &fetching->active) = request->next;
    if (request->next)
        request->next->before = request->before;
    request->fetching = NULL;
    fetching->spoilt |= request->one_sided && request->operations > 0;
    peer->asked--;
    peer->credit -= request->bytes;
    if (cause != FETCH_NO_CAUSE) {
        fetching->fetch->retries++;
        for (uint32_t i = 0; i < request->count; i++) {
            if (!(fetching->ways[request->items[i]].flags & ITEM_LANDED))
                fetch_item_failed(fetching, request->items[i], request->rank, cause);
        }
    }
    request_recycle(request);
}

void requests_destroy(lode_fabric_h fabric)
{
    for (uint32_t i = 0; i < fabric->requests.count; i++) {
        fabric_request_t *request = fabric->requests.objects[i];
        free(request);
    }
    free(fabric->requests.objects);
    fabric->requests = (fabric_table_t){0};
}

/* ------------------------------------------------------------------ sending */

/** Index of the item's block among the request's, entered if it is new; FABRIC_NONE if there is no room. */
static uint32_t block_index(fabric_request_t *request, size_t *blocks, uint64_t block)
{
    for (size_t i = *blocks; i-- > 0;) { /* items mostly come block after block */
        if (request->blocks[i] == block)
            return (uint32_t)i;
    }
    if (*blocks == MESSAGE_BLOCKS_MAX)
        return FABRIC_NONE;
    request->blocks[*blocks] = block;
    return (uint32_t)(*blocks)++;
}

/** Write the items out. Those past the last block that fits go back to their queue. @return blocks. */
static size_t wire_items(fabric_request_t *request)
{
    fabric_fetching_t *fetching = request->fetching;
    size_t blocks = 0;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < request->count; i++) {
        const lode_fetch_item_t *item = &fetching->fetch->items[request->items[i]];
        uint32_t block = block_index(request, &blocks, item->block);
        if (block == FABRIC_NONE) {
            size_t bytes = item_bytes(request, request->items[i]);
            request->bytes -= bytes;
            request->fabric->peers[request->rank].credit -= bytes;
            fetch_item_again(fetching, request->items[i]);
            continue;
        }
        request->items[kept] = request->items[i];
        request->wire[kept++] =
            (lode_wire_item_t){.mask = item->mask, .page = item->page, .head = item->head, .block = (uint16_t)block};
    }
    request->count = kept;
    return blocks;
}

static void on_sent(void *ucx, ucs_status_t status, void *user)
{
    fabric_request_t *request = user;
    request->operations--;
    if (request->fetching && status != UCS_OK)
        request_end(request, FETCH_LOST);
    else
        request_recycle(request);
    ucp_request_free(ucx);
}

void request_send(fabric_request_t *request)
{
    lode_fabric_h fabric = request->fabric;
    const lode_fetch_t *fetch = request->fetching->fetch;
    Lodemark__FetchRequest message = LODEMARK__FETCH_REQUEST__INIT;
    message.id = request->id;
    message.epoch = lode_fabric_epoch(fabric);
    message.from = fabric->rank;
    message.incarnation = fabric->incarnation;
    message.layer = fetch->layer;
    message.record_bytes = fetch->record_bytes;
    message.n_blocks = wire_items(request);
    message.blocks = request->blocks;
    memset(request->missing, 0, sizeof request->missing);
    ucp_ep_h ep = fabric->peers[request->rank].asks.ep;
    ucp_request_param_t param = fabric_send_param(on_sent, request, UCP_AM_SEND_FLAG_EAGER);
    ucs_status_ptr_t sent = ep ? ucp_am_send_nbx(ep, FABRIC_AM_FETCH, request->header,
                                                 lodemark__fetch_request__pack(&message, request->header),
                                                 request->wire, request->count * sizeof *request->wire, &param)
                               : UCS_STATUS_PTR(UCS_ERR_NOT_CONNECTED);
    if (UCS_PTR_IS_PTR(sent))
        request->operations++;
    else if (UCS_PTR_IS_ERR(sent))
        request_end(request, FETCH_LOST);
}

/* ---------------------------------------------------------------- receiving */

static bool is_missing(const fabric_request_t *request, uint32_t i)
{
    return request->missing[i / 64] >> (i % 64) & 1;
}

/** Copy the records of every item to its place and check them. What another owner gave already stays as it is. */
static void scatter(fabric_request_t *request, const uint8_t *data)
{
    fabric_fetching_t *fetching = request->fetching;
    lode_fetch_t *fetch = fetching->fetch;
    bool failed = false;
    for (uint32_t i = 0; i < request->count; i++) {
        uint32_t index = request->items[i];
        const lode_fetch_item_t *item = &fetch->items[index];
        size_t bytes = is_missing(request, i) ? 0 : item_bytes(request, index);
        const uint8_t *records = data;
        data += bytes;
        if (fetching->ways[index].flags & ITEM_LANDED)
            continue;
        if (bytes)
            memcpy(fetch->landing + item->landing, records, bytes);
        if (bytes && fetch->verify(fetch->context, item, fetch->landing + item->landing)) {
            fetch_item_landed(fetching, index, request->rank);
            continue;
        }
        failed = true;
        fetch_item_failed(fetching, index, request->rank, bytes ? FETCH_CHECK : FETCH_MISSING);
    }
    fetch->retries += failed;
    request_end(request, FETCH_NO_CAUSE);
}

/** Note which items the owner does not hold. @return bytes of the others, SIZE_MAX if the list is none. */
static size_t note_missing(fabric_request_t *request, const Lodemark__FetchReply *reply)
{
    size_t bytes = request->bytes;
    for (size_t i = 0; i < reply->n_missing; i++) {
        uint32_t index = reply->missing[i];
        if (index >= request->count || is_missing(request, index))
            return SIZE_MAX;
        request->missing[index / 64] |= UINT64_C(1) << (index % 64);
        bytes -= item_bytes(request, request->items[index]);
    }
    return bytes;
}

ucs_status_t fabric_on_fetch_reply(void *argument, const void *header, size_t header_bytes, void *data, size_t bytes,
                                   const ucp_am_recv_param_t *param)
{
    lode_fabric_h fabric = argument;
    Lodemark__FetchReply *reply = message_fetch_reply(&fabric->bump, header, header_bytes);
    if (!reply || reply->from >= fabric->ranks) {
        atomic_fetch_add(&fabric->counters.malformed, 1);
        lode_warn("dropped a fetch's reply of %zu bytes that is none", header_bytes);
        return UCS_OK;
    }
    fabric->peers[reply->from].heard_ns = lode_now_ns();
    fabric_request_t *request = fabric_table_find(&fabric->requests, reply->id);
    if (!request || request->id != reply->id || !request->fetching || request->answered || request->one_sided ||
        request->rank != reply->from) {
        fabric->counters.late_replies++;
        return UCS_OK;
    }
    request->answered = true;
    if (!request->hedged_ns) /* who answers late goes on being avoided for its time */
        fabric->peers[reply->from].avoid_until_ns = 0;
    if (reply->status != LODE_OK) {
        request_end(request, reply->status == LODE_ERR_NOT_FOUND ? FETCH_MISSING : FETCH_REFUSED);
    } else if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) || note_missing(request, reply) != bytes) {
        atomic_fetch_add(&fabric->counters.malformed, 1);
        lode_warn("rank %u answered a fetch of %zu bytes with %zu", request->rank, request->bytes, bytes);
        request_end(request, FETCH_CHECK);
    } else {
        scatter(request, data);
    }
    return UCS_OK;
}
