"""One judge at a time: a key that expires, and a fence that only grows.

    amn:{main}:drift:leader   string   fence of the judge that leads, as decimal text; expires
    amn:{main}:drift:fence    string   the last fence given, expires after 90 days without a judge

Whatever a judge writes, it writes by `write`, which first compares `drift:leader` with its fence. A
judge that slept through its lease finds another fence there, and writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import cast

import redis

from producer.keys import Keys
from producer.transport.connection import script_text

_REMEMBERED_MS = 90 * 24 * 3600 * 1000
#: A command of the server, its key second.
Command = tuple[str | int, ...]


def leader_key(keys: Keys) -> str:
    """Returns the key of the leader's fence, which is decimal text; absent while nobody leads."""
    return keys.drift_prefix + "leader"


class Leadership:
    """Takes part in the election of one leading process.

    Attributes:
        fence: Positive while this process led when it last asked, else 0.
    """

    def __init__(self, client: redis.Redis, keys: Keys, lease_ms: int, prefix: str = "") -> None:
        prefix = prefix or keys.drift_prefix  # another room's, for an election of its own
        self.fence = 0
        self._lease_ms = lease_ms
        self._names = [prefix + "leader", prefix + "fence"]
        self._lead = client.register_script(script_text("ops", "lead"))
        self._resign = client.register_script(script_text("ops", "resign"))

    def lead(self) -> int:
        """Takes or renews the leadership; returns the fence, or 0 when another judge leads."""
        held = str(self.fence) if self.fence else ""
        answer = self._lead(keys=self._names, args=[held, self._lease_ms, _REMEMBERED_MS])
        self.fence = int(cast(bytes, answer) or 0)
        return self.fence

    def resign(self) -> None:
        """Lets the next judge lead at once. Idempotent."""
        if self.fence:
            self._resign(keys=self._names[:1], args=[str(self.fence)])
            self.fence = 0


def write(
    client: redis.Redis,
    leader: str,
    fence: int | str,
    commands: Sequence[Command],
    logged: Sequence[Command] = (),
) -> bool:
    """Runs commands in one step; False when the fence in `leader` is another one.

    Args:
        logged: Commands whose failure is no failure.
    """
    script = client.register_script(script_text("ops", "write"))
    names = sorted({str(command[1]) for command in (*commands, *logged)})
    texts = [json.dumps([[str(word) for word in one] for one in many]) for many in (commands, logged)]
    return bool(script(keys=[leader, *names], args=[str(fence), *texts]))
