"""The reference bank: built once, checked at each load, exact."""

from __future__ import annotations

import json

import numpy as np
import pytest

from amn.bank.bank import exact_top2, load_bank
from amn.bank.build import BankSettings, build_bank
from amn.bank.merge import merge_duplicates
from amn.errors import CheckpointError, DataError
from ops.app import run

SETTINGS = BankSettings(encoder_id="all-mpnet-base-v2/mean/l2", source="a test")


def unit_rows(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 768)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def bank(tmp_path):
    build_bank(unit_rows(300), tmp_path / "bank", SETTINGS)
    return load_bank(tmp_path / "bank")


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 64])
def test_top2_are_the_two_best_cosines_at_every_batch_size(bank, batch):
    queries = unit_rows(batch, seed=1)
    best, second, index = bank.top2(queries)
    exact = queries.astype(np.float64) @ bank.vectors.astype(np.float64).T
    order = np.sort(exact, axis=1)
    np.testing.assert_allclose(best, order[:, -1], atol=1e-6)
    np.testing.assert_allclose(second, order[:, -2], atol=1e-6)
    np.testing.assert_array_equal(index, exact.argmax(axis=1))


def test_near_duplicates_become_one_with_a_count(tmp_path):
    rows = unit_rows(20)
    near = rows[3] + 0.01 * rows[4]
    doubled = np.vstack([rows, rows[:2], near[None] / np.linalg.norm(near)])
    manifest = build_bank(doubled, tmp_path / "bank", SETTINGS)
    assert (manifest.count, manifest.merged) == (20, 3)
    kept, multiplicity = merge_duplicates(doubled, 0.98)
    assert kept.tolist() == list(range(20))
    assert multiplicity.tolist() == [2, 2, 1, 2] + [1] * 16
    assert np.load(tmp_path / "bank" / "multiplicity.npy").sum() == len(doubled)


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda rows: rows[:, :700], r"\(9, 700\)"),
        (lambda rows: rows[:1], r"\(1, 768\)"),
        (lambda rows: np.where(np.arange(9)[:, None] == 4, 0, rows), "row 4 is all zeros"),
        (lambda rows: np.where(np.arange(9)[:, None] == 5, np.nan, rows), "row 5 holds NaN"),
        (lambda rows: 2 * rows, "row 0 has norm 2"),
    ],
)
def test_vectors_that_are_no_unit_vectors_are_refused(tmp_path, spoil, text):
    with pytest.raises(DataError, match=text):
        build_bank(spoil(unit_rows(9)), tmp_path / "bank", SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_a_pass_in_slices_finds_what_one_product_finds(bank, monkeypatch):
    monkeypatch.setattr("amn.bank.bank._SLICE_ROWS", 7)
    queries = unit_rows(9, seed=2)
    for one, other in zip(exact_top2(bank.vectors, queries), bank.top2(queries), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_folder_that_exists_is_not_overwritten(tmp_path, bank):
    with pytest.raises(DataError, match="exists already"):
        build_bank(unit_rows(9), tmp_path / "bank", SETTINGS)


def test_a_tampered_or_incomplete_bank_is_refused(tmp_path, bank):
    folder = tmp_path / "bank"
    vectors = folder / "vectors.npy"
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="sha256"):
        load_bank(folder)
    vectors.write_bytes(whole)
    load_bank(folder)
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"colour": "blue"}))
    with pytest.raises(CheckpointError, match="colour"):
        load_bank(folder)
    manifest.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_bank(folder)


@pytest.mark.parametrize(
    ("stored", "given", "code", "said"),
    [
        ("one/mean/l2", None, 0, "10 vectors"),
        ("one/mean/l2", "other/mean/l2", 2, "encoder 'one/mean/l2', not 'other/mean/l2'"),
        ("", None, 2, "add --encoder"),
        ("", "other/mean/l2", 0, "10 vectors"),
    ],
)
def test_a_bank_takes_its_encoder_from_the_vectors(tmp_path, capsys, stored, given, code, said):
    rows = np.eye(10, 768, dtype=np.float32)
    np.savez(tmp_path / "v.npz", vectors=rows, **({"encoder": stored} if stored else {}))
    command = ["bank", "build", str(tmp_path / "v.npz"), "--out", str(tmp_path / "bank")]
    found = run([*command, "--encoder", given] if given else command)
    out, err = capsys.readouterr()
    assert said in out + err
    assert (found != 0) == (code != 0)
    if not code:
        assert load_bank(tmp_path / "bank").manifest.encoder_id == (stored or given)
