"""An alert's exemplars: frozen when it is told, replayed and shown later."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ops.alerts import Alert, Transition
from ops.app import app
from ops.clock import server_now_ms
from ops.commands.drift.sequences import keep, of_last_day, sequences_of
from ops.drift.loop import evaluate
from ops.drift.memory import Memory
from ops.drift.settings import JudgeSettings
from ops.drift.show.report import page
from ops.errors import FileRefused
from ops.findings import Finding
from producer.keys import Keys
from workers.shadow.exemplars import RANDOM, WORST, Exemplar, Exemplars
from workers.shadow.scores import Labels

KEYS = Keys("main")
MODEL = "m"


def put(server: Any, now_ms: int, count: int = 12, lane: str = "general", model: str = MODEL) -> None:
    random = np.random.default_rng(3)
    rows = random.normal(size=(count, 7, 768)).astype("f2")
    found = [
        Exemplar(
            id=f"{lane}{i}",
            kind=(WORST, RANDOM)[i % 2],
            key=f"doc<{i}>#{i}",
            model=model,
            lane=lane,
            slice="ood",
            minute=now_ms // 60_000 - 60 * (i % 5),
            cosine=0.01 * i,
            fallback=None,
            ood=0.5,
            rows=rows[i],
        )
        for i in range(count)
    ]
    Exemplars(server.admin, KEYS).offer(found)


def told(rule: str = "fast_drop", lane: str = "", kind: Any = "trigger") -> Transition:
    finding = Finding(rule=rule, severity="page", state="firing", model=MODEL, lane=lane)
    return Transition(alert=Alert.of(finding, "", "judge"), before="ok", kind=kind)


def test_what_was_seen_before_an_alert_is_kept_under_its_id(server: Any) -> None:
    now_ms = server_now_ms(server.admin)
    put(server, now_ms)
    change = told()
    keep(server.admin, KEYS, [change], now_ms)
    found = sequences_of(server.admin, KEYS, change.alert.id)
    assert found.contexts.shape == (12, 5, 768)
    assert set(found.slices.tolist()) == {"ood"}
    assert np.linalg.norm(found.truths, axis=1) == pytest.approx(np.ones(12), abs=1e-5)


def test_only_news_of_drift_keeps_exemplars_and_only_of_its_lane_and_model(server: Any) -> None:
    now_ms = server_now_ms(server.admin)
    put(server, now_ms)
    put(server, now_ms, lane="narrative")
    put(server, now_ms, lane="narrative", model="other")
    changes = [told(kind="reminder"), told(rule="slo_error"), told(lane="narrative")]
    keep(server.admin, KEYS, changes, now_ms)
    for change in changes[:2]:
        with pytest.raises(FileRefused, match=change.alert.id):
            sequences_of(server.admin, KEYS, change.alert.id)
    kept = Exemplars(server.admin, KEYS).frozen(changes[2].alert.id)
    assert {one.lane for one in kept} == {"narrative"}
    assert {one.model for one in kept} == {MODEL}


def test_a_replay_of_an_alert_scores_what_was_kept(real_server: Any) -> None:
    now_ms = server_now_ms(real_server.admin)
    put(real_server, now_ms)
    change = told()
    keep(real_server.admin, KEYS, [change], now_ms)
    environment = {"REDIS_URL": real_server.url}
    arguments = ["drift", "replay", "--alert", change.alert.id, "--json"]
    shown = CliRunner().invoke(app, arguments, env=environment)
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.output)["groups"][0]["n"] == 12
    lost = CliRunner().invoke(app, ["drift", "replay", "--alert", "nobody"], env=environment)
    assert lost.exit_code == 1
    assert isinstance(lost.exception, FileRefused)


def test_the_report_lists_exemplars_and_escapes_what_producers_named(server: Any) -> None:
    now_ms = server_now_ms(server.admin)
    put(server, now_ms)
    minute = now_ms // 60_000 - 10
    stats = {"predictions": 5, "n": 5, "amn.sum": 5, "amn.squares": 5}
    fields = {Labels(MODEL, "general", "ood").field(stat): amount for stat, amount in stats.items()}
    server.admin.hset(f"{KEYS.drift_minute_prefix}{minute}", mapping=fields)
    server.admin.zadd(KEYS.drift_minutes, {str(minute): minute})
    memory = Memory(server.admin, KEYS)
    found = evaluate(server.admin, KEYS, memory, JudgeSettings(), now_ms)
    text = page(KEYS, memory, found, of_last_day(server.admin, KEYS, now_ms))
    assert "doc&lt;0&gt;#0" in text
    assert "doc<0>" not in text
    assert text.count("<td>worst</td>") == 6
