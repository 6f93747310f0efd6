/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file step.h
 * @brief What the files of `bench step` share.
 *
 * step_options.c reads what was asked; step_cluster.c joins and ingests; step_run.c runs the steps;
 * step_check.c compares them with the reference; step_report.c prints; step.c puts it together.
 */
#ifndef LODE_BENCH_STEP_H
#define LODE_BENCH_STEP_H

#include "bench/job.h"
#include "bench/reference.h"
#include "bench/source.h"

/** What was asked. Texts are borrowed from `options`. */
typedef struct lode_step_wish {
    lode_options_t options;
    lode_geometry_t geometry;
    uint64_t tokens;
    uint32_t documents;
    const char *policy;
    bool dense;
    lode_landmark_spec_t landmark;
    lode_format_t format;
    lode_group_merge_t merge;
    double budget;
    uint32_t sinks, window;
    uint32_t streams, new_tokens, steps, warmup, dense_steps;
    int64_t check_steps; /**< −1: as many as are cheap */
    uint32_t query_run;
    double sharp_share;
    double alike;          /**< cosine of streams' queries with the first one's; < 0: each has its own */
    const char *generator; /**< for lode_generator_parse() */
    uint64_t seed;
    bool write;
    int64_t kill_rank; /**< −1: none */
    uint32_t kill_step;
    const char *json, *capture;
} lode_step_wish_t;

extern const lode_option_t lode_step_options[];

/** Read the command line. @return ::LODE_ERR_INVALID with the sentence to show. */
lode_status_t lode_step_wish_parse(int argc, char **argv, lode_step_wish_t *wish);
void lode_step_help(FILE *out);

/** One run through all steps. */
typedef struct lode_step_run {
    lode_block_h *writes;     /**< (streams) what each stream writes; NULL without writing */
    lode_view_h *views;       /**< (streams) */
    float *out;               /**< (kept, layers, streams, T, Hq, D) */
    uint64_t *digests;        /**< (steps, layers) */
    lode_step_stats_t *stats; /**< (steps, layers) */
    lode_step_stats_t *lone;  /**< (steps, layers) of one stream beside them; NULL without --alike */
    bool *failed;             /**< (steps) */
    uint32_t failed_steps;
    char first_failure[512];
} lode_step_run_t;

/** Whose query a check is. */
typedef struct lode_check_at {
    uint32_t step, stream, token;
} lode_check_at_t;

typedef struct lode_step_bench {
    lode_step_wish_t wish;
    lode_job_t job;
    lode_source_t source;
    lode_config_h config;
    lode_cluster_h cluster;
    lode_cluster_info_t info;
    lode_block_h *documents; /**< (source.blocks) */
    lode_view_h dense_view;
    /* room for the tensors of one step */
    lode_stream_t *streams;
    float *q, *k, *v, *out;
    float *first;  /**< (Hq, D) the first stream's query, while another's is made of it */
    int32_t *kept; /**< (steps) place of a step's outputs in lode_step_run_t.out, −1: not kept */
    uint32_t kept_count;
    lode_step_run_t calm, killed;
    lode_check_t *checks;
    float *check_q;
    lode_check_at_t *check_at;
    size_t check_count;
    /* what was measured */
    double ingest_seconds, ingest_rate;
    double *dense_ms; /**< (dense_steps · layers) */
    uint32_t dense_count;
    float *dense_out; /**< (kept, layers, streams, T, Hq, D) */
    bool *dense_kept; /**< (kept, layers) whether a dense step asked those queries */
    double rel_error, dense_rel_error, found_mass, oracle_mass;
    struct {
        double found, oracle;
    } mass_of_kind[2];    /**< generated heads: broad, sharp */
    uint32_t wrong_steps; /**< of the killed run, against the calm one */
    uint64_t selected_digest;
} lode_step_bench_t;

static inline uint32_t lode_step_rows(const lode_step_bench_t *b)
{
    return b->wish.streams * b->wish.new_tokens;
}
/** Floats of one step's and layer's queries or outputs. */
static inline size_t lode_step_floats(const lode_step_bench_t *b)
{
    return (size_t)lode_step_rows(b) * b->source.geometry.query_heads * b->source.geometry.head_dim;
}

/** Arena for what --arena leaves open, memory checked, cluster joined. Collective. (step_cluster.c) */
lode_status_t lode_step_join(lode_step_bench_t *bench);
/** Create, fill and open the documents; views. Collective. */
lode_status_t lode_step_ingest(lode_step_bench_t *bench);
/** A run's write blocks and views. Not collective. */
lode_status_t lode_step_run_create(lode_step_bench_t *bench, const char *name, lode_step_run_t *run);
void lode_step_run_close(lode_step_bench_t *bench, lode_step_run_t *run);
void lode_step_run_free(lode_step_run_t *run);
/** Leave the blocks and the cluster. Collective among the living. */
void lode_step_leave(lode_step_bench_t *bench);

/** Which steps are compared; room for their results. (step_check.c) */
lode_status_t lode_step_check_plan(lode_step_bench_t *bench);
/** After a step of the calm run: remember what it chose if it is to be checked. */
lode_status_t lode_step_check_take(lode_step_bench_t *bench, uint32_t step, uint32_t layer,
                                   const lode_step_stats_t *stats);
/** Compute the reference and compare. Collective. */
lode_status_t lode_step_check_run(lode_step_bench_t *bench);
void lode_step_check_free(lode_step_bench_t *bench);

/** Room for a step; dense steps; the steps of a run. (step_run.c) */
lode_status_t lode_step_room(lode_step_bench_t *bench);
lode_status_t lode_step_dense(lode_step_bench_t *bench);
/** Failed steps are counted in the run. @p kill: the wished rank dies on its way. */
lode_status_t lode_step_run_steps(lode_step_bench_t *bench, lode_step_run_t *run, bool kill);
/** A stream's query, mixed as --alike asks. (step_alike.c) */
void lode_step_make_query(lode_step_bench_t *bench, uint32_t layer, uint32_t step, uint32_t stream, uint32_t token,
                          float *q);
/** All layers of a step of one stream, with queries of its own; what it writes is taken back. (step_alike.c) */
lode_status_t lode_step_run_lone(lode_step_bench_t *bench, lode_step_run_t *run, uint32_t step);
/** Tensors of a step's streams; of the first @p count alone, with queries of step @p asked. */
void lode_step_fill(lode_step_bench_t *bench, const lode_step_run_t *run, uint32_t step, uint32_t asked, uint32_t layer,
                    uint32_t count);
/** Number of a query. */
static inline uint64_t lode_step_query(const lode_step_bench_t *b, uint32_t step, uint32_t stream, uint32_t token)
{
    uint64_t turn = step / b->wish.query_run;
    return (turn * b->wish.streams + stream) * b->wish.new_tokens + token;
}

/** Gather from all ranks (if @p together), print on rank 0 (or this one), write JSON. Collective if together.
 * (step_report.c) */
lode_status_t lode_step_report(lode_step_bench_t *bench, const lode_step_run_t *run, bool together);

#endif
