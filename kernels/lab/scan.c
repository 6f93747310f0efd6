/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lab: scores of UNIFORM landmarks, D = 128, 16 at a time in a vector, sums in their lanes. Reference: the scalar
 * level, to the bit. Floor: reading the same bytes in order.
 */
#include "kernels/lab/lab.h"

#define INLINE static inline __attribute__((always_inline))
enum { DIM = 128, CALL = 8192, GROUP_MOST = 4 };

/* How the versions differ. */
typedef struct plan {
    bool pinned;     /* additions stay in the order in which they are written */
    uint32_t ahead;  /* bytes after which lines are asked for; 0: not at all */
    uint32_t halves; /* 16 landmarks each, that go together */
} plan_t;

typedef struct scan {
    uint32_t bits;
    const uint8_t *tiles;
    size_t n;
    const lode_landmark_query_t *queries;
    float *out; /* (group, CALL) */
} scan_t;

#define ADD(add, sum, term)          \
    do {                             \
        (sum) = add(sum, term);      \
        if (plan.pinned)             \
            __asm__("" : "+v"(sum)); \
    } while (0)

INLINE void put(plan_t plan, const scan_t *scan, uint32_t g, size_t first, __m512i t, const uint8_t *scales)
{
    (void)plan;
    const lode_landmark_query_t *query = &scan->queries[g];
    __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)scales)), 16);
    __m512 score = _mm512_mul_ps(_mm512_set1_ps(query->scale), _mm512_cvtepi32_ps(t));
    score = _mm512_add_ps(_mm512_mul_ps(score, _mm512_castsi512_ps(wide)), _mm512_set1_ps(query->bias));
    _mm512_storeu_ps(scan->out + g * CALL + first, score);
}

/* 4 and 2 bit: unsigned codes × signed query in bytes, summed in 16 bits, widened before they overflow. */
INLINE void packed(plan_t plan, uint32_t bits, uint32_t group, const scan_t *scan)
{
    const uint32_t fields = 8 / bits, words = DIM * bits / 32, run = bits == 4 ? 4 : 8;
    const __m512i mask = _mm512_set1_epi8(bits == 4 ? 15 : 3), ones = _mm512_set1_epi16(1);
    const size_t code_bytes = DIM * bits / 8, tile_bytes = LODE_TILE * (code_bytes + 2);
    for (size_t first = 0; first < scan->n; first += 16 * plan.halves) {
        const uint8_t *tile = scan->tiles + first / LODE_TILE * tile_bytes;
        const uint8_t *half = tile + first % LODE_TILE * code_bytes, *scales = tile + LODE_TILE * code_bytes;
        __m512i sum[2][GROUP_MOST], narrow[2][GROUP_MOST];
        for (uint32_t i = 0; i < 2 * GROUP_MOST; i++)
            sum[i / GROUP_MOST][i % GROUP_MOST] = _mm512_setzero_si512();
        for (uint32_t begin = 0; begin < words; begin += run) {
            for (uint32_t i = 0; i < 2 * GROUP_MOST; i++)
                narrow[i / GROUP_MOST][i % GROUP_MOST] = _mm512_setzero_si512();
            for (uint32_t word = begin; word < begin + run; word++)
                for (uint32_t h = 0; h < plan.halves; h++) {
                    const uint8_t *line = half + h * 16 * code_bytes + 64 * word;
                    __m512i codes = _mm512_load_si512(line);
                    if (plan.ahead)
                        _mm_prefetch(line + plan.ahead, _MM_HINT_T0);
                    for (uint32_t m = 0; m < fields; m++) {
                        __m512i a = _mm512_and_si512(m ? _mm512_srli_epi16(codes, bits * m) : codes, mask);
                        for (uint32_t g = 0; g < group; g++) {
                            const int8_t *q8 = scan->queries[g].q8 + (word * fields + m) * 4;
                            __m512i q = _mm512_set1_epi32((int32_t)lode_load32(q8));
                            ADD(_mm512_add_epi16, narrow[h][g], _mm512_maddubs_epi16(a, q));
                        }
                    }
                }
            for (uint32_t h = 0; h < plan.halves; h++)
                for (uint32_t g = 0; g < group; g++)
                    sum[h][g] = _mm512_add_epi32(sum[h][g], _mm512_madd_epi16(narrow[h][g], ones));
        }
        for (uint32_t h = 0; h < plan.halves; h++)
            for (uint32_t g = 0; g < group; g++) {
                __m512i centre = _mm512_set1_epi32(((1 << bits) - 1) * scan->queries[g].sum);
                put(plan, scan, g, first + 16 * h, _mm512_sub_epi32(_mm512_slli_epi32(sum[h][g], 1), centre),
                    scales + first % LODE_TILE * 2 + 32 * h);
            }
    }
}

/* 8 bit: even and odd bytes made 16 bits wide in place. */
INLINE void bytes(plan_t plan, uint32_t group, const scan_t *scan)
{
    const size_t tile_bytes = LODE_TILE * (DIM + 2);
    uint32_t pairs[GROUP_MOST][DIM / 4][2];
    for (uint32_t i = 0; i < group * (DIM / 2); i++) {
        const int16_t *q = scan->queries[i / (DIM / 2)].q16 + i % (DIM / 2) / 2 * 4 + i % 2;
        pairs[i / (DIM / 2)][i % (DIM / 2) / 2][i % 2] = (uint16_t)q[0] | (uint32_t)(uint16_t)q[2] << 16;
    }
    for (size_t first = 0; first < scan->n; first += 16 * plan.halves) {
        const uint8_t *tile = scan->tiles + first / LODE_TILE * tile_bytes, *scales = tile + LODE_TILE * DIM;
        const uint8_t *half = tile + first % LODE_TILE * DIM;
        __m512i sum[2][GROUP_MOST][2];
        memset(sum, 0, sizeof sum);
        for (uint32_t word = 0; word < DIM / 4; word++)
            for (uint32_t h = 0; h < plan.halves; h++) {
                const uint8_t *line = half + h * 16 * DIM + 64 * word;
                __m512i codes = _mm512_load_si512(line), part[2];
                if (plan.ahead)
                    _mm_prefetch(line + plan.ahead, _MM_HINT_T0);
                part[0] = _mm512_srai_epi16(_mm512_slli_epi16(codes, 8), 8);
                part[1] = _mm512_srai_epi16(codes, 8);
                for (uint32_t g = 0; g < group; g++)
                    for (uint32_t odd = 0; odd < 2; odd++) {
                        __m512i q = _mm512_set1_epi32((int32_t)pairs[g][word][odd]);
                        ADD(_mm512_add_epi32, sum[h][g][odd], _mm512_madd_epi16(part[odd], q));
                    }
            }
        for (uint32_t h = 0; h < plan.halves; h++)
            for (uint32_t g = 0; g < group; g++)
                put(plan, scan, g, first + 16 * h, _mm512_add_epi32(sum[h][g][0], sum[h][g][1]),
                    scales + first % LODE_TILE * 2 + 32 * h);
    }
}

INLINE void scan_with(plan_t plan, uint32_t group, const scan_t *scan)
{
    if (scan->bits == 8)
        bytes(plan, group, scan);
    else if (scan->bits == 4)
        packed(plan, 4, group, scan);
    else
        packed(plan, 2, group, scan);
}

#define VERSION(number, ...)                                        \
    static void version##number(uint32_t group, const scan_t *scan) \
    {                                                               \
        if (group == 4)                                             \
            scan_with((plan_t){__VA_ARGS__}, 4, scan);              \
        else                                                        \
            scan_with((plan_t){__VA_ARGS__}, 1, scan);              \
    }
/* 1: both halves of a tile, so that a query word is loaded once. The compiler spills what it reorders. */
VERSION(1, false, 0, 2)
/* 2: sums pinned, so that they stay in registers: no gain by itself. */
VERSION(2, true, 0, 2)
/* 3: lines asked for 1 KiB ahead: memory does not stop at the end of each 4 KiB. Too near. */
VERSION(3, true, 1024, 2)
/* 4: 4 KiB ahead, about a tile of 8 bits. In kernels/. */
VERSION(4, true, 4096, 2)
/* 5: 8 KiB ahead: no better. */
VERSION(5, true, 8192, 2)
/* 6: one half at a time: twice the query loads. */
VERSION(6, true, 4096, 1)

static void (*const versions[])(uint32_t, const scan_t *) = {version1, version2, version3,
                                                             version4, version5, version6};
enum { VERSIONS = sizeof versions / sizeof *versions };

static void fill(const lode_ops_t *ops, const lode_landmark_spec_t *spec, uint8_t *arena)
{
    size_t tile_bytes = lode_landmark_tile_bytes(spec, DIM), whole = CALL / LODE_TILE * tile_bytes;
    for (size_t i = 0; i < CALL; i++) {
        float x[DIM];
        uint8_t row[DIM + 2];
        for (uint32_t j = 0; j < DIM; j++)
            x[j] = lab_gaussian();
        ops->landmark_quantise(spec, DIM, x, 1, row);
        ops->landmark_place(spec, DIM, row, 1, arena, i);
    }
    for (size_t i = whole; i < LAB_ARENA; i += whole)
        memcpy(arena + i, arena, LAB_ARENA - i < whole ? LAB_ARENA - i : whole);
}

static int sweep(uint8_t *arena, uint32_t bits, uint32_t group)
{
    static float right[GROUP_MOST * CALL], out[GROUP_MOST * CALL];
    static lode_landmark_query_t queries[GROUP_MOST];
    static double floor[LAB_ROUNDS], cold[VERSIONS][LAB_ROUNDS], hot[VERSIONS][LAB_ROUNDS];
    const lode_landmark_spec_t spec = {LODE_LANDMARK_UNIFORM, bits, 1, 1};
    const lode_ops_t *ops, *scalar;
    lode_ops_get("auto", &ops);
    lode_ops_get("scalar", &scalar);
    fill(ops, &spec, arena);
    for (uint32_t g = 0; g < group; g++) {
        float q[DIM];
        for (uint32_t i = 0; i < DIM; i++)
            q[i] = lab_gaussian();
        ops->query_prepare(&spec, DIM, q, lab_gaussian(), &queries[g]);
    }
    size_t tile_bytes = lode_landmark_tile_bytes(&spec, DIM), call = CALL / LODE_TILE * tile_bytes;
    size_t slice = LAB_ARENA / 16 / call * call, few = 128 << 10;
    scalar->landmark_score(&spec, DIM, arena, CALL, queries, group, right, CALL, NULL);
    for (int v = 0; v < VERSIONS; v++) {
        scan_t scan = {bits, arena, CALL, queries, out};
        versions[v](group, &scan);
        if (memcmp(out, right, sizeof *out * CALL * group) != 0) {
            printf("version %d: wrong scores at %u bits, group %u\n", v + 1, bits, group);
            return 1;
        }
    }
    for (int round = 0; round < LAB_ROUNDS; round++) {
        floor[round] = lab_read(arena + round % 16 * slice, slice);
        for (int v = 0; v < VERSIONS; v++) {
            size_t at = (size_t)(round * VERSIONS + v) * 7 % 16 * slice;
            double begin = lab_now();
            for (size_t i = 0; i < slice; i += call)
                versions[v](group, &(scan_t){bits, arena + at + i, CALL, queries, out});
            cold[v][round] = (double)slice / (lab_now() - begin) * 1e-9;
            size_t n = few / tile_bytes * LODE_TILE;
            begin = lab_now();
            for (int i = 0; i < 16; i++)
                versions[v](group, &(scan_t){bits, arena, n, queries, out});
            hot[v][round] = 16.0 * (double)(n / LODE_TILE * tile_bytes) / (lab_now() - begin) * 1e-9;
        }
    }
    double beside = lab_median(floor, LAB_ROUNDS);
    printf("%u bit, group %u: reading %5.2f GB/s; memory (cache)", bits, group, beside);
    for (int v = 0; v < VERSIONS; v++)
        printf("  %d: %.2f (%.2f)", v + 1, lab_median(cold[v], LAB_ROUNDS) / beside,
               lab_median(hot[v], LAB_ROUNDS) / beside);
    printf("\n");
    return 0;
}

int main(void)
{
    uint8_t *arena = lab_memory(LAB_ARENA + (64 << 10));
    for (uint32_t bits = 8; bits >= 2; bits /= 2)
        for (uint32_t group = 1; group <= 4; group += 3)
            if (sweep(arena, bits, group))
                return 1;
    return 0;
}
