/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The scan: scores of all landmarks that a step sees, for the queries of their heads. Never run on a GPU yet; what is
 * said of time is counted on paper.
 *
 * What bounds it. A landmark is read once: tile bytes a 32 landmarks at D 128 are 4160, 2112, 1088 and 576 for 8, 4, 2
 * and 1 bit, and each query adds 128 bytes of scores. 4.8 TB/s over 132 processors of 4 schedulers at 1.7 GHz are 5.4
 * bytes a cycle and scheduler, so a warp that is alone on its scheduler may take 777, 395, 203 and 108 cycles for a
 * tile and still keep up (with four queries' scores written to memory as well: 873, 490, 299, 203). A thread a landmark
 * with dp4a, which runs at half rate, would take 64 cycles a query and 56 for the fields of 2-bit codes: too many from
 * the third query on. So tensor cores, in integers, which are exact:
 *
 *  - Tiles are the host's. In a word of a tile, bits b·m … of its four bytes are four neighbouring coordinates, so a
 *    mask makes a register of mma's A operand of it: row = landmark, and its 4 of the 32 coordinates. Which 32 of a
 *    row's coordinates are multiplied at once is free as long as the query agrees; so are rows. A lane reads 16 bytes,
 *    one word of four neighbouring landmarks, which are rows g and g + 8 of two products; 8 · 4 lanes read four words
 *    of the 32 landmarks of a tile, in runs of 256 bytes. Nothing goes through shared memory, and nothing is moved
 *    between lanes.
 *  - The 8 columns are four queries, two columns each. A shift costs as much as a mask; so a field is left where it
 *    lies, counts 2^b or 16 times, and is summed in the odd column, to be divided once a score (prepared.h). 8 bit: the
 *    high and the low byte of q16; high may be 128, one more than a byte holds, which a second product adds.
 *  - A lane ends with one query's scores of four neighbouring landmarks, the epilogue is lode_uniform_score() unfused,
 *    and the scores are one store of 16 bytes. Integers become floats by the bits of LODE_MAGIC, which the sums begin
 *    at.
 *  - More than four queries: the same codes, which are in registers, for the next four.
 *
 * nvcc 13.0 for sm_90 makes 170, 128, 125 and 108 instructions a tile of that (D 128, 8 to 1 bit, up to four queries),
 * 16, 8, 8 and 8 of them products of m16n8k32, 8 cycles each at the full rate of mma, 16 at half of it; no spills (for
 * sm_100 a few, HIGGS above all), at most 96 registers (1 bit: 120). So memory should bound it; 1 bit with a single
 * query is close, 108 of 131 cycles. Sixteen queries take 660, 480, 460 and 400 instructions while memory takes 1160,
 * 777, 586 and 490 cycles.
 *
 * Bytes in flight. 4.8 TB/s in 0.7 µs are 25 KB a processor, and queues need more. 16 (1 bit) or 20 warps with a batch
 * of 4 KiB each, all loads before the first use, have 64 or 80 KB under way when all wait, and may compute more than
 * half of the time. Registers allow no double batch; cp.async through shared memory would, for a trip through it.
 *
 * Work. Scans are of 1 to millions of landmarks. Each warp takes an equal run of all the launch's tiles, finds the scan
 * where it begins by a search for first_tile, and goes on from scan to scan by itself: no barrier, no counter to clear,
 * and short scans fill a warp as long ones do. Codes leave L2 first, so that scores that select() reads next can stay.
 *
 * HIGGS: a code is a point of 2 or 4 coordinates; a table of its share for each query, as on processors, is D/d · 1 KiB
 * a query: 256 KiB for four at 4 bit, too much, and a look-up a code and query, at addresses that collide. Kept is the
 * grid alone, as bf16 and what that leaves (as bf16 too), once for each lane that is served together (32 KiB): a
 * look-up a code without collisions gives A's registers as they stand. Two products each, and the query's bf16 and its
 * rest are the two columns, so errors are below 2^-17 of a term. Shared memory bounds it: 64 look-ups of 8 bytes a
 * landmark at 4 bit, half as many of 16 at 2 bit, 4 cycles a landmark and processor; 77 % and 40 % of the memory's rate
 * at best, and a second look-up for each further four queries.
 * MEAN: the same split of the query; codes are A's registers as they are.
 */
#include "kernels/cuda/higgs.h"
#include "kernels/cuda/numbers.h"
#include "kernels/cuda/prepared.h"
#include "kernels/cuda/warp.h"

namespace
{

constexpr uint32_t BLOCK = 128, WARPS = BLOCK / 32;
constexpr uint32_t ROWS = 4; /* of queries at once: two columns each */

/** What is known of a codec when it is compiled. */
template <lode_landmark_codec_t CODEC, uint32_t BITS, uint32_t DIM> struct shape {
    static constexpr uint32_t words = DIM * BITS / 32;           /* of a landmark */
    static constexpr uint32_t loads = words < 4 ? 1 : words / 4; /* of 16 bytes: what a lane reads of a tile */
    /* Tiles read before the first is looked at. What bounds HIGGS is not memory. */
    static constexpr uint32_t deep = CODEC == LODE_LANDMARK_HIGGS ? 4 : 8, tiles = loads >= deep ? 1 : deep / loads;
    static constexpr uint32_t code_bytes = LODE_TILE * DIM * BITS / 8; /* of a tile */
    static constexpr bool scaled = CODEC != LODE_LANDMARK_MEAN;
    static constexpr uint32_t tile_bytes = code_bytes + (scaled ? LODE_TILE * 2 : 0);
    static constexpr bool narrow = CODEC == LODE_LANDMARK_UNIFORM && BITS < 8; /* a coordinate of a query is a byte */
    static constexpr uint32_t part_bytes = narrow ? DIM : 2 * DIM;
    static constexpr uint32_t query_bytes = sizeof(lode_prepared_t) + 2 * part_bytes;
    static constexpr uint32_t b_count = part_bytes / 16; /* registers a lane for its share of a column */
    /* Blocks on a multiprocessor, as many as there are registers for. */
    static constexpr uint32_t light = CODEC == LODE_LANDMARK_HIGGS || BITS == 1 || tiles >= 8 || b_count >= 16 ? 4 : 5;
    static constexpr uint32_t least_blocks = loads >= 32 ? 2 : b_count >= 32 ? 3 : loads >= 16 ? 4 : light;
};

__device__ __forceinline__ float bf16_low(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}

__device__ __forceinline__ float bf16_high(uint32_t pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}

/* ------------------------------------------------------------------ products
 * sums[p][i]: i < 2 of landmark 2p of the lane's four, i ≥ 2 of landmark 2p + 1; i even: the even column. `words` are
 * what the lane has of a tile, b its share of a column of queries. */

template <class S> struct products_uniform8 {
    typedef int32_t sum_t;
    static __device__ __forceinline__ void add(const uint4 (&words)[S::loads], const uint32_t (&b)[S::b_count],
                                               const void *, int32_t (&sums)[2][4])
    {
#pragma unroll
        for (uint32_t i = 0; i < S::loads; i += 2) {
            const uint32_t first[4] = {words[i].x, words[i].y, words[i + 1].x, words[i + 1].y};
            const uint32_t last[4] = {words[i].z, words[i].w, words[i + 1].z, words[i + 1].w};
            const uint32_t more[2] = {b[S::loads + i], b[S::loads + i + 1]};
            lode_mma_s8(sums[0], first, b + i);
            lode_mma_s8(sums[1], last, b + i);
            lode_mma_s8(sums[0], first, more);
            lode_mma_s8(sums[1], last, more);
        }
    }
};

/** Two fields of four landmarks' words by the coordinates b[0], b[1]. */
__device__ __forceinline__ void add_fields(const uint4 &w, uint32_t mask0, uint32_t mask1, const uint32_t *b,
                                           int32_t (&sums)[2][4])
{
    const uint32_t first[4] = {w.x & mask0, w.y & mask0, w.x & mask1, w.y & mask1};
    const uint32_t last[4] = {w.z & mask0, w.w & mask0, w.z & mask1, w.w & mask1};
    lode_mma_u8s8(sums[0], first, b);
    lode_mma_u8s8(sums[1], last, b);
}

template <class S> struct products_uniform4 {
    typedef int32_t sum_t;
    static __device__ __forceinline__ void add(const uint4 (&words)[S::loads], const uint32_t (&b)[S::b_count],
                                               const void *, int32_t (&sums)[2][4])
    {
#pragma unroll
        for (uint32_t i = 0; i < S::loads; i++)
            add_fields(words[i], 0x0f0f0f0fu, 0xf0f0f0f0u, b + 2 * i, sums);
    }
};

template <class S> struct products_uniform2 {
    typedef int32_t sum_t;
    static __device__ __forceinline__ void add(const uint4 (&words)[S::loads], const uint32_t (&b)[S::b_count],
                                               const void *, int32_t (&sums)[2][4])
    {
#pragma unroll
        for (uint32_t i = 0; i < S::loads; i++) {
            const uint4 w = words[i], high = make_uint4(w.x >> 4, w.y >> 4, w.z >> 4, w.w >> 4);
            add_fields(w, 0x03030303u, 0x0c0c0c0cu, b + 4 * i, sums);
            add_fields(high, 0x03030303u, 0x0c0c0c0cu, b + 4 * i + 2, sums);
        }
    }
};

template <class S> struct products_uniform1 {
    typedef int32_t sum_t;
    static __device__ __forceinline__ void add(const uint4 (&words)[S::loads], const uint32_t (&b)[S::b_count],
                                               const void *, int32_t (&sums)[2][4])
    {
        constexpr uint32_t fields = S::words < 4 ? 4 : 8; /* of a word that this lane multiplies */
        const uint32_t shift = S::words < 4 ? threadIdx.x % 4 / 2 * 4 : 0;
#pragma unroll
        for (uint32_t i = 0; i < S::loads; i++)
#pragma unroll
            for (uint32_t m = 0; m < fields; m += 2)
                add_fields(words[i], 0x01010101u << (m + shift), 0x02020202u << (m + shift), b + fields * i + m, sums);
    }
};

template <class S> struct products_mean {
    typedef float sum_t;
    static __device__ __forceinline__ void add(const uint4 (&words)[S::loads], const uint32_t (&b)[S::b_count],
                                               const void *, float (&sums)[2][4])
    {
#pragma unroll
        for (uint32_t i = 0; i < S::loads; i += 2) {
            const uint32_t first[4] = {words[i].x, words[i].y, words[i + 1].x, words[i + 1].y};
            const uint32_t last[4] = {words[i].z, words[i].w, words[i + 1].z, words[i + 1].w};
            lode_mma_bf16(sums[0], first, b + i);
            lode_mma_bf16(sums[1], last, b + i);
        }
    }
};

/* A point is looked up where no other lane of those served together looks: there is a copy for each. */
constexpr uint32_t TABLE_BYTES = 32768, COPIES2 = 16, COPIES4 = 8;

/** HIGGS 4 bit: codes of pairs; the table's entries are a pair as bf16 and what that leaves. */
template <class S> struct products_higgs4 {
    typedef float sum_t;
    static __device__ __forceinline__ uint2 point(const void *table, uint32_t word, uint32_t byte)
    {
        return ((const uint2 *)table)[(word >> 8 * byte & 255) * COPIES2 + threadIdx.x % COPIES2];
    }
    static __device__ __forceinline__ void add(const uint4 (&words)[S::loads], const uint32_t (&b)[S::b_count],
                                               const void *table, float (&sums)[2][4])
    {
#pragma unroll
        for (uint32_t i = 0; i < S::loads; i++)
#pragma unroll
            for (uint32_t byte = 0; byte < 4; byte += 2)
#pragma unroll
                for (uint32_t p = 0; p < 2; p++) {
                    const uint32_t one = p ? words[i].z : words[i].x, two = p ? words[i].w : words[i].y;
                    const uint2 a = point(table, one, byte), c = point(table, two, byte);
                    const uint2 d = point(table, one, byte + 1), e = point(table, two, byte + 1);
                    const uint32_t most[4] = {a.x, c.x, d.x, e.x}, rest[4] = {a.y, c.y, d.y, e.y};
                    lode_mma_bf16(sums[p], most, b + 4 * i + byte);
                    lode_mma_bf16(sums[p], rest, b + 4 * i + byte);
                }
    }
};

/** HIGGS 2 bit: codes of fours; the table's entries are two pairs as bf16 and what those leave. */
template <class S> struct products_higgs2 {
    typedef float sum_t;
    static __device__ __forceinline__ uint4 point(const void *table, uint32_t word, uint32_t byte)
    {
        return ((const uint4 *)table)[(word >> 8 * byte & 255) * COPIES4 + threadIdx.x % COPIES4];
    }
    static __device__ __forceinline__ void add(const uint4 (&words)[S::loads], const uint32_t (&b)[S::b_count],
                                               const void *table, float (&sums)[2][4])
    {
#pragma unroll
        for (uint32_t i = 0; i < S::loads; i++)
#pragma unroll
            for (uint32_t byte = 0; byte < 4; byte++)
#pragma unroll
                for (uint32_t p = 0; p < 2; p++) {
                    const uint4 a = point(table, p ? words[i].z : words[i].x, byte);
                    const uint4 c = point(table, p ? words[i].w : words[i].y, byte);
                    const uint32_t most[4] = {a.x, c.x, a.y, c.y}, rest[4] = {a.z, c.z, a.w, c.w};
                    lode_mma_bf16(sums[p], most, b + 8 * i + 2 * byte);
                    lode_mma_bf16(sums[p], rest, b + 8 * i + 2 * byte);
                }
    }
};

template <class S, lode_landmark_codec_t CODEC, uint32_t BITS> struct products;
template <class S> struct products<S, LODE_LANDMARK_UNIFORM, 8> : products_uniform8<S> {
};
template <class S> struct products<S, LODE_LANDMARK_UNIFORM, 4> : products_uniform4<S> {
};
template <class S> struct products<S, LODE_LANDMARK_UNIFORM, 2> : products_uniform2<S> {
};
template <class S> struct products<S, LODE_LANDMARK_UNIFORM, 1> : products_uniform1<S> {
};
template <class S> struct products<S, LODE_LANDMARK_HIGGS, 4> : products_higgs4<S> {
};
template <class S> struct products<S, LODE_LANDMARK_HIGGS, 2> : products_higgs2<S> {
};
template <class S> struct products<S, LODE_LANDMARK_MEAN, 16> : products_mean<S> {
};

/* -------------------------------------------------------------------- scores */

/** lode_uniform_score(), whose t is exact before it becomes a float. */
template <uint32_t BITS>
__device__ __forceinline__ float score_of(int32_t even, int32_t odd, float row_scale, const lode_prepared_t &query)
{
    float t;
    if (BITS == 8) {
        t = (float)(even * 256 + odd);
    } else { /* exact all the way: integers, or such over 128, far below 2^24 */
        t = __fmaf_rn(__int_as_float(odd), lode_prepared_odd_weight(BITS), query.lower);
        t = __fmaf_rn(__fsub_rn(__int_as_float(even), LODE_MAGIC), lode_prepared_even_weight(BITS), t);
    }
    return __fadd_rn(__fmul_rn(__fmul_rn(query.scale, t), row_scale), query.bias);
}

template <uint32_t BITS>
__device__ __forceinline__ float score_of(float even, float odd, float row_scale, const lode_prepared_t &query)
{
    return __fmaf_rn(__fadd_rn(even, odd), row_scale, query.bias);
}

/** Begin the sums: where score_of() reads their bits as a float's, at LODE_MAGIC. */
template <bool NARROW, class T> __device__ __forceinline__ void clear(T (&sums)[2][4])
{
#pragma unroll
    for (uint32_t i = 0; i < 8; i++)
        sums[i / 4][i % 4] = NARROW ? (T)LODE_MAGIC_BITS : (T)0;
}

/** Up to four neighbours' scores; fewer at the end of a scan. */
__device__ __forceinline__ void store4(float *at, uint32_t landmark, uint32_t landmarks, float4 score)
{
    if (landmark + 4 <= landmarks) {
        *(float4 *)at = score;
        return;
    }
    if (landmark < landmarks)
        at[0] = score.x;
    if (landmark + 1 < landmarks)
        at[1] = score.y;
    if (landmark + 2 < landmarks)
        at[2] = score.z;
}

/** What a warp has of a batch of tiles. */
template <class S> struct batch {
    uint4 words[S::tiles][S::loads];
    uint2 scales[S::tiles]; /* of the lane's four landmarks */
};

/** At most `count` tiles from the first on. */
template <class S>
__device__ __forceinline__ void load(const uint8_t *first, uint32_t count, uint64_t policy, batch<S> &x)
{
    const uint32_t lane = threadIdx.x % 32, four = lane / 4, word = S::words < 4 ? lane % 2 : lane % 4;
    const uint8_t *codes = first + (four / 4 * S::words + word) * 64 + four % 4 * 16;
    const uint8_t *scales = first + S::code_bytes + 8 * four;
#pragma unroll
    for (uint32_t t = 0; t < S::tiles; t++) {
        if (t >= count)
            break;
#pragma unroll
        for (uint32_t i = 0; i < S::loads; i++)
            x.words[t][i] = lode_load_stream((const uint4 *)(codes + t * S::tile_bytes + 256 * i), policy);
        if (S::scaled)
            x.scales[t] = lode_load_stream((const uint2 *)(scales + t * S::tile_bytes), policy);
    }
}

/** A lane's share of the columns of four queries, and what else is to know of the one whose scores it writes. */
template <class S>
__device__ __forceinline__ void load_queries(const uint8_t *queries, uint32_t row, uint32_t rows,
                                             uint32_t (&b)[S::b_count], lode_prepared_t &query)
{
    const uint32_t lane = threadIdx.x % 32, column = lane / 4;
    const uint8_t *from = queries + (size_t)min(row + column / 2, rows - 1) * S::query_bytes + sizeof(lode_prepared_t) +
                          column % 2 * S::part_bytes + lane % 4 * (S::part_bytes / 4);
#pragma unroll
    for (uint32_t i = 0; i < S::b_count / 4; i++) {
        const uint4 four = __ldg((const uint4 *)from + i);
        b[4 * i] = four.x;
        b[4 * i + 1] = four.y;
        b[4 * i + 2] = four.z;
        b[4 * i + 3] = four.w;
    }
    const uint4 head = __ldg((const uint4 *)(queries + (size_t)min(row + lane % 4, rows - 1) * S::query_bytes));
    query.scale = __uint_as_float(head.x);
    query.bias = __uint_as_float(head.y);
    query.lower = __uint_as_float(head.z);
}

/** Tiles first … end−1 of a scan. */
template <lode_landmark_codec_t CODEC, uint32_t BITS, uint32_t DIM>
__device__ __forceinline__ void score_tiles(const lode_device_scan_t &scan, const uint8_t *prepared, const void *table,
                                            uint32_t first, uint32_t end)
{
    typedef shape<CODEC, BITS, DIM> S;
    typedef products<S, CODEC, BITS> P;
    const uint32_t lane = threadIdx.x % 32;
    const uint8_t *queries = prepared + (size_t)scan.query * S::query_bytes;
    const uint64_t policy = lode_leave_first();
    for (; first < end; first += S::tiles) {
        batch<S> x;
        load<S>(scan.tiles + (size_t)first * S::tile_bytes, end - first, policy, x);
        for (uint32_t row = 0; row < scan.rows; row += ROWS) {
            uint32_t b[S::b_count];
            lode_prepared_t query;
            load_queries<S>(queries, row, scan.rows, b, query);
#pragma unroll
            for (uint32_t t = 0; t < S::tiles; t++) {
                if (first + t >= end)
                    break;
                typename P::sum_t sums[2][4];
                clear<S::narrow>(sums);
                P::add(x.words[t], b, table, sums);
                const uint2 scales = S::scaled ? x.scales[t] : make_uint2(0x3f803f80u, 0x3f803f80u);
                const float4 score = make_float4(score_of<BITS>(sums[0][0], sums[0][1], bf16_low(scales.x), query),
                                                 score_of<BITS>(sums[0][2], sums[0][3], bf16_high(scales.x), query),
                                                 score_of<BITS>(sums[1][0], sums[1][1], bf16_low(scales.y), query),
                                                 score_of<BITS>(sums[1][2], sums[1][3], bf16_high(scales.y), query));
                const uint32_t landmark = (first + t) * LODE_TILE + lane / 4 * 4, mine = row + lane % 4;
                if (mine < scan.rows)
                    store4(scan.scores + mine * scan.stride + landmark, landmark, scan.landmarks, score);
            }
        }
    }
}

/* ---------------------------------------------------------------------- work */

__device__ __forceinline__ uint32_t tiles_of(const lode_device_scan_t &scan)
{
    return scan.landmarks / LODE_TILE + (scan.landmarks % LODE_TILE != 0);
}

/** Bring up to 32 scans from the first on to where the warp finds them at once. */
__device__ __forceinline__ void look_at(const lode_device_scan_t *scans, uint32_t n, uint32_t first,
                                        lode_device_scan_t *window)
{
    const uint32_t lane = threadIdx.x % 32;
    __syncwarp();
    if (lane < n - first)
        window[lane] = scans[first + lane];
    __syncwarp();
}

/** A scan such that one of the 32 from it on is the last whose first tile is not behind `tile`. */
__device__ uint32_t narrow(const lode_device_scan_t *scans, uint32_t n, uint32_t tile)
{
    uint32_t low = 0, high = n;
    while (high - low > 32) {
        const uint32_t apart = (high - low + 31) / 32, at = low + threadIdx.x % 32 * apart;
        const uint32_t before = __popc(__ballot_sync(~0u, at < high && scans[at].first_tile <= tile));
        low += (before - 1) * apart;
        high = min(low + apart, high);
    }
    return low;
}

/** Two bf16, and what they leave of x and y, as two more. */
__device__ __forceinline__ uint2 split_pair(float x, float y)
{
    const uint32_t xs = lode_device_bf16_narrow(x), ys = lode_device_bf16_narrow(y);
    const float x_rest = __fsub_rn(x, __uint_as_float(xs << 16)), y_rest = __fsub_rn(y, __uint_as_float(ys << 16));
    return make_uint2(xs | ys << 16, lode_device_bf16_narrow(x_rest) | lode_device_bf16_narrow(y_rest) << 16);
}

template <uint32_t BITS> __device__ __forceinline__ void fill_table(void *table)
{
    if (BITS == 4)
        for (uint32_t i = threadIdx.x; i < 256 * COPIES2; i += BLOCK) {
            const float *point = lode_device_grid2[i / COPIES2];
            ((uint2 *)table)[i] = split_pair(point[0], point[1]);
        }
    else
        for (uint32_t i = threadIdx.x; i < 256 * COPIES4; i += BLOCK) {
            const float *point = lode_device_grid4[i / COPIES4];
            const uint2 front = split_pair(point[0], point[1]), back = split_pair(point[2], point[3]);
            ((uint4 *)table)[i] = make_uint4(front.x, back.x, front.y, back.y);
        }
    __syncthreads();
}

/** All tiles of the launch are shared out in equal runs, one a warp, which may be of several scans. */
template <lode_landmark_codec_t CODEC, uint32_t BITS, uint32_t DIM>
__global__ void __launch_bounds__(BLOCK, shape<CODEC, BITS, DIM>::least_blocks)
    score_kernel(const uint8_t *__restrict__ prepared, const lode_device_scan_t *__restrict__ scans, uint32_t n)
{
    LODE_SHARED(uint4, table); /* HIGGS: points by their codes */
    if constexpr (CODEC == LODE_LANDMARK_HIGGS)
        fill_table<BITS>(table);
    __shared__ lode_device_scan_t windows[WARPS][32];
    lode_device_scan_t *window = windows[threadIdx.x / 32];
    uint32_t first = 0;
    look_at(scans, n, 0, window);
    const lode_device_scan_t &last = n <= 32 ? window[n - 1] : scans[n - 1];
    const uint32_t tiles = last.first_tile + tiles_of(last);
    const uint32_t warp = blockIdx.x * WARPS + threadIdx.x / 32, warps = gridDim.x * WARPS;
    const uint32_t share = tiles / warps, more = tiles % warps;
    uint32_t tile = warp * share + min(warp, more);
    const uint32_t end = tile + share + (warp < more);
    if (tile == end)
        return;
    if (n > 32)
        look_at(scans, n, first = narrow(scans, n, tile), window);
    const uint32_t lane = threadIdx.x % 32;
    uint32_t at = __popc(__ballot_sync(~0u, lane < n - first && window[lane].first_tile <= tile)) - 1;
    for (; tile < end; at++) {
        if (at == 32) {
            look_at(scans, n, first += 32, window);
            at = 0;
        }
        const lode_device_scan_t &scan = window[at];
        const uint32_t behind = min(scan.first_tile + tiles_of(scan), end);
        if (tile < behind) /* not a scan of nothing */
            score_tiles<CODEC, BITS, DIM>(scan, prepared, table, tile - scan.first_tile, behind - scan.first_tile);
        tile = behind;
    }
}

/* -------------------------------------------------------------------- launch */

template <lode_landmark_codec_t CODEC, uint32_t BITS, uint32_t DIM>
lode_status_t launch(lode_device_stream_t stream, const void *prepared, const lode_device_scan_t *scans, uint32_t n,
                     uint64_t most_tiles)
{
    int device, processors;
    LODE_CUDA(cudaGetDevice(&device));
    LODE_CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    const uint64_t blocks = (uint64_t)processors * shape<CODEC, BITS, DIM>::least_blocks;
    const uint64_t wanted = (most_tiles + WARPS - 1) / WARPS;
    return LODE_LAUNCH((score_kernel<CODEC, BITS, DIM>), (uint32_t)(wanted < blocks ? wanted : blocks), BLOCK,
                       CODEC == LODE_LANDMARK_HIGGS ? TABLE_BYTES : 0, stream, (const uint8_t *)prepared, scans, n);
}

typedef lode_status_t launch_t(lode_device_stream_t stream, const void *prepared, const lode_device_scan_t *scans,
                               uint32_t n, uint64_t most_tiles);

template <lode_landmark_codec_t CODEC, uint32_t BITS> launch_t *of_dim(uint32_t dim)
{
    return dim == 64 ? launch<CODEC, BITS, 64> : dim == 128 ? launch<CODEC, BITS, 128> : launch<CODEC, BITS, 256>;
}

launch_t *launch_of(const lode_landmark_spec_t *spec, uint32_t dim)
{
    if (spec->codec == LODE_LANDMARK_MEAN)
        return of_dim<LODE_LANDMARK_MEAN, 16>(dim);
    if (spec->codec == LODE_LANDMARK_HIGGS)
        return spec->bits == 4 ? of_dim<LODE_LANDMARK_HIGGS, 4>(dim) : of_dim<LODE_LANDMARK_HIGGS, 2>(dim);
    return spec->bits == 8   ? of_dim<LODE_LANDMARK_UNIFORM, 8>(dim)
           : spec->bits == 4 ? of_dim<LODE_LANDMARK_UNIFORM, 4>(dim)
           : spec->bits == 2 ? of_dim<LODE_LANDMARK_UNIFORM, 2>(dim)
                             : of_dim<LODE_LANDMARK_UNIFORM, 1>(dim);
}

lode_status_t score(lode_device_stream_t stream, const lode_landmark_spec_t *spec, uint32_t dim, const void *prepared,
                    const lode_device_scan_t *scans, uint32_t n, uint32_t most, uint64_t all)
{
    (void)most;
    if (n == 0 || all == 0)
        return LODE_OK;
    if (!lode_landmark_spec_valid(spec, dim))
        return lode_cuda_refuse(LODE_ERR_INVALID, "scan: no landmark codec %d of %u bits and %u dimensions",
                                (int)spec->codec, spec->bits, dim);
    return launch_of(spec, dim)(stream, prepared, scans, n, all / LODE_TILE + n);
}

} // namespace

void lode_cuda_fill_score(lode_device_ops_t *ops)
{
    ops->score = score;
}
