/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/options.h"
#include "bench/step.h"

enum { GATHER_SECONDS = 60 };

static lode_status_t open_source(lode_step_bench_t *b)
{
    if (b->wish.capture)
        return lode_source_capture(b->wish.capture, &b->source);
    lode_generator_params_t params = {.seed = b->wish.seed, .geometry = b->wish.geometry};
    LODE_TRY(lode_generator_parse(b->wish.generator, &params));
    params.sharp_share = b->wish.sharp_share;
    return lode_source_generate(&params, b->wish.tokens, b->wish.documents, &b->source);
}

/* What can be refused before anything costs time. */
static lode_status_t check_wish(const lode_step_bench_t *b)
{
    if (b->wish.kill_rank >= (int64_t)b->job.ranks)
        return lode_fail(LODE_ERR_INVALID, "--kill-rank %lld: the job has %u ranks", (long long)b->wish.kill_rank,
                         b->job.ranks);
    if (b->wish.kill_rank >= 0 && b->job.ranks < 2)
        return lode_fail(LODE_ERR_INVALID, "--kill-rank: nobody would be left");
    bool writer = b->job.rank == (b->wish.kill_rank == 0 ? 1 : 0);
    return b->wish.json && writer ? lode_job_check_output(b->wish.json) : LODE_OK;
}

static lode_status_t prepare(lode_step_bench_t *b)
{
    LODE_TRY(lode_job_agree(check_wish(b)));
    LODE_TRY(lode_job_agree(open_source(b)));
    LODE_TRY(lode_step_join(b));
    lode_status_t status = lode_step_check_plan(b);
    if (status == LODE_OK)
        status = lode_step_room(b);
    LODE_TRY(lode_job_agree(status));
    LODE_TRY(lode_step_ingest(b));
    status = lode_step_run_create(b, "written", &b->calm);
    if (status == LODE_OK && b->wish.kill_rank >= 0)
        status = lode_step_run_create(b, "killed", &b->killed);
    return lode_job_agree(status);
}

static uint64_t digest_of(const lode_step_bench_t *b)
{
    uint64_t digest = 0;
    for (size_t i = 0; i < (size_t)b->wish.steps * b->source.geometry.layers; i++)
        digest = lode_mix(digest, b->calm.digests[i]);
    return digest;
}

/*
 * With all ranks alive: sparse steps, dense steps, and what double says of them. Dense ones come last: they read
 * everything, and what the hot cache kept of it would make the sparse ones look better than they are.
 */
static lode_status_t measure(lode_step_bench_t *b)
{
    LODE_TRY(lode_step_run_steps(b, &b->calm, false));
    lode_status_t status = LODE_OK;
    if (b->calm.failed_steps)
        status = lode_fail(LODE_ERR_INTERNAL, "%u of %u steps failed, the first %s", b->calm.failed_steps,
                           b->wish.steps, b->calm.first_failure);
    LODE_TRY(lode_job_agree(status));
    b->selected_digest = digest_of(b);
    LODE_TRY(lode_job_agree(lode_step_dense(b)));
    return lode_step_check_run(b);
}

/* ------------------------------------------------------------ with a killed rank */

/* A step is wrong if it says that it succeeded and gives something else than before the kill. */
static void count_wrong(lode_step_bench_t *b)
{
    size_t floats = lode_step_floats(b) * b->source.geometry.layers, layers = b->source.geometry.layers;
    for (uint32_t step = 0; step < b->wish.steps; step++) {
        const float *calm = b->calm.out + b->kept[step] * floats, *killed = b->killed.out + b->kept[step] * floats;
        double difference = 0, norm = 0;
        if (b->killed.failed[step])
            continue;
        for (size_t i = 0; i < floats; i++) {
            difference += ((double)killed[i] - calm[i]) * ((double)killed[i] - calm[i]);
            norm += (double)calm[i] * calm[i];
        }
        bool same =
            memcmp(b->calm.digests + step * layers, b->killed.digests + step * layers, layers * sizeof(uint64_t)) == 0;
        b->wrong_steps += !same || !(sqrt(difference) <= 1e-4 * sqrt(norm));
    }
}

/* Survivors say by a block's name that they are done: a rank that left early would take its pages along. */
static void wait_for_survivors(lode_step_bench_t *b)
{
    char name[LODE_NAME_MAX + 1];
    lode_block_h block = NULL;
    snprintf(name, sizeof name, "done-%u", b->job.rank);
    lode_block_params_t params = {.name = name, .format = LODE_FORMAT_BF16, .landmark = b->wish.landmark};
    if (lode_block_create(b->cluster, &params, &block) == LODE_OK)
        lode_block_close(&block);
    uint64_t end = lode_now_ns() + GATHER_SECONDS * UINT64_C(1000000000);
    for (uint32_t rank = 0; rank < b->job.ranks; rank++) {
        snprintf(name, sizeof name, "done-%u", rank);
        while (rank != b->wish.kill_rank && lode_block_open(b->cluster, name, &block) != LODE_OK) {
            if (lode_now_ns() > end)
                return;
            usleep(1000);
        }
        if (block)
            lode_block_close(&block);
    }
}

/* MPI cannot be finalised once a rank is dead, so this ends the process. */
static void measure_kill(lode_step_bench_t *b)
{
    lode_status_t status = lode_step_run_steps(b, &b->killed, true);
    if (status == LODE_OK) {
        count_wrong(b);
        status = lode_step_report(b, &b->killed, false);
    }
    bool bad = status != LODE_OK || b->killed.failed_steps || b->wrong_steps;
    bool speaks = b->job.rank == (b->wish.kill_rank == 0 ? 1 : 0);
    if (status != LODE_OK)
        fprintf(stderr, "lodemark: %s\n", lode_error_message());
    else if (speaks && b->killed.failed_steps)
        fprintf(stderr, "lodemark: %u of %u steps failed, first %s\n", b->killed.failed_steps, b->wish.steps,
                b->killed.first_failure);
    else if (speaks && b->wrong_steps)
        fprintf(stderr, "lodemark: %u steps gave wrong results\n", b->wrong_steps);
    wait_for_survivors(b);
    lode_log_set("error"); /* from here on ranks go one after another, and each would warn of those before it */
    lode_step_leave(b);
    fflush(NULL);
    _exit(bad ? LODE_EXIT_FAILED : LODE_EXIT_OK);
}

/* --------------------------------------------------------------------- main */

static void free_bench(lode_step_bench_t *b)
{
    lode_step_run_free(&b->calm);
    lode_step_run_free(&b->killed);
    lode_step_check_free(b);
    free(b->streams);
    free(b->q);
    free(b->first);
    free(b->k);
    free(b->v);
    free(b->out);
    free(b->dense_ms);
    free(b->dense_out);
    free(b->dense_kept);
    lode_source_close(&b->source);
    lode_bench_options_free(&b->wish.options);
}

static lode_status_t run(lode_step_bench_t *b)
{
    LODE_TRY(lode_job_begin(&b->job));
    LODE_TRY(prepare(b));
    LODE_TRY(measure(b));
    if (b->wish.kill_rank >= 0)
        measure_kill(b);
    return lode_job_agree(lode_step_report(b, &b->calm, true));
}

int lode_bench_step(int argc, char **argv)
{
    lode_step_bench_t b = {0};
    if (lode_bench_wants_help(argc, argv)) {
        if (lode_job_rank_hint() == 0)
            lode_step_help(stdout);
        return LODE_EXIT_OK;
    }
    if (lode_step_wish_parse(argc, argv, &b.wish) != LODE_OK)
        return lode_job_refuse(LODE_EXIT_USAGE, "%s", lode_error_message());
    lode_status_t status = run(&b);
    char sentence[512];
    snprintf(sentence, sizeof sentence, "%s", lode_error_message());
    lode_step_leave(&b);
    free_bench(&b);
    if (status != LODE_OK)
        return lode_job_refuse(LODE_EXIT_FAILED, "%s", sentence);
    lode_job_end();
    return LODE_EXIT_OK;
}
