/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file avx512vnni.h
 * @brief AVX-512 with VNNI: four products of bytes and their sum in one instruction.
 *
 * With LODE_EMULATE the same source is compiled for tests, the new instruction replaced by plain C of what Intel
 * documents, so that it can be compared on processors without it; its functions then end in _emulated.
 */
#ifndef LODE_KERNELS_AVX512VNNI_H
#define LODE_KERNELS_AVX512VNNI_H

#include "kernels/avx512/scan.h"

void lode_avx512vnni_landmark_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                                    const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                                    float *scratch);
void lode_avx512vnni_landmark_score_emulated(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles,
                                             size_t n, const lode_landmark_query_t *queries, uint32_t group, float *out,
                                             size_t stride, float *scratch);

#ifdef LODE_EMULATE
/* VPDPBUSD: to each 32-bit sum the four products of its bytes, a's unsigned, b's signed, without saturation. */
static inline __m512i dot_bytes(__m512i sum, __m512i a, __m512i b)
{
    int32_t total[16];
    uint8_t x[64];
    int8_t y[64];
    memcpy(total, &sum, sizeof total);
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    for (int i = 0; i < 64; i++)
        total[i / 4] += x[i] * y[i];
    memcpy(&sum, total, sizeof total);
    return sum;
}
#else
#define dot_bytes _mm512_dpbusd_epi32
#endif

#endif
