/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file fetch_inside.h
 * @brief The requester's side of fetches. fetch.c routes items to owners, request.c and gets.c ask.
 */
#ifndef LODE_CLUSTER_FETCH_INSIDE_H
#define LODE_CLUSTER_FETCH_INSIDE_H

#include "cluster/fabric_inside.h"

/** Why an owner did not give an item. */
typedef enum fetch_cause {
    FETCH_NO_CAUSE,
    FETCH_LOST,
    FETCH_DEADLINE,
    FETCH_MISSING,
    FETCH_REFUSED,
    FETCH_CHECK,
    FETCH_BUSY,
    FETCH_MEMORY
} fetch_cause_t;

/** Attempts whose cause is remembered for the message, 4 bits each. */
#define FETCH_CAUSES 8

enum {
    ITEM_SECOND_ROUND = 1, /**< owners that were avoided at first are asked now */
    ITEM_BATCHED = 2,      /**< a one-sided read of it failed its check: ask this owner itself */
    ITEM_LANDED = 4,
    ITEM_LOST = 8 /**< nobody could give it, and the fetch goes on without it */
};

/**
 * Where an item is on its way. It is asked of one owner at a time, unless that one is silent for too long: then it is
 * hedged, asked of its next published owner as well, and whichever gives it first counts.
 */
typedef struct fetch_way {
    uint32_t next; /**< in its owner's queue */
    uint32_t rank; /**< asked last */
    uint64_t offset;
    uint32_t bytes; /**< of its records */
    uint32_t causes;
    uint16_t avoided; /**< bit a: attempt a was put off */
    uint8_t attempt;  /**< the next one */
    uint8_t asked;    /**< the last one */
    uint8_t hedged;   /**< the one before it, if that may still give it */
    uint8_t pending;  /**< requests and queues that the item is in: 0, 1, or 2 if hedged */
    uint8_t flags;
    bool has_offset;
} fetch_way_t;

typedef struct fetch_queue {
    uint32_t first, last;
    size_t bytes; /**< of all items that ever entered it in this fetch */
} fetch_queue_t;

struct fabric_fetching {
    lode_fabric_h fabric;
    lode_fetch_t *fetch; /**< NULL: free */
    fabric_landing_t *landing;
    fetch_way_t *ways; /**< (capacity), one an item */
    uint32_t capacity;
    fetch_queue_t *queues; /**< (ranks) items to ask for */
    uint32_t queued, landed, lost;
    uint64_t give_up_ns; /**< owners that only missed deadlines are asked again until then */
    uint32_t patience;   /**< how many times the usual deadline a request has; doubles when all owners missed theirs */
    fabric_request_t *active; /**< asked, not ended */
    bool spoilt;              /**< a one-sided read that was given up may still write to its landing buffer */
    bool stuck;               /**< and no other landing buffer was free */
    bool idle;                /**< begun ahead, and nobody waits for it yet: nobody is late */
};

/** One question to one owner: items that come in one reply, or by reads that end together. */
struct fabric_request {
    fabric_request_t *next, *before; /**< among the active of a fetch; next alone: free */
    lode_fabric_h fabric;
    fabric_fetching_t *fetching; /**< NULL: nobody waits for it */
    fabric_landing_t *landing;   /**< one-sided: where the reads write */
    uint64_t id;
    uint64_t asked_ns, deadline_ns;
    uint64_t
        hedged_ns; /**< silent then, so that its items were hedged, as far as another owner was at hand; 0: never */
    size_t bytes;  /**< of the reply, if nothing is missing */
    uint32_t slot, rank, count;
    uint32_t operations; /**< of UCX that use this request's memory, or its landing buffer */
    bool one_sided, answered, failed;
    uint32_t reading; /**< one-sided: item whose reads are being started */
    uint64_t left;    /**< one-sided: tokens of it not asked for */
    uint32_t items[MESSAGE_ITEMS_MAX];
    uint64_t missing[MESSAGE_ITEMS_MAX / 64]; /**< bit set over items */
    lode_wire_item_t wire[MESSAGE_ITEMS_MAX];
    uint64_t blocks[MESSAGE_BLOCKS_MAX];
    uint8_t header[MESSAGE_HEADER_MAX];
};

/* fetch.c */
/** An item of @p rank lies in the landing buffer and passed its check. */
void fetch_item_landed(fabric_fetching_t *fetching, uint32_t item, uint32_t rank);
/** @p rank did not give it: on to the next owner, unless it is hedged. */
void fetch_item_failed(fabric_fetching_t *fetching, uint32_t item, uint32_t rank, fetch_cause_t cause);
/** Put the item back into its owner's queue, to be asked for by message. */
void fetch_item_again(fabric_fetching_t *fetching, uint32_t item);

/* request.c */
/** A request of no items; NULL without memory. */
fabric_request_t *request_take(lode_fabric_h fabric, fabric_fetching_t *fetching, uint32_t rank, bool one_sided);
void request_add(fabric_request_t *request, uint32_t item);
/** Whether one more item fits. */
bool request_has_room(const fabric_request_t *request, uint32_t item);
void request_send(fabric_request_t *request);
/** End it; items that have not landed fail with @p cause, unless it is FETCH_NO_CAUSE. */
void request_end(fabric_request_t *request, fetch_cause_t cause);
/** Forget it once nobody waits for it and UCX has let go. */
void request_recycle(fabric_request_t *request);
void requests_destroy(lode_fabric_h fabric);

/* gets.c */
/** Start reads as far as the window allows; ends the request when all have landed. @return whether any started. */
bool gets_post(fabric_request_t *request);

#endif
