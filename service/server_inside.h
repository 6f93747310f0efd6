/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file server_inside.h
 * @brief What the files of the server share: server.c (start, engine), server_front.c (sockets), server_session.c
 * (calls).
 */
#ifndef LODE_SERVICE_SERVER_INSIDE_H
#define LODE_SERVICE_SERVER_INSIDE_H

#include <pthread.h>
#include <stdatomic.h>

#include "attend/inside.h"
#include "service/mailbox.h"
#include "service/service.h"

enum {
    SERVER_HANDLES_MAX = 1 << 16, /* blocks, and views, of one session */
    SERVER_KEPT_BYTES = 1 << 20,  /* a buffer beyond that is given back after use */
    SERVER_MESSAGE = 400          /* bytes of an error's sentence that travel */
};

/** Who may touch a session: the front while free, both while live, see each field. */
typedef enum server_life {
    SERVER_FREE,
    SERVER_LIVE,
    SERVER_LEAVING, /* set by the front: the connection is gone; the engine gives back what was held */
    SERVER_LEFT     /* set by the engine; the front frees the slot */
} server_life_t;

/** The call that came over the connection: one at a time. */
typedef enum server_call {
    SERVER_IDLE,  /* the front may receive one */
    SERVER_READY, /* the engine's */
    SERVER_DONE   /* the front sends the reply */
} server_call_t;

/** Growing list of what a session has open; places of closed ones are used again. */
typedef struct server_handles {
    void **items;
    uint32_t count;
} server_handles_t;

/** An append that comes in parts. */
typedef struct server_staged {
    uint8_t *data; /* k of all tokens, then v; NULL: none */
    uint64_t bytes;
    uint32_t block, layer, dtype;
    uint64_t total, tokens;
} server_staged_t;

/** A connection, from accept on; it has a session once its token was right. */
typedef struct server_link {
    int fd;
    bool greeted, failed;
    uint64_t deadline_ns; /* of the hello, of the rest of a message that has begun, or of a reply that is not taken */
    session_frame_t frame;
    size_t got; /* bytes of the frame that is coming in */
    bool waits; /* for staging memory */
    uint8_t hello[SESSION_HELLO_MAX];
    uint32_t news;      /* state of the ranks' addresses that the client was told */
    uint64_t pong;      /* id to answer; 0: none */
    lode_buffer_t note; /* a welcome, pong, refusal or goodbye on its way */
    size_t note_bytes, note_sent;
    size_t reply_sent;
    bool parting;   /* close once all is sent */
    bool wants_out; /* epoll says when it can be written to */
    struct server_session *session;
    struct server_link *previous, *next;
} server_link_t;

typedef struct server_session {
    _Atomic int life; /* server_life_t */
    _Atomic int call; /* server_call_t */
    uint32_t slot;
    server_link_t *link; /* front */
    /* the front's until READY, then the engine's until DONE */
    lode_buffer_t header;
    uint8_t *payload;
    size_t header_bytes, payload_bytes, payload_room;
    uint64_t staged; /* bytes of the payload that count as staging */
    session_frame_t reply_frame;
    lode_buffer_t reply_header, reply_payload;
    /* engine */
    mailbox_t *mailbox;
    int mailbox_fd;
    uint32_t mailbox_serial; /* of the last request that was served */
    server_handles_t blocks, views;
    server_staged_t append;
    lode_admission_h admission; /* of the process that asks for it here; NULL: none is under way */
    uint64_t admitting_ns;      /* since when */
    uint64_t fenced_ns;         /* since when its call waits for the end of the fence; 0: it does not */
    bool serving;               /* its call is at the first desk */
    bool stepped;               /* its last step succeeded: it may ask what was chosen */
    struct {
        bool kept;
        uint32_t streams, heads;
        lode_buffer_t rows;   /* uint32_t (streams + 1): first row of each */
        lode_buffer_t chosen; /* lode_chosen_t (rows, heads) */
        lode_buffer_t tokens;
    } selection; /* of its last step, once another session has stepped */
} server_session_t;

/** A reply: its payload is what serve_call() wrote to payload. */
typedef struct server_answer {
    Lodemark__SessionReply reply;
    lode_buffer_t *payload;
    size_t payload_bytes;
    char message[SERVER_MESSAGE];
    /* what reply points to */
    Lodemark__GeometrySet geometry;
    Lodemark__ClusterInfo info;
    Lodemark__RankReport rank;
    Lodemark__RankStats rank_numbers;
    lode_rank_stats_t rank_stats;
    Lodemark__BlockOpened block;
    Lodemark__StepStats step;
    Lodemark__Selection selection;
    uint64_t stages[LODE_STAGE_COUNT];
    double rope[7];
} server_answer_t;

/** Where one call is worked on. */
typedef struct server_desk {
    session_room_t room;
    lode_buffer_t request_header, request_payload, reply_payload; /* of mailboxes */
    server_answer_t *answer;
} server_desk_t;

struct service {
    service_params_t params;
    lode_cluster_h cluster;
    service_contact_t self;
    pthread_mutex_t ranks_lock;
    service_contact_t *ranks; /* that are known; under the lock */
    uint32_t rank_count;
    _Atomic uint32_t news;      /* counts their changes */
    char host[64];              /* as mailbox_host() says */
    server_session_t *sessions; /* (params.clients) */
    _Atomic uint32_t slots;     /* of the sessions, that were ever used: the first ones */
    _Atomic uint64_t staging;   /* bytes in use */
    mailbox_bell_t *bell;
    int bell_fd;
    _Atomic bool stop, closing;
    /* front */
    int listener, poll, wake;
    bool thread_runs;
    uint64_t goodbye_ns; /* when links that are still there are closed */
    pthread_t thread;
    server_link_t *oldest, *newest; /* all links, by age */
    uint32_t silent;                /* of them, without a token so far */
    uint32_t silent_max;
    session_room_t front_room;
    /* engine */
    server_desk_t desks[2];
    uint32_t desk;   /* 1: while what is at the first waits for other ranks */
    bool interrupts; /* what is at the first desk lets others read while it waits */
    lode_buffer_t streams, tensors;
    server_session_t *stepped; /* whose step was the last */
    uint32_t swept_epoch;
    uint32_t turn; /* the session that is looked at first */
};

/* server_front.c */
lode_status_t front_create(service_h service);
lode_status_t front_start(service_h service);
/** Have the front send what is done. */
void front_wake(service_h service);
/** Goodbye to all, for at most @p timeout_ns; then the thread ends and all links are closed. */
void front_stop(service_h service, uint64_t timeout_ns);
void front_destroy(service_h service);

/* server_session.c */
/**
 * Run one packed call of a session at the present desk, whose answer says where its payload goes. Engine.
 * @return whether the answer is filled; false: the call waits for other ranks, and is to be given again soon
 */
bool serve_call(service_h service, server_session_t *session, const void *header, size_t header_bytes,
                const uint8_t *payload, size_t payload_bytes);
/** Give back all that a session holds. Engine. */
void serve_farewell(service_h service, server_session_t *session);
/** Drop blocks whose writer is gone before it sealed them: nobody can finish them. For the leader, after a change. */
void serve_sweep(service_h service);

/* server.c */
/** Note where a rank takes clients, in place of what was known of it. Any thread. */
lode_status_t service_learn(service_h service, const service_contact_t *contact);

/** Count bytes as staging; false if there is no room now. Any thread. */
bool staging_take(service_h service, uint64_t bytes);
void staging_give(service_h service, uint64_t bytes);

#endif
