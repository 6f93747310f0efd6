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

#define AHEAD 1024 /* scores that are asked for before they are due: memory comes by itself only to a page's end */

/* For each set of 8 lanes, which lanes come first when those of the set are moved to the front. */
static uint8_t front[256][8];

void lode_avx2_note_prepare(void)
{
    for (uint32_t set = 0; set < 256; set++)
        for (uint32_t lane = 0, to = 0; lane < 8; lane++)
            if (set >> lane & 1)
                front[set][to++] = (uint8_t)lane;
}

/* Whole vectors are stored, without asking whether there is anything to note: that branch would be guessed wrong. */
LODE_INLINE void note8(uint32_t reach, __m256 score, uint32_t index, lode_notes_t *notes)
{
    __m256i lane = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)front[reach]));
    size_t to = lode_notes_end(notes);
    _mm256_storeu_si256((__m256i *)(notes->index + to), _mm256_add_epi32(lane, _mm256_set1_epi32((int32_t)index)));
    _mm256_storeu_ps(notes->score + to, _mm256_permutevar8x32_ps(score, lane));
    notes->count += (size_t)__builtin_popcount(reach);
}

LODE_INLINE void group_max(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n,
                           uint32_t first, lode_notes_t *notes)
{
    const __m256 bound = _mm256_set1_ps(notes ? notes->bound : 0);
    lode_notes_t mine = notes ? *notes : (lode_notes_t){0};
    for (size_t i = 0; i < n; i += 8) {
        __m256i some = lanes(n - i);
        _mm_prefetch((const char *)(x + i + AHEAD), _MM_HINT_T0);
        __m256 most = _mm256_sub_ps(_mm256_maskload_ps(x + i, some), _mm256_set1_ps(shift[0]));
        for (uint32_t g = 1; g < group; g++) {
            __m256 score = _mm256_maskload_ps(x + g * stride + i, some);
            _mm_prefetch((const char *)(x + g * stride + i + AHEAD), _MM_HINT_T0);
            most = _mm256_max_ps(most, _mm256_sub_ps(score, _mm256_set1_ps(shift[g])));
        }
        _mm256_maskstore_ps(out + i, some, most);
        if (notes) {
            __m256 reach = _mm256_and_ps(_mm256_cmp_ps(most, bound, _CMP_GE_OQ), _mm256_castsi256_ps(some));
            note8((uint32_t)_mm256_movemask_ps(reach), most, first + (uint32_t)i, &mine);
        }
    }
    if (notes)
        notes->count = mine.count;
}

void lode_avx2_group_max(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n)
{
    group_max(x, stride, shift, group, out, n, 0, NULL);
}

void lode_avx2_group_max_note(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n,
                              uint32_t first, lode_notes_t *notes)
{
    group_max(x, stride, shift, group, out, n, first, notes);
}

/* Which of 8 scores are ≥ bound. */
LODE_INLINE uint32_t reach_of(const float *scores, size_t left, __m256 bound)
{
    uint32_t some = left >= 8 ? 0xff : (1u << left) - 1;
    __m256 x = left >= 8 ? _mm256_loadu_ps(scores) : _mm256_maskload_ps(scores, lanes(left));
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(x, bound, _CMP_GE_OQ)) & some;
}

void lode_avx2_note(const float *scores, size_t n, uint32_t first, lode_notes_t *notes)
{
    const __m256 bound = _mm256_set1_ps(notes->bound);
    lode_notes_t mine = *notes;
    for (size_t i = 0; i < n; i += 8) {
        _mm_prefetch((const char *)(scores + i + AHEAD), _MM_HINT_T0);
        __m256i some = lanes(n - i);
        __m256 x = _mm256_maskload_ps(scores + i, some);
        __m256 reach = _mm256_and_ps(_mm256_cmp_ps(x, bound, _CMP_GE_OQ), _mm256_castsi256_ps(some));
        note8((uint32_t)_mm256_movemask_ps(reach), x, first + (uint32_t)i, &mine);
    }
    notes->count = mine.count;
}

static size_t count(const float *scores, size_t n, float bound)
{
    const __m256 least = _mm256_set1_ps(bound);
    __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    size_t i = 0, reach = 0;
    for (; i + 16 <= n; i += 16)
        for (uint32_t u = 0; u < 2; u++) {
            __m256 x = _mm256_cmp_ps(_mm256_loadu_ps(scores + i + 8 * u), least, _CMP_GE_OQ);
            sum[u] = _mm256_sub_epi32(sum[u], _mm256_castps_si256(x));
        }
    uint32_t parts[8];
    _mm256_storeu_si256((__m256i *)parts, _mm256_add_epi32(sum[0], sum[1]));
    for (uint32_t lane = 0; lane < 8; lane++)
        reach += parts[lane];
    for (; i < n; i += 8)
        reach += (size_t)__builtin_popcount(reach_of(scores + i, n - i, least));
    return reach;
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
                found->scores[between] = scores[at];
                found->between[between] = (uint32_t)at;
            }
            between++;
        }
    }
    found->above_count = above;
    found->between_count = between;
}

static size_t emit(const float *scores, size_t n, float threshold, size_t ties, uint32_t *out)
{
    const __m256 bound = _mm256_set1_ps(threshold);
    size_t taken = 0;
    for (size_t i = 0; i < n; i += 8)
        for (uint32_t reach = reach_of(scores + i, n - i, bound); reach; reach &= reach - 1) {
            size_t at = i + (size_t)__builtin_ctz(reach);
            if (scores[at] == threshold) {
                if (ties == 0)
                    continue;
                ties--;
            }
            out[taken++] = (uint32_t)at;
        }
    return taken;
}

static void emit_noted(const lode_notes_t *notes, float threshold, size_t ties, uint32_t *out)
{
    for (size_t i = 0; i < notes->count; i++) {
        bool equal = notes->score[i] == threshold;
        if (!(notes->score[i] >= threshold) || (equal && ties == 0))
            continue;
        ties -= equal;
        *out++ = notes->index[i];
    }
}

static const lode_topk_parts_t parts = {collect, emit, lode_avx2_note, count, emit_noted};

size_t lode_avx2_topk(const float *scores, size_t n, size_t k, uint32_t *out)
{
    return lode_topk_sampled(&parts, scores, n, k, out);
}

size_t lode_avx2_topk_noted(const float *scores, size_t n, size_t k, lode_notes_t *notes, uint32_t *out)
{
    return lode_topk_from_notes(&parts, lode_avx2_topk, scores, n, k, notes, out);
}
