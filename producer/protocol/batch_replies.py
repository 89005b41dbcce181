"""The answer to a batch as the fields of a map: arrays as bytes, codes beside a table of names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from producer.errors import Undecodable
from producer.messages import BATCH_CONTEXTS_MAX, DIMENSIONS, BatchReply, Timings
from producer.protocol.fields import REQUIRED, Fields

_F4 = np.dtype("<f4")
_FIELDS = {
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
_REPLY = Fields(**_FIELDS)
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


def fields_of(reply: BatchReply) -> dict[str, object]:
    """What goes into the map, `timings` aside."""
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


def reply_of(message: Mapping[str, Any], timings_of: Callable[[dict[str, Any]], Timings]) -> BatchReply:
    """The inverse; arrays are read-only views of the message's bytes.

    Raises:
        Undecodable: A field is missing, of a wrong type, or of another length than the others.
    """
    made: dict[str, Any] = dict(zip(_FIELDS, _REPLY.values(message), strict=True))
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
    made["timings"] = timings_of(made["timings"])
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
