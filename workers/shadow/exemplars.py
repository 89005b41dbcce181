"""Exemplars: the few requests of an hour that are kept whole, to be looked at and scored again.

Of each lane, slice and hour, the ten with the worst cosines and ten at random: those whose hash is
lowest, so that it does not matter who sees them, in which order or how often. They are written after
the sums, in a step of their own that can be repeated; a crash between the two loses an exemplar and
never a count. Keys and the record are described in docs/drift-data.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, cast

import numpy as np
import redis
from numpy.typing import NDArray

from producer.keys import Keys
from producer.sampling import sample_hash
from workers.engine.reads import load
from workers.shadow.scores import MILLION, Half, Labels, against

WORST, RANDOM = "worst", "random"
#: Exemplars of each kind, lane, slice and hour.
KEPT = 10
BYTES_MAX = 64 * 1024**2
_TTL_S = 48 * 3600
_FROZEN_TTL_S, _FROZEN_RECORDS, _FROZEN_ALERTS = 14 * 86_400, 200, 50
#: The random kind's order has nothing to do with the order that the samples were chosen by.
_SALT = "exemplar"
_BOUNDS_MAX = 10_000

Rows = NDArray[np.float16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplar:
    """One request with its truth.

    Attributes:
        id: Hash of its sample key.    kind: `WORST` or `RANDOM`.
        minute: Epoch minute of the prediction.
        cosine: Of AMN's prediction to the truth.    fallback: The fallback's; None without one.
        ood: OOD score of the input; None without a scorer.
        rows: (7 or 8, 768) float16: context (5), prediction, truth, and the fallback's prediction.
    """

    id: str
    kind: str
    key: str
    model: str
    lane: str
    slice: str
    minute: int
    cosine: float
    fallback: float | None
    ood: float | None
    rows: Rows = field(repr=False, compare=False)

    @property
    def hour(self) -> int:
        """Epoch hour."""
        return self.minute // 60

    @property
    def context(self) -> Rows:
        """(5, 768), oldest first."""
        return self.rows[:5]

    @property
    def prediction(self) -> Rows:
        """(768,), AMN's answer."""
        return cast(Rows, self.rows[5])

    @property
    def truth(self) -> Rows:
        """(768,), what came next."""
        return cast(Rows, self.rows[6])

    @property
    def group(self) -> str:
        """The kind, lane and slice among which it is kept."""
        return f"{self.kind}|{self.lane}|{self.slice}"

    @property
    def rank(self) -> int:
        """The lowest of a group stay."""
        return round(self.cosine * MILLION) if self.kind == WORST else sample_hash(self.key, _SALT) >> 8

    def pack(self) -> bytes:
        """The stored record."""
        about = {name: getattr(self, name) for name in self.__slots__ if name != "rows"}
        return json.dumps(about).encode() + b"\n" + self.rows.astype("<f2").tobytes()

    @classmethod
    def unpack(cls, record: bytes) -> Self:
        """The inverse of `pack`.

        Raises:
            ValueError: Not a record of this version.
        """
        about, _, data = record.partition(b"\n")
        try:
            return cls(**json.loads(about), rows=np.frombuffer(data, dtype="<f2").reshape(-1, 768))
        except TypeError as error:
            raise ValueError(f"exemplar of another version: {error}") from error


def of_pair(key: str, name: str, prediction: Half, truth: Half) -> list[Exemplar]:
    """The two exemplars, worst and random, that a matched pair of this sample key and hash can become."""
    labels, _ = Labels.parse(f"{prediction.labels}|n")
    amn, _, _, *fallback = (value / MILLION for value in against(prediction, truth))
    shared: dict[str, Any] = {
        "id": name[:16],
        "key": key,
        "model": labels.model,
        "lane": labels.lane,
        "slice": labels.slice,
        "minute": prediction.minute,
        "cosine": amn,
        "fallback": fallback[0] if fallback else None,
        "ood": None if prediction.ood < 0 else prediction.ood / MILLION,
        "rows": np.concatenate([prediction.rows[:6], truth.rows, prediction.rows[6:]]),
    }
    return [Exemplar(kind=kind, **shared) for kind in (WORST, RANDOM)]


class Exemplars:
    """Keeps, reads and freezes them."""

    def __init__(self, client: redis.Redis, keys: Keys, bytes_max: int = BYTES_MAX) -> None:
        self._client, self._prefix, self._bytes_max = client, keys.drift_prefix, bytes_max
        self._put = load("exemplars").on(client)
        self._bounds: dict[tuple[int, str], int] = {}

    def offer(self, found: Iterable[Exemplar]) -> int:
        """Keeps those that are among the lowest of their group; returns how many were sent.

        What a full group's highest rank was at the last look only falls, so most are known to be
        too high without asking.
        """
        sent = [one for one in found if one.rank < self._bounds.get((one.hour, one.group), 1 << 60)]
        if not sent:
            return 0
        arguments: list[Any] = [self._prefix + "exemplars:", KEPT, self._bytes_max, _TTL_S]
        for one in sent:
            arguments += [one.hour, one.group, one.id, one.rank, one.pack()]
        bounds = cast("list[bytes]", self._put([self._prefix + "exemplars:bytes"], arguments))
        if len(self._bounds) > _BOUNDS_MAX:
            self._bounds.clear()
        for one, bound in zip(sent, bounds, strict=True):
            if bound:
                self._bounds[one.hour, one.group] = int(bound)
        return len(sent)

    def read(self, first_hour: int, last_hour: int, lane: str = "", slice_: str = "") -> list[Exemplar]:
        """Those of the epoch hours, both included; all lanes and slices unless one is named."""
        with self._client.pipeline(transaction=False) as pipe:
            for hour in range(first_hour, last_hour + 1):
                pipe.hvals(f"{self._prefix}exemplars:{hour}")
            stored = cast("list[list[bytes]]", pipe.execute())
        found = [Exemplar.unpack(record) for records in stored for record in records]
        kept = [one for one in found if lane in ("", one.lane) and slice_ in ("", one.slice)]
        return sorted(kept, key=lambda one: (one.cosine, one.key, one.kind))

    def freeze(self, alert: str, found: Sequence[Exemplar], now_ms: int) -> int:
        """Copies them for an alert, at most 200, for 14 days; returns how many it has.

        They take the place of what an earlier incident of the same alert left.
        """
        key = f"{self._prefix}frozen:{alert}"
        some = _thinned(found, _FROZEN_RECORDS)
        if some:
            fields: dict[Any, Any] = {f"{one.hour}|{one.group}|{one.id}": one.pack() for one in some}
            with self._client.pipeline(transaction=True) as pipe:
                pipe.delete(key)
                pipe.hset(key, mapping=fields)
                pipe.expire(key, _FROZEN_TTL_S)
                pipe.zadd(self._prefix + "frozen", {alert: now_ms})
                pipe.expire(self._prefix + "frozen", _FROZEN_TTL_S)
                pipe.zrange(self._prefix + "frozen", 0, -_FROZEN_ALERTS - 1)
                *_, over = pipe.execute()
            for old in over:  # more alerts than are kept
                self._client.delete(f"{self._prefix}frozen:{old.decode()}")
                self._client.zrem(self._prefix + "frozen", old)
        return int(self._client.hlen(key))

    def frozen(self, alert: str) -> list[Exemplar]:
        """The copies of an alert, the worst first; empty when there are none."""
        stored = cast("list[bytes]", self._client.hvals(f"{self._prefix}frozen:{alert}"))
        return sorted((Exemplar.unpack(record) for record in stored), key=lambda one: (one.cosine, one.key))


def as_arrays(found: Sequence[Exemplar]) -> dict[str, NDArray[Any]]:
    """Each request once, as `amn drift replay --exemplars` reads them from an .npz."""
    once = {one.key: one for one in found}.values()
    return {
        "contexts": np.array([one.context for one in once], dtype=np.float16).reshape(-1, 5, 768),
        "truths": np.array([one.truth for one in once], dtype=np.float16).reshape(-1, 768),
        "lanes": np.array([one.lane for one in once], dtype=np.str_),
        "slices": np.array([one.slice for one in once], dtype=np.str_),
    }


def _thinned(found: Sequence[Exemplar], count: int) -> list[Exemplar]:
    """The worst half and the random half, as many of each as there is room for; the worst first."""
    worst = sorted((one for one in found if one.kind == WORST), key=lambda one: one.cosine)[: count // 2]
    others = sorted((one for one in found if one.kind == RANDOM), key=lambda one: one.rank)
    return worst + others[: count - len(worst)]
