"""The engine of every worker: lease -> assemble -> handle -> finish."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import structlog

from producer.errors import ServerError
from workers.engine.entry import Entry, Outcome
from workers.engine.microbatch import MicroBatch, assemble, portion
from workers.engine.outcomes import served_fast
from workers.engine.patience import PAUSE_S, PAUSE_S_MAX, REFUSALS_MAX, Patience
from workers.engine.queue import LeasedQueue
from workers.engine.stages import StageTimes
from workers.engine.suspects import HeldBack, bisected, suspects
from workers.engine.traces import WorkerTraces
from workers.errors import refused
from workers.settings import WorkerSettings

_LOG = structlog.get_logger("amn.worker")

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
        progress: Moves with every step: a read, a micro-batch, a part of one, a try to end one. A
            server that is away is asked again and again, so that waiting for it is progress.
        suspecting: Whether it computes entries that may have ended a worker's process before.
        thread_id: Of the system; 0 before `run`.
        stages: The times of the stages; None where nobody counts them. Traces need them.
    """

    def __init__(
        self,
        queue: LeasedQueue,
        handler: Handler,
        assemble: Assemble = assemble,
        stages: StageTimes | None = None,
        traces: WorkerTraces | None = None,
    ) -> None:
        self.queue, self.stages = queue, stages
        self._hear = [one.ended for one in (stages, traces) if one is not None]
        self.finished = self.progress = self.thread_id = 0
        self.suspecting = False
        self._hand: Sequence[Entry] = ()
        self._ending: Sequence[Entry] = ()
        self._between: Sequence[Entry] = ()
        self._live_failed = False
        self._rejoins = False
        limits = queue.settings.queue
        self._held = HeldBack(limits.batch_max, limits.deliveries_max)
        self._handler = handler
        self._assemble = assemble
        self._stopping = threading.Event()
        self._side = ThreadPoolExecutor(1, thread_name_prefix="amn-finish")
        self._finishing: Future[None] | None = None
        self._patience = Patience(queue.name, self._stopping)

    def stop(self) -> None:
        """Asks the loop to end after the micro-batch at hand. Safe in a signal handler."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """True once `stop` was called."""
        return self._stopping.is_set()

    @property
    def given_up(self) -> int:
        """Entries that the server would not let us end."""
        return self._patience.given_up

    @property
    def busy(self) -> bool:
        """True while it computes or ends entries, and does not wait for some. Another thread reads this."""
        return bool(self._hand or self._ending)

    @property
    def in_hand(self) -> list[Entry]:
        """The entries that are computed, next, ended or held back: only their leases are renewed.

        Another thread reads this.
        """
        return [*self._hand, *self._ending, *self._between, *self.queue.kept, *self._held.entries]

    def run(self) -> None:
        """Works until `stop`. A server that goes away is waited for, with back-off."""
        self.thread_id = threading.get_native_id()
        linger_s = self.queue.settings.queue.linger_ms / 1000
        pause_s, self._rejoins = PAUSE_S, True
        while not self._stopping.is_set():
            self.progress += 1
            try:
                if self._rejoins:
                    self._rejoin()
                worked = self._turn()
            except ServerError as error:
                self._hand = ()
                # Also NOGROUP after a flush: the group is made again on the next turn. A server that let us
                # in is there: a read that it did not answer is soon tried smaller.
                pause_s = self._patience.wait_out(error, pause_s, PAUSE_S_MAX if self._rejoins else 0.2)
                self._rejoins = True
                continue
            if self._patience.away:
                self._patience.over()
            pause_s = PAUSE_S
            if worked and linger_s:
                self._stopping.wait(linger_s)
        self._join()
        self.queue.unask()  # whoever was told to stop is to be given nothing more
        self._side.shutdown()

    def _rejoin(self) -> None:
        """Makes sure that nothing is under way of the time before the server was away."""
        self._join()
        self._held.clear()
        self.queue.rejoin()
        self._rejoins = False

    def _turn(self) -> bool:
        """One blocking read and all that follows from it; returns whether something came."""
        if self._held.waiting and self._held.is_due(time.monotonic()):
            self._hand = self._held.take()
            self._begin(self._hand)
        entries = self.queue.lease()
        came = bool(entries)
        while entries and not (self._rejoins or self._stopping.is_set()):
            entries = self.step(entries)
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
            first = self._held.waiting or self._rejoins or self._patience.away or self._stopping.is_set()
            self._finish(outcomes, then_lease=not first)
            self._hand = ()
            return self.queue.lease() if self.queue.asked and not self._stopping.is_set() else []
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
            if not begun:
                continue
            self.suspecting = True
            outcomes = self._outcomes(begun)
            self.suspecting = False
            self._finish(outcomes)

    def _join(self) -> None:
        if self._finishing is not None:
            self._finishing.result()
            self._finishing, self._ending = None, ()

    def _begun(self, group: Sequence[Entry]) -> list[Entry] | None:
        """Those of a group that are still ours, counted; None when that cannot be, or we are to stop.

        It is asked for until the server answers: a count whose answer was lost is made once.
        """
        pause_s, refusals = PAUSE_S, 0
        while refusals < REFUSALS_MAX and not self._stopping.is_set():
            self.progress += 1
            try:
                return self.queue.begin(group)
            except ServerError as error:
                refusals += refused(error)
                pause_s = self._patience.wait_out(error, pause_s)
        return None

    def _outcomes(self, entries: Sequence[Entry]) -> list[Outcome]:
        batch = self._assemble(entries, self.queue.settings, self.queue.clock.now_ms(), time.perf_counter())
        if self.queue.low and self.queue.yields and not (self._between or self.suspecting):
            batch.between = self._serve_live
            self._serve_live()
        self.progress += 1
        try:
            outcomes = self._handler.handle(batch) if batch.requests else []
        except Exception as error:
            if self._live_failed:
                self._live_failed = False
                raise  # what is computed here is not to blame
            outcomes = bisected(self._handled, batch, error)
        if self.stages is not None:
            self.stages.computed(batch, outcomes)
        return batch.refused + outcomes

    def _serve_live(self) -> None:
        """Answers live requests that came while low work is computed. A server that is away is joined anew
        when that is done."""
        if not self._rejoins:
            self.progress += 1
            try:
                self._between = self.queue.lease_live()
            except ServerError as error:
                _LOG.warning("live_not_read", worker=self.queue.name, error=str(error))
                self._rejoins = True
        left = self._between
        try:
            while left:
                self._join()
                count = portion(left)
                self._finish(self._outcomes(left[:count]))
                left = left[count:]
        except Exception:
            self._live_failed = True
            raise
        finally:
            self._between = ()

    def _handled(self, batch: MicroBatch) -> list[Outcome]:
        self.progress += 1
        return self._handler.handle(batch)

    def _finish(self, outcomes: Sequence[Outcome], *, then_lease: bool = False) -> None:
        """Ends the entries, through outages and refusals."""
        try:
            self._end(outcomes, then_lease=then_lease)
        except ServerError as error:
            self.queue.unask()  # what came now would not be in hand, perhaps for long
            self._patience.end(outcomes, error, self._end)

    def _end(self, outcomes: Sequence[Outcome], *, then_lease: bool = False) -> None:
        """Ends the entries. The finish is fenced, so that a repeat after a lost reply does nothing."""
        self.progress += 1
        statuses = self.queue.finish(outcomes, then_lease=then_lease)
        self.finished += statuses.count(b"ok")
        for hear in self._hear:
            hear(outcomes, statuses, self.queue.finished_at)
        if b"lost" in statuses or b"full" in statuses:
            self._not_ended(outcomes, statuses)

    def _not_ended(self, outcomes: Sequence[Outcome], statuses: Sequence[bytes]) -> None:
        """Escalations that found no room are answered; what another worker holds now is its own."""
        if b"lost" in statuses:
            _LOG.warning("lease_lost", worker=self.queue.name, entries=statuses.count(b"lost"))
        full = [o for o, status in zip(outcomes, statuses, strict=True) if status == b"full"]
        if full:
            self._finish([served_fast(outcome) for outcome in full])
