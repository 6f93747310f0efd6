/* SPDX-License-Identifier: Apache-2.0 */
/* What this rank does for others, on its service thread (and for itself, on the caller's). */
#include <string.h>

#include "attend/inside.h"

/* Longer than any fetch or step that could still read what was dropped. */
static const uint64_t DROPPED_KEPT_NS = 10000000000u;

/* Texts and numbers of a message are another process's: check before they are used. */
static lode_status_t block_info_of(lode_cluster_h cluster, const Lodemark__BlockInfo *in, lode_block_info_t *info)
{
    if (!in || !in->id || !in->name || !*in->name || strlen(in->name) > LODE_NAME_MAX ||
        in->kv_head_begin >= in->kv_head_end || in->kv_head_end > cluster->geometry.kv_heads ||
        in->format > LODE_FORMAT_HIGGS4)
        return lode_fail(LODE_ERR_FORMAT, "a message to add a block is malformed");
    *info = (lode_block_info_t){
        .id = in->id,
        .format = (lode_format_t)in->format,
        .replicas = in->replicas,
        .kv_head_begin = in->kv_head_begin,
        .kv_head_end = in->kv_head_end,
        .landmark = {(lode_landmark_codec_t)in->codec, in->bits, in->chunk, in->centre,
                     (lode_landmark_index_t)in->index},
        .expected_tokens = in->expected_tokens,
        .transform = in->transform,
        .writer = in->writer,
    };
    strcpy(info->name, in->name);
    if (!lode_landmark_spec_valid(&info->landmark, cluster->geometry.head_dim))
        return lode_fail(LODE_ERR_FORMAT, "a message to add block \"%s\" has an unknown kind of landmark", info->name);
    return LODE_OK;
}

static lode_status_t serve_block_add(lode_cluster_h cluster, const Lodemark__BlockAdd *message)
{
    lode_block_info_t info;
    uint32_t slot;
    LODE_TRY(block_info_of(cluster, message->info, &info));
    uint64_t now = lode_now_ns(); /* counts from the machine's start */
    if (now > DROPPED_KEPT_NS)
        lode_store_collect(cluster->store, now - DROPPED_KEPT_NS);
    return lode_store_add(cluster->store, &info, &slot);
}

/*
 * Owners as the sender saw them in its epoch. One that is lost, or whose slot another process has by now, is none: this
 * rank may have forgotten its pages already, and would not do so again.
 */
static uint32_t take_hints(lode_cluster_h cluster, uint32_t epoch, Lodemark__PageHint *const *said, size_t count,
                           lode_page_hint_t *hints)
{
    uint32_t taken = 0;
    for (size_t i = 0; i < count; i++)
        if (said[i]->rank >= lode_fabric_ranks(cluster->fabric) || /* refused by the store */
            lode_fabric_lives_since(cluster->fabric, said[i]->rank, epoch))
            hints[taken++] = (lode_page_hint_t){said[i]->rank, said[i]->size, said[i]->offset};
    return taken;
}

static lode_status_t serve_landmark_put(lode_cluster_h cluster, const Lodemark__LandmarkPut *message, uint32_t epoch,
                                        const void *payload, size_t bytes)
{
    uint32_t slot, dim = cluster->geometry.head_dim;
    LODE_TRY(lode_store_find_id(cluster->store, message->block, &slot));
    const lode_block_info_t *info = lode_store_info(cluster->store, slot);
    uint32_t heads = info->kv_head_end - info->kv_head_begin;
    size_t mean_bytes = message->has_mean ? (size_t)heads * dim * sizeof(float) : 0;
    size_t row_bytes =
        lode_landmarks_of(&info->landmark, message->tokens) * lode_landmark_row_bytes(&info->landmark, dim);
    if (message->layer >= cluster->geometry.layers || message->tokens > LODE_PAGE_TOKENS ||
        message->n_hints > LODE_REPLICAS_MAX || bytes != mean_bytes + heads * row_bytes)
        return lode_fail(LODE_ERR_FORMAT, "a message with landmarks of block \"%s\" does not fit it", info->name);
    lode_page_hint_t hints[LODE_REPLICAS_MAX];
    uint32_t count = take_hints(cluster, epoch, message->hints, message->n_hints, hints);
    return lode_store_put(cluster->store, message->block, message->layer, message->page, message->tokens,
                          (const uint8_t *)payload + mean_bytes, message->has_mean ? payload : NULL, hints, count);
}

static lode_status_t serve_page_put(lode_cluster_h cluster, const Lodemark__PagePut *message, const void *payload,
                                    size_t bytes, Lodemark__Reply *reply)
{
    lode_page_ref_t ref;
    lode_page_id_t id = {message->block, message->layer, message->page};
    if (bytes > UINT32_MAX)
        return lode_fail(LODE_ERR_FORMAT, "a page of %zu bytes", bytes);
    LODE_TRY(lode_shard_put(cluster->shard, cluster->ops, id, payload, (uint32_t)bytes, message->crc, &ref));
    reply->offset = ref.offset;
    reply->size = ref.size;
    return LODE_OK;
}

static lode_status_t serve_page_owners(lode_cluster_h cluster, const Lodemark__PageOwners *message, uint32_t epoch)
{
    lode_page_hint_t hints[LODE_REPLICAS_MAX];
    if (message->n_hints > LODE_REPLICAS_MAX)
        return lode_fail(LODE_ERR_FORMAT, "a message that names %zu owners of a page", message->n_hints);
    uint32_t count = take_hints(cluster, epoch, message->hints, message->n_hints, hints);
    return lode_store_owners(cluster->store, message->block, message->layer, message->page, hints, count);
}

static lode_status_t serve_page_check(lode_cluster_h cluster, const Lodemark__PageCheck *message,
                                      Lodemark__Reply *reply)
{
    lode_page_ref_t ref;
    if (!lode_shard_find(cluster->shard, (lode_page_id_t){message->block, message->layer, message->page}, &ref) ||
        (message->crc && message->crc != ref.crc))
        return lode_fail(LODE_ERR_NOT_FOUND, "page %u of layer %u is not here", message->page, message->layer);
    reply->offset = ref.offset;
    reply->size = ref.size;
    return LODE_OK;
}

/* A message came before what it builds on: a pass of the leader brings that, and what the message said. */
static lode_status_t missed(lode_cluster_h cluster, Lodemark__Reply *reply)
{
    cluster->missed_ns = lode_now_ns();
    reply->offset = LODE_FILL_MISSED;
    return LODE_OK;
}

/*
 * A pass is good if it began a second after the last message that was missed: the leader had its own copy of that
 * message long before, so the pass brought it.
 */
static lode_status_t serve_fill(lode_cluster_h cluster, const Lodemark__Fill *message, Lodemark__Reply *reply)
{
    const uint64_t settled_ns = 1000000000u;
    atomic_store(&cluster->split, message->split);
    if (!message->done)
        cluster->fill_began_ns = lode_now_ns();
    else if (cluster->fill_began_ns &&
             (!cluster->missed_ns || cluster->missed_ns + settled_ns < cluster->fill_began_ns))
        atomic_store(&cluster->filling, false);
    reply->offset = message->done && !atomic_load(&cluster->filling) ? LODE_FILL_ACCEPTED : 0;
    return LODE_OK;
}

static lode_status_t serve_store(lode_cluster_h cluster, const Lodemark__Call *call, const void *payload, size_t bytes)
{
    LODE_TRY(lode_check_shaped(cluster));
    switch (call->body_case) {
    case LODEMARK__CALL__BODY_BLOCK_ADD:
        return serve_block_add(cluster, call->block_add);
    case LODEMARK__CALL__BODY_LANDMARK_PUT:
        return serve_landmark_put(cluster, call->landmark_put, call->epoch, payload, bytes);
    case LODEMARK__CALL__BODY_PUBLISH:
        return lode_store_publish(cluster->store, call->publish->block, call->publish->layer, call->publish->tokens);
    case LODEMARK__CALL__BODY_BLOCK_SEAL:
        return lode_store_seal(cluster->store, call->block_seal->block, call->block_seal->tokens);
    case LODEMARK__CALL__BODY_BLOCK_DROP:
        return lode_store_drop(cluster->store, call->block_drop->block);
    case LODEMARK__CALL__BODY_PAGE_OWNERS:
        return serve_page_owners(cluster, call->page_owners, call->epoch);
    case LODEMARK__CALL__BODY_RANK_FORGET:
        lode_store_forget_rank(cluster->store, call->rank_forget->rank);
        return LODE_OK;
    default:
        return lode_fail(LODE_ERR_UNSUPPORTED, "a message of kind %d, which this version does not know",
                         call->body_case);
    }
}

/* While this rank is filled, what does not fit yet is not the sender's fault. */
static lode_status_t serve_filling(lode_cluster_h cluster, const Lodemark__Call *call, const void *payload,
                                   size_t bytes, Lodemark__Reply *reply)
{
    uint32_t slot;
    if (call->body_case == LODEMARK__CALL__BODY_BLOCK_DROP &&
        (!lode_shaped(cluster) || lode_store_find_id(cluster->store, call->block_drop->block, &slot) != LODE_OK))
        return missed(cluster, reply);
    lode_status_t status = serve_store(cluster, call, payload, bytes);
    if (status == LODE_ERR_NOT_FOUND || status == LODE_ERR_INVALID || status == LODE_ERR_GEOMETRY)
        return missed(cluster, reply);
    return status;
}

lode_status_t lode_serve(void *context, uint32_t from, const Lodemark__Call *call, const void *payload, size_t bytes,
                         Lodemark__Reply *reply)
{
    lode_cluster_h cluster = context;
    uint32_t rank = lode_fabric_rank(cluster->fabric);
    if (call->body_case == LODEMARK__CALL__BODY_GEOMETRY_SET)
        return lode_serve_geometry(cluster, call->geometry_set);
    if (call->body_case == LODEMARK__CALL__BODY_RANK_STATS) {
        /* the reply is packed when the next call may be served already, but by this thread */
        static _Thread_local Lodemark__RankStats rank_stats;
        lode_serve_rank_stats(cluster, &rank_stats);
        reply->rank_stats = &rank_stats;
        return LODE_OK;
    }
    if (call->body_case == LODEMARK__CALL__BODY_PAGE_PUT)
        return serve_page_put(cluster, call->page_put, payload, bytes, reply);
    if (call->body_case == LODEMARK__CALL__BODY_PAGE_DROP) {
        const Lodemark__PageDrop *drop = call->page_drop;
        for (uint32_t page = drop->page_begin; page < drop->page_end; page++)
            lode_shard_drop_page(cluster->shard, (lode_page_id_t){drop->block, drop->layer, page});
        return LODE_OK;
    }
    if (call->body_case == LODEMARK__CALL__BODY_PAGE_CHECK)
        return serve_page_check(cluster, call->page_check, reply);
    if (call->body_case >= LODEMARK__CALL__BODY_ROUND_ASK && call->body_case <= LODEMARK__CALL__BODY_ROUNDS_END)
        return lode_replica_serve(cluster->replica, from, call, reply);
    if (call->body_case == LODEMARK__CALL__BODY_FILL)
        return serve_fill(cluster, call->fill, reply);
    if (call->body_case == LODEMARK__CALL__BODY_RANK_FORGET && from != rank)
        return lode_fail(LODE_ERR_FORMAT, "rank %u tells this one whom to forget", from);
    if (call->body_case == LODEMARK__CALL__BODY_BLOCK_DROP) {
        if (call->block_drop->pages)
            lode_shard_drop_block(cluster->shard, call->block_drop->block);
        if (lode_fabric_keeper(cluster->fabric, rank) != rank)
            return LODE_OK;
    }
    if (atomic_load(&cluster->filling))
        return serve_filling(cluster, call, payload, bytes, reply);
    return serve_store(cluster, call, payload, bytes);
}

const uint8_t *lode_serve_page(void *context, uint64_t block, uint32_t layer, uint32_t page, size_t record_end)
{
    lode_cluster_h cluster = context;
    lode_page_ref_t ref;
    if (!lode_shard_find(cluster->shard, (lode_page_id_t){block, layer, page}, &ref) || ref.size < record_end)
        return NULL;
    return ref.bytes;
}
