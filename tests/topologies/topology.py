"""Servers that belong together: sentinels and what they watch, the nodes of a cluster, a CA's files."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers import Server, free_port, need

SLOTS = 16_384
_WAIT_S_MAX = 60.0
#: So that a new replica is in step at once, and its master notices soon when it is not.
_REPLICATION = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


@dataclass(frozen=True)
class Certificates:
    """PEM files of one CA: its own, and those that it signed."""

    ca: str
    other_ca: str
    server: str
    server_key: str
    client: str
    client_key: str


def wait_until(true: Callable[[], Any], what: str) -> None:
    """Looks again and again; servers have no event that a test could wait for."""
    give_up_at_s = time.monotonic() + _WAIT_S_MAX
    while time.monotonic() < give_up_at_s:
        with suppress(redis.RedisError, OSError):
            if true():
                return
        time.sleep(0.02)
    raise AssertionError(f"not within {_WAIT_S_MAX:g} s: {what}")


def plain(port: int) -> redis.Redis:
    """A client that neither waits nor tries again."""
    return redis.Redis(port=port, socket_timeout=5, retry=Retry(NoBackoff(), 0), protocol=2)


def wait_in_step(replica: Server) -> None:
    """Until a replica has all that its master has."""
    with plain(replica.port) as client:
        wait_until(lambda: client.info("replication")["master_link_status"] == "up", "a replica in step")


class Watched:
    """A master, its replica, and three sentinels that watch them as `mymaster`.

    Attributes:
        master, replica: As they began.
        place: The sentinels, as a URL names them.
    """

    def __init__(self, kind: str) -> None:
        self._undo = ExitStack()
        program = need(kind)
        try:
            self.master = self._started(Server(kind, tcp=True, arguments=_REPLICATION))
            follow = ("--replicaof", "127.0.0.1", str(self.master.port))
            self.replica = self._started(Server(kind, tcp=True, arguments=(*_REPLICATION, *follow)))
            with plain(self.replica.port) as client:
                wait_until(
                    lambda: client.info("replication")["master_link_status"] == "up", "a replica in step"
                )
            self._ports = [self._sentinel(program) for _ in range(3)]
            self.place = ",".join(f"127.0.0.1:{port}" for port in self._ports)
            self.url = f"redis+sentinel://{self.place}/mymaster/0"
            for port in self._ports:
                wait_until(lambda port=port: self._sees_all(port), "three sentinels that know each other")
        except BaseException:
            self.close()
            raise

    def promoted(self) -> bool:
        """Whether the replica has become the master, for the sentinels and for itself."""
        with plain(self._ports[0]) as sentinel, plain(self.replica.port) as replica:
            _, port = sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")
            return int(port) == self.replica.port and replica.info("replication")["role"] == "master"

    def close(self) -> None:
        """Ends everything and removes its files."""
        self._undo.close()

    def _started(self, server: Server) -> Server:
        self._undo.callback(server.close)
        return server.start()

    def _sentinel(self, program: str) -> int:
        folder, port = Path(tempfile.mkdtemp(prefix="amn-")), free_port()
        self._undo.callback(rmtree, folder, ignore_errors=True)
        (folder / "conf").write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
            f"sentinel monitor mymaster 127.0.0.1 {self.master.port} 2\n"
            "sentinel down-after-milliseconds mymaster 600\nsentinel failover-timeout mymaster 3000\n"
        )
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([program, str(folder / "conf"), "--sentinel"], stdout=log, stderr=log)
        self._undo.callback(process.wait)
        self._undo.callback(process.kill)
        return port

    def _sees_all(self, port: int) -> bool:
        with plain(port) as sentinel:
            flat = sentinel.execute_command("SENTINEL", "MASTER", "mymaster")
            state = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
            seen = {_text(name): _text(value) for name, value in state.items()}
            return (seen["num-other-sentinels"], seen["num-slaves"]) == ("2", "1")


class Cluster:
    """Three masters with a third of the slots each, and one replica of the node that owns `slot`.

    Attributes:
        nodes: The masters.    owner, replica: Of `slot`.
        place: The masters, as a URL names them.
    """

    def __init__(self, kind: str, slot: int) -> None:
        self._undo = ExitStack()
        self.slot = slot
        try:
            *self.nodes, self.replica = [self._node(kind) for _ in range(4)]
            self.place = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
            self.url = f"redis+cluster://{self.place}"
            self._form()
        except BaseException:
            self.close()
            raise

    @property
    def owner(self) -> Server:
        """The master that owned the slot when the cluster was made."""
        return self.nodes[self.slot * 3 // SLOTS]

    def owner_port(self, port: int) -> int:
        """Who owns the slot now, as the node at `port` sees it."""
        for first, last, (_, owner, *_), *_ in self.ask(port, "CLUSTER", "SLOTS"):
            if first <= self.slot <= last:
                return int(owner)
        raise AssertionError(f"nobody owns slot {self.slot}")

    def ask(self, port: int, *words: Any) -> Any:
        """One command to one node; the raw answer."""
        with plain(port) as client:
            client.response_callbacks.clear()
            return client.execute_command(*words)

    def migrate(self, to: Server) -> None:
        """Moves the slot, key by key, as the protocol has it."""
        source = next(node for node in self.nodes if node.port == self.owner_port(to.port))
        if source is to:
            return
        self.begin_move(source, to)
        while keys := self.ask(source.port, "CLUSTER", "GETKEYSINSLOT", self.slot, 10):
            self.ask(source.port, "MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *keys)
        for node in (to, source, *self.nodes):
            self.ask(node.port, "CLUSTER", "SETSLOT", self.slot, "NODE", self._id(to))

    def begin_move(self, source: Server, to: Server) -> None:
        """From here on a key of the slot is at one of the two nodes."""
        self.ask(to.port, "CLUSTER", "SETSLOT", self.slot, "IMPORTING", self._id(source))
        self.ask(source.port, "CLUSTER", "SETSLOT", self.slot, "MIGRATING", self._id(to))

    def close(self) -> None:
        """Ends everything and removes its files."""
        self._undo.close()

    def _node(self, kind: str) -> Server:
        words = (
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "1000",
            "--cluster-port",
            str(free_port()),
        )
        server = Server(
            kind, tcp=True, arguments=(*words, *_REPLICATION, "--cluster-replica-validity-factor", "0")
        )
        self._undo.callback(server.close)
        return server.start()

    def _id(self, server: Server) -> str:
        return _text(self.ask(server.port, "CLUSTER", "MYID"))

    def _form(self) -> None:
        for number, node in enumerate([*self.nodes, self.replica], 1):
            self.ask(node.port, "CLUSTER", "SET-CONFIG-EPOCH", number)
        for number, node in enumerate(self.nodes):
            first, last = -(-number * SLOTS // 3), -(-(number + 1) * SLOTS // 3) - 1
            self.ask(node.port, "CLUSTER", "ADDSLOTSRANGE", first, last)
        first_node = self.nodes[0]
        for node in (*self.nodes[1:], self.replica):
            bus = node.arguments[node.arguments.index("--cluster-port") + 1]
            self.ask(first_node.port, "CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        everybody = (*self.nodes, self.replica)
        for node in everybody:
            wait_until(lambda node=node: self._knows(node, len(everybody)), "nodes that know each other")
        self.ask(self.replica.port, "CLUSTER", "REPLICATE", self._id(self.owner))
        wait_in_step(self.replica)
        wait_until(lambda: self._serving(first_node) == 2, "a replica that the others know of")

    def _knows(self, node: Server, count: int) -> bool:
        text = _text(self.ask(node.port, "CLUSTER", "INFO"))
        return "cluster_state:ok" in text and f"cluster_known_nodes:{count}" in text

    def _serving(self, node: Server) -> int:
        for first, last, *serving in self.ask(node.port, "CLUSTER", "SLOTS"):
            if first <= self.slot <= last:
                return len(serving)
        return 0


def _text(value: bytes | str | int) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
