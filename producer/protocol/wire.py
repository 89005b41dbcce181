"""The wire format: the only place in the house that knows msgpack.

A message is a msgpack map with full names. `version` is in every map; unknown fields are ignored,
so a later minor addition is readable here; a changed meaning takes a new version, which this side
refuses instead of guessing. A vector is one `bin` of little-endian float32 (`f4`) or float16
(`f2`) beside its shape: no float objects, no base64, and one copy on the way into a batch.
docs/wire.md is the description for other languages; tests/golden holds fixtures.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import msgpack
import numpy as np
from numpy.typing import NDArray

from producer.errors import Undecodable, UnsupportedVersion
from producer.keys import valid_client, valid_id
from producer.messages import (
    BATCH_CONTEXTS_MAX,
    CONTEXT_SHAPE,
    DEFAULT_LANE,
    DEFAULT_PRIORITY,
    DIMENSIONS,
    Answer,
    BatchReply,
    Failure,
    Reply,
    Request,
    Timings,
)
from producer.protocol.batch_replies import fields_of, reply_of
from producer.protocol.fields import REQUIRED, Fields, builder

WIRE_VERSION = 1
PAYLOAD_BYTES_MAX = 64 * 1024
#: Of a batch: 256 float32 contexts, and room for the other fields.
BATCH_BYTES_MAX = 4 * 1024**2

#: What a message may hold beside its arrays of bytes: every name at its longest, and room. One of this size
#: or less is decoded at once; of a larger one, the lengths are looked at before anything is built.
_BESIDE_BYTES_MAX = 16 * 1024
#: The longest list has a row for each context, the largest map a few dozen fields. There are no extension
#: types, not even for times.
_LIST_MAX, _MAP_MAX = BATCH_CONTEXTS_MAX, 64
_LIMITS = {"max_array_len": _LIST_MAX, "max_map_len": _MAP_MAX, "max_ext_len": 0}
_BYTES_HEADS = (0xC4, 0xC5, 0xC6)
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80

#: A text field longer than this is not a name any more.
TEXT_LENGTH_MAX = 512
#: Epoch milliseconds up to the year 5138; also keeps infinities out of sums.
TIME_MS_MAX = 1e14

_DTYPES: dict[str, np.dtype[Any]] = {"f4": np.dtype("<f4"), "f2": np.dtype("<f2")}
_F4 = _DTYPES["f4"]
_CONTEXT_BYTES = {name: math.prod(CONTEXT_SHAPE) * dtype.itemsize for name, dtype in _DTYPES.items()}
_SHAPE = list(CONTEXT_SHAPE)
_OR_BATCH = f"or a batch of 1 to {BATCH_CONTEXTS_MAX} of them as [n, 5, 768]"

_REQUEST = Fields(
    dtype=(str, REQUIRED),
    shape=(list, REQUIRED),
    context=(bytes, REQUIRED),
    id=(str, REQUIRED),
    reply_to=(str, REQUIRED),
    lane=(str, DEFAULT_LANE),
    tokens=(int, 0),
    encoder=(str, REQUIRED),
    submitted_at_ms=(float, 0.0),
    expires_at_ms=(float, 0.0),
    sequence=(str, ""),
    position=(int, -1),
    domain=(str, ""),
    provisional=(bool, False),
    traceparent=(str, ""),
)
_REPLY = Fields(
    id=(str, REQUIRED),
    vector=(bytes, REQUIRED),
    confidence=(float, REQUIRED),
    margin=(float, REQUIRED),
    reasons=(list, REQUIRED),
    served_by=(str, REQUIRED),
    provisional=(bool, REQUIRED),
    shed=(str, ""),
    degraded=(str, ""),
    model=(str, ""),
    bank=(str, ""),
    policy=(str, ""),
    confidence_method=(str, ""),
    margin_method=(str, ""),
    gain=(float, 0.0),
    tiers=(dict, {}),
    timings=(dict, {}),
)
_TIMINGS = Fields(queue_ms=(float, 0.0), batch_ms=(float, 0.0), compute_ms=(float, 0.0), batch_size=(int, 0))
_FAILURE = Fields(id=(str, REQUIRED), code=(str, REQUIRED), message=(str, REQUIRED), retryable=(bool, False))
#: Fields of every request.
_REQUEST_FIELDS = 16
_build_request, _build_reply = builder(Request), builder(Reply)
_build_timings, _build_failure = builder(Timings), builder(Failure)


def encode_request(request: Request) -> bytes:
    """Encodes a request; the context keeps its precision (float16 -> `f2`, else `f4`)."""
    encoder = RequestEncoder(request)
    times_ms = request.submitted_at_ms, request.expires_at_ms
    return encoder.encode(request.id, request.context, *times_ms)


class RequestEncoder:
    """Encodes requests that differ only in what `encode` takes; the rest is packed once."""

    def __init__(self, shared: Request) -> None:
        # Left out when it says nothing: most requests are of the normal level.
        level = {} if shared.priority == DEFAULT_PRIORITY else {"level": shared.priority}
        # A map of up to 15 pairs has a head of one byte; ours has more.
        count = _REQUEST_FIELDS + len(level)
        self._head = b"\xde" + count.to_bytes(2, "big") + _pairs({"version": WIRE_VERSION})
        self._reply_to = _pairs({"reply_to": shared.reply_to})
        self._kind = _pairs({"lane": shared.lane, "tokens": shared.tokens, "encoder": shared.encoder})
        self._tail = _pairs(
            {
                "sequence": shared.sequence,
                "position": shared.position,
                "domain": shared.domain,
                "provisional": shared.provisional,
                "traceparent": shared.traceparent,
                **level,
            }
        )

    def encode(
        self,
        request_id: str,
        context: NDArray[np.floating],
        submitted_at_ms: float,
        expires_at_ms: float,
    ) -> bytes:
        """One request; the arguments are fields of `Request`."""
        name = "f2" if context.dtype == np.float16 else "f4"
        times = _times(submitted_at_ms, expires_at_ms)
        data = np.ascontiguousarray(context, dtype=_DTYPES[name]).data
        form, this = _form(name, context.shape), _pairs({"id": request_id})
        return b"".join((self._head, this, self._reply_to, form, data, self._kind, times, self._tail))


@lru_cache(maxsize=64)
def _form(name: str, shape: tuple[int, ...]) -> bytes:
    """The pairs that say what the context's bytes are, up to these bytes."""
    size_bytes = math.prod(shape) * _DTYPES[name].itemsize
    pairs = _pairs({"dtype": name, "shape": shape, "context": bytes(size_bytes)})
    return pairs[: len(pairs) - size_bytes]


@lru_cache(maxsize=16, typed=True)
def _times(submitted_at_ms: float, expires_at_ms: float) -> bytes:
    """The same for all that one call submits."""
    return _pairs({"submitted_at_ms": submitted_at_ms, "expires_at_ms": expires_at_ms})


def _pairs(fields: dict[str, object]) -> bytes:
    """A small map without its head of one byte."""
    return pack(fields)[1:]


def decode_request(payload: bytes, *, batches: bool = False) -> Request:
    """Decodes a request. The context is a read-only view of the payload's bytes.

    Shape, dtype and byte length are checked here; norms and finiteness are the worker's, on the
    whole batch at once.

    Args:
        batches: Whether a batch of contexts is taken too.

    Raises:
        Undecodable: Not msgpack, truncated, too large, or a field missing or of a wrong type.
        UnsupportedVersion: A version other than `WIRE_VERSION`.
    """
    message = _unpack(payload, BATCH_BYTES_MAX if batches else PAYLOAD_BYTES_MAX)
    name, shape, data, *values = _REQUEST.values(message)
    if shape == _SHAPE and len(data) == _CONTEXT_BYTES.get(name) and len(payload) <= PAYLOAD_BYTES_MAX:
        context = np.ndarray(CONTEXT_SHAPE, _DTYPES[name], data)
    elif batches:
        context = _batch_of(name, shape, data)
    else:
        raise _misshapen(name, shape, data, "a batch of contexts is not taken here")
    values.insert(2, context)
    level = message.get("level", DEFAULT_PRIORITY)
    if type(level) is not str:
        raise Undecodable(f"field 'level' is of type {type(level).__name__}, expected str")
    values.append(level)
    request = _build_request(values)
    _check_names(request)
    if len(payload) > len(data) + TEXT_LENGTH_MAX:  # else none can be too long
        _check_lengths(request)
    return request


def _batch_of(name: str, shape: list[Any], data: bytes) -> NDArray[np.floating]:
    """The contexts of a batch, (n, 5, 768)."""
    count = shape[0] if len(shape) == 3 and shape[1:] == _SHAPE else 0
    if type(count) is not int or not 1 <= count <= BATCH_CONTEXTS_MAX:
        raise _misshapen(name, shape, data, _OR_BATCH)
    if len(data) != count * _CONTEXT_BYTES.get(name, -1):
        raise _misshapen(name, shape, data, _OR_BATCH)
    return np.ndarray((count, *CONTEXT_SHAPE), _DTYPES[name], data)


def _misshapen(name: str, shape: object, data: bytes, more: str) -> Undecodable:
    return Undecodable(
        f"context has shape {_shown(shape)}, dtype {name!r:.80} and {len(data)} bytes; "
        f"send shape {_SHAPE} as f4 (15360 bytes) or f2 (7680 bytes); {more}"
    )


def encode_reply(reply: Answer) -> bytes:
    """Encodes an answer; vectors go out as `f4`."""
    if isinstance(reply, BatchReply):
        head = {"version": WIRE_VERSION, "status": "answered"}
        return pack(head | fields_of(reply) | {"timings": _timings(reply.timings)})
    # Left out when they say nothing, as for most answers.
    scored: dict[str, object] = {"gain": reply.gain} if reply.gain else {}
    if reply.tiers:
        scored["tiers"] = dict(reply.tiers)
    return pack(
        {
            "version": WIRE_VERSION,
            "id": reply.id,
            "status": "answered",
            "vector": np.ascontiguousarray(reply.vector, dtype=_DTYPES["f4"]).data,
            "confidence": reply.confidence,
            "margin": reply.margin,
            "reasons": reply.reasons,
            "served_by": reply.served_by,
            "provisional": reply.provisional,
            "shed": reply.shed,
            "degraded": reply.degraded,
            "model": reply.model,
            "bank": reply.bank,
            "policy": reply.policy,
            "confidence_method": reply.confidence_method,
            "margin_method": reply.margin_method,
            **scored,
            "timings": _timings(reply.timings),
        }
    )


def _timings_of(stored: dict[str, Any]) -> Timings:
    return _build_timings(_TIMINGS.values(stored))


def _timings(timings: Timings) -> dict[str, float]:
    return {
        "queue_ms": timings.queue_ms,
        "batch_ms": timings.batch_ms,
        "compute_ms": timings.compute_ms,
        "batch_size": timings.batch_size,
    }


def encode_failure(failure: Failure) -> bytes:
    """Encodes a named failure."""
    return pack(
        {
            "version": WIRE_VERSION,
            "id": failure.id,
            "status": "failed",
            "code": failure.code,
            "message": failure.message,
            "retryable": failure.retryable,
        }
    )


def decode_reply(payload: bytes) -> Answer | Failure:
    """Decodes what a worker sent back.

    Raises:
        Undecodable: Not a reply of this format.
        UnsupportedVersion: A version other than `WIRE_VERSION`.
    """
    message = _unpack(payload, BATCH_BYTES_MAX)
    status = message.get("status")
    if status == "failed":
        return _build_failure(_FAILURE.values(message))
    if status != "answered":
        raise Undecodable(f"reply status is {_shown(status)}, expected 'answered' or 'failed'")
    if "vectors" in message:
        return reply_of(message, _timings_of)
    values = list(_REPLY.values(message))
    values[1] = decode_vector(values[1])
    reasons = values[4] = tuple(values[4])
    if reasons and set(map(type, reasons)) != {str}:
        raise Undecodable("field 'reasons' holds something other than text")
    values[-2] = _tiers(values[-2])
    values[-1] = _timings_of(values[-1])
    return _build_reply(values)


def _tiers(stored: dict[object, object]) -> dict[str, tuple[float, float]]:
    made = {}
    for model, pair in stored.items():
        if type(model) is not str or type(pair) is not list or [*map(_is_number, pair)] != [True, True]:
            raise Undecodable(
                f"field 'tiers' holds {_shown(model)}: {_shown(pair)}, expected text: [float, float]"
            )
        made[model] = (float(pair[0]), float(pair[1]))
    return made


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def encode_vector(vector: NDArray[np.floating]) -> bytes:
    """A bare (768,) vector as little-endian float32 bytes (truth records)."""
    return np.ascontiguousarray(vector, dtype=_DTYPES["f4"]).tobytes()


def decode_vector(data: bytes) -> NDArray[np.float32]:
    """The inverse of `encode_vector`.

    Raises:
        Undecodable: Not 3,072 bytes.
    """
    if len(data) != DIMENSIONS * 4:
        raise Undecodable(f"vector has {len(data)} bytes, expected {DIMENSIONS * 4}")
    return np.ndarray((DIMENSIONS,), _F4, data)


def pack(fields: Mapping[str, object]) -> bytes:
    """One msgpack map."""
    return cast(bytes, msgpack.packb(fields))


def _unpack(payload: bytes, bytes_max: int) -> dict[str, Any]:
    if len(payload) > bytes_max:
        raise Undecodable(f"payload has {len(payload)} bytes, the limit is {bytes_max}")
    try:
        if len(payload) > _BESIDE_BYTES_MAX:
            _look(payload)
        message = msgpack.unpackb(payload, **_LIMITS)
    except Undecodable:
        raise
    except Exception as error:  # msgpack raises several unrelated types for bad bytes
        raise Undecodable(
            f"payload of {len(payload)} bytes is not msgpack within its limits: "
            f"{type(error).__name__} {error!s:.200}"
        ) from None
    if type(message) is not dict:
        raise Undecodable(f"payload is a msgpack {type(message).__name__}, expected a map")
    if len(message) != _field_count(payload):
        raise Undecodable("payload has two fields of one name")
    version = message.get("version")
    if version != WIRE_VERSION or type(version) is not int:
        raise UnsupportedVersion(
            f"wire version {_shown(version)} is not supported; this side reads {WIRE_VERSION}"
        )
    return message


def _look(payload: bytes) -> None:
    """Refuses a message that would take far more memory than its own bytes; builds nothing.

    A byte of msgpack can become an object of sixty, so what is not an array of bytes must be small.
    """
    count = _field_count(payload)
    if count > _MAP_MAX:
        raise Undecodable(f"payload is no map of at most {_MAP_MAX} fields")
    unpacker = msgpack.Unpacker(max_buffer_size=len(payload))
    unpacker.feed(payload)
    unpacker.read_map_header()
    beside = 0
    for _ in range(count):
        unpacker.skip()
        begin = unpacker.tell()
        unpacker.skip()
        if payload[begin] not in _BYTES_HEADS:
            beside += unpacker.tell() - begin
    if beside > _BESIDE_BYTES_MAX:
        raise Undecodable(f"payload holds {beside} bytes beside its arrays, the limit is {_BESIDE_BYTES_MAX}")


def _field_count(payload: bytes) -> int:
    """Fields of the map that begins here; more than any message has where none does."""
    head = payload[0]
    if head & 0xF0 == 0x80:
        return head & 0x0F
    width = {0xDE: 2, 0xDF: 4}.get(head)
    return int.from_bytes(payload[1 : 1 + width], "big") if width else _MAP_MAX + 1


def _shown(value: object) -> str:
    """For an error: short, and however deep and long the value is."""
    return _SHORT.repr(value)[:80]


def _check_names(request: Request) -> None:
    """Refuses what would only fail later: in a key, a sum or a counter's name."""
    if not (valid_id(request.id) and valid_client(request.reply_to)):
        raise Undecodable(
            f"id {request.id!r:.80} or reply_to {request.reply_to!r:.80} is not a valid name "
            "(1-64 letters, digits, '_', '.', '-'; ids also ':')"
        )
    if not (0 <= request.submitted_at_ms < TIME_MS_MAX and 0 <= request.expires_at_ms < TIME_MS_MAX):
        raise Undecodable("submitted_at_ms or expires_at_ms is not a time in epoch milliseconds")


def _check_lengths(request: Request) -> None:
    names = (request.lane, request.encoder, request.priority)
    texts = (*names, request.sequence, request.domain, request.traceparent)
    if max(map(len, texts)) > TEXT_LENGTH_MAX:
        raise Undecodable(
            f"lane, encoder, sequence, domain, traceparent or level exceeds {TEXT_LENGTH_MAX} characters"
        )
