/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filling the landmark store of a rank that joined. The leader goes over all blocks, again and again, and sends what
 * it knows of them by the messages that their writers would send; all of them may come twice. Meanwhile writers send
 * theirs to the newcomer as to all keepers; those that it cannot use yet it notes as missed. A pass that began well
 * after the last of these ends the filling. A leader that takes over in the midst begins anew.
 */
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"

/* Between two questions whether a newcomer is still being filled; between two passes. */
#define ASK_NS UINT64_C(300000000)
/* Until a newcomer that failed to answer is tried again. */
#define FAILED_NS UINT64_C(2000000000)
/* Messages under way at once. */
enum { BATCH = 16 };

/* What was sent of the block in one slot. */
typedef struct sent {
    uint64_t block;  /* 0: none */
    uint32_t *pages; /* (layers) */
    bool sealed;
} sent_t;

struct lode_fill {
    lode_cluster_h cluster;
    uint64_t asked_ns;
    uint32_t asked; /* rank */
    bool asking;
    /* the newcomer under work */
    uint32_t rank, incarnation; /* incarnation 0: none */
    bool in_pass, failed, accepted;
    bool missed; /* something of this pass, so that landmarks must be sent again */
    uint64_t next_ns;
    uint32_t slot, layer, page; /* of the next message; page beyond the last: the layer is published */
    sent_t *sent;               /* (slots) */
    uint32_t slots;
    lode_buffer_t payload;
    uint64_t refused; /* its landmark store is full: said once */
};

lode_status_t lode_fill_create(lode_cluster_h cluster, lode_fill_t **fill)
{
    *fill = calloc(1, sizeof **fill);
    if (!*fill)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the filling of newcomers");
    (*fill)->cluster = cluster;
    return LODE_OK;
}

static void forget_sent(lode_fill_t *fill)
{
    for (uint32_t i = 0; i < fill->slots; i++)
        free(fill->sent[i].pages);
    free(fill->sent);
    fill->sent = NULL;
    fill->slots = 0;
}

void lode_fill_destroy(lode_fill_t **fill)
{
    if (!*fill)
        return;
    forget_sent(*fill);
    lode_buffer_free(&(*fill)->payload);
    free(*fill);
    *fill = NULL;
}

static void leave_off(lode_fill_t *fill)
{
    forget_sent(fill);
    fill->incarnation = 0;
    fill->in_pass = false;
}

/* -------------------------------------------------------------- who is filling */

static void stats_answered(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply)
{
    lode_fill_t *fill = context;
    fill->asking = false;
    if (status != LODE_OK || !reply->rank_stats)
        return;
    fill->cluster->unasked[from] = false;
    fill->cluster->newcomers[from] = reply->rank_stats->filling;
}

/* Every rank asks for itself, one newcomer at a time: who leads depends on the answer. */
static void ask_newcomers(lode_fill_t *fill)
{
    lode_cluster_h cluster = fill->cluster;
    uint64_t now = lode_now_ns();
    if (fill->asking || now - fill->asked_ns < ASK_NS)
        return;
    fill->asked_ns = now;
    for (uint32_t i = 0; i < cluster->place_count; i++) {
        uint32_t rank = fill->asked = (fill->asked + 1) % cluster->place_count;
        bool asks = cluster->newcomers[rank] || cluster->unasked[rank];
        if (!asks || !lode_fabric_alive(cluster->fabric, rank))
            continue;
        Lodemark__RankStatsAsk message = LODEMARK__RANK_STATS_ASK__INIT;
        Lodemark__Call call = LODEMARK__CALL__INIT;
        call.body_case = LODEMARK__CALL__BODY_RANK_STATS;
        call.rank_stats = &message;
        fill->asking = lode_fabric_call(cluster->fabric, rank, &call, NULL, 0, stats_answered, fill) == LODE_OK;
        return;
    }
}

/* The lowest living newcomer. */
static bool find_newcomer(lode_cluster_h cluster, uint32_t *rank)
{
    for (*rank = 0; *rank < cluster->place_count; ++*rank)
        if (cluster->newcomers[*rank] && lode_fabric_alive(cluster->fabric, *rank))
            return true;
    return false;
}

/* -------------------------------------------------------------------- messages */

static void answered(void *context, uint32_t from, lode_status_t status, const Lodemark__Reply *reply)
{
    lode_fill_t *fill = context;
    if (status == LODE_OK) {
        fill->accepted |= reply->offset == LODE_FILL_ACCEPTED;
        fill->missed |= reply->offset == LODE_FILL_MISSED;
    }
    if (status == LODE_ERR_FULL && !fill->refused++)
        lode_warn("rank %u, which joined, has no room for all landmarks: %s", from, lode_error_message());
    if (status == LODE_ERR_FULL || status == LODE_ERR_PEER_LOST || status == LODE_ERR_TIMEOUT)
        fill->failed = true;
    else if (status != LODE_OK) /* dropped meanwhile; the next pass sees it */
        lode_debug("rank %u, being filled: %s", from, lode_error_message());
}

static void send(lode_fill_t *fill, Lodemark__Call *call, size_t bytes)
{
    if (lode_fabric_call(fill->cluster->fabric, fill->rank, call, fill->payload.data, bytes, answered, fill) != LODE_OK)
        fill->failed = true;
    lode_repair_copied(fill->cluster, bytes);
}

static bool settle(lode_fill_t *fill)
{
    lode_fabric_calls_wait(fill->cluster->fabric);
    return !fill->failed;
}

static void send_fill(lode_fill_t *fill, bool done)
{
    Lodemark__Fill message = LODEMARK__FILL__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    message.done = done;
    message.split = atomic_load(&fill->cluster->split);
    call.body_case = LODEMARK__CALL__BODY_FILL;
    call.fill = &message;
    fill->accepted = false;
    send(fill, &call, 0);
}

static void send_geometry(lode_fill_t *fill)
{
    Lodemark__GeometrySet message;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    double rope[7];
    lode_geometry_pack(&fill->cluster->geometry, rope, &message);
    call.body_case = LODEMARK__CALL__BODY_GEOMETRY_SET;
    call.geometry_set = &message;
    send(fill, &call, 0);
}

static void send_drop(lode_fill_t *fill, uint64_t block)
{
    Lodemark__BlockDrop message = LODEMARK__BLOCK_DROP__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    message.block = block;
    call.body_case = LODEMARK__CALL__BODY_BLOCK_DROP;
    call.block_drop = &message;
    send(fill, &call, 0);
}

static void send_add(lode_fill_t *fill, const lode_block_info_t *info)
{
    Lodemark__BlockInfo inner;
    Lodemark__BlockAdd message = LODEMARK__BLOCK_ADD__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    lode_block_message(info, &inner);
    message.info = &inner;
    call.body_case = LODEMARK__CALL__BODY_BLOCK_ADD;
    call.block_add = &message;
    send(fill, &call, 0);
}

static void send_publish(lode_fill_t *fill, uint64_t block, uint32_t layer, uint64_t tokens)
{
    Lodemark__Publish message = LODEMARK__PUBLISH__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    message.block = block;
    message.layer = layer;
    message.tokens = tokens;
    call.body_case = LODEMARK__CALL__BODY_PUBLISH;
    call.publish = &message;
    send(fill, &call, 0);
}

static void send_seal(lode_fill_t *fill, uint64_t block, uint64_t tokens)
{
    Lodemark__BlockSeal message = LODEMARK__BLOCK_SEAL__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    message.block = block;
    message.tokens = tokens;
    call.body_case = LODEMARK__CALL__BODY_BLOCK_SEAL;
    call.block_seal = &message;
    send(fill, &call, 0);
}

/* Mean keys and landmark rows of a page, as they travel. @return bytes; 0: it is not there any more */
static size_t page_payload(lode_fill_t *fill, const lode_block_info_t *info, uint32_t page, bool *has_mean,
                           uint32_t *tokens)
{
    lode_cluster_h cluster = fill->cluster;
    uint32_t dim = cluster->geometry.head_dim, heads = info->kv_head_end - info->kv_head_begin;
    const float *mean =
        page == 0 && info->landmark.centre ? lode_store_mean(cluster->store, fill->slot, fill->layer, 0) : NULL;
    size_t mean_bytes = mean ? (size_t)heads * dim * sizeof(float) : 0;
    size_t row_bytes = lode_landmark_row_bytes(&info->landmark, dim);
    size_t most = mean_bytes + heads * lode_landmarks_per_page(&info->landmark) * row_bytes;
    if (lode_buffer_reserve(&fill->payload, most) != LODE_OK)
        return 0;
    if (mean)
        memcpy(fill->payload.data, mean, mean_bytes);
    *has_mean = mean != NULL;
    *tokens =
        lode_store_rows(cluster->store, fill->slot, fill->layer, page, (uint8_t *)fill->payload.data + mean_bytes);
    return *tokens ? mean_bytes + heads * lode_landmarks_of(&info->landmark, *tokens) * row_bytes : 0;
}

/* A page with its landmarks, or, if those were sent in an earlier pass, its owners as of now. */
static void send_page(lode_fill_t *fill, const lode_block_info_t *info, uint32_t page, bool again)
{
    lode_page_hint_t hints[LODE_REPLICAS_MAX];
    Lodemark__PageHint messages[LODE_REPLICAS_MAX], *list[LODE_REPLICAS_MAX];
    Lodemark__LandmarkPut put = LODEMARK__LANDMARK_PUT__INIT;
    Lodemark__PageOwners owners = LODEMARK__PAGE_OWNERS__INIT;
    Lodemark__Call call = LODEMARK__CALL__INIT;
    uint32_t count, tokens;
    bool has_mean;
    lode_store_hints(fill->cluster->store, fill->slot, fill->layer, page, hints, &count);
    lode_hint_messages(hints, count, messages, list);
    size_t bytes = again ? 0 : page_payload(fill, info, page, &has_mean, &tokens);
    if (again) {
        owners.block = info->id;
        owners.layer = fill->layer;
        owners.page = page;
        owners.n_hints = count;
        owners.hints = list;
        call.body_case = LODEMARK__CALL__BODY_PAGE_OWNERS;
        call.page_owners = &owners;
    } else if (bytes == 0) {
        return;
    } else {
        put.block = info->id;
        put.layer = fill->layer;
        put.page = page;
        put.tokens = tokens;
        put.has_mean = has_mean;
        put.n_hints = count;
        put.hints = list;
        call.body_case = LODEMARK__CALL__BODY_LANDMARK_PUT;
        call.landmark_put = &put;
    }
    send(fill, &call, bytes);
}

/* --------------------------------------------------------------------- passes */

static bool sent_reserve(lode_fill_t *fill, uint32_t slots)
{
    if (slots <= fill->slots)
        return true;
    sent_t *sent = realloc(fill->sent, slots * sizeof *sent);
    if (!sent)
        return false;
    memset(sent + fill->slots, 0, (slots - fill->slots) * sizeof *sent);
    fill->sent = sent;
    fill->slots = slots;
    return true;
}

/* The slot's block is not what was sent as it: it is gone. */
static void drop_sent(lode_fill_t *fill, sent_t *sent)
{
    send_drop(fill, sent->block);
    free(sent->pages);
    *sent = (sent_t){0};
}

/* Enter the slot's block, if it holds one. @return false if there is nothing more to send for this slot */
static bool begin_slot(lode_fill_t *fill, lode_block_info_t *info, lode_block_state_t *state)
{
    lode_cluster_h cluster = fill->cluster;
    sent_t *sent = &fill->sent[fill->slot];
    bool live = lode_store_live(cluster->store, fill->slot, info, state);
    if (sent->block && (!live || sent->block != info->id))
        drop_sent(fill, sent);
    if (!live)
        return false;
    if (sent->block)
        return true;
    sent->pages = calloc(cluster->geometry.layers, sizeof *sent->pages);
    if (!sent->pages)
        return false;
    sent->block = info->id;
    send_add(fill, info);
    settle(fill);
    return !fill->failed;
}

/* The rest of the layer under work, BATCH pages at most. @return whether it is done. */
static bool fill_layer(lode_fill_t *fill, const lode_block_info_t *info)
{
    sent_t *sent = &fill->sent[fill->slot];
    uint64_t tokens = lode_store_tokens(fill->cluster->store, fill->slot, fill->layer);
    uint32_t pages = (uint32_t)((tokens + LODE_PAGE_TOKENS - 1) / LODE_PAGE_TOKENS), count = 0;
    for (; fill->page < pages && count < BATCH; fill->page++, count++) {
        send_page(fill, info, fill->page, fill->page < sent->pages[fill->layer]);
        if (fill->page == 0) /* it brings the mean keys, without which others are not taken */
            settle(fill);
    }
    settle(fill);
    if (fill->page < pages || fill->failed)
        return false;
    if (tokens)
        send_publish(fill, info->id, fill->layer, tokens);
    sent->pages[fill->layer] = pages;
    fill->page = 0;
    return settle(fill);
}

/* @return whether the pass has come to its end. */
static bool pass_on(lode_fill_t *fill, uint64_t end_ns)
{
    lode_cluster_h cluster = fill->cluster;
    lode_block_info_t info;
    lode_block_state_t state;
    for (; fill->slot < lode_store_slots(cluster->store); fill->slot++, fill->layer = fill->page = 0) {
        if (!sent_reserve(fill, fill->slot + 1))
            return false;
        if (!begin_slot(fill, &info, &state)) {
            if (fill->failed)
                return false;
            continue;
        }
        while (fill->layer < cluster->geometry.layers) {
            if (lode_now_ns() >= end_ns || !lode_repair_may_copy(cluster))
                return false;
            if (fill_layer(fill, &info))
                fill->layer++;
            if (fill->failed)
                return false;
        }
        if (state == LODE_BLOCK_SEALED) /* its layers are of equal length, and grow no more */
            send_seal(fill, info.id, lode_store_tokens(cluster->store, fill->slot, 0));
    }
    return settle(fill);
}

static void begin_pass(lode_fill_t *fill)
{
    fill->in_pass = true;
    fill->missed = false;
    fill->slot = fill->layer = fill->page = 0;
    if (lode_shaped(fill->cluster))
        send_geometry(fill);
    settle(fill);
    send_fill(fill, false);
    settle(fill);
}

static void end_pass(lode_fill_t *fill)
{
    send_fill(fill, true);
    fill->in_pass = false;
    fill->next_ns = lode_now_ns() + ASK_NS;
    if (!settle(fill) || !fill->accepted) {
        for (uint32_t i = 0; fill->missed && i < fill->slots; i++)
            if (fill->sent[i].block)
                memset(fill->sent[i].pages, 0, fill->cluster->geometry.layers * sizeof *fill->sent[i].pages);
        return;
    }
    lode_info("rank %u has all landmarks", fill->rank);
    fill->cluster->newcomers[fill->rank] = false;
    leave_off(fill);
}

/* The newcomer to fill now: the one under work, or another. @return false if there is none. */
static bool choose(lode_fill_t *fill)
{
    lode_cluster_h cluster = fill->cluster;
    uint32_t rank;
    if (lode_leader(cluster) != lode_fabric_rank(cluster->fabric) || !find_newcomer(cluster, &rank)) {
        leave_off(fill);
        return false;
    }
    uint32_t incarnation = lode_fabric_incarnation(cluster->fabric, rank);
    if (fill->incarnation != incarnation || fill->rank != rank) {
        leave_off(fill);
        fill->rank = rank;
        fill->incarnation = incarnation;
        fill->next_ns = 0;
        fill->refused = 0;
    }
    return true;
}

bool lode_fill_some(lode_cluster_h cluster, lode_fill_t *fill, uint64_t end_ns)
{
    if (atomic_load(&cluster->filling) && lode_leader(cluster) == lode_fabric_rank(cluster->fabric))
        atomic_store(&cluster->filling, false); /* nobody is left who knows more */
    ask_newcomers(fill);
    if (!choose(fill) || (!fill->in_pass && lode_now_ns() < fill->next_ns))
        return false;
    fill->failed = false;
    if (!fill->in_pass)
        begin_pass(fill);
    if (!fill->failed && (!lode_shaped(cluster) || pass_on(fill, end_ns)))
        end_pass(fill);
    if (fill->failed) { /* from the start, when it answers again */
        forget_sent(fill);
        fill->in_pass = false;
        fill->next_ns = lode_now_ns() + FAILED_NS;
    }
    return fill->in_pass && lode_repair_may_copy(cluster);
}
