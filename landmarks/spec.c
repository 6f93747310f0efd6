/* SPDX-License-Identifier: Apache-2.0 */
#include <stdlib.h>
#include <string.h>

#include "landmarks/landmarks.h"

#define KNOWN                                                                                                        \
    "known are landmark16, landmark8, landmark4, landmark2, landmark1, then any of :c1 :c2 :c4 :c8 :c16, :higgs (4 " \
    "and 2 bits), :centre or :nocentre, :index or :noindex, each once"

/* What an option decides, so that none is decided twice. */
enum { DECIDED_CHUNK = 1, DECIDED_CODEC = 2, DECIDED_CENTRE = 4, DECIDED_INDEX = 8 };

static const struct {
    const char *text;
    uint32_t decides, value;
} spec_options[] = {
    {"c1", DECIDED_CHUNK, 1},
    {"c2", DECIDED_CHUNK, 2},
    {"c4", DECIDED_CHUNK, 4},
    {"c8", DECIDED_CHUNK, 8},
    {"c16", DECIDED_CHUNK, 16},
    {"higgs", DECIDED_CODEC, LODE_LANDMARK_HIGGS},
    {"centre", DECIDED_CENTRE, 1},
    {"nocentre", DECIDED_CENTRE, 0},
    {"index", DECIDED_INDEX, LODE_INDEX_ON},
    {"noindex", DECIDED_INDEX, LODE_INDEX_OFF},
};

static bool bits_parse(const char *text, size_t length, uint32_t *bits)
{
    static const struct {
        const char *text;
        uint32_t bits;
    } names[] = {{"landmark16", 16}, {"landmark8", 8}, {"landmark4", 4}, {"landmark2", 2}, {"landmark1", 1}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strlen(names[i].text) == length && memcmp(names[i].text, text, length) == 0) {
            *bits = names[i].bits;
            return true;
        }
    }
    return false;
}

/* One word behind a colon. @return false if it is not known, or what it decides is decided already. */
static bool option_apply(const char *text, size_t length, uint32_t *decided, lode_landmark_spec_t *spec)
{
    for (size_t i = 0; i < sizeof spec_options / sizeof *spec_options; i++) {
        if (strlen(spec_options[i].text) != length || memcmp(spec_options[i].text, text, length) != 0)
            continue;
        uint32_t decides = spec_options[i].decides;
        if (*decided & decides)
            return false;
        *decided |= decides;
        uint32_t value = spec_options[i].value;
        if (decides == DECIDED_CHUNK)
            spec->chunk = value;
        else if (decides == DECIDED_CENTRE)
            spec->centre = value;
        else if (decides == DECIDED_INDEX)
            spec->index = (lode_landmark_index_t)value;
        else
            spec->codec = (lode_landmark_codec_t)value;
        return true;
    }
    return false;
}

lode_status_t lode_landmark_parse(const char *text, lode_landmark_spec_t *spec)
{
    size_t length = strcspn(text, ":");
    uint32_t bits, decided = 0;
    if (!bits_parse(text, length, &bits))
        return lode_fail(LODE_ERR_INVALID, "landmark \"%s\": " KNOWN, text);
    bool mean = bits == 16;
    lode_landmark_spec_t made = {
        .codec = mean ? LODE_LANDMARK_MEAN : LODE_LANDMARK_UNIFORM, .bits = bits, .chunk = 1, .centre = !mean};
    for (const char *rest = text + length; *rest == ':'; rest += length) {
        rest++;
        length = strcspn(rest, ":");
        if (!option_apply(rest, length, &decided, &made))
            return lode_fail(LODE_ERR_INVALID, "landmark \"%s\": what to do with \":%.*s\"? " KNOWN, text, (int)length,
                             rest);
    }
    if (made.codec == LODE_LANDMARK_HIGGS && bits != 4 && bits != 2)
        return lode_fail(LODE_ERR_INVALID, "landmark \"%s\": there are HIGGS grids for 4 and 2 bits only", text);
    *spec = made;
    return LODE_OK;
}
