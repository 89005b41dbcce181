"""What `amn doctor` looks at. `gather` asks the server; `judge` is pure."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import redis

from ops.drift.store import read_window
from ops.drift.window import ModelSummary, summary
from ops.errors import Unhealthy
from producer.connection import connect, driver_errors
from producer.keys import GROUP, Keys
from producer.settings import ProducerSettings, masked
from workers.settings import worker_name

OK, WARNING, FAILURE = "ok", "warning", "failure"
#: An entry older than this is not being served.
AGE_MS_MAX = 10_000
_DRIFT_HOURS = 24
_KINDS = {"requests": "amn", "fallback": "fallback", "shadow": "shadow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """One stream.

    Attributes:
        entries: Waiting or leased.    leased: Of those, leased.
        payload_bytes: Of those, as counted; None where nobody counts.
        oldest_age_ms: Of the oldest entry, by the server's clock; None when empty.
    """

    entries: int
    leased: int
    payload_bytes: int | None
    oldest_age_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """One worker's presence: `busy_ms_ago` is when it was last seen."""

    name: str
    kind: str
    pid: int
    finished: int
    seen_ms_ago: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that was found.

    Attributes:
        server: version, persistence, memory, eviction policy.
        dead: Dead letters by reason, of the newest hundred.
        drift: What the shadow measured in the last 24 h, by model id.
        artifacts: Ids of model, fallback, bank; or what is wrong with one.
    """

    url: str
    queue: str
    server: dict[str, Any]
    streams: dict[str, StreamFacts]
    workers: list[WorkerFacts]
    dead: dict[str, int]
    dead_entries: int
    counters: dict[str, int]
    drift: Mapping[str, ModelSummary]
    artifacts: dict[str, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome: what, which value, what to do."""

    level: str
    check: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Facts and findings."""

    facts: Facts
    findings: list[Finding] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether no check failed; warnings do not count."""
        return all(finding.level != FAILURE for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values: `amn doctor --json`; what cannot be told (NaN) is None."""
        facts: dict[str, Any] = _plain(asdict(self.facts))
        return {"healthy": self.healthy, **facts, "findings": [asdict(f) for f in self.findings]}


def gather(settings: ProducerSettings, artifacts: Path) -> Facts:
    """Asks the server; nothing is changed.

    Raises:
        ServerUnavailable, AuthenticationFailed: It cannot be asked.
    """
    keys = Keys(settings.queue)
    client = connect(settings, retries=0)
    try:
        with driver_errors(settings.url):
            seconds, micros = client.time()
            now_ms = seconds * 1000 + micros // 1000
            counters = cast("dict[bytes, bytes]", client.hgetall(keys.stats))
            return Facts(
                url=masked(settings.url),
                queue=settings.queue,
                server=_server(client),
                streams={name: _stream(client, keys, name, now_ms) for name in _KINDS},
                workers=_workers(client, keys),
                dead=_dead(client, keys),
                dead_entries=client.xlen(keys.dead),
                counters={name.decode(): int(value) for name, value in sorted(counters.items())},
                drift=summary(read_window(client, keys, now_ms, _DRIFT_HOURS)),
                artifacts=_artifacts(artifacts),
            )
    finally:
        client.close()


def alive_here(settings: ProducerSettings, kind: str) -> str:
    """The name of a living worker of this kind on this host.

    Raises:
        Unhealthy: There is none.
        ServerUnavailable, AuthenticationFailed: The server cannot be asked.
    """
    host = worker_name(kind).rsplit("-", 2)[0]  # without process id and random part
    client = connect(settings, retries=0)
    try:
        with driver_errors(settings.url):
            for worker in _workers(client, Keys(settings.queue)):
                if worker.kind == kind and worker.name.startswith(f"{host}-"):
                    return worker.name
    finally:
        client.close()
    raise Unhealthy(f"no {kind} worker of this host ({host}-...) was seen lately on queue {settings.queue}")


def judge(facts: Facts) -> list[Finding]:
    """One finding per check."""
    findings = [_eviction(facts.server), _persistence(facts.server)]
    findings += [_workers_of(facts, kind, stream) for stream, kind in _KINDS.items()]
    findings += [_flow(name, stream) for name, stream in facts.streams.items()]
    if facts.dead_entries:
        reasons = ", ".join(f"{count} {reason}" for reason, count in facts.dead.items())
        findings.append(Finding(WARNING, "dead letters", f"{facts.dead_entries} dead letters ({reasons})"))
    else:
        findings.append(Finding(OK, "dead letters", "none"))
    for name, value in facts.artifacts.items():
        if value.startswith("missing"):
            findings.append(Finding(WARNING, name, f"{value}; workers on this machine would not start"))
    return findings


def _plain(value: Any) -> Any:
    """The same with None for NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _eviction(server: Mapping[str, Any]) -> Finding:
    policy = server["maxmemory_policy"]
    if policy == "noeviction":
        return Finding(OK, "eviction", "noeviction")
    level = FAILURE if server["maxmemory_bytes"] else WARNING
    text = f"maxmemory-policy is {policy}: the server may drop accepted requests; set noeviction"
    return Finding(level, "eviction", text)


def _persistence(server: Mapping[str, Any]) -> Finding:
    if server["append_only"]:
        if server["append_only_status"] != "ok":
            return Finding(FAILURE, "persistence", "the last append-only write failed; look at its disk")
        return Finding(OK, "persistence", "append-only file")
    text = "no append-only file: a restart of the server loses waiting requests; set appendonly yes"
    return Finding(WARNING, "persistence", text)


def _workers_of(facts: Facts, kind: str, stream: str) -> Finding:
    count = sum(worker.kind == kind for worker in facts.workers)
    if count:
        return Finding(OK, f"{kind} workers", f"{count} alive")
    level = WARNING if kind == "shadow" else FAILURE
    waiting = facts.streams[stream].entries
    return Finding(
        level, f"{kind} workers", f"none alive ({waiting} waiting); start one: `amn worker {kind}`"
    )


def _flow(name: str, stream: StreamFacts) -> Finding:
    age_ms = stream.oldest_age_ms
    if age_ms is None or age_ms <= AGE_MS_MAX or name == "shadow":
        return Finding(OK, f"{name} stream", f"{stream.entries} waiting, {stream.leased} of them leased")
    text = (
        f"the oldest of {stream.entries} entries waits for {age_ms / 1000:.0f} s; add workers, see their logs"
    )
    return Finding(FAILURE, f"{name} stream", text)


def _server(client: redis.Redis) -> dict[str, Any]:
    info = client.info()
    return {
        "name": info.get("server_name", "redis"),
        "version": info.get("valkey_version") or info["redis_version"],
        "uptime_s": info["uptime_in_seconds"],
        "used_memory_bytes": info["used_memory"],
        "maxmemory_bytes": info["maxmemory"],
        "maxmemory_policy": info["maxmemory_policy"],
        "append_only": bool(info["aof_enabled"]),
        "append_only_status": info.get("aof_last_write_status", "ok"),
        "clients": info["connected_clients"],
    }


def _stream(client: redis.Redis, keys: Keys, name: str, now_ms: int) -> StreamFacts:
    stream = getattr(keys, name)
    counter = {"requests": keys.requests_bytes, "fallback": keys.fallback_bytes}.get(name)
    oldest = cast("list[tuple[bytes, Any]]", client.xrange(stream, count=1))
    try:
        leased = cast("dict[str, int]", client.xpending(stream, GROUP))["pending"]
    except redis.ResponseError:  # no such stream or group yet: no worker was ever here
        leased = 0
    return StreamFacts(
        entries=client.xlen(stream),
        leased=leased,
        payload_bytes=int(cast(bytes, client.get(counter) or b"0")) if counter else None,
        oldest_age_ms=max(now_ms - int(oldest[0][0].partition(b"-")[0]), 0) if oldest else None,
    )


def _workers(client: redis.Redis, keys: Keys) -> list[WorkerFacts]:
    found, now_ms = [], time.time() * 1000
    for key in client.scan_iter(match=keys.workers_prefix.replace("{", "\\{") + "*", count=1000):
        hash_ = cast("dict[bytes, bytes]", client.hgetall(key))
        if hash_:
            found.append(
                WorkerFacts(
                    name=key.decode().removeprefix(keys.workers_prefix),
                    kind=hash_.get(b"kind", b"?").decode(),
                    pid=int(hash_.get(b"pid", b"0")),
                    finished=int(hash_.get(b"finished", b"0")),
                    seen_ms_ago=int(max(now_ms - int(hash_.get(b"seen_at_ms", b"0")), 0)),
                )
            )
    return sorted(found, key=lambda worker: (worker.kind, worker.name))


def _dead(client: redis.Redis, keys: Keys) -> dict[str, int]:
    reasons: dict[str, int] = {}
    rows = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrevrange(keys.dead, count=100))
    for _, fields in rows:
        reason = fields.get(b"reason", b"?").decode()
        reasons[reason] = reasons.get(reason, 0) + 1
    return reasons


def _artifacts(root: Path) -> dict[str, str]:
    return {
        "model": _model_id(root / "production_model"),
        "fallback": _model_id(root / "fallback_accuracy"),
        "bank": _manifest(root / "reference_bank", "bank_id"),
        "policy": _policy_id(root),
    }


def _model_id(folder: Path) -> str:
    name, digest = _manifest(folder, "name"), _manifest(folder, "sha256")
    return name if name.startswith("missing") else f"{name}@{digest[:12]}"


def _manifest(folder: Path, key: str) -> str:
    try:
        return str(json.loads((folder / "manifest.json").read_text("utf-8"))[key])
    except (OSError, ValueError, KeyError) as error:
        return f"missing: {folder} ({type(error).__name__})"


def _policy_id(artifacts: Path) -> str:
    from amn.errors import AmnError
    from amn.gain import load_calibration
    from amn.policy import DEFAULT, load_policy

    try:
        return load_policy(DEFAULT).policy_id(load_calibration(artifacts / "gate_calibration").calibration_id)
    except AmnError as error:
        return f"missing: {error}"
