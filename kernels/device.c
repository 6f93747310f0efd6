/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "kernels/device.h"

#ifdef LODE_HAVE_CUDA
const lode_device_ops_t *lode_cuda_table(void); /* kernels/cuda/table.cu */
#endif

lode_status_t lode_device_get(const char *name, const lode_device_ops_t **ops)
{
    if (strcmp(name, "cuda") != 0)
        return LODE_ERR_INVALID;
#ifdef LODE_HAVE_CUDA
    *ops = lode_cuda_table();
    return LODE_OK;
#else
    (void)ops;
    return LODE_ERR_UNSUPPORTED;
#endif
}
