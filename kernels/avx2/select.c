/* SPDX-License-Identifier: Apache-2.0 */
/* What stands between scores and chosen tokens. */
#include "kernels/avx2/avx2.h"

float lode_avx2_logsumexp(const float *x, size_t n)
{
    float greatest = -INFINITY;
    __m256 most = _mm256_set1_ps(-INFINITY);
    size_t whole = n / 8 * 8;
    for (size_t i = 0; i < whole; i += 8)
        most = _mm256_max_ps(most, _mm256_loadu_ps(x + i));
    greatest = greatest_of(most);
    for (size_t i = whole; i < n; i++)
        greatest = x[i] > greatest ? x[i] : greatest;
    if (greatest == -INFINITY)
        return -INFINITY;
    double sum = 0;
    for (size_t begin = 0; begin < n; begin += 4096) { /* short runs, so that fp32 loses nothing over millions */
        size_t end = n - begin < 4096 ? n : begin + 4096;
        __m256 run = _mm256_setzero_ps();
        for (size_t i = begin; i < end; i += 8) {
            __m256i some = lanes(end - i);
            __m256 term = exp8(_mm256_sub_ps(_mm256_maskload_ps(x + i, some), _mm256_set1_ps(greatest)));
            run = _mm256_add_ps(run, _mm256_and_ps(term, _mm256_castsi256_ps(some)));
        }
        sum += fold(run, _mm256_setzero_ps());
    }
    return (float)(greatest + log(sum));
}

void lode_avx2_group_max(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n)
{
    for (size_t i = 0; i < n; i += 8) {
        __m256i some = lanes(n - i);
        __m256 most = _mm256_sub_ps(_mm256_maskload_ps(x + i, some), _mm256_set1_ps(shift[0]));
        for (uint32_t g = 1; g < group; g++) {
            __m256 score = _mm256_maskload_ps(x + g * stride + i, some);
            most = _mm256_max_ps(most, _mm256_sub_ps(score, _mm256_set1_ps(shift[g])));
        }
        _mm256_maskstore_ps(out + i, some, most);
    }
}

#define AHEAD 1024 /* scores that are asked for before they are due: memory comes by itself only to a page's end */

/* Which of 8 scores are ≥ bound. */
LODE_INLINE uint32_t reach_of(const float *scores, size_t left, __m256 bound)
{
    uint32_t some = left >= 8 ? 0xff : (1u << left) - 1;
    __m256 x = left >= 8 ? _mm256_loadu_ps(scores) : _mm256_maskload_ps(scores, lanes(left));
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x, bound, _CMP_GE_OQ)) & some;
}

static void collect(const float *scores, size_t n, float low, float high, lode_topk_found_t *found)
{
    size_t above = 0, between = 0;
    const __m256 bound = _mm256_set1_ps(low);
    for (size_t i = 0; i < n; i += 8) {
        _mm_prefetch((const char *)(scores + i + AHEAD), _MM_HINT_T0);
        for (uint32_t reach = reach_of(scores + i, n - i, bound); reach; reach &= reach - 1) {
            size_t at = i + (size_t)__builtin_ctz(reach);
            if (scores[at] > high) {
                if (above < found->most)
                    found->above[above] = (uint32_t)at;
                above++;
                continue;
            }
            if (between < found->room) {
                found->keys[between] = lode_order_key(scores[at]);
                found->between[between] = (uint32_t)at;
            }
            between++;
        }
    }
    found->above_count = above;
    found->between_count = between;
}

static void emit(const float *scores, size_t n, float threshold, size_t ties, uint32_t *out)
{
    const __m256 bound = _mm256_set1_ps(threshold);
    for (size_t i = 0; i < n; i += 8)
        for (uint32_t reach = reach_of(scores + i, n - i, bound); reach; reach &= reach - 1) {
            size_t at = i + (size_t)__builtin_ctz(reach);
            if (scores[at] == threshold) {
                if (ties == 0)
                    continue;
                ties--;
            }
            *out++ = (uint32_t)at;
        }
}

size_t lode_avx2_topk(const float *scores, size_t n, size_t k, uint32_t *out)
{
    static const lode_topk_parts_t parts = {collect, emit};
    return lode_topk_bracket(&parts, scores, n, k, out);
}
