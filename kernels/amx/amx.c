/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/amx/amx.h"
#include "kernels/machine_x86.h"

void lode_amx_fill(lode_ops_t *ops)
{
    ops->landmark_score = lode_amx_landmark_score;
    ops->scan_group = LODE_MAX_GROUP;
}
