/* SPDX-License-Identifier: Apache-2.0 */
/* The next token: the likeliest, or drawn from the likeliest few. */
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "reader/reader.h"

typedef struct choice {
    float logit;
    uint32_t token;
} choice_t;

static uint32_t likeliest(const float *logits, uint32_t vocabulary)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < vocabulary; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

/* Before another: likelier, or of equals the first. */
static bool before(choice_t x, choice_t y)
{
    return x.logit != y.logit ? x.logit > y.logit : x.token < y.token;
}

/* Choices, likeliest first, as far as they are asked for: of some hundred thousand few are. */
typedef struct ranking {
    choice_t *choices; /* a heap, and behind it what was taken from it */
    uint32_t count, taken;
    float top; /* logit of the likeliest */
} ranking_t;

static void sink(choice_t *heap, uint32_t count, uint32_t at)
{
    choice_t sinking = heap[at];
    for (uint32_t child; (child = 2 * at + 1) < count; at = child) {
        if (child + 1 < count && before(heap[child + 1], heap[child]))
            child++;
        if (!before(heap[child], sinking))
            break;
        heap[at] = heap[child];
    }
    heap[at] = sinking;
}

static choice_t ranked(ranking_t *ranking, uint32_t place)
{
    for (; ranking->taken <= place; ranking->taken++) {
        uint32_t last = ranking->count - 1 - ranking->taken;
        choice_t first = ranking->choices[0];
        ranking->choices[0] = ranking->choices[last];
        sink(ranking->choices, last, 0);
        ranking->choices[last] = first;
    }
    return ranking->choices[ranking->count - 1 - place];
}

/* [0, 1) from 53 bits of a counter's hash. */
static double draw(uint64_t *state)
{
    *state += 1;
    return (double)(lode_mix(*state, 0x5a3c71u) >> 11) * 0x1p-53;
}

/* Relative to the likeliest. */
static double weight(const lode_sampling_t *sampling, const ranking_t *ranking, choice_t choice)
{
    return exp(((double)choice.logit - (double)ranking->top) / sampling->temperature);
}

/* How many of the choices, likeliest first, make top_p of the whole, and what they weigh together. */
static uint32_t nucleus(const lode_sampling_t *sampling, ranking_t *ranking, double *mass)
{
    bool all = !sampling->top_k || sampling->top_k >= ranking->count; /* then their order does not matter */
    uint32_t n = all ? ranking->count : sampling->top_k, kept = 0;
    double whole = 0, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        whole += weight(sampling, ranking, all ? ranking->choices[i] : ranked(ranking, i));
    *mass = whole;
    if (sampling->top_p >= 1)
        return n;
    while (kept < n && (kept == 0 || sum < sampling->top_p * whole))
        sum += weight(sampling, ranking, ranked(ranking, kept++));
    *mass = sum;
    return kept;
}

uint32_t lode_sample(const lode_sampling_t *sampling, const float *logits, uint32_t vocabulary, uint64_t *state)
{
    choice_t *choices = sampling->temperature > 0 ? malloc(vocabulary * sizeof *choices) : NULL;
    if (!choices)
        return likeliest(logits, vocabulary);
    ranking_t ranking = {choices, vocabulary, 0, -INFINITY};
    for (uint32_t i = 0; i < vocabulary; i++) {
        choices[i] = (choice_t){logits[i], i};
        ranking.top = fmaxf(ranking.top, logits[i]);
    }
    for (uint32_t i = vocabulary / 2; i-- > 0;)
        sink(choices, vocabulary, i);
    double mass;
    uint32_t n = nucleus(sampling, &ranking, &mass), at = 0;
    double rest = draw(state) * mass;
    /* what weighs nothing is not taken, however the sums were rounded */
    while (at + 1 < n && (rest -= weight(sampling, &ranking, ranked(&ranking, at))) >= 0 &&
           weight(sampling, &ranking, ranked(&ranking, at + 1)) > 0)
        at++;
    uint32_t token = ranked(&ranking, at).token;
    free(choices);
    return token;
}
