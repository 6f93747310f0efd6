/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finding a rank that answers. Several are asked: the next one when the one before has said nothing for a moment, so
 * that one which hangs, or is cut off, costs that moment and not its patience. The first to answer is taken.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "service/client_inside.h"

#define MS UINT64_C(1000000)
#define DIAL_NS (1200 * MS)     /* for a connection, and the first bytes of an answer to the hello */
#define HEAD_START_NS (75 * MS) /* until the next rank is asked, too */
#define HELLO_NS (700 * MS)     /* for the rest of an answer */
#define ALL_NS (10000 * MS)     /* at most, to ask every rank once */
#define SCOUT_NS (150 * MS)     /* for another rank than the silent one to answer */
#define SHUN_NS (10000 * MS)
enum { CONTACTS_MAX = 4096, DIALS = 8 };

/* ----------------------------------------------------------------- contacts */

/* A rank that is known by its number has moved: another process has taken its place. */
static void learn(lode_cluster_h cluster, const service_contact_t *contact)
{
    uint32_t at = 0;
    while (at < cluster->contact_count && cluster->contacts[at].at.rank != contact->rank)
        at++;
    if (at == cluster->contact_count) {
        client_contact_t *more = at < CONTACTS_MAX ? realloc(cluster->contacts, (at + 1) * sizeof *more) : NULL;
        if (!more)
            return;
        cluster->contacts = more;
        cluster->contact_count++;
    } else if (cluster->contacts[at].at.port == contact->port &&
               strcmp(cluster->contacts[at].at.address, contact->address) == 0) {
        return;
    }
    cluster->contacts[at] = (client_contact_t){.at = *contact};
}

void client_learn(lode_cluster_h cluster, const Lodemark__Welcome *welcome)
{
    for (size_t i = 0; i < welcome->n_ranks; i++) {
        const Lodemark__Contact *said = welcome->ranks[i];
        service_contact_t contact = {.rank = said->rank, .port = said->port};
        struct in_addr ignored;
        if (said->port == 0 || said->port > UINT16_MAX || inet_pton(AF_INET, said->address, &ignored) != 1 ||
            !session_text_is_fine(said->host))
            continue;
        snprintf(contact.address, sizeof contact.address, "%s", said->address);
        snprintf(contact.host, sizeof contact.host, "%s", said->host);
        learn(cluster, &contact);
    }
}

void client_shun(lode_cluster_h cluster, uint32_t rank)
{
    for (uint32_t i = 0; i < cluster->contact_count; i++)
        if (cluster->contacts[i].at.rank == rank)
            cluster->contacts[i].shunned_ns = lode_now_ns();
}

/* None that is known answers: the file may know others by now. */
static void read_contacts_again(lode_cluster_h cluster)
{
    service_contact_t *ranks;
    uint32_t count;
    if (!cluster->contact_path || service_contacts_read(cluster->contact_path, &ranks, &count) != LODE_OK)
        return;
    for (uint32_t i = 0; i < count; i++)
        learn(cluster, &ranks[i]);
    free(ranks);
}

/* ---------------------------------------------------------------------- race */

/* A rank that was asked and has not answered. */
typedef struct dial {
    int fd;
    uint32_t rank;
    uint64_t since_ns;
    bool greeted; /* it is connected, and the hello is on its way */
} dial_t;

typedef struct race {
    lode_cluster_h cluster;
    uint32_t *order; /* of contacts */
    uint32_t count, next, open;
    dial_t dials[DIALS];
    uint64_t started_ns, patience_ns, end_ns; /* the latest start; for each; for further starts */
    uint64_t id;
    size_t hello_bytes;
    uint8_t hello[sizeof(session_frame_t) + SESSION_HELLO_MAX];
} race_t;

/* Who is asked first: ranks of this host, then others, and last those that were lost lately, the longest ago first. */
static uint64_t turn_of(const client_contact_t *contact, const char *host, uint64_t now)
{
    if (contact->shunned_ns && now - contact->shunned_ns < SHUN_NS)
        return contact->shunned_ns;
    return strcmp(contact->at.host, host) == 0 ? 0 : 1;
}

/* Of one turn, begin behind the one that was asked last. */
static void set_order(race_t *race, uint32_t without)
{
    lode_cluster_h cluster = race->cluster;
    uint64_t turns[CONTACTS_MAX], now = lode_now_ns();
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    for (uint32_t i = 0; i < cluster->contact_count; i++) {
        uint32_t at = (cluster->next_contact + i) % cluster->contact_count, to = race->count;
        uint64_t turn = turn_of(&cluster->contacts[at], host, now);
        if (cluster->contacts[at].at.rank == without)
            continue;
        for (; to > 0 && turns[to - 1] > turn; to--) {
            turns[to] = turns[to - 1];
            race->order[to] = race->order[to - 1];
        }
        turns[to] = turn;
        race->order[to] = at;
        race->count++;
    }
}

static lode_status_t write_hello(race_t *race)
{
    lode_cluster_h cluster = race->cluster;
    char host[64];
    Lodemark__Hello hello = LODEMARK__HELLO__INIT;
    Lodemark__SessionCall call = LODEMARK__SESSION_CALL__INIT;
    mailbox_host(host);
    hello.oldest = SESSION_OLDEST;
    hello.newest = SESSION_NEWEST;
    hello.token = (ProtobufCBinaryData){cluster->token.length, cluster->token.bytes};
    hello.host = cluster->mailboxes ? host : (char *)(uintptr_t) "";
    call.id = race->id = ++cluster->last_id;
    call.body_case = LODEMARK__SESSION_CALL__BODY_HELLO;
    call.hello = &hello;
    size_t bytes = lodemark__session_call__get_packed_size(&call);
    if (bytes > SESSION_HELLO_MAX)
        return lode_fail(LODE_ERR_INVALID, "a hello of %zu bytes: %u are the most", bytes, SESSION_HELLO_MAX);
    session_frame_t frame = {.magic = SESSION_MAGIC, .kind = SESSION_CALL, .header_bytes = (uint32_t)bytes};
    memcpy(race->hello, &frame, sizeof frame);
    lodemark__session_call__pack(&call, race->hello + sizeof frame);
    race->hello_bytes = sizeof frame + bytes;
    return LODE_OK;
}

static lode_status_t race_begin(race_t *race, lode_cluster_h cluster, uint32_t without)
{
    *race = (race_t){.cluster = cluster, .patience_ns = DIAL_NS};
    LODE_TRY(write_hello(race));
    race->order = malloc((cluster->contact_count + 1) * sizeof *race->order);
    if (!race->order)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u ranks", cluster->contact_count);
    set_order(race, without);
    return LODE_OK;
}

static void race_end(race_t *race)
{
    for (uint32_t i = 0; i < race->open; i++)
        close(race->dials[i].fd);
    free(race->order);
}

static void give_up(race_t *race, uint32_t i, const char *cause)
{
    dial_t dial = race->dials[i];
    lode_debug("rank %u of the service: %s", dial.rank, cause);
    race->cluster->link.rank = dial.rank;
    snprintf(race->cluster->link.cause, sizeof race->cluster->link.cause, "%s", cause);
    client_shun(race->cluster, dial.rank);
    close(dial.fd);
    race->dials[i] = race->dials[--race->open];
}

static void start_next(race_t *race, uint64_t now)
{
    uint32_t index = race->order[race->next++];
    const service_contact_t *to = &race->cluster->contacts[index].at;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)to->port)};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    race->cluster->next_contact = index + 1;
    race->started_ns = now;
    if (fd < 0)
        return;
    inet_pton(AF_INET, to->address, &at.sin_addr);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    race->dials[race->open++] = (dial_t){.fd = fd, .rank = to->rank, .since_ns = now};
    if (connect(fd, (struct sockaddr *)&at, sizeof at) != 0 && errno != EINPROGRESS)
        give_up(race, race->open - 1, strerror(errno));
}

/* The connection is made, or is not to be had. A hello is small: it goes out whole, or the connection is none. */
static void greet(race_t *race, uint32_t i)
{
    dial_t *dial = &race->dials[i];
    int error = 0;
    socklen_t length = sizeof error;
    if (getsockopt(dial->fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error)
        give_up(race, i, strerror(error ? error : errno));
    else if (send(dial->fd, race->hello, race->hello_bytes, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)race->hello_bytes)
        give_up(race, i, "the connection broke");
    else
        dial->greeted = true;
}

static void drop_late(race_t *race, uint64_t now)
{
    for (uint32_t i = race->open; i-- > 0;)
        if (now - race->dials[i].since_ns > race->patience_ns)
            give_up(race, i, "no answer");
}

/* Until something happens on a connection, or the next rank is to be asked. @return the one that answers; open: none */
static uint32_t wait_for_some(race_t *race, uint64_t now)
{
    struct pollfd polls[DIALS];
    uint32_t count = race->open;
    uint64_t late = race->dials[0].since_ns + race->patience_ns, next = race->started_ns + HEAD_START_NS;
    uint64_t until = race->next < race->count && next < late ? next : late;
    for (uint32_t i = 0; i < count; i++)
        polls[i] = (struct pollfd){.fd = race->dials[i].fd, .events = race->dials[i].greeted ? POLLIN : POLLOUT};
    if (poll(polls, count, until > now ? (int)((until - now + MS - 1) / MS) : 0) <= 0)
        return race->open;
    for (uint32_t i = 0; i < count; i++)
        if (polls[i].revents && race->dials[i].greeted)
            return i;
    for (uint32_t i = count; i-- > 0;)
        if (polls[i].revents)
            greet(race, i);
    return race->open;
}

/* @return whether a rank says something, or closes the connection; it is taken out of the race. */
static bool race_next(race_t *race, dial_t *answers)
{
    for (;;) {
        uint64_t now = lode_now_ns();
        drop_late(race, now);
        while (race->next < race->count && race->open < DIALS &&
               (race->open == 0 || now - race->started_ns >= HEAD_START_NS) && (race->next == 0 || now < race->end_ns))
            start_next(race, now);
        if (race->open == 0)
            return false;
        uint32_t i = wait_for_some(race, now);
        if (i == race->open)
            continue;
        *answers = race->dials[i];
        race->dials[i] = race->dials[--race->open];
        return true;
    }
}

/* --------------------------------------------------------------------- enter */

/* Shared memory is a faster way and nothing more: without it, steps go over the connection. */
static void take_mailbox(lode_cluster_h cluster, const Lodemark__Welcome *welcome)
{
    void *mailbox, *bell;
    if (!cluster->mailboxes || !welcome->mailbox || !welcome->bell ||
        mailbox_map(welcome->mailbox, sizeof(mailbox_t), &mailbox) != LODE_OK)
        return;
    if (mailbox_map(welcome->bell, sizeof(mailbox_bell_t), &bell) != LODE_OK) {
        munmap(mailbox, sizeof(mailbox_t));
        return;
    }
    cluster->link.mailbox = mailbox;
    cluster->link.bell = bell;
    cluster->link.serial = 0;
}

/* Make a connection ours on which a rank answers to a hello.
 * @return LODE_ERR_REFUSED for good; LODE_ERR_PEER_LOST: ask another rank */
static lode_status_t enter(lode_cluster_h cluster, const dial_t *dial, uint64_t id)
{
    client_link_t *link = &cluster->link;
    const Lodemark__SessionReply *reply;
    link->fd = dial->fd;
    link->rank = dial->rank;
    link->generation++;
    link->heard_ns = lode_now_ns();
    link->asked_ns = link->heard_ns; /* the hello stands for a ping: none may come before it is answered */
    LODE_TRY(client_await(cluster, id, lode_now_ns() + HELLO_NS, &reply));
    link->asked_ns = 0;
    lode_status_t status = client_reply_status(reply);
    if (status == LODE_OK && !reply->welcome)
        return client_broken(cluster, "it gave no welcome");
    if (status != LODE_OK) {
        client_close(cluster);
        return status;
    }
    link->rank = reply->welcome->rank;
    lode_debug("rank %u of the service says welcome", link->rank);
    take_mailbox(cluster, reply->welcome);
    client_learn(cluster, reply->welcome);
    return LODE_OK;
}

static lode_status_t connect_once(lode_cluster_h cluster, uint64_t end)
{
    race_t race;
    dial_t dial;
    lode_status_t status = LODE_ERR_PEER_LOST;
    LODE_TRY(race_begin(&race, cluster, UINT32_MAX));
    race.end_ns = end;
    while (status == LODE_ERR_PEER_LOST && race_next(&race, &dial))
        status = enter(cluster, &dial, race.id);
    race_end(&race);
    return status;
}

lode_status_t client_connect(lode_cluster_h cluster, uint64_t patience_ns)
{
    uint64_t begin = lode_now_ns(), end = begin + patience_ns, pause = MS;
    if (cluster->spare.fd >= 0) {
        dial_t dial = {.fd = cluster->spare.fd, .rank = cluster->spare.rank};
        cluster->spare.fd = -1;
        lode_status_t status = enter(cluster, &dial, cluster->spare.id);
        if (status != LODE_ERR_PEER_LOST)
            return status;
    }
    for (;;) { /* short patience must not end at the first rank, which may hang while others answer */
        lode_status_t status = connect_once(cluster, end > begin + ALL_NS ? end : begin + ALL_NS);
        if (status != LODE_ERR_PEER_LOST)
            return status;
        if (lode_now_ns() + pause >= end)
            break;
        read_contacts_again(cluster);
        nanosleep(&(struct timespec){.tv_nsec = (long)pause}, NULL);
        pause = pause < 100 * MS ? pause * 2 : pause;
    }
    return lode_fail(LODE_ERR_PEER_LOST,
                     "no rank of the %u that the client knows answers: the service is gone (rank %u: %s)",
                     cluster->contact_count, cluster->link.rank, cluster->link.cause);
}

/* Whether the first bytes of an answer are those of a welcome. They stay to be read. */
static bool is_welcome(lode_cluster_h cluster, int fd)
{
    uint8_t bytes[1024];
    session_frame_t frame;
    ssize_t got = recv(fd, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT);
    if (got < (ssize_t)sizeof frame)
        return false;
    memcpy(&frame, bytes, sizeof frame);
    if (session_frame_check(&frame, true) != LODE_OK || frame.kind != SESSION_REPLY)
        return false;
    if (frame.header_bytes > sizeof bytes - sizeof frame)
        return true; /* a refusal is one sentence */
    if ((size_t)got < sizeof frame + frame.header_bytes)
        return false;
    const Lodemark__SessionReply *reply = session_reply(&cluster->room, bytes + sizeof frame, frame.header_bytes);
    return reply && reply->status == LODE_OK && reply->welcome;
}

bool client_scout(lode_cluster_h cluster)
{
    race_t race;
    dial_t dial;
    uint32_t rank = cluster->link.rank;
    char cause[sizeof cluster->link.cause];
    memcpy(cause, cluster->link.cause, sizeof cause);
    if (race_begin(&race, cluster, rank) != LODE_OK)
        return false;
    race.patience_ns = SCOUT_NS;
    race.end_ns = lode_now_ns() + SCOUT_NS;
    while (cluster->spare.fd < 0 && race_next(&race, &dial)) {
        if (is_welcome(cluster, dial.fd)) {
            cluster->spare.fd = dial.fd;
            cluster->spare.rank = dial.rank;
            cluster->spare.id = race.id;
        } else {
            close(dial.fd);
        }
    }
    race_end(&race);
    cluster->link.rank = rank; /* the connection that there is stays as it was */
    memcpy(cluster->link.cause, cause, sizeof cause);
    return cluster->spare.fd >= 0;
}
