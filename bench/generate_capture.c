/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark generate`: generated keys, values and queries as a capture, for who has no model at hand. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/safetensors.h"
#include "bench/bench.h"
#include "bench/generate.h"
#include "bench/job.h"
#include "bench/progress.h"
#include "bench/source.h"

enum { PIECE_TOKENS = 1024 };

static const lode_option_t generate_options[] = {
    {"tokens", "65536", LODE_OPTION_COUNT, NULL, 64, UINT64_C(1) << 31, "of the one document that it holds"},
    {"layers", "1", LODE_OPTION_COUNT, NULL, 1, 1024, "layers"},
    {"heads", "32", LODE_OPTION_COUNT, NULL, 1, 1024, "query heads"},
    {"kv-heads", "8", LODE_OPTION_COUNT, NULL, 1, 256, "KV heads"},
    {"head-dim", "128", LODE_OPTION_CHOICE, "64|128|256", 0, 0, "elements of a head"},
    {"theta", "500000", LODE_OPTION_COUNT, NULL, 2, 0, "base of the rotary embedding"},
    {"queries", "32", LODE_OPTION_COUNT, NULL, 1, 1 << 20, "queries a layer, each right behind the document"},
    LODE_GENERATOR_OPTION("plain"),
    {"sharp", "50%", LODE_OPTION_SHARE, NULL, 0, 0, "KV heads that look up single facts"},
    {"seed", "1", LODE_OPTION_COUNT, NULL, 0, 0, "of all that is generated"},
    {"help", "no", LODE_OPTION_FLAG, NULL, 0, 0, "print this"},
    {NULL},
};

/** A file being written; it gets its name when it is whole. */
typedef struct writing {
    const char *path;
    char part[4096];
    int fd;
    uint64_t data; /**< offset of the first tensor */
    lode_source_t source;
    uint64_t queries;
    lode_progress_t progress;
} writing_t;

/* ------------------------------------------------------------------- layout */

static uint64_t tensor_bytes(const writing_t *w, char which)
{
    const lode_geometry_t *g = &w->source.geometry;
    uint64_t rows = which == 'q' ? w->queries * g->query_heads : w->source.starts[1] * g->kv_heads;
    return rows * g->head_dim * 2;
}

static uint64_t layer_bytes(const writing_t *w)
{
    return tensor_bytes(w, 'k') + tensor_bytes(w, 'v') + tensor_bytes(w, 'q');
}

static uint64_t tensor_begin(const writing_t *w, uint32_t layer, char which)
{
    uint64_t begin = layer * layer_bytes(w);
    return which == 'k' ? begin : begin + tensor_bytes(w, 'k') + (which == 'q' ? tensor_bytes(w, 'v') : 0);
}

static void add_tensor(json_t *header, const writing_t *w, uint32_t layer, char which)
{
    const lode_geometry_t *g = &w->source.geometry;
    char name[32];
    uint64_t begin = tensor_begin(w, layer, which);
    snprintf(name, sizeof name, "layers.%u.%c", layer, which);
    json_object_set_new(header, name,
                        json_pack("{s:s s:[I,I,I] s:[I,I]}", "dtype", "BF16", "shape",
                                  (json_int_t)(which == 'q' ? w->queries : w->source.starts[1]),
                                  (json_int_t)(which == 'q' ? g->query_heads : g->kv_heads), (json_int_t)g->head_dim,
                                  "data_offsets", (json_int_t)begin, (json_int_t)(begin + tensor_bytes(w, which))));
}

static json_t *make_header(const writing_t *w)
{
    const lode_geometry_t *g = &w->source.geometry;
    char theta[32];
    snprintf(theta, sizeof theta, "%.17g", g->rope.theta);
    json_t *header = json_pack("{s:{s:s s:s s:s}}", "__metadata__", "lodemark.capture", "1", "rope_theta", theta,
                               "source", "lodemark generate");
    for (uint32_t layer = 0; header && layer < g->layers; layer++) {
        add_tensor(header, w, layer, 'k');
        add_tensor(header, w, layer, 'v');
        add_tensor(header, w, layer, 'q');
    }
    uint64_t begin = g->layers * layer_bytes(w);
    json_object_set_new(header, "q_positions",
                        json_pack("{s:s s:[I] s:[I,I]}", "dtype", "I64", "shape", (json_int_t)w->queries,
                                  "data_offsets", (json_int_t)begin, (json_int_t)(begin + w->queries * 8)));
    return header;
}

/* ------------------------------------------------------------------ writing */

static lode_status_t write_at(const writing_t *w, const void *data, size_t bytes, uint64_t offset)
{
    while (bytes > 0) {
        ssize_t n = pwrite(w->fd, data, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return lode_fail(LODE_ERR_IO, "%s: cannot be written: %s", w->part, n < 0 ? strerror(errno) : "no room");
        data = (const uint8_t *)data + n;
        bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return LODE_OK;
}

/* The values are multiples of bf16's steps already. */
static lode_status_t write_floats(const writing_t *w, const float *values, size_t n, uint16_t *room, uint64_t offset)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        room[i] = (uint16_t)(bits >> 16);
    }
    return write_at(w, room, n * sizeof *room, w->data + offset);
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
    w->data = bytes;
    status = write_at(w, prefix, bytes, 0);
    free(prefix);
    return status;
}

static lode_status_t write_tokens(writing_t *w, uint32_t layer, float *room, uint16_t *halves)
{
    const lode_geometry_t *g = &w->source.geometry;
    uint64_t tokens = w->source.starts[1], width = (uint64_t)g->kv_heads * g->head_dim;
    float *k = room, *v = room + PIECE_TOKENS * width;
    for (uint64_t first = 0; first < tokens; first += PIECE_TOKENS) {
        uint64_t n = tokens - first < PIECE_TOKENS ? tokens - first : PIECE_TOKENS;
        lode_source_tokens(&w->source, 0, layer, first, n, k, v);
        LODE_TRY(write_floats(w, k, n * width, halves, tensor_begin(w, layer, 'k') + first * width * 2));
        LODE_TRY(write_floats(w, v, n * width, halves, tensor_begin(w, layer, 'v') + first * width * 2));
        lode_progress_at(&w->progress, layer * tokens + first + n);
    }
    return LODE_OK;
}

static lode_status_t write_queries(const writing_t *w, uint32_t layer, float *room, uint16_t *halves)
{
    const lode_geometry_t *g = &w->source.geometry;
    size_t width = (size_t)g->query_heads * g->head_dim;
    for (uint64_t i = 0; i < w->queries; i++) {
        lode_source_query(&w->source, layer, i, room);
        LODE_TRY(write_floats(w, room, width, halves, tensor_begin(w, layer, 'q') + i * width * 2));
    }
    return LODE_OK;
}

static lode_status_t write_positions(const writing_t *w)
{
    uint64_t begin = w->data + w->source.geometry.layers * layer_bytes(w);
    int64_t position = (int64_t)w->source.starts[1];
    for (uint64_t i = 0; i < w->queries; i++)
        LODE_TRY(write_at(w, &position, sizeof position, begin + i * sizeof position));
    return LODE_OK;
}

static lode_status_t write_all(writing_t *w)
{
    const lode_geometry_t *g = &w->source.geometry;
    size_t floats = (size_t)2 * PIECE_TOKENS * g->kv_heads * g->head_dim + (size_t)g->query_heads * g->head_dim;
    float *room = malloc(floats * sizeof *room);
    uint16_t *halves = malloc(floats * sizeof *halves);
    lode_status_t status = room && halves ? write_header(w) : lode_fail(LODE_ERR_NO_MEMORY, "no memory to generate");
    lode_progress_begin(&w->progress, "generate", g->layers * w->source.starts[1]);
    for (uint32_t layer = 0; layer < g->layers && status == LODE_OK; layer++) {
        status = write_tokens(w, layer, room, halves);
        if (status == LODE_OK)
            status = write_queries(w, layer, room, halves);
    }
    lode_progress_end(&w->progress);
    if (status == LODE_OK)
        status = write_positions(w);
    free(room);
    free(halves);
    return status;
}

/* ------------------------------------------------------------------ command */

static lode_status_t open_source(const lode_options_t *o, writing_t *w)
{
    lode_generator_params_t params = {
        .seed = lode_options_count(o, "seed"),
        .geometry = {.layers = (uint32_t)lode_options_count(o, "layers"),
                     .query_heads = (uint32_t)lode_options_count(o, "heads"),
                     .kv_heads = (uint32_t)lode_options_count(o, "kv-heads"),
                     .head_dim = (uint32_t)strtoul(lode_options_get(o, "head-dim"), NULL, 10),
                     .rope = {.theta = (double)lode_options_count(o, "theta")}}};
    if (params.geometry.query_heads % params.geometry.kv_heads)
        return lode_fail(LODE_ERR_INVALID, "--heads %u is no multiple of --kv-heads %u", params.geometry.query_heads,
                         params.geometry.kv_heads);
    LODE_TRY(lode_generator_parse(lode_options_get(o, "generator"), &params));
    params.sharp_share = lode_options_share(o, "sharp");
    w->queries = lode_options_count(o, "queries");
    return lode_source_generate(&params, lode_options_count(o, "tokens"), 1, &w->source);
}

static lode_status_t generate(const lode_options_t *options, const char *path)
{
    writing_t w = {.path = path, .fd = -1};
    if (snprintf(w.part, sizeof w.part, "%s.part", path) >= (int)sizeof w.part)
        return lode_fail(LODE_ERR_INVALID, "the path is too long");
    LODE_TRY(open_source(options, &w));
    lode_status_t status = LODE_OK;
    w.fd = open(w.part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (w.fd < 0)
        status = lode_fail(LODE_ERR_IO, "%s: cannot be created: %s", w.part, strerror(errno));
    if (status == LODE_OK)
        status = write_all(&w);
    if (w.fd >= 0 && close(w.fd) && status == LODE_OK)
        status = lode_fail(LODE_ERR_IO, "%s: cannot be written: %s", w.part, strerror(errno));
    if (status == LODE_OK && rename(w.part, path))
        status = lode_fail(LODE_ERR_IO, "%s: cannot be named %s: %s", w.part, path, strerror(errno));
    if (status != LODE_OK && w.fd >= 0)
        unlink(w.part);
    if (status == LODE_OK)
        printf("%s: %" PRIu64 " tokens, %u layers, %" PRIu64 " queries a layer, %.1f MiB\n", path, w.source.starts[1],
               w.source.geometry.layers, w.queries,
               (double)(w.source.geometry.layers * layer_bytes(&w)) / (1024 * 1024));
    lode_source_close(&w.source);
    return status;
}

int lode_generate(int argc, char **argv)
{
    lode_options_t options;
    int rest, code = LODE_EXIT_OK;
    if (lode_options_create(generate_options, &options) != LODE_OK)
        return lode_job_refuse(LODE_EXIT_FAILED, "%s", lode_error_message());
    const char *path = argc > 0 && argv[0][0] != '-' ? argv[0] : NULL;
    if (lode_options_parse(&options, argc - !!path, argv + !!path, &rest) != LODE_OK) {
        code = lode_job_refuse(LODE_EXIT_USAGE, "%s", lode_error_message());
    } else if (lode_options_flag(&options, "help")) {
        printf("lodemark generate FILE [OPTIONS]\n\nWrite generated keys, values and queries to FILE as a capture "
               "(docs/captures.md), to try put, attend\nand bench step with. Needs no mpirun.\n\n");
        lode_options_help(generate_options, stdout);
        lode_generator_help(stdout);
    } else if (rest < argc - !!path || !path) {
        code = lode_job_refuse(LODE_EXIT_USAGE, "generate takes one FILE, then options; see lodemark generate --help");
    } else {
        lode_status_t status = generate(&options, path);
        if (status != LODE_OK)
            code = lode_job_refuse(status == LODE_ERR_INVALID ? LODE_EXIT_USAGE : LODE_EXIT_FAILED, "%s",
                                   lode_error_message());
    }
    lode_options_destroy(&options);
    return code;
}
