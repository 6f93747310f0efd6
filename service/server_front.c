/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The sockets of a service, on a thread of their own. A stranger gets a head of 24 bytes and a Hello of at most 1 KiB
 * read, for two seconds, and an answer only if its token is right or plainly wrong; beyond so many silent ones the
 * oldest is closed for each that comes. Nothing is allocated by what a message announces before its sender is known.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "service/server_inside.h"

#define SECOND_NS UINT64_C(1000000000)
#define HELLO_NS (2 * SECOND_NS)
#define STALL_NS (30 * SECOND_NS) /* of a message that does not go on */
#define TICK_MS 50
enum { EVENTS = 64, SILENT_MAX = 1024, TURN_BYTES = 4 << 20, PING_MAX = 64 };

/* -------------------------------------------------------------------- links */

static void link_enter(service_h service, server_link_t *link)
{
    link->previous = service->newest;
    if (service->newest)
        service->newest->next = link;
    else
        service->oldest = link;
    service->newest = link;
}

static void link_remove(service_h service, server_link_t *link)
{
    *(link->previous ? &link->previous->next : &service->oldest) = link->next;
    *(link->next ? &link->next->previous : &service->newest) = link->previous;
}

/* What the session holds is the engine's to give back. */
static void link_close(service_h service, server_link_t *link)
{
    link_remove(service, link);
    service->silent -= !link->greeted;
    close(link->fd);
    if (link->session) {
        link->session->link = NULL;
        atomic_store_explicit(&link->session->life, SERVER_LEAVING, memory_order_release);
        atomic_fetch_sub(&service->cluster->clients, 1);
        atomic_fetch_sub(&service->bell->clients, 1);
        mailbox_ring(service->bell);
    }
    lode_buffer_free(&link->note);
    free(link);
}

static void close_oldest_silent(service_h service)
{
    for (server_link_t *link = service->oldest; link; link = link->next)
        if (!link->greeted && !link->failed) {
            link->failed = true;
            return;
        }
}

static void link_watch(service_h service, server_link_t *link)
{
    struct epoll_event event = {.events = (link->waits ? 0 : EPOLLIN) | (link->wants_out ? EPOLLOUT : 0),
                                .data.ptr = link};
    if (epoll_ctl(service->poll, EPOLL_CTL_MOD, link->fd, &event) != 0)
        link->failed = true;
}

/* ------------------------------------------------------------------ sending */

static bool has_reply(const server_link_t *link)
{
    return link->session && atomic_load_explicit(&link->session->call, memory_order_acquire) == SERVER_DONE;
}

/* @return bytes taken, 0 if none now; -1 if the connection is gone */
static ssize_t send_some(server_link_t *link, struct iovec *parts, int count)
{
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    ssize_t sent = sendmsg(link->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return 0;
    return sent;
}

/* The parts of a message behind its first @p sent bytes. */
static int rest_of(struct iovec *parts, int count, size_t sent)
{
    int left = 0;
    for (int i = 0; i < count; i++) {
        if (sent >= parts[i].iov_len) {
            sent -= parts[i].iov_len;
            continue;
        }
        parts[left++] = (struct iovec){(uint8_t *)parts[i].iov_base + sent, parts[i].iov_len - sent};
        sent = 0;
    }
    return left;
}

/* @return whether it is out */
static bool send_reply(server_link_t *link)
{
    server_session_t *session = link->session;
    struct iovec parts[] = {{&session->reply_frame, sizeof session->reply_frame},
                            {session->reply_header.data, session->reply_frame.header_bytes},
                            {session->reply_payload.data, session->reply_frame.payload_bytes}};
    size_t whole = sizeof session->reply_frame + session->reply_frame.header_bytes + session->reply_frame.payload_bytes;
    ssize_t sent = session->reply_frame.magic ? send_some(link, parts, rest_of(parts, 3, link->reply_sent)) : -1;
    if (sent < 0) {
        link->failed = true;
        return false;
    }
    link->reply_sent += (size_t)sent;
    if (link->reply_sent < whole)
        return false;
    link->reply_sent = 0;
    if (session->reply_payload.bytes > SERVER_KEPT_BYTES)
        lode_buffer_free(&session->reply_payload);
    atomic_store_explicit(&session->call, SERVER_IDLE, memory_order_release);
    return true;
}

static bool send_note(server_link_t *link)
{
    struct iovec part = {(uint8_t *)link->note.data + link->note_sent, link->note_bytes - link->note_sent};
    ssize_t sent = send_some(link, &part, 1);
    if (sent < 0) {
        link->failed = true;
        return false;
    }
    link->note_sent += (size_t)sent;
    if (link->note_sent < link->note_bytes)
        return false;
    link->note_bytes = link->note_sent = 0;
    return true;
}

static void put_note(server_link_t *link, session_kind_t kind, const Lodemark__SessionReply *reply)
{
    session_frame_t frame = {.magic = SESSION_MAGIC,
                             .kind = kind,
                             .header_bytes = (uint32_t)lodemark__session_reply__get_packed_size(reply)};
    if (lode_buffer_reserve(&link->note, sizeof frame + frame.header_bytes) != LODE_OK) {
        link->failed = true;
        return;
    }
    memcpy(link->note.data, &frame, sizeof frame);
    lodemark__session_reply__pack(reply, (uint8_t *)link->note.data + sizeof frame);
    link->note_bytes = sizeof frame + frame.header_bytes;
    link->note_sent = 0;
}

static void put_pong(server_link_t *link)
{
    Lodemark__SessionReply pong = LODEMARK__SESSION_REPLY__INIT;
    pong.id = link->pong;
    link->pong = 0;
    put_note(link, SESSION_PONG, &pong);
}

/* Messages go out whole, one behind the other; a pong passes replies that have not begun. */
static void link_send(service_h service, server_link_t *link)
{
    bool out = true;
    while (out && !link->failed) {
        if (link->reply_sent)
            out = send_reply(link);
        else if (link->note_bytes)
            out = send_note(link);
        else if (link->pong)
            put_pong(link);
        else if (has_reply(link))
            out = send_reply(link);
        else
            break;
    }
    link->failed |= out && link->parting;
    if (link->wants_out == out && !link->failed) {
        link->wants_out = !out;
        link->deadline_ns = out ? 0 : lode_now_ns() + (link->parting ? HELLO_NS : STALL_NS);
        link_watch(service, link);
    }
}

/* -------------------------------------------------------------------- hello */

static void refuse(service_h service, server_link_t *link, bool elsewhere, const char *sentence)
{
    Lodemark__SessionReply reply = LODEMARK__SESSION_REPLY__INIT;
    reply.status = LODE_ERR_REFUSED;
    reply.elsewhere = elsewhere;
    reply.message = (char *)(uintptr_t)sentence;
    put_note(link, SESSION_REPLY, &reply);
    link->parting = true;
    link_send(service, link);
}

static server_session_t *free_session(service_h service)
{
    for (uint32_t i = 0; i < service->params.clients; i++)
        if (atomic_load_explicit(&service->sessions[i].life, memory_order_acquire) == SERVER_FREE)
            return &service->sessions[i];
    return NULL;
}

/* Memory that only this client and this rank see, if they run on one host. It can do without. */
static bool offer_mailbox(service_h service, server_session_t *session, const char *host, Lodemark__Welcome *welcome,
                          Lodemark__MemoryFile files[2])
{
    void *memory;
    if (!service->host[0] || strcmp(service->host, host) != 0 ||
        mailbox_make(sizeof(mailbox_t), &session->mailbox_fd, &memory) != LODE_OK)
        return false;
    session->mailbox = memory;
    lodemark__memory_file__init(&files[0]);
    lodemark__memory_file__init(&files[1]);
    if (mailbox_describe(session->mailbox_fd, &files[0]) != LODE_OK ||
        mailbox_describe(service->bell_fd, &files[1]) != LODE_OK)
        return false;
    welcome->mailbox = &files[0];
    welcome->bell = &files[1];
    return true;
}

/* The addresses of all that live, with what else the reply has. */
static void put_ranks(service_h service, server_link_t *link, Lodemark__Welcome *welcome, Lodemark__SessionReply *reply)
{
    link->news = atomic_load(&service->news);
    pthread_mutex_lock(&service->ranks_lock);
    Lodemark__Contact *contacts = calloc(service->rank_count, sizeof *contacts), **list;
    list = calloc(service->rank_count, sizeof *list);
    for (uint32_t i = 0; contacts && list && i < service->rank_count; i++) {
        service_contact_t *rank = &service->ranks[i];
        if (rank->rank >= lode_fabric_ranks(service->cluster->fabric) ||
            !lode_fabric_alive(service->cluster->fabric, rank->rank))
            continue;
        Lodemark__Contact *contact = &contacts[welcome->n_ranks];
        lodemark__contact__init(contact);
        contact->rank = rank->rank;
        contact->host = rank->host;
        contact->address = rank->address;
        contact->port = rank->port;
        list[welcome->n_ranks++] = contact;
    }
    welcome->ranks = list;
    welcome->rank = service->self.rank;
    reply->welcome = welcome;
    put_note(link, SESSION_REPLY, reply);
    pthread_mutex_unlock(&service->ranks_lock);
    free(contacts);
    free(list);
}

static void put_welcome(service_h service, server_link_t *link, const Lodemark__Hello *hello, uint64_t id)
{
    Lodemark__SessionReply reply = LODEMARK__SESSION_REPLY__INIT;
    Lodemark__Welcome welcome = LODEMARK__WELCOME__INIT;
    Lodemark__MemoryFile files[2];
    reply.id = id;
    welcome.protocol = hello->newest < SESSION_NEWEST ? hello->newest : SESSION_NEWEST;
    offer_mailbox(service, link->session, hello->host, &welcome, files);
    put_ranks(service, link, &welcome, &reply);
}

/* A rank has joined: clients learn where it is, so that they can go there when their own is lost. */
static void tell_news(service_h service, server_link_t *link)
{
    Lodemark__SessionReply reply = LODEMARK__SESSION_REPLY__INIT;
    Lodemark__Welcome ranks = LODEMARK__WELCOME__INIT;
    ranks.protocol = SESSION_NEWEST;
    put_ranks(service, link, &ranks, &reply);
    link_send(service, link);
}

static void welcome(service_h service, server_link_t *link, const Lodemark__Hello *hello, uint64_t id)
{
    server_session_t *session = free_session(service);
    char sentence[128];
    if (!session) {
        snprintf(sentence, sizeof sentence, "rank %u has %u clients, as many as it takes", service->self.rank,
                 service->params.clients);
        refuse(service, link, true, sentence);
        return;
    }
    link->greeted = true;
    link->deadline_ns = 0;
    service->silent--;
    link->session = session;
    session->link = link;
    session->mailbox_serial = 0;
    if (session->slot >= atomic_load(&service->slots))
        atomic_store_explicit(&service->slots, session->slot + 1, memory_order_release);
    atomic_store(&session->call, SERVER_IDLE);
    put_welcome(service, link, hello, id);
    atomic_fetch_add(&service->cluster->clients, 1);
    atomic_fetch_add(&service->bell->clients, 1);
    atomic_store_explicit(&session->life, SERVER_LIVE, memory_order_release);
    link_send(service, link);
}

static void on_hello(service_h service, server_link_t *link)
{
    const Lodemark__SessionCall *call = session_call(&service->front_room, link->hello, link->frame.header_bytes);
    char sentence[160];
    if (!call || link->frame.kind != SESSION_CALL || call->body_case != LODEMARK__SESSION_CALL__BODY_HELLO) {
        link->failed = true;
        return;
    }
    const Lodemark__Hello *hello = call->hello;
    if (!service_token_equal(&service->params.token, hello->token.data, hello->token.len)) {
        refuse(service, link, false, "the token is not the service's; say the right one by --token-file");
    } else if (hello->oldest > SESSION_NEWEST || hello->newest < SESSION_OLDEST || hello->oldest > hello->newest) {
        snprintf(sentence, sizeof sentence,
                 "the client speaks versions %u to %u of the protocol, the service %d to %d; bring them to one version",
                 hello->oldest, hello->newest, SESSION_OLDEST, SESSION_NEWEST);
        refuse(service, link, false, sentence);
    } else if (atomic_load(&service->stop)) {
        refuse(service, link, true, "the rank is shutting down");
    } else if (atomic_load(&service->cluster->filling)) {
        refuse(service, link, true, "the rank joined lately and does not know all blocks yet");
    } else {
        welcome(service, link, hello, call->id);
    }
}

/* ---------------------------------------------------------------- receiving */

/* A ping may come while a call is served; a second call may not. */
static lode_status_t check_frame(const server_link_t *link)
{
    LODE_TRY(session_frame_check(&link->frame, link->greeted));
    bool ping = link->frame.kind == SESSION_PING;
    if (ping && (!link->greeted || link->frame.header_bytes > PING_MAX || link->frame.payload_bytes))
        return lode_fail(LODE_ERR_FORMAT, "a ping of %u bytes", link->frame.header_bytes);
    if (!ping && link->frame.kind != SESSION_CALL)
        return lode_fail(LODE_ERR_FORMAT, "a message of kind %u from a client", link->frame.kind);
    if (!ping && link->session && atomic_load(&link->session->call) != SERVER_IDLE)
        return lode_fail(LODE_ERR_FORMAT, "a call before the last one was answered");
    return LODE_OK;
}

/* Memory for what has been announced, by somebody who is known. @return false: not now, or failed */
static bool make_room(service_h service, server_link_t *link)
{
    server_session_t *session = link->session;
    uint64_t bytes = link->frame.payload_bytes;
    if (!link->greeted || link->frame.kind == SESSION_PING)
        return true;
    if (bytes > SERVER_KEPT_BYTES && !session->staged) {
        link->waits = !staging_take(service, bytes);
        if (link->waits) {
            link_watch(service, link);
            return false;
        }
        session->staged = bytes;
    }
    link->failed = lode_buffer_reserve(&session->header, link->frame.header_bytes) != LODE_OK;
    if (bytes > session->payload_room) {
        free(session->payload);
        session->payload_room = (bytes + 63) & ~(uint64_t)63;
        session->payload = aligned_alloc(64, session->payload_room);
        if (!session->payload) {
            session->payload_room = 0;
            link->failed = true;
        }
    }
    return !link->failed;
}

static void on_message(service_h service, server_link_t *link)
{
    link->got = 0;
    link->deadline_ns = link->greeted ? 0 : link->deadline_ns;
    if (!link->greeted) {
        on_hello(service, link);
    } else if (link->frame.kind == SESSION_PING) {
        const Lodemark__SessionCall *ping = session_call(&service->front_room, link->hello, link->frame.header_bytes);
        link->failed |= !ping || !ping->id;
        link->pong = link->failed ? 0 : ping->id;
        link_send(service, link);
    } else {
        link->session->header_bytes = link->frame.header_bytes;
        link->session->payload_bytes = link->frame.payload_bytes;
        atomic_store_explicit(&link->session->call, SERVER_READY, memory_order_release);
        mailbox_ring(service->bell);
    }
}

/* Where the next byte belongs, and how many belong there. */
static size_t next_place(server_link_t *link, uint8_t **at)
{
    size_t head = sizeof link->frame, header = link->frame.header_bytes;
    bool small = !link->greeted || link->frame.kind == SESSION_PING;
    if (link->got < head) {
        *at = (uint8_t *)&link->frame + link->got;
        return head - link->got;
    }
    if (link->got < head + header) {
        *at = (small ? link->hello : (uint8_t *)link->session->header.data) + (link->got - head);
        return head + header - link->got;
    }
    *at = link->session->payload + (link->got - head - header);
    return head + header + link->frame.payload_bytes - link->got;
}

/* Receive one piece. @return whether there may be more now */
static bool receive_piece(service_h service, server_link_t *link, size_t *turn)
{
    uint8_t *at;
    size_t room = next_place(link, &at);
    ssize_t got = recv(link->fd, at, room < TURN_BYTES ? room : TURN_BYTES, MSG_DONTWAIT);
    if (got <= 0) {
        link->failed |= got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
        return false;
    }
    link->got += (size_t)got;
    *turn += (size_t)got;
    if (link->greeted)
        link->deadline_ns = lode_now_ns() + STALL_NS;
    if (link->got == sizeof link->frame) {
        link->failed = check_frame(link) != LODE_OK;
        if (link->failed || !make_room(service, link))
            return false;
    }
    if (link->got > sizeof link->frame &&
        link->got == sizeof link->frame + link->frame.header_bytes + link->frame.payload_bytes)
        on_message(service, link);
    return !link->failed && !link->parting;
}

static void link_receive(service_h service, server_link_t *link)
{
    size_t turn = 0;
    if (link->failed || link->parting)
        return;
    while (turn < TURN_BYTES && receive_piece(service, link, &turn))
        ;
}

/* ------------------------------------------------------------------- accept */

static void link_create(service_h service, int fd)
{
    int on = 1, idle = 10, interval = 3, probes = 3;
    server_link_t *link = calloc(1, sizeof *link);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = link};
    if (!link || epoll_ctl(service->poll, EPOLL_CTL_ADD, fd, &event) != 0) {
        free(link);
        close(fd);
        return;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
    link->fd = fd;
    link->deadline_ns = lode_now_ns() + HELLO_NS;
    link_enter(service, link);
    if (++service->silent > service->silent_max)
        close_oldest_silent(service);
}

static void accept_some(service_h service)
{
    for (int i = 0; i < EVENTS; i++) {
        int fd = accept4(service->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd < 0 && (errno == EMFILE || errno == ENFILE))
            close_oldest_silent(service);
        if (fd < 0)
            return;
        link_create(service, fd);
    }
}

/* ------------------------------------------------------------------- thread */

static void free_slot(server_session_t *session)
{
    if (session->mailbox) {
        munmap(session->mailbox, sizeof *session->mailbox);
        close(session->mailbox_fd);
        session->mailbox = NULL;
    }
    free(session->payload);
    session->payload = NULL;
    session->payload_room = 0;
    lode_buffer_free(&session->header);
    lode_buffer_free(&session->reply_header);
    lode_buffer_free(&session->reply_payload);
    atomic_store_explicit(&session->life, SERVER_FREE, memory_order_release);
}

/* What the engine has done since the last look. */
static void look_at_sessions(service_h service)
{
    uint64_t ignored;
    if (read(service->wake, &ignored, sizeof ignored) < 0 && errno != EAGAIN)
        lode_debug("the front's bell: %m");
    for (uint32_t i = 0; i < atomic_load(&service->slots); i++) {
        server_session_t *session = &service->sessions[i];
        if (session->link && atomic_load_explicit(&session->call, memory_order_acquire) == SERVER_DONE)
            link_send(service, session->link);
        else if (atomic_load_explicit(&session->life, memory_order_acquire) == SERVER_LEFT) {
            staging_give(service, session->staged);
            session->staged = 0;
            free_slot(session);
        }
    }
}

/* Close what has failed or is late, and go on with what waited for memory. */
static void look_at_links(service_h service, uint64_t now)
{
    server_link_t *next;
    for (server_link_t *link = service->oldest; link; link = next) {
        next = link->next;
        if (link->waits && !link->failed && make_room(service, link)) {
            link_watch(service, link);
            link_receive(service, link);
        }
        if (link->greeted && !link->failed && !link->parting && !link->note_bytes &&
            link->news != atomic_load_explicit(&service->news, memory_order_relaxed))
            tell_news(service, link);
        if (link->failed || (link->deadline_ns && now > link->deadline_ns))
            link_close(service, link);
    }
}

static void begin_goodbye(service_h service)
{
    Lodemark__SessionReply goodbye = LODEMARK__SESSION_REPLY__INIT;
    goodbye.status = LODE_ERR_REFUSED;
    goodbye.elsewhere = true;
    goodbye.message = (char *)(uintptr_t) "the rank is shutting down";
    epoll_ctl(service->poll, EPOLL_CTL_DEL, service->listener, NULL);
    for (server_link_t *link = service->oldest; link; link = link->next) {
        if (!link->note_bytes)
            put_note(link, SESSION_REPLY, &goodbye);
        link->parting = true;
        link_send(service, link);
    }
}

static void on_event(service_h service, const struct epoll_event *event)
{
    server_link_t *link = event->data.ptr;
    if (event->data.ptr == &service->wake)
        return; /* sessions are looked at in every round */
    if (event->data.ptr == &service->listener) {
        accept_some(service);
        return;
    }
    if (link->waits)
        link->failed |= (event->events & (EPOLLHUP | EPOLLERR)) != 0;
    else if (event->events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        link_receive(service, link);
    if (event->events & EPOLLOUT && !link->failed)
        link_send(service, link);
}

static void *front_main(void *argument)
{
    service_h service = argument;
    struct epoll_event events[EVENTS];
    bool parting = false;
    while (!parting || (service->oldest && lode_now_ns() < service->goodbye_ns)) {
        int count = epoll_wait(service->poll, events, EVENTS, TICK_MS);
        for (int i = 0; i < count; i++)
            on_event(service, &events[i]);
        look_at_sessions(service);
        if (atomic_load(&service->closing) && !parting) {
            begin_goodbye(service);
            parting = true;
        }
        look_at_links(service, lode_now_ns());
    }
    while (service->oldest)
        link_close(service, service->oldest);
    return NULL;
}

/* ------------------------------------------------------------ start and end */

/* Sockets are what strangers can make us use up. */
static uint32_t raise_file_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return 256;
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0 && getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return 256;
    return limit.rlim_cur > UINT32_MAX ? UINT32_MAX : (uint32_t)limit.rlim_cur;
}

static lode_status_t listen_at(service_h service)
{
    char address[64];
    uint16_t port;
    int on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET};
    socklen_t length = sizeof at;
    LODE_TRY(service_address_parse(service->params.bind, address, service->self.address, &port));
    inet_pton(AF_INET, address, &at.sin_addr);
    at.sin_port = htons(port);
    service->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (service->listener < 0 || setsockopt(service->listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        bind(service->listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(service->listener, SOMAXCONN) != 0 ||
        getsockname(service->listener, (struct sockaddr *)&at, &length) != 0)
        return lode_fail(LODE_ERR_IO, "clients cannot be listened for at %s:%u: %s", address, port, strerror(errno));
    service->self.port = ntohs(at.sin_port);
    return LODE_OK;
}

lode_status_t front_create(service_h service)
{
    uint32_t files = raise_file_limit();
    service->silent_max = files / 4 < SILENT_MAX ? files / 4 : SILENT_MAX;
    LODE_TRY(listen_at(service));
    LODE_TRY(session_room_create(&service->front_room, 1 << 16));
    service->poll = epoll_create1(EPOLL_CLOEXEC);
    service->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event listener = {.events = EPOLLIN, .data.ptr = &service->listener},
                       wake = {.events = EPOLLIN, .data.ptr = &service->wake};
    if (service->poll < 0 || service->wake < 0 ||
        epoll_ctl(service->poll, EPOLL_CTL_ADD, service->listener, &listener) != 0 ||
        epoll_ctl(service->poll, EPOLL_CTL_ADD, service->wake, &wake) != 0)
        return lode_fail(LODE_ERR_IO, "the system gave no means to wait for clients: %s", strerror(errno));
    return LODE_OK;
}

lode_status_t front_start(service_h service)
{
    int error = pthread_create(&service->thread, NULL, front_main, service);
    if (error)
        return lode_fail(LODE_ERR_NO_MEMORY, "no thread for the clients' connections: %s", strerror(error));
    service->thread_runs = true;
    return LODE_OK;
}

void front_wake(service_h service)
{
    uint64_t one = 1;
    if (service->wake >= 0 && write(service->wake, &one, sizeof one) < 0)
        return; /* it is awake: the counter is full */
}

void front_stop(service_h service, uint64_t timeout_ns)
{
    if (!service->thread_runs)
        return;
    service->goodbye_ns = lode_now_ns() + timeout_ns;
    atomic_store(&service->closing, true);
    front_wake(service);
    pthread_join(service->thread, NULL);
    service->thread_runs = false;
}

void front_destroy(service_h service)
{
    if (service->listener >= 0)
        close(service->listener);
    if (service->poll >= 0)
        close(service->poll);
    if (service->wake >= 0)
        close(service->wake);
    session_room_destroy(&service->front_room);
}
