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

void lode_avx512_group_max(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n)
{
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 some = lanes(n - i);
        __m512 most = _mm512_sub_ps(_mm512_maskz_loadu_ps(some, x + i), _mm512_set1_ps(shift[0]));
        for (uint32_t g = 1; g < group; g++) {
            __m512 score = _mm512_maskz_loadu_ps(some, x + g * stride + i);
            most = _mm512_max_ps(most, _mm512_sub_ps(score, _mm512_set1_ps(shift[g])));
        }
        _mm512_mask_storeu_ps(out + i, some, most);
    }
}

static void collect(const float *scores, size_t n, float low, float high, lode_topk_found_t *found)
{
    const __m512i step = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i top = _mm512_set1_epi32((int32_t)0x80000000u);
    size_t above = 0, between = 0;
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 some = lanes(n - i);
        _mm_prefetch(scores + i + AHEAD, _MM_HINT_T0);
        __m512 x = _mm512_add_ps(_mm512_maskz_loadu_ps(some, scores + i), _mm512_setzero_ps());
        __mmask16 reach = _mm512_mask_cmp_ps_mask(some, x, _mm512_set1_ps(low), _CMP_GE_OQ);
        if (!reach)
            continue;
        __m512i index = _mm512_add_epi32(step, _mm512_set1_epi32((int32_t)i));
        __mmask16 over = _mm512_mask_cmp_ps_mask(reach, x, _mm512_set1_ps(high), _CMP_GT_OQ);
        __mmask16 inside = reach & (__mmask16)~over;
        size_t overs = (size_t)__builtin_popcount(over), insides = (size_t)__builtin_popcount(inside);
        if (over && above + overs <= found->most)
            _mm512_mask_compressstoreu_epi32(found->above + above, over, index);
        if (between + insides <= found->room) { /* lode_order_key */
            __m512i bits = _mm512_castps_si512(x);
            bits = _mm512_xor_si512(bits, _mm512_or_si512(_mm512_srai_epi32(bits, 31), top));
            _mm512_mask_compressstoreu_epi32(found->keys + between, inside, bits);
            _mm512_mask_compressstoreu_epi32(found->between + between, inside, index);
        }
        above += overs;
        between += insides;
    }
    found->above_count = above;
    found->between_count = between;
}

static void emit(const float *scores, size_t n, float threshold, size_t ties, uint32_t *out)
{
    const __m512i step = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512 bound = _mm512_set1_ps(threshold);
    for (size_t i = 0; i < n; i += 16) {
        __mmask16 some = lanes(n - i);
        __m512 x = _mm512_maskz_loadu_ps(some, scores + i);
        __mmask16 reach = _mm512_mask_cmp_ps_mask(some, x, bound, _CMP_GE_OQ);
        if (!reach)
            continue;
        __mmask16 equal = _mm512_mask_cmp_ps_mask(reach, x, bound, _CMP_EQ_OQ);
        size_t wanted = (size_t)__builtin_popcount(equal);
        if (wanted > ties) { /* keep the first ones */
            reach &= (__mmask16)~equal | (__mmask16)_pdep_u32((1u << ties) - 1, equal);
            wanted = ties;
        }
        ties -= wanted;
        _mm512_mask_compressstoreu_epi32(out, reach, _mm512_add_epi32(step, _mm512_set1_epi32((int32_t)i)));
        out += __builtin_popcount(reach);
    }
}

size_t lode_avx512_topk(const float *scores, size_t n, size_t k, uint32_t *out)
{
    static const lode_topk_parts_t parts = {collect, emit};
    return lode_topk_bracket(&parts, scores, n, k, out);
}
