"""A client program as a process, driven line by line, and a way from it to the server that can be broken."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import quote

from producer.address import TCP, UNIX, parse_address
from producer.errors import InvalidSettings

#: Beyond the time that a command itself is given.
PATIENCE_S = 20.0
_PIECE_BYTES = 256 * 1024
#: Commands, and fields of a request, that a program may be without.
_OPTIONAL, _OPTIONAL_FIELDS = {"provisional", "cancel", "truth"}, {"ends", "encoder"}
#: The seconds in an answer to TIME.
_SECONDS = re.compile(rb"(?<=\*2\r\n\$10\r\n)\d{10}(?=\r\n\$[1-6]\r\n\d{1,6}\r\n)")


class Failed(Exception):
    """The client does something else than it should; the text says what."""


class LeftOut(Exception):
    """The program, or the way to this server, does not have what a point needs."""


def expect(holds: object, text: str) -> None:
    """Raises Failed with this text when it does not hold."""
    if not holds:
        raise Failed(text)


class Program:
    """A process that carries out the commands of docs/conformance.md; its standard error is ours."""

    def __init__(self, words: Sequence[str]) -> None:
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                start_new_session=True,  # so that what it starts ends with it
            )
        except OSError as error:
            raise InvalidSettings(f"the program {words[0]!r} cannot be started: {error.strerror}") from None
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Has one command carried out, and gives its answer, which may be an error.

        Raises:
            Failed: No line came in time, or one that is no JSON object, or the process ended.
            LeftOut: The program does not have the command, or a field, and need not.
        """
        assert self._process.stdin is not None
        patience_s = PATIENCE_S + fields.get("timeout_ms", 0) / 1000
        line, answer = "", None
        late = threading.Timer(patience_s, self._end)  # a program that reads no more lets no line be written
        late.start()
        with suppress(OSError, queue.Empty):
            self._process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=patience_s)
        late.cancel()
        with suppress(ValueError):
            answer = json.loads(line)
        if not isinstance(answer, dict):
            raise Failed(
                f"{do}: no JSON object on a line within {patience_s:.0f} s, but {line.strip()[:80]!r}"
            )
        optional = [(answer, do in _OPTIONAL)]
        for result, request in zip(answer.get("results", ()), fields.get("requests", ()), strict=False):
            optional.append((result, not _OPTIONAL_FIELDS.isdisjoint(request)))
        for one, may_be in optional:
            if may_be and one.get("error", {}).get("code") == "unsupported":
                raise LeftOut(str(one["error"].get("message", "")))
        return answer

    def done(self, do: str, **fields: Any) -> Any:
        """Works like `ask`, where no error is expected."""
        answer = self.ask(do, **fields)
        expect("error" not in answer, f"{do}: {answer.get('error')}")
        return answer

    def close(self) -> int:
        """Ends it by the command, and gives its exit code."""
        self.done("close")
        try:
            return self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"the process goes on {PATIENCE_S:.0f} s after `close`") from None

    def kill(self) -> None:
        """Ends it at once."""
        self._end()
        self._process.communicate()

    def _end(self) -> None:
        with suppress(ProcessLookupError, PermissionError):  # or, on macOS, all are dead
            os.killpg(self._process.pid, signal.SIGKILL)


class Way:
    """Listens on loopback, and passes bytes to the server and back.

    Attributes:
        possible: False where the way is encrypted, or sentinels or a cluster name it.
        url: For the program; the server's own where it is not possible.
        away: While it is True, connections are closed at once.
        ahead_s: So far ahead of itself the clock of the server is shown.
        lost: Answers that were lost since the last `lose`.
    """

    def __init__(self, url: str) -> None:
        self._address = address = parse_address(url)
        self.possible, self.url = address.kind in (TCP, UNIX) and not address.tls, url
        self._open: list[socket.socket] = []
        self.heal()
        if self.possible:
            self._listener = socket.create_server(("127.0.0.1", 0))
            login = (
                f"{quote(address.username, '')}:{quote(address.password, '')}@" if address.password else ""
            )
            self.url = f"redis://{login}127.0.0.1:{self._listener.getsockname()[1]}/{address.db}"
            threading.Thread(target=self._listen, daemon=True).start()

    def heal(self) -> None:
        """Lets everything pass as it is."""
        self.away, self.ahead_s = False, 0
        self.lose(b"", 0)

    def lose(self, word: bytes, times: int = 1) -> None:
        """Breaks a connection that carried the word as soon as an answer comes on it, so many times."""
        self._word, self._times, self.lost = word, times, 0

    def snap(self, away: bool) -> None:
        """Breaks every connection, and says whether new ones are closed too."""
        self.away = away
        while self._open:
            _shut(self._open.pop())

    def _listen(self) -> None:
        while True:
            near, _ = self._listener.accept()
            if self.away:
                near.close()
                continue
            try:
                far = self._connected()
            except OSError:  # the program sees what it would see without us
                near.close()
                continue
            self._open += [near, far]
            carried: list[bytes] = []  # a word whose answer is to be lost
            for ends, answers in (((near, far), False), ((far, near), True)):
                passing = partial(self._pass, *ends, carried, answers=answers)
                threading.Thread(target=passing, daemon=True).start()

    def _connected(self) -> socket.socket:
        if self._address.kind != UNIX:
            return socket.create_connection(self._address.hosts[0])
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(self._address.path)
        except OSError:
            far.close()
            raise
        return far

    def _pass(
        self, source: socket.socket, target: socket.socket, carried: list[bytes], answers: bool
    ) -> None:
        with suppress(OSError):
            while data := source.recv(_PIECE_BYTES):
                if not answers and self._word and self._word in data:
                    carried.append(self._word)
                if answers and self._word in carried and self.lost < self._times:
                    self.lost += 1
                    break
                if answers and self.ahead_s:
                    data = _SECONDS.sub(lambda found: b"%d" % (int(found[0]) + self.ahead_s), data)
                target.sendall(data)
        _shut(source)
        _shut(target)


def _shut(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
