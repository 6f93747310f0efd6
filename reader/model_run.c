/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens go through the layers. */
#include <stdlib.h>
#include <string.h>

#include "reader/model.h"
#include "reader/rope.h"

enum {
    BLOCK_ROWS = 512, /* rows whose inner activations are there at once */
    ITEM_ROWS = 16,   /* that a thread takes of what is done row by row */
    ALONE_ROWS = 32   /* so few are not worth waking another thread for */
};

/* One call's state. `x` has all rows until the last layer, then those alone whose logits are asked. */
typedef struct run {
    lode_model_h model;
    const lode_attention_t *attention;
    const lode_passage_t *passages;
    uint32_t count, rows, asked_rows;
    uint32_t query, key; /* widths: all heads of queries, of keys */
    float *x, *q, *k, *v, *out, *wide;
    void *input;
    float *query_cosine, *query_sine, *key_cosine, *key_sine;
    uint32_t *asked;
    lode_stream_t *streams;
} run_t;

/* ---------------------------------------------------------------- row by row */

/* A loop over rows, shared by the team. */
typedef struct rows_work {
    const run_t *run;
    const lode_layer_t *layer;
    void (*row)(const run_t *run, const lode_layer_t *layer, uint32_t row, uint32_t in_block);
    uint32_t first, count;
} rows_work_t;

static void do_rows(void *context, uint32_t item, uint32_t thread)
{
    const rows_work_t *work = context;
    (void)thread;
    uint32_t begin = item * ITEM_ROWS, end = begin + ITEM_ROWS < work->count ? begin + ITEM_ROWS : work->count;
    for (uint32_t i = begin; i < end; i++)
        work->row(work->run, work->layer, work->first + i, i);
}

/* Rows first … first + count − 1. */
static void each_row(const run_t *run, const lode_layer_t *layer, uint32_t first, uint32_t count,
                     void (*row)(const run_t *, const lode_layer_t *, uint32_t, uint32_t))
{
    rows_work_t work = {run, layer, row, first, count};
    uint32_t items = (count + ITEM_ROWS - 1) / ITEM_ROWS;
    if (count > ALONE_ROWS)
        lode_team_run(run->model->team, items, do_rows, &work);
    else
        for (uint32_t i = 0; i < items; i++)
            do_rows(&work, i, 0);
}

/* A row for a product to read, where it was left in fp32. */
static void give(const run_t *run, const float *from, uint32_t in_block, uint32_t width)
{
    if (lode_products_type(run->model->products) == LODE_BF16)
        run->model->ops->to_bf16(from, (uint16_t *)run->input + (size_t)in_block * width, width);
    else if (from != (float *)run->input + (size_t)in_block * width)
        memcpy((float *)run->input + (size_t)in_block * width, from, width * sizeof *from);
}

static void norm_row(const run_t *run, const float *weight, uint32_t row, uint32_t in_block)
{
    const lode_model_config_t *c = &run->model->config;
    const float *x = run->x + (size_t)row * c->hidden;
    bool plain = lode_products_type(run->model->products) == LODE_FP32;
    float *to = plain ? (float *)run->input + (size_t)in_block * c->hidden : run->wide + (size_t)in_block * c->hidden;
    run->model->ops->norm(x, weight, (float)c->eps, c->hidden, to);
    if (!plain)
        give(run, to, in_block, c->hidden);
}

static void attention_norm(const run_t *run, const lode_layer_t *layer, uint32_t row, uint32_t in_block)
{
    norm_row(run, layer->attention_norm, row, in_block);
}

static void mlp_norm(const run_t *run, const lode_layer_t *layer, uint32_t row, uint32_t in_block)
{
    norm_row(run, layer->mlp_norm, row, in_block);
}

static void last_norm(const run_t *run, const lode_layer_t *layer, uint32_t row, uint32_t in_block)
{
    (void)layer;
    norm_row(run, run->model->norm, row, in_block);
}

/* Norm, where the model has it, and turn heads of one row. */
static void turn_heads(const run_t *run, float *heads, uint32_t count, const float *weight, const float *cosine,
                       const float *sine, float *out)
{
    const lode_model_config_t *c = &run->model->config;
    uint32_t dim = c->geometry.head_dim;
    for (uint32_t i = 0; i < count; i++, heads += dim, out += dim) {
        if (weight)
            run->model->ops->norm(heads, weight, (float)c->eps, dim, heads);
        run->model->ops->turn(heads, cosine, sine, dim / 2, out);
    }
}

/* What the product left in `wide` becomes queries, keys and values. */
static void split_row(const run_t *run, const lode_layer_t *layer, uint32_t row, uint32_t in_block)
{
    const lode_geometry_t *g = &run->model->config.geometry;
    uint32_t width = run->query + 2 * run->key, pairs = g->head_dim / 2;
    float *from = run->wide + (size_t)in_block * width;
    size_t angle = (size_t)row * pairs;
    if (layer->bias)
        run->model->ops->add(from, layer->bias, width);
    turn_heads(run, from, g->query_heads, layer->query_norm, run->query_cosine + angle, run->query_sine + angle,
               run->q + (size_t)row * run->query);
    turn_heads(run, from + run->query, g->kv_heads, layer->key_norm, run->key_cosine + angle, run->key_sine + angle,
               run->k + (size_t)row * run->key);
    memcpy(run->v + (size_t)row * run->key, from + run->query + run->key, run->key * sizeof *from);
}

static void give_attended(const run_t *run, const lode_layer_t *layer, uint32_t row, uint32_t in_block)
{
    (void)layer;
    give(run, run->out + (size_t)row * run->query, in_block, run->query);
}

static void swiglu_row(const run_t *run, const lode_layer_t *layer, uint32_t row, uint32_t in_block)
{
    (void)layer;
    (void)row;
    uint32_t n = run->model->config.intermediate;
    float *gate = run->wide + (size_t)in_block * 2 * n;
    bool plain = lode_products_type(run->model->products) == LODE_FP32;
    float *to = plain ? (float *)run->input + (size_t)in_block * n : gate;
    run->model->ops->swiglu(gate, gate + n, n, to);
    if (!plain)
        give(run, to, in_block, n);
}

/* --------------------------------------------------------------------- layers */

static uint32_t block_end(uint32_t first, uint32_t rows)
{
    return rows - first < BLOCK_ROWS ? rows - first : BLOCK_ROWS;
}

static lode_status_t project(run_t *run, const lode_layer_t *layer)
{
    for (uint32_t first = 0; first < run->rows; first += BLOCK_ROWS) {
        uint32_t n = block_end(first, run->rows);
        each_row(run, layer, first, n, attention_norm);
        LODE_TRY(lode_matrix_multiply(layer->qkv, n, run->input, false, run->wide));
        each_row(run, layer, first, n, split_row);
    }
    return LODE_OK;
}

/* After attention: its output and the MLP are added to x. */
static lode_status_t finish(run_t *run, const lode_layer_t *layer)
{
    uint32_t hidden = run->model->config.hidden;
    bool plain = lode_products_type(run->model->products) == LODE_FP32;
    for (uint32_t first = 0; first < run->rows; first += BLOCK_ROWS) {
        uint32_t n = block_end(first, run->rows);
        float *x = run->x + (size_t)first * hidden;
        const void *attended = plain ? (void *)(run->out + (size_t)first * run->query) : run->input;
        if (!plain)
            each_row(run, layer, first, n, give_attended);
        LODE_TRY(lode_matrix_multiply(layer->out, n, attended, true, x));
        each_row(run, layer, first, n, mlp_norm);
        LODE_TRY(lode_matrix_multiply(layer->gate, n, run->input, false, run->wide));
        each_row(run, layer, first, n, swiglu_row);
        LODE_TRY(lode_matrix_multiply(layer->down, n, run->input, true, x));
    }
    return LODE_OK;
}

/* After the last attention nobody looks at rows whose logits are not asked. */
static void keep_asked(run_t *run)
{
    uint32_t hidden = run->model->config.hidden;
    for (uint32_t i = 0; i < run->asked_rows; i++) {
        memmove(run->x + (size_t)i * hidden, run->x + (size_t)run->asked[i] * hidden, hidden * sizeof *run->x);
        memmove(run->out + (size_t)i * run->query, run->out + (size_t)run->asked[i] * run->query,
                run->query * sizeof *run->out);
    }
    run->rows = run->asked_rows;
}

static lode_status_t run_layers(run_t *run)
{
    lode_model_h model = run->model;
    uint32_t layers = model->config.geometry.layers;
    for (uint32_t i = 0; i < layers; i++) {
        LODE_TRY(project(run, &model->layers[i]));
        LODE_TRY(run->attention->attend(run->attention->self, i, run->streams, run->count));
        if (i + 1 == layers)
            keep_asked(run);
        LODE_TRY(finish(run, &model->layers[i]));
    }
    return LODE_OK;
}

/* ----------------------------------------------------------------------- ends */

static void embed(run_t *run)
{
    lode_model_h model = run->model;
    size_t hidden = model->config.hidden, bytes = hidden * (model->embedding_type == LODE_FP32 ? 4 : 2);
    float *x = run->x;
    for (uint32_t i = 0; i < run->count; i++)
        for (uint32_t j = 0; j < run->passages[i].count; j++, x += hidden)
            lode_convert(model->embedding_type, (const uint8_t *)model->embedding + run->passages[i].tokens[j] * bytes,
                         LODE_FP32, x, hidden);
}

static void angles_of(lode_model_h model, int64_t position, float *cosine, float *sine)
{
    uint32_t pairs = model->config.geometry.head_dim / 2;
    if (position < 0 || position >= LODE_ANGLE_POSITIONS) {
        lode_reader_angles(model->freq, pairs, position, model->config.rope_scale, cosine, sine);
        return;
    }
    memcpy(cosine, model->cosine + (size_t)position * pairs, pairs * sizeof *cosine);
    memcpy(sine, model->sine + (size_t)position * pairs, pairs * sizeof *sine);
}

static void find_angles(run_t *run)
{
    size_t pairs = run->model->config.geometry.head_dim / 2, at = 0;
    for (uint32_t i = 0; i < run->count; i++) {
        const lode_passage_t *passage = &run->passages[i];
        for (uint32_t j = 0; j < passage->count; j++, at += pairs) {
            angles_of(run->model, passage->position + j, run->query_cosine + at, run->query_sine + at);
            angles_of(run->model, passage->block_position + j, run->key_cosine + at, run->key_sine + at);
        }
    }
}

static void lay_out(run_t *run)
{
    uint32_t row = 0, asked = 0;
    for (uint32_t i = 0; i < run->count; i++) {
        const lode_passage_t *passage = &run->passages[i];
        run->streams[i] = (lode_stream_t){.view = passage->view,
                                          .tokens = passage->count,
                                          .position = passage->position,
                                          .dtype = LODE_FP32,
                                          .q = run->q + (size_t)row * run->query,
                                          .k = run->k + (size_t)row * run->key,
                                          .v = run->v + (size_t)row * run->key,
                                          .out = run->out + (size_t)row * run->query};
        row += passage->count;
        for (uint32_t j = passage->logit_rows; j; j--)
            run->asked[asked++] = row - j;
    }
}

static lode_status_t head(run_t *run)
{
    lode_model_h model = run->model;
    size_t vocabulary = model->config.vocabulary;
    float *logits = model->rooms.logits.bytes, *from = logits;
    for (uint32_t first = 0; first < run->rows; first += BLOCK_ROWS) {
        uint32_t n = block_end(first, run->rows);
        each_row(run, NULL, first, n, last_norm);
        LODE_TRY(lode_matrix_multiply(model->head, n, run->input, false, logits + first * vocabulary));
    }
    for (uint32_t i = 0; i < run->count; i++) {
        size_t n = run->passages[i].logit_rows * vocabulary;
        if (n)
            memcpy(run->passages[i].logits, from, n * sizeof *from);
        from += n;
    }
    return LODE_OK;
}

/* ----------------------------------------------------------------------- run */

static lode_status_t check_passage(lode_model_h model, const lode_passage_t *passage, uint32_t i)
{
    if (passage->count == 0)
        return lode_fail(LODE_ERR_INVALID, "passage %u has no tokens", i);
    if (passage->logit_rows > passage->count || (passage->logit_rows && !passage->logits))
        return lode_fail(LODE_ERR_INVALID, "passage %u wants logits of %u of its %u tokens%s", i, passage->logit_rows,
                         passage->count, passage->logits ? "" : ", but has no room for them");
    for (uint32_t j = 0; j < passage->count; j++)
        if (passage->tokens[j] >= model->config.vocabulary)
            return lode_fail(LODE_ERR_INVALID, "passage %u: token %u is %u, but the model has %u", i, j,
                             passage->tokens[j], model->config.vocabulary);
    return LODE_OK;
}

static lode_status_t grow(lode_room_t *room, uint64_t count, size_t element)
{
    uint64_t bytes;
    if (__builtin_mul_overflow(count, (uint64_t)element, &bytes) || bytes > SIZE_MAX - 63)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for so many tokens at once");
    if (bytes <= room->size)
        return LODE_OK;
    bytes = (bytes + 63) & ~(uint64_t)63;
    void *grown = aligned_alloc(64, bytes);
    if (!grown)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %llu bytes of activations", (unsigned long long)bytes);
    free(room->bytes);
    *room = (lode_room_t){grown, bytes};
    return LODE_OK;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static lode_status_t take_rooms(run_t *run)
{
    lode_run_rooms_t *rooms = &run->model->rooms;
    const lode_model_config_t *c = &run->model->config;
    uint64_t rows = run->rows, block = block_end(0, run->rows), pairs = c->geometry.head_dim / 2;
    uint64_t input = larger(larger(c->hidden, run->query), c->intermediate);
    uint64_t wide = larger(larger(run->query + 2 * run->key, 2 * (uint64_t)c->intermediate), c->hidden);
    LODE_TRY(grow(&rooms->x, rows * c->hidden, sizeof(float)));
    LODE_TRY(grow(&rooms->input, block * input, sizeof(float)));
    LODE_TRY(grow(&rooms->wide, block * wide, sizeof(float)));
    LODE_TRY(grow(&rooms->q, rows * run->query, sizeof(float)));
    LODE_TRY(grow(&rooms->k, rows * run->key, sizeof(float)));
    LODE_TRY(grow(&rooms->v, rows * run->key, sizeof(float)));
    LODE_TRY(grow(&rooms->out, rows * run->query, sizeof(float)));
    LODE_TRY(grow(&rooms->angles, rows * pairs * 4, sizeof(float)));
    LODE_TRY(grow(&rooms->logits, ((uint64_t)run->asked_rows + 1) * c->vocabulary, sizeof(float)));
    LODE_TRY(grow(&rooms->streams, run->count, sizeof(lode_stream_t)));
    LODE_TRY(grow(&rooms->asked, (uint64_t)run->asked_rows + 1, sizeof(uint32_t)));
    run->x = rooms->x.bytes;
    run->input = rooms->input.bytes;
    run->wide = rooms->wide.bytes;
    run->q = rooms->q.bytes;
    run->k = rooms->k.bytes;
    run->v = rooms->v.bytes;
    run->out = rooms->out.bytes;
    run->query_cosine = rooms->angles.bytes;
    run->query_sine = run->query_cosine + rows * pairs;
    run->key_cosine = run->query_sine + rows * pairs;
    run->key_sine = run->key_cosine + rows * pairs;
    run->streams = rooms->streams.bytes;
    run->asked = rooms->asked.bytes;
    return LODE_OK;
}

lode_status_t lode_model_run(lode_model_h model, const lode_attention_t *attention, const lode_passage_t *passages,
                             uint32_t count)
{
    const lode_geometry_t *g = &model->config.geometry;
    run_t run = {.model = model,
                 .attention = attention,
                 .passages = passages,
                 .count = count,
                 .query = g->query_heads * g->head_dim,
                 .key = g->kv_heads * g->head_dim};
    for (uint32_t i = 0; i < count; i++) {
        LODE_TRY(check_passage(model, &passages[i], i));
        if (__builtin_add_overflow(run.rows, passages[i].count, &run.rows))
            return lode_fail(LODE_ERR_INVALID, "more tokens at once than can be counted");
        run.asked_rows += passages[i].logit_rows;
    }
    if (count == 0)
        return LODE_OK;
    LODE_TRY(take_rooms(&run));
    embed(&run);
    find_angles(&run);
    lay_out(&run);
    LODE_TRY(run_layers(&run));
    return head(&run);
}
