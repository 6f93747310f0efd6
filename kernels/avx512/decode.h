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

/** What four HIGGS codes stand for; plain loads, which are quicker than a vector gather. */
LODE_INLINE __m256 look_up8(const uint8_t *code)
{
    const double *pairs = (const double *)lode_higgs_grid2;
    __m128d low = _mm_loadh_pd(_mm_load_sd(pairs + code[0]), pairs + code[1]);
    __m128d high = _mm_loadh_pd(_mm_load_sd(pairs + code[2]), pairs + code[3]);
    return _mm256_castpd_ps(_mm256_set_m128d(high, low));
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
    return _mm512_insertf32x8(_mm512_castps256_ps512(look_up8(codes + at / 2)), look_up8(codes + at / 2 + 4), 1);
}

#endif
