"""Asks the queue, for a client who may hang up meanwhile and may ask again under the same id."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.types import Receive

from ops.gateway.settings import KEPT_BYTES_MAX
from producer import AsyncProducer, Options
from producer.errors import Cancelled, QueueError
from producer.messages import BatchReply, Reply

Answer = Reply | BatchReply
#: An answer without its vectors.
_BESIDE_BYTES = 2_048


class RecentAnswers:
    """The latest answers by request id, for a while and within some memory."""

    def __init__(self, for_s: float) -> None:
        self._for_s, self._bytes = for_s, 0
        self._kept: OrderedDict[str, tuple[float, Answer]] = OrderedDict()

    def get(self, request_id: str) -> Answer | None:
        """The answer, or None."""
        self._drop_old()
        return self._kept[request_id][1] if request_id in self._kept else None

    def put(self, answer: Answer) -> None:
        """Keeps it, in place of the oldest ones where there are too many."""
        if answer.id not in self._kept:
            self._kept[answer.id] = time.monotonic() + self._for_s, answer
            self._bytes += _bytes_of(answer)
        self._drop_old()

    def _drop_old(self) -> None:
        while self._kept:
            name, (until_s, answer) = next(iter(self._kept.items()))
            if until_s > time.monotonic() and self._bytes <= KEPT_BYTES_MAX:
                return
            del self._kept[name]
            self._bytes -= _bytes_of(answer)


def _bytes_of(answer: Answer) -> int:
    vectors = answer.vector if isinstance(answer, Reply) else answer.vectors
    return vectors.nbytes + _BESIDE_BYTES


class Asker:
    """Sends requests by the one producer of this process.

    Attributes:
        hangups: Requests whose clients went before the answer.
    """

    def __init__(self, producer: AsyncProducer) -> None:
        self.producer, self.hangups = producer, 0
        self._kept = RecentAnswers(producer.settings.seen_window_ms / 1000)
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
        submit: Any = self.producer.submit if lone else self.producer.submit_batch
        contexts = contexts.reshape(contexts.shape[-2:]) if lone else contexts
        while True:
            if options.request_id and (kept := self._kept.get(options.request_id)) is not None:
                return kept
            handle = await submit(contexts, options=options)
            leaving = asyncio.create_task(self._leave(handle, receive))
            self._waiting.setdefault(handle.id, set()).add(leaving)
            try:
                answer: Answer = await handle.result()
            except Cancelled:
                if leaving not in self._waiting.get(handle.id, ()):
                    raise
                continue  # another client had asked first and went; this one asks anew
            finally:
                self._forget(handle.id, leaving)
                leaving.cancel()
            if options.request_id:
                self._kept.put(answer)
            return answer

    async def _leave(self, handle: Any, receive: Receive) -> None:
        """Takes the request back when its client, and every other one, has gone."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.hangups += 1
        if self._forget(handle.id, asyncio.current_task()):
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
