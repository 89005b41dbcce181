"""The server's clock, and the blocks of five minutes that the judge and the rules count in."""

from __future__ import annotations

import redis

BLOCK_MIN = 5
BLOCKS_PER_DAY = 24 * 60 // BLOCK_MIN


def server_now_ms(client: redis.Redis) -> int:
    """The server's clock, epoch milliseconds."""
    seconds, microseconds = client.time()
    return seconds * 1000 + microseconds // 1000
