"""Server, workers and the processes beside them, as `amn run` and `amn up` need them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Self

from ops.local.beside import Beside
from ops.local.server import Server, ServerSettings
from producer.settings import ProducerSettings
from producer.transport.connection import connect, driver_errors
from workers.logs import configure_logs
from workers.pool.pool import Pool
from workers.pool.settings import PoolSettings

_READY_S_MAX = 120.0
#: Longest wait for the processes beside the workers.
_BESIDE_S_MAX = 30.0
_DRAIN_S_MAX = 15.0


class Stack:
    """A context manager: in it, server and workers run; after it, nothing is left.

    Attributes:
        counts: Workers by kind; kinds with 0 are left out.
        settings: Settings of the workers; their `url` is that of the server.
        server: The embedded server, if there is one.    pool: The workers, if there are any.
        beside: The processes that `start_beside` started.

    Args:
        server: Settings of an embedded server; None where the workers' `url` names one that runs.
    """

    def __init__(
        self, counts: Mapping[str, int], settings: PoolSettings, server: ServerSettings | None = None
    ) -> None:
        self.counts = {kind: count for kind, count in counts.items() if count}
        self.settings = settings
        self.server = None if server is None else Server(server)
        self.pool: Pool | None = None
        self.beside: list[Beside] = []
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        configure_logs(self.settings.log_level)  # what the pool says belongs on standard error
        with contextlib.ExitStack() as undo:
            if self.server is not None:
                undo.enter_context(self.server)
                self.settings = replace(self.settings, url=self.server.url)
            self._check_server()
            undo.callback(self.drain)
            if self.counts:
                self.pool = Pool(self.counts, self.settings)
                self.pool.start()
                self.pool.wait_ready(_READY_S_MAX)
                self.pool.watch()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def start_beside(self, commands: Mapping[str, Sequence[str]]) -> list[str]:
        """Starts commands of ours by name; returns what became of those that do not work."""
        settings = self.settings
        common = ("--log-level", settings.log_level, "--queue", settings.queue)
        for name, words in commands.items():
            self.beside.append(Beside(name, (*words, *common), settings.url, settings.log_file))
            self._undo.callback(self.beside[-1].stop)
        give_up_at_s = time.monotonic() + _BESIDE_S_MAX
        ready = [one.child.is_ready(give_up_at_s - time.monotonic()) for one in self.beside]
        down = (one for one, is_ready in zip(self.beside, ready, strict=True) if not is_ready)
        return [f"{one.child.exit_reason()} (it is started again)" for one in down]

    def revive(self) -> Iterator[str]:
        """Starts again what died, but for the workers, which their pool watches; yields what is news."""
        if self.server is not None and (code := self.server.poll()) is not None:
            log = self.server.log_path
            yield f"the embedded server ended by itself (code {code}) and was started again; see {log}"
        for one in self.beside:
            if news := one.poll():
                yield f"{news} (it is started again)"

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
        settings = ProducerSettings(url=self.settings.url, queue=self.settings.queue)
        with driver_errors(settings.url), contextlib.closing(connect(settings, retries=0)) as client:
            client.ping()
