"""The server's clock, lengths of time in words, and the blocks that the judge and the rules count in."""

from __future__ import annotations

import re

import redis

from producer.transport.clock import time_ms

BLOCK_MIN = 5
BLOCKS_PER_DAY = 24 * 60 // BLOCK_MIN


def server_now_ms(client: redis.Redis) -> int:
    """The server's clock, epoch milliseconds."""
    return int(time_ms(client.time()))


def span(length_ms: int) -> str:
    """A length of time in two units at most."""
    seconds = max(length_ms, 0) // 1000
    for name, size, next_name, next_size in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60)):
        if seconds >= size:
            rest = seconds % size // next_size
            return f"{seconds // size} {name}" + (f" {rest} {next_name}" if rest else "")
    return f"{seconds // 60} min" if seconds >= 60 else f"{seconds} s"


def parse_span(text: str) -> int:
    """`90s`, `30m`, `2h` or `3d` in milliseconds.

    Raises:
        ValueError: Anything else.
    """
    match = re.fullmatch(r"(\d{1,5})\s*(s|m|min|h|d)", text.strip())
    if match is None or int(match[1]) == 0:
        raise ValueError(f"{text!r} is no length of time; write 90s, 30m, 2h or 3d")
    return int(match[1]) * {"s": 1, "m": 60, "min": 60, "h": 3_600, "d": 86_400}[match[2]] * 1000
