/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A step's layout as the arrays that kernels read: rows, parts, blocks; what is scored for whom; what rows choose from.
 * All lies in one ticket, to be copied at once. Blocks are put in the order of their storage formats, so that those of
 * one format have their masks and records in one piece.
 */
#include <assert.h>
#include <string.h>

#include "attend/device.h"

/* Scores of spans that are scored and chosen from at once; a single span may need more. */
static const size_t SCORES_BYTES = (size_t)512 << 20;

/* ------------------------------------------------------------------- blocks */

static lode_status_t order_blocks(lode_step_state_t *step, lode_gpu_plan_t *plan)
{
    LODE_TRY(lode_buffer_reserve(&plan->order, 2 * step->block_count * sizeof(uint32_t)));
    uint32_t *order = plan->order.data, *places = order + step->block_count, n = 0, masks = 0;
    if (step->masks > UINT32_MAX / 2)
        return lode_fail(LODE_ERR_UNSUPPORTED, "a step on a device over %zu pages and heads: at most %u are supported",
                         step->masks, UINT32_MAX / 2);
    for (int f = 0; f < LODE_GPU_FORMATS; f++) {
        lode_gpu_set_t *set = &plan->sets[f];
        *set = (lode_gpu_set_t){.first_block = n, .first_mask = masks};
        for (uint32_t b = 0; b < step->block_count; b++) {
            const lode_step_block_t *at = lode_step_block_at(step, b);
            if ((int)at->block->info.format != f)
                continue;
            order[n] = b;
            places[b] = n++;
            masks += at->pages * step->cluster->heads;
        }
        set->blocks = n - set->first_block;
        set->masks = masks - set->first_mask;
    }
    return LODE_OK;
}

static uint32_t place_of(const lode_step_state_t *step, uint32_t block)
{
    return ((const uint32_t *)step->cluster->gpu->plan.order.data)[step->block_count + block];
}

/* ------------------------------------------------------------------ choices */

typedef struct sizes {
    size_t queries, scans, choices, pieces, parts, tensors;
} sizes_t;

static const lode_span_t *span_at(const lode_step_state_t *step, uint32_t i)
{
    return (const lode_span_t *)step->spans.data + i;
}

static const lode_piece_t *pieces_of(const lode_step_state_t *step, const lode_span_t *span)
{
    return (const lode_piece_t *)step->pieces.data + span->first_piece;
}

static uint64_t up_to_4(uint64_t n)
{
    return (n + 3) & ~(uint64_t)3;
}

/* Floats from one score row of a span to the next. */
static uint64_t stride_of(const lode_step_state_t *step, const lode_span_t *span)
{
    uint64_t stride = 0;
    for (uint32_t i = 0; i < span->stream->in->view->count; i++)
        stride += up_to_4(pieces_of(step, span)[i].landmarks);
    return stride;
}

static uint64_t scores_of(const lode_step_state_t *step, const lode_span_t *span)
{
    return stride_of(step, span) * span->count * span->group * step->cluster->heads;
}

/*
 * How many tokens a row's choice comes to, which depends on no score. @return whether it is all that it sees: also
 * where sinks and window leave nothing to choose from.
 */
static bool count_choice(const lode_choice_t *choice, uint64_t *wanted, uint64_t *count)
{
    uint64_t visible = 0, contested = 0;
    for (uint32_t p = 0; p < choice->piece_count; p++) {
        lode_contest_t contest = lode_contest_of(choice, &choice->pieces[p]);
        visible += choice->pieces[p].tokens;
        contested += contest.end - contest.begin;
    }
    uint64_t forced = visible - contested;
    *wanted = choice->budget > forced ? choice->budget - forced : 0;
    *count = *wanted >= contested ? visible : forced + *wanted;
    return *wanted >= contested;
}

/* Every row's choice is known in number before it is made. */
static void settle_choices(lode_step_state_t *step)
{
    for (uint32_t s = 0; s < step->span_count; s++) {
        const lode_span_t *span = span_at(step, s);
        for (uint32_t row = span->first; row < span->first + span->count; row++) {
            lode_choice_t choice = lode_span_choice(step, span, row);
            uint64_t wanted, count;
            bool all = count_choice(&choice, &wanted, &count);
            for (uint32_t head = 0; head < step->cluster->heads; head++) {
                lode_chosen_t *chosen = lode_chosen_at(step, span->stream->first_row + row, head);
                chosen->count = count;
                chosen->all = all;
            }
        }
    }
}

/* Records that a set's rows can want at most, and what the longest row sees. */
static lode_status_t bound_records(lode_step_state_t *step, lode_gpu_plan_t *plan)
{
    uint64_t all = 0, records = 0;
    plan->most_tokens = 0;
    for (size_t i = 0; i < step->rows * step->cluster->heads; i++) {
        uint64_t count = ((const lode_chosen_t *)step->chosen.data)[i].count;
        all += count;
        plan->most_tokens = count > plan->most_tokens ? (uint32_t)count : plan->most_tokens;
    }
    for (int f = 0; f < LODE_GPU_FORMATS; f++) {
        lode_gpu_set_t *set = &plan->sets[f];
        uint64_t most = (uint64_t)set->masks * LODE_PAGE_TOKENS;
        most = all < most ? all : most;
        if (records + most > (LODE_DEVICE_STAGED >> 1))
            return lode_fail(LODE_ERR_UNSUPPORTED,
                             "a step on a device that may want %llu records: at most %u are "
                             "supported",
                             (unsigned long long)(records + most), LODE_DEVICE_STAGED >> 1);
        set->records_max = (uint32_t)most;
        set->first_record = (uint32_t)records;
        records += (most + 63) & ~(uint64_t)63;
    }
    plan->records_max = records;
    return LODE_OK;
}

/* Spans, in order, as many at once as the room for scores takes. */
static lode_status_t cut_batches(lode_step_state_t *step, lode_gpu_plan_t *plan)
{
    LODE_TRY(lode_buffer_reserve(&plan->batches, (step->span_count + 1) * sizeof(lode_gpu_batch_t)));
    lode_gpu_batch_t *batches = plan->batches.data;
    uint64_t floats = 0;
    plan->batch_count = 0;
    for (uint32_t s = 0; s < step->span_count; s++) {
        uint64_t own = scores_of(step, span_at(step, s));
        if (plan->batch_count == 0 || (floats + own) * sizeof(float) > SCORES_BYTES) {
            batches[plan->batch_count++] = (lode_gpu_batch_t){.first_span = s};
            floats = 0;
        }
        batches[plan->batch_count - 1].spans++;
        floats += own;
    }
    return LODE_OK;
}

static bool same_spec(const lode_landmark_spec_t *a, const lode_landmark_spec_t *b)
{
    return a->codec == b->codec && a->bits == b->bits && a->chunk == b->chunk;
}

/* The distinct kinds of landmarks among the step's blocks: each is scored in launches of its own. */
enum { SPECS_MOST = 64 }; /* more than there are */
static uint32_t find_specs(const lode_step_state_t *step, lode_landmark_spec_t specs[SPECS_MOST])
{
    uint32_t count = 0;
    for (uint32_t b = 0; b < step->block_count; b++) {
        const lode_landmark_spec_t *spec = &lode_step_block_at(step, b)->block->info.landmark;
        uint32_t i = 0;
        while (i < count && !same_spec(&specs[i], spec))
            i++;
        if (i == count && count < SPECS_MOST)
            specs[count++] = *spec;
    }
    return count;
}

static sizes_t count_tables(const lode_step_state_t *step)
{
    sizes_t n = {0};
    uint32_t heads = step->cluster->heads;
    for (uint32_t s = 0; s < step->span_count; s++) {
        const lode_span_t *span = span_at(step, s);
        size_t scans = (size_t)heads * span->stream->in->view->count;
        n.scans += scans;
        n.queries += scans * span->count * span->group;
        n.choices += (size_t)heads * span->count;
        n.pieces += (size_t)span->count * span->stream->in->view->count;
    }
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        n.parts += (size_t)stream->rows * stream->in->view->count;
        if (stream->q_memory == LODE_MEMORY_HOST)
            n.tensors += ((size_t)stream->rows * step->cluster->query_heads * step->cluster->geometry.head_dim *
                              lode_dtype_bytes(stream->in->dtype) +
                          63) &
                         ~(size_t)63;
    }
    return n;
}

static size_t angles_bytes(const lode_step_state_t *step)
{
    return (size_t)step->angles.count * step->cluster->geometry.head_dim * sizeof(float);
}

/* Bytes of the arrays that are copied to the device, each rounded up as a ticket does. */
static size_t table_bytes(const lode_step_state_t *step, const lode_gpu_plan_t *plan, const sizes_t *n)
{
    size_t rows = step->rows, formats = 0, arrays = 16 + 4 * (size_t)plan->batch_count * SPECS_MOST;
    for (int f = 0; f < LODE_GPU_FORMATS; f++)
        formats += plan->sets[f].blocks > 0;
    return n->queries * sizeof(lode_device_query_t) + n->scans * sizeof(lode_device_scan_t) +
           n->choices * sizeof(lode_device_choice_t) + n->pieces * sizeof(lode_device_piece_t) +
           n->parts * sizeof(lode_device_part_t) + rows * sizeof(lode_device_row_t) +
           rows * step->cluster->heads * sizeof(lode_device_chosen_t) +
           (formats + 1) * step->block_count * sizeof(lode_device_block_t) + angles_bytes(step) + arrays * 64;
}

/* Where a piece of the ticket will lie on the device. */
static const void *there(const lode_step_state_t *step, const void *place)
{
    const lode_gpu_t *gpu = step->cluster->gpu;
    return (const uint8_t *)gpu->tables.data + ((const uint8_t *)place - gpu->plan.ticket->data) -
           gpu->plan.table_begin;
}

static void *take(lode_step_state_t *step, size_t bytes)
{
    return lode_gpu_ticket_take(step->cluster->gpu->plan.ticket, bytes);
}

/* ------------------------------------------------------------------ scoring */

/* Queries of a (span, head) for one block: its rows' heads, or each row's mean. */
static uint32_t add_queries(const lode_step_state_t *step, const lode_span_t *span, const lode_seen_block_t *seen,
                            uint32_t head, lode_device_query_t *out)
{
    lode_cluster_h cluster = step->cluster;
    const struct lode_block *block = lode_step_block_at(step, seen->index)->block;
    const float *mean = lode_gpu_layer_of(step, block)->mean.data;
    uint32_t n = 0, count = span->group == cluster->group ? 1 : cluster->group;
    for (uint32_t r = 0; r < span->count; r++)
        for (uint32_t g = 0; g < span->group; g++)
            out[n++] = (lode_device_query_t){.q = (uint32_t)(span->stream->first_row + span->first + r) *
                                                      cluster->query_heads +
                                                  head * cluster->group + g,
                                             .count = count,
                                             .angles = seen->angles,
                                             .mean = mean ? mean + (size_t)head * cluster->geometry.head_dim : NULL,
                                             .transform = lode_gpu_transform_of(step, block, head)};
    return n;
}

/* What is added up while a launch's arrays are filled. */
typedef struct filling {
    lode_gpu_scans_t *scans;
    lode_device_query_t *queries;
    lode_device_scan_t *list;
    uint32_t tiles;
} filling_t;

static void add_scan(const lode_step_state_t *step, const lode_span_t *span, uint32_t piece, uint32_t head,
                     float *scores, filling_t *f)
{
    const lode_seen_block_t *seen = lode_seen_at(step, span->stream, piece);
    const lode_gpu_layer_t *layer = lode_gpu_layer_of(step, lode_step_block_at(step, seen->index)->block);
    uint32_t landmarks = (uint32_t)pieces_of(step, span)[piece].landmarks;
    lode_gpu_scans_t *scans = f->scans;
    f->list[scans->scan_count++] =
        (lode_device_scan_t){.tiles = (const uint8_t *)layer->tiles.data + head * layer->head_bytes,
                             .landmarks = landmarks,
                             .query = scans->query_count,
                             .rows = span->count * span->group,
                             .first_tile = f->tiles,
                             .scores = scores,
                             .stride = stride_of(step, span)};
    f->tiles += (landmarks + LODE_TILE - 1) / LODE_TILE;
    scans->query_count += add_queries(step, span, seen, head, f->queries + scans->query_count);
    scans->most = landmarks > scans->most ? landmarks : scans->most;
    scans->all += landmarks;
}

/* All pieces of a batch that have landmarks of one spec. */
static void fill_scans(lode_step_state_t *step, const lode_gpu_batch_t *batch, const lode_landmark_spec_t *spec,
                       filling_t *f)
{
    float *scores = step->cluster->gpu->scores.data;
    *f->scans = (lode_gpu_scans_t){.spec = *spec, .queries = there(step, f->queries), .scans = there(step, f->list)};
    for (uint32_t s = batch->first_span; s < batch->first_span + batch->spans; s++) {
        const lode_span_t *span = span_at(step, s);
        uint64_t stride = stride_of(step, span);
        for (uint32_t head = 0; head < step->cluster->heads; head++) {
            uint64_t place = 0;
            for (uint32_t i = 0; i < span->stream->in->view->count; i++) {
                const struct lode_block *block =
                    lode_step_block_at(step, lode_seen_at(step, span->stream, i)->index)->block;
                if (pieces_of(step, span)[i].landmarks && same_spec(&block->info.landmark, spec))
                    add_scan(step, span, i, head, scores + place, f);
                place += up_to_4(pieces_of(step, span)[i].landmarks);
            }
            scores += stride * span->count * span->group;
        }
    }
}

/* Upper bounds of one launch's arrays: those of its batch. */
static sizes_t count_batch(const lode_step_state_t *step, const lode_gpu_batch_t *batch,
                           const lode_landmark_spec_t *spec)
{
    sizes_t n = {0};
    for (uint32_t s = batch->first_span; s < batch->first_span + batch->spans; s++) {
        const lode_span_t *span = span_at(step, s);
        for (uint32_t i = 0; i < span->stream->in->view->count; i++) {
            uint32_t index = lode_seen_at(step, span->stream, i)->index;
            if (!same_spec(&lode_step_block_at(step, index)->block->info.landmark, spec))
                continue;
            n.scans += step->cluster->heads;
            n.queries += (size_t)step->cluster->heads * span->count * span->group;
        }
        n.choices += (size_t)step->cluster->heads * span->count;
        n.pieces += (size_t)span->count * span->stream->in->view->count;
    }
    return n;
}

/* ---------------------------------------------------------------- selecting */

/* The pieces of a row's choice that it sees something of. */
static uint32_t add_pieces(const lode_step_state_t *step, const lode_span_t *span, const lode_choice_t *choice,
                           lode_device_piece_t *out)
{
    uint64_t place = 0;
    uint32_t n = 0;
    (void)step, (void)span;
    for (uint32_t i = 0; i < choice->piece_count; i++) {
        const lode_piece_t *piece = &choice->pieces[i];
        lode_contest_t contest = lode_contest_of(choice, piece);
        if (piece->tokens)
            out[n++] = (lode_device_piece_t){.first_token = piece->first_token,
                                             .tokens = (uint32_t)piece->tokens,
                                             .landmarks = (uint32_t)piece->landmarks,
                                             .first_landmark = (uint32_t)place,
                                             .begin = (uint32_t)contest.begin,
                                             .end = (uint32_t)contest.end};
        place += up_to_4(piece->landmarks);
    }
    return n;
}

static void fill_choices(lode_step_state_t *step, lode_gpu_batch_t *batch, lode_device_choice_t *out,
                         lode_device_piece_t *pieces, uint32_t *piece_count)
{
    float *scores = step->cluster->gpu->scores.data;
    for (uint32_t s = batch->first_span; s < batch->first_span + batch->spans; s++) {
        const lode_span_t *span = span_at(step, s);
        const lode_view_h view = span->stream->in->view;
        uint64_t stride = stride_of(step, span), wanted, count;
        for (uint32_t r = 0; r < span->count; r++) {
            lode_choice_t choice = lode_span_choice(step, span, span->first + r);
            uint32_t first = *piece_count;
            if (count_choice(&choice, &wanted, &count))
                continue;
            *piece_count += add_pieces(step, span, &choice, pieces + first);
            for (uint32_t head = 0; head < step->cluster->heads; head++)
                out[batch->choice_count++] = (lode_device_choice_t){
                    .scores = scores + ((uint64_t)head * span->count + r) * span->group * stride,
                    .stride = stride,
                    .landmarks = (uint32_t)stride,
                    .group = span->group,
                    .first_piece = first,
                    .piece_count = *piece_count - first,
                    .chunk = view->chunk,
                    .wanted = (uint32_t)wanted,
                    .count = (uint32_t)count,
                    .tokens = lode_chosen_at(step, span->stream->first_row + span->first + r, head)->start,
                    .guess = view->gpu_guesses + (size_t)step->layer * step->cluster->heads + head};
        }
        scores += stride * span->count * span->group * step->cluster->heads;
        batch->most = stride > batch->most ? (uint32_t)stride : batch->most;
    }
}

/* Each batch's launches: by kind of landmark, then its choices. All choices share one array of pieces. */
static lode_status_t fill_batches(lode_step_state_t *step, const sizes_t *n)
{
    lode_gpu_plan_t *plan = &step->cluster->gpu->plan;
    lode_landmark_spec_t specs[SPECS_MOST];
    uint32_t spec_count = find_specs(step, specs), piece_count = 0, choices = 0;
    LODE_TRY(
        lode_buffer_reserve(&plan->scans, ((size_t)plan->batch_count * spec_count + 1) * sizeof(lode_gpu_scans_t)));
    lode_device_piece_t *pieces = take(step, n->pieces * sizeof *pieces);
    lode_gpu_scans_t *scans = plan->scans.data;
    plan->pieces = there(step, pieces);
    plan->scans_count = 0;
    for (uint32_t b = 0; b < plan->batch_count; b++) {
        lode_gpu_batch_t *batch = (lode_gpu_batch_t *)plan->batches.data + b;
        batch->first_scans = plan->scans_count;
        sizes_t own = {0};
        for (uint32_t i = 0; i < spec_count; i++) {
            own = count_batch(step, batch, &specs[i]);
            filling_t f = {.scans = &scans[plan->scans_count]};
            f.queries = take(step, own.queries * sizeof *f.queries);
            f.list = take(step, own.scans * sizeof *f.list);
            fill_scans(step, batch, &specs[i], &f);
            plan->scans_count += f.scans->scan_count > 0;
        }
        batch->scans = plan->scans_count - batch->first_scans;
        lode_device_choice_t *list = take(step, own.choices * sizeof *list);
        batch->choices = there(step, list);
        batch->first_choice = choices;
        fill_choices(step, batch, list, pieces, &piece_count);
        choices += batch->choice_count;
    }
    return LODE_OK;
}

/* ---------------------------------------------------------- rows and blocks */

static lode_device_part_t part_of(const lode_step_state_t *step, const lode_step_stream_t *stream,
                                  const lode_seen_block_t *seen, uint32_t row)
{
    const lode_step_block_t *at = lode_step_block_at(step, seen->index);
    const lode_gpu_layer_t *layer = lode_gpu_layer_of(step, at->block);
    const lode_tail_t *tail = at->block->tails ? &at->block->tails[step->layer] : NULL;
    int64_t position = stream->position + row;
    uint64_t in_tail = 0;
    if (tail && tail->tokens)
        in_tail = lode_visible(seen, tail->first + tail->tokens, position) - lode_visible(seen, tail->first, position);
    return (lode_device_part_t){.first_token = seen->first_token,
                                .block = place_of(step, seen->index),
                                .visible = (uint32_t)lode_visible(seen, at->tokens, position),
                                .angles = seen->angles,
                                .tail_tokens = (uint32_t)in_tail,
                                .tail = in_tail ? layer->tail.data : NULL};
}

static void fill_rows(lode_step_state_t *step, const sizes_t *n)
{
    lode_gpu_plan_t *plan = &step->cluster->gpu->plan;
    lode_device_row_t *rows = take(step, step->rows * sizeof *rows);
    lode_device_part_t *parts = take(step, n->parts * sizeof *parts);
    uint32_t used = 0;
    plan->rows = there(step, rows);
    plan->parts = there(step, parts);
    plan->most_tail = 0;
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        for (uint32_t row = 0; row < stream->rows; row++) {
            uint32_t count = stream->in->view->count, in_tails = 0;
            rows[stream->first_row + row] = (lode_device_row_t){used, count};
            for (uint32_t i = 0; i < count; i++) {
                parts[used] = part_of(step, stream, lode_seen_at(step, stream, i), row);
                in_tails += parts[used++].tail_tokens;
            }
            plan->most_tail = in_tails > plan->most_tail ? in_tails : plan->most_tail;
        }
    }
}

static void fill_chosen(lode_step_state_t *step)
{
    lode_gpu_plan_t *plan = &step->cluster->gpu->plan;
    size_t n = step->rows * step->cluster->heads;
    lode_device_chosen_t *out = take(step, n * sizeof *out);
    const lode_chosen_t *chosen = step->chosen.data;
    for (size_t i = 0; i < n; i++)
        out[i] = (lode_device_chosen_t){chosen[i].all ? UINT64_MAX : chosen[i].start, (uint32_t)chosen[i].count};
    plan->chosen = there(step, out);
}

/* The blocks in the device's order, their masks counted from @p first_mask of the step's. */
static const lode_device_block_t *fill_blocks(lode_step_state_t *step, uint32_t first_mask)
{
    lode_gpu_plan_t *plan = &step->cluster->gpu->plan;
    lode_device_block_t *out = take(step, step->block_count * sizeof *out);
    uint32_t masks = 0;
    for (uint32_t i = 0; i < step->block_count; i++) {
        const lode_step_block_t *at = lode_gpu_block_at(step, plan, i);
        out[i] = (lode_device_block_t){.id = at->block->info.id,
                                       .first_mask = masks - first_mask,
                                       .pages = at->pages,
                                       .format = at->block->info.format,
                                       .held = lode_gpu_layer_of(step, at->block)->held.data};
        masks += at->pages * step->cluster->heads;
    }
    return there(step, out);
}

static void fill_all_blocks(lode_step_state_t *step)
{
    lode_gpu_plan_t *plan = &step->cluster->gpu->plan;
    plan->blocks = fill_blocks(step, 0);
    for (int f = 0; f < LODE_GPU_FORMATS; f++)
        if (plan->sets[f].blocks)
            plan->sets[f].table = plan->sets[f].first_mask ? fill_blocks(step, plan->sets[f].first_mask) : plan->blocks;
}

static void fill_angles(lode_step_state_t *step)
{
    size_t bytes = angles_bytes(step);
    void *angles = take(step, bytes);
    if (bytes)
        memcpy(angles, step->angles.table.data, bytes);
    step->cluster->gpu->plan.angles = there(step, angles);
}

/* ------------------------------------------------------------ working memory */

static lode_status_t reserve_choosing(lode_step_state_t *step, const sizes_t *n)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    uint32_t dim = step->cluster->geometry.head_dim;
    size_t scores = 0, scratch = 0, prepared = 0;
    for (uint32_t b = 0; b < plan->batch_count; b++) {
        const lode_gpu_batch_t *batch = (const lode_gpu_batch_t *)plan->batches.data + b;
        size_t floats = 0, rows = 0, need;
        uint64_t most = 0;
        for (uint32_t s = batch->first_span; s < batch->first_span + batch->spans; s++) {
            const lode_span_t *span = span_at(step, s);
            floats += scores_of(step, span);
            rows += (size_t)span->count * step->cluster->heads;
            most = stride_of(step, span) > most ? stride_of(step, span) : most;
        }
        need = gpu->ops->select_scratch((uint32_t)rows, (uint32_t)most);
        scores = floats > scores ? floats : scores;
        scratch = need > scratch ? need : scratch;
    }
    for (uint32_t b = 0; b < step->block_count; b++) {
        size_t one = gpu->ops->query_bytes(&lode_step_block_at(step, b)->block->info.landmark, dim);
        prepared = one > prepared ? one : prepared;
    }
    LODE_TRY(lode_gpu_reserve(gpu, "scores", &gpu->scores, scores * sizeof(float), 0));
    LODE_TRY(lode_gpu_reserve(gpu, "selection", &gpu->select_scratch, scratch, 0));
    LODE_TRY(lode_gpu_reserve(gpu, "prepared queries", &gpu->prepared, prepared * n->queries, 0));
    LODE_TRY(lode_gpu_reserve(gpu, "chosen tokens", &gpu->tokens, (step->token_count + 4) * sizeof(uint32_t), 0));
    return lode_gpu_reserve(gpu, "chosen counts", &gpu->counts, (n->choices + 1) * sizeof(uint32_t), 0);
}

static lode_status_t reserve_records(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    uint32_t dim = step->cluster->geometry.head_dim;
    size_t scratch = 0, staged = 0, records = plan->records_max + 1, masks = step->masks + 1;
    for (int f = 0; f < LODE_GPU_FORMATS; f++) {
        size_t need = plan->sets[f].masks ? gpu->ops->where_scratch(plan->sets[f].masks) : 0;
        size_t bytes = plan->sets[f].records_max * lode_device_record_bytes((lode_format_t)f, dim);
        scratch = need > scratch ? need : scratch;
        staged = bytes > staged ? bytes : staged;
    }
    staged = staged < gpu->staging_bytes ? staged : gpu->staging_bytes;
    LODE_TRY(lode_gpu_reserve(gpu, "masks of records", &gpu->wanted, masks * sizeof(uint64_t), 0));
    LODE_TRY(lode_gpu_reserve(gpu, "numbers of records", &gpu->first, masks * sizeof(uint32_t), 0));
    LODE_TRY(lode_gpu_reserve(gpu, "places of records", &gpu->places, records * sizeof(uint32_t), 0));
    LODE_TRY(lode_gpu_reserve(gpu, "missed records", &gpu->missed, records * sizeof(lode_device_missed_t), 0));
    if (gpu->copies)
        LODE_TRY(lode_gpu_reserve_pinned(gpu, "addresses of records", &gpu->sources_here, records * sizeof(uint8_t *)));
    else
        LODE_TRY(lode_gpu_reserve(gpu, "addresses of records", &gpu->sources, records * sizeof(uint8_t *), 0));
    LODE_TRY(lode_gpu_reserve(gpu, "looking records up", &gpu->where_scratch, scratch, 0));
    LODE_TRY(lode_gpu_reserve(gpu, "staged records (gpu-staging)", &gpu->staged, staged, 0));
    LODE_TRY(
        lode_gpu_reserve_pinned(gpu, "lists of what is asked for", &gpu->asked, masks * sizeof(lode_device_entry_t)));
    if (!plan->all_held)
        LODE_TRY(
            lode_gpu_reserve_pinned(gpu, "addresses of landed records", &gpu->landed, records * sizeof(uint8_t *)));
    return LODE_OK;
}

static lode_status_t reserve_rows(lode_step_state_t *step, size_t tables)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    size_t heads = step->rows * step->cluster->query_heads, floats = heads * step->cluster->geometry.head_dim;
    LODE_TRY(lode_gpu_reserve(gpu, "the tables of a step", &gpu->tables, tables, 0));
    LODE_TRY(lode_gpu_reserve(gpu, "queries", &gpu->queries, floats * sizeof(float), 0));
    LODE_TRY(lode_gpu_reserve(gpu, "outputs", &gpu->out, floats * sizeof(float), 0));
    return lode_gpu_reserve(gpu, "outputs", &gpu->lse, heads * sizeof(float), 0);
}

static lode_status_t reserve_guesses(lode_step_state_t *step)
{
    size_t bytes = (size_t)step->cluster->geometry.layers * step->cluster->heads * sizeof(float);
    lode_gpu_t *gpu = step->cluster->gpu;
    for (uint32_t s = 0; s < step->stream_count; s++) {
        lode_view_h view = lode_stream_at(step, s)->in->view;
        lode_gpu_room_t room = {0};
        if (view->gpu_guesses)
            continue;
        LODE_TRY(lode_gpu_reserve(gpu, "guesses of a view", &room, bytes, 0));
        view->gpu_guesses = room.data;
        LODE_GPU_TRY(gpu, "guesses of a view", gpu->ops->fill(gpu->plan.stream, room.data, 0xff, bytes));
    }
    return LODE_OK;
}

/* The arrays of a set, for where() and what follows it. */
static void point_set(lode_step_state_t *step, lode_gpu_set_t *set, int f)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    set->where = (lode_device_where_t){
        .layer = step->layer,
        .heads = step->cluster->heads,
        .dim = step->cluster->geometry.head_dim,
        .clock = gpu->clocks + f,
        .blocks = set->table + set->first_block,
        .block_count = set->blocks,
        .masks = set->masks,
        .wanted = (uint64_t *)gpu->wanted.data + set->first_mask,
        .first = (uint32_t *)gpu->first.data + set->first_mask,
        .places = (uint32_t *)gpu->places.data + set->first_record,
        .missed = (lode_device_missed_t *)gpu->missed.data + set->first_record,
        .sources = (const uint8_t **)(gpu->copies ? gpu->sources_here.data : gpu->sources.data) + set->first_record,
        .records_max = set->records_max,
        .asked = (lode_device_entry_t *)gpu->asked.data + set->first_mask,
        .found = &gpu->plan.ticket->found[f],
        .scratch = gpu->where_scratch.data,
    };
    memcpy(set->where.caches, gpu->caches, sizeof set->where.caches);
}

/* What is read over and over stays in the cache; what would sweep it out does not enter. */
bool lode_gpu_keeps(const lode_step_state_t *step, const lode_gpu_set_t *set, uint64_t records)
{
    int f = (int)(set - step->cluster->gpu->plan.sets);
    const lode_device_cache_t *cache = &step->cluster->gpu->caches[f];
    return cache->slots && records <= (uint64_t)step->cluster->heads * cache->sets * LODE_DEVICE_WAYS;
}

lode_status_t lode_gpu_plan_make(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    LODE_TRY(order_blocks(step, plan));
    settle_choices(step);
    LODE_TRY(bound_records(step, plan));
    LODE_TRY(cut_batches(step, plan));
    sizes_t n = count_tables(step);
    size_t tables = table_bytes(step, plan, &n);
    LODE_TRY(reserve_rows(step, tables));
    LODE_TRY(reserve_guesses(step));
    LODE_TRY(reserve_choosing(step, &n));
    LODE_TRY(reserve_records(step));
    LODE_TRY(lode_gpu_take_ticket(gpu, tables + n.tensors, &plan->ticket));
    plan->table_begin = plan->ticket->used;
    fill_angles(step);
    fill_rows(step, &n);
    fill_chosen(step);
    fill_all_blocks(step);
    LODE_TRY(fill_batches(step, &n));
    plan->table_bytes = plan->ticket->used - plan->table_begin;
    assert(plan->table_bytes <= tables);
    for (int f = 0; f < LODE_GPU_FORMATS; f++)
        if (plan->sets[f].blocks)
            point_set(step, &plan->sets[f], f);
    return LODE_OK;
}
