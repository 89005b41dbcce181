"""What became of one attempt to deliver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import httpx

#: What is wrong with the message itself will be wrong again. Everything else (a moved address, a
#: wrong key, an overload) may be repaired while the message waits.
_REFUSALS = (400, 413, 422)
_BUSY_MS, _RETRY_AFTER_MS_MAX = 60_000, 3_600_000
_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Outcome of an attempt.

    Attributes:
        outcome: "accepted"; "again" for later; "refused" for never.
        detail: For a person; no secret.
        wait_ms: How long this sink wants to be left alone; 0 for no wish.
    """

    outcome: Literal["accepted", "again", "refused"]
    detail: str = ""
    wait_ms: int = 0


def attempt(send: Callable[[], httpx.Response]) -> Answer:
    """Makes a request, and reads what its answer means."""
    try:
        return of_response(send())
    except httpx.HTTPError as error:
        return Answer(outcome="again", detail=f"{type(error).__name__}: {error}"[:_SHOWN])


def of_response(response: httpx.Response) -> Answer:
    """By its status, and by Retry-After."""
    detail = f"{response.status_code} {response.text[:_SHOWN]}".strip()
    if response.is_success:
        return Answer(outcome="accepted", detail=detail)
    if response.status_code in _REFUSALS:
        return Answer(outcome="refused", detail=detail)
    wait_ms = retry_after_ms(response.headers.get("retry-after", ""), datetime.now(UTC))
    if response.status_code == 429:
        wait_ms = wait_ms or _BUSY_MS
    return Answer(outcome="again", detail=detail, wait_ms=wait_ms)


def retry_after_ms(header: str, now: datetime) -> int:
    """Of a Retry-After header, in either of its forms; 0 when there is none, an hour at most."""
    if header.strip().isdecimal():
        wait_ms = int(header) * 1000
    else:
        try:
            wait_ms = int((parsedate_to_datetime(header) - now).total_seconds() * 1000)
        except (TypeError, ValueError):
            return 0
    return min(max(wait_ms, 0), _RETRY_AFTER_MS_MAX)
