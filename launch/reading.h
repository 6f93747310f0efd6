/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file reading.h
 * @brief What `lodemark ask` and `lodemark talk` have in common: options, documents, a cluster (a job's, or a
 * service's), reading in, leaving.
 */
#ifndef LODE_LAUNCH_READING_H
#define LODE_LAUNCH_READING_H

#include "bench/job.h"
#include "launch/corpus.h"

/** What reading in came to, over all ranks. */
typedef struct lode_reading_ingest {
    uint64_t tokens, fresh_tokens; /**< of all documents; of those that were not there yet */
    uint64_t pieces, present, split_documents;
    double seconds; /**< of the slowest rank */
} lode_reading_ingest_t;

typedef struct lode_reading {
    lode_options_t options; /**< the command's, the shared ones, and the library's */
    lode_paths_t paths;
    char model[4096];
    char device[16]; /**< what multiplies matrices: "" for the processor, "cuda:0" */
    bool client;     /**< of a running service */
    bool dense;      /**< full attention */
    lode_split_t split;
    lode_reader_params_t params;
    lode_policy_t policy;
    lode_sampling_t sampling;
    const char *json;    /**< NULL: none; "-": standard output, and nothing else there */
    uint64_t own_tokens; /**< that the command writes beside the documents: a job makes room for them */
    lode_job_t job;      /**< of one rank for a client */
    lode_corpus_t corpus;
    uint32_t *ranks_of; /**< (corpus.count) who reads each document in */
    lode_reader_h reader;
    lode_config_h config;
    lode_cluster_h cluster;
    lode_reading_ingest_t ingest;
} lode_reading_t;

/* ------------------------------------------------------------------- options */

/** Rows of the shared options, those to be named first and the others. */
#define LODE_READING_OPTIONS_FIRST                                                                          \
    {"docs",                                                                                                \
     NULL,                                                                                                  \
     LODE_OPTION_TEXT,                                                                                      \
     NULL,                                                                                                  \
     0,                                                                                                     \
     0,                                                                                                     \
     "files and folders of text; more may follow, and the option may be given again"},                      \
    {                                                                                                       \
        "model", NULL, LODE_OPTION_TEXT, NULL, 0, 0,                                                        \
            "folder with config.json, model.safetensors, tokenizer.json [the small model that comes along]" \
    }
#define LODE_READING_OPTIONS                                                                                          \
    {"split",                                                                                                         \
     "file",                                                                                                          \
     LODE_OPTION_CHOICE,                                                                                              \
     "file|paragraph|line",                                                                                           \
     0,                                                                                                               \
     0,                                                                                                               \
     "what a document is: a file, text between empty lines, or a line"},                                              \
        {"budget",                                                                                                    \
         "3.125%",                                                                                                    \
         LODE_OPTION_SHARE,                                                                                           \
         NULL,                                                                                                        \
         0,                                                                                                           \
         0,                                                                                                           \
         "share of the documents' tokens that a KV head may read a step"},                                            \
        {"policy",                                                                                                    \
         "landmark2",                                                                                                 \
         LODE_OPTION_TEXT,                                                                                            \
         NULL,                                                                                                        \
         0,                                                                                                           \
         0,                                                                                                           \
         "dense, or landmark16, 8, 4, 2, 1 with :c2 to :c16, :higgs, :nocentre, :index"},                             \
        {"format", "bf16", LODE_OPTION_CHOICE, "bf16|fp8|higgs4", 0, 0, "how records are stored"},                    \
        {"merge", "max", LODE_OPTION_CHOICE, "max|mean", 0, 0, "how the query heads of a group agree on a token"},    \
        {"sinks", "0", LODE_OPTION_COUNT, NULL, 0, 1 << 20, "first tokens of the documents that are always read"},    \
        {"window",                                                                                                    \
         "0",                                                                                                         \
         LODE_OPTION_COUNT,                                                                                           \
         NULL,                                                                                                        \
         0,                                                                                                           \
         1 << 20,                                                                                                     \
         "last tokens that are always read, beside what was written"},                                                \
        {"temperature", "0", LODE_OPTION_TEXT, NULL, 0, 0, "0: the likeliest token each time; higher: more various"}, \
        {"top-p",                                                                                                     \
         "100%",                                                                                                      \
         LODE_OPTION_SHARE,                                                                                           \
         NULL,                                                                                                        \
         0,                                                                                                           \
         0,                                                                                                           \
         "draw from the likeliest tokens that have this share together"},                                             \
        {"top-k", "0", LODE_OPTION_COUNT, NULL, 0, 1 << 20, "draw from so many at most; 0: from all"},                \
        {"seed", "1", LODE_OPTION_COUNT, NULL, 0, 0, "of what is drawn"},                                             \
        {"cluster",                                                                                                   \
         NULL,                                                                                                        \
         LODE_OPTION_TEXT,                                                                                            \
         NULL,                                                                                                        \
         0,                                                                                                           \
         0,                                                                                                           \
         "contact file of a lodemarkd to keep all in, instead of this job [LODEMARK_CLUSTER]"},                       \
    {                                                                                                                 \
        "token-file", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "file with that service's token [LODEMARK_TOKEN_FILE]"      \
    }

/** Read a command line. @param[in] table  the command's options with the shared ones among them */
lode_status_t lode_reading_options(const char *command, const lode_option_t *table, int argc, char **argv,
                                   lode_reading_t *reading);
/** The shared part of --help, behind the command's own words. */
void lode_reading_help(const lode_option_t *table, FILE *out);
bool lode_reading_quiet(const lode_reading_t *reading);
/** Whether --json's file can be written. */
lode_status_t lode_reading_check_json(const lode_reading_t *reading);

/* --------------------------------------------------------------------- ranks */

/** Load the documents, and the model. */
lode_status_t lode_reading_load(lode_reading_t *reading);
/** Become part of a cluster that has room for the corpus, or a client of the service; attach the reader. Collective. */
lode_status_t lode_reading_join(lode_reading_t *reading);
/** All ranks at once, each its share; then the first lists all of it, unless it was told to end. Collective. */
lode_status_t lode_reading_ingest(lode_reading_t *reading);
/**
 * Every rank gets the status and sentence of the lowest that has failed. Unlike lode_job_agree() it does not wait for
 * a rank that died: ::LODE_ERR_PEER_LOST. @param[in,out] sums (n ≤ 8) added over the ranks; may be NULL
 */
lode_status_t lode_reading_meet(lode_reading_t *reading, lode_status_t status, uint64_t *sums, uint32_t n);
/**
 * Leave, in step with the ranks that live: those but the first serve until it has ended or died. May not return where
 * one has died.
 * @return the exit code, of all ranks the highest if they left together
 */
int lode_reading_leave(lode_reading_t *reading, int code);
/** What lode_reading_leave() has not freed yet; for a command that never got so far. */
void lode_reading_free(lode_reading_t *reading);

/* -------------------------------------------------------------------- report */

/** Bytes of one record of this model. */
size_t lode_reading_record_bytes(const lode_reading_t *reading);
void lode_reading_report_ingest(const lode_reading_t *reading, FILE *out);
/** What all reports begin with: model, cluster, policy, what was read in. @return new; NULL without memory */
json_t *lode_reading_json(const lode_reading_t *reading);

#endif
