/* SPDX-License-Identifier: Apache-2.0 */
/* An answer's text from its tokens' bytes: whole characters, and nothing that may become a stop text. */
#include <stdlib.h>
#include <string.h>

#include "reader/reader.h"
#include "reader/utf8.h"

static lode_status_t append(char **buffer, size_t *count, size_t *room, const char *bytes, size_t more)
{
    if (*count + more + 1 > *room) {
        size_t want = (*count + more + 1) * 2;
        char *larger = realloc(*buffer, want);
        if (!larger)
            return lode_fail(LODE_ERR_NO_MEMORY, "no memory for %zu bytes of an answer", want);
        *buffer = larger;
        *room = want;
    }
    memcpy(*buffer + *count, bytes, more);
    *count += more;
    (*buffer)[*count] = 0;
    return LODE_OK;
}

/* Offset of the first stop text among the held bytes; their count if there is none. */
static size_t find_stop(const lode_scribe_t *scribe)
{
    size_t first = scribe->held_bytes;
    for (uint32_t i = 0; i < scribe->manner->stop_count; i++) {
        const char *stop = scribe->manner->stops[i];
        const char *at = scribe->held_bytes ? memmem(scribe->held, scribe->held_bytes, stop, strlen(stop)) : NULL;
        if (at && (size_t)(at - scribe->held) < first)
            first = (size_t)(at - scribe->held);
    }
    return first;
}

/* Offset from which the held bytes, to their end, begin a stop text; their count if they do nowhere. */
static size_t find_begun_stop(const lode_scribe_t *scribe)
{
    size_t first = scribe->held_bytes;
    for (uint32_t i = 0; i < scribe->manner->stop_count; i++) {
        const char *stop = scribe->manner->stops[i];
        size_t most = strlen(stop) - 1, left = most < scribe->held_bytes ? most : scribe->held_bytes;
        for (size_t at = scribe->held_bytes - left; at < first; at++)
            if (memcmp(scribe->held + at, stop, scribe->held_bytes - at) == 0)
                first = at;
    }
    return first;
}

/* Give out the characters of the first bytes held; of bytes that are none, one U+FFFD each. */
static lode_status_t settle(lode_scribe_t *scribe, size_t bytes, bool cut_off_too)
{
    size_t at = 0;
    while (at < bytes) {
        int length = lode_utf8_length(scribe->held + at, bytes - at);
        if (length < 0 && !cut_off_too)
            break;
        if (length > 0)
            LODE_TRY(append(&scribe->text, &scribe->bytes, &scribe->room, scribe->held + at, (size_t)length));
        else
            LODE_TRY(append(&scribe->text, &scribe->bytes, &scribe->room, "\xef\xbf\xbd", 3));
        at += length < 0 ? bytes - at : length == 0 ? 1 : (size_t)length;
    }
    if (at) {
        scribe->held_bytes -= at;
        memmove(scribe->held, scribe->held + at, scribe->held_bytes);
    }
    return LODE_OK;
}

lode_status_t lode_scribe_write(lode_scribe_t *scribe, const char *bytes, size_t count)
{
    if (scribe->stopped)
        return LODE_OK;
    LODE_TRY(append(&scribe->held, &scribe->held_bytes, &scribe->held_room, bytes, count));
    size_t stop = find_stop(scribe);
    if (stop == scribe->held_bytes)
        return settle(scribe, find_begun_stop(scribe), false);
    scribe->held_bytes = stop;
    LODE_TRY(settle(scribe, stop, true));
    scribe->stopped = true;
    return LODE_OK;
}

lode_status_t lode_scribe_finish(lode_scribe_t *scribe)
{
    LODE_TRY(append(&scribe->text, &scribe->bytes, &scribe->room, "", 0)); /* an empty answer is a text too */
    return settle(scribe, scribe->held_bytes, true);
}

void lode_scribe_free(lode_scribe_t *scribe)
{
    free(scribe->text);
    free(scribe->held);
    *scribe = (lode_scribe_t){.manner = scribe->manner};
}
