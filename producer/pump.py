"""The loop of `predict_many`: sends chunks, and yields answers as they come, within a limit."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from producer.errors import InvalidRequest, QueueError
from producer.messages import Reply
from producer.session import CHUNK, each_of

Answer = tuple[int, Reply | QueueError]
Chunk = list[tuple[int, Any]]
Put = Callable[[Answer], None]


def chunk_size(in_flight: int) -> int:
    """How many requests go in one call: so many that another call can be under way meanwhile.

    Raises:
        InvalidRequest: `in_flight` is no number of requests.
    """
    if isinstance(in_flight, bool) or not isinstance(in_flight, int) or in_flight < 1:
        raise InvalidRequest(f"in_flight is {in_flight!r:.80}; send an integer >= 1")
    return min(CHUNK, -(-in_flight // 2))


def pumped(
    contexts: Iterable[Any], in_flight: int, submit_chunk: Callable[[Chunk, Put], None]
) -> Iterator[Answer]:
    """Yields `(index, answer)`, each index once.

    Args:
        in_flight: Most requests that wait at once; the iterable may be longer than memory.
        submit_chunk: Sends numbered contexts, and puts each one's answer once.

    Raises:
        InvalidRequest: `in_flight` is below 1.
    """
    done: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    numbered, waiting, exhausted, size = enumerate(contexts), 0, False, chunk_size(in_flight)
    while waiting or not exhausted:
        if not exhausted and waiting + size <= in_flight:
            chunk = list(islice(numbered, size))
            exhausted = len(chunk) < size
            waiting += len(chunk)
            submit_chunk(chunk, done.put)
        elif waiting:
            yield done.get()
            waiting -= 1
        while not done.empty():
            yield done.get()
            waiting -= 1


async def pumped_async(
    contexts: Iterable[Any] | AsyncIterable[Any],
    in_flight: int,
    submit_chunk: Callable[[Chunk, Put], Awaitable[None]],
) -> AsyncIterator[Answer]:
    """As `pumped`; the contexts may come from an asynchronous iterable."""
    done: asyncio.Queue[Answer] = asyncio.Queue()
    source, index, waiting, exhausted, size = each_of(contexts), 0, 0, False, chunk_size(in_flight)
    while waiting or not exhausted:
        if not exhausted and waiting + size <= in_flight:
            chunk = [(index + i, context) for i, context in enumerate(await _take(source, size))]
            exhausted = len(chunk) < size
            index += len(chunk)
            waiting += len(chunk)
            await submit_chunk(chunk, done.put_nowait)
        elif waiting:
            yield await done.get()
            waiting -= 1
        while not done.empty():
            yield done.get_nowait()
            waiting -= 1


async def _take(source: AsyncIterator[Any], count: int) -> list[Any]:
    taken: list[Any] = []
    while len(taken) < count:
        try:
            taken.append(await anext(source))
        except StopAsyncIteration:
            break
    return taken
