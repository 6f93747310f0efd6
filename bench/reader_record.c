/* SPDX-License-Identifier: Apache-2.0 */
/* A plain run to a capture file (docs/captures.md). */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/safetensors.h"
#include "bench/progress.h"
#include "bench/reader_bench.h"

enum { PIECE_TOKENS = 256 };

/** A file being written from its beginning to its end; it gets its name when it is whole. */
typedef struct writing {
    const lode_plain_t *p;
    const char *path;
    char part[4096];
    FILE *file;
    lode_dtype_t dtype;
    uint64_t queries, element, written;
    void *room; /* a piece, narrowed */
    float *rows;
    lode_progress_t progress;
} writing_t;

static uint64_t tensor_bytes(const writing_t *w, char which)
{
    const lode_geometry_t *g = &w->p->geometry;
    uint64_t rows = which == 'q' ? w->queries * g->query_heads : w->p->tokens * g->kv_heads;
    return rows * g->head_dim * w->element;
}

static void add_tensor(json_t *header, const char *name, const char *dtype, json_t *shape, uint64_t *begin,
                       uint64_t bytes)
{
    json_object_set_new(header, name,
                        json_pack("{s:s s:o s:[I,I]}", "dtype", dtype, "shape", shape, "data_offsets",
                                  (json_int_t)*begin, (json_int_t)(*begin + bytes)));
    *begin += bytes;
}

/* Keys that stand one after another are rotated to their numbers, as a capture has them without saying so. */
static bool says_positions(const writing_t *w)
{
    for (uint64_t i = 0; i < w->p->tokens; i++)
        if (w->p->positions[i] != (int64_t)i)
            return true;
    return false;
}

static json_t *make_header(const writing_t *w)
{
    const lode_geometry_t *g = &w->p->geometry;
    char name[32], text[32];
    uint64_t begin = 0;
    snprintf(text, sizeof text, "%.17g", g->rope.theta);
    json_t *header =
        json_pack("{s:{s:s s:s s:s s:s}}", "__metadata__", "lodemark.capture", "1", "rope_theta", text, "source",
                  "lodemark capture", "positions", w->p->manner->shared_positions ? "shared" : "cumulative");
    for (uint32_t layer = 0; layer < g->layers; layer++)
        for (const char *which = "kvq"; *which; which++) {
            bool query = *which == 'q';
            snprintf(name, sizeof name, "layers.%u.%c", layer, *which);
            add_tensor(header, name, w->dtype == LODE_BF16 ? "BF16" : "F32",
                       json_pack("[I,I,I]", (json_int_t)(query ? w->queries : w->p->tokens),
                                 (json_int_t)(query ? g->query_heads : g->kv_heads), (json_int_t)g->head_dim),
                       &begin, tensor_bytes(w, *which));
        }
    add_tensor(header, "q_positions", "I64", json_pack("[I]", (json_int_t)w->queries), &begin, w->queries * 8);
    if (says_positions(w))
        add_tensor(header, "k_positions", "I64", json_pack("[I]", (json_int_t)w->p->tokens), &begin, w->p->tokens * 8);
    return header;
}

/* ------------------------------------------------------------------ writing */

static lode_status_t write_bytes(writing_t *w, const void *data, size_t bytes)
{
    if (fwrite(data, 1, bytes, w->file) != bytes)
        return lode_fail(LODE_ERR_IO, "%s: cannot be written: %s", w->part, strerror(errno));
    w->written += bytes;
    lode_progress_at(&w->progress, w->written);
    return LODE_OK;
}

static lode_status_t write_header(writing_t *w)
{
    json_t *header = make_header(w);
    char *prefix;
    size_t bytes;
    lode_status_t status = lode_safetensors_prefix(header, &prefix, &bytes);
    json_decref(header);
    if (status != LODE_OK)
        return lode_fail_within(status, "%s: ", w->path);
    status = write_bytes(w, prefix, bytes);
    free(prefix);
    return status;
}

static lode_status_t write_floats(writing_t *w, const float *values, size_t n)
{
    if (w->dtype == LODE_FP32)
        return write_bytes(w, values, n * sizeof *values);
    w->p->ops->narrow(w->dtype, values, w->room, n);
    return write_bytes(w, w->room, n * w->element);
}

/* Rows of heads to rows of tokens. */
static lode_status_t write_heads(writing_t *w, uint32_t layer, float *const *lanes)
{
    const lode_plain_t *p = w->p;
    uint32_t heads = p->geometry.kv_heads, dim = p->geometry.head_dim;
    for (uint64_t first = 0; first < p->tokens; first += PIECE_TOKENS) {
        uint64_t n = p->tokens - first < PIECE_TOKENS ? p->tokens - first : PIECE_TOKENS;
        for (uint64_t t = 0; t < n; t++)
            for (uint32_t head = 0; head < heads; head++)
                memcpy(w->rows + (t * heads + head) * dim, lanes[lode_plain_lane(p, layer, head)] + (first + t) * dim,
                       dim * sizeof(float));
        LODE_TRY(write_floats(w, w->rows, n * heads * dim));
    }
    return LODE_OK;
}

static lode_status_t write_queries(writing_t *w, uint32_t layer)
{
    size_t row = (size_t)w->p->geometry.query_heads * w->p->geometry.head_dim;
    for (uint64_t i = 0; i < w->queries; i++)
        LODE_TRY(write_floats(w, w->p->q[layer] + i * row, row));
    return LODE_OK;
}

static lode_status_t write_positions(writing_t *w)
{
    for (uint64_t i = 0; i < w->queries; i++) {
        int64_t number = (int64_t)(w->p->documents_end + i); /* a query sees the tokens up to its own */
        LODE_TRY(write_bytes(w, &number, sizeof number));
    }
    return says_positions(w) ? write_bytes(w, w->p->positions, w->p->tokens * sizeof *w->p->positions) : LODE_OK;
}

static lode_status_t write_all(writing_t *w)
{
    const lode_geometry_t *g = &w->p->geometry;
    size_t heads = g->query_heads > g->kv_heads ? g->query_heads : g->kv_heads;
    w->rows = malloc(PIECE_TOKENS * heads * g->head_dim * sizeof *w->rows);
    w->room = malloc(PIECE_TOKENS * heads * g->head_dim * sizeof *w->rows);
    if (!w->rows || !w->room)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory to write %s", w->path);
    lode_progress_begin(&w->progress, "write the capture",
                        g->layers * (2 * tensor_bytes(w, 'k') + tensor_bytes(w, 'q')));
    lode_status_t status = write_header(w);
    for (uint32_t layer = 0; layer < g->layers && status == LODE_OK; layer++) {
        status = write_heads(w, layer, w->p->k);
        if (status == LODE_OK)
            status = write_heads(w, layer, w->p->v);
        if (status == LODE_OK)
            status = write_queries(w, layer);
    }
    lode_progress_end(&w->progress);
    return status == LODE_OK ? write_positions(w) : status;
}

/* On the disk before it has its name: what is late to fail, fails here. */
static lode_status_t finish(writing_t *w)
{
    bool wrong = fflush(w->file) != 0 || (fsync(fileno(w->file)) != 0 && errno != EINVAL);
    if (wrong)
        return lode_fail(LODE_ERR_IO, "%s: cannot be written: %s", w->part, strerror(errno));
    if (rename(w->part, w->path) != 0)
        return lode_fail(LODE_ERR_IO, "%s: cannot be named %s: %s", w->part, w->path, strerror(errno));
    return LODE_OK;
}

lode_status_t lode_plain_write_capture(const lode_plain_t *p, const char *path, lode_dtype_t dtype, uint64_t *bytes)
{
    writing_t w = {.p = p, .path = path, .dtype = dtype, .queries = p->tokens - p->documents_end};
    w.element = dtype == LODE_BF16 ? 2 : 4;
    if (!p->record || !w.queries)
        return lode_fail(LODE_ERR_INVALID, "nothing was recorded: there are no queries to write");
    if (snprintf(w.part, sizeof w.part, "%s.part", path) >= (int)sizeof w.part)
        return lode_fail(LODE_ERR_INVALID, "the path %.40s… is too long", path);
    w.file = fopen(w.part, "w");
    if (!w.file)
        return lode_fail(LODE_ERR_IO, "%s: cannot be created: %s", w.part, strerror(errno));
    lode_status_t status = write_all(&w);
    if (status == LODE_OK)
        status = finish(&w);
    fclose(w.file);
    if (status != LODE_OK)
        unlink(w.part);
    else
        *bytes = w.written;
    free(w.rows);
    free(w.room);
    return status;
}
