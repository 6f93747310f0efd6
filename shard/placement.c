/* SPDX-License-Identifier: Apache-2.0 */
#include <assert.h>
#include <math.h>

#include "shard/shard.h"

#define RANKS_MAX 4096

typedef enum standing { STANDING_OUT, STANDING_FREE, STANDING_NODE_NAMED } standing_t;

/*
 * −ln(u) of a hash seen as u in (0, 1). All ranks must agree on it to the last bit, whatever their CPU and
 * C library, and libm's log() does not promise that: so only +, ×, ÷, which IEEE 754 rounds alike everywhere.
 */
static double minus_log(uint64_t hash)
{
    int exponent;
    double m = frexp((double)((hash >> 12) * 2 + 1), &exponent); /* 53 bits: exact; u = m · 2^(exponent − 53) */
    if (m < 0.70710678118654752) {
        m *= 2;
        exponent--;
    }
    double z = (m - 1) / (m + 1), z2 = z * z, series = 0; /* ln m = 2 artanh z, |z| ≤ 0.172: 12 terms reach 1e-19 */
    for (int k = 23; k > 0; k -= 2)
        series = series * z2 + 1.0 / k;
    return (53 - exponent) * 0.69314718055994531 - 2 * z * series;
}

/* How many ranks of the same node stand before this one: a name within the node that outlives a restart. */
static void ordinals(const lode_place_t *places, uint32_t ranks, uint16_t *ordinal)
{
    for (uint32_t i = 0; i < ranks; i++) {
        uint32_t j = i;
        while (j > 0 && places[j - 1].node != places[i].node)
            j--;
        ordinal[i] = j > 0 ? (uint16_t)(ordinal[j - 1] + 1) : 0;
    }
}

static uint32_t best(const double *scores, const standing_t *standing, uint32_t ranks, standing_t wanted)
{
    uint32_t found = ranks;
    for (uint32_t i = 0; i < ranks; i++) {
        if (standing[i] == wanted && (found == ranks || scores[i] > scores[found]))
            found = i;
    }
    return found;
}

/*
 * Each rank's score is weight / −ln(u), and a node stands as high as its best rank. The least of exponential
 * waiting times with rates w1, w2, … is itself exponential with rate w1 + w2 + …, so nodes are chosen by the sum
 * of their ranks' weights without ever hashing that sum, and a rank that leaves cannot pull its node's other pages
 * along.
 */
uint32_t lode_placement(const lode_place_t *places, uint32_t ranks, lode_page_id_t id, uint32_t k, uint32_t *owners)
{
    double scores[RANKS_MAX];
    standing_t standing[RANKS_MAX];
    uint16_t ordinal[RANKS_MAX];
    assert(ranks <= RANKS_MAX);
    uint64_t page = lode_mix(id.block, (uint64_t)id.layer << 32 | id.page);
    ordinals(places, ranks, ordinal);
    for (uint32_t i = 0; i < ranks; i++) {
        scores[i] = (double)places[i].weight / minus_log(lode_mix(page, lode_mix(places[i].node, ordinal[i] + 1u)));
        standing[i] = places[i].weight > 0 ? STANDING_FREE : STANDING_OUT;
    }
    for (uint32_t count = 0; count < k; count++) {
        uint32_t owner = best(scores, standing, ranks, STANDING_FREE);
        if (owner == ranks)
            owner = best(scores, standing, ranks, STANDING_NODE_NAMED);
        if (owner == ranks)
            return count;
        owners[count] = owner;
        for (uint32_t i = 0; i < ranks; i++) {
            if (standing[i] == STANDING_FREE && places[i].node == places[owner].node)
                standing[i] = STANDING_NODE_NAMED;
        }
        standing[owner] = STANDING_OUT;
    }
    return k;
}
