"""The fields of every message as a table for machines: `amn wire fields` prints it as JSON.

Types and defaults are those by which messages are decoded; docs/wire.md is held against it by a test.
"""

from __future__ import annotations

from typing import Any

from producer.keys import ID_PATTERN, NAME_PATTERN
from producer.messages import (
    BATCH_BYTES_MAX,
    BATCH_CONTEXTS_MAX,
    CONTEXT_SHAPE,
    NORM_TOLERANCE,
    PAYLOAD_BYTES_MAX,
    TEXT_LENGTH_MAX,
)
from producer.protocol import batches, replies, wire
from producer.protocol.maps import BESIDE_BYTES_MAX, MAP_MAX, WIRE_VERSION, Fields

_TIME: dict[str, object] = {"minimum": 0, "below": wire.TIME_MS_MAX}
_VERSION = {"name": "version", "type": "integer", "required": True, "value": WIRE_VERSION}
#: The values of a request's fields that are taken, beyond their type.
_RANGES: dict[str, dict[str, object]] = {
    "id": {"pattern": ID_PATTERN},
    "reply_to": {"pattern": NAME_PATTERN},
    "dtype": {"values": list(wire.CONTEXT_BYTES)},
    "shape": {"values": [[*CONTEXT_SHAPE], ["n", *CONTEXT_SHAPE]], "n_maximum": BATCH_CONTEXTS_MAX},
    "context": {"length_bytes": wire.CONTEXT_BYTES, "norm": 1, "norm_tolerance": NORM_TOLERANCE},
    "submitted_at_ms": _TIME,
    "expires_at_ms": _TIME,
    **{name: {"length_maximum": TEXT_LENGTH_MAX} for name in wire.TEXTS},
}


def tables() -> dict[str, Any]:
    """The limits of all messages, and of each kind its fields in order.

    A field has `name`, `type` as msgpack calls it, `required`, its `default` where it may be left out and has
    one, and its range: `value`, `values`, `pattern`, `minimum`, `below`, `length_maximum`.
    """
    request = wire.REQUEST.rows() + wire.RARE.rows()
    return {
        "version": WIRE_VERSION,
        "limits": {
            "message_bytes": PAYLOAD_BYTES_MAX,
            "batch_bytes": BATCH_BYTES_MAX,
            "bytes_beside_bins": BESIDE_BYTES_MAX,
            "list_items": BATCH_CONTEXTS_MAX,
            "map_fields": MAP_MAX,
        },
        "messages": {
            "request": [_VERSION, *(row | _RANGES.get(row["name"], {}) for row in request)],
            "answered": _reply("answered", replies.REPLY),
            "answered_batch": _reply("answered", batches.BATCH),
            "failed": _reply("failed", replies.FAILURE),
            "timings": batches.TIMINGS.rows(),
        },
    }


def _reply(status: str, fields: Fields) -> list[dict[str, Any]]:
    return [_VERSION, {"name": "status", "type": "text", "required": True, "value": status}, *fields.rows()]
