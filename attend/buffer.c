/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "attend/inside.h"

lode_status_t lode_buffer_extend(lode_buffer_t *buffer, size_t bytes, size_t keep)
{
    if (bytes <= buffer->bytes)
        return LODE_OK;
    size_t room = bytes + bytes / 4; /* so that a view that grows by a token a step does not allocate in each */
    room = (room + 63) & ~(size_t)63;
    void *data = aligned_alloc(64, room);
    if (!data)
        return lode_fail(LODE_ERR_NO_MEMORY, "no memory for a working buffer of %zu bytes", room);
    if (keep)
        memcpy(data, buffer->data, keep);
    free(buffer->data);
    *buffer = (lode_buffer_t){data, room};
    return LODE_OK;
}

lode_status_t lode_buffer_reserve(lode_buffer_t *buffer, size_t bytes)
{
    return lode_buffer_extend(buffer, bytes, 0);
}

void lode_buffer_free(lode_buffer_t *buffer)
{
    free(buffer->data);
    *buffer = (lode_buffer_t){0};
}
