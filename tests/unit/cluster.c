/* SPDX-License-Identifier: Apache-2.0 */
/* What a stranger could send: messages and the checks they pass before anything is done with them. */
#include <criterion/criterion.h>
#include <criterion/new/assert.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/message.h"

enum { RANKS = 4, CAPACITY = 131072 };

static _Alignas(16) uint8_t memory[65536];
static message_bump_t bump;
static uint8_t header[MESSAGE_HEADER_MAX];
static lode_wire_item_t items[MESSAGE_ITEMS_MAX + 1];
static uint64_t blocks[MESSAGE_BLOCKS_MAX + 1];

static void setup(void)
{
    message_bump_init(&bump, memory, sizeof memory);
    for (uint32_t i = 0; i <= MESSAGE_ITEMS_MAX; i++)
        items[i] = (lode_wire_item_t){.mask = 1, .page = i, .head = (uint16_t)(i % 8), .block = (uint16_t)(i % 3)};
}

TestSuite(message, .init = setup, .timeout = 30);

static Lodemark__FetchRequest fetch(size_t block_count)
{
    Lodemark__FetchRequest request = LODEMARK__FETCH_REQUEST__INIT;
    request.id = 77;
    request.from = 2;
    request.layer = 3;
    request.record_bytes = 264;
    request.n_blocks = block_count;
    request.blocks = blocks;
    return request;
}

static lode_status_t check(const Lodemark__FetchRequest *request, size_t payload)
{
    uint32_t count = 0;
    size_t bytes = 0;
    lode_status_t status = message_fetch_check(request, items, payload, RANKS, CAPACITY, &count, &bytes);
    if (status == LODE_OK)
        cr_assert(count == payload / 16 && bytes > 0 && bytes <= CAPACITY);
    else
        cr_assert(count == 0 && bytes == 0);
    return status;
}

/* The largest legal messages fit the header and the bump buffer. */
Test(message, largest)
{
    Lodemark__FetchRequest request = fetch(MESSAGE_BLOCKS_MAX);
    for (uint32_t b = 0; b < MESSAGE_BLOCKS_MAX; b++)
        blocks[b] = UINT64_MAX - b;
    request.id = request.epoch = request.layer = request.record_bytes = UINT32_MAX;
    cr_assert(le(sz, lodemark__fetch_request__get_packed_size(&request), MESSAGE_HEADER_MAX));
    size_t bytes = lodemark__fetch_request__pack(&request, header);
    Lodemark__FetchRequest *back = message_fetch_request(&bump, header, bytes);
    cr_assert(back != NULL);
    cr_assert(eq(sz, back->n_blocks, MESSAGE_BLOCKS_MAX));
    cr_assert(memcmp(back->blocks, blocks, sizeof *blocks * MESSAGE_BLOCKS_MAX) == 0);

    uint32_t missing[MESSAGE_MISSING_MAX];
    for (uint32_t i = 0; i < MESSAGE_MISSING_MAX; i++)
        missing[i] = MESSAGE_ITEMS_MAX - 1 - i;
    Lodemark__FetchReply reply = LODEMARK__FETCH_REPLY__INIT;
    reply.id = UINT64_MAX;
    reply.epoch = reply.from = UINT32_MAX;
    reply.status = INT32_MIN;
    reply.n_missing = MESSAGE_MISSING_MAX;
    reply.missing = missing;
    cr_assert(le(sz, lodemark__fetch_reply__get_packed_size(&reply), MESSAGE_HEADER_MAX));
    bytes = lodemark__fetch_reply__pack(&reply, header);
    Lodemark__FetchReply *reply_back = message_fetch_reply(&bump, header, bytes);
    cr_assert(reply_back && reply_back->n_missing == MESSAGE_MISSING_MAX);
    cr_assert(memcmp(reply_back->missing, missing, sizeof missing) == 0);
}

Test(message, torn)
{
    Lodemark__FetchRequest request = fetch(20);
    size_t bytes = lodemark__fetch_request__pack(&request, header);
    cr_assert(message_fetch_request(&bump, header, bytes) != NULL);
    cr_assert(message_fetch_request(&bump, header, 0) == NULL);
    cr_assert(message_fetch_request(&bump, header, MESSAGE_HEADER_MAX + 1) == NULL);
    for (size_t cut = 1; cut < bytes; cut++) { /* torn: refused, or a shorter message; never past the end */
        uint8_t *exact = malloc(cut);
        memcpy(exact, header, cut);
        message_fetch_request(&bump, exact, cut);
        message_call(&bump, exact, cut);
        message_reply(&bump, exact, cut);
        free(exact);
    }
    /* a list said to be longer than the message */
    static const uint8_t lying[] = {0x2a, 0xff, 0xff, 0xff, 0x7f, 1, 2, 3};
    cr_assert(message_fetch_request(&bump, lying, sizeof lying) == NULL);
}

/* Unpacking takes memory from nowhere else: without it there is no message. */
Test(message, no_memory)
{
    Lodemark__FetchRequest request = fetch(100);
    size_t bytes = lodemark__fetch_request__pack(&request, header);
    for (size_t room = 0; room < 1024; room += 16) {
        message_bump_t small;
        message_bump_init(&small, memory, room);
        Lodemark__FetchRequest *back = message_fetch_request(&small, header, bytes);
        cr_assert(le(sz, small.used, room));
        cr_assert(back == NULL || back->n_blocks == 100);
    }
}

Test(message, fetch_checks)
{
    Lodemark__FetchRequest good = fetch(3), request = good;
    cr_assert(check(&good, 16 * 10) == LODE_OK);
    cr_assert(check(&good, 0) == LODE_ERR_FORMAT);
    cr_assert(check(&good, 15) == LODE_ERR_FORMAT);
    cr_assert(check(&good, 17) == LODE_ERR_FORMAT);
    cr_assert(check(&good, 16 * (MESSAGE_ITEMS_MAX + 1)) == LODE_ERR_FORMAT);
    request.from = RANKS;
    cr_assert(check(&request, 16) == LODE_ERR_FORMAT);
    request = good;
    request.id = 0;
    cr_assert(check(&request, 16) == LODE_ERR_FORMAT);
    request = good;
    request.record_bytes = 0;
    cr_assert(check(&request, 16) == LODE_ERR_FORMAT);
    request.record_bytes = MESSAGE_RECORD_MAX + 1;
    cr_assert(check(&request, 16) == LODE_ERR_FORMAT);
    request.record_bytes = UINT32_MAX;
    cr_assert(check(&request, 16) == LODE_ERR_FORMAT);
    request = good;
    request.n_blocks = 0;
    cr_assert(check(&request, 16) == LODE_ERR_FORMAT);
    request.n_blocks = 2; /* item 2 names the third */
    cr_assert(check(&request, 32) == LODE_OK);
    cr_assert(check(&request, 48) == LODE_ERR_FORMAT);
    request.n_blocks = MESSAGE_BLOCKS_MAX + 1;
    cr_assert(check(&request, 16) == LODE_ERR_FORMAT);
    items[1].mask = 0;
    cr_assert(check(&good, 32) == LODE_ERR_FORMAT);
    cr_assert(strstr(lode_error_message(), "item 1") != NULL);
    for (int i = 0; i < 10; i++)
        items[i].mask = UINT64_MAX; /* 64 × 264 bytes each: seven fit */
    cr_assert(check(&good, 16 * 7) == LODE_OK);
    cr_assert(check(&good, 16 * 8) == LODE_ERR_FORMAT);
}

/* The same, from where UCX left it: nothing is aligned there. */
Test(message, unaligned)
{
    static uint8_t bytes[16 * 5 + 3];
    Lodemark__FetchRequest request = fetch(3);
    uint32_t count;
    size_t size;
    memcpy(bytes + 3, items, 16 * 5);
    cr_assert(message_fetch_check(&request, bytes + 3, 16 * 5, RANKS, CAPACITY, &count, &size) == LODE_OK);
    cr_assert(eq(u32, count, 5));
    cr_assert(eq(sz, size, 5 * 264));
}

Test(message, item_end)
{
    lode_wire_item_t item = {.mask = 1, .head = 0};
    cr_assert(eq(sz, message_item_end(&item, 264), 264));
    item = (lode_wire_item_t){.mask = UINT64_C(1) << 63, .head = 0};
    cr_assert(eq(sz, message_item_end(&item, 264), 64 * 264));
    item = (lode_wire_item_t){.mask = 6, .head = UINT16_MAX};
    cr_assert(eq(sz, message_item_end(&item, 2048), ((size_t)UINT16_MAX * 64 + 3) * 2048));
}

Test(message, call_checks)
{
    Lodemark__Call call = LODEMARK__CALL__INIT;
    Lodemark__BlockSeal seal = LODEMARK__BLOCK_SEAL__INIT;
    call.id = 1;
    call.from = 1;
    call.body_case = LODEMARK__CALL__BODY_BLOCK_SEAL;
    call.block_seal = &seal;
    cr_assert(message_call_check(&call, RANKS) == LODE_OK);
    call.from = RANKS;
    cr_assert(message_call_check(&call, RANKS) == LODE_ERR_FORMAT);
    call.from = 1;
    call.id = 0;
    cr_assert(message_call_check(&call, RANKS) == LODE_ERR_FORMAT);
    call.id = 1;
    call.body_case = LODEMARK__CALL__BODY__NOT_SET;
    cr_assert(message_call_check(&call, RANKS) == LODE_ERR_FORMAT);
}

/* A call as the first version packed it, byte for byte: id 5, epoch 1, from 2, BlockSeal of block 9. */
Test(message, first_version)
{
    static const uint8_t bytes[] = {0x09, 5,    0, 0,    0, 0, 0, 0, 0, 0x10, 1, 0x18,
                                    2,    0x7a, 9, 0x09, 9, 0, 0, 0, 0, 0,    0, 0};
    Lodemark__Call *call = message_call(&bump, bytes, sizeof bytes);
    cr_assert(call && call->id == 5 && call->epoch == 1 && call->from == 2);
    cr_assert(call->body_case == LODEMARK__CALL__BODY_BLOCK_SEAL && call->block_seal->block == 9);
    cr_assert(message_call_check(call, RANKS) == LODE_OK);
    cr_assert(eq(sz, sizeof(lode_wire_item_t), 16));
}
