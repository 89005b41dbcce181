"""Whom a request is from, found in its bytes without decoding them.

Who gives up a request that may have killed the processes that worked on it must not decode it: the
decoder may be what died. The names are short texts at the front, so that looking for them is enough.
"""

from __future__ import annotations

from typing import NamedTuple

from producer.keys import valid_client, valid_id

_FIXED, _FIXED_MASK, _SHORT = 0xA0, 0xE0, 0xD9  # msgpack: texts below 32 bytes, and up to 255


class Envelope(NamedTuple):
    """The fields of a `Request` that are needed to tell its client of the end."""

    id: str
    reply_to: str


def envelope(payload: bytes, request_id: bytes = b"") -> Envelope | None:
    """Id and client of an encoded request, or None where they cannot be found in this way.

    Args:
        request_id: The id beside the payload, where the entry has one.
    """
    found = Envelope(
        request_id.decode("ascii", "replace") or _text_behind(b"\xa2id", payload),
        _text_behind(b"\xa8reply_to", payload),
    )
    return found if valid_id(found.id) and valid_client(found.reply_to) else None


def _text_behind(field: bytes, payload: bytes) -> str:
    """The text behind the first occurrence of an encoded field name; "" when there is none."""
    at = payload.find(field)
    head = payload[at + len(field) :][:2] if at >= 0 else b""
    if len(head) < 2:
        return ""
    short = head[0] & _FIXED_MASK == _FIXED
    if not short and head[0] != _SHORT:
        return ""
    length = head[0] & ~_FIXED_MASK if short else head[1]
    start = at + len(field) + (1 if short else 2)
    return payload[start : start + length].decode("ascii", "replace")
