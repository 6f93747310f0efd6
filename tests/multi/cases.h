/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file cases.h
 * @brief Cases of a program under mpirun, one after another in one process: to start MPI takes longer than most of
 * them.
 */
#ifndef LODE_TESTS_CASES_H
#define LODE_TESTS_CASES_H

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

typedef struct case_of {
    const char *name;
    void (*run)(void);
} case_t;

#define CASE(name)  \
    {               \
#name, name \
    }

/** Collective: end the program on all ranks unless it holds on each, so that none is left waiting for another. */
#define EVERYWHERE(condition) everywhere(condition, #condition, __LINE__)

static inline void everywhere(bool holds, const char *condition, int line)
{
    int mine = holds, all = 0, rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (!holds)
        fprintf(stderr, "rank %d, line %d: %s; last error: %s\n", rank, line, condition, lode_error_message());
    MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (!all)
        MPI_Abort(MPI_COMM_WORLD, 1);
}

static inline bool is_asked_for(const char *name, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], name) == 0)
            return true;
    }
    return argc == 1;
}

/**
 * Run the cases that the arguments name, all without arguments.
 * Each is named before it begins: the last one of the output is the one that failed or hung.
 */
static inline int run_cases(const case_t *cases, size_t count, void (*set_up)(void), void (*tear_down)(void), int argc,
                            char **argv)
{
    int rank, provided, ran = 0;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    lode_log_rank(rank);
    for (size_t i = 0; i < count; i++) {
        if (!is_asked_for(cases[i].name, argc, argv))
            continue;
        if (rank == 0)
            fprintf(stderr, "%s\n", cases[i].name);
        set_up();
        cases[i].run();
        tear_down();
        MPI_Barrier(MPI_COMM_WORLD);
        ran++;
    }
    MPI_Finalize();
    return ran ? 0 : 1;
}

#endif
