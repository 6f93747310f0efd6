/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What streams should give. The test keeps what keys were before they were rotated, as numbers of tokens; for every
 * stream it lays its context out anew, rotates the keys to their view positions in double and attends to all of them.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"
#include "tests/multi/streams.h"

int failures, rank, ranks;
const lode_rope_t rope = {.theta = 10000, .scaling = LODE_ROPE_LINEAR, .factor = 2};

/* -------------------------------------------------------------------- tokens */

/* What key or value token @p id has in a layer, before any rotation; bf16 holds the values exactly. */
static void raw(uint32_t id, uint32_t layer, int value, double x[KV_HEADS * DIM])
{
    uint64_t seed = (uint64_t)id * 4 + layer * 2 + (uint64_t)value;
    for (uint32_t i = 0; i < KV_HEADS * DIM; i++) {
        float f = value_at(seed, i);
        uint32_t bits;
        memcpy(&bits, &f, 4);
        bits = (bits + 0x8000) & 0xffff0000u;
        memcpy(&f, &bits, 4);
        x[i] = f;
    }
}

/* Cosines and sines of the positions that schedules use, so that they are computed once. */
enum { ANGLES_FROM = -1024, ANGLES_TO = 16384 };
static double angles[ANGLES_TO - ANGLES_FROM][DIM / 2][2];

void exact_begin(void)
{
    double freq[DIM / 2];
    MUST(lode_rope_frequencies(&rope, DIM, freq));
    for (int64_t p = ANGLES_FROM; p < ANGLES_TO; p++)
        for (uint32_t i = 0; i < DIM / 2; i++) {
            angles[p - ANGLES_FROM][i][0] = cos(freq[i] * (double)p);
            angles[p - ANGLES_FROM][i][1] = sin(freq[i] * (double)p);
        }
}

static void rotate_double(double *x, int64_t position)
{
    if (position < ANGLES_FROM || position >= ANGLES_TO)
        MPI_Abort(MPI_COMM_WORLD, 1);
    for (uint32_t i = 0; i < DIM / 2; i++) {
        double c = angles[position - ANGLES_FROM][i][0], s = angles[position - ANGLES_FROM][i][1];
        double a = x[i], b = x[i + DIM / 2];
        x[i] = a * c - b * s;
        x[i + DIM / 2] = a * s + b * c;
    }
}

/* Keys and values of tokens as the library takes them: rotated to their positions in their block. */
static void tensors(const uint32_t *ids, uint32_t count, uint64_t first, uint32_t layer, float *k, float *v)
{
    double x[KV_HEADS * DIM];
    for (uint32_t t = 0; t < count; t++) {
        raw(ids[t], layer, 0, x);
        for (uint32_t h = 0; h < KV_HEADS; h++)
            rotate_double(x + h * DIM, (int64_t)(first + t));
        for (uint32_t i = 0; i < KV_HEADS * DIM; i++)
            k[t * KV_HEADS * DIM + i] = (float)x[i];
        raw(ids[t], layer, 1, x);
        for (uint32_t i = 0; i < KV_HEADS * DIM; i++)
            v[t * KV_HEADS * DIM + i] = (float)x[i];
    }
}

/* -------------------------------------------------------------------- blocks */

uint32_t world_draw(world_t *w, uint32_t below)
{
    return (uint32_t)(lode_mix(w->seed, w->drawn++) >> 33) % below;
}

void world_fresh(world_t *w, uint32_t count, uint32_t *ids)
{
    for (uint32_t i = 0; i < count; i++)
        ids[i] = w->next_id++;
}

void model_create(world_t *w, model_t *m, const char *name, bool draft, lode_format_t format)
{
    lode_block_params_t params = {.name = m->name, .format = format, .draft = draft};
    snprintf(m->name, sizeof m->name, "%s %d.%u", name, rank, w->made++);
    MUST(lode_landmark_parse("landmark4", &params.landmark));
    MUST(lode_block_create(w->cluster, &params, &m->block));
    m->mine = true;
    m->draft = draft;
    m->sealed = false;
    m->tokens = 0;
}

void model_note(model_t *m, const uint32_t *ids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        atomic_store(&m->ids[m->tokens + i], ids[i]);
}

void model_append(model_t *m, const uint32_t *ids, uint32_t count)
{
    size_t n = (size_t)count * KV_HEADS * DIM;
    float *k = malloc(2 * n * sizeof *k + 1), *v = k + n;
    model_note(m, ids, count);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        tensors(ids, count, m->tokens, layer, k, v);
        MUST(lode_block_append(m->block, layer, count, LODE_FP32, k, v));
    }
    m->tokens += count;
    free(k);
}

/* --------------------------------------------------------------------- views */

void look_create(world_t *w, look_t *look, bool shared_positions, const lode_policy_t *policy)
{
    lode_block_h blocks[VIEW_BLOCKS];
    for (uint32_t i = 0; i < look->count; i++)
        blocks[i] = look->blocks[i]->block;
    lode_view_params_t params = {.blocks = blocks,
                                 .offsets = look->offsets,
                                 .count = look->count,
                                 .write_block = look->write_block,
                                 .shared_positions = shared_positions,
                                 .policy = *policy};
    look->dense = policy->select == LODE_SELECT_DENSE;
    MUST(lode_view_create(w->cluster, &params, &look->view));
}

void look_close(look_t *look)
{
    if (look->view)
        MUST(lode_view_destroy(&look->view));
}

/* --------------------------------------------------------- what it should be */

/* @p lengths: tokens of each block, @p in_pages of those in pages. */
void context_lay_out(const look_t *look, const uint64_t *lengths, const uint64_t *in_pages, context_t *context)
{
    int64_t end = 0;
    context->count = context->paged = 0;
    context->end = INT64_MIN;
    for (uint32_t b = 0; b < look->count; b++) {
        int64_t offset = look->offsets[b] == LODE_OFFSET_AFTER ? end : look->offsets[b];
        for (uint64_t t = 0; t < lengths[b]; t++) {
            uint32_t at = context->count++;
            context->ids[at] = atomic_load(&look->blocks[b]->ids[t]);
            context->positions[at] = offset + (int64_t)t;
            context->page_index[at] = t < in_pages[b] ? context->paged++ : UINT32_MAX;
        }
        end = offset + (int64_t)lengths[b];
        context->end = end > context->end ? end : context->end;
        if ((int32_t)b == look->write_block)
            context->write_end = end;
    }
}

laid_t context_rotate(const context_t *context, uint32_t layer)
{
    size_t width = KV_HEADS * DIM;
    laid_t laid = {malloc((context->count + 1) * width * sizeof(double)),
                   malloc((context->count + 1) * width * sizeof(double))};
    for (uint32_t t = 0; t < context->count; t++) {
        raw(context->ids[t], layer, 0, laid.k + t * width);
        raw(context->ids[t], layer, 1, laid.v + t * width);
        for (uint32_t h = 0; h < KV_HEADS; h++)
            rotate_double(laid.k + t * width + h * DIM, context->positions[t]);
    }
    return laid;
}

/*
 * Attention of one query head at @p position over what it may see: of the tokens in pages those that were chosen.
 * @p q is rotated. @return the log of the sum
 */
double context_attend(const context_t *context, const laid_t *laid, int64_t position, uint32_t kv_head, const double *q,
                      const uint32_t *chosen, uint64_t chosen_count, double *out)
{
    double most = -INFINITY, sum = 0;
    uint64_t next = 0;
    memset(out, 0, DIM * sizeof *out);
    for (uint32_t t = 0; t < context->count; t++) {
        if (chosen && context->page_index[t] != UINT32_MAX) {
            if (next == chosen_count || chosen[next] != context->page_index[t])
                continue;
            next++;
        }
        if (context->positions[t] > position)
            continue;
        const double *k = laid->k + ((size_t)t * KV_HEADS + kv_head) * DIM;
        const double *v = laid->v + ((size_t)t * KV_HEADS + kv_head) * DIM;
        double logit = 0;
        for (uint32_t i = 0; i < DIM; i++)
            logit += k[i] * q[i];
        logit /= sqrt(DIM);
        double grown = logit > most ? logit : most, keep = exp(most - grown), weight = exp(logit - grown);
        sum = sum * keep + weight;
        for (uint32_t i = 0; i < DIM; i++)
            out[i] = out[i] * keep + weight * v[i];
        most = grown;
    }
    for (uint32_t i = 0; i < DIM && sum > 0; i++)
        out[i] /= sum;
    return most + log(sum);
}

/* --------------------------------------------------------------------- steps */

static context_t context; /* of the stream under the glass */

void ask_query(const ask_t *ask, uint32_t row, uint32_t layer, double q[QUERY_HEADS * DIM])
{
    for (uint32_t i = 0; i < QUERY_HEADS * DIM; i++)
        q[i] = 1.5 * value_at(ask->query + layer * 64 + row, i);
    for (uint32_t h = 0; h < QUERY_HEADS; h++)
        rotate_double(q + h * DIM, ask->first + row);
}

model_t *ask_writes_to(const ask_t *ask)
{
    return ask->writes ? ask->look->blocks[ask->look->write_block] : NULL;
}

/* Lengths of a look's blocks in a layer, as far as this rank sees them now, and how much of each lies in pages. */
void look_lengths(const look_t *look, uint32_t layer, uint64_t *lengths, uint64_t *in_pages)
{
    for (uint32_t b = 0; b < look->count; b++) {
        const model_t *m = look->blocks[b];
        MUST(lode_block_tokens(m->block, layer, &lengths[b]));
        in_pages[b] = m->mine ? m->block->tails[layer].first : lengths[b];
    }
}

lode_stream_t ask_stream(ask_t *ask, uint32_t layer)
{
    double q[QUERY_HEADS * DIM];
    for (uint32_t row = 0; row < ask->tokens; row++) {
        ask_query(ask, row, layer, q);
        for (uint32_t i = 0; i < QUERY_HEADS * DIM; i++)
            ask->q[row * QUERY_HEADS * DIM + i] = (float)q[i];
    }
    if (ask->writes)
        tensors(ask->ids, ask->tokens, ask_writes_to(ask)->tokens - ask->tokens, layer, ask->k, ask->v);
    return (lode_stream_t){.view = ask->look->view,
                           .tokens = ask->tokens,
                           .position = ask->position,
                           .dtype = LODE_FP32,
                           .q = ask->q,
                           .k = ask->writes ? ask->k : NULL,
                           .v = ask->writes ? ask->v : NULL,
                           .out = ask->out,
                           .lse = ask->lse};
}

/* The worst relative error of a row's outputs, and of its logs of sums as a difference, with the context as laid out.
 */
static double error_of(const ask_t *ask, uint32_t number, lode_cluster_h cluster, uint32_t layer, const laid_t *laid)
{
    double worst = 0, q[QUERY_HEADS * DIM], expected[DIM];
    for (uint32_t row = 0; row < ask->tokens; row++) {
        double error = 0, norm = 0;
        ask_query(ask, row, layer, q);
        for (uint32_t h = 0; h < QUERY_HEADS; h++) {
            const uint32_t *chosen;
            uint64_t count;
            MUST(lode_step_selection(cluster, number, row, h / GROUP, &chosen, &count));
            double lse =
                context_attend(&context, laid, ask->first + row, h / GROUP, q + h * DIM, chosen, count, expected);
            float got = ask->lse[row * QUERY_HEADS + h];
            worst = isinf(lse) ? (got == lse ? worst : INFINITY) : fmax(worst, fabs(got - lse));
            for (uint32_t i = 0; i < DIM; i++) {
                double difference = ask->out[(row * QUERY_HEADS + h) * DIM + i] - expected[i];
                error += difference * difference;
                norm += expected[i] * expected[i];
            }
        }
        worst = fmax(worst, norm > 0 ? sqrt(error / norm) : error);
    }
    return worst;
}

/* Tokens of a sparse choice lie where the row sees them. @return a hash of all */
static uint64_t check_choice(const ask_t *ask, uint32_t number, lode_cluster_h cluster)
{
    uint64_t hash = 0;
    for (uint32_t row = 0; row < ask->tokens; row++)
        for (uint32_t h = 0; h < KV_HEADS; h++) {
            const uint32_t *chosen;
            uint64_t count, next = 0;
            MUST(lode_step_selection(cluster, number, row, h, &chosen, &count));
            CHECK(!chosen || !ask->look->dense);
            hash = lode_mix(hash, count);
            for (uint32_t t = 0; chosen && t < context.count && next < count; t++)
                if (context.page_index[t] == chosen[next]) {
                    CHECK(context.positions[t] <= ask->first + row);
                    hash = lode_mix(hash, chosen[next++]);
                }
            CHECK(!chosen || (next == count && count > 0));
        }
    return hash;
}

/* Another rank's journal may have grown while the step ran: it was as long as at some time meanwhile. */
static void check_stream(world_t *w, ask_t *ask, uint32_t number, uint32_t layer, const uint64_t *before)
{
    uint64_t lengths[VIEW_BLOCKS], in_pages[VIEW_BLOCKS];
    const look_t *look = ask->look;
    look_lengths(look, layer, lengths, in_pages);
    uint32_t last = look->count - 1;
    uint64_t after = lengths[last];
    bool foreign = !look->blocks[last]->mine && !look->blocks[last]->sealed;
    double best = INFINITY;
    for (uint64_t n = foreign ? before[last] : after; n <= after && best > 1e-2; n += LODE_PAGE_TOKENS) {
        lengths[last] = n;
        in_pages[last] = foreign ? n : in_pages[last];
        context_lay_out(look, lengths, in_pages, &context);
        laid_t laid = context_rotate(&context, layer);
        best = fmin(best, error_of(ask, number, w->cluster, layer, &laid));
        free(laid.k);
        free(laid.v);
    }
    CHECK(best <= 1e-2, "stream %u, layer %u: error %g over %u tokens", number, layer, best, context.count);
    ask->chosen[layer] = check_choice(ask, number, w->cluster);
    memcpy(ask->kept[layer], ask->out, sizeof ask->out);
}

/* All layers of a step of several streams, checked after each. */
void world_step(world_t *w, ask_t *asks, uint32_t count)
{
    lode_stream_t streams[STREAMS_MAX];
    uint64_t before[STREAMS_MAX][VIEW_BLOCKS], in_pages[VIEW_BLOCKS], lengths[VIEW_BLOCKS];
    for (uint32_t i = 0; i < count; i++)
        if (asks[i].writes) {
            model_note(ask_writes_to(&asks[i]), asks[i].ids, asks[i].tokens);
            ask_writes_to(&asks[i])->tokens += asks[i].tokens;
        }
    for (uint32_t i = 0; i < count; i++) { /* as long as blocks will be when all have written */
        look_lengths(asks[i].look, 0, lengths, in_pages);
        for (uint32_t b = 0; b < asks[i].look->count; b++)
            if (asks[i].look->blocks[b]->mine)
                lengths[b] = asks[i].look->blocks[b]->tokens;
        context_lay_out(asks[i].look, lengths, in_pages, &context);
        asks[i].first = asks[i].writes                          ? context.write_end - asks[i].tokens
                        : asks[i].position == LODE_POSITION_END ? context.end
                                                                : asks[i].position;
    }
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t i = 0; i < count; i++) {
            look_lengths(asks[i].look, layer, before[i], in_pages);
            streams[i] = ask_stream(&asks[i], layer);
        }
        MUST(lode_step(w->cluster, layer, streams, count, NULL));
        for (uint32_t i = 0; i < count; i++)
            check_stream(w, &asks[i], i, layer, before[i]);
    }
}
