"""The retrieval layout: what its memory adds, how it is searched and stored, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from amn_helpers import ENCODER, articles, contexts, made
from safetensors.torch import load_file, save_file

from amn.config import ModelConfig
from amn.data.dataset import split_by_article
from amn.data.vectors import VectorSet
from amn.errors import CheckpointError, DataError
from amn.evaluation.metrics import window_cosines
from amn.kernel import bindings as kernel
from amn.manifest import MANIFEST, files_sha256
from amn.model import checkpoint
from amn.model.folded import fold
from amn.model.layouts import build
from amn.model.memory import NEIGHBOURS, Entries, pack
from amn.predictor import Predictor
from amn.training import filing
from amn.training.filing import fill


def text(**changes):
    """Articles whose next vector is told by their topic, so that a memory of them helps."""
    made = articles(count=60, length=14) | changes
    return VectorSet(**{"encoder_id": str(made.pop("encoder")), "source": "synthetic"} | made)


@pytest.fixture(scope="module")
def data():
    return text()


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    empty = build(ModelConfig(layout="retrieval"))
    empty.first.load_state_dict(made("bounded").state_dict())
    return fill(empty, data, split_by_article(data), 0, lambda *_: None)


@pytest.fixture
def folder(model, tmp_path):
    checkpoint.save(model, tmp_path / "r", name="retrieval", encoder_id=ENCODER, records={})
    return tmp_path / "r"


def filled(entries, cells, seed=0):
    """A memory of random entries, in cells of uneven sizes, one of them empty."""
    draw = np.random.default_rng(seed)
    cuts = np.sort(draw.integers(0, entries + 1, cells - 1))
    cuts[cells // 2] = cuts[cells // 2 - 1]
    made = Entries()
    made.fill(
        keys=pack(torch.from_numpy(draw.integers(-127, 128, (entries, 192)).astype(np.int8))),
        key_step=torch.from_numpy(draw.uniform(1e-4, 1e-3, 192).astype(np.float32)),
        nexts=torch.from_numpy(draw.integers(-127, 128, (entries, 256)).astype(np.int8)),
        next_step=torch.full((256,), 1e-3),
        start=torch.from_numpy(np.concatenate([[0], cuts, [entries]])),
        centroids=torch.from_numpy(draw.normal(0, 0.1, (cells, 192)).astype(np.float32)),
    )
    return made


def test_every_training_window_is_an_entry_with_what_followed_it(model, data):
    split = split_by_article(data)
    assert len(model.memory) == len(split.train)
    restored = (model.memory.nexts * model.memory.next_step) @ model.next_map
    nearest = (restored @ torch.from_numpy(data.next_vectors(split.train)).T).argmax(0)
    assert len(set(nearest.tolist())) > 0.99 * len(split.train)


def test_the_memory_helps_on_articles_of_its_domains(model, data):
    split = split_by_article(data)
    gain = window_cosines(fold(model), data, split.test) - window_cosines(fold(model.first), data, split.test)
    assert gain.mean() > 0.001


def test_neighbours_that_are_equally_near_are_weighed_alike_and_no_rounding_chooses_one(model):
    scores, products = torch.full((1, NEIGHBOURS), 0.99), torch.zeros(1, NEIGHBOURS, 6)
    with torch.inference_mode():
        alike = model.weights(scores, products)
        scores[0, 5] += 1e-7
        rounded = model.weights(scores, products)
    torch.testing.assert_close(alike, torch.full_like(alike, 1 / NEIGHBOURS))
    assert (rounded - alike).abs().max() < 1e-4


def test_a_memory_that_gains_nothing_in_validation_leaves_every_answer_to_amn(data, monkeypatch):
    model = build(ModelConfig(layout="retrieval"))
    lost = lambda model, _: (0 * model.attention.sum() - (model.trust[4] - 0.1) ** 2 - 1).expand(1)  # noqa: E731
    monkeypatch.setattr(filing, "_gain", lost)
    fill(model, data, split_by_article(data), 0, lambda *_: None)
    x = torch.from_numpy(data.windows(split_by_article(data).test)[:, :5]).contiguous()
    with torch.inference_mode():
        np.testing.assert_array_equal(model(x).numpy(), model.first(x).numpy())


def test_an_empty_memory_is_stored_too(tmp_path):
    empty = build(ModelConfig(layout="retrieval"))
    checkpoint.save(empty, tmp_path, name="retrieval", encoder_id=ENCODER, records={})
    assert not len(checkpoint.load(tmp_path).model.memory)


def test_an_answer_without_a_share_is_amns_bit_for_bit(model, monkeypatch):
    x = contexts(20, seed=5)
    monkeypatch.setattr(model, "share", lambda scores, *_: (torch.arange(len(scores)) % 2).float())
    with torch.inference_mode():
        own, first = model(x), model.first(x)
    np.testing.assert_array_equal(own[::2].numpy(), first[::2].numpy())
    assert (own - first)[1::2].abs().amax(1).min() > 1e-3


@pytest.mark.parametrize("loops", [True, False])
def test_the_folded_form_answers_like_the_module(model, data, loops, monkeypatch):
    monkeypatch.setattr(kernel, "READY", loops and kernel.READY)
    windows = torch.from_numpy(data.windows(split_by_article(data).test)[:, :5]).contiguous()
    x = torch.cat([windows, contexts(5, seed=5)])
    with torch.inference_mode():
        expected = model(x)
    folded = fold(model)
    for rows in (slice(0, 1), slice(len(windows), len(x)), slice(0, len(x))):
        assert (folded(x[rows]) - expected[rows]).abs().max() < 1e-5


@pytest.fixture(scope="module")
def heeded():
    """A model of which any memory has a large share."""
    torch.manual_seed(3)
    made_model = build(ModelConfig(layout="retrieval"))
    made_model.first.load_state_dict(made("bounded").state_dict())
    made_model.first.forward = fold(made_model.first)  # whose own roundings are judged elsewhere
    with torch.no_grad():
        made_model.attention.copy_(torch.tensor([-5.0, -9, 2, 1.5, 1.5, 7, 9]))
        made_model.trust.copy_(torch.tensor([0.5, -0.2, 0.3, 0.2, 0.4]))
    return made_model.eval()


@pytest.mark.needs("compiled loops")
@pytest.mark.parametrize("batch", [1, 2, 33, 50])
@pytest.mark.parametrize(
    ("entries", "cells"), [(1, 3), (15, 3), (63, 3), (64, 3), (65, 3), (1000, 7), (9000, 90), (9000, 33)]
)
def test_the_loops_answer_like_the_module_for_memories_of_any_size(heeded, entries, cells, batch):
    heeded.memory, x = filled(entries, cells), contexts(batch, seed=batch)
    with torch.inference_mode():
        expected, first = heeded(x), heeded.first(x)
    assert (expected - first).abs().amax(1).min() > 1e-3
    assert (fold(heeded)(x) - expected).abs().max() < 1e-5


@pytest.mark.needs("compiled loops")
def test_every_level_of_the_loops_and_every_batch_gives_the_same_bits(heeded, monkeypatch):
    heeded.memory, x, answers = filled(1000, 7), contexts(9), []
    for level in range(1, kernel.LEVEL + 1):
        monkeypatch.setattr(kernel, "LEVEL", level)
        answers.append(fold(heeded)(x))
    for answer in answers:
        np.testing.assert_array_equal(answer.numpy(), answers[0].numpy())
    alone = torch.cat([fold(heeded)(one[None]) for one in x])
    np.testing.assert_array_equal(alone.numpy(), answers[0].numpy())


@pytest.mark.needs("compiled loops")
def test_equal_keys_and_vectors_of_zeros_are_answered_like_the_module(heeded):
    heeded.memory = filled(64, 3)  # all are found, once each: of equal ones at the border, any may be
    heeded.memory.keys[1::2] = heeded.memory.keys[::2]  # panels of 16
    heeded.memory.nexts[10:20] = 0
    x = contexts(9, seed=4)
    x[3, :4], x[5, -1], x[6] = 0, 0, x[7]
    with torch.inference_mode():
        expected = heeded(x)
    assert torch.isfinite(expected).all()
    assert (fold(heeded)(x) - expected).abs().max() < 1e-5


@pytest.mark.needs("compiled loops")
def test_a_context_that_is_no_number_keeps_amns_answer_and_harms_none_beside_it(heeded):
    heeded.memory, x = filled(1000, 7), contexts(3, seed=4)
    answer = fold(heeded)
    alone = answer(x[2:])
    x[1, 2, 5] = torch.nan
    together = answer(x)
    np.testing.assert_array_equal(together[1].numpy(), fold(heeded.first)(x)[1].numpy())
    np.testing.assert_array_equal(together[2:].numpy(), alone.numpy())


def test_a_stored_memory_comes_back_and_its_golden_vectors_ask_it(model, folder, data):
    loaded = Predictor.open(folder)
    x = data.windows(split_by_article(data).test)[:, :5]
    np.testing.assert_allclose(loaded.predict(x), fold(model).arrays(x), atol=1e-5)
    golden = load_file(folder / checkpoint.GOLDEN_FILE)
    first = loaded.checkpoint.model.first(golden["inputs"])
    assert (golden["outputs"] - first).abs().amax(1)[4:].max() > 1e-4


def test_sixteen_bit_storage_leaves_the_entries_alone(model, tmp_path):
    checkpoint.save(model, tmp_path, name="retrieval", encoder_id=ENCODER, records={}, storage="float16")
    stored = load_file(tmp_path / checkpoint.WEIGHTS_FILE)
    assert stored["memory.nexts"].dtype == torch.int8
    assert stored["memory.start"].dtype == torch.int64
    assert stored["key_map"].dtype == torch.float16
    assert len(checkpoint.load(tmp_path).model.memory) == len(model.memory)


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("start", lambda x: torch.cat([x[:-1], x[-1:] + 1]), "do not divide"),
        ("start", lambda x: x.flip(0), "do not divide"),
        ("start", lambda x: x.clone().index_fill_(0, torch.tensor([1]), 10**9), "do not divide"),
        # Steps from -2^63 to 2^63 are no steps back, where they overflow.
        ("start", lambda x: torch.cat([x[:1], torch.tensor([2**63 - 1, -2]), x[3:]]), "do not divide"),
        ("start", lambda x: x[:0], "centroids is torch.float32"),
        ("keys", lambda x: x[:-1], "keys is torch.int8"),
        ("keys", lambda x: x.long() * 1000, "keys is torch.int64"),
        ("keys", lambda x: x.float(), "keys is torch.float32"),
        ("nexts", lambda x: x[:, :255], "nexts is torch.int8"),
        ("centroids", lambda x: x[:, :191], "centroids is torch.float32"),
        ("nexts", lambda x: x[0, 0], "keys is torch.int8"),
        ("centroids", lambda x: x[:0], "centroids is torch.float32"),
        ("centroids", lambda x: x[0, 0], "centroids is torch.float32"),
        ("centroids", lambda x: x.double() * 1e300, "infinity"),
        ("key_step", lambda x: x * float("nan"), "NaN"),
        ("key_step", lambda x: (x * float("nan")).to(torch.float8_e4m3fn), "NaN"),
        ("nexts", None, "Missing key"),
    ],
)
def test_entries_that_do_not_fit_together_are_refused_whatever_their_hash(folder, name, change, fault):
    path = folder / checkpoint.WEIGHTS_FILE
    stored = {key: value.clone() for key, value in load_file(path).items()}
    given = stored.pop(f"memory.{name}")
    save_file(stored | ({f"memory.{name}": change(given).contiguous()} if change else {}), path)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"sha256": files_sha256([path])}))
    with pytest.raises(CheckpointError, match=fault):
        checkpoint.load(folder)


def test_text_of_one_domain_is_refused(tmp_path):
    data = text(article_domain=np.array(["alpha"] * 50 + ["anarchism"] * 10))
    with pytest.raises(DataError, match="text of several domains"):
        fill(build(ModelConfig(layout="retrieval")), data, split_by_article(data), 0, lambda *_: None)
