/* SPDX-License-Identifier: Apache-2.0 */
/* What stands between scores and chosen tokens: log-sum-exp, the group's maximum, top-k. */
#include "kernels_check.h"

static void logsumexp(const lode_ops_t *ops)
{
    static const size_t lengths[] = {0, 1, 2, 15, 16, 17, 31, 33, 1000, 4097, 100001};
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
        for (int kind = 0; kind < KINDS; kind++) {
            size_t n = lengths[l];
            guarded_t x = guarded_make(4 * n, 4);
            float *at = (float *)x.at;
            check_fill((kind_t)kind, at, n);
            double most = -INFINITY, sum = 0;
            for (size_t i = 0; i < n; i++)
                most = at[i] > most ? at[i] : most;
            for (size_t i = 0; i < n; i++)
                sum += exp(at[i] - most);
            double right = n ? most + log(sum) : -INFINITY;
            float got = ops->logsumexp(at, n);
            expect(n ? fabs(got - right) <= 1e-6 * (fabs(right) + 1) : got == -INFINITY, "n %zu %s: %.9g, not %.9g", n,
                   kind_names[kind], got, right);
            guarded_free(&x);
        }
}
TEST_LEVELS(choice, logsumexp)

/* One term after another falls below the greatest, down to nothing: exp itself, to one part in a million. */
static void exponential(const lode_ops_t *ops)
{
    for (int i = 0; i < 3000; i++) {
        float x[2] = {0, (float)(-20 * check_uniform())};
        double right = log1p(exp(x[1]));
        expect(fabs(ops->logsumexp(x, 2) - right) <= 1.2e-7 + 1e-6 * right, "log(1 + exp(%.9g)) is %.9g, not %.9g",
               x[1], ops->logsumexp(x, 2), right);
    }
    float far[] = {0, -1e4f, -200, -104, -88, -3.4e38f};
    expect(ops->logsumexp(far, 6) == 0, "%g", ops->logsumexp(far, 6));
}
TEST_LEVELS(choice, exponential)

static void group_max(const lode_ops_t *ops)
{
    static const size_t lengths[] = {0, 1, 15, 16, 17, 33, 500};
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
        for (int g = 0; g < 7; g++)
            for (int in_place = 0; in_place < 2; in_place++) {
                size_t n = lengths[l], stride = n + 5;
                uint32_t group = check_groups[g];
                guarded_t x = guarded_make(4 * stride * group, 4), out = guarded_make(4 * n, 4);
                float shift[16], *at = (float *)x.at, *right = calloc(n + 1, sizeof *right);
                check_fill(OUTLIER, at, stride * group);
                check_fill(RANDOM, shift, group);
                for (size_t i = 0; i < n; i++) {
                    right[i] = -INFINITY;
                    for (uint32_t j = 0; j < group; j++)
                        right[i] = fmaxf(right[i], at[j * stride + i] - shift[j]);
                }
                float *to = in_place ? at : (float *)out.at;
                ops->group_max(at, stride, shift, group, to, n);
                expect(memcmp(to, right, 4 * n) == 0, "n %zu group %u", n, group);
                free(right);
                guarded_free(&x);
                guarded_free(&out);
            }
}
TEST_LEVELS(choice, group_max)

/* ------------------------------------------------------------------- top-k */

typedef struct entry {
    float score;
    uint32_t index;
} entry_t;

static int by_rank(const void *a, const void *b)
{
    const entry_t *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static int by_index(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

/* Check several k on the same scores. */
static void topk_case(const lode_ops_t *ops, const char *what, const float *scores, size_t n)
{
    const size_t ks[] = {0, 1,     2,        15, 16, 17, n / 100, n / 32, n / 3, n / 2, n - n / 5, n ? n - 1 : 0,
                         n, n + 1, 3 * n + 7};
    entry_t *ranked = calloc(n + 1, sizeof *ranked);
    uint32_t *right = calloc(n + 1, sizeof *right);
    for (size_t i = 0; i < n; i++)
        ranked[i] = (entry_t){scores[i], (uint32_t)i};
    qsort(ranked, n, sizeof *ranked, by_rank);
    for (size_t c = 0; c < sizeof ks / sizeof *ks; c++) {
        size_t k = ks[c], size = k < n ? k : n;
        guarded_t out = guarded_make(4 * size, 4);
        for (size_t i = 0; i < size; i++)
            right[i] = ranked[i].index;
        qsort(right, size, sizeof *right, by_index);
        size_t got = ops->topk(scores, n, k, (uint32_t *)out.at);
        expect(got == size, "%s, n %zu k %zu: %zu", what, n, k, got);
        for (size_t i = 0; i < size; i++)
            expect(((uint32_t *)out.at)[i] == right[i], "%s, n %zu k %zu: [%zu] is %u, not %u", what, n, k, i,
                   ((uint32_t *)out.at)[i], right[i]);
        guarded_free(&out);
    }
    free(ranked);
    free(right);
}

/* Over and under 32768 is where the faster forms change their way. */
static const size_t topk_lengths[] = {0, 1, 2, 16, 31, 33, 100, 1000, 8192, 32768, 32769, 100003};
#define TOPK_LENGTHS (sizeof topk_lengths / sizeof *topk_lengths)

static void topk_kinds(const lode_ops_t *ops)
{
    for (size_t l = 0; l < TOPK_LENGTHS; l++)
        for (int kind = 0; kind < KINDS; kind++) {
            size_t n = topk_lengths[l];
            guarded_t scores = guarded_make(4 * n, 4);
            check_fill((kind_t)kind, (float *)scores.at, n);
            topk_case(ops, kind_names[kind], (float *)scores.at, n);
            guarded_free(&scores);
        }
}
TEST_LEVELS(choice, topk_kinds)

static float tied(size_t i, size_t n)
{
    (void)n;
    return (float)((i * 2654435761u >> 7) % 5);
}

static float rising(size_t i, size_t n)
{
    return (float)i - (float)n / 2;
}

static float falling(size_t i, size_t n)
{
    return (float)n / 2 - (float)i;
}

static float zeros(size_t i, size_t n)
{
    (void)n;
    return i * 2654435761u >> 9 & 1 ? -0.0f : 0.0f;
}

static float infinities(size_t i, size_t n)
{
    (void)n;
    uint32_t r = check_below(10);
    return r == 0 ? INFINITY : r < 4 ? -INFINITY : i % 2 ? -0.0f : (float)check_gaussian();
}

static float most_tied(size_t i, size_t n)
{
    return i % 1000 == n % 1000 ? (float)check_gaussian() : 0.25f;
}

/* What a sample with a fixed step sees nothing of: a wave of its own length, great scores in one place only. */
static float wave(size_t i, size_t n)
{
    return i % (n / 8192 + 1) == 0 ? 10 + (float)check_uniform() : (float)check_gaussian();
}

static float clustered(size_t i, size_t n)
{
    return i > n / 2 && i < n / 2 + n / 64 ? 50 + (float)check_uniform() : (float)check_gaussian();
}

static void topk_shapes(const lode_ops_t *ops)
{
    static const struct {
        const char *what;
        float (*score)(size_t i, size_t n);
    } shapes[] = {
        {"tied", tied}, {"rising", rising},         {"falling", falling},     {"zeros", zeros},
        {"wave", wave}, {"infinities", infinities}, {"most tied", most_tied}, {"clustered", clustered},
    };
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (size_t l = 0; l < TOPK_LENGTHS; l++) {
            size_t n = topk_lengths[l];
            guarded_t scores = guarded_make(4 * n, 4);
            for (size_t i = 0; i < n; i++)
                ((float *)scores.at)[i] = shapes[s].score(i, n);
            topk_case(ops, shapes[s].what, (float *)scores.at, n);
            guarded_free(&scores);
        }
}
TEST_LEVELS(choice, topk_shapes)
