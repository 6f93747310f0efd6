/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "cluster/message.h"

static void *bump_alloc(void *context, size_t bytes)
{
    message_bump_t *bump = context;
    size_t rounded = (bytes + 15) & ~(size_t)15;
    if (rounded < bytes || rounded > bump->bytes - bump->used)
        return NULL;
    void *memory = bump->base + bump->used;
    bump->used += rounded;
    return memory;
}

static void bump_free(void *context, void *memory)
{
    (void)context;
    (void)memory;
}

void message_bump_init(message_bump_t *bump, void *memory, size_t bytes)
{
    *bump = (message_bump_t){.base = memory, .bytes = bytes};
    bump->allocator = (ProtobufCAllocator){.alloc = bump_alloc, .free = bump_free, .allocator_data = bump};
}

static void *unpack(const ProtobufCMessageDescriptor *kind, message_bump_t *bump, const void *header, size_t bytes)
{
    if (bytes == 0 || bytes > MESSAGE_HEADER_MAX)
        return NULL;
    bump->used = 0;
    return protobuf_c_message_unpack(kind, &bump->allocator, bytes, header);
}

Lodemark__Call *message_call(message_bump_t *bump, const void *header, size_t bytes)
{
    return unpack(&lodemark__call__descriptor, bump, header, bytes);
}

Lodemark__Reply *message_reply(message_bump_t *bump, const void *header, size_t bytes)
{
    return unpack(&lodemark__reply__descriptor, bump, header, bytes);
}

Lodemark__FetchRequest *message_fetch_request(message_bump_t *bump, const void *header, size_t bytes)
{
    return unpack(&lodemark__fetch_request__descriptor, bump, header, bytes);
}

Lodemark__FetchReply *message_fetch_reply(message_bump_t *bump, const void *header, size_t bytes)
{
    return unpack(&lodemark__fetch_reply__descriptor, bump, header, bytes);
}

lode_status_t message_call_check(const Lodemark__Call *call, uint32_t ranks)
{
    if (call->from >= ranks)
        return lode_fail(LODE_ERR_FORMAT, "call from rank %u of a job of %u ranks", call->from, ranks);
    if (call->id == 0)
        return lode_fail(LODE_ERR_FORMAT, "call from rank %u without an id", call->from);
    if (call->body_case == LODEMARK__CALL__BODY__NOT_SET)
        return lode_fail(LODE_ERR_FORMAT, "call from rank %u asks nothing that this version knows", call->from);
    return LODE_OK;
}

size_t message_item_end(const lode_wire_item_t *item, size_t record_bytes)
{
    size_t last = 63u - (size_t)__builtin_clzll(item->mask);
    return ((size_t)item->head * LODE_PAGE_TOKENS + last + 1) * record_bytes;
}

static lode_status_t check_shape(const Lodemark__FetchRequest *request, size_t payload, uint32_t ranks)
{
    if (request->from >= ranks)
        return lode_fail(LODE_ERR_FORMAT, "fetch from rank %u of a job of %u ranks", request->from, ranks);
    if (request->id == 0)
        return lode_fail(LODE_ERR_FORMAT, "fetch from rank %u without an id", request->from);
    if (request->record_bytes < MESSAGE_RECORD_MIN || request->record_bytes > MESSAGE_RECORD_MAX)
        return lode_fail(LODE_ERR_FORMAT, "fetch from rank %u: records of %u bytes", request->from,
                         request->record_bytes);
    if (payload == 0 || payload % sizeof(lode_wire_item_t) != 0 ||
        payload / sizeof(lode_wire_item_t) > MESSAGE_ITEMS_MAX)
        return lode_fail(LODE_ERR_FORMAT, "fetch from rank %u: %zu bytes of items", request->from, payload);
    if (request->n_blocks == 0 || request->n_blocks > MESSAGE_BLOCKS_MAX)
        return lode_fail(LODE_ERR_FORMAT, "fetch from rank %u: %zu blocks", request->from, request->n_blocks);
    return LODE_OK;
}

lode_status_t message_fetch_check(const Lodemark__FetchRequest *request, const void *items, size_t payload,
                                  uint32_t ranks, size_t capacity, uint32_t *count, size_t *bytes)
{
    LODE_TRY(check_shape(request, payload, ranks));
    uint32_t wanted = (uint32_t)(payload / sizeof(lode_wire_item_t));
    size_t records = 0;
    for (uint32_t i = 0; i < wanted; i++) {
        lode_wire_item_t item;
        memcpy(&item, (const uint8_t *)items + (size_t)i * sizeof item, sizeof item);
        if (item.mask == 0)
            return lode_fail(LODE_ERR_FORMAT, "fetch from rank %u: item %u wants no token", request->from, i);
        if (item.block >= request->n_blocks)
            return lode_fail(LODE_ERR_FORMAT, "fetch from rank %u: item %u of block %u of %zu", request->from, i,
                             item.block, request->n_blocks);
        records += message_tokens(item.mask);
    }
    if (records * request->record_bytes > capacity)
        return lode_fail(LODE_ERR_FORMAT, "fetch from rank %u: %zu bytes where a reply takes %zu", request->from,
                         records * request->record_bytes, capacity);
    *count = wanted;
    *bytes = records * request->record_bytes;
    return LODE_OK;
}
