/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lab: attention of 4 queries over records, D = 128, bf16 and fp8. Reference: the scalar level. Floor: reading the same
 * bytes in order. The versions differ in how many sums are under way, in how codes are unpacked, and in when the next
 * block's lines are asked for; the rest is as simple as can be, so "hot" figures are a little below those of kernels/.
 */
#include "kernels/avx512/avx512.h"
#include "kernels/lab/lab.h"

#define INLINE static inline __attribute__((always_inline))
enum { DIM = 128, GROUP = 4, BLOCK = 16, CALL = 1024 };

static const char *const format_names[] = {"bf16", "fp8"};

typedef enum unpack { WIDEN, IN_PLACE } unpack_t;
typedef enum asking { NEVER, RECORD, EVENLY } asking_t;

typedef struct plan {
    uint32_t records; /* whose keys go together: 4 × records sums */
    uint32_t vectors; /* of values that go together: 4 × vectors sums */
    unpack_t unpack;
    asking_t asking;
} plan_t;

typedef struct work {
    lode_format_t format;
    float q[GROUP][DIM], out[GROUP][DIM], weight[GROUP][BLOCK], most[GROUP], sum[GROUP];
    _Alignas(64) uint16_t halves[BLOCK][DIM];
} work_t;

/* Place i in working order holds this coordinate. */
static uint32_t place_of(plan_t plan, lode_format_t format, uint32_t i)
{
    if (plan.unpack == WIDEN)
        return i;
    if (format == LODE_FORMAT_BF16)
        return i / 32 * 32 + i % 16 * 2 + i / 16 % 2;
    return i / 64 * 64 + i % 32 * 2 + i / 32 % 2;
}

INLINE void halves_of(const uint8_t *codes, uint16_t *halves)
{
    const __m512i fields = _mm512_set1_epi16((short)0xbf80);
    for (uint32_t d = 0; d < DIM; d += 64) {
        __m512i pairs = _mm512_loadu_si512(codes + d);
        __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(pairs, 8), 1), odd = _mm512_srai_epi16(pairs, 1);
        _mm512_store_si512(halves + d, _mm512_and_si512(even, fields));
        _mm512_store_si512(halves + d + 32, _mm512_and_si512(odd, fields));
    }
}

INLINE __m512 vector_of(plan_t plan, lode_format_t format, const uint8_t *codes, const uint16_t *halves, uint32_t v)
{
    if (format == LODE_FORMAT_FP8 && plan.unpack == IN_PLACE)
        return _mm512_cvtph_ps(_mm256_load_si256((const __m256i *)(halves + 16 * v)));
    if (format == LODE_FORMAT_FP8) {
        __m256i wide = _mm256_slli_epi16(_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(codes + 16 * v))), 7);
        return _mm512_cvtph_ps(_mm256_and_si256(wide, _mm256_set1_epi16((short)0xbfff)));
    }
    if (plan.unpack == WIDEN)
        return _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(codes + 32 * v))), 16));
    __m512i pairs = _mm512_loadu_si512(codes + 64 * (v / 2));
    __asm__("" : "+v"(pairs));
    return _mm512_castsi512_ps(v % 2 ? _mm512_and_si512(pairs, _mm512_set1_epi32((int32_t)0xffff0000u))
                                     : _mm512_slli_epi32(pairs, 16));
}

INLINE void ask_record(lode_format_t format, const uint8_t *record)
{
    for (size_t line = 0; line < lode_record_bytes(format, DIM); line += 64)
        _mm_prefetch(record + line, _MM_HINT_T0);
}

INLINE void ask_line(lode_format_t format, const uint8_t *codes, uint32_t v)
{
    if (v * (format == LODE_FORMAT_BF16 ? 32 : 16) % 64 == 0)
        _mm_prefetch(codes + v * (format == LODE_FORMAT_BF16 ? 32 : 16), _MM_HINT_T0);
}

INLINE void keys(plan_t plan, lode_format_t format, work_t *w, const uint8_t *const *at, const uint8_t *const *next)
{
    for (uint32_t r = 0; r < BLOCK; r += plan.records) {
        __m512 sum[4][GROUP];
        for (uint32_t i = 0; i < 4 * GROUP; i++)
            sum[i / GROUP][i % GROUP] = _mm512_setzero_ps();
        for (uint32_t t = 0; t < plan.records && plan.asking == RECORD; t++)
            ask_record(format, next[r + t]);
#pragma GCC unroll 8
        for (uint32_t v = 0; v < DIM / 16; v++)
            for (uint32_t t = 0; t < plan.records; t++) {
                __m512 k = vector_of(plan, format, at[r + t], w->halves[r + t], v);
                if (plan.asking == EVENLY)
                    ask_line(format, next[r + t], v);
                for (uint32_t g = 0; g < GROUP; g++)
                    sum[t][g] = _mm512_fmadd_ps(k, _mm512_loadu_ps(w->q[g] + 16 * v), sum[t][g]);
            }
        for (uint32_t t = 0; t < plan.records; t++)
            for (uint32_t g = 0; g < GROUP; g++)
                w->weight[g][r + t] = _mm512_reduce_add_ps(sum[t][g]);
    }
}

INLINE void values(plan_t plan, lode_format_t format, work_t *w, const uint8_t *const *at, const uint8_t *const *next)
{
    size_t vector_bytes = lode_format_vector_bytes(format, DIM);
    for (uint32_t v = 0; v < DIM / 16; v += plan.vectors) {
        __m512 sum[4][GROUP];
        for (uint32_t t = 0; t < plan.vectors; t++)
            for (uint32_t g = 0; g < GROUP; g++)
                sum[t][g] = _mm512_loadu_ps(w->out[g] + 16 * (v + t));
        for (uint32_t r = 0; r < BLOCK; r++) {
            __m512 x[4];
            for (uint32_t t = 0; t < plan.vectors; t++) {
                x[t] = plan.vectors == 1 && v % 2 ? vector_of(plan, format, at[r] + vector_bytes, w->halves[r], v | 1)
                                                  : vector_of(plan, format, at[r] + vector_bytes, w->halves[r], v + t);
                if (plan.asking == EVENLY)
                    ask_line(format, next[r] + vector_bytes, v + t);
            }
            for (uint32_t g = 0; g < GROUP; g++)
                for (uint32_t t = 0; t < plan.vectors; t++)
                    sum[t][g] = _mm512_fmadd_ps(x[t], _mm512_set1_ps(w->weight[g][r]), sum[t][g]);
        }
        for (uint32_t t = 0; t < plan.vectors; t++)
            for (uint32_t g = 0; g < GROUP; g++)
                _mm512_storeu_ps(w->out[g] + 16 * (v + t), sum[t][g]);
    }
}

static void softmax(work_t *w, const uint8_t *const *at)
{
    size_t bytes = lode_format_vector_bytes(w->format, DIM);
    float factor = w->format == LODE_FORMAT_FP8 ? 256 : 1, scale[2][BLOCK];
    for (uint32_t r = 0; r < BLOCK; r++)
        for (uint32_t i = 0; i < 2; i++)
            scale[i][r] =
                w->format == LODE_FORMAT_BF16 ? 1 : lode_bf16_widen(lode_load16(at[r] + 2 * bytes + 2 * i)) * factor;
    for (uint32_t g = 0; g < GROUP; g++) {
        __m512 logit = _mm512_mul_ps(_mm512_loadu_ps(w->weight[g]), _mm512_loadu_ps(scale[0]));
        float most = fmaxf(w->most[g], _mm512_reduce_max_ps(logit));
        if (most > w->most[g]) {
            float shrink = expf(w->most[g] - most);
            for (uint32_t d = 0; d < DIM; d++)
                w->out[g][d] *= shrink;
            w->sum[g] *= shrink;
            w->most[g] = most;
        }
        __m512 weight = exp16(_mm512_sub_ps(logit, _mm512_set1_ps(most)));
        w->sum[g] += _mm512_reduce_add_ps(weight);
        _mm512_storeu_ps(w->weight[g], _mm512_mul_ps(weight, _mm512_loadu_ps(scale[1])));
    }
}

/* n is a multiple of BLOCK, and records[n …] may be looked at. */
INLINE void attend(plan_t plan, lode_format_t format, work_t *w, const uint8_t *const *records, size_t n)
{
    size_t vector_bytes = lode_format_vector_bytes(format, DIM);
    bool halves = format == LODE_FORMAT_FP8 && plan.unpack == IN_PLACE;
    for (size_t first = 0; first < n; first += BLOCK) {
        const uint8_t *const *at = records + first, *const *next = at + BLOCK;
        for (uint32_t r = 0; halves && r < BLOCK; r++)
            halves_of(at[r], w->halves[r]);
        keys(plan, format, w, at, next);
        softmax(w, at);
        for (uint32_t r = 0; halves && r < BLOCK; r++)
            halves_of(at[r] + vector_bytes, w->halves[r]);
        values(plan, format, w, at, next);
    }
}

static void run(plan_t plan, void (*blocks)(work_t *, const uint8_t *const *, size_t), lode_format_t format,
                const uint8_t *const *records, size_t n, const float *q, float *out)
{
    static work_t w;
    memset(&w, 0, offsetof(work_t, halves));
    w.format = format;
    for (uint32_t g = 0; g < GROUP; g++) {
        w.most[g] = -INFINITY;
        for (uint32_t i = 0; i < DIM; i++)
            w.q[g][i] = q[g * DIM + place_of(plan, format, i)];
    }
    blocks(&w, records, n);
    for (uint32_t g = 0; g < GROUP; g++)
        for (uint32_t i = 0; i < DIM; i++)
            out[g * DIM + place_of(plan, format, i)] = w.out[g][i] / w.sum[g];
}

#define VERSION(number, ...)                                                                                   \
    static void blocks##number(work_t *w, const uint8_t *const *records, size_t n)                             \
    {                                                                                                          \
        if (w->format == LODE_FORMAT_BF16)                                                                     \
            attend((plan_t){__VA_ARGS__}, LODE_FORMAT_BF16, w, records, n);                                    \
        else                                                                                                   \
            attend((plan_t){__VA_ARGS__}, LODE_FORMAT_FP8, w, records, n);                                     \
    }                                                                                                          \
    static void version##number(lode_format_t format, const uint8_t *const *records, size_t n, const float *q, \
                                float *out)                                                                    \
    {                                                                                                          \
        run((plan_t){__VA_ARGS__}, blocks##number, format, records, n, q, out);                                \
    }
/* 1: a record at a time, 4 sums: each multiplication waits for the one before it. Nothing is asked for. */
VERSION(1, 1, 1, WIDEN, NEVER)
/* 2: the next block's record is asked for, all lines at once: no line is on its way while the values are added. */
VERSION(2, 1, 1, WIDEN, RECORD)
/* 3: 8 sums: 2 records, 2 vectors of values. */
VERSION(3, 2, 2, WIDEN, RECORD)
/* 4: 16 sums. */
VERSION(4, 4, 4, WIDEN, RECORD)
/* 5: unpacked in place: bf16 in two instructions for 32 numbers instead of four, fp8 in nine for 64 instead of twenty.
 */
VERSION(5, 4, 4, IN_PLACE, RECORD)
/* 6: lines asked for one by one in both loops. In kernels/, with sums folded 16 at a time. */
VERSION(6, 4, 4, IN_PLACE, EVENLY)

static void (*const versions[])(lode_format_t, const uint8_t *const *, size_t, const float *,
                                float *) = {version1, version2, version3, version4, version5, version6};
enum { VERSIONS = sizeof versions / sizeof *versions };

static void fill(const lode_ops_t *ops, lode_format_t format, uint8_t *arena)
{
    size_t bytes = lode_record_bytes(format, DIM), whole = 4096 * bytes;
    for (size_t i = 0; i < 4096; i++) {
        float kv[2 * DIM];
        for (uint32_t j = 0; j < 2 * DIM; j++)
            kv[j] = lab_gaussian();
        ops->record_encode(format, DIM, kv, kv + DIM, 0, arena + i * bytes);
    }
    for (size_t i = whole; i < LAB_ARENA; i += whole)
        memcpy(arena + i, arena, LAB_ARENA - i < whole ? LAB_ARENA - i : whole);
}

static int check(lode_format_t format, const uint8_t *const *records, const float *q)
{
    const lode_ops_t *scalar;
    float right[GROUP * DIM], lse[GROUP], out[GROUP * DIM];
    lode_ops_get("scalar", &scalar);
    scalar->attend(format, DIM, GROUP, records, CALL, q, right, lse);
    for (int v = 0; v < VERSIONS; v++) {
        versions[v](format, records, CALL, q, out);
        for (uint32_t i = 0; i < GROUP * DIM; i++)
            if (!(fabsf(out[i] - right[i]) <= 1e-5f)) {
                printf("version %d: %s [%u] %g, not %g\n", v + 1, format_names[format], i, out[i], right[i]);
                return 1;
            }
    }
    return 0;
}

static int sweep(uint8_t *arena, lode_format_t format)
{
    static double floor[LAB_ROUNDS], cold[VERSIONS][LAB_ROUNDS], hot[VERSIONS][LAB_ROUNDS];
    const lode_ops_t *ops;
    lode_ops_get("auto", &ops);
    fill(ops, format, arena);
    size_t bytes = lode_record_bytes(format, DIM), n = LAB_ARENA / bytes, slice = n / 32 / CALL * CALL;
    size_t few = (256 << 10) / bytes / BLOCK * BLOCK;
    const uint8_t **at = lab_pieces(arena, bytes, n), **near = lab_pieces(arena, bytes, few);
    float q[GROUP * DIM], out[GROUP * DIM];
    for (uint32_t i = 0; i < GROUP * DIM; i++)
        q[i] = lab_gaussian() / sqrtf(DIM);
    if (check(format, at, q))
        return 1;
    for (int round = 0; round < LAB_ROUNDS; round++) {
        floor[round] = lab_read(arena + round % 16 * (LAB_ARENA / 16), LAB_ARENA / 16);
        for (int v = 0; v < VERSIONS; v++) {
            const uint8_t **from = at + (size_t)(round * VERSIONS + v) * 7 % 32 * slice;
            double begin = lab_now();
            for (size_t i = 0; i < slice; i += CALL)
                versions[v](format, from + i, CALL, q, out);
            cold[v][round] = (double)(slice * bytes) / (lab_now() - begin) * 1e-9;
            begin = lab_now();
            for (int i = 0; i < 8; i++)
                versions[v](format, near, few, q, out);
            hot[v][round] = 8.0 * (double)(few * bytes) / (lab_now() - begin) * 1e-9;
        }
    }
    double beside = lab_median(floor, LAB_ROUNDS);
    printf("%s: reading %5.2f GB/s; random (in L2)", format_names[format], beside);
    for (int v = 0; v < VERSIONS; v++)
        printf("  %d: %.2f (%.2f)", v + 1, lab_median(cold[v], LAB_ROUNDS) / beside,
               lab_median(hot[v], LAB_ROUNDS) / beside);
    printf("\n");
    free(at);
    free(near);
    return 0;
}

int main(void)
{
    uint8_t *arena = lab_memory(LAB_ARENA);
    return sweep(arena, LODE_FORMAT_BF16) || sweep(arena, LODE_FORMAT_FP8);
}
