/* SPDX-License-Identifier: Apache-2.0 */
/* Memory of the device and pinned memory: room that grows, tickets, and uploads. Only growing waits for the device. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "attend/device.h"

/* --------------------------------------------------------------------- room */

/* Old memory goes when nothing uses it: now that all steps have run, or never if a graph may. */
static lode_status_t let_go(lode_gpu_t *gpu, void *memory, void (*release)(lode_device_h device, void *memory))
{
    if (!memory)
        return LODE_OK;
    if (!gpu->captured) {
        LODE_TRY(lode_gpu_settle(gpu));
        release(gpu->device, memory);
        return LODE_OK;
    }
    if (gpu->retired_count == gpu->retired_room) {
        uint32_t room = gpu->retired_room ? 2 * gpu->retired_room : 64;
        lode_gpu_retired_t *retired = realloc(gpu->retired, room * sizeof *retired);
        if (!retired)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a list of what captured steps use");
        gpu->retired = retired;
        gpu->retired_room = room;
    }
    gpu->retired[gpu->retired_count++] = (lode_gpu_retired_t){memory, release};
    return LODE_OK;
}

static lode_status_t refuse_in_capture(const lode_gpu_t *gpu, const char *what, size_t bytes)
{
    if (!gpu->plan.capturing)
        return LODE_OK;
    return lode_fail(LODE_ERR_UNSUPPORTED,
                     "a step that is captured cannot take memory (%zu bytes for %s): run it once, as it is, before it "
                     "is captured",
                     bytes, what);
}

static size_t grown(size_t bytes)
{
    size_t room = 4096;
    while (room < bytes)
        room *= 2;
    return room - bytes > bytes / 2 && bytes > (size_t)1 << 30 ? bytes + bytes / 4 : room;
}

lode_status_t lode_gpu_reserve(lode_gpu_t *gpu, const char *what, lode_gpu_room_t *room, size_t bytes, size_t keep)
{
    if (bytes <= room->bytes)
        return LODE_OK;
    LODE_TRY(refuse_in_capture(gpu, what, bytes));
    void *memory, *old = room->data;
    size_t size = grown(bytes);
    lode_status_t status = gpu->ops->alloc(gpu->device, size, &memory);
    if (status == LODE_ERR_NO_MEMORY) {
        LODE_TRY(lode_gpu_make_room(gpu));
        size = bytes;
        status = gpu->ops->alloc(gpu->device, size, &memory);
    }
    if (status != LODE_OK)
        return lode_gpu_fail(gpu, status, what);
    if (keep)
        LODE_GPU_TRY(gpu, what, gpu->ops->copy(gpu->plan.stream, memory, old, keep));
    *room = (lode_gpu_room_t){memory, size};
    return let_go(gpu, old, gpu->ops->free);
}

lode_status_t lode_gpu_reserve_pinned(lode_gpu_t *gpu, const char *what, lode_gpu_room_t *room, size_t bytes)
{
    if (bytes <= room->bytes)
        return LODE_OK;
    LODE_TRY(refuse_in_capture(gpu, what, bytes));
    void *memory, *old = room->data;
    size_t size = grown(bytes);
    LODE_GPU_TRY(gpu, what, gpu->ops->pinned_alloc(gpu->device, size, &memory));
    *room = (lode_gpu_room_t){memory, size};
    return let_go(gpu, old, gpu->ops->pinned_free);
}

lode_status_t lode_gpu_free(lode_gpu_t *gpu, lode_gpu_room_t *room)
{
    void *memory = room->data;
    *room = (lode_gpu_room_t){0};
    return let_go(gpu, memory, gpu->ops->free);
}

/* ------------------------------------------------------------------ tickets */

void lode_gpu_harvest(lode_gpu_t *gpu, const lode_gpu_ticket_t *ticket)
{
    for (int f = 0; f < LODE_GPU_FORMATS; f++) {
        atomic_fetch_add_explicit(&gpu->looked, ticket->found[f].records, memory_order_relaxed);
        atomic_fetch_add_explicit(&gpu->hits, ticket->found[f].hits, memory_order_relaxed);
    }
}

/* A captured step writes its ticket at each replay: nobody else may have it. */
static lode_status_t cut_ticket(lode_gpu_t *gpu, size_t bytes, lode_gpu_ticket_t **out)
{
    static const size_t align = 256;
    if (gpu->capture_used + bytes > gpu->capture.bytes)
        return lode_fail(LODE_ERR_UNSUPPORTED,
                         "%zu bytes for a step that is captured: %zu of %zu are taken by those captured before; run "
                         "steps uncaptured in between",
                         bytes, gpu->capture_used, gpu->capture.bytes);
    lode_gpu_ticket_t *ticket = &gpu->captured_ticket;
    *ticket = (lode_gpu_ticket_t){.data = (uint8_t *)gpu->capture.data + gpu->capture_used};
    gpu->capture_used += (bytes + align - 1) / align * align;
    *out = ticket;
    return LODE_OK;
}

/* Room for all layers of a step like this one to be captured after it. */
static lode_status_t expect_capture(lode_gpu_t *gpu, size_t bytes)
{
    size_t all = (bytes + 256) * gpu->cluster->geometry.layers;
    if (gpu->plan.waits || gpu->capture.bytes - gpu->capture_used >= all)
        return LODE_OK;
    gpu->capture_used = 0;
    gpu->capture.bytes = 0; /* captured steps keep what they have */
    return lode_gpu_reserve_pinned(gpu, "tickets of steps that are captured", &gpu->capture, all);
}

lode_status_t lode_gpu_take_ticket(lode_gpu_t *gpu, size_t bytes, lode_gpu_ticket_t **out)
{
    size_t found = (sizeof(lode_device_found_t) * LODE_GPU_FORMATS + 63) & ~(size_t)63; /* tables follow */
    lode_gpu_ticket_t *ticket = NULL;
    if (gpu->plan.capturing) {
        LODE_TRY(cut_ticket(gpu, found + bytes, &ticket));
    } else {
        LODE_TRY(expect_capture(gpu, found + bytes));
        ticket = &gpu->tickets[gpu->ticket++ % LODE_GPU_TICKETS];
        LODE_TRY(lode_gpu_ticket_done(gpu, ticket));
        LODE_TRY(lode_gpu_reserve_pinned(gpu, "the tables of a step", &ticket->room, found + bytes));
        ticket->data = ticket->room.data;
    }
    ticket->found = (lode_device_found_t *)ticket->data;
    ticket->used = found;
    ticket->bytes = found + bytes;
    memset(ticket->found, 0, found);
    *out = ticket;
    return LODE_OK;
}

lode_status_t lode_gpu_ticket_done(lode_gpu_t *gpu, lode_gpu_ticket_t *ticket)
{
    if (!ticket->busy)
        return LODE_OK;
    LODE_GPU_TRY(gpu, "waiting for a step", gpu->ops->event_wait(ticket->done));
    ticket->busy = false;
    lode_gpu_harvest(gpu, ticket);
    return LODE_OK;
}

void *lode_gpu_ticket_take(lode_gpu_ticket_t *ticket, size_t bytes)
{
    uint8_t *place = ticket->data + ticket->used;
    ticket->used += (bytes + 63) & ~(size_t)63;
    assert(ticket->used <= ticket->bytes);
    return place;
}

/* ------------------------------------------------------------------- upload */

/* The half that is full is read until its event; the other one was filled before, and is waited for. */
static lode_status_t turn(lode_gpu_t *gpu)
{
    uint32_t half = gpu->upload_half;
    LODE_GPU_TRY(gpu, "an upload", gpu->ops->event_record(gpu->uploaded[half], gpu->plan.stream));
    gpu->uploading[half] = true;
    gpu->upload_half = half = !half;
    gpu->upload_used = 0;
    if (gpu->uploading[half])
        LODE_GPU_TRY(gpu, "an upload", gpu->ops->event_wait(gpu->uploaded[half]));
    gpu->uploading[half] = false;
    return LODE_OK;
}

lode_status_t lode_gpu_upload_room(lode_gpu_t *gpu, size_t bytes, void **room)
{
    assert(bytes <= LODE_GPU_UPLOAD);
    if (gpu->plan.capturing)
        return lode_fail(LODE_ERR_UNSUPPORTED,
                         "a step that is captured sees a block that has changed since the step before it: run the "
                         "step once more, as it is, before it is captured");
    LODE_TRY(lode_gpu_reserve_pinned(gpu, "uploads", &gpu->upload, 2 * LODE_GPU_UPLOAD));
    if (gpu->upload_used + bytes > LODE_GPU_UPLOAD)
        LODE_TRY(turn(gpu));
    *room = (uint8_t *)gpu->upload.data + (size_t)gpu->upload_half * LODE_GPU_UPLOAD + gpu->upload_used;
    gpu->upload_used += (bytes + 63) & ~(size_t)63;
    return LODE_OK;
}

lode_status_t lode_gpu_upload(lode_gpu_t *gpu, void *to, const void *from, size_t bytes)
{
    for (size_t done = 0, piece; done < bytes; done += piece) {
        void *room = NULL;
        piece = bytes - done < LODE_GPU_UPLOAD ? bytes - done : LODE_GPU_UPLOAD;
        LODE_TRY(lode_gpu_upload_room(gpu, piece, &room));
        memcpy(room, (const uint8_t *)from + done, piece);
        LODE_GPU_TRY(gpu, "an upload", gpu->ops->copy(gpu->plan.stream, (uint8_t *)to + done, room, piece));
    }
    return LODE_OK;
}
