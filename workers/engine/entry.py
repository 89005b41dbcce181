"""A leased entry of a stream, and the outcomes that it can have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from producer.messages import BULK_PRIORITY, PRIORITIES, Request

#: Place of the level `low`.
BULK_PLACE = 1 + PRIORITIES.index(BULK_PRIORITY)


class Entry(NamedTuple):
    """A leased stream entry.

    Attributes:
        id: Stream id; its first part is the server's time of the append, epoch ms.
        fields: As stored.
        deliveries: 1 of an entry that nobody had before. Else how often it was begun, this time and
            its first delivery included.
        place: Number of its stream (producer/keys.py); 0 for the shadow stream, 1 for the one
            of reported truths beside it.
    """

    id: bytes
    fields: dict[bytes, bytes]
    deliveries: int = 1
    place: int = 0


class Moments(NamedTuple):
    """The moments of a micro-batch: its read by the server's clock, and by the monotonic one here its read,
    the start of the model, that of the gate, and when its outcomes stood."""

    leased_at_ms: float
    leased_at_s: float
    started_s: float
    predicted_s: float
    decided_s: float


#: Of a worker that counts no times.
NO_MOMENTS = Moments(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The end of one leased entry.

    Attributes:
        entry: The entry.
        op: "reply", "escalate" (to the next stream of the chain), "both" (escalate, and answer
            provisionally) or "dead".
        reply_to: Client id, or "" when nobody can be told.
        payload: Reply bytes for the client; of an escalated request, the best answer so far.
        counters: Names to count, comma-separated.
        sample_key: Set when the request goes to the shadow stream: "k key", taken at the rate 1/k.
        truth_key, truth: Set when this request reveals the truth of a sampled predecessor.
        reason, message: Of a dead letter.
        request, moments: For the times of the stages: the request, if it could be decoded, and the
            moments of its micro-batch.
    """

    entry: Entry
    op: str
    reply_to: str = ""
    payload: bytes = b""
    counters: str = ""
    sample_key: str = ""
    truth_key: str = ""
    truth: bytes = b""
    reason: str = ""
    message: str = ""
    request: Request | None = None
    moments: Moments = NO_MOMENTS
