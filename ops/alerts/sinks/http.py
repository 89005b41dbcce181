"""One request to a receiver, within a deadline, whatever the other side does."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from amn.output import strict_json
from ops.alerts.secret import Secret, plain
from ops.alerts.sinks.base import SinkAnswer

#: From the first look at the address to the last byte that is read.
DEADLINE_S = 15.0
#: A receiver that gave no answer is left alone for this long.
HUNG_MS = 30_000
#: A message that is wrong will be wrong again. Everything else (a moved address, a wrong key, an
#: overload) may be repaired while the message waits.
_REFUSALS = (400, 413, 422)
_BUSY_MS, _RETRY_AFTER_MS_MAX = 60_000, 3_600_000
_HEADERS = {"User-Agent": "amn-queue", "Accept-Encoding": "identity", "Content-Type": "application/json"}
_BODY_BYTES = 4_096


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


def post(url: str | Secret, value: Any, headers: Mapping[str, str] | None = None) -> SinkAnswer:
    """Posts a value as JSON, or the bytes of one, and reads the answer. Raises what the libraries raise."""
    body = value if isinstance(value, bytes) else strict_json(value, compact=True).encode()
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(_post(plain(url), body, headers or {}))
    except TimeoutError:
        return SinkAnswer(outcome="again", detail=f"no answer within {DEADLINE_S:g} s", wait_ms=HUNG_MS)
    finally:
        loop.close()  # and does not wait for a thread that still asks for an address


async def _post(url: str, body: bytes, headers: Mapping[str, str]) -> SinkAnswer:
    async with (
        asyncio.timeout(DEADLINE_S) as whole,
        client(url) as http,
        http.stream("POST", url, headers=headers, content=body) as response,
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
