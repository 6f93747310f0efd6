/* SPDX-License-Identifier: Apache-2.0 */
/* Start and end of a service, and its engine: one call at a time, in turns over the sessions. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "service/server_inside.h"

#define TEND_US 200
#define IDLE_SLEEP_NS UINT64_C(5000000)
/** While pages are being copied. */
#define TEND_SLEEP_NS UINT64_C(1000000)
#define GOODBYE_NS UINT64_C(500000000)

/* ------------------------------------------------------------------ staging */

bool staging_take(service_h service, uint64_t bytes)
{
    uint64_t used = atomic_load(&service->staging);
    do {
        if (bytes > service->params.staging_bytes || used > service->params.staging_bytes - bytes)
            return false;
    } while (!atomic_compare_exchange_weak(&service->staging, &used, used + bytes));
    return true;
}

void staging_give(service_h service, uint64_t bytes)
{
    if (bytes)
        atomic_fetch_sub(&service->staging, bytes);
}

/* ----------------------------------------------------------------- mailboxes */

static void answer_mailbox(server_session_t *session, uint32_t serial, const server_answer_t *answer)
{
    mailbox_half_t *half = &session->mailbox->reply;
    Lodemark__SessionReply refused = LODEMARK__SESSION_REPLY__INIT;
    const Lodemark__SessionReply *reply = &answer->reply;
    size_t bytes = answer->payload_bytes;
    if (bytes > sizeof half->payload || lodemark__session_reply__get_packed_size(reply) > sizeof half->header) {
        refused.id = reply->id;
        refused.status = LODE_ERR_INVALID;
        refused.message = (char *)(uintptr_t) "the reply is too large for shared memory";
        reply = &refused;
        bytes = 0;
    }
    half->header_bytes = (uint32_t)lodemark__session_reply__pack(reply, half->header);
    half->payload_bytes = (uint32_t)bytes;
    if (bytes)
        memcpy(half->payload, answer->payload->data, bytes);
    atomic_store(&half->serial, serial);
    if (atomic_load(&half->sleeps))
        mailbox_wake(&half->serial);
}

/* The client may write to the mailbox at any moment: sizes are read once, and all is copied before it is looked at. */
static bool run_mailbox(service_h service, server_session_t *session)
{
    mailbox_half_t *half = session->mailbox ? &session->mailbox->request : NULL;
    uint32_t serial = half ? atomic_load_explicit(&half->serial, memory_order_acquire) : 0;
    if (!half || serial == session->mailbox_serial)
        return false;
    uint32_t header = *(volatile uint32_t *)&half->header_bytes, payload = *(volatile uint32_t *)&half->payload_bytes;
    if (header > sizeof half->header || payload > sizeof half->payload)
        header = payload = 0; /* refused as unreadable */
    server_desk_t *desk = &service->desks[service->desk];
    memcpy(desk->request_header.data, half->header, header);
    memcpy(desk->request_payload.data, half->payload, payload);
    desk->answer->payload = &desk->reply_payload;
    if (!serve_call(service, session, desk->request_header.data, header, desk->request_payload.data, payload))
        return false;
    session->mailbox_serial = serial;
    answer_mailbox(session, serial, desk->answer);
    return true;
}

/* -------------------------------------------------------------- connections */

static void put_reply(server_session_t *session, const server_answer_t *answer)
{
    size_t header = lodemark__session_reply__get_packed_size(&answer->reply), payload = answer->payload_bytes;
    if (header > SESSION_HEADER_MAX || payload > SESSION_PAYLOAD_MAX ||
        lode_buffer_reserve(&session->reply_header, header) != LODE_OK) {
        session->reply_frame = (session_frame_t){0}; /* the front closes the connection */
        return;
    }
    lodemark__session_reply__pack(&answer->reply, session->reply_header.data);
    session->reply_frame = (session_frame_t){
        .magic = SESSION_MAGIC, .kind = SESSION_REPLY, .header_bytes = (uint32_t)header, .payload_bytes = payload};
}

static bool run_call(service_h service, server_session_t *session)
{
    if (atomic_load_explicit(&session->call, memory_order_acquire) != SERVER_READY)
        return false;
    server_answer_t *answer = service->desks[service->desk].answer;
    answer->payload = &session->reply_payload;
    if (!serve_call(service, session, session->header.data, session->header_bytes, session->payload,
                    session->payload_bytes))
        return false;
    put_reply(session, answer);
    if (session->payload_room > SERVER_KEPT_BYTES) {
        free(session->payload);
        session->payload = NULL;
        session->payload_room = 0;
    }
    staging_give(service, session->staged);
    session->staged = 0;
    atomic_store_explicit(&session->call, SERVER_DONE, memory_order_release);
    front_wake(service);
    return true;
}

/* ------------------------------------------------------------------- engine */

static bool session_turn(service_h service, server_session_t *session)
{
    if (session->serving)
        return false;
    switch (atomic_load_explicit(&session->life, memory_order_acquire)) {
    case SERVER_LIVE:
        return run_mailbox(service, session) || run_call(service, session);
    case SERVER_LEAVING:
        if (service->desk > 0)
            return false; /* it may have to wait itself */
        serve_farewell(service, session);
        atomic_store_explicit(&session->life, SERVER_LEFT, memory_order_release);
        front_wake(service);
        return true;
    default:
        return false;
    }
}

/* Every session gets one call served before any gets a second one. */
static bool engine_round(service_h service)
{
    bool any = false;
    uint32_t count = atomic_load_explicit(&service->slots, memory_order_acquire);
    if (count == 0)
        return false;
    for (uint32_t i = 0; i < count && !atomic_load_explicit(&service->stop, memory_order_relaxed); i++)
        any |= session_turn(service, &service->sessions[(service->turn + i) % count]);
    service->turn = (service->turn + 1) % count;
    return any;
}

/* Other ranks are waited for, one of which may hang: those who only read need not wait with it. */
static void meanwhile(void *context)
{
    service_h service = context;
    if (service->desk > 0 || !service->interrupts)
        return;
    service->desk = 1;
    engine_round(service);
    service->desk = 0;
}

/* @return whether there is more to do at once */
static bool tend(service_h service)
{
    lode_fabric_h fabric = service->cluster->fabric;
    int more = 0;
    service->interrupts = true;
    if (lode_cluster_tend(service->cluster, TEND_US, &more) != LODE_OK)
        lode_debug("tending: %s", lode_error_message());
    uint32_t epoch = lode_fabric_epoch(fabric);
    if (epoch != service->swept_epoch && lode_leader(service->cluster) == lode_fabric_rank(fabric) &&
        !lode_fabric_fenced(fabric))
        serve_sweep(service);
    service->swept_epoch = epoch;
    service->interrupts = false;
    return more;
}

static void engine_sleep(service_h service, uint64_t timeout_ns)
{
    mailbox_bell_t *bell = service->bell;
    uint32_t seen = atomic_load(&bell->rung);
    atomic_store(&bell->sleeps, 1);
    if (!engine_round(service) && !atomic_load(&service->stop))
        mailbox_sleep(&bell->rung, seen, timeout_ns);
    atomic_store(&bell->sleeps, 0);
}

lode_status_t service_run(service_h service)
{
    uint64_t spin = (uint64_t)service->params.spin_us * 1000, worked = lode_now_ns(), tended = worked;
    bool more = false;
    while (!atomic_load(&service->stop)) {
        uint64_t now = lode_now_ns();
        bool any = engine_round(service);
        if (any)
            worked = now;
        if ((!any && now - tended > 1000000) || now - tended > IDLE_SLEEP_NS) {
            more = tend(service);
            tended = now;
            if (lode_fabric_expelled(service->cluster->fabric))
                return lode_fail(LODE_ERR_PEER_LOST, "the other ranks went on without this one");
        }
        if (!any && now - worked > spin)
            engine_sleep(service, more ? TEND_SLEEP_NS : IDLE_SLEEP_NS);
    }
    return LODE_OK;
}

void service_stop(service_h service)
{
    int cause = errno;
    atomic_store(&service->stop, true);
    mailbox_ring(service->bell);
    front_wake(service);
    errno = cause;
}

/* ------------------------------------------------------------ start and end */

static lode_status_t create_desk(server_desk_t *desk)
{
    desk->answer = calloc(1, sizeof *desk->answer);
    if (!desk->answer)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the answers to clients");
    LODE_TRY(session_room_create(&desk->room, SESSION_UNPACK_BYTES));
    LODE_TRY(lode_buffer_reserve(&desk->request_header, MAILBOX_HEADER_BYTES));
    return lode_buffer_reserve(&desk->request_payload, MAILBOX_PAYLOAD_BYTES);
}

static void destroy_desk(server_desk_t *desk)
{
    session_room_destroy(&desk->room);
    lode_buffer_free(&desk->request_header);
    lode_buffer_free(&desk->request_payload);
    lode_buffer_free(&desk->reply_payload);
    free(desk->answer);
}

static lode_status_t create_engine(service_h service)
{
    void *bell;
    service->sessions = calloc(service->params.clients, sizeof *service->sessions);
    if (!service->sessions)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u clients", service->params.clients);
    for (uint32_t i = 0; i < service->params.clients; i++)
        service->sessions[i].slot = i;
    LODE_TRY(mailbox_make(sizeof *service->bell, &service->bell_fd, &bell));
    service->bell = bell;
    for (uint32_t i = 0; i < sizeof service->desks / sizeof *service->desks; i++)
        LODE_TRY(create_desk(&service->desks[i]));
    lode_fabric_meanwhile(service->cluster->fabric, meanwhile, service);
    return LODE_OK;
}

lode_status_t service_create(const service_params_t *params, service_h *out)
{
    service_h service = calloc(1, sizeof *service);
    if (!service)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a service");
    service->params = *params;
    service->cluster = params->cluster;
    service->bell_fd = service->listener = service->poll = service->wake = -1;
    service->self.rank = lode_fabric_rank(params->cluster->fabric);
    service->swept_epoch = lode_fabric_epoch(params->cluster->fabric);
    pthread_mutex_init(&service->ranks_lock, NULL);
    memcpy(service->self.host, lode_fabric_members(params->cluster->fabric)[service->self.rank].host,
           sizeof service->self.host);
    mailbox_host(service->host);
    lode_status_t status = create_engine(service);
    if (status == LODE_OK)
        status = front_create(service);
    if (status != LODE_OK) {
        service_destroy(&service);
        return status;
    }
    *out = service;
    return LODE_OK;
}

void service_contact(service_h service, service_contact_t *contact)
{
    *contact = service->self;
}

lode_status_t service_learn(service_h service, const service_contact_t *contact)
{
    uint32_t at = 0;
    lode_status_t status = LODE_OK;
    pthread_mutex_lock(&service->ranks_lock);
    while (at < service->rank_count && service->ranks[at].rank != contact->rank)
        at++;
    if (at == service->rank_count) {
        service_contact_t *more = realloc(service->ranks, (at + 1) * sizeof *more);
        if (more) {
            service->ranks = more;
            service->rank_count++;
        } else {
            status = lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u ranks", at + 1);
        }
    }
    if (status == LODE_OK)
        service->ranks[at] = *contact;
    pthread_mutex_unlock(&service->ranks_lock);
    atomic_fetch_add(&service->news, 1);
    front_wake(service);
    return status;
}

lode_status_t service_open(service_h service, const service_contact_t *ranks, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        LODE_TRY(service_learn(service, &ranks[i]));
    return front_start(service);
}

static void destroy_session(service_h service, server_session_t *session)
{
    if (atomic_load(&session->life) == SERVER_LIVE || atomic_load(&session->life) == SERVER_LEAVING)
        serve_farewell(service, session);
    if (session->mailbox) {
        munmap(session->mailbox, sizeof *session->mailbox);
        close(session->mailbox_fd);
    }
    free(session->payload);
    lode_buffer_free(&session->header);
    lode_buffer_free(&session->reply_header);
    lode_buffer_free(&session->reply_payload);
}

void service_destroy(service_h *handle)
{
    service_h service = *handle;
    atomic_store(&service->stop, true);
    lode_fabric_meanwhile(service->cluster->fabric, NULL, NULL);
    front_stop(service, GOODBYE_NS);
    for (uint32_t i = 0; service->sessions && i < service->params.clients; i++)
        destroy_session(service, &service->sessions[i]);
    front_destroy(service);
    if (service->bell)
        munmap(service->bell, sizeof *service->bell);
    if (service->bell_fd >= 0)
        close(service->bell_fd);
    for (size_t i = 0; i < sizeof service->desks / sizeof *service->desks; i++)
        destroy_desk(&service->desks[i]);
    lode_buffer_free(&service->streams);
    lode_buffer_free(&service->tensors);
    pthread_mutex_destroy(&service->ranks_lock);
    free(service->ranks);
    free(service->sessions);
    free(service);
    *handle = NULL;
}
