/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/select.cu against lode_choose(): token for token, but for what rounding of the groups' shifts decides.
 */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device_open.h"
#include "landmarks/landmarks.h"

enum { MOST_PIECES = 40, MOST_CHOICES = 12, GUARD = 64 };

static const lode_ops_t *scalar;
static const lode_device_ops_t *gpu;
static lode_device_h device;
static int thread_before;
static lode_device_stream_t stream;
static uint64_t seed;
static bool share_guess;

static void setup(void)
{
    seed = device_seed(lode_now_ns());
    fprintf(stderr, "LODEMARK_TEST_SEED=%llu\n", (unsigned long long)seed);
    cr_assert(lode_ops_get("scalar", &scalar) == LODE_OK);
    device_open(&gpu, &device, &thread_before, &stream);
}

static void teardown(void)
{
    device_close(gpu, &device, thread_before, stream);
}

TestSuite(device_select, .init = setup, .fini = teardown, .timeout = 120);

static uint64_t below(uint64_t n)
{
    seed = lode_mix(seed, 29);
    return seed % n;
}

static double uniform(void)
{
    return ((double)below(1u << 30) + 0.5) * 0x1p-30;
}

static float gauss(void)
{
    double radius = sqrt(-2 * log(uniform()));
    return (float)(radius * cos(6.283185307179586 * uniform()));
}

static void *on_device(const void *from, size_t bytes)
{
    void *memory;
    cr_assert(gpu->alloc(device, bytes ? bytes : 1, &memory) == LODE_OK, "%s", gpu->error());
    if (from && bytes)
        cr_assert(gpu->copy(stream, memory, from, bytes) == LODE_OK, "%s", gpu->error());
    return memory;
}

static void to_host(void *to, const void *from, size_t bytes)
{
    cr_assert(gpu->copy(stream, to, from, bytes) == LODE_OK, "%s", gpu->error());
    cr_assert(gpu->stream_wait(stream) == LODE_OK, "%s", gpu->error());
}

/* -------------------------------------------------------------------- cases */

typedef enum kind {
    SMOOTH,
    TIES,      /* few values */
    EQUAL,     /* one */
    HOLES,     /* NaN here and there */
    FEW,       /* almost all are NaN */
    INFINITE,  /* both infinities here and there, both zeros */
    CROWDED,   /* the best are neighbours */
    DOMINATED, /* one score a row is so great that it is the row's log-sum-exp to the bit */
    KINDS
} kind_t;

/* A choice as both sides take it. */
typedef struct test_case {
    lode_piece_t pieces[MOST_PIECES];
    lode_device_piece_t device_pieces[MOST_PIECES];
    lode_choice_t choice;
    lode_device_choice_t device_choice;
    size_t landmarks, stride; /* without gaps */
    float *scores;
    float *wide;          /* the same with gaps, as the device has them */
    float *device_scores; /* on the device; overwritten */
    uint32_t *tokens;
    uint64_t count;
    float guess;
    kind_t kind;
} test_case_t;

static float score_of(kind_t kind, size_t i, size_t n)
{
    switch (kind) {
    case TIES:
        return (float)below(5) - 2;
    case EQUAL:
        return -3.25f;
    case HOLES:
        return below(50) ? 4 * gauss() : NAN;
    case FEW:
        return below(400) ? NAN : gauss();
    case INFINITE:
        return below(9) ? (float)below(3) * gauss() : below(3) ? -INFINITY : below(2) ? INFINITY : -0.0f;
    case CROWDED:
        return gauss() + (i > n / 3 && i < n / 3 + n / 20 + 3 ? 20 : 0);
    default:
        return 3 * gauss() - 5;
    }
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Pieces with up to so many landmarks in all, and what sinks and window leave of them. @return tokens that compete */
static uint64_t lay_out(test_case_t *test, uint32_t most_pieces, uint64_t most_landmarks)
{
    uint32_t count = 1 + (uint32_t)below(most_pieces), chunk = test->choice.chunk;
    uint64_t visible = 0, first = below(2) ? 0 : below(1000), competing = 0;
    uint32_t place = 0;
    for (uint32_t p = 0; p < count; p++) {
        uint64_t share = most_landmarks * chunk / count,
                 tokens = below(7) || most_pieces == 1 ? share - below(share / 2 + 1) : below(2);
        uint64_t landmarks = (tokens + chunk - 1) / chunk;
        test->pieces[p] = (lode_piece_t){tokens, landmarks, first};
        test->landmarks += landmarks;
        visible += tokens;
        first += tokens + (below(2) ? 0 : below(100));
    }
    test->choice.sinks = below(2) ? below(100) : below(3) ? 0 : below(first + 1);
    test->choice.window_begin = below(2) ? first - least(first, below(200)) : below(3) ? first : below(first + 1);
    for (uint32_t p = 0; p < count; p++) {
        const lode_piece_t *piece = &test->pieces[p];
        uint64_t at = piece->first_token, window = test->choice.window_begin, sinks = test->choice.sinks;
        uint32_t begin = sinks > at ? (uint32_t)least(sinks - at, piece->tokens) : 0;
        uint32_t end = window > at ? (uint32_t)least(window - at, piece->tokens) : 0;
        end = end > begin ? end : begin;
        test->device_pieces[p] = (lode_device_piece_t){.first_token = at,
                                                       .tokens = (uint32_t)piece->tokens,
                                                       .landmarks = (uint32_t)piece->landmarks,
                                                       .first_landmark = place,
                                                       .begin = begin,
                                                       .end = end};
        competing += end - begin;
        place += (uint32_t)((piece->landmarks + 3) & ~3u);
        if (piece->landmarks)
            test->device_choice.landmarks = test->device_pieces[p].first_landmark + test->device_pieces[p].landmarks;
    }
    test->choice.piece_count = count;
    test->device_choice.stride = ((uint64_t)place + 3 + 4 * below(3)) & ~(uint64_t)3;
    test->choice.budget = visible - competing;
    return competing;
}

static void scores_make(test_case_t *test, kind_t kind)
{
    uint32_t group = test->choice.group;
    size_t n = test->landmarks, device_stride = test->device_choice.stride;
    test->kind = kind;
    test->stride = n + below(5);
    test->scores = malloc((group * test->stride + 1) * sizeof(float));
    test->wide = malloc((group * device_stride + 1) * sizeof(float));
    for (size_t i = 0; i < group * device_stride; i++)
        test->wide[i] = below(2) ? NAN : 1e30f; /* in gaps: it may never count */
    for (uint32_t g = 0; g < group; g++) {
        for (size_t i = 0; i < n; i++)
            test->scores[g * test->stride + i] = score_of(kind, i, n);
        if (kind == DOMINATED && n)
            test->scores[g * test->stride + below(n)] = 80 + (float)g;
        const float *from = test->scores + g * test->stride;
        for (uint32_t p = 0; p < test->choice.piece_count; p++) {
            memcpy(test->wide + g * device_stride + test->device_pieces[p].first_landmark, from,
                   test->pieces[p].landmarks * sizeof(float));
            from += test->pieces[p].landmarks;
        }
    }
    test->device_scores = on_device(NULL, group * device_stride * sizeof(float));
}

static void case_make(test_case_t *test, uint32_t group, uint32_t chunk, kind_t kind, uint32_t most_pieces,
                      uint64_t most_landmarks)
{
    static const float guesses[] = {NAN, -INFINITY, INFINITY, 0, 3, -1e-3f, 1e30f};
    memset(test, 0, sizeof *test);
    test->choice = (lode_choice_t){.pieces = test->pieces, .chunk = chunk, .group = group, .merge = LODE_MERGE_MAX};
    uint64_t competing = lay_out(test, most_pieces, most_landmarks);
    uint64_t wanted = competing ? below(4) ? below(competing / 8 + 1) : below(competing) : 0;
    if (competing == 0) /* such a choice takes all: the step does not ask */
        test->choice.piece_count = test->device_choice.landmarks = 0, test->landmarks = 0, test->choice.budget = 0;
    test->choice.budget += wanted;
    scores_make(test, kind);
    test->device_choice.scores = test->device_scores;
    test->device_choice.group = group;
    test->device_choice.piece_count = test->choice.piece_count;
    test->device_choice.chunk = chunk;
    test->device_choice.wanted = (uint32_t)wanted;
    test->device_choice.count = (uint32_t)test->choice.budget;
    test->guess = guesses[below(sizeof guesses / sizeof *guesses)];
}

/* One piece of so many landmarks of one token, or some fewer, and nothing forced. */
static void plain_make(test_case_t *test, uint64_t most_landmarks, uint32_t wanted)
{
    uint64_t n = most_landmarks - below(most_landmarks / 10), first = below(1000);
    *test = (test_case_t){
        .landmarks = n,
        .pieces = {{n, n, first}},
        .device_pieces = {{first, (uint32_t)n, (uint32_t)n, 0, 0, (uint32_t)n}},
        .choice = {.pieces = test->pieces,
                   .piece_count = 1,
                   .chunk = 1,
                   .group = 1,
                   .budget = wanted,
                   .window_begin = first + n},
        .device_choice = {.stride = (n + 3) & ~(uint64_t)3,
                          .landmarks = (uint32_t)n,
                          .group = 1,
                          .piece_count = 1,
                          .chunk = 1,
                          .wanted = wanted,
                          .count = wanted},
    };
    scores_make(test, SMOOTH);
    test->device_choice.scores = test->device_scores;
}

static void case_free(test_case_t *test)
{
    free(test->scores);
    free(test->wide);
    free(test->tokens);
    gpu->free(device, test->device_scores);
}

/* What lode_choose() gives; the scores stay as they are. */
static void case_choose(test_case_t *test)
{
    size_t floats = test->choice.group * test->stride + 1;
    float *scores = malloc(floats * sizeof(float));
    uint32_t *scratch = malloc((test->landmarks + 1) * sizeof(uint32_t));
    test->tokens = malloc((test->choice.budget + test->choice.chunk + 1) * sizeof(uint32_t));
    memcpy(scores, test->scores, (floats - 1) * sizeof(float));
    test->count =
        test->choice.piece_count ? lode_choose(scalar, &test->choice, scores, test->stride, scratch, test->tokens) : 0;
    free(scores);
    free(scratch);
}

/* ------------------------------------------------------------------ compare */

/* The score of the landmark that a token belongs to: as lode_choose() combines it, in doubles. */
static double combined_of(const test_case_t *test, uint32_t token)
{
    size_t base = 0;
    double most = -INFINITY;
    for (uint32_t p = 0; p < test->choice.piece_count; p++) {
        const lode_piece_t *piece = &test->pieces[p];
        if (token >= piece->first_token && token < piece->first_token + piece->tokens) {
            size_t at = base + (token - piece->first_token) / test->choice.chunk;
            for (uint32_t g = 0; g < test->choice.group; g++) {
                const float *row = test->scores + g * test->stride;
                double shift = test->choice.group > 1 ? scalar->logsumexp(row, test->landmarks) : 0;
                most = fmax(most, row[at] - (isfinite(shift) ? shift : 0));
            }
            return most;
        }
        base += piece->landmarks;
    }
    return NAN;
}

static bool holds(const uint32_t *tokens, uint64_t count, uint32_t token)
{
    for (uint64_t low = 0, high = count; low < high;) {
        uint64_t middle = low + (high - low) / 2;
        if (tokens[middle] == token)
            return true;
        if (tokens[middle] < token)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

/* Tokens that only one side chose have scores next to one another's: rounding chose between them. */
static void compare_near(const test_case_t *test, const uint32_t *got)
{
    double low = INFINITY, high = -INFINITY;
    for (uint64_t i = 1; i < test->count; i++)
        cr_assert(got[i] > got[i - 1], "tokens do not ascend");
    for (uint64_t i = 0; i < test->count; i++) {
        const uint32_t token[2] = {got[i], test->tokens[i]};
        const uint32_t *other[2] = {test->tokens, got};
        for (int side = 0; side < 2; side++) {
            if (holds(other[side], test->count, token[side]))
                continue;
            double score = combined_of(test, token[side]);
            low = fmin(low, score);
            high = fmax(high, score);
        }
    }
    cr_assert(!(high - low > 2e-5), "scores of what one side alone chose lie %g apart", high - low);
}

static void case_compare(const test_case_t *test, bool exact, const uint32_t *got, uint32_t count)
{
    cr_assert(count == test->count, "%u tokens, not %lu, of %u wanted", count, (unsigned long)test->count,
              test->device_choice.wanted);
    for (uint64_t i = 0; exact && i < count; i++)
        cr_assert(got[i] == test->tokens[i],
                  "token %lu of %u is %u, not %u (wanted %u, landmarks %zu, chunk %u, kind %d, pieces %u, guess %g)",
                  (unsigned long)i, count, got[i], test->tokens[i], test->device_choice.wanted, test->landmarks,
                  test->choice.chunk, (int)test->kind, test->choice.piece_count, test->guess);
    if (!exact)
        compare_near(test, got);
}

/* Run choices on the device in one call, each with guards around its tokens, and compare. The guesses are replaced. */
static void run_and_compare(test_case_t *tests, uint32_t n, bool exact)
{
    lode_device_choice_t choices[MOST_CHOICES];
    lode_device_piece_t pieces[MOST_CHOICES * MOST_PIECES];
    float guesses[MOST_CHOICES];
    uint32_t piece_count = 0, most = 0, counts[MOST_CHOICES];
    uint64_t token_count = GUARD;
    float *device_guesses = on_device(NULL, sizeof guesses);
    for (uint32_t c = 0; c < n; c++) {
        choices[c] = tests[c].device_choice;
        cr_assert(gpu->copy(stream, choices[c].scores, tests[c].wide,
                            choices[c].group * choices[c].stride * sizeof(float)) == LODE_OK);
        choices[c].first_piece = piece_count;
        choices[c].tokens = token_count;
        choices[c].guess = device_guesses + (share_guess ? 0 : c);
        guesses[c] = tests[c].guess;
        memcpy(pieces + piece_count, tests[c].device_pieces, choices[c].piece_count * sizeof *pieces);
        piece_count += choices[c].piece_count;
        token_count += choices[c].count + GUARD;
        most = choices[c].landmarks > most ? choices[c].landmarks : most;
    }
    uint32_t *tokens = malloc(token_count * sizeof *tokens);
    memset(tokens, 0xa5, token_count * sizeof *tokens);
    memset(counts, 0xa5, sizeof counts);
    cr_assert(gpu->copy(stream, device_guesses, guesses, sizeof guesses) == LODE_OK);
    void *device_choices = on_device(choices, n * sizeof *choices),
         *device_pieces = on_device(pieces, piece_count * sizeof *pieces),
         *scratch = on_device(NULL, gpu->select_scratch(n, most)), *device_counts = on_device(counts, sizeof counts);
    uint32_t *device_tokens = on_device(tokens, token_count * sizeof *tokens);
    cr_assert(gpu->select(stream, device_choices, n, device_pieces, most, scratch, device_tokens, device_counts) ==
                  LODE_OK,
              "%s", gpu->error());
    to_host(counts, device_counts, sizeof counts);
    to_host(guesses, device_guesses, sizeof guesses);
    to_host(tokens, device_tokens, token_count * sizeof *tokens);
    uint64_t at = 0;
    for (uint32_t c = 0; c < n; c++) {
        for (; at < choices[c].tokens; at++)
            cr_assert(tokens[at] == 0xa5a5a5a5, "before choice %u, token %lu is written", c, (unsigned long)at);
        case_compare(&tests[c], exact, tokens + at, counts[c]);
        at += counts[c];
        tests[c].guess = guesses[c];
    }
    for (; at < token_count; at++)
        cr_assert(tokens[at] == 0xa5a5a5a5, "behind the last");
    void *all[] = {device_guesses, device_choices, device_pieces, scratch, device_counts, device_tokens};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        gpu->free(device, all[i]);
    free(tokens);
}

/* -------------------------------------------------------------------- tests */

static void many(uint32_t n, uint32_t group, kind_t kind, uint32_t most_pieces, uint64_t most_landmarks, bool exact)
{
    test_case_t tests[MOST_CHOICES];
    for (uint32_t c = 0; c < n; c++) {
        uint32_t chunk = below(3) ? 1 + (uint32_t)below(16) : 1;
        kind_t its = kind == KINDS ? (kind_t)below(DOMINATED) : kind;
        case_make(&tests[c], group, chunk, its, most_pieces, 1 + most_landmarks - below(most_landmarks / 2 + 1));
        case_choose(&tests[c]);
    }
    run_and_compare(tests, n, exact);
    run_and_compare(tests, n, exact); /* by the guesses that were left */
    for (uint32_t c = 0; c < n; c++)
        case_free(&tests[c]);
}

/* Choices of one tile: the launch that does all. */
Test(device_select, small)
{
    many(MOST_CHOICES, 1, KINDS, 4, 300, true);
    many(MOST_CHOICES, 1, KINDS, MOST_PIECES, 4096 - 4 * MOST_PIECES, true);
}

/* Of several tiles: three launches. Of the kinds some have no use for a sample, and pass over all scores. */
Test(device_select, large)
{
    for (int kind = 0; kind < DOMINATED; kind++)
        many(2, 1, (kind_t)kind, kind % 2 ? 3 : MOST_PIECES, kind % 3 ? 9000 : 13000, true);
}

/* So many tiles that several blocks write tokens. */
Test(device_select, wide)
{
    many(1, 1, below(2) ? SMOOTH : HOLES, 7, 140000, true);
}

/* Most tokens are wanted: what is listed does not fit, whatever the guess. */
Test(device_select, most)
{
    static const float guesses[] = {-INFINITY, NAN};
    for (int g = 0; g < 2; g++) {
        test_case_t test;
        plain_make(&test, 20000, 17000);
        test.guess = guesses[g];
        case_choose(&test);
        run_and_compare(&test, 1, true);
        case_free(&test);
    }
}

/* Small and large ones in one call. */
Test(device_select, mixed)
{
    test_case_t tests[3];
    case_make(&tests[0], 1, 1, SMOOTH, 2, 9000);
    case_make(&tests[1], 1, 16, TIES, 2, 40);
    case_make(&tests[2], 1, 3, HOLES, 5, 5000);
    for (int c = 0; c < 3; c++)
        case_choose(&tests[c]);
    run_and_compare(tests, 3, true);
    for (int c = 0; c < 3; c++)
        case_free(&tests[c]);
}

/* Each row's log-sum-exp is the same to the bit on both sides, or none. */
Test(device_select, groups_exact)
{
    many(4, 2, DOMINATED, 3, 3000, true);
    many(2, 4, DOMINATED, 5, 11000, true);
    many(2, 16, DOMINATED, 2, 1000, true);
    many(2, 4, INFINITE, 3, 9000, true);
    many(2, 3, HOLES, 3, 9000, true);
}

Test(device_select, groups_near)
{
    many(4, 2, SMOOTH, 3, 3000, false);
    many(2, 4, SMOOTH, 5, 11000, false);
    many(1, 16, SMOOTH, 2, 6000, false);
    many(2, 5, CROWDED, 3, 5000, false);
}

/* The guess that is left is a little below the least score that was picked, so that it serves the next time. */
Test(device_select, guess)
{
    for (int large = 0; large < 2; large++) {
        test_case_t test;
        plain_make(&test, large ? 12000 : 3000, 400);
        test.guess = large ? NAN : 1e9f;
        case_choose(&test);
        run_and_compare(&test, 1, true);
        uint32_t above = 0;
        for (size_t i = 0; i < test.landmarks; i++)
            above += test.scores[i] >= test.guess;
        cr_assert(above >= 400 && above <= 700, "%u scores reach the guess, of 400 wanted", above);
        case_free(&test);
    }
}

/* Rows may share a guess, as they do on processors. */
Test(device_select, shared_guess)
{
    test_case_t tests[2];
    for (uint32_t c = 0; c < 2; c++) {
        case_make(&tests[c], 1, 1, SMOOTH, 2, 9000);
        case_choose(&tests[c]);
    }
    share_guess = true;
    run_and_compare(tests, 2, true);
    run_and_compare(tests, 2, true);
    share_guess = false;
    for (uint32_t c = 0; c < 2; c++)
        case_free(&tests[c]);
}

Test(device_select, refuses)
{
    cr_assert(gpu->select(stream, NULL, 0, NULL, 100, NULL, NULL, NULL) == LODE_OK);
    cr_assert(gpu->select(stream, NULL, 1, NULL, 1u << 28, NULL, NULL, NULL) == LODE_ERR_INVALID);
    cr_assert(strstr(gpu->error(), "too many"), "%s", gpu->error());
}
