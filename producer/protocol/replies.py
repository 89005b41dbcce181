"""Answers and failures as bytes, and back.

A vector goes out as little-endian float32. The answer to a batch has arrays as bytes, and codes beside a
table of names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from producer.errors import Undecodable
from producer.messages import (
    BATCH_BYTES_MAX,
    BATCH_CONTEXTS_MAX,
    DIMENSIONS,
    Answer,
    BatchReply,
    Failure,
    Reply,
    Timings,
)
from producer.protocol.maps import REQUIRED, WIRE_VERSION, Fields, builder, pack, shown, unpack

_F4 = np.dtype("<f4")
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
_build_reply, _build_timings, _build_failure = builder(Reply), builder(Timings), builder(Failure)
_BATCH_FIELDS = {
    "id": (str, REQUIRED),
    "vectors": (bytes, REQUIRED),
    "confidences": (bytes, REQUIRED),
    "margins": (bytes, REQUIRED),
    "gains": (bytes, b""),
    "rules": (list, REQUIRED),
    "fired": (bytes, REQUIRED),
    "sheds": (list, REQUIRED),
    "shed": (bytes, REQUIRED),
    "served_by": (str, REQUIRED),
    "provisional": (bool, REQUIRED),
    "degraded": (str, ""),
    "model": (str, ""),
    "bank": (str, ""),
    "policy": (str, ""),
    "confidence_method": (str, ""),
    "margin_method": (str, ""),
    "tiers": (dict, {}),
    "timings": (dict, {}),
}
_BATCH = Fields(**_BATCH_FIELDS)
_PLAIN = (
    *("id", "served_by", "provisional", "degraded", "model", "bank", "policy"),
    *("confidence_method", "margin_method"),
)
_ARRAYS: tuple[tuple[str, tuple[int, ...], DTypeLike], ...] = (
    ("vectors", (DIMENSIONS,), _F4),
    ("confidences", (), _F4),
    ("margins", (), _F4),
    ("fired", (), np.uint8),
    ("shed", (), np.uint8),
)
_RULES_MAX, _SHEDS_MAX = 8, 250


def encode_reply(reply: Answer) -> bytes:
    """Encodes an answer; vectors go out as `f4`."""
    if isinstance(reply, BatchReply):
        head = {"version": WIRE_VERSION, "status": "answered"}
        return pack(head | _batch_fields(reply) | {"timings": _timings(reply.timings)})
    # Left out when they say nothing, as for most answers.
    scored: dict[str, object] = {"gain": reply.gain} if reply.gain else {}
    if reply.tiers:
        scored["tiers"] = dict(reply.tiers)
    return pack(
        {
            "version": WIRE_VERSION,
            "id": reply.id,
            "status": "answered",
            "vector": np.ascontiguousarray(reply.vector, dtype=_F4).data,
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
    message = unpack(payload, BATCH_BYTES_MAX)
    status = message.get("status")
    if status == "failed":
        return _build_failure(_FAILURE.values(message))
    if status != "answered":
        raise Undecodable(f"reply status is {shown(status)}, expected 'answered' or 'failed'")
    if "vectors" in message:
        return _batch_reply(message)
    values = list(_REPLY.values(message))
    values[1] = decode_vector(values[1])
    reasons = values[4] = tuple(values[4])
    if reasons and set(map(type, reasons)) != {str}:
        raise Undecodable("field 'reasons' holds something other than text")
    if values[-2]:
        values[-2] = _tiers(values[-2])
    values[-1] = _timings_of(values[-1])
    return _build_reply(values)


def _tiers(stored: dict[object, object]) -> dict[str, tuple[float, float]]:
    made = {}
    for model, pair in stored.items():
        if type(model) is not str or type(pair) is not list or [*map(_is_number, pair)] != [True, True]:
            raise Undecodable(
                f"field 'tiers' holds {shown(model)}: {shown(pair)}, expected text: [float, float]"
            )
        made[model] = (float(pair[0]), float(pair[1]))
    return made


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def encode_vector(vector: NDArray[np.floating]) -> bytes:
    """A bare (768,) vector as little-endian float32 bytes (truth records)."""
    return np.ascontiguousarray(vector, dtype=_F4).tobytes()


def decode_vector(data: bytes) -> NDArray[np.float32]:
    """The inverse of `encode_vector`.

    Raises:
        Undecodable: Not 3,072 bytes.
    """
    if len(data) != DIMENSIONS * 4:
        raise Undecodable(f"vector has {len(data)} bytes, expected {DIMENSIONS * 4}")
    return np.ndarray((DIMENSIONS,), _F4, data)


def _batch_fields(reply: BatchReply) -> dict[str, object]:
    fields: dict[str, object] = {name: getattr(reply, name) for name in _PLAIN}
    for name, _, dtype in _ARRAYS:
        fields[name] = np.ascontiguousarray(getattr(reply, name), dtype=dtype).data
    if reply.gains.any():
        fields["gains"] = np.ascontiguousarray(reply.gains, dtype=_F4).data
    fields["rules"], fields["sheds"] = reply.rules, reply.sheds
    if reply.tiers:
        fields["tiers"] = {
            model: np.ascontiguousarray(pairs, dtype=_F4).data for model, pairs in reply.tiers.items()
        }
    return fields


def _batch_reply(message: Mapping[str, Any]) -> BatchReply:
    # Arrays are read-only views of the message's bytes.
    made: dict[str, Any] = dict(zip(_BATCH_FIELDS, _BATCH.values(message), strict=True))
    count = len(made["fired"])
    if not 1 <= count <= BATCH_CONTEXTS_MAX:
        raise Undecodable(f"the answer to a batch has {count} rows, expected 1 to {BATCH_CONTEXTS_MAX}")
    for name, shape, dtype in _ARRAYS:
        made[name] = _array(name, made[name], (count, *shape), dtype)
    made["gains"] = _array("gains", made["gains"] or bytes(4 * count), (count,), _F4)
    made["rules"] = _names("rules", made["rules"], _RULES_MAX)
    made["sheds"] = _names("sheds", made["sheds"], _SHEDS_MAX)
    if int(made["shed"].max()) > len(made["sheds"]) or int(made["fired"].max()) >> len(made["rules"]):
        raise Undecodable("field 'shed' or 'fired' names something that 'sheds' or 'rules' does not have")
    made["tiers"] = {
        _text("tiers", model): _array("tiers", pairs, (count, 2), _F4)
        for model, pairs in made["tiers"].items()
    }
    made["timings"] = _timings_of(made["timings"])
    return BatchReply(**made)


def _array(name: str, data: object, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if type(data) is not bytes or len(data) != expected:
        raise Undecodable(f"field {name!r} does not hold the {expected} bytes of {shape[0]} rows")
    return np.ndarray(shape, dtype, data)


def _names(name: str, stored: list[object], limit: int) -> tuple[str, ...]:
    if len(stored) > limit:
        raise Undecodable(f"field {name!r} holds {len(stored)} names, the limit is {limit}")
    return tuple(_text(name, one) for one in stored)


def _text(name: str, value: object) -> str:
    if type(value) is not str:
        raise Undecodable(f"field {name!r} holds something other than text")
    return value
