"""The truth join adds the same integers whatever the order, the duplicates and the crashes."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from unittest import mock

import fakeredis
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from amn.slices import load_slices
from producer.keys import Keys
from producer.messages import DEFAULT_ENCODER, Reply, Request
from producer.protocol import wire
from producer.sampling import RATE_MAX, sampled
from producer.settings import ProducerSettings
from workers.engine.entry import Outcome
from workers.settings import QueueSettings, WorkerSettings
from workers.shadow.exemplars import Exemplar, Exemplars, of_pair
from workers.shadow.handler import ShadowHandler
from workers.shadow.queue import ShadowQueue, key_hash
from workers.shadow.scores import Half, increments

KEYS = Keys("main")
START_MS = int(time.time() * 1000) // 60_000 * 60_000 - 600_000
RANDOM = np.random.default_rng(7)


def units(*shape: int) -> np.ndarray:
    vectors = RANDOM.standard_normal((*shape, 768)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


#: Places in a sequence that the sample holds at the rate in force.
SAMPLED = [key for key in (f"s#{position}" for position in range(1000)) if sampled(key, RATE_MAX)][:6]
CONTEXTS, ANSWERS, TRUTHS = units(6, 5), units(6), units(6)


SLICER = load_slices(Path("artifacts/lvm/ood_slices"), DEFAULT_ENCODER)


class Oldest:
    """A fallback whose arithmetic does not depend on the batch."""

    def predict(self, contexts: np.ndarray) -> np.ndarray:
        return contexts[:, 0]


class Rig:
    """Shadow workers on one fake server, and the entries that they were given."""

    def __init__(self, batch_max: int) -> None:
        self.server = fakeredis.FakeServer()
        self.client = fakeredis.FakeRedis(server=self.server, protocol=2)
        self.settings = WorkerSettings(
            kind="shadow",
            producer=ProducerSettings(),
            queue=QueueSettings(batch_max=batch_max, block_ms=1, lease_ms=60_000),
        )
        self.handler = ShadowHandler(fallback=Oldest(), slicer=SLICER)
        self.queues = [self.queue(f"shadow-{i}") for i in range(3)]
        self.leased: list[list[Outcome]] = [[], [], []]
        self.late: list[tuple[ShadowQueue, list[Outcome]]] = []

    def queue(self, name: str) -> ShadowQueue:
        client = fakeredis.FakeRedis(server=self.server, protocol=2)
        with mock.patch("workers.engine.reads.connect", return_value=client):
            queue = ShadowQueue(self.settings, name)
        queue.ensure_group()
        return queue

    def append(self, events: list[tuple[str, int]]) -> None:
        for i, (kind, k) in enumerate(events):
            fields: dict[str, str | bytes] = {"kind": kind, "key": SAMPLED[k], "one_in": str(20 + 13 * k)}
            if kind == "prediction":
                request = Request(
                    id=f"r{k}", reply_to="c", context=CONTEXTS[k], domain=("", "anarchism", "autism")[k % 3]
                )
                reply = Reply(id=f"r{k}", vector=ANSWERS[k], confidence=0.5, margin=0.1, model="amn@1")
                fields |= {"request": wire.encode_request(request), "answer": wire.encode_reply(reply)}
            else:
                fields["vector"] = wire.encode_vector(TRUTHS[k])
            self.client.xadd(KEYS.shadow, fields, id=f"{START_MS + 37_000 * i}-1")

    def lease(self, w: int) -> int:
        self.queues[w]._reclaim_at = 0.0  # looks for expired leases every time, not every so often
        entries = self.queues[w].lease()
        batch = self.handler.assemble(entries, self.settings, 0.0, 0.0)
        self.leased[w] += batch.refused + (self.handler.handle(batch) if len(batch) else [])
        return len(entries)

    def finish(self, w: int, rotation: int, count: int) -> None:
        mine = self.leased[w]
        mine[:] = mine[rotation % max(len(mine), 1) :] + mine[: rotation % max(len(mine), 1)]
        some, self.leased[w] = mine[:count], mine[count:]
        assert set(self.queues[w].finish(some)) <= {b"ok", b"lost"}
        self.late.append((self.queues[w], some))  # as if the reply had been lost: it will be sent again

    def crash(self, w: int) -> None:
        """The leases of worker `w` run out, but it does not know, and finishes later."""
        self.queues[w].release()
        self.late.append((self.queues[w], self.leased[w]))
        self.leased[w] = []
        self.queues[w] = self.queue(f"{self.queues[w].name}+")

    def settle(self) -> dict[bytes, dict[bytes, bytes]]:
        for queue, outcomes in self.late:
            assert set(queue.finish(outcomes)) <= {b"lost"}
        for w in range(3):
            self.crash(w)
        while self.lease(0):
            self.finish(0, 0, 1000)
        assert self.client.xlen(KEYS.shadow) == 0
        return {key: self.client.hgetall(key) for key in self.client.keys(KEYS.drift_minute_prefix + "*")}

    def exemplars(self) -> list[Exemplar]:
        hours = {int(time.time()) // 3600 - back for back in (0, 1)}
        return Exemplars(self.client, KEYS).read(min(hours), max(hours))


def kept(events: list[tuple[str, int]]) -> list[Exemplar]:
    """Exemplars of all pairs, straight from the halves: there are fewer than are kept of an hour."""
    rig = Rig(64)
    rig.append(events)
    entries = rig.queues[0].lease()
    batch = rig.handler.assemble(entries, rig.settings, 0.0, 0.0)
    truths = {o.sample_key: o.half for o in batch.refused if hasattr(o, "half")}
    found = []
    for outcome in rig.handler.handle(batch) if len(batch) else []:
        key = outcome.sample_key
        if key in truths:
            found += of_pair(key, key_hash(key), outcome.half, truths[key])  # type: ignore[attr-defined]
    return sorted(found, key=lambda one: (one.cosine, one.key, one.kind))


def expected(events: list[tuple[str, int]]) -> dict[bytes, dict[bytes, bytes]]:
    """The sums, from the events alone, without queue, script or waiting."""
    minutes: dict[int, Counter[str]] = {}
    rig = Rig(64)
    rig.append(events)
    entries = rig.queues[0].lease()
    batch = rig.handler.assemble(entries, rig.settings, 0.0, 0.0)
    truths = {o.sample_key: o.half for o in batch.refused if hasattr(o, "half")}
    for outcome in rig.handler.handle(batch) if len(batch) else []:
        half: Half = outcome.half  # type: ignore[attr-defined]
        sums = minutes.setdefault(half.minute, Counter())
        sums.update(dict(outcome.pairs))  # type: ignore[attr-defined]
        if outcome.sample_key in truths:
            sums.update(dict(increments(half, truths[outcome.sample_key])))
    return {
        f"{KEYS.drift_minute_prefix}{minute}".encode(): {f.encode(): str(n).encode() for f, n in sums.items()}
        for minute, sums in minutes.items()
    }


@st.composite
def events(draw: st.DrawFn) -> list[tuple[str, int]]:
    """At most one prediction a key; truths never, once or more often; in any order."""
    found = [("prediction", k) for k in range(6) if draw(st.booleans())]
    for k in range(6):
        found += [("truth", k)] * draw(st.integers(0, 3))
    return draw(st.permutations(found))


STEP = st.one_of(
    st.tuples(st.just("lease"), st.integers(0, 2)),
    st.tuples(st.just("finish"), st.integers(0, 2), st.integers(0, 7), st.integers(1, 5)),
    st.tuples(st.just("crash"), st.integers(0, 2)),
)


@settings(max_examples=60, deadline=None)
@given(events=events(), steps=st.lists(STEP, max_size=25), batch_max=st.integers(1, 8))
def test_any_order_redelivery_and_restart_gives_the_same_integers(
    events: list[tuple[str, int]], steps: list[tuple[object, ...]], batch_max: int
) -> None:
    rig = Rig(batch_max)
    rig.append(events)
    for name, *arguments in steps:
        getattr(rig, str(name))(*arguments)
    sums = expected(events)
    assert rig.settle() == sums
    assert rig.exemplars() == kept(events)
    pairs = {k for kind, k in events if kind == "prediction"} & {k for kind, k in events if kind == "truth"}
    fields = [(field, n) for minute in sums.values() for field, n in minute.items()]
    assert sum(int(n) for field, n in fields if field.endswith(b"|true|n")) == len(pairs)
