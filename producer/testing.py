"""A producer without a server, for the unit tests of code that uses one.

    def test_my_service():
        with FakeProducer(lambda request: request.context[-1]) as producer:
            assert my_service(producer, context) == ...
        assert producer.session.requests[0].lane == "narrative"

It checks contexts and options as the real one does, sends nothing, and answers at once. For asyncio
code, `AsyncFakeProducer` has the same verbs to be awaited.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from producer.errors import InvalidRequest, QueueError
from producer.messages import BatchReply, Reply, Request
from producer.protocol import wire
from producer.protocol.checks import checked_vector
from producer.session.handle import AsyncBatchHandle, AsyncHandle, BaseHandle, BatchHandle, Handle
from producer.session.pending import Pending
from producer.session.pump import chunk_size
from producer.session.requests import (
    DEFAULT_OPTIONS,
    Options,
    Outgoing,
    options_of,
    options_of_many,
    prepare,
    prepare_batch,
)
from producer.session.session import each_of, id_of
from producer.settings import ProducerSettings

#: Gives the answer to a request: a vector (768,), a whole reply, or an error to be raised by the handle.
Answer = Callable[[Request], "Reply | QueueError | NDArray[Any]"]


def last_vector(request: Request) -> NDArray[Any]:
    """The default answer: the newest vector of the context."""
    return np.asarray(request.context[-1])


class FakeProducer:
    """Stands in for `Producer`.

    Attributes:
        requests: Every request, in order.
        truths: Reported true vectors by request id.
        client_id, in_flight, stray_replies: As of a `Producer` that has all its answers.
    """

    client_id, in_flight, stray_replies = "fake", 0, 0

    def __init__(self, answer: Answer = last_vector, *, settings: ProducerSettings | None = None) -> None:
        self.settings = settings or ProducerSettings()
        self.requests: list[Request] = []
        self.truths: dict[str, NDArray[np.float32]] = {}
        self._answer = answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Nothing to be done."""

    def close(self) -> None:
        """Nothing to be done."""

    def submit(
        self, context: Any, *, block: bool = False, options: Options | None = None, **fields: Any
    ) -> Handle:
        """As `Producer.submit`; the answer is there at once."""
        return self._answered(prepare(context, options_of(options, fields), self.client_id, self.settings))

    def _answered(self, outgoing: Outgoing) -> Handle:
        request = wire.decode_request(outgoing.payload)
        self.requests.append(request)
        pending = Pending(outgoing, Future)
        pending.settle(_outcome(request, self._answer(request)))
        return Handle(pending, 0, self.cancel)

    def submit_many(
        self,
        contexts: Sequence[Any],
        *,
        block: bool = False,
        options: Sequence[Options] | Options = DEFAULT_OPTIONS,
    ) -> list[Handle]:
        """As `Producer.submit_many`."""
        each = [options] * len(contexts) if isinstance(options, Options) else options
        if len(each) != len(contexts):
            raise InvalidRequest(f"{len(contexts)} contexts, but {len(each)} options; send one for each")
        pairs = zip(contexts, each, strict=True)
        outgoing = [prepare(context, option, self.client_id, self.settings) for context, option in pairs]
        return [self._answered(item) for item in outgoing]

    def predict(self, context: Any, *, timeout_ms: float | None = None, **fields: Any) -> Reply:
        """As `Producer.predict`."""
        return self.submit(context, **fields).result()

    def predict_many(
        self, contexts: Iterable[Any], *, in_flight: int = 1024, options: Options = DEFAULT_OPTIONS
    ) -> Iterator[tuple[int, Reply | QueueError]]:
        """As `Producer.predict_many`, in order."""
        chunk_size(in_flight)  # these two refuse what the real one refuses
        options = options_of_many(options)
        for index, context in enumerate(contexts):
            try:
                yield index, self.predict(context, options=options)
            except QueueError as error:
                yield index, error

    def submit_batch(
        self, contexts: Any, *, block: bool = False, options: Options | None = None, **fields: Any
    ) -> BatchHandle:
        """As `Producer.submit_batch`; each context is answered as a request of its own would be."""
        outgoing = prepare_batch(contexts, options_of(options, fields), self.client_id, self.settings)
        request = wire.decode_request(outgoing.payload, batches=True)
        self.requests.append(request)
        pending = Pending(outgoing, Future)
        pending.settle(self._batch(request))
        return BatchHandle(pending, 0, self.cancel)

    def predict_batch(self, contexts: Any, *, timeout_ms: float | None = None, **fields: Any) -> BatchReply:
        """As `Producer.predict_batch`."""
        return self.submit_batch(contexts, **fields).result()

    def _batch(self, request: Request) -> BatchReply | QueueError:
        replies = []
        for context in request.context:
            outcome = _outcome(request, self._answer(replace(request, context=context)))
            if isinstance(outcome, QueueError):
                return outcome
            replies.append(outcome)
        return _joined(request.id, replies)

    def cancel(self, request: BaseHandle | str) -> bool:
        """Too late, always: the answer is there at once."""
        return False

    def report_truth(self, request: BaseHandle | str, vector: Any) -> bool:
        """Keeps the vector in `truths`, whether or not the request would be sampled."""
        self.truths[id_of(request)] = checked_vector(vector)
        return True


class AsyncFakeProducer:
    """Stands in for `AsyncProducer`; arguments as there.

    Attributes:
        fake: The synchronous one behind it, with `requests` and `truths`.
        client_id, in_flight, stray_replies: As of an `AsyncProducer` that has all its answers.
    """

    client_id, in_flight, stray_replies = FakeProducer.client_id, 0, 0

    def __init__(self, answer: Answer = last_vector, *, settings: ProducerSettings | None = None) -> None:
        self.fake = FakeProducer(answer, settings=settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def settings(self) -> ProducerSettings:
        """What it was told."""
        return self.fake.settings

    async def start(self) -> None:
        """Nothing to be done."""

    async def close(self) -> None:
        """Nothing to be done."""

    async def submit(self, context: Any, **how: Any) -> AsyncHandle:
        """As `AsyncProducer.submit`; the answer is there at once."""
        return AsyncHandle(self.fake.submit(context, **how)._pending, 0, self.cancel)

    async def submit_many(self, contexts: Sequence[Any], **how: Any) -> list[AsyncHandle]:
        """As `AsyncProducer.submit_many`."""
        handles = self.fake.submit_many(contexts, **how)
        return [AsyncHandle(handle._pending, 0, self.cancel) for handle in handles]

    async def predict(self, context: Any, **how: Any) -> Reply:
        """As `AsyncProducer.predict`."""
        return self.fake.predict(context, **how)

    async def predict_many(
        self, contexts: Iterable[Any] | AsyncIterable[Any], **how: Any
    ) -> AsyncIterator[tuple[int, Reply | QueueError]]:
        """As `AsyncProducer.predict_many`, in order."""
        index = 0
        async for context in each_of(contexts):
            for _, answer in self.fake.predict_many([context], **how):
                yield index, answer
            index += 1

    async def submit_batch(self, contexts: Any, **how: Any) -> AsyncBatchHandle:
        """As `AsyncProducer.submit_batch`."""
        return AsyncBatchHandle(self.fake.submit_batch(contexts, **how)._pending, 0, self.cancel)

    async def predict_batch(self, contexts: Any, **how: Any) -> BatchReply:
        """As `AsyncProducer.predict_batch`."""
        return self.fake.predict_batch(contexts, **how)

    async def cancel(self, request: BaseHandle | str) -> bool:
        """Too late, always: the answer is there at once."""
        return False

    async def report_truth(self, request: BaseHandle | str, vector: Any) -> bool:
        """As `FakeProducer.report_truth`."""
        return self.fake.report_truth(request, vector)


def _outcome(request: Request, answer: Reply | QueueError | NDArray[Any]) -> Reply | QueueError:
    if isinstance(answer, QueueError):
        return answer
    if isinstance(answer, Reply):
        return replace(answer, id=request.id)
    return Reply(id=request.id, vector=checked_vector(answer), confidence=1.0, margin=1.0)


def _joined(request_id: str, replies: Sequence[Reply]) -> BatchReply:
    """What the rows' replies say, as the answer to their batch; nothing of a fallback's."""
    rules = tuple(dict.fromkeys(rule for reply in replies for rule in reply.reasons))
    sheds = tuple(dict.fromkeys(reply.shed for reply in replies if reply.shed))
    bits = [sum(1 << rules.index(rule) for rule in reply.reasons) for reply in replies]
    codes = [1 + sheds.index(reply.shed) if reply.shed else 0 for reply in replies]
    return BatchReply(
        id=request_id,
        vectors=np.stack([reply.vector for reply in replies]),
        confidences=np.array([reply.confidence for reply in replies], np.float32),
        margins=np.array([reply.margin for reply in replies], np.float32),
        gains=np.array([reply.gain for reply in replies], np.float32),
        rules=rules,
        fired=np.array(bits, np.uint8),
        sheds=sheds,
        shed=np.array(codes, np.uint8),
        served_by=replies[0].served_by,
        model=replies[0].model,
        bank=replies[0].bank,
        policy=replies[0].policy,
    )
