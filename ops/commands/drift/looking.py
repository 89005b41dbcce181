"""The data that the commands of `amn drift` look through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ops.drift.settings import JudgeSettings
from producer.keys import Keys
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors

if TYPE_CHECKING:  # imported by the commands that need them: `amn --help` is not to wait
    from ops.drift.loop import Notify
    from ops.drift.state import Evaluation
    from ops.findings import Finding
    from workers.shadow.exemplars import Exemplar


class Looking:
    """A client and the judge's memory, for the length of a command."""

    def __init__(self, settings: ProducerSettings, judging: JudgeSettings) -> None:
        from ops.drift.memory import Memory

        self.keys = Keys(settings.queue)
        self.client = connect(settings)
        self.memory = Memory(self.client, self.keys)
        self._settings, self._judging = settings, judging
        self._errors = driver_errors(settings.url)

    def __enter__(self) -> Looking:
        self._errors.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.client.close()
        self._errors.__exit__(*error)

    def evaluate(self) -> Evaluation:
        """Evaluates without writing."""
        from ops.drift.loop import evaluate

        return evaluate(self.client, self.keys, self.memory, self._judging)

    def worst(self) -> list[Exemplar]:
        """The exemplars of the last 24 h."""
        from ops.clock import server_now_ms
        from ops.commands.drift.sequences import of_last_day

        return of_last_day(self.client, self.keys, server_now_ms(self.client))

    def alert(self) -> Notify:
        """Hands findings to the alerts, under the judge's fence."""
        from ops.alerts import apply
        from ops.commands.drift.sequences import keep

        def tell(findings: Sequence[Finding], now_ms: int, fence: int) -> None:
            changes = apply(self.client, self.keys, findings, now_ms=now_ms, fence=fence)
            keep(self.client, self.keys, changes, now_ms)

        return tell
