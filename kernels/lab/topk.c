/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lab: noting the scores over a bound, of which 1.1 % are. Reference: the scalar level. Floor: reading the scores.
 */
#include "kernels/lab/lab.h"

#define INLINE static inline __attribute__((always_inline))
#define STEP _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
enum { HEADS = 8, STRETCH = 2048 };

/* How the versions differ. */
typedef struct plan {
    bool branch;     /* ask whether a vector has anything to note */
    bool late;       /* scores are fetched by their indices, a stretch at a time */
    uint32_t ahead;  /* scores after which lines are asked for; 0: not at all */
    uint32_t unroll; /* vectors compared before any is noted */
} plan_t;

INLINE size_t note(plan_t plan, const float *scores, size_t n, float bound, uint32_t *index, float *score)
{
    const __m512 least = _mm512_set1_ps(bound);
    size_t count = 0;
    for (size_t begin = 0; begin < n; begin += STRETCH) {
        size_t from = count;
        for (size_t i = begin; i < begin + STRETCH; i += 16 * plan.unroll) {
            __mmask16 reach[4];
            for (uint32_t u = 0; u < plan.unroll; u++) {
                if (plan.ahead)
                    _mm_prefetch(scores + i + 16 * u + plan.ahead, _MM_HINT_T0);
                reach[u] = _mm512_cmp_ps_mask(_mm512_loadu_ps(scores + i + 16 * u), least, _CMP_GE_OQ);
            }
            for (uint32_t u = 0; u < plan.unroll; u++) {
                if (plan.branch && !reach[u])
                    continue;
                __m512i at = _mm512_add_epi32(STEP, _mm512_set1_epi32((int32_t)(i + 16 * u)));
                _mm512_storeu_si512(index + count, _mm512_maskz_compress_epi32(reach[u], at));
                if (!plan.late)
                    _mm512_storeu_ps(score + count,
                                     _mm512_maskz_compress_ps(reach[u], _mm512_loadu_ps(scores + i + 16 * u)));
                count += (size_t)__builtin_popcount(reach[u]);
            }
        }
        for (size_t i = from; plan.late && i < count; i++)
            score[i] = scores[index[i]];
    }
    return count;
}

#define VERSION(name, ...)                                                                        \
    static size_t name(const float *scores, size_t n, float bound, uint32_t *index, float *score) \
    {                                                                                             \
        return note((plan_t){__VA_ARGS__}, scores, n, bound, index, score);                       \
    }
VERSION(version1, true, false, 0, 1)     /* the plain way */
VERSION(version2, true, false, 1024, 1)  /* memory comes by itself only to a page's end */
VERSION(version3, false, false, 1024, 1) /* no branch: at 1 % every sixth is guessed wrong */
VERSION(version4, false, true, 1024, 1)  /* half the stores; the scores are still in the first cache */
VERSION(version5, false, true, 1024, 4)  /* four comparisons under way */
VERSION(version6, false, true, 0, 4)     /* does it still need to ask? */

typedef size_t (*version_t)(const float *scores, size_t n, float bound, uint32_t *index, float *score);
static const version_t versions[] = {version1, version2, version3, version4, version5, version6};
enum { VERSIONS = sizeof versions / sizeof *versions };

static void check(const lode_ops_t *scalar, const float *scores, size_t n, float bound, lode_notes_t *right,
                  uint32_t *index, float *score)
{
    right->bound = bound;
    right->count = 0;
    scalar->note(scores, n, 0, right);
    for (int v = 0; v < VERSIONS; v++)
        if (versions[v](scores, n, bound, index, score) != right->count ||
            memcmp(index, right->index, right->count * sizeof *index) != 0 ||
            memcmp(score, right->score, right->count * sizeof *score) != 0) {
            printf("version %d notes others than the scalar level\n", v + 1);
            exit(1);
        }
}

static void sweep(const lode_ops_t *scalar, size_t n, const float *other)
{
    const float bound = 2.3f;
    float *scores = (float *)lab_memory((HEADS * n + 4096) * sizeof *scores);
    uint32_t *index = malloc((n + 16) * sizeof *index);
    float *score = malloc((n + 16) * sizeof *score);
    lode_notes_t right = {
        .room = n, .index = malloc((n + 16) * sizeof *index), .score = malloc((n + 16) * sizeof *score)};
    double times[VERSIONS + 1][LAB_ROUNDS];
    if (!index || !score || !right.index || !right.score)
        exit(1);
    for (size_t i = 0; i < HEADS * n; i++)
        scores[i] = i < 65536 ? lab_gaussian() : scores[i % 65536] + scores[i / 65536] * 0.1f;
    check(scalar, scores, n, bound, &right, index, score);
    for (int round = 0; round < LAB_ROUNDS; round++)
        for (int v = 0; v <= VERSIONS; v++) {
            lab_read((const uint8_t *)other, 16 << 20); /* a scan comes between */
            double begin = lab_now();
            for (size_t head = 0; head < HEADS && v < VERSIONS; head++)
                versions[v](scores + head * n, n, bound, index, score);
            if (v == VERSIONS)
                lab_read((const uint8_t *)scores, HEADS * n * sizeof *scores);
            times[v][round] = (lab_now() - begin) / HEADS * 1e6;
        }
    printf("%zu scores, %zu noted; us a head:", n, right.count);
    for (int v = 0; v < VERSIONS; v++)
        printf("  v%d %.1f", v + 1, lab_median(times[v], LAB_ROUNDS));
    printf("  reading %.1f\n", lab_median(times[VERSIONS], LAB_ROUNDS));
    free(index);
    free(score);
    free(right.index);
    free(right.score);
}

int main(void)
{
    const lode_ops_t *scalar;
    if (lode_ops_get("scalar", &scalar) != LODE_OK)
        return 1;
    float *other = (float *)lab_memory(16 << 20);
    memset(other, 1, 16 << 20);
    for (size_t n = 1 << 15; n <= 1 << 20; n *= 2)
        sweep(scalar, n, other);
    return 0;
}
