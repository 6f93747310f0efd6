/* SPDX-License-Identifier: Apache-2.0 */
/* The way of new tokens out of the tail: pages to their owners, landmarks to every node, then the count. */
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"

/* Until one that refused for a while is asked again. */
#define REFUSED_NS UINT64_C(2000000)

/* ------------------------------------------------------- telling the keepers */

/* What became of the calls to one rank: the first failure stands for all. */
typedef struct outcome {
    lode_status_t status;
    char message[256];
} outcome_t;

static void note_outcome(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply)
{
    outcome_t *outcome = context;
    (void)from;
    if (status == LODE_OK || outcome->status != LODE_OK)
        return;
    outcome->status = status;
    snprintf(outcome->message, sizeof outcome->message, "%s",
             reply && reply->message && *reply->message ? reply->message : lode_error_message());
}

static lode_status_t tell(lode_cluster_h cluster, uint32_t rank, lode_telling_t *tellings, uint32_t n,
                          outcome_t *outcome)
{
    for (uint32_t i = 0; i < n; i++)
        LODE_TRY(lode_fabric_call(cluster->fabric, rank, &tellings[i].call, tellings[i].payload, tellings[i].bytes,
                                  note_outcome, outcome));
    return LODE_OK;
}

/*
 * Whether a keeper lives and refused all the same: it has lost touch for a moment. Soon it is lost, or goes on; then it
 * must not have missed what the others know.
 */
static bool is_out_of_touch(lode_cluster_h cluster, uint32_t rank, const outcome_t *outcome)
{
    return outcome->status == LODE_ERR_PEER_LOST && lode_fabric_alive(cluster->fabric, rank) &&
           !lode_fabric_expelled(cluster->fabric);
}

lode_status_t lode_tell_keepers(lode_cluster_h cluster, lode_telling_t *tellings, uint32_t n)
{
    uint64_t end = lode_now_ns() + cluster->call_deadline_ns;
    outcome_t outcomes[lode_fabric_capacity(cluster->fabric)]; /* ranks may join while we wait */
    bool told[lode_fabric_capacity(cluster->fabric)];
    memset(told, 0, sizeof told);
    for (;;) {
        bool again = false;
        uint32_t ranks = lode_fabric_ranks(cluster->fabric);
        memset(outcomes, 0, sizeof outcomes);
        for (uint32_t rank = 0; rank < ranks; rank++) {
            if (told[rank] || !lode_fabric_alive(cluster->fabric, rank) ||
                lode_fabric_keeper(cluster->fabric, rank) != rank)
                continue;
            told[rank] = again = true;
            lode_status_t status = tell(cluster, rank, tellings, n, &outcomes[rank]);
            if (status != LODE_OK && status != LODE_ERR_PEER_LOST) {
                lode_fabric_calls_wait(cluster->fabric);
                return status;
            }
        }
        lode_fabric_calls_wait(cluster->fabric);
        bool refused = false;
        for (uint32_t rank = 0; rank < ranks; rank++) {
            bool later = is_out_of_touch(cluster, rank, &outcomes[rank]);
            told[rank] &= !later;
            refused |= later;
            if (outcomes[rank].status != LODE_OK &&
                (later ? lode_now_ns() >= end : outcomes[rank].status != LODE_ERR_PEER_LOST))
                return lode_fail(outcomes[rank].status, "%s", outcomes[rank].message);
        }
        if (refused)
            lode_fabric_rest(cluster->fabric, REFUSED_NS);
        if (!again) /* keepers that died were followed by their successors, who were told above */
            return LODE_OK;
    }
}

/* ------------------------------------------------------------------- blocks */

/* When the leader is lost, the next is asked; while it is not settled who that is, the question is put again. */
static lode_status_t ask_leader(lode_cluster_h cluster, Lodemark__Call *call)
{
    uint64_t end = lode_now_ns() + cluster->call_deadline_ns;
    for (;;) {
        lode_places_refresh(cluster);
        lode_status_t status = lode_fabric_call_wait(cluster->fabric, lode_leader(cluster), call, NULL, 0, NULL, NULL);
        if (status != LODE_ERR_PEER_LOST || lode_now_ns() >= end)
            return status;
        lode_fabric_rest(cluster->fabric, REFUSED_NS);
    }
}

void lode_block_message(const lode_block_info_t *info, Lodemark__BlockInfo *message)
{
    lodemark__block_info__init(message);
    message->id = info->id;
    message->name = (char *)info->name;
    message->format = info->format;
    message->replicas = info->replicas;
    message->kv_head_begin = info->kv_head_begin;
    message->kv_head_end = info->kv_head_end;
    message->codec = info->landmark.codec;
    message->bits = info->landmark.bits;
    message->chunk = info->landmark.chunk;
    message->centre = info->landmark.centre;
    message->index = info->landmark.index;
    message->expected_tokens = info->expected_tokens;
    message->writer = info->writer;
    message->transform = info->transform;
}

lode_status_t lode_spread_block(lode_cluster_h cluster, const lode_block_info_t *info)
{
    Lodemark__BlockInfo out;
    Lodemark__BlockAdd add = LODEMARK__BLOCK_ADD__INIT;
    lode_telling_t telling = {.call = LODEMARK__CALL__INIT};
    lode_block_message(info, &out);
    add.info = &out;
    telling.call.body_case = LODEMARK__CALL__BODY_BLOCK_ADD;
    telling.call.block_add = &add;
    LODE_TRY(ask_leader(cluster, &telling.call)); /* it alone decides who gets a name */
    return lode_tell_keepers(cluster, &telling, 1);
}

lode_status_t lode_spread_drop(lode_cluster_h cluster, uint64_t block)
{
    Lodemark__BlockDrop drop = LODEMARK__BLOCK_DROP__INIT;
    lode_telling_t telling = {.call = LODEMARK__CALL__INIT};
    outcome_t outcome = {0};
    drop.block = block;
    telling.call.body_case = LODEMARK__CALL__BODY_BLOCK_DROP;
    telling.call.block_drop = &drop;
    LODE_TRY(lode_tell_keepers(cluster, &telling, 1));
    drop.pages = true;
    for (uint32_t rank = 0; rank < lode_fabric_ranks(cluster->fabric); rank++) {
        if (!lode_fabric_alive(cluster->fabric, rank))
            continue;
        lode_status_t status = lode_fabric_call(cluster->fabric, rank, &telling.call, NULL, 0, note_outcome, &outcome);
        if (status != LODE_OK && status != LODE_ERR_PEER_LOST)
            outcome.status = status;
    }
    lode_fabric_calls_wait(cluster->fabric);
    if (outcome.status != LODE_OK && outcome.status != LODE_ERR_PEER_LOST)
        return lode_fail(outcome.status, "drop of a block: %s", outcome.message);
    return LODE_OK;
}

/* -------------------------------------------------------------------- pages */

/* Pages on their way at once. */
enum { BATCH = 8 };

typedef struct outgoing {
    uint32_t page, tokens, crc;
    uint8_t *bytes;   /* the page */
    uint8_t *payload; /* mean keys, if they go with it, and landmark rows */
    size_t payload_bytes;
    bool has_mean;
    lode_page_hint_t hints[LODE_REPLICAS_MAX];
    uint32_t held;      /* owners that have it */
    uint32_t asked;     /* candidates that were asked */
    uint32_t under_way; /* owners that were asked and have not answered */
    outcome_t outcome;
    Lodemark__PageHint hint_messages[LODE_REPLICAS_MAX];
    Lodemark__PageHint *hint_list[LODE_REPLICAS_MAX];
    Lodemark__LandmarkPut landmark_put;
} outgoing_t;

typedef struct batch {
    lode_block_h block;
    uint32_t layer, count;
    size_t page_bytes;
    lode_buffer_t pages, payloads, floats;
    outgoing_t out[BATCH];
} batch_t;

static void page_answered(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply)
{
    outgoing_t *out = context;
    out->under_way--;
    if (status == LODE_OK)
        out->hints[out->held++] = (lode_page_hint_t){from, reply->size, reply->offset};
    else if (status != LODE_ERR_PEER_LOST)
        note_outcome(&out->outcome, from, status, reply);
}

/* Ask candidates, in the order of placement, until k hold the page or are being asked. */
static lode_status_t ask_owners(batch_t *batch, outgoing_t *out, bool *asked)
{
    lode_cluster_h cluster = batch->block->cluster;
    uint32_t ranks = cluster->place_count, candidates[ranks];
    lode_page_id_t id = {batch->block->info.id, batch->layer, out->page};
    uint32_t count = lode_placement(cluster->places, ranks, id, ranks, candidates);
    while (out->held + out->under_way < batch->block->info.replicas && out->asked < count) {
        uint32_t owner = candidates[out->asked++];
        if (!lode_fabric_alive(cluster->fabric, owner))
            continue;
        Lodemark__PagePut put = LODEMARK__PAGE_PUT__INIT;
        Lodemark__Call call = LODEMARK__CALL__INIT;
        put.block = id.block;
        put.layer = id.layer;
        put.page = id.page;
        put.crc = out->crc;
        call.body_case = LODEMARK__CALL__BODY_PAGE_PUT;
        call.page_put = &put;
        *asked = true;
        out->under_way++;
        lode_status_t status =
            lode_fabric_call(cluster->fabric, owner, &call, out->bytes, batch->page_bytes, page_answered, out);
        if (status != LODE_OK) {
            out->under_way--;
            if (status != LODE_ERR_PEER_LOST)
                return status;
        }
    }
    return LODE_OK;
}

static lode_status_t send_pages(batch_t *batch)
{
    lode_cluster_h cluster = batch->block->cluster;
    lode_status_t status = LODE_OK;
    bool asked = true;
    while (asked && status == LODE_OK) {
        asked = false;
        for (uint32_t i = 0; i < batch->count && status == LODE_OK; i++)
            status = ask_owners(batch, &batch->out[i], &asked);
        lode_fabric_calls_wait(cluster->fabric);
        for (uint32_t i = 0; i < batch->count && status == LODE_OK; i++)
            if (batch->out[i].outcome.status != LODE_OK)
                status = lode_fail(batch->out[i].outcome.status, "%s", batch->out[i].outcome.message);
    }
    if (status != LODE_OK)
        return lode_fail_within(status, "page %u of layer %u: ", batch->out[0].page, batch->layer);
    for (uint32_t i = 0; i < batch->count; i++) {
        if (batch->out[i].held == 0)
            return lode_fail(LODE_ERR_PEER_LOST, "page %u of layer %u: no living rank could take it",
                             batch->out[i].page, batch->layer);
        if (batch->out[i].held < batch->block->info.replicas)
            lode_debug("page %u of layer %u has %u owners instead of %u: too few ranks live", batch->out[i].page,
                       batch->layer, batch->out[i].held, batch->block->info.replicas);
    }
    return LODE_OK;
}

void lode_hint_messages(const lode_page_hint_t *hints, uint32_t count, Lodemark__PageHint *messages,
                        Lodemark__PageHint **list)
{
    for (uint32_t i = 0; i < count; i++) {
        lodemark__page_hint__init(&messages[i]);
        messages[i].rank = hints[i].rank;
        messages[i].size = hints[i].size;
        messages[i].offset = hints[i].offset;
        list[i] = &messages[i];
    }
}

static lode_status_t send_landmarks(batch_t *batch)
{
    lode_telling_t tellings[BATCH];
    for (uint32_t i = 0; i < batch->count; i++) {
        outgoing_t *out = &batch->out[i];
        Lodemark__LandmarkPut *put = &out->landmark_put;
        lodemark__landmark_put__init(put);
        put->block = batch->block->info.id;
        put->layer = batch->layer;
        put->page = out->page;
        put->tokens = out->tokens;
        put->has_mean = out->has_mean;
        put->n_hints = out->held;
        put->hints = out->hint_list;
        lode_hint_messages(out->hints, out->held, out->hint_messages, out->hint_list);
        tellings[i] =
            (lode_telling_t){.call = LODEMARK__CALL__INIT, .payload = out->payload, .bytes = out->payload_bytes};
        tellings[i].call.body_case = LODEMARK__CALL__BODY_LANDMARK_PUT;
        tellings[i].call.landmark_put = put;
    }
    return lode_tell_keepers(batch->block->cluster, tellings, batch->count);
}

/* What a page of the tail will be, and its mean keys if they go with it: the first page of a layer. */
static lode_status_t plan_page(batch_t *batch, outgoing_t *out, uint64_t first, uint32_t tokens)
{
    lode_block_h block = batch->block;
    lode_tail_t *tail = &block->tails[batch->layer];
    size_t width = (size_t)block->heads * block->cluster->geometry.head_dim;
    if (!tail->mean && block->info.landmark.centre) {
        float *k = batch->floats.data;
        lode_tail_read(block, batch->layer, first, tokens, k, k + LODE_PAGE_TOKENS * width);
        LODE_TRY(lode_tail_mean(block, batch->layer, tokens, LODE_FP32, k));
    }
    out->page = (uint32_t)(first / LODE_PAGE_TOKENS);
    out->tokens = tokens;
    out->has_mean = tail->mean && !tail->mean_sent;
    out->held = out->asked = out->under_way = 0;
    out->outcome.status = LODE_OK;
    out->payload_bytes = 0;
    if (out->has_mean) {
        out->payload_bytes = width * sizeof(float);
        memcpy(out->payload, tail->mean, out->payload_bytes);
        tail->mean_sent = true;
    }
    return LODE_OK;
}

/* Encode a planned page, and build its landmarks behind what its payload has already. One of several threads. */
static void encode_page(void *context, uint32_t item, uint32_t thread)
{
    batch_t *batch = context;
    outgoing_t *out = &batch->out[item];
    lode_block_h block = batch->block;
    lode_cluster_h cluster = block->cluster;
    uint32_t dim = cluster->geometry.head_dim;
    size_t width = (size_t)block->heads * dim;
    float *k = (float *)batch->floats.data + thread * 2 * LODE_PAGE_TOKENS * width, *v = k + LODE_PAGE_TOKENS * width;
    lode_tail_read(block, batch->layer, (uint64_t)out->page * LODE_PAGE_TOKENS, out->tokens, k, v);
    lode_page_encode(cluster->ops, block->info.format, dim, block->heads, block->info.kv_head_begin,
                     (lode_page_id_t){block->info.id, batch->layer, out->page}, out->tokens, k, v, out->bytes,
                     &out->crc);
    const float *transform =
        block->info.transform ? lode_transform_keys(cluster->transform, batch->layer, block->info.kv_head_begin) : NULL;
    lode_landmark_build(cluster->ops, &block->info.landmark, block->heads, dim, k, out->tokens,
                        block->tails[batch->layer].mean, transform, out->payload + out->payload_bytes);
    out->payload_bytes += block->heads * lode_landmarks_of(&block->info.landmark, out->tokens) *
                          lode_landmark_row_bytes(&block->info.landmark, dim);
}

static lode_status_t batch_create(lode_block_h block, uint32_t layer, batch_t *batch)
{
    uint32_t dim = block->cluster->geometry.head_dim;
    size_t width = (size_t)block->heads * dim;
    size_t payload = width * sizeof(float) + block->heads * lode_landmarks_per_page(&block->info.landmark) *
                                                 lode_landmark_row_bytes(&block->info.landmark, dim);
    *batch = (batch_t){.block = block, .layer = layer};
    batch->page_bytes = lode_page_bytes(block->info.format, dim, block->heads);
    LODE_TRY(lode_buffer_reserve(&batch->pages, BATCH * batch->page_bytes));
    LODE_TRY(lode_buffer_reserve(&batch->payloads, BATCH * payload));
    LODE_TRY(lode_buffer_reserve(&batch->floats, lode_team_threads(block->cluster->team) * 2 * LODE_PAGE_TOKENS *
                                                     width * sizeof(float)));
    for (uint32_t i = 0; i < BATCH; i++) {
        batch->out[i].bytes = (uint8_t *)batch->pages.data + i * batch->page_bytes;
        batch->out[i].payload = (uint8_t *)batch->payloads.data + i * payload;
    }
    return LODE_OK;
}

static void batch_destroy(batch_t *batch)
{
    lode_buffer_free(&batch->pages);
    lode_buffer_free(&batch->payloads);
    lode_buffer_free(&batch->floats);
}

static lode_status_t spread_pages(batch_t *batch, uint64_t first, uint64_t end)
{
    lode_places_refresh(batch->block->cluster);
    while (first < end) {
        batch->count = 0;
        while (first < end && batch->count < BATCH) {
            outgoing_t *out = &batch->out[batch->count++];
            uint32_t tokens = end - first < LODE_PAGE_TOKENS ? (uint32_t)(end - first) : LODE_PAGE_TOKENS;
            LODE_TRY(plan_page(batch, out, first, tokens));
            first += tokens;
        }
        lode_team_run(batch->block->cluster->team, batch->count, encode_page, batch);
        LODE_TRY(send_pages(batch));
        LODE_TRY(send_landmarks(batch));
    }
    return LODE_OK;
}

lode_status_t lode_spread_tail(lode_block_h block, uint32_t layer, bool flush)
{
    lode_tail_t *tail = &block->tails[layer];
    uint64_t tokens = flush ? tail->tokens : tail->tokens / LODE_PAGE_TOKENS * LODE_PAGE_TOKENS;
    if (tokens == 0)
        return LODE_OK;
    batch_t batch;
    lode_status_t status = batch_create(block, layer, &batch);
    if (status == LODE_OK)
        status = spread_pages(&batch, tail->first, tail->first + tokens);
    batch_destroy(&batch);
    LODE_TRY(status);
    size_t token_bytes = block->heads * lode_record_bytes(LODE_FORMAT_BF16, block->cluster->geometry.head_dim);
    uint8_t *records = tail->records.data;
    memmove(records, records + tokens * token_bytes, (tail->tokens - tokens) * token_bytes);
    tail->first += tokens;
    tail->tokens -= tokens;
    return LODE_OK;
}

lode_status_t lode_spread_publish(lode_block_h block, uint32_t layer)
{
    Lodemark__Publish publish = LODEMARK__PUBLISH__INIT;
    lode_telling_t telling = {.call = LODEMARK__CALL__INIT};
    publish.block = block->info.id;
    publish.layer = layer;
    publish.tokens = block->tails[layer].first;
    block->tails[layer].told = publish.tokens;
    telling.call.body_case = LODEMARK__CALL__BODY_PUBLISH;
    telling.call.publish = &publish;
    LODE_TRY(lode_tell_keepers(block->cluster, &telling, 1));
    block->tails[layer].shown = publish.tokens;
    lode_replica_offer(block->cluster->replica, block, layer, publish.tokens);
    return LODE_OK;
}

void lode_spread_take_back(lode_block_h block, uint32_t layer, uint64_t first, uint64_t end)
{
    Lodemark__PageDrop drop = LODEMARK__PAGE_DROP__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    outcome_t outcome = {0};
    drop.block = block->info.id;
    drop.layer = layer;
    drop.page_begin = (uint32_t)(first / LODE_PAGE_TOKENS);
    drop.page_end = (uint32_t)((end + LODE_PAGE_TOKENS - 1) / LODE_PAGE_TOKENS);
    call.body_case = LODEMARK__CALL__BODY_PAGE_DROP;
    call.page_drop = &drop;
    lode_fabric_h fabric = block->cluster->fabric;
    for (uint32_t rank = 0; rank < lode_fabric_ranks(fabric); rank++)
        if (lode_fabric_alive(fabric, rank))
            lode_fabric_call(fabric, rank, &call, NULL, 0, note_outcome, &outcome);
    lode_fabric_calls_wait(fabric);
}
