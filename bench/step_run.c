/* SPDX-License-Identifier: Apache-2.0 */
#include <mpi.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/progress.h"
#include "bench/step.h"

lode_status_t lode_step_room(lode_step_bench_t *b)
{
    const lode_geometry_t *g = &b->source.geometry;
    size_t floats = lode_step_floats(b), written = (size_t)lode_step_rows(b) * g->kv_heads * g->head_dim;
    b->streams = calloc(b->wish.streams, sizeof *b->streams);
    b->q = malloc(floats * sizeof *b->q);
    b->out = malloc(floats * sizeof *b->out);
    b->k = malloc(written * sizeof *b->k);
    b->v = malloc(written * sizeof *b->v);
    b->dense_ms = calloc((size_t)b->wish.dense_steps * g->layers + 1, sizeof *b->dense_ms);
    b->dense_out = calloc((size_t)b->kept_count * g->layers * floats + 1, sizeof *b->dense_out);
    b->dense_kept = calloc((size_t)b->kept_count * g->layers + 1, sizeof *b->dense_kept);
    if (!b->streams || !b->q || !b->out || !b->k || !b->v || !b->dense_ms || !b->dense_out || !b->dense_kept)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the tensors of a step");
    return LODE_OK;
}

/* The queries of a step and, for a run that writes, the next tokens of each stream. */
void lode_step_fill(lode_step_bench_t *b, const lode_step_run_t *run, uint32_t step, uint32_t asked, uint32_t layer,
                    uint32_t count)
{
    const lode_geometry_t *g = &b->source.geometry;
    size_t row = (size_t)g->query_heads * g->head_dim, kv_row = (size_t)g->kv_heads * g->head_dim;
    for (uint32_t s = 0; s < count; s++) {
        size_t first = (size_t)s * b->wish.new_tokens;
        for (uint32_t t = 0; t < b->wish.new_tokens; t++)
            lode_step_make_query(b, layer, asked, s, t, b->q + (first + t) * row);
        b->streams[s] = (lode_stream_t){.view = run ? run->views[s] : b->dense_view,
                                        .tokens = b->wish.new_tokens,
                                        .position = lode_source_position(&b->source, lode_step_query(b, asked, s, 0)),
                                        .dtype = LODE_FP32,
                                        .q = b->q + first * row,
                                        .out = b->out + first * row};
        if (!run || !b->wish.write || step >= b->wish.steps)
            continue;
        lode_source_tokens(&b->source, b->source.blocks + s, layer, (uint64_t)step * b->wish.new_tokens,
                           b->wish.new_tokens, b->k + first * kv_row, b->v + first * kv_row);
        b->streams[s].k = b->k + first * kv_row;
        b->streams[s].v = b->v + first * kv_row;
    }
}

static void fill_streams(lode_step_bench_t *b, const lode_step_run_t *run, uint32_t step, uint32_t layer)
{
    lode_step_fill(b, run, step, step, layer, b->wish.streams);
}

/* Dense outputs of a step that is compared with the reference show what the storage format alone costs. */
static void keep_dense(lode_step_bench_t *b, uint32_t step, uint32_t layer)
{
    if (b->kept[step] < 0)
        return;
    size_t cell = (size_t)b->kept[step] * b->source.geometry.layers + layer;
    memcpy(b->dense_out + cell * lode_step_floats(b), b->out, lode_step_floats(b) * sizeof *b->out);
    b->dense_kept[cell] = true;
}

/* Which step's queries dense step i asks: those that are compared come first. */
static uint32_t dense_query_step(const lode_step_bench_t *b, uint32_t i)
{
    for (uint32_t step = 0; b->kept_count && step < b->wish.steps; step++)
        if (b->kept[step] == (int32_t)(i % b->kept_count))
            return step;
    return i % b->wish.steps;
}

lode_status_t lode_step_dense(lode_step_bench_t *b)
{
    lode_progress_t progress;
    lode_status_t status = LODE_OK;
    lode_progress_begin(&progress, "dense steps", b->wish.dense_steps);
    for (uint32_t i = 0; i < b->wish.dense_steps && status == LODE_OK; i++) {
        uint32_t step = dense_query_step(b, i);
        for (uint32_t layer = 0; layer < b->source.geometry.layers; layer++) {
            lode_step_stats_t stats;
            fill_streams(b, NULL, step, layer);
            status = lode_step(b->cluster, layer, b->streams, b->wish.streams, &stats);
            if (status != LODE_OK)
                break;
            b->dense_ms[b->dense_count++] = (double)stats.step_ns * 1e-6;
            keep_dense(b, step, layer);
        }
        lode_progress_at(&progress, i + 1);
    }
    lode_progress_end(&progress);
    return status == LODE_OK ? LODE_OK : lode_fail_within(status, "dense step: ");
}

static lode_status_t run_layer(lode_step_bench_t *b, lode_step_run_t *run, uint32_t step, uint32_t layer)
{
    uint32_t layers = b->source.geometry.layers;
    size_t cell = (size_t)step * layers + layer;
    fill_streams(b, run, step, layer);
    LODE_TRY(lode_step(b->cluster, layer, b->streams, b->wish.streams, &run->stats[cell]));
    run->digests[cell] = run->stats[cell].selected_digest;
    if (b->kept[step] >= 0)
        memcpy(run->out + ((size_t)b->kept[step] * layers + layer) * lode_step_floats(b), b->out,
               lode_step_floats(b) * sizeof *b->out);
    return run == &b->calm ? lode_step_check_take(b, step, layer, &run->stats[cell]) : LODE_OK;
}

/* Memory and connections are made by the first steps; they write nothing, so that nothing depends on how many they are.
 */
static lode_status_t warm_up(lode_step_bench_t *b, lode_step_run_t *run)
{
    for (uint32_t i = 0; i < b->wish.warmup; i++) {
        for (uint32_t layer = 0; layer < b->source.geometry.layers; layer++) {
            fill_streams(b, run, b->wish.steps + i, layer);
            LODE_TRY(lode_step(b->cluster, layer, b->streams, b->wish.streams, NULL));
        }
    }
    return LODE_OK;
}

/* All ranks meet before the kill, so that it strikes while they step; none meets by MPI afterwards. */
static void kill_at(const lode_step_bench_t *b, uint32_t step)
{
    if (step != b->wish.kill_step)
        return;
    MPI_Barrier(MPI_COMM_WORLD);
    if (b->job.rank == b->wish.kill_rank)
        raise(SIGKILL);
}

/*
 * The step of the kill itself runs while nobody knows of it yet. Before the next one, survivors wait until they do
 * (some seconds at most), or steps as short as these would all be over before anything was noticed.
 */
static void notice_loss(lode_step_bench_t *b, uint32_t step)
{
    enum { PATIENCE_MS = 20000, NAP_MS = 5 };
    lode_cluster_info_t info;
    for (int waited = 0; step == b->wish.kill_step && waited < PATIENCE_MS; waited += NAP_MS) {
        if (lode_cluster_query(b->cluster, &info) != LODE_OK || info.alive < info.ranks)
            return;
        usleep(NAP_MS * 1000);
    }
}

static void note_failure(lode_step_run_t *run, uint32_t step, uint32_t layer, lode_status_t status)
{
    if (status == LODE_OK)
        return;
    run->failed[step] = true;
    if (!run->failed_steps++)
        snprintf(run->first_failure, sizeof run->first_failure, "at step %u, layer %u: %s: %s", step, layer,
                 lode_status_string(status), lode_error_message());
}

lode_status_t lode_step_run_steps(lode_step_bench_t *b, lode_step_run_t *run, bool kill)
{
    lode_progress_t progress;
    if (!kill) /* the second run is warm, and nothing may keep a rank from the barrier before the kill */
        LODE_TRY(lode_job_agree(warm_up(b, run)));
    lode_progress_begin(&progress, "steps", b->wish.steps);
    for (uint32_t step = 0; step < b->wish.steps; step++) {
        if (kill)
            kill_at(b, step);
        if (run->lone && step % 2)
            note_failure(run, step, 0, lode_step_run_lone(b, run, step));
        for (uint32_t layer = 0; layer < b->source.geometry.layers && !run->failed[step]; layer++)
            note_failure(run, step, layer, run_layer(b, run, step, layer));
        if (run->lone && step % 2 == 0 && !run->failed[step])
            note_failure(run, step, 0, lode_step_run_lone(b, run, step));
        if (kill)
            notice_loss(b, step);
        lode_progress_at(&progress, step + 1);
    }
    lode_progress_end(&progress);
    return LODE_OK;
}
