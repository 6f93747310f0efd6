/* SPDX-License-Identifier: Apache-2.0 */
/** @file internal.h What the two halves of the emulator, threads (emulator.cc) and memory and streams (runtime.cc),
 * share. */
#ifndef LODE_EMULATOR_INTERNAL_H
#define LODE_EMULATOR_INTERNAL_H

#include "cuda_runtime.h"
#include "emulator.h"

/** Run a kernel to its end. Device memory is open. */
void lode_emulated_run(dim3 grid, dim3 block, size_t shared_bytes, const char *name,
                       const std::function<void()> &thread);
/** Say what went wrong and where, and abort. Safe in a signal handler. */
[[noreturn]] void lode_emulated_stop(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t lode_emulated_random(void);
extern lode_emulator_t lode_emulated;

#endif
