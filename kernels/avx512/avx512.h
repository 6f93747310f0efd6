/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file avx512.h
 * @brief AVX-512 (F, BW, DQ, VL): contracts are those of lode_ops_t, orders of summation those of internal.h.
 */
#ifndef LODE_KERNELS_AVX512_H
#define LODE_KERNELS_AVX512_H

#include <immintrin.h>

#include "kernels/internal.h"

void lode_avx512_widen(lode_dtype_t dtype, const void *src, float *dst, size_t n);
void lode_avx512_narrow(lode_dtype_t dtype, const float *src, void *dst, size_t n);
size_t lode_avx512_first_nonfinite(const float *x, size_t n);
void lode_avx512_rotate(float *x, uint32_t rows, uint32_t dim, const float *cosine, const float *sine);
void lode_avx512_hadamard(float *x, uint32_t rows, uint32_t dim);
void lode_avx512_project(const float *matrix, uint32_t dim, float *x, uint32_t rows);
void lode_avx512_dot_rows(const float *a, const float *x, uint32_t rows, uint32_t dim, float *y);
void lode_avx512_merge(float *out, float *lse, const float *part, const float *part_lse, uint32_t rows, uint32_t dim);

void lode_avx512_record_encode(lode_format_t format, uint32_t dim, const float *k, const float *v, uint32_t tag,
                               uint8_t *record);
void lode_avx512_record_decode(lode_format_t format, uint32_t dim, const uint8_t *record, float *k, float *v);

void lode_avx512_landmark_quantise(const lode_landmark_spec_t *spec, uint32_t dim, const float *x, size_t n,
                                   uint8_t *rows);
void lode_avx512_landmark_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                                const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                                float *scratch);

void lode_avx512_query_prepare(const lode_landmark_spec_t *spec, uint32_t dim, const float *q, float bias,
                               lode_landmark_query_t *query);

float lode_avx512_logsumexp(const float *x, size_t n);
void lode_avx512_group_max(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n);
size_t lode_avx512_topk(const float *scores, size_t n, size_t k, uint32_t *out);
void lode_avx512_note(const float *scores, size_t n, uint32_t first, lode_notes_t *notes);
void lode_avx512_group_max_note(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n,
                                uint32_t first, lode_notes_t *notes);
size_t lode_avx512_topk_noted(const float *scores, size_t n, size_t k, lode_notes_t *notes, uint32_t *out);

void lode_avx512_attend(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records, size_t n,
                        const float *q, float *out, float *lse);
void lode_avx512_attend_each(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records,
                             const uint16_t *of, size_t n, float *q, uint32_t count, float *out, float *lse);

/** The first n (at most 16) lanes. */
LODE_INLINE __mmask16 lanes(size_t n)
{
    return n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1);
}

/** Fold a vector of sums in lane order. */
LODE_INLINE float fold(__m512 x)
{
    __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
    z = _mm_add_ps(z, _mm_movehl_ps(z, z));
    return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}

/** 16 bf16 numbers. */
LODE_INLINE __m512 widen_bf16(const void *at)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(at)), 16));
}

/** exp to about 1e-7 of its value for x ≤ 88; 0 from −104 on, −infinity included. */
LODE_INLINE __m512 exp16(__m512 x)
{
    x = _mm512_max_ps(x, _mm512_set1_ps(-104.0f));
    __m512 power = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    /* ln 2 in two parts: the first has few enough bits that its multiples are exact. */
    __m512 r = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693145751953125f), x);
    r = _mm512_fnmadd_ps(power, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 720));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 120));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 24));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f / 6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, power);
}

#endif
