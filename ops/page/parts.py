"""The parts of the snapshot that one look gives: streams, workers, dead letters, drift, alerts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ops.alerts.settings import AlertSettings
from ops.deadletters import Letter
from ops.drift.settings import JudgeSettings
from ops.health.backlog import backlogs
from ops.health.beside import SILENT_MS
from ops.health.streams import SERVED
from ops.health.workers import WorkerFacts
from ops.page.findings import is_silent
from ops.page.look import Look
from ops.page.words import told

_NEWEST_LETTERS, _ALERTS_MAX, _GONE_MAX = 20, 50, 200
_DRIFT_RULES = ("ood_delta", "fast_drop", "level")
_UNJUDGED = {
    True: "No judge has ever judged here",
    False: "Nothing was sampled yet, so that nothing is judged",
}


def streams(look: Look) -> list[dict[str, Any]]:
    """The streams that workers read, in the order of service."""
    waits = backlogs(look.facts.streams, look.facts.workers)
    return [
        {
            "kind": kind,
            "level": name.partition(":")[2] or "normal",
            **asdict(look.facts.streams[name]),
            "backlog_s": waits[name].backlog_s,
        }
        for kind, names in SERVED.items()
        for name in names
        if name != "truths"
    ]


def workers(look: Look) -> list[dict[str, Any]]:
    """The workers that live, and the names of those that left without a word."""
    alive = [{**asdict(one), "state": _state(one)} for one in look.facts.workers]
    gone = sorted(look.consumers - {one.name for one in look.facts.workers})[:_GONE_MAX]
    return alive + [{"name": name, "kind": name.partition("-")[0], "state": "gone"} for name in gone]


def _state(one: WorkerFacts) -> str:
    if one.stuck or is_silent(one):
        return "stuck"
    return "working" if one.ended_per_s else "idle"


def _shown(one: object, *names: str) -> dict[str, Any]:
    return {name: getattr(one, name) for name in names}


def dead(look: Look) -> dict[str, Any]:
    """The dead letters: how many are kept, groups of the newest hundred, and the newest."""
    groups: dict[tuple[str, str], list[int]] = {}
    for one in look.letters:
        groups.setdefault((one.reason, kind_of(one)), []).append(one.died_at_ms)
    return {
        "count": look.facts.letters.entries,
        "grouped": len(look.letters),
        "groups": [
            {"reason": reason, "kind": kind, "count": len(times), "newest_ms": max(times)}
            for (reason, kind), times in sorted(groups.items(), key=lambda item: -len(item[1]))
        ],
        "newest": [
            {**asdict(one), "kind": kind_of(one), "died_at_ms": one.died_at_ms}
            for one in look.letters[:_NEWEST_LETTERS]
        ],
    }


def kind_of(letter: Letter) -> str:
    """The kind of worker from whose stream a letter came; "" when that is not known."""
    source = letter.source.partition("}:")[2]
    return next((kind for kind, names in SERVED.items() if source in names), "")


def judging(look: Look) -> bool:
    """True if a judge is at work."""
    ms_ago = look.facts.beside.judged_ms_ago
    return ms_ago is not None and ms_ago <= SILENT_MS


def drift(look: Look) -> dict[str, Any]:
    """The judge's last verdict on the model that is sampled most, and its numbers of 24 h."""
    whole = [one for one in look.judged.findings if one.rule == "ood_delta" and not one.lane]
    main = max(whole, key=lambda one: float(one.values.get("n_id", 0)), default=None)
    firing = [one for one in look.judged.findings if one.state == "firing" and one.rule in _DRIFT_RULES]
    said = min(firing, key=lambda one: one.severity != "page", default=main)
    judged_ms_ago = look.facts.beside.judged_ms_ago
    values: Mapping[str, Any] = main.values if main is not None else {}
    return {
        "verdict": _UNJUDGED[judged_ms_ago is None] if said is None else said.summary,
        "state": "insufficient" if said is None else said.state,
        "judged_ms_ago": judged_ms_ago,
        "judging": judging(look),
        "model": None if main is None else main.model,
        "delta": look.judged.day.get("delta"),
        "baseline_delta": values.get("delta_expected"),
        "drop": values.get("drop"),
        "drop_low": values.get("drop_low_99"),
        "drop_high": values.get("drop_high_99"),
        "threshold": JudgeSettings().drop_page,
        "means": _means(look.judged.day),
        "rules": [
            _shown(one, "rule", "lane", "model", "state", "summary")
            for one in look.judged.findings
            if one.model
        ],
        "exemplars": list(look.exemplars),
    }


_SLICES = (("in distribution", "id"), ("out of distribution", "ood"))
#: Half the width of a 95 % interval, in standard errors.
_WIDTH_SE = 1.96


def _means(day: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The means of the last day's scores, with their intervals, as far as there are any."""
    rows = []
    for name, short in _SLICES:
        mean, error = day.get(f"mean_{short}"), day.get(f"mean_{short}_error")
        if mean is not None and error is not None:
            low, high = round(mean - _WIDTH_SE * error, 6), round(mean + _WIDTH_SE * error, 6)
            n = round(day.get(f"n_{short}") or 0)
            rows.append({"slice": name, "mean": mean, "low": low, "high": high, "n": n})
    return rows


def alerts(look: Look, settings: AlertSettings) -> list[dict[str, Any]]:
    """The alerts that are not at rest; one that a sink has not taken yet is undelivered."""
    found = []
    for one in [one for one in look.alerts if one.phase != "ok"][:_ALERTS_MAX]:
        state: str = one.phase
        if one.phase == "firing" and (one.silence or one.id in look.undelivered):
            state = "silenced" if one.silence else "undelivered"
        row = _shown(one, "id", "rule", "model", "lane", "severity", "since_ms", "summary", "silence")
        link = settings.runbook(one.runbook)
        found.append(row | {"state": state, "told": told(one.rule), "runbook_link": link})
    return found


def silences(look: Look) -> list[dict[str, Any]]:
    """The silences in force, with what each holds back."""
    rules = {one.id: one.rule for one in look.alerts}
    rows = []
    for one in look.silences:
        named = {"rule": one.rule, "model": one.model, "lane": one.lane}
        names = " ".join(f"{name} {value}" for name, value in named.items() if value)
        what = f"alert {rules.get(one.alert, one.alert[:8])}" if one.alert else names
        rows.append({"what": what, **_shown(one, "id", "until_ms", "reason", "author")})
    return rows


def in_force(look: Look) -> dict[str, Any]:
    """The ids that most AMN workers serve and decide by, and the judge's measure of health for that model."""
    amn = [one for one in look.facts.workers if one.kind == "amn"]
    found: dict[str, Any] = {}
    for name in ("model", "bank", "policy", "calibration"):
        said = Counter(text for one in amn if (text := getattr(one, name))).most_common(1)
        found[name] = said[0][0] if said else None
    return found | {"baseline": look.judged.baselines.get(found["model"])}
