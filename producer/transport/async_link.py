"""A connection for the hot path of an event loop: the `Link` whose calls are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import redis.asyncio
from redis.exceptions import ResponseError

from producer.transport.link import Word, joined

_CANCEL_AGAIN_S = 0.05
_UNSENT_BYTES_MAX = 64 * 1024


class AsyncLink:
    """For one task at a time. Reconnects by itself on the next call.

    Attributes:
        due: Answers that were not given yet.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._pool: Any = client.connection_pool
        self._connection: Any = None
        self.due, self._answers = 0, list[Any]()

    async def each(self, commands: Sequence[tuple[Word, ...]]) -> list[Any]:
        """Sends several commands in one write; returns all answers, an error answer as one of them."""
        await self.send(commands)
        return await self.read(len(commands))

    async def send(self, commands: Sequence[tuple[Word, ...]]) -> None:
        """Sends several commands in one write; `read` gives their answers, now or later."""
        if self.due:  # whatever interrupted who waited for them: they must not meet this call
            await self._connection.disconnect(nowait=True)
        connection = self._connection = self._connection or await self._pool.get_connection()
        self.due, self._answers = len(commands), []
        sent = [b"".join(map(joined, commands))]
        # The driver may start a task to limit the time of a write. For a small one, that of its answer does.
        transport: Any = getattr(getattr(connection, "_writer", None), "transport", None)
        unsent_bytes: Any = getattr(transport, "get_write_buffer_size", None)
        if unsent_bytes is not None and not transport.is_closing():
            transport.write(sent.pop())
        if sent or unsent_bytes() > _UNSENT_BYTES_MAX:
            await connection.send_packed_command(sent)

    async def read(self, count: int) -> list[Any]:
        """The next answers to what was sent; who is cancelled leaves them to the next call."""
        while len(self._answers) < count:
            try:
                answer = await self._connection.read_response(disconnect_on_error=False)
            except ResponseError as error:  # an answer like any other: the connection is in order
                answer = error
            self._answers.append(answer)
        answers, self._answers = self._answers[:count], self._answers[count:]
        self.due -= count
        return answers

    async def close(self) -> None:
        """Gives the connection back to the pool, closed."""
        connection, self._connection, self.due = self._connection, None, 0
        if connection is not None:
            try:
                await connection.disconnect(nowait=True)
            finally:
                await self._pool.release(connection)


async def end(task: asyncio.Task[Any]) -> None:
    """Ends a task. Cancels again until it has: the driver, and `wait_for`, lose one that meets an answer."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=_CANCEL_AGAIN_S)
