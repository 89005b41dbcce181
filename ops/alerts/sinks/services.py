"""PagerDuty, Slack, Alertmanager, and a signed webhook for any other service.

Sources: PagerDuty Events API v2; Alertmanager API v2; the CloudEvents 1.0 specification, JSON format;
the Standard Webhooks specification, 2023.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from amn.output import strict_json
from ops.alerts.secret import Secret, plain
from ops.alerts.sinks.base import Message, Sink, SinkAnswer, clock, series
from ops.alerts.sinks.http import post
from ops.errors import SinksRefused

_SUMMARY_MAX = 1024
_LOUDNESS = {"page": "critical", "ticket": "warning"}
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
#: A firing alert ends by itself so long after it was last sent to Alertmanager: five repeats.
_ENDS_AFTER_MS = 5 * 60_000
_KEY_PREFIX, _KEY_BYTES_MIN = "whsec_", 24


@dataclass(frozen=True, slots=True, kw_only=True)
class PagerDuty(Sink):
    """Triggers and resolves by `dedup_key`; a repeat of either changes nothing there.

    Attributes:
        routing_key: Integration key of the service; a resolve needs the same one as its trigger.
        url: Address of the events API; another one for the EU region.
    """

    secrets: ClassVar[tuple[str, ...]] = ("routing_key",)

    routing_key: Secret
    url: str | Secret = field(default="https://events.pagerduty.com/v2/enqueue", repr=False)

    def _send(self, message: Message) -> SinkAnswer:
        return post(self.url, self.event(message))

    def event(self, message: Message) -> dict[str, Any]:
        """The body."""
        alert, runbook = message.alert, message.runbook
        event: dict[str, Any] = {"routing_key": self.routing_key.reveal(), "dedup_key": alert.id}
        if message.kind == "resolve":
            return {**event, "event_action": "resolve"}
        payload = {
            "summary": f"{alert.rule}{series(alert)}, on {message.origin}: {alert.summary}"[:_SUMMARY_MAX],
            "source": message.source,
            "severity": _LOUDNESS[alert.severity],
            "timestamp": clock(alert.since_ms),
            "component": alert.model,
            "group": alert.lane,
            "class": alert.rule,
            "custom_details": {**alert.values, "runbook": runbook, "message": message.id},
        }
        links = [{"href": runbook, "text": "runbook"}] if runbook.startswith("https://") else []
        return {**event, "event_action": "trigger", "payload": payload, "client": "amn", "links": links}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack(Sink):
    """Says by an incoming webhook when an incident begins, becomes a page and ends.

    Such a webhook cannot edit what it wrote, so reminders would only pile up; and it takes about one
    message a second.

    Attributes:
        url: Whoever knows it may write, so it is a secret.
    """

    reminded: ClassVar[bool] = False
    pace_ms: ClassVar[int] = 1_000
    secrets: ClassVar[tuple[str, ...]] = ("url",)

    url: Secret

    def _send(self, message: Message) -> SinkAnswer:
        return post(self.url, {"text": f"*{message.title}*\n{message.text}".translate(_ESCAPES)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Alertmanager(Sink):
    """Sends the state of now, again every minute; late messages do no harm.

    Attributes:
        url: Base address, such as http://127.0.0.1:9093.
        token: Bearer token, if it asks for one.
    """

    repeat_ms: ClassVar[int] = 60_000
    secrets: ClassVar[tuple[str, ...]] = ("token",)

    url: str | Secret = field(repr=False)
    token: Secret | None = None

    def _send(self, message: Message) -> SinkAnswer:
        headers = {"Authorization": f"Bearer {self.token.reveal()}"} if self.token else {}
        return post(f"{plain(self.url).rstrip('/')}/api/v2/alerts", [self.entry(message)], headers)

    def entry(self, message: Message) -> dict[str, Any]:
        """The alert. Labels are its identity: no number and no time is among them."""
        alert = message.alert
        labels = {
            "alertname": f"amn_{alert.rule}",
            "severity": alert.severity,
            "environment": message.settings.environment,
            "queue": message.queue,
            "model": alert.model,
            "lane": alert.lane,
        }
        annotations = {
            "summary": alert.summary,
            "runbook_url": message.runbook,
            "alert": alert.id,
            **{f"value_{name}": str(value) for name, value in alert.values.items()},
        }
        ends_ms = alert.resolved_ms if alert.phase == "ok" else message.now_ms + _ENDS_AFTER_MS
        return {
            "labels": {name: value for name, value in labels.items() if value},
            "annotations": annotations,
            "startsAt": clock(alert.fired_ms),
            "endsAt": clock(ends_ms),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook(Sink):
    """Posts signed events whose id stays the same over repeats.

    Attributes:
        keys: Signing keys, base64, with or without `whsec_`. With several, each signs: a receiver
            that knows the old or the new one accepts, so that a key can be changed in two steps.
    """

    secrets: ClassVar[tuple[str, ...]] = ("keys",)

    url: str | Secret = field(repr=False)
    keys: tuple[Secret, ...]

    def __post_init__(self) -> None:
        if not self.keys:
            raise SinksRefused(f"sink {self.name}: keys must name at least one signing key")
        if any(len(_key_bytes(key)) < _KEY_BYTES_MIN for key in self.keys):
            raise SinksRefused(
                f"sink {self.name}: a signing key must be base64 of {_KEY_BYTES_MIN} bytes or more; "
                "make one with: openssl rand -base64 32"
            )

    def _send(self, message: Message) -> SinkAnswer:
        body = strict_json(self.event(message), compact=True).encode()
        headers = signature_headers(self.keys, message.id, message.now_ms // 1000, body)
        return post(self.url, body, {**headers, "Content-Type": "application/cloudevents+json"})

    def event(self, message: Message) -> dict[str, Any]:
        """The body."""
        alert = message.alert
        return {
            "specversion": "1.0",
            "id": message.id,
            "source": f"/{message.source}",
            "type": "amn.alert.v1",
            "subject": alert.rule,
            "time": clock(message.at_ms),
            "datacontenttype": "application/json",
            "data": {
                "kind": message.kind,
                "alert": alert.id,
                "rule": alert.rule,
                "severity": alert.severity,
                "model": alert.model,
                "lane": alert.lane,
                "title": message.title,
                "text": message.text,
                "summary": alert.summary,
                "values": dict(alert.values),
                "runbook": message.runbook,
                "since": clock(alert.since_ms),
                "resolved": clock(alert.resolved_ms) if message.kind == "resolve" else None,
            },
        }


def signature_headers(keys: Iterable[Secret], message_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """Returns `webhook-id`, `webhook-timestamp` and `webhook-signature`.

    Args:
        at_s: Time of this attempt: receivers refuse what is older than five minutes.
    """
    signed = f"{message_id}.{at_s}.".encode() + body
    marks = (hmac.digest(_key_bytes(key), signed, hashlib.sha256) for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(mark).decode()}" for mark in marks),
    }


def _key_bytes(key: Secret) -> bytes:
    try:
        return base64.b64decode(key.reveal().removeprefix(_KEY_PREFIX), validate=True)
    except ValueError:
        return b""
