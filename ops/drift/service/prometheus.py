"""Writes ops/deploy/prometheus/amn-rules.yml from the tables: `amn metrics --rules`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ops.drift.service.objectives import OBJECTIVES, Objective
from ops.drift.service.table import RULES, Rule
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
_SETTINGS = JudgeSettings()
#: Of the drift rules: what is said, and how long they must fire, minutes.
_SERIES = (
    "{{ $labels.rule }} of {{ $labels.model }}{{ with $labels.lane }} in lane {{ . }}{{ end }}: "
    "`amn drift status` says why"
)
_DRIFT = {"ood_delta": (_SERIES, 3), "fast_drop": (_SERIES, 0), "level": (_SERIES, 3)}
_INPUTS = {
    "page": "the inputs of {{ $labels.model }} lie where none lay before: another encoder?",
    "ticket": "what is asked of {{ $labels.model }} differs from its baseline",
}
_CANARY = "a frozen item scores differently with {{ $labels.model }}, by {{ $value | humanize }}"


def rules_file() -> str:
    """The whole file."""
    groups: Mapping[str, Iterable[str]] = {
        "amn-ratios": _ratios(),
        "amn-objectives": _objectives(),
        "amn-service": (line for rule in RULES for line in _service(rule)),
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


def _windows(objectives: Iterable[Objective]) -> list[int]:
    """Their lengths in blocks of five minutes."""
    return sorted(
        {n for one in objectives for burn in one.burns for n in (burn.long_blocks, burn.short_blocks)}
    )


def _span(blocks: int) -> str:
    minutes = 5 * blocks
    for unit, size in (("d", 1440), ("h", 60)):
        if minutes % size == 0:
            return f"{minutes // size}{unit}"
    return f"{minutes}m"


def _sum(fields: Iterable[str], span: str) -> str:
    text = ""
    for field in fields:
        sign = "- " if field.startswith("-") else "+ "
        one = f"sum by (queue) (increase({_ranged(metric_of(field.removeprefix('-')), span)}))"
        text += f" {sign if text else ''}{one}" if text else one
    return text


def _ranged(metric: str, span: str) -> str:
    return f"{metric}[{span}]"


def _ratios() -> Iterator[str]:
    for blocks in _windows(OBJECTIVES):
        span = _span(blocks)
        for one in OBJECTIVES:
            if blocks not in _windows([one]):
                continue
            expr = (
                f"(\n  ({_sum(one.bad, span)})\n"
                f"  / (({_sum(one.of, span)}) >= {_SETTINGS.events_min})\n"
                f") and sum by (queue) (amn_requests_answered_total offset {span})"
            )
            yield f"      - record: amn:{one.short}:ratio{span}\n        expr: |\n{_indented(expr)}"


def _objectives() -> Iterator[str]:
    for one in OBJECTIVES:
        for severity in ("page", "ticket"):
            parts = [
                " and ".join(
                    f"amn:{one.short}:ratio{_span(blocks)} > {burn.rate * one.budget(_SETTINGS):g}"
                    for blocks in (burn.long_blocks, burn.short_blocks)
                )
                for burn in one.burns
                if burn.severity == severity
            ]
            if parts:
                summary = f"{{{{ $value | humanizePercentage }}}} {one.what}{_ON}"
                yield _alert(one.rule, severity, "\nor ".join(f"({part})" for part in parts), summary, 3)


def _service(rule: Rule) -> Iterator[str]:
    by: dict[tuple[str, int], list[str]] = {}
    for one in rule.conditions:
        by.setdefault((one.severity, one.minutes), []).append(f"({one.number.series}) > {one.above:g}")
    for (severity, minutes), found in by.items():
        yield _alert(rule.name, severity, "\nor ".join(found), rule.summary + _ON, minutes)


def _drift() -> Iterator[str]:
    for rule, (summary, minutes) in _DRIFT.items():
        for severity in ("page", "ticket"):
            yield _alert(rule, severity, _fires(rule, severity), summary, minutes)
    for severity, summary in _INPUTS.items():
        yield _alert("input_drift", severity, _fires("input_drift", severity), summary, 3)
    change, page, ticket = "amn_canary_change_cosine", _SETTINGS.canary_page, _SETTINGS.canary_ticket
    yield _alert("canary", "page", f"{change} > {page:g}", _CANARY, 3)
    yield _alert("canary", "ticket", f"{change} > {ticket:g} and {change} <= {page:g}", _CANARY, 3)


def _fires(rule: str, severity: str) -> str:
    return f'amn_rule_firing{{rule="{rule}", severity="{severity}"}} == 1'


def _monitoring() -> Iterator[str]:
    sampling = "amn_shadow_sampling_ratio"
    health = (
        f"({sampling} < {_SETTINGS.sample_min * 0.9:g} or {sampling} > {_SETTINGS.sample_max * 1.1:g})\n"
        f'or amn_drift_coverage_ratio{{lane=""}} < {_SETTINGS.coverage_min:g}\n'
        f'or amn_stream_oldest_age_seconds{{stream="shadow"}} > {_SETTINGS.lag_ticket_ms // 1000}'
    )
    what = "the monitoring does not see what it should; `amn drift status` says why"
    yield _alert("monitor_health", "ticket", health, what + _ON, 10)
    silent = "abs(time() - ({} > 0)) > 180"  # one from the future is of before a clock went back
    lately = "amn_judge_last_evaluation_timestamp_seconds"
    what = "no judge for {{ $value | humanizeDuration }}; nothing is judged"
    yield _alert("judge_dead", "ticket", silent.format(lately), what + _ON, 2, keep=False)
    late = "max by (queue) (amn_alerts_oldest_undelivered_age_seconds) > 900\nor amn_alerts_dead_messages > 0"
    what = "a sink does not take its messages; `amn alerts list` says which"
    yield _alert("delivery_failed", "ticket", late, what + _ON, 1, keep=False)
    what = "no sender of alerts for {{ $value | humanizeDuration }}"
    lately = "amn_alerts_sender_last_look_timestamp_seconds"
    yield _alert("sender_dead", "ticket", silent.format(lately), what + _ON, 2, keep=False)
    what = "the server of the queue does not answer, or `amn metrics` is not scraped"
    yield _alert("server_down", "page", "amn_server_up == 0 or absent(amn_server_up)", what, 2, keep=False)
