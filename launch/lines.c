/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "launch/lines.h"

static char *take_line(lode_lines_t *lines)
{
    char *end = memchr(lines->text, '\n', lines->bytes);
    bool full = lines->bytes + 1 == sizeof lines->text;
    if (!end && !full && !(lines->ended && lines->bytes))
        return NULL;
    size_t length = end ? (size_t)(end - lines->text) : lines->bytes;
    lines->taken = length + (end != NULL);
    if (length && lines->text[length - 1] == '\r')
        length--;
    lines->text[length] = 0;
    return lines->text;
}

/* @return whether something came */
static bool read_more(lode_lines_t *lines, int wait_ms)
{
    struct pollfd input = {.fd = lines->fd, .events = POLLIN};
    if (poll(&input, 1, wait_ms) <= 0)
        return false;
    ssize_t got = read(lines->fd, lines->text + lines->bytes, sizeof lines->text - 1 - lines->bytes);
    lines->ended = got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN);
    lines->bytes += got > 0 ? (size_t)got : 0;
    return got > 0 || lines->ended;
}

char *lode_lines_next(lode_lines_t *lines, int wait_ms)
{
    lines->bytes -= lines->taken;
    memmove(lines->text, lines->text + lines->taken, lines->bytes);
    lines->taken = 0;
    for (;;) {
        char *line = take_line(lines);
        if (line || lines->ended || !read_more(lines, wait_ms))
            return line;
    }
}
