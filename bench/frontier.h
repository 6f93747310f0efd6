/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file frontier.h
 * @brief `lodemark bench frontier`: how much of attention each policy keeps for the bytes it moves.
 *
 * A policy says which tokens are attended over. All of them are judged on the same queries, in runs of consecutive
 * ones, one KV head at a time, against dense attention in double.
 */
#ifndef LODE_BENCH_FRONTIER_H
#define LODE_BENCH_FRONTIER_H

#include <jansson.h>

#include "bench/job.h"
#include "bench/landmarks.h"
#include "bench/options.h"
#include "bench/progress.h"
#include "bench/rivals.h"

/* ----------------------------------------------------------------- policies */

typedef enum lode_chooser_kind {
    LODE_CHOOSER_DENSE,
    LODE_CHOOSER_ORACLE,
    LODE_CHOOSER_LANDMARK, /**< codes or means of tokens or chunks */
    LODE_CHOOSER_SHADOW,   /**< ShadowKV */
    LODE_CHOOSER_DIGEST,   /**< boxes of pages: Quest, ArkVale */
    LODE_CHOOSER_BEFORE,   /**< Quest's boxes of 32, asked by the query before: FreeKV */
    LODE_CHOOSER_TOP_P,    /**< of the budget's tokens the fewest that hold a share of each head's mass: Twilight */
    LODE_CHOOSER_RANDOM
} lode_chooser_kind_t;

enum { LODE_CHOOSER_NAME = 40, LODE_CHOOSERS_MAX = 48 };

typedef struct lode_chooser {
    char name[LODE_CHOOSER_NAME];
    lode_chooser_kind_t kind;
    lode_contestant_t landmark; /**< what scores, if anything does */
    lode_landmark_spec_t spec;  /**< of LANDMARK and TOP_P */
    uint32_t chunk;             /**< tokens that share a score */
    bool ours;                  /**< what this library recommends; the others are rivals, or bounds */
} lode_chooser_t;

/** One policy's name. @return LODE_ERR_INVALID with the nearest one. */
lode_status_t lode_chooser_parse(const char *text, lode_chooser_t *policy);
/** Names separated by commas, none twice. The oracle is put first if it is not among them: it is the measure. */
lode_status_t lode_choosers_parse(const char *text, lode_chooser_t policies[LODE_CHOOSERS_MAX], uint32_t *count);
/** Budgets of a policy's rows: dense has one. */
static inline uint32_t lode_chooser_budgets(const lode_chooser_t *policy, uint32_t budgets)
{
    return policy->kind == LODE_CHOOSER_DENSE ? 1 : budgets;
}

/** What a policy keeps where attention runs, a token and layer over all KV heads, and what a chosen token costs. */
typedef struct lode_chooser_bytes {
    double landmarks; /**< what is searched */
    double residents; /**< what else must stay: low-rank keys, outliers */
    double fetched;   /**< a token and KV head */
} lode_chooser_bytes_t;
lode_chooser_bytes_t lode_chooser_count_bytes(const lode_chooser_t *policy, const lode_shadow_params_t *shadow,
                                              uint32_t kv_heads, uint32_t dim, uint64_t tokens);

/* ------------------------------------------------------------------ judging */

typedef struct lode_frontier_params {
    const lode_source_t *source; /**< of one block */
    lode_job_t job;
    double link; /**< Gbit/s between ranks, as measured; 0: one rank, no link */
    const lode_chooser_t *policies;
    uint32_t policy_count;
    double budgets[LODE_BUDGETS_MAX];
    uint32_t budget_count;
    uint32_t fit;         /**< generated queries that transforms are made from */
    uint32_t runs, steps; /**< judged: runs of so many consecutive queries */
    uint32_t sinks, window;
    lode_group_merge_t merge;
    lode_shadow_params_t shadow;
    double share;   /**< TOP_P */
    double kinship; /**< BEFORE: with a lesser cosine to the query before, the query itself is asked */
    uint64_t seed;
    const char *level;
    json_t *scores; /**< reports of lode_frontier_scores_read(); NULL: none */
} lode_frontier_params_t;

/** Sums over pairs of a query and a KV head; errors and masses are means over the group. */
typedef struct lode_outcome {
    double count, mass, error, fetched;
    double again, again_of; /**< fetched tokens that the query before fetched too, out of how many */
    double facts_found, facts;
} lode_outcome_t;
enum { LODE_OUTCOME_NUMBERS = sizeof(lode_outcome_t) / sizeof(double) };

/** One policy: what it found so far, [budget][kind of head]; captures have no kinds, theirs is the first. */
typedef struct lode_frontier_found {
    uint32_t layers; /**< judged already */
    lode_outcome_t sum[LODE_BUDGETS_MAX][LODE_HEAD_KINDS];
} lode_frontier_found_t;

/** One KV head. All borrowed. */
typedef struct lode_frontier_trial {
    const lode_frontier_params_t *params;
    const lode_ops_t *ops;
    uint32_t layer, head, dim, group, queries;
    uint64_t tokens;
    const float *keys, *values; /**< (tokens, dim) */
    uint64_t fitted;
    const float *fit_queries;    /**< (fitted, dim) */
    const float *judged_queries; /**< (queries, group, dim), scaled */
    const uint64_t *visible;     /**< (queries) */
    const uint64_t *numbers;     /**< (queries) of the source */
    const struct lode_shadow *shadow;
} lode_frontier_trial_t;

/** A head with its truth, ready to judge one policy after another. */
typedef struct lode_frontier_head *lode_frontier_head_h;
lode_status_t lode_frontier_head_create(const lode_frontier_trial_t *trial, lode_frontier_head_h *head);
void lode_frontier_head_destroy(lode_frontier_head_h *head);
/** @param[out] found  (budgets of the policy): added to */
lode_status_t lode_frontier_head_judge(lode_frontier_head_h head, const lode_chooser_t *policy, lode_outcome_t *found);

/** Called by rank 0 after each policy of each layer: what is known may be kept. */
typedef lode_status_t (*lode_frontier_keep_fn)(void *context);
/**
 * Judge every policy on every layer; what found[policy].layers says is done already is left out.
 * The result is the same on every rank, and for any number of ranks. Collective.
 */
lode_status_t lode_frontier_run(const lode_frontier_params_t *params, lode_frontier_found_t *found,
                                lode_frontier_keep_fn keep, void *context);
/** Whether a source is long enough, and has the queries. Called by lode_frontier_run() too. */
lode_status_t lode_frontier_check(const lode_frontier_params_t *params);

/* ------------------------------------------------------------------- report */

/** A line of the report. */
typedef struct lode_frontier_row {
    const lode_chooser_t *policy;
    double budget; /**< share */
    lode_chooser_bytes_t bytes;
    double bytes_per_step, reused; /**< of all layers and KV heads; what the query before did not fetch */
    double mass, oracle, error;
    double facts, hits; /**< NAN: there are none */
    double score;       /**< of a model that answers under this policy and budget; NAN: none is known */
    const lode_outcome_t *kinds, *oracle_kinds;
} lode_frontier_row_t;

/** Rows of the policies that are done. @param[out] rows  room for policies × budgets  @return how many */
uint32_t lode_frontier_rows(const lode_frontier_params_t *params, const lode_frontier_found_t *found,
                            lode_frontier_row_t *rows);
double lode_link_ms(double bytes, double gigabits);
enum { LODE_LINKS = 4 };
extern const double lode_links[LODE_LINKS]; /**< Gbit/s */

/** A rival's row that is better than ours at as many bytes a step. */
typedef struct lode_beaten {
    const lode_frontier_row_t *rival, *ours;
    double mass, error; /**< of ours at the rival's bytes, between its rows */
    bool by_mass, by_error;
    bool memory; /**< ours keeps no more memory than the rival; otherwise it is the smallest of ours, and keeps more */
} lode_beaten_t;
/**
 * Each rival's row is held against the best of ours that keeps no more bytes of memory a token, or, where none does,
 * against the smallest of ours; a lead of less than 1e-4 is none. Rows below the least bytes of ours are not compared.
 * @param[out] beaten  room for `count`  @return how many rows of rivals are better
 */
uint32_t lode_frontier_beaten(const lode_frontier_row_t *rows, uint32_t count, lode_beaten_t *beaten,
                              uint32_t *compared);

/**
 * Read reports of `lodemark bench text2json --json`, files separated by commas.
 * @param[out] reports  a new list
 * @return LODE_ERR_IO, LODE_ERR_FORMAT
 */
lode_status_t lode_frontier_scores_read(const char *paths, json_t **reports);
/** The score that a policy has at a budget (share); NAN if no report has one. Reports may be NULL. */
double lode_frontier_score(const json_t *reports, const lode_chooser_t *policy, double budget);
/** Tables for the page. */
void lode_frontier_scores_write(FILE *out, const json_t *reports);

/** What rows were measured on: kept rows serve again only where this is equal. A new reference. */
json_t *lode_frontier_settings(const lode_frontier_params_t *params, const char *generator, const char *capture);
/** The report; a new reference. settings: borrowed. */
json_t *lode_frontier_json(const lode_frontier_params_t *params, const lode_frontier_found_t *found, json_t *settings);
/** Take what an earlier report of equal settings has. @return LODE_ERR_INVALID if they differ, LODE_ERR_FORMAT. */
lode_status_t lode_frontier_resume(const lode_frontier_params_t *params, const json_t *report, const json_t *settings,
                                   lode_frontier_found_t *found);
void lode_frontier_print(const lode_frontier_params_t *params, const lode_frontier_found_t *found);
/** The page at `path`, and beside it the plots, if gnuplot is there. */
lode_status_t lode_frontier_page(const char *path, const lode_frontier_params_t *params,
                                 const lode_frontier_found_t *found, const json_t *report);
bool lode_frontier_can_plot(void);

#endif
