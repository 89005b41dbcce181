"""The judge's results as tables, which the terminal and the report share, and as plain values."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import redis

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.console import DataTable, Screen, styled
from ops.drift.measures.blocks import ALL, StandIn, Traffic
from ops.drift.measures.comparison import Comparison
from ops.drift.memory import Memory
from ops.drift.rules.drift_rules import comparison_values
from ops.drift.state import Evaluation
from ops.findings import Finding
from ops.health.beside import SILENT_MS
from producer.keys import Keys
from workers.shadow.exemplars import Exemplar

STAND_INS = {"model": "the fallback's answer", "reference": "the nearest reference"}
#: By the first word of a verdict, or by what a rule says.
STYLES = {"PAGE": "bold red", "TICKET": "yellow", "OK": "bold green"}
STYLES |= {"page": "bold red", "ticket": "yellow", "ok": "green", "insufficient": "dim"}


def one_line(found: Evaluation) -> str:
    """The loudest finding; while nothing fires, the OOD delta of the model that is sampled most."""
    firing = [one for one in found.findings if one.state == "firing" and not one.beside]
    for one in sorted(firing, key=lambda one: one.severity != "page")[:1]:
        more = f" (and {len(firing) - 1} more)" if len(firing) > 1 else ""
        lane = f" in lane {one.lane}" if one.lane else ""
        where = f" of {one.model}{lane}" if one.model else ""
        return f"{one.severity.upper()} {one.rule}{where}: {one.summary}{more}"
    model = found.traffic.main_model()
    seen = found.comparisons.get((model, ALL)) if model else None
    series = ("ood_delta", model, ALL)
    said = next((one.summary for one in found.findings if one.identity == series), "nothing was sampled")
    state = "CANNOT JUDGE YET" if seen is None else "CANNOT JUDGE" if seen.lacks else "OK"
    return f"{state}: {said}"


def stand_ins(found: Evaluation, model: str) -> list[StandIn]:
    """The targets beside the true vector, of the last 24 h."""
    return found.traffic.stand_ins(model, found.traffic.end_block, BLOCKS_PER_DAY)


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
            {"model": model, "tier": one.target, "slice": one.slice, "n": one.n, "mean": one.mean}
            for model in found.traffic.series
            for one in stand_ins(found, model)
        ],
    }


def show(out: Screen, found: Evaluation, evaluated_at_ms: int) -> None:
    """Prints the tables of the series and of the rules, and the verdict last."""
    models = tuple(found.traffic.series)
    for table in (
        series_table(found, *models),
        stand_ins_table(found, *models),
        rules_table(found.findings),
    ):
        if table.row_count:
            out.print(table, "")
    silent_ms = found.now_ms - evaluated_at_ms
    if not 0 <= silent_ms <= SILENT_MS:
        when = f"{silent_ms / 60_000:.0f} min ago" if silent_ms > 0 else "before the server's clock went back"
        since = f"looked {when}" if evaluated_at_ms else "has never looked"
        out.print(styled("judge", "yellow"), f": {since}; `amn up` runs one, or `amn drift judge`\n", sep="")
    line = one_line(found)
    out.print(styled(line, STYLES.get(line.split(":")[0].split()[0], "bold")), soft_wrap=True)


def series_table(found: Evaluation, *models: str) -> DataTable:
    """The 24 h of each lane against its reference, with the change of both means and the drop of D."""
    names = ("m_OOD>", "m_ID>", "D>", "reference D>", "drop>", "99 % CI>", "n OOD>", "n ID>", "truths>")
    return DataTable("last 24 h", *names).filled(
        (lane or f"{model}, all lanes", *_cells(seen))
        for (model, lane), seen in found.comparisons.items()
        if model in models
    )


def _cells(seen: Comparison) -> Iterator[str | None]:
    for text in (
        f"{seen.ood.now:.4f} ({-seen.ood.value:+.4f})",
        f"{seen.inside.now:.4f} ({-seen.inside.value:+.4f})",
        f"{seen.delta.now:+.4f}",
        f"{seen.delta.expected:+.4f}",
        f"{seen.delta.value:+.4f}",
        "{:+.4f} {:+.4f}".format(*seen.delta.interval),
        f"{seen.n_ood:,.0f}",
        f"{seen.n_id:,.0f}",
        f"{seen.coverage:.0%}",
    ):
        yield None if "nan" in text else text


def stand_ins_table(found: Evaluation, *models: str) -> DataTable:
    """AMN against what stands in for the truth."""
    return DataTable("not judged: no truth, but", "slice", "cosine>", "n>").filled(
        (f"{model}, {STAND_INS[one.target]}", one.slice, f"{one.mean:.4f}", one.n)
        for model in models
        for one in stand_ins(found, model)
    )


def rules_table(findings: Iterable[Finding]) -> DataTable:
    """The rules with what each says now."""
    table = DataTable("rule", "lane", "says", "what")
    for one in findings:
        says = one.severity if one.state == "firing" else one.state
        beside = f" (beside {one.beside})" if one.beside else ""
        table.add_row(one.rule, one.lane or "all", styled(says, STYLES[says]), one.summary + beside)
    return table


def exemplars_table(found: Iterable[Exemplar]) -> DataTable:
    """Requests that were kept whole, with their scores."""
    names = ("when (UTC)", "request", "lane", "slice", "kept as", "AMN>", "fallback>", "OOD score>")
    table = DataTable(*names)
    for one in found:
        scores = (None if value is None else f"{value:.4f}" for value in (one.cosine, one.fallback, one.ood))
        table.add_row(_when(60 * one.minute), one.key, one.lane, one.slice, one.kind, *scores)
    return table


def audit_table(entries: Sequence[Mapping[str, Any]]) -> DataTable:
    """Baselines learned, frozen and reset, one row an entry."""
    first = ("what", "model", "who")
    table = DataTable("when (UTC)", *first, "")
    for entry in entries:
        rest = (f"{name} {value}" for name, value in entry.items() if name not in ("at_ms", *first))
        table.add_row(_when(entry["at_ms"] / 1000), *(entry[name] for name in first), ", ".join(rest))
    return table


def _when(at_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at_s))


def deltas(client: redis.Redis, keys: Keys, now_ms: int) -> dict[str, dict[str, float]]:
    """The OOD delta of the last 24 h up to now, by model id, whatever a judge has learned.

    A model without scored requests on both sides has none: no data is not a delta of 0.
    """
    end_block = now_ms // 60_000 // BLOCK_MIN + 1
    blocks = Memory(client, keys).blocks(end_block)[-BLOCKS_PER_DAY:]
    traffic = Traffic.of(end_block - len(blocks), blocks)
    found = {model: traffic.day_values(model) for model in traffic.series}
    return {model: values for model, values in found.items() if "ood_delta" in values}
