/* Matrix products in 16-bit integers, where one instruction multiplies and adds sixteen pairs (32 where the
 * processor has AVX-512 VNNI): twice as many as in float32, and half the memory. Part of kernel.c.
 *
 * Weights have a scale a row, vectors a scale each. A sum of products is exact as long as it fits 32 bits,
 * and by Cauchy and Schwarz it does where the lengths of both, in codes, are at most `LENGTH_MAX`: over
 * BLOCK numbers, since sums go to float32 after each block. So an answer does not depend on what else is
 * in its batch, and differs from float32 by what the codes leave out: about 1e-6 (docs/benchmarks.md).
 */
#pragma once
#include "base.h"
#ifdef TILED
#include "tiles.h"
#endif

/* width numbers as codes; returns their scale. */
static FAST float encode(const float *x, int64_t width, int16_t *codes) {
    __m256 most = _mm256_setzero_ps();
    float lanes[8], longest = 0, total = 0;
    for (int64_t i = 0; i < width; i += BLOCK) {
        __m256 square = _mm256_setzero_ps();
        for (int64_t j = i; j < i + BLOCK && j < width; j += 8) {
            __m256 v = _mm256_loadu_ps(x + j);
            most = _mm256_max_ps(most, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v));
            square = _mm256_fmadd_ps(v, v, square);
        }
        float length = sum8(square);
        longest = larger(longest, length), total += length;
    }
    _mm256_storeu_ps(lanes, most);
    for (int i = 1; i < 8; i++) lanes[0] = larger(lanes[0], lanes[i]);
    float scale = larger(larger(lanes[0] / CODE_MAX, sqrtf(longest) / LENGTH_MAX), 1e-30f);
    __m256 steps = _mm256_set1_ps(1 / scale);
    for (int64_t i = 0; i < width; i += 8) {
        __m256i code = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i), steps));
        __m128i narrow = _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
        _mm_storeu_si128((__m128i *)(codes + i), narrow);
    }
    return scale + (total - total); /* of what is not finite, no number: codes are always some */
}

/* A block of one panel with C vectors, as `multiply` says; `first` and last blocks as `put` says. */
typedef void tile(const int16_t *panel, int64_t pairs, const int16_t *x, int64_t from, float *out, int64_t to,
                  int first, const float *scale, const float *by);

#define EACH1(DO) DO(0)
#define EACH2(DO) EACH1(DO) DO(1)
#define EACH3(DO) EACH2(DO) DO(2)
#define EACH4(DO) EACH3(DO) DO(3)
#define EACH5(DO) EACH4(DO) DO(4)
#define EACH6(DO) EACH5(DO) DO(5)
#define EACH8(DO) EACH6(DO) DO(6) DO(7)
#define EACH12(DO) EACH8(DO) DO(8) DO(9) DO(10) DO(11)
#define PAIR(c)                                                                                                  \
    int32_t pair;                                                                                                \
    memcpy(&pair, x + c * from + 2 * p, 4);

/* Macros, and not arrays and loops: gcc keeps arrays of so many registers in memory, which takes three
 * times as long. The empty instruction says that both sums are needed now; otherwise all products are made
 * first, and there is no room for them. */
#define ZERO(c) __m256i low##c = _mm256_setzero_si256(), high##c = low##c;
#define STEP(c)                                                                                                  \
    {                                                                                                            \
        PAIR(c)                                                                                                  \
        __m256i both = _mm256_set1_epi32(pair);                                                                  \
        low##c = _mm256_add_epi32(low##c, _mm256_madd_epi16(first_rows, both));                                  \
        high##c = _mm256_add_epi32(high##c, _mm256_madd_epi16(last_rows, both));                                 \
        __asm__("" : "+x"(low##c), "+x"(high##c));                                                               \
    }
#define PUT(c) put(out + c * to, low##c, high##c, first, scale, by[c]);
#define TILE(C)                                                                                                  \
    static FAST void tile##C(const int16_t *panel, int64_t pairs, const int16_t *x, int64_t from, float *out,    \
                             int64_t to, int first, const float *scale, const float *by) {                       \
        EACH##C(ZERO) for (int64_t p = 0; p < pairs; p++) {                                                      \
            __m256i first_rows = _mm256_loadu_si256((const __m256i *)(panel + 2 * ROWS * p));                    \
            __m256i last_rows = _mm256_loadu_si256((const __m256i *)(panel + 2 * ROWS * p + ROWS));              \
            EACH##C(STEP)                                                                                        \
        }                                                                                                        \
        EACH##C(PUT)                                                                                             \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)

/* These sums where one instruction multiplies and adds 32 pairs. */
#define WIDE_ZERO(c) __m512i sum##c = _mm512_setzero_si512();
#define WIDE_STEP(c)                                                                                             \
    {                                                                                                            \
        PAIR(c)                                                                                                  \
        sum##c = _mm512_dpwssd_epi32(sum##c, rows, _mm512_set1_epi32(pair));                                     \
    }
#define WIDE_PUT(c)                                                                                              \
    put(out + c * to, _mm512_castsi512_si256(sum##c), _mm512_extracti64x4_epi64(sum##c, 1), first, scale, by[c]);
#define WIDE(C)                                                                                                  \
    static WIDEST void wide##C(const int16_t *panel, int64_t pairs, const int16_t *x, int64_t from, float *out,  \
                               int64_t to, int first, const float *scale, const float *by) {                     \
        EACH##C(WIDE_ZERO) for (int64_t p = 0; p < pairs; p++) {                                                 \
            __m512i rows = _mm512_loadu_si512(panel + 2 * ROWS * p);                                             \
            EACH##C(WIDE_STEP)                                                                                   \
        }                                                                                                        \
        EACH##C(WIDE_PUT)                                                                                        \
    }
WIDE(4)
WIDE(6)
WIDE(8)
WIDE(12)

/* The largest number of vectors at once, up to `count`: fewer than four wait for memory, not for products. */
INLINE int tile_of(int count, int wide, tile **chosen) {
    static tile *const few[] = {tile1, tile2, tile3, tile4, tile5, tile6};
    if (wide && count >= 12) return *chosen = wide12, 12;
    if (wide && count >= 8) return *chosen = wide8, 8;
    if (wide && count >= 6) return *chosen = wide6, 6;
    if (wide && count >= 4) return *chosen = wide4, 4;
    if (count > 6) count = 6;
    return *chosen = few[count - 1], count;
}

/* out[c][row] = by[c] * sum over i of m[row][i] * x[c][i], for `count` vectors `from` codes apart; they
 * land `to` numbers apart. */
static FAST void multiply(const panels *m, const int16_t *x, int64_t from, const float *by, int count, float *out, int64_t to) {
    int some;
#ifdef TILED
    for (; m->bytes && count >= TILED_LEAST; count -= some, x += some * from, by += some, out += some * to) {
        some = count < TILE_ROWS ? count : TILE_ROWS;
        multiply_tiles(m, x, from, by, some, out, to);
    }
#endif
    for (int64_t row = 0; row < m->rows; row += ROWS)
        for (int c = 0; c < count; c += some) {
            tile *run;
            some = tile_of(count - c, m->level >= WITH_VNNI, &run);
            for (int64_t i = 0; i < m->width; i += BLOCK) {
                int last = i + BLOCK >= m->width;
                run(m->codes + row * m->width + ROWS * i, (last ? m->width - i : BLOCK) / 2, x + c * from + i, from,
                    out + c * to + row, to, i == 0, last ? m->scale + row : 0, by + c);
            }
        }
}
