"""From a run's report to what held and what did not, and the table of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from .memory import KEPT
from .settings import KINDS

#: The server's own noise: tables that grew and shrank, consumers of dead workers, buffers.
FLAT_SHARE, FLAT_BYTES = 0.05, 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that must hold."""

    name: str
    held: bool
    text: str


def total(report: dict[str, Any], name: str) -> int:
    """A number summed over the producers."""
    return sum(one[name] for one in report["producers"] if one)


def counted(report: dict[str, Any], prefix: str) -> dict[str, int]:
    """Counts of the producers that begin with `prefix`, summed, without it."""
    found: Counter[str] = Counter()
    for one in report["producers"]:
        for name, count in (one or {"counts": {}})["counts"].items():
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] += count
    return dict(sorted(found.items()))


def checks(report: dict[str, Any]) -> list[Check]:
    """In the order in which a reader would ask."""
    exact = report["settings"]["fsync"] == "always"
    found = [Check(name="producers reported", held=all(report["producers"]), text="each its audit")]
    for name, text in (
        ("lost", "accepted requests without a final answer or failure"),
        ("doubled", "requests with more than one"),
        ("answered_after_cancel", "requests that were taken back and ended all the same"),
        ("unheard", "requests whose end was sent, and never reached the caller"),
        ("unknown", "answers to nothing that was sent"),
        ("wrong", "vectors further than 1e-5 from the direct prediction, or of another model"),
    ):
        number = total(report, name)
        strict = exact or name in ("wrong", "unknown")
        found.append(Check(name=name, held=not number or not strict, text=f"{number} {text}"))
    poison, memory = report["poison"], report["memory"]
    found.append(
        Check(
            name="poison",
            held=not poison["wrong"] and not poison["unsent"],
            text=f"{poison['sent']} sent, {len(poison['wrong'])} did not end as they must",
        )
    )
    others = poison["other_dead_letters"]
    text = f"dead letters of requests that were no poison: {_list(others)}"
    found.append(Check(name="innocents", held=not others, text=text))
    books, victims = report["books"], report["victims"]
    text = f"in = out + waiting, at {len(books['wrong'])} moments not: {books['wrong']}"
    text = (
        text
        if books["wrong"]
        else "in = out + waiting by the server's own counters, at each flush and at the end"
    )
    found.append(Check(name="books balance", held=not books["wrong"], text=text))
    text = f"{victims['unread_finals']} unread answers of {victims['killed']} killed producers, each once"
    found.append(Check(name="killed producers", held=not victims["doubled"], text=text))
    left = report["left_over"]
    found.append(Check(name="empty", held=not left, text=f"left over: {left or 'nothing'}"))
    start, end = memory["before"]["flat"], memory["after"]["flat"]
    slack = max(FLAT_SHARE * start, FLAT_BYTES)
    text = f"{start / 1e6:.2f} MB before, {end / 1e6:.2f} MB after, slack {slack / 1e6:.2f} MB"
    found.append(Check(name="memory flat", held=end - start <= slack, text=text))
    found.append(Check(name="orphans", held=not report["orphans"], text=f"{report['orphans']} processes"))
    return found


def table(report: dict[str, Any], found: list[Check]) -> str:
    """For a terminal, and for the docs."""
    settings, memory, recovery = report["settings"], report["memory"]["after"], report["recovery"]
    faults = report["faults"]
    latency = [one["latency_ms"] for one in report["producers"] if one]
    slowest_ms = max((one["max"] for one in latency), default=0.0)
    doubtful, ended = total(report, "doubtful"), total(report, "doubtful_ended")
    rows = [
        ("seed", f"{settings['seed']}"),
        ("time", f"{report['chaos_s']:.0f} s of faults, {report['run_s']:.0f} s in all"),
        ("processes", f"{settings['producers']} producers, {settings['amn']} amn, "
                      f"{settings['fallback']} fallback, {settings['shadow']} shadow workers, "
                      f"lease {settings['lease_ms']} ms, appendfsync {settings['fsync']}"),
        ("faults", f"{sum(faults.get(kind, 0) for kind in KINDS)}"),
        *((f"  {kind}", f"{faults.get(kind, 0)}") for kind in KINDS),
        ("worker restarts", f"{report['worker_restarts']} after a death, {report['worker_swaps']} in turn"),
        ("requests accepted", f"{total(report, 'accepted')}"),
        ("  answered", _list(counted(report, "answered:"))),
        ("  failed", _list(counted(report, "failed:"))),
        ("  cancelled", f"{total(report, 'cancelled')}"),
        ("  degraded", _list(counted(report, "degraded:"))),
        ("submits refused", _list(counted(report, "submit:"))),
        ("never acknowledged", f"{doubtful}, of which {ended} ended all the same"),
        ("taken by a flush", f"{total(report, 'flushed')} without an answer, of "
                             f"{report['books']['flushed']} that waited; "
                             f"{total(report, 'doubled_over_a_flush')} sent again over one and ended twice"),
        ("of killed producers", f"{report['victims']['accepted']} requests"),
        ("shed, fallback full", f"{report['stats'].get('shed:fallback_full', 0)}"),
        ("cancels in doubt", f"{total(report, 'cancel_doubtful')}"),
        ("vectors checked", f"{sum(counted(report, 'vectors_checked').values())}"),
        ("poison", f"{report['poison']['sent']}"),
        ("other dead letters", _list(report["poison"]["other_dead_letters"])),
        ("lost", f"{total(report, 'lost')}"),
        ("doubled", f"{total(report, 'doubled')}"),
        ("latency", f"p50 {max(one['p50'] for one in latency):.0f} ms, "
                    f"p99 {max(one['p99'] for one in latency):.0f} ms, max {slowest_ms:.0f} ms"
                    if latency else "-"),
        ("kills of a lease holder", f"{recovery['kills_with_leases']}, {recovery['recovered']} recovered"),
        ("slowest recovery", f"{recovery['slowest_s']['all']:.2f} s (first entry "
                             f"{recovery['slowest_s']['first']:.2f} s)"),
        ("  without another fault", f"{recovery['slowest_undisturbed_s']['all']:.2f} s, "
                                    f"{recovery['undisturbed']} kills; "
                                    f"{_list(recovery['by_kind_undisturbed_s'])}"),
        ("slowest server restart", f"{max(report['server_restarts_s'], default=0.0):.2f} s"),
        ("memory", f"{report['memory']['before']['used'] / 1e6:.2f} MB before, "
                   f"{report['memory']['after']['used'] / 1e6:.2f} MB after"),
        ("memory kept on purpose", _list({name: f"{size / 1e6:.2f} MB"
                                          for name, size in memory["families"].items()
                                          if name in KEPT})),
    ]  # fmt: skip
    lines = [f"{name:<26}{text}" for name, text in rows] + [""]
    lines += [f"{'held' if check.held else 'FAILED':<8}{check.name:<24}{check.text}" for check in found]
    for one in report["producers"]:
        for kind, names in (one or {"named": {}})["named"].items():
            if names:
                lines.append(f"{kind}: {', '.join(names)}")
    lines += [f"poison: {text}" for text in report["poison"]["wrong"][:20]]
    return "\n".join(lines)


def _list(counts: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    return ", ".join(f"{name} {text(value)}" for name, value in counts.items()) or "none"
