/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scoring landmarks. A 32-byte vector holds one 4-byte word of 8 landmarks, so sums stay in their lanes and
 * nothing is added across. 16 landmarks, half a tile, go together as two vectors; queries go in parts of up to
 * two, as many sums as registers hold.
 */
#include "kernels/avx2/avx2.h"

typedef struct scan {
    uint32_t dim, words; /* of a row */
    size_t tile_bytes, code_bytes;
    const uint8_t *tiles;
    size_t n, stride;
    size_t ahead; /* bytes: what is asked for before it is due */
} scan_t;

/* Scores of 8 landmarks, from `first` on, as far as they are asked for. */
LODE_INLINE void put(float *out, size_t first, size_t n, __m256 score)
{
    if (first < n)
        _mm256_maskstore_ps(out + first, lanes(n - first), score);
}

/* Add to a sum, in this order: see avx512/landmark.c. */
#define ADD(add, sum, term)      \
    do {                         \
        (sum) = add(sum, term);  \
        __asm__("" : "+x"(sum)); \
    } while (0)

/* The end of lode_uniform_score. */
LODE_INLINE __m256 uniform_end(const lode_landmark_query_t *query, __m256i t, const uint8_t *scales)
{
    __m256 score = _mm256_mul_ps(_mm256_set1_ps(query->scale), _mm256_cvtepi32_ps(t));
    return _mm256_add_ps(_mm256_mul_ps(score, widen_bf16(scales)), _mm256_set1_ps(query->bias));
}

LODE_INLINE const uint8_t *words_of(const scan_t *scan, size_t first)
{
    return scan->tiles + first / LODE_TILE * scan->tile_bytes + first % LODE_TILE * scan->code_bytes;
}

LODE_INLINE const uint8_t *scales_of(const scan_t *scan, size_t first)
{
    const uint8_t *tile = scan->tiles + first / LODE_TILE * scan->tile_bytes;
    return tile + LODE_TILE * scan->code_bytes + first % LODE_TILE * 2;
}

/* Memory comes by itself only to the end of a small page; asking goes on. What is shorter has nothing to ask for. */
#define AHEAD 4096
LODE_INLINE size_t ahead_of(size_t tile_bytes, size_t n)
{
    return (n + LODE_TILE - 1) / LODE_TILE * tile_bytes > AHEAD ? AHEAD : 0;
}

LODE_INLINE __m256i load(const scan_t *scan, const uint8_t *words, uint32_t word, uint32_t half)
{
    if (half == 0)
        _mm_prefetch((const char *)words + 64 * word + scan->ahead, _MM_HINT_T0);
    return _mm256_load_si256((const __m256i *)(words + 64 * word + 32 * half));
}

/*
 * 4 and 2 bit. Codes are at most 15 (3) and q8 at most 127, so a pair's sum is at most 3810 (762) and eight
 * (thirty-two) of them fit 16 bits: sums are widened every four (eight) words.
 */
LODE_INLINE void scan_packed(uint32_t bits, uint32_t group, const scan_t *scan, const lode_landmark_query_t *queries,
                             float *out)
{
    const uint32_t fields = 8 / bits, most = bits == 4 ? 4 : 8, run = scan->words < most ? scan->words : most;
    const __m256i mask = _mm256_set1_epi8(bits == 4 ? 15 : 3), ones = _mm256_set1_epi16(1);
    for (size_t first = 0; first < scan->n; first += 16) {
        const uint8_t *words = words_of(scan, first), *scales = scales_of(scan, first);
        __m256i sum[2][2] = {{_mm256_setzero_si256(), _mm256_setzero_si256()},
                             {_mm256_setzero_si256(), _mm256_setzero_si256()}};
        for (uint32_t begin = 0; begin < scan->words; begin += run) {
            __m256i narrow[2][2] = {{_mm256_setzero_si256(), _mm256_setzero_si256()},
                                    {_mm256_setzero_si256(), _mm256_setzero_si256()}};
            for (uint32_t word = begin; word < begin + run; word++) {
                __m256i low = load(scan, words, word, 0), high = load(scan, words, word, 1);
                for (uint32_t m = 0; m < fields; m++) {
                    __m256i a = _mm256_and_si256(_mm256_srli_epi16(low, (int)(bits * m)), mask);
                    __m256i b = _mm256_and_si256(_mm256_srli_epi16(high, (int)(bits * m)), mask);
                    for (uint32_t g = 0; g < group; g++) {
                        __m256i q = _mm256_set1_epi32((int32_t)lode_load32(queries[g].q8 + (word * fields + m) * 4));
                        ADD(_mm256_add_epi16, narrow[0][g], _mm256_maddubs_epi16(a, q));
                        ADD(_mm256_add_epi16, narrow[1][g], _mm256_maddubs_epi16(b, q));
                    }
                }
            }
            for (uint32_t g = 0; g < group; g++) {
                sum[0][g] = _mm256_add_epi32(sum[0][g], _mm256_madd_epi16(narrow[0][g], ones));
                sum[1][g] = _mm256_add_epi32(sum[1][g], _mm256_madd_epi16(narrow[1][g], ones));
            }
        }
        for (uint32_t g = 0; g < group; g++) {
            __m256i centre = _mm256_set1_epi32(((1 << bits) - 1) * queries[g].sum);
            for (uint32_t h = 0; h < 2; h++) {
                __m256i t = _mm256_sub_epi32(_mm256_slli_epi32(sum[h][g], 1), centre);
                put(out + g * scan->stride, first + 8 * h, scan->n, uniform_end(&queries[g], t, scales + 16 * h));
            }
        }
    }
}

/*
 * The words of 16 landmarks, [landmark][byte], as [byte][landmark]: each half of the two vectors has a table of its
 * own.
 */
LODE_INLINE void bytes_apart(const uint8_t *words, __m256i apart[2])
{
    const __m256i within = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9,
                                            13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m256i low = _mm256_load_si256((const __m256i *)words), high = _mm256_load_si256((const __m256i *)(words + 32));
    __m256i outer = _mm256_shuffle_epi8(_mm256_permute2x128_si256(low, high, 0x20), within); /* landmarks 0-3, 8-11 */
    __m256i inner = _mm256_shuffle_epi8(_mm256_permute2x128_si256(low, high, 0x31), within); /* landmarks 4-7, 12-15 */
    apart[0] = _mm256_permute4x64_epi64(_mm256_unpacklo_epi32(outer, inner), 0xd8);
    apart[1] = _mm256_permute4x64_epi64(_mm256_unpackhi_epi32(outer, inner), 0xd8);
}

/* 1 bit: see avx512/landmark.c. */
LODE_INLINE void scan_signs(uint32_t group, const scan_t *scan, const lode_landmark_query_t *queries, float *out)
{
    const __m256i nibble = _mm256_set1_epi8(15), byte = _mm256_set1_epi16(255);
    for (size_t first = 0; first < scan->n; first += 16) {
        const uint8_t *words = words_of(scan, first), *scales = scales_of(scan, first);
        __m256i even[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, odd[2] = {even[0], even[1]};
        for (uint32_t word = 0; word < scan->words; word++) {
            __m256i apart[2];
            bytes_apart(words + 64 * word, apart);
            _mm_prefetch((const char *)words + 64 * word + scan->ahead, _MM_HINT_T0);
            for (uint32_t h = 0; h < 2; h++) {
                __m256i low = _mm256_and_si256(apart[h], nibble);
                __m256i high = _mm256_and_si256(_mm256_srli_epi16(apart[h], 4), nibble);
                for (uint32_t g = 0; g < group; g++) {
                    const uint8_t(*signs)[64] = queries[g].signs[word];
                    __m256i sum = _mm256_add_epi8(
                        _mm256_shuffle_epi8(_mm256_load_si256((const __m256i *)(signs[0] + 32 * h)), low),
                        _mm256_shuffle_epi8(_mm256_load_si256((const __m256i *)(signs[1] + 32 * h)), high));
                    ADD(_mm256_add_epi16, even[g], _mm256_and_si256(sum, byte));
                    ADD(_mm256_add_epi16, odd[g], _mm256_srli_epi16(sum, 8));
                }
            }
        }
        for (uint32_t g = 0; g < group; g++) {
            __m128i a = _mm_add_epi16(_mm256_castsi256_si128(even[g]), _mm256_extracti128_si256(even[g], 1));
            __m128i b = _mm_add_epi16(_mm256_castsi256_si128(odd[g]), _mm256_extracti128_si256(odd[g], 1));
            __m128i sums[2] = {_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b)};
            int32_t raised = (int32_t)(scan->dim / 4) * LODE_SIGNS_RAISE;
            for (uint32_t h = 0; h < 2; h++) {
                __m256i t = _mm256_sub_epi32(_mm256_slli_epi32(_mm256_cvtepu16_epi32(sums[h]), 1),
                                             _mm256_set1_epi32(2 * raised + queries[g].sum));
                put(out + g * scan->stride, first + 8 * h, scan->n, uniform_end(&queries[g], t, scales + 16 * h));
            }
        }
    }
}

/* 8 bit: the even and the odd bytes of each word, made 16 bits wide in place, meet the query's even and odd ones. */
LODE_INLINE void scan_bytes(uint32_t group, const scan_t *scan, const lode_landmark_query_t *queries, float *out)
{
    uint32_t pairs[2][LODE_MAX_DIM / 4][2];
    for (uint32_t g = 0; g < group; g++)
        for (uint32_t word = 0; word < scan->words; word++)
            for (uint32_t odd = 0; odd < 2; odd++) {
                const int16_t *q = queries[g].q16 + 4 * word + odd;
                pairs[g][word][odd] = (uint16_t)q[0] | (uint32_t)(uint16_t)q[2] << 16;
            }
    for (size_t first = 0; first < scan->n; first += 16) {
        const uint8_t *words = words_of(scan, first), *scales = scales_of(scan, first);
        __m256i sum[2][2] = {{_mm256_setzero_si256(), _mm256_setzero_si256()},
                             {_mm256_setzero_si256(), _mm256_setzero_si256()}};
        for (uint32_t word = 0; word < scan->words; word++)
            for (uint32_t h = 0; h < 2; h++) {
                __m256i bytes = load(scan, words, word, h), low = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
                __m256i high = _mm256_srai_epi16(bytes, 8);
                for (uint32_t g = 0; g < group; g++) {
                    __m256i even = _mm256_madd_epi16(low, _mm256_set1_epi32((int32_t)pairs[g][word][0]));
                    __m256i odd = _mm256_madd_epi16(high, _mm256_set1_epi32((int32_t)pairs[g][word][1]));
                    ADD(_mm256_add_epi32, sum[h][g], _mm256_add_epi32(even, odd));
                }
            }
        for (uint32_t g = 0; g < group; g++)
            for (uint32_t h = 0; h < 2; h++)
                put(out + g * scan->stride, first + 8 * h, scan->n,
                    uniform_end(&queries[g], sum[h][g], scales + 16 * h));
    }
}

LODE_INLINE void scan_mean(uint32_t group, const scan_t *scan, const lode_landmark_query_t *queries, float *out)
{
    const __m256i upper = _mm256_set1_epi32((int32_t)0xffff0000u);
    for (size_t first = 0; first < scan->n; first += 16) {
        const uint8_t *words = words_of(scan, first);
        __m256 sum[2][2] = {{_mm256_setzero_ps(), _mm256_setzero_ps()}, {_mm256_setzero_ps(), _mm256_setzero_ps()}};
        for (uint32_t word = 0; word < scan->words; word++)
            for (uint32_t h = 0; h < 2; h++) {
                __m256i pairs = load(scan, words, word, h);
                __m256 low = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
                __m256 high = _mm256_castsi256_ps(_mm256_and_si256(pairs, upper));
                for (uint32_t g = 0; g < group; g++) {
                    sum[h][g] = _mm256_fmadd_ps(low, _mm256_set1_ps(queries[g].q32[2 * word]), sum[h][g]);
                    sum[h][g] = _mm256_fmadd_ps(high, _mm256_set1_ps(queries[g].q32[2 * word + 1]), sum[h][g]);
                }
            }
        for (uint32_t g = 0; g < group; g++)
            for (uint32_t h = 0; h < 2; h++)
                put(out + g * scan->stride, first + 8 * h, scan->n,
                    _mm256_add_ps(sum[h][g], _mm256_set1_ps(queries[g].bias)));
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

static void scan_2(const lode_landmark_spec_t *spec, const scan_t *scan, const lode_landmark_query_t *queries,
                   float *out)
{
    scan_part(spec, 2, scan, queries, out);
}

static void scan_1(const lode_landmark_spec_t *spec, const scan_t *scan, const lode_landmark_query_t *queries,
                   float *out)
{
    scan_part(spec, 1, scan, queries, out);
}

void lode_avx2_landmark_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                              const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                              float *scratch)
{
    size_t code_bytes = lode_landmark_code_bytes(spec, dim);
    scan_t scan = {dim, (uint32_t)(code_bytes / 4), lode_landmark_tile_bytes(spec, dim), code_bytes, tiles, n, stride,
                   0};
    scan.ahead = ahead_of(scan.tile_bytes, n);
    if (spec->codec == LODE_LANDMARK_HIGGS) {
        lode_avx2_higgs_score(spec, dim, tiles, n, queries, group, out, stride, scratch);
        return;
    }
    /* The queries' parts share each stretch of tiles while it is in the cache. */
    const size_t stretch = 4096 / LODE_TILE * LODE_TILE;
    for (size_t first = 0; first < n; first += stretch) {
        scan.tiles = tiles + first / LODE_TILE * scan.tile_bytes;
        scan.n = n - first < stretch ? n - first : stretch;
        for (uint32_t g = 0; g < group;) {
            uint32_t part = group - g >= 2 ? 2 : 1;
            float *to = out + g * stride + first;
            (part == 2 ? scan_2 : scan_1)(spec, &scan, queries + g, to);
            g += part;
        }
    }
}
