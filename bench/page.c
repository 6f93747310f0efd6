/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>

#include "bench/page.h"

void lode_page_escape(FILE *out, const char *text)
{
    for (; *text; text++)
        switch (*text) {
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '&':
            fputs("&amp;", out);
            break;
        default:
            fputc(*text, out);
        }
}

void lode_page_settings(FILE *out, const json_t *report, const char *const *keys, size_t count)
{
    fputs("<dl>\n", out);
    for (size_t i = 0; i < count; i++) {
        const json_t *value = json_object_get(report, keys[i]);
        char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9)) : NULL;
        if (!text)
            continue;
        fprintf(out, "<dt>%s</dt><dd>", keys[i]);
        lode_page_escape(out, text);
        fprintf(out, "</dd>\n");
        free(text);
    }
    fputs("</dl>\n", out);
}
