/* SPDX-License-Identifier: Apache-2.0 */
/* Streams that ask for what cannot be: bad views and crops, a full arena, an owner that is lost. */
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attend/inside.h"
#include "tests/multi/streams.h"

static context_t context;

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
    world_fresh(w, count, ids);
    model_append(m, ids, count);
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

void bad_input(void)
{
    static world_t w;
    world_begin(&w, 99, NULL);
    bad_crops(&w);
    bad_views(&w);
    world_end(&w);
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
    model_create(w, &ballast, "ballast", false, LODE_FORMAT_BF16);
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
    world_fresh(w, ask.tokens, ask.ids);
    world_step(w, &ask, 1);
}

/* A probe needs no room in the arena. Room for one page is not enough for two layers: then none of them changes. */
static void probe_on_full(uint32_t pages, uint32_t *filled)
{
    static world_t w;
    const char *settings[] = {"arena", "4MiB", NULL};
    world_begin(&w, 98, settings);
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
    look_close(&look);
    world_end(&w);
}

void full_arena(void)
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
        world_fresh(w, 1, asks[i].ids);
        model_note(&w->drafts[i], asks[i].ids, 1);
        w->drafts[i].tokens = 1;
        streams[i] = ask_stream(&asks[i], 0);
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
    look_lengths(&looks[1], 0, lengths, in_pages);
    context_lay_out(&looks[1], lengths, in_pages, &context);
    laid_t laid = context_rotate(&context, 0);
    double q[QUERY_HEADS * DIM], expected[DIM], error = 0;
    ask_query(&asks[1], 0, 0, q);
    for (uint32_t h = 0; h < QUERY_HEADS; h++) {
        context_attend(&context, &laid, 333, h / GROUP, q + h * DIM, left, count, expected);
        for (uint32_t i = 0; i < DIM; i++)
            error = fmax(error, fabs(expected[i] - asks[1].out[h * DIM + i]));
    }
    CHECK(error < 1e-2, "error %g", error);
    free(laid.k);
    free(laid.v);
    look_close(&looks[0]);
    look_close(&looks[1]);
}

/* The last rank dies with its part of the document that it wrote. */
void lost_owner(void)
{
    static world_t w;
    alarm(60);
    world_begin(&w, 97, (const char *[]){"hot-cache", "0", NULL});
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
