"""The rules on the measuring itself: `monitor_health`, and `canary`, the frozen set sent again. Pure."""

from __future__ import annotations

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.measures.blocks import ALL, Traffic
from ops.drift.measures.statistics import PREDICTIONS, N
from ops.drift.service.live import Service
from ops.drift.settings import JudgeSettings
from ops.drift.state import JudgeState
from ops.findings import Finding, State, service_finding

_HOUR = 60 // BLOCK_MIN
#: Sampled requests without which a coverage is no number.
_COVERAGE_OF = 100
#: Draws scatter: this much beyond the card's range is still within it.
_RATE_SLACK = 0.1
#: The frozen set is sent hourly; a result older than this says nothing about now, minutes.
_CANARY_MIN = 150


def monitor_health(state: JudgeState, traffic: Traffic, service: Service, settings: JudgeSettings) -> Finding:
    """One ticket with all reasons why the monitoring may not see what it should."""
    reasons: list[str] = []
    values: dict[str, float | int | str] = {}
    sampled, of = (service.since(traffic.end_block, _HOUR, (name,)) for name in ("shadowed", "sampleable"))
    if "shadowed" in service.counters and sampled is not None and (of or 0) >= settings.events_min:
        rate = sampled / (of or 1)
        values["sampling"] = round(rate, 5)
        if not settings.sample_min * (1 - _RATE_SLACK) <= rate <= settings.sample_max * (1 + _RATE_SLACK):
            reasons.append(f"{rate:.2%} of the requests are sampled, 1 to 5 % are agreed")
    shadow_age_ms = round(1000 * service.age_s("shadow"))
    if shadow_age_ms > settings.lag_ticket_ms:
        values["shadow_age_ms"] = shadow_age_ms
        reasons.append(f"the oldest shadow entry waits for {shadow_age_ms / 1000:.0f} s")
    for model, known in state.models.items():
        if model not in traffic.series or known.last_block < traffic.end_block - BLOCKS_PER_DAY:
            continue  # it was replaced
        sums = traffic.series[model][ALL][..., -BLOCKS_PER_DAY:].sum((-1, -2))
        if sums[PREDICTIONS] >= _COVERAGE_OF:
            coverage = float(sums[N] / sums[PREDICTIONS])
            values["coverage"] = round(coverage, 4)
            if coverage < settings.coverage_min:
                reasons.append(f"truths came for {coverage:.0%} of the samples of {model}")
        # A new model has its first day to learn in.
        judged_from_ms = (known.first_block + BLOCKS_PER_DAY) * BLOCK_MIN * 60_000
        silent_ms = service.now_ms - max(known.silent_since_ms, judged_from_ms)
        if known.silent_since_ms and silent_ms > settings.silent_ticket_min * 60_000:
            reasons.append(f"too little data to judge {model} for {silent_ms / 3_600_000:.0f} h")
    if reasons:
        return service_finding("monitor_health", "ticket", "firing", "; ".join(reasons), values)
    if not traffic.series:
        text = "no sample of 8 days is judged yet"
        return service_finding("monitor_health", "ticket", "insufficient", text)
    text = "sampling, truths and lag are as they should be"
    return service_finding("monitor_health", "ticket", "ok", text, values)


def canary(model: str, service: Service, settings: JudgeSettings) -> Finding:
    """An item of the frozen set, sent through the live path, scores differently.

    Nothing of that is chance: the model, its code or its numbers changed, and not the traffic.
    """
    run = service.canary.get(model, {})
    age_min = service.now_ms // 60_000 - int(run.get("minute", 0))
    if not run.get("n") or not run.get("golden") or age_min > _CANARY_MIN:
        text = "no frozen set was sent lately"
        return service_finding("canary", "ticket", "insufficient", text, model=model)
    change = float(run["max_change"])
    values = {"max_change": round(change, 6), "n": int(run["n"])}
    text = f"of {run['n']} frozen items the cosine of one changed by {change:.5f}, of the others by less"
    severity = "ticket" if settings.canary_ticket < change <= settings.canary_page else "page"
    state: State = "firing" if change > settings.canary_ticket else "ok"
    return service_finding("canary", severity, state, text, values, model=model)
