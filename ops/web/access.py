"""Decides who may ask: names of ours, our own site, a token."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers


def is_ours(host: str, names: Collection[str]) -> bool:
    """True for an address, or one of these names; another name may be one that a stranger points here."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    try:
        ipaddress.ip_address(name.strip("[]"))
        return True
    except ValueError:
        return name.lower() in names


def is_same_site(headers: Headers) -> bool:
    """True if a browser says that a page of ours sends this, or no browser does."""
    origin = headers.get("origin", "")
    ours = not origin or origin.partition("://")[2] == headers.get("host")
    return ours and headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def bears(headers: Headers, token: bytes) -> bool:
    """True if the request bears this token; takes as long for any other."""
    given = headers.get("authorization", "").encode("latin-1")  # the bytes that came
    return hmac.compare_digest(given, b"Bearer " + token)
