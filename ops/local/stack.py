"""Server and worker pool together, as `amn run` and `amn up` need them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from ops.local.server import Server, ServerSettings
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors
from workers.errors import NotReady
from workers.logs import configure_logs
from workers.pool.pool import Pool
from workers.pool.settings import PoolSettings

_READY_S_MAX = 120.0
_DRAIN_S_MAX = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSettings:
    """The parts to start, and their settings.

    Attributes:
        url: A running server; None starts an embedded one.
        server: Of the embedded one.
        counts: Workers by kind; kinds with 0 are left out.
        queue, policy, artifacts, sample_rate, log_level: For the workers.
        worker_log: Where the workers' logs go; None for standard error.
    """

    url: str | None = field(repr=False)
    server: ServerSettings
    counts: dict[str, int]
    queue: str
    policy: str
    artifacts: Path
    sample_rate: float = 0.05
    log_level: str = "warning"
    worker_log: Path | None = None


class Stack:
    """A context manager: in it, server and workers run; after it, nothing is left."""

    def __init__(self, settings: StackSettings) -> None:
        self.settings = settings
        self.server: Server | None = None
        self.pool: Pool | None = None
        self.url = settings.url or ""

    def __enter__(self) -> Self:
        configure_logs(self.settings.log_level)  # what the pool says belongs on standard error
        try:
            if not self.url:
                self.server = Server(self.settings.server)
                self.server.start()
                self.url = self.server.url
            self._check_server()
            self._start_workers()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None = None,
        _error: BaseException | None = None,
        _traceback: TracebackType | None = None,
    ) -> None:
        try:
            self.drain()
        finally:
            if self.server is not None:
                self.server.stop()

    def drain(self) -> None:
        """Lets the workers finish what they hold, and ends them. Idempotent."""
        if self.pool is not None:
            self.pool.drain(_DRAIN_S_MAX)

    def restart_workers(self) -> None:
        """Replaces every worker, one at a time, each when its successor is ready."""
        if self.pool is not None:
            self.pool.restart()

    def _check_server(self) -> None:
        """Says at once what every worker would say ten seconds later, each for itself."""
        settings = ProducerSettings(url=self.url, queue=self.settings.queue)
        with driver_errors(self.url):
            client = connect(settings, retries=0)
            client.ping()
            client.close()

    def _start_workers(self) -> None:
        settings = self.settings
        counts = {kind: count for kind, count in settings.counts.items() if count}
        if not counts:
            return
        self.pool = Pool(
            counts,
            PoolSettings(
                url=self.url,
                queue=settings.queue,
                policy=settings.policy,
                artifacts=settings.artifacts,
                sample_rate=settings.sample_rate,
                log_level=settings.log_level,
                log_file=settings.worker_log,
            ),
        )
        self.pool.start()
        try:
            self.pool.wait_ready(_READY_S_MAX)
        except NotReady as error:
            last = last_line(settings.worker_log)
            raise NotReady(f"a worker did not start: {last}" if last else str(error)) from error
        self.pool.watch()


def last_line(log: Path | None) -> str:
    """Returns the last line of a log; nothing without a log."""
    if log is None or not log.exists():
        return ""
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    return lines[-1].strip().removeprefix("Error: ") if lines else ""
