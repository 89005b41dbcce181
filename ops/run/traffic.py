"""Sends a sample through the queue at an open-loop rate, and collects what comes back.

Open loop: request i is due at its time, whatever happened to the ones before it, so a slow
system cannot slow its own measurement down. How late requests left is reported beside the latency.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ops.run.tally import RunTally
from ops.sample import Sample
from producer import Handle, Producer

#: Requests due at the same time leave in one round trip, at most this many.
_CHUNK = 64
_NOTHING_S_MAX = 30.0
_PROGRESS_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSettings:
    """The amount and the rate of the traffic.

    Attributes:
        requests: How many.    rate: Per second; 0 for as fast as `in_flight_max` allows.
        poisson: Whether the times between requests are random (exponential) instead of equal.
        in_flight_max: Requests that may wait for their answer at once.
        run_id: Starts the sequence ids, so that two runs never mix.
        seed: Of the times between requests.
    """

    requests: int
    rate: float
    poisson: bool = False
    in_flight_max: int = 1024
    run_id: str = "run"
    seed: int = 0

    def due_s(self) -> NDArray[np.float64]:
        """Shape (N,): when each request is due, seconds after the start; all at once without a rate."""
        if not self.rate:
            return np.zeros(self.requests)
        if not self.poisson:
            return np.arange(self.requests) / self.rate
        return np.cumsum(np.random.default_rng(self.seed).exponential(1 / self.rate, self.requests))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The times of a run.

    Attributes:
        elapsed_s: From the first submit to the last answer.
        send_lag_ms: Shape (N,): how late each request was sent, against its due time.
    """

    elapsed_s: float
    send_lag_ms: NDArray[np.float32]


class TrafficSender:
    """One run."""

    def __init__(self, producer: Producer, sample: Sample, settings: TrafficSettings) -> None:
        self._producer = producer
        self._sample = sample
        self._settings = settings
        self._waiting: deque[tuple[int, Handle]] = deque()
        self._slow: list[tuple[int, Handle]] = []
        self._due_s = settings.due_s()
        self._send_lag_ms = np.zeros(settings.requests, dtype=np.float32)
        self.tally = RunTally(sample, settings.requests)
        self.sent = 0

    def run(self, on_progress: Callable[[TrafficSender], None], on_half: Callable[[], None]) -> Timing:
        """Sends everything and waits until each request has ended, or nothing moves any more.

        Args:
            on_progress: Called about twice a second, in this thread.
            on_half: Called once, when half of the requests are sent.

        Raises:
            ServerError: The server went away while sending.
        """
        settings, started_s = self._settings, time.perf_counter()
        half_is_due, progress_at_s = True, started_s
        moved_at_s = last_answer_s = started_s
        while True:
            ended = self.tally.answered + self.tally.failed
            sent = self._send_due(started_s)
            if half_is_due and 2 * self.sent >= settings.requests:
                half_is_due = False
                on_half()
            self._collect()
            now_s = time.perf_counter()
            if self.tally.answered + self.tally.failed > ended:
                last_answer_s = now_s
                moved_at_s = now_s
            if self.sent == settings.requests and not self._waiting and not self._slow:
                break
            if sent:
                moved_at_s = now_s
            elif now_s - moved_at_s > _NOTHING_S_MAX:
                self._give_up()
                break
            if now_s >= progress_at_s:
                progress_at_s = now_s + _PROGRESS_S
                on_progress(self)
            self._pause(started_s)
        return Timing(elapsed_s=last_answer_s - started_s, send_lag_ms=self._send_lag_ms)

    def _send_due(self, started_s: float) -> int:
        settings = self._settings
        elapsed_s = time.perf_counter() - started_s
        due = int(np.searchsorted(self._due_s, elapsed_s, side="right"))
        count = min(due - self.sent, _CHUNK, settings.in_flight_max - self._producer.in_flight)
        if count <= 0:
            return 0
        numbers = range(self.sent, self.sent + count)
        handles = self._producer.submit_many(
            [self._sample.context(i) for i in numbers],
            options=[self._sample.options(i, settings.run_id) for i in numbers],
            block=True,
        )
        if settings.rate:
            # With the checks and the encoding of all that leave together: the latency does not hold them.
            begun_s = np.array([handle.started_at_s for handle in handles]) - started_s
            self._send_lag_ms[numbers.start : numbers.stop] = (begun_s - self._due_s[numbers]) * 1000
        self._waiting.extend(zip(numbers, handles, strict=True))
        self.sent += count
        return count

    def _collect(self) -> None:
        """Takes finished requests off the front; escalated ones wait aside, not in the way."""
        waiting, slow = self._waiting, self._slow
        while waiting and (waiting[0][1].done() or len(waiting) > 2 * _CHUNK):
            i, handle = waiting.popleft()
            if handle.done():
                self.tally.collect(i, handle)
            else:
                slow.append((i, handle))
        if (slow and not waiting) or len(slow) > _CHUNK:
            left = []
            for i, handle in slow:
                if handle.done():
                    self.tally.collect(i, handle)
                else:
                    left.append((i, handle))
            self._slow = left

    def _pause(self, started_s: float) -> None:
        """Sleeps until the next request is due; without a rate, or at the end, a moment."""
        settings, wait_s = self._settings, 0.0005
        if settings.rate and self.sent < settings.requests:
            wait_s = started_s + float(self._due_s[self.sent]) - time.perf_counter()
            if self._producer.in_flight >= settings.in_flight_max:
                wait_s = max(wait_s, 0.0005)
        elif not settings.rate and self._producer.in_flight + _CHUNK <= settings.in_flight_max:
            wait_s = 0.0 if self.sent < settings.requests else wait_s
        if wait_s > 0:
            time.sleep(min(wait_s, 0.5))

    def _give_up(self) -> None:
        """Takes what is there, and counts the rest as unanswered."""
        for i, handle in [*self._waiting, *self._slow]:
            if handle.done():
                self.tally.collect(i, handle)
            else:
                self.tally.fail("result_timeout")
        for _ in range(self._settings.requests - self.sent):
            self.tally.fail("result_timeout")
