"""`input_drift`: what is asked differs from what was asked while the baseline was taken. Pure.

A page is another thing than a ticket here. Topics come and go, and a ticket says so after a day. But
when the inputs of the last quarter of an hour lie where hardly any lay before, they are made by
another encoder, or nothing that the model was measured on is asked any more. A rotation that turns
contexts and truths alike keeps every cosine between them, so no score of the answers need show it.
"""

from __future__ import annotations

import numpy as np

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.latch import RuleResult, advance
from ops.drift.measures.blocks import ALL, Traffic, ood_share
from ops.drift.measures.detector import Detector
from ops.drift.measures.statistics import ID, OOD, PREDICTIONS, Floats, W, X, divergence, divergence_by_chance
from ops.drift.rules.drift_rules import Values, clock
from ops.drift.settings import JudgeSettings
from ops.drift.state import ModelState
from ops.findings import Finding, service_finding

#: Histograms of the inputs, the most telling of topics first.
_BY_TOPIC = ("cells", "score")
#: How far a window of a few hundred requests looks back, the shortest first: 15 min to 24 h.
_RECENT_BLOCKS = (3, 6, 12, 36, 72, 144, BLOCKS_PER_DAY)
#: Bins of the OOD score put together, so that a few hundred requests fill them: 0.05 wide.
_COARSE = 5
_LATCH = f"input_drift|{ALL}"
_HOUR = 60 // BLOCK_MIN


def input_drift(
    model: str, known: ModelState, traffic: Traffic, now_ms: int, settings: JudgeSettings
) -> Finding:
    """The rule on one model; moves its latch in `known`."""
    if not known.shares:
        return service_finding("input_drift", "ticket", "insufficient", "no baseline yet", model=model)
    sudden = _sudden(model, known, traffic, settings)
    values = dict(sudden.values)
    ended = advance(known.latches, _LATCH, sudden, now_ms, settings)
    if _LATCH in known.latches:
        text = sudden.summary + _answers(model, known, traffic, values)
        return service_finding("input_drift", "page", "firing", text, values, model)
    if ended:
        # The rest of its day is no news; and what the detectors gathered while a score put the requests
        # into slices where they do not belong is no evidence.
        known.inputs_since_block = traffic.end_block
        known.detectors = {lane: Detector.fresh(traffic.end_block) for lane in known.detectors}
    reasons, enough = _slow(model, known, traffic, values, settings)
    if reasons:
        return service_finding("input_drift", "ticket", "firing", "; ".join(reasons), values, model)
    text = "as in the baseline" if enough else "too few samples in 24 h"
    return service_finding("input_drift", "ticket", "ok" if enough else "insufficient", text, values, model)


def wander(model: str, traffic: Traffic, first_block: int, settings: JudgeSettings) -> float:
    """Returns the most that inputs of an hour diverged from those of the whole baseline, in bits."""
    end = traffic.end_block
    pooled = _coarse(traffic.histogram(model, "score", end, end - first_block))
    return max(
        (
            divergence(pooled, _coarse(traffic.histogram(model, "score", hour, _HOUR)))
            for hour in range(first_block + _HOUR, end + 1, _HOUR)
            if traffic.inputs(model, hour, _HOUR) >= settings.recent_inputs_min
        ),
        default=0.0,
    )


def _sudden(model: str, known: ModelState, traffic: Traffic, settings: JudgeSettings) -> RuleResult:
    """The page: the OOD scores of the newest window with inputs enough against the baseline's."""
    end, least = traffic.end_block, settings.recent_inputs_min
    sizes = ((blocks, traffic.inputs(model, end, blocks)) for blocks in _RECENT_BLOCKS)
    blocks, size = next((found for found in sizes if found[1] >= least), (0, 0))
    if not blocks or "score" not in known.histograms:  # nobody scores inputs, or there are too few
        text = "too few inputs to say more"
        return RuleResult(severity="", lasting=None, change_block=end, summary=text, values={"recent_min": 0})
    was = _coarse(np.array(known.histograms["score"], dtype=np.float64))
    now = _coarse(traffic.histogram(model, "score", end, blocks))
    found = divergence(was, now)
    # Where a night's batch looks like this while all is well, it takes more.
    bar = max(settings.divergence_page, known.wander_bits + settings.divergence_ticket)
    what = f"OOD scores of the last {blocks * BLOCK_MIN} min diverged by {found:.2f} bits of 1"
    return RuleResult(
        severity="page" if found >= bar and found > _by_chance(known, was, now, size) else "",
        lasting=found >= settings.share_lasting * bar,
        change_block=end - blocks,
        seen_from_block=end,
        summary=f"{what}: another encoder, or other documents altogether",
        values={
            "recent_divergence_bits": round(found, 4),
            "recent_bar_bits": round(bar, 4),
            "recent_min": blocks * BLOCK_MIN,
        },
    )


def _slow(
    model: str, known: ModelState, traffic: Traffic, values: Values, settings: JudgeSettings
) -> tuple[list[str], bool]:
    """Reasons for a ticket over 24 h, and True where there was enough to say so; adds to `values`."""
    end = traffic.end_block
    blocks = min(BLOCKS_PER_DAY, end - known.inputs_since_block)
    sums = traffic.series[model][ALL][PREDICTIONS, :, len(traffic.blocks) - blocks :]
    if sums.sum() < settings.requests_min:
        return [], False
    reasons = []
    now, base = ood_share(traffic.shares(model, end, blocks)), ood_share(known.shares)
    values |= {"ood_share": round(now, 4), "ood_share_baseline": round(base, 4)}
    if base > 0 and now / base >= settings.share_ratio_ticket:
        reasons.append(f"{now:.1%} of the samples are OOD, {base:.1%} were")
    name = next((name for name in _BY_TOPIC if name in known.histograms), None)
    if name is not None:
        was = np.array(known.histograms[name], dtype=np.float64)
        counts = traffic.histogram(model, name, end, blocks)[: len(was)]
        found = divergence(was, counts)
        values["divergence_bits"] = round(found, 4)
        chance = _by_chance(known, was, counts, traffic.inputs(model, end, blocks))
        if found > settings.divergence_ticket and found > chance:
            reasons.append(f"the histogram of {name} diverged by {found:.3f} bits")
    return reasons, True


def _by_chance(known: ModelState, was: Floats, now: Floats, size: int) -> float:
    """Returns the divergence that is exceeded once in a thousand times although nothing changed."""
    # The counts are weights: a request that was sampled at 1 % counts for a hundred.
    was = was * (max(known.histograms["inputs"][0], 1) / was.sum())
    now = now * (max(size, 1) / now.sum())
    return divergence_by_chance(was, now, float(known.baselines[ALL].inflation.max()))


def _coarse(counts: Floats) -> Floats:
    return np.asarray(counts.reshape(-1, _COARSE).sum(1))


def _answers(model: str, known: ModelState, traffic: Traffic, values: Values) -> str:
    """Returns the change of the cosines since then: often little, and that is part of the picture."""
    first = max(known.latches[_LATCH].change_block, traffic.first_block)
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
