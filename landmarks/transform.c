/* SPDX-License-Identifier: Apache-2.0 */
#include "landmarks/transform.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char magic[8] = {'l', 'o', 'd', 'e', 't', 'r', 'f', '1'};

/** What a file begins with, little-endian; the matrices follow, [layer][head]: that of keys, that of queries. */
typedef struct file_header {
    char magic[8];
    uint32_t layers, heads, dim;
    uint32_t crc; /**< CRC32C of the matrices */
} file_header_t;

static size_t matrices_floats(uint32_t layers, uint32_t heads, uint32_t dim)
{
    return (size_t)layers * heads * 2 * dim * dim;
}

lode_status_t lode_transform_create(uint32_t layers, uint32_t heads, uint32_t dim, lode_transform_t **out)
{
    if (layers == 0 || layers > 1024 || heads == 0 || heads > 256 || (dim != 64 && dim != 128 && dim != 256))
        return lode_fail(LODE_ERR_FORMAT,
                         "a transform of %" PRIu32 " layers, %" PRIu32 " heads of %" PRIu32
                         " is none that is supported",
                         layers, heads, dim);
    lode_transform_t *made = calloc(1, sizeof *made);
    float *matrices = made ? aligned_alloc(64, matrices_floats(layers, heads, dim) * sizeof(float)) : NULL;
    if (!matrices) {
        free(made);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a transform of %" PRIu32 " layers", layers);
    }
    *made = (lode_transform_t){.layers = layers, .heads = heads, .dim = dim, .matrices = matrices};
    *out = made;
    return LODE_OK;
}

void lode_transform_destroy(lode_transform_t **transform)
{
    if (*transform)
        free((*transform)->matrices);
    free(*transform);
    *transform = NULL;
}

/* Two checksums of 32 bits with different beginnings, and the shape. */
static void identify(lode_transform_t *transform, uint32_t (*crc32c)(uint32_t, const void *, size_t))
{
    size_t bytes = matrices_floats(transform->layers, transform->heads, transform->dim) * sizeof(float);
    uint64_t shape = (uint64_t)transform->layers << 32 | transform->heads << 16 | transform->dim;
    transform->crc = crc32c(0, transform->matrices, bytes);
    uint64_t id = lode_mix(lode_mix(shape, transform->crc), crc32c(0x7472u, transform->matrices, bytes));
    transform->id = id ? id : 1;
}

lode_status_t lode_transform_write(lode_transform_t *transform, const lode_ops_t *ops, const char *path)
{
    identify(transform, ops->crc32c);
    file_header_t header = {.layers = transform->layers, .heads = transform->heads, .dim = transform->dim};
    header.crc = transform->crc;
    memcpy(header.magic, magic, sizeof magic);
    size_t floats = matrices_floats(transform->layers, transform->heads, transform->dim);
    FILE *file = fopen(path, "wb");
    if (!file)
        return lode_fail(LODE_ERR_IO, "%s: cannot be created: %s", path, strerror(errno));
    bool good = fwrite(&header, sizeof header, 1, file) == 1 &&
                fwrite(transform->matrices, sizeof(float), floats, file) == floats;
    if (fclose(file) != 0 || !good)
        return lode_fail(LODE_ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
    return LODE_OK;
}

static lode_status_t read_matrices(FILE *file, const char *path, const file_header_t *header, lode_transform_t *made)
{
    size_t floats = matrices_floats(header->layers, header->heads, header->dim);
    if (fread(made->matrices, sizeof(float), floats, file) != floats || fgetc(file) != EOF)
        return lode_fail(LODE_ERR_FORMAT, "transform %s: not as long as its header says", path);
    for (size_t i = 0; i < floats; i++)
        if (!isfinite(made->matrices[i]))
            return lode_fail(LODE_ERR_FORMAT, "transform %s: element %zu is not a finite number", path, i);
    return LODE_OK;
}

lode_status_t lode_transform_read(const char *path, const lode_ops_t *ops, lode_transform_t **out)
{
    file_header_t header;
    lode_transform_t *made = NULL;
    FILE *file = fopen(path, "rb");
    if (!file)
        return lode_fail(LODE_ERR_IO, "transform %s: cannot be opened: %s", path, strerror(errno));
    lode_status_t status = LODE_OK;
    if (fread(&header, sizeof header, 1, file) != 1 || memcmp(header.magic, magic, sizeof magic) != 0)
        status = lode_fail(LODE_ERR_FORMAT, "transform %s: this is no file of lodemark calibrate", path);
    if (status == LODE_OK)
        status = lode_transform_create(header.layers, header.heads, header.dim, &made);
    if (status == LODE_OK)
        status = read_matrices(file, path, &header, made);
    if (status == LODE_OK) {
        identify(made, ops->crc32c);
        if (made->crc != header.crc)
            status = lode_fail(LODE_ERR_FORMAT, "transform %s: its checksum is not that of its matrices", path);
    }
    fclose(file);
    if (status != LODE_OK)
        lode_transform_destroy(&made);
    else
        *out = made;
    return status;
}
