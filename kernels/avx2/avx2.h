/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file avx2.h
 * @brief AVX2 with FMA, F16C, SSE4.2 and PCLMUL: contracts are those of lode_ops_t, orders of summation those of
 * internal.h. The 16 running sums of lane order are a pair of vectors.
 */
#ifndef LODE_KERNELS_AVX2_H
#define LODE_KERNELS_AVX2_H

#include <immintrin.h>

#include "kernels/internal.h"

void lode_sse42_crc32c_prepare(void);

void lode_avx2_widen(lode_dtype_t dtype, const void *src, float *dst, size_t n);
void lode_avx2_narrow(lode_dtype_t dtype, const float *src, void *dst, size_t n);
size_t lode_avx2_first_nonfinite(const float *x, size_t n);
void lode_avx2_rotate(float *x, uint32_t rows, uint32_t dim, const float *cosine, const float *sine);
void lode_avx2_hadamard(float *x, uint32_t rows, uint32_t dim);
void lode_avx2_project(const float *matrix, uint32_t dim, float *x, uint32_t rows);
void lode_avx2_dot_rows(const float *a, const float *x, uint32_t rows, uint32_t dim, float *y);
void lode_avx2_gather(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes);
void lode_avx2_merge(float *out, float *lse, const float *part, const float *part_lse, uint32_t rows, uint32_t dim);

void lode_avx2_record_encode(lode_format_t format, uint32_t dim, const float *k, const float *v, uint32_t tag,
                             uint8_t *record);
void lode_avx2_record_decode(lode_format_t format, uint32_t dim, const uint8_t *record, float *k, float *v);
bool lode_avx2_record_check(lode_format_t format, uint32_t dim, const uint8_t *record, uint32_t tag);

void lode_avx2_landmark_quantise(const lode_landmark_spec_t *spec, uint32_t dim, const float *x, size_t n,
                                 uint8_t *rows);
void lode_avx2_query_prepare(const lode_landmark_spec_t *spec, uint32_t dim, const float *q, float bias,
                             lode_landmark_query_t *query);
void lode_avx2_landmark_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                              const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                              float *scratch);

float lode_avx2_logsumexp(const float *x, size_t n);
void lode_avx2_group_max(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n);
size_t lode_avx2_topk(const float *scores, size_t n, size_t k, uint32_t *out);
/** Fill the table of lode_avx2_note; called once. */
void lode_avx2_note_prepare(void);
void lode_avx2_note(const float *scores, size_t n, uint32_t first, lode_notes_t *notes);
void lode_avx2_group_max_note(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n,
                              uint32_t first, lode_notes_t *notes);
size_t lode_avx2_topk_noted(const float *scores, size_t n, size_t k, lode_notes_t *notes, uint32_t *out);

void lode_avx2_attend(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records, size_t n,
                      const float *q, float *out, float *lse);
void lode_avx2_attend_each(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records,
                           const uint16_t *of, size_t n, float *q, uint32_t count, float *out, float *lse);

/** The first n (at most 8) lanes, for masked loads and stores. */
LODE_INLINE __m256i lanes(size_t n)
{
    __m256i count = _mm256_set1_epi32(n > 8 ? 8 : (int)n);
    return _mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

/** Fold a pair of sums in lane order. */
LODE_INLINE float fold(__m256 low, __m256 high)
{
    __m256 y = _mm256_add_ps(low, high);
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}

LODE_INLINE float greatest_of(__m256 x)
{
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

LODE_INLINE __m256 absolute(__m256 x)
{
    return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x);
}

/** 8 bf16 numbers. */
LODE_INLINE __m256 widen_bf16(const void *at)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(at)), 16));
}

/** exp to about 1e-7 of its value for −87 ≤ x ≤ 88; 0 below, −infinity included. */
LODE_INLINE __m256 exp8(__m256 x)
{
    const __m256 least = _mm256_set1_ps(-87.0f);
    __m256 counts = _mm256_cmp_ps(x, least, _CMP_GE_OQ);
    x = _mm256_max_ps(x, least);
    __m256 power = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), 8);
    /* ln 2 in two parts: the first has few enough bits that its multiples are exact. */
    __m256 r = _mm256_fnmadd_ps(power, _mm256_set1_ps(0.693145751953125f), x);
    r = _mm256_fnmadd_ps(power, _mm256_set1_ps(1.42860677e-6f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(power), 23);
    p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
    return _mm256_and_ps(p, counts);
}

#endif
