/* What a memory adds to AMN's answers (amn/model/retrieval.py has the formulas); part of kernel.c.
 *
 * Entries lie in the order of their cells, the keys sixteen a panel: codes[panel][pair][entry][2], a byte
 * each. All entries of the nearest cells are compared, in integers: their bytes are read from the file that
 * all workers map. Of what followed, only the bytes of the neighbours are read.
 */
#pragma once
#include "cells.h"

/* These also stand in amn/model/memory.py and amn/model/retrieval.py. */
#define KEY_DIM 192
#define NEXT_DIM 256
#define NEIGHBOURS 64
#define RISE 10.0f
#define RISE_MIN 1e-3f
#define BORDER 16 /* cells and entries behind the nearest, whose order in integers may be wrong */
#define CELLS_MAX 128 /* those to probe, with the border */

/* A memory and what weighs it, by the names of the two modules. */
typedef struct {
    panels nearness;                        /* the centroids (cells, 192), padded, as integers */
    const float *key_map, *next_map, *back; /* (192, 768), (256, 768), and the transpose of this */
    const int8_t *keys, *nexts;               /* (panels, 96, 16, 2) and (entries, 256) */
    const float *key_step, *next_step;        /* what a step of a code is worth */
    const float *centroids, *half;            /* (cells, 192), and (cells): half of a squared length */
    const float *attention, *trust;           /* (7) and (5) */
    const int64_t *start;                     /* (cells + 1): the first entry of each cell */
    int64_t probes;
} memory;

INLINE void prefetch_bytes(const int8_t *from, int64_t count) {
    for (int64_t i = 0; i < count; i += 64) _mm_prefetch((const char *)from + i, _MM_HINT_T0);
}

/* Products of a query with sixteen entries. A sum fits 32 bits, since the codes of a query are at most
 * LENGTH_MAX long over each BLOCK, and those of an entry are bytes. */
typedef void panel_sums(const int8_t *panel, const int16_t *query, __m256i out[2]);

static FAST void sum_panel(const int8_t *panel, const int16_t *query, __m256i out[2]) {
    __m256i sums[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int i = 0; i < KEY_DIM; i += 2, panel += 2 * ROWS) {
        int32_t pair;
        memcpy(&pair, query + i, 4);
        for (int h = 0; h < 2; h++) {
            __m256i rows = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)panel + h));
            sums[h] = _mm256_add_epi32(sums[h], _mm256_madd_epi16(rows, _mm256_set1_epi32(pair)));
        }
    }
    out[0] = sums[0], out[1] = sums[1];
}

/* These sums where one instruction multiplies and adds 32 pairs. */
static WIDEST void sum_panel_wide(const int8_t *panel, const int16_t *query, __m256i out[2]) {
    __m512i sums[4];
    for (int j = 0; j < 4; j++) sums[j] = _mm512_setzero_si512();
    for (int i = 0; i < KEY_DIM / 2; i += 4)
        for (int j = 0; j < 4; j++) {
            int32_t pair;
            memcpy(&pair, query + 2 * (i + j), 4);
            __m512i rows = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)panel + i + j));
            sums[j] = _mm512_dpwssd_epi32(sums[j], rows, _mm512_set1_epi32(pair));
        }
    sums[0] = _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3]));
    out[0] = _mm512_castsi512_si256(sums[0]), out[1] = _mm512_extracti64x4_epi64(sums[0], 1);
}

/* Adds those of sixteen places, from `at` on and where `which` has a bit, whose score is among the best. */
INLINE void offer(__m256 low, __m256 high, uint32_t which, int64_t at, shortlist *to) {
    _Alignas(32) float scores[ROWS];
    __m256 limit = _mm256_set1_ps(to->limit);
    which &= (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(low, limit, _CMP_GT_OQ))
        | (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(high, limit, _CMP_GT_OQ)) << 8;
    _mm256_store_ps(scores, low), _mm256_store_ps(scores + 8, high);
    for (; which; which &= which - 1) {
        int i = __builtin_ctz(which);
        to->all[to->count++] = scored(scores[i], at + i);
    }
    if (to->count >= 2 * to->keep) shorten(to);
}

/* Offers the entries of a cell; two panels ahead, also into the next cell, are fetched. A panel may hold entries of
 * other cells. */
static FAST void compare_cell(const memory *m, const int16_t *query, __m256 by, int64_t cell, int64_t next, shortlist *to) {
    panel_sums *sum = m->nearness.level >= WITH_VNNI ? sum_panel_wide : sum_panel;
    int64_t first = m->start[cell], last = m->start[cell + 1];
    for (int64_t at = first / ROWS * ROWS; at < last; at += ROWS) {
        __m256i sums[2];
        int64_t ahead = at + 2 * ROWS;
        if (ahead >= last) ahead = m->start[next] / ROWS * ROWS + (ahead - last) / ROWS * ROWS;
        uint32_t which = ~0u;
        prefetch_bytes(m->keys + ahead * KEY_DIM, ROWS * KEY_DIM);
        sum(m->keys + at * KEY_DIM, query, sums);
        if (at < first) which <<= first - at;
        if (last - at < ROWS) which &= (1u << (last - at)) - 1;
        offer(_mm256_mul_ps(_mm256_cvtepi32_ps(sums[0]), by), _mm256_mul_ps(_mm256_cvtepi32_ps(sums[1]), by), which, at, to);
    }
}

/* Sixteen bytes as numbers. */
INLINE void widen(const int8_t *row, __m256 out[2]) {
    __m128i some = _mm_loadu_si128((const __m128i *)row);
    out[0] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(some));
    out[1] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(some, 8)));
}

/* The product of a vector with a row of bytes; the length is a multiple of 16. */
INLINE float dot_bytes(const float *x, const int8_t *row, int64_t n) {
    __m256 s = _mm256_setzero_ps(), t = s, some[2];
    for (int64_t i = 0; i < n; i += 16) {
        widen(row + i, some);
        s = _mm256_fmadd_ps(_mm256_loadu_ps(x + i), some[0], s);
        t = _mm256_fmadd_ps(_mm256_loadu_ps(x + i + 8), some[1], t);
    }
    return sum8(_mm256_add_ps(s, t));
}

/* The score of one entry in float32: weights of neighbours that are nearly alike follow from small differences. */
INLINE float score_entry(const memory *m, const float *scaled, int64_t entry) {
    int8_t row[KEY_DIM];
    const int8_t *at = m->keys + entry / ROWS * ROWS * KEY_DIM + entry % ROWS * 2;
    for (int i = 0; i < KEY_DIM; i += 2, at += 2 * ROWS) memcpy(row + i, at, 2);
    return dot_bytes(scaled, row, KEY_DIM);
}

/* The nearest cells, at most `probes`, the nearest eighth of them in front: a limit found early spares candidates. */
static FAST int64_t choose_cells(const memory *m, const float *flat, const float *nearness, candidate *cells) {
    shortlist list = {cells, 0, m->probes + BORDER, -1e30f};
    for (int64_t c = 0; c < m->nearness.rows; c += ROWS)
        offer(_mm256_sub_ps(_mm256_loadu_ps(nearness + c), _mm256_loadu_ps(m->half + c)),
              _mm256_sub_ps(_mm256_loadu_ps(nearness + c + 8), _mm256_loadu_ps(m->half + c + 8)), ~0u, c, &list);
    shorten(&list);
    for (int64_t i = 0; i < list.count; i++) {
        int64_t c = place_of(cells[i]);
        cells[i] = scored(dot(flat, m->centroids + c * KEY_DIM, KEY_DIM) - m->half[c], c);
    }
    best_first(cells, list.count, m->probes);
    int64_t probes = list.count < m->probes ? list.count : m->probes;
    best_first(cells, probes, m->probes / 8);
    return probes;
}

/* The best entries for a projected query: their scores, and what followed them. Where fewer were found, the
 * least of them repeats. */
static FAST void find(const memory *m, const float *flat, const float *nearness, float *scores, const int8_t **nexts) {
    float scaled[KEY_DIM];
    int16_t codes[KEY_DIM];
    candidate cells[2 * CELLS_MAX + 2 * ROWS], entries[2 * (NEIGHBOURS + BORDER) + 2 * ROWS];
    shortlist list = {entries, 0, NEIGHBOURS + BORDER, -1e30f};
    int64_t probes = choose_cells(m, flat, nearness, cells);
    for (int i = 0; i < KEY_DIM; i++) scaled[i] = flat[i] * m->key_step[i];
    __m256 by = _mm256_set1_ps(encode(scaled, KEY_DIM, codes));
    cells[probes] = cells[0]; /* none comes after the last */
    for (int64_t i = 0; i < probes; i++) compare_cell(m, codes, by, place_of(cells[i]), place_of(cells[i + 1]), &list);
    shorten(&list);
    for (int64_t i = 0; i < list.count; i++) {
        int64_t entry = place_of(entries[i]);
        prefetch_bytes(m->nexts + entry * NEXT_DIM, NEXT_DIM);
        entries[i] = scored(score_entry(m, scaled, entry), entry);
    }
    best_first(entries, list.count, NEIGHBOURS);
    candidate least = list.count ? entries[0] : scored(-2, 0);
    for (int64_t i = 0; i < NEIGHBOURS; i++) {
        candidate one = i < list.count ? entries[i] : least;
        least = one < least ? one : least;
        scores[i] = score_of(one), nexts[i] = m->nexts + place_of(one) * (int64_t)NEXT_DIM;
    }
}

/* What followed the neighbours, weighed (256), by their products with `asked`; and the signs of what it is
 * worth: the best and the mean score, and its length. */
static FAST void weigh(const memory *m, const float *asked, const float *scores, const int8_t **nexts, float *follows, float *signs) {
    float scaled[NEXT_DIM], weights[NEIGHBOURS], most = -INFINITY, least = INFINITY, total = 0;
    signs[0] = scores[0], signs[1] = 0;
    for (int d = 0; d < NEXT_DIM; d++) scaled[d] = asked[d] * m->next_step[d];
    for (int i = 0; i < NEIGHBOURS; i++) {
        weights[i] = m->attention[0] * scores[i] + dot_bytes(scaled, nexts[i], NEXT_DIM);
        most = larger(most, weights[i]), least = smaller(least, scores[i]);
        signs[0] = larger(signs[0], scores[i]), signs[1] += scores[i] / NEIGHBOURS;
    }
    for (int i = 0; i < NEIGHBOURS; i++)
        total += weights[i] = expf(weights[i] - most) * (1 - expf(RISE * (least - scores[i])) + RISE_MIN);
    for (int d = 0; d < NEXT_DIM; d += 16) {
        __m256 s = _mm256_setzero_ps(), t = s, some[2];
        for (int i = 0; i < NEIGHBOURS; i++) {
            widen(nexts[i] + d, some);
            s = _mm256_fmadd_ps(_mm256_set1_ps(weights[i]), some[0], s);
            t = _mm256_fmadd_ps(_mm256_set1_ps(weights[i]), some[1], t);
        }
        _mm256_storeu_ps(follows + d, s), _mm256_storeu_ps(follows + d + 8, t);
    }
    for (int d = 0; d < NEXT_DIM; d++) follows[d] *= m->next_step[d] / total;
    signs[2] = sqrtf(dot(follows, follows, NEXT_DIM));
}

/* out[c][row] = m[row] . x[c], in float32: an answer would show what integers leave out. A row is read once for
 * all vectors. */
static FAST void project(const float *m, const float *x, int count, int rows, int64_t width, float *out) {
    for (int row = 0; row < rows; row++, m += width)
        for (int c = 0; c < count; c++) out[c * rows + row] = dot(m, x + c * width, width);
}

/* The keys (count, 192) of contexts; all that the attention asks of a successor, as one vector (count, 256);
 * and the nearness of all cells (count, padded). */
static FAST void ask(const memory *m, const float *x, const float *first, int count, float *flat, float *asked, float *nearness) {
    int16_t codes[AT_ONCE * KEY_DIM];
    float by[AT_ONCE], wide[AT_ONCE * DIM];
    for (int c = 0; c < count; c++) {
        for (int d = 0; d < DIM; d++) wide[c * DIM + d] = first[c * DIM + d] + x[(c * K + K - 1) * DIM + d];
        make_unit(wide + c * DIM);
    }
    project(m->key_map, wide, count, KEY_DIM, DIM, flat);
    for (int c = 0; c < count; c++)
        for (int d = 0; d < DIM; d++) {
            float sum = m->attention[1] * first[c * DIM + d];
            for (int i = 0; i < K; i++) sum += m->attention[i + 2] * x[(c * K + i) * DIM + d];
            wide[c * DIM + d] = sum;
        }
    project(m->next_map, wide, count, NEXT_DIM, DIM, asked);
    for (int c = 0; c < count; c++) by[c] = encode(flat + c * KEY_DIM, KEY_DIM, codes + c * KEY_DIM);
    multiply(&m->nearness, codes, KEY_DIM, by, count, nearness, m->nearness.rows);
}

/* AMN's answers `own` with a share of what followed; `signs` are the first three that `trust` weighs. */
static FAST void add_shares(const memory *m, const float *own, const float *signs, const float *follows, int count, float *out) {
    project(m->back, follows, count, DIM, NEXT_DIM, out);
    for (int c = 0; c < count; c++, own += DIM, signs += 3, out += DIM) {
        float share = m->trust[0] * signs[0] + m->trust[1] * signs[1] + m->trust[2] * signs[2]
            + m->trust[3] * dot(out, own, DIM) + m->trust[4];
        for (int d = 0; d < DIM; d++) out[d] = share > 0 ? own[d] + share * out[d] : own[d];
        if (share > 0) make_unit(out);
    }
}

/* Contexts (count, 5, 768) and AMN's answers (count, 768) -> these with a share of what followed; 0, or 1
 * when there was no memory for 48 numbers a cell. */
FAST int amn_recall(const memory *m, const float *x, const float *first, int64_t count, float *out) {
    float flat[AT_ONCE * KEY_DIM], asked[AT_ONCE * NEXT_DIM], follows[AT_ONCE * NEXT_DIM], signs[AT_ONCE * 3], scores[NEIGHBOURS];
    float *nearness = malloc(sizeof(float) * AT_ONCE * m->nearness.rows);
    const int8_t *nexts[NEIGHBOURS];
    if (!nearness) return 1;
    for (int64_t done = 0; done < count; done += AT_ONCE) {
        int some = count - done < AT_ONCE ? (int)(count - done) : AT_ONCE;
        ask(m, x + done * K * DIM, first + done * DIM, some, flat, asked, nearness);
        for (int c = 0; c < some; c++) {
            find(m, flat + c * KEY_DIM, nearness + c * m->nearness.rows, scores, nexts);
            weigh(m, asked + c * NEXT_DIM, scores, nexts, follows + c * NEXT_DIM, signs + 3 * c);
        }
        add_shares(m, first + done * DIM, signs, follows, some, out + done * DIM);
    }
    free(nearness);
    return 0;
}
