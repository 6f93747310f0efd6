/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention over records anywhere in memory, in blocks of 16. First the keys of a block meet the queries, 8 sums at
 * once (queries × records), so that no multiplication waits for another; 16 logits a query make one vector for the
 * running softmax; then the values, 16 coordinates of all records at a time, are added up in 8 sums. The lines of the
 * next block are asked for in the same loops, one at a time: the processor can wait for a dozen only.
 *
 * bf16 and fp8 are unpacked without moving anything between lanes: even and odd coordinates come apart, and queries
 * and outputs are in that order while at work. lab/attend_avx512.c has what was tried.
 */
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/decode.h"

#define BLOCK 16
#define VECTORS (LODE_MAX_DIM / 16)

typedef struct attention {
    lode_format_t format;
    uint32_t dim, group;
    size_t vector_bytes, record_bytes;
    const float *q;     /* (…, group, dim) */
    const uint16_t *of; /* which of them a record meets; NULL: the first */
    float *out;
    float most[LODE_MAX_GROUP];
    _Alignas(64) __m512 sum[LODE_MAX_GROUP];           /* of weights, 16 partial sums each */
    _Alignas(64) float weight[LODE_MAX_GROUP][BLOCK];  /* logits before */
    _Alignas(64) uint16_t halves[BLOCK][LODE_MAX_DIM]; /* fp8: a block's keys or values as fp16 */
} attention_t;

/* A block: its records, and those that will be next. */
typedef struct block {
    const uint8_t *at[BLOCK], *next[BLOCK];
    const float *q[BLOCK]; /* what each meets */
    uint32_t count;
} block_t;

/* Sum each of 16 vectors; the sums in order. */
LODE_INLINE __m512 sum_each(const __m512 *v)
{
    __m512 four[4];
    for (int i = 0; i < 4; i++) {
        __m512 a = v[4 * i], b = v[4 * i + 1], c = v[4 * i + 2], d = v[4 * i + 3];
        __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        four[i] = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }
    for (int i = 0; i < 4; i += 2)
        four[i / 2] = _mm512_add_ps(_mm512_shuffle_f32x4(four[i], four[i + 1], 0x88),
                                    _mm512_shuffle_f32x4(four[i], four[i + 1], 0xdd));
    return _mm512_add_ps(_mm512_shuffle_f32x4(four[0], four[1], 0x88), _mm512_shuffle_f32x4(four[0], four[1], 0xdd));
}

/* ------------------------------------------------------------------ unpacking */

/* Codes of fp8 to fp16 (256 times too small), 64 at a time: 32 even ones, then 32 odd ones. */
LODE_INLINE void halves_of(const uint8_t *codes, const uint8_t *next, uint32_t dim, uint16_t *halves)
{
    const __m512i fields = _mm512_set1_epi16((short)0xbf80);
    for (uint32_t d = 0; d < dim; d += 64) {
        __m512i pairs = _mm512_loadu_si512(codes + d);
        __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(pairs, 8), 1), odd = _mm512_srai_epi16(pairs, 1);
        _mm512_store_si512(halves + d, _mm512_and_si512(even, fields));
        _mm512_store_si512(halves + d + 32, _mm512_and_si512(odd, fields));
        if (2 * d < dim)
            _mm_prefetch(next + d, _MM_HINT_T0);
    }
}

/* Vectors i and i + 1 (i is even) of 16 coordinates in working order; codes: of the record, or its row of halves. */
LODE_INLINE void vectors_of(lode_format_t format, const void *codes, uint32_t i, __m512 *x)
{
    const uint8_t *at = codes;
    if (format == LODE_FORMAT_BF16) {
        __m512i pairs = _mm512_loadu_si512(at + 32 * i);
        __asm__("" : "+v"(pairs)); /* load it once: half of all loads are of two lines */
        x[0] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
        x[1] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int32_t)0xffff0000u)));
        return;
    }
    for (uint32_t u = 0; u < 2; u++)
        if (format == LODE_FORMAT_FP8)
            x[u] = _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(at + 32 * (i + u))));
        else
            x[u] = decode16(format, at, 16 * (i + u));
}

/* Where a pair of vectors in working order comes from: 32 coordinates, even and odd ones apart. */
LODE_INLINE uint32_t odd_of(lode_format_t format, uint32_t even)
{
    return format == LODE_FORMAT_BF16 ? even + 1 : even + 2;
}

LODE_INLINE uint32_t even_of(lode_format_t format, uint32_t pair)
{
    return format == LODE_FORMAT_BF16 ? 2 * pair : pair / 2 * 4 + pair % 2;
}

static void to_working_order(lode_format_t format, uint32_t dim, float *x)
{
    const __m512i step = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    __m512 y[VECTORS];
    if (format == LODE_FORMAT_HIGGS4)
        return;
    for (uint32_t pair = 0; pair < dim / 32; pair++) {
        __m512 a = _mm512_loadu_ps(x + 32 * pair), b = _mm512_loadu_ps(x + 32 * pair + 16);
        uint32_t even = even_of(format, pair);
        y[even] = _mm512_permutex2var_ps(a, step, b);
        y[odd_of(format, even)] = _mm512_permutex2var_ps(a, _mm512_add_epi32(step, _mm512_set1_epi32(1)), b);
    }
    for (uint32_t i = 0; i < dim / 16; i++)
        _mm512_storeu_ps(x + 16 * i, y[i]);
}

static void from_working_order(lode_format_t format, uint32_t dim, float *x)
{
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    __m512 y[VECTORS];
    if (format == LODE_FORMAT_HIGGS4)
        return;
    for (uint32_t pair = 0; pair < dim / 32; pair++) {
        uint32_t at = even_of(format, pair);
        __m512 even = _mm512_loadu_ps(x + 16 * at), odd = _mm512_loadu_ps(x + 16 * odd_of(format, at));
        y[2 * pair] = _mm512_permutex2var_ps(even, low, odd);
        y[2 * pair + 1] = _mm512_permutex2var_ps(even, _mm512_add_epi32(low, _mm512_set1_epi32(8)), odd);
    }
    for (uint32_t i = 0; i < dim / 16; i++)
        _mm512_storeu_ps(x + 16 * i, y[i]);
}

/* --------------------------------------------------------------- the two loops */

/*
 * Ask for what of a record is as far in as vector i (even) of this one. In fp8 the first half of the lines was asked
 * for when this one was made fp16.
 */
LODE_INLINE void ask(lode_format_t format, const uint8_t *codes, uint32_t dim, uint32_t i)
{
    if (format == LODE_FORMAT_BF16)
        _mm_prefetch(codes + 32 * i, _MM_HINT_T0);
    else if (format == LODE_FORMAT_FP8 && i % 8 == 0)
        _mm_prefetch(codes + dim / 2 + 8 * i, _MM_HINT_T0);
    else if (format == LODE_FORMAT_HIGGS4 && i % 8 == 0)
        _mm_prefetch(codes + 8 * i, _MM_HINT_T0);
}

/* @p each: the records meet queries of their own, else all meet the first one's. */
LODE_INLINE void keys_of(lode_format_t format, uint32_t dim, uint32_t group, attention_t *at, uint32_t g,
                         const block_t *block, bool first, bool each)
{
    enum { SUMS = 16 };
    const uint32_t together = SUMS / group; /* records */
    const float *q = block->q[0] + g * dim;
    for (uint32_t r = 0; r < BLOCK; r += together) {
        __m512 sum[SUMS];
        for (uint32_t i = 0; i < SUMS; i++)
            sum[i] = _mm512_setzero_ps();
#pragma GCC unroll 1
        for (uint32_t v = 0; v < dim / 16; v += 2) {
            __m512 y[2][8];
            for (uint32_t i = 0; !each && i < group; i++)
                for (uint32_t u = 0; u < 2; u++)
                    y[u][i] = _mm512_loadu_ps(q + i * dim + 16 * (v + u));
            for (uint32_t t = 0; t < together; t++) {
                __m512 k[2];
                vectors_of(format, format == LODE_FORMAT_FP8 ? (const void *)at->halves[r + t] : block->at[r + t], v,
                           k);
                if (first)
                    ask(format, block->next[r + t], dim, v);
                for (uint32_t u = 0; u < 2; u++)
                    for (uint32_t i = 0; i < group; i++) {
                        __m512 x = each ? _mm512_loadu_ps(block->q[r + t] + (g + i) * dim + 16 * (v + u)) : y[u][i];
                        sum[i * together + t] = _mm512_fmadd_ps(k[u], x, sum[i * together + t]);
                    }
            }
        }
        _Alignas(64) float logit[SUMS];
        _mm512_store_ps(logit, sum_each(sum));
        for (uint32_t i = 0; i < group; i++)
            memcpy(&at->weight[g + i][r], logit + i * together, together * sizeof *logit);
    }
}

LODE_INLINE void values_of(lode_format_t format, uint32_t dim, uint32_t group, attention_t *at, uint32_t g,
                           const block_t *block, bool first)
{
    const uint32_t together = group > 4 ? 2 : 4; /* vectors */
#pragma GCC unroll 1
    for (uint32_t v = 0; v < dim / 16; v += together) {
        float *out = at->out + g * dim + 16 * v;
        __m512 sum[8][4];
        for (uint32_t i = 0; i < group; i++)
            for (uint32_t t = 0; t < together; t++)
                sum[i][t] = _mm512_loadu_ps(out + i * dim + 16 * t);
#pragma GCC unroll 2
        for (uint32_t r = 0; r < BLOCK; r++) {
            const void *codes = at->halves[r];
            if (format != LODE_FORMAT_FP8)
                codes = block->at[r] + at->vector_bytes;
            __m512 x[4];
            for (uint32_t t = 0; t < together; t += 2) {
                vectors_of(format, codes, v + t, x + t);
                if (first)
                    ask(format, block->next[r] + at->vector_bytes, dim, v + t);
            }
            if (first && v + together == dim / 16)
                _mm_prefetch(block->next[r] + at->record_bytes - 1, _MM_HINT_T0);
            for (uint32_t i = 0; i < group; i++) {
                __m512 weight = _mm512_set1_ps(at->weight[g + i][r]);
                for (uint32_t t = 0; t < together; t++)
                    sum[i][t] = _mm512_fmadd_ps(x[t], weight, sum[i][t]);
            }
        }
        for (uint32_t i = 0; i < group; i++)
            for (uint32_t t = 0; t < together; t++)
                _mm512_storeu_ps(out + i * dim + 16 * t, sum[i][t]);
    }
}

/* --------------------------------------------------------------------- softmax */

/* A greater logit than any before: what was added up shrinks. Rare after the first blocks. */
static __attribute__((noinline)) void raise_most(attention_t *at, uint32_t g, float most)
{
    __m512 shrink = exp16(_mm512_set1_ps(at->most[g] - most));
    float *out = at->out + (size_t)g * at->dim;
    at->most[g] = most;
    at->sum[g] = _mm512_mul_ps(at->sum[g], shrink);
    for (uint32_t d = 0; d < at->dim; d += 16)
        _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_loadu_ps(out + d), shrink));
}

/* Logits to weights. */
LODE_INLINE void softmax(attention_t *at, __mmask16 some, __m512 key_scale, __m512 value_scale)
{
    for (uint32_t g = 0; g < at->group; g++) {
        __m512 logit = _mm512_mul_ps(_mm512_load_ps(at->weight[g]), key_scale);
        if (_mm512_mask_cmp_ps_mask(some, logit, _mm512_set1_ps(at->most[g]), _CMP_GT_OQ))
            raise_most(at, g, _mm512_mask_reduce_max_ps(some, logit));
        __m512 weight = _mm512_maskz_mov_ps(some, exp16(_mm512_sub_ps(logit, _mm512_set1_ps(at->most[g]))));
        at->sum[g] = _mm512_add_ps(at->sum[g], weight);
        _mm512_store_ps(at->weight[g], _mm512_mul_ps(weight, value_scale));
    }
}

/* ---------------------------------------------------------------------- blocks */

/* Run `call` with the group cut into parts of a constant size. */
#define FOR_PARTS(group, call)           \
    for (uint32_t g = 0; g < (group);) { \
        if ((group)-g >= 8) {            \
            call(8);                     \
            g += 8;                      \
        } else if ((group)-g >= 4) {     \
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

/* Lists of the block that begins at `first`; a short one is filled up with its last record, which then weighs nothing.
 */
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

LODE_INLINE void scales_of(const attention_t *at, const block_t *block, lode_format_t format, __m512 *key,
                           __m512 *value)
{
    _Alignas(64) uint32_t both[BLOCK];
    *key = *value = _mm512_set1_ps(1);
    for (uint32_t r = 0; r < BLOCK; r++)
        both[r] = lode_load32(block->at[r] + 2 * at->vector_bytes);
    if (format == LODE_FORMAT_BF16)
        return;
    __m512i pairs = _mm512_load_si512(both);
    __m512 factor = _mm512_set1_ps(decode_factor(format));
    *key = _mm512_mul_ps(factor, _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)));
    *value =
        _mm512_mul_ps(factor, _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32((int32_t)0xffff0000u))));
}

LODE_INLINE void attend_blocks(lode_format_t format, uint32_t dim, attention_t *at, const uint8_t *const *records,
                               size_t n)
{
    block_t block;
    for (size_t first = 0; first < n; first += BLOCK) {
        __m512 key_scale, value_scale;
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
        scales_of(at, &block, format, &key_scale, &value_scale);
        softmax(at, lanes(block.count), key_scale, value_scale);
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
        float sum = fold(at->sum[g]), *out = at->out + (size_t)g * at->dim;
        lse[g] = n ? at->most[g] + logf(sum) : -INFINITY;
        __m512 share = _mm512_set1_ps(n ? 1 / sum : 0);
        for (uint32_t d = 0; d < at->dim; d += 16)
            _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_loadu_ps(out + d), share));
        from_working_order(at->format, at->dim, out);
    }
}

void lode_avx512_attend_each(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records,
                             const uint16_t *of, size_t n, float *q, uint32_t count, float *out, float *lse)
{
    attention_t at;
    if (format == LODE_FORMAT_HIGGS4) /* attend in the space of the codes: there and back once, not per record */
        lode_avx512_hadamard(q, count * group, dim);
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
        at.sum[g] = _mm512_setzero_ps();
    }
    if (format == LODE_FORMAT_BF16)
        attend_bf16(&at, records, n);
    else if (format == LODE_FORMAT_FP8)
        attend_fp8(&at, records, n);
    else
        attend_higgs4(&at, records, n);
    finish(&at, n, lse);
    if (format == LODE_FORMAT_HIGGS4)
        lode_avx512_hadamard(out, group, dim);
}

void lode_avx512_attend(lode_format_t format, uint32_t dim, uint32_t group, const uint8_t *const *records, size_t n,
                        const float *q, float *out, float *lse)
{
    _Alignas(64) float query[LODE_MAX_GROUP * LODE_MAX_DIM];
    memcpy(query, q, sizeof *q * group * dim);
    lode_avx512_attend_each(format, dim, group, records, NULL, n, query, 1, out, lse);
}
