"""The wire format: the only place in the house that knows msgpack.

A message is a msgpack map with full names. `version` is in every map; unknown fields are ignored,
so a later minor addition is readable here; a changed meaning takes a new version, which this side
refuses instead of guessing. A vector is one `bin` of little-endian float32 (`f4`) or float16
(`f2`) beside its shape: no float objects, no base64, and one copy on the way into a batch.
docs/wire.md is the description for other languages; tests/golden holds fixtures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from producer.errors import Undecodable, UnsupportedVersion
from producer.keys import valid_id, valid_name
from producer.messages import CONTEXT_SHAPE, DIMENSIONS, Failure, Reply, Request, Timings

WIRE_VERSION = 1
PAYLOAD_BYTES_MAX = 64 * 1024

_DTYPES = {"f4": np.dtype("<f4"), "f2": np.dtype("<f2")}
_CONTEXT_BYTES = {
    name: CONTEXT_SHAPE[0] * CONTEXT_SHAPE[1] * dtype.itemsize for name, dtype in _DTYPES.items()
}


def encode_request(request: Request) -> bytes:
    """Encodes a request; the context keeps its precision (float16 -> `f2`, else `f4`)."""
    name = "f2" if request.context.dtype == np.float16 else "f4"
    return _pack(
        {
            "version": WIRE_VERSION,
            "id": request.id,
            "reply_to": request.reply_to,
            "dtype": name,
            "shape": CONTEXT_SHAPE,
            "context": np.ascontiguousarray(request.context, dtype=_DTYPES[name]).data,
            "lane": request.lane,
            "tokens": request.tokens,
            "encoder": request.encoder,
            "submitted_at_ms": request.submitted_at_ms,
            "expires_at_ms": request.expires_at_ms,
            "sequence": request.sequence,
            "position": request.position,
            "domain": request.domain,
            "provisional": request.provisional,
            "traceparent": request.traceparent,
        }
    )


def decode_request(payload: bytes) -> Request:
    """Decodes a request. The context is a read-only view of the payload's bytes.

    Shape, dtype and byte length are checked here; norms and finiteness are the worker's, on the
    whole batch at once.

    Raises:
        Undecodable: Not msgpack, truncated, too large, or a field missing or of a wrong type.
        UnsupportedVersion: A version other than `WIRE_VERSION`.
    """
    fields = _unpack(payload)
    try:
        name = fields["dtype"]
        data = fields["context"]
        if tuple(fields["shape"]) != CONTEXT_SHAPE or len(data) != _CONTEXT_BYTES[name]:
            raise Undecodable(
                f"context has shape {fields['shape']!r}, dtype {name!r} and {len(data)} bytes; "
                f"send shape {list(CONTEXT_SHAPE)} as f4 (15360 bytes) or f2 (7680 bytes)"
            )
        request = Request(
            id=fields["id"],
            reply_to=fields["reply_to"],
            context=np.frombuffer(data, dtype=_DTYPES[name]).reshape(CONTEXT_SHAPE),
            lane=fields.get("lane", "general"),
            tokens=fields.get("tokens", 0),
            encoder=fields["encoder"],
            submitted_at_ms=fields.get("submitted_at_ms", 0.0),
            expires_at_ms=fields.get("expires_at_ms", 0.0),
            sequence=fields.get("sequence", ""),
            position=fields.get("position", -1),
            domain=fields.get("domain", ""),
            provisional=fields.get("provisional", False),
            traceparent=fields.get("traceparent", ""),
        )
        _check_types(request)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Undecodable(f"request field missing or of a wrong type: {error!r}") from error
    return request


def encode_reply(reply: Reply) -> bytes:
    """Encodes an answer; the vector goes out as `f4`."""
    timings = reply.timings
    return _pack(
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
            "timings": {
                "queue_ms": timings.queue_ms,
                "batch_ms": timings.batch_ms,
                "compute_ms": timings.compute_ms,
                "batch_size": timings.batch_size,
            },
        }
    )


def encode_failure(failure: Failure) -> bytes:
    """Encodes a named failure."""
    return _pack(
        {
            "version": WIRE_VERSION,
            "id": failure.id,
            "status": "failed",
            "code": failure.code,
            "message": failure.message,
            "retryable": failure.retryable,
        }
    )


def decode_reply(payload: bytes) -> Reply | Failure:
    """Decodes what a worker sent back.

    Raises:
        Undecodable: Not a reply of this format.
        UnsupportedVersion: A version other than `WIRE_VERSION`.
    """
    fields = _unpack(payload)
    try:
        if fields["status"] == "failed":
            return Failure(
                id=fields["id"],
                code=fields["code"],
                message=fields["message"],
                retryable=fields.get("retryable", False),
            )
        vector = np.frombuffer(fields["vector"], dtype=_DTYPES["f4"])
        if vector.shape != (DIMENSIONS,):
            raise Undecodable(f"reply vector has {vector.size} numbers, expected {DIMENSIONS}")
        return Reply(
            id=fields["id"],
            vector=vector,
            confidence=fields["confidence"],
            margin=fields["margin"],
            reasons=tuple(fields["reasons"]),
            served_by=fields["served_by"],
            provisional=fields["provisional"],
            shed=fields.get("shed", ""),
            degraded=fields.get("degraded", ""),
            model=fields.get("model", ""),
            bank=fields.get("bank", ""),
            policy=fields.get("policy", ""),
            confidence_method=fields.get("confidence_method", ""),
            margin_method=fields.get("margin_method", ""),
            timings=_timings(fields.get("timings", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise Undecodable(f"reply field missing or of a wrong type: {error!r}") from error


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
    return np.frombuffer(data, dtype=_DTYPES["f4"])


def _pack(fields: Mapping[str, object]) -> bytes:
    packed = msgpack.packb(fields)
    assert isinstance(packed, bytes)
    return packed


def _unpack(payload: bytes) -> dict[str, Any]:
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise Undecodable(f"payload has {len(payload)} bytes, the limit is {PAYLOAD_BYTES_MAX}")
    try:
        fields = msgpack.unpackb(payload)
    except Exception as error:  # msgpack raises several unrelated types for bad bytes
        raise Undecodable(f"payload of {len(payload)} bytes is not msgpack: {error!r}") from error
    if not isinstance(fields, dict):
        raise Undecodable(f"payload is a msgpack {type(fields).__name__}, expected a map")
    version = fields.get("version")
    if version != WIRE_VERSION:
        raise UnsupportedVersion(
            f"wire version {version!r} is not supported; this side reads {WIRE_VERSION}"
        )
    return fields


def _check_types(request: Request) -> None:
    """Refuses what would only fail later: in a key, a comparison or a counter's name."""
    if not (valid_id(request.id) and valid_name(request.reply_to)):
        raise ValueError(f"id {request.id!r} or reply_to {request.reply_to!r} is not a valid name")
    texts = (request.lane, request.encoder, request.sequence, request.domain, request.traceparent)
    if not all(isinstance(text, str) and len(text) <= 256 for text in texts):
        raise TypeError("lane, encoder, sequence, domain and traceparent are text of <= 256 characters")
    if type(request.tokens) is not int or type(request.position) is not int:
        raise TypeError("tokens and position are integers")
    # bool is an int to Python; arithmetic on the two times only needs a real number
    float(request.submitted_at_ms), float(request.expires_at_ms)


def _timings(fields: Mapping[str, Any]) -> Timings:
    return Timings(
        queue_ms=fields.get("queue_ms", 0.0),
        batch_ms=fields.get("batch_ms", 0.0),
        compute_ms=fields.get("compute_ms", 0.0),
        batch_size=fields.get("batch_size", 0),
    )
