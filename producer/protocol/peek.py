"""Facts about a message without decoding it: it may be deadly, or cannot be decoded."""

from __future__ import annotations

from typing import NamedTuple

from producer.errors import Undecodable
from producer.keys import valid_client, valid_id
from producer.messages import BATCH_CONTEXTS_MAX, DIMENSIONS, PAYLOAD_BYTES_MAX, TEXT_LENGTH_MAX
from producer.protocol.maps import parts, value

_FIXED, _FIXED_MASK, _SHORT = 0xA0, 0xE0, 0xD9  # msgpack: texts below 32 bytes, and up to 255
#: msgpack: a list of three behind its name, and numbers of one and two bytes.
_BATCH_SHAPE, _NUMBERS = b"\xa5shape\x93", {b"\xcc": 1, b"\xcd": 2}
#: The smallest form of a vector.
_VECTOR_BYTES = 2 * DIMENSIONS


class Envelope(NamedTuple):
    """The fields of a request that are needed to tell its client of the end."""

    id: str
    reply_to: str
    traceparent: str = ""


def envelope(payload: bytes, request_id: bytes = b"") -> Envelope | None:
    """Id and client of an encoded request, found without decoding it; None where that cannot be done.

    A request that killed the processes that worked on it may have killed the decoder. The names are short
    texts at the front, so that looking for them is enough; `request_id` stands beside some payloads.
    """
    found = Envelope(
        request_id.decode("ascii", "replace") or _text_behind(b"\xa2id", payload),
        _text_behind(b"\xa8reply_to", payload),
    )
    return found if valid_id(found.id) and valid_client(found.reply_to) else None


def sender(payload: bytes, request_id: bytes = b"") -> Envelope | None:
    """Id and client of a message that cannot be decoded, as far as they can be read; None where nobody
    can be told.

    The client has to be a valid one, as it becomes part of a key. The id is for the client alone, who may
    have drawn one that is not valid; where the message has none, `request_id` beside it is taken.
    """
    found = parts(payload)
    request = _text(found, "id") or request_id.decode("utf-8", "replace")
    client = _text(found, "reply_to")
    if not request or not valid_client(client):
        return None
    return Envelope(request, client, _text(found, "traceparent"))


def _text(encoded: dict[str, bytes], name: str) -> str:
    """A text of moderate length among encoded values; "" when it is none."""
    try:
        found = value(encoded.get(name, b""))
    except Undecodable:
        return ""
    return found if type(found) is str and len(found) <= TEXT_LENGTH_MAX else ""


def contexts_in(payload: bytes) -> int:
    """Contexts that an encoded batch says it holds, found at its front without decoding it.

    Where it does not say so there, a small message holds one, and a large one may hold as many as its bytes.
    Contexts that share their vectors have few bytes, so that bytes alone do not tell how long it takes.
    """
    at = payload.find(_BATCH_SHAPE, 0, TEXT_LENGTH_MAX)
    if at < 0:
        most = 1 if len(payload) <= PAYLOAD_BYTES_MAX else len(payload) // _VECTOR_BYTES
        return min(most, BATCH_CONTEXTS_MAX)
    start = at + len(_BATCH_SHAPE)
    head = payload[start : start + 3]
    width = _NUMBERS.get(head[:1], 0)
    return max(1, min(int.from_bytes(head[1 : 1 + width] or head[:1]), BATCH_CONTEXTS_MAX))


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
