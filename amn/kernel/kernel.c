/* The inner loops of a worker: the network (its matrix products: panels.h), the two nearest
 * references (references.h; of a large bank: cells.h), what a memory adds (entries.h), and the features of the gain.
 * amn/kernel/bindings.py and amn/bank/search.py call them; without this file NumPy does the same, slower
 * (DECISIONS.md says how much). Nothing here allocates more than scratch, keeps state or does I/O.
 *
 * A single context is limited by the memory that it reads, many by multiplications: products are of int16,
 * which halves both.
 *
 * Needs AVX2 and FMA, which the caller asks for first (amn_supported); others: see amn_supported.
 */
#include "base.h"

/* The number in amn/kernel/bindings.py; counted up when a structure or an argument changes. */
int amn_version(void) { return 7; }

#if defined(__x86_64__)
#include "cells.h"
#include "entries.h"
#include "panels.h"
#include "references.h"

/* 1 if the processor has tiles of bytes, and Linux lets this process use them: it has to be asked. */
static int tiles_allowed(void) {
#ifdef TILED
    unsigned a, b, c, d, tile_and_int8 = 3u << 24;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & tile_and_int8) != tile_and_int8) return 0;
    return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */) == 0;
#else
    return 0;
#endif
}

/* The level of this processor; 0 when it can run nothing of this. */
int amn_supported(void) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return WITHOUT;
    if (!__builtin_cpu_supports("avx512vnni") || !__builtin_cpu_supports("avx512bw")) return WITH_AVX2;
    return tiles_allowed() ? WITH_TILES : WITH_VNNI;
}

#define TOGETHER 48    /* contexts that a matrix is read for once; a multiple of 6, 12 and 16 */
#define LAYER_MAX 2304 /* three vectors */

/* The bounded layout after the rewrites of amn/model/folded_bounded.py, whose names these are. */
typedef struct {
    panels both, key, detect, recall; /* (familiar + query, 768), (768, query), (hidden, 768), (768, hidden) */
    const float *gram, *gram_bias;    /* (25, paired + 1) and (paired + 1): the last one is the gate */
    const float *scores, *position;   /* (5, paired) and (5) */
    const float *detect_bias, *recall_bias;
    int64_t familiar, paired;
    float trust_slope, trust_offset, residual_max;
} network;

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

/* (count, width) -> (count, rows): a layer of another network, at most LAYER_MAX wide. */
FAST void amn_layer(const panels *m, const float *x, int64_t count, float *out) {
    int16_t codes[TOGETHER * LAYER_MAX];
    float by[TOGETHER];
    for (int64_t first = 0; first < count; first += TOGETHER) {
        int some = count - first < TOGETHER ? (int)(count - first) : TOGETHER;
        for (int c = 0; c < some; c++) by[c] = encode(x + (first + c) * m->width, m->width, codes + c * m->width);
        multiply(m, codes, m->width, by, some, out + first * m->rows, m->rows);
    }
}

/* At most TOGETHER of them. What is not trusted reads an eighth of the weights. */
static FAST void forward_some(const network *n, const float *x, int count, float *out, float *trust) {
    int16_t codes[TOGETHER * DIM];
    float by[TOGETHER], length[TOGETHER], gate[TOGETHER], scores[TOGETHER][K], gram[K * K];
    _Alignas(32) float one[TOGETHER][DIM], other[TOGETHER][DIM]; /* every product is at most 768 long */
    int trusted[TOGETHER], some = 0;
    for (int b = 0; b < count; b++) {
        const float *c = x + b * K * DIM;
        for (int d = 0; d < DIM; d++) other[0][d] = c[d] + c[DIM + d] + c[2 * DIM + d] + c[3 * DIM + d] + c[4 * DIM + d];
        by[b] = encode(other[0], DIM, codes + b * DIM);
        length[b] = dot(other[0], other[0], DIM); /* and not the sum of `gram`: five may nearly cancel */
    }
    multiply(&n->both, codes, DIM, by, count, one[0], DIM);
    for (int b = 0; b < count; b++) {
        float inside = 0, *projected = one[b];
        gram_of(x + b * K * DIM, gram);
        for (int64_t i = 0; i < n->familiar; i++) inside += projected[i] * projected[i];
        trust[b] = smaller(larger(n->trust_offset + n->trust_slope * inside / larger(length[b], 1e-12f), 0.0f), 1.0f);
        gate[b] = pair_scores(n, gram, scores[b]);
        if (!(trust[b] > 0)) continue;
        by[some] = encode(projected + n->familiar, n->key.width, codes + some * DIM);
        trusted[some++] = b;
    }
    multiply(&n->key, codes, DIM, by, some, other[0], DIM);
    for (int t = 0; t < some; t++)
        for (int b = trusted[t], i = 0; i < K; i++)
            scores[b][i] += trust[b] * dot(x + (b * K + i) * DIM, other[t], DIM);
    for (int b = 0; b < count; b++) mix(x + b * K * DIM, scores[b], out + b * DIM);
    for (int t = 0; t < some; t++) by[t] = encode(out + trusted[t] * DIM, DIM, codes + t * DIM);
    multiply(&n->detect, codes, DIM, by, some, one[0], DIM);
    for (int t = 0; t < some; t++) {
        for (int64_t h = 0; h < n->recall.width; h++) one[t][h] = larger(one[t][h] + n->detect_bias[h], 0.0f);
        by[t] = encode(one[t], n->recall.width, codes + t * DIM);
    }
    multiply(&n->recall, codes, DIM, by, some, other[0], DIM);
    for (int t = 0; t < some; t++) {
        float *residual = other[t], *answer = out + trusted[t] * DIM;
        for (int d = 0; d < DIM; d++) residual[d] += n->recall_bias[d];
        float length = sqrtf(dot(residual, residual, DIM) + n->residual_max * n->residual_max);
        float share = trust[trusted[t]] / (1.0f + expf(-gate[trusted[t]])) * n->residual_max / length;
        for (int d = 0; d < DIM; d++) answer[d] += share * residual[d];
        make_unit(answer);
    }
}

/* Contexts (count, 5, 768) -> unit vectors (count, 768) and how far each was trusted (count). */
FAST void amn_forward(const network *n, const float *x, int64_t count, float *out, float *trust) {
    for (int64_t first = 0; first < count; first += TOGETHER)
        forward_some(n, x + first * K * DIM, count - first < TOGETHER ? (int)(count - first) : TOGETHER, out + first * DIM, trust + first);
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

#define LEAST 1e-6 /* five vectors may cancel */

/* amn/gate/gain.py FEATURES of contexts (count, 5, 768) and predictions (count, 768) -> (count, 5). */
FAST void amn_features(const float *x, const float *predictions, int64_t count, double *out) {
    float gram[K * K], along[K];
    for (int64_t b = 0; b < count; b++, x += K * DIM, predictions += DIM, out += 5) {
        double square = gram_of(x, gram), length = square < 0 ? 0 : sqrt(square), toward = 0, neighbours = 0;
        for (int i = 0; i < K; i++) toward += along[i] = dot(x + i * DIM, predictions, DIM);
        for (int i = 0; i < K - 1; i++) neighbours += gram[K * i + i + 1];
        out[0] = novelty(gram, along);
        out[1] = toward / (length < LEAST ? LEAST : length); /* what is no number stays none */
        out[2] = along[K - 1];
        out[3] = neighbours / (K - 1);
        out[4] = length / K;
    }
}

/* The gain of amn/gate/gain.py: a linear model of the features, where the fallback has a weight. */
typedef struct {
    const double *coefficients, *edges, *weights; /* (terms), (edges) and (edges + 1): weights[i] up to edges[i] */
    int64_t terms, edge_count;
    double intercept;
} worth;

/* Features (count, 5), which it makes of contexts and predictions, and the gains of escalating (count). */
FAST void amn_gain(const worth *w, const float *x, const float *predictions, int64_t count, double *gain) {
    double made[K];
    for (int64_t b = 0; b < count; b++) {
        int64_t step = 0;
        amn_features(x + b * K * DIM, predictions + b * DIM, 1, made);
        while (step < w->edge_count && !(made[0] < w->edges[step])) step++;
        gain[b] = w->intercept;
        for (int64_t i = 0; i < w->terms; i++) gain[b] += w->coefficients[i] * made[i];
        if (!(w->weights[step] > 0)) gain[b] = 0;
    }
}

#else /* no loops for this processor yet: NumPy serves */
int amn_supported(void) { return 0; }
#endif
