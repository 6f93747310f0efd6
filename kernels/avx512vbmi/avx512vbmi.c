/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/avx512vbmi/avx512vbmi.h"
#include "kernels/machine_x86.h"

void lode_avx512vbmi_fill(lode_ops_t *ops)
{
    ops->landmark_score = lode_avx512vbmi_landmark_score;
}
