/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file reader_inside.h
 * @brief What the reader's own files share: a handle's state, pieces of documents, their names.
 */
#ifndef LODE_READER_INSIDE_H
#define LODE_READER_INSIDE_H

#include "reader/reader.h"

/** Most tokens that one pass through the model takes while documents are read in. */
enum { LODE_READER_PASS_TOKENS = 2048, LODE_READER_NAME_MAX = 40 };

/** A block that questions are asked of. */
typedef struct lode_piece {
    lode_block_h block;
    uint32_t tokens;
    uint32_t document; /**< of the list; the first that has it */
    uint32_t place;    /**< among all pieces, as the documents were listed */
} lode_reader_piece_t;

/** Digests of pieces, each once. */
typedef struct lode_piece_set {
    uint64_t (*digests)[2]; /**< (room) both 0: free */
    size_t count, room;
} lode_piece_set_t;

struct lode_reader {
    lode_model_h model;
    lode_tokenizer_h tokenizer;
    lode_manner_t manner;
    lode_format_t format;
    lode_landmark_spec_t landmark;
    uint32_t replicas;
    uint32_t template_tokens[2]; /**< of a document's block, before and after its text */
    lode_cluster_h cluster;      /**< borrowed; NULL until attached */
    lode_reader_piece_t *pieces; /**< (piece_count) of the list, in the order of views */
    uint32_t piece_count;
    uint32_t document_count;
    uint64_t listed_tokens;
};

/** Close the handles of what is listed. */
void lode_reader_unlist(lode_reader_h reader);
/** @return whether the set did not have it. Without memory a digest may seem new twice. */
bool lode_piece_set_add(lode_piece_set_t *set, const uint64_t digest[2]);
void lode_piece_set_free(lode_piece_set_t *set);
/** What names a piece: model, tokens, and how they are stored. */
void lode_piece_digest(const struct lode_reader *reader, const uint32_t *tokens, size_t count, uint64_t digest[2]);
/** "reader:<32 digits>". */
void lode_piece_name(const uint64_t digest[2], char name[LODE_READER_NAME_MAX]);
/** Create a block of this process alone: its name is random behind @p what. @param[in] draft  lode_block_params_t.draft
 */
lode_status_t lode_reader_own_block(const struct lode_reader *reader, const char *what, uint64_t expected, bool draft,
                                    lode_block_h *block);
/**
 * The documents of a view, each right before what comes after them or one after another.
 * @param[out] blocks, offsets  (count)
 * @param[out] begins  (count) of the pieces' tokens, in the view's order; NULL: nobody asks
 */
void lode_reader_lay_out(const struct lode_reader *reader, const lode_reader_piece_t *pieces, uint32_t count,
                         lode_block_h *blocks, int64_t *offsets, uint64_t *begins);
/** View position of what comes after documents of so many tokens. */
int64_t lode_reader_position_after(const struct lode_reader *reader, uint64_t tokens);
/** A step without any more to it. */
extern const lode_attention_t lode_reader_plain_attention;
/** Pass on a failure after work that may record sentences of its own. */
typedef struct lode_kept_failure {
    lode_status_t status;
    char sentence[512];
} lode_kept_failure_t;
void lode_keep_failure(lode_status_t status, lode_kept_failure_t *kept);
lode_status_t lode_give_failure(const lode_kept_failure_t *kept);

#endif
