"""The objectives of the service, and the rates at which their budgets may burn. Pure.

Source: Beyer et al., The Site Reliability Workbook (2018), chapter 5, multiwindow, multi-burn-rate.
"""

from __future__ import annotations

from typing import NamedTuple

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.service.live import DECIDED, ESCALATED, Service
from ops.drift.settings import JudgeSettings
from ops.findings import Finding, Severity, service_finding

_HOUR = 60 // BLOCK_MIN


class Burn(NamedTuple):
    """One pair of windows of a burn-rate rule.

    Attributes:
        rate: Multiple of the budget that both windows must exceed.
        long_blocks, short_blocks: The windows; the short one ends the alert soon after the trouble.
        severity: How loud.
    """

    rate: float
    long_blocks: int
    short_blocks: int
    severity: Severity


class Objective(NamedTuple):
    """A share of requests that may be bad.

    Attributes:
        rule: Name.    what: For a person.
        budget: Allowed share.
        bad, of: Counters added up, since the first request; those after a minus are taken off.
        burns: Windows.
    """

    rule: str
    what: str
    budget: float
    bad: tuple[str, ...]
    of: tuple[str, ...]
    burns: tuple[Burn, ...]


def _burns(steep: float, less_steep: float) -> tuple[Burn, ...]:
    return (
        Burn(steep, _HOUR, 1, "page"),
        Burn(less_steep, 6 * _HOUR, _HOUR // 2, "page"),
        Burn(1.0, 3 * BLOCKS_PER_DAY, 6 * _HOUR, "ticket"),
    )


_STEEP = _burns(14.4, 6.0)
#: A budget of 20 % cannot be burnt more than five times as fast.
_FLAT = _burns(2.0, 1.5)
#: Nobody waits for bulk work, and nobody is woken up for it.
_BULK = (Burn(1.0, 6 * _HOUR, _HOUR // 2, "ticket"),)
#: Share of the contexts that may go to a fallback.
FALLBACK_RATE_MAX = 0.20
_ENDED = ("answered", "failed", "dead")
_ESCALATED, _CONTEXTS = (*ESCALATED, "-bulk:escalated"), (*DECIDED, "-bulk")
_FAILED, _SINGLE = ("failed", "dead", "-bulk:failed"), (*_ENDED, "-bulk")
_SLOW_BULK, _FAILED_BULK = "of the bulk work slower than a minute", "of the bulk work failed or dead-lettered"
#: Bulk work, for which nobody waits, has no part in the objectives of the rest. `slow` and `timed` count
#: AMN's single answers to requests that say when they were submitted. The first counts contexts, as the
#: budget does: a batch is one request, and what it has beyond its first context is counted apart.
OBJECTIVES = (
    Objective("slo_fallback", "escalated to a fallback", FALLBACK_RATE_MAX, _ESCALATED, _CONTEXTS, _FLAT),
    Objective("slo_latency", "slower than 1.2 ms", 0.05, ("slow",), ("timed",), _STEEP),
    Objective("slo_error", "failed or dead-lettered", 0.001, _FAILED, _SINGLE, _STEEP),
    Objective("slo_bulk_latency", _SLOW_BULK, 0.05, ("slow:bulk",), ("timed:bulk",), _BULK),
    Objective("slo_bulk_error", _FAILED_BULK, 0.01, ("bulk:failed",), ("bulk",), _BULK),
)


def objectives(service: Service, end_block: int, settings: JudgeSettings) -> list[Finding]:
    """One finding per objective."""
    return [_objective(one, service, end_block, settings.events_min) for one in OBJECTIVES]


def _objective(one: Objective, service: Service, end_block: int, events_min: int) -> Finding:
    firing, values = None, {}
    for burn in one.burns:
        shares = []
        for blocks in (burn.long_blocks, burn.short_blocks):
            bad, of = (service.since(end_block, blocks, names) for names in (one.bad, one.of))
            if bad is None or of is None or of < events_min:
                break
            shares.append(bad / of)
        if len(shares) < 2:
            continue
        hours = burn.long_blocks * BLOCK_MIN / 60
        values[f"share_{hours:g}h"] = round(shares[0], 5)
        if firing is None and min(shares) > burn.rate * one.budget:
            firing = burn.severity
            text = f"{shares[0]:.1%} {one.what} in {hours:g} h, {one.budget:.1%} are the budget"
    if firing is not None:
        return service_finding(one.rule, firing, "firing", text, values)
    if not values:
        return service_finding(
            one.rule, "page", "insufficient", f"fewer than {events_min} requests in a window"
        )
    shown = ", ".join(f"{value:.2%} in {name.removeprefix('share_')}" for name, value in values.items())
    return service_finding(one.rule, "page", "ok", f"{shown} {one.what}", values)
