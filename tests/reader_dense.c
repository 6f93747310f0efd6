/* SPDX-License-Identifier: Apache-2.0 */
#include "reader_dense.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "reader_reference.h"

enum { PROMPT = 48, GREEDY = 200 }; /* of a model without reference.json */

static void *some_room(size_t n, size_t element)
{
    void *room = calloc(n ? n : 1, element);
    if (!room)
        abort();
    return room;
}

/* ---------------------------------------------------------------- attention */

void dense_open(dense_t *dense, const lode_model_info_t *info, uint32_t room)
{
    const lode_geometry_t *g = &info->geometry;
    *dense = (dense_t){.geometry = *g, .room = room};
    dense->tokens = some_room(g->layers, sizeof *dense->tokens);
    dense->keys = some_room(g->layers, sizeof *dense->keys);
    dense->values = some_room(g->layers, sizeof *dense->values);
    for (uint32_t i = 0; i < g->layers; i++) {
        dense->keys[i] = some_room((size_t)room * g->kv_heads * g->head_dim, sizeof(float));
        dense->values[i] = some_room((size_t)room * g->kv_heads * g->head_dim, sizeof(float));
    }
}

void dense_close(dense_t *dense)
{
    for (uint32_t i = 0; i < dense->geometry.layers; i++) {
        free(dense->keys[i]);
        free(dense->values[i]);
    }
    free(dense->keys);
    free(dense->values);
    free(dense->tokens);
}

/* One query head over the first n tokens. */
static void attend_head(const dense_t *dense, uint32_t layer, uint32_t head, const float *q, uint32_t n, float *out)
{
    const lode_geometry_t *g = &dense->geometry;
    uint32_t dim = g->head_dim;
    size_t width = (size_t)g->kv_heads * dim, at = (size_t)(head / (g->query_heads / g->kv_heads)) * dim;
    double *weights = some_room(n, sizeof *weights), *sums = some_room(dim, sizeof *sums), whole = 0, most = -INFINITY;
    for (uint32_t t = 0; t < n; t++) {
        for (uint32_t i = 0; i < dim; i++)
            weights[t] += (double)q[i] * dense->keys[layer][t * width + at + i];
        weights[t] /= sqrt(dim);
        most = fmax(most, weights[t]);
    }
    for (uint32_t t = 0; t < n; t++) {
        whole += weights[t] = exp(weights[t] - most);
        for (uint32_t i = 0; i < dim; i++)
            sums[i] += weights[t] * dense->values[layer][t * width + at + i];
    }
    for (uint32_t i = 0; i < dim; i++)
        out[i] = (float)(sums[i] / whole);
    free(weights);
    free(sums);
}

static lode_status_t attend_stream(dense_t *dense, uint32_t layer, const lode_stream_t *stream)
{
    const lode_geometry_t *g = &dense->geometry;
    size_t width = (size_t)g->kv_heads * g->head_dim, whole = (size_t)g->query_heads * g->head_dim;
    uint32_t before = dense->tokens[layer];
    if (stream->position != before || before + stream->tokens > dense->room)
        return lode_fail(LODE_ERR_INVALID, "position %lld of %u tokens", (long long)stream->position, before);
    memcpy(dense->keys[layer] + before * width, stream->k, stream->tokens * width * sizeof(float));
    memcpy(dense->values[layer] + before * width, stream->v, stream->tokens * width * sizeof(float));
    dense->tokens[layer] += stream->tokens;
    for (uint32_t t = 0; t < stream->tokens; t++)
        for (uint32_t head = 0; head < g->query_heads; head++) {
            size_t at = t * whole + head * g->head_dim;
            attend_head(dense, layer, head, (const float *)stream->q + at, before + t + 1, stream->out + at);
        }
    return LODE_OK;
}

lode_status_t dense_attend(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count)
{
    return count == 1 ? attend_stream(self, layer, streams) : lode_fail(LODE_ERR_INVALID, "%u streams", count);
}

lode_status_t dense_attend_each(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count)
{
    dense_t *dense = self;
    for (uint32_t i = 0; i < count; i++)
        LODE_TRY(attend_stream(&dense[i], layer, &streams[i]));
    return LODE_OK;
}

/* ------------------------------------------------------------------- parity */

void parity_open(parity_t *parity, const char *folder, lode_model_h model, bool steps)
{
    char path[4096];
    json_error_t error;
    *parity = (parity_t){.model = model, .vocabulary = lode_model_info(model)->vocabulary};
    snprintf(path, sizeof path, "%s/reference.json", folder);
    parity->exact = !steps && strstr(lode_model_info(model)->products, "fp32");
    if (access(path, R_OK) == 0) {
        parity->reference = json_load_file(path, 0, &error);
        const json_t *prompt = json_object_get(parity->reference, "prompt"), *token;
        size_t i;
        json_array_foreach(prompt, i, token)
        {
            if (i < sizeof parity->prompt / sizeof *parity->prompt)
                parity->prompt[parity->prompt_count++] = (uint32_t)json_integer_value(token);
        }
    } else {
        for (uint32_t i = 0; i < PROMPT; i++)
            parity->prompt[parity->prompt_count++] = (uint32_t)(lode_mix(3, i) % parity->vocabulary);
    }
    if (!parity->reference || !parity->exact)
        parity->computed = reference_open(folder);
    if (!parity->prompt_count)
        abort();
    parity->logits = some_room((size_t)parity->prompt_count * parity->vocabulary, sizeof(float));
}

void parity_close(parity_t *parity)
{
    json_decref(parity->reference);
    if (parity->computed)
        reference_close(&parity->computed);
    free(parity->logits);
}

/* Compare a row. @return the reference's choice. */
static uint32_t compare(parity_t *parity, const float *logits, const double *expected)
{
    uint32_t best = 0, n = parity->vocabulary;
    double scale = 0;
    for (uint32_t i = 0; i < n; i++) {
        best = expected[i] > expected[best] ? i : best;
        scale = fmax(scale, fabs(expected[i]));
        parity->errors += (logits[i] - expected[i]) * (logits[i] - expected[i]);
        parity->squares += expected[i] * expected[i];
    }
    parity->error = sqrt(parity->errors / parity->squares);
    parity->scale = scale;
    return best;
}

static uint32_t choice_of(const parity_t *parity, const float *logits)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < parity->vocabulary; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

static void compare_file(parity_t *parity)
{
    const json_t *rows = json_object_get(parity->reference, "rows"), *row;
    double *expected = some_room(parity->vocabulary, sizeof *expected);
    size_t i;
    if (json_array_size(rows) == 0)
        abort();
    json_array_foreach(rows, i, row)
    {
        const json_t *numbers = json_array_get(json_object_get(parity->reference, "logits"), i);
        for (uint32_t j = 0; j < parity->vocabulary; j++)
            expected[j] = json_number_value(json_array_get(numbers, j));
        compare(parity, parity->logits + (size_t)json_integer_value(row) * parity->vocabulary, expected);
    }
    free(expected);
}

lode_status_t parity_prompt(parity_t *parity, const lode_attention_t *attention, lode_view_h view)
{
    const lode_passage_t passage = {.view = view,
                                    .tokens = parity->prompt,
                                    .count = parity->prompt_count,
                                    .logits = parity->logits,
                                    .logit_rows = parity->prompt_count};
    LODE_TRY(lode_model_run(parity->model, attention, &passage, 1));
    if (parity->reference)
        compare_file(parity);
    for (uint32_t i = 0; parity->computed && i < parity->prompt_count; i++)
        compare(parity, parity->logits + (size_t)i * parity->vocabulary,
                reference_next(parity->computed, parity->prompt[i]));
    return LODE_OK;
}

/*
 * The last row's choice by the reference. Where it is computed, another choice counts as different only if the
 * tolerance cannot explain it: bf16 may turn near ties, and a trained model has some.
 */
static uint32_t next_token(parity_t *parity, const float *logits, const double *expected)
{
    uint32_t ours = choice_of(parity, logits), theirs = 0;
    const json_t *greedy = json_object_get(parity->reference, "greedy");
    if (expected)
        theirs = compare(parity, logits, expected);
    if (greedy)
        theirs = (uint32_t)json_integer_value(json_array_get(greedy, parity->tokens));
    bool explained = expected && expected[theirs] - expected[ours] <= PARITY_TOLERANCE * parity->scale;
    parity->different += ours != theirs && !explained;
    parity->tokens++;
    return theirs;
}

lode_status_t parity_greedy(parity_t *parity, const lode_attention_t *attention, lode_view_h view)
{
    float *logits = parity->logits + (size_t)(parity->prompt_count - 1) * parity->vocabulary;
    const json_t *greedy = json_object_get(parity->reference, "greedy");
    uint32_t count = greedy ? (uint32_t)json_array_size(greedy) : GREEDY;
    uint32_t token = next_token(parity, logits, parity->computed ? reference_last(parity->computed) : NULL);
    while (parity->tokens < count) {
        uint32_t at = parity->prompt_count + parity->tokens - 1;
        const lode_passage_t passage = {.view = view,
                                        .tokens = &token,
                                        .count = 1,
                                        .position = at,
                                        .block_position = at - parity->base,
                                        .logits = logits,
                                        .logit_rows = 1};
        LODE_TRY(lode_model_run(parity->model, attention, &passage, 1));
        token = next_token(parity, logits, parity->computed ? reference_next(parity->computed, token) : NULL);
    }
    return LODE_OK;
}
