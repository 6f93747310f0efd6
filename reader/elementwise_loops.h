/* SPDX-License-Identifier: Apache-2.0 */
/* The loops of elementwise.h, for the compiler to vectorise: each elementwise_*.c compiles them with its instructions.
 */
#include <math.h>
#include <string.h>

#include "reader/elementwise.h"

enum { LANES = 16 }; /* sums go to so many places, whatever the width of a vector: the same bits everywhere */

static float square_sum(const float *x, uint32_t n)
{
    float sums[LANES] = {0};
    uint32_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (uint32_t j = 0; j < LANES; j++)
            sums[j] += x[i + j] * x[i + j];
    for (uint32_t j = 0; i + j < n; j++)
        sums[j] += x[i + j] * x[i + j];
    for (uint32_t width = LANES / 2; width; width /= 2)
        for (uint32_t j = 0; j < width; j++)
            sums[j] += sums[j + width];
    return sums[0];
}

static void norm(const float *x, const float *weight, float eps, uint32_t n, float *out)
{
    float scale = 1 / sqrtf(square_sum(x, n) / (float)n + eps);
    for (uint32_t i = 0; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

/* e^x within 2e-7 of it, for x in [−87, 88]; beyond, as at the ends. */
static inline float exponential(float x)
{
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float shift = 12582912.0f; /* 1.5 · 2^23: its sum with a small number is a rounded whole number */
    float shifted = x * 1.44269504f + shift, whole = shifted - shift;
    float f = x - whole * 0.693145752f - whole * 1.42860677e-6f; /* ln 2 in two parts */
    float p = 1.98756915e-4f;
    p = p * f + 1.39819995e-3f;
    p = p * f + 8.33345205e-3f;
    p = p * f + 4.16657962e-2f;
    p = p * f + 1.66666657e-1f;
    p = p * f + 0.5f;
    p = p * f * f + f + 1.0f;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (int32_t)((uint32_t)bits << 23) + 0x3f800000; /* what is above the lowest 9 bits falls out */
    float power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

static void swiglu(const float *restrict gate, const float *restrict up, uint32_t n, float *restrict out)
{
    for (uint32_t i = 0; i < n; i++)
        out[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

static void add(float *restrict x, const float *restrict y, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        x[i] += y[i];
}

static void turn(const float *restrict x, const float *restrict cosine, const float *restrict sine, uint32_t half,
                 float *restrict out)
{
    for (uint32_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        out[i] = a * cosine[i] - b * sine[i];
        out[i + half] = b * cosine[i] + a * sine[i];
    }
}

/* What is no number stays none: its low bits could carry it into another. */
static void to_bf16(const float *restrict x, uint16_t *restrict out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
        out[i] = (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
    }
}

#define LODE_ELEMENTWISE_TABLE(label)                                                               \
    {                                                                                               \
        .name = label, .norm = norm, .swiglu = swiglu, .add = add, .turn = turn, .to_bf16 = to_bf16 \
    }
