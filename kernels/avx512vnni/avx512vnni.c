/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/avx512vnni/avx512vnni.h"
#include "kernels/machine_x86.h"

void lode_avx512vnni_fill(lode_ops_t *ops)
{
    ops->landmark_score = lode_avx512vnni_landmark_score;
}
