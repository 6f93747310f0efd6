/* SPDX-License-Identifier: Apache-2.0 */
/* The threads of a step: what each works with, and whose time counts for which stage. */
#include <stdlib.h>
#include <string.h>

#include "attend/step.h"

/* Reading this much takes longer than waking another thread, several times over. */
enum { WORTH_BYTES = 512 << 10 };

lode_status_t lode_lanes_create(lode_step_state_t *step)
{
    uint32_t threads = lode_team_threads(step->cluster->team);
    step->lanes = aligned_alloc(64, threads * sizeof *step->lanes);
    if (!step->lanes)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for what %u threads of a step work with", threads);
    memset(step->lanes, 0, threads * sizeof *step->lanes);
    step->lane_count = threads;
    return LODE_OK;
}

void lode_lanes_destroy(lode_step_state_t *step)
{
    for (uint32_t i = 0; i < step->lane_count; i++) {
        lode_buffer_free(&step->lanes[i].scores);
        lode_buffer_free(&step->lanes[i].sums);
        lode_buffer_free(&step->lanes[i].tables);
        lode_buffer_free(&step->lanes[i].picks);
        lode_buffer_free(&step->lanes[i].notes);
        lode_buffer_free(&step->lanes[i].turned);
        lode_buffer_free(&step->lanes[i].prepared);
        lode_buffer_free(&step->lanes[i].index_parts);
        lode_buffer_free(&step->lanes[i].index_queries);
        lode_buffer_free(&step->lanes[i].index_work);
    }
    free(step->lanes);
    step->lanes = NULL;
    step->lane_count = 0;
}

uint32_t lode_step_whole_items(const lode_step_state_t *step, uint32_t n)
{
    enum { ROUNDS = 8 }; /* from so many on, the last round's idle threads cost little */
    uint32_t threads = step->lane_count;
    return n >= ROUNDS * threads ? n : n - n % threads;
}

typedef struct shared {
    lode_step_state_t *step;
    lode_step_work_t work;
    void *context;
} shared_t;

static void do_item(void *context, uint32_t item, uint32_t thread)
{
    const shared_t *shared = context;
    shared->work(shared->step, shared->context, item, &shared->step->lanes[thread]);
}

/* The stages' shares of the lanes' time become their shares of the time that passed. */
static void book_time(lode_step_state_t *step, uint64_t passed_ns)
{
    uint64_t spent[LODE_STAGE_COUNT] = {0}, all = 0;
    for (uint32_t i = 0; i < step->lane_count; i++)
        for (int stage = 0; stage < LODE_STAGE_COUNT; stage++) {
            spent[stage] += step->lanes[i].stage_ns[stage];
            all += step->lanes[i].stage_ns[stage];
            step->lanes[i].stage_ns[stage] = 0;
        }
    for (int stage = 0; all && stage < LODE_STAGE_COUNT; stage++)
        step->stats.stage_ns[stage] += (uint64_t)((double)passed_ns * (double)spent[stage] / (double)all);
}

void lode_step_share(lode_step_state_t *step, uint32_t items, uint64_t bytes, lode_step_work_t work, void *context)
{
    shared_t shared = {step, work, context};
    uint64_t begin = lode_now_ns();
    lode_team_run(bytes < WORTH_BYTES ? NULL : step->cluster->team, items, do_item, &shared);
    book_time(step, lode_now_ns() - begin);
}
