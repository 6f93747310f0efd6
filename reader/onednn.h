/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file onednn.h
 * @brief What differs between the C interfaces of oneDNN 2 (Debian 12) and 3 (Ubuntu 24.04).
 *
 * A description of memory is a struct in version 2 and a handle in version 3.
 */
#ifndef LODE_READER_ONEDNN_H
#define LODE_READER_ONEDNN_H

#include <oneapi/dnnl/dnnl.h>

#if DNNL_VERSION_MAJOR >= 3
#define ONEDNN_SHAPE(description) (description)
#define ONEDNN_NO_SHAPE NULL
#else
#define ONEDNN_SHAPE(description) (&(description))
#define ONEDNN_NO_SHAPE \
    {                   \
        0               \
    }
#endif

/* (rows, columns) whose rows and columns are so many elements apart. */
static inline dnnl_status_t onednn_describe(dnnl_memory_desc_t *made, const dnnl_dims_t dims, dnnl_data_type_t type,
                                            const dnnl_dims_t strides)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_create_with_strides(made, 2, dims, type, strides);
#else
    return dnnl_memory_desc_init_by_strides(made, 2, dims, type, strides);
#endif
}

/* A layout that oneDNN chooses. */
static inline dnnl_status_t onednn_describe_any(dnnl_memory_desc_t *made, const dnnl_dims_t dims, dnnl_data_type_t type)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_create_with_tag(made, 2, dims, type, dnnl_format_tag_any);
#else
    return dnnl_memory_desc_init_by_tag(made, 2, dims, type, dnnl_format_tag_any);
#endif
}

static inline void onednn_forget(dnnl_memory_desc_t *description)
{
#if DNNL_VERSION_MAJOR >= 3
    if (*description)
        dnnl_memory_desc_destroy(*description);
    *description = NULL;
#else
    (void)description;
#endif
}

/* A copy of what a primitive wants. */
static inline dnnl_status_t onednn_wanted(const_dnnl_primitive_desc_t primitive, dnnl_query_t what,
                                          dnnl_memory_desc_t *made)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_clone(made, dnnl_primitive_desc_query_md(primitive, what, 0));
#else
    const dnnl_memory_desc_t *wanted = dnnl_primitive_desc_query_md(primitive, what, 0);
    if (!wanted)
        return dnnl_invalid_arguments;
    *made = *wanted;
    return dnnl_success;
#endif
}

static inline dnnl_status_t onednn_sum(dnnl_post_ops_t operations)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_post_ops_append_sum(operations, 1, 0, dnnl_data_type_undef);
#else
    return dnnl_post_ops_append_sum(operations, 1);
#endif
}

/* The three descriptions are by value in version 2's struct, so a pointer to each. */
static inline dnnl_status_t onednn_matmul(dnnl_primitive_desc_t *made, dnnl_engine_t engine,
                                          const dnnl_memory_desc_t *source, const dnnl_memory_desc_t *weights,
                                          const dnnl_memory_desc_t *out, const_dnnl_primitive_attr_t attributes)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_matmul_primitive_desc_create(made, engine, *source, *weights, NULL, *out, attributes);
#else
    dnnl_matmul_desc_t operation;
    dnnl_status_t status = dnnl_matmul_desc_init(&operation, source, weights, NULL, out);
    return status == dnnl_success ? dnnl_primitive_desc_create(made, &operation, attributes, engine, NULL) : status;
#endif
}

#endif
