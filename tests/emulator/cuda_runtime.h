/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file cuda_runtime.h
 * @brief Stands for CUDA's header of this name when kernels/cuda/ is compiled for a processor (LODE_EMULATED).
 *
 * Threads of a block are fibers: each runs until it waits for others of its warp or block, in an order that a seed
 * shuffles; blocks come one after another, shuffled too. What CUDA leaves undefined and can be noticed here is
 * reported and ends the process: lanes that miss a collective, a deadlock, memory that is not there.
 * Streams are lazy: work runs when something waits for it (or at once: lode_emulator_order()). Device memory begins
 * as poison, cannot be touched by the host, and ends at a guard page. Only what we use of CUDA is here.
 */
#ifndef LODE_EMULATED_CUDA_RUNTIME_H
#define LODE_EMULATED_CUDA_RUNTIME_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#ifndef __cplusplus
#error "C++ only: tests in C use kernels/device.h and tests/emulator/emulator.h"
#endif

#include <functional>
#include <limits>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __shared__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define CUDART_INF_F INFINITY
#define CUDART_VERSION 13000

/* ------------------------------------------------------------------ types */

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
#define LODE_EMULATED_VECTORS(type, name)                                \
    struct alignas(2 * sizeof(type)) name##2                             \
    {                                                                    \
        type x, y;                                                       \
    };                                                                   \
    struct name##3                                                       \
    {                                                                    \
        type x, y, z;                                                    \
    };                                                                   \
    struct alignas(sizeof(type) > 4 ? 16 : 4 * sizeof(type)) name##4     \
    {                                                                    \
        type x, y, z, w;                                                 \
    };                                                                   \
    static inline name##2 make_##name##2(type x, type y)                 \
    {                                                                    \
        return {x, y};                                                   \
    }                                                                    \
    static inline name##3 make_##name##3(type x, type y, type z)         \
    {                                                                    \
        return {x, y, z};                                                \
    }                                                                    \
    static inline name##4 make_##name##4(type x, type y, type z, type w) \
    {                                                                    \
        return {x, y, z, w};                                             \
    }
LODE_EMULATED_VECTORS(float, float)
LODE_EMULATED_VECTORS(double, double)
LODE_EMULATED_VECTORS(int, int)
LODE_EMULATED_VECTORS(signed char, char)
LODE_EMULATED_VECTORS(unsigned char, uchar)
LODE_EMULATED_VECTORS(short, short)
LODE_EMULATED_VECTORS(unsigned short, ushort)
LODE_EMULATED_VECTORS(long long, longlong)
LODE_EMULATED_VECTORS(unsigned long long, ulonglong)
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
static inline uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}
static inline uint3 make_uint3(unsigned x, unsigned y, unsigned z)
{
    return {x, y, z};
}
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
static const int warpSize = 32;

/* ------------------------------------------------------------ collectives */

extern "C++" {
/**
 * All lanes of the mask meet; the last runs `all` with what each brought (NULL: not in the mask, or ended), then every
 * one goes on.
 */
void lode_emulate_warp(uint32_t mask, const char *what, void (*all)(uint32_t mask, void *const lanes[32]), void *mine);
/** The same for all threads of the block that have not ended. */
void lode_emulate_block(const char *what, void (*all)(uint32_t n, void *const threads[]), void *mine);
void *lode_emulate_shared(void);
uint32_t lode_emulate_lane(void);
/** Let others run, as a thread that spins must. */
void lode_emulate_yield(void);
void lode_emulate_mma_8(int32_t d[4], const uint32_t a[4], const uint32_t b[2], bool a_signed);
void lode_emulate_mma_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void lode_emulate_mma_fp16(float d[4], const uint32_t a[4], const uint32_t b[2]);
void lode_emulate_ldmatrix(uint32_t r[4], const void *row, bool transposed);
void lode_emulate_copy_async(void *to, const void *from, uint32_t bytes);
void lode_emulate_copy_commit(void);
void lode_emulate_copy_wait(uint32_t groups_left);
}

static const uint64_t lode_emulated_poison = 0x7fedcba97fedcba9; /* what a lane that is not there gives */

struct lode_emulated_exchange {
    uint64_t value, result;
    int32_t source;
};

static inline void lode_emulate_exchanged(uint32_t, void *const lanes[32])
{
    for (int i = 0; i < 32; i++) {
        auto *mine = (lode_emulated_exchange *)lanes[i];
        if (!mine)
            continue;
        auto *from = (const lode_emulated_exchange *)lanes[mine->source & 31];
        mine->result = from ? from->value : lode_emulated_poison;
    }
}

template <class T> T lode_emulate_shuffle(uint32_t mask, const char *what, T value, int32_t source)
{
    static_assert(sizeof(T) <= 8 && std::is_arithmetic<T>::value, "what CUDA shuffles");
    lode_emulated_exchange e = {0, 0, source};
    memcpy(&e.value, &value, sizeof value);
    lode_emulate_warp(mask, what, lode_emulate_exchanged, &e);
    memcpy(&value, &e.result, sizeof value);
    return value;
}

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32)
{
    int lane = (int)lode_emulate_lane();
    return lode_emulate_shuffle(mask, "__shfl_sync", value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T> T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    int lane = (int)lode_emulate_lane(), from = lane - (int)delta;
    return lode_emulate_shuffle(mask, "__shfl_up_sync", value, from < (lane & ~(width - 1)) ? lane : from);
}
template <class T> T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32)
{
    int lane = (int)lode_emulate_lane(), from = lane + (int)delta;
    return lode_emulate_shuffle(mask, "__shfl_down_sync", value, from > (lane | (width - 1)) ? lane : from);
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32)
{
    int lane = (int)lode_emulate_lane(), from = lane ^ bits;
    return lode_emulate_shuffle(mask, "__shfl_xor_sync", value, from > (lane | (width - 1)) ? lane : from);
}

static inline void lode_emulate_voted(uint32_t, void *const lanes[32])
{
    uint32_t votes = 0;
    for (int i = 0; i < 32; i++)
        if (lanes[i] && ((lode_emulated_exchange *)lanes[i])->value)
            votes |= 1u << i;
    for (int i = 0; i < 32; i++)
        if (lanes[i])
            ((lode_emulated_exchange *)lanes[i])->result = votes;
}
static inline uint32_t lode_emulate_vote(uint32_t mask, const char *what, bool vote)
{
    lode_emulated_exchange e = {vote, 0, 0};
    lode_emulate_warp(mask, what, lode_emulate_voted, &e);
    return (uint32_t)e.result;
}
static inline unsigned __ballot_sync(unsigned mask, int vote)
{
    return lode_emulate_vote(mask, "__ballot_sync", vote != 0);
}
static inline int __any_sync(unsigned mask, int vote)
{
    return lode_emulate_vote(mask, "__any_sync", vote != 0) != 0;
}
static inline int __all_sync(unsigned mask, int vote)
{
    return lode_emulate_vote(mask, "__all_sync", vote == 0) == 0;
}
static inline void __syncwarp(unsigned mask = 0xffffffffu)
{
    (void)lode_emulate_vote(mask, "__syncwarp", false);
}
/** Lanes that happen to be together: nothing may rest on it, so it is the caller alone. */
static inline unsigned __activemask()
{
    return 1u << lode_emulate_lane();
}

static inline void lode_emulate_matched(uint32_t, void *const lanes[32])
{
    for (int i = 0; i < 32; i++) {
        auto *mine = (lode_emulated_exchange *)lanes[i];
        for (int j = 0; mine && j < 32; j++)
            if (lanes[j] && ((lode_emulated_exchange *)lanes[j])->value == mine->value)
                mine->result |= (uint64_t)1 << j;
    }
}
template <class T> unsigned __match_any_sync(unsigned mask, T value)
{
    lode_emulated_exchange e = {0, 0, 0};
    memcpy(&e.value, &value, sizeof value);
    lode_emulate_warp(mask, "__match_any_sync", lode_emulate_matched, &e);
    return (unsigned)e.result;
}

template <class T, class F> T lode_emulate_reduce(uint32_t mask, const char *what, T value)
{
    lode_emulated_exchange e = {(uint64_t)(uint32_t)value, 0, 0};
    lode_emulate_warp(
        mask, what,
        [](uint32_t, void *const lanes[32]) {
            bool any = false;
            T sum = 0;
            for (int i = 0; i < 32; i++)
                if (lanes[i]) {
                    T next = (T)(uint32_t)((lode_emulated_exchange *)lanes[i])->value;
                    sum = any ? F()(sum, next) : next;
                    any = true;
                }
            for (int i = 0; i < 32; i++)
                if (lanes[i])
                    ((lode_emulated_exchange *)lanes[i])->result = (uint64_t)(uint32_t)sum;
        },
        &e);
    return (T)(uint32_t)e.result;
}
#define LODE_EMULATED_REDUCE(name, type, expression)                    \
    static inline type name(unsigned mask, type value)                  \
    {                                                                   \
        struct function {                                               \
            type operator()(type a, type b) const                       \
            {                                                           \
                return expression;                                      \
            }                                                           \
        };                                                              \
        return lode_emulate_reduce<type, function>(mask, #name, value); \
    }
LODE_EMULATED_REDUCE(__reduce_add_sync, unsigned, a + b)
LODE_EMULATED_REDUCE(__reduce_add_sync, int, (int)((unsigned)a + (unsigned)b))
LODE_EMULATED_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
LODE_EMULATED_REDUCE(__reduce_min_sync, int, a < b ? a : b)
LODE_EMULATED_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
LODE_EMULATED_REDUCE(__reduce_max_sync, int, a > b ? a : b)
LODE_EMULATED_REDUCE(__reduce_and_sync, unsigned, a &b)
LODE_EMULATED_REDUCE(__reduce_or_sync, unsigned, a | b)
LODE_EMULATED_REDUCE(__reduce_xor_sync, unsigned, a ^ b)

static inline void lode_emulate_counted(uint32_t n, void *const threads[])
{
    uint32_t count = 0, here = 0;
    for (uint32_t i = 0; i < n; i++)
        if (threads[i])
            count += ((lode_emulated_exchange *)threads[i])->value != 0, here++;
    for (uint32_t i = 0; i < n; i++)
        if (threads[i])
            ((lode_emulated_exchange *)threads[i])->result = (uint64_t)here << 32 | count;
}
static inline uint64_t lode_emulate_count(const char *what, bool vote)
{
    lode_emulated_exchange e = {vote, 0, 0};
    lode_emulate_block(what, lode_emulate_counted, &e);
    return e.result;
}
static inline void __syncthreads()
{
    (void)lode_emulate_count("__syncthreads", false);
}
static inline int __syncthreads_count(int vote)
{
    return (int)(uint32_t)lode_emulate_count("__syncthreads_count", vote);
}
static inline int __syncthreads_or(int vote)
{
    return (uint32_t)lode_emulate_count("__syncthreads_or", vote) != 0;
}
static inline int __syncthreads_and(int vote)
{
    return (uint32_t)lode_emulate_count("__syncthreads_and", !vote) == 0;
}

static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}
static inline void __nanosleep(unsigned)
{
    lode_emulate_yield();
}
[[noreturn]] static inline void __trap()
{
    __builtin_trap();
}

/* ---------------------------------------------------------------- atomics */

#define LODE_EMULATED_ATOMIC(name, expression)                                \
    template <class T> T name(T *at, typename std::common_type<T>::type with) \
    {                                                                         \
        static_assert(sizeof(T) == 4 || sizeof(T) == 8, "what CUDA has");     \
        T old = *at;                                                          \
        *at = (T)(expression);                                                \
        return old;                                                           \
    }
LODE_EMULATED_ATOMIC(atomicAdd, old + with)
LODE_EMULATED_ATOMIC(atomicSub, old - with)
LODE_EMULATED_ATOMIC(atomicMin, old < with ? old : with)
LODE_EMULATED_ATOMIC(atomicMax, old > with ? old : with)
LODE_EMULATED_ATOMIC(atomicAnd, old &with)
LODE_EMULATED_ATOMIC(atomicOr, old | with)
LODE_EMULATED_ATOMIC(atomicXor, old ^ with)
LODE_EMULATED_ATOMIC(atomicExch, with)
LODE_EMULATED_ATOMIC(atomicInc, old >= with ? 0 : old + 1)
template <class T>
T atomicCAS(T *at, typename std::common_type<T>::type expected, typename std::common_type<T>::type with)
{
    T old = *at;
    if (old == expected)
        *at = with;
    return old;
}
#define atomicAdd_block atomicAdd
#define atomicAdd_system atomicAdd

/* ------------------------------------------------------------- arithmetic */

template <class A, class B> constexpr typename std::common_type<A, B>::type min(A a, B b)
{
    using T = typename std::common_type<A, B>::type;
    if constexpr (std::is_floating_point<T>::value)
        return (T)b != (T)b || (T)a < (T)b ? (T)a : (T)b; /* a NaN loses */
    else
        return (T)a < (T)b ? (T)a : (T)b;
}
template <class A, class B> constexpr typename std::common_type<A, B>::type max(A a, B b)
{
    using T = typename std::common_type<A, B>::type;
    if constexpr (std::is_floating_point<T>::value)
        return (T)b != (T)b || (T)a > (T)b ? (T)a : (T)b;
    else
        return (T)a > (T)b ? (T)a : (T)b;
}

static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}
static inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}
static inline int __clzll(long long x)
{
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline int __ffsll(long long x)
{
    return __builtin_ffsll(x);
}
static inline unsigned __brev(unsigned x)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        r |= (x >> i & 1) << (31 - i);
    return r;
}
static inline unsigned long long __brevll(unsigned long long x)
{
    return (unsigned long long)__brev((unsigned)x) << 32 | __brev((unsigned)(x >> 32));
}
static inline int __mulhi(int a, int b)
{
    return (int)((int64_t)a * b >> 32);
}
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return (unsigned)((uint64_t)a * b >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s)
{
    uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++)
        r |= (unsigned)(bytes >> (s >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return r;
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n)
{
    return (unsigned)(((uint64_t)hi << 32 | lo) << (n & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n)
{
    return (unsigned)(((uint64_t)hi << 32 | lo) >> (n & 31));
}
static inline unsigned __funnelshift_lc(unsigned lo, unsigned hi, unsigned n)
{
    return n >= 32 ? lo : __funnelshift_l(lo, hi, n);
}
static inline unsigned __funnelshift_rc(unsigned lo, unsigned hi, unsigned n)
{
    return n >= 32 ? hi : __funnelshift_r(lo, hi, n);
}
static inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++)
        c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
    return c;
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c)
{
    for (int i = 0; i < 4; i++)
        c += (a >> 8 * i & 0xff) * (b >> 8 * i & 0xff);
    return c;
}
template <class To, class From> To lode_emulated_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline unsigned __float_as_uint(float x)
{
    return lode_emulated_bits<unsigned>(x);
}
static inline int __float_as_int(float x)
{
    return lode_emulated_bits<int>(x);
}
static inline float __uint_as_float(unsigned x)
{
    return lode_emulated_bits<float>(x);
}
/** As the hardware rounds to fp16: to nearest even, subnormal numbers as any others. */
static inline unsigned lode_emulate_fp16(float x)
{
    unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000)
        return 0x7fff;
    if (magnitude >= 0x477ff000) /* 65520 and more */
        return sign | 0x7c00;
    if (magnitude < 0x38800000) /* a multiple of 2^-24, as which it may come to 2^-14 */
        return sign | (unsigned)nearbyintf(__uint_as_float(magnitude) * 16777216.0f);
    return sign | (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
}
static inline float __int_as_float(int x)
{
    return lode_emulated_bits<float>(x);
}
static inline long long __double_as_longlong(double x)
{
    return lode_emulated_bits<long long>(x);
}
static inline double __longlong_as_double(long long x)
{
    return lode_emulated_bits<double>(x);
}

/** As the hardware converts: NaN is 0, what does not fit saturates. */
template <class T> T lode_emulated_convert(double x)
{
    if (x != x)
        return 0;
    if (x <= (double)std::numeric_limits<T>::min())
        return std::numeric_limits<T>::min();
    return x >= (double)std::numeric_limits<T>::max() ? std::numeric_limits<T>::max() : (T)x;
}
static inline int __float2int_rn(float x)
{
    return lode_emulated_convert<int>(nearbyint(x));
}
static inline int __float2int_rz(float x)
{
    return lode_emulated_convert<int>(trunc(x));
}
static inline int __float2int_rd(float x)
{
    return lode_emulated_convert<int>(floor(x));
}
static inline int __float2int_ru(float x)
{
    return lode_emulated_convert<int>(ceil(x));
}
static inline unsigned __float2uint_rn(float x)
{
    return lode_emulated_convert<unsigned>(nearbyint(x));
}
static inline unsigned __float2uint_rz(float x)
{
    return lode_emulated_convert<unsigned>(trunc(x));
}
static inline unsigned __float2uint_rd(float x)
{
    return lode_emulated_convert<unsigned>(floor(x));
}
static inline unsigned __float2uint_ru(float x)
{
    return lode_emulated_convert<unsigned>(ceil(x));
}
static inline float __int2float_rn(int x)
{
    return (float)x;
}
static inline float __uint2float_rn(unsigned x)
{
    return (float)x;
}
static inline float __ull2float_rn(unsigned long long x)
{
    return (float)x;
}
static inline float __double2float_rn(double x)
{
    return (float)x;
}
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __frcp_rn(float a)
{
    return 1 / a;
}
static inline float __fsqrt_rn(float a)
{
    return sqrtf(a);
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return fmaf(a, b, c);
}
static inline double __dmul_rn(double a, double b)
{
    return a * b;
}
static inline double __dadd_rn(double a, double b)
{
    return a + b;
}
static inline double __dsub_rn(double a, double b)
{
    return a - b;
}
static inline double __ddiv_rn(double a, double b)
{
    return a / b;
}
static inline float __fdividef(float a, float b)
{
    return a / b;
}
#define __expf(x) expf(x)   /* libc has the name */
#define __logf(x) logf(x)   /* libc has the name */
#define __log2f(x) log2f(x) /* libc has the name */
#define __powf(x, y) powf(x, y)
static inline float __saturatef(float x)
{
    return x > 0 ? (x < 1 ? x : 1) : 0;
}
static inline float rsqrtf(float x)
{
    return 1 / sqrtf(x);
}

template <class T> T __ldg(const T *from)
{
    return *from;
}
template <class T> T __ldcg(const T *from)
{
    return *from;
}
template <class T> T __ldcs(const T *from)
{
    return *from;
}
template <class T> T __ldcv(const T *from)
{
    return *(const volatile T *)from;
}
template <class T> void __stcg(T *to, T value)
{
    *to = value;
}
template <class T> void __stcs(T *to, T value)
{
    *to = value;
}
template <class T> void __stwt(T *to, T value)
{
    *to = value;
}

/* ---------------------------------------------------------------- runtime */

typedef enum cudaError {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInitializationError = 3,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidMemcpyDirection = 21,
    cudaErrorInsufficientDriver = 35,
    cudaErrorDevicesUnavailable = 46,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchOutOfResources = 701,
    cudaErrorHostMemoryAlreadyRegistered = 712,
    cudaErrorHostMemoryNotRegistered = 713,
    cudaErrorLaunchFailure = 719,
    cudaErrorNotPermitted = 800,
    cudaErrorNotSupported = 801,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureMerge = 902,
    cudaErrorStreamCaptureUnmatched = 903,
    cudaErrorStreamCaptureUnjoined = 904,
    cudaErrorStreamCaptureIsolation = 905,
    cudaErrorStreamCaptureImplicit = 906,
    cudaErrorCapturedEvent = 907,
    cudaErrorStreamCaptureWrongThread = 908,
    cudaErrorUnknown = 999
} cudaError_t;

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;
typedef struct CUgraph_st *cudaGraph_t;
typedef struct CUgraphExec_st *cudaGraphExec_t;
#define cudaStreamLegacy ((cudaStream_t)0x1)
#define cudaStreamPerThread ((cudaStream_t)0x2)

enum cudaMemcpyKind {
    cudaMemcpyHostToHost = 0,
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
    cudaMemcpyDefault = 4
};
enum cudaMemoryType {
    cudaMemoryTypeUnregistered = 0,
    cudaMemoryTypeHost = 1,
    cudaMemoryTypeDevice = 2,
    cudaMemoryTypeManaged = 3
};
struct cudaPointerAttributes {
    enum cudaMemoryType type;
    int device;
    void *devicePointer, *hostPointer;
};
enum cudaMemLocationType {
    cudaMemLocationTypeInvalid = 0,
    cudaMemLocationTypeNone = 0,
    cudaMemLocationTypeDevice = 1,
    cudaMemLocationTypeHost = 2,
    cudaMemLocationTypeHostNuma = 3,
    cudaMemLocationTypeHostNumaCurrent = 4
};
struct cudaMemLocation {
    enum cudaMemLocationType type;
    int id;
};
enum cudaMemcpySrcAccessOrder {
    cudaMemcpySrcAccessOrderInvalid = 0,
    cudaMemcpySrcAccessOrderStream = 1,
    cudaMemcpySrcAccessOrderDuringApiCall = 2,
    cudaMemcpySrcAccessOrderAny = 3
};
enum cudaMemcpyFlags { cudaMemcpyFlagDefault = 0, cudaMemcpyFlagPreferOverlapWithCompute = 1 };
struct cudaMemcpyAttributes {
    enum cudaMemcpySrcAccessOrder srcAccessOrder;
    struct cudaMemLocation srcLocHint, dstLocHint;
    unsigned flags;
};
typedef struct cudaUUID_st {
    char bytes[16];
} cudaUUID_t;
struct cudaDeviceProp {
    char name[256];
    cudaUUID_t uuid;
    size_t totalGlobalMem, sharedMemPerBlock, sharedMemPerBlockOptin, sharedMemPerMultiprocessor,
        reservedSharedMemPerBlock;
    int regsPerBlock, warpSize, maxThreadsPerBlock, major, minor, multiProcessorCount, l2CacheSize;
    int pciBusID, pciDeviceID, pciDomainID, asyncEngineCount, unifiedAddressing, canMapHostMemory, integrated;
    int canUseHostPointerForRegisteredMem, maxThreadsPerMultiProcessor, memoryBusWidth;
};
enum cudaDeviceAttr {
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrCanUseHostPointerForRegisteredMem = 91,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrHostRegisterSupported = 99
};
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal = 0,
    cudaStreamCaptureModeThreadLocal = 1,
    cudaStreamCaptureModeRelaxed = 2
};
enum cudaStreamCaptureStatus {
    cudaStreamCaptureStatusNone = 0,
    cudaStreamCaptureStatusActive = 1,
    cudaStreamCaptureStatusInvalidated = 2
};
enum {
    cudaStreamDefault = 0,
    cudaStreamNonBlocking = 1,
    cudaEventDefault = 0,
    cudaEventBlockingSync = 1,
    cudaEventDisableTiming = 2,
    cudaEventRecordDefault = 0,
    cudaEventWaitDefault = 0,
    cudaHostAllocDefault = 0,
    cudaHostAllocPortable = 1,
    cudaHostAllocMapped = 2,
    cudaHostAllocWriteCombined = 4,
    cudaHostRegisterDefault = 0,
    cudaHostRegisterPortable = 1,
    cudaHostRegisterMapped = 2,
    cudaHostRegisterReadOnly = 8,
    cudaDeviceScheduleAuto = 0,
    cudaDeviceScheduleBlockingSync = 4
};

extern "C" {
cudaError_t cudaGetLastError(void);
cudaError_t cudaPeekAtLastError(void);
const char *cudaGetErrorString(cudaError_t error);
const char *cudaGetErrorName(cudaError_t error);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device);
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceGetPCIBusId(char *bus, int length, int device);
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer);
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDevice(int *device);
cudaError_t cudaInitDevice(int device, unsigned device_flags, unsigned flags);
cudaError_t cudaDeviceSynchronize(void);
cudaError_t cudaMemGetInfo(size_t *left, size_t *total);
cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void *memory);
cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void *memory);
cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned flags);
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer);
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind kind, cudaStream_t stream = nullptr);
cudaError_t cudaMemcpyBatchAsync(void *const *to, const void *const *from, const size_t *bytes, size_t count,
                                 struct cudaMemcpyAttributes *attributes, size_t *attribute_indices,
                                 size_t attribute_count, cudaStream_t stream);
cudaError_t cudaMemset(void *to, int value, size_t bytes);
cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream = nullptr);
cudaError_t cudaStreamCreate(cudaStream_t *stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaStreamGetDevice(cudaStream_t stream, int *device);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status);
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode);
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void *), void *data);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec);
cudaError_t cudaEventCreate(cudaEvent_t *event);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to);
}
cudaError_t lode_emulated_malloc(void **memory, size_t bytes);
cudaError_t lode_emulated_func_attribute(const void *kernel, enum cudaFuncAttribute attribute, int value);
cudaError_t cudaFree(void *memory);
struct cudaFuncAttributes {
    size_t sharedSizeBytes, constSizeBytes, localSizeBytes;
    int maxThreadsPerBlock, numRegs, ptxVersion, binaryVersion, cacheModeCA, maxDynamicSharedSizeBytes;
};
cudaError_t lode_emulated_func_attributes(struct cudaFuncAttributes *attributes);
template <class T> cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, T *)
{
    return lode_emulated_func_attributes(attributes);
}
template <class T> cudaError_t cudaMalloc(T **memory, size_t bytes)
{
    return lode_emulated_malloc((void **)memory, bytes);
}
template <class T> cudaError_t cudaFuncSetAttribute(T *kernel, enum cudaFuncAttribute attribute, int value)
{
    return lode_emulated_func_attribute((const void *)kernel, attribute, value);
}
template <class T>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, T *, int threads, size_t shared_bytes)
{
    int by_shared = shared_bytes ? (int)(227 * 1024 / shared_bytes) : 32;
    *blocks = min(min(2048 / threads, by_shared), 32);
    return cudaSuccess;
}

/** Enqueue the kernel; its errors are those of a launch. */
cudaError_t lode_emulated_launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, const char *name,
                                 const void *kernel, size_t argument_bytes, std::function<void()> thread);

template <class... P, class... A>
cudaError_t lode_emulate_launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, const char *name,
                                void (*kernel)(P...), A &&...arguments)
{
    static_assert((std::is_trivially_copyable<P>::value && ...), "arguments are copied as bytes");
    std::tuple<typename std::remove_cv<P>::type...> copies(static_cast<P>(arguments)...);
    return lode_emulated_launch(grid, block, shared_bytes, stream, name, (const void *)kernel, sizeof copies,
                                [kernel, copies] { std::apply(kernel, copies); });
}

#endif
