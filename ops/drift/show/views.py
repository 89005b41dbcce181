"""The output of `amn drift`: tables for a person, plain values for a program."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import redis

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.console import DataTable, Screen, styled
from ops.drift.lab.paired import Difference
from ops.drift.measures.blocks import ALL, StandIn, Traffic
from ops.drift.measures.comparison import Comparison
from ops.drift.measures.statistics import ID, OOD, means
from ops.drift.memory import Memory
from ops.drift.rules.wording import comparison_values, verdict
from ops.drift.state import Evaluation
from producer.keys import Keys

#: A judge that has not finished an evaluation for this long is not at work.
SILENT_MS = 180_000
#: What stands in for the truth, for a person.
STAND_INS = {"model": "the fallback's answer", "reference": "the nearest reference"}
_VERDICTS = {"PAGE": "bold red", "TICKET": "yellow", "OK": "bold green"}
_STYLES = {"page": "bold red", "ticket": "yellow", "ok": "green", "insufficient": "dim"}


def main_model(found: Evaluation) -> str | None:
    """The model that most of the last day's samples were of."""
    sizes = {model: lanes[ALL][1, :, -288:].sum() for model, lanes in found.traffic.series.items()}
    return max(sizes, key=lambda model: sizes[model]) if sizes else None


def one_line(found: Evaluation) -> str:
    """The verdict."""
    model = main_model(found)
    seen = found.comparisons.get((model, ALL)) if model else None
    return verdict(found.findings, seen)


def status_json(found: Evaluation, evaluated_at_ms: int) -> dict[str, Any]:
    """Plain values: `amn drift status --json`."""
    now_ms = found.now_ms
    return {
        "verdict": one_line(found),
        "evaluated_at_ms": evaluated_at_ms,
        "judge_at_work": 0 <= now_ms - evaluated_at_ms <= SILENT_MS,
        "now_ms": now_ms,
        "findings": [asdict(one) for one in found.findings],
        "series": [
            {"model": model, "lane": lane, **comparison_values(seen)}
            for (model, lane), seen in found.comparisons.items()
        ],
        "models": {
            model: {
                "baseline": "frozen" if known.frozen else ("learning" if known.baselines else "none"),
                "since_block": known.first_block,
                "delta": round(known.baselines[ALL].delta, 6) if ALL in known.baselines else None,
            }
            for model, known in found.state.models.items()
        },
        "not_judged": [
            {"model": model, **asdict(one)}
            for model in found.traffic.series
            for one in stand_ins(found, model)
        ],
    }


def stand_ins(found: Evaluation, model: str) -> list[StandIn]:
    """The tiers beside the true vector, of the last 24 h."""
    return found.traffic.stand_ins(model, found.traffic.end_block, BLOCKS_PER_DAY)


def show(out: Screen, found: Evaluation, evaluated_at_ms: int) -> None:
    """Tables of the series and of the rules, and the verdict last."""
    for table in (_series(found), _tiers(found), _rules(found)):
        if table.row_count:
            out.print(table, "")
    silent_ms = found.now_ms - evaluated_at_ms
    if not 0 <= silent_ms <= SILENT_MS:
        when = f"{silent_ms / 60_000:.0f} min ago" if silent_ms > 0 else "before the server's clock went back"
        since = f"looked {when}" if evaluated_at_ms else "has never looked"
        out.print(styled("judge", "yellow"), f": {since}; `amn up` runs one, or `amn drift judge`\n", sep="")
    line = one_line(found)
    style = {"PAGE": "bold red", "TICKET": "yellow", "OK": "bold green"}.get(
        line.split(":")[0].split()[0], "bold"
    )
    out.print(styled(line, style), soft_wrap=True)


def _series(found: Evaluation) -> DataTable:
    table = DataTable("last 24 h")
    for column in ("m_OOD", "m_ID", "D", "reference D", "drop", "99 % CI", "z", "n OOD", "n ID", "truths"):
        table.add_column(column, justify="right")
    for (model, lane), seen in found.comparisons.items():
        table.add_row(lane or f"{model}, all lanes", *_cells(seen))
    return table


def _tiers(found: Evaluation) -> DataTable:
    table = DataTable("not judged: no truth, but", "slice")
    for column in ("cosine", "n"):
        table.add_column(column, justify="right")
    for model in found.traffic.series:
        for one in stand_ins(found, model):
            table.add_row(f"{model}, {STAND_INS[one.tier]}", one.slice, _number(one.mean), f"{one.n:,}")
    return table


def _cells(seen: Comparison) -> list[str]:
    low, high = seen.delta.interval
    return [
        *(_number(value) for value in (seen.mean_ood, seen.mean_id)),
        *(_number(value, "+.4f") for value in (seen.delta_now, seen.delta_expected, seen.delta.value)),
        f"{low:+.4f} {high:+.4f}",
        _number(seen.delta.z, ".1f"),
        f"{seen.n_ood:,.0f}",
        f"{seen.n_id:,.0f}",
        f"{seen.coverage:.0%}",
    ]


def _number(value: float, form: str = ".4f") -> str:
    return "-" if math.isnan(value) else format(value, form)


def _rules(found: Evaluation) -> DataTable:
    table = DataTable("rule", "lane", "says", "what")
    for one in found.findings:
        says = one.severity if one.state == "firing" else one.state
        table.add_row(one.rule, one.lane or "all", styled(says, _STYLES[says]), one.summary)
    return table


def show_audit(out: Screen, entries: Sequence[Mapping[str, Any]]) -> None:
    """One line an entry."""
    table = DataTable("when (UTC)", "what", "model", "who", "")
    for entry in entries:
        at = datetime.datetime.fromtimestamp(entry["at_ms"] / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M")
        rest = {k: v for k, v in entry.items() if k not in ("at_ms", "what", "model", "who")}
        text = ", ".join(f"{name} {value}" for name, value in rest.items())
        table.add_row(at, entry["what"], entry["model"], entry["who"], text)
    out.print(table)


def show_simulation(out: Screen, rows: Sequence[Mapping[str, Any]]) -> None:
    """False pages and delays, beside those of the card's bare rule."""
    table = DataTable("requests/s")
    for column in (
        "drop",
        "false pages/year",
        "bare rule's",
        "page after (median)",
        "90 %",
        "never",
        "bare rule's",
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{row['rate_per_s']:g}",
            f"{row['drop']:g}",
            f"{row['false_pages_per_year']:.2f}",
            f"{row['false_pages_per_year_naive']:.2f}",
            hours(row["delay_h_median"]),
            hours(row["delay_h_p90"]),
            f"{row['missed']:.0%}",
            f"{hours(row['delay_h_median_naive'])}, never {row['missed_naive']:.0%}",
        )
    out.print(table)
    if rows:
        out.print(
            f"\n{rows[0]['years']:.1f} healthy years a rate; drops are waited for {rows[0]['horizon_h']:g} h"
        )


def replay_json(one: str, other: str, found: Sequence[Difference]) -> dict[str, Any]:
    """Plain values: `amn drift replay --json`."""
    groups = []
    for row in found:
        low, high = (None if math.isnan(value) else round(value, 6) for value in row.interval)
        figures = {"mean": round(row.mean_one, 6), "against": round(row.mean_other, 6)}
        figures |= {"difference": round(row.difference, 6)}
        groups.append({"group": row.group, "n": row.n, **figures, "low_99": low, "high_99": high})
    return {"model": one, "against": other, "groups": groups}


def show_replay(out: Screen, one: str, other: str, found: Sequence[Difference]) -> None:
    """Mean cosines of both models and their paired difference."""
    table = DataTable("sequences")
    for column in ("n", one, other, "difference", "99 % CI"):
        table.add_column(column, justify="right")
    for row in found:
        low, high = row.interval
        interval = "-" if math.isnan(low) else f"{low:+.4f} {high:+.4f}"
        means = (f"{row.mean_one:.4f}", f"{row.mean_other:.4f}", f"{row.difference:+.4f}")
        table.add_row(row.group, f"{row.n:,}", *means, interval)
    out.print(table)


def hours(value: float | None) -> str:
    """Hours, or minutes below one."""
    if value is None:
        return "-"
    return f"{value * 60:.0f} min" if value < 1 else f"{value:.1f} h"


def deltas(client: redis.Redis, keys: Keys, now_ms: int) -> dict[str, dict[str, float]]:
    """The OOD delta of the last 24 h up to now, by model id, whatever a judge has learned.

    A model without scored requests on both sides has none: no data is not a delta of 0.
    """
    end_block = now_ms // 60_000 // BLOCK_MIN + 1
    blocks = Memory(client, keys).blocks(end_block)[-BLOCKS_PER_DAY:]
    traffic = Traffic.of(end_block - len(blocks), blocks)
    found = {}
    for model, series in traffic.series.items():
        seen = means(series[ALL])
        if np.isfinite(seen.delta):
            found[model] = {
                "ood_delta": float(seen.delta),
                "error": float(np.sqrt(seen.delta_variance)),
                "mean_ood": float(seen.mean[OOD]),
                "mean_id": float(seen.mean[ID]),
                "n_ood": float(seen.n[OOD]),
                "n_id": float(seen.n[ID]),
            }
    return found
