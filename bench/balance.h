/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file balance.h
 * @brief The algebra behind transforms in front of the quantiser (`lodemark calibrate`, `bench landmarks`).
 *
 * Matrices are symmetric, row-major, both triangles filled, unless said otherwise.
 */
#ifndef LODE_BENCH_BALANCE_H
#define LODE_BENCH_BALANCE_H

#include "base/base.h"
#include "kernels/kernels.h"

/** sum += x xᵀ, its lower triangle. */
void lode_outer_add(double *sum, const float *x, uint32_t dim);
/** A sum of outer products, its lower triangle, as a covariance that can be inverted. */
void lode_covariance(const double *sum, uint64_t count, uint32_t n, double *out);
/**
 * What is off the diagonal, less the share that few and kindred queries make up: measured on generated queries
 * (docs/decisions.md), half is better than nothing and than all.
 */
void lode_shrink(double *x, uint32_t n);
/** x to a power by its eigenvalues, of which none is taken for less than a millionth of the greatest. */
lode_status_t lode_matrix_power(double *x, uint32_t n, double power);
/** out = a b; any square matrices. */
void lode_balance_product(const double *a, const double *b, uint32_t n, double *out);
/** x becomes its eigenvectors, one a column, by ascending eigenvalue. */
lode_status_t lode_matrix_vectors(double *x, uint32_t n, double *values);
/** out = (P⁻¹ # Q)^½ = (P^-½ (P^½ Q P^½)^½ P^-½)^½. work: 3 matrices. */
lode_status_t lode_balance(const double *p, const double *q, uint32_t n, double *work, double *out);

#endif
