/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What stands around the scan: conversions, rotations, quantising landmarks, preparing queries. All of it is the scalar
 * level's arithmetic to the bit, so its order of additions is kept and nothing is fused. Never run on a GPU yet.
 *
 * Costs. A step prepares rows · heads · blocks queries; four are a block of D threads, which reads D floats, angles and
 * mean of each, and a D · D transform where one is calibrated (64 KiB at D 128, from L2; once for the four, as queries
 * of a head share it: for 32,000 queries half a gigabyte instead of two). Two sums are in the order of their elements,
 * because the reference's are: the transform's, D of them side by side, and the mean key's score, one chain of D
 * additions, about half a microsecond. Quantising is rare (a row a token once a page is full): 16 lanes a landmark,
 * because lane order (kernels/internal.h) has 16 sums; a HIGGS code is the nearest of all 256 points, as the reference
 * defines it, without its cells.
 */
#include "kernels/cuda/higgs.h"
#include "kernels/cuda/numbers.h"
#include "kernels/cuda/prepared.h"
#include "kernels/cuda/warp.h"

namespace
{

constexpr uint32_t BLOCK = 128;

uint32_t blocks_for(uint64_t threads)
{
    return (uint32_t)((threads + BLOCK - 1) / BLOCK);
}

/* ------------------------------------------------------------ widen and rotate */

__global__ void __launch_bounds__(BLOCK)
    widen_kernel(lode_dtype_t dtype, const void *__restrict__ src, size_t n, float scale, float *__restrict__ out)
{
    const size_t i = (size_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= n)
        return;
    float x;
    if (dtype == LODE_FP32)
        x = ((const float *)src)[i];
    else if (dtype == LODE_BF16)
        x = lode_device_bf16_widen(((const uint16_t *)src)[i]);
    else
        x = lode_device_fp16_widen(((const uint16_t *)src)[i]);
    out[i] = __fmul_rn(scale, x);
}

lode_status_t widen(lode_device_stream_t stream, lode_dtype_t dtype, const void *src, size_t n, float scale, float *out)
{
    if (n == 0)
        return LODE_OK;
    return LODE_LAUNCH(widen_kernel, blocks_for(n), BLOCK, 0, stream, dtype, src, n, scale, out);
}

/** A pair of a row: elements i and i + dim/2. */
__device__ __forceinline__ float2 rotated(float a, float b, float cosine, float sine)
{
    return make_float2(__fsub_rn(__fmul_rn(a, cosine), __fmul_rn(b, sine)),
                       __fadd_rn(__fmul_rn(b, cosine), __fmul_rn(a, sine)));
}

__global__ void __launch_bounds__(BLOCK)
    rotate_kernel(float *x, uint32_t rows, uint32_t dim, const float *__restrict__ angles)
{
    const uint32_t half = dim / 2;
    const uint64_t at = (uint64_t)blockIdx.x * BLOCK + threadIdx.x;
    const uint64_t row = at / half;
    const uint32_t i = (uint32_t)(at % half);
    if (row >= rows)
        return;
    float *a = x + row * dim + i, *b = a + half;
    const float *cosine = angles + row * dim + i;
    const float2 pair = rotated(*a, *b, cosine[0], cosine[half]);
    *a = pair.x;
    *b = pair.y;
}

lode_status_t rotate(lode_device_stream_t stream, float *x, uint32_t rows, uint32_t dim, const float *angles)
{
    if (rows == 0)
        return LODE_OK;
    return LODE_LAUNCH(rotate_kernel, blocks_for((uint64_t)rows * (dim / 2)), BLOCK, 0, stream, x, rows, dim, angles);
}

/* ------------------------------------------------------------------- quantise */

constexpr uint32_t LANES = 16, AT_ONCE = BLOCK / LANES, EACH = LODE_MAX_DIM / LANES;

/** lode_scalar_lane_dot() by 16 lanes, each with the elements of its running sum; all of them get it. */
__device__ __forceinline__ float lane_dot(const float (&a)[EACH], const float (&b)[EACH], uint32_t each)
{
    float sum = 0;
#pragma unroll
    for (uint32_t k = 0; k < EACH; k++)
        if (k < each)
            sum = __fadd_rn(sum, __fmul_rn(a[k], b[k]));
    for (uint32_t half = LANES / 2; half; half /= 2)
        sum = __fadd_rn(sum, __shfl_down_sync(~0u, sum, half, LANES));
    return __shfl_sync(~0u, sum, 0, LANES);
}

__device__ __forceinline__ float lane_absmax(const float (&x)[EACH], uint32_t each)
{
    float most = 0;
#pragma unroll
    for (uint32_t k = 0; k < EACH; k++)
        if (k < each)
            most = fmaxf(most, fabsf(x[k]));
    for (uint32_t half = LANES / 2; half; half /= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, half, LANES));
    return most;
}

/** A landmark among 16 lanes: element lane + 16·k in x[k], and room for its codes. */
struct landmark {
    float x[EACH];
    uint32_t lane, each, dim;
    uint8_t *codes;  /* (dim) in shared memory */
    float *elements; /* the same */
    uint8_t *row;
    bool wanted; /* of two in a warp the second may not be there */
};

/** Codes and, in `centred`, what they stand for; @return the row's scale. */
__device__ uint32_t uniform_codes(landmark &mark, uint32_t bits)
{
    float y[EACH], centred[EACH], back;
    const float absmax = lane_absmax(mark.x, mark.each), scale = lode_device_exact_scale(absmax, &back);
#pragma unroll
    for (uint32_t k = 0; k < EACH; k++)
        y[k] = k < mark.each ? __fmul_rn(mark.x[k], scale) : 0;
    const float square = lane_dot(y, y, mark.each), levels = (float)(1u << bits);
    const float step = bits == 4 ? 0.3352f : bits == 2 ? 0.9957f : 1.0f; /* lode_uniform_step() */
    float inverse = 0;
    if (bits == 8)
        inverse = __fdiv_rn(127, lane_absmax(y, mark.each));
    else
        inverse = __fdiv_rn(1, __fmul_rn(__fsqrt_rn(__fdiv_rn(square, (float)mark.dim)), step));
#pragma unroll
    for (uint32_t k = 0; k < EACH; k++) {
        const float at = __fmul_rn(y[k], inverse);
        float code;
        if (bits == 8) {
            code = centred[k] = fminf(fmaxf(rintf(at), -127), 127);
        } else {
            code = fminf(fmaxf(__fadd_rn(floorf(at), levels / 2), 0), levels - 1);
            centred[k] = __fsub_rn(code, (levels - 1) / 2);
        }
        if (k < mark.each)
            mark.codes[mark.lane + LANES * k] = absmax > 0 ? (uint8_t)(int32_t)code : 0;
    }
    const float rescale = __fdiv_rn(square, lane_dot(centred, y, mark.each));
    return absmax > 0 ? lode_device_bf16_scale(__fmul_rn(rescale, back)) : 0;
}

/** lode_higgs_nearest2() and lode_higgs_nearest4(): the nearest of all, the lowest of those that are as near. */
__device__ uint8_t nearest(const float *x, uint32_t bits)
{
    uint32_t best = 0;
    float least = INFINITY;
    for (uint32_t i = 0; i < 256; i++) {
        const float *point = bits == 4 ? lode_device_grid2[i] : lode_device_grid4[i];
        const float a = __fsub_rn(x[0], point[0]), b = __fsub_rn(x[1], point[1]);
        float distance = __fadd_rn(__fmul_rn(a, a), __fmul_rn(b, b));
        if (bits == 2) {
            const float c = __fsub_rn(x[2], point[2]), d = __fsub_rn(x[3], point[3]);
            distance = __fadd_rn(distance, __fadd_rn(__fmul_rn(c, c), __fmul_rn(d, d)));
        }
        best = distance < least ? i : best;
        least = fminf(distance, least);
    }
    return (uint8_t)best;
}

__device__ uint32_t higgs_codes(landmark &mark, uint32_t bits)
{
    float back;
    const float scale = lode_device_exact_scale(lane_absmax(mark.x, mark.each), &back);
#pragma unroll
    for (uint32_t k = 0; k < EACH; k++)
        mark.x[k] = __fmul_rn(mark.x[k], scale);
    const float rms = __fsqrt_rn(__fdiv_rn(lane_dot(mark.x, mark.x, mark.each), (float)mark.dim));
    const uint32_t norm = lode_device_bf16_scale(__fmul_rn(rms, back));
    const float rounded = __fdiv_rn(lode_device_bf16_widen(norm), back);
    const float inverse = rounded > 0 ? __fdiv_rn(1, rounded) : 0;
#pragma unroll
    for (uint32_t k = 0; k < EACH; k++)
        if (k < mark.each)
            mark.elements[mark.lane + LANES * k] = __fmul_rn(mark.x[k], inverse);
    __syncwarp();
    const uint32_t coordinates = bits == 4 ? 2 : 4;
    for (uint32_t i = mark.lane; i < mark.dim / coordinates; i += LANES)
        mark.codes[i] = nearest(mark.elements + i * coordinates, bits);
    return norm;
}

/** Rows need no alignment, so they are written byte by byte. */
__device__ void store_row(const landmark &mark, const lode_landmark_spec_t &spec, uint32_t scale)
{
    const uint32_t bytes = mark.dim * spec.bits / 8;
    __syncwarp();
    for (uint32_t i = mark.lane; mark.wanted && i < bytes; i += LANES) {
        uint32_t byte = mark.codes[i];
        if (spec.codec == LODE_LANDMARK_UNIFORM) {
            const uint32_t fields = 8 / spec.bits;
            const uint8_t *codes = mark.codes + i / 4 * 4 * fields + i % 4;
            byte = 0;
            for (uint32_t m = 0; m < fields; m++)
                byte |= (uint32_t)codes[4 * m] << spec.bits * m;
        }
        mark.row[i] = (uint8_t)byte;
    }
    if (mark.wanted && mark.lane < 2)
        mark.row[bytes + mark.lane] = (uint8_t)(scale >> 8 * mark.lane);
}

__global__ void __launch_bounds__(BLOCK) quantise_kernel(lode_landmark_spec_t spec, uint32_t dim, uint32_t row_bytes,
                                                         const float *__restrict__ x, size_t n, uint8_t *rows)
{
    __shared__ uint8_t codes[AT_ONCE][LODE_MAX_DIM];
    __shared__ float elements[AT_ONCE][LODE_MAX_DIM];
    const uint32_t place = threadIdx.x / LANES;
    const size_t i = (size_t)blockIdx.x * AT_ONCE + place, at = i < n ? i : n - 1;
    landmark mark = {{0},          threadIdx.x % LANES, dim / LANES,           dim,
                     codes[place], elements[place],     rows + at * row_bytes, i < n};
#pragma unroll
    for (uint32_t k = 0; k < EACH; k++)
        mark.x[k] = k < mark.each ? x[at * dim + mark.lane + LANES * k] : 0;
    if (spec.codec == LODE_LANDMARK_UNIFORM) {
        const uint32_t scale = uniform_codes(mark, spec.bits);
        store_row(mark, spec, scale);
    } else if (spec.codec == LODE_LANDMARK_HIGGS) {
        const uint32_t scale = higgs_codes(mark, spec.bits);
        store_row(mark, spec, scale);
    } else {
#pragma unroll
        for (uint32_t k = 0; k < EACH; k++) {
            const uint32_t bits = lode_device_bf16_narrow(mark.x[k]), byte = 2 * (mark.lane + LANES * k);
            if (!mark.wanted || k >= mark.each)
                continue;
            mark.row[byte] = (uint8_t)bits;
            mark.row[byte + 1] = (uint8_t)(bits >> 8);
        }
    }
}

lode_status_t refuse_spec(const lode_landmark_spec_t *spec, uint32_t dim)
{
    return lode_cuda_refuse(LODE_ERR_INVALID, "landmarks: there is no codec %d of %u bits and %u dimensions",
                            (int)spec->codec, spec->bits, dim);
}

lode_status_t landmark_quantise(lode_device_stream_t stream, const lode_landmark_spec_t *spec, uint32_t dim,
                                const float *x, size_t n, uint8_t *rows)
{
    if (!lode_landmark_spec_valid(spec, dim))
        return refuse_spec(spec, dim);
    if (n == 0)
        return LODE_OK;
    return LODE_LAUNCH(quantise_kernel, (uint32_t)((n + AT_ONCE - 1) / AT_ONCE), BLOCK, 0, stream, *spec, dim,
                       (uint32_t)lode_landmark_row_bytes(spec, dim), x, n, rows);
}

/* -------------------------------------------------------------------- prepare
 * One block of D threads for a few queries, thread i for element i of each: neighbours in the list share their head's
 * transform, which is read once for them. */

constexpr uint32_t TOGETHER = 4, MOST_WARPS = LODE_MAX_DIM / 32;

/** Element i of the query: rotated, the mean of `count` rows if there are more. */
__device__ __forceinline__ float rotated_mean(const float *q, const float *angles, const lode_device_query_t &query,
                                              uint32_t dim)
{
    const uint32_t i = threadIdx.x, half = dim / 2, pair = i % half;
    float sum = 0, x = 0;
    for (uint32_t g = 0; g < query.count; g++) {
        const float *row = q + (size_t)(query.q + g) * dim;
        x = row[i];
        if (query.angles != UINT32_MAX) {
            const float *cosine = angles + (size_t)query.angles * dim + pair;
            const float2 both = rotated(row[pair], row[pair + half], cosine[0], cosine[half]);
            x = i < half ? both.x : both.y;
        }
        sum = __fadd_rn(sum, x);
    }
    return query.count > 1 ? __fdiv_rn(sum, (float)query.count) : x;
}

/** lode_scalar_project(); all of them by one matrix. @param x  the queries, (dim) each */
template <uint32_t N>
__device__ __forceinline__ void project(const float (*x)[LODE_MAX_DIM], const float *matrix, uint32_t dim,
                                        float (&mine)[N])
{
#pragma unroll
    for (uint32_t k = 0; k < N; k++)
        mine[k] = 0;
#pragma unroll 16
    for (uint32_t j = 0; j < dim; j++) {
        const float weight = matrix[(size_t)j * dim + threadIdx.x];
#pragma unroll
        for (uint32_t k = 0; k < N; k++)
            mine[k] = __fadd_rn(mine[k], __fmul_rn(x[k][j], weight));
    }
}

/** lode_scalar_hadamard(): within a warp, then across. @param x  (dim) in shared memory, overwritten */
__device__ __forceinline__ float hadamard(float *x, float mine, uint32_t dim)
{
    const uint32_t i = threadIdx.x;
    for (uint32_t apart = 1; apart < dim; apart *= 2) {
        float other;
        if (apart < 32) {
            other = __shfl_xor_sync(~0u, mine, apart);
        } else {
            __syncthreads();
            x[i] = mine;
            __syncthreads();
            other = x[i ^ apart];
        }
        mine = i & apart ? __fsub_rn(other, mine) : __fadd_rn(mine, other);
    }
    return __fmul_rn(mine, __fdiv_rn(1, __fsqrt_rn((float)dim)));
}

/** What all of a block's threads know of its queries. */
struct shared_queries {
    float x[TOGETHER][LODE_MAX_DIM], products[TOGETHER][LODE_MAX_DIM], bias[TOGETHER];
    float greatest[TOGETHER][MOST_WARPS];
    int32_t sums[TOGETHER][MOST_WARPS];
};

/** Before they are used the block must meet. */
__device__ __forceinline__ void note_greatest(float x, float *room)
{
    float most = fabsf(x);
    for (uint32_t apart = 16; apart; apart /= 2)
        most = fmaxf(most, __shfl_xor_sync(~0u, most, apart));
    if (threadIdx.x % 32 == 0)
        room[threadIdx.x / 32] = most;
}

__device__ __forceinline__ void note_sum(int32_t x, int32_t *room)
{
    x = lode_warp_sum(x);
    if (threadIdx.x % 32 == 0)
        room[threadIdx.x / 32] = x;
}

/** The mean keys' scores: products added in their order, each query's by one thread. */
__device__ __forceinline__ void add_biases(uint32_t dim, shared_queries &s)
{
    if (threadIdx.x >= TOGETHER)
        return;
    float sum = 0;
#pragma unroll 16
    for (uint32_t i = 0; i < dim; i++)
        sum = __fadd_rn(sum, s.products[threadIdx.x][i]);
    s.bias[threadIdx.x] = sum;
}

/** A UNIFORM code's share of both columns (prepared.h). */
__device__ __forceinline__ void store_code(uint32_t bits, uint32_t dim, int32_t code, uint8_t *even, uint8_t *odd)
{
    if (bits == 8) {
        const int32_t high = (code + 128) >> 8, more = high > 127 ? high - 127 : 0;
        even[0] = (uint8_t)(high - more);
        even[dim / 4] = (uint8_t)more;
        odd[0] = (uint8_t)code;
        odd[dim / 4] = 0;
        return;
    }
    const uint32_t field = threadIdx.x % (32 / bits) / 4;
    const bool is_odd = bits == 1 ? field >= 4 : field % 2;
    const uint8_t share = (uint8_t)(bits == 1 ? code * (8 >> field % 4) : code);
    *even = is_odd ? 0 : share;
    *odd = is_odd ? share : 0;
}

__device__ __forceinline__ void store_floats(float x, uint8_t *even, uint8_t *odd)
{
    const uint32_t most = lode_device_bf16_scale(x);
    *(uint16_t *)even = (uint16_t)most;
    *(uint16_t *)odd = (uint16_t)lode_device_bf16_narrow(__fsub_rn(x, lode_device_bf16_widen(most)));
}

/** Transform what is in s.x, which the block has met over. */
__device__ __forceinline__ void transform(const lode_device_query_t (&queries)[TOGETHER], uint32_t dim,
                                          shared_queries &s, float (&mine)[TOGETHER])
{
    bool alike = queries[0].transform != NULL;
#pragma unroll
    for (uint32_t k = 1; k < TOGETHER; k++)
        alike = alike && queries[k].transform == queries[0].transform;
    if (alike) {
        project<TOGETHER>(s.x, queries[0].transform, dim, mine);
        return;
    }
#pragma unroll
    for (uint32_t k = 0; k < TOGETHER; k++) {
        float one[1];
        if (queries[k].transform)
            project<1>(s.x + k, queries[k].transform, dim, one);
        mine[k] = queries[k].transform ? one[0] : hadamard(s.x[k], mine[k], dim);
    }
}

/** lode_query_begin() and the codes. @param[out] to  of each query; NULL: there is none */
__device__ __forceinline__ void store_uniform(uint32_t bits, uint32_t dim, const float (&mine)[TOGETHER],
                                              uint8_t *const (&to)[TOGETHER], shared_queries &s)
{
    const uint32_t part = lode_prepared_part_bytes(LODE_LANDMARK_UNIFORM, bits, dim);
    const uint32_t place = sizeof(lode_prepared_t) + lode_prepared_place(LODE_LANDMARK_UNIFORM, bits, dim, threadIdx.x);
    const float most = bits == 8 ? 32767 : bits == 1 ? 15 : 127;
    float absmax[TOGETHER];
#pragma unroll
    for (uint32_t k = 0; k < TOGETHER; k++)
        note_greatest(mine[k], s.greatest[k]);
    __syncthreads();
#pragma unroll
    for (uint32_t k = 0; k < TOGETHER; k++) {
        float back;
        absmax[k] = 0;
        for (uint32_t warp = 0; warp < dim / 32; warp++)
            absmax[k] = fmaxf(absmax[k], s.greatest[k][warp]);
        const float exact = lode_device_exact_scale(absmax[k], &back);
        const float inverse = absmax[k] > 0 ? __fdiv_rn(most, __fmul_rn(absmax[k], exact)) : 0;
        const int32_t code = __float2int_rn(__fmul_rn(__fmul_rn(mine[k], exact), inverse));
        note_sum(code, s.sums[k]);
        if (to[k])
            store_code(bits, dim, code, to[k] + place, to[k] + place + part);
    }
    __syncthreads();
#pragma unroll
    for (uint32_t k = 0; k < TOGETHER; k++) {
        int32_t sum = 0;
        for (uint32_t warp = 0; warp < dim / 32; warp++)
            sum += s.sums[k][warp];
        const float centre = (float)((int32_t)((1u << bits) - 1) * sum);
        const float scale = __fmul_rn(__fdiv_rn(absmax[k], most), bits == 8 ? 1.0f : 0.5f);
        const float lower = bits == 8 ? 0 : -(LODE_MAGIC * lode_prepared_odd_weight(bits) + centre); /* exact */
        if (threadIdx.x == k && to[k])
            *(lode_prepared_t *)to[k] = {scale, s.bias[k], lower, 0};
    }
}

__device__ __forceinline__ void store_plain(lode_landmark_codec_t codec, uint32_t bits, uint32_t dim,
                                            const float (&mine)[TOGETHER], uint8_t *const (&to)[TOGETHER],
                                            const shared_queries &s)
{
    const uint32_t part = lode_prepared_part_bytes(codec, bits, dim);
    const uint32_t place = sizeof(lode_prepared_t) + lode_prepared_place(codec, bits, dim, threadIdx.x);
#pragma unroll
    for (uint32_t k = 0; k < TOGETHER; k++) {
        if (!to[k])
            continue;
        store_floats(mine[k], to[k] + place, to[k] + place + part);
        if (threadIdx.x == k)
            *(lode_prepared_t *)to[k] = {0, s.bias[k], 0, 0};
    }
}

__global__ void __launch_bounds__(LODE_MAX_DIM, 4)
    prepare_kernel(lode_landmark_codec_t codec, uint32_t bits, uint32_t dim, const float *__restrict__ q,
                   const float *__restrict__ angles, const lode_device_query_t *__restrict__ all, uint32_t n,
                   uint8_t *prepared)
{
    __shared__ shared_queries s;
    lode_device_query_t queries[TOGETHER];
    float mine[TOGETHER];
    uint8_t *to[TOGETHER];
    const uint32_t bytes = sizeof(lode_prepared_t) + 2 * lode_prepared_part_bytes(codec, bits, dim);
#pragma unroll
    for (uint32_t k = 0; k < TOGETHER; k++) {
        const uint32_t at = blockIdx.x * TOGETHER + k;
        queries[k] = all[min(at, n - 1)];
        to[k] = at < n ? prepared + (size_t)at * bytes : NULL;
        mine[k] = rotated_mean(q, angles, queries[k], dim);
        s.x[k][threadIdx.x] = mine[k];
        s.products[k][threadIdx.x] = queries[k].mean ? __fmul_rn(queries[k].mean[threadIdx.x], mine[k]) : 0;
    }
    __syncthreads();
    add_biases(dim, s); /* the warp's own threads read them at the end */
    __syncwarp();
    if (codec != LODE_LANDMARK_MEAN)
        transform(queries, dim, s, mine);
    if (codec == LODE_LANDMARK_UNIFORM)
        store_uniform(bits, dim, mine, to, s);
    else
        store_plain(codec, bits, dim, mine, to, s);
}

size_t query_bytes(const lode_landmark_spec_t *spec, uint32_t dim)
{
    return sizeof(lode_prepared_t) + 2 * lode_prepared_part_bytes(spec->codec, spec->bits, dim);
}

lode_status_t query_prepare(lode_device_stream_t stream, const lode_landmark_spec_t *spec, uint32_t dim, const float *q,
                            const float *angles, const lode_device_query_t *queries, uint32_t n, void *prepared)
{
    if (!lode_landmark_spec_valid(spec, dim))
        return refuse_spec(spec, dim);
    if (n == 0)
        return LODE_OK;
    return LODE_LAUNCH(prepare_kernel, (n + TOGETHER - 1) / TOGETHER, dim, 0, stream, spec->codec, spec->bits, dim, q,
                       angles, queries, n, (uint8_t *)prepared);
}

} // namespace

void lode_cuda_fill_query(lode_device_ops_t *ops)
{
    ops->widen = widen;
    ops->rotate = rotate;
    ops->landmark_quantise = landmark_quantise;
    ops->query_bytes = query_bytes;
    ops->query_prepare = query_prepare;
}
