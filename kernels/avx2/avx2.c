/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/avx2/avx2.h"
#include "kernels/machine_x86.h"

void lode_avx2_fill(lode_ops_t *ops)
{
    lode_sse42_crc32c_prepare();
    lode_avx2_note_prepare();
    ops->widen = lode_avx2_widen;
    ops->narrow = lode_avx2_narrow;
    ops->first_nonfinite = lode_avx2_first_nonfinite;
    ops->rotate = lode_avx2_rotate;
    ops->hadamard = lode_avx2_hadamard;
    ops->project = lode_avx2_project;
    ops->dot_rows = lode_avx2_dot_rows;
    ops->crc32c = lode_sse42_crc32c;
    ops->record_encode = lode_avx2_record_encode;
    ops->record_decode = lode_avx2_record_decode;
    ops->record_check = lode_avx2_record_check;
    ops->landmark_quantise = lode_avx2_landmark_quantise;
    ops->query_prepare = lode_avx2_query_prepare;
    ops->landmark_score = lode_avx2_landmark_score;
    ops->logsumexp = lode_avx2_logsumexp;
    ops->group_max = lode_avx2_group_max;
    ops->topk = lode_avx2_topk;
    ops->note = lode_avx2_note;
    ops->group_max_note = lode_avx2_group_max_note;
    ops->topk_noted = lode_avx2_topk_noted;
    ops->gather = lode_avx2_gather;
    ops->attend = lode_avx2_attend;
    ops->attend_each = lode_avx2_attend_each;
    ops->merge = lode_avx2_merge;
}
