/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file attend.h
 * @brief What the files of `lodemark attend` share.
 *
 * attend.c reads what was asked, checks that block and capture fit, and opens; attend_run.c asks the queries;
 * attend_report.c compares with double and prints.
 *
 * A *call* is one query of the capture on one layer, and one step; call c is query c / layers on layer c % layers.
 * A *pass* is every call once.
 */
#ifndef LODE_LAUNCH_ATTEND_H
#define LODE_LAUNCH_ATTEND_H

#include "bench/reference.h"
#include "bench/source.h"
#include "launch/client.h"

/** What is known of a call's output. */
typedef enum lode_kept {
    LODE_KEPT_NOTHING, /**< no step of it has succeeded */
    LODE_KEPT_LOSSY,   /**< one that had to do without lost tokens */
    LODE_KEPT_WHOLE
} lode_kept_t;

typedef struct lode_attend {
    lode_client_t *client;
    /* asked */
    const char *capture, *name, *json;
    char policy_text[LODE_TEXT_MAX];
    lode_policy_t policy;
    uint64_t passes, loop_ns; /**< whichever is not 0 */
    uint64_t check_steps;     /**< at most */
    /* opened */
    lode_source_t source;
    lode_block_h block;
    lode_view_h view;
    /* kept of each call */
    size_t calls;
    float *q, *out; /**< (calls, Hq, D) */
    lode_kept_t *kept;
    lode_check_t *checks;
    float *step_out; /**< (Hq, D) */
    /* counted */
    uint64_t steps, failed_steps, wrong_steps, lossy_steps, finished_passes;
    double lost_share; /**< the largest */
    char first_failure[768];
    bool gave_up;
    uint64_t *client_ns, *rank_ns; /**< (LODE_ATTEND_TIMES) of the latest steps that succeeded */
    uint64_t longest_ns, longest_at_ns, run_ns;
    uint64_t visible_tokens, budget_tokens;
    double bytes_fetched, records_fetched, records_prefetched, records_wanted, records_hit, retries;
    lode_cluster_info_t before, after;
    /* compared */
    size_t checked;
    double rel_error, worst_error, found_mass, oracle_mass;
} lode_attend_t;

enum { LODE_ATTEND_TIMES = 1 << 18 };

static inline size_t lode_attend_row(const lode_attend_t *a)
{
    return (size_t)a->source.geometry.query_heads * a->source.geometry.head_dim;
}

/** Ask every call, pass after pass. A step that fails is counted and does not end the run. (attend_run.c) */
lode_status_t lode_attend_run(lode_attend_t *attend);
/** Dense attention in double over the capture, for the calls that succeeded. (attend_report.c) */
lode_status_t lode_attend_check(lode_attend_t *attend);
/** Print, and write the JSON. (attend_report.c) */
lode_status_t lode_attend_report(lode_attend_t *attend);

#endif
