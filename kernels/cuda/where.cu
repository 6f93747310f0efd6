/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a step wants of pages, where it is, and what is kept.
 *
 *   want   a thread a chosen token: finds its block's mask and sets its bit; lanes of a warp that have the same mask
 *          set theirs together (a list ascends, so they are neighbours)
 *   where  three kernels over masks, TILE of them a block, with one sum of each tile between them:
 *            count  how many records are wanted; the step's stamp
 *            look   numbers them, looks each up in its cache, leaves masks of what is missed
 *            list   numbers what is missed, finds its source or lists its mask as asked, writes the totals
 *          A block adds up the sums of the tiles before it by itself: 4 bytes a tile, 16 KiB at most for a step that
 *          wants all of a million tokens. A warp takes 32 masks and spreads their records over its lanes, so that one
 *          full mask costs no more than 32 of two bits.
 *   keep   a warp a missed record: claims the oldest slot of its set by a compare-and-swap of the stamp, then copies.
 *
 * Bytes: a mask is read three times and written once (8 each), a number and a place a record (8); a record's set is one
 * line of 128 bytes, read by 8 lanes at once, of which hits write 4; a missed record 24 more. 8 heads that choose 32 Ki
 * of 1 Mi tokens each: 4 MiB of masks' traffic, 32 MiB of sets: some 10 us of bytes, and three launches. keep reads and
 * writes the records. All of it is bound by memory, the sets by lines at random.
 *
 * A slot that has the stamp of this step is never given away: what was found stays, also what an earlier keep() of the
 * step put there. Stamps only change from older to this step's, so a swap that fails tells that the slot is taken, and
 * nobody tries more than the ways of a set. Missed records differ from one another and from what is in the cache, so
 * none comes to be in two slots. Kernels of a stream follow one another: where() sees slots and records as keep() left
 * them, whole.
 *
 * Rejected: one kernel with a look-back between blocks (it has blocks wait for one another), a lane a record for the
 * look-up (8 times the lines under way), chains or a second choice of sets (a line more for each miss).
 *
 * Never run on a GPU; compared with a plain model in the emulator by tests/unit/device_where.c.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/warp.h"

namespace
{

constexpr uint32_t THREADS = 256, WARPS = THREADS / 32, TILE = 1024, ROUNDS = TILE / THREADS;
constexpr uint32_t PAGE = LODE_PAGE_TOKENS, WAYS = LODE_DEVICE_WAYS, FORMATS = LODE_FORMAT_HIGGS4 + 1;
constexpr uint32_t ALL = 0xffffffffu, NO_SLOT = 0xffffffffu;
constexpr uint32_t WANT_TOKENS = 1024, WANT_PARTS = 64; /* tokens of a list a block, and most blocks a list */

typedef unsigned long long bits_t; /* what CUDA's atomics take */

static_assert(sizeof(lode_device_slot_t) == 16 && WAYS == 8, "a set is a line of 128 bytes");
static_assert(PAGE == 64, "a page's tokens are the bits of a mask");

/* ------------------------------------------------------------------- common */

__device__ bits_t low_bits(uint64_t n)
{
    return n >= 64 ? ~(bits_t)0 : ((bits_t)1 << n) - 1;
}

/* The last of low … high whose mask is no later than this one: blocks without pages have the next one's. */
__device__ uint32_t block_at(const lode_device_block_t *blocks, uint32_t low, uint32_t high, uint32_t mask)
{
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (blocks[middle].first_mask <= mask)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

/* --------------------------------------------------------------------- want */

struct want_t {
    const lode_device_row_t *rows;
    uint32_t heads;
    const lode_device_part_t *parts;
    const lode_device_block_t *blocks;
    const lode_device_chosen_t *chosen;
    const uint32_t *tokens;
    uint64_t *wanted;
    uint32_t pieces; /* blocks of threads a list */
};

/* Set bits that are not set yet: many rows want the same. */
__device__ void want_bits(uint64_t *wanted, uint32_t mask, bits_t bits)
{
    if ((wanted[mask] & bits) != bits)
        atomicOr((bits_t *)wanted + mask, bits);
}

/* All that a row sees: the first tokens of each part. */
__device__ void want_all(const want_t &want, lode_device_row_t row, uint32_t head, uint32_t piece)
{
    for (uint32_t p = row.first_part; p < row.first_part + row.part_count; p++) {
        lode_device_part_t part = want.parts[p];
        const lode_device_block_t &block = want.blocks[part.block];
        uint32_t first = block.first_mask, pages = min(part.visible / PAGE + (part.visible % PAGE != 0), block.pages);
        for (uint32_t page = piece * THREADS + threadIdx.x; page < pages; page += want.pieces * THREADS)
            want_bits(want.wanted, first + page * want.heads + head, low_bits(part.visible - page * PAGE));
    }
}

/* The mask of a chosen token, and its bit; no bit if no part holds it. Parts without tokens begin where the next does.
 */
__device__ uint32_t want_token(const want_t &want, lode_device_row_t row, uint32_t head, uint32_t token, bits_t *bit)
{
    uint32_t low = row.first_part, high = row.first_part + row.part_count - 1;
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (want.parts[middle].first_token <= token)
            low = middle;
        else
            high = middle - 1;
    }
    const lode_device_part_t &part = want.parts[low];
    uint64_t at = token - part.first_token;
    const lode_device_block_t &block = want.blocks[part.block];
    *bit = at < (uint64_t)block.pages * PAGE ? (bits_t)1 << at % PAGE : 0;
    return block.first_mask + (uint32_t)(at / PAGE) * want.heads + head;
}

/* A warp's bits: the last lane of those that have the same mask sets theirs all. */
__device__ void want_together(const want_t &want, uint32_t mask, bits_t bits)
{
    uint32_t lane = threadIdx.x % 32;
    for (uint32_t d = 1; d < 32; d *= 2) {
        bits_t other = __shfl_up_sync(ALL, bits, d);
        uint32_t its = __shfl_up_sync(ALL, mask, d);
        bits |= lane >= d && its == mask ? other : 0;
    }
    uint32_t next = __shfl_down_sync(ALL, mask, 1);
    if (bits && (lane == 31 || next != mask))
        want_bits(want.wanted, mask, bits);
}

__global__ void __launch_bounds__(THREADS) where_want(want_t want)
{
    uint32_t list = blockIdx.x / want.pieces, piece = blockIdx.x % want.pieces;
    lode_device_row_t row = want.rows[list / want.heads];
    lode_device_chosen_t chosen = want.chosen[list];
    uint32_t head = list % want.heads;
    if (chosen.tokens == UINT64_MAX) {
        want_all(want, row, head, piece);
        return;
    }
    if (row.part_count == 0)
        return;
    for (uint64_t base = piece * THREADS; base < chosen.count; base += want.pieces * THREADS) {
        uint64_t i = base + threadIdx.x;
        bits_t bit = 0;
        uint32_t mask = ALL;
        if (i < chosen.count)
            mask = want_token(want, row, head, want.tokens[chosen.tokens + i], &bit);
        want_together(want, mask, bit);
    }
}

lode_status_t want_tokens(lode_device_stream_t stream, const lode_device_row_t *rows, uint32_t row_count,
                          uint32_t heads, const lode_device_part_t *parts, const lode_device_block_t *blocks,
                          const lode_device_chosen_t *chosen, const uint32_t *tokens, uint32_t most_tokens,
                          uint64_t *wanted)
{
    uint32_t pieces = most_tokens / WANT_TOKENS + 1;
    if (pieces > WANT_PARTS)
        pieces = WANT_PARTS;
    want_t want = {rows, heads, parts, blocks, chosen, tokens, wanted, pieces};
    if (row_count == 0 || heads == 0)
        return LODE_OK;
    if ((uint64_t)row_count * heads * pieces > INT32_MAX)
        return lode_cuda_refuse(LODE_ERR_INVALID, "want: %u rows of %u heads are too many for one step", row_count,
                                heads);
    return LODE_LAUNCH(where_want, row_count * heads * pieces, THREADS, 0, stream, want);
}

/* -------------------------------------------------------------------- where */

/* Of one tile. */
struct sums_t {
    uint32_t wanted, missed, held, asked;
};

/* What where()'s kernels are given. */
struct where_t {
    lode_device_where_t is;
    uint32_t record_bytes[FORMATS]; /* as they lie in pages */
    uint32_t tiles;
    sums_t *sums;   /* (tiles) */
    bits_t *missed; /* (masks) */
};

/* One mask of a warp's 32, and what is known of its page. */
struct page_t {
    uint32_t block, page, head;
    bool held;
};

__device__ page_t page_of(const where_t &where, uint32_t mask)
{
    page_t page = {0, 0, 0, false};
    if (where.is.block_count == 0)
        return page;
    page.block = block_at(where.is.blocks, 0, where.is.block_count - 1, mask);
    const lode_device_block_t &block = where.is.blocks[page.block];
    page.page = (mask - block.first_mask) / where.is.heads;
    page.head = (mask - block.first_mask) % where.is.heads;
    page.held = block.held && block.held[page.page];
    return page;
}

/* Records of a warp's 32 masks, spread over its lanes. */
struct spread_t {
    bits_t mask;
    uint32_t before, total; /* records of masks before this lane's; of all */
};

__device__ spread_t spread_make(bits_t mask)
{
    spread_t spread;
    spread.mask = mask;
    spread.before = lode_warp_before(__popcll(mask));
    spread.total = __shfl_sync(ALL, spread.before + __popcll(mask), 31);
    return spread;
}

/* The n-th bit that is set, from 0. */
__device__ uint32_t bit_at(bits_t mask, uint32_t n)
{
    uint32_t at = 0;
    for (uint32_t width = 32; width; width /= 2) {
        uint32_t low = __popcll(mask & (((bits_t)1 << width) - 1));
        if (n >= low) {
            n -= low;
            at += width;
            mask >>= width;
        }
    }
    return at;
}

/* Which lane's mask has record r, and which bit; the whole warp asks, r may be beyond the last. */
__device__ uint32_t spread_at(const spread_t &spread, uint32_t r, uint32_t *bit)
{
    uint32_t lane = 0;
    for (uint32_t step = 16; step; step /= 2) {
        uint32_t before = __shfl_sync(ALL, spread.before, lane + step);
        lane += before <= r ? step : 0;
    }
    bits_t mask = __shfl_sync(ALL, spread.mask, lane);
    uint32_t before = __shfl_sync(ALL, spread.before, lane);
    *bit = r < spread.total ? bit_at(mask, r - before) : 0;
    return lane;
}

/* ------------------------------------------------------------------- caches */

/* The first slot of a record's set. The cache has sets. */
__device__ uint32_t set_of(const where_t &where, const lode_device_cache_t &cache, uint32_t head, uint64_t block,
                           uint32_t token)
{
    uint64_t x = block * 0x9e3779b97f4a7c15u + token * 0xc2b2ae3d27d4eb4fu;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    uint32_t set = (uint32_t)((x >> 32) * cache.sets >> 32);
    return ((where.is.layer * where.is.heads + head) * cache.sets + set) * WAYS;
}

struct sought_t {
    const lode_device_slot_t *slots; /* of all of its cache; NULL: it has none */
    uint32_t set;
    uint64_t block;
    uint32_t token;
};

/* Slots of a warp's 32 records: 8 lanes read one set, 4 sets at a time. NO_SLOT: not there. */
__device__ uint32_t slots_find(const sought_t &sought)
{
    uint32_t lane = threadIdx.x % 32, found = NO_SLOT;
    for (uint32_t base = 0; base < 32; base += 32 / WAYS) {
        uint32_t of = base + lane / WAYS;
        auto slots = (const lode_device_slot_t *)__shfl_sync(ALL, (bits_t)sought.slots, of);
        uint32_t set = __shfl_sync(ALL, sought.set, of), token = __shfl_sync(ALL, sought.token, of);
        bits_t block = __shfl_sync(ALL, (bits_t)sought.block, of);
        bool here = false;
        if (slots) {
            uint4 slot = *(const uint4 *)(slots + set + lane % WAYS);
            here = ((bits_t)slot.y << 32 | slot.x) == block && slot.z == token;
        }
        uint32_t ways = __ballot_sync(ALL, here) >> (lane - base) * WAYS % 32 & ((1u << WAYS) - 1);
        if (lane - base < 32 / WAYS && ways)
            found = sought.set + __ffs(ways) - 1;
    }
    return found;
}

/* ------------------------------------------------------------------ kernels */

struct shared_t {
    uint32_t warp[2][WARPS];
    bits_t missed[TILE];
    sums_t sums;
};

/* Sum over the block; everybody calls it. */
__device__ uint32_t block_sum(uint32_t x, shared_t *shared)
{
    uint32_t sum = 0;
    x = lode_warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        shared->warp[0][threadIdx.x / 32] = x;
    __syncthreads();
    for (uint32_t w = 0; w < WARPS; w++)
        sum += shared->warp[0][w];
    return sum;
}

/* Of two things that each warp has so many of, how many warps before this one have. */
__device__ uint2 warps_before(uint32_t x, uint32_t y, shared_t *shared)
{
    uint2 before = make_uint2(0, 0);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared->warp[0][threadIdx.x / 32] = x;
        shared->warp[1][threadIdx.x / 32] = y;
    }
    __syncthreads();
    for (uint32_t w = 0; w < threadIdx.x / 32; w++) {
        before.x += shared->warp[0][w];
        before.y += shared->warp[1][w];
    }
    return before;
}

/* A warp's masks are those from here on: 32 a round. */
__device__ uint32_t first_mask(uint32_t round)
{
    return blockIdx.x * TILE + (threadIdx.x / 32 * ROUNDS + round) * 32;
}

__device__ bits_t mask_at(const where_t &where, const bits_t *masks, uint32_t mask)
{
    return mask < where.is.masks ? masks[mask] : 0;
}

__device__ uint32_t warp_count(const where_t &where, const bits_t *masks)
{
    uint32_t count = 0;
    for (uint32_t round = 0; round < ROUNDS; round++)
        count += __popcll(mask_at(where, masks, first_mask(round) + threadIdx.x % 32));
    return lode_warp_sum(count);
}

__global__ void __launch_bounds__(THREADS) where_count(where_t where)
{
    __shared__ shared_t shared;
    uint32_t lane = threadIdx.x % 32, count = warp_count(where, (const bits_t *)where.is.wanted);
    count = block_sum(lane == 0 ? count : 0, &shared);
    if (threadIdx.x == 0)
        where.sums[blockIdx.x].wanted = count;
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        uint32_t stamp = *where.is.clock + 1;
        *where.is.clock = stamp ? stamp : 1;
    }
}

/* What a lane's record is sought by. */
__device__ sought_t sought_of(const where_t &where, uint32_t mask, uint32_t bit, bool any)
{
    sought_t sought = {NULL, 0, 0, 0};
    if (!any)
        return sought;
    page_t page = page_of(where, mask);
    const lode_device_block_t &block = where.is.blocks[page.block];
    const lode_device_cache_t &cache = where.is.caches[block.format];
    sought.block = block.id;
    sought.token = page.page * PAGE + bit;
    if (cache.slots && cache.sets) {
        sought.slots = cache.slots;
        sought.set = set_of(where, cache, page.head, sought.block, sought.token);
    }
    return sought;
}

/* Look up the records of a warp's 32 masks, the first of which is number `number`; what is missed is left in shared. */
__device__ void masks_look(const where_t &where, uint32_t first, const spread_t &spread, uint32_t number,
                           uint32_t stamp, bits_t *missed)
{
    uint32_t lane = threadIdx.x % 32;
    missed[lane] = 0;
    __syncwarp();
    for (uint32_t base = 0; base < spread.total; base += 32) {
        uint32_t r = base + lane, bit, of = spread_at(spread, r, &bit);
        bool any = r < spread.total;
        sought_t sought = sought_of(where, first + of, bit, any);
        uint32_t slot = slots_find(sought);
        if (any && slot != NO_SLOT) {
            ((lode_device_slot_t *)sought.slots)[slot].stamp = stamp;
            where.is.places[number + r] = slot;
        } else if (any) {
            atomicOr(missed + of, (bits_t)1 << bit);
        }
    }
    __syncwarp();
}

__global__ void __launch_bounds__(THREADS) where_look(where_t where)
{
    __shared__ shared_t shared;
    const bits_t *wanted = (const bits_t *)where.is.wanted;
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, stamp = *where.is.clock, number = 0;
    for (uint32_t tile = threadIdx.x; tile < blockIdx.x; tile += THREADS)
        number += where.sums[tile].wanted;
    number = block_sum(number, &shared) + warps_before(warp_count(where, wanted), 0, &shared).x;
    sums_t sums = {0, 0, 0, 0};
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t mask = first_mask(round) + lane;
        spread_t spread = spread_make(mask_at(where, wanted, mask));
        bits_t *missed = shared.missed + (warp * ROUNDS + round) * 32;
        if (spread.mask)
            where.is.first[mask] = number + spread.before;
        masks_look(where, first_mask(round), spread, number, stamp, missed);
        number += spread.total;
        if (mask >= where.is.masks)
            continue;
        where.missed[mask] = missed[lane];
        bool held = missed[lane] && page_of(where, mask).held;
        sums.missed += __popcll(missed[lane]);
        sums.held += held ? __popcll(missed[lane]) : 0;
        sums.asked += missed[lane] && !held;
    }
    uint32_t missed = block_sum(sums.missed, &shared), held = block_sum(sums.held, &shared);
    uint32_t asked = block_sum(sums.asked, &shared);
    if (threadIdx.x == 0) {
        where.sums[blockIdx.x].missed = missed;
        where.sums[blockIdx.x].held = held;
        where.sums[blockIdx.x].asked = asked;
    }
}

/* Write what is known of the missed records of a warp's 32 masks. */
__device__ void masks_list(const where_t &where, uint32_t first, const spread_t &spread, uint32_t number)
{
    for (uint32_t base = 0; base < spread.total; base += 32) {
        uint32_t r = base + threadIdx.x % 32, bit, mask = first + spread_at(spread, r, &bit);
        if (r >= spread.total)
            continue;
        page_t page = page_of(where, mask);
        const lode_device_block_t &block = where.is.blocks[page.block];
        uint32_t rank = __popcll(where.is.wanted[mask] & (((bits_t)1 << bit) - 1));
        where.is.places[where.is.first[mask] + rank] = LODE_DEVICE_STAGED | (number + r);
        where.is.missed[number + r] = {block.id, page.page * PAGE + bit, (uint16_t)page.head, (uint16_t)block.format};
        size_t offset = ((size_t)page.head * PAGE + bit) * where.record_bytes[block.format]; /* lode_page_record() */
        where.is.sources[number + r] = page.held ? block.held[page.page] + offset : NULL;
    }
}

/* The last tile writes what all tiles come to. */
__device__ void found_write(const where_t &where, shared_t *shared)
{
    sums_t sums = {0, 0, 0, 0};
    for (uint32_t tile = threadIdx.x; tile < where.tiles; tile += THREADS) {
        sums_t its = where.sums[tile];
        sums = {sums.wanted + its.wanted, sums.missed + its.missed, sums.held + its.held, sums.asked + its.asked};
    }
    uint32_t wanted = block_sum(sums.wanted, shared), missed = block_sum(sums.missed, shared);
    uint32_t held = block_sum(sums.held, shared), asked = block_sum(sums.asked, shared);
    if (threadIdx.x == 0)
        *where.is.found = {wanted, wanted - missed, missed, held, asked};
}

/* Whether a lane's mask must be fetched from another rank. */
__device__ bool is_asked(const where_t &where, uint32_t mask)
{
    return mask_at(where, where.missed, mask) && !page_of(where, mask).held;
}

__global__ void __launch_bounds__(THREADS) where_list(where_t where)
{
    __shared__ shared_t shared;
    uint32_t lane = threadIdx.x % 32, missed = 0, asked = 0, mine = 0;
    for (uint32_t tile = threadIdx.x; tile < blockIdx.x; tile += THREADS) {
        missed += where.sums[tile].missed;
        asked += where.sums[tile].asked;
    }
    missed = block_sum(missed, &shared);
    asked = block_sum(asked, &shared);
    for (uint32_t round = 0; round < ROUNDS; round++)
        mine += __popc(__ballot_sync(ALL, is_asked(where, first_mask(round) + lane)));
    uint2 before = warps_before(warp_count(where, where.missed), mine, &shared);
    missed += before.x;
    asked += before.y;
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t mask = first_mask(round) + lane;
        spread_t spread = spread_make(mask_at(where, where.missed, mask));
        bool is = is_asked(where, mask);
        uint32_t others = __ballot_sync(ALL, is);
        if (is)
            where.is.asked[asked + __popc(others & ((1u << lane) - 1))] = {spread.mask, mask, missed + spread.before};
        masks_list(where, first_mask(round), spread, missed);
        missed += spread.total;
        asked += __popc(others);
    }
    if (blockIdx.x == where.tiles - 1)
        found_write(where, &shared);
}

/* --------------------------------------------------------------------- keep */

struct keep_t {
    lode_format_t format;
    lode_device_cache_t cache;
    const uint8_t *staged;
    size_t stride, apart; /* of records there, and in the cache */
    uint32_t bytes, begin, end;
};

/* Claim the slot of a set that was used longest ago, before this step. @return its number, or NO_SLOT */
__device__ uint32_t slot_claim(lode_device_slot_t *slots, uint32_t set, uint32_t stamp)
{
    uint32_t lane = threadIdx.x % 32;
    bits_t mine = ~(bits_t)0; /* age and way; all bits: not to be had */
    uint32_t was = stamp;
    if (lane < WAYS) {
        was = slots[set + lane].stamp;
        if (was != stamp)
            mine = (bits_t)(slots[set + lane].block ? was : 0) << 32 | lane;
    }
    for (;;) {
        bits_t least = mine;
        for (uint32_t d = WAYS / 2; d; d /= 2) {
            bits_t other = __shfl_xor_sync(ALL, least, d);
            least = other < least ? other : least;
        }
        least = __shfl_sync(ALL, least, 0);
        if (least == ~(bits_t)0)
            return NO_SLOT;
        bool claimed = false;
        if (mine == least && lane < WAYS) {
            claimed = atomicCAS(&slots[set + lane].stamp, was, stamp) == was;
            mine = ~(bits_t)0; /* ours now, or somebody else's of this step */
        }
        if (__ballot_sync(ALL, claimed))
            return set + (uint32_t)(least & (WAYS - 1));
    }
}

/* Records are of whole 8 bytes; wider where both ends allow. */
__device__ void record_copy(uint8_t *to, const uint8_t *from, uint32_t bytes)
{
    uint32_t lane = threadIdx.x % 32, wide = ((uintptr_t)from | (uintptr_t)to) % 16 == 0 ? bytes / 16 : 0;
    for (uint32_t i = lane; i < wide; i += 32)
        ((uint4 *)to)[i] = ((const uint4 *)from)[i];
    for (uint32_t i = wide * 2 + lane; i < bytes / 8; i += 32)
        ((uint2 *)to)[i] = ((const uint2 *)from)[i];
}

__global__ void __launch_bounds__(THREADS) where_keep(where_t where, keep_t keep)
{
    __shared__ uint32_t end; /* read over the bus, once a block */
    if (threadIdx.x == 0)
        end = min(keep.end, where.is.found->missed);
    __syncthreads();
    uint32_t number = keep.begin + blockIdx.x * WARPS + threadIdx.x / 32, stamp = *where.is.clock;
    if (number >= end)
        return;
    lode_device_missed_t missed = where.is.missed[number];
    if (missed.format != keep.format)
        return;
    uint32_t set = set_of(where, keep.cache, missed.head, missed.block, missed.token);
    uint32_t slot = slot_claim(keep.cache.slots, set, stamp);
    if (slot == NO_SLOT)
        return;
    if (threadIdx.x % 32 == 0) {
        keep.cache.slots[slot].block = missed.block;
        keep.cache.slots[slot].token = missed.token;
    }
    record_copy(keep.cache.records + slot * keep.apart, keep.staged + (number - keep.begin) * keep.stride, keep.bytes);
}

/* -------------------------------------------------------------------- table */

size_t where_scratch(uint32_t masks)
{
    size_t tiles = (size_t)masks / TILE + 1;
    return tiles * sizeof(sums_t) + masks * sizeof(bits_t);
}

where_t where_of(const lode_device_where_t *is)
{
    where_t where;
    where.is = *is;
    where.tiles = is->masks / TILE + 1;
    where.sums = (sums_t *)is->scratch;
    where.missed = (bits_t *)(where.sums + where.tiles);
    for (uint32_t format = 0; format < FORMATS; format++)
        where.record_bytes[format] = (uint32_t)lode_record_bytes((lode_format_t)format, is->dim);
    return where;
}

lode_status_t where_records(lode_device_stream_t stream, const lode_device_where_t *is)
{
    where_t where = where_of(is);
    LODE_TRY(LODE_LAUNCH(where_count, where.tiles, THREADS, 0, stream, where));
    LODE_TRY(LODE_LAUNCH(where_look, where.tiles, THREADS, 0, stream, where));
    return LODE_LAUNCH(where_list, where.tiles, THREADS, 0, stream, where);
}

lode_status_t keep_records(lode_device_stream_t stream, const lode_device_where_t *is, lode_format_t format,
                           const uint8_t *staged, size_t staged_stride, uint32_t begin, uint32_t end)
{
    lode_device_cache_t cache = is->caches[format];
    uint32_t bytes = (uint32_t)lode_record_bytes(format, is->dim);
    if (end > is->records_max)
        end = is->records_max;
    if (begin >= end || cache.slots == NULL || cache.sets == 0)
        return LODE_OK;
    if (staged_stride < bytes || staged_stride % 8 != 0)
        return lode_cuda_refuse(LODE_ERR_INVALID, "keep: records of %u bytes cannot lie %zu bytes apart", bytes,
                                staged_stride);
    keep_t keep = {format, cache, staged, staged_stride, lode_device_record_bytes(format, is->dim), bytes, begin, end};
    return LODE_LAUNCH(where_keep, (end - begin + WARPS - 1) / WARPS, THREADS, 0, stream, where_of(is), keep);
}

} // namespace

void lode_cuda_fill_where(lode_device_ops_t *ops)
{
    ops->want = want_tokens;
    ops->where_scratch = where_scratch;
    ops->where = where_records;
    ops->keep = keep_records;
}
