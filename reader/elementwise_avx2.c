/* SPDX-License-Identifier: Apache-2.0 */
#include "reader/elementwise_loops.h"

extern const lode_elementwise_t lode_elementwise_avx2;
const lode_elementwise_t lode_elementwise_avx2 = LODE_ELEMENTWISE_TABLE("avx2");
