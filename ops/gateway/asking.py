"""Asks the queue, for a client who may hang up meanwhile and may ask again under the same id."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from starlette.types import Receive

from ops.gateway.settings import DEADLINE_MS, KEPT_BYTES_MAX, WATCH_S
from producer import AsyncProducer, Options
from producer.errors import Cancelled, DuplicateRequest, ProducerClosed, QueueError, ResultTimeout
from producer.messages import BatchReply, Reply
from producer.session.handle import GRACE_MS

Answer = Reply | BatchReply
#: A request without its vectors.
_BESIDE_BYTES = 2_048
#: No retry helps against these either, and they say nothing of how a request ended.
_NO_END = (DuplicateRequest, ProducerClosed)


class _Known(NamedTuple):
    mark: int
    until_s: float
    outcome: Answer | QueueError | None


class Repeats:
    """The latest requests under ids of callers, and how they ended: for a while, within some memory."""

    def __init__(self, for_s: float) -> None:
        self._for_s, self._bytes = for_s, 0
        self._known: OrderedDict[str, _Known] = OrderedDict()
        #: What is asked under an id at this moment, and how many ask.
        self._asking: dict[str, tuple[int, int]] = {}

    def begin(self, request_id: str, mark: int) -> Answer | QueueError | None:
        """Notes a request by a hash of what it asks; returns how an earlier one under this id ended.

        Who begins is to `leave`; until then the id is known, however long the answer takes.

        Raises:
            DuplicateRequest: The earlier one asked something else.
        """
        self._drop_old()
        known = self._known.get(request_id)
        asked, count = self._asking.get(request_id, (mark if known is None else known.mark, 0))
        if asked != mark:
            said = f"request_id {request_id!r} was used for other contexts or parameters; send another one"
            raise DuplicateRequest(said)
        self._asking[request_id] = mark, count + 1
        return None if known is None else known.outcome

    def leave(self, request_id: str) -> None:
        """Ends what began."""
        mark, count = self._asking.pop(request_id)
        if count > 1:
            self._asking[request_id] = mark, count - 1

    def end(self, request_id: str, mark: int, outcome: Answer | QueueError | None) -> None:
        """Keeps how a request ended, in place of the oldest ones where there are too many.

        Args:
            outcome: None where that says nothing to a repeat; it is to ask the same, nevertheless.
        """
        if outcome is None and (known := self._known.get(request_id)):
            outcome = known.outcome
        self._forget(request_id)
        self._known[request_id] = _Known(mark, time.monotonic() + self._for_s, outcome)
        self._bytes += _bytes_of(outcome)
        self._drop_old()

    def free(self, request_id: str) -> None:
        """Leaves an id, whose request was taken back, to whatever comes, unless somebody had its end."""
        if (known := self._known.get(request_id)) and known.outcome is None:
            self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        if known := self._known.pop(request_id, None):
            self._bytes -= _bytes_of(known.outcome)

    def _drop_old(self) -> None:
        while self._known:
            name, known = next(iter(self._known.items()))
            if known.until_s > time.monotonic() and self._bytes <= KEPT_BYTES_MAX:
                return
            self._forget(name)


def _bytes_of(outcome: Answer | QueueError | None) -> int:
    if isinstance(outcome, Reply):
        return outcome.vector.nbytes + _BESIDE_BYTES
    return _BESIDE_BYTES + (outcome.vectors.nbytes if isinstance(outcome, BatchReply) else 0)


class _Watch:
    """Watches, after a while, whether a client hangs up.

    Args:
        leave: Does it; is given this watch.
    """

    def __init__(self, leave: Callable[[_Watch], Coroutine[Any, Any, None]]) -> None:
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(WATCH_S, self._begin, leave)

    def _begin(self, leave: Callable[[_Watch], Coroutine[Any, Any, None]]) -> None:
        self._task = asyncio.create_task(leave(self))

    def cancel(self) -> None:
        """Ends it."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()


class Asker:
    """Sends requests by the one producer of this process.

    Attributes:
        hangups: Requests whose clients went before the answer.
    """

    def __init__(self, producer: AsyncProducer) -> None:
        self.producer, self.hangups = producer, 0
        self._repeats = Repeats(producer.settings.seen_window_ms / 1000)
        #: Who waits for each request; several may, for one id.
        self._waiting: dict[str, set[object]] = {}

    async def ask(self, contexts: NDArray[np.floating], options: Options, receive: Receive) -> Answer:
        """Returns the answer; (5, 768) and (1, 5, 768) are lone requests, which a fallback may better.

        Args:
            receive: Of the request, whose body was read: tells when the client goes. The request is taken
                back then, unless a worker has it or somebody else waits for it too.

        Raises:
            QueueError: Whatever became of it; Cancelled when the client went.
        """
        lone = len(contexts) == 1 or contexts.ndim == 2
        contexts = contexts.reshape(contexts.shape[-2:]) if lone else contexts
        if not (name := options.request_id):
            return await self._answer(contexts, options, receive)
        what = replace(options, deadline_ms=None, traceparent="")
        mark = hash((contexts.shape, contexts.tobytes(), what))
        outcome = self._repeats.begin(name, mark)
        try:
            if outcome is None:
                outcome = await self._answer(contexts, options, receive)
                self._repeats.end(name, mark, outcome)
        except Cancelled:
            self._repeats.free(name)
            raise
        except QueueError as error:
            told = error.retryable or isinstance(error, _NO_END)
            self._repeats.end(name, mark, None if told else error)
            raise
        finally:
            self._repeats.leave(name)
        if isinstance(outcome, QueueError):
            raise outcome.with_traceback(None)
        return outcome

    async def _answer(self, contexts: NDArray[np.floating], options: Options, receive: Receive) -> Answer:
        """Sends a context or a batch, and waits for its answer."""
        submit: Any = self.producer.submit if contexts.ndim == 2 else self.producer.submit_batch
        while True:
            handle = await submit(contexts, options=options)
            leaving = _Watch(partial(self._leave, handle, receive))
            self._waiting.setdefault(handle.id, set()).add(leaving)
            try:
                # A handle that a repeat shares has the deadline of the first one.
                answer: Answer = await handle.result((options.deadline_ms or DEADLINE_MS) + GRACE_MS)
                return answer
            except Cancelled:
                if leaving not in self._waiting.get(handle.id, ()):
                    raise
                continue  # the client that had asked first went, and took back what this one waits for
            except ResultTimeout:
                await self._take_back(handle, leaving)
                raise
            finally:
                self._forget(handle.id, leaving)
                leaving.cancel()

    async def _leave(self, handle: Any, receive: Receive, who: _Watch) -> None:
        """Takes the request back when its client, and every other one, has gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.hangups += 1
        await self._take_back(handle, who)

    async def _take_back(self, handle: Any, who: object) -> None:
        """Takes the request back, unless others wait for it too."""
        if self._forget(handle.id, who):
            with suppress(QueueError):
                await handle.cancel()

    def _forget(self, request_id: str, who: object) -> bool:
        """Removes one who waits; true when it was the last one."""
        others = self._waiting.get(request_id, set())
        if who not in others:
            return False
        others.discard(who)
        if not others:
            del self._waiting[request_id]
        return not others
