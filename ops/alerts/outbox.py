"""From the outbox to the sinks: who is told what, in which order, and what came of it.

A *line* is one sink and one alert: its messages are delivered in their order, one attempt at a time,
because an end that arrives before its beginning leaves an incident open for ever.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import redis

from ops.alerts.alert import UNREADABLE, Alert, Message, record
from ops.alerts.config import AlertsConfig
from ops.alerts.settings import AlertSettings
from ops.alerts.sinks.answer import SinkAnswer
from ops.alerts.sinks.base import Sink
from ops.alerts.store import outbox_key
from producer.keys import Keys
from producer.transport.connection import script_text

#: An attempt that was not settled by then is made again.
LEASE_MS = 60_000
#: Messages and what is known of their delivery; well beyond `give_up_ms`.
_KEPT_S = 8 * 24 * 3600
_LOG_MAX = 1_000
_AT_ONCE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt to deliver.

    Attributes:
        line: "sink|alert id".    message: Its id.    number: From 1 on.
    """

    line: str
    message: str
    number: int

    @property
    def sink(self) -> str:
        """Name of the sink."""
        return self.line.partition("|")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Undelivered:
    """A line whose first message is still on its way.

    Attributes:
        line: "sink|alert id".    attempts: Made so far.    error: Of the last one.
        taken_ms: When the message was taken from the outbox.    due_ms: Next attempt.
        rule: Of the alert.
    """

    line: str
    attempts: int
    error: str
    taken_ms: int
    due_ms: int
    rule: str

    @property
    def sink(self) -> str:
        """Name of the sink."""
        return self.line.partition("|")[0]


class Outbox:
    """The steps of a delivery; each is one script, safe to repeat."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client, self._keys = client, keys
        self._prefix = keys.alerts_prefix
        names = ("fan_out", "second", "lease", "begin", "settle", "rewind")
        self._scripts = {name: client.register_script(script_text("ops.alerts", name)) for name in names}

    def rewind(self, back_ms: int) -> None:
        """Moves what waits for its time back with the server's clock."""
        keys = [self._key(name) for name in ("due", "waiting", "pace")]
        self._scripts["rewind"](keys=keys, args=[back_ms])

    def fan_out(self, config: AlertsConfig, now_ms: int) -> int:
        """Gives waiting messages to the primary sinks that want them; returns how many there were."""
        entries = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]",
            self._client.xrange(outbox_key(self._keys), count=_AT_ONCE),
        )
        for entry, fields in entries:
            try:
                record(fields[b"message"], partial(self._fan_out, entry.decode(), config, now_ms))
            except UNREADABLE as error:
                self._drop(entry, f"{type(error).__name__}: {error!s:.200}", now_ms)
        return len(entries)

    def _drop(self, entry: bytes, detail: str, now_ms: int) -> None:
        """Gives up an entry that is no message, and tells so; left in place it would keep others back."""
        said: dict[str, str | int] = dict.fromkeys(("sink", "message", "alert", "kind"), "")
        said |= {"rule": "unreadable", "attempt": 0, "detail": detail, "at_ms": now_ms}
        with self._client.pipeline(transaction=True) as pipe:
            pipe.xadd(self._key("dead"), said, maxlen=_LOG_MAX)  # type: ignore[arg-type]
            pipe.expire(self._key("dead"), _KEPT_S)
            pipe.xdel(outbox_key(self._keys), entry)
            pipe.execute()

    def _fan_out(self, entry: str, config: AlertsConfig, now_ms: int, stored: Mapping[str, Any]) -> None:
        alert, kind = stored["alert"], stored["kind"]
        Alert.from_json(alert)  # what cannot be sent later is refused now
        message_id = f"{alert['id'][:8]}-{entry}"
        wanted = [sink for sink in config.sinks.values() if sink.wants(kind, alert["severity"])]
        sinks = [sink.name for sink in wanted if not sink.secondary]
        seconds = [sink.name for sink in wanted if sink.secondary]
        awaited = bool(sinks and seconds) and kind in ("trigger", "raised")
        too_late_ms = now_ms + config.settings.second_after_ms if awaited else 0
        self._scripts["fan_out"](
            keys=[outbox_key(self._keys), self._key("due"), self._key("waiting")],
            args=[
                self._prefix,
                entry,
                message_id,
                json.dumps({"id": message_id, **stored}, separators=(",", ":")),
                alert["id"],
                kind,
                now_ms,
                _KEPT_S,
                too_late_ms,
                ",".join(seconds),
                *sinks,
            ],
        )

    def second(self, now_ms: int) -> list[str]:
        """Tells the secondary sinks what no primary one accepted in time; returns the alerts."""
        late = self._scripts["second"](
            keys=[self._key("waiting"), self._key("due")], args=[self._prefix, now_ms, _KEPT_S]
        )
        return [alert.decode() for alert in cast("list[bytes]", late)]

    def lease(self, config: AlertsConfig, now_ms: int) -> Attempt | None:
        """The attempt to make now; None when nothing is due."""
        paces = [word for sink in config.sinks.values() for word in (sink.name, sink.pace_ms)]
        handed = cast(
            "list[bytes] | None",
            self._scripts["lease"](
                keys=[self._key("due"), self._key("pace")],
                args=[self._prefix, now_ms, LEASE_MS, _AT_ONCE, _KEPT_S, *paces],
            ),
        )
        if not handed:
            return None
        line, message, number = (word.decode() for word in handed)
        return Attempt(line=line, message=message, number=int(number))

    def begin(self, attempt: Attempt, now_ms: int) -> tuple[Message, int] | None:
        """The message and when it was taken up; None when this attempt is not wanted any more."""
        found = self._scripts["begin"](
            keys=[self._key("due"), *self._line_keys(attempt), self._key(f"message:{attempt.message}")],
            args=[attempt.line, attempt.message, attempt.number, now_ms + LEASE_MS],
        )
        if found is None:
            return None
        body, taken_ms = cast("list[bytes]", found)
        stored = json.loads(body)
        alert = Alert.from_json(stored["alert"])
        message = Message(id=stored["id"], kind=stored["kind"], at_ms=stored["at_ms"], alert=alert)
        return message, int(taken_ms)

    def settle(
        self, attempt: Attempt, message: Message, sink: Sink, answer: SinkAnswer, *, now_ms: int, next_ms: int
    ) -> bool:
        """Writes the outcome; `next_ms` is the next attempt, 0 for never. False: another took over."""
        outcome = answer.outcome if answer.outcome == "accepted" else ("again" if next_ms else "dead")
        logs = [self._key(name) for name in ("waiting", "pace", "sent", "dead")]
        return bool(
            self._scripts["settle"](
                keys=[
                    self._key("due"),
                    *self._line_keys(attempt),
                    *logs,
                    self._key(f"incident:{message.alert.id}"),
                ],
                args=[
                    attempt.line,
                    attempt.message,
                    attempt.number,
                    outcome,
                    now_ms,
                    next_ms,
                    sink.name,
                    now_ms + answer.wait_ms if answer.wait_ms else 0,
                    int(not sink.secondary),
                    message.alert.id,
                    answer.detail,
                    _KEPT_S,
                    _LOG_MAX,
                    message.alert.rule,
                    message.kind,
                ],
            )
        )

    def waits(self) -> int:
        """Messages that no sender has taken up."""
        return int(self._client.xlen(outbox_key(self._keys)))

    def undelivered(self) -> list[Undelivered]:
        """Lines with something to deliver, the next one first."""
        due = cast(
            "list[tuple[bytes, float]]",
            self._client.zrange(self._key("due"), 0, _LOG_MAX - 1, withscores=True),
        )
        lines = [(line.decode(), int(at)) for line, at in due]
        with self._client.pipeline(transaction=False) as pipe:
            for line, _ in lines:
                pipe.lindex(self._key(f"line:{line}"), 0)
                pipe.hmget(self._key(f"tries:{line}"), "attempt", "error")
            found = pipe.execute()
        with self._client.pipeline(transaction=False) as pipe:
            for head in found[::2]:
                pipe.hmget(self._key(f"message:{(head or b'').decode()}"), "taken_ms", "body")
            messages = pipe.execute()
        return [
            Undelivered(
                line=line,
                attempts=int(tries[0] or 0),
                error=_said(tries),
                taken_ms=int(taken_ms),
                due_ms=at,
                rule=_rule(body),
            )
            for (line, at), tries, (taken_ms, body) in zip(lines, found[1::2], messages, strict=True)
            if body is not None
        ]

    def log(self, name: str, since_ms: int = 0) -> list[dict[str, str]]:
        """Entries of "sent" or "dead" since then, newest first."""
        entries = cast(
            "list[tuple[bytes, dict[bytes, bytes]]]",
            self._client.xrevrange(self._key(name), count=_LOG_MAX),
        )
        found = [
            {field.decode(): value.decode("utf-8", "replace") for field, value in fields.items()}
            for _, fields in entries
        ]
        return [fields for fields in found if int(fields["at_ms"]) >= since_ms]

    def _line_keys(self, attempt: Attempt) -> list[str]:
        return [self._key(f"line:{attempt.line}"), self._key(f"tries:{attempt.line}")]

    def _key(self, name: str) -> str:
        return self._prefix + name


def _said(tries: Sequence[bytes | None]) -> str:
    """Returns the words of the last attempt that said something, if any did."""
    if tries[1] or int(tries[0] or 0) < 2:
        return (tries[1] or b"").decode("utf-8", "replace")
    return f"{int(tries[0] or 0) - 1} attempts ended without a word; see the sender's log"


def _rule(body: bytes) -> str:
    try:
        return record(body, lambda stored: str(stored["alert"]["rule"]))
    except UNREADABLE:
        return "unreadable"


def next_attempt_ms(number: int, now_ms: int, taken_ms: int, settings: AlertSettings, chance: float) -> int:
    """Returns the time of the next attempt: pauses double from 5 s to 5 min, each half of it or more.

    Args:
        number: Of the attempt that failed, from 1 on.
        chance: Uniform in 0 to 1: receivers that come back are not hit by everybody at once.

    Returns:
        Epoch milliseconds; 0 when it is given up.
    """
    if now_ms - taken_ms >= settings.give_up_ms:
        return 0
    longest_ms = min(5_000 * 2 ** min(number - 1, 10), 300_000)
    return now_ms + int(longest_ms * (0.5 + chance / 2))
