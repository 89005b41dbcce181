"""Every error a client can see, each with a stable `code` that also crosses the wire.

QueueError
├── InvalidSettings           invalid_settings
├── InvalidRequest            invalid_request       refused before anything was sent
│   ├── BadShape              bad_shape
│   ├── NotFinite             not_finite
│   ├── BadNorm               bad_norm
│   ├── UnknownLane           unknown_lane
│   ├── UnknownEncoder        unknown_encoder
│   └── PayloadTooLarge       payload_too_large
├── WireError
│   ├── Undecodable           undecodable
│   └── UnsupportedVersion    unsupported_version
├── QueueFull                 queue_full            retryable, retry_after_ms
├── DuplicateRequest          duplicate_request     the id is in use, or was of late
├── DeadlineExceeded          deadline_exceeded
├── Cancelled                 cancelled
├── InferenceFailed           inference_failed      the worker could not answer
├── DeadLettered              dead_lettered         given up after too many deliveries
├── RequestLost               request_lost          retryable; the server lost it, or its answer
├── ResultTimeout             result_timeout        the caller stopped waiting; the answer may still come
├── ProducerClosed            producer_closed
└── ServerError
    ├── ServerUnavailable     server_unavailable    retryable
    ├── ServerOutOfMemory     server_out_of_memory  retryable
    ├── StreamUnusable        stream_unusable       `amn doctor --repair` mends it
    ├── AuthenticationFailed  authentication_failed
    └── TlsFailed             tls_failed
"""

from __future__ import annotations

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


class InvalidSettings(QueueError, ValueError):
    """A setting, or the server's URL, cannot be used."""

    code = "invalid_settings"


class InvalidRequest(QueueError):
    """The request breaks the contract; nothing was sent."""

    code = "invalid_request"


class BadShape(InvalidRequest):
    """The context is not exactly five vectors of 768 numbers."""

    code = "bad_shape"


class NotFinite(InvalidRequest):
    """The context holds NaN or infinity."""

    code = "not_finite"


class BadNorm(InvalidRequest):
    """A context vector's norm is outside 1 +- 1e-3."""

    code = "bad_norm"


class UnknownLane(InvalidRequest):
    """The lane is not in the list that the service knows."""

    code = "unknown_lane"


class UnknownEncoder(InvalidRequest):
    """The vectors come from another encoder than the model was trained on."""

    code = "unknown_encoder"


class PayloadTooLarge(InvalidRequest):
    """The encoded request is over the payload limit."""

    code = "payload_too_large"


class WireError(QueueError):
    """Bytes that are not a message of this wire format."""

    code = "wire_error"


class Undecodable(WireError):
    """Not msgpack, truncated, or a field missing or of the wrong type."""

    code = "undecodable"


class UnsupportedVersion(WireError):
    """A wire version that this side does not read."""

    code = "unsupported_version"


class QueueFull(QueueError):
    """The queue is at its limit of entries or bytes; the request was not appended.

    Attributes:
        retry_after_ms: How long to wait before the next try.
    """

    code = "queue_full"
    retryable = True

    def __init__(self, message: str, retry_after_ms: int = 100) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DuplicateRequest(QueueError):
    """A request with this id was enqueued before, within the window; it is not run again.

    Its answer goes to whoever enqueued it first.
    """

    code = "duplicate_request"


class DeadlineExceeded(QueueError):
    """The deadline passed before an answer was computed."""

    code = "deadline_exceeded"


class Cancelled(QueueError):
    """The request was cancelled by its producer."""

    code = "cancelled"


class InferenceFailed(QueueError):
    """A worker could not compute an answer for this request."""

    code = "inference_failed"


class DeadLettered(QueueError):
    """The request went to the dead letter stream."""

    code = "dead_lettered"


class ResultTimeout(QueueError):
    """The caller's wait ended first, and the answer may still arrive; or it is long overdue, and lost."""

    code = "result_timeout"
    retryable = True


class RequestLost(QueueError):
    """The server has neither the request nor an answer to it.

    It was flushed, or failed over without its last writes, or dropped an answer that nobody read in time.
    """

    code = "request_lost"
    retryable = True


class ProducerClosed(QueueError):
    """The producer was closed while, or before, the call ran; or it is another process's or event loop's."""

    code = "producer_closed"


class ServerError(QueueError):
    """The Redis server could not serve the command."""

    code = "server_error"


class ServerUnavailable(ServerError):
    """The server cannot be reached, is loading, or failed over.

    Attributes:
        maybe_done: Whether the server may have carried the command out.
    """

    code = "server_unavailable"
    retryable = True
    maybe_done = False


class ServerOutOfMemory(ServerError):
    """The server refused to store more (maxmemory reached)."""

    code = "server_out_of_memory"
    retryable = True


class StreamUnusable(ServerError):
    """The queue's stream takes no entry any more: its last id is used up, or it is no stream."""

    code = "stream_unusable"


class AuthenticationFailed(ServerError):
    """Wrong user or password, or the user may not run this command."""

    code = "authentication_failed"


class TlsFailed(ServerError):
    """No encrypted connection: the certificate, its name, or a side that does not speak TLS."""

    code = "tls_failed"


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
