"""The notes that a loop makes of its micro-batches, and the counts that they become."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

from producer.messages import Request
from producer.stages import END_TO_END, STAGES, SUM
from workers.engine.entry import Entry, Moments, Outcome
from workers.engine.stages import StageTimes

READ_MS = 1_000_000.0
AT = b"1000", b"6000"  # 6 ms after the read
CONTEXT = np.zeros((5, 768), np.float32)


def outcomes(*counters: str, place: int = 2, priority: str = "normal") -> list[Outcome]:
    """Those of a micro-batch that was read 9 ms after its submit, 5 ms after its append, and took 4 ms."""
    read_s = time.perf_counter() - 0.01
    moments = Moments(READ_MS, read_s, read_s + 0.001, read_s + 0.003, read_s + 0.004)
    asked = Request(id="r", reply_to="c", context=CONTEXT, submitted_at_ms=READ_MS - 9, priority=priority)
    return [
        Outcome(
            entry=Entry(b"999995-0", {}, 1, place), op="reply", counters=one, request=asked, moments=moments
        )
        for one in counters
    ]


def told(times: StageTimes) -> dict[tuple[str, ...], int]:
    """The growth of all series: number and sum, us."""
    found: Counter[tuple[str, ...]] = Counter()
    for labels, bucket, number in times.growth():
        found[(*labels, "us" if bucket == SUM else "n")] += number
    return dict(found)


def test_the_times_of_each_stage_are_those_between_the_readings() -> None:
    times = StageTimes()
    times.ended(outcomes("answered,answered:amn"), [b"ok"], AT)
    found = told(times)
    means = {stage: found[stage, "amn", "normal", "answered", "us"] / 1000 for stage in (*STAGES, END_TO_END)}
    expected = {"queue": 9, "batch": 1, "model": 2, "gate": 1, "finish": 2, END_TO_END: 15}
    assert means == pytest.approx(expected, abs=0.01)
    assert told(times) == {}


def test_what_a_client_writes_makes_no_series() -> None:
    times = StageTimes()
    for number in range(50):
        times.ended(outcomes("answered", place=4, priority=f"x:{number}"), [b"ok"], AT)
    assert {labels[2] for labels in told(times)} == {"normal"}


def test_one_micro_batch_counts_by_level_and_by_how_each_left_and_not_what_the_server_refused() -> None:
    times = StageTimes()
    mixed = [
        *outcomes("answered", "escalated,reason:x", "answered", "dead,dead:y", "failed,failed:z"),
        *outcomes("answered", place=1, priority="low"),
    ]
    mixed[3].request = None
    times.ended(mixed, [b"ok", b"ok", b"lost", b"ok", b"full", b"ok"], AT)
    found = told(times)
    assert {labels[2:4]: number for labels, number in found.items() if labels[::4] == ("queue", "n")} == {
        ("normal", "answered"): 1,
        ("normal", "escalated"): 1,
        ("normal", "dead"): 1,
        ("high", "answered"): 1,
    }
    assert (END_TO_END, "amn", "normal", "escalated", "n") not in found
    # Without a request its way begins at the append, which is 4.5 ms earlier on average.
    assert found["queue", "amn", "normal", "dead", "us"] == pytest.approx(4_500, abs=10)


def test_the_wait_of_an_escalated_request_begins_at_its_escalation_and_its_way_at_the_submit() -> None:
    times = StageTimes()
    times.ended(outcomes("answered", place=4), [b"ok"], AT)
    found = told(times)
    assert found["queue", "fallback", "normal", "answered", "us"] == pytest.approx(4_500, abs=10)
    assert found[END_TO_END, "fallback", "normal", "answered", "us"] == pytest.approx(15_000, abs=10)


def test_notes_that_are_counted_by_two_threads_count_once_each() -> None:
    times, found = StageTimes(), Counter[tuple[str, ...]]()
    batches = [outcomes("answered"), outcomes(*["answered"] * 40), outcomes("escalated", "answered")]
    stopping = threading.Event()

    def keep() -> None:
        while not stopping.is_set():
            found.update(told(times))

    keeper = threading.Thread(target=keep)
    keeper.start()
    for turn in range(3_000):
        batch = batches[turn % 3]
        times.ended(batch, [b"ok"] * len(batch), AT)
    stopping.set()
    keeper.join()
    found.update(told(times))
    assert found["finish", "amn", "normal", "answered", "n"] == 1_000 * 42
    assert found["finish", "amn", "normal", "escalated", "n"] == 1_000


def test_a_worker_keeps_no_more_notes_than_it_counts_at_once() -> None:
    times = StageTimes()
    for _ in range(2_000):
        times.ended(outcomes("answered"), [b"ok"], AT)
    assert len(times._noted) < 256
