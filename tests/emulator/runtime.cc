/* SPDX-License-Identifier: Apache-2.0 */
/* The runtime beside the threads: memory that is apart, lazy streams, events, graphs, and errors as CUDA gives them. */
#include "internal.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <vector>

lode_emulator_t lode_emulated = {(uint64_t)512 << 20, 1, 9, 0, true, false, 1, 0};

namespace
{

enum { MOST_DEVICES = 8, POISON = 0xff };
const size_t ARENA_BYTES = (size_t)64 << 30, PAGE = 4096;

struct stream;

/* Where in a stream an event was recorded. */
struct marker {
    std::shared_ptr<stream> of;
    uint64_t sequence;
    bool done = false;
    double ms = 0;
};

/* A graph in the making. Work is kept in the order of the calls, which respects its dependences. */
struct capture {
    cudaStreamCaptureMode mode;
    pthread_t thread;
    bool invalid = false;
    std::vector<std::function<void()>> work;
    std::vector<std::vector<size_t>> after; /* of each: what it comes after */
    std::set<stream *> streams;
};

struct stream {
    stream(int on, bool waits) : device(on), blocking(waits) {}
    int device;
    bool blocking; /* waits for the legacy stream, and it for this */
    std::deque<std::function<void()>> queue;
    uint64_t enqueued = 0, done = 0;
    std::shared_ptr<capture> captured;
    bool origin = false;
    std::vector<size_t> last; /* nodes that what is captured next comes after */
};

struct allocation {
    size_t bytes, mapped; /* of them asked, and between guards; the last byte mapped is before a guard */
    char *map;
    int device;
};

std::map<uintptr_t, allocation> device_memory;
std::map<uintptr_t, allocation> pinned_memory; /* map NULL: registered */
char *arena;
size_t arena_used;
uint64_t used_bytes[MOST_DEVICES];
int open_depth;
lode_emulator_counts_t counts;
std::map<const void *, int> shared_limits;
std::set<capture *> captures;
thread_local int current_device;
thread_local cudaError_t last_error;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

pthread_mutex_t *the_mutex(void)
{
    static pthread_mutex_t mutex;
    static bool made = [] {
        pthread_mutexattr_t recursive;
        pthread_mutexattr_init(&recursive);
        pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
        pthread_mutex_init(&mutex, &recursive);
        return true;
    }();
    (void)made;
    return &mutex;
}

struct lock {
    lock()
    {
        pthread_mutex_lock(the_mutex());
    }
    ~lock()
    {
        pthread_mutex_unlock(the_mutex());
    }
};

cudaError_t noted(cudaError_t error)
{
    if (error != cudaSuccess)
        last_error = error;
    return error;
}

double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* ------------------------------------------------------------------ faults */

struct sigaction before_us[NSIG];

void say_device_fault(uintptr_t at)
{
    for (auto &m : device_memory) { /* reads only; nothing allocates */
        uintptr_t map = (uintptr_t)m.second.map;
        if (at >= m.first && at < m.first + m.second.bytes)
            lode_emulated_stop("the host touched device memory at %p: byte %zu of %zu at %p", (void *)at,
                               (size_t)(at - m.first), m.second.bytes, (void *)m.first);
        if (at >= map - PAGE && at < map + m.second.mapped + PAGE)
            lode_emulated_stop("access of device memory at %p: byte %td of %zu at %p", (void *)at,
                               (ptrdiff_t)(at - m.first), m.second.bytes, (void *)m.first);
    }
    lode_emulated_stop("access of device memory at %p, which is not allocated (freed?)", (void *)at);
}

void on_fault(int signal, siginfo_t *info, void *)
{
    uintptr_t at = (uintptr_t)info->si_addr;
    if (signal == SIGSEGV && arena && at >= (uintptr_t)arena && at < (uintptr_t)arena + ARENA_BYTES)
        say_device_fault(at);
    if (open_depth > 0)
        lode_emulated_stop("%s at %p",
                           signal == SIGILL ? "an access that is not aligned, an index or shift out of range, or a trap"
                                            : "access of memory that is not there",
                           info->si_addr);
    sigaction(signal, &before_us[signal], NULL); /* not ours: it happens again, and whoever was there sees it */
}

void catch_faults(void)
{
    static char stack[64 << 10];
    stack_t alternate = {};
    alternate.ss_sp = stack;
    alternate.ss_size = sizeof stack;
    sigaltstack(&alternate, NULL);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int signal : {SIGSEGV, SIGBUS, SIGILL})
        sigaction(signal, &action, &before_us[signal]);
}

void prepare(void)
{
    if (arena)
        return;
    arena = (char *)mmap(NULL, ARENA_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED)
        lode_emulated_stop("no address space for device memory");
    if (const char *text = getenv("LODE_EMULATOR_SEED"))
        lode_emulated.seed = strtoull(text, NULL, 10);
    if (const char *text = getenv("LODE_EMULATOR_EAGER"))
        lode_emulated.eager = atoi(text) != 0;
    if (const char *text = getenv("LODE_EMULATOR_MEMORY"))
        lode_emulated.memory_bytes = strtoull(text, NULL, 10);
    catch_faults();
}

/* Device memory is there only while a device works. */
void open_memory(void)
{
    if (open_depth++ == 0)
        for (auto &m : device_memory)
            mprotect(m.second.map, m.second.mapped, PROT_READ | PROT_WRITE);
}

/* What lies between the end of an allocation and its guard page must still be poison. */
void check_slack(uintptr_t begin, const allocation &m)
{
    for (const unsigned char *p = (unsigned char *)begin + m.bytes; p < (unsigned char *)m.map + m.mapped; p++)
        if (*p != POISON)
            lode_emulated_stop("a write past the end of device memory: byte %zu of %zu at %p",
                               (size_t)((uintptr_t)p - begin), m.bytes, (void *)begin);
}

void close_memory(void)
{
    if (--open_depth > 0)
        return;
    for (auto &m : device_memory) {
        check_slack(m.first, m.second);
        mprotect(m.second.map, m.second.mapped, PROT_NONE);
    }
}

bool usable(cudaError_t *error)
{
    prepare();
    *error = !lode_emulated.driver        ? cudaErrorInsufficientDriver
             : lode_emulated.devices == 0 ? cudaErrorNoDevice
                                          : cudaSuccess;
    return *error == cudaSuccess;
}

#define USABLE              \
    lock held;              \
    cudaError_t unusable;   \
    if (!usable(&unusable)) \
        return noted(unusable);

/* ----------------------------------------------------------------- streams */

std::map<cudaStream_t, std::shared_ptr<stream>> streams;

std::shared_ptr<stream> stream_of(cudaStream_t handle)
{
    if (handle == nullptr || handle == cudaStreamLegacy) {
        static std::shared_ptr<stream> legacy[MOST_DEVICES];
        auto &s = legacy[current_device];
        if (!s)
            s = std::make_shared<stream>(current_device, true);
        return s;
    }
    if (handle == cudaStreamPerThread) {
        static thread_local std::shared_ptr<stream> own[MOST_DEVICES];
        auto &s = own[current_device];
        if (!s)
            s = std::make_shared<stream>(current_device, true);
        return s;
    }
    auto found = streams.find(handle);
    return found == streams.end() ? nullptr : found->second;
}

bool is_legacy(cudaStream_t handle)
{
    return handle == nullptr || handle == cudaStreamLegacy;
}

/* Run a stream's work up to the one of this number. */
void run_until(const std::shared_ptr<stream> &s, uint64_t sequence)
{
    if (s->done >= sequence)
        return;
    open_memory();
    while (s->done < sequence) {
        auto work = std::move(s->queue.front());
        s->queue.pop_front();
        s->done++; /* before it runs: it may wait for an event before it in this stream */
        work();
    }
    close_memory();
}

void run_all(const std::shared_ptr<stream> &s)
{
    run_until(s, s->enqueued);
}

void run_device(int device, bool blocking_only)
{
    for (auto &s : streams)
        if (s.second->device == device && (s.second->blocking || !blocking_only) && !s.second->captured)
            run_all(s.second);
}

bool capturing_blocking(int device)
{
    for (auto &s : streams)
        if (s.second->device == device && s.second->blocking && s.second->captured)
            return true;
    return false;
}

/* Enqueue, or add to the graph. */
cudaError_t enqueue(cudaStream_t handle, std::function<void()> work)
{
    auto s = stream_of(handle);
    if (!s)
        return cudaErrorInvalidResourceHandle;
    if (s->captured) {
        if (s->captured->invalid)
            return cudaErrorStreamCaptureInvalidated;
        s->captured->work.push_back(std::move(work));
        s->captured->after.push_back(s->last);
        s->last = {s->captured->work.size() - 1};
        return cudaSuccess;
    }
    if (is_legacy(handle)) {
        if (capturing_blocking(s->device))
            return cudaErrorStreamCaptureImplicit;
        run_device(s->device, true);
    }
    s->queue.push_back(std::move(work));
    s->enqueued++;
    if (lode_emulated.eager || is_legacy(handle))
        run_all(s);
    return cudaSuccess;
}

/* Calls that could wait for a device are not allowed while this thread, or any, captures. */
cudaError_t unsafe_call(void)
{
    for (capture *c : captures)
        if (thread_mode != cudaStreamCaptureModeRelaxed &&
            ((c->mode == cudaStreamCaptureModeGlobal && thread_mode == cudaStreamCaptureModeGlobal) ||
             (c->mode != cudaStreamCaptureModeRelaxed && pthread_equal(c->thread, pthread_self())))) {
            c->invalid = true;
            return cudaErrorStreamCaptureUnsupported;
        }
    return cudaSuccess;
}

#define SAFE                                \
    do {                                    \
        cudaError_t unsafe = unsafe_call(); \
        if (unsafe != cudaSuccess)          \
            return noted(unsafe);           \
    } while (0)

/* ------------------------------------------------------------------ memory */

enum kind { DEVICE, PINNED, PAGEABLE, WRONG };

std::map<uintptr_t, allocation>::iterator holding(std::map<uintptr_t, allocation> &memory, uintptr_t at)
{
    auto next = memory.upper_bound(at);
    if (next == memory.begin())
        return memory.end();
    auto m = std::prev(next);
    return at < m->first + (m->second.bytes ? m->second.bytes : 1) ? m : memory.end();
}

kind kind_of(const void *pointer, size_t bytes)
{
    uintptr_t at = (uintptr_t)pointer;
    if (arena && at >= (uintptr_t)arena && at < (uintptr_t)arena + ARENA_BYTES) {
        auto m = holding(device_memory, at);
        return m == device_memory.end() || at + bytes > m->first + m->second.bytes ? WRONG : DEVICE;
    }
    auto m = holding(pinned_memory, at);
    if (m == pinned_memory.end())
        return PAGEABLE;
    return at + bytes > m->first + m->second.bytes ? WRONG : PINNED;
}

bool alloc_fails(void)
{
    counts.allocs++;
    return lode_emulated.fail_alloc > 0 && --lode_emulated.fail_alloc == 0;
}

/* Map bytes so that they end at a guard page, and poison them. */
char *map_guarded(char *at, size_t bytes, size_t *mapped)
{
    *mapped = (bytes + PAGE - 1) / PAGE * PAGE;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *map;
    if (at) {
        map = at;
        if (mprotect(at, *mapped, PROT_READ | PROT_WRITE) != 0)
            return NULL;
    } else {
        map = (char *)mmap(NULL, *mapped + PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
        if (map == MAP_FAILED)
            return NULL;
        mprotect(map + *mapped, PAGE, PROT_NONE);
    }
    memset(map, POISON, *mapped);
    return map;
}

cudaError_t add_copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind how, cudaStream_t handle)
{
    kind a = kind_of(to, bytes), b = kind_of(from, bytes);
    if (a == WRONG || b == WRONG || how < cudaMemcpyHostToHost || how > cudaMemcpyDefault)
        return cudaErrorInvalidValue;
    bool to_host = how == cudaMemcpyHostToHost || how == cudaMemcpyDeviceToHost;
    bool from_host = how == cudaMemcpyHostToHost || how == cudaMemcpyHostToDevice;
    if (how != cudaMemcpyDefault && ((to_host && a == DEVICE) || (!to_host && a == PAGEABLE) ||
                                     (from_host && b == DEVICE) || (!from_host && b == PAGEABLE)))
        return cudaErrorInvalidValue;
    auto s = stream_of(handle);
    if (!s)
        return cudaErrorInvalidResourceHandle;
    if (s->captured || (a != PAGEABLE && b != PAGEABLE && (a == DEVICE || b == DEVICE)))
        return enqueue(handle, [=] { memmove(to, from, bytes); });
    if (b == PAGEABLE && a == DEVICE) { /* staged: the source may be changed at once */
        auto staged = std::make_shared<std::vector<char>>((const char *)from, (const char *)from + bytes);
        return enqueue(handle, [=] { memcpy(to, staged->data(), bytes); });
    }
    /* to pageable memory, or from host to host: the call waits */
    cudaError_t error = enqueue(handle, [=] { memmove(to, from, bytes); });
    if (error == cudaSuccess)
        run_all(s);
    return error;
}

struct event_state {
    int device;
    bool timed;
    std::shared_ptr<marker> recorded;  /* NULL: not yet */
    std::shared_ptr<capture> captured; /* recorded in a graph */
    std::vector<size_t> last;
};
std::map<cudaEvent_t, std::unique_ptr<event_state>> events;

event_state *event_of(cudaEvent_t handle)
{
    auto found = events.find(handle);
    return found == events.end() ? nullptr : found->second.get();
}

struct graph {
    std::shared_ptr<capture> of;
};

uintptr_t new_handle(void)
{
    static uintptr_t next = 0x1000; /* no address: nobody may look inside */
    counts.live++;
    return next += 16;
}

int most_shared(void)
{
    int level = lode_emulated.major * 10 + lode_emulated.minor;
    return level == 80 || level == 87   ? 163 << 10
           : level == 86 || level == 89 ? 99 << 10
           : level < 80                 ? 48 << 10
                                        : 227 << 10;
}

} // namespace

/* ---------------------------------------------------------------- settings */

bool lode_emulator_here(void)
{
    return true;
}

void lode_emulator_get(lode_emulator_t *settings)
{
    lock held;
    prepare();
    *settings = lode_emulated;
}

void lode_emulator_set(const lode_emulator_t *settings)
{
    lock held;
    prepare();
    lode_emulated = *settings;
    if (lode_emulated.devices > MOST_DEVICES)
        lode_emulated_stop("at most %d devices", MOST_DEVICES);
}

void lode_emulator_count(lode_emulator_counts_t *out)
{
    lock held;
    *out = counts;
}

/* ------------------------------------------------------------------ errors */

cudaError_t cudaGetLastError(void)
{
    cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError(void)
{
    return last_error;
}

static const struct {
    cudaError_t error;
    const char *name, *text;
} error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureMerge, "cudaErrorStreamCaptureMerge",
     "operation would result in a merge of separate capture sequences"},
    {cudaErrorStreamCaptureUnmatched, "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {cudaErrorStreamCaptureUnjoined, "cudaErrorStreamCaptureUnjoined", "capturing stream has unjoined work"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
};

const char *cudaGetErrorString(cudaError_t error)
{
    for (auto &text : error_texts)
        if (text.error == error)
            return text.text;
    return "unrecognized error code";
}
const char *cudaGetErrorName(cudaError_t error)
{
    for (auto &text : error_texts)
        if (text.error == error)
            return text.name;
    return "unrecognized error code";
}

/* ----------------------------------------------------------------- devices */

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *version)
{
    lock held;
    *version = lode_emulated.driver ? CUDART_VERSION : 0;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count)
{
    USABLE
    *count = (int)lode_emulated.devices;
    return cudaSuccess;
}

#define A_DEVICE(device)                                                 \
    do {                                                                 \
        if ((device) < 0 || (uint32_t)(device) >= lode_emulated.devices) \
            return noted(cudaErrorInvalidDevice);                        \
    } while (0)

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    USABLE
    A_DEVICE(device);
    *p = {};
    snprintf(p->name, sizeof p->name, "Emulated device %d", device);
    for (int i = 0; i < 16; i++)
        p->uuid.bytes[i] = (char)(0x10 * device + i);
    p->totalGlobalMem = lode_emulated.memory_bytes;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = (size_t)most_shared();
    p->sharedMemPerMultiprocessor = (size_t)most_shared() + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->major = lode_emulated.major;
    p->minor = lode_emulated.minor;
    p->multiProcessorCount = 4; /* so that work is cut, but not in crumbs */
    p->l2CacheSize = 4 << 20;
    p->pciDomainID = 0;
    p->pciBusID = 0x17 + device;
    p->pciDeviceID = 0;
    p->asyncEngineCount = 2;
    p->unifiedAddressing = p->canMapHostMemory = p->canUseHostPointerForRegisteredMem = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device)
{
    struct cudaDeviceProp p;
    cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error != cudaSuccess)
        return error;
    switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = (int)p.sharedMemPerBlock;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        break;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = p.maxThreadsPerMultiProcessor;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)p.sharedMemPerBlockOptin;
        break;
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
    case cudaDevAttrHostRegisterSupported:
        *value = 1;
        break;
    default:
        return noted(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *bus, int length, int device)
{
    USABLE
    A_DEVICE(device);
    if (length < 13)
        return noted(cudaErrorInvalidValue);
    snprintf(bus, (size_t)length, "0000:%02X:00.0", 0x17 + device);
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    USABLE
    A_DEVICE(device);
    A_DEVICE(peer);
    *can = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    USABLE
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device)
{
    USABLE
    A_DEVICE(device);
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaInitDevice(int device, unsigned, unsigned)
{
    USABLE
    A_DEVICE(device);
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device)
{
    USABLE
    *device = current_device;
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void)
{
    USABLE
    SAFE;
    run_device(current_device, false);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    USABLE
    *total = lode_emulated.memory_bytes;
    *left = *total - std::min<uint64_t>(used_bytes[current_device], *total);
    return cudaSuccess;
}

/* ------------------------------------------------------------------ memory */

cudaError_t lode_emulated_malloc(void **memory, size_t bytes)
{
    USABLE
    SAFE;
    if (bytes == 0) {
        *memory = NULL;
        return cudaSuccess;
    }
    size_t room = (bytes + 255) / 256 * 256; /* 256-byte aligned, and against the guard */
    if (alloc_fails() ||
        room > lode_emulated.memory_bytes - std::min(used_bytes[current_device], lode_emulated.memory_bytes))
        return noted(cudaErrorMemoryAllocation);
    size_t mapped = (room + PAGE - 1) / PAGE * PAGE;
    if (arena_used + mapped + 2 * PAGE > ARENA_BYTES)
        lode_emulated_stop("more device memory was allocated over time than the emulator has addresses for");
    char *map = map_guarded(arena + arena_used + PAGE, room, &mapped);
    if (!map)
        return noted(cudaErrorMemoryAllocation);
    arena_used += mapped + PAGE;
    uintptr_t begin = (uintptr_t)map + mapped - room;
    device_memory[begin] = {bytes, mapped, map, current_device};
    if (open_depth == 0)
        mprotect(map, mapped, PROT_NONE);
    used_bytes[current_device] += room;
    counts.bytes_in_use += room;
    counts.live++;
    *memory = (void *)begin;
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory)
{
    USABLE
    if (!memory)
        return cudaSuccess;
    SAFE;
    auto m = device_memory.find((uintptr_t)memory);
    if (m == device_memory.end())
        return noted(cudaErrorInvalidValue);
    run_device(m->second.device, false); /* it waits for the device */
    size_t room = (m->second.bytes + 255) / 256 * 256;
    madvise(m->second.map, m->second.mapped, MADV_DONTNEED);
    mprotect(m->second.map, m->second.mapped, PROT_NONE);
    used_bytes[m->second.device] -= room;
    counts.bytes_in_use -= room;
    counts.live--;
    device_memory.erase(m);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **memory, size_t bytes, unsigned)
{
    USABLE
    SAFE;
    if (bytes == 0) {
        *memory = NULL;
        return cudaSuccess;
    }
    size_t room = (bytes + 255) / 256 * 256, mapped;
    char *map = alloc_fails() ? NULL : map_guarded(NULL, room, &mapped);
    if (!map)
        return noted(cudaErrorMemoryAllocation);
    uintptr_t begin = (uintptr_t)map + mapped - room;
    pinned_memory[begin] = {bytes, mapped, map, current_device};
    counts.live++;
    *memory = (void *)begin;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory)
{
    USABLE
    if (!memory)
        return cudaSuccess;
    SAFE;
    auto m = pinned_memory.find((uintptr_t)memory);
    if (m == pinned_memory.end() || !m->second.map)
        return noted(cudaErrorInvalidValue);
    for (uint32_t d = 0; d < lode_emulated.devices; d++)
        run_device((int)d, false);
    munmap(m->second.map, m->second.mapped + PAGE);
    pinned_memory.erase(m);
    counts.live--;
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *memory, size_t bytes, unsigned)
{
    USABLE
    uintptr_t at = (uintptr_t)memory;
    if (!memory || bytes == 0 || (at >= (uintptr_t)arena && at < (uintptr_t)arena + ARENA_BYTES))
        return noted(cudaErrorInvalidValue);
    auto next = pinned_memory.lower_bound(at);
    if (holding(pinned_memory, at) != pinned_memory.end() || (next != pinned_memory.end() && next->first < at + bytes))
        return noted(cudaErrorHostMemoryAlreadyRegistered);
    if (alloc_fails())
        return noted(cudaErrorMemoryAllocation);
    pinned_memory[at] = {bytes, bytes, NULL, current_device};
    counts.live++;
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory)
{
    USABLE
    auto m = pinned_memory.find((uintptr_t)memory);
    if (m == pinned_memory.end() || m->second.map)
        return noted(cudaErrorHostMemoryNotRegistered);
    for (uint32_t d = 0; d < lode_emulated.devices; d++)
        run_device((int)d, false);
    pinned_memory.erase(m);
    counts.live--;
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **device, void *host, unsigned)
{
    USABLE
    if (kind_of(host, 1) != PINNED)
        return noted(cudaErrorInvalidValue);
    *device = host;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer)
{
    USABLE
    uintptr_t at = (uintptr_t)pointer;
    *attributes = {cudaMemoryTypeUnregistered, -1, NULL, (void *)pointer};
    auto m = holding(device_memory, at);
    if (m != device_memory.end()) {
        *attributes = {cudaMemoryTypeDevice, m->second.device, (void *)pointer, NULL};
        return cudaSuccess;
    }
    if (at >= (uintptr_t)arena && at < (uintptr_t)arena + ARENA_BYTES)
        return noted(cudaErrorInvalidValue); /* was device memory */
    m = holding(pinned_memory, at);
    if (m != pinned_memory.end())
        *attributes = {cudaMemoryTypeHost, m->second.device, (void *)pointer, (void *)pointer};
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind how, cudaStream_t handle)
{
    USABLE
    return bytes == 0 ? cudaSuccess : noted(add_copy(to, from, bytes, how, handle));
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind how)
{
    USABLE
    SAFE;
    return bytes == 0 ? cudaSuccess : noted(add_copy(to, from, bytes, how, nullptr));
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, enum cudaMemcpyKind how, cudaStream_t handle)
{
    USABLE
    if (width > to_pitch || width > from_pitch)
        return noted(cudaErrorInvalidValue);
    for (size_t row = 0; row < height; row++) {
        cudaError_t error =
            add_copy((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width, how, handle);
        if (error != cudaSuccess)
            return noted(error);
    }
    return cudaSuccess;
}

cudaError_t cudaMemcpyBatchAsync(void *const *to, const void *const *from, const size_t *bytes, size_t count,
                                 struct cudaMemcpyAttributes *attributes, size_t *attribute_indices,
                                 size_t attribute_count, cudaStream_t handle)
{
    USABLE
    auto s = stream_of(handle);
    if (is_legacy(handle) || !s || count == 0 || attribute_count == 0 || attribute_count > count || !attributes ||
        attribute_indices[0] != 0)
        return noted(!s ? cudaErrorInvalidResourceHandle : cudaErrorInvalidValue);
    if (s->captured) { /* the documentation does not say that it may be captured */
        s->captured->invalid = true;
        return noted(cudaErrorStreamCaptureUnsupported);
    }
    for (size_t i = 0; i < attribute_count; i++)
        if (attributes[i].srcAccessOrder < cudaMemcpySrcAccessOrderStream ||
            attributes[i].srcAccessOrder > cudaMemcpySrcAccessOrderAny ||
            (i > 0 && attribute_indices[i] <= attribute_indices[i - 1]))
            return noted(cudaErrorInvalidValue);
    for (size_t i = 0; i < count; i++)
        if (bytes[i] == 0 || kind_of(to[i], bytes[i]) == WRONG || kind_of(from[i], bytes[i]) == WRONG)
            return noted(cudaErrorInvalidValue);
    for (size_t i = 0; i < count; i++) {
        cudaError_t error = add_copy(to[i], from[i], bytes[i], cudaMemcpyDefault, handle);
        if (error != cudaSuccess)
            return noted(error);
    }
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t handle)
{
    USABLE
    if (bytes == 0)
        return cudaSuccess;
    kind k = kind_of(to, bytes);
    if (k == WRONG || k == PAGEABLE)
        return noted(cudaErrorInvalidValue);
    return noted(enqueue(handle, [=] { memset(to, value, bytes); }));
}

cudaError_t cudaMemset(void *to, int value, size_t bytes)
{
    USABLE
    SAFE;
    return cudaMemsetAsync(to, value, bytes, nullptr);
}

/* ----------------------------------------------------------------- streams */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned flags, int)
{
    USABLE
    if (flags & ~(unsigned)cudaStreamNonBlocking)
        return noted(cudaErrorInvalidValue);
    *handle = (cudaStream_t)new_handle();
    streams[*handle] = std::make_shared<stream>(current_device, !(flags & cudaStreamNonBlocking));
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *handle, unsigned flags)
{
    return cudaStreamCreateWithPriority(handle, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t *handle)
{
    return cudaStreamCreateWithFlags(handle, cudaStreamDefault);
}

#define A_STREAM(s, handle)     \
    auto s = stream_of(handle); \
    if (!s)                     \
        return noted(cudaErrorInvalidResourceHandle);

cudaError_t cudaStreamDestroy(cudaStream_t handle)
{
    USABLE
    if (is_legacy(handle) || handle == cudaStreamPerThread)
        return noted(cudaErrorInvalidResourceHandle);
    A_STREAM(s, handle)
    run_all(s); /* what was enqueued is done all the same */
    if (s->captured) {
        s->captured->invalid = true;
        s->captured->streams.erase(s.get());
    }
    streams.erase(handle);
    counts.live--;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    USABLE
    A_STREAM(s, handle)
    if (s->captured) {
        s->captured->invalid = true;
        return noted(cudaErrorStreamCaptureUnsupported);
    }
    SAFE;
    if (is_legacy(handle))
        run_device(s->device, true);
    run_all(s);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    USABLE
    A_STREAM(s, handle)
    if (s->captured) {
        s->captured->invalid = true;
        return noted(cudaErrorStreamCaptureUnsupported);
    }
    if (s->done == s->enqueued)
        return cudaSuccess;
    run_until(s, s->done + 1); /* those who ask again and again see it go on */
    return noted(cudaErrorNotReady);
}

cudaError_t cudaStreamGetDevice(cudaStream_t handle, int *device)
{
    USABLE
    A_STREAM(s, handle)
    *device = s->device;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t handle, enum cudaStreamCaptureStatus *status)
{
    USABLE
    A_STREAM(s, handle)
    if (is_legacy(handle) && capturing_blocking(s->device))
        return noted(cudaErrorStreamCaptureImplicit);
    *status = !s->captured           ? cudaStreamCaptureStatusNone
              : s->captured->invalid ? cudaStreamCaptureStatusInvalidated
                                     : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, void (*function)(void *), void *data)
{
    USABLE
    return noted(enqueue(handle, [=] { function(data); }));
}

/* ------------------------------------------------------------------ graphs */

cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    std::swap(*mode, thread_mode);
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, enum cudaStreamCaptureMode mode)
{
    USABLE
    if (is_legacy(handle))
        return noted(cudaErrorStreamCaptureUnsupported);
    A_STREAM(s, handle)
    if (s->captured)
        return noted(cudaErrorInvalidValue);
    s->captured = std::make_shared<capture>();
    s->captured->mode = mode;
    s->captured->thread = pthread_self();
    s->captured->streams.insert(s.get());
    s->origin = true;
    s->last.clear();
    captures.insert(s->captured.get());
    return cudaSuccess;
}

/* Is everything that was captured before what the first stream's last work comes after? */
static bool joined(const capture &c, const std::vector<size_t> &last)
{
    std::vector<bool> seen(c.work.size());
    std::vector<size_t> open = last;
    while (!open.empty()) {
        size_t node = open.back();
        open.pop_back();
        if (seen[node])
            continue;
        seen[node] = true;
        open.insert(open.end(), c.after[node].begin(), c.after[node].end());
    }
    for (bool one : seen)
        if (!one)
            return false;
    return true;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph_out)
{
    USABLE
    A_STREAM(s, handle)
    *graph_out = NULL;
    if (!s->captured)
        return noted(cudaErrorInvalidValue);
    if (!s->origin)
        return noted(cudaErrorStreamCaptureUnmatched);
    auto c = s->captured;
    if (c->mode != cudaStreamCaptureModeRelaxed && !pthread_equal(c->thread, pthread_self()))
        return noted(cudaErrorStreamCaptureWrongThread);
    bool whole = joined(*c, s->last);
    for (stream *other : c->streams) {
        other->captured = nullptr;
        other->origin = false;
        other->last.clear();
    }
    captures.erase(c.get());
    if (c->invalid)
        return noted(cudaErrorStreamCaptureInvalidated);
    if (!whole)
        return noted(cudaErrorStreamCaptureUnjoined);
    counts.live++;
    *graph_out = (cudaGraph_t) new graph{c};
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t handle, unsigned long long)
{
    USABLE
    if (!handle)
        return noted(cudaErrorInvalidValue);
    if (alloc_fails())
        return noted(cudaErrorMemoryAllocation);
    counts.live++;
    *exec = (cudaGraphExec_t) new graph(*(graph *)handle);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle)
{
    USABLE
    if (!exec)
        return noted(cudaErrorInvalidValue);
    auto c = ((graph *)exec)->of;
    return noted(enqueue(handle, [c] {
        for (auto &work : c->work)
            work();
    }));
}

cudaError_t cudaGraphDestroy(cudaGraph_t handle)
{
    USABLE
    delete (graph *)handle;
    counts.live--;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    USABLE
    delete (graph *)exec;
    counts.live--;
    return cudaSuccess;
}

/* ------------------------------------------------------------------ events */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *handle, unsigned flags)
{
    USABLE
    *handle = (cudaEvent_t)new_handle();
    events[*handle].reset(new event_state{current_device, !(flags & cudaEventDisableTiming), nullptr, nullptr, {}});
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *handle)
{
    return cudaEventCreateWithFlags(handle, cudaEventDefault);
}

#define AN_EVENT(e, handle)            \
    event_state *e = event_of(handle); \
    if (!e)                            \
        return noted(cudaErrorInvalidResourceHandle);

cudaError_t cudaEventDestroy(cudaEvent_t handle)
{
    USABLE
    AN_EVENT(e, handle)
    (void)e;
    events.erase(handle);
    counts.live--;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t handle, cudaStream_t stream_handle)
{
    USABLE
    AN_EVENT(e, handle)
    A_STREAM(s, stream_handle)
    if (e->device != s->device)
        return noted(cudaErrorInvalidResourceHandle);
    if (s->captured) {
        e->captured = s->captured;
        e->last = s->last;
        return cudaSuccess;
    }
    e->captured = nullptr;
    auto m = std::make_shared<marker>();
    m->of = s;
    cudaError_t error = enqueue(stream_handle, [m] {
        m->ms = now_ms();
        m->done = true;
    });
    m->sequence = s->enqueued;
    if (error == cudaSuccess)
        e->recorded = m;
    return noted(error);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t handle, unsigned)
{
    USABLE
    AN_EVENT(e, handle)
    A_STREAM(s, stream_handle)
    if (e->captured) {
        auto c = e->captured;
        if (captures.count(c.get()) == 0) /* of a graph that is made: nothing to wait for */
            return noted(cudaErrorInvalidValue);
        if (s->captured && s->captured != c)
            return noted(cudaErrorStreamCaptureMerge);
        if (!s->captured) {
            if (s->done != s->enqueued) /* what is enqueued there goes on by itself; the graph does not wait for it */
                run_all(s);
            s->captured = c;
            s->last.clear();
            c->streams.insert(s.get());
        }
        s->last.insert(s->last.end(), e->last.begin(), e->last.end());
        return cudaSuccess;
    }
    if (s->captured && e->recorded) {
        s->captured->invalid = true;
        return noted(cudaErrorStreamCaptureIsolation);
    }
    if (!e->recorded)
        return cudaSuccess;
    auto m = e->recorded;
    return noted(enqueue(stream_handle, [m] { run_until(m->of, m->sequence); }));
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle)
{
    USABLE
    AN_EVENT(e, handle)
    if (e->captured)
        return noted(cudaErrorCapturedEvent);
    SAFE;
    if (e->recorded)
        run_until(e->recorded->of, e->recorded->sequence);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t handle)
{
    USABLE
    AN_EVENT(e, handle)
    if (e->captured)
        return noted(cudaErrorCapturedEvent);
    if (!e->recorded || e->recorded->done)
        return cudaSuccess;
    run_until(e->recorded->of, e->recorded->of->done + 1); /* as in cudaStreamQuery() */
    return noted(cudaErrorNotReady);
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    USABLE
    AN_EVENT(a, from)
    AN_EVENT(b, to)
    if (!a->timed || !b->timed || !a->recorded || !b->recorded)
        return noted(cudaErrorInvalidResourceHandle);
    if (!a->recorded->done || !b->recorded->done)
        return noted(cudaErrorNotReady);
    *ms = (float)(b->recorded->ms - a->recorded->ms);
    return cudaSuccess;
}

/* ----------------------------------------------------------------- kernels */

cudaError_t lode_emulated_func_attribute(const void *kernel, enum cudaFuncAttribute attribute, int value)
{
    USABLE
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return cudaSuccess;
    if (value < 0 || value > most_shared())
        return noted(cudaErrorInvalidValue);
    shared_limits[kernel] = value;
    return cudaSuccess;
}

cudaError_t lode_emulated_func_attributes(struct cudaFuncAttributes *attributes)
{
    USABLE
    if (lode_emulated.major < 8)
        return noted(cudaErrorNoKernelImageForDevice);
    *attributes = {};
    attributes->maxThreadsPerBlock = 1024;
    attributes->binaryVersion = attributes->ptxVersion = 10 * lode_emulated.major + lode_emulated.minor;
    return cudaSuccess;
}

cudaError_t lode_emulated_launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t handle, const char *name,
                                 const void *kernel, size_t argument_bytes, std::function<void()> thread)
{
    USABLE
    A_STREAM(s, handle)
    if (s->device != current_device)
        return noted(cudaErrorInvalidResourceHandle);
    if (lode_emulated.major < 8)
        return noted(cudaErrorNoKernelImageForDevice);
    uint64_t each = (uint64_t)block.x * block.y * block.z;
    if (each == 0 || each > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffff ||
        grid.y > 65535 || grid.z > 65535)
        return noted(cudaErrorInvalidConfiguration);
    auto limit = shared_limits.find(kernel);
    if (shared_bytes > (size_t)(limit == shared_limits.end() ? 48 << 10 : limit->second) || argument_bytes > 4096)
        return noted(cudaErrorInvalidValue);
    return noted(enqueue(handle, [=] {
        counts.kernels++;
        lode_emulated_run(grid, block, shared_bytes, name, thread);
    }));
}
