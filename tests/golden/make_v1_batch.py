"""Wrote the fixtures of batches, once: version 1 as it is since a message may hold many contexts.

    python tests/golden/make_v1_batch.py

The fixtures of `make_v1.py` and `make_v1_level.py` stay as they are: they are what others send.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import msgpack
from make_v1 import CONTEXT, REQUEST, VECTOR, bad, keep, packed_numbers, pick

HERE = Path(__file__).parent / "v1_batch"
#: Two contexts; the second one is the first one with its vectors in the opposite order.
CONTEXTS = [[0, *one] for one in CONTEXT] + [[1, 4 - row, place, value] for row, place, value in CONTEXT]
VECTORS = [[0, *one] for one in VECTOR] + [[1, place, -value] for place, value in VECTOR]


def numbers(shape: tuple[int, ...], entries: list[list[Any]], letter: str) -> bytes:
    """Little-endian numbers of an array that is 0 but for these entries."""
    count = 1
    for size in shape:
        count *= size
    made = [0.0] * count
    for *place, value in entries:
        at = 0
        for size, index in zip(shape, place, strict=True):
            at = at * size + index
        made[at] = value
    return struct.pack(f"<{count}{letter}", *made)


REPLY = {
    "version": 1,
    "status": "answered",
    "id": "job-3:0",
    "served_by": "gru",
    "provisional": False,
    "degraded": "",
    "model": "gru@0123456789ab",
    "bank": "bank@0123456789ab",
    "policy": "calibrated@01234567",
    "confidence_method": "top1",
    "margin_method": "distinct",
    "vectors": numbers((2, 768), VECTORS, "f"),
    "confidences": struct.pack("<2f", 0.8125, 0.5),
    "margins": struct.pack("<2f", 0.03125, 0.25),
    "fired": b"\x00\x05",
    "shed": b"\x00\x02",
    "gains": struct.pack("<2f", 0.0, 0.125),
    "rules": ["high_stakes_lane", "long_context", "low_confidence"],
    "sheds": ["no_gain", "batch"],
    "tiers": {
        "amn@0123456789ab": struct.pack("<4f", 0.5, 0.75, 0.625, 1.0),
        "gru@0123456789ab": struct.pack("<4f", 0.5625, 0.25, 0.5, 0.0),
    },
    "timings": {"queue_ms": 0.25, "batch_ms": 0.125, "compute_ms": 1.5, "batch_size": 12},
}


#: What the bytes above are, for readers.
READABLE = {
    "context": {"nonzero": CONTEXTS},
    "vectors": {"nonzero": VECTORS},
    "confidences": [0.8125, 0.5],
    "margins": [0.03125, 0.25],
    "fired": [0, 5],
    "shed": [0, 2],
    "gains": [0.0, 0.125],
    "tiers": {
        "amn@0123456789ab": [[0.5, 0.75], [0.625, 1.0]],
        "gru@0123456789ab": [[0.5625, 0.25], [0.5, 0.0]],
    },
}


def entry(name: str, kind: str, message: dict[str, Any], **more: Any) -> dict[str, Any]:
    fields = {key: READABLE.get(key, value) for key, value in message.items()}
    if fields.get("shape") == [1, 5, 768]:
        fields["context"] = {"nonzero": [one for one in CONTEXTS if one[0] == 0]}
    return {"name": name, "kind": kind, "bytes": msgpack.packb(message), "fields": fields, **more}


def fixtures() -> list[dict[str, Any]]:
    f4, f2 = (numbers((2, 5, 768), CONTEXTS, letter) for letter in "fe")
    request = REQUEST | {"id": "job-3:0", "shape": [2, 5, 768], "context": f4, "sequence": "", "position": -1}
    one = packed_numbers(3840, CONTEXT, "f")
    least = pick(request, "id", "reply_to", "dtype", "shape", "context", "encoder")
    names = ("id", "status", "served_by", "provisional", "vectors", "confidences", "margins")
    brief = pick(REPLY, *names, "fired", "shed", "rules", "sheds")
    return [
        entry("batch_f4", "batch request", request, reencodes=True),
        entry("batch_f2", "batch request", request | {"dtype": "f2", "context": f2}, reencodes=True),
        entry("batch_least", "batch request", least, note="only the required fields"),
        entry(
            "batch_of_one", "batch request", request | {"shape": [1, 5, 768], "context": one}, reencodes=True
        ),
        entry("batch_reply", "batch reply", REPLY, reencodes=True),
        entry("batch_reply_least", "batch reply", brief, note="only the required fields"),
        bad("bad_batch_length", msgpack.packb(request | {"shape": [3, 5, 768]}), "undecodable"),
        bad(
            "bad_batch_empty", msgpack.packb(request | {"shape": [0, 5, 768], "context": b""}), "undecodable"
        ),
    ]


if __name__ == "__main__":
    keep(HERE, fixtures())
