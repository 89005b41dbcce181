/* The inner loops of a worker: the network for a few contexts, the two nearest references (of a large
 * bank: kernel_cells.h), and the features of the gain. amn/kernel.py and amn/index_loops.py call them;
 * without this file NumPy does the same, slower (DECISIONS.md says how much). Nothing here allocates
 * more than scratch, keeps state or does I/O.
 *
 * A single context is limited by the memory that it reads: 5.9 MB of float32 weights and 6.3 MB of
 * references. So weights are kept as int16 with one scale a row (half the bytes, results within 2e-6
 * of float32), and references as one byte a number: enough to rule nearly all of them out by a bound,
 * and the few that are left are compared exactly, in float32.
 *
 * Needs AVX2 and FMA, which the caller asks for first (amn_supported); others: see amn_supported.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define DIM 768
#define K 5
#define CALL_MAX 8 /* contexts a call of amn_forward */

/* As in amn/kernel.py; counted up when a structure or an argument changes. */
int amn_version(void) { return 2; }

#if defined(__x86_64__)
#include <immintrin.h>
#include <math.h>

#define FAST __attribute__((target("avx2,fma")))
#define INLINE static inline __attribute__((always_inline)) FAST

int amn_supported(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

/* rows x width numbers, row by row: weights[r][c] = scale[r] * codes[r][c]. `width` is a
 * multiple of 8 and `rows` of 4. */
typedef struct {
    const int16_t *codes;
    const float *scale;
    int64_t rows, width;
} matrix;

/* The bounded layout after the rewrites of amn/folded_bounded.py, whose names these are. */
typedef struct {
    matrix both, key, detect, recall; /* (familiar + query, 768), (768, query), (hidden, 768), (768, hidden) */
    const float *gram, *gram_bias;    /* (25, paired + 1) and (paired + 1): the last one is the gate */
    const float *scores, *position;   /* (5, paired) and (5) */
    const float *detect_bias, *recall_bias;
    int64_t familiar, paired;
    float trust_slope, trust_offset, residual_max;
} network;

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

/* R rows of weights with C vectors; R and C are constants where this is inlined. */
INLINE void tile(const matrix *m, int64_t row, const float *const *in, float *const *out, int R, int C) {
    __m256 sum[R][C]; /* stays in registers */
    const int16_t *w = m->codes + row * m->width;
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sum[r][c] = _mm256_setzero_ps();
    for (int64_t i = 0; i < m->width; i += 8)
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            __m128i narrow = _mm_loadu_si128((const __m128i *)(w + r * m->width + i));
            __m256 wide = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(narrow));
#pragma GCC unroll 8
            for (int c = 0; c < C; c++)
                sum[r][c] = _mm256_fmadd_ps(wide, _mm256_loadu_ps(in[c] + i), sum[r][c]);
        }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) out[c][row + r] = m->scale[row + r] * sum8(sum[r][c]);
}

#define WIDE 1024 /* an eighth of so many products of an int16 with 511 adds up to less than 2^31 */

/* A vector in steps of `scale`: 512 * high + low, within a 500,000th of its largest number. */
typedef struct {
    int16_t high[WIDE], low[WIDE];
    float scale;
} split;

INLINE __m128i narrowed(__m256i v) { return _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)); }

INLINE void split_vector(const float *x, int64_t width, split *to) {
    __m256 most = _mm256_set1_ps(1e-30f);
    float lanes[8];
    for (int64_t i = 0; i < width; i += 8)
        most = _mm256_max_ps(most, _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_loadu_ps(x + i)));
    _mm256_storeu_ps(lanes, most);
    for (int i = 1; i < 8; i++) lanes[0] = larger(lanes[0], lanes[i]);
    to->scale = lanes[0] / (511 * 512);
    for (int64_t i = 0; i < width; i += 8) {
        __m256 steps = _mm256_div_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(to->scale));
        __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(steps, _mm256_set1_ps(1 / 512.0f)));
        __m256i low = _mm256_cvtps_epi32(_mm256_fnmadd_ps(_mm256_cvtepi32_ps(high), _mm256_set1_ps(512), steps));
        _mm_storeu_si128((__m128i *)(to->high + i), narrowed(high));
        _mm_storeu_si128((__m128i *)(to->low + i), narrowed(low));
    }
}

/* Four rows of weights with one vector: in integers, where twice as many fit a register; the next four
 * are fetched meanwhile. */
INLINE void tile_of_one(const matrix *m, int64_t row, const split *x, float *out) {
    __m256i high[4], low[4];
    const int16_t *w = m->codes + row * m->width;
    for (int r = 0; r < 4; r++) high[r] = low[r] = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int64_t i = 0; i < m->width; i += 16) {
        __m256i h = _mm256_loadu_si256((const __m256i *)(x->high + i)), l = _mm256_loadu_si256((const __m256i *)(x->low + i));
#pragma GCC unroll 4
        for (int r = 0; r < 4; r++) {
            const int16_t *at = w + r * m->width + i;
            if (i % 32 == 0) _mm_prefetch((const char *)(at + 4 * m->width), _MM_HINT_T0);
            __m256i codes = _mm256_loadu_si256((const __m256i *)at);
            high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(codes, h));
            low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(codes, l));
        }
    }
    for (int r = 0; r < 4; r++) {
        __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high[r]), _mm256_set1_ps(512), _mm256_cvtepi32_ps(low[r]));
        out[row + r] = m->scale[row + r] * x->scale * sum8(sum);
    }
}

/* out[c] = m @ in[c] for `count` vectors; each weight is read once for up to four of them. */
static FAST void product(const matrix *m, const float *const *in, float *const *out, int count) {
    for (int c = 0; c < count;) {
        int left = count - c;
        int64_t row = 0;
        if (left >= 4)
            for (; row < m->rows; row += 2) tile(m, row, in + c, out + c, 2, 4);
        else if (left >= 2)
            for (; row < m->rows; row += 4) tile(m, row, in + c, out + c, 4, 2);
        else if (m->width % 16 || m->width > WIDE)
            for (; row < m->rows; row += 4) tile(m, row, in + c, out + c, 4, 1);
        else {
            split x;
            split_vector(in[c], m->width, &x);
            for (; row < m->rows; row += 4) tile_of_one(m, row, &x, out[c]);
        }
        c += left >= 4 ? 4 : left >= 2 ? 2 : 1;
    }
}

/* Dot products of the five vectors among themselves, (25,); returns their sum. */
INLINE float gram_of(const float *x, float *gram) {
    float total = 0;
    for (int i = 0; i < K; i++)
        for (int j = i; j < K; j++) {
            float d = gram[K * i + j] = gram[K * j + i] = dot(x + i * DIM, x + j * DIM, DIM);
            total += i == j ? d : 2 * d;
        }
    return total;
}

/* vector *= 1 / its length */
INLINE void make_unit(float *vector) {
    float scale = 1.0f / larger(sqrtf(dot(vector, vector, DIM)), 1e-12f);
    for (int d = 0; d < DIM; d++) vector[d] *= scale;
}

/* Scores of the mixture that turn with the vectors, and the gate before its sigmoid. */
INLINE float pair_scores(const network *n, const float *gram, float *scores) {
    float hidden[128];
    int64_t count = n->paired + 1;
    for (int64_t h = 0; h < count; h++) hidden[h] = n->gram_bias[h];
    for (int i = 0; i < K * K; i++)
        for (int64_t h = 0; h < count; h++) hidden[h] += gram[i] * n->gram[i * count + h];
    for (int i = 0; i < K; i++) {
        scores[i] = n->position[i];
        for (int64_t h = 0; h < n->paired; h++) scores[i] += n->scores[i * n->paired + h] * larger(hidden[h], 0.0f);
    }
    return hidden[n->paired];
}

/* The mixture of the five vectors by softmax(scores), of unit length. */
INLINE void mix(const float *x, const float *scores, float *out) {
    float weight[K], most = scores[0];
    for (int i = 1; i < K; i++) most = larger(most, scores[i]);
    for (int i = 0; i < K; i++) weight[i] = expf(scores[i] - most);
    for (int d = 0; d < DIM; d++) {
        float sum = 0;
        for (int i = 0; i < K; i++) sum += weight[i] * x[i * DIM + d];
        out[d] = sum;
    }
    make_unit(out);
}

/* (count, width) -> (count, rows): a layer of another network, for few rows. */
FAST void amn_product(const matrix *m, const float *x, int64_t count, float *out) {
    for (int64_t first = 0; first < count; first += CALL_MAX) {
        const float *in[CALL_MAX];
        float *to[CALL_MAX];
        int some = count - first < CALL_MAX ? (int)(count - first) : CALL_MAX;
        for (int c = 0; c < some; c++) in[c] = x + (first + c) * m->width, to[c] = out + (first + c) * m->rows;
        product(m, in, to, some);
    }
}

/* `count` contexts (5, 768), at most CALL_MAX -> unit vectors (768) and how far each was trusted. */
FAST void amn_forward(const network *n, const float *x, int64_t count, float *out, float *trust) {
    _Alignas(32) float space[3][CALL_MAX][DIM]; /* every product is at most 768 long */
    float gram[K * K], scores[CALL_MAX][K], gate[CALL_MAX];
    const float *in[CALL_MAX] = {0};
    float *to[CALL_MAX] = {0};
    int trusted[CALL_MAX], some = 0;
    for (int b = 0; b < count; b++) {
        const float *c = x + b * K * DIM;
        for (int d = 0; d < DIM; d++) space[0][b][d] = c[d] + c[DIM + d] + c[2 * DIM + d] + c[3 * DIM + d] + c[4 * DIM + d];
        in[b] = space[0][b], to[b] = space[1][b];
    }
    product(&n->both, in, to, (int)count);
    for (int b = 0; b < count; b++) {
        float inside = 0, *projected = space[1][b];
        float length = gram_of(x + b * K * DIM, gram);
        for (int64_t i = 0; i < n->familiar; i++) inside += projected[i] * projected[i];
        trust[b] = smaller(larger(n->trust_offset + n->trust_slope * inside / larger(length, 1e-12f), 0.0f), 1.0f);
        gate[b] = pair_scores(n, gram, scores[b]);
        if (trust[b] > 0) in[some] = projected + n->familiar, to[some] = space[2][some], trusted[some++] = b;
    }
    product(&n->key, in, to, some); /* what is not trusted reads no more weights */
    for (int t = 0; t < some; t++)
        for (int b = trusted[t], i = 0; i < K; i++)
            scores[b][i] += trust[b] * dot(x + (b * K + i) * DIM, space[2][t], DIM);
    for (int b = 0; b < count; b++) mix(x + b * K * DIM, scores[b], out + b * DIM);
    for (int t = 0; t < some; t++) in[t] = out + trusted[t] * DIM, to[t] = space[0][t];
    product(&n->detect, in, to, some);
    for (int t = 0; t < some; t++) {
        for (int64_t h = 0; h < n->detect.rows; h++) space[0][t][h] = larger(space[0][t][h] + n->detect_bias[h], 0.0f);
        in[t] = space[0][t], to[t] = space[1][t];
    }
    product(&n->recall, in, to, some);
    for (int t = 0; t < some; t++) {
        float *residual = space[1][t], *answer = out + trusted[t] * DIM;
        for (int d = 0; d < DIM; d++) residual[d] += n->recall_bias[d];
        float length = sqrtf(dot(residual, residual, DIM) + n->residual_max * n->residual_max);
        float share = trust[trusted[t]] / (1.0f + expf(-gate[trusted[t]])) * n->residual_max / length;
        for (int d = 0; d < DIM; d++) answer[d] += share * residual[d];
        make_unit(answer);
    }
}

/* References (count, 768): exact, and as bytes: vector = scale * (code - 128), off by at most `error`
 * in length, of any reference. */
typedef struct {
    const float *vectors;
    const uint8_t *codes;
    const float *scale;
    int64_t count;
    float error;
} references;

/* A query as seven bits and a sign, so that the sum of two products with a byte fits 16 bits. */
typedef struct {
    int8_t code[DIM];
    float scale, error;
    int32_t shift; /* what 128 in each byte of a reference adds to the sum */
} query;

static FAST void encode_query(const float *q, query *to) {
    float most = 1e-12f, off = 0;
    for (int d = 0; d < DIM; d++) most = larger(most, fabsf(q[d]));
    to->scale = most / 63, to->shift = 0;
    for (int d = 0; d < DIM; d++) {
        to->code[d] = (int8_t)lrintf(q[d] / to->scale);
        to->shift += 128 * to->code[d];
        float left = q[d] - to->scale * to->code[d];
        off += left * left;
    }
    to->error = sqrtf(off);
}

/* Estimated cosines of C queries with one reference. */
INLINE void estimate(const references *refs, int64_t row, const query *queries, float *const *estimates, int C) {
    __m256i sum[C], ones = _mm256_set1_epi16(1);
    for (int c = 0; c < C; c++) sum[c] = _mm256_setzero_si256();
    for (int d = 0; d < DIM; d += 32) {
        __m256i code = _mm256_loadu_si256((const __m256i *)(refs->codes + row * DIM + d));
#pragma GCC unroll 8
        for (int c = 0; c < C; c++) {
            __m256i with = _mm256_loadu_si256((const __m256i *)(queries[c].code + d));
            sum[c] = _mm256_add_epi32(sum[c], _mm256_madd_epi16(_mm256_maddubs_epi16(code, with), ones));
        }
    }
    for (int c = 0; c < C; c++) {
        __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum[c]), _mm256_extracti128_si256(sum[c], 1));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1));
        estimates[c][row] = refs->scale[row] * queries[c].scale * (float)(_mm_cvtsi128_si32(s) - queries[c].shift);
    }
}

/* Keeps the two best of what it is shown; of equal ones the first. */
INLINE void keep(float cosine, int64_t row, float *best, float *second, int64_t *which) {
    if (cosine > *best) *second = *best, *best = cosine, *which = row;
    else if (cosine > *second) *second = cosine;
}

/* The two best of all references, exactly: |q.v - estimate| <= bound, so that whatever is more than
 * two bounds below the second best estimate is neither. */
static FAST void choose(const references *refs, const float *q, const query *coded, const float *estimates,
                        float *best, float *second, int64_t *which) {
    float high = -2, next = -2, bound = refs->error + coded->error * (1 + refs->error) + 1e-5f;
    for (int64_t i = 0; i < refs->count; i++) keep(estimates[i], i, &high, &next, which);
    *best = *second = -2, *which = 0;
    for (int64_t i = 0; i < refs->count; i++)
        if (estimates[i] >= next - 2 * bound) keep(dot(q, refs->vectors + i * DIM, DIM), i, best, second, which);
}

/* Unit predictions (count, 768) -> best and second best cosine and the best one's row; 0, or 1 when
 * there was no memory for `4 * references` numbers. */
FAST int amn_top2(const references *refs, const float *predictions, int64_t count, float *best, float *second, int64_t *ids) {
    float *scratch = malloc(sizeof(float) * 4 * refs->count), *estimates[4];
    query queries[4];
    if (!scratch) return 1;
    for (int c = 0; c < 4; c++) estimates[c] = scratch + c * refs->count;
    for (int64_t first = 0; first < count; first += 4) {
        int some = count - first < 4 ? (int)(count - first) : 4;
        for (int c = 0; c < some; c++) encode_query(predictions + (first + c) * DIM, queries + c);
        if (some == 4)
            for (int64_t row = 0; row < refs->count; row++) estimate(refs, row, queries, estimates, 4);
        else
            for (int c = 0; c < some; c++)
                for (int64_t row = 0; row < refs->count; row++) estimate(refs, row, queries + c, estimates + c, 1);
        for (int c = 0; c < some; c++)
            choose(refs, predictions + (first + c) * DIM, queries + c, estimates[c], best + first + c, second + first + c, ids + first + c);
    }
    free(scratch);
    return 0;
}

/* The share of a prediction outside the span of its context: 1 - along' (gram + ridge)^-1 along. */
INLINE double novelty(const float *gram, const float *along) {
    double lower[K][K], inside = 0, y[K];
    for (int i = 0; i < K; i++) { /* Cholesky: gram + ridge is positive definite */
        for (int j = 0; j <= i; j++) {
            double s = gram[K * i + j] + (i == j ? 1e-3 : 0);
            for (int k = 0; k < j; k++) s -= lower[i][k] * lower[j][k];
            lower[i][j] = i == j ? sqrt(s) : s / lower[j][j];
        }
        y[i] = along[i];
        for (int k = 0; k < i; k++) y[i] -= lower[i][k] * y[k];
        y[i] /= lower[i][i];
        inside += y[i] * y[i];
    }
    return 1 - inside;
}

/* amn/gain.py FEATURES of contexts (count, 5, 768) and predictions (count, 768) -> (count, 5). */
FAST void amn_features(const float *x, const float *predictions, int64_t count, double *out) {
    float gram[K * K], along[K];
    for (int64_t b = 0; b < count; b++, x += K * DIM, predictions += DIM, out += 5) {
        double length = sqrt(gram_of(x, gram)), toward = 0, neighbours = 0;
        for (int i = 0; i < K; i++) toward += along[i] = dot(x + i * DIM, predictions, DIM);
        for (int i = 0; i < K - 1; i++) neighbours += gram[K * i + i + 1];
        out[0] = novelty(gram, along);
        out[1] = toward / length;
        out[2] = along[K - 1];
        out[3] = neighbours / (K - 1);
        out[4] = length / K;
    }
}

#include "kernel_cells.h"

#else /* no loops for this processor yet: NumPy serves */
int amn_supported(void) { return 0; }
#endif
