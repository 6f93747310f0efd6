/* SPDX-License-Identifier: Apache-2.0 */
/* A control message from a stranger. Byte 0: its kind; bytes 1 and 2: how long the header is; the rest is payload. */
#include <stdlib.h>
#include <string.h>

#include "cluster/epoch.h"
#include "cluster/message.h"

enum { RANKS = 4, CAPACITY = 1 << 20 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void fetch(message_bump_t *bump, const uint8_t *header, size_t length, const uint8_t *payload, size_t bytes)
{
    const Lodemark__FetchRequest *request = message_fetch_request(bump, header, length);
    uint32_t count = 0;
    size_t reply = 0;
    if (!request || message_fetch_check(request, payload, bytes, RANKS, CAPACITY, &count, &reply) != LODE_OK)
        return;
    /* what was accepted must keep its promises */
    if (count * sizeof(lode_wire_item_t) != bytes || reply > CAPACITY)
        abort();
    for (uint32_t i = 0; i < count; i++) {
        lode_wire_item_t item;
        memcpy(&item, payload + i * sizeof item, sizeof item);
        if (!item.mask || item.block >= request->n_blocks || message_item_end(&item, request->record_bytes) == 0)
            abort();
    }
}

/* A heartbeat, and what it does to one who knows the others. */
static void beat(const uint8_t *header, size_t length, const uint8_t *payload, size_t bytes)
{
    static uint64_t sets[4][2 * RANKS];
    static uint8_t verdicts[2 * RANKS];
    const epoch_arrays_t arrays = {sets[0], sets[1], sets[2], verdicts};
    const epoch_params_t params = {.beat_ns = 100, .suspect_ns = 1000, .lease_ns = 1000, .retry_ns = 50};
    epoch_view_t view;
    epoch_beat_t message;
    uint32_t cards;
    for (uint32_t r = 0; r < RANKS; r++)
        sets[3][r] = epoch_who(1, 0) | EPOCH_MEMBER;
    size_t taken = epoch_unpack(header, length, payload, bytes, 2 * RANKS, &arrays, &message, &cards);
    if (taken > bytes)
        abort();
    if (taken == 0 || epoch_create(&view, &params, 2 * RANKS) != LODE_OK)
        return;
    epoch_begin(&view, 0, 1, sets[3], RANKS, 1000);
    epoch_receive(&view, &message, 2000);
    epoch_tick(&view, 2001);
    epoch_fill(&view, 1, 2002, &message);
    if (view.slots > view.capacity || message.slots > view.capacity)
        abort();
    epoch_destroy(&view);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static _Alignas(16) uint8_t memory[1 << 16];
    message_bump_t bump;
    if (bytes < 3)
        return 0;
    size_t length = (size_t)data[1] | (size_t)data[2] << 8;
    const uint8_t *header = data + 3;
    if (length > bytes - 3)
        length = bytes - 3;
    message_bump_init(&bump, memory, sizeof memory);
    switch (data[0] % 5) {
    case 0: {
        const Lodemark__Call *call = message_call(&bump, header, length);
        if (call && message_call_check(call, RANKS) == LODE_OK && call->from >= RANKS)
            abort();
        break;
    }
    case 1:
        message_reply(&bump, header, length);
        break;
    case 2:
        message_fetch_reply(&bump, header, length);
        break;
    case 3:
        fetch(&bump, header, length, header + length, bytes - 3 - length);
        break;
    default:
        beat(header, length, header + length, bytes - 3 - length);
    }
    return 0;
}
