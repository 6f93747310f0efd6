/* SPDX-License-Identifier: Apache-2.0 */
/* One connection to a rank, and what goes over it. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "service/client_inside.h"

#define MS UINT64_C(1000000)
#define PING_NS (250 * MS)
#define DOUBT_SHARE 3        /* part of the patience with a silent rank after which another is looked for */
#define LOOK_NS (20 * MS)    /* how often a wait on the mailbox looks at the connection */
#define GLANCE_NS (200 * MS) /* and how often it is looked at between short waits */
enum { PARTS_MAX = 64, LOST_MOST = 8 /* during one call */ };

lode_status_t client_reserve(client_buffer_t *buffer, size_t bytes)
{
    if (bytes <= buffer->bytes)
        return LODE_OK;
    size_t room = (bytes + bytes / 4 + 63) & ~(size_t)63;
    uint8_t *data = aligned_alloc(64, room);
    if (!data)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a message of %zu bytes", bytes);
    free(buffer->data);
    *buffer = (client_buffer_t){data, room};
    return LODE_OK;
}

/* --------------------------------------------------------------------- ends */

void client_close(lode_cluster_h cluster)
{
    client_link_t *link = &cluster->link;
    if (link->fd >= 0)
        close(link->fd);
    if (link->mailbox)
        munmap(link->mailbox, sizeof *link->mailbox);
    if (link->bell)
        munmap(link->bell, sizeof *link->bell);
    link->fd = -1;
    link->mailbox = NULL;
    link->bell = NULL;
    link->got = 0;
    link->asked_ns = 0;
}

lode_status_t client_broken(lode_cluster_h cluster, const char *cause)
{
    snprintf(cluster->link.cause, sizeof cluster->link.cause, "%s", cause);
    client_shun(cluster, cluster->link.rank);
    lode_debug("rank %u of the service: %s", cluster->link.rank, cause);
    client_close(cluster);
    return lode_fail(LODE_ERR_PEER_LOST, "rank %u of the service: %s", cluster->link.rank, cause);
}

/* ------------------------------------------------------------------ sending */

static bool wait_for(int fd, short what, uint64_t timeout_ns)
{
    struct pollfd one = {.fd = fd, .events = what};
    return poll(&one, 1, (int)((timeout_ns + MS - 1) / MS)) > 0;
}

/* Send all parts, for as long as the rank goes on taking bytes. */
static lode_status_t send_parts(lode_cluster_h cluster, struct iovec *parts, int count)
{
    uint64_t moved = lode_now_ns(), patience = cluster->hung_ns + PING_NS;
    while (count) {
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)(count < PARTS_MAX ? count : PARTS_MAX)};
        ssize_t sent = sendmsg(cluster->link.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN && errno != EINTR)
            return client_broken(cluster, "the connection broke");
        if (sent > 0)
            moved = lode_now_ns();
        else if (lode_now_ns() - moved > patience * 10)
            return client_broken(cluster, "it takes no more bytes");
        else
            wait_for(cluster->link.fd, POLLOUT, PING_NS);
        for (; sent > 0 && count && (size_t)sent >= parts->iov_len; parts++, count--)
            sent -= (ssize_t)parts->iov_len;
        for (; count && parts->iov_len == 0; parts++)
            count--;
        if (sent > 0)
            *parts = (struct iovec){(uint8_t *)parts->iov_base + sent, parts->iov_len - (size_t)sent};
    }
    return LODE_OK;
}

static lode_status_t send_ping(lode_cluster_h cluster)
{
    uint8_t header[64];
    Lodemark__SessionCall call = LODEMARK__SESSION_CALL__INIT;
    call.id = cluster->link.ping = ++cluster->last_id;
    session_frame_t frame = {.magic = SESSION_MAGIC,
                             .kind = SESSION_PING,
                             .header_bytes = (uint32_t)lodemark__session_call__pack(&call, header)};
    struct iovec parts[] = {{&frame, sizeof frame}, {header, frame.header_bytes}};
    cluster->link.asked_ns = lode_now_ns();
    return send_parts(cluster, parts, 2);
}

static size_t padding(const client_ask_t *ask, size_t bytes)
{
    return ask->padded ? -bytes & 63 : 0;
}

static size_t payload_size(const client_ask_t *ask)
{
    size_t bytes = 0;
    for (uint32_t i = 0; i < ask->count; i++)
        bytes += ask->parts[i].bytes + padding(ask, ask->parts[i].bytes);
    return bytes;
}

static lode_status_t send_call(lode_cluster_h cluster, const client_ask_t *ask)
{
    static const uint8_t zeros[64];
    size_t header = lodemark__session_call__get_packed_size(&ask->call);
    session_frame_t frame = {.magic = SESSION_MAGIC,
                             .kind = SESSION_CALL,
                             .header_bytes = (uint32_t)header,
                             .payload_bytes = payload_size(ask)};
    if (header > SESSION_HEADER_MAX || frame.payload_bytes > SESSION_PAYLOAD_MAX)
        return lode_fail(LODE_ERR_INVALID, "a call of %zu and %llu bytes: %u and %llu are the most", header,
                         (unsigned long long)frame.payload_bytes, SESSION_HEADER_MAX,
                         (unsigned long long)SESSION_PAYLOAD_MAX);
    LODE_TRY(client_reserve(&cluster->request, header + (2 + 2 * (size_t)ask->count) * sizeof(struct iovec) + 64));
    struct iovec *parts = (struct iovec *)cluster->request.data;
    int count = 2;
    for (uint32_t i = 0; i < ask->count; i++) {
        parts[count++] = (struct iovec){(void *)(uintptr_t)ask->parts[i].data, ask->parts[i].bytes};
        parts[count++] = (struct iovec){(void *)(uintptr_t)zeros, padding(ask, ask->parts[i].bytes)};
    }
    uint8_t *packed = (uint8_t *)(parts + count);
    lodemark__session_call__pack(&ask->call, packed);
    parts[0] = (struct iovec){&frame, sizeof frame};
    parts[1] = (struct iovec){packed, header};
    return send_parts(cluster, parts, count);
}

/* ---------------------------------------------------------------- receiving */

static size_t next_place(client_link_t *link, uint8_t **at)
{
    size_t head = sizeof link->frame, header = link->frame.header_bytes;
    if (link->got < head) {
        *at = (uint8_t *)&link->frame + link->got;
        return head - link->got;
    }
    if (link->got < head + header) {
        *at = link->header.data + (link->got - head);
        return head + header - link->got;
    }
    *at = link->payload.data + (link->got - head - header);
    return head + header + link->frame.payload_bytes - link->got;
}

static lode_status_t on_head(client_link_t *link)
{
    LODE_TRY(session_frame_check(&link->frame, true));
    LODE_TRY(client_reserve(&link->header, link->frame.header_bytes));
    return client_reserve(&link->payload, link->frame.payload_bytes);
}

/* Receive what is there. @p whole: a message is complete; the next call begins a new one. */
static lode_status_t receive(lode_cluster_h cluster, bool *whole)
{
    client_link_t *link = &cluster->link;
    *whole = false;
    for (;;) {
        uint8_t *at;
        size_t room = next_place(link, &at);
        ssize_t got = recv(link->fd, at, room, MSG_DONTWAIT);
        if (got == 0)
            return client_broken(cluster, "it closed the connection");
        if (got < 0)
            return errno == EAGAIN || errno == EINTR ? LODE_OK : client_broken(cluster, "the connection broke");
        link->got += (size_t)got;
        link->heard_ns = lode_now_ns();
        if (link->got == sizeof link->frame && on_head(link) != LODE_OK)
            return client_broken(cluster, lode_error_message());
        if (link->got >= sizeof link->frame &&
            link->got == sizeof link->frame + link->frame.header_bytes + link->frame.payload_bytes) {
            link->got = 0;
            *whole = true;
            return LODE_OK;
        }
    }
}

static lode_status_t read_message(lode_cluster_h cluster, const Lodemark__SessionReply **reply)
{
    client_link_t *link = &cluster->link;
    *reply = session_reply(&cluster->room, link->header.data, link->frame.header_bytes);
    if (!*reply)
        return client_broken(cluster, "it sent what is no message");
    if (link->frame.kind == SESSION_PONG && (*reply)->id == link->ping) {
        link->pong = link->ping;
        link->asked_ns = 0;
    }
    if ((*reply)->id == 0 && (*reply)->welcome)
        client_learn(cluster, (*reply)->welcome); /* ranks have joined */
    return LODE_OK;
}

/*
 * A rank that is not heard of is asked for a sign of life; one that gives none is as good as dead. Where nothing is
 * lost by it, a client goes to another rank that answers before it is sure of that.
 */
static lode_status_t check_pulse(lode_cluster_h cluster, uint64_t waits_since)
{
    client_link_t *link = &cluster->link;
    uint64_t now = lode_now_ns(), heard = link->heard_ns > waits_since ? link->heard_ns : waits_since;
    if (link->asked_ns && now - link->asked_ns > cluster->hung_ns)
        return client_broken(cluster, "it gives no sign of life");
    if (link->asked_ns && now - link->asked_ns > cluster->hung_ns / DOUBT_SHARE && link->scouted != link->ping &&
        cluster->may_move && cluster->writing == 0) {
        link->scouted = link->ping; /* once a ping: it costs others a connection */
        if (client_scout(cluster))
            return client_broken(cluster, "it gives no sign of life, and another rank does");
    }
    if (!link->asked_ns && now - heard > PING_NS)
        return send_ping(cluster);
    return LODE_OK;
}

/* Whether a message is the end of it: a refusal closes the door, a goodbye comes unasked. */
static lode_status_t check_refusal(lode_cluster_h cluster, const Lodemark__SessionReply *reply)
{
    if (reply->status == LODE_ERR_REFUSED && reply->elsewhere)
        return client_broken(cluster, session_text_is_fine(reply->message) ? reply->message : "it refuses");
    return LODE_OK;
}

lode_status_t client_await(lode_cluster_h cluster, uint64_t id, uint64_t deadline_ns,
                           const Lodemark__SessionReply **reply)
{
    uint64_t since = lode_now_ns();
    bool whole;
    for (;;) {
        LODE_TRY(receive(cluster, &whole));
        if (whole) {
            LODE_TRY(read_message(cluster, reply));
            LODE_TRY(check_refusal(cluster, *reply));
            if (cluster->link.frame.kind == SESSION_REPLY &&
                ((*reply)->id == id || ((*reply)->id == 0 && (*reply)->status != LODE_OK)))
                return LODE_OK;
            continue;
        }
        if (deadline_ns && lode_now_ns() > deadline_ns)
            return client_broken(cluster, "it does not answer");
        LODE_TRY(check_pulse(cluster, since));
        wait_for(cluster->link.fd, POLLIN, LOOK_NS);
    }
}

/* ----------------------------------------------------------------- mailbox */

static bool fits_mailbox(const lode_cluster_h cluster, const client_ask_t *ask)
{
    return cluster->link.mailbox && ask->mailbox && payload_size(ask) <= MAILBOX_PAYLOAD_BYTES &&
           lodemark__session_call__get_packed_size(&ask->call) <= MAILBOX_HEADER_BYTES;
}

static void post(lode_cluster_h cluster, const client_ask_t *ask)
{
    mailbox_half_t *half = &cluster->link.mailbox->request;
    size_t at = 0;
    for (uint32_t i = 0; i < ask->count; i++) {
        memcpy(half->payload + at, ask->parts[i].data, ask->parts[i].bytes);
        at += ask->parts[i].bytes + padding(ask, ask->parts[i].bytes);
    }
    half->payload_bytes = (uint32_t)at;
    half->header_bytes = (uint32_t)lodemark__session_call__pack(&ask->call, half->header);
    atomic_store(&half->serial, ++cluster->link.serial);
    mailbox_ring(cluster->link.bell);
}

static bool answered(mailbox_half_t *half, uint32_t serial)
{
    return atomic_load_explicit(&half->serial, memory_order_acquire) == serial;
}

/*
 * Alone, a client polls about as long as steps take: a wake-up costs as much as handing the step over. Beside others
 * that would take the processor from those who compute.
 */
static uint64_t patience_of(lode_cluster_h cluster)
{
    uint64_t expected = cluster->reply_ns * 2;
    bool alone = atomic_load_explicit(&cluster->link.bell->clients, memory_order_relaxed) <= 1;
    return alone && expected > cluster->spin_ns && expected < 20 * MS ? expected : cluster->spin_ns;
}

/* What came over the connection beside steps through the mailbox: pongs, news of ranks, a goodbye, or its end. */
static lode_status_t look_at_connection(lode_cluster_h cluster, uint64_t since)
{
    const Lodemark__SessionReply *reply;
    bool whole = true;
    cluster->link.looked_ns = lode_now_ns();
    while (whole) {
        LODE_TRY(receive(cluster, &whole));
        if (whole) {
            LODE_TRY(read_message(cluster, &reply));
            LODE_TRY(check_refusal(cluster, reply));
        }
    }
    return check_pulse(cluster, since);
}

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static lode_status_t await_mailbox(lode_cluster_h cluster)
{
    mailbox_half_t *half = &cluster->link.mailbox->reply;
    uint32_t serial = cluster->link.serial;
    uint64_t begin = lode_now_ns(), patience = patience_of(cluster), now;
    for (now = begin; now - begin < patience; now = lode_now_ns())
        for (int i = 0; i < 32; i++) {
            if (answered(half, serial))
                return LODE_OK;
            relax();
        }
    while (!answered(half, serial)) {
        uint32_t seen = atomic_load(&half->serial);
        atomic_store(&half->sleeps, 1);
        if (seen != serial)
            mailbox_sleep(&half->serial, seen, LOOK_NS);
        atomic_store(&half->sleeps, 0);
        now = lode_now_ns();
        if (now - begin > LOOK_NS && now - cluster->link.looked_ns > LOOK_NS && !answered(half, serial))
            LODE_TRY(look_at_connection(cluster, begin));
    }
    return LODE_OK;
}

static lode_status_t exchange_mailbox(lode_cluster_h cluster, client_ask_t *ask)
{
    mailbox_half_t *half = &cluster->link.mailbox->reply;
    uint64_t begin = lode_now_ns();
    if (begin - cluster->link.looked_ns > GLANCE_NS)
        LODE_TRY(look_at_connection(cluster, begin));
    post(cluster, ask);
    LODE_TRY(await_mailbox(cluster));
    cluster->reply_ns = (cluster->reply_ns * 3 + (lode_now_ns() - begin)) / 4;
    if (half->header_bytes > sizeof half->header || half->payload_bytes > sizeof half->payload)
        return client_broken(cluster, "it sent what is no message");
    ask->reply = session_reply(&cluster->room, half->header, half->header_bytes);
    if (!ask->reply)
        return client_broken(cluster, "it sent what is no message");
    ask->payload = half->payload;
    ask->payload_bytes = half->payload_bytes;
    return check_refusal(cluster, ask->reply);
}

/* ----------------------------------------------------------------- exchange */

lode_status_t client_reply_status(const Lodemark__SessionReply *reply)
{
    if (reply->status == LODE_OK)
        return LODE_OK;
    bool fine = reply->message[0] && session_text_is_fine(reply->message) && reply->status < 0;
    return lode_fail(reply->status < 0 ? (lode_status_t)reply->status : LODE_ERR_FORMAT, "%s",
                     fine ? reply->message : "the service gave an error without a readable cause");
}

lode_status_t client_exchange(lode_cluster_h cluster, client_ask_t *ask)
{
    ask->call.id = ++cluster->last_id;
    if (fits_mailbox(cluster, ask)) {
        LODE_TRY(exchange_mailbox(cluster, ask));
    } else {
        LODE_TRY(send_call(cluster, ask));
        LODE_TRY(client_await(cluster, ask->call.id, 0, &ask->reply));
        ask->payload = cluster->link.payload.data;
        ask->payload_bytes = cluster->link.frame.payload_bytes;
    }
    return client_reply_status(ask->reply);
}

/* What cannot be asked twice is not sent into a connection whose end, or whose goodbye, is here already. */
static void look_before(lode_cluster_h cluster)
{
    const Lodemark__SessionReply *reply;
    bool whole;
    if (receive(cluster, &whole) == LODE_OK && whole && read_message(cluster, &reply) == LODE_OK)
        check_refusal(cluster, reply);
}

lode_status_t client_ask(lode_cluster_h cluster, client_ask_t *ask)
{
    uint64_t begin = lode_now_ns();
    if (cluster->link.fd >= 0 && !ask->again)
        look_before(cluster);
    for (uint32_t lost = 0;; lost++) {
        uint64_t spent = lode_now_ns() - begin;
        if (cluster->link.fd < 0)
            LODE_TRY(client_connect(cluster, spent < cluster->reconnect_ns ? cluster->reconnect_ns - spent : 0));
        cluster->may_move = ask->again;
        lode_status_t status = ask->prepare ? ask->prepare(cluster, ask) : LODE_OK;
        bool sent = status == LODE_OK;
        if (sent)
            status = client_exchange(cluster, ask);
        cluster->may_move = false; /* while it looks for a rank */
        if (status == LODE_OK || cluster->link.fd >= 0)
            return status;
        if (sent && !ask->again)
            return lode_fail(LODE_ERR_PEER_LOST,
                             "rank %u of the service was lost during a call (%s): whether it was "
                             "carried out is not known",
                             cluster->link.rank, cluster->link.cause);
        if (lost == LOST_MOST)
            return lode_fail(LODE_ERR_PEER_LOST,
                             "rank %u of the service was lost (%s), and %u before it: it is not asked again",
                             cluster->link.rank, cluster->link.cause, lost);
        lode_info("rank %u of the service: %s; going on with another", cluster->link.rank, cluster->link.cause);
    }
}

lode_status_t client_ping(lode_cluster_h cluster, uint64_t *round_trip_ns)
{
    const Lodemark__SessionReply *reply;
    if (cluster->link.fd < 0)
        LODE_TRY(client_connect(cluster, cluster->reconnect_ns));
    uint64_t begin = lode_now_ns();
    bool whole;
    LODE_TRY(send_ping(cluster));
    while (cluster->link.pong != cluster->link.ping) {
        LODE_TRY(receive(cluster, &whole));
        if (whole) {
            LODE_TRY(read_message(cluster, &reply));
            LODE_TRY(check_refusal(cluster, reply));
            continue;
        }
        LODE_TRY(check_pulse(cluster, begin));
        wait_for(cluster->link.fd, POLLIN, LOOK_NS);
    }
    *round_trip_ns = lode_now_ns() - begin;
    return LODE_OK;
}
