"""The dead letter stream: read, put back, thrown away.

A request has one final answer, also when its dead letter is put back. Each letter says whether its
client was told (`told`):

- It was (`dead_lettered`, or the AMN answer in place of a failed fallback): that stays its answer.
  The letter goes back under a new id, `replay:<letter id>`, without its deadline, and is answered
  to whoever replays it.
- It was not, since no worker could read who it was: the same bytes go back, and the client gets its
  first answer, within its own deadline. This takes a version that can read them.

Either way it begins anew, on the stream of its level, with the model and policy of today.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import redis

from producer.errors import WireError
from producer.keys import REPLY, Keys
from producer.messages import PRIORITIES, Answer, Failure, Request
from producer.protocol import wire
from producer.settings import ProducerSettings
from producer.transport.clock import time_ms
from producer.transport.connection import script_text

_ID = re.compile(r"\d{1,20}(-\d{1,20})?", re.ASCII)
#: Letters read, put back or deleted in one round trip: a few megabytes at most.
_PAGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter without what it carries.

    Attributes:
        id: Its first part is the server's time of death, epoch ms.
        reason: Code.    message: The worker's explanation.
        source: Key of the stream that it came from.    entry: Its id there.
        sha1: Hash of the payload, hexadecimal.
        told: True if its client got a final answer. An earlier version did not say, and nobody may get a
            second one.
    """

    id: str
    reason: str
    message: str
    source: str
    entry: str
    sha1: str
    deliveries: int
    told: bool

    @property
    def died_at_ms(self) -> int:
        """The server's clock when it was dead-lettered, epoch ms."""
        return int(self.id.partition("-")[0])


def named(name: bytes, stored: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The attributes of a letter, from its id and its fields as they are stored."""
    fields = ("reason", "message", "source", "entry", "sha1", "deliveries", "told")
    found = {one: stored.get(one.encode(), b"").decode("utf-8", "replace") for one in fields}
    counted = re.fullmatch(r"\d{1,9}", found["deliveries"], re.ASCII)
    return {
        **found,
        "id": name.decode(),
        "reason": found["reason"] or "?",
        "deliveries": int(found["deliveries"]) if counted else 0,
        "told": found["told"] != "0",
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter(Letter):
    """One entry of the stream.

    Attributes:
        payload: The request as it came.
        request: Decoded; None when this version cannot read it.
        unreadable: Why it cannot.
    """

    payload: bytes
    request: Request | None
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class Requeued:
    """The end of one letter that was to be put back: "ok", "gone", "full", "refused" or "unreadable".

    Attributes:
        awaited: Id under which the answer comes to the one who asked; "" when it goes elsewhere.
    """

    letter: DeadLetter
    status: str
    awaited: str = ""


class DeadLetters:
    """The dead letter stream of one queue."""

    def __init__(self, client: redis.Redis, settings: ProducerSettings) -> None:
        self._client = client
        self._settings = settings
        self._keys = Keys(settings.queue)
        self._requeue = client.register_script(script_text("ops", "requeue"))

    def __len__(self) -> int:
        return self._client.xlen(self._keys.dead)

    def newest_first(self, reason: str = "") -> Iterator[DeadLetter]:
        """All letters, or those with one reason, in pages."""
        end = "+"
        while rows := cast("list[Any]", self._client.xrevrange(self._keys.dead, max=end, count=_PAGE)):
            for letter in itertools.starmap(_letter, rows):
                end = f"({letter.id}"
                if not reason or letter.reason == reason:
                    yield letter

    def get(self, letter_id: str) -> DeadLetter | None:
        """One letter, or None when there is none with this id."""
        if not _ID.fullmatch(letter_id) or max(map(int, letter_id.split("-"))) >= 2**64:
            return None
        rows = cast("list[Any]", self._client.xrange(self._keys.dead, letter_id, letter_id))
        return _letter(*rows[0]) if rows else None

    def requeue(self, letters: Iterable[DeadLetter], client_id: str) -> list[Requeued]:
        """Puts letters back; answers that nobody else may get go to `client_id`."""
        done: list[Requeued] = []
        now_ms, rest = time_ms(self._client.time()), iter(letters)
        while page := list(itertools.islice(rest, _PAGE)):
            done += [Requeued(letter, "unreadable") for letter in page if letter.request is None]
            done += self._put_back(
                [(one, *_again(one, one.request, client_id, now_ms)) for one in page if one.request]
            )
        return done

    def answers(self, client_id: str, awaited: set[str], timeout_s: float) -> dict[str, Answer | Failure]:
        """Final answers to what was put back, as many as came within the time; forgets the stream."""
        stream, last = self._keys.replies(client_id), b"0-0"
        found: dict[str, Answer | Failure] = {}
        give_up_at_s = time.monotonic() + timeout_s
        while awaited - found.keys() and (left_ms := int((give_up_at_s - time.monotonic()) * 1000)) > 0:
            read = cast(Any, self._client.xread({stream: last}, count=_PAGE, block=min(left_ms, 1_000)))
            for name, fields in read[0][1] if read else ():
                last = name
                reply = wire.decode_reply(fields[REPLY])
                if isinstance(reply, Failure) or not reply.provisional:
                    found[reply.id] = reply
        self._client.delete(stream)
        return found

    def purge(self, ids: Sequence[str]) -> int:
        """Deletes letters; returns how many were still there."""
        pages = (ids[first : first + _PAGE] for first in range(0, len(ids), _PAGE))
        return sum(cast("list[int]", [self._client.xdel(self._keys.dead, *page) for page in pages]))

    def _put_back(self, waiting: list[tuple[DeadLetter, Request, bytes]]) -> list[Requeued]:
        keys = self._keys
        arguments: list[Any] = [self._settings.entries_max, self._settings.bytes_max]
        for letter, request, payload in waiting:
            arguments += (letter.id, _level(request), request.id, payload)
        names = [keys.dead, *keys.levels, *keys.counters[:3], keys.stats]
        statuses = cast("list[bytes]", self._requeue(keys=names, args=arguments))
        return [
            Requeued(letter, status.decode(), request.id if letter.told and status == b"ok" else "")
            for (letter, request, _), status in zip(waiting, statuses, strict=True)
        ]


def _level(request: Request) -> int:
    known = request.priority in PRIORITIES
    return PRIORITIES.index(request.priority if known else "normal") + 1


def _again(letter: DeadLetter, request: Request, client_id: str, now_ms: float) -> tuple[Request, bytes]:
    """The request that goes back, and its bytes."""
    if not letter.told:
        return request, letter.payload
    fresh = replace(
        request,
        id=f"replay:{letter.id}",
        reply_to=client_id,
        submitted_at_ms=now_ms,
        expires_at_ms=0.0,
        provisional=False,
    )
    return fresh, wire.encode_request(fresh)


def _letter(name: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    payload, request, unreadable = fields.pop(b"request", b""), None, ""
    try:
        request = wire.decode_request(payload, batches=True)
    except WireError as error:
        unreadable = str(error)
    return DeadLetter(**named(name, fields), payload=payload, request=request, unreadable=unreadable)


def described(letter: DeadLetter, now_ms: int) -> dict[str, Any]:
    """Plain values of a letter: its fields, and its request with the form of the context, not the numbers."""
    kept = ("reason", "message", "deliveries", "source", "entry", "sha1", "told")
    return {
        "id": letter.id,
        "age_s": round((now_ms - letter.died_at_ms) / 1000, 1),
        **{name: getattr(letter, name) for name in kept},
        "bytes": len(letter.payload),
        "request": _request(letter) or f"unreadable: {letter.unreadable}",
    }


def _request(letter: DeadLetter) -> dict[str, Any] | None:
    request = letter.request
    if request is None:
        return None
    found = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    context = request.context.astype(np.float64)
    return found | {
        "context": f"{request.context.dtype} {request.context.shape}",
        "context_finite": bool(np.isfinite(context).all()),
        "context_norms": np.linalg.norm(context, axis=-1).round(4).tolist(),  # five for each context
    }
