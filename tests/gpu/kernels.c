/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of `lodemark bench gpu` in a program that needs nvcc and a C compiler alone: built by tests/gpu/plain. */
#include "bench/gpu.h"

int main(int argc, char **argv)
{
    return lode_gpubench_main("kernels", argc - 1, argv + 1, NULL);
}
