"""Draws a run's summary for a person."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from ops.console import DataTable, styled
from ops.run.summary import FALLBACK_RATE_MAX, LATENCY_MS_P95_MAX, RunSummary, shown


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
    table = _table("Answers", "requests", "share")
    total = summary.requests

    def row(name: str, count: int, style: str = "") -> None:
        table.add_row(name, f"{count:,}", f"{count / total:.1%}", style=style)

    row("answered", summary.answered)
    row("escalated to the fallback", summary.escalated)
    for reason, count in summary.reasons.items():
        row(f"  because of {reason}", count, "dim")
    for why, count in summary.shed.items():
        row(f"flagged, but kept at AMN: {why}", count)
    for why, count in summary.degraded.items():
        row(f"got AMN's answer after all: {why}", count, "yellow")
    row("sampled for the shadow worker", summary.shadowed)
    row("failed", summary.failed, "red" if summary.failed else "")
    for code, count in summary.failures.items():
        row(f"  {code}", count, "red")
    if summary.worker_restarts:
        table.add_row("workers replaced", f"{summary.worker_restarts:,}", "")
    return table


def _latency(summary: RunSummary) -> DataTable:
    table = _table("Milliseconds from enqueue to received", "p50", "p95", "p99")
    for name, values, style in (
        ("AMN answers", summary.latency_ms, ""),
        ("fallback answers", summary.latency_ms_fallback, ""),
        ("(requests sent later than due)", summary.send_lag_ms, "dim"),
    ):
        if values is summary.send_lag_ms and not summary.environment["rate_per_s"]:
            continue  # without a rate nothing is due
        table.add_row(name, *(shown(value) for value in values.values()), style=style)
    return table


def _cosines(summary: RunSummary) -> DataTable:
    table = _table("Cosine to the true next vector", "mean")
    names = {
        "amn": "AMN",
        "fallback": "fallback, on what was escalated",
        "final": "final answers",
        "context_mean": "baseline: mean of the context",
        "last_vector": "baseline: last vector",
    }
    for key, name in names.items():
        style = "dim" if name.startswith("baseline") else ""
        table.add_row(name, shown(summary.cosine[key], 4), style=style)
    delta = summary.ood_delta
    table.add_row("OOD delta (unseen minus known)", "-" if delta is None else f"{delta:+.4f}")
    return table


def _objectives(summary: RunSummary) -> DataTable:
    table = _table("Objectives", "measured", "at most", "")
    p95 = shown(summary.latency_ms["p95"])
    kept = summary.objectives
    table.add_row("p95 of AMN answers (ms)", p95, f"{LATENCY_MS_P95_MAX}", _kept(kept["latency_ms_p95"]))
    rate, limit = f"{summary.fallback_rate:.1%}", f"{FALLBACK_RATE_MAX:.0%}"
    table.add_row("fallback rate", rate, limit, _kept(kept["fallback_rate"]))
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


def _kept(kept: bool) -> Text:
    return styled("kept", "green") if kept else styled("missed", "red")
