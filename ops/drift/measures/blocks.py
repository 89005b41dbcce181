"""From minutes of integer sums to blocks of five, and from blocks to arrays; pure.

A block is what the judge remembers once a minute's hash has expired, so it is kept as integers and
small: eight sums a slice and lane, and the histograms that the rules compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

import numpy as np

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.measures.comparison import Window
from ops.drift.measures.statistics import Floats, delta_values
from workers.shadow.scores import (
    BINS,
    MILLION,
    SCORE_BINS,
    TARGET_INPUT,
    TARGET_MODEL,
    TARGET_REFERENCE,
    TARGET_TRUE,
    Labels,
)

#: Stored sums, and what one unit of each is. The last two stand in where nobody stored weights.
_STATS = ("predictions", "n", "w.sum", "w.squares", "amn.wsum", "amn.wsquares", "amn.sum", "amn.squares")
_UNITS = np.array([1, 1, 1, 1, MILLION, MILLION, MILLION, MILLION], dtype=np.float64)
_SLICES = ("ood", "id")
#: What stands in for the truth where none came, and the sums that are kept of it: shown, never judged.
_STAND_INS = (TARGET_MODEL, TARGET_REFERENCE)
_STAND_IN_STATS = ("n", "w.sum", "amn.wsum")
#: Stats of the inputs by their first letter: nearest of the model's centroids, OOD score.
_INPUTS = {"c": "cells", "s": "score"}
#: Histograms, and their bins; "inputs" has the number of scored inputs in its only one.
HISTOGRAMS = {"cosine.ood": BINS, "cosine.id": BINS, "cells": 256, "score": SCORE_BINS, "inputs": 1}
ALL = ""


@dataclass(slots=True, kw_only=True)
class Block:
    """Five minutes, added up.

    Attributes:
        sums: By model and lane, eight numbers for OOD and eight for ID.
        minutes: By model, minutes in which something was sampled.
        histograms: By model and name, counts by bin; of cosines each counts one, of inputs their weight.
        shares: By model and slice, sampled requests and their weight.
        stand_ins: By model, stand-in for the truth and slice: requests, weight, weighted millionths.
    """

    sums: dict[str, dict[str, list[list[int]]]] = field(default_factory=dict)
    minutes: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)
    shares: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    stand_ins: dict[str, dict[str, dict[str, list[int]]]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `stored.dumps`."""
        return cls(**json.loads(text))


def block_of(minutes: Iterable[Mapping[str, int]]) -> Block:
    """The block of these minutes. Fields of other targets or of a later version are passed over."""
    block = Block()
    for sums in minutes:
        models = set()
        for name, amount in sums.items():
            labels, stat = _parsed(name)
            if labels is None:
                continue
            if labels.target == TARGET_TRUE:
                models.add(labels.model)
                _add(block, labels, stat, amount)
            elif labels.target == TARGET_INPUT and stat == "n":
                _add_bin(block, labels.model, "inputs", "0", amount)
            elif labels.target == TARGET_INPUT and stat[:1] in _INPUTS:
                _add_bin(block, labels.model, _INPUTS[stat[:1]], stat[1:], amount)
            elif labels.target in _STAND_INS and stat in _STAND_IN_STATS:
                slices = block.stand_ins.setdefault(labels.model, {}).setdefault(labels.target, {})
                slices.setdefault(labels.slice, [0, 0, 0])[_STAND_IN_STATS.index(stat)] += amount
        for model in models:
            block.minutes[model] = block.minutes.get(model, 0) + 1
    return block


def _add(block: Block, labels: Labels, stat: str, amount: int) -> None:
    if stat in ("predictions", "predictions.wsum"):
        row = block.shares.setdefault(labels.model, {}).setdefault(labels.slice, [0, 0])
        row[stat != "predictions"] += amount
    if labels.slice not in _SLICES:
        return
    if stat in _STATS:
        lanes = block.sums.setdefault(labels.model, {})
        rows = lanes.setdefault(labels.lane, [[0] * len(_STATS), [0] * len(_STATS)])
        rows[_SLICES.index(labels.slice)][_STATS.index(stat)] += amount
    elif stat[:1] == "h":
        _add_bin(block, labels.model, f"cosine.{labels.slice}", stat[1:], amount)


def _add_bin(block: Block, model: str, name: str, bin_: str, amount: int) -> None:
    if bin_.isdigit():
        bins = block.histograms.setdefault(model, {}).setdefault(name, {})
        bins[bin_] = bins.get(bin_, 0) + amount


@lru_cache(maxsize=65_536)
def _parsed(name: str) -> tuple[Labels | None, str]:
    """Fields repeat from minute to minute, so most are known."""
    try:
        return Labels.parse(name)
    except ValueError:
        return None, ""


def _arrays(rows: list[list[int]]) -> Floats:
    """The six sums of `ops.drift.measures.statistics`, (6, 2); without weights each request weighs one."""
    predictions, n, w, w2, x, xx, plain_x, plain_xx = np.array(rows, dtype=np.float64).T / _UNITS[:, None]
    has = w > 0
    weighted = [np.where(has, a, b) for a, b in ((w, n), (w2, n), (x, plain_x), (xx, plain_xx))]
    return np.stack([predictions, n, *weighted])


def ood_share(shares: Mapping[str, int]) -> float:
    """The part of the sampled requests that are OOD, from their numbers by slice; NaN without any."""
    total = sum(shares.values())
    return shares.get("ood", 0) / total if total else np.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class StandIn:
    """AMN against a stronger model's answer or the nearest reference: no truth, and not judged.

    Attributes:
        target: "model" or "reference".    slice: Of the inputs.
        n: Requests.    mean: Cosine, weighted.
    """

    target: str
    slice: str
    n: int
    mean: float


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
                        known[lane] = np.zeros((6, 2, len(blocks)))
                    known[lane][:, :, t] = _arrays(rows)
            for model, count in block.minutes.items():
                minutes.setdefault(model, np.zeros(len(blocks)))[t] = count
        for each in series.values():
            each[ALL] = np.sum(list(each.values()), axis=0)
        return cls(first_block=first_block, series=series, minutes=minutes, blocks=blocks)

    def main_model(self) -> str | None:
        """The model that most of the last day's samples were of."""
        sizes = {model: lanes[ALL][1, :, -BLOCKS_PER_DAY:].sum() for model, lanes in self.series.items()}
        return max(sizes, key=lambda model: sizes[model], default=None)

    def day_values(self, model: str) -> dict[str, float]:
        """The means and the delta of a model's last day, as `delta_values`, whatever a judge has learned."""
        return delta_values(self.series[model][ALL][..., -BLOCKS_PER_DAY:])

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

    def histogram(self, model: str, name: str, end_block: int, blocks: int) -> Floats:
        """Counts by bin over a window."""
        found = np.zeros(HISTOGRAMS[name])
        for block in self._cut(end_block, blocks):
            for bin_, count in block.histograms.get(model, {}).get(name, {}).items():
                if int(bin_) < len(found):
                    found[int(bin_)] += count
        return found

    def inputs(self, model: str, end_block: int, blocks: int) -> int:
        """Scored inputs of a window."""
        return int(self.histogram(model, "inputs", end_block, blocks)[0])

    def shares(self, model: str, end_block: int, blocks: int) -> dict[str, int]:
        """Sampled requests by slice over a window, by weight where there are weights."""
        rows = _added(block.shares.get(model, {}) for block in self._cut(end_block, blocks))
        weighted = any(weight for _, weight in rows.values())
        return {name: row[weighted] for name, row in rows.items()}

    def stand_ins(self, model: str, end_block: int, blocks: int) -> list[StandIn]:
        """AMN's mean cosine to what stands in for the truth, by target and slice, over a window."""
        found = []
        for target in _STAND_INS:
            targets = (block.stand_ins.get(model, {}) for block in self._cut(end_block, blocks))
            rows = _added(slices.get(target, {}) for slices in targets)
            found += [
                StandIn(target=target, slice=name, n=n, mean=x / MILLION / w)
                for name, (n, w, x) in sorted(rows.items())
                if w
            ]
        return found

    def _cut(self, end_block: int, blocks: int) -> list[Block]:
        end = end_block - self.first_block
        return self.blocks[max(end - blocks, 0) : end]


def _added(tables: Iterable[Mapping[str, list[int]]]) -> dict[str, list[int]]:
    """Rows of one name added up."""
    found: dict[str, list[int]] = {}
    for table in tables:
        for name, row in table.items():
            known = found.get(name)
            found[name] = row if known is None else [a + b for a, b in zip(known, row, strict=True)]
    return found
