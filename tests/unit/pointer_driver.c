/* SPDX-License-Identifier: Apache-2.0 */
/* CUDA's driver for the test of base/pointer.c: addresses from 2^40 on are device memory, odd ones among them managed.
 */
#include <stdint.h>

enum { MEMORY_TYPE = 2, IS_MANAGED = 8, OK = 0, INVALID_VALUE = 1, TYPE_DEVICE = 2 };

int cuPointerGetAttribute(void *data, int attribute, uintptr_t pointer);

int cuPointerGetAttribute(void *data, int attribute, uintptr_t pointer)
{
    if (pointer >> 40 != 1)
        return INVALID_VALUE; /* host memory that it does not know */
    *(unsigned *)data = attribute == MEMORY_TYPE ? TYPE_DEVICE : attribute == IS_MANAGED ? pointer & 1 : 99;
    return OK;
}
