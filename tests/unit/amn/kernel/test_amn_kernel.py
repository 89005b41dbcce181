"""The compiled loops answer what NumPy, torch and the modules answer; without them NumPy serves."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from amn.bank.bank import ReferenceBank, exact_top2
from amn.errors import CheckpointError
from amn.gate import gain
from amn.kernel import bindings as kernel
from amn.predictor import Predictor

ROOT = Path(__file__).parents[4]
LVM = ROOT / "artifacts" / "lvm"
needs_loops = pytest.mark.needs("compiled loops")


@pytest.fixture(scope="module")
def predictor():
    return Predictor.open(LVM / "production_model", LVM / "reference_bank")


@pytest.fixture(scope="module")
def sample():
    """20 windows of the shipped sample and, in turns with them, 20 contexts of unrelated vectors."""
    held = np.load(ROOT / "artifacts" / "sample" / "sequences.npz", allow_pickle=False)
    starts = np.flatnonzero(held["article"][:-5] == held["article"][5:])
    made = np.random.default_rng(0).normal(size=(40, 5, 768))
    made[::2] = held["vectors"].astype(np.float64)[starts[:: len(starts) // 19, None][:20] + np.arange(5)]
    return (made / np.linalg.norm(made, axis=2, keepdims=True)).astype(np.float32)


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@torch.inference_mode()
def by_modules(predictor, contexts):
    return predictor.checkpoint.model(torch.from_numpy(np.ascontiguousarray(contexts))).numpy()


def test_the_sample_holds_contexts_that_the_model_trusts_and_such_that_it_does_not(predictor, sample):
    with torch.inference_mode():
        trust = predictor.checkpoint.model.trust(torch.from_numpy(sample).mean(1)).numpy()[:, 0]
    assert (trust[1::2] == 0).all()
    assert (trust[::2] > 0).sum() >= 10
    assert (trust == 1).any()
    assert ((trust > 0) & (trust < 1)).any()


@pytest.mark.parametrize("count", range(1, 41))
def test_any_number_of_contexts_is_answered_like_the_modules_do(predictor, sample, count):
    answers = predictor.forward(sample[:count])
    assert answers.shape == (count, 768)
    np.testing.assert_allclose(answers, by_modules(predictor, sample[:count]), rtol=0, atol=1e-5)


def test_a_context_has_the_same_answer_in_a_batch_of_any_size(predictor, sample):
    alone = np.concatenate([predictor.forward(context[None]) for context in sample])
    for size in range(2, 41):
        parts = [predictor.forward(sample[i : i + size]) for i in range(0, len(sample), size)]
        # In the loops sums are integers, or taken in the same order; in NumPy and torch they are not.
        np.testing.assert_allclose(np.concatenate(parts), alone, rtol=0, atol=0 if kernel.READY else 3e-6)


def test_no_context_at_all_has_no_answers(predictor):
    assert predictor.forward(np.empty((0, 5, 768), np.float32)).shape == (0, 768)


def test_contexts_of_any_layout_are_answered(predictor, sample):
    wanted = predictor.forward(sample[:6])
    spread = np.zeros((12, 5, 800), np.float32)
    spread[::2, :, 7:775] = sample[:6]
    shifted = np.frombuffer(b"x" + sample[:6].tobytes(), dtype="<f4", offset=1).reshape(6, 5, 768)
    assert not shifted.flags.aligned
    turned = np.asfortranarray(wanted)
    for view in (spread[::2, :, 7:775], np.asfortranarray(sample[:6]), shifted):
        for found, same in (
            (predictor.forward(view), wanted),
            (gain.features(view, turned), gain.features(sample[:6], wanted)),
            (predictor.bank.top2(turned).best, predictor.bank.top2(wanted).best),
        ):
            # NumPy and torch sum in another order where numbers lie apart; the loops do not.
            np.testing.assert_allclose(found, same, rtol=0, atol=0 if kernel.READY else 3e-6)


def test_numbers_of_another_type_are_converted_and_not_misread(predictor, sample):
    contexts, vectors = sample[:3], predictor.forward(sample[:3])
    for dtype in (np.float64, np.float16):
        near = predictor.bank.top2(vectors.astype(dtype))
        np.testing.assert_allclose(near.best, predictor.bank.top2(vectors).best, atol=2e-3)
        found = gain.features(contexts.astype(dtype), vectors.astype(dtype))
        np.testing.assert_allclose(found, gain.features(contexts, vectors), atol=2e-3)
    np.testing.assert_allclose(predictor.predict(contexts.astype(np.float64)), vectors, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_no_number_spoils_no_other_row_and_has_no_confidence(predictor, sample, value):
    spoilt = sample[:9].copy()
    spoilt[4, 2, 100], spoilt[7] = value, value
    good = np.delete(np.arange(9), [4, 7])
    with np.errstate(invalid="ignore"):
        answers = predictor.forward(spoilt)
        near, found = predictor.bank.top2(answers), gain.features(spoilt, answers)
    wanted = predictor.forward(sample[:9])
    np.testing.assert_allclose(answers[good], wanted[good], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(near.ids[good], predictor.bank.top2(wanted).ids[good])
    np.testing.assert_allclose(near.best[good], predictor.bank.top2(wanted).best[good], atol=1e-6)
    np.testing.assert_allclose(found[good], gain.features(sample[:9], wanted)[good], atol=1e-5)
    assert not (near.best[[4, 7]] > 0).any()
    assert ((near.ids >= 0) & (near.ids < len(predictor.bank))).all()


@needs_loops
def test_a_gain_by_one_call_is_that_of_the_features(predictor, sample):
    spoilt = sample[:12].copy()
    spoilt[5] = np.nan
    with np.errstate(invalid="ignore"):
        answers = predictor.forward(spoilt)
        rows = gain.features(spoilt, answers)
    edges = np.sort(rows[:, 0])[:8:2]  # some lie on an edge, the one that is no number behind the last
    for terms in (0, 3, 5):
        model = gain.Linear(coefficients=np.linspace(-1.0, 2.0, terms), intercept=0.25)
        weights = np.array([0.5, 0.0, 0.0, 1.0])
        fitted = gain.Calibration(
            calibration_id="", amn="", fallback="", model=model, expected=(model, model),
            weight_edges=edges, weights=weights,
        )  # fmt: skip
        wanted = fitted.gain(rows)
        assert {0.0} < set(wanted)
        np.testing.assert_allclose(fitted.scorer()(spoilt, answers), wanted, rtol=1e-12, atol=1e-12)
    for odd in (spoilt, answers[:2]), (spoilt[:, :4], answers), (spoilt, answers[:, :700]):
        with pytest.raises(ValueError, match=r"give \(B, 5, 768\) and \(B, 768\)"):
            fitted.scorer()(*odd)
    for wrong in ({"weights": weights[1:]}, {"model": gain.Linear(coefficients=np.zeros(6), intercept=0.0)}):
        with pytest.raises(CheckpointError, match="fit it again"):
            replace(fitted, **wrong)


def test_threads_that_compute_at_once_do_not_meet(predictor, sample):
    wanted = [predictor.forward(sample[i : i + 3]) for i in range(20)]

    def again(i):
        vectors = predictor.forward(sample[i : i + 3])
        return vectors, predictor.bank.top2(vectors).best

    with ThreadPoolExecutor(4) as threads:
        for i, (vectors, best) in enumerate(threads.map(again, [*range(20)] * 5)):
            np.testing.assert_array_equal(vectors, wanted[i % 20])
            np.testing.assert_array_equal(best, predictor.bank.top2(wanted[i % 20]).best)


def nearly_cancelling(rows):
    """(n, 768) -> contexts (n, 5, 768) whose five vectors nearly sum to nothing."""
    angles = 2 * np.pi * np.arange(5) / 5
    other = np.roll(rows, 1, axis=0)
    other = unit(other - np.vecdot(other, rows)[:, None] * rows)
    made = np.cos(angles)[:, None] * rows[:, None] + np.sin(angles)[:, None] * other[:, None]
    made[:, 0] += 2e-4 * rows
    return made.astype(np.float32)


def test_five_vectors_that_nearly_cancel_are_trusted_as_far_as_the_modules_trust_them(predictor, sample):
    contexts = nearly_cancelling(np.concatenate([sample[::2, 4], sample[1::2, 4]]))
    assert np.linalg.norm(contexts.sum(1), axis=1).max() < 1e-3
    wanted = by_modules(predictor, contexts)
    np.testing.assert_allclose(predictor.forward(contexts), wanted, rtol=0, atol=1e-4)
    one_by_one = np.concatenate([predictor.forward(context[None]) for context in contexts])
    np.testing.assert_allclose(one_by_one, wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("loops", [True, False])
def test_features_of_five_vectors_that_cancel_are_numbers(predictor, sample, loops, monkeypatch):
    monkeypatch.setattr(kernel, "READY", loops and kernel.READY)
    contexts = nearly_cancelling(sample[:, 4].astype(np.float64))
    contexts[:, 0] -= (contexts.sum(1, dtype=np.float64)).astype(np.float32)
    found = gain.features(contexts, sample[:, 0])
    assert np.isfinite(found).all()
    assert (found[:, 4] < 1e-3).all()


LEVELS = range(1, kernel.LEVEL + 1)


@needs_loops
@pytest.mark.parametrize("shape", [(20, 768), (656, 656), (48, 8), (16, 136), (33, 2304)])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 11, 12, 16, 17, 48, 49, 100])
def test_all_instructions_give_the_same_bits_for_any_number_of_rows(count, shape, monkeypatch):
    random = np.random.default_rng(0)
    weights = random.normal(size=shape).astype(np.float32)
    rows = (random.normal(size=(count, shape[1])) ** 3).astype(np.float32)
    found = []
    for level in LEVELS:
        monkeypatch.setattr(kernel, "LEVEL", level)
        layer = kernel.Layer(weights)
        found.append(layer(rows))
        for row, wanted in zip(rows, found[-1], strict=True):
            np.testing.assert_array_equal(layer(row[None])[0], wanted)
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    exact = rows.astype(np.float64) @ weights.T.astype(np.float64)
    most = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(weights, axis=1)
    assert (np.abs(found[0] - exact) <= 1e-4 * most + 1e-6).all()


@needs_loops
def test_codes_at_the_limit_of_their_length_do_not_overflow(monkeypatch):
    # One direction only: sums are as large as 128 products can be.
    one = np.random.default_rng(0).choice([-1.0, 1.0], size=768)
    weights = np.repeat((one * np.repeat([1.0, 0.3, 3.0], 256))[None], 16, axis=0).astype(np.float32)
    weights[8:] *= -1
    for level in LEVELS:
        monkeypatch.setattr(kernel, "LEVEL", level)
        for count in (1, 6, 12, 16):
            found = kernel.Layer(weights)(np.repeat(weights[:1], count, axis=0))
            np.testing.assert_allclose(found, np.repeat(weights[:1] @ weights.T, count, axis=0), rtol=1e-3)


@needs_loops
@pytest.mark.parametrize("level", LEVELS)
def test_network_and_references_are_the_same_with_any_instructions(predictor, sample, level, monkeypatch):
    monkeypatch.setattr(kernel, "LEVEL", level)
    other = Predictor.open(LVM / "production_model", LVM / "reference_bank")
    contexts = np.concatenate([sample, sample[::-1], sample[:11]])  # more than are computed at once
    for count in (1, 4, 12, 16, 48, 91):
        vectors = predictor.forward(contexts[:count])
        np.testing.assert_array_equal(other.forward(contexts[:count]), vectors)
        for found, wanted in zip(other.bank.top2(vectors), predictor.bank.top2(vectors), strict=True):
            np.testing.assert_array_equal(found, wanted)


@needs_loops
def test_what_the_loops_have_no_room_for_is_refused():
    for width in (12, 2312):
        with pytest.raises(ValueError, match="multiple of 8, up to 2304"):
            kernel.Layer(np.ones((16, width), np.float32))
    with pytest.raises(ValueError, match=r"the layer takes \(B, 16\)"):
        kernel.Layer(np.ones((16, 16), np.float32))(np.ones((2, 24), np.float32))
    with pytest.raises(ValueError, match="has 1024"):
        kernel.Network({name: np.ones((16, 1024), np.float32) for name in ("both", "recall")}, paired=86)
    for shapes in ((2, 5, 768), (1, 768)), ((2, 4, 768), (2, 768)), ((2, 5, 768), (2, 767)):
        with pytest.raises(ValueError, match=r"\(B, 768\)"):
            gain.features(*(np.ones(shape, np.float32) for shape in shapes))
    with pytest.raises(ValueError, match=r"1400 into shape \(2,768\)"):
        kernel.References(np.eye(20, 768, dtype=np.float32)).top2(np.ones((2, 700), np.float32))


@pytest.mark.parametrize("loops", [True, False])
def test_references_of_any_layout_and_type_are_searched(predictor, sample, loops, monkeypatch):
    monkeypatch.setattr(kernel, "READY", loops and kernel.READY)
    vectors, queries = predictor.bank.vectors[:100], sample[:3, 4]
    counts, manifest = np.ones(50, np.uint32), predictor.bank.manifest
    wanted = ReferenceBank(np.ascontiguousarray(vectors[::2]), counts, manifest).top2(queries)
    for odd in (vectors[::2], np.asfortranarray(vectors[::2]), vectors[::2].astype(np.float64)):
        found = ReferenceBank(odd, counts, manifest).top2(queries)
        np.testing.assert_array_equal(found.ids, wanted.ids)
        np.testing.assert_allclose(found.best, wanted.best, rtol=0, atol=1e-6)
    assert ReferenceBank(vectors[::2], counts, manifest).top2(queries[:0]).best.shape == (0,)


@st.composite
def banks_and_queries(draw):
    """Unit rows with duplicates, near-duplicates and one-hot rows among them, and queries near and far."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 64, 257]
    count, batch = draw(st.sampled_from(counts)), draw(st.sampled_from([*range(1, 10), 12, 13, 25]))
    # Few directions make cosines that are large and near to each other; few large numbers, coarse codes.
    directions = draw(st.sampled_from([1, 2, 768]))
    rows = rng.normal(size=(count, directions)) @ rng.normal(size=(directions, 768))
    rows **= draw(st.sampled_from([1, 5]))
    for kind in draw(st.lists(st.sampled_from(["copy", "near", "hot"]), max_size=4)):
        one, other = rng.integers(count, size=2)
        if kind == "hot":
            rows[one] = np.eye(768)[rng.integers(768)] * rng.choice([-1, 1])
        else:
            rows[one] = rows[other] * (
                1 + (kind == "near") * rng.normal(size=768) * 10.0 ** -rng.integers(2, 7)
            )
    vectors = unit(rows)
    queries = unit(rng.normal(size=(batch, 768)))
    for i, kind in enumerate(draw(st.lists(st.sampled_from(["row", "far", "hot", "next"]), max_size=batch))):
        row = vectors[rng.integers(count)]
        queries[i] = {
            "row": row,
            "far": -row,
            "hot": np.eye(768, dtype=np.float32)[rng.integers(768)],
            "next": unit(row + 1e-3 * rng.normal(size=768)),
        }[kind]
    return vectors, queries


@pytest.mark.slow
@settings(max_examples=200)
@given(banks_and_queries())
def test_the_two_best_are_those_of_an_exact_search_and_of_equal_rows_the_first(predictor, drawn):
    vectors, queries = drawn
    bank = ReferenceBank(vectors, np.ones(len(vectors), np.uint32), predictor.bank.manifest)
    found, exact = bank.top2(queries), exact_top2(vectors, queries)
    np.testing.assert_allclose(found.best, exact.best, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.second, exact.second, rtol=0, atol=1e-6)
    clear = exact.best - exact.second > 1e-6  # else rounding decides which of the two comes first
    np.testing.assert_array_equal(found.ids[clear], exact.ids[clear])
    np.testing.assert_allclose(np.vecdot(vectors[found.ids], queries), exact.best, rtol=0, atol=1e-6)
    if kernel.READY:  # a product of matrices may round equal rows differently
        equal = (vectors[None] == vectors[found.ids][:, None]).all(axis=2)
        np.testing.assert_array_equal(found.ids, equal.argmax(axis=1))


def test_the_two_best_of_the_shipped_bank_are_those_of_an_exact_search(predictor, sample):
    queries = np.concatenate([predictor.forward(sample), predictor.bank.vectors[::50]])
    found, exact = predictor.bank.top2(queries), exact_top2(predictor.bank.vectors, queries)
    np.testing.assert_array_equal(found.ids, exact.ids)
    np.testing.assert_allclose(found.best, exact.best, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.second, exact.second, rtol=0, atol=1e-6)


def test_a_bank_whose_directions_are_not_found_is_searched_exactly(predictor, sample, monkeypatch):
    def unfound(_):
        raise np.linalg.LinAlgError("Eigenvalues did not converge")

    monkeypatch.setattr(np.linalg, "eigh", unfound)
    vectors, queries = np.ascontiguousarray(predictor.bank.vectors[:300]), sample[:40, 4]
    found = ReferenceBank(vectors, np.ones(300, np.uint32), predictor.bank.manifest).top2(queries)
    exact = exact_top2(vectors, queries)
    np.testing.assert_array_equal(found.ids, exact.ids)
    np.testing.assert_allclose(found.best, exact.best, rtol=0, atol=1e-6)


def test_the_features_of_the_gain_are_those_of_numpy(predictor, sample, monkeypatch):
    same, close = np.repeat(sample[:4, :1], 5, axis=1), sample[:4].copy()
    close[:, 1:] = unit(close[:, :1] + 1e-3 * close[:, 1:])
    contexts = np.concatenate([sample, same, close])
    predictions = predictor.forward(contexts)
    found = gain.features(contexts, predictions)
    monkeypatch.setattr(kernel, "READY", False)
    np.testing.assert_allclose(found, gain.features(contexts, predictions), rtol=0, atol=1e-5)


#: Runs where the library cannot be found, as after an install without a compiler.
WITHOUT = """
import importlib.util, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "amn.kernel._kernel" else find(name, *rest)
from amn.gate import gain
from amn.kernel import bindings as kernel
from amn.predictor import Predictor
assert not kernel.READY and kernel.WHY == "not built"
root, given, out = map(Path, sys.argv[1:])
predictor = Predictor.open(root / "production_model", root / "reference_bank")
contexts, found = np.load(given), {}
for count in (1, 3, len(contexts)):
    vectors = predictor.forward(contexts[:count])
    near, features = predictor.bank.top2(vectors), gain.features(contexts[:count], vectors)
    for name, value in (("vectors", vectors), ("features", features), *near._asdict().items()):
        found[f"{name}-{count}"] = value
np.savez(out, **found)
"""


def test_without_the_library_numpy_gives_the_same_answers(predictor, sample, tmp_path):
    given, out = tmp_path / "contexts.npy", tmp_path / "found.npz"
    np.save(given, sample)
    command = [sys.executable, "-c", WITHOUT, str(LVM), str(given), str(out)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    found = np.load(out)
    for count in (1, 3, len(sample)):
        vectors = predictor.forward(sample[:count])
        near, features = predictor.bank.top2(vectors), gain.features(sample[:count], vectors)
        for name, value in (("vectors", vectors), ("features", features), *near._asdict().items()):
            np.testing.assert_allclose(found[f"{name}-{count}"], value, rtol=0, atol=1e-5, err_msg=name)


def test_a_library_of_other_sources_or_for_another_processor_is_not_called(monkeypatch, tmp_path):
    library = SimpleNamespace(amn_version=lambda: kernel._VERSION, amn_supported=lambda: 0)
    broken = tmp_path / "x.so"
    broken.write_bytes(b"of another system")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace(origin=str(broken)))
    assert kernel._load() == (None, "outdated", 0)
    monkeypatch.setattr("ctypes.CDLL", lambda path: library)
    assert kernel._load() == (None, "processor", 0)
    library.amn_version = lambda: kernel._VERSION - 1
    assert kernel._load() == (None, "outdated", 0)
    del library.amn_version  # as before there was a number
    assert kernel._load() == (None, "outdated", 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert kernel._load() == (None, "not built", 0)
