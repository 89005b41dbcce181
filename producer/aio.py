"""The asyncio producer: the verbs of `producer.client`, to be awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Self, Unpack, cast

from producer.core import Core
from producer.errors import ProducerClosed, QueueError
from producer.messages import BatchReply, Reply
from producer.options import (
    DEFAULT_OPTIONS,
    OptionFields,
    Options,
    SubmitFields,
    options_of,
    options_of_many,
)
from producer.session.handle import AsyncBatchHandle, AsyncHandle
from producer.session.pump import pumped_async
from producer.session.tasks import AsyncChannel
from producer.settings import ProducerSettings
from producer.transport.verbs import T, Verb, run_async, together_async


class AsyncProducer(Core[AsyncHandle, AsyncBatchHandle]):
    """Pushes contexts into the queue and receives the answers, in one event loop: that of its first use.

    In another one, as in a forked process, it refuses at once; make one in each. Thousands of tasks share
    one connection for commands and one for replies: requests that are submitted while a round trip is
    under way go out together in the next.

    Example:
        async with AsyncProducer() as producer:
            reply = await producer.predict(context)  # (5, 768) -> reply.vector (768,)

    Args:
        partitions: How many the queue has; None for a queue without. See `Producer`.
    """

    _channel: Callable[[ProducerSettings], Any] = AsyncChannel
    _pause = staticmethod(asyncio.sleep)
    _together: Callable[[Sequence[Verb[Any]]], Any] = staticmethod(together_async)
    _handle, _batch_handle = AsyncHandle, AsyncBatchHandle
    _steps = staticmethod(run_async)
    _loop: asyncio.AbstractEventLoop | None = None  # the first one that it was used in

    async def _run(self, verb: Verb[T]) -> T:
        """Runs a verb in the event loop of the first one; anywhere else it refuses."""
        self.channels[0].check_open()
        running = asyncio.get_running_loop()
        self._loop = self._loop or running
        if self._loop is not running:
            raise ProducerClosed("this producer was used in another event loop before; make one in each loop")
        return await self._steps(verb)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Does what `Producer.start` does."""
        await self._run(self._starting())

    async def close(self) -> None:
        """Stops reading, as `Producer.close`. After the end of its event loop it only drops the connections.

        Raises:
            ProducerClosed: Its event loop is another one, and still runs.
        """
        loop = self._loop
        if loop is not None and loop.is_closed():
            channels: list[Any] = self.channels
            for channel in channels:
                channel.drop()
            return
        if loop is not None and not self.channels[0].elsewhere and loop is not asyncio.get_running_loop():
            raise ProducerClosed(
                "this producer was used in another event loop, which still runs; close it there"
            )
        await self._steps(self._closing())

    async def submit(
        self,
        context: Any,
        *,
        block: bool = False,
        options: Options | None = None,
        **fields: Unpack[OptionFields],
    ) -> AsyncHandle:
        """Sends one context, as `Producer.submit`."""
        verb = self._submitting([context], options_of(options, fields), block)
        return cast(AsyncHandle, (await self._run(verb))[0])

    async def submit_many(
        self,
        contexts: Sequence[Any],
        *,
        block: bool = False,
        options: Sequence[Options] | Options = DEFAULT_OPTIONS,
    ) -> list[AsyncHandle]:
        """Sends several contexts, as `Producer.submit_many`; all partitions at once."""
        return await self._run(self._submitting(contexts, options, block))

    async def predict(
        self, context: Any, *, timeout_ms: float | None = None, **fields: Unpack[SubmitFields]
    ) -> Reply:
        """Sends one context and waits for its final answer, as `Producer.predict`."""
        return await (await self.submit(context, **fields)).result(timeout_ms)

    async def predict_many(
        self,
        contexts: Iterable[Any] | AsyncIterable[Any],
        *,
        in_flight: int = 1024,
        options: Options = DEFAULT_OPTIONS,
    ) -> AsyncIterator[tuple[int, Reply | QueueError]]:
        """Yields `(index, answer)`, as `Producer.predict_many`; the iterable may be asynchronous.

        Answers are yielded while that one is waited for.
        """
        options = options_of_many(options)
        await self.start()
        stream = pumped_async(
            contexts,
            in_flight,
            self._chunk_max,
            lambda chunk, put: self._steps(self._streaming(options, chunk, put)),
        )
        async with aclosing(stream) as answers:
            async for answer in answers:
                yield answer

    async def submit_batch(
        self,
        contexts: Any,
        *,
        block: bool = False,
        options: Options | None = None,
        **fields: Unpack[OptionFields],
    ) -> AsyncBatchHandle:
        """Sends many contexts as one request, as `Producer.submit_batch`."""
        verb = self._submitting([contexts], options_of(options, fields), block, batched=True)
        return cast(AsyncBatchHandle, (await self._run(verb))[0])

    async def submit_batches(
        self,
        batches: Sequence[Any],
        *,
        block: bool = False,
        options: Sequence[Options] | Options = DEFAULT_OPTIONS,
    ) -> list[AsyncBatchHandle]:
        """Sends several batches in one round trip, as `Producer.submit_batches`."""
        return await self._run(self._submitting(batches, options, block, batched=True))

    async def predict_batch(
        self, contexts: Any, *, timeout_ms: float | None = None, **fields: Unpack[SubmitFields]
    ) -> BatchReply:
        """Sends many contexts as one request and waits for its answer, as `Producer.predict_batch`."""
        return await (await self.submit_batch(contexts, **fields)).result(timeout_ms)

    async def cancel(self, request: AsyncHandle | AsyncBatchHandle | str) -> bool:
        """Takes a request back, as `Producer.cancel`."""
        return await self._run(self._cancelling(request))

    async def report_truth(self, request: AsyncHandle | str, vector: Any) -> bool:
        """Reports the true next vector of an earlier request, as `Producer.report_truth`."""
        return await self._run(self._reporting(request, vector))
