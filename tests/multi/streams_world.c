/* SPDX-License-Identifier: Apache-2.0 */
/* A cluster with what schedules work on: documents that are sealed, journals that others read, notes, drafts. */
#include <stdlib.h>

#include "tests/multi/streams.h"

static lode_cluster_h join(const char *const *settings)
{
    const lode_geometry_t geometry = {
        .layers = LAYERS, .query_heads = QUERY_HEADS, .kv_heads = KV_HEADS, .head_dim = DIM, .rope = rope};
    static const char *const small[] = {"arena", "64MiB", "landing", "1MiB", NULL};
    lode_cluster_h cluster;
    MUST(join_by(&geometry, small, settings, &cluster));
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
        model_create(w, m, "document", i == 0, LODE_FORMAT_BF16);
        model_append(m, ids, count);
        MUST(lode_block_seal(m->block));
    }
    MPI_Bcast(m->name, sizeof m->name, MPI_CHAR, writer, MPI_COMM_WORLD);
    if (rank != writer) {
        model_note(m, ids, count);
        MUST(lode_block_open(w->cluster, m->name, &m->block));
    }
    m->tokens = count;
    m->mine = rank == writer;
    m->sealed = true;
}

void world_begin(world_t *w, uint64_t seed, const char *const *settings)
{
    *w = (world_t){.cluster = join(settings), .seed = seed * 16 + (uint64_t)rank};
    w->next_id = (uint32_t)(rank + 1) << 24;
    open_shared(w);
    for (uint32_t i = 0; i < DOCUMENTS; i++)
        make_document(w, i);
    for (uint32_t i = 0; i < NOTES; i++) {
        w->notes[i].ids = no_ids();
        model_create(w, &w->notes[i], "notes", false, LODE_FORMAT_BF16);
    }
    for (uint32_t i = 0; i < DRAFTS; i++) {
        w->drafts[i].ids = no_ids();
        model_create(w, &w->drafts[i], "draft", true, LODE_FORMAT_BF16);
    }
    model_create(w, &w->journals[rank], "journal", false, LODE_FORMAT_BF16);
    for (int r = 0; r < ranks; r++) {
        model_t *m = &w->journals[r];
        m->ids = w->shared->ids[r];
        MPI_Bcast(m->name, sizeof m->name, MPI_CHAR, r, MPI_COMM_WORLD);
        if (r != rank)
            MUST(lode_block_open(w->cluster, m->name, &m->block));
    }
}

void world_end(world_t *w)
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
