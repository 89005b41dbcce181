"""The answer to a batch as a map, and back: arrays as bytes, and codes beside a table of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from producer.errors import Undecodable
from producer.messages import BATCH_CONTEXTS_MAX, DIMENSIONS, BatchReply, Timings
from producer.protocol.maps import REQUIRED, Fields, builder

F4 = np.dtype("<f4")
#: Fields of every answer, of one context or of many.
TEXTS = dict.fromkeys(
    ("degraded", "model", "bank", "policy", "confidence_method", "margin_method"), (str, "")
)
_FIELDS = {
    "id": (str, REQUIRED),
    **dict.fromkeys(("vectors", "confidences", "margins"), (bytes, REQUIRED)),
    "gains": (bytes, b""),
    "rules": (list, REQUIRED),
    "fired": (bytes, REQUIRED),
    "sheds": (list, REQUIRED),
    "shed": (bytes, REQUIRED),
    "served_by": (str, REQUIRED),
    "provisional": (bool, REQUIRED),
    **TEXTS,
    "traceparent": (str, ""),
    "tiers": (dict, {}),
    "calibration": (str, ""),
    "timings": (dict, {}),
}
BATCH = Fields(**_FIELDS)
_PLAIN = ("id", "served_by", "provisional", *TEXTS)
_ARRAYS: tuple[tuple[str, tuple[int, ...], DTypeLike], ...] = (
    ("vectors", (DIMENSIONS,), F4),
    ("confidences", (), F4),
    ("margins", (), F4),
    ("fired", (), np.uint8),
    ("shed", (), np.uint8),
)
_RULES_MAX, _SHEDS_MAX = 8, 250
TIMINGS = Fields(queue_ms=(float, 0.0), batch_ms=(float, 0.0), compute_ms=(float, 0.0), batch_size=(int, 0))
build_timings = builder(Timings)


def timings_fields(timings: Timings) -> dict[str, float]:
    """The map of timings."""
    return {name: getattr(timings, name) for name in TIMINGS.names}


def encode(reply: BatchReply) -> dict[str, object]:
    """The map of an answer to a batch, without its frame."""
    fields: dict[str, object] = {name: getattr(reply, name) for name in _PLAIN}
    arrays = [(name, getattr(reply, name), dtype) for name, _, dtype in _ARRAYS]
    if reply.gains.any():
        arrays.append(("gains", reply.gains, F4))
    fields |= {name: np.ascontiguousarray(array, dtype=dtype).data for name, array, dtype in arrays}
    fields |= {"rules": reply.rules, "sheds": reply.sheds}
    if reply.traceparent:
        fields["traceparent"] = reply.traceparent
    if reply.tiers:
        fields["tiers"] = {m: np.ascontiguousarray(pairs, dtype=F4).data for m, pairs in reply.tiers.items()}
    if reply.calibration:
        fields["calibration"] = reply.calibration
    return {**fields, "timings": timings_fields(reply.timings)}


def decode(message: Mapping[str, Any]) -> BatchReply:
    """The answer to a batch, whose arrays are read-only views of the message's bytes."""
    made: dict[str, Any] = dict(zip(_FIELDS, BATCH.values(message), strict=True))
    count = len(made["fired"])
    if not 1 <= count <= BATCH_CONTEXTS_MAX:
        raise Undecodable(f"the answer to a batch has {count} rows, expected 1 to {BATCH_CONTEXTS_MAX}")
    for name, shape, dtype in _ARRAYS:
        made[name] = _array(name, made[name], (count, *shape), dtype)
    made["gains"] = _array("gains", made["gains"] or bytes(4 * count), (count,), F4)
    made["rules"] = _names("rules", made["rules"], _RULES_MAX)
    made["sheds"] = _names("sheds", made["sheds"], _SHEDS_MAX)
    if int(made["shed"].max()) > len(made["sheds"]) or int(made["fired"].max()) >> len(made["rules"]):
        raise Undecodable("field 'shed' or 'fired' names something that 'sheds' or 'rules' does not have")
    made["tiers"] = {
        _text("tiers", model): _array("tiers", pairs, (count, 2), F4)
        for model, pairs in made["tiers"].items()
    }
    made["timings"] = build_timings(TIMINGS.values(made["timings"]))
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
