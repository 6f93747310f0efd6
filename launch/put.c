/* SPDX-License-Identifier: Apache-2.0 */
/* `lodemark put`: a capture becomes a sealed block, wholly or not at all. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench/job.h"
#include "bench/options.h"
#include "bench/progress.h"
#include "bench/source.h"
#include "launch/client.h"

/* About this much is appended at once: a signal is heeded between two pieces, and a message is worth its trip. */
#define PIECE_BYTES (UINT64_C(2) << 20)

typedef struct put {
    lode_client_t *client;
    lode_source_t source;
    char name[2 * LODE_NAME_MAX]; /* longer than allowed, so that the service refuses what is too long */
    lode_block_params_t params;
    lode_block_h block;
    lode_dtype_t dtype; /* that the tensors travel in */
    void *k, *v;        /* one piece */
    uint64_t piece;     /* tokens */
    uint64_t done;      /* tokens times layers */
    double seconds;
} put_t;

/* "corpora/doc.safetensors" to "doc". */
static void name_of(const char *path, char *name, size_t room)
{
    const char *file = strrchr(path, '/');
    snprintf(name, room, "%s", file ? file + 1 : path);
    char *ending = strrchr(name, '.');
    if (ending && ending != name)
        *ending = 0;
}

/* Names are shown to others: what a terminal would obey is refused before anything is asked of the service. */
static lode_status_t check_name(const char *name)
{
    char plain[2 * LODE_NAME_MAX];
    bool controls = strcmp(lode_text_plain(name, plain, sizeof plain), name) != 0;
    if (*name && strlen(name) <= LODE_NAME_MAX && !controls)
        return LODE_OK;
    return lode_fail(LODE_ERR_INVALID, "--name \"%s\": a name is 1 to %d bytes%s", plain, LODE_NAME_MAX,
                     controls ? " of UTF-8 without control characters" : "");
}

static lode_status_t read_wish(put_t *put)
{
    const lode_options_t *o = &put->client->options;
    const char *name = lode_options_get(o, "name"), *json = lode_options_get(o, "json");
    bool dense = false;
    if (name)
        snprintf(put->name, sizeof put->name, "%s", name);
    else
        name_of(put->client->words[0], put->name, sizeof put->name);
    LODE_TRY(check_name(put->name));
    put->params = (lode_block_params_t){.name = put->name, .replicas = (uint32_t)lode_options_count(o, "replicas")};
    LODE_TRY(lode_format_parse(lode_options_get(o, "format"), &put->params.format));
    LODE_TRY(lode_bench_policy(lode_options_get(o, "policy"), &dense, &put->params.landmark));
    if (dense)
        return lode_fail(LODE_ERR_INVALID, "--policy dense: every block has landmarks; dense is asked for in attend");
    if (!lode_options_flag(o, "seal"))
        return lode_fail(LODE_ERR_INVALID, "--seal no: a block that its writer leaves open is dropped, so put seals");
    return json && strcmp(json, "-") != 0 ? lode_job_check_output(json) : LODE_OK;
}

/* ------------------------------------------------------------------- pieces */

static bool one_type(const lode_capture_t *capture, lode_dtype_t *dtype)
{
    *dtype = capture->layer[0].k.dtype;
    for (uint32_t i = 0; i < capture->layers; i++)
        if (capture->layer[i].k.dtype != *dtype || capture->layer[i].v.dtype != *dtype)
            return false;
    return true;
}

static size_t element_bytes(lode_dtype_t dtype)
{
    return dtype == LODE_FP32 ? 4 : 2;
}

static lode_status_t take_room(put_t *put)
{
    const lode_geometry_t *g = &put->source.geometry;
    uint64_t width = (uint64_t)g->kv_heads * g->head_dim;
    if (!one_type(&put->source.capture, &put->dtype))
        put->dtype = LODE_FP32; /* a mixture travels as the type that holds them all */
    uint64_t row = width * element_bytes(put->dtype), pages = PIECE_BYTES / (2 * row * LODE_PAGE_TOKENS);
    put->piece = (pages ? pages : 1) * LODE_PAGE_TOKENS;
    put->k = malloc(put->piece * row);
    put->v = malloc(put->piece * row);
    return put->k && put->v ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory to read a capture with");
}

/* The capture's tensors need not be aligned, so pieces are copied out of it. */
static void copy_rows(const put_t *put, const lode_capture_tensor_t *tensor, uint64_t first, uint64_t n, void *out)
{
    uint64_t width = (uint64_t)put->source.geometry.kv_heads * put->source.geometry.head_dim;
    size_t bytes = element_bytes(put->dtype);
    if (tensor->dtype == put->dtype)
        memcpy(out, tensor->data + first * width * bytes, n * width * bytes);
    else
        lode_capture_read(tensor, first * width, n * width, out);
}

static lode_status_t append_layer(put_t *put, uint32_t layer, lode_progress_t *progress)
{
    const lode_capture_layer_t *tensors = &put->source.capture.layer[layer];
    uint64_t tokens = lode_source_total(&put->source);
    for (uint64_t first = 0; first < tokens && !lode_client_caught(); first += put->piece) {
        uint64_t n = tokens - first < put->piece ? tokens - first : put->piece;
        copy_rows(put, &tensors->k, first, n, put->k);
        copy_rows(put, &tensors->v, first, n, put->v);
        LODE_TRY(lode_block_append(put->block, layer, n, put->dtype, put->k, put->v));
        put->done += n;
        lode_progress_at(progress, put->done);
    }
    return LODE_OK;
}

static lode_status_t append_all(put_t *put)
{
    lode_progress_t progress;
    lode_status_t status = LODE_OK;
    uint32_t layers = put->source.geometry.layers;
    lode_progress_begin(&progress, "put", lode_source_total(&put->source) * layers);
    for (uint32_t layer = 0; layer < layers && status == LODE_OK && !lode_client_caught(); layer++)
        status = append_layer(put, layer, &progress);
    lode_progress_end(&progress);
    return status;
}

/* --------------------------------------------------------------------- put */

/* Whatever is there of the block goes; where that fails, the service drops it when this client has left. */
static void take_back(put_t *put)
{
    char sentence[512];
    snprintf(sentence, sizeof sentence, "%s", lode_error_message());
    if (put->block && lode_block_drop(&put->block) != LODE_OK && put->block)
        lode_block_close(&put->block);
    lode_fail(LODE_OK, "%s", sentence);
}

static lode_status_t write_block(put_t *put)
{
    uint64_t begin = lode_now_ns();
    put->params.expected_tokens = lode_source_total(&put->source);
    LODE_TRY(lode_cluster_shape(put->client->cluster, &put->source.geometry));
    LODE_TRY(lode_block_create(put->client->cluster, &put->params, &put->block));
    lode_status_t status = append_all(put);
    if (status == LODE_OK && !lode_client_caught())
        status = lode_block_seal(put->block);
    else if (status == LODE_OK)
        put->client->exit = LODE_EXIT_SIGNAL + lode_client_caught();
    if (status != LODE_OK || put->client->exit) {
        take_back(put);
        return status;
    }
    put->seconds = (double)(lode_now_ns() - begin) * 1e-9;
    return lode_block_close(&put->block);
}

static uint64_t payload(const put_t *put)
{
    const lode_geometry_t *g = &put->source.geometry;
    return put->done * 2 * g->kv_heads * g->head_dim * element_bytes(put->dtype);
}

static json_t *put_json(const put_t *put, const lode_block_entry_t *entry, const char *landmark)
{
    double bytes = (double)payload(put);
    return json_pack("{s:s s:I s:i s:s s:s s:i s:b s:I s:f s:f s:f}", "name", put->name, "tokens",
                     (json_int_t)lode_source_total(&put->source), "layers", (int)put->source.geometry.layers, "format",
                     lode_format_name(put->params.format), "landmarks", landmark, "replicas", (int)entry->replicas,
                     "sealed", (int)entry->sealed, "bytes", (json_int_t)payload(put), "seconds", put->seconds,
                     "bytes_per_second", bytes / put->seconds, "tokens_per_second",
                     (double)put->done / put->source.geometry.layers / put->seconds);
}

static lode_status_t report(put_t *put)
{
    lode_block_entry_t entry;
    char landmark[LODE_TEXT_MAX], bytes[LODE_TEXT_MAX], rate[LODE_TEXT_MAX];
    const char *json = lode_options_get(&put->client->options, "json");
    uint32_t layers = put->source.geometry.layers;
    LODE_TRY(lode_client_find(put->client, put->name, &entry));
    lode_text_landmark(&put->params.landmark, landmark);
    if (json)
        LODE_TRY(lode_client_json(json, put_json(put, &entry, landmark)));
    if (json && strcmp(json, "-") == 0)
        return LODE_OK;
    lode_text_bytes((double)payload(put), bytes);
    lode_text_bytes((double)payload(put) / put->seconds, rate);
    printf("%s: %" PRIu64 " tokens, %u layer%s, %s records, %s, %u replica%s: %s in %.2f s, %s/s\n", put->name,
           lode_source_total(&put->source), layers, layers > 1 ? "s" : "", lode_format_name(put->params.format),
           landmark, entry.replicas, entry.replicas > 1 ? "s" : "", bytes, put->seconds, rate);
    return LODE_OK;
}

/* A capture that lies is refused before anything is asked of the service. */
static lode_status_t prepare(put_t *put)
{
    LODE_TRY(read_wish(put));
    LODE_TRY(lode_source_capture(put->client->words[0], &put->source));
    LODE_TRY(take_room(put));
    return lode_client_open(put->client);
}

static lode_status_t run_put(lode_client_t *client)
{
    put_t put = {.client = client};
    lode_client_catch();
    lode_status_t status = prepare(&put);
    if (status == LODE_OK)
        status = write_block(&put);
    if (status == LODE_OK && client->exit)
        fprintf(stderr, "lodemark: interrupted: block \"%s\" was taken back\n", put.name);
    else if (status == LODE_OK)
        status = report(&put);
    free(put.k);
    free(put.v);
    lode_source_close(&put.source);
    return status;
}

static const lode_option_t put_options[] = {
    {"name", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "of the block [the file's name without its ending]"},
    {"replicas", "0", LODE_OPTION_COUNT, NULL, 0, LODE_REPLICAS_MAX,
     "owners a page, each in another failure domain; 0: as the service was started with"},
    {"format", "fp8", LODE_OPTION_CHOICE, "bf16|fp8|higgs4", 0, 0, "how records are stored"},
    {"policy", "landmark2", LODE_OPTION_TEXT, NULL, 0, 0,
     "landmarks to build: landmark16, 8, 4, 2, 1 with :c2 to :c16, :higgs, :nocentre, :index"},
    {"seal", "yes", LODE_OPTION_FLAG, NULL, 0, 0,
     "close the block to new tokens; always done, as an open block goes with its writer"},
    {"json", NULL, LODE_OPTION_TEXT, NULL, 0, 0, "write the result to this file as one JSON object; - for stdout"},
    {NULL},
};

const lode_client_command_t lode_command_put = {
    .name = "put",
    .words = "CAPTURE",
    .doc = "Put the keys and values of a capture (a safetensors file, docs/captures.md) into the service as a sealed\n"
           "block. The first put gives the service its geometry. Interrupted at any moment, nothing of the block\n"
           "stays. A file whose tensors are not what its header says is refused before anything is created.",
    .options = put_options,
    .least = 1,
    .most = 1,
    .run = run_put,
};
