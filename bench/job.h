/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file job.h
 * @brief The benchmark as an MPI job: who speaks, how ranks agree on an error, exit codes.
 *
 * These are the benchmark's own collectives, before and after what is measured. After a rank was killed
 * none of them may be called.
 */
#ifndef LODE_BENCH_JOB_H
#define LODE_BENCH_JOB_H

#include <jansson.h>
#include <stdbool.h>

#include "base/base.h"
#include "bench/median.h"

/** What a command exits with. */
enum { LODE_EXIT_OK = 0, LODE_EXIT_FAILED = 1, LODE_EXIT_USAGE = 2 };

/** Rank of this process as its launcher (mpirun, srun) set it, 0 without one. Needs no MPI. */
uint32_t lode_job_rank_hint(void);
/** Rank among those of this node, likewise. */
uint32_t lode_job_local_rank_hint(void);
/** Ranks of the job as the launcher says, 1 without one. */
uint32_t lode_job_ranks_hint(void);

/**
 * Print "lodemark: <sentence>" by one rank and give @p code back. Meant for errors that every rank finds by
 * itself, like a wrong option: no rank returns before the one that speaks has spoken, or the launcher could
 * kill it first.
 */
int lode_job_refuse(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

typedef struct lode_job {
    uint32_t rank, ranks;
} lode_job_t;

/** Initialise MPI. Collective. */
lode_status_t lode_job_begin(lode_job_t *job);
/** Finalise MPI. Collective. */
void lode_job_end(void);
/**
 * Every rank gets the status and sentence of the lowest rank that has failed; LODE_OK if none has. Collective; without
 * MPI it gives @p status back.
 */
lode_status_t lode_job_agree(lode_status_t status);
/** Wait for all ranks as lode_job_agree(LODE_OK) does, but asleep: others compute meanwhile. Collective. */
void lode_job_wait(const lode_job_t *job);
/** Sums over the ranks, in place. Collective; a job of one rank needs no MPI. */
void lode_job_sum(const lode_job_t *job, double *values, size_t n);
void lode_job_sum_counts(const lode_job_t *job, uint64_t *values, size_t n);
/** Largest values over the ranks. Collective; a job of one rank needs no MPI. */
void lode_job_max(const lode_job_t *job, const double *mine, double *largest, size_t n);

/**
 * The link between the first and the last rank: half the time that 4 MiB take there and back by MPI, the median of some
 * tries. Collective. @return Gbit/s; 0 for a job of one rank
 */
double lode_job_link(const lode_job_t *job);

/** Whether @p path can be created or written; nothing is changed in a file that is there. */
lode_status_t lode_job_check_output(const char *path);
/** A number for JSON, which has no infinity and no NaN: null for those. */
json_t *lode_job_number(double value);
/** Put one into an object; no text is null. */
void lode_job_set_number(json_t *object, const char *key, double value);
void lode_job_set_count(json_t *object, const char *key, uint64_t value);
void lode_job_set_text(json_t *object, const char *key, const char *value);
/** Write @p object to @p path, or nothing if that is NULL. */
lode_status_t lode_job_write_json(const char *path, const json_t *object);

#endif
