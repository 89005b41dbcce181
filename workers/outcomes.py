"""The ways in which a leased entry ends, as outcomes for the finish step."""

from __future__ import annotations

from dataclasses import replace

from producer import wire
from producer.errors import QueueError, WireError
from producer.messages import Answer, Failure, Request
from workers.queue import Entry, Outcome


def failure(entry: Entry, request: Request, error: QueueError) -> Outcome:
    """Ends an entry with a named failure."""
    reply = Failure(id=request.id, code=error.code, message=str(error), retryable=error.retryable)
    return Outcome(
        entry=entry,
        op="reply",
        reply_to=request.reply_to,
        payload=wire.encode_failure(reply),
        counters=f"failed,failed:{error.code}",
    )


def dead(entry: Entry, request: Request | None, reason: str, message: str) -> Outcome:
    """Sends an entry to the dead letters; the client is told when it is known."""
    payload, reply_to = b"", ""
    if request is not None:
        text = f"request {request.id} went to the dead letters ({reason}): {message}"
        payload = wire.encode_failure(Failure(id=request.id, code="dead_lettered", message=text))
        reply_to = request.reply_to
    return Outcome(
        entry=entry,
        op="dead",
        reply_to=reply_to,
        payload=payload,
        counters=f"dead,dead:{reason}",
        reason=reason,
        message=message[:500],
    )


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
