"""The shadow's queue: leases like the others, and ends its entries with the truth join.

It has two streams: what workers saw, and what producers report. A producer may write to the second one
alone, so that no prediction is forged, and no clock or count of the first is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import structlog

from producer.keys import GROUP, Keys
from producer.transport.connection import driver_errors
from workers.engine.entry import Outcome
from workers.engine.queue import LeasedQueue
from workers.engine.reads import load
from workers.settings import WorkerSettings
from workers.shadow.exemplars import Exemplar, Exemplars, of_pair
from workers.shadow.scores import Half, Labels, Pairs, increments
from workers.shadow.settings import FILES_LANE, ShadowSettings

_LOG = structlog.get_logger("amn.worker")

#: Another worker's half can come between look and decision, and then go again; this often in a row
#: it does not. What is left over comes back when its lease ends.
_TRIES = 8


@dataclass(slots=True, kw_only=True)
class HalfOutcome(Outcome):
    """The end of a usable shadow entry: it meets its other half, or waits for it.

    Attributes:
        pairs: What a prediction adds to its minute when it comes, with or without its truth.
    """

    half: Half
    pairs: Pairs = field(default_factory=list)


class Stored(NamedTuple):
    """The record of a key. `half` is None when it was scored (no entry), or is unreadable."""

    entry: bytes = b""
    half: Half | None = None


class ShadowQueue(LeasedQueue):
    """The leased queue over the shadow stream. Its `finish` is lua/score.lua."""

    def __init__(self, settings: WorkerSettings, name: str, shadow: ShadowSettings | None = None) -> None:
        super().__init__(settings, Keys(settings.producer.queue).shadow, name)
        self.shadow = shadow or ShadowSettings()
        self._score = load("score")
        self._exemplars = Exemplars(self.client, self.keys)

    def finish(self, outcomes: Sequence[Outcome], *, then_lease: bool = False) -> list[bytes]:
        """Ends the entries; returns `b"ok"`, `b"lost"` or, after many tries, `b"again"` for each.

        The join is optimistic: halves are looked up, pairs scored here, and the script takes a
        decision only if what it was based on still holds. Two workers with one half each cannot
        both store: the second is told to look again, and scores.
        """
        statuses = [b"again"] * len(outcomes)
        with driver_errors(self.settings.producer.url):
            for _ in range(_TRIES):
                todo = [i for i, status in enumerate(statuses) if status == b"again"]
                if not todo:
                    break
                for i, status in zip(todo, self._joined([outcomes[i] for i in todo]), strict=True):
                    statuses[i] = status
        return statuses

    def _joined(self, outcomes: Sequence[Outcome]) -> list[bytes]:
        shadow, keys, halves = self.shadow, self.keys, self.keys.drift_half_prefix
        arguments: list[Any] = [GROUP, self.name, halves, keys.drift_minute_prefix]
        arguments += [shadow.half_ttl_ms, shadow.halves_max, shadow.truth_ttl_ms, shadow.truths_max]
        arguments += [shadow.minute_ttl_s, shadow.age_min_max]
        names = sorted({key_hash(o.sample_key) for o in outcomes if isinstance(o, HalfOutcome)})
        stored, met = self._stored(names), []
        for outcome in outcomes:
            words, found = _arguments(outcome, stored, shadow)
            arguments += words
            met.append(found)
        names = [*self.streams, keys.stats, keys.drift_minutes, halves + "index", halves + "truths"]
        statuses = cast("list[bytes]", self._writes.run(self._score, names, arguments))
        kept = (one for status, found in zip(statuses, met, strict=True) if status == b"ok" for one in found)
        self._exemplars.offer(kept)
        return statuses

    def _stored(self, hashes: Sequence[str]) -> dict[str, Stored]:
        """The records of these keys, in one round trip."""
        with self.client.pipeline(transaction=False) as pipe:
            for name in hashes:
                pipe.hmget(self.keys.drift_half_prefix + name, "kind", "entry", "head", "data")
            found = cast("list[list[bytes]]", pipe.execute() if hashes else [])
        return {name: _parsed(*values) for name, values in zip(hashes, found, strict=True) if values[0]}


def key_hash(key: str) -> str:
    """Name of a sample key's waiting half: fixed in length, and safe in a key."""
    return blake2b(key.encode(), digest_size=16).hexdigest()


def _parsed(kind: bytes, entry: bytes | None, head: bytes | None, data: bytes | None) -> Stored:
    if kind == b"scored" or entry is None or head is None or data is None:
        return Stored()
    try:
        return Stored(entry, Half.parse(kind.decode(), head.decode(), data))
    except ValueError as error:
        # Left by another version of this program. It cannot be scored, and expires.
        _LOG.warning("waiting_half_unreadable", error=str(error))
        return Stored(entry)


def _arguments(
    outcome: Outcome, stored: dict[str, Stored], shadow: ShadowSettings
) -> tuple[list[Any], list[Exemplar]]:
    """One entry's part of score.lua's arguments, and the exemplars that a pair makes; none where the entry
    only waits or goes. Remembers what the script will have stored."""
    entry, number = outcome.entry, outcome.entry.place + 1
    if not isinstance(outcome, HalfOutcome):
        return [number, entry.id, "drop", "", outcome.reason, "", b"", b"", 0, 0], []
    half, name = outcome.half, key_hash(outcome.sample_key)
    there, met = stored.get(name), list[Exemplar]()
    if there is not None and there.entry and there.half is None:
        return [number, entry.id, "drop", "", "unreadable", "", b"", b"", 0, 0], []
    pairs = list(outcome.pairs)
    op, partner, minute, head, data = "store", b"", half.minute, half.head, half.data
    if there is None:
        stored[name] = Stored(entry.id, half)
    elif there.half is not None and there.half.kind != half.kind:
        prediction, truth = (half, there.half) if half.kind == "prediction" else (there.half, half)
        of_file = Labels.parse(f"{prediction.labels}|")[0].lane == FILES_LANE
        ttl_ms = shadow.file_scored_ttl_ms if of_file else shadow.scored_ttl_ms
        op, partner, minute, head, data = "score", there.entry, prediction.minute, str(ttl_ms), b""
        pairs += increments(prediction, truth)
        met = of_pair(outcome.sample_key, name, prediction, truth)
        stored[name] = Stored()
    flat = [item for pair in pairs for item in pair]
    words = [number, entry.id, op, name, half.kind, head, data, partner, minute, len(pairs)]
    return [*words, *flat], met
