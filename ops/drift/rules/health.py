"""`monitor_health`: whether the monitoring sees what it should. Pure."""

from __future__ import annotations

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.measures.blocks import ALL, Traffic
from ops.drift.measures.statistics import PREDICTIONS, N
from ops.drift.service.live import Service
from ops.drift.settings import JudgeSettings
from ops.drift.state import JudgeState, ModelState
from ops.findings import Finding, service_finding

_HOUR = 60 // BLOCK_MIN
#: Sampled requests without which a coverage is no number.
_COVERAGE_OF = 100
#: Draws scatter: this much beyond the card's range is still within it.
_RATE_SLACK = 0.1
#: The frozen set is replayed hourly; a result older than this says nothing about now, minutes.
_CANARY_MIN = 150


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
        return service_finding("monitor_health", "ticket", "firing", "; ".join(reasons), values)
    if not traffic.series:
        return service_finding(
            "monitor_health", "ticket", "insufficient", "no sample of 8 days is judged yet"
        )
    return service_finding(
        "monitor_health", "ticket", "ok", "sampling, truths and lag are as they should be", values
    )


def _sampling(service: Service, end_block: int, settings: JudgeSettings) -> float | None:
    """Realised sampling rate of the last hour."""
    if "shadowed" not in service.counters:
        return None  # shadow evaluation was never on
    sampled = service.since(end_block, _HOUR, ("shadowed",))
    of = service.since(end_block, _HOUR, ("sampleable",))
    return sampled / of if sampled is not None and of is not None and of >= settings.events_min else None


def _about(
    model: str,
    known: ModelState,
    traffic: Traffic,
    now_ms: int,
    settings: JudgeSettings,
    values: dict[str, float | int | str],
) -> list[str]:
    """Returns the findings about the measuring of one model."""
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


def canary(model: str, service: Service, settings: JudgeSettings) -> Finding:
    """`canary`: an item of the frozen set, replayed through the live path, scores differently.

    Nothing of that is chance: the model, its code or its numbers changed, and not the traffic.
    """
    run = service.canary.get(model, {})
    age_min = service.now_ms // 60_000 - int(run.get("minute", 0))
    if not run.get("n") or not run.get("golden") or age_min > _CANARY_MIN:
        return service_finding(
            "canary", "ticket", "insufficient", "no frozen set was replayed lately", model=model
        )
    change = float(run["max_change"])
    values = {"max_change": round(change, 6), "n": int(run["n"])}
    text = f"of {run['n']} frozen items the cosine of one changed by {change:.5f}, of the others by less"
    if change > settings.canary_ticket:
        severity = "page" if change > settings.canary_page else "ticket"
        return service_finding("canary", severity, "firing", text, values, model=model)
    return service_finding("canary", "page", "ok", text, values, model=model)
