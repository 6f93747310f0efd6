/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/internal.h"

#define ROOM 32768 /* scores that may lie in the bracket; two words each on the stack: 256 KiB */
#define FEW 4096   /* no sample pays */
#define LEAST_SAMPLE 1024
#define MOST_SAMPLE 8192

/* The least score that is chosen, and how many of those that equal it. */
typedef struct cut {
    float threshold;
    size_t ties;
} cut_t;

/*
 * Of n scores, at least k of them ≥ low, the cut that leaves k, or at most `slack` more or fewer: halving the order of
 * all floats. A count is a load and a comparison 16 scores, which is cheaper than a histogram until there are very
 * many.
 */
static cut_t cut_at(const lode_topk_parts_t *parts, const float *scores, size_t n, size_t k, float low, size_t slack)
{
    uint32_t from = lode_order_key(low), to = lode_order_key(INFINITY) + 1;
    size_t above = 0;
    while (to - from > 1) {
        uint32_t middle = from + (to - from) / 2;
        size_t reach = parts->count(scores, n, lode_key_score(middle));
        if (reach + slack >= k && reach <= k + slack)
            return (cut_t){lode_key_score(middle), reach};
        if (reach > k) {
            from = middle;
        } else {
            to = middle;
            above = reach;
        }
    }
    return (cut_t){lode_key_score(from), k - above};
}

/* One of each `size` equal stretches, not the same of each: scores that repeat themselves would else mislead. */
static void take_sample(const float *scores, size_t n, size_t size, float *sample)
{
    uint64_t step = ((uint64_t)n << 32) / size;
    for (size_t i = 0; i < size; i++) {
        uint64_t within = (uint32_t)((uint32_t)i * 2654435769u); /* of 2^32 */
        sample[i] = scores[(i * step + within * (step >> 32)) >> 32];
    }
}

/*
 * Bounds that have the k-th score between them but for a chance of about 1 in 15,000: four standard deviations of the
 * sample's rank on either side.
 */
typedef struct bracket {
    float low, high;
    double expected; /* scores ≥ low */
} bracket_t;

static bracket_t bracket(const lode_topk_parts_t *parts, const float *scores, size_t n, size_t k, size_t size,
                         float *sample)
{
    bracket_t found = {-INFINITY, INFINITY, (double)n};
    double share = (double)k / (double)n, rank = share * (double)size, margin = 4 * sqrt(rank * (1 - share)) + 2;
    take_sample(scores, n, size, sample);
    if (rank - margin >= 1)
        found.high = cut_at(parts, sample, size, (size_t)(rank - margin), -INFINITY, 0).threshold;
    if (rank + margin <= (double)size) {
        found.low = cut_at(parts, sample, size, (size_t)(rank + margin), -INFINITY, 0).threshold;
        found.expected = (rank + margin) / (double)size * (double)n;
    }
    return found;
}

/* So many that the scores between the bounds fit three quarters of the room. */
static size_t sample_of(size_t n, size_t k)
{
    double share = (double)k / (double)n, ratio = 8 * (double)n / (0.75 * ROOM);
    double least = fmin(fmax((double)n / 64, LEAST_SAMPLE), MOST_SAMPLE);
    return (size_t)fmin(fmax(ceil(share * (1 - share) * ratio * ratio), least), ROOM);
}

/* All scores are few, or the bracket failed: crowded ties, or a sample that misled. */
static size_t choose_from_all(const lode_topk_parts_t *parts, const float *scores, size_t n, size_t k, uint32_t *out)
{
    size_t above;
    cut_t cut;
    if (n <= FEW) {
        cut = cut_at(parts, scores, n, k, -INFINITY, 0);
    } else {
        cut.threshold = lode_key_score(lode_scalar_kth(scores, n, k, &above));
        cut.ties = k - above;
        if (isnan(cut.threshold)) /* fewer than k are numbers: all of them */
            cut = (cut_t){-INFINITY, k};
    }
    return parts->emit(scores, n, cut.threshold, cut.ties, out);
}

/* Keep those of the bracket that are above the threshold, and the first `ties` that equal it. */
static size_t keep_chosen(lode_topk_found_t *found, cut_t cut)
{
    size_t kept = 0;
    for (size_t i = 0; i < found->between_count; i++) {
        bool equal = found->scores[i] == cut.threshold,
             chosen = found->scores[i] > cut.threshold || (equal && cut.ties);
        found->between[kept] = found->between[i];
        kept += chosen;
        cut.ties -= equal && cut.ties;
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
static bool choose_by_bracket(const lode_topk_parts_t *parts, const float *scores, size_t n, size_t k,
                              const bracket_t *bounds, float *work, uint32_t *index, uint32_t *out)
{
    lode_topk_found_t found = {.above = out, .between = index, .scores = work, .most = k, .room = ROOM};
    parts->collect(scores, n, bounds->low, bounds->high, &found);
    if (found.above_count >= k || found.between_count > ROOM || found.above_count + found.between_count < k)
        return false;
    cut_t cut = cut_at(parts, work, found.between_count, k - found.above_count, bounds->low, 0);
    merge_in(out, found.above_count, index, keep_chosen(&found, cut));
    return true;
}

/* @return whether the notes hold the k greatest. */
static bool choose_noted(const lode_topk_parts_t *parts, size_t k, const lode_notes_t *notes, cut_t *cut, uint32_t *out)
{
    if (notes->count < k || notes->count > notes->room)
        return false;
    *cut = cut_at(parts, notes->score, notes->count, k, notes->bound, 0);
    parts->emit_noted(notes, cut->threshold, cut->ties, out);
    return true;
}

static bool choose_all(size_t n, size_t k, uint32_t *out)
{
    for (size_t i = 0; k >= n && i < n; i++)
        out[i] = (uint32_t)i;
    return k >= n || k == 0;
}

size_t lode_topk_sampled(const lode_topk_parts_t *parts, const float *scores, size_t n, size_t k, uint32_t *out)
{
    float work[ROOM + LODE_NOTES_SLACK];
    uint32_t index[ROOM + LODE_NOTES_SLACK];
    if (choose_all(n, k, out))
        return k < n ? k : n;
    if (n <= FEW)
        return choose_from_all(parts, scores, n, k, out);
    bracket_t bounds = bracket(parts, scores, n, k, sample_of(n, k), work);
    bool done = false;
    if (bounds.expected <= 0.75 * ROOM) { /* the usual case: the few that are chosen, and not many more */
        cut_t cut;
        lode_notes_t notes = {.bound = bounds.low, .room = ROOM, .index = index, .score = work};
        parts->note(scores, n, 0, &notes);
        done = choose_noted(parts, k, &notes, &cut, out);
    } else {
        done = choose_by_bracket(parts, scores, n, k, &bounds, work, index, out);
    }
    return done ? k : choose_from_all(parts, scores, n, k, out);
}

/*
 * A guess for the next time: as far below the k-th score as the one at seven eighths of k is above it, so that an
 * eighth more than k, or some more, will be noted of scores like these.
 */
static float next_bound(const lode_topk_parts_t *parts, const float *scores, size_t n, size_t k, float threshold)
{
    float upper = cut_at(parts, scores, n, k - k / 8, threshold, k / 32).threshold;
    float bound = threshold - (upper - threshold);
    return isfinite(bound) ? bound : threshold;
}

/* The same from what topk chose. */
static float next_of_chosen(const lode_topk_parts_t *parts, const float *scores, const uint32_t *chosen, size_t k,
                            lode_notes_t *notes)
{
    float threshold = INFINITY;
    if (k == 0 || k > notes->room)
        return NAN; /* nothing is ≥ it */
    for (size_t i = 0; i < k; i++) {
        notes->score[i] = scores[chosen[i]];
        threshold = fminf(threshold, notes->score[i]);
    }
    return next_bound(parts, notes->score, k, k, threshold);
}

size_t lode_topk_from_notes(const lode_topk_parts_t *parts,
                            size_t (*topk)(const float *scores, size_t n, size_t k, uint32_t *out), const float *scores,
                            size_t n, size_t k, lode_notes_t *notes, uint32_t *out)
{
    cut_t cut;
    notes->next = notes->bound;
    if (choose_all(n, k, out))
        return k < n ? k : n;
    if (choose_noted(parts, k, notes, &cut, out)) {
        notes->next = next_bound(parts, notes->score, notes->count, k, cut.threshold);
        return k;
    }
    size_t chosen = topk(scores, n, k, out);
    notes->next = next_of_chosen(parts, scores, out, chosen, notes);
    notes->count = SIZE_MAX; /* their memory is used up */
    return chosen;
}
