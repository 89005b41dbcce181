"""Receipts: the news of each incident that each sink has acknowledged, and what it is owed.

An incident that was told is compared with the receipt of each sink; the difference is the next message.
So a sink is told once, again when it ends, and never of an end before its beginning, whatever dies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from ops.alerts.alert import Alert, Kind, louder
from ops.alerts.config import AlertsConfig
from ops.alerts.settings import AlertSettings
from ops.alerts.sinks.base import Sink, SinkAnswer

#: A sink that wants the state again hears of an end for so long, as Prometheus repeats it.
_RESOLVED_FOR_MS = 15 * 60_000
#: The error of an attempt until another one is written.
_NO_WORD = "an attempt ended without a word; see the sender's log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The news of one incident that one sink has acknowledged, and the attempts to tell it more.

    Attributes:
        severity: The severity that it acknowledged; "" before it acknowledged anything.
        told_ms: The alert's `told_ms` that it acknowledged.    ended: It acknowledged the end.
        gave_up: The last message was given up instead of acknowledged.
        owed: Kind of the message under way; "" for none.    owed_ms: Since when.
        attempts: Made to deliver it.    error: Of the last one.
        tried_ms, next_ms: Times of the last attempt and of the next.
    """

    severity: str = ""
    told_ms: int = 0
    ended: bool = False
    gave_up: bool = False
    owed: Kind = ""
    owed_ms: int = 0
    attempts: int = 0
    error: str = ""
    tried_ms: int = 0
    next_ms: int = 0

    def waits(self, now_ms: int) -> bool:
        """True before the next attempt; a last attempt in the future is of before the clock went back."""
        return self.tried_ms <= now_ms < self.next_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """An incident, and the receipt of a sink that names what it is owed of it."""

    sink: Sink
    alert: Alert
    receipt: Receipt

    @property
    def name(self) -> str:
        """The name of the receipt."""
        return f"{self.sink.name}|{self.alert.name}"

    @property
    def kind(self) -> Kind:
        """Kind of the message that is owed; "" for none."""
        return self.receipt.owed

    def closed(self, now_ms: int) -> bool:
        """True if this sink is never again owed anything of an incident that ended."""
        repeats = self.sink.repeat_ms and now_ms - self.alert.resolved_ms < _RESOLVED_FOR_MS
        return not self.kind and not repeats


def compare(
    config: AlertsConfig, incidents: Iterable[Alert], receipts: Mapping[str, Receipt], now_ms: int
) -> list[Owed]:
    """Compares what is with what was acknowledged, for each incident and sink, and notes what is owed."""
    found = []
    for alert in incidents:
        mine = {n: receipts.get(f"{n}|{alert.name}", Receipt()) for n in config.sinks}
        unheard = _unheard(config, alert, mine, now_ms)
        for name, sink in config.sinks.items():
            receipt = _noted(mine[name], _kind(sink, alert, mine[name], unheard, now_ms), now_ms)
            found.append(Owed(sink=sink, alert=alert, receipt=receipt))
    return found


def firsts(owed: Sequence[Owed]) -> list[Owed]:
    """Returns the first message of each sink and alert: incidents of one alert are told in their order."""
    lines: dict[tuple[str, str], Owed] = {}
    for one in owed:
        if one.kind:
            lines.setdefault((one.sink.name, one.alert.id), one)
    return sorted(lines.values(), key=lambda one: (one.receipt.tried_ms, one.receipt.owed_ms))


def _unheard(config: AlertsConfig, alert: Alert, receipts: Mapping[str, Receipt], now_ms: int) -> bool:
    """True if it was told some time ago, and no primary sink that wants it has accepted it.

    Not before a sender has taken it up: that one tries the primary sinks first.
    """
    if alert.phase != "ok" and 0 <= now_ms - alert.told_ms < config.settings.second_after_ms:
        return False
    sinks = [
        one for one in config.sinks.values() if not one.secondary and one.wants("trigger", alert.severity)
    ]
    known = [receipts[one.name] for one in sinks]
    taken = bool(sinks) and all(one.owed or one.severity for one in known)
    return taken and all(one.gave_up or louder(alert.severity, one.severity) for one in known)


def _kind(sink: Sink, alert: Alert, receipt: Receipt, unheard: bool, now_ms: int) -> Kind:
    again = bool(sink.repeat_ms) and not 0 <= now_ms - receipt.tried_ms < sink.repeat_ms
    if receipt.ended:
        return "resolve" if again and now_ms - alert.resolved_ms < _RESOLVED_FOR_MS else ""
    if alert.phase == "ok" and receipt.severity:
        return "resolve"
    # The receiver may have heard an attempt: only an answer ends it, and then its end is owed.
    tried = receipt.attempts > 0
    if sink.secondary and not (unheard or tried or (again and receipt.severity)):
        return ""
    kind: Kind = ""
    if not receipt.severity:
        kind = "trigger"
    elif louder(alert.severity, receipt.severity):
        kind = "raised"
    elif again or (alert.told_ms > receipt.told_ms and not sink.secondary):
        kind = "reminder"
    return kind if tried or sink.wants(kind, alert.severity) else ""


def _noted(receipt: Receipt, kind: Kind, now_ms: int) -> Receipt:
    if kind == receipt.owed:
        return receipt
    return replace(receipt, owed=kind, owed_ms=now_ms if kind else 0, attempts=0, error="", next_ms=0)


def begun(receipt: Receipt, now_ms: int, chance: float) -> Receipt:
    """Returns the receipt of an attempt that begins, as it stays when the sender dies in it."""
    number = receipt.attempts + 1
    next_ms = now_ms + pause_ms(number, chance)
    return replace(receipt, attempts=number, tried_ms=now_ms, next_ms=next_ms, error=_NO_WORD)


def settled(owed: Owed, answer: SinkAnswer, now_ms: int, settings: AlertSettings) -> Receipt:
    """Returns the receipt after an attempt that had begun; one that is given up is no longer owed."""
    receipt = owed.receipt
    if answer.outcome == "again" and now_ms - receipt.owed_ms < settings.give_up_ms:
        next_ms = max(now_ms + receipt.next_ms - receipt.tried_ms, now_ms + answer.wait_ms)
        return replace(receipt, tried_ms=now_ms, next_ms=next_ms, error=answer.detail)
    return Receipt(
        severity=owed.alert.severity,
        told_ms=owed.alert.told_ms,
        ended=owed.kind == "resolve",
        gave_up=answer.outcome != "accepted",
        tried_ms=now_ms,
    )


def pause_ms(number: int, chance: float) -> int:
    """Returns the pause after an attempt: it doubles from 5 s to 5 min, each half of it or more.

    Args:
        number: Of the attempt, from 1 on.
        chance: Uniform in 0 to 1: receivers that come back are not hit by everybody at once.
    """
    longest_ms = min(5_000 * 2 ** min(number - 1, 10), 300_000)
    return int(longest_ms * (0.5 + chance / 2))
