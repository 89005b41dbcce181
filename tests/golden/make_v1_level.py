"""Wrote the fixtures of the field `level`, once: version 1 as it is since there are levels of priority.

    python tests/golden/make_v1_level.py

The fixtures of `make_v1.py` stay as they are: they are what older clients send.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
from make_v1 import CONTEXT, REQUEST, bad, entry, keep, packed_numbers

HERE = Path(__file__).parent / "v1_level"


def fixtures() -> list[dict[str, Any]]:
    request = REQUEST | {"context": packed_numbers(3840, CONTEXT, "f")}
    later = request | {"level": "a level of later"}
    return [
        entry("request_high", "request", request | {"level": "high"}, reencodes=True),
        entry("request_low", "request", request | {"level": "low"}, reencodes=True),
        entry("request_later", "request", later, reencodes=True, note="a level that nobody knows yet"),
        bad("bad_level", msgpack.packb(request | {"level": 3}), "undecodable"),
    ]


if __name__ == "__main__":
    keep(HERE, fixtures())
