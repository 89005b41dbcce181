"""How long it takes until what a killed worker held is finished by somebody else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import redis

from producer.keys import GROUP

_GIVE_UP_S = 60.0


#: A leased entry: its stream and its id.
Held = tuple[str, bytes]


@dataclass(slots=True)
class Kill:
    """A worker that was killed, and the entries that it held then.

    Attributes:
        clean: Whether another worker of the kind was there to take over, and neither it nor the
            server met a fault before the last entry was finished.
        first_s, all_s: From the kill until one, and until all of them were finished.
    """

    kind: str
    held: list[Held]
    killed_at_s: float
    clean: bool = True
    first_s: float | None = None
    all_s: float | None = None


def held_by(client: redis.Redis, streams: Sequence[str], pid: int) -> list[Held]:
    """Entries leased to the worker with this process id; its consumer's name contains it."""
    held: list[Held] = []
    for stream in streams:
        for consumer in client.xinfo_consumers(stream, GROUP):
            name = consumer["name"]
            if consumer["pending"] and name.split(b"-")[-2:-1] == [str(pid).encode()]:
                rows = client.xpending_range(stream, GROUP, "-", "+", 1000, consumername=name)
                held += [(stream, row["message_id"]) for row in rows]
    return held


class Recoveries:
    """Watches the entries of killed workers until each is gone from the leases."""

    def __init__(self) -> None:
        self.done: list[Kill] = []
        self._open: list[Kill] = []

    def add(self, kill: Kill) -> None:
        """Begins to watch."""
        if kill.held:
            self._open.append(kill)

    @property
    def watching(self) -> int:
        """Kills whose entries are not all finished yet."""
        return len(self._open)

    def disturb(self, kind: str = "") -> None:
        """A fault came upon the server, or upon a worker of this kind: what is open measures both."""
        for kill in self._open:
            kill.clean &= kind not in ("", kill.kind)

    def forget(self) -> None:
        """The server was flushed: there is nothing left to watch."""
        self._open.clear()

    def look(self, client: redis.Redis) -> None:
        """One round trip for all that is open; a server that is away is no news."""
        if not self._open:
            return
        with client.pipeline(transaction=False) as pipe:
            for kill in self._open:
                for stream, entry in kill.held:
                    pipe.xpending_range(stream, GROUP, entry, entry, 1)
            rows = iter(pipe.execute())
        now_s = time.monotonic()
        for kill in list(self._open):
            left = [held for held in kill.held if next(rows)]
            if len(left) < len(kill.held) and kill.first_s is None:
                kill.first_s = now_s - kill.killed_at_s
            if not left:
                kill.all_s = now_s - kill.killed_at_s
            kill.held = left
            if not left or now_s - kill.killed_at_s > _GIVE_UP_S:
                self._open.remove(kill)
                self.done.append(kill)

    def result(self) -> dict[str, object]:
        """Numbers of kills that held something, and the slowest recoveries in seconds."""
        done = [kill for kill in self.done if kill.all_s is not None]
        clean = [kill for kill in done if kill.clean]

        def slowest(kills: list[Kill]) -> dict[str, float]:
            return {
                "first": max((kill.first_s or 0.0 for kill in kills), default=0.0),
                "all": max((kill.all_s or 0.0 for kill in kills), default=0.0),
            }

        return {
            "kills_with_leases": len(self.done) + len(self._open),
            "recovered": len(done),
            "undisturbed": len(clean),
            "slowest_s": slowest(done),
            "slowest_undisturbed_s": slowest(clean),
            "by_kind_undisturbed_s": {
                kind: slowest([kill for kill in clean if kill.kind == kind])["all"]
                for kind in sorted({kill.kind for kill in clean})
            },
        }
