"""The future of one answer, for threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

_LOCK = threading.Lock()


def forked() -> None:
    """In the child of a fork: another thread may have held the lock."""
    global _LOCK
    _LOCK = threading.Lock()


class ThreadFuture:
    """The part of `concurrent.futures.Future` that an answer needs, at a third of its cost.

    That one makes a condition for each, whose waiters make a lock each; here all wait at one lock, which
    is held until the outcome is there. The first outcome counts.
    """

    __slots__ = ("_callbacks", "_done", "_error", "_gate", "_result")

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        self._done = False
        self._result: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[ThreadFuture], object]] = []

    def done(self) -> bool:
        """Says whether it has its outcome."""
        return self._done

    def exception(self) -> BaseException | None:
        """The error, of one that is done."""
        return self._error

    def set_result(self, result: Any, error: BaseException | None = None, /) -> None:
        """Gives it a reply, or the error in its place."""
        with _LOCK:
            if self._done:
                return
            self._result, self._error, self._done = result, error, True
        self._gate.release()
        for callback in self._callbacks:
            callback(self)

    def set_exception(self, exception: BaseException, /) -> None:
        """Gives it an error."""
        self.set_result(None, exception)

    def result(self, timeout_s: float = 0.0) -> Any:
        """The reply, waited for.

        Raises:
            TimeoutError: It did not come in time.
            BaseException: The error that came in its place.
        """
        if not self._done and self._gate.acquire(timeout=max(0.0, timeout_s)):
            self._gate.release()  # the next waiter passes too
        if not self._done:
            raise TimeoutError
        if self._error is not None:
            raise self._error
        return self._result

    def add_done_callback(self, callback: Callable[[ThreadFuture], object]) -> None:
        """Calls it with this future: now, or in the thread that brings the outcome."""
        with _LOCK:
            if not self._done:
                self._callbacks.append(callback)
                return
        callback(self)
