/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file prepared.h
 * @brief How query.cu leaves a prepared query for score.cu. Plain C, for the tests too.
 *
 * score.cu multiplies 16 landmarks with 8 columns at once, and each query has two columns next to each other, an even
 * and an odd one, whose sums are put together at the end. A prepared query is a lode_prepared_t, then the *part* of the
 * even column, then that of the odd one. A part is four runs, one for each lane of the four that hold a column, in the
 * order in which that lane needs them: lane t of the four reads words t, t + 4, t + 8 … of the landmarks.
 *
 *   UNIFORM 4, 2, 1 bit  a coordinate is a byte. Codes are multiplied where they lie in their byte if that saves a
 *                        shift, so field m counts times 2^(bits·m), and where that is more than once the low fields'
 *                        share goes to the even column and the high fields' to the odd one (the other has a zero):
 *                        4 bit: field 0 | field 1, which counts 16 times. 2 bit: fields 0, 2 | fields 1, 3, which count
 *                        4 times. 1 bit: fields 0 … 3 | 4 … 7, times 16; and q8 is multiplied by 8, 4, 2, 1, so that
 *                        all of 0 … 3 count 8 times.
 *   UNIFORM 8 bit        q16 = 256·high + low, low −128 … 127, high −128 … 128: two runs of bytes a lane, high and what
 *                        it has above 127 | low and zeros.
 *   HIGGS, MEAN          q32 as bf16 | what that leaves, as bf16.
 */
#ifndef LODE_CUDA_PREPARED_H
#define LODE_CUDA_PREPARED_H

#include "kernels/kernels.h"

#ifdef __CUDACC__
#define LODE_PREPARED_INLINE __host__ __device__ static inline
#else
#define LODE_PREPARED_INLINE static inline
#endif

typedef struct lode_prepared {
    float scale, bias;
    float
        lower; /**< UNIFORM 4, 2, 1 bit: what to add to the odd column's sum: −LODE_MAGIC·weight − the codes' centre */
    uint32_t unused;
} lode_prepared_t;

/** An int32 n, |n| < 2^22, added to the bits of this float gives the float that is greater by n. */
#define LODE_MAGIC_BITS 0x4b400000
#define LODE_MAGIC 12582912.0f

/** UNIFORM 4, 2, 1 bit: what a sum of the odd column counts in t (internal.h). 2 sums of codes make t. */
LODE_PREPARED_INLINE float lode_prepared_odd_weight(uint32_t bits)
{
    return bits == 4 ? 2.0f / 16 : bits == 2 ? 2.0f / 4 : 2.0f / 128;
}

/** The same for the even column. */
LODE_PREPARED_INLINE float lode_prepared_even_weight(uint32_t bits)
{
    return bits == 1 ? 2.0f / 8 : 2.0f;
}

/** Bytes of a part. */
LODE_PREPARED_INLINE uint32_t lode_prepared_part_bytes(lode_landmark_codec_t codec, uint32_t bits, uint32_t dim)
{
    return codec == LODE_LANDMARK_UNIFORM && bits < 8 ? dim : 2 * dim;
}

/** Where in a part the number of a coordinate lies. */
LODE_PREPARED_INLINE uint32_t lode_prepared_place(lode_landmark_codec_t codec, uint32_t bits, uint32_t dim,
                                                  uint32_t coordinate)
{
    uint32_t a_word = 32 / bits; /* coordinates */
    if (codec == LODE_LANDMARK_HIGGS)
        a_word = bits == 4 ? 8 : 16;
    uint32_t word = coordinate / a_word, within = coordinate % a_word;
    uint32_t run = lode_prepared_part_bytes(codec, bits, dim) / 4;
    if (dim / a_word < 4) /* 1 bit, 64 coordinates: two words, half of each a lane */
        return (word + within / 16 * 2) * run + within % 16;
    return word % 4 * run + (word / 4 * a_word + within) * (codec == LODE_LANDMARK_UNIFORM ? 1 : 2);
}

#endif
