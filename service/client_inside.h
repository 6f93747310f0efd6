/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file client_inside.h
 * @brief What the files of the client share: client.c (connect, the cluster), client_link.c (one connection),
 * client_connect.c (finding one), client_block.c (blocks and views), client_step.c.
 *
 * A client knows no fabric and no MPI. What it has open it remembers by name and parameters; handles of the rank are
 * good for one connection, told by its generation, and are asked for again when they are used on the next.
 */
#ifndef LODE_SERVICE_CLIENT_INSIDE_H
#define LODE_SERVICE_CLIENT_INSIDE_H

#include "attend/calls.h"
#include "base/config.h"
#include "service/contact.h"
#include "service/mailbox.h"
#include "service/session.h"

/** A growing buffer of the client's. */
typedef struct client_buffer {
    uint8_t *data;
    size_t bytes;
} client_buffer_t;
lode_status_t client_reserve(client_buffer_t *buffer, size_t bytes);

/** The connection to a rank. */
typedef struct client_link {
    int fd;              /**< −1: none */
    uint64_t generation; /**< of the connection, from 1 */
    uint32_t rank;       /**< that it leads to */
    mailbox_t *mailbox;  /**< NULL: none */
    mailbox_bell_t *bell;
    uint32_t serial; /**< of the last request in the mailbox */
    /* of a reply that comes in */
    session_frame_t frame;
    size_t got;
    client_buffer_t header, payload;
    uint64_t asked_ns;   /**< when the ping that is not answered was sent; 0: none is */
    uint64_t looked_ns;  /**< when it was looked at last, beside the mailbox */
    uint64_t heard_ns;   /**< when anything came last */
    uint64_t ping, pong; /**< ids of the last sent, and of the last answered */
    uint64_t scouted;    /**< the ping in whose place another rank was looked for */
    char cause[160];     /**< why the last one broke */
} client_link_t;

/** A rank that may be connected to. */
typedef struct client_contact {
    service_contact_t at;
    uint64_t shunned_ns; /**< when it was lost, or asked in vain; 0: never since it is there */
} client_contact_t;

struct lode_cluster {
    const lode_calls_t *calls; /**< first, see attend/calls.h */
    char *contact_path;        /**< NULL: none */
    client_contact_t *contacts;
    uint32_t contact_count, next_contact;
    service_token_t token;
    uint64_t reconnect_ns, hung_ns, spin_ns;
    bool mailboxes; /**< wanted */
    client_link_t link;
    struct {
        int fd; /**< −1: none */
        uint32_t rank;
        uint64_t id;  /**< of the hello that is answered */
    } spare;          /**< a rank that is ready to take over */
    uint32_t writing; /**< blocks that only the rank has that is connected to: they are lost when it is left */
    bool may_move;    /**< what is being asked can be asked of another rank as well */
    uint64_t last_id;
    session_room_t room;
    client_buffer_t request, selection;
    bool shaped;
    lode_geometry_t geometry;
    uint64_t reply_ns; /**< how long steps took of late */
    char kernels[16], path[16], path_reason[256];
    client_buffer_t streams; /**< of the step that is being asked */
};

struct lode_block {
    lode_cluster_h cluster; /**< first */
    char name[LODE_NAME_MAX + 1];
    uint64_t id;
    uint32_t references; /**< the caller's handle and every view */
    bool writer, sealed, dropped, lost;
    bool writing;    /**< counted in the cluster's */
    uint32_t number; /**< at the rank, if the generation is the link's */
    uint64_t generation;
};

struct lode_view {
    lode_cluster_h cluster; /**< first */
    lode_block_h *blocks;
    int64_t *offsets; /**< NULL: one after another */
    uint32_t count;
    int32_t write_block;
    uint32_t shared_positions;
    lode_policy_t policy;
    uint32_t number;
    uint64_t generation;
};

/** A call to the rank. */
typedef struct client_ask {
    Lodemark__SessionCall call; /**< body set by the caller, or by prepare */
    const struct client_part {
        const void *data;
        size_t bytes;
    } * parts; /**< of the payload, one behind the other; from multiples of 64 bytes if padded */
    uint32_t count;
    bool padded;
    bool again;   /**< it may be asked a second time, of another rank: it changes nothing, or the same */
    bool mailbox; /**< it may go through the mailbox: its reply is known to fit */
    /** Bring what the call names to the connection's numbers; called for each connection anew. May be NULL. */
    lode_status_t (*prepare)(lode_cluster_h cluster, struct client_ask *ask);
    void *context;
    /* out; borrowed until the next call */
    const Lodemark__SessionReply *reply;
    const uint8_t *payload;
    size_t payload_bytes;
} client_ask_t;

/** Ask, connecting and asking again as far as the ask allows. @return the rank's status, or why none came. */
lode_status_t client_ask(lode_cluster_h cluster, client_ask_t *ask);
/** The same on the connection that there is; from within prepare. LODE_ERR_PEER_LOST with link.fd < 0: it broke. */
lode_status_t client_exchange(lode_cluster_h cluster, client_ask_t *ask);
/** Have a connection, for at most @p patience_ns. */
lode_status_t client_connect(lode_cluster_h cluster, uint64_t patience_ns);
/** A client that knows these ranks, not yet connected; contacts are copied. */
lode_status_t client_create(const service_contact_t *ranks, uint32_t count, const service_token_t *token,
                            lode_cluster_h *cluster);
void client_free(lode_cluster_h cluster);
lode_status_t client_ping(lode_cluster_h cluster, uint64_t *round_trip_ns);
void client_close(lode_cluster_h cluster);
/** The connection is of no more use. @return LODE_ERR_PEER_LOST, which with link.fd < 0 means just this. */
lode_status_t client_broken(lode_cluster_h cluster, const char *cause);
/** Wait for the reply to call @p id over the connection; with @p deadline_ns not for ever. */
lode_status_t client_await(lode_cluster_h cluster, uint64_t id, uint64_t deadline_ns,
                           const Lodemark__SessionReply **reply);
/** What a reply says came of its call. */
lode_status_t client_reply_status(const Lodemark__SessionReply *reply);

/* client_connect.c */
/**
 * Whether another rank than the one connected to takes this client; it is then connected to next, without delay. Takes
 * some ms where others live, and a moment where none does.
 */
bool client_scout(lode_cluster_h cluster);
/** Take up the addresses of ranks that a rank tells. */
void client_learn(lode_cluster_h cluster, const Lodemark__Welcome *welcome);
/** Ask a rank after all others for a while. */
void client_shun(lode_cluster_h cluster, uint32_t rank);

/** Have the block, the view, open at the rank. For prepare. */
lode_status_t client_block_ready(lode_block_h block);
lode_status_t client_view_ready(lode_view_h view);
/** The geometry, asked for once. */
lode_status_t client_geometry(lode_cluster_h cluster, lode_geometry_t *geometry);

/* client_block.c, client_step.c: rows of the table */
lode_status_t client_blocks(lode_cluster_h cluster, lode_block_entry_t *entries, uint32_t capacity, uint32_t *count);
lode_status_t client_block_create(lode_cluster_h cluster, const lode_block_params_t *params, lode_block_h *block);
lode_status_t client_block_open(lode_cluster_h cluster, const char *name, lode_block_h *block);
lode_status_t client_block_append(lode_block_h block, uint32_t layer, uint64_t tokens, lode_dtype_t dtype,
                                  const void *k, const void *v);
lode_status_t client_block_seal(lode_block_h block);
lode_status_t client_block_crop(lode_block_h block, uint64_t tokens);
lode_status_t client_block_move(lode_block_h from, uint64_t first, lode_block_h to);
lode_status_t client_block_drop(lode_block_h *block);
lode_status_t client_block_close(lode_block_h *block);
lode_status_t client_block_tokens(lode_block_h block, uint32_t layer, uint64_t *tokens);
lode_status_t client_view_create(lode_cluster_h cluster, const lode_view_params_t *params, lode_view_h *view);
lode_status_t client_view_destroy(lode_view_h *view);
lode_status_t client_step(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count,
                          lode_step_stats_t *stats);
lode_status_t client_step_enqueue(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count,
                                  void *cuda_stream, lode_step_stats_t *stats);
lode_status_t client_step_selection(lode_cluster_h cluster, uint32_t stream, uint32_t token, uint32_t kv_head,
                                    const uint32_t **tokens, uint64_t *count);

#endif
