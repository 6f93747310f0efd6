/* SPDX-License-Identifier: Apache-2.0 */
/* Conversions, transforms and copies. */
#include "kernels/scalar/scalar.h"

void lode_scalar_widen(lode_dtype_t dtype, const void *src, float *dst, size_t n)
{
    if (dtype == LODE_FP32) {
        memcpy(dst, src, n * sizeof *dst);
        return;
    }
    const uint8_t *at = src;
    for (size_t i = 0; i < n; i++) {
        uint16_t half = lode_load16(at + 2 * i);
        dst[i] = dtype == LODE_BF16 ? lode_bf16_widen(half) : lode_fp16_widen(half);
    }
}

void lode_scalar_narrow(lode_dtype_t dtype, const float *src, void *dst, size_t n)
{
    if (dtype == LODE_FP32) {
        memcpy(dst, src, n * sizeof *src);
        return;
    }
    uint8_t *at = dst;
    for (size_t i = 0; i < n; i++)
        lode_store16(at + 2 * i, dtype == LODE_BF16 ? lode_bf16_narrow(src[i]) : lode_fp16_narrow(src[i]));
}

size_t lode_scalar_first_nonfinite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return i;
    return n;
}

void lode_scalar_rotate(float *x, uint32_t rows, uint32_t dim, const float *cosine, const float *sine)
{
    uint32_t half = dim / 2;
    for (uint32_t row = 0; row < rows; row++, x += dim)
        for (uint32_t i = 0; i < half; i++) {
            float a = x[i], b = x[i + half];
            x[i] = a * cosine[i] - b * sine[i];
            x[i + half] = b * cosine[i] + a * sine[i];
        }
}

/* Every level pairs elements 1, 2, 4 … apart in this order and scales last, so that all agree to the bit. */
void lode_scalar_hadamard(float *x, uint32_t rows, uint32_t dim)
{
    float scale = 1 / sqrtf((float)dim);
    for (uint32_t row = 0; row < rows; row++, x += dim) {
        for (uint32_t apart = 1; apart < dim; apart *= 2)
            for (uint32_t i = 0; i < dim; i += 2 * apart)
                for (uint32_t j = i; j < i + apart; j++) {
                    float a = x[j], b = x[j + apart];
                    x[j] = a + b;
                    x[j + apart] = a - b;
                }
        for (uint32_t i = 0; i < dim; i++)
            x[i] *= scale;
    }
}

void lode_scalar_project(const float *matrix, uint32_t dim, float *x, uint32_t rows)
{
    float in[LODE_MAX_DIM];
    for (uint32_t row = 0; row < rows; row++, x += dim) {
        memcpy(in, x, dim * sizeof *in);
        memset(x, 0, dim * sizeof *x);
        for (uint32_t i = 0; i < dim; i++)
            for (uint32_t j = 0; j < dim; j++)
                x[j] += in[i] * matrix[(size_t)i * dim + j];
    }
}

void lode_scalar_dot_rows(const float *a, const float *x, uint32_t rows, uint32_t dim, float *y)
{
    for (uint32_t row = 0; row < rows; row++, x += dim) {
        float sum = 0;
        for (uint32_t i = 0; i < dim; i++)
            sum += a[i] * x[i];
        y[row] = sum;
    }
}

void lode_scalar_gather(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes)
{
    for (size_t i = 0; i < count; i++)
        memcpy(dst + i * bytes, src[i], bytes);
}
