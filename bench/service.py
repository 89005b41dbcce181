"""A server and AMN workers of our own, filled while the workers are stopped, then let go.

One worker has core 0; server and producer share core 1 (Linux). Of more workers nothing is pinned.
Unless one is asked for, no fallback worker runs: what the gate would escalate is answered by AMN, as
`fallback_down`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import click
import numpy as np
import redis
from numpy.typing import NDArray

from amn.policy import DEFAULT
from bench.machine import cpu_seconds, pin
from bench.report import progress
from ops.local.server import Server, ServerSettings
from ops.sample import Sample
from producer import Options, Producer, ProducerSettings
from producer.keys import Keys
from producer.transport.connection import connect
from workers.pool.child import our_environment, our_python
from workers.pool.pool import Pool
from workers.pool.settings import PoolSettings

SUBMIT_COUNT = 64
WARM_UP = 512
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """One drain.

    Attributes:
        requests: Answered.    seconds: From go to the last answer.
        worker_cpu_s, server_cpu_s: Spent by all workers, and by the server.
    """

    requests: int
    seconds: float
    worker_cpu_s: float
    server_cpu_s: float

    def figures(self) -> dict[str, float]:
        """Per second and per request."""
        return {
            "drain_per_s": self.requests / self.seconds,
            "worker_cpu_us": self.worker_cpu_s / self.requests * 1e6,
            "server_cpu_us": self.server_cpu_s / self.requests * 1e6,
        }


class Service:
    """A context manager; in it, everything runs and is warm.

    Attributes:
        url: Of the server, a unix socket.    ready_s: From the start of the workers to ready.
    """

    def __init__(
        self,
        workers: int = 1,
        *,
        policy: str = DEFAULT,
        sample_rate: float = 0.05,
        shadow: bool = False,
        fallback: bool = False,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._server = Server(ServerSettings(data=Path(self._folder.name)))
        self._counts = {"amn": workers, "shadow": int(shadow), "fallback": int(fallback)}
        self._apart, self._policy, self._sample_rate = workers == 1, policy, sample_rate
        self.url, self.ready_s = "", 0.0
        self._pool: Pool | None = None
        self._contexts = sample_contexts()

    def __enter__(self) -> Self:
        # Workers that are stopped while a long queue is filled do not hang.
        os.environ.setdefault("AMN_STALL_MS", "3600000")
        self._server.start()
        self.url = self._server.url
        self.settings = ProducerSettings(
            url=self.url,
            in_flight_max=2_000_000,
            entries_max=2_000_000,
            bytes_max=18 * 1024**3,
        )
        self.client: redis.Redis = connect(self.settings)
        started_s = time.perf_counter()
        settings = PoolSettings(url=self.url, policy=self._policy, sample_rate=self._sample_rate)
        self._pool = Pool(self._counts, settings)
        self._pool.start()
        self._pool.wait_ready()
        self.ready_s = time.perf_counter() - started_s
        pids = self._pool.pids()
        self.pids, self.shadows, self.fallbacks = pids["amn"], pids["shadow"], pids["fallback"]
        self.server_pid = int(self.client.info("server")["process_id"])
        if self._apart:
            pin(self.pids[0], {0})
            for pid in (self.server_pid, *self.shadows, *self.fallbacks, os.getpid()):
                pin(pid, {1})
        self.drain(self.fill(WARM_UP)[0])
        return self

    def __exit__(self, *_: object) -> None:
        pin(os.getpid(), set(range(os.cpu_count() or 1)))
        self.client.close()
        if self._pool is not None:
            self.go()
            self._pool.drain()
        self._server.stop()
        self._folder.cleanup()

    def stop(self) -> None:
        """Stops the workers where they are."""
        for pid in self.pids:
            os.kill(pid, signal.SIGSTOP)

    def go(self) -> None:
        """Lets them go on."""
        for pid in self.pids:
            os.kill(pid, signal.SIGCONT)

    def fill(
        self, count: int, name: str = "", options: Callable[[int], Options] | None = None
    ) -> tuple[int, float]:
        """Stops the workers and submits `count` requests, rounded up to whole calls.

        Args:
            name: With one, how far it is stands on the terminal.
            options: Those of a request, by its number.

        Returns:
            How many they are, and how many seconds it took.
        """
        self.stop()
        total, contexts = -(-count // SUBMIT_COUNT) * SUBMIT_COUNT, self._contexts
        firsts = range(0, total, SUBMIT_COUNT)
        with Producer(settings=self.settings) as producer:
            started_s = time.perf_counter()
            for first in progress(firsts, name, len(firsts)) if name else firsts:
                numbers = range(first, first + SUBMIT_COUNT)
                said: Any = [options(i) for i in numbers] if options else Options()
                producer.submit_many([contexts[i % len(contexts)] for i in numbers], options=said)
            return total, time.perf_counter() - started_s

    def drain(self, count: int) -> Drained:
        """Lets the workers go until `count` more requests have ended; they go on afterwards.

        Raises:
            ClickException: None has ended for half a minute.
        """
        before = self.ended()
        wanted, read = before + count, self.meter()
        self.go()
        last_s = time.monotonic()
        while (ended := self.ended()) < wanted:
            if ended > before:
                before, last_s = ended, time.monotonic()
            if time.monotonic() - last_s > _PATIENCE_S:
                text = f"{wanted - ended} requests still wait, and for {_PATIENCE_S:.0f} s none was answered"
                raise click.ClickException(f"{text}: has a worker ended?")
            time.sleep(0.005)
        elapsed_s, worker_s, server_s = map(float, read())
        done = count + ended - wanted
        return Drained(requests=done, seconds=elapsed_s, worker_cpu_s=worker_s, server_cpu_s=server_s)

    def meter(self) -> Callable[[], NDArray[np.float64]]:
        """A function that reads seconds since now: on the clock, of the workers' CPU, of the server's."""

        def now_s() -> NDArray[np.float64]:
            workers_s = sum(cpu_seconds(pid) for pid in self.pids)
            return np.array([time.perf_counter(), workers_s, cpu_seconds(self.server_pid)])

        began_s = now_s()
        return lambda: now_s() - began_s

    def ended(self) -> int:
        """Requests answered or handed on since the queue began."""
        return self.counted("answered", "escalated")

    def counted(self, *names: str) -> int:
        """The sum of counters of the queue."""
        values: list[Any] = self.client.hmget(Keys().stats, list(names))  # type: ignore[assignment]
        return sum(int(value or 0) for value in values)

    def forget(self) -> None:
        """Removes the answers nobody fetched."""
        for key in self.client.scan_iter(Keys().replies("*"), count=1000):
            self.client.unlink(key)


@lru_cache(maxsize=1)
def sample_contexts() -> NDArray[np.float32]:
    """The windows of the shipped sample, shape (N, 5, 768); read once, outside of every clock."""
    sample = Sample.load(Path("artifacts/sample/sequences.npz"))
    return np.stack([sample.context(i) for i in range(min(len(sample), 4096))]).astype(np.float32)


@contextmanager
def listening(command: str, url: str, checkout: Path | None = None) -> Iterator[tuple[int, int]]:
    """A process of `amn COMMAND` that listens at a free port, beside the producer: its id and its port."""
    words = our_python("ops.cli", command, "--port", "0")
    environment = our_environment(REDIS_URL=url)
    if checkout is not None:
        environment["PYTHONPATH"] = str(checkout)
    process = subprocess.Popen(words, cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        port = int(process.stderr.readline().rpartition(":")[2])
        pin(process.pid, {1})
        yield process.pid, port
    finally:
        process.terminate()
        process.wait(20)
