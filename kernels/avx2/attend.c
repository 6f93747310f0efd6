/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention over records anywhere in memory, in blocks of 8. First the keys of a block meet the queries, record by
 * record, while the lines of later ones are on their way; 8 logits a query make one vector for the running
 * softmax; then the values, 8 coordinates of all records at a time, are added up in registers.
 */
#include "kernels/avx2/avx2.h"
#include "kernels/avx2/decode.h"

#define BLOCK 8
#define AHEAD 16

typedef struct attention {
    lode_format_t format;
    uint32_t dim, group;
    size_t vector_bytes, record_bytes;
    const float *q;
    float *out;
    float most[LODE_MAX_GROUP], sum[LODE_MAX_GROUP], shrink[LODE_MAX_GROUP];
    _Alignas(32) float weight[LODE_MAX_GROUP][BLOCK];
    _Alignas(32) __m256 logit[LODE_MAX_GROUP][BLOCK]; /* still 8 partial sums each */
} attention_t;

/* Sum each of 8 vectors; the sums in order. */
LODE_INLINE __m256 sum_each(const __m256 *v)
{
    __m256 four[2];
    for (int i = 0; i < 2; i++)
        four[i] = _mm256_hadd_ps(_mm256_hadd_ps(v[4 * i], v[4 * i + 1]), _mm256_hadd_ps(v[4 * i + 2], v[4 * i + 3]));
    return _mm256_add_ps(_mm256_permute2f128_ps(four[0], four[1], 0x20),
                         _mm256_permute2f128_ps(four[0], four[1], 0x31));
}

LODE_INLINE void keys_of(lode_format_t format, uint32_t group, attention_t *at, uint32_t g, uint32_t r,
                         const uint8_t *codes)
{
    __m256 sum[4];
    for (uint32_t i = 0; i < group; i++)
        sum[i] = _mm256_setzero_ps();
    const float *q = at->q + (size_t)g * at->dim;
    for (uint32_t d = 0; d < at->dim; d += 8) {
        __m256 k = decode8(format, codes, d);
        for (uint32_t i = 0; i < group; i++)
            sum[i] = _mm256_fmadd_ps(k, _mm256_loadu_ps(q + (size_t)i * at->dim + d), sum[i]);
    }
    for (uint32_t i = 0; i < group; i++)
        at->logit[g + i][r] = sum[i];
}

LODE_INLINE void values_of(lode_format_t format, uint32_t group, attention_t *at, uint32_t g,
                           const uint8_t *const *records, uint32_t n)
{
    for (uint32_t d = 0; d < at->dim; d += 8) {
        float *out = at->out + (size_t)g * at->dim + d;
        __m256 sum[4];
        for (uint32_t i = 0; i < group; i++)
            sum[i] = _mm256_mul_ps(_mm256_loadu_ps(out + (size_t)i * at->dim), _mm256_set1_ps(at->shrink[g + i]));
        for (uint32_t r = 0; r < n; r++) {
            __m256 v = decode8(format, records[r] + at->vector_bytes, d);
            for (uint32_t i = 0; i < group; i++)
                sum[i] = _mm256_fmadd_ps(v, _mm256_set1_ps(at->weight[g + i][r]), sum[i]);
        }
        for (uint32_t i = 0; i < group; i++)
            _mm256_storeu_ps(out + (size_t)i * at->dim, sum[i]);
    }
}

/* Logits to weights; how much the old sums shrink. */
LODE_INLINE void softmax(attention_t *at, __m256 some, __m256 key_scale, __m256 value_scale)
{
    for (uint32_t g = 0; g < at->group; g++) {
        __m256 logit = _mm256_mul_ps(sum_each(at->logit[g]), key_scale);
        logit = _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), logit, some);
        float most = fmaxf(at->most[g], greatest_of(logit));
        __m256 weight = exp8(_mm256_sub_ps(logit, _mm256_set1_ps(most)));
        at->shrink[g] = _mm256_cvtss_f32(exp8(_mm256_set1_ps(at->most[g] - most)));
        at->sum[g] = at->sum[g] * at->shrink[g] + fold(weight, _mm256_setzero_ps());
        at->most[g] = most;
        _mm256_store_ps(at->weight[g], _mm256_mul_ps(weight, value_scale));
    }
}

/* Run `call` with the group cut into parts of a constant size. */
#define FOR_PARTS(group, call)           \
    for (uint32_t g = 0; g < (group);) { \
        if ((group)-g >= 4) {            \
            call(4);                     \
            g += 4;                      \
        } else if ((group)-g >= 2) {     \
            call(2);                     \
            g += 2;                      \
        } else {                         \
            call(1);                     \
            g += 1;                      \
        }                                \
    }

LODE_INLINE void attend_blocks(lode_format_t format, attention_t *at, const uint8_t *const *records, size_t n)
{
    for (size_t first = 0; first < n; first += BLOCK) {
        uint32_t count = n - first < BLOCK ? (uint32_t)(n - first) : BLOCK;
        _Alignas(32) float scale[2][BLOCK] = {{0}};
        for (uint32_t r = 0; r < count; r++) {
            const uint8_t *record = records[first + r];
            if (first + r + AHEAD < n)
                for (size_t line = 0; line < at->record_bytes; line += 64)
                    _mm_prefetch(records[first + r + AHEAD] + line, _MM_HINT_T0);
#define KEYS(size) keys_of(format, size, at, g, r, record)
            FOR_PARTS(at->group, KEYS)
#undef KEYS
            scale[0][r] = lode_bf16_widen(lode_load16(record + 2 * at->vector_bytes));
            scale[1][r] = lode_bf16_widen(lode_load16(record + 2 * at->vector_bytes + 2));
        }
        __m256 factor = _mm256_set1_ps(decode_factor(format)), one = _mm256_set1_ps(1);
        __m256 key_scale = format == LODE_FORMAT_BF16 ? one : _mm256_mul_ps(factor, _mm256_load_ps(scale[0]));
        __m256 value_scale = format == LODE_FORMAT_BF16 ? one : _mm256_mul_ps(factor, _mm256_load_ps(scale[1]));
        softmax(at, _mm256_castsi256_ps(lanes(count)), key_scale, value_scale);
#define VALUES(size) values_of(format, size, at, g, records + first, count)
        FOR_PARTS(at->group, VALUES)
#undef VALUES
    }
}

static void attend_bf16(attention_t *at, const uint8_t *const *records, size_t n)
{
    attend_blocks(LODE_FORMAT_BF16, at, records, n);
}

static void attend_fp8(attention_t *at, const uint8_t *const *records, size_t n)
{
    attend_blocks(LODE_FORMAT_FP8, at, records, n);
}

static void attend_higgs4(attention_t *at, const uint8_t *const *records, size_t n)
{
    attend_blocks(LODE_FORMAT_HIGGS4, at, records, n);
}

static void finish(attention_t *at, size_t n, float *lse)
{
    for (uint32_t g = 0; g < at->group; g++) {
        lse[g] = n ? at->most[g] + logf(at->sum[g]) : -INFINITY;
        __m256 share = _mm256_set1_ps(n ? 1 / at->sum[g] : 0);
        for (uint32_t d = 0; d < at->dim; d += 8) {
            float *out = at->out + (size_t)g * at->dim + d;
            _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_loadu_ps(out), share));
        }
    }
}

void lode_avx2_attend(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records, size_t n,
                      const float *q, float *out, float *lse)
{
    _Alignas(64) float query[LODE_MAX_GROUP * LODE_MAX_DIM];
    attention_t at;
    memcpy(query, q, sizeof *q * group * dim);
    if (format == LODE_FORMAT_HIGGS4) /* attend in the space of the codes: there and back once, not per record */
        lode_avx2_hadamard(query, group, dim);
    memset(out, 0, sizeof *out * group * dim);
    at.format = format;
    at.dim = dim;
    at.group = group;
    at.vector_bytes = lode_format_vector_bytes(format, dim);
    at.record_bytes = lode_record_bytes(format, dim);
    at.q = query;
    at.out = out;
    for (uint32_t g = 0; g < group; g++) {
        at.most[g] = -INFINITY;
        at.sum[g] = 0;
    }
    memset(at.logit, 0, sizeof at.logit[0] * group); /* a last block that is short leaves some unset */
    if (format == LODE_FORMAT_BF16)
        attend_bf16(&at, records, n);
    else if (format == LODE_FORMAT_FP8)
        attend_fp8(&at, records, n);
    else
        attend_higgs4(&at, records, n);
    finish(&at, n, lse);
    if (format == LODE_FORMAT_HIGGS4)
        lode_avx2_hadamard(out, group, dim);
}
