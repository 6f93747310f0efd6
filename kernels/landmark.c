/* SPDX-License-Identifier: Apache-2.0 */
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
