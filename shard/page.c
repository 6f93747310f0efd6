/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "shard/shard.h"

static const char *const format_names[] = {
    [LODE_FORMAT_BF16] = "bf16", [LODE_FORMAT_FP8] = "fp8", [LODE_FORMAT_HIGGS4] = "higgs4"};

lode_status_t lode_format_parse(const char *text, lode_format_t *format)
{
    for (int i = LODE_FORMAT_BF16; i <= LODE_FORMAT_HIGGS4; i++) {
        if (strcmp(text, format_names[i]) == 0) {
            *format = (lode_format_t)i;
            return LODE_OK;
        }
    }
    return lode_fail(LODE_ERR_INVALID, "format \"%s\": known are bf16, fp8, higgs4", text);
}

const char *lode_format_name(lode_format_t format)
{
    return format >= LODE_FORMAT_BF16 && format <= LODE_FORMAT_HIGGS4 ? format_names[format] : "unknown";
}

size_t lode_page_bytes(lode_format_t format, uint32_t dim, uint32_t heads)
{
    return lode_record_bytes(format, dim) * LODE_PAGE_TOKENS * heads;
}

void lode_page_encode(const lode_ops_t *ops, lode_format_t format, uint32_t dim, uint32_t heads, uint32_t head_begin,
                      lode_page_id_t id, uint32_t tokens, const float *k, const float *v, uint8_t *page, uint32_t *crc)
{
    size_t record_bytes = lode_record_bytes(format, dim);
    for (uint32_t head = 0; head < heads; head++) {
        uint8_t *record = page + lode_page_record(record_bytes, head, 0);
        for (uint32_t token = 0; token < tokens; token++, record += record_bytes) {
            size_t at = ((size_t)token * heads + head) * dim;
            uint32_t tag = lode_record_tag(id.block, id.layer, head_begin + head, id.page * LODE_PAGE_TOKENS + token);
            ops->record_encode(format, dim, k + at, v + at, tag, record);
        }
        memset(record, 0, (LODE_PAGE_TOKENS - tokens) * record_bytes);
    }
    *crc = ops->crc32c(0, page, lode_page_bytes(format, dim, heads));
}
