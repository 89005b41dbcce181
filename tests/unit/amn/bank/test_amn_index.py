"""The index of a large bank: how often it agrees with an exact search, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from amn.bank.agreement import AGREE_MIN, WIDTHS, Agreement, agreement, drawn, recheck, tune, widened
from amn.bank.bank import CellBank, exact_top2, load_bank
from amn.bank.build import BankSettings, build_bank
from amn.bank.files import check_files, read_manifest
from amn.bank.settings import Guard, IndexSettings
from amn.errors import CheckpointError
from amn.files import making_folder
from amn.gate.scores import GateScores
from amn.kernel import bindings as kernel
from amn.policy import load_policy, parse_policy

pytest.importorskip("faiss")
needs_loops = pytest.mark.needs("compiled loops")

COUNT = 30_000
#: Scores of a bank look at predictions alone.
NO_CONTEXTS = np.empty((0, 5, 768), np.float32)
INDEX = IndexSettings(cells=128, probes=16, rerank=64, probes_wide=40, rerank_wide=96, within=0.3)
SETTINGS = BankSettings(encoder_id="all-mpnet-base-v2/mean/l2", source="a test", indexed=True, index=INDEX)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def clustered(count: int, seed: int) -> np.ndarray:
    """Texts of 300 articles: directions that fall off, an article in common, noise of their own."""
    fall = 1 / np.sqrt(1 + np.arange(768) / 8)
    article = np.random.default_rng(0).normal(size=(300, 768)) * fall
    random = np.random.default_rng(seed)
    return unit(article[random.integers(300, size=count)] + random.normal(size=(count, 768)) * fall)


@pytest.fixture(scope="module")
def vectors():
    return clustered(COUNT, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vectors):
    place = tmp_path_factory.mktemp("banks") / "bank"
    build_bank(vectors, place, SETTINGS)
    return place


@pytest.fixture(scope="module")
def queries(vectors):
    """Between two texts and something new: cosines and margins on both sides of the thresholds."""
    random = np.random.default_rng(2)
    one, other = vectors[random.integers(COUNT, size=(2, 2000))]
    share = random.uniform(0.5, 1, size=(2, 2000, 1))
    return unit(share[0] * one + share[0] * share[1] * other + 0.4 * clustered(2000, 3))


@pytest.fixture(scope="module")
def exact(folder, queries):
    return exact_top2(load_bank(folder).vectors, queries)


@pytest.fixture(params=[pytest.param("loops", marks=needs_loops), "arrays"])
def bank(folder, request, monkeypatch):
    if request.param == "arrays":
        monkeypatch.setattr(kernel, "READY", False)
    return load_bank(folder)


def search(bank, queries, size=32):
    parts = [bank.top2(queries[i : i + size]) for i in range(0, len(queries), size)]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


@needs_loops
@pytest.mark.parametrize("level", range(1, kernel.LEVEL + 1))
def test_a_search_finds_the_same_with_any_instructions_and_in_any_batch(folder, queries, level, monkeypatch):
    wanted = search(load_bank(folder), queries[:200], 1)
    monkeypatch.setattr(kernel, "LEVEL", level)
    bank = load_bank(folder)
    for size in (1, 7, 48, 100):
        for found, one_by_one in zip(search(bank, queries[:200], size), wanted, strict=True):
            np.testing.assert_array_equal(found, one_by_one)


def test_decisions_agree_with_an_exact_search_and_a_cosine_is_that_of_its_id(bank, queries, exact):
    best, second, ids = search(bank, queries)
    ours, true = bank.guard.keeps(best, second), bank.guard.keeps(exact.best, exact.second)
    assert 0.1 < true.mean() < 0.9
    assert (ours == true).mean() > 0.995
    assert (ours & ~true).mean() < 0.003
    # What is kept has had both passes; a second best far below the first may still be another.
    assert (np.abs(best - exact.best) < 1e-3)[ours].mean() > 0.999
    assert (np.abs(second - exact.second) < 1e-3)[ours].mean() > 0.95
    # None is above the true one.
    assert (best <= exact.best + 1e-5).all()
    assert (second <= exact.second + 1e-5).all()
    assert (best >= second).all()
    np.testing.assert_allclose(np.vecdot(bank.vectors[ids], queries), best, atol=1e-5)


def test_a_search_of_every_cell_and_every_code_is_exact(bank, queries):
    bank.settings = replace(INDEX, probes=128, probes_wide=128, rerank=2000, within=4)
    bank.guard = Guard(confidence=2.0)  # one pass
    best, second, ids = search(bank, queries[:64])
    exact = exact_top2(bank.vectors, queries[:64])
    np.testing.assert_allclose(best, exact.best, atol=1e-5)
    np.testing.assert_allclose(second, exact.second, atol=1e-5)
    np.testing.assert_array_equal(ids, exact.ids)


def test_one_request_gets_the_same_answer_alone_and_in_a_batch(bank, queries):
    together = search(bank, queries[:96])
    alone = search(bank, queries[:96], size=1)
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@needs_loops
@pytest.mark.parametrize("widths", [{}, {"probes": 3, "rerank": 10, "rerank_wide": 5}, {"probes_wide": 16}])
@pytest.mark.parametrize("guard", [Guard(), Guard(confidence=0.5, margin=0.05), Guard(margin=0)])
def test_the_compiled_loops_and_the_arrays_answer_alike(folder, monkeypatch, queries, exact, widths, guard):
    loops = load_bank(folder)
    monkeypatch.setattr(kernel, "READY", False)
    arrays = load_bank(folder)
    for one in (loops, arrays):
        one.settings, one.guard = replace(INDEX, **widths), guard
    ours, others = search(loops, queries[:600]), search(arrays, queries[:600])
    # Estimates are rounded otherwise, so that now and then another candidate is the last one compared.
    for one, other in zip(ours, others, strict=True):
        assert (np.abs(one - other) < 1e-5).mean() > 0.96
    best, second = exact.best[:600], exact.second[:600]
    missed = [np.mean([best - one[0], second - one[1]]) for one in (ours, others)]
    assert missed[0] < 1.05 * missed[1] + 1e-5


def test_predictions_of_another_type_are_converted_and_not_misread(bank, queries):
    wanted, found = bank.top2(queries[:9]), bank.top2(queries[:9].astype(np.float64))
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_allclose(found.best, wanted.best, atol=1e-6)


def test_predictions_that_are_no_numbers_have_no_confidence_and_spoil_no_other_row(bank, queries):
    spoilt = queries[:9].copy()
    spoilt[4], spoilt[7, 3] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        found = bank.top2(spoilt)
    good = np.delete(np.arange(9), [4, 7])
    np.testing.assert_array_equal(found.ids[good], bank.top2(queries[:9]).ids[good])
    assert not (found.best[[4, 7]] > 0).any()


@pytest.mark.parametrize("references", [32, 64])
def test_codes_that_are_packed_otherwise_than_the_loops_expect_are_refused(folder, monkeypatch, references):
    import faiss

    class Other:
        nvec, code_size = references, 48

        def unpack_all(self, block, held):
            pass

    monkeypatch.setattr(kernel, "READY", True)
    monkeypatch.setattr(faiss.BlockInvertedLists, "packer", Other())
    with pytest.raises(CheckpointError, match="packed"):
        load_bank(folder)


def test_the_second_pass_looks_where_an_answer_would_be_kept(bank, queries, exact):
    bank.settings = replace(INDEX, probes=1, rerank=8)
    wide = search(bank, queries)
    bank.guard = Guard(confidence=2.0)
    cheap = search(bank, queries)
    guard = Guard()
    true = guard.keeps(exact.best, exact.second)
    unsafe = [(guard.keeps(best, second) & ~true).mean() for best, second, *_ in (cheap, wide)]
    assert unsafe[0] > 0.002
    assert unsafe[1] < unsafe[0] / 4


def test_what_would_be_kept_or_nearly_is_undecided():
    best = np.array([0.9, 0.9, 0.9, 0.7005, 0.6, 0.695], np.float32)
    second = np.array([0.8, 0.8795, 0.899, 0.6, 0.59, 0.6], np.float32)
    guard = Guard()
    assert guard.keeps(best, second).tolist() == [True, True, False, True, False, False]
    assert guard.undecided(best, second).tolist() == [True, True, False, True, False, True]


def test_multiplicities_stay_with_their_vectors(tmp_path, vectors):
    doubled = np.vstack([vectors[:500], vectors[:40], vectors[:7]])
    settings = replace(SETTINGS, index=replace(INDEX, cells=8, probes=8, probes_wide=8))
    build_bank(doubled, tmp_path / "bank", settings)
    bank = load_bank(tmp_path / "bank")
    assert len(bank) == 500
    ids = bank.top2(vectors[:50]).ids
    assert bank.multiplicity[ids].tolist() == [3] * 7 + [2] * 33 + [1] * 10


@pytest.mark.parametrize("name", ["vectors.npy", "multiplicity.npy", "cells.npz", "codes.faiss"])
@pytest.mark.parametrize("spoil", ["flip", "cut", "remove"])
def test_a_file_that_is_altered_cut_or_missing_is_refused(tmp_path, folder, name, spoil):
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    raw = bytearray((folder / name).read_bytes())
    (tmp_path / name).unlink()
    if spoil == "flip":
        raw[-3] ^= 1
    if spoil != "remove":
        (tmp_path / name).write_bytes(raw[:-100] if spoil == "cut" else raw)
    with pytest.raises(CheckpointError):
        load_bank(tmp_path)


def test_a_start_looks_at_a_sample_and_a_check_at_every_byte(tmp_path, folder):
    manifest = read_manifest(folder)
    assert len(manifest.pieces) == 6  # of 16 MiB, for 92 MB
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    raw = bytearray((folder / "vectors.npy").read_bytes())
    raw[40_000_000] ^= 1
    (tmp_path / "vectors.npy").unlink()
    (tmp_path / "vectors.npy").write_bytes(raw)
    with pytest.raises(CheckpointError, match="sha256"):
        check_files(tmp_path, manifest, whole=True)
    check_files(folder, manifest, whole=True)


def test_without_faiss_an_indexed_bank_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(CheckpointError, match=r"amn-queue\[bank\]"):
        load_bank(folder)


def test_the_model_room_loads_no_faiss_by_itself():
    code = "import sys, amn.predictor, amn.bank.bank, amn.bank.build; assert 'faiss' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


MAPPER = """
import sys, torch
from pathlib import Path
from amn.bank.bank import load_bank
bank = load_bank(Path(sys.argv[1]))
assert float(bank.vectors.sum()) != 0  # every page is in memory
rollup = Path("/proc/self/smaps").read_text().split("vectors.npy\\n")[1:]
lines = [line for area in rollup for line in area.splitlines()[:25]]
private = sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))
resident = sum(int(line.split()[1]) for line in lines if line.startswith("Rss"))
print(private, resident, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is shared")
def test_two_workers_share_the_vectors(folder):
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", MAPPER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    try:
        for worker in workers:
            private_kb, resident_kb = map(int, worker.stdout.readline().split())
            assert resident_kb > 80_000
            assert private_kb == 0
    finally:
        for worker in workers:
            worker.communicate(timeout=30)


def test_a_build_that_is_killed_leaves_no_bank(tmp_path, vectors):
    np.save(tmp_path / "vectors.npy", vectors)
    arguments = ["bank", "build", str(tmp_path / "vectors.npy"), "--out", str(tmp_path / "out" / "bank")]
    arguments += ["--encoder", "all-mpnet-base-v2/mean/l2"]
    build = subprocess.Popen([sys.executable, "-m", "ops.cli", *arguments], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not list((tmp_path / "out").glob(".amn-*.part/unit.npy")):
            assert time.monotonic() < until
            assert build.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(build.pid, signal.SIGKILL)
        build.wait()
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".part"]
    with making_folder(tmp_path / "out" / "bank"):  # whoever writes there next tidies up
        pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["bank"]


def test_widths_are_chosen_that_agree_on_the_queries_at_hand(bank, queries, exact):
    settings, found = tune(bank, queries, Guard())
    assert found.met
    assert found.within()
    narrower = [widths for widths in WIDTHS if widened(settings, widths).probes < settings.probes]
    bank.settings = settings
    assert agreement(bank, queries, exact) == found
    for widths in narrower:
        bank.settings = widened(settings, widths)
        assert not agreement(bank, queries, exact).within()


def test_an_index_that_no_width_makes_good_enough_says_so(bank, queries, monkeypatch):
    monkeypatch.setattr("amn.bank.agreement.WIDTHS", ((1, 2, 1, 2, 0.1), (1, 3, 1, 3, 0.1)))
    settings, found = tune(bank, queries, Guard())
    assert settings.rerank == 3
    assert not found.met
    assert found.agree < AGREE_MIN
    assert found.stored()["met"] is False


@pytest.mark.parametrize(
    "errors", [{"agree": 0.9969}, {"unsafe": 0.0011}, {"bias": 0.0021}, {"bias": -0.0021}]
)
def test_each_of_three_errors_alone_is_too_many(errors):
    good = {"agree": 0.9971, "unsafe": 0.0009, "bias": 0.0019, "both_right": 0.9}
    fixed = {"queries": 1000, "confidence": 0.7, "margin": 0.02}
    assert Agreement(**good, **fixed).met
    assert not Agreement(**good | errors, **fixed).met


def test_a_build_with_queries_keeps_what_it_measured_and_is_another_bank(tmp_path, vectors, queries):
    small = replace(SETTINGS, index=IndexSettings(cells=16))
    plain = build_bank(vectors[:2000], tmp_path / "plain", small)
    guard = Guard(confidence=0.5, margin=0.01)
    measured = build_bank(
        vectors[:2000], tmp_path / "measured", replace(small, queries=queries[:300], guard=guard)
    )
    assert plain.agreement is None
    assert measured.agreement["queries"] == 300
    assert (measured.agreement["confidence"], measured.agreement["margin"]) == (0.5, 0.01)
    assert measured.agreement["met"]
    bank = load_bank(tmp_path / "measured")
    assert bank.manifest == measured
    # Same vectors, same codes, other widths: other answers, so another id.
    assert measured.sha256 == plain.sha256
    assert measured.bank_id != plain.bank_id


def test_a_small_bank_gets_no_more_cells_than_it_fills(tmp_path, vectors):
    build_bank(vectors[:320], tmp_path / "bank", replace(SETTINGS, index=IndexSettings()))
    bank = load_bank(tmp_path / "bank")
    assert (bank.settings.cells, bank.settings.probes, bank.settings.probes_wide) == (20, 20, 20)
    best, *_ = bank.top2(vectors[:320])
    np.testing.assert_allclose(best, 1, atol=1e-5)


@pytest.mark.parametrize(
    ("rules", "confidence", "margin"),
    [
        ("", -2, 0),
        ("[confidence]\nbelow = 0.61\n[margin]\nbelow = 0.03", 0.61, 0.03),
        ("[confidence]\nbelow = 0.8", 0.8, 0),
        ("[margin]\nbelow = 0.05\nmethod = 'raw'", -2, 0.05),
        ("[confidence]\nbelow = 0.5\nmethod = 'mean_top_k'", -2, 0),
    ],
)
def test_the_guard_has_the_thresholds_of_the_policy_in_force(rules, confidence, margin):
    guard = Guard.of(parse_policy(f"format = 1\nname = 'own'\n{rules}", "a test"))
    assert (guard.confidence, guard.margin) == (confidence, margin)


def test_a_policy_of_ones_own_moves_what_is_searched_twice(bank, queries, exact):
    own = parse_policy(
        "format = 1\nname = 'own'\n[confidence]\nbelow = 0.55\n[margin]\nbelow = 0.1", "a test"
    )
    for policy in (load_policy("card"), own):
        bank.settings = replace(INDEX, probes=1, rerank=8)
        confidence, margin, _ = GateScores(policy, bank)(NO_CONTEXTS, queries)
        assert bank.guard == Guard.of(policy)
        kept = (confidence >= policy.confidence.below) & (margin >= policy.margin.below)
        true = bank.guard.keeps(exact.best, exact.second)
        assert 0.05 < true.mean() < 0.95
        # With thresholds of another policy, three times as many are kept wrongly.
        assert (kept & ~true).mean() < 0.004


def test_without_a_margin_rule_a_best_cosine_that_was_found_is_proof():
    guard = Guard(margin=0)
    best, second = np.array([0.9, 0.695, 0.6], np.float32), np.array([0.89, 0.6, 0.5], np.float32)
    assert guard.undecided(best, second).tolist() == [False, True, False]


def test_raw_margins_count_what_was_merged_in_an_indexed_bank_too(tmp_path, vectors):
    doubled = np.vstack([vectors[:500], vectors[:40]])
    settings = replace(SETTINGS, index=replace(INDEX, cells=8, probes=8, probes_wide=8))
    build_bank(doubled, tmp_path / "bank", settings)
    rule = "format = 1\nname = 'own'\n[margin]\nbelow = 0.02\nmethod = '{}'"
    bank = load_bank(tmp_path / "bank")
    margins = {
        method: GateScores(parse_policy(rule.format(method), "a test"), bank)(
            NO_CONTEXTS, vectors[:60]
        ).margin
        for method in ("raw", "distinct")
    }
    assert (margins["raw"][:40] == 0).all()
    assert (margins["distinct"][:40] > 0.02).all()
    np.testing.assert_array_equal(margins["raw"][40:], margins["distinct"][40:])


def test_one_request_in_so_many_is_drawn_whatever_batch_it_is_in(queries):
    rows = drawn(queries, 10)
    assert 120 < len(rows) < 280
    apart = [
        row + start for start in range(0, len(queries), 7) for row in drawn(queries[start : start + 7], 10)
    ]
    assert rows.tolist() == apart
    assert len(drawn(queries, 1)) == len(queries)


def test_a_recheck_counts_what_an_exact_search_decides_otherwise(bank, queries):
    best, second, *_ = search(bank, queries[:500])
    found = recheck(bank, queries[:500], best, second)
    assert found.checked == 500
    assert found.agreed >= 495
    # Wrong answers are noticed: all kept, whatever the truth.
    true = bank.guard.keeps(best, second)[:100].sum()
    ones = np.ones(100, np.float32)
    assert recheck(bank, queries[:100], ones, 0 * ones) == (100, true, 100 - true)
    assert isinstance(bank, CellBank)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rerank", -300), ("rerank_wide", -1), ("probes", 0), ("cells", 1.5), ("groups", True)],
)
def test_widths_that_no_search_can_have_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be a whole number of at least"):
        IndexSettings(**{name: value})
