/* SPDX-License-Identifier: Apache-2.0 */
/**
 * @file amx.h
 * @brief AMX: tiles of 16 rows of 64 bytes, and products of whole tiles. LODE_EMULATE: as in avx512vnni.h.
 *
 * A tile of the second operand is a stretch of landmark words as they lie in memory: row k is word k, four bytes of
 * each of 16 landmarks. The first operand's row m is a query. So sums[m][n] is query m with landmark n.
 */
#ifndef LODE_KERNELS_AMX_H
#define LODE_KERNELS_AMX_H

#include "kernels/avx512vbmi/avx512vbmi.h"

#define TILE_ROWS 16
#define TILE_BYTES 64

void lode_amx_landmark_score(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                             const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                             float *scratch);
void lode_amx_landmark_score_emulated(const lode_landmark_spec_t *spec, uint32_t dim, const uint8_t *tiles, size_t n,
                                      const lode_landmark_query_t *queries, uint32_t group, float *out, size_t stride,
                                      float *scratch);

#ifdef LODE_EMULATE

static _Thread_local uint8_t emulated_tile[8][TILE_ROWS][TILE_BYTES];

static inline void tiles_begin(void)
{
    memset(emulated_tile, 0xa5, sizeof emulated_tile); /* nothing may be taken for zero */
}

static inline void tiles_end(void) {}

static inline void tile_zero(int tile)
{
    memset(emulated_tile[tile], 0, sizeof emulated_tile[tile]);
}

static inline void tile_load(int tile, const void *at)
{
    memcpy(emulated_tile[tile], at, sizeof emulated_tile[tile]);
}

static inline void tile_store(int tile, void *at)
{
    memcpy(at, emulated_tile[tile], sizeof emulated_tile[tile]);
}

/* TDPBSSD, TDPBSUD, TDPBUSD: sums[m][n] += Σ over k, j of a[m][4·k + j] · b[k][4·n + j], in 32 bits that wrap around.
 */
static inline void tile_dot(int sums, int a, bool a_signed, int b, bool b_signed)
{
    for (int m = 0; m < TILE_ROWS; m++)
        for (int n = 0; n < TILE_ROWS; n++) {
            uint32_t sum = lode_load32(&emulated_tile[sums][m][4 * n]);
            for (int k = 0; k < TILE_ROWS; k++)
                for (int j = 0; j < 4; j++) {
                    int x = emulated_tile[a][m][4 * k + j], y = emulated_tile[b][k][4 * n + j];
                    x = a_signed ? (int8_t)x : x;
                    y = b_signed ? (int8_t)y : y;
                    sum += (uint32_t)(x * y);
                }
            lode_store32(&emulated_tile[sums][m][4 * n], sum);
        }
}
#define tile_dot_ss(sums, a, b) tile_dot(sums, a, true, b, true)
#define tile_dot_su(sums, a, b) tile_dot(sums, a, true, b, false)
#define tile_dot_us(sums, a, b) tile_dot(sums, a, false, b, true)

#else

typedef struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_config_t;

/* The compiler does not know that these read memory (GCC 12), hence the barriers. */
#define BARRIER __asm__ volatile("" ::: "memory")

static inline void tiles_begin(void)
{
    _Alignas(64) tile_config_t config = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        config.row_bytes[i] = TILE_BYTES;
        config.rows[i] = TILE_ROWS;
    }
    BARRIER;
    _tile_loadconfig(&config);
    BARRIER;
}

/* What is left in tiles would be saved at each switch to another thread. */
static inline void tiles_end(void)
{
    _tile_release();
}

#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, at)                  \
    do {                                     \
        BARRIER;                             \
        _tile_loadd(tile, (at), TILE_BYTES); \
    } while (0)
#define tile_store(tile, at)                  \
    do {                                      \
        _tile_stored(tile, (at), TILE_BYTES); \
        BARRIER;                              \
    } while (0)
#define tile_dot_ss _tile_dpbssd
#define tile_dot_su _tile_dpbsud
#define tile_dot_us _tile_dpbusd

#endif
#endif
