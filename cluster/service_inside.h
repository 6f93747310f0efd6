/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file service_inside.h
 * @brief The owner's side: what the service thread keeps. Touched by that thread alone while it runs.
 */
#ifndef LODE_CLUSTER_SERVICE_INSIDE_H
#define LODE_CLUSTER_SERVICE_INSIDE_H

#include "cluster/fabric_inside.h"

/** Runs of records that may go into a reply without being packed. */
#define SERVICE_RUNS_MAX 64

/** A message going back: its header must stay until UCX has sent it. */
typedef struct service_answer {
    struct service_answer *next;
    lode_fabric_h fabric;
    uint8_t *data;    /**< of a fetch: a reply buffer; NULL: a call's answer */
    uint32_t to;      /**< with data: who is sent it */
    size_t run_count; /**< 0: data is sent, else these */
    ucp_dt_iov_t runs[SERVICE_RUNS_MAX];
    uint8_t header[MESSAGE_HEADER_MAX];
} service_answer_t;

/** A call whose payload comes by rendezvous: it waits for its turn, then for its bytes. */
typedef struct service_receive {
    struct service_receive *next;
    lode_fabric_h fabric;
    void *descriptor; /**< UCX's handle of the data */
    uint8_t *buffer;  /**< kept from call to call, grown when needed */
    size_t capacity, bytes, header_bytes;
    uint8_t header[MESSAGE_HEADER_MAX];
} service_receive_t;

/** A fetch request that waits for a reply buffer. */
typedef struct service_fetch {
    struct service_fetch *next;
    uint64_t id;
    uint32_t from, epoch, layer, record_bytes, count;
    size_t bytes; /**< of the reply */
    uint64_t blocks[MESSAGE_BLOCKS_MAX];
    lode_wire_item_t items[MESSAGE_ITEMS_MAX];
} service_fetch_t;

struct fabric_service {
    pthread_t thread;
    bool running;
    _Atomic bool stop;
    uint32_t changes_seen;
    service_answer_t *call_answers, *fetch_answers; /**< free ones */
    uint32_t shared_taken;                          /**< of the reply buffers that are nobody's own */
    service_receive_t *receives_free, *receives_first, *receives_last;
    uint32_t receiving, receives_waiting;
    service_fetch_t *fetches_free, *fetches_first, *fetches_last;
    uint32_t fetches_waiting;
    message_bump_t bump;
    _Alignas(16) uint8_t bump_memory[FABRIC_BUMP_BYTES];
};

/** Send an answer to a rank's client worker; it comes back to its free list when UCX is done with it. */
void service_send(lode_fabric_h fabric, uint32_t to, unsigned id, service_answer_t *answer, size_t header_bytes,
                  size_t data_bytes);
/** An answer without data: of a call, or a refusal. NULL without memory. */
service_answer_t *service_answer_take(lode_fabric_h fabric);

/* owner.c: fetches */
lode_status_t owner_create(lode_fabric_h fabric);
void owner_destroy(lode_fabric_h fabric);
ucs_status_t owner_on_fetch(void *argument, const void *header, size_t header_bytes, void *data, size_t bytes,
                            const ucp_am_recv_param_t *param);
/** Answer one waiting fetch. @return whether there was one and a buffer for it. */
bool owner_pump(lode_fabric_h fabric);

#endif
