/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls: a question in a message, an answer in another.
 *
 * Payloads are copied. A call that is given up may leave UCX holding its payload for as long as the peer
 * is stopped, and the caller's memory must not hang on that.
 */
#include <stdlib.h>
#include <string.h>

#include "cluster/fabric_inside.h"

/** Larger payloads go by rendezvous: it is slower over TCP, but the receiver says how many it takes at once. */
#define EAGER_BYTES ((size_t)1 << 20)
/** After so long a wait is one for a rank that hangs; and how often other work is looked for then. */
#define MEANWHILE_NS 1000000u

struct fabric_call {
    fabric_call_t *next;
    lode_fabric_h fabric;
    uint32_t slot, to;
    uint64_t id; /**< 0: nobody waits for its answer */
    uint64_t deadline_ns;
    bool sending; /**< UCX holds header and payload */
    bool ended;   /**< waits for its done to be called, or that is past */
    lode_status_t status;
    lode_call_done_t done;
    void *context;
    uint8_t *payload;
    size_t capacity, bytes;
    size_t reply_bytes; /**< 0: no answer came */
    message_bump_t bump;
    uint8_t header[MESSAGE_HEADER_MAX];
    uint8_t reply[MESSAGE_HEADER_MAX];
    _Alignas(16) uint8_t bump_memory[2 * MESSAGE_HEADER_MAX];
};

lode_status_t fabric_calls_create(lode_fabric_h fabric)
{
    (void)fabric; /* slots come as they are needed and stay */
    return LODE_OK;
}

void fabric_calls_destroy(lode_fabric_h fabric)
{
    for (uint32_t i = 0; i < fabric->calls.count; i++) {
        fabric_call_t *call = fabric->calls.objects[i];
        free(call->payload);
        free(call);
    }
    free(fabric->calls.objects);
    fabric->calls = (fabric_table_t){0};
}

static fabric_call_t *call_take(lode_fabric_h fabric, size_t bytes)
{
    fabric_call_t *call = fabric->calls_free;
    if (call) {
        fabric->calls_free = call->next;
    } else {
        call = calloc(1, sizeof *call);
        if (!call || (call->slot = fabric_table_add(&fabric->calls, call)) == FABRIC_NONE) {
            free(call);
            return NULL;
        }
        call->fabric = fabric;
        message_bump_init(&call->bump, call->bump_memory, sizeof call->bump_memory);
    }
    if (call->capacity < bytes) {
        free(call->payload);
        call->payload = malloc(bytes);
        call->capacity = call->payload ? bytes : 0;
    }
    if (call->capacity >= bytes)
        return call;
    call->next = fabric->calls_free;
    fabric->calls_free = call;
    return NULL;
}

static void call_recycle(fabric_call_t *call)
{
    lode_fabric_h fabric = call->fabric;
    if (call->id != 0 || call->sending)
        return;
    call->next = fabric->calls_free;
    fabric->calls_free = call;
}

/* done runs later, outside of UCX's callbacks, so that it may make calls itself. */
static void call_end(fabric_call_t *call, lode_status_t status)
{
    lode_fabric_h fabric = call->fabric;
    if (call->ended)
        return;
    call->ended = true;
    call->status = status;
    call->next = NULL;
    if (fabric->calls_done)
        fabric->calls_done_last->next = call;
    else
        fabric->calls_done = call;
    fabric->calls_done_last = call;
}

static void call_run_done(fabric_call_t *call)
{
    Lodemark__Reply *reply = NULL;
    if (call->status == LODE_OK) {
        reply = message_reply(&call->bump, call->reply, call->reply_bytes);
        if (!reply)
            call->status = lode_fail(LODE_ERR_FORMAT, "rank %u answered a call with what is no reply", call->to);
        else if (reply->status != LODE_OK)
            call->status = lode_fail((lode_status_t)reply->status, "rank %u: %s", call->to, reply->message);
    } else if (call->status == LODE_ERR_PEER_LOST) {
        lode_fail(LODE_ERR_PEER_LOST, "rank %u was lost before it answered a call", call->to);
    } else {
        lode_fail(call->status, "rank %u did not answer a call within %u ms", call->to,
                  call->fabric->params.call_deadline_ms);
    }
    call->done(call->context, call->to, call->status, reply);
}

bool fabric_calls_finish(lode_fabric_h fabric)
{
    bool any = false;
    while (fabric->calls_done) {
        fabric_call_t *call = fabric->calls_done;
        fabric->calls_done = call->next;
        fabric->calls_active--;
        fabric->calls_bytes -= call->bytes;
        any = true;
        call_run_done(call);
        if (call->sending)
            fabric->peers[call->to].zombies++;
        call->id = 0;
        call_recycle(call);
    }
    return any;
}

static void on_sent(void *request, ucs_status_t status, void *user)
{
    fabric_call_t *call = user;
    call->sending = false;
    if (call->id == 0) {
        call->fabric->peers[call->to].zombies--;
        call_recycle(call);
    } else if (status != UCS_OK) {
        call_end(call, LODE_ERR_PEER_LOST);
    }
    ucp_request_free(request);
}

ucs_status_t fabric_on_reply(void *argument, const void *header, size_t header_bytes, void *data, size_t bytes,
                             const ucp_am_recv_param_t *param)
{
    lode_fabric_h fabric = argument;
    (void)data;
    (void)bytes;
    (void)param;
    Lodemark__Reply *reply = message_reply(&fabric->bump, header, header_bytes);
    if (!reply) {
        atomic_fetch_add(&fabric->counters.malformed, 1);
        lode_warn("dropped an answer of %zu bytes that is none", header_bytes);
        return UCS_OK;
    }
    fabric_call_t *call = fabric_table_find(&fabric->calls, reply->id);
    if (!call || call->id != reply->id || call->ended) {
        fabric->counters.late_replies++;
        return UCS_OK;
    }
    memcpy(call->reply, header, header_bytes);
    call->reply_bytes = header_bytes;
    call_end(call, LODE_OK);
    return UCS_OK;
}

void fabric_calls_sweep(lode_fabric_h fabric, uint64_t now, bool lost)
{
    for (uint32_t i = 0; i < fabric->calls.count && fabric->calls_active > 0; i++) {
        fabric_call_t *call = fabric->calls.objects[i];
        if (call->id == 0 || call->ended)
            continue;
        if (lost && !fabric_reachable(fabric, call->to))
            call_end(call, LODE_ERR_PEER_LOST);
        else if (now >= call->deadline_ns)
            call_end(call, LODE_ERR_TIMEOUT);
    }
}

/* ------------------------------------------------------------------ waiting */

void lode_fabric_meanwhile(lode_fabric_h fabric, void (*run)(void *context), void *context)
{
    fabric->meanwhile = run;
    fabric->meanwhile_context = context;
}

/** A wait that takes longer than answers take does the caller's other work in between. */
static void wait_for_answers(lode_fabric_h fabric, uint64_t since_ns)
{
    uint64_t now = lode_now_ns();
    bool long_since = fabric->meanwhile && now - since_ns > MEANWHILE_NS;
    if (long_since)
        fabric->meanwhile(fabric->meanwhile_context);
    fabric_wait(fabric, lode_now_ns() + (fabric->meanwhile ? MEANWHILE_NS : 1000000000u));
}

void lode_fabric_rest(lode_fabric_h fabric, uint64_t ns)
{
    for (uint64_t end = lode_now_ns() + ns; lode_now_ns() < end;)
        wait_for_answers(fabric, 0);
}

/* ------------------------------------------------------------------ sending */

static lode_status_t call_self(lode_fabric_h fabric, Lodemark__Call *call, const void *payload, size_t bytes,
                               lode_call_done_t done, void *context)
{
    Lodemark__Reply reply;
    call->id = fabric_id(fabric, 0);
    fabric_serve(fabric, fabric->rank, call, payload, bytes, &reply);
    done(context, fabric->rank, (lode_status_t)reply.status, &reply);
    return LODE_OK;
}

static lode_status_t wait_for_room(lode_fabric_h fabric, uint32_t to, size_t bytes)
{
    if (atomic_load(&fabric->changes) != fabric->changes_seen)
        fabric_round(fabric); /* it may be a new process */
    uint64_t since = lode_now_ns();
    while (fabric->calls_active > 0 &&
           (fabric->calls_active >= FABRIC_CALLS_MAX || fabric->calls_bytes + bytes > FABRIC_CALL_BYTES_MAX))
        wait_for_answers(fabric, since);
    if (fabric->peers[to].zombies >= FABRIC_CALLS_MAX)
        return lode_fail(LODE_ERR_TIMEOUT, "rank %u takes no data: %u calls to it were given up unsent", to,
                         fabric->peers[to].zombies);
    if (lode_fabric_expelled(fabric))
        return lode_fail(LODE_ERR_PEER_LOST, "the others went on without rank %u; it is no member any more",
                         fabric->rank);
    if (!fabric_reachable(fabric, to) || !fabric->peers[to].asks.ep)
        return lode_fail(LODE_ERR_PEER_LOST, "rank %u (%s) is lost", to, fabric->members[to].host);
    return LODE_OK;
}

static lode_status_t call_send(lode_fabric_h fabric, fabric_call_t *slot, size_t header_bytes)
{
    ucp_request_param_t param =
        fabric_send_param(on_sent, slot, slot->bytes <= EAGER_BYTES ? UCP_AM_SEND_FLAG_EAGER : 0);
    slot->sending = true;
    ucs_status_ptr_t request = ucp_am_send_nbx(fabric->peers[slot->to].asks.ep, FABRIC_AM_CALL, slot->header,
                                               header_bytes, slot->payload, slot->bytes, &param);
    if (!UCS_PTR_IS_PTR(request))
        slot->sending = false;
    return UCS_PTR_IS_ERR(request) ? FABRIC_UCX(UCS_PTR_STATUS(request)) : LODE_OK;
}

lode_status_t lode_fabric_call(lode_fabric_h fabric, uint32_t to, Lodemark__Call *call, const void *payload,
                               size_t bytes, lode_call_done_t done, void *context)
{
    if (to >= fabric->ranks || bytes > FABRIC_CALL_BYTES_MAX)
        return lode_fail(LODE_ERR_INVALID, "a call of %zu bytes to rank %u; at most %zu bytes, %u ranks", bytes, to,
                         FABRIC_CALL_BYTES_MAX, fabric->ranks);
    call->epoch = lode_fabric_epoch(fabric);
    call->from = fabric->rank;
    call->incarnation = fabric->incarnation;
    if (to == fabric->rank)
        return call_self(fabric, call, payload, bytes, done, context);
    LODE_TRY(wait_for_room(fabric, to, bytes));
    fabric_call_t *slot = call_take(fabric, bytes);
    if (!slot)
        return lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes for a call", bytes);
    call->id = fabric_id(fabric, slot->slot);
    size_t header_bytes = lodemark__call__get_packed_size(call);
    lode_status_t status = LODE_OK;
    slot->to = to;
    slot->done = done;
    slot->context = context;
    slot->bytes = bytes;
    slot->ended = false;
    slot->reply_bytes = 0;
    slot->deadline_ns = lode_now_ns() + (uint64_t)fabric->params.call_deadline_ms * 1000000u;
    if (header_bytes > MESSAGE_HEADER_MAX)
        status =
            lode_fail(LODE_ERR_INVALID, "a call's message of %zu bytes; at most %d", header_bytes, MESSAGE_HEADER_MAX);
    if (status == LODE_OK) {
        lodemark__call__pack(call, slot->header);
        if (bytes > 0)
            memcpy(slot->payload, payload, bytes);
        status = call_send(fabric, slot, header_bytes);
    }
    if (status != LODE_OK) {
        slot->id = 0;
        call_recycle(slot);
        return status;
    }
    slot->id = call->id;
    fabric->calls_active++;
    fabric->calls_bytes += bytes;
    atomic_fetch_add_explicit(&fabric->peers[to].calls, 1, memory_order_relaxed);
    return LODE_OK;
}

void lode_fabric_calls_wait(lode_fabric_h fabric)
{
    uint64_t since = lode_now_ns();
    while (fabric->calls_active > 0)
        wait_for_answers(fabric, since);
}

typedef struct answer {
    bool done;
    lode_status_t status;
    uint64_t offset;
    uint32_t size;
    char message[512];
} answer_t;

static void on_answer(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply)
{
    answer_t *answer = context;
    (void)from;
    answer->done = true;
    answer->status = status;
    if (reply) {
        answer->offset = reply->offset;
        answer->size = reply->size;
    }
    if (status != LODE_OK)
        snprintf(answer->message, sizeof answer->message, "%s", lode_error_message());
}

lode_status_t lode_fabric_call_wait(lode_fabric_h fabric, uint32_t to, Lodemark__Call *call, const void *payload,
                                    size_t bytes, uint64_t *reply_offset, uint32_t *reply_size)
{
    answer_t answer = {0};
    LODE_TRY(lode_fabric_call(fabric, to, call, payload, bytes, on_answer, &answer));
    uint64_t since = lode_now_ns();
    while (!answer.done)
        wait_for_answers(fabric, since);
    if (answer.status != LODE_OK)
        return lode_fail(answer.status, "%s", answer.message);
    if (reply_offset)
        *reply_offset = answer.offset;
    if (reply_size)
        *reply_size = answer.size;
    return LODE_OK;
}
