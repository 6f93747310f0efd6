/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>

#include "kernels/kernels.h"

static bool rope_valid(const lode_rope_t *rope, uint32_t head_dim)
{
    if (head_dim < 2 || head_dim > LODE_MAX_DIM || head_dim % 2 || !(rope->theta > 1) || !isfinite(rope->theta))
        return false;
    bool scaled = isfinite(rope->factor) && rope->factor > 0;
    bool context = isfinite(rope->original_context) && rope->original_context > 0;
    switch (rope->scaling) {
    case LODE_ROPE_PLAIN:
        return true;
    case LODE_ROPE_LINEAR:
        return scaled;
    case LODE_ROPE_LLAMA3:
        return scaled && context && rope->low_freq_factor > 0 && rope->high_freq_factor > rope->low_freq_factor &&
               isfinite(rope->high_freq_factor);
    case LODE_ROPE_YARN:
        return scaled && context && rope->beta_slow > 0 && rope->beta_fast > rope->beta_slow &&
               isfinite(rope->beta_fast);
    }
    return false;
}

/* Llama 3.1: waves longer than the context are divided, short ones kept, a ramp in wave count between. */
static double llama3(const lode_rope_t *rope, double freq)
{
    double waves = rope->original_context * freq / (2 * M_PI);
    if (waves < rope->low_freq_factor)
        return freq / rope->factor;
    if (waves > rope->high_freq_factor)
        return freq;
    double keep = (waves - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    return (1 - keep) * freq / rope->factor + keep * freq;
}

/* The (fractional) pair whose wave turns `turns` times within the original context. */
static double yarn_pair(const lode_rope_t *rope, uint32_t head_dim, double turns)
{
    return head_dim * log(rope->original_context / (turns * 2 * M_PI)) / (2 * log(rope->theta));
}

static double yarn(const lode_rope_t *rope, uint32_t head_dim, uint32_t i, double freq)
{
    double low = fmax(floor(yarn_pair(rope, head_dim, rope->beta_fast)), 0);
    double high = fmin(ceil(yarn_pair(rope, head_dim, rope->beta_slow)), head_dim - 1.0);
    if (high == low)
        high += 0.001; /* as the published code does */
    double divided = fmin(fmax((i - low) / (high - low), 0), 1);
    return freq / rope->factor * divided + freq * (1 - divided);
}

lode_status_t lode_rope_frequencies(const lode_rope_t *rope, uint32_t head_dim, double *freq)
{
    if (!rope_valid(rope, head_dim))
        return LODE_ERR_INVALID;
    for (uint32_t i = 0; i < head_dim / 2; i++) {
        double plain = pow(rope->theta, -2.0 * i / head_dim);
        switch (rope->scaling) {
        case LODE_ROPE_PLAIN:
            freq[i] = plain;
            break;
        case LODE_ROPE_LINEAR:
            freq[i] = plain / rope->factor;
            break;
        case LODE_ROPE_LLAMA3:
            freq[i] = llama3(rope, plain);
            break;
        case LODE_ROPE_YARN:
            freq[i] = yarn(rope, head_dim, i, plain);
            break;
        }
    }
    return LODE_OK;
}

void lode_rope_angles(const double *freq, uint32_t head_dim, int64_t delta, float *cosine, float *sine)
{
    for (uint32_t i = 0; i < head_dim / 2; i++) {
        double angle = (double)delta * freq[i];
        cosine[i] = (float)cos(angle);
        sine[i] = (float)sin(angle);
    }
}
