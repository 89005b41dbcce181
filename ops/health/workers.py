"""The workers: their presence, progress, clocks, models, and the answers to their reads."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import redis

from producer.keys import GROUP, Keys

_READ: Mapping[str, Callable[[str], Any]] = {"int": int, "float": float}
#: A worker that has said nothing for so many leases is stopped, killed, or keeps its interpreter to itself;
#: it says something three times a lease, and is forgotten after three.
_SILENT_LEASES = 1.5
#: A worker that holds entries and ends none of them for this long is stuck.
STUCK_MS = 15_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """One worker's presence.

    Attributes:
        finished: Entries that it ended.    seen_ms_ago: Since it last said so.
        ended_per_s: Entries that it ends a second, lately.
        busy_ratio: Share of the last half minute in which it worked, 0 to 1.
        streams: Streams that it reads, by their display names, with spaces between.
        stuck_ms: For how long it has held entries without ending one, by its own clock.
        host: Whole name of its host.    started_at_ms: When it was ready; by the server's clock.
        clock_offset_ms: How far the clock of its host is ahead of the server's.
        reads_lost: Reads of its whose answers never came.
        reads_narrowed: To how many entries it has narrowed its reads since; 0 for not much.
        model, bank, policy, calibration: Ids of what it serves, and by what it decides.
        version: Of its package.    artifacts: Folder on its host that these come from.
        lease_ms: For how long it holds what it does not renew.
    """

    name: str
    kind: str = "?"
    pid: int = 0
    finished: int = 0
    ended_per_s: float = 0.0
    busy_ratio: float = 0.0
    streams: str = ""
    seen_ms_ago: int = 0
    stuck_ms: int = 0
    host: str = ""
    started_at_ms: int = 0
    clock_offset_ms: int = 0
    reads_lost: int = 0
    reads_narrowed: int = 0
    model: str = ""
    bank: str = ""
    policy: str = ""
    calibration: str = ""
    version: str = ""
    artifacts: str = ""
    lease_ms: int = 3_000

    @property
    def silent(self) -> bool:
        """True if it should have said something by now."""
        return self.seen_ms_ago > _SILENT_LEASES * self.lease_ms

    @property
    def stuck(self) -> bool:
        """True if it holds entries and ends none, or is silent."""
        return self.stuck_ms > STUCK_MS or self.silent


def read(
    client: redis.Redis, keys: Keys, now_ms: float, names: Iterable[str] | None = None
) -> list[WorkerFacts]:
    """Every worker that was seen within three leases.

    Args:
        now_ms: Server's clock.    names: As `known` has them; None asks for them.
    """
    found = []
    for name in sorted(known(client, keys) if names is None else names):
        key = keys.worker(name)
        with client.pipeline(transaction=False) as pipe:  # also without memory, which transactions need
            pipe.hgetall(key)
            pipe.pttl(key)
            raw, left_ms = cast("tuple[dict[bytes, bytes], int]", pipe.execute())
        stored = {_text(name): _text(value) for name, value in raw.items()}
        # Empty when it expired just now. One that has longer to live than it was given is from before the
        # server's clock went back: who lives says so again each second.
        ghost = 0 < 3 * _whole(stored, "lease_ms", 0) < left_ms
        if stored and not ghost:
            found.append(_worker(name, stored, now_ms))
    return sorted(found, key=lambda worker: (worker.kind, worker.name))


def known(client: redis.Redis, keys: Keys) -> set[str]:
    """Names of the workers that have read a stream of the queue and have not left since; some may be dead.

    Each reads in its own name, so that no key has to be looked for.
    """
    found: set[str] = set()
    for stream in (*keys.places, keys.shadow):
        with contextlib.suppress(redis.ResponseError):  # no such stream or group yet: no worker was here
            rows = client.xinfo_consumers(stream, GROUP)
            found.update(_text(row["name"]) for row in rows)
    return found


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "replace")


def _whole(stored: Mapping[str, str], name: str, other: int) -> int:
    try:
        return int(stored.get(name, other))
    except ValueError:
        return other


def _worker(name: str, stored: Mapping[str, str], now_ms: float) -> WorkerFacts:
    values: dict[str, Any] = {}
    for one in fields(WorkerFacts):
        if one.name in stored:
            with contextlib.suppress(ValueError):  # a later version wrote it
                values[one.name] = _READ.get(str(one.type), str)(stored[one.name])
    seen_at_ms = _whole(stored, "seen_at_ms", 0)
    values["name"] = name
    values["seen_ms_ago"] = int(max(now_ms - seen_at_ms, 0))
    values["stuck_ms"] = seen_at_ms - _whole(stored, "progress_at_ms", seen_at_ms)
    return WorkerFacts(**values)


def folder_here(workers: list[WorkerFacts]) -> Path | None:
    """Returns the folder of models and banks of this host's workers; None when none says so."""
    host = socket.gethostname()
    return next((Path(one.artifacts) for one in workers if one.artifacts and one.host == host), None)
