/* SPDX-License-Identifier: Apache-2.0 */
/* What stands between scores and chosen tokens. */
#include "kernels/scalar/scalar.h"

float lode_scalar_logsumexp(const float *x, size_t n)
{
    float greatest = -INFINITY;
    for (size_t i = 0; i < n; i++)
        greatest = x[i] > greatest ? x[i] : greatest;
    if (greatest == -INFINITY)
        return -INFINITY;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)x[i] - (double)greatest);
    return (float)(greatest + log(sum));
}

void lode_scalar_group_max(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float greatest = x[i] - shift[0];
        for (uint32_t g = 1; g < group; g++) {
            float score = x[g * stride + i] - shift[g];
            greatest = score > greatest ? score : greatest;
        }
        out[i] = greatest;
    }
}

/* A NaN ranks below all else. */
static uint32_t key_of(float score)
{
    return isnan(score) ? 0 : lode_order_key(score);
}

/* Of the keys that begin with `prefix` (its bits below `shift + bits` unset), count those with each next field. */
static void count_fields(const float *scores, size_t n, uint32_t prefix, uint32_t shift, uint32_t bits,
                         uint32_t *counts)
{
    uint64_t known = ~(uint64_t)0 << (shift + bits);
    memset(counts, 0, sizeof *counts << bits);
    for (size_t i = 0; i < n; i++) {
        uint32_t key = key_of(scores[i]);
        if (((key ^ prefix) & known) == 0)
            counts[key >> shift & ((1u << bits) - 1)]++;
    }
}

uint32_t lode_scalar_kth(const float *scores, size_t n, size_t k, size_t *above)
{
    static const struct {
        uint32_t shift, bits;
    } fields[] = {{21, 11}, {10, 11}, {0, 10}};
    uint32_t counts[1u << 11], prefix = 0;
    *above = 0;
    for (int level = 0; level < 3; level++) {
        count_fields(scores, n, prefix, fields[level].shift, fields[level].bits, counts);
        uint32_t field = (1u << fields[level].bits) - 1;
        while (*above + counts[field] < k)
            *above += counts[field--];
        prefix |= field << fields[level].shift;
    }
    return prefix;
}

size_t lode_scalar_topk(const float *scores, size_t n, size_t k, uint32_t *out)
{
    if (k >= n) {
        for (size_t i = 0; i < n; i++)
            out[i] = (uint32_t)i;
        return n;
    }
    if (k == 0)
        return 0;
    size_t above, taken = 0;
    uint32_t threshold = lode_scalar_kth(scores, n, k, &above);
    size_t ties = k - above;
    for (size_t i = 0; i < n && taken < k; i++) {
        uint32_t key = key_of(scores[i]);
        if (isnan(scores[i]) || key < threshold || (key == threshold && ties == 0))
            continue;
        ties -= key == threshold;
        out[taken++] = (uint32_t)i;
    }
    return taken;
}

/* ------------------------------------------------------- from a guess of the k-th */

void lode_scalar_note(const float *scores, size_t n, uint32_t first, lode_notes_t *notes)
{
    for (size_t i = 0; i < n; i++) {
        if (!(scores[i] >= notes->bound))
            continue;
        size_t at = lode_notes_end(notes);
        notes->index[at] = first + (uint32_t)i;
        notes->score[at] = scores[i];
        notes->count++;
    }
}

void lode_scalar_group_max_note(const float *x, size_t stride, const float *shift, uint32_t group, float *out, size_t n,
                                uint32_t first, lode_notes_t *notes)
{
    lode_scalar_group_max(x, stride, shift, group, out, n);
    lode_scalar_note(out, n, first, notes);
}

static size_t count(const float *scores, size_t n, float bound)
{
    size_t reach = 0;
    for (size_t i = 0; i < n; i++)
        reach += scores[i] >= bound;
    return reach;
}

static void emit_noted(const lode_notes_t *notes, float threshold, size_t ties, uint32_t *out)
{
    for (size_t i = 0; i < notes->count; i++) {
        bool equal = notes->score[i] == threshold;
        if (!(notes->score[i] >= threshold) || (equal && ties == 0))
            continue;
        ties -= equal;
        *out++ = notes->index[i];
    }
}

size_t lode_scalar_topk_noted(const float *scores, size_t n, size_t k, lode_notes_t *notes, uint32_t *out)
{
    static const lode_topk_parts_t parts = {.note = lode_scalar_note, .count = count, .emit_noted = emit_noted};
    return lode_topk_from_notes(&parts, lode_scalar_topk, scores, n, k, notes, out);
}
