"""Faults of the server and of the way to it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import redis

from ops.commands.acl import acl_line
from ops.health.keys import repair
from producer.keys import Keys
from producer.settings import ProducerSettings

from ..hostile import DEEDS, Hostile, selectors
from .books import Flushed
from .server import ChaosServer
from .settings import ROOT, Fault

_FREEZE_S = 5.0
_HOSTILE, _PASSWORD = "hostile", "sixteen-or-more-letters"
#: What expires lives on for so long, and is waited for at the end.
_BACK_S_MAX = 30.0
After = Callable[[float, Callable[[], None]], None]


class ServerFaults:
    """Each method injects one fault, and says what it did; "" when it could not.

    Attributes:
        down: Whether the server was killed and not started again yet.
        restarts_s: How long it took to answer after each restart.
    """

    def __init__(
        self,
        server: ChaosServer,
        client: redis.Redis,
        after: After,
        lease_ms: int,
        flush: Callable[[], Flushed],
    ) -> None:
        self.down = False
        self.restarts_s: list[float] = []
        self._server = server
        self._client = client
        self._after = after
        self._lease_s = lease_ms / 1000
        self._flush = flush
        self._clock_s = 0.0

    def kill_server(self, fault: Fault) -> str:
        """SIGKILL; a while later it starts again on its append-only file."""
        if self.down:
            return ""
        self._server.kill()
        self.down = True
        self._after(fault.extent, self._restart)
        return f"for {fault.extent:.2f} s"

    def stall_server(self, fault: Fault) -> str:
        """Stopped, with its connections open: about as long as a lease."""
        return self._stop_for(self._lease_s * (0.5 + 1.5 * fault.extent))

    def freeze_server(self, _: Fault) -> str:
        """The same for five seconds: longer than any client's patience."""
        return self._stop_for(_FREEZE_S)

    def drop_clients(self, _: Fault) -> str:
        """The server closes every connection."""
        with contextlib.suppress(redis.RedisError, OSError):
            dropped = self._client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            return f"{dropped} connections"
        return ""

    def out_of_memory(self, fault: Fault) -> str:
        """The limit below what is in use, under noeviction; then no limit again."""
        lasts_s = 0.2 + 0.8 * fault.extent
        with contextlib.suppress(redis.RedisError, OSError):
            used = int(self._client.info("memory")["used_memory"])
            self._client.config_set("maxmemory", int(used * 0.9))
            self._after(lasts_s, self._enough_memory)
            return f"for {lasts_s:.2f} s"
        return ""

    def flush(self, _: Fault) -> str:
        """FLUSHALL: requests, answers, groups, ids and counters are gone."""
        with contextlib.suppress(redis.RedisError, OSError):
            return f"with {len(self._flush().payloads)} requests waiting"
        return ""

    def server_clock(self, fault: Fault) -> str:
        """Its wall clock goes back; or ahead, by less than ids are remembered for."""
        step_s = -5.0 - 10.0 * fault.extent if self._clock_s > -_BACK_S_MAX else 3.0
        self._clock_s += step_s
        self._server.step_clock(self._clock_s)
        return f"{step_s:+.1f} s"

    def hostile(self, fault: Fault) -> str:
        """A producer that writes what its rights allow to every key, and an operator who mends it later."""
        if self.down:
            return ""
        with contextlib.suppress(redis.RedisError, OSError):
            line = acl_line("producer", queues=["main"], user=_HOSTILE, password=_PASSWORD)
            self._client.execute_command("ACL", "SETUSER", *selectors(line))
            with redis.Redis(
                unix_socket_path=str(self._server.socket), username=_HOSTILE, password=_PASSWORD
            ) as client:
                hostile = Hostile(client, f"{_HOSTILE}.x", fault.number, DEEDS[:5])
                for _ in range(5 + int(30 * fault.extent)):
                    hostile.act()
                client.delete(Keys().replies(f"{_HOSTILE}.x"))
            self._after(0.5 + fault.choice, self._mend)
            return f"with {hostile.done} deeds, {hostile.refused} refused"
        return ""

    def _mend(self) -> None:
        """As an operator who tries until it is done."""
        try:
            if not self.down:
                repair(self._client, ProducerSettings())
                return
        except (redis.RedisError, OSError):
            pass
        self._after(1.0, self._mend)

    def _restart(self) -> None:
        self.restarts_s.append(self._server.start())
        self.down = False

    def _stop_for(self, lasts_s: float) -> str:
        if self.down:
            return ""
        self._server.send(signal.SIGSTOP)
        time.sleep(lasts_s)  # nothing else can be done meanwhile anyway
        self._server.send(signal.SIGCONT)
        return f"for {lasts_s:.2f} s"

    def _enough_memory(self) -> None:
        if self.down:
            return  # it starts again without a limit
        with contextlib.suppress(redis.RedisError, OSError):
            self._client.config_set("maxmemory", 0)


class Proxy:
    """The proxy process.

    Attributes:
        url: Where clients find the server through it.
    """

    def __init__(self, socket: Path, log: Path) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.proxy", str(socket)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.url = f"redis://127.0.0.1:{int(self._process.stdout.readline())}/0"

    def cut_replies(self, _: Fault) -> str:
        """Each connection's next reply comes by half, and then the connection is reset."""
        self._tell("cut")
        return "at the next reply of each connection"

    def read_cut(self, fault: Fault) -> str:
        """Large replies, which are the workers' reads, are cut again and again."""
        lasts_s = 0.5 + 2.0 * fault.extent
        self._tell(f"cut_large {lasts_s}")
        return f"for {lasts_s:.2f} s"

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n".encode())
        self._process.stdin.flush()

    def close(self) -> None:
        """Ends it. Idempotent."""
        self._process.kill()
        self._process.wait()
