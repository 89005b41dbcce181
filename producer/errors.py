"""Every error a client can see, each with a stable `code` that also crosses the wire.

The code is the name of the class in small letters: `QueueFull` is `queue_full`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


class QueueError(Exception):
    """Base of all errors of the queue.

    Attributes:
        code: Stable name; the same on the wire, in logs and in counters.
        retryable: Whether the same call may succeed later, unchanged.
        accepted: Raised by `submit_many`: the handles of the requests that did get in, in order. In
            another process, where a handle is of no use, their ids.
    """

    code = "queue_error"
    retryable = False
    accepted: Sequence[Any] = ()

    def __init_subclass__(cls) -> None:
        if "code" not in vars(cls):
            cls.code = re.sub(r"\B(?=[A-Z])", "_", cls.__name__).lower()


class InvalidSettings(QueueError, ValueError):
    """A setting, or the server's URL, cannot be used."""


class InvalidRequest(QueueError):
    """The request breaks the contract; nothing was sent."""


class BadShape(InvalidRequest):
    """The context is not exactly five vectors of 768 numbers."""


class NotFinite(InvalidRequest):
    """The context holds NaN or infinity."""


class BadNorm(InvalidRequest):
    """A context vector's norm is outside 1 +- 1e-3."""


class UnknownLane(InvalidRequest):
    """The lane is not in the list that the service knows."""


class UnknownEncoder(InvalidRequest):
    """The vectors come from another encoder than the model was trained on."""


class PayloadTooLarge(InvalidRequest):
    """The encoded request is over the payload limit."""


class WireError(QueueError):
    """Bytes that are not a message of this wire format."""


class Undecodable(WireError):
    """Not msgpack, truncated, or a field missing or of the wrong type."""


class UnsupportedVersion(WireError):
    """A wire version that this side does not read."""


class QueueFull(QueueError):
    """The queue is at its limit of entries or bytes; the request was not appended.

    Attributes:
        retry_after_ms: How long to wait before the next try.
    """

    retryable = True

    def __init__(self, message: str, retry_after_ms: int = 100) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DuplicateRequest(QueueError):
    """A request with this id was enqueued before, within the window; it is not run again.

    Its answer goes to whoever enqueued it first.
    """


class DeadlineExceeded(QueueError):
    """The deadline passed before an answer was computed."""


class Cancelled(QueueError):
    """The request was cancelled by its producer."""


class InferenceFailed(QueueError):
    """A worker could not compute an answer for this request."""


class DeadLettered(QueueError):
    """The request went to the dead letter stream."""


class ResultTimeout(QueueError):
    """The caller's wait ended first, and the answer may still arrive; or it is long overdue, and lost."""

    retryable = True


class RequestLost(QueueError):
    """The server has neither the request nor an answer to it.

    It was flushed, or failed over without its last writes, or dropped an answer that nobody read in time.
    """

    retryable = True


class ProducerClosed(QueueError):
    """The producer was closed while, or before, the call ran; or it is another process's or event loop's."""


class ServerError(QueueError):
    """The Redis server could not serve the command."""


class ServerUnavailable(ServerError):
    """The server cannot be reached, is loading, or failed over.

    Attributes:
        maybe_done: Whether the server may have carried the command out.
    """

    retryable = True
    maybe_done = False


class ServerOutOfMemory(ServerError):
    """The server refused to store more (maxmemory reached)."""

    retryable = True


class StreamUnusable(ServerError):
    """The queue's stream takes no entry any more: its last id is used up, or it is no stream."""


class AuthenticationFailed(ServerError):
    """Wrong user or password, or the user may not run this command."""


class TlsFailed(ServerError):
    """No encrypted connection: the certificate, its name, or a side that does not speak TLS."""


def _leaves(cls: type[QueueError]) -> list[type[QueueError]]:
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in _leaves(sub))]


BY_CODE: dict[str, type[QueueError]] = {cls.code: cls for cls in _leaves(QueueError)}


def error_from_code(code: str, message: str, *, retryable: bool | None = None) -> QueueError:
    """Builds the error that a failure reply names.

    A code of a later version gives an InferenceFailed that keeps that code.
    """
    error = BY_CODE.get(code, InferenceFailed)(message)
    error.code = code
    if retryable is not None:
        error.retryable = retryable
    return error
