"""Wrote the fixtures of wire version 1, once. They are never edited: every later version reads them.

    python tests/golden/make_v1.py

It refuses to run when the folder has them. A new version gets a script and a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgpack

HERE = Path(__file__).parent / "v1"

# Numbers that float16 holds exactly: four entries of +-0.5 make a unit vector.
CONTEXT = [[row, row + step, 0.5 if step < 200 else -0.5] for row in range(5) for step in (0, 100, 200, 300)]
VECTOR = [[10, 0.5], [110, -0.5], [210, 0.5], [310, -0.5]]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

REQUEST = {
    "version": 1,
    "id": "doc-12:7",
    "reply_to": "client-A_1.b",
    "dtype": "f4",
    "shape": [5, 768],
    "context": b"",
    "lane": "policy/procedure",
    "tokens": 512,
    "encoder": "all-mpnet-base-v2/mean/l2",
    "submitted_at_ms": 1764000000123.25,
    "expires_at_ms": 1764000000173.5,
    "sequence": "doc-12",
    "position": 7,
    "domain": "médecine",
    "provisional": True,
    "traceparent": TRACE,
}
REPLY = {
    "version": 1,
    "id": "doc-12:7",
    "status": "answered",
    "vector": b"",
    "confidence": 0.8125,
    "margin": 0.03125,
    "reasons": ["high_stakes_lane", "long_context"],
    "served_by": "gru",
    "provisional": False,
    "shed": "",
    "degraded": "",
    "model": "gru@0123456789ab",
    "bank": "bank@0123456789ab",
    "policy": "budgeted@01234567",
    "confidence_method": "top1",
    "margin_method": "distinct",
    "timings": {"queue_ms": 0.25, "batch_ms": 0.125, "compute_ms": 1.5, "batch_size": 12},
}
FAILURE = {
    "version": 1,
    "id": "doc-12:7",
    "status": "failed",
    "code": "deadline_exceeded",
    "message": "request doc-12:7 was read 3.0 ms after its deadline",
    "retryable": False,
}


def packed_numbers(count: int, entries: list[list[Any]], letter: str) -> bytes:
    numbers = [0.0] * count
    for *place, value in entries:
        numbers[place[0] if len(place) == 1 else place[0] * 768 + place[1]] = value
    return struct.pack(f"<{count}{letter}", *numbers)


def pick(message: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: message[name] for name in ("version", *names)}


def fixtures() -> list[dict[str, Any]]:
    f4 = packed_numbers(3840, CONTEXT, "f")
    f2 = packed_numbers(3840, CONTEXT, "e")
    vector = packed_numbers(768, VECTOR, "f")
    request = REQUEST | {"context": f4}
    reply = REPLY | {"vector": vector}
    least = pick(request, "id", "reply_to", "dtype", "shape", "context", "encoder")
    foreign = request | {"submitted_at_ms": 1764000000123, "expires_at_ms": 0, "priority": {"level": 3}}
    brief = pick(
        reply, "id", "status", "vector", "confidence", "margin", "reasons", "served_by", "provisional"
    )
    early = reply | {"served_by": "amn", "provisional": True, "model": "amn@0123456789ab"}
    shed = reply | {"served_by": "amn", "shed": "budget", "reasons": ["low_confidence"]}
    full = msgpack.packb(request)
    return [
        entry("request_f4", "request", request, reencodes=True),
        entry("request_f2", "request", request | {"dtype": "f2", "context": f2}, reencodes=True),
        entry("request_least", "request", least, note="only the required fields; the rest has defaults"),
        entry("request_foreign", "request", foreign, note="whole numbers as integers, an unknown field"),
        entry("reply_fallback", "reply", reply, reencodes=True),
        entry("reply_provisional", "reply", early, reencodes=True),
        entry("reply_shed", "reply", shed, reencodes=True),
        entry("reply_least", "reply", brief | {"confidence": 1, "reasons": []}, note="required fields only"),
        entry("failure", "failure", FAILURE, reencodes=True),
        entry("failure_least", "failure", pick(FAILURE, "id", "status", "code", "message")),
        bad("bad_version_2", msgpack.packb(request | {"version": 2}), "unsupported_version"),
        bad("bad_version_missing", msgpack.packb({"id": "a"}), "unsupported_version"),
        bad("bad_truncated", full[:-40], "undecodable"),
        bad("bad_trailing", full + b"\x00", "undecodable"),
        bad("bad_not_a_map", msgpack.packb([1, "doc-12:7"]), "undecodable"),
        bad("bad_shape", msgpack.packb(request | {"shape": [768, 5]}), "undecodable"),
        bad("bad_dtype", msgpack.packb(request | {"dtype": "f8"}), "undecodable"),
        bad("bad_length", msgpack.packb(request | {"context": f4[:-4]}), "undecodable"),
        bad("bad_id", msgpack.packb(request | {"id": "a b\n"}), "undecodable"),
        bad("bad_type", msgpack.packb(request | {"tokens": "512"}), "undecodable"),
        bad("bad_missing", msgpack.packb({k: v for k, v in request.items() if k != "id"}), "undecodable"),
        bad("bad_utf8", full.replace(b"doc-12:7", b"doc-12\xff7", 1), "undecodable"),
        bad("bad_empty", b"", "undecodable"),
    ]


def entry(name: str, kind: str, message: dict[str, Any], **more: Any) -> dict[str, Any]:
    fields = {key: value for key, value in message.items() if not isinstance(value, bytes)}
    vectors = {"context": {"nonzero": CONTEXT}} if kind == "request" else {}
    vectors |= {"vector": {"nonzero": VECTOR}} if kind == "reply" else {}
    return {"name": name, "kind": kind, "bytes": msgpack.packb(message), "fields": fields | vectors, **more}


def bad(name: str, data: bytes, code: str) -> dict[str, Any]:
    return {"name": name, "kind": "invalid request", "bytes": data, "error": code}


def keep(folder: Path, fixtures: Iterable[dict[str, Any]]) -> None:
    """Write fixtures into a folder that has none."""
    folder.mkdir(exist_ok=True)
    if any(folder.glob("*.msgpack")):
        raise SystemExit(f"{folder} has its fixtures; they are never made again")
    described = []
    for fixture in fixtures:
        data = fixture.pop("bytes")
        file = f"{fixture['name']}.msgpack"
        (folder / file).write_bytes(data)
        described.append({**fixture, "file": file, "sha256": hashlib.sha256(data).hexdigest()})
    text = json.dumps({"version": 1, "fixtures": described}, indent=1, ensure_ascii=False)
    (folder / "fixtures.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    keep(HERE, fixtures())
