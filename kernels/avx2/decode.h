/* SPDX-License-Identifier: Apache-2.0 */
/** @file decode.h @brief Reading stored codes into vectors; also used by attend. */
#ifndef LODE_KERNELS_AVX2_DECODE_H
#define LODE_KERNELS_AVX2_DECODE_H

#include "kernels/avx2/avx2.h"

/** What a record's stored scale is to be multiplied by, beside the numbers of decode8(). */
LODE_INLINE float decode_factor(lode_format_t format)
{
    return format == LODE_FORMAT_FP8 ? 256 : 1;
}

/** 8 coordinates from `at` on (a multiple of 8), without the vector's scale and decode_factor(). */
LODE_INLINE __m256 decode8(lode_format_t format, const uint8_t *codes, size_t at)
{
    if (format == LODE_FORMAT_BF16)
        return widen_bf16(codes + 2 * at);
    if (format == LODE_FORMAT_FP8) { /* moved into the fields of fp16, the exponent is 8 too small */
        __m128i wide = _mm_slli_epi16(_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i *)(codes + at))), 7);
        return _mm256_cvtph_ps(_mm_and_si128(wide, _mm_set1_epi16((short)0xbfff)));
    }
    const double *pairs = (const double *)lode_higgs_grid2;
    const uint8_t *code = codes + at / 2;
    __m128d low = _mm_loadh_pd(_mm_load_sd(pairs + code[0]), pairs + code[1]);
    __m128d high = _mm_loadh_pd(_mm_load_sd(pairs + code[2]), pairs + code[3]);
    return _mm256_castpd_ps(_mm256_set_m128d(high, low));
}

#endif
