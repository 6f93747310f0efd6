/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A step on the device, from the caller's tensors to the caller's outputs. Everything is enqueued on one stream; the
 * host waits for it where something must be fetched, to read what, and nowhere else, but for lode_step() itself, which
 * returns when the outputs are there.
 */
#include <math.h>
#include <string.h>

#include "attend/device.h"

/* Outputs of attend() that are kept apart before they are folded into one. */
enum { PARTS_MOST = 4 };

/* Events whose distances are the stages' times. */
enum { TIME_BEGIN, TIME_PREPARED, TIME_SCORED, TIME_WANTED, TIME_STAGED, TIME_ATTENDED, TIME_MERGED };

static lode_status_t note_time(lode_gpu_t *gpu, int what)
{
    if (gpu->plan.timed)
        LODE_GPU_TRY(gpu, "an event", gpu->ops->event_record(gpu->times[what], gpu->plan.stream));
    return LODE_OK;
}

/* -------------------------------------------------------------------- begin */

lode_status_t lode_gpu_enter(lode_gpu_t *gpu)
{
    LODE_GPU_TRY(gpu, "becoming the thread's device", gpu->ops->enter(gpu->device, &gpu->device_before));
    return LODE_OK;
}

void lode_gpu_leave(lode_gpu_t *gpu)
{
    gpu->ops->leave(gpu->device, gpu->device_before);
}

lode_status_t lode_gpu_begin(lode_step_state_t *step, void *cuda_stream, bool wait)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    LODE_TRY(lode_gpu_ahead_prepare(gpu));
    plan->stream = wait ? gpu->stream : cuda_stream;
    plan->capturing = false;
    if (!wait)
        LODE_GPU_TRY(gpu, "lode_step_enqueue", gpu->ops->stream_check(gpu->device, plan->stream, &plan->capturing));
    LODE_TRY(lode_gpu_enter(gpu));
    gpu->in_step = true;
    plan->waits = plan->timed = wait;
    plan->parts_count = plan->folds = 0;
    if (!plan->capturing && gpu->stepped)
        LODE_GPU_TRY(gpu, "following the step before", gpu->ops->event_follow(plan->stream, gpu->busy));
    return LODE_OK;
}

static lode_status_t memory_of(lode_gpu_t *gpu, const char *what, uint32_t i, const void *tensor, int *memory)
{
    lode_memory_t found;
    *memory = LODE_MEMORY_HOST;
    if (!tensor)
        return LODE_OK;
    LODE_GPU_TRY(gpu, what, gpu->ops->memory_of(gpu->device, tensor, &found));
    *memory = (int)found;
    if (found == LODE_MEMORY_OTHER_DEVICE)
        return lode_fail(LODE_ERR_INVALID, "stream %u: %s is in the memory of another device than %s (device %d)", i,
                         what, gpu->info.name, gpu->info.ordinal);
    if (gpu->plan.capturing && found == LODE_MEMORY_HOST)
        return lode_fail(LODE_ERR_INVALID,
                         "stream %u: %s is in host memory that is not pinned: a step that is captured reads and writes "
                         "device memory or pinned memory",
                         i, what);
    return LODE_OK;
}

/* Whether the host may read a tensor now: on the caller's stream, pinned memory may not have its contents yet. */
static bool readable(const lode_gpu_plan_t *plan, int memory)
{
    return memory == LODE_MEMORY_HOST || (memory == LODE_MEMORY_PINNED && plan->timed);
}

static lode_status_t check_memory(lode_step_state_t *step, lode_step_stream_t *stream, uint32_t i, int *k, int *v)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    const lode_stream_t *in = stream->in;
    int share;
    if (gpu->plan.capturing && in->k)
        return lode_fail(LODE_ERR_UNSUPPORTED,
                         "stream %u has new keys: a step that is captured only reads, since the host writes tokens", i);
    LODE_TRY(memory_of(gpu, "q", i, in->q, &stream->q_memory));
    LODE_TRY(memory_of(gpu, "k", i, in->k, k));
    LODE_TRY(memory_of(gpu, "v", i, in->v, v));
    LODE_TRY(memory_of(gpu, "out", i, in->out, &stream->out_memory));
    LODE_TRY(memory_of(gpu, "lse", i, in->lse, &stream->lse_memory));
    if (!in->lost_share)
        return LODE_OK;
    lode_memory_t found;
    LODE_GPU_TRY(gpu, "lost_share", gpu->ops->memory_of(gpu->device, in->lost_share, &found));
    share = (int)found;
    if (share != LODE_MEMORY_HOST && share != LODE_MEMORY_PINNED)
        return lode_fail(LODE_ERR_INVALID, "stream %u: lost_share is in device memory; the host writes it", i);
    return LODE_OK;
}

/* New keys and values are written by the host: it gets copies of what it cannot read. */
static lode_status_t copy_new(lode_step_state_t *step, const int *k, const int *v, bool *any)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    size_t all = 0, used = 0, token = (size_t)step->cluster->heads * step->cluster->geometry.head_dim;
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_stream_t *in = lode_stream_at(step, s)->in;
        all += in->k ? 2 * in->tokens * token * lode_dtype_bytes(in->dtype) : 0;
    }
    *any = false;
    for (uint32_t s = 0; s < step->stream_count; s++) {
        lode_step_stream_t *stream = lode_stream_at(step, s);
        size_t bytes = stream->rows * token * lode_dtype_bytes(stream->in->dtype);
        const void **tensors[] = {&stream->k, &stream->v};
        for (int t = 0; stream->in->k && t < 2; t++) {
            if (readable(&gpu->plan, t ? v[s] : k[s]))
                continue;
            LODE_TRY(lode_gpu_reserve_pinned(gpu, "new keys and values", &gpu->tensors, all));
            void *copy = (uint8_t *)gpu->tensors.data + used;
            LODE_GPU_TRY(gpu, "new keys and values", gpu->ops->copy(gpu->plan.stream, copy, *tensors[t], bytes));
            *tensors[t] = copy;
            used += bytes;
            *any = true;
        }
    }
    return LODE_OK;
}

lode_status_t lode_gpu_check_streams(lode_step_state_t *step)
{
    lode_cluster_h cluster = step->cluster;
    lode_gpu_t *gpu = cluster->gpu;
    LODE_TRY(lode_buffer_reserve(&gpu->plan.kinds, 2 * step->stream_count * sizeof(int)));
    int *k = gpu->plan.kinds.data, *v = k + step->stream_count;
    for (uint32_t s = 0; s < step->stream_count; s++)
        LODE_TRY(check_memory(step, lode_stream_at(step, s), s, &k[s], &v[s]));
    bool copied;
    LODE_TRY(copy_new(step, k, v, &copied));
    if (copied)
        LODE_GPU_TRY(gpu, "new keys and values", gpu->ops->stream_wait(gpu->plan.stream));
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        if (readable(&gpu->plan, stream->q_memory))
            LODE_TRY(lode_check_finite(cluster, "query", step->layer, stream->rows, cluster->query_heads,
                                       stream->in->dtype, stream->in->q));
        if (stream->k)
            LODE_TRY(lode_check_new(cluster, step->layer, stream->in, stream->k, stream->v));
        gpu->plan.waits |=
            stream->out_memory == LODE_MEMORY_HOST || (stream->in->lse && stream->lse_memory == LODE_MEMORY_HOST);
    }
    return LODE_OK;
}

/* ------------------------------------------------------------------- choose */

static lode_status_t send_queries(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    uint32_t dim = step->cluster->geometry.head_dim, heads = step->cluster->query_heads;
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        size_t n = (size_t)stream->rows * heads * dim, bytes = n * lode_dtype_bytes(stream->in->dtype);
        const void *q = stream->in->q;
        if (stream->q_memory == LODE_MEMORY_HOST)
            q = memcpy(lode_gpu_ticket_take(plan->ticket, bytes), q, bytes);
        LODE_GPU_TRY(gpu, "queries",
                     gpu->ops->widen(plan->stream, stream->in->dtype, q, n, 1.0f / sqrtf((float)dim),
                                     (float *)gpu->queries.data + stream->first_row * heads * dim));
    }
    return LODE_OK;
}

static lode_status_t choose_batch(lode_step_state_t *step, const lode_gpu_batch_t *batch)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    uint32_t dim = step->cluster->geometry.head_dim;
    for (uint32_t i = batch->first_scans; i < batch->first_scans + batch->scans; i++) {
        const lode_gpu_scans_t *scans = (const lode_gpu_scans_t *)plan->scans.data + i;
        LODE_GPU_TRY(gpu, "preparing queries",
                     gpu->ops->query_prepare(plan->stream, &scans->spec, dim, gpu->queries.data, plan->angles,
                                             scans->queries, scans->query_count, gpu->prepared.data));
        LODE_TRY(note_time(gpu, TIME_PREPARED));
        LODE_GPU_TRY(gpu, "scoring landmarks",
                     gpu->ops->score(plan->stream, &scans->spec, dim, gpu->prepared.data, scans->scans,
                                     scans->scan_count, scans->most, scans->all));
    }
    LODE_TRY(note_time(gpu, TIME_SCORED));
    if (batch->choice_count)
        LODE_GPU_TRY(gpu, "selecting",
                     gpu->ops->select(plan->stream, batch->choices, batch->choice_count, plan->pieces, batch->most,
                                      gpu->select_scratch.data, gpu->tokens.data,
                                      (uint32_t *)gpu->counts.data + batch->first_choice));
    return LODE_OK;
}

static lode_status_t look_up(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    if (step->masks) {
        LODE_GPU_TRY(gpu, "what is wanted",
                     gpu->ops->fill(plan->stream, gpu->wanted.data, 0, step->masks * sizeof(uint64_t)));
        LODE_GPU_TRY(gpu, "what is wanted",
                     gpu->ops->want(plan->stream, plan->rows, (uint32_t)step->rows, step->cluster->heads, plan->parts,
                                    plan->blocks, plan->chosen, gpu->tokens.data, plan->most_tokens, gpu->wanted.data));
    }
    for (int f = 0; f < LODE_GPU_FORMATS; f++)
        if (plan->sets[f].masks)
            LODE_GPU_TRY(gpu, "looking records up", gpu->ops->where(plan->stream, &plan->sets[f].where));
    return note_time(gpu, TIME_WANTED);
}

static lode_status_t choose(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    LODE_TRY(note_time(gpu, TIME_BEGIN));
    LODE_GPU_TRY(
        gpu, "the tables of a step",
        gpu->ops->copy(plan->stream, gpu->tables.data, plan->ticket->data + plan->table_begin, plan->table_bytes));
    LODE_TRY(send_queries(step));
    LODE_TRY(note_time(gpu, TIME_PREPARED));
    LODE_TRY(note_time(gpu, TIME_SCORED));
    for (uint32_t b = 0; b < plan->batch_count; b++)
        LODE_TRY(choose_batch(step, (const lode_gpu_batch_t *)plan->batches.data + b));
    return look_up(step);
}

/* ------------------------------------------------------------------- attend */

static lode_status_t fold(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    uint32_t at = plan->folds++ % 2;
    size_t rows = step->rows * step->cluster->heads, group = step->cluster->group;
    size_t dim = step->cluster->geometry.head_dim;
    LODE_TRY(lode_gpu_reserve(gpu, "outputs", &gpu->folded_out[at], rows * group * dim * sizeof(float), 0));
    LODE_TRY(lode_gpu_reserve(gpu, "outputs", &gpu->folded_lse[at], rows * group * sizeof(float), 0));
    LODE_GPU_TRY(gpu, "merging",
                 gpu->ops->merge(plan->stream, plan->parts_done, plan->parts_count, (uint32_t)rows, (uint32_t)group,
                                 (uint32_t)dim, gpu->folded_out[at].data, gpu->folded_lse[at].data));
    plan->parts_done[0] = (lode_device_parts_t){gpu->folded_out[at].data, gpu->folded_lse[at].data, 1};
    plan->parts_count = 1;
    return LODE_OK;
}

lode_status_t lode_gpu_attend_over(lode_step_state_t *step, lode_device_attend_t *attend, uint32_t most_tokens)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    size_t dim = step->cluster->geometry.head_dim, rows = step->rows * step->cluster->query_heads;
    if (plan->parts_count == 0)
        LODE_TRY(note_time(gpu, TIME_STAGED));
    if (plan->parts_count == PARTS_MOST)
        LODE_TRY(fold(step));
    uint32_t at = plan->parts_count;
    attend->dim = (uint32_t)dim;
    attend->group = step->cluster->group;
    attend->heads = step->cluster->heads;
    attend->q = gpu->queries.data;
    attend->angles = plan->angles;
    attend->rows = plan->rows;
    attend->row_count = (uint32_t)step->rows;
    attend->parts = plan->parts;
    attend->chosen = plan->chosen;
    attend->tokens = gpu->tokens.data;
    attend->most_tokens = most_tokens;
    attend->splits = gpu->ops->attend_splits(gpu->device, attend->row_count, attend->heads, most_tokens);
    LODE_TRY(lode_gpu_reserve(gpu, "outputs", &gpu->parts_out[at], rows * attend->splits * dim * sizeof(float), 0));
    LODE_TRY(lode_gpu_reserve(gpu, "outputs", &gpu->parts_lse[at], rows * attend->splits * sizeof(float), 0));
    attend->out = gpu->parts_out[at].data;
    attend->lse = gpu->parts_lse[at].data;
    LODE_GPU_TRY(gpu, "attending", gpu->ops->attend(plan->stream, attend));
    plan->parts_done[plan->parts_count++] = (lode_device_parts_t){attend->out, attend->lse, attend->splits};
    return LODE_OK;
}

/* Tails, and with nothing else to attend to an empty part, so that there is something to merge. */
static lode_status_t attend_tails(lode_step_state_t *step)
{
    lode_gpu_plan_t *plan = &step->cluster->gpu->plan;
    if (!plan->most_tail && plan->parts_count)
        return LODE_OK;
    lode_device_attend_t attend = {.format = LODE_FORMAT_BF16, .blocks = plan->blocks, .tails = true};
    return lode_gpu_attend_over(step, &attend, plan->most_tail);
}

/* Whether the host must look at what a set misses before it can be staged. */
static bool must_look(const lode_step_state_t *step)
{
    const lode_gpu_t *gpu = step->cluster->gpu;
    bool look = !gpu->plan.all_held;
    for (int f = 0; f < LODE_GPU_FORMATS; f++) {
        size_t stride = lode_device_record_bytes((lode_format_t)f, step->cluster->geometry.head_dim);
        look |= gpu->plan.sets[f].records_max * stride > gpu->staging_bytes;
    }
    return look;
}

static lode_status_t stage_and_attend(lode_step_state_t *step, bool look)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    uint64_t begin = lode_now_ns();
    if (look) {
        LODE_GPU_TRY(gpu, "what is missing", gpu->ops->event_record(gpu->busy, plan->stream));
        LODE_GPU_TRY(gpu, "choosing", gpu->ops->event_wait(gpu->busy));
        LODE_TRY(lode_gpu_ahead_take(step));
    }
    for (int f = 0; f < LODE_GPU_FORMATS; f++)
        if (plan->sets[f].masks)
            LODE_TRY(lode_gpu_stage(step, &plan->sets[f], look ? &plan->ticket->found[f] : NULL));
    LODE_TRY(lode_gpu_ahead_end(step));
    if (!plan->timed)
        step->stats.stage_ns[LODE_STAGE_FETCH] = look ? lode_now_ns() - begin : 0;
    LODE_TRY(attend_tails(step));
    return note_time(gpu, TIME_ATTENDED);
}

/* ------------------------------------------------------------------ outputs */

static lode_status_t hand_out(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    size_t heads = step->cluster->query_heads, dim = step->cluster->geometry.head_dim;
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        size_t first = stream->first_row * heads, n = stream->rows * heads;
        if (stream->out_memory != LODE_MEMORY_HOST)
            LODE_GPU_TRY(gpu, "outputs",
                         gpu->ops->copy(gpu->plan.stream, stream->in->out, (float *)gpu->out.data + first * dim,
                                        n * dim * sizeof(float)));
        if (stream->in->lse && stream->lse_memory != LODE_MEMORY_HOST)
            LODE_GPU_TRY(
                gpu, "outputs",
                gpu->ops->copy(gpu->plan.stream, stream->in->lse, (float *)gpu->lse.data + first, n * sizeof(float)));
    }
    return LODE_OK;
}

static lode_status_t merge_out(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    uint32_t dim = step->cluster->geometry.head_dim;
    size_t heads = step->rows * step->cluster->query_heads;
    LODE_GPU_TRY(gpu, "merging",
                 gpu->ops->merge(plan->stream, plan->parts_done, plan->parts_count,
                                 (uint32_t)step->rows * step->cluster->heads, step->cluster->group, dim, gpu->out.data,
                                 gpu->lse.data));
    LODE_TRY(note_time(gpu, TIME_MERGED));
    LODE_TRY(hand_out(step));
    if (!plan->waits)
        return LODE_OK;
    LODE_TRY(lode_gpu_reserve_pinned(gpu, "outputs", &gpu->results, heads * (dim + 1) * sizeof(float)));
    LODE_GPU_TRY(gpu, "outputs",
                 gpu->ops->copy(plan->stream, gpu->results.data, gpu->out.data, heads * dim * sizeof(float)));
    LODE_GPU_TRY(
        gpu, "outputs",
        gpu->ops->copy(plan->stream, (float *)gpu->results.data + heads * dim, gpu->lse.data, heads * sizeof(float)));
    return LODE_OK;
}

/* To tensors in plain host memory, when the step has run. */
static void copy_results(const lode_step_state_t *step)
{
    const lode_gpu_t *gpu = step->cluster->gpu;
    size_t heads = step->cluster->query_heads, dim = step->cluster->geometry.head_dim;
    const float *out = gpu->results.data, *lse = out + step->rows * heads * dim;
    for (uint32_t s = 0; s < step->stream_count; s++) {
        const lode_step_stream_t *stream = lode_stream_at(step, s);
        size_t first = stream->first_row * heads, n = stream->rows * heads;
        if (stream->out_memory == LODE_MEMORY_HOST)
            memcpy(stream->in->out, out + first * dim, n * dim * sizeof(float));
        if (stream->in->lse && stream->lse_memory == LODE_MEMORY_HOST)
            memcpy(stream->in->lse, lse + first, n * sizeof(float));
    }
}

/* --------------------------------------------------------------- statistics */

/* What where() has found, once it has run. */
static void count_found(lode_step_state_t *step)
{
    const lode_gpu_plan_t *plan = &step->cluster->gpu->plan;
    for (int f = 0; f < LODE_GPU_FORMATS; f++) {
        const lode_device_found_t *found = &plan->ticket->found[f];
        step->stats.records_wanted += found->records;
        step->stats.records_hit += found->hits;
        step->stats.records_local += found->held;
    }
}

static lode_status_t book_times(lode_step_state_t *step)
{
    static const lode_stage_t stages[] = {LODE_STAGE_ROTATE, LODE_STAGE_SCORE,  LODE_STAGE_SELECT,
                                          LODE_STAGE_FETCH,  LODE_STAGE_ATTEND, LODE_STAGE_MERGE};
    lode_gpu_t *gpu = step->cluster->gpu;
    for (int i = 0; i + 1 < LODE_GPU_TIMES; i++) {
        float ms;
        LODE_GPU_TRY(gpu, "an event", gpu->ops->event_between(gpu->times[i], gpu->times[i + 1], &ms));
        step->stats.stage_ns[stages[i]] = ms > 0 ? (uint64_t)((double)ms * 1e6) : 0;
    }
    return LODE_OK;
}

/* ---------------------------------------------------------------------- run */

static lode_status_t end_step(lode_step_state_t *step, bool look)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    lode_gpu_plan_t *plan = &gpu->plan;
    if (plan->capturing) {
        gpu->in_step = false;
        lode_gpu_leave(gpu);
        return LODE_OK;
    }
    LODE_GPU_TRY(gpu, "the end of a step", gpu->ops->event_record(plan->ticket->done, plan->stream));
    LODE_GPU_TRY(gpu, "the end of a step", gpu->ops->event_record(gpu->busy, plan->stream));
    plan->ticket->busy = gpu->stepped = true;
    if (plan->waits) {
        LODE_GPU_TRY(gpu, "a step", gpu->ops->stream_wait(plan->stream));
        copy_results(step);
        LODE_TRY(lode_gpu_ticket_done(gpu, plan->ticket));
        for (int i = 0; i < LODE_GPU_TILES; i++)
            LODE_TRY(lode_gpu_tile_release(gpu, &gpu->tiles[i]));
        for (int i = 0; i < 2; i++)
            LODE_TRY(lode_gpu_tile_release(gpu, &gpu->ahead.tiles[i]));
    }
    if (plan->waits || look)
        count_found(step);
    if (plan->timed)
        LODE_TRY(book_times(step));
    gpu->in_step = false;
    lode_gpu_leave(gpu);
    return LODE_OK;
}

lode_status_t lode_gpu_run(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    LODE_TRY(lode_gpu_bring(step));
    LODE_TRY(lode_step_lay_out_spans(step));
    LODE_TRY(lode_gpu_plan_make(step));
    bool look = must_look(step);
    if (look && gpu->plan.capturing)
        return lode_fail(LODE_ERR_UNSUPPORTED, "a step that is captured needs the host: %s",
                         gpu->plan.all_held ? "what it may miss does not fit gpu-staging; raise it"
                                            : "not all pages of its blocks are held by this rank");
    gpu->captured |= gpu->plan.capturing;
    if (!look) {
        lode_gpu_ahead_drop(gpu);
        lode_gpu_ahead_forget(step);
    }
    LODE_TRY(choose(step));
    LODE_TRY(stage_and_attend(step, look));
    LODE_TRY(merge_out(step));
    lode_gpu_ahead_begin(step);
    return end_step(step, look);
}

void lode_gpu_abandon(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    if (!gpu->in_step)
        return;
    gpu->in_step = false;
    if (!gpu->plan.capturing) {
        if (gpu->ops->stream_wait(gpu->plan.stream) != LODE_OK)
            lode_debug("after a step that failed: %s", gpu->ops->error());
        lode_gpu_fetch_abandon(step);
    }
    lode_gpu_leave(gpu);
}

/* ---------------------------------------------------------------- selection */

static lode_status_t copy_selection(lode_step_state_t *step, lode_device_stream_t stream)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    LODE_TRY(lode_buffer_reserve(&step->tokens, step->token_count * sizeof(uint32_t)));
    if (!gpu->in_step && gpu->stepped)
        LODE_GPU_TRY(gpu, "what was chosen", gpu->ops->event_wait(gpu->busy));
    if (step->token_count)
        LODE_GPU_TRY(gpu, "what was chosen",
                     gpu->ops->copy(stream, step->tokens.data, gpu->tokens.data, step->token_count * sizeof(uint32_t)));
    LODE_GPU_TRY(gpu, "what was chosen", gpu->ops->stream_wait(stream));
    return LODE_OK;
}

lode_status_t lode_gpu_bring_selection(lode_step_state_t *step)
{
    lode_gpu_t *gpu = step->cluster->gpu;
    if (gpu->selection == step->serial || step->stream_count == 0)
        return LODE_OK;
    bool within = gpu->in_step; /* then the step has entered the device */
    if (!within)
        LODE_TRY(lode_gpu_enter(gpu));
    lode_status_t status = copy_selection(step, within ? gpu->plan.stream : gpu->stream);
    if (!within)
        lode_gpu_leave(gpu);
    if (status == LODE_OK)
        gpu->selection = step->serial;
    return status;
}
