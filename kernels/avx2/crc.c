/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CRC32C by the processor's own instruction. It takes three cycles but can begin one every cycle, so three
 * stretches run side by side and are joined: the CRC of a stretch followed by n bytes is its CRC times x^8n,
 * one carry-less multiplication.
 */
#include <immintrin.h>

#include "kernels/avx2/avx2.h"

#define MOST_WORDS 128 /* eight-byte words of one stretch */

/* x^(64·w − 33) for w words: what to multiply a CRC by to move it w words on; the rest is in the instruction. */
static uint32_t moves[2 * MOST_WORDS + 1];

void lode_sse42_crc32c_prepare(void)
{
    uint32_t power = 0x80000000u; /* x^0, lowest power in the highest bit */
    for (uint32_t exponent = 0, word = 1; word <= 2 * MOST_WORDS; exponent++) {
        if (exponent == 64 * word - 33)
            moves[word++] = power;
        power = power >> 1 ^ (power & 1 ? 0x82f63b78u : 0);
    }
}

static uint32_t move(uint32_t crc, size_t words)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128((int)crc), _mm_cvtsi32_si128((int)moves[words]), 0);
    return (uint32_t)_mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

static uint64_t word_at(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static uint32_t three_stretches(uint32_t crc, const uint8_t *at, size_t words)
{
    uint64_t first = crc, second = 0, third = 0;
    for (size_t i = 0; i < words; i++, at += 8) {
        first = _mm_crc32_u64(first, word_at(at));
        second = _mm_crc32_u64(second, word_at(at + 8 * words));
        third = _mm_crc32_u64(third, word_at(at + 16 * words));
    }
    return move((uint32_t)first, 2 * words) ^ move((uint32_t)second, words) ^ (uint32_t)third;
}

uint32_t lode_sse42_crc32c(uint32_t seed, const void *data, size_t bytes)
{
    const uint8_t *at = data;
    uint32_t crc = ~seed;
    while (bytes >= 24 * 4) {
        size_t words = bytes / 24 < MOST_WORDS ? bytes / 24 : MOST_WORDS;
        crc = three_stretches(crc, at, words);
        at += 24 * words;
        bytes -= 24 * words;
    }
    for (; bytes >= 8; bytes -= 8, at += 8)
        crc = (uint32_t)_mm_crc32_u64(crc, word_at(at));
    for (; bytes; bytes--, at++)
        crc = _mm_crc32_u8(crc, *at);
    return ~crc;
}

bool lode_avx2_record_check(lode_format_t format, uint32_t dim, const uint8_t *record, uint32_t tag)
{
    size_t bytes = lode_record_bytes(format, dim) - sizeof(uint32_t);
    return lode_sse42_crc32c(tag, record, bytes) == lode_load32(record + bytes);
}
