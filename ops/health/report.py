"""The report of `amn doctor`: facts, all read at one moment, and the results of the checks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import redis

from ops import stages
from ops.errors import Unhealthy
from ops.health import backlog, beside, keys, letters, machine, server, streams, workers
from ops.health.beside import BesideFacts
from ops.health.counters import read_counters
from ops.health.letters import LetterFacts
from ops.health.server import ServerFacts
from ops.health.streams import StreamFacts
from ops.health.workers import WorkerFacts
from producer.address import CLUSTER, parse_address
from producer.keys import Keys
from producer.settings import ProducerSettings, masked

#: The times of the stages are those of so many seconds.
STAGES_S = 300
OK, WARNING, FAILURE = "ok", "warning", "failure"
#: A level, and a text that says what to do.
Verdict = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that was read.

    Attributes:
        found: Who named this server: `--url`, `REDIS_URL`, or the file of this folder's `amn up`.
        drift: The OOD delta of the last 24 h, by model id (`ops.drift.show.views.deltas`).
        artifacts: Ids of model, fallback, bank, policy; or what is wrong with one.
        loops: What keeps the compiled loops of this machine from being used; empty when they are.
        neighbours: By package of ours, other distributions here that have one of the name.
        wrong: By key, what is not as the queue needs it.
        root: Folder that the artifacts were looked for in; "" when none of this machine is known.
        now_ms: Server's clock.
        stages: By kind of worker and stage, the times of the last minutes (`ops.stages.shown`).
    """

    url: str = field(repr=False)
    queue: str
    server: ServerFacts
    streams: dict[str, StreamFacts]
    workers: list[WorkerFacts]
    letters: LetterFacts
    counters: dict[str, int]
    artifacts: dict[str, str]
    loops: str = ""
    neighbours: Mapping[str, Sequence[str]] = field(default_factory=dict)
    found: str = ""
    wrong: Mapping[str, str] = field(default_factory=dict)
    root: str = ""
    beside: BesideFacts = field(default_factory=BesideFacts)
    now_ms: int = 0
    drift: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of a check: its level, its name, and the value with what to do about it."""

    level: str
    check: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Facts and results; without facts when the server could not be asked.

    Attributes:
        repaired: What was mended before, a sentence each.
    """

    facts: Facts | None
    results: list[CheckResult] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """True if no check failed; warnings do not count."""
        return all(result.level != FAILURE for result in self.results)

    def raise_failed(self, *, strict: bool) -> None:
        """Raises `Unhealthy` if a check failed; warnings count where it is `strict`."""
        bad = (FAILURE, WARNING) if strict else (FAILURE,)
        failed = [f"{result.check}: {result.text}" for result in self.results if result.level in bad]
        if failed:
            raise Unhealthy(f"{len(failed)} of {len(self.results)} checks failed: {'; '.join(failed)}")

    def to_json(self) -> dict[str, Any]:
        """The object of `amn doctor --json`."""
        facts = asdict(self.facts) if self.facts else {}
        if self.facts:
            waits = backlog.backlogs(self.facts.streams, self.facts.workers)
            facts["backlogs"] = {name: asdict(one) for name, one in waits.items()}
        findings = [asdict(result) for result in self.results]
        return {"healthy": self.healthy, **facts, "findings": findings, "repaired": self.repaired}


def gather(client: redis.Redis, settings: ProducerSettings, root: Path | None, found: str = "") -> Facts:
    """Asks the server, which `found` has named; nothing is changed.

    Args:
        root: Folder of artifacts; None for that of the workers on this host.
    """
    names = Keys(settings.queue)
    about, now_ms = server.read(client)
    present = workers.read(client, names, now_ms)
    root = root or workers.folder_here(present)
    jobs = parse_address(settings.url).kind != CLUSTER
    return Facts(
        url=masked(settings.url),
        queue=settings.queue,
        server=about,
        streams=streams.read(client, names, now_ms),
        stages=stages.shown(stages.read(client, names, STAGES_S, now_ms)),
        workers=present,
        letters=letters.read(client, names, now_ms),
        counters=read_counters(client, names),
        wrong=keys.read(client, names, now_ms),
        artifacts=machine.read(root) if root else {},
        root=str(root or ""),
        beside=beside.read(client, names, now_ms, jobs=jobs),
        now_ms=now_ms,
        loops=machine.read_loops(),
        neighbours=machine.read_neighbours(),
        found=found,
    )
