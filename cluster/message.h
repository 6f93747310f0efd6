/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file message.h
 * @brief Control messages between bytes and structs, and the checks that everything from outside passes first.
 *
 * Pure functions: no peer, no UCX. What a stranger could send is decided here.
 */
#ifndef LODE_CLUSTER_MESSAGE_H
#define LODE_CLUSTER_MESSAGE_H

#include "cluster/cluster.h"

/** Most bytes of a packed header; UCX carries it beside the payload, in the first packet. */
#define MESSAGE_HEADER_MAX 2048
/** Most of each in one fetch request, so that its header and its reply's fit MESSAGE_HEADER_MAX. */
#define MESSAGE_BLOCKS_MAX 192
#define MESSAGE_ITEMS_MAX 2048
#define MESSAGE_MISSING_MAX 512
/** Bounds of a record: HIGGS-4 at head_dim 64 is above the lower, bf16 at 256 below the upper. */
#define MESSAGE_RECORD_MIN 8
#define MESSAGE_RECORD_MAX 2048

/** Memory for unpacked messages that is emptied as a whole: unpacking does not allocate. */
typedef struct message_bump {
    ProtobufCAllocator allocator;
    uint8_t *base;
    size_t used, bytes;
} message_bump_t;

/** @param memory  of the caller, aligned to 16, as long-lived as the messages unpacked with it */
void message_bump_init(message_bump_t *bump, void *memory, size_t bytes);

/**
 * Unpack a message into the bump buffer, which is emptied first.
 * @return NULL if the bytes are no such message, or too many; borrowed until the bump's next use.
 */
Lodemark__Call *message_call(message_bump_t *bump, const void *header, size_t bytes);
Lodemark__Reply *message_reply(message_bump_t *bump, const void *header, size_t bytes);
Lodemark__FetchRequest *message_fetch_request(message_bump_t *bump, const void *header, size_t bytes);
Lodemark__FetchReply *message_fetch_reply(message_bump_t *bump, const void *header, size_t bytes);

/** Whether a call that unpacked can be served: LODE_ERR_FORMAT with the reason if not. */
lode_status_t message_call_check(const Lodemark__Call *call, uint32_t ranks);
/**
 * Whether a fetch request that unpacked can be served.
 * @param      items     (payload / 16) as they came, at any alignment
 * @param      capacity  most bytes of a reply here
 * @param[out] count     of items
 * @param[out] bytes     that the reply takes if no item is missing
 * @return LODE_ERR_FORMAT with the reason
 */
lode_status_t message_fetch_check(const Lodemark__FetchRequest *request, const void *items, size_t payload,
                                  uint32_t ranks, size_t capacity, uint32_t *count, size_t *bytes);
/** Tokens of a mask. The compiler's own calls a function that looks bytes up, on processors it must not assume more of.
 */
static inline uint32_t message_tokens(uint64_t mask)
{
    mask -= mask >> 1 & 0x5555555555555555u;
    mask = (mask & 0x3333333333333333u) + (mask >> 2 & 0x3333333333333333u);
    mask = (mask + (mask >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return (uint32_t)(mask * 0x0101010101010101u >> 56);
}
/** Where the last record of an item ends in its page: what the page must at least be long. */
size_t message_item_end(const lode_wire_item_t *item, size_t record_bytes);

#endif
