/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Choosing tokens by their landmarks' scores: what lode_choose() of landmarks/choose.c gives, for many choices at once.
 *
 * A choice is cut in tiles of TILE landmarks, a block of threads each. Its cut is the greatest key (keys are floats in
 * an order that integers have) such that landmarks of this key and above weigh no less than the tokens wanted; a
 * landmark weighs the tokens of its chunk that compete. Four kernels:
 *
 *   begin  sums each row's exponentials by tile (group > 1), copies the guess, clears counters
 *   note   combines a group's rows, and lists landmarks that score no less than the guess, tile by tile; the block that
 *          is the last of its choice finds the cut among those listed, by radix select of the weights with 11 bits of
 *          key a pass, from the highest bit in which keys differ, and leaves the next guess
 *   again  where the guess did not serve (fewer tokens listed than wanted, or more landmarks than there is room for:
 *          half of all): that last block drew a sample of the combined scores and made a bound which holds but for a
 *          chance of 1 in 15,000; this lists by it, in the same way. Nearly always it has nothing to do
 *   emit   writes tokens: each block counts what is picked before its WARPS tiles, then a warp takes a tile
 *
 * and one launch that does all, in shared memory, for choices of one tile, such as a prefill has by the thousand. If
 * the sample's bound fails too (crowded ties, nearly all wanted), one block passes over all scores for each 11 bits.
 * No block waits for another, nothing is read back by the host, and nothing depends on the order of blocks: lists of
 * tiles lie in any order, but tokens are placed by counts.
 *
 * Bytes a landmark: group 1: 4 read once. Group g: 4g read twice (log-sum-exp, then combine) and 4 written: 2.25 reads
 * of all scores at g = 4. A guess that fails adds 4 read, and a sample of 4096. What is listed: 8 written, and read
 * about five times (three passes of the cut by one block, two of emit). Memory bounds begin and note (8 rows of 128 Ki,
 * group 4: 16 MiB, which the L2 has since the scan), latency what follows. Expected of 8 rows of 128 Ki, from bytes
 * and launches alone, not measured: 4 launches in a graph 6 us, reading 2 x 3 us, the cut 4, emit 3.
 *
 * A guess that fails costs more here than on a processor, and listing less: it is left lower than there, so that a
 * quarter more would be listed of scores like these, not an eighth.
 *
 * Rejected: a histogram of all scores in `note` (shared atomics for every score, against a few percent of them), grids
 * that wait for each other, sorting, a list of fixed room for each tile (the best landmarks crowd in few tiles), a
 * last block that lists again alone (2 us a tile, one after another).
 *
 * Never run on a GPU; compared with lode_choose() in the emulator by tests/unit/device_select.c.
 */
#include <math.h>

#include "kernels/cuda/cuda.h"
#include "kernels/cuda/warp.h"

namespace
{

constexpr uint32_t THREADS = 512, WARPS = THREADS / 32, TILE = 4096, VECTORS = TILE / THREADS / 4;
constexpr uint32_t DIGIT = 11, BINS = 1u << DIGIT;
constexpr uint32_t MOST = 1u << 27; /* landmarks of a choice: a tile's number has 16 bits in a note */
constexpr uint32_t SAMPLE = 4096;
constexpr uint32_t AGAIN = 528; /* blocks of select_again: all that run at once on the GPUs that we know */
constexpr uint32_t ALL = 0xffffffffu;

/* From where the picks of a choice are read. */
enum from_t : uint32_t { FROM_NOTHING, FROM_NOTES, FROM_SCORES };

/* What the blocks of a choice know together. */
struct state_t {
    float guess;
    uint32_t done;         /* tiles noted */
    uint32_t noted;        /* landmarks listed, or that would have been */
    uint32_t noted_weight; /* of their tokens */
    uint32_t weight;       /* tokens that compete, by a score that is a number */
    uint32_t low, high;    /* least and greatest of their keys */
    uint32_t from;
    uint32_t threshold; /* pick landmarks of greater keys, */
    uint32_t rest;      /* and of equal keys the first, until so many tokens */
    uint32_t again;     /* tiles are to be noted once more, by a better guess */
    uint32_t unused;
};

/* Where the notes of a tile are. */
struct span_t {
    uint32_t first, count;
};

/* Scratch of one choice. A note is its score's key, and tile << 16 | place in the tile << 4 | weight − 1. */
struct scratch_t {
    state_t *state;
    span_t *spans;     /* (tiles) */
    float2 *sums;      /* (rows, tiles) greatest score, and sum of exponentials of what is below it */
    uint32_t *keys;    /* (room) */
    uint32_t *details; /* (room) */
    uint32_t room;
};

struct layout_t {
    uint32_t tiles, room;
    size_t spans, sums, keys, details, bytes;
};

/* A choice as a block works on it. */
struct work_t {
    lode_device_choice_t choice;
    const lode_device_piece_t *pieces;
    scratch_t scratch;
    uint32_t tiles;
};

struct shared_t {
    uint32_t bins[BINS];
    uint32_t warp[WARPS][2];
    float2 sums[LODE_MAX_GROUP][WARPS];
    float shift[LODE_MAX_GROUP];
    uint32_t noted_weight, weight, low, high; /* of a tile */
    uint32_t first;
    uint32_t bin[2], above[2];
    bool last;
};

/* Scratch of a choice of one tile. */
struct small_t {
    __align__(16) uint32_t keys[TILE];
    __align__(16) uint32_t details[TILE];
    state_t state;
    span_t span;
    float2 sums[LODE_MAX_GROUP];
};

/* Up to four landmarks that follow one another. Pieces begin at multiples of 4: they are of one piece, or of none. */
struct four_t {
    uint32_t piece, within, valid; /* of the piece: which, number of the first landmark in it, how many are */
};

__host__ __device__ size_t aligned(size_t bytes)
{
    return (bytes + 15) & ~(size_t)15;
}

__host__ __device__ layout_t layout_of(uint32_t most)
{
    layout_t layout;
    layout.tiles = most ? (most + TILE - 1) / TILE : 1;
    layout.room = (most / 2 + SAMPLE + 3) & ~3u;
    layout.spans = aligned(sizeof(state_t));
    layout.sums = layout.spans + aligned(layout.tiles * sizeof(span_t));
    layout.keys = layout.sums + aligned((size_t)layout.tiles * LODE_MAX_GROUP * sizeof(float2));
    layout.details = layout.keys + (size_t)layout.room * sizeof(uint32_t);
    layout.bytes = layout.details + (size_t)layout.room * sizeof(uint32_t);
    return layout;
}

__device__ work_t work_of(const lode_device_choice_t *choices, const lode_device_piece_t *pieces, uint32_t most,
                          uint8_t *scratch, uint32_t number)
{
    layout_t layout = layout_of(most);
    uint8_t *mine = scratch + number * layout.bytes;
    work_t work;
    work.choice = choices[number];
    work.pieces = pieces + work.choice.first_piece;
    work.scratch = {(state_t *)mine,
                    (span_t *)(mine + layout.spans),
                    (float2 *)(mine + layout.sums),
                    (uint32_t *)(mine + layout.keys),
                    (uint32_t *)(mine + layout.details),
                    layout.room};
    work.tiles = work.choice.landmarks ? (work.choice.landmarks + TILE - 1) / TILE : 1;
    return work;
}

/* ------------------------------------------------------------------ pieces */

/* The last piece of low … high that begins at a landmark no later than this one. */
__device__ uint32_t piece_at(const lode_device_piece_t *pieces, uint32_t low, uint32_t high, uint32_t landmark)
{
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (pieces[middle].first_landmark <= landmark)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* Pieces that some landmarks may be of. */
struct reach_t {
    uint32_t low, high;
};

/* Of `count` landmarks from `first` on. */
__device__ reach_t reach_of(const work_t &work, uint32_t first, uint32_t count)
{
    uint32_t last = work.choice.piece_count ? work.choice.piece_count - 1 : 0;
    reach_t reach = {0, last};
    if (last) {
        reach.low = piece_at(work.pieces, 0, last, first);
        reach.high = piece_at(work.pieces, reach.low, last, first + count - 1);
    }
    return reach;
}

__device__ four_t four_at(const work_t &work, const reach_t &reach, uint32_t landmark)
{
    four_t four = {0, 0, 0};
    if (landmark >= work.choice.landmarks || work.choice.piece_count == 0)
        return four;
    four.piece = piece_at(work.pieces, reach.low, reach.high, landmark);
    four.within = landmark - work.pieces[four.piece].first_landmark;
    uint32_t landmarks = work.pieces[four.piece].landmarks;
    four.valid = four.within < landmarks ? min(landmarks - four.within, 4u) : 0;
    return four;
}

/* First token of a piece's landmark that competes. */
__device__ uint32_t tokens_begin(const lode_device_piece_t &piece, uint32_t chunk, uint32_t within)
{
    return max(within * chunk, piece.begin);
}

/* Tokens of a piece's landmark that compete. */
__device__ uint32_t weight_of(const lode_device_piece_t &piece, uint32_t chunk, uint32_t within)
{
    uint32_t begin = tokens_begin(piece, chunk, within), end = min(within * chunk + chunk, piece.end);
    return end > begin ? end - begin : 0;
}

/* Floats in an order that integers have, 0 for a NaN. Both zeros are one. */
__device__ uint32_t key_of(float score)
{
    uint32_t bits = __float_as_uint(score + 0.0f);
    return score != score ? 0 : bits ^ ((uint32_t)((int32_t)bits >> 31) | 0x80000000u);
}

__device__ float score_of(uint32_t key)
{
    return __uint_as_float(key ^ (key & 0x80000000u ? 0x80000000u : 0xffffffffu));
}

/* ------------------------------------------------------------------- blocks */

/* Sum of what threads before this one have, and of all. Everybody calls it. */
__device__ uint32_t block_before(uint32_t x, uint32_t *all, shared_t *shared)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t before = lode_warp_before(x);
    __syncthreads(); /* what was there before is read */
    if (lane == 31)
        shared->warp[warp][0] = before + x;
    __syncthreads();
    uint32_t mine = lane < WARPS ? shared->warp[lane][0] : 0, warps = lode_warp_before(mine);
    *all = __shfl_sync(ALL, warps + mine, WARPS - 1);
    return before + __shfl_sync(ALL, warps, warp);
}

/* -------------------------------------------------------------- log-sum-exp */

/* Two sums of exponentials as one. One that has a NaN, or overflowed, makes the whole a NaN. */
__device__ float2 sums_join(float2 a, float2 b)
{
    float most = a.x > b.x ? a.x : b.x;
    float left = a.x == most ? a.y : a.y * __expf(a.x - most);
    float right = b.x == most ? b.y : b.y * __expf(b.x - most);
    return make_float2(most, left + right);
}

__device__ float2 warp_join(float2 sum)
{
    for (uint32_t d = 16; d; d /= 2)
        sum = sums_join(sum, make_float2(__shfl_xor_sync(ALL, sum.x, d), __shfl_xor_sync(ALL, sum.y, d)));
    return sum;
}

__device__ void sum_four(float4 x, uint32_t valid, float2 *sum)
{
    float score[4] = {x.x, x.y, x.z, x.w}, most = -INFINITY, total = 0;
#pragma unroll
    for (uint32_t e = 0; e < 4; e++)
        most = e < valid && score[e] > most ? score[e] : most;
#pragma unroll
    for (uint32_t e = 0; e < 4; e++)
        total += e < valid && score[e] != -INFINITY ? __expf(score[e] - most) : 0;
    *sum = sums_join(*sum, make_float2(most, total));
}

/* The sums of a tile, for each row. Rows go by fours, so that enough loads are under way. */
__device__ void tile_sum(const work_t &work, uint32_t tile, shared_t *shared)
{
    const lode_device_choice_t &choice = work.choice;
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    reach_t reach = reach_of(work, tile * TILE, TILE);
    uint32_t at[VECTORS], valid[VECTORS];
    for (uint32_t v = 0; v < VECTORS; v++) {
        at[v] = tile * TILE + (v * THREADS + threadIdx.x) * 4;
        valid[v] = four_at(work, reach, at[v]).valid;
    }
    for (uint32_t row = 0; row < choice.group; row += 4) {
        float4 x[4][VECTORS];
#pragma unroll
        for (uint32_t g = 0; g < 4; g++)
#pragma unroll
            for (uint32_t v = 0; v < VECTORS; v++)
                x[g][v] = valid[v] && row + g < choice.group
                              ? *(const float4 *)(choice.scores + (row + g) * choice.stride + at[v])
                              : make_float4(0, 0, 0, 0);
#pragma unroll
        for (uint32_t g = 0; g < 4; g++) {
            float2 sum = make_float2(-INFINITY, 0);
#pragma unroll
            for (uint32_t v = 0; v < VECTORS; v++)
                sum_four(x[g][v], valid[v], &sum);
            sum = warp_join(sum);
            if (lane == 0 && row + g < choice.group)
                shared->sums[row + g][warp] = sum;
        }
    }
    __syncthreads();
    if (warp < choice.group) {
        float2 sum = warp_join(lane < WARPS ? shared->sums[warp][lane] : make_float2(-INFINITY, 0));
        if (lane == 0)
            work.scratch.sums[(size_t)warp * work.tiles + tile] = sum;
    }
}

/* What each row is lowered by: its log-sum-exp, or nothing if a score overflowed. */
__device__ void shifts_make(const work_t &work, shared_t *shared)
{
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    if (warp < work.choice.group) {
        float2 sum = make_float2(-INFINITY, 0);
        for (uint32_t tile = lane; tile < work.tiles; tile += 32)
            sum = sums_join(sum, work.scratch.sums[(size_t)warp * work.tiles + tile]);
        sum = warp_join(sum);
        float shift = sum.x + logf(sum.y);
        if (lane == 0)
            shared->shift[warp] = isfinite(shift) ? shift : 0;
    }
    __syncthreads();
}

/* ------------------------------------------------------------------- noting */

/* Scores of four landmarks: the greatest of the group's, if there are several. */
__device__ float4 combine(const lode_device_choice_t &choice, const float *shift, uint32_t landmark)
{
    float4 most = *(const float4 *)(choice.scores + landmark);
    if (choice.group == 1)
        return most;
    most = make_float4(most.x - shift[0], most.y - shift[0], most.z - shift[0], most.w - shift[0]);
#pragma unroll 3
    for (uint32_t g = 1; g < choice.group; g++) {
        float4 x = *(const float4 *)(choice.scores + g * choice.stride + landmark);
        most.x = x.x - shift[g] > most.x ? x.x - shift[g] : most.x;
        most.y = x.y - shift[g] > most.y ? x.y - shift[g] : most.y;
        most.z = x.z - shift[g] > most.z ? x.z - shift[g] : most.z;
        most.w = x.w - shift[g] > most.w ? x.w - shift[g] : most.w;
    }
    *(float4 *)(choice.scores + landmark) = most;
    return most;
}

/* A thread's part of a tile. Notes have weights less 1 in 4 bits each; `noted` has a bit a landmark. */
struct part_t {
    uint32_t key[VECTORS][4];
    uint32_t weights[VECTORS], noted[VECTORS];
    uint32_t noted_weight, weight, low, high;
};

__device__ void part_add(part_t *part, uint32_t v, uint32_t e, uint32_t weight, float score, float bound)
{
    uint32_t key = key_of(score);
    part->key[v][e] = key;
    if (weight == 0 || key == 0)
        return;
    part->weights[v] |= (weight - 1) << 4 * e;
    part->weight += weight;
    part->low = min(part->low, key);
    part->high = max(part->high, key);
    if (score >= bound) {
        part->noted[v] |= 1u << e;
        part->noted_weight += weight;
    }
}

__device__ part_t part_make(const work_t &work, uint32_t tile, const float *shift, bool combined, float bound)
{
    part_t part;
    part.noted_weight = part.weight = part.high = 0;
    part.low = ALL;
    reach_t reach = reach_of(work, tile * TILE, TILE);
#pragma unroll
    for (uint32_t v = 0; v < VECTORS; v++) {
        uint32_t at = tile * TILE + (v * THREADS + threadIdx.x) * 4;
        four_t four = four_at(work, reach, at);
        part.weights[v] = part.noted[v] = 0;
        part.key[v][0] = part.key[v][1] = part.key[v][2] = part.key[v][3] = 0;
        if (four.valid == 0)
            continue;
        float4 x = combined ? *(const float4 *)(work.choice.scores + at) : combine(work.choice, shift, at);
        float score[4] = {x.x, x.y, x.z, x.w};
        const lode_device_piece_t &piece = work.pieces[four.piece];
#pragma unroll
        for (uint32_t e = 0; e < 4; e++)
            if (e < four.valid)
                part_add(&part, v, e, weight_of(piece, work.choice.chunk, four.within + e), score[e], bound);
    }
    return part;
}

/* What the tile adds to its choice, in shared memory; behind a barrier of the caller's. */
__device__ void part_count(const part_t &part, shared_t *shared)
{
    uint32_t low = part.low, high = part.high;
    for (uint32_t d = 16; d; d /= 2) {
        low = min(low, __shfl_xor_sync(ALL, low, d));
        high = max(high, __shfl_xor_sync(ALL, high, d));
    }
    uint32_t noted_weight = lode_warp_sum(part.noted_weight), weight = lode_warp_sum(part.weight);
    if (threadIdx.x % 32 == 0) {
        atomicAdd(&shared->noted_weight, noted_weight);
        atomicAdd(&shared->weight, weight);
        atomicMin(&shared->low, low);
        atomicMax(&shared->high, high);
    }
}

/* List a tile's landmarks that score no less than the bound, ascending, and count them and all in the choice's state.
 */
__device__ void tile_note(const work_t &work, uint32_t tile, const float *shift, bool combined, float bound,
                          shared_t *shared)
{
    const scratch_t &scratch = work.scratch;
    static_assert(VECTORS == 2, "two counts are scanned as one");
    if (threadIdx.x == 0) {
        shared->noted_weight = shared->weight = shared->high = 0;
        shared->low = ALL;
    }
    part_t part = part_make(work, tile, shift, combined, bound);
    uint32_t both, before = block_before(__popc(part.noted[0]) | __popc(part.noted[1]) << 16, &both, shared);
    part_count(part, shared); /* block_before() has barriers */
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t count = (both & 0xffff) + (both >> 16);
        shared->first = atomicAdd(&scratch.state->noted, count);
        scratch.spans[tile] = {shared->first, count};
        atomicAdd(&scratch.state->noted_weight, shared->noted_weight);
        atomicAdd(&scratch.state->weight, shared->weight);
        atomicMin(&scratch.state->low, shared->low);
        atomicMax(&scratch.state->high, shared->high);
    }
    __syncthreads();
    uint32_t out[VECTORS] = {shared->first + (before & 0xffff), shared->first + (both & 0xffff) + (before >> 16)};
#pragma unroll
    for (uint32_t v = 0; v < VECTORS; v++) {
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) {
            if (!(part.noted[v] >> e & 1))
                continue;
            if (out[v] < scratch.room) { /* else nobody will read them */
                uint32_t place = (v * THREADS + threadIdx.x) * 4 + e;
                scratch.keys[out[v]] = part.key[v][e];
                scratch.details[out[v]] = tile << 16 | place << 4 | (part.weights[v] >> 4 * e & 15);
            }
            out[v]++;
        }
    }
}

__device__ void state_clear(state_t *state)
{
    state->done = state->noted = state->noted_weight = state->weight = state->high = 0;
    state->low = ALL;
    state->from = FROM_NOTHING;
    state->threshold = ALL;
    state->rest = state->again = 0;
}

/* ------------------------------------------------------------------ the cut */

/* Each note of a choice once, in any order, by all threads. Several loads are under way at a time. */
template <typename each_t> __device__ void pass_over_notes(const work_t &work, uint32_t count, each_t each)
{
    constexpr uint32_t BATCH = 4, STEP = THREADS * 4;
    for (uint32_t base = threadIdx.x * 4; base < count; base += STEP * BATCH) {
        uint4 key[BATCH], detail[BATCH];
#pragma unroll
        for (uint32_t b = 0; b < BATCH; b++) {
            uint32_t i = base + b * STEP < count ? base + b * STEP : base;
            key[b] = *(const uint4 *)(work.scratch.keys + i);
            detail[b] = *(const uint4 *)(work.scratch.details + i);
        }
#pragma unroll
        for (uint32_t b = 0; b < BATCH; b++) {
            uint32_t i = base + b * STEP;
            if (i < count)
                each(key[b].x, detail[b].x);
            if (i + 1 < count)
                each(key[b].y, detail[b].y);
            if (i + 2 < count)
                each(key[b].z, detail[b].z);
            if (i + 3 < count)
                each(key[b].w, detail[b].w);
        }
    }
}

/* The same of all landmarks that compete. */
template <typename each_t> __device__ void pass_over_scores(const work_t &work, each_t each)
{
    constexpr uint32_t BATCH = 2, STEP = THREADS * 4;
    const lode_device_choice_t &choice = work.choice;
    reach_t reach = {0, choice.piece_count ? choice.piece_count - 1 : 0};
    for (uint32_t base = threadIdx.x * 4; base < choice.landmarks; base += STEP * BATCH) {
        float4 x[BATCH];
#pragma unroll
        for (uint32_t b = 0; b < BATCH; b++) {
            uint32_t i = base + b * STEP < choice.landmarks ? base + b * STEP : base;
            x[b] = *(const float4 *)(choice.scores + i);
        }
#pragma unroll
        for (uint32_t b = 0; b < BATCH; b++) {
            uint32_t i = base + b * STEP;
            four_t four = four_at(work, reach, i);
            float score[4] = {x[b].x, x[b].y, x[b].z, x[b].w};
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) {
                uint32_t key = key_of(score[e]);
                uint32_t weight =
                    e < four.valid && key ? weight_of(work.pieces[four.piece], choice.chunk, four.within + e) : 0;
                if (weight)
                    each(key, (i + e) / TILE << 16 | (weight - 1));
            }
        }
    }
}

template <typename each_t> __device__ void pass_over(const work_t &work, uint32_t from, uint32_t count, each_t each)
{
    if (from == FROM_NOTES)
        pass_over_notes(work, count, each);
    else
        pass_over_scores(work, each);
}

/*
 * The bins in which the weights of those above first reach need[0] and need[1], and what is above each. A need that is
 * more than all leaves its bin as it was.
 */
__device__ void bins_search(const uint32_t need[2], shared_t *shared)
{
    constexpr uint32_t EACH = BINS / THREADS;
    uint32_t top = BINS - 1 - threadIdx.x * EACH, sum = 0, all;
    for (uint32_t k = 0; k < EACH; k++)
        sum += shared->bins[top - k];
    uint32_t above = block_before(sum, &all, shared);
    for (uint32_t k = 0; k < EACH; k++) {
        uint32_t here = shared->bins[top - k];
        for (uint32_t i = 0; i < 2; i++) {
            if (above < need[i] && need[i] <= above + here) {
                shared->bin[i] = top - k;
                shared->above[i] = above;
            }
        }
        above += here;
    }
    __syncthreads();
}

struct cut_t {
    uint32_t threshold, above; /* least key that is picked; weight of those greater */
    uint32_t upper;            /* a key near which three quarters are reached */
};

/*
 * The cut that gives `wanted` of (key, weight), which weigh that much at least, and have keys low … high. The key of
 * three quarters is searched beside it for as long as it is of the same bin.
 */
__device__ cut_t cut_find(const work_t &work, uint32_t from, uint32_t count, uint32_t low, uint32_t high,
                          uint32_t wanted, shared_t *shared)
{
    uint32_t bits = 32 - __clz(high - low), left = bits, prefix = 0, above = 0, upper = 0;
    bool together = true;
    while (left) {
        uint32_t digit = min(left, DIGIT), shift = left - digit;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < BINS; i += THREADS)
            shared->bins[i] = 0;
        __syncthreads();
        pass_over(work, from, count, [=](uint32_t key, uint32_t detail) {
            uint32_t place = key - low;
            if (left == bits || place >> left == prefix)
                atomicAdd(&shared->bins[place >> shift & ((1u << digit) - 1)], (detail & 15) + 1);
        });
        __syncthreads();
        uint32_t quarters = wanted - wanted / 4;
        uint32_t need[2] = {wanted - above, together && quarters > above ? quarters - above : wanted - above};
        bins_search(need, shared);
        if (together && shared->bin[1] != shared->bin[0]) {
            together = false;
            upper = low + ((prefix << digit | shared->bin[1]) << shift) + (shift ? 1u << (shift - 1) : 0);
        }
        prefix = prefix << digit | shared->bin[0];
        above += shared->above[0];
        left = shift;
        __syncthreads();
    }
    return {low + prefix, above, together ? low + prefix : upper};
}

/* A bound for the next step: as far below the cut as three quarters of what is picked reach above it. */
__device__ float guess_next(const cut_t &cut)
{
    float threshold = score_of(cut.threshold), bound = threshold - (score_of(cut.upper) - threshold);
    return isfinite(bound) ? bound : threshold;
}

/* The key of a landmark that competes; 0: it does not. */
__device__ uint32_t key_at(const work_t &work, const reach_t &reach, uint32_t landmark)
{
    four_t four = four_at(work, reach, landmark & ~3u);
    uint32_t e = landmark % 4, key = e < four.valid ? key_of(work.choice.scores[landmark]) : 0;
    return key && weight_of(work.pieces[four.piece], work.choice.chunk, four.within + e) ? key : 0;
}

/* Keys of landmarks drawn from equal stretches, as notes that weigh 1; returns how many compete. */
__device__ uint32_t sample_take(const work_t &work, shared_t *shared)
{
    constexpr uint32_t EACH = SAMPLE / THREADS;
    uint64_t step = ((uint64_t)work.choice.landmarks << 32) / SAMPLE;
    reach_t reach = {0, work.choice.piece_count - 1};
    uint32_t key[EACH], count = 0, all;
#pragma unroll
    for (uint32_t k = 0; k < EACH; k++) {
        uint32_t i = threadIdx.x * EACH + k;
        uint64_t within = i * 2654435769u; /* of 2^32 */
        key[k] = key_at(work, reach, (uint32_t)((i * step + within * (step >> 32)) >> 32));
        count += key[k] != 0;
    }
    uint32_t out = block_before(count, &all, shared);
#pragma unroll
    for (uint32_t k = 0; k < EACH; k++) {
        if (key[k] == 0)
            continue;
        work.scratch.keys[out] = key[k];
        work.scratch.details[out++] = 0;
    }
    __syncthreads();
    return all;
}

/* A bound from a sample: four standard deviations of the cut's rank in it below the cut. NaN: there is none. */
__device__ float sample_bound(const work_t &work, shared_t *shared)
{
    const state_t *state = work.scratch.state;
    if (work.choice.landmarks <= 2 * SAMPLE)
        return NAN;
    float share = (float)work.choice.wanted / (float)state->weight;
    uint32_t taken = sample_take(work, shared);
    float rank = share * (float)taken;
    rank += 4 * sqrtf(rank * (1 - share)) + 2;
    if (!(rank <= (float)taken))
        return NAN;
    return score_of(cut_find(work, FROM_NOTES, taken, state->low, state->high, (uint32_t)rank, shared).threshold);
}

/* The cut among the notes if they serve, else among all scores, and the next guess. */
__device__ void cut_make(const work_t &work, bool serve, shared_t *shared)
{
    state_t *state = work.scratch.state;
    uint32_t low = serve ? max(state->low, key_of(state->guess)) : state->low;
    cut_t cut =
        cut_find(work, serve ? FROM_NOTES : FROM_SCORES, state->noted, low, state->high, work.choice.wanted, shared);
    if (threadIdx.x == 0) {
        state->from = serve ? FROM_NOTES : FROM_SCORES;
        state->threshold = cut.threshold;
        state->rest = work.choice.wanted - cut.above;
        *work.choice.guess = guess_next(cut);
    }
}

/* All tiles are noted: make the cut, or, the first time, a better guess. */
__device__ void choice_cut(const work_t &work, bool first, shared_t *shared)
{
    state_t *state = work.scratch.state;
    bool serve = state->noted <= work.scratch.room && state->noted_weight >= work.choice.wanted;
    if (work.choice.wanted == 0)
        return;
    if (state->weight <= work.choice.wanted) { /* fewer are numbers than are wanted: all of them */
        __syncthreads();
        if (threadIdx.x == 0) {
            state->from = FROM_SCORES;
            state->threshold = state->rest = 0;
        }
        return;
    }
    float bound = first && !serve ? sample_bound(work, shared) : NAN;
    if (isnan(bound)) {
        cut_make(work, serve, shared);
        return;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        state_clear(state);
        state->guess = bound;
        state->again = 1;
    }
}

/* ------------------------------------------------------------------ writing */

/* Tokens of landmarks above the cut, and of those on it. */
struct picked_t {
    uint32_t sure, ties;
};

struct entry_t {
    uint32_t landmark, sure, ties;
};

__device__ picked_t picked_add(picked_t a, picked_t b)
{
    return {a.sure + b.sure, a.ties + b.ties};
}

/* Tokens that are picked: of ties, the first. */
__device__ uint32_t picked_tokens(picked_t picked, uint32_t rest)
{
    return picked.sure + min(picked.ties, rest);
}

__device__ picked_t picked_warp(picked_t picked)
{
    return {lode_warp_sum(picked.sure), lode_warp_sum(picked.ties)};
}

/* Landmarks that one warp writes: a tile, or a part of one. */
struct slice_t {
    uint32_t begin, size;        /* landmarks */
    uint32_t from, first, count; /* its notes, or landmarks of the scores */
    uint32_t threshold, rest;
    reach_t reach;
};

/* The first note of a tile at a place no less than this one. */
__device__ uint32_t note_at(const work_t &work, span_t span, uint32_t place)
{
    uint32_t low = span.first, high = span.first + span.count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if ((work.scratch.details[middle] >> 4 & (TILE - 1)) < place)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

__device__ slice_t slice_of(const work_t &work, uint32_t begin, uint32_t size)
{
    const state_t *state = work.scratch.state;
    slice_t slice = {begin, size, state->from, 0, 0, state->threshold, state->rest, reach_of(work, begin, size)};
    if (slice.from == FROM_NOTES) {
        span_t span = work.scratch.spans[begin / TILE];
        slice.first = size == TILE ? span.first : note_at(work, span, begin % TILE);
        slice.count = (size == TILE ? span.first + span.count : note_at(work, span, begin % TILE + size)) - slice.first;
    } else if (slice.from == FROM_SCORES) {
        slice.count = min(size, work.choice.landmarks - min(work.choice.landmarks, begin));
    }
    return slice;
}

/* Entry i of a slice, ascending by landmark; nothing behind its last. */
__device__ entry_t entry_at(const work_t &work, const slice_t &slice, uint32_t i)
{
    entry_t entry = {slice.begin + i, 0, 0};
    uint32_t key = 0, weight = 0;
    if (i >= slice.count)
        return {ALL, 0, 0};
    if (slice.from == FROM_NOTES) {
        uint32_t detail = work.scratch.details[slice.first + i];
        key = work.scratch.keys[slice.first + i];
        entry.landmark = slice.begin / TILE * TILE + (detail >> 4 & (TILE - 1));
        weight = (detail & 15) + 1;
    } else {
        four_t four = four_at(work, slice.reach, entry.landmark & ~3u);
        if (entry.landmark % 4 < four.valid) {
            key = key_of(work.choice.scores[entry.landmark]);
            weight = key ? weight_of(work.pieces[four.piece], work.choice.chunk, four.within + entry.landmark % 4) : 0;
        }
    }
    entry.sure = key > slice.threshold ? weight : 0;
    entry.ties = key == slice.threshold ? weight : 0;
    return entry;
}

/* What is picked of a slice before landmark `end`. */
__device__ picked_t slice_picked(const work_t &work, const slice_t &slice, uint32_t end)
{
    picked_t picked = {0, 0};
#pragma unroll 4
    for (uint32_t i = threadIdx.x % 32; i < slice.count; i += 32) {
        entry_t entry = entry_at(work, slice, i);
        if (entry.landmark < end)
            picked = picked_add(picked, {entry.sure, entry.ties});
    }
    return picked_warp(picked);
}

/* What is picked before a tile, counted by the whole block. */
__device__ picked_t picked_before(const work_t &work, uint32_t tile, shared_t *shared)
{
    const state_t *state = work.scratch.state;
    uint32_t from = state->from, threshold = state->threshold, sure = 0, ties = 0;
    if (tile == 0 || from == FROM_NOTHING)
        return {0, 0};
    pass_over(work, from, state->noted, [&](uint32_t key, uint32_t detail) {
        if (detail >> 16 < tile) {
            sure += key > threshold ? (detail & 15) + 1 : 0;
            ties += key == threshold ? (detail & 15) + 1 : 0;
        }
    });
    picked_t all;
    block_before(sure, &all.sure, shared);
    block_before(ties, &all.ties, shared);
    return all;
}

__device__ uint32_t forced_of(const lode_device_piece_t &piece)
{
    return piece.begin + (piece.tokens - piece.end);
}

/* Write `count` tokens from `token` on, by a warp. */
__device__ void tokens_write(uint32_t *out, uint64_t token, uint32_t count)
{
    for (uint32_t i = threadIdx.x % 32; i < count; i += 32)
        out[i] = (uint32_t)(token + i);
}

/* Forced tokens of pieces that begin or end in this slice. @param forced  those of pieces before the slice's first */
__device__ void slice_forced(const work_t &work, const slice_t &slice, picked_t before, uint32_t forced, uint32_t *out)
{
    for (uint32_t p = slice.reach.low; p <= slice.reach.high; p++) {
        const lode_device_piece_t piece = work.pieces[p];
        uint32_t end = piece.first_landmark + piece.landmarks;
        if (piece.begin && piece.first_landmark >= slice.begin) {
            picked_t picked = picked_add(before, slice_picked(work, slice, piece.first_landmark));
            tokens_write(out + forced + picked_tokens(picked, slice.rest), piece.first_token, piece.begin);
        }
        if (piece.end < piece.tokens && end - 1 - slice.begin < slice.size) {
            picked_t picked = picked_add(before, slice_picked(work, slice, end));
            tokens_write(out + forced + piece.begin + picked_tokens(picked, slice.rest), piece.first_token + piece.end,
                         piece.tokens - piece.end);
        }
        forced += forced_of(piece);
    }
}

/* The picked tokens of a slice. Each lane follows the pieces by itself: its landmarks ascend. */
__device__ void slice_write(const work_t &work, const slice_t &slice, picked_t before, uint32_t forced, uint32_t *out)
{
    uint32_t lane = threadIdx.x % 32, piece = slice.reach.low;
    for (uint32_t base = 0; base < slice.count; base += 32) {
        entry_t entry = entry_at(work, slice, base + lane);
        uint32_t both = lode_warp_before(entry.sure | entry.ties << 16); /* at most 32 · 16 each */
        picked_t mine = picked_add(before, {both & 0xffff, both >> 16});
        picked_t next = picked_add(mine, {entry.sure, entry.ties});
        uint32_t at = picked_tokens(mine, slice.rest), take = picked_tokens(next, slice.rest) - at;
        before = {__shfl_sync(ALL, next.sure, 31), __shfl_sync(ALL, next.ties, 31)};
        if (take == 0)
            continue;
        uint32_t of = piece_at(work.pieces, piece, slice.reach.high, entry.landmark);
        for (; piece < of; piece++)
            forced += forced_of(work.pieces[piece]);
        const lode_device_piece_t &seen = work.pieces[of];
        uint32_t token = tokens_begin(seen, work.choice.chunk, entry.landmark - seen.first_landmark);
        for (uint32_t i = 0; i < take; i++)
            out[forced + seen.begin + at + i] = (uint32_t)(seen.first_token + token + i);
    }
}

/* What warps before this one have. */
__device__ picked_t warps_before(picked_t picked, shared_t *shared)
{
    uint32_t warp = threadIdx.x / 32;
    picked_t before = {0, 0};
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared->warp[warp][0] = picked.sure;
        shared->warp[warp][1] = picked.ties;
    }
    __syncthreads();
    for (uint32_t w = 0; w < warp; w++)
        before = picked_add(before, {shared->warp[w][0], shared->warp[w][1]});
    return before;
}

/* Tokens of WARPS slices of `size` landmarks, from landmark `first` on, where a tile begins. The first block counts. */
__device__ void slices_emit(const work_t &work, uint32_t first, uint32_t size, uint32_t *tokens, uint32_t *count,
                            shared_t *shared)
{
    uint32_t begin = first + threadIdx.x / 32 * size, wanted = work.choice.wanted;
    if (first == 0 && threadIdx.x == 0)
        *count = work.choice.count - wanted + (wanted ? min(wanted, work.scratch.state->weight) : 0);
    picked_t before = picked_before(work, first / TILE, shared), picked = {0, 0};
    slice_t slice = {};
    bool mine = begin < work.choice.landmarks;
    if (mine) {
        slice = slice_of(work, begin, size);
        picked = slice_picked(work, slice, ALL);
    }
    before = picked_add(before, warps_before(picked, shared));
    if (!mine)
        return;
    uint32_t forced = 0, *out = tokens + work.choice.tokens;
    for (uint32_t p = threadIdx.x % 32; p < slice.reach.low; p += 32)
        forced += forced_of(work.pieces[p]);
    forced = lode_warp_sum(forced);
    slice_forced(work, slice, before, forced, out);
    slice_write(work, slice, before, forced, out);
}

/* ------------------------------------------------------------------ kernels */

__device__ void choice_begin(const work_t &work, uint32_t tile, shared_t *shared)
{
    if (tile == 0 && threadIdx.x == 0) {
        state_clear(work.scratch.state);
        work.scratch.state->guess = *work.choice.guess; /* a copy: choices may share it, and it is replaced */
    }
    if (work.choice.group > 1 && work.choice.wanted)
        tile_sum(work, tile, shared);
}

__global__ void __launch_bounds__(THREADS)
    select_begin(const lode_device_choice_t *choices, const lode_device_piece_t *pieces, uint32_t most,
                 uint8_t *scratch, uint32_t tiles)
{
    __shared__ shared_t shared;
    work_t work = work_of(choices, pieces, most, scratch, blockIdx.x / tiles);
    if (blockIdx.x % tiles < work.tiles)
        choice_begin(work, blockIdx.x % tiles, &shared);
}

/* Note a tile. @param first  its rows are not combined yet  @return whether it was the last of its choice */
__device__ bool choice_note(const work_t &work, uint32_t tile, bool first, shared_t *shared)
{
    state_t *state = work.scratch.state;
    if (work.choice.wanted) {
        if (first && work.choice.group > 1)
            shifts_make(work, shared);
        tile_note(work, tile, shared->shift, !first, state->guess, shared);
    }
    __threadfence(); /* before it is counted as done */
    __syncthreads();
    if (threadIdx.x == 0)
        shared->last = atomicAdd(&state->done, 1) == work.tiles - 1;
    __syncthreads();
    __threadfence();
    return shared->last;
}

__global__ void __launch_bounds__(THREADS, 2)
    select_note(const lode_device_choice_t *choices, const lode_device_piece_t *pieces, uint32_t most, uint8_t *scratch,
                uint32_t tiles)
{
    __shared__ shared_t shared;
    work_t work = work_of(choices, pieces, most, scratch, blockIdx.x / tiles);
    if (blockIdx.x % tiles < work.tiles && choice_note(work, blockIdx.x % tiles, true, &shared))
        choice_cut(work, true, &shared);
}

/* For choices whose guess did not serve. Mostly there is none: then few blocks look, and end. */
__global__ void __launch_bounds__(THREADS, 2)
    select_again(const lode_device_choice_t *choices, const lode_device_piece_t *pieces, uint32_t most,
                 uint8_t *scratch, uint32_t n, uint32_t tiles)
{
    __shared__ shared_t shared;
    size_t bytes = layout_of(most).bytes;
    for (uint32_t item = blockIdx.x; item < n * tiles; item += gridDim.x) {
        const state_t *state = (const state_t *)(scratch + item / tiles * bytes);
        if (!state->again)
            continue;
        work_t work = work_of(choices, pieces, most, scratch, item / tiles);
        if (item % tiles < work.tiles && choice_note(work, item % tiles, false, &shared))
            choice_cut(work, false, &shared);
        __syncthreads();
    }
}

__global__ void __launch_bounds__(THREADS, 2)
    select_emit(const lode_device_choice_t *choices, const lode_device_piece_t *pieces, uint32_t most, uint8_t *scratch,
                uint32_t parts, uint32_t *tokens, uint32_t *counts)
{
    __shared__ shared_t shared;
    uint32_t number = blockIdx.x / parts, tile = blockIdx.x % parts * WARPS;
    work_t work = work_of(choices, pieces, most, scratch, number);
    if (tile < work.tiles)
        slices_emit(work, tile * TILE, TILE, tokens, counts + number, &shared);
}

/* All of it, where no choice has more than a tile: each block makes one, in shared memory. */
__global__ void __launch_bounds__(THREADS, 2)
    select_small(const lode_device_choice_t *choices, const lode_device_piece_t *pieces, uint32_t *tokens,
                 uint32_t *counts)
{
    __shared__ shared_t shared;
    __shared__ small_t small;
    work_t work;
    work.choice = choices[blockIdx.x];
    work.pieces = pieces + work.choice.first_piece;
    work.scratch = {&small.state, &small.span, small.sums, small.keys, small.details, TILE};
    work.tiles = 1;
    choice_begin(work, 0, &shared);
    __syncthreads();
    if (choice_note(work, 0, true, &shared)) /* it is */
        choice_cut(work, false, &shared);    /* so few scores need no sample */
    __syncthreads();
    slices_emit(work, 0, TILE / WARPS, tokens, counts + blockIdx.x, &shared);
}

/* ------------------------------------------------------------------- table */

size_t select_scratch(uint32_t choices, uint32_t most)
{
    layout_t layout = layout_of(most);
    if (layout.tiles == 1)
        return sizeof(state_t); /* none is used, but nobody likes to allocate 0 bytes */
    return choices * layout.bytes;
}

lode_status_t select_tokens(lode_device_stream_t stream, const lode_device_choice_t *choices, uint32_t n,
                            const lode_device_piece_t *pieces, uint32_t most, void *scratch, uint32_t *tokens,
                            uint32_t *counts)
{
    uint32_t tiles = layout_of(most).tiles, parts = (tiles + WARPS - 1) / WARPS;
    uint8_t *bytes = (uint8_t *)scratch;
    if (n == 0)
        return LODE_OK;
    if (most > MOST || (uint64_t)n * tiles > INT32_MAX)
        return lode_cuda_refuse(LODE_ERR_INVALID,
                                "select: %u choices among up to %u landmarks are too many for one call; a choice may "
                                "have %u: use larger chunks, or split the call",
                                n, most, MOST);
    if (tiles == 1)
        return LODE_LAUNCH(select_small, n, THREADS, 0, stream, choices, pieces, tokens, counts);
    LODE_TRY(LODE_LAUNCH(select_begin, n * tiles, THREADS, 0, stream, choices, pieces, most, bytes, tiles));
    LODE_TRY(LODE_LAUNCH(select_note, n * tiles, THREADS, 0, stream, choices, pieces, most, bytes, tiles));
    LODE_TRY(LODE_LAUNCH(select_again, n * tiles < AGAIN ? n * tiles : AGAIN, THREADS, 0, stream, choices, pieces, most,
                         bytes, n, tiles));
    return LODE_LAUNCH(select_emit, n * parts, THREADS, 0, stream, choices, pieces, most, bytes, parts, tokens, counts);
}

} // namespace

void lode_cuda_fill_select(lode_device_ops_t *ops)
{
    ops->select_scratch = select_scratch;
    ops->select = select_tokens;
}
