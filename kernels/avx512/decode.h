/* SPDX-License-Identifier: Apache-2.0 */
/** @file decode.h @brief Reading stored codes into vectors; also used by attend. */
#ifndef LODE_KERNELS_AVX512_DECODE_H
#define LODE_KERNELS_AVX512_DECODE_H

#include "kernels/avx512/avx512.h"

/** What a record's stored scale is to be multiplied by, beside the numbers of decode16(). */
LODE_INLINE float decode_factor(lode_format_t format)
{
    return format == LODE_FORMAT_FP8 ? 256 : 1;
}

/** 16 coordinates from `at` on (a multiple of 16), without the vector's scale and decode_factor(). */
LODE_INLINE __m512 decode16(lode_format_t format, const uint8_t *codes, size_t at)
{
    if (format == LODE_FORMAT_BF16)
        return widen_bf16(codes + 2 * at);
    if (format == LODE_FORMAT_FP8) { /* moved into the fields of fp16, the exponent is 8 too small */
        __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(codes + at))), 7);
        return _mm512_cvtph_ps(_mm256_and_si256(wide, _mm256_set1_epi16((short)0xbfff)));
    }
    __m256i pairs = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(codes + at / 2)));
    return _mm512_castpd_ps(_mm512_i32gather_pd(pairs, (const double *)lode_higgs_grid2, 8));
}

#endif
