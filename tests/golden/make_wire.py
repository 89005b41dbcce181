"""Writes docs/wire-fixtures.json: messages of each kind as bytes and as what they mean, for any language.

    python tests/golden/make_wire.py

What is in the file stays as it is, since every later version has to read it: a change of a fixture that is
there is refused. New ones are added here, and a new version of the wire format gets a file of its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

FILE = Path(__file__).parents[2] / "docs" / "wire-fixtures.json"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ABOUT = {
    "bytes": "pieces of a message in order: a text is base64, a number is so many bytes of zero",
    "fields": "what the message says; a bin is an object with dtype (little-endian: f4 and f2 are floats, "
    "u2 and u1 unsigned integers), and shape with nonzero (indices, value; all else is 0) or values",
    "refused": "what a worker answers: its code, and the field that its message names, if it names one",
    "reencodes": "the Python client writes these fields to the same bytes; others are free in their order",
    "sha256": "of the whole message",
}


class Bin(NamedTuple):
    """An array in a message: its bytes, and how they are described."""

    data: bytes
    meaning: dict[str, Any]


def sparse(shape: tuple[int, ...], nonzero: list[list[Any]], dtype: str = "f4") -> Bin:
    """An array that is 0 but for these entries, each of them its indices and its value."""
    made = [0.0] * math.prod(shape)
    for *place, value in nonzero:
        made[sum(index * math.prod(shape[axis + 1 :]) for axis, index in enumerate(place))] = value
    data = struct.pack(f"<{len(made)}{'e' if dtype == 'f2' else 'f'}", *made)
    return Bin(data, {"dtype": dtype, "shape": list(shape), "nonzero": nonzero})


def dense(dtype: str, *values: float) -> Bin:
    """A short array."""
    letter = {"f4": "f", "u1": "B", "u2": "H"}[dtype]
    return Bin(struct.pack(f"<{len(values)}{letter}", *values), {"dtype": dtype, "values": list(values)})


# Numbers that float16 holds exactly: four entries of +-0.5 make a unit vector.
CONTEXT = [[row, row + step, 0.5 if step < 200 else -0.5] for row in range(5) for step in (0, 100, 200, 300)]
#: The second context is the first one with its vectors in the opposite order.
CONTEXTS = [[0, *one] for one in CONTEXT] + [[1, 4 - row, place, value] for row, place, value in CONTEXT]
VECTOR = [[10, 0.5], [110, -0.5], [210, 0.5], [310, -0.5]]
VECTORS = [[0, *one] for one in VECTOR] + [[1, place, -value] for place, value in VECTOR]
#: Seven vectors of one number each. Two contexts share four of them; the third holds the last five.
SHARED = [[row, 100 * row, 1.0 if row % 2 else -1.0] for row in range(7)]

F4, F2 = sparse((5, 768), CONTEXT), sparse((5, 768), CONTEXT, "f2")
REQUEST: dict[str, Any] = {
    "version": 1,
    "id": "doc-12:7",
    "reply_to": "client-A_1.b",
    "dtype": "f4",
    "shape": [5, 768],
    "context": F4,
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
BATCH = REQUEST | {"id": "job-3:0", "shape": [2, 5, 768], "sequence": "", "position": -1}
BATCH["context"] = sparse((2, 5, 768), CONTEXTS)
WINDOWS = BATCH | {"id": "job-3:1", "shape": [3, 5, 768], "context": sparse((7, 768), SHARED)}
WINDOWS["ends"] = dense("u2", 4, 5, 6)
TIMINGS = {"queue_ms": 0.25, "batch_ms": 0.125, "compute_ms": 1.5, "batch_size": 12}
FRAME = {"model": "gru@0123456789ab", "bank": "bank@0123456789ab", "policy": "budgeted@01234567"}
METHODS = {"confidence_method": "top1", "margin_method": "distinct"}
REPLY: dict[str, Any] = {
    "version": 1,
    "id": "doc-12:7",
    "status": "answered",
    "vector": sparse((768,), VECTOR),
    "confidence": 0.8125,
    "margin": 0.03125,
    "reasons": ["high_stakes_lane", "long_context"],
    "served_by": "gru",
    "provisional": False,
    "shed": "",
    "degraded": "",
    **FRAME,
    **METHODS,
    "timings": TIMINGS,
}
BATCH_REPLY: dict[str, Any] = {
    "version": 1,
    "status": "answered",
    "id": "job-3:0",
    "served_by": "gru",
    "provisional": False,
    "degraded": "",
    **FRAME,
    "policy": "calibrated@01234567",
    **METHODS,
    "vectors": sparse((2, 768), VECTORS),
    "confidences": dense("f4", 0.8125, 0.5),
    "margins": dense("f4", 0.03125, 0.25),
    "fired": dense("u1", 0, 5),
    "shed": dense("u1", 0, 2),
    "gains": dense("f4", 0.0, 0.125),
    "rules": ["high_stakes_lane", "long_context", "low_confidence"],
    "sheds": ["no_gain", "batch"],
    "tiers": {
        "amn@0123456789ab": dense("f4", 0.5, 0.75, 0.625, 1.0),
        "gru@0123456789ab": dense("f4", 0.5625, 0.25, 0.5, 0.0),
    },
    "timings": TIMINGS,
}
FAILURE = {
    "version": 1,
    "id": "doc-12:7",
    "status": "failed",
    "code": "deadline_exceeded",
    "message": "request doc-12:7 was read 3.0 ms after its deadline",
    "retryable": False,
}
LEAST = ("version", "id", "reply_to", "dtype", "shape", "context", "encoder")
#: Codes of failed replies beside those in a fixture of their own.
CODES = {
    "inference_failed": "the model gave no finite vector",
    "dead_lettered": "delivered 5 times without an end; its worker may have died of it",
    "cancelled": "taken back",
    "a_code_of_later": "a code that this version does not have is a failure all the same",
}


def pick(message: dict[str, Any], *names: str) -> dict[str, Any]:
    """Some of the fields."""
    return {name: message[name] for name in names}


def plain(value: Any, part: str) -> Any:
    """A message whose arrays are their bytes (`data`) or their descriptions (`meaning`)."""
    if isinstance(value, dict):
        return {name: plain(one, part) for name, one in value.items()}
    return getattr(value, part) if isinstance(value, Bin) else value


def good(name: str, kind: str, message: dict[str, Any], note: str = "", **more: Any) -> dict[str, Any]:
    """A message that has to be read."""
    about = {"name": name, "kind": kind, **({"note": note} if note else {}), **more}
    return about | {"fields": plain(message, "meaning"), **stored(msgpack.packb(plain(message, "data")))}


def same(name: str, kind: str, message: dict[str, Any]) -> dict[str, Any]:
    """A message that the Python client would write as it is."""
    return good(name, kind, message, reencodes=True)


def bad(name: str, message: Any, field: str = "", code: str = "undecodable") -> dict[str, Any]:
    """A request that has to be refused."""
    data = message if isinstance(message, bytes) else msgpack.packb(plain(message, "data"))
    return {"name": name, "kind": "refused request", "refused": {"code": code, "field": field}} | stored(data)


def stored(data: bytes) -> dict[str, Any]:
    """The bytes in pieces, in which no run of 16 zeros or more stands."""
    pieces: list[str | int] = []
    for found in re.finditer(rb"(\x00{16,})|((?:(?!\x00{16}).)+)", data, re.DOTALL):
        zeros, other = found.groups()
        pieces.append(len(zeros) if zeros else base64.b64encode(other).decode())
    return {"bytes": pieces, "sha256": hashlib.sha256(data).hexdigest()}


def requests() -> list[dict[str, Any]]:
    """Requests of one context, and of many."""
    ones = {"submitted_at_ms": 1764000000123, "expires_at_ms": 0, "priority": {"level": 3}}
    text = "é" * 512
    long = dict.fromkeys(("lane", "encoder", "sequence", "domain", "traceparent"), text)
    most = {"id": "x" * 64, "reply_to": "y" * 64, "tokens": 2**64 - 1, "position": 2**63 - 1}
    most |= {"submitted_at_ms": 99999999999999.0, "expires_at_ms": 99999999999999.0}
    rows = sparse((260, 768), [[row, row, 1.0] for row in range(260)])
    full = {"shape": [256, 5, 768], "context": rows, "ends": dense("u2", *range(4, 260))}
    return [
        same("request_f4", "request", REQUEST),
        same("request_f2", "request", REQUEST | {"dtype": "f2", "context": F2}),
        good("request_least", "request", pick(REQUEST, *LEAST), "the required fields; the rest has defaults"),
        good("request_foreign", "request", REQUEST | ones, "whole numbers as integers, an unknown field"),
        same("request_high", "request", REQUEST | {"level": "high"}),
        same("request_low", "request", REQUEST | {"level": "low"}),
        same("request_later", "request", REQUEST | {"level": "a level of later"}),
        # A field that is left out when it says nothing stands before `level`, after what all requests have.
        same("request_asked", "request", REQUEST | {"escalate": True}),
        same("request_asked_low", "request", REQUEST | {"escalate": True, "level": "low"}),
        good("request_not_asked", "request", REQUEST | {"escalate": False}),
        good("request_most", "request", REQUEST | long | most, "the longest texts, the largest numbers"),
        same("batch_f4", "batch request", BATCH),
        same(
            "batch_f2",
            "batch request",
            BATCH | {"dtype": "f2", "context": sparse((2, 5, 768), CONTEXTS, "f2")},
        ),
        good("batch_least", "batch request", pick(BATCH, *LEAST), "only the required fields"),
        same(
            "batch_of_one",
            "batch request",
            BATCH | {"shape": [1, 5, 768], "context": sparse((1, 5, 768), CONTEXTS[:20])},
        ),
        good("windows_f4", "batch request", WINDOWS),
        good(
            "windows_f2",
            "batch request",
            WINDOWS | {"dtype": "f2", "context": sparse((7, 768), SHARED, "f2")},
        ),
        good("windows_least", "batch request", pick(WINDOWS, *LEAST, "ends")),
        good("windows_most", "batch request", WINDOWS | full, "256 contexts"),
    ]


def answers() -> list[dict[str, Any]]:
    """Answers, provisional ones and failures."""
    traced = {name: value for name, value in REPLY.items() if name != "timings"} | {"traceparent": TRACE}
    asked = REPLY | {"gain": 0.125, "tiers": {"amn@0123456789ab": [0.5, 0.75], "gru@0123456789ab": [1, 0]}}
    unfit = BATCH_REPLY | {"traceparent": TRACE, "calibration": "none"}
    brief = (
        *pick(REPLY, "version", "id", "status", "vector", "confidence", "margin", "reasons", "served_by"),
        "provisional",
    )
    names = ("version", "id", "status", "served_by", "provisional", "vectors", "confidences", "margins")
    whole = {"confidence": 1, "margin": 0, "gain": 0, "unheard_of": [{"x": None}], "timings": {"queue_ms": 1}}
    return [
        same("reply_fallback", "answered", REPLY),
        same(
            "reply_provisional",
            "answered",
            REPLY | {"served_by": "amn", "provisional": True, "model": "amn@0123456789ab"},
        ),
        same(
            "reply_shed",
            "answered",
            REPLY | {"served_by": "amn", "shed": "budget", "reasons": ["low_confidence"]},
        ),
        good(
            "reply_least",
            "answered",
            pick(REPLY, *brief) | {"confidence": 1, "reasons": []},
            "required fields only",
        ),
        same("reply_traced", "answered", traced | {"timings": TIMINGS}),
        good("reply_degraded", "answered", REPLY | {"served_by": "amn", "degraded": "fallback_failed"}),
        good("reply_asked", "answered", asked, "the gain, and what each model said"),
        good("reply_foreign", "answered", REPLY | whole, "whole numbers as integers, an unknown field"),
        same("batch_reply", "answered_batch", BATCH_REPLY),
        good(
            "batch_reply_least",
            "answered_batch",
            pick(BATCH_REPLY, *names, "fired", "shed", "rules", "sheds"),
            "required fields only",
        ),
        good("batch_reply_traced", "answered_batch", unfit),
        same("failure", "failed", FAILURE),
        good("failure_least", "failed", pick(FAILURE, "version", "id", "status", "code", "message")),
        same("failure_traced", "failed", FAILURE | {"traceparent": TRACE}),
        same(
            "failure_retryable",
            "failed",
            FAILURE | {"code": "request_lost", "message": "again", "retryable": True},
        ),
        *(
            good(f"failure_{code}", "failed", FAILURE | {"code": code, "message": text})
            for code, text in CODES.items()
        ),
    ]


def refusals() -> list[dict[str, Any]]:
    """Requests that no worker takes."""
    full, f4 = msgpack.packb(plain(REQUEST, "data")), F4.data
    missing = {name: value for name, value in REQUEST.items() if name != "id"}
    short, ends = WINDOWS["context"].data[:-1], [4, 5, 6]
    wide = sparse((5, 768), [[0, 0, 1.5], *([row, row, 1.0] for row in range(1, 5))])
    infinite = struct.pack("<f", math.inf) + f4[4:]
    pad = 65_537 - len(msgpack.packb(plain(REQUEST | {"unheard_of": bytes(60_000)}, "data"))) + 60_000
    return [
        bad("bad_version_2", REQUEST | {"version": 2}, code="unsupported_version"),
        bad("bad_version_missing", {"id": "a"}, "version", "unsupported_version"),
        bad("bad_truncated", full[:-40]),
        bad("bad_trailing", full + b"\x00"),
        bad("bad_not_a_map", msgpack.packb([1, "doc-12:7"])),
        bad("bad_empty", b""),
        bad("bad_twice", b"\xde\x00\x11" + full[3:] + msgpack.packb("tokens") + b"\x01"),
        bad("bad_missing", missing, "id"),
        bad("bad_utf8", full.replace(b"doc-12:7", b"doc-12\xff7", 1), "id"),
        bad("bad_id", REQUEST | {"id": "a b\n"}, "id"),
        bad("bad_reply_to", REQUEST | {"reply_to": "a:b"}, "reply_to"),
        bad("bad_shape", REQUEST | {"shape": [768, 5]}, "shape"),
        bad("bad_dtype", REQUEST | {"dtype": "f8"}, "dtype"),
        bad("bad_length", REQUEST | {"context": f4[:-4]}, "context"),
        bad("bad_list", REQUEST | {"context": [0.5] * 3840}, "context"),
        bad("bad_type", REQUEST | {"tokens": "512"}, "tokens"),
        bad("bad_float", REQUEST | {"tokens": 1.5}, "tokens"),
        bad("bad_boolean", REQUEST | {"expires_at_ms": True}, "expires_at_ms"),
        bad("bad_nil", REQUEST | {"lane": None}, "lane"),
        bad("bad_extension", REQUEST | {"submitted_at_ms": msgpack.Timestamp(1)}, "submitted_at_ms"),
        bad("bad_time", REQUEST | {"submitted_at_ms": 1.7e18}, "submitted_at_ms"),
        bad("bad_level", REQUEST | {"level": 3}, "level"),
        bad("bad_escalate", REQUEST | {"escalate": "yes"}, "escalate"),
        bad("bad_long", REQUEST | {"sequence": "x" * 513}, "sequence"),
        bad("bad_size", REQUEST | {"unheard_of": bytes(pad)}),
        bad("bad_lane", REQUEST | {"lane": "gossip"}, "lane", "unknown_lane"),
        bad("bad_encoder", REQUEST | {"encoder": "another"}, "encoder", "unknown_encoder"),
        bad("bad_norm", REQUEST | {"context": wide}, "context", "bad_norm"),
        bad("bad_infinite", REQUEST | {"context": infinite}, "context", "not_finite"),
        bad("bad_batch_length", BATCH | {"shape": [3, 5, 768]}, "context"),
        bad("bad_batch_empty", BATCH | {"shape": [0, 5, 768], "context": b""}, "shape"),
        bad(
            "bad_batch_of_257",
            BATCH | {"shape": [257, 5, 768], "context": bytes(7680 * 257), "dtype": "f2"},
            "shape",
        ),
        bad("bad_windows_ends_out_of_range", WINDOWS | {"ends": dense("u2", 4, 5, 7)}, "ends"),
        bad("bad_windows_ends_too_early", WINDOWS | {"ends": dense("u2", 3, 5, 6)}, "ends"),
        bad("bad_windows_ends_fall", WINDOWS | {"ends": dense("u2", 4, 6, 5)}, "ends"),
        bad("bad_windows_ends_too_few", WINDOWS | {"ends": dense("u2", 4, 5)}, "ends"),
        bad("bad_windows_ends_no_bytes", WINDOWS | {"ends": ends}, "ends"),
        bad("bad_windows_vectors_cut", WINDOWS | {"context": short}, "context"),
        bad(
            "bad_windows_vectors_unused", WINDOWS | {"shape": [1, 5, 768], "ends": dense("u2", 6)}, "context"
        ),
    ]


def document() -> dict[str, Any]:
    """All that the file holds, but for the vectors of the sampling hash, which stay as they were written."""
    return {"version": 1, "about": ABOUT, "fixtures": requests() + answers() + refusals()}


def text(made: dict[str, Any]) -> str:
    """One line a fixture."""
    lists = {name: value for name, value in made.items() if isinstance(value, list)}
    rest = {name: value for name, value in made.items() if name not in lists}
    head = json.dumps(rest, indent=1, ensure_ascii=False)[:-2]
    lines = (
        f' "{name}": [\n' + ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows) + "\n ]"
        for name, rows in lists.items()
    )
    return head + ",\n" + ",\n".join(lines) + "\n}\n"


def main() -> None:
    there = json.loads(FILE.read_text("utf-8"))
    made = document() | {"sampling": there["sampling"]}
    now = {fixture["name"]: fixture for fixture in made["fixtures"]}
    for fixture in there["fixtures"]:
        if now.get(fixture["name"]) != fixture:
            raise SystemExit(
                f"{fixture['name']} would change, and every later version has to read it as it is"
            )
    FILE.write_text(text(made), "utf-8")


if __name__ == "__main__":
    main()
