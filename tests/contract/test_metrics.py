"""What Prometheus scrapes, on every server, and that the document names all of it."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from rig import show_worker
from served import listening, served

from ops.alerts import AlertSettings, apply
from ops.commands.web import metrics as command
from ops.errors import ServerFailed
from ops.findings import Finding
from ops.leader import leader_key
from ops.metrics import pages, registry
from producer.keys import GROUP, Keys
from producer.settings import ProducerSettings

KEYS = Keys("main")
DOCUMENT = Path(__file__).parents[2] / "docs" / "alerts.md"
RULES = Path(__file__).parents[2] / "ops" / "deploy" / "prometheus" / "amn-rules.yml"
DASHBOARD = RULES.with_name("amn-dashboard.json")
METRIC = re.compile(r"amn[:_][a-z0-9_:]+")
FINDINGS = [
    Finding(
        rule="ood_delta",
        severity="page",
        state="firing",
        model="v12",
        values={
            "delta": 0.041,
            "delta_expected": 0.078,
            "drop": 0.037,
            "drop_error": 0.005,
            "drop_recent": 0.03,
            "mean_ood": 0.9,
            "mean_id": 0.859,
            "n_ood": 4310,
            "n_id": 39800,
            "coverage": 0.95,
            "reference": "baseline",
        },
    ),
    Finding(rule="level", severity="ticket", state="firing", model="v12", lane="a", beside="ood_delta"),
    Finding(
        rule="fast_drop",
        severity="page",
        state="ok",
        model="v12",
        values={"evidence_log": 1.5, "evidence_needed_log": 13.8},
    ),
    Finding(rule="canary", severity="page", state="ok", model="v12", values={"max_change": 0.0004, "n": 64}),
    Finding(
        rule="input_drift",
        severity="ticket",
        state="insufficient",
        model="v12",
        values={"ood_share": 0.1, "ood_share_baseline": 0.09, "divergence_bits": 0.02},
    ),
    Finding(rule="monitor_health", severity="ticket", state="ok", values={"sampling": 0.031}),
]


def scrape(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples by name and labels, without `queue`."""
    text = generate_latest(registry(ProducerSettings(url=url))).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.labels["queue"] == "main"
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "queue"))
            found[sample.name, labels] = sample.value
    return found


def fill(client: Any) -> None:
    """A queue with traffic, a worker, a judge's verdict and an alert."""
    stats = {
        "answered": 100,
        "answered:amn": 80,
        "answered:fallback_accuracy": 20,
        "escalated": 20,
        "slow": 3,
    }
    stats |= {
        "failed": 2,
        "failed:expired": 2,
        "dead": 1,
        "dead:poison": 1,
        "flagged": 25,
        "reason:margin": 25,
    }
    stats |= {"shed": 5, "shed:budget": 5, "shadowed": 4, "degraded": 1, "degraded:down": 1}
    stats |= {"shadow:expired": 1, "lost": 2}
    client.hset(KEYS.stats, mapping=stats)
    times = {"queue:amn:normal:answered:2": 3, "queue:amn:normal:answered:25": 1}
    client.hset(KEYS.stages, mapping=times | {"queue:amn:normal:answered:sum": 70_000_240})
    client.xgroup_create(KEYS.requests, GROUP, id="0", mkstream=True)
    for _ in range(3):
        client.xadd(KEYS.requests, {"request": "x"}, id=f"{1_700_000_000_000}-*")
    client.xreadgroup(GROUP, "w", {KEYS.requests: ">"}, count=1)
    client.set(KEYS.requests_bytes, 300)
    client.xadd(KEYS.dead, {"reason": "poison"})
    worker = {"kind": "amn", "pid": 1, "finished": 9, "seen_at_ms": 50_000, "progress_at_ms": 20_000}
    show_worker(client, "host-1-a", worker)
    judge = {"findings": json.dumps([asdict(one) for one in FINDINGS]), "evaluated_at_ms": 1_700_000_000_500}
    client.hset(KEYS.drift_prefix + "judge", mapping=judge)
    client.set(leader_key(KEYS), "1")
    silent = {"kind": "fallback", "host": "h", "at_ms": 1_700_000_000_000, "text": "process 7 gives no sign"}
    client.lpush(KEYS.failures, json.dumps(silent))
    found = [Finding(rule="level", severity="page", state="firing", evaluations=1)]
    apply(client, KEYS, found, now_ms=1_700_000_000_000, fence=1, settings=AlertSettings())


def test_a_scrape_shows_queue_workers_judgement_and_alerts(server: Any) -> None:
    fill(server.admin)
    found = scrape(server.url)

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    assert value("amn_server_up") == 1
    assert value("amn_requests_answered_total") == 100
    assert value("amn_requests_answered_by_total", served_by="amn") == 80
    assert value("amn_requests_failed_by_total", code="expired") == 2
    assert value("amn_requests_slow_total") == 3
    assert value("amn_stream_entries", stream="requests") == 3
    stage = {"stage": "queue", "kind": "amn", "level": "normal", "outcome": "answered"}
    buckets = [
        value("amn_stage_seconds_bucket", le=le, **stage) for le in ("5e-05", "0.0001", "60.0", "+Inf")
    ]
    assert buckets == [0, 3, 3, 4]
    assert value("amn_stage_seconds_count", **stage) == 4
    assert value("amn_stage_seconds_sum", **stage) == pytest.approx(70.00024)
    assert value("amn_stream_leased_entries", stream="requests") == 1
    assert value("amn_stream_payload_bytes", stream="requests") == 300
    assert value("amn_stream_oldest_age_seconds", stream="requests") > 86_400
    assert value("amn_stream_oldest_age_seconds", stream="fallback") == 0
    assert value("amn_dead_letters") == 1
    assert value("amn_workers", kind="amn") == value("amn_workers_stuck", kind="amn") == 1
    assert value("amn_workers_progress_age_seconds", kind="amn") == 30
    assert value("amn_workers", kind="shadow") == 0
    assert value("amn_stream_backlog_seconds", stream="requests") > 86_400  # nobody serves it
    assert value("amn_stream_backlog_seconds", stream="fallback") == 0
    assert value("amn_workers_busy_ratio", kind="amn") == 0
    assert value("amn_processes_missing", kind="fallback") == 1
    assert value("amn_processes_missing", kind="judge") == 0
    assert value("amn_drift_delta_drop_cosine", model="v12", lane="") == 0.037
    assert value("amn_drift_mean_cosine", model="v12", lane="", slice="ood") == 0.9
    assert value("amn_drift_samples", model="v12", lane="", slice="id") == 39800
    assert value("amn_shadow_sampling_ratio") == 0.031
    assert value("amn_canary_change_cosine", model="v12", lane="") == 0.0004
    assert value("amn_rule_firing", rule="ood_delta", severity="page", model="v12", lane="") == 1
    assert value("amn_rule_firing", rule="level", severity="ticket", model="v12", lane="a") == 0
    assert value("amn_rule_insufficient", rule="input_drift", model="v12", lane="") == 1
    assert value("amn_judge_last_evaluation_timestamp_seconds") == 1_700_000_000.5
    assert value("amn_alerts_firing", rule="level", severity="page") == 1
    assert value("amn_alerts_outbox_messages") == 1


def test_an_empty_queue_has_its_totals_at_zero(server: Any) -> None:
    found = scrape(server.url)
    for name in ("answered", "failed", "dead", "escalated", "slow", "sampled", "shed"):
        assert found[f"amn_requests_{name}_total", ()] == 0
    assert found["amn_alerts_sender_last_look_timestamp_seconds", ()] == 0


def test_a_server_that_is_away_is_a_metric() -> None:
    assert scrape("redis://127.0.0.1:1/0") == {("amn_server_up", ()): 0}


def test_no_id_is_a_label(server: Any) -> None:
    fill(server.admin)
    labels = {name for _, pairs in scrape(server.url) for name, _ in pairs}
    assert labels <= {
        *("served_by", "code", "reason", "rule", "why", "outcome", "stream", "kind", "level"),
        *("model", "lane", "slice", "severity", "sink", "stage", "le"),
    }


def named(text: str) -> set[str]:
    return set(re.findall(r"`(amn_[a-z0-9_]+)`", text))


def test_the_document_names_every_metric_and_no_other(server: Any) -> None:
    fill(server.admin)
    text = generate_latest(registry(ProducerSettings(url=server.url))).decode()
    exported = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    assert named(DOCUMENT.read_text("utf-8")) == exported


def test_the_rules_ask_for_metrics_that_exist(server: Any) -> None:
    fill(server.admin)
    text = generate_latest(registry(ProducerSettings(url=server.url))).decode()
    exported = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    expressions = re.sub(r"#.*|alertname.*|externalLabels\S*", "", RULES.read_text("utf-8"))
    asked = set(re.findall(r"(?<![:\w])amn_[a-z0-9_]+(?=[{\[\s)]| offset)", expressions))
    assert asked
    assert asked <= exported


def test_the_dashboard_asks_for_metrics_and_ratios_that_exist(server: Any) -> None:
    fill(server.admin)
    text = generate_latest(registry(ProducerSettings(url=server.url))).decode()
    exported = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    recorded = set(re.findall(r"record: (\S+)", RULES.read_text("utf-8")))
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    asked = [name for panel in panels for one in panel["targets"] for name in METRIC.findall(one["expr"])]
    assert len(asked) >= len(panels)
    assert {name.removesuffix("_bucket") for name in asked} <= exported | recorded


def test_names_carry_their_unit(server: Any) -> None:
    fill(server.admin)
    text = generate_latest(registry(ProducerSettings(url=server.url))).decode()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)", text, re.M):
        assert name.endswith("_total") == (kind == "counter")
        assert not name.endswith(("_ms", "_s", "_percent", "_count"))


def test_the_command_answers_scrapes_on_loopback_or_prints_once(make_server: Any) -> None:
    server = make_server()
    fill(server.client())
    with listening("metrics", REDIS_URL=server.url) as (client, process):
        scraped = client.get("/metrics").text
        process.terminate()
        assert process.wait(30) == 0
    command = [sys.executable, "-m", "ops.cli", "metrics", "--once", "--url", server.url]
    once = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert once.stderr == ""
    for text in (scraped, once.stdout):
        assert 'amn_server_up{queue="main"} 1.0' in text
        assert 'amn_requests_answered_total{queue="main"} 100.0' in text


def test_a_token_is_asked_of_every_scrape(server: Any) -> None:
    token = "t" * 24
    wrong = (None, "", "Bearer", f"Bearer {token}x", f"Basic {token}", "Bearer \u00e9")
    with served(pages(ProducerSettings(url=server.url), token), "::1") as port:
        statuses = []
        for given in (*wrong, f"Bearer {token}"):
            asked = http.client.HTTPConnection("::1", port, timeout=10)
            asked.request("GET", "/metrics", headers={} if given is None else {"Authorization": given})
            statuses.append(asked.getresponse().status)
            asked.close()
    assert statuses == [401] * 6 + [200]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.com", "192.0.2.1"])
@pytest.mark.parametrize("token", ["", "short"])
def test_an_address_of_other_machines_wants_a_token(
    host: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMN_METRICS_TOKEN", token)
    with pytest.raises(ServerFailed, match=r"AMN_METRICS_TOKEN \(openssl"):
        command.main(["--host", host, "--url", "redis://127.0.0.1:1"], standalone_mode=False)


def fetched(port: int, path: str, token: str = "") -> tuple[int, str]:
    asked = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        asked.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = asked.getresponse()
        return answer.status, answer.read().decode()
    finally:
        asked.close()


def test_an_autoscaler_reads_the_backlog_and_a_probe_needs_no_token(server: Any) -> None:
    fill(server.admin)
    now_ms = int(server.admin.time()[0]) * 1000
    worker = {"kind": "amn", "seen_at_ms": now_ms, "ended_per_s": "2.5", "busy_ratio": "0.61"}
    show_worker(server.admin, "host-2-b", worker)
    token = "t" * 24
    with served(pages(ProducerSettings(url=server.url), token)) as port:
        assert fetched(port, "/healthz")[0] == 204
        assert fetched(port, "/backlog")[0] == 401
        status, text = fetched(port, "/backlog", token)
    found = json.loads(text)
    assert status == 200
    assert found["queue"] == "main"
    assert found["kinds"]["amn"] == {"backlog_s": 0.8, "busy_ratio": 0.61, "workers": 1}
    assert found["streams"]["requests"]["waiting"] == 2  # of three entries one is leased


def test_a_backlog_that_nobody_can_read_is_an_error_and_no_number() -> None:
    with served(pages(ProducerSettings(url="redis://127.0.0.1:1/0"))) as port:
        status, text = fetched(port, "/backlog")
    assert status == 503
    assert list(json.loads(text)) == ["error"]
