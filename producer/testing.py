"""A producer without a server, for the unit tests of code that uses one.

    def test_my_service():
        with FakeProducer(lambda request: request.context[-1]) as producer:
            assert my_service(producer, context) == ...
        assert producer.requests[0].lane == "narrative"

It is the real producer over a queue in memory: it checks contexts and options, sends nothing, and has each
answer at once. For asyncio code, `AsyncFakeProducer` has the same verbs to be awaited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from producer.aio import AsyncProducer
from producer.client import Producer
from producer.core import Core
from producer.errors import QueueError
from producer.messages import BatchReply, Reply, Request
from producer.protocol import wire
from producer.protocol.checks import checked_vector
from producer.session.channel import Channel
from producer.session.requests import Outgoing
from producer.settings import ProducerSettings
from producer.transport.verbs import T, Verb, run, together

#: Makes the answer to a request: a vector (768,), a whole reply, or an error to be raised by the handle.
Answerer = Callable[[Request], "Reply | QueueError | NDArray[Any]"]


def last_vector(request: Request) -> NDArray[Any]:
    """The default answer: the newest vector of the context."""
    return np.asarray(request.context[-1])


class MemoryChannel(Channel):
    """The queue of a fake: it answers each request in the moment that it is sent."""

    def __init__(self, settings: ProducerSettings, answer: Answerer) -> None:
        super().__init__(settings)
        self.client_id, self.started, self._answer = "fake", True, answer
        self.requests: list[Request] = []
        self.truths: dict[str, NDArray[np.float32]] = {}

    def closing(self) -> Verb[None]:
        """Does nothing: a fake is always open."""
        yield from ()

    def send(self, requests: Sequence[Outgoing]) -> list[int]:
        """Answers the requests; a batch gets each context's answer as a request of its own would."""
        for item in requests:
            request = wire.decode_request(item.payload, batches=item.batched)
            self.requests.append(request)
            answered = self._batch(request) if item.batched else self._outcome(request)
            self.inflight.settle(item.id, answered)
        return [1] * len(requests)

    def cancelling(self, request_id: str) -> Verb[bool]:
        """Is too late, always: the answer is there at once."""
        yield from ()
        return False

    def reporting(self, request_id: str, key: str, vector: Any) -> Verb[bool]:
        """Keeps the vector in `truths`."""
        yield from ()
        self.truths[request_id] = checked_vector(vector)
        return True

    def _outcome(self, request: Request) -> Reply | QueueError:
        answer = self._answer(request)
        if isinstance(answer, QueueError):
            return answer
        if isinstance(answer, Reply):
            return replace(answer, id=request.id)
        return Reply(id=request.id, vector=checked_vector(answer), confidence=1.0, margin=1.0)

    def _batch(self, request: Request) -> BatchReply | QueueError:
        replies = []
        for context in request.context:
            outcome = self._outcome(replace(request, context=context))
            if isinstance(outcome, QueueError):
                return outcome
            replies.append(outcome)
        return _joined(request.id, replies)


class _Fake(Core[Any, Any]):
    """A producer over a queue in memory, whose streams yield in order.

    Attributes:
        requests: Every request, in order.
        truths: Reported true vectors by request id, whether or not the request would be sampled.
    """

    _chunk_max = 1

    def __init__(self, answer: Answerer = last_vector, *, settings: ProducerSettings | None = None) -> None:
        self._channel = partial(MemoryChannel, answer=answer)
        super().__init__(settings=settings or ProducerSettings())
        memory: Any = self.channels[0]
        self.requests: list[Request] = memory.requests
        self.truths: dict[str, NDArray[np.float32]] = memory.truths


class FakeProducer(_Fake, Producer):
    """Stands in for `Producer`."""


async def _run_at_once(verb: Verb[T]) -> T:
    return run(verb)


class AsyncFakeProducer(_Fake, AsyncProducer):
    """Stands in for `AsyncProducer`."""

    _steps, _together = staticmethod(_run_at_once), staticmethod(together)


def _joined(request_id: str, replies: Sequence[Reply]) -> BatchReply:
    """The replies of the rows as the answer to their batch, without what a fallback would add."""
    rules = tuple(dict.fromkeys(rule for reply in replies for rule in reply.reasons))
    sheds = tuple(dict.fromkeys(reply.shed for reply in replies if reply.shed))
    bits = [sum(1 << rules.index(rule) for rule in reply.reasons) for reply in replies]
    codes = [1 + sheds.index(reply.shed) if reply.shed else 0 for reply in replies]
    first = replies[0]
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
        served_by=first.served_by,
        model=first.model,
        bank=first.bank,
        policy=first.policy,
    )
