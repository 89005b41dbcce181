"""The times of the stages: what several workers count adds up on the server, and nothing counts twice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from echo import EchoWorker
from rig import KEYS, Rig, answer

from ops import stages
from producer import Options, Producer
from producer.settings import ProducerSettings
from producer.stages import END_TO_END, REPLY, STAGES, StageHistogram
from workers.engine.keeper import Keeper
from workers.engine.loop import Loop
from workers.engine.microbatch import MicroBatch
from workers.engine.stages import StageTimes

Make = Callable[..., tuple[Loop, Keeper]]


class Slow:
    """Spends known times in the model and the gate; "e..." is escalated, "f..." breaks its batch."""

    def handle(self, batch: MicroBatch) -> list[Any]:
        if any(request.id.startswith("f") for request in batch.requests):
            raise RuntimeError("cannot")
        batch.started_s = time.perf_counter()
        time.sleep(0.002)
        batch.predicted_s = time.perf_counter()
        time.sleep(0.001)
        return [
            answer(entry, "escalate" if request.id.startswith("e") else "reply")
            for entry, request in zip(batch.entries, batch.requests, strict=True)
        ]


@pytest.fixture
def worker(rig: Rig) -> Iterator[Make]:
    """Makes the loop and the keeper of a worker, none of them started."""
    keepers: list[Keeper] = []

    def make(name: str, stream: str = KEYS.requests, **limits: int) -> tuple[Loop, Keeper]:
        loop = Loop(rig.queue(name, stream, **limits), Slow(), stages=StageTimes())
        keepers.append(Keeper(loop, {}))
        return loop, keepers[-1]

    yield make
    for keeper in keepers:
        keeper.client.close()


def drained(loop: Loop) -> None:
    while loop._turn():
        pass


def by_labels(rig: Rig) -> dict[tuple[str, ...], StageHistogram]:
    found = stages.read_total(rig.admin, KEYS)
    return {(one.stage, one.kind, one.level, one.outcome): one for one in found}


def test_what_two_workers_tell_at_once_adds_up_to_every_answered_request(rig: Rig, worker: Make) -> None:
    pairs = [worker(name, batch_max=12) for name in ("a", "b")]
    for turn in range(3):
        submitted_at_ms = pairs[0][0].queue.clock.now_ms() - 100
        rig.put(*(f"{turn}-{n}" for n in range(30)), submitted_at_ms=submitted_at_ms)
        for loop, _ in pairs:
            loop._finish(loop._outcomes(loop.queue.lease()))
        both = [threading.Thread(target=keeper._tell_stages) for _, keeper in pairs]
        for one in both:
            one.start()
        for one in both:
            one.join()
    drained(pairs[0][0])
    for _, keeper in pairs * 2:  # the second time there is nothing to tell
        keeper._tell_stages()
    found = by_labels(rig)
    assert {labels[0] for labels in found} == {*STAGES, END_TO_END}
    assert {one.count for one in found.values()} == {rig.stats()["answered"]} == {90}
    whole = found[END_TO_END, "amn", "normal", "answered"]
    parts = [found[stage, "amn", "normal", "answered"].mean_ms for stage in STAGES]
    assert parts[0] >= 100
    assert 2 <= parts[2] < 20
    assert 1 <= parts[3] < 20
    assert whole.mean_ms == pytest.approx(sum(parts), rel=0.01)
    lately = stages.read(rig.admin, KEYS, 60)
    assert {(one.stage, one.outcome, one.count) for one in lately} == {
        (stage, "", 90) for stage in (*STAGES, END_TO_END)
    }
    assert 0 < rig.admin.pttl(KEYS.stages_minute(int(time.time() // 60))) <= 25 * 3_600_000


def test_each_way_to_end_has_its_own_count_and_level(rig: Rig, worker: Make) -> None:
    (loop, keeper), (behind, told) = worker("a", batch_max=1), worker("b", KEYS.fallback)
    rig.put("a1", "e1", "f1", priority="high")
    rig.put_bytes(b"nonsense", 2)
    drained(loop)
    time.sleep(0.05)
    drained(behind)
    keeper._tell_stages()
    told._tell_stages()
    counts = {labels: one.count for labels, one in by_labels(rig).items()}
    assert {labels[1:]: count for labels, count in counts.items() if labels[0] == "finish"} == {
        ("amn", "high", "answered"): 1,
        ("amn", "high", "escalated"): 1,
        ("amn", "high", "dead"): 1,
        ("amn", "low", "dead"): 1,
        ("fallback", "high", "escalated"): 1,
    }
    ends = {labels[1:] for labels in counts if labels[0] == END_TO_END}
    assert ends == {("amn", "high", "answered"), ("amn", "high", "dead"), ("amn", "low", "dead")}
    waited = by_labels(rig)["queue", "fallback", "high", "escalated"]
    assert 40 <= waited.mean_ms < 5_000


def test_an_end_that_came_after_its_lease_is_counted_by_the_other_worker_alone(
    rig: Rig, worker: Make
) -> None:
    (late, keeper), (other, told) = worker("late"), worker("other")
    rig.put("a1")
    outcomes = late._outcomes(late.queue.lease())
    rig.expire_leases()
    drained(other)
    late._finish(outcomes)
    keeper._tell_stages()
    told._tell_stages()
    assert {one.count for one in by_labels(rig).values()} == {1}
    assert rig.stats()["answered"] == 1


def test_an_escalation_without_room_counts_as_the_answer_that_it_becomes(rig: Rig, worker: Make) -> None:
    loop, keeper = worker("w", fallback_entries_max=1)
    rig.put("e1", "e2", "e3")
    drained(loop)
    keeper._tell_stages()
    queues = {labels[3]: one.count for labels, one in by_labels(rig).items() if labels[0] == "queue"}
    assert queues == {"escalated": 1, "answered": 2}


def test_a_key_of_another_type_stops_nothing_else(rig: Rig, worker: Make) -> None:
    loop, keeper = worker("w")
    rig.admin.set(KEYS.stages, "mine")
    rig.put("a1")
    drained(loop)
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        keeper._renew()
    assert rig.admin.exists(KEYS.worker("w"), KEYS.standing) == 2
    assert stages.read_total(rig.admin, KEYS) == []


@pytest.mark.parametrize("asked", [True, False])
def test_a_client_counts_its_own_times_only_where_it_asks_for_it(
    server: Any, contexts: Any, asked: bool
) -> None:
    settings = ProducerSettings(url=server.url, stages=asked)
    with EchoWorker(server.url), Producer(settings=settings) as producer:
        for handle in producer.submit_many(contexts(20), options=Options(priority="high")):
            handle.result()
        found = {(one.stage, one.kind, one.level, one.outcome): one for one in producer.stages}
    if not asked:
        assert found == {}
        return
    labels = "client", "high", "answered"
    assert set(found) == {(END_TO_END, *labels), (REPLY, *labels)}
    assert found[END_TO_END, *labels].count == found[REPLY, *labels].count == 20
