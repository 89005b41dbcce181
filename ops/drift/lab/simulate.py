"""The rates of false alarms and the delay of detection: years of made-up traffic in seconds.

The judging code is the judge's own. What is left out: the guard against a changed mixture of lanes,
which can only turn pages into tickets, so that the false pages counted here are an upper bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.lab.synthetic import Scenario, sums
from ops.drift.measures.baseline import Reference, learn
from ops.drift.measures.comparison import Window, compare
from ops.drift.measures.detector import Detector
from ops.drift.measures.statistics import ID, OOD, Floats, W, X
from ops.drift.rules import verdicts as rules
from ops.drift.settings import JudgeSettings

_LEARN_DAYS = 7
#: The 24 h rules are looked at every so many blocks; a day's mean moves little in a quarter of an hour.
_EVERY = 3
#: Crossings less than this apart are one episode of the naive rule: an hour of hysteresis.
_ONE_EPISODE = 12
_RULES = ("fast_drop", "ood_delta", "level", "naive")
#: Drops that are timed, at least, and for how long each is waited for.
_DROPS_MIN, _HORIZON_DAYS = 40, 3
#: Deployments in memory at a time.
_AT_ONCE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthy:
    """The amount of healthy traffic to watch.

    Attributes:
        days: Of one deployment, after the week that it learns in.
        repeats: Deployments; as many drops are timed, forty at least.
        seed: Of all draws.
    """

    days: int = 90
    repeats: int = 20
    seed: int = 0

    @property
    def years(self) -> float:
        """All deployments together."""
        return self.repeats * self.days / 365


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result for one drop.

    Attributes:
        scenario: The traffic.    healthy: How much was watched.    drop: Of the OOD mean.
        false_pages: By rule, in all healthy years; "naive" is the 24 h mean against the 24 h before.
        delays_h: By rule ("any" of ours, "naive"), hours from the drop to the page, NaN for never.
    """

    scenario: Scenario
    healthy: Healthy
    drop: float
    false_pages: Mapping[str, int]
    delays_h: Mapping[str, Floats]

    def to_json(self) -> dict[str, Any]:
        """The figures of a row of the table."""
        ours = sum(count for rule, count in self.false_pages.items() if rule != "naive")
        return {
            "rate_per_s": self.scenario.rate_per_s,
            "sample": self.scenario.sample,
            "ood_share": self.scenario.ood_share,
            "drop": self.drop,
            "years": round(self.healthy.years, 2),
            "horizon_h": 24 * _HORIZON_DAYS,
            "false_pages_per_year": round(ours / self.healthy.years, 3),
            "false_pages_per_year_naive": round(self.false_pages["naive"] / self.healthy.years, 3),
            "false_pages": dict(self.false_pages),
            **_delay_figures(self.delays_h["any"], ""),
            **_delay_figures(self.delays_h["naive"], "_naive"),
        }


def _delay_figures(delays_h: Floats, suffix: str) -> dict[str, float | None]:
    """Median and 90th percentile of all drops, a missed one being the longest; share of those."""
    waited = np.sort(np.where(np.isnan(delays_h), np.inf, delays_h))
    figures: dict[str, float | None] = {f"missed{suffix}": round(float(np.isinf(waited).mean()), 4)}
    for name, share in (("median", 0.5), ("p90", 0.9)):
        at = float(waited[min(int(share * len(waited)), len(waited) - 1)])
        figures[f"delay_h_{name}{suffix}"] = round(at, 3) if math.isfinite(at) else None
    return figures


def run(
    scenario: Scenario, drops: Sequence[float], healthy: Healthy, settings: JudgeSettings
) -> Iterator[Result]:
    """Simulates deployments in health, once, and then ones whose OOD mean drops, for each drop."""
    random = np.random.default_rng(healthy.seed)
    counts = dict.fromkeys(_RULES, 0)
    days = _LEARN_DAYS + healthy.days
    for first in range(0, healthy.repeats, _AT_ONCE):
        some = range(first, min(first + _AT_ONCE, healthy.repeats))
        series = np.stack([sums(scenario, days, random).sum(0) for _ in some])
        for pages in watch(series, settings):
            for rule, _ in pages:
                counts[rule] += 1
    for drop in drops:
        delays_h = _delays(scenario, drop, max(healthy.repeats, _DROPS_MIN), random, settings)
        yield Result(scenario=scenario, healthy=healthy, drop=drop, false_pages=counts, delays_h=delays_h)


def _delays(
    scenario: Scenario, drop: float, repeats: int, random: np.random.Generator, settings: JudgeSettings
) -> dict[str, Floats]:
    """Hours until a page, by rule, in `repeats` deployments that drop at a random hour of day 8."""
    starts = (_LEARN_DAYS + 1) * BLOCKS_PER_DAY + random.integers(0, BLOCKS_PER_DAY, repeats)
    days = _LEARN_DAYS + 2 + _HORIZON_DAYS
    series = np.stack([sums(scenario, days, random, (drop, 0.0), int(b)).sum(0) for b in starts])
    found = {rule: np.full(repeats, np.nan) for rule in (*_RULES, "any")}
    timed = watch(series, settings, once_after=starts.tolist())
    for i, (pages, start) in enumerate(zip(timed, starts.tolist(), strict=True)):
        for rule, block in pages:
            if block < start:
                continue  # a false page, which is counted in health
            # A block is judged `closed_after_min` after its end.
            hours = ((block - start + 1) * BLOCK_MIN + settings.closed_after_min) / 60
            if hours <= 24 * _HORIZON_DAYS:
                for name in (rule, *([] if rule == "naive" else ["any"])):
                    found[name][i] = np.fmin(found[name][i], hours)
    return found


def watch(
    series: Floats, settings: JudgeSettings, once_after: Sequence[int] | None = None
) -> Iterator[list[tuple[str, int]]]:
    """Rule and block of the pages of each deployment, (R, 6, 2, T), from its second week on.

    Args:
        series: The traffic.
        settings: The judge's.
        once_after: A block for each deployment: of a 24 h rule, only the first page from there on
            is of interest. Saves most of the time.
    """
    first = _LEARN_DAYS * BLOCKS_PER_DAY
    references = [learn(one[..., :first], 0) for one in series]
    expected = np.stack([r.expected(0, series.shape[-1]) for r in references])
    bars = rules.bars(settings.pages_per_year, 1, 1)
    fast = list(_fast(series, expected, references, bars, settings))
    for i, (one, its, reference) in enumerate(zip(series, expected, references, strict=True)):
        found = [(rule, block) for at, rule, block in fast if at == i]
        least = None if once_after is None else once_after[i]
        found += _slow(one, its, reference, bars, settings, least)
        yield found + [("naive", block) for block in _naive(one, settings)]


def _fast(
    series: Floats, expected: Floats, references: list[Reference], bars: rules.Bars, settings: JudgeSettings
) -> Iterator[tuple[int, str, int]]:
    """Pages of the fast detector on all deployments at once; after each, it begins anew."""
    first, needed = _LEARN_DAYS * BLOCKS_PER_DAY, min(bars.fast_delta, bars.fast_level)
    noise = np.stack([reference.noise for reference in references])
    state = Detector.fresh(first, (len(series),))
    for block in range(first, series.shape[-1]):
        state = state.step(series[..., block], expected[..., block], noise)
        for i in np.flatnonzero((state.log_evidence >= needed).any(-1)):
            found = rules.changes(state.pick(int(i)), references[i], bars, {}, 0)
            rest = []
            if rules.fast_fires(found["delta"], settings) == rules.PAGE:
                yield int(i), "fast_drop", block
                rest = [0]
            if rules.fast_level_fires(found, settings) == rules.PAGE:
                yield int(i), "level", block
                rest += [1, 2]
            if rest:
                state = state.without_of(int(i), rest)


def _slow(
    one: Floats,
    expected: Floats,
    reference: Reference,
    bars: rules.Bars,
    settings: JudgeSettings,
    once_after: int | None,
) -> Iterator[tuple[str, int]]:
    """Pages of the 24 h rules on one deployment.

    Only where the drop itself is large enough is there anything to judge, which is rare.
    """
    offset = _sliding(one, expected)
    enough = _day_sums(one[W]).min(0) >= settings.requests_min
    low = {
        "ood_delta": offset[ID] - offset[OOD] >= settings.drop_page,
        "level": (-offset[ID] >= settings.drop_page) | (-offset[OOD] >= settings.level_ood_page),
    }
    judge = {
        "ood_delta": (rules.delta_fires, rules.delta_lasts, bars.delta_se),
        "level": (rules.level_fires, rules.level_lasts, bars.level_se),
    }
    for rule, (fires, lasts, u) in judge.items():
        firing = False
        for at in np.flatnonzero(low[rule] & enough):
            end = int(at) + BLOCKS_PER_DAY
            if end <= _LEARN_DAYS * BLOCKS_PER_DAY or end % _EVERY:
                continue
            sums_24h = one[..., end - BLOCKS_PER_DAY : end]
            window = Window(first_block=end - BLOCKS_PER_DAY, sums=sums_24h, lanes={})
            seen = compare(window, reference, settings)
            if firing:
                firing = lasts(seen, settings)
            elif fires(seen, u, settings) == rules.PAGE:
                yield rule, end - 1
                firing = True
                if once_after is not None and end - 1 >= once_after:
                    break


def _sliding(one: Floats, expected: Floats) -> Floats:
    """Offset from the baseline of every 24 h, (2, T - 287)."""
    w, x = one[W], one[X] - one[W] * expected
    return np.asarray(_day_sums(x) / np.maximum(_day_sums(w), 1e-9))


def _day_sums(rows: Floats) -> Floats:
    total = np.concatenate([np.zeros((len(rows), 1)), rows.cumsum(-1)], axis=-1)
    return np.asarray(total[:, BLOCKS_PER_DAY:] - total[:, :-BLOCKS_PER_DAY])


def _naive(one: Floats, settings: JudgeSettings) -> list[int]:
    """Starts of the episodes in which the card's sentence holds, judged after every block."""
    means = _day_sums(one[X]) / np.maximum(_day_sums(one[W]), 1e-9)
    delta = means[OOD] - means[ID]
    low = delta[:-BLOCKS_PER_DAY] - delta[BLOCKS_PER_DAY:] > settings.drop_page
    ends = low.nonzero()[0] + 2 * BLOCKS_PER_DAY - 1
    ends = ends[ends >= _LEARN_DAYS * BLOCKS_PER_DAY]
    if not len(ends):
        return []
    return [int(end) for end in ends[np.concatenate([[True], np.diff(ends) > _ONE_EPISODE])]]
