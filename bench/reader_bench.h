/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file reader_bench.h
 * @brief What measures the reader: samples cut into documents, a run in plain memory to hold policies against,
 * captures.
 */
#ifndef LODE_BENCH_READER_BENCH_H
#define LODE_BENCH_READER_BENCH_H

#include <jansson.h>

#include "bench/rivals.h"
#include "reader/reader.h"

/* ----------------------------------------------------------------- problems */

/** A problem of a long-text task as documents and what is asked of them. Texts are borrowed from the problem. */
typedef struct lode_problem {
    lode_document_t *documents; /**< (count) */
    uint32_t count;
    char (*names)[32]; /**< (count) "Document 7" */
    const char *request;
    size_t request_bytes;
} lode_problem_t;

/**
 * Cut a problem. A document begins with a line that is "Document N" and ends before the next such line, the last before
 * the line that begins with "Request:"; what is before the first is left out. Spaces at both ends do not count.
 * @return LODE_ERR_FORMAT: no document, one of a header alone, no request
 */
lode_status_t lode_problem_split(const char *text, size_t bytes, lode_problem_t *problem);
void lode_problem_free(lode_problem_t *problem);
/** Leave at most so many documents, in their order: those that name an item of the answer, then others by chance. */
void lode_problem_keep(lode_problem_t *problem, const json_t *gold, uint32_t most, uint64_t seed);

/** A question about a problem's documents. */
typedef struct lode_question {
    const char *text;
    size_t bytes;
    char *own;         /**< the text, if it is not the problem's */
    const char *value; /**< what is right; NULL: the whole answer. Borrowed from the gold */
} lode_question_t;
/**
 * One question for each value of the answer: "What is the weight of Keldik Z290?"
 * @param[out] questions  (count); lode_questions_free()
 */
lode_status_t lode_questions_look_up(const json_t *gold, lode_question_t **questions, uint32_t *count);
void lode_questions_free(lode_question_t *questions, uint32_t count);

/* ---------------------------------------------------------------- plain run */

/** Tokens of one document's piece among those of all. */
typedef struct lode_plain_piece {
    uint64_t begin, count;
    int64_t offset; /**< view position of its first token */
} lode_plain_piece_t;

/**
 * A run of a model that keeps all keys and values in this process' memory, in floats, and attends there: over
 * everything, or as ShadowKV does. Tokens are numbered document after document, then question and answer.
 */
typedef struct lode_plain {
    lode_model_h model;
    lode_tokenizer_h tokenizer;
    const lode_manner_t *manner; /* all three borrowed */
    const lode_ops_t *ops;
    lode_geometry_t geometry;
    double frequencies[LODE_MAX_DIM / 2];
    float **k, **v; /**< (layers · KV heads) of (room, D), rotated to view positions */
    uint64_t tokens, room;
    uint64_t documents_end; /**< tokens of documents */
    int64_t *positions;     /**< (room) view position of each token */
    lode_plain_piece_t *pieces;
    uint32_t piece_count, piece_room;
    uint64_t *ends; /**< (piece_count) */
    float *logits;  /**< (group, room) */
    /* capturing */
    bool record;
    float **q;       /**< (layers) of (tokens after documents_end, Hq, D) */
    uint64_t q_room; /**< tokens */
    /* ShadowKV */
    lode_shadow_params_t shadow_params;
    lode_shadow_h *shadows; /**< (layers), NULL: attention is dense */
    double budget;          /**< share of the documents' tokens */
    struct lode_plain_choice *choice;
    uint64_t fetched, asked; /**< tokens chosen that do not stay, over all heads and steps; steps */
} lode_plain_t;

lode_status_t lode_plain_open(lode_model_h model, lode_tokenizer_h tokenizer, const lode_manner_t *manner,
                              lode_plain_t *plain);
void lode_plain_close(lode_plain_t *plain);
/** Prefill documents, each by itself; those of before are forgotten. */
lode_status_t lode_plain_read(lode_plain_t *plain, const lode_document_t *documents, uint32_t count,
                              void (*progress)(void *self, uint64_t tokens), void *self);
/**
 * Ask the documents, best token after best token. Only text, bytes, question_tokens, answer_tokens, stopped,
 * visible_tokens and times of the answer are set. Question and answer stay among the tokens until something else is
 * asked or read.
 */
lode_status_t lode_plain_ask(lode_plain_t *plain, const char *question, size_t bytes, uint32_t most_tokens,
                             lode_answer_t *answer);

/**
 * From now on answer tokens attend as ShadowKV does; questions see everything, as its prefill does. Question and answer
 * stay as they are.
 * @param[in] rank      0: as published, 160, or of narrower keys the same share as of Llama-3.1-8B's
 * @param[in] outliers  chunks a head that stay; all if there are fewer
 * @param[in] budget    share of the documents' tokens, in chunks
 */
lode_status_t lode_plain_shadow(lode_plain_t *plain, uint32_t rank, uint32_t outliers, double budget);
/** Dense again. */
void lode_plain_unshadow(lode_plain_t *plain);
/** Rank of the keys that `width` coordinates over all heads have in place of ShadowKV's 160 of 1024. */
uint32_t lode_shadow_rank(uint32_t width);
/** Bytes a token of the documents, of a layer, over all KV heads: what is searched, and what else stays. */
void lode_plain_shadow_bytes(const lode_plain_t *plain, double *landmarks, double *residents);
/** Attention of one new token over what ShadowKV would have of the documents, and all that came behind them. */
lode_status_t lode_plain_shadow_attend(lode_plain_t *plain, uint32_t layer, const float *q, float *out);

/* Inside. */

/** One query over rows [0, n) of a head; q is scaled. logits: room for n. */
void lode_plain_attend_rows(const lode_plain_t *plain, const float *k, const float *v, uint64_t n, const float *q,
                            float *logits, float *out);
static inline size_t lode_plain_lane(const lode_plain_t *plain, uint32_t layer, uint32_t head)
{
    return (size_t)layer * plain->geometry.kv_heads + head;
}

/* ------------------------------------------------------------------ captures */

/**
 * Write what a plain run with `record` holds as a capture (docs/captures.md): all tokens' keys and values, and the
 * queries of question and answer. The file gets its name when it is whole.
 * @param[in] dtype  LODE_BF16 or LODE_FP32
 */
lode_status_t lode_plain_write_capture(const lode_plain_t *plain, const char *path, lode_dtype_t dtype,
                                       uint64_t *bytes);

#endif
