/* SPDX-License-Identifier: Apache-2.0 */
/* A view in pages and a choice of its records, as the operations behind selection want them. */
#include <string.h>

#include "bench/gpu.h"

const char *lode_gpubench_format_name(lode_format_t format)
{
    return format == LODE_FORMAT_BF16 ? "bf16" : format == LODE_FORMAT_FP8 ? "fp8" : "higgs4";
}

/* Blocks of unlike lengths, in whole pages but for the last. @return masks */
static lode_status_t lay_blocks(lode_gpubench_t *b, uint32_t tokens, const uint8_t *held, lode_gpubench_pages_t *p,
                                lode_device_part_t *parts)
{
    uint32_t first = 0, pages = (tokens + LODE_PAGE_TOKENS - 1) / LODE_PAGE_TOKENS;
    for (uint32_t i = 0; i < p->blocks; i++) {
        lode_device_block_t *block = &p->host_blocks[i];
        uint32_t mine = i < p->blocks - 1 ? pages / (p->blocks + 1 + i % 2) : pages - first / LODE_PAGE_TOKENS;
        const uint8_t **where;
        *block = (lode_device_block_t){.id = 1000 + i, .first_mask = p->masks, .pages = mine, .format = p->format};
        LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *where * mine, (void **)&where));
        for (uint32_t page = 0; page < mine; page++)
            where[page] = page % 2 ? held : NULL;
        LODE_TRY(lode_gpubench_put(b, where, sizeof *where * mine, (void **)(uintptr_t)&block->held));
        parts[i] = (lode_device_part_t){.first_token = first, .block = i, .angles = UINT32_MAX};
        parts[i].visible = i < p->blocks - 1 ? mine * LODE_PAGE_TOKENS : tokens - first;
        first += parts[i].visible;
        p->masks += mine * p->heads;
    }
    return LODE_OK;
}

/* One token of each stretch of as many as the choice is thinned by. */
static void choose_tokens(lode_gpubench_t *b, uint32_t tokens, lode_gpubench_pages_t *p)
{
    for (uint32_t head = 0; head < p->heads; head++)
        for (uint32_t i = 0; i < p->per_head; i++) {
            uint32_t begin = (uint32_t)((uint64_t)i * tokens / p->per_head);
            uint32_t end = (uint32_t)((uint64_t)(i + 1) * tokens / p->per_head);
            p->tokens[(size_t)head * p->per_head + i] = begin + lode_gpubench_below(b, end - begin);
        }
}

static uint32_t mask_of(const lode_gpubench_pages_t *p, const lode_device_part_t *parts, uint32_t head, uint32_t token,
                        uint32_t *bit)
{
    uint32_t i = 0;
    while (i + 1 < p->blocks && token >= parts[i + 1].first_token)
        i++;
    token -= (uint32_t)parts[i].first_token;
    *bit = token % LODE_PAGE_TOKENS;
    return p->host_blocks[i].first_mask + token / LODE_PAGE_TOKENS * p->heads + head;
}

/* Masks, the number of the first record of each, and every record's own. */
static lode_status_t number_records(lode_gpubench_t *b, const lode_device_part_t *parts, lode_gpubench_pages_t *p,
                                    uint32_t *first)
{
    uint32_t bit, *at;
    size_t records = (size_t)p->heads * p->per_head;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *at * records, (void **)&at));
    for (size_t i = 0; i < records; i++) {
        at[i] = mask_of(p, parts, (uint32_t)(i / p->per_head), p->tokens[i], &bit);
        p->wanted[at[i]] |= UINT64_C(1) << bit;
    }
    for (uint32_t mask = 0; mask < p->masks; mask++) {
        first[mask] = p->records;
        p->records += (uint32_t)__builtin_popcountll(p->wanted[mask]);
    }
    for (size_t i = 0; i < records; i++) {
        mask_of(p, parts, (uint32_t)(i / p->per_head), p->tokens[i], &bit);
        p->numbers[i] = first[at[i]] + (uint32_t)__builtin_popcountll(p->wanted[at[i]] & ((UINT64_C(1) << bit) - 1));
    }
    return LODE_OK;
}

static lode_status_t put_tables(lode_gpubench_t *b, const lode_device_part_t *parts, const uint32_t *first,
                                lode_gpubench_pages_t *p)
{
    lode_device_row_t row = {.part_count = p->blocks};
    lode_device_chosen_t *chosen;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *chosen * p->heads, (void **)&chosen));
    for (uint32_t head = 0; head < p->heads; head++)
        chosen[head] = (lode_device_chosen_t){.tokens = (uint64_t)head * p->per_head, .count = p->per_head};
    LODE_TRY(lode_gpubench_put(b, &row, sizeof row, (void **)&p->rows));
    LODE_TRY(lode_gpubench_put(b, parts, sizeof *parts * p->blocks, (void **)&p->parts));
    LODE_TRY(lode_gpubench_put(b, p->host_blocks, sizeof *p->host_blocks * p->blocks, (void **)&p->device_blocks));
    LODE_TRY(lode_gpubench_put(b, chosen, sizeof *chosen * p->heads, (void **)&p->chosen));
    LODE_TRY(lode_gpubench_put(b, p->tokens, sizeof *p->tokens * p->heads * p->per_head, (void **)&p->device_tokens));
    LODE_TRY(lode_gpubench_put(b, first, sizeof *first * p->masks, (void **)&p->first));
    return lode_gpubench_put(b, p->wanted, sizeof *p->wanted * p->masks, (void **)&p->device_wanted);
}

lode_status_t lode_gpubench_pages_create(lode_gpubench_t *b, lode_format_t format, uint32_t dim, uint32_t group,
                                         uint32_t heads, uint32_t tokens, uint32_t blocks, uint32_t per_head,
                                         const uint8_t *held, lode_gpubench_pages_t *p)
{
    lode_device_part_t *parts;
    uint32_t *first;
    *p = (lode_gpubench_pages_t){
        .format = format, .dim = dim, .group = group, .heads = heads, .blocks = blocks, .per_head = per_head};
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *parts * blocks, (void **)&parts));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *p->host_blocks * blocks, (void **)&p->host_blocks));
    LODE_TRY(lay_blocks(b, tokens, held, p, parts));
    size_t records = (size_t)heads * per_head;
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *p->tokens * records, (void **)&p->tokens));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *p->numbers * records, (void **)&p->numbers));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *p->wanted * p->masks, (void **)&p->wanted));
    LODE_TRY(lode_gpubench_alloc(b, LODE_MEMORY_HOST, sizeof *first * p->masks, (void **)&first));
    choose_tokens(b, tokens, p);
    LODE_TRY(number_records(b, parts, p, first));
    return put_tables(b, parts, first, p);
}
