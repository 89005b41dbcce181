"""Entries over which a worker died, perhaps: begun in small groups, and after a pause when alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import structlog

from workers.engine.entry import Entry, Outcome
from workers.engine.microbatch import MicroBatch, portion
from workers.engine.outcomes import dead_with_answer

_LOG = structlog.get_logger("amn.worker")
#: For each time that an entry was begun alone. A worker loads in some seconds: with two of them, one is
#: there for the others' requests; with one, what came meanwhile is answered before it may die again.
PAUSE_S = 5.0
#: So many deliveries had an entry that was begun with others, in a small group, and is alone from now on.
_ALONE = 3


def suspects(entries: Sequence[Entry], batch_max: int) -> Iterator[Sequence[Entry]]:
    """Entries that were delivered before, in the groups and the order in which they are begun.

    One of them may have ended its worker's process, with all that was in hand. So those that were
    begun at most once come first, an eighth of a micro-batch at a time; the others alone, and the one
    that was begun most often last.
    """
    left = sorted(entries, key=lambda entry: entry.deliveries)  # keeps the order among equals
    once = sum(entry.deliveries == 2 for entry in left)
    while left:
        most = max(1, batch_max // 8)
        count = min(most, portion(left[:once])) if once > 0 else 1
        yield left[:count]
        left, once = left[count:], once - count


class HeldBack:
    """The entries that one worker holds back; their leases are renewed meanwhile.

    Args:
        entries_max: More than this are begun at once all the same.
        deliveries_max: One beyond this is not begun any more, and so waits for nothing.

    Attributes:
        waiting: Each with the time at which it is due, the first one first.
    """

    def __init__(self, entries_max: int, deliveries_max: int) -> None:
        self._entries_max, self._deliveries_max = entries_max, deliveries_max
        self.waiting: tuple[tuple[float, Entry], ...] = ()
        self._due_s: dict[tuple[int, bytes, int], float] = {}

    @property
    def entries(self) -> list[Entry]:
        """All of them. Read by another thread."""
        return [entry for _, entry in self.waiting]

    def sift(self, entries: Sequence[Entry], now_s: float) -> list[Entry]:
        """Keeps those that are to wait, and returns the others.

        One that came before and went back, because the connection broke, does not begin to wait anew.
        """
        at_once = []
        if len(self._due_s) > 10 * self._entries_max:
            self._due_s.clear()  # other workers ended most of them
        for entry in entries:
            times = entry.deliveries - _ALONE
            if 0 < times <= self._deliveries_max - _ALONE and len(self.waiting) < self._entries_max:
                name = entry.place, entry.id, entry.deliveries
                waiting = (*self.waiting, (self._due_s.setdefault(name, now_s + times * PAUSE_S), entry))
                # By the time alone: entries of two levels may have one id, and their fields have no order.
                self.waiting = tuple(sorted(waiting, key=lambda one: one[0]))
            else:
                at_once.append(entry)
        return at_once

    def is_due(self, now_s: float) -> bool:
        """True when the first has waited long enough."""
        return bool(self.waiting) and now_s >= self.waiting[0][0]

    def take(self) -> list[Entry]:
        """Takes out the first."""
        (_, entry), *_ = self.waiting
        self.waiting = self.waiting[1:]
        return [entry]

    def clear(self) -> None:
        """They went back to the queue."""
        self.waiting = ()


def bisected(
    handle: Callable[[MicroBatch], list[Outcome]], batch: MicroBatch, error: Exception
) -> list[Outcome]:
    """Halves a batch that raised until the culprit is alone: it becomes a dead letter, and an escalated
    one has its AMN answer."""
    if (count := len(batch)) == 1:
        request = batch.requests[0]
        trace = {"traceparent": request.traceparent} if request.traceparent else {}
        _LOG.error("request_breaks_batch", request=request.id, **trace, exc_info=error)
        return [dead_with_answer(batch.entries[0], request, "batch_breaking", repr(error))]
    outcomes = []
    for part in (batch.part(0, count // 2), batch.part(count // 2, count)):
        try:
            outcomes += handle(part)
        except Exception as again:
            outcomes += bisected(handle, part, again)
    return outcomes
