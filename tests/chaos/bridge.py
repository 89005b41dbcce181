"""The asyncio producer behind the verbs of the other one, so that both meet the same faults."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Sequence
from typing import Any

from producer import AsyncProducer
from producer.errors import QueueError
from producer.settings import ProducerSettings


class _Handle:
    def __init__(self, handle: Any, bridge: Bridge) -> None:
        self._handle = handle
        self._bridge = bridge
        self.id: str = handle.id

    @property
    def latency_ms(self) -> float | None:
        return self._handle.latency_ms  # type: ignore[no-any-return]

    @property
    def _final(self) -> Any:
        return self._handle._final

    def done(self) -> bool:
        return bool(self._handle.done())

    def cancel(self) -> bool:
        return bool(self._bridge.wait(self._handle.cancel()))


class Bridge:
    """An AsyncProducer in a thread's event loop."""

    def __init__(self, settings: ProducerSettings) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="chaos-asyncio", daemon=True).start()
        self._producer = self.wait(self._make(settings))
        self.channels = self._producer.channels

    async def _make(self, settings: ProducerSettings) -> AsyncProducer:
        return AsyncProducer(settings=settings)

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    @property
    def stray_replies(self) -> int:
        return int(self._producer.stray_replies)

    def start(self) -> None:
        self.wait(self._producer.start())

    def close(self) -> None:
        if self._producer.channels[0].elsewhere:  # no loop runs in the child of a fork
            with contextlib.suppress(StopIteration):
                self._producer.close().send(None)
            return
        self.wait(self._producer.close())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def submit_many(self, contexts: Sequence[Any], **options: Any) -> list[_Handle]:
        try:
            handles = self.wait(self._producer.submit_many(contexts, **options))
        except QueueError as error:
            error.accepted = [_Handle(handle, self) for handle in error.accepted]
            raise
        return [_Handle(handle, self) for handle in handles]
