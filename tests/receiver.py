"""A local HTTP receiver for alerts: answers as it is told, remembers what came, dies and comes back."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from servers import free_port


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request: its path, headers (lower case), body, and the status that it was answered."""

    path: str
    headers: dict[str, str]
    body: bytes
    status: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """Listens on a loopback port that stays the same over `stop` and `start`.

    Attributes:
        answers: Statuses for the next calls, first to last; 202 when empty. A pair adds headers.
            0 hangs up without an answer.
        delay_s: Before each answer.
        calls: What came, in order.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.answers: list[int | tuple[int, dict[str, str]]] = []
        self.delay_s = 0.0
        self.calls: list[Call] = []
        self._lock = threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> Receiver:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, extra = receiver._next()
                time.sleep(receiver.delay_s)
                with receiver._lock:
                    receiver.calls.append(Call(path=self.path, headers=headers, body=body, status=status))
                if not status:
                    self.close_connection = True
                    return
                try:
                    self.send_response(status)
                    for name, value in extra.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", "2")
                    self.end_headers()
                    self.wfile.write(b"{}")
                except OSError:
                    pass  # whoever called has died

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def accepted(self) -> list[Call]:
        """Calls that were answered with 2xx."""
        with self._lock:
            return [call for call in self.calls if 200 <= call.status < 300]

    def _next(self) -> tuple[int, dict[str, str]]:
        with self._lock:
            answer = self.answers.pop(0) if self.answers else 202
        return answer if isinstance(answer, tuple) else (answer, {})


@contextmanager
def running() -> Iterator[Receiver]:
    receiver = Receiver().start()
    try:
        yield receiver
    finally:
        receiver.stop()
