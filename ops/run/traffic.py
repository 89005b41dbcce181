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

from ops.run.record import RunRecord
from ops.sample import Sample
from producer import Handle, Producer

#: Requests due at the same time leave in one round trip, at most this many.
_CHUNK = 64
_NOTHING_S_MAX = 30.0
_PROGRESS_S = 0.5
#: The pause where nothing is due at a known time.
_PAUSE_S = 0.0005


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSettings:
    """The amount and the rate of the traffic.

    Attributes:
        requests: Number of requests.    rate: Requests per second; 0 for as fast as `in_flight_max` allows.
        poisson: True for random (exponential) times between requests instead of equal ones.
        in_flight_max: Requests that may wait for their answer at once.
        run_id: Starts the sequence ids, so that two runs never mix.
        seed: Seed of the times between requests.
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


class TrafficSender:
    """The sender of one run; `record` holds what came back."""

    def __init__(self, producer: Producer, sample: Sample, settings: TrafficSettings) -> None:
        self._producer = producer
        self._sample = sample
        self._settings = settings
        self._waiting: deque[tuple[int, Handle]] = deque()
        self._slow: list[tuple[int, Handle]] = []
        self._due_s = settings.due_s()
        self._started_s = 0.0
        self.record = RunRecord(sample, settings.requests)
        self.sent = 0

    def run(
        self, on_progress: Callable[[], None] = lambda: None, on_half: Callable[[], None] = lambda: None
    ) -> RunRecord:
        """Sends everything and waits until each request has ended, or nothing moves any more.

        Args:
            on_progress: Called about twice a second, in this thread.
            on_half: Called once, when half of the requests are sent.

        Raises:
            ServerError: The server went away while sending.
        """
        record, requests = self.record, self._settings.requests
        self._started_s = moved_at_s = progress_at_s = time.perf_counter()
        while record.ended < requests:
            ended, sent = record.ended, self.sent
            self._send_due()
            if 2 * sent < requests <= 2 * self.sent:
                on_half()
            self._collect()
            now_s = time.perf_counter()
            if record.ended > ended:
                record.elapsed_s = now_s - self._started_s
            if record.ended > ended or self.sent > sent:
                moved_at_s = now_s
            elif now_s - moved_at_s > _NOTHING_S_MAX:
                self._give_up()
            if now_s >= progress_at_s:
                progress_at_s = now_s + _PROGRESS_S
                on_progress()
            self._pause()
        return record

    def _send_due(self) -> None:
        settings = self._settings
        due = int(np.searchsorted(self._due_s, time.perf_counter() - self._started_s, side="right"))
        count = min(due - self.sent, _CHUNK, settings.in_flight_max - self._producer.in_flight)
        if count <= 0:
            return
        numbers = range(self.sent, self.sent + count)
        handles = self._producer.submit_many(
            [self._sample.context(i) for i in numbers],
            options=[self._sample.options(i, settings.run_id) for i in numbers],
            block=True,
        )
        if settings.rate:
            # The lag holds the checks and the encoding of all that leave together; the latency does not.
            begun_s = np.array([handle.started_at_s for handle in handles]) - self._started_s
            self.record.send_lag_ms[numbers.start : numbers.stop] = (begun_s - self._due_s[numbers]) * 1000
        self._waiting.extend(zip(numbers, handles, strict=True))
        self.sent += count

    def _collect(self) -> None:
        """Takes finished requests off the front; escalated ones wait aside, not in the way."""
        waiting = self._waiting
        while waiting and (waiting[0][1].done() or len(waiting) > 2 * _CHUNK):
            self._slow += self._unfinished([waiting.popleft()])
        if (self._slow and not waiting) or len(self._slow) > _CHUNK:
            self._slow = self._unfinished(self._slow)

    def _unfinished(self, requests: list[tuple[int, Handle]]) -> list[tuple[int, Handle]]:
        """Records those that are done, and returns the others."""
        left = []
        for i, handle in requests:
            if handle.done():
                self.record.collect(i, handle)
            else:
                left.append((i, handle))
        return left

    def _pause(self) -> None:
        """Sleeps until the next request is due; without a rate, or at the end, a moment."""
        settings, wait_s = self._settings, _PAUSE_S
        if self.sent < settings.requests:
            if settings.rate:
                wait_s = self._started_s + float(self._due_s[self.sent]) - time.perf_counter()
                if self._producer.in_flight >= settings.in_flight_max:
                    wait_s = max(wait_s, _PAUSE_S)
            elif self._producer.in_flight + _CHUNK <= settings.in_flight_max:
                return
        if wait_s > 0:
            time.sleep(min(wait_s, 0.5))

    def _give_up(self) -> None:
        """Takes what is there, and counts the rest as unanswered."""
        left = len(self._unfinished([*self._waiting, *self._slow]))
        self.record.fail("result_timeout", left + self._settings.requests - self.sent)
