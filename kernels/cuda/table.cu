/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>

#include "kernels/cuda/cuda.h"

static lode_device_ops_t table;

static void fill(void)
{
    void (*const parts[])(lode_device_ops_t *) = {lode_cuda_fill_device, lode_cuda_fill_query, lode_cuda_fill_score,
                                                  lode_cuda_fill_select, lode_cuda_fill_where, lode_cuda_fill_gather,
                                                  lode_cuda_fill_attend};
    table.name = "cuda";
    for (auto part : parts)
        part(&table);
}

const lode_device_ops_t *lode_cuda_table(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill);
    return &table;
}
