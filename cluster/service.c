/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The service thread: answers calls and fetches while this rank computes, and sleeps when none come.
 */
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/service_inside.h"

/** Longest sleep, for what no event announces: a member found lost by the other thread, UCX's own timers. */
#define SERVICE_SLEEP_NS 50000000u
/** Calls that wait for their payloads' turn, per rank; an honest rank has no more under way. */
#define RECEIVES_WAITING_RANK FABRIC_CALLS_MAX

/* ------------------------------------------------------------------ answers */

service_answer_t *service_answer_take(lode_fabric_h fabric)
{
    service_answer_t *answer = fabric->service->call_answers;
    if (answer) {
        fabric->service->call_answers = answer->next;
        return answer;
    }
    answer = calloc(1, sizeof *answer);
    if (answer)
        answer->fabric = fabric;
    return answer;
}

static void answer_give_back(service_answer_t *answer)
{
    fabric_service_t *service = answer->fabric->service;
    service_answer_t **list = &service->call_answers;
    if (answer->data) {
        list = &service->fetch_answers;
        if (answer->fabric->peers[answer->to].replies-- > FABRIC_REPLIES_RANK)
            service->shared_taken--;
    }
    answer->next = *list;
    *list = answer;
}

static void on_sent(void *request, ucs_status_t status, void *user)
{
    (void)status; /* a failed endpoint tells its error handler */
    answer_give_back(user);
    ucp_request_free(request);
}

void service_send(lode_fabric_h fabric, uint32_t to, unsigned id, service_answer_t *answer, size_t header_bytes,
                  size_t data_bytes)
{
    ucp_ep_h ep = fabric->peers[to].answers.ep;
    ucs_status_ptr_t request = NULL;
    ucp_request_param_t param = fabric_send_param(on_sent, answer, UCP_AM_SEND_FLAG_EAGER);
    const void *data = data_bytes ? answer->data : NULL;
    size_t count = data_bytes;
    if (answer->run_count > 0) {
        param.op_attr_mask |= UCP_OP_ATTR_FIELD_DATATYPE;
        param.datatype = ucp_dt_make_iov();
        data = answer->runs;
        count = answer->run_count;
    }
    if (ep && !fabric->peers[to].answers.failed)
        request = ucp_am_send_nbx(ep, id, answer->header, header_bytes, data, count, &param);
    if (!UCS_PTR_IS_PTR(request))
        answer_give_back(answer);
}

/* -------------------------------------------------------------------- calls */

/** Whether this rank may answer a call now: one that is out of touch must not change what the others do not see. */
static lode_status_t may_serve(lode_fabric_h fabric, const Lodemark__Call *call)
{
    if (call->body_case == LODEMARK__CALL__BODY_RANK_STATS)
        return LODE_OK;
    if (lode_fabric_expelled(fabric))
        return lode_fail(LODE_ERR_PEER_LOST, "the others went on without rank %u; it is no member any more",
                         fabric->rank);
    if (lode_fabric_fenced(fabric))
        return lode_fail(LODE_ERR_PEER_LOST, "rank %u is fenced: it has not heard from the deciding rank for a lease",
                         fabric->rank);
    return LODE_OK;
}

void fabric_serve(lode_fabric_h fabric, uint32_t from, const Lodemark__Call *call, const void *payload, size_t bytes,
                  Lodemark__Reply *reply)
{
    const lode_fabric_handlers_t *handlers = &fabric->params.handlers;
    lodemark__reply__init(reply);
    reply->status = may_serve(fabric, call);
    if (reply->status == LODE_OK && call->body_case == LODEMARK__CALL__BODY_JOIN) {
        reply->status = fabric_membership_offer(fabric, payload, bytes, &reply->size);
    } else if (reply->status == LODE_OK) {
        pthread_mutex_lock(&fabric->serve_lock);
        reply->status = handlers->serve(fabric->params.context, from, call, payload, bytes, reply);
        pthread_mutex_unlock(&fabric->serve_lock);
    }
    reply->id = call->id;
    if (reply->status != LODE_OK)
        reply->message = (char *)lode_error_message();
}

static void answer_call(lode_fabric_h fabric, uint32_t to, const Lodemark__Reply *reply)
{
    service_answer_t *answer = service_answer_take(fabric);
    if (!answer)
        return; /* the caller's deadline tells it */
    service_send(fabric, to, FABRIC_AM_REPLY, answer, lodemark__reply__pack(reply, answer->header), 0);
}

/* What cannot be read cannot be answered; what can be read and not served is answered with the reason. */
static void serve(lode_fabric_h fabric, const void *header, size_t header_bytes, const void *data, size_t bytes)
{
    Lodemark__Reply reply;
    Lodemark__Call *call = message_call(&fabric->service->bump, header, header_bytes);
    if (call && call->from < fabric->ranks && !fabric_is_current(fabric, call->from, call->incarnation))
        return; /* of a process that had the slot before: its answer would go to another */
    if (!call || call->from >= fabric->ranks || call->from == fabric->rank) {
        atomic_fetch_add(&fabric->counters.malformed, 1);
        lode_warn("dropped a call of %zu bytes that is none, or from no rank of this job", header_bytes);
        return;
    }
    lodemark__reply__init(&reply);
    reply.id = call->id;
    reply.status = message_call_check(call, fabric->ranks);
    if (reply.status == LODE_OK && !lode_fabric_alive(fabric, call->from))
        reply.status = lode_fail(LODE_ERR_PEER_LOST, "rank %u holds rank %u for lost", fabric->rank, call->from);
    else if (reply.status == LODE_OK)
        fabric_serve(fabric, call->from, call, data, bytes, &reply);
    else
        atomic_fetch_add(&fabric->counters.malformed, 1);
    if (reply.status != LODE_OK)
        reply.message = (char *)lode_error_message();
    answer_call(fabric, call->from, &reply);
}

/* --------------------------------------------- calls with payloads by rendezvous */

static void receive_free(fabric_service_t *service, service_receive_t *receive)
{
    service->receiving--;
    receive->next = service->receives_free;
    service->receives_free = receive;
}

static void on_received(void *request, ucs_status_t status, size_t bytes, void *user)
{
    service_receive_t *receive = user;
    if (status == UCS_OK)
        serve(receive->fabric, receive->header, receive->header_bytes, receive->buffer, bytes);
    receive_free(receive->fabric->service, receive);
    if (request)
        ucp_request_free(request);
}

static void receive_start(lode_fabric_h fabric, service_receive_t *receive)
{
    fabric_service_t *service = fabric->service;
    ucp_request_param_t param = {.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                                                 UCP_OP_ATTR_FLAG_NO_IMM_CMPL,
                                 .cb.recv_am = on_received,
                                 .user_data = receive};
    service->receiving++;
    if (receive->capacity < receive->bytes) {
        free(receive->buffer);
        receive->buffer = malloc(receive->bytes);
        receive->capacity = receive->buffer ? receive->bytes : 0;
    }
    if (!receive->buffer) {
        lode_warn("no memory for a call of %zu bytes; it is dropped", receive->bytes);
        ucp_am_data_release(fabric->service_worker, receive->descriptor);
        receive_free(service, receive);
        return;
    }
    ucs_status_ptr_t request =
        ucp_am_recv_data_nbx(fabric->service_worker, receive->descriptor, receive->buffer, receive->bytes, &param);
    if (UCS_PTR_IS_ERR(request))
        receive_free(service, receive);
}

static bool receives_pump(lode_fabric_h fabric)
{
    fabric_service_t *service = fabric->service;
    service_receive_t *receive = service->receives_first;
    if (!receive || service->receiving == FABRIC_RECEIVES)
        return false;
    service->receives_first = receive->next;
    service->receives_waiting--;
    receive_start(fabric, receive);
    return true;
}

static bool receive_queue(lode_fabric_h fabric, const void *header, size_t header_bytes, void *descriptor, size_t bytes)
{
    fabric_service_t *service = fabric->service;
    if (header_bytes > MESSAGE_HEADER_MAX || bytes > FABRIC_CALL_BYTES_MAX ||
        service->receives_waiting >= RECEIVES_WAITING_RANK * fabric->ranks)
        return false;
    service_receive_t *receive = service->receives_free;
    if (receive)
        service->receives_free = receive->next;
    else if (!(receive = calloc(1, sizeof *receive)))
        return false;
    receive->fabric = fabric;
    receive->next = NULL;
    receive->descriptor = descriptor;
    receive->bytes = bytes;
    receive->header_bytes = header_bytes;
    memcpy(receive->header, header, header_bytes);
    if (service->receives_first)
        service->receives_last->next = receive;
    else
        service->receives_first = receive;
    service->receives_last = receive;
    service->receives_waiting++;
    return true;
}

static ucs_status_t on_call(void *argument, const void *header, size_t header_bytes, void *data, size_t bytes,
                            const ucp_am_recv_param_t *param)
{
    lode_fabric_h fabric = argument;
    if (!(param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV)) {
        serve(fabric, header, header_bytes, data, bytes);
        return UCS_OK;
    }
    if (receive_queue(fabric, header, header_bytes, data, bytes))
        return UCS_INPROGRESS;
    atomic_fetch_add(&fabric->counters.malformed, 1);
    lode_warn("dropped a call with a payload of %zu bytes: too long, or too many at once", bytes);
    return UCS_OK;
}

/* ----------------------------------------------------------------- goodbyes */

static ucs_status_t on_goodbye(void *argument, const void *header, size_t header_bytes, void *data, size_t bytes,
                               const ucp_am_recv_param_t *param)
{
    lode_fabric_h fabric = argument;
    fabric_farewell_t goodbye;
    (void)data;
    (void)bytes;
    (void)param;
    if (header_bytes != sizeof goodbye)
        return UCS_OK;
    memcpy(&goodbye, header, sizeof goodbye);
    if (goodbye.rank < fabric->ranks)
        atomic_store(&fabric->goodbye[goodbye.rank], goodbye.incarnation);
    return UCS_OK;
}

static void on_said(void *request, ucs_status_t status, void *user)
{
    (void)status;
    (void)user;
    ucp_request_free(request);
}

static bool all_have_said(lode_fabric_h fabric)
{
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        if (r != fabric->rank && lode_fabric_alive(fabric, r) &&
            atomic_load(&fabric->goodbye[r]) != lode_fabric_incarnation(fabric, r))
            return false;
    }
    return true;
}

void fabric_farewell(lode_fabric_h fabric)
{
    fabric->farewell = (fabric_farewell_t){fabric->rank, fabric->incarnation};
    for (uint32_t r = 0; r < fabric->ranks; r++) {
        ucp_ep_h ep = fabric->peers[r].asks.ep;
        if (!ep || !lode_fabric_alive(fabric, r))
            continue;
        ucp_request_param_t param = fabric_send_param(on_said, NULL, 0);
        ucs_status_ptr_t request =
            ucp_am_send_nbx(ep, FABRIC_AM_GOODBYE, &fabric->farewell, sizeof fabric->farewell, NULL, 0, &param);
        if (UCS_PTR_IS_ERR(request))
            lode_debug("goodbye to rank %u: %s", r, ucs_status_string(UCS_PTR_STATUS(request)));
    }
    uint64_t end = lode_now_ns() + (uint64_t)fabric->params.call_deadline_ms * 1000000u;
    while (!all_have_said(fabric) && lode_now_ns() < end)
        fabric_wait(fabric, end);
}

/* ------------------------------------------------------------------- thread */

static bool service_round(lode_fabric_h fabric)
{
    bool moved = false;
    for (int i = 0; i < 16 && ucp_worker_progress(fabric->service_worker) > 0; i++)
        moved = true;
    uint32_t changes = atomic_load(&fabric->changes);
    if (changes != fabric->service->changes_seen) {
        fabric->service->changes_seen = changes;
        for (uint32_t r = 0; r < fabric->ranks; r++) {
            if (fabric->peers[r].answers.failed)
                fabric_link_close(&fabric->peers[r].answers);
            if (fabric->peers[r].beats.failed)
                fabric_link_close(&fabric->peers[r].beats);
        }
    }
    moved |= receives_pump(fabric);
    moved |= owner_pump(fabric);
    return moved;
}

static void *service_main(void *argument)
{
    lode_fabric_h fabric = argument;
    uint64_t spin = (uint64_t)fabric->params.spin_us * 1000, moved_ns = lode_now_ns();
    uint64_t beat = (uint64_t)fabric->params.beat_ms * 1000000u, sleep_ns = SERVICE_SLEEP_NS;
    if (beat > 0 && beat < sleep_ns)
        sleep_ns = beat;
    while (!atomic_load_explicit(&fabric->service->stop, memory_order_acquire)) {
        bool moved = service_round(fabric);
        uint64_t now = lode_now_ns(), idle = now - moved_ns;
        fabric_membership_round(fabric, now);
        if (moved) {
            moved_ns = now;
        } else if (idle < spin) {
            fabric_pause(idle);
        } else {
            fabric_sleep(fabric->service_worker, sleep_ns, &fabric->counters.sleeps);
            moved_ns = lode_now_ns(); /* after a sleep it is worth looking for a while */
        }
    }
    return NULL;
}

lode_status_t fabric_service_create(lode_fabric_h fabric)
{
    fabric->service = calloc(1, sizeof *fabric->service);
    if (!fabric->service)
        return lode_fail(LODE_ERR_NO_MEMORY, "%zu bytes for the service thread", sizeof *fabric->service);
    message_bump_init(&fabric->service->bump, fabric->service->bump_memory, FABRIC_BUMP_BYTES);
    LODE_TRY(owner_create(fabric));
    LODE_TRY(fabric_membership_create(fabric));
    LODE_TRY(fabric_listen(fabric, fabric->service_worker, FABRIC_AM_CALL, on_call));
    LODE_TRY(fabric_listen(fabric, fabric->service_worker, FABRIC_AM_GOODBYE, on_goodbye));
    return fabric_listen(fabric, fabric->service_worker, FABRIC_AM_FETCH, owner_on_fetch);
}

/* Signals stay with the program's own threads. */
lode_status_t fabric_service_start(lode_fabric_h fabric)
{
    sigset_t all, old;
    fabric_membership_begin(fabric);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&fabric->service->thread, NULL, service_main, fabric);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error)
        return lode_fail(LODE_ERR_NO_MEMORY, "the service thread did not start: %s", strerror(error));
    pthread_setname_np(fabric->service->thread, "lode-service");
    fabric->service->running = true;
    return LODE_OK;
}

bool fabric_service_runs(lode_fabric_h fabric)
{
    return fabric->service && fabric->service->running;
}

void fabric_service_stop(lode_fabric_h fabric)
{
    if (!fabric_service_runs(fabric))
        return;
    atomic_store(&fabric->service->stop, true);
    ucp_worker_signal(fabric->service_worker);
    pthread_join(fabric->service->thread, NULL);
    fabric->service->running = false;
}

static void answers_free(service_answer_t *answer)
{
    while (answer) {
        service_answer_t *next = answer->next;
        free(answer);
        answer = next;
    }
}

static void receives_free(service_receive_t *receive)
{
    while (receive) {
        service_receive_t *next = receive->next;
        free(receive->buffer);
        free(receive);
        receive = next;
    }
}

void fabric_service_destroy(lode_fabric_h fabric)
{
    fabric_service_t *service = fabric->service;
    if (!service)
        return;
    owner_destroy(fabric);
    fabric_membership_destroy(fabric);
    answers_free(service->call_answers);
    answers_free(service->fetch_answers);
    receives_free(service->receives_free);
    receives_free(service->receives_first);
    free(service);
    fabric->service = NULL;
}
