"""What the shadow handler makes of a batch, without a server."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from producer.messages import Failure, Reply, Request
from producer.protocol import wire
from workers.engine.entry import Entry, Outcome
from workers.settings import WorkerSettings
from workers.shadow.handler import ShadowHandler
from workers.shadow.queue import HalfOutcome
from workers.shadow.settings import ShadowSettings

SETTINGS = WorkerSettings(kind="shadow")


class LastVector:
    """A fallback; rows whose context is marked get no unit vector."""

    def __init__(self, bad_rows: tuple[int, ...] = ()) -> None:
        self.bad_rows = bad_rows
        self.batches: list[int] = []

    def predict(self, contexts: NDArray[np.float32]) -> NDArray[np.float32]:
        self.batches.append(len(contexts))
        rows = contexts[:, -1].copy()
        rows[list(self.bad_rows)] = np.nan
        return rows


def prediction(context: NDArray[np.float32], n: int = 0, **changes: object) -> Entry:
    request = Request(id=f"r{n}", reply_to="c", context=context, lane="narrative", domain="autism")
    reply = Reply(id=f"r{n}", vector=context[0], confidence=0.5, margin=0.1, model="amn@1")
    fields: dict[bytes, bytes] = {
        b"kind": b"prediction",
        b"key": f"r{n}".encode(),
        b"request": wire.encode_request(request),
        b"answer": wire.encode_reply(reply),
    }
    fields |= changes.get("fields", {})  # type: ignore[operator]
    return Entry(b"60000-%d" % n, fields, int(changes.get("deliveries", 1)))  # type: ignore[call-overload]


def work(handler: ShadowHandler, *entries: Entry) -> list[Outcome]:
    batch = handler.assemble(entries, SETTINGS, 0.0, 0.0)
    return batch.refused + (handler.handle(batch) if len(batch) else [])


def test_a_prediction_becomes_a_half_with_its_labels_and_minute(context: NDArray[np.float32]) -> None:
    (outcome,) = work(ShadowHandler(), prediction(context))
    assert isinstance(outcome, HalfOutcome)
    assert outcome.sample_key == "r0"
    assert outcome.half.labels == "amn@1|narrative|id|true"
    assert outcome.half.minute == 1


def test_the_fallback_is_run_once_on_the_whole_batch(
    contexts: Callable[..., NDArray[np.float32]],
) -> None:
    fallback = LastVector()
    outcomes = work(ShadowHandler(fallback=fallback), *(prediction(c, n) for n, c in enumerate(contexts(5))))
    assert fallback.batches == [5]
    assert [len(o.half.data) for o in outcomes if isinstance(o, HalfOutcome)] == [7 * 1536] * 5


def test_a_fallback_that_gives_no_unit_vector_is_left_out_of_that_row_alone(
    contexts: Callable[..., NDArray[np.float32]],
) -> None:
    handler = ShadowHandler(fallback=LastVector(bad_rows=(1,)))
    outcomes = work(handler, *(prediction(c, n) for n, c in enumerate(contexts(3))))
    sizes = [len(o.half.data) // 1536 for o in outcomes if isinstance(o, HalfOutcome)]
    assert sizes == [7, 6, 7]


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("undecodable", {"fields": {b"answer": b"junk"}}),
        ("undecodable", {"fields": {b"request": b"junk"}}),
        ("undecodable", {"fields": {b"key": b""}}),
        ("undecodable", {"fields": {b"key": b"\xff"}}),
        ("unanswered", {"fields": {b"answer": wire.encode_failure(Failure(id="r0", code="x", message="y"))}}),
        ("worker_died", {"deliveries": 6}),
    ],
)
def test_what_cannot_be_scored_is_dropped_with_a_reason(
    context: NDArray[np.float32], reason: str, change: dict[str, object]
) -> None:
    (outcome,) = work(ShadowHandler(), prediction(context, **change))
    assert not isinstance(outcome, HalfOutcome)
    assert outcome.reason == reason


def test_a_context_that_is_not_of_unit_norm_is_dropped(context: NDArray[np.float32]) -> None:
    (outcome,) = work(ShadowHandler(), prediction(context * np.float32(1.1)))
    assert outcome.reason == "bad_norm"


@pytest.mark.parametrize(("domain", "slice_"), [("", "unknown"), ("anarchism", "ood"), ("autism", "id")])
def test_the_slice_comes_from_the_explicit_domain(domain: str, slice_: str) -> None:
    assert ShadowSettings().slice_of(domain) == slice_


def test_domains_out_of_distribution_are_a_setting() -> None:
    assert ShadowSettings(ood_domains=frozenset({"law"})).slice_of("law") == "ood"
