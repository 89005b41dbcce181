"""Wrote the fixtures of the field `escalate`, once: version 1 as it is since a client may ask for a fallback.

    python tests/golden/make_v1_escalate.py

The fixtures of `make_v1.py` stay as they are: they are what older clients send.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
from make_v1 import CONTEXT, REQUEST, bad, entry, keep, packed_numbers

HERE = Path(__file__).parent / "v1_escalate"


def fixtures() -> list[dict[str, Any]]:
    request = REQUEST | {"context": packed_numbers(3840, CONTEXT, "f")}
    asked = request | {"escalate": True}
    # A field that is left out when it says nothing stands before `level`, and after what every request has.
    return [
        entry("request_asked", "request", asked, reencodes=True),
        entry("request_asked_low", "request", asked | {"level": "low"}, reencodes=True),
        entry("request_not_asked", "request", request | {"escalate": False}),
        bad("bad_escalate", msgpack.packb(request | {"escalate": "yes"}), "undecodable"),
    ]


if __name__ == "__main__":
    keep(HERE, fixtures())
