"""The loop of `predict_many`: sends chunks, and yields answers as they come, within a limit."""

from __future__ import annotations

import asyncio
import math
import queue
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from producer.errors import InvalidRequest, QueueError
from producer.messages import Reply
from producer.transport.async_link import end

Numbered = tuple[int, Reply | QueueError]
Chunk = list[tuple[int, Any]]
Put = Callable[[Numbered], None]
#: A chunk that took this long to fill goes as it is: the iterable is slow.
_FILL_S = 0.01
#: For the submit under way when a stream is left.
_LEAVE_S = 1.0
#: Comes after the last one.
_END: Any = object()


def chunk_size(in_flight: int, chunk_max: int) -> int:
    """Returns the requests to a call: few enough that another call can be under way meanwhile."""
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or in_flight < 1:
        raise InvalidRequest(f"in_flight is {in_flight!r:.80}; send an integer >= 1")
    return min(chunk_max, -(-in_flight // 2))


def pumped(
    contexts: Iterable[Any], in_flight: int, chunk_max: int, submit_chunk: Callable[[Chunk, Put], None]
) -> Iterator[Numbered]:
    """Yields `(index, answer)`, each index once; what the iterable raises comes after the answers.

    Args:
        in_flight: Most requests that wait at once; the iterable may be longer than memory.
        chunk_max: Most requests that are prepared and sent together.
        submit_chunk: Sends numbered contexts, and puts each one's answer once.
    """
    done: queue.SimpleQueue[Numbered] = queue.SimpleQueue()
    numbered, waiting, size = enumerate(contexts), 0, chunk_size(in_flight, chunk_max)
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
    chunk_max: int,
    submit_chunk: Callable[[Chunk, Put], Awaitable[None]],
) -> AsyncGenerator[Numbered, None]:
    """Yields as `pumped` does; one task walks the iterable, of either kind, and another one sends."""
    size, room = chunk_size(in_flight, chunk_max), asyncio.Semaphore(in_flight)
    pulled: asyncio.Queue[Any] = asyncio.Queue(size)
    done: asyncio.Queue[Any] = asyncio.Queue()
    pull = asyncio.create_task(_pull(contexts, room, pulled), name="amn-predict-many-pull")
    send = asyncio.create_task(
        _send(pulled, size, submit_chunk, done.put_nowait), name="amn-predict-many-send"
    )
    send.add_done_callback(lambda _: done.put_nowait(_END))
    taken, sent = 0, math.inf
    try:
        while taken < sent:
            answer = await done.get()
            if answer is _END:
                sent = send.result()
            else:
                yield answer
                taken += 1
                room.release()
    finally:
        await end(pull)
        while not pulled.empty():
            pulled.get_nowait()
        pulled.put_nowait(_END)
        # A submit under way may end: one that is broken off leaves answers that nobody waits for.
        await asyncio.wait((send,), timeout=_LEAVE_S)
        await end(send)
    if (failed := pull.result()) is not None:
        raise failed


async def _pull(
    contexts: Iterable[Any] | AsyncIterable[Any], room: asyncio.Semaphore, pulled: asyncio.Queue[Any]
) -> Exception | None:
    """Takes from the iterable what there is room for; returns the error that it raised."""
    failed, turn_at_s = None, time.monotonic()
    try:
        async with aclosing(_each_of(contexts)) as source:
            await room.acquire()
            async for context in source:
                await pulled.put(context)
                if time.monotonic() - turn_at_s > _FILL_S:
                    await asyncio.sleep(0)  # one that never waits would let nobody else work
                    turn_at_s = time.monotonic()
                await room.acquire()
    except Exception as error:
        failed = error
    await pulled.put(_END)
    return failed


async def _send(
    pulled: asyncio.Queue[Any], size: int, submit_chunk: Callable[[Chunk, Put], Awaitable[None]], put: Put
) -> int:
    """Sends what was pulled since the last time, again and again; returns how many that were."""
    chunk: Chunk = []
    sent, context = 0, await pulled.get()
    while context is not _END:
        chunk.append((sent + len(chunk), context))
        if pulled.empty() or len(chunk) == size:
            await submit_chunk(chunk, put)
            sent, chunk = sent + len(chunk), []
        context = await pulled.get()
    if chunk:
        await submit_chunk(chunk, put)
    return sent + len(chunk)


async def _each_of(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    """Walks an iterable of either kind."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
