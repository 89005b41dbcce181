"""The summary of a run: plain values for scripts, and tables of them for people."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.text import Text

from ops.console import DataTable, styled
from ops.drift.service.objectives import FALLBACK_RATE_MAX
from ops.run.record import RunRecord
from ops.sample import Sample
from ops.settings import cores
from producer.stages import END_TO_END
from workers.shadow.settings import SLOW_MS

_PERCENTILES = {"p50": 50, "p95": 95, "p99": 99}
_COSINES = {
    "amn": "AMN",
    "final": "final answers",
    "amn_escalated": "of the escalated requests: AMN",
    "fallback": "of the escalated requests: fallback",
    "context_mean": "baseline: mean of the context",
    "last_vector": "baseline: last vector",
}


def summarize(record: RunRecord, sample: Sample, **around: Any) -> dict[str, Any]:
    """The object of `amn run --json`; `around` gives the values that the answers do not tell.

    `answered` counts requests with exactly one final answer, `failed` those with a named failure or with
    none within 30 s, `duplicates` final answers that came a second time or to nobody, `lost_leases` the
    finishes that were refused because another worker held the request by then. `latency_ms` is that of AMN
    answers, provisional ones of escalated requests included, from enqueue to received. `cosine` holds means
    to the true next vector: of AMN where it answered, of the final answers, of AMN and of the fallback
    where the fallback answered, and of the two baselines on all requests. `ood_delta` is AMN's mean on the
    unseen domain minus that on known ones. `stages_ms` are the times of the stages, as the workers counted
    them.
    """
    latency, fallback_rate = percentiles(record.amn_ms), float(record.escalated.mean())
    return {
        "requests": record.requests,
        "answered": record.answered,
        "failed": record.failed,
        "escalated": int(record.escalated.sum()),
        "shadowed": around["shadowed"],
        "latency_ms": latency,
        "latency_ms_fallback": percentiles(record.fallback_ms),
        "throughput_per_s": round(record.answered / max(record.elapsed_s, 1e-9), 1),
        "reasons": record.named("reasons"),
        "cosine": _cosine(record, sample),
        "fallback_rate": round(fallback_rate, 4),
        "ood_delta": _ood_delta(record, sample),
        **{name: around[name] for name in ("duplicates", "lost_leases")},
        "shed": record.named("shed"),
        "degraded": record.named("degraded"),
        "failures": record.named("codes"),
        "send_lag_ms": percentiles(record.send_lag_ms),
        **{name: around[name] for name in ("stages_ms", "warm_up", "worker_restarts")},
        "objectives": {
            "latency_ms_p95": latency["p95"] is not None and latency["p95"] <= SLOW_MS,
            "fallback_rate": fallback_rate <= FALLBACK_RATE_MAX,
        },
        "environment": around["environment"],
    }


def _cosine(record: RunRecord, sample: Sample) -> dict[str, float | None]:
    escalated = record.cosine_amn[~np.isnan(record.cosine_fallback)]
    means = map(mean, (record.cosine_amn, record.cosine_final, escalated, record.cosine_fallback))
    baselines = (round(each, 4) for each in sample.baselines(record.requests))
    return dict(zip(_COSINES, (*means, *baselines), strict=True))


def _ood_delta(record: RunRecord, sample: Sample) -> float | None:
    ood = sample.ood[np.arange(record.requests) % len(sample)]
    outside, inside = mean(record.cosine_amn[ood]), mean(record.cosine_amn[~ood])
    return None if outside is None or inside is None else round(outside - inside, 4)


def exactly_once(summary: dict[str, Any]) -> bool:
    """True if every request got one final answer, and none a second."""
    return summary["answered"] == summary["requests"] and not summary["failed"] and not summary["duplicates"]


def percentiles(values: NDArray[np.float32]) -> dict[str, float | None]:
    """p50, p95 and p99 of what is not NaN; None for each when nothing is."""
    present = values[~np.isnan(values)]
    if not len(present):
        return dict.fromkeys(_PERCENTILES)
    return {name: round(float(np.percentile(present, q)), 3) for name, q in _PERCENTILES.items()}


def mean(values: NDArray[np.float32]) -> float | None:
    """Mean of what is not NaN, or None."""
    present = values[~np.isnan(values)]
    return round(float(present.mean(dtype=np.float64)), 4) if len(present) else None


def environment(server: str, workers: dict[str, int], rate: float) -> dict[str, Any]:
    """Returns the facts that a reader must know to compare two runs."""
    return {
        "server": server,
        "workers": workers,
        "rate_per_s": rate,
        "cores": cores(),
        "platform": platform.platform(terse=True),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "clock": "producer's perf_counter, enqueue to received",
    }


def view(summary: dict[str, Any]) -> RenderableType:
    """The verdict, and small tables."""
    draw = (_verdict, _answers, _latency, _stages, _cosines, _objectives)
    around = summary["environment"]
    workers = ", ".join(f"{count} {kind}" for kind, count in around["workers"].items() if count)
    rate = f"{around['rate_per_s']:g} requests per second" if around["rate_per_s"] else "as fast as it went"
    where = (
        f"{around['server']}; workers: {workers or 'those that ran already'}; {around['cores']} cores; "
        f"{rate}, after {summary['warm_up']} to warm up"
    )
    parts: list[RenderableType] = []
    for each in draw:
        parts += (each(summary), "")
    return Group(*parts, Text(where, style="dim"))


def _verdict(summary: dict[str, Any]) -> Text:
    if exactly_once(summary):
        return styled(
            f"Every one of {summary['requests']:,} requests was answered exactly once, "
            f"{summary['throughput_per_s']:,.0f} predictions per second.",
            "bold green",
        )
    return styled(
        f"{summary['answered']:,} of {summary['requests']:,} requests were answered, {summary['failed']:,} "
        f"failed, {summary['duplicates']:,} answers came twice or to nobody.",
        "bold red",
    )


def _answers(summary: dict[str, Any]) -> DataTable:
    def counts(name: str, text: str, style: str) -> list[tuple[str, int, str]]:
        return [(text.format(one), count, style) for one, count in summary[name].items()]

    table = _table("Answers", "requests", "share")
    for name, count, style in (
        ("answered", summary["answered"], ""),
        ("escalated to the fallback", summary["escalated"], ""),
        *counts("reasons", "  because of {}", "dim"),
        *counts("shed", "flagged, but kept at AMN: {}", ""),
        *counts("degraded", "got AMN's answer after all: {}", "yellow"),
        ("sampled for the shadow worker", summary["shadowed"], ""),
        ("failed", summary["failed"], "red" if summary["failed"] else ""),
        *counts("failures", "  {}", "red"),
    ):
        table.add_row(name, count, f"{count / summary['requests']:.1%}", style=style)
    if summary["worker_restarts"]:
        table.add_row("workers replaced", summary["worker_restarts"], "")
    return table


def _latency(summary: dict[str, Any]) -> DataTable:
    table = _table("Milliseconds from enqueue to received", *_PERCENTILES)
    table.add_row("AMN answers", *_shown(summary["latency_ms"].values()))
    table.add_row("fallback answers", *_shown(summary["latency_ms_fallback"].values()))
    if summary["environment"]["rate_per_s"]:  # without a rate nothing is due
        lag = _shown(summary["send_lag_ms"].values())
        table.add_row("(requests sent later than due)", *lag, style="dim")
    return table


def _stages(summary: dict[str, Any]) -> DataTable:
    table = _table("Milliseconds in each stage, by the workers", *_PERCENTILES)
    for kind, rows in summary["stages_ms"].items():
        for stage, row in rows.items():
            style = "" if stage == END_TO_END else "dim"
            text = f"{kind}: {stage.replace('_', ' ')}"
            table.add_row(text, *_shown(row[name] for name in _PERCENTILES), style=style)
    return table


def _cosines(summary: dict[str, Any]) -> DataTable:
    table, delta = _table("Cosine to the true next vector", "mean"), summary["ood_delta"]
    for key, name in _COSINES.items():
        style = "dim" if name.startswith("baseline") else ""
        table.add_row(name, *_shown([summary["cosine"][key]], 4), style=style)
    table.add_row("OOD delta (unseen minus known)", None if delta is None else f"{delta:+.4f}")
    return table


def _objectives(summary: dict[str, Any]) -> DataTable:
    table, (p95,) = _table("Objectives", "measured", "at most", ""), _shown([summary["latency_ms"]["p95"]])
    for name, measured, at_most, key in (
        ("p95 of AMN answers (ms)", p95, SLOW_MS, "latency_ms_p95"),
        ("fallback rate", f"{summary['fallback_rate']:.1%}", f"{FALLBACK_RATE_MAX:.0%}", "fallback_rate"),
    ):
        kept = styled("kept", "green") if summary["objectives"][key] else styled("missed", "red")
        table.add_row(name, measured, at_most, kept)
    return table


def _table(title: str, *columns: str) -> DataTable:
    table = DataTable(title=title, title_justify="left", title_style="bold")
    table.add_column("", min_width=36, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", min_width=9, no_wrap=True)
    return table


def _shown(values: Iterable[float | None], digits: int = 3) -> list[str | None]:
    return [None if value is None else f"{value:,.{digits}f}" for value in values]
