"""Keeps connections that ask for nothing from shutting out people who do: an open port meets both."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

#: Connections at a time; more are refused.
CONNECTIONS_MAX = 256
#: A request, its body included, has come within so long, or its connection ends.
REQUEST_S_MAX = 10.0


class TimedConnection(H11Protocol):
    """A connection that has to ask within `REQUEST_S_MAX`, and sooner where another one wants its place."""

    _asks_until: asyncio.TimerHandle | None = None

    @property
    def asks(self) -> bool:
        """True until a whole request has come."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait; while there is no place, the one that waits longest makes room."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) >= CONNECTIONS_MAX:
            others = [one for one in cast("set[Any]", self.connections) if one.asks and one._asks_until]
            min(others, key=lambda one: one._asks_until.when()).transport.abort()

    def data_received(self, data: bytes) -> None:
        """Ends the waiting with the last byte of a request."""
        super().data_received(data)
        if not self.asks:
            self._end_wait()
        elif self._asks_until is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        self._end_wait()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._asks_until = self.loop.call_later(REQUEST_S_MAX, self.transport.abort)

    def _end_wait(self) -> None:
        if self._asks_until is not None:
            self._asks_until.cancel()
            self._asks_until = None
