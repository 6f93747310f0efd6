/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Records from pinned host memory to device memory. Never run on a GPU.
 *
 * By a kernel: a few blocks load over the bus, so that most multiprocessors are left to others. What bounds it is the
 * bus, 55 GB/s of PCIe 5 at 1 to 2 µs: 110 KB must be under way, and 16 blocks of 512 lanes with 8 loads of 8 bytes
 * each have 512 KB. A record of 520, 264, 136 or 72 bytes is 8-byte aligned at any place, so its loads are of 8 bytes;
 * a warp's are 256 bytes in a row, which the bus sees as whole sectors of 32. Sizes that are multiples of 16, such as
 * pages, take 16 bytes at a time. Neighbours on the host are read as one run because lanes go from one record into the
 * next.
 *
 * By copies: a descriptor a record, in batches. The copy engine needs no multiprocessor, but about a microsecond or
 * less for each descriptor, and the host's time to write it: for large pieces, not for records of 136 bytes. Which is
 * better from how many on is measured at start.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/warp.h"

namespace
{

constexpr uint32_t BLOCKS = 16;       /* at most; the other multiprocessors go on with what they do */
constexpr uint32_t THREADS = 512;     /* of a block */
constexpr uint32_t AT_ONCE = 8;       /* loads of a lane under way */
constexpr uint32_t DESCRIPTORS = 256; /* of a batch of copies */

__device__ __forceinline__ void load_unit(const uint8_t *from, uint2 *unit)
{
    *unit = lode_load_stream((const uint2 *)from);
}

/* Records are 8-byte aligned on the host, also when their size is a multiple of 16. */
__device__ __forceinline__ void load_unit(const uint8_t *from, uint4 *unit)
{
    if ((uintptr_t)from % 16 == 0) {
        *unit = lode_load_stream((const uint4 *)from);
        return;
    }
    uint2 low = lode_load_stream((const uint2 *)from), high = lode_load_stream((const uint2 *)from + 1);
    *unit = make_uint4(low.x, low.y, high.x, high.y);
}

/**
 * A warp takes a few records at once, and its lanes consecutive units of them: where records are neighbours on the host
 * their units are too, and the bus sees one run. All of a lane's loads are under way before the first is stored.
 */
template <class UNIT>
__global__ void __launch_bounds__(THREADS, 1)
    gather_kernel(const uint8_t *const *sources, const uint8_t *const *landed, const uint32_t *missed, uint32_t begin,
                  uint32_t end, uint32_t units, uint32_t together, uint8_t *dst, uint64_t stride)
{
    uint32_t lane = threadIdx.x % 32, warps = gridDim.x * (THREADS / 32);
    uint64_t warp = blockIdx.x * (THREADS / 32) + threadIdx.x / 32,
             until = min(end, *(const volatile uint32_t *)missed);
    for (uint64_t first = begin + warp * together; first < until; first += (uint64_t)warps * together) {
        uint32_t count = (uint32_t)min((uint64_t)together, until - first), total = count * units;
        const uint8_t *mine = NULL;
        if (lane < count) {
            mine = sources[first + lane];
            if (!mine && landed)
                mine = landed[first + lane];
        }
        for (uint32_t base = 0; base < total; base += 32 * AT_ONCE) {
            UNIT unit[AT_ONCE];
#pragma unroll
            for (uint32_t u = 0; u < AT_ONCE; u++) {
                uint32_t i = base + 32 * u + lane;
                auto from = (const uint8_t *)__shfl_sync(~0u, (unsigned long long)mine, (int)min(i / units, 31u));
                unit[u] = UNIT();
                if (i < total && from)
                    load_unit(from + (uint64_t)(i % units) * sizeof(UNIT), &unit[u]);
            }
#pragma unroll
            for (uint32_t u = 0; u < AT_ONCE; u++) {
                uint32_t i = base + 32 * u + lane;
                if (i < total)
                    *(UNIT *)(dst + (first - begin + i / units) * stride + (uint64_t)(i % units) * sizeof(UNIT)) =
                        unit[u];
            }
        }
    }
}

template <class UNIT>
lode_status_t gather_launch(lode_device_stream_t stream, const uint8_t *const *sources, const uint8_t *const *landed,
                            const uint32_t *missed, uint32_t begin, uint32_t end, size_t record_bytes, uint8_t *dst,
                            size_t stride)
{
    uint32_t units = (uint32_t)(record_bytes / sizeof(UNIT)), round = 32 * AT_ONCE;
    uint32_t together = units >= round ? 1 : round / units > 32 ? 32 : round / units;
    uint64_t warps = ((uint64_t)end - begin + together - 1) / together;
    uint64_t blocks = (warps + THREADS / 32 - 1) / (THREADS / 32);
    return LODE_LAUNCH(gather_kernel<UNIT>, blocks < BLOCKS ? (uint32_t)blocks : BLOCKS, THREADS, 0, stream, sources,
                       landed, missed, begin, end, units, together, dst, (uint64_t)stride);
}

/* ------------------------------------------------------------------- copies */

/** Copies that are collected until there are enough for a call. */
struct batch_t {
    cudaStream_t stream;
    size_t count;
    void *to[DESCRIPTORS];
    const void *from[DESCRIPTORS];
    size_t bytes[DESCRIPTORS];
};

lode_status_t batch_flush(batch_t *batch)
{
    if (batch->count == 0)
        return LODE_OK;
#if CUDART_VERSION >= 13000
    struct cudaMemcpyAttributes attributes = {};
    attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    size_t first = 0;
    LODE_CUDA(cudaMemcpyBatchAsync(batch->to, batch->from, batch->bytes, batch->count, &attributes, &first, 1,
                                   batch->stream));
#else
    for (size_t i = 0; i < batch->count; i++)
        LODE_CUDA(cudaMemcpyAsync(batch->to[i], batch->from[i], batch->bytes[i], cudaMemcpyDefault, batch->stream));
#endif
    batch->count = 0;
    return LODE_OK;
}

/* Add a copy, or lengthen the last one if this one goes on where that ends, on both sides. */
lode_status_t batch_add(batch_t *batch, uint8_t *to, const uint8_t *from, size_t bytes)
{
    size_t last = batch->count - 1;
    if (batch->count && (uint8_t *)batch->to[last] + batch->bytes[last] == to &&
        (const uint8_t *)batch->from[last] + batch->bytes[last] == from) {
        batch->bytes[last] += bytes;
        return LODE_OK;
    }
    if (batch->count == DESCRIPTORS) {
        lode_status_t status = batch_flush(batch);
        if (status != LODE_OK)
            return status;
    }
    batch->to[batch->count] = to;
    batch->from[batch->count] = from;
    batch->bytes[batch->count++] = bytes;
    return LODE_OK;
}

lode_status_t gather_copies(lode_device_stream_t stream, const uint8_t *const *sources, const uint8_t *const *landed,
                            uint32_t begin, uint32_t end, size_t record_bytes, uint8_t *dst, size_t stride)
{
    cudaStreamCaptureStatus capture;
    LODE_CUDA(cudaStreamIsCapturing((cudaStream_t)stream, &capture));
    if (capture != cudaStreamCaptureStatusNone)
        return lode_cuda_refuse(LODE_ERR_UNSUPPORTED, "gathering by copies reads pointers on the host: it cannot be "
                                                      "captured in a graph; gather by a kernel");
    batch_t batch;
    batch.stream = (cudaStream_t)stream;
    batch.count = 0;
    for (uint32_t i = begin; i < end; i++, dst += stride) {
        const uint8_t *from = sources[i] ? sources[i] : landed ? landed[i] : NULL;
        if (!from)
            LODE_CUDA(cudaMemsetAsync(dst, 0, record_bytes, batch.stream));
        lode_status_t status = from ? batch_add(&batch, dst, from, record_bytes) : LODE_OK;
        if (status != LODE_OK)
            return status;
    }
    return batch_flush(&batch);
}

lode_status_t gather(lode_device_stream_t stream, lode_gather_way_t way, const uint8_t *const *sources,
                     const uint8_t *const *landed, const uint32_t *missed, uint32_t begin, uint32_t end,
                     size_t record_bytes, uint8_t *dst, size_t stride)
{
    if (record_bytes == 0 || record_bytes % 8 || stride % 8 || stride < record_bytes || (uintptr_t)dst % 8 ||
        record_bytes >= (size_t)1 << 31)
        return lode_cuda_refuse(LODE_ERR_INVALID,
                                "gathering records of %zu bytes to %p, %zu apart: all three must be multiples of 8, "
                                "records no longer than the distance",
                                record_bytes, (void *)dst, stride);
    if (way == LODE_GATHER_COPIES) {
        uint32_t count = __atomic_load_n(missed, __ATOMIC_ACQUIRE);
        return gather_copies(stream, sources, landed, begin, count < end ? count : end, record_bytes, dst, stride);
    }
    if (begin >= end)
        return LODE_OK;
    bool wide = record_bytes % 16 == 0 && stride % 16 == 0 && (uintptr_t)dst % 16 == 0;
    return wide ? gather_launch<uint4>(stream, sources, landed, missed, begin, end, record_bytes, dst, stride)
                : gather_launch<uint2>(stream, sources, landed, missed, begin, end, record_bytes, dst, stride);
}

/* -------------------------------------------------------------- calibration */

constexpr uint32_t TRIALS = 5;
constexpr size_t SAMPLE_BYTES = 32 << 20; /* at most */
const uint32_t sample_counts[] = {16, 64, 256, 1024, 4096};
constexpr uint32_t SAMPLES = sizeof sample_counts / sizeof *sample_counts;

/** What a calibration measures on: records in no order in pinned memory, and events around each trial. */
struct sample_t {
    uint32_t count;          /* records */
    uint8_t *host, *device;  /* count records each */
    const uint8_t **sources; /* pinned, then the number of them */
    cudaEvent_t from, to;
};

lode_status_t sample_make(size_t record_bytes, sample_t *sample)
{
    size_t pointers = sample->count * sizeof(uint8_t *);
    LODE_CUDA(cudaEventCreate(&sample->from));
    LODE_CUDA(cudaEventCreate(&sample->to));
    LODE_CUDA(cudaHostAlloc((void **)&sample->host, sample->count * record_bytes, cudaHostAllocDefault));
    LODE_CUDA(cudaHostAlloc((void **)&sample->sources, pointers + sizeof(uint32_t), cudaHostAllocDefault));
    LODE_CUDA(cudaMalloc(&sample->device, sample->count * record_bytes));
    for (size_t i = 0; i < sample->count * record_bytes; i++)
        sample->host[i] = (uint8_t)(i * 2654435761u >> 13);
    for (uint32_t i = 0; i < sample->count;
         i++) /* an odd number times i, modulo a power of two, is every number once */
        sample->sources[i] = sample->host + (size_t)(i * 40503u % sample->count) * record_bytes;
    memcpy(sample->sources + sample->count, &sample->count, sizeof sample->count);
    return LODE_OK;
}

void sample_free(sample_t *sample)
{
    if (sample->from)
        (void)cudaEventDestroy(sample->from);
    if (sample->to)
        (void)cudaEventDestroy(sample->to);
    (void)cudaFreeHost(sample->host);
    (void)cudaFreeHost(sample->sources);
    (void)cudaFree(sample->device);
}

/* The least time of some trials, the first of them not counted. */
lode_status_t sample_time(lode_device_stream_t stream, const sample_t *sample, lode_gather_way_t way, uint32_t count,
                          size_t record_bytes, float *ms)
{
    float least = INFINITY, now;
    for (uint32_t i = 0; i <= TRIALS; i++) {
        LODE_CUDA(cudaEventRecord(sample->from, (cudaStream_t)stream));
        lode_status_t status =
            gather(stream, way, sample->sources, NULL, (const uint32_t *)(sample->sources + sample->count), 0, count,
                   record_bytes, sample->device, record_bytes);
        if (status != LODE_OK)
            return status;
        LODE_CUDA(cudaEventRecord(sample->to, (cudaStream_t)stream));
        LODE_CUDA(cudaEventSynchronize(sample->to));
        LODE_CUDA(cudaEventElapsedTime(&now, sample->from, sample->to));
        least = i && now < least ? now : least;
    }
    *ms = least;
    return LODE_OK;
}

/* Both ways with the first n counts. */
lode_status_t sample_measure(lode_device_stream_t stream, uint32_t n, size_t record_bytes, float *kernel_ms,
                             float *copies_ms)
{
    sample_t sample = {};
    sample.count = sample_counts[n - 1];
    lode_status_t status = sample_make(record_bytes, &sample);
    for (uint32_t i = 0; i < n && status == LODE_OK; i++) {
        status = sample_time(stream, &sample, LODE_GATHER_KERNEL, sample_counts[i], record_bytes, &kernel_ms[i]);
        if (status == LODE_OK)
            status = sample_time(stream, &sample, LODE_GATHER_COPIES, sample_counts[i], record_bytes, &copies_ms[i]);
    }
    if (status != LODE_OK) /* what was enqueued may still read the sample */
        (void)cudaStreamSynchronize((cudaStream_t)stream);
    sample_free(&sample);
    return status;
}

lode_status_t gather_calibrate(lode_device_h device, lode_device_stream_t stream, size_t record_bytes,
                               uint32_t *copies_from)
{
    float kernel_ms[SAMPLES], copies_ms[SAMPLES];
    uint32_t n = 0;
    int before;
    while (n < SAMPLES && sample_counts[n] * record_bytes <= SAMPLE_BYTES)
        n++;
    if (n == 0)
        return lode_cuda_refuse(LODE_ERR_INVALID, "calibrating with records of %zu bytes: %zu is the most",
                                record_bytes, SAMPLE_BYTES / sample_counts[0]);
    lode_status_t status = lode_cuda_table()->enter(device, &before);
    if (status != LODE_OK)
        return status;
    status = sample_measure(stream, n, record_bytes, kernel_ms, copies_ms);
    lode_cuda_table()->leave(device, before);
    if (status == LODE_OK)
        *copies_from = lode_gather_choose(sample_counts, kernel_ms, copies_ms, n);
    return status;
}

} // namespace

extern "C" void lode_cuda_fill_gather(lode_device_ops_t *ops)
{
    ops->gather = gather;
    ops->gather_calibrate = gather_calibrate;
}
