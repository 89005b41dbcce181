"""`amn alerts` on every server: lists, shows, silences, and says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ops.alerts import AlertSettings, apply
from ops.clock import server_now_ms
from ops.commands.alerts import alerts as command
from ops.errors import AlertRefused
from ops.findings import Finding
from ops.leader import leader_key
from producer.keys import Keys

KEYS = Keys("main")


@pytest.fixture
def amn(server: Any) -> Callable[..., Result]:
    def call(name: str, *words: str) -> Result:
        return CliRunner().invoke(command, [name, *words, "--url", server.url])

    return call


def judge(client: Any, minutes_ago: int, **values: Any) -> str:
    """A firing alert; returns its id."""
    client.set(leader_key(KEYS), "1")
    now_ms = server_now_ms(client) - minutes_ago * 60_000
    common = {"rule": "level", "severity": "page", "state": "firing", "model": "v12", "evaluations": 1}
    found = [Finding(**{**common, "summary": "m_ID fell by 0.04", "values": {"drop": 0.04}, **values})]
    return apply(client, KEYS, found, now_ms=now_ms, fence=1, settings=AlertSettings())[0].alert.id


def test_a_quiet_place_says_so(amn: Any) -> None:
    done = amn("list")
    assert done.exit_code == 0
    assert "nothing fires" in done.output
    assert "no sender has run here; nobody is told" in done.output


def test_what_fires_is_listed_and_shown_by_the_beginning_of_its_id(server: Any, amn: Any) -> None:
    name = judge(server.admin, 5)
    done = amn("list")
    for text in (name[:8], "page", "level", "v12", "firing for 5 min", "m_ID fell by 0.04", "1 wait"):
        assert text in done.output
    shown = amn("show", name[:6])
    for text in (name, "drop", "0.04", "docs/runbook.md#level", "5 min ago"):
        assert text in shown.output
    listed = json.loads(amn("list", "--json").output)
    assert [one["id"] for one in listed["alerts"]] == [name]
    assert json.loads(amn("show", name, "--json").output)["alert"]["values"] == {"drop": 0.04}


def test_a_sender_that_went_away_is_missed(server: Any, amn: Any) -> None:
    server.admin.set(KEYS.alerts_prefix + "looked_ms", server_now_ms(server.admin) - 3_600_000)
    assert "NO SENDER for 1 h; start one with `amn alerts run`" in amn("list").output
    server.admin.set(KEYS.alerts_prefix + "looked_ms", server_now_ms(server.admin))
    assert "a sender runs" in amn("list").output


def test_a_silence_is_made_listed_and_ended(server: Any, amn: Any) -> None:
    name = judge(server.admin, 5)
    made = amn("silence", name[:8], "--for", "2h", "--reason", "known", "--author", "me")
    assert made.exit_code == 0
    [silence] = json.loads(amn("list", "--json").output)["silences"]
    assert (silence["id"], silence["alert"], silence["reason"]) == (made.output.strip(), name, "known")
    assert silence["until_ms"] - silence["made_ms"] == 7_200_000
    for text in (silence["id"], "known", "me", name[:8]):
        assert text in amn("list").output
    assert amn("unsilence", silence["id"]).exit_code == 0
    assert json.loads(amn("list", "--json").output)["silences"] == []


def test_a_rule_that_was_never_judged_is_silenced_with_a_note(server: Any, amn: Any) -> None:
    done = amn("silence", "--rule", "levle", "--for", "1h", "--reason", "x")
    assert done.exit_code == 0
    assert "no rule 'levle' was judged here yet; known: delivery_failed, judge_dead" in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["silence", "--for", "1h", "--reason", "x"], "Give the ID of one alert, or some of"),
        (["silence", "a", "--rule", "level", "--for", "1h", "--reason", "x"], "Give the ID of one alert"),
        (["silence", "--rule", "level", "--for", "soon", "--reason", "x"], "write 90s, 30m, 2h or 3d"),
        (["silence", "--rule", "level", "--for", "31d", "--reason", "x"], "longer than 30 d"),
        (["silence", "--rule", "level", "--for", "1h", "--reason", " "], "it is empty"),
        (["silence", "--rule", "level", "--for", "1h"], "Missing option '--reason'"),
    ],
)
def test_wrong_usage_is_told(amn: Any, words: list[str], said: str) -> None:
    done = amn(*words)
    assert done.exit_code == 2
    assert said in done.output


def test_what_is_not_there_is_refused(server: Any, amn: Any) -> None:
    judge(server.admin, 5)
    judge(server.admin, 4, lane="a")
    for words, said in (
        (["show", "zzz"], "no alert begins with 'zzz'"),
        (["show", ""], "2 alerts begin with ''"),
        (["unsilence", "zzz"], "no silence is called 'zzz'"),
    ):
        done = amn(*words)
        assert isinstance(done.exception, AlertRefused)
        assert said in str(done.exception)
