/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scoring views' landmarks and choosing tokens by them. The unit of work is a (bundle, head): rows that see the same,
 * or begin with it, and a KV head. Threads take whole ones; those that are left when there are fewer than threads are
 * cut into slices. What is computed is the same either way, to the bit.
 */
#include <string.h>

#include "attend/step.h"

void lode_rotate_queries(const lode_step_state_t *step, const lode_step_stream_t *stream, const lode_seen_block_t *seen,
                         uint32_t row, uint32_t head, float *q)
{
    lode_cluster_h cluster = step->cluster;
    uint32_t dim = cluster->geometry.head_dim, group = cluster->group;
    memcpy(q, stream->q + ((size_t)row * cluster->query_heads + (size_t)head * group) * dim, sizeof *q * group * dim);
    if (seen->angles == UINT32_MAX)
        return;
    const float *cosine = (const float *)step->angles.table.data + (size_t)seen->angles * dim;
    cluster->ops->rotate(q, group, dim, cosine, cosine + dim / 2);
}

/* ------------------------------------------------------------- what is seen */

static uint64_t visible_at(const lode_step_state_t *step, const lode_step_stream_t *stream, uint32_t i, uint32_t row)
{
    const lode_seen_block_t *seen = lode_seen_at(step, stream, i);
    return lode_visible(seen, lode_step_block_at(step, seen->index)->tokens, stream->position + row);
}

static bool same_visibility(const lode_step_state_t *step, const lode_step_stream_t *stream, uint32_t a, uint32_t b)
{
    for (uint32_t i = 0; i < stream->in->view->count; i++)
        if (visible_at(step, stream, i, a) != visible_at(step, stream, i, b))
            return false;
    return true;
}

/* Tokens of the window that the unsealed tails hold already, for one row. */
static uint64_t visible_in_tails(const lode_step_state_t *step, const lode_step_stream_t *stream, uint32_t row)
{
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < stream->in->view->count; i++) {
        const lode_seen_block_t *seen = lode_seen_at(step, stream, i);
        const struct lode_block *block = lode_step_block_at(step, seen->index)->block;
        if (!block->tails)
            continue;
        const lode_tail_t *tail = &block->tails[step->layer];
        tokens += lode_visible(seen, tail->first + tail->tokens, stream->position + row) -
                  lode_visible(seen, tail->first, stream->position + row);
    }
    return tokens;
}

/* View-token indices leave gaps where a row does not see all of a block; pieces keep the block's index. */
static lode_status_t lay_out_pieces(lode_step_state_t *step, lode_span_t *span, size_t *used)
{
    uint32_t count = span->stream->in->view->count;
    LODE_TRY(lode_buffer_extend(&step->pieces, (*used + count) * sizeof(lode_piece_t), *used * sizeof(lode_piece_t)));
    lode_piece_t *pieces = (lode_piece_t *)step->pieces.data + *used;
    span->first_piece = *used;
    for (uint32_t i = 0; i < count; i++) {
        const lode_seen_block_t *seen = lode_seen_at(step, span->stream, i);
        const lode_landmark_spec_t *spec = &lode_step_block_at(step, seen->index)->block->info.landmark;
        uint64_t tokens = visible_at(step, span->stream, i, span->first);
        pieces[i] = (lode_piece_t){tokens, lode_landmarks_of(spec, tokens), seen->first_token};
        span->tokens += tokens;
        span->landmarks += pieces[i].landmarks;
    }
    span->stride = (span->landmarks + 15) & ~(size_t)15;
    *used += count;
    return LODE_OK;
}

static const lode_piece_t *pieces_of(const lode_step_state_t *step, const lode_span_t *span)
{
    return (const lode_piece_t *)step->pieces.data + span->first_piece;
}

/* View-token index from which on the last `window` visible tokens in pages lie. */
static uint64_t window_begin(const lode_piece_t *pieces, uint32_t count, uint64_t window)
{
    uint64_t begin = UINT64_MAX;
    while (count-- && window) {
        uint64_t tokens = pieces[count].tokens < window ? pieces[count].tokens : window;
        begin = pieces[count].first_token + pieces[count].tokens - tokens;
        window -= tokens;
    }
    return begin;
}

static uint64_t budget_of(const lode_span_t *span)
{
    const lode_policy_t *policy = &span->stream->in->view->policy;
    uint64_t budget =
        policy->budget_tokens ? policy->budget_tokens : (uint64_t)ceil(policy->budget_share * (double)span->tokens);
    return policy->select == LODE_SELECT_DENSE || budget > span->tokens ? span->tokens : budget;
}

/* Budget, sinks and window of a row; the window reaches further into the tail with each row. */
lode_choice_t lode_span_choice(const lode_step_state_t *step, const lode_span_t *span, uint32_t row)
{
    const lode_view_h view = span->stream->in->view;
    const lode_policy_t *policy = &view->policy;
    uint64_t in_tails = visible_in_tails(step, span->stream, row);
    uint64_t window = policy->window > in_tails ? policy->window - in_tails : 0;
    return (lode_choice_t){.pieces = pieces_of(step, span),
                           .piece_count = view->count,
                           .chunk = view->chunk,
                           .group = span->group,
                           .merge = policy->merge,
                           .budget = budget_of(span),
                           .sinks = policy->sinks < span->tokens ? policy->sinks : span->tokens,
                           .window_begin = window_begin(pieces_of(step, span), view->count, window)};
}

/* ------------------------------------------------------------------ lay out */

/* The blocks of a span, as the index knows them. */
static lode_index_part_t *parts_of(const lode_step_state_t *step, const lode_span_t *span, lode_lane_t *lane)
{
    lode_index_part_t *parts = lane->index_parts.data;
    for (uint32_t i = 0; i < span->stream->in->view->count; i++) {
        const lode_seen_block_t *seen = lode_seen_at(step, span->stream, i);
        parts[i] = (lode_index_part_t){.slot = lode_step_block_at(step, seen->index)->block->slot};
    }
    return parts;
}

static lode_choice_t *choice_at(const lode_step_state_t *step, size_t row)
{
    return (lode_choice_t *)step->choices.data + row;
}

/* As lode_span_choice(), found when the span was laid out. */
static lode_choice_t choice_of(const lode_step_state_t *step, const lode_span_t *span, uint32_t row)
{
    lode_choice_t choice = *choice_at(step, span->stream->first_row + row);
    choice.pieces = pieces_of(step, span);
    return choice;
}

/*
 * Rows choose by the index one by one, each as it would in a step of its own: the span ends before the first that does,
 * or is that one.
 */
static lode_status_t plan_choices(lode_step_state_t *step, lode_span_t *span)
{
    lode_index_plan_t plan;
    LODE_TRY(
        lode_buffer_reserve(&step->lanes[0].index_parts, span->stream->in->view->count * sizeof(lode_index_part_t)));
    const lode_index_part_t *parts = parts_of(step, span, &step->lanes[0]);
    for (uint32_t r = 0; r < span->count; r++) {
        lode_choice_t choice = lode_span_choice(step, span, span->first + r);
        *choice_at(step, span->stream->first_row + span->first + r) = choice;
        if (!lode_index_pays(step->cluster->store, &choice, parts, &plan))
            continue;
        span->indexed = r == 0;
        span->count = r == 0 ? 1 : r;
        span->plan = plan;
        break;
    }
    return LODE_OK;
}

/* Rows that take everything they see are done; the others become a span, with room for the tokens they will choose. */
static lode_status_t add_span(lode_step_state_t *step, lode_span_t *span, size_t *pieces)
{
    const lode_view_h view = span->stream->in->view;
    size_t before = *pieces;
    LODE_TRY(lay_out_pieces(step, span, pieces));
    uint64_t budget = budget_of(span), room = budget + view->policy.sinks + view->policy.window + view->chunk;
    bool all = budget == span->tokens;
    if (!all && !step->on_device)
        LODE_TRY(plan_choices(step, span));
    if (span->tokens >= step->stats.visible_tokens) {
        step->stats.visible_tokens = span->tokens;
        step->stats.budget_tokens = budget;
    }
    for (uint32_t row = span->first; row < span->first + span->count; row++)
        for (uint32_t head = 0; head < step->cluster->heads; head++) {
            *lode_chosen_at(step, span->stream->first_row + row, head) =
                (lode_chosen_t){.start = all ? 0 : step->token_count, .count = all ? span->tokens : 0, .all = all};
            step->token_count += all ? 0 : room;
        }
    if (all)
        *pieces = before;
    else
        ((lode_span_t *)step->spans.data)[step->span_count++] = *span;
    return LODE_OK;
}

lode_status_t lode_step_lay_out_spans(lode_step_state_t *step)
{
    size_t pieces = 0;
    step->span_count = 0;
    LODE_TRY(lode_buffer_reserve(&step->spans, step->rows * sizeof(lode_span_t)));
    if (!step->on_device)
        LODE_TRY(lode_buffer_reserve(&step->choices, step->rows * sizeof(lode_choice_t)));
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        uint32_t group = stream->in->view->policy.merge == LODE_MERGE_MAX ? step->cluster->group : 1;
        uint32_t most = LODE_MAX_GROUP / group;
        for (uint32_t row = 0; row < stream->in->tokens;) {
            lode_span_t span = {.stream = stream, .first = row, .count = 1, .group = group};
            while (span.count < most && row + span.count < stream->in->tokens &&
                   same_visibility(step, stream, row, row + span.count))
                span.count++;
            LODE_TRY(add_span(step, &span, &pieces));
            row += span.count;
        }
    }
    if (step->on_device) /* its tokens are there */
        return LODE_OK;
    return lode_buffer_reserve(&step->tokens, step->token_count * sizeof(uint32_t));
}

static lode_span_t *span_at(const lode_step_state_t *step, uint32_t i)
{
    return (lode_span_t *)step->spans.data + i;
}

static const lode_bundle_t *bundle_of(const lode_step_state_t *step, uint32_t item)
{
    return (const lode_bundle_t *)step->bundles.data + item / step->cluster->heads;
}

static size_t greater(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Notes of scores that a choice may use: twice what is chosen is ample, or the guess was a poor one. */
static size_t notes_room(const lode_span_t *span)
{
    size_t room = 2 * (size_t)(budget_of(span) / span->stream->in->view->chunk) + 1024;
    return room < span->landmarks ? room : span->landmarks;
}

/* ------------------------------------------------------------------ bundles */

static uint32_t score_rows(const lode_span_t *span)
{
    return span->count * span->group;
}

/* How many pieces two spans begin with alike, at most so many. */
static uint32_t alike(const lode_step_state_t *step, const lode_span_t *a, const lode_span_t *b, uint32_t most)
{
    const lode_piece_t *x = pieces_of(step, a), *y = pieces_of(step, b);
    uint32_t n = 0, count = b->stream->in->view->count;
    most = most < count ? most : count;
    while (n < most && x[n].tokens == y[n].tokens &&
           lode_seen_at(step, a->stream, n)->index == lode_seen_at(step, b->stream, n)->index)
        n++;
    return n;
}

static uint64_t landmarks_of(const lode_step_state_t *step, const lode_span_t *span, uint32_t pieces)
{
    uint64_t landmarks = 0;
    for (uint32_t i = 0; i < pieces; i++)
        landmarks += pieces_of(step, span)[i].landmarks;
    return landmarks;
}

/*
 * Whether a bundle takes another span: one pass of the scan must do for both, and most of what it reads must be what
 * they have in common.
 */
static bool takes(const lode_step_state_t *step, lode_bundle_t *bundle, const lode_span_t *span)
{
    const lode_span_t *first = span_at(step, bundle->first);
    if (first->indexed || span->indexed || bundle->rows + score_rows(span) > step->cluster->ops->scan_group)
        return false;
    uint32_t shared = alike(step, first, span, bundle->shared);
    uint64_t landmarks = landmarks_of(step, first, shared);
    if (landmarks * 2 < first->landmarks || landmarks * 2 < span->landmarks)
        return false;
    bundle->shared = shared;
    bundle->landmarks = landmarks;
    return true;
}

static uint32_t slices_of(const lode_step_state_t *step, const lode_span_t *span, uint32_t begin, uint32_t end)
{
    uint64_t slices = 0;
    for (uint32_t i = begin; i < end; i++)
        slices += (pieces_of(step, span)[i].landmarks + LODE_SLICE - 1) / LODE_SLICE;
    return (uint32_t)slices;
}

static uint32_t all_slices(const lode_step_state_t *step, const lode_bundle_t *bundle, const lode_span_t *span)
{
    return bundle->shared_slices + slices_of(step, span, bundle->shared, span->stream->in->view->count);
}

/* Spans that follow one another, as far as they are alike; their score rows lie one behind the other, equally long. */
static void bundle_from(lode_step_state_t *step, uint32_t first, lode_bundle_t *bundle)
{
    const lode_span_t *span = span_at(step, first);
    size_t stride = span->stride;
    *bundle = (lode_bundle_t){.first = first,
                              .count = 1,
                              .rows = score_rows(span),
                              .shared = span->stream->in->view->count,
                              .landmarks = span->landmarks};
    for (; first + bundle->count < step->span_count; bundle->count++) {
        lode_span_t *next = span_at(step, first + bundle->count);
        if (!takes(step, bundle, next))
            break;
        next->score_row = bundle->rows;
        bundle->rows += score_rows(next);
        stride = greater(stride, next->stride);
    }
    bundle->shared_slices = slices_of(step, span, 0, bundle->shared);
    for (uint32_t i = 0; i < bundle->count; i++)
        span_at(step, first + i)->stride = stride;
}

static lode_status_t lay_out_bundles(lode_step_state_t *step)
{
    LODE_TRY(lode_buffer_reserve(&step->bundles, step->span_count * sizeof(lode_bundle_t)));
    step->bundle_count = 0;
    for (uint32_t first = 0; first < step->span_count;) {
        lode_bundle_t *bundle = (lode_bundle_t *)step->bundles.data + step->bundle_count++;
        bundle_from(step, first, bundle);
        first += bundle->count;
    }
    return LODE_OK;
}

/* What threads need for any of the spans that go by the index. */
static lode_status_t reserve_index(lode_step_state_t *step)
{
    size_t blocks = 0, work = 0, floats = 0;
    for (uint32_t i = 0; i < step->span_count; i++) {
        const lode_span_t *span = (const lode_span_t *)step->spans.data + i;
        if (!span->indexed)
            continue;
        blocks = greater(blocks, span->stream->in->view->count);
        floats = greater(floats, blocks * span->group * step->cluster->geometry.head_dim);
        work = greater(work, span->plan.work_bytes);
    }
    for (uint32_t i = 0; work && i < step->lane_count; i++) {
        LODE_TRY(lode_buffer_reserve(&step->lanes[i].index_parts, blocks * sizeof(lode_index_part_t)));
        LODE_TRY(lode_buffer_reserve(&step->lanes[i].index_queries, floats * sizeof(float)));
        LODE_TRY(lode_buffer_reserve(&step->lanes[i].index_work, work));
    }
    return LODE_OK;
}

/* What threads need for any of the bundles. */
static lode_status_t reserve_lanes(lode_step_state_t *step)
{
    size_t scores = 0, sums = 0, tables = 0, picks = 0, notes = 0, prepared = 0;
    for (uint32_t i = 0; i < step->bundle_count; i++) {
        const lode_bundle_t *bundle = (const lode_bundle_t *)step->bundles.data + i;
        prepared = greater(prepared, LODE_TOGETHER * bundle->rows);
        for (uint32_t n = bundle->first; n < bundle->first + bundle->count; n++) {
            const lode_span_t *span = span_at(step, n);
            const lode_view_h view = span->stream->in->view;
            if (span->indexed)
                continue;
            scores = greater(scores, bundle->rows * span->stride + 16);
            sums = greater(sums, (size_t)bundle->rows * all_slices(step, bundle, span));
            picks = greater(picks, span->landmarks);
            notes = greater(notes, notes_room(span));
            for (uint32_t b = 0; b < view->count; b++)
                tables = greater(tables, lode_score_scratch_floats(&view->blocks[b]->info.landmark,
                                                                   step->cluster->geometry.head_dim, bundle->rows));
        }
    }
    for (uint32_t i = 0; i < step->lane_count; i++) {
        LODE_TRY(lode_buffer_reserve(&step->lanes[i].scores, scores * sizeof(float)));
        LODE_TRY(lode_buffer_reserve(&step->lanes[i].sums, sums * sizeof(float)));
        LODE_TRY(lode_buffer_reserve(&step->lanes[i].tables, tables * sizeof(float)));
        LODE_TRY(lode_buffer_reserve(&step->lanes[i].prepared, prepared * sizeof(lode_landmark_query_t)));
        LODE_TRY(lode_buffer_reserve(&step->lanes[i].picks, picks * sizeof(uint32_t)));
        LODE_TRY(lode_buffer_reserve(&step->lanes[i].notes,
                                     (notes + LODE_NOTES_SLACK) * (sizeof(uint32_t) + sizeof(float))));
        step->lanes[i].notes_room = notes;
    }
    return LODE_OK;
}

/* -------------------------------------------------------------------- score */

/* The rows' queries of one head in a block's frame: the group's, or their mean. (rows · group, D) */
static void queries_of(const lode_step_state_t *step, const lode_span_t *span, const lode_seen_block_t *seen,
                       uint32_t head, float *q)
{
    uint32_t dim = step->cluster->geometry.head_dim, group = step->cluster->group;
    float rotated[LODE_MAX_GROUP * LODE_MAX_DIM];
    for (uint32_t r = 0; r < span->count; r++) {
        lode_rotate_queries(step, span->stream, seen, span->first + r, head, rotated);
        float *out = q + (size_t)r * span->group * dim;
        if (span->group == group) {
            memcpy(out, rotated, sizeof *out * group * dim);
            continue;
        }
        for (uint32_t i = 0; i < dim; i++) {
            float sum = 0;
            for (uint32_t g = 0; g < group; g++)
                sum += rotated[g * dim + i];
            out[i] = sum / (float)group;
        }
    }
}

static const float *transform_of(const lode_step_state_t *step, const struct lode_block *block, uint32_t head)
{
    return step->cluster->transform && block->info.transform
               ? lode_transform_queries(step->cluster->transform, step->layer, block->info.kv_head_begin + head)
               : NULL;
}

/* The spans of its bundle that a slice is of. */
static uint32_t spans_of(const lode_bundle_t *bundle, const lode_slice_t *slice, uint32_t *first)
{
    bool shared = slice->span == LODE_SLICE_SHARED;
    *first = shared ? bundle->first : slice->span;
    return shared ? bundle->count : 1;
}

static const lode_span_t *first_span(const lode_step_state_t *step, const lode_slice_t *slice)
{
    uint32_t first;
    spans_of(bundle_of(step, slice->item), slice, &first);
    return span_at(step, first);
}

/* A block of the view of a slice's spans. */
static const lode_step_block_t *block_of(const lode_step_state_t *step, const lode_slice_t *slice, uint32_t piece)
{
    return lode_step_block_at(step, lode_seen_at(step, first_span(step, slice)->stream, piece)->index);
}

static const float *mean_of(const lode_step_state_t *step, const lode_step_block_t *block, uint32_t head)
{
    return block->place.mean ? block->place.mean + (size_t)head * step->cluster->geometry.head_dim : NULL;
}

/* Mean keys of short blocks lie far apart: ask for one that will be wanted soon. */
static void ask_for_mean(const lode_step_state_t *step, const lode_slice_t *slice, uint32_t piece)
{
    enum { LINE = 64 };
    if (piece >= first_span(step, slice)->stream->in->view->count)
        return;
    size_t bytes = step->cluster->geometry.head_dim * sizeof(float);
    const uint8_t *mean =
        (const uint8_t *)mean_of(step, block_of(step, slice, piece), slice->item % step->cluster->heads);
    for (size_t at = 0; mean && at < bytes; at += LINE)
        __builtin_prefetch(mean + at);
}

/* Make the queries of a slice's spans ready for its block. */
static void prepare_queries(lode_step_state_t *step, const lode_slice_t *slice, lode_landmark_query_t *queries)
{
    float q[LODE_MAX_GROUP * LODE_MAX_DIM];
    uint32_t first, count = spans_of(bundle_of(step, slice->item), slice, &first), rows = 0;
    uint32_t head = slice->item % step->cluster->heads, dim = step->cluster->geometry.head_dim;
    const lode_step_block_t *block = block_of(step, slice, slice->piece);
    ask_for_mean(step, slice, slice->piece + 4);
    for (uint32_t n = first; n < first + count; n++) {
        const lode_span_t *span = span_at(step, n);
        queries_of(step, span, lode_seen_at(step, span->stream, slice->piece), head, q + (size_t)rows * dim);
        rows += score_rows(span);
    }
    lode_queries_prepare(step->cluster->ops, &block->landmark, dim, mean_of(step, block, head),
                         transform_of(step, block->block, head), q, rows, queries);
}

/* Make the lane's queries ready for n slices, if they are not. */
static void prepare_slices(lode_step_state_t *step, const lode_slice_t *slices, uint32_t n, lode_lane_t *lane)
{
    uint64_t begin = lode_now_ns();
    if (n == 1 && lane->prepared_item == slices->item && lane->prepared_span == slices->span &&
        lane->prepared_piece == slices->piece)
        return;
    for (uint32_t i = 0; i < n; i++)
        prepare_queries(step, &slices[i],
                        (lode_landmark_query_t *)lane->prepared.data + i * bundle_of(step, slices->item)->rows);
    lane->prepared_item = slices->item;
    lane->prepared_span = slices->span;
    lane->prepared_piece = slices->piece;
    lane->stage_ns[LODE_STAGE_ROTATE] += lode_now_ns() - begin;
}

/* Landmarks of a slice. */
static uint64_t slice_length(const lode_step_state_t *step, const lode_span_t *span, const lode_slice_t *slice)
{
    uint64_t left = pieces_of(step, span)[slice->piece].landmarks - slice->begin;
    return left < LODE_SLICE ? left : LODE_SLICE;
}

/* Score a slice by queries that are ready for it; most lie where their block's first ones do. */
static void score_slice(lode_step_state_t *step, const lode_slice_t *slice, const lode_landmark_query_t *queries,
                        const lode_lane_t *owner, lode_lane_t *lane)
{
    uint32_t first, count = spans_of(bundle_of(step, slice->item), slice, &first), rows = 0;
    uint32_t head = slice->item % step->cluster->heads;
    const lode_span_t *span = span_at(step, first);
    const lode_step_block_t *block = block_of(step, slice, slice->piece);
    const lode_landmark_place_t *place = &block->place;
    uint64_t length = slice_length(step, span, slice), end = slice->begin + length;
    float *scores = (float *)owner->scores.data + slice->place + slice->begin + span->score_row * span->stride;
    for (uint32_t n = first; n < first + count; n++)
        rows += score_rows(span_at(step, n));
    if (slice->begin == 0 && end <= place->landmarks)
        step->cluster->ops->landmark_score(&block->landmark, step->cluster->geometry.head_dim,
                                           place->tiles + head * place->head_bytes, length, queries, rows, scores,
                                           span->stride, lane->tables.data);
    else
        lode_queries_score(step->cluster->store, block->block->slot, step->layer, head, slice->begin, end, queries,
                           rows, scores, span->stride, lane->tables.data);
}

/* The log-sum-exp of each row of a slice. */
static void sum_slice(lode_step_state_t *step, const lode_slice_t *slice, const lode_lane_t *owner)
{
    const lode_bundle_t *bundle = bundle_of(step, slice->item);
    uint32_t first, count = spans_of(bundle, slice, &first);
    const lode_span_t *span = span_at(step, first);
    uint64_t length = slice_length(step, span, slice);
    const float *scores = (float *)owner->scores.data + slice->place + slice->begin;
    float *sums = (float *)owner->sums.data + (size_t)slice->number * bundle->rows;
    for (; count; count--, span++)
        for (uint32_t row = span->score_row; span->group > 1 && row < span->score_row + score_rows(span); row++)
            sums[row] = step->cluster->ops->logsumexp(scores + row * span->stride, length);
}

/* Score n slices of one item and, while their scores are in cache, sum their exponentials. Both are the owner's. */
static void score_slices(lode_step_state_t *step, const lode_slice_t *slices, uint32_t n, const lode_lane_t *owner,
                         lode_lane_t *lane)
{
    const lode_landmark_query_t *queries = lane->prepared.data;
    uint32_t rows = bundle_of(step, slices->item)->rows;
    prepare_slices(step, slices, n, lane);
    uint64_t begin = lode_now_ns();
    for (uint32_t i = 0; i < n; i++)
        score_slice(step, &slices[i], queries + (size_t)i * rows, owner, lane);
    uint64_t scored = lode_now_ns();
    for (uint32_t i = 0; i < n; i++)
        sum_slice(step, &slices[i], owner);
    lane->stage_ns[LODE_STAGE_SCORE] += scored - begin;
    lane->stage_ns[LODE_STAGE_SELECT] += lode_now_ns() - scored;
}

/* Go on to the slice after this one: what all spans begin with, then what each has of its own. */
static bool next_slice(const lode_step_state_t *step, const lode_bundle_t *bundle, lode_slice_t *slice)
{
    slice->begin += LODE_SLICE;
    slice->number++;
    for (;;) {
        bool shared = slice->span == LODE_SLICE_SHARED;
        const lode_span_t *span = span_at(step, shared ? bundle->first : slice->span);
        const lode_piece_t *pieces = pieces_of(step, span);
        uint32_t end = shared ? bundle->shared : span->stream->in->view->count;
        while (slice->piece < end && slice->begin >= pieces[slice->piece].landmarks) {
            slice->place += pieces[slice->piece++].landmarks;
            slice->begin = 0;
        }
        if (slice->piece < end)
            return true;
        if (slice->span == bundle->first + bundle->count - 1)
            return false;
        *slice = (lode_slice_t){.item = slice->item,
                                .span = shared ? bundle->first : slice->span + 1,
                                .piece = bundle->shared,
                                .place = bundle->landmarks,
                                .number = bundle->shared_slices};
    }
}

/* Before the first slice: next_slice() comes to it. */
static lode_slice_t no_slice(uint32_t item)
{
    return (lode_slice_t){
        .item = item, .span = LODE_SLICE_SHARED, .begin = (uint64_t)0 - LODE_SLICE, .number = UINT32_MAX};
}

/* ------------------------------------------------------------------- select */

static uint64_t digest_of(const uint32_t *tokens, uint64_t count)
{
    uint64_t h = 0;
    for (uint64_t i = 0; i < count; i++)
        h = lode_mix(h, tokens[i]);
    return h;
}

static lode_notes_t notes_of(const lode_lane_t *lane, float guess)
{
    float *score = lane->notes.data;
    return (lode_notes_t){.bound = guess,
                          .next = guess,
                          .room = lane->notes_room,
                          .score = score,
                          .index = (uint32_t *)(score + lane->notes_room + LODE_NOTES_SLACK)};
}

/* What each score row is lowered by before the group's greatest counts, from the sums of its slices. */
static void join_sums(const lode_step_state_t *step, const lode_bundle_t *bundle, lode_lane_t *owner)
{
    uint64_t begin = lode_now_ns();
    for (uint32_t n = bundle->first; n < bundle->first + bundle->count; n++) {
        const lode_span_t *span = span_at(step, n);
        uint32_t slices = span->group > 1 ? all_slices(step, bundle, span) : 0;
        for (uint32_t row = span->score_row; span->group > 1 && row < span->score_row + score_rows(span); row++) {
            float sum = lode_sums_join((const float *)owner->sums.data + row, bundle->rows, slices);
            owner->shifts[row] = isfinite(sum) ? sum : 0; /* a score overflowed: as lode_choose() has it */
        }
    }
    owner->stage_ns[LODE_STAGE_SELECT] += lode_now_ns() - begin;
}

/* Choose for one row of a span whose scores and shifts the owner has; @p combined: each group's greatest already. */
static void select_row(lode_step_state_t *step, const lode_span_t *span, uint32_t row, uint32_t head, bool combined,
                       const lode_lane_t *owner, lode_lane_t *lane)
{
    uint64_t begin = lode_now_ns();
    lode_chosen_t *chosen = lode_chosen_at(step, span->stream->first_row + row, head);
    lode_choice_t choice = choice_of(step, span, row);
    const lode_view_h view = span->stream->in->view;
    uint32_t first = span->score_row + (row - span->first) * span->group;
    float *scores = (float *)owner->scores.data + first * span->stride;
    choice.group = combined ? 1 : span->group;
    choice.shift = owner->shifts + first;
    /* Rows and steps at once may share a guess: any will do, it decides the time and never the choice. */
    float guess, *kept = view->guesses + (size_t)step->layer * step->cluster->heads + head;
    __atomic_load(kept, &guess, __ATOMIC_RELAXED);
    lode_notes_t notes = notes_of(lane, guess);
    choice.notes = &notes;
    uint32_t *tokens = (uint32_t *)step->tokens.data + chosen->start;
    chosen->count = lode_choose(step->cluster->ops, &choice, scores, span->stride, lane->picks.data, tokens);
    __atomic_store(kept, &notes.next, __ATOMIC_RELAXED);
    chosen->digest = digest_of(tokens, chosen->count);
    lane->stage_ns[LODE_STAGE_SELECT] += lode_now_ns() - begin;
}

/* ---------------------------------------------------------------- by the index */

static void choose_by_index(lode_step_state_t *step, const lode_span_t *span, uint32_t head, lode_lane_t *lane)
{
    size_t floats = (size_t)span->group * step->cluster->geometry.head_dim;
    lode_index_part_t *parts = parts_of(step, span, lane);
    float *q = lane->index_queries.data;
    uint64_t begin = lode_now_ns();
    for (uint32_t i = 0; i < span->stream->in->view->count; i++, q += floats) {
        const lode_seen_block_t *seen = lode_seen_at(step, span->stream, i);
        queries_of(step, span, seen, head, q);
        parts[i].q = q;
        parts[i].transform = transform_of(step, lode_step_block_at(step, seen->index)->block, head);
    }
    uint64_t rotated = lode_now_ns();
    lode_chosen_t *chosen = lode_chosen_at(step, span->stream->first_row + span->first, head);
    lode_choice_t choice = choice_of(step, span, span->first);
    uint32_t *tokens = (uint32_t *)step->tokens.data + chosen->start;
    chosen->count = lode_index_choose(step->cluster->store, step->layer, head, &choice, parts, &span->plan,
                                      lane->index_work.data, tokens);
    chosen->digest = digest_of(tokens, chosen->count);
    lane->stage_ns[LODE_STAGE_ROTATE] += rotated - begin;
    lane->stage_ns[LODE_STAGE_SCORE] += lode_now_ns() - rotated;
}

/* ------------------------------------------------------------- whole and cut */

/* Score all slices of a (bundle, head), those of short blocks some at a time. */
static void score_whole(lode_step_state_t *step, const lode_bundle_t *bundle, uint32_t item, lode_lane_t *lane)
{
    lode_slice_t slice = no_slice(item), some[LODE_TOGETHER];
    bool more = next_slice(step, bundle, &slice);
    while (more) {
        uint32_t n = 0;
        uint64_t landmarks = slice_length(step, first_span(step, &slice), &slice);
        do {
            some[n++] = slice;
            more = next_slice(step, bundle, &slice);
            landmarks += more ? slice_length(step, first_span(step, &slice), &slice) : 0;
        } while (more && n < LODE_TOGETHER && landmarks <= LODE_SLICE);
        score_slices(step, some, n, lane, lane);
    }
}

/* One thread scores all of a (bundle, head), and selects from it while it has the scores at hand. */
static void choose_whole(lode_step_state_t *step, void *context, uint32_t item, lode_lane_t *lane)
{
    const lode_bundle_t *bundle = bundle_of(step, item);
    uint32_t head = item % step->cluster->heads;
    (void)context;
    if (span_at(step, bundle->first)->indexed) {
        choose_by_index(step, span_at(step, bundle->first), head, lane);
        return;
    }
    score_whole(step, bundle, item, lane);
    join_sums(step, bundle, lane);
    for (uint32_t n = bundle->first; n < bundle->first + bundle->count; n++) {
        const lode_span_t *span = span_at(step, n);
        for (uint32_t row = span->first; row < span->first + span->count; row++)
            select_row(step, span, row, head, false, lane, lane);
    }
}

/* Fewer (bundle, head) than threads: all threads score slices of them, then select row by row. */
typedef struct cut {
    uint32_t first, count; /* items */
    uint32_t slices, rows;
} cut_t;

static uint32_t rows_of(const lode_step_state_t *step, const lode_bundle_t *bundle)
{
    uint32_t rows = 0;
    for (uint32_t n = bundle->first; n < bundle->first + bundle->count; n++)
        rows += span_at(step, n)->count;
    return rows;
}

static lode_status_t cut_items(lode_step_state_t *step, uint32_t first, uint32_t items, cut_t *cut)
{
    *cut = (cut_t){.first = first, .count = items - first};
    for (uint32_t item = first; item < items; item++) {
        const lode_bundle_t *bundle = bundle_of(step, item);
        bool indexed = span_at(step, bundle->first)->indexed;
        lode_slice_t slice = no_slice(item);
        while (!indexed && next_slice(step, bundle, &slice)) {
            LODE_TRY(lode_buffer_extend(&step->slices, (cut->slices + 1) * sizeof slice, cut->slices * sizeof slice));
            ((lode_slice_t *)step->slices.data)[cut->slices++] = slice;
        }
        cut->rows += rows_of(step, bundle);
    }
    for (uint32_t i = 0; i < step->lane_count; i++)
        step->lanes[i].prepared_item = UINT32_MAX;
    return LODE_OK;
}

static void score_cut(lode_step_state_t *step, void *context, uint32_t item, lode_lane_t *lane)
{
    const cut_t *cut = context;
    const lode_slice_t *slice = (const lode_slice_t *)step->slices.data + item;
    score_slices(step, slice, 1, &step->lanes[slice->item - cut->first], lane);
}

static void join_cut(lode_step_state_t *step, void *context, uint32_t item, lode_lane_t *lane)
{
    const cut_t *cut = context;
    const lode_bundle_t *bundle = bundle_of(step, cut->first + item);
    (void)lane;
    if (!span_at(step, bundle->first)->indexed)
        join_sums(step, bundle, &step->lanes[item]);
}

/* The groups' greatest of a slice, so that a row's choice begins with all of them. */
static void combine_cut(lode_step_state_t *step, void *context, uint32_t item, lode_lane_t *lane)
{
    const cut_t *cut = context;
    uint64_t begin = lode_now_ns();
    const lode_slice_t *slice = (const lode_slice_t *)step->slices.data + item;
    const lode_lane_t *owner = &step->lanes[slice->item - cut->first];
    uint32_t first, count = spans_of(bundle_of(step, slice->item), slice, &first);
    float *scores = (float *)owner->scores.data + slice->place + slice->begin;
    for (const lode_span_t *span = span_at(step, first); count; count--, span++)
        for (uint32_t row = 0; span->group > 1 && row < span->count; row++) {
            uint32_t at = span->score_row + row * span->group;
            float *x = scores + at * span->stride;
            step->cluster->ops->group_max(x, span->stride, owner->shifts + at, span->group, x,
                                          slice_length(step, span, slice));
        }
    lane->stage_ns[LODE_STAGE_SELECT] += lode_now_ns() - begin;
}

static void select_cut(lode_step_state_t *step, void *context, uint32_t row, lode_lane_t *lane)
{
    const cut_t *cut = context;
    uint32_t item = cut->first, n;
    for (; row >= rows_of(step, bundle_of(step, item)); item++)
        row -= rows_of(step, bundle_of(step, item));
    for (n = bundle_of(step, item)->first; row >= span_at(step, n)->count; n++)
        row -= span_at(step, n)->count;
    const lode_span_t *span = span_at(step, n);
    if (span->indexed)
        choose_by_index(step, span, item % step->cluster->heads, lane);
    else
        select_row(step, span, span->first + row, item % step->cluster->heads, true, &step->lanes[item - cut->first],
                   lane);
}

/* Bytes of landmarks that all bundles and heads read. */
static uint64_t bytes_to_score(const lode_step_state_t *step)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < step->bundle_count; i++) {
        const lode_bundle_t *bundle = (const lode_bundle_t *)step->bundles.data + i;
        for (uint32_t n = bundle->first; n < bundle->first + bundle->count; n++)
            bytes += (span_at(step, n)->landmarks - (n > bundle->first ? bundle->landmarks : 0)) *
                     lode_landmark_row_bytes(&span_at(step, n)->stream->in->view->blocks[0]->info.landmark,
                                             step->cluster->geometry.head_dim);
    }
    return bytes * step->cluster->heads;
}

static lode_status_t choose_all(lode_step_state_t *step)
{
    LODE_TRY(lay_out_bundles(step));
    uint32_t items = step->bundle_count * step->cluster->heads, whole = lode_step_whole_items(step, items);
    uint64_t bytes = bytes_to_score(step);
    cut_t cut;
    LODE_TRY(reserve_lanes(step));
    LODE_TRY(reserve_index(step));
    LODE_TRY(cut_items(step, whole, items, &cut));
    lode_step_share(step, whole, bytes, choose_whole, NULL);
    lode_step_share(step, cut.slices, bytes, score_cut, &cut);
    lode_step_share(step, cut.count, bytes, join_cut, &cut);
    lode_step_share(step, cut.slices, bytes, combine_cut, &cut);
    lode_step_share(step, cut.rows, bytes, select_cut, &cut);
    return LODE_OK;
}

/* ------------------------------------------------------------------- gather */

static uint64_t low_bits(uint64_t n)
{
    return n >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << n) - 1;
}

static void want_all(lode_step_state_t *step, const lode_step_stream_t *stream, uint32_t row, uint32_t head)
{
    uint64_t *wanted = step->wanted.data;
    for (uint32_t i = 0; i < stream->in->view->count; i++) {
        const lode_step_block_t *block = lode_step_block_at(step, lode_seen_at(step, stream, i)->index);
        uint64_t tokens = visible_at(step, stream, i, row);
        for (uint32_t page = 0; (uint64_t)page * LODE_PAGE_TOKENS < tokens; page++)
            wanted[lode_mask_at(step, block, page, head)] |= low_bits(tokens - (uint64_t)page * LODE_PAGE_TOKENS);
    }
}

static void want_chosen(lode_step_state_t *step, const lode_step_stream_t *stream, const lode_chosen_t *chosen,
                        uint32_t head)
{
    uint64_t *wanted = step->wanted.data;
    const uint32_t *tokens = (const uint32_t *)step->tokens.data + chosen->start, *end = tokens + chosen->count;
    for (uint32_t i = 0; i < stream->in->view->count; i++) {
        const lode_seen_block_t *seen = lode_seen_at(step, stream, i);
        const lode_step_block_t *block = lode_step_block_at(step, seen->index);
        for (; tokens < end && *tokens < seen->first_token + block->tokens; tokens++) {
            uint64_t token = *tokens - seen->first_token;
            wanted[lode_mask_at(step, block, (uint32_t)(token / LODE_PAGE_TOKENS), head)] |=
                (uint64_t)1 << token % LODE_PAGE_TOKENS;
        }
    }
}

static void gather_wanted(lode_step_state_t *step)
{
    uint64_t begin = lode_now_ns(), digest = 0;
    if (step->masks) /* no page yet: no memory either */
        memset(step->wanted.data, 0, step->masks * sizeof(uint64_t));
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        for (uint32_t row = 0; row < stream->in->tokens; row++)
            for (uint32_t head = 0; head < step->cluster->heads; head++) {
                const lode_chosen_t *chosen = lode_chosen_at(step, stream->first_row + row, head);
                digest = lode_mix(lode_mix(digest, chosen->count * 2 + chosen->all), chosen->digest);
                if (chosen->all)
                    want_all(step, stream, row, head);
                else
                    want_chosen(step, stream, chosen, head);
            }
    }
    step->stats.selected_digest = digest;
    const uint64_t *wanted = step->wanted.data;
    for (size_t i = 0; i < step->masks; i++)
        step->stats.records_wanted += (uint64_t)__builtin_popcountll(wanted[i]);
    step->stats.stage_ns[LODE_STAGE_SELECT] += lode_now_ns() - begin;
}

lode_status_t lode_step_choose(lode_step_state_t *step)
{
    uint64_t begin = lode_now_ns();
    LODE_TRY(lode_step_lay_out_spans(step));
    step->stats.stage_ns[LODE_STAGE_SELECT] += lode_now_ns() - begin;
    if (step->span_count)
        LODE_TRY(choose_all(step));
    gather_wanted(step);
    return LODE_OK;
}
