/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file rounds.h
 * @brief The order of broadcasts, and its end: no threads, no messages, no clock of its own.
 *
 * A broadcast wants all ranks in the same order, and whoever has something to send wants to be the root. So the leader
 * gives numbers, 0, 1, …; who got one announces its round to every rank; announcements may come in any order; a rank
 * runs the round with the next number when it has it. A number that was given and is not announced (its rank died) or
 * a round that does not end stops everybody: after a deadline the order ends, for good.
 *
 * Calls on one struct must not overlap.
 */
#ifndef LODE_CLUSTER_ROUNDS_H
#define LODE_CLUSTER_ROUNDS_H

#include "base/base.h"

enum {
    LODE_ROUNDS_AHEAD = 64, /**< announcements that a rank keeps */
    LODE_ROUNDS_GIVEN = 32  /**< numbers that are out and not run by the leader itself */
};

typedef struct lode_round {
    uint64_t number;
    uint32_t root;
    uint32_t layer;
    uint64_t block;
    uint64_t first, end; /**< landmarks */
    uint64_t bytes;
} lode_round_t;

typedef struct lode_rounds {
    uint64_t next;  /**< number of the round that runs, or else comes next */
    uint64_t given; /**< leader: the number to give next */
    uint64_t deadline_ns;
    uint64_t since_ns; /**< since when the round runs, or the next one lacks while later ones are here; 0: neither */
    bool running;
    bool ended;
    char cause[192]; /**< of the end */
    bool here[LODE_ROUNDS_AHEAD];
    lode_round_t ahead[LODE_ROUNDS_AHEAD]; /**< by number modulo */
} lode_rounds_t;

void lode_rounds_begin(lode_rounds_t *rounds, uint64_t deadline_ns);
/** As leader, give @p count numbers. @return ::LODE_ERR_FULL (others first), ::LODE_ERR_UNSUPPORTED (it has ended) */
lode_status_t lode_rounds_give(lode_rounds_t *rounds, uint32_t count, uint64_t *first);
/**
 * A round was announced. The same again is a success.
 * @return ::LODE_ERR_FORMAT (its number is another round's), ::LODE_ERR_FULL, ::LODE_ERR_UNSUPPORTED (it has ended)
 */
lode_status_t lode_rounds_add(lode_rounds_t *rounds, const lode_round_t *round, uint64_t now);
/** Start the next round. @return false: it is not here, or one runs, or the order has ended. */
bool lode_rounds_start(lode_rounds_t *rounds, lode_round_t *round, uint64_t now);
/** The round that ran is over. */
void lode_rounds_finish(lode_rounds_t *rounds, uint64_t now);
/** End the order if a deadline has passed. @return whether it has ended */
bool lode_rounds_late(lode_rounds_t *rounds, uint64_t now);
/** End the order. @return whether this did it; only the first cause is kept */
bool lode_rounds_end(lode_rounds_t *rounds, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
