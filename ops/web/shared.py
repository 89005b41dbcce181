"""An answer that many ask for, made by one of them, in a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """An answer, or the error in its place, that is asked for anew after `for_s`, whoever asks."""

    def __init__(self, make: Callable[[], T], for_s: float) -> None:
        self._make, self._for_s = make, for_s
        self._task: asyncio.Task[T] | None = None
        self._asked_at_s = 0.0

    async def __call__(self) -> T:
        """Returns it, or raises the error that `make` raised."""
        if self._task is None or (self._task.done() and time.monotonic() - self._asked_at_s >= self._for_s):
            self._asked_at_s = time.monotonic()
            self._task = asyncio.create_task(asyncio.to_thread(self._make))
        task = self._task
        await asyncio.wait((task,))  # who leaves takes it from nobody else
        if error := task.exception():
            raise error.with_traceback(None)  # one object for all, to which each would add its frames
        return task.result()
