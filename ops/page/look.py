"""Looks at the queue's server once: what the page shows is made of this, and nothing else is asked.

Each look asks the same commands, whatever waits and whoever watches: streams by their ends, workers by the
names under which they read, dead letters without what they carry and only when others are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import redis

from ops import stages
from ops.alerts import books
from ops.alerts.alert import Alert
from ops.alerts.silences import Silence, silence_of, silences
from ops.alerts.store import alerts
from ops.clock import BLOCK_MIN, server_now_ms
from ops.deadletters import DeadLetters, Letter, described
from ops.drift.memory import Memory
from ops.drift.service import history
from ops.findings import Finding
from ops.health import Facts, beside, letters, server, streams, workers
from ops.health.counters import read_counters
from ops.health.letters import LetterFacts
from ops.settings import jobs_possible
from producer.keys import Keys
from producer.settings import ProducerSettings, masked
from producer.stages import StageHistogram

_T = TypeVar("_T")
#: What changes slowly, or takes many commands, is read again after this.
_BOOKS_S, _JOBS_S, _EXEMPLARS_S, _LETTERS_S = 5.0, 5.0, 60.0, 60.0
_JOBS_MAX, _EXEMPLARS_MAX, _EXEMPLARS_READ_MAX = 10, 10, 500
#: Times of the stages are of so long; the server keeps them by the minute.
_TIMES_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """The judge's last evaluation.

    Attributes:
        baselines: By model, in words: how far its measure of health is, and of when.
        day: The newest row of the history, with the means of 24 h.
        hour_escalated: Share of the hour up to that row which went to a fallback; None when not known.
    """

    findings: Sequence[Finding] = ()
    baselines: Mapping[str, str] = field(default_factory=dict)
    day: Mapping[str, Any] = field(default_factory=dict)
    hour_escalated: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The service at one moment.

    Attributes:
        facts: As the doctor has them, without what is on this machine.
        consumers: Names of all workers that have read and have not left.
        letters: The newest dead letters.
        judged: What the judge's last evaluation left.
        jobs, exemplars: Newest jobs; the worst scored requests of the last hours. Read now and then.
        undelivered: Ids of alerts with a message that a sink has not taken.
        times: Of the stages, over the last minute or two.
    """

    facts: Facts
    consumers: frozenset[str] = frozenset()
    letters: Sequence[Letter] = ()
    alerts: Sequence[Alert] = ()
    silences: Sequence[Silence] = ()
    judged: Judged = field(default_factory=Judged)
    jobs: Sequence[Mapping[str, Any]] = ()
    exemplars: Sequence[Mapping[str, Any]] = ()
    undelivered: frozenset[str] = frozenset()
    times: Sequence[StageHistogram] = ()

    @property
    def now_ms(self) -> int:
        """The server's clock."""
        return self.facts.now_ms


class Looker:
    """Reads the server; keeps what need not be read again."""

    def __init__(self, client: redis.Redis, settings: ProducerSettings) -> None:
        self._client, self._settings, self._keys = client, settings, Keys(settings.queue)
        self._memory = Memory(client, self._keys)
        self._jobs_seen: dict[str, tuple[float, int]] = {}
        self._kept: dict[str, tuple[Any, float, Any]] = {}

    def look(self) -> Look:
        """Asks the server.

        Raises:
            RedisError, OSError: As the driver, when the server is away.
        """
        client, keys = self._client, self._keys
        about, now_ms = server.read(client, with_limits=False)
        consumers, with_jobs = workers.known(client, keys), jobs_possible(self._settings.url)
        counters, size = read_counters(client, keys), letters.count(client, keys)
        changed = (size, counters.get("dead"))
        newest = self._once("letters", changed, lambda: letters.newest(client, keys), _LETTERS_S)
        facts = Facts(
            url=masked(self._settings.url),
            queue=keys.queue,
            server=about,
            streams=streams.read(client, keys, now_ms),
            workers=workers.read(client, keys, now_ms, consumers),
            letters=LetterFacts.of(size, newest, now_ms),
            counters=counters,
            artifacts={},
            beside=beside.read(client, keys, now_ms, jobs=with_jobs),
            now_ms=now_ms,
        )
        held, ago_ms = silences(client, keys, now_ms), facts.beside.judged_ms_ago
        return Look(
            facts=facts,
            consumers=frozenset(consumers),
            letters=newest,
            # The judge notes a silence at its next turn, within a minute; whoever makes one looks at once.
            alerts=[replace(one, silence=silence_of(one, held, now_ms)) for one in alerts(client, keys)],
            silences=held,
            judged=self._once("judged", ago_ms and now_ms - ago_ms, self._judged),
            undelivered=self._once("undelivered", 0, self._undelivered, _BOOKS_S),
            times=stages.read(client, keys, _TIMES_S, now_ms),
            jobs=self._once("jobs", 0, self._jobs, _JOBS_S) if with_jobs else (),
            exemplars=self._once("exemplars", 0, lambda: self._worst(now_ms), _EXEMPLARS_S),
        )

    def _once(self, name: str, version: object, read: Callable[[], _T], again_s: float = 1e9) -> _T:
        """Reads a part again only when its version is another one, or after a time."""
        known, at_s, value = self._kept.get(name, (None, 0.0, None))
        if name not in self._kept or known != version or time.monotonic() - at_s > again_s:
            value = read()
            self._kept[name] = (version, time.monotonic(), value)
        return cast(_T, value)

    def letter(self, letter_id: str) -> dict[str, Any] | None:
        """Returns one dead letter with its request, as `amn dlq show` has it; None when it is gone."""
        found = DeadLetters(self._client, self._settings).get(letter_id)
        return None if found is None else described(found, server_now_ms(self._client))

    def _judged(self) -> Judged:
        try:
            findings, state = self._memory.findings(), self._memory.state()
        except (ValueError, TypeError, KeyError):  # another version wrote them
            return Judged()
        baselines = {
            model: f"{'frozen' if one.frozen else 'learning'}, {_day(one.learned_block or one.first_block)}"
            for model, one in state.models.items()
            if one.baselines
        }
        rows = history.read(self._client, self._keys, 60)
        return Judged(
            findings=findings,
            baselines=baselines,
            day=rows[-1] if rows else {},
            hour_escalated=history.hour_share(rows, "escalation_rate"),
        )

    def _undelivered(self) -> frozenset[str]:
        try:
            return frozenset(one["alert"] for one in books.read(self._client, self._keys).undelivered())
        except redis.OutOfMemoryError:  # some servers begin no transaction without memory
            return frozenset()

    def _jobs(self) -> list[dict[str, Any]]:
        from ops.jobs import listed  # loads RQ

        rows, now_s = listed(self._client, _JOBS_MAX), time.monotonic()
        for row in rows:
            at_s, done = self._jobs_seen.get(row["id"], (now_s, row["done"]))
            rate = (
                (row["done"] - done) / (now_s - at_s) if now_s > at_s and row["status"] == "started" else 0.0
            )
            row["rate_per_s"] = round(rate, 3) if rate > 0 else None
            row["left_s"] = round((row["rows"] - row["done"]) / rate) if rate > 0 else None
        self._jobs_seen = {row["id"]: (now_s, row["done"]) for row in rows}
        return rows

    def _worst(self, now_ms: int) -> list[dict[str, Any]]:
        from workers.shadow.exemplars import WORST, Exemplars

        hour = now_ms // 3_600_000
        try:
            names = (f"{self._keys.drift_prefix}exemplars:{one}" for one in (hour - 1, hour))
            if sum(self._client.hlen(name) for name in names) > _EXEMPLARS_READ_MAX:
                return []  # megabytes, of many lanes: `amn drift report` shows them
            found = Exemplars(self._client, self._keys).read(hour - 1, hour)
        except (ValueError, redis.ResponseError):
            return []
        shown = ("key", "model", "lane", "slice", "minute", "cosine", "fallback")
        worst = [one for one in found if one.kind == WORST][:_EXEMPLARS_MAX]
        return [{name: getattr(one, name) for name in shown} for one in worst]


def _day(block: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(block * BLOCK_MIN * 60))
