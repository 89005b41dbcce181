/* The search of a large bank (amn/bank/search.py tells it), for any number of predictions; part of kernel.c.
 *
 * What it reads decides its time: for one prediction 0.7 MB of projection and centroids as int16, 0.05 MB
 * of codes a cell, 3 KB a candidate. So each is read once, and ids are looked up of candidates alone.
 */
#pragma once
#include "references.h"

#define AHEAD 3072 /* bytes of codes, two blocks, that are fetched before they are needed */

/* An index as it was built. Cell c has `size[c]` references, in the 32-code blocks from `start[c]` on; a place
 * is 32 * block + number within. Codes are packed as faiss packs them: 32 bytes hold two groups, 16
 * each; a byte's low half is of reference 0, 8, 1, 9, .. 7, 15 and its high half of that one plus 16. */
typedef struct {
    panels projection, centroids; /* (d, 768) and (cells, d), both padded */
    const float *half;            /* (cells): half of a centroid's squared length */
    const int64_t *columns;       /* (4 * groups): the direction in each place of the codes; -1 for none */
    const float *codebook;        /* (groups, 4, 16) */
    const uint8_t *codes;
    const int64_t *start, *size;
    const int32_t *ids;
    const float *vectors;
    int64_t cells, groups; /* at most 128 groups, a multiple of 4 */
} cell_index;

/* The widths of a search (IndexSettings), and the thresholds at which there is a second pass (Guard). */
typedef struct {
    int64_t probes, probes_wide, rerank, rerank_wide;
    float within, confidence, margin, reach;
} widths;

/* A score, as an integer that sorts alike, above the place that has it: one number to move and compare. */
typedef int64_t candidate;

INLINE candidate scored(float score, int64_t place) {
    int32_t bits;
    memcpy(&bits, &score, 4);
    return (int64_t)(bits ^ (bits >> 31 & INT32_MAX)) * (1ll << 32) + place;
}
INLINE int32_t place_of(candidate one) { return (int32_t)one; }
INLINE float score_of(candidate one) {
    int32_t bits = (int32_t)(one >> 32);
    float score;
    bits ^= bits >> 31 & INT32_MAX;
    memcpy(&score, &bits, 4);
    return score;
}

/* Candidates of which the `keep` best are wanted; none below `limit` is among them. */
typedef struct {
    candidate *all; /* 2 * keep + 32 */
    int64_t count, keep;
    float limit;
} shortlist;

/* Estimated cosine = base + scale * sum of a code's entries + the centroid's product. */
typedef struct {
    uint8_t table[128 * 16];
    float base, scale;
} lookup;

/* Rows seen, so that one filed under two of the cells is compared once. */
typedef struct {
    int32_t *slots;
    uint64_t mask;
} row_set;

/* Puts the `keep` best first, in no order: quickselect, whose only branches are those of its loops. */
INLINE void best_first(candidate *all, int64_t count, int64_t keep) {
    int64_t low = 0, high = count;
    while (low < keep && keep < high) {
        candidate pivot = all[(low + high) / 2];
        int64_t above = low; /* those from `low` on that are better */
        all[(low + high) / 2] = all[high - 1];
        for (int64_t i = low; i < high - 1; i++) {
            candidate one = all[i];
            all[i] = all[above], all[above] = one;
            above += one > pivot;
        }
        all[high - 1] = all[above], all[above] = pivot;
        if (keep <= above) high = above;
        else low = above + 1;
    }
}

static FAST void shorten(shortlist *list) {
    if (list->count <= list->keep) return;
    best_first(list->all, list->count, list->keep);
    list->count = list->keep;
    candidate least = list->all[0];
    for (int64_t i = 1; i < list->keep; i++) least = list->all[i] < least ? list->all[i] : least;
    list->limit = score_of(least);
}

/* Entry [g][k] stands for the product of the query with code k of group g, in steps of `scale`. */
static FAST void fill_lookup(const cell_index *index, const float *flat, lookup *to) {
    _Alignas(32) float products[128][16];
    float most = 1e-12f;
    to->base = 0;
    for (int64_t g = 0; g < index->groups; g++) {
        float low, high;
        for (int k = 0; k < 16; k++) products[g][k] = 0;
        for (int i = 0; i < 4; i++) {
            int64_t column = index->columns[4 * g + i];
            float value = column < 0 ? 0 : flat[column];
            for (int k = 0; k < 16; k++) products[g][k] += value * index->codebook[(4 * g + i) * 16 + k];
        }
        low = high = products[g][0];
        for (int k = 1; k < 16; k++) low = smaller(low, products[g][k]), high = larger(high, products[g][k]);
        for (int k = 0; k < 16; k++) products[g][k] -= low;
        to->base += low, most = larger(most, high - low);
    }
    to->scale = most / 127;
    for (int64_t i = 0; i < 16 * index->groups; i++) to->table[i] = (uint8_t)((&products[0][0])[i] / to->scale + 0.5f);
}

/* Sums of the entries of the 32 references of a block: 0 to 15, and 16 to 31. */
INLINE void sum_block(const uint8_t *codes, const uint8_t *table, int64_t groups, __m256i out[2]) {
    const __m256i half = _mm256_set1_epi8(15);
    __m256i both[2], odd[2]; /* sums of pairs of bytes as 16 bits, and of their upper bytes alone */
    for (int i = 0; i < 2; i++) both[i] = odd[i] = _mm256_setzero_si256();
    for (int64_t g = 0; g < groups; g += 4, codes += 64, table += 64) {
        __m256i entry[2][2]; /* two of at most 127 fit a byte */
        for (int j = 0; j < 2; j++) {
            __m256i code = _mm256_loadu_si256((const __m256i *)codes + j), entries = _mm256_loadu_si256((const __m256i *)table + j);
            entry[0][j] = _mm256_shuffle_epi8(entries, _mm256_and_si256(code, half));
            entry[1][j] = _mm256_shuffle_epi8(entries, _mm256_and_si256(_mm256_srli_epi16(code, 4), half));
        }
        for (int i = 0; i < 2; i++) {
            __m256i pair = _mm256_add_epi8(entry[i][0], entry[i][1]);
            both[i] = _mm256_add_epi16(both[i], pair), odd[i] = _mm256_add_epi16(odd[i], _mm256_srli_epi16(pair, 8));
        }
        _mm_prefetch((const char *)codes + AHEAD, _MM_HINT_T0);
    }
    for (int i = 0; i < 2; i++) {
        __m256i even = _mm256_sub_epi16(both[i], _mm256_slli_epi16(odd[i], 8));
        out[i] = _mm256_add_epi16(_mm256_permute2x128_si256(even, odd[i], 0x20), _mm256_permute2x128_si256(even, odd[i], 0x31));
    }
}

/* Adds the references of a cell whose estimate is among the best. */
static FAST void scan_cell(const cell_index *index, const lookup *query, int64_t cell, float product, shortlist *to) {
    int64_t size = index->size[cell], block_bytes = 16 * index->groups;
    float base = query->base + product;
    for (int64_t first = 0; first < size; first += 32) {
        int64_t block = index->start[cell] + first / 32;
        _Alignas(32) int16_t sums[32];
        __m256i found[2];
        sum_block(index->codes + block * block_bytes, query->table, index->groups, found);
        float least = smaller(larger((to->limit - base) / query->scale, -1), 32767);
        __m256i limit = _mm256_set1_epi16((int16_t)least);
        __m256i above = _mm256_packs_epi16(_mm256_cmpgt_epi16(found[0], limit), _mm256_cmpgt_epi16(found[1], limit));
        uint32_t which = (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(above, 0xd8));
        if (size - first < 32) which &= (1u << (size - first)) - 1;
        if (!which) continue;
        _mm256_store_si256((__m256i *)sums, found[0]), _mm256_store_si256((__m256i *)(sums + 16), found[1]);
        for (; which; which &= which - 1) {
            int i = __builtin_ctz(which);
            to->all[to->count++] = scored(base + query->scale * sums[i], 32 * block + i);
        }
        if (to->count >= 2 * to->keep) shorten(to);
    }
}

/* The `count` cells from `first` on, as far as they are near enough; leaves the `keep` best references. */
static FAST void scan(const cell_index *index, const lookup *query, const candidate *cells, int64_t count, float least, shortlist *to) {
    to->count = 0, to->limit = -1e30f;
    for (int64_t i = 0; i < count; i++) {
        int32_t cell = place_of(cells[i]);
        float nearness = score_of(cells[i]);
        if (nearness >= least) scan_cell(index, query, cell, nearness + index->half[cell], to);
    }
    shorten(to);
}

/* 1 if the row was not there yet. */
INLINE int add_row(row_set *set, int32_t row) {
    uint64_t slot = (uint32_t)row * 2654435761u & set->mask;
    while (set->slots[slot] >= 0) {
        if (set->slots[slot] == row) return 0;
        slot = (slot + 1) & set->mask;
    }
    set->slots[slot] = row;
    return 1;
}

INLINE void prefetch_row(const float *row) {
    for (int d = 0; d < DIM; d += 16) _mm_prefetch((const char *)(row + d), _MM_HINT_T0);
}

/* Compares candidates exactly; the two best, and which. */
static FAST void refine(const cell_index *index, const float *query, candidate *some, int64_t count, row_set *seen,
                        float *best, float *second, int64_t *which) {
    int64_t rows = 0;
    for (int64_t i = 0; i < count; i++) {
        int32_t row = index->ids[place_of(some[i])];
        if (add_row(seen, row)) some[rows++] = row;
    }
    for (int64_t i = 0; i < rows; i++) {
        if (i + 1 < rows) prefetch_row(index->vectors + some[i + 1] * DIM);
        keep(dot(query, index->vectors + some[i] * DIM, DIM), some[i], best, second, which);
    }
}

/* 1 if a reference that was missed would matter: Guard.undecided. */
INLINE int undecided(const widths *w, float best, float second) {
    if (best < w->confidence) return best >= w->confidence - w->reach;
    return w->margin > 0 && best - second >= w->margin;
}

/* Cells by nearness, those of the first pass first, the nearest of all in front. */
INLINE void order_cells(const cell_index *index, const widths *w, const float *nearness, candidate *cells) {
    for (int64_t c = 0; c < index->cells; c++) cells[c] = scored(nearness[c] - index->half[c], c);
    best_first(cells, index->cells, w->probes_wide);
    best_first(cells, w->probes_wide, w->probes);
    for (int64_t i = 1; i < w->probes; i++) { /* a limit found early spares many candidates */
        candidate one = cells[i];
        int64_t j = i;
        for (; j && cells[j - 1] < one; j--) cells[j] = cells[j - 1];
        cells[j] = one;
    }
}

typedef struct {
    const cell_index *index;
    const widths *w;
    candidate *cells; /* all of them */
    shortlist first, rest;
    row_set seen;
} search;

/* One prediction; returns whether both passes were made. */
static FAST int search_one(search *s, const float *query, const float *flat, const float *nearness,
                           float *best, float *second, int64_t *which) {
    const widths *w = s->w;
    lookup tables;
    fill_lookup(s->index, flat, &tables);
    order_cells(s->index, w, nearness, s->cells);
    float least = score_of(s->cells[0]) - w->within;
    *best = *second = -2, *which = 0;
    for (uint64_t i = 0; i <= s->seen.mask; i++) s->seen.slots[i] = -1;
    scan(s->index, &tables, s->cells, w->probes, least, &s->first);
    int64_t found = s->first.count, some = found < w->rerank ? found : w->rerank;
    best_first(s->first.all, found, some);
    refine(s->index, query, s->first.all, some, &s->seen, best, second, which);
    if (!undecided(w, *best, *second)) return 0;
    refine(s->index, query, s->first.all + some, found - some, &s->seen, best, second, which);
    scan(s->index, &tables, s->cells + w->probes, w->probes_wide - w->probes, least, &s->rest);
    refine(s->index, query, s->rest.all, s->rest.count, &s->seen, best, second, which);
    return 1;
}

/* Unit predictions (count, 768) -> the two best cosines found, the best one's row, and whether a second
 * pass was made; 0, or 1 when there was no memory. */
FAST int amn_search(const cell_index *index, const widths *w, const float *predictions, int64_t count,
                    float *best, float *second, int64_t *ids, uint8_t *twice) {
    int64_t first = w->rerank + w->rerank_wide, most = first + w->rerank_wide, slots = 64;
    int64_t d = index->projection.rows, cells = index->centroids.rows;
    while (slots < 2 * most) slots *= 2;
    int64_t listed = index->cells + 2 * most + 64, rows = count < AT_ONCE ? count : AT_ONCE;
    char *scratch = malloc(sizeof(candidate) * listed + sizeof(float) * rows * (d + cells) + sizeof(int32_t) * slots);
    if (!scratch) return 1;
    candidate *lists = (candidate *)scratch;
    float *flat = (float *)(lists + listed), *nearness = flat + rows * d, by[AT_ONCE];
    int16_t codes[AT_ONCE * DIM];
    search s = {index, w, lists, {lists + index->cells, 0, first, 0}, {lists + index->cells + 2 * first + 32, 0, w->rerank_wide, 0},
                {(int32_t *)(nearness + rows * cells), slots - 1}};
    for (int64_t start = 0; start < count; start += AT_ONCE) {
        int some = count - start < AT_ONCE ? (int)(count - start) : AT_ONCE;
        const float *queries = predictions + start * DIM;
        for (int i = 0; i < some; i++) by[i] = encode(queries + i * DIM, DIM, codes + i * DIM);
        multiply(&index->projection, codes, DIM, by, some, flat, d);
        for (int i = 0; i < some; i++) by[i] = encode(flat + i * d, index->centroids.width, codes + i * DIM);
        multiply(&index->centroids, codes, DIM, by, some, nearness, cells);
        for (int i = 0; i < some; i++)
            twice[start + i] = search_one(&s, queries + i * DIM, flat + i * d, nearness + i * cells, best + start + i,
                                          second + start + i, ids + start + i);
    }
    free(scratch);
    return 0;
}
