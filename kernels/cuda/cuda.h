/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file cuda.h
 * @brief What the files of kernels/cuda/ share. Each fills its part of the table of kernels/device.h.
 *
 * The same sources are compiled by nvcc, and by a C++ compiler against tests/emulator/ (LODE_EMULATED), which runs a
 * block's threads as fibers: so kernels are started by LODE_LAUNCH and use the operations of warp.h instead of PTX.
 */
#ifndef LODE_CUDA_H
#define LODE_CUDA_H

#include <cuda_runtime.h>

#include "kernels/device.h"

#ifdef LODE_EMULATED
#define LODE_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                                 \
    lode_cuda_launched(                                                                                             \
        lode_emulate_launch((grid), (block), (shared_bytes), (cudaStream_t)(stream), #kernel, kernel, __VA_ARGS__), \
        #kernel)
/** The block's dynamic shared memory, 128-byte aligned. */
#define LODE_SHARED(type, name) type *name = (type *)lode_emulate_shared()
#else
#define LODE_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                             \
    lode_cuda_launched(                                                                                         \
        (kernel<<<(grid), (block), (shared_bytes), (cudaStream_t)(stream)>>>(__VA_ARGS__), cudaGetLastError()), \
        #kernel)
#define LODE_SHARED(type, name)                                         \
    extern __shared__ __align__(128) unsigned char lode_shared_bytes[]; \
    type *name = (type *)lode_shared_bytes
#endif

extern "C" {
/** Note why a call failed, for the table's error(). @return ours for CUDA's code */
lode_status_t lode_cuda_failed(cudaError_t error, const char *call);
/** Note a sentence of our own. */
lode_status_t lode_cuda_refuse(lode_status_t status, const char *format, ...) __attribute__((format(printf, 2, 3)));
static inline lode_status_t lode_cuda_launched(cudaError_t error, const char *kernel)
{
    return error == cudaSuccess ? LODE_OK : lode_cuda_failed(error, kernel);
}

/* Each file's part of the table. */
void lode_cuda_fill_device(lode_device_ops_t *ops); /* device.cu: devices, memory, streams, events, graphs */
void lode_cuda_fill_query(lode_device_ops_t *ops);  /* query.cu: widen, rotate, quantise, prepare */
void lode_cuda_fill_score(lode_device_ops_t *ops);  /* score.cu */
void lode_cuda_fill_select(lode_device_ops_t *ops); /* select.cu */
void lode_cuda_fill_where(lode_device_ops_t *ops);  /* where.cu: want, where, keep */
void lode_cuda_fill_gather(lode_device_ops_t *ops); /* gather.cu */
void lode_cuda_fill_attend(lode_device_ops_t *ops); /* attend.cu: attend, merge */
/** The whole table, with this name. */
const lode_device_ops_t *lode_cuda_table(void);
}

#define LODE_TRY(call)                      \
    do {                                    \
        lode_status_t lode_status = (call); \
        if (lode_status != LODE_OK)         \
            return lode_status;             \
    } while (0)

/** Call CUDA; on an error note it and return. */
#define LODE_CUDA(call)                                 \
    do {                                                \
        cudaError_t lode_error = (call);                \
        if (lode_error != cudaSuccess)                  \
            return lode_cuda_failed(lode_error, #call); \
    } while (0)

#endif
