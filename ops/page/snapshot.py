"""The snapshot that the page shows, as plain values: one object of JSON, made of looks at the server.

What is not known is null: rates before the second look, and what no process has measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from amn.output import strict_json
from ops import stages
from ops.alerts.settings import AlertSettings
from ops.drift.service.history import COUNTERS
from ops.drift.service.objectives import FALLBACK_RATE_MAX
from ops.page import findings, parts
from ops.page.look import Look
from ops.page.rates import Readings
from producer.errors import ServerError
from producer.settings import ProducerSettings
from producer.stages import END_TO_END
from workers.shadow.settings import SLOW_MS

VERSION = 1
_TRAFFIC = ("submitted", "answered", "failed", "expired", "refused")


class Snapshots:
    """Makes one snapshot after the other.

    Args:
        look: Asks the server; raises `ServerError` while it is away.
        actions: True if the page may change something.
    """

    def __init__(
        self, settings: ProducerSettings, look: Callable[[], Look], *, actions: bool = False
    ) -> None:
        self._look = look
        limits = {"entries_max": settings.entries_max, "bytes_max": settings.bytes_max}
        self._head = {
            "version": VERSION,
            "queue": settings.queue,
            "actions": actions,
            "queue_limits": limits,
        }
        self._settings = AlertSettings.from_environment()
        self._known, self._readings = findings.Known(), Readings()
        self._away_since_s: float | None = None

    def make(self) -> bytes:
        """Looks, and returns the snapshot as JSON; that the server is away is a snapshot too."""
        try:
            body = self._of(self._look())
            self._away_since_s = None
        except ServerError as error:
            body = self._of_nothing(error)
        return strict_json(self._head | body, compact=True).encode()

    def _of_nothing(self, error: ServerError) -> dict[str, Any]:
        now_s = time.time()
        self._away_since_s = self._away_since_s or now_s
        self._readings.clear()
        verdict = findings.away(int(self._away_since_s * 1000), error, self._settings)
        return {"made_ms": int(now_s * 1000), "reachable": False, "verdict": verdict, "findings": []}

    def _of(self, look: Look) -> dict[str, Any]:
        rates = self._readings.add(look.now_ms, look.facts.counters)
        shown = stages.shown(look.times)
        whole_ways = {kind: times.pop(END_TO_END, {}) for kind, times in shown.items()}
        whole_way = whole_ways.get("amn", {})  # of what somebody waits for
        found = findings.find(look, rates("refused:high", "refused:normal"), self._known)
        return {
            "made_ms": look.now_ms,
            "reachable": True,
            "verdict": findings.verdict(found, look, self._settings),
            "findings": [asdict(one) for one in found],
            "traffic": {f"{name}_per_s": rates(*COUNTERS[name]) for name in _TRAFFIC},
            "latency": {
                **{f"{name}_ms": whole_way.get(name) for name in stages.STATISTICS},
                "n": whole_way.get("requests", 0),
                "objective_p95_ms": SLOW_MS,
                "slow_share": rates.share(COUNTERS["slow"], COUNTERS["timed"]),
            },
            "stages": shown,
            "escalation": {
                "rate": rates.share(COUNTERS["escalated"], COUNTERS["decided"]),
                # While no judge writes rows, the last ones are of another hour.
                "hour_rate": look.judged.hour_escalated if parts.judging(look) else None,
                "limit": FALLBACK_RATE_MAX,
                "by_reason": rates.parts("reason:"),
                "shed_by_reason": rates.parts("shed:"),
            },
            "streams": parts.streams(look),
            "workers": parts.workers(look),
            "dead": parts.dead(look),
            "drift": parts.drift(look),
            "alerts": parts.alerts(look, self._settings),
            "silences": parts.silences(look),
            "jobs": sorted(look.jobs, key=lambda job: job["status"] != "started"),
            "in_force": parts.in_force(look),
        }
