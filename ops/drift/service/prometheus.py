"""Writes ops/deploy/prometheus/amn-rules.yml from the tables: `amn metrics --rules`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from ops.clock import BLOCK_MIN
from ops.drift.service.objectives import OBJECTIVES, Objective
from ops.drift.service.table import CONDITIONS
from ops.drift.settings import JudgeSettings
from ops.health.counters import metric_of

_HEAD = """\
# Alert rules on the metrics of `amn metrics`, for the conditions that the judge and the sender judge.
# Written by `amn metrics --rules` from the judge's own tables: change those, not this file.
#
# Where Prometheus and Alertmanager run, this is the way to be told; `amn alerts run` is for everywhere
# else, and for both at once give it no Alertmanager sink. All but the drift rules are computed here from
# raw metrics, so that they do not depend on the judge. The drift rules take the judge's own verdict: its
# evidence and its latched baselines are no PromQL.
#
# The runbook's address comes from the external label `amn_runbook` of Prometheus, such as
# https://wiki.example.com/amn-runbook; without it, the file docs/runbook.md is named.

groups:
"""
_LINK = "{{ with $externalLabels.amn_runbook }}{{ . }}{{ else }}docs/runbook.md{{ end }}#"
_ON = ", on queue {{ $labels.queue }}"
_SHOWN = {"age": "humanizeDuration", "share": "humanizePercentage", "count": "humanize"}
_VALUE = {name: f"{{{{ $value | {shown} }}}}" for name, shown in _SHOWN.items()}
_SETTINGS = JudgeSettings()
_SERIES = (
    "{{ $labels.rule }} of {{ $labels.model }}{{ with $labels.lane }} in lane {{ . }}{{ end }}: "
    "`amn drift status` says why"
)
_ENCODER = "the inputs of {{ $labels.model }} lie where none lay before: another encoder?"
_TOPICS = "what is asked of {{ $labels.model }} differs from its baseline"
#: Rule, severity and text of the judge's own verdicts, and how long they must fire, minutes.
_VERDICTS = (
    ("ood_delta", "page", _SERIES, 3),
    ("ood_delta", "ticket", _SERIES, 3),
    ("fast_drop", "page", _SERIES, 0),
    ("fast_drop", "ticket", _SERIES, 0),
    ("level", "page", _SERIES, 3),
    ("level", "ticket", _SERIES, 3),
    ("input_drift", "page", _ENCODER, 3),
    ("input_drift", "ticket", _TOPICS, 3),
)
_CANARY, _CHANGE = (
    "a frozen item scores differently with {{ $labels.model }}, by ",
    "amn_canary_change_cosine",
)
#: One from the future is of before a clock went back.
_SILENT = "abs(time() - ({} > 0)) > 180"


def rules_file() -> str:
    """The whole file."""
    groups = {
        "amn-ratios": _ratios(),
        "amn-objectives": _objectives(),
        "amn-service": _service(),
        "amn-drift": _drift(),
        "amn-monitoring": _monitoring(),
    }
    texts = (f"  - name: {name}\n    rules:\n{''.join(rules)}" for name, rules in groups.items())
    return _HEAD + "\n".join(texts)


def _alert(rule: str, severity: str, expr: str, summary: str, minutes: int, *, keep: bool = True) -> str:
    name = "Amn" + "".join(word.capitalize() for word in rule.split("_"))
    kept = "        keep_firing_for: 30m\n" if keep else ""
    return (
        f"      - alert: {name}\n        expr: |\n{_indented(expr)}        for: {minutes}m\n{kept}"
        f"        labels:\n          severity: {severity}\n          rule: {rule}\n"
        f"        annotations:\n          summary: '{summary}'\n          runbook_url: '{_LINK}{rule}'\n"
    )


def _indented(expr: str) -> str:
    return "".join(f"          {line}\n" for line in expr.splitlines())


def _windows(objectives: Iterable[Objective]) -> set[int]:
    """Their lengths in blocks of five minutes."""
    return {n for one in objectives for burn in one.burns for n in (burn.long_blocks, burn.short_blocks)}


def _ratio(one: Objective, blocks: int) -> str:
    return f"amn:{one.short}:ratio{_span(blocks)}"


def _span(blocks: int) -> str:
    minutes = BLOCK_MIN * blocks
    sizes = ((1440, "d"), (60, "h"), (1, "m"))
    return next(f"{minutes // size}{unit}" for size, unit in sizes if minutes % size == 0)


def _sum(fields: Iterable[str], span: str) -> str:
    parts = (
        f"{'-' if field.startswith('-') else '+'} "
        f"sum by (queue) (increase({metric_of(field.removeprefix('-'))}[{span}]))"
        for field in fields
    )
    return " ".join(parts).removeprefix("+ ")


def _ratios() -> Iterator[str]:
    for blocks in sorted(_windows(OBJECTIVES)):
        span = _span(blocks)
        for one in OBJECTIVES:
            if blocks in _windows([one]):
                expr = (
                    f"(\n  ({_sum(one.bad, span)})\n"
                    f"  / (({_sum(one.of, span)}) >= {_SETTINGS.events_min})\n"
                    f") and sum by (queue) (amn_requests_answered_total offset {span})"
                )
                yield f"      - record: {_ratio(one, blocks)}\n        expr: |\n{_indented(expr)}"


def _objectives() -> Iterator[str]:
    for one in OBJECTIVES:
        for severity, burns in groupby(one.burns, lambda burn: burn.severity):
            pairs = [((b.long_blocks, b.short_blocks), f"{b.rate * one.budget:g}") for b in burns]
            parts = (" and ".join(f"{_ratio(one, n)} > {bar}" for n in both) for both, bar in pairs)
            expr = "\nor ".join(f"({part})" for part in parts)
            yield _alert(one.rule, severity, expr, f"{_VALUE['share']} {one.what}{_ON}", 3)


def _service() -> Iterator[str]:
    for (rule, severity), found in groupby(CONDITIONS, lambda row: (row.rule, row.severity)):
        rows = list(found)
        expr = "\nor ".join(f"({row.number.series}) > {row.above:g}" for row in rows)
        # Only `no_worker` has conditions of one severity, and their number does not say which.
        text = rows[0].says.format(**_VALUE) if len(rows) == 1 else "nobody works on what waits"
        yield _alert(rule, severity, expr, text + _ON, rows[0].minutes)


def _drift() -> Iterator[str]:
    for rule, severity, text, minutes in _VERDICTS:
        fires = f'amn_rule_firing{{rule="{rule}", severity="{severity}"}} == 1'
        yield _alert(rule, severity, fires, text, minutes)
    page, ticket, text = _SETTINGS.canary_page, _SETTINGS.canary_ticket, _CANARY + _VALUE["count"]
    yield _alert("canary", "page", f"{_CHANGE} > {page:g}", text, 3)
    yield _alert("canary", "ticket", f"{_CHANGE} > {ticket:g} and {_CHANGE} <= {page:g}", text, 3)


def _monitoring() -> Iterator[str]:
    sampling = "amn_shadow_sampling_ratio"
    health = (
        f"({sampling} < {_SETTINGS.sample_min * 0.9:g} or {sampling} > {_SETTINGS.sample_max * 1.1:g})\n"
        f'or amn_drift_coverage_ratio{{lane=""}} < {_SETTINGS.coverage_min:g}\n'
        f'or amn_stream_oldest_age_seconds{{stream="shadow"}} > {_SETTINGS.lag_ticket_ms // 1000}'
    )
    what = "the monitoring does not see what it should; `amn drift status` says why"
    yield _alert("monitor_health", "ticket", health, what + _ON, 10)
    silent = _SILENT.format("amn_judge_last_evaluation_timestamp_seconds")
    what = f"no judge for {_VALUE['age']}; nothing is judged"
    yield _alert("judge_dead", "ticket", silent, what + _ON, 2, keep=False)
    late = "max by (queue) (amn_alerts_oldest_undelivered_age_seconds) > 900\nor amn_alerts_dead_messages > 0"
    what = "a sink does not take its messages; `amn alerts list` says which"
    yield _alert("delivery_failed", "ticket", late, what + _ON, 1, keep=False)
    silent = _SILENT.format("amn_alerts_sender_last_look_timestamp_seconds")
    yield _alert(
        "sender_dead", "ticket", silent, f"no sender of alerts for {_VALUE['age']}{_ON}", 2, keep=False
    )
    what = "the server of the queue does not answer, or `amn metrics` is not scraped"
    yield _alert("server_down", "page", "amn_server_up == 0 or absent(amn_server_up)", what, 2, keep=False)
