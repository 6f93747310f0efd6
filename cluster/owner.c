/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner's side of a batched fetch: read the list, gather the records into one buffer, send it back.
 *
 * Requests are copied out of UCX's buffers and answered from the service loop, one a round, so that the
 * packing of one reply overlaps with the sending of those before it.
 */
#include <stdlib.h>
#include <string.h>

#include "cluster/service_inside.h"

/** Records that go to the gather kernel at once. */
#define PIECES 256
/** Runs at least this long on average are sent from where they lie; shorter ones are cheaper packed. */
#define RUN_BYTES_MIN 4096
/** Requests that wait, per rank. */
#define FETCHES_WAITING_RANK 256

lode_status_t owner_create(lode_fabric_h fabric)
{
    for (uint32_t i = 0; i < fabric_reply_count(fabric); i++) {
        service_answer_t *answer = calloc(1, sizeof *answer);
        if (!answer)
            return lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes for a reply", sizeof *answer);
        answer->fabric = fabric;
        answer->data = fabric->replies.base + i * fabric->reply_capacity;
        answer->next = fabric->service->fetch_answers;
        fabric->service->fetch_answers = answer;
    }
    return LODE_OK;
}

static void fetches_free(service_fetch_t *fetch)
{
    while (fetch) {
        service_fetch_t *next = fetch->next;
        free(fetch);
        fetch = next;
    }
}

void owner_destroy(lode_fabric_h fabric)
{
    fetches_free(fabric->service->fetches_free);
    fetches_free(fabric->service->fetches_first);
}

static void refuse(lode_fabric_h fabric, uint32_t to, uint64_t id, uint32_t epoch, lode_status_t status)
{
    Lodemark__FetchReply reply = LODEMARK__FETCH_REPLY__INIT;
    reply.id = id;
    reply.epoch = epoch;
    reply.status = status;
    reply.from = fabric->rank;
    atomic_fetch_add(&fabric->counters.refused, 1);
    service_answer_t *answer = service_answer_take(fabric);
    if (answer)
        service_send(fabric, to, FABRIC_AM_FETCH_REPLY, answer, lodemark__fetch_reply__pack(&reply, answer->header), 0);
}

static service_fetch_t *fetch_take(fabric_service_t *service)
{
    service_fetch_t *fetch = service->fetches_free;
    if (fetch)
        service->fetches_free = fetch->next;
    else
        fetch = malloc(sizeof *fetch);
    return fetch;
}

static void fetch_queue(fabric_service_t *service, service_fetch_t *fetch)
{
    fetch->next = NULL;
    if (service->fetches_first)
        service->fetches_last->next = fetch;
    else
        service->fetches_first = fetch;
    service->fetches_last = fetch;
    service->fetches_waiting++;
}

/** Why a fetch that can be read is not served; LODE_OK if it is, queued then. */
static lode_status_t fetch_accept(lode_fabric_h fabric, const Lodemark__FetchRequest *request, const void *items,
                                  size_t payload)
{
    uint32_t count;
    size_t bytes;
    lode_status_t status =
        message_fetch_check(request, items, payload, fabric->ranks, fabric->reply_capacity, &count, &bytes);
    if (status != LODE_OK) {
        atomic_fetch_add(&fabric->counters.malformed, 1);
        lode_warn("refused: %s", lode_error_message());
        return status;
    }
    if (!lode_fabric_alive(fabric, request->from))
        return lode_fail(LODE_ERR_PEER_LOST, "rank %u is held for lost", request->from);
    if (lode_fabric_expelled(fabric))
        return lode_fail(LODE_ERR_PEER_LOST, "rank %u is no member any more", fabric->rank);
    service_fetch_t *fetch =
        fabric->service->fetches_waiting < FETCHES_WAITING_RANK * fabric->ranks ? fetch_take(fabric->service) : NULL;
    if (!fetch)
        return lode_fail(LODE_ERR_FULL, "too many fetches wait");
    fetch->id = request->id;
    fetch->from = request->from;
    fetch->epoch = request->epoch;
    fetch->layer = request->layer;
    fetch->record_bytes = request->record_bytes;
    fetch->count = count;
    fetch->bytes = bytes;
    memcpy(fetch->blocks, request->blocks, request->n_blocks * sizeof *fetch->blocks);
    memcpy(fetch->items, items, payload);
    fetch_queue(fabric->service, fetch);
    return LODE_OK;
}

ucs_status_t owner_on_fetch(void *argument, const void *header, size_t header_bytes, void *data, size_t bytes,
                            const ucp_am_recv_param_t *param)
{
    lode_fabric_h fabric = argument;
    Lodemark__FetchRequest *request = message_fetch_request(&fabric->service->bump, header, header_bytes);
    if (request && request->from < fabric->ranks && !fabric_is_current(fabric, request->from, request->incarnation))
        return UCS_OK; /* of a process that had the slot before: its answer would go to another */
    if (!request || request->from >= fabric->ranks || request->from == fabric->rank) {
        atomic_fetch_add(&fabric->counters.malformed, 1);
        lode_warn("dropped a fetch of %zu bytes that is none, or from no rank of this job", header_bytes);
        return UCS_OK;
    }
    lode_status_t status = LODE_ERR_FORMAT;
    if (!(param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV)) /* a request of legal size never comes so */
        status = fetch_accept(fabric, request, data, bytes);
    if (status != LODE_OK)
        refuse(fabric, request->from, request->id, request->epoch, status);
    return UCS_OK;
}

static const uint8_t *find_page(lode_fabric_h fabric, const service_fetch_t *fetch, const lode_wire_item_t *item)
{
    return fabric->params.handlers.page(fabric->params.context, fetch->blocks[item->block], fetch->layer, item->page,
                                        message_item_end(item, fetch->record_bytes));
}

/**
 * List the records of a fetch as long runs, to be sent from where they lie. A page that is dropped before that
 * is over sends what its records' checks refuse.
 * @return false if they are not long and few, or one is missing
 */
static bool list_runs(lode_fabric_h fabric, const service_fetch_t *fetch, service_answer_t *answer)
{
    size_t count = 0;
    if (fetch->bytes < (size_t)fetch->count * RUN_BYTES_MIN)
        return false;
    for (uint32_t i = 0; i < fetch->count; i++) {
        const lode_wire_item_t *item = &fetch->items[i];
        const uint8_t *page = find_page(fabric, fetch, item);
        for (uint64_t left = item->mask; page && left;) {
            unsigned first = (unsigned)__builtin_ctzll(left);
            uint64_t rest = ~(left >> first);
            unsigned length = rest ? (unsigned)__builtin_ctzll(rest) : 64 - first;
            if (count == SERVICE_RUNS_MAX)
                return false;
            answer->runs[count++] =
                (ucp_dt_iov_t){(void *)(page + ((size_t)item->head * LODE_PAGE_TOKENS + first) * fetch->record_bytes),
                               (size_t)length * fetch->record_bytes};
            left = first + length == 64 ? 0 : left & ~(((UINT64_C(1) << length) - 1) << first);
        }
        if (!page)
            return false;
    }
    answer->run_count = count;
    return fetch->bytes >= count * RUN_BYTES_MIN;
}

/** Pack the records of a fetch one after another. @return bytes; *missing indices go to missing. */
static size_t pack(lode_fabric_h fabric, const service_fetch_t *fetch, uint8_t *out, uint32_t *missing, size_t *missed)
{
    const lode_fabric_handlers_t *handlers = &fabric->params.handlers;
    const uint8_t *pieces[PIECES];
    size_t count = 0, bytes = fetch->record_bytes;
    uint8_t *at = out;
    *missed = 0;
    for (uint32_t i = 0; i < fetch->count; i++) {
        const lode_wire_item_t *item = &fetch->items[i];
        const uint8_t *page = find_page(fabric, fetch, item);
        if (!page) {
            if (*missed < MESSAGE_MISSING_MAX)
                missing[*missed] = i;
            ++*missed;
            continue;
        }
        const uint8_t *head = page + (size_t)item->head * LODE_PAGE_TOKENS * bytes;
        for (uint64_t left = item->mask; left; left &= left - 1) {
            pieces[count++] = head + (size_t)__builtin_ctzll(left) * bytes;
            if (count == PIECES) {
                handlers->gather(at, pieces, count, bytes);
                at += count * bytes;
                count = 0;
            }
        }
    }
    if (count > 0)
        handlers->gather(at, pieces, count, bytes);
    return (size_t)(at - out) + count * bytes;
}

/** Take the first waiting fetch whose requester may have a reply buffer, and take that. */
static service_fetch_t *next_fetch(lode_fabric_h fabric, service_answer_t **answer)
{
    fabric_service_t *service = fabric->service;
    service_fetch_t *fetch = service->fetches_first, *before = NULL;
    for (; fetch; before = fetch, fetch = fetch->next) {
        uint32_t held = fabric->peers[fetch->from].replies;
        if (held < FABRIC_REPLIES_RANK)
            break;
        if (held < FABRIC_REPLIES_MOST && service->shared_taken < FABRIC_REPLIES_SHARED)
            break;
    }
    if (!fetch)
        return NULL;
    *(before ? &before->next : &service->fetches_first) = fetch->next;
    if (service->fetches_last == fetch)
        service->fetches_last = before;
    service->fetches_waiting--;
    *answer = service->fetch_answers;
    service->fetch_answers = (*answer)->next;
    (*answer)->to = fetch->from;
    if (fabric->peers[fetch->from].replies++ >= FABRIC_REPLIES_RANK)
        service->shared_taken++;
    return fetch;
}

/* One thread writes, others add up: a second's place is emptied before it counts for its new second. */
static void count_served(lode_fabric_h fabric, uint64_t bytes)
{
    fabric_served_t *served = &fabric->served;
    uint64_t second = lode_now_ns() / 1000000000u;
    size_t place = second % FABRIC_SERVED_SECONDS;
    if (atomic_load_explicit(&served->seconds[place].second, memory_order_relaxed) != second) {
        atomic_store_explicit(&served->seconds[place].bytes, 0, memory_order_relaxed);
        atomic_store_explicit(&served->seconds[place].second, second, memory_order_relaxed);
    }
    atomic_fetch_add_explicit(&served->seconds[place].bytes, bytes, memory_order_relaxed);
    atomic_fetch_add_explicit(&served->bytes, bytes, memory_order_relaxed);
}

void lode_fabric_served(lode_fabric_h fabric, uint64_t *bytes, double *bytes_per_second)
{
    const fabric_served_t *served = &fabric->served;
    uint64_t now = lode_now_ns() / 1000000000u, sum = 0;
    for (size_t i = 0; i < FABRIC_SERVED_SECONDS; i++) {
        uint64_t second = atomic_load_explicit(&served->seconds[i].second, memory_order_relaxed);
        if (second < now && second + FABRIC_SERVED_SECONDS > now) /* full seconds that are over */
            sum += atomic_load_explicit(&served->seconds[i].bytes, memory_order_relaxed);
    }
    *bytes = atomic_load_explicit(&served->bytes, memory_order_relaxed);
    *bytes_per_second = (double)sum / (FABRIC_SERVED_SECONDS - 1);
}

bool owner_pump(lode_fabric_h fabric)
{
    fabric_service_t *service = fabric->service;
    service_answer_t *answer;
    service_fetch_t *fetch = next_fetch(fabric, &answer);
    if (!fetch)
        return false;
    uint32_t missing[MESSAGE_MISSING_MAX];
    size_t missed = 0, bytes = fetch->bytes;
    if (!list_runs(fabric, fetch, answer)) {
        answer->run_count = 0;
        bytes = pack(fabric, fetch, answer->data, missing, &missed);
    }
    Lodemark__FetchReply reply = LODEMARK__FETCH_REPLY__INIT;
    reply.id = fetch->id;
    reply.epoch = fetch->epoch;
    reply.from = fabric->rank;
    if (missed > MESSAGE_MISSING_MAX) { /* too many to name: it is none of these */
        reply.status = LODE_ERR_NOT_FOUND;
        bytes = 0;
    } else {
        reply.missing = missing;
        reply.n_missing = missed;
    }
    service_send(fabric, fetch->from, FABRIC_AM_FETCH_REPLY, answer,
                 lodemark__fetch_reply__pack(&reply, answer->header), bytes);
    count_served(fabric, bytes);
    fetch->next = service->fetches_free;
    service->fetches_free = fetch;
    return true;
}
