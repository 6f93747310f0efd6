/* SPDX-License-Identifier: Apache-2.0 */
/* Steps of a client: tensors beside the message, asked of the next rank when one is lost before anything was written.
 */
#include <string.h>

#include "service/client_inside.h"

/* A step as it is asked; the arrays lie in the cluster's buffer and are kept. */
typedef struct asking {
    const lode_stream_t *streams;
    uint32_t count;
    Lodemark__StepAsk body;
    Lodemark__StepStream *messages, **list; /* (count) */
    session_tensors_t *tensors;             /* (count) */
    struct client_part *parts;              /* (3 · count) */
    uint32_t part_count;
} asking_t;

static lode_status_t asking_room(lode_cluster_h cluster, asking_t *asking, uint32_t count)
{
    size_t each = sizeof *asking->messages + sizeof *asking->list + sizeof *asking->tensors + 3 * sizeof *asking->parts;
    LODE_TRY(client_reserve(&cluster->streams, count * each));
    asking->messages = (Lodemark__StepStream *)cluster->streams.data;
    asking->tensors = (session_tensors_t *)(asking->messages + count);
    asking->parts = (struct client_part *)(asking->tensors + count);
    asking->list = (Lodemark__StepStream **)(asking->parts + 3 * (size_t)count);
    return LODE_OK;
}

static void add_part(asking_t *asking, const void *data, uint64_t elements, lode_dtype_t dtype)
{
    asking->parts[asking->part_count++] = (struct client_part){data, elements * session_dtype_bytes(dtype)};
}

static void add_stream(asking_t *asking, uint32_t i, const session_shape_t *shape)
{
    const lode_stream_t *stream = &asking->streams[i];
    Lodemark__StepStream *message = &asking->messages[i];
    uint64_t element = (uint64_t)stream->tokens * shape->dim;
    lodemark__step_stream__init(message);
    message->tokens = stream->tokens;
    message->position = stream->position;
    message->dtype = stream->dtype;
    message->writes = stream->k != NULL;
    message->wants_lse = stream->lse != NULL;
    message->wants_lost = stream->lost_share != NULL;
    asking->list[i] = message;
    add_part(asking, stream->q, element * shape->query_heads, stream->dtype);
    if (stream->k) {
        add_part(asking, stream->k, element * shape->kv_heads, stream->dtype);
        add_part(asking, stream->v, element * shape->kv_heads, stream->dtype);
    }
}

static lode_status_t prepare_step(lode_cluster_h cluster, client_ask_t *ask)
{
    asking_t *asking = ask->context;
    (void)cluster;
    for (uint32_t i = 0; i < asking->count; i++)
        LODE_TRY(client_view_ready(asking->streams[i].view));
    for (uint32_t i = 0; i < asking->count; i++)
        asking->messages[i].view = asking->streams[i].view->number;
    return LODE_OK;
}

static void take_outputs(const asking_t *asking, const session_shape_t *shape, const uint8_t *payload)
{
    for (uint32_t i = 0; i < asking->count; i++) {
        const lode_stream_t *stream = &asking->streams[i];
        const session_tensors_t *at = &asking->tensors[i];
        size_t rows = (size_t)stream->tokens * shape->query_heads;
        memcpy(stream->out, payload + at->out, rows * shape->dim * sizeof(float));
        if (stream->lse)
            memcpy(stream->lse, payload + at->lse, rows * sizeof(float));
        if (stream->lost_share)
            memcpy(stream->lost_share, payload + at->lost, stream->tokens * sizeof(float));
    }
}

lode_status_t client_step(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count,
                          lode_step_stats_t *stats)
{
    lode_geometry_t geometry;
    asking_t asking = {.streams = streams, .count = count, .body = LODEMARK__STEP_ASK__INIT};
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT, .padded = true, .again = true};
    size_t request, reply;
    if (count > SESSION_STREAMS_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED, "%u streams in one step: a client's has at most %d", count,
                         SESSION_STREAMS_MAX);
    LODE_TRY(client_geometry(cluster, &geometry));
    uint32_t heads = geometry.kv_head_end - geometry.kv_head_begin;
    session_shape_t shape = {heads * (geometry.query_heads / geometry.kv_heads), heads, geometry.head_dim};
    LODE_TRY(asking_room(cluster, &asking, count));
    for (uint32_t i = 0; i < count; i++) {
        LODE_TRY(lode_check_host_stream(&streams[i]));
        add_stream(&asking, i, &shape);
        ask.again &= streams[i].k == NULL;
    }
    asking.body.layer = layer;
    asking.body.streams = asking.list;
    asking.body.n_streams = count;
    LODE_TRY(session_step_layout(&asking.body, &shape, asking.tensors, &request, &reply));
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_STEP;
    ask.call.step = &asking.body;
    ask.parts = asking.parts;
    ask.count = asking.part_count;
    ask.prepare = prepare_step;
    ask.context = &asking;
    ask.mailbox = reply <= MAILBOX_PAYLOAD_BYTES;
    LODE_TRY(client_ask(cluster, &ask));
    if (ask.payload_bytes != reply)
        return lode_fail(LODE_ERR_FORMAT, "the outputs of a step are %zu bytes, %zu came", reply, ask.payload_bytes);
    LODE_TRY(session_unpack_stats(ask.reply->step, stats));
    take_outputs(&asking, &shape, ask.payload);
    return LODE_OK;
}

lode_status_t client_step_enqueue(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count,
                                  void *cuda_stream, lode_step_stats_t *stats)
{
    (void)cluster, (void)layer, (void)streams, (void)count, (void)cuda_stream, (void)stats;
    return lode_fail(LODE_ERR_UNSUPPORTED, "lode_step_enqueue is for ranks: a client's tensors are in host memory, and "
                                           "lode_step() takes them to the service");
}

lode_status_t client_step_selection(lode_cluster_h cluster, uint32_t stream, uint32_t token, uint32_t kv_head,
                                    const uint32_t **tokens, uint64_t *count)
{
    Lodemark__SelectionAsk body = LODEMARK__SELECTION_ASK__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT};
    body.stream = stream;
    body.token = token;
    body.kv_head = kv_head;
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_SELECTION;
    ask.call.selection = &body;
    LODE_TRY(client_ask(cluster, &ask));
    const Lodemark__Selection *said = ask.reply->selection;
    if (!said ||
        (!said->all && (said->count > SESSION_PAYLOAD_MAX || ask.payload_bytes != said->count * sizeof(uint32_t))))
        return lode_fail(LODE_ERR_FORMAT, "the service did not say which tokens a step chose");
    LODE_TRY(client_reserve(&cluster->selection, ask.payload_bytes + 1));
    if (ask.payload_bytes)
        memcpy(cluster->selection.data, ask.payload, ask.payload_bytes);
    *tokens = said->all ? NULL : (const uint32_t *)cluster->selection.data;
    *count = said->count;
    return LODE_OK;
}
