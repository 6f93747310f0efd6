/* SPDX-License-Identifier: Apache-2.0 */
/* Scoring a view's landmarks and choosing tokens by them, row by row, head by head. */
#include <string.h>

#include "attend/step.h"

void lode_rotate_queries(const lode_step_state_t *step, const lode_step_stream_t *stream, const lode_seen_block_t *seen,
                         uint32_t row, uint32_t head, float *q)
{
    lode_cluster_h cluster = step->cluster;
    uint32_t dim = cluster->geometry.head_dim, group = cluster->group;
    memcpy(q, stream->q + ((size_t)row * cluster->query_heads + (size_t)head * group) * dim, sizeof *q * group * dim);
    if (seen->angles == SIZE_MAX)
        return;
    const float *cosine = (const float *)step->angles.data + seen->angles;
    cluster->ops->rotate(q, group, dim, cosine, cosine + dim / 2);
}

/* ------------------------------------------------------------- what is seen */

/* Rows that see the same tokens in pages and can be scored in one scan. */
typedef struct span {
    const lode_step_stream_t *stream;
    uint32_t first, count; /* rows of the stream */
    uint32_t group;        /* score rows a row */
    uint64_t landmarks;    /* of all pieces */
    size_t stride;         /* floats between score rows */
    lode_choice_t choice;
} span_t;

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
static uint64_t lay_out_pieces(lode_step_state_t *step, span_t *span)
{
    lode_piece_t *pieces = step->pieces.data;
    uint64_t total = 0;
    span->landmarks = 0;
    for (uint32_t i = 0; i < span->stream->in->view->count; i++) {
        const lode_seen_block_t *seen = lode_seen_at(step, span->stream, i);
        const lode_landmark_spec_t *spec = &lode_step_block_at(step, seen->index)->block->info.landmark;
        uint64_t tokens = visible_at(step, span->stream, i, span->first);
        pieces[i] = (lode_piece_t){tokens, lode_landmarks_of(spec, tokens), seen->first_token};
        total += tokens;
        span->landmarks += pieces[i].landmarks;
    }
    span->stride = (span->landmarks + 15) & ~(size_t)15;
    return total;
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

/* Budget, sinks and window of a row; false if it takes everything. */
static bool budget_of(lode_step_state_t *step, span_t *span, uint64_t total, uint32_t row)
{
    const lode_view_h view = span->stream->in->view;
    const lode_policy_t *policy = &view->policy;
    uint64_t budget =
        policy->budget_tokens ? policy->budget_tokens : (uint64_t)ceil(policy->budget_share * (double)total);
    if (policy->select == LODE_SELECT_DENSE || budget > total)
        budget = total;
    uint64_t in_tails = visible_in_tails(step, span->stream, row);
    uint64_t window = policy->window > in_tails ? policy->window - in_tails : 0;
    span->choice = (lode_choice_t){.pieces = step->pieces.data,
                                   .piece_count = view->count,
                                   .chunk = view->chunk,
                                   .group = span->group,
                                   .merge = policy->merge,
                                   .budget = budget,
                                   .sinks = policy->sinks < total ? policy->sinks : total,
                                   .window_begin = window_begin(step->pieces.data, view->count, window)};
    if (total >= step->stats.visible_tokens) {
        step->stats.visible_tokens = total;
        step->stats.budget_tokens = budget;
    }
    return budget < total;
}

/* -------------------------------------------------------------------- score */

/* The rows' queries of one head in a block's frame: the group's, or their mean. (rows · group, D) */
static void queries_of(const lode_step_state_t *step, const span_t *span, const lode_seen_block_t *seen, uint32_t head,
                       float *q)
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

static void score_head(lode_step_state_t *step, const span_t *span, uint32_t head)
{
    float q[LODE_MAX_GROUP * LODE_MAX_DIM];
    float *scores = step->scores.data;
    const lode_piece_t *pieces = step->pieces.data;
    for (uint32_t i = 0; i < span->stream->in->view->count; scores += pieces[i++].landmarks) {
        if (pieces[i].tokens == 0)
            continue;
        const lode_seen_block_t *seen = lode_seen_at(step, span->stream, i);
        uint64_t begin = lode_now_ns();
        queries_of(step, span, seen, head, q);
        uint64_t rotated = lode_now_ns();
        const struct lode_block *block = lode_step_block_at(step, seen->index)->block;
        const float *transform = block->info.transform ? lode_transform_queries(step->cluster->transform, step->layer,
                                                                                block->info.kv_head_begin + head)
                                                       : NULL;
        lode_store_score(step->cluster->store, block->slot, step->layer, head, pieces[i].tokens, q,
                         span->count * span->group, transform, scores, span->stride, step->score_scratch.data);
        step->stats.stage_ns[LODE_STAGE_ROTATE] += rotated - begin;
        step->stats.stage_ns[LODE_STAGE_SCORE] += lode_now_ns() - rotated;
    }
}

/* ------------------------------------------------------------------- select */

static lode_status_t select_row(lode_step_state_t *step, span_t *span, uint32_t row, uint32_t head)
{
    uint64_t begin = lode_now_ns();
    lode_chosen_t *chosen = lode_chosen_at(step, span->stream->first_row + row, head);
    uint64_t room =
        span->choice.budget + span->choice.sinks + span->stream->in->view->policy.window + span->choice.chunk;
    LODE_TRY(lode_buffer_extend(&step->tokens, (step->token_count + room) * sizeof(uint32_t),
                                step->token_count * sizeof(uint32_t)));
    float *scores = (float *)step->scores.data + (size_t)(row - span->first) * span->group * span->stride;
    uint32_t *tokens = (uint32_t *)step->tokens.data + step->token_count;
    chosen->start = step->token_count;
    chosen->count =
        lode_choose(step->cluster->ops, &span->choice, scores, span->stride, step->choose_scratch.data, tokens);
    chosen->all = false;
    step->token_count += chosen->count;
    step->stats.stage_ns[LODE_STAGE_SELECT] += lode_now_ns() - begin;
    return LODE_OK;
}

static lode_status_t reserve_scores(lode_step_state_t *step, const span_t *span)
{
    const lode_view_h view = span->stream->in->view;
    uint32_t score_rows = span->count * span->group;
    size_t scratch = 0;
    for (uint32_t i = 0; i < view->count; i++) {
        size_t floats =
            lode_score_scratch_floats(&view->blocks[i]->info.landmark, step->cluster->geometry.head_dim, score_rows);
        scratch = floats > scratch ? floats : scratch;
    }
    LODE_TRY(lode_buffer_reserve(&step->score_scratch, scratch * sizeof(float)));
    LODE_TRY(lode_buffer_reserve(&step->choose_scratch, span->landmarks * sizeof(uint32_t)));
    return lode_buffer_reserve(&step->scores, (score_rows * span->stride + 16) * sizeof(float));
}

static lode_status_t choose_span(lode_step_state_t *step, span_t *span)
{
    uint64_t total = lay_out_pieces(step, span);
    bool sparse = budget_of(step, span, total, span->first);
    if (sparse)
        LODE_TRY(reserve_scores(step, span));
    for (uint32_t head = 0; head < step->cluster->heads; head++) {
        if (sparse)
            score_head(step, span, head);
        for (uint32_t r = span->first; r < span->first + span->count; r++) {
            if (!sparse) {
                *lode_chosen_at(step, span->stream->first_row + r, head) = (lode_chosen_t){.all = true, .count = total};
                continue;
            }
            budget_of(step, span, total, r); /* the window reaches further into the tail with each row */
            LODE_TRY(select_row(step, span, r, head));
        }
    }
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

static void digest(lode_step_state_t *step, const lode_chosen_t *chosen)
{
    const uint32_t *tokens = (const uint32_t *)step->tokens.data + chosen->start;
    uint64_t h = lode_mix(step->stats.selected_digest, chosen->count * 2 + chosen->all);
    if (!chosen->all)
        for (uint64_t i = 0; i < chosen->count; i++)
            h = lode_mix(h, tokens[i]);
    step->stats.selected_digest = h;
}

static void gather_wanted(lode_step_state_t *step)
{
    uint64_t begin = lode_now_ns();
    if (step->masks) /* no page yet: no memory either */
        memset(step->wanted.data, 0, step->masks * sizeof(uint64_t));
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        for (uint32_t row = 0; row < stream->in->tokens; row++)
            for (uint32_t head = 0; head < step->cluster->heads; head++) {
                const lode_chosen_t *chosen = lode_chosen_at(step, stream->first_row + row, head);
                digest(step, chosen);
                if (chosen->all)
                    want_all(step, stream, row, head);
                else
                    want_chosen(step, stream, chosen, head);
            }
    }
    const uint64_t *wanted = step->wanted.data;
    for (size_t i = 0; i < step->masks; i++)
        step->stats.records_wanted += (uint64_t)__builtin_popcountll(wanted[i]);
    step->stats.stage_ns[LODE_STAGE_SELECT] += lode_now_ns() - begin;
}

lode_status_t lode_step_choose(lode_step_state_t *step)
{
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        uint32_t group = stream->in->view->policy.merge == LODE_MERGE_MAX ? step->cluster->group : 1;
        uint32_t most = LODE_MAX_GROUP / group;
        LODE_TRY(lode_buffer_reserve(&step->pieces, stream->in->view->count * sizeof(lode_piece_t)));
        for (uint32_t row = 0; row < stream->in->tokens;) {
            span_t span = {.stream = stream, .first = row, .count = 1, .group = group};
            while (span.count < most && row + span.count < stream->in->tokens &&
                   same_visibility(step, stream, row, row + span.count))
                span.count++;
            LODE_TRY(choose_span(step, &span));
            row += span.count;
        }
    }
    gather_wanted(step);
    return LODE_OK;
}
