/* SPDX-License-Identifier: Apache-2.0 */
/* Records and landmark rows: what is stored, the same to the bit as the scalar forms. */
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/decode.h"

LODE_INLINE float absmax_of(const float *x, uint32_t n)
{
    __m512 most = _mm512_setzero_ps();
    for (uint32_t i = 0; i < n; i += 16)
        most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
    return _mm512_reduce_max_ps(most);
}

LODE_INLINE float lane_dot(const float *a, const float *b, uint32_t n)
{
    __m512 sum = _mm512_setzero_ps();
    for (uint32_t i = 0; i < n; i += 16)
        sum = _mm512_add_ps(sum, _mm512_mul_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i)));
    return fold(sum);
}

LODE_INLINE void multiply(float *y, const float *x, float factor, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 16)
        _mm512_storeu_ps(y + i, _mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(factor)));
}

/* lode_fp8_narrow of 16 numbers. */
LODE_INLINE __m128i narrow_fp8(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    magnitude = _mm512_min_epu32(magnitude, _mm512_set1_epi32(0x43e00000));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), _mm512_set1_epi32(1));
    __m512i code = _mm512_add_epi32(_mm512_add_epi32(magnitude, odd), _mm512_set1_epi32(0x7ffff - 0x3c000000));
    code = _mm512_srli_epi32(code, 20);
    __m512 shifted = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(0x1p14f));
    __mmask16 tiny = _mm512_cmplt_epu32_mask(magnitude, _mm512_set1_epi32(0x3c800000));
    code = _mm512_mask_sub_epi32(code, tiny, _mm512_castps_si512(shifted), _mm512_set1_epi32(0x46800000));
    __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
    return _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign));
}

static uint16_t encode_fp8(uint32_t dim, const float *x, uint8_t *codes)
{
    uint16_t scale = lode_fp8_scale(absmax_of(x, dim));
    __m512 inverse = _mm512_set1_ps(lode_fp8_inverse(scale));
    for (uint32_t i = 0; i < dim; i += 16)
        _mm_storeu_si128((__m128i *)(codes + i), narrow_fp8(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse)));
    return scale;
}

/* As lode_scalar_rms_scale. */
static uint16_t rms_scale(float *x, uint32_t dim, float back)
{
    float rms = sqrtf(lane_dot(x, x, dim) / (float)dim);
    uint16_t scale = lode_bf16_scale(rms * back);
    float rounded = lode_bf16_widen(scale) / back;
    multiply(x, x, rounded > 0 ? 1 / rounded : 0, dim);
    return scale;
}

static uint16_t encode_higgs(uint32_t dim, const float *x, uint8_t *codes)
{
    float y[LODE_MAX_DIM], back;
    float scale = lode_exact_scale(absmax_of(x, dim), &back);
    multiply(y, x, scale, dim);
    lode_avx512_hadamard(y, 1, dim);
    uint16_t norm = rms_scale(y, dim, back);
    for (uint32_t i = 0; i < dim / 2; i++)
        codes[i] = lode_higgs_nearest2(y[2 * i], y[2 * i + 1]);
    return norm;
}

static uint16_t encode(lode_format_t format, uint32_t dim, const float *x, uint8_t *codes)
{
    switch (format) {
    case LODE_FORMAT_BF16:
        lode_avx512_narrow(LODE_BF16, x, codes, dim);
        return 0;
    case LODE_FORMAT_FP8:
        return encode_fp8(dim, x, codes);
    case LODE_FORMAT_HIGGS4:
        return encode_higgs(dim, x, codes);
    }
    return 0;
}

void lode_avx512_record_encode(lode_format_t format, uint32_t dim, const float *k, const float *v, uint32_t tag,
                               uint8_t *record)
{
    size_t bytes = lode_format_vector_bytes(format, dim);
    uint8_t *end = record + 2 * bytes;
    lode_store16(end, encode(format, dim, k, record));
    lode_store16(end + 2, encode(format, dim, v, record + bytes));
    lode_store32(end + 4, lode_sse42_crc32c(tag, record, 2 * bytes + 4));
}

static void decode(lode_format_t format, uint32_t dim, const uint8_t *codes, uint16_t scale, float *x)
{
    __m512 factor = _mm512_set1_ps(lode_bf16_widen(scale));
    for (uint32_t i = 0; i < dim; i += 16) {
        __m512 y = decode16(format, codes, i);
        y = _mm512_mul_ps(y, _mm512_set1_ps(decode_factor(format)));
        if (format != LODE_FORMAT_BF16)
            y = _mm512_mul_ps(y, factor);
        _mm512_storeu_ps(x + i, y);
    }
}

void lode_avx512_record_decode(lode_format_t format, uint32_t dim, const uint8_t *record, float *k, float *v)
{
    size_t bytes = lode_format_vector_bytes(format, dim);
    const uint8_t *end = record + 2 * bytes;
    decode(format, dim, record, lode_load16(end), k);
    decode(format, dim, record + bytes, lode_load16(end + 2), v);
    if (format == LODE_FORMAT_HIGGS4) {
        lode_avx512_hadamard(k, 1, dim);
        lode_avx512_hadamard(v, 1, dim);
    }
}

/* The code of each coordinate and, in `centred`, the number it stands for before the row's scale. */
static void uniform_codes(uint32_t bits, uint32_t dim, const float *y, uint8_t *codes, float *centred)
{
    float levels = (float)(1u << bits), rms, inverse;
    if (bits == 8) {
        inverse = 127 / absmax_of(y, dim);
    } else {
        rms = sqrtf(lane_dot(y, y, dim) / (float)dim);
        inverse = 1 / (rms * lode_uniform_step(bits));
    }
    __m512 low = _mm512_set1_ps(bits == 8 ? -127 : 0), high = _mm512_set1_ps(bits == 8 ? 127 : levels - 1);
    __m512 zero = _mm512_set1_ps(bits == 8 ? 0 : levels / 2), middle = _mm512_set1_ps(bits == 8 ? 0 : (levels - 1) / 2);
    for (uint32_t i = 0; i < dim; i += 16) {
        __m512 x = _mm512_mul_ps(_mm512_loadu_ps(y + i), _mm512_set1_ps(inverse));
        x = bits == 8 ? _mm512_roundscale_ps(x, 8) : _mm512_roundscale_ps(x, 9);
        x = _mm512_min_ps(_mm512_max_ps(_mm512_add_ps(x, zero), low), high);
        _mm_storeu_si128((__m128i *)(codes + i), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(x)));
        _mm512_storeu_ps(centred + i, _mm512_sub_ps(x, middle));
    }
}

static void uniform_row(uint32_t bits, uint32_t dim, const float *x, uint8_t *row)
{
    float y[LODE_MAX_DIM], centred[LODE_MAX_DIM], back;
    uint8_t codes[LODE_MAX_DIM] = {0};
    float absmax = absmax_of(x, dim), scale = lode_exact_scale(absmax, &back);
    uint16_t row_scale = 0;
    if (absmax > 0) {
        multiply(y, x, scale, dim);
        uniform_codes(bits, dim, y, codes, centred);
        row_scale = lode_bf16_scale(lane_dot(y, y, dim) / lane_dot(centred, y, dim) * back);
    }
    lode_uniform_pack(bits, dim, codes, row);
    lode_store16(row + dim * bits / 8, row_scale);
}

/* lode_higgs_nearest4, 16 points at a time. */
static uint8_t nearest4(const float *x)
{
    __m512 least = _mm512_set1_ps(INFINITY);
    __m512i best = _mm512_setzero_si512();
    for (int i = 0; i < 256; i += 16) {
        __m512 square[4];
        for (int j = 0; j < 4; j++) {
            __m512 away = _mm512_sub_ps(_mm512_set1_ps(x[j]), _mm512_loadu_ps(&lode_higgs_columns4[j][i]));
            square[j] = _mm512_mul_ps(away, away);
        }
        __m512 distance = _mm512_add_ps(_mm512_add_ps(square[0], square[1]), _mm512_add_ps(square[2], square[3]));
        best = _mm512_mask_mov_epi32(best, _mm512_cmp_ps_mask(distance, least, _CMP_LT_OQ), _mm512_set1_epi32(i));
        least = _mm512_min_ps(distance, least);
    }
    __mmask16 nearest = _mm512_cmp_ps_mask(least, _mm512_set1_ps(_mm512_reduce_min_ps(least)), _CMP_EQ_OQ);
    best = _mm512_add_epi32(best, _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    return (uint8_t)_mm512_mask_reduce_min_epu32(nearest, best);
}

static void higgs_row(uint32_t bits, uint32_t dim, const float *x, uint8_t *row)
{
    float y[LODE_MAX_DIM], back;
    float scale = lode_exact_scale(absmax_of(x, dim), &back);
    multiply(y, x, scale, dim);
    uint16_t norm = rms_scale(y, dim, back);
    for (uint32_t i = 0; bits == 4 && i < dim / 2; i++)
        row[i] = lode_higgs_nearest2(y[2 * i], y[2 * i + 1]);
    for (uint32_t i = 0; bits == 2 && i < dim / 4; i++)
        row[i] = nearest4(y + 4 * i);
    lode_store16(row + dim * bits / 8, norm);
}

void lode_avx512_landmark_quantise(const lode_landmark_spec_t *spec, uint32_t dim, const float *x, size_t n,
                                   uint8_t *rows)
{
    size_t bytes = lode_landmark_row_bytes(spec, dim);
    for (size_t i = 0; i < n; i++, x += dim, rows += bytes) {
        if (spec->codec == LODE_LANDMARK_MEAN)
            lode_avx512_narrow(LODE_BF16, x, rows, dim);
        else if (spec->codec == LODE_LANDMARK_UNIFORM)
            uniform_row(spec->bits, dim, x, rows);
        else
            higgs_row(spec->bits, dim, x, rows);
    }
}
