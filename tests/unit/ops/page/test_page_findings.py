"""What the page says is wrong: the worst first, since when, and in words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ops.alerts import Alert, AlertSettings
from ops.health import Facts
from ops.health.beside import BesideFacts
from ops.health.letters import LetterFacts
from ops.health.server import ServerFacts
from ops.health.streams import StreamFacts
from ops.health.workers import WorkerFacts
from ops.page.findings import Known, away, find, verdict
from ops.page.look import Look
from ops.page.words import RULES
from producer.errors import AuthenticationFailed, ServerUnavailable

STREAMS = (
    *("requests:high", "requests", "requests:low"),
    *("fallback", "fallback:secondary", "shadow", "truths"),
)
EMPTY = StreamFacts(entries=0, leased=0, payload_bytes=0, oldest_age_ms=None)
WORKERS = [WorkerFacts(name=f"{kind}-1", kind=kind) for kind in ("amn", "fallback", "shadow")]


def look(now_ms: int = 1_000_000, alerts: tuple[Alert, ...] = (), **facts: Any) -> Look:
    well: dict[str, Any] = {
        "url": "redis://here",
        "queue": "main",
        "server": ServerFacts(),
        "streams": dict.fromkeys(STREAMS, EMPTY),
        "workers": WORKERS,
        "letters": LetterFacts(),
        "counters": {},
        "artifacts": {},
        "beside": BesideFacts(judged_ms_ago=30_000),
        "now_ms": now_ms,
    }
    return Look(facts=Facts(**{**well, **facts}), alerts=alerts)


def changed(number: int, **changes: int) -> dict[str, Any]:
    """One of the workers as these say."""
    return {"workers": [replace(one, **changes) if one is WORKERS[number] else one for one in WORKERS]}


def waiting(stream: str, for_s: int) -> dict[str, Any]:
    """One entry waits in a stream."""
    return {"streams": dict.fromkeys(STREAMS, EMPTY) | {stream: replace(EMPTY, oldest_age_ms=for_s * 1000)}}


def said(found: Look, refused: float | None = 0.0, known: Known | None = None) -> tuple[str, str]:
    now = verdict(find(found, refused, known or Known()), found, AlertSettings())
    return str(now["state"]), str(now["sentence"])


def test_a_service_without_findings_is_well() -> None:
    assert said(look()) == ("well", "All is well: 3 workers at work, and nothing is wrong")


@pytest.mark.parametrize(
    ("facts", "state", "words"),
    [
        ({"workers": WORKERS[1:]}, "broken", "No AMN worker lives"),
        ({"workers": [replace(WORKERS[0], seen_ms_ago=3_000), *WORKERS[1:]]}, "degraded", "went silent"),
        ({"workers": [replace(WORKERS[0], stuck_ms=20_000), *WORKERS[1:]]}, "broken", "A worker is stuck"),
        # A fallback or shadow worker waits for a core while the machine is busy.
        (changed(1, seen_ms_ago=3_000), "well", "It is well; 1 worker went silent"),
        (changed(1, seen_ms_ago=7_000), "degraded", "not heard: fallback-1"),
        (changed(1, stuck_ms=20_000), "broken", "A worker is stuck"),
        (changed(2, stuck_ms=20_000), "degraded", "A worker is stuck"),
        # A file is predicted: its rows wait by design.
        (waiting("requests:low", 600), "well", "All is well"),
        (waiting("requests:low", 4_000), "degraded", "wait too long on the stream requests:low"),
        (waiting("fallback", 20), "well", "All is well"),
        (waiting("fallback", 60), "degraded", "wait too long on the stream fallback"),
        (waiting("fallback", 200), "broken", "wait too long on the stream fallback"),
        (waiting("requests", 20), "broken", "wait too long on the stream requests"),
        ({"server": ServerFacts(told=False)}, "degraded", "does not know how the server is"),
        (
            {"letters": LetterFacts(entries=2, reasons={"poison": 2})},
            "degraded",
            "kept as dead letters: 2 (2 poison)",
        ),
        ({"beside": BesideFacts(judged_ms_ago=600_000)}, "broken", "drift judge is not at work"),
        ({"server": ServerFacts(append_only_status="err")}, "broken", "does not keep what it holds"),
    ],
)
def test_each_fault_is_the_verdict_in_words(facts: dict[str, Any], state: str, words: str) -> None:
    found, sentence = said(look(**facts))
    assert found == state
    assert words in sentence


def test_a_full_queue_comes_first_and_says_how_many_are_refused() -> None:
    state, sentence = said(look(letters=LetterFacts(entries=2, reasons={"poison": 2})), refused=40.0)
    assert state == "broken"
    assert sentence.startswith("The queue is full: 40 submits a second are refused")
    assert "1 other finding" in sentence


def test_since_when_is_known_only_to_who_watched_it_begin() -> None:
    known, ill = Known(), {"workers": WORKERS[1:]}
    assert [one.since_ms for one in find(look(1_000_000, **ill), 0.0, known)] == [None]
    assert find(look(1_001_000), 0.0, known) == []
    assert [one.since_ms for one in find(look(1_002_000, **ill), 0.0, known)] == [1_002_000]
    assert [one.since_ms for one in find(look(1_003_000, **ill), 0.0, known)] == [1_002_000]
    assert find(look(1_004_000), 0.0, known) == []
    # Nobody watched for a minute: it may have begun at any time.
    assert [one.since_ms for one in find(look(1_064_000, **ill), 0.0, known)] == [None]


def test_a_worker_that_died_and_came_back_is_told_for_a_while_and_is_no_trouble() -> None:
    known = Known()
    find(look(1_000_000, counters={"worker_died:amn": 4}), 0.0, known)
    died = look(1_001_000, counters={"worker_died:amn": 5})
    state, sentence = said(died, known=known)
    assert (state, "kind amn died" in sentence) == ("well", True)
    later = look(1_001_000 + 9_000, counters={"worker_died:amn": 5})
    [told] = find(later, 0.0, known)
    assert told.since_ms == 1_001_000
    for second in range(10, 31):
        last = find(look(1_001_000 + second * 1_000, counters={"worker_died:amn": 5}), 0.0, known)
    assert last == []


def test_an_alert_that_fires_is_told_with_its_runbook_and_a_silenced_one_is_a_notice() -> None:
    alert = Alert(
        id="a" * 32,
        rule="level",
        severity="page",
        phase="firing",
        summary="it fell",
        since_ms=5,
        runbook="level",
    )
    found = look(alerts=(alert,))
    [one] = find(found, 0.0, Known())
    assert (one.severity, one.since_ms) == ("error", 5)
    now = verdict([one], found, AlertSettings(runbook_url="https://wiki/runbook"))
    assert (now["state"], now["remedy"]) == ("broken", "`amn alerts show aaaaaaaa`")
    assert now["runbook_link"] == "https://wiki/runbook#level"
    assert now["sentence"] == "Answers got worse, on known or unknown text: it fell (level)"
    assert said(look(alerts=(replace(alert, silence="s"),)))[0] == "well"
    assert find(look(alerts=(replace(alert, beside="ood_delta"),)), 0.0, Known()) == []


def test_a_stuck_worker_beside_one_that_works_costs_time_and_breaks_nothing() -> None:
    stuck = replace(WORKERS[0], name="amn-2", stuck_ms=20_000)
    state, sentence = said(look(workers=[stuck, *WORKERS]))
    assert (state, "A worker is stuck" in sentence) == ("degraded", True)
    assert said(look(workers=[stuck, *WORKERS[1:]]))[0] == "broken"


def test_the_page_has_words_for_each_rule_of_the_runbook() -> None:
    runbook = (Path(__file__).parents[4] / "docs" / "runbook.md").read_text("utf-8")
    assert RULES.keys() == set(re.findall(r"^## (\w+)$", runbook, re.MULTILINE))


def test_a_server_that_refuses_the_page_is_not_called_away() -> None:
    refused, gone = (
        away(1, kind("why"), AlertSettings()) for kind in (AuthenticationFailed, ServerUnavailable)
    )
    assert refused["sentence"] == "The queue's server does not let this page look: why"
    assert "`amn acl ops`" in str(refused["remedy"])
    assert gone["sentence"] == "The queue's server cannot be reached: why"
