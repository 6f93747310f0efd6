/* SPDX-License-Identifier: Apache-2.0 */
/* A reader's life: model, tokenizer and manner of one folder, then a cluster. */
#include <stdlib.h>

#include "reader/reader_inside.h"

void lode_keep_failure(lode_status_t status, lode_kept_failure_t *kept)
{
    kept->status = status;
    snprintf(kept->sentence, sizeof kept->sentence, "%s", status == LODE_OK ? "" : lode_error_message());
}

lode_status_t lode_give_failure(const lode_kept_failure_t *kept)
{
    return kept->status == LODE_OK ? LODE_OK : lode_fail(kept->status, "%s", kept->sentence);
}

/* How many tokens the template puts around a document's text: they say nothing about it. */
static lode_status_t measure_template(lode_reader_h reader)
{
    for (int i = 0; i < 2; i++) {
        lode_tokens_t tokens = {0};
        const char *text = reader->manner.document[i];
        size_t bytes = 0;
        while (text[bytes])
            bytes++;
        lode_status_t status = lode_tokenizer_encode(reader->tokenizer, text, bytes, true, &tokens);
        reader->template_tokens[i] = (uint32_t)tokens.count;
        lode_tokens_free(&tokens);
        LODE_TRY(status);
    }
    return LODE_OK;
}

static lode_status_t open_parts(const lode_reader_params_t *params, lode_reader_h reader)
{
    LODE_TRY(lode_model_open(params->model, params->threads, params->device, &reader->model));
    LODE_TRY(lode_tokenizer_open(params->model, &reader->tokenizer));
    const lode_model_info_t *info = lode_model_info(reader->model);
    uint32_t size = lode_tokenizer_size(reader->tokenizer);
    if (size > info->vocabulary)
        return lode_fail(LODE_ERR_FORMAT,
                         "%s: its tokenizer has %u tokens, but its model %u: they do not belong together",
                         params->model, size, info->vocabulary);
    LODE_TRY(lode_manner_open(params->model, reader->tokenizer, info->context, &reader->manner));
    const lode_geometry_t *g = &info->geometry;
    for (uint32_t i = 0; i < reader->manner.head_count; i++)
        if (reader->manner.heads[i][0] >= g->layers || reader->manner.heads[i][1] >= g->kv_heads)
            return lode_fail(LODE_ERR_FORMAT,
                             "%s/reader.json: \"heads\" has layer %u, KV head %u; the model has %u, %u", params->model,
                             reader->manner.heads[i][0], reader->manner.heads[i][1], g->layers, g->kv_heads);
    return measure_template(reader);
}

lode_status_t lode_reader_open(const lode_reader_params_t *params, lode_reader_h *out)
{
    lode_kept_failure_t kept;
    lode_reader_h reader = calloc(1, sizeof *reader);
    if (!reader)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a reader");
    reader->format = params->format;
    reader->landmark = params->landmark;
    reader->replicas = params->replicas;
    lode_status_t status = open_parts(params, reader);
    if (status == LODE_OK) {
        *out = reader;
        return LODE_OK;
    }
    lode_keep_failure(status, &kept);
    lode_reader_close(&reader);
    return lode_give_failure(&kept);
}

void lode_reader_unlist(lode_reader_h reader)
{
    for (uint32_t i = 0; i < reader->piece_count; i++)
        lode_block_close(&reader->pieces[i].block);
    free(reader->pieces);
    reader->pieces = NULL;
    reader->piece_count = reader->document_count = 0;
    reader->listed_tokens = 0;
}

void lode_reader_close(lode_reader_h *handle)
{
    lode_reader_h reader = *handle;
    if (!reader)
        return;
    lode_reader_unlist(reader);
    lode_manner_free(&reader->manner);
    if (reader->tokenizer)
        lode_tokenizer_close(&reader->tokenizer);
    if (reader->model)
        lode_model_close(&reader->model);
    free(reader);
    *handle = NULL;
}

lode_model_h lode_reader_model(lode_reader_h reader)
{
    return reader->model;
}

lode_tokenizer_h lode_reader_tokenizer(lode_reader_h reader)
{
    return reader->tokenizer;
}

const lode_manner_t *lode_reader_manner(lode_reader_h reader)
{
    return &reader->manner;
}

lode_status_t lode_reader_attach(lode_reader_h reader, lode_cluster_h cluster)
{
    LODE_TRY(lode_cluster_shape(cluster, &lode_model_info(reader->model)->geometry));
    lode_reader_unlist(reader);
    reader->cluster = cluster;
    return LODE_OK;
}

static lode_status_t plain_step(void *self, uint32_t layer, const lode_stream_t *streams, uint32_t count)
{
    return lode_step(((lode_reader_h)self)->cluster, layer, streams, count, NULL);
}

const lode_attention_t lode_reader_plain_attention = {.attend = plain_step};
