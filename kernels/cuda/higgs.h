/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file higgs.h
 * @brief The HIGGS grids in device memory: the constants of kernels/higgs_grid.c, compiled once more.
 *
 * Each .cu file that includes this has its own copy (2 and 4 KiB), so that no device code is linked across files.
 */
#ifndef LODE_CUDA_HIGGS_H
#define LODE_CUDA_HIGGS_H

#include "kernels/cuda/cuda.h"

#define _Alignas(bytes) [[maybe_unused]] static __device__
#define lode_higgs_grid2 lode_device_grid2
#define lode_higgs_grid4 lode_device_grid4
#include "kernels/higgs_grid.c"
#undef _Alignas
#undef lode_higgs_grid2
#undef lode_higgs_grid4

#endif
