/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench/progress.h"
#include "launch/attend.h"

enum { NAP_US = 10000, TRIES = 3 };
/* Without a single success for so long, the rest would fail as well. */
#define GIVE_UP_NS (UINT64_C(30) * 1000000000u)

/* ------------------------------------------------------------------ one step */

static lode_status_t take_choice(lode_attend_t *a, lode_check_t *check)
{
    for (uint32_t head = 0; head < a->source.geometry.kv_heads; head++) {
        const uint32_t *tokens;
        uint64_t count;
        LODE_TRY(lode_step_selection(a->client->cluster, 0, 0, head, &tokens, &count));
        free(check->chosen[head]);
        check->chosen[head] = NULL;
        check->chosen_count[head] = count;
        if (!tokens)
            continue;
        check->chosen[head] = malloc((count + 1) * sizeof **check->chosen);
        if (!check->chosen[head])
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a choice of tokens");
        memcpy(check->chosen[head], tokens, count * sizeof *tokens);
    }
    return LODE_OK;
}

/*
 * The first whole output of a call is kept, and every later one must be the same bit by bit. It is kept with what was
 * chosen for it, which only the rank of the step can say: when that died in between, there is nothing to keep.
 */
static void keep(lode_attend_t *a, size_t call, float lost)
{
    size_t row = lode_attend_row(a);
    float *kept = a->out + call * row;
    if (lost > 0) {
        a->lossy_steps++;
        a->lost_share = lost > a->lost_share ? lost : a->lost_share;
    }
    if (a->kept[call] == LODE_KEPT_WHOLE) {
        a->wrong_steps += !(lost > 0) && memcmp(kept, a->step_out, row * sizeof *kept) != 0;
        return;
    }
    if ((lost > 0 && a->kept[call] == LODE_KEPT_LOSSY) || take_choice(a, &a->checks[call]) != LODE_OK)
        return;
    memcpy(kept, a->step_out, row * sizeof *kept);
    a->kept[call] = lost > 0 ? LODE_KEPT_LOSSY : LODE_KEPT_WHOLE;
}

static void count(lode_attend_t *a, const lode_step_stats_t *stats, uint64_t ns)
{
    uint64_t at = (a->steps - a->failed_steps) % LODE_ATTEND_TIMES;
    a->client_ns[at] = ns;
    a->rank_ns[at] = stats->step_ns;
    a->visible_tokens = stats->visible_tokens > a->visible_tokens ? stats->visible_tokens : a->visible_tokens;
    a->budget_tokens = stats->budget_tokens > a->budget_tokens ? stats->budget_tokens : a->budget_tokens;
    a->bytes_fetched += (double)stats->bytes_fetched;
    a->records_fetched += (double)stats->records_fetched;
    a->records_prefetched += (double)stats->records_prefetched;
    a->records_wanted += (double)stats->records_wanted;
    a->records_hit += (double)stats->records_hit;
    a->retries += (double)stats->retries;
}

/* One step of a call. Its time counts until its output is there, or its failure. */
static lode_status_t step(lode_attend_t *a, size_t call, uint64_t run_begin)
{
    uint32_t layers = a->source.geometry.layers;
    float lost = 0;
    lode_step_stats_t stats = {0};
    lode_stream_t stream = {.view = a->view,
                            .tokens = 1,
                            .position = lode_source_position(&a->source, call / layers),
                            .dtype = LODE_FP32,
                            .q = a->q + call * lode_attend_row(a),
                            .out = a->step_out,
                            .lost_share = &lost};
    uint64_t begin = lode_now_ns();
    lode_status_t status = lode_step(a->client->cluster, (uint32_t)(call % layers), &stream, 1, &stats);
    uint64_t ns = lode_now_ns() - begin;
    if (ns > a->longest_ns) {
        a->longest_ns = ns;
        a->longest_at_ns = begin - run_begin;
    }
    LODE_TRY(status);
    count(a, &stats, ns);
    keep(a, call, lost);
    return LODE_OK;
}

static void note_failure(lode_attend_t *a, size_t call, lode_status_t status)
{
    uint32_t layers = a->source.geometry.layers;
    if (!a->failed_steps++)
        snprintf(a->first_failure, sizeof a->first_failure, "step %" PRIu64 " (query %zu, layer %zu): %s: %s", a->steps,
                 call / layers, call % layers, lode_status_string(status), lode_error_message());
}

/* ------------------------------------------------------------------- passes */

static bool is_over(const lode_attend_t *a, uint64_t begin, uint64_t now)
{
    if (lode_client_caught() || a->gave_up)
        return true;
    if (a->loop_ns) /* the first pass is finished whatever time it takes */
        return a->finished_passes && now - begin >= a->loop_ns;
    return a->finished_passes >= a->passes;
}

/* The next call, or this one again if its step gave an output that could not be kept, but not for ever. */
static void advance(lode_attend_t *a, lode_status_t status, size_t *call, uint32_t *tries)
{
    if (status == LODE_OK && a->kept[*call] == LODE_KEPT_NOTHING && ++*tries < TRIES)
        return;
    *tries = 0;
    if (++*call == a->calls) {
        *call = 0;
        a->finished_passes++;
    }
}

lode_status_t lode_attend_run(lode_attend_t *a)
{
    lode_progress_t progress;
    uint64_t begin = lode_now_ns(), now = begin, success = begin;
    size_t call = 0;
    uint32_t tries = 0;
    lode_progress_begin(&progress, "attend", a->loop_ns ? a->loop_ns : a->passes * a->calls);
    while (!is_over(a, begin, now)) {
        lode_status_t status = step(a, call, begin);
        now = lode_now_ns();
        if (status == LODE_OK) {
            success = now;
        } else {
            note_failure(a, call, status);
            a->gave_up = now - success > GIVE_UP_NS;
            usleep(NAP_US); /* what fails at once would else fail a million times */
        }
        a->steps++;
        advance(a, status, &call, &tries);
        lode_progress_at(&progress, a->loop_ns ? now - begin : a->steps);
    }
    lode_progress_end(&progress);
    a->run_ns = lode_now_ns() - begin;
    return LODE_OK;
}
