"""Merging among cells, against the comparison of all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from amn.bank.cells import Filing
from amn.bank.merge import merge_duplicates
from amn.bank.settings import IndexSettings


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def repeated():
    """6,000 texts, 1,500 of them near another one, at cosines on both sides of .98, and 200 copies."""
    random = np.random.default_rng(0)
    fall = 1 / np.sqrt(1 + np.arange(768) / 8)
    texts = unit(random.normal(size=(4300, 768)) * fall)
    noise = unit(random.normal(size=(1500, 768))) * random.uniform(0.05, 0.3, size=(1500, 1))
    near = unit(texts[random.integers(4300, size=1500)] + noise)
    rows = np.vstack([texts, near, texts[random.integers(4300, size=200)]])
    return rows[random.permutation(len(rows))]


def test_cells_merge_nearly_all_that_all_pairs_merge_and_nothing_else(repeated):
    every, _ = merge_duplicates(repeated, 0.98)
    cells = Filing(repeated, IndexSettings(cells=64, dimensions=96)).cells
    kept, multiplicity = merge_duplicates(repeated, 0.98, cells)
    assert 4300 < len(every) < 5700
    assert multiplicity.sum() == len(repeated)
    merged, all_merged = (np.setdiff1d(np.arange(6000), rows) for rows in (kept, every))
    assert np.isin(merged, all_merged).mean() > 0.99
    assert np.isin(all_merged, merged).mean() > 0.99


def test_what_is_kept_is_distinct_and_what_is_merged_is_near_something_kept(repeated):
    kept, _ = merge_duplicates(repeated, 0.98)
    among = repeated[kept] @ repeated[kept].T
    np.fill_diagonal(among, 0)
    assert among.max() <= 0.98 + 1e-6
    gone = np.setdiff1d(np.arange(len(repeated)), kept)
    assert (repeated[gone] @ repeated[kept].T).max(axis=1).min() > 0.98 - 1e-6


def test_a_text_that_stands_everywhere_costs_no_pairs():
    rows = np.vstack([np.repeat(np.eye(768, dtype=np.float32)[:1], 9000, axis=0), np.eye(768)[1:9]])
    kept, multiplicity = merge_duplicates(rows.astype(np.float32), 0.98)
    assert kept.tolist() == [0, *range(9000, 9008)]
    assert multiplicity.tolist() == [9000, *[1] * 8]
