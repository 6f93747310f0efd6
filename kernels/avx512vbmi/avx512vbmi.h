/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file avx512vbmi.h
 * @brief AVX-512 with VBMI, and VNNI: looking up 64 bytes in a table of 64. LODE_EMULATE: as in avx512vnni.h.
 */
#ifndef LODE_KERNELS_AVX512VBMI_H
#define LODE_KERNELS_AVX512VBMI_H

#include "kernels/avx512vnni/avx512vnni.h"

void lode_avx512vbmi_landmark_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                                    const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                                    float *scratch);
void lode_avx512vbmi_landmark_score_emulated(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles,
                                             size_t n, const lode_landmark_query_t *queries, uint32_t group, float *out,
                                             size_t stride, float *scratch);

#ifdef LODE_EMULATE
/* VPERMB: each byte is that of the table which the low six bits of its index name. */
static inline __m512i look_up(__m512i index, __m512i table)
{
    uint8_t at[64], from[64], to[64];
    memcpy(at, &index, sizeof at);
    memcpy(from, &table, sizeof from);
    for (int i = 0; i < 64; i++)
        to[i] = from[at[i] & 63];
    memcpy(&index, to, sizeof to);
    return index;
}
#else
#define look_up _mm512_permutexvar_epi8
#endif

#endif
