/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file rope.h
 * @brief Angles of rotary position embedding, in double: those by which lode_step() turns queries to a block's frame.
 */
#ifndef LODE_READER_ROPE_H
#define LODE_READER_ROPE_H

#include "base/base.h"

/** Radians a position of each pair: freq (head_dim/2). The parameters were checked. */
void lode_reader_frequencies(const lode_rope_t *rope, uint32_t head_dim, double *freq);
/** Cosines and sines (pairs each) of a position, times @p scale (YaRN's). */
void lode_reader_angles(const double *freq, uint32_t pairs, int64_t position, double scale, float *cosine, float *sine);

#endif
