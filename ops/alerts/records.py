"""Stored records, one by one: one that cannot be read is passed over, and the others still page somebody."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import structlog

_LOG = structlog.get_logger("amn.alerts")
_T = TypeVar("_T")
_BYTES_MAX = 1024**2
UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError)


def record(stored: bytes, make: Callable[[Any], _T]) -> _T:
    """One record.

    Raises:
        UNREADABLE: It is too long, no JSON, or JSON of something else.
    """
    if len(stored) > _BYTES_MAX:
        raise ValueError(f"a record of {len(stored)} bytes")
    return make(json.loads(stored))


def readable(stored: Iterable[bytes], make: Callable[[Any], _T]) -> list[_T]:
    """Reads the records that can be read, and logs the others."""
    found = []
    for one in stored:
        try:
            found.append(record(one, make))
        except UNREADABLE as error:
            _LOG.error("record_unreadable", detail=f"{type(error).__name__}: {error!s:.200}")
    return found
