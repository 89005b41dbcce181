"""The data that the commands of `amn drift` look through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import redis

from ops.drift.settings import JudgeSettings
from ops.settings import producer_settings
from producer.keys import Keys
from producer.transport.connection import connect, driver_errors

if TYPE_CHECKING:  # imported by the commands that need them: `amn --help` is not to wait
    from ops.drift.memory import Memory
    from ops.drift.state import Evaluation
    from ops.findings import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Looking:
    """A client and the judge's memory, for the length of a command."""

    client: redis.Redis
    keys: Keys
    memory: Memory
    settings: JudgeSettings = field(default_factory=JudgeSettings)
    url: str = field(repr=False)

    def evaluate(self) -> Evaluation:
        """Evaluates without writing."""
        from ops.drift.loop import evaluate

        return evaluate(self.client, self.keys, self.memory, self.settings)

    def tell(self, findings: Sequence[Finding], now_ms: int, fence: int) -> None:
        """Hands findings to the alerts, under the judge's fence, and keeps what was seen before them."""
        from ops.alerts import apply
        from ops.commands.drift.sequences import keep

        keep(
            self.client,
            self.keys,
            apply(self.client, self.keys, findings, now_ms=now_ms, fence=fence),
            now_ms,
        )


@contextmanager
def looking(url: str | None, queue: str | None, *, card_strict: bool = False) -> Iterator[Looking]:
    """Connects for the length of a block, in which the driver's errors become ours."""
    from ops.drift.memory import Memory

    settings = producer_settings(url, queue)
    client, keys = connect(settings), Keys(settings.queue)
    with driver_errors(settings.url):
        try:
            yield Looking(
                client=client,
                keys=keys,
                memory=Memory(client, keys),
                settings=JudgeSettings(card_strict=card_strict),
                url=settings.url,
            )
        finally:
            client.close()
