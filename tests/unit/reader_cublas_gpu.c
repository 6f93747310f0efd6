/* SPDX-License-Identifier: Apache-2.0 */
/* Products on this machine's GPU, by its cuBLAS. */
#include "base/base.h"
#include "tests/unit/reader_products.h"

TestSuite(cublas_gpu, .timeout = 120);

static void check(lode_dtype_t type)
{
    const lode_device_ops_t *ops;
    lode_products_h products;
    cr_assert(lode_device_get("cuda", &ops) == LODE_OK);
    cr_assert(lode_products_create_gpu(ops, 0, type, &products) == LODE_OK, "%s", lode_error_message());
    check_products(products);
    lode_products_destroy(&products);
}

Test(cublas_gpu, multiplies_in_fp32)
{
    check(LODE_FP32);
}

Test(cublas_gpu, multiplies_in_bf16)
{
    check(LODE_BF16);
}
