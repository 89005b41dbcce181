"""A producer without a server, for the unit tests of code that uses one.

    def test_my_service():
        with FakeProducer(lambda request: request.context[-1]) as producer:
            assert my_service(producer, context) == ...
        assert producer.requests[0].lane == "narrative"

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

from producer import wire
from producer.checks import checked_vector
from producer.errors import QueueError
from producer.handle import AsyncHandle, BaseHandle, Handle
from producer.inflight import Pending
from producer.messages import Reply, Request
from producer.requests import DEFAULT_OPTIONS, Options, prepare
from producer.session import each_of, id_of
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
    """

    def __init__(self, answer: Answer = last_vector, *, settings: ProducerSettings | None = None) -> None:
        self.settings = settings or ProducerSettings()
        self.requests: list[Request] = []
        self.truths: dict[str, NDArray[np.float32]] = {}
        self._answer = answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(
        self, context: Any, *, block: bool = False, options: Options | None = None, **fields: Any
    ) -> Handle:
        """As `Producer.submit`; the answer is there at once."""
        outgoing = prepare(context, options or Options(**fields), "fake", self.settings)
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
        return [self.submit(context, options=option) for context, option in zip(contexts, each, strict=True)]

    def predict(self, context: Any, *, timeout_ms: float | None = None, **fields: Any) -> Reply:
        """As `Producer.predict`."""
        return self.submit(context, **fields).result()

    def predict_many(
        self, contexts: Iterable[Any], *, in_flight: int = 1024, options: Options = DEFAULT_OPTIONS
    ) -> Iterator[tuple[int, Reply | QueueError]]:
        """As `Producer.predict_many`, in order."""
        for index, context in enumerate(contexts):
            try:
                yield index, self.predict(context, options=options)
            except QueueError as error:
                yield index, error

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
    """

    def __init__(self, answer: Answer = last_vector, *, settings: ProducerSettings | None = None) -> None:
        self.fake = FakeProducer(answer, settings=settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

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
