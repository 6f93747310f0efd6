/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attend/device.h"

static lode_status_t check_policy(const lode_policy_t *policy)
{
    if (policy->select > LODE_SELECT_DENSE || policy->merge > LODE_MERGE_MEAN || policy->lost > LODE_LOST_SKIP)
        return lode_fail(LODE_ERR_INVALID,
                         "a view's policy has an unknown way to select, to merge a group or to treat what is lost");
    if (policy->select == LODE_SELECT_DENSE || policy->budget_tokens)
        return LODE_OK;
    if (!(policy->budget_share > 0) || policy->budget_share > 1)
        return lode_fail(LODE_ERR_INVALID, "a budget of %g %% of the view: it must be over 0 and at most 100 %%",
                         policy->budget_share * 100);
    return LODE_OK;
}

static lode_status_t check_blocks(lode_cluster_h cluster, const lode_view_params_t *params)
{
    for (uint32_t i = 0; i < params->count; i++) {
        lode_block_h block = params->blocks[i];
        LODE_TRY(lode_block_check(block));
        if (block->info.kv_head_begin != cluster->geometry.kv_head_begin || block->heads != cluster->heads)
            return lode_fail(LODE_ERR_GEOMETRY, "block \"%s\" holds KV heads %u to %u, this rank's are %u to %u",
                             block->info.name, block->info.kv_head_begin, block->info.kv_head_end,
                             cluster->geometry.kv_head_begin, cluster->geometry.kv_head_end);
        if (block->info.landmark.chunk != params->blocks[0]->info.landmark.chunk)
            return lode_fail(LODE_ERR_INVALID,
                             "block \"%s\" has landmarks of %u tokens, block \"%s\" of %u: a view needs one size",
                             block->info.name, block->info.landmark.chunk, params->blocks[0]->info.name,
                             params->blocks[0]->info.landmark.chunk);
        if (block->info.transform && (!cluster->transform || cluster->transform->id != block->info.transform))
            return lode_fail(LODE_ERR_INVALID,
                             "block \"%s\" was written with a transform that this rank does not have: start all ranks "
                             "with the same --transform",
                             block->info.name);
    }
    return LODE_OK;
}

static int by_id(const void *a, const void *b)
{
    uint64_t x = (*(const lode_block_h *)a)->info.id, y = (*(const lode_block_h *)b)->info.id;
    return x < y ? -1 : x > y;
}

/* Views of thousands of documents are made for every question. */
static lode_status_t check_twice(const lode_view_params_t *params)
{
    lode_status_t status = LODE_OK;
    lode_block_h *blocks = malloc(params->count * sizeof *blocks);
    if (!blocks)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a view of %u blocks", params->count);
    memcpy(blocks, params->blocks, params->count * sizeof *blocks);
    qsort(blocks, params->count, sizeof *blocks, by_id);
    for (uint32_t i = 1; i < params->count && status == LODE_OK; i++)
        if (blocks[i]->info.id == blocks[i - 1]->info.id)
            status = lode_fail(LODE_ERR_INVALID, "block \"%s\" stands twice in a view", blocks[i]->info.name);
    free(blocks);
    return status;
}

/* Blocks at given offsets, in view order, must not reach into one another, as long as they are now. */
static lode_status_t check_overlap(const lode_view_params_t *params)
{
    int64_t end = INT64_MIN;
    for (uint32_t i = 0; i < params->count; i++) {
        uint64_t tokens;
        LODE_TRY(lode_local_block_tokens(params->blocks[i], 0, &tokens));
        int64_t offset = params->offsets ? params->offsets[i] : LODE_OFFSET_AFTER;
        if (offset == LODE_OFFSET_AFTER)
            offset = end == INT64_MIN ? 0 : end;
        else if (llabs(offset) > INT64_C(1) << 40)
            return lode_fail(LODE_ERR_INVALID, "block \"%s\" at offset %lld: out of range",
                             params->blocks[i]->info.name, (long long)offset);
        if (!params->shared_positions && end != INT64_MIN && offset < end)
            return lode_fail(
                LODE_ERR_INVALID,
                "block \"%s\" at offset %lld overlaps the one before it, which ends at %lld; set shared_positions "
                "if that is meant",
                params->blocks[i]->info.name, (long long)offset, (long long)end);
        end = offset + (int64_t)tokens;
    }
    return LODE_OK;
}

static lode_status_t check_write_block(const lode_view_params_t *params)
{
    if (params->write_block < 0)
        return LODE_OK;
    if ((uint32_t)params->write_block >= params->count)
        return lode_fail(LODE_ERR_INVALID, "write block %d of a view of %u blocks", params->write_block, params->count);
    return lode_block_check_append(params->blocks[params->write_block]);
}

/* A hot cache for every storage format that the view's blocks have. */
static lode_status_t prepare_caches(lode_cluster_h cluster, const lode_view_params_t *params)
{
    for (uint32_t i = 0; i < params->count; i++) {
        const struct lode_block *block = params->blocks[i];
        if (cluster->gpu) {
            LODE_TRY(lode_gpu_prepare_format(cluster->gpu, block->info.format));
            continue;
        }
        if (!cluster->hot[block->info.format])
            LODE_TRY(lode_hot_create(cluster->hot_bytes, block->record_bytes, &cluster->hot[block->info.format]));
    }
    return LODE_OK;
}

lode_status_t lode_local_view_create(lode_cluster_h cluster, const lode_view_params_t *params, lode_view_h *out)
{
    LODE_TRY(check_policy(&params->policy));
    LODE_TRY(check_blocks(cluster, params));
    LODE_TRY(check_twice(params));
    LODE_TRY(check_overlap(params));
    LODE_TRY(check_write_block(params));
    LODE_TRY(prepare_caches(cluster, params));
    size_t guesses = (size_t)cluster->geometry.layers * cluster->heads;
    lode_view_h view = calloc(1, sizeof *view);
    if (!view)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a view");
    *view = (struct lode_view){.cluster = cluster,
                               .blocks = malloc(params->count * sizeof *view->blocks),
                               .offsets = malloc(params->count * sizeof *view->offsets),
                               .count = params->count,
                               .write_block = params->write_block < 0 ? -1 : params->write_block,
                               .shared_positions = params->shared_positions,
                               .policy = params->policy,
                               .chunk = params->blocks[0]->info.landmark.chunk,
                               .guesses = malloc(guesses * sizeof *view->guesses)};
    if (!view->blocks || !view->offsets || !view->guesses) {
        free(view->blocks);
        free(view->offsets);
        free(view->guesses);
        free(view);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a view of %u blocks", params->count);
    }
    for (uint32_t i = 0; i < params->count; i++) {
        view->blocks[i] = params->blocks[i];
        view->blocks[i]->references++;
        view->offsets[i] = params->offsets ? params->offsets[i] : LODE_OFFSET_AFTER;
    }
    for (size_t i = 0; i < guesses; i++)
        view->guesses[i] = NAN;
    *out = view;
    return LODE_OK;
}

lode_status_t lode_local_view_destroy(lode_view_h *handle)
{
    lode_view_h view = *handle;
    for (uint32_t i = 0; i < view->count; i++)
        lode_block_release(view->blocks[i]);
    free(view->blocks);
    free(view->offsets);
    free(view->guesses);
    lode_gpu_forget_guesses(view->cluster->gpu, view->gpu_guesses);
    free(view);
    *handle = NULL;
    return LODE_OK;
}
