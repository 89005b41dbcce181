"""Everything that `amn doctor` looks at: `gather` asks the server, `judge` is pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ops.counters import read_counters
from ops.drift.kept.store import read_window
from ops.drift.measures.window import ModelSummary, summary
from ops.health import artifacts, beside, integrity, letters, loops, reads, server, streams, workers
from ops.health.findings import FAILURE, Finding
from producer.address import CLUSTER, parse_address
from producer.keys import Keys
from producer.settings import ProducerSettings, masked
from producer.transport.connection import connect, driver_errors

_DRIFT_HOURS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that was found.

    Attributes:
        found: Who named this server: `--url`, `REDIS_URL`, or the file of this folder's `amn up`.
        drift: What the shadow measured in the last 24 h, by model id.
        artifacts: Ids of model, fallback, bank, policy; or what is wrong with one.
        loops: What is in the way of the compiled loops on this machine; empty when they are in use.
        wrong: By key, what is not as the queue needs it.
        root: Folder that the artifacts were looked for in; "" when none of this machine is known.
        beside: Judge, sender, jobs worker, and what ended with an error.
        now_ms: Server's clock.
    """

    url: str = field(repr=False)
    queue: str
    server: server.ServerFacts
    streams: dict[str, streams.StreamFacts]
    workers: list[workers.WorkerFacts]
    letters: letters.LetterFacts
    counters: dict[str, int]
    drift: Mapping[str, ModelSummary]
    artifacts: dict[str, str]
    loops: str = ""
    found: str = ""
    wrong: Mapping[str, str] = field(default_factory=dict)
    root: str = ""
    beside: beside.BesideFacts = field(default_factory=beside.BesideFacts)
    now_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Facts and findings; without facts when the server could not be asked.

    Attributes:
        repaired: What was mended before, a sentence each.
    """

    facts: Facts | None
    findings: list[Finding] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether no check failed; warnings do not count."""
        return all(finding.level != FAILURE for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """What `amn doctor --json` prints."""
        facts = asdict(self.facts) if self.facts else {}
        findings = [asdict(finding) for finding in self.findings]
        return {"healthy": self.healthy, **facts, "findings": findings, "repaired": self.repaired}


def gather(settings: ProducerSettings, root: Path | None, found: str = "") -> Facts:
    """Asks the server, which `found` has named; nothing is changed.

    Args:
        root: Folder of artifacts; None for that of the workers on this host.

    Raises:
        ServerUnavailable, AuthenticationFailed: It cannot be asked.
    """
    keys = Keys(settings.queue)
    client = connect(settings, retries=0)
    try:
        with driver_errors(settings.url):
            about, now_ms = server.look(client)
            present = workers.look(client, keys, now_ms)
            root = root or workers.folder_here(present)
            return Facts(
                url=masked(settings.url),
                queue=settings.queue,
                server=about,
                streams=streams.look(client, keys, now_ms),
                workers=present,
                letters=letters.look(client, keys, now_ms),
                counters=read_counters(client, keys),
                wrong=integrity.look(client, keys, now_ms),
                drift=summary(read_window(client, keys, now_ms, _DRIFT_HOURS)),
                artifacts=artifacts.look(root) if root else {},
                root=str(root or ""),
                beside=beside.look(client, keys, now_ms, jobs=parse_address(settings.url).kind != CLUSTER),
                now_ms=now_ms,
                loops=loops.look(),
                found=found,
            )
    finally:
        client.close()


def judge(facts: Facts) -> list[Finding]:
    """One finding per check."""
    return [
        *server.judge(facts.server),
        *workers.judge(facts.workers, facts.streams, facts.artifacts),
        *reads.judge(facts.server, facts.workers),
        *streams.judge(facts.streams),
        *letters.judge(facts.letters),
        *integrity.judge(facts.wrong),
        *beside.judge(facts.beside, facts.workers, facts.now_ms),
        *artifacts.judge(facts.artifacts, facts.root),
        loops.judge(facts.loops),
    ]
