"""Any other service: a CloudEvents 1.0 body, signed as Standard Webhooks says.

Sources: the CloudEvents 1.0 specification, JSON format; the Standard Webhooks specification, 2023.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from amn.output import strict_json
from ops.alerts.secret import Secret
from ops.alerts.sinks.answer import SinkAnswer, post
from ops.alerts.sinks.base import Sink, SinkMessage
from ops.alerts.wording import clock, text, title
from ops.errors import SinksRefused

EVENT_TYPE = "amn.alert.v1"
_PREFIX = "whsec_"
_KEY_BYTES_MIN = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook(Sink):
    """Posts events whose id stays the same over repeats.

    Attributes:
        url: Of the receiver.
        keys: Signing keys, base64, with or without `whsec_`. With several, each signs: a receiver
            that knows the old or the new one accepts, so that a key can be changed in two steps.
    """

    secrets: ClassVar[tuple[str, ...]] = ("keys",)

    url: str | Secret = field(repr=False)
    keys: tuple[Secret, ...]

    def __post_init__(self) -> None:
        if not self.keys:
            raise SinksRefused(f"sink {self.name}: keys must name at least one signing key")
        for key in self.keys:
            if len(_key_bytes(key)) < _KEY_BYTES_MIN:
                raise SinksRefused(
                    f"sink {self.name}: a signing key must be base64 of {_KEY_BYTES_MIN} bytes or more; "
                    "make one with: openssl rand -base64 32"
                )

    def _send(self, envelope: SinkMessage) -> SinkAnswer:
        body = strict_json(self.event(envelope), compact=True).encode()
        headers = signature_headers(self.keys, envelope.message.id, envelope.now_ms // 1000, body)
        headers["Content-Type"] = "application/cloudevents+json"
        return post(self.url, headers, content=body)

    def event(self, envelope: SinkMessage) -> dict[str, Any]:
        """The body."""
        message, alert = envelope.message, envelope.message.alert
        return {
            "specversion": "1.0",
            "id": message.id,
            "source": f"/amn/{envelope.settings.environment or 'default'}/{envelope.queue}",
            "type": EVENT_TYPE,
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
                "title": title(message, envelope.place),
                "text": text(message, envelope.runbook),
                "summary": alert.summary,
                "values": dict(alert.values),
                "runbook": envelope.runbook,
                "since": clock(alert.since_ms),
                "resolved": clock(alert.resolved_ms) if message.kind == "resolve" else None,
            },
        }


def signature_headers(keys: Iterable[Secret], message_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """`webhook-id`, `webhook-timestamp`, `webhook-signature`.

    Args:
        at_s: Of this attempt: receivers refuse what is older than five minutes.
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
        return base64.b64decode(key.reveal().removeprefix(_PREFIX), validate=True)
    except ValueError:
        return b""
