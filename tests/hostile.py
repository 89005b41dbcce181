"""A producer that writes whatever its rights allow to every key that they name."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import redis

from producer.keys import Keys
from producer.transport.connection import script_text
from producer.transport.link import Script

#: What it does. The first five leave everybody able to submit.
DEEDS = ("count", "note", "report", "reply", "forge", "append", "call", "add_to_stats")
LAST_ID = "18446744073709551615-18446744073709551615"
MOST, LEAST = 2**63 - 1, -(2**63)


class Hostile:
    """One of them, the same for a seed. It does not trim: docs/deploy.md says that it could.

    Args:
        client: With the rights of a producer.
        client_id: Whose replies it may read.
        deeds: Of `DEEDS`.

    Attributes:
        done, refused: How many deeds the server allowed, and how many not.
    """

    def __init__(self, client: redis.Redis, client_id: str, seed: int, deeds: Sequence[str] = DEEDS) -> None:
        self._client, self._draw = client, random.Random(seed)
        self._keys = Keys()
        self._replies = self._keys.replies(client_id)
        self._submit = Script(script_text("producer", "submit"))
        self._deeds: list[Callable[[], Any]] = [getattr(self, f"_{deed}") for deed in deeds]
        self.done = self.refused = 0

    def act(self) -> None:
        """One deed."""
        try:
            self._draw.choice(self._deeds)()
            self.done += 1
        except redis.ResponseError:
            self.refused += 1

    def _bytes(self, length_max: int = 200) -> bytes:
        return self._draw.randbytes(self._draw.randint(0, length_max))

    def _id(self) -> str:
        last_ms = self._draw.choice([2**64 - 1, 2**64 - 2, 2**63, 10**14])
        return self._draw.choice(["*", "*", "*", LAST_ID, f"{last_ms}-{self._draw.randint(0, 5)}"])

    def _fields(self) -> dict[Any, Any]:
        names = [b"request", b"id", b"answer", b"kind", b"key", b"vector", b"reply", self._bytes()]
        return {name: self._bytes() for name in self._draw.sample(names, self._draw.randint(1, 5))}

    def _append(self) -> None:
        self._client.xadd(self._draw.choice(self._keys.levels), self._fields(), id=self._id())

    def _count(self) -> None:
        amount = self._draw.choice([MOST, LEAST, 10**15, -(10**15), self._draw.randint(-(10**6), 10**6)])
        self._client.incrby(self._draw.choice(self._keys.counters[:3]), amount)

    def _note(self) -> None:
        value = self._draw.choice([self._bytes(), b"x - 9 1-1", b"x - 2 nonsense", b" cancelled"])
        self._client.set(self._keys.seen(f"guess-{self._draw.randint(0, 9)}"), value, px=10_000)

    def _add_to_stats(self) -> None:
        name = self._draw.choice([b"answered", b"failed", b"accepted:normal", b"lost", self._bytes(20)])
        self._client.hincrby(self._keys.stats, name, self._draw.choice([MOST, LEAST, 5]))

    def _report(self) -> None:
        self._client.xadd(self._keys.truths, self._fields(), id=self._id())

    def _reply(self) -> None:
        self._client.xadd(self._replies, self._fields(), id=self._id())

    def _call(self) -> None:
        keys = [*self._keys.levels, *self._keys.counters[:3], self._keys.stats]
        words = [self._draw.choice([b"", b"0", b"-1", b"1e400", self._bytes()]) for _ in range(9)]
        self._client.execute_command("EVALSHA", self._submit.sha, len(keys), *keys, *words)

    def _forge(self) -> None:
        for key in (self._keys.shadow, self._keys.dead, self._keys.fallback, self._keys.replies("team-b.x")):
            with suppress(redis.exceptions.NoPermissionError):
                self._client.xadd(key, self._fields(), id=LAST_ID)
                raise AssertionError(f"{key} can be written to")
        raise redis.ResponseError("all refused")


def selectors(line: str) -> list[str]:
    """User and rules of a line as the arguments of ACL SETUSER: what is in parentheses is one."""
    found: list[str] = []
    for word in line.split()[1:]:
        if found and found[-1].startswith("(") and not found[-1].endswith(")"):
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found
