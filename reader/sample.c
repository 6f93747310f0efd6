/* SPDX-License-Identifier: Apache-2.0 */
/* The next token: the likeliest, or drawn from the likeliest few. */
#include <math.h>
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

static int descending(const void *a, const void *b)
{
    const choice_t *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->token < y->token ? -1 : 1;
}

/* [0, 1) from 53 bits of a counter's hash. */
static double draw(uint64_t *state)
{
    *state += 1;
    return (double)(lode_mix(*state, 0x5a3c71u) >> 11) * 0x1p-53;
}

/* How many of the choices, likeliest first, make top_p of the whole; their weights are relative to the first. */
static uint32_t nucleus(const lode_sampling_t *sampling, const choice_t *choices, uint32_t n, double *mass)
{
    double whole = 0, sum = 0;
    for (uint32_t i = 0; i < n; i++)
        whole += exp((choices[i].logit - choices[0].logit) / sampling->temperature);
    uint32_t kept = 0;
    while (kept < n && (kept == 0 || sum < sampling->top_p * whole))
        sum += exp((choices[kept++].logit - choices[0].logit) / sampling->temperature);
    *mass = sum;
    return kept;
}

uint32_t lode_sample(const lode_sampling_t *sampling, const float *logits, uint32_t vocabulary, uint64_t *state)
{
    choice_t *choices = sampling->temperature > 0 ? malloc(vocabulary * sizeof *choices) : NULL;
    if (!choices)
        return likeliest(logits, vocabulary);
    for (uint32_t i = 0; i < vocabulary; i++)
        choices[i] = (choice_t){logits[i], i};
    qsort(choices, vocabulary, sizeof *choices, descending);
    uint32_t n = sampling->top_k && sampling->top_k < vocabulary ? sampling->top_k : vocabulary;
    double mass;
    n = nucleus(sampling, choices, n, &mass);
    double rest = draw(state) * mass;
    uint32_t at = 0;
    while (at + 1 < n && (rest -= exp((choices[at].logit - choices[0].logit) / sampling->temperature)) >= 0)
        at++;
    uint32_t token = choices[at].token;
    free(choices);
    return token;
}
