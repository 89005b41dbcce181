"""Every answer that is an error: its HTTP status, the stable code of the queue's errors, and the place."""

from __future__ import annotations

import math

import orjson
from starlette.responses import Response

from producer import errors

#: The first class that fits counts.
_STATUS: tuple[tuple[type[errors.QueueError], int], ...] = (
    (errors.PayloadTooLarge, 413),
    (errors.InvalidRequest, 400),
    (errors.WireError, 400),
    (errors.DuplicateRequest, 409),
    (errors.QueueFull, 429),
    (errors.Cancelled, 499),
    (errors.DeadlineExceeded, 504),
    (errors.ResultTimeout, 504),
    (errors.RequestLost, 503),
    (errors.ProducerClosed, 503),
    (errors.ServerError, 503),
)


class Refused(Exception):
    """A request that gets no answer of the queue.

    Attributes:
        status: Of HTTP.    code: Stable name, as in producer/errors.py or docs/gateway.md.
        offset: Byte of the body at which it is wrong; None where no place is.
        retry_after_s: Whole seconds to wait before a repeat; None where none is worth it.
    """

    def __init__(
        self, text: str, status: int = 400, code: str = "invalid_request", offset: int | None = None
    ) -> None:
        super().__init__(text)
        self.status, self.code, self.offset = status, code, offset
        self.retry_after_s = 1 if status in (429, 503) else None


def bad(text: str, offset: int | None = None) -> Refused:
    """The refusal of a body that breaks the contract."""
    return Refused(text, offset=offset)


def refused(error: errors.QueueError) -> Refused:
    """The refusal that stands for an error of the queue; what no class fits is the service's own fault."""
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    found = Refused(str(error), status, error.code)
    if isinstance(error, errors.QueueFull):
        found.retry_after_s = max(math.ceil(error.retry_after_ms / 1000), 1)
    elif not error.retryable:
        found.retry_after_s = None
    return found


def response(refusal: Refused) -> Response:
    """The answer that says so."""
    said = {"error": str(refusal), "code": refusal.code, "retryable": refusal.retry_after_s is not None}
    if refusal.offset is not None:
        said["offset"] = refusal.offset
    headers = {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    body = orjson.dumps(said)
    return Response(body, refusal.status, headers, media_type="application/json")
