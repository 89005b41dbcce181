"""One producer process: sends sample contexts through any fault, and audits what comes back.

Takes a JSON object as its only argument and commands on standard input ("burst N", "fork", "flushed
EPOCH ID ...", "stop"); prints one JSON object a line: status, and at the end the result.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ops.sample import Sample
from producer import Options, Producer
from producer.errors import DeadlineExceeded, QueueError, QueueFull, ServerError
from producer.settings import ProducerSettings

from .audit import Audit
from .bridge import Bridge
from .expected import read_expected

_CHUNK, _BURST_CHUNK = 32, 256
_IN_FLIGHT_MAX = 3_000
_DEADLINE_MS = 1_500.0
_STATUS_S = 0.5
#: One request in so many is taken back as soon as it is in.
_CANCEL_EVERY = 53
#: By the last digit of a request's number; the others are of the normal level.
_PRIORITIES = {0: "high", 4: "low", 7: "low"}


@dataclass(slots=True)
class Chunk:
    """Requests that are sent together, and again under the same ids until they are in.

    Attributes:
        block: Whether the producer waits for room and server, or this program does.
    """

    numbers: list[int]
    block: bool
    deadline_ms: float | None = None
    due_s: float = 0.0
    give_up_s: float = 0.0


class Traffic:
    """The run of one producer."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._config = config
        self._rng = random.Random(config["seed"])
        self._sample = Sample.load(Path(config["sample"]))
        self._audit = Audit(config["prefix"], read_expected(Path(config["expected"])), config["requests"])
        settings = ProducerSettings(
            url=config["url"],
            entries_max=config["entries_max"],
            seen_window_ms=config["seen_window_ms"],
            result_timeout_ms=config["seen_window_ms"] // 2,
            retry_ms=300,
            # Shorter than a stall of the server: a command that timed out here is carried out there.
            command_timeout_ms=config["command_timeout_ms"],
        )
        self._producer: Any = Bridge(settings) if config["asyncio"] else Producer(settings=settings)
        self._horizon_s = config["seen_window_ms"] / 2000
        self._again: deque[Chunk] = deque()
        self._next = 0
        self._burst = self._forks = 0
        self._children: list[int] = []
        self._stopping = threading.Event()
        self._status_s = 0.0

    def run(self) -> dict[str, Any]:
        """Sends until told to stop, waits for the answers, listens a while for second ones."""
        self._producer.start()
        self._audit.tap(self._producer.channels[0].inflight)
        threading.Thread(target=self._listen, daemon=True).start()
        began_s = time.monotonic()
        while not self._stopping.is_set() and self._next < self._config["requests"]:
            self._fork()
            sent = self._send(began_s)
            self._audit.collect()
            self._status()
            if not sent:
                time.sleep(0.002)
        while self._again:  # what is under way gets in, or is given up, within its horizon
            self._send_again()
            self._audit.collect()
            self._status()
        sent_s = time.monotonic() - began_s
        self._await_answers()
        time.sleep(self._config["linger_s"])
        self._audit.collect()
        result = self._audit.result() | {"sent_s": sent_s, "stray": self._producer.stray_replies}
        self._producer.close()
        return result

    # -- sending ------------------------------------------------------------------------------

    def _send(self, began_s: float) -> bool:
        if self._send_again():
            return True
        if self._audit.open >= _IN_FLIGHT_MAX:
            return False
        if self._burst > 0:
            self._burst -= _BURST_CHUNK
            self._try(self._chunk(_BURST_CHUNK, block=False))
            return True
        due = int((time.monotonic() - began_s) * self._config["rate"]) - self._next
        if due <= 0:
            return False
        dice = self._rng.random()
        chunk = self._chunk(min(due, _CHUNK), block=dice < 0.7)
        if dice > 0.95:
            chunk.deadline_ms = _DEADLINE_MS
        self._try(chunk)
        return True

    def _send_again(self) -> bool:
        now_s = time.monotonic()
        for _ in range(len(self._again)):
            chunk = self._again.popleft()
            if chunk.due_s <= now_s:
                self._try(chunk)
                return True
            self._again.append(chunk)
        return False

    def _chunk(self, count: int, *, block: bool) -> Chunk:
        numbers = list(range(self._next, min(self._next + count, self._config["requests"])))
        self._next += len(numbers)
        return Chunk(numbers, block, give_up_s=time.monotonic() + self._horizon_s)

    def _try(self, chunk: Chunk) -> None:
        audit, numbers = self._audit, chunk.numbers
        contexts = [self._sample.context(n) for n in numbers]
        try:
            handles = self._producer.submit_many(
                contexts, options=[self._options(n, chunk) for n in numbers], block=chunk.block
            )
        except QueueError as error:
            audit.counts[f"submit:{error.code}"] += 1
            for n in numbers:
                audit.note(n, f"submit: {error.code}")
            accepted = {int(handle.id.rpartition("-")[2]): handle for handle in error.accepted}
            self._later(chunk, [n for n in numbers if n not in accepted], error)
            numbers, handles = list(accepted), list(accepted.values())
        for n, handle in zip(numbers, handles, strict=True):
            audit.accept(n, handle)
            if n % _CANCEL_EVERY == 3:
                self._cancel(n, handle)

    def _later(self, chunk: Chunk, left: list[int], error: QueueError) -> None:
        """The same ids again, as the documentation says, or never."""
        now_s = time.monotonic()
        if not isinstance(error, QueueFull | ServerError | DeadlineExceeded):
            raise error
        if chunk.deadline_ms or now_s > chunk.give_up_s:
            self._audit.doubtful.update(left)
            return
        pause_s = error.retry_after_ms / 1000 if isinstance(error, QueueFull) else 0.05
        self._again.append(replace(chunk, numbers=left, due_s=now_s + pause_s))

    def _options(self, n: int, chunk: Chunk) -> Options:
        options = self._sample.options(n, self._audit.prefix)
        return replace(
            options,
            request_id=f"{self._audit.prefix}-{n}",
            deadline_ms=chunk.deadline_ms,
            priority=_PRIORITIES.get(n % 10, "normal"),
        )

    def _cancel(self, n: int, handle: Any) -> None:
        try:
            taken = handle.cancel()
            self._audit.note(n, f"cancel: {taken}")
            if taken:
                self._audit.cancelled.add(n)
        except ServerError as error:
            self._audit.note(n, f"cancel: {error.code}")
            self._audit.cancel_doubtful.add(n)

    def _fork(self) -> None:
        """Children that leave the block of their parent's producer, and must do it no harm."""
        for _ in range(self._forks):
            self._forks -= 1
            if (child := os.fork()) == 0:
                signal.alarm(20)  # one that hangs ends by this signal
                with contextlib.closing(self._producer):
                    sys.exit(0)
            self._children.append(child)
            self._audit.counts["forks"] += 1
        for child in list(self._children):
            done, status = os.waitpid(child, os.WNOHANG)
            if done and os.waitstatus_to_exitcode(status):
                raise RuntimeError(f"the child of a fork ended with {os.waitstatus_to_exitcode(status)}")
            if done:
                self._children.remove(child)

    # -- waiting ------------------------------------------------------------------------------

    def _await_answers(self) -> None:
        audit, give_up_s = self._audit, time.monotonic() + self._config["answers_s_max"]
        while time.monotonic() < give_up_s:
            audit.collect()
            self._status()
            if audit.awaited <= audit.cancel_doubtful:
                return
            time.sleep(0.02)

    def _listen(self) -> None:
        for line in sys.stdin:
            words = line.split()
            if words[:1] == ["burst"]:
                self._burst += int(words[1])
            elif words == ["fork"]:
                self._forks += 1
            elif words[:1] == ["flushed"]:
                self._audit.flushed(float(words[1]), words[2:])
            elif words == ["stop"]:
                break
        self._stopping.set()  # also when the harness is gone

    def _status(self) -> None:
        now_s = time.monotonic()
        if now_s < self._status_s:
            return
        self._status_s = now_s + _STATUS_S
        audit = self._audit
        client = self._producer.channels[0].client_id
        say({"accepted": len(audit.accepted), "open": audit.open, "sent": self._next, "client": client})


def say(message: dict[str, Any]) -> None:
    """One line to the harness."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    say({"result": Traffic(json.loads(sys.argv[1])).run()})
