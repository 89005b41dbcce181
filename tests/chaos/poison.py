"""Messages that no client of ours would send, and what must become of each."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from producer.keys import Keys
from producer.messages import Reply, Request
from producer.protocol import wire
from producer.transport.connection import script_text
from workers.engine.outcomes import WORKER_DIED

from .books import Flushed

_DIRECT = (Path(__file__).parent / "poison.lua").read_text("utf-8")
CLIENT = "chaos-poison"
#: Where it goes, what it is, and how it must end: a dead letter's reason, or a failure's code.
RECIPES = (
    ("requests", "noise", "undecodable"),
    ("requests", "cut_off", "failed:undecodable"),
    ("requests", "version_99", "failed:unsupported_version"),
    ("requests", "empty", "undecodable"),
    ("requests", "nan", "failed:not_finite"),
    ("requests", "norm", "failed:bad_norm"),
    ("fallback", "no_answer", "undecodable"),
    ("fallback", "noise", "undecodable"),
    ("shadow", "noise", "undecodable"),
)


STREAMS = ("requests", "fallback", "shadow")


@dataclass(slots=True)
class Poison:
    """Puts poison in, through the same script as everybody, and looks for it at the end."""

    keys: Keys
    context: NDArray[np.float32]
    seen_window_ms: int
    sent: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # id -> stream, end, sha1
    _gone: Counter[str] = field(default_factory=Counter)  # sha1 of what a flush took while it waited
    _letters: dict[str, list[str]] = field(default_factory=dict)  # sha1 -> reasons
    _codes: dict[str, list[str]] = field(default_factory=dict)  # id -> how it ended
    _others: Counter[str] = field(default_factory=Counter)
    _waiting: list[tuple[str, str, bytes, str]] = field(default_factory=list)

    def make(self, number: int, choice: float) -> str:
        """Prepares one; `send` puts it in. Returns its recipe's name."""
        stream, name, end = RECIPES[int(choice * len(RECIPES))]
        request_id = f"poison-{number}"
        self._waiting.append((request_id, stream, self._payload(request_id, name), end))
        return f"{stream}:{name}"

    def make_deadly(self, word: str, number: int, choice: float) -> str:
        """The same, of one over which each worker dies or hangs, as the word says (tests/deadly.py)."""
        request_id, stream = f"poison-{number}-{word}", STREAMS[int(choice * len(STREAMS))]
        self._waiting.append((request_id, stream, self._payload(request_id, word), WORKER_DIED))
        return f"{stream}:{word}"

    def send(self, client: redis.Redis) -> None:
        """Sends what waits; it stays waiting when the server is away."""
        while self._waiting:
            request_id, stream, payload, end = self._waiting[0]
            if stream == "requests":
                keys = [*self.keys.levels, *self.keys.counters[:3], self.keys.stats]
                arguments: list[Any] = [10**9, 10**12, self.seen_window_ms, self.keys.seen_prefix, CLIENT]
                script = client.register_script(script_text("producer", "submit"))
                script(keys=keys, args=[*arguments, request_id, 2, "call", payload])
            elif stream == "fallback":
                keys = [self.keys.fallback, self.keys.fallback_bytes]
                keys += [self.keys.seen(request_id), self.keys.stats]
                client.eval(_DIRECT, len(keys), *keys, payload, b"\xc1", self.seen_window_ms)
            else:
                client.xadd(self.keys.shadow, {"kind": "prediction", "key": "k", "request": payload})
            sha1 = hashlib.sha1(payload, usedforsecurity=False).hexdigest()
            self.sent[request_id] = (stream, end, sha1)
            self._waiting.pop(0)

    @property
    def waiting(self) -> int:
        """Prepared and not sent."""
        return len(self._waiting)

    def _payload(self, request_id: str, name: str) -> bytes:
        context = self.context.copy()
        if name == "nan":
            context[2, 7] = np.nan
        if name == "norm":
            context[1] *= 3
        good = wire.encode_request(Request(id=request_id, reply_to=CLIENT, context=context))
        if name == "noise":
            return random.Random(request_id).randbytes(300)
        if name == "cut_off":
            return good[: len(good) - 1000]
        if name == "empty":
            return b""
        return good.replace(b"\xa7version\x01", b"\xa7version\x63") if name == "version_99" else good

    def flushed(self, taken: Flushed) -> None:
        """Notes what a flush took of ours: letters and answers as they were, waiting ones as gone."""
        self._gone.update(taken.payloads)
        self._note(taken.letters, taken.replies)

    def _note(self, letters: list[tuple[str, str]], replies: list[bytes]) -> None:
        known = {sha1 for _, _, sha1 in self.sent.values()}
        for sha1, reason in letters:
            if sha1 in known:
                self._letters.setdefault(sha1, []).append(reason)
            else:
                self._others[reason] += 1
        for payload in replies:
            reply = wire.decode_reply(payload)
            if reply.id.startswith("poison-"):
                code = "answered" if isinstance(reply, Reply) else reply.code
                self._codes.setdefault(reply.id, []).append(code)

    def verdict(self, client: redis.Redis) -> dict[str, Any]:
        """Dead letters and failures, held against what was sent."""
        dead, replies = client.xrange(self.keys.dead), client.xrange(self.keys.replies(CLIENT))
        letters_now = [(fields[b"sha1"].decode(), fields[b"reason"].decode()) for _, fields in dead]
        self._note(letters_now, [fields[b"reply"] for _, fields in replies])
        letters, codes = self._letters, self._codes
        times = Counter(sha1 for _, _, sha1 in self.sent.values())  # an empty payload is always the same
        wrong = [
            f"{request_id} ({stream}, {end}): dead letters {letters.get(sha1, [])}, "
            f"answers {codes.get(request_id, [])}"
            for request_id, (stream, end, sha1) in self.sent.items()
            if not self._gone[sha1]
            and not _ended(stream, end, letters.get(sha1, []), codes.get(request_id, []), times[sha1])
        ]
        return {
            "sent": len(self.sent),
            "flushed": sum(self._gone[sha1] for sha1 in times),
            "wrong": wrong,
            "other_dead_letters": dict(self._others),
        }


def _ended(stream: str, end: str, reasons: list[str], codes: list[str], times: int) -> bool:
    if stream == "shadow":  # samples are dropped and counted, and nobody waits for them
        return not reasons and not codes
    if end.startswith("failed:"):
        return [f"failed:{code}" for code in codes] == [end] and not reasons
    if set(reasons) != {end} or set(codes) - {"dead_lettered"}:
        return False
    return len(reasons) == times
