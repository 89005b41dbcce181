"""The data that the commands of `amn drift` look through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import redis

from ops.commands import options
from ops.drift.settings import JudgeSettings
from producer.keys import Keys
from producer.settings import ProducerSettings

if TYPE_CHECKING:  # imported by the commands that need them: `amn --help` is not to wait
    from ops.drift.memory import Memory
    from ops.drift.state import Evaluation
    from ops.findings import Finding


class Looking(NamedTuple):
    """A client and the judge's memory, for the length of a command."""

    client: redis.Redis
    keys: Keys
    memory: Memory
    settings: JudgeSettings

    def evaluate(self) -> Evaluation:
        """Evaluates without writing."""
        from ops.drift.loop import evaluate

        return evaluate(self.client, self.keys, self.memory, self.settings)

    def tell(self, findings: Sequence[Finding], now_ms: int, fence: int) -> None:
        """Hands findings to the alerts, under the judge's fence, and keeps what was seen before them."""
        from ops.alerts import apply
        from ops.commands.drift.sequences import keep

        changes = apply(self.client, self.keys, findings, now_ms=now_ms, fence=fence)
        keep(self.client, self.keys, changes, now_ms)


@contextmanager
def looking(settings: ProducerSettings, *, card_strict: bool = False) -> Iterator[Looking]:
    """Connects for the length of a block, in which the driver's errors become ours."""
    from ops.drift.memory import Memory

    with options.client(settings) as client:
        keys, judging = Keys(settings.queue), JudgeSettings(card_strict=card_strict)
        yield Looking(client, keys, Memory(client, keys), judging)
