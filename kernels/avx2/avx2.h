/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file avx2.h
 * @brief AVX2 with FMA, F16C, SSE4.2 and PCLMUL: contracts are those of lode_ops_t, orders of summation those of
 * internal.h.
 */
#ifndef LODE_KERNELS_AVX2_H
#define LODE_KERNELS_AVX2_H

#include <immintrin.h>

#include "kernels/internal.h"

void lode_sse42_crc32c_prepare(void);
bool lode_avx2_record_check(lode_format_t format, uint32_t dim, const uint8_t *record, uint32_t tag);
#endif
