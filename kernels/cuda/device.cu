/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Devices, memory, streams, events and graphs: the runtime's calls, their errors made sentences. There is one kernel,
 * which does nothing but tell whether this build has code for a device. Never run on a GPU.
 *
 * A call that makes something on a device (memory, a stream) leaves the calling thread's device as it was.
 */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda.h"

enum { LEAST_MAJOR = 8 };

struct lode_device {
    int ordinal;
};

static thread_local char why[512];

static const char *device_error(void)
{
    return why;
}

lode_status_t lode_cuda_refuse(lode_status_t status, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(why, sizeof why, format, list);
    va_end(list);
    return status;
}

static lode_status_t status_of(cudaError_t error)
{
    switch (error) {
    case cudaErrorMemoryAllocation:
        return LODE_ERR_NO_MEMORY;
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorNotSupported:
        return LODE_ERR_UNSUPPORTED;
    case cudaErrorInvalidValue:
    case cudaErrorInvalidDevice:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorHostMemoryAlreadyRegistered:
    case cudaErrorHostMemoryNotRegistered:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureUnjoined:
    case cudaErrorStreamCaptureIsolation:
    case cudaErrorStreamCaptureImplicit:
    case cudaErrorStreamCaptureMerge:
    case cudaErrorCapturedEvent:
        return LODE_ERR_INVALID;
    default:
        return LODE_ERR_DEVICE;
    }
}

lode_status_t lode_cuda_failed(cudaError_t error, const char *call)
{
    (void)cudaGetLastError(); /* or the next launch would be blamed for it */
    const char *hint = "";
    if (error == cudaErrorInvalidResourceHandle)
        hint = "; a stream or event of another device than this thread's (enter()), or one that is gone?";
    else if (error == cudaErrorNoKernelImageForDevice)
        hint = "; build with LODEMARK_CUDA_ARCHITECTURES that have this device's";
    else if (status_of(error) == LODE_ERR_DEVICE)
        hint = "; it may come from work that was enqueued before, and this process can then use the device no more";
    return lode_cuda_refuse(status_of(error), "%.*s: %s (%s)%s", (int)strcspn(call, "("), call,
                            cudaGetErrorString(error), cudaGetErrorName(error), hint);
}

/* ----------------------------------------------------------------- devices */

static lode_status_t device_count(uint32_t *devices)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error == cudaErrorInsufficientDriver) {
        int driver = 0, runtime = 0;
        (void)cudaGetLastError();
        (void)cudaRuntimeGetVersion(&runtime);
        if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0)
            return lode_cuda_refuse(LODE_ERR_UNSUPPORTED, "there is no NVIDIA driver on this machine");
        return lode_cuda_refuse(LODE_ERR_UNSUPPORTED,
                                "the NVIDIA driver is for CUDA %d.%d, this build needs one for %d.%d or newer",
                                driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    }
    if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
        (void)cudaGetLastError();
        return lode_cuda_refuse(LODE_ERR_UNSUPPORTED, "no CUDA device is here (is it in CUDA_VISIBLE_DEVICES?)");
    }
    if (error != cudaSuccess)
        return lode_cuda_failed(error, "cudaGetDeviceCount");
    *devices = (uint32_t)count;
    return LODE_OK;
}

static void write_uuid(const cudaUUID_t *uuid, char *text, size_t room)
{
    size_t n = (size_t)snprintf(text, room, "GPU-");
    for (int i = 0; i < 16; i++)
        n += (size_t)snprintf(text + n, room - n, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
                              (unsigned char)uuid->bytes[i]);
}

/* Its thread's device, put back when it is left. */
static lode_status_t device_enter(lode_device_h device, int *before)
{
    int old;
    LODE_CUDA(cudaGetDevice(&old));
    if (old != device->ordinal)
        LODE_CUDA(cudaSetDevice(device->ordinal));
    *before = old;
    return LODE_OK;
}

static void device_leave(lode_device_h device, int before)
{
    if (before != device->ordinal)
        (void)cudaSetDevice(before);
}

static lode_status_t device_use(lode_device_h device)
{
    enum cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    LODE_CUDA(cudaSetDevice(device->ordinal));
    LODE_CUDA(cudaThreadExchangeStreamCaptureMode(&mode));
    return LODE_OK;
}

static lode_status_t free_bytes(int ordinal, uint64_t *bytes)
{
    struct lode_device device = {ordinal};
    size_t left, total;
    int before = 0;
    LODE_TRY(device_enter(&device, &before));
    cudaError_t error = cudaMemGetInfo(&left, &total);
    device_leave(&device, before);
    if (error != cudaSuccess)
        return lode_cuda_failed(error, "cudaMemGetInfo");
    *bytes = left;
    return LODE_OK;
}

static lode_status_t device_query(uint32_t ordinal, lode_device_info_t *info)
{
    struct cudaDeviceProp p;
    lode_device_info_t out = {};
    uint32_t devices;
    LODE_TRY(device_count(&devices));
    if (ordinal >= devices)
        return lode_cuda_refuse(LODE_ERR_INVALID, "device %u: there are %u, numbered from 0", ordinal, devices);
    LODE_CUDA(cudaGetDeviceProperties(&p, (int)ordinal));
    LODE_CUDA(cudaDeviceGetPCIBusId(out.bus, sizeof out.bus, (int)ordinal));
    for (char *c = out.bus; *c; c++)
        *c = (char)tolower((unsigned char)*c);
    snprintf(out.name, sizeof out.name, "%.*s", (int)sizeof out.name - 1, p.name);
    write_uuid(&p.uuid, out.uuid, sizeof out.uuid);
    out.ordinal = (int)ordinal;
    out.major = p.major;
    out.minor = p.minor;
    out.processors = (uint32_t)p.multiProcessorCount;
    out.memory_bytes = p.totalGlobalMem;
    out.l2_bytes = (uint64_t)p.l2CacheSize;
    LODE_TRY(free_bytes((int)ordinal, &out.free_bytes));
    *info = out;
    return LODE_OK;
}

__global__ static void probe(int *nothing)
{
    if (nothing)
        *nothing = 0;
}

/* What else than its age a device must be. */
static lode_status_t check_device(int ordinal)
{
    int same = 0;
    cudaFuncAttributes attributes;
    LODE_CUDA(cudaDeviceGetAttribute(&same, cudaDevAttrCanUseHostPointerForRegisteredMem, ordinal));
    if (!same)
        return lode_cuda_refuse(LODE_ERR_UNSUPPORTED, "device %d does not see pinned memory at the host's addresses",
                                ordinal);
    LODE_CUDA(cudaFuncGetAttributes(&attributes, probe));
    return LODE_OK;
}

static lode_status_t device_open(uint32_t ordinal, lode_device_h *device)
{
    lode_device_info_t info;
    LODE_TRY(device_query(ordinal, &info));
    if (info.major < LEAST_MAJOR)
        return lode_cuda_refuse(LODE_ERR_UNSUPPORTED,
                                "device %u (%s) has compute capability %d.%d; %d.0 (Ampere) or newer is needed",
                                ordinal, info.name, info.major, info.minor, LEAST_MAJOR);
    struct lode_device *opened = (struct lode_device *)malloc(sizeof *opened);
    if (!opened)
        return lode_cuda_refuse(LODE_ERR_NO_MEMORY, "no memory for a handle of device %u", ordinal);
    opened->ordinal = (int)ordinal;
    int before = 0;
    lode_status_t status = device_enter(opened, &before);
    if (status == LODE_OK) {
        status = check_device(opened->ordinal);
        device_leave(opened, before);
    }
    if (status != LODE_OK) {
        free(opened);
        return status;
    }
    *device = opened;
    return LODE_OK;
}

static void device_close(lode_device_h *device)
{
    free(*device);
    *device = NULL;
}

/* ------------------------------------------------------------------ memory */

/* Out of memory wants to know how much; the sentence of the failed call is written already. */
static lode_status_t no_memory(lode_device_h device, const char *call, const char *kind, size_t bytes)
{
    uint64_t left = 0;
    char available[64] = "";
    (void)cudaGetLastError();
    if (free_bytes(device->ordinal, &left) == LODE_OK)
        snprintf(available, sizeof available, ", device %d has %llu free", device->ordinal, (unsigned long long)left);
    return lode_cuda_refuse(LODE_ERR_NO_MEMORY, "%s: %zu bytes of %s memory were asked%s", call, bytes, kind,
                            available);
}

static lode_status_t device_alloc(lode_device_h device, size_t bytes, void **memory)
{
    int before = 0;
    void *got = NULL;
    LODE_TRY(device_enter(device, &before));
    cudaError_t error = cudaMalloc(&got, bytes);
    device_leave(device, before);
    if (error == cudaErrorMemoryAllocation)
        return no_memory(device, "cudaMalloc", "device", bytes);
    if (error != cudaSuccess)
        return lode_cuda_failed(error, "cudaMalloc");
    *memory = got;
    return LODE_OK;
}

static void device_free(lode_device_h device, void *memory)
{
    (void)device;
    if (memory && cudaFree(memory) != cudaSuccess)
        (void)cudaGetLastError();
}

static lode_status_t pinned_alloc(lode_device_h device, size_t bytes, void **memory)
{
    int before = 0;
    void *got = NULL;
    LODE_TRY(device_enter(device, &before));
    cudaError_t error = cudaHostAlloc(&got, bytes, cudaHostAllocPortable | cudaHostAllocMapped);
    device_leave(device, before);
    if (error == cudaErrorMemoryAllocation)
        return no_memory(device, "cudaHostAlloc", "pinned", bytes);
    if (error != cudaSuccess)
        return lode_cuda_failed(error, "cudaHostAlloc");
    *memory = got;
    return LODE_OK;
}

static void pinned_free(lode_device_h device, void *memory)
{
    (void)device;
    if (memory && cudaFreeHost(memory) != cudaSuccess)
        (void)cudaGetLastError();
}

static lode_status_t device_pin(lode_device_h device, void *memory, size_t bytes)
{
    int before = 0;
    LODE_TRY(device_enter(device, &before));
    cudaError_t error = cudaHostRegister(memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped);
    device_leave(device, before);
    if (error == cudaErrorMemoryAllocation)
        return no_memory(device, "cudaHostRegister", "pinned", bytes);
    return error == cudaSuccess ? LODE_OK : lode_cuda_failed(error, "cudaHostRegister");
}

static void device_unpin(lode_device_h device, void *memory)
{
    (void)device;
    if (memory && cudaHostUnregister(memory) != cudaSuccess)
        (void)cudaGetLastError();
}

static lode_status_t attributes_of(const void *pointer, struct cudaPointerAttributes *attributes)
{
    cudaError_t error = cudaPointerGetAttributes(attributes, pointer);
    if (error == cudaErrorInvalidValue) /* drivers before CUDA 11 said so of memory that they do not know */
        attributes->type = cudaMemoryTypeUnregistered;
    else if (error != cudaSuccess)
        return lode_cuda_failed(error, "cudaPointerGetAttributes");
    (void)cudaGetLastError();
    return LODE_OK;
}

static lode_status_t memory_of(lode_device_h device, const void *pointer, lode_memory_t *memory)
{
    struct cudaPointerAttributes attributes;
    LODE_TRY(attributes_of(pointer, &attributes));
    switch (attributes.type) {
    case cudaMemoryTypeUnregistered:
        *memory = LODE_MEMORY_HOST;
        break;
    case cudaMemoryTypeHost:
        *memory = LODE_MEMORY_PINNED;
        break;
    default: /* managed memory moves to whoever touches it, so it is this device's too */
        *memory = attributes.type == cudaMemoryTypeDevice && attributes.device != device->ordinal
                      ? LODE_MEMORY_OTHER_DEVICE
                      : LODE_MEMORY_DEVICE;
    }
    return LODE_OK;
}

static lode_status_t is_capturing(cudaStream_t stream, bool *capturing)
{
    enum cudaStreamCaptureStatus status;
    LODE_CUDA(cudaStreamIsCapturing(stream, &status));
    *capturing = status != cudaStreamCaptureStatusNone;
    return LODE_OK;
}

/* A graph would read or write pageable memory at every replay, when the caller has long done something else with it. */
static lode_status_t check_captured_copy(cudaStream_t stream, const void *to, const void *from)
{
    bool capturing = false;
    struct cudaPointerAttributes attributes;
    LODE_TRY(is_capturing(stream, &capturing));
    for (int end = 0; capturing && end < 2; end++) {
        LODE_TRY(attributes_of(end ? from : to, &attributes));
        if (attributes.type == cudaMemoryTypeUnregistered)
            return lode_cuda_refuse(LODE_ERR_INVALID,
                                    "a copy %s memory that is not pinned (%p) cannot be captured in a graph",
                                    end ? "from" : "to", end ? from : to);
    }
    return LODE_OK;
}

static lode_status_t device_copy(lode_device_stream_t stream, void *to, const void *from, size_t bytes)
{
    if (bytes == 0)
        return LODE_OK;
    LODE_TRY(check_captured_copy((cudaStream_t)stream, to, from));
    LODE_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, (cudaStream_t)stream));
    return LODE_OK;
}

static lode_status_t device_fill(lode_device_stream_t stream, void *to, uint8_t byte, size_t bytes)
{
    if (bytes > 0)
        LODE_CUDA(cudaMemsetAsync(to, byte, bytes, (cudaStream_t)stream));
    return LODE_OK;
}

/* -------------------------------------------------- streams, events, graphs */

static lode_status_t stream_create(lode_device_h device, lode_device_stream_t *stream)
{
    int before = 0;
    cudaStream_t made;
    LODE_TRY(device_enter(device, &before));
    cudaError_t error = cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking);
    device_leave(device, before);
    if (error != cudaSuccess)
        return lode_cuda_failed(error, "cudaStreamCreateWithFlags");
    *stream = made;
    return LODE_OK;
}

static void stream_destroy(lode_device_stream_t stream)
{
    if (stream && cudaStreamDestroy((cudaStream_t)stream) != cudaSuccess)
        (void)cudaGetLastError();
}

static lode_status_t stream_wait(lode_device_stream_t stream)
{
    LODE_CUDA(cudaStreamSynchronize((cudaStream_t)stream));
    return LODE_OK;
}

#if CUDART_VERSION >= 12080
static lode_status_t on_device(lode_device_h device, cudaStream_t stream, bool *same)
{
    int ordinal;
    LODE_CUDA(cudaStreamGetDevice(stream, &ordinal));
    *same = ordinal == device->ordinal;
    return LODE_OK;
}
#else
/* An event can be recorded in streams of its own device only. */
static lode_status_t on_device(lode_device_h device, cudaStream_t stream, bool *same)
{
    int before = 0;
    cudaEvent_t event;
    LODE_TRY(device_enter(device, &before));
    cudaError_t error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
    device_leave(device, before);
    if (error != cudaSuccess)
        return lode_cuda_failed(error, "cudaEventCreateWithFlags");
    error = cudaEventRecord(event, stream);
    (void)cudaGetLastError();
    cudaEventDestroy(event);
    *same = error != cudaErrorInvalidResourceHandle;
    return error == cudaSuccess || !*same ? LODE_OK : lode_cuda_failed(error, "cudaEventRecord");
}
#endif

static lode_status_t stream_check(lode_device_h device, lode_device_stream_t stream, bool *capturing)
{
    bool same = false;
    LODE_TRY(on_device(device, (cudaStream_t)stream, &same));
    if (!same)
        return lode_cuda_refuse(LODE_ERR_INVALID, "the stream is of another device than device %d", device->ordinal);
    return is_capturing((cudaStream_t)stream, capturing);
}

static lode_status_t event_create(lode_device_h device, lode_device_event_t *event)
{
    int before = 0;
    cudaEvent_t made;
    LODE_TRY(device_enter(device, &before));
    cudaError_t error = cudaEventCreateWithFlags(&made, cudaEventDefault);
    device_leave(device, before);
    if (error != cudaSuccess)
        return lode_cuda_failed(error, "cudaEventCreateWithFlags");
    *event = made;
    return LODE_OK;
}

static void event_destroy(lode_device_event_t event)
{
    if (event && cudaEventDestroy((cudaEvent_t)event) != cudaSuccess)
        (void)cudaGetLastError();
}

static lode_status_t event_record(lode_device_event_t event, lode_device_stream_t stream)
{
    LODE_CUDA(cudaEventRecord((cudaEvent_t)event, (cudaStream_t)stream));
    return LODE_OK;
}

static lode_status_t event_follow(lode_device_stream_t stream, lode_device_event_t event)
{
    LODE_CUDA(cudaStreamWaitEvent((cudaStream_t)stream, (cudaEvent_t)event, 0));
    return LODE_OK;
}

static lode_status_t event_wait(lode_device_event_t event)
{
    LODE_CUDA(cudaEventSynchronize((cudaEvent_t)event));
    return LODE_OK;
}

static lode_status_t event_done(lode_device_event_t event, bool *done)
{
    cudaError_t error = cudaEventQuery((cudaEvent_t)event);
    if (error != cudaSuccess && error != cudaErrorNotReady)
        return lode_cuda_failed(error, "cudaEventQuery");
    if (error == cudaErrorNotReady)
        (void)cudaGetLastError(); /* no error, and yet it may stay as one */
    *done = error == cudaSuccess;
    return LODE_OK;
}

static lode_status_t event_between(lode_device_event_t from, lode_device_event_t to, float *ms)
{
    LODE_CUDA(cudaEventElapsedTime(ms, (cudaEvent_t)from, (cudaEvent_t)to));
    return LODE_OK;
}

/* Other threads go on as they like while this one captures. */
static lode_status_t capture_begin(lode_device_stream_t stream)
{
    LODE_CUDA(cudaStreamBeginCapture((cudaStream_t)stream, cudaStreamCaptureModeThreadLocal));
    return LODE_OK;
}

static lode_status_t capture_end(lode_device_stream_t stream, lode_device_graph_t *graph)
{
    cudaGraph_t captured;
    cudaGraphExec_t made;
    LODE_CUDA(cudaStreamEndCapture((cudaStream_t)stream, &captured));
    cudaError_t error = cudaGraphInstantiate(&made, captured, 0);
    cudaGraphDestroy(captured);
    if (error != cudaSuccess)
        return lode_cuda_failed(error, "cudaGraphInstantiate");
    *graph = made;
    return LODE_OK;
}

static lode_status_t graph_launch(lode_device_graph_t graph, lode_device_stream_t stream)
{
    LODE_CUDA(cudaGraphLaunch((cudaGraphExec_t)graph, (cudaStream_t)stream));
    return LODE_OK;
}

static void graph_destroy(lode_device_graph_t graph)
{
    if (graph && cudaGraphExecDestroy((cudaGraphExec_t)graph) != cudaSuccess)
        (void)cudaGetLastError();
}

void lode_cuda_fill_device(lode_device_ops_t *ops)
{
    ops->error = device_error;
    ops->count = device_count;
    ops->query = device_query;
    ops->open = device_open;
    ops->close = device_close;
    ops->use = device_use;
    ops->enter = device_enter;
    ops->leave = device_leave;
    ops->alloc = device_alloc;
    ops->free = device_free;
    ops->pinned_alloc = pinned_alloc;
    ops->pinned_free = pinned_free;
    ops->pin = device_pin;
    ops->unpin = device_unpin;
    ops->memory_of = memory_of;
    ops->copy = device_copy;
    ops->fill = device_fill;
    ops->stream_create = stream_create;
    ops->stream_destroy = stream_destroy;
    ops->stream_wait = stream_wait;
    ops->stream_check = stream_check;
    ops->event_create = event_create;
    ops->event_destroy = event_destroy;
    ops->event_record = event_record;
    ops->event_follow = event_follow;
    ops->event_wait = event_wait;
    ops->event_done = event_done;
    ops->event_between = event_between;
    ops->capture_begin = capture_begin;
    ops->capture_end = capture_end;
    ops->graph_launch = graph_launch;
    ops->graph_destroy = graph_destroy;
}
