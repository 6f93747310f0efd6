/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scoring landmarks for more than four queries at once: up to 16 cost what one does. Codes of 8 bits are multiplied as
 * they lie in memory, packed ones are unpacked to a tile first.
 */
#include "kernels/amx/amx.h"

/* The queries, 64 coordinates a tile; 8 bit: their high and their unsigned low bytes, q = 256 · high + low. */
typedef struct asked {
    _Alignas(64) int8_t high[LODE_MAX_DIM / TILE_BYTES][TILE_ROWS][TILE_BYTES];
    _Alignas(64) uint8_t low[LODE_MAX_DIM / TILE_BYTES][TILE_ROWS][TILE_BYTES];
} asked_t;

static void asked_fill(uint32_t bits, uint32_t dim, const lode_landmark_query_t *queries, uint32_t group,
                       asked_t *asked)
{
    memset(asked, 0, sizeof *asked);
    for (uint32_t g = 0; g < group; g++)
        for (uint32_t i = 0; i < dim; i++) {
            int16_t q = bits == 8 ? queries[g].q16[i] : queries[g].q8[i];
            uint8_t low = (uint8_t)(q & 0xff);
            asked->high[i / TILE_BYTES][g][i % TILE_BYTES] = (int8_t)(bits == 8 ? (q - low) / 256 : q);
            asked->low[i / TILE_BYTES][g][i % TILE_BYTES] = low;
        }
}

typedef struct sums {
    _Alignas(64) int32_t high[TILE_ROWS][16];
    _Alignas(64) int32_t low[TILE_ROWS][16];
} sums_t;

/* 16 landmarks of 8 bits: `words` is the first of their codes. */
static void dot_bytes_of(uint32_t dim, const uint8_t *words, const asked_t *asked, sums_t *sums)
{
    tile_zero(0);
    tile_zero(1);
    for (uint32_t part = 0; part < dim / TILE_BYTES; part++, words += TILE_ROWS * TILE_BYTES) {
        for (uint32_t row = 0; row < TILE_ROWS; row++)
            _mm_prefetch(words + TILE_BYTES * row + AHEAD, _MM_HINT_T0);
        tile_load(2, words);
        tile_load(3, asked->high[part]);
        tile_load(4, asked->low[part]);
        tile_dot_ss(0, 3, 2);
        tile_dot_us(1, 4, 2);
    }
    tile_store(0, sums->high);
    tile_store(1, sums->low);
}

/* 16 landmarks of 4, 2 or 1 bits, unpacked 64 coordinates at a time. */
LODE_INLINE void dot_packed_of(uint32_t bits, uint32_t dim, const uint8_t *words, const asked_t *asked, sums_t *sums)
{
    const uint32_t fields = 8 / bits;
    const __m512i mask = _mm512_set1_epi8((char)((1 << bits) - 1));
    _Alignas(64) uint8_t codes[2][TILE_ROWS][TILE_BYTES]; /* by turns, so that one is filled while one is read */
    tile_zero(0);
    for (uint32_t part = 0; part < dim / TILE_BYTES; part++) {
        for (uint32_t word = 0; word < TILE_ROWS / fields; word++, words += TILE_BYTES) {
            __m512i packed = _mm512_load_si512(words);
            _mm_prefetch(words + AHEAD, _MM_HINT_T0);
            for (uint32_t m = 0; m < fields; m++)
                _mm512_store_si512(codes[part % 2][word * fields + m],
                                   _mm512_and_si512(m ? _mm512_srli_epi16(packed, bits * m) : packed, mask));
        }
        tile_load(2, codes[part % 2]);
        tile_load(3, asked->high[part]);
        tile_dot_su(0, 3, 2);
    }
    tile_store(0, sums->high);
}

static void dot_of(uint32_t bits, uint32_t dim, const uint8_t *words, const asked_t *asked, sums_t *sums)
{
    if (bits == 8)
        dot_bytes_of(dim, words, asked, sums);
    else if (bits == 4)
        dot_packed_of(4, dim, words, asked, sums);
    else if (bits == 2)
        dot_packed_of(2, dim, words, asked, sums);
    else
        dot_packed_of(1, dim, words, asked, sums);
}

static void scan_tiles(uint32_t bits, const scan_t *scan, const lode_landmark_query_t *queries, uint32_t group,
                       float *out)
{
    asked_t asked;
    sums_t sums;
    asked_fill(bits, scan->dim, queries, group, &asked);
    tiles_begin();
    for (size_t first = 0; first < scan->n; first += 16) {
        const uint8_t *tile = scan->tiles + first / LODE_TILE * scan->tile_bytes;
        const uint8_t *scales = tile + LODE_TILE * scan->code_bytes + first % LODE_TILE * 2;
        dot_of(bits, scan->dim, tile + first % LODE_TILE * scan->code_bytes, &asked, &sums);
        for (uint32_t g = 0; g < group; g++) {
            __m512i t = _mm512_slli_epi32(_mm512_load_si512(sums.high[g]), bits == 8 ? 8 : 1);
            if (bits == 8)
                t = _mm512_add_epi32(t, _mm512_load_si512(sums.low[g]));
            else
                t = _mm512_sub_epi32(t, _mm512_set1_epi32(((1 << bits) - 1) * queries[g].sum));
            put(out + g * scan->stride, first, scan->n, uniform_end(&queries[g], t, scales));
        }
    }
    tiles_end();
}

#ifdef LODE_EMULATE
#define lode_amx_landmark_score lode_amx_landmark_score_emulated
#define lode_avx512vbmi_landmark_score lode_avx512vbmi_landmark_score_emulated
#endif

void lode_amx_landmark_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                             const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                             float *scratch)
{
    size_t code_bytes = lode_landmark_code_bytes(spec, dim);
    scan_t scan = {dim, (uint32_t)(code_bytes / 4), lode_landmark_tile_bytes(spec, dim), code_bytes, tiles, n, stride,
                   0};
    scan.ahead = ahead_of(scan.tile_bytes, n);
    if (spec->codec == LODE_LANDMARK_UNIFORM && group > 4)
        scan_tiles(spec->bits, &scan, queries, group, out);
    else
        lode_avx512vbmi_landmark_score(spec, dim, tiles, n, queries, group, out, stride, scratch);
}
