"""Does to the service what the schedule says."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable

import redis

from .poison import Poison
from .recovery import Recoveries
from .server_faults import Proxy, ServerFaults
from .settings import KINDS, Fault
from .victims import Victims
from .worker_faults import WorkerFaults

#: A burst is so many times what the queue takes.
_BURST = (1.7, 3.4)
#: After these, an open recovery measures two faults: the server's, the way's, and those that go from
#: worker to worker.
_OF_ALL = frozenset(
    {"kill_server", "stall_server", "freeze_server", "drop_clients", "cut_replies", "out_of_memory"}
    | {"flush", "read_cut", "segv", "hang", "server_clock"}
)


class Agenda:
    """What is to be done later, by the monotonic clock."""

    def __init__(self) -> None:
        self._items: list[tuple[float, Callable[[], None]]] = []

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Notes something."""
        self._items.append((time.monotonic() + seconds, do))

    def run(self, *, everything: bool = False) -> None:
        """Does what is due, the earliest first; or all of it."""
        now_s = time.monotonic()
        for item in sorted(self._items, key=lambda item: item[0]):
            if everything or item[0] <= now_s:
                self._items.remove(item)
                item[1]()


class Injector:
    """Injects faults, and takes back the ones that last for a time.

    Attributes:
        counts: Faults by kind. A fault that found nobody to harm counts as "nobody".
    """

    def __init__(
        self,
        workers: WorkerFaults,
        server: ServerFaults,
        proxy: Proxy,
        victims: Victims,
        poison: Poison,
        tell: Callable[[float, str], None],
        entries_max: int,
        recoveries: Recoveries,
        agenda: Agenda,
        client: redis.Redis,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.recoveries = recoveries
        self._workers = workers
        self._server = server
        self._victims = victims
        self._poisons = poison
        self._tell = tell
        self._entries_max = entries_max
        self._agenda = agenda
        self._client = client
        owners = (workers, server, proxy, self)
        self._ways: dict[str, Callable[[Fault], str]] = {
            kind: next(getattr(owner, kind) for owner in owners if hasattr(owner, kind)) for kind in KINDS
        }

    def inject(self, fault: Fault) -> str:
        """Does one; returns a line for the log."""
        if fault.kind in _OF_ALL:
            self.recoveries.disturb()
        done = self._ways[fault.kind](fault)
        if fault.kind == "flush" and done:
            self.recoveries.forget()
        self.counts[fault.kind if done else "nobody"] += 1
        return f"{fault.number} {fault.kind} {done or 'nobody'}"

    def tick(self) -> None:
        """What is due, and a look at recoveries; call it every few hundredths of a second."""
        self._agenda.run()
        if self._server.down:
            return
        with contextlib.suppress(redis.RedisError, OSError):
            self._poisons.send(self._client)
            self.recoveries.look(self._client)

    def heal(self) -> None:
        """Takes everything back at once."""
        self._agenda.run(everything=True)
        self._workers.resume_all()
        self._victims.close()
        self.tick()

    def kill_producer(self, _: Fault) -> str:
        """SIGKILL to a producer with requests under way."""
        return self._victims.kill()

    def poison(self, fault: Fault) -> str:
        """A message that no client of ours would send."""
        return self._poisons.make(fault.number, fault.choice)

    def segv(self, fault: Fault) -> str:
        """A request over which its worker crashes in native code."""
        return self._poisons.make_deadly("segv", fault.number, fault.choice)

    def hang(self, fault: Fault) -> str:
        """A request over which its worker waits for ever, while its other threads go on."""
        return self._poisons.make_deadly("hang", fault.number, fault.choice)

    def fill_queue(self, fault: Fault) -> str:
        """More requests at once than the queue takes."""
        low, high = _BURST
        count = int(self._entries_max * (low + (high - low) * fault.extent))
        self._tell(fault.choice, f"burst {count}")
        return f"with {count}"

    def fork(self, fault: Fault) -> str:
        """A producer's process forks a child, which leaves by way of its `with` block."""
        self._tell(fault.choice, "fork")
        return "a producer"
