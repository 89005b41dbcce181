"""Random stories: sinks that come and go, senders that die anywhere, incidents that rise, rest and end."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest

from ops.alerts import AlertSettings, apply, books
from ops.alerts.config import AlertsConfig, Sinks
from ops.alerts.secret import Secret
from ops.alerts.sender import Sender
from ops.alerts.sinks.base import Message, Sink, SinkAnswer
from ops.alerts.sinks.services import PagerDuty, Slack
from ops.findings import Finding
from ops.leader import leader_key
from producer.keys import Keys

KEYS = Keys("main")
LANES = "abc"
STEP_MS = 20_000


class Died(BaseException):
    """The end of the sender's process."""


class Story:
    """A judge, senders one after the other, and receivers that remember what they accepted.

    Attributes:
        told: Incidents that became news, by lane and incident.
        heard: Kinds that a sink's receiver accepted, by sink, lane and incident, also when the sender died.
    """

    def __init__(self, client: Any, seed: int) -> None:
        self.client, self.draw, self.now_ms = client, random.Random(seed), 1_800_000_000_000
        secret = Secret("k" * 32)
        sinks: list[Sink] = [
            PagerDuty(name="pager", routing_key=secret),
            Slack(name="chat", url=secret),
            PagerDuty(name="second", routing_key=secret, secondary=True),
        ]
        self.config = AlertsConfig(settings=AlertSettings(), sinks={sink.name: sink for sink in sinks})
        self.up, self.deadly = dict.fromkeys(self.config.sinks, True), False
        self.state, self.severity = dict.fromkeys(LANES, "ok"), dict.fromkeys(LANES, "page")
        self.told: set[tuple[str, str]] = set()
        self.heard: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        client.set(leader_key(KEYS), "1")
        self.restart()

    def restart(self) -> None:
        self.client.delete(KEYS.alerts_prefix + "leader")
        self.sender = Sender(self.client, KEYS, Sinks(lambda: self.config), clock=lambda: self.now_ms)

    def send(self, sink: Sink, message: Message) -> SinkAnswer:
        """Stands in for the request of a sink."""
        fate = self.draw.random() if self.deadly else 0.5
        if fate < 0.1:
            raise Died
        if not self.up[sink.name] or self.draw.random() < 0.1:
            return SinkAnswer(outcome="again", detail="away", wait_ms=self.draw.choice([0, 0, 600_000]))
        if message.alert.rule == "level":
            self.heard[sink.name, message.alert.lane, message.alert.incident].append(message.kind)
        if fate > 0.9:
            raise Died
        return SinkAnswer(outcome="accepted")

    def minute(self, *, quiet: bool = False) -> None:
        self.deadly = not quiet and self.draw.random() < 0.4
        for lane in () if quiet else LANES:
            if self.draw.random() < 0.1:
                self.state[lane] = self.draw.choice(["firing", "ok", "insufficient"])
                self.severity[lane] = self.draw.choice(["page", "ticket"])
        for name in () if quiet else self.up:
            self.up[name] ^= self.draw.random() < 0.03
        self.client.hset(KEYS.drift_prefix + "judge", "evaluated_at_ms", self.now_ms)
        found = [
            Finding(rule="level", lane=lane, severity=self.severity[lane], state=self.state[lane])  # type: ignore[arg-type]
            for lane in LANES
        ]
        changes = apply(self.client, KEYS, found, now_ms=self.now_ms, fence=1, settings=AlertSettings())
        self.told |= {(one.alert.lane, one.alert.incident) for one in changes if one.kind == "trigger"}
        for _ in range(3):
            try:
                self.sender.tick()
            except Died:
                self.restart()
            self.now_ms += STEP_MS


@pytest.mark.parametrize("seed", range(2))
def test_each_incident_is_told_from_its_beginning_to_its_end(
    server: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every primary sink hears of every incident, none of an end first, and of nothing after its end."""
    story = Story(server.admin, seed)
    monkeypatch.setattr(Sink, "send", lambda sink, message: story.send(sink, message))
    for _ in range(120):
        story.minute()
    story.state, story.up = dict.fromkeys(LANES, "ok"), dict.fromkeys(story.up, True)
    for _ in range(60):
        story.minute(quiet=True)
    assert story.told
    for name in ("pager", "chat"):
        assert {(lane, incident) for sink, lane, incident in story.heard if sink == name} == story.told
    for kinds in story.heard.values():
        assert (kinds[0], kinds[-1]) == ("trigger", "resolve")
        assert set(kinds[kinds.index("resolve") :]) == {"resolve"}
    left = books.read(server.admin, KEYS)
    assert (left.ended, left.undelivered()) == ({}, [])
