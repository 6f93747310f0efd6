/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The nearest grid point. For pairs the plane is cut in square cells, and each cell knows which points can be
 * nearest to anything inside it: mostly one or two, so that storing a million tokens takes seconds, not
 * minutes, without vector instructions. Points outside the cells, and cells with too many candidates, are
 * searched in full. Both ways give the same answer to the bit.
 */
#include "kernels/internal.h"

#define CELLS 128       /* a side */
#define CELL_REACH 4.0f /* the cells cover [-4, 4): all but 1 in 8,000 of a Gaussian's pairs */
#define CELL_WIDTH (2 * CELL_REACH / CELLS)
#define CANDIDATES 4

typedef struct cell {
    uint8_t candidates[CANDIDATES]; /* ascending, the last repeated */
} cell_t;

static cell_t cells[CELLS][CELLS];
static bool crowded[CELLS][CELLS];
float lode_higgs_columns4[4][256];

static float distance2(float x, float y, uint32_t point)
{
    float dx = x - lode_higgs_grid2[point][0], dy = y - lode_higgs_grid2[point][1];
    return dx * dx + dy * dy;
}

static uint8_t nearest2_of_all(float x, float y)
{
    uint32_t best = 0;
    float least = distance2(x, y, 0);
    for (uint32_t i = 1; i < 256; i++) {
        float distance = distance2(x, y, i);
        if (distance < least) {
            least = distance;
            best = i;
        }
    }
    return (uint8_t)best;
}

uint8_t lode_higgs_nearest2(float x, float y)
{
    float column = (x + CELL_REACH) * (1 / CELL_WIDTH), row = (y + CELL_REACH) * (1 / CELL_WIDTH);
    if (!(column >= 0 && column < CELLS && row >= 0 && row < CELLS) || crowded[(int)column][(int)row])
        return nearest2_of_all(x, y);
    const uint8_t *candidates = cells[(int)column][(int)row].candidates;
    uint8_t best = candidates[0];
    float least = distance2(x, y, best);
    for (uint32_t i = 1; i < CANDIDATES; i++) {
        float distance = distance2(x, y, candidates[i]);
        best = distance < least ? candidates[i] : best;
        least = distance < least ? distance : least;
    }
    return best;
}

uint8_t lode_higgs_nearest4(const float *x)
{
    uint32_t best = 0;
    float least = INFINITY;
    for (uint32_t i = 0; i < 256; i++) {
        const float *point = lode_higgs_grid4[i];
        float a = x[0] - point[0], b = x[1] - point[1], c = x[2] - point[2], d = x[3] - point[3];
        float distance = (a * a + b * b) + (c * c + d * d);
        if (distance < least) {
            least = distance;
            best = i;
        }
    }
    return (uint8_t)best;
}

/* Squared distances, along one axis, from each point to the nearest and the farthest place of a strip of cells. */
typedef struct strip {
    float nearest[256], farthest[256];
} strip_t;

static void fill_strip(strip_t *strip, uint32_t number, uint32_t axis)
{
    /* The margin outweighs every rounding between here and the search. */
    const float margin = 1e-4f, low = (float)number * CELL_WIDTH - CELL_REACH - margin;
    const float high = low + CELL_WIDTH + 2 * margin;
    for (uint32_t i = 0; i < 256; i++) {
        float p = lode_higgs_grid2[i][axis];
        float inside = fmaxf(fmaxf(low - p, p - high), 0), across = fmaxf(fabsf(p - low), fabsf(p - high));
        strip->nearest[i] = inside * inside;
        strip->farthest[i] = across * across;
    }
}

/* A point can be nearest to some place of the cell if it may be nearer than the farthest reach of some other point. */
static void fill_cell(uint32_t column, uint32_t row, const strip_t *across, const strip_t *along)
{
    float reach = INFINITY;
    for (uint32_t i = 0; i < 256; i++) {
        float far = across->farthest[i] + along->farthest[i];
        reach = far < reach ? far : reach;
    }
    reach += 1e-4f * (1 + reach);
    uint32_t found = 0;
    for (uint32_t i = 0; i < 256; i++) {
        if (across->nearest[i] + along->nearest[i] > reach)
            continue;
        for (uint32_t j = found; j < CANDIDATES; j++)
            cells[column][row].candidates[j] = (uint8_t)i;
        found++;
    }
    crowded[column][row] = found > CANDIDATES;
}

void lode_higgs_prepare(void)
{
    static strip_t across[CELLS], along[CELLS];
    for (uint32_t i = 0; i < CELLS; i++) {
        fill_strip(&across[i], i, 0);
        fill_strip(&along[i], i, 1);
    }
    for (uint32_t column = 0; column < CELLS; column++)
        for (uint32_t row = 0; row < CELLS; row++)
            fill_cell(column, row, &across[column], &along[row]);
    for (uint32_t i = 0; i < 256; i++)
        for (uint32_t j = 0; j < 4; j++)
            lode_higgs_columns4[j][i] = lode_higgs_grid4[i][j];
}
