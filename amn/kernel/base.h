/* The base of every header of kernel.c: the targets of the compiler, sums of eight numbers, and
 * matrices as panels. */
#pragma once
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DIM 768
#define K 5

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#define FAST __attribute__((target("avx2,fma")))
#if defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TILED_CODE __attribute__((target("avx2,fma,avx512f,amx-tile,amx-int8")))
#define TILED static inline __attribute__((always_inline)) TILED_CODE
#endif
/* gcc from 8 on, clang from 7 on, know it. */
#define WIDEST __attribute__((target("avx2,fma,avx512f,avx512bw,avx512vnni")))
#define INLINE static inline __attribute__((always_inline)) FAST

enum { WITHOUT, WITH_AVX2, WITH_VNNI, WITH_TILES };

/* fmaxf and fminf would be calls: they promise more about numbers that are none. */
INLINE float larger(float a, float b) { return a > b ? a : b; }
INLINE float smaller(float a, float b) { return a < b ? a : b; }

INLINE float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

INLINE float dot(const float *a, const float *b, int64_t n) {
    __m256 s = _mm256_setzero_ps(), t = s;
    for (int64_t i = 0; i < n; i += 16) { /* 768 and every other length here is a multiple of 16 */
        s = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), s);
        t = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + 8), _mm256_loadu_ps(b + i + 8), t);
    }
    return sum8(_mm256_add_ps(s, t));
}

/* vector *= 1 / its length */
INLINE void make_unit(float *vector) {
    float scale = 1.0f / larger(sqrtf(dot(vector, vector, DIM)), 1e-12f);
    for (int d = 0; d < DIM; d++) vector[d] *= scale;
}

#define BLOCK 128
#define ROWS 16 /* a panel: two registers of eight rows */
#define LENGTH_MAX 46200.0f /* its square is below 2^31 */
#define CODE_MAX 32000.0f

/* (rows, width) as panels: codes[panel][pair][row][2], weight = scale[row] * code. `rows` is a multiple
 * of ROWS and `width` of 8. `level`, as amn_supported has it, says with which instructions. */
typedef struct {
    const int16_t *codes;
    const int8_t *bytes; /* the same for tiles.h: [panel][64 columns][high, low][4 columns][row][4]; or none */
    const float *scale;
    int64_t rows, width, level;
} panels;

/* Sixteen sums of one vector: of its first block they are stored, of a later one added; after the last
 * one they are scaled. */
INLINE void put(float *out, __m256i low, __m256i high, int first, const float *scale, float by) {
    __m256 sums[2] = {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
    for (int h = 0; h < 2; h++) {
        __m256 sum = first ? sums[h] : _mm256_add_ps(sums[h], _mm256_loadu_ps(out + 8 * h));
        if (scale) sum = _mm256_mul_ps(sum, _mm256_mul_ps(_mm256_loadu_ps(scale + 8 * h), _mm256_set1_ps(by)));
        _mm256_storeu_ps(out + 8 * h, sum);
    }
}
#endif
