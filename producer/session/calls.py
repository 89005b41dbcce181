"""What a call of lua/submit.lua is given, and what it may say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from producer.errors import ServerUnavailable
from producer.keys import Keys
from producer.session.requests import Outgoing
from producer.settings import ProducerSettings


def limit_arguments(keys: Keys, settings: ProducerSettings, note: str) -> tuple[str | int, ...]:
    """What the ARGV of lua/submit.lua begins with, the same in each call."""
    limits = settings.entries_max, settings.bytes_max, settings.seen_window_ms
    return *limits, keys.seen_prefix, note


def request_arguments(batch: Sequence[Outgoing]) -> list[str | int | bytes]:
    """The rest of it: these requests."""
    arguments: list[str | int | bytes] = []
    for item in batch:
        arguments += (item.id, item.level, item.call, item.payload)
    return arguments


def checked_statuses(found: Any, count: int) -> list[int]:
    """What submit.lua said of `count` requests.

    Raises:
        ServerUnavailable: It is the answer to something else; a repeat on a new connection is safe.
    """
    if isinstance(found, list) and len(found) == count and all(type(status) is int for status in found):
        return found
    error = ServerUnavailable("the server's answers came out of step; the connection is opened anew")
    error.maybe_done = True
    raise error
