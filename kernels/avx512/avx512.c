/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/avx512/avx512.h"
#include "kernels/machine_x86.h"

void lode_avx512_fill(lode_ops_t *ops)
{
    ops->widen = lode_avx512_widen;
    ops->narrow = lode_avx512_narrow;
    ops->first_nonfinite = lode_avx512_first_nonfinite;
    ops->rotate = lode_avx512_rotate;
    ops->hadamard = lode_avx512_hadamard;
    ops->project = lode_avx512_project;
    ops->dot_rows = lode_avx512_dot_rows;
    ops->record_encode = lode_avx512_record_encode;
    ops->record_decode = lode_avx512_record_decode;
    ops->landmark_quantise = lode_avx512_landmark_quantise;
    ops->query_prepare = lode_avx512_query_prepare;
    ops->landmark_score = lode_avx512_landmark_score;
    ops->logsumexp = lode_avx512_logsumexp;
    ops->group_max = lode_avx512_group_max;
    ops->topk = lode_avx512_topk;
    ops->note = lode_avx512_note;
    ops->group_max_note = lode_avx512_group_max_note;
    ops->topk_noted = lode_avx512_topk_noted;
    ops->attend = lode_avx512_attend;
    ops->attend_each = lode_avx512_attend_each;
    ops->merge = lode_avx512_merge;
}
