/* SPDX-License-Identifier: Apache-2.0 */
#include "reader/elementwise_loops.h"

extern const lode_elementwise_t lode_elementwise_avx512;
const lode_elementwise_t lode_elementwise_avx512 = LODE_ELEMENTWISE_TABLE("avx512");
