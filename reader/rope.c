/* SPDX-License-Identifier: Apache-2.0 */
#include "reader/rope.h"

#include <math.h>

/* Llama 3.1 (its released code): by how many waves of a pair fit the context of the training. */
static double llama3(const lode_rope_t *rope, double plain)
{
    double waves = rope->original_context * plain / (2 * M_PI);
    double smooth = (waves - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
    smooth = fmin(fmax(smooth, 0), 1);
    return (1 - smooth) * plain / rope->factor + smooth * plain;
}

/* The pair, as a fraction, that turns so many times within the context of the training. */
static double pair_of_turns(const lode_rope_t *rope, uint32_t head_dim, double turns)
{
    return head_dim * log(rope->original_context / (2 * M_PI * turns)) / (2 * log(rope->theta));
}

/* YaRN (arXiv 2309.00071): pairs up to `first` keep their angle, those from `last` on have it divided. */
static double yarn(const lode_rope_t *rope, uint32_t head_dim, uint32_t pair, double plain)
{
    double first = fmax(floor(pair_of_turns(rope, head_dim, rope->beta_fast)), 0);
    double last = fmin(ceil(pair_of_turns(rope, head_dim, rope->beta_slow)), head_dim - 1);
    if (first == last)
        last += 0.001; /* as the published code has it */
    double divided = fmin(fmax((pair - first) / (last - first), 0), 1);
    return plain * (1 - divided) + plain / rope->factor * divided;
}

void lode_reader_frequencies(const lode_rope_t *rope, uint32_t head_dim, double *freq)
{
    for (uint32_t i = 0; i < head_dim / 2; i++) {
        double plain = pow(rope->theta, -2.0 * i / head_dim);
        freq[i] = rope->scaling == LODE_ROPE_LLAMA3   ? llama3(rope, plain)
                  : rope->scaling == LODE_ROPE_YARN   ? yarn(rope, head_dim, i, plain)
                  : rope->scaling == LODE_ROPE_LINEAR ? plain / rope->factor
                                                      : plain;
    }
}

void lode_reader_angles(const double *freq, uint32_t pairs, int64_t position, double scale, float *cosine, float *sine)
{
    for (uint32_t i = 0; i < pairs; i++) {
        double angle = (double)position * freq[i];
        cosine[i] = (float)(cos(angle) * scale);
        sine[i] = (float)(sin(angle) * scale);
    }
}
