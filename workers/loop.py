"""The engine of every worker: lease -> assemble -> handle -> finish."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import structlog

from producer import wire
from producer.errors import ServerError
from producer.messages import Failure
from workers.batch import Batch, assemble, portion
from workers.outcomes import dead, degraded, fast_answer
from workers.queue import Entry, LeasedQueue, Outcome
from workers.settings import WorkerSettings

_LOG = structlog.get_logger("amn.worker")

#: Turns entries into a batch: entries, settings, epoch ms and monotonic seconds of the read.
Assemble = Callable[[Sequence[Entry], WorkerSettings, float, float], Batch]


class Handler(Protocol):
    """What a worker kind adds to the loop."""

    def handle(self, batch: Batch) -> list[Outcome]:
        """One outcome per request of the batch, in order. May raise: the loop then bisects."""
        ...


class Loop:
    """Runs one handler on one queue until it is told to stop.

    Attributes:
        busy: Set while entries are leased; the lease keeper looks at it.
        finished: Entries ended since the start; progress, for health checks.
    """

    def __init__(self, queue: LeasedQueue, handler: Handler, assemble: Assemble = assemble) -> None:
        self.queue = queue
        self.busy = threading.Event()
        self.finished = 0
        self._handler = handler
        self._assemble = assemble
        self._stopping = threading.Event()
        self._side = ThreadPoolExecutor(1, thread_name_prefix="amn-finish")
        self._finishing: Future[None] | None = None
        self._away = False

    def stop(self) -> None:
        """Asks the loop to end after the batch at hand. Safe in a signal handler."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def run(self) -> None:
        """Works until `stop`. A server that goes away is waited for, with back-off."""
        linger_s = self.queue.settings.queue.linger_ms / 1000
        pause_s = 0.05
        ready = False
        while not self._stopping.is_set():
            try:
                if not ready:
                    self._join()
                    self.queue.ensure_group()
                    # A read whose reply was lost left entries in our name that we know nothing of.
                    self.queue.release()
                    ready = True
                entries = self.queue.lease()
                self.busy.set()
                lingering = bool(entries)
                while entries and not self._stopping.is_set():
                    entries = self.step(entries)
                self._join()
                self.busy.clear()
            except ServerError as error:
                # Also NOGROUP after a flush: the group is made again on the next turn.
                ready = False
                self._note_outage(error)
                self._stopping.wait(pause_s)
                pause_s = min(2 * pause_s, 2.0)
                continue
            self._note_return()
            pause_s = 0.05
            if lingering and linger_s:
                self._stopping.wait(linger_s)
        self._join()
        self._side.shutdown()

    def step(self, entries: Sequence[Entry]) -> list[Entry]:
        """One batch; returns the next one when there is more to do at once.

        When the read left something waiting there is: the next one is read, and this one is finished
        in a side thread while that is computed. Otherwise somebody waits: no thread is in between.
        Of large messages a read holds several batches: what does not go into this one is the next.
        """
        count = portion(entries) if self.queue.heavy else len(entries)
        now, later = entries[:count], list(entries[count:])
        more = self.queue.more
        outcomes = self._outcomes(now)
        self._join()
        if not (more or later):
            self._finish(outcomes)
            return []
        try:
            return later or self.queue.lease(block=False)
        finally:
            self._finishing = self._side.submit(self._finish, outcomes)

    def _join(self) -> None:
        if self._finishing is not None:
            self._finishing.result()
            self._finishing = None

    def _note_outage(self, error: ServerError) -> None:
        """One line when the server goes away, however often it is tried again, and one when it is back."""
        if not self._away:
            self._away = True
            _LOG.warning("worker_waits_for_server", worker=self.queue.name, error=str(error))

    def _note_return(self) -> None:
        if self._away:
            self._away = False
            _LOG.warning("worker_resumed", worker=self.queue.name)

    def _outcomes(self, entries: Sequence[Entry]) -> list[Outcome]:
        batch = self._assemble(entries, self.queue.settings, time.time() * 1000, time.perf_counter())
        return batch.refused + (self._handled(batch) if len(batch) else [])

    def _handled(self, batch: Batch) -> list[Outcome]:
        """Handles the batch; when that raises, halves it until the culprit is alone."""
        try:
            return self._handler.handle(batch)
        except Exception as error:
            if len(batch) > 1:
                half = len(batch) // 2
                return self._handled(batch.part(0, half)) + self._handled(batch.part(half, len(batch)))
            _LOG.error("request_breaks_batch", request=batch.requests[0].id, exc_info=True)
            return [self._poisoned(batch, error)]

    def _poisoned(self, batch: Batch, error: Exception) -> Outcome:
        """A request that the model cannot take: dead letter; an escalated one has its AMN answer."""
        entry, request = batch.entries[0], batch.requests[0]
        outcome = dead(entry, request, "batch_breaking", repr(error))
        fast = fast_answer(entry)
        if fast is not None:
            answer = degraded(entry, request.reply_to, fast, "fallback_failed")
            outcome.payload, outcome.counters = answer.payload, answer.counters
        return outcome

    def _finish(self, outcomes: list[Outcome]) -> None:
        """Ends the entries, trying again while the server is away: the finish is fenced, so a
        repeat after a lost reply does nothing."""
        pause_s = 0.05
        while True:
            try:
                statuses = self.queue.finish(outcomes)
                break
            except ServerError as error:
                self._note_outage(error)
                if not error.retryable or self._stopping.wait(pause_s):
                    return  # the lease brings them back, to us or to another worker
                pause_s = min(2 * pause_s, 2.0)
        self.finished += statuses.count(b"ok")
        if b"lost" in statuses:
            _LOG.warning("lease_lost", worker=self.queue.name, entries=statuses.count(b"lost"))
        full = [o for o, status in zip(outcomes, statuses, strict=True) if status == b"full"]
        if full:
            self._finish([_served_fast(outcome) for outcome in full])


def _served_fast(outcome: Outcome) -> Outcome:
    """The best answer so far, of an escalation that found no room in the next stream."""
    reply = wire.decode_reply(outcome.payload)
    assert not isinstance(reply, Failure)
    moved, *others = outcome.counters.split(",")
    counters = ",".join(["answered", f"answered:{reply.served_by}", *others])
    if moved != "escalated":  # a fallback's answer, which the next tier could not better
        payload = wire.encode_reply(replace(reply, provisional=False))
        return replace(outcome, op="reply", payload=payload, counters=counters)
    return replace(
        outcome,
        op="reply",
        payload=wire.encode_reply(reply.shed_for("fallback_full")),
        counters=counters + ",shed,shed:fallback_full",
    )
