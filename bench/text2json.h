/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file text2json.h
 * @brief Tasks that look up many facts in a long text: samples made from a seed, and scores of a model's output.
 *
 * Text2JSON (arXiv 2604.08426): extract a list of objects. Multi-needle: give back every planted pair. HTML to TSV:
 * give back rows of a web page (after LongProc). docs/text2json.md has the formats and the rules.
 */
#ifndef LODE_BENCH_TEXT2JSON_H
#define LODE_BENCH_TEXT2JSON_H

#include <jansson.h>

#include "base/base.h"

typedef enum lode_text2json_task {
    LODE_TASK_TEXT2JSON,
    LODE_TASK_MULTI_NEEDLE,
    LODE_TASK_HTML_TO_TSV
} lode_text2json_task_t;

/** Names and values of one are never those of the other; numbers are of the same ranges. */
typedef enum lode_text2json_split { LODE_TEXT2JSON_TRAIN, LODE_TEXT2JSON_TEST } lode_text2json_split_t;

typedef enum lode_text2json_style {
    LODE_TEXT2JSON_PROSE, /**< sentences, worded differently each time */
    LODE_TEXT2JSON_CARDS, /**< "label: value" lines */
    LODE_TEXT2JSON_MIXED  /**< a card once in three documents */
} lode_text2json_style_t;

/** products, doctors, organisations, films; bit i of lode_text2json_params_t.domains is domain i. */
enum { LODE_TEXT2JSON_DOMAINS = 4 };

typedef struct lode_text2json_params {
    lode_text2json_task_t task;
    uint64_t seed;
    lode_text2json_split_t split;
    lode_text2json_style_t style;
    uint32_t domains;
    uint32_t tokens_min, tokens_max; /**< of a problem, as lode_text2json_tokens() counts */
    uint32_t items_min, items_max;   /**< of an answer */
} lode_text2json_params_t;

typedef struct lode_text2json_sample {
    char *problem, *answer; /**< free() both */
    uint32_t tokens, items, documents;
    const char *domain;
} lode_text2json_sample_t;

/**
 * About how many tokens a byte-pair tokeniser makes of a text, without one: a word of letters counts 1, and 1 more for
 * each 6 letters after the sixth, three digits count 1, any other byte that is no space counts 1, a line end counts 1.
 */
uint32_t lode_text2json_tokens(const char *text);

/** Whether the limits leave room: LODE_ERR_INVALID with what to change. */
lode_status_t lode_text2json_check(const lode_text2json_params_t *params);
/**
 * Make sample @p index. It depends on the parameters and its index alone, so a longer file begins as a shorter one.
 * @param[out] sample  of min to max tokens if max is 600 or more above min; never more than max
 */
lode_status_t lode_text2json_make(const lode_text2json_params_t *params, uint64_t index,
                                  lode_text2json_sample_t *sample);
void lode_text2json_sample_free(lode_text2json_sample_t *sample);

/* ------------------------------------------------------------------- scores */

/** What became of the items of one output. */
typedef struct lode_text2json_score {
    double score;       /**< 0 to 1: sum of the items over gold and additions */
    bool left_out;      /**< its gold names one item twice; the rest is 0 */
    char twice[96];     /**< that name */
    bool unread;        /**< not one list of JSON */
    uint32_t gold;      /**< items asked for */
    uint32_t matched;   /**< of them named */
    uint32_t additions; /**< items that nobody asked for, or named again, or without a name */
    uint32_t missing;   /**< keys that a matched item lacks */
    uint32_t wrong;     /**< values of matched items that differ */
} lode_text2json_score_t;

/** Score @p bytes of a model's output against a list that has passed lode_text2json_check_gold(). */
lode_status_t lode_text2json_score(const json_t *gold, const char *output, size_t bytes, lode_text2json_score_t *score);
/** Whether @p gold is a list of one or more objects of three strings, one of them "name". */
lode_status_t lode_text2json_check_gold(const json_t *gold);

/** Rows of tab-separated cells: how many are right. */
typedef struct lode_rows_score {
    double precision, recall, f1;      /**< 0 to 1 */
    uint32_t gold, predicted, matched; /**< rows below the header */
} lode_rows_score_t;

/**
 * Score rows against gold rows. The first line of each is a header. Cells are compared without case, spaces, ASCII
 * punctuation and articles. A gold row is matched once. If the output has a fence of ```tsv, what is in it counts.
 */
lode_status_t lode_rows_score(const char *gold, const char *output, lode_rows_score_t *score);

/** A line of a file of samples. */
typedef struct lode_task_line {
    char *problem; /**< (bytes), zero-terminated */
    size_t bytes;
    json_t *gold; /**< passed lode_text2json_check_gold() */
} lode_task_line_t;

/**
 * Read samples of Text2JSON, the first @p most of them or, if that is 0, all.
 * @param[out] lines  (count), lode_task_lines_free()
 * @return LODE_ERR_IO, LODE_ERR_INVALID: names the line
 */
lode_status_t lode_task_lines_read(const char *path, uint64_t most, lode_task_line_t **lines, uint64_t *count);
void lode_task_lines_free(lode_task_line_t *lines, uint64_t count);

/** A file of gold and one of predictions, scored. */
typedef struct lode_task_result {
    json_t *report; /**< as --json prints it; json_decref() */
    uint64_t samples, scored;
} lode_task_result_t;

/**
 * Score a file of predictions, line by line, against the file of samples.
 * Fails with the line and what is wrong with it; also when one file has more lines than the other.
 */
lode_status_t lode_task_score_files(lode_text2json_task_t task, const char *gold, const char *predictions,
                                    lode_task_result_t *result);

#endif
