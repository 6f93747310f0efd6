/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/avx2/avx2.h"

void lode_avx2_fill(lode_ops_t *ops)
{
    lode_sse42_crc32c_prepare();
    ops->crc32c = lode_sse42_crc32c;
    ops->record_check = lode_avx2_record_check;
}
