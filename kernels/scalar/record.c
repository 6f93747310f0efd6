/* SPDX-License-Identifier: Apache-2.0 */
/* Records: encode, decode, check. */
#include "kernels/scalar/scalar.h"

float lode_scalar_absmax(const float *x, uint32_t n)
{
    float absmax = 0;
    for (uint32_t i = 0; i < n; i++)
        absmax = fabsf(x[i]) > absmax ? fabsf(x[i]) : absmax;
    return absmax;
}

float lode_scalar_lane_dot(const float *a, const float *b, uint32_t n)
{
    float sum[LODE_LANES] = {0};
    for (uint32_t i = 0; i < n; i += LODE_LANES)
        for (uint32_t lane = 0; lane < LODE_LANES; lane++)
            sum[lane] += a[i + lane] * b[i + lane];
    for (uint32_t half = LODE_LANES / 2; half; half /= 2)
        for (uint32_t lane = 0; lane < half; lane++)
            sum[lane] += sum[lane + half];
    return sum[0];
}

static uint16_t encode_fp8(uint32_t dim, const float *x, uint8_t *codes)
{
    uint16_t scale = lode_fp8_scale(lode_scalar_absmax(x, dim));
    float inverse = lode_fp8_inverse(scale);
    for (uint32_t i = 0; i < dim; i++)
        codes[i] = lode_fp8_narrow(x[i] * inverse);
    return scale;
}

uint16_t lode_scalar_rms_scale(float *x, uint32_t dim, float back)
{
    float rms = sqrtf(lode_scalar_lane_dot(x, x, dim) / (float)dim);
    uint16_t scale = lode_bf16_scale(rms * back);
    /* The grid is for the norm as it will be read back, so divide by that one; both factors are powers of two apart. */
    float rounded = lode_bf16_widen(scale) / back;
    float inverse = rounded > 0 ? 1 / rounded : 0;
    for (uint32_t i = 0; i < dim; i++)
        x[i] *= inverse;
    return scale;
}

static uint16_t encode_higgs(uint32_t dim, const float *x, uint8_t *codes)
{
    float y[LODE_MAX_DIM], back;
    float scale = lode_exact_scale(lode_scalar_absmax(x, dim), &back);
    for (uint32_t i = 0; i < dim; i++)
        y[i] = x[i] * scale;
    lode_scalar_hadamard(y, 1, dim);
    uint16_t norm = lode_scalar_rms_scale(y, dim, back);
    for (uint32_t i = 0; i < dim / 2; i++)
        codes[i] = lode_higgs_nearest2(y[2 * i], y[2 * i + 1]);
    return norm;
}

static uint16_t encode(lode_format_t format, uint32_t dim, const float *x, uint8_t *codes)
{
    switch (format) {
    case LODE_FORMAT_BF16:
        lode_scalar_narrow(LODE_BF16, x, codes, dim);
        return 0;
    case LODE_FORMAT_FP8:
        return encode_fp8(dim, x, codes);
    case LODE_FORMAT_HIGGS4:
        return encode_higgs(dim, x, codes);
    }
    return 0;
}

void lode_scalar_record_encode(lode_format_t format, uint32_t dim, const float *k, const float *v, uint32_t tag,
                               uint8_t *record)
{
    size_t bytes = lode_format_vector_bytes(format, dim);
    uint8_t *end = record + 2 * bytes;
    lode_store16(end, encode(format, dim, k, record));
    lode_store16(end + 2, encode(format, dim, v, record + bytes));
    lode_store32(end + 4, lode_scalar_crc32c(tag, record, 2 * bytes + 4));
}

void lode_scalar_vector_decode(lode_format_t format, uint32_t dim, const uint8_t *codes, uint16_t scale, float *x)
{
    float factor = lode_bf16_widen(scale);
    switch (format) {
    case LODE_FORMAT_BF16:
        lode_scalar_widen(LODE_BF16, codes, x, dim);
        break;
    case LODE_FORMAT_FP8:
        for (uint32_t i = 0; i < dim; i++)
            x[i] = lode_fp8_widen(codes[i]) * factor;
        break;
    case LODE_FORMAT_HIGGS4:
        for (uint32_t i = 0; i < dim; i++)
            x[i] = lode_higgs_grid2[codes[i / 2]][i % 2] * factor;
        break;
    }
}

void lode_scalar_record_decode(lode_format_t format, uint32_t dim, const uint8_t *record, float *k, float *v)
{
    size_t bytes = lode_format_vector_bytes(format, dim);
    const uint8_t *end = record + 2 * bytes;
    lode_scalar_vector_decode(format, dim, record, lode_load16(end), k);
    lode_scalar_vector_decode(format, dim, record + bytes, lode_load16(end + 2), v);
    if (format == LODE_FORMAT_HIGGS4) {
        lode_scalar_hadamard(k, 1, dim);
        lode_scalar_hadamard(v, 1, dim);
    }
}

bool lode_scalar_record_check(lode_format_t format, uint32_t dim, const uint8_t *record, uint32_t tag)
{
    size_t bytes = lode_record_bytes(format, dim) - sizeof(uint32_t);
    return lode_scalar_crc32c(tag, record, bytes) == lode_load32(record + bytes);
}
