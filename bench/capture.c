/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/capture.h"
#include "bench/progress.h"
#include "base/safetensors.h"

enum { LAYERS_MAX = 1024, HEADS_MAX = 1024 };

static lode_status_t read_dtype(const lode_tensor_t *tensor, lode_dtype_t *dtype)
{
    static const char *const names[] = {[LODE_BF16] = "BF16", [LODE_FP16] = "F16", [LODE_FP32] = "F32"};
    for (int i = 0; i < 3; i++) {
        if (strcmp(tensor->dtype, names[i]) == 0) {
            *dtype = (lode_dtype_t)i;
            return LODE_OK;
        }
    }
    return lode_fail(LODE_ERR_FORMAT, "tensor \"%s\" is %s; it must be BF16, F16 or F32", tensor->name, tensor->dtype);
}

/* One tensor (rows, heads, dim); what is 0 yet is learnt from it, what is not must agree. */
static lode_status_t read_tensor(const lode_safetensors_t *file, uint32_t layer, char which, uint64_t *rows,
                                 uint32_t *heads, uint32_t *dim, lode_capture_tensor_t *out)
{
    char name[32];
    snprintf(name, sizeof name, "layers.%u.%c", layer, which);
    const lode_tensor_t *tensor = lode_safetensors_find(file, name);
    if (!tensor)
        return lode_fail(LODE_ERR_FORMAT, "tensor \"%s\" is missing", name);
    if (tensor->rank != 3 || !tensor->shape[0] || !tensor->shape[1] || tensor->shape[1] > HEADS_MAX ||
        !tensor->shape[2] || tensor->shape[2] > LODE_MAX_DIM)
        return lode_fail(LODE_ERR_FORMAT, "tensor \"%s\": its shape is not (%s, heads, head_dim)", name,
                         which == 'q' ? "queries" : "tokens");
    if ((*rows && *rows != tensor->shape[0]) || (*heads && *heads != tensor->shape[1]) ||
        (*dim && *dim != tensor->shape[2]))
        return lode_fail(LODE_ERR_FORMAT,
                         "tensor \"%s\" has shape (%" PRIu64 ", %" PRIu64 ", %" PRIu64
                         "), but the tensors before it say (%" PRIu64 ", %u, %u)",
                         name, tensor->shape[0], tensor->shape[1], tensor->shape[2], *rows ? *rows : tensor->shape[0],
                         *heads ? *heads : (uint32_t)tensor->shape[1], *dim ? *dim : (uint32_t)tensor->shape[2]);
    LODE_TRY(read_dtype(tensor, &out->dtype));
    *rows = tensor->shape[0];
    *heads = (uint32_t)tensor->shape[1];
    *dim = (uint32_t)tensor->shape[2];
    out->data = tensor->data;
    return LODE_OK;
}

/* Layers are numbered from 0 without a gap: the count is how many keys there are. */
static lode_status_t count_layers(const lode_safetensors_t *file, uint32_t *layers)
{
    uint32_t count = 0;
    for (size_t i = 0; i < file->count; i++) {
        uint32_t layer;
        int end = 0;
        if (sscanf(file->tensors[i].name, "layers.%9" SCNu32 ".k%n", &layer, &end) == 1 && end &&
            !file->tensors[i].name[end])
            count++;
    }
    if (!count || count > LAYERS_MAX)
        return lode_fail(LODE_ERR_FORMAT, "%u tensors are called \"layers.N.k\"; a capture has 1 to %d layers", count,
                         LAYERS_MAX);
    *layers = count;
    return LODE_OK;
}

static lode_status_t read_metadata(const lode_safetensors_t *file, lode_capture_t *capture)
{
    const char *version = lode_safetensors_metadata(file, "lodemark.capture");
    if (!version)
        return lode_fail(LODE_ERR_FORMAT, "the metadata has no \"lodemark.capture\": this is no capture");
    if (strcmp(version, "1") != 0)
        return lode_fail(LODE_ERR_FORMAT, "this is a capture of version \"%.20s\"; only 1 is known", version);
    const char *theta = lode_safetensors_metadata(file, "rope_theta");
    if (!theta)
        return lode_fail(LODE_ERR_FORMAT, "the metadata has no \"rope_theta\"");
    char *end;
    capture->rope_theta = strtod(theta, &end);
    if (end == theta || *end || !(capture->rope_theta > 1) || !(capture->rope_theta < 1e15))
        return lode_fail(LODE_ERR_FORMAT, "rope_theta \"%.40s\" is not a number above 1", theta);
    return LODE_OK;
}

static lode_status_t read_positions(const lode_safetensors_t *file, const char *name, uint64_t count, const char *of,
                                    int64_t **positions)
{
    const lode_tensor_t *tensor = lode_safetensors_find(file, name);
    if (!tensor)
        return lode_fail(LODE_ERR_FORMAT, "tensor \"%s\" is missing", name);
    if (strcmp(tensor->dtype, "I64") != 0 || tensor->rank != 1 || tensor->shape[0] != count)
        return lode_fail(LODE_ERR_FORMAT, "tensor \"%s\" must be I64 of shape (%" PRIu64 "), the %s", name, count, of);
    *positions = malloc(count * sizeof **positions);
    if (!*positions)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %" PRIu64 " positions", count);
    memcpy(*positions, tensor->data, count * sizeof **positions);
    for (uint64_t i = 0; i < count; i++)
        if ((*positions)[i] < 0 || (*positions)[i] > INT32_MAX)
            return lode_fail(LODE_ERR_FORMAT, "%s[%" PRIu64 "] is %" PRIi64 "; it must be 0 to %d", name, i,
                             (*positions)[i], INT32_MAX);
    return LODE_OK;
}

static lode_status_t check_geometry(const lode_capture_t *capture)
{
    if (capture->query_heads % capture->kv_heads)
        return lode_fail(LODE_ERR_FORMAT, "%u query heads are no multiple of %u KV heads", capture->query_heads,
                         capture->kv_heads);
    if (capture->head_dim != 64 && capture->head_dim != 128 && capture->head_dim != 256)
        return lode_fail(LODE_ERR_FORMAT, "head_dim %u is not supported; it must be 64, 128 or 256", capture->head_dim);
    return LODE_OK;
}

static lode_status_t read_capture(const lode_safetensors_t *file, lode_capture_t *c)
{
    LODE_TRY(read_metadata(file, c));
    LODE_TRY(count_layers(file, &c->layers));
    c->layer = calloc(c->layers, sizeof *c->layer);
    if (!c->layer)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %u layers", c->layers);
    for (uint32_t i = 0; i < c->layers; i++) {
        LODE_TRY(read_tensor(file, i, 'k', &c->tokens, &c->kv_heads, &c->head_dim, &c->layer[i].k));
        LODE_TRY(read_tensor(file, i, 'v', &c->tokens, &c->kv_heads, &c->head_dim, &c->layer[i].v));
        LODE_TRY(read_tensor(file, i, 'q', &c->queries, &c->query_heads, &c->head_dim, &c->layer[i].q));
    }
    LODE_TRY(check_geometry(c));
    LODE_TRY(read_positions(file, "q_positions", c->queries, "queries", &c->positions));
    return lode_safetensors_find(file, "k_positions")
               ? read_positions(file, "k_positions", c->tokens, "tokens", &c->key_positions)
               : LODE_OK;
}

lode_status_t lode_capture_parse(const void *data, size_t bytes, lode_capture_t *capture)
{
    lode_safetensors_t file;
    LODE_TRY(lode_safetensors_parse(data, bytes, LODE_CAPTURE_HEADER_MAX, &file));
    lode_capture_t made = {0};
    lode_status_t status = read_capture(&file, &made);
    lode_safetensors_free(&file);
    if (status != LODE_OK) {
        lode_capture_close(&made);
        return status;
    }
    *capture = made;
    return LODE_OK;
}

static lode_status_t map_file(const char *path, void **map, size_t *bytes)
{
    lode_status_t status = LODE_OK;
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return lode_fail(LODE_ERR_IO, "capture %s: cannot be opened: %s", path, strerror(errno));
    if (fstat(fd, &info) || !S_ISREG(info.st_mode)) {
        status = lode_fail(LODE_ERR_IO, "capture %s: is not a plain file", path);
    } else if (info.st_size < 8) {
        status = lode_fail(LODE_ERR_FORMAT, "capture %s: %lld bytes are too few for a safetensors file", path,
                           (long long)info.st_size);
    } else {
        void *base = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (base == MAP_FAILED)
            status = lode_fail(LODE_ERR_IO, "capture %s: cannot be mapped: %s", path, strerror(errno));
        *map = base;
        *bytes = (size_t)info.st_size;
    }
    close(fd);
    return status;
}

lode_status_t lode_capture_open(const char *path, lode_capture_t *capture)
{
    void *map = NULL;
    size_t bytes = 0;
    LODE_TRY(map_file(path, &map, &bytes));
    lode_status_t status = lode_capture_parse(map, bytes, capture);
    if (status != LODE_OK) {
        munmap(map, bytes);
        return lode_fail_within(status, "capture %s: ", path);
    }
    capture->map = map;
    capture->map_bytes = bytes;
    return LODE_OK;
}

void lode_capture_close(lode_capture_t *capture)
{
    free(capture->layer);
    free(capture->positions);
    free(capture->key_positions);
    if (capture->map)
        munmap(capture->map, capture->map_bytes);
    memset(capture, 0, sizeof *capture);
}

/* ----------------------------------------------------------------- elements */

static float from_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 1023u;
    if (exponent == 0) {
        float value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void lode_capture_read(const lode_capture_tensor_t *tensor, uint64_t begin, uint64_t n, float *out)
{
    if (tensor->dtype == LODE_FP32) {
        memcpy(out, tensor->data + begin * 4, n * 4);
        return;
    }
    for (uint64_t i = 0; i < n; i++) {
        uint16_t half;
        memcpy(&half, tensor->data + (begin + i) * 2, 2);
        uint32_t bits = (uint32_t)half << 16;
        if (tensor->dtype == LODE_BF16)
            memcpy(&out[i], &bits, 4);
        else
            out[i] = from_half(half);
    }
}

static lode_status_t check_tensor(const lode_capture_t *c, uint32_t layer, char which,
                                  const lode_capture_tensor_t *tensor, uint64_t rows, uint32_t heads,
                                  lode_progress_t *progress, uint64_t *done)
{
    enum { PIECE = 4096 };
    float piece[PIECE];
    uint64_t elements = rows * heads * c->head_dim;
    for (uint64_t begin = 0; begin < elements; begin += PIECE) {
        uint64_t n = elements - begin < PIECE ? elements - begin : PIECE;
        lode_capture_read(tensor, begin, n, piece);
        *done += n;
        lode_progress_at(progress, *done);
        for (uint64_t i = 0; i < n; i++) {
            if (isfinite(piece[i]))
                continue;
            uint64_t row = (begin + i) / c->head_dim;
            return lode_fail(LODE_ERR_NONFINITE, "tensor layers.%u.%c: %s at layer %u, head %u, %s %" PRIu64, layer,
                             which, isnan(piece[i]) ? "NaN" : "infinity", layer, (uint32_t)(row % heads),
                             which == 'q' ? "query" : "token", row / heads);
        }
    }
    return LODE_OK;
}

static lode_status_t check_layer(const lode_capture_t *c, uint32_t i, lode_progress_t *progress, uint64_t *done)
{
    LODE_TRY(check_tensor(c, i, 'k', &c->layer[i].k, c->tokens, c->kv_heads, progress, done));
    LODE_TRY(check_tensor(c, i, 'v', &c->layer[i].v, c->tokens, c->kv_heads, progress, done));
    return check_tensor(c, i, 'q', &c->layer[i].q, c->queries, c->query_heads, progress, done);
}

lode_status_t lode_capture_check_finite(const lode_capture_t *c)
{
    lode_progress_t progress;
    lode_status_t status = LODE_OK;
    uint64_t done = 0, heads = 2 * c->tokens * c->kv_heads + c->queries * c->query_heads;
    lode_progress_begin(&progress, "check of the capture", c->layers * heads * c->head_dim);
    for (uint32_t i = 0; i < c->layers && status == LODE_OK; i++)
        status = check_layer(c, i, &progress, &done);
    lode_progress_end(&progress);
    return status;
}
