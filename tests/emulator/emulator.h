/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file emulator.h
 * @brief What a test can set of the emulated devices, and ask about them.
 *
 * The environment sets some of it before the first call: LODE_EMULATOR_SEED, LODE_EMULATOR_EAGER (1), and
 * LODE_EMULATOR_MEMORY (bytes of one device).
 */
#ifndef LODE_EMULATOR_H
#define LODE_EMULATOR_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct lode_emulator {
    uint64_t memory_bytes; /**< of each device; 512 MiB */
    uint32_t devices;      /**< 1 */
    int major, minor;      /**< compute capability; 9.0 */
    bool driver;           /**< is there one; true */
    bool eager;            /**< work runs when it is enqueued, not when it is waited for */
    uint64_t seed;         /**< of the order of blocks and threads */
    uint64_t fail_alloc;   /**< the n-th allocation or registration from now on fails; 0: none */
} lode_emulator_t;

/** Whether devices are emulated; else (absent.c) the functions below do nothing. */
bool lode_emulator_here(void);
void lode_emulator_get(lode_emulator_t *settings);
void lode_emulator_set(const lode_emulator_t *settings);

/** Kernels that have run, bytes of device memory in use, allocations and registrations of memory that were asked for.
 */
typedef struct lode_emulator_counts {
    uint64_t kernels, bytes_in_use, allocs;
    uint64_t live; /**< streams, events, graphs, device and pinned memory that were made and not given back */
} lode_emulator_counts_t;
void lode_emulator_count(lode_emulator_counts_t *counts);

#ifdef __cplusplus
}
#endif
#endif
