/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file team.h
 * @brief A few threads that share out the items of a job with the one that has it.
 *
 * The caller is the first of the team and works too. Items go to whoever is free next, so a thread that the system
 * has taken off its core holds up at most the item that it is at, and one that is still asleep holds up nothing:
 * what an item gives must not depend on which thread does it. An idle thread polls for a while and then sleeps.
 */
#ifndef LODE_BASE_TEAM_H
#define LODE_BASE_TEAM_H

#include "base/base.h"

enum { LODE_TEAM_THREADS = 64 };
/** What the system shows the threads as, the caller's apart. */
#define LODE_TEAM_NAME "lode-team"

typedef struct lode_team *lode_team_h;

/** Do item @p item of a job as thread @p thread of the team (0: the caller). It cannot fail. */
typedef void (*lode_team_work_t)(void *context, uint32_t item, uint32_t thread);

typedef struct lode_team_params {
    uint32_t threads;   /**< with the caller; 0: this process's share of its cores, at least 1 */
    uint32_t sharers;   /**< processes on the cores that this one may use, itself included: ranks of the node; 0: 1 */
    uint32_t share;     /**< which of them this is, from 0 */
    uint32_t spin_us;   /**< that an idle thread polls before it sleeps */
    const char *within; /**< keep to these of the cores that the process may use, as hwloc writes sets; NULL, "": all */
} lode_team_params_t;

/**
 * Start the threads. If all sharers' threads fit the cores that this process may use, each is bound to a core of its
 * own, never one outside of them; the caller, who belongs to somebody else, is not. Else none is bound and none polls.
 * @return ::LODE_ERR_NO_MEMORY (a thread could not be started; none is left)
 */
lode_status_t lode_team_create(const lode_team_params_t *params, lode_team_h *team);
/** Waits for the threads to end; none is at work then. NULL is legal. */
void lode_team_destroy(lode_team_h *team);
/** With the caller. NULL: 1. */
uint32_t lode_team_threads(lode_team_h team);
/** Of the threads, the caller not counted, that are bound to a core. */
uint32_t lode_team_bound(lode_team_h team);
/**
 * Do items 0 … items−1, in this order but several at once, and return when all are done. One caller at a time, no call
 * from within. Allocates nothing and takes no lock; wakes threads that sleep by a system call.
 */
void lode_team_run(lode_team_h team, uint32_t items, lode_team_work_t work, void *context);

/**
 * A name for the cores that this process may use, for processes to compare: those of one node with the same name are
 * sharers.
 * @param within  as in lode_team_params_t
 * @return whether they are fewer than the machine has: somebody bound it on purpose.
 */
bool lode_team_binding(const char *within, char name[256]);

#endif
