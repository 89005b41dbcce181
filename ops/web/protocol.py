"""HTTP/1.1 of one connection, by uvicorn, with limits for clients that are slow or send no end of headers.

uvicorn itself waits for ever for the rest of a request. Every refusal here is JSON with `error` and `code`,
like all others of the gateway.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from amn.output import strict_json

#: A request line and all headers have come within this time of the connection, or of their first byte.
HEAD_S_MAX = 10.0
#: A body has come within this time of its headers.
BODY_S_MAX = 30.0
#: Bytes of headers, of trailers, and of whatever else comes without being part of a body.
HEAD_BYTES_MAX = 32 * 1024


class LimitedProtocol(HttpToolsProtocol):
    """One connection; `limit_concurrency` of its server is the most connections at a time."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._connections_max, self.limit_concurrency = self.limit_concurrency, None
        self._timer: asyncio.TimerHandle | None = None
        self._held_bytes, self._moved_on = 0, False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for a request; where there is no room, the one that waits longest makes some."""
        super().connection_made(transport)
        if self._connections_max is not None and len(self.connections) > self._connections_max:
            waiting = [(timer.when(), one) for one in self._others() if (timer := one.waits)]
            room = f"{self._connections_max} connections are open; retry"
            if waiting:
                min(waiting, key=lambda pair: pair[0])[1].leave(503, "too_many_connections", room)
            else:
                self._refuse(503, "too_many_connections", room)
        if not transport.is_closing():
            self._wait(HEAD_S_MAX)

    @property
    def waits(self) -> asyncio.TimerHandle | None:
        """The timer that ends the wait for the rest of a request, or for the next one; None in between."""
        return self._timer or self.timeout_keep_alive_task

    def leave(self, status: int, code: str, text: str) -> None:
        """Closes; says why if a part of a request is here, since an earlier answer is taken for another's."""
        begun = self.cycle is not None and not self.cycle.response_complete
        if begun or self._held_bytes:
            self._refuse(status, code, text)
        else:
            self.transport.close()

    def _others(self) -> list[LimitedProtocol]:
        return [one for one in cast("set[Any]", self.connections) if one is not self]

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait."""
        self._wait(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes some bytes; refuses them when the head of a request grows too long."""
        if self.transport.is_closing():
            return
        self._moved_on = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        self._held_bytes = 0 if self._moved_on else self._held_bytes + len(data)
        if self._held_bytes > HEAD_BYTES_MAX:
            self._refuse(431, "head_too_large", f"the limit for headers is {HEAD_BYTES_MAX} bytes")
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._timer is None and self.timeout_keep_alive_task is None:
            self._wait(HEAD_S_MAX)

    def on_headers_complete(self) -> None:
        """Begins to wait for the body."""
        if sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES_MAX:
            self._refuse(431, "head_too_large", f"the limit for headers is {HEAD_BYTES_MAX} bytes")
            return
        super().on_headers_complete()
        self._wait(BODY_S_MAX)

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        self._moved_on = True
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends the wait: the request is here."""
        self._moved_on = True
        if not self.transport.is_closing():
            super().on_message_complete()
        self._wait(None)

    def send_400_response(self, msg: str) -> None:
        """Refuses bytes that are not HTTP."""
        self._refuse(400, "bad_http", "the bytes are no valid HTTP/1.1 request")

    def _wait(self, seconds: float | None) -> None:
        """Sets the time within which the next part comes; None waits for nothing."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._too_slow, seconds)

    def _too_slow(self, seconds: float) -> None:
        self.leave(408, "too_slow", f"the rest of the request did not come within {seconds:.0f} s")

    def _refuse(self, status: int, code: str, text: str) -> None:
        """Answers what is being received, unless an earlier answer is still to come, and closes."""
        if self.transport.is_closing():
            return
        self._wait(None)
        cycle = self.cycle
        receiving = cycle is None or cycle.response_complete or (cycle.more_body and not self.pipeline)
        if receiving and not (cycle and cycle.response_started and not cycle.response_complete):
            self.transport.write(_answer(status, code, text))
        self.transport.close()


def _answer(status: int, code: str, text: str) -> bytes:
    body = strict_json({"error": text, "code": code, "retryable": status in (408, 503)}).encode()
    head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    return STATUS_LINE[status] + head + body
