"""One snapshot a second, made once and shared by all who watch; none while nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import structlog

from ops.web.shared import Shared

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
        self._newest = Shared(make, PERIOD_S)
        self._body: bytes | None = None
        self.viewers, self._closed = 0, False
        self._news = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    async def latest(self) -> bytes:
        """Returns a snapshot that is at most a period old, or raises the error in its place."""
        body = await self._newest()
        if body is not self._body:
            self._body = body
            async with self._news:
                self._news.notify_all()
        return body

    async def follow(self) -> AsyncGenerator[bytes]:
        """Yields each snapshot until `close`; who is slow misses some."""
        self.viewers += 1
        if self._task is None or self._task.done():
            self._body, self._task = None, asyncio.create_task(self._run())
        seen = None
        try:
            while True:
                async with self._news:
                    while self._body is seen and not self._closed:
                        await self._news.wait()
                if self._closed or self._body is None:
                    return
                seen = self._body
                yield seen
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
            await asyncio.sleep(PERIOD_S)
