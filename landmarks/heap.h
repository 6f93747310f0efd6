/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file heap.h
 * @brief Extents of a shared mapping: power-of-two sizes over a bump pointer, with free lists.
 *
 * All state is in the mapping, as offsets. One process at a time takes and gives. A process killed inside any of
 * these leaves at worst an extent that is neither taken nor free: every link is one store, in an order
 * that never names an extent twice.
 */
#ifndef LODE_HEAP_H
#define LODE_HEAP_H

#include <stdatomic.h>

#include "base/base.h"

/** Extents are multiples of this and aligned to it. */
#define LODE_HEAP_UNIT ((uint64_t)64 << 10)
#define LODE_HEAP_CLASSES 36

/** Lies in the mapping. */
typedef struct lode_heap_state {
    uint64_t begin, end; /**< offsets of the heap in the mapping, multiples of the unit; constant */
    uint64_t links; /**< offset of an _Atomic uint64_t a unit: the next free extent after one that is free; constant */
    _Atomic uint64_t bump;
    _Atomic uint64_t free[LODE_HEAP_CLASSES]; /**< first free extent of LODE_HEAP_UNIT << class bytes; 0: none */
} lode_heap_state_t;

/** Lies in the process. */
typedef struct lode_heap {
    uint8_t *base;
    int fd; /**< −1: plain memory, nothing to reserve */
    lode_heap_state_t *state;
} lode_heap_t;

/** Bytes of links that a heap of @p bytes wants. */
uint64_t lode_heap_link_bytes(uint64_t bytes);
/** @p bytes rounded up to the size of an extent that holds them. */
uint64_t lode_heap_extent_bytes(uint64_t bytes);
/** Zero-filled bytes without memory behind them yet. @return its offset, 0 if there is no room. */
uint64_t lode_heap_take(const lode_heap_t *heap, uint64_t bytes);
/** Give an extent of @p bytes back; it is zero-filled and without memory again (lode_heap_clear()). */
void lode_heap_give(const lode_heap_t *heap, uint64_t offset, uint64_t bytes);
/**
 * Put memory behind a range of the mapping, so that writing to it cannot raise SIGBUS.
 * @return LODE_ERR_FULL (the file system has no room), LODE_ERR_IO.
 */
lode_status_t lode_heap_reserve(const lode_heap_t *heap, uint64_t offset, uint64_t bytes);
/** Return the memory behind a range to the system. @return false if the caller has to write zeros instead. */
bool lode_heap_punch(const lode_heap_t *heap, uint64_t offset, uint64_t bytes);
/** Bytes of the heap, and of those never taken. */
uint64_t lode_heap_bytes(const lode_heap_t *heap, uint64_t *fresh);

#endif
