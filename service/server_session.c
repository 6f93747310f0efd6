/* SPDX-License-Identifier: Apache-2.0 */
/* What a session may ask, call by call. Runs on the engine's thread; handles are the session's own. */
#include <stdlib.h>
#include <string.h>

#include "attend/step.h"
#include "service/server_inside.h"

enum { SELECTION_KEPT_BYTES = 8 << 20 };
/** How long a change waits for a rank to be no longer fenced: several leases. */
#define FENCED_NS UINT64_C(3000000000)

/* A call while it is served. */
typedef struct serving {
    service_h service;
    server_session_t *session;
    lode_cluster_h cluster;
    const Lodemark__SessionCall *call;
    const uint8_t *payload;
    size_t bytes;
    server_answer_t *answer;
    bool later; /* it cannot be answered yet */
} serving_t;

/* ------------------------------------------------------------------ handles */

static lode_status_t handle_add(server_handles_t *list, void *item, uint32_t *number)
{
    uint32_t at = 0;
    while (at < list->count && list->items[at])
        at++;
    if (at == list->count) {
        uint32_t more = list->count ? list->count * 2 : 16;
        if (more > SERVER_HANDLES_MAX)
            return lode_fail(LODE_ERR_FULL, "a client has %u handles open: no more are given", list->count);
        void **items = realloc(list->items, more * sizeof *items);
        if (!items)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a client's handles");
        memset(items + list->count, 0, (more - list->count) * sizeof *items);
        list->items = items;
        list->count = more;
    }
    list->items[at] = item;
    *number = at + 1;
    return LODE_OK;
}

static void **handle_at(const server_handles_t *list, uint32_t number)
{
    return number && number <= list->count && list->items[number - 1] ? &list->items[number - 1] : NULL;
}

static lode_status_t block_of(const serving_t *s, uint32_t number, lode_block_h **block)
{
    *block = (lode_block_h *)handle_at(&s->session->blocks, number);
    return *block ? LODE_OK : lode_fail(LODE_ERR_INVALID, "the client has no block %u open", number);
}

/* ------------------------------------------------------------------- blocks */

static lode_status_t opened(serving_t *s, lode_block_h block)
{
    Lodemark__BlockOpened *reply = &s->answer->block;
    lodemark__block_opened__init(reply);
    lode_status_t status = handle_add(&s->session->blocks, block, &reply->block);
    if (status != LODE_OK) {
        lode_block_close(&block);
        return status;
    }
    reply->id = block->info.id;
    reply->sealed =
        block->sealed || lode_store_state(s->cluster->store, block->slot, block->info.id) == LODE_BLOCK_SEALED;
    s->answer->reply.block = reply;
    return LODE_OK;
}

static lode_status_t serve_create(serving_t *s)
{
    const Lodemark__BlockInfo *info = s->call->block_create->info;
    lode_block_params_t params = {.name = info->name,
                                  .format = (lode_format_t)info->format,
                                  .replicas = info->replicas,
                                  .landmark = {(lode_landmark_codec_t)info->codec, info->bits, info->chunk,
                                               info->centre, (lode_landmark_index_t)info->index},
                                  .expected_tokens = info->expected_tokens,
                                  .draft = s->call->block_create->draft};
    lode_block_h block;
    LODE_TRY(lode_block_create(s->cluster, &params, &block));
    return opened(s, block);
}

static lode_status_t serve_open(serving_t *s)
{
    lode_block_h block;
    LODE_TRY(lode_block_open(s->cluster, s->call->block_open->name, &block));
    return opened(s, block);
}

static void staged_free(serving_t *s)
{
    server_staged_t *staged = &s->session->append;
    free(staged->data);
    staging_give(s->service, staged->bytes);
    *staged = (server_staged_t){0};
}

/* Memory for all of an append, before its first part is kept. */
static lode_status_t staged_begin(serving_t *s, const Lodemark__BlockAppend *ask, uint64_t token_bytes)
{
    server_staged_t *staged = &s->session->append;
    uint64_t bytes = 2 * ask->total * token_bytes;
    if (staged->data)
        staged_free(s);
    if (!staging_take(s->service, bytes))
        return lode_fail(LODE_ERR_FULL,
                         "an append of %llu MiB at once: the service has no room for it now, append less",
                         (unsigned long long)(bytes >> 20));
    *staged = (server_staged_t){.data = malloc(bytes),
                                .bytes = bytes,
                                .block = ask->block,
                                .layer = ask->layer,
                                .dtype = ask->dtype,
                                .total = ask->total};
    if (staged->data)
        return LODE_OK;
    staged_free(s);
    return lode_fail(LODE_ERR_NO_MEMORY, "no memory for an append of %llu MiB", (unsigned long long)(bytes >> 20));
}

/* Keep a part. @p complete: it was the last. */
static lode_status_t staged_add(serving_t *s, const Lodemark__BlockAppend *ask, uint64_t token_bytes, bool *complete)
{
    server_staged_t *staged = &s->session->append;
    if (ask->first == 0)
        LODE_TRY(staged_begin(s, ask, token_bytes));
    if (!staged->data || staged->block != ask->block || staged->layer != ask->layer || staged->dtype != ask->dtype ||
        staged->total != ask->total || staged->tokens != ask->first) {
        staged_free(s);
        return lode_fail(LODE_ERR_FORMAT, "a part of an append came that is not the next one");
    }
    uint64_t at = ask->first * token_bytes, part = ask->tokens * token_bytes;
    memcpy(staged->data + at, s->payload, part);
    memcpy(staged->data + staged->total * token_bytes + at, s->payload + part, part);
    staged->tokens += ask->tokens;
    *complete = staged->tokens == staged->total;
    return LODE_OK;
}

/* One append is one call to the block, however many parts it came in: all of it or nothing. */
static lode_status_t serve_append(serving_t *s)
{
    const Lodemark__BlockAppend *ask = s->call->block_append;
    lode_block_h *block;
    bool complete = false;
    LODE_TRY(block_of(s, ask->block, &block));
    uint64_t token_bytes = (uint64_t)(*block)->heads * s->cluster->geometry.head_dim * session_dtype_bytes(ask->dtype);
    if (ask->tokens > SESSION_PAYLOAD_MAX / token_bytes || s->bytes != 2 * ask->tokens * token_bytes)
        return lode_fail(LODE_ERR_FORMAT, "%llu tokens of keys and values are %llu bytes, %zu came",
                         (unsigned long long)ask->tokens, (unsigned long long)(2 * ask->tokens * token_bytes),
                         s->bytes);
    if (ask->tokens == ask->total)
        return lode_block_append(*block, ask->layer, ask->tokens, (lode_dtype_t)ask->dtype, s->payload,
                                 s->payload + ask->tokens * token_bytes);
    if (ask->tokens == 0)
        return lode_fail(LODE_ERR_FORMAT, "a part of an append is empty");
    LODE_TRY(staged_add(s, ask, token_bytes, &complete));
    if (!complete)
        return LODE_OK;
    const uint8_t *data = s->session->append.data;
    lode_status_t status = lode_block_append(*block, ask->layer, ask->total, (lode_dtype_t)ask->dtype, data,
                                             data + ask->total * token_bytes);
    staged_free(s);
    return status;
}

static lode_status_t serve_seal(serving_t *s)
{
    lode_block_h *block;
    LODE_TRY(block_of(s, s->call->block_seal->block, &block));
    return lode_block_seal(*block);
}

static lode_status_t serve_crop(serving_t *s)
{
    lode_block_h *block;
    LODE_TRY(block_of(s, s->call->block_crop->block, &block));
    return lode_block_crop(*block, s->call->block_crop->tokens);
}

static lode_status_t serve_move(serving_t *s)
{
    const Lodemark__BlockMove *ask = s->call->block_move;
    lode_block_h *from, *to;
    LODE_TRY(block_of(s, ask->from, &from));
    LODE_TRY(block_of(s, ask->to, &to));
    return lode_block_move(*from, ask->first, *to);
}

static lode_status_t serve_drop(serving_t *s)
{
    lode_block_h *block;
    LODE_TRY(block_of(s, s->call->block_drop->block, &block));
    return lode_block_drop(block);
}

/* A block of its own that it has not sealed stays the session's, to be dropped with it: views may still write to it. */
static lode_status_t serve_close(serving_t *s)
{
    lode_block_h *block;
    LODE_TRY(block_of(s, s->call->block_close->block, &block));
    return (*block)->tails && !(*block)->sealed ? LODE_OK : lode_block_close(block);
}

static lode_status_t serve_tokens(serving_t *s)
{
    lode_block_h *block;
    LODE_TRY(block_of(s, s->call->block_tokens->block, &block));
    return lode_block_tokens(*block, s->call->block_tokens->layer, &s->answer->reply.tokens);
}

/* ------------------------------------------------------------------ listing */

static void entry_message(const lode_block_entry_t *entry, Lodemark__BlockEntry *message, Lodemark__BlockInfo *info)
{
    lodemark__block_entry__init(message);
    lodemark__block_info__init(info);
    info->id = entry->id;
    info->name = (char *)(uintptr_t)entry->name;
    info->format = entry->format;
    info->replicas = entry->replicas;
    info->kv_head_begin = entry->kv_head_begin;
    info->kv_head_end = entry->kv_head_end;
    info->codec = entry->landmark.codec;
    info->bits = entry->landmark.bits;
    info->chunk = entry->landmark.chunk;
    info->centre = entry->landmark.centre;
    info->writer = entry->writer;
    message->info = info;
    message->tokens = entry->tokens;
    message->sealed = entry->sealed;
}

/* One allocation holds entries and messages. */
static lode_status_t pack_list(serving_t *s, uint32_t room)
{
    typedef struct row {
        lode_block_entry_t entry;
        Lodemark__BlockEntry message;
        Lodemark__BlockInfo info;
    } row_t;
    lode_block_entry_t *entries = calloc(room + 1, sizeof *entries);
    row_t *rows = calloc(room + 1, sizeof *rows);
    Lodemark__BlockEntry **list = calloc(room + 1, sizeof *list);
    Lodemark__BlockList message = LODEMARK__BLOCK_LIST__INIT;
    uint32_t count = 0;
    lode_status_t status = entries && rows && list ? lode_cluster_blocks(s->cluster, entries, room, &count)
                                                   : lode_fail(LODE_ERR_NO_MEMORY, "no memory for a list of blocks");
    for (uint32_t i = 0; status == LODE_OK && i < count && i < room; i++) {
        rows[i].entry = entries[i];
        entry_message(&rows[i].entry, &rows[i].message, &rows[i].info);
        list[message.n_blocks++] = &rows[i].message;
    }
    message.blocks = list;
    if (status == LODE_OK)
        s->answer->payload_bytes = lodemark__block_list__get_packed_size(&message);
    if (status == LODE_OK)
        status = lode_buffer_reserve(s->answer->payload, s->answer->payload_bytes);
    if (status == LODE_OK && s->answer->payload_bytes)
        lodemark__block_list__pack(&message, s->answer->payload->data);
    free(entries);
    free(rows);
    free(list);
    return status;
}

static lode_status_t serve_blocks(serving_t *s)
{
    uint32_t count;
    LODE_TRY(lode_cluster_blocks(s->cluster, NULL, 0, &count));
    return pack_list(s, count);
}

/* ------------------------------------------------------------------ cluster */

static lode_status_t serve_shape(serving_t *s)
{
    lode_geometry_t geometry;
    LODE_TRY(lode_geometry_unpack(s->call->shape, &geometry));
    return lode_cluster_shape(s->cluster, &geometry);
}

static lode_status_t serve_geometry(serving_t *s)
{
    lode_geometry_t geometry;
    LODE_TRY(lode_cluster_geometry(s->cluster, &geometry));
    lode_geometry_pack(&geometry, s->answer->rope, &s->answer->geometry);
    s->answer->reply.geometry = &s->answer->geometry;
    return LODE_OK;
}

static lode_status_t serve_info(serving_t *s)
{
    lode_cluster_info_t info;
    Lodemark__ClusterInfo *message = &s->answer->info;
    LODE_TRY(lode_cluster_query(s->cluster, &info));
    lodemark__cluster_info__init(message);
    message->rank = info.rank;
    message->ranks = info.ranks;
    message->alive = info.alive;
    message->nodes = info.nodes;
    message->epoch = info.epoch;
    message->arena_bytes = info.arena_bytes;
    message->arena_used_bytes = info.arena_used_bytes;
    message->landmark_bytes = info.landmark_bytes;
    message->kernels = (char *)(uintptr_t)info.kernels;
    message->path = (char *)(uintptr_t)info.path;
    message->path_reason = (char *)(uintptr_t)info.path_reason;
    s->answer->reply.info = message;
    return LODE_OK;
}

static lode_status_t serve_rank_stats(serving_t *s)
{
    server_answer_t *answer = s->answer;
    LODE_TRY(lode_cluster_rank_stats(s->cluster, s->call->rank_stats->rank, &answer->rank_stats));
    session_pack_rank(&answer->rank_stats, &answer->rank_numbers, &answer->rank);
    answer->reply.rank = &answer->rank;
    return LODE_OK;
}

/* ------------------------------------------------------------------ newcomers */

/* A client that knows the token may bring a process that becomes a rank. Its card goes to the fabric as it is. */
/* Taking a process in needs the others' votes: steps of other clients go on meanwhile. */
static lode_status_t serve_admit(serving_t *s)
{
    server_session_t *session = s->session;
    void *invitation;
    size_t bytes;
    if (!session->admission) {
        LODE_TRY(lode_fabric_admit_begin(s->cluster->fabric, s->payload, s->bytes, &session->admission));
        session->admitting_ns = lode_now_ns();
    }
    lode_fabric_progress(s->cluster->fabric);
    lode_status_t status = lode_fabric_admit_poll(session->admission, &invitation, &bytes);
    if (status == LODE_OK && !invitation) {
        s->later = true;
        return LODE_OK;
    }
    lode_fabric_admit_end(&session->admission);
    LODE_TRY(status);
    lode_info("a process was taken in as one more rank, in %llu ms",
              (unsigned long long)((lode_now_ns() - session->admitting_ns) / 1000000));
    status = lode_buffer_reserve(s->answer->payload, bytes);
    if (status == LODE_OK) {
        memcpy(s->answer->payload->data, invitation, bytes);
        s->answer->payload_bytes = bytes;
    }
    free(invitation);
    return status;
}

static lode_status_t serve_announce(serving_t *s)
{
    const Lodemark__Contact *said = s->call->announce->contact;
    service_contact_t contact = {.rank = said->rank, .port = said->port};
    if (contact.rank >= lode_fabric_capacity(s->cluster->fabric))
        return lode_fail(LODE_ERR_FORMAT, "a rank %u announces itself to a cluster of at most %u", contact.rank,
                         lode_fabric_capacity(s->cluster->fabric));
    snprintf(contact.host, sizeof contact.host, "%s", said->host);
    snprintf(contact.address, sizeof contact.address, "%s", said->address);
    return service_learn(s->service, &contact);
}

/* -------------------------------------------------------------------- views */

static lode_status_t serve_view_create(serving_t *s)
{
    const Lodemark__ViewCreate *ask = s->call->view_create;
    lode_view_h view;
    LODE_TRY(lode_buffer_reserve(&s->service->streams, ask->n_blocks * sizeof(lode_block_h)));
    lode_block_h *blocks = s->service->streams.data, *block;
    for (size_t i = 0; i < ask->n_blocks; i++) {
        LODE_TRY(block_of(s, ask->blocks[i], &block));
        blocks[i] = *block;
    }
    lode_view_params_t params = {.blocks = blocks,
                                 .offsets = ask->n_offsets ? ask->offsets : NULL,
                                 .count = (uint32_t)ask->n_blocks,
                                 .write_block = ask->write_block,
                                 .shared_positions = ask->shared_positions};
    session_unpack_policy(ask, &params.policy);
    LODE_TRY(lode_view_create(s->cluster, &params, &view));
    lode_status_t status = handle_add(&s->session->views, view, &s->answer->reply.view);
    if (status != LODE_OK)
        lode_view_destroy(&view);
    return status;
}

static lode_status_t serve_view_destroy(serving_t *s)
{
    uint32_t number = s->call->view_destroy->view;
    lode_view_h *view = (lode_view_h *)handle_at(&s->session->views, number);
    if (!view)
        return lode_fail(LODE_ERR_INVALID, "the client has no view %u", number);
    return lode_view_destroy(view);
}

/* --------------------------------------------------------------- selections */

/* The state of a step is the cluster's, and another session's step is about to replace it. */
static lode_status_t keep_selection(server_session_t *session, lode_step_state_t *step)
{
    LODE_TRY(lode_step_bring_selection(step));
    size_t chosen = step->rows * step->cluster->heads * sizeof(lode_chosen_t), tokens = step->token_count * 4;
    if (chosen + tokens > SELECTION_KEPT_BYTES)
        return LODE_ERR_FULL;
    LODE_TRY(lode_buffer_reserve(&session->selection.rows, (step->stream_count + 1) * sizeof(uint32_t)));
    LODE_TRY(lode_buffer_reserve(&session->selection.chosen, chosen));
    LODE_TRY(lode_buffer_reserve(&session->selection.tokens, tokens));
    uint32_t *rows = session->selection.rows.data;
    for (uint32_t i = 0; i < step->stream_count; i++)
        rows[i] = (uint32_t)lode_stream_at(step, i)->first_row;
    rows[step->stream_count] = (uint32_t)step->rows;
    memcpy(session->selection.chosen.data, step->chosen.data, chosen);
    if (tokens)
        memcpy(session->selection.tokens.data, step->tokens.data, tokens);
    session->selection.streams = step->stream_count;
    session->selection.heads = step->cluster->heads;
    session->selection.kept = true;
    return LODE_OK;
}

static void before_step(service_h service, server_session_t *session)
{
    server_session_t *last = service->stepped;
    if (last && last != session && last->stepped)
        last->stepped = keep_selection(last, service->cluster->step) == LODE_OK;
    service->stepped = session;
    session->stepped = false;
    session->selection.kept = false;
}

static lode_status_t kept_selection(const server_session_t *session, const Lodemark__SelectionAsk *ask,
                                    const uint32_t **tokens, uint64_t *count)
{
    const uint32_t *rows = session->selection.rows.data;
    if (ask->stream >= session->selection.streams || ask->kv_head >= session->selection.heads ||
        ask->token >= rows[ask->stream + 1] - rows[ask->stream])
        return lode_fail(LODE_ERR_INVALID, "lode_step_selection: the last step had no such stream, token or head");
    const lode_chosen_t *chosen = (const lode_chosen_t *)session->selection.chosen.data +
                                  ((size_t)rows[ask->stream] + ask->token) * session->selection.heads + ask->kv_head;
    *tokens = chosen->all ? NULL : (const uint32_t *)session->selection.tokens.data + chosen->start;
    *count = chosen->count;
    return LODE_OK;
}

static lode_status_t serve_selection(serving_t *s)
{
    const Lodemark__SelectionAsk *ask = s->call->selection;
    Lodemark__Selection *reply = &s->answer->selection;
    const uint32_t *tokens;
    uint64_t count;
    if (!s->session->stepped)
        return lode_fail(LODE_ERR_NOT_FOUND, "what the client's last step chose is not known any more");
    if (s->session->selection.kept)
        LODE_TRY(kept_selection(s->session, ask, &tokens, &count));
    else
        LODE_TRY(lode_step_selection(s->cluster, ask->stream, ask->token, ask->kv_head, &tokens, &count));
    lodemark__selection__init(reply);
    reply->all = tokens == NULL;
    reply->count = count;
    if (tokens && count) {
        LODE_TRY(lode_buffer_reserve(s->answer->payload, count * sizeof *tokens));
        memcpy(s->answer->payload->data, tokens, count * sizeof *tokens);
        s->answer->payload_bytes = count * sizeof *tokens;
    }
    s->answer->reply.selection = reply;
    return LODE_OK;
}

/* -------------------------------------------------------------------- steps */

static lode_status_t stream_of(const serving_t *s, const Lodemark__StepStream *ask, const session_tensors_t *at,
                               lode_stream_t *stream)
{
    lode_view_h *view = (lode_view_h *)handle_at(&s->session->views, ask->view);
    uint8_t *reply = s->answer->payload->data;
    if (!view)
        return lode_fail(LODE_ERR_INVALID, "the client has no view %u", ask->view);
    *stream = (lode_stream_t){.view = *view,
                              .tokens = ask->tokens,
                              .position = ask->position,
                              .dtype = (lode_dtype_t)ask->dtype,
                              .q = s->payload + at->q,
                              .k = ask->writes ? s->payload + at->k : NULL,
                              .v = ask->writes ? s->payload + at->v : NULL,
                              .out = (float *)(reply + at->out),
                              .lse = ask->wants_lse ? (float *)(reply + at->lse) : NULL,
                              .lost_share = ask->wants_lost ? (float *)(reply + at->lost) : NULL};
    return LODE_OK;
}

static lode_status_t serve_step(serving_t *s)
{
    const Lodemark__StepAsk *ask = s->call->step;
    service_h service = s->service;
    session_shape_t shape = {s->cluster->query_heads, s->cluster->heads, s->cluster->geometry.head_dim};
    size_t request, reply;
    LODE_TRY(lode_check_shaped(s->cluster));
    LODE_TRY(lode_buffer_reserve(&service->tensors, ask->n_streams * sizeof(session_tensors_t)));
    LODE_TRY(lode_buffer_reserve(&service->streams, ask->n_streams * sizeof(lode_stream_t)));
    LODE_TRY(session_step_layout(ask, &shape, service->tensors.data, &request, &reply));
    if (request != s->bytes)
        return lode_fail(LODE_ERR_FORMAT, "the tensors of a step are %zu bytes, %zu came", request, s->bytes);
    LODE_TRY(lode_buffer_reserve(s->answer->payload, reply));
    lode_stream_t *streams = service->streams.data;
    for (size_t i = 0; i < ask->n_streams; i++)
        LODE_TRY(stream_of(s, ask->streams[i], (session_tensors_t *)service->tensors.data + i, &streams[i]));
    lode_step_stats_t stats;
    before_step(service, s->session);
    LODE_TRY(lode_step(s->cluster, ask->layer, streams, (uint32_t)ask->n_streams, &stats));
    s->session->stepped = true;
    session_pack_stats(&stats, s->answer->stages, &s->answer->step);
    s->answer->reply.step = &s->answer->step;
    s->answer->payload_bytes = reply;
    return LODE_OK;
}

/* ----------------------------------------------------------------- dispatch */

static lode_status_t serve(serving_t *s)
{
    switch (s->call->body_case) {
    case LODEMARK__SESSION_CALL__BODY_SHAPE:
        return serve_shape(s);
    case LODEMARK__SESSION_CALL__BODY_GEOMETRY:
        return serve_geometry(s);
    case LODEMARK__SESSION_CALL__BODY_INFO:
        return serve_info(s);
    case LODEMARK__SESSION_CALL__BODY_RANK_STATS:
        return serve_rank_stats(s);
    case LODEMARK__SESSION_CALL__BODY_BLOCKS:
        return serve_blocks(s);
    case LODEMARK__SESSION_CALL__BODY_BLOCK_CREATE:
        return serve_create(s);
    case LODEMARK__SESSION_CALL__BODY_BLOCK_OPEN:
        return serve_open(s);
    case LODEMARK__SESSION_CALL__BODY_BLOCK_APPEND:
        return serve_append(s);
    case LODEMARK__SESSION_CALL__BODY_BLOCK_SEAL:
        return serve_seal(s);
    case LODEMARK__SESSION_CALL__BODY_BLOCK_CROP:
        return serve_crop(s);
    case LODEMARK__SESSION_CALL__BODY_BLOCK_MOVE:
        return serve_move(s);
    case LODEMARK__SESSION_CALL__BODY_BLOCK_DROP:
        return serve_drop(s);
    case LODEMARK__SESSION_CALL__BODY_BLOCK_CLOSE:
        return serve_close(s);
    case LODEMARK__SESSION_CALL__BODY_BLOCK_TOKENS:
        return serve_tokens(s);
    case LODEMARK__SESSION_CALL__BODY_VIEW_CREATE:
        return serve_view_create(s);
    case LODEMARK__SESSION_CALL__BODY_VIEW_DESTROY:
        return serve_view_destroy(s);
    case LODEMARK__SESSION_CALL__BODY_STEP:
        return serve_step(s);
    case LODEMARK__SESSION_CALL__BODY_SELECTION:
        return serve_selection(s);
    case LODEMARK__SESSION_CALL__BODY_ADMIT:
        return serve_admit(s);
    case LODEMARK__SESSION_CALL__BODY_ANNOUNCE:
        return serve_announce(s);
    default:
        return lode_fail(LODE_ERR_UNSUPPORTED, "a call of kind %d is not served", (int)s->call->body_case);
    }
}

static bool writes(const Lodemark__StepAsk *step)
{
    for (size_t i = 0; i < step->n_streams; i++)
        if (step->streams[i]->writes)
            return true;
    return false;
}

/* Whether a call leaves blocks and membership as they are. Then it is safe on a rank that the others may have gone on
 * without: records name and check themselves, and what is sealed does not change. */
static bool only_reads(const Lodemark__SessionCall *call)
{
    switch (call->body_case) {
    case LODEMARK__SESSION_CALL__BODY_SHAPE:
    case LODEMARK__SESSION_CALL__BODY_BLOCK_CREATE:
    case LODEMARK__SESSION_CALL__BODY_BLOCK_APPEND:
    case LODEMARK__SESSION_CALL__BODY_BLOCK_SEAL:
    case LODEMARK__SESSION_CALL__BODY_BLOCK_CROP:
    case LODEMARK__SESSION_CALL__BODY_BLOCK_MOVE:
    case LODEMARK__SESSION_CALL__BODY_BLOCK_DROP:
    case LODEMARK__SESSION_CALL__BODY_ADMIT:
    case LODEMARK__SESSION_CALL__BODY_ANNOUNCE:
        return false;
    case LODEMARK__SESSION_CALL__BODY_STEP:
        return !writes(call->step);
    default:
        return true;
    }
}

/* Whether a call is done without waiting for other ranks, but for records. One that joins may be what others wait for.
 */
static bool is_swift(const Lodemark__SessionCall *call)
{
    switch (call->body_case) {
    case LODEMARK__SESSION_CALL__BODY_ADMIT:
    case LODEMARK__SESSION_CALL__BODY_ANNOUNCE:
        return true;
    case LODEMARK__SESSION_CALL__BODY_RANK_STATS:
        return false;
    default:
        return only_reads(call);
    }
}

/* Whether others may read while a call waits for other ranks: what it works on is its own. A step's is the cluster's.
 */
static bool may_be_interrupted(const Lodemark__SessionCall *call)
{
    switch (call->body_case) {
    case LODEMARK__SESSION_CALL__BODY_RANK_STATS:
    case LODEMARK__SESSION_CALL__BODY_BLOCK_CREATE:
    case LODEMARK__SESSION_CALL__BODY_BLOCK_APPEND:
    case LODEMARK__SESSION_CALL__BODY_BLOCK_SEAL:
    case LODEMARK__SESSION_CALL__BODY_BLOCK_MOVE:
    case LODEMARK__SESSION_CALL__BODY_BLOCK_DROP:
        return true;
    default:
        return false;
    }
}

/* At the second desk only what does not wait itself. */
static lode_status_t serve_at_desk(serving_t *s)
{
    service_h service = s->service;
    if (service->desk > 0)
        return serve(s);
    service->interrupts = may_be_interrupted(s->call);
    s->session->serving = true;
    lode_status_t status = serve(s);
    s->session->serving = service->interrupts = false;
    return status;
}

/*
 * A rank is fenced for a moment whenever the deciding rank is lost, until its successor has decided. What writes waits
 * for that, in its session, while others read. @return whether it is to be looked at again later
 */
static bool waits_for_the_others(const serving_t *s)
{
    lode_fabric_h fabric = s->cluster->fabric;
    uint64_t now = lode_now_ns(), *since = &s->session->fenced_ns;
    if (!lode_fabric_fenced(fabric) || lode_fabric_expelled(fabric) || atomic_load(&s->service->stop)) {
        *since = 0;
        return false;
    }
    if (*since == 0)
        *since = now;
    if (now - *since < FENCED_NS)
        return true;
    *since = 0;
    return false;
}

static lode_status_t refer_elsewhere(serving_t *s, const char *why)
{
    s->answer->reply.elsewhere = true;
    return lode_fail(LODE_ERR_REFUSED, "rank %u is %s", s->service->self.rank, why);
}

static lode_status_t serve_checked(serving_t *s)
{
    lode_fabric_h fabric = s->cluster->fabric;
    LODE_TRY(session_call_check(s->call, s->bytes));
    bool reads = only_reads(s->call);
    s->later = s->service->desk > 0 && !is_swift(s->call);
    if (s->later)
        return LODE_OK;
    s->later = !reads && waits_for_the_others(s);
    if (s->later)
        return LODE_OK;
    if (lode_fabric_expelled(fabric) || (!reads && lode_fabric_fenced(fabric)))
        return refer_elsewhere(s, "cut off from the others");
    if (atomic_load(&s->service->stop))
        return refer_elsewhere(s, "shutting down");
    lode_status_t status = serve_at_desk(s);
    bool others = status == LODE_ERR_PAGE_LOST || status == LODE_ERR_PEER_LOST || status == LODE_ERR_TIMEOUT;
    return others && lode_fabric_fenced(fabric) ? refer_elsewhere(s, "cut off from the others") : status;
}

bool serve_call(service_h service, server_session_t *session, const void *header, size_t header_bytes,
                const uint8_t *payload, size_t payload_bytes)
{
    server_desk_t *desk = &service->desks[service->desk];
    server_answer_t *answer = desk->answer;
    serving_t s = {.service = service,
                   .session = session,
                   .cluster = service->cluster,
                   .call = session_call(&desk->room, header, header_bytes),
                   .payload = payload,
                   .bytes = payload_bytes,
                   .answer = answer};
    lodemark__session_reply__init(&answer->reply);
    answer->payload_bytes = 0;
    lode_status_t status =
        s.call ? serve_checked(&s) : lode_fail(LODE_ERR_FORMAT, "a message that cannot be read, or is too large");
    if (s.later)
        return false;
    answer->reply.id = s.call ? s.call->id : 0;
    answer->reply.status = status;
    if (status == LODE_OK)
        return true;
    answer->payload_bytes = 0;
    snprintf(answer->message, sizeof answer->message, "%s", lode_error_message());
    answer->reply.message = answer->message;
    return true;
}

/* ----------------------------------------------------------------- farewell */

/* What its writer leaves unsealed nobody can finish: it goes. A rank that stops itself leaves that to the others. */
static void give_back(service_h service, lode_block_h *block)
{
    bool unfinished = (*block)->tails && !(*block)->sealed;
    if (unfinished && !atomic_load(&service->stop) && lode_block_drop(block) != LODE_OK)
        lode_warn("an unsealed block of a client that left could not be dropped: %s", lode_error_message());
    if (*block)
        lode_block_close(block);
}

void serve_farewell(service_h service, server_session_t *session)
{
    serving_t s = {.service = service, .session = session};
    for (uint32_t i = 0; i < session->views.count; i++)
        if (session->views.items[i])
            lode_view_destroy((lode_view_h *)&session->views.items[i]);
    for (uint32_t i = 0; i < session->blocks.count; i++)
        if (session->blocks.items[i])
            give_back(service, (lode_block_h *)&session->blocks.items[i]);
    if (session->admission)
        lode_fabric_admit_end(&session->admission);
    session->fenced_ns = 0;
    free(session->views.items);
    free(session->blocks.items);
    session->views = session->blocks = (server_handles_t){0};
    staged_free(&s);
    if (service->stepped == session)
        service->stepped = NULL;
    session->stepped = session->selection.kept = false;
    lode_buffer_free(&session->selection.rows);
    lode_buffer_free(&session->selection.chosen);
    lode_buffer_free(&session->selection.tokens);
}

/* The process that made a block, told by the block's id (attend/block.c). */
static bool writer_lives(service_h service, const lode_block_entry_t *entry)
{
    lode_fabric_h fabric = service->cluster->fabric;
    uint32_t incarnation = (uint32_t)(entry->id >> 32) & 0xffff;
    return entry->writer < lode_fabric_ranks(fabric) && lode_fabric_alive(fabric, entry->writer) &&
           (lode_fabric_incarnation(fabric, entry->writer) & 0xffff) == incarnation;
}

void serve_sweep(service_h service)
{
    uint32_t count = 0, room;
    if (lode_cluster_blocks(service->cluster, NULL, 0, &count) != LODE_OK || count == 0)
        return;
    room = count;
    lode_block_entry_t *entries = calloc(room, sizeof *entries);
    if (!entries || lode_cluster_blocks(service->cluster, entries, room, &count) != LODE_OK)
        count = 0;
    for (uint32_t i = 0; i < count && i < room; i++) {
        lode_block_h block;
        if (entries[i].sealed || writer_lives(service, &entries[i]) ||
            lode_block_open(service->cluster, entries[i].name, &block) != LODE_OK)
            continue;
        lode_info("block \"%s\" was not sealed when its writer, rank %u, was lost: it is dropped", entries[i].name,
                  entries[i].writer);
        if (block->info.id == entries[i].id && lode_block_drop(&block) == LODE_OK)
            continue;
        if (block)
            lode_block_close(&block);
    }
    free(entries);
}
