"""From minutes of integer sums to blocks of five, and from blocks to arrays; pure.

A block is what the judge remembers once a minute's hash has expired, so it is kept as integers and
small: six sums a slice and lane, and the histograms that the rules compare.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import numpy as np

from ops.drift.comparison import Window
from ops.drift.statistics import BLOCK_MIN, W2, Floats, N, W
from workers.shadow_scores import MILLION, TIER_TRUE, Labels

#: Stored sums in the order of `ops.drift.statistics`, and what one unit of each is.
_STATS = ("predictions", "n", "w", "w2", "amn.sum", "amn.squares")
_UNITS = np.array([1, 1, 1, 1, MILLION, MILLION], dtype=np.float64)
_SLICES = ("ood", "id")
#: Histograms by the first letter of their stats: AMN's cosines by slice; of all inputs together, the
#: nearest of the model's cluster centres, and the OOD score.
_HISTOGRAMS = {"h": "cosine.{}", "c": "cells", "s": "score"}
#: Sums of the frozen set that is replayed through the live path have a tier of their own.
TIER_CANARY = "canary"
_CANARY = ("n", "amn.sum")
ALL = ""


@dataclass(slots=True, kw_only=True)
class Block:
    """Five minutes, added up.

    Attributes:
        sums: By model and lane, six numbers for OOD and six for ID.
        minutes: By model, minutes in which something was sampled.
        histograms: By model and name, counts by bin: "cosine.ood", "cosine.id", "cells", "score".
        shares: By model, sampled requests by slice, "unknown" included.
        canary: By model and slice, scored requests of the frozen set and the sum of their cosines.
    """

    sums: dict[str, dict[str, list[list[int]]]] = field(default_factory=dict)
    minutes: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    shares: dict[str, dict[str, int]] = field(default_factory=dict)
    canary: dict[str, dict[str, list[int]]] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`."""
        return cls(**json.loads(text))


def block_of(minutes: Iterable[Mapping[str, int]]) -> Block:
    """The block of these minutes. Fields of another tier or a later version are passed over."""
    block = Block()
    for sums in minutes:
        models = set()
        for name, amount in sums.items():
            labels, stat = _parsed(name)
            if labels is not None and labels.tier == TIER_CANARY and stat in _CANARY:
                row = block.canary.setdefault(labels.model, {}).setdefault(labels.slice, [0, 0])
                row[_CANARY.index(stat)] += amount
            if labels is None or labels.tier != TIER_TRUE:
                continue
            models.add(labels.model)
            _add(block, labels, stat, amount)
        for model in models:
            block.minutes[model] = block.minutes.get(model, 0) + 1
    return block


def _add(block: Block, labels: Labels, stat: str, amount: int) -> None:
    if stat == "predictions":
        shares = block.shares.setdefault(labels.model, {})
        shares[labels.slice] = shares.get(labels.slice, 0) + amount
    kind, bin_ = stat[:1], stat[1:]
    if kind in _HISTOGRAMS and bin_.isdigit():
        named = block.histograms.setdefault(labels.model, {})
        bins = named.setdefault(_HISTOGRAMS[kind].format(labels.slice), {})
        bins[bin_] = bins.get(bin_, 0) + amount
    elif stat in _STATS and labels.slice in _SLICES:
        lanes = block.sums.setdefault(labels.model, {})
        rows = lanes.setdefault(labels.lane, [[0] * len(_STATS), [0] * len(_STATS)])
        rows[_SLICES.index(labels.slice)][_STATS.index(stat)] += amount


def _unweighted(sums: Floats) -> None:
    """Where nobody stored weights, each request weighs one."""
    for stat in (W2, W):  # W last: it tells for both
        sums[stat] = np.where(sums[W] > 0, sums[stat], sums[N])


@lru_cache(maxsize=65_536)
def _parsed(name: str) -> tuple[Labels | None, str]:
    """Fields repeat from minute to minute, so most are known."""
    try:
        return Labels.parse(name)
    except ValueError:
        return None, ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Consecutive blocks as arrays.

    Attributes:
        first_block: Number of the first: epoch minutes divided by five.
        series: By model and lane ("" for all), sums (6, 2, T).
        minutes: By model, minutes with data of each block, (T,).
        blocks: As they came, for histograms and shares.
    """

    first_block: int
    series: Mapping[str, Mapping[str, Floats]]
    minutes: Mapping[str, Floats]
    blocks: list[Block]

    @property
    def end_block(self) -> int:
        """One past the last."""
        return self.first_block + len(self.blocks)

    @classmethod
    def of(cls, first_block: int, blocks: list[Block]) -> Self:
        """Arrays of blocks that follow each other; an empty block is one without traffic."""
        series: dict[str, dict[str, Floats]] = {}
        minutes: dict[str, Floats] = {}
        for t, block in enumerate(blocks):
            for model, lanes in block.sums.items():
                known = series.setdefault(model, {})
                for lane, rows in lanes.items():
                    if lane not in known:
                        known[lane] = np.zeros((len(_STATS), 2, len(blocks)))
                    known[lane][:, :, t] = np.array(rows, dtype=np.float64).T / _UNITS[:, None]
            for model, count in block.minutes.items():
                minutes.setdefault(model, np.zeros(len(blocks)))[t] = count
        for each in series.values():
            for part in each.values():
                _unweighted(part)
            each[ALL] = np.sum(list(each.values()), axis=0)
        return cls(first_block=first_block, series=series, minutes=minutes, blocks=blocks)

    def window(self, model: str, lane: str, end_block: int, blocks: int) -> Window | None:
        """The blocks before `end_block`; None when they began before what is here."""
        first = end_block - blocks
        if first < self.first_block or end_block > self.end_block or lane not in self.series.get(model, {}):
            return None
        cut = slice(first - self.first_block, end_block - self.first_block)
        series = self.series[model]
        lanes = {name: part[..., cut] for name, part in series.items() if name != ALL}
        return Window(
            first_block=first,
            sums=series[lane][..., cut],
            lanes=lanes if lane == ALL else {},
            minutes=float(self.minutes[model][cut].sum() / (BLOCK_MIN * blocks)),
        )

    def histogram(self, model: str, name: str, end_block: int, blocks: int, bins: int) -> Floats:
        """Counts by bin over a window."""
        found = np.zeros(bins)
        for block in self.blocks[
            max(end_block - blocks - self.first_block, 0) : end_block - self.first_block
        ]:
            for bin_, count in block.histograms.get(model, {}).get(name, {}).items():
                if int(bin_) < bins:
                    found[int(bin_)] += count
        return found

    def shares(self, model: str, end_block: int, blocks: int) -> dict[str, int]:
        """Sampled requests by slice over a window, "unknown" included."""
        found: dict[str, int] = {}
        for block in self.blocks[
            max(end_block - blocks - self.first_block, 0) : end_block - self.first_block
        ]:
            for name, count in block.shares.get(model, {}).items():
                found[name] = found.get(name, 0) + count
        return found

    def canary(self, model: str, slice_: str, end_block: int, blocks: int) -> tuple[int, float]:
        """Requests of the frozen set in a window, and their mean cosine (NaN without any)."""
        rows = [block.canary.get(model, {}).get(slice_, [0, 0]) for block in self._cut(end_block, blocks)]
        n, total = (sum(column) for column in zip(*rows, strict=True)) if rows else (0, 0)
        return n, total / MILLION / n if n else math.nan

    def _cut(self, end_block: int, blocks: int) -> list[Block]:
        end = end_block - self.first_block
        return self.blocks[max(end - blocks, 0) : end]
