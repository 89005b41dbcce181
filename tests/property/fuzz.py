"""python tests/property/fuzz.py [COUNT]: damaged messages for the decoder, odd calls for the producer.

Seeded, so that a failure comes again: the tests run 10,000 of each, this command a million.
A damaged message is read, or refused with a typed error; an odd call gives a sound request, or a typed
error that names the field. Everything else stops the run with its traceback.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack
import numpy as np

from producer.errors import QueueError, WireError
from producer.keys import valid_client
from producer.messages import PRIORITIES, BatchReply, Failure, Reply, Request
from producer.options import Options
from producer.protocol import wire
from producer.protocol.peek import sender
from producer.session.requests import prepare
from producer.settings import ProducerSettings

SEED = 20261124
CONTEXT = np.eye(5, 768, dtype=np.float32)
_REQUEST = Request(id="a", reply_to="c", context=np.zeros((5, 768), np.float32), priority="high")
_REPLY = Reply(id="a", vector=np.zeros(768, np.float32), confidence=0.5, margin=0.1)
_BATCH = Request(id="a", reply_to="c", context=np.zeros((2, 5, 768), np.float32))
_BATCH_REPLY = BatchReply(
    id="a",
    vectors=np.zeros((2, 768), np.float32),
    **dict.fromkeys(("confidences", "margins", "gains"), np.ones(2, np.float32)),
    **dict.fromkeys(("fired", "shed"), np.ones(2, np.uint8)),
    rules=("a rule",),
    sheds=("a reason",),
    tiers={"a model": np.ones((2, 2), np.float32)},
)
FULL_REQUEST = msgpack.unpackb(wire.encode_request(_REQUEST))
FULL_REPLY = msgpack.unpackb(wire.encode_reply(_REPLY))
FULL_BATCH = msgpack.unpackb(wire.encode_request(_BATCH))
FULL_WINDOWS = FULL_BATCH | {"context": bytes(4 * 768 * 6), "ends": b"\x04\x00\x05\x00"}
FULL_BATCH_REPLY = msgpack.unpackb(wire.encode_reply(_BATCH_REPLY))
decode_batch = partial(wire.decode_request, batches=True)
CODES = {"invalid_request", "unknown_lane", "deadline_exceeded", "bad_shape", "bad_norm", "not_finite"}


def read(decode: Callable[[bytes], Any], data: bytes) -> object:
    """A message, or None for a typed error; anything else is a bug and passes through."""
    try:
        return decode(data)
    except WireError as error:
        if error.code not in {"undecodable", "unsupported_version"}:
            raise AssertionError(error.code) from error
        return None


def damaged(source: random.Random, data: bytes) -> bytes:
    """The message with one to four changes, most of them in its fields and not in its vector."""
    changed = bytearray(data)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(changed)) if source.random() < 0.3 else source.randrange(400)
        what = source.randrange(5)
        if what == 0:
            changed[place % len(changed)] = source.randrange(256)
        elif what == 1:
            del changed[place % len(changed) :]
        elif what == 2:
            changed[place:place] = source.randbytes(source.randint(1, 9))
        elif what == 3:
            del changed[place : place + source.randint(1, 9)]
        else:
            changed[-(place % len(changed)) :] = source.randbytes(source.randint(0, 30))
        if not changed:
            break
    return bytes(changed)


def decoder(count: int, seed: int = SEED) -> int:
    """Decodes `count` damaged messages; returns how many were read all the same."""
    source = random.Random(seed)
    kinds: list[tuple[Callable[[bytes], Any], bytes]] = [
        (wire.decode_request, msgpack.packb(FULL_REQUEST)),
        (wire.decode_reply, msgpack.packb(FULL_REPLY)),
        (decode_batch, msgpack.packb(FULL_BATCH)),
        (decode_batch, msgpack.packb(FULL_WINDOWS)),
        (wire.decode_reply, msgpack.packb(FULL_BATCH_REPLY)),
    ]
    passed = 0
    for turn in range(count):
        decode, data = kinds[turn % len(kinds)]
        broken = damaged(source, data)
        taken = read(decode, broken) is not None
        passed += taken
        # Whoever sent it is told, under an id that a reply can carry, or is not found.
        if not taken and (sent_by := sender(broken, b"\xff")) is not None:
            told = Failure(id=sent_by.id, code="undecodable", message="", traceparent=sent_by.traceparent)
            assert wire.decode_reply(wire.encode_failure(told)) == told
            assert valid_client(sent_by.reply_to)
    return passed


def odd(source: random.Random) -> Any:
    """A value that some caller may hand in."""
    numbers = [0, -1, 1, 2**31, 2**70, 0.5, -0.0, float("nan"), float("inf"), 1e300, 1j]
    texts = ["", "general", "narrative", "x" * 600, "\ud800", "a b", "id:1", *PRIORITIES]
    arrays = [np.float32(1), np.int64(3), np.bool_(True), np.array([1, 2]), np.str_("general")]
    likely = [source.random() * 1e6, source.randint(0, 5000), source.random() < 0.5]
    choices: list[Any] = [*numbers, *texts, *arrays, *likely, None, b"bytes", [], {}, object()]
    return source.choice(choices)


def calls(count: int, seed: int = SEED) -> int:
    """Prepares `count` requests from odd options and contexts; returns how many were sound."""
    source, settings, passed = random.Random(seed), ProducerSettings(), 0
    names = sorted(Options.__slots__)
    for _ in range(count):
        fields = {name: odd(source) for name in source.sample(names, source.randint(0, 3))}
        context = CONTEXT if source.random() < 0.9 else odd(source)
        try:
            outgoing = prepare(context, Options(**fields), "client", settings)
        except QueueError as error:
            if error.code not in CODES or len(str(error)) > 400:
                raise AssertionError(f"{error.code}: {error}") from error
            continue
        request = wire.decode_request(outgoing.payload)
        for name in set(fields) - {"deadline_ms", "normalize", "request_id"}:
            assert getattr(request, name) == fields[name], name
        passed += 1
    return passed


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    for run in (decoder, calls):
        started_s = time.perf_counter()
        passed = run(count)
        took_s = time.perf_counter() - started_s
        print(
            f"{run.__name__}: {count:,} inputs, {passed:,} read, the others refused by type; {took_s:.0f} s"
        )


if __name__ == "__main__":
    main()
