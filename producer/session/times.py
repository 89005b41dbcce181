"""The client's own part of the times of the stages, for a producer that asks for it."""

from __future__ import annotations

from producer.errors import QueueError
from producer.messages import PRIORITIES, Answer
from producer.session.handle import BaseHandle
from producer.stages import CLIENT, END_TO_END, REPLY, StageCounts, StageLabels, add, appended_at_ms
from producer.transport.clock import ServerClock


class AnswerTimes:
    """Counts the whole way of each request, and of it the way of its final answer from the server to here."""

    def __init__(self, clock: ServerClock) -> None:
        self.counts = StageCounts()
        self._clock = clock

    def note(self, entry_id: bytes, handle: BaseHandle, outcome: Answer | QueueError) -> None:
        """Notes that the final answer in this entry of the reply stream is here for its handle."""
        now_ms = self._clock.now_ms()
        level, ended = (
            PRIORITIES[handle.level - 1],
            "failed" if isinstance(outcome, QueueError) else "answered",
        )
        for stage, from_ms in ((REPLY, appended_at_ms(entry_id)), (END_TO_END, handle.submitted_at_ms)):
            add(self.counts.row(StageLabels(stage, CLIENT, level, ended)), (now_ms - from_ms) * 1000)
