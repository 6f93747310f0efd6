/* SPDX-License-Identifier: Apache-2.0 */
/* Numbers and names as people read them. */
#include <stdio.h>
#include <string.h>

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
    snprintf(text, LODE_TEXT_MAX, "landmark%u%s%s%s%s", spec->bits, chunk,
             spec->codec == LODE_LANDMARK_HIGGS ? ":higgs" : "",
             spec->centre == (spec->codec != LODE_LANDMARK_MEAN) ? ""
             : spec->centre                                      ? ":centre"
                                                                 : ":nocentre",
             spec->index == LODE_INDEX_ON    ? ":index"
             : spec->index == LODE_INDEX_OFF ? ":noindex"
                                             : "");
    return text;
}

/* Bytes of the printable character of UTF-8 that the text begins with; 0 if there is none. */
static size_t character(const unsigned char *c)
{
    static const unsigned char least[] = {[2] = 0xc2, [3] = 0xe0, [4] = 0xf0};
    size_t length = c[0] < 0x80 ? 1 : c[0] < 0xe0 ? 2 : c[0] < 0xf0 ? 3 : 4;
    if (length == 1)
        return c[0] >= 32 && c[0] != 127;
    if (c[0] < least[length] || c[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((c[i] & 0xc0) != 0x80)
            return 0;
    bool control = length == 2 && c[0] == 0xc2 && c[1] < 0xa0;
    bool overlong = (c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xf0 && c[1] < 0x90);
    bool surrogate = c[0] == 0xed && c[1] >= 0xa0, beyond = c[0] == 0xf4 && c[1] >= 0x90;
    return control || overlong || surrogate || beyond ? 0 : length;
}

const char *lode_text_plain(const char *from, char *text, size_t room)
{
    size_t n = 0;
    while (*from) {
        size_t length = character((const unsigned char *)from);
        if (n + (length ? length : 1) >= room)
            break;
        if (length)
            memcpy(text + n, from, length);
        else
            text[n] = '?';
        n += length ? length : 1;
        from += length ? length : 1;
    }
    text[n] = 0;
    return text;
}

void lode_text_print(FILE *out, const char *text, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)text[i];
        bool c1 = c == 0xc2 && i + 1 < bytes && (unsigned char)text[i + 1] < 0xa0;
        bool control = (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f || c1;
        fputc(control ? '?' : c, out);
        i += c1;
    }
}
