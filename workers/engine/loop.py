"""The engine of every worker: lease -> assemble -> handle -> finish."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import structlog

from producer.errors import ServerError
from producer.transport.steps import Steps
from workers.engine.entry import Entry, Outcome
from workers.engine.microbatch import MicroBatch, assemble, portion
from workers.engine.outcomes import served_fast
from workers.engine.queue import LeasedQueue
from workers.engine.stages import StageTimes
from workers.engine.suspects import HeldBack, bisected, suspects
from workers.engine.traces import WorkerTraces
from workers.errors import refused
from workers.settings import WorkerSettings

_LOG = structlog.get_logger("amn.worker")
#: An answer that says no may be of a moment too; so often it is asked for again, for some seconds.
_REFUSALS_MAX = 6
_PAUSE_S, _PAUSE_S_MAX = 0.05, 2.0

#: Turns entries into a micro-batch: entries, settings, epoch ms and monotonic seconds of the read.
Assemble = Callable[[Sequence[Entry], WorkerSettings, float, float], MicroBatch]


class Handler(Protocol):
    """The part of a worker kind that computes the outcomes."""

    def handle(self, batch: MicroBatch) -> list[Outcome]:
        """One outcome per request, in order. May raise: the loop then bisects."""
        ...


class Loop:
    """Runs one handler on one queue until it is told to stop.

    Attributes:
        finished: Entries ended since the start; for health checks.
        given_up: Entries that the server would not let us end.
        progress: Moves with every step: a read, a micro-batch, a part of one, a try to end one. A
            server that is away is asked again and again, so that waiting for it is progress.
        suspecting: Whether it computes entries that may have ended a worker's process before.
        thread_id: Of the system; 0 before `run`.
        stages: The times of the stages; None where nobody counts them.
        traces: The spans of sampled requests; None where nobody takes them. They need `stages`.
    """

    def __init__(
        self,
        queue: LeasedQueue,
        handler: Handler,
        assemble: Assemble = assemble,
        stages: StageTimes | None = None,
        traces: WorkerTraces | None = None,
    ) -> None:
        self.queue, self.stages, self.traces = queue, stages, traces
        self.finished = self.given_up = self.progress = self.thread_id = 0
        self.suspecting = False
        self._hand: Sequence[Entry] = ()
        self._ending: Sequence[Entry] = ()
        self._between: Sequence[Entry] = ()
        self._lost: ServerError | None = None
        limits = queue.settings.queue
        self._held = HeldBack(limits.batch_max, limits.deliveries_max)
        self._handler = handler
        self._assemble = assemble
        self._stopping = threading.Event()
        self._side = ThreadPoolExecutor(1, thread_name_prefix="amn-finish")
        self._finishing: Future[None] | None = None
        self._away = False

    def stop(self) -> None:
        """Asks the loop to end after the micro-batch at hand. Safe in a signal handler."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stopping.is_set()

    @property
    def busy(self) -> bool:
        """True while it computes or ends entries, and does not wait for some. Another thread reads this."""
        return bool(self._hand or self._ending)

    @property
    def in_hand(self) -> list[Entry]:
        """The entries that are computed, next, ended or held back: only their leases are renewed.

        Another thread reads this.
        """
        return [*self._hand, *self._ending, *self._between, *self._held.entries]

    def run(self) -> None:
        """Works until `stop`. A server that goes away is waited for, with back-off."""
        self.thread_id = threading.get_native_id()
        linger_s = self.queue.settings.queue.linger_ms / 1000
        pause_s = _PAUSE_S
        ready = False
        while not self._stopping.is_set():
            self.progress += 1
            try:
                if not ready:
                    self._join()
                    self._held.clear()
                    self.queue.rejoin()
                    ready = True
                worked = self._turn()
            except ServerError as error:
                self._hand = ()
                # Also NOGROUP after a flush: the group is made again on the next turn. A server that let us
                # in is there: a read that it did not answer is soon tried smaller.
                pause_s = self._wait_out(error, pause_s, 0.2 if ready else _PAUSE_S_MAX)
                ready = False
                continue
            if self._away:
                self._away = False
                _LOG.warning("worker_resumed", worker=self.queue.name)
            pause_s = _PAUSE_S
            if worked and linger_s:
                self._stopping.wait(linger_s)
        self._join()
        self._side.shutdown()

    def _turn(self) -> bool:
        """One blocking read and all that follows from it; returns whether something came."""
        if self._held.waiting and self._held.is_due(time.monotonic()):
            self._hand = self._held.take()
            self._begin(self._hand)
        entries = self.queue.lease()
        came = bool(entries)
        while entries and not self._stopping.is_set():
            entries = self.step(entries)
            if self._lost is not None:
                error, self._lost = self._lost, None
                raise error
        if self._finishing is not None:
            self._join()
        self._hand = ()
        return came

    def step(self, entries: Sequence[Entry]) -> list[Entry]:
        """One micro-batch; returns the next one when there is more to do at once.

        When the read left something waiting there is: the next one is read, and this one is finished
        in a side thread while that is computed. Otherwise somebody waits: no thread is in between.
        Of large messages a read holds several micro-batches: what does not go into this one is the next.
        """
        self.progress += 1
        self._hand = entries
        if entries[0].deliveries > 1:
            return self._suspect(entries)
        count = portion(entries) if self.queue.heavy else len(entries)
        now, later = entries[:count], list(entries[count:])
        more = self.queue.more and not self._held.is_due(time.monotonic())
        outcomes = self._outcomes(now)
        if self._finishing is not None:
            self._join()
        if not (more or later):
            self._finish(outcomes)
            return []
        self._ending, self._hand = now, later
        try:
            return later or self.queue.lease(block=False)
        finally:
            self._finishing = self._side.submit(self._finish, outcomes)

    def _suspect(self, entries: Sequence[Entry]) -> list[Entry]:
        """Works on entries that were delivered before."""
        more = self.queue.more
        self._join()
        self._begin(self._held.sift(entries, time.monotonic()))
        return self.queue.lease(block=False) if more else []

    def _begin(self, entries: Sequence[Entry]) -> None:
        """Works on them in small groups, each counted before anything in it is decoded, and ended before
        the next one is begun. A worker that dies takes only one group with it, and whoever takes that
        over knows."""
        for group in suspects(entries, self.queue.settings.queue.batch_max):
            if (begun := self._begun(group)) is None:
                break  # what was not begun goes back as it was
            self.suspecting = True
            outcomes = self._outcomes(begun)
            self.suspecting = False
            self._finish(outcomes)

    def _join(self) -> None:
        if self._finishing is not None:
            self._finishing.result()
            self._finishing, self._ending = None, ()

    def _wait_out(self, error: ServerError, pause_s: float, pause_s_max: float = _PAUSE_S_MAX) -> float:
        """Waits for a server that is away; returns the next pause. Each outage is one line in the log."""
        if not self._away:
            self._away = True
            _LOG.warning("worker_waits_for_server", worker=self.queue.name, error=str(error))
        self._stopping.wait(pause_s)
        return min(2 * pause_s, pause_s_max)

    def _begun(self, group: Sequence[Entry]) -> list[Entry] | None:
        """Those of a group that are still ours, counted; None when that cannot be, or we are to stop.

        It is asked for until the server answers: a count whose answer was lost is made once.
        """
        pause_s, refusals = _PAUSE_S, 0
        while refusals < _REFUSALS_MAX and not self._stopping.is_set():
            self.progress += 1
            try:
                return self.queue.begin(group)
            except ServerError as error:
                refusals += refused(error)
                pause_s = self._wait_out(error, pause_s)
        return None

    def _outcomes(self, entries: Sequence[Entry]) -> list[Outcome]:
        self.progress += 1
        batch = self._assemble(entries, self.queue.settings, self.queue.clock.now_ms(), time.perf_counter())
        if self.queue.yields and not (self._between or self.suspecting):
            batch.between = self._serve_live
            self._serve_live()
        outcomes: list[Outcome] = []
        if batch.requests:
            try:
                outcomes = self._handled(batch)
            except Exception as error:
                outcomes = bisected(self._handled, batch, error)
        if self.stages is not None:
            self.stages.computed(batch, outcomes)
        return batch.refused + outcomes

    def _serve_live(self) -> None:
        """Answers live requests that came while low work is computed. An error waits until that is done."""
        if self._lost is None:
            self.progress += 1
            try:
                self._between = self.queue.lease_live()
            except ServerError as error:
                self._lost = error
        if self._between:
            self._join()
            self._finish(self._outcomes(self._between))
            self._between = ()

    def _handled(self, batch: MicroBatch) -> list[Outcome]:
        self.progress += 1
        return self._handler.handle(batch)

    def _finish(self, outcomes: Sequence[Outcome]) -> None:
        """Ends the entries. The finish is fenced, so that a repeat after a lost reply does nothing.

        The server is waited for while it is away, out of memory, or does not let us in: whatever was
        computed could be ended by nobody else either. What it does not take is tried again in smaller
        steps, so that an entry that cannot be ended keeps nothing but itself: it leaves the hand, and
        its lease brings it back.
        """
        left, pause_s, refusals = outcomes, _PAUSE_S, 0
        steps: Steps | None = None  # all at once, until that is lost
        while left:
            self.progress += 1
            some = left[: steps.size] if steps else left
            try:
                statuses = self.queue.finish(some)
            except ServerError as error:
                steps = steps or Steps(len(outcomes))
                steps.note_lost(len(some))
                refusals += len(some) == 1 and refused(error)
                if refusals < _REFUSALS_MAX:
                    pause_s = self._wait_out(error, pause_s)
                    if self._stopping.is_set():
                        return
                    continue
                self.given_up += 1
                _LOG.error("entry_not_ended", worker=self.queue.name, entry=some[0].entry.id.decode())
            else:
                self.finished += statuses.count(b"ok")
                if self.stages is not None:
                    self.stages.ended(some, statuses, self.queue.finished_at_ms)
                if self.traces is not None:
                    self.traces.ended(some, statuses, self.queue.finished_at_ms)
                if b"lost" in statuses or b"full" in statuses:
                    self._not_ended(some, statuses)
            left, pause_s = left[len(some) :], _PAUSE_S
            if left and steps:
                steps.note_came()

    def _not_ended(self, outcomes: Sequence[Outcome], statuses: Sequence[bytes]) -> None:
        """Escalations that found no room are answered; what another worker holds now is its own."""
        if b"lost" in statuses:
            _LOG.warning("lease_lost", worker=self.queue.name, entries=statuses.count(b"lost"))
        full = [o for o, status in zip(outcomes, statuses, strict=True) if status == b"full"]
        if full:
            self._finish([served_fast(outcome) for outcome in full])
