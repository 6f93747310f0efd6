/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams over shared blocks: schedules drawn from seeds, against attention in double over each stream's whole context.
 * Each rank draws its own schedule and does not wait for the others, whose journals it reads while they grow.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"
#include "tests/multi/streams.h"

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
    switch (world_draw(w, 4)) {
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
        uint32_t j = world_draw(w, i + 1);
        model_t *swap = all[i];
        all[i] = all[j];
        all[j] = swap;
    }
    *look = (look_t){.count = 2 + world_draw(w, n - 2), .write_block = -1};
    uint32_t manner = world_draw(w, 3); /* one after another, with gaps, anywhere */
    for (uint32_t i = 0; i < look->count; i++) {
        look->blocks[i] = all[i];
        look->offsets[i] = manner == 2             ? (int64_t)world_draw(w, 900) - 300
                           : manner == 1 && i == 0 ? 40
                           : manner == 1 && i == 1 ? 3000
                                                   : LODE_OFFSET_AFTER;
        if (all[i]->mine && !all[i]->sealed)
            look->write_block = world_draw(w, 2) || look->write_block < 0 ? (int32_t)i : look->write_block;
    }
    uint32_t other = world_draw(w, (uint32_t)ranks);
    if ((int)other != rank) {
        look->blocks[look->count] = &w->journals[other];
        look->offsets[look->count++] = manner == 2 ? (int64_t)world_draw(w, 900) - 300 : LODE_OFFSET_AFTER;
    }
    lode_policy_t policy = draw_policy(w);
    look_create(w, look, manner == 2, &policy);
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
    uint32_t count = 1 + world_draw(w, STREAMS_MAX);
    for (uint32_t i = 0; i < count; i++) {
        look_t *look = &looks[world_draw(w, LOOKS)];
        asks[i] = (ask_t){.look = look, .tokens = 1 + world_draw(w, ROWS_MAX), .position = world_draw(w, 1200)};
        asks[i].query = (w->seed << 20) + (w->drawn << 8);
        model_t *m = look->write_block < 0 ? NULL : look->blocks[look->write_block];
        bool taken = !m || m->sealed || m->tokens > LONGEST;
        for (uint32_t j = 0; j < i; j++)
            taken |= written[j] == m;
        if (taken || world_draw(w, 4) == 0)
            continue;
        written[i] = m;
        asks[i].writes = true;
        asks[i].position = LODE_POSITION_END;
        world_fresh(w, asks[i].tokens, asks[i].ids);
    }
    world_step(w, asks, count);
}

static void draw_append(world_t *w)
{
    model_t *list[NOTES + DRAFTS + 1], *m = list[world_draw(w, writable(w, list))];
    uint32_t ids[150], count = 1 + world_draw(w, 150);
    if (m->tokens > LONGEST)
        return;
    world_fresh(w, count, ids);
    model_append(m, ids, count);
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
    model_t *list[NOTES + DRAFTS + 1], *m = list[world_draw(w, writable(w, list))];
    uint64_t from = least(m), keep = from + world_draw(w, (uint32_t)(m->tokens - from) + 1);
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
    model_t *from = list[world_draw(w, n)], *to = list[world_draw(w, n)];
    if (from == to || to->tokens > LONGEST)
        return;
    uint64_t first = least(from) + world_draw(w, (uint32_t)(from->tokens - least(from)) + 1),
             count = from->tokens - first;
    for (uint64_t i = 0; i < count; i++)
        ids[i] = atomic_load(&from->ids[first + i]);
    model_note(to, ids, (uint32_t)count);
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
        look_close(&looks[i]);
    }
    model_create(w, m, name, draft, LODE_FORMAT_BF16);
    for (uint32_t i = 0; i < LOOKS; i++)
        if (!looks[i].view)
            draw_look(w, &looks[i]);
}

static void draw_renewal(world_t *w, look_t *looks)
{
    uint32_t i = world_draw(w, NOTES + DRAFTS);
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
    look_t *look = &looks[world_draw(w, LOOKS)];
    while (has_foreign(look))
        look = &looks[(look - looks + 1) % LOOKS];
    asks[i] = (ask_t){.look = look, .tokens = 1 + world_draw(w, ROWS_MAX), .position = world_draw(w, 1200)};
    asks[i].query = (w->seed << 20) + (w->drawn << 8);
    model_t *m = look->write_block < 0 ? NULL : look->blocks[look->write_block];
    bool mine = m && m->draft && !m->sealed;
    for (uint32_t j = 0; j < i; j++)
        mine = mine && asks[j].look != look && !lists(asks[j].look, m) &&
               !(asks[j].writes && lists(look, ask_writes_to(&asks[j])));
    asks[i].writes = mine;
    if (!mine)
        return;
    asks[i].position = LODE_POSITION_END;
    world_fresh(w, asks[i].tokens, asks[i].ids);
}

/* Streams that do not see each other's new tokens give together what they give one by one. */
static void draw_together(world_t *w, look_t *looks)
{
    static ask_t asks[STREAMS_MAX], alone;
    uint32_t count = 2 + world_draw(w, STREAMS_MAX - 1), lone = 0;
    for (uint32_t i = 0; i < LOOKS; i++)
        lone += !has_foreign(&looks[i]);
    for (uint32_t i = 0; i < count && lone; i++) {
        draw_lone(w, looks, asks, i);
        for (uint32_t j = 0; j < i; j++) /* what reads only may see what another writes */
            if (asks[j].writes && lists(asks[i].look, ask_writes_to(&asks[j])))
                return;
    }
    if (!lone)
        return;
    world_step(w, asks, count);
    for (uint32_t i = 0; i < count; i++)
        if (asks[i].writes) {
            ask_writes_to(&asks[i])->tokens -= asks[i].tokens;
            MUST(lode_block_crop(ask_writes_to(&asks[i])->block, ask_writes_to(&asks[i])->tokens));
        }
    for (uint32_t i = 0; i < count; i++) {
        alone = asks[i];
        world_step(w, &alone, 1);
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
    look_t probe = looks[world_draw(w, LOOKS)];
    model_t draft = {.ids = malloc(JOURNAL_MAX * sizeof *draft.ids)};
    model_create(w, &draft, "probe", true, LODE_FORMAT_BF16);
    if (!probe.blocks[probe.count - 1]->mine && !probe.blocks[probe.count - 1]->sealed)
        probe.count--; /* so that it is known where the draft begins */
    probe.write_block = (int32_t)probe.count;
    probe.offsets[probe.count] = LODE_OFFSET_AFTER;
    probe.blocks[probe.count++] = &draft;
    lode_policy_t policy = draw_policy(w);
    look_create(w, &probe, true, &policy);
    uint32_t fate = world_draw(w, 3), steps = 1 + world_draw(w, 2);
    for (uint32_t i = 0; i < steps; i++) {
        ask = (ask_t){
            .look = &probe, .tokens = 1 + world_draw(w, ROWS_MAX), .writes = true, .position = LODE_POSITION_END};
        ask.query = (w->seed << 20) + (w->drawn << 8);
        world_fresh(w, ask.tokens, ask.ids);
        world_step(w, &ask, 1);
        if (fate == 1) {
            draft.tokens = world_draw(w, (uint32_t)draft.tokens + 1);
            MUST(lode_block_crop(draft.block, draft.tokens));
        }
    }
    model_t *to = &w->notes[world_draw(w, NOTES)];
    if (fate == 2 && to->tokens <= LONGEST) {
        uint32_t ids[2 * ROWS_MAX];
        for (uint32_t i = 0; i < draft.tokens; i++)
            ids[i] = atomic_load(&draft.ids[i]);
        model_note(to, ids, (uint32_t)draft.tokens);
        MUST(lode_block_move(draft.block, 0, to->block));
        to->tokens += draft.tokens;
    }
    look_close(&probe);
    MUST(lode_block_drop(&draft.block));
    free(draft.ids);
}

static void draw_seal(world_t *w)
{
    model_t *m = &w->drafts[world_draw(w, DRAFTS)];
    if (m->sealed || m->tokens == 0)
        return;
    MUST(lode_block_seal(m->block));
    CHECK(lode_block_crop(m->block, 0) == LODE_ERR_SEALED);
    m->sealed = true;
}

static void one_thing(world_t *w, look_t *looks)
{
    uint32_t look = world_draw(w, LOOKS);
    switch (world_draw(w, 16)) {
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
        look_close(&looks[look]);
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
static void schedule(uint64_t seed, uint32_t things, const char *const *settings)
{
    static world_t w;
    look_t looks[LOOKS];
    world_begin(&w, seed, settings);
    for (uint32_t i = 0; i < LOOKS; i++)
        draw_look(&w, &looks[i]);
    for (uint32_t i = 0; i < things && !failures; i++) {
        one_thing(&w, looks);
        if (failures)
            fprintf(stderr, "rank %d: seed %llu, thing %u\n", rank, (unsigned long long)seed, i);
    }
    for (uint32_t i = 0; i < LOOKS; i++)
        look_close(&looks[i]);
    world_end(&w);
}
/* ---------------------------------------------------------------------- main */

int main(int argc, char **argv)
{
    int provided, all, things;
    MPI_Init_thread(&argc, &argv, MPI_THREAD_FUNNELED, &provided);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    exact_begin();
    if (argc == 2)
        lost_owner();
    things = argc > 1 ? atoi(argv[1]) : 30;
    uint64_t seeds = argc > 2 ? (uint64_t)atoi(argv[2]) : 2;
    for (uint64_t seed = 1; seed <= seeds; seed++)
        schedule(seed, (uint32_t)things, NULL);
    bad_input();
    if (ranks == 1)
        full_arena();
    MPI_Allreduce(&failures, &all, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Finalize();
    return all ? 1 : 0;
}
