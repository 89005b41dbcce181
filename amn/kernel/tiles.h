/* The products of panels.h where the processor multiplies whole tiles of bytes (AMX, from Sapphire
 * Rapids on). Part of kernel.c.
 *
 * A code of 16 bits is 256 * high + low, two bytes; a product of codes is four products of bytes. Their sums
 * are integers, and the same as those of the other instructions: answers are the same bits.
 */
#pragma once
#include "base.h"

#define TILE_ROWS 16     /* vectors at once */
#define TILE_COLUMNS 64  /* of each, in one instruction */
#define TILE_BYTES 1024
#define TILED_LEAST 5    /* fewer vectors take less time in other instructions */

/* The operand of `ldtilecfg`. */
typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t rows[16];
} tile_shapes;

/* Tiles 0 to 2 are sums (high by high, mixed, low by low), 3 and 4 vectors, 5 and 6 weights. */
TILED void shape_tiles(int vectors) {
    tile_shapes shapes = {.palette = 1};
    for (int t = 0; t < 7; t++) {
        shapes.bytes[t] = TILE_COLUMNS;
        shapes.rows[t] = t < 5 ? (uint8_t)vectors : TILE_ROWS;
    }
    /* gcc is told neither that the next instruction reads all of `shapes`, nor what later ones load. */
    __asm__ volatile("" : : "m"(shapes) : "memory");
    _tile_loadconfig(&shapes);
}

/* Codes (count, width) as high and low bytes, zeros up to a multiple of TILE_COLUMNS. */
TILED void split(const int16_t *x, int64_t from, int64_t width, int count, int8_t high[][DIM], int8_t low[][DIM]) {
    for (int c = 0; c < count; c++, x += from) {
        int64_t i = 0;
        for (; i < width; i++) high[c][i] = (int8_t)(x[i] >> 8), low[c][i] = (int8_t)(x[i] & 255);
        for (; i % TILE_COLUMNS; i++) high[c][i] = low[c][i] = 0;
    }
}

/* Sums of one block: `columns` of them, a multiple of TILE_COLUMNS; sums[kind][vector][row]. */
TILED void tile_block(const int8_t *high, const int8_t *low, const int8_t *weights, int64_t columns, int32_t *sums) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    for (int64_t i = 0; i < columns; i += TILE_COLUMNS, weights += 2 * TILE_BYTES) {
        _tile_loadd(3, &high[i], DIM);
        _tile_loadd(4, &low[i], DIM);
        _tile_loadd(5, weights, TILE_COLUMNS);
        _tile_loadd(6, &weights[TILE_BYTES], TILE_COLUMNS);
        _tile_dpbssd(0, 3, 5);
        _tile_dpbsud(1, 3, 6);
        _tile_dpbusd(1, 4, 5);
        _tile_dpbuud(2, 4, 6);
    }
    _tile_stored(0, sums, TILE_COLUMNS);
    /* Not `sums + ...`: gcc 11's macro casts its argument without brackets. */
    _tile_stored(1, &sums[TILE_ROWS * ROWS], TILE_COLUMNS);
    _tile_stored(2, &sums[2 * TILE_ROWS * ROWS], TILE_COLUMNS);
}

/* `multiply` for at most TILE_ROWS vectors and DIM columns. */
static TILED_CODE void multiply_tiles(const panels *m, const int16_t *x, int64_t from, const float *by, int count,
                                      float *out, int64_t to) {
    _Alignas(64) int8_t high[TILE_ROWS][DIM], low[TILE_ROWS][DIM];
    _Alignas(64) int32_t sums[3][TILE_ROWS][ROWS];
    int64_t width = (m->width + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_COLUMNS;
    split(x, from, m->width, count, high, low);
    shape_tiles(count);
    for (int64_t row = 0; row < m->rows; row += ROWS)
        for (int64_t i = 0; i < width; i += BLOCK) {
            int last = i + BLOCK >= width;
            const int8_t *weights = m->bytes + 2 * (row * width + ROWS * i);
            tile_block(high[0] + i, low[0] + i, weights, last ? width - i : BLOCK, sums[0][0]);
            for (int c = 0; c < count; c++) {
                __m512i sum = _mm512_slli_epi32(_mm512_load_si512(sums[0][c]), 16);
                sum = _mm512_add_epi32(sum, _mm512_slli_epi32(_mm512_load_si512(sums[1][c]), 8));
                sum = _mm512_add_epi32(sum, _mm512_load_si512(sums[2][c]));
                put(out + c * to + row, _mm512_castsi512_si256(sum), _mm512_extracti64x4_epi64(sum, 1), i == 0,
                    last ? m->scale + row : 0, by[c]);
            }
        }
    _tile_release();
}
