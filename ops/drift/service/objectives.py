"""The objectives of the service, and the rates at which their budgets may burn. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ops.clock import BLOCK_MIN, BLOCKS_PER_DAY
from ops.drift.service.live import Service
from ops.drift.settings import JudgeSettings
from ops.findings import Finding, Severity, service_finding

_HOUR = 60 // BLOCK_MIN


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


def _burns(steep: float, less_steep: float) -> tuple[Burn, ...]:
    rows: tuple[tuple[float, int, int, Severity], ...] = (
        (steep, _HOUR, 1, "page"),
        (less_steep, 6 * _HOUR, _HOUR // 2, "page"),
        (1.0, 3 * BLOCKS_PER_DAY, 6 * _HOUR, "ticket"),
    )
    return tuple(Burn(rate=r, long_blocks=n, short_blocks=m, severity=s) for r, n, m, s in rows)


_STEEP = _burns(14.4, 6.0)
#: A budget of 20 % cannot be burnt more than five times as fast.
_FLAT = _burns(2.0, 1.5)
#: Nobody waits for bulk work, and nobody is woken up for it.
_BULK = (Burn(rate=1.0, long_blocks=6 * _HOUR, short_blocks=_HOUR // 2, severity="ticket"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A share of requests that may be bad.

    Attributes:
        rule: Name.    what: For a person.
        short: For recorded ratios.
        bad, of: Counters added up, since the first request; those after a minus are taken off.
        burns: Windows.
    """

    rule: str
    short: str
    what: str
    bad: tuple[str, ...]
    of: tuple[str, ...]
    burns: tuple[Burn, ...]

    def budget(self, settings: JudgeSettings) -> float:
        """Allowed share."""
        return float(getattr(settings, f"{self.rule.removeprefix('slo_')}_budget"))


_ENDED = ("answered", "failed", "dead")
#: Bulk work, for which nobody waits, has no part in the objectives of the rest. `slow` and `timed` count
#: AMN's single answers to requests that say when they were submitted. The first counts contexts, as the
#: budget does: a batch is one request, and what it has beyond its first context is counted apart.
OBJECTIVES = (
    Objective(
        rule="slo_fallback",
        short="fallback",
        what="escalated to a fallback",
        bad=("escalated", "batch:extra:escalated", "-bulk:escalated"),
        of=(*_ENDED, "batch:extra", "-bulk"),
        burns=_FLAT,
    ),
    Objective(
        rule="slo_latency",
        short="slow",
        what="slower than 1.2 ms",
        bad=("slow",),
        of=("timed",),
        burns=_STEEP,
    ),
    Objective(
        rule="slo_error",
        short="error",
        what="failed or dead-lettered",
        bad=("failed", "dead", "-bulk:failed"),
        of=(*_ENDED, "-bulk"),
        burns=_STEEP,
    ),
    Objective(
        rule="slo_bulk_latency",
        short="bulk_slow",
        what="of the bulk work slower than a minute",
        bad=("slow:bulk",),
        of=("timed:bulk",),
        burns=_BULK,
    ),
    Objective(
        rule="slo_bulk_error",
        short="bulk_error",
        what="of the bulk work failed or dead-lettered",
        bad=("bulk:failed",),
        of=("bulk",),
        burns=_BULK,
    ),
)


def objectives(service: Service, end_block: int, settings: JudgeSettings) -> list[Finding]:
    """One finding per objective."""
    return [_objective(one, service, end_block, settings) for one in OBJECTIVES]


def _objective(one: Objective, service: Service, end_block: int, settings: JudgeSettings) -> Finding:
    known, firing, values = False, None, {}
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
        return service_finding(one.rule, firing.severity, "firing", text, values)
    shown = ", ".join(f"{value:.2%} in {name.removeprefix('share_')}" for name, value in values.items())
    if known:
        return service_finding(one.rule, "page", "ok", f"{shown} {one.what}", values)
    return service_finding(
        one.rule, "page", "insufficient", f"fewer than {settings.events_min} requests in a window"
    )
