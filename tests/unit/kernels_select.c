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
        for (size_t i = 0; i < size && memcmp(out.at, right, 4 * size) != 0; i++)
            expect(((uint32_t *)out.at)[i] == right[i], "%s, n %zu k %zu: [%zu] is %u, not %u", what, n, k, i,
                   ((uint32_t *)out.at)[i], right[i]);
        guarded_free(&out);
    }
    free(ranked);
    free(right);
}

/* Over 4096, and where a share of n passes 24576, is where the faster forms change their way. */
static const size_t topk_lengths[] = {0, 1, 2, 16, 31, 33, 100, 1000, 4096, 4097, 32769, 100003};
#define TOPK_LENGTHS (sizeof topk_lengths / sizeof *topk_lengths)

/* The longest list takes most of the time. */
static size_t lengths_of(size_t shape)
{
    return ONE_OF(4, shape) ? TOPK_LENGTHS : TOPK_LENGTHS - 1;
}

static void topk_kinds(const lode_ops_t *ops)
{
    for (int kind = 0; kind < KINDS; kind++)
        for (size_t l = 0; l < lengths_of((size_t)kind); l++) {
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
        for (size_t l = 0; l < lengths_of(s); l++) {
            size_t n = topk_lengths[l];
            guarded_t scores = guarded_make(4 * n, 4);
            for (size_t i = 0; i < n; i++)
                ((float *)scores.at)[i] = shapes[s].score(i, n);
            topk_case(ops, shapes[s].what, (float *)scores.at, n);
            guarded_free(&scores);
        }
}
TEST_LEVELS(choice, topk_shapes)

/* Scores that are NaN are never chosen, even if there are not k others; the rest is chosen as if they were not there.
 */
static void topk_nan(const lode_ops_t *ops)
{
    static const size_t lengths[] = {16, 17, 1000, 4097, 40001};
    static const double shares[] = {0.001, 0.5, 0.99, 1};
    static float scores[40001], plain[40001];
    static uint32_t right[40001];
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
        for (int s = 0; s < 4; s++)
            for (size_t c = 0; c < 4; c++) {
                size_t n = lengths[l], k = c == 0 ? 1 : c == 1 ? n / 100 : c == 2 ? n / 2 : n - 1, numbers = 0;
                for (size_t i = 0; i < n; i++) {
                    scores[i] = (float)check_gaussian();
                    if (check_uniform() < shares[s])
                        scores[i] = i % 2 ? NAN : -NAN;
                    else
                        plain[numbers++] = scores[i];
                }
                size_t size = k < numbers ? k : numbers, at = 0, number = 0;
                guarded_t out = guarded_make(4 * k, 4);
                check_scalar()->topk(plain, numbers, size, right);
                size_t got = ops->topk(scores, n, k, (uint32_t *)out.at);
                expect(got == size, "n %zu k %zu, %zu numbers: %zu", n, k, numbers, got);
                for (size_t i = 0; i < n && at < size; i++) {
                    if (isnan(scores[i]))
                        continue;
                    if (right[at] == number++)
                        expect(((uint32_t *)out.at)[at++] == i, "n %zu k %zu [%zu]", n, k, at);
                }
                expect(at == size, "n %zu k %zu: %zu", n, k, at);
                guarded_free(&out);
            }
}
TEST_LEVELS(choice, topk_nan)

/* ------------------------------------------------------- from a guess of the k-th */

typedef struct lent {
    guarded_t index, score;
} lent_t;

static lode_notes_t notes_lend(lent_t *lent, size_t room)
{
    lent->index = guarded_make(4 * (room + LODE_NOTES_SLACK), 4);
    lent->score = guarded_make(4 * (room + LODE_NOTES_SLACK), 12);
    return (lode_notes_t){.room = room, .index = (uint32_t *)lent->index.at, .score = (float *)lent->score.at};
}

static void notes_return(lent_t *lent)
{
    guarded_free(&lent->index);
    guarded_free(&lent->score);
}

/* Whatever the guess and the room, the same as topk; the guess that comes back serves at once. */
static void seeded_case(const lode_ops_t *ops, const char *what, const float *scores, size_t n, size_t k)
{
    size_t size = k < n ? k : n, rooms[] = {0, 1, size / 2, size, size + size / 4 + 7, n};
    uint32_t *right = calloc(n + 1, sizeof *right);
    check_scalar()->topk(scores, n, k, right);
    float kth = size ? INFINITY : 0;
    for (size_t i = 0; i < size; i++)
        kth = fminf(kth, scores[right[i]]);
    const float guesses[] = {NAN,         INFINITY,
                             -INFINITY,   3.4e38f,
                             -3.4e38f,    0,
                             kth,         nextafterf(kth, INFINITY),
                             kth + 1e-3f, kth - 1e-3f,
                             kth * 0.5f,  kth * 1.5f,
                             -fabsf(kth), n ? scores[0] : 1};
    for (size_t r = 0; r < sizeof rooms / sizeof *rooms; r++)
        for (size_t i = 0; i < sizeof guesses / sizeof *guesses; i++) {
            if (n > 2000 && !ONE_OF(3, r + i))
                continue;
            lent_t lent;
            lode_notes_t notes = notes_lend(&lent, rooms[r]);
            float guess = guesses[i];
            for (int again = 0; again < 2; again++) {
                guarded_t out = guarded_make(4 * size, 4);
                float before = guess;
                size_t got = lode_topk_seeded(ops, scores, n, k, &guess, &notes, (uint32_t *)out.at);
                expect(got == size && memcmp(out.at, right, 4 * size) == 0, "%s, n %zu k %zu room %zu guess %g: %zu",
                       what, n, k, rooms[r], before, got);
                expect(isnan(guess) || size == n || k == 0 || guess <= kth, "%s, n %zu k %zu: guess %g > %g", what, n,
                       k, guess, kth);
                guarded_free(&out);
            }
            notes_return(&lent);
        }
    free(right);
}

static void topk_from_guess(const lode_ops_t *ops)
{
    static const size_t lengths[] = {0, 1, 2, 15, 16, 17, 100, 1003, 5000, 40001};
    static float (*const shapes[])(size_t i, size_t n) = {tied, rising, zeros, infinities, most_tied};
    static float scores[40001];
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++) {
        size_t n = lengths[l];
        const size_t ks[] = {0, 1, n / 100, n / 3, n ? n - 1 : 0, n, n + 3};
        for (size_t c = 0; c < sizeof ks / sizeof *ks; c++) {
            size_t skew = n < 40001 ? c % 4 : 0;
            for (int kind = 0; kind < (n > 2000 ? 1 : KINDS); kind++) {
                check_fill((kind_t)kind, scores, n + skew);
                seeded_case(ops, kind_names[kind], scores + skew, n, ks[c]);
            }
            for (size_t s = 0; s < sizeof shapes / sizeof *shapes && n < 2000; s++) {
                for (size_t i = 0; i < n; i++)
                    scores[i] = shapes[s](i, n);
                seeded_case(ops, "shape", scores, n, ks[c]);
            }
        }
    }
}
TEST_LEVELS(choice, topk_from_guess)

/* In pieces and out of a group, what is noted is what a plain look finds; past the room it is only counted. */
static void notes(const lode_ops_t *ops)
{
    static const size_t lengths[] = {0, 1, 7, 8, 15, 16, 17, 33, 500};
    for (size_t l = 0; l < sizeof lengths / sizeof *lengths; l++)
        for (int g = 0; g < 7; g++)
            for (size_t room = 0; room < 600; room = room * 3 + 5) {
                size_t n = lengths[l], stride = n + 5, found = 0;
                uint32_t group = check_groups[g];
                float *x = calloc(stride * group, sizeof *x), *plain = calloc(n + 1, sizeof *plain), shift[16];
                guarded_t out = guarded_make(4 * n, 4);
                lent_t lent;
                lode_notes_t notes = notes_lend(&lent, room);
                check_fill(RANDOM, x, stride * group);
                check_fill(RANDOM, shift, group);
                notes.bound = (float)check_gaussian() + 1;
                check_scalar()->group_max(x, stride, shift, group, plain, n);
                for (size_t at = 0; at < n; at += n / 2 + 1) { /* two pieces */
                    size_t part = n - at < n / 2 + 1 ? n - at : n / 2 + 1;
                    ops->group_max_note(x + at, stride, shift, group, (float *)out.at + at, part, (uint32_t)at, &notes);
                }
                expect(memcmp(out.at, plain, 4 * n) == 0, "n %zu group %u", n, group);
                for (size_t i = 0; i < n; i++) {
                    if (plain[i] >= notes.bound && found++ < room)
                        expect(notes.index[found - 1] == i && notes.score[found - 1] == plain[i],
                               "n %zu group %u room %zu: note %zu is [%u] %g, not [%zu] %g", n, group, room, found - 1,
                               notes.index[found - 1], notes.score[found - 1], i, plain[i]);
                }
                expect(notes.count == found, "n %zu group %u: %zu, not %zu", n, group, notes.count, found);
                notes_return(&lent);
                guarded_free(&out);
                free(x);
                free(plain);
            }
}
TEST_LEVELS(choice, notes)
