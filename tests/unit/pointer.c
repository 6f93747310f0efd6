/* SPDX-License-Identifier: Apache-2.0 */
/* Device pointers are refused where the host would have to read them, once the program has CUDA's driver. */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <string.h>

#include "base/base.h"

static const void *const on_device = (const void *)((uintptr_t)1 << 40 | 4096);
static const void *const managed = (const void *)((uintptr_t)1 << 40 | 4097);

static void load_driver(void)
{
    cr_assert(dlopen(DRIVER_STAND_IN, RTLD_NOW), "%s", dlerror());
    lode_find_cuda();
}

Test(pointer, nothing_is_known_without_a_driver, .timeout = 10)
{
    lode_find_cuda();
    cr_expect_eq(lode_check_host("q", on_device), LODE_OK);
}

Test(pointer, device_memory_is_refused_by_name, .timeout = 10)
{
    int here = 0;
    load_driver();
    cr_expect_eq(lode_check_host("q", &here), LODE_OK);
    cr_expect_eq(lode_check_host("q", NULL), LODE_OK);
    cr_expect_eq(lode_check_host("q", managed), LODE_OK);
    cr_assert_eq(lode_check_host("keys", on_device), LODE_ERR_INVALID);
    cr_expect(strstr(lode_error_message(), "keys is in a GPU's memory"), "%s", lode_error_message());
}

Test(pointer, any_tensor_of_a_stream, .timeout = 10)
{
    load_driver();
    float here[4] = {0};
    for (int i = 0; i < 7; i++) {
        lode_stream_t stream = {.q = here, .k = here, .v = here, .out = here, .lse = here, .lost_share = here};
        const void **inputs[] = {&stream.q, &stream.k, &stream.v};
        float **outputs[] = {&stream.out, &stream.lse, &stream.lost_share};
        if (i < 3)
            *inputs[i] = on_device;
        else if (i < 6)
            *outputs[i - 3] = (float *)(uintptr_t)on_device;
        cr_expect_eq(lode_check_host_stream(&stream), i < 6 ? LODE_ERR_INVALID : LODE_OK, "%d", i);
    }
}

/* The public calls look before they read: the block need not exist, since a pointer is looked at first. */
Test(pointer, appending_is_refused, .timeout = 10)
{
    load_driver();
    char none[512] = {0};
    cr_expect_eq(lode_block_append((lode_block_h)(void *)none, 0, 1, LODE_BF16, on_device, none), LODE_ERR_INVALID);
    cr_expect_eq(lode_block_append((lode_block_h)(void *)none, 0, 1, LODE_BF16, none, on_device), LODE_ERR_INVALID);
}
