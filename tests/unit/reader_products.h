/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file reader_products.h
 * @brief Products of matrices against sums in double, for whatever multiplies them.
 */
#ifndef LODE_TEST_READER_PRODUCTS_H
#define LODE_TEST_READER_PRODUCTS_H

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "reader/elementwise.h"
#include "reader/products.h"

typedef struct product {
    uint32_t rows, ins, outs;
    float *x, *weights, *out;
} product_t;

static inline float some(uint64_t seed, uint64_t i)
{
    return (float)((int64_t)(lode_mix(seed, i) >> 56) - 128) / 128; /* bf16 holds it */
}

static inline product_t make_product(uint32_t rows, uint32_t ins, uint32_t outs)
{
    product_t p = {rows, ins, outs, malloc(4ul * rows * ins), malloc(4ul * outs * ins), malloc(4ul * rows * outs)};
    for (uint64_t i = 0; i < (uint64_t)rows * ins; i++)
        p.x[i] = some(1, i);
    for (uint64_t i = 0; i < (uint64_t)outs * ins; i++)
        p.weights[i] = some(2, i);
    for (uint64_t i = 0; i < (uint64_t)rows * outs; i++)
        p.out[i] = some(3, i);
    return p;
}

static inline void free_product(product_t *p)
{
    free(p->x);
    free(p->weights);
    free(p->out);
}

/* Of two parts above each other. */
static inline void multiply(lode_products_h products, const product_t *p, bool add, float *out)
{
    lode_matrix_h matrix;
    uint32_t upper = p->outs / 3;
    const lode_matrix_part_t parts[] = {{p->weights, LODE_FP32, upper},
                                        {p->weights + (size_t)upper * p->ins, LODE_FP32, p->outs - upper}};
    cr_assert(lode_matrix_create(products, parts, 2, p->ins, &matrix) == LODE_OK, "%s", lode_error_message());
    cr_assert(lode_matrix_outs(matrix) == p->outs);
    void *x = malloc(4ul * p->rows * p->ins);
    lode_convert(LODE_FP32, p->x, lode_products_type(products), x, (size_t)p->rows * p->ins);
    memcpy(out, p->out, 4ul * p->rows * p->outs);
    cr_assert(lode_matrix_multiply(matrix, p->rows, x, add, out) == LODE_OK, "%s", lode_error_message());
    free(x);
    lode_matrix_destroy(&matrix);
}

/* All numbers are small multiples of 2^-7, so that sums in fp32 are exact in any order. */
static inline void expect_product(const product_t *p, bool add, const float *out)
{
    for (uint32_t i = 0; i < p->rows; i++)
        for (uint32_t j = 0; j < p->outs; j++) {
            double sum = add ? p->out[(size_t)i * p->outs + j] : 0;
            for (uint32_t k = 0; k < p->ins; k++)
                sum += (double)p->x[(size_t)i * p->ins + k] * p->weights[(size_t)j * p->ins + k];
            cr_assert(fabs(out[(size_t)i * p->outs + j] - sum) < 1e-3, "%u × %u × %u at (%u, %u): %g, not %g", p->rows,
                      p->ins, p->outs, i, j, (double)out[(size_t)i * p->outs + j], sum);
        }
}

static inline void check_products(lode_products_h products)
{
    static const uint32_t sizes[][3] = {{1, 64, 64},   {1, 192, 4021}, {3, 100, 7},    {37, 192, 512},
                                        {64, 96, 200}, {129, 64, 96},  {200, 768, 700}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        product_t p = make_product(sizes[i][0], sizes[i][1], sizes[i][2]);
        float *out = malloc(4ul * p.rows * p.outs);
        multiply(products, &p, false, out);
        expect_product(&p, false, out);
        multiply(products, &p, true, out);
        expect_product(&p, true, out);
        free(out);
        free_product(&p);
    }
}

#endif
