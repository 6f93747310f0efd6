/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/multi/plain_device.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

enum { QUEUE = 256 };

typedef struct entry {
    bool (*poll)(void *context); /* NULL: a copy */
    void *context;
    void *to;
    const void *from;
    size_t bytes;
} entry_t;

typedef struct stream {
    uint64_t enqueued, done;
    bool running; /* an operation that looks at another stream does not come back to this one */
    entry_t queue[QUEUE];
} stream_t;

typedef struct event {
    stream_t *stream;
    uint64_t at;
} event_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint32_t left, room = UINT32_MAX;
static _Thread_local char words[128];
static char the_device;
const lode_device_h plain_device_handle = (lode_device_h)&the_device;

static const char *plain_error(void)
{
    return words;
}

static lode_status_t plain_use(lode_device_h device)
{
    return device == plain_device_handle ? LODE_OK : LODE_ERR_INVALID;
}

static lode_status_t plain_open(uint32_t ordinal, lode_device_h *device)
{
    if (ordinal) {
        snprintf(words, sizeof words, "there is one device, and number %u was asked for", ordinal);
        return LODE_ERR_UNSUPPORTED;
    }
    *device = plain_device_handle;
    return LODE_OK;
}

static void plain_close(lode_device_h *device)
{
    *device = NULL;
}

static lode_status_t plain_enter(lode_device_h device, int *before)
{
    *before = 0;
    return plain_use(device);
}

static void plain_leave(lode_device_h device, int before)
{
    (void)device;
    (void)before;
}

/* ------------------------------------------------------------------- memory */

uint32_t plain_device_left(void)
{
    return left;
}

void plain_device_room(uint32_t allocations)
{
    room = allocations;
}

static lode_status_t plain_alloc(lode_device_h device, size_t bytes, void **memory)
{
    void *made = device == plain_device_handle && room > 0 ? aligned_alloc(256, (bytes + 255) / 256 * 256) : NULL;
    if (!made) {
        snprintf(words, sizeof words, "%zu bytes were asked for, and there is no room", bytes);
        return LODE_ERR_NO_MEMORY;
    }
    room -= room != UINT32_MAX;
    memset(made, 0xa5, bytes);
    left++;
    *memory = made;
    return LODE_OK;
}

static void plain_free(lode_device_h device, void *memory)
{
    (void)device;
    left -= memory != NULL;
    free(memory);
}

/* ------------------------------------------------------------------ streams */

/* Go on as far as it goes; under the lock. */
static void run(stream_t *stream)
{
    if (stream->running)
        return;
    stream->running = true;
    while (stream->done < stream->enqueued) {
        entry_t *entry = &stream->queue[stream->done % QUEUE];
        if (!entry->poll)
            memmove(entry->to, entry->from, entry->bytes);
        else if (!entry->poll(entry->context))
            break;
        stream->done++;
    }
    stream->running = false;
}

static void push(stream_t *stream, entry_t entry)
{
    while (stream->enqueued - stream->done == QUEUE)
        run(stream);
    stream->queue[stream->enqueued++ % QUEUE] = entry;
}

void plain_stream_push(void *stream, bool (*poll)(void *), void *context)
{
    pthread_mutex_lock(&lock);
    push(stream, (entry_t){.poll = poll, .context = context});
    pthread_mutex_unlock(&lock);
}

static lode_status_t plain_copy(lode_device_stream_t stream, void *to, const void *from, size_t bytes)
{
    pthread_mutex_lock(&lock);
    push(stream, (entry_t){.to = to, .from = from, .bytes = bytes});
    pthread_mutex_unlock(&lock);
    return LODE_OK;
}

static lode_status_t plain_stream_create(lode_device_h device, lode_device_stream_t *stream)
{
    (void)device;
    *stream = calloc(1, sizeof(stream_t));
    return *stream ? LODE_OK : LODE_ERR_NO_MEMORY;
}

static lode_status_t plain_stream_wait(lode_device_stream_t handle)
{
    stream_t *stream = handle;
    for (bool done = false; !done;) {
        pthread_mutex_lock(&lock);
        run(stream);
        done = stream->done == stream->enqueued;
        pthread_mutex_unlock(&lock);
        if (!done)
            usleep(20);
    }
    return LODE_OK;
}

static void plain_stream_destroy(lode_device_stream_t stream)
{
    plain_stream_wait(stream);
    free(stream);
}

/* ------------------------------------------------------------------- events */

static lode_status_t plain_event_create(lode_device_h device, lode_device_event_t *event)
{
    (void)device;
    *event = calloc(1, sizeof(event_t));
    return *event ? LODE_OK : LODE_ERR_NO_MEMORY;
}

static void plain_event_destroy(lode_device_event_t event)
{
    free(event);
}

static lode_status_t plain_event_record(lode_device_event_t handle, lode_device_stream_t stream)
{
    event_t *event = handle;
    pthread_mutex_lock(&lock);
    event->stream = stream;
    event->at = event->stream->enqueued;
    pthread_mutex_unlock(&lock);
    return LODE_OK;
}

/* Under the lock. */
static bool has_passed(void *handle)
{
    event_t *event = handle;
    if (event->stream && event->stream->done < event->at)
        run(event->stream);
    return !event->stream || event->stream->done >= event->at;
}

static bool follow_and_free(void *copy)
{
    bool passed = has_passed(copy);
    if (passed)
        free(copy);
    return passed;
}

/* As of now: an event may be recorded again later. */
static lode_status_t plain_event_follow(lode_device_stream_t stream, lode_device_event_t event)
{
    event_t *copy = malloc(sizeof *copy);
    if (!copy)
        return LODE_ERR_NO_MEMORY;
    pthread_mutex_lock(&lock);
    *copy = *(event_t *)event;
    push(stream, (entry_t){.poll = follow_and_free, .context = copy});
    pthread_mutex_unlock(&lock);
    return LODE_OK;
}

static lode_status_t plain_event_done(lode_device_event_t event, bool *done)
{
    pthread_mutex_lock(&lock);
    *done = has_passed(event);
    pthread_mutex_unlock(&lock);
    return LODE_OK;
}

const lode_device_ops_t plain_device = {
    .name = "plain",
    .error = plain_error,
    .open = plain_open,
    .close = plain_close,
    .use = plain_use,
    .enter = plain_enter,
    .leave = plain_leave,
    .alloc = plain_alloc,
    .free = plain_free,
    .pinned_alloc = plain_alloc,
    .pinned_free = plain_free,
    .copy = plain_copy,
    .stream_create = plain_stream_create,
    .stream_destroy = plain_stream_destroy,
    .stream_wait = plain_stream_wait,
    .event_create = plain_event_create,
    .event_destroy = plain_event_destroy,
    .event_record = plain_event_record,
    .event_follow = plain_event_follow,
    .event_done = plain_event_done,
};
