/* SPDX-License-Identifier: Apache-2.0 */
/** What the parts of the program `streams` share: blocks, views and steps as the test knows them. */
#ifndef LODE_TESTS_STREAMS_H
#define LODE_TESTS_STREAMS_H

#include <stdatomic.h>

#include "lodemark.h"
#include "tests/multi/steps.h"

enum { LAYERS = 2, DIM = 64, KV_HEADS = 2, GROUP = 2, QUERY_HEADS = KV_HEADS * GROUP };
enum { RANKS_MAX = 4, JOURNAL_MAX = 4096, LONGEST = 700, STREAMS_MAX = 3, ROWS_MAX = 5, VIEW_BLOCKS = 8 };

extern int failures, rank, ranks;
extern const lode_rope_t rope;

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

/* A view as the test knows it. */
typedef struct look {
    lode_view_h view; /* NULL: the place is free */
    model_t *blocks[VIEW_BLOCKS];
    int64_t offsets[VIEW_BLOCKS];
    uint32_t count;
    int32_t write_block;
    bool dense;
} look_t;

/* A stream's context laid out: one token after another, block by block. */
typedef struct context {
    uint32_t count, paged;
    uint32_t ids[VIEW_BLOCKS * JOURNAL_MAX];
    int64_t positions[VIEW_BLOCKS * JOURNAL_MAX];
    uint32_t page_index[VIEW_BLOCKS * JOURNAL_MAX]; /* among the view's tokens in pages; UINT32_MAX: in a tail */
    int64_t end, write_end;
} context_t;

/* Keys rotated to where they stand, and values. */
typedef struct laid {
    double *k, *v; /* (tokens, KV_HEADS, DIM) */
} laid_t;

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

/* streams_exact.c */
/** Before all else. */
void exact_begin(void);
uint32_t world_draw(world_t *w, uint32_t below);
void world_fresh(world_t *w, uint32_t count, uint32_t *ids);
void model_create(world_t *w, model_t *m, const char *name, bool draft, lode_format_t format);
void model_note(model_t *m, const uint32_t *ids, uint32_t count);
void model_append(model_t *m, const uint32_t *ids, uint32_t count);
void look_create(world_t *w, look_t *look, bool shared_positions, const lode_policy_t *policy);
void look_close(look_t *look);
void context_lay_out(const look_t *look, const uint64_t *lengths, const uint64_t *in_pages, context_t *context);
laid_t context_rotate(const context_t *context, uint32_t layer);
double context_attend(const context_t *context, const laid_t *laid, int64_t position, uint32_t kv_head, const double *q,
                      const uint32_t *chosen, uint64_t chosen_count, double *out);
void ask_query(const ask_t *ask, uint32_t row, uint32_t layer, double q[QUERY_HEADS * DIM]);
model_t *ask_writes_to(const ask_t *ask);
void look_lengths(const look_t *look, uint32_t layer, uint64_t *lengths, uint64_t *in_pages);
lode_stream_t ask_stream(ask_t *ask, uint32_t layer);
void world_step(world_t *w, ask_t *asks, uint32_t count);

/* streams_world.c: all ranks together */
void world_begin(world_t *w, uint64_t seed, const char *const *settings);
void world_end(world_t *w);

/* streams_bad.c */
void bad_input(void);
void full_arena(void);
void lost_owner(void);

#endif
