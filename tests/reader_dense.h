/* SPDX-License-Identifier: Apache-2.0 */
/** What tests of the reader's model share: attention without a cluster, and a model beside its references. */
#ifndef LODE_TESTS_READER_DENSE_H
#define LODE_TESTS_READER_DENSE_H

#include <jansson.h>

#include "reader/reader.h"

/* ------------------------------------------------------- attention without a cluster */

/** Keys and values of one block, which begins at view position 0. */
typedef struct dense {
    lode_geometry_t geometry;
    uint32_t room;
    uint32_t *tokens;       /* (layers) */
    float **keys, **values; /* (layers), (room, KV heads, dim) */
} dense_t;

void dense_open(dense_t *dense, const lode_model_info_t *info, uint32_t room);
void dense_close(dense_t *dense);
/** lode_attention_t.attend of one stream; self is a dense_t. */
lode_status_t dense_attend(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count);
/** The same of several; self is an array of as many dense_t. */
lode_status_t dense_attend_each(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count);

/* ------------------------------------------------------------------- parity */

/**
 * Of all logits of a run together: the length of their error as a share of theirs. For products in bf16, and for steps,
 * which keep keys and values in bf16; in fp32 without a cluster it is less.
 */
#define PARITY_TOLERANCE 2e-2
#define PARITY_EXACT 1e-4

/**
 * A model's run beside what another program made of it: reference.json of its folder (tests/reader/make_models.py), or
 * where there is none, reader_reference.c and tokens of its own.
 */
typedef struct parity {
    lode_model_h model;
    json_t *reference;
    struct reference *computed; /* without reference.json, and for near ties that bf16 may turn */
    bool exact;                 /* all arithmetic is fp32 */
    uint32_t vocabulary, prompt_count;
    uint32_t prompt[64];
    float *logits;                 /* (prompt_count, vocabulary) */
    double error, errors, squares; /* relative error of all rows so far, and the sums that it is made of */
    double scale;                  /* largest logit of the last row */
    uint32_t tokens, different;
    uint32_t base; /* view position of the block that the 200 tokens go to; 0 unless the caller sets it */
} parity_t;

/** @param[in] steps  attention is by steps, whose keys and values are bf16 */
void parity_open(parity_t *parity, const char *folder, lode_model_h model, bool steps);
void parity_close(parity_t *parity);
/** Run the prompt into a view's write block, which is empty. */
lode_status_t parity_prompt(parity_t *parity, const lode_attention_t *attention, lode_view_h view);
/** Then 200 tokens one by one, each the reference's, counting where the model's own choice differs. */
lode_status_t parity_greedy(parity_t *parity, const lode_attention_t *attention, lode_view_h view);

#endif
