/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file numbers.h
 * @brief kernels/internal.h's number formats for device code: the same bits, by operations that no flag fuses.
 */
#ifndef LODE_CUDA_NUMBERS_H
#define LODE_CUDA_NUMBERS_H

#include <cuda_runtime.h>
#include <stdint.h>

static __device__ __forceinline__ float lode_device_bf16_widen(uint32_t x)
{
    return __uint_as_float(x << 16);
}

static __device__ __forceinline__ uint32_t lode_device_bf16_narrow(float x)
{
    const uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return bits >> 16 | 0x40;
    return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

/** As above for a finite number: what would round to infinity becomes the greatest finite one, of either sign. */
static __device__ __forceinline__ uint32_t lode_device_bf16_scale(float x)
{
    const uint32_t rounded = lode_device_bf16_narrow(x);
    return (rounded & 0x7fff) == 0x7f80 ? rounded - 1 : rounded;
}

static __device__ __forceinline__ float lode_device_fp16_widen(uint32_t x)
{
    const uint32_t sign = (x & 0x8000) << 16, magnitude = x & 0x7fff;
    if (magnitude >= 0x7c00)
        return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000u : 0));
    /* The exponent field is 112 too small: times 2^112. */
    return __uint_as_float(sign | __float_as_uint(__fmul_rn(__uint_as_float(magnitude << 13), 0x1p112f)));
}

/** lode_exact_scale() */
static __device__ __forceinline__ float lode_device_exact_scale(float absmax, float *back)
{
    uint32_t exponent = __float_as_uint(absmax) >> 23 & 0xff;
    exponent = min(max(exponent, 1u), 253u);
    *back = __uint_as_float(exponent << 23);
    return __uint_as_float((254 - exponent) << 23);
}

#endif
