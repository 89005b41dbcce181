"""The shipped Prometheus rules: each fires on its trouble, alone, and all are silent without one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.drift.service.objectives import OBJECTIVES
from ops.drift.service.table import CONDITIONS
from ops.drift.settings import JudgeSettings
from ops.health.counters import COUNTS

RULES = Path(__file__).parents[4] / "ops" / "deploy" / "prometheus" / "amn-rules.yml"
Series = dict[str, str]

#: Ten hours, one sample a minute; a series that a case does not name is healthy.
MINUTES = 600
HEALTHY: Series = {
    'amn_server_up{queue="main"}': f"1x{MINUTES}",
    'amn_requests_answered_total{queue="main"}': f"0+6000x{MINUTES}",
    'amn_requests_answered_by_total{queue="main", served_by="amn"}': f"0+5000x{MINUTES}",
    'amn_requests_escalated_total{queue="main"}': f"0+1100x{MINUTES}",
    'amn_requests_slow_total{queue="main"}': f"0+200x{MINUTES}",
    'amn_requests_timed_total{queue="main"}': f"0+5000x{MINUTES}",
    'amn_bulk_requests_total{queue="main"}': f"0+40x{MINUTES}",
    'amn_bulk_requests_escalated_total{queue="main"}': f"0+30x{MINUTES}",
    'amn_batch_contexts_extra_total{queue="main"}': f"0x{MINUTES}",
    'amn_batch_contexts_extra_escalated_total{queue="main"}': f"0x{MINUTES}",
    'amn_bulk_requests_failed_total{queue="main"}': f"0x{MINUTES}",
    'amn_bulk_requests_slow_total{queue="main"}': f"0+1x{MINUTES}",
    'amn_bulk_requests_timed_total{queue="main"}': f"0+40x{MINUTES}",
    'amn_requests_accepted_by_total{queue="main", level="normal"}': f"0+6000x{MINUTES}",
    'amn_requests_refused_by_total{queue="main", level="normal"}': f"0x{MINUTES}",
    'amn_requests_lost{queue="main"}': f"0x{MINUTES}",
    'amn_worker_deaths_total{queue="main", kind="amn"}': f"0x{MINUTES}",
    **{f'amn_workers{{queue="main", kind="{kind}"}}': "2x600" for kind in ("amn", "fallback", "shadow")},
    **{
        f'amn_workers_stuck{{queue="main", kind="{kind}"}}': "0x600" for kind in ("amn", "fallback", "shadow")
    },
    'amn_stream_entries{queue="main", stream="requests"}': f"100x{MINUTES}",
    'amn_stream_payload_bytes{queue="main", stream="requests"}': f"1600000x{MINUTES}",
    'amn_server_persistence_failed{queue="main"}': f"0x{MINUTES}",
    'amn_server_memory_used_bytes{queue="main"}': f"50x{MINUTES}",
    'amn_server_memory_limit_bytes{queue="main"}': f"100x{MINUTES}",
    'amn_requests_failed_total{queue="main"}': f"0+3x{MINUTES}",
    'amn_requests_dead_total{queue="main"}': f"0+1x{MINUTES}",
    'amn_rule_firing{queue="main", rule="ood_delta", severity="page", model="m", lane=""}': f"0x{MINUTES}",
    'amn_rule_firing{queue="main", rule="fast_drop", severity="page", model="m", lane=""}': f"0x{MINUTES}",
    'amn_rule_firing{queue="main", rule="level", severity="page", model="m", lane="a"}': f"0x{MINUTES}",
    'amn_rule_firing{queue="main", rule="input_drift", severity="ticket", model="m", lane=""}': "0x600",
    'amn_canary_change_cosine{queue="main", model="m", lane=""}': f"0.0005x{MINUTES}",
    'amn_shadow_sampling_ratio{queue="main"}': f"0.03x{MINUTES}",
    'amn_drift_coverage_ratio{queue="main", model="m", lane=""}': f"0.97x{MINUTES}",
    'amn_stream_oldest_age_seconds{queue="main", stream="shadow"}': f"2x{MINUTES}",
    'amn_stream_oldest_age_seconds{queue="main", stream="requests"}': f"5x{MINUTES}",
    'amn_stream_oldest_age_seconds{queue="main", stream="requests:low"}': f"900x{MINUTES}",
    'amn_stream_oldest_age_seconds{queue="main", stream="fallback"}': f"5x{MINUTES}",
    'amn_judge_last_evaluation_timestamp_seconds{queue="main"}': f"0+60x{MINUTES}",
    'amn_alerts_dead_messages{queue="main"}': f"0x{MINUTES}",
    'amn_alerts_oldest_undelivered_age_seconds{queue="main", sink="pager"}': f"30x{MINUTES}",
    'amn_alerts_sender_last_look_timestamp_seconds{queue="main"}': f"0+60x{MINUTES}",
}


def series(name: str, values: str, **labels: str) -> Series:
    """`values` in the place of the healthy ones of the only series of this name, with these labels."""
    [key] = [
        key
        for key in HEALTHY
        if key.startswith(name + "{") and all(f'{k}="{v}"' in key for k, v in labels.items())
    ]
    return {key: values}


def nobody(kind: str) -> Series:
    """All workers of a kind are gone after an hour."""
    return series("amn_workers", "2x60 0x300", kind=kind)


def waits(stream: str) -> Series:
    """From the same minute on, what is in the stream waits."""
    return series("amn_stream_oldest_age_seconds", "0x60 0+60x300", stream=stream)


def fires(rule: str, severity: str) -> Series:
    """The judge's verdict from an hour on."""
    lane = "a" if rule == "level" else ""
    key = f'amn_rule_firing{{queue="main", rule="{rule}", severity="{severity}", model="m", lane="{lane}"}}'
    return {key: "0x60 1x200"}


def after(healthy: int, ill: int) -> str:
    """A counter that rises by so much a minute for an hour, and then by so much."""
    return f"0+{healthy}x60 {60 * healthy}+{ill}x200"


EMPTY = series("amn_stream_oldest_age_seconds", "0x600", stream="requests:low")

#: Name: what is ill, the minute at which one looks, who fires.
CASES: dict[str, tuple[Series, int, list[tuple[str, str]]]] = {
    "nothing is ill": ({}, 400, []),
    "fallback page": (
        series("amn_requests_escalated_total", after(1100, 3000)), 130, [("AmnSloFallback", "page")],
    ),
    "a quarter escalated is no page": (series("amn_requests_escalated_total", after(1100, 1700)), 130, []),
    "latency page": (series("amn_requests_slow_total", after(200, 4000)), 130, [("AmnSloLatency", "page")]),
    "a peak of ten minutes is no page": (
        series("amn_requests_slow_total", "0+200x60 12000+4000x10 52000+200x200"), 75, [],
    ),
    "error page": (series("amn_requests_failed_total", after(3, 120)), 130, [("AmnSloError", "page")]),
    "dead letters count as errors": (
        series("amn_requests_dead_total", after(1, 120)),
        130,
        [("AmnSloError", "page"), ("AmnDeadLetters", "page"), ("AmnDeadLetters", "ticket")],
    ),
    "a third escalated for six hours": (
        series("amn_requests_escalated_total", "0+2100x400"), 380, [("AmnSloFallback", "page")],
    ),
    "a third slow for six hours": (
        series("amn_requests_slow_total", "0+1700x400"), 380, [("AmnSloLatency", "page")],
    ),
    "seven in a thousand failed for six hours": (
        series("amn_requests_failed_total", "0+45x400"), 380, [("AmnSloError", "page")],
    ),
    "a window that is not over is not judged": (
        series("amn_requests_escalated_total", f"0+3000x{MINUTES}"), 50, [],
    ),
    "too few requests are no page": (
        {
            **series("amn_requests_answered_total", f"0+6x{MINUTES}"),
            **series("amn_requests_answered_by_total", f"0+6x{MINUTES}"),
            **series("amn_requests_escalated_total", f"0+5x{MINUTES}"),
            **series("amn_requests_slow_total", f"0+6x{MINUTES}"),
            **series("amn_requests_timed_total", f"0+6x{MINUTES}"),
            **series("amn_bulk_requests_total", f"0x{MINUTES}"),
            **series("amn_bulk_requests_escalated_total", f"0x{MINUTES}"),
            **series("amn_bulk_requests_timed_total", f"0x{MINUTES}"),
            **series("amn_bulk_requests_slow_total", f"0x{MINUTES}"),
            **series("amn_requests_failed_total", f"0+1x{MINUTES}"),
            **series("amn_requests_dead_total", f"0x{MINUTES}"),
        },
        130,
        [],
    ),
    "delta page": (fires("ood_delta", "page"), 65, [("AmnOodDelta", "page")]),
    "delta page before three minutes": (fires("ood_delta", "page"), 62, []),
    "delta ticket": (fires("ood_delta", "ticket"), 65, [("AmnOodDelta", "ticket")]),
    "fast page": (fires("fast_drop", "page"), 61, [("AmnFastDrop", "page")]),
    "level page": (fires("level", "page"), 65, [("AmnLevel", "page")]),
    "input drift": (fires("input_drift", "ticket"), 65, [("AmnInputDrift", "ticket")]),
    "another encoder": (fires("input_drift", "page"), 65, [("AmnInputDrift", "page")]),
    "canary page": (series("amn_canary_change_cosine", "0x60 0.02x200"), 65, [("AmnCanary", "page")]),
    "canary ticket": (series("amn_canary_change_cosine", "0x60 0.002x200"), 65, [("AmnCanary", "ticket")]),
    "sampling": (series("amn_shadow_sampling_ratio", "0.2x200"), 60, [("AmnMonitorHealth", "ticket")]),
    "sampled to the full": (series("amn_shadow_sampling_ratio", "0.05x200"), 60, []),
    "coverage": (series("amn_drift_coverage_ratio", "0.7x200"), 60, [("AmnMonitorHealth", "ticket")]),
    "lag": (
        {'amn_stream_oldest_age_seconds{queue="main", stream="shadow"}': "90x200"},
        60,
        [("AmnMonitorHealth", "ticket")],
    ),
    "judge dead": (
        series("amn_judge_last_evaluation_timestamp_seconds", "0+60x60 3600x200"),
        70,
        [("AmnJudgeDead", "ticket")],
    ),
    "no judge ever": (series("amn_judge_last_evaluation_timestamp_seconds", "0x200"), 70, []),
    "sender dead": (
        series("amn_alerts_sender_last_look_timestamp_seconds", "0+60x60 3600x200"),
        70,
        [("AmnSenderDead", "ticket")],
    ),
    "an outage": (
        {**nobody("amn"), **waits("requests")}, 66, [("AmnBacklogAge", "page"), ("AmnNoWorker", "page")],
    ),
    "an outage before two minutes": ({**nobody("amn"), **waits("requests")}, 62, []),
    "a restart is no page": (
        {**series("amn_workers", "2x60 0x1 2x300", kind="amn"), **waits("requests:low")}, 64, [],
    ),
    "nothing waits": ({**nobody("amn"), **EMPTY}, 75, [("AmnNoWorker", "ticket")]),
    "nothing waits yet": ({**nobody("amn"), **EMPTY}, 68, []),
    "all workers are stuck": (
        {**series("amn_workers_stuck", "0x60 2x300", kind="amn"), **waits("requests")},
        66,
        [("AmnBacklogAge", "page"), ("AmnNoWorker", "page")],
    ),
    "no fallback works": (
        {**nobody("fallback"), **waits("fallback")}, 66, [("AmnBacklogAge", "page"), ("AmnNoWorker", "page")],
    ),
    "no fallback is needed": (nobody("fallback"), 90, []),
    "no shadow": (
        {**nobody("shadow"), **waits("shadow")},
        75,
        [("AmnNoWorker", "ticket"), ("AmnMonitorHealth", "ticket")],
    ),
    "bulk work waits for an hour": (waits("requests:low"), 130, [("AmnBacklogAge", "ticket")]),
    "the queue fills": (series("amn_stream_entries", "100x60 81000x300"), 65, [("AmnBacklogSize", "page")]),
    "the queue fills with bytes": (
        series("amn_stream_payload_bytes", "100x60 1800000000x300"), 65, [("AmnBacklogSize", "page")],
    ),
    "refusals": (
        series("amn_requests_refused_by_total", "0x60 0+100x300"), 70, [("AmnRefused", "page")],
    ),
    "few refusals": (series("amn_requests_refused_by_total", "0x60 0+9x300"), 90, []),
    "a crash loop": (series("amn_worker_deaths_total", "0x60 0+1x300"), 70, [("AmnCrashLoop", "ticket")]),
    "a crash loop of all": (
        series("amn_worker_deaths_total", "0x60 0+5x300"),
        72,
        [("AmnCrashLoop", "page"), ("AmnCrashLoop", "ticket")],
    ),
    "three deaths": (series("amn_worker_deaths_total", "0x60 3x300"), 72, []),
    "files cannot be written": (
        series("amn_server_persistence_failed", "0x60 1x300"), 65, [("AmnPersistenceFailed", "page")],
    ),
    "memory": (
        series("amn_server_memory_used_bytes", "50x60 95x300"),
        65,
        [("AmnServerMemory", "page"), ("AmnServerMemory", "ticket")],
    ),
    "some memory": (
        series("amn_server_memory_used_bytes", "50x60 80x300"), 65, [("AmnServerMemory", "ticket")],
    ),
    "dead letters": (
        series("amn_requests_dead_total", "0+1x60 60+5x300"), 75, [("AmnDeadLetters", "ticket")],
    ),
    "requests that are lost": (series("amn_requests_lost", "0x60 3x300"), 65, [("AmnUnanswered", "ticket")]),
    "requests that were lost": (series("amn_requests_lost", "0x60 3x300"), 120, []),
    "bulk work fails": (
        {
            **series("amn_bulk_requests_total", "0+600x600"),
            **series("amn_bulk_requests_failed_total", "0+60x600"),
        },
        450,
        [("AmnSloBulkError", "ticket")],
    ),
    "bulk work is slow": (
        {
            **series("amn_bulk_requests_timed_total", "0+600x600"),
            **series("amn_bulk_requests_slow_total", "0+60x600"),
        },
        450,
        [("AmnSloBulkLatency", "ticket")],
    ),
    "a file that is escalated is no page": (
        {
            **series("amn_requests_escalated_total", after(1100, 5500)),
            **series("amn_bulk_requests_escalated_total", after(30, 4430)),
            **series("amn_bulk_requests_total", after(40, 4440)),
            **series("amn_requests_answered_total", after(6000, 10400)),
        },
        130,
        [],
    ),
    "message given up": (series("amn_alerts_dead_messages", "2x200"), 60, [("AmnDeliveryFailed", "ticket")]),
    "messages late": (
        series("amn_alerts_oldest_undelivered_age_seconds", "1000x200"),
        60,
        [("AmnDeliveryFailed", "ticket")],
    ),
    "server down": (series("amn_server_up", "1x60 0x200"), 65, [("AmnServerDown", "page")]),
    "fires on for half an hour": (
        dict.fromkeys(fires("ood_delta", "page"), "0x60 1x10 0x100"), 95, [("AmnOodDelta", "page")],
    ),
    "and then rests": (dict.fromkeys(fires("ood_delta", "page"), "0x60 1x10 0x100"), 110, []),
}  # fmt: skip

needs_promtool = pytest.mark.needs("promtool")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=100, check=False)


def run(folder: Path, tests: list[dict[str, Any]], every: str = "1m") -> None:
    file = folder / "rules.test.yml"
    document = {"rule_files": [str(RULES)], "evaluation_interval": every, "tests": tests}
    # Ratios first: in whatever order promtool chooses, an alert sees them one evaluation late.
    document["group_eval_order"] = [group["name"] for group in yaml.safe_load(RULES.read_text())["groups"]]
    file.write_text(yaml.safe_dump(document), "utf-8")
    done = promtool("test", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def group(ill: Series, **tests: Any) -> dict[str, Any]:
    merged = {**HEALTHY, **ill}
    return {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in merged.items()],
        **tests,
    }


@needs_promtool
def test_the_rules_are_well_formed() -> None:
    done = promtool("check", "rules", str(RULES))
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("name", CASES)
def test_these_rules_fire_and_no_others(name: str, tmp_path: Path) -> None:
    ill, minute, expected = CASES[name]
    check = {
        "expr": 'count by (alertname, severity) (ALERTS{alertstate="firing"})',
        "eval_time": f"{minute}m",
        "exp_samples": [
            {"labels": f'{{alertname="{alert}", severity="{severity}"}}', "value": 1}
            for alert, severity in expected
        ],
    }
    every = "5m" if minute > 200 else "1m"  # hours are for what changes slowly
    run(tmp_path, [group(ill, promql_expr_test=[check])], every)


@needs_promtool
@pytest.mark.parametrize(
    ("external", "begins"),
    [({}, "docs/runbook.md"), ({"amn_runbook": "https://w.example/x"}, "https://w.example/x")],
)
def test_the_link_leads_to_the_runbook(external: dict[str, str], begins: str, tmp_path: Path) -> None:
    alert = {
        "exp_labels": {"severity": "page", "rule": "level", "queue": "main", "model": "m", "lane": "a"},
        "exp_annotations": {
            "summary": "level of m in lane a: `amn drift status` says why",
            "runbook_url": f"{begins}#level",
        },
    }
    check = {"eval_time": "70m", "alertname": "AmnLevel", "exp_alerts": [alert]}
    run(tmp_path, [group(fires("level", "page"), alert_rule_test=[check], external_labels=external)])


def all_rules() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text("utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def alert_rules() -> list[dict[str, Any]]:
    return [rule for rule in all_rules() if "alert" in rule]


def test_every_rule_names_its_runbook_and_a_case_in_which_it_fires() -> None:
    fired = {pair for _, _, expected in CASES.values() for pair in expected}
    for rule in alert_rules():
        assert rule["annotations"]["runbook_url"].endswith("#" + rule["labels"]["rule"])
        assert rule["annotations"]["summary"]
        pair = (rule["alert"], rule["labels"]["severity"])
        slow = (
            pair[0] in {"AmnSloFallback", "AmnSloLatency", "AmnSloError"} and pair[1] == "ticket"
        )  # three days, below
        unmade = pair in {("AmnFastDrop", "ticket"), ("AmnLevel", "ticket")}  # as AmnOodDelta's
        assert pair in fired or slow or unmade, pair


@needs_promtool
@pytest.mark.parametrize(
    ("name", "field", "ill", "healthy"),
    [
        ("AmnSloFallback", "escalated", 750, 550),
        ("AmnSloLatency", "slow", 200, 120),
        ("AmnSloError", "failed", 5, 2),
    ],
)
def test_a_budget_that_is_burnt_slowly_is_a_ticket_after_days(
    name: str, field: str, ill: float, healthy: float, tmp_path: Path
) -> None:
    """Samples ten minutes apart, over three days and more; of 3,000 requests each."""
    tests = []
    for bad, expected in ((ill, 1), (healthy, 0)):
        given = {
            'amn_server_up{queue="main"}': "1x500",
            'amn_requests_timed_total{queue="main"}': "0+3000x500",
            'amn_workers{queue="main", kind="amn"}': "1x500",
            'amn_workers_stuck{queue="main", kind="amn"}': "0x500",
            **{f'amn_requests_{one}_total{{queue="main"}}': "0x500" for one in ("failed", "dead")},
            **{
                f'amn_bulk_requests{one}_total{{queue="main"}}': "0x500"
                for one in ("", "_escalated", "_failed")
            },
            **{f'amn_batch_contexts_extra{one}_total{{queue="main"}}': "0x500" for one in ("", "_escalated")},
            'amn_requests_answered_total{queue="main"}': "0+3000x500",
            f'amn_requests_{field}_total{{queue="main"}}': f"0+{bad}x500",
        }
        labels = f'{{alertname="{name}", severity="ticket"}}'
        check = {
            "expr": 'count by (alertname, severity) (ALERTS{alertstate="firing"})',
            "eval_time": "4800m",
            "exp_samples": [{"labels": labels, "value": 1}] * expected,
        }
        series = [{"series": key, "values": line} for key, line in given.items()]
        tests.append({"interval": "10m", "input_series": series, "promql_expr_test": [check]})
    run(tmp_path, tests, every="30m")


def named(rule: str) -> str:
    return "Amn" + "".join(word.capitalize() for word in rule.split("_"))


def span(blocks: int) -> str:
    minutes, sizes = 5 * blocks, {"d": 1440, "h": 60, "m": 1}
    return next(f"{minutes // size}{unit}" for unit, size in sizes.items() if minutes % size == 0)


def test_conditions_of_one_severity_are_one_alert() -> None:
    minutes: dict[tuple[str, str], set[int]] = {}
    for row in CONDITIONS:
        minutes.setdefault((row.rule, row.severity), set()).add(row.minutes)
    assert {len(found) for found in minutes.values()} == {1}


def test_the_thresholds_are_the_judges() -> None:
    settings = JudgeSettings()
    text = {(rule["alert"], rule["labels"]["severity"]): rule["expr"] for rule in alert_rules()}
    lasts = {(rule["alert"], rule["labels"]["severity"]): rule["for"] for rule in alert_rules()}
    for objective in OBJECTIVES:
        for severity in {burn.severity for burn in objective.burns}:
            burns = [burn for burn in objective.burns if burn.severity == severity]
            bars = {burn.rate * objective.budget for burn in burns}
            written = re.findall(r":ratio(\w+) > ([\d.]+)", text[named(objective.rule), severity])
            assert sorted({float(bar) for _, bar in written}) == pytest.approx(sorted(bars))
            windows = {span(n) for burn in burns for n in (burn.long_blocks, burn.short_blocks)}
            assert {window for window, _ in written} == windows
    for condition in CONDITIONS:
        key = named(condition.rule), condition.severity
        assert f"> {condition.above:g}" in text[key]
        assert lasts[key] == f"{condition.minutes}m"
    assert f"> {settings.canary_page}" in text["AmnCanary", "page"]
    assert f"> {settings.canary_ticket}" in text["AmnCanary", "ticket"]
    health = text["AmnMonitorHealth", "ticket"]
    assert f"< {settings.coverage_min}" in health
    assert f"> {settings.lag_ticket_ms // 1000}" in health
    assert ">= 1000" in RULES.read_text("utf-8")
    assert settings.events_min == 1000


def test_the_shares_are_of_the_counters_that_the_judge_takes() -> None:
    recorded = {rule["record"]: rule["expr"] for rule in all_rules() if "record" in rule}
    metrics = {one.field: f"{one.name}_total" for one in COUNTS if not one.label}
    for objective in OBJECTIVES:
        expected = {metrics[field.removeprefix("-")] for field in (*objective.bad, *objective.of)}
        [alert, *_] = (rule["expr"] for rule in alert_rules() if rule["alert"] == named(objective.rule))
        for name in re.findall(r"amn:\w+:ratio\w+", alert):
            assert set(re.findall(r"increase\((\w+)\[", recorded[name])) == expected
