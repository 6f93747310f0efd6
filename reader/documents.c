/* SPDX-License-Identifier: Apache-2.0 */
/* Documents as blocks: named by what is in them, so that nothing is read twice. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "reader/reader_inside.h"

/* How long a piece that somebody else is writing just now is waited for. */
#define WRITTEN_NS UINT64_C(30000000000)
/* A pass stays below what a client may send in one step. */
#define PASS_BYTES (UINT64_C(48) << 20)
enum { PASS_PIECES = 64 };

/* -------------------------------------------------------------------- names */

static bool is_free(const uint64_t digest[2])
{
    return digest[0] == 0 && digest[1] == 0;
}

static bool place(uint64_t (*digests)[2], size_t room, const uint64_t digest[2])
{
    for (size_t at = digest[0] & (room - 1);; at = (at + 1) & (room - 1)) {
        if (digests[at][0] == digest[0] && digests[at][1] == digest[1])
            return false;
        if (!is_free(digests[at]))
            continue;
        memcpy(digests[at], digest, 2 * sizeof *digest);
        return true;
    }
}

bool lode_piece_set_add(lode_piece_set_t *set, const uint64_t digest[2])
{
    if (2 * (set->count + 1) > set->room) {
        size_t room = set->room ? 2 * set->room : 256;
        uint64_t(*more)[2] = calloc(room, sizeof *more);
        for (size_t i = 0; more && i < set->room; i++)
            if (!is_free(set->digests[i]))
                place(more, room, set->digests[i]);
        if (more) {
            free(set->digests);
            set->digests = more;
            set->room = room;
        } else if (set->count + 1 >= set->room) { /* one place must stay free for the search to end at */
            return true;
        }
    }
    bool added = place(set->digests, set->room, digest);
    set->count += added;
    return added;
}

void lode_piece_set_free(lode_piece_set_t *set)
{
    free(set->digests);
    memset(set, 0, sizeof *set);
}

void lode_piece_digest(const struct lode_reader *reader, const uint32_t *tokens, size_t count, uint64_t digest[2])
{
    const lode_landmark_spec_t *l = &reader->landmark;
    uint64_t stored[] = {reader->format, l->codec, l->bits, l->chunk, l->centre, l->index};
    for (int i = 0; i < 2; i++) {
        uint64_t h = lode_mix(lode_model_info(reader->model)->digest, (uint64_t)i + 1);
        for (size_t j = 0; j < sizeof stored / sizeof *stored; j++)
            h = lode_mix(h, stored[j]);
        for (size_t j = 0; j < count; j++)
            h = lode_mix(h, tokens[j]);
        digest[i] = lode_mix(h, count) | (i == 0); /* never both 0 */
    }
}

void lode_piece_name(const uint64_t digest[2], char name[LODE_READER_NAME_MAX])
{
    snprintf(name, LODE_READER_NAME_MAX, "reader:%016" PRIx64 "%016" PRIx64, digest[0], digest[1]);
}

/* ------------------------------------------------------------------- pieces */

/* A document's tokens and where its pieces end. */
typedef struct cut {
    lode_tokens_t tokens;
    size_t *ends, count;
} cut_t;

static bool is_blank(const lode_document_t *document)
{
    size_t i = 0;
    while (i < document->bytes && strchr(" \t\r\n\f\v", document->text[i]) && document->text[i])
        i++;
    return i == document->bytes;
}

static void cut_free(cut_t *cut)
{
    lode_tokens_free(&cut->tokens);
    free(cut->ends);
    *cut = (cut_t){0};
}

static lode_status_t cut_document(lode_reader_h reader, const lode_document_t *document, cut_t *cut)
{
    *cut = (cut_t){0};
    if (is_blank(document))
        return lode_fail(LODE_ERR_INVALID, "document \"%s\" is empty", document->name);
    lode_status_t status = lode_manner_document(&reader->manner, reader->tokenizer, document->text, document->bytes,
                                                &cut->tokens, &cut->ends, &cut->count);
    if (status == LODE_OK)
        return LODE_OK;
    lode_tokens_free(&cut->tokens);
    return lode_fail_within(status, "document \"%s\": ", document->name);
}

static size_t piece_begin(const cut_t *cut, size_t i)
{
    return i ? cut->ends[i - 1] : 0;
}

/* --------------------------------------------------------------------- pass */

/* A piece on its way into its block. */
typedef struct pending {
    lode_block_h block;
    lode_view_h view; /* over that block alone */
    uint32_t *tokens; /* (count) */
    uint32_t count, done;
} pending_t;

typedef struct ingest {
    lode_reader_h reader;
    lode_piece_set_t seen;
    pending_t pending[PASS_PIECES];
    uint32_t pending_count;
    uint64_t pending_tokens;
    uint32_t most_tokens; /* of one pass */
} ingest_t;

static uint32_t tokens_of_a_pass(lode_reader_h reader)
{
    const lode_geometry_t *g = &lode_model_info(reader->model)->geometry;
    uint64_t row = (uint64_t)(g->query_heads + 2 * g->kv_heads) * g->head_dim * sizeof(float);
    uint64_t tokens = PASS_BYTES / row;
    return tokens > LODE_READER_PASS_TOKENS ? LODE_READER_PASS_TOKENS : tokens > 0 ? (uint32_t)tokens : 1;
}

/* The next tokens of as many pending pieces as one pass takes. @return passages, 0 when all is done */
static uint32_t fill_pass(const ingest_t *ingest, lode_passage_t *passages, uint32_t *of)
{
    uint32_t count = 0, room = ingest->most_tokens;
    for (uint32_t i = 0; i < ingest->pending_count && room; i++) {
        const pending_t *p = &ingest->pending[i];
        uint32_t n = p->count - p->done < room ? p->count - p->done : room;
        if (!n)
            continue;
        passages[count] = (lode_passage_t){
            .view = p->view, .tokens = p->tokens + p->done, .count = n, .position = p->done, .block_position = p->done};
        of[count++] = i;
        room -= n;
    }
    return count;
}

static lode_status_t run_passes(ingest_t *ingest)
{
    lode_passage_t passages[PASS_PIECES];
    uint32_t of[PASS_PIECES], count;
    lode_attention_t attention = lode_reader_plain_attention;
    attention.self = ingest->reader;
    while ((count = fill_pass(ingest, passages, of)) > 0) {
        LODE_TRY(lode_model_run(ingest->reader->model, &attention, passages, count));
        for (uint32_t i = 0; i < count; i++)
            ingest->pending[of[i]].done += passages[i].count;
    }
    return LODE_OK;
}

/* A block that is not sealed here is dropped: nobody must find half a document. */
static void give_up_pending(ingest_t *ingest)
{
    for (uint32_t i = 0; i < ingest->pending_count; i++) {
        pending_t *p = &ingest->pending[i];
        if (p->view)
            lode_view_destroy(&p->view);
        if (p->block && lode_block_drop(&p->block) != LODE_OK && p->block)
            lode_block_close(&p->block);
        free(p->tokens);
    }
    ingest->pending_count = 0;
    ingest->pending_tokens = 0;
}

static lode_status_t seal_pending(ingest_t *ingest)
{
    for (uint32_t i = 0; i < ingest->pending_count; i++) {
        pending_t *p = &ingest->pending[i];
        LODE_TRY(lode_view_destroy(&p->view));
        LODE_TRY(lode_block_seal(p->block));
        LODE_TRY(lode_block_close(&p->block));
    }
    return LODE_OK;
}

static lode_status_t finish_pending(ingest_t *ingest)
{
    lode_kept_failure_t kept;
    lode_status_t status = run_passes(ingest);
    if (status == LODE_OK)
        status = seal_pending(ingest);
    lode_keep_failure(status, &kept);
    give_up_pending(ingest); /* after success nothing but memory is left of them */
    return lode_give_failure(&kept);
}

static lode_status_t view_alone(ingest_t *ingest, pending_t *p)
{
    lode_view_params_t params = {
        .blocks = &p->block, .count = 1, .write_block = 0, .policy = {.select = LODE_SELECT_DENSE, .budget_share = 1}};
    return lode_view_create(ingest->reader->cluster, &params, &p->view);
}

/* @p taken: false if somebody else writes a block of this name. */
static lode_status_t begin_piece(ingest_t *ingest, const char *name, const uint32_t *tokens, uint32_t count,
                                 bool *taken)
{
    const struct lode_reader *reader = ingest->reader;
    lode_block_params_t params = {.name = name,
                                  .format = reader->format,
                                  .replicas = reader->replicas,
                                  .landmark = reader->landmark,
                                  .expected_tokens = count};
    pending_t *p = &ingest->pending[ingest->pending_count];
    *p = (pending_t){.count = count};
    lode_status_t status = lode_block_create(reader->cluster, &params, &p->block);
    *taken = status == LODE_OK;
    if (status == LODE_ERR_NAME_IN_USE)
        return LODE_OK;
    LODE_TRY(status);
    ingest->pending_count++;
    ingest->pending_tokens += count;
    p->tokens = malloc(count * sizeof *p->tokens);
    if (!p->tokens)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u tokens", count);
    memcpy(p->tokens, tokens, count * sizeof *tokens);
    return view_alone(ingest, p);
}

/* ------------------------------------------------------------------- ingest */

/* Whether all layers of a piece are in the cluster. The last layer is written, and sealed, last. */
static lode_status_t is_whole(lode_reader_h reader, lode_block_h block, uint64_t tokens, bool *whole)
{
    uint64_t there;
    LODE_TRY(lode_block_tokens(block, lode_model_info(reader->model)->geometry.layers - 1, &there));
    *whole = there >= tokens;
    return LODE_OK;
}

static lode_status_t is_present(lode_reader_h reader, const char *name, uint64_t tokens, bool *present)
{
    lode_block_h block;
    *present = false;
    lode_status_t status = lode_block_open(reader->cluster, name, &block);
    if (status == LODE_ERR_NOT_FOUND || status == LODE_ERR_DROPPED)
        return LODE_OK;
    LODE_TRY(status);
    status = is_whole(reader, block, tokens, present);
    lode_block_close(&block);
    return status == LODE_ERR_DROPPED ? LODE_OK : status;
}

static lode_status_t take_piece(ingest_t *ingest, const uint32_t *tokens, uint32_t count, lode_ingest_t *result)
{
    uint64_t digest[2];
    char name[LODE_READER_NAME_MAX];
    bool present = false, taken = false;
    lode_piece_digest(ingest->reader, tokens, count, digest);
    lode_piece_name(digest, name);
    if (lode_piece_set_add(&ingest->seen, digest)) {
        LODE_TRY(is_present(ingest->reader, name, count, &present));
        if (!present)
            LODE_TRY(begin_piece(ingest, name, tokens, count, &taken));
    }
    result->tokens += count;
    result->pieces++;
    result->present += !taken;
    if (ingest->pending_count == PASS_PIECES || ingest->pending_tokens >= ingest->most_tokens)
        return finish_pending(ingest);
    return LODE_OK;
}

static lode_status_t take_document(ingest_t *ingest, const lode_document_t *document, lode_ingest_t *result)
{
    cut_t cut;
    LODE_TRY(cut_document(ingest->reader, document, &cut));
    lode_status_t status = LODE_OK;
    for (size_t i = 0; i < cut.count && status == LODE_OK; i++)
        status = take_piece(ingest, cut.tokens.ids + piece_begin(&cut, i),
                            (uint32_t)(cut.ends[i] - piece_begin(&cut, i)), result);
    cut_free(&cut);
    return status == LODE_OK || status == LODE_ERR_FORMAT
               ? status
               : lode_fail_within(status, "reading in \"%s\": ", document->name);
}

static lode_status_t take_documents(ingest_t *ingest, const lode_document_t *documents, uint32_t count,
                                    void (*progress)(void *, uint64_t), void *self, lode_ingest_t *ingests)
{
    uint64_t tokens = 0;
    for (uint32_t i = 0; i < count; i++) {
        lode_ingest_t result = {0};
        LODE_TRY(take_document(ingest, &documents[i], &result));
        tokens += result.tokens;
        if (ingests)
            ingests[i] = result;
        if (progress)
            progress(self, tokens - ingest->pending_tokens);
    }
    LODE_TRY(finish_pending(ingest));
    if (progress)
        progress(self, tokens);
    return LODE_OK;
}

lode_status_t lode_reader_ingest(lode_reader_h reader, const lode_document_t *documents, uint32_t count,
                                 void (*progress)(void *self, uint64_t tokens), void *self, lode_ingest_t *ingests)
{
    lode_kept_failure_t kept;
    if (!reader->cluster)
        return lode_fail(LODE_ERR_INVALID, "lode_reader_ingest: the reader is attached to no cluster");
    ingest_t *ingest = calloc(1, sizeof *ingest);
    if (!ingest)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory to read documents in");
    ingest->reader = reader;
    ingest->most_tokens = tokens_of_a_pass(reader);
    lode_keep_failure(take_documents(ingest, documents, count, progress, self, ingests), &kept);
    give_up_pending(ingest);
    lode_piece_set_free(&ingest->seen);
    free(ingest);
    return lode_give_failure(&kept);
}

/* --------------------------------------------------------------------- list */

typedef struct list {
    lode_reader_h reader;
    lode_piece_set_t seen;
    lode_reader_piece_t *pieces;
    uint32_t count, room;
    uint64_t tokens;
} list_t;

/* Somebody else may be at it just now: a block is waited for while it grows, and not for ever. */
static lode_status_t wait_until_whole(lode_reader_h reader, const char *name, lode_block_h block, uint64_t tokens)
{
    uint64_t end = lode_now_ns() + WRITTEN_NS;
    bool whole = false;
    for (;;) {
        LODE_TRY(is_whole(reader, block, tokens, &whole));
        if (whole)
            return LODE_OK;
        if (lode_now_ns() > end)
            return lode_fail(LODE_ERR_TIMEOUT, "block \"%s\" is still being written by somebody else", name);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
}

static lode_status_t list_piece(list_t *list, uint32_t document, const uint32_t *tokens, uint32_t count)
{
    uint64_t digest[2];
    char name[LODE_READER_NAME_MAX];
    lode_piece_digest(list->reader, tokens, count, digest);
    if (!lode_piece_set_add(&list->seen, digest))
        return LODE_OK;
    if (list->count == list->room) {
        uint32_t room = list->room ? 2 * list->room : 64;
        lode_reader_piece_t *more = realloc(list->pieces, room * sizeof *more);
        if (!more)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a list of %u blocks", room);
        list->pieces = more;
        list->room = room;
    }
    lode_reader_piece_t *piece = &list->pieces[list->count];
    *piece = (lode_reader_piece_t){.tokens = count, .document = document, .place = list->count};
    lode_piece_name(digest, name);
    lode_status_t status = lode_block_open(list->reader->cluster, name, &piece->block);
    if (status == LODE_ERR_NOT_FOUND)
        return lode_fail(status, "it is not in the cluster: it must be read in before questions are asked of it");
    LODE_TRY(status);
    list->count++;
    list->tokens += count;
    return wait_until_whole(list->reader, name, piece->block, count);
}

static lode_status_t list_documents(list_t *list, const lode_document_t *documents, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        cut_t cut;
        lode_status_t status = LODE_OK;
        LODE_TRY(cut_document(list->reader, &documents[i], &cut));
        for (size_t j = 0; j < cut.count && status == LODE_OK; j++)
            status = list_piece(list, i, cut.tokens.ids + piece_begin(&cut, j),
                                (uint32_t)(cut.ends[j] - piece_begin(&cut, j)));
        cut_free(&cut);
        if (status != LODE_OK)
            return lode_fail_within(status, "document \"%s\": ", documents[i].name);
    }
    return LODE_OK;
}

static int shortest_first(const void *a, const void *b)
{
    const lode_reader_piece_t *x = a, *y = b;
    if (x->tokens != y->tokens)
        return x->tokens < y->tokens ? -1 : 1;
    return x->place < y->place ? -1 : 1;
}

/*
 * Where all pieces end at the same position their order means nothing, and those of one length stand at one offset:
 * side by side they share the angles that queries are turned by.
 */
static void order_pieces(list_t *list)
{
    if (list->reader->manner.shared_positions && list->count)
        qsort(list->pieces, list->count, sizeof *list->pieces, shortest_first);
}

lode_status_t lode_reader_list(lode_reader_h reader, const lode_document_t *documents, uint32_t count)
{
    list_t list = {.reader = reader};
    lode_kept_failure_t kept;
    if (!reader->cluster)
        return lode_fail(LODE_ERR_INVALID, "lode_reader_list: the reader is attached to no cluster");
    lode_keep_failure(list_documents(&list, documents, count), &kept);
    lode_piece_set_free(&list.seen);
    if (kept.status == LODE_OK)
        lode_reader_unlist(reader);
    for (uint32_t i = 0; kept.status != LODE_OK && i < list.count; i++)
        lode_block_close(&list.pieces[i].block);
    if (kept.status != LODE_OK) {
        free(list.pieces);
        return lode_give_failure(&kept);
    }
    order_pieces(&list);
    reader->pieces = list.pieces;
    reader->piece_count = list.count;
    reader->document_count = count;
    reader->listed_tokens = list.tokens;
    return LODE_OK;
}
