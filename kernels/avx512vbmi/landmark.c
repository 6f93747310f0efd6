/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scoring landmarks of 1 bit. The tables of a word's four bytes, 16 sums each, are one table of 64: bytes are looked up
 * where they are, and a landmark's four are neighbours, which one instruction of VNNI adds up in 32 bits.
 */
#include "kernels/avx512vbmi/avx512vbmi.h"

LODE_INLINE void scan_signs(uint32_t group, const scan_t *scan, const lode_landmark_query_t *queries, float *out)
{
    const __m512i nibble = _mm512_set1_epi8(15), ones = _mm512_set1_epi8(1), table = _mm512_set1_epi32(0x30201000);
    for (size_t first = 0; first < scan->n; first += LODE_TILE) {
        const uint8_t *tile = scan->tiles + first / LODE_TILE * scan->tile_bytes;
        const uint8_t *scales = tile + LODE_TILE * scan->code_bytes;
        __m512i sum[2][4];
        for (uint32_t g = 0; g < group; g++)
            sum[0][g] = sum[1][g] = _mm512_setzero_si512();
        for (uint32_t word = 0; word < scan->words; word++)
            for (uint32_t h = 0; h < 2; h++) {
                const uint8_t *words = tile + h * 16 * scan->code_bytes + 64 * word;
                __m512i codes = _mm512_load_si512(words);
                __m512i low = _mm512_or_si512(_mm512_and_si512(codes, nibble), table);
                __m512i high = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble), table);
                ask(scan, words);
                for (uint32_t g = 0; g < group; g++) {
                    __m512i both = _mm512_add_epi8(look_up(low, _mm512_load_si512(queries[g].signs[word][0])),
                                                   look_up(high, _mm512_load_si512(queries[g].signs[word][1])));
                    sum[h][g] = dot_bytes(sum[h][g], both, ones);
                }
            }
        for (uint32_t g = 0; g < group; g++) {
            int32_t raised = (int32_t)(scan->dim / 4) * 2 * LODE_SIGNS_RAISE;
            __m512i centre = _mm512_set1_epi32(raised + queries[g].sum);
            for (uint32_t h = 0; h < 2; h++) {
                __m512i t = _mm512_sub_epi32(_mm512_slli_epi32(sum[h][g], 1), centre);
                put(out + g * scan->stride, first + 16 * h, scan->n, uniform_end(&queries[g], t, scales + 32 * h));
            }
        }
    }
}

LODE_INLINE void scan_part(const lode_landmark_spec_t *spec, uint32_t group, const scan_t *scan,
                           const lode_landmark_query_t *queries, float *out)
{
    (void)spec;
    scan_signs(group, scan, queries, out);
}

SCAN_PARTS(scan_part)

#ifdef LODE_EMULATE
#define lode_avx512vbmi_landmark_score lode_avx512vbmi_landmark_score_emulated
#define lode_avx512vnni_landmark_score lode_avx512vnni_landmark_score_emulated
#endif

void lode_avx512vbmi_landmark_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                                    const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                                    float *scratch)
{
    if (spec->codec == LODE_LANDMARK_UNIFORM && spec->bits == 1)
        scan_stretches(scan_parts, spec, dim, tiles, n, queries, group, out, stride);
    else
        lode_avx512vnni_landmark_score(spec, dim, tiles, n, queries, group, out, stride, scratch);
}
