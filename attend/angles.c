/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Cosines and sines of the rotations that steps have asked for, one entry an offset. They depend on the offset alone,
 * so all layers, heads and streams share them, and the steps of a decode, which see the same blocks at the same
 * offsets, find them. What is kept is bounded: too much of it is forgotten at once, between steps.
 */
#include <string.h>

#include "attend/angles.h"

void lode_angles_free(lode_angles_t *angles)
{
    lode_buffer_free(&angles->table);
    lode_buffer_free(&angles->offsets);
    lode_buffer_free(&angles->slots);
    *angles = (lode_angles_t){0};
}

/* Where an offset is, or would be: the slots are a power of two, and at most half of them are taken. */
static uint32_t *slot_of(const lode_angles_t *angles, int64_t offset)
{
    uint32_t *slots = angles->slots.data;
    const int64_t *offsets = angles->offsets.data;
    size_t at = lode_mix(0, (uint64_t)offset) & (angles->slot_count - 1);
    while (slots[at] && offsets[slots[at] - 1] != offset)
        at = (at + 1) & (angles->slot_count - 1);
    return &slots[at];
}

static lode_status_t make_slots(lode_angles_t *angles, size_t entries)
{
    size_t count = 64;
    while (count < 2 * entries)
        count *= 2;
    if (count <= angles->slot_count)
        return LODE_OK;
    LODE_TRY(lode_buffer_reserve(&angles->slots, count * sizeof(uint32_t)));
    memset(angles->slots.data, 0, count * sizeof(uint32_t));
    angles->slot_count = count;
    for (uint32_t i = 0; i < angles->count; i++)
        *slot_of(angles, ((const int64_t *)angles->offsets.data)[i]) = i + 1;
    return LODE_OK;
}

lode_status_t lode_angles_begin(lode_angles_t *angles, uint32_t dim, size_t more, size_t kept)
{
    if (angles->count > kept) {
        angles->count = 0;
        memset(angles->slots.data, 0, angles->slot_count * sizeof(uint32_t));
    }
    size_t entries = angles->count + more, old = angles->count;
    LODE_TRY(lode_buffer_extend(&angles->table, entries * dim * sizeof(float), old * dim * sizeof(float)));
    LODE_TRY(lode_buffer_extend(&angles->offsets, entries * sizeof(int64_t), old * sizeof(int64_t)));
    return make_slots(angles, entries);
}

uint32_t lode_angles_of(lode_angles_t *angles, const double *freq, uint32_t dim, int64_t offset)
{
    uint32_t *slot = slot_of(angles, offset);
    if (*slot)
        return *slot - 1;
    float *cosine = (float *)angles->table.data + (size_t)angles->count * dim;
    lode_rope_angles(freq, dim, -offset, cosine, cosine + dim / 2);
    ((int64_t *)angles->offsets.data)[angles->count] = offset;
    *slot = ++angles->count;
    return angles->count - 1;
}
