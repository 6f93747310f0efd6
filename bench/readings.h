/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file readings.h
 * @brief How a model's documents are attended to: names of policies, budgets, and a model's reader for every kind of
 * landmarks that they want.
 */
#ifndef LODE_BENCH_READINGS_H
#define LODE_BENCH_READINGS_H

#include "bench/job.h"
#include "bench/reader_bench.h"

enum { LODE_READINGS_MAX = 24, LODE_READING_NAME = 40 };

typedef enum lode_reading_kind { LODE_READING_DENSE, LODE_READING_LANDMARK, LODE_READING_SHADOW } lode_reading_kind_t;

/** How documents are attended to. */
typedef struct lode_reading {
    char name[LODE_READING_NAME];
    lode_reading_kind_t kind;
    lode_landmark_spec_t landmark; /**< of the blocks that are read; of dense those of the first that has any */
    uint32_t rank;                 /**< SHADOW: 0: as published, or scaled */
    uint32_t store;                /**< which of the different landmarks it reads */
} lode_reading_t;

/** "dense", "shadowkv", "shadowkv:r64" or a landmark's name. @return LODE_ERR_INVALID with the nearest one. */
lode_status_t lode_reading_parse(const char *text, lode_reading_t *reading);
/** Names separated by commas, none twice; numbers the different landmarks. @param[out] stores  how many these are */
lode_status_t lode_readings_parse(const char *text, lode_reading_t readings[LODE_READINGS_MAX], uint32_t *count,
                                  uint32_t *stores);
/** @param[in] budget  a share; dense has none */
lode_policy_t lode_reading_policy(const lode_reading_t *reading, double budget, uint32_t sinks, uint32_t window);

/** One model over blocks of different landmarks: a reader for each kind, in one cluster. Zeroed is closed. */
typedef struct lode_stores {
    lode_reader_h readers[LODE_READINGS_MAX]; /**< (count), or the first alone if that is 0 */
    uint32_t count;
    lode_cluster_h cluster;
} lode_stores_t;

/** Load the model. @param[in] count  of stores, from lode_readings_parse(); 0: just the model, over no blocks */
lode_status_t lode_stores_open(const char *model, lode_format_t format, const lode_reading_t *readings,
                               uint32_t reading_count, uint32_t count, lode_stores_t *stores);
/** Join the cluster whose geometry is the model's, or nothing if there are no stores. Collective. */
lode_status_t lode_stores_join(lode_stores_t *stores, lode_config_h config);
/** This rank's share of a problem's documents, into every store. */
lode_status_t lode_stores_ingest(const lode_stores_t *stores, const lode_job_t *job, const lode_problem_t *problem);
/** All of the documents are what is asked, of every store. */
lode_status_t lode_stores_list(const lode_stores_t *stores, const lode_problem_t *problem);
/** Drop all blocks of the cluster, which are a sample's. */
lode_status_t lode_stores_forget(const lode_stores_t *stores);
/** What the model is, for a report. */
json_t *lode_stores_json(const lode_stores_t *stores, const char *folder);
void lode_stores_close(lode_stores_t *stores);

#endif
