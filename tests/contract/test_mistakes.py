"""A client in another language that makes a mistake is told which, where its message says who it is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import pytest
from numpy.typing import NDArray
from rig import KEYS, Rig

from producer.errors import UnsupportedVersion
from producer.messages import Failure, Reply
from producer.protocol import wire
from producer.protocol.peek import sender
from producer.transport.connection import script_text
from workers.engine.entry import Outcome
from workers.engine.microbatch import assemble
from workers.engine.outcomes import unreadable


@pytest.fixture
def rig(server: Any, contexts: Callable[..., NDArray[Any]]) -> Iterator[Rig]:
    rig = Rig(server, contexts(8))
    yield rig
    rig.close()


def good(rig: Rig) -> dict[str, Any]:
    return {
        "version": 1,
        "id": "r",
        "reply_to": "client",
        "dtype": "f4",
        "shape": [5, 768],
        "context": rig.contexts[0].tobytes(),
        "encoder": "all-mpnet-base-v2/mean/l2",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }


def sent(rig: Rig, payload: bytes, request_id: str = "r") -> None:
    """Sends as docs/wire.md has it: the server looks at no message, and says 1."""
    limits = 100000, 2147483648, 60000, KEYS.seen_prefix, "client"
    keys = *KEYS.levels, *KEYS.counters[:3], KEYS.stats
    script = script_text("producer", "submit")
    assert rig.admin.eval(script, len(keys), *keys, *limits, request_id, 2, "-", payload) == [1]


def ended(rig: Rig) -> list[Reply | Failure]:
    """Has a worker read what waits, and refuse it; what the client reads then."""
    queue = rig.queue("w")
    batch = assemble(queue.lease(), queue.settings, 0.0, 0.0)
    assert len(batch) == 0
    assert set(queue.finish(batch.refused)) == {b"ok"}
    return rig.replies()


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "numbers for bytes": ({"context": [0.5] * 3840}, "'context' takes 34563 bytes.*send arrays as bin"),
    "rows for bytes": ({"context": [[0.5] * 768] * 5}, "'context' takes 34576 bytes.*send arrays as bin"),
    "a text for bytes": ({"context": "x" * 15360}, "'context' is of type text, expected bin"),
    "nil": ({"lane": None}, "'lane' is of type nil, expected text"),
    "undefined": ({"lane": msgpack.ExtType(0, b"\0")}, "'lane' is an extension type"),
    "a time": ({"expires_at_ms": msgpack.Timestamp(1)}, "'expires_at_ms' is an extension type"),
    "a broken number": ({"tokens": 1.5}, "'tokens' is of type float, expected integer"),
    "a boolean": ({"expires_at_ms": True}, "'expires_at_ms' is of type boolean, expected float"),
    "a bin as a text": ({"encoder": b"all"}, "'encoder' is of type bin, expected text"),
    "a number for a list": ({"shape": 5}, "'shape' is of type integer, expected list"),
    "a row too few": ({"context": b"\0" * 4 * 768 * 4}, "'context'.* 12288 bytes"),
    "another dtype": ({"dtype": "f8"}, "'dtype'.*'f8'"),
    "another shape": ({"shape": [768, 5]}, "'shape'.*768, 5"),
    "a batch of none": ({"shape": [0, 5, 768]}, "'shape'.*0, 5, 768"),
    "a batch that is short": ({"shape": [2, 5, 768]}, "'context'.* 15360 bytes"),
    "seconds and nanoseconds": ({"submitted_at_ms": 1.7e18}, "'submitted_at_ms' is 1.7e\\+18"),
    "a long text": ({"sequence": "x" * 513}, "'sequence' has 513 characters, the limit is 512"),
    "a number for a level": ({"level": 1}, "'level' is of type integer, expected text"),
    "rows that are nil": ({"ends": None}, "'ends' is of type nil, expected bin"),
    "a list of rows": ({"ends": [4]}, "'ends' is of type list, expected bin"),
    "a name of another kind": ({"id": "a request"}, "'id' is 'a request'"),
    "too many names": ({f"x{i}": 0 for i in range(70)}, "max_map_len"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_who_makes_a_mistake_is_told_the_field_and_the_reason(what: str, rig: Rig) -> None:
    changes, reason = MISTAKES[what]
    message = good(rig) | changes
    sent(rig, msgpack.packb(message), message["id"])
    [told] = ended(rig)
    assert isinstance(told, Failure)
    assert (told.id, told.code, told.retryable) == (message["id"], "undecodable", False)
    assert told.traceparent == message["traceparent"]
    assert rig.stats() == {"accepted:normal": 1, "failed": 1, "failed:undecodable": 1}
    assert rig.admin.xlen(KEYS.dead) == rig.admin.xlen(KEYS.requests) == 0
    assert re.search(reason, told.message), told.message


@pytest.mark.parametrize("field", ["dtype", "shape", "context", "encoder", "version"])
def test_a_field_that_is_missing_is_named(field: str, rig: Rig) -> None:
    message = good(rig)
    del message[field]
    sent(rig, msgpack.packb(message))
    [told] = ended(rig)
    assert isinstance(told, Failure)
    assert f"field '{field}' is missing" in told.message
    assert told.code == ("unsupported_version" if field == "version" else "undecodable")


def test_a_message_that_is_cut_short_names_the_field_where_it_ends(rig: Rig) -> None:
    sent(rig, msgpack.packb(good(rig))[:9000])
    [told] = ended(rig)
    assert isinstance(told, Failure)
    assert told.message.startswith("field 'context' is not msgpack")


def test_an_id_that_is_no_text_is_answered_by_the_id_beside_the_message(rig: Rig) -> None:
    sent(rig, msgpack.packb(good(rig) | {"id": 17}), "17")
    [told] = ended(rig)
    assert isinstance(told, Failure)
    assert (told.id, told.message) == ("17", "field 'id' is of type integer, expected text")


@pytest.mark.parametrize(
    "changes",
    [{"reply_to": "a:b"}, {"reply_to": "x" * 65}, {"reply_to": 7}, {"reply_to": None}, {"reply_to": ""}],
    ids=str,
)
def test_who_does_not_say_who_it_is_cannot_be_told_and_leaves_a_dead_letter(changes: Any, rig: Rig) -> None:
    sent(rig, msgpack.packb(good(rig) | changes))
    assert ended(rig) == []
    [(_, letter)] = rig.admin.xrange(KEYS.dead)
    assert (letter[b"reason"], letter[b"told"]) == (b"undecodable", b"0")
    assert b"'reply_to'" in letter[b"message"]
    assert not list(rig.admin.scan_iter(KEYS.replies_prefix + "*"))


def test_one_mistake_among_others_harms_none_of_them(rig: Rig) -> None:
    for name, changes in {"a": {}, "b": {"tokens": 1.5}, "c": {"deadline": 5, "unheard_of": None}}.items():
        sent(rig, msgpack.packb(good(rig) | {"id": name} | changes), name)
    queue = rig.queue("w")
    batch = assemble(queue.lease(), queue.settings, 0.0, 0.0)
    assert [request.id for request in batch.requests] == ["a", "c"]  # unknown fields are ignored
    assert [outcome.reply_to for outcome in batch.refused] == ["client"]


def test_an_escalated_request_that_a_fallback_cannot_read_has_its_amn_answer(rig: Rig) -> None:
    rig.put("r")
    amn, fallback = rig.queue("amn"), rig.queue("fallback", KEYS.fallback)
    [entry] = amn.lease()
    fast = Reply(id="r", vector=rig.contexts[0][0], confidence=0.5, margin=0.1, provisional=True)
    escalated = Outcome(entry=entry, op="escalate", reply_to="client", payload=wire.encode_reply(fast))
    assert amn.finish([escalated]) == [b"ok"]
    [moved] = fallback.lease()
    assert fallback.finish([unreadable(moved, UnsupportedVersion("of a later version"))]) == [b"ok"]
    [answer] = rig.replies()
    assert isinstance(answer, Reply)
    assert (answer.degraded, answer.provisional) == ("fallback_failed", False)


def test_a_large_hostile_message_is_looked_at_in_little_time_and_memory() -> None:
    names = b"".join(msgpack.packb(f"x{i}") + b"\xc0" for i in range(60))
    hostile = b"\xde\x00\x40" + names + msgpack.packb("deep") + b"\x91" * 4_000_000
    started_s = time.perf_counter()
    assert sender(hostile) is None
    with pytest.raises(wire.Undecodable, match="'deep'"):
        wire.decode_request(hostile, batches=True)
    assert time.perf_counter() - started_s < 1
