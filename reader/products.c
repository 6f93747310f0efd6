/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "reader/elementwise.h"
#include "reader/products_inside.h"

void lode_products_destroy(lode_products_h *products)
{
    if (*products)
        (*products)->calls->destroy(*products);
    *products = NULL;
}

lode_dtype_t lode_products_type(lode_products_h products)
{
    return products->type;
}

const char *lode_products_name(lode_products_h products)
{
    return products->name;
}

void lode_matrix_rows(const lode_matrix_part_t *parts, uint32_t ins, uint32_t first, uint32_t count, lode_dtype_t type,
                      void *out)
{
    uint8_t *to = out;
    for (uint32_t begin = 0; count; begin += parts++->rows) {
        uint32_t end = begin + parts->rows;
        if (first >= end)
            continue;
        uint32_t here = end - first < count ? end - first : count;
        size_t n = (size_t)here * ins, bytes = lode_element_bytes(parts->dtype);
        lode_convert(parts->dtype, (const uint8_t *)parts->data + (size_t)(first - begin) * ins * bytes, type, to, n);
        to += n * lode_element_bytes(type);
        first += here;
        count -= here;
    }
}

lode_status_t lode_matrix_create(lode_products_h products, const lode_matrix_part_t *parts, uint32_t count,
                                 uint32_t ins, lode_matrix_h *matrix)
{
    lode_matrix_h made = calloc(1, products->calls->matrix_bytes);
    if (!made)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a matrix");
    made->products = products;
    made->ins = ins;
    for (uint32_t i = 0; i < count; i++)
        made->outs += parts[i].rows;
    lode_status_t status = products->calls->create(products, made, parts);
    if (status == LODE_OK)
        *matrix = made;
    else
        lode_matrix_destroy(&made);
    return status;
}

void lode_matrix_destroy(lode_matrix_h *matrix)
{
    if (*matrix)
        (*matrix)->products->calls->forget(*matrix);
    free(*matrix);
    *matrix = NULL;
}

uint32_t lode_matrix_outs(lode_matrix_h matrix)
{
    return matrix->outs;
}

lode_status_t lode_matrix_multiply(lode_matrix_h matrix, uint32_t rows, const void *x, bool add, float *out)
{
    return rows ? matrix->products->calls->multiply(matrix, rows, x, add, out) : LODE_OK;
}
