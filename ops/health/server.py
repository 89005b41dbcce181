"""The server: version, eviction, persistence, memory, clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import redis

from ops.health.results import FAILURE, WARNING, CheckResult, failure, ok, warning
from producer.transport.clock import ServerClock

VERSION_MIN = (7, 0)
#: Shares of the limit. Above the second one a burst ends in refused writes.
MEMORY_WARNING, MEMORY_FAILURE = 0.75, 0.9
#: Workers and our clients go by the server's clock; other clients may not.
SKEW_MS_MAX = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One server.

    Attributes:
        name, version: As it calls itself.
        compatible: Version of Redis whose commands it speaks.
        used_memory_bytes, maxmemory_bytes: In use, and allowed; 0 for no limit.
        total_memory_bytes: Of its machine; 0 when it does not say.
        maxmemory_policy: What it drops when the limit is reached.
        append_only, append_only_status: Whether it keeps an append-only file, and how the last write went.
        snapshot_status: How its last snapshot went.
        output_limit_bytes: Of the answers that a connection may have waiting; 0 for no limit, None where
            this user may not ask.
        output_cuts: Connections that it closed over that limit since its start.
        skew_ms: Its clock minus this host's, half of the question's round trip left out.
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

    @property
    def persistence_failed(self) -> bool:
        """Says whether it could not write what it should keep; it then refuses new requests."""
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
    info = client.info()
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
        skew_ms=round(-clock.offset_ms, 1),
    ), int(clock.now_ms())


def _output_limit_bytes(client: redis.Redis) -> int | None:
    """The smaller of the limits of plain clients: the hard one, and the one for a time."""
    try:
        found = cast("dict[str, str]", client.config_get("client-output-buffer-limit"))
    except redis.exceptions.NoPermissionError:
        return None
    words = found.get("client-output-buffer-limit", "").split()
    at = words.index("normal") if "normal" in words else len(words)
    return min((int(word) for word in words[at + 1 : at + 3] if word != "0"), default=0)


def check(server: ServerFacts) -> list[CheckResult]:
    """One result for version, eviction, persistence, memory and clock."""
    return [_version(server), _eviction(server), _persistence(server), _memory(server), _clock(server)]


def _version(server: ServerFacts) -> CheckResult:
    said = f"{server.name} {server.version}"
    parts = server.compatible.split(".")
    if tuple(int(part) if part.isdigit() else 0 for part in parts[:2]) >= VERSION_MIN:
        return ok("version", said)
    return failure("version", f"{said} is older than 7.0, whose commands are used; upgrade the server")


def _eviction(server: ServerFacts) -> CheckResult:
    policy = server.maxmemory_policy
    if policy == "noeviction":
        return ok("eviction", policy)
    level = FAILURE if server.maxmemory_bytes else WARNING
    text = f"maxmemory-policy is {policy}: the server may drop accepted requests; set noeviction"
    return CheckResult(level, "eviction", text)


def _persistence(server: ServerFacts) -> CheckResult:
    if server.persistence_failed:
        text = "the server could not write its append-only file or its snapshot; look at its disk"
        return failure("persistence", text)
    if server.append_only:
        return ok("persistence", "append-only file")
    text = "no append-only file: a restart of the server loses waiting requests; set appendonly yes"
    return warning("persistence", text)


def _memory(server: ServerFacts) -> CheckResult:
    used, limit = server.used_memory_bytes, server.memory_limit_bytes
    if not limit:
        return ok("memory", f"{used / 1024**2:,.0f} MiB, no limit known")
    share, whose = used / limit, "maxmemory" if server.maxmemory_bytes else "the machine's memory"
    text = f"{used / 1024**2:,.0f} MiB, {share:.0%} of {whose} ({limit / 1024**2:,.0f} MiB)"
    if share < MEMORY_WARNING:
        return ok("memory", text)
    level = FAILURE if share >= MEMORY_FAILURE else WARNING
    return CheckResult(level, "memory", f"{text}; raise it, add workers, or lower the queue's bytes_max")


def _clock(server: ServerFacts) -> CheckResult:
    if abs(server.skew_ms) <= SKEW_MS_MAX:
        return ok("clock", f"{server.skew_ms:+.0f} ms from this host's")
    text = (
        f"the server's clock is {server.skew_ms:+.0f} ms from this host's: requests of a client that stamps "
        "its own clock expire by so much too early or too late; run NTP on both"
    )
    return warning("clock", text)
