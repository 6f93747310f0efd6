/* SPDX-License-Identifier: Apache-2.0 */
/* Cache of fetched records: sets of WAYS places, least recently used first, by step number. A place
 * that the running step has touched is not given away, so pointers into the cache hold through a step. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "attend/inside.h"

enum { WAYS = 8 };

typedef struct hot_place {
    uint64_t block; /* 0: empty */
    uint64_t key;
    uint64_t step; /* of the last use */
} hot_place_t;

struct lode_hot {
    size_t record_bytes;
    uint64_t sets; /* a power of two */
    hot_place_t *places;
    uint8_t *records;
};

lode_status_t lode_hot_create(size_t bytes, size_t record_bytes, lode_hot_t **out)
{
    uint64_t sets = 1;
    if (bytes < WAYS * record_bytes) {
        *out = NULL;
        return LODE_OK;
    }
    while (sets * 2 * WAYS * record_bytes <= bytes)
        sets *= 2;
    lode_hot_t *hot = calloc(1, sizeof *hot);
    if (!hot)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for the hot cache");
    *hot = (lode_hot_t){.record_bytes = record_bytes, .sets = sets};
    hot->places = calloc(sets * WAYS, sizeof *hot->places);
    hot->records = aligned_alloc(64, (sets * WAYS * record_bytes + 63) & ~(size_t)63);
    if (!hot->places || !hot->records) {
        lode_hot_destroy(&hot);
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a hot cache of %zu bytes; see --hot-cache", bytes);
    }
    madvise(hot->records, sets * WAYS * record_bytes, MADV_HUGEPAGE);
    *out = hot;
    return LODE_OK;
}

void lode_hot_destroy(lode_hot_t **hot)
{
    if (!*hot)
        return;
    free((*hot)->places);
    free((*hot)->records);
    free(*hot);
    *hot = NULL;
}

uint64_t lode_hot_capacity(const lode_hot_t *hot)
{
    return hot ? hot->sets * WAYS : 0;
}

static uint64_t set_of(const lode_hot_t *hot, uint64_t block, uint64_t key)
{
    return (lode_mix(block, key) & (hot->sets - 1)) * WAYS;
}

const uint8_t *lode_hot_find(lode_hot_t *hot, uint64_t block, uint64_t key, uint64_t step)
{
    uint64_t first = set_of(hot, block, key);
    for (uint64_t i = first; i < first + WAYS; i++) {
        hot_place_t *place = &hot->places[i];
        if (place->key == key && place->block == block) {
            place->step = step;
            return hot->records + i * hot->record_bytes;
        }
    }
    return NULL;
}

void lode_hot_insert(lode_hot_t *hot, uint64_t block, uint64_t key, uint64_t step, const uint8_t *record)
{
    uint64_t first = set_of(hot, block, key), victim = first;
    for (uint64_t i = first + 1; i < first + WAYS; i++)
        if (hot->places[i].step < hot->places[victim].step)
            victim = i;
    if (hot->places[victim].step == step)
        return;
    hot->places[victim] = (hot_place_t){block, key, step};
    memcpy(hot->records + victim * hot->record_bytes, record, hot->record_bytes);
}
