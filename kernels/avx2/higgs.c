/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scoring HIGGS landmarks by tables of what each code adds to a score. Four queries go together: their shares of
 * one code lie side by side, so that a single 16-byte load serves them all. (Vector gathers were slower: each of
 * their elements is a load of its own.)
 */
#include "kernels/avx2/avx2.h"

/* table (places, 256, 4): the share of each code at each place in the scores of four queries. */
static void fill_table4(uint32_t d, uint32_t dim, const lode_landmark_query_t *queries, float *table)
{
    _Alignas(16) float q[LODE_MAX_DIM][4]; /* coordinate by coordinate */
    for (uint32_t i = 0; i < dim; i++)
        for (uint32_t g = 0; g < 4; g++)
            q[i][g] = queries[g].q32[i];
    for (uint32_t code = 0; code < 256; code++) {
        const float *point = d == 2 ? lode_higgs_grid2[code] : lode_higgs_grid4[code];
        for (uint32_t at = 0; at < dim; at += d) {
            __m128 sum = _mm_mul_ps(_mm_set1_ps(point[0]), _mm_load_ps(q[at]));
            for (uint32_t j = 1; j < d; j++)
                sum = _mm_fmadd_ps(_mm_set1_ps(point[j]), _mm_load_ps(q[at + j]), sum);
            _mm_store_ps(table + ((size_t)(at / d) * 256 + code) * 4, sum);
        }
    }
}

/* table (places, 256), for one query. */
static void fill_table1(uint32_t d, uint32_t dim, const float *q, float *table)
{
    for (uint32_t at = 0; at < dim; at += d)
        for (uint32_t code = 0; code < 256; code++) {
            const float *point = d == 2 ? lode_higgs_grid2[code] : lode_higgs_grid4[code];
            float sum = point[0] * q[at] + point[1] * q[at + 1];
            if (d == 4)
                sum += point[2] * q[at + 2] + point[3] * q[at + 3];
            *table++ = sum;
        }
}

/* Four scores, before scale and bias, of the landmark whose first word is at `word`. */
LODE_INLINE __m128 look_up4(const uint8_t *word, uint32_t words, const float *table)
{
    __m128 even = _mm_setzero_ps(), odd = _mm_setzero_ps();
    for (uint32_t w = 0; w < words; w++, word += 64, table += 4 * 256 * 4) {
        uint32_t codes = lode_load32(word);
        even = _mm_add_ps(even, _mm_load_ps(table + (codes & 0xff) * 4));
        odd = _mm_add_ps(odd, _mm_load_ps(table + 256 * 4 + (codes >> 8 & 0xff) * 4));
        even = _mm_add_ps(even, _mm_load_ps(table + 256 * 8 + (codes >> 16 & 0xff) * 4));
        odd = _mm_add_ps(odd, _mm_load_ps(table + 256 * 12 + (codes >> 24) * 4));
    }
    return _mm_add_ps(even, odd);
}

LODE_INLINE float look_up1(const uint8_t *word, uint32_t words, const float *table)
{
    float sum[4] = {0};
    for (uint32_t w = 0; w < words; w++, word += 64, table += 4 * 256) {
        uint32_t codes = lode_load32(word);
        sum[0] += table[codes & 0xff];
        sum[1] += table[256 + (codes >> 8 & 0xff)];
        sum[2] += table[512 + (codes >> 16 & 0xff)];
        sum[3] += table[768 + (codes >> 24)];
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static void score_part(uint32_t part, const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                       const lode_landmark_query_t *queries, float *out, size_t stride, const float *table)
{
    size_t code_bytes = lode_landmark_code_bytes(spec, dim), tile_bytes = lode_landmark_tile_bytes(spec, dim);
    uint32_t words = (uint32_t)(code_bytes / 4);
    for (size_t i = 0; i < n; i++) {
        const uint8_t *tile = tiles + i / LODE_TILE * tile_bytes;
        const uint8_t *word = tile + i % LODE_TILE / 16 * 16 * code_bytes + i % 16 * 4;
        float scale = lode_bf16_widen(lode_load16(tile + LODE_TILE * code_bytes + i % LODE_TILE * 2)), sum[4];
        if (part == 4)
            _mm_storeu_ps(sum, look_up4(word, words, table));
        else
            sum[0] = look_up1(word, words, table);
        for (uint32_t g = 0; g < part; g++)
            out[g * stride + i] = sum[g] * scale + queries[g].bias;
    }
}

void lode_avx2_higgs_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                           const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                           float *scratch)
{
    uint32_t d = spec->bits == 4 ? 2 : 4;
    for (uint32_t g = 0; n && g < group;) { /* one table at a time, so that it stays in the cache */
        if (group - g >= 4) {
            fill_table4(d, dim, queries + g, scratch);
            score_part(4, spec, dim, tiles, n, queries + g, out + g * stride, stride, scratch);
            g += 4;
        } else {
            fill_table1(d, dim, queries[g].q32, scratch);
            score_part(1, spec, dim, tiles, n, queries + g, out + g * stride, stride, scratch);
            g += 1;
        }
    }
}
