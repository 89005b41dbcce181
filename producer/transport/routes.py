"""Finds the node to talk to, where the URL names sentinels or a cluster.

A queue's keys share one slot, so that one node serves all of them. A client is an ordinary one whose
connections ask where to go each time they are opened, and close when the node says that it is the wrong one
(any more). Who called tries again, as after any broken connection, and the next connection asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import redis
import redis.asyncio
from redis import exceptions as driver

from producer.transport.forks import Kept
from producer.transport.verbs import Verb, run, run_async

Node = tuple[str, int]
#: An answer of a node that was asked, and that node: who serves, if anybody, and whom else to ask.
Reading = Callable[[Any, Node], tuple[Node | None, list[Node]]]

_FAILED_OVER = (driver.ReadOnlyError, driver.ClusterDownError, driver.MasterDownError)
#: The same as text: before version 6 the driver knew these only within its own cluster client.
_OTHER_NODE, _DOWN = ("MOVED ", "ASK "), ("CLUSTERDOWN", "MASTERDOWN")
_ASKED_MAX = 64


class Elsewhere(driver.ConnectionError):
    """The node at the other end does not serve this queue now; the connection was closed."""


def other_node(error: Exception) -> bool:
    """True if a node of a cluster says that another one has the slot, now or for a while."""
    return isinstance(error, driver.AskError) or str(error).startswith(_OTHER_NODE)


def failed_over(error: Exception) -> bool:
    """True if a node says that it may not, or cannot, serve what it served."""
    return isinstance(error, _FAILED_OVER) or str(error).startswith(_DOWN)


class Route:
    """The nodes to ask, in this order, the question, and how to read its answer; `what` is for messages."""

    def __init__(self, nodes: Sequence[Node], question: tuple[str, ...], read: Reading, what: str) -> None:
        self.question = question
        self.nodes = list(nodes)
        self._first = list(nodes)
        self._read = read
        self._what = what

    def heard(self, node: Node, answer: Any) -> Node | None:
        """Reads an answer. The node that gave it is asked last the next time: its view may have been old."""
        found, known = self._read(answer, node)
        others = [other for other in dict.fromkeys([*self._first, *known]) if other != node]
        self.nodes = [*others[:_ASKED_MAX], node]
        return found

    def nobody(self, last: Exception | None) -> Exception:
        """The error when nobody named a node: they do not let us ask, or none knows."""
        if isinstance(last, driver.AuthenticationError | driver.NoPermissionError):
            return last
        why = f"the last error: {last}" if last else f"{len(self.nodes)} were asked, and none knows"
        return driver.ConnectionError(f"no node serves {self._what} now: {why}")


def sentinel_route(nodes: Sequence[Node], service: str) -> Route:
    """The way to the master of `service`."""

    def read(answer: Any, _: Node) -> tuple[Node | None, list[Node]]:
        return ((_text(answer[0]), int(answer[1])) if answer else None), []

    question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
    return Route(nodes, question, read, f"as master of {service!r}")


def cluster_route(nodes: Sequence[Node], slot: int) -> Route:
    """The way to the node that owns `slot`."""

    def read(answer: Any, asked: Node) -> tuple[Node | None, list[Node]]:
        found, known = None, []
        for first, last, *serving in answer:
            # A node that does not know its own address leaves it out: it is the one that was asked.
            addresses = [(_text(host) or asked[0], int(port)) for host, port, *_ in serving]
            known += addresses
            if first <= slot <= last and addresses:
                found = addresses[0]  # the owner; its replicas follow
        return found, known

    return Route(nodes, ("CLUSTER", "SLOTS"), read, f"slot {slot}")


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


class _Routed:
    """Mixin of the driver's connections, which ask for the way each time they are opened."""

    def __init__(
        self, *, route: Route | None = None, ask: dict[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._route, self._ask = route, ask or {}

    def _asking(self, route: Route) -> Verb[None]:
        """Asks one node after the other, and goes where it is told."""
        last: Exception | None = None
        for host, port in list(route.nodes):
            connection: Any = type(self)(host=host, port=port, **self._ask)
            try:
                yield (connection.connect,)
                yield connection.send_command, *route.question
                found = route.heard((host, port), (yield (connection.read_response,)))
            except (driver.RedisError, OSError) as error:
                last = error
                continue
            finally:
                yield (connection.disconnect,)
            if found:
                self.host, self.port = found
                return
        raise route.nobody(last)

    def _is_elsewhere(self, error: Exception) -> bool:
        # A cluster behind a URL that names one server: that is not going to pass.
        return failed_over(error) or (other_node(error) and self._route is not None)


class _ThreadRouted(_Routed):
    def _connect(self) -> Any:
        if self._route is not None:
            run(self._asking(self._route))
        return super()._connect()  # type: ignore[misc]

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        """Reads as the driver does, and leaves a node that is not the right one."""
        try:
            return super().read_response(*arguments, **options)  # type: ignore[misc]
        except driver.ResponseError as error:
            if not self._is_elsewhere(error):
                raise
            self.disconnect()  # type: ignore[attr-defined]
            raise Elsewhere(str(error)) from error


class _AsyncRouted(_Routed):
    async def _connect(self) -> None:
        if self._route is not None:
            await run_async(self._asking(self._route))
        await super()._connect()  # type: ignore[misc]

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        """Reads as the driver does, and leaves a node that is not the right one."""
        try:
            return await super().read_response(*arguments, **options)  # type: ignore[misc]
        except driver.ResponseError as error:
            if not self._is_elsewhere(error):
                raise
            await self.disconnect(nowait=True)  # type: ignore[attr-defined]
            raise Elsewhere(str(error)) from error


def _connections(module: Any, routed: type) -> tuple[type, type, type]:
    return (
        type("UnixConnection", (Kept, module.UnixDomainSocketConnection), {}),
        type("TcpConnection", (Kept, routed, module.Connection), {}),
        type("TlsConnection", (Kept, routed, module.SSLConnection), {}),
    )


#: The connections of the driver's pools: to a socket's file, over TCP, over TLS.
CONNECTIONS = _connections(redis, _ThreadRouted)
ASYNC_CONNECTIONS = _connections(redis.asyncio, _AsyncRouted)
