/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers and names as people read them. */
#include <stdio.h>

#include "launch/client.h"

const char *lode_text_bytes(double bytes, char text[LODE_TEXT_MAX])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    for (; bytes >= 1024 && unit < 4; unit++)
        bytes /= 1024;
    snprintf(text, LODE_TEXT_MAX, "%.*f %s", !unit || bytes >= 100 ? 0 : bytes >= 10 ? 1 : 2, bytes, units[unit]);
    return text;
}

const char *lode_text_time(double ns, char text[LODE_TEXT_MAX])
{
    static const char *const units[] = {"ns", "us", "ms", "s"};
    int unit = 0;
    for (; ns >= 1000 && unit < 3; unit++)
        ns /= 1000;
    if (ns <= 0)
        snprintf(text, LODE_TEXT_MAX, "-");
    else
        snprintf(text, LODE_TEXT_MAX, "%.*f %s", !unit || ns >= 100 ? 0 : ns >= 10 ? 1 : 2, ns, units[unit]);
    return text;
}

const char *lode_text_landmark(const lode_landmark_spec_t *spec, char text[LODE_TEXT_MAX])
{
    char chunk[16] = "";
    if (spec->chunk > 1)
        snprintf(chunk, sizeof chunk, ":c%u", spec->chunk);
    snprintf(text, LODE_TEXT_MAX, "landmark%u%s%s%s", spec->bits, chunk,
             spec->codec == LODE_LANDMARK_HIGGS ? ":higgs" : "",
             spec->centre == (spec->codec != LODE_LANDMARK_MEAN) ? ""
             : spec->centre                                      ? ":centre"
                                                                 : ":nocentre");
    return text;
}

const char *lode_text_plain(const char *from, char *text, size_t room)
{
    size_t n = 0;
    for (; from[n] && n + 1 < room; n++)
        text[n] = (unsigned char)from[n] < 32 || from[n] == 127 ? '?' : from[n];
    text[n] = 0;
    return text;
}
