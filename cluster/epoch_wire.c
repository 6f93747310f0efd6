/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "cluster/epoch.h"

#define WIRE_VERSION 0x6c6f6501u

enum { PART_ACCEPTED = 1, PART_VALUE = 2 };

static uint32_t parts_of(const epoch_beat_t *beat)
{
    return (beat->accepted_set ? PART_ACCEPTED : 0u) | (beat->value ? PART_VALUE : 0u);
}

static size_t data_bytes(uint32_t slots, uint32_t parts)
{
    size_t sets = 1 + (parts & PART_ACCEPTED ? 1 : 0) + (parts & PART_VALUE ? 1 : 0);
    return slots * (sets * sizeof(uint64_t) + 1);
}

size_t epoch_wire_bytes(const epoch_beat_t *beat)
{
    return data_bytes(beat->slots, parts_of(beat));
}

static uint8_t *put(uint8_t *at, const void *from, size_t bytes)
{
    if (from)
        memcpy(at, from, bytes);
    return from ? at + bytes : at;
}

void epoch_pack(const epoch_beat_t *beat, uint32_t cards, epoch_wire_t *wire, uint8_t *data)
{
    *wire = (epoch_wire_t){.version = WIRE_VERSION,
                           .from = beat->from,
                           .slots = beat->slots,
                           .number = beat->number,
                           .decider = beat->decider,
                           .phase = beat->phase,
                           .flags = beat->flags,
                           .parts = parts_of(beat),
                           .cards = cards,
                           .who = beat->who,
                           .stamp = beat->stamp,
                           .echo = beat->echo,
                           .lease_left_ns = beat->lease_left_ns,
                           .promised = beat->promised,
                           .accepted = beat->accepted,
                           .ballot = beat->ballot};
    data = put(data, beat->set, beat->slots * sizeof *beat->set);
    data = put(data, beat->accepted_set, beat->slots * sizeof *beat->set);
    data = put(data, beat->value, beat->slots * sizeof *beat->set);
    put(data, beat->verdicts, beat->slots);
}

static bool is_wire(const epoch_wire_t *wire, size_t bytes, uint32_t capacity)
{
    return wire->version == WIRE_VERSION && wire->slots <= capacity && wire->from < wire->slots && wire->number > 0 &&
           wire->phase <= EPOCH_ACCEPT && wire->parts <= (PART_ACCEPTED | PART_VALUE) && !(wire->who & EPOCH_MEMBER) &&
           (wire->accepted > 0) == !!(wire->parts & PART_ACCEPTED) &&
           (wire->phase == EPOCH_ACCEPT) == !!(wire->parts & PART_VALUE) &&
           data_bytes(wire->slots, wire->parts) <= bytes;
}

static const uint8_t *get(const uint8_t *at, void *to, size_t bytes, bool there)
{
    if (there)
        memcpy(to, at, bytes);
    return there ? at + bytes : at;
}

size_t epoch_unpack(const void *header, size_t header_bytes, const uint8_t *data, size_t bytes, uint32_t capacity,
                    const epoch_arrays_t *arrays, epoch_beat_t *beat, uint32_t *cards)
{
    epoch_wire_t wire;
    if (header_bytes != sizeof wire)
        return 0;
    memcpy(&wire, header, sizeof wire);
    if (!is_wire(&wire, bytes, capacity))
        return 0;
    const uint8_t *at = get(data, arrays->set, wire.slots * sizeof *arrays->set, true);
    at = get(at, arrays->accepted_set, wire.slots * sizeof *arrays->set, wire.parts & PART_ACCEPTED);
    at = get(at, arrays->value, wire.slots * sizeof *arrays->set, wire.parts & PART_VALUE);
    at = get(at, arrays->verdicts, wire.slots, true);
    *cards = wire.cards;
    *beat = (epoch_beat_t){.from = wire.from,
                           .slots = wire.slots,
                           .number = wire.number,
                           .decider = wire.decider,
                           .phase = wire.phase,
                           .flags = wire.flags,
                           .who = wire.who,
                           .stamp = wire.stamp,
                           .echo = wire.echo,
                           .lease_left_ns = wire.lease_left_ns,
                           .promised = wire.promised,
                           .accepted = wire.accepted,
                           .ballot = wire.ballot,
                           .set = arrays->set,
                           .verdicts = arrays->verdicts,
                           .accepted_set = wire.parts & PART_ACCEPTED ? arrays->accepted_set : NULL,
                           .value = wire.parts & PART_VALUE ? arrays->value : NULL};
    return (size_t)(at - data);
}
