/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams over shared blocks: schedules drawn from seeds, against attention in double over each stream's whole context.
 *
 * The test keeps what keys were before they were rotated, as numbers of tokens; for every stream it lays its context
 * out anew, rotates the keys to their view positions in double and attends to all of them. Each rank draws its own
 * schedule and does not wait for the others, whose journals it reads while they grow.
 */
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attend/inside.h"
#include "kernels/kernels.h"
#include "lodemark.h"
#include "tests/multi/steps.h"

enum { LAYERS = 2, DIM = 64, KV_HEADS = 2, GROUP = 2, QUERY_HEADS = KV_HEADS * GROUP };
enum { RANKS_MAX = 4, JOURNAL_MAX = 4096, LONGEST = 700, STREAMS_MAX = 3, ROWS_MAX = 5, VIEW_BLOCKS = 8 };

static int failures;
static int rank, ranks;
static double freq[DIM / 2];

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
static double (*angles)[DIM / 2][2];

static void make_angles(void)
{
    angles = malloc((ANGLES_TO - ANGLES_FROM) * sizeof *angles);
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

/* A block as the test knows it. Of another rank's only what has left as pages is read, which never changes. */
typedef struct model {
    lode_block_h block; /* NULL: the place is free */
    char name[32];
    bool mine, draft, sealed;
    uint64_t tokens;       /* if it is mine */
    _Atomic uint32_t *ids; /* (JOURNAL_MAX) */
} model_t;

/* Where each rank's journal says what its tokens are, for all to read. */
typedef struct shared {
    _Atomic uint32_t ids[RANKS_MAX][JOURNAL_MAX];
} shared_t;

enum { DOCUMENTS = 2, NOTES = 2, DRAFTS = 2 };
typedef struct world {
    lode_cluster_h cluster;
    MPI_Win window;
    shared_t *shared;
    uint64_t seed, drawn;
    uint32_t next_id, made;
    model_t documents[DOCUMENTS], journals[RANKS_MAX], notes[NOTES], drafts[DRAFTS];
} world_t;

static uint32_t draw(world_t *w, uint32_t below)
{
    return (uint32_t)(lode_mix(w->seed, w->drawn++) >> 33) % below;
}

static void fresh(world_t *w, uint32_t count, uint32_t *ids)
{
    for (uint32_t i = 0; i < count; i++)
        ids[i] = w->next_id++;
}

static void create(world_t *w, model_t *m, const char *name, bool draft, lode_format_t format)
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

static void note_ids(model_t *m, const uint32_t *ids, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        atomic_store(&m->ids[m->tokens + i], ids[i]);
}

static void append(model_t *m, const uint32_t *ids, uint32_t count)
{
    size_t n = (size_t)count * KV_HEADS * DIM;
    float *k = malloc(2 * n * sizeof *k + 1), *v = k + n;
    note_ids(m, ids, count);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        tensors(ids, count, m->tokens, layer, k, v);
        MUST(lode_block_append(m->block, layer, count, LODE_FP32, k, v));
    }
    m->tokens += count;
    free(k);
}

/* --------------------------------------------------------------------- views */

/* A view as the test knows it. */
typedef struct look {
    lode_view_h view; /* NULL: the place is free */
    model_t *blocks[VIEW_BLOCKS];
    int64_t offsets[VIEW_BLOCKS];
    uint32_t count;
    int32_t write_block;
    bool dense;
} look_t;

static void look_create(world_t *w, look_t *look, bool shared_positions, const lode_policy_t *policy)
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

/* --------------------------------------------------------- what it should be */

/* A stream's context laid out: one token after another, block by block. */
typedef struct context {
    uint32_t count, paged;
    uint32_t ids[VIEW_BLOCKS * JOURNAL_MAX];
    int64_t positions[VIEW_BLOCKS * JOURNAL_MAX];
    uint32_t page_index[VIEW_BLOCKS * JOURNAL_MAX]; /* among the view's tokens in pages; UINT32_MAX: in a tail */
    int64_t end, write_end;
} context_t;

/* @p lengths: tokens of each block, @p in_pages of those in pages. */
static void lay_out(const look_t *look, const uint64_t *lengths, const uint64_t *in_pages, context_t *context)
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

/* Keys rotated to where they stand, and values. */
typedef struct laid {
    double *k, *v; /* (tokens, KV_HEADS, DIM) */
} laid_t;

static laid_t rotate_context(const context_t *context, uint32_t layer)
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
static double attend(const context_t *context, const laid_t *laid, int64_t position, uint32_t kv_head, const double *q,
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

/* What one stream of a step asks, and gets. */
typedef struct ask {
    look_t *look;
    uint32_t tokens, ids[ROWS_MAX];
    bool writes;
    int64_t position; /* or LODE_POSITION_END */
    uint64_t query;   /* seed of its queries */
    int64_t first;    /* position of its first row */
    float q[ROWS_MAX * QUERY_HEADS * DIM], k[ROWS_MAX * KV_HEADS * DIM], v[ROWS_MAX * KV_HEADS * DIM];
    float out[ROWS_MAX * QUERY_HEADS * DIM], lse[ROWS_MAX * QUERY_HEADS];
    float kept[LAYERS][ROWS_MAX * QUERY_HEADS * DIM]; /* out of each layer */
    uint64_t chosen[LAYERS];                          /* a hash of what it chose there */
} ask_t;

static context_t context; /* of the stream under the glass */

static void query_of(const ask_t *ask, uint32_t row, uint32_t layer, double q[QUERY_HEADS * DIM])
{
    for (uint32_t i = 0; i < QUERY_HEADS * DIM; i++)
        q[i] = 1.5 * value_at(ask->query + layer * 64 + row, i);
    for (uint32_t h = 0; h < QUERY_HEADS; h++)
        rotate_double(q + h * DIM, ask->first + row);
}

static model_t *write_model(const ask_t *ask)
{
    return ask->writes ? ask->look->blocks[ask->look->write_block] : NULL;
}

/* Lengths of a look's blocks in a layer, as far as this rank sees them now, and how much of each lies in pages. */
static void lengths_of(const look_t *look, uint32_t layer, uint64_t *lengths, uint64_t *in_pages)
{
    for (uint32_t b = 0; b < look->count; b++) {
        const model_t *m = look->blocks[b];
        MUST(lode_block_tokens(m->block, layer, &lengths[b]));
        in_pages[b] = m->mine ? m->block->tails[layer].first : lengths[b];
    }
}

static lode_stream_t stream_of(ask_t *ask, uint32_t layer)
{
    double q[QUERY_HEADS * DIM];
    for (uint32_t row = 0; row < ask->tokens; row++) {
        query_of(ask, row, layer, q);
        for (uint32_t i = 0; i < QUERY_HEADS * DIM; i++)
            ask->q[row * QUERY_HEADS * DIM + i] = (float)q[i];
    }
    if (ask->writes)
        tensors(ask->ids, ask->tokens, write_model(ask)->tokens - ask->tokens, layer, ask->k, ask->v);
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
        query_of(ask, row, layer, q);
        for (uint32_t h = 0; h < QUERY_HEADS; h++) {
            const uint32_t *chosen;
            uint64_t count;
            MUST(lode_step_selection(cluster, number, row, h / GROUP, &chosen, &count));
            double lse = attend(&context, laid, ask->first + row, h / GROUP, q + h * DIM, chosen, count, expected);
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
    lengths_of(look, layer, lengths, in_pages);
    uint32_t last = look->count - 1;
    uint64_t after = lengths[last];
    bool foreign = !look->blocks[last]->mine && !look->blocks[last]->sealed;
    double best = INFINITY;
    for (uint64_t n = foreign ? before[last] : after; n <= after && best > 1e-2; n += LODE_PAGE_TOKENS) {
        lengths[last] = n;
        in_pages[last] = foreign ? n : in_pages[last];
        lay_out(look, lengths, in_pages, &context);
        laid_t laid = rotate_context(&context, layer);
        best = fmin(best, error_of(ask, number, w->cluster, layer, &laid));
        free(laid.k);
        free(laid.v);
    }
    CHECK(best <= 1e-2, "stream %u, layer %u: error %g over %u tokens", number, layer, best, context.count);
    ask->chosen[layer] = check_choice(ask, number, w->cluster);
    memcpy(ask->kept[layer], ask->out, sizeof ask->out);
}

/* All layers of a step of several streams, checked after each. */
static void step(world_t *w, ask_t *asks, uint32_t count)
{
    lode_stream_t streams[STREAMS_MAX];
    uint64_t before[STREAMS_MAX][VIEW_BLOCKS], in_pages[VIEW_BLOCKS], lengths[VIEW_BLOCKS];
    for (uint32_t i = 0; i < count; i++)
        if (asks[i].writes) {
            note_ids(write_model(&asks[i]), asks[i].ids, asks[i].tokens);
            write_model(&asks[i])->tokens += asks[i].tokens;
        }
    for (uint32_t i = 0; i < count; i++) { /* as long as blocks will be when all have written */
        lengths_of(asks[i].look, 0, lengths, in_pages);
        for (uint32_t b = 0; b < asks[i].look->count; b++)
            if (asks[i].look->blocks[b]->mine)
                lengths[b] = asks[i].look->blocks[b]->tokens;
        lay_out(asks[i].look, lengths, in_pages, &context);
        asks[i].first = asks[i].writes                          ? context.write_end - asks[i].tokens
                        : asks[i].position == LODE_POSITION_END ? context.end
                                                                : asks[i].position;
    }
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        for (uint32_t i = 0; i < count; i++) {
            lengths_of(asks[i].look, layer, before[i], in_pages);
            streams[i] = stream_of(&asks[i], layer);
        }
        MUST(lode_step(w->cluster, layer, streams, count, NULL));
        for (uint32_t i = 0; i < count; i++)
            check_stream(w, &asks[i], i, layer, before[i]);
    }
}

/* ----------------------------------------------------------------- schedules */

enum { LOOKS = 4 };

/* Blocks this rank may write to now. */
static uint32_t writable(world_t *w, model_t **list)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < NOTES; i++)
        list[n++] = &w->notes[i];
    for (uint32_t i = 0; i < DRAFTS; i++)
        if (!w->drafts[i].sealed)
            list[n++] = &w->drafts[i];
    list[n++] = &w->journals[rank];
    return n;
}

static lode_policy_t draw_policy(world_t *w)
{
    switch (draw(w, 4)) {
    case 0:
        return (lode_policy_t){.budget_tokens = 32, .sinks = 2, .window = 8};
    case 1:
        return (lode_policy_t){.budget_share = 0.2, .merge = LODE_MERGE_MEAN};
    default:
        return (lode_policy_t){.select = LODE_SELECT_DENSE};
    }
}

/* Some blocks in some order at some offsets. What another rank writes stands last: its length is not ours to know. */
static void draw_look(world_t *w, look_t *look)
{
    model_t *all[DOCUMENTS + NOTES + DRAFTS + 1];
    uint32_t n = 0;
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        all[n++] = &w->documents[i];
    for (uint32_t i = 0; i < NOTES; i++)
        all[n++] = &w->notes[i];
    for (uint32_t i = 0; i < DRAFTS; i++)
        all[n++] = &w->drafts[i];
    all[n++] = &w->journals[rank];
    for (uint32_t i = n - 1; i > 0; i--) {
        uint32_t j = draw(w, i + 1);
        model_t *swap = all[i];
        all[i] = all[j];
        all[j] = swap;
    }
    *look = (look_t){.count = 2 + draw(w, n - 2), .write_block = -1};
    uint32_t manner = draw(w, 3); /* one after another, with gaps, anywhere */
    for (uint32_t i = 0; i < look->count; i++) {
        look->blocks[i] = all[i];
        look->offsets[i] = manner == 2             ? (int64_t)draw(w, 900) - 300
                           : manner == 1 && i == 0 ? 40
                           : manner == 1 && i == 1 ? 3000
                                                   : LODE_OFFSET_AFTER;
        if (all[i]->mine && !all[i]->sealed)
            look->write_block = draw(w, 2) || look->write_block < 0 ? (int32_t)i : look->write_block;
    }
    uint32_t other = draw(w, (uint32_t)ranks);
    if ((int)other != rank) {
        look->blocks[look->count] = &w->journals[other];
        look->offsets[look->count++] = manner == 2 ? (int64_t)draw(w, 900) - 300 : LODE_OFFSET_AFTER;
    }
    lode_policy_t policy = draw_policy(w);
    look_create(w, look, manner == 2, &policy);
}

static void close_look(look_t *look)
{
    if (look->view)
        MUST(lode_view_destroy(&look->view));
}

static bool lists(const look_t *look, const model_t *m)
{
    for (uint32_t b = 0; look->view && b < look->count; b++)
        if (look->blocks[b] == m)
            return true;
    return false;
}

/* Several streams, ragged; no two write to one block. */
static void draw_step(world_t *w, look_t *looks)
{
    static ask_t asks[STREAMS_MAX];
    const model_t *written[STREAMS_MAX] = {0};
    uint32_t count = 1 + draw(w, STREAMS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        look_t *look = &looks[draw(w, LOOKS)];
        asks[i] = (ask_t){.look = look, .tokens = 1 + draw(w, ROWS_MAX), .position = draw(w, 1200)};
        asks[i].query = (w->seed << 20) + (w->drawn << 8);
        model_t *m = look->write_block < 0 ? NULL : look->blocks[look->write_block];
        bool taken = !m || m->sealed || m->tokens > LONGEST;
        for (uint32_t j = 0; j < i; j++)
            taken |= written[j] == m;
        if (taken || draw(w, 4) == 0)
            continue;
        written[i] = m;
        asks[i].writes = true;
        asks[i].position = LODE_POSITION_END;
        fresh(w, asks[i].tokens, asks[i].ids);
    }
    step(w, asks, count);
}

static void draw_append(world_t *w)
{
    model_t *list[NOTES + DRAFTS + 1], *m = list[draw(w, writable(w, list))];
    uint32_t ids[150], count = 1 + draw(w, 150);
    if (m->tokens > LONGEST)
        return;
    fresh(w, count, ids);
    append(m, ids, count);
}

/* The least that a block can be cut to. */
static uint64_t least(const model_t *m)
{
    uint64_t first = 0;
    for (uint32_t layer = 0; layer < LAYERS; layer++)
        first = m->block->tails[layer].first > first ? m->block->tails[layer].first : first;
    return first;
}

static void draw_crop(world_t *w)
{
    model_t *list[NOTES + DRAFTS + 1], *m = list[draw(w, writable(w, list))];
    uint64_t from = least(m), keep = from + draw(w, (uint32_t)(m->tokens - from) + 1);
    CHECK(!m->draft || from == 0);
    if (from > 0)
        CHECK(lode_block_crop(m->block, from - 1) == LODE_ERR_SEALED);
    CHECK(lode_block_crop(m->block, m->tokens + 1) == LODE_ERR_INVALID);
    MUST(lode_block_crop(m->block, keep));
    m->tokens = keep;
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        uint64_t tokens;
        MUST(lode_block_tokens(m->block, layer, &tokens));
        CHECK(tokens == keep);
    }
}

static void draw_move(world_t *w)
{
    model_t *list[NOTES + DRAFTS + 1];
    uint32_t n = writable(w, list), ids[JOURNAL_MAX];
    model_t *from = list[draw(w, n)], *to = list[draw(w, n)];
    if (from == to || to->tokens > LONGEST)
        return;
    uint64_t first = least(from) + draw(w, (uint32_t)(from->tokens - least(from)) + 1), count = from->tokens - first;
    for (uint64_t i = 0; i < count; i++)
        ids[i] = atomic_load(&from->ids[first + i]);
    note_ids(to, ids, (uint32_t)count);
    MUST(lode_block_move(from->block, first, to->block));
    to->tokens += count;
    from->tokens = first;
}

/* A block goes; views that list it say so, and are made anew. */
static void renew(world_t *w, look_t *looks, model_t *m, const char *name, bool draft)
{
    MUST(lode_block_drop(&m->block));
    for (uint32_t i = 0; i < LOOKS; i++) {
        static float q[QUERY_HEADS * DIM], out[QUERY_HEADS * DIM];
        if (!lists(&looks[i], m))
            continue;
        lode_stream_t stream = {.view = looks[i].view, .tokens = 1, .dtype = LODE_FP32, .q = q, .out = out};
        CHECK(lode_step(w->cluster, 0, &stream, 1, NULL) == LODE_ERR_DROPPED);
        close_look(&looks[i]);
    }
    create(w, m, name, draft, LODE_FORMAT_BF16);
    for (uint32_t i = 0; i < LOOKS; i++)
        if (!looks[i].view)
            draw_look(w, &looks[i]);
}

static void draw_renewal(world_t *w, look_t *looks)
{
    uint32_t i = draw(w, NOTES + DRAFTS);
    if (i < NOTES && w->notes[i].tokens > 200)
        renew(w, looks, &w->notes[i], "notes", false);
    else if (i >= NOTES && w->drafts[i - NOTES].sealed)
        renew(w, looks, &w->drafts[i - NOTES], "draft", true);
}

static bool has_foreign(const look_t *look)
{
    for (uint32_t b = 0; b < look->count; b++)
        if (!look->blocks[b]->mine && !look->blocks[b]->sealed)
            return true;
    return false;
}

/* A stream that writes to a draft that no other looks at, or reads. */
static void draw_lone(world_t *w, look_t *looks, ask_t *asks, uint32_t i)
{
    look_t *look = &looks[draw(w, LOOKS)];
    while (has_foreign(look))
        look = &looks[(look - looks + 1) % LOOKS];
    asks[i] = (ask_t){.look = look, .tokens = 1 + draw(w, ROWS_MAX), .position = draw(w, 1200)};
    asks[i].query = (w->seed << 20) + (w->drawn << 8);
    model_t *m = look->write_block < 0 ? NULL : look->blocks[look->write_block];
    bool mine = m && m->draft && !m->sealed;
    for (uint32_t j = 0; j < i; j++)
        mine = mine && asks[j].look != look && !lists(asks[j].look, m) &&
               !(asks[j].writes && lists(look, write_model(&asks[j])));
    asks[i].writes = mine;
    if (!mine)
        return;
    asks[i].position = LODE_POSITION_END;
    fresh(w, asks[i].tokens, asks[i].ids);
}

/* Streams that do not see each other's new tokens give together what they give one by one. */
static void draw_together(world_t *w, look_t *looks)
{
    static ask_t asks[STREAMS_MAX], alone;
    uint32_t count = 2 + draw(w, STREAMS_MAX - 1), lone = 0;
    for (uint32_t i = 0; i < LOOKS; i++)
        lone += !has_foreign(&looks[i]);
    for (uint32_t i = 0; i < count && lone; i++) {
        draw_lone(w, looks, asks, i);
        for (uint32_t j = 0; j < i; j++) /* what reads only may see what another writes */
            if (asks[j].writes && lists(asks[i].look, write_model(&asks[j])))
                return;
    }
    if (!lone)
        return;
    step(w, asks, count);
    for (uint32_t i = 0; i < count; i++)
        if (asks[i].writes) {
            write_model(&asks[i])->tokens -= asks[i].tokens;
            MUST(lode_block_crop(write_model(&asks[i])->block, write_model(&asks[i])->tokens));
        }
    for (uint32_t i = 0; i < count; i++) {
        alone = asks[i];
        step(w, &alone, 1);
        for (uint32_t layer = 0; layer < LAYERS; layer++) {
            CHECK(alone.chosen[layer] == asks[i].chosen[layer]);
            for (uint32_t x = 0; x < asks[i].tokens * QUERY_HEADS * DIM; x++)
                CHECK(fabsf(alone.kept[layer][x] - asks[i].kept[layer][x]) <= 1e-5f, "stream %u of %u", i, count);
        }
    }
}

/* A view's blocks and a draft behind them; some steps; then it is thrown away, taken back, or moved to where it
 * belongs. */
static void draw_probe(world_t *w, look_t *looks)
{
    static ask_t ask;
    look_t probe = looks[draw(w, LOOKS)];
    model_t draft = {.ids = malloc(JOURNAL_MAX * sizeof *draft.ids)};
    create(w, &draft, "probe", true, LODE_FORMAT_BF16);
    if (!probe.blocks[probe.count - 1]->mine && !probe.blocks[probe.count - 1]->sealed)
        probe.count--; /* so that it is known where the draft begins */
    probe.write_block = (int32_t)probe.count;
    probe.offsets[probe.count] = LODE_OFFSET_AFTER;
    probe.blocks[probe.count++] = &draft;
    lode_policy_t policy = draw_policy(w);
    look_create(w, &probe, true, &policy);
    uint32_t fate = draw(w, 3), steps = 1 + draw(w, 2);
    for (uint32_t i = 0; i < steps; i++) {
        ask = (ask_t){.look = &probe, .tokens = 1 + draw(w, ROWS_MAX), .writes = true, .position = LODE_POSITION_END};
        ask.query = (w->seed << 20) + (w->drawn << 8);
        fresh(w, ask.tokens, ask.ids);
        step(w, &ask, 1);
        if (fate == 1) {
            draft.tokens = draw(w, (uint32_t)draft.tokens + 1);
            MUST(lode_block_crop(draft.block, draft.tokens));
        }
    }
    model_t *to = &w->notes[draw(w, NOTES)];
    if (fate == 2 && to->tokens <= LONGEST) {
        uint32_t ids[2 * ROWS_MAX];
        for (uint32_t i = 0; i < draft.tokens; i++)
            ids[i] = atomic_load(&draft.ids[i]);
        note_ids(to, ids, (uint32_t)draft.tokens);
        MUST(lode_block_move(draft.block, 0, to->block));
        to->tokens += draft.tokens;
    }
    close_look(&probe);
    MUST(lode_block_drop(&draft.block));
    free(draft.ids);
}

static void draw_seal(world_t *w)
{
    model_t *m = &w->drafts[draw(w, DRAFTS)];
    if (m->sealed || m->tokens == 0)
        return;
    MUST(lode_block_seal(m->block));
    CHECK(lode_block_crop(m->block, 0) == LODE_ERR_SEALED);
    m->sealed = true;
}

static void one_thing(world_t *w, look_t *looks)
{
    uint32_t look = draw(w, LOOKS);
    switch (draw(w, 16)) {
    case 0:
    case 1:
        draw_append(w);
        break;
    case 2:
    case 3:
        draw_crop(w);
        break;
    case 4:
    case 5:
        draw_move(w);
        break;
    case 6:
        close_look(&looks[look]);
        draw_look(w, &looks[look]);
        break;
    case 7:
        draw_renewal(w, looks);
        break;
    case 8:
        draw_probe(w, looks);
        break;
    case 9:
        draw_seal(w);
        break;
    case 10:
        draw_together(w, looks);
        break;
    default:
        draw_step(w, looks);
    }
}

/* -------------------------------------------------------------------- worlds */

static lode_cluster_h join(const char *const *settings)
{
    const lode_geometry_t geometry = {.layers = LAYERS,
                                      .query_heads = QUERY_HEADS,
                                      .kv_heads = KV_HEADS,
                                      .head_dim = DIM,
                                      .rope = {.theta = 10000, .scaling = LODE_ROPE_LINEAR, .factor = 2}};
    lode_config_h config;
    lode_cluster_h cluster;
    MUST(lode_config_create(&config));
    MUST(lode_config_set(config, "arena", "64MiB"));
    MUST(lode_config_set(config, "landing", "1MiB"));
    for (; settings && *settings; settings += 2)
        MUST(lode_config_set(config, settings[0], settings[1]));
    MUST(lode_cluster_join(config, &geometry, &cluster));
    lode_config_destroy(&config);
    return cluster;
}

static _Atomic uint32_t *no_ids(void)
{
    return calloc(JOURNAL_MAX, sizeof(_Atomic uint32_t));
}

static void open_shared(world_t *w)
{
    MPI_Aint bytes;
    int unit;
    MPI_Win_allocate_shared(rank == 0 ? sizeof(shared_t) : 0, 1, MPI_INFO_NULL, MPI_COMM_WORLD, &w->shared, &w->window);
    MPI_Win_shared_query(w->window, 0, &bytes, &unit, &w->shared);
}

/* Documents are the same on every rank, written by the first and the last. */
static void make_document(world_t *w, uint32_t i)
{
    model_t *m = &w->documents[i];
    uint32_t ids[400], count = i ? 333 : 128;
    int writer = i ? ranks - 1 : 0;
    m->ids = no_ids();
    for (uint32_t t = 0; t < count; t++)
        ids[t] = 1000 * (i + 1) + t;
    if (rank == writer) {
        create(w, m, "document", i == 0, LODE_FORMAT_BF16);
        append(m, ids, count);
        MUST(lode_block_seal(m->block));
    }
    MPI_Bcast(m->name, sizeof m->name, MPI_CHAR, writer, MPI_COMM_WORLD);
    if (rank != writer) {
        note_ids(m, ids, count);
        MUST(lode_block_open(w->cluster, m->name, &m->block));
    }
    m->tokens = count;
    m->mine = rank == writer;
    m->sealed = true;
}

static void make_world(world_t *w, uint64_t seed, const char *const *settings)
{
    *w = (world_t){.cluster = join(settings), .seed = seed * 16 + (uint64_t)rank};
    w->next_id = (uint32_t)(rank + 1) << 24;
    open_shared(w);
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        make_document(w, i);
    for (uint32_t i = 0; i < NOTES; i++) {
        w->notes[i].ids = no_ids();
        create(w, &w->notes[i], "notes", false, LODE_FORMAT_BF16);
    }
    for (uint32_t i = 0; i < DRAFTS; i++) {
        w->drafts[i].ids = no_ids();
        create(w, &w->drafts[i], "draft", true, LODE_FORMAT_BF16);
    }
    create(w, &w->journals[rank], "journal", false, LODE_FORMAT_BF16);
    for (int r = 0; r < ranks; r++) {
        model_t *m = &w->journals[r];
        m->ids = w->shared->ids[r];
        MPI_Bcast(m->name, sizeof m->name, MPI_CHAR, r, MPI_COMM_WORLD);
        if (r != rank)
            MUST(lode_block_open(w->cluster, m->name, &m->block));
    }
}

static void end_world(world_t *w)
{
    MPI_Barrier(MPI_COMM_WORLD);
    for (uint32_t i = 0; i < NOTES; i++)
        MUST(lode_block_drop(&w->notes[i].block));
    for (uint32_t i = 0; i < DRAFTS; i++)
        MUST(lode_block_drop(&w->drafts[i].block));
    for (int r = 0; r < ranks; r++)
        MUST(lode_block_close(&w->journals[r].block));
    for (uint32_t i = 0; i < DOCUMENTS; i++) {
        MUST(lode_block_close(&w->documents[i].block));
        free(w->documents[i].ids);
    }
    for (uint32_t i = 0; i < NOTES; i++)
        free(w->notes[i].ids);
    for (uint32_t i = 0; i < DRAFTS; i++)
        free(w->drafts[i].ids);
    MUST(lode_cluster_leave(&w->cluster));
    MPI_Win_free(&w->window);
}

static void schedule(uint64_t seed, uint32_t things, const char *const *settings)
{
    static world_t w;
    look_t looks[LOOKS];
    make_world(&w, seed, settings);
    for (uint32_t i = 0; i < LOOKS; i++)
        draw_look(&w, &looks[i]);
    for (uint32_t i = 0; i < things && !failures; i++) {
        one_thing(&w, looks);
        if (failures)
            fprintf(stderr, "rank %d: seed %llu, thing %u\n", rank, (unsigned long long)seed, i);
    }
    for (uint32_t i = 0; i < LOOKS; i++)
        close_look(&looks[i]);
    end_world(&w);
}

/* ----------------------------------------------------------------- bad input */

#define REFUSED(call, expected, words)                                                                   \
    do {                                                                                                 \
        lode_status_t got_ = (call);                                                                     \
        CHECK(got_ == (expected), "%s, not %s", lode_status_string(got_), lode_status_string(expected)); \
        CHECK(strstr(lode_error_message(), words), "does not say: %s", words);                           \
    } while (0)

static void grow(world_t *w, model_t *m, uint32_t count)
{
    uint32_t ids[400];
    fresh(w, count, ids);
    append(m, ids, count);
}

static void bad_crops(world_t *w)
{
    model_t *notes = &w->notes[0], *draft = &w->drafts[0];
    model_t *others = &w->journals[(rank + 1) % ranks], *document = &w->documents[0];
    grow(w, notes, 200);
    grow(w, draft, 200);
    REFUSED(lode_block_crop(notes->block, 191), LODE_ERR_SEALED, "keep at least 192");
    REFUSED(lode_block_crop(notes->block, 201), LODE_ERR_INVALID, "layer 0 has 200");
    REFUSED(lode_block_crop(document->block, 0), document->mine ? LODE_ERR_SEALED : LODE_ERR_INVALID,
            document->mine ? "is sealed" : "is written by rank 0");
    if (ranks > 1)
        REFUSED(lode_block_crop(others->block, 0), LODE_ERR_INVALID, "is written by rank");
    REFUSED(lode_block_move(draft->block, 0, draft->block), LODE_ERR_INVALID, "into itself");
    REFUSED(lode_block_move(draft->block, 201, notes->block), LODE_ERR_INVALID, "cannot keep 201");
    REFUSED(lode_block_move(notes->block, 100, draft->block), LODE_ERR_SEALED, "keep at least 192");
    REFUSED(lode_block_move(draft->block, 0, document->block), document->mine ? LODE_ERR_SEALED : LODE_ERR_INVALID,
            document->mine ? "is sealed" : "is written by rank 0");
    if (ranks > 1)
        REFUSED(lode_block_move(others->block, 0, notes->block), LODE_ERR_INVALID, "is written by rank");
    float one[KV_HEADS * DIM] = {0};
    MUST(lode_block_append(draft->block, 0, 1, LODE_FP32, one, one));
    REFUSED(lode_block_move(draft->block, 10, notes->block), LODE_ERR_INVALID, "layer 0 has 201 tokens, layer 1 has");
    REFUSED(lode_block_move(notes->block, 192, draft->block), LODE_ERR_INVALID, "cannot be moved to");
    REFUSED(lode_block_seal(draft->block), LODE_ERR_INVALID, "cannot be sealed");
    REFUSED(lode_block_crop(draft->block, 201), LODE_ERR_INVALID, "layer 1 has 200");
    MUST(lode_block_crop(draft->block, 200)); /* half a step is taken back */
    MUST(lode_block_move(draft->block, 200, notes->block));
    uint64_t tokens;
    MUST(lode_block_tokens(notes->block, 1, &tokens));
    CHECK(tokens == 200); /* none was moved, and none is lost */
    MUST(lode_block_tokens(draft->block, 0, &tokens));
    CHECK(tokens == 200);
}

static void bad_views(world_t *w)
{
    lode_block_h blocks[] = {w->notes[0].block, w->documents[1].block, w->notes[0].block};
    lode_view_params_t params = {.blocks = blocks, .count = 3, .policy = {.select = LODE_SELECT_DENSE}};
    lode_view_h view = NULL, other;
    REFUSED(lode_view_create(w->cluster, &params, &view), LODE_ERR_INVALID, "stands twice in a view");
    CHECK(!view);
    params.count = 2;
    params.write_block = 0;
    MUST(lode_view_create(w->cluster, &params, &view));
    blocks[1] = w->drafts[0].block;
    MUST(lode_view_create(w->cluster, &params, &other));
    static float q[QUERY_HEADS * DIM], kv[KV_HEADS * DIM], out[QUERY_HEADS * DIM];
    lode_stream_t one = {view, 1, LODE_POSITION_END, LODE_FP32, q, kv, kv, out, NULL, NULL}, two[] = {one, one};
    two[1].view = other;
    uint64_t before, after;
    MUST(lode_block_tokens(w->notes[0].block, 0, &before));
    REFUSED(lode_step(w->cluster, 0, two, 2, NULL), LODE_ERR_INVALID, "two streams of one step write to block \"notes");
    MUST(lode_block_tokens(w->notes[0].block, 0, &after));
    CHECK(before == after);
    MUST(lode_view_destroy(&view));
    MUST(lode_view_destroy(&other));
}

static void bad_input(void)
{
    static world_t w;
    make_world(&w, 99, NULL);
    bad_crops(&w);
    bad_views(&w);
    end_world(&w);
}

/* ------------------------------------------------------------------ full arena */

static uint64_t pages_of(const world_t *w)
{
    lode_rank_stats_t stats;
    MUST(lode_cluster_rank_stats(w->cluster, 0, &stats));
    return stats.pages;
}

/* Pages of one layer, as many as are asked for or fit. */
static uint32_t fill_arena(world_t *w, uint32_t most)
{
    static float zeros[LODE_PAGE_TOKENS * KV_HEADS * DIM];
    model_t ballast;
    uint32_t filled = 0;
    create(w, &ballast, "ballast", false, LODE_FORMAT_BF16);
    while (filled < most) {
        lode_status_t status = lode_block_append(ballast.block, 0, LODE_PAGE_TOKENS, LODE_FP32, zeros, zeros);
        CHECK(status == LODE_OK || status == LODE_ERR_FULL);
        if (status != LODE_OK)
            break;
        filled++;
    }
    MUST(lode_block_close(&ballast.block));
    return filled;
}

static void check_look(world_t *w, look_t *look)
{
    static ask_t ask;
    ask = (ask_t){.look = look, .tokens = 3, .writes = true, .position = LODE_POSITION_END, .query = 7};
    fresh(w, ask.tokens, ask.ids);
    step(w, &ask, 1);
}

/* A probe needs no room in the arena. Room for one page is not enough for two layers: then none of them changes. */
static void probe_on_full(uint32_t pages, uint32_t *filled)
{
    static world_t w;
    const char *settings[] = {"arena", "4MiB", NULL};
    make_world(&w, 98, settings);
    grow(&w, &w.notes[0], 63);
    grow(&w, &w.drafts[0], 60);
    look_t look = {.blocks = {&w.documents[1], &w.notes[0], &w.drafts[0]}, .count = 3, .write_block = 2};
    look.offsets[0] = look.offsets[1] = look.offsets[2] = LODE_OFFSET_AFTER;
    look_create(&w, &look, false, &(lode_policy_t){.select = LODE_SELECT_DENSE});
    *filled = fill_arena(&w, pages);
    uint64_t before = pages_of(&w), moved = w.drafts[0].tokens;
    check_look(&w, &look);
    REFUSED(lode_block_move(w.drafts[0].block, 0, w.notes[0].block), LODE_ERR_FULL, "moving from block \"draft");
    REFUSED(lode_block_seal(w.drafts[0].block), LODE_ERR_FULL, "block \"draft");
    CHECK(pages_of(&w) == before, "%llu pages, before %llu", (unsigned long long)pages_of(&w),
          (unsigned long long)before);
    check_look(&w, &look); /* all is where it was, and goes on */
    MUST(lode_block_crop(w.drafts[0].block, moved));
    w.drafts[0].tokens = moved;
    check_look(&w, &look);
    close_look(&look);
    end_world(&w);
}

static void full_arena(void)
{
    uint32_t room, again;
    probe_on_full(UINT32_MAX, &room);
    CHECK(room > 3);
    probe_on_full(room - 1, &again);
    CHECK(again == room - 1);
}

/* ------------------------------------------------------------------ lost owner */

/* What of the document this rank holds, as indices of its tokens in the view. */
static uint64_t held(const world_t *w, const model_t *m, uint32_t layer, uint32_t *tokens)
{
    uint64_t count = 0;
    lode_page_ref_t ref;
    for (uint32_t t = 0; t < m->tokens; t++)
        if (lode_shard_find(w->cluster->shard, (lode_page_id_t){m->block->info.id, layer, t / LODE_PAGE_TOKENS}, &ref))
            tokens[count++] = t;
    return count;
}

static look_t look_at(world_t *w, model_t *document, model_t *draft, lode_lost_t lost)
{
    look_t look = {.blocks = {document, draft}, .count = 2, .write_block = 1};
    look.offsets[0] = look.offsets[1] = LODE_OFFSET_AFTER;
    look_create(w, &look, false, &(lode_policy_t){.select = LODE_SELECT_DENSE, .lost = lost});
    return look;
}

/* The survivor's two streams: one cannot do without what is lost, one can. */
static void survive(world_t *w)
{
    static ask_t asks[2];
    static uint32_t left[JOURNAL_MAX];
    float share[2] = {-1, -1};
    look_t looks[] = {look_at(w, &w->documents[1], &w->drafts[0], LODE_LOST_FAIL),
                      look_at(w, &w->documents[1], &w->drafts[1], LODE_LOST_SKIP)};
    lode_stream_t streams[2];
    for (uint32_t i = 0; i < 2; i++) {
        asks[i] = (ask_t){.look = &looks[i], .tokens = 1, .writes = true, .query = 5, .first = 333};
        asks[i].position = LODE_POSITION_END;
        fresh(w, 1, asks[i].ids);
        note_ids(&w->drafts[i], asks[i].ids, 1);
        w->drafts[i].tokens = 1;
        streams[i] = stream_of(&asks[i], 0);
        streams[i].lost_share = &share[i];
    }
    uint64_t tokens, lengths[VIEW_BLOCKS], in_pages[VIEW_BLOCKS];
    REFUSED(lode_step(w->cluster, 0, streams, 2, NULL), LODE_ERR_PAGE_LOST, "layer 0, page");
    for (uint32_t i = 0; i < 2; i++) {
        MUST(lode_block_tokens(w->drafts[i].block, 0, &tokens));
        CHECK(tokens == 0); /* both streams' tokens are taken back */
    }
    MUST(lode_step(w->cluster, 0, &streams[1], 1, NULL));
    uint64_t count = held(w, &w->documents[1], 0, left);
    CHECK(share[1] == (float)((double)(333 - count) / 333) && count < 333, "share %g, %llu left", share[1],
          (unsigned long long)count);
    lengths_of(&looks[1], 0, lengths, in_pages);
    lay_out(&looks[1], lengths, in_pages, &context);
    laid_t laid = rotate_context(&context, 0);
    double q[QUERY_HEADS * DIM], expected[DIM], error = 0;
    query_of(&asks[1], 0, 0, q);
    for (uint32_t h = 0; h < QUERY_HEADS; h++) {
        attend(&context, &laid, 333, h / GROUP, q + h * DIM, left, count, expected);
        for (uint32_t i = 0; i < DIM; i++)
            error = fmax(error, fabs(expected[i] - asks[1].out[h * DIM + i]));
    }
    CHECK(error < 1e-2, "error %g", error);
    free(laid.k);
    free(laid.v);
    close_look(&looks[0]);
    close_look(&looks[1]);
}

/* The last rank dies with its part of the document that it wrote. */
static void lost_owner(void)
{
    static world_t w;
    alarm(60);
    make_world(&w, 97, (const char *[]){"hot-cache", "0", NULL});
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == ranks - 1)
        raise(SIGKILL);
    lode_cluster_info_t info = {.alive = (uint32_t)ranks};
    while (info.alive == (uint32_t)ranks) { /* the alarm ends a wait in vain */
        usleep(5000);
        MUST(lode_cluster_query(w.cluster, &info));
    }
    survive(&w);
    if (!failures)
        printf("rank %d: right\n", rank);
    fflush(stdout);
    _exit(failures != 0);
}

/* ---------------------------------------------------------------------- main */

int main(int argc, char **argv)
{
    int provided, all, things;
    const lode_rope_t rope = {.theta = 10000, .scaling = LODE_ROPE_LINEAR, .factor = 2};
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    MUST(lode_rope_frequencies(&rope, DIM, freq));
    make_angles();
    if (argc == 2)
        lost_owner();
    things = argc > 1 ? atoi(argv[1]) : 30;
    uint64_t seeds = argc > 2 ? (uint64_t)atoi(argv[2]) : 2;
    for (uint64_t seed = 1; seed <= seeds; seed++)
        schedule(seed, (uint32_t)things, NULL);
    bad_input();
    if (ranks == 1)
        full_arena();
    free(angles);
    MPI_Allreduce(&failures, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Finalize();
    return all ? 1 : 0;
}
