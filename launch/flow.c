/* SPDX-License-Identifier: Apache-2.0 */
#include <locale.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <wchar.h>

#include "launch/flow.h"
#include "reader/utf8.h"

/* --------------------------------------------------------------------- columns */

static locale_t unicode;

static void open_locale(void)
{
    unicode = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
}

static uint32_t code_of(const char *text, int length)
{
    static const uint8_t masks[] = {0, 0x7f, 0x1f, 0x0f, 0x07};
    uint32_t code = (uint8_t)text[0] & masks[length];
    for (int i = 1; i < length; i++)
        code = code << 6 | ((uint8_t)text[i] & 0x3f);
    return code;
}

/* Of the character (length) bytes long; −1 if it is a control character. */
static int columns_of(const char *text, int length)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    uint32_t code = code_of(text, length);
    if (code < 0x20 || (code >= 0x7f && code < 0xa0))
        return -1;
    if (code < 0x300)
        return 1;
    pthread_once(&once, open_locale);
    locale_t before = unicode ? uselocale(unicode) : (locale_t)0;
    int columns = unicode ? wcwidth((wchar_t)code) : 1;
    if (unicode)
        uselocale(before);
    return columns < 0 ? 1 : columns; /* newer than the C library's tables */
}

unsigned lode_flow_columns(const char *text, size_t bytes)
{
    unsigned sum = 0;
    for (size_t at = 0; at < bytes;) {
        int length = lode_utf8_length(text + at, bytes - at), columns = length > 0 ? columns_of(text + at, length) : 1;
        sum += columns < 0 ? 1 : (unsigned)columns;
        at += length > 0 ? (size_t)length : 1;
    }
    return sum;
}

size_t lode_flow_tail(const char *text, size_t bytes, unsigned columns)
{
    size_t at = 0;
    for (unsigned all = lode_flow_columns(text, bytes); at < bytes && all > columns;) {
        int length = lode_utf8_length(text + at, bytes - at);
        size_t next = at + (length > 0 ? (size_t)length : 1);
        all -= lode_flow_columns(text + at, next - at);
        at = next;
    }
    return at;
}

/* ------------------------------------------------------------------------ flow */

static void give_row(lode_flow_t *flow, size_t bytes, size_t skip)
{
    flow->row(flow->self, flow->text, bytes);
    flow->bytes -= bytes + skip;
    memmove(flow->text, flow->text + bytes + skip, flow->bytes);
    flow->columns = lode_flow_columns(flow->text, flow->bytes);
}

/* At the last blank, else where the row is full. */
static void break_row(lode_flow_t *flow)
{
    const char *blank = memrchr(flow->text, ' ', flow->bytes);
    size_t at = blank ? (size_t)(blank - flow->text) : 0;
    if (at)
        give_row(flow, at, 1);
    else
        give_row(flow, flow->bytes, 0);
    flow->broken = true;
}

static void put(lode_flow_t *flow, const char *text, size_t bytes, unsigned columns)
{
    bool blank = bytes == 1 && *text == ' ';
    bool full = flow->columns + columns > flow->width || flow->bytes + bytes > sizeof flow->text;
    if (full && flow->bytes) {
        if (blank) /* it stands for the end of the row */
            give_row(flow, flow->bytes, 0);
        else
            break_row(flow);
        flow->broken = true;
    }
    if (blank && flow->broken && !flow->bytes)
        return;
    memcpy(flow->text + flow->bytes, text, bytes);
    flow->bytes += bytes;
    flow->columns += columns;
    flow->broken = false;
}

void lode_flow_write(lode_flow_t *flow, const char *text, size_t bytes)
{
    for (size_t at = 0; at < bytes;) {
        int length = lode_utf8_length(text + at, bytes - at), columns = length > 0 ? columns_of(text + at, length) : -1;
        if (text[at] == '\n') {
            give_row(flow, flow->bytes, 0);
            flow->broken = false;
        } else if (columns < 0) {
            put(flow, text[at] == '\t' ? " " : "?", 1, 1);
        } else {
            put(flow, text + at, (size_t)length, (unsigned)columns);
        }
        at += length > 0 ? (size_t)length : 1;
    }
}

void lode_flow_fit(lode_flow_t *flow)
{
    if (flow->columns <= flow->width)
        return;
    give_row(flow, flow->bytes, 0);
    flow->broken = true;
}

void lode_flow_finish(lode_flow_t *flow)
{
    if (flow->bytes)
        give_row(flow, flow->bytes, 0);
    flow->broken = false;
}
