"""`input_drift`: what is asked differs from what was asked while the baseline was taken. Pure.

A page is another thing than a ticket here. Topics come and go, and a ticket says so after a day. But
when the inputs of the last quarter of an hour lie where hardly any lay before, they are made by
another encoder, or nothing that the model was measured on is asked any more. A rotation that turns
contexts and truths alike keeps every cosine between them, so no score of the answers need show it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.latch import Latch, Seen, advance
from ops.drift.measures.blocks import ALL, Traffic
from ops.drift.measures.detector import Detector
from ops.drift.measures.statistics import ID, OOD, PREDICTIONS, Floats, W, X, divergence, divergence_by_chance
from ops.drift.rules.wording import clock
from ops.drift.settings import JudgeSettings
from ops.drift.state import ModelState
from ops.findings import Finding, service_finding
from workers.shadow.scores import SCORE_BINS

#: Histograms of the inputs, the most telling of topics first.
_BY_TOPIC = ("cells", "score")
#: How far a window of a few hundred requests looks back, the shortest first: 15 min to 24 h.
_RECENT_BLOCKS = (3, 6, 12, 36, 72, 144, BLOCKS_PER_DAY)
#: Bins of the OOD score put together, so that a few hundred requests fill them: 0.05 wide.
_COARSE = 5
_LATCH = f"input_drift|{ALL}"

Values = dict[str, float | int | str]


def input_drift(
    model: str,
    known: ModelState,
    traffic: Traffic,
    now_ms: int,
    settings: JudgeSettings,
) -> Finding:
    """The rule on one model; moves its latch in `known`."""
    if not known.shares:
        return service_finding("input_drift", "ticket", "insufficient", "no baseline yet", model=model)
    latch, recent, values = _sudden(model, known, traffic, now_ms, settings)
    if latch is not None:
        known.latches[_LATCH] = latch
        what = f"OOD scores of the last {values['recent_min']} min diverged by {recent:.2f} bits of 1"
        text = f"{what}: another encoder, or other documents altogether"
        text += _answers(model, known, traffic, latch, values)
        return service_finding("input_drift", "page", "firing", text, values, model=model)
    if known.latches.pop(_LATCH, None) is not None:
        # The incident is over. The rest of its day is no news; and what the detectors gathered while
        # a score put the requests into slices where they do not belong is no evidence.
        known.inputs_since_block = traffic.end_block
        known.detectors = {lane: Detector.fresh(traffic.end_block) for lane in known.detectors}
    reasons, enough = _slow(model, known, traffic, values, settings)
    if reasons:
        return service_finding("input_drift", "ticket", "firing", "; ".join(reasons), values, model=model)
    text = "as in the baseline" if enough else "too few samples in 24 h"
    return service_finding("input_drift", "ticket", "ok" if enough else "insufficient", text, values, model)


def wander(model: str, traffic: Traffic, first_block: int, settings: JudgeSettings) -> float:
    """Returns the most that inputs of an hour diverged from those of the whole baseline, in bits."""
    pooled = _coarse(model, traffic, traffic.end_block, traffic.end_block - first_block)
    hour = 60 // BLOCK_MIN
    hours = range(first_block + hour, traffic.end_block + 1, hour)
    enough = [end for end in hours if _inputs(model, traffic, end, hour) >= settings.recent_inputs_min]
    return max((divergence(pooled, _coarse(model, traffic, end, hour)) for end in enough), default=0.0)


def _sudden(
    model: str, known: ModelState, traffic: Traffic, now_ms: int, settings: JudgeSettings
) -> tuple[Latch | None, float, Values]:
    """The page's latch, the divergence of the newest window that is large enough, and its numbers."""
    latch = known.latches.get(_LATCH)
    base = known.histograms.get("score")
    for blocks in _RECENT_BLOCKS:
        size = _inputs(model, traffic, traffic.end_block, blocks)
        if size >= settings.recent_inputs_min:
            break
    else:
        base = None
    if base is None:  # nobody scores inputs, or there are too few: neither well nor ill
        return latch, math.nan, {"recent_min": 0}
    was = _coarsened(np.array(base, dtype=np.float64))
    now = _coarse(model, traffic, traffic.end_block, blocks)
    found = divergence(was, now)
    # Where a night's batch looks like this while all is well, it takes more.
    bar = max(settings.divergence_page, known.wander_bits + settings.divergence_ticket)
    fires = found >= bar and found > _by_chance(known, was, now, size)
    lasting = found >= settings.share_lasting * bar
    report = Seen(fires="page" if fires else "", lasting=lasting, change_block=traffic.end_block - blocks)
    values: Values = {
        "recent_divergence_bits": round(found, 4),
        "recent_bar_bits": round(bar, 4),
        "recent_min": blocks * BLOCK_MIN,
    }
    return advance(latch, report, None, now_ms, settings), found, values


def _slow(
    model: str, known: ModelState, traffic: Traffic, values: Values, settings: JudgeSettings
) -> tuple[list[str], bool]:
    """Reasons for a ticket over 24 h, and whether there was enough to say so; adds to `values`."""
    end = traffic.end_block
    blocks = min(BLOCKS_PER_DAY, end - known.inputs_since_block)
    sums = traffic.series[model][ALL][PREDICTIONS, :, traffic.series[model][ALL].shape[-1] - blocks :]
    if sums.sum() < settings.requests_min:
        return [], False
    reasons = []
    now, base = _share(traffic.shares(model, end, blocks)), _share(known.shares)
    values |= {"ood_share": round(now, 4), "ood_share_baseline": round(base, 4)}
    if base > 0 and now / base >= settings.share_ratio_ticket:
        reasons.append(f"{now:.1%} of the samples are OOD, {base:.1%} were")
    name = next((name for name in _BY_TOPIC if name in known.histograms), None)
    if name is not None:
        was = np.array(known.histograms[name], dtype=np.float64)
        counts = traffic.histogram(model, name, end, blocks, len(was))
        found = divergence(was, counts)
        values["divergence_bits"] = round(found, 4)
        size = _inputs(model, traffic, end, blocks)
        if found > settings.divergence_ticket and found > _by_chance(known, was, counts, size):
            reasons.append(f"the histogram of {name} diverged by {found:.3f} bits")
    return reasons, True


def _by_chance(known: ModelState, was: Floats, now: Floats, size: int) -> float:
    """Returns the divergence that is exceeded once in a thousand times although nothing changed."""
    # The counts are weights: a request that was sampled at 1 % counts for a hundred.
    was = was * (max(known.histograms["inputs"][0], 1) / was.sum())
    now = now * (max(size, 1) / now.sum())
    return divergence_by_chance(was, now, float(known.baselines[ALL].inflation.max()))


def _share(shares: Mapping[str, int]) -> float:
    total = sum(shares.values())
    return shares.get("ood", 0) / total if total else math.nan


def _inputs(model: str, traffic: Traffic, end_block: int, blocks: int) -> int:
    """Scored inputs of a window."""
    return int(traffic.histogram(model, "inputs", end_block, blocks, 1).sum())


def _coarse(model: str, traffic: Traffic, end_block: int, blocks: int) -> Floats:
    return _coarsened(traffic.histogram(model, "score", end_block, blocks, SCORE_BINS))


def _coarsened(counts: Floats) -> Floats:
    return np.asarray(counts.reshape(-1, _COARSE).sum(1))


def _answers(model: str, known: ModelState, traffic: Traffic, latch: Latch, values: Values) -> str:
    """Returns the change of the cosines since then: often little, and that is part of the picture."""
    first = max(latch.change_block, traffic.first_block)
    sums = traffic.series[model][ALL][..., first - traffic.end_block :]
    expected = known.baselines[ALL].expected(first, traffic.end_block - first)
    said = []
    for name, slice_ in (("ood", OOD), ("id", ID)):
        weight = float(sums[W, slice_].sum())
        if weight:
            change = float((sums[X, slice_] - sums[W, slice_] * expected[slice_]).sum() / weight)
            values[f"change_{name}"] = round(change, 6)
            said.append(f"m_{name.upper()} {change:+.4f}")
        else:
            said.append(f"m_{name.upper()} without truths")
    return f"; since {clock(first)} {', '.join(said)} against the baseline"
