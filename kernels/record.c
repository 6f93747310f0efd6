/* SPDX-License-Identifier: Apache-2.0 */
#include "kernels/internal.h"

size_t lode_record_bytes(lode_format_t format, uint32_t dim)
{
    return 2 * lode_format_vector_bytes(format, dim) + 2 * sizeof(uint16_t) + sizeof(uint32_t);
}

static uint64_t mix(uint64_t x)
{
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}

uint32_t lode_record_tag(uint64_t block, uint32_t layer, uint32_t head, uint32_t token)
{
    uint64_t place = mix(block + 0x9e3779b97f4a7c15u);
    place = mix(place ^ ((uint64_t)layer << 32 | head));
    return (uint32_t)mix(place + token);
}
