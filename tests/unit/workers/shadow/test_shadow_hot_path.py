"""What an AMN worker does for the shadow evaluation: a mark on a few requests, and one counter."""

from __future__ import annotations

import time
from collections.abc import Iterable

import numpy as np
import pytest

from amn.gate.escalation import Allowance
from amn.policy import parse_policy
from producer.messages import Reply, Request
from producer.protocol import wire
from producer.sampling import RATE_MAX, sampled, sampled_one_in
from workers.engine.entry import Entry, Outcome
from workers.engine.microbatch import assemble
from workers.handlers.amn import AmnHandler, Gate
from workers.settings import WorkerSettings
from workers.shadow.rates import LaneRate, Rates
from workers.shadow.sampler import Sampler

ROWS = np.random.default_rng(0).normal(size=(5, 768)).astype(np.float32)
ROWS /= np.linalg.norm(ROWS, axis=1, keepdims=True)
QUIET = parse_policy('format = 1\nname = "quiet"\n', "quiet")
NOW_MS = 60_000_000.0


class Last:
    """A model that repeats the newest vector."""

    name, model_id, bank = "amn", "amn@0", None

    def forward(self, contexts: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(contexts[:, -1])


def handled(
    sampler: Sampler | None, count: int = 400, rate: float = RATE_MAX, **fields: object
) -> list[Outcome]:
    """Requests of one sequence, answered just after they were sent."""
    settings = WorkerSettings(kind="amn", sample_rate=rate)
    gate = Gate(policy=QUIET, allowance=Allowance.unlimited())
    entries = []
    for position in range(count):
        request = Request(
            id=f"r{position}",
            reply_to="c",
            **{  # type: ignore[arg-type]
                "context": ROWS,
                "sequence": "s",
                "position": position,
                "submitted_at_ms": NOW_MS,
                **fields,
            },
        )
        entries.append(Entry(f"{position}-1".encode(), {b"request": wire.encode_request(request)}))
    batch = assemble(entries, settings, NOW_MS, time.perf_counter())
    return AmnHandler(Last(), gate, settings, sampler).handle(batch)  # type: ignore[arg-type]


def test_a_request_is_marked_with_the_rate_of_its_lane() -> None:
    sampler = Sampler(RATE_MAX)
    sampler.rates = Rates(minute=1, lanes={"narrative": LaneRate(k=50, traffic=1.0)})
    for lane, k in (("narrative", 50), ("general", 20)):
        marks = {o.sample_key for o in handled(sampler, lane=lane) if o.sample_key}
        assert marks == {f"{k} s#{p}" for p in range(400) if sampled_one_in(f"s#{p}", k)}
        assert marks


def test_truths_go_at_the_highest_rate_whatever_the_lane_has_now() -> None:
    """The request before may have been of another lane, or of a time with another rate."""
    sampler = Sampler(RATE_MAX)
    sampler.rates = Rates(minute=1, shed=True)
    found = {o.truth_key for o in handled(sampler) if o.truth_key}
    assert found == {f"s#{p}" for p in range(399) if sampled(f"s#{p}", RATE_MAX)}
    assert found


def test_without_sampling_nothing_is_marked() -> None:
    assert not [o for o in handled(None, rate=0.0) if o.sample_key or o.truth_key]


@pytest.mark.parametrize(("age_ms", "slow"), [(5.0, True), (-60_000.0, False)])
def test_an_answer_over_the_objective_is_counted(age_ms: float, slow: bool) -> None:
    """A producer's clock that is a minute ahead makes the other case certain."""
    for outcome in handled(None, count=2, submitted_at_ms=NOW_MS - age_ms):
        assert outcome.counters.split(",").count("slow") == int(slow)
        assert "timed" in outcome.counters.split(",")


def test_a_request_that_does_not_say_when_it_was_sent_is_not_fifty_six_years_old() -> None:
    for outcome in handled(None, count=2, submitted_at_ms=0.0):
        assert not {"slow", "timed"} & set(outcome.counters.split(","))
        reply = wire.decode_reply(outcome.payload)
        assert isinstance(reply, Reply)
        assert reply.timings.queue_ms == 0


@pytest.mark.parametrize(("age_ms", "slow"), [(5.0, False), (70_000.0, True)])
def test_work_that_nobody_waits_for_has_an_objective_of_its_own(age_ms: float, slow: bool) -> None:
    sampler = Sampler(RATE_MAX)
    outcomes = handled(sampler, priority="low", submitted_at_ms=NOW_MS - age_ms)
    for outcome in outcomes:
        counted = set(outcome.counters.split(","))
        assert {"bulk", "timed:bulk"} <= counted
        assert ("slow:bulk" in counted) == slow
        assert not {"slow", "timed"} & counted
    assert {o.sample_key for o in outcomes if o.sample_key} == {
        o.sample_key for o in handled(Sampler(RATE_MAX)) if o.sample_key
    }


def test_work_that_brings_no_truth_is_not_sampled() -> None:
    for fields in ({"sequence": "", "position": -1}, {"position": -1}):
        outcomes = handled(Sampler(RATE_MAX), priority="low", **fields)
        assert not [o for o in outcomes if o.sample_key or o.truth_key or "sampleable" in o.counters]
        interactive = handled(Sampler(RATE_MAX), **fields)
        assert all("sampleable" in o.counters for o in interactive)


def test_a_message_of_one_row_of_a_file_is_sampled_at_the_lowest_rate_and_stands_for_a_hundred() -> None:
    file = {"priority": "low", "context": ROWS[None]}
    outcomes = handled(Sampler(RATE_MAX), **file)
    wanted = {f"100 s#{p}" for p in range(400) if sampled_one_in(f"s#{p}", 100)}
    assert {o.sample_key for o in outcomes if o.sample_key} == wanted != set()
    for outcome in outcomes:
        assert ("sampleable=100" in outcome.counters.split(",")) == bool(outcome.sample_key)
        assert outcome.truth_key == ""
    several = {**file, "context": np.stack([ROWS, ROWS])}
    for fields in (several, {**file, "sequence": ""}, {**file, "position": -1}):
        assert not [o for o in handled(Sampler(RATE_MAX), **fields) if o.sample_key]
    assert not [o for o in handled(None, rate=0.0, **file) if o.sample_key]


def test_where_sampling_is_off_nothing_seems_to_be_missed() -> None:
    outcomes = handled(None, rate=0.0)
    assert not [o for o in outcomes if o.sample_key or o.truth_key or "sampleable" in o.counters]


@pytest.mark.parametrize("places", [range(400), range(0, 400, 2), range(399, -1, -1), [5, 5, 6, 6, 4, 5]])
def test_what_a_worker_saw_before_does_not_change_which_truths_it_sends(places: Iterable[int]) -> None:
    sampler = Sampler(RATE_MAX)
    for place in places:
        request = Request(id="r", reply_to="c", context=ROWS, sequence="s", position=place)
        _, truth = sampler.marks(request)
        expected = place > 0 and sampled(f"s#{place - 1}", RATE_MAX)
        assert truth == (f"s#{place - 1}" if expected else "")


def test_many_sequences_are_not_remembered_for_ever() -> None:
    sampler = Sampler(RATE_MAX)
    for n in range(5000):
        sampler.marks(Request(id="r", reply_to="c", context=ROWS, sequence=f"s{n}", position=0))
    assert len(sampler._positions) <= 4096
