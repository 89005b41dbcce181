"""The outcome of one attempt to deliver: in time, from a few kilobytes, whatever the other side does."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, Literal
from urllib.request import getproxies, proxy_bypass

import httpx

from ops.alerts.secret import Secret, plain

#: From the first look at the address to the last byte that is read. An attempt's lease is far longer.
DEADLINE_S = 15.0
#: What is wrong with the message itself will be wrong again. Everything else (a moved address, a
#: wrong key, an overload) may be repaired while the message waits.
_REFUSALS = (400, 413, 422)
#: A receiver that gave no answer is left alone for this long.
HUNG_MS = 30_000
_BUSY_MS, _RETRY_AFTER_MS_MAX = 60_000, 3_600_000
_HEADERS = {"User-Agent": "amn-queue", "Accept-Encoding": "identity"}
_BODY_BYTES, _SHOWN = 4_096, 200
#: A part of a secret that is shorter is no clue.
_CLUE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkAnswer:
    """The outcome of an attempt.

    Attributes:
        outcome: "accepted"; "again" for later; "refused" for never.
        detail: For a person; no secret.
        wait_ms: How long this sink wants to be left alone; 0 for no wish.
    """

    outcome: Literal["accepted", "again", "refused"]
    detail: str = ""
    wait_ms: int = 0


def client(url: str) -> httpx.AsyncClient:
    """Makes a client for this address by the environment's proxies and certificates; may raise anything.

    httpx itself refuses whole lists in NO_PROXY for one range of IPv6 addresses in them.
    """
    address = httpx.URL(url)
    proxies = {} if proxy_bypass(address.netloc.decode("ascii")) else getproxies()
    proxy = proxies.get(address.scheme) or proxies.get("all")
    return httpx.AsyncClient(
        headers=_HEADERS, timeout=DEADLINE_S, verify=_trusted(), proxy=proxy, trust_env=False
    )


@cache
def _trusted() -> ssl.SSLContext:
    """Reading the certificates takes as long as everything else, so those of the first attempt are kept."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:
        raise OSError(f"cannot read the certificates of SSL_CERT_FILE or SSL_CERT_DIR: {error}") from None


def post(url: str | Secret, headers: Mapping[str, str] | None = None, **body: Any) -> SinkAnswer:
    """Makes a request, and reads what its answer means. Raises what the libraries raise."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(_post(plain(url), headers or {}, body))
    except TimeoutError:
        return SinkAnswer(outcome="again", detail=f"no answer within {DEADLINE_S:g} s", wait_ms=HUNG_MS)
    finally:
        loop.close()  # and does not wait for a thread that still asks for an address


async def _post(url: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> SinkAnswer:
    async with (
        asyncio.timeout(DEADLINE_S) as whole,
        client(url) as http,
        http.stream("POST", url, headers=headers, **body) as response,
    ):
        text = bytearray()
        # The status is the answer; what comes after it only explains.
        with suppress(httpx.HTTPError, TimeoutError):
            async with asyncio.timeout_at((whole.when() or 0) - 1):
                async for chunk in response.aiter_raw():
                    text += chunk
                    if len(text) >= _BODY_BYTES:
                        break
        return of_response(response.status_code, bytes(text[:_BODY_BYTES]), response.headers)


def of_response(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> SinkAnswer:
    """Reads a response by its status and its Retry-After header."""
    detail = f"{status} {body.decode('utf-8', 'replace')}"
    if 200 <= status < 300:
        return SinkAnswer(outcome="accepted", detail=detail)
    if status in _REFUSALS:
        return SinkAnswer(outcome="refused", detail=detail)
    wait_ms = retry_after_ms((headers or {}).get("retry-after", ""), datetime.now(UTC))
    if status == 429:
        wait_ms = wait_ms or _BUSY_MS
    return SinkAnswer(outcome="again", detail=detail, wait_ms=wait_ms)


def retry_after_ms(header: str, now: datetime) -> int:
    """Returns the pause of a Retry-After header, in either of its forms; 0 without one, an hour at most."""
    text = header.strip()
    if re.fullmatch("[0-9]+", text):
        wait_ms = int(text[:9] if len(text) < 10 else "9" * 9) * 1000
    else:
        try:
            wait_ms = int((parsedate_to_datetime(text[:64]) - now).total_seconds() * 1000)
        except (TypeError, ValueError, OverflowError, IndexError):
            return 0
    return min(max(wait_ms, 0), _RETRY_AFTER_MS_MAX)


def shown(text: str, secrets: Iterable[Secret]) -> str:
    """One short line of an answer or an error, without the secrets in it or any part of them."""
    clues = {part for one in secrets for part in (one.reveal(), *re.split(r"[/?&=@:]+", one.reveal()))}
    for clue in sorted(clues, key=len, reverse=True):
        if len(clue) >= _CLUE:
            text = text.replace(clue, "***")
    return "".join(one if one.isprintable() else " " for one in text).strip()[:_SHOWN]
