/* SPDX-License-Identifier: Apache-2.0 */
#include "reader/elementwise_loops.h"

static const lode_elementwise_t plain = LODE_ELEMENTWISE_TABLE("plain");

#ifdef LODE_ELEMENTWISE_X86
extern const lode_elementwise_t lode_elementwise_avx2, lode_elementwise_avx512;

const lode_elementwise_t *lode_elementwise_level(uint32_t i)
{
    if (i == 1 && __builtin_cpu_supports("avx2"))
        return &lode_elementwise_avx2;
    if (i == 2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("avx512f"))
        return &lode_elementwise_avx512;
    return i ? NULL : &plain;
}
#else
const lode_elementwise_t *lode_elementwise_level(uint32_t i)
{
    return i ? NULL : &plain;
}
#endif

const lode_elementwise_t *lode_elementwise(void)
{
    uint32_t i = 0;
    while (lode_elementwise_level(i + 1))
        i++;
    return lode_elementwise_level(i);
}

static float from_bf16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* A number below 2^-14 is so many times 2^-24; else the exponent's bias differs by 112. */
static float from_fp16(uint16_t half)
{
    uint32_t exponent = half >> 10 & 31, fraction = half & 1023, sign = (uint32_t)(half & 0x8000) << 16;
    uint32_t bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    float x;
    memcpy(&x, &bits, sizeof x);
    if (exponent)
        return x;
    return (half & 0x8000 ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f;
}

static void to_fp32(lode_dtype_t from, const void *x, float *out, size_t n)
{
    const uint16_t *halves = x;
    if (from == LODE_FP32)
        memcpy(out, x, n * sizeof *out);
    else if (from == LODE_BF16)
        for (size_t i = 0; i < n; i++)
            out[i] = from_bf16(halves[i]);
    else
        for (size_t i = 0; i < n; i++)
            out[i] = from_fp16(halves[i]);
}

void lode_convert(lode_dtype_t from, const void *x, lode_dtype_t to, void *out, size_t n)
{
    enum { ROOM = 1024 };
    float some[ROOM];
    size_t bytes = from == LODE_FP32 ? 4 : 2;
    if (to == LODE_FP32)
        to_fp32(from, x, out, n);
    else if (from == LODE_BF16)
        memcpy(out, x, n * sizeof(uint16_t));
    else
        for (size_t i = 0; i < n; i += ROOM) {
            size_t count = n - i < ROOM ? n - i : ROOM;
            to_fp32(from, (const uint8_t *)x + i * bytes, some, count);
            to_bf16(some, (uint16_t *)out + i, count);
        }
}
