/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file stat.h
 * @brief What all ranks say of themselves, added up and judged: for `stat` and `health`.
 */
#ifndef LODE_LAUNCH_STAT_H
#define LODE_LAUNCH_STAT_H

#include "launch/client.h"

typedef struct lode_stat {
    uint32_t ranks, alive, epoch;
    uint32_t *mute;          /**< (ranks) 1: alive, but did not answer before the deadline */
    lode_rank_stats_t *rank; /**< (ranks) */
    lode_rank_stats_t total; /**< sums; landmarks once a host, blocks and page counts of all as the best informed
                                  rank says, latencies of the slowest rank */
    char trouble[512];       /**< what is wrong and what to do; "" if healthy */
    char note[256];          /**< what deserves a word without being wrong */
} lode_stat_t;

/** Ask every rank. @param[out] stat give back by lode_stat_free() */
lode_status_t lode_stat_take(lode_client_t *client, lode_stat_t *stat);
void lode_stat_free(lode_stat_t *stat);

#endif
