/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file internal.h
 * @brief What the instruction sets share: number formats bit by bit, orders of summation, the HIGGS cells.
 *
 * Records and UNIFORM landmark rows must be the same to the bit on every level. So whatever decides a
 * stored code is defined here, once, as plain multiplications and additions (never fused), and sums run
 * in "lane order": 16 running sums, element i in sum i mod 16, then folded by halves. The dimension is
 * always a multiple of 64.
 */
#ifndef LODE_KERNELS_INTERNAL_H
#define LODE_KERNELS_INTERNAL_H

#include <math.h>
#include <string.h>

#include "kernels/kernels.h"

#define LODE_LANES 16

/* Made anew for every constant it is called with. Under a sanitizer that would take compilers a minute a file, to check
 * the same lines many times: there it is a plain function. */
#ifdef LODE_SANITIZED
#define LODE_INLINE static inline
#else
#define LODE_INLINE static inline __attribute__((always_inline))
#endif

/** An instruction set: its filler overwrites what it does better than the level before it. */
typedef struct lode_level {
    const char *name;
    void (*fill)(lode_ops_t *ops);
    bool (*usable)(void); /**< here, given that the level before is */
} lode_level_t;

void lode_scalar_fill(lode_ops_t *ops);
/** The levels of the processor family that was compiled for, above scalar, the last one's name NULL. */
extern const lode_level_t lode_machine_levels[];

/* Parts of the AVX2 level that AVX-512 uses too. */
uint32_t lode_sse42_crc32c(uint32_t seed, const void *data, size_t bytes);
void lode_avx2_higgs_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                           const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                           float *scratch);

/* ------------------------------------------------------------ number formats */

static inline uint32_t lode_float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float lode_bits_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline float lode_bf16_widen(uint16_t x)
{
    return lode_bits_float((uint32_t)x << 16);
}

/** Round to nearest even; a NaN stays one, quiet. */
static inline uint16_t lode_bf16_narrow(float x)
{
    uint32_t bits = lode_float_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

/** As above for a finite scale: what would round to infinity becomes the greatest finite number. */
static inline uint16_t lode_bf16_scale(float x)
{
    uint16_t rounded = lode_bf16_narrow(x);
    return rounded == 0x7f80 ? 0x7f7f : rounded;
}

static inline float lode_fp16_widen(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000) << 16, magnitude = x & 0x7fff;
    if (magnitude >= 0x7c00) /* infinity and NaN (made quiet, as the processors do) */
        return lode_bits_float(sign | 0x7f800000u | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000u : 0));
    /* The exponent field is 112 too small; multiplying by 2^112 mends it, denormals included. */
    return lode_bits_float(sign | lode_float_bits(lode_bits_float(magnitude << 13) * 0x1p112f));
}

static inline uint16_t lode_fp16_narrow(float x)
{
    uint32_t bits = lode_float_bits(x), magnitude = bits & 0x7fffffffu;
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
    if (magnitude >= 0x477ff000u) /* 65520 and more round to infinity */
        return sign | 0x7c00;
    if (magnitude < 0x38800000u) { /* below 2^-14: adding 1/2 leaves multiples of 2^-24 in the low bits, rounded */
        float shifted = lode_bits_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (lode_float_bits(shifted) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((magnitude + 0xfffu + (magnitude >> 13 & 1) - 0x38000000u) >> 13));
}

/* fp8 is OCP E4M3: 448 is the greatest, there is no infinity. Its two NaN codes are never written;
 * they would be read as ±480. */

static inline float lode_fp8_widen(uint8_t x)
{
    /* Shifted into the fields of fp16, the exponent is 8 too small. */
    return lode_fp16_widen((uint16_t)((x & 0x80) << 8 | (x & 0x7f) << 7)) * 256.0f;
}

/** Round to nearest even; above 448 stays 448. */
static inline uint8_t lode_fp8_narrow(float x)
{
    uint32_t bits = lode_float_bits(x), magnitude = bits & 0x7fffffffu;
    uint8_t sign = (uint8_t)(bits >> 24 & 0x80);
    if (magnitude > 0x43e00000u)
        magnitude = 0x43e00000u;
    if (magnitude < 0x3c800000u) { /* below 2^-6: adding 2^14 leaves multiples of 2^-9 in the low bits, rounded */
        float shifted = lode_bits_float(magnitude) + 0x1p14f;
        return (uint8_t)(sign | (lode_float_bits(shifted) - 0x46800000u));
    }
    return (uint8_t)(sign | ((magnitude + 0x7ffffu + (magnitude >> 20 & 1) - 0x3c000000u) >> 20));
}

/** Scale of an fp8 vector: absmax/448 as bf16, rounded up so that nothing saturates; 0 for the zero vector. */
static inline uint16_t lode_fp8_scale(float absmax)
{
    if (absmax == 0)
        return 0;
    float scale = absmax / 448.0f;
    if (scale < 0x1p-126f) /* its inverse must be finite */
        scale = 0x1p-126f;
    uint32_t bits = lode_float_bits(scale);
    return (uint16_t)((bits + 0xffffu) >> 16);
}

/** What to multiply a vector by before lode_fp8_narrow. */
static inline float lode_fp8_inverse(uint16_t scale)
{
    return scale ? 1.0f / lode_bf16_widen(scale) : 0.0f;
}

/**
 * The power of two that brings absmax near 1, and its inverse in @p back; both finite and normal. Quantisers work on
 * the multiplied vector, where squares neither overflow nor vanish; multiplying is exact.
 */
static inline float lode_exact_scale(float absmax, float *back)
{
    uint32_t exponent = lode_float_bits(absmax) >> 23 & 0xff;
    if (exponent < 1)
        exponent = 1;
    if (exponent > 253)
        exponent = 253;
    *back = lode_bits_float(exponent << 23);
    return lode_bits_float((254 - exponent) << 23);
}

/** A float's place in the order of all floats; both zeros have the same. */
static inline uint32_t lode_order_key(float x)
{
    uint32_t bits = lode_float_bits(x + 0.0f);
    return bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
}

static inline float lode_key_score(uint32_t key)
{
    return lode_bits_float(key ^ (key & 0x80000000u ? 0x80000000u : 0xffffffffu));
}

/* ------------------------------------------------------------------- layouts */

/** Bytes of the codes of one vector of a record. */
static inline size_t lode_format_vector_bytes(lode_format_t format, uint32_t dim)
{
    return format == LODE_FORMAT_BF16 ? 2 * (size_t)dim : format == LODE_FORMAT_FP8 ? dim : dim / 2;
}

static inline uint16_t lode_load16(const void *at)
{
    uint16_t x;
    memcpy(&x, at, sizeof x);
    return x;
}

static inline uint32_t lode_load32(const void *at)
{
    uint32_t x;
    memcpy(&x, at, sizeof x);
    return x;
}

static inline void lode_store16(void *at, uint16_t x)
{
    memcpy(at, &x, sizeof x);
}

static inline void lode_store32(void *at, uint32_t x)
{
    memcpy(at, &x, sizeof x);
}

/* ------------------------------------------------------------- UNIFORM codes */

/** Step of the Gaussian-optimal uniform quantiser, in units of the rms: 4 and 16 levels. With 2 it decides nothing. */
#define LODE_UNIFORM_STEP2 0.9957f
#define LODE_UNIFORM_STEP4 0.3352f
static inline float lode_uniform_step(uint32_t bits)
{
    return bits == 4 ? LODE_UNIFORM_STEP4 : bits == 2 ? LODE_UNIFORM_STEP2 : 1.0f;
}

/**
 * 1 bit: the greatest q8. Four coordinates, half a byte of codes, are looked up at once; with this bound the looked-up
 * sums of a byte's halves, each raised by LODE_SIGNS_RAISE so that none is negative, fit a byte together. What the
 * query loses so is a tenth of what the landmarks' own rounding loses.
 */
#define LODE_SIGNS_MOST 15
#define LODE_SIGNS_RAISE (4 * LODE_SIGNS_MOST)

/** Fill query->signs from query->q8: field m of byte j of word w is coordinate 32·w + 4·m + j. */
static inline void lode_signs_prepare(uint32_t dim, lode_landmark_query_t *query)
{
    for (uint32_t word = 0; word < dim / 32; word++)
        for (uint32_t half = 0; half < 2; half++)
            for (uint32_t j = 0; j < 4; j++) {
                const int8_t *q = query->q8 + 32 * word + 16 * half + j;
                uint8_t *sums = query->signs[word][half] + 16 * j;
                sums[0] = LODE_SIGNS_RAISE;
                for (uint32_t value = 1; value < 16; value++) /* a value without its lowest bit was summed before */
                    sums[value] = (uint8_t)(sums[value & (value - 1)] + q[4 * __builtin_ctz(value)]);
            }
}

/**
 * The one expression behind every UNIFORM score, in this order and unfused, so that all levels agree to the bit:
 *
 *   score = (query.scale · (float)t) · row scale + query.bias
 *
 * 4, 2 and 1 bit: t = 2·Σ code·q8 − (levels − 1)·Σ q8, twice the dot product with the centred codes, and query.scale is
 * half the step of q8. 8 bit: t = Σ code·q16, and query.scale is the step of q16.
 */
static inline float lode_uniform_score(const lode_landmark_query_t *query, int32_t t, uint16_t row_scale)
{
    return query->scale * (float)t * lode_bf16_widen(row_scale) + query->bias;
}

/** Prepare what of a query does not depend on its numbers' codes; @return what to multiply a number by, after `*exact`.
 */
static inline float lode_query_begin(uint32_t bits, float absmax, float bias, float *exact,
                                     lode_landmark_query_t *query)
{
    float back, most = bits == 8 ? 32767 : bits == 1 ? LODE_SIGNS_MOST : 127;
    *exact = lode_exact_scale(absmax, &back);
    query->bias = bias;
    query->sum = 0;
    query->scale = absmax / most * (bits == 8 ? 1.0f : 0.5f);
    return absmax > 0 ? most / (absmax * *exact) : 0;
}

/** Pack dim codes, a byte each, to a row: word w holds coordinates w·(32/bits) …, field m of byte j is coordinate 4·m +
 * j. */
static inline void lode_uniform_pack(uint32_t bits, uint32_t dim, const uint8_t *codes, uint8_t *row)
{
    uint32_t fields = 8 / bits;
    for (uint32_t word = 0; word < dim / (4 * fields); word++, row += 4) {
        uint32_t packed = 0;
        for (uint32_t m = 0; m < fields; m++, codes += 4) /* no code leaves its byte, so bytes may go four at once */
            packed |= lode_load32(codes) << bits * m;
        lode_store32(row, packed);
    }
}

/* --------------------------------------------------------------- HIGGS cells */

/** The nearest point of lode_higgs_grid2, lowest index on ties; the distance is (x−a)² + (y−b)² in fp32, unfused. */
uint8_t lode_higgs_nearest2(float x, float y);
/** The nearest point of lode_higgs_grid4; the distance is ((w−a)² + (x−b)²) + ((y−c)² + (z−d)²). */
uint8_t lode_higgs_nearest4(const float *x);
/** Fill the cells that lode_higgs_nearest2 looks in; called once, before any level is handed out. */
void lode_higgs_prepare(void);
/** lode_higgs_grid4 coordinate by coordinate: [4][256]. */
extern float lode_higgs_columns4[4][256];

/* -------------------------------------------------------------------- top-k */

/** What one pass over the scores finds of those ≥ some low bound. */
typedef struct lode_topk_found {
    uint32_t *above;   /**< indices of the scores > high, ascending; room for `most` */
    uint32_t *between; /**< indices of the others, ascending; room for `room` */
    float *scores;     /**< theirs */
    size_t most, room;
    size_t above_count, between_count; /**< how many there are; more than most or room: not all are stored */
} lode_topk_found_t;

/** What an instruction set lends to top-k. To all of it a NaN is as if it were not there. */
typedef struct lode_topk_parts {
    void (*collect)(const float *scores, size_t n, float low, float high, lode_topk_found_t *found);
    /** Indices of the scores > threshold and of the first `ties` that equal it. @return how many */
    size_t (*emit)(const float *scores, size_t n, float threshold, size_t ties, uint32_t *out);
    /** lode_ops_t.note */
    void (*note)(const float *scores, size_t n, uint32_t first, lode_notes_t *notes);
    /** How many are ≥ bound. */
    size_t (*count)(const float *scores, size_t n, float bound);
    /** As emit, of what is noted. */
    void (*emit_noted)(const lode_notes_t *notes, float threshold, size_t ties, uint32_t *out);
} lode_topk_parts_t;

/** Where the next vector of notes goes: past the room they land in the slack behind it, one on the other. */
static inline size_t lode_notes_end(const lode_notes_t *notes)
{
    return notes->count < notes->room ? notes->count : notes->room;
}

/**
 * Exact top-k in one pass: a sample says below which score the k-th does not lie, the pass notes what is above; for
 * many, a sample brackets the k-th score, and the pass keeps what is above and what is inside.
 */
size_t lode_topk_sampled(const lode_topk_parts_t *parts, const float *scores, size_t n, size_t k, uint32_t *out);
/** lode_ops_t.topk_noted; @p topk is what to do when the notes do not serve. */
size_t lode_topk_from_notes(const lode_topk_parts_t *parts,
                            size_t (*topk)(const float *scores, size_t n, size_t k, uint32_t *out), const float *scores,
                            size_t n, size_t k, lode_notes_t *notes, uint32_t *out);
/**
 * The k-th greatest key (1 ≤ k ≤ n) by three histograms over all; *above is how many keys are greater. Those of NaN are
 * the least, so if it is one of them there are fewer than k others.
 */
uint32_t lode_scalar_kth(const float *scores, size_t n, size_t k, size_t *above);

#endif
