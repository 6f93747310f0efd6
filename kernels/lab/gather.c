/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lab: copying pieces from anywhere into one reply. Reference: memcpy a piece. Floor: memcpy of the same bytes in
 * order, from memory that is not cached, into replies of 1 MiB that are not (cold) or one of 64 KiB that is (hot).
 */
#include "kernels/lab/lab.h"

#define INLINE static inline __attribute__((always_inline))

typedef void (*gather_t)(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes);

static void reference(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes)
{
    for (size_t i = 0; i < count; i++)
        memcpy(dst + i * bytes, src[i], bytes);
}

INLINE void copy(uint8_t *dst, const uint8_t *src, size_t bytes)
{
    size_t at = 0;
    for (; at + 64 <= bytes; at += 64)
        _mm512_storeu_si512(dst + at, _mm512_loadu_si512(src + at));
    if (at < bytes) {
        __mmask64 some = ~(uint64_t)0 >> (64 - (bytes - at));
        _mm512_mask_storeu_epi8(dst + at, some, _mm512_maskz_loadu_epi8(some, src + at));
    }
}

INLINE void ask(const uint8_t *piece, size_t bytes)
{
    for (size_t line = 0; line < bytes; line += 64)
        _mm_prefetch(piece + line, _MM_HINT_T0);
}

/* 1: all lines of the piece 12 later at once. The lines wait for each other, and 12 pages are more than the cache. */
static void version1(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes)
{
    for (size_t i = 0; i < count; i++) {
        if (i + 12 < count)
            ask(src[i + 12], bytes);
        copy(dst + i * bytes, src[i], bytes);
    }
}

/* Copy, and ask for a later piece line by line. */
INLINE void copy_and_ask(uint8_t *dst, const uint8_t *src, size_t bytes, const uint8_t *next)
{
    size_t at = 0;
    for (; at + 64 <= bytes; at += 64) {
        _mm_prefetch(next + at, _MM_HINT_T0);
        _mm512_storeu_si512(dst + at, _mm512_loadu_si512(src + at));
    }
    _mm_prefetch(next + bytes - 1, _MM_HINT_T0);
    if (at < bytes) {
        __mmask64 some = ~(uint64_t)0 >> (64 - (bytes - at));
        _mm_prefetch(next + at, _MM_HINT_T0);
        _mm512_mask_storeu_epi8(dst + at, some, _mm512_maskz_loadu_epi8(some, src + at));
    }
}

INLINE void touch(const uint8_t *piece, size_t bytes)
{
    _mm_prefetch(piece, _MM_HINT_T1);
    _mm_prefetch(piece + 128, _MM_HINT_T1);
    _mm_prefetch(piece + bytes - 1, _MM_HINT_T1);
}

INLINE void spread(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes, size_t ahead, bool touched)
{
    for (size_t i = 0; i < count; i++) {
        if (touched && i + ahead + 1 < count)
            touch(src[i + ahead + 1], bytes);
        copy_and_ask(dst + i * bytes, src[i], bytes, src[i + ahead < count ? i + ahead : i]);
    }
}

/* 2: the next piece's line with each line copied. Better for pages; one record ahead is too late for short ones. */
static void version2(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes)
{
    spread(dst, src, count, bytes, 1, false);
}

/* 3: the same four pieces ahead. */
static void version3(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes)
{
    spread(dst, src, count, bytes, 4, false);
}

/* 4: one ahead, and three lines of the one after into the second-level cache, which then goes on by itself: pages. */
static void version4(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes)
{
    spread(dst, src, count, bytes, 1, true);
}

/* 5: the same four ahead: records. Versions 4 (from 2 KiB on) and 5 are in kernels/, by vectors of 32 bytes, which are
 * a little quicker: fewer of them lie across two lines. */
static void version5(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes)
{
    spread(dst, src, count, bytes, 4, true);
}

/* 6: stores past the cache, by way of a stage of 4 KiB, since records end anywhere. They wait in the same few buffers
 * that reads wait in: slower here, cold and hot. */
static void version6(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes)
{
    _Alignas(64) uint8_t stage[2 * 4096 + 64];
    size_t have = 0;
    if ((uintptr_t)dst % 64 || bytes > 4096) {
        reference(dst, src, count, bytes);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        copy_and_ask(stage + have, src[i], bytes, src[i + 8 < count ? i + 8 : i]);
        have += bytes;
        size_t at = 0;
        for (; have >= 4096 && at + 64 <= have; at += 64)
            _mm512_stream_si512((void *)(dst + at), _mm512_load_si512(stage + at));
        if (at) {
            _mm512_store_si512(stage, _mm512_loadu_si512(stage + at));
            dst += at;
            have -= at;
        }
    }
    memcpy(dst, stage, have);
    _mm_sfence();
}

/* 7: the processor's string copy. Slow to start: for pages only, and not better. */
static void version7(uint8_t *dst, const uint8_t *const *src, size_t count, size_t bytes)
{
    for (size_t i = 0; i < count; i++) {
        const uint8_t *from = src[i];
        size_t n = bytes;
        if (i + 1 < count)
            touch(src[i + 1], bytes);
        __asm__ volatile("rep movsb" : "+S"(from), "+D"(dst), "+c"(n)::"memory");
    }
}

static const gather_t versions[] = {version1, version2, version3, version4, version5, version6, version7};
enum { VERSIONS = sizeof versions / sizeof *versions };

static int check(uint8_t *reply, const uint8_t *const *src)
{
    static const size_t sizes[] = {1, 63, 64, 65, 136, 264, 520, 4096};
    static uint8_t right[100 * 4096];
    for (int v = 0; v < VERSIONS; v++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
            for (size_t skew = 0; skew < 2; skew++) {
                memset(reply, 0, sizeof right + 1);
                reference(right, src, 99, sizes[s]);
                versions[v](reply + skew, src, 99, sizes[s]);
                if (memcmp(reply + skew, right, 99 * sizes[s]) != 0 || reply[skew + 99 * sizes[s]]) {
                    printf("version %d: wrong at %zu bytes\n", v + 1, sizes[s]);
                    return 1;
                }
            }
    return 0;
}

static void sweep(const uint8_t *arena, uint8_t *replies, size_t bytes, size_t reply, size_t whole)
{
    size_t n = LAB_ARENA / bytes, call = reply / bytes, slice = n / 16, at = 0;
    const uint8_t **src = lab_pieces(arena, bytes, n);
    static double floor[LAB_ROUNDS], rate[VERSIONS][LAB_ROUNDS];
    for (int round = 0; round < LAB_ROUNDS; round++) {
        double begin = lab_now();
        for (size_t i = 0; i < LAB_ARENA / 16; i += reply, at += reply)
            memcpy(replies + at % whole, arena + round % 16 * (LAB_ARENA / 16) + i, reply);
        floor[round] = (double)(LAB_ARENA / 16) / (lab_now() - begin);
        for (int v = 0; v < VERSIONS; v++) {
            const uint8_t **from = src + (size_t)(round * VERSIONS + v) % 16 * slice;
            begin = lab_now();
            for (size_t i = 0; i < slice; i += call, at += reply)
                versions[v](replies + at % whole, from + i, slice - i < call ? slice - i : call, bytes);
            rate[v][round] = (double)(slice * bytes) / (lab_now() - begin);
        }
    }
    double beside = lab_median(floor, LAB_ROUNDS);
    printf("%5zu B, %s: memcpy %5.2f GB/s;", bytes, whole > reply ? "cold" : "hot ", beside * 1e-9);
    for (int v = 0; v < VERSIONS; v++)
        printf("  %d: %.2f", v + 1, lab_median(rate[v], LAB_ROUNDS) / beside);
    printf("\n");
    free(src);
}

int main(void)
{
    static const size_t sizes[] = {136, 264, 520, 4096};
    uint8_t *arena = lab_memory(LAB_ARENA), *replies = lab_memory((size_t)64 << 20);
    for (size_t i = 0; i < LAB_ARENA; i += 8)
        *(uint64_t *)(void *)(arena + i) = lab_random();
    memset(replies, 1, (size_t)64 << 20);
    const uint8_t **some = lab_pieces(arena + 5, 4096, 200);
    if (check(replies, some))
        return 1;
    free(some);
    for (size_t s = 0; s < 4; s++) {
        sweep(arena, replies, sizes[s], 1 << 20, (size_t)64 << 20);
        sweep(arena, replies, sizes[s], 64 << 10, 64 << 10);
    }
    return 0;
}
