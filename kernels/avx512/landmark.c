/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scoring landmarks. A 64-byte vector holds one 4-byte word of 16 landmarks, so sums stay in their lanes and
 * nothing is added across. Both halves of a tile go together, so that a query word is loaded once for 32
 * landmarks; queries go in parts of up to four, as many sums as registers hold.
 */
#include "kernels/avx512/scan.h"

LODE_INLINE __m512i four_of(const int8_t *q8)
{
    return _mm512_set1_epi32((int32_t)lode_load32(q8));
}

/*
 * 4 and 2 bit. Codes are at most 15 (3) and q8 at most 127, so a pair's sum is at most 3810 (762) and eight
 * (thirty-two) of them fit 16 bits: sums are widened every four (eight) words.
 */
LODE_INLINE void scan_packed(uint32_t bits, uint32_t group, const scan_t *scan, const lode_landmark_query_t *queries,
                             float *out)
{
    const uint32_t fields = 8 / bits, most = bits == 4 ? 4 : 8, run = scan->words < most ? scan->words : most;
    const __m512i mask = _mm512_set1_epi8(bits == 4 ? 15 : 3), ones = _mm512_set1_epi16(1);
    for (size_t first = 0; first < scan->n; first += LODE_TILE) {
        const uint8_t *tile = scan->tiles + first / LODE_TILE * scan->tile_bytes;
        const uint8_t *half[2] = {tile, tile + 16 * scan->code_bytes}, *scales = tile + LODE_TILE * scan->code_bytes;
        __m512i sum[2][4];
        for (uint32_t g = 0; g < group; g++)
            sum[0][g] = sum[1][g] = _mm512_setzero_si512();
        for (uint32_t begin = 0; begin < scan->words; begin += run) {
            __m512i narrow[2][4];
            for (uint32_t g = 0; g < group; g++)
                narrow[0][g] = narrow[1][g] = _mm512_setzero_si512();
            for (uint32_t word = begin; word < begin + run; word++) {
                __m512i low = _mm512_load_si512(half[0] + 64 * word), high = _mm512_load_si512(half[1] + 64 * word);
                ask(scan, half[0] + 64 * word);
                ask(scan, half[1] + 64 * word);
                for (uint32_t m = 0; m < fields; m++) {
                    __m512i a = _mm512_and_si512(m ? _mm512_srli_epi16(low, bits * m) : low, mask);
                    __m512i b = _mm512_and_si512(m ? _mm512_srli_epi16(high, bits * m) : high, mask);
                    for (uint32_t g = 0; g < group; g++) {
                        __m512i q = four_of(queries[g].q8 + (word * fields + m) * 4);
                        ADD(_mm512_add_epi16, narrow[0][g], _mm512_maddubs_epi16(a, q));
                        ADD(_mm512_add_epi16, narrow[1][g], _mm512_maddubs_epi16(b, q));
                    }
                }
            }
            for (uint32_t g = 0; g < group; g++) {
                sum[0][g] = _mm512_add_epi32(sum[0][g], _mm512_madd_epi16(narrow[0][g], ones));
                sum[1][g] = _mm512_add_epi32(sum[1][g], _mm512_madd_epi16(narrow[1][g], ones));
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

/* The words of 16 landmarks, [landmark][byte], as [byte][landmark]: each quarter of the vector has a table of its own.
 */
LODE_INLINE __m512i bytes_apart(__m512i words)
{
    const __m512i within = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i across = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(across, _mm512_shuffle_epi8(words, within));
}

/* [even, odd] landmarks' sums, 8 and 8 of 16 bits, of two queries: each is spread over the quarters of its vector. */
LODE_INLINE __m512i add_quarters(const __m512i even[2], const __m512i odd[2])
{
    __m512i half[2];
    for (uint32_t g = 0; g < 2; g++)
        half[g] =
            _mm512_add_epi16(_mm512_shuffle_i64x2(even[g], odd[g], 0x44), _mm512_shuffle_i64x2(even[g], odd[g], 0xee));
    return _mm512_add_epi16(_mm512_shuffle_i64x2(half[0], half[1], 0x88), _mm512_shuffle_i64x2(half[0], half[1], 0xdd));
}

/* Scores of 16 landmarks from t, 8 even and 8 odd ones. */
LODE_INLINE __m512 signs_end(const lode_landmark_query_t *query, __m256i t, const uint8_t *scales)
{
    const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
    return uniform_end(query, _mm512_permutexvar_epi32(order, _mm512_cvtepi16_epi32(t)), scales);
}

/*
 * 1 bit: half a byte, four coordinates, is looked up in its table of 16 sums, 64 of them at once. The sums of a byte's
 * halves fit a byte together (LODE_SIGNS_MOST). From there on they are added in 16 bits, once as pairs of an even and
 * an odd landmark, once the odd ones alone: what the pairs carry over is taken off at the end.
 */
LODE_INLINE void scan_signs(uint32_t group, const scan_t *scan, const lode_landmark_query_t *queries, float *out)
{
    const __m512i nibble = _mm512_set1_epi8(15);
    int16_t centre[4] = {0};
    for (uint32_t g = 0; g < group; g++)
        centre[g] = (int16_t)((int32_t)(scan->dim / 4) * 2 * LODE_SIGNS_RAISE + queries[g].sum);
    for (size_t first = 0; first < scan->n; first += 16) {
        const uint8_t *tile = scan->tiles + first / LODE_TILE * scan->tile_bytes;
        const uint8_t *words = tile + first % LODE_TILE * scan->code_bytes;
        const uint8_t *scales = tile + LODE_TILE * scan->code_bytes + first % LODE_TILE * 2;
        __m512i pairs[4], odd[4];
        for (uint32_t g = 0; g < 4; g++)
            pairs[g] = odd[g] = _mm512_setzero_si512();
        for (uint32_t word = 0; word < scan->words; word++) {
            __m512i codes = bytes_apart(_mm512_load_si512(words + 64 * word));
            __m512i low = _mm512_and_si512(codes, nibble), high = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
            ask(scan, words + 64 * word);
            for (uint32_t g = 0; g < group; g++) {
                __m512i sum = _mm512_add_epi8(_mm512_shuffle_epi8(_mm512_load_si512(queries[g].signs[word][0]), low),
                                              _mm512_shuffle_epi8(_mm512_load_si512(queries[g].signs[word][1]), high));
                ADD(_mm512_add_epi16, pairs[g], sum);
                ADD(_mm512_add_epi16, odd[g], _mm512_srli_epi16(sum, 8));
            }
        }
        for (uint32_t g = 0; g < group; g += 2) {
            for (uint32_t i = g; i < g + 2; i++)
                pairs[i] = _mm512_sub_epi16(pairs[i], _mm512_slli_epi16(odd[i], 8));
            __m512i t = _mm512_slli_epi16(add_quarters(pairs + g, odd + g), 1);
            __m256i a = _mm256_sub_epi16(_mm512_castsi512_si256(t), _mm256_set1_epi16(centre[g]));
            put(out + g * scan->stride, first, scan->n, signs_end(&queries[g], a, scales));
            if (g + 1 == group)
                break;
            __m256i b = _mm256_sub_epi16(_mm512_extracti64x4_epi64(t, 1), _mm256_set1_epi16(centre[g + 1]));
            put(out + (g + 1) * scan->stride, first, scan->n, signs_end(&queries[g + 1], b, scales));
        }
    }
}

/* 8 bit: the even and the odd bytes of each word, made 16 bits wide in place, meet the query's even and odd ones. */
LODE_INLINE void scan_bytes(uint32_t group, const scan_t *scan, const lode_landmark_query_t *queries, float *out)
{
    uint32_t pairs[4][LODE_MAX_DIM / 4][2];
    for (uint32_t g = 0; g < group; g++)
        for (uint32_t word = 0; word < scan->words; word++)
            for (uint32_t odd = 0; odd < 2; odd++) {
                const int16_t *q = queries[g].q16 + 4 * word + odd;
                pairs[g][word][odd] = (uint16_t)q[0] | (uint32_t)(uint16_t)q[2] << 16;
            }
    for (size_t first = 0; first < scan->n; first += LODE_TILE) {
        const uint8_t *tile = scan->tiles + first / LODE_TILE * scan->tile_bytes;
        const uint8_t *scales = tile + LODE_TILE * scan->code_bytes;
        __m512i sum[2][4], odd[2][4];
        for (uint32_t g = 0; g < group; g++)
            sum[0][g] = sum[1][g] = odd[0][g] = odd[1][g] = _mm512_setzero_si512();
        for (uint32_t word = 0; word < scan->words; word++) {
            __m512i low[2], high[2];
            for (uint32_t h = 0; h < 2; h++) {
                const uint8_t *words = tile + h * 16 * scan->code_bytes + 64 * word;
                __m512i bytes = _mm512_load_si512(words);
                ask(scan, words);
                low[h] = _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8);
                high[h] = _mm512_srai_epi16(bytes, 8);
            }
            for (uint32_t g = 0; g < group; g++) {
                __m512i q0 = _mm512_set1_epi32((int32_t)pairs[g][word][0]);
                __m512i q1 = _mm512_set1_epi32((int32_t)pairs[g][word][1]);
                for (uint32_t h = 0; h < 2; h++) {
                    ADD(_mm512_add_epi32, sum[h][g], _mm512_madd_epi16(low[h], q0));
                    ADD(_mm512_add_epi32, odd[h][g], _mm512_madd_epi16(high[h], q1));
                }
            }
        }
        for (uint32_t g = 0; g < group; g++)
            for (uint32_t h = 0; h < 2; h++)
                put(out + g * scan->stride, first + 16 * h, scan->n,
                    uniform_end(&queries[g], _mm512_add_epi32(sum[h][g], odd[h][g]), scales + 32 * h));
    }
}

LODE_INLINE void scan_mean(uint32_t group, const scan_t *scan, const lode_landmark_query_t *queries, float *out)
{
    const __m512i upper = _mm512_set1_epi32((int32_t)0xffff0000u);
    for (size_t first = 0; first < scan->n; first += 16) {
        const uint8_t *words =
            scan->tiles + first / LODE_TILE * scan->tile_bytes + first % LODE_TILE * scan->code_bytes;
        __m512 even[4], odd[4];
        for (uint32_t g = 0; g < group; g++)
            even[g] = odd[g] = _mm512_setzero_ps();
        for (uint32_t word = 0; word < scan->words; word++) {
            __m512i pairs = _mm512_load_si512(words + 64 * word);
            ask(scan, words + 64 * word);
            __m512 low = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
            __m512 high = _mm512_castsi512_ps(_mm512_and_si512(pairs, upper));
            for (uint32_t g = 0; g < group; g++) {
                even[g] = _mm512_fmadd_ps(low, _mm512_set1_ps(queries[g].q32[2 * word]), even[g]);
                odd[g] = _mm512_fmadd_ps(high, _mm512_set1_ps(queries[g].q32[2 * word + 1]), odd[g]);
            }
        }
        for (uint32_t g = 0; g < group; g++) {
            __m512 score = _mm512_add_ps(_mm512_add_ps(even[g], odd[g]), _mm512_set1_ps(queries[g].bias));
            put(out + g * scan->stride, first, scan->n, score);
        }
    }
}

LODE_INLINE void scan_part(const lode_landmark_spec_t *spec, uint32_t group, const scan_t *scan,
                           const lode_landmark_query_t *queries, float *out)
{
    if (spec->codec == LODE_LANDMARK_MEAN)
        scan_mean(group, scan, queries, out);
    else if (spec->bits == 8)
        scan_bytes(group, scan, queries, out);
    else if (spec->bits == 4)
        scan_packed(4, group, scan, queries, out);
    else if (spec->bits == 2)
        scan_packed(2, group, scan, queries, out);
    else
        scan_signs(group, scan, queries, out);
}

SCAN_PARTS(scan_part)

void lode_avx512_landmark_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                                const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                                float *scratch)
{
    if (spec->codec == LODE_LANDMARK_HIGGS)
        lode_avx2_higgs_score(spec, dim, tiles, n, queries, group, out, stride, scratch);
    else
        scan_stretches(scan_parts, spec, dim, tiles, n, queries, group, out, stride);
}

void lode_avx512_query_prepare(const lode_landmark_spec_t *spec, uint32_t dim, const float *q, float bias,
                               lode_landmark_query_t *query)
{
    __m512 most = _mm512_setzero_ps();
    for (uint32_t i = 0; i < dim; i += 16) {
        __m512 x = _mm512_loadu_ps(q + i);
        _mm512_store_ps(query->q32 + i, x);
        most = _mm512_max_ps(most, _mm512_abs_ps(x));
    }
    float absmax = spec->codec == LODE_LANDMARK_UNIFORM ? _mm512_reduce_max_ps(most) : 0, exact;
    float inverse = lode_query_begin(spec->bits, absmax, bias, &exact, query);
    if (spec->codec != LODE_LANDMARK_UNIFORM)
        return;
    __m512i sum = _mm512_setzero_si512();
    for (uint32_t i = 0; i < dim; i += 16) {
        __m512 x = _mm512_mul_ps(_mm512_mul_ps(_mm512_load_ps(query->q32 + i), _mm512_set1_ps(exact)),
                                 _mm512_set1_ps(inverse));
        __m512i code = _mm512_cvtps_epi32(x);
        sum = _mm512_add_epi32(sum, code);
        _mm256_store_si256((__m256i *)(query->q16 + i), _mm512_cvtepi32_epi16(code));
        _mm_store_si128((__m128i *)(query->q8 + i), _mm512_cvtepi32_epi8(code));
    }
    query->sum = _mm512_reduce_add_epi32(sum);
    if (spec->bits == 1)
        lode_signs_prepare(dim, query);
}
