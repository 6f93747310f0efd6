/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The floor of `bench gpu`: a kernel that reads device memory in order and does nothing else. 16 bytes a thread and
 * load, eight loads on their way before the first is used, as many blocks as processors hold. Bounded by memory alone.
 * It has never run on a GPU.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/warp.h"

enum { THREADS = 256, LOADS = 8, BLOCKS = 8 /* a processor */ };

static __global__ void __launch_bounds__(THREADS) read_bytes(const uint4 *from, size_t count, uint32_t *sink)
{
    size_t stride = (size_t)gridDim.x * THREADS * LOADS;
    uint32_t sum = 0;
    for (size_t at = (size_t)blockIdx.x * THREADS * LOADS + threadIdx.x; at < count; at += stride) {
        uint4 x[LOADS];
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            x[i] = at + i * THREADS < count ? lode_load_stream(from + at + i * THREADS) : make_uint4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            sum ^= x[i].x ^ x[i].y ^ x[i].z ^ x[i].w;
    }
    if (sum == 0x6c6f6465u) /* hardly ever; but the compiler must read all to know */
        *sink = sum;
}

extern "C" lode_status_t lode_gpubench_floor_read(lode_device_stream_t stream, const void *from, size_t bytes,
                                                  uint32_t processors, uint32_t *sink)
{
    size_t count = bytes / sizeof(uint4), wanted = (count + THREADS * LOADS - 1) / (THREADS * LOADS);
    size_t most = (size_t)processors * BLOCKS;
    if (!count)
        return LODE_OK;
    return LODE_LAUNCH(read_bytes, dim3((unsigned)(wanted < most ? wanted : most)), dim3(THREADS), 0, stream,
                       (const uint4 *)from, count, sink);
}
