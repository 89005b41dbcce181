"""The pace of a worker: its rate and its busy share over the last half minute."""

from __future__ import annotations

from collections import deque

#: The rate follows a change within this; the busy share, which is counted from few samples, is steadier.
_RATE_S, _BUSY_S = 10.0, 30.0


class Pace:
    """Samples of a loop, taken by a side thread now and then: the hot path counts nothing for them."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float, int]] = deque()
        self._busy: deque[tuple[float, bool]] = deque()

    def note(self, now_s: float, finished: int, busy: bool) -> None:
        """Adds a sample.

        Args:
            now_s: Monotonic clock.
            finished: Entries ended since the start.
            busy: Whether the loop computes or ends entries at this moment.
        """
        self._ended.append((now_s, finished))
        self._busy.append((now_s, busy))
        # One sample older than the window stays: it is the window's beginning.
        while len(self._ended) > 2 and self._ended[1][0] <= now_s - _RATE_S:
            self._ended.popleft()
        while self._busy[0][0] <= now_s - _BUSY_S:
            self._busy.popleft()

    @property
    def ended_per_s(self) -> float:
        """Entries ended a second; 0 when none was within the last ten seconds.

        Time before the first of them does not count: an idle worker that gets work is as fast as it is.
        """
        if not self._ended:
            return 0.0
        (end_s, finished), first = self._ended[-1], self._ended[0]
        for sample in self._ended:
            if sample[1] != first[1]:
                break
            first = sample
        return (finished - first[1]) / (end_s - first[0]) if end_s > first[0] else 0.0

    @property
    def busy_ratio(self) -> float:
        """Share of the samples at which it worked, 0 to 1."""
        return sum(busy for _, busy in self._busy) / max(len(self._busy), 1)
