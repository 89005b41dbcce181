"""What a sampled request adds without its truth, and what its weight does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from producer.messages import Reply, Request, Timings
from producer.protocol import wire
from workers.engine.entry import Entry
from workers.settings import WorkerSettings
from workers.shadow.handler import ShadowHandler
from workers.shadow.queue import HalfOutcome
from workers.shadow.scores import MILLION, increments, truth_half


class Spot(NamedTuple):
    score: float
    cell: int


class Measured:
    """A slicer that says the same of every context."""

    def __init__(self, score: float, cell: int = 7) -> None:
        self.spot = Spot(score, cell)

    def measure(self, context: NDArray[np.floating]) -> Spot:
        return self.spot

    def slice_of(self, score: float) -> str:
        return "id" if score <= 0.4 else "ood" if score > 0.6 else "unsure"


class Last:
    def predict(self, contexts: NDArray[np.float32]) -> NDArray[np.float32]:
        return contexts[:, -1]


def arrived(
    context: NDArray[np.float32],
    handler: ShadowHandler,
    *,
    domain: str = "",
    one_in: bytes | None = b"50",
    **reply: Any,
) -> tuple[dict[str, int], Any]:
    """Fields that one prediction adds at once, and the outcome."""
    request = Request(id="r", reply_to="c", context=context, lane="narrative", domain=domain)
    answer = Reply(id="r", vector=context[0], confidence=0.25, margin=0.1, model="amn@1")
    fields: dict[bytes, bytes] = {
        b"kind": b"prediction",
        b"key": b"r",
        b"request": wire.encode_request(request),
        b"answer": wire.encode_reply(replace(answer, **reply)),
    }
    if one_in is not None:
        fields[b"one_in"] = one_in
    batch = handler.assemble([Entry(b"60000-1", fields)], WorkerSettings(kind="shadow"), 0.0, 0.0)
    (outcome,) = batch.refused + (handler.handle(batch) if len(batch) else [])
    pairs = outcome.pairs if isinstance(outcome, HalfOutcome) else []
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs), outcome


def test_a_sample_counts_once_and_for_as_many_as_it_stands_for(context: NDArray[np.float32]) -> None:
    found, outcome = arrived(context, ShadowHandler())
    assert found == {
        "amn@1|narrative|unknown|true|predictions": 1,
        "amn@1|narrative|unknown|true|predictions.wsum": 50,
    }
    scores = {f.rpartition("|")[2]: n for f, n in increments(outcome.half, truth_half(context[0]))}
    assert (scores["n"], scores["w.sum"], scores["w.squares"]) == (1, 50, 2500)
    assert (scores["amn.sum"], scores["amn.wsum"]) == (MILLION, 50 * MILLION)
    assert (scores["amn.squares"], scores["amn.wsquares"]) == (MILLION, 50 * MILLION)


@pytest.mark.parametrize("one_in", [None, b"0"])
def test_a_sample_that_does_not_say_its_rate_has_the_workers(
    context: NDArray[np.float32], one_in: bytes | None
) -> None:
    found, _ = arrived(context, ShadowHandler(default_weight=25), one_in=one_in)
    assert found["amn@1|narrative|unknown|true|predictions.wsum"] == 25


@pytest.mark.parametrize("one_in", [b"101", b"-1", b"x", b""])
def test_a_rate_that_cannot_be_is_refused(context: NDArray[np.float32], one_in: bytes) -> None:
    _, outcome = arrived(context, ShadowHandler(), one_in=one_in)
    assert (outcome.op, outcome.reason) == ("drop", "undecodable")


@pytest.mark.parametrize(("score", "name"), [(0.3, "id"), (0.5, "unsure"), (0.7, "ood")])
def test_without_a_domain_the_score_chooses_the_slice(
    context: NDArray[np.float32], score: float, name: str
) -> None:
    found, _ = arrived(context, ShadowHandler(slicer=Measured(score)))
    assert f"amn@1|narrative|{name}|true|predictions" in found


def test_an_explicit_domain_comes_before_the_score_which_is_kept_all_the_same(
    context: NDArray[np.float32],
) -> None:
    found, outcome = arrived(context, ShadowHandler(slicer=Measured(0.7123)), domain="git")
    assert found["amn@1|narrative|id|true|predictions"] == 1
    assert found["amn@1|narrative|id|input|ood.sum"] == 712_300
    assert found["amn@1|narrative|id|input|n"] == 1
    assert found["amn@1|all|all|input|c7"] == found["amn@1|all|all|input|s71"] == 50
    assert outcome.half.ood == 712_300


@pytest.mark.parametrize(("score", "bin_"), [(0.0, 0), (-1e-7, 0), (0.999, 99), (1.4, 99)])
def test_the_ends_of_the_ood_scale_are_in_the_outermost_bins(
    context: NDArray[np.float32], score: float, bin_: int
) -> None:
    found, _ = arrived(context, ShadowHandler(slicer=Measured(score)))
    assert found[f"amn@1|all|all|input|s{bin_}"] == 50


def test_the_stronger_models_answer_is_a_tier_of_its_own(context: NDArray[np.float32]) -> None:
    found, outcome = arrived(context, ShadowHandler(fallback=Last()))
    value = found["amn@1|narrative|unknown|model|amn.sum"]
    assert value == pytest.approx(float(context[0] @ context[-1]) * MILLION, abs=60)
    truth = increments(outcome.half, truth_half(context[1]))
    assert not {field.split("|")[3] for field, _ in truth} - {"true"}


def test_the_nearest_reference_is_one_where_the_bank_was_asked(context: NDArray[np.float32]) -> None:
    found, _ = arrived(context, ShadowHandler(), bank="bank@1")
    assert found["amn@1|narrative|unknown|reference|amn.sum"] == 250_000
    found, _ = arrived(context, ShadowHandler(), bank="bank@1", confidence_method="none")
    assert not [field for field in found if "|reference|" in field]


@pytest.mark.parametrize(("ms", "slow"), [(0.4, 0), (0.39, 0), (0.51, 1)])
def test_an_answer_over_the_objective_is_slow(context: NDArray[np.float32], ms: float, slow: int) -> None:
    timings = Timings(queue_ms=0.3, batch_ms=0.4, compute_ms=ms)
    found, _ = arrived(context, ShadowHandler(), timings=timings)
    assert found.get("amn@1|narrative|unknown|true|slow", 0) == slow
