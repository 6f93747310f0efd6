/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file utf8.h
 * @brief Characters of UTF-8 among bytes.
 */
#ifndef LODE_READER_UTF8_H
#define LODE_READER_UTF8_H

#include <stddef.h>
#include <stdint.h>

/**
 * Bytes of the character that the text begins with: 1 to 4; 0 if none begins there (overlong forms, surrogates and
 * what is beyond U+10FFFF are none); −1 if one may begin there but the text ends within it.
 */
static inline int lode_utf8_length(const void *text, size_t bytes)
{
    const uint8_t *s = text;
    uint8_t low = 0x80, high = 0xbf; /* of the second byte */
    int length;
    if (bytes == 0)
        return -1;
    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    length = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    if (s[0] == 0xe0)
        low = 0xa0;
    else if (s[0] == 0xed)
        high = 0x9f;
    else if (s[0] == 0xf0)
        low = 0x90;
    else if (s[0] == 0xf4)
        high = 0x8f;
    for (int i = 1; i < length; i++, low = 0x80, high = 0xbf) {
        if ((size_t)i == bytes)
            return -1;
        if (s[i] < low || s[i] > high)
            return 0;
    }
    return length;
}

/** Offset of the first byte that belongs to no whole character; @p bytes if there is none. */
static inline size_t lode_utf8_valid(const void *text, size_t bytes)
{
    size_t at = 0;
    while (at < bytes) {
        int length = lode_utf8_length((const uint8_t *)text + at, bytes - at);
        if (length <= 0)
            break;
        at += (size_t)length;
    }
    return at;
}

#endif
