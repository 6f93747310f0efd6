/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "kernels/internal.h"

bool lode_landmark_spec_valid(const lode_landmark_spec_t *spec, uint32_t dim)
{
    if (dim != 64 && dim != 128 && dim != 256)
        return false;
    if (spec->index > LODE_INDEX_OFF)
        return false;
    uint32_t chunk = spec->chunk;
    if (chunk != 1 && chunk != 2 && chunk != 4 && chunk != 8 && chunk != 16)
        return false;
    switch (spec->codec) {
    case LODE_LANDMARK_MEAN:
        return spec->bits == 16;
    case LODE_LANDMARK_UNIFORM:
        return spec->bits == 8 || spec->bits == 4 || spec->bits == 2 || spec->bits == 1;
    case LODE_LANDMARK_HIGGS:
        return spec->bits == 4 || spec->bits == 2;
    }
    return false;
}

size_t lode_landmark_row_bytes(const lode_landmark_spec_t *spec, uint32_t dim)
{
    return lode_landmark_code_bytes(spec, dim) + (spec->codec == LODE_LANDMARK_MEAN ? 0 : sizeof(uint16_t));
}

size_t lode_landmark_tile_bytes(const lode_landmark_spec_t *spec, uint32_t dim)
{
    return LODE_TILE * lode_landmark_row_bytes(spec, dim);
}

size_t lode_score_scratch_floats(const lode_landmark_spec_t *spec, uint32_t dim, uint32_t group)
{
    if (spec->codec != LODE_LANDMARK_HIGGS)
        return 0;
    uint32_t coordinates = spec->bits == 4 ? 2 : 4;
    return (size_t)group * (dim / coordinates) * 256;
}

/* What the codes of a UNIFORM row stand for, without its scale. */
static void codes_decode(uint32_t bits, uint32_t dim, const uint8_t *row, float *x)
{
    uint32_t fields = 8 / bits, mask = (1u << bits) - 1;
    float middle = (float)mask * 0.5f;
    for (uint32_t word = 0; word < dim / (4 * fields); word++, row += 4)
        for (uint32_t m = 0; m < fields; m++, x += 4)
            for (uint32_t j = 0; j < 4; j++)
                x[j] = bits == 8 ? (float)(int8_t)row[j] : (float)(row[j] >> bits * m & mask) - middle;
}

void lode_landmark_decode(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *row, float *x)
{
    if (spec->codec == LODE_LANDMARK_MEAN) {
        for (uint32_t i = 0; i < dim; i++)
            x[i] = lode_bf16_widen(lode_load16(row + 2 * i));
        return;
    }
    if (spec->codec == LODE_LANDMARK_UNIFORM)
        codes_decode(spec->bits, dim, row, x);
    else if (spec->bits == 4)
        for (uint32_t i = 0; i < dim; i += 2)
            memcpy(x + i, lode_higgs_grid2[row[i / 2]], 2 * sizeof *x);
    else
        for (uint32_t i = 0; i < dim; i += 4)
            memcpy(x + i, lode_higgs_grid4[row[i / 4]], 4 * sizeof *x);
    float scale = lode_bf16_widen(lode_load16(row + lode_landmark_code_bytes(spec, dim)));
    for (uint32_t i = 0; i < dim; i++)
        x[i] *= scale;
}
