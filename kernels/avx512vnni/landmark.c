/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scoring landmarks of 8, 4 and 2 bits. The layout is made for this instruction: a 64-byte vector holds one 4-byte word
 * of 16 landmarks, and a query's four coordinates are one broadcast word; sums are 32 bits wide from the start.
 */
#include "kernels/avx512vnni/avx512vnni.h"

LODE_INLINE void scan_packed(uint32_t bits, uint32_t group, const scan_t *scan, const lode_landmark_query_t *queries,
                             float *out)
{
    const uint32_t fields = 8 / bits;
    const __m512i mask = _mm512_set1_epi8(bits == 4 ? 15 : 3);
    for (size_t first = 0; first < scan->n; first += LODE_TILE) {
        const uint8_t *tile = scan->tiles + first / LODE_TILE * scan->tile_bytes;
        const uint8_t *half[2] = {tile, tile + 16 * scan->code_bytes}, *scales = tile + LODE_TILE * scan->code_bytes;
        __m512i sum[2][4];
        for (uint32_t g = 0; g < group; g++)
            sum[0][g] = sum[1][g] = _mm512_setzero_si512();
        for (uint32_t word = 0; word < scan->words; word++) {
            __m512i low = _mm512_load_si512(half[0] + 64 * word), high = _mm512_load_si512(half[1] + 64 * word);
            ask(scan, half[0] + 64 * word);
            ask(scan, half[1] + 64 * word);
            for (uint32_t m = 0; m < fields; m++) {
                __m512i a = _mm512_and_si512(m ? _mm512_srli_epi16(low, bits * m) : low, mask);
                __m512i b = _mm512_and_si512(m ? _mm512_srli_epi16(high, bits * m) : high, mask);
                for (uint32_t g = 0; g < group; g++) {
                    __m512i q = _mm512_set1_epi32((int32_t)lode_load32(queries[g].q8 + (word * fields + m) * 4));
                    sum[0][g] = dot_bytes(sum[0][g], a, q);
                    sum[1][g] = dot_bytes(sum[1][g], b, q);
                }
            }
        }
        for (uint32_t g = 0; g < group; g++) {
            __m512i centre = _mm512_set1_epi32(((1 << bits) - 1) * queries[g].sum);
            for (uint32_t h = 0; h < 2; h++) {
                __m512i t = _mm512_sub_epi32(_mm512_slli_epi32(sum[h][g], 1), centre);
                put(out + g * scan->stride, first + 16 * h, scan->n, uniform_end(&queries[g], t, scales + 32 * h));
            }
        }
    }
}

/* The bytes of a query's 16-bit numbers apart: q = 256 · high + low. */
typedef struct apart {
    uint32_t low[LODE_MAX_DIM / 4], high[LODE_MAX_DIM / 4]; /* unsigned, signed */
    int32_t raised;                                         /* what codes raised by 128 add to the sum with high */
} apart_t;

static void take_apart(uint32_t words, const lode_landmark_query_t *query, apart_t *apart)
{
    int32_t sum = 0;
    for (uint32_t word = 0; word < words; word++) {
        uint8_t low[4];
        int8_t high[4];
        for (uint32_t j = 0; j < 4; j++) {
            int16_t q = query->q16[4 * word + j];
            low[j] = (uint8_t)(q & 0xff);
            high[j] = (int8_t)((q - low[j]) / 256);
            sum += high[j];
        }
        memcpy(&apart->low[word], low, 4);
        memcpy(&apart->high[word], high, 4);
    }
    apart->raised = 128 * sum;
}

/* 8 bit: signed codes meet the unsigned low bytes as they are; for the signed high bytes they are raised by 128. */
LODE_INLINE void scan_bytes(uint32_t group, const scan_t *scan, const lode_landmark_query_t *queries, float *out)
{
    const __m512i raise = _mm512_set1_epi8((char)0x80);
    apart_t q[4];
    for (uint32_t g = 0; g < group; g++)
        take_apart(scan->words, &queries[g], &q[g]);
    for (size_t first = 0; first < scan->n; first += LODE_TILE) {
        const uint8_t *tile = scan->tiles + first / LODE_TILE * scan->tile_bytes;
        const uint8_t *scales = tile + LODE_TILE * scan->code_bytes;
        __m512i low[2][4], high[2][4];
        for (uint32_t g = 0; g < group; g++)
            low[0][g] = low[1][g] = high[0][g] = high[1][g] = _mm512_setzero_si512();
        for (uint32_t word = 0; word < scan->words; word++)
            for (uint32_t h = 0; h < 2; h++) {
                const uint8_t *words = tile + h * 16 * scan->code_bytes + 64 * word;
                __m512i codes = _mm512_load_si512(words), raised = _mm512_xor_si512(codes, raise);
                ask(scan, words);
                for (uint32_t g = 0; g < group; g++) {
                    low[h][g] = dot_bytes(low[h][g], _mm512_set1_epi32((int32_t)q[g].low[word]), codes);
                    high[h][g] = dot_bytes(high[h][g], raised, _mm512_set1_epi32((int32_t)q[g].high[word]));
                }
            }
        for (uint32_t g = 0; g < group; g++)
            for (uint32_t h = 0; h < 2; h++) {
                __m512i t = _mm512_sub_epi32(high[h][g], _mm512_set1_epi32(q[g].raised));
                t = _mm512_add_epi32(_mm512_slli_epi32(t, 8), low[h][g]);
                put(out + g * scan->stride, first + 16 * h, scan->n, uniform_end(&queries[g], t, scales + 32 * h));
            }
    }
}

LODE_INLINE void scan_part(const lode_landmark_spec_t *spec, uint32_t group, const scan_t *scan,
                           const lode_landmark_query_t *queries, float *out)
{
    if (spec->bits == 8)
        scan_bytes(group, scan, queries, out);
    else if (spec->bits == 4)
        scan_packed(4, group, scan, queries, out);
    else
        scan_packed(2, group, scan, queries, out);
}

SCAN_PARTS(scan_part)

#ifdef LODE_EMULATE
#define lode_avx512vnni_landmark_score lode_avx512vnni_landmark_score_emulated
#endif

void lode_avx512vnni_landmark_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                                    const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                                    float *scratch)
{
    if (spec->codec == LODE_LANDMARK_UNIFORM && spec->bits > 1)
        scan_stretches(scan_parts, spec, dim, tiles, n, queries, group, out, stride);
    else
        lode_avx512_landmark_score(spec, dim, tiles, n, queries, group, out, stride, scratch);
}
