/* SPDX-License-Identifier: Apache-2.0 */
/* Landmarks: quantise, place in tiles, score. */
#include "kernels/scalar/scalar.h"

/* The code of each coordinate and, in `centred`, the number it stands for before the row's scale. */
static void uniform_codes(uint32_t bits, uint32_t dim, const float *y, uint8_t *codes, float *centred)
{
    if (bits == 8) {
        float inverse = 127 / lode_scalar_absmax(y, dim);
        for (uint32_t i = 0; i < dim; i++) {
            centred[i] = fminf(fmaxf(rintf(y[i] * inverse), -127), 127);
            codes[i] = (uint8_t)(int8_t)centred[i];
        }
        return;
    }
    float levels = (float)(1u << bits);
    float rms = sqrtf(lode_scalar_lane_dot(y, y, dim) / (float)dim);
    float inverse = 1 / (rms * lode_uniform_step(bits));
    for (uint32_t i = 0; i < dim; i++) {
        float code = fminf(fmaxf(floorf(y[i] * inverse) + levels / 2, 0), levels - 1);
        codes[i] = (uint8_t)code;
        centred[i] = code - (levels - 1) / 2;
    }
}

static void uniform_row(uint32_t bits, uint32_t dim, const float *x, uint8_t *row)
{
    float y[LODE_MAX_DIM], centred[LODE_MAX_DIM], back;
    uint8_t codes[LODE_MAX_DIM] = {0};
    float absmax = lode_scalar_absmax(x, dim), scale = lode_exact_scale(absmax, &back);
    uint16_t row_scale = 0;
    if (absmax > 0) {
        for (uint32_t i = 0; i < dim; i++)
            y[i] = x[i] * scale;
        uniform_codes(bits, dim, y, codes, centred);
        float rescale = lode_scalar_lane_dot(y, y, dim) / lode_scalar_lane_dot(centred, y, dim);
        row_scale = lode_bf16_scale(rescale * back);
    }
    lode_uniform_pack(bits, dim, codes, row);
    lode_store16(row + dim * bits / 8, row_scale);
}

static void higgs_row(uint32_t bits, uint32_t dim, const float *x, uint8_t *row)
{
    float y[LODE_MAX_DIM], back;
    float scale = lode_exact_scale(lode_scalar_absmax(x, dim), &back);
    for (uint32_t i = 0; i < dim; i++)
        y[i] = x[i] * scale;
    uint16_t norm = lode_scalar_rms_scale(y, dim, back);
    for (uint32_t i = 0; bits == 4 && i < dim / 2; i++)
        row[i] = lode_higgs_nearest2(y[2 * i], y[2 * i + 1]);
    for (uint32_t i = 0; bits == 2 && i < dim / 4; i++)
        row[i] = lode_higgs_nearest4(y + 4 * i);
    lode_store16(row + dim * bits / 8, norm);
}

void lode_scalar_landmark_quantise(const lode_landmark_spec_t *spec, uint32_t dim, const float *x, size_t n,
                                   uint8_t *rows)
{
    size_t bytes = lode_landmark_row_bytes(spec, dim);
    for (size_t i = 0; i < n; i++, x += dim, rows += bytes) {
        if (spec->codec == LODE_LANDMARK_MEAN)
            lode_scalar_narrow(LODE_BF16, x, rows, dim);
        else if (spec->codec == LODE_LANDMARK_UNIFORM)
            uniform_row(spec->bits, dim, x, rows);
        else
            higgs_row(spec->bits, dim, x, rows);
    }
}

void lode_scalar_landmark_place(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *rows, size_t n,
                                uint8_t *tiles, size_t first)
{
    size_t row_bytes = lode_landmark_row_bytes(spec, dim), code_bytes = lode_landmark_code_bytes(spec, dim);
    size_t tile_bytes = LODE_TILE * row_bytes;
    for (size_t i = first; i < first + n; i++, rows += row_bytes) {
        uint8_t *tile = tiles + i / LODE_TILE * tile_bytes;
        size_t place = i % LODE_TILE;
        uint8_t *word = tile + place / LODE_LANES * LODE_LANES * code_bytes + place % LODE_LANES * 4;
        for (size_t at = 0; at < code_bytes; at += 4, word += 4 * LODE_LANES)
            memcpy(word, rows + at, 4);
        if (row_bytes > code_bytes)
            memcpy(tile + LODE_TILE * code_bytes + 2 * place, rows + code_bytes, 2);
    }
}

void lode_scalar_landmark_take(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t first,
                               size_t n, uint8_t *rows)
{
    size_t row_bytes = lode_landmark_row_bytes(spec, dim), code_bytes = lode_landmark_code_bytes(spec, dim);
    size_t tile_bytes = LODE_TILE * row_bytes;
    for (size_t i = first; i < first + n; i++, rows += row_bytes) {
        const uint8_t *tile = tiles + i / LODE_TILE * tile_bytes;
        size_t place = i % LODE_TILE;
        const uint8_t *word = tile + place / LODE_LANES * LODE_LANES * code_bytes + place % LODE_LANES * 4;
        for (size_t at = 0; at < code_bytes; at += 4, word += 4 * LODE_LANES)
            memcpy(rows + at, word, 4);
        if (row_bytes > code_bytes)
            memcpy(rows + code_bytes, tile + LODE_TILE * code_bytes + 2 * place, 2);
    }
}

void lode_scalar_query_prepare(const lode_landmark_spec_t *spec, uint32_t dim, const float *q, float bias,
                               lode_landmark_query_t *query)
{
    float absmax = spec->codec == LODE_LANDMARK_UNIFORM ? lode_scalar_absmax(q, dim) : 0, exact;
    float inverse = lode_query_begin(spec->bits, absmax, bias, &exact, query);
    memcpy(query->q32, q, sizeof *q * dim);
    if (spec->codec != LODE_LANDMARK_UNIFORM)
        return;
    for (uint32_t i = 0; i < dim; i++) {
        int32_t code = (int32_t)rintf(q[i] * exact * inverse); /* the rounded quotient cannot pass the greatest code */
        query->q16[i] = (int16_t)code;
        query->q8[i] = (int8_t)code;
        query->sum += code;
    }
    if (spec->bits == 1)
        lode_signs_prepare(dim, query);
}

/* Scores of the 16 landmarks of half a tile, whose words begin at `words` and scales at `scales`. */
static void uniform_half(uint32_t bits, uint32_t dim, const uint8_t *words, const uint8_t *scales,
                         const lode_landmark_query_t *query, float *score)
{
    int32_t sum[LODE_LANES] = {0};
    uint32_t fields = 8 / bits, mask = (1u << bits) - 1;
    for (uint32_t word = 0; word < dim / (4 * fields); word++)
        for (uint32_t i = 0; i < 4 * LODE_LANES; i++)
            for (uint32_t m = 0; m < fields; m++) {
                uint32_t at = word * 4 * fields + 4 * m + i % 4, byte = words[word * 4 * LODE_LANES + i];
                sum[i / 4] +=
                    bits == 8 ? (int8_t)byte * query->q16[at] : (int32_t)(byte >> bits * m & mask) * query->q8[at];
            }
    for (uint32_t lane = 0; lane < LODE_LANES; lane++) {
        int32_t t = bits == 8 ? sum[lane] : 2 * sum[lane] - (int32_t)mask * query->sum;
        score[lane] = lode_uniform_score(query, t, lode_load16(scales + 2 * lane));
    }
}

static void mean_half(uint32_t dim, const uint8_t *words, const lode_landmark_query_t *query, float *score)
{
    float sum[LODE_LANES] = {0};
    for (uint32_t word = 0; word < dim / 2; word++)
        for (uint32_t i = 0; i < 2 * LODE_LANES; i++)
            sum[i / 2] +=
                lode_bf16_widen(lode_load16(words + (word * 2 * LODE_LANES + i) * 2)) * query->q32[2 * word + i % 2];
    for (uint32_t lane = 0; lane < LODE_LANES; lane++)
        score[lane] = sum[lane] + query->bias;
}

/* table (codes of a row, 256): the share of each code in the dot product with the query. */
static void higgs_table(uint32_t bits, uint32_t dim, const float *q, float *table)
{
    uint32_t d = bits == 4 ? 2 : 4;
    for (uint32_t at = 0; at < dim; at += d)
        for (uint32_t code = 0; code < 256; code++) {
            const float *point = bits == 4 ? lode_higgs_grid2[code] : lode_higgs_grid4[code];
            float sum = 0;
            for (uint32_t j = 0; j < d; j++)
                sum += point[j] * q[at + j];
            *table++ = sum;
        }
}

static void higgs_half(size_t code_bytes, const uint8_t *words, const uint8_t *scales, const float *table, float bias,
                       float *score)
{
    float sum[LODE_LANES] = {0};
    for (size_t word = 0; word < code_bytes / 4; word++)
        for (uint32_t i = 0; i < 4 * LODE_LANES; i++)
            sum[i / 4] += table[(4 * word + i % 4) * 256 + words[word * 4 * LODE_LANES + i]];
    for (uint32_t lane = 0; lane < LODE_LANES; lane++)
        score[lane] = sum[lane] * lode_bf16_widen(lode_load16(scales + 2 * lane)) + bias;
}

void lode_scalar_landmark_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                                const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                                float *scratch)
{
    size_t code_bytes = lode_landmark_code_bytes(spec, dim), tile_bytes = lode_landmark_tile_bytes(spec, dim);
    size_t table_floats = lode_score_scratch_floats(spec, dim, 1);
    for (uint32_t g = 0; spec->codec == LODE_LANDMARK_HIGGS && g < group; g++)
        higgs_table(spec->bits, dim, queries[g].q32, scratch + g * table_floats);
    for (size_t i = 0; i < n; i += LODE_LANES) {
        const uint8_t *tile = tiles + i / LODE_TILE * tile_bytes;
        const uint8_t *words = tile + i % LODE_TILE * code_bytes,
                      *scales = tile + LODE_TILE * code_bytes + i % LODE_TILE * 2;
        size_t rest = n - i < LODE_LANES ? n - i : LODE_LANES;
        for (uint32_t g = 0; g < group; g++) {
            float score[LODE_LANES];
            if (spec->codec == LODE_LANDMARK_MEAN)
                mean_half(dim, words, &queries[g], score);
            else if (spec->codec == LODE_LANDMARK_UNIFORM)
                uniform_half(spec->bits, dim, words, scales, &queries[g], score);
            else
                higgs_half(code_bytes, words, scales, scratch + g * table_floats, queries[g].bias, score);
            memcpy(out + g * stride + i, score, rest * sizeof *score);
        }
    }
}
