/* SPDX-License-Identifier: Apache-2.0 */
/* Conversions, transforms and copies. Ends of less than a vector are left to the scalar forms. */
#include "kernels/avx2/avx2.h"
#include "kernels/scalar/scalar.h"

void lode_avx2_widen(lode_dtype_t dtype, const void *src, float *dst, size_t n)
{
    const uint8_t *at = src;
    size_t i = 0;
    for (; dtype != LODE_FP32 && i + 8 <= n; i += 8) {
        __m128i halves = _mm_loadu_si128((const __m128i *)(at + 2 * i));
        _mm256_storeu_ps(dst + i, dtype == LODE_BF16 ? widen_bf16(at + 2 * i) : _mm256_cvtph_ps(halves));
    }
    lode_scalar_widen(dtype, at + 2 * i, dst + i, n - i);
}

/* Round to nearest even; a NaN stays one, quiet. */
LODE_INLINE __m128i narrow_bf16(__m256 x)
{
    __m256i bits = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}

void lode_avx2_narrow(lode_dtype_t dtype, const float *src, void *dst, size_t n)
{
    uint8_t *at = dst;
    size_t i = 0;
    for (; dtype != LODE_FP32 && i + 8 <= n; i += 8) {
        __m256 x = _mm256_loadu_ps(src + i);
        __m128i halves = dtype == LODE_BF16 ? narrow_bf16(x) : _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(at + 2 * i), halves);
    }
    lode_scalar_narrow(dtype, src + i, at + 2 * i, n - i);
}

size_t lode_avx2_first_nonfinite(const float *x, size_t n)
{
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    for (size_t i = 0; i < n; i += 8) {
        __m256i bits = _mm256_castps_si256(_mm256_maskload_ps(x + i, lanes(n - i)));
        __m256i bad = _mm256_cmpeq_epi32(_mm256_and_si256(bits, exponent), exponent);
        int mask = _mm256_movemask_ps(_mm256_castsi256_ps(bad));
        if (mask)
            return i + (size_t)__builtin_ctz((unsigned)mask);
    }
    return n;
}

void lode_avx2_rotate(float *x, uint32_t rows, uint32_t dim, const float *cosine, const float *sine)
{
    uint32_t half = dim / 2;
    for (uint32_t row = 0; row < rows; row++, x += dim)
        for (uint32_t i = 0; i < half; i += 8) {
            __m256i some = lanes(half - i);
            __m256 a = _mm256_maskload_ps(x + i, some), b = _mm256_maskload_ps(x + i + half, some);
            __m256 c = _mm256_maskload_ps(cosine + i, some), s = _mm256_maskload_ps(sine + i, some);
            _mm256_maskstore_ps(x + i, some, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
            _mm256_maskstore_ps(x + i + half, some, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
        }
}

/* One stage inside a vector: `other` holds each lane's partner; `upper` negates the lanes that are second in their
 * pair. */
LODE_INLINE __m256 stage(__m256 x, __m256 other, __m256 upper)
{
    return _mm256_add_ps(other, _mm256_xor_ps(x, upper));
}

LODE_INLINE void hadamard_row(float *x, uint32_t vectors, __m256 scale)
{
    const __m256 odd = _mm256_setr_ps(0, -0.0f, 0, -0.0f, 0, -0.0f, 0, -0.0f);
    const __m256 pairs = _mm256_setr_ps(0, 0, -0.0f, -0.0f, 0, 0, -0.0f, -0.0f);
    const __m256 fours = _mm256_setr_ps(0, 0, 0, 0, -0.0f, -0.0f, -0.0f, -0.0f);
    __m256 v[LODE_MAX_DIM / 8];
    for (uint32_t i = 0; i < vectors; i++) {
        __m256 y = _mm256_loadu_ps(x + 8 * i);
        y = stage(y, _mm256_permute_ps(y, 0xb1), odd);
        y = stage(y, _mm256_permute_ps(y, 0x4e), pairs);
        v[i] = stage(y, _mm256_permute2f128_ps(y, y, 1), fours);
    }
    for (uint32_t apart = 1; apart < vectors; apart *= 2)
        for (uint32_t i = 0; i < vectors; i++)
            if (!(i & apart)) {
                __m256 a = v[i], b = v[i + apart];
                v[i] = _mm256_add_ps(a, b);
                v[i + apart] = _mm256_sub_ps(a, b);
            }
    for (uint32_t i = 0; i < vectors; i++)
        _mm256_storeu_ps(x + 8 * i, _mm256_mul_ps(v[i], scale));
}

void lode_avx2_hadamard(float *x, uint32_t rows, uint32_t dim)
{
    if (dim != 64 && dim != 128 && dim != 256) {
        lode_scalar_hadamard(x, rows, dim);
        return;
    }
    __m256 scale = _mm256_set1_ps(1 / sqrtf((float)dim));
    for (uint32_t row = 0; row < rows; row++, x += dim) {
        if (dim == 128)
            hadamard_row(x, 16, scale);
        else if (dim == 64)
            hadamard_row(x, 8, scale);
        else
            hadamard_row(x, 32, scale);
    }
}

/* 16 columns of `rows` rows: a load of the matrix serves all rows. */
LODE_INLINE void project_part(const float *matrix, uint32_t dim, uint32_t rows, const float *in, float *out)
{
    __m256 sum[4][2];
    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t v = 0; v < 2; v++)
            sum[row][v] = _mm256_setzero_ps();
    for (uint32_t i = 0; i < dim; i++, matrix += dim)
        for (uint32_t v = 0; v < 2; v++) {
            __m256 m = _mm256_loadu_ps(matrix + 8 * v);
            for (uint32_t row = 0; row < rows; row++)
                sum[row][v] = _mm256_add_ps(sum[row][v], _mm256_mul_ps(_mm256_set1_ps(in[row * dim + i]), m));
        }
    for (uint32_t row = 0; row < rows; row++)
        for (uint32_t v = 0; v < 2; v++)
            _mm256_storeu_ps(out + row * dim + 8 * v, sum[row][v]);
}

void lode_avx2_project(const float *matrix, uint32_t dim, float *x, uint32_t rows)
{
    float in[4 * LODE_MAX_DIM];
    for (uint32_t part; rows > 0; rows -= part, x += part * dim) {
        part = rows < 4 ? 1 : 4;
        memcpy(in, x, part * dim * sizeof *in);
        for (uint32_t at = 0; at < dim; at += 16) {
            if (part == 4)
                project_part(matrix + at, dim, 4, in, x + at);
            else
                project_part(matrix + at, dim, 1, in, x + at);
        }
    }
}

void lode_avx2_dot_rows(const float *a, const float *x, uint32_t rows, uint32_t dim, float *y)
{
    for (uint32_t row = 0; row < rows; row++, x += dim) {
        __m256 sum = _mm256_setzero_ps(), sum2 = _mm256_setzero_ps();
        for (uint32_t i = 0; i < dim; i += 16) {
            __m256i low = lanes(dim - i), high = lanes(dim - i > 8 ? dim - i - 8 : 0);
            sum = _mm256_fmadd_ps(_mm256_maskload_ps(a + i, low), _mm256_maskload_ps(x + i, low), sum);
            sum2 = _mm256_fmadd_ps(_mm256_maskload_ps(a + i + 8, high), _mm256_maskload_ps(x + i + 8, high), sum2);
        }
        y[row] = fold(sum, sum2);
    }
}

/* Copy a piece, and ask line by line for one that comes later. */
LODE_INLINE void copy_piece(uint8_t *dst, const uint8_t *src, size_t bytes, const uint8_t *next)
{
    size_t at = 0;
    for (; at + 64 <= bytes; at += 64) {
        _mm_prefetch((const char *)next + at, _MM_HINT_T0);
        __m256i low = _mm256_loadu_si256((const __m256i *)(src + at));
        __m256i high = _mm256_loadu_si256((const __m256i *)(src + at + 32));
        _mm256_storeu_si256((__m256i *)(dst + at), low);
        _mm256_storeu_si256((__m256i *)(dst + at + 32), high);
    }
    _mm_prefetch((const char *)next + bytes - 1, _MM_HINT_T0);
    if (at < bytes) {
        _mm_prefetch((const char *)next + at, _MM_HINT_T0);
        memcpy(dst + at, src + at, bytes - at);
    }
}

/*
 * Two lines and the end of the piece after the one that is asked for: enough for the second-level cache to begin on
 * its own. Wider vectors (AVX-512 has no form of its own), streaming stores and a string copy were all slower:
 * lab/gather.c.
 */
void lode_avx2_gather(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes)
{
    const size_t ahead = bytes >= 2048 ? 1 : 4;
    for (size_t i = 0; bytes && i < count; i++, dst += bytes) {
        const uint8_t *next = src[i + ahead < count ? i + ahead : i];
        if (i + ahead + 1 < count) {
            const char *later = (const char *)src[i + ahead + 1];
            _mm_prefetch(later, _MM_HINT_T1);
            _mm_prefetch(later + 128, _MM_HINT_T1);
            _mm_prefetch(later + bytes - 1, _MM_HINT_T1);
        }
        copy_piece(dst, src[i], bytes, next);
    }
}

void lode_avx2_merge(float *out, float *lse, const float *part, const float *part_lse, uint32_t rows, uint32_t dim)
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
        __m256 keep = _mm256_set1_ps(mine / sum), take = _mm256_set1_ps(theirs / sum);
        for (uint32_t i = 0; i < dim; i += 8) {
            __m256i some = lanes(dim - i);
            __m256 added = _mm256_mul_ps(take, _mm256_maskload_ps(part + i, some));
            _mm256_maskstore_ps(out + i, some, _mm256_fmadd_ps(keep, _mm256_maskload_ps(out + i, some), added));
        }
        lse[row] = greatest + logf(sum);
    }
}
