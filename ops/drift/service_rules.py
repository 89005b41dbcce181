"""Rules about the whole service: objectives, inputs and the monitoring itself. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from ops.drift.blocks import ALL, Traffic
from ops.drift.findings import Finding, Severity, State
from ops.drift.settings import JudgeSettings
from ops.drift.state import JudgeState, ModelState
from ops.drift.statistics import (
    BLOCK_MIN,
    BLOCKS_PER_DAY,
    PREDICTIONS,
    Floats,
    N,
    divergence,
    divergence_by_chance,
)

_HOUR = 60 // BLOCK_MIN
#: Sampled requests without which a coverage is no number.
_COVERAGE_OF = 100
#: The frozen set is replayed hourly; a result older than this says nothing about now, minutes.
_CANARY_MIN = 150
#: Draws scatter: this much beyond the card's range is still within it.
_RATE_SLACK = 0.1
#: Histograms of the inputs, the most telling first.
_INPUTS = ("cells", "score")


@dataclass(frozen=True, slots=True, kw_only=True)
class Burn:
    """One pair of windows of a burn-rate rule.

    Attributes:
        rate: Multiple of the budget that both windows must exceed.
        long_blocks, short_blocks: The windows; the short one ends the alert soon after the trouble.
        severity: How loud.

    Source: Beyer et al., The Site Reliability Workbook (2018), chapter 5, multiwindow, multi-burn-rate.
    """

    rate: float
    long_blocks: int
    short_blocks: int
    severity: Severity


_DAY = BLOCKS_PER_DAY
_STEEP = (
    Burn(rate=14.4, long_blocks=_HOUR, short_blocks=1, severity="page"),
    Burn(rate=6.0, long_blocks=6 * _HOUR, short_blocks=_HOUR // 2, severity="page"),
    Burn(rate=1.0, long_blocks=3 * _DAY, short_blocks=6 * _HOUR, severity="ticket"),
)
#: A budget of 20 % cannot be burnt more than five times as fast.
_FLAT = (
    Burn(rate=2.0, long_blocks=_HOUR, short_blocks=1, severity="page"),
    Burn(rate=1.5, long_blocks=6 * _HOUR, short_blocks=_HOUR // 2, severity="page"),
    Burn(rate=1.0, long_blocks=3 * _DAY, short_blocks=6 * _HOUR, severity="ticket"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A share of requests that may be bad.

    Attributes:
        rule: Name.    what: For a person.
        bad: Counters added up.    of: Counters added up; both since the first request.
        burns: Windows.
    """

    rule: str
    what: str
    bad: tuple[str, ...]
    of: tuple[str, ...]
    burns: tuple[Burn, ...]

    def budget(self, settings: JudgeSettings) -> float:
        """Allowed share."""
        return float(getattr(settings, f"{self.rule.removeprefix('slo_')}_budget"))


#: `slow` counts AMN answers that took more than 1.2 ms.
OBJECTIVES = (
    Objective(
        rule="slo_fallback",
        what="escalated to a fallback",
        bad=("escalated",),
        of=("answered", "failed", "dead"),
        burns=_FLAT,
    ),
    Objective(
        rule="slo_latency", what="slower than 1.2 ms", bad=("slow",), of=("answered:amn",), burns=_STEEP
    ),
    Objective(
        rule="slo_error",
        what="failed or dead-lettered",
        bad=("failed", "dead"),
        of=("answered", "failed", "dead"),
        burns=_STEEP,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What is known about the service at an evaluation.

    Attributes:
        now_ms: Server's clock.
        counters: Since the first request.
        counts: The same at the ends of past blocks.
        shadow_age_ms: Age of the oldest shadow entry; None when there is none.
        canary: By model, the last result of the frozen set (docs/drift-data.md).
    """

    now_ms: int
    counters: Mapping[str, int]
    counts: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    shadow_age_ms: int | None = None
    canary: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def since(self, end_block: int, blocks: int, names: Sequence[str]) -> int | None:
        """How much these counters grew since `blocks` before `end_block`; None when not known."""
        then = self.counts.get(end_block - blocks - 1)
        if then is None:
            return None
        grown = 0
        for name in names:
            now, before = self.counters.get(name, 0), then.get(name, 0)
            grown += now - before if now >= before else now  # the server was emptied meanwhile
        return grown


def objectives(service: Service, end_block: int, settings: JudgeSettings) -> list[Finding]:
    """One finding per objective."""
    return [_objective(one, service, end_block, settings) for one in OBJECTIVES]


def _objective(one: Objective, service: Service, end_block: int, settings: JudgeSettings) -> Finding:
    known, firing, values = False, None, {}
    if not any(name in service.counters for name in one.bad) and one.rule == "slo_latency":
        return _finding(one.rule, "ticket", "insufficient", "no worker counts slow answers")
    for burn in one.burns:
        shares = []
        for blocks in (burn.long_blocks, burn.short_blocks):
            bad, of = (service.since(end_block, blocks, names) for names in (one.bad, one.of))
            if bad is None or of is None or of < settings.events_min:
                break
            shares.append(bad / of)
        if len(shares) < 2:
            continue
        known = True
        hours = burn.long_blocks * BLOCK_MIN / 60
        values[f"share_{hours:g}h"] = round(shares[0], 5)
        if firing is None and min(shares) > burn.rate * one.budget(settings):
            firing = burn
            text = f"{shares[0]:.1%} {one.what} in {hours:g} h, {one.budget(settings):.1%} are the budget"
    if firing is not None:
        return _finding(one.rule, firing.severity, "firing", text, values)
    shown = ", ".join(f"{value:.2%} in {name.removeprefix('share_')}" for name, value in values.items())
    if known:
        return _finding(one.rule, "page", "ok", f"{shown} {one.what}", values)
    return _finding(
        one.rule, "page", "insufficient", f"fewer than {settings.events_min} requests in a window"
    )


def canary(model: str, service: Service, settings: JudgeSettings) -> Finding:
    """`canary`: an item of the frozen set, replayed through the live path, scores differently.

    Nothing of that is chance: the model, its code or its numbers changed, and not the traffic.
    """
    run = service.canary.get(model, {})
    age_min = service.now_ms // 60_000 - int(run.get("minute", 0))
    if not run.get("n") or not run.get("golden") or age_min > _CANARY_MIN:
        return _finding("canary", "ticket", "insufficient", "no frozen set was replayed lately", model=model)
    change = float(run["max_change"])
    values = {"max_change": round(change, 6), "n": int(run["n"])}
    text = f"of {run['n']} frozen items the cosine of one changed by {change:.5f}, of the others by less"
    if change > settings.canary_ticket:
        severity = "page" if change > settings.canary_page else "ticket"
        return _finding("canary", severity, "firing", text, values, model=model)
    return _finding("canary", "page", "ok", text, values, model=model)


def input_drift(model: str, known: ModelState, traffic: Traffic, settings: JudgeSettings) -> Finding:
    """`input_drift`: what is asked differs from what was asked while the baseline was taken."""
    if not known.shares:
        return _finding("input_drift", "ticket", "insufficient", "no baseline yet", model=model)
    reasons, values = [], {}
    shares = traffic.shares(model, traffic.end_block, BLOCKS_PER_DAY)
    sums = traffic.series[model][ALL][PREDICTIONS, :, -BLOCKS_PER_DAY:]
    enough = sums.sum() >= settings.requests_min
    if enough:
        now, base = _share(shares), _share(known.shares)
        values = {"ood_share": round(now, 4), "ood_share_baseline": round(base, 4)}
        if base > 0 and now / base >= settings.share_ratio_ticket:
            reasons.append(f"{now:.1%} of the samples are OOD, {base:.1%} were")
        name = next((name for name in _INPUTS if name in known.histograms), None)
        if name is not None:
            counts = traffic.histogram(
                model, name, traffic.end_block, BLOCKS_PER_DAY, len(known.histograms[name])
            )
            inputs = traffic.histogram(model, "inputs", traffic.end_block, BLOCKS_PER_DAY, 1).sum()
            found, beyond = _diverged(known, name, counts, inputs, settings)
            values["divergence_bits"] = round(found, 4)
            if beyond:
                reasons.append(f"the histogram of {name} diverged by {found:.3f} bits")
    state: State = "firing" if reasons else ("ok" if enough else "insufficient")
    text = "; ".join(reasons) or ("as in the baseline" if enough else "too few samples in 24 h")
    return _finding("input_drift", "ticket", state, text, values, model=model)


def _share(shares: Mapping[str, int]) -> float:
    total = sum(shares.values())
    return shares.get("ood", 0) / total if total else math.nan


def _diverged(
    known: ModelState, name: str, counts: Floats, inputs: float, settings: JudgeSettings
) -> tuple[float, bool]:
    """Divergence from the baseline, and whether it is both large and more than chance."""
    base = np.array(known.histograms[name], dtype=np.float64)
    found = divergence(base, counts)
    if not found > settings.divergence_ticket:
        return found, False
    inflation = float(known.baselines[ALL].inflation.max())
    sizes = [max(known.histograms["inputs"][0], 1), max(int(inputs), 1)]
    # The counts are weights: a request that was sampled at 1 % counts for a hundred.
    base, counts = base * (sizes[0] / base.sum()), counts * (sizes[1] / counts.sum())
    return found, found > divergence_by_chance(base, counts, inflation)


def monitor_health(state: JudgeState, traffic: Traffic, service: Service, settings: JudgeSettings) -> Finding:
    """`monitor_health`: whether the monitoring sees what it should. One ticket with all reasons."""
    reasons: list[str] = []
    values: dict[str, float | int | str] = {}
    rate = _sampling(service, traffic.end_block, settings)
    if rate is not None:
        values["sampling"] = round(rate, 5)
        if not settings.sample_min * (1 - _RATE_SLACK) <= rate <= settings.sample_max * (1 + _RATE_SLACK):
            reasons.append(f"{rate:.2%} of the requests are sampled, 1 to 5 % are agreed")
    if service.shadow_age_ms is not None and service.shadow_age_ms > settings.lag_ticket_ms:
        values["shadow_age_ms"] = service.shadow_age_ms
        reasons.append(f"the oldest shadow entry waits for {service.shadow_age_ms / 1000:.0f} s")
    for model, known in state.models.items():
        reasons += _about(model, known, traffic, service.now_ms, settings, values)
    if reasons:
        return _finding("monitor_health", "ticket", "firing", "; ".join(reasons), values)
    if not traffic.series:
        return _finding("monitor_health", "ticket", "insufficient", "no sample of 8 days is judged yet")
    return _finding(
        "monitor_health", "ticket", "ok", "sampling, truths and lag are as they should be", values
    )


def _sampling(service: Service, end_block: int, settings: JudgeSettings) -> float | None:
    """Realised sampling rate of the last hour."""
    if "shadowed" not in service.counters:
        return None  # shadow evaluation was never on
    sampled = service.since(end_block, _HOUR, ("shadowed",))
    of = service.since(end_block, _HOUR, ("answered",))
    return sampled / of if sampled is not None and of is not None and of >= settings.events_min else None


def _about(
    model: str,
    known: ModelState,
    traffic: Traffic,
    now_ms: int,
    settings: JudgeSettings,
    values: dict[str, float | int | str],
) -> list[str]:
    """What is wrong with the measuring of one model."""
    if model not in traffic.series or known.last_block < traffic.end_block - BLOCKS_PER_DAY:
        return []  # it was replaced
    reasons = []
    sums = traffic.series[model][ALL][..., -BLOCKS_PER_DAY:].sum((-1, -2))
    if sums[PREDICTIONS] >= _COVERAGE_OF:
        coverage = float(sums[N] / sums[PREDICTIONS])
        values["coverage"] = round(coverage, 4)
        if coverage < settings.coverage_min:
            reasons.append(f"truths came for {coverage:.0%} of the samples of {model}")
    # A new model has its first day to learn in.
    judged_from_ms = (known.first_block + BLOCKS_PER_DAY) * BLOCK_MIN * 60_000
    silent_ms = now_ms - max(known.silent_since_ms, judged_from_ms)
    if known.silent_since_ms and silent_ms > settings.silent_ticket_min * 60_000:
        hours = silent_ms / 3_600_000
        reasons.append(f"too little data to judge {model} for {hours:.0f} h")
    return reasons


def _finding(
    rule: str,
    severity: str,
    state: State,
    summary: str,
    values: Mapping[str, float | int | str] | None = None,
    model: str = "",
) -> Finding:
    return Finding(
        rule=rule,
        severity=cast(Severity, severity),
        state=state,
        model=model,
        summary=summary,
        values=values or {},
        runbook=rule,
    )
