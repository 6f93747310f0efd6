/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file scan.h
 * @brief What the scans of AVX-512 and of the levels above it share: where scores go, how they end, how work is cut.
 */
#ifndef LODE_KERNELS_AVX512_SCAN_H
#define LODE_KERNELS_AVX512_SCAN_H

#include "kernels/avx512/avx512.h"

typedef struct scan {
    uint32_t dim, words; /* of a row */
    size_t tile_bytes, code_bytes;
    const uint8_t *tiles;
    size_t n, stride;
    size_t ahead; /* bytes: what is asked for before it is due */
} scan_t;

/* Scores of half a tile, from landmark `first` on, as far as they are asked for. */
LODE_INLINE void put(float *out, size_t first, size_t n, __m512 score)
{
    if (first < n)
        _mm512_mask_storeu_ps(out + first, lanes(n - first), score);
}

/*
 * Add to a sum, in this order: left to itself the compiler makes trees of additions for which there are not registers
 * enough, and the loop becomes loads and stores.
 */
#define ADD(add, sum, term)      \
    do {                         \
        (sum) = add(sum, term);  \
        __asm__("" : "+v"(sum)); \
    } while (0)

/* Memory comes by itself only to the end of a small page; this goes on. What is shorter has nothing to ask for. */
#define AHEAD 4096
LODE_INLINE size_t ahead_of(size_t tile_bytes, size_t n)
{
    return (n + LODE_TILE - 1) / LODE_TILE * tile_bytes > AHEAD ? AHEAD : 0;
}
LODE_INLINE void ask(const scan_t *scan, const uint8_t *words)
{
    _mm_prefetch(words + scan->ahead, _MM_HINT_T0);
}

/* The end of lode_uniform_score. */
LODE_INLINE __m512 uniform_end(const lode_landmark_query_t *query, __m512i t, const uint8_t *scales)
{
    __m512 score = _mm512_mul_ps(_mm512_set1_ps(query->scale), _mm512_cvtepi32_ps(t));
    return _mm512_add_ps(_mm512_mul_ps(score, widen_bf16(scales)), _mm512_set1_ps(query->bias));
}

typedef void (*scan_part_t)(const lode_landmark_spec_t *spec, const scan_t *scan, const lode_landmark_query_t *queries,
                            float *out);

/* Parts of 4, 2 and 1 queries: `scan_parts` of an always-inline function whose group is then a constant. */
#define SCAN_PARTS(part)                                                                                             \
    static void part##_4(const lode_landmark_spec_t *spec, const scan_t *scan, const lode_landmark_query_t *queries, \
                         float *out)                                                                                 \
    {                                                                                                                \
        part(spec, 4, scan, queries, out);                                                                           \
    }                                                                                                                \
    static void part##_2(const lode_landmark_spec_t *spec, const scan_t *scan, const lode_landmark_query_t *queries, \
                         float *out)                                                                                 \
    {                                                                                                                \
        part(spec, 2, scan, queries, out);                                                                           \
    }                                                                                                                \
    static void part##_1(const lode_landmark_spec_t *spec, const scan_t *scan, const lode_landmark_query_t *queries, \
                         float *out)                                                                                 \
    {                                                                                                                \
        part(spec, 1, scan, queries, out);                                                                           \
    }                                                                                                                \
    static const scan_part_t scan_parts[3] = {part##_4, part##_2, part##_1};

/* The queries' parts share each stretch of tiles while it is in the cache. */
LODE_INLINE void scan_stretches(const scan_part_t *parts, const lode_landmark_spec_t *spec, uint32_t dim,
                                const uint8_t *tiles, size_t n, const lode_landmark_query_t *queries, uint32_t group,
                                float *out, size_t stride)
{
    const size_t stretch = 4096 / LODE_TILE * LODE_TILE, code_bytes = lode_landmark_code_bytes(spec, dim);
    scan_t scan = {dim, (uint32_t)(code_bytes / 4), lode_landmark_tile_bytes(spec, dim), code_bytes, tiles, n, stride,
                   0};
    scan.ahead = ahead_of(scan.tile_bytes, n);
    for (size_t first = 0; first < n; first += stretch) {
        scan.tiles = tiles + first / LODE_TILE * scan.tile_bytes;
        scan.n = n - first < stretch ? n - first : stretch;
        for (uint32_t g = 0; g < group;) {
            uint32_t part = group - g >= 4 ? 4 : group - g >= 2 ? 2 : 1;
            parts[part == 4 ? 0 : part == 2 ? 1 : 2](spec, &scan, queries + g, out + g * stride + first);
            g += part;
        }
    }
}

#endif
