/* SPDX-License-Identifier: Apache-2.0 */
/* One layer of one step: check, write the new tokens, lay out what is seen, choose, then tile by tile fetch and attend.
 */
#include <stdlib.h>
#include <string.h>

#include "attend/device.h"
#include "attend/step.h"

/* Indices of blocks travel in 16 bits of a fetch item. */
enum { MOST_BLOCKS = UINT16_MAX };

lode_status_t lode_step_state_create(lode_cluster_h cluster, lode_step_state_t **out)
{
    size_t page = lode_page_bytes(LODE_FORMAT_BF16, cluster->geometry.head_dim, cluster->heads);
    if (lode_fabric_landing_bytes(cluster->fabric) < page)
        return lode_fail(LODE_ERR_INVALID, "a landing buffer of %zu bytes cannot take a page of %zu; raise --landing",
                         lode_fabric_landing_bytes(cluster->fabric), page);
    lode_step_state_t *step = calloc(1, sizeof *step);
    if (!step)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the state of a step");
    step->cluster = cluster;
    lode_status_t status = lode_lanes_create(step);
    if (status != LODE_OK)
        free(step);
    else
        *out = step;
    return status;
}

void lode_step_state_destroy(lode_step_state_t **state)
{
    lode_step_state_t *step = *state;
    if (!step)
        return;
    lode_buffer_t *buffers[] = {&step->streams,
                                &step->blocks,
                                &step->seen,
                                &step->seen_at,
                                &step->queries,
                                &step->lse,
                                &step->spans,
                                &step->pieces,
                                &step->bundles,
                                &step->slices,
                                &step->choices,
                                &step->parts,
                                &step->chosen,
                                &step->tokens,
                                &step->lost,
                                &step->wanted,
                                &step->first_record,
                                &step->tiles[0].runs,
                                &step->tiles[0].items,
                                &step->tiles[0].records,
                                &step->tiles[0].owners,
                                &step->tiles[0].owners_at,
                                &step->tiles[1].runs,
                                &step->tiles[1].items,
                                &step->tiles[1].records,
                                &step->tiles[1].owners,
                                &step->tiles[1].owners_at};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        lode_buffer_free(buffers[i]);
    lode_angles_free(&step->angles);
    lode_lanes_destroy(step);
    free(step);
    *state = NULL;
}

/* -------------------------------------------------------------------- check */

static lode_status_t check_stream(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *in, uint32_t i)
{
    if (in->k && in->view->write_block < 0)
        return lode_fail(LODE_ERR_INVALID, "stream %u has new keys, but its view has no write block", i);
    if (in->position != LODE_POSITION_END && llabs(in->position) > INT64_C(1) << 40)
        return lode_fail(LODE_ERR_INVALID, "stream %u: position %lld is out of range", i, (long long)in->position);
    for (uint32_t b = 0; b < in->view->count; b++)
        LODE_TRY(lode_block_check(in->view->blocks[b]));
    if (!cluster->gpu) { /* else their memory is looked at first */
        LODE_TRY(lode_check_host_stream(in));
        LODE_TRY(lode_check_finite(cluster, "query", layer, in->tokens, cluster->query_heads, in->dtype, in->q));
    }
    if (!in->k)
        return LODE_OK;
    LODE_TRY(lode_block_check_append(in->view->blocks[in->view->write_block]));
    return cluster->gpu ? LODE_OK : lode_check_new(cluster, layer, in, in->k, in->v);
}

lode_status_t lode_check_new(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *in, const void *k,
                             const void *v)
{
    LODE_TRY(lode_check_finite(cluster, "key", layer, in->tokens, cluster->heads, in->dtype, k));
    return lode_check_finite(cluster, "value", layer, in->tokens, cluster->heads, in->dtype, v);
}

static lode_status_t check(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count)
{
    if (layer >= cluster->geometry.layers)
        return lode_fail(LODE_ERR_INVALID, "lode_step: layer %u of %u", layer, cluster->geometry.layers);
    for (uint32_t i = 0; i < count; i++)
        LODE_TRY(check_stream(cluster, layer, &streams[i], i));
    return LODE_OK;
}

/* ----------------------------------------------------------------- enrolment */

/* Give every block of the step an index, once. */
static lode_status_t enrol_blocks(lode_step_state_t *step)
{
    size_t most = 0;
    for (uint32_t s = 0; s < step->stream_count; s++)
        most += lode_stream_at(step, s)->in->view->count;
    LODE_TRY(lode_buffer_reserve(&step->blocks, most * sizeof(lode_step_block_t)));
    LODE_TRY(lode_buffer_reserve(&step->seen, most * sizeof(lode_seen_block_t)));
    step->block_count = 0;
    size_t seen = 0;
    for (uint32_t s = 0; s < step->stream_count; s++) {
        lode_step_stream_t *stream = lode_stream_at(step, s);
        stream->first_seen = seen;
        for (uint32_t i = 0; i < stream->in->view->count; i++, seen++) {
            lode_block_h block = stream->in->view->blocks[i];
            if (block->step_serial != step->serial) {
                block->step_serial = step->serial;
                block->step_index = step->block_count++;
                *lode_step_block_at(step, block->step_index) = (lode_step_block_t){.block = block};
            }
            ((lode_seen_block_t *)step->seen.data)[seen] = (lode_seen_block_t){.index = block->step_index};
        }
    }
    if (step->block_count > MOST_BLOCKS)
        return lode_fail(LODE_ERR_INVALID, "%u blocks in one step: at most %d are supported", step->block_count,
                         MOST_BLOCKS);
    return LODE_OK;
}

static lode_status_t enrol_streams(lode_step_state_t *step, const lode_stream_t *streams, uint32_t count)
{
    uint32_t dim = step->cluster->geometry.head_dim, heads = step->cluster->query_heads;
    size_t rows = 0;
    for (uint32_t s = 0; s < count; s++)
        rows += streams[s].tokens;
    LODE_TRY(lode_buffer_reserve(&step->streams, count * sizeof(lode_step_stream_t)));
    LODE_TRY(lode_buffer_reserve(&step->queries, rows * heads * dim * sizeof(float)));
    LODE_TRY(lode_buffer_reserve(&step->lse, rows * heads * sizeof(float)));
    LODE_TRY(lode_buffer_reserve(&step->chosen, rows * step->cluster->heads * sizeof(lode_chosen_t)));
    LODE_TRY(lode_buffer_reserve(&step->lost, rows * step->cluster->heads * sizeof(uint64_t)));
    memset(step->lost.data, 0, rows * step->cluster->heads * sizeof(uint64_t));
    step->stream_count = count;
    step->rows = 0;
    for (uint32_t s = 0; s < count; s++) {
        lode_step_stream_t *stream = lode_stream_at(step, s);
        *stream = (lode_step_stream_t){.in = &streams[s],
                                       .k = streams[s].k,
                                       .v = streams[s].v,
                                       .rows = streams[s].tokens,
                                       .first_row = step->rows,
                                       .q = (float *)step->queries.data + step->rows * heads * dim,
                                       .lse = (float *)step->lse.data + step->rows * heads};
        step->rows += streams[s].tokens;
    }
    return enrol_blocks(step);
}

/* -------------------------------------------------------------------- write */

/* Send on what earlier steps have left, so that an arena that is full refuses before anything is written. */
static lode_status_t settle_tails(lode_step_state_t *step)
{
    for (uint32_t s = 0; s < step->stream_count; s++) {
        lode_view_h view = lode_stream_at(step, s)->in->view;
        if (lode_stream_at(step, s)->in->k)
            LODE_TRY(lode_block_settle(view->blocks[view->write_block], step->layer));
    }
    return LODE_OK;
}

static void take_writes_back(lode_step_state_t *step)
{
    for (uint32_t s = 0; s < step->stream_count; s++) {
        lode_step_stream_t *stream = lode_stream_at(step, s);
        if (stream->written)
            stream->in->view->blocks[stream->in->view->write_block]->tails[step->layer].tokens -= stream->in->tokens;
        stream->written = false;
    }
}

static lode_status_t write_tokens(lode_step_state_t *step)
{
    for (uint32_t s = 0; s < step->stream_count; s++) {
        lode_step_stream_t *stream = lode_stream_at(step, s);
        if (!stream->in->k)
            continue;
        lode_block_h block = stream->in->view->blocks[stream->in->view->write_block];
        lode_step_block_t *at = lode_step_block_at(step, block->step_index);
        if (at->written)
            return lode_fail(LODE_ERR_INVALID, "two streams of one step write to block \"%s\"", block->info.name);
        at->written = true;
        LODE_TRY(lode_tail_write(block, step->layer, stream->in->tokens, stream->in->dtype, stream->k, stream->v));
        stream->written = true;
    }
    return LODE_OK;
}

/* ------------------------------------------------------------------- lay out */

static uint64_t block_length(const lode_step_state_t *step, const struct lode_block *block)
{
    return lode_block_committed(block, step->layer) + (block->tails ? block->tails[step->layer].tokens : 0);
}

/* Resolve the offsets of a stream's blocks, and where its first row stands. */
static lode_status_t lay_out_stream(lode_step_state_t *step, lode_step_stream_t *stream)
{
    lode_view_h view = stream->in->view;
    int64_t end = INT64_MIN, furthest = 0;
    stream->tokens = 0;
    for (uint32_t i = 0; i < view->count; i++) {
        lode_seen_block_t *seen = lode_seen_at(step, stream, i);
        lode_step_block_t *block = lode_step_block_at(step, seen->index);
        seen->offset = view->offsets[i] != LODE_OFFSET_AFTER ? view->offsets[i] : end == INT64_MIN ? 0 : end;
        if (!view->shared_positions && end != INT64_MIN && seen->offset < end)
            return lode_fail(LODE_ERR_INVALID, "block \"%s\" at offset %lld: the block before it has grown to %lld",
                             block->block->info.name, (long long)seen->offset, (long long)end);
        end = seen->offset + (int64_t)block_length(step, block->block);
        furthest = i == 0 || end > furthest ? end : furthest;
        seen->first_token = stream->tokens;
        stream->tokens += block->tokens;
        if (stream->in->k && (int32_t)i == view->write_block)
            stream->position = end - stream->in->tokens;
    }
    if (stream->tokens > UINT32_MAX)
        return lode_fail(LODE_ERR_UNSUPPORTED, "a view of %llu tokens: at most 2^32 are supported",
                         (unsigned long long)stream->tokens);
    int64_t asked = stream->in->position;
    if (stream->in->k && asked != LODE_POSITION_END && asked != stream->position)
        return lode_fail(LODE_ERR_INVALID, "a stream writes at view position %lld, but its write block ends at %lld",
                         (long long)asked, (long long)stream->position);
    if (!stream->in->k)
        stream->position = asked == LODE_POSITION_END ? furthest : asked;
    return LODE_OK;
}

/* A GPU is sent all that is kept, so not much more than the step needs. */
static lode_status_t lay_out_angles(lode_step_state_t *step)
{
    enum { KEPT = 1 << 14 };
    uint32_t dim = step->cluster->geometry.head_dim;
    size_t most = 0;
    for (uint32_t s = 0; s < step->stream_count; s++)
        most += lode_stream_at(step, s)->in->view->count;
    LODE_TRY(lode_angles_begin(&step->angles, dim, most, 2 * most + (step->on_device ? 0 : KEPT)));
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        for (uint32_t i = 0; i < stream->in->view->count; i++) {
            lode_seen_block_t *seen = lode_seen_at(step, stream, i);
            seen->angles =
                seen->offset == 0 ? UINT32_MAX : lode_angles_of(&step->angles, step->cluster->freq, dim, seen->offset);
        }
    }
    return LODE_OK;
}

static lode_status_t lay_out_blocks(lode_step_state_t *step)
{
    step->masks = 0;
    for (uint32_t b = 0; b < step->block_count; b++) {
        lode_step_block_t *block = lode_step_block_at(step, b);
        block->tokens = lode_block_committed(block->block, step->layer);
        block->pages = (uint32_t)((block->tokens + LODE_PAGE_TOKENS - 1) / LODE_PAGE_TOKENS);
        block->first_mask = step->masks;
        block->landmark = block->block->info.landmark;
        if (!step->on_device)
            block->place = lode_store_place(step->cluster->store, block->block->slot, step->layer);
        step->masks += (size_t)block->pages * step->cluster->heads;
    }
    if (!step->on_device) {
        LODE_TRY(lode_buffer_reserve(&step->wanted, step->masks * sizeof(uint64_t)));
        LODE_TRY(lode_buffer_reserve(&step->first_record, step->masks * sizeof(uint32_t)));
    }
    size_t places = (size_t)step->stream_count * step->block_count;
    LODE_TRY(lode_buffer_reserve(&step->seen_at, places * sizeof(uint32_t)));
    uint32_t *seen_at = step->seen_at.data;
    memset(seen_at, 0xff, places * sizeof *seen_at);
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        for (uint32_t i = 0; i < stream->in->view->count; i++)
            seen_at[(size_t)s * step->block_count + lode_seen_at(step, stream, i)->index] =
                (uint32_t)stream->first_seen + i;
    }
    return LODE_OK;
}

/* Queries as floats, scaled once; outputs as the empty sum. */
static void prepare_rows(lode_step_state_t *step)
{
    uint32_t dim = step->cluster->geometry.head_dim, heads = step->cluster->query_heads;
    float scale = 1.0f / sqrtf((float)dim);
    for (uint32_t s = 0; s < step->stream_count; s++) {
        lode_step_stream_t *stream = lode_stream_at(step, s);
        size_t n = (size_t)stream->in->tokens * heads;
        step->cluster->ops->widen(stream->in->dtype, stream->in->q, stream->q, n * dim);
        for (size_t i = 0; i < n * dim; i++)
            stream->q[i] *= scale;
        memset(stream->in->out, 0, n * dim * sizeof(float));
        for (size_t i = 0; i < n; i++)
            stream->lse[i] = -INFINITY;
    }
}

static lode_status_t lay_out(lode_step_state_t *step)
{
    uint64_t begin = lode_now_ns();
    LODE_TRY(lay_out_blocks(step));
    for (uint32_t s = 0; s < step->stream_count; s++)
        LODE_TRY(lay_out_stream(step, lode_stream_at(step, s)));
    LODE_TRY(lay_out_angles(step));
    if (!step->on_device)
        prepare_rows(step);
    step->stats.stage_ns[LODE_STAGE_ROTATE] += lode_now_ns() - begin;
    return LODE_OK;
}

/* --------------------------------------------------------------------- tiles */

/* What a step reads over and over stays; what would sweep the whole cache out does not enter it. */
static bool fits_hot(const lode_step_state_t *step)
{
    uint64_t capacity = UINT64_MAX;
    for (uint32_t b = 0; b < step->block_count; b++) {
        uint64_t one = lode_hot_capacity(step->cluster->hot[lode_step_block_at(step, b)->block->info.format]);
        capacity = one < capacity ? one : capacity;
    }
    return step->stats.records_wanted <= capacity;
}

/* While one tile is attended over, the next is fetched. */
static lode_status_t run_tiles(lode_step_state_t *step)
{
    lode_tile_t *now = &step->tiles[0], *next = &step->tiles[1];
    bool any, more = false, keep = fits_hot(step);
    step->plan_block = step->plan_page = 0;
    lode_status_t status = lode_tile_begin(step, now, &any);
    if (status == LODE_OK)
        lode_tails_attend(step);
    while (status == LODE_OK && any) {
        status = lode_tile_begin(step, next, &more);
        if (status != LODE_OK)
            break;
        status = lode_tile_wait(step, now);
        if (status == LODE_OK)
            status = lode_tile_attend(step, now);
        lode_tile_end(step, now, keep && status == LODE_OK);
        lode_tile_t *swap = now;
        now = next;
        next = swap;
        any = more;
    }
    if (status == LODE_OK)
        return LODE_OK;
    for (int i = 0; i < 2; i++) /* what is under way must have landed before its buffer is given back */
        if (step->tiles[i].fetch.count &&
            lode_fabric_fetch_wait(step->cluster->fabric, &step->tiles[i].fetch) == LODE_OK)
            lode_fabric_fetch_release(step->cluster->fabric, &step->tiles[i].fetch);
    step->tiles[0].fetch.count = step->tiles[1].fetch.count = 0;
    return status;
}

/* A block that was dropped meanwhile may have been read as zeros: what was computed is void. */
static lode_status_t check_still_there(const lode_step_state_t *step)
{
    for (uint32_t b = 0; b < step->block_count; b++)
        LODE_TRY(lode_block_check(lode_step_block_at(step, b)->block));
    return LODE_OK;
}

static lode_status_t run(lode_step_state_t *step)
{
    LODE_TRY(write_tokens(step));
    LODE_TRY(lay_out(step));
    if (!step->on_device)
        LODE_TRY(lode_step_choose(step));
    lode_status_t status = step->on_device ? lode_gpu_run(step) : run_tiles(step);
    if (status == LODE_OK || status == LODE_ERR_PAGE_LOST) /* owners forget the pages of what was dropped */
        LODE_TRY(check_still_there(step));
    return status;
}

static void hand_over(const lode_step_state_t *step)
{
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        if (stream->in->lse && !step->on_device)
            memcpy(stream->in->lse, stream->lse,
                   (size_t)stream->in->tokens * step->cluster->query_heads * sizeof(float));
        lode_lost_shares(step, stream);
    }
}

/* -------------------------------------------------------------------- public */

/* What may still be refused before anything is written. @p enqueue: on a stream of the caller's, else the step waits.
 */
static lode_status_t prepare(lode_step_state_t *step, bool enqueue, void *cuda_stream)
{
    if (step->on_device) {
        LODE_TRY(lode_gpu_begin(step, cuda_stream, !enqueue));
        LODE_TRY(lode_gpu_check_streams(step));
    }
    return settle_tails(step);
}

static lode_status_t one_step(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count,
                              bool enqueue, void *cuda_stream, lode_step_stats_t *stats)
{
    uint64_t begin = lode_now_ns();
    LODE_TRY(check(cluster, layer, streams, count));
    lode_step_state_t *step = cluster->step;
    step->serial++;
    step->layer = layer;
    step->token_count = 0;
    step->owners = 0;
    step->stats = (lode_step_stats_t){0};
    step->on_device = cluster->gpu != NULL;
    LODE_TRY(enrol_streams(step, streams, count));
    lode_status_t status = prepare(step, enqueue, cuda_stream);
    if (status == LODE_OK)
        status = run(step);
    if (status != LODE_OK) {
        char message[512];
        snprintf(message, sizeof message, "%s", lode_error_message());
        if (step->on_device)
            lode_gpu_abandon(step);
        take_writes_back(step);
        step->stream_count = 0;
        return lode_fail(status, "%s", message);
    }
    hand_over(step);
    step->stats.owners_asked = (uint32_t)__builtin_popcountll(step->owners);
    step->stats.step_ns = lode_now_ns() - begin;
    *stats = step->stats;
    return LODE_OK;
}

lode_status_t lode_local_step(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams, uint32_t count,
                              lode_step_stats_t *stats)
{
    lode_status_t status = one_step(cluster, layer, streams, count, false, NULL, stats);
    lode_meter_step(&cluster->meter, status == LODE_OK ? stats : NULL);
    return status;
}

lode_status_t lode_local_step_enqueue(lode_cluster_h cluster, uint32_t layer, const lode_stream_t *streams,
                                      uint32_t count, void *cuda_stream, lode_step_stats_t *stats)
{
    if (!cluster->gpu)
        return lode_fail(LODE_ERR_UNSUPPORTED, "lode_step_enqueue: this rank steps on its CPU; it takes a device with "
                                               "--device cuda (lodemark info says what it has), or lode_step()");
    lode_status_t status = one_step(cluster, layer, streams, count, true, cuda_stream, stats);
    lode_meter_step(&cluster->meter, status == LODE_OK ? stats : NULL);
    return status;
}

lode_status_t lode_step_bring_selection(lode_step_state_t *step)
{
    return step->on_device ? lode_gpu_bring_selection(step) : LODE_OK;
}

lode_status_t lode_local_step_selection(lode_cluster_h cluster, uint32_t stream, uint32_t token, uint32_t kv_head,
                                        const uint32_t **tokens, uint64_t *count)
{
    lode_step_state_t *step = cluster->step;
    if (stream >= step->stream_count || kv_head >= cluster->heads || token >= lode_stream_at(step, stream)->rows)
        return lode_fail(LODE_ERR_INVALID, "lode_step_selection: the last step had no such stream, token or head");
    LODE_TRY(lode_step_bring_selection(step));
    const lode_chosen_t *chosen = lode_chosen_at(step, lode_stream_at(step, stream)->first_row + token, kv_head);
    *tokens = chosen->all ? NULL : (const uint32_t *)step->tokens.data + chosen->start;
    *count = chosen->count;
    return LODE_OK;
}
