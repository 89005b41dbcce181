"""A connection for the hot path: one caller, one command, its answer.

The driver's client takes a connection from its pool, counts, times, looks for callbacks and gives
the connection back, for every command, which costs about as much as the round trip itself. A link
keeps one connection of that pool and uses the driver for the rest: connecting, TLS, credentials,
reading.

Commands are written here too. hiredis, the driver's own choice, is no faster for small ones, and grows its
buffer by steps: 2 ms for 64 requests of 15 KB, where joining the pieces takes 0.08 ms. The driver's other
choice, a list of pieces, is a system call for each.
"""

from __future__ import annotations

import hashlib
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import redis
from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import DataError, NoPermissionError, NoScriptError, ResponseError

from producer.transport.verbs import Verb, run

Word = str | int | float | bytes | memoryview
_EMPTY = b"$0\r\n\r\n"


class Words(bytes):
    """A number of words of a command as they go out, for the part that is the same in each call."""

    number: int


class Packer:
    """The driver's `command_packer`: each command becomes one bytes object."""

    def pack(self, *arguments: Any) -> list[bytes]:
        """The command, whose name may hold several words, as the protocol's array of strings."""
        return [joined(arguments)]


def written(*arguments: Any) -> Words:
    """These words, to be used again and again."""
    words = Words(joined(arguments).split(b"\r\n", 1)[1])
    words.number = len(arguments)
    return words


def joined(arguments: tuple[Any, ...]) -> bytes:
    """One command; arguments that are `Words` stand for several."""
    if type(arguments[0]) is str and " " in arguments[0]:
        arguments = (*arguments[0].split(), *arguments[1:])
    count, pieces = len(arguments), [b""]
    for argument in arguments:
        kind = type(argument)
        if kind is bytes:
            data = argument
        elif kind is str:
            if not argument:  # half of what a finished batch says
                pieces.append(_EMPTY)
                continue
            data = argument.encode()
        elif kind is int:
            data = b"%d" % argument
        elif kind is Words:
            count += argument.number - 1
            pieces.append(argument)
            continue
        else:
            data = _encoded(argument)
        pieces += (b"$%d\r\n" % len(data), data, b"\r\n")
    pieces[0] = b"*%d\r\n" % count
    return b"".join(pieces)


def _encoded(argument: Any) -> bytes:
    if isinstance(argument, str):
        return argument.encode()
    if isinstance(argument, bytearray | memoryview):
        return bytes(argument)
    if isinstance(argument, int) and not isinstance(argument, bool):
        return b"%d" % argument
    if isinstance(argument, float):
        return repr(float(argument)).encode()
    raise DataError(f"a command's argument is a {type(argument).__name__}; send bytes, text or a number")


class Link:
    """Not for use by two threads at the same time. Reconnects by itself on the next call.

    Attributes:
        due: Answers that were not read yet.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None
        self.due = 0

    def call(self, *words: Word) -> Any:
        """Sends one command and returns the server's raw answer, or raises the driver's error."""
        [answer] = self.each([words])
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    def each(self, commands: Sequence[tuple[Word, ...]]) -> list[Any]:
        """Sends several commands in one write; returns all answers, an error answer as one of them."""
        try:
            self.send(commands)
            return self.read(len(commands))
        except BaseException:  # the server is not to go on with what nobody waits for
            self.cut()
            raise

    def send(self, commands: Sequence[tuple[Word, ...]]) -> None:
        """Sends several commands in one write; `read` gives their answers, now or later."""
        if self.due:  # whatever interrupted who waited for them: they must not meet this call
            self.cut()
        connection = self._connection = self._connection or self._pool.get_connection()
        self.due = len(commands)
        connection.send_packed_command([b"".join(map(joined, commands))])  # one piece is not copied again

    def ready(self, timeout_s: float) -> bool:
        """Waits so long until an answer begins to come, or the connection ends; whether one of them does.

        What a signal handler raises meanwhile comes out as it is. The driver, in which `read` waits, would
        take a TimeoutError for one of the socket.
        """
        try:
            if self._connection.can_read(0):
                return True
            poller = select.poll()
            poller.register(self._connection._sock, select.POLLIN)
        except (DriverConnectionError, AttributeError, ValueError, TypeError):
            return True  # it was closed: `read` says so
        return bool(poller.poll(timeout_s * 1000))

    def hang_up(self) -> None:
        """Ends the connection under who reads from it, in another thread or in a call below this one."""
        sock = getattr(self._connection, "_sock", None)
        if isinstance(sock, socket.socket):
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # that of TLS would speak to the server

    def read(self, count: int) -> list[Any]:
        """The next answers to what was sent, an error answer as one of them."""
        answers: list[Any] = []
        for _ in range(count):
            try:
                answers.append(self._connection.read_response())
            except ResponseError as error:  # an answer like any other: the connection is in order
                answers.append(error)
            self.due -= 1
        return answers

    def run(self, script: Script, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Runs a script by its hash, and sends its text when the server does not know it."""
        return self.run_words(script, (len(keys), *keys, *arguments))

    def run_words(self, script: Script, words: Sequence[Word]) -> Any:
        """Runs a script on `words`: the number of keys, the keys and the arguments, some of them `Words`."""
        [answer] = self.each([(script.by_hash, *words)])
        if not isinstance(answer, ResponseError):
            return answer
        if not isinstance(answer, NoScriptError):
            raise answer
        try:
            return self.call("EVAL", script.text, *words)
        except NoPermissionError:
            raise ScriptMissing from None

    def load(self, script: Script) -> None:
        """Makes the script known to the server, for users who may only run what it knows."""
        self.call("SCRIPT", "LOAD", script.text)

    def cut(self) -> None:
        """Closes the connection, also under an answer that is due: who reads that meets the driver's error.
        The next call opens it anew."""
        if self._connection is not None:
            self._connection.disconnect()

    def close(self) -> None:
        """Gives the connection back to the pool, closed."""
        if self._connection is not None:
            self.cut()
            self._pool.release(self._connection)
            self._connection, self.due = None, 0


class ScriptMissing(DriverConnectionError):
    """The server does not know the script yet, and this user may not send its text; workers load it soon."""

    def __init__(self, text: str = "the script is not loaded; a worker does that when it connects") -> None:
        super().__init__(text)


class Script:
    """A Lua script, its hash and the words that run it by that."""

    def __init__(self, text: str) -> None:
        self.text = text
        # Redis names scripts by SHA-1; nothing here depends on its strength.
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.by_hash = written("EVALSHA", self.sha)

    def running(self, execute: Callable[..., Any], keys: list[str], arguments: list[Any]) -> Verb[Any]:
        """Runs it by its hash, and sends its text when the server does not know it."""
        words = len(keys), *keys, *arguments
        with suppress(NoScriptError):
            return (yield execute, "EVALSHA", self.sha, *words)
        try:
            return (yield execute, "EVAL", self.text, *words)
        except NoPermissionError:
            raise ScriptMissing from None

    def on(self, client: redis.Redis) -> Callable[[list[str], list[Any]], Any]:
        """The script as a function of keys and arguments, on a connection of the client's pool."""
        execute = client.execute_command
        return lambda keys, arguments: run(self.running(execute, keys, arguments))
