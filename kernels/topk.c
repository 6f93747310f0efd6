/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/internal.h"

#define ROOM 32768 /* scores that may lie in the bracket; three words each on the stack: 384 KiB */
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

/* All scores are few enough for the stack, or the bracket failed: crowded ties, or a sample that misled. */
static void choose_from_all(const lode_topk_parts_t *parts, const float *scores, size_t n, size_t k, uint32_t *keys,
                            uint32_t *out)
{
    size_t above;
    uint32_t threshold;
    for (size_t i = 0; n <= ROOM && i < n; i++)
        keys[i] = lode_order_key(scores[i]);
    threshold = n <= ROOM ? kth_of_all(keys, n, k, &above) : lode_scalar_kth(scores, n, k, &above);
    parts->emit(scores, n, lode_key_score(threshold), k - above, out);
}

/* Keep those of the bracket whose key is above the threshold, and the first `ties` that equal it. */
static size_t keep_chosen(lode_topk_found_t *found, uint32_t threshold, size_t ties)
{
    size_t kept = 0;
    for (size_t i = 0; i < found->between_count; i++) {
        bool equal = found->keys[i] == threshold, chosen = found->keys[i] > threshold || (equal && ties);
        found->between[kept] = found->between[i];
        kept += chosen;
        ties -= equal && ties;
    }
    return kept;
}

/* Put n ascending indices among the ascending ones that are in out already. */
static void merge_in(uint32_t *out, size_t there, const uint32_t *more, size_t n)
{
    for (size_t at = there + n; n; at--)
        out[at - 1] = there && out[there - 1] > more[n - 1] ? out[--there] : more[--n];
}

/* @return whether the bracket held. */
static bool choose_by_bracket(const lode_topk_parts_t *parts, const float *scores, size_t n, size_t k, uint32_t *work,
                              uint32_t *out)
{
    uint32_t low, high, between[ROOM], keys[ROOM];
    size_t above;
    bracket(scores, n, k, work, &low, &high);
    lode_topk_found_t found = {.above = out, .between = between, .keys = keys, .most = k, .room = ROOM};
    parts->collect(scores, n, lode_key_score(low), lode_key_score(high), &found);
    if (found.above_count >= k || found.between_count > ROOM || found.above_count + found.between_count < k)
        return false;
    memcpy(work, keys, found.between_count * sizeof *keys);
    uint32_t threshold = kth_key(work, found.between_count, k - found.above_count, low, high, &above);
    size_t kept = keep_chosen(&found, threshold, k - found.above_count - above);
    merge_in(out, found.above_count, between, kept);
    return true;
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
    uint32_t work[ROOM];
    if (n <= ROOM || !choose_by_bracket(parts, scores, n, k, work, out))
        choose_from_all(parts, scores, n, k, work, out);
    return k;
}
