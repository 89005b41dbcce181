"""Assembling a batch: what cannot be served ends alone, the others are not touched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from amn.policy import load_policy
from producer.messages import Reply, Request, Timings
from producer.protocol import wire
from producer.protocol.replies import AnswerEncoder
from producer.transport.clock import ServerClock
from workers.engine.entry import Entry
from workers.engine.loop import Loop
from workers.engine.microbatch import assemble
from workers.handlers.amn import AmnHandler, Gate
from workers.settings import FALLBACK_MS_MIN, QueueSettings, WorkerSettings

NOW_MS = 1_800_000_000_000.0
SETTINGS = WorkerSettings(kind="amn", queue=QueueSettings(batch_max=8, deliveries_max=3))


def request(**changes) -> Request:
    rows = np.random.default_rng(7).normal(size=(5, 768)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return replace(Request(id="r", reply_to="client", context=rows, submitted_at_ms=NOW_MS), **changes)


def entry(number: int, payload: bytes, deliveries: int = 1) -> Entry:
    return Entry(b"%d-0" % number, {b"request": payload}, deliveries)


def good(number: int, **changes) -> Entry:
    return entry(number, wire.encode_request(request(id=f"r{number}", **changes)))


def spoilt(value: float) -> np.ndarray:
    context = request().context.copy()
    context[2, 5] = value
    return context


@pytest.mark.parametrize(
    ("bad", "op", "code"),
    [
        (entry(2, b"\xc1 not msgpack"), "dead", "undecodable"),
        (entry(2, wire.encode_request(request())[:200]), "reply", "undecodable"),
        (entry(2, b"\x81\xa7version\x63"), "dead", "unsupported_version"),
        (entry(2, wire.encode_request(request()), deliveries=4), "dead", "worker_died"),
        (good(2, context=spoilt(np.nan)), "reply", "not_finite"),
        (good(2, context=spoilt(np.inf)), "reply", "not_finite"),
        (good(2, context=spoilt(3.0)), "reply", "bad_norm"),
        (good(2, context=np.zeros((5, 768), np.float32)), "reply", "bad_norm"),
        (good(2, lane="gossip"), "reply", "unknown_lane"),
        (good(2, encoder="another/mean/l2"), "reply", "unknown_encoder"),
        (good(2, expires_at_ms=NOW_MS - 1), "reply", "deadline_exceeded"),
    ],
)
def test_one_bad_entry_ends_alone_by_its_name(bad, op, code):
    batch = assemble([good(1), bad, good(3)], SETTINGS, NOW_MS, 0.0)
    assert [r.id for r in batch.requests] == ["r1", "r3"]
    assert batch.contexts.shape == (2, 5, 768)
    np.testing.assert_array_equal(batch.contexts[1], request().context)
    [outcome] = batch.refused
    assert outcome.entry is bad
    assert outcome.op == op
    assert code in outcome.counters
    if op == "reply":
        assert wire.decode_reply(outcome.payload).code == code
    else:
        assert outcome.reason == code


def test_float16_contexts_are_widened_into_the_buffer():
    half = request().context.astype(np.float16)
    batch = assemble([good(1, context=half)], SETTINGS, NOW_MS, 0.0)
    assert batch.contexts.dtype == np.float32
    np.testing.assert_array_equal(batch.contexts[0], half.astype(np.float32))


@pytest.mark.parametrize("shape", [(5, 768), (3, 5, 768)])
def test_a_lone_float32_message_is_not_copied(shape):
    context = np.ascontiguousarray(np.broadcast_to(request().context, shape))
    batch = assemble([good(1, context=context)], SETTINGS, NOW_MS, 0.0)
    assert np.shares_memory(batch.contexts, batch.requests[0].context)
    assert not batch.contexts.flags.writeable
    np.testing.assert_array_equal(batch.contexts, context.reshape(-1, 5, 768))


class Poisoned:
    """A handler that cannot take one of the requests."""

    def __init__(self, culprit: str) -> None:
        self.culprit = culprit
        self.sizes: list[int] = []

    def handle(self, batch):
        self.sizes.append(len(batch))
        if any(r.id == self.culprit for r in batch.requests):
            raise RuntimeError("this request breaks the model")
        return [r.id for r in batch.requests]


class NoQueue:
    settings = SETTINGS
    name = "nobody"
    low = False
    clock = ServerClock()


def test_a_batch_that_breaks_is_halved_until_the_culprit_is_alone():
    handler = Poisoned("r6")
    entries = [good(n) for n in range(1, 9)]
    *answered, dead = sorted(
        Loop(NoQueue(), handler)._outcomes(entries), key=lambda o: not isinstance(o, str)
    )
    assert answered == ["r1", "r2", "r3", "r4", "r5", "r7", "r8"]
    assert (dead.op, dead.reason) == ("dead", "batch_breaking")
    assert handler.sizes == [8, 4, 4, 2, 1, 1, 2]


class Bank:
    """Finds everything near, and nothing else as near."""

    bank_id = "bank@000000000000"

    def top2(self, vectors):
        ones = np.ones(len(vectors), np.float32)
        return 0.9 * ones, 0.5 * ones, np.zeros(len(vectors), np.intp)


class Unsound:
    """A model whose second answer is no unit vector."""

    name = "amn"
    model_id = "amn@000000000000"

    bank = Bank()

    def forward(self, contexts):

        rows = contexts[:, -1].copy()
        rows[1] *= np.nan
        return rows


def test_an_answer_that_is_no_unit_vector_is_a_failure_and_not_an_answer():
    handler = AmnHandler(Unsound(), Gate(policy=load_policy("card")), SETTINGS)
    outcomes = handler.handle(assemble([good(1), good(2), good(3)], SETTINGS, NOW_MS, 0.0))
    messages = [wire.decode_reply(outcome.payload) for outcome in outcomes]
    assert [type(m) is Reply for m in messages] == [True, False, True]
    assert messages[1].code == "inference_failed"


def test_an_escalation_that_cannot_make_its_deadline_is_not_sent():
    handler = AmnHandler(Unsound(), Gate(policy=load_policy("card")), SETTINGS)
    late = good(1, lane="sci-fact", expires_at_ms=NOW_MS + FALLBACK_MS_MIN - 1)
    calm = good(2)
    early = good(3, lane="sci-fact", expires_at_ms=NOW_MS + FALLBACK_MS_MIN + 1)
    outcomes = handler.handle(assemble([late, calm, early], SETTINGS, NOW_MS, 0.0))
    assert [outcome.op for outcome in outcomes] == ["reply", "reply", "escalate"]
    assert wire.decode_reply(outcomes[0].payload).shed == "deadline"


def test_the_answer_encoder_says_what_encode_reply_says():
    shared = Reply(
        id="", vector=np.zeros(768, np.float32), confidence=0, margin=0, model="m@1", bank="b@1", policy="p@1"
    )
    timings = {"queue_ms": 1.5, "batch_ms": 0.25, "compute_ms": 2.0, "batch_size": 7}
    vector = request().context[0]
    payload = AnswerEncoder(shared).encode(
        "r9", vector, (0.75, 0.01), (("thin_margin",), "budget", False), timings
    )
    expected = replace(
        shared,
        id="r9",
        vector=vector,
        confidence=0.75,
        margin=0.01,
        reasons=("thin_margin",),
        shed="budget",
        timings=Timings(**timings),
    )
    found = wire.decode_reply(payload)
    np.testing.assert_array_equal(found.vector, vector)
    assert replace(found, vector=vector) == replace(expected, vector=vector)
    assert wire.decode_reply(wire.encode_reply(expected)).timings == found.timings
