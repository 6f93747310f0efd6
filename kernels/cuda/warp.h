/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file warp.h
 * @brief Sums over a warp; and what takes PTX: matrix products of a warp, asynchronous copies, loads that bypass. All
 * from sm_80 on.
 *
 * The only place with PTX, so that kernels run in the emulator too. Fragments are laid out as the PTX ISA says; with
 * g = lane / 4 and t = lane % 4:
 *  - bytes (m16n8k32): byte i of a[] is A[g + 8·(i/4 odd)][4t + i%4 + 16·(i ≥ 8)], byte i of b[] is
 *    B[4t + i%4 + 16·(i ≥ 4)][g];
 *  - bf16 and fp16 (m16n8k16): half i of a[] is A[g + 8·(i/2 odd)][2t + i%2 + 8·(i ≥ 4)], half i of b[] is
 *    B[2t + i%2 + 8·(i ≥ 2)][g];
 *  - both: d[i] is D[g + 8·(i ≥ 2)][2t + i%2].
 * All 32 lanes must call them together.
 */
#ifndef LODE_CUDA_WARP_H
#define LODE_CUDA_WARP_H

#include <cuda_runtime.h>
#include <stdint.h>

/** Sum over the lanes of a warp, of integers. */
template <typename T> __device__ __forceinline__ T lode_warp_sum(T x)
{
    for (uint32_t apart = 16; apart; apart /= 2)
        x += __shfl_xor_sync(~0u, x, apart);
    return x;
}

/** Sum of what the lanes before this one have. */
template <typename T> __device__ __forceinline__ T lode_warp_before(T x)
{
    uint32_t lane = threadIdx.x % 32;
    T sum = x;
    for (uint32_t apart = 1; apart < 32; apart *= 2) {
        T other = __shfl_up_sync(~0u, sum, apart);
        sum += lane >= apart ? other : 0;
    }
    return sum - x;
}

#ifdef LODE_EMULATED

__device__ inline void lode_mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
    lode_emulate_mma_8(d, a, b, true);
}
__device__ inline void lode_mma_u8s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
    lode_emulate_mma_8(d, a, b, false);
}
__device__ inline void lode_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    lode_emulate_mma_bf16(d, a, b);
}
__device__ inline void lode_mma_fp16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    lode_emulate_mma_fp16(d, a, b);
}
__device__ inline void lode_ldmatrix_x4(uint32_t r[4], const void *row)
{
    lode_emulate_ldmatrix(r, row, false);
}
__device__ inline void lode_ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    lode_emulate_ldmatrix(r, row, true);
}
__device__ inline void lode_copy_async16(void *shared, const void *from)
{
    lode_emulate_copy_async(shared, from, 16);
}
__device__ inline void lode_copy_async8(void *shared, const void *from)
{
    lode_emulate_copy_async(shared, from, 8);
}
__device__ inline void lode_copy_async_commit()
{
    lode_emulate_copy_commit();
}
template <int N> __device__ inline void lode_copy_async_wait()
{
    lode_emulate_copy_wait(N);
}
__device__ inline uint32_t lode_fp16x2(float low, float high)
{
    return lode_emulate_fp16(low) | lode_emulate_fp16(high) << 16;
}
__device__ inline uint4 lode_load_stream(const uint4 *from)
{
    return *from;
}
__device__ inline uint2 lode_load_stream(const uint2 *from)
{
    return *from;
}
__device__ inline uint32_t lode_load_stream(const uint32_t *from)
{
    return *from;
}
__device__ inline uint64_t lode_leave_first()
{
    return 0;
}
__device__ inline uint4 lode_load_stream(const uint4 *from, uint64_t)
{
    return *from;
}
__device__ inline uint2 lode_load_stream(const uint2 *from, uint64_t)
{
    return *from;
}

#else

/** d += a · b, 16×8 sums of 32 products; a and b are signed bytes. */
__device__ __forceinline__ void lode_mma_s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/** The same with a unsigned. */
__device__ __forceinline__ void lode_mma_u8s8(int32_t d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/** d += a · b, 16×8 sums of 16 products of bf16, in floats. */
__device__ __forceinline__ void lode_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/** The same of fp16. */
__device__ __forceinline__ void lode_mma_fp16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/** Four 8×8 matrices of 16-bit elements in shared memory: lanes 8i … 8i+7 give the rows of matrix i, which is r[i]. */
__device__ __forceinline__ void lode_ldmatrix_x4(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/** The same, each matrix transposed. */
__device__ __forceinline__ void lode_ldmatrix_x4_trans(uint32_t r[4], const void *row)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
}

/** Copy 16 bytes from global to shared memory behind the thread's back, past L1; both 16-byte aligned. */
__device__ __forceinline__ void lode_copy_async16(void *shared, const void *from)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(__cvta_generic_to_global(from))
                 : "memory");
}

/** 8 bytes, 8-byte aligned. */
__device__ __forceinline__ void lode_copy_async8(void *shared, const void *from)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;"
                 :
                 : "r"((uint32_t)__cvta_generic_to_shared(shared)), "l"(__cvta_generic_to_global(from))
                 : "memory");
}

/** What was copied since the last one is a group. */
__device__ __forceinline__ void lode_copy_async_commit()
{
    asm volatile("cp.async.commit_group;" : : : "memory");
}

/** Wait until at most the last N groups of this thread are under way; other threads see it after a barrier. */
template <int N> __device__ __forceinline__ void lode_copy_async_wait()
{
    asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory");
}

/** Two floats as fp16, rounded to nearest even. */
__device__ __forceinline__ uint32_t lode_fp16x2(float low, float high)
{
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

/** Load what is read once: read-only, and not kept in L1. */
__device__ __forceinline__ uint4 lode_load_stream(const uint4 *from)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(from)));
    return v;
}
__device__ __forceinline__ uint2 lode_load_stream(const uint2 *from)
{
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(__cvta_generic_to_global(from)));
    return v;
}
__device__ __forceinline__ uint32_t lode_load_stream(const uint32_t *from)
{
    uint32_t v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_global(from)));
    return v;
}

/** How what is loaded with this lies in L2: it makes room before all else does, such as results that are read next. */
__device__ __forceinline__ uint64_t lode_leave_first()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
__device__ __forceinline__ uint4 lode_load_stream(const uint4 *from, uint64_t policy)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(from)), "l"(policy));
    return v;
}
__device__ __forceinline__ uint2 lode_load_stream(const uint2 *from, uint64_t policy)
{
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v2.u32 {%0,%1}, [%2], %3;"
                 : "=r"(v.x), "=r"(v.y)
                 : "l"(__cvta_generic_to_global(from)), "l"(policy));
    return v;
}

#endif
#endif
