"""The wire format: requests as bytes, and back, beside the answers of `producer.protocol.replies`.

`version` is in every map; unknown fields are ignored, so that a later minor addition is readable here; a
changed meaning takes a new version, which this side refuses instead of guessing. A vector is one `bin` of
little-endian float32 (`f4`) or float16 (`f2`) beside its shape: one copy on the way into a batch.
docs/wire.md is the description for other languages; docs/wire-fixtures.json holds fixtures.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from producer.errors import Undecodable
from producer.keys import valid_client, valid_id
from producer.messages import (
    BATCH_BYTES_MAX,
    BATCH_CONTEXTS_MAX,
    CONTEXT_SHAPE,
    CONTEXT_VECTORS,
    DEFAULT_LANE,
    DEFAULT_PRIORITY,
    DIMENSIONS,
    PAYLOAD_BYTES_MAX,
    TEXT_LENGTH_MAX,
    Request,
)
from producer.protocol.maps import REQUIRED, WIRE_VERSION, Fields, builder, pack, shown, unpack
from producer.protocol.replies import decode_reply as decode_reply
from producer.protocol.replies import decode_vector as decode_vector
from producer.protocol.replies import encode_failure as encode_failure
from producer.protocol.replies import encode_reply as encode_reply
from producer.protocol.replies import encode_vector as encode_vector
from producer.windows import Windows

#: Epoch milliseconds up to the year 5138; also keeps infinities out of sums.
TIME_MS_MAX = 1e14
_DTYPES: dict[str, np.dtype[Any]] = {"f4": np.dtype("<f4"), "f2": np.dtype("<f2")}
CONTEXT_BYTES = {name: math.prod(CONTEXT_SHAPE) * dtype.itemsize for name, dtype in _DTYPES.items()}
_SHAPE = list(CONTEXT_SHAPE)
_ENDS = np.dtype("<u2")
_OR_BATCH = f"or a batch of 1 to {BATCH_CONTEXTS_MAX} of them as [n, 5, 768]"

REQUEST = Fields(
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
    escalate=(bool, False),
    provisional=(bool, False),
    traceparent=(str, ""),
)
#: Fields that few requests have.
RARE = Fields(level=(str, DEFAULT_PRIORITY), ends=(bytes, b""))
_NEITHER = RARE.values({})
#: Text fields that are not names of one: on the wire, and of `Request`.
TEXTS = {name: name for name in ("lane", "encoder", "sequence", "domain", "traceparent")}
TEXTS["level"] = "priority"
#: Fields of every request.
_REQUEST_FIELDS = 16
_build_request = builder(Request)


def encode_request(request: Request) -> bytes:
    """Encodes a request; the context keeps its precision (float16 -> `f2`, else `f4`)."""
    encoder = RequestEncoder(request)
    times_ms = request.submitted_at_ms, request.expires_at_ms
    return encoder.encode(request.id, request.context, *times_ms)


class RequestEncoder:
    """Encodes requests that differ only in what `encode` takes; the rest is packed once."""

    def __init__(self, shared: Request) -> None:
        # Left out when they say nothing: most requests are of the normal level, and ask for no fallback.
        rare: dict[str, Any] = {"escalate": True} if shared.escalate else {}
        if shared.priority != DEFAULT_PRIORITY:
            rare["level"] = shared.priority
        # A map of up to 15 pairs has a head of one byte; ours has more.
        self._count = _REQUEST_FIELDS + len(rare)
        self._head = self._head_of(self._count)
        self._reply_to = _pairs({"reply_to": shared.reply_to})
        self._kind = _pairs({name: getattr(shared, name) for name in ("lane", "tokens", "encoder")})
        names = "sequence", "position", "domain", "provisional"
        self._named, self._rare = _pairs({name: getattr(shared, name) for name in names}), _pairs(rare)
        self._tail = self._tail_of(shared.traceparent)
        self._shape: tuple[int, ...] | None = None  # the context's own

    def _tail_of(self, traceparent: str) -> bytes:
        return self._named + _pairs({"traceparent": traceparent}) + self._rare

    def traced(self, traceparent: str) -> RequestEncoder:
        """One for requests of another trace."""
        return self._with(_tail=self._tail_of(traceparent))

    def windowed(self, windows: Windows) -> RequestEncoder:
        """One for the vectors of these windows: a batch of contexts that share them."""
        ends = _pairs({"ends": windows.ends.astype(_ENDS).tobytes()})
        head, shape = self._head_of(self._count + 1), (len(windows), *CONTEXT_SHAPE)
        return self._with(_head=head, _shape=shape, _tail=self._tail + ends)

    def _with(self, **other: Any) -> RequestEncoder:
        found = object.__new__(RequestEncoder)
        found.__dict__ = {**self.__dict__, **other}  # faster than the module copy
        return found

    @staticmethod
    def _head_of(count: int) -> bytes:
        return b"\xde" + count.to_bytes(2, "big") + _pairs({"version": WIRE_VERSION})

    def encode(
        self, request_id: str, context: NDArray[np.floating], submitted_at_ms: float, expires_at_ms: float
    ) -> bytes:
        """One request; the arguments are fields of `Request`."""
        name = "f2" if context.dtype == np.float16 else "f4"
        times = pack({"submitted_at_ms": submitted_at_ms, "expires_at_ms": expires_at_ms})[1:]
        data = np.ascontiguousarray(context, dtype=_DTYPES[name]).data
        form, this = _form(name, self._shape or context.shape, data.nbytes), pack({"id": request_id})[1:]
        return b"".join((self._head, this, self._reply_to, form, data, self._kind, times, self._tail))


@lru_cache(maxsize=64)
def _form(name: str, shape: tuple[int, ...], size_bytes: int) -> bytes:
    """The pairs that say what the context's bytes are, up to these bytes."""
    pairs = _pairs({"dtype": name, "shape": shape, "context": bytes(size_bytes)})
    return pairs[: len(pairs) - size_bytes]


def _pairs(fields: dict[str, object]) -> bytes:
    """A small map without its head of one byte."""
    return pack(fields)[1:]


def decode_request(payload: bytes, *, batches: bool = False) -> Request:
    """Decodes a request, whose context is a read-only view of the payload's bytes.

    Shape, dtype and byte length are checked here; norms and finiteness by the worker, on many at once.

    Args:
        batches: Whether a batch of contexts is taken too.

    Raises:
        Undecodable: Not msgpack, truncated, too large, or a field missing or of a wrong type.
        UnsupportedVersion: A version other than `WIRE_VERSION`.
    """
    message = unpack(payload, BATCH_BYTES_MAX if batches else PAYLOAD_BYTES_MAX)
    name, shape, data, *values = REQUEST.values(message)
    level, ends = RARE.values(message) if "level" in message or "ends" in message else _NEITHER
    if shape == _SHAPE and len(data) == CONTEXT_BYTES.get(name) and len(payload) <= PAYLOAD_BYTES_MAX:
        context = np.ndarray(CONTEXT_SHAPE, _DTYPES[name], data)
    elif batches:
        context = _batch_of(name, shape, data, ends)
    else:
        raise _misshapen(name, shape, data, "a batch of contexts is not taken here")
    values.insert(2, context)
    values.append(level)
    request = _build_request(values)
    if not (valid_id(request.id) and valid_client(request.reply_to)):
        raise _misnamed(request)  # it would only fail later: in a key, a sum or a counter's name
    if not (0 <= request.submitted_at_ms < TIME_MS_MAX and 0 <= request.expires_at_ms < TIME_MS_MAX):
        _check_times(request)
    if len(payload) > len(data) + TEXT_LENGTH_MAX:  # else none can be too long
        _check_lengths(request)
    return request


def _batch_of(name: str, shape: list[Any], data: bytes, ends: bytes) -> NDArray[np.floating]:
    """The contexts of a batch, (n, 5, 768); with `ends` they share the vectors in `data`."""
    count = _count_of(shape)
    if not count:
        raise _misshapen(name, shape, data, _OR_BATCH)
    if ends:
        return _windows_of(name, count, data, ends)
    if len(data) != count * CONTEXT_BYTES.get(name, -1):
        raise _misshapen(name, shape, data, _OR_BATCH)
    return np.ndarray((count, *CONTEXT_SHAPE), _DTYPES[name], data)


def _count_of(shape: list[Any]) -> int:
    """The contexts of a batch of this shape; 0 where it is that of none."""
    count = shape[0] if len(shape) == 3 and shape[1:] == _SHAPE else 0
    return count if type(count) is int and 1 <= count <= BATCH_CONTEXTS_MAX else 0


def _windows_of(name: str, count: int, data: bytes, stored: bytes) -> NDArray[np.floating]:
    """The contexts (n, 5, 768) over vectors, each of which is there once."""
    if len(stored) != count * _ENDS.itemsize:
        raise Undecodable(f"field 'ends' does not hold the {count * _ENDS.itemsize} bytes of {count} rows")
    vector_bytes = CONTEXT_BYTES.get(name, 0) // CONTEXT_VECTORS
    vectors, rest = divmod(len(data), vector_bytes) if vector_bytes else (0, 1)
    if rest or not CONTEXT_VECTORS <= vectors <= CONTEXT_VECTORS * count:
        raise Undecodable(
            f"field 'context' has dtype {name!r:.80} and {len(data)} bytes; send 5 to "
            f"{CONTEXT_VECTORS * count} vectors of {DIMENSIONS} as f4 or f2 for {count} contexts of 'ends'"
        )
    ends = np.frombuffer(stored, _ENDS).astype(np.intp)
    if ends[0] < CONTEXT_VECTORS - 1 or ends[-1] >= vectors or (ends[1:] <= ends[:-1]).any():
        raise Undecodable(f"field 'ends' does not rise from 4 to {vectors - 1}, the last vector")
    return Windows(vectors=np.ndarray((vectors, DIMENSIONS), _DTYPES[name], data), ends=ends).contexts()


def _misshapen(name: str, shape: list[Any], data: bytes, more: str) -> Undecodable:
    form = "context" if shape == _SHAPE or _count_of(shape) else "shape"
    at_fault = form if name in _DTYPES else "dtype"
    return Undecodable(
        f"field {at_fault!r}: context has shape {shown(shape)}, dtype {name!r:.80} and {len(data)} bytes; "
        f"send shape {_SHAPE} as f4 (15360 bytes) or f2 (7680 bytes); {more}"
    )


def _misnamed(request: Request) -> Undecodable:
    name, more = ("reply_to", "") if valid_id(request.id) else ("id", "':', ")
    found = shown(getattr(request, name))
    return Undecodable(f"field {name!r} is {found}; use 1-64 letters, digits, {more}'_', '.' or '-'")


def _check_times(request: Request) -> None:
    for name in ("submitted_at_ms", "expires_at_ms"):
        if not 0 <= (value := getattr(request, name)) < TIME_MS_MAX:
            raise Undecodable(f"field {name!r} is {value!r}; use epoch milliseconds from 0 to below 1e14")


def _check_lengths(request: Request) -> None:
    for name, attribute in TEXTS.items():
        if (length := len(getattr(request, attribute))) > TEXT_LENGTH_MAX:
            raise Undecodable(f"field {name!r} has {length} characters, the limit is {TEXT_LENGTH_MAX}")
