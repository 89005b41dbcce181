"""The truth join on a server: once, whichever half comes first and whoever is killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import redis
from numpy.typing import NDArray

from ops.clock import server_now_ms
from ops.drift.memory import minutes_between
from producer.client import Producer
from producer.keys import GROUP, Keys
from producer.messages import BatchReply, Reply, Request, Timings
from producer.options import Options
from producer.protocol import wire
from producer.sampling import RATE_MAX, sample_key, sampled
from producer.settings import ProducerSettings
from workers.engine.entry import Outcome
from workers.engine.loop import Loop
from workers.engine.microbatch import MicroBatch
from workers.engine.queue import LeasedQueue
from workers.settings import QueueSettings, WorkerSettings
from workers.shadow.exemplars import Exemplars
from workers.shadow.handler import ShadowHandler
from workers.shadow.queue import ShadowQueue, key_hash
from workers.shadow.scores import MILLION, TARGET_TRUE, Labels
from workers.shadow.settings import ShadowSettings

KEYS = Keys()
MODEL = "amn_card@0123456789ab"
#: Places in a sequence that the sample holds at the rate in force.
SAMPLED = [p for p in range(2000) if sampled(sample_key("", "book", p), RATE_MAX)]


class Slice:
    """What was stored of one slice, all lanes together."""

    def __init__(self, sums: Mapping[str, int], name: str = "ood") -> None:
        self.sums: Counter[str] = Counter()
        for field, amount in sums.items():
            labels, stat = Labels.parse(field)
            if (labels.model, labels.slice, labels.target) == (MODEL, name, TARGET_TRUE):
                self.sums[stat] += amount
        self.predictions, self.n = self.sums["predictions"], self.sums["n"]
        self.coverage = self.n / self.predictions

    def mean(self, score: str) -> float:
        return self.sums[f"{score}.sum"] / MILLION / self.n


def read_minutes(client: redis.Redis, now_ms: int, hours: int = 24) -> Iterator[tuple[int, dict[str, int]]]:
    last = now_ms // 60_000
    return minutes_between(client, KEYS, last - 60 * hours + 1, last)


class Rig:
    """Shadow workers on one server, fed by hand."""

    def __init__(self, target: Any, contexts: NDArray[np.float32]) -> None:
        self.admin = target.admin
        self.producer = ProducerSettings(url=target.url)
        self.contexts = contexts
        self.handler = ShadowHandler()
        self._open: list[LeasedQueue] = []

    def queue(self, name: str, shadow: ShadowSettings | None = None, **limits: int) -> ShadowQueue:
        queue = ShadowQueue(self._settings("shadow", **limits), name, shadow)
        queue.ensure_group()
        self._open.append(queue)
        return queue

    def _settings(self, kind: str, **limits: int) -> WorkerSettings:
        queue = QueueSettings(**{"block_ms": 20, "lease_ms": 60_000, **limits})
        return WorkerSettings(kind=kind, producer=self.producer, queue=queue)

    def predict(self, n: int, *, at_ms: int | None = None, domain: str = "anarchism") -> None:
        """A sampled prediction of place `SAMPLED[n]`, as the AMN worker's finish appends it."""
        request = Request(id=f"r{n}", reply_to="c", context=self.contexts[n], domain=domain)
        reply = Reply(id=f"r{n}", vector=self.contexts[n][-1], confidence=0.5, margin=0.1, model=MODEL)
        fields = {
            "kind": "prediction",
            "key": self.key(n),
            "request": wire.encode_request(request),
            "answer": wire.encode_reply(reply),
        }
        self.admin.xadd(KEYS.shadow, fields, id=f"{at_ms}-0" if at_ms else "*")

    def predict_file_row(self, n: int) -> None:
        """The same of one row of a file, which comes as a message of one, slow as it may be."""
        context = self.contexts[n]
        request = Request(id=f"r{n}", reply_to="c", context=context[None], domain="anarchism")
        reply = BatchReply(
            id=f"r{n}",
            vectors=context[-1:],
            **{name: np.full(1, 0.5, np.float32) for name in ("confidences", "margins", "gains")},
            **{name: np.zeros(1, np.uint8) for name in ("fired", "shed")},  # type: ignore[arg-type]
            rules=(),
            sheds=(),
            model=MODEL,
            timings=Timings(queue_ms=1e6),  # type: ignore[arg-type]
        )
        fields = {
            "kind": "prediction",
            "key": self.key(n),
            "one_in": "100",
            "request": wire.encode_request(request),
            "answer": wire.encode_reply(reply),
        }
        self.admin.xadd(KEYS.shadow, fields)

    def reveal(self, n: int) -> None:
        """The truth of it; the last vector of the context, so that its cosine is 1."""
        fields = {"kind": "truth", "key": self.key(n), "vector": wire.encode_vector(self.contexts[n][-1])}
        self.admin.xadd(KEYS.shadow, fields)

    def key(self, n: int) -> str:
        return sample_key("", "book", SAMPLED[n])

    def work(self, queue: ShadowQueue) -> list[bytes]:
        return queue.finish(self.lease(queue))

    def lease(self, queue: ShadowQueue) -> list[Outcome]:
        batch = self.handler.assemble(queue.lease(), queue.settings, 0.0, 0.0)
        return batch.refused + (self.handler.handle(batch) if len(batch) else [])

    def expire_leases(self) -> None:
        for row in self.admin.xpending_range(KEYS.shadow, GROUP, "-", "+", 1000):
            self.admin.xclaim(
                KEYS.shadow, GROUP, row["consumer"], 0, [row["message_id"]], idle=3_600_000, justid=True
            )

    def slice(self, name: str = "ood") -> Slice:
        sums: Counter[str] = Counter()
        for _, minute in read_minutes(self.admin, server_now_ms(self.admin)):
            sums.update(minute)
        return Slice(sums, name)

    def stats(self) -> dict[str, int]:
        return {name.decode(): int(n) for name, n in self.admin.hgetall(KEYS.stats).items()}

    def halves(self) -> int:
        return int(self.admin.zcard(KEYS.drift_half_prefix + "index"))

    def close(self) -> None:
        for queue in self._open:
            queue.close()


@pytest.fixture
def rig(server: Any, contexts: Callable[..., NDArray[np.float32]]) -> Iterator[Rig]:
    rig = Rig(server, contexts(8))
    yield rig
    rig.close()


def test_a_row_of_a_file_counts_in_a_lane_of_its_own_and_is_not_counted_again_for_a_day(rig: Rig) -> None:
    queue = rig.queue("w")
    for _ in range(2):
        rig.predict_file_row(0)
        rig.reveal(0)
        assert rig.work(queue) == [b"ok", b"ok"]
    sums = rig.slice()
    assert (sums.predictions, sums.n, sums.sums["slow"]) == (1, 1, 0)
    assert rig.stats()["shadow:duplicate"] == 2
    fields = rig.admin.hkeys(next(rig.admin.scan_iter(f"{KEYS.drift_minute_prefix}*")))
    assert {Labels.parse(field.decode())[0].lane for field in fields} == {"files"}
    left_s = rig.admin.ttl(KEYS.drift_half_prefix + key_hash(rig.key(0)))
    assert left_s > 24 * 3600


@pytest.mark.parametrize("order", ["prediction first", "truth first", "one batch", "one batch, truth first"])
def test_a_prediction_meets_its_truth_whichever_comes_first(rig: Rig, order: str) -> None:
    queue = rig.queue("w")
    steps = [lambda: rig.predict(0), lambda: rig.reveal(0)]
    for step in reversed(steps) if "truth first" in order else steps:
        step()
        if "one batch" not in order:
            assert rig.work(queue) == [b"ok"]
    if "one batch" in order:
        assert rig.work(queue) == [b"ok", b"ok"]
    found = rig.slice()
    assert (found.predictions, found.n, found.coverage) == (1, 1, 1.0)
    assert found.mean("amn") == pytest.approx(1, abs=2e-6)
    assert found.mean("last") == pytest.approx(1, abs=2e-6)
    assert found.sums["fallback.n"] == 0
    assert rig.halves() == 0
    assert rig.admin.xlen(KEYS.shadow) == 0
    assert rig.admin.xpending(KEYS.shadow, GROUP)["pending"] == 0


def test_two_workers_with_one_half_each_meet(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.predict(0)
    rig.reveal(0)
    first, second = rig.queue("first", batch_max=1), rig.queue("second", batch_max=1)
    mine, others = rig.lease(first), rig.lease(second)
    looked_up = first._stored

    def overtaken(hashes: set[str]) -> Any:
        found = looked_up(hashes)
        if others:  # the other worker's half comes between the look-up and the script
            assert second.finish([others.pop()]) == [b"ok"]
        return found

    monkeypatch.setattr(first, "_stored", overtaken)
    assert first.finish(mine) == [b"ok"]
    assert rig.slice().n == 1
    assert rig.halves() == 0


def test_a_half_that_expires_between_look_and_decision_is_not_scored(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = rig.queue("w")
    rig.predict(0)
    rig.work(queue)
    rig.reveal(0)
    outcomes = rig.lease(queue)
    looked_up = queue._stored

    def expired(hashes: set[str]) -> Any:
        found = looked_up(hashes)
        for name in hashes:
            rig.admin.delete(KEYS.drift_half_prefix + name)
        return found

    monkeypatch.setattr(queue, "_stored", expired)
    assert queue.finish(outcomes) == [b"ok"]  # stored, to wait for a prediction
    found = rig.slice()
    assert (found.predictions, found.n) == (1, 0)


def test_a_worker_that_is_killed_counts_once_when_another_takes_over(rig: Rig) -> None:
    rig.predict(0)
    rig.reveal(0)
    killed, other = rig.queue("killed"), rig.queue("other")
    late = rig.lease(killed)
    rig.expire_leases()
    assert rig.work(other) == [b"ok", b"ok"]
    assert killed.finish(late) == [b"lost", b"lost"]
    found = rig.slice()
    assert (found.predictions, found.n) == (1, 1)


def test_a_truth_that_comes_twice_counts_once(rig: Rig) -> None:
    queue = rig.queue("w")
    rig.reveal(0)
    rig.predict(0)
    rig.reveal(0)
    rig.work(queue)
    rig.reveal(0)
    rig.work(queue)
    assert rig.slice().n == 1
    assert rig.halves() == 0
    assert rig.stats()["shadow:duplicate"] == 2


def test_what_finds_no_truth_counts_against_coverage_and_expires(rig: Rig) -> None:
    queue = rig.queue("w", ShadowSettings(half_ttl_ms=50_000))
    rig.predict(0)
    rig.predict(1)
    rig.reveal(1)
    rig.work(queue)
    found = rig.slice()
    assert (found.predictions, found.n, found.coverage) == (2, 1, 0.5)
    assert all(0 < rig.admin.pttl(key) <= 600_000 for key in rig.admin.keys(KEYS.drift_half_prefix + "*"))
    assert 0 < rig.admin.pttl(KEYS.drift_half_prefix + "index") <= 100_000


def test_the_half_that_has_waited_longest_makes_room(rig: Rig) -> None:
    queue = rig.queue("w", ShadowSettings(halves_max=2))
    for n in range(3):
        rig.predict(n)
        rig.work(queue)
    assert rig.halves() == 2
    assert rig.stats()["shadow:evicted"] == 1
    rig.reveal(2)
    rig.work(queue)
    found = rig.slice()
    assert (found.predictions, found.n) == (3, 1)


def test_a_score_lands_in_the_minute_of_its_prediction(rig: Rig) -> None:
    now_ms = server_now_ms(rig.admin)
    queue = rig.queue("w")
    rig.predict(0, at_ms=now_ms - 3 * 3_600_000)
    rig.predict(1, at_ms=now_ms - 2 * 3_600_000)
    rig.reveal(0)
    rig.work(queue)
    minutes = dict(read_minutes(rig.admin, now_ms))
    assert sorted(minutes) == [(now_ms - hours * 3_600_000) // 60_000 for hours in (3, 2)]
    expires_in_s = rig.admin.ttl(f"{KEYS.drift_minute_prefix}{min(minutes)}")
    assert 46 * 3600 < expires_in_s <= 47 * 3600
    assert dict(read_minutes(rig.admin, now_ms, hours=1)) == {}


def test_what_is_older_than_the_retention_leaves_no_sums(rig: Rig) -> None:
    queue = rig.queue("w")
    rig.predict(0, at_ms=server_now_ms(rig.admin) - 60 * 3_600_000)
    assert rig.work(queue) == [b"ok"]
    assert rig.admin.keys(KEYS.drift_minute_prefix + "*") == []
    assert rig.admin.zcard(KEYS.drift_minutes) == 0


def test_a_prediction_that_expires_counts_against_the_coverage_of_its_own_minute(rig: Rig) -> None:
    now_ms = server_now_ms(rig.admin)
    queue = rig.queue("w", ShadowSettings(half_ttl_ms=100))
    rig.predict(0, at_ms=now_ms - 7_200_000)
    rig.work(queue)
    rig.admin.zadd(KEYS.drift_half_prefix + "index", {key_hash(rig.key(0)): 1})  # as when time has passed
    rig.admin.delete(KEYS.drift_half_prefix + key_hash(rig.key(0)))
    rig.predict(1, at_ms=now_ms - 3_600_000)
    rig.reveal(1)
    rig.work(queue)
    rig.predict(2)
    rig.work(queue)
    assert rig.stats()["shadow:expired"] == 1
    minutes = {minute: Slice(sums) for minute, sums in read_minutes(rig.admin, now_ms)}
    early, late = (minutes[(now_ms - ms) // 60_000] for ms in (7_200_000, 3_600_000))
    assert (early.predictions, early.n, early.coverage) == (1, 0, 0.0)
    assert (late.predictions, late.n, late.coverage) == (1, 1, 1.0)


def test_late_truths_land_in_the_minute_of_their_prediction(rig: Rig) -> None:
    now_ms = server_now_ms(rig.admin)
    queue = rig.queue("w")
    rig.predict(0, at_ms=now_ms - 25 * 3_600_000)
    rig.work(queue)
    rig.reveal(0)
    assert rig.work(queue) == [b"ok"]
    (found,) = [Slice(sums) for _, sums in read_minutes(rig.admin, now_ms, hours=26)]
    assert (found.predictions, found.n) == (1, 1)


def test_what_is_from_the_future_counts_now_as_ids_do_not_go_back_with_the_clock(rig: Rig) -> None:
    queue = rig.queue("w")
    rig.predict(0, at_ms=server_now_ms(rig.admin) + 3_600_000)
    assert rig.work(queue) == [b"ok"]
    rig.reveal(0)
    assert rig.work(queue) == [b"ok"]
    now_ms = server_now_ms(rig.admin)
    found = list(read_minutes(rig.admin, now_ms, hours=1))
    assert now_ms // 60_000 - 1 <= found[0][0] <= found[-1][0] <= now_ms // 60_000
    assert sum(Slice(sums).n for _, sums in found) == 1


def test_what_is_too_old_is_refused_and_counted(rig: Rig) -> None:
    queue = rig.queue("w")
    rig.predict(0, at_ms=server_now_ms(rig.admin) - int(26.1 * 3_600_000))
    rig.predict(1, at_ms=server_now_ms(rig.admin) - int(26.1 * 3_600_000) + 1)
    rig.reveal(0)
    assert rig.work(queue) == [b"ok"] * 3
    assert rig.stats()["shadow:stale"] == 2
    assert rig.admin.keys(KEYS.drift_minute_prefix + "*") == []
    assert rig.halves() == 0
    assert rig.admin.xlen(KEYS.shadow) == 0


def test_truths_that_wait_for_nothing_do_not_push_predictions_out(rig: Rig) -> None:
    queue = rig.queue("w", ShadowSettings(halves_max=2, truths_max=2))
    rig.predict(0)
    rig.work(queue)
    for n in range(1, 7):
        rig.reveal(n)
        rig.work(queue)
    assert rig.admin.zcard(KEYS.drift_half_prefix + "truths") == 2
    assert "shadow:evicted" not in rig.stats()
    rig.reveal(0)
    rig.work(queue)
    assert rig.slice().n == 1


def test_a_truth_waits_for_minutes_and_a_prediction_for_hours(rig: Rig) -> None:
    queue = rig.queue("w")
    rig.predict(0)
    rig.reveal(1)
    rig.work(queue)
    for n, most_ms in ((0, 7_200_000), (1, 600_000)):
        ttl_ms = rig.admin.pttl(KEYS.drift_half_prefix + key_hash(rig.key(n)))
        assert most_ms - 60_000 < ttl_ms <= most_ms


def test_a_matched_pair_is_kept_as_an_exemplar(rig: Rig) -> None:
    queue = rig.queue("w")
    rig.predict(0)
    rig.reveal(0)
    rig.work(queue)
    hour = server_now_ms(rig.admin) // 3_600_000
    found = Exemplars(rig.admin, KEYS).read(hour - 1, hour)
    assert [(one.kind, one.key, one.slice) for one in found] == [
        ("random", rig.key(0), "ood"),
        ("worst", rig.key(0), "ood"),
    ]
    assert found[0].cosine == pytest.approx(1, abs=2e-6)
    np.testing.assert_allclose(found[0].context, rig.contexts[0], atol=1e-3)


def test_what_cannot_be_used_is_dropped_and_counted(rig: Rig) -> None:
    queue = rig.queue("w")
    unit = wire.encode_vector(rig.contexts[0][-1])
    unsampled = next(f"x{i}" for i in range(1000) if not sampled(f"x{i}", RATE_MAX))
    for fields in (
        {"kind": "prediction", "key": "k", "request": b"junk", "answer": b"junk"},
        {"kind": "truth", "key": rig.key(0), "vector": b"short"},
        {"kind": "truth", "key": rig.key(0), "vector": wire.encode_vector(rig.contexts[0][0] * 2)},
        {"kind": "truth", "key": unsampled, "vector": unit},
        {"kind": "truth", "vector": unit},
        {"kind": "rumour"},
    ):
        rig.admin.xadd(KEYS.shadow, fields)
    assert rig.work(queue) == [b"ok"] * 6
    assert rig.stats() == {"shadow:undecodable": 4, "shadow:bad_norm": 1, "shadow:unsampled": 1}
    assert rig.admin.xlen(KEYS.shadow) == 0


def test_the_other_half_of_one_that_cannot_be_read_is_dropped(rig: Rig) -> None:
    queue = rig.queue("w")
    stored = {"kind": "prediction", "entry": "1-1", "head": "of another version", "data": b"?"}
    rig.admin.hset(KEYS.drift_half_prefix + key_hash(rig.key(0)), mapping=stored)
    rig.reveal(0)
    assert rig.work(queue) == [b"ok"]
    assert rig.stats() == {"shadow:unreadable": 1}


def test_after_a_flush_the_shadow_worker_goes_on(rig: Rig) -> None:
    queue = rig.queue("w")
    rig.predict(0)
    outcomes = rig.lease(queue)
    rig.admin.flushall()
    assert queue.finish(outcomes) == [b"lost"]


class AmnStandIn:
    """Ends requests as the AMN worker does, with the last vector as the answer."""

    def __init__(self, queue: LeasedQueue) -> None:
        self.queue = queue

    def work(self) -> None:
        outcomes = []
        for entry in self.queue.lease():
            request = wire.decode_request(entry.fields[b"request"])
            vector = np.asarray(request.context[-1], np.float32)
            reply = Reply(id=request.id, vector=vector, confidence=0.9, margin=0.1, model=MODEL)
            key = sample_key(request.id, request.sequence, request.position)
            before = sample_key(request.id, request.sequence, request.position - 1)
            outcomes.append(
                Outcome(
                    entry=entry,
                    op="reply",
                    reply_to=request.reply_to,
                    payload=wire.encode_reply(reply),
                    sample_key=key if sampled(key, RATE_MAX) else "",
                    truth_key=before if sampled(before, RATE_MAX) else "",
                    truth=wire.encode_vector(request.context[-1]) if sampled(before, RATE_MAX) else b"",
                )
            )
        assert set(self.queue.finish(outcomes)) == {b"ok"}


class StoppingHandler(ShadowHandler):
    """Ends its loop after one batch."""

    loop: Loop

    def handle(self, batch: MicroBatch) -> list[Outcome]:
        self.loop.stop()
        return super().handle(batch)


def test_the_next_request_of_a_sequence_is_the_truth_of_the_last_one(
    server: Any, contexts: Callable[..., NDArray[np.float32]]
) -> None:
    document = contexts(12).reshape(-1, 768)  # 60 vectors in reading order
    place = next(p for p in SAMPLED if p >= 4)
    rig = Rig(server, contexts(1))
    requests = LeasedQueue(rig._settings("amn"), KEYS.requests, "amn")
    requests.ensure_group()
    with Producer(settings=rig.producer) as producer:
        for step in (0, 1):
            producer.submit(
                document[step : step + 5],
                options=Options(sequence="book", position=place + step, domain="anarchism"),
            )
        AmnStandIn(requests).work()
    handler = StoppingHandler()
    queue = rig.queue("shadow")
    handler.loop = Loop(queue, handler, handler.assemble)
    handler.loop.run()
    found = rig.slice()
    assert found.n == 1
    expected = float(document[4] @ document[5])
    assert found.mean("amn") == pytest.approx(expected, abs=1e-4)
    requests.close()
    rig.close()


def test_a_reported_truth_is_joined_too(server: Any, contexts: Callable[..., NDArray[np.float32]]) -> None:
    rig = Rig(server, contexts(1))
    requests = LeasedQueue(rig._settings("amn"), KEYS.requests, "amn")
    requests.ensure_group()
    truth = rig.contexts[0][-1]
    with Producer(settings=rig.producer) as producer:
        name = next(f"x{i}" for i in range(1000) if sampled(f"x{i}", RATE_MAX))
        handle = producer.submit(rig.contexts[0], options=Options(request_id=name))
        assert producer.report_truth(handle, truth)
        AmnStandIn(requests).work()
    rig.work(rig.queue("w"))
    found = rig.slice("unknown")
    assert (found.predictions, found.n) == (1, 1)
    assert found.mean("amn") == pytest.approx(1, abs=2e-6)
    requests.close()
    rig.close()


@pytest.mark.parametrize("name", ["index", "truths", "minutes", "stats", "minute"])
def test_an_entry_ends_once_whatever_has_the_name_of_a_sum(name: str, rig: Rig) -> None:
    minute = int(rig.admin.time()[0]) // 60
    halves = KEYS.drift_half_prefix
    wrong = {
        "index": [halves + "index"],
        "truths": [halves + "truths"],
        "minutes": [KEYS.drift_minutes],
        "stats": [KEYS.stats],
        "minute": [f"{KEYS.drift_minute_prefix}{minute + n}" for n in range(3)],
    }
    queue = rig.queue("w")
    for key in wrong[name]:
        rig.admin.set(key, "words")
    for step in (lambda: rig.predict(0), lambda: rig.reveal(0), lambda: rig.reveal(1)):
        step()
        assert rig.work(queue) == [b"ok"]
    assert rig.admin.xlen(KEYS.shadow) == 0
    if name != "stats":
        assert rig.stats()["untold:sums"] >= 1


def test_a_reported_truth_meets_its_prediction_and_a_prediction_there_is_forged(rig: Rig) -> None:
    queue = rig.queue("w")
    rig.predict(0)
    forged = rig.admin.xrange(KEYS.shadow)[0][1] | {b"key": b"another"}
    rig.admin.xadd(KEYS.truths, forged)
    truth = wire.encode_vector(rig.contexts[0][-1])
    rig.admin.xadd(KEYS.truths, {"kind": "truth", "key": rig.key(0), "vector": truth})
    taken = []
    while more := queue.lease():
        taken += more
    batch = rig.handler.assemble(taken, queue.settings, 0.0, 0.0)
    assert queue.finish(batch.refused + rig.handler.handle(batch)) == [b"ok"] * 3
    assert (rig.slice().predictions, rig.slice().n) == (1, 1)
    assert rig.stats()["shadow:undecodable"] == 1
    for stream in (KEYS.shadow, KEYS.truths):
        assert rig.admin.xlen(stream) == 0
        assert rig.admin.xpending(stream, GROUP)["pending"] == 0
