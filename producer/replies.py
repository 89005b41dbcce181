"""Where the reply reader is in its stream. No I/O: the two producers send its commands."""

from __future__ import annotations

import logging
from typing import Any

from producer.errors import WireError
from producer.inflight import Inflight
from producer.keys import REPLY

_LOG = logging.getLogger("amn.producer")
#: Replies taken in one read.
READ_COUNT = 512
#: A blocking read returns at least this often, so that a stop is noticed without a server.
BLOCK_MS = 500
#: Read replies that may lie in the stream: its trimming is an answer to wait for, and to take, too.
TRIM_BYTES = 32 * 1024


class ReplyCursor:
    """Reads one client's reply stream, each entry once, through any number of reconnects."""

    def __init__(self, stream: str, inflight: Inflight) -> None:
        self.stream = stream
        self._inflight = inflight
        self._last = "0-0"
        self._read_bytes = 0
        self._idle = False

    def commands(self) -> list[tuple[str | int, ...]]:
        """One round trip: blocks for more, now and then after a trim of what was read.

        The last one's answer counts. A trim is due when much was read, and when nothing more came.
        Asked for again and again, also while the server is away: the time to look for lost requests.
        """
        self._inflight.sweep()
        read = ("XREAD", "COUNT", READ_COUNT, "BLOCK", BLOCK_MS, "STREAMS", self.stream, self._last)
        if self._read_bytes < TRIM_BYTES and not (self._idle and self._read_bytes):
            return [read]
        self._read_bytes = 0
        return [("XTRIM", self.stream, "MINID", "=", _after(self._last)), read]

    def take(self, found: Any) -> None:
        """Settles the requests that these entries answer, and moves on."""
        self._idle = not found
        if not found:
            return
        for entry_id, fields in found[0][1]:
            self._last = entry_id.decode()
            # The asyncio driver gives a map, a link the server's own list of names and values.
            payload = fields.get(REPLY) if isinstance(fields, dict) else _value(fields)
            if payload is None:  # the wake-up call of `close`
                continue
            self._read_bytes += len(payload)
            try:
                self._inflight.on_reply(payload)
            except WireError as error:
                _LOG.error("reply_undecodable: %s", error)


def _value(flat: list[bytes]) -> bytes | None:
    return flat[1] if flat[0] == REPLY else None


def _after(entry_id: str) -> str:
    milliseconds, _, sequence = entry_id.partition("-")
    return f"{milliseconds}-{int(sequence) + 1}"
