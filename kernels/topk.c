/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/internal.h"

#define ROOM 32768 /* keys on the stack: 128 KiB */
#define LEAST_SAMPLE 1024
#define BUCKETS 2048

/*
 * The k-th greatest of n keys that lie in [low, high]; the keys are moved about. Each round keeps the keys of one
 * bucket, so that the second is short.
 */
static uint32_t kth_key(uint32_t *keys, size_t n, size_t k, uint32_t low, uint32_t high, size_t *above)
{
    *above = 0;
    while (low < high) {
        uint32_t counts[BUCKETS] = {0}, shift = 0;
        while ((high - low) >> shift >= BUCKETS)
            shift++;
        for (size_t i = 0; i < n; i++)
            counts[(keys[i] - low) >> shift]++;
        uint32_t bucket = (high - low) >> shift;
        while (*above + counts[bucket] < k)
            *above += counts[bucket--];
        size_t kept = 0;
        for (size_t i = 0; i < n; i++) {
            keys[kept] = keys[i];
            kept += (keys[i] - low) >> shift == bucket;
        }
        n = kept;
        uint32_t last = low + (bucket << shift) + ((1u << shift) - 1);
        low += bucket << shift;
        high = last < high ? last : high;
    }
    return low;
}

static uint32_t kth_of_all(uint32_t *keys, size_t n, size_t k, size_t *above)
{
    uint32_t low = UINT32_MAX, high = 0;
    for (size_t i = 0; i < n; i++) {
        low = keys[i] < low ? keys[i] : low;
        high = keys[i] > high ? keys[i] : high;
    }
    return kth_key(keys, n, k, low, high, above);
}

/* A key that is the rank-th greatest of `size` evenly spaced scores. */
static uint32_t sample_kth(const float *scores, size_t n, size_t size, size_t rank, uint32_t *keys)
{
    size_t above;
    for (size_t i = 0; i < size; i++)
        keys[i] = lode_order_key(scores[i * n / size]);
    return kth_of_all(keys, size, rank, &above);
}

/*
 * Bounds that have the k-th score between them but for a chance of about 1 in 15,000: four standard deviations of the
 * sample's rank on either side. The sample is as large as makes the scores between them fit three quarters of the room.
 */
static void bracket(const float *scores, size_t n, size_t k, uint32_t *keys, uint32_t *low, uint32_t *high)
{
    double share = (double)k / (double)n, ratio = 8 * (double)n / (0.75 * ROOM);
    double size = fmin(fmax(ceil(share * (1 - share) * ratio * ratio), LEAST_SAMPLE), ROOM);
    double rank = share * size, margin = 4 * sqrt(rank * (1 - share)) + 2;
    *high = lode_order_key(INFINITY);
    *low = lode_order_key(-INFINITY);
    if (rank - margin >= 1)
        *high = sample_kth(scores, n, (size_t)size, (size_t)(rank - margin), keys);
    if (rank + margin <= size)
        *low = sample_kth(scores, n, (size_t)size, (size_t)(rank + margin), keys);
}

static uint32_t find_kth(const lode_topk_parts_t *parts, const float *scores, size_t n, size_t k, size_t *above)
{
    uint32_t keys[ROOM], low, high;
    if (n <= ROOM) {
        for (size_t i = 0; i < n; i++)
            keys[i] = lode_order_key(scores[i]);
        return kth_of_all(keys, n, k, above);
    }
    bracket(scores, n, k, keys, &low, &high);
    size_t found, over = parts->collect(scores, n, lode_key_score(low), lode_key_score(high), keys, ROOM, &found);
    if (over >= k || over + found < k || found > ROOM)
        return lode_scalar_kth(scores, n, k, above); /* crowded ties, or a sample that misled: count all */
    uint32_t key = kth_key(keys, found, k - over, low, high, above);
    *above += over;
    return key;
}

size_t lode_topk_bracket(const lode_topk_parts_t *parts, const float *scores, size_t n, size_t k, uint32_t *out)
{
    if (k >= n) {
        for (size_t i = 0; i < n; i++)
            out[i] = (uint32_t)i;
        return n;
    }
    if (k == 0)
        return 0;
    size_t above;
    uint32_t threshold = find_kth(parts, scores, n, k, &above);
    parts->emit(scores, n, lode_key_score(threshold), k - above, out);
    return k;
}
