"""The loop of `predict_many`: sends chunks, and yields answers as they come, within a limit."""

from __future__ import annotations

import asyncio
import queue
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from producer.errors import InvalidRequest, QueueError
from producer.messages import Reply

Numbered = tuple[int, Reply | QueueError]
Chunk = list[tuple[int, Any]]
Put = Callable[[Numbered], None]
#: Requests that are prepared and sent together.
CHUNK = 64
#: A chunk that took this long to fill goes as it is: the iterable is slow.
_FILL_S = 0.01
#: For the submit under way when a stream is left.
_LEAVE_S = 1.0


def chunk_size(in_flight: int) -> int:
    """Returns the requests to a call: few enough that another call can be under way meanwhile.

    Raises:
        InvalidRequest: `in_flight` is no number of requests.
    """
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or in_flight < 1:
        raise InvalidRequest(f"in_flight is {in_flight!r:.80}; send an integer >= 1")
    return min(CHUNK, -(-in_flight // 2))


def pumped(
    contexts: Iterable[Any], in_flight: int, submit_chunk: Callable[[Chunk, Put], None]
) -> Iterator[Numbered]:
    """Yields `(index, answer)`, each index once.

    Args:
        in_flight: Most requests that wait at once; the iterable may be longer than memory.
        submit_chunk: Sends numbered contexts, and puts each one's answer once.

    Raises:
        InvalidRequest: `in_flight` is below 1.
        Exception: What the iterable raised, after the answers to what it gave.
    """
    done: queue.SimpleQueue[Numbered] = queue.SimpleQueue()
    numbered, waiting, size = enumerate(contexts), 0, chunk_size(in_flight)
    ended: Exception | None = None  # StopIteration, or what else ended it
    while waiting or ended is None:
        if ended is None and waiting + size <= in_flight:
            chunk, ended = _pulled(numbered, size)
            waiting += len(chunk)
            if chunk:
                submit_chunk(chunk, done.put)
        elif waiting:
            yield done.get()
            waiting -= 1
        while not done.empty():
            yield done.get()
            waiting -= 1
    if ended is not None and not isinstance(ended, StopIteration):
        raise ended


def _pulled(numbered: Iterator[tuple[int, Any]], size: int) -> tuple[Chunk, Exception | None]:
    """The next `size`, or fewer of a slow or ending iterable; and what ended it."""
    chunk: Chunk = []
    until_s = time.monotonic() + _FILL_S
    try:
        while len(chunk) < size and (not chunk or time.monotonic() < until_s):
            chunk.append(next(numbered))
    except Exception as error:
        return chunk, error
    return chunk, None


async def pumped_async(
    contexts: Iterable[Any] | AsyncIterable[Any],
    in_flight: int,
    submit_chunk: Callable[[Chunk, Put], Awaitable[None]],
) -> AsyncGenerator[Numbered, None]:
    """Yields as `pumped` does; the contexts may come from an asynchronous iterable.

    One task walks the iterable and another sends what it gave, so that neither holds up the other, nor
    the answers.
    """
    stream = _Stream(in_flight)
    pull = asyncio.create_task(stream.pull(contexts), name="amn-predict-many-pull")
    send = asyncio.create_task(stream.send(submit_chunk), name="amn-predict-many-send")
    try:
        while (answer := await stream.answer()) is not None:
            yield answer
            stream.taken()
    finally:
        await _cancelled(pull)
        stream.drop()
        # A submit under way may end: one that is broken off leaves answers that nobody waits for.
        await asyncio.wait((send,), timeout=_LEAVE_S)
        await _cancelled(send)
    if stream.failed is not None:
        raise stream.failed


async def _cancelled(task: asyncio.Task[None]) -> None:
    """Ends a task. Cancels again until it has: the driver, and `wait_for`, may lose one."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=0.05)


class _Stream:
    """The state that the two tasks and the reader share; all run in one event loop.

    Attributes:
        failed: The error that the iterable raised.
    """

    def __init__(self, in_flight: int) -> None:
        self.failed: Exception | None = None
        self._in_flight, self._size = in_flight, chunk_size(in_flight)
        self._pulled: Chunk = []
        self._done: deque[Numbered] = deque()
        self._waiting = 0
        self._pulled_all = self._sent_all = False
        self._changed = asyncio.Event()

    async def pull(self, contexts: Iterable[Any] | AsyncIterable[Any]) -> None:
        """Takes from the iterable what there is room for."""
        index, turn_at_s = 0, time.monotonic()
        try:
            async with aclosing(_each_of(contexts)) as source:
                async for context in source:
                    self._pulled.append((index, context))
                    index += 1
                    self._changed.set()
                    if time.monotonic() - turn_at_s > _FILL_S:
                        await asyncio.sleep(0)  # one that never waits would let nobody else work
                        turn_at_s = time.monotonic()
                    await self._until(self._has_room)
        except Exception as error:
            self.failed = error
        finally:
            self._pulled_all = True
            self._changed.set()

    async def send(self, submit_chunk: Callable[[Chunk, Put], Awaitable[None]]) -> None:
        """Sends what was pulled since the last time."""
        try:
            while True:
                await self._until(lambda: bool(self._pulled) or self._pulled_all)
                if not self._pulled:
                    return
                chunk, self._pulled = self._pulled, []
                self._waiting += len(chunk)
                self._changed.set()
                await submit_chunk(chunk, self._put)
        except Exception as error:  # a fault of ours: its answers will not come
            self.failed, self._waiting = error, 0
        finally:
            self._sent_all = True
            self._changed.set()

    async def answer(self) -> Numbered | None:
        """The next one; None when there are no more."""
        await self._until(lambda: bool(self._done) or (self._sent_all and not self._waiting))
        return self._done.popleft() if self._done else None

    def taken(self) -> None:
        """An answer was: another request may go."""
        self._waiting -= 1
        self._changed.set()

    def drop(self) -> None:
        """Forgets what was pulled and not sent."""
        self._pulled.clear()
        self._changed.set()

    def _put(self, answer: Numbered) -> None:
        self._done.append(answer)
        self._changed.set()

    def _has_room(self) -> bool:
        count = len(self._pulled)
        return count < self._size and self._waiting + count < self._in_flight

    async def _until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self._changed.clear()
            await self._changed.wait()


async def _each_of(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """Walks an iterable of either kind."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
