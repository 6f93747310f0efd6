/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file device_check.h
 * @brief What tests of device operations share: a device and a stream, random numbers from a seed that is printed,
 * poisoned arrays on the device with guards around them.
 *
 * LODEMARK_TEST_SEED=n repeats a failing run.
 */
#ifndef LODE_DEVICE_CHECK_H
#define LODE_DEVICE_CHECK_H

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "device_open.h"
#include "kernels/internal.h"

#define GUARD_BYTES 256
#define POISON 0xa5

typedef struct check {
    const lode_device_ops_t *ops;
    const lode_ops_t *scalar;
    lode_device_h device;
    int before;
    lode_device_stream_t stream;
    uint64_t seed, state;
} check_t;

#define expect(c, condition, format, ...) \
    cr_assert(condition, "%s; LODEMARK_TEST_SEED=%llu: " format, #condition, (unsigned long long)(c)->seed, __VA_ARGS__)

/** A call of the device's table that must succeed. */
#define DEVICE(c, call)                                                                                \
    do {                                                                                               \
        lode_status_t check_status = (c)->ops->call;                                                   \
        cr_assert(check_status == LODE_OK, "%s: %d, %s", #call, (int)check_status, (c)->ops->error()); \
    } while (0)

static inline double check_uniform(check_t *c) /* (0, 1) */
{
    c->state += 0x9e3779b97f4a7c15u;
    uint64_t z = (c->state ^ (c->state >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((double)((z ^ (z >> 31)) >> 11) + 0.5) * 0x1p-53;
}

static inline float check_gaussian(check_t *c)
{
    double radius = sqrt(-2 * log(check_uniform(c)));
    return (float)(radius * cos(2 * M_PI * check_uniform(c)));
}

static inline uint32_t check_below(check_t *c, uint32_t n)
{
    return (uint32_t)(check_uniform(c) * n);
}

static inline check_t check_open(uint64_t seed)
{
    check_t c = {.seed = device_seed(seed)};
    c.state = c.seed;
    cr_assert(lode_ops_get("scalar", &c.scalar) == LODE_OK);
    device_open(&c.ops, &c.device, &c.before, &c.stream);
    return c;
}

static inline void check_close(check_t *c)
{
    device_close(c->ops, &c->device, c->before, c->stream);
}

/** An array on the device, and a copy of what it was made from, poison without. */
typedef struct array {
    uint8_t *at;
    size_t bytes;
    uint8_t *whole, *host;
} array_t;

/** @param from  NULL: poison */
static inline array_t array_make(check_t *c, const void *from, size_t bytes)
{
    size_t total = bytes + 2 * GUARD_BYTES;
    array_t a = {.bytes = bytes, .host = malloc(total)};
    cr_assert(a.host != NULL);
    memset(a.host, POISON, total);
    if (from)
        memcpy(a.host + GUARD_BYTES, from, bytes);
    DEVICE(c, alloc(c->device, total, (void **)&a.whole));
    a.at = a.whole + GUARD_BYTES;
    DEVICE(c, copy(c->stream, a.whole, a.host, total));
    DEVICE(c, stream_wait(c->stream));
    return a;
}

/** Bring it to the host, check what lies around it, free it on the device. @return its bytes; the caller frees a->host
 */
static inline void *array_take(check_t *c, array_t *a)
{
    size_t total = a->bytes + 2 * GUARD_BYTES;
    DEVICE(c, copy(c->stream, a->host, a->whole, total));
    DEVICE(c, stream_wait(c->stream));
    for (size_t i = 0; i < GUARD_BYTES; i++) {
        expect(c, a->host[i] == POISON, "wrote %zu bytes before an array", GUARD_BYTES - i);
        expect(c, a->host[total - 1 - i] == POISON, "wrote %zu bytes behind an array", GUARD_BYTES - i);
    }
    c->ops->free(c->device, a->whole);
    return a->host + GUARD_BYTES;
}

static inline void array_free(check_t *c, array_t *a)
{
    c->ops->free(c->device, a->whole);
    free(a->host);
}

/* What vectors of a test are: all alike is where narrow sums would overflow. */
typedef enum kind { RANDOM, ALL_LOW, ALL_HIGH, SIGNS, DENORMAL, OUTLIER, ZERO, KINDS } kind_t;

static inline void check_fill(check_t *c, kind_t kind, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float sign = check_below(c, 2) ? 1.0f : -1.0f;
        x[i] = kind == ALL_LOW    ? -3.0e4f
               : kind == ALL_HIGH ? 3.0e4f
               : kind == SIGNS    ? 3.0e4f * sign
               : kind == DENORMAL ? check_gaussian(c) * 1e-40f
               : kind == ZERO     ? 0
                                  : check_gaussian(c);
    }
    if (kind == OUTLIER && n)
        x[check_below(c, (uint32_t)n)] = 1.0e5f;
}

static const lode_landmark_spec_t check_specs[] = {
    {LODE_LANDMARK_UNIFORM, 8, 1, 0, LODE_INDEX_OFF}, {LODE_LANDMARK_UNIFORM, 4, 1, 0, LODE_INDEX_OFF},
    {LODE_LANDMARK_UNIFORM, 2, 1, 0, LODE_INDEX_OFF}, {LODE_LANDMARK_UNIFORM, 1, 1, 0, LODE_INDEX_OFF},
    {LODE_LANDMARK_HIGGS, 4, 1, 0, LODE_INDEX_OFF},   {LODE_LANDMARK_HIGGS, 2, 1, 0, LODE_INDEX_OFF},
    {LODE_LANDMARK_MEAN, 16, 8, 0, LODE_INDEX_OFF},
};
enum { CHECK_SPECS = sizeof check_specs / sizeof *check_specs };
static const uint32_t check_dims[] = {64, 128, 256};

#endif
