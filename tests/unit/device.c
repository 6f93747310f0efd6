/* SPDX-License-Identifier: Apache-2.0 */
/* kernels/cuda/device.cu on emulated devices: memory, streams, events, graphs, and the sentences of its errors. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/device.h"
#include "tests/emulator/emulator.h"

static const lode_device_ops_t *ops;
static lode_device_h device;
static lode_device_stream_t stream;

static void begin(void)
{
    cr_assert(lode_device_get("cuda", &ops) == LODE_OK);
    cr_assert(ops->open(0, &device) == LODE_OK, "%s", ops->error());
    cr_assert(ops->stream_create(device, &stream) == LODE_OK);
}

static void end(void)
{
    ops->stream_destroy(stream);
    ops->close(&device);
    cr_assert(device == NULL);
}

TestSuite(device, .init = begin, .fini = end, .timeout = 60);
TestSuite(devices, .timeout = 60);

/* An error of this status whose sentence has these words. */
static void refused(lode_status_t got, lode_status_t want, const char *words)
{
    cr_assert(got == want, "%s, not %s: \"%s\"", lode_status_string(got), lode_status_string(want), ops->error());
    cr_assert(strstr(ops->error(), words), "\"%s\" is not in \"%s\"", words, ops->error());
}

static void set(uint32_t devices, bool driver, int major, int minor, uint64_t memory_bytes)
{
    lode_emulator_t settings;
    lode_emulator_get(&settings);
    settings.devices = devices;
    settings.driver = driver;
    settings.major = major;
    settings.minor = minor;
    settings.memory_bytes = memory_bytes;
    lode_emulator_set(&settings);
    cr_assert(lode_device_get("cuda", &ops) == LODE_OK);
}

static bool usable(void)
{
    lode_backend_t backend = {.name = ""};
    uint32_t i = 0;
    while (lode_backend_query(i, &backend) && strcmp(backend.name, "cuda") != 0)
        i++;
    cr_assert(strcmp(backend.name, "cuda") == 0 && backend.compiled);
    return backend.usable;
}

/* -------------------------------------------------------------------- which */

Test(devices, names)
{
    const lode_device_ops_t *none = NULL;
    cr_assert(lode_device_get("hip", &none) == LODE_ERR_INVALID && none == NULL);
    cr_assert(lode_device_get("", &none) == LODE_ERR_INVALID);
    cr_assert(lode_device_get("cuda", &ops) == LODE_OK && strcmp(ops->name, "cuda") == 0);
}

Test(devices, none)
{
    uint32_t count = 77;
    lode_device_h handle = NULL;
    set(0, true, 9, 0, 1 << 20);
    refused(ops->count(&count), LODE_ERR_UNSUPPORTED, "no CUDA device");
    refused(ops->open(0, &handle), LODE_ERR_UNSUPPORTED, "no CUDA device");
    cr_assert(count == 77 && handle == NULL && !usable());
    set(1, false, 9, 0, 1 << 20);
    refused(ops->count(&count), LODE_ERR_UNSUPPORTED, "no NVIDIA driver");
    refused(ops->open(0, &handle), LODE_ERR_UNSUPPORTED, "no NVIDIA driver");
    cr_assert(count == 77 && handle == NULL && !usable());
}

Test(devices, too_old)
{
    lode_device_h handle = NULL;
    set(1, true, 7, 5, 1 << 20);
    refused(ops->open(0, &handle), LODE_ERR_UNSUPPORTED, "compute capability 7.5; 8.0 (Ampere) or newer");
    cr_assert(handle == NULL && !usable());
    set(1, true, 8, 0, 1 << 20);
    cr_assert(usable());
    cr_assert(ops->open(0, &handle) == LODE_OK);
    ops->close(&handle);
}

Test(devices, two)
{
    uint32_t count;
    lode_device_info_t info[2], untouched;
    set(2, true, 9, 0, 1 << 20);
    cr_assert(ops->count(&count) == LODE_OK && count == 2);
    memset(&untouched, 0x5a, sizeof untouched);
    refused(ops->query(2, &untouched), LODE_ERR_INVALID, "device 2: there are 2");
    cr_assert(((unsigned char *)&untouched)[0] == 0x5a);
    for (uint32_t i = 0; i < 2; i++) {
        cr_assert(ops->query(i, &info[i]) == LODE_OK);
        cr_assert(info[i].ordinal == (int)i && info[i].major == 9 && info[i].minor == 0);
        cr_assert(info[i].memory_bytes == 1 << 20 && info[i].free_bytes == 1 << 20 && info[i].processors > 0);
        cr_assert(strncmp(info[i].uuid, "GPU-", 4) == 0 && strlen(info[i].uuid) == 40);
    }
    cr_assert(strcmp(info[0].uuid, info[1].uuid) != 0);
    cr_assert(strcmp(info[0].bus, "0000:17:00.0") == 0 && strcmp(info[1].bus, "0000:18:00.0") == 0);
}

/* What is made on a device is made there, whatever the thread's device is, and that stays as it was. */
Test(devices, each_its_own)
{
    lode_device_h handles[2];
    lode_device_stream_t streams[2];
    void *memory;
    lode_memory_t kind;
    lode_device_info_t info;
    bool capturing = true;
    int before;
    set(2, true, 9, 0, 1 << 20);
    for (uint32_t i = 0; i < 2; i++)
        cr_assert(ops->open(i, &handles[i]) == LODE_OK && ops->stream_create(handles[i], &streams[i]) == LODE_OK);
    cr_assert(ops->alloc(handles[1], 4096, &memory) == LODE_OK);
    cr_assert(ops->query(1, &info) == LODE_OK && info.free_bytes == (1 << 20) - 4096);
    cr_assert(ops->query(0, &info) == LODE_OK && info.free_bytes == 1 << 20);
    cr_assert(ops->memory_of(handles[1], (char *)memory + 4000, &kind) == LODE_OK && kind == LODE_MEMORY_DEVICE);
    cr_assert(ops->memory_of(handles[0], memory, &kind) == LODE_OK && kind == LODE_MEMORY_OTHER_DEVICE);
    cr_assert(ops->stream_check(handles[1], streams[1], &capturing) == LODE_OK && !capturing);
    refused(ops->stream_check(handles[0], streams[1], &capturing), LODE_ERR_INVALID, "another device");
    cr_assert(ops->enter(handles[1], &before) == LODE_OK && before == 0);
    ops->leave(handles[1], before);
    cr_assert(ops->enter(handles[0], &before) == LODE_OK && before == 0);
    ops->leave(handles[0], before);
    ops->free(handles[1], memory);
    for (uint32_t i = 0; i < 2; i++) {
        ops->stream_destroy(streams[i]);
        ops->close(&handles[i]);
    }
}

/* ------------------------------------------------------------------- memory */

Test(device, copies)
{
    enum { N = 1000 };
    uint8_t *pinned, *there, *local = malloc(N), back[N];
    cr_assert(ops->pinned_alloc(device, N, (void **)&pinned) == LODE_OK);
    cr_assert(ops->alloc(device, 2 * N, (void **)&there) == LODE_OK && (uintptr_t)there % 256 == 0);
    for (int i = 0; i < N; i++)
        pinned[i] = (uint8_t)(7 * i), local[i] = (uint8_t)(11 * i + 1);
    cr_assert(ops->copy(stream, there, pinned, N) == LODE_OK);
    cr_assert(ops->copy(stream, there + N, local, N) == LODE_OK);
    memset(local, 0, N); /* pageable memory is free when the call is back */
    cr_assert(ops->copy(stream, there, there + N, 10) == LODE_OK);
    cr_assert(ops->fill(stream, there + 10, 0x33, 5) == LODE_OK);
    cr_assert(ops->copy(stream, NULL, NULL, 0) == LODE_OK && ops->fill(stream, NULL, 0, 0) == LODE_OK);
    cr_assert(ops->copy(stream, back, there, N) == LODE_OK);
    cr_assert(ops->stream_wait(stream) == LODE_OK);
    for (int i = 0; i < N; i++)
        cr_assert(back[i] == (uint8_t)(i < 10 ? 11 * i + 1 : i < 15 ? 0x33 : 7 * i), "byte %d", i);
    refused(ops->copy(stream, there, pinned, 2 * N + 1), LODE_ERR_INVALID, "cudaMemcpyAsync: invalid argument");
    refused(ops->fill(stream, local, 0, 1), LODE_ERR_INVALID, "cudaMemsetAsync");
    ops->free(device, there);
    ops->pinned_free(device, pinned);
    free(local);
}

Test(device, kinds)
{
    lode_memory_t kind;
    void *there, *pinned;
    char *local = malloc(10000);
    cr_assert(ops->alloc(device, 100, &there) == LODE_OK && ops->pinned_alloc(device, 100, &pinned) == LODE_OK);
    cr_assert(ops->memory_of(device, there, &kind) == LODE_OK && kind == LODE_MEMORY_DEVICE);
    cr_assert(ops->memory_of(device, pinned, &kind) == LODE_OK && kind == LODE_MEMORY_PINNED);
    cr_assert(ops->memory_of(device, local, &kind) == LODE_OK && kind == LODE_MEMORY_HOST);
    cr_assert(ops->pin(device, local, 10000) == LODE_OK);
    cr_assert(ops->memory_of(device, local + 9999, &kind) == LODE_OK && kind == LODE_MEMORY_PINNED);
    refused(ops->pin(device, local + 10, 10), LODE_ERR_INVALID, "already mapped");
    ops->unpin(device, local);
    cr_assert(ops->memory_of(device, local, &kind) == LODE_OK && kind == LODE_MEMORY_HOST);
    ops->free(device, there);
    ops->free(device, NULL);
    ops->pinned_free(device, pinned);
    free(local);
}

Test(device, no_memory)
{
    void *memory = NULL, *most;
    lode_emulator_t settings;
    lode_device_info_t info;
    cr_assert(ops->query(0, &info) == LODE_OK);
    cr_assert(ops->alloc(device, info.free_bytes - 4096, &most) == LODE_OK);
    refused(ops->alloc(device, 8192, &memory), LODE_ERR_NO_MEMORY,
            "8192 bytes of device memory were asked, device 0 has 4096 free");
    cr_assert(ops->alloc(device, 4096, &memory) == LODE_OK);
    ops->free(device, memory);
    ops->free(device, most);
    memory = NULL;
    lode_emulator_get(&settings);
    for (int i = 0; i < 3; i++) {
        char local[64];
        settings.fail_alloc = 1;
        lode_emulator_set(&settings);
        lode_status_t status = i == 0   ? ops->alloc(device, 640, &memory)
                               : i == 1 ? ops->pinned_alloc(device, 641, &memory)
                                        : ops->pin(device, local, sizeof local);
        refused(status, LODE_ERR_NO_MEMORY,
                i == 0   ? "640 bytes of device"
                : i == 1 ? "641 bytes of pinned"
                         : "64 bytes");
        cr_assert(memory == NULL);
    }
    /* and no later call is blamed for it */
    cr_assert(ops->fill(stream, NULL, 0, 0) == LODE_OK && ops->stream_wait(stream) == LODE_OK);
}

/* -------------------------------------------------- streams, events, graphs */

Test(device, events)
{
    lode_device_event_t a, b;
    lode_device_stream_t other;
    uint8_t *there, *back;
    bool done = true;
    float ms = -1;
    cr_assert(ops->event_create(device, &a) == LODE_OK && ops->event_create(device, &b) == LODE_OK);
    cr_assert(ops->stream_create(device, &other) == LODE_OK);
    cr_assert(ops->alloc(device, 64, (void **)&there) == LODE_OK);
    cr_assert(ops->pinned_alloc(device, 64, (void **)&back) == LODE_OK);
    cr_assert(ops->event_done(a, &done) == LODE_OK && done, "an event that was never recorded has passed");
    cr_assert(ops->event_record(a, stream) == LODE_OK);
    cr_assert(ops->fill(stream, there, 9, 64) == LODE_OK);
    cr_assert(ops->event_record(b, stream) == LODE_OK);
    cr_assert(ops->event_follow(other, b) == LODE_OK);
    cr_assert(ops->copy(other, back, there, 64) == LODE_OK);
    cr_assert(ops->event_done(b, &done) == LODE_OK && !done);
    cr_assert(ops->stream_wait(other) == LODE_OK);
    cr_assert(back[0] == 9 && back[63] == 9);
    cr_assert(ops->event_done(b, &done) == LODE_OK && done);
    cr_assert(ops->event_between(a, b, &ms) == LODE_OK && ms >= 0);
    cr_assert(ops->event_record(b, stream) == LODE_OK && ops->event_wait(b) == LODE_OK);
    ops->event_destroy(a);
    ops->event_destroy(b);
    ops->stream_destroy(other);
    ops->free(device, there);
    ops->pinned_free(device, back);
}

Test(device, graphs)
{
    uint8_t *there, *pinned, local[16];
    lode_device_graph_t graph;
    lode_device_event_t event;
    lode_device_stream_t other;
    bool capturing = false;
    cr_assert(ops->alloc(device, 64, (void **)&there) == LODE_OK);
    cr_assert(ops->pinned_alloc(device, 64, (void **)&pinned) == LODE_OK);
    cr_assert(ops->event_create(device, &event) == LODE_OK && ops->stream_create(device, &other) == LODE_OK);
    cr_assert(ops->capture_begin(stream) == LODE_OK);
    cr_assert(ops->stream_check(device, stream, &capturing) == LODE_OK && capturing);
    cr_assert(ops->copy(stream, there, pinned, 16) == LODE_OK);
    refused(ops->copy(stream, there, local, 16), LODE_ERR_INVALID, "a copy from memory that is not pinned");
    refused(ops->copy(stream, local, there, 16), LODE_ERR_INVALID, "a copy to memory that is not pinned");
    cr_assert(ops->event_record(event, stream) == LODE_OK && ops->event_follow(other, event) == LODE_OK);
    cr_assert(ops->copy(other, pinned + 16, there, 16) == LODE_OK);
    cr_assert(ops->event_record(event, other) == LODE_OK && ops->event_follow(stream, event) == LODE_OK);
    cr_assert(ops->capture_end(stream, &graph) == LODE_OK, "%s", ops->error());
    for (uint8_t turn = 1; turn < 4; turn++) {
        memset(pinned, turn, 16);
        cr_assert(ops->graph_launch(graph, stream) == LODE_OK && ops->stream_wait(stream) == LODE_OK);
        cr_assert(pinned[16] == turn && pinned[31] == turn);
    }
    ops->graph_destroy(graph);
    ops->event_destroy(event);
    ops->stream_destroy(other);
    ops->free(device, there);
    ops->pinned_free(device, pinned);
}

/* What cannot be in a graph, and work that does not come back to the stream that is captured. */
Test(device, graphs_refused)
{
    uint8_t *there;
    lode_device_graph_t graph = NULL;
    lode_device_event_t event;
    lode_device_stream_t other;
    cr_assert(ops->alloc(device, 64, (void **)&there) == LODE_OK);
    cr_assert(ops->event_create(device, &event) == LODE_OK && ops->stream_create(device, &other) == LODE_OK);
    refused(ops->capture_end(stream, &graph), LODE_ERR_INVALID, "cudaStreamEndCapture");
    cr_assert(ops->capture_begin(stream) == LODE_OK);
    refused(ops->stream_wait(stream), LODE_ERR_INVALID, "cudaStreamSynchronize");
    refused(ops->fill(stream, there, 1, 4), LODE_ERR_INVALID, "cudaMemsetAsync");
    refused(ops->capture_end(stream, &graph), LODE_ERR_INVALID, "cudaStreamEndCapture");
    cr_assert(ops->capture_begin(stream) == LODE_OK);
    cr_assert(ops->event_record(event, stream) == LODE_OK && ops->event_follow(other, event) == LODE_OK);
    cr_assert(ops->fill(other, there, 1, 4) == LODE_OK);
    refused(ops->capture_end(stream, &graph), LODE_ERR_INVALID, "unjoined");
    cr_assert(graph == NULL);
    cr_assert(ops->fill(stream, there, 1, 4) == LODE_OK && ops->stream_wait(stream) == LODE_OK);
    ops->event_destroy(event);
    ops->stream_destroy(other);
    ops->free(device, there);
}

/* Whatever was made is given back. */
Test(device, nothing_is_left)
{
    lode_emulator_counts_t before, after;
    lode_emulator_count(&before);
    for (int i = 0; i < 3; i++) {
        void *memory, *pinned;
        lode_device_event_t event;
        lode_device_graph_t graph;
        cr_assert(ops->alloc(device, 5000, &memory) == LODE_OK);
        cr_assert(ops->pinned_alloc(device, 5000, &pinned) == LODE_OK);
        cr_assert(ops->event_create(device, &event) == LODE_OK);
        cr_assert(ops->capture_begin(stream) == LODE_OK && ops->fill(stream, memory, 0, 5000) == LODE_OK);
        cr_assert(ops->capture_end(stream, &graph) == LODE_OK);
        ops->graph_destroy(graph);
        ops->event_destroy(event);
        ops->pinned_free(device, pinned);
        ops->free(device, memory);
    }
    lode_emulator_count(&after);
    cr_assert(after.live == before.live && after.bytes_in_use == before.bytes_in_use);
}
