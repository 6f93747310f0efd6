/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention over records anywhere in memory, in blocks of 16, as in avx512/attend.c: keys with 8 sums at once (queries
 * × records), softmax of 16 logits a query, values with 8 sums at once, and the lines of the next block asked for in
 * the same loops. bf16 and fp8 are unpacked without moving anything between lanes: even and odd coordinates come apart,
 * and queries and outputs are in that order while at work.
 */
#include "kernels/avx2/avx2.h"
#include "kernels/avx2/decode.h"

#define BLOCK 16

typedef struct attention {
    lode_format_t format;
    uint32_t dim, group;
    size_t vector_bytes, record_bytes;
    const float *q;     /* (…, group, dim) */
    const uint16_t *of; /* which of them a record meets; NULL: the first */
    float *out;
    float most[LODE_MAX_GROUP];
    _Alignas(32) __m256 sum[LODE_MAX_GROUP];           /* of weights, 8 partial sums each */
    _Alignas(32) float weight[LODE_MAX_GROUP][BLOCK];  /* logits before */
    _Alignas(32) uint16_t halves[BLOCK][LODE_MAX_DIM]; /* fp8: a block's keys or values as fp16 */
} attention_t;

/* A block: its records, and those that will be next. */
typedef struct block {
    const uint8_t *at[BLOCK], *next[BLOCK];
    const float *q[BLOCK]; /* what each meets */
    uint32_t count;
} block_t;

LODE_INLINE void fetch_line(const uint8_t *at)
{
    _mm_prefetch((const char *)at, _MM_HINT_T0);
}

/* Sum each of 8 vectors; the sums in order. */
LODE_INLINE __m256 sum_each(const __m256 *v)
{
    __m256 four[2];
    for (int i = 0; i < 2; i++)
        four[i] = _mm256_hadd_ps(_mm256_hadd_ps(v[4 * i], v[4 * i + 1]), _mm256_hadd_ps(v[4 * i + 2], v[4 * i + 3]));
    return _mm256_add_ps(_mm256_permute2f128_ps(four[0], four[1], 0x20),
                         _mm256_permute2f128_ps(four[0], four[1], 0x31));
}

/* ------------------------------------------------------------------ unpacking */

/* Codes of fp8 to fp16 (256 times too small), 32 at a time: 16 even ones, then 16 odd ones. */
LODE_INLINE void halves_of(const uint8_t *codes, const uint8_t *next, uint32_t dim, uint16_t *halves)
{
    const __m256i fields = _mm256_set1_epi16((short)0xbf80);
    for (uint32_t d = 0; d < dim; d += 32) {
        __m256i pairs = _mm256_loadu_si256((const __m256i *)(codes + d));
        __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(pairs, 8), 1), odd = _mm256_srai_epi16(pairs, 1);
        _mm256_store_si256((__m256i *)(halves + d), _mm256_and_si256(even, fields));
        _mm256_store_si256((__m256i *)(halves + d + 16), _mm256_and_si256(odd, fields));
        if (2 * d < dim && d % 64 == 0)
            fetch_line(next + d);
    }
}

/* Vectors i and i + 1 (i is even) of 8 coordinates in working order; codes: of the record, or its row of halves. */
LODE_INLINE void vectors_of(lode_format_t format, const void *codes, uint32_t i, __m256 *x)
{
    const uint8_t *at = codes;
    if (format == LODE_FORMAT_BF16) {
        __m256i pairs = _mm256_loadu_si256((const __m256i *)(at + 16 * i));
        __asm__("" : "+x"(pairs)); /* load it once */
        x[0] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
        x[1] = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32((int32_t)0xffff0000u)));
        return;
    }
    for (uint32_t u = 0; u < 2; u++)
        if (format == LODE_FORMAT_FP8)
            x[u] = _mm256_cvtph_ps(_mm_load_si128((const __m128i *)(at + 16 * (i + u))));
        else
            x[u] = decode8(format, at, 8 * (i + u));
}

/* The coordinate that stands at place i in working order. */
static uint32_t place_of(lode_format_t format, uint32_t i)
{
    if (format == LODE_FORMAT_BF16)
        return i / 16 * 16 + i % 8 * 2 + i / 8 % 2;
    return format == LODE_FORMAT_FP8 ? i / 32 * 32 + i % 16 * 2 + i / 16 % 2 : i;
}

static void to_working_order(lode_format_t format, uint32_t dim, float *x)
{
    float y[LODE_MAX_DIM];
    memcpy(y, x, sizeof *x * dim);
    for (uint32_t i = 0; i < dim; i++)
        x[i] = y[place_of(format, i)];
}

static void from_working_order(lode_format_t format, uint32_t dim, float *x)
{
    float y[LODE_MAX_DIM];
    memcpy(y, x, sizeof *x * dim);
    for (uint32_t i = 0; i < dim; i++)
        x[place_of(format, i)] = y[i];
}

/* --------------------------------------------------------------- the two loops */

/*
 * Ask for what of a record is as far in as vector i (even) of this one. In fp8 the first half of the lines was asked
 * for when this one was made fp16.
 */
LODE_INLINE void ask(lode_format_t format, const uint8_t *codes, uint32_t dim, uint32_t i)
{
    if (format == LODE_FORMAT_BF16 && i % 4 == 0)
        fetch_line(codes + 16 * i);
    else if (format == LODE_FORMAT_FP8 && i % 16 == 0)
        fetch_line(codes + dim / 2 + 4 * i);
    else if (format == LODE_FORMAT_HIGGS4 && i % 16 == 0)
        fetch_line(codes + 4 * i);
}

/* @p each: the records meet queries of their own, else all meet the first one's. */
LODE_INLINE void keys_of(lode_format_t format, uint32_t dim, uint32_t group, attention_t *at, uint32_t g,
                         const block_t *block, bool first, bool each)
{
    enum { SUMS = 8 };
    const uint32_t together = SUMS / group; /* records */
    const float *q = block->q[0] + g * dim;
    for (uint32_t r = 0; r < BLOCK; r += together) {
        __m256 sum[SUMS];
        for (uint32_t i = 0; i < SUMS; i++)
            sum[i] = _mm256_setzero_ps();
#pragma GCC unroll 2
        for (uint32_t v = 0; v < dim / 8; v += 2)
            for (uint32_t t = 0; t < together; t++) {
                __m256 k[2];
                vectors_of(format, format == LODE_FORMAT_FP8 ? (const void *)at->halves[r + t] : block->at[r + t], v,
                           k);
                if (first)
                    ask(format, block->next[r + t], dim, v);
                for (uint32_t u = 0; u < 2; u++)
                    for (uint32_t i = 0; i < group; i++) {
                        const float *x = (each ? block->q[r + t] + g * dim : q) + i * dim + 8 * (v + u);
                        sum[i * together + t] = _mm256_fmadd_ps(k[u], _mm256_loadu_ps(x), sum[i * together + t]);
                    }
            }
        _Alignas(32) float logit[SUMS];
        _mm256_store_ps(logit, sum_each(sum));
        for (uint32_t i = 0; i < group; i++)
            memcpy(&at->weight[g + i][r], logit + i * together, together * sizeof *logit);
    }
}

LODE_INLINE void values_of(lode_format_t format, uint32_t dim, uint32_t group, attention_t *at, uint32_t g,
                           const block_t *block, bool first)
{
    const uint32_t together = group > 2 ? 2 : 4; /* vectors */
#pragma GCC unroll 1
    for (uint32_t v = 0; v < dim / 8; v += together) {
        float *out = at->out + g * dim + 8 * v;
        __m256 sum[4][4];
        for (uint32_t i = 0; i < group; i++)
            for (uint32_t t = 0; t < together; t++)
                sum[i][t] = _mm256_loadu_ps(out + i * dim + 8 * t);
#pragma GCC unroll 2
        for (uint32_t r = 0; r < BLOCK; r++) {
            const void *codes = at->halves[r];
            if (format != LODE_FORMAT_FP8)
                codes = block->at[r] + at->vector_bytes;
            __m256 x[4];
            for (uint32_t t = 0; t < together; t += 2)
                vectors_of(format, codes, v + t, x + t);
            if (first)
                ask(format, block->next[r] + at->vector_bytes, dim, v);
            if (first && v + together == dim / 8)
                fetch_line(block->next[r] + at->record_bytes - 1);
            for (uint32_t i = 0; i < group; i++) {
                __m256 weight = _mm256_broadcast_ss(&at->weight[g + i][r]);
                for (uint32_t t = 0; t < together; t++)
                    sum[i][t] = _mm256_fmadd_ps(x[t], weight, sum[i][t]);
            }
        }
        for (uint32_t i = 0; i < group; i++)
            for (uint32_t t = 0; t < together; t++)
                _mm256_storeu_ps(out + i * dim + 8 * t, sum[i][t]);
    }
}

/* --------------------------------------------------------------------- softmax */

/* A greater logit than any before: what was added up shrinks. Rare after the first blocks. */
static __attribute__((noinline)) void raise_most(attention_t *at, uint32_t g, float most)
{
    __m256 shrink = exp8(_mm256_set1_ps(at->most[g] - most));
    float *out = at->out + (size_t)g * at->dim;
    at->most[g] = most;
    at->sum[g] = _mm256_mul_ps(at->sum[g], shrink);
    for (uint32_t d = 0; d < at->dim; d += 8)
        _mm256_storeu_ps(out + d, _mm256_mul_ps(_mm256_loadu_ps(out + d), shrink));
}

/* Logits to weights. */
LODE_INLINE void softmax(attention_t *at, uint32_t count, const __m256 *key_scale, const __m256 *value_scale)
{
    const __m256 never = _mm256_set1_ps(-INFINITY);
    for (uint32_t g = 0; g < at->group; g++) {
        __m256 logit[2];
        for (uint32_t h = 0; h < 2; h++) {
            __m256 some = _mm256_castsi256_ps(lanes(count > 8 * h ? count - 8 * h : 0));
            logit[h] =
                _mm256_blendv_ps(never, _mm256_mul_ps(_mm256_load_ps(at->weight[g] + 8 * h), key_scale[h]), some);
        }
        __m256 most = _mm256_max_ps(logit[0], logit[1]);
        if (_mm256_movemask_ps(_mm256_cmp_ps(most, _mm256_set1_ps(at->most[g]), _CMP_GT_OQ)))
            raise_most(at, g, greatest_of(most));
        for (uint32_t h = 0; h < 2; h++) {
            __m256 weight = exp8(_mm256_sub_ps(logit[h], _mm256_set1_ps(at->most[g])));
            at->sum[g] = _mm256_add_ps(at->sum[g], weight);
            _mm256_store_ps(at->weight[g] + 8 * h, _mm256_mul_ps(weight, value_scale[h]));
        }
    }
}

/* ---------------------------------------------------------------------- blocks */

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

/* A short block is filled up with its last record, which then weighs nothing. */
LODE_INLINE void list_block(const uint8_t *const *records, size_t n, size_t first, const uint8_t **at)
{
    for (size_t r = 0; r < BLOCK; r++)
        at[r] = records[first + r < n ? first + r : n - 1];
}

/* What the records of the block meet. @return whether it is the same. */
LODE_INLINE bool list_queries(const attention_t *at, size_t n, size_t first, block_t *block)
{
    uint32_t same = 0, begin = at->of ? at->of[first] : 0;
    for (size_t r = 0; r < BLOCK; r++) {
        uint32_t mine = at->of ? at->of[first + r < n ? first + r : n - 1] : 0;
        block->q[r] = at->q + (size_t)mine * at->group * at->dim;
        same += mine == begin;
    }
    return same == BLOCK;
}

LODE_INLINE void scales_of(const attention_t *at, const block_t *block, lode_format_t format, __m256 *key,
                           __m256 *value)
{
    _Alignas(32) uint32_t both[BLOCK];
    const __m256 factor = _mm256_set1_ps(decode_factor(format));
    for (uint32_t r = 0; r < BLOCK; r++)
        both[r] = lode_load32(block->at[r] + 2 * at->vector_bytes);
    for (uint32_t h = 0; h < 2; h++) {
        __m256i pairs = _mm256_load_si256((const __m256i *)(both + 8 * h));
        __m256i upper = _mm256_and_si256(pairs, _mm256_set1_epi32((int32_t)0xffff0000u));
        key[h] = value[h] = _mm256_set1_ps(1);
        if (format != LODE_FORMAT_BF16) {
            key[h] = _mm256_mul_ps(factor, _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)));
            value[h] = _mm256_mul_ps(factor, _mm256_castsi256_ps(upper));
        }
    }
}

LODE_INLINE void attend_blocks(lode_format_t format, uint32_t dim, attention_t *at, const uint8_t *const *records,
                               size_t n)
{
    block_t block;
    for (size_t first = 0; first < n; first += BLOCK) {
        __m256 key_scale[2], value_scale[2];
        block.count = n - first < BLOCK ? (uint32_t)(n - first) : BLOCK;
        bool same = list_queries(at, n, first, &block);
        list_block(records, n, first, block.at);
        list_block(records, n, first + BLOCK < n ? first + BLOCK : first, block.next);
        for (uint32_t r = 0; format == LODE_FORMAT_FP8 && r < BLOCK; r++)
            halves_of(block.at[r], block.next[r], dim, at->halves[r]);
#define KEYS(size) keys_of(format, dim, size, at, g, &block, g == 0, false)
#define KEYS_EACH(size) keys_of(format, dim, size, at, g, &block, g == 0, true)
        if (same)
            FOR_PARTS(at->group, KEYS)
        else
            FOR_PARTS(at->group, KEYS_EACH)
#undef KEYS
#undef KEYS_EACH
        scales_of(at, &block, format, key_scale, value_scale);
        softmax(at, block.count, key_scale, value_scale);
        for (uint32_t r = 0; format == LODE_FORMAT_FP8 && r < BLOCK; r++)
            halves_of(block.at[r] + at->vector_bytes, block.next[r] + at->vector_bytes, dim, at->halves[r]);
#define VALUES(size) values_of(format, dim, size, at, g, &block, g == 0)
        FOR_PARTS(at->group, VALUES)
#undef VALUES
    }
}

static void attend_bf16(attention_t *at, const uint8_t *const *records, size_t n)
{
    if (at->dim == 128)
        attend_blocks(LODE_FORMAT_BF16, 128, at, records, n);
    else if (at->dim == 64)
        attend_blocks(LODE_FORMAT_BF16, 64, at, records, n);
    else
        attend_blocks(LODE_FORMAT_BF16, 256, at, records, n);
}

static void attend_fp8(attention_t *at, const uint8_t *const *records, size_t n)
{
    if (at->dim == 128)
        attend_blocks(LODE_FORMAT_FP8, 128, at, records, n);
    else if (at->dim == 64)
        attend_blocks(LODE_FORMAT_FP8, 64, at, records, n);
    else
        attend_blocks(LODE_FORMAT_FP8, 256, at, records, n);
}

static void attend_higgs4(attention_t *at, const uint8_t *const *records, size_t n)
{
    if (at->dim == 128)
        attend_blocks(LODE_FORMAT_HIGGS4, 128, at, records, n);
    else if (at->dim == 64)
        attend_blocks(LODE_FORMAT_HIGGS4, 64, at, records, n);
    else
        attend_blocks(LODE_FORMAT_HIGGS4, 256, at, records, n);
}

static void finish(attention_t *at, size_t n, float *lse)
{
    for (uint32_t g = 0; g < at->group; g++) {
        float sum = fold(at->sum[g], _mm256_setzero_ps()), *out = at->out + (size_t)g * at->dim;
        lse[g] = n ? at->most[g] + logf(sum) : -INFINITY;
        __m256 share = _mm256_set1_ps(n ? 1 / sum : 0);
        for (uint32_t d = 0; d < at->dim; d += 8)
            _mm256_storeu_ps(out + d, _mm256_mul_ps(_mm256_loadu_ps(out + d), share));
        from_working_order(at->format, at->dim, out);
    }
}

void lode_avx2_attend_each(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records,
                           const uint16_t *of, size_t n, float *q, uint32_t count, float *out, float *lse)
{
    attention_t at;
    if (format == LODE_FORMAT_HIGGS4) /* attend in the space of the codes: there and back once, not per record */
        lode_avx2_hadamard(q, count * group, dim);
    for (uint32_t i = 0; i < count * group; i++)
        to_working_order(format, dim, q + (size_t)i * dim);
    memset(out, 0, sizeof *out * group * dim);
    at.format = format;
    at.dim = dim;
    at.group = group;
    at.vector_bytes = lode_format_vector_bytes(format, dim);
    at.record_bytes = lode_record_bytes(format, dim);
    at.q = q;
    at.of = of;
    at.out = out;
    for (uint32_t g = 0; g < group; g++) {
        at.most[g] = -INFINITY;
        at.sum[g] = _mm256_setzero_ps();
    }
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

void lode_avx2_attend(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records, size_t n,
                      const float *q, float *out, float *lse)
{
    _Alignas(64) float query[LODE_MAX_GROUP * LODE_MAX_DIM];
    memcpy(query, q, sizeof *q * group * dim);
    lode_avx2_attend_each(format, dim, group, records, NULL, n, query, 1, out, lse);
}
