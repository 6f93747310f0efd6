/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"

/* Tokens that an append moves through the tail at a time. */
enum { APPEND_TOKENS = 8 * LODE_PAGE_TOKENS };

/* -------------------------------------------------------------------- names */

/* Printable UTF-8 without control characters: names go into logs, listings and file names. */
static bool name_is_fine(const char *name)
{
    size_t length = name ? strlen(name) : 0;
    if (length == 0 || length > LODE_NAME_MAX)
        return false;
    for (const unsigned char *c = (const unsigned char *)name; *c;) {
        int more = *c < 0x80 ? 0 : *c >= 0xf0 && *c <= 0xf4 ? 3 : *c >= 0xe0 ? 2 : *c >= 0xc2 ? 1 : -1;
        if (more < 0 || *c > 0xf4 || *c < 0x20 || *c == 0x7f || (*c == 0xc2 && c[1] < 0xa0))
            return false;
        for (c++; more; more--, c++)
            if ((*c & 0xc0) != 0x80)
                return false;
    }
    return true;
}

static lode_status_t check_params(lode_cluster_h cluster, const lode_block_params_t *params)
{
    if (!name_is_fine(params->name))
        return lode_fail(LODE_ERR_INVALID, "a block's name is 1 to %d bytes of UTF-8 without control characters",
                         LODE_NAME_MAX);
    if (params->format > LODE_FORMAT_HIGGS4)
        return lode_fail(LODE_ERR_INVALID, "block \"%s\": unknown storage format %d", params->name,
                         (int)params->format);
    if (!lode_landmark_spec_valid(&params->landmark, cluster->geometry.head_dim))
        return lode_fail(LODE_ERR_INVALID, "block \"%s\": there are no landmarks of %u bits a coordinate and %u tokens",
                         params->name, params->landmark.bits, params->landmark.chunk);
    if (params->replicas > LODE_REPLICAS_MAX || params->replicas > lode_fabric_ranks(cluster->fabric))
        return lode_fail(LODE_ERR_INVALID, "block \"%s\": %u replicas need as many ranks, the job has %u (at most %d)",
                         params->name, params->replicas, lode_fabric_ranks(cluster->fabric), LODE_REPLICAS_MAX);
    return LODE_OK;
}

/* ------------------------------------------------------------------ handles */

static lode_status_t block_handle(lode_cluster_h cluster, const lode_block_info_t *info, uint32_t slot,
                                  lode_block_h *out)
{
    lode_block_h block = calloc(1, sizeof *block);
    if (!block)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a block's handle");
    *block = (struct lode_block){.cluster = cluster,
                                 .info = *info,
                                 .slot = slot,
                                 .heads = info->kv_head_end - info->kv_head_begin,
                                 .record_bytes = lode_record_bytes(info->format, cluster->geometry.head_dim),
                                 .references = 1};
    *out = block;
    return LODE_OK;
}

static void free_tails(lode_block_h block)
{
    if (!block->tails)
        return;
    for (uint32_t layer = 0; layer < block->cluster->geometry.layers; layer++) {
        lode_buffer_free(&block->tails[layer].records);
        free(block->tails[layer].mean);
    }
    free(block->tails);
    block->tails = NULL;
}

void lode_block_release(lode_block_h block)
{
    if (--block->references)
        return;
    free_tails(block);
    free(block);
}

/* Never the same twice, though a rank number may come to another process. */
static uint64_t block_id(lode_cluster_h cluster)
{
    uint32_t rank = lode_fabric_rank(cluster->fabric);
    uint32_t incarnation = lode_fabric_incarnation(cluster->fabric, rank);
    return (uint64_t)(rank + 1) << 48 | (uint64_t)(incarnation & 0xffff) << 32 | ++cluster->blocks_made;
}

/* Not means, which are not turned, nor HIGGS as its paper has it, with Hadamard alone and uncentred. */
static bool takes_transform(lode_cluster_h cluster, const lode_landmark_spec_t *landmark)
{
    return cluster->transform &&
           (landmark->codec == LODE_LANDMARK_UNIFORM || (landmark->codec == LODE_LANDMARK_HIGGS && landmark->centre));
}

lode_status_t lode_local_block_create(lode_cluster_h cluster, const lode_block_params_t *params, lode_block_h *out)
{
    LODE_TRY(lode_check_shaped(cluster));
    LODE_TRY(check_params(cluster, params));
    uint32_t rank = lode_fabric_rank(cluster->fabric), slot;
    lode_block_info_t info = {
        .id = block_id(cluster),
        .format = params->format,
        .replicas = params->replicas ? params->replicas : cluster->replicas,
        .kv_head_begin = cluster->geometry.kv_head_begin,
        .kv_head_end = cluster->geometry.kv_head_end,
        .landmark = params->landmark,
        .transform = takes_transform(cluster, &params->landmark) ? cluster->transform->id : 0,
        .expected_tokens = params->expected_tokens,
        .writer = rank,
    };
    strcpy(info.name, params->name);
    LODE_TRY(lode_spread_block(cluster, &info));
    LODE_TRY(lode_store_find_id(cluster->store, info.id, &slot));
    lode_block_h block;
    LODE_TRY(block_handle(cluster, &info, slot, &block));
    block->draft = params->draft;
    block->tails = calloc(cluster->geometry.layers, sizeof *block->tails);
    if (!block->tails) {
        lode_block_release(block);
        return lode_fail(LODE_ERR_NO_MEMORY, "block \"%s\": no memory for its tail", params->name);
    }
    *out = block;
    return LODE_OK;
}

lode_status_t lode_local_block_open(lode_cluster_h cluster, const char *name, lode_block_h *out)
{
    uint32_t slot;
    LODE_TRY(lode_check_shaped(cluster));
    LODE_TRY(
        lode_store_find(cluster->store, name, cluster->geometry.kv_head_begin, cluster->geometry.kv_head_end, &slot));
    lode_block_info_t info;
    if (!lode_store_live(cluster->store, slot, &info, NULL) || strcmp(info.name, name) != 0)
        return lode_fail(LODE_ERR_NOT_FOUND, "block \"%s\" is being dropped", name);
    return block_handle(cluster, &info, slot, out);
}

lode_status_t lode_local_block_close(lode_block_h *block)
{
    lode_block_release(*block);
    *block = NULL;
    return LODE_OK;
}

lode_status_t lode_local_block_drop(lode_block_h *handle)
{
    LODE_TRY(lode_spread_drop((*handle)->cluster, (*handle)->info.id));
    (*handle)->dropped = true;
    return lode_local_block_close(handle);
}

/* -------------------------------------------------------------------- state */

lode_status_t lode_block_check(const struct lode_block *block)
{
    if (block->dropped || lode_store_state(block->cluster->store, block->slot, block->info.id) == LODE_BLOCK_DROPPED)
        return lode_fail(LODE_ERR_DROPPED, "block \"%s\" was dropped", block->info.name);
    return LODE_OK;
}

uint64_t lode_block_committed(const struct lode_block *block, uint32_t layer)
{
    return block->tails ? block->tails[layer].first : lode_store_tokens(block->cluster->store, block->slot, layer);
}

lode_status_t lode_local_block_tokens(lode_block_h block, uint32_t layer, uint64_t *tokens)
{
    if (layer >= block->cluster->geometry.layers)
        return lode_fail(LODE_ERR_INVALID, "block \"%s\": layer %u of %u", block->info.name, layer,
                         block->cluster->geometry.layers);
    LODE_TRY(lode_block_check(block));
    *tokens = lode_block_committed(block, layer) + (block->tails ? block->tails[layer].tokens : 0);
    return LODE_OK;
}

static lode_status_t check_writable(lode_block_h block)
{
    LODE_TRY(lode_block_check(block));
    if (!block->tails)
        return lode_fail(LODE_ERR_INVALID, "block \"%s\" is written by rank %u alone", block->info.name,
                         block->info.writer);
    if (block->sealed)
        return lode_fail(LODE_ERR_SEALED, "block \"%s\" is sealed and takes no more tokens", block->info.name);
    return LODE_OK;
}

lode_status_t lode_block_check_append(lode_block_h block)
{
    LODE_TRY(check_writable(block));
    if (block->sealing) /* a seal failed half-way: short last pages are out already */
        return lode_fail(LODE_ERR_SEALED, "block \"%s\" takes no more tokens since a seal of it failed; seal it again",
                         block->info.name);
    return LODE_OK;
}

/* ------------------------------------------------------------------- append */

static size_t tail_bytes(const struct lode_block *block, const lode_tail_t *tail)
{
    return tail->tokens * block->heads * lode_record_bytes(LODE_FORMAT_BF16, block->cluster->geometry.head_dim);
}

lode_status_t lode_block_mark(const struct lode_block *block, uint32_t layer, bool copy, lode_mark_t *mark)
{
    const lode_tail_t *tail = &block->tails[layer];
    size_t bytes = tail_bytes(block, tail);
    *mark = (lode_mark_t){tail->first, tail->tokens, tail->mean_sent, copy ? malloc(bytes + 1) : NULL};
    if (!copy)
        return LODE_OK;
    if (!mark->records)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory to keep the tail of block \"%s\"", block->info.name);
    if (bytes)
        memcpy(mark->records, tail->records.data, bytes);
    return LODE_OK;
}

void lode_block_return(lode_block_h block, uint32_t layer, const lode_mark_t *mark)
{
    lode_tail_t *tail = &block->tails[layer];
    char message[512]; /* taking back may fail too, in its own words */
    snprintf(message, sizeof message, "%s", lode_error_message());
    if (tail->first + tail->tokens > mark->first)
        lode_spread_take_back(block, layer, mark->first, tail->first + tail->tokens);
    tail->first = mark->first;
    tail->tokens = mark->tokens;
    tail->mean_sent = mark->mean_sent;
    if (mark->tokens && mark->records)
        memcpy(tail->records.data, mark->records, tail_bytes(block, tail));
    lode_fail(LODE_OK, "%s", message);
}

static lode_status_t append_pieces(lode_block_h block, uint32_t layer, uint64_t tokens, lode_dtype_t dtype,
                                   const void *k, const void *v)
{
    size_t token_bytes = (size_t)block->heads * block->cluster->geometry.head_dim * lode_dtype_bytes(dtype);
    LODE_TRY(lode_tail_mean(block, layer, tokens, dtype, k));
    for (uint64_t done = 0, piece; done < tokens; done += piece) {
        piece = tokens - done < APPEND_TOKENS ? tokens - done : APPEND_TOKENS;
        LODE_TRY(lode_tail_write(block, layer, piece, dtype, (const uint8_t *)k + done * token_bytes,
                                 (const uint8_t *)v + done * token_bytes));
        LODE_TRY(lode_spread_tail(block, layer, false));
    }
    return LODE_OK;
}

lode_status_t lode_local_block_append(lode_block_h block, uint32_t layer, uint64_t tokens, lode_dtype_t dtype,
                                      const void *k, const void *v)
{
    LODE_TRY(lode_block_check_append(block));
    if (layer >= block->cluster->geometry.layers)
        return lode_fail(LODE_ERR_INVALID, "block \"%s\": layer %u of %u", block->info.name, layer,
                         block->cluster->geometry.layers);
    LODE_TRY(lode_check_finite(block->cluster, "key", layer, tokens, block->heads, dtype, k));
    LODE_TRY(lode_check_finite(block->cluster, "value", layer, tokens, block->heads, dtype, v));
    if (block->draft)
        return lode_tail_write(block, layer, tokens, dtype, k, v);
    LODE_TRY(lode_block_settle(block, layer));
    lode_mark_t mark;
    LODE_TRY(lode_block_mark(block, layer, true, &mark));
    lode_status_t status = append_pieces(block, layer, tokens, dtype, k, v);
    if (status == LODE_OK && block->tails[layer].first > mark.first)
        status = lode_spread_publish(block, layer);
    if (status != LODE_OK)
        lode_block_return(block, layer, &mark);
    free(mark.records);
    return status == LODE_OK ? LODE_OK : lode_fail_within(status, "block \"%s\": ", block->info.name);
}

lode_status_t lode_block_settle(lode_block_h block, uint32_t layer)
{
    lode_tail_t *tail = &block->tails[layer];
    if (block->draft || tail->tokens < LODE_PAGE_TOKENS)
        return LODE_OK;
    lode_mark_t mark;
    LODE_TRY(lode_block_mark(block, layer, true, &mark));
    lode_status_t status = lode_spread_tail(block, layer, false);
    if (status == LODE_OK)
        status = lode_spread_publish(block, layer);
    if (status != LODE_OK)
        lode_block_return(block, layer, &mark);
    free(mark.records);
    return status == LODE_OK ? LODE_OK : lode_fail_within(status, "block \"%s\": ", block->info.name);
}

/* --------------------------------------------------------------------- seal */

lode_status_t lode_block_check_equal(lode_block_h block, const char *what)
{
    uint64_t first, tokens;
    LODE_TRY(lode_local_block_tokens(block, 0, &first));
    for (uint32_t layer = 1; layer < block->cluster->geometry.layers; layer++) {
        LODE_TRY(lode_local_block_tokens(block, layer, &tokens));
        if (tokens != first)
            return lode_fail(LODE_ERR_INVALID, "block \"%s\" cannot be %s: layer 0 has %llu tokens, layer %u has %llu",
                             block->info.name, what, (unsigned long long)first, layer, (unsigned long long)tokens);
    }
    return LODE_OK;
}

/* Pages of all layers to their owners, part-filled ones too; or of none, if one fails: the tails are as they were. */
static lode_status_t flush_layers(lode_block_h block)
{
    uint32_t layers = block->cluster->geometry.layers, done = 0;
    lode_mark_t *marks = calloc(layers, sizeof *marks);
    lode_status_t status =
        marks ? LODE_OK
              : lode_fail(LODE_ERR_NO_MEMORY, "no memory to keep the tails of block \"%s\"", block->info.name);
    while (done < layers && status == LODE_OK) {
        lode_block_mark(block, done, false, &marks[done]);
        if (block->draft)
            status = lode_tail_mean_here(block, done);
        if (status == LODE_OK)
            status = lode_spread_tail(block, done, true);
        done++;
    }
    for (; done && status != LODE_OK; done--)
        lode_block_return(block, done - 1, &marks[done - 1]);
    free(marks);
    return status == LODE_OK ? LODE_OK : lode_fail_within(status, "block \"%s\": ", block->info.name);
}

/* From the first layer on that is shown, there is no way back: then a seal that fails has to be asked for again. */
static lode_status_t show_layers(lode_block_h block)
{
    block->sealing = true;
    for (uint32_t layer = 0; layer < block->cluster->geometry.layers; layer++)
        if (block->tails[layer].shown < block->tails[layer].first)
            LODE_TRY(lode_spread_publish(block, layer));
    return LODE_OK;
}

lode_status_t lode_local_block_seal(lode_block_h block)
{
    LODE_TRY(check_writable(block));
    LODE_TRY(lode_block_check_equal(block, "sealed"));
    LODE_TRY(flush_layers(block));
    LODE_TRY(show_layers(block));
    Lodemark__BlockSeal seal = LODEMARK__BLOCK_SEAL__INIT;
    lode_telling_t telling = {.call = LODEMARK__CALL__INIT};
    seal.block = block->info.id;
    seal.tokens = block->tails[0].first;
    telling.call.body_case = LODEMARK__CALL__BODY_BLOCK_SEAL;
    telling.call.block_seal = &seal;
    LODE_TRY(lode_tell_keepers(block->cluster, &telling, 1));
    block->sealed = true;
    return LODE_OK;
}

/* ------------------------------------------------------------------ listing */

static uint64_t shortest_layer(lode_cluster_h cluster, uint32_t slot)
{
    uint64_t least = lode_store_tokens(cluster->store, slot, 0);
    for (uint32_t layer = 1; layer < cluster->geometry.layers; layer++) {
        uint64_t tokens = lode_store_tokens(cluster->store, slot, layer);
        least = tokens < least ? tokens : least;
    }
    return least;
}

static bool entry_of(lode_cluster_h cluster, uint32_t slot, lode_block_entry_t *entry)
{
    lode_block_info_t info;
    lode_block_state_t state;
    if (!lode_store_live(cluster->store, slot, &info, &state))
        return false;
    *entry = (lode_block_entry_t){.id = info.id,
                                  .tokens = shortest_layer(cluster, slot),
                                  .format = info.format,
                                  .replicas = info.replicas,
                                  .sealed = state == LODE_BLOCK_SEALED,
                                  .writer = info.writer,
                                  .kv_head_begin = info.kv_head_begin,
                                  .kv_head_end = info.kv_head_end,
                                  .landmark = info.landmark};
    memcpy(entry->name, info.name, sizeof entry->name);
    return true;
}

lode_status_t lode_local_blocks(lode_cluster_h cluster, lode_block_entry_t *entries, uint32_t capacity, uint32_t *count)
{
    uint32_t found = 0, slots = lode_shaped(cluster) ? lode_store_slots(cluster->store) : 0;
    lode_block_entry_t entry;
    for (uint32_t slot = 0; slot < slots; slot++) {
        if (!entry_of(cluster, slot, &entry))
            continue;
        if (found < capacity)
            entries[found] = entry;
        found++;
    }
    *count = found;
    return LODE_OK;
}
