/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file session.h
 * @brief What passes between a client and a rank of the service: frames, messages, the layout of a step's tensors.
 *
 * Pure functions: no socket, no peer. What a stranger could send is decided here and in server_front.c.
 *
 * A connection is a TCP stream of frames: a fixed head of 24 bytes, a packed SessionCall or SessionReply, a raw
 * payload. The first frame is a Hello with the token; whatever else comes first closes the connection. A client has one
 * call under way at a time; pings may pass it.
 */
#ifndef LODE_SERVICE_SESSION_H
#define LODE_SERVICE_SESSION_H

#include "base/base.h"
#include "proto/translate.h"

/** Protocol versions that this build speaks. */
#define SESSION_OLDEST 1
#define SESSION_NEWEST 1

#define SESSION_MAGIC 0x4b4d444cu
/** Most bytes of a packed message and of a payload, once a token was right; a Hello is at most SESSION_HELLO_MAX. */
#define SESSION_HEADER_MAX (256u << 10)
#define SESSION_HELLO_MAX 1024u
#define SESSION_PAYLOAD_MAX (UINT64_C(64) << 20)
#define SESSION_TOKEN_MAX 256
#define SESSION_STREAMS_MAX 4096
#define SESSION_VIEW_BLOCKS_MAX 8192
/** Memory that the largest message may unpack to. */
#define SESSION_UNPACK_BYTES (2u << 20)

typedef enum session_kind { SESSION_CALL = 1, SESSION_PING, SESSION_REPLY, SESSION_PONG } session_kind_t;

/** Head of a frame. Little-endian; its layout is the same in all versions. */
typedef struct session_frame {
    uint32_t magic;
    uint32_t kind;
    uint32_t header_bytes;
    uint32_t zero;
    uint64_t payload_bytes;
} session_frame_t;

/** LODE_ERR_FORMAT with the reason, if a frame's head is no such, or announces more than it may. */
lode_status_t session_frame_check(const session_frame_t *frame, bool greeted);

/** Memory that messages are unpacked into; the whole of it is used anew for each. */
typedef struct session_room {
    ProtobufCAllocator allocator;
    uint8_t *base;
    size_t used, bytes;
} session_room_t;

lode_status_t session_room_create(session_room_t *room, size_t bytes);
void session_room_destroy(session_room_t *room);
/** @return NULL if the bytes are no such message; else borrowed until the room's next use. */
Lodemark__SessionCall *session_call(session_room_t *room, const void *header, size_t bytes);
Lodemark__SessionReply *session_reply(session_room_t *room, const void *header, size_t bytes);
Lodemark__BlockList *session_block_list(session_room_t *room, const void *payload, size_t bytes);

/** Whether a call that unpacked makes sense by itself, and its payload may belong to it. LODE_ERR_FORMAT if not. */
lode_status_t session_call_check(const Lodemark__SessionCall *call, size_t payload);
/** Printable: no control characters. What is not may not be shown or logged. */
bool session_text_is_fine(const char *text);

/** Heads and width that tensors of a step have. */
typedef struct session_shape {
    uint32_t query_heads, kv_heads, dim;
} session_shape_t;
/** Byte offsets of a stream's tensors in the request's and the reply's payload; SIZE_MAX: not there. */
typedef struct session_tensors {
    size_t q, k, v, out, lse, lost;
} session_tensors_t;
/**
 * Where the tensors of a step's streams lie.
 * @param[out] tensors  (streams), may be NULL
 * @param[out] request, reply  bytes of the payloads, at most SESSION_PAYLOAD_MAX
 * @return LODE_ERR_FORMAT, LODE_ERR_INVALID (too large for a message)
 */
lode_status_t session_step_layout(const Lodemark__StepAsk *ask, const session_shape_t *shape,
                                  session_tensors_t *tensors, size_t *request, size_t *reply);
static inline size_t session_dtype_bytes(uint32_t dtype)
{
    return dtype == LODE_FP32 ? 4 : 2;
}

/* Both ends translate what the public header has; message's texts are borrowed from the struct and back. */
void session_pack_stats(const lode_step_stats_t *stats, uint64_t stages[LODE_STAGE_COUNT],
                        Lodemark__StepStats *message);
lode_status_t session_unpack_stats(const Lodemark__StepStats *message, lode_step_stats_t *stats);
void session_pack_rank(lode_rank_stats_t *stats, Lodemark__RankStats *numbers, Lodemark__RankReport *message);
lode_status_t session_unpack_rank(const Lodemark__RankReport *message, lode_rank_stats_t *stats);
void session_pack_policy(const lode_policy_t *policy, Lodemark__ViewCreate *message);
void session_unpack_policy(const Lodemark__ViewCreate *message, lode_policy_t *policy);

#endif
