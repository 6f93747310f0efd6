/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file lab.h
 * @brief What the kernel labs share: memory, random numbers, times of versions in turns.
 *
 * A lab is one program a hot kernel: the reference, the versions that were tried with a line each that says why, a
 * check of each against the reference, and a sweep. Built on request (ninja kernels_lab) and run by hand; what won is
 * in kernels/. `lodemark bench kernels` is what judges.
 */
#ifndef LODE_KERNELS_LAB_H
#define LODE_KERNELS_LAB_H

#include <immintrin.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "kernels/internal.h"

enum { LAB_ROUNDS = 21, LAB_VERSIONS = 16 };
#define LAB_ARENA ((size_t)256 << 20)

static inline uint8_t *lab_memory(size_t bytes)
{
    uint8_t *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        perror("mmap");
        exit(1);
    }
    madvise(at, bytes, MADV_HUGEPAGE);
    return at;
}

static inline uint64_t lab_random(void)
{
    static uint64_t state;
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline float lab_gaussian(void)
{
    float sum = -6;
    for (int i = 0; i < 12; i++)
        sum += (float)(lab_random() >> 40) * 0x1p-24f;
    return sum;
}

/** Seconds of processor time of this thread. */
static inline double lab_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline int lab_order(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline double lab_median(double *x, size_t n)
{
    qsort(x, n, sizeof *x, lab_order);
    return x[n / 2];
}

/** The floor: GB/s of reading in order. */
static inline double lab_read(const uint8_t *at, size_t bytes)
{
    __m512i sum[4] = {_mm512_setzero_si512()};
    double begin = lab_now();
    for (size_t i = 0; i + 256 <= bytes; i += 256)
        for (int j = 0; j < 4; j++)
            sum[j] = _mm512_add_epi64(sum[j], _mm512_loadu_si512(at + i + 64 * j));
    for (int j = 1; j < 4; j++)
        sum[0] = _mm512_add_epi64(sum[0], sum[j]);
    __asm__ volatile("" ::"v"(sum[0])); /* a result that nobody else wants */
    return (double)bytes / (lab_now() - begin) * 1e-9;
}

/** Pointers to n pieces from `base` on, in random order, and 64 more (the first again) to look ahead at. */
static inline const uint8_t **lab_pieces(const uint8_t *base, size_t bytes, size_t n)
{
    const uint8_t **at = malloc((n + 64) * sizeof *at);
    if (!at)
        exit(1);
    for (size_t i = 0; i < n; i++)
        at[i] = base + i * bytes;
    for (size_t i = n; i > 1; i--) {
        size_t j = lab_random() % i;
        const uint8_t *other = at[j];
        at[j] = at[i - 1];
        at[i - 1] = other;
    }
    for (size_t i = 0; i < 64; i++)
        at[n + i] = at[i % n];
    return at;
}

#endif
