"""The rates of false alarms and the delay of detection: years of made-up traffic in seconds.

The judging code is the judge's own. What is left out: the guard against a changed mixture of lanes,
which can only turn pages into tickets, so that the false pages counted here are an upper bound.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.lab.synthetic import Scenario, sums
from ops.drift.measures.baseline import Reference, learn
from ops.drift.measures.comparison import Window, compare
from ops.drift.measures.detector import Detector
from ops.drift.measures.statistics import ID, OOD, Floats, W, X
from ops.drift.rules import drops as rules
from ops.drift.settings import JudgeSettings

_LEARN_DAYS = 7
_LEARNED = _LEARN_DAYS * BLOCKS_PER_DAY
#: The 24 h rules are looked at every so many blocks; a day's mean moves little in a quarter of an hour.
_EVERY = 3
#: Crossings less than this apart are one episode of the naive rule: an hour of hysteresis.
_ONE_EPISODE = 12
#: Drops that are timed, at least, and for how long each is waited for.
_DROPS_MIN, _HORIZON_DAYS = 40, 3
#: Deployments in memory at a time.
_AT_ONCE = 20
_RULES = ("fast_drop", "ood_delta", "level", "naive")
#: Index of a deployment, rule, and block of a page.
Page = tuple[int, str, int]


def run(
    scenario: Scenario,
    drops: Sequence[float],
    settings: JudgeSettings,
    *,
    days: int = 90,
    repeats: int = 20,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Simulates deployments in health, once, and then ones whose OOD mean drops: a row for each drop.

    The rule "naive" is the card's sentence alone, the 24 h mean against the 24 h before.

    Args:
        days: Healthy days of one deployment, after the week that it learns in.
        repeats: Deployments; as many drops are timed, forty at least.
    """
    random, pages = np.random.default_rng(seed), Counter(dict.fromkeys(_RULES, 0))
    for first in range(0, repeats, _AT_ONCE):
        some = range(first, min(first + _AT_ONCE, repeats))
        series = np.stack([sums(scenario, _LEARN_DAYS + days, random).sum(0) for _ in some])
        pages.update(rule for _, rule, _ in watch(series, settings))
    years = repeats * days / 365
    for drop in drops:
        ours, naive = _delays(scenario, drop, max(repeats, _DROPS_MIN), random, settings)
        yield {
            "rate_per_s": scenario.rate_per_s,
            "sample": scenario.sample,
            "ood_share": scenario.ood_share,
            "drop": drop,
            "years": round(years, 2),
            "horizon_h": 24 * _HORIZON_DAYS,
            "false_pages_per_year": round((pages.total() - pages["naive"]) / years, 3),
            "false_pages_per_year_naive": round(pages["naive"] / years, 3),
            "false_pages": dict(pages),
            **_delay_figures(ours, ""),
            **_delay_figures(naive, "_naive"),
        }


def _delay_figures(delays_h: Floats, suffix: str) -> dict[str, float | None]:
    """Median and 90th percentile of all drops, a missed one being the longest; share of those."""
    waited = np.sort(delays_h)
    figures: dict[str, float | None] = {f"missed{suffix}": round(float(np.isinf(waited).mean()), 4)}
    for name, share in (("median", 0.5), ("p90", 0.9)):
        at = float(waited[int(share * len(waited))])
        figures[f"delay_h_{name}{suffix}"] = round(at, 3) if math.isfinite(at) else None
    return figures


def _delays(
    scenario: Scenario, drop: float, repeats: int, random: np.random.Generator, settings: JudgeSettings
) -> tuple[Floats, Floats]:
    """Hours until a page of our rules and of the naive one, in deployments that drop on day 8; or inf."""
    starts = (_LEARN_DAYS + 1) * BLOCKS_PER_DAY + random.integers(0, BLOCKS_PER_DAY, repeats)
    days = _LEARN_DAYS + 2 + _HORIZON_DAYS
    series = np.stack([sums(scenario, days, random, (drop, 0.0), int(b)).sum(0) for b in starts])
    ours, naive = np.full((2, repeats), np.inf)
    for i, rule, block in watch(series, settings, once_after=starts.tolist()):
        # A block is judged `closed_after_min` after its end; a page before the drop is a false one.
        hours = ((block - starts[i] + 1) * BLOCK_MIN + settings.closed_after_min) / 60
        if block >= starts[i] and hours <= 24 * _HORIZON_DAYS:
            found = naive if rule == "naive" else ours
            found[i] = min(found[i], hours)
    return ours, naive


def watch(series: Floats, settings: JudgeSettings, once_after: Sequence[int] | None = None) -> Iterator[Page]:
    """The pages of many deployments, (R, 6, 2, T), from their second week on.

    Args:
        series: The traffic.
        settings: The judge's.
        once_after: A block for each deployment: of a 24 h rule, only the first page from there on
            is of interest. Saves most of the time.
    """
    references = [learn(one[..., :_LEARNED], 0) for one in series]
    expected = np.stack([r.expected(0, series.shape[-1]) for r in references])
    bars = rules.bars(settings.pages_per_year, 1, 1)
    yield from _fast(series, expected, references, bars, settings)
    for i, (one, its, reference) in enumerate(zip(series, expected, references, strict=True)):
        least = math.inf if once_after is None else once_after[i]
        yield from ((i, *page) for page in _slow(one, its, reference, bars, settings, least))
        yield from ((i, "naive", block) for block in _naive(one, settings))


def _fast(
    series: Floats, expected: Floats, references: list[Reference], bars: rules.Bars, settings: JudgeSettings
) -> Iterator[Page]:
    """Pages of the fast detector on all deployments at once; after each, it begins anew."""
    needed = min(bars.fast_delta, bars.fast_level)
    noise = np.stack([reference.noise for reference in references])
    state = Detector.fresh(_LEARNED, (len(series),))
    for block in range(_LEARNED, series.shape[-1]):
        state = state.step(series[..., block], expected[..., block], noise)
        for i in np.flatnonzero((state.log_evidence >= needed).any(-1)).tolist():
            found = rules.changes(state.pick(i), references[i], bars, {}, 0)
            fires = {
                "fast_drop": (rules.fast_fires(found["delta"], settings), [0]),
                "level": (rules.fast_level_fires(found, settings), [1, 2]),
            }
            for rule, (loudness, watched) in fires.items():
                if loudness == rules.PAGE:
                    yield i, rule, block
                    state = state.without(watched, i)


def _slow(
    one: Floats,
    expected: Floats,
    reference: Reference,
    bars: rules.Bars,
    settings: JudgeSettings,
    once_after: float,
) -> Iterator[tuple[str, int]]:
    """Pages of the 24 h rules on one deployment, looked for only where the drop itself is large enough."""
    weight = _day_sums(one[W])
    offset = _day_sums(one[X] - one[W] * expected) / np.maximum(weight, 1e-9)
    enough = weight.min(0) >= settings.requests_min
    delta_low = offset[ID] - offset[OOD] >= settings.drop_page
    level_low = (-offset[ID] >= settings.drop_page) | (-offset[OOD] >= settings.level_ood_page)
    for rule, low, fires, lasts, u in (
        ("ood_delta", delta_low, rules.delta_fires, rules.delta_lasts, bars.delta_se),
        ("level", level_low, rules.level_fires, rules.level_lasts, bars.level_se),
    ):
        firing = False
        for first in np.flatnonzero(low & enough).tolist():
            end = first + BLOCKS_PER_DAY
            if end <= _LEARNED or end % _EVERY:
                continue
            window = Window(first_block=first, sums=one[..., first:end], lanes={})
            seen = compare(window, reference, settings)
            if firing:
                firing = lasts(seen, settings)
            elif fires(seen, u, settings) == rules.PAGE:
                yield rule, end - 1
                firing = True
                if end - 1 >= once_after:
                    break


def _day_sums(rows: Floats) -> Floats:
    """The sum of every 24 h, (2, T) -> (2, T - 287)."""
    total = np.concatenate([np.zeros((len(rows), 1)), rows.cumsum(-1)], axis=-1)
    return np.asarray(total[:, BLOCKS_PER_DAY:] - total[:, :-BLOCKS_PER_DAY])


def _naive(one: Floats, settings: JudgeSettings) -> list[int]:
    """Starts of the episodes in which the card's sentence holds, judged after every block."""
    means = _day_sums(one[X]) / np.maximum(_day_sums(one[W]), 1e-9)
    delta = means[OOD] - means[ID]
    low = delta[:-BLOCKS_PER_DAY] - delta[BLOCKS_PER_DAY:] > settings.drop_page
    ends = low.nonzero()[0] + 2 * BLOCKS_PER_DAY - 1
    ends = ends[ends >= _LEARNED]
    return [int(end) for end in ends[np.diff(ends, prepend=-math.inf) > _ONE_EPISODE]]
