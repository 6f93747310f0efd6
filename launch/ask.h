/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file ask.h
 * @brief `lodemark ask`: its parts, in the order in which they come to pass.
 *
 * Options, a corpus from files, a cluster (a job's, or a service's), reading in, questions, what it cost.
 */
#ifndef LODE_LAUNCH_ASK_H
#define LODE_LAUNCH_ASK_H

#include "bench/job.h"
#include "reader/reader.h"

/** The command. @return its exit code */
int lode_ask_main(int argc, char **argv);

/* ------------------------------------------------------------------- corpus */

typedef enum lode_ask_split { LODE_SPLIT_FILE, LODE_SPLIT_PARAGRAPH, LODE_SPLIT_LINE } lode_ask_split_t;

/** Documents of files; zeroed is empty. */
typedef struct lode_ask_corpus {
    lode_document_t *documents; /**< (count) names and texts are the corpus's */
    uint32_t count, room;
    char **kept; /**< (kept_count) names and texts, to be freed */
    size_t kept_count, kept_room;
    uint64_t bytes;
    uint32_t files, skipped;            /**< read; left out because they hold no text */
    void (*warn)(const char *sentence); /**< told of files that are left out; may be NULL */
} lode_ask_corpus_t;

/**
 * Add the documents of a file, or of all files below a folder in the order of their names; hidden ones are passed over.
 * A file that is named must be text: UTF-8 without NUL, not blank. Among those of a folder one that is not is left out.
 * @return ::LODE_ERR_IO, ::LODE_ERR_FORMAT (binary, no UTF-8), ::LODE_ERR_INVALID (empty), ::LODE_ERR_NO_MEMORY.
 */
lode_status_t lode_ask_corpus_add(lode_ask_corpus_t *corpus, const char *path, lode_ask_split_t split);
/** Names, lengths and texts, to compare ranks by. */
uint64_t lode_ask_corpus_digest(const lode_ask_corpus_t *corpus);
void lode_ask_corpus_free(lode_ask_corpus_t *corpus);

/**
 * Divide documents so that all ranks have about as many bytes: the largest first, to who has least.
 * @param[out] ranks_of  (count) whose each is
 */
lode_status_t lode_ask_share(const lode_document_t *documents, uint32_t count, uint32_t ranks, uint32_t *ranks_of);

/* ------------------------------------------------------------------ command */

typedef struct lode_ask_wish {
    lode_options_t options; /**< own ones and the library's */
    char **paths;           /**< (path_count) of documents, borrowed from the command line */
    int path_count;
    char model[4096];
    bool client;         /**< of a running service */
    bool dense, compare; /**< full attention; as well as the policy */
    lode_ask_split_t split;
    lode_reader_params_t reader;
    lode_asking_t asking;
    const char *json; /**< NULL: none; "-": standard output, and nothing else there */
} lode_ask_wish_t;

lode_status_t lode_ask_wish_read(int argc, char **argv, lode_ask_wish_t *wish);
void lode_ask_wish_free(lode_ask_wish_t *wish);
void lode_ask_help(FILE *out);

/** What reading in came to, over all ranks. */
typedef struct lode_ask_ingest {
    uint64_t tokens, fresh_tokens; /**< of all documents; of those that were not there yet */
    uint64_t pieces, present, split_documents;
    double seconds; /**< of the slowest rank */
} lode_ask_ingest_t;

typedef struct lode_ask {
    lode_ask_wish_t wish;
    lode_job_t job; /**< of one rank for a client */
    lode_ask_corpus_t corpus;
    uint32_t *ranks_of; /**< (corpus.count) who reads each document in */
    lode_reader_h reader;
    lode_config_h config;
    lode_cluster_h cluster;
    lode_ask_ingest_t ingest;
    json_t *answers;
    uint32_t asked, failed;
} lode_ask_t;

/* --------------------------------------------------------------------- ranks */

/** Become part of a cluster that has room for the corpus, or a client of the service; attach the reader. Collective. */
lode_status_t lode_ask_join(lode_ask_t *ask);
/**
 * Every rank gets the status and sentence of the lowest that has failed. Unlike lode_job_agree() it does not wait for
 * a rank that died: ::LODE_ERR_PEER_LOST. @param[in,out] sums (n ≤ 8) added over the ranks; may be NULL
 */
lode_status_t lode_ask_meet(lode_ask_t *ask, lode_status_t status, uint64_t *sums, uint32_t n);
/** What ranks but the first do while it asks: they serve until it has ended or died. */
void lode_ask_serve(lode_ask_t *ask);
/** Leave, in step with the ranks that live; may not return where one has died. @return the exit code */
int lode_ask_leave(lode_ask_t *ask, int code);

/* ----------------------------------------------------------------- questions */

/** Ask what the options, a file or standard input say. */
lode_status_t lode_ask_questions(lode_ask_t *ask);

/* -------------------------------------------------------------------- report */

void lode_ask_report_ingest(const lode_ask_t *ask);
/** Behind the answer's text, which was shown as it came. @p dense: the same question asked densely, or NULL */
void lode_ask_report_answer(const lode_ask_t *ask, const lode_answer_t *answer, const lode_answer_t *dense);
/** @return new; NULL without memory */
json_t *lode_ask_answer_json(const lode_ask_t *ask, const char *question, const lode_answer_t *answer,
                             const lode_answer_t *dense);
/** Everything, as one object; does nothing without --json. */
lode_status_t lode_ask_write_json(lode_ask_t *ask);
/** Text of a model or a document to a terminal: control characters but line ends and tabs become "?". */
void lode_ask_print_plain(FILE *out, const char *text, size_t bytes);

#endif
