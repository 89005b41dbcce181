"""One run from the first process to the verdict; whatever happens, nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import redis

from ops.sample import Sample
from producer import Options, Producer
from producer.keys import Keys
from producer.settings import ProducerSettings
from tests.deadly import DeadlyPoolSettings
from workers.logs import configure_logs
from workers.pool.pool import Pool

from .books import Books, Flushed
from .expected import freeze_artifacts, write_expected
from .faults import Agenda, Injector
from .memory import await_empty, leftovers, snapshot
from .poison import CLIENT, Poison
from .processes import Reaper
from .producers import ProducerProcess
from .recovery import Recoveries
from .server import ChaosServer
from .server_faults import Proxy, ServerFaults
from .settings import ChaosSettings, Fault, schedule
from .victims import Victims
from .worker_faults import CLOCK, SteppedPoolSettings, WorkerFaults

_READY_S_MAX = 120.0
_ANSWERS_S_MAX = 120.0
_WARM_UP = 400
_TICK_S = 0.02


class Harness:
    """Runs once."""

    def __init__(self, settings: ChaosSettings, say: Callable[[str], None]) -> None:
        self._settings = settings
        self._say = say
        self._keys = Keys()
        self._books = Books(self._keys)
        self._producers: list[ProducerProcess] = []
        self._pooled_s = 0.0

    def run(self) -> dict[str, Any]:
        """Everything that the verdict needs.

        Raises:
            RuntimeError: The service could not be started, or the server not restarted.
        """
        signal.signal(signal.SIGTERM, _interrupt)
        os.environ["AMN_STALL_MS"] = str(self._settings.stall_ms)
        configure_logs("error")
        folder = Path(tempfile.mkdtemp(prefix="amn-chaos-", dir=self._settings.folder)).resolve()
        reaper = Reaper(self._settings.hard_limit_s, folder)
        good = False
        try:
            with contextlib.ExitStack() as stack:
                report = self._in(folder, stack)
            report["orphans"] = len(reaper.left_over())
            good = True
            return report
        finally:
            if self._settings.keep_logs is not None or not good:
                self._keep_logs(folder)
            reaper.close()

    def _in(self, folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
        settings, began_s = self._settings, time.monotonic()
        artifacts = folder / "artifacts"
        freeze_artifacts(settings.artifacts / "lvm", artifacts)
        server = ChaosServer(folder, settings.fsync, steps="server_clock" in settings.kinds)
        stack.callback(server.close)
        server.start()
        proxy = Proxy(server.socket, folder / "proxy.log")
        stack.callback(proxy.close)
        pool = self._pool(proxy.url, artifacts, folder / "workers.log")
        stack.callback(pool.drain, 15.0)
        pool.start()
        self._say("computing the direct predictions while the workers load")
        write_expected(self._sample_path, artifacts, folder / "expected.npz")
        pool.wait_ready(_READY_S_MAX)
        client = stack.enter_context(server.client())
        self._warm_up(server.url)
        before = snapshot(client)
        ready_s = time.monotonic() - began_s
        self._victims = Victims(self._doomed_config(proxy.url), folder / "producers.log")
        stack.callback(self._victims.close)
        injector = self._injector(server, proxy, pool, client, folder)
        stack.callback(lambda: [producer.close() for producer in self._producers])
        self._start_producers(server.url, proxy.url, folder)
        stack.callback(injector.heal)  # runs first: a stopped process cannot be drained
        self._say(f"ready after {ready_s:.1f} s; injecting")
        chaos_s = self._chaos(injector, pool)
        injector.heal()
        self._settle(injector, pool)
        report = self._after(client, injector, pool, before)
        report |= {"worker_restarts": pool.restarts, "worker_swaps": pool.swaps}
        return report | {"ready_s": ready_s, "chaos_s": chaos_s, "run_s": time.monotonic() - began_s}

    # -- parts --------------------------------------------------------------------------------

    @property
    def _sample_path(self) -> Path:
        return self._settings.artifacts / "sample" / "sequences.npz"

    def _pool(self, url: str, artifacts: Path, log: Path) -> Pool:
        settings = self._settings
        counts = {"amn": settings.amn, "fallback": settings.fallback, "shadow": settings.shadow}
        stepped = "worker_clock" in settings.kinds
        return Pool(
            {kind: count for kind, count in counts.items() if count},
            (SteppedPoolSettings if stepped else DeadlyPoolSettings)(
                url=url,
                artifacts=artifacts,
                lease_ms=settings.lease_ms,
                fallback_entries_max=settings.fallback_entries_max,
                log_file=log,
            ),
        )

    def _warm_up(self, url: str) -> None:
        """So that scripts, groups and counters are there when the memory is first looked at."""
        sample = Sample.load(self._sample_path)
        settings = ProducerSettings(url=url, seen_window_ms=1_000)
        with Producer(settings=settings) as producer:
            contexts = (sample.context(i) for i in range(_WARM_UP))
            for _, answer in producer.predict_many(contexts, options=Options(lane="general")):
                if isinstance(answer, Exception):
                    raise RuntimeError(f"the service does not work without any fault: {answer}")

    def _injector(
        self, server: ChaosServer, proxy: Proxy, pool: Pool, client: redis.Redis, folder: Path
    ) -> Injector:
        settings, agenda, recoveries = self._settings, Agenda(), Recoveries()
        context = np.full((5, 768), 768**-0.5, dtype=np.float32)
        self._poison = Poison(self._keys, context, settings.seen_window_ms)
        workers = WorkerFaults(pool, client, recoveries, agenda.after, settings.lease_ms, folder / CLOCK)
        self._server = ServerFaults(
            server, client, agenda.after, settings.lease_ms, lambda: self._flush(client)
        )
        return Injector(
            workers, self._server, proxy, self._victims, self._poison, self._tell, settings.entries_max,
            recoveries, agenda, client,
        )  # fmt: skip

    def _flush(self, client: redis.Redis) -> Flushed:
        """FLUSHALL, and everybody is told what they need not wait for."""
        clients = [one.status["client"] for one in self._producers if "client" in one.status]
        taken = self._books.flush(client, [*clients, CLIENT])
        at_s = time.time()
        for one in self._producers:
            mine = [name for name in taken.ids if name.startswith(f"{one.prefix}-")]
            one.tell(f"flushed {at_s} {' '.join(mine)}")
        self._poison.flushed(taken)
        return taken

    def _doomed_config(self, url: str) -> dict[str, Any]:
        return {"url": url, "sample": str(self._sample_path), "entries_max": self._settings.entries_max}

    def _tell(self, choice: float, command: str) -> None:
        self._producers[int(choice * len(self._producers))].tell(command)

    def _start_producers(self, direct: str, through_proxy: str, folder: Path) -> None:
        settings = self._settings
        if "kill_producer" in settings.kinds:
            self._victims.start()
        for i in range(settings.producers):
            config = {
                "url": direct if i % 2 else through_proxy,
                "prefix": f"p{i}",
                "seed": settings.seed * 1000 + i,
                "asyncio": i % 2 == 1,
                "requests": settings.requests // settings.producers,
                "rate": settings.rate / settings.producers,
                "entries_max": settings.entries_max,
                "seen_window_ms": settings.seen_window_ms,
                "command_timeout_ms": settings.lease_ms // 2,
                "answers_s_max": _ANSWERS_S_MAX,
                "linger_s": 3 * settings.lease_ms / 1000,
                "sample": str(self._sample_path),
                "expected": str(folder / "expected.npz"),
            }
            self._producers.append(ProducerProcess(config, folder / "producers.log"))

    def _chaos(self, injector: Injector, pool: Pool) -> float:
        """The faults, until time or requests are used up; returns how long."""
        settings, began_s = self._settings, time.monotonic()
        faults = self._due_faults()
        told_s = began_s
        while (now_s := time.monotonic()) - began_s < settings.seconds and self._sending():
            for fault in faults:
                if fault is None:
                    break
                line = injector.inject(fault)
                self._say(f"{time.monotonic() - began_s:7.2f} {line}")
            self._tick(injector, pool)
            if now_s - told_s > 10:
                told_s = now_s
                self._say(f"{now_s - began_s:7.2f} -- {[one.status for one in self._producers]}")
            time.sleep(_TICK_S)
        return time.monotonic() - began_s

    def _due_faults(self) -> Iterator[Fault | None]:
        """The schedule's next fault when it is due, else None; nothing after the last."""
        while not all(one.status for one in self._producers):  # they are still loading
            yield None
        due_s = time.monotonic()
        for fault in schedule(self._settings.seed, self._settings.fault_every_s, self._settings.kinds):
            if fault.number >= self._settings.faults:
                return
            due_s = max(due_s, time.monotonic() - 1.0) + fault.gap_s
            while time.monotonic() < due_s:
                yield None
            yield fault
            yield None  # one a turn

    def _sending(self) -> bool:
        each = self._settings.requests // self._settings.producers
        return any(one.alive and one.status.get("sent", 0) < each for one in self._producers)

    def _tick(self, injector: Injector, pool: Pool) -> None:
        injector.tick()
        if time.monotonic() - self._pooled_s > 0.2:
            self._pooled_s = time.monotonic()
            pool.poll()

    def _settle(self, injector: Injector, pool: Pool) -> None:
        """No more faults: the producers get their answers and report."""
        for one in self._producers:
            one.tell("stop")
        give_up_s = time.monotonic() + _ANSWERS_S_MAX + 30
        while any(one.alive and one.result is None for one in self._producers):
            if time.monotonic() > give_up_s:
                self._say("a producer does not come to an end")
                break
            self._tick(injector, pool)
            time.sleep(_TICK_S)
        while injector.recoveries.watching and time.monotonic() < give_up_s:
            self._tick(injector, pool)
            time.sleep(_TICK_S)

    def _after(self, client: Any, injector: Injector, pool: Pool, before: dict[str, Any]) -> dict[str, Any]:
        """Waits until the queue is empty, and looks at what the server holds."""
        # A request that hangs its workers ends with the fifth of them, each of which has to load.
        give_up_s = time.monotonic() + _ANSWERS_S_MAX
        while leftovers(client, self._keys) and time.monotonic() < give_up_s:
            self._tick(injector, pool)
            time.sleep(0.1)
        self._books.end(client)
        poison = self._poison.verdict(client) | {"unsent": self._poison.waiting}
        victims = self._victims.verdict(client, self._keys)
        client.delete(self._keys.replies(CLIENT))
        left = await_empty(client, self._keys, self._settings.seen_window_ms / 1000 + 60)
        client.execute_command("MEMORY", "PURGE")
        return {
            "settings": _plain(self._settings),
            "faults": dict(sorted(injector.counts.items())),
            "server_restarts_s": self._server.restarts_s,
            "recovery": injector.recoveries.result(),
            "producers": [one.result for one in self._producers],
            "poison": poison,
            "victims": victims,
            "books": {"wrong": self._books.wrong, "flushed": self._books.flushed},
            "left_over": left,
            "stats": dict(sorted(self._books.stats.items())),
            "memory": {"before": before, "after": snapshot(client)},
        }

    def _keep_logs(self, folder: Path) -> None:
        target = self._settings.keep_logs or Path(tempfile.mkdtemp(prefix="amn-chaos-logs-"))
        target.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.log"):
            shutil.copy(path, target)
        print(f"chaos: the logs are in {target}", file=sys.stderr)


def _plain(settings: ChaosSettings) -> dict[str, Any]:
    names = ("seed", "kinds", "rate", "fault_every_s", "producers", "amn", "fallback", "shadow", "lease_ms")
    names += (
        "fallback_entries_max",
        "entries_max",
        "seen_window_ms",
        "fsync",
        "seconds",
        "requests",
        "faults",
    )
    return {name: getattr(settings, name) for name in names}


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
