/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file corpus.h
 * @brief Documents of files and folders.
 */
#ifndef LODE_LAUNCH_CORPUS_H
#define LODE_LAUNCH_CORPUS_H

#include "reader/reader.h"

typedef enum lode_split { LODE_SPLIT_FILE, LODE_SPLIT_PARAGRAPH, LODE_SPLIT_LINE } lode_split_t;

/** What --split says, one of file, paragraph, line. */
lode_split_t lode_split_of(const char *text);

/** What --docs names, borrowed from the command line. */
typedef struct lode_paths {
    char **at; /**< (count) to be freed */
    int count;
} lode_paths_t;

/**
 * Take the paths of a command line: --docs may stand several times, each with several paths behind it.
 * @param[out] rest  (argc) the options that are left, with their values
 * @return ::LODE_ERR_INVALID (a word that belongs to no option), ::LODE_ERR_NO_MEMORY.
 */
lode_status_t lode_corpus_words(const char *command, int argc, char **argv, lode_paths_t *paths, char **rest,
                                int *rest_count);

/** Documents of files; zeroed is empty. */
typedef struct lode_corpus {
    lode_document_t *documents; /**< (count) names and texts are the corpus's */
    uint32_t count, room;
    char **kept; /**< (kept_count) names and texts, to be freed */
    size_t kept_count, kept_room;
    uint64_t bytes;
    uint32_t files, skipped;            /**< read; left out because they hold no text */
    void (*warn)(const char *sentence); /**< told of files that are left out; may be NULL */
} lode_corpus_t;

/**
 * Add the documents of a file, or of all files below a folder in the order of their names; hidden ones are passed over.
 * A file that is named must be text: UTF-8 without NUL, not blank. Among those of a folder one that is not is left out.
 * @return ::LODE_ERR_IO, ::LODE_ERR_FORMAT (binary, no UTF-8), ::LODE_ERR_INVALID (empty), ::LODE_ERR_NO_MEMORY.
 */
lode_status_t lode_corpus_add(lode_corpus_t *corpus, const char *path, lode_split_t split);
/** Names, lengths and texts, to compare ranks by. */
uint64_t lode_corpus_digest(const lode_corpus_t *corpus);
void lode_corpus_free(lode_corpus_t *corpus);

/**
 * Divide documents so that all ranks have about as many bytes: the largest first, to who has least.
 * @param[out] ranks_of  (count) whose each is
 */
lode_status_t lode_corpus_share(const lode_document_t *documents, uint32_t count, uint32_t ranks, uint32_t *ranks_of);

#endif
