"""The server's clock, which stamps everything that is stored."""

from __future__ import annotations

import redis


def server_now_ms(client: redis.Redis) -> int:
    """The server's clock, epoch milliseconds."""
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000
