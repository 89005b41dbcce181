"""The snapshot that the page shows, as plain values: one object of JSON, made of looks at the server.

What is not known is null: rates before the second look, and what no process has measured.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from amn.output import strict_json
from ops.alerts.settings import AlertSettings
from ops.health.streams import StreamFacts
from ops.health.workers import WorkerFacts
from ops.page import findings
from ops.page.look import Look
from producer.errors import ServerError

VERSION = 1
#: CounterRates are of so long; older counters are of another visit.
_RATES_MS, _RATES_MS_MAX = 5_000, 60_000
_NEWEST_LETTERS, _ALERTS_MAX, _CONSUMERS_MAX = 20, 50, 200
_OBJECTIVE_P95_MS, _ESCALATED_MAX, _DELTA_DROP_MAX = 1.2, 0.2, 0.03
#: By stream: the kind of worker that reads it, and its level.
_STREAMS = {
    "requests:high": ("amn", "high"),
    "requests": ("amn", "normal"),
    "requests:low": ("amn", "low"),
    "fallback": ("fallback", "normal"),
    "fallback:secondary": ("fallback", "secondary"),
    "shadow": ("shadow", "normal"),
}
_EXPIRED = "failed:deadline_exceeded"


_UNJUDGED = {
    True: "no judge has ever judged here",
    False: "nothing was sampled yet, so that nothing is judged",
}


class Snapshots:
    """Makes one snapshot after the other.

    Args:
        look: Asks the server; raises `ServerError` while it is away.
    """

    def __init__(self, queue: str, look: Callable[[], Look], *, actions: bool = False) -> None:
        self._queue, self._look, self._actions = queue, look, actions
        self._settings = AlertSettings.from_environment()
        self._memory = findings.Known()
        self._past: deque[tuple[int, Mapping[str, int]]] = deque(maxlen=int(_RATES_MS / 1000) + 2)
        self._finished: dict[str, int] = {}
        self._away_since_s: float | None = None

    def make(self) -> bytes:
        """Looks, and returns the snapshot as JSON; that the server is away is a snapshot too."""
        try:
            body = self._of(self._look())
            self._away_since_s = None
        except ServerError as error:
            body = self._of_nothing(error)
        head = {"version": VERSION, "queue": self._queue, "actions": self._actions}
        return strict_json(head | body, compact=True).encode()

    def _of_nothing(self, error: ServerError) -> dict[str, Any]:
        now_s = time.time()
        self._away_since_s = self._away_since_s or now_s
        self._past.clear()
        since_ms, for_ms = int(self._away_since_s * 1000), int((now_s - self._away_since_s) * 1000)
        verdict = findings.away(since_ms, for_ms, str(error))
        return {"made_ms": int(now_s * 1000), "reachable": False, "verdict": verdict, "findings": []}

    def _of(self, look: Look) -> dict[str, Any]:
        rates = self._rates(look)
        found = findings.find(look, {"refused": rates("refused:")}, self._memory)
        body = {
            "made_ms": look.now_ms,
            "reachable": True,
            "verdict": findings.verdict(found, look, self._settings),
            "findings": [asdict(one) for one in found],
            "traffic": {
                "submitted_per_s": rates("accepted:"),
                "answered_per_s": rates("answered"),
                "failed_per_s": rates("failed"),
                "expired_per_s": rates(_EXPIRED),
                "refused_per_s": rates("refused:"),
            },
            "latency": dict.fromkeys(("p50_ms", "p95_ms", "p99_ms")) | _slow(rates),
            "stages": [],
            "escalation": _escalation(rates),
            "streams": [
                _stream(name, one, rates) for name, one in look.facts.streams.items() if name in _STREAMS
            ],
            "workers": self._workers(look),
            "dead": _dead(look),
            "drift": _drift(look),
            "alerts": _alerts(look),
            "silences": [asdict(one) for one in look.silences],
            "jobs": [_job(row) for row in look.jobs],
            "in_force": _in_force(look),
        }
        self._finished = {one.name: one.finished for one in look.facts.workers}
        return body

    def _rates(self, look: Look) -> CounterRates:
        now_ms, past = look.now_ms, self._past
        while past and not 0 < now_ms - past[0][0] < _RATES_MS_MAX:  # another visit, or the clock stepped
            past.popleft()
        while len(past) > 1 and now_ms - past[1][0] >= _RATES_MS:
            past.popleft()
        then = past[0] if past else None
        past.append((now_ms, look.facts.counters))
        return CounterRates(then, now_ms, look.facts.counters)

    def _workers(self, look: Look) -> list[dict[str, Any]]:
        alive = [_worker(one, self._finished.get(one.name, 0)) for one in look.facts.workers]
        gone = sorted(look.consumers - {one.name for one in look.facts.workers})[:_CONSUMERS_MAX]
        return alive + [{"name": name, "kind": name.partition("-")[0], "state": "gone"} for name in gone]


class CounterRates:
    """Events a second between two readings of the counters; None while there is one reading."""

    def __init__(
        self, then: tuple[int, Mapping[str, int]] | None, now_ms: int, counters: Mapping[str, int]
    ) -> None:
        self.counters = counters
        self._then = then[1] if then else None
        self._for_s = (now_ms - then[0]) / 1000 if then else 0.0

    def __call__(self, name: str) -> float | None:
        """Returns the rate of a counter, or of all those that begin with a name that ends in ":"."""
        if self._then is None:
            return None
        names = [one for one in self.counters if one.startswith(name)] if name.endswith(":") else [name]
        # A counter that fell was set anew: the server was emptied.
        grown = sum(max(self.counters.get(one, 0) - self._then.get(one, 0), 0) for one in names)
        return round(grown / self._for_s, 3)

    def parts(self, prefix: str) -> list[dict[str, Any]]:
        """Returns the rates of the counters below a prefix, the largest first; those at rest are left out."""
        found = {one.removeprefix(prefix): self(one) for one in self.counters if one.startswith(prefix)}
        rows = [{"reason": name, "per_s": rate} for name, rate in found.items() if rate]
        return sorted(rows, key=lambda row: -row["per_s"])


def _share(part: float | None, whole: float | None) -> float | None:
    return None if not whole or part is None else round(part / whole, 5)


def _slow(rates: CounterRates) -> dict[str, Any]:
    return {
        "objective_p95_ms": _OBJECTIVE_P95_MS,
        "slow_share": _share(rates("slow"), rates("timed")),
        "n": None,
    }


def _escalation(rates: CounterRates) -> dict[str, Any]:
    ended = [rates(name) for name in ("answered", "failed", "dead", "batch:extra")]
    whole = None if None in ended else sum(one or 0.0 for one in ended)
    escalated = [rates(name) for name in ("escalated", "batch:extra:escalated")]
    return {
        "rate": _share(None if None in escalated else sum(one or 0.0 for one in escalated), whole),
        "limit": _ESCALATED_MAX,
        "by_reason": rates.parts("reason:"),
        "shed_by_reason": rates.parts("shed:"),
    }


def _stream(name: str, one: StreamFacts, rates: CounterRates) -> dict[str, Any]:
    kind, level = _STREAMS[name]
    return {
        "kind": kind,
        "level": level,
        "partition": 0,
        "depth": one.entries,
        "leased": one.leased,
        "oldest_ms": one.oldest_age_ms,
        "backlog_s": None,
    }


def _worker(one: WorkerFacts, finished_before: int) -> dict[str, Any]:
    state = "working" if one.finished > finished_before else "idle"
    if one.stuck or one.seen_ms_ago > findings.SILENT_MS:
        state = "stuck"
    return {
        "name": one.name,
        "kind": one.kind,
        "host": one.host,
        "pid": one.pid,
        "state": state,
        "beat_ms_ago": one.seen_ms_ago,
        "answered": one.finished,
        "started_ms": one.started_at_ms,
        "model": one.model,
        "bank": one.bank,
    }


def _dead(look: Look) -> dict[str, Any]:
    counts: Counter[tuple[str, str]] = Counter()
    newest: dict[tuple[str, str], int] = {}
    for one in look.letters:
        name = one.reason, _STREAMS.get(one.source.partition("}:")[2], ("?", ""))[0]
        counts[name] += 1
        newest[name] = max(newest.get(name, 0), one.died_at_ms)
    return {
        "count": look.facts.letters.entries,
        "grouped": len(look.letters),  # the newest: the groups are of these
        "groups": [
            {"error_code": reason, "kind": kind, "count": count, "newest_ms": newest[reason, kind]}
            for (reason, kind), count in counts.most_common()
        ],
        "newest": [
            {
                "id": one.id,
                "error_code": one.reason,
                "message": one.message,
                "at_ms": one.died_at_ms,
                "deliveries": one.deliveries,
                "payload_bytes": one.payload_bytes,
            }
            for one in look.letters[:_NEWEST_LETTERS]
        ],
    }


def _drift(look: Look) -> dict[str, Any]:
    judged = [one for one in look.judged if one.rule == "ood_delta" and not one.lane]
    main = max(judged, key=lambda one: one.values.get("n_id", 0), default=None)
    firing = [
        one
        for one in look.judged
        if one.state == "firing" and one.rule in ("ood_delta", "fast_drop", "level")
    ]
    worst = next((one for one in firing if one.severity == "page"), firing[0] if firing else main)
    values = main.values if main is not None else {}
    slices = (("in distribution", "id"), ("out of distribution", "ood"))
    return {
        "verdict": worst.summary if worst is not None else _UNJUDGED[look.facts.beside.judged_ms_ago is None],
        "state": worst.state if worst is not None else "insufficient",
        "judged_ms_ago": look.facts.beside.judged_ms_ago,
        "model": main.model if main is not None else None,
        "delta": values.get("delta"),
        "baseline_delta": values.get("delta_expected"),
        "drop": values.get("drop"),
        "drop_low": values.get("drop_low_99"),
        "drop_high": values.get("drop_high_99"),
        "threshold": _DELTA_DROP_MAX,
        "means": [
            {
                "slice": name,
                "mean": values.get(f"mean_{short}"),
                "low": None,
                "high": None,
                "n": values.get(f"n_{short}"),
            }
            for name, short in slices
            if f"mean_{short}" in values
        ],
        "rules": [
            {
                "rule": one.rule,
                "lane": one.lane,
                "model": one.model,
                "state": one.state,
                "sentence": one.summary,
            }
            for one in look.judged
            if one.model
        ],
        "exemplars": list(look.exemplars),
    }


def _alerts(look: Look) -> list[dict[str, Any]]:
    shown = [one for one in look.alerts if one.phase != "ok"][:_ALERTS_MAX]
    return [
        {
            "id": one.id,
            "name": one.rule,
            "model": one.model,
            "lane": one.lane,
            "severity": one.severity,
            "state": "silenced" if one.silence and one.phase == "firing" else one.phase,
            "since_ms": one.since_ms,
            "sentence": one.summary,
            "silence": one.silence,
        }
        for one in shown
    ]


def _job(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "what": row["description"],
        "state": row["status"],
        "rows_done": row["done"],
        "rows": row["rows"],
        "failed": row["failed"],
        "rate_per_s": None,
        "left_s": None,
        "error": row["error"],
    }


def _in_force(look: Look) -> dict[str, Any]:
    """Names what most AMN workers say that they serve."""
    amn = [one for one in look.facts.workers if one.kind == "amn"]
    names = {"model": [one.model for one in amn], "bank": [one.bank for one in amn]}
    most = {name: Counter(filter(None, said)).most_common(1) for name, said in names.items()}
    found = {name: rows[0][0] if rows else None for name, rows in most.items()}
    return found | dict.fromkeys(("calibration", "policy", "baseline"))
