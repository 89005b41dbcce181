"""The server: version, eviction, persistence, memory, clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import redis

from producer.transport.clock import ServerClock
from producer.transport.library import LIBRARY, library

#: Shares of the memory limit. Above the second one a burst ends in refused writes.
MEMORY_WARNING, MEMORY_FAILURE = 0.75, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One server.

    Attributes:
        name, version: As it calls itself.    compatible: Version of Redis whose commands it speaks.
        maxmemory_bytes: 0 for no limit.    total_memory_bytes: Memory of its machine, or 0.
        append_only_status, snapshot_status: How the last write of each went.
        output_limit_bytes: Bytes that a connection may have waiting; 0 for no limit, None where this user
            may not ask.
        output_cuts: Connections that it closed over that limit since its start.
        skew_ms: Its clock minus this host's, half of the question's round trip left out.
        replica: True for a replica, which takes no writes.
        replicas_missing: True where it takes none because none of the replicas that it wants is there.
        functions: Whether the library of functions that it has for clients is that of this package; None
            where it has none, or this user may not ask.
        told: False where this user may not ask; then only the clock is known.
    """

    name: str = "redis"
    version: str = "7.0.0"
    compatible: str = "7.0.0"
    uptime_s: int = 0
    used_memory_bytes: int = 0
    maxmemory_bytes: int = 0
    total_memory_bytes: int = 0
    maxmemory_policy: str = "noeviction"
    append_only: bool = True
    append_only_status: str = "ok"
    snapshot_status: str = "ok"
    clients: int = 0
    output_limit_bytes: int | None = 0
    output_cuts: int = 0
    skew_ms: float = 0.0
    replica: bool = False
    replicas_missing: bool = False
    functions: bool | None = None
    told: bool = True

    @property
    def persistence_failed(self) -> bool:
        """True if it could not write what it should keep; it then refuses new requests."""
        return "err" in (self.append_only_status if self.append_only else "", self.snapshot_status)

    @property
    def memory_limit_bytes(self) -> int:
        """Returns the memory it may use: maxmemory, else all of its machine; 0 when neither is known."""
        return self.maxmemory_bytes or self.total_memory_bytes


def read(client: redis.Redis, *, with_limits: bool = True) -> tuple[ServerFacts, int]:
    """Reads the facts, and the server's clock in epoch ms.

    Args:
        with_limits: Also asks the configuration, which operators with narrow rights may not.
    """
    clock = ServerClock()
    clock.measured(clock.asks(), client.time())
    skew_ms, now_ms = round(-clock.offset_ms, 1), int(clock.now_ms())
    try:
        info = client.info()
    except redis.ResponseError:
        return ServerFacts(skew_ms=skew_ms, told=False), now_ms
    return ServerFacts(
        name=info.get("server_name", "redis"),
        version=info.get("valkey_version") or info["redis_version"],
        compatible=info["redis_version"],
        uptime_s=info["uptime_in_seconds"],
        used_memory_bytes=info["used_memory"],
        maxmemory_bytes=info["maxmemory"],
        total_memory_bytes=info.get("total_system_memory", 0),
        maxmemory_policy=info["maxmemory_policy"],
        append_only=bool(info["aof_enabled"]),
        append_only_status=info.get("aof_last_write_status", "ok"),
        snapshot_status=info.get("rdb_last_bgsave_status", "ok"),
        clients=info["connected_clients"],
        output_limit_bytes=_output_limit_bytes(client) if with_limits else None,
        output_cuts=info.get("client_output_buffer_limit_disconnections", 0),
        skew_ms=skew_ms,
        replica=info.get("role") == "slave",
        replicas_missing=info.get("min_slaves_good_slaves") == 0,
        functions=_functions(client) if with_limits else None,
    ), now_ms


def _functions(client: redis.Redis) -> bool | None:
    try:
        [found] = cast("list[list[Any]]", client.function_list(LIBRARY, withcode=True))
    except (redis.ResponseError, ValueError):  # no right, no such command, or no such library
        return None
    return bool(found[-1] == library().encode())


def _output_limit_bytes(client: redis.Redis) -> int | None:
    """The smaller of the limits of plain clients: the hard one, and the one for a time."""
    try:
        found = cast("dict[str, str]", client.config_get("client-output-buffer-limit"))
    except redis.exceptions.NoPermissionError:
        return None
    _, _, limits = found.get("client-output-buffer-limit", "").partition("normal ")
    return min((int(word) for word in limits.split()[:2] if word != "0"), default=0)
