"""Producers of a queue of several partitions: one ordinary producer for each, behind the same verbs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import replace
from typing import Any, Self

from producer.aio import AsyncProducer
from producer.client import Producer
from producer.errors import InvalidRequest, QueueError, QueueFull, ServerError
from producer.messages import BatchReply, Reply
from producer.partitions.spread import Spread, partition_queues
from producer.session.handle import AsyncBatchHandle, AsyncHandle, BatchHandle, Handle
from producer.session.pump import pumped, pumped_async
from producer.session.requests import DEFAULT_OPTIONS, Options, options_of, options_of_many
from producer.session.session import id_of
from producer.settings import ProducerSettings, settings_of


class _Partitioned:
    """What both have."""

    def __init__(self, url: str | None, partitions: int, settings: ProducerSettings | None) -> None:
        self.settings = settings_of(url, settings)
        queues = partition_queues(self.settings.queue, partitions)
        self._each = [replace(self.settings, queue=queue) for queue in queues]
        self._spread = Spread(partitions)

    def _groups(self, count: int, options: Sequence[Options] | Options) -> list[_Group]:
        """The requests of each partition, with their options."""
        each = [options] * count if isinstance(options, Options) else list(options)
        if len(each) != count:
            raise InvalidRequest(f"{count} contexts, but {len(each)} options; send one for each")
        groups = self._spread.groups(each)
        return [(part, indices, [each[i] for i in indices]) for part, indices in groups.items()]

    def _noted(self, part: int, put: Callable[[Any], None]) -> Callable[[Any], None]:
        """`put`, after it is noted where the request went: a truth is reported by the answer's id."""

        def noted(answer: tuple[int, Reply | QueueError]) -> None:
            if isinstance(answer[1], Reply):
                self._spread.streamed(answer[1].id, part)
            put(answer)

        return noted


_Group = tuple[int, list[int], list[Options]]


def _caught(start: Callable[[], None]) -> ServerError | None:
    try:
        start()
    except ServerError as error:
        return error
    return None


async def _caught_async(start: Callable[[], Awaitable[None]]) -> ServerError | None:
    try:
        await start()
    except ServerError as error:
        return error
    return None


def _unless_all(failed: Iterable[ServerError | None]) -> None:
    """Raises the first error when there is no success."""
    errors = list(failed)
    if errors[0] is not None and all(errors):
        raise errors[0]


class PartitionedProducer(_Partitioned):
    """`Producer` for a queue of several partitions: the same verbs, with the same arguments.

    Limits, such as `entries_max` and `in_flight_max`, are each partition's own. A partition whose
    node is away fails its own requests only; none is sent to another one, where it might run twice.
    `predict_many` waits for such a node, as `submit` does with `block`, and the stream with it.

    Example:
        with PartitionedProducer("redis+cluster://a:6379,b:6379", partitions=6) as producer:
            reply = producer.predict(context)

    Attributes:
        settings: What it was told; `queue` is the name without the partition.
        parts: The producers of the partitions, in order.
    """

    def __init__(
        self, url: str | None = None, *, partitions: int, settings: ProducerSettings | None = None
    ) -> None:
        super().__init__(url, partitions, settings)
        self.parts = [Producer(settings=one) for one in self._each]

    @property
    def in_flight(self) -> int:
        """Requests without their final answer."""
        return sum(part.in_flight for part in self.parts)

    @property
    def stray_replies(self) -> int:
        """Final answers that nobody waited for; 0 in a healthy system."""
        return sum(part.stray_replies for part in self.parts)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """As `Producer.start`, for every partition; one that is away is tried again when it is needed.

        Raises:
            ServerError: Of the first one, when none can be used.
        """
        _unless_all(_caught(part.start) for part in self.parts)

    def close(self) -> None:
        """As `Producer.close`."""
        with ExitStack() as undo:
            for part in self.parts:
                undo.callback(part.close)

    def submit(
        self, context: Any, *, block: bool = False, options: Options | None = None, **fields: Any
    ) -> Handle:
        """As `Producer.submit`."""
        return self.submit_many([context], block=block, options=options_of(options, fields))[0]

    def submit_many(
        self,
        contexts: Sequence[Any],
        *,
        block: bool = False,
        options: Sequence[Options] | Options = DEFAULT_OPTIONS,
    ) -> list[Handle]:
        """As `Producer.submit_many`, one partition after another; `accepted` has the whole ones first."""
        found: dict[int, Handle] = {}
        failed: list[QueueError] = []
        for part, indices, chosen in self._groups(len(contexts), options):
            sent = [contexts[i] for i in indices]
            try:
                handles = self.parts[part].submit_many(sent, block=block, options=chosen)
            except QueueError as error:
                failed.append(error)
                self._spread.placed((handle.id for handle in error.accepted), part)
                if not isinstance(error, ServerError | QueueFull):
                    break  # the request is wrong, or this producer is closed: not one partition's matter
                continue
            self._spread.placed((handle.id for handle in handles), part)
            found.update(zip(indices, handles, strict=True))
        if failed:
            partly = [handle for error in failed for handle in error.accepted]
            failed[-1].accepted = [found[i] for i in sorted(found)] + partly
            raise failed[-1]
        return [found[i] for i in range(len(contexts))]

    def predict(self, context: Any, *, timeout_ms: float | None = None, **fields: Any) -> Reply:
        """As `Producer.predict`."""
        return self.submit(context, **fields).result(timeout_ms)

    def predict_many(
        self, contexts: Iterable[Any], *, in_flight: int = 1024, options: Options = DEFAULT_OPTIONS
    ) -> Iterator[tuple[int, Reply | QueueError]]:
        """As `Producer.predict_many`; partitions take turns."""
        options = options_of_many(options)
        self.start()

        def submit_chunk(chunk: list[tuple[int, Any]], put: Callable[[Any], None]) -> None:
            part = self._spread.of(options)
            self.parts[part].submit_chunk(chunk, options, self._noted(part, put))

        return pumped(contexts, in_flight, submit_chunk)

    def submit_batch(
        self, contexts: Any, *, block: bool = False, options: Options | None = None, **fields: Any
    ) -> BatchHandle:
        """As `Producer.submit_batch`; a batch goes to one partition, batches take turns."""
        chosen = options_of(options, fields)
        part = self._spread.of(chosen)
        handle = self.parts[part].submit_batch(contexts, block=block, options=chosen)
        self._spread.placed([handle.id], part)
        return handle

    def predict_batch(self, contexts: Any, *, timeout_ms: float | None = None, **fields: Any) -> BatchReply:
        """As `Producer.predict_batch`."""
        return self.submit_batch(contexts, **fields).result(timeout_ms)

    def cancel(self, request: Handle | BatchHandle | str) -> bool:
        """As `Producer.cancel`."""
        return self.parts[self._spread.where(id_of(request))].cancel(request)

    def report_truth(self, request: Handle | str, vector: Any) -> bool:
        """As `Producer.report_truth`."""
        return self.parts[self._spread.where(id_of(request))].report_truth(request, vector)


class AsyncPartitionedProducer(_Partitioned):
    """`AsyncProducer` for a queue of several partitions; see `PartitionedProducer`."""

    def __init__(
        self, url: str | None = None, *, partitions: int, settings: ProducerSettings | None = None
    ) -> None:
        super().__init__(url, partitions, settings)
        self.parts = [AsyncProducer(settings=one) for one in self._each]

    @property
    def in_flight(self) -> int:
        """Requests without their final answer."""
        return sum(part.in_flight for part in self.parts)

    @property
    def stray_replies(self) -> int:
        """Final answers that nobody waited for; 0 in a healthy system."""
        return sum(part.stray_replies for part in self.parts)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """As `PartitionedProducer.start`."""
        _unless_all(await asyncio.gather(*(_caught_async(part.start) for part in self.parts)))

    async def close(self) -> None:
        """As `Producer.close`."""
        async with AsyncExitStack() as undo:
            for part in self.parts:
                undo.push_async_callback(part.close)

    async def submit(
        self, context: Any, *, block: bool = False, options: Options | None = None, **fields: Any
    ) -> AsyncHandle:
        """As `Producer.submit`."""
        handles = await self.submit_many([context], block=block, options=options_of(options, fields))
        return handles[0]

    async def submit_many(
        self,
        contexts: Sequence[Any],
        *,
        block: bool = False,
        options: Sequence[Options] | Options = DEFAULT_OPTIONS,
    ) -> list[AsyncHandle]:
        """As `Producer.submit_many`, all partitions at once; `accepted` has the whole ones first."""
        groups = self._groups(len(contexts), options)
        calls = [
            self.parts[part].submit_many([contexts[i] for i in indices], block=block, options=chosen)
            for part, indices, chosen in groups
        ]
        found: dict[int, AsyncHandle] = {}
        failed: list[BaseException] = []
        accepted: list[AsyncHandle] = []
        for (part, indices, _), sent in zip(
            groups, await asyncio.gather(*calls, return_exceptions=True), strict=True
        ):
            handles = getattr(sent, "accepted", ()) if isinstance(sent, BaseException) else sent
            self._spread.placed((handle.id for handle in handles), part)
            if isinstance(sent, BaseException):
                failed.append(sent)
                accepted += handles
            else:
                found.update(zip(indices, handles, strict=True))
        if not failed:
            return [found[i] for i in range(len(contexts))]
        if isinstance(failed[0], QueueError):
            failed[0].accepted = [found[i] for i in sorted(found)] + accepted
        raise failed[0]

    async def predict(self, context: Any, *, timeout_ms: float | None = None, **fields: Any) -> Reply:
        """As `Producer.predict`."""
        handle = await self.submit(context, **fields)
        return await handle.result(timeout_ms)

    async def predict_many(
        self,
        contexts: Iterable[Any] | AsyncIterable[Any],
        *,
        in_flight: int = 1024,
        options: Options = DEFAULT_OPTIONS,
    ) -> AsyncIterator[tuple[int, Reply | QueueError]]:
        """As `AsyncProducer.predict_many`; partitions take turns."""
        options = options_of_many(options)
        await self.start()

        async def submit_chunk(chunk: list[tuple[int, Any]], put: Callable[[Any], None]) -> None:
            part = self._spread.of(options)
            await self.parts[part].submit_chunk(chunk, options, self._noted(part, put))

        async with aclosing(pumped_async(contexts, in_flight, submit_chunk)) as answers:
            async for answer in answers:
                yield answer

    async def submit_batch(
        self, contexts: Any, *, block: bool = False, options: Options | None = None, **fields: Any
    ) -> AsyncBatchHandle:
        """As `PartitionedProducer.submit_batch`."""
        chosen = options_of(options, fields)
        part = self._spread.of(chosen)
        handle = await self.parts[part].submit_batch(contexts, block=block, options=chosen)
        self._spread.placed([handle.id], part)
        return handle

    async def predict_batch(
        self, contexts: Any, *, timeout_ms: float | None = None, **fields: Any
    ) -> BatchReply:
        """As `Producer.predict_batch`."""
        handle = await self.submit_batch(contexts, **fields)
        return await handle.result(timeout_ms)

    async def cancel(self, request: AsyncHandle | AsyncBatchHandle | str) -> bool:
        """As `Producer.cancel`."""
        return await self.parts[self._spread.where(id_of(request))].cancel(request)

    async def report_truth(self, request: AsyncHandle | str, vector: Any) -> bool:
        """As `Producer.report_truth`."""
        return await self.parts[self._spread.where(id_of(request))].report_truth(request, vector)
