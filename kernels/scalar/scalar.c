/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/scalar/scalar.h"

void lode_scalar_fill(lode_ops_t *ops)
{
    lode_scalar_crc32c_prepare();
    *ops = (lode_ops_t){
        .level = "scalar",
        .scan_group = 4, /* as many as the vectors of AVX2 and AVX-512 have registers for */
        .widen = lode_scalar_widen,
        .narrow = lode_scalar_narrow,
        .first_nonfinite = lode_scalar_first_nonfinite,
        .rotate = lode_scalar_rotate,
        .hadamard = lode_scalar_hadamard,
        .project = lode_scalar_project,
        .dot_rows = lode_scalar_dot_rows,
        .crc32c = lode_scalar_crc32c,
        .record_encode = lode_scalar_record_encode,
        .record_decode = lode_scalar_record_decode,
        .record_check = lode_scalar_record_check,
        .landmark_quantise = lode_scalar_landmark_quantise,
        .landmark_place = lode_scalar_landmark_place,
        .landmark_take = lode_scalar_landmark_take,
        .query_prepare = lode_scalar_query_prepare,
        .landmark_score = lode_scalar_landmark_score,
        .logsumexp = lode_scalar_logsumexp,
        .group_max = lode_scalar_group_max,
        .topk = lode_scalar_topk,
        .note = lode_scalar_note,
        .group_max_note = lode_scalar_group_max_note,
        .topk_noted = lode_scalar_topk_noted,
        .gather = lode_scalar_gather,
        .attend = lode_scalar_attend,
        .attend_each = lode_scalar_attend_each,
        .merge = lode_scalar_merge,
    };
}
