/* SPDX-License-Identifier: Apache-2.0 */
/* What stands between scores and chosen tokens. */
#include "kernels/avx512/avx512.h"

#define AHEAD 1024 /* scores that are asked for before they are due: memory comes by itself only to a page's end */

float lode_avx512_logsumexp(const float *x, size_t n)
{
    __m512 most = _mm512_set1_ps(-INFINITY);
    for (size_t i = 0; i < n; i += 16)
        most = _mm512_mask_max_ps(most, lanes(n - i), most, _mm512_maskz_loadu_ps(lanes(n - i), x + i));
    float greatest = _mm512_reduce_max_ps(most);
    if (greatest == -INFINITY)
        return -INFINITY;
    double sum = 0;
    for (size_t begin = 0; begin < n; begin += 4096) { /* short runs, so that fp32 loses nothing over millions */
        size_t end = n - begin < 4096 ? n : begin + 4096;
        __m512 run = _mm512_setzero_ps();
        for (size_t i = begin; i < end; i += 16) {
            __m512 term = exp16(_mm512_sub_ps(_mm512_maskz_loadu_ps(lanes(end - i), x + i), _mm512_set1_ps(greatest)));
            run = _mm512_mask_add_ps(run, lanes(end - i), run, term);
        }
        sum += fold(run);
    }
    return (float)(greatest + log(sum));
}

#define STEP _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)

#define STRETCH 2048 /* scores that are still in the first cache when their notes are completed */

/* Whole vectors are stored, without asking whether there is anything to note: that branch would be guessed wrong. */
LODE_INLINE void note16(__m512 score, __mmask16 some, __m512 bound, __m512i index, lode_notes_t *notes)
{
    __mmask16 reach = _mm512_mask_cmp_ps_mask(some, score, bound, _CMP_GE_OQ);
    _mm512_storeu_si512(notes->index + lode_notes_end(notes), _mm512_maskz_compress_epi32(reach, index));
    notes->count += (size_t)__builtin_popcount(reach);
}

/* The scores of what was noted since there were `from`; x[0] has index `first`. */
LODE_INLINE void note_scores(const float *x, uint32_t first, size_t from, lode_notes_t *notes)
{
    size_t end = lode_notes_end(notes);
    for (size_t i = from; i < end; i++)
        notes->score[i] = x[notes->index[i] - first];
}

LODE_INLINE void group_max(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n,
                           uint32_t first, lode_notes_t *notes)
{
    __m512i index = _mm512_add_epi32(STEP, _mm512_set1_epi32((int32_t)first));
    const __m512 bound = _mm512_set1_ps(notes ? notes->bound : 0);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 some = lanes(n - i);
        _mm_prefetch(x + i + AHEAD, _MM_HINT_T0);
        __m512 most = _mm512_sub_ps(_mm512_maskz_loadu_ps(some, x + i), _mm512_set1_ps(shift[0]));
        for (uint32_t g = 1; g < group; g++) {
            __m512 score = _mm512_maskz_loadu_ps(some, x + g * stride + i);
            _mm_prefetch(x + g * stride + i + AHEAD, _MM_HINT_T0);
            most = _mm512_max_ps(most, _mm512_sub_ps(score, _mm512_set1_ps(shift[g])));
        }
        _mm512_mask_storeu_ps(out + i, some, most);
        if (notes) {
            note16(most, some, bound, index, notes);
            index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
        }
    }
}

void lode_avx512_group_max(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n)
{
    group_max(x, stride, shift, group, out, n, 0, NULL);
}

void lode_avx512_group_max_note(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n,
                                uint32_t first, lode_notes_t *notes)
{
    lode_notes_t mine = *notes;
    for (size_t i = 0; i < n; i += STRETCH) {
        size_t from = lode_notes_end(&mine), part = n - i < STRETCH ? n - i : STRETCH;
        group_max(x + i, stride, shift, group, out + i, part, first + (uint32_t)i, &mine);
        note_scores(out + i, first + (uint32_t)i, from, &mine);
    }
    notes->count = mine.count;
}

void lode_avx512_note(const float *scores, size_t n, uint32_t first, lode_notes_t *notes)
{
    __m512i index = _mm512_add_epi32(STEP, _mm512_set1_epi32((int32_t)first));
    const __m512 bound = _mm512_set1_ps(notes->bound);
    lode_notes_t mine = *notes;
    for (size_t begin = 0; begin < n; begin += STRETCH) {
        size_t from = lode_notes_end(&mine), end = n - begin < STRETCH ? n : begin + STRETCH;
        for (size_t i = begin; i < end; i += 16) {
            __mmask16 some = lanes(end - i);
            _mm_prefetch(scores + i + AHEAD, _MM_HINT_T0);
            note16(_mm512_maskz_loadu_ps(some, scores + i), some, bound, index, &mine);
            index = _mm512_add_epi32(index, _mm512_set1_epi32(16));
        }
        note_scores(scores, first, from, &mine);
    }
    notes->count = mine.count;
}

static size_t count(const float *scores, size_t n, float bound)
{
    const __m512 least = _mm512_set1_ps(bound);
    const __m512i one = _mm512_set1_epi32(1);
    __m512i sum[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (uint32_t u = 0; u < 2; u++) {
            __mmask16 reach = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + i + 16 * u), least, _CMP_GE_OQ);
            sum[u] = _mm512_mask_add_epi32(sum[u], reach, sum[u], one);
        }
    size_t reach = (size_t)_mm512_reduce_add_epi32(_mm512_add_epi32(sum[0], sum[1]));
    for (; i < n; i += 16) {
        __mmask16 some = lanes(n - i);
        __m512 x = _mm512_maskz_loadu_ps(some, scores + i);
        reach += (size_t)__builtin_popcount(_mm512_mask_cmp_ps_mask(some, x, least, _CMP_GE_OQ));
    }
    return reach;
}

static void collect(const float *scores, size_t n, float low, float high, lode_topk_found_t *found)
{
    size_t above = 0, between = 0;
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 some = lanes(n - i);
        _mm_prefetch(scores + i + AHEAD, _MM_HINT_T0);
        __m512 x = _mm512_maskz_loadu_ps(some, scores + i);
        __mmask16 reach = _mm512_mask_cmp_ps_mask(some, x, _mm512_set1_ps(low), _CMP_GE_OQ);
        if (!reach)
            continue;
        __m512i index = _mm512_add_epi32(STEP, _mm512_set1_epi32((int32_t)i));
        __mmask16 over = _mm512_mask_cmp_ps_mask(reach, x, _mm512_set1_ps(high), _CMP_GT_OQ);
        __mmask16 inside = reach & (__mmask16)~over;
        size_t overs = (size_t)__builtin_popcount(over), insides = (size_t)__builtin_popcount(inside);
        if (over && above + overs <= found->most)
            _mm512_mask_compressstoreu_epi32(found->above + above, over, index);
        if (between + insides <= found->room) {
            _mm512_mask_compressstoreu_ps(found->scores + between, inside, x);
            _mm512_mask_compressstoreu_epi32(found->between + between, inside, index);
        }
        above += overs;
        between += insides;
    }
    found->above_count = above;
    found->between_count = between;
}

/* Of those that reach the threshold, the ones to take, the first `*ties` of the equal ones among them. */
LODE_INLINE __mmask16 take16(__m512 x, __mmask16 some, __m512 threshold, size_t *ties)
{
    __mmask16 reach = _mm512_mask_cmp_ps_mask(some, x, threshold, _CMP_GE_OQ);
    __mmask16 equal = _mm512_mask_cmp_ps_mask(reach, x, threshold, _CMP_EQ_OQ);
    size_t wanted = (size_t)__builtin_popcount(equal);
    if (wanted > *ties) {
        reach &= (__mmask16)~equal | (__mmask16)_pdep_u32((1u << *ties) - 1, equal);
        wanted = *ties;
    }
    *ties -= wanted;
    return reach;
}

static size_t emit(const float *scores, size_t n, float threshold, size_t ties, uint32_t *out)
{
    const __m512 bound = _mm512_set1_ps(threshold);
    size_t taken = 0;
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 some = lanes(n - i);
        __mmask16 reach = take16(_mm512_maskz_loadu_ps(some, scores + i), some, bound, &ties);
        if (!reach)
            continue;
        _mm512_mask_compressstoreu_epi32(out + taken, reach, _mm512_add_epi32(STEP, _mm512_set1_epi32((int32_t)i)));
        taken += (size_t)__builtin_popcount(reach);
    }
    return taken;
}

static void emit_noted(const lode_notes_t *notes, float threshold, size_t ties, uint32_t *out)
{
    const __m512 bound = _mm512_set1_ps(threshold);
    for (size_t i = 0; i < notes->count; i += 16) {
        __mmask16 some = lanes(notes->count - i);
        __mmask16 reach = take16(_mm512_maskz_loadu_ps(some, notes->score + i), some, bound, &ties);
        _mm512_mask_compressstoreu_epi32(out, reach, _mm512_maskz_loadu_epi32(some, notes->index + i));
        out += __builtin_popcount(reach);
    }
}

static const lode_topk_parts_t parts = {collect, emit, lode_avx512_note, count, emit_noted};

size_t lode_avx512_topk(const float *scores, size_t n, size_t k, uint32_t *out)
{
    return lode_topk_sampled(&parts, scores, n, k, out);
}

size_t lode_avx512_topk_noted(const float *scores, size_t n, size_t k, lode_notes_t *notes, uint32_t *out)
{
    return lode_topk_from_notes(&parts, lode_avx512_topk, scores, n, k, notes, out);
}
