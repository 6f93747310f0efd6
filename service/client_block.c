/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks and views of a client: known by name and parameters, opened anew at the next rank. */
#include <stdlib.h>
#include <string.h>

#include "service/client_inside.h"

/* Of keys and values in one message of an append. */
#define APPEND_BYTES (UINT64_C(16) << 20)

/* ------------------------------------------------------------------- states */

static bool at_rank(const struct lode_block *block)
{
    return block->cluster->link.fd >= 0 && block->generation == block->cluster->link.generation;
}

/* Keep count of what would be lost with the connection. */
static void count_writing(struct lode_block *block, bool gone)
{
    bool writing = !gone && block->writer && !block->sealed && !block->dropped && !block->lost;
    block->cluster->writing += (uint32_t)writing - (uint32_t)block->writing;
    block->writing = writing;
}

static lode_status_t check_known(struct lode_block *block)
{
    count_writing(block, false);
    if (block->dropped)
        return lode_fail(LODE_ERR_DROPPED, "block \"%s\" was dropped", block->name);
    if (block->lost)
        return lode_fail(LODE_ERR_PEER_LOST,
                         "block \"%s\" was not sealed when the rank that wrote it was lost: it is "
                         "gone",
                         block->name);
    return LODE_OK;
}

static lode_status_t opened(lode_block_h block, const Lodemark__BlockOpened *reply)
{
    if (!reply)
        return lode_fail(LODE_ERR_FORMAT, "the service opened block \"%s\" without saying how", block->name);
    block->number = reply->block;
    block->generation = block->cluster->link.generation;
    block->id = reply->id;
    block->sealed |= reply->sealed;
    return LODE_OK;
}

/* The next rank may know a block of this name that is another one, or half of what was not sealed. */
static lode_status_t reopen(lode_block_h block, const Lodemark__BlockOpened *reply)
{
    if (reply && reply->id != block->id)
        block->dropped = true;
    else if (reply && block->writer && !reply->sealed)
        block->lost = true;
    LODE_TRY(check_known(block));
    return opened(block, reply);
}

lode_status_t client_block_ready(lode_block_h block)
{
    LODE_TRY(check_known(block));
    if (at_rank(block))
        return LODE_OK;
    Lodemark__BlockOpen body = LODEMARK__BLOCK_OPEN__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT};
    body.name = block->name;
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_OPEN;
    ask.call.block_open = &body;
    lode_status_t status = client_exchange(block->cluster, &ask);
    if (status == LODE_ERR_NOT_FOUND) {
        *(block->writer && !block->sealed ? &block->lost : &block->dropped) = true;
        return check_known(block);
    }
    LODE_TRY(status);
    return reopen(block, ask.reply->block);
}

static lode_status_t prepare_block(lode_cluster_h cluster, client_ask_t *ask)
{
    (void)cluster;
    lode_block_h block = ask->context;
    LODE_TRY(client_block_ready(block));
    switch (ask->call.body_case) {
    case LODEMARK__SESSION_CALL__BODY_BLOCK_APPEND:
        ask->call.block_append->block = block->number;
        break;
    case LODEMARK__SESSION_CALL__BODY_BLOCK_TOKENS:
        ask->call.block_tokens->block = block->number;
        break;
    case LODEMARK__SESSION_CALL__BODY_BLOCK_SEAL:
        ask->call.block_seal->block = block->number;
        break;
    case LODEMARK__SESSION_CALL__BODY_BLOCK_CROP:
        ask->call.block_crop->block = block->number;
        break;
    default:
        ask->call.block_drop->block = block->number;
    }
    return LODE_OK;
}

static lode_status_t handle_create(lode_cluster_h cluster, const char *name, lode_block_h *out)
{
    lode_block_h block = calloc(1, sizeof *block);
    if (!block)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a block's handle");
    block->cluster = cluster;
    block->references = 1;
    snprintf(block->name, sizeof block->name, "%s", name);
    *out = block;
    return LODE_OK;
}

/* The rank's number goes with the last reference; whether that works does not matter, it goes with the session too. */
static void release(lode_block_h block)
{
    if (--block->references)
        return;
    count_writing(block, true);
    if (at_rank(block) && !block->dropped) {
        Lodemark__BlockRef body = LODEMARK__BLOCK_REF__INIT;
        client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT};
        body.block = block->number;
        ask.call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_CLOSE;
        ask.call.block_close = &body;
        if (client_exchange(block->cluster, &ask) != LODE_OK)
            lode_debug("closing block \"%s\": %s", block->name, lode_error_message());
    }
    free(block);
}

/* ------------------------------------------------------------------- blocks */

lode_status_t client_block_create(lode_cluster_h cluster, const lode_block_params_t *params, lode_block_h *out)
{
    Lodemark__BlockInfo info = LODEMARK__BLOCK_INFO__INIT;
    Lodemark__BlockCreate body = LODEMARK__BLOCK_CREATE__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT};
    lode_block_h block = NULL;
    if (!params->name || strlen(params->name) > LODE_NAME_MAX || !session_text_is_fine(params->name))
        return lode_fail(LODE_ERR_INVALID, "a block's name is 1 to %d bytes of UTF-8 without control characters",
                         LODE_NAME_MAX);
    info.name = (char *)(uintptr_t)params->name;
    info.format = params->format;
    info.replicas = params->replicas;
    info.codec = params->landmark.codec;
    info.bits = params->landmark.bits;
    info.chunk = params->landmark.chunk;
    info.centre = params->landmark.centre;
    info.index = params->landmark.index;
    info.expected_tokens = params->expected_tokens;
    body.info = &info;
    body.draft = params->draft != 0;
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_CREATE;
    ask.call.block_create = &body;
    LODE_TRY(handle_create(cluster, params->name, &block));
    lode_status_t status = client_ask(cluster, &ask);
    if (status == LODE_OK)
        status = opened(block, ask.reply->block);
    if (status != LODE_OK) {
        free(block);
        return status;
    }
    block->writer = true;
    count_writing(block, false);
    *out = block;
    return LODE_OK;
}

lode_status_t client_block_open(lode_cluster_h cluster, const char *name, lode_block_h *out)
{
    Lodemark__BlockOpen body = LODEMARK__BLOCK_OPEN__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT, .again = true};
    lode_block_h block = NULL;
    if (strlen(name) > LODE_NAME_MAX || !session_text_is_fine(name))
        return lode_fail(LODE_ERR_NOT_FOUND, "no block has a name of more than %d bytes, or with control characters",
                         LODE_NAME_MAX);
    body.name = (char *)(uintptr_t)name;
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_OPEN;
    ask.call.block_open = &body;
    LODE_TRY(handle_create(cluster, name, &block));
    lode_status_t status = client_ask(cluster, &ask);
    if (status == LODE_OK)
        status = opened(block, ask.reply->block);
    if (status != LODE_OK) {
        free(block);
        return status;
    }
    *out = block;
    return LODE_OK;
}

/* A message a part; the rank appends when the last is there. */
lode_status_t client_block_append(lode_block_h block, uint32_t layer, uint64_t tokens, lode_dtype_t dtype,
                                  const void *k, const void *v)
{
    lode_geometry_t geometry;
    LODE_TRY(check_known(block));
    LODE_TRY(client_geometry(block->cluster, &geometry));
    uint64_t token_bytes =
        (uint64_t)(geometry.kv_head_end - geometry.kv_head_begin) * geometry.head_dim * session_dtype_bytes(dtype);
    uint64_t piece = APPEND_BYTES / (2 * token_bytes), done = 0;
    uint64_t generation = block->generation;
    do {
        uint64_t part = tokens - done < piece ? tokens - done : piece;
        Lodemark__BlockAppend body = LODEMARK__BLOCK_APPEND__INIT;
        const struct client_part parts[] = {{(const uint8_t *)k + done * token_bytes, part * token_bytes},
                                            {(const uint8_t *)v + done * token_bytes, part * token_bytes}};
        client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT,
                            .parts = parts,
                            .count = part ? 2 : 0,
                            .prepare = prepare_block,
                            .context = block};
        body.layer = layer;
        body.dtype = dtype;
        body.total = tokens;
        body.first = done;
        body.tokens = part;
        ask.call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_APPEND;
        ask.call.block_append = &body;
        LODE_TRY(client_ask(block->cluster, &ask));
        if (generation != block->generation)
            return lode_fail(LODE_ERR_PEER_LOST, "block \"%s\": the rank that wrote it was lost", block->name);
        done += part;
    } while (done < tokens);
    return LODE_OK;
}

/* Whether a seal that was asked for took place is told by the block itself. */
lode_status_t client_block_seal(lode_block_h block)
{
    Lodemark__BlockRef body = LODEMARK__BLOCK_REF__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT, .prepare = prepare_block, .context = block};
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_SEAL;
    ask.call.block_seal = &body;
    lode_status_t status = client_ask(block->cluster, &ask);
    if (status == LODE_ERR_PEER_LOST && block->cluster->link.fd < 0 &&
        client_connect(block->cluster, block->cluster->reconnect_ns) == LODE_OK)
        status = client_block_ready(block);
    if (status == LODE_OK)
        block->sealed = true;
    count_writing(block, false);
    return status;
}

lode_status_t client_block_crop(lode_block_h block, uint64_t tokens)
{
    Lodemark__BlockCrop body = LODEMARK__BLOCK_CROP__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT, .prepare = prepare_block, .context = block};
    body.tokens = tokens;
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_CROP;
    ask.call.block_crop = &body;
    return client_ask(block->cluster, &ask);
}

typedef struct pair {
    lode_block_h from, to;
} pair_t;

static lode_status_t prepare_move(lode_cluster_h cluster, client_ask_t *ask)
{
    (void)cluster;
    const pair_t *pair = ask->context;
    LODE_TRY(client_block_ready(pair->from));
    LODE_TRY(client_block_ready(pair->to));
    ask->call.block_move->from = pair->from->number;
    ask->call.block_move->to = pair->to->number;
    return LODE_OK;
}

lode_status_t client_block_move(lode_block_h from, uint64_t first, lode_block_h to)
{
    pair_t pair = {from, to};
    Lodemark__BlockMove body = LODEMARK__BLOCK_MOVE__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT, .prepare = prepare_move, .context = &pair};
    body.first = first;
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_MOVE;
    ask.call.block_move = &body;
    return client_ask(from->cluster, &ask);
}

lode_status_t client_block_drop(lode_block_h *handle)
{
    lode_block_h block = *handle;
    Lodemark__BlockRef body = LODEMARK__BLOCK_REF__INIT;
    client_ask_t ask = {
        .call = LODEMARK__SESSION_CALL__INIT, .again = true, .prepare = prepare_block, .context = block};
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_DROP;
    ask.call.block_drop = &body;
    lode_status_t status = block->dropped ? LODE_OK : client_ask(block->cluster, &ask);
    if (status != LODE_OK && !block->dropped && !block->lost)
        return status;
    block->dropped = true;
    release(block);
    *handle = NULL;
    return LODE_OK;
}

lode_status_t client_block_close(lode_block_h *block)
{
    release(*block);
    *block = NULL;
    return LODE_OK;
}

lode_status_t client_block_tokens(lode_block_h block, uint32_t layer, uint64_t *tokens)
{
    Lodemark__BlockLayer body = LODEMARK__BLOCK_LAYER__INIT;
    client_ask_t ask = {
        .call = LODEMARK__SESSION_CALL__INIT, .again = true, .prepare = prepare_block, .context = block};
    body.layer = layer;
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_TOKENS;
    ask.call.block_tokens = &body;
    LODE_TRY(client_ask(block->cluster, &ask));
    *tokens = ask.reply->tokens;
    return LODE_OK;
}

/* ------------------------------------------------------------------ listing */

static bool entry_of(const Lodemark__BlockEntry *message, lode_block_entry_t *entry)
{
    const Lodemark__BlockInfo *info = message->info;
    if (!info || strlen(info->name) > LODE_NAME_MAX || !session_text_is_fine(info->name) ||
        info->format > LODE_FORMAT_HIGGS4 || info->codec > LODE_LANDMARK_HIGGS)
        return false;
    *entry = (lode_block_entry_t){.id = info->id,
                                  .tokens = message->tokens,
                                  .format = (lode_format_t)info->format,
                                  .replicas = info->replicas,
                                  .sealed = message->sealed,
                                  .writer = info->writer,
                                  .kv_head_begin = info->kv_head_begin,
                                  .kv_head_end = info->kv_head_end,
                                  .landmark = {(lode_landmark_codec_t)info->codec, info->bits, info->chunk,
                                               info->centre, (lode_landmark_index_t)info->index}};
    snprintf(entry->name, sizeof entry->name, "%s", info->name);
    return true;
}

/* A list is as large as the service: memory for it is its own. */
lode_status_t client_blocks(lode_cluster_h cluster, lode_block_entry_t *entries, uint32_t capacity, uint32_t *count)
{
    Lodemark__BlocksAsk body = LODEMARK__BLOCKS_ASK__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT, .again = true};
    session_room_t room;
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCKS;
    ask.call.blocks = &body;
    LODE_TRY(client_ask(cluster, &ask));
    if (ask.payload_bytes == 0) {
        *count = 0;
        return LODE_OK;
    }
    LODE_TRY(session_room_create(&room, 4096 + 16 * ask.payload_bytes));
    const Lodemark__BlockList *list = session_block_list(&room, ask.payload, ask.payload_bytes);
    lode_status_t status = list ? LODE_OK : lode_fail(LODE_ERR_FORMAT, "the service's list of blocks cannot be read");
    for (size_t i = 0; list && i < list->n_blocks && i < capacity && status == LODE_OK; i++)
        if (!entry_of(list->blocks[i], &entries[i]))
            status = lode_fail(LODE_ERR_FORMAT, "entry %zu of the service's list of blocks makes no sense", i);
    if (status == LODE_OK)
        *count = (uint32_t)list->n_blocks;
    session_room_destroy(&room);
    return status;
}

/* -------------------------------------------------------------------- views */

lode_status_t client_view_ready(lode_view_h view)
{
    lode_cluster_h cluster = view->cluster;
    if (cluster->link.fd >= 0 && view->generation == cluster->link.generation)
        return LODE_OK;
    for (uint32_t i = 0; i < view->count; i++)
        LODE_TRY(client_block_ready(view->blocks[i]));
    uint32_t *numbers = malloc(view->count * sizeof *numbers);
    Lodemark__ViewCreate body = LODEMARK__VIEW_CREATE__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT};
    if (!numbers)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a view of %u blocks", view->count);
    for (uint32_t i = 0; i < view->count; i++)
        numbers[i] = view->blocks[i]->number;
    body.blocks = numbers;
    body.n_blocks = view->count;
    body.offsets = view->offsets;
    body.n_offsets = view->offsets ? view->count : 0;
    body.write_block = view->write_block;
    body.shared_positions = view->shared_positions;
    session_pack_policy(&view->policy, &body);
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_VIEW_CREATE;
    ask.call.view_create = &body;
    lode_status_t status = client_exchange(cluster, &ask);
    free(numbers);
    LODE_TRY(status);
    view->number = ask.reply->view;
    view->generation = cluster->link.generation;
    return LODE_OK;
}

/* A view is made by being brought to the rank: asking for its blocks' lengths does it no harm to be asked again. */
static lode_status_t prepare_view(lode_cluster_h cluster, client_ask_t *ask)
{
    (void)cluster;
    lode_view_h view = ask->context;
    LODE_TRY(client_view_ready(view));
    ask->call.block_tokens->block = view->blocks[0]->number;
    return LODE_OK;
}

static void view_free(lode_view_h view)
{
    for (uint32_t i = 0; view->blocks && i < view->count; i++)
        release(view->blocks[i]);
    free(view->blocks);
    free(view->offsets);
    free(view);
}

static lode_status_t view_handle(lode_cluster_h cluster, const lode_view_params_t *params, lode_view_h *out)
{
    lode_view_h view = calloc(1, sizeof *view);
    if (!view)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a view");
    *view = (struct lode_view){.cluster = cluster,
                               .blocks = malloc(params->count * sizeof *view->blocks),
                               .offsets = params->offsets ? malloc(params->count * sizeof *view->offsets) : NULL,
                               .count = params->count,
                               .write_block = params->write_block,
                               .shared_positions = params->shared_positions,
                               .policy = params->policy};
    if (!view->blocks || (params->offsets && !view->offsets)) {
        free(view->blocks);
        free(view->offsets);
        free(view);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a view of %u blocks", params->count);
    }
    for (uint32_t i = 0; i < params->count; i++) {
        view->blocks[i] = params->blocks[i];
        view->blocks[i]->references++;
        if (view->offsets)
            view->offsets[i] = params->offsets[i];
    }
    *out = view;
    return LODE_OK;
}

lode_status_t client_view_create(lode_cluster_h cluster, const lode_view_params_t *params, lode_view_h *out)
{
    Lodemark__BlockLayer body = LODEMARK__BLOCK_LAYER__INIT;
    client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT, .again = true, .prepare = prepare_view};
    lode_view_h view = NULL;
    if (params->count > SESSION_VIEW_BLOCKS_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED, "a view of %u blocks: a client's has at most %d", params->count,
                         SESSION_VIEW_BLOCKS_MAX);
    LODE_TRY(view_handle(cluster, params, &view));
    ask.context = view;
    ask.call.body_case = LODEMARK__SESSION_CALL__BODY_BLOCK_TOKENS;
    ask.call.block_tokens = &body;
    lode_status_t status = client_ask(cluster, &ask);
    if (status != LODE_OK) {
        view_free(view);
        return status;
    }
    *out = view;
    return LODE_OK;
}

lode_status_t client_view_destroy(lode_view_h *handle)
{
    lode_view_h view = *handle;
    lode_cluster_h cluster = view->cluster;
    if (cluster->link.fd >= 0 && view->generation == cluster->link.generation) {
        Lodemark__ViewRef body = LODEMARK__VIEW_REF__INIT;
        client_ask_t ask = {.call = LODEMARK__SESSION_CALL__INIT};
        body.view = view->number;
        ask.call.body_case = LODEMARK__SESSION_CALL__BODY_VIEW_DESTROY;
        ask.call.view_destroy = &body;
        if (client_exchange(cluster, &ask) != LODE_OK)
            lode_debug("destroying a view: %s", lode_error_message());
    }
    view_free(view);
    *handle = NULL;
    return LODE_OK;
}
