/* The two nearest of some thousand references, exactly; part of kernel.c.
 *
 * References and predictions are turned so that a few directions hold nearly all of the references'
 * energy. Along those they are compared in integers; what is left of both, by Cauchy and Schwarz, is at
 * most the product of its lengths. That rules nearly all references out (1 % are left of the shipped
 * bank), and those are compared in float32, all 768 numbers of them.
 */
#pragma once
#include "panels.h"

#define AT_ONCE 48 /* predictions that references are read for once */

/* References (count, 768): exact, and turned. */
typedef struct {
    panels turn, turned;  /* (d, 768), orthonormal rows, and (count, d), both padded */
    const float *vectors; /* (count, 768) */
    const float *rest;    /* (count): length of what `turned` leaves out */
    int64_t count;
    float turn_error, error; /* what codes change of a turned unit vector, and of a reference, in length */
} references;

/* Keeps the two best of what it is shown; of equal ones the first. */
INLINE void keep(float cosine, int64_t row, float *best, float *second, int64_t *which) {
    if (cosine > *best) *second = *best, *best = cosine, *which = row;
    else if (cosine > *second) *second = cosine;
}

/* The exact second best of eight good guesses: the best estimates of every eighth reference. */
static FAST float at_least(const references *refs, const float *query, const float *estimates) {
    float best = -2, second = -2;
    int64_t which;
    int32_t rows[8];
    __m256 high = _mm256_set1_ps(-2);
    __m256i place = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), best_place = place;
    for (int64_t i = 0; i + 8 <= refs->count; i += 8) {
        __m256 some = _mm256_loadu_ps(estimates + i), more = _mm256_cmp_ps(some, high, _CMP_GT_OQ);
        high = _mm256_blendv_ps(high, some, more);
        best_place = _mm256_blendv_epi8(best_place, place, _mm256_castps_si256(more));
        place = _mm256_add_epi32(place, _mm256_set1_epi32(8));
    }
    _mm256_storeu_si256((__m256i *)rows, best_place);
    for (int i = 0; i < 8 && refs->count >= 8; i++)
        keep(dot(query, refs->vectors + rows[i] * DIM, DIM), rows[i], &best, &second, &which);
    return second;
}

/* The two best of all references whose estimate allows it: estimate + share * rest + slack >= least. */
static FAST void choose(const references *refs, const float *query, const float *estimates, float share, float slack,
                        float *best, float *second, int64_t *which) {
    __m256 least = _mm256_set1_ps(at_least(refs, query, estimates) - slack);
    int64_t i = 0;
    *best = *second = -2, *which = 0;
    for (; i + 8 <= refs->count; i += 8) {
        __m256 most = _mm256_fmadd_ps(_mm256_set1_ps(share), _mm256_loadu_ps(refs->rest + i), _mm256_loadu_ps(estimates + i));
        int left = _mm256_movemask_ps(_mm256_cmp_ps(most, least, _CMP_GE_OQ));
        for (; left; left &= left - 1) {
            int64_t row = i + __builtin_ctz((unsigned)left);
            keep(dot(query, refs->vectors + row * DIM, DIM), row, best, second, which);
        }
    }
    for (; i < refs->count; i++) keep(dot(query, refs->vectors + i * DIM, DIM), i, best, second, which);
}

/* Unit predictions (count, 768) -> best and second best cosine and the best one's row; 0, or 1 when
 * there was no memory for `48 * references` numbers. A prediction that is no number has -2 twice. */
FAST int amn_top2(const references *refs, const float *predictions, int64_t count, float *best, float *second, int64_t *ids) {
    int64_t d = refs->turn.rows, padded = refs->turned.rows, most = count < AT_ONCE ? count : AT_ONCE;
    if (count < 1) return 0;
    float *estimates = malloc(sizeof(float) * most * padded), flat[AT_ONCE * DIM], by[AT_ONCE], share[AT_ONCE], slack[AT_ONCE];
    int16_t codes[AT_ONCE * DIM];
    if (!estimates) return 1;
    for (int64_t first = 0; first < count; first += AT_ONCE, predictions += AT_ONCE * DIM) {
        int some = count - first < AT_ONCE ? (int)(count - first) : AT_ONCE;
        for (int c = 0; c < some; c++) by[c] = encode(predictions + c * DIM, DIM, codes + c * DIM);
        multiply(&refs->turn, codes, DIM, by, some, flat, d);
        for (int c = 0; c < some; c++) {
            const float *query = predictions + c * DIM, *along = flat + c * d;
            float length = sqrtf(dot(query, query, DIM)), off = refs->turn_error * length + by[c] * 13.9f; /* sqrt(768) / 2 */
            float inside = larger(sqrtf(dot(along, along, d)) - off, 0);
            share[c] = sqrtf(larger(length * length - inside * inside, 0)) + 1e-5f;
            by[c] = encode(along, d, codes + c * DIM);
            slack[c] = off + by[c] * 13.9f + refs->error * length + 1e-5f;
        }
        multiply(&refs->turned, codes, DIM, by, some, estimates, padded);
        for (int c = 0; c < some; c++, best++, second++, ids++)
            if (by[c] == by[c]) choose(refs, predictions + c * DIM, estimates + c * padded, share[c], slack[c], best, second, ids);
            else *best = *second = -2, *ids = 0;
    }
    free(estimates);
    return 0;
}
