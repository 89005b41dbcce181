"""From the alerts to a receiver: order, repeats, back-off, silence of a sink, second sinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from receiver import Receiver, running

from ops.alerts import AlertSettings, apply, books
from ops.alerts.config import AlertsConfig, Sinks, load
from ops.alerts.secret import Secret
from ops.alerts.sender import Sender
from ops.alerts.sinks import http
from ops.alerts.sinks.base import Sink
from ops.alerts.sinks.services import Alertmanager, PagerDuty, Slack
from ops.alerts.store import alerts
from ops.findings import Finding
from ops.leader import leader_key
from producer.keys import Keys

MIN = 60_000
START = 1_800_000_000_000
KEYS = Keys("main")
SEND = Sink.send


class Died(BaseException):
    """The end of a process."""


class Rig:
    """A judge and a sender on one injected clock.

    Attributes:
        now_ms: The clock.
        dies: Moments at which the sender dies in its next attempts: "before" the send or "after" it.
    """

    def __init__(self, client: Any, sinks: list[Sink]) -> None:
        self.client = client
        self.now_ms = START
        self.dies: list[str] = []
        self.config = AlertsConfig(settings=AlertSettings(), sinks={sink.name: sink for sink in sinks})
        self.sinks = Sinks(lambda: self.config)
        client.set(leader_key(KEYS), "1")
        self.restart()

    def restart(self) -> None:
        """A new sender in the place of the old one, which died."""
        self.client.delete(KEYS.alerts_prefix + "leader")
        self.sender = Sender(self.client, KEYS, self.sinks, clock=lambda: self.now_ms)

    def tick(self) -> int:
        """One tick of the sender; of a new one after it died."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sink, "send", lambda sink, message: self._send(sink, message))
            try:
                return self.sender.tick()
            except Died:
                self.restart()
                return 0

    def _send(self, sink: Sink, message: Any) -> Any:
        moment = self.dies.pop(0) if self.dies else ""
        if moment == "before":
            raise Died
        answer = SEND(sink, message)
        if moment == "after":
            raise Died
        return answer

    def undelivered(self) -> list[dict[str, Any]]:
        return books.read(self.client, KEYS).undelivered()

    def log(self, name: str) -> list[dict[str, str]]:
        return books.log(self.client, KEYS, name)

    def judge(self, *findings: Finding) -> None:
        self.client.hset(KEYS.drift_prefix + "judge", "evaluated_at_ms", self.now_ms)
        apply(self.client, KEYS, findings, now_ms=self.now_ms, fence=1, settings=self.config.settings)

    def minutes(self, count: float, *findings: Finding, step_ms: int = 10_000) -> None:
        """Lets time pass: the judge looks each minute, the sender every `step_ms`."""
        end_ms = self.now_ms + int(count * MIN)
        while self.now_ms < end_ms:
            if (self.now_ms - START) % MIN == 0 and findings:
                self.judge(*findings)
            self.tick()
            self.now_ms += step_ms

    def incident(self) -> None:
        """One whole incident, of an hour."""
        self.minutes(35, level())
        self.minutes(15, level(state="ok"))


def level(**values: Any) -> Finding:
    return Finding(**{"rule": "level", "severity": "page", "state": "firing", "model": "m", **values})


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with running() as one:
        yield one


@pytest.fixture
def rig(server: Any) -> Callable[..., Rig]:
    return lambda *sinks: Rig(server.admin, list(sinks))


def pager(receiver: Receiver, name: str = "pager", **values: Any) -> PagerDuty:
    return PagerDuty(name=name, routing_key=Secret("k" * 32), url=receiver.url + "/v2/enqueue", **values)


def actions(receiver: Receiver) -> list[tuple[str, str]]:
    return [(call.json["event_action"], call.json["dedup_key"]) for call in receiver.accepted()]


def left(rig: Rig) -> list[Any]:
    """Everything that is not done."""
    now = books.read(rig.client, KEYS)
    assert now.untaken() == 0
    return [*now.ended, *now.undelivered()]


def test_an_incident_is_one_trigger_and_one_resolve(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver))
    on.incident()
    [(first, key), (last, same)] = actions(receiver)
    assert (first, last) == ("trigger", "resolve")
    assert key == same
    assert left(on) == []
    assert on.log("dead") == []
    assert [one["kind"] for one in on.log("sent")] == ["resolve", "trigger"]


def test_overload_errors_and_hang_ups_are_repeated_with_the_same_key(rig: Any, receiver: Receiver) -> None:
    receiver.answers = [(429, {"Retry-After": "120"}), 500, 0, 503, 202, 502]
    on = rig(pager(receiver))
    on.incident()
    assert [kind for kind, _ in actions(receiver)] == ["trigger", "resolve"]
    assert len({call.json["dedup_key"] for call in receiver.calls}) == 1
    assert len(receiver.calls) == 7


def test_retry_after_leaves_the_whole_sink_alone(rig: Any, receiver: Receiver) -> None:
    receiver.answers = [(429, {"Retry-After": "600"})]
    on = rig(pager(receiver))
    on.minutes(3, level())
    assert [call.status for call in receiver.calls] == [429]
    on.minutes(9, level(), level(lane="a", evaluations=1))
    assert [call.status for call in receiver.calls] == [429]
    on.minutes(3, level(), level(lane="a", evaluations=1))
    assert len(actions(receiver)) == 2


def test_a_message_that_is_refused_is_given_up_at_once_and_raises_an_alert(
    rig: Any, receiver: Receiver
) -> None:
    receiver.answers = [400]
    on = rig(pager(receiver))
    on.minutes(5, level())
    [dead] = on.log("dead")
    assert (dead["rule"], dead["kind"], dead["detail"][:3]) == ("level", "trigger", "400")
    assert "delivery_failed" in {alert.rule for alert in alerts(on.client, KEYS) if alert.phase == "firing"}
    assert [call.json["payload"]["class"] for call in receiver.accepted()] == ["delivery_failed"]


def test_a_resolve_waits_for_its_trigger(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver))
    receiver.stop()
    on.incident()
    receiver.start()
    on.minutes(6)
    kinds = [kind for kind, key in actions(receiver) if key == alerts(on.client, KEYS)[-1].id]
    assert kinds == ["trigger", "resolve"]


def test_after_a_day_a_message_is_given_up_and_its_own_alert_is_told_elsewhere(
    rig: Any, receiver: Receiver
) -> None:
    with running() as broken:
        broken.answers = [500] * 10_000
        on = rig(pager(broken), pager(receiver, name="other"))
        on.minutes(3, level(), step_ms=10_000)
        on.minutes(24 * 60 + 10, step_ms=300_000)
        assert {one["sink"] for one in on.log("dead")} == {"pager"}
        assert len(broken.calls) > 200
    rules = [call.json["payload"]["class"] for call in receiver.accepted()]
    assert rules[0] == "level"
    assert "delivery_failed" in rules


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_sender_that_dies_anywhere_loses_nothing(rig: Any, receiver: Receiver, moment: str) -> None:
    """One that dies after the send tells the same again under the same id, and no end before a beginning."""
    on = rig(pager(receiver))
    for minute in range(60):
        on.judge(level() if minute < 40 else level(state="ok"))
        on.dies = [moment]
        on.tick()
        on.now_ms += MIN
        on.tick()
    on.dies = []
    on.minutes(3)
    told = actions(receiver)
    assert [kind for kind, _ in dict.fromkeys(told)] == ["trigger", "resolve"]
    assert len(told) == (2 if moment == "before" else 4)
    messages = [
        call.json["payload"]["custom_details"]["message"] for call in receiver.calls if "payload" in call.json
    ]
    assert len(set(messages)) == 1
    assert left(on) == []


@pytest.mark.parametrize("another", ["leads", "led"])
def test_a_sender_that_lost_its_lead_makes_no_attempt(rig: Any, receiver: Receiver, another: str) -> None:
    """Also when it leads again: what it wants to send may be over since."""
    on = rig(pager(receiver))
    on.minutes(2, level())
    on.judge(level())
    stale, now = on.sender, on.sinks.now

    def loses() -> AlertsConfig:
        on.client.set(KEYS.alerts_prefix + "leader", "77")
        if another == "led":
            on.client.delete(KEYS.alerts_prefix + "leader")
        return now()

    on.sinks.now = loses
    assert stale.tick() == 0
    assert receiver.calls == []
    on.sinks.now = now
    on.restart()
    assert on.tick() == 1
    assert stale.tick() == 0
    assert len(receiver.calls) == 1


def test_what_is_noted_twice_is_told_once(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver))
    on.minutes(2, level())
    on.judge(level())
    receiver.answers = [500]
    for _ in range(3):
        on.tick()
        on.restart()
    [one] = on.undelivered()
    assert (one["owed"], one["attempts"]) == ("trigger", 1)
    on.now_ms += 5_000
    assert (on.tick(), on.tick()) == (1, 0)
    assert [kind for kind, _ in actions(receiver)] == ["trigger"]


def test_incidents_that_begin_and_end_while_a_sink_is_away_are_all_told_in_order(
    rig: Any, receiver: Receiver
) -> None:
    on = rig(pager(receiver))
    receiver.stop()
    on.incident()
    on.incident()
    on.minutes(35, level())
    receiver.start()
    on.minutes(12, level())
    level_id = next(alert.id for alert in alerts(on.client, KEYS) if alert.rule == "level")
    kinds = [kind for kind, key in actions(receiver) if key == level_id]
    assert kinds == ["trigger", "resolve", "trigger", "resolve", "trigger"]


def test_secondary_sinks_hear_what_no_primary_accepts_and_its_end(rig: Any, receiver: Receiver) -> None:
    with running() as primary:
        primary.answers = [500] * 10_000
        on = rig(pager(primary), pager(receiver, name="second", secondary=True))
        on.minutes(6, level())
        assert actions(receiver) == []
        on.minutes(3, level())
        assert [kind for kind, _ in actions(receiver)] == ["trigger"]
        primary.answers = []
        on.minutes(30, level())
        on.minutes(20, level(state="ok"))
        level_id = next(alert.id for alert in alerts(on.client, KEYS) if alert.rule == "level")
        assert [kind for kind, key in actions(receiver) if key == level_id] == ["trigger", "resolve"]
        assert [kind for kind, key in actions(primary) if key == level_id] == ["trigger", "resolve"]


def test_a_secondary_sink_of_pages_hears_of_no_ticket(rig: Any, receiver: Receiver) -> None:
    with running() as primary:
        primary.answers = [500] * 10_000
        on = rig(pager(primary), pager(receiver, name="second", secondary=True, severities=("page",)))
        on.minutes(12, level(severity="ticket"))
        assert receiver.calls == []
        on.minutes(8, level())
        assert [call.json["payload"]["severity"] for call in receiver.accepted()] == ["critical"]


def test_a_fault_in_a_sink_is_tried_again_and_says_nothing_secret(
    rig: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = rig(pager(receiver))

    def fail(*_: Any) -> Any:
        raise ValueError("k" * 32)

    monkeypatch.setattr(PagerDuty, "event", fail)
    on.minutes(3, level())
    [line] = on.undelivered()
    assert line["error"] == "ValueError: ***"
    monkeypatch.undo()
    on.minutes(3, level())
    assert [kind for kind, _ in actions(receiver)] == ["trigger"]


def test_sinks_that_cannot_be_read_any_more_are_used_as_they_were_and_it_is_told(
    rig: Any, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secret's file goes away, and then the file of sinks is no TOML: pages go out all the same."""
    secret, file = tmp_path / "key", tmp_path / "alerts.toml"
    secret.write_text("k" * 32)
    good = f'[sinks.pager]\ntype = "pagerduty"\nrouting_key = {{ file = "{secret}" }}\nurl = "{receiver.url}"'
    file.write_text(good)
    on = rig()
    on.sinks.__init__(lambda: load(file))
    secret.unlink()
    on.minutes(3, level())
    file.write_text(good + "\n[")
    on.minutes(3, level())
    found = {one.rule: one for one in alerts(on.client, KEYS)}
    assert "is not TOML" in found["delivery_failed"].latest
    assert {call.json["dedup_key"] for call in receiver.accepted()} == {found[rule].id for rule in found}
    secret.write_text("k" * 32)
    file.write_text(good)
    on.minutes(45, level())
    assert [one.rule for one in alerts(on.client, KEYS) if one.phase == "firing"] == ["level"]


def test_a_sink_that_hangs_does_not_hold_up_the_others(
    rig: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten alerts one is tried at the sink that hangs; the other sink hears of all ten."""
    monkeypatch.setattr(http, "DEADLINE_S", 0.5)
    with running() as hanging:
        hanging.delay_s = 2.0
        on = rig(pager(hanging, name="hanging"), pager(receiver))
        on.judge(*(level(lane=str(n), evaluations=1) for n in range(10)))
        began_s = time.monotonic()
        on.tick()
        assert time.monotonic() - began_s < 5
        assert len(receiver.accepted()) == 10
        waiting = sorted((one["attempts"], one["error"]) for one in on.undelivered())
        assert waiting == [(0, "")] * 9 + [(1, "no answer within 0.5 s")]
        hanging.delay_s = 0.0
        on.minutes(3)
        assert len({call.json["dedup_key"] for call in hanging.accepted()}) == 10


@pytest.mark.parametrize(
    "bad",
    [b"", b"{", b"[]", b"null", b"[" * 50_000, b"9" * 50_000, b'{"kind": "trigger", "alert": {}}',
     b'{"kind": "trigger", "at_ms": 1, "alert": {"id": "x", "rule": "y", "severity": "loud"}}',
     b'{"kind": "trigger", "at_ms": 1, "alert": {"id": "x", "rule": "y", "told_ms": "z"}}', b"x" * 2_000_000],
    ids=range(10),
)  # fmt: skip
def test_a_record_that_cannot_be_read_keeps_no_page_back(rig: Any, receiver: Receiver, bad: bytes) -> None:
    on = rig(pager(receiver))
    prefix = KEYS.alerts_prefix
    on.client.xadd(KEYS.alerts_prefix + "ended", {"alert": bad})
    on.client.xadd(KEYS.alerts_prefix + "ended", {"other": bad})
    on.client.hset(prefix + "receipts", "bad", bad)
    for name in ("states", "silences"):
        on.client.hset(prefix + name, "bad", bad)
    on.client.hset(prefix + "silences", "odd", b'{"id": "o", "until_ms": "x", "later": 1}')
    on.minutes(4, level())
    assert "trigger" in {kind for kind, _ in actions(receiver)}
    assert [one["rule"] for one in on.log("dead")] == ["unreadable"] * 2
    assert on.client.xlen(KEYS.alerts_prefix + "ended") == 0
    found = {one.rule: one for one in alerts(on.client, KEYS)}
    assert found["level"].phase == "firing"
    assert found["delivery_failed"].phase in ("pending", "firing")


def test_an_attempt_that_ends_without_a_word_is_listed_with_one(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver))
    on.dies = ["before"] * 100
    on.minutes(5, level())
    [line] = on.undelivered()
    assert "without a word" in line["error"]


def test_secondary_sinks_hear_nothing_of_what_is_accepted(rig: Any, receiver: Receiver) -> None:
    with running() as second:
        on = rig(pager(receiver), pager(second, name="second", secondary=True))
        on.incident()
        assert second.calls == []
    assert len(actions(receiver)) == 2


def test_a_sink_of_pages_hears_of_a_ticket_once_it_is_a_page(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver, severities=("page",)))
    on.minutes(5, level(severity="ticket"))
    assert receiver.calls == []
    on.minutes(5, level())
    on.minutes(45, level(state="ok"))
    assert [kind for kind, _ in actions(receiver)] == ["trigger", "resolve"]


def test_a_sink_of_tickets_hears_of_the_end_of_one_that_became_a_page(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver, severities=("ticket",)))
    on.minutes(5, level(severity="ticket"))
    on.minutes(35, level())
    on.minutes(15, level(state="ok"))
    assert [kind for kind, _ in actions(receiver)] == ["trigger", "resolve"]
    assert left(on) == []


def test_a_sink_that_is_added_hears_what_fires_already(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver))
    on.minutes(5, level())
    with running() as new:
        sinks = {**on.config.sinks, "new": pager(new, name="new")}
        on.config = AlertsConfig(settings=AlertSettings(), sinks=sinks)
        on.minutes(3, level())
        assert [kind for kind, _ in actions(new)] == ["trigger"]
        assert len(actions(receiver)) == 1


def test_slack_gets_one_message_a_second(rig: Any, receiver: Receiver) -> None:
    on = rig(Slack(name="chat", url=Secret(receiver.url + "/services/T/B/X")))
    lanes = [level(lane=str(n), evaluations=1) for n in range(5)]
    on.judge(*lanes)
    for expected in (1, 1, 2, 2, 3):
        on.tick()
        assert len(receiver.calls) == expected
        on.now_ms += 500
    assert len(on.undelivered()) == 2


def test_alertmanager_is_told_every_minute_and_of_the_end_for_a_quarter_of_an_hour(
    rig: Any, receiver: Receiver
) -> None:
    on = rig(Alertmanager(name="am", url=receiver.url))
    on.minutes(10, level())
    firing = [call.json[0] for call in receiver.accepted()]
    assert 8 <= len(firing) <= 9  # the trigger, and the repeats of seven or eight minutes
    assert len({str(sorted(alert["labels"].items())) for alert in firing}) == 1
    assert firing[0]["labels"]["alertname"] == "amn_level"
    assert all(alert["endsAt"] > alert["startsAt"] for alert in firing)
    assert len({alert["endsAt"] for alert in firing}) >= 7
    on.minutes(30, level())
    on.minutes(10, level(state="ok"))
    before = len(receiver.calls)
    on.minutes(30, level(state="ok"))
    ended = [call.json[0] for call in receiver.accepted()[before:]]
    assert len({alert["endsAt"] for alert in ended[1:]}) == 1
    assert 14 <= len(ended) <= 17


def test_a_late_trigger_does_not_fire_again_at_alertmanager(rig: Any, receiver: Receiver) -> None:
    on = rig(Alertmanager(name="am", url=receiver.url))
    receiver.stop()
    on.incident()
    receiver.start()
    on.minutes(6)
    told = [alert for call in receiver.accepted() for alert in call.json]
    ends = {alert["endsAt"] for alert in told if alert["labels"]["alertname"] == "amn_level"}
    assert len(ends) == 1


def test_the_sender_tells_that_the_judge_is_dead_and_that_it_is_back(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver))
    on.minutes(5, level(state="ok"))
    on.minutes(40)
    [trigger] = receiver.accepted()
    assert trigger.json["payload"]["class"] == "judge_dead"
    assert trigger.json["payload"]["severity"] == "warning"
    on.minutes(15, level(state="ok"))
    assert [kind for kind, _ in actions(receiver)] == ["trigger", "resolve"]


def test_a_place_where_nobody_ever_judged_is_no_alarm(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver))
    on.minutes(30)
    assert receiver.calls == []


def test_a_judge_of_the_same_rules_does_not_end_what_the_sender_found(rig: Any, receiver: Receiver) -> None:
    receiver.answers = [400]
    on = rig(pager(receiver))
    on.minutes(120, level())
    found = {alert.rule: alert.phase for alert in alerts(on.client, KEYS)}
    assert found == {"level": "firing", "delivery_failed": "firing"}


def test_what_is_for_a_sink_that_is_gone_is_dropped(rig: Any, receiver: Receiver) -> None:
    with running() as gone:
        gone.answers = [500] * 100
        on = rig(pager(gone))
        on.minutes(4, level())
    on.config = AlertsConfig(settings=AlertSettings(), sinks={"other": pager(receiver, name="other")})
    on.sinks.now()
    on.restart()
    on.minutes(5, level())
    assert on.undelivered() == []


def test_only_one_sender_sends(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver))
    other = Sender(on.client, KEYS, on.sinks, clock=lambda: on.now_ms)
    assert on.tick() == 0
    on.minutes(2, level())
    on.judge(level())
    assert other.tick() == 0
    on.sender.resign()
    assert other.tick() == 1


def test_everything_the_alerts_keep_expires(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver))
    on.incident()
    receiver.answers = [202, 400, 500, 500]
    on.minutes(5, level(), level(lane="a"), level(lane="b"))
    on.minutes(60, level())
    receiver.stop()
    on.minutes(60, level(state="ok"))
    keys = on.client.keys(KEYS.alerts_prefix + "*")
    assert [key for key in keys if on.client.ttl(key) < 0] == []
    kept = ("states", "ended", "receipts", "sent", "dead", "leader", "fence", "looked_ms")
    assert {key.decode().removeprefix(KEYS.alerts_prefix) for key in keys} == set(kept)


def test_what_waits_for_its_time_is_sent_soon_after_the_clock_went_back(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver))
    receiver.stop()
    on.minutes(6, level())
    receiver.start()
    on.now_ms -= 60 * MIN
    on.minutes(6, level())
    assert [kind for kind, _ in actions(receiver)] == ["trigger"]
    receiver.stop()
    on.minutes(40, level())
    on.minutes(15, level(state="ok"))
    on.now_ms -= 60 * MIN
    on.restart()  # and so it is when another sender takes over
    receiver.start()
    on.minutes(6, level(state="ok"))
    assert [kind for kind, _ in actions(receiver)] == ["trigger", "resolve"]


def test_a_judge_that_falls_silent_as_the_clock_goes_back_is_dead(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver))
    on.minutes(5, level(state="ok"))
    on.now_ms -= 60 * MIN
    on.minutes(5)
    [trigger] = receiver.accepted()
    assert trigger.json["payload"]["class"] == "judge_dead"


@pytest.mark.parametrize("minutes", [-60, 60])
def test_a_step_of_the_clock_is_no_death_of_the_judge(rig: Any, receiver: Receiver, minutes: int) -> None:
    on = rig(pager(receiver))
    on.minutes(5, level(state="ok"))
    on.now_ms += minutes * MIN
    on.tick()  # before the judge, which lives, could look
    on.minutes(10, level(state="ok"))
    assert receiver.calls == []


def test_a_log_that_takes_nothing_has_no_message_sent_again(rig: Any, receiver: Receiver) -> None:
    on = rig(pager(receiver))
    on.client.set(KEYS.alerts_prefix + "sent", "no stream")
    on.minutes(30, level())
    assert [kind for kind, _ in actions(receiver)] == ["trigger"]
    assert left(on) == []
