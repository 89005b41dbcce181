"""The loop of `predict_many`: sends chunks, and yields answers as they come, within a limit."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from producer.errors import QueueError
from producer.messages import Reply
from producer.session import CHUNK, each_of

Answer = tuple[int, Reply | QueueError]
Chunk = list[tuple[int, Any]]
Put = Callable[[Answer], None]


def pumped(
    contexts: Iterable[Any], in_flight: int, submit_chunk: Callable[[Chunk, Put], None]
) -> Iterator[Answer]:
    """Yields `(index, answer)`, each index once.

    Args:
        in_flight: Most requests that wait at once; the iterable may be longer than memory.
        submit_chunk: Sends numbered contexts, and puts each one's answer once.
    """
    done: queue.SimpleQueue[Answer] = queue.SimpleQueue()
    numbered, waiting, exhausted = enumerate(contexts), 0, False
    while waiting or not exhausted:
        if not exhausted and (waiting + CHUNK <= in_flight or not waiting):
            chunk = list(islice(numbered, CHUNK))
            exhausted = len(chunk) < CHUNK
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
    source, index, waiting, exhausted = each_of(contexts), 0, 0, False
    while waiting or not exhausted:
        if not exhausted and (waiting + CHUNK <= in_flight or not waiting):
            chunk = [(index + i, context) for i, context in enumerate(await _take(source, CHUNK))]
            exhausted = len(chunk) < CHUNK
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
