"""The ways in which a leased entry ends, as outcomes for the finish step."""

from __future__ import annotations

from dataclasses import replace

from producer.errors import QueueError, WireError
from producer.keys import ID, REQUEST
from producer.messages import BULK_PRIORITY, Answer, Failure, Request
from producer.protocol import wire
from producer.protocol.peek import Envelope, envelope, sender
from workers.engine.entry import BULK_PLACE, Entry, Outcome

#: Why an entry that was begun too often is a dead letter.
WORKER_DIED = "worker_died"

#: Counts what AMN escalates of the requests for which nobody waits.
BULK_ESCALATED = "bulk:escalated"
#: Contexts of an escalated batch beyond its first.
EXTRA_ESCALATED = "batch:extra:escalated"


def is_bulk(entry: Entry, request: Request | Envelope | None) -> bool:
    """True of bulk work, for which nobody waits: it has objectives of its own (docs/alerts.md)."""
    return entry.place == BULK_PLACE or (isinstance(request, Request) and request.priority == BULK_PRIORITY)


def _ended_badly(entry: Entry, request: Request | Envelope | None) -> str:
    if not is_bulk(entry, request):
        return ""
    # One that was escalated is counted as bulk already, when AMN decided it.
    return ",bulk:failed" if entry.place > BULK_PLACE else ",bulk,bulk:failed"


def failure(entry: Entry, request: Request | Envelope, error: QueueError) -> Outcome:
    """Ends an entry with a named failure."""
    reply = Failure(
        id=request.id,
        code=error.code,
        message=str(error),
        retryable=error.retryable,
        traceparent=request.traceparent,
    )
    return Outcome(
        entry=entry,
        op="reply",
        reply_to=request.reply_to,
        payload=wire.encode_failure(reply),
        counters=f"failed,failed:{error.code}{_ended_badly(entry, request)}",
    )


def dead(entry: Entry, request: Request | Envelope | None, reason: str, message: str) -> Outcome:
    """Sends an entry to the dead letters; the client is told when it is known."""
    payload, reply_to = b"", ""
    if request is not None:
        text = f"request {request.id} went to the dead letters ({reason}): {message}"
        told = Failure(id=request.id, code="dead_lettered", message=text, traceparent=request.traceparent)
        payload = wire.encode_failure(told)
        reply_to = request.reply_to
    return Outcome(
        entry=entry,
        op="dead",
        reply_to=reply_to,
        payload=payload,
        counters=f"dead,dead:{reason}{_ended_badly(entry, request)}",
        reason=reason,
        message=message[:500],
    )


def unreadable(entry: Entry, error: WireError) -> Outcome:
    """Ends an entry whose message cannot be decoded: its client is told what is wrong with it.

    It is a dead letter where the message does not name its client. An escalated one, which AMN could
    read, is answered with what it carries.
    """
    sent_by = sender(entry.fields.get(REQUEST, b""), entry.fields.get(ID, b""))
    if sent_by is None:
        return dead(entry, None, error.code, str(error))
    if (fast := fast_answer(entry)) is not None:
        return degraded(entry, sent_by.reply_to, fast, "fallback_failed")
    return failure(entry, sent_by, error)


def dead_with_answer(entry: Entry, request: Request | Envelope | None, reason: str, message: str) -> Outcome:
    """Sends an entry to the dead letters; the client of an escalated one gets its AMN answer."""
    outcome, fast = dead(entry, request, reason, message), fast_answer(entry)
    if fast is not None and request is not None:
        answer = degraded(entry, request.reply_to, fast, "fallback_failed")
        outcome.payload, outcome.counters = answer.payload, answer.counters
    return outcome


def begun_too_often(entry: Entry, deliveries_max: int) -> Outcome:
    """Ends an entry whose workers died over it, or hung, each time that one of them began it.

    Its request is not decoded. The AMN answer that it may carry is, the first time; if the worker
    died over that as well, the second time nothing is.
    """
    text = f"begun {entry.deliveries - 1} times, and each time its worker died, hung or could not end it"
    sent_by = envelope(entry.fields.get(REQUEST, b""), entry.fields.get(ID, b""))
    end = dead_with_answer if entry.deliveries == deliveries_max + 1 else dead
    return end(entry, sent_by, WORKER_DIED, text)


def fast_answer(entry: Entry) -> Answer | None:
    """The AMN answer that an escalated entry carries."""
    try:
        reply = wire.decode_reply(entry.fields.get(b"answer", b""))
    except WireError:
        return None
    return None if isinstance(reply, Failure) else reply


def degraded(entry: Entry, reply_to: str, fast: Answer, why: str) -> Outcome:
    """Ends an escalated entry with its AMN answer, marked with the reason."""
    outcome = answered(entry, reply_to, replace(fast, provisional=False, degraded=why))
    outcome.counters += f",degraded,degraded:{why}"
    return outcome


def answered(entry: Entry, reply_to: str, reply: Answer) -> Outcome:
    """Ends an entry with its final answer."""
    return Outcome(
        entry=entry,
        op="reply",
        reply_to=reply_to,
        payload=wire.encode_reply(reply),
        counters=f"answered,answered:{reply.served_by}",
    )


def served_fast(outcome: Outcome) -> Outcome:
    """The best answer so far, of an escalation that found no room in the next stream."""
    reply = wire.decode_reply(outcome.payload)
    assert not isinstance(reply, Failure)
    counted = outcome.counters.split(",")
    moved, *others = (name for name in counted if not name.startswith((BULK_ESCALATED, EXTRA_ESCALATED)))
    counters = ",".join(["answered", f"answered:{reply.served_by}", *others])
    if moved != "escalated":  # a fallback's answer, which the next tier could not better
        payload = wire.encode_reply(replace(reply, provisional=False))
        return replace(outcome, op="reply", payload=payload, counters=counters)
    return replace(
        outcome,
        op="reply",
        payload=wire.encode_reply(reply.shed_for("fallback_full")),
        counters=counters + ",shed,shed:fallback_full",
    )
