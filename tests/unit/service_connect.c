/* SPDX-License-Identifier: Apache-2.0 */
/* A client among ranks of which some say nothing. Ranks are played by this process: sockets, and a thread that answers.
 */
#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "service/client_inside.h"

enum { RANKS_MAX = 24, LINKS_MAX = 64 };
#define MS UINT64_C(1000000)

/** How far a rank that is played goes in answering. */
typedef enum manner { MUTE, REFUSES, WELCOMES, ANSWERS } manner_t;

static struct played {
    _Atomic manner_t manner;
    int listener;
    atomic_uint hellos, calls;
} played[RANKS_MAX];
static service_contact_t contacts[RANKS_MAX];
static struct {
    int fd;
    uint32_t rank;
} links[LINKS_MAX];
static uint32_t rank_count, link_count;
static pthread_t thread;
static atomic_bool stop;

static bool read_all(int fd, void *to, size_t bytes)
{
    return recv(fd, to, bytes, MSG_WAITALL) == (ssize_t)bytes;
}

static void say(int fd, session_kind_t kind, const Lodemark__SessionReply *reply)
{
    uint8_t bytes[1024];
    session_frame_t frame = {.magic = SESSION_MAGIC, .kind = kind};
    frame.header_bytes = (uint32_t)lodemark__session_reply__get_packed_size(reply);
    memcpy(bytes, &frame, sizeof frame);
    lodemark__session_reply__pack(reply, bytes + sizeof frame);
    if (send(fd, bytes, sizeof frame + frame.header_bytes, MSG_NOSIGNAL) < 0)
        return; /* it is seen by the next read */
}

static void answer_hello(int fd, uint32_t rank, uint64_t id)
{
    Lodemark__SessionReply reply = LODEMARK__SESSION_REPLY__INIT;
    Lodemark__Welcome welcome = LODEMARK__WELCOME__INIT;
    reply.id = id;
    welcome.rank = rank;
    if (played[rank].manner == REFUSES) {
        reply.status = LODE_ERR_REFUSED;
        reply.elsewhere = true;
        reply.message = (char *)(uintptr_t) "this one takes nobody";
    } else {
        reply.welcome = &welcome;
    }
    atomic_fetch_add(&played[rank].hellos, 1);
    if (played[rank].manner != MUTE)
        say(fd, SESSION_REPLY, &reply);
}

static void answer_call(int fd, uint32_t rank, uint64_t id, session_kind_t kind)
{
    Lodemark__SessionReply reply = LODEMARK__SESSION_REPLY__INIT;
    Lodemark__ClusterInfo info = LODEMARK__CLUSTER_INFO__INIT;
    reply.id = id;
    info.rank = rank;
    reply.info = kind == SESSION_CALL ? &info : NULL;
    atomic_fetch_add(&played[rank].calls, kind == SESSION_CALL);
    if (played[rank].manner == ANSWERS)
        say(fd, kind == SESSION_CALL ? SESSION_REPLY : SESSION_PONG, &reply);
}

/* @return false: the connection is at its end */
static bool on_bytes(int fd, uint32_t rank)
{
    uint8_t header[SESSION_HELLO_MAX];
    session_frame_t frame;
    if (!read_all(fd, &frame, sizeof frame) || frame.header_bytes > sizeof header ||
        !read_all(fd, header, frame.header_bytes))
        return false;
    Lodemark__SessionCall *call = lodemark__session_call__unpack(NULL, frame.header_bytes, header);
    if (!call)
        return false;
    if (call->body_case == LODEMARK__SESSION_CALL__BODY_HELLO)
        answer_hello(fd, rank, call->id);
    else
        answer_call(fd, rank, call->id, frame.kind);
    lodemark__session_call__free_unpacked(call, NULL);
    return true;
}

static void *play(void *unused)
{
    struct pollfd polls[RANKS_MAX + LINKS_MAX];
    while (!atomic_load(&stop)) {
        uint32_t n = 0, known = link_count;
        for (uint32_t r = 0; r < rank_count; r++)
            polls[n++] = (struct pollfd){.fd = played[r].listener, .events = POLLIN};
        for (uint32_t i = 0; i < known; i++)
            polls[n++] = (struct pollfd){.fd = links[i].fd, .events = POLLIN};
        poll(polls, n, 20);
        for (uint32_t r = 0; r < rank_count; r++)
            if (polls[r].revents && link_count < LINKS_MAX) {
                links[link_count].fd = accept(played[r].listener, NULL, NULL);
                links[link_count++].rank = r;
            }
        for (uint32_t i = 0; i < known; i++)
            if (polls[rank_count + i].revents && !on_bytes(links[i].fd, links[i].rank)) {
                close(links[i].fd);
                links[i].fd = -1;
            }
    }
    return unused;
}

static void add_rank(manner_t manner)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof at;
    uint32_t rank = rank_count++;
    played[rank].manner = manner;
    played[rank].listener = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert(bind(played[rank].listener, (struct sockaddr *)&at, sizeof at) == 0);
    cr_assert(listen(played[rank].listener, 16) == 0);
    cr_assert(getsockname(played[rank].listener, (struct sockaddr *)&at, &length) == 0);
    contacts[rank] =
        (service_contact_t){.rank = rank, .host = "somewhere", .address = "127.0.0.1", .port = ntohs(at.sin_port)};
}

static lode_cluster_h begin(uint64_t hung_ms)
{
    const service_token_t token = {.bytes = "0123456789abcdef", .length = 16};
    lode_cluster_h cluster;
    cr_assert(pthread_create(&thread, NULL, play, NULL) == 0);
    cr_assert(client_create(contacts, rank_count, &token, &cluster) == LODE_OK);
    cluster->next_contact = 0;
    cluster->hung_ns = hung_ms * MS;
    cluster->reconnect_ns = 5000 * MS;
    return cluster;
}

static void end(lode_cluster_h *cluster)
{
    cr_assert(cluster[0]->calls->leave(cluster) == LODE_OK);
    atomic_store(&stop, true);
    pthread_join(thread, NULL);
}

TestSuite(connecting, .timeout = 30);

/* One after the other, with the patience that a rank is owed, would take longer than the test may. */
Test(connecting, silent_ranks_cost_a_moment_each)
{
    for (uint32_t r = 0; r < 11; r++)
        add_rank(MUTE);
    add_rank(WELCOMES);
    lode_cluster_h cluster = begin(1000);
    uint64_t begun = lode_now_ns();
    cr_assert(client_connect(cluster, 0) == LODE_OK, "%s", lode_error_message());
    cr_assert(eq(u32, cluster->link.rank, 11));
    cr_assert(lode_now_ns() - begun < 7000 * MS); /* in turns: 11 × 700 ms */
    cr_assert(gt(u32, played[0].hellos, 0));
    end(&cluster);
}

/* Those that refuse are asked once, and the client goes on; nobody is asked who need not be. */
Test(connecting, a_refusal_is_no_silence)
{
    add_rank(REFUSES);
    add_rank(REFUSES);
    add_rank(WELCOMES);
    lode_cluster_h cluster = begin(1000);
    cr_assert(client_connect(cluster, 0) == LODE_OK);
    cr_assert(eq(u32, cluster->link.rank, 2));
    cr_assert(eq(u32, played[0].hellos, 1));
    end(&cluster);
}

/* A rank that was lost is asked after those that were not, also when it is its turn. */
Test(connecting, the_lost_rank_comes_last)
{
    for (uint32_t r = 0; r < 3; r++)
        add_rank(WELCOMES);
    lode_cluster_h cluster = begin(1000);
    for (uint32_t turn = 0; turn < 6; turn++) {
        cr_assert(client_connect(cluster, 0) == LODE_OK);
        uint32_t rank = cluster->link.rank;
        client_broken(cluster, "as if");
        cluster->next_contact = rank;
        cr_assert(client_connect(cluster, 0) == LODE_OK);
        cr_assert(ne(u32, cluster->link.rank, rank));
        client_broken(cluster, "as if");
    }
    end(&cluster);
}

/* A question that only reads goes to a rank that answers long before the silent one is given up; its time is far off.
 */
Test(connecting, another_takes_over_from_a_silent_rank)
{
    lode_cluster_info_t info;
    add_rank(WELCOMES);
    add_rank(ANSWERS);
    lode_cluster_h cluster = begin(4000);
    cr_assert(client_connect(cluster, 0) == LODE_OK);
    cr_assert(eq(u32, cluster->link.rank, 0));
    cr_assert(cluster->calls->query(cluster, &info) == LODE_OK, "%s", lode_error_message());
    cr_assert(eq(u32, info.rank, 1));
    cr_assert(strstr(cluster->link.cause, "another rank does") != NULL, "%s", cluster->link.cause);
    cr_assert(eq(u32, played[0].calls, 1));
    end(&cluster);
}

/* With a block that only the silent rank has, a client waits for it as long as it said. */
Test(connecting, an_unsealed_block_keeps_a_client)
{
    lode_cluster_info_t info;
    add_rank(WELCOMES);
    add_rank(ANSWERS);
    lode_cluster_h cluster = begin(600);
    cr_assert(client_connect(cluster, 0) == LODE_OK);
    cluster->writing = 1;
    cr_assert(cluster->calls->query(cluster, &info) == LODE_OK);
    cr_assert(eq(u32, info.rank, 1));
    cr_assert(strcmp(cluster->link.cause, "it gives no sign of life") == 0, "%s", cluster->link.cause);
    end(&cluster);
}

/* Nobody to go to: the client looks for another once, waits as long as it said, and has a sentence in the end. */
Test(connecting, without_another_a_client_waits)
{
    lode_cluster_info_t info;
    add_rank(WELCOMES);
    add_rank(REFUSES);
    lode_cluster_h cluster = begin(600);
    cluster->reconnect_ns = 0;
    cr_assert(client_connect(cluster, 0) == LODE_OK);
    played[0].manner = MUTE;
    cr_assert(cluster->calls->query(cluster, &info) == LODE_ERR_PEER_LOST);
    cr_assert(eq(u32, played[0].calls, 1));
    cr_assert(eq(u32, played[1].hellos, 2));
    end(&cluster);
}

/* All greet and none serves: that ends, too. */
Test(connecting, a_question_is_not_asked_for_ever)
{
    lode_cluster_info_t info;
    add_rank(WELCOMES);
    lode_cluster_h cluster = begin(50);
    cr_assert(cluster->calls->query(cluster, &info) == LODE_ERR_PEER_LOST);
    cr_assert(gt(u32, played[0].calls, 1));
    end(&cluster);
}
