/* SPDX-License-Identifier: Apache-2.0 */
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/balance.h"

/** What is added to a covariance, as a share of its mean diagonal: directions that were never seen may still be asked.
 */
#define RIDGE 0.01
#define SHRINK 0.5

void lode_outer_add(double *sum, const float *x, uint32_t dim)
{
    for (uint32_t i = 0; i < dim; i++)
        for (uint32_t j = 0; j <= i; j++)
            sum[(size_t)i * dim + j] += (double)x[i] * x[j];
}

lode_status_t lode_matrix_power(double *x, uint32_t dim, double power)
{
    lapack_int n = (lapack_int)dim;
    double values[LODE_MAX_DIM];
    double *vectors = malloc((size_t)n * (size_t)n * sizeof *vectors);
    if (!vectors)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for eigenvectors");
    memcpy(vectors, x, (size_t)n * (size_t)n * sizeof *x);
    if (LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'V', 'L', n, vectors, n, values) != 0) {
        free(vectors);
        return lode_fail(LODE_ERR_INTERNAL, "the eigenvalues of a covariance were not found");
    }
    for (lapack_int e = 0; e < n; e++) {
        double least = values[n - 1] * 1e-6;
        values[e] = pow(values[e] > least ? values[e] : least, power);
    }
    for (lapack_int i = 0; i < n; i++)
        for (lapack_int j = 0; j < n; j++) {
            double sum = 0;
            for (lapack_int e = 0; e < n; e++)
                sum += vectors[i * n + e] * values[e] * vectors[j * n + e];
            x[i * n + j] = sum;
        }
    free(vectors);
    return LODE_OK;
}

void lode_balance_product(const double *a, const double *b, uint32_t n, double *out)
{
    memset(out, 0, (size_t)n * n * sizeof *out);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < n; k++)
            for (uint32_t j = 0; j < n; j++)
                out[(size_t)i * n + j] += a[(size_t)i * n + k] * b[(size_t)k * n + j];
}

void lode_covariance(const double *sum, uint64_t count, uint32_t n, double *out)
{
    double trace = 0, scale = count ? 1 / (double)count : 1;
    for (uint32_t i = 0; i < n; i++)
        trace += sum[(size_t)i * n + i] * scale;
    /* few samples say little of the directions in which they hardly vary */
    double ridge = RIDGE * (1 + 10 * n * scale) * (trace > 0 ? trace / n : 1);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j <= i; j++)
            out[(size_t)i * n + j] = out[(size_t)j * n + i] = sum[(size_t)i * n + j] * scale + (i == j ? ridge : 0);
}

void lode_shrink(double *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t j = 0; j < n; j++)
            x[(size_t)i * n + j] *= i == j ? 1 : 1 - SHRINK;
}

lode_status_t lode_balance(const double *p, const double *q, uint32_t n, double *work, double *out)
{
    size_t floats = (size_t)n * n;
    double *root = work, *inverse = work + floats, *middle = work + 2 * floats;
    memcpy(root, p, floats * sizeof *root);
    memcpy(inverse, p, floats * sizeof *inverse);
    LODE_TRY(lode_matrix_power(root, n, 0.5));
    LODE_TRY(lode_matrix_power(inverse, n, -0.5));
    lode_balance_product(root, q, n, middle);
    lode_balance_product(middle, root, n, out);
    LODE_TRY(lode_matrix_power(out, n, 0.5));
    lode_balance_product(inverse, out, n, middle);
    lode_balance_product(middle, inverse, n, out);
    return lode_matrix_power(out, n, 0.5);
}

lode_status_t lode_matrix_vectors(double *x, uint32_t n, double *values)
{
    if (LAPACKE_dsyevd(LAPACK_ROW_MAJOR, 'V', 'L', (lapack_int)n, x, (lapack_int)n, values) == 0)
        return LODE_OK;
    return lode_fail(LODE_ERR_INTERNAL, "the eigenvectors of a covariance were not found");
}
