"""Messages that no client of ours would send, and what must become of each."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from producer import wire
from producer.connection import script_text
from producer.keys import Keys
from producer.messages import Reply, Request

CLIENT = "chaos-poison"
#: Where it goes, what it is, and how it must end: a dead letter's reason, or a failure's code.
RECIPES = (
    ("requests", "noise", "undecodable"),
    ("requests", "cut_off", "undecodable"),
    ("requests", "version_99", "unsupported_version"),
    ("requests", "empty", "undecodable"),
    ("requests", "nan", "not_finite"),
    ("requests", "norm", "bad_norm"),
    ("fallback", "no_answer", "undecodable"),
    ("fallback", "noise", "undecodable"),
    ("shadow", "noise", "undecodable"),
)


@dataclass(slots=True)
class Poison:
    """Puts poison in, through the same script as everybody, and looks for it at the end."""

    keys: Keys
    context: NDArray[np.float32]
    seen_window_ms: int
    sent: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # id -> stream, end, sha1
    _waiting: list[tuple[str, str, bytes, str]] = field(default_factory=list)

    def make(self, number: int, choice: float) -> str:
        """Prepares one; `send` puts it in. Returns its recipe's name."""
        stream, name, end = RECIPES[int(choice * len(RECIPES))]
        request_id = f"poison-{number}"
        self._waiting.append((request_id, stream, self._payload(request_id, name), end))
        return f"{stream}:{name}"

    def send(self, client: redis.Redis) -> None:
        """Sends what waits; it stays waiting when the server is away."""
        while self._waiting:
            request_id, stream, payload, end = self._waiting[0]
            if stream == "requests":
                keys = [*self.keys.levels, *self.keys.counters[:3], self.keys.stats]
                arguments: list[Any] = [10**9, 10**12, self.seen_window_ms, self.keys.seen_prefix, CLIENT]
                script = client.register_script(script_text("producer", "submit"))
                script(keys=keys, args=[*arguments, request_id, 2, "-", payload])
            elif stream == "fallback":
                with client.pipeline(transaction=True) as pipe:
                    pipe.xadd(self.keys.fallback, {"request": payload, "answer": b"\xc1"})
                    pipe.incrby(self.keys.fallback_bytes, len(payload))
                    pipe.execute()
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

    def verdict(self, client: redis.Redis) -> dict[str, Any]:
        """Dead letters and failures, held against what was sent."""
        letters: dict[str, list[str]] = {}
        others: dict[str, int] = {}
        known = {sha1 for _, _, sha1 in self.sent.values()}
        for _, entry in client.xrange(self.keys.dead):
            sha1, reason = entry[b"sha1"].decode(), entry[b"reason"].decode()
            if sha1 in known:
                letters.setdefault(sha1, []).append(reason)
            else:
                others[reason] = others.get(reason, 0) + 1
        codes: dict[str, list[str]] = {}
        for _, entry in client.xrange(self.keys.replies(CLIENT)):
            reply = wire.decode_reply(entry[b"reply"])
            code = "answered" if isinstance(reply, Reply) else reply.code
            codes.setdefault(reply.id, []).append(code)
        times = Counter(sha1 for _, _, sha1 in self.sent.values())  # an empty payload is always the same
        wrong = [
            f"{request_id} ({stream}, {end}): dead letters {letters.get(sha1, [])}, "
            f"answers {codes.get(request_id, [])}"
            for request_id, (stream, end, sha1) in self.sent.items()
            if not _ended(stream, end, letters.get(sha1, []), codes.get(request_id, []), times[sha1])
        ]
        told = sum(len(ends) for ends in codes.values())
        ended = sum(len(reasons) for reasons in letters.values())
        ended += sum(ends != ["dead_lettered"] for ends in codes.values())
        return {
            "sent": len(self.sent),
            "told": told,
            "ended": ended,
            "wrong": wrong,
            "other_dead_letters": others,
        }


def _ended(stream: str, end: str, reasons: list[str], codes: list[str], times: int) -> bool:
    if stream == "shadow":  # samples are dropped and counted, and nobody waits for them
        return not reasons and not codes
    if end in ("not_finite", "bad_norm"):
        return codes == [end] and not reasons
    if set(reasons) != {end} or set(codes) - {"dead_lettered"}:
        return False
    # Straight into the fallback stream there is no idempotent way: a repeat may have come twice.
    return len(reasons) >= times if stream == "fallback" else len(reasons) == times
