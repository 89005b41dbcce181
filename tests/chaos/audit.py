"""What one producer's requests came to, by what arrived on the wire and by what its handles said."""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from producer.errors import QueueError
from producer.messages import Reply
from producer.protocol import wire

TOLERANCE = 1e-5
#: How many ids of each kind of trouble are named in the result.
_NAMED_MAX = 20
#: What a handle must not say of a request that got in; the last, unless a flush took it.
_NO_END = ("duplicate_request", "producer_closed", "server_unavailable", "queue_full", "request_lost")


class Audit:
    """Counts every final answer of every request, also those that the producer would drop.

    Attributes:
        accepted: Request number -> its handle, until its end; then None.
        doubtful: Requests whose submit was never acknowledged; the server may have them.
        cancelled: Requests that were taken back; cancel_doubtful: whose cancel was not acknowledged.
    """

    def __init__(self, prefix: str, expected: dict[str, NDArray[np.float32]], requests: int) -> None:
        self.prefix = prefix
        self.accepted: dict[int, Any] = {}
        self.doubtful: set[int] = set()
        self.cancelled: set[int] = set()
        self.cancel_doubtful: set[int] = set()
        self.notes: dict[int, list[str]] = {}
        self.counts: Counter[str] = Counter()
        self.latencies_ms: list[float] = []
        self._expected = expected
        self._finals: Counter[int] = Counter()
        self._ended_at_s = array("d", bytes(8 * requests))  # of the first final
        self._again_at_s: dict[int, float] = {}
        self._flushed: set[int] = set()
        self._flushes_s: list[float] = []
        self._open: set[int] = set()
        self._unheard: dict[int, str] = {}
        self._wrong: dict[int, str] = {}
        self._strangers = 0

    # -- the wire -----------------------------------------------------------------------------

    def tap(self, inflight: Any) -> None:
        """Looks at each reply before the producer does."""
        take = inflight.on_reply

        def on_reply(payload: bytes, entry_id: bytes) -> None:
            self.saw(wire.decode_reply(payload))
            take(payload, entry_id)

        inflight.on_reply = on_reply

    def saw(self, message: Any) -> None:
        """Counts one reply, and holds its vector against the direct prediction."""
        prefix, _, number = message.id.rpartition("-")
        if prefix != self.prefix or not number.isdigit():
            self._strangers += 1
            return
        n = int(number)
        if isinstance(message, Reply):
            self._check(n, message)
            if message.provisional:
                self.counts["provisional"] += 1
                return
            self.counts[f"answered:{message.served_by}"] += 1
            if message.degraded:
                self.counts[f"degraded:{message.degraded}"] += 1
        else:
            self.counts[f"failed:{message.code}"] += 1
        self._finals[n] += 1
        if self._finals[n] == 1:
            self._ended_at_s[n] = time.time()
        else:
            self._again_at_s[n] = time.time()

    def _check(self, n: int, reply: Reply) -> None:
        weights = {model: weight for model, (_, weight) in reply.tiers.items() if weight} or {
            reply.model: 1.0
        }
        unknown = weights.keys() - self._expected.keys()
        if unknown or not reply.model.startswith(f"{reply.served_by}@"):
            self._wrong[n] = (
                f"served by {reply.served_by!r} with the models {sorted({reply.model, *weights})}"
            )
            return
        parts = [weight * self._row(model, n) for model, weight in weights.items()]
        mixed = np.sum(parts, axis=0)
        apart = float(np.abs(mixed / np.linalg.norm(mixed) - reply.vector).max())
        self.counts["vectors_checked"] += 1
        if not apart <= TOLERANCE:
            self._wrong[n] = f"{reply.model} answered {apart:.2g} away from the direct prediction"

    def _row(self, model: str, n: int) -> NDArray[np.float32]:
        rows = self._expected[model]
        return rows[n % len(rows)]

    def flushed(self, at_s: float, names: Sequence[str]) -> None:
        """A flush took these requests, or answers to them; whoever had none will get none."""
        self._flushes_s.append(at_s)
        self._flushed.update(int(name.rpartition("-")[2]) for name in names)

    # -- the handles --------------------------------------------------------------------------

    def accept(self, n: int, handle: Any) -> None:
        """Notes that a request is in the queue."""
        self.accepted[n] = handle
        self._open.add(n)

    def note(self, n: int, text: str) -> None:
        """Remembers an unusual moment of a request, for whoever has to explain its end."""
        self.notes.setdefault(n, []).append(f"{time.time():.3f} {text}")

    @property
    def open(self) -> int:
        """Accepted requests whose handle has no outcome yet, and should have one."""
        return len(self._open) - len(self._open & self._flushed)

    @property
    def awaited(self) -> set[int]:
        """The same, as numbers."""
        return self._open - self._flushed

    def collect(self) -> int:
        """Takes the outcomes that are there; returns how many."""
        done = [n for n in self._open if self.accepted[n].done()]
        for n in done:
            handle, self.accepted[n] = self.accepted[n], None
            self._open.discard(n)
            self._heard(n, handle)
        return len(done)

    def _heard(self, n: int, handle: Any) -> None:
        outcome = handle._final
        if handle.latency_ms is not None:
            self.latencies_ms.append(handle.latency_ms)
        if not isinstance(outcome, QueueError):
            self.counts["heard:answered"] += 1
        else:
            self.counts[f"heard:{outcome.code}"] += 1
            if outcome.code in _NO_END:
                self._unheard[n] = outcome.code

    def _between(self, n: int, again_s: float) -> bool:
        """Whether a flush came between two ends: it made the server forget the id, and the submit
        that was repeated over it was a new one."""
        return any(self._ended_at_s[n] < at_s < again_s for at_s in self._flushes_s)

    # -- the end ------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """Everything that the verdict needs, as plain values."""
        quiet = self.cancelled | self.cancel_doubtful
        flushed = {n for n in self._flushed if n in self.accepted and not self._finals[n]}
        unanswered = quiet | flushed
        lost = [n for n in self.accepted if not self._finals[n] and n not in unanswered]
        over_a_flush = {n for n, again_s in self._again_at_s.items() if self._between(n, again_s)}
        doubled = [n for n, times in self._finals.items() if times > 1 and n not in over_a_flush]
        after_cancel = [n for n in self.cancelled if self._finals[n]]
        known = self.accepted.keys() | self.doubtful
        unknown = [n for n in self._finals if n not in known]
        told = {n for n, code in self._unheard.items() if code == "request_lost" and n in self._flushed}
        unheard = [n for n in self._unheard if n not in quiet and n not in told]
        unheard += [n for n in self._open if self._finals[n]]
        late = np.array(self.latencies_ms or [0.0])
        return {
            "prefix": self.prefix,
            "accepted": len(self.accepted),
            "doubtful": len(self.doubtful),
            "doubtful_ended": sum(1 for n in self.doubtful if self._finals[n]),
            "cancelled": len(self.cancelled),
            "cancel_doubtful": len(self.cancel_doubtful),
            "cancel_doubtful_ended": sum(1 for n in self.cancel_doubtful if self._finals[n]),
            "finals": sum(self._finals.values()),
            "counts": dict(self.counts),
            "flushed": len(flushed),
            "doubled_over_a_flush": len(over_a_flush),
            "lost": len(lost),
            "doubled": len(doubled),
            "answered_after_cancel": len(after_cancel),
            "unknown": len(unknown) + self._strangers,
            "unheard": len(unheard),
            "wrong": len(self._wrong),
            "named": {
                "lost": [f"{self.prefix}-{n} {self.notes.get(n, '')}" for n in lost[:_NAMED_MAX]],
                "doubled": [f"{self.prefix}-{n} {self.notes.get(n, '')}" for n in doubled[:_NAMED_MAX]],
                "unheard": [f"{self.prefix}-{n} {self._unheard.get(n, '')}" for n in unheard[:_NAMED_MAX]],
                "wrong": [f"{self.prefix}-{n} {why}" for n, why in list(self._wrong.items())[:_NAMED_MAX]],
                "unknown": [str(n) for n in unknown[:_NAMED_MAX]],
            },
            "latency_ms": {
                "p50": float(np.percentile(late, 50)),
                "p99": float(np.percentile(late, 99)),
                "max": float(late.max()),
            },
        }
