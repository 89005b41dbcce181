"""Every Redis key and stream field of the house.

All keys of one queue carry the hash tag `{queue}`, so that they live in one Cluster slot and a
script may touch several of them. For the queue `main`:

    amn:{main}:requests          stream   work for AMN workers, group `workers`; field `request`
    amn:{main}:fallback          stream   escalated work, group `workers`; `request`, `answer`
    amn:{main}:shadow            stream   sampled traffic, capped; `kind`, `key`, `request`, `answer`
    amn:{main}:dead              stream   dead letters, capped; `reason`, `message`, `deliveries`,
                                          `entry`, `sha1`, `source`, `request`
    amn:{main}:replies:<client>  stream   answers for one client, expires when unused; `reply`
    amn:{main}:bytes:requests    string   payload bytes waiting or leased in `requests`
    amn:{main}:bytes:fallback    string   the same of `fallback`
    amn:{main}:seen:<id>         string   request ids already enqueued, expires after the window
    amn:{main}:stats             hash     counters since the first request
    amn:{main}:drift:minute:<m>  hash     integer sums of the shadow worker, expires
    amn:{main}:drift:half:<key>  hash     a prediction or truth that waits for its other half, expires
    amn:{main}:drift:minutes     zset     minutes that have sums, trimmed with them
    amn:{main}:workers:<name>    hash     what a worker is and when it last made progress, expires
"""

from __future__ import annotations

import re
from dataclasses import dataclass

GROUP = "workers"

#: Field names of stream entries.
REQUEST = b"request"
ANSWER = b"answer"
REPLY = b"reply"

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def valid_name(name: str) -> bool:
    """Whether `name` may be a queue or a client: letters, digits, `_ . -`, at most 64."""
    return _NAME.fullmatch(name) is not None


def valid_id(request_id: str) -> bool:
    """Whether `request_id` may be a request id: as a name, and `:` too."""
    return _ID.fullmatch(request_id) is not None


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one queue."""

    queue: str = "main"

    def __post_init__(self) -> None:
        if not valid_name(self.queue):
            raise ValueError(
                f"queue name {self.queue!r} is not valid; use 1-64 letters, digits, '_', '.' or '-'"
            )

    def _key(self, name: str) -> str:
        return f"amn:{{{self.queue}}}:{name}"

    @property
    def requests(self) -> str:
        return self._key("requests")

    @property
    def fallback(self) -> str:
        return self._key("fallback")

    @property
    def shadow(self) -> str:
        return self._key("shadow")

    @property
    def dead(self) -> str:
        return self._key("dead")

    @property
    def stats(self) -> str:
        return self._key("stats")

    @property
    def requests_bytes(self) -> str:
        return self._key("bytes:requests")

    @property
    def fallback_bytes(self) -> str:
        return self._key("bytes:fallback")

    @property
    def replies_prefix(self) -> str:
        return self._key("replies:")

    @property
    def seen_prefix(self) -> str:
        return self._key("seen:")

    @property
    def workers_prefix(self) -> str:
        return self._key("workers:")

    @property
    def drift_minute_prefix(self) -> str:
        return self._key("drift:minute:")

    @property
    def drift_half_prefix(self) -> str:
        return self._key("drift:half:")

    @property
    def drift_minutes(self) -> str:
        return self._key("drift:minutes")

    def replies(self, client: str) -> str:
        return self.replies_prefix + client

    def worker(self, name: str) -> str:
        return self.workers_prefix + name
