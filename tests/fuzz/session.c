/* SPDX-License-Identifier: Apache-2.0 */
/* Messages between a client and the service. Byte 0: from whom; bytes 1 to 4: size of the payload; the rest: a message.
 */
#include <stdlib.h>
#include <string.h>

#include "service/session.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* The tensors of a step that was accepted lie apart from one another, within the payloads. */
static void step(const Lodemark__StepAsk *ask)
{
    static session_tensors_t tensors[SESSION_STREAMS_MAX];
    const session_shape_t shape = {8, 2, 64};
    size_t request, reply, in = 0, out = 0;
    if (session_step_layout(ask, &shape, tensors, &request, &reply) != LODE_OK)
        return;
    if (request > SESSION_PAYLOAD_MAX || reply > SESSION_PAYLOAD_MAX)
        abort();
    for (size_t i = 0; i < ask->n_streams; i++) {
        size_t rows = (size_t)ask->streams[i]->tokens * 8, element = session_dtype_bytes(ask->streams[i]->dtype);
        if (tensors[i].q < in || tensors[i].out < out)
            abort();
        in = tensors[i].q + rows * 64 * element;
        out = tensors[i].out + rows * 64 * 4;
        if (ask->streams[i]->writes && (tensors[i].k < in || tensors[i].v < tensors[i].k))
            abort();
        if (in > request || out > reply || (ask->streams[i]->wants_lse && tensors[i].lse < out))
            abort();
    }
}

static void from_client(session_room_t *room, size_t payload, const uint8_t *message, size_t bytes)
{
    const Lodemark__SessionCall *call = session_call(room, message, bytes);
    if (!call || session_call_check(call, payload) != LODE_OK)
        return;
    if (call->body_case == LODEMARK__SESSION_CALL__BODY_STEP)
        step(call->step);
    if (call->body_case == LODEMARK__SESSION_CALL__BODY_BLOCK_CREATE &&
        (!session_text_is_fine(call->block_create->info->name) ||
         strlen(call->block_create->info->name) > LODE_NAME_MAX))
        abort();
    lode_geometry_t geometry;
    lode_policy_t policy;
    if (call->body_case == LODEMARK__SESSION_CALL__BODY_SHAPE)
        lode_geometry_unpack(call->shape, &geometry);
    if (call->body_case == LODEMARK__SESSION_CALL__BODY_VIEW_CREATE)
        session_unpack_policy(call->view_create, &policy);
}

static void from_rank(session_room_t *room, const uint8_t *message, size_t bytes)
{
    const Lodemark__SessionReply *reply = session_reply(room, message, bytes);
    lode_rank_stats_t rank;
    lode_step_stats_t stats;
    lode_geometry_t geometry;
    if (!reply)
        return;
    if (session_unpack_rank(reply->rank, &rank) == LODE_OK && !memchr(rank.host, 0, sizeof rank.host))
        abort();
    session_unpack_stats(reply->step, &stats);
    lode_geometry_unpack(reply->geometry, &geometry);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static session_room_t room;
    session_frame_t frame;
    uint32_t payload;
    if (!room.base && session_room_create(&room, SESSION_UNPACK_BYTES) != LODE_OK)
        abort();
    if (bytes < 5)
        return 0;
    memcpy(&payload, data + 1, sizeof payload);
    switch (data[0] % 4) {
    case 0:
        from_client(&room, payload, data + 5, bytes - 5);
        break;
    case 1:
        from_rank(&room, data + 5, bytes - 5);
        break;
    case 2:
        session_block_list(&room, data + 5, bytes - 5);
        break;
    default:
        if (bytes - 5 < sizeof frame)
            return 0;
        memcpy(&frame, data + 5, sizeof frame);
        if (session_frame_check(&frame, payload & 1) == LODE_OK &&
            (frame.header_bytes > SESSION_HEADER_MAX || frame.payload_bytes > SESSION_PAYLOAD_MAX))
            abort();
    }
    return 0;
}
