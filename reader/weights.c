/* SPDX-License-Identifier: Apache-2.0 */
#include "reader/weights.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/safetensors.h"

enum { HEADER_MAX = 100 << 20 };

/* One mapped file. */
typedef struct part {
    char *path;
    void *bytes;
    size_t size;
    lode_safetensors_t tensors;
    bool *used; /* (tensors.count) */
} part_t;

struct lode_weights {
    char *folder;
    json_t *map; /* tensor to file name; NULL: there is one file */
    part_t *parts;
    size_t part_count;
    uint64_t digest;
};

/* -------------------------------------------------------------------- files */

static lode_status_t map_file(part_t *part)
{
    int file = open(part->path, O_RDONLY | O_CLOEXEC);
    struct stat about;
    if (file < 0)
        return lode_fail(LODE_ERR_IO, "%s cannot be read: %s", part->path, strerror(errno));
    lode_status_t status = LODE_OK;
    if (fstat(file, &about) != 0 || !S_ISREG(about.st_mode))
        status = lode_fail(LODE_ERR_IO, "%s is no file", part->path);
    else if (about.st_size == 0)
        status = lode_fail(LODE_ERR_FORMAT, "%s is empty", part->path);
    else {
        part->size = (size_t)about.st_size;
        part->bytes = mmap(NULL, part->size, PROT_READ, MAP_PRIVATE, file, 0);
        if (part->bytes == MAP_FAILED) {
            part->bytes = NULL;
            status = lode_fail(LODE_ERR_IO, "%s cannot be mapped: %s", part->path, strerror(errno));
        }
    }
    close(file);
    return status;
}

static lode_status_t open_part(const char *folder, const char *name, part_t *part)
{
    if (asprintf(&part->path, "%s/%s", folder, name) < 0) {
        part->path = NULL;
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a path");
    }
    LODE_TRY(map_file(part));
    lode_status_t status = lode_safetensors_parse(part->bytes, part->size, HEADER_MAX, &part->tensors);
    if (status != LODE_OK)
        return lode_fail_within(status, "%s: ", part->path);
    part->used = calloc(part->tensors.count + 1, sizeof *part->used);
    return part->used ? LODE_OK : lode_fail(LODE_ERR_NO_MEMORY, "no memory for weights");
}

static lode_status_t add_part(lode_weights_h weights, const char *name)
{
    part_t *grown = realloc(weights->parts, (weights->part_count + 1) * sizeof *grown);
    if (!grown)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for weights");
    weights->parts = grown;
    grown[weights->part_count] = (part_t){0};
    return open_part(weights->folder, name, &grown[weights->part_count++]);
}

static const char *base_name(const char *path)
{
    return strrchr(path, '/') + 1;
}

static part_t *part_of(lode_weights_h weights, const char *name)
{
    for (size_t i = 0; i < weights->part_count; i++)
        if (strcmp(base_name(weights->parts[i].path), name) == 0)
            return &weights->parts[i];
    return NULL;
}

/* The files of an index lie in its folder: a name that leads elsewhere is refused. */
static lode_status_t open_indexed(lode_weights_h weights, const char *path, const json_t *index)
{
    const char *tensor;
    json_t *value;
    weights->map = json_object_get(index, "weight_map");
    if (!json_is_object(weights->map)) {
        weights->map = NULL;
        return lode_fail(LODE_ERR_FORMAT, "%s has no object \"weight_map\"", path);
    }
    json_incref(weights->map);
    json_object_foreach(weights->map, tensor, value)
    {
        const char *name = json_string_value(value);
        if (!name || !*name || strchr(name, '/'))
            return lode_fail(LODE_ERR_FORMAT, "%s: the file of tensor \"%s\" is not a name in this folder", path,
                             tensor);
        if (!part_of(weights, name))
            LODE_TRY(add_part(weights, name));
    }
    return LODE_OK;
}

static lode_status_t open_files(lode_weights_h weights)
{
    char path[PATH_MAX];
    json_error_t error;
    snprintf(path, sizeof path, "%s/model.safetensors", weights->folder);
    if (access(path, F_OK) == 0)
        return add_part(weights, "model.safetensors");
    snprintf(path, sizeof path, "%s/model.safetensors.index.json", weights->folder);
    if (access(path, F_OK) != 0)
        return lode_fail(LODE_ERR_IO, "%s has neither model.safetensors nor model.safetensors.index.json",
                         weights->folder);
    json_t *index = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!index)
        return lode_fail(LODE_ERR_FORMAT, "%s is no JSON (line %d: %s)", path, error.line, error.text);
    lode_status_t status = open_indexed(weights, path, index);
    json_decref(index);
    return status;
}

lode_status_t lode_weights_open(const char *folder, lode_weights_h *weights)
{
    lode_weights_h made = calloc(1, sizeof *made);
    if (made)
        made->folder = strdup(folder);
    lode_status_t status =
        made && made->folder ? open_files(made) : lode_fail(LODE_ERR_NO_MEMORY, "no memory for weights");
    if (status != LODE_OK) {
        lode_weights_close(&made);
        return status;
    }
    *weights = made;
    return LODE_OK;
}

void lode_weights_close(lode_weights_h *weights)
{
    lode_weights_h w = *weights;
    if (!w)
        return;
    for (size_t i = 0; i < w->part_count; i++) {
        part_t *part = &w->parts[i];
        lode_safetensors_free(&part->tensors);
        if (part->bytes)
            munmap(part->bytes, part->size);
        free(part->used);
        free(part->path);
    }
    free(w->parts);
    json_decref(w->map);
    free(w->folder);
    free(w);
    *weights = NULL;
}

/* ------------------------------------------------------------------ tensors */

static lode_status_t type_of(const part_t *part, const lode_tensor_t *tensor, lode_dtype_t *dtype)
{
    if (strcmp(tensor->dtype, "BF16") == 0)
        *dtype = LODE_BF16;
    else if (strcmp(tensor->dtype, "F16") == 0)
        *dtype = LODE_FP16;
    else if (strcmp(tensor->dtype, "F32") == 0)
        *dtype = LODE_FP32;
    else
        return lode_fail(LODE_ERR_UNSUPPORTED, "%s: tensor \"%s\" is %s; weights can be BF16, F16 or F32", part->path,
                         tensor->name, tensor->dtype);
    return LODE_OK;
}

static lode_status_t check_shape(const part_t *part, const lode_tensor_t *tensor, uint32_t rows, uint32_t columns)
{
    if (tensor->rank == (columns ? 2 : 1) && tensor->shape[0] == rows && (!columns || tensor->shape[1] == columns))
        return LODE_OK;
    char has[192] = "", wants[32];
    size_t at = 0;
    for (uint32_t i = 0; i < tensor->rank; i++)
        at +=
            (size_t)snprintf(has + at, sizeof has - at, "%s%llu", i ? ", " : "", (unsigned long long)tensor->shape[i]);
    snprintf(wants, sizeof wants, columns ? "%u, %u" : "%u", rows, columns);
    return lode_fail(LODE_ERR_FORMAT, "%s: tensor \"%s\" has the shape (%s); config.json wants (%s)", part->path,
                     tensor->name, has, wants);
}

/* Four sums side by side, for speed; the rest byte by byte. */
static uint64_t hash_bytes(uint64_t seed, const uint8_t *bytes, size_t n)
{
    uint64_t lanes[4] = {seed, seed + 1, seed + 2, seed + 3}, word;
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (size_t j = 0; j < 4; j++) {
            memcpy(&word, bytes + i + 8 * j, 8);
            lanes[j] = lode_mix(lanes[j], word);
        }
    for (; i < n; i++)
        lanes[i % 4] = lode_mix(lanes[i % 4], bytes[i]);
    return lode_mix(lode_mix(lanes[0], lanes[1]), lode_mix(lanes[2], lanes[3]));
}

/* The file that should hold a tensor: the only one, or the index's. */
static lode_status_t holder_of(lode_weights_h weights, const char *name, part_t **part)
{
    *part = weights->parts;
    if (!weights->map)
        return LODE_OK;
    const char *file = json_string_value(json_object_get(weights->map, name));
    *part = file ? part_of(weights, file) : NULL;
    return *part ? LODE_OK
                 : lode_fail(LODE_ERR_FORMAT, "%s/model.safetensors.index.json lists no tensor \"%s\"", weights->folder,
                             name);
}

lode_status_t lode_weights_find(lode_weights_h weights, const char *name, uint32_t rows, uint32_t columns,
                                const void **data, lode_dtype_t *dtype)
{
    part_t *part;
    LODE_TRY(holder_of(weights, name, &part));
    const lode_tensor_t *tensor = lode_safetensors_find(&part->tensors, name);
    if (!tensor)
        return lode_fail(LODE_ERR_FORMAT, "%s has no tensor \"%s\"", part->path, name);
    LODE_TRY(check_shape(part, tensor, rows, columns));
    LODE_TRY(type_of(part, tensor, dtype));
    part->used[tensor - part->tensors.tensors] = true;
    weights->digest = hash_bytes(lode_mix(weights->digest, lode_hash_text(name)), tensor->data,
                                 (size_t)(tensor->end - tensor->begin));
    *data = tensor->data;
    return LODE_OK;
}

uint64_t lode_weights_digest(lode_weights_h weights)
{
    return weights->digest;
}

lode_status_t lode_weights_all_used(lode_weights_h weights, bool tied)
{
    for (size_t i = 0; i < weights->part_count; i++) {
        const part_t *part = &weights->parts[i];
        for (size_t j = 0; j < part->tensors.count; j++) {
            const char *name = part->tensors.tensors[j].name;
            bool known = strstr(name, ".rotary_emb.inv_freq") || (tied && strcmp(name, "lm_head.weight") == 0);
            if (!part->used[j] && !known)
                return lode_fail(LODE_ERR_UNSUPPORTED,
                                 "%s holds the tensor \"%s\", which a model of this config.json has not", part->path,
                                 name);
        }
    }
    return LODE_OK;
}
