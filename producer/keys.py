"""Every Redis key and stream field of the house.

All keys of one queue carry the hash tag `{queue}`, so that they live in one Cluster slot and a
script may touch several of them. For the queue `main`:

    amn:{main}:requests          stream   work for AMN workers, group `workers`; `request`, `id`
    amn:{main}:requests:high     stream   the same, of the level above
    amn:{main}:requests:low      stream   the same, of the level below
    amn:{main}:fallback          stream   escalated work, group `workers`; `request`, `answer`,
                                          `id`
    amn:{main}:fallback:secondary  stream  what the fallback escalates further; the same fields
    amn:{main}:shadow            stream   sampled traffic as workers saw it, capped; `kind`, `key`,
                                          `one_in`, `request`, `answer`, `vector`
    amn:{main}:truths            stream   what producers report, capped; `kind`, `key`, `vector`
    amn:{main}:dead              stream   dead letters, capped; `reason`, `message`, `deliveries`,
                                          `entry`, `sha1`, `source`, `told`, `request`
    amn:{main}:replies:<client>  stream   answers for one client, expires when unused; `reply`
    amn:{main}:bytes:<stream>    string   payload bytes waiting or leased in each of these five
    amn:{main}:seen:<id>         string   "<client> <call> <place> <entry id>" of an enqueued request,
                                          or "<client> <call> cancelled", <client> being a hash of the
                                          client id; expires after the window
    amn:{main}:stats             hash     counters since the first request
    amn:{main}:stages            hash     times of the stages since the first request, counted in buckets
                                          (producer/stages.py)
    amn:{main}:stages:minute:<m>  hash    those of one minute, without the outcome; expires after 25 hours
    amn:{main}:standing          hash     where the streams stood a moment ago: by place "<first id>
                                          <last id>", and `turn`; expires
    amn:{main}:drift:minute:<m>  hash     integer sums of the shadow worker, expires
    amn:{main}:drift:half:<key>  hash     a prediction or truth that waits for its other half, or the
                                          mark that both met; expires
    amn:{main}:drift:half:index  zset     waiting predictions by age, to cap their number
    amn:{main}:drift:half:truths  zset    waiting truths by age, likewise
    amn:{main}:drift:minutes     zset     minutes that have sums, trimmed with them
    amn:{main}:workers:<name>    hash     what a worker is and when it last made progress, expires
    amn:{main}:failures          list     JSON of the errors that ended processes of the service, newest
                                          first; capped, expires
    amn:{main}:clock             string   the server's time when a worker last asked, expires

A *place* is the number of a stream that holds requests: 1 `requests:high`, 2 `requests`,
3 `requests:low`, 4 `fallback`, 5 `fallback:secondary`.

Three rooms keep more of their own, below a prefix; each says in its module what it holds:
`amn:{main}:drift:` (docs/drift-data.md; the judge, in ops/drift), `amn:{main}:alerts:` (ops/alerts),
`amn:{main}:gate:` (the shared budget and the circuit breakers, in workers/).
"""

from __future__ import annotations

import re
from functools import lru_cache

GROUP = "workers"

#: Field names of stream entries.
REQUEST = b"request"
ANSWER = b"answer"
ID = b"id"
REPLY = b"reply"

NAME_PATTERN, ID_PATTERN = r"[A-Za-z0-9_.-]{1,64}", r"[A-Za-z0-9_.:-]{1,64}"
_NAME = re.compile(NAME_PATTERN)


def valid_name(name: str) -> bool:
    """True if `name` may be a queue or a client: letters, digits, `_ . -`, at most 64."""
    return _NAME.fullmatch(name) is not None


#: Works as `valid_name`, for the client of each request that a worker decodes: few, and seen often.
valid_client = lru_cache(maxsize=4096)(valid_name)


#: A match for what may be a request id, a name in which `:` is allowed too; a worker asks of each request.
valid_id = re.compile(ID_PATTERN).fullmatch


class Keys:
    """The keys of one queue; the module's text says what each holds.

    Raises:
        ValueError: The queue's name is not valid.
    """

    def __init__(self, queue: str = "main") -> None:
        if not valid_name(queue):
            raise ValueError(f"queue name {queue!r} is not valid; use 1-64 letters, digits, '_', '.' or '-'")
        start = f"amn:{{{queue}}}:"
        self.queue = queue
        self.high = start + "requests:high"
        self.high_bytes = start + "bytes:requests:high"
        self.low = start + "requests:low"
        self.low_bytes = start + "bytes:requests:low"
        self.requests = start + "requests"
        self.requests_bytes = start + "bytes:requests"
        self.fallback = start + "fallback"
        self.fallback_bytes = start + "bytes:fallback"
        self.secondary = start + "fallback:secondary"
        self.secondary_bytes = start + "bytes:fallback:secondary"
        self.shadow = start + "shadow"
        self.truths = start + "truths"
        self.dead = start + "dead"
        self.stats = start + "stats"
        self.stages = start + "stages"
        self.stages_minute_prefix = start + "stages:minute:"
        self.standing = start + "standing"
        self.replies_prefix = start + "replies:"
        self.seen_prefix = start + "seen:"
        self.workers_prefix = start + "workers:"
        self.failures = start + "failures"
        self.clock = start + "clock"
        self.drift_minute_prefix = start + "drift:minute:"
        self.drift_half_prefix = start + "drift:half:"
        self.drift_minutes = start + "drift:minutes"
        self.drift_prefix = start + "drift:"
        self.alerts_prefix = start + "alerts:"
        self.gate_prefix = start + "gate:"
        #: The streams of new requests, in the order of `messages.PRIORITIES`: places 1 to 3.
        self.levels = self.high, self.requests, self.low
        #: Every stream that holds requests (place p is item p - 1), and their byte counters.
        self.places = *self.levels, self.fallback, self.secondary
        levels = self.high_bytes, self.requests_bytes, self.low_bytes
        self.counters = *levels, self.fallback_bytes, self.secondary_bytes

    def replies(self, client: str) -> str:
        """The reply stream of a client."""
        return self.replies_prefix + client

    def seen(self, request_id: str) -> str:
        """The key that remembers that a request id was enqueued."""
        return self.seen_prefix + request_id

    def stages_minute(self, minute: int) -> str:
        """The times of the stages in one epoch minute of the server's clock."""
        return f"{self.stages_minute_prefix}{minute}"

    def worker(self, name: str) -> str:
        """The key of a worker's heartbeat, in which it describes itself."""
        return self.workers_prefix + name
