/* The entries of a memory that are nearest to a context (amn/model/memory.py tells it); part of kernel.c.
 *
 * Entries lie in the order of their cells, sixteen a panel: codes[panel][pair][entry][2], a byte each. All
 * entries of the nearest cells are compared, in integers: their bytes are read from the file that all
 * workers map, and there is nothing else to read.
 */
#pragma once
#include "cells.h"

/* A memory as amn/model/memory.py holds it. */
typedef struct {
    const int8_t *codes;
    const float *step;             /* (width): what a step of a code is worth; at most DIM, a multiple of 16 */
    const float *centroids, *half; /* (cells, width), and (cells): half of a squared length */
    const int64_t *start;          /* (cells + 1): the first entry of each cell */
    int64_t cells, width, probes, keep;
} memory;

/* Products of a query with sixteen entries. A sum fits 32 bits, since the codes of a query are at most
 * LENGTH_MAX long over each BLOCK, and those of an entry are bytes. */
INLINE void sum_panel(const int8_t *panel, const int16_t *query, int64_t width, __m256i out[2]) {
    out[0] = out[1] = _mm256_setzero_si256();
    for (int64_t i = 0; i < width; i += 2, panel += 2 * ROWS) {
        int32_t pair;
        memcpy(&pair, query + i, 4);
        __m256i both = _mm256_set1_epi32(pair), rows = _mm256_loadu_si256((const __m256i *)panel);
        __m256i low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(rows));
        __m256i high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(rows, 1));
        out[0] = _mm256_add_epi32(out[0], _mm256_madd_epi16(low, both));
        out[1] = _mm256_add_epi32(out[1], _mm256_madd_epi16(high, both));
    }
}

/* Adds the entries of a cell whose score is among the best. A panel may hold entries of other cells. */
static FAST void compare_cell(const memory *m, const int16_t *query, float by, int64_t cell, shortlist *to) {
    int64_t first = m->start[cell], last = m->start[cell + 1];
    for (int64_t at = first / ROWS * ROWS; at < last; at += ROWS) {
        _Alignas(32) float scores[ROWS];
        __m256i sums[2];
        uint32_t which = 0;
        sum_panel(m->codes + at * m->width, query, m->width, sums);
        for (int h = 0; h < 2; h++) {
            __m256 some = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[h]), _mm256_set1_ps(by));
            _mm256_store_ps(scores + 8 * h, some);
            which |= (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(some, _mm256_set1_ps(to->limit), _CMP_GT_OQ)) << 8 * h;
        }
        if (at < first) which &= ~0u << (first - at);
        if (last - at < ROWS) which &= (1u << (last - at)) - 1;
        for (; which; which &= which - 1) {
            int i = __builtin_ctz(which);
            to->all[to->count++] = scored(scores[i], at + i);
        }
        if (to->count >= 2 * to->keep) shorten(to);
    }
}

/* The score of one entry in float32: weights of neighbours that are nearly alike follow from small differences. */
static FAST float score_entry(const memory *m, const float *scaled, int64_t entry) {
    const int8_t *at = m->codes + entry / ROWS * ROWS * m->width + entry % ROWS * 2;
    float sum = 0;
    for (int64_t i = 0; i < m->width; i += 2, at += 2 * ROWS) sum += scaled[i] * at[0] + scaled[i + 1] * at[1];
    return sum;
}

/* Projected queries (count, width) -> the scores and entries of the `keep` best, (count, keep), in no order.
 * Where fewer were found, the least of them repeats. 0, or 1 when there was no memory for the candidates. */
FAST int amn_recall(const memory *m, const float *flat, int64_t count, float *scores, int64_t *entries) {
    int64_t room = m->cells + 2 * m->keep + 32, probes = m->probes < m->cells ? m->probes : m->cells;
    candidate *cells = malloc(sizeof(candidate) * room);
    if (!cells) return 1;
    for (; count > 0; count--, flat += m->width) {
        float scaled[DIM];
        int16_t codes[DIM];
        shortlist list = {cells + m->cells, 0, m->keep, -1e30f};
        for (int64_t c = 0; c < m->cells; c++)
            cells[c] = scored(dot(flat, m->centroids + c * m->width, m->width) - m->half[c], c);
        best_first(cells, m->cells, probes);
        for (int64_t i = 0; i < m->width; i++) scaled[i] = flat[i] * m->step[i];
        float by = encode(scaled, m->width, codes);
        for (int64_t i = 0; i < probes; i++) compare_cell(m, codes, by, place_of(cells[i]), &list);
        shorten(&list);
        candidate least = list.count ? list.all[0] : scored(-2, 0);
        for (int64_t i = 1; i < list.count; i++) least = list.all[i] < least ? list.all[i] : least;
        for (int64_t i = 0; i < m->keep; i++) {
            candidate one = i < list.count ? list.all[i] : least;
            *scores++ = list.count ? score_entry(m, scaled, place_of(one)) : -2, *entries++ = place_of(one);
        }
    }
    free(cells);
    return 0;
}
