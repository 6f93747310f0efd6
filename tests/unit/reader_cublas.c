/* SPDX-License-Identifier: Apache-2.0 */
/* Products on a GPU: over a device of memory and streams alone, and a libcublas.so.13 of our own. */
#include "base/base.h"
#include "tests/multi/plain_device.h"
#include "tests/unit/reader_products.h"

TestSuite(cublas, .timeout = 120);

static lode_products_h create(lode_dtype_t type)
{
    lode_products_h products;
    cr_assert(lode_products_create_gpu(&plain_device, 0, type, &products) == LODE_OK, "%s", lode_error_message());
    return products;
}

static void check(lode_dtype_t type, const char *name)
{
    lode_products_h products = create(type);
    cr_assert(strcmp(lode_products_name(products), name) == 0, "%s", lode_products_name(products));
    cr_assert(lode_products_type(products) == type);
    check_products(products);
    lode_products_destroy(&products);
    cr_assert(plain_device_left() == 0);
}

Test(cublas, multiplies_in_fp32)
{
    check(LODE_FP32, "cuBLAS 12.4, fp32, GPU 0");
}

Test(cublas, multiplies_in_bf16)
{
    check(LODE_BF16, "cuBLAS 12.4, bf16, GPU 0");
}

Test(cublas, a_device_without_room_says_what_was_asked)
{
    lode_products_h products = create(LODE_FP32);
    lode_matrix_h matrix;
    float weights[6] = {1, 2, 3, 4, 5, 6}, x[3] = {1, 0, 2}, out[2];
    const lode_matrix_part_t part = {weights, LODE_FP32, 2};
    plain_device_room(0);
    cr_assert(lode_matrix_create(products, &part, 1, 3, &matrix) == LODE_ERR_NO_MEMORY);
    cr_assert(strstr(lode_error_message(), "24 bytes were asked for"), "%s", lode_error_message());
    plain_device_room(2); /* the weights, and one of the rooms */
    cr_assert(lode_matrix_create(products, &part, 1, 3, &matrix) == LODE_OK);
    cr_assert(lode_matrix_multiply(matrix, 1, x, false, out) == LODE_ERR_NO_MEMORY);
    plain_device_room(UINT32_MAX);
    cr_assert(lode_matrix_multiply(matrix, 1, x, false, out) == LODE_OK, "%s", lode_error_message());
    cr_assert(out[0] == 7 && out[1] == 16);
    lode_matrix_destroy(&matrix);
    lode_products_destroy(&products);
    cr_assert(plain_device_left() == 0);
}

Test(cublas, a_product_that_fails_says_why)
{
    lode_products_h products = create(LODE_FP32);
    lode_matrix_h matrix;
    float weights[2] = {1, 2}, x[2] = {1, 1}, out[1] = {5};
    const lode_matrix_part_t part = {weights, LODE_FP32, 1};
    cr_assert(lode_matrix_create(products, &part, 1, 2, &matrix) == LODE_OK);
    setenv("LODEMARK_TEST_CUBLAS", "broken", 1);
    cr_assert(lode_matrix_multiply(matrix, 1, x, true, out) == LODE_ERR_DEVICE);
    cr_assert(strstr(lode_error_message(), "told to fail"), "%s", lode_error_message());
    cr_assert(out[0] == 5);
    lode_matrix_destroy(&matrix);
    lode_products_destroy(&products);
}

Test(cublas, a_gpu_that_is_not_there)
{
    lode_products_h products = NULL;
    cr_assert(lode_products_create_gpu(&plain_device, 7, LODE_FP32, &products) != LODE_OK);
    cr_assert(products == NULL && plain_device_left() == 0);
}
