/* SPDX-License-Identifier: Apache-2.0 */
/* Records and landmark rows: what is stored, the same to the bit as the scalar forms. */
#include "kernels/avx2/avx2.h"
#include "kernels/avx2/decode.h"

LODE_INLINE float absmax_of(const float *x, uint32_t n)
{
    __m256 most = _mm256_setzero_ps();
    for (uint32_t i = 0; i < n; i += 8)
        most = _mm256_max_ps(most, absolute(_mm256_loadu_ps(x + i)));
    return greatest_of(most);
}

LODE_INLINE float lane_dot(const float *a, const float *b, uint32_t n)
{
    __m256 low = _mm256_setzero_ps(), high = _mm256_setzero_ps();
    for (uint32_t i = 0; i < n; i += 16) {
        low = _mm256_add_ps(low, _mm256_mul_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)));
        high = _mm256_add_ps(high, _mm256_mul_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8)));
    }
    return fold(low, high);
}

LODE_INLINE void multiply(float *y, const float *x, float factor, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 8)
        _mm256_storeu_ps(y + i, _mm256_mul_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(factor)));
}

/* The low bytes of 8 numbers of 32 bits. */
LODE_INLINE void store_bytes(uint8_t *at, __m256i x)
{
    const __m256i lows = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1,
                                          -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    x = _mm256_shuffle_epi8(x, lows);
    __m128i packed = _mm_unpacklo_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storel_epi64((__m128i *)at, packed);
}

/* lode_fp8_narrow of 8 numbers. */
LODE_INLINE __m256i narrow_fp8(__m256 x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    magnitude = _mm256_min_epu32(magnitude, _mm256_set1_epi32(0x43e00000));
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), _mm256_set1_epi32(1));
    __m256i code = _mm256_add_epi32(_mm256_add_epi32(magnitude, odd), _mm256_set1_epi32(0x7ffff - 0x3c000000));
    code = _mm256_srli_epi32(code, 20);
    __m256i shifted = _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(0x1p14f)));
    __m256i tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), magnitude);
    code = _mm256_blendv_epi8(code, _mm256_sub_epi32(shifted, _mm256_set1_epi32(0x46800000)), tiny);
    return _mm256_or_si256(code, _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80)));
}

static uint16_t encode_fp8(uint32_t dim, const float *x, uint8_t *codes)
{
    uint16_t scale = lode_fp8_scale(absmax_of(x, dim));
    __m256 inverse = _mm256_set1_ps(lode_fp8_inverse(scale));
    for (uint32_t i = 0; i < dim; i += 8)
        store_bytes(codes + i, narrow_fp8(_mm256_mul_ps(_mm256_loadu_ps(x + i), inverse)));
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
    lode_avx2_hadamard(y, 1, dim);
    uint16_t norm = rms_scale(y, dim, back);
    for (uint32_t i = 0; i < dim / 2; i++)
        codes[i] = lode_higgs_nearest2(y[2 * i], y[2 * i + 1]);
    return norm;
}

static uint16_t encode(lode_format_t format, uint32_t dim, const float *x, uint8_t *codes)
{
    switch (format) {
    case LODE_FORMAT_BF16:
        lode_avx2_narrow(LODE_BF16, x, codes, dim);
        return 0;
    case LODE_FORMAT_FP8:
        return encode_fp8(dim, x, codes);
    case LODE_FORMAT_HIGGS4:
        return encode_higgs(dim, x, codes);
    }
    return 0;
}

void lode_avx2_record_encode(lode_format_t format, uint32_t dim, const float *k, const float *v, uint32_t tag,
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
    __m256 factor = _mm256_set1_ps(lode_bf16_widen(scale));
    for (uint32_t i = 0; i < dim; i += 8) {
        __m256 y = _mm256_mul_ps(decode8(format, codes, i), _mm256_set1_ps(decode_factor(format)));
        _mm256_storeu_ps(x + i, format == LODE_FORMAT_BF16 ? y : _mm256_mul_ps(y, factor));
    }
}

void lode_avx2_record_decode(lode_format_t format, uint32_t dim, const uint8_t *record, float *k, float *v)
{
    size_t bytes = lode_format_vector_bytes(format, dim);
    const uint8_t *end = record + 2 * bytes;
    decode(format, dim, record, lode_load16(end), k);
    decode(format, dim, record + bytes, lode_load16(end + 2), v);
    if (format == LODE_FORMAT_HIGGS4) {
        lode_avx2_hadamard(k, 1, dim);
        lode_avx2_hadamard(v, 1, dim);
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
    __m256 low = _mm256_set1_ps(bits == 8 ? -127 : 0), high = _mm256_set1_ps(bits == 8 ? 127 : levels - 1);
    __m256 zero = _mm256_set1_ps(bits == 8 ? 0 : levels / 2), middle = _mm256_set1_ps(bits == 8 ? 0 : (levels - 1) / 2);
    for (uint32_t i = 0; i < dim; i += 8) {
        __m256 x = _mm256_mul_ps(_mm256_loadu_ps(y + i), _mm256_set1_ps(inverse));
        x = bits == 8 ? _mm256_round_ps(x, 8) : _mm256_round_ps(x, 9);
        x = _mm256_min_ps(_mm256_max_ps(_mm256_add_ps(x, zero), low), high);
        store_bytes(codes + i, _mm256_cvttps_epi32(x));
        _mm256_storeu_ps(centred + i, _mm256_sub_ps(x, middle));
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

/* lode_higgs_nearest4, 8 points at a time. */
static uint8_t nearest4(const float *x)
{
    __m256 least = _mm256_set1_ps(INFINITY);
    __m256i best = _mm256_setzero_si256();
    for (int i = 0; i < 256; i += 8) {
        __m256 square[4];
        for (int j = 0; j < 4; j++) {
            __m256 away = _mm256_sub_ps(_mm256_set1_ps(x[j]), _mm256_loadu_ps(&lode_higgs_columns4[j][i]));
            square[j] = _mm256_mul_ps(away, away);
        }
        __m256 distance = _mm256_add_ps(_mm256_add_ps(square[0], square[1]), _mm256_add_ps(square[2], square[3]));
        __m256i nearer = _mm256_castps_si256(_mm256_cmp_ps(distance, least, _CMP_LT_OQ));
        best = _mm256_blendv_epi8(best, _mm256_set1_epi32(i), nearer);
        least = _mm256_min_ps(distance, least);
    }
    float distances[8];
    int points[8], chosen = 0;
    _mm256_storeu_ps(distances, least);
    _mm256_storeu_si256((__m256i *)points, _mm256_add_epi32(best, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)));
    for (int i = 1; i < 8; i++)
        if (distances[i] < distances[chosen] || (distances[i] == distances[chosen] && points[i] < points[chosen]))
            chosen = i;
    return (uint8_t)points[chosen];
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

void lode_avx2_landmark_quantise(const lode_landmark_spec_t *spec, uint32_t dim, const float *x, size_t n,
                                 uint8_t *rows)
{
    size_t bytes = lode_landmark_row_bytes(spec, dim);
    for (size_t i = 0; i < n; i++, x += dim, rows += bytes) {
        if (spec->codec == LODE_LANDMARK_MEAN)
            lode_avx2_narrow(LODE_BF16, x, rows, dim);
        else if (spec->codec == LODE_LANDMARK_UNIFORM)
            uniform_row(spec->bits, dim, x, rows);
        else
            higgs_row(spec->bits, dim, x, rows);
    }
}

/* The low 16 bits of 8 numbers. */
LODE_INLINE void store_words(int16_t *at, __m256i x)
{
    __m128i packed = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    _mm_storeu_si128((__m128i *)at, packed);
}

void lode_avx2_query_prepare(const lode_landmark_spec_t *spec, uint32_t dim, const float *q, float bias,
                             lode_landmark_query_t *query)
{
    float absmax = spec->codec == LODE_LANDMARK_UNIFORM ? absmax_of(q, dim) : 0, exact;
    float inverse = lode_query_begin(spec->bits, absmax, bias, &exact, query);
    memcpy(query->q32, q, sizeof *q * dim);
    if (spec->codec != LODE_LANDMARK_UNIFORM)
        return;
    multiply(query->q32, q, exact, dim);
    int32_t codes[LODE_MAX_DIM];
    for (uint32_t i = 0; i < dim; i += 8) {
        __m256 x = _mm256_mul_ps(_mm256_loadu_ps(query->q32 + i), _mm256_set1_ps(inverse));
        __m256i code = _mm256_cvtps_epi32(x);
        _mm256_storeu_si256((__m256i *)(codes + i), code);
        store_words(query->q16 + i, code);
        store_bytes((uint8_t *)query->q8 + i, code);
    }
    for (uint32_t i = 0; i < dim; i++)
        query->sum += codes[i];
    memcpy(query->q32, q, sizeof *q * dim);
    if (spec->bits == 1)
        lode_signs_prepare(dim, query);
}
