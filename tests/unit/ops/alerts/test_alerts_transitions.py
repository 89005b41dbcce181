"""The state machine of an alert, by a table of stories and by its laws."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.alerts.alert import Alert, fingerprint, louder, read_record, step
from ops.alerts.settings import AlertSettings
from ops.alerts.silences import Silence, silence_of
from ops.findings import Finding

MIN = 60_000
START = 1_000_000_000_000
TIMES = AlertSettings(hold_ms=10 * MIN, firing_min_ms=30 * MIN, renotify_ms=240 * MIN)


def finding(state: Any, **values: Any) -> Finding:
    return Finding(rule="level", severity=values.pop("severity", "page"), state=state, model="m", **values)


def play(states: Iterable[Any], *, every_ms: int = MIN, **values: Any) -> tuple[Alert, list[tuple[int, str]]]:
    """Runs evaluations a minute apart; returns the alert and `(minute, message)` of what was told."""
    alert, told = Alert.of(finding("ok"), "e", "judge"), []
    for i, state in enumerate(states):
        found = None if state is None else finding(state, **values)
        alert, kind = step(alert, found, START + i * every_ms, TIMES)
        if kind:
            told.append((i, kind))
    return alert, told


F, O, I = ["firing"], ["ok"], ["insufficient"]  # noqa: E741


@pytest.mark.parametrize(
    ("story", "told", "phase"),
    [
        (F * 2 + O, [], "ok"),
        (F * 3, [(2, "trigger")], "firing"),
        (F * 2 + O + F * 2, [], "pending"),
        (F * 2 + I * 5 + F, [(7, "trigger")], "firing"),
        (F * 3 + O * 40, [(2, "trigger"), (32, "resolve")], "ok"),
        (F * 40 + O * 11, [(2, "trigger"), (50, "resolve")], "ok"),
        (F * 40 + O * 10, [(2, "trigger")], "recovering"),
        (F * 40 + (O * 9 + F) * 5, [(2, "trigger")], "firing"),
        (F * 3 + I * 300, [(2, "trigger"), (242, "reminder")], "firing"),
        (F * 40 + O * 5 + I * 300, [(2, "trigger")], "recovering"),
        (F * 40 + O * 5 + I * 300 + O * 5, [(2, "trigger")], "recovering"),
        (F * 40 + O * 5 + I * 300 + O * 7, [(2, "trigger"), (350, "resolve")], "ok"),
        (F * 300, [(2, "trigger"), (242, "reminder")], "firing"),
        (I * 10, [], "ok"),
        (F * 2 + [None], [], "ok"),
        (F * 3 + [None] * 59, [(2, "trigger")], "firing"),
        (F * 3 + [None] * 60, [(2, "trigger"), (62, "resolve")], "ok"),
        (F * 2 + I * 16 + F, [], "pending"),
    ],
)
def test_an_alert_goes_its_way(story: list[Any], told: list[tuple[int, str]], phase: str) -> None:
    alert, heard = play(story)
    assert heard == told
    assert alert.phase == phase


def test_evaluations_that_follow_at_once_count_once() -> None:
    alert, told = play(F * 3, every_ms=29_000)
    assert (alert.count, told) == (2, [])
    assert play(F * 3, every_ms=30_000)[1] == [(2, "trigger")]


def test_a_rule_that_asks_for_one_evaluation_fires_at_once() -> None:
    _, told = play(F, evaluations=1)
    assert told == [(0, "trigger")]


def test_more_severity_is_told_and_less_is_not() -> None:
    alert, kinds = Alert.of(finding("ok"), "e", "judge"), []
    for i, severity in enumerate(["ticket"] * 3 + ["page"] + ["ticket"] * 5):
        alert, kind = step(alert, finding("firing", severity=severity), START + i * MIN, TIMES)
        kinds.append(kind)
    assert kinds == ["", "", "trigger", "raised", "", "", "", "", ""]
    assert alert.severity == "page"


def test_a_finding_beside_another_is_kept_and_not_told() -> None:
    alert, told = play(F * 5, beside="fast_drop")
    assert (alert.phase, told) == ("firing", [])
    alert, kind = step(alert, finding("firing"), START + 6 * MIN, TIMES)
    assert kind == "trigger"


def test_a_silence_holds_back_and_its_end_tells() -> None:
    alert = Alert.of(finding("ok"), "e", "judge")
    for i in range(5):
        alert, kind = step(alert, finding("firing"), START + i * MIN, TIMES, "s1")
        assert kind == ""
    assert (alert.phase, alert.silence) == ("firing", "s1")
    alert, kind = step(alert, finding("firing"), START + 5 * MIN, TIMES)
    assert kind == "trigger"


def test_what_was_told_is_resolved_under_a_silence_and_what_was_not_is_not() -> None:
    for silenced_from, expected in ((3, ["trigger", "resolve"]), (0, [])):
        alert, kinds = Alert.of(finding("ok"), "e", "judge"), []
        for i, state in enumerate(F * 40 + O * 11):
            silence = "s1" if i >= silenced_from else ""
            alert, kind = step(alert, finding(state), START + i * MIN, TIMES, silence)
            kinds += [kind] if kind else []
        assert kinds == expected


def test_a_second_incident_is_told_like_the_first() -> None:
    alert, told = play((F * 40 + O * 11) * 2)
    assert [kind for _, kind in told] == ["trigger", "resolve"] * 2
    assert alert.resolved_ms == START + 101 * MIN


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["firing", "ok", "insufficient", "absent"]),
            st.sampled_from(["page", "ticket"]),
            st.sampled_from(["", "", "", "s1"]),
            st.sampled_from(["", "", "", "fast_drop"]),
            st.integers(1, 20),
        ),
        max_size=120,
    )
)
def test_whatever_happens_triggers_and_resolves_alternate(story: list[tuple[Any, ...]]) -> None:
    alert, now = Alert.of(finding("ok"), "e", "judge"), START
    open_, triggered_ms, severity = False, 0, ""
    for state, loud, silence, beside, minutes in story:
        now += minutes * MIN
        seen = None if state == "absent" else finding(state, severity=loud, beside=beside)
        before = alert
        alert, kind = step(before, seen, now, TIMES, silence)
        if kind == "trigger":
            assert not open_
            open_, triggered_ms, severity = True, now, alert.severity
        elif kind == "resolve":
            assert open_
            assert now - before.fired_ms >= TIMES.firing_min_ms
            assert state in ("ok", "absent")
            open_ = False
        elif kind:
            assert open_
            assert kind == "reminder" or louder(alert.severity, severity)
            severity = alert.severity
        if kind in ("trigger", "raised", "reminder"):
            assert state == "firing" or kind == "reminder"
            assert not silence
            assert not beside or state != "firing"
        if state == "insufficient":
            assert alert.phase == before.phase
            assert kind in ("", "reminder")
        assert open_ == bool(alert.told_ms)
        assert not (alert.phase == "ok" and open_)
    assert triggered_ms <= now


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["firing", "ok", "insufficient"]), max_size=60), st.integers(0, 59))
def test_an_evaluation_that_is_repeated_at_once_changes_no_message(story: list[Any], at: int) -> None:
    again = story[: at + 1] + story[at : at + 1] + story[at + 1 :]
    once, twice = [], []
    for states, out in ((story, once), (again, twice)):
        alert = Alert.of(finding("ok"), "e", "judge")
        for i, state in enumerate(states):
            moment = i if out is once or i <= at else i - 1
            alert, kind = step(alert, finding(state), START + moment * MIN, TIMES)
            if kind:
                out.append((moment, kind))
    assert once == twice


def test_the_identity_has_no_number_and_no_time() -> None:
    one = Alert.of(finding("firing", values={"drop": 0.03}, summary="a"), "e/main", "judge")
    other = Alert.of(finding("ok", values={"drop": 0.05}, summary="b", severity="ticket"), "e/main", "judge")
    assert one.id == other.id == fingerprint("e/main", "level", "m", "")
    assert len({fingerprint(*words) for words in (("e", "r", "m", "l"), ("e", "r", "ml", ""))}) == 2


def test_an_alert_survives_its_storage() -> None:
    alert, _ = play(F * 4, values={"drop": 0.04, "n": 3}, summary="fell")
    for more in ({}, {"of_a_later_version": 1}):
        assert read_record(json.dumps({**asdict(alert), **more}).encode(), Alert) == alert


def test_a_silence_matches_what_it_names_until_it_ends() -> None:
    alert = Alert.of(finding("firing"), "e", "judge")
    common = {"until_ms": 10, "made_ms": 0, "reason": "r", "author": "a"}
    assert Silence(id="1", **common, alert=alert.id).matches(alert, 9)
    assert not Silence(id="1", **common, alert=alert.id).matches(alert, 10)
    assert not Silence(id="1", **common, alert="other").matches(alert, 9)
    assert Silence(id="1", **common, rule="level").matches(alert, 9)
    assert not Silence(id="1", **common, rule="level", lane="text").matches(alert, 9)
    short, long = (
        Silence(id="1", **common, rule="level"),
        Silence(id="2", **{**common, "until_ms": 20}, model="m"),
    )
    assert silence_of(alert, [short, long], 9) == "2"
    assert silence_of(alert, [short], 11) == ""


@pytest.mark.parametrize("back_min", [1, 60, 3000])
@pytest.mark.parametrize("at", [1, 5, 20, 38, 45])
def test_a_clock_that_goes_back_changes_no_span(back_min: int, at: int) -> None:
    states = F * 40 + O * 20
    alert, told = Alert.of(finding("ok"), "e", "judge"), []
    for i, state in enumerate(states):
        now_ms = START + (i - back_min * (i >= at)) * MIN
        alert, kind = step(alert.as_of(now_ms), finding(state), now_ms, TIMES)
        if kind:
            told.append((i, kind))
    late = 40 < at <= 50  # the minute in which the clock went back is none
    assert told == [(2 + (at <= 2), "trigger"), (50 + late, "resolve")]
    assert alert.as_of(alert.seen_ms) is alert
