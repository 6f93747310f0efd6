/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Exact attention over records that lie anywhere in device memory, and merging of its parts. Never run on a GPU: what
 * is said of speed here is counted, from the source and the machine code for sm_90, not measured.
 *
 * A block takes one split of one (row, KV head). Its warps work alone, each on a contiguous share of the split's
 * tokens, with a running softmax of its own; they meet once, at the end. So no barrier stands in the way of loads. A
 * warp goes over its share in batches of 32 tokens, a lane each, in a pipeline of three: tokens of the list, their
 * masks, places. While it attends over one batch, those of the next three are under way. Records found are brought by
 * cp.async, 16 bytes a lane, to a ring of tiles of 16 records; a tile of fewer closes where the angles change, so tiles
 * under different rotations are in the ring at once, and the query is rotated anew only when one of other angles comes
 * out.
 *
 * Products are of the tensor cores (m16n8k16). Queries are A; a group of up to 8 leaves half of its 16 rows free, and
 * there goes what rounding left of the queries, later of the weights: so both count 16 to 21 bits, for nothing. Groups
 * of 9 to 16 pay a second product at D = 128; at 64 and 256, where there are none that we know of, two blocks take half
 * of them each, and read the records twice. Codes are B as they are, scales go to logits and weights: bf16 by bf16; fp8
 * and HIGGS by fp16, in which e4m3 is exact and a grid point 2^-12 off. fp16 has no range, so queries and values'
 * scales are brought near 1 by powers of two.
 *
 * A record at D = 128, narrow, by the machine code (a tile's share, then copies and look-up):
 *
 *  - bf16:  520 bytes (528 apart), 2 mma,  9 + 17 instructions
 *  - fp8:   264 bytes (272 apart), 2 mma, 26 + 11; 14 to dequantise: a shift and two masks for two codes
 *  - HIGGS: 136 bytes (144 apart), 2 mma, 27 +  9; 14 to dequantise: shift, mask and load for a pair, then a byte
 *           permute for V's
 *
 * An H200's multiprocessor has 21 bytes of its 4.8 TB/s a clock (132 at 1.75 GHz) and issues 4 instructions, so 100, 52
 * and 28 in a record's time: bf16 is bound by memory, fp8 uses 0.7 of what can be issued, and HIGGS would need 1.3
 * times what there is, so that 0.75 of device read is the most; an H100 has 15 bytes a clock. mma take 4 of 7 clocks at
 * worst. Bytes under way: 4.8 TB/s times 0.7 µs are 25 KB a multiprocessor; the rings of 12 warps (D up to 128) have 50
 * to 200 KB. Shared memory: a record is written once and read once; the odd number of its 16-byte pieces keeps rows of
 * a tile in different banks; the HIGGS grid has a copy a lane (32 KB a block), as random look-ups of 32 lanes in one
 * copy would wait 3 to 4 times.
 *
 * What a short step waits for is a chain of six loads before the first record comes: row and choice, token and part,
 * block, mask, place, record, some 3 to 4 µs; so splits go down to one tile a warp, to have it all under way at once.
 *
 * Not done: rows of a prefill that attend over the same records do not share them; each reads its own through L2. Parts
 * of few tokens under different angles make part-filled tiles, which cost as much as full ones.
 *
 * A plain form (FMA in fp32, a few records a warp) would serve nothing that this does not: all formats, D and groups go
 * here. At group 4 and D 128 it takes 32 FMA a lane and record beside the dequantising, and reduces logits by shuffles.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/warp.h"
#include "kernels/internal.h"

namespace
{

constexpr uint32_t TILE = 16;                /* records that a warp attends over at once: the k of a product with V */
constexpr uint32_t MOST_WARPS = 4;           /* of a block */
constexpr uint32_t MOST_SHARED = 99 << 10;   /* bytes a block; what compute capability 8.6 and 8.9 allow */
constexpr uint32_t BLOCKS_PER_PROCESSOR = 3; /* that splits are made for: what fits of D 64 and 128 */
constexpr uint32_t LEAST_TOKENS = TILE;      /* of a warp's share */
constexpr float WEIGHT_UNIT = 8192;        /* weights are multiplied by it so that small ones are normal fp16 numbers */
constexpr uint32_t NO_ANGLES = UINT32_MAX; /* as in lode_device_part_t */
constexpr uint32_t NO_QUERY = UINT32_MAX - 1; /* no query is prepared yet */

/** The HIGGS grid as pairs of fp16, first coordinate low. A parameter of the kernel, so that no device needs set-up. */
struct grid_t {
    uint32_t pairs[256];
};

template <lode_format_t FORMAT, uint32_t D, bool WIDE> struct shape_t {
    static constexpr uint32_t VECTOR = FORMAT == LODE_FORMAT_BF16 ? 2 * D : FORMAT == LODE_FORMAT_FP8 ? D : D / 2;
    static constexpr uint32_t RECORD = (2 * VECTOR + 8 + 15) & ~15u; /* an odd number of 16 bytes: no bank conflicts */
    static constexpr uint32_t STAGE = TILE * RECORD;
    static constexpr uint32_t FIT = (17 << 10) / STAGE;
    static constexpr uint32_t STAGES = FIT < 2 ? 2 : FIT > 4 ? 4 : FIT;
    static constexpr uint32_t STEPS = D / 16; /* of products with K */
    /** The queries' fragments: in registers if they are few. */
    static constexpr bool HELD = D <= 128 && !WIDE;
    static constexpr uint32_t QUERY = HELD ? 0 : STEPS * 512 * (WIDE ? 2 : 1);
    static constexpr uint32_t PER_WARP = STAGES * STAGE + QUERY + 32 * 8 + STAGES * 8;
    static constexpr uint32_t TABLE = FORMAT == LODE_FORMAT_HIGGS4 ? 256 * 32 * 4 : 0;
    static constexpr uint32_t ROWS = WIDE ? 16 : 8;
    static_assert(STAGES * STAGE + QUERY >= ROWS * D * 4, "a warp's output must fit where its records were");
    static_assert(PER_WARP % 16 == 0, "the next warp's records must be aligned");
    static_assert(RECORD / 16 % 2 == 1, "rows of a tile must begin in different banks");
};

/* ------------------------------------------------------------------ numbers */

/* What of x a 16-bit number has room for. */
template <bool FP16> __device__ __forceinline__ float upper_part(float x)
{
    return __uint_as_float(__float_as_uint(x) & (FP16 ? 0xffffe000u : 0xffff0000u));
}

/* The upper parts of x (low) and y as 16-bit numbers. */
template <bool FP16> __device__ __forceinline__ uint32_t upper_halves(float x, float y)
{
    return FP16 ? lode_fp16x2(upper_part<true>(x), upper_part<true>(y))
                : __byte_perm(__float_as_uint(x), __float_as_uint(y), 0x7632);
}

/* What upper_halves() of (x, y) left over. */
template <bool FP16> __device__ __forceinline__ uint32_t lower_halves(float x, float y)
{
    x -= upper_part<FP16>(x);
    y -= upper_part<FP16>(y);
    return FP16 ? lode_fp16x2(x, y) : upper_halves<false>(x, y);
}

/* Multiples of a power of two that make the greatest 1 to 2, and back; as lode_exact_scale(). */
__device__ __forceinline__ float exact_scale(float most, float *back)
{
    uint32_t exponent = min(max(__float_as_uint(most) >> 23, 1u), 253u);
    *back = __uint_as_float(exponent << 23);
    return __uint_as_float((254 - exponent) << 23);
}

/* fp8 codes in the upper bytes of both halves as two fp16, FP8_UNIT times too small: shifted into their fields. */
constexpr float FP8_UNIT = 256;
__device__ __forceinline__ uint32_t fp8_halves(uint32_t x)
{
    return (x & 0x80008000u) | (x >> 1 & 0x3f803f80u);
}

/* The lane's own copy of a pair of the grid, in its own bank: no two lanes ever meet. */
__device__ __forceinline__ uint32_t grid_pair(const uint8_t *table, uint32_t lane, uint32_t codes, uint32_t which)
{
    uint32_t offset = (which ? codes >> (8 * which - 7) : codes << 7) & 0x7f80u; /* 128 bytes a code */
    return *(const uint32_t *)(table + (offset | 4 * lane));
}

/* 1/sqrt(D) as a Hadamard transform of the reference has it. */
template <uint32_t D> __device__ __forceinline__ constexpr float inverse_root()
{
    return D == 64 ? 0.125f : D == 128 ? 1 / 11.3137085f : 0.0625f;
}

/* ------------------------------------------------- a warp's work: from tokens to records */

/**
 * Where a warp is in its share of the work. A position is an index into the list of tokens, or into all that are
 * visible (tails: unsealed), counted over the parts that take part. Everything is the same in all lanes.
 */
struct walk_t {
    const lode_device_part_t *parts; /* of the row */
    uint32_t part_count, head;
    const uint32_t *list; /* NULL: all */
    uint64_t at, until;   /* positions */
    uint32_t part;        /* that was entered last; UINT32_MAX: none */
    uint64_t low, high;   /* tokens of the list (or positions) that belong to it */
    uint32_t visible, angles, first_mask;
    const uint8_t *tail;
};

/** A batch whose masks were asked for, or whose places were: a lane has a token of it or has not. */
struct asked_t {
    bool mine;
    uint32_t angles;
    uint64_t wanted; /* what was loaded, not to be looked at before the next batch was asked for */
    uint32_t value;  /* first, then place */
    uint32_t bit;
    const uint8_t *record; /* tails */
};

/* Tokens of a part that take part. */
__device__ __forceinline__ uint32_t part_tokens(const lode_device_attend_t &a, const lode_device_part_t *part)
{
    if (a.tails)
        return part->tail_tokens;
    return a.blocks[part->block].format == a.format ? part->visible : 0;
}

__device__ uint64_t tokens_of_all(const lode_device_attend_t &a, const walk_t &walk)
{
    uint64_t sum = 0;
    for (uint32_t i = threadIdx.x % 32; i < walk.part_count; i += 32)
        sum += part_tokens(a, walk.parts + i);
    return lode_warp_sum(sum);
}

/* The last part that begins at or before a token: each round looks at 32 parts. */
__device__ uint32_t part_of_token(const walk_t &walk, uint64_t token)
{
    uint32_t begin = walk.part == UINT32_MAX ? 0 : walk.part, count = walk.part_count - begin;
    while (count > 1) {
        uint32_t apart = (count + 31) / 32, mine = threadIdx.x % 32 * apart;
        bool before = mine < count && walk.parts[begin + mine].first_token <= token;
        uint32_t ballot = __ballot_sync(~0u, before);
        uint32_t last = ballot ? 31 - (uint32_t)__clz((int)ballot) : 0;
        begin += last * apart;
        count = min(apart, count - last * apart);
    }
    return begin;
}

/* The part of a position; walk.low, walk.high become its bounds. */
__device__ uint32_t part_of_position(const lode_device_attend_t &a, walk_t &walk, uint64_t position)
{
    uint32_t lane = threadIdx.x % 32, begin = walk.part == UINT32_MAX ? 0 : walk.part + 1;
    uint64_t before = walk.part == UINT32_MAX ? 0 : walk.high;
    for (;; begin += 32) { /* the position is below the sum of all parts, so one is found */
        uint64_t mine = begin + lane < walk.part_count ? part_tokens(a, walk.parts + begin + lane) : 0;
        uint64_t sum = lode_warp_before(mine) + mine;
        uint32_t ballot = __ballot_sync(~0u, before + sum > position);
        if (ballot || begin + 32 >= walk.part_count) {
            uint32_t found = ballot ? (uint32_t)__ffs((int)ballot) - 1 : 31;
            walk.high = before + __shfl_sync(~0u, sum, found);
            walk.low = walk.high - __shfl_sync(~0u, mine, found);
            return begin + found;
        }
        before += __shfl_sync(~0u, sum, 31);
    }
}

/* Make the part current that has this token (or position). */
__device__ __forceinline__ void walk_enter(const lode_device_attend_t &a, walk_t &walk, uint64_t value)
{
    if (walk.list) {
        walk.part = part_of_token(walk, value);
        walk.low = walk.parts[walk.part].first_token;
        walk.high = walk.part + 1 < walk.part_count ? walk.parts[walk.part + 1].first_token : UINT64_MAX;
    } else {
        walk.part = part_of_position(a, walk, value);
    }
    const lode_device_part_t *part = walk.parts + walk.part;
    walk.visible = part_tokens(a, part);
    walk.angles = part->angles;
    walk.tail = part->tail;
    walk.first_mask = a.tails ? 0 : a.blocks[part->block].first_mask;
}

/* The share of a warp, one of `sharers`: whole tiles, as equal as can be. */
__device__ void walk_begin(const lode_device_attend_t &a, uint32_t row_head, uint32_t sharer, uint32_t sharers,
                           walk_t &walk)
{
    const lode_device_row_t row = a.rows[row_head / a.heads];
    walk.parts = a.parts + row.first_part;
    walk.part_count = row.part_count;
    walk.head = row_head % a.heads;
    walk.part = UINT32_MAX;
    walk.low = walk.high = 0;
    walk.list = NULL;
    uint64_t total;
    if (a.tails || a.chosen[row_head].tokens == UINT64_MAX) {
        total = tokens_of_all(a, walk);
    } else {
        walk.list = a.tokens + a.chosen[row_head].tokens;
        total = walk.part_count ? a.chosen[row_head].count : 0;
    }
    uint64_t tiles = (total + TILE - 1) / TILE, each = tiles / sharers, more = tiles % sharers;
    uint64_t first = sharer * each + min((uint64_t)sharer, more);
    walk.at = min(first * TILE, total);
    walk.until = min((first + each + (sharer < more)) * TILE, total);
}

/* Of the tokens at hand (one a lane, from walk.at on), take those of one part and ask for their masks. */
template <uint32_t RECORD>
__device__ __forceinline__ void ask_masks(const lode_device_attend_t &a, walk_t &walk, uint32_t token, asked_t &asked)
{
    uint32_t lane = threadIdx.x % 32;
    asked.mine = false;
    if (walk.at >= walk.until)
        return;
    uint64_t value = walk.list ? token : walk.at + lane;
    uint64_t least = __shfl_sync(~0u, value, 0);
    if (walk.part == UINT32_MAX || least >= walk.high)
        walk_enter(a, walk, least);
    bool within = walk.at + lane < walk.until && value < walk.high;
    uint64_t inside = value - walk.low; /* a token before the first part becomes a very great one */
    asked.mine = within && inside < walk.visible;
    asked.angles = walk.angles;
    if (asked.mine && a.tails) {
        asked.record = walk.tail + (inside * a.heads + walk.head) * RECORD;
    } else if (asked.mine) {
        uint32_t mask = walk.first_mask + (uint32_t)(inside / 64) * a.heads + walk.head;
        asked.bit = (uint32_t)inside % 64;
        asked.wanted = a.wanted[mask];
        asked.value = a.first[mask];
    }
    walk.at += (uint32_t)__popc(__ballot_sync(~0u, within));
}

/* The masks have come: ask for the places. */
__device__ __forceinline__ void ask_places(const lode_device_attend_t &a, asked_t &asked)
{
    if (a.tails || !asked.mine)
        return;
    asked.mine = asked.wanted >> asked.bit & 1;
    if (asked.mine)
        asked.value = a.places[asked.value + (uint32_t)__popcll(asked.wanted & ((1ull << asked.bit) - 1))];
}

/* The places have come: @return the record, NULL if it is not of this launch. */
template <uint32_t RECORD>
__device__ __forceinline__ const uint8_t *find_record(const lode_device_attend_t &a, const asked_t &asked)
{
    if (!asked.mine)
        return NULL;
    if (a.tails)
        return asked.record;
    if (!(asked.value & LODE_DEVICE_STAGED))
        return a.hits ? a.cached + (uint64_t)asked.value * RECORD : NULL;
    uint32_t number = asked.value & ~LODE_DEVICE_STAGED;
    return number >= a.staged_begin && number < a.staged_end ? a.staged + (uint64_t)(number - a.staged_begin) * RECORD
                                                             : NULL;
}

/* --------------------------------------------------------------- the kernel */

/**
 * What a warp has in registers and where its shared memory is. In the narrow form (up to 8 queries) row r + 8 of a
 * product's A is what rounding left of row r, so that both rows' results are summed in the end; in the wide form it is
 * query r + 8, and there is a second product for what rounding left.
 */
template <lode_format_t F, uint32_t DIM, bool TWO> struct warp_t {
    using shape = shape_t<F, DIM, TWO>;
    static constexpr lode_format_t FORMAT = F;
    static constexpr bool FP16 = F != LODE_FORMAT_BF16; /* products are of fp16, for its precision, and not bf16 */
    static constexpr uint32_t D = DIM;
    static constexpr bool WIDE = TWO;
    static constexpr uint32_t QUERIES = WIDE ? 2 : 1; /* a lane's rows of logits */
    static constexpr uint32_t STEPS = shape::STEPS;

    uint8_t *ring;
    uint4 *query;          /* fragments in shared memory: [step (then once more for the second product)][lane] */
    const uint8_t **batch; /* (32) records to be brought */
    uint2 *about;          /* (STAGES) number of records, angles */
    const uint8_t *table;
    uint32_t lane;
    uint32_t first;      /* query of the group that is row 0 */
    uint32_t head, tail; /* stages: being filled, to be attended over next */
    uint32_t ahead;      /* complete and not attended over */
    uint32_t fill, fill_angles;
    uint32_t query_angles;
    uint4 held[shape::HELD ? STEPS : 1];
    float most[QUERIES], sum[QUERIES];
    /* fp16 has no range: a query is divided by `back`, values by `unit`, the power of two of the greatest scale so far
     */
    float back[QUERIES], unit, greatest;
    float out[D / 8][4];
};

/* Coordinate e (0 … 3) of what this lane holds of step s of a query: chosen so that K's codes need no shuffling. */
template <lode_format_t FORMAT>
__device__ __forceinline__ uint32_t query_coordinate(uint32_t step, uint32_t e, uint32_t lane)
{
    uint32_t j = lane % 4;
    if (FORMAT == LODE_FORMAT_BF16)
        return 16 * step + 8 * (e / 2) + 2 * j + e % 2;
    if (FORMAT == LODE_FORMAT_FP8)
        return 16 * step + 4 * j + e % 2 * 2 + e / 2;
    return 32 * (step / 2) + 8 * j + 4 * (step % 2) + e;
}

/* A Hadamard transform's additions among a lane's own coordinates, */
template <uint32_t N> __device__ __forceinline__ void butterfly_own(float (&x)[N])
{
#pragma unroll
    for (uint32_t apart = 1; apart < N; apart *= 2)
#pragma unroll
        for (uint32_t i = 0; i < N; i++)
            if (!(i & apart)) {
                float a = x[i], b = x[i + apart];
                x[i] = a + b;
                x[i + apart] = a - b;
            }
}

/* and among so many lanes side by side. */
template <uint32_t LANES, uint32_t N> __device__ __forceinline__ void butterfly_lanes(float (&x)[N])
{
#pragma unroll
    for (uint32_t apart = 1; apart < LANES; apart *= 2)
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            float other = __shfl_xor_sync(~0u, x[i], apart);
            x[i] = threadIdx.x & apart ? other - x[i] : x[i] + other;
        }
}

/* The lane's part of a Hadamard transform of x, whose coordinates lie as query_coordinate() of HIGGS has them. */
template <uint32_t N> __device__ __forceinline__ void hadamard_query(float (&x)[N])
{
    butterfly_own(x);
    butterfly_lanes<4>(x);
#pragma unroll
    for (uint32_t i = 0; i < N; i++)
        x[i] *= inverse_root<4 * N>();
}

/* Bring a query's greatest number near 1. @return what to multiply with in the end */
template <uint32_t N> __device__ __forceinline__ float scale_query(float (&x)[N])
{
    float most = 0, back;
#pragma unroll
    for (uint32_t i = 0; i < N; i++)
        most = fmaxf(most, fabsf(x[i]));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    float scale = exact_scale(most, &back);
#pragma unroll
    for (uint32_t i = 0; i < N; i++)
        x[i] *= scale;
    return back;
}

/* Query `row` of the group, as this lane holds it; zeros past the group. */
template <lode_format_t FORMAT, uint32_t D>
__device__ __forceinline__ void load_query(const lode_device_attend_t &a, uint32_t row_head, uint32_t row,
                                           uint32_t angles, float (&x)[D / 4])
{
    uint32_t lane = threadIdx.x % 32;
    const float *q = a.q + ((uint64_t)row_head * a.group + row) * D, *turn = a.angles + (uint64_t)angles * D;
#pragma unroll
    for (uint32_t i = 0; i < D / 8; i++) { /* pairs lie D/2 apart: i and i + D/8 of the lane's own */
        uint32_t at = query_coordinate<FORMAT>(i / 4, i % 4, lane);
        float low = row < a.group ? q[at] : 0, high = row < a.group ? q[at + D / 2] : 0;
        float cosine = angles == NO_ANGLES ? 1 : turn[at], sine = angles == NO_ANGLES ? 0 : turn[at + D / 2];
        x[i] = low * cosine - high * sine;
        x[i + D / 8] = high * cosine + low * sine;
    }
    if (FORMAT == LODE_FORMAT_HIGGS4)
        hadamard_query(x);
}

/* Rotate the queries for records under these angles, and make the fragments of A. */
template <class W>
__device__ __forceinline__ void prepare(const lode_device_attend_t &a, uint32_t row_head, uint32_t angles, W &w)
{
    float x[W::D / 4];
#pragma unroll
    for (uint32_t half = 0; half < W::QUERIES; half++) {
        load_query<W::FORMAT, W::D>(a, row_head, w.first + w.lane / 4 + 8 * half, angles, x);
        float back = W::FP16 ? scale_query(x) : 1;
#pragma unroll
        for (uint32_t i = 0; i < W::QUERIES; i++)
            w.back[i] = i == half ? (W::FORMAT == LODE_FORMAT_FP8 ? FP8_UNIT : 1) * back : w.back[i];
#pragma unroll
        for (uint32_t s = 0; s < W::STEPS; s++) {
            const float *e = x + 4 * s;
            uint2 upper = make_uint2(upper_halves<W::FP16>(e[0], e[1]), upper_halves<W::FP16>(e[2], e[3]));
            uint2 lower = make_uint2(lower_halves<W::FP16>(e[0], e[1]), lower_halves<W::FP16>(e[2], e[3]));
            if (W::shape::HELD) {
                w.held[s] = make_uint4(upper.x, lower.x, upper.y, lower.y);
            } else if (!W::WIDE) {
                w.query[32 * s + w.lane] = make_uint4(upper.x, lower.x, upper.y, lower.y);
            } else { /* this half's rows of both products */
                uint32_t *first = (uint32_t *)(w.query + 32 * s + w.lane) + half;
                uint32_t *second = (uint32_t *)(w.query + 32 * (s + W::STEPS) + w.lane) + half;
                first[0] = upper.x, first[2] = upper.y;
                second[0] = lower.x, second[2] = lower.y;
            }
        }
    }
    w.query_angles = angles;
}

template <bool FP16> __device__ __forceinline__ void multiply(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    if (FP16)
        lode_mma_fp16(d, a, b);
    else
        lode_mma_bf16(d, a, b);
}

/* d += the queries' step s times B. */
template <class W>
__device__ __forceinline__ void multiply_query(const W &w, uint32_t s, float d[4], const uint32_t b[2])
{
    uint4 a = W::shape::HELD ? w.held[W::shape::HELD ? s : 0] : w.query[32 * s + w.lane];
    uint32_t upper[4] = {a.x, a.y, a.z, a.w};
    multiply<W::FP16>(d, upper, b);
    if (W::WIDE) {
        a = w.query[32 * (s + W::STEPS) + w.lane];
        uint32_t lower[4] = {a.x, a.y, a.z, a.w};
        multiply<W::FP16>(d, lower, b);
    }
}

/* Products of the queries with the keys' codes of a tile: tokens 0 … 7, then 8 … 15. */
template <class W> __device__ __forceinline__ void multiply_keys(const W &w, const uint8_t *stage, float (&logit)[2][4])
{
    /* matrices of a load: two 16-byte pieces of the first 8 tokens, the same two of the others */
    const uint8_t *row = stage + (w.lane / 16 * 8 + w.lane % 8) * W::shape::RECORD + w.lane / 8 % 2 * 16;
    uint32_t r[4];
#pragma unroll
    for (uint32_t pair = 0; pair < W::shape::VECTOR / 32; pair++) {
        lode_ldmatrix_x4(r, row + 32 * pair);
        if (W::FORMAT == LODE_FORMAT_BF16) {
            multiply_query(w, pair, logit[0], r);
            multiply_query(w, pair, logit[1], r + 2);
        } else if (W::FORMAT == LODE_FORMAT_FP8) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t b[2] = {fp8_halves(r[i] << 8), fp8_halves(r[i])};
                multiply_query(w, 2 * pair + i % 2, logit[i / 2], b);
            }
        } else {
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                uint32_t codes = r[i / 2], b[2] = {grid_pair(w.table, w.lane, codes, i % 2 * 2),
                                                   grid_pair(w.table, w.lane, codes, i % 2 * 2 + 1)};
                multiply_query(w, 4 * pair + i % 4, logit[i / 4], b);
            }
        }
    }
}

/* out[n] += weights times B. */
template <class W>
__device__ __forceinline__ void multiply_weights(W &w, uint32_t n, const uint32_t upper[4], const uint32_t lower[4],
                                                 uint32_t b0, uint32_t b1)
{
    uint32_t b[2] = {b0, b1};
    multiply<W::FP16>(w.out[n], upper, b);
    if (W::WIDE)
        multiply<W::FP16>(w.out[n], lower, b);
}

/* Products of the weights with the values' codes of a tile. */
template <class W>
__device__ __forceinline__ void multiply_values(W &w, const uint8_t *stage, const uint32_t upper[4],
                                                const uint32_t lower[4])
{
    /* matrices of a load: a 16-byte piece of the first 8 tokens, of the others, then the same of the next piece */
    const uint8_t *row = stage + W::shape::VECTOR + w.lane % 16 * W::shape::RECORD + w.lane / 16 * 16;
    uint32_t r[4];
#pragma unroll
    for (uint32_t pair = 0; pair < W::shape::VECTOR / 32; pair++) {
        lode_ldmatrix_x4_trans(r, row + 32 * pair);
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t first = r[2 * i], other = r[2 * i + 1], n = 2 * pair + i;
            if (W::FORMAT == LODE_FORMAT_BF16) {
                multiply_weights(w, n, upper, lower, first, other);
            } else if (W::FORMAT == LODE_FORMAT_FP8) { /* two tokens' two codes: the even ones, then the odd */
                multiply_weights(w, 2 * n, upper, lower, fp8_halves(first << 8), fp8_halves(other << 8));
                multiply_weights(w, 2 * n + 1, upper, lower, fp8_halves(first), fp8_halves(other));
            } else {
#pragma unroll
                for (uint32_t code = 0; code < 2; code++) {
                    uint32_t a = grid_pair(w.table, w.lane, first, code),
                             b = grid_pair(w.table, w.lane, first, code + 2);
                    uint32_t c = grid_pair(w.table, w.lane, other, code),
                             d = grid_pair(w.table, w.lane, other, code + 2);
                    multiply_weights(w, 4 * n + 2 * code, upper, lower, __byte_perm(a, b, 0x5410),
                                     __byte_perm(c, d, 0x5410));
                    multiply_weights(w, 4 * n + 2 * code + 1, upper, lower, __byte_perm(a, b, 0x7632),
                                     __byte_perm(c, d, 0x7632));
                }
            }
        }
    }
}

/* Where coordinate `column` (0 … 7) of out[n] belongs. */
template <lode_format_t FORMAT> __device__ __forceinline__ uint32_t out_coordinate(uint32_t n, uint32_t column)
{
    if (FORMAT == LODE_FORMAT_BF16)
        return 8 * n + column;
    if (FORMAT == LODE_FORMAT_FP8)
        return 16 * (n / 2) + 2 * column + n % 2;
    return 32 * (n / 4) + 4 * column + n % 4;
}

/* The running softmax takes in the logits of a tile, which become weights. What was summed of values shrinks by
 * `ratio` besides. */
template <class W> __device__ __forceinline__ void weigh(W &w, float (&logit)[W::QUERIES][4], float ratio)
{
    float shrink[W::QUERIES];
    bool grown = ratio != 1;
#pragma unroll
    for (uint32_t i = 0; i < W::QUERIES; i++) {
        float most = fmaxf(fmaxf(logit[i][0], logit[i][1]), fmaxf(logit[i][2], logit[i][3]));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(fmaxf(most, __shfl_xor_sync(~0u, most, 2)), w.most[i]);
        grown = grown || most > w.most[i];
        shrink[i] = most > w.most[i] ? __expf(w.most[i] - most) : 1;
        w.most[i] = most;
    }
    if (__any_sync(~0u, grown)) {
#pragma unroll
        for (uint32_t i = 0; i < W::QUERIES; i++) {
            w.sum[i] *= shrink[i];
            shrink[i] *= ratio;
        }
#pragma unroll
        for (uint32_t n = 0; n < W::D / 8; n++)
#pragma unroll
            for (uint32_t e = 0; e < 4; e++)
                w.out[n][e] *= shrink[W::WIDE ? e / 2 : 0];
    }
#pragma unroll
    for (uint32_t i = 0; i < W::QUERIES; i++)
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) {
            logit[i][e] = __expf(logit[i][e] - w.most[i]);
            w.sum[i] += logit[i][e];
        }
}

/* Scales of a tile's keys and values, of tokens 2j, 2j + 1, 8 + 2j, 9 + 2j; the values' as multiples of the unit, which
 * grows with them. @return by what */
template <class W>
__device__ __forceinline__ float load_scales(W &w, const uint8_t *stage, float (&key)[4], float (&value)[4])
{
    float most = 0, ratio = 1;
#pragma unroll
    for (uint32_t e = 0; e < 4; e++) {
        uint32_t token = 8 * (e / 2) + 2 * (w.lane % 4) + e % 2;
        uint32_t scales = *(const uint32_t *)(stage + token * W::shape::RECORD + 2 * W::shape::VECTOR);
        key[e] = __uint_as_float(scales << 16);
        value[e] = __uint_as_float(scales & 0xffff0000u);
        most = fmaxf(most, value[e]);
    }
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    float old = w.unit, inverse = exact_scale(fmaxf(most, w.greatest), &w.unit);
    w.greatest = fmaxf(most, w.greatest);
    if (old != w.unit)
        ratio = old * inverse;
#pragma unroll
    for (uint32_t e = 0; e < 4; e++)
        value[e] *= inverse;
    return ratio;
}

/* Attend over the oldest tile, which has come. */
template <class W> __device__ __forceinline__ void attend_tile(const lode_device_attend_t &a, uint32_t row_head, W &w)
{
    const uint8_t *stage = w.ring + w.tail * W::shape::STAGE;
    uint2 about = w.about[w.tail];
    if (about.y != w.query_angles)
        prepare(a, row_head, about.y, w);
    float product[2][4] = {}, logit[W::QUERIES][4], key[4] = {1, 1, 1, 1}, value[4], ratio = 1;
    multiply_keys(w, stage, product);
    if (W::FP16)
        ratio = load_scales(w, stage, key, value);
#pragma unroll
    for (uint32_t e = 0; e < 4; e++) {
        bool there = 8 * (e / 2) + 2 * (w.lane % 4) + e % 2 < about.x;
#pragma unroll
        for (uint32_t i = 0; i < W::QUERIES; i++) {
            float *d = product[e / 2];
            float x = W::WIDE ? d[2 * i + e % 2] : d[e % 2] + d[2 + e % 2];
            logit[i][e] = !there ? -INFINITY : W::FP16 ? x * key[e] * w.back[i] : x;
        }
    }
    weigh(w, logit, ratio);
    uint32_t upper[4], lower[4];
#pragma unroll
    for (uint32_t i = 0; i < W::QUERIES; i++)
#pragma unroll
        for (uint32_t pair = 0; pair < 2; pair++) {
            float x = logit[i][2 * pair], y = logit[i][2 * pair + 1];
            if (W::FP16) {
                x *= WEIGHT_UNIT * value[2 * pair];
                y *= WEIGHT_UNIT * value[2 * pair + 1];
            }
            upper[2 * pair + i] = upper_halves<W::FP16>(x, y);
            (W::WIDE ? lower[2 * pair + i] : upper[2 * pair + 1]) = lower_halves<W::FP16>(x, y);
        }
    multiply_values(w, stage, upper, lower);
    __syncwarp(); /* the stage may be filled anew */
    w.tail = w.tail + 1 == W::shape::STAGES ? 0 : w.tail + 1;
    w.ahead--;
}

/* The tile that is being filled gets no more records. Places without one must hold numbers that are finite. */
template <class W> __device__ __forceinline__ void close_tile(W &w)
{
    uint4 *rest = (uint4 *)(w.ring + w.head * W::shape::STAGE + w.fill * W::shape::RECORD);
    for (uint32_t i = w.lane; i < (TILE - w.fill) * (W::shape::RECORD / 16); i += 32)
        rest[i] = make_uint4(0, 0, 0, 0);
    w.about[w.head] = make_uint2(w.fill, w.fill_angles);
    lode_copy_async_commit();
    w.head = w.head + 1 == W::shape::STAGES ? 0 : w.head + 1;
    w.ahead++;
    w.fill = 0;
}

/* Bring the records that the lanes found, all under these angles; attend over tiles when no stage is free, and when
 * this is the last call over all. */
template <class W>
__device__ __forceinline__ void bring(const lode_device_attend_t &a, uint32_t row_head, const uint8_t *record,
                                      uint32_t angles, bool last, W &w)
{
    constexpr uint32_t RECORD = W::shape::RECORD, PIECES = RECORD / 16;
    uint32_t found = __ballot_sync(~0u, record != NULL), count = (uint32_t)__popc(found), taken = 0;
    if (w.fill && count && w.fill_angles != angles)
        close_tile(w);
    if (record)
        w.batch[__popc(found & ((1u << w.lane) - 1))] = record;
    __syncwarp();
    while (taken < count || (last && (w.fill || w.ahead))) {
        if (taken < count && (w.fill || w.ahead < W::shape::STAGES)) {
            uint32_t now = min(TILE - w.fill, count - taken);
            uint8_t *to = w.ring + w.head * W::shape::STAGE + w.fill * RECORD;
#pragma unroll 4
            for (uint32_t i = w.lane; i < now * PIECES; i += 32)
                lode_copy_async16(to + 16 * i, w.batch[taken + i / PIECES] + 16 * (i % PIECES));
            w.fill_angles = angles;
            w.fill += now;
            taken += now;
        }
        if (w.fill == TILE || (w.fill && taken == count && last)) {
            close_tile(w);
        } else if (!w.fill && w.ahead && (taken < count || last)) {
            if (taken < count)
                lode_copy_async_wait<W::shape::STAGES - 1>();
            else
                lode_copy_async_wait<0>();
            __syncwarp();
            attend_tile(a, row_head, w);
        }
    }
    __syncwarp(); /* the list may be written anew */
}

/* Lay out a warp's shared memory. */
template <class W> __device__ __forceinline__ void warp_begin(uint8_t *shared, uint32_t first, W &w)
{
    using shape = typename W::shape;
    w.lane = threadIdx.x % 32;
    w.first = first;
    w.table = shared;
    w.ring = shared + shape::TABLE + threadIdx.x / 32 * shape::PER_WARP;
    w.query = (uint4 *)(w.ring + shape::STAGES * shape::STAGE);
    w.batch = (const uint8_t **)((uint8_t *)w.query + shape::QUERY);
    w.about = (uint2 *)(w.batch + 32);
    w.head = w.tail = w.ahead = w.fill = 0;
    w.fill_angles = 0;
    w.query_angles = NO_QUERY;
    w.greatest = w.unit = 0;
#pragma unroll
    for (uint32_t i = 0; i < W::QUERIES; i++) {
        w.most[i] = -INFINITY;
        w.sum[i] = 0;
        w.back[i] = 0;
    }
#pragma unroll
    for (uint32_t n = 0; n < W::D / 8; n++)
#pragma unroll
        for (uint32_t e = 0; e < 4; e++)
            w.out[n][e] = 0;
}

/* All of a warp's share. While a batch is attended over, the next one's places, the masks of the one after that and the
 * tokens of a third are under way. */
template <class W>
__device__ __forceinline__ void warp_attend(const lode_device_attend_t &a, uint32_t row_head, walk_t &walk, W &w)
{
    constexpr uint32_t RECORD = W::shape::RECORD;
    asked_t masks, places;
    masks.mine = places.mine = false;
    masks.angles = places.angles = NO_ANGLES;
    uint32_t token = 0, left = 2; /* rounds after the last token */
    if (walk.list && walk.at + w.lane < walk.until)
        token = walk.list[walk.at + w.lane];
    while (left) {
        if (walk.at >= walk.until)
            left--;
        const uint8_t *record = find_record<RECORD>(a, places);
        uint32_t angles = places.angles;
        ask_places(a, masks);
        places = masks;
        ask_masks<RECORD>(a, walk, token, masks);
        if (walk.list && walk.at + w.lane < walk.until)
            token = walk.list[walk.at + w.lane];
        bring(a, row_head, record, angles, left == 0, w);
    }
}

/* Leave what the warp found in shared memory: (rows, D) not normalised, where its records were. */
template <class W> __device__ __forceinline__ void warp_end(uint32_t queries, float *most, float *sum, W &w)
{
    constexpr float small = !W::FP16 ? 1 : W::FORMAT == LODE_FORMAT_FP8 ? FP8_UNIT / WEIGHT_UNIT : 1 / WEIGHT_UNIT;
    float *out = (float *)w.ring, unit = W::FP16 ? w.unit : 1;
#pragma unroll
    for (uint32_t i = 0; i < W::QUERIES; i++) {
        uint32_t row = w.lane / 4 + 8 * i;
        w.sum[i] += __shfl_xor_sync(~0u, w.sum[i], 1);
        w.sum[i] += __shfl_xor_sync(~0u, w.sum[i], 2);
        if (row >= queries)
            continue;
        most[row] = w.most[i];
        sum[row] = w.sum[i];
#pragma unroll
        for (uint32_t n = 0; n < W::D / 8; n++)
#pragma unroll
            for (uint32_t e = 0; e < 2; e++)
                out[row * W::D + out_coordinate<W::FORMAT>(n, 2 * (w.lane % 4) + e)] =
                    (W::WIDE ? w.out[n][2 * i + e] : w.out[n][e] + w.out[n][2 + e]) * small * unit;
    }
}

/* A row whose coordinates lane + 32·i are in x[i]. */
template <uint32_t N> __device__ __forceinline__ void hadamard_row(float (&x)[N])
{
    butterfly_lanes<32>(x);
    butterfly_own(x);
#pragma unroll
    for (uint32_t i = 0; i < N; i++)
        x[i] *= inverse_root<32 * N>();
}

/**
 * A block: one split of one (row, head) for as many queries as there are rows, its warps on their own until the end,
 * when what they found is put together.
 */
template <lode_format_t FORMAT, uint32_t D, bool WIDE>
__global__ void __launch_bounds__(32 * MOST_WARPS, D <= 128 ? 3 : 2)
    attend_kernel(const lode_device_attend_t a, const grid_t grid)
{
    using shape = shape_t<FORMAT, D, WIDE>;
    LODE_SHARED(uint8_t, shared);
    __shared__ float most[MOST_WARPS][LODE_MAX_GROUP], sum[MOST_WARPS][LODE_MAX_GROUP];
    uint32_t warps = blockDim.x / 32, me = threadIdx.x / 32, lane = threadIdx.x % 32;
    uint32_t rows = shape::ROWS, passes = (a.group + rows - 1) / rows, part = blockIdx.x / passes;
    uint32_t row_head = part / a.splits, split = part % a.splits;
    uint32_t first = blockIdx.x % passes * rows, queries = min(a.group - first, rows);
    if (FORMAT == LODE_FORMAT_HIGGS4) {
        for (uint32_t code = me; code < 256; code += warps)
            ((uint32_t *)shared)[32 * code + lane] = grid.pairs[code];
        __syncthreads();
    }
    {
        warp_t<FORMAT, D, WIDE> w;
        walk_t walk;
        warp_begin(shared, first, w);
        walk_begin(a, row_head, split * warps + me, a.splits * warps, walk);
        warp_attend(a, row_head, walk, w);
        warp_end(queries, most[me], sum[me], w);
    }
    __syncthreads();
    for (uint32_t row = me; row < queries; row += warps) {
        float greatest = -INFINITY, weight = 0, x[D / 32] = {};
        for (uint32_t i = 0; i < warps; i++)
            greatest = fmaxf(greatest, most[i][row]);
        for (uint32_t i = 0; i < warps; i++) {
            if (most[i][row] == -INFINITY)
                continue;
            float share = __expf(most[i][row] - greatest);
            const float *part = (const float *)(shared + shape::TABLE + i * shape::PER_WARP) + row * D + lane;
            weight += share * sum[i][row];
#pragma unroll
            for (uint32_t j = 0; j < D / 32; j++)
                x[j] += share * part[32 * j];
        }
        if (FORMAT == LODE_FORMAT_HIGGS4)
            hadamard_row(x);
        uint64_t at = (uint64_t)part * a.group + first + row;
        float inverse = weight > 0 ? 1 / weight : 0;
#pragma unroll
        for (uint32_t j = 0; j < D / 32; j++)
            a.out[at * D + lane + 32 * j] = x[j] * inverse;
        if (lane == 0)
            a.lse[at] = weight > 0 ? greatest + logf(weight) : -INFINITY;
    }
}

/* ------------------------------------------------------------------- launch */

template <lode_format_t FORMAT, uint32_t D, bool WIDE>
lode_status_t launch(lode_device_stream_t stream, const lode_device_attend_t *a, const grid_t *grid)
{
    using shape = shape_t<FORMAT, D, WIDE>;
    constexpr uint32_t FIXED = shape::TABLE + 2 * sizeof(float) * MOST_WARPS * LODE_MAX_GROUP;
    constexpr uint32_t FIT = (MOST_SHARED - FIXED) / shape::PER_WARP;
    constexpr uint32_t WARPS = FIT >= 4 ? 4 : FIT >= 2 ? 2 : 1;
    constexpr uint32_t BYTES = shape::TABLE + WARPS * shape::PER_WARP;
    static_assert(FIT >= 1, "a warp's shared memory is more than a block may have");
    uint32_t passes = (a->group + shape::ROWS - 1) / shape::ROWS;
    auto attend = attend_kernel<FORMAT, D, WIDE>;
    LODE_CUDA(cudaFuncSetAttribute(attend, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)BYTES));
    return LODE_LAUNCH(attend, a->row_count * a->heads * a->splits * passes, 32 * WARPS, BYTES, stream, *a, *grid);
}

template <lode_format_t FORMAT>
lode_status_t launch_format(lode_device_stream_t stream, const lode_device_attend_t *a, const grid_t *grid)
{
    switch (a->dim) {
    case 64:
        return launch<FORMAT, 64, false>(stream, a, grid);
    case 128: /* the only dimension that large groups are known of */
        return a->group > 8 ? launch<FORMAT, 128, true>(stream, a, grid) : launch<FORMAT, 128, false>(stream, a, grid);
    default:
        return launch<FORMAT, 256, false>(stream, a, grid);
    }
}

/* ------------------------------------------------------------------- merging */

constexpr uint32_t MERGE_WARPS = 16;

/** The sets of a merge: a parameter of the kernel. */
struct sets_t {
    lode_device_parts_t set[LODE_DEVICE_SETS];
    uint32_t count, parts; /* parts of all sets */
};

/* Part i of one row of the group: its number among the (splits, group) of its set. */
__device__ __forceinline__ uint64_t find_part(const sets_t &sets, uint32_t group, uint32_t row, uint32_t member,
                                              uint32_t i, uint32_t *set)
{
    uint32_t s = 0;
    for (; i >= sets.set[s].splits; s++)
        i -= sets.set[s].splits;
    *set = s;
    return ((uint64_t)row * sets.set[s].splits + i) * group + member;
}

/* One row of a group a block. The few numbers are gone over by each warp; each sums up its share of the outputs. */
template <uint32_t D>
__global__ void __launch_bounds__(32 * MERGE_WARPS)
    merge_kernel(const sets_t sets, uint32_t group, float *out, float *lse)
{
    __shared__ float part[MERGE_WARPS][D];
    uint32_t lane = threadIdx.x % 32, me = threadIdx.x / 32, warps = blockDim.x / 32, set;
    uint32_t row = blockIdx.x / group, member = blockIdx.x % group;
    float greatest = -INFINITY, weight = 0, x[D / 32] = {};
    for (uint32_t i = lane; i < sets.parts; i += 32) {
        uint64_t at = find_part(sets, group, row, member, i, &set);
        greatest = fmaxf(greatest, sets.set[set].lse[at]);
    }
    for (uint32_t apart = 16; apart; apart /= 2)
        greatest = fmaxf(greatest, __shfl_xor_sync(~0u, greatest, apart));
    float base = greatest == -INFINITY ? 0 : greatest;
    for (uint32_t i = lane; i < sets.parts; i += 32) {
        uint64_t at = find_part(sets, group, row, member, i, &set);
        weight += __expf(sets.set[set].lse[at] - base);
    }
    for (uint32_t apart = 16; apart; apart /= 2)
        weight += __shfl_xor_sync(~0u, weight, apart);
#pragma unroll 4
    for (uint32_t i = me; i < sets.parts; i += warps) {
        uint64_t at = find_part(sets, group, row, member, i, &set);
        float share = __expf(sets.set[set].lse[at] - base);
        const float *from = sets.set[set].out + at * D + lane;
#pragma unroll
        for (uint32_t j = 0; j < D / 32; j++)
            x[j] += share > 0 ? share * from[32 * j] : 0; /* what has no weight may hold anything */
    }
#pragma unroll
    for (uint32_t j = 0; j < D / 32; j++)
        part[me][lane + 32 * j] = x[j];
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < D; i += blockDim.x) {
        float sum = 0;
        for (uint32_t w = 0; w < warps; w++)
            sum += part[w][i];
        out[(uint64_t)blockIdx.x * D + i] = weight > 0 ? sum / weight : 0;
    }
    if (threadIdx.x == 0)
        lse[blockIdx.x] = weight > 0 ? greatest + logf(weight) : -INFINITY;
}

/* -------------------------------------------------------------------- table */

int current_device(void)
{
    int ordinal = 0;
    return cudaGetDevice(&ordinal) == cudaSuccess ? ordinal : 0;
}

uint32_t attend_splits(lode_device_h device, uint32_t row_count, uint32_t heads, uint32_t most_tokens)
{
    int before, processors = 0;
    if (lode_cuda_table()->enter(device, &before) != LODE_OK)
        return 1;
    if (cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, current_device()) != cudaSuccess)
        processors = 1;
    lode_cuda_table()->leave(device, before);
    uint64_t row_heads = (uint64_t)row_count * heads;
    uint64_t busy = row_heads ? BLOCKS_PER_PROCESSOR * (uint64_t)processors / row_heads : 1;
    uint64_t full = most_tokens / (MOST_WARPS * LEAST_TOKENS); /* less work for a warp than this is not worth a split */
    uint64_t splits = busy < full ? busy : full;
    return splits < 1 ? 1 : (uint32_t)splits;
}

lode_status_t attend(lode_device_stream_t stream, const lode_device_attend_t *a)
{
    if (a->row_count == 0 || a->heads == 0)
        return LODE_OK;
    if ((a->dim != 64 && a->dim != 128 && a->dim != 256) || a->group < 1 || a->group > LODE_MAX_GROUP)
        return lode_cuda_refuse(LODE_ERR_INVALID,
                                "attention of %u queries of dimension %u: there is 1 to %u, of 64, 128 or 256",
                                a->group, a->dim, LODE_MAX_GROUP);
    uint64_t blocks = (uint64_t)a->row_count * a->heads * a->splits;
    if (blocks < 1 || blocks > INT32_MAX / 2)
        return lode_cuda_refuse(LODE_ERR_INVALID, "attention of %u rows, %u heads, %u splits: 1 to 2^30 - 1 in all",
                                a->row_count, a->heads, a->splits);
    grid_t grid = {};
    switch (a->tails ? LODE_FORMAT_BF16 : a->format) {
    case LODE_FORMAT_BF16:
        return launch_format<LODE_FORMAT_BF16>(stream, a, &grid);
    case LODE_FORMAT_FP8:
        return launch_format<LODE_FORMAT_FP8>(stream, a, &grid);
    case LODE_FORMAT_HIGGS4:
        for (uint32_t i = 0; i < 256; i++)
            grid.pairs[i] =
                lode_fp16_narrow(lode_higgs_grid2[i][0]) | (uint32_t)lode_fp16_narrow(lode_higgs_grid2[i][1]) << 16;
        return launch_format<LODE_FORMAT_HIGGS4>(stream, a, &grid);
    }
    return lode_cuda_refuse(LODE_ERR_INVALID, "attention over records of format %d: there is none", (int)a->format);
}

lode_status_t merge(lode_device_stream_t stream, const lode_device_parts_t *sets, uint32_t set_count, uint32_t rows,
                    uint32_t group, uint32_t dim, float *out, float *lse)
{
    sets_t all = {};
    if (set_count > LODE_DEVICE_SETS)
        return lode_cuda_refuse(LODE_ERR_INVALID, "a merge of %u sets: there is 1 to %u", set_count, LODE_DEVICE_SETS);
    for (all.count = 0; all.count < set_count; all.count++) {
        all.set[all.count] = sets[all.count];
        all.parts += sets[all.count].splits;
    }
    if (rows == 0 || group == 0)
        return LODE_OK;
    uint32_t warps = (all.parts + 3) / 4; /* each has a few parts under way at once */
    warps = warps < 1 ? 1 : warps > MERGE_WARPS ? MERGE_WARPS : warps;
    switch (dim) {
    case 64:
        return LODE_LAUNCH(merge_kernel<64>, rows * group, 32 * warps, 0, stream, all, group, out, lse);
    case 128:
        return LODE_LAUNCH(merge_kernel<128>, rows * group, 32 * warps, 0, stream, all, group, out, lse);
    case 256:
        return LODE_LAUNCH(merge_kernel<256>, rows * group, 32 * warps, 0, stream, all, group, out, lse);
    }
    return lode_cuda_refuse(LODE_ERR_INVALID, "a merge of outputs of dimension %u: it must be 64, 128 or 256", dim);
}

} // namespace

extern "C" void lode_cuda_fill_attend(lode_device_ops_t *ops)
{
    ops->attend_splits = attend_splits;
    ops->attend = attend;
    ops->merge = merge;
}
