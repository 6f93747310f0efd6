/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file products_inside.h
 * @brief What kinds of products (processor, GPU) begin with, and the calls that tell them apart.
 */
#ifndef LODE_READER_PRODUCTS_INSIDE_H
#define LODE_READER_PRODUCTS_INSIDE_H

#include "reader/products.h"

typedef struct lode_products_calls {
    void (*destroy)(lode_products_h products);
    /** The matrix has its size already; @p parts as lode_matrix_create() takes them. On an error it is destroyed next.
     */
    lode_status_t (*create)(lode_products_h products, lode_matrix_h matrix, const lode_matrix_part_t *parts);
    void (*forget)(lode_matrix_h matrix); /**< what create() made; not the matrix itself */
    lode_status_t (*multiply)(lode_matrix_h matrix, uint32_t rows, const void *x, bool add, float *out);
    size_t matrix_bytes; /**< of the struct that begins with a struct lode_matrix */
} lode_products_calls_t;

struct lode_products {
    const lode_products_calls_t *calls;
    lode_dtype_t type;
    char name[96];
};

struct lode_matrix {
    lode_products_h products;
    uint32_t outs, ins;
};

static inline size_t lode_element_bytes(lode_dtype_t type)
{
    return type == LODE_FP32 ? 4 : 2;
}

/** Copy rows first … first + count − 1 of the parts, put one above the other, in a type. @p out: (count, ins) */
void lode_matrix_rows(const lode_matrix_part_t *parts, uint32_t ins, uint32_t first, uint32_t count, lode_dtype_t type,
                      void *out);

#endif
