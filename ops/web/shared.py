"""An answer that many ask for, made by one of them, in a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """An answer that is made anew when it is older than `for_s`, whoever asks."""

    def __init__(self, make: Callable[[], T], for_s: float) -> None:
        self._make, self._for_s, self._lock = make, for_s, asyncio.Lock()
        self._made: tuple[float, T] | None = None

    async def __call__(self) -> T:
        """Returns it."""
        async with self._lock:
            if self._made is None or time.monotonic() - self._made[0] >= self._for_s:
                made = await asyncio.to_thread(self._make)
                self._made = time.monotonic(), made
            return self._made[1]
