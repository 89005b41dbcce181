"""Wrote the fixtures of the field `traceparent` of answers and failures, once.

    python tests/golden/make_v1_traced.py

The fixtures of `make_v1.py` stay as they are: they are what older workers send.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from make_v1 import FAILURE, REPLY, TRACE, VECTOR, entry, keep, packed_numbers

HERE = Path(__file__).parent / "v1_traced"


def fixtures() -> list[dict[str, Any]]:
    reply = REPLY | {"vector": packed_numbers(768, VECTOR, "f")}
    timings = reply.pop("timings")
    traced = reply | {"traceparent": TRACE, "timings": timings}
    return [
        entry("reply_traced", "reply", traced, reencodes=True),
        entry("failure_traced", "failure", FAILURE | {"traceparent": TRACE}, reencodes=True),
    ]


if __name__ == "__main__":
    keep(HERE, fixtures())
