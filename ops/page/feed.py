"""One snapshot a second, made once and shared by all who watch; none while nobody does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable

import structlog

_LOG = structlog.get_logger("amn.page")
PERIOD_S = 1.0


class Feed:
    """The newest snapshot, and those who follow it. One event loop uses it.

    Attributes:
        viewers: How many follow now.

    Args:
        make: Makes a snapshot, in a thread of its own: it may wait for the server.
    """

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make
        self._body, self._number, self._made_at_s = b"", 0, float("-inf")
        self.viewers, self._closed = 0, False
        self._making, self._news = asyncio.Lock(), asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def latest(self) -> bytes:
        """Returns a snapshot that is at most a period old."""
        async with self._making:
            if time.monotonic() - self._made_at_s >= PERIOD_S:
                body = await asyncio.to_thread(self._make)
                self._body, self._number, self._made_at_s = body, self._number + 1, time.monotonic()
                async with self._news:
                    self._news.notify_all()
            return self._body

    async def follow(self) -> AsyncGenerator[bytes]:
        """Yields each snapshot until `close`; who is slow misses some."""
        self.viewers += 1
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        seen = 0
        try:
            while True:
                async with self._news:
                    while self._number == seen and not self._closed:
                        await self._news.wait()
                if self._closed:
                    return
                seen = self._number
                yield self._body
        finally:
            self.viewers -= 1

    async def close(self) -> None:
        """Lets everybody who follows go."""
        self._closed = True
        async with self._news:
            self._news.notify_all()

    async def _run(self) -> None:
        while self.viewers and not self._closed:
            try:
                await self.latest()
            except Exception:  # of one moment: the next look may well do
                _LOG.exception("snapshot_failed")
                self._made_at_s = time.monotonic()
            left_s = self._made_at_s + PERIOD_S - time.monotonic()
            await asyncio.sleep(max(left_s, 0.01))
