/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "base/safetensors.h"

static uint32_t element_bytes(const char *dtype)
{
    static const struct {
        const char *name;
        uint32_t bytes;
    } types[] = {{"BF16", 2}, {"F16", 2}, {"F32", 4}, {"I64", 8}, {"F64", 8},     {"I32", 4},     {"I16", 2}, {"I8", 1},
                 {"U64", 8},  {"U32", 4}, {"U16", 2}, {"U8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"BOOL", 1}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(dtype, types[i].name) == 0)
            return types[i].bytes;
    return 0;
}

/* A whole number that is not negative. */
static bool read_whole(const json_t *value, uint64_t *number)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *number = (uint64_t)json_integer_value(value);
    return true;
}

static lode_status_t read_shape(const json_t *entry, lode_tensor_t *tensor, uint64_t *bytes)
{
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape) || json_array_size(shape) > LODE_TENSOR_RANK_MAX)
        return lode_fail(LODE_ERR_FORMAT, "tensor \"%s\": its shape is not a list of at most %d numbers", tensor->name,
                         LODE_TENSOR_RANK_MAX);
    tensor->rank = (uint32_t)json_array_size(shape);
    *bytes = tensor->element;
    for (uint32_t i = 0; i < tensor->rank; i++) {
        if (!read_whole(json_array_get(shape, i), &tensor->shape[i]))
            return lode_fail(LODE_ERR_FORMAT, "tensor \"%s\": its shape holds what is not a whole number",
                             tensor->name);
        if (__builtin_mul_overflow(*bytes, tensor->shape[i], bytes))
            return lode_fail(LODE_ERR_FORMAT, "tensor \"%s\": its shape is larger than any memory", tensor->name);
    }
    return LODE_OK;
}

static lode_status_t read_tensor(const char *name, const json_t *entry, const uint8_t *data, uint64_t data_bytes,
                                 lode_tensor_t *tensor)
{
    tensor->name = name;
    tensor->dtype = json_string_value(json_object_get(entry, "dtype"));
    tensor->element = tensor->dtype ? element_bytes(tensor->dtype) : 0;
    if (!tensor->element)
        return lode_fail(LODE_ERR_FORMAT, "tensor \"%s\": unknown dtype \"%s\"", name,
                         tensor->dtype ? tensor->dtype : "");
    uint64_t bytes = 0;
    LODE_TRY(read_shape(entry, tensor, &bytes));
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !read_whole(json_array_get(offsets, 0), &tensor->begin) ||
        !read_whole(json_array_get(offsets, 1), &tensor->end) || tensor->begin > tensor->end)
        return lode_fail(LODE_ERR_FORMAT, "tensor \"%s\": data_offsets are not two rising whole numbers", name);
    if (tensor->end > data_bytes)
        return lode_fail(LODE_ERR_FORMAT,
                         "tensor \"%s\" ends at byte %llu of data that has %llu: the file is truncated", name,
                         (unsigned long long)tensor->end, (unsigned long long)data_bytes);
    if (tensor->end - tensor->begin != bytes)
        return lode_fail(LODE_ERR_FORMAT, "tensor \"%s\" has %llu bytes, but its shape and dtype %s need %llu", name,
                         (unsigned long long)(tensor->end - tensor->begin), tensor->dtype, (unsigned long long)bytes);
    tensor->data = data + tensor->begin;
    return LODE_OK;
}

static int by_place(const void *a, const void *b)
{
    const lode_tensor_t *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static lode_status_t check_cover(const lode_safetensors_t *file, uint64_t data_bytes)
{
    uint64_t end = 0;
    for (size_t i = 0; i < file->count; i++) {
        const lode_tensor_t *tensor = &file->tensors[i];
        if (tensor->begin < end)
            return lode_fail(LODE_ERR_FORMAT, "tensors \"%s\" and \"%s\" overlap", file->tensors[i - 1].name,
                             tensor->name);
        if (tensor->begin > end)
            return lode_fail(LODE_ERR_FORMAT, "%llu bytes before tensor \"%s\" belong to no tensor",
                             (unsigned long long)(tensor->begin - end), tensor->name);
        end = tensor->end;
    }
    if (end != data_bytes)
        return lode_fail(LODE_ERR_FORMAT, "%llu bytes behind the last tensor belong to none",
                         (unsigned long long)(data_bytes - end));
    return LODE_OK;
}

static lode_status_t read_tensors(lode_safetensors_t *file, const uint8_t *data, uint64_t data_bytes)
{
    if (!json_is_object(file->header))
        return lode_fail(LODE_ERR_FORMAT, "the header is not a JSON object");
    file->tensors = calloc(json_object_size(file->header) + 1, sizeof *file->tensors);
    if (!file->tensors)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu tensors", json_object_size(file->header));
    const char *name;
    json_t *entry;
    json_object_foreach(file->header, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        LODE_TRY(read_tensor(name, entry, data, data_bytes, &file->tensors[file->count]));
        file->count++;
    }
    qsort(file->tensors, file->count, sizeof *file->tensors, by_place);
    return check_cover(file, data_bytes);
}

lode_status_t lode_safetensors_parse(const void *data, size_t bytes, size_t header_max, lode_safetensors_t *file)
{
    const uint8_t *start = data;
    uint64_t length = 0;
    if (bytes < 8)
        return lode_fail(LODE_ERR_FORMAT, "%zu bytes are too few for a safetensors file", bytes);
    for (int i = 7; i >= 0; i--)
        length = length << 8 | start[i];
    if (length > bytes - 8)
        return lode_fail(LODE_ERR_FORMAT, "the header says that it has %llu bytes, but only %zu follow",
                         (unsigned long long)length, bytes - 8);
    if (length > header_max)
        return lode_fail(LODE_ERR_FORMAT, "a header of %llu bytes is refused; the most is %zu",
                         (unsigned long long)length, header_max);
    json_error_t error;
    lode_safetensors_t made = {0};
    made.header = json_loadb((const char *)start + 8, length, JSON_REJECT_DUPLICATES, &error);
    if (!made.header)
        return lode_fail(LODE_ERR_FORMAT, "the header is not valid JSON at byte %d: %s", error.position, error.text);
    lode_status_t status = read_tensors(&made, start + 8 + length, bytes - 8 - length);
    if (status != LODE_OK) {
        lode_safetensors_free(&made);
        return status;
    }
    *file = made;
    return LODE_OK;
}

void lode_safetensors_free(lode_safetensors_t *file)
{
    free(file->tensors);
    json_decref(file->header);
    memset(file, 0, sizeof *file);
}

lode_status_t lode_safetensors_prefix(const json_t *header, char **prefix, size_t *bytes)
{
    char *text = header ? json_dumps(header, JSON_COMPACT) : NULL;
    uint64_t length = text ? strlen(text) : 0, padded = (length + 7) / 8 * 8;
    char *made = text ? malloc(sizeof padded + padded) : NULL;
    if (!made) {
        free(text);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the header of a safetensors file");
    }
    memcpy(made, &padded, sizeof padded);
    memcpy(made + sizeof padded, text, length);
    memset(made + sizeof padded + length, ' ', padded - length);
    free(text);
    *prefix = made;
    *bytes = sizeof padded + padded;
    return LODE_OK;
}

const lode_tensor_t *lode_safetensors_find(const lode_safetensors_t *file, const char *name)
{
    for (size_t i = 0; i < file->count; i++)
        if (strcmp(file->tensors[i].name, name) == 0)
            return &file->tensors[i];
    return NULL;
}

const char *lode_safetensors_metadata(const lode_safetensors_t *file, const char *key)
{
    return json_string_value(json_object_get(json_object_get(file->header, "__metadata__"), key));
}
