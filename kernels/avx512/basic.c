/* SPDX-License-Identifier: Apache-2.0 */
/* Conversions, transforms and copies. */
#include "kernels/avx512/avx512.h"
#include "kernels/scalar/scalar.h"

void lode_avx512_widen(lode_dtype_t dtype, const void *src, float *dst, size_t n)
{
    if (dtype == LODE_FP32) {
        memcpy(dst, src, n * sizeof *dst);
        return;
    }
    const uint8_t *at = src;
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 some = lanes(n - i);
        __m256i halves = _mm256_maskz_loadu_epi16(some, at + 2 * i);
        __m512 wide = dtype == LODE_BF16 ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))
                                         : _mm512_cvtph_ps(halves);
        _mm512_mask_storeu_ps(dst + i, some, wide);
    }
}

/* Round to nearest even; a NaN stays one, quiet. */
LODE_INLINE __m256i narrow_bf16(__m512 x)
{
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

void lode_avx512_narrow(lode_dtype_t dtype, const float *src, void *dst, size_t n)
{
    if (dtype == LODE_FP32) {
        memcpy(dst, src, n * sizeof *src);
        return;
    }
    uint8_t *at = dst;
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 some = lanes(n - i);
        __m512 x = _mm512_maskz_loadu_ps(some, src + i);
        __m256i halves = dtype == LODE_BF16 ? narrow_bf16(x) : _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
        _mm256_mask_storeu_epi16(at + 2 * i, some, halves);
    }
}

size_t lode_avx512_first_nonfinite(const float *x, size_t n)
{
    enum { NAN_OR_INFINITE = 0x99 };
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 bad = _mm512_fpclass_ps_mask(_mm512_maskz_loadu_ps(lanes(n - i), x + i), NAN_OR_INFINITE);
        if (bad)
            return i + (size_t)__builtin_ctz(bad);
    }
    return n;
}

void lode_avx512_rotate(float *x, uint32_t rows, uint32_t dim, const float *cosine, const float *sine)
{
    uint32_t half = dim / 2;
    for (uint32_t row = 0; row < rows; row++, x += dim)
        for (uint32_t i = 0; i < half; i += 16) {
            __mmask16 some = lanes(half - i);
            __m512 a = _mm512_maskz_loadu_ps(some, x + i), b = _mm512_maskz_loadu_ps(some, x + i + half);
            __m512 c = _mm512_maskz_loadu_ps(some, cosine + i), s = _mm512_maskz_loadu_ps(some, sine + i);
            _mm512_mask_storeu_ps(x + i, some, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
            _mm512_mask_storeu_ps(x + i + half, some, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
        }
}

/* One stage inside a vector: `other` holds each lane's partner; the lanes of `upper` are second in their pair. */
LODE_INLINE __m512 stage(__m512 x, __m512 other, __mmask16 upper)
{
    return _mm512_mask_sub_ps(_mm512_add_ps(x, other), upper, other, x);
}

LODE_INLINE void hadamard_row(float *x, uint32_t vectors, __m512 scale)
{
    __m512 v[LODE_MAX_DIM / 16];
    for (uint32_t i = 0; i < vectors; i++) {
        __m512 y = _mm512_loadu_ps(x + 16 * i);
        y = stage(y, _mm512_permute_ps(y, 0xb1), 0xaaaa);
        y = stage(y, _mm512_permute_ps(y, 0x4e), 0xcccc);
        y = stage(y, _mm512_shuffle_f32x4(y, y, 0xb1), 0xf0f0);
        v[i] = stage(y, _mm512_shuffle_f32x4(y, y, 0x4e), 0xff00);
    }
    for (uint32_t apart = 1; apart < vectors; apart *= 2)
        for (uint32_t i = 0; i < vectors; i++)
            if (!(i & apart)) {
                __m512 a = v[i], b = v[i + apart];
                v[i] = _mm512_add_ps(a, b);
                v[i + apart] = _mm512_sub_ps(a, b);
            }
    for (uint32_t i = 0; i < vectors; i++)
        _mm512_storeu_ps(x + 16 * i, _mm512_mul_ps(v[i], scale));
}

void lode_avx512_hadamard(float *x, uint32_t rows, uint32_t dim)
{
    if (dim != 64 && dim != 128 && dim != 256) {
        lode_scalar_hadamard(x, rows, dim);
        return;
    }
    __m512 scale = _mm512_set1_ps(1 / sqrtf((float)dim));
    for (uint32_t row = 0; row < rows; row++, x += dim) {
        if (dim == 128)
            hadamard_row(x, 8, scale);
        else if (dim == 64)
            hadamard_row(x, 4, scale);
        else
            hadamard_row(x, 16, scale);
    }
}

/* 64 columns of `rows` rows: a load of the matrix serves all rows. */
LODE_INLINE void project_part(const float *matrix, uint32_t dim, uint32_t rows, const float *in, float *out)
{
    __m512 sum[4][4];
    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t v = 0; v < 4; v++)
            sum[row][v] = _mm512_setzero_ps();
    for (uint32_t i = 0; i < dim; i++, matrix += dim)
        for (uint32_t v = 0; v < 4; v++) {
            __m512 m = _mm512_loadu_ps(matrix + 16 * v);
            for (uint32_t row = 0; row < rows; row++)
                sum[row][v] = _mm512_add_ps(sum[row][v], _mm512_mul_ps(_mm512_set1_ps(in[row * dim + i]), m));
        }
    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t v = 0; v < 4; v++)
            _mm512_storeu_ps(out + row * dim + 16 * v, sum[row][v]);
}

void lode_avx512_project(const float *matrix, uint32_t dim, float *x, uint32_t rows)
{
    float in[4 * LODE_MAX_DIM];
    for (uint32_t part; rows > 0; rows -= part, x += part * dim) {
        part = rows < 4 ? 1 : 4;
        memcpy(in, x, part * dim * sizeof *in);
        for (uint32_t at = 0; at < dim; at += 64) {
            if (part == 4)
                project_part(matrix + at, dim, 4, in, x + at);
            else
                project_part(matrix + at, dim, 1, in, x + at);
        }
    }
}

void lode_avx512_dot_rows(const float *a, const float *x, uint32_t rows, uint32_t dim, float *y)
{
    for (uint32_t row = 0; row < rows; row++, x += dim) {
        __m512 sum = _mm512_setzero_ps(), sum2 = _mm512_setzero_ps();
        for (uint32_t i = 0; i < dim; i += 32) {
            __mmask16 low = lanes(dim - i), high = dim - i > 16 ? lanes(dim - i - 16) : 0;
            sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(low, a + i), _mm512_maskz_loadu_ps(low, x + i), sum);
            sum2 =
                _mm512_fmadd_ps(_mm512_maskz_loadu_ps(high, a + i + 16), _mm512_maskz_loadu_ps(high, x + i + 16), sum2);
        }
        y[row] = fold(_mm512_add_ps(sum, sum2));
    }
}

void lode_avx512_merge(float *out, float *lse, const float *part, const float *part_lse, uint32_t rows, uint32_t dim)
{
    for (uint32_t row = 0; row < rows; row++, out += dim, part += dim) {
        if (part_lse[row] == -INFINITY)
            continue;
        if (lse[row] == -INFINITY) {
            memcpy(out, part, dim * sizeof *out);
            lse[row] = part_lse[row];
            continue;
        }
        float greatest = fmaxf(lse[row], part_lse[row]);
        float mine = expf(lse[row] - greatest), theirs = expf(part_lse[row] - greatest), sum = mine + theirs;
        __m512 keep = _mm512_set1_ps(mine / sum), take = _mm512_set1_ps(theirs / sum);
        for (uint32_t i = 0; i < dim; i += 16) {
            __mmask16 some = lanes(dim - i);
            __m512 added = _mm512_mul_ps(take, _mm512_maskz_loadu_ps(some, part + i));
            added = _mm512_fmadd_ps(keep, _mm512_maskz_loadu_ps(some, out + i), added);
            _mm512_mask_storeu_ps(out + i, some, added);
        }
        lse[row] = greatest + logf(sum);
    }
}
