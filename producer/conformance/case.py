"""All that a point of the examination works with: the program, and a queue on which we play the worker."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from producer.conformance.program import Failed, LeftOut, Program, Way, expect
from producer.errors import InvalidSettings, WireError
from producer.keys import REPLY, REQUEST, Keys
from producer.messages import BATCH_BYTES_MAX, Answer, Failure, Reply, Request, Timings
from producer.protocol.maps import pack, unpack
from producer.protocol.tables import tables
from producer.protocol.wire import decode_reply, decode_request, encode_failure, encode_reply
from producer.settings import ProducerSettings
from producer.transport.connection import connect

#: For an answer that is there already, and for what should come soon.
SOON_MS, WAIT_S = 5_000, 10.0
#: An answer of a fallback, with every field.
_FULL = Reply(
    id="",
    vector=np.empty(0, np.float32),
    confidence=0.8125,
    margin=0.03125,
    reasons=("long_context", "low_confidence"),
    served_by="stacked",
    shed="budget",
    degraded="fallback_failed",
    model="stacked@0123456789ab",
    bank="bank@0123456789ab",
    policy="calibrated@01234567",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    gain=0.125,
    tiers={"amn@0123456789ab": (0.5, 0.75), "stacked@0123456789ab": (0.625, 0.25)},
    timings=Timings(queue_ms=0.25, batch_ms=0.125, compute_ms=1.5, batch_size=12),
)


class Taken(NamedTuple):
    """A leased request: its stream by the number of its level, its entry there, and the message."""

    level: int
    entry: bytes
    size_bytes: int
    request: Request


class Case:
    """One run over one client program.

    Args:
        settings: Server and live queue, as an operator.
        client_url: The server for the program.
        queue: Name of our own queue.

    Raises:
        InvalidSettings: There is something in the queue.

    Attributes:
        live: Name of the queue whose workers answer.
        way: The way from the program to the server.
        client: A connection of the operator.    keys: Those of our own queue.
    """

    def __init__(self, words: Sequence[str], settings: ProducerSettings, client_url: str, queue: str) -> None:
        self._words, self.live, self.keys = words, settings.queue, Keys(queue)
        self.client: Any = connect(settings, block_ms=100)
        if self._left():
            raise InvalidSettings(f"queue {queue!r} is in use, and would be emptied; name one that is not")
        self.way = Way(client_url)
        self._opening = {"url": self.way.url, "queue": queue, "client": settings.client}
        self._rng = np.random.default_rng(7)
        self._programs: list[Program] = []
        self._kept: Program | None = None

    @property
    def program(self) -> Program:
        """The program, opened on our queue; the same process in each point, unless one failed."""
        if self._kept is None:
            self._kept = self.opened()
        return self._kept

    def opened(self, **fields: Any) -> Program:
        """One more process of it, until the end of this point."""
        self._programs.append(program := Program(self._words))
        program.done("open", **self._opening | fields)
        return program

    def leave(self) -> int:
        """Closes the kept program; its exit code."""
        code, self._kept = self.program.close(), None
        return code

    def end(self, *, failed: bool) -> None:
        """Ends a point: its processes, but for the kept one where it did not fail, and its requests."""
        self._kept = None if failed else self._kept
        for program in self._programs:
            if program is not self._kept:
                program.kill()
        self._programs = [self._kept] if self._kept else []
        self.way.heal()
        keys = self.keys
        self.client.delete(*keys.places, *keys.counters, keys.stats, keys.standing, keys.truths)

    def close(self) -> None:
        """Ends the examination: no process, and no key of our own queue, is left."""
        self.end(failed=True)
        if left := self._left():
            self.client.delete(*left)

    def _left(self) -> list[bytes]:
        return list(self.client.scan_iter(f"amn:{{{self.keys.queue}}}:*", count=1_000))

    def breakable(self) -> Way:
        """The way to the server, for a point that spoils it."""
        if not self.way.possible:
            raise LeftOut("the way to this server cannot be broken: it is encrypted, or has several servers")
        return self.way

    def has_workers(self) -> bool:
        """True if a worker that answers says that it lives, in the live queue."""
        found = self.client.scan_iter(Keys(self.live).workers_prefix + "*")
        return any(self.client.hget(key, "kind") == b"amn" for key in found)

    def contexts(self, count: int, dtype: str = "f4") -> Any:
        """Random contexts (count, 5, 768) of unit vectors."""
        rows = self._rng.normal(size=(count, 5, 768))
        return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(f"<{dtype}")

    def asked(self, context: Any = None, **fields: Any) -> dict[str, Any]:
        """A request of the commands: of this context, these contexts, or a random one."""
        context = self.contexts(1)[0] if context is None else context
        dtype = "f2" if context.dtype == np.float16 else "f4"
        form = {"dtype": dtype, "shape": list(context.shape), "context": text(context)}
        return {"id": f"r-{secrets.token_hex(8)}", **form, **fields}

    def submit(self, program: Program, *requests: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Has requests sent in one call; the result of each."""
        results = program.done("submit", requests=requests).get("results")
        expect(isinstance(results, list) and len(results) == len(requests), "submit: not a result for each")
        return list(results)

    def accepted(self, program: Program, *requests: Mapping[str, Any]) -> None:
        """Has requests sent that must get in."""
        results = self.submit(program, *requests)
        expect(all(one == {"ok": True} for one in results), f"submit gave {results}, and was to be ok")

    def waiting(self) -> int:
        """Entries that wait or are leased, of all levels."""
        return sum(int(self.client.xlen(stream)) for stream in self.keys.levels)

    def take(self, count: int = 1) -> list[Taken]:
        """Exactly so many requests that wait, in the order of the levels."""
        until(lambda: self.waiting() >= count)
        rows = [
            (level, *row) for level, key in enumerate(self.keys.levels) for row in self.client.xrange(key)
        ]
        expect(len(rows) == count, f"{len(rows)} requests came within {WAIT_S:.0f} s, not {count}")
        return [self._taken(*row) for row in rows]

    def _taken(self, level: int, entry: Any, fields: Any) -> Taken:
        payload = fields.get(REQUEST, b"")
        try:
            request = decode_request(payload, batches=True)
        except WireError as error:
            raise Failed(f"a worker would answer {error.code}: {error}") from None
        return Taken(level, entry, len(payload), request)

    def sent(self, **fields: Any) -> Taken:
        """One request of the kept program, which came into our queue."""
        self.accepted(self.program, self.asked(**fields))
        return self.take()[0]

    def put(self, taken: Taken, reply: Answer | Failure | bytes, *, final: bool = True) -> None:
        """Puts an answer on the reply stream of the request's client; a final one ends the request."""
        if not isinstance(reply, bytes):
            reply = encode_failure(reply) if isinstance(reply, Failure) else encode_reply(reply)
        self.client.xadd(self.keys.replies(taken.request.reply_to), {REPLY: reply})
        if final:
            self.client.xdel(self.keys.levels[taken.level], taken.entry)
            self.client.decrby(self.keys.counters[taken.level], taken.size_bytes)

    def replies(self, taken: Taken) -> int:
        """Entries in the reply stream of the request's client."""
        return int(self.client.xlen(self.keys.replies(taken.request.reply_to)))

    def result(self, taken: Taken, timeout_ms: int = SOON_MS) -> dict[str, Any]:
        """The answer of the kept program to a question for the result."""
        return self.program.ask("result", id=taken.request.id, timeout_ms=timeout_ms)

    def reply(self, taken: Taken, **fields: Any) -> Reply:
        """An answer to a request, with every field."""
        vector = self.contexts(1)[0, 0]
        return replace(_FULL, **{"id": taken.request.id, "vector": vector, **fields})

    def finish(self, taken: Taken, reply: Answer | None = None) -> None:
        """Ends a request of the kept program, which has to give this answer."""
        reply = reply or self.reply(taken)
        self.put(taken, reply)
        expect_reply(self.result(taken), reply)


def until(look: Callable[[], bool], wait_s: float = WAIT_S) -> bool:
    """Looks again and again, for a time; whether it was so in the end."""
    end_s = time.monotonic() + wait_s
    while not (found := look()) and time.monotonic() < end_s:
        time.sleep(0.005)
    return found


def text(array: Any) -> str:
    """The bytes of an array as base64."""
    return base64.b64encode(array.tobytes()).decode()


def expect_error(answer: Mapping[str, Any], code: str, retryable: bool) -> None:
    """The answer is this error."""
    error = answer.get("error", {})
    found, again = error.get("code", str(dict(answer))[:80]), error.get("retryable")
    expect(found == code, f"it told {found!r}, not {code!r}")
    expect(again is retryable, f"{code}: retryable is {again}, not {retryable}")


def expect_reply(answer: Mapping[str, Any], sent: Answer) -> None:
    """The answer is this reply, to the last bit of each field."""
    got, want = (unpack(encode_reply(one), BATCH_BYTES_MAX) for one in (read(answer), sent))
    other = [name for name in {**want, **got} if got.get(name) != want.get(name)]
    expect(not other, f"fields of the answer that are not as they were sent: {', '.join(other)}")


def read(answer: Mapping[str, Any]) -> Any:
    """The `Reply`, or `BatchReply`, in an answer, whose bytes are base64."""
    expect("reply" in answer, f"a reply was to come, and it answered {str(dict(answer))[:160]}")
    fields = {"version": 1, "status": "answered", **answer["reply"]}
    kind = "answered_batch" if "vectors" in fields else "answered"
    bins = [row["name"] for row in tables()["messages"][kind] if row["type"] == "bin"]
    try:
        fields |= {name: base64.b64decode(fields[name]) for name in bins if name in fields}
        if kind == "answered_batch":
            tiers = fields.get("tiers", {}).items()
            fields["tiers"] = {model: base64.b64decode(pairs) for model, pairs in tiers}
        return decode_reply(pack(fields))
    except Exception as error:
        raise Failed(f"its reply cannot be read: {type(error).__name__}: {error}") from None
