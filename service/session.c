/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "service/session.h"

_Static_assert(sizeof(session_frame_t) == 24, "the head of a frame has the same layout in all versions");

lode_status_t session_frame_check(const session_frame_t *frame, bool greeted)
{
    if (frame->magic != SESSION_MAGIC || frame->zero || frame->kind < SESSION_CALL || frame->kind > SESSION_PONG)
        return lode_fail(LODE_ERR_FORMAT, "what came is no message of Lodemark");
    uint32_t header = greeted ? SESSION_HEADER_MAX : SESSION_HELLO_MAX;
    uint64_t payload = greeted ? SESSION_PAYLOAD_MAX : 0;
    if (frame->header_bytes == 0 || frame->header_bytes > header || frame->payload_bytes > payload)
        return lode_fail(LODE_ERR_FORMAT, "a message of %u and %llu bytes: at most %u and %llu are taken",
                         frame->header_bytes, (unsigned long long)frame->payload_bytes, header,
                         (unsigned long long)payload);
    return LODE_OK;
}

/* --------------------------------------------------------------------- room */

static void *room_alloc(void *context, size_t bytes)
{
    session_room_t *room = context;
    size_t rounded = (bytes + 15) & ~(size_t)15;
    if (rounded < bytes || rounded > room->bytes - room->used)
        return NULL;
    void *memory = room->base + room->used;
    room->used += rounded;
    return memory;
}

static void room_free(void *context, void *memory)
{
    (void)context;
    (void)memory;
}

lode_status_t session_room_create(session_room_t *room, size_t bytes)
{
    *room = (session_room_t){.base = malloc(bytes), .bytes = bytes};
    room->allocator = (ProtobufCAllocator){.alloc = room_alloc, .free = room_free, .allocator_data = room};
    if (!room->base)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for messages");
    return LODE_OK;
}

void session_room_destroy(session_room_t *room)
{
    free(room->base);
    room->base = NULL;
}

static void *unpack(const ProtobufCMessageDescriptor *kind, session_room_t *room, const void *header, size_t bytes)
{
    room->used = 0;
    room->allocator.allocator_data = room; /* the struct may have moved */
    return bytes ? protobuf_c_message_unpack(kind, &room->allocator, bytes, header) : NULL;
}

Lodemark__SessionCall *session_call(session_room_t *room, const void *header, size_t bytes)
{
    return unpack(&lodemark__session_call__descriptor, room, header, bytes);
}

Lodemark__SessionReply *session_reply(session_room_t *room, const void *header, size_t bytes)
{
    return unpack(&lodemark__session_reply__descriptor, room, header, bytes);
}

Lodemark__BlockList *session_block_list(session_room_t *room, const void *payload, size_t bytes)
{
    return unpack(&lodemark__block_list__descriptor, room, payload, bytes);
}

/* ------------------------------------------------------------------- checks */

bool session_text_is_fine(const char *text)
{
    for (const unsigned char *c = (const unsigned char *)text; *c; c++)
        if (*c < 0x20 || *c == 0x7f || (*c == 0xc2 && c[1] >= 0x80 && c[1] < 0xa0))
            return false;
    return true;
}

static lode_status_t check_create(const Lodemark__BlockCreate *create)
{
    const Lodemark__BlockInfo *info = create->info;
    if (!info || !info->name[0] || strlen(info->name) > LODE_NAME_MAX || !session_text_is_fine(info->name))
        return lode_fail(LODE_ERR_INVALID, "a block's name is 1 to %d bytes of UTF-8 without control characters",
                         LODE_NAME_MAX);
    if (info->format > LODE_FORMAT_HIGGS4 || info->codec > LODE_LANDMARK_HIGGS)
        return lode_fail(LODE_ERR_FORMAT,
                         "a block of storage format %u and landmark codec %u: neither version has such", info->format,
                         info->codec);
    return LODE_OK;
}

static lode_status_t check_append(const Lodemark__BlockAppend *append)
{
    if (append->dtype > LODE_FP32 || append->first > append->total || append->tokens > append->total - append->first ||
        append->total > UINT64_C(1) << 40)
        return lode_fail(LODE_ERR_FORMAT, "an append of %llu tokens has a part of %llu behind %llu, dtype %u",
                         (unsigned long long)append->total, (unsigned long long)append->tokens,
                         (unsigned long long)append->first, append->dtype);
    return LODE_OK;
}

static lode_status_t check_view(const Lodemark__ViewCreate *view)
{
    if (view->n_blocks == 0 || view->n_blocks > SESSION_VIEW_BLOCKS_MAX ||
        (view->n_offsets && view->n_offsets != view->n_blocks))
        return lode_fail(LODE_ERR_FORMAT, "a view of %zu blocks (1 to %d) and %zu offsets", view->n_blocks,
                         SESSION_VIEW_BLOCKS_MAX, view->n_offsets);
    if (view->select > LODE_SELECT_DENSE || view->merge > LODE_MERGE_MEAN || view->lost > LODE_LOST_SKIP)
        return lode_fail(LODE_ERR_FORMAT, "a view's policy %u, %u, %u: this version has no such", view->select,
                         view->merge, view->lost);
    return LODE_OK;
}

static lode_status_t check_step(const Lodemark__StepAsk *step)
{
    if (step->n_streams == 0 || step->n_streams > SESSION_STREAMS_MAX)
        return lode_fail(LODE_ERR_FORMAT, "a step of %zu streams: 1 to %d travel in one message", step->n_streams,
                         SESSION_STREAMS_MAX);
    for (size_t i = 0; i < step->n_streams; i++)
        if (step->streams[i]->tokens == 0 || step->streams[i]->dtype > LODE_FP32)
            return lode_fail(LODE_ERR_FORMAT, "stream %zu of a step has %u tokens of dtype %u", i,
                             step->streams[i]->tokens, step->streams[i]->dtype);
    return LODE_OK;
}

static lode_status_t check_announce(const Lodemark__Announce *announce)
{
    const Lodemark__Contact *contact = announce->contact;
    if (!contact || contact->port == 0 || contact->port > UINT16_MAX || strlen(contact->address) > 63 ||
        strlen(contact->host) > 63 || !session_text_is_fine(contact->address) || !session_text_is_fine(contact->host))
        return lode_fail(LODE_ERR_FORMAT, "a rank announces an address that makes no sense");
    return LODE_OK;
}

lode_status_t session_call_check(const Lodemark__SessionCall *call, size_t payload)
{
    if (call->id == 0)
        return lode_fail(LODE_ERR_FORMAT, "a call without an id");
    switch (call->body_case) {
    case LODEMARK__SESSION_CALL__BODY__NOT_SET:
        return lode_fail(LODE_ERR_FORMAT, "a call asks nothing that this version knows");
    case LODEMARK__SESSION_CALL__BODY_BLOCK_APPEND:
        return check_append(call->block_append);
    case LODEMARK__SESSION_CALL__BODY_STEP:
        return check_step(call->step);
    case LODEMARK__SESSION_CALL__BODY_ADMIT:
        return LODE_OK;
    default:
        break;
    }
    if (payload)
        return lode_fail(LODE_ERR_FORMAT, "a call that takes no payload came with %zu bytes", payload);
    switch (call->body_case) {
    case LODEMARK__SESSION_CALL__BODY_BLOCK_CREATE:
        return check_create(call->block_create);
    case LODEMARK__SESSION_CALL__BODY_BLOCK_OPEN:
        if (!session_text_is_fine(call->block_open->name))
            return lode_fail(LODE_ERR_INVALID, "a block's name has no control characters");
        return LODE_OK;
    case LODEMARK__SESSION_CALL__BODY_VIEW_CREATE:
        return check_view(call->view_create);
    case LODEMARK__SESSION_CALL__BODY_ANNOUNCE:
        return check_announce(call->announce);
    default:
        return LODE_OK;
    }
}

/* --------------------------------------------------------------------- step */

/* Reserve count elements behind *end; false if that is more than a payload takes. */
static bool place(uint64_t count, size_t element, size_t *end, size_t *at)
{
    *at = *end;
    if (count > SESSION_PAYLOAD_MAX / element)
        return false;
    *end += (count * element + 63) & ~(size_t)63;
    return *end <= SESSION_PAYLOAD_MAX;
}

lode_status_t session_step_layout(const Lodemark__StepAsk *ask, const session_shape_t *shape,
                                  session_tensors_t *tensors, size_t *request, size_t *reply)
{
    size_t in = 0, out = 0;
    for (size_t i = 0; i < ask->n_streams; i++) {
        const Lodemark__StepStream *stream = ask->streams[i];
        session_tensors_t at = {.k = SIZE_MAX, .v = SIZE_MAX, .lse = SIZE_MAX, .lost = SIZE_MAX};
        uint64_t rows = (uint64_t)stream->tokens * shape->query_heads;
        uint64_t written = (uint64_t)stream->tokens * shape->kv_heads * shape->dim;
        size_t element = session_dtype_bytes(stream->dtype);
        bool fits = place(rows * shape->dim, element, &in, &at.q) && place(rows * shape->dim, 4, &out, &at.out);
        if (fits && stream->writes)
            fits = place(written, element, &in, &at.k) && place(written, element, &in, &at.v);
        if (fits && stream->wants_lse)
            fits = place(rows, 4, &out, &at.lse);
        if (fits && stream->wants_lost)
            fits = place(stream->tokens, 4, &out, &at.lost);
        if (!fits)
            return lode_fail(LODE_ERR_INVALID, "the tensors of a step take more than %llu MiB; use smaller steps",
                             (unsigned long long)(SESSION_PAYLOAD_MAX >> 20));
        if (tensors)
            tensors[i] = at;
    }
    *request = in;
    *reply = out;
    return LODE_OK;
}

/* -------------------------------------------------------------- translation */

#define STEP_FIELDS(F)    \
    F(visible_tokens)     \
    F(budget_tokens)      \
    F(records_wanted)     \
    F(records_local)      \
    F(records_hit)        \
    F(records_fetched)    \
    F(records_prefetched) \
    F(records_lost) F(bytes_fetched) F(requests) F(owners_asked) F(retries) F(selected_digest) F(step_ns)
void session_pack_stats(const lode_step_stats_t *stats, uint64_t stages[LODE_STAGE_COUNT], Lodemark__StepStats *message)
{
    lodemark__step_stats__init(message);
#define COPY(field) message->field = stats->field;
    STEP_FIELDS(COPY)
#undef COPY
    memcpy(stages, stats->stage_ns, sizeof stats->stage_ns);
    message->stage_ns = stages;
    message->n_stage_ns = LODE_STAGE_COUNT;
}

lode_status_t session_unpack_stats(const Lodemark__StepStats *message, lode_step_stats_t *stats)
{
    if (!message)
        return lode_fail(LODE_ERR_FORMAT, "a step was answered without its statistics");
    *stats = (lode_step_stats_t){0};
#define COPY(field) stats->field = message->field;
    STEP_FIELDS(COPY)
#undef COPY
    for (size_t i = 0; i < message->n_stage_ns && i < LODE_STAGE_COUNT; i++)
        stats->stage_ns[i] = message->stage_ns[i];
    return LODE_OK;
}

void session_pack_rank(lode_rank_stats_t *stats, Lodemark__RankStats *numbers, Lodemark__RankReport *message)
{
    lodemark__rank_report__init(message);
    lode_rank_numbers_pack(stats, numbers);
    message->rank = stats->rank;
    message->alive = stats->alive;
    message->host = stats->host;
    message->stats = numbers;
}

lode_status_t session_unpack_rank(const Lodemark__RankReport *message, lode_rank_stats_t *stats)
{
    if (!message || !message->stats || !session_text_is_fine(message->host))
        return lode_fail(LODE_ERR_FORMAT, "a rank's statistics are missing in the answer");
    *stats = (lode_rank_stats_t){.rank = message->rank, .alive = message->alive};
    snprintf(stats->host, sizeof stats->host, "%s", message->host);
    lode_rank_numbers_unpack(message->stats, stats);
    return LODE_OK;
}

void session_pack_policy(const lode_policy_t *policy, Lodemark__ViewCreate *message)
{
    message->select = policy->select;
    message->merge = policy->merge;
    message->budget_share = policy->budget_share;
    message->budget_tokens = policy->budget_tokens;
    message->sinks = policy->sinks;
    message->window = policy->window;
    message->lost = policy->lost;
}

void session_unpack_policy(const Lodemark__ViewCreate *message, lode_policy_t *policy)
{
    *policy = (lode_policy_t){.select = (lode_select_t)message->select,
                              .merge = (lode_group_merge_t)message->merge,
                              .budget_share = message->budget_share,
                              .budget_tokens = message->budget_tokens,
                              .sinks = message->sinks,
                              .window = message->window,
                              .lost = (lode_lost_t)message->lost};
}
