"""What the server must account for: everything that went in, came out or waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from producer.keys import Keys
from producer.messages import Reply
from producer.protocol import wire

_FLUSH = (Path(__file__).parent / "flush.lua").read_text("utf-8")
_IN = ("accepted:high", "accepted:normal", "accepted:low", "chaos:direct", "replayed")
_OUT = ("answered", "failed", "dead", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flushed:
    """What one FLUSHALL took.

    Attributes:
        ids: Requests that waited, were leased, or had an answer that nobody may have read.
        payloads: SHA-1 of each waiting payload.
        letters: SHA-1 and reason of each dead letter.
        replies: Reply bytes.
    """

    ids: list[str]
    payloads: list[str]
    letters: list[tuple[str, str]]
    replies: list[bytes]


@dataclass(slots=True)
class Books:
    """In = out + waiting, at every flush and at the end, by the server's own counters.

    Attributes:
        stats: Counters summed over all flushes.
        wrong: Moments at which they did not balance.
        flushed: Requests that a flush took while they waited.
    """

    keys: Keys
    stats: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    flushed: int = 0
    epochs: int = 0

    def flush(self, client: redis.Redis, reply_clients: list[str]) -> Flushed:
        """FLUSHALL, with everything that it takes noted in the same step."""
        keys = self.keys
        names = [*keys.places, keys.stats, keys.dead, *(keys.replies(one) for one in reply_clients)]
        waiting, letters, replies, flat = client.eval(_FLUSH, len(names), *names)  # type: ignore[misc]
        stats = {name.decode(): int(count) for name, count in zip(flat[::2], flat[1::2], strict=True)}
        self._close(stats, len(waiting))
        self.flushed += len(waiting)
        answered = [wire.decode_reply(reply) for reply in replies]
        unread = [one.id for one in answered if not (isinstance(one, Reply) and one.provisional)]
        return Flushed(
            ids=[name.decode() for name, _ in waiting if name] + unread,
            payloads=[sha1.decode() for _, sha1 in waiting],
            letters=[(sha1.decode(), reason.decode()) for sha1, reason in letters],
            replies=replies,
        )

    def end(self, client: redis.Redis) -> None:
        """Closes the last account, when nothing moves any more."""
        flat: Any = client.hgetall(self.keys.stats)
        waiting = sum(int(client.xlen(stream)) for stream in self.keys.places)
        self._close({name.decode(): int(count) for name, count in flat.items()}, waiting)

    def _close(self, stats: Mapping[str, int], waiting: int) -> None:
        went_in, came_out = (sum(stats.get(name, 0) for name in names) for names in (_IN, _OUT))
        if went_in != came_out + waiting:
            self.wrong.append(
                f"account {self.epochs}: {went_in} went in, {came_out} came out, {waiting} waited"
            )
        self.epochs += 1
        self.stats.update(stats)
