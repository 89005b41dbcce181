"""Draws a run's summary for a person."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ops.console import DataTable, styled
from ops.run.summary import FALLBACK_RATE_MAX, LATENCY_MS_P95_MAX, RunSummary, shown

_COSINES = {
    "amn": "AMN",
    "fallback": "fallback, on what was escalated",
    "final": "final answers",
    "context_mean": "baseline: mean of the context",
    "last_vector": "baseline: last vector",
}


def view(summary: RunSummary) -> RenderableType:
    """The verdict, and four small tables."""
    tables = (_answers(summary), _latency(summary), _cosines(summary), _objectives(summary))
    return Group(_verdict(summary), *(part for table in tables for part in ("", table)), "", _where(summary))


def _verdict(summary: RunSummary) -> Text:
    if summary.exactly_once:
        return Text(
            f"Every one of {summary.requests:,} requests was answered exactly once, "
            f"{summary.throughput_per_s:,.0f} predictions per second.",
            style="bold green",
        )
    return Text(
        f"{summary.answered:,} of {summary.requests:,} requests were answered, {summary.failed:,} failed, "
        f"{summary.duplicates:,} answers came twice or to nobody.",
        style="bold red",
    )


def _answers(summary: RunSummary) -> DataTable:
    rows = [
        ("answered", summary.answered, ""),
        ("escalated to the fallback", summary.escalated, ""),
        *((f"  because of {reason}", count, "dim") for reason, count in summary.reasons.items()),
        *((f"flagged, but kept at AMN: {why}", count, "") for why, count in summary.shed.items()),
        *((f"got AMN's answer after all: {why}", count, "yellow") for why, count in summary.degraded.items()),
        ("sampled for the shadow worker", summary.shadowed, ""),
        ("failed", summary.failed, "red" if summary.failed else ""),
        *((f"  {code}", count, "red") for code, count in summary.failures.items()),
    ]
    table = _table("Answers", "requests", "share")
    for name, count, style in rows:
        table.add_row(name, count, f"{count / summary.requests:.1%}", style=style)
    if summary.worker_restarts:
        table.add_row("workers replaced", summary.worker_restarts, "")
    return table


def _latency(summary: RunSummary) -> DataTable:
    table = _table("Milliseconds from enqueue to received", "p50", "p95", "p99")
    table.add_row("AMN answers", *map(shown, summary.latency_ms.values()))
    table.add_row("fallback answers", *map(shown, summary.latency_ms_fallback.values()))
    if summary.environment["rate_per_s"]:  # without a rate nothing is due
        lag = map(shown, summary.send_lag_ms.values())
        table.add_row("(requests sent later than due)", *lag, style="dim")
    return table


def _cosines(summary: RunSummary) -> DataTable:
    table = _table("Cosine to the true next vector", "mean")
    for key, name in _COSINES.items():
        style = "dim" if name.startswith("baseline") else ""
        table.add_row(name, shown(summary.cosine[key], 4), style=style)
    delta = summary.ood_delta
    table.add_row("OOD delta (unseen minus known)", None if delta is None else f"{delta:+.4f}")
    return table


def _objectives(summary: RunSummary) -> DataTable:
    table = _table("Objectives", "measured", "at most", "")
    rows = (
        ("p95 of AMN answers (ms)", "latency_ms_p95", shown(summary.latency_ms["p95"]), LATENCY_MS_P95_MAX),
        ("fallback rate", "fallback_rate", f"{summary.fallback_rate:.1%}", f"{FALLBACK_RATE_MAX:.0%}"),
    )
    for name, key, measured, at_most in rows:
        kept = styled("kept", "green") if summary.objectives[key] else styled("missed", "red")
        table.add_row(name, measured, at_most, kept)
    return table


def _table(title: str, *columns: str) -> DataTable:
    table = DataTable(title=title, title_justify="left", title_style="bold")
    table.add_column("", min_width=36, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", min_width=9, no_wrap=True)
    return table


def _where(summary: RunSummary) -> Text:
    around = summary.environment
    workers = ", ".join(f"{count} {kind}" for kind, count in around["workers"].items() if count)
    rate = f"{around['rate_per_s']:g} requests per second" if around["rate_per_s"] else "as fast as it went"
    workers = workers or "those that ran already"
    return Text(
        f"{around['server']}; workers: {workers}; {around['cores']} cores; {rate}, "
        f"after {summary.warm_up} to warm up",
        style="dim",
    )
