/* SPDX-License-Identifier: Apache-2.0 */
/* The emulator of tests/emulator/: a test on it is worth what it notices. Those that end in abort() are meant to. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdlib.h>

#include "emulator.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/warp.h"

TestSuite(emulator, .timeout = 60);

static void *device_memory(size_t bytes)
{
    char *memory = NULL;
    cr_assert(cudaMalloc(&memory, bytes) == cudaSuccess);
    return memory;
}

static void *pinned_memory(size_t bytes)
{
    void *memory = NULL;
    cr_assert(cudaHostAlloc(&memory, bytes, cudaHostAllocPortable) == cudaSuccess);
    return memory;
}

static cudaStream_t new_stream(void)
{
    cudaStream_t stream;
    cr_assert(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) == cudaSuccess);
    return stream;
}

static void wait(cudaStream_t stream)
{
    cr_assert(cudaStreamSynchronize(stream) == cudaSuccess);
}

static void set_seed(uint64_t seed)
{
    lode_emulator_t settings;
    lode_emulator_get(&settings);
    settings.seed = seed;
    lode_emulator_set(&settings);
}

/* ------------------------------------------------------------ threads of a block */

__global__ static void collectives(uint32_t *out)
{
    uint32_t t = threadIdx.x, lane = t % 32, *mine = out + 12 * (blockIdx.x * blockDim.x + t);
    __shared__ uint32_t turned[96];
    turned[t] = 1000 * blockIdx.x + t;
    __syncthreads();
    mine[0] = turned[blockDim.x - 1 - t];
    mine[1] = __shfl_xor_sync(0xffffffffu, t, 5);
    mine[2] = __shfl_down_sync(0xffffffffu, t, 4, 8);
    mine[3] = __shfl_up_sync(0xffffffffu, t, 3);
    mine[4] = __ballot_sync(0xffffffffu, lane % 3 == 0);
    mine[5] = (uint32_t)__any_sync(0xffffffffu, t == 40) << 1 | (uint32_t)__all_sync(0xffffffffu, t < 64);
    mine[6] = __match_any_sync(0xffffffffu, lane / 5);
    mine[7] = (uint32_t)__syncthreads_count(t % 7 == 0);
    mine[8] = (uint32_t)__syncthreads_or(t == 77) << 1 | (uint32_t)__syncthreads_and(t < 95);
    mine[9] = __reduce_add_sync(0xffffffffu, t);
    if (lane < 11) /* some lanes alone */
        mine[10] = __shfl_sync(0x7ffu, t, 10);
    else
        mine[10] = __shfl_sync(0xfffff800u, t, 31);
    if (t >= 50)
        return;
    __syncthreads(); /* the others count as arrived */
    mine[11] = __shfl_sync(0xffffffffu, t, 32 % blockDim.x + 1);
}

static uint32_t matching(uint32_t lane)
{
    uint32_t mask = 0;
    for (uint32_t l = 0; l < 32; l++)
        if (l / 5 == lane / 5)
            mask |= 1u << l;
    return mask;
}

Test(emulator, collectives)
{
    enum { THREADS = 96, BLOCKS = 3 };
    cudaStream_t stream = new_stream();
    uint32_t *out = (uint32_t *)pinned_memory(BLOCKS * THREADS * 12 * 4);
    for (uint64_t seed = 1; seed < 20; seed++) {
        set_seed(seed);
        memset(out, 0xff, BLOCKS * THREADS * 12 * 4);
        cr_assert(LODE_LAUNCH(collectives, BLOCKS, THREADS, 0, stream, out) == LODE_OK);
        wait(stream);
        for (uint32_t i = 0; i < BLOCKS * THREADS; i++) {
            uint32_t b = i / THREADS, t = i % THREADS, lane = t % 32, warp = t - lane, *got = out + 12 * i;
            const uint32_t want[11] = {1000 * b + THREADS - 1 - t,
                                       t ^ 5,
                                       lane % 8 < 4 ? t + 4 : t,
                                       lane < 3 ? t : t - 3,
                                       0x49249249u,
                                       (uint32_t)(warp == 32) << 1 | (warp < 64),
                                       matching(lane),
                                       14,
                                       2,
                                       warp * 32 + 496,
                                       lane < 11 ? warp + 10 : warp + 31};
            for (int k = 0; k < 11; k++)
                cr_assert(got[k] == want[k], "seed %d block %u thread %u: number %d is %u, not %u", (int)seed, b, t, k,
                          got[k], want[k]);
            cr_assert(got[11] == (t >= 50 ? ~0u : warp + 1));
        }
    }
}

__global__ static void first_thread(uint32_t *first, uint32_t *blocks)
{
    if (atomicAdd(&first[blockIdx.x], 1u) == 0)
        first[gridDim.x + blockIdx.x] = threadIdx.x;
    __syncthreads();
    if (threadIdx.x == 0)
        blocks[atomicAdd(&first[2 * gridDim.x], 1u)] = blockIdx.x;
}

/* What rests on an order shows: threads and blocks come in another one with another seed. */
Test(emulator, orders)
{
    enum { BLOCKS = 16 };
    cudaStream_t stream = new_stream();
    uint32_t *first = (uint32_t *)pinned_memory((2 * BLOCKS + 1) * 4), *blocks = (uint32_t *)pinned_memory(BLOCKS * 4);
    uint32_t threads_seen = 0, orders_seen = 0;
    for (uint64_t seed = 1; seed < 5; seed++) {
        set_seed(seed);
        memset(first, 0, (2 * BLOCKS + 1) * 4);
        cr_assert(LODE_LAUNCH(first_thread, BLOCKS, 64, 0, stream, first, blocks) == LODE_OK);
        wait(stream);
        for (uint32_t b = 0; b < BLOCKS; b++) {
            cr_assert(first[b] == 64);
            threads_seen |= 1u << first[BLOCKS + b] % 32;
            orders_seen |= 1u << blocks[0];
        }
    }
    cr_assert(__builtin_popcount(threads_seen) > 2 && __builtin_popcount(orders_seen) > 1);
}

__global__ static void never_meet(uint32_t *out)
{
    if (threadIdx.x == 3)
        out[0] = __shfl_sync(0xffffffffu, 1u, 0);
    else
        __syncthreads();
}

Test(emulator, deadlock, .signal = SIGABRT)
{
    cudaStream_t stream = new_stream();
    cr_assert(LODE_LAUNCH(never_meet, 1, 64, 0, stream, (uint32_t *)pinned_memory(4)) == LODE_OK);
    wait(stream);
}

/* -------------------------------------------------------------------- matrices */

static uint32_t random_state = 12345;
static uint32_t random_bits(void)
{
    random_state = random_state * 1664525u + 1013904223u;
    return random_state >> 8;
}

/* Fragments are gathered as the PTX ISA has them, from A by rows and B by columns. */
__global__ static void multiply_bytes(const uint8_t (*a)[32], const int8_t (*b)[32], int32_t (*d)[8], bool is_signed)
{
    uint32_t g = threadIdx.x / 4, t = threadIdx.x % 4, af[4], bf[2];
    int32_t df[4];
    for (uint32_t i = 0; i < 4; i++) {
        memcpy(&af[i], &a[g + 8 * (i % 2)][4 * t + 16 * (i / 2)], 4);
        df[i] = d[g + 8 * (i / 2)][2 * t + i % 2];
    }
    for (uint32_t i = 0; i < 2; i++)
        memcpy(&bf[i], &b[g][4 * t + 16 * i], 4);
    if (is_signed)
        lode_mma_s8(df, af, bf);
    else
        lode_mma_u8s8(df, af, bf);
    for (uint32_t i = 0; i < 4; i++)
        d[g + 8 * (i / 2)][2 * t + i % 2] = df[i];
}

Test(emulator, products_of_bytes)
{
    cudaStream_t stream = new_stream();
    auto a = (uint8_t(*)[32])pinned_memory(16 * 32);
    auto b = (int8_t(*)[32])pinned_memory(8 * 32);
    auto d = (int32_t(*)[8])pinned_memory(16 * 8 * 4);
    for (int is_signed = 0; is_signed < 2; is_signed++) {
        int32_t want[16][8];
        for (int i = 0; i < 16 * 32; i++)
            a[i / 32][i % 32] = (uint8_t)random_bits();
        for (int i = 0; i < 8 * 32; i++)
            b[i / 32][i % 32] = (int8_t)random_bits();
        for (int m = 0; m < 16; m++)
            for (int n = 0; n < 8; n++) {
                want[m][n] = d[m][n] = (int32_t)random_bits();
                for (int k = 0; k < 32; k++)
                    want[m][n] += (is_signed ? (int8_t)a[m][k] : a[m][k]) * b[n][k];
            }
        cr_assert(LODE_LAUNCH(multiply_bytes, 1, 32, 0, stream, a, b, d, is_signed != 0) == LODE_OK);
        wait(stream);
        cr_assert(memcmp(d, want, sizeof want) == 0);
    }
}

static float of_bf16(uint16_t bits)
{
    return __uint_as_float((uint32_t)bits << 16);
}

/* A and B come through shared memory: A by ldmatrix, B, which lies by rows, by its transposed form. */
__global__ static void multiply_bf16(const uint16_t *a, const uint16_t *b, float (*d)[8])
{
    LODE_SHARED(uint16_t, tile); /* A: 16 × 16, then B: 16 × 8, then nothing that is needed */
    uint32_t lane = threadIdx.x, af[4], bf[4];
    lode_copy_async16(tile + 8 * lane, a + 8 * lane);
    lode_copy_async_commit();
    if (lane < 16)
        lode_copy_async16(tile + 256 + 8 * lane, b + 8 * lane);
    lode_copy_async_commit();
    lode_copy_async_wait<0>();
    __syncwarp();
    lode_ldmatrix_x4(af, tile + 16 * (lane % 16) + 8 * (lane / 16));
    lode_ldmatrix_x4_trans(bf, tile + 256 + 8 * (lane % 16));
    float df[4] = {1, 1, 1, 1};
    lode_mma_bf16(df, af, bf);
    for (uint32_t i = 0; i < 4; i++)
        d[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2] = df[i];
}

Test(emulator, products_of_bf16)
{
    cudaStream_t stream = new_stream();
    auto a = (uint16_t *)pinned_memory(16 * 16 * 2), b = (uint16_t *)pinned_memory(16 * 8 * 2);
    auto d = (float(*)[8])pinned_memory(16 * 8 * 4);
    for (int i = 0; i < 256; i++)
        a[i] = (uint16_t)(0x3f80 + (random_bits() % 128) + (random_bits() % 2 << 15)); /* ±[1, 2) */
    for (int i = 0; i < 128; i++)
        b[i] = (uint16_t)(0x3f80 + (random_bits() % 128) + (random_bits() % 2 << 15));
    cr_assert(LODE_LAUNCH(multiply_bf16, 1, 32, 1024, stream, a, b, d) == LODE_OK);
    wait(stream);
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 8; n++) {
            float want = 1; /* exact: 16 products of 8-bit significands */
            for (int k = 0; k < 16; k++)
                want += of_bf16(a[16 * m + k]) * of_bf16(b[8 * k + n]);
            cr_assert(d[m][n] == want, "row %d column %d: %g, not %g", m, n, d[m][n], want);
        }
}

__global__ static void hasty(const uint4 *from, uint4 *to, int wait_for_it)
{
    LODE_SHARED(uint4, staged);
    lode_copy_async16(staged, from);
    lode_copy_async_commit();
    if (wait_for_it)
        lode_copy_async_wait<0>();
    else
        lode_copy_async_wait<1>();
    *to = *staged;
}

Test(emulator, copies_must_be_waited_for)
{
    cudaStream_t stream = new_stream();
    auto words = (uint4 *)pinned_memory(3 * sizeof(uint4));
    words[0] = {1, 2, 3, 4};
    cr_assert(LODE_LAUNCH(hasty, 1, 1, 16, stream, words, words + 1, 1) == LODE_OK);
    cr_assert(LODE_LAUNCH(hasty, 1, 1, 16, stream, words, words + 2, 0) == LODE_OK);
    wait(stream);
    cr_assert(words[1].x == 1 && words[1].w == 4);
    cr_assert(words[2].x != 1 && words[2].w != 4);
}

/* ----------------------------------------------------------- memory and streams */

__global__ static void add_one(const uint32_t *from, uint32_t *to, uint32_t n)
{
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        to[i] = from[i] + 1;
}

/* A wait that is missing shows: nothing runs before somebody waits for it. */
Test(emulator, streams_are_lazy)
{
    enum { N = 100 };
    cudaStream_t first = new_stream(), second = new_stream();
    cudaEvent_t event;
    cr_assert(cudaEventCreate(&event) == cudaSuccess);
    uint32_t *host = (uint32_t *)pinned_memory(N * 4), *back = (uint32_t *)pinned_memory(N * 4);
    uint32_t *a = (uint32_t *)device_memory(N * 4), *b = (uint32_t *)device_memory(N * 4);
    for (int orderly = 0; orderly < 2; orderly++) {
        for (uint32_t i = 0; i < N; i++)
            host[i] = i + 10 * (uint32_t)orderly;
        cudaMemcpyAsync(a, host, N * 4, cudaMemcpyDefault, first);
        cr_assert(LODE_LAUNCH(add_one, 2, 64, 0, first, a, b, N) == LODE_OK);
        cudaEventRecord(event, first);
        cr_assert(cudaEventQuery(event) == cudaErrorNotReady && cudaGetLastError() == cudaErrorNotReady);
        if (orderly)
            cudaStreamWaitEvent(second, event, 0);
        cudaMemcpyAsync(back, b, N * 4, cudaMemcpyDefault, second);
        wait(second);
        cr_assert((back[7] == 8 + 10 * (uint32_t)orderly) == (orderly != 0));
        wait(first);
    }
    while (cudaEventQuery(event) == cudaErrorNotReady)
        ;
    cr_assert(cudaEventQuery(event) == cudaSuccess);
}

Test(emulator, the_host_cannot_read_it, .signal = SIGABRT)
{
    volatile uint32_t *memory = (uint32_t *)device_memory(64);
    cr_assert(memory[3] == 0);
}

Test(emulator, freed_memory_is_gone, .signal = SIGABRT)
{
    cudaStream_t stream = new_stream();
    uint32_t *a = (uint32_t *)device_memory(64), *b = (uint32_t *)device_memory(64);
    cr_assert(cudaFree(a) == cudaSuccess);
    cr_assert(LODE_LAUNCH(add_one, 1, 16, 0, stream, a, b, 16) == LODE_OK);
    wait(stream);
}

Test(emulator, overrun_at_the_page, .signal = SIGABRT)
{
    cudaStream_t stream = new_stream();
    uint32_t *a = (uint32_t *)device_memory(256), *b = (uint32_t *)device_memory(4096);
    cr_assert(LODE_LAUNCH(add_one, 1, 128, 0, stream, a, b, 65) == LODE_OK);
    wait(stream);
}

Test(emulator, overrun_by_a_word, .signal = SIGABRT)
{
    cudaStream_t stream = new_stream();
    uint32_t *a = (uint32_t *)device_memory(256), *b = (uint32_t *)device_memory(60);
    cudaMemsetAsync(a, 0, 256, stream);
    cr_assert(LODE_LAUNCH(add_one, 1, 32, 0, stream, a, b, 16) == LODE_OK);
    wait(stream);
}

__global__ static void load_vector(const uint32_t *from, uint32_t *to)
{
    *to = ((const uint4 *)(from + 1))->y;
}

Test(emulator, vectors_are_aligned, .signal = SIGABRT)
{
    cudaStream_t stream = new_stream();
    uint32_t *a = (uint32_t *)device_memory(256);
    cr_assert(LODE_LAUNCH(load_vector, 1, 1, 0, stream, a, a) == LODE_OK);
    wait(stream);
}

Test(emulator, memory_is_poison_and_bounded)
{
    lode_emulator_t settings;
    lode_emulator_get(&settings);
    settings.memory_bytes = 1 << 20;
    lode_emulator_set(&settings);
    char *memory = (char *)device_memory(1000), *more, copy[1000];
    cr_assert(cudaMemcpy(copy, memory, 1000, cudaMemcpyDeviceToHost) == cudaSuccess);
    for (int i = 0; i < 1000; i++)
        cr_assert((unsigned char)copy[i] == 0xff);
    cr_assert(cudaMemcpy(copy, memory, 1001, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
    cr_assert(cudaMemcpy(copy, memory, 10, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    cr_assert(cudaMalloc(&more, 1 << 20) == cudaErrorMemoryAllocation);
    cr_assert(cudaFree(memory) == cudaSuccess && cudaMalloc(&more, 1 << 20) == cudaSuccess);
}
